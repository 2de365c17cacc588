//! One HTTP/3 connection and the sessions on it.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use quinn::VarInt;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tracing::Instrument;
use wavry_proto::{
    h3::{
        self, code,
        frame::{self, Control, ControlDecoder},
        settings::Settings,
    },
    varint as quic_varint,
    webtransport::{code as wt_code, stream as wt_stream},
};

use super::{
    Limits,
    quic::{CONTROL_STREAMS, Side},
    server::{self, Intake},
    shared::{Incoming, Shared},
    stream::{first_chunk, read_varint, refuse, varint},
};
use crate::{
    datagram::{Meter, Receiver},
    metrics::{STREAMS_REFUSED, link, refusal},
    session::Closed,
};

/// Streams of one connection that may wait for their session's request. Packets are reordered by
/// milliseconds, in which no peer opens more.
const WAITING_STREAMS: usize = 32;
/// Datagrams of one connection that may wait for their session's request: 1 ms at 32,000 a second.
const WAITING_DATAGRAMS: usize = 32;
/// Sessions remembered after their end, so that what still arrives for them is refused at once.
const REMEMBERED: usize = 64;
/// How long a connection is kept after its last session was ended by the peer, who may want to
/// close it or to open another.
pub(super) const LINGER: Duration = Duration::from_secs(2);
/// How long a connection is kept after a request was refused, as the client may ask again, for
/// example with a token.
pub(super) const AGAIN: Duration = Duration::from_secs(10);
/// Streams of each kind that a peer may have open at first. QUIC allocates for all that it grants,
/// and most sessions never need more; whoever does is granted twice as many, up to
/// [`Limits::streams`].
pub(super) const FIRST_STREAMS: u64 = 16;

/// A connection. The tasks that serve it end with it.
pub(super) struct Connection {
    pub(super) quic: quinn::Connection,
    pub(super) limits: Limits,
    pub(super) meter: Meter,
    side: Side,
    /// The peer's settings, once they came.
    settings: watch::Sender<Option<Settings>>,
    table: Mutex<Table>,
    /// A session was added to the table.
    added: Notify,
    /// Places for streams that wait for their session.
    waiting: Semaphore,
    /// When to close the connection for want of sessions; `None` while there are some.
    close_at: watch::Sender<Option<Instant>>,
}

#[derive(Default)]
struct Table {
    sessions: HashMap<u64, Arc<Shared>>,
    gone: VecDeque<u64>,
    datagrams: VecDeque<(u64, Bytes)>,
    /// Set once the connection is lost: no session is added any more.
    lost: Option<Closed>,
    /// First stream id that no request was seen on.
    next_request: u64,
    /// Requests from this id on are not taken, as GOAWAY said.
    goaway: Option<u64>,
}

/// Why a session was not added to a connection.
pub(super) enum Refused {
    /// As many sessions as are allowed are there.
    TooMany,
    /// GOAWAY was sent, or received, before.
    Draining,
    Lost(Closed),
}

impl Connection {
    /// Serves `quic` until it is closed. `intake` takes what clients ask for, `drain` turns true
    /// when no more of it is wanted; both are for servers.
    pub(super) fn start(
        quic: quinn::Connection,
        side: Side,
        limits: Limits,
        intake: Option<Arc<Intake>>,
        drain: watch::Receiver<bool>,
    ) -> Arc<Self> {
        let close_at = Instant::now() + limits.header_timeout;
        let this = Arc::new(Self {
            meter: Meter::new(link::WEBTRANSPORT),
            quic,
            limits,
            side,
            settings: watch::Sender::new(None),
            table: Mutex::default(),
            added: Notify::new(),
            waiting: Semaphore::new(WAITING_STREAMS),
            close_at: watch::Sender::new(Some(close_at)),
        });
        let span = tracing::debug_span!(
            "connection",
            id = this.quic.stable_id(),
            remote = %this.quic.remote_address()
        );
        tokio::spawn(this.clone().serve(intake, drain).instrument(span));
        this
    }

    /// The peer's settings; waits for them. `None` when the connection is lost first.
    pub(super) async fn settings(&self) -> Option<Settings> {
        let mut settings = self.settings.subscribe();
        tokio::select! {
            settings = settings.wait_for(Option::is_some) => settings.ok()?.clone(),
            _ = self.quic.closed() => None,
        }
    }

    /// Adds the session whose CONNECT stream is `id`.
    pub(super) fn add(self: &Arc<Self>, id: u64) -> Result<Arc<Shared>, Refused> {
        let mut table = self.lock();
        if let Some(closed) = &table.lost {
            return Err(Refused::Lost(closed.clone()));
        }
        if table.goaway.is_some_and(|limit| id >= limit) {
            return Err(Refused::Draining);
        }
        if table.sessions.len() >= self.limits.sessions_per_connection {
            return Err(Refused::TooMany);
        }
        let shared = Arc::new(Shared::new(self.clone(), id));
        table.sessions.insert(id, shared.clone());
        self.close_at.send_replace(None);
        let waiting = std::mem::take(&mut table.datagrams);
        for (session, payload) in waiting {
            if session == id {
                shared.datagrams.push(payload);
            } else {
                table.datagrams.push_back((session, payload));
            }
        }
        drop(table);
        self.added.notify_waiters();
        Ok(shared)
    }

    /// Takes a session that is over off the table. If it was the last, the connection is closed
    /// unless another comes within `linger`.
    pub(super) fn forget(&self, shared: &Shared, linger: Duration) {
        let mut table = self.lock();
        if table.sessions.remove(&shared.id).is_none() {
            return;
        }
        if table.gone.len() == REMEMBERED {
            table.gone.pop_front();
        }
        table.gone.push_back(shared.id);
        if table.sessions.is_empty() {
            self.close_at.send_replace(Some(Instant::now() + linger));
        }
    }

    /// Whether the request on stream `id` is taken: GOAWAY was not sent before it came.
    pub(super) fn takes(&self, id: u64) -> bool {
        self.lock().goaway.is_none_or(|limit| id < limit)
    }

    /// Leaves a connection without sessions open for `time` more at least.
    pub(super) fn keep(&self, time: Duration) {
        let until = Instant::now() + time;
        // Under the lock, as is every change that a session's coming and going makes.
        let _table = self.lock();
        self.close_at.send_if_modified(|at| {
            let sooner = at.is_some_and(|at| at < until);
            if sooner {
                *at = Some(until);
            }
            sooner
        });
    }

    /// Closes the connection because the peer broke a rule.
    pub(super) fn violation(&self, h3_code: u64, what: &dyn Display) {
        tracing::debug!(code = h3_code, %what, "peer broke HTTP/3");
        self.quic.close(varint(h3_code), b"");
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self: Arc<Self>, intake: Option<Arc<Intake>>, drain: watch::Receiver<bool>) {
        let error = tokio::select! {
            error = self.quic.closed() => error,
            error = async {
                tokio::join!(
                    self.run_control(drain),
                    self.accept_uni(),
                    self.accept_bi(intake),
                    self.read_datagrams(),
                    self.close_when_unused(),
                );
                self.quic.closed().await
            } => error,
        };
        let sessions: Vec<_> = {
            let mut table = self.lock();
            table.lost = Some(Closed::Lost(error.to_string()));
            for _ in table.datagrams.drain(..) {
                self.meter.unknown_session();
            }
            table.sessions.drain().map(|(_, shared)| shared).collect()
        };
        for lost in futures_util::future::join_all(sessions.iter().map(|s| s.lost(&error))).await {
            tracing::debug!(reason = %lost, "session over");
        }
        tracing::debug!(%error, "connection closed");
    }

    /// Opens the streams that HTTP/3 needs, and keeps them open.
    async fn run_control(&self, mut drain: watch::Receiver<bool>) {
        let Ok(mut control) = self.quic.open_uni().await else {
            return;
        };
        let mut hello = BytesMut::new();
        quic_varint::put(&mut hello, h3::stream::CONTROL);
        let mut settings = Vec::new();
        Settings::webtransport(
            self.limits.sessions_per_connection as u64,
            self.limits.max_header_block as u64,
        )
        .encode(&mut settings);
        frame::put(&mut hello, frame::kind::SETTINGS, &settings);
        // They carry the words that decide about the rest.
        let _ = control.set_priority(1);
        if control.write_all(&hello).await.is_err() {
            return;
        }
        let mut qpack = Vec::new();
        for kind in [h3::stream::QPACK_ENCODER, h3::stream::QPACK_DECODER] {
            let Ok(mut stream) = self.quic.open_uni().await else {
                return;
            };
            if stream.write_all(&[kind as u8]).await.is_err() {
                return;
            }
            qpack.push(stream);
        }
        if self.side == Side::Server && drain.wait_for(|drain| *drain).await.is_ok() {
            let mut goaway = BytesMut::new();
            frame::put(&mut goaway, frame::kind::GOAWAY, &self.refuse_requests());
            if control.write_all(&goaway).await.is_err() {
                return;
            }
        }
        self.quic.closed().await;
    }

    /// Takes no more requests. Gives the payload of the GOAWAY that says so.
    fn refuse_requests(&self) -> Bytes {
        let mut table = self.lock();
        let limit = table.next_request;
        table.goaway = Some(limit);
        if table.sessions.is_empty() {
            let close_at = Instant::now() + LINGER;
            self.close_at.send_replace(Some(close_at));
        }
        let mut payload = BytesMut::new();
        quic_varint::put(&mut payload, limit);
        payload.freeze()
    }

    async fn close_when_unused(&self) {
        let mut close_at = self.close_at.subscribe();
        loop {
            let at = *close_at.borrow_and_update();
            let due = async {
                match at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {
                    // Under the lock, so that no session is added in between.
                    let table = self.lock();
                    if table.sessions.is_empty() && *self.close_at.borrow() == at {
                        self.quic.close(varint(code::NO_ERROR), b"");
                        return;
                    }
                }
                _ = close_at.changed() => {}
            }
        }
    }

    async fn read_datagrams(&self) {
        let mut receiver = Receiver::new(self.quic.clone(), self.meter.clone());
        while let Ok(datagram) = receiver.recv().await {
            let Some((id, payload)) = wt_stream::parse_datagram(datagram) else {
                self.meter.malformed();
                self.violation(code::DATAGRAM_ERROR, &"malformed datagram");
                continue;
            };
            let mut table = self.lock();
            if let Some(shared) = table.sessions.get(&id) {
                shared.datagrams.push(payload);
            } else if table.gone.contains(&id) {
                self.meter.unknown_session();
            } else {
                if table.datagrams.len() == WAITING_DATAGRAMS {
                    table.datagrams.pop_front();
                    self.meter.unknown_session();
                }
                table.datagrams.push_back((id, payload));
            }
        }
    }

    /// Every stream has a task of its own, so that one whose header does not come keeps no other
    /// waiting. Tasks are as many as the streams granted ([`Limits::streams`]).
    async fn accept_uni(self: &Arc<Self>) {
        let mut grant = Grant::new(self.limits.streams, CONTROL_STREAMS);
        while let Ok(recv) = self.quic.accept_uni().await {
            tokio::spawn(self.clone().uni(recv).in_current_span());
            if let Some(count) = grant.more() {
                self.quic.set_max_concurrent_uni_streams(count);
            }
        }
    }

    async fn accept_bi(self: &Arc<Self>, intake: Option<Arc<Intake>>) {
        let mut grant = Grant::new(self.limits.streams, self.request_streams());
        while let Ok((send, recv)) = self.quic.accept_bi().await {
            tokio::spawn(
                self.clone()
                    .bi(send, recv, intake.clone())
                    .in_current_span(),
            );
            if let Some(count) = grant.more() {
                self.quic.set_max_concurrent_bi_streams(count);
            }
        }
    }

    /// Streams on which the peer may make requests.
    fn request_streams(&self) -> u64 {
        self.side.requests(&self.limits)
    }

    async fn uni(self: Arc<Self>, mut recv: quinn::RecvStream) {
        let Ok(Some(mut rest)) = first_chunk(&mut recv).await else {
            return;
        };
        let deadline = Instant::now() + self.limits.header_timeout;
        let mut held = BytesMut::new();
        let kind = timeout_at(deadline, read_varint(&mut recv, &mut held, &mut rest));
        match kind.await {
            Ok(Ok(Some(h3::stream::CONTROL))) => self.peer_control(recv, rest).await,
            Ok(Ok(Some(h3::stream::QPACK_ENCODER | h3::stream::QPACK_DECODER))) => {
                self.peer_qpack(recv).await;
            }
            Ok(Ok(Some(h3::stream::PUSH))) => {
                // Only a server may push, and we grant no push ids.
                let code = match self.side {
                    Side::Server => code::STREAM_CREATION_ERROR,
                    Side::Client => code::ID_ERROR,
                };
                self.violation(code, &"push stream");
            }
            Ok(Ok(Some(wt_stream::UNI))) => self.deliver(None, recv, rest, deadline).await,
            // RFC 9114, section 6.2: unknown types are not an error.
            Ok(Ok(Some(_))) => refuse(None, Some(recv), code::STREAM_CREATION_ERROR),
            Ok(Ok(None) | Err(_)) => {}
            Err(_) => self.too_late(None, recv),
        }
    }

    async fn bi(
        self: Arc<Self>,
        send: quinn::SendStream,
        mut recv: quinn::RecvStream,
        intake: Option<Arc<Intake>>,
    ) {
        let mut rest = match first_chunk(&mut recv).await {
            Ok(Some(first)) => first,
            Ok(None) => return refuse(Some(send), None, code::REQUEST_INCOMPLETE),
            Err(_) => return refuse(Some(send), None, code::REQUEST_CANCELLED),
        };
        let deadline = Instant::now() + self.limits.header_timeout;
        let mut held = BytesMut::new();
        let kind = timeout_at(deadline, read_varint(&mut recv, &mut held, &mut rest));
        match (kind.await, intake) {
            (Ok(Ok(Some(wt_stream::BI))), _) => {
                self.deliver(Some(send), recv, rest, deadline).await;
            }
            (Ok(Ok(Some(kind))), Some(intake)) => {
                let id = VarInt::from(send.id()).into_inner();
                {
                    let mut table = self.lock();
                    table.next_request = table.next_request.max(id + 4);
                }
                server::serve_request(self, send, recv, (kind, rest), deadline, intake).await;
            }
            (Ok(Ok(Some(_))), None) => {
                self.violation(code::STREAM_CREATION_ERROR, &"request from a server");
            }
            (Ok(Ok(None)), _) => refuse(Some(send), None, code::REQUEST_INCOMPLETE),
            (Ok(Err(_)), _) => refuse(Some(send), None, code::REQUEST_CANCELLED),
            (Err(_), _) => self.too_late(Some(send), recv),
        }
    }

    fn too_late(&self, send: Option<quinn::SendStream>, recv: quinn::RecvStream) {
        count_refused(refusal::HEADER_TIMEOUT);
        refuse(send, Some(recv), code::REQUEST_INCOMPLETE);
    }

    /// Hands a WebTransport stream to its session, once the session id was read.
    async fn deliver(
        &self,
        send: Option<quinn::SendStream>,
        mut recv: quinn::RecvStream,
        mut rest: Bytes,
        deadline: Instant,
    ) {
        let mut held = BytesMut::new();
        let id = timeout_at(deadline, read_varint(&mut recv, &mut held, &mut rest));
        let id = match id.await {
            Ok(Ok(Some(id))) => id,
            Ok(Ok(None) | Err(_)) => return refuse(send, Some(recv), code::REQUEST_INCOMPLETE),
            Err(_) => return self.too_late(send, recv),
        };
        if !wt_stream::is_session_id(id) {
            return self.violation(code::ID_ERROR, &"stream of an impossible session");
        }
        let incoming = Incoming {
            send,
            recv,
            first: rest,
        };
        let Ok(shared) = self.session(id, deadline).await else {
            count_refused(refusal::UNKNOWN_SESSION);
            return incoming.refuse(wt_code::BUFFERED_STREAM_REJECTED);
        };
        let Some(shared) = shared else {
            count_refused(refusal::SESSION_GONE);
            return incoming.refuse(wt_code::SESSION_GONE);
        };
        let backlog = match incoming.send {
            Some(_) => &shared.bi,
            None => &shared.uni,
        };
        if let Err(Incoming { send, recv, .. }) = backlog.push(incoming) {
            count_refused(refusal::SESSION_GONE);
            shared.part(send, Some(recv));
        }
    }

    /// The session `id`, or `None` when it is over; waits for it within bounds.
    async fn session(&self, id: u64, deadline: Instant) -> Result<Option<Arc<Shared>>, Unknown> {
        let find = || {
            let table = self.lock();
            match table.sessions.get(&id) {
                Some(shared) => Some(Some(shared.clone())),
                None => table.gone.contains(&id).then_some(None),
            }
        };
        if let Some(found) = find() {
            return Ok(found);
        }
        let _place = self.waiting.try_acquire().map_err(|_| Unknown)?;
        loop {
            let added = self.added.notified();
            tokio::pin!(added);
            added.as_mut().enable();
            if let Some(found) = find() {
                return Ok(found);
            }
            timeout_at(deadline, added).await.map_err(|_| Unknown)?;
        }
    }

    /// Reads the peer's control stream, which lasts as long as the connection.
    async fn peer_control(&self, mut recv: quinn::RecvStream, first: Bytes) {
        let mut decoder = ControlDecoder::default();
        let mut chunk = first;
        loop {
            decoder.push(&chunk);
            loop {
                match decoder.next() {
                    Ok(None) => break,
                    Ok(Some(Control::Settings(settings))) => {
                        if self.settings.send_replace(Some(settings)).is_some() {
                            let what = "second control stream";
                            return self.violation(code::STREAM_CREATION_ERROR, &what);
                        }
                    }
                    Ok(Some(Control::GoAway(id))) => self.peer_drains(id),
                    Err(error) => return self.violation(error.code(), &error),
                }
            }
            match recv.read_chunk(4096, true).await {
                Ok(Some(next)) => chunk = next.bytes,
                Ok(None) | Err(quinn::ReadError::Reset(_)) => {
                    let what = "control stream closed";
                    return self.violation(code::CLOSED_CRITICAL_STREAM, &what);
                }
                Err(_) => return,
            }
        }
    }

    /// The server takes no requests from `id` on and wants the sessions to end (draft-ietf-
    /// webtrans-http3, section 4.7). A client's GOAWAY is about pushes, of which there are none.
    fn peer_drains(&self, id: u64) {
        if self.side == Side::Server {
            return;
        }
        let mut table = self.lock();
        table.goaway = Some(id);
        for shared in table.sessions.values() {
            shared.draining.cancel();
        }
    }

    /// Reads a QPACK stream, which lasts as long as the connection. Without a dynamic table nothing
    /// on it means anything.
    async fn peer_qpack(&self, mut recv: quinn::RecvStream) {
        loop {
            match recv.read_chunk(4096, true).await {
                Ok(Some(_)) => {}
                Ok(None) | Err(quinn::ReadError::Reset(_)) => {
                    let what = "QPACK stream closed";
                    return self.violation(code::CLOSED_CRITICAL_STREAM, &what);
                }
                Err(_) => return,
            }
        }
    }

    /// Waits for the settings of the peer until `deadline`.
    pub(super) async fn settings_by(&self, deadline: Instant) -> Option<Settings> {
        timeout_at(deadline, self.settings()).await.ok().flatten()
    }
}

/// How many streams of one kind the peer is granted: more, the more it has opened.
struct Grant {
    granted: u64,
    max: u64,
    /// Granted on top: HTTP/3's own streams.
    extra: u64,
    opened: u64,
}

impl Grant {
    fn new(max: u64, extra: u64) -> Self {
        Self {
            granted: FIRST_STREAMS.min(max),
            max,
            extra,
            opened: 0,
        }
    }

    /// Counts a stream. The new limit, when it is time to raise it.
    fn more(&mut self) -> Option<VarInt> {
        self.opened += 1;
        if self.granted >= self.max || self.opened * 2 < self.granted + self.extra {
            return None;
        }
        self.granted = (self.granted * 2).min(self.max);
        VarInt::from_u64(self.granted + self.extra).ok()
    }
}

/// No session with the id came in time, or too many streams wait already.
struct Unknown;

fn count_refused(reason: &'static str) {
    metrics::counter!(STREAMS_REFUSED, "reason" => reason).increment(1);
}

/// Waits for `future`, but not for ever: until `limit` has passed.
pub(super) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    timeout(limit, future).await.ok()
}
