//! Every datagram arrives or is dropped for a reason that is counted.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use wavry_proto::overlay::transit::Limits;
use wavry_transport::session::{DatagramError, Session};

use crate::{
    nodes::{Cluster, one_connection, session},
    transit::{Ends, Relay},
};

/// Counts by name and labels.
#[derive(Default)]
pub(crate) struct Counts {
    counters: Mutex<HashMap<Key, Arc<AtomicU64>>>,
}

impl Counts {
    fn of(&self, name: &str, label: &str) -> u64 {
        let counters = self.counters.lock().unwrap();
        counters
            .iter()
            .filter(|(key, _)| key.name() == name && key.labels().any(|l| l.value() == label))
            .map(|(_, count)| count.load(Ordering::SeqCst))
            .sum()
    }

    pub(crate) fn dropped(&self, reason: &str) -> u64 {
        self.of("wavry_transport_datagrams_dropped_total", reason)
    }

    pub(crate) fn passed(&self, direction: &str) -> u64 {
        self.of("wavry_transport_datagrams_total", direction)
    }
}

impl Recorder for Counts {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let mut counters = self.counters.lock().unwrap();
        Counter::from_arc(counters.entry(key.clone()).or_default().clone())
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

// One thread: the recorder is that thread's.
#[tokio::test]
async fn every_datagram_arrives_or_is_counted_as_dropped() {
    let counts = Counts::default();
    let _recording = metrics::set_default_local_recorder(&counts);
    let cluster = Cluster::new();
    let a = cluster.node_with("a", one_connection());
    let b = cluster.node("b");
    let (here, there) = session(&a, "b", &b).await;

    const OFFERED: u64 = 30_000;
    let mut full = 0;
    for n in 0..OFFERED {
        match here.send_datagram(Bytes::from(vec![n as u8; 1000])) {
            Ok(()) => {}
            // Lets the wire have them: the session's queue is to overflow too.
            Err(DatagramError::Full) => {
                full += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(full > 0, "the send buffer never filled");
    let too_large = vec![0; here.max_datagram_size() + 1];
    assert!(here.send_datagram(too_large.into()).is_err());

    let mut read = 0;
    while let Ok(payload) =
        tokio::time::timeout(Duration::from_secs(2), there.recv_datagram()).await
    {
        payload.unwrap();
        read += 1;
    }
    assert_eq!(counts.dropped("send_buffer_full"), full);
    assert_eq!(counts.dropped("too_large"), 1);
    assert_eq!(counts.passed("sent") + full, OFFERED);
    assert_eq!(
        counts.passed("received"),
        read + counts.dropped("receive_queue_full")
    );
    assert!(
        counts.dropped("receive_queue_full") > 0,
        "the reader came late"
    );
    let arrived = counts.passed("received") + counts.dropped("receive_buffer_full");
    assert!(arrived <= counts.passed("sent"));

    // Of a session that is over.
    drop(there);
    let late = here.send_datagram(Bytes::from_static(b"late"));
    here.closed().await;
    drop(here);
    if late.is_ok() {
        let (one, other) = session(&a, "b", &b).await;
        one.send_datagram(Bytes::from_static(b"next")).unwrap();
        other.recv_datagram().await.unwrap();
        assert_eq!(counts.dropped("unknown_session"), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_that_a_slow_path_does_not_take_are_dropped_and_not_late() {
    // 8 Mbit/s, and twice of that is sent: the send buffer alone would hold half a second of it.
    const LINK: u64 = 1_000_000;
    const LASTS: Duration = Duration::from_secs(3);
    let ends = Ends::new();
    let _relay = Relay::on_a_link(&ends.cluster, "t1", Limits::default(), Some(LINK));
    ends.cut();
    let (here, there) = ends.session().await;
    let begun = Instant::now();
    let sending = async {
        let mut dropped = 0;
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        while begun.elapsed() < LASTS {
            tick.tick().await;
            for _ in 0..2 {
                let mut datagram = vec![0; 1_000];
                let sent = begun.elapsed().as_micros() as u64;
                datagram[..8].copy_from_slice(&sent.to_be_bytes());
                match here.send_datagram(datagram.into()) {
                    Ok(()) => {}
                    Err(DatagramError::Full) => dropped += 1,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        dropped
    };
    let receiving = async {
        let mut late = Vec::new();
        while let Ok(Ok(datagram)) =
            tokio::time::timeout(Duration::from_secs(1), there.recv_datagram()).await
        {
            let sent = u64::from_be_bytes(*datagram.first_chunk().unwrap());
            late.push(begun.elapsed() - Duration::from_micros(sent));
        }
        late
    };
    let (dropped, mut late) = tokio::join!(sending, receiving);
    // How fast the path is, is known by then.
    late.drain(..late.len() / 2);
    late.sort();
    let (half, most) = (late[late.len() / 2], late[late.len() - 1]);
    println!(
        "{dropped} dropped; of {} half were under way for {half:?}, all for {most:?}",
        late.len()
    );
    assert!(dropped > 0 && late.len() > 500);
    assert!(half < Duration::from_millis(250), "{half:?}");
}
