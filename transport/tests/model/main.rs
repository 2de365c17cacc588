//! Every order in which threads can come to the hand-over of datagrams, by loom: between a session
//! that reads for itself, the connection's task, and what arrives. The sources are the crate's own,
//! over loom's locks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the modules are the crate's, of which this uses a part"
)]

mod datagram;

use std::{
    future::{Future, poll_fn, ready},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use loom::{
    sync::{Condvar, Mutex},
    thread,
};

use self::datagram::{Meter, inbox::Inbox, queue::Queue, wire::Wire};

/// A connection with so many sessions, and its task.
struct Connection {
    wire: Arc<Wire>,
    inbox: Inbox<Arc<Wire>>,
    queues: Vec<Queue>,
    meter: Meter,
}

impl Connection {
    fn new(sessions: usize, there: usize) -> Arc<Self> {
        let (wire, meter) = (Arc::new(Wire::new(8)), Meter::default());
        let inbox = Inbox::new(wire.clone(), meter.clone());
        (0..there).for_each(|_| inbox.came());
        Arc::new(Self {
            wire,
            inbox,
            queues: (0..sessions).map(|_| Queue::new(meter.clone())).collect(),
            meter,
        })
    }

    /// The task. Its timers ring at once, which they may.
    fn attend(self: &Arc<Self>) -> thread::JoinHandle<()> {
        let this = self.clone();
        thread::spawn(move || {
            block_on(this.inbox.attend_with(&this.queues, |_| ready(())));
        })
    }

    async fn recv(&self, session: u8) -> u8 {
        let queue = &self.queues[usize::from(session)];
        let payload = self.inbox.recv(queue, &self.queues, session).await;
        payload.expect("nobody closes a queue")[0]
    }

    /// Ends the connection, all of whose datagrams were read.
    fn end(&self, task: thread::JoinHandle<()>, arrived: u64) {
        self.wire.lose();
        task.join().unwrap();
        assert_eq!(self.meter.counts(), (arrived, 0));
    }
}

/// Wakes a thread. Loom's own `block_on` fails an assertion when it is woken twice at once.
#[derive(Default)]
struct Alarm {
    rung: Mutex<bool>,
    rings: Condvar,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        *self.rung.lock().unwrap() = true;
        self.rings.notify_one();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let alarm = Arc::<Alarm>::default();
    let waker = Waker::from(alarm.clone());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        let mut rung = alarm.rung.lock().unwrap();
        while !std::mem::take(&mut *rung) {
            rung = alarm.rings.wait(rung).unwrap();
        }
    }
}

fn model(threads_switch_at_most: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(threads_switch_at_most);
    builder.check(f);
}

/// Polls once, and is gone.
async fn glance<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

#[test]
fn a_lone_session_gets_everything_in_order() {
    model(2, || {
        let connection = Connection::new(1, 1);
        let task = connection.attend();
        let session = connection.clone();
        let reader = thread::spawn(move || {
            block_on(async { [session.recv(0).await, session.recv(0).await] })
        });
        connection.wire.arrive(0, 1);
        connection.wire.arrive(0, 2);
        assert_eq!(reader.join().unwrap(), [1, 2]);
        connection.end(task, 2);
    });
}

#[test]
fn what_a_session_does_not_stay_for_comes_to_its_queue() {
    model(2, || {
        let connection = Connection::new(1, 1);
        let task = connection.attend();
        let session = connection.clone();
        let reader = thread::spawn(move || block_on(glance(session.recv(0))));
        connection.wire.arrive(0, 7);
        if reader.join().unwrap().is_none() {
            // Its receiver is gone, so the task must see to it: nobody else reads.
            let queue = &connection.queues[0];
            let popped = block_on(poll_fn(|cx| queue.poll_pop(cx)));
            assert_eq!(popped.unwrap()[..], [7]);
        }
        connection.end(task, 1);
    });
}

#[test]
fn a_session_that_waits_alone_gets_its_own_when_another_comes() {
    model(2, || {
        let connection = Connection::new(2, 1);
        let task = connection.attend();
        let session = connection.clone();
        let reader = thread::spawn(move || block_on(session.recv(0)));
        connection.inbox.came();
        connection.wire.arrive(1, 8);
        connection.wire.arrive(0, 9);
        assert_eq!(reader.join().unwrap(), 9);
        assert_eq!(block_on(connection.recv(1)), 8);
        connection.end(task, 2);
    });
}

#[test]
fn a_session_that_is_left_alone_gets_what_was_on_its_way() {
    model(2, || {
        let connection = Connection::new(2, 2);
        let task = connection.attend();
        let session = connection.clone();
        let reader = thread::spawn(move || {
            block_on(async { [session.recv(0).await, session.recv(0).await] })
        });
        connection.wire.arrive(0, 1);
        connection.inbox.went();
        connection.wire.arrive(0, 2);
        assert_eq!(reader.join().unwrap(), [1, 2]);
        connection.end(task, 2);
    });
}
