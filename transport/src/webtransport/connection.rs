//! One HTTP/3 connection and the sessions on it.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Display,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::AtomicUsize},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, timeout, timeout_at},
};
use tracing::Instrument;
use wavry_proto::{
    h3::code,
    varint as quic_varint,
    webtransport::{
        agreement::{Agreement, Sessions, Unmet},
        flow::Kind,
        session, stream as wt_stream,
    },
};

use self::{control::Critical, sharing::Grant};
use super::{
    Limits, credit, milestone::Milestone, quic::Side, server::Intake, shared::Shared,
    stream::varint,
};
use crate::{
    datagram::{Inbox, Meter, Recipients},
    metrics::{CONNECTIONS, SESSIONS},
    session::Closed,
};

mod control;
mod incoming;
mod sharing;

pub(super) use sharing::SHARE;

/// Streams of one connection that may wait for their session's request. Packets are reordered by
/// milliseconds, in which no peer opens more.
const WAITING_STREAMS: usize = 32;
/// Datagrams of one connection that may wait for their session's request: 1 ms at 32,000 a second.
const WAITING_DATAGRAMS: usize = 32;
/// Sessions remembered after their end, so that what still arrives for them is refused at once.
const REMEMBERED: usize = 64;
/// How long a connection is kept after its last session has ended. The peer may want to close it or to
/// open another; and Chromium tells its page why a session ended only some time after it has read it,
/// half a second on a busy machine, and not at all if the connection is closed until then.
pub(super) const LINGER: Duration = Duration::from_secs(2);
/// How long a connection is kept after a request was refused, as the client may ask again, for
/// example with a token.
pub(super) const AGAIN: Duration = Duration::from_secs(10);
/// A connection. The tasks that serve it end with it.
pub(super) struct Connection {
    pub(super) quic: quinn::Connection,
    pub(super) limits: Limits,
    pub(super) meter: Meter,
    pub(super) datagrams: Inbox<quinn::Connection>,
    side: Side,
    /// What was agreed with the peer, once its settings came.
    agreed: OnceLock<Result<Agreement, Unmet>>,
    critical: Critical,
    table: Mutex<Table>,
    /// Streams that the peer opened and that are not over: bidirectional, unidirectional.
    open_streams: [AtomicUsize; 2],
    /// A session was added to the table.
    added: Notify,
    /// The peer's settings came, or there is another time to close the connection.
    changed: Notify,
    /// Places for streams that wait for their session.
    waiting: Semaphore,
}

struct Table {
    sessions: HashMap<u64, Arc<Shared>>,
    gone: VecDeque<u64>,
    /// Streams that were refused before their session was there, for its credit.
    refused: VecDeque<(u64, Kind)>,
    /// Requests that ask for no session and are being answered.
    answering: usize,
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
    /// When to close the connection, once it is [unused](Self::unused).
    close_at: Option<Instant>,
}

impl Table {
    /// Whether there is nothing to keep the connection for.
    fn unused(&self) -> bool {
        self.sessions.is_empty() && self.answering == 0
    }
}

/// A request that is being answered. The connection is kept meanwhile.
pub(super) struct Answering(Arc<Connection>);

impl Drop for Answering {
    fn drop(&mut self) {
        let mut table = self.0.lock();
        table.answering -= 1;
        if table.unused() {
            let linger = if table.goaway.is_some() {
                LINGER
            } else {
                AGAIN
            };
            table.close_at = Some(Instant::now() + linger);
            self.0.changed.notify_waiters();
        }
    }
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
        meter: Meter,
        intake: Option<Arc<Intake>>,
        drain: watch::Receiver<bool>,
    ) -> Arc<Self> {
        let table = Table {
            sessions: HashMap::new(),
            gone: VecDeque::new(),
            refused: VecDeque::new(),
            answering: 0,
            datagrams: VecDeque::new(),
            lost: None,
            next_request: 0,
            goaway: None,
            peer_drains: false,
            bidi: Grant::bidi(side, &limits),
            uni: Grant::uni(&limits),
            window: SHARE,
            close_at: Some(Instant::now() + limits.header_timeout),
        };
        let this = Arc::new(Self {
            datagrams: Inbox::new(quic.clone(), meter.clone()),
            meter,
            quic,
            limits,
            side,
            agreed: OnceLock::new(),
            critical: Critical::default(),
            table: Mutex::new(table),
            open_streams: Default::default(),
            added: Notify::new(),
            waiting: Semaphore::new(WAITING_STREAMS),
            changed: Notify::new(),
        });
        let span = tracing::debug_span!(
            "connection",
            id = this.quic.stable_id(),
            remote = %this.quic.remote_address()
        );
        let serve = this.clone().serve(intake, drain);
        tokio::spawn(serve.instrument(span));
        this
    }

    /// What was agreed with the peer; waits for its settings. `None` when the connection is lost
    /// first.
    pub(super) async fn agreement(&self) -> Option<Result<Agreement, Unmet>> {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(agreed) = self.agreed.get() {
                return Some(*agreed);
            }
            tokio::select! {
                () = changed => {}
                _ = self.quic.closed() => return None,
            }
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
            shared.milestones.reach(Milestone::Draining);
        }
        table.sessions.insert(id, shared.clone());
        self.gauge(SESSIONS).increment(1.0);
        table.close_at = None;
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
        self.datagrams.came();
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
        if table.unused() {
            table.close_at = Some(Instant::now() + linger);
            self.changed.notify_waiters();
        }
        drop(table);
        self.datagrams.went();
        self.share();
    }

    /// How many streams of a kind the peer has open.
    pub(super) fn open_streams(&self, kind: Kind) -> &AtomicUsize {
        &self.open_streams[usize::from(kind == Kind::Uni)]
    }

    /// Begins to answer a request on stream `id` that asks for no session. `None` when GOAWAY was
    /// sent before it came.
    pub(super) fn answer(self: &Arc<Self>, id: u64) -> Option<Answering> {
        let mut table = self.lock();
        if table.goaway.is_some_and(|limit| id >= limit) {
            return None;
        }
        table.answering += 1;
        table.close_at = None;
        self.changed.notify_waiters();
        Some(Answering(self.clone()))
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

    async fn serve(self: Arc<Self>, intake: Option<Arc<Intake>>, drain: watch::Receiver<bool>) {
        self.gauge(CONNECTIONS).increment(1.0);
        // Apart from the rest, which would be looked at with every datagram. Ends with the connection.
        let this = self.clone();
        let attend = async move { this.datagrams.attend(&*this).await };
        tokio::spawn(attend.in_current_span());
        let error = tokio::select! {
            error = self.quic.closed() => error,
            error = async {
                tokio::join!(
                    self.run_control(drain),
                    self.read_critical(),
                    self.accept_uni(),
                    self.accept_bi(intake),
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
        if table.unused() {
            table.close_at = Some(Instant::now() + LINGER);
            self.changed.notify_waiters();
        }
        let mut payload = BytesMut::new();
        quic_varint::put(&mut payload, limit);
        payload.freeze()
    }

    async fn close_when_unused(&self) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let at = {
                let table = self.lock();
                // Under the lock, so that no session is added in between.
                if table.close_at.is_some_and(|at| at <= Instant::now()) {
                    self.quic.close(varint(code::NO_ERROR), b"");
                    return;
                }
                table.close_at
            };
            match at {
                // Whether or not it is a new one: it is looked at again.
                Some(at) => drop(timeout_at(at, changed).await),
                None => changed.await,
            }
        }
    }
}

impl Recipients for Connection {
    type Id = u64;

    fn sort(&self, datagram: Bytes, own: Option<u64>) -> Option<Bytes> {
        let Some((id, payload)) = wt_stream::parse_datagram(datagram) else {
            self.meter.malformed();
            self.violation(code::DATAGRAM_ERROR, &"malformed datagram");
            return None;
        };
        if own == Some(id) {
            return Some(payload);
        }
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
        None
    }
}

/// Waits for `future`, but not for ever: until `limit` has passed.
pub(super) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    timeout(limit, future).await.ok()
}
