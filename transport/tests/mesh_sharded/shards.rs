//! Connections stay with their socket wherever their packets come to.

use std::{collections::HashSet, time::Duration};

use futures_util::future::join_all;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use tokio_util::sync::CancellationToken;
use wavry_proto::overlay::transit::Limits;
use wavry_transport::mesh::{self, Session};

use crate::transit::{DEADLINE, Ends, Relay, numbers, proved_flows, question_and_answer};

/// As many connections as a pair of nodes has at most.
const CONNECTIONS: usize = 8;

const HANDED_OVER: &str = "wavry_transport_packets_handed_over_total{link=\"mesh\"} ";
const DROPPED: &str = "wavry_transport_packets_dropped_total";

struct Counted(PrometheusRecorder);

impl Default for Counted {
    fn default() -> Self {
        Self(PrometheusBuilder::new().build_recorder())
    }
}

impl Counted {
    fn handed_over(&self) -> u64 {
        let text = self.0.handle().render();
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(HANDED_OVER));
        value.map_or(0, |value| value.parse().unwrap())
    }
}

fn ends() -> Ends {
    Ends::with(mesh::Limits {
        shards: CONNECTIONS,
        ..mesh::Limits::default()
    })
}

/// One session on each connection.
async fn sessions(ends: &Ends) -> Vec<(Session, Session)> {
    let mut sessions = Vec::new();
    for _ in 0..CONNECTIONS {
        sessions.push(ends.session().await);
    }
    let used: HashSet<_> = sessions.iter().map(|(here, _)| here.connection()).collect();
    assert_eq!(used.len(), CONNECTIONS);
    sessions
}

/// Numbers over all of them, both ways, until told to stop; how many came on the one of which the fewest did.
async fn all_numbers(sessions: &[(Session, Session)], stop: &CancellationToken) -> u64 {
    let there_and_back = sessions.iter().flat_map(|(here, there)| {
        [
            numbers(here, there, stop.clone()),
            numbers(there, here, stop.clone()),
        ]
    });
    let came = join_all(there_and_back).await;
    came.iter().map(|(count, _)| *count).min().unwrap()
}

// One thread: the recorder is that thread's.
#[tokio::test]
async fn eight_connections_carry_sessions_through_a_relay_and_nothing_is_handed_over_while_the_path_stays()
 {
    let counted = Counted::default();
    let _recording = metrics::set_default_local_recorder(&counted.0);
    let ends = ends();
    let _relay = Relay::start(&ends.cluster, "t1", Limits::default());
    ends.cut();
    let sessions = sessions(&ends).await;
    let stop = CancellationToken::new();
    let stopping = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.cancel();
    };
    let all = async { tokio::join!(stopping, all_numbers(&sessions, &stop)) };
    let ((), fewest) = tokio::time::timeout(DEADLINE, all).await.unwrap();
    assert!(fewest > 100, "{fewest}");
    assert_eq!(counted.handed_over(), 0);
}

// One thread: the recorder is that thread's.
#[tokio::test]
async fn sessions_go_on_byte_for_byte_when_another_path_brings_their_packets_to_another_socket() {
    let counted = Counted::default();
    let _recording = metrics::set_default_local_recorder(&counted.0);
    let ends = ends();
    let mut relay = Relay::start(&ends.cluster, "t0", Limits::default());
    ends.cut();
    let sessions = sessions(&ends).await;
    let stop = CancellationToken::new();
    let switching = async {
        // Where the kernel leads a path is chance: of four, three are another socket than before.
        for number in 1.. {
            let before = counted.handed_over();
            let next = Relay::start(&ends.cluster, &format!("t{number}"), Limits::default());
            // Through each, and through both.
            ends.until("the next relay stands by", |views| proved_flows(views) >= 3)
                .await;
            let left = std::mem::replace(&mut relay, next).kill().await;
            ends.cluster.unlist(&format!("t{}", number - 1));
            ends.until("the next relay is taken", |views| {
                views
                    .iter()
                    .any(|view| view.active && crate::transit::via(view.route) != left)
            })
            .await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            if counted.handed_over() > before + 100 {
                break;
            }
        }
        stop.cancel();
    };
    let all = async { tokio::join!(switching, all_numbers(&sessions, &stop)) };
    let ((), fewest) = tokio::time::timeout(DEADLINE, all).await.unwrap();
    let moved = counted.handed_over();
    println!("{fewest} numbers at least, {moved} packets handed over");
    for (here, there) in &sessions {
        question_and_answer(here, there).await;
    }
    let text = counted.0.handle().render();
    assert!(!text.contains(DROPPED), "{text}");
}
