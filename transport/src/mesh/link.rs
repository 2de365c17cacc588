//! One connection to a peer, and the sessions on it.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use quinn::VarInt;
use tokio_util::task::TaskTracker;
use wavry_proto::{
    id::{NodeId, PublicKey},
    mesh::{
        Open,
        header::{SessionId, Side, StreamHeader, get_datagram, reset_code, split_reset_code},
    },
    session::Response,
    view,
};

use crate::{
    datagram,
    mesh::{
        Limits, Requested,
        control::{Control, NoAnswer},
        core::{Core, lock},
    },
    metrics,
    session::Closed,
};

/// From one part of a stream's header to the next, and from a control stream's header to the end of
/// OPEN. A peer sends both at once; only loss or malice spreads them.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// A peer of which nothing is heard for so long while a session is being opened is taken for gone, so that
/// the session reaches another within a second. Sessions that are live wait for the connection to be lost:
/// to them a pause does no harm.
const SILENCE: Duration = Duration::from_millis(500);

/// A connection that takes no new sessions is kept for so long after its last one: some round trips, and
/// what is sent again if they are lossy.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Bidirectional streams a peer may have open beyond those of its sessions: control streams of
/// sessions that are being opened or have just ended, and streams whose end is not acknowledged.
const SPARE_BIDI: u64 = 128;
/// Unidirectional streams likewise.
const SPARE_UNI: u64 = 32;

/// Why a connection is closed, as QUIC application error codes.
pub(super) mod code {
    /// The node stops.
    pub(in crate::mesh) const SHUTDOWN: u32 = 0;
    /// The peer's key is not in the roster (any more), or is another node's than the one dialled.
    pub(in crate::mesh) const UNKNOWN_PEER: u32 = 1;
    /// The peer broke the mesh protocol.
    pub(in crate::mesh) const PROTOCOL: u32 = 2;
}

/// Connections made by this process.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

pub(super) struct Link {
    /// Its number in this process, from 1.
    pub(super) number: u64,
    pub(super) connection: quinn::Connection,
    pub(super) peer: NodeId,
    /// The key that the peer proved to hold, and the registration that the roster showed with it.
    pub(super) proved: (PublicKey, u64),
    pub(super) side: Side,
    pub(super) limits: Limits,
    pub(super) meter: datagram::Meter,
    pub(super) datagrams: datagram::Inbox<quinn::Connection>,
    pub(super) runtime: tokio::runtime::Handle,
    /// Closes that the peer does not have yet.
    pub(super) flushes: TaskTracker,
    requests: tokio::sync::mpsc::Sender<Requested>,
    sessions: Mutex<Sessions>,
    gauge: ::metrics::Gauge,
}

#[derive(Default)]
struct Sessions {
    /// No new ones: an identity that made the connection was rotated out, or the peer fell silent.
    retired: bool,
    live: HashMap<u32, Live>,
    opened: u32,
    bidi: u64,
    uni: u64,
}

struct Live {
    core: Arc<Core>,
    bidi: u64,
    uni: u64,
}

impl Link {
    #[allow(
        clippy::too_many_arguments,
        reason = "one caller, and each is one thing"
    )]
    pub(super) fn new(
        connection: quinn::Connection,
        peer: NodeId,
        proved: (PublicKey, u64),
        side: Side,
        limits: Limits,
        flushes: TaskTracker,
        requests: tokio::sync::mpsc::Sender<Requested>,
    ) -> Arc<Self> {
        connection.set_max_concurrent_bi_streams(varint(SPARE_BIDI));
        connection.set_max_concurrent_uni_streams(varint(SPARE_UNI));
        let meter = datagram::Meter::new(metrics::link::MESH);
        Arc::new(Self {
            number: CONNECTIONS.fetch_add(1, Ordering::Relaxed) + 1,
            datagrams: datagram::Inbox::new(connection.clone(), meter.clone()),
            connection,
            peer,
            proved,
            side,
            limits,
            meter,
            runtime: tokio::runtime::Handle::current(),
            flushes,
            requests,
            sessions: Mutex::default(),
            gauge: ::metrics::gauge!(metrics::MESH_SESSIONS),
        })
    }

    pub(super) fn is_alive(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Returns when nothing at all was heard from the peer for [`SILENCE`], or four round trips where that is
    /// longer. One that lives acknowledges what it is sent, and is sent something every 300 ms.
    pub(super) async fn falls_silent(&self) {
        let heard = || self.connection.stats().udp_rx.datagrams;
        loop {
            let before = heard();
            tokio::time::sleep(SILENCE.max(4 * self.connection.rtt())).await;
            if heard() == before {
                return;
            }
        }
    }

    /// What is to be told of it.
    pub(super) fn view(&self) -> view::Connection {
        let (sessions, retired) = {
            let sessions = lock(&self.sessions);
            (sessions.live.len(), sessions.retired)
        };
        let path = self.connection.stats().path;
        view::Connection {
            number: self.number,
            dialled: matches!(self.side, Side::Client),
            sessions,
            retired,
            round_trip_ms: view::millis(path.rtt),
            packets_sent: path.sent_packets,
            packets_lost: path.lost_packets,
            congestion_window: path.cwnd,
        }
    }

    /// Whether it takes no new sessions.
    fn is_retired(&self) -> bool {
        lock(&self.sessions).retired
    }

    /// Whether a session can be opened on it.
    pub(super) fn takes_sessions(&self) -> bool {
        self.is_alive() && !self.is_retired()
    }

    /// Takes no new sessions from now on, and closes once it has none.
    pub(super) fn retire(self: &Arc<Self>, reason: &'static str) {
        let is_idle = {
            let mut sessions = lock(&self.sessions);
            if std::mem::replace(&mut sessions.retired, true) {
                return;
            }
            sessions.live.is_empty()
        };
        tracing::info!(peer = %self.peer, reason, "mesh connection takes no new sessions");
        ::metrics::counter!(metrics::MESH_RETIRED).increment(1);
        if is_idle {
            self.clone().close_when_told();
        }
    }

    /// Closes it, unless it has sessions, once the peer had time to learn how the last one ended.
    fn close_when_told(self: Arc<Self>) {
        self.runtime.clone().spawn(async move {
            tokio::time::sleep(LAST_WORDS).await;
            if lock(&self.sessions).live.is_empty() {
                self.close(
                    code::SHUTDOWN,
                    "it takes no new sessions, and has none left",
                );
            }
        });
    }

    /// Serves the connection until it is lost, then ends its sessions.
    pub(super) async fn serve(self: Arc<Self>) {
        let link = self.clone();
        let attend = async move { link.datagrams.attend(&*link).await };
        let datagrams = self.runtime.spawn(attend);
        let bidi = async {
            while let Ok((send, recv)) = self.connection.accept_bi().await {
                self.incoming(Some(send), recv);
            }
        };
        let uni = async {
            while let Ok(recv) = self.connection.accept_uni().await {
                self.incoming(None, recv);
            }
        };
        tokio::join!(bidi, uni);
        let error = self.connection.closed().await;
        let closed = Closed::Lost(error.to_string());
        let left: Vec<_> = {
            let sessions = lock(&self.sessions);
            sessions
                .live
                .values()
                .map(|live| live.core.clone())
                .collect()
        };
        for core in left {
            core.end(closed.clone());
        }
        let _ = datagrams.await; // ends with the connection
    }

    pub(super) fn close(&self, code: u32, reason: &str) {
        self.connection
            .close(VarInt::from_u32(code), reason.as_bytes());
    }

    // Sessions.

    /// Opens a session.
    pub(super) async fn open(
        self: &Arc<Self>,
        open: Open,
    ) -> Result<(Control, Response), NoAnswer> {
        let lost =
            |error: quinn::ConnectionError| NoAnswer::Closed(Closed::Lost(error.to_string()));
        let (send, recv) = self.connection.open_bi().await.map_err(lost)?;
        let Some(core) = self.register_own() else {
            self.close(code::SHUTDOWN, "session ids are used up");
            return Err(NoAnswer::Closed(Closed::Lost(
                "session ids are used up".into(),
            )));
        };
        let mut control = Control::new(core, send, recv, &[]);
        let response = control.ask(open).await?;
        Ok((control, response))
    }

    fn register_own(self: &Arc<Self>) -> Option<Arc<Core>> {
        let count = {
            let mut sessions = lock(&self.sessions);
            sessions.opened += 1;
            sessions.opened - 1
        };
        self.register(SessionId::new(count, self.side)?)
    }

    /// `None` when the id is in use.
    fn register(self: &Arc<Self>, id: SessionId) -> Option<Arc<Core>> {
        let core = Arc::new(Core::new(id, self.clone()));
        let (bidi, uni) = core.stream_windows();
        // A control stream that the peer opened takes a place for as long as its session lives.
        let bidi = bidi + u64::from(id.opener() != self.side);
        let mut sessions = lock(&self.sessions);
        if sessions.live.contains_key(&id.get()) {
            return None;
        }
        let live = Live {
            core: core.clone(),
            bidi,
            uni,
        };
        sessions.live.insert(id.get(), live);
        sessions.bidi += bidi;
        sessions.uni += uni;
        self.allow_streams(&sessions);
        self.gauge.increment(1.0);
        drop(sessions);
        self.datagrams.came();
        // Lost in between: nobody else would end it.
        if let Some(error) = self.connection.close_reason() {
            core.end(Closed::Lost(error.to_string()));
        }
        Some(core)
    }

    /// A session grants its peer more streams than before.
    pub(super) fn widen(&self, core: &Core) {
        let (bidi, uni) = core.stream_windows();
        let bidi = bidi + u64::from(core.id.opener() != self.side);
        let mut sessions = lock(&self.sessions);
        let Some(live) = sessions.live.get_mut(&core.id.get()) else {
            return;
        };
        let more_bidi = bidi.saturating_sub(live.bidi);
        let more_uni = uni.saturating_sub(live.uni);
        live.bidi += more_bidi;
        live.uni += more_uni;
        sessions.bidi += more_bidi;
        sessions.uni += more_uni;
        self.allow_streams(&sessions);
    }

    /// A session is over.
    pub(super) fn forget(&self, core: &Core) {
        let was_last;
        let removed = {
            let mut sessions = lock(&self.sessions);
            let removed = sessions.live.remove(&core.id.get());
            if let Some(live) = &removed {
                sessions.bidi -= live.bidi;
                sessions.uni -= live.uni;
                self.allow_streams(&sessions);
                self.gauge.decrement(1.0);
            }
            was_last = sessions.retired && sessions.live.is_empty();
            removed
        };
        if removed.is_some() {
            self.datagrams.went();
            if was_last {
                core.link.clone().close_when_told();
            }
        }
        drop(removed); // outside the lock: it may be the last
    }

    /// QUIC's own limit on streams never binds before the sessions' limits do.
    fn allow_streams(&self, sessions: &Sessions) {
        self.connection
            .set_max_concurrent_bi_streams(varint(SPARE_BIDI + sessions.bidi));
        self.connection
            .set_max_concurrent_uni_streams(varint(SPARE_UNI + sessions.uni));
    }

    fn session(&self, id: SessionId) -> Option<Arc<Core>> {
        lock(&self.sessions)
            .live
            .get(&id.get())
            .map(|live| live.core.clone())
    }

    fn session_count(&self) -> usize {
        lock(&self.sessions).live.len()
    }

    // What comes in.

    fn incoming(self: &Arc<Self>, send: Option<quinn::SendStream>, recv: quinn::RecvStream) {
        let mut arrived = Arrived::new(send, recv);
        // A header nearly always comes whole with the stream's first packet.
        if let Some(header) = arrived.header().now_or_never() {
            self.dispatch(arrived, header);
            return;
        }
        let link = self.clone();
        self.spawn(async move {
            let header = arrived.header().await;
            link.dispatch(arrived, header);
        });
    }

    fn dispatch(self: &Arc<Self>, arrived: Arrived, header: Header) {
        match header {
            Header::Read(StreamHeader::Control(id)) => {
                let Arrived {
                    send: Some(send),
                    recv,
                    read,
                } = arrived
                else {
                    self.close(code::PROTOCOL, "unidirectional control stream");
                    return;
                };
                if id.opener() == self.side {
                    self.close(code::PROTOCOL, "session id of the wrong side");
                    return;
                }
                if self.is_retired() || self.session_count() >= self.limits.sessions_per_connection
                {
                    // Without a core there is nothing to answer with: the opener sees a reset.
                    self.reset(send, id);
                    return;
                }
                let Some(core) = self.register(id) else {
                    self.close(code::PROTOCOL, "session id in use");
                    return;
                };
                let control = Control::new(core, send, recv, &read);
                let link = self.clone();
                self.spawn(link.asked(control));
            }
            Header::Read(StreamHeader::Data(id)) => match self.session(id) {
                Some(core) => core.incoming(arrived.send, arrived.recv, arrived.read, None),
                None => {
                    // Of a session that has just ended.
                    if let Some(send) = arrived.send {
                        self.reset(send, id);
                    }
                }
            },
            Header::Reset(code) => {
                let Some((id, code)) = split_reset_code(code) else {
                    return;
                };
                if let Some(core) = self.session(id) {
                    core.incoming(arrived.send, arrived.recv, Bytes::new(), Some(code));
                } else if let Some(send) = arrived.send {
                    self.reset(send, id);
                }
            }
            Header::Unusable => self.close(code::PROTOCOL, "no usable stream header"),
            Header::Lost => {}
        }
    }

    fn reset(&self, mut send: quinn::SendStream, id: SessionId) {
        let code =
            VarInt::from_u64(reset_code(id, 0)).expect("30 and 32 bits fit the 62 of a varint");
        let _ = send.reset(code); // fails only when it is over already
    }

    async fn asked(self: Arc<Self>, mut control: Control) {
        match tokio::time::timeout(HEADER_TIMEOUT, control.asked()).await {
            Ok(Ok(Ok(open))) => {
                let requested = Requested::new(control, open, self.peer.clone());
                if let Err(full) = self.requests.try_send(requested) {
                    // Dropped unanswered, it is 503.
                    drop(full);
                }
            }
            Ok(Ok(Err(answer))) => control.refuse(answer).await,
            Ok(Err(_)) | Err(_) => drop(control),
        }
    }

    /// Runs `task` until the connection is lost.
    fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let connection = self.connection.clone();
        self.runtime.spawn(async move {
            tokio::select! {
                () = task => {}
                _ = connection.closed() => {}
            }
        });
    }
}

impl datagram::Recipients for Link {
    type Id = SessionId;

    fn sort(&self, mut datagram: Bytes, own: Option<SessionId>) -> Option<Bytes> {
        match get_datagram(&mut datagram) {
            Some(id) if own == Some(id) => return Some(datagram),
            Some(id) => match self.session(id) {
                Some(core) => core.datagrams.push(datagram),
                None => self.meter.unknown_session(),
            },
            None => self.meter.malformed(),
        }
        None
    }
}

/// A list of connections that does not keep any of them.
pub(super) type Links = Mutex<Vec<Weak<Link>>>;

fn varint(value: u64) -> VarInt {
    VarInt::from_u64(value).unwrap_or(VarInt::MAX)
}

/// A stream whose header is not read yet.
struct Arrived {
    send: Option<quinn::SendStream>,
    recv: quinn::RecvStream,
    /// Bytes read so far; after the header was taken off, the stream's first payload.
    read: Bytes,
}

enum Header {
    Read(StreamHeader),
    Reset(u64),
    Unusable,
    Lost,
}

impl Arrived {
    fn new(send: Option<quinn::SendStream>, recv: quinn::RecvStream) -> Self {
        Self {
            send,
            recv,
            read: Bytes::new(),
        }
    }

    /// Cancel-safe.
    async fn header(&mut self) -> Header {
        loop {
            match StreamHeader::get(&mut self.read) {
                Ok(Some(header)) => return Header::Read(header),
                Ok(None) => {}
                Err(_) => return Header::Unusable,
            }
            let more = self.recv.read_chunk(usize::MAX, true);
            let more = if self.read.is_empty() {
                // There is no deadline for the first byte: a stream is there as soon as a later one
                // of its kind is (RFC 9000, section 2.1), while its own bytes may wait to be sent.
                more.await
            } else {
                match tokio::time::timeout(HEADER_TIMEOUT, more).await {
                    Ok(more) => more,
                    Err(_) => return Header::Unusable,
                }
            };
            match more {
                Ok(Some(chunk)) if !self.read.has_remaining() => self.read = chunk.bytes,
                Ok(Some(chunk)) => {
                    self.read = [&self.read[..], &chunk.bytes[..]].concat().into();
                }
                Ok(None) => return Header::Unusable,
                Err(quinn::ReadError::Reset(code)) => return Header::Reset(code.into_inner()),
                Err(_) => return Header::Lost,
            }
        }
    }
}
