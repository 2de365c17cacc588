//! One HTTP/3 connection and the sessions on it.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize},
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
    h3::{self, code},
    varint as quic_varint,
    webtransport::{
        agreement::{Agreement, Sessions, Unmet},
        code as wt_code,
        flow::Kind,
        session, stream as wt_stream,
    },
};

use self::{
    control::{Critical, Expected},
    sharing::Grant,
};
use super::{
    Limits,
    credit::{self, Place},
    quic::Side,
    server::{self, Intake},
    shared::{Incoming, Shared},
    stream::{first_chunk, read_varint, refuse, varint},
};
use crate::{
    datagram::{Meter, Receiver},
    metrics::{CONNECTIONS, SESSIONS, STREAMS_REFUSED, link, refusal},
    session::Closed,
};

mod control;
mod sharing;

pub(super) use sharing::SHARE;

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
/// A connection. The tasks that serve it end with it.
pub(super) struct Connection {
    pub(super) quic: quinn::Connection,
    pub(super) limits: Limits,
    pub(super) meter: Meter,
    side: Side,
    /// What was agreed with the peer, once its settings came.
    agreement: watch::Sender<Option<Result<Agreement, Unmet>>>,
    critical: Critical,
    table: Mutex<Table>,
    /// Streams that the peer opened and that are not over: bidirectional, unidirectional.
    open_streams: [AtomicUsize; 2],
    /// A session was added to the table.
    added: Notify,
    /// Places for streams that wait for their session.
    waiting: Semaphore,
    /// When to close the connection for want of sessions; `None` while there are some.
    close_at: watch::Sender<Option<Instant>>,
}

struct Table {
    sessions: HashMap<u64, Arc<Shared>>,
    gone: VecDeque<u64>,
    /// Streams that were refused before their session was there, for its credit.
    refused: VecDeque<(u64, Kind)>,
    datagrams: VecDeque<(u64, Bytes)>,
    /// Set once the connection is lost: no session is added any more.
    lost: Option<Closed>,
    /// First stream id that no request was seen on.
    next_request: u64,
    /// Requests from this id on are not taken, as GOAWAY said.
    goaway: Option<u64>,
    /// The peer sent GOAWAY.
    peer_drains: bool,
    bidi: Grant,
    uni: Grant,
    /// The receive window, in bytes.
    window: u64,
}

/// Why a session was not added to a connection.
pub(super) enum Refused {
    /// As many sessions as this side allows are there.
    TooMany,
    /// As many sessions as the draft allows are there.
    OnlyOne,
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
        let (critical, expected) = Critical::new();
        let table = Table {
            sessions: HashMap::new(),
            gone: VecDeque::new(),
            refused: VecDeque::new(),
            datagrams: VecDeque::new(),
            lost: None,
            next_request: 0,
            goaway: None,
            peer_drains: false,
            bidi: Grant::new(limits.streams, side.requests(&limits)),
            uni: Grant::uni(limits.streams),
            window: SHARE,
        };
        let this = Arc::new(Self {
            meter: Meter::new(link::WEBTRANSPORT),
            quic,
            limits,
            side,
            agreement: watch::Sender::new(None),
            critical,
            table: Mutex::new(table),
            open_streams: Default::default(),
            added: Notify::new(),
            waiting: Semaphore::new(WAITING_STREAMS),
            close_at: watch::Sender::new(Some(close_at)),
        });
        let span = tracing::debug_span!(
            "connection",
            id = this.quic.stable_id(),
            remote = %this.quic.remote_address()
        );
        let serve = this.clone().serve(expected, intake, drain);
        tokio::spawn(serve.instrument(span));
        this
    }

    /// What was agreed with the peer; waits for its settings. `None` when the connection is lost
    /// first.
    pub(super) async fn agreement(&self) -> Option<Result<Agreement, Unmet>> {
        let mut agreement = self.agreement.subscribe();
        tokio::select! {
            agreement = agreement.wait_for(Option::is_some) => *agreement.ok()?,
            _ = self.quic.closed() => None,
        }
    }

    /// The same, within a deadline.
    pub(super) async fn agreement_by(&self, deadline: Instant) -> Option<Result<Agreement, Unmet>> {
        timeout_at(deadline, self.agreement()).await.ok().flatten()
    }

    /// Adds the session whose CONNECT stream is `id`.
    pub(super) fn add(
        self: &Arc<Self>,
        id: u64,
        agreement: &Agreement,
    ) -> Result<Arc<Shared>, Refused> {
        let mut table = self.lock();
        self.room(&table, agreement)?;
        if table.goaway.is_some_and(|limit| id >= limit) {
            return Err(Refused::Draining);
        }
        let flow = agreement.flow(credit::initial(&self.limits), credit::windows(&self.limits));
        let state = session::Session::new(agreement.capsules(), flow);
        let shared = Arc::new(Shared::new(self.clone(), id, state));
        if table.peer_drains {
            shared.draining.cancel();
        }
        table.sessions.insert(id, shared.clone());
        self.gauge(SESSIONS).increment(1.0);
        self.close_at.send_replace(None);
        let waiting = std::mem::take(&mut table.datagrams);
        for (session, payload) in waiting {
            if session == id {
                shared.datagrams.push(payload);
            } else {
                table.datagrams.push_back((session, payload));
            }
        }
        table.refused.retain(|(session, kind)| {
            if *session == id {
                shared.missed(*kind);
            }
            *session != id
        });
        drop(table);
        // The peer may be waiting for what was granted to the others.
        self.grant(Kind::Bidi);
        self.grant(Kind::Uni);
        self.added.notify_waiters();
        Ok(shared)
    }

    /// Whether this client may ask for another session.
    pub(super) fn has_room(&self, agreement: &Agreement) -> Result<(), Refused> {
        let table = self.lock();
        if table.goaway.is_some() {
            return Err(Refused::Draining);
        }
        self.room(&table, agreement)
    }

    fn room(&self, table: &Table, agreement: &Agreement) -> Result<(), Refused> {
        if let Some(closed) = &table.lost {
            return Err(Refused::Lost(closed.clone()));
        }
        let sessions = table.sessions.len();
        let limit = self.limits.sessions_per_connection;
        match (self.side, agreement.sessions(limit)) {
            (Side::Client, _) if sessions >= agreement.client_sessions(limit) => {
                Err(Refused::TooMany)
            }
            (Side::Server, Sessions::UpTo(limit)) if sessions >= limit => Err(Refused::TooMany),
            (Side::Server, Sessions::One) if sessions > 0 => Err(Refused::OnlyOne),
            _ => Ok(()),
        }
    }

    /// Takes a session that is over off the table. If it was the last, the connection is closed
    /// unless another comes within `linger`.
    pub(super) fn forget(&self, shared: &Shared, linger: Duration) {
        let mut table = self.lock();
        if table.sessions.remove(&shared.id).is_none() {
            return;
        }
        self.gauge(SESSIONS).decrement(1.0);
        if table.gone.len() == REMEMBERED {
            table.gone.pop_front();
        }
        table.gone.push_back(shared.id);
        if table.sessions.is_empty() {
            self.close_at.send_replace(Some(Instant::now() + linger));
        }
        drop(table);
        self.share();
    }

    /// How many streams of a kind the peer has open.
    pub(super) fn open_streams(&self, kind: Kind) -> &AtomicUsize {
        &self.open_streams[usize::from(kind == Kind::Uni)]
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

    fn gauge(&self, name: &'static str) -> metrics::Gauge {
        let side = match self.side {
            Side::Client => "client",
            Side::Server => "server",
        };
        metrics::gauge!(name, "side" => side)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(
        self: Arc<Self>,
        expected: Expected,
        intake: Option<Arc<Intake>>,
        drain: watch::Receiver<bool>,
    ) {
        self.gauge(CONNECTIONS).increment(1.0);
        let error = tokio::select! {
            error = self.quic.closed() => error,
            error = async {
                tokio::join!(
                    self.run_control(drain),
                    self.read_critical(expected),
                    self.accept_uni(),
                    self.accept_bi(intake),
                    self.read_datagrams(),
                    self.close_when_unused(),
                    self.keep_fair(),
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
            self.gauge(SESSIONS).decrement(table.sessions.len() as f64);
            table.sessions.drain().map(|(_, shared)| shared).collect()
        };
        self.gauge(CONNECTIONS).decrement(1.0);
        for lost in futures_util::future::join_all(sessions.iter().map(|s| s.lost(&error))).await {
            tracing::debug!(reason = %lost, "session over");
        }
        tracing::debug!(%error, "connection closed");
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
            } else if self.side == Side::Server && !table.bidi.reaches(id / 4) {
                drop(table);
                self.meter.malformed();
                // RFC 9297, section 2.1.
                self.violation(code::ID_ERROR, &"datagram of a stream that was not granted");
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
        while let Ok(recv) = self.quic.accept_uni().await {
            let place = Place::new(self.clone(), Kind::Uni);
            tokio::spawn(self.clone().uni(recv, place).in_current_span());
            self.grant(Kind::Uni);
        }
    }

    async fn accept_bi(self: &Arc<Self>, intake: Option<Arc<Intake>>) {
        while let Ok((send, recv)) = self.quic.accept_bi().await {
            let place = Place::new(self.clone(), Kind::Bidi);
            self.lock().bidi.saw();
            tokio::spawn(
                self.clone()
                    .bi(send, recv, place, intake.clone())
                    .in_current_span(),
            );
            self.grant(Kind::Bidi);
        }
    }

    async fn uni(self: Arc<Self>, mut recv: quinn::RecvStream, place: Place) {
        let Ok(Some(mut rest)) = first_chunk(&mut recv).await else {
            return self.missed(Kind::Uni);
        };
        let deadline = Instant::now() + self.limits.header_timeout;
        let mut held = BytesMut::new();
        let kind = timeout_at(deadline, read_varint(&mut recv, &mut held, &mut rest));
        match kind.await {
            Ok(Ok(Some(
                kind
                @ (h3::stream::CONTROL | h3::stream::QPACK_ENCODER | h3::stream::QPACK_DECODER),
            ))) => self.peer_opened(kind, recv, rest),
            Ok(Ok(Some(h3::stream::PUSH))) => {
                // Only a server may push, and we grant no push ids.
                let code = match self.side {
                    Side::Server => code::STREAM_CREATION_ERROR,
                    Side::Client => code::ID_ERROR,
                };
                self.violation(code, &"push stream");
            }
            Ok(Ok(Some(wt_stream::UNI))) => self.deliver(None, recv, rest, deadline, place).await,
            // RFC 9114, section 6.2: unknown types are not an error.
            Ok(Ok(Some(_))) => refuse(None, Some(recv), code::STREAM_CREATION_ERROR),
            Ok(Ok(None) | Err(_)) => self.missed(Kind::Uni),
            Err(_) => self.too_late(None, recv),
        }
    }

    async fn bi(
        self: Arc<Self>,
        send: quinn::SendStream,
        mut recv: quinn::RecvStream,
        place: Place,
        intake: Option<Arc<Intake>>,
    ) {
        let mut rest = match first_chunk(&mut recv).await {
            Ok(Some(first)) => first,
            Ok(None) => {
                self.missed(Kind::Bidi);
                return refuse(Some(send), None, code::REQUEST_INCOMPLETE);
            }
            Err(_) => {
                self.missed(Kind::Bidi);
                return refuse(Some(send), None, code::REQUEST_CANCELLED);
            }
        };
        let deadline = Instant::now() + self.limits.header_timeout;
        let mut held = BytesMut::new();
        let kind = timeout_at(deadline, read_varint(&mut recv, &mut held, &mut rest));
        match (kind.await, intake) {
            (Ok(Ok(Some(wt_stream::BI))), _) => {
                self.deliver(Some(send), recv, rest, deadline, place).await;
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
            // RFC 9114, section 7.1: what began with a byte began a frame.
            (Ok(Ok(None)), _) => self.violation(code::FRAME_ERROR, &"a frame type that is cut off"),
            (Ok(Err(_)), _) => {
                self.missed(Kind::Bidi);
                refuse(Some(send), None, code::REQUEST_CANCELLED);
            }
            (Err(_), _) => self.too_late(Some(send), recv),
        }
    }

    /// A stream ended before it told its session: without RESET_STREAM_AT a reset overtakes the
    /// header. It may have been of any session, and each is given back what it might have cost.
    fn missed(&self, kind: Kind) {
        let sessions: Vec<_> = self.lock().sessions.values().cloned().collect();
        for session in sessions {
            session.missed(kind);
        }
    }

    fn too_late(&self, send: Option<quinn::SendStream>, recv: quinn::RecvStream) {
        count_refused(refusal::HEADER_TIMEOUT);
        self.missed(kind_of(&send));
        refuse(send, Some(recv), code::REQUEST_INCOMPLETE);
    }

    /// Hands a WebTransport stream to its session, once the session id was read.
    async fn deliver(
        &self,
        send: Option<quinn::SendStream>,
        mut recv: quinn::RecvStream,
        mut rest: Bytes,
        deadline: Instant,
        place: Place,
    ) {
        let kind = kind_of(&send);
        let mut held = BytesMut::new();
        let id = timeout_at(deadline, read_varint(&mut recv, &mut held, &mut rest));
        let id = match id.await {
            Ok(Ok(Some(id))) => id,
            Ok(Ok(None) | Err(_)) => {
                self.missed(kind);
                return refuse(send, Some(recv), code::REQUEST_INCOMPLETE);
            }
            Err(_) => return self.too_late(send, recv),
        };
        if !wt_stream::is_session_id(id) {
            return self.violation(code::ID_ERROR, &"stream of an impossible session");
        }
        let mut incoming = Incoming {
            send,
            recv,
            first: rest,
            place,
        };
        let Ok(shared) = self.session(id, deadline).await else {
            count_refused(refusal::UNKNOWN_SESSION);
            self.remember_refused(id, kind);
            return incoming.refuse(wt_code::BUFFERED_STREAM_REJECTED);
        };
        let Some(shared) = shared else {
            count_refused(refusal::SESSION_GONE);
            return incoming.refuse(wt_code::SESSION_GONE);
        };
        if let Err(error) = incoming.place.belongs_to(&shared) {
            count_refused(refusal::FLOW_CONTROL);
            shared.fail(&error);
            return shared.part(incoming.send, Some(incoming.recv));
        }
        shared.reading.begin();
        let backlog = match kind {
            Kind::Bidi => &shared.bi,
            Kind::Uni => &shared.uni,
        };
        if let Err(Incoming { send, recv, .. }) = backlog.push(incoming) {
            count_refused(refusal::SESSION_GONE);
            shared.part(send, Some(recv));
        }
    }

    /// Notes for a session that may yet come that a stream of it was refused.
    fn remember_refused(&self, id: u64, kind: Kind) {
        let mut table = self.lock();
        if table.refused.len() == REMEMBERED {
            table.refused.pop_front();
        }
        table.refused.push_back((id, kind));
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
}

fn kind_of(send: &Option<quinn::SendStream>) -> Kind {
    match send {
        Some(_) => Kind::Bidi,
        None => Kind::Uni,
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
