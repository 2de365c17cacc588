//! Who reads a connection's datagrams.
//!
//! quinn keeps what has arrived in one buffer for each connection, and wakes whoever waits for it. A
//! session that is alone on its connection waits there itself ([`Inbox::recv`]): no task stands
//! between. All else is read by the connection's own task ([`Inbox::attend`]) and put into the
//! sessions' queues: where there are several sessions, or none yet, and what a session that is alone
//! does not come for.
//!
//! Both read under one lock, so that neither overtakes the other. A lone session that waits is known
//! by its count in `State::present`, and then the task rests: it is not woken by what arrives. When
//! the session has taken something and does not wait at this moment, the task looks after
//! [`ABSENCE`] what has been left. So nothing stays in quinn's buffer for longer, but while a session
//! waits that its own task does not run.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::PoisonError,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;

use super::{
    Meter,
    queue::Queue,
    sync::{Mutex, MutexGuard},
};

/// How long what arrives may wait for a lone session that has read and not come back. Short beside
/// the 50 ms for which there is room ([`super::RECEIVE_BUFFER`]), long beside a burst of packets.
const ABSENCE: Duration = Duration::from_millis(20);

/// How long drops of quinn's own may stay uncounted while the connection's task reads.
const SETTLE: Duration = Duration::from_secs(1);

/// Datagrams that are read at once before other tasks get their turn.
const BATCH: usize = 64;

/// Where datagrams come from.
pub trait Source: Send + Sync {
    /// Why there will be no more.
    type Lost: Send;

    /// The oldest datagram that was not read; waits for one. Cancel-safe. Any number may wait, and
    /// all are woken by what arrives.
    fn read(&self) -> impl Future<Output = Result<Bytes, Self::Lost>> + Send;

    /// How many have arrived so far, read or not.
    fn arrived(&self) -> u64;
}

/// The sessions of a connection.
pub trait Recipients {
    /// Names a session.
    type Id: Copy;

    /// Puts a datagram into its session's queue, or counts why not. One that is for the session `own`
    /// is returned instead, without its header.
    fn sort(&self, datagram: Bytes, own: Option<Self::Id>) -> Option<Bytes>;
}

/// The datagrams of one connection.
pub struct Inbox<S> {
    source: S,
    meter: Meter,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Datagrams taken from the source.
    read: u64,
    /// Datagrams counted as dropped by it.
    dropped: u64,
    sessions: usize,
    /// Receivers of a lone session that wait at the source.
    present: usize,
    /// One of them has read since the task last looked.
    left: bool,
    /// The task rests, and is to be woken when nobody is present.
    rests: bool,
    task: Option<Waker>,
}

/// What the connection's task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Duty {
    /// Nothing: a lone session waits at the source.
    Rest,
    /// It looks in a while: a lone session was there.
    Look,
    /// It reads.
    Read,
}

impl State {
    fn duty(&self) -> Duty {
        match (self.sessions, self.present, self.left) {
            (1, 1.., _) => Duty::Rest,
            (1, 0, true) => Duty::Look,
            _ => Duty::Read,
        }
    }
}

impl<S> Inbox<S> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Source> Inbox<S> {
    /// The datagrams of `source`, of which nothing was read yet. Somebody must [attend](Self::attend).
    pub fn new(source: S, meter: Meter) -> Self {
        Self {
            source,
            meter,
            state: Mutex::new(State::default()),
        }
    }

    /// There is a session more. Not to be called under a lock that [`Recipients::sort`] takes.
    pub fn came(&self) {
        self.count(|sessions| *sessions += 1);
    }

    /// There is a session less. Likewise.
    pub fn went(&self) {
        self.count(|sessions| *sessions -= 1);
    }

    fn count(&self, change: impl FnOnce(&mut usize)) {
        let task = {
            let mut state = self.lock();
            change(&mut state.sessions);
            state.rests = false;
            state.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }

    /// The next datagram of the session `own`, whose queue is `queue`; `None` once that is closed and
    /// empty. Gives way to other tasks when many are there at once. Cancel-safe.
    pub async fn recv<T: Recipients>(
        &self,
        queue: &Queue,
        sessions: &T,
        own: T::Id,
    ) -> Option<Bytes> {
        tokio::task::coop::consume_budget().await;
        let mut present = Present {
            inbox: self,
            counted: false,
        };
        let mut reading = pin!(self.source.read());
        poll_fn(|cx| {
            let mut state = self.lock();
            for _ in 0..BATCH {
                let lone = state.sessions == 1;
                // What the task sorted into a lone session's queue came there under this lock, and is
                // older than what the source has. Where there is nothing, the queue's lock is spared.
                if (!lone || queue.is_ready())
                    && let Poll::Ready(popped) = queue.poll_pop(cx)
                {
                    present.leave(&mut state);
                    return Poll::Ready(popped);
                }
                if !lone {
                    present.leave(&mut state);
                    return Poll::Pending;
                }
                match reading.as_mut().poll(cx) {
                    Poll::Pending => {
                        let popped = queue.poll_pop(cx);
                        match popped.is_ready() {
                            true => present.leave(&mut state),
                            false => present.enter(&mut state),
                        }
                        return popped;
                    }
                    Poll::Ready(Ok(datagram)) => {
                        self.took(&mut state);
                        state.left = true;
                        if let Some(payload) = sessions.sort(datagram, Some(own)) {
                            present.leave(&mut state);
                            return Poll::Ready(Some(payload));
                        }
                        reading.set(self.source.read());
                    }
                    // The task sees that as well, and the queue will be closed.
                    Poll::Ready(Err(_)) => {
                        reading.set(self.source.read());
                        present.leave(&mut state);
                        return queue.poll_pop(cx);
                    }
                }
            }
            // Datagrams of no session, without end.
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    fn took(&self, state: &mut State) {
        state.read += 1;
        self.meter.received();
    }

    /// Puts what has arrived until now into the sessions' queues, and counts what was dropped before
    /// it was read. `Err` once there will be no more.
    pub fn sweep(&self, sessions: &impl Recipients) -> Result<(), S::Lost> {
        let mut state = self.lock();
        // What had arrived before this look and is not there to be read was dropped.
        let arrived = self.source.arrived();
        while state.read + state.dropped < arrived {
            match self.source.read().now_or_never() {
                Some(Ok(datagram)) => {
                    self.took(&mut state);
                    sessions.sort(datagram, None);
                }
                Some(Err(lost)) => {
                    self.settle(&mut state, arrived);
                    return Err(lost);
                }
                None => break,
            }
        }
        self.settle(&mut state, arrived);
        Ok(())
    }

    /// Datagrams that were counted as dropped before they were read.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn settle(&self, state: &mut State, arrived: u64) {
        let missing = arrived.saturating_sub(state.read);
        if missing > state.dropped {
            self.meter.receive_buffer_full(missing - state.dropped);
            state.dropped = missing;
        }
    }

    /// Reads what no session reads for itself, until the source is lost. One task is to do that, at
    /// all times.
    pub async fn attend(&self, sessions: &impl Recipients) {
        self.attend_with(sessions, tokio::time::sleep).await;
    }

    /// The same, with other timers than tokio's.
    pub(crate) async fn attend_with<F: Future<Output = ()>>(
        &self,
        sessions: &impl Recipients,
        sleep: impl Fn(Duration) -> F,
    ) {
        let mut timer: Option<Pin<Box<F>>> = None;
        let mut before = Duty::Rest;
        let mut reading = pin!(self.source.read());
        poll_fn(|cx| {
            for _ in 0..BATCH {
                let duty = self.duty(cx.waker());
                if std::mem::replace(&mut before, duty) != duty {
                    reading.set(self.source.read());
                    // Drops may wait to be counted.
                    if timer.take().is_some() && self.sweep(sessions).is_err() {
                        return Poll::Ready(());
                    }
                }
                match duty {
                    Duty::Rest => return Poll::Pending,
                    Duty::Look => {
                        let absent = timer.get_or_insert_with(|| Box::pin(sleep(ABSENCE)));
                        ready!(absent.as_mut().poll(cx));
                        timer = None;
                        if self.look(sessions).is_err() {
                            return Poll::Ready(());
                        }
                    }
                    Duty::Read => match self.poll_sort(sessions, reading.as_mut(), cx) {
                        Poll::Ready(Ok(())) => {
                            reading.set(self.source.read());
                            // Wakes this task when it is time to look for drops, of which there are
                            // none unless something is read after them.
                            timer.get_or_insert_with(|| Box::pin(sleep(SETTLE)));
                        }
                        Poll::Ready(Err(_)) => return Poll::Ready(()),
                        Poll::Pending => {
                            let Some(settle) = &mut timer else {
                                return Poll::Pending;
                            };
                            ready!(settle.as_mut().poll(cx));
                            timer = None;
                            if self.sweep(sessions).is_err() {
                                return Poll::Ready(());
                            }
                        }
                    },
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// What there is to do; `task` is woken when that changes.
    fn duty(&self, task: &Waker) -> Duty {
        let mut state = self.lock();
        if !state.task.as_ref().is_some_and(|held| held.will_wake(task)) {
            state.task = Some(task.clone());
        }
        let duty = state.duty();
        state.rests = duty == Duty::Rest;
        duty
    }

    /// Looks what a lone session has left.
    fn look(&self, sessions: &impl Recipients) -> Result<(), S::Lost> {
        self.lock().left = false;
        self.sweep(sessions)
    }

    /// Reads one datagram and sorts it.
    fn poll_sort(
        &self,
        sessions: &impl Recipients,
        reading: Pin<&mut impl Future<Output = Result<Bytes, S::Lost>>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), S::Lost>> {
        let mut state = self.lock();
        let datagram = match ready!(reading.poll(cx)) {
            Ok(datagram) => datagram,
            Err(lost) => {
                self.settle(&mut state, self.source.arrived());
                return Poll::Ready(Err(lost));
            }
        };
        self.took(&mut state);
        sessions.sort(datagram, None);
        Poll::Ready(Ok(()))
    }
}

/// A receiver, and whether it is counted as waiting at the source.
struct Present<'a, S> {
    inbox: &'a Inbox<S>,
    counted: bool,
}

impl<S> Present<'_, S> {
    fn enter(&mut self, state: &mut State) {
        if !std::mem::replace(&mut self.counted, true) {
            state.present += 1;
        }
    }

    fn leave(&mut self, state: &mut State) {
        if std::mem::take(&mut self.counted) {
            state.present -= 1;
            state.left = true;
            if state.present == 0
                && std::mem::take(&mut state.rests)
                && let Some(task) = state.task.take()
            {
                task.wake();
            }
        }
    }
}

impl<S> Drop for Present<'_, S> {
    fn drop(&mut self) {
        if self.counted {
            let inbox = self.inbox;
            self.leave(&mut inbox.lock());
        }
    }
}
