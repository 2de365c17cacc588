//! The streams that last as long as their connection: control and QPACK, both ways.

use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::{oneshot, watch};
use wavry_proto::{
    h3::{
        self, code,
        frame::{self, Control, ControlDecoder},
        qpack,
        settings::Settings,
    },
    varint as quic_varint,
    webtransport::agreement::Agreement,
};

use super::{
    super::{credit, milestone::Milestone},
    Connection, Side,
};

/// A stream of the peer's, and what was read of it past its type.
type Arrived = (quinn::RecvStream, Bytes);

/// Where the peer's streams are waited for.
pub(super) struct Expected {
    control: oneshot::Receiver<Arrived>,
    encoder: oneshot::Receiver<Arrived>,
    decoder: oneshot::Receiver<Arrived>,
}

/// Where those who accept streams bring them: one of each kind, and no second one.
pub(super) struct Critical(Mutex<[Option<oneshot::Sender<Arrived>>; 3]>);

impl Critical {
    pub(super) fn new() -> (Self, Expected) {
        let (control, encoder, decoder) =
            (oneshot::channel(), oneshot::channel(), oneshot::channel());
        let senders = [control.0, encoder.0, decoder.0].map(Some);
        let expected = Expected {
            control: control.1,
            encoder: encoder.1,
            decoder: decoder.1,
        };
        (Self(Mutex::new(senders)), expected)
    }
}

impl Connection {
    /// Opens the control stream and keeps it open. No QPACK streams: who uses no dynamic table needs
    /// none (RFC 9204, section 4.2), and Deno (2.9) hangs on them.
    pub(super) async fn run_control(&self, mut drain: watch::Receiver<bool>) {
        let Ok(mut control) = self.open_control().await else {
            return;
        };
        let stopped = control.stopped();
        let drained = async {
            if self.side == Side::Server && drain.wait_for(|drain| *drain).await.is_ok() {
                let mut goaway = BytesMut::new();
                frame::put(&mut goaway, frame::kind::GOAWAY, &self.refuse_requests());
                // Fails when the peer stopped the stream, which is seen below.
                let _ = control.write_all(&goaway).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            stopped = stopped => if stopped.is_ok() {
                // RFC 9114, section 6.2.1.
                self.violation(code::CLOSED_CRITICAL_STREAM, &"the control stream was stopped");
            },
            () = drained => {}
        }
    }

    async fn open_control(&self) -> Result<quinn::SendStream, quinn::WriteError> {
        let mut control = self.quic.open_uni().await?;
        let mut hello = BytesMut::new();
        quic_varint::put(&mut hello, h3::stream::CONTROL);
        let mut settings = Vec::new();
        Settings::webtransport(
            self.limits.sessions_per_connection as u64,
            self.limits.max_header_block as u64,
        )
        .with_initial_flow(credit::initial(&self.limits))
        .encode(&mut settings);
        frame::put(&mut hello, frame::kind::SETTINGS, &settings);
        // It carries the words that decide about the rest.
        let _ = control.set_priority(1);
        control.write_all(&hello).await?;
        Ok(control)
    }

    /// Takes a stream of this type that the peer opened.
    pub(super) fn peer_opened(&self, kind: u64, recv: quinn::RecvStream, first: Bytes) {
        let sender = {
            let mut senders = self
                .critical
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            match kind {
                h3::stream::CONTROL => senders[0].take(),
                h3::stream::QPACK_ENCODER => senders[1].take(),
                _ => senders[2].take(),
            }
        };
        match sender {
            // Fails only when the connection is over.
            Some(sender) => drop(sender.send((recv, first))),
            None => self.violation(
                code::STREAM_CREATION_ERROR,
                &"a second stream of a kind of which there is one",
            ),
        }
    }

    /// Reads the peer's streams. One task for all three, as they are idle nearly always.
    pub(super) async fn read_critical(&self, expected: Expected) {
        let control = async {
            if let Ok((recv, first)) = expected.control.await {
                self.read_control(recv, first).await;
            }
        };
        let encoder = async {
            if let Ok((recv, first)) = expected.encoder.await {
                let mut stream = qpack::stream::EncoderStream;
                self.read_qpack(recv, first, |bytes| stream.push(bytes))
                    .await;
            }
        };
        let decoder = async {
            if let Ok((recv, first)) = expected.decoder.await {
                let mut stream = qpack::stream::DecoderStream::default();
                self.read_qpack(recv, first, |bytes| stream.push(bytes))
                    .await;
            }
        };
        tokio::join!(control, encoder, decoder);
    }

    async fn read_control(&self, mut recv: quinn::RecvStream, first: Bytes) {
        let mut decoder = match self.side {
            Side::Server => ControlDecoder::default(),
            Side::Client => ControlDecoder::of_server(),
        };
        let mut chunk = first;
        loop {
            decoder.push(&chunk);
            loop {
                match decoder.next() {
                    Ok(None) => break,
                    Ok(Some(Control::Settings(settings))) => self.peer_settings(&settings),
                    Ok(Some(Control::GoAway(id))) => self.peer_drains(id),
                    Err(error) => return self.violation(error.code(), &error),
                }
            }
            match self.more(&mut recv).await {
                Some(next) => chunk = next,
                None => return,
            }
        }
    }

    /// Reads a QPACK stream. Without a dynamic table there is hardly anything that it may say.
    async fn read_qpack(
        &self,
        mut recv: quinn::RecvStream,
        first: Bytes,
        mut read: impl FnMut(&[u8]) -> Result<(), qpack::stream::Error>,
    ) {
        let mut chunk = first;
        loop {
            if let Err(error) = read(&chunk) {
                return self.violation(error.code(), &error);
            }
            match self.more(&mut recv).await {
                Some(next) => chunk = next,
                None => return,
            }
        }
    }

    async fn more(&self, recv: &mut quinn::RecvStream) -> Option<Bytes> {
        match recv.read_chunk(4096, true).await {
            Ok(Some(chunk)) => Some(chunk.bytes),
            Ok(None) | Err(quinn::ReadError::Reset(_)) => {
                let what = "a stream that the connection needs was closed";
                self.violation(code::CLOSED_CRITICAL_STREAM, &what);
                None
            }
            Err(_) => None,
        }
    }

    fn peer_settings(&self, settings: &Settings) {
        let datagrams = self.quic.max_datagram_size().is_some();
        let agreed = match self.side {
            Side::Server => Agreement::with_client(settings, datagrams),
            Side::Client => Agreement::with_server(settings, datagrams),
        };
        match &agreed {
            Ok(agreement) => tracing::debug!(
                draft = ?agreement.draft(),
                flow_control = agreement.has_flow_control(),
                "agreed with the peer"
            ),
            Err(unmet) => tracing::debug!(%unmet, "no agreement with the peer"),
        }
        // The decoder lets no second SETTINGS pass.
        let _ = self.agreed.set(agreed);
        self.changed.notify_waiters();
    }

    /// The peer sent GOAWAY: it wants the sessions to end, whichever side it is (draft-ietf-webtrans-
    /// http3, section 4.7). A server's takes no requests from `id` on; a client's is about pushes, of
    /// which there are none.
    fn peer_drains(&self, id: u64) {
        let mut table = self.lock();
        if self.side == Side::Client {
            table.goaway = Some(id);
        }
        table.peer_drains = true;
        for shared in table.sessions.values() {
            shared.milestones.reach(Milestone::Draining);
        }
    }
}
