//! A session and the stream that holds it open.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::time::{sleep, timeout};
use tracing::Instrument;
use wavry_proto::{
    h3::{
        code,
        frame::{self, Message, MessageDecoder},
    },
    webtransport::{
        code as wt_code,
        flow::Kind,
        session::{Error, Event},
        stream as wt_stream,
    },
};

use super::{
    connection::{AGAIN, LINGER, SHARE},
    credit,
    milestone::Milestone,
    shared::{Incoming, Shared},
    stream::{RecvStream, SendStream, refuse, varint},
};
use crate::session::{self, Close, Closed, DatagramError};

/// How long the last word of a session may take to be acknowledged.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// How long of that the session's streams wait for it with their resets. Data of theirs that the
/// peer does not read may be what keeps it back.
const RESET_WAIT: Duration = Duration::from_secs(1);
/// How long, after that, the peer may take to end its side of the CONNECT stream, which shows that
/// it has read the last word.
const ANSWER_WAIT: Duration = Duration::from_millis(500);

/// A WebTransport session over HTTP/3. Dropping it closes it with code 0.
pub struct Session {
    shared: Arc<Shared>,
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, mut connect: ConnectStream) -> Self {
        connect.decoder.tunnel();
        // Now that it is wanted, it may hold its share of the connection's window.
        let share = match shared.limited {
            true => credit::initial(&shared.connection.limits).data,
            false => SHARE,
        };
        shared.window.fetch_add(share, Ordering::Relaxed);
        shared.connection.share();
        let span = tracing::debug_span!("session", id = shared.id);
        tokio::spawn(connect.run(shared.clone()).instrument(span));
        Self { shared }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Where the peer is now.
    pub fn remote_address(&self) -> std::net::SocketAddr {
        self.shared.connection.quic.remote_address()
    }

    /// The round-trip time of the connection, as QUIC estimates it.
    pub fn rtt(&self) -> Duration {
        self.shared.connection.quic.rtt()
    }

    async fn send_stream(
        &self,
        signal: u64,
        stream: quinn::SendStream,
    ) -> Result<SendStream, Closed> {
        let mut stream = SendStream::opened(stream, self.shared.clone());
        let header = wt_stream::header(signal, self.shared.id);
        match stream.write_header(header).await {
            Ok(()) => Ok(stream),
            Err(session::WriteError::Session(closed)) => Err(closed),
            // The peer stopped a stream whose header it has not seen. Whoever writes next learns it.
            Err(_) => Ok(stream),
        }
    }

    /// Opens a stream of this kind with `open`, once the session may and unless it is over first.
    async fn opened<T>(
        &self,
        kind: Kind,
        open: impl Future<Output = Result<T, quinn::ConnectionError>>,
    ) -> Result<T, Closed> {
        let permitted = async {
            let permit = self.shared.permit(kind).await;
            let opened = open.await?;
            permit.used();
            Ok(opened)
        };
        tokio::select! {
            biased;
            closed = self.shared.over() => Err(closed),
            opened = permitted => match opened {
                Ok(opened) => Ok(opened),
                Err(error) => Err(self.shared.lost(&error).await),
            },
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.end(Closed::Here(Close::default()));
    }
}

impl session::Session for Session {
    type Send = SendStream;
    type Recv = RecvStream;

    async fn open_bi(&self) -> Result<(SendStream, RecvStream), Closed> {
        let open = self.shared.connection.quic.open_bi();
        let (send, recv) = self.opened(Kind::Bidi, open).await?;
        let recv = RecvStream::opened(recv, self.shared.clone());
        Ok((self.send_stream(wt_stream::BI, send).await?, recv))
    }

    async fn open_uni(&self) -> Result<SendStream, Closed> {
        let open = self.shared.connection.quic.open_uni();
        let send = self.opened(Kind::Uni, open).await?;
        self.send_stream(wt_stream::UNI, send).await
    }

    async fn accept_bi(&self) -> Result<(SendStream, RecvStream), Closed> {
        loop {
            match self.shared.bi.pop().await {
                Some(Incoming {
                    send: Some(send),
                    recv,
                    first,
                    place,
                }) => {
                    let (shared, place) = (&self.shared, Arc::new(place));
                    let send = SendStream::accepted(send, shared.clone(), place.clone());
                    let recv = RecvStream::accepted(recv, first, shared.clone(), place);
                    return Ok((send, recv));
                }
                Some(_) => {}
                None => return Err(self.shared.over().await),
            }
        }
    }

    async fn accept_uni(&self) -> Result<RecvStream, Closed> {
        match self.shared.uni.pop().await {
            Some(Incoming {
                recv, first, place, ..
            }) => {
                let place = Arc::new(place);
                let shared = self.shared.clone();
                Ok(RecvStream::accepted(recv, first, shared, place))
            }
            None => Err(self.shared.over().await),
        }
    }

    fn send_datagram(&self, payload: Bytes) -> Result<(), DatagramError> {
        if let Some(closed) = self.shared.closed_now() {
            return Err(closed.into());
        }
        let encoded = wt_stream::datagram(self.shared.id, &payload);
        let header = encoded.len() - payload.len();
        let connection = &self.shared.connection;
        connection.meter.send(&connection.quic, header, encoded)
    }

    async fn recv_datagram(&self) -> Result<Bytes, Closed> {
        let Shared {
            connection,
            datagrams,
            id,
            ..
        } = &*self.shared;
        match connection
            .datagrams
            .recv(datagrams, &**connection, *id)
            .await
        {
            Some(payload) => Ok(payload),
            None => Err(self.shared.over().await),
        }
    }

    fn max_datagram_size(&self) -> usize {
        let header = wavry_proto::varint::size(self.shared.id / 4);
        let max = self.shared.connection.quic.max_datagram_size();
        max.unwrap_or(0).saturating_sub(header)
    }

    fn drain(&self) {
        self.shared.update(|state| state.drain());
    }

    async fn draining(&self) {
        self.shared.milestones.wait(Milestone::Draining).await;
    }

    fn close(&self, close: Close) {
        self.shared
            .end(Closed::Here(Close::new(close.code, &close.reason)));
    }

    /// Resolves when the session is over. When it was closed here, that is after the peer has had
    /// the chance to learn the code, so that a process that waits for it may exit.
    async fn closed(&self) -> Closed {
        let closed = self.shared.over().await;
        if matches!(closed, Closed::Here(_)) {
            self.shared.milestones.wait(Milestone::Farewell).await;
        }
        closed
    }
}

/// The stream that carried the request: it holds the session open and carries its capsules.
pub(super) struct ConnectStream {
    pub(super) send: quinn::SendStream,
    pub(super) recv: quinn::RecvStream,
    pub(super) decoder: MessageDecoder,
}

/// A session that was asked for and is not yet there. Dropped, it is given up.
pub(super) struct Opening {
    pub(super) shared: Arc<Shared>,
    connect: Option<ConnectStream>,
    /// The code with which it is given up.
    h3_code: u64,
}

impl Opening {
    pub(super) fn new(shared: Arc<Shared>, connect: ConnectStream) -> Self {
        Self {
            shared,
            connect: Some(connect),
            h3_code: code::REQUEST_CANCELLED,
        }
    }

    /// Gives it up with this code.
    pub(super) fn give_up(mut self, h3_code: u64) {
        self.h3_code = h3_code;
    }

    /// The CONNECT stream; `None` once it was taken.
    pub(super) fn connect(&mut self) -> Option<&mut ConnectStream> {
        self.connect.as_mut()
    }

    /// Takes the CONNECT stream, and with it the care for the session's end.
    pub(super) fn take(&mut self) -> Option<ConnectStream> {
        self.connect.take()
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(connect) = self.connect.take() {
            self.shared.end(Closed::Here(Close::default()));
            self.shared.release();
            self.shared.milestones.reach(Milestone::Farewell);
            refuse(Some(connect.send), Some(connect.recv), self.h3_code);
            self.shared.connection.forget(&self.shared, AGAIN);
        }
    }
}

/// How the peer's side of the CONNECT stream came to its end.
enum Last {
    /// The session was ended on this side, or with its connection.
    Here,
    Peer(Close),
    /// The peer reset the stream.
    Reset(u64),
    /// The peer broke a rule that costs it the session.
    Broken(Error),
    /// The peer broke a rule that costs it the connection.
    Violation(frame::Error),
    Lost(quinn::ConnectionError),
}

impl ConnectStream {
    async fn run(mut self, shared: Arc<Shared>) {
        match self.live(&shared).await {
            Last::Here => match (shared.closed_now(), shared.broken.get()) {
                (_, Some(h3_code)) => refuse(Some(self.send), Some(self.recv), *h3_code),
                (Some(Closed::Here(close)), None) => {
                    Box::pin(self.say_goodbye(close, &shared)).await
                }
                _ => {}
            },
            Last::Peer(close) => {
                shared.end(Closed::Peer(close));
                Box::pin(self.answer_close()).await;
            }
            Last::Reset(h3_code) => {
                shared.end(Closed::Lost(format!(
                    "session reset with code {h3_code:#x}"
                )));
                refuse(Some(self.send), None, code::REQUEST_CANCELLED);
            }
            Last::Broken(error) => {
                shared.fail(&error);
                refuse(Some(self.send), Some(self.recv), error.code());
            }
            Last::Violation(error) => {
                shared.end(Closed::Lost(error.to_string()));
                shared.connection.violation(error.code(), &error);
            }
            Last::Lost(error) => {
                shared.end(Closed::Lost(error.to_string()));
            }
        }
        if let Some(closed) = shared.closed_now() {
            tracing::debug!(reason = %closed, "session over");
        }
        shared.release();
        shared.milestones.reach(Milestone::Farewell);
        shared.connection.forget(&shared, LINGER);
    }

    /// Carries capsules both ways until the session is over.
    async fn live(&mut self, shared: &Shared) -> Last {
        let mut unsent = BytesMut::new();
        loop {
            // Frames that came together with the request or its answer are waiting already.
            match self.read_capsules(shared) {
                Ok(None) => {}
                Ok(Some(close)) => return Last::Peer(close),
                Err(last) => return last,
            }
            if unsent.is_empty() {
                put_due(&mut unsent, shared);
            }
            tokio::select! {
                biased;
                _ = shared.over() => {
                    // A capsule that is half written would swallow the close that follows.
                    let _ = timeout(CLOSE_WAIT, self.send.write_all(&unsent)).await;
                    return Last::Here;
                }
                () = shared.say.notified(), if unsent.is_empty() => {}
                written = self.send.write(&unsent), if !unsent.is_empty() => match written {
                    Ok(len) => unsent.advance(len),
                    Err(quinn::WriteError::ConnectionLost(error)) => return Last::Lost(error),
                    // The peer reads no capsules; it may still send some.
                    Err(_) => unsent.clear(),
                },
                read = self.recv.read_chunk(4096, true) => match read {
                    Ok(Some(chunk)) => self.decoder.push(&chunk.bytes),
                    Ok(None) => return self.finished(shared),
                    Err(quinn::ReadError::Reset(code)) => return Last::Reset(code.into_inner()),
                    Err(quinn::ReadError::ConnectionLost(error)) => return Last::Lost(error),
                    Err(_) => return Last::Peer(Close::default()),
                },
            }
        }
    }

    /// The peer ended its side, without a close until then: the same as code 0 without a reason.
    fn finished(&self, shared: &Shared) -> Last {
        if let Err(error) = self.decoder.finish() {
            return Last::Violation(error);
        }
        match shared.update(|state| state.finish()) {
            Ok(close) => Last::Peer(close.unwrap_or_default()),
            Err(error) => Last::Broken(error),
        }
    }

    /// Reads what the decoder holds. Gives the peer's last word if it is there.
    fn read_capsules(&mut self, shared: &Shared) -> Result<Option<Close>, Last> {
        let mut last_word = None;
        while let Some(message) = self.decoder.next().map_err(Last::Violation)? {
            // A tunnel has no other frames that mean anything.
            let Message::Data(content) = message else {
                continue;
            };
            shared.update(|state| state.receive(&content));
            loop {
                match shared.update(|state| state.poll()).map_err(Last::Broken)? {
                    None => break,
                    Some(Event::Drain) => shared.milestones.reach(Milestone::Draining),
                    Some(Event::Closed(close)) => last_word = Some(close),
                    Some(Event::Datagram(payload)) => shared.datagrams.push(payload),
                    Some(Event::Data | Event::Streams(_)) => shared.more.notify_waiters(),
                }
            }
        }
        if last_word.is_some() && !self.decoder.at_boundary() {
            return Err(Last::Broken(Error::AfterClose));
        }
        Ok(last_word)
    }

    /// Ends this side after the peer's last word, which nothing may follow.
    async fn answer_close(mut self) {
        let more = timeout(ANSWER_WAIT, self.recv.read_chunk(4096, true)).await;
        if let Ok(Ok(Some(_))) = more {
            return refuse(Some(self.send), Some(self.recv), Error::AfterClose.code());
        }
        // Fails only when the peer does not want it any more.
        let _ = self.send.finish();
        // Fails when the stream has ended, as it should.
        let _ = self.recv.stop(varint(wt_code::SESSION_GONE));
    }

    /// Sends WT_CLOSE_SESSION and gives the peer the chance to read it.
    async fn say_goodbye(&mut self, close: Close, shared: &Shared) {
        let mut last = BytesMut::new();
        shared.update(|state| state.close(close));
        put_due(&mut last, shared);
        let delivered = timeout(CLOSE_WAIT, async {
            self.send.write_all(&last).await.ok()?;
            self.send.finish().ok()?;
            self.send.stopped().await.ok()
        });
        let release = async {
            sleep(RESET_WAIT).await;
            shared.release();
            std::future::pending().await
        };
        let delivered = tokio::select! {
            delivered = delivered => delivered,
            never = release => never,
        };
        if let Ok(Some(None)) = delivered {
            let answered =
                async { while let Ok(Some(_)) = self.recv.read_chunk(4096, true).await {} };
            let _ = timeout(ANSWER_WAIT, answered).await;
        }
        let _ = self.recv.stop(varint(wt_code::SESSION_GONE));
    }
}

/// Appends the capsules that are due, in a DATA frame.
fn put_due(buf: &mut BytesMut, shared: &Shared) {
    let mut capsules = Vec::new();
    if shared.update(|state| state.transmit(&mut capsules)) {
        frame::put(buf, frame::kind::DATA, &capsules);
    }
}
