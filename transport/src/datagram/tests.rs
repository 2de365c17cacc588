use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::oneshot;

use super::{inbox::Inbox, queue::Queue, wire::Wire, *};
use crate::metrics::link;

fn queue() -> Queue {
    Queue::new(Meter::new(link::MESH))
}

async fn pop(queue: &Queue) -> Option<Bytes> {
    poll_fn(|cx| queue.poll_pop(cx)).await
}

#[tokio::test]
async fn a_full_queue_drops_its_oldest() {
    let queue = queue();
    for n in 0..QUEUE_LEN as u32 + 2 {
        queue.push(Bytes::copy_from_slice(&n.to_be_bytes()));
    }
    for n in 2..QUEUE_LEN as u32 + 2 {
        assert_eq!(pop(&queue).await.unwrap(), &n.to_be_bytes()[..]);
    }
    assert!(pop(&queue).now_or_never().is_none());
}

#[tokio::test]
async fn a_queue_is_bounded_in_bytes_and_still_takes_one_of_any_size() {
    let queue = queue();
    queue.push(Bytes::from_static(b"small"));
    queue.push(Bytes::from(vec![0; QUEUE_BYTES + 1]));
    assert_eq!(pop(&queue).await.unwrap().len(), QUEUE_BYTES + 1);
    // And has room for as much as before.
    queue.push(Bytes::from(vec![1; QUEUE_BYTES / 2]));
    queue.push(Bytes::from(vec![2; QUEUE_BYTES / 2]));
    assert_eq!(pop(&queue).await.unwrap()[0], 1);
    assert_eq!(pop(&queue).await.unwrap()[0], 2);
}

#[tokio::test]
async fn a_closed_queue_gives_what_waits_and_then_ends() {
    let queue = queue();
    queue.push(Bytes::from_static(b"last"));
    queue.close();
    queue.push(Bytes::from_static(b"late"));
    assert_eq!(pop(&queue).await.unwrap(), "last");
    assert_eq!(pop(&queue).await, None);
}

#[tokio::test]
async fn closing_a_queue_wakes_all_who_wait() {
    let queue = Arc::new(queue());
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let queue = queue.clone();
            tokio::spawn(async move { pop(&queue).await })
        })
        .collect();
    tokio::task::yield_now().await;
    queue.close();
    for reader in readers {
        assert_eq!(reader.await.unwrap(), None);
    }
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn who_waits_again_and_again_is_woken_once() {
    let (queue, wakes) = (queue(), Arc::<Wakes>::default());
    let waker = Waker::from(wakes.clone());
    for _ in 0..100 {
        assert!(
            queue
                .poll_pop(&mut Context::from_waker(&waker))
                .is_pending()
        );
    }
    queue.push(Bytes::from_static(b"one"));
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
}

/// A connection with two sessions' queues, and with timers that the tests ring.
struct Connection {
    wire: Arc<Wire>,
    inbox: Inbox<Arc<Wire>>,
    queues: Vec<Queue>,
    timers: Mutex<Vec<(Duration, oneshot::Sender<()>)>>,
}

/// Datagrams that the wire keeps.
const ROOM: usize = 8;
/// When the task looks what a session has left.
const SOON: Duration = Duration::from_millis(20);

impl Connection {
    /// With so many sessions there, and a task.
    fn new(sessions: usize) -> Arc<Self> {
        let wire = Arc::new(Wire::new(ROOM));
        let this = Arc::new(Self {
            inbox: Inbox::new(wire.clone(), Meter::new(link::MESH)),
            wire,
            queues: vec![queue(), queue()],
            timers: Mutex::default(),
        });
        (0..sessions).for_each(|_| this.inbox.came());
        let attended = this.clone();
        tokio::spawn(async move {
            let sleep = |duration| {
                let (ring, rung) = oneshot::channel();
                attended.timers.lock().unwrap().push((duration, ring));
                rung.map(|_| ())
            };
            attended.inbox.attend_with(&attended.queues, sleep).await;
        });
        this
    }

    /// Rings the timer that the task waits for. Gives how long it would have run; nothing if there is
    /// none.
    async fn ring(&self) -> Option<Duration> {
        settled().await;
        let timers = std::mem::take(&mut *self.timers.lock().unwrap());
        let mut live = timers.into_iter().filter(|(_, ring)| !ring.is_closed());
        let (duration, ring) = live.next()?;
        assert!(live.next().is_none(), "one timer at most");
        ring.send(()).unwrap();
        settled().await;
        Some(duration)
    }

    fn recv(&self, session: u8) -> impl Future<Output = Option<Bytes>> {
        let queue = &self.queues[usize::from(session)];
        self.inbox.recv(queue, &self.queues, session)
    }

    /// What is in a session's queue.
    fn queued(&self, session: usize) -> Vec<u8> {
        std::iter::from_fn(|| pop(&self.queues[session]).now_or_never().flatten())
            .map(|payload| payload[0])
            .collect()
    }
}

/// Lets every task run that has something to do.
async fn settled() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

/// Polls it once.
async fn begun<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

#[tokio::test]
async fn the_task_is_not_woken_while_a_lone_session_waits() {
    let connection = Connection::new(1);
    settled().await;
    assert_eq!(connection.wire.waiting(), 1);
    for n in 0..3 {
        let mut receiving = pin!(connection.recv(0));
        assert!(begun(receiving.as_mut()).await.is_none());
        connection.wire.arrive(0, n);
        settled().await;
        // The first one woke both; from then on it is the session alone.
        let mine = receiving.await.unwrap();
        assert_eq!(mine[..], [n]);
        let mut receiving = pin!(connection.recv(0));
        assert!(begun(receiving.as_mut()).await.is_none());
        settled().await;
        assert_eq!(connection.wire.waiting(), 1, "after {n}");
    }
}

#[tokio::test]
async fn what_a_lone_session_does_not_come_back_for_is_soon_in_its_queue() {
    let connection = Connection::new(1);
    let mut receiving = pin!(connection.recv(0));
    assert!(begun(receiving.as_mut()).await.is_none());
    connection.wire.arrive(0, 1);
    assert_eq!(receiving.await.unwrap()[..], [1]);
    connection.wire.arrive(0, 2);
    connection.wire.arrive(0, 3);
    settled().await;
    assert_eq!(connection.queued(0), [0; 0], "not yet");
    assert_eq!(connection.ring().await, Some(SOON));
    assert_eq!(connection.queued(0), [2, 3]);
    // And from now on at once, as for a session that nobody reads.
    connection.wire.arrive(0, 4);
    settled().await;
    assert_eq!(connection.queued(0), [4]);
}

#[tokio::test]
async fn a_receiver_that_is_given_up_is_missed() {
    let connection = Connection::new(1);
    {
        let mut receiving = pin!(connection.recv(0));
        assert!(begun(receiving.as_mut()).await.is_none());
        // Woken, and never run.
        connection.wire.arrive(0, 1);
        settled().await;
    }
    assert_eq!(connection.ring().await, Some(SOON));
    assert_eq!(connection.queued(0), [1]);
}

#[tokio::test]
async fn a_slow_reader_gets_everything_in_order() {
    let connection = Connection::new(1);
    for burst in 0..50 {
        let numbers = 4 * burst..4 * burst + 4;
        for n in numbers.clone() {
            connection.wire.arrive(0, n);
        }
        for n in numbers {
            // The task looks before the first is read, between two, or when all are.
            if n % 5 == 0 {
                connection.ring().await;
            }
            assert_eq!(connection.recv(0).await.unwrap()[..], [n]);
        }
    }
}

#[tokio::test]
async fn a_session_that_does_not_read_holds_up_no_other() {
    let connection = Connection::new(2);
    for n in 0..100 {
        connection.wire.arrive(0, n);
        connection.wire.arrive(1, n);
        assert_eq!(connection.recv(1).await.unwrap()[..], [n]);
    }
    assert_eq!(connection.queued(0).len(), 100);
}

#[tokio::test]
async fn a_session_that_waits_goes_on_when_another_comes_and_when_it_goes() {
    let connection = Connection::new(1);
    for n in 0..10 {
        let mut receiving = pin!(connection.recv(0));
        assert!(begun(receiving.as_mut()).await.is_none());
        match n % 2 {
            0 => connection.inbox.came(),
            _ => connection.inbox.went(),
        }
        settled().await;
        connection.wire.arrive(1, n);
        connection.wire.arrive(0, n);
        assert_eq!(receiving.await.unwrap()[..], [n]);
    }
    settled().await;
    assert_eq!(connection.queued(1).len(), 10);
}

#[tokio::test]
async fn an_idle_session_among_several_is_not_woken_for_the_others() {
    let connection = Connection::new(1);
    let wakes = Arc::<Wakes>::default();
    let waker = Waker::from(wakes.clone());
    let mut cx = Context::from_waker(&waker);
    let mut idle = pin!(connection.recv(0));
    assert!(idle.as_mut().poll(&mut cx).is_pending());
    connection.inbox.came();
    for n in 0..100 {
        connection.wire.arrive(1, n);
        settled().await;
        if wakes.0.load(Ordering::Relaxed) == 1 {
            // Once, as it waited for whatever would arrive.
            assert!(idle.as_mut().poll(&mut cx).is_pending());
        }
    }
    assert_eq!(connection.queued(1).len(), 100);
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_quic_dropped_is_counted_when_the_task_looks() {
    let connection = Connection::new(1);
    let mut receiving = pin!(connection.recv(0));
    assert!(begun(receiving.as_mut()).await.is_none());
    for n in 0..ROOM as u8 + 3 {
        connection.wire.arrive(0, n);
    }
    assert_eq!(receiving.await.unwrap()[..], [3]);
    assert_eq!(connection.ring().await, Some(SOON));
    assert_eq!(connection.inbox.dropped(), 3);
    // Nothing is counted twice.
    while connection.ring().await.is_some() {}
    assert_eq!(connection.inbox.dropped(), 3);
    assert_eq!(connection.queued(0).len(), ROOM - 1);
}

#[tokio::test]
async fn what_arrived_before_a_session_s_end_can_still_be_read() {
    let connection = Connection::new(1);
    let mut receiving = pin!(connection.recv(0));
    assert!(begun(receiving.as_mut()).await.is_none());
    connection.wire.arrive(0, 1);
    connection.wire.arrive(0, 2);
    let _ = connection.inbox.sweep(&connection.queues);
    connection.queues[0].close();
    assert_eq!(receiving.await.unwrap()[..], [1]);
    assert_eq!(connection.recv(0).await.unwrap()[..], [2]);
    assert_eq!(connection.recv(0).await, None);
}

#[tokio::test]
async fn the_task_ends_with_the_connection_whoever_reads() {
    for sessions in 0..3 {
        let connection = Connection::new(sessions);
        let mut receiving = pin!(connection.recv(0));
        assert!(begun(receiving.as_mut()).await.is_none());
        settled().await;
        connection.wire.arrive(0, 1);
        connection.wire.lose();
        connection.queues[0].close();
        receiving.await;
        connection.ring().await;
        assert_eq!(Arc::strong_count(&connection), 1, "{sessions} sessions");
    }
}

#[test]
fn a_connection_sends_a_window_in_a_round_trip() {
    let ms = Duration::from_millis;
    assert_eq!(sent_within(ms(50), 20_000, ms(100)), 10_000);
    assert_eq!(sent_within(ms(50), 20_000, ms(10)), 100_000);
    assert_eq!(sent_within(ms(50), u64::MAX, Duration::ZERO), usize::MAX);
}
