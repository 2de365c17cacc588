//! The streams that last as long as their connection: control and QPACK, both ways.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::Poll,
};

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, watch};
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

/// The peer's streams that last: one of each kind, and no second one.
#[derive(Default)]
pub(super) struct Critical {
    arrived: Mutex<[Slot; 3]>,
    changed: Notify,
}

#[derive(Default)]
enum Slot {
    #[default]
    Expected,
    /// And what was read of it past its type.
    Arrived(quinn::RecvStream, Bytes),
    Taken,
}

/// A stream that is being read.
struct Reading {
    recv: quinn::RecvStream,
    reader: Reader,
}

enum Reader {
    Control(ControlDecoder),
    Encoder(qpack::stream::EncoderStream),
    Decoder(qpack::stream::DecoderStream),
}

impl Critical {
    fn slots(&self) -> MutexGuard<'_, [Slot; 3]> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
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
        let slot = match kind {
            h3::stream::CONTROL => 0,
            h3::stream::QPACK_ENCODER => 1,
            _ => 2,
        };
        let slot = &mut self.critical.slots()[slot];
        if !matches!(slot, Slot::Expected) {
            let what = "a second stream of a kind of which there is one";
            return self.violation(code::STREAM_CREATION_ERROR, &what);
        }
        *slot = Slot::Arrived(recv, first);
        self.critical.changed.notify_one();
    }

    /// Reads the peer's streams. One future for all three, without one for each, as they are idle
    /// nearly always and every connection has them.
    pub(super) async fn read_critical(&self) {
        let mut streams: [Option<Reading>; 3] = [None, None, None];
        loop {
            self.take_arrived(&mut streams);
            let read = poll_fn(|cx| {
                for (at, stream) in streams.iter_mut().enumerate() {
                    let Some(stream) = stream else { continue };
                    let read = pin!(stream.recv.read_chunk(4096, true));
                    if let Poll::Ready(read) = read.poll(cx) {
                        return Poll::Ready((at, read));
                    }
                }
                Poll::Pending
            });
            let (at, read) = tokio::select! {
                () = self.critical.changed.notified() => continue,
                read = read => read,
            };
            let bytes = match read {
                Ok(Some(chunk)) => chunk.bytes,
                Ok(None) | Err(quinn::ReadError::Reset(_)) => {
                    let what = "a stream that the connection needs was closed";
                    return self.violation(code::CLOSED_CRITICAL_STREAM, &what);
                }
                Err(_) => return,
            };
            if let Some(stream) = &mut streams[at] {
                self.read_part(&mut stream.reader, &bytes);
            }
        }
    }

    fn take_arrived(&self, streams: &mut [Option<Reading>; 3]) {
        for (at, stream) in streams.iter_mut().enumerate() {
            let slot = &mut self.critical.slots()[at];
            if !matches!(slot, Slot::Arrived(..)) {
                continue;
            }
            if let Slot::Arrived(recv, first) = std::mem::replace(slot, Slot::Taken) {
                let mut reader = match (at, self.side) {
                    (0, Side::Server) => Reader::Control(ControlDecoder::default()),
                    (0, Side::Client) => Reader::Control(ControlDecoder::of_server()),
                    (1, _) => Reader::Encoder(qpack::stream::EncoderStream),
                    _ => Reader::Decoder(qpack::stream::DecoderStream::default()),
                };
                self.read_part(&mut reader, &first);
                *stream = Some(Reading { recv, reader });
            }
        }
    }

    /// Reads a part of a stream. Without a dynamic table there is hardly anything that may be said
    /// on those of QPACK.
    fn read_part(&self, reader: &mut Reader, bytes: &[u8]) {
        let judged = match reader {
            Reader::Encoder(stream) => stream.push(bytes),
            Reader::Decoder(stream) => stream.push(bytes),
            Reader::Control(decoder) => return self.read_control(decoder, bytes),
        };
        if let Err(error) = judged {
            self.violation(error.code(), &error);
        }
    }

    fn read_control(&self, decoder: &mut ControlDecoder, bytes: &[u8]) {
        decoder.push(bytes);
        loop {
            match decoder.next() {
                Ok(None) => return,
                Ok(Some(Control::Settings(settings))) => self.peer_settings(&settings),
                Ok(Some(Control::GoAway(id))) => self.peer_drains(id),
                Err(error) => return self.violation(error.code(), &error),
            }
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
