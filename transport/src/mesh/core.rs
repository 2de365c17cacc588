//! What the handles of one session share.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::BytesMut;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::task_tracker::TaskTrackerToken};
use wavry_proto::mesh::{
    credit::{ReceiveCredit, SendCredit},
    frame::Frame,
    header::SessionId,
    streams::{Grants, Kind, Streams, Violation, kind},
};

use crate::{
    datagram,
    mesh::{
        link::Link,
        stream::{self, RecvStream, SendStream},
    },
    session::{Close, Closed, close_code},
};

pub(super) struct Core {
    pub(super) id: SessionId,
    pub(super) link: Arc<Link>,
    pub(super) data: Sending,
    pub(super) bidi: Sending,
    pub(super) uni: Sending,
    receive: ReceiveCredit,
    streams: Mutex<Table>,
    outbox: Mutex<Outbox>,
    outbox_changed: Notify,
    pub(super) incoming_bidi: Incoming<(SendStream, RecvStream)>,
    pub(super) incoming_uni: Incoming<RecvStream>,
    pub(super) datagrams: datagram::Queue,
    over: OnceLock<Closed>,
    /// Cancelled after `over` was set.
    pub(super) over_token: CancellationToken,
    /// Cancelled when the peer asked to finish.
    pub(super) drained: CancellationToken,
    /// Held from a close here until the peer has it.
    flushing: Mutex<Option<TaskTrackerToken>>,
    /// Streams to be reset once the peer has the CLOSE. `None` from then on. As many at most as the
    /// session had open, which its credit bounds.
    parting: Mutex<Option<Vec<Halves>>>,
}

type Halves = (Option<quinn::SendStream>, Option<quinn::RecvStream>);

struct Table {
    streams: Streams,
    /// Sending halves that a STOP_STREAM may be for. As many as the peer granted, twice.
    stops: HashMap<u64, Arc<Stop>>,
}

/// Frames that wait to be sent. Grants coalesce; there is at most one report of each kind for each
/// stream, and streams are bounded by their credit.
#[derive(Default)]
struct Outbox {
    grants: Grants,
    abandoned: Vec<(u64, u64)>,
    stops: Vec<(u64, u32)>,
    drain: Option<bool>,
}

/// Credit to send, and those who wait for it.
#[derive(Default)]
pub(super) struct Sending {
    credit: SendCredit,
    raised: Notify,
}

impl Sending {
    pub(super) fn try_take(&self, want: u64) -> u64 {
        self.credit.take(want)
    }

    /// Takes up to `want`, at least 1; waits for it. Cancel-safe.
    pub(super) async fn take(&self, want: u64) -> u64 {
        loop {
            let raised = self.raised.notified();
            let taken = self.credit.take(want);
            if taken > 0 {
                return taken;
            }
            raised.await;
        }
    }

    pub(super) fn give_back(&self, unused: u64) {
        self.credit.give_back(unused);
        self.raised.notify_waiters();
    }

    fn raise(&self, total: u64) {
        if self.credit.raise(total) {
            self.raised.notify_waiters();
        }
    }
}

/// Streams that the application has not accepted yet: no more than the stream credit allows.
pub(super) struct Incoming<T> {
    waiting: Mutex<VecDeque<T>>,
    arrived: Notify,
}

impl<T> Incoming<T> {
    fn new() -> Self {
        Self {
            waiting: Mutex::default(),
            arrived: Notify::new(),
        }
    }

    fn push(&self, stream: T) {
        lock(&self.waiting).push_back(stream);
        self.arrived.notify_one();
    }

    pub(super) async fn pop(&self) -> T {
        loop {
            let arrived = self.arrived.notified();
            if let Some(stream) = lock(&self.waiting).pop_front() {
                return stream;
            }
            arrived.await;
        }
    }

    fn clear(&self) {
        let left = std::mem::take(&mut *lock(&self.waiting));
        drop(left); // outside the lock: the handles' drop takes others
    }
}

/// Whether the peer wants no more of a stream.
#[derive(Default)]
pub(super) struct Stop {
    /// The code plus one; 0 while there is none.
    code: AtomicU64,
    said: Notify,
}

impl Stop {
    pub(super) fn code(&self) -> Option<u32> {
        u32::try_from(self.code.load(Ordering::Acquire).checked_sub(1)?).ok()
    }

    pub(super) fn set(&self, code: u32) {
        let _ =
            self.code
                .compare_exchange(0, u64::from(code) + 1, Ordering::AcqRel, Ordering::Acquire);
        self.said.notify_waiters();
    }

    pub(super) async fn wait(&self) -> u32 {
        loop {
            let said = self.said.notified();
            if let Some(code) = self.code() {
                return code;
            }
            said.await;
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    pub(super) fn new(id: SessionId, link: Arc<Link>) -> Self {
        let limits = &link.limits;
        let receive = ReceiveCredit::new(limits.session_window);
        let streams = Streams::new(link.side, limits.session_streams);
        let outbox = Outbox {
            grants: Grants {
                data: Some(receive.granted()),
                bidi: Some(streams.window(Kind::Bidi)),
                uni: Some(streams.window(Kind::Uni)),
            },
            ..Outbox::default()
        };
        Self {
            id,
            data: Sending::default(),
            bidi: Sending::default(),
            uni: Sending::default(),
            receive,
            streams: Mutex::new(Table {
                streams,
                stops: HashMap::new(),
            }),
            outbox: Mutex::new(outbox),
            outbox_changed: Notify::new(),
            incoming_bidi: Incoming::new(),
            incoming_uni: Incoming::new(),
            datagrams: datagram::Queue::new(link.meter.clone()),
            over: OnceLock::new(),
            over_token: CancellationToken::new(),
            drained: CancellationToken::new(),
            flushing: Mutex::default(),
            parting: Mutex::new(Some(Vec::new())),
            link,
        }
    }

    // How a session ends.

    /// Why the session is over, if it is.
    pub(super) fn over(&self) -> Option<Closed> {
        self.over.get().cloned()
    }

    /// Ends the session unless it is over. Never waits.
    pub(super) fn end(&self, closed: Closed) {
        // Streams only know that their connection is lost: it knows why.
        let closed = match (closed, self.link.connection.close_reason()) {
            (Closed::Lost(_), Some(reason)) => Closed::Lost(reason.to_string()),
            (closed, _) => closed,
        };
        if matches!(closed, Closed::Here(_)) {
            let mut flushing = lock(&self.flushing);
            if self.over.set(closed).is_err() {
                return;
            }
            *flushing = Some(self.link.flushes.token());
        } else if self.over.set(closed).is_err() {
            return;
        } else {
            self.release();
        }
        self.over_token.cancel();
        // What came before the end can still be read. A connection that is lost ends all the same.
        let _ = self.link.datagrams.sweep(&*self.link);
        self.datagrams.close();
        self.incoming_bidi.clear();
        self.incoming_uni.clear();
        self.link.forget(self);
    }

    /// What was to be told about a close here was told, or cannot be.
    pub(super) fn flushed(&self) {
        self.release();
        lock(&self.flushing).take();
    }

    /// Ends a stream of this session, which is over: after its CLOSE, if there is one to send. A
    /// reset that came first would look like the stream's own.
    pub(super) fn part(&self, send: Option<quinn::SendStream>, recv: Option<quinn::RecvStream>) {
        match lock(&self.parting).as_mut() {
            Some(held) => held.push((send, recv)),
            None => self.reset(send, recv),
        }
    }

    fn release(&self) {
        let held = lock(&self.parting).take();
        for (send, recv) in held.into_iter().flatten() {
            self.reset(send, recv);
        }
    }

    fn reset(&self, send: Option<quinn::SendStream>, recv: Option<quinn::RecvStream>) {
        if let Some(mut send) = send {
            stream::reset(&mut send, self.id, 0);
        }
        drop(recv); // which stops it
    }

    pub(super) fn lost(&self, error: &quinn::ConnectionError) -> Closed {
        self.end(Closed::Lost(error.to_string()));
        self.closed_now()
    }

    /// Why the session is over, which it is.
    pub(super) fn closed_now(&self) -> Closed {
        self.over()
            .unwrap_or_else(|| Closed::Lost("the session is over".into()))
    }

    /// Resolves when the session is over.
    pub(super) async fn closed(&self) -> Closed {
        self.over_token.cancelled().await;
        self.closed_now()
    }

    /// `work`, unless the session is over first.
    pub(super) async fn unless_over<T>(&self, work: impl Future<Output = T>) -> Result<T, Closed> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.over_token.cancelled() => Err(self.closed_now()),
        }
    }

    pub(super) fn violated(&self, violation: impl std::fmt::Display) {
        tracing::warn!(peer = %self.link.peer, session = self.id.get(), %violation, "mesh protocol violated");
        metrics::counter!(crate::metrics::MESH_VIOLATIONS).increment(1);
        self.end(Closed::Here(Close::new(
            close_code::PROTOCOL,
            &violation.to_string(),
        )));
    }

    // Streams.

    /// Streams of each kind the peer may have open now.
    pub(super) fn stream_windows(&self) -> (u64, u64) {
        let table = lock(&self.streams);
        (
            table.streams.window(Kind::Bidi),
            table.streams.window(Kind::Uni),
        )
    }

    /// A stream of this session came in. `reset` is set when only its reset did.
    pub(super) fn incoming(
        self: &Arc<Self>,
        send: Option<quinn::SendStream>,
        recv: quinn::RecvStream,
        first: bytes::Bytes,
        reset: Option<u32>,
    ) {
        let stream = u64::from(recv.id());
        let granted = lock(&self.streams).streams.opened_by_peer(stream);
        let wider = matches!(&granted, Ok(grants) if *grants != Grants::default());
        if !self.grant(granted) {
            return;
        }
        if wider {
            self.link.widen(self);
        }
        let recv = RecvStream::new(self.clone(), recv, first, reset);
        let send = send.map(|send| SendStream::new(self.clone(), send));
        if reset.is_some() || self.over_token.is_cancelled() {
            return; // dropped: nobody can want a stream of which nothing is left
        }
        match send {
            Some(send) => self.incoming_bidi.push((send, recv)),
            None => self.incoming_uni.push(recv),
        }
        if self.over_token.is_cancelled() {
            self.incoming_bidi.clear();
            self.incoming_uni.clear();
        }
    }

    pub(super) fn opened_bidi(&self, stream: u64) {
        lock(&self.streams).streams.opened_here(stream);
    }

    pub(super) fn watch_stop(&self, stream: u64) -> Arc<Stop> {
        lock(&self.streams).stops.entry(stream).or_default().clone()
    }

    pub(super) fn unwatch_stop(&self, stream: u64) {
        lock(&self.streams).stops.remove(&stream);
    }

    /// Bytes of stream data were read by the application, or thrown away.
    pub(super) fn consumed(&self, bytes: u64) {
        match self.receive.consume(bytes) {
            Ok(None) => {}
            Ok(data) => {
                self.grant(Ok(Grants {
                    data,
                    ..Grants::default()
                }));
            }
            Err(exceeded) => self.violated(exceeded),
        }
    }

    pub(super) fn received_all(&self, stream: u64) {
        let grants = lock(&self.streams).streams.finished(stream);
        self.grant(Ok(grants));
    }

    pub(super) fn received_reset(&self, stream: u64, read: u64) {
        let grants = lock(&self.streams)
            .streams
            .reset(stream, read, &self.receive);
        self.grant(grants);
    }

    /// This side's half of a stream was finished.
    pub(super) fn sent_all(&self, stream: u64) {
        if kind(stream) == Kind::Bidi {
            let grants = lock(&self.streams).streams.sent(stream);
            self.grant(Ok(grants));
        }
    }

    /// This side reset a stream after spending `bytes` of credit on it.
    pub(super) fn abandoned(&self, stream: u64, bytes: u64) {
        self.tell(|outbox| outbox.abandoned.push((stream, bytes)));
        self.sent_all(stream);
    }

    pub(super) fn stop(&self, stream: u64, code: u32) {
        self.tell(|outbox| outbox.stops.push((stream, code)));
    }

    pub(super) fn drain(&self) {
        self.tell(|outbox| {
            outbox.drain.get_or_insert(true);
        });
    }

    /// Passes grants on to the peer; `false` when there was a violation instead.
    fn grant(&self, grants: Result<Grants, Violation>) -> bool {
        match grants {
            Ok(grants) if grants == Grants::default() => {}
            Ok(grants) => self.tell(|outbox| {
                // Two threads may come here in the other order: the larger total is the newer.
                outbox.grants.data = outbox.grants.data.max(grants.data);
                outbox.grants.bidi = outbox.grants.bidi.max(grants.bidi);
                outbox.grants.uni = outbox.grants.uni.max(grants.uni);
            }),
            Err(violation) => {
                self.violated(violation);
                return false;
            }
        }
        true
    }

    fn tell(&self, what: impl FnOnce(&mut Outbox)) {
        if self.over_token.is_cancelled() {
            return;
        }
        what(&mut lock(&self.outbox));
        self.outbox_changed.notify_one();
    }

    // The control stream.

    /// Waits until there are frames to send, and appends them.
    pub(super) async fn fill(&self, buf: &mut BytesMut) {
        loop {
            let changed = self.outbox_changed.notified();
            self.take_outbox(buf);
            if !buf.is_empty() {
                return;
            }
            changed.await;
        }
    }

    fn take_outbox(&self, buf: &mut BytesMut) {
        let mut frames = Vec::new();
        {
            let mut outbox = lock(&self.outbox);
            let grants = std::mem::take(&mut outbox.grants);
            frames.extend(grants.data.map(Frame::MaxData));
            frames.extend(grants.bidi.map(Frame::MaxStreamsBidi));
            frames.extend(grants.uni.map(Frame::MaxStreamsUni));
            for (stream, bytes) in outbox.abandoned.drain(..) {
                frames.push(Frame::StreamAbandoned { stream, bytes });
            }
            for (stream, code) in outbox.stops.drain(..) {
                frames.push(Frame::StopStream { stream, code });
            }
            if outbox.drain == Some(true) {
                outbox.drain = Some(false);
                frames.push(Frame::Drain);
            }
        }
        for frame in frames {
            frame
                .put(buf)
                .expect("frames of a few integers are never too long");
        }
    }

    /// Acts on a frame from the peer.
    pub(super) fn on_frame(&self, frame: Frame) {
        match frame {
            Frame::MaxData(total) => self.data.raise(total),
            Frame::MaxStreamsBidi(total) => self.bidi.raise(total),
            Frame::MaxStreamsUni(total) => self.uni.raise(total),
            Frame::StreamAbandoned { stream, bytes } => {
                let grants = lock(&self.streams)
                    .streams
                    .abandoned(stream, bytes, &self.receive);
                self.grant(grants);
            }
            Frame::StopStream { stream, code } => {
                let stop = lock(&self.streams).stops.get(&stream).cloned();
                // None when the stream was finished or reset before: the peer reads to its end.
                if let Some(stop) = stop {
                    stop.set(code);
                }
            }
            Frame::Drain => self.drained.cancel(),
            Frame::Close(close) => self.end(Closed::Peer(close)),
            Frame::Open(_) | Frame::Answer(_) => self.violated("second OPEN or ANSWER"),
        }
    }
}
