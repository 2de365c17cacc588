//! Every datagram arrives or is dropped for a reason that is counted.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use wavry_transport::session::{DatagramError, Session};

use crate::nodes::{Cluster, one_connection, session};

/// Counts by name and labels.
#[derive(Default)]
struct Counts {
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

    fn dropped(&self, reason: &str) -> u64 {
        self.of("wavry_transport_datagrams_dropped_total", reason)
    }

    fn passed(&self, direction: &str) -> u64 {
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
