//! Two nodes with one socket each, or one for each core, and a transit relay between them: the same sessions in
//! turns, and what they carry as ratios.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use wavry_transport::{
    mesh,
    session::{RecvStream as _, Response, SendStream as _, Session as _},
};

use super::{CHUNK, Cluster, Core, Lane, Wire, count_datagrams, id, open, send_datagrams};

/// One on each of as many connections: what a pair of nodes has at most.
const SESSIONS: usize = 8;

/// What is measured, in the order in which it is printed; processor time is that of the process.
pub(crate) const FIGURES: [&str; 4] = [
    "bulk Gbit/s",
    "bulk CPU-s/Gbit",
    "100 B datagrams k/s",
    "100 B CPU-µs each",
];

/// Two nodes that have a thread for each core, and sessions between them.
pub(crate) struct Pair {
    a: Runtime,
    b: Runtime,
    sessions: Vec<(Arc<mesh::Session>, Arc<mesh::Session>)>,
    _keep: Vec<Box<dyn std::any::Any>>,
}

impl Pair {
    pub(crate) fn new(sockets: usize) -> Self {
        let runtime = || Runtime::new().unwrap();
        let (a, b, hop) = (runtime(), runtime(), Lane::start(Core::Last));
        let cluster = Cluster::new();
        let bind = |runtime: &Runtime| runtime.block_on(async { Wire::bind_shards(sockets) });
        let (at_a, at_b) = (bind(&a), bind(&b));
        let limits = mesh::Limits {
            shards: SESSIONS,
            ..mesh::Limits::default()
        };
        let near = cluster.node_on(a.handle(), "a", &at_a, None, limits.clone());
        let far = cluster.node_on(b.handle(), "b", &at_b, None, limits);
        for (from, to) in [(&at_a, far.local_addr()), (&at_b, near.local_addr())] {
            from.iter().for_each(|wire| wire.cut(to));
        }
        let relay = cluster.transit(&hop, "t1");
        let session = || {
            let (opener, accepter) = (near.clone(), far.clone());
            let opened = a.spawn(async move { opener.open(&id("b"), open()).await.unwrap().0 });
            let there = b.block_on(async move {
                let requested = accepter.accept().await.unwrap();
                let accepted = requested.accept(Response::ok());
                accepted.await.unwrap()
            });
            (Arc::new(a.block_on(opened).unwrap()), Arc::new(there))
        };
        let sessions = (0..SESSIONS).map(|_| session()).collect();
        Self {
            sessions,
            _keep: vec![Box::new((near, far, relay, hop, cluster))],
            a,
            b,
        }
    }

    pub(crate) fn measure(&self, time: Duration) -> [f64; 4] {
        let (bytes, took, used) = self.bulk(time);
        let gigabits = bytes as f64 * 8.0 / 1e9;
        let (count, lasted, burnt) = self.datagrams(100, time);
        [
            gigabits / took.as_secs_f64(),
            used.as_secs_f64() / gigabits,
            count as f64 / lasted.as_secs_f64() / 1e3,
            burnt.as_secs_f64() * 1e6 / count as f64,
        ]
    }

    /// One stream of each session; bytes, the time that it took, and the processor's.
    fn bulk(&self, time: Duration) -> (u64, Duration, Duration) {
        let (before, start) = (used(), Instant::now());
        let mut receiving = Vec::new();
        for (here, there) in &self.sessions {
            let (here, there) = (here.clone(), there.clone());
            self.a.spawn(async move {
                let mut send = here.open_uni().await.unwrap();
                let chunk = Bytes::from(vec![7; CHUNK]);
                while start.elapsed() < time {
                    send.write(chunk.clone()).await.unwrap();
                }
                send.finish().unwrap();
            });
            receiving.push(self.b.spawn(async move {
                let mut recv = there.accept_uni().await.unwrap();
                let mut bytes = 0;
                while let Some(chunk) = recv.read().await.unwrap() {
                    bytes += chunk.len() as u64;
                }
                bytes
            }));
        }
        let received = receiving.into_iter();
        let bytes = received.map(|bytes| self.b.block_on(bytes).unwrap()).sum();
        (bytes, start.elapsed(), used() - before)
    }

    fn datagrams(&self, size: usize, time: Duration) -> (u64, Duration, Duration) {
        let before = used();
        let mut receiving = Vec::new();
        for (here, there) in &self.sessions {
            let (here, there) = (here.clone(), there.clone());
            let stop = CancellationToken::new();
            self.a.spawn(send_datagrams(here, size, time, stop.clone()));
            receiving.push(self.b.spawn(count_datagrams(there, stop)));
        }
        let received = receiving.into_iter();
        let came = received.map(|came| self.b.block_on(came).unwrap());
        let (count, took) = came.fold((0, Duration::ZERO), |(sum, longest), (count, took)| {
            (sum + count, longest.max(took))
        });
        (count, took, used() - before)
    }
}

/// Processor time of all threads that are there.
fn used() -> Duration {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let nanoseconds = tasks.map(|task| {
        let text = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
        text.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(nanoseconds.sum())
}
