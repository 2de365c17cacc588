//! What a node tells of its part of the mesh: the JSON at [`MESH`] and [`TRACE`] of its ops listener.
//!
//! Lengths of time are in milliseconds (`_ms`) where they are round trips, and in seconds otherwise; points in time
//! are told as how long ago they are. Neither labels nor ids of flows are in it, not even as hashes: who knows one can
//! put packets on a flow, and each bit of it that is known makes it easier to guess. A flow is told apart from others by its
//! peer and its relays, of which no two have the same.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    id::{Epoch, NodeId},
    overlay::{
        paths::{Cause, Standing},
        round_trip::RoundTrip,
    },
};

/// `GET`: [`Mesh`]. Query: `peer`, for one alone; `limit`, for how many peers and claimants at most.
pub const MESH: &str = "/mesh";
/// `GET`: [`Trace`], measured now. Query: `peer`, or `session` for the peer that a session is with; `all=true` for the
/// paths that stand by as well.
pub const TRACE: &str = "/mesh/trace";

/// Peers, and claimants, in an answer unless it is said how many.
pub const LIMIT: usize = 100;
/// Most of them in an answer.
pub const MAX_LIMIT: usize = 1_000;
/// Longest answer, in bytes: a peer has [`MAX_PATHS`](crate::overlay::paths::MAX_PATHS) paths, four flows and some
/// connections, which is 16 KiB at most.
pub const MAX_LEN: usize = MAX_LIMIT * 16 * 1024;

/// A node's part of the mesh.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mesh {
    /// The node.
    pub node: NodeId,
    /// Of the roster that it acts on.
    pub epoch: Epoch,
    /// Whom it wants to reach or is heard by, by id.
    pub peers: Vec<Peer>,
    /// Peers that are not in it because there are too many.
    pub peers_left_out: usize,
    /// Transit relays through which it is reached, where it is behind NAT.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<Place>,
    /// What it carries for others, where it is a transit relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transit: Option<Transit>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its id.
    pub node: NodeId,
    /// Whether there is a path that carries something.
    pub reached: bool,
    /// Whether this node wants to reach it, and does not only answer.
    pub wanted: bool,
    /// The paths to it, the one in use first.
    pub paths: Vec<Path>,
    /// How often another path was taken, the first one among it, since the peer is looked after.
    pub switches: u64,
    /// The last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_switch: Option<Switch>,
    /// The flows that this node keeps ready to it.
    pub flows: Vec<Flow>,
    /// QUIC connections with it.
    pub connections: Vec<Connection>,
}

/// How packets get to a peer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Straight to this address.
    Direct(SocketAddr),
    /// Through these relays, in this order.
    Relays(Vec<NodeId>),
    /// On a flow that the peer has claimed, through this relay first. Further ones only the peer knows. None where the
    /// roster lists it no more.
    PeersFlow(Option<NodeId>),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(address) => write!(f, "direct, {address}"),
            Self::Relays(relays) => {
                f.write_str("via ")?;
                relays.iter().enumerate().try_for_each(|(at, relay)| {
                    let comma = if at == 0 { "" } else { ", " };
                    write!(f, "{comma}{relay}")
                })
            }
            Self::PeersFlow(Some(first)) => write!(f, "peer's flow, via {first}"),
            Self::PeersFlow(None) => f.write_str("peer's flow"),
        }
    }
}

/// A path to a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Path {
    /// How it goes.
    pub way: Way,
    /// How it does.
    pub standing: Standing,
    /// Whether packets take it.
    pub in_use: bool,
    /// Whether an answer is late.
    pub in_doubt: bool,
    /// The round trip of probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip: Option<Timing>,
    /// Of the last probes, the part that was lost, from 0 to 1.
    pub loss: f32,
}

/// How long an answer takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// The last one, in milliseconds.
    pub last_ms: f64,
    /// Smoothed (RFC 9002, section 5.3), in milliseconds.
    pub smoothed_ms: f64,
    /// How many seconds ago the last one came.
    pub seconds_ago: f64,
}

impl Timing {
    /// As it is to be told now.
    pub fn of(measured: RoundTrip, now: Instant) -> Self {
        Self {
            last_ms: millis(measured.latest),
            smoothed_ms: millis(measured.smoothed),
            seconds_ago: seconds(now.saturating_duration_since(measured.at)),
        }
    }
}

/// Another path was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Switch {
    /// Why.
    pub cause: Cause,
    /// The one before; none before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Way>,
    /// The one that is taken since.
    pub to: Way,
    /// How many seconds ago.
    pub seconds_ago: f64,
}

/// A flow that a node keeps ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// The relays on its way, in their order.
    pub hops: Vec<Hop>,
    /// For how many seconds all relays carry it, unless it is claimed again; none where they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_seconds: Option<f64>,
    /// Its lease.
    pub lease: Lease,
}

/// A relay on a flow's way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hop {
    /// The relay.
    pub relay: NodeId,
    /// Its last verdict: `granted`, `prove`, or why it refused; none where it has not answered yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ruling: Option<String>,
    /// From a claim to its verdict, through the relays before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip: Option<Timing>,
}

/// The lease of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Lease {
    /// There is one.
    Held {
        /// For how many seconds it holds yet.
        expires_in_seconds: u64,
        /// Bits that its flow may carry in a second.
        bits_per_second: u64,
        /// Packets that its flow may carry in a second.
        packets_per_second: u64,
    },
    /// There is none, and it is not claimed before there is.
    Missing,
    /// There is none, as no master answers: it is claimed without.
    Unanswered,
}

/// A QUIC connection with a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// Its number in this process.
    pub number: u64,
    /// Whether this node dialled.
    pub dialled: bool,
    /// Sessions on it.
    pub sessions: usize,
    /// Whether it takes no new ones.
    pub retired: bool,
    /// QUIC's round trip, in milliseconds.
    pub round_trip_ms: f64,
    /// Packets sent.
    pub packets_sent: u64,
    /// Packets that QUIC took for lost.
    pub packets_lost: u64,
    /// Bytes that may be on their way at once.
    pub congestion_window: u64,
}

/// A node's place at a transit relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The relay.
    pub relay: NodeId,
    /// Whether it sends here what comes for the node.
    pub held: bool,
    /// Where it sees the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<SocketAddr>,
}

/// What a transit relay carries.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Transit {
    /// Flows.
    pub flows: usize,
    /// Whose they are, those with the most first.
    pub claimants: Vec<Claimant>,
    /// Claimants that are not in it because there are too many.
    pub claimants_left_out: usize,
    /// Nodes that are attached, by id.
    pub attached: Vec<NodeId>,
    /// Nodes that are attached and not in it because there are too many.
    pub attached_left_out: usize,
    /// Whether no master answers, so that the roster permits flows.
    pub silence: bool,
    /// Whether it leaves.
    pub draining: bool,
    /// Bytes that wait because its link is full.
    pub queued_bytes: usize,
    /// Packets forwarded since it was started.
    pub packets: u64,
    /// Bytes forwarded since it was started.
    pub bytes: u64,
    /// Packets that were not forwarded since it was started, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// A node that has flows through a transit relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimant {
    /// The node.
    pub node: NodeId,
    /// How many.
    pub flows: usize,
}

/// How long packets take to each hop on the way to a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// The node that measured.
    pub node: NodeId,
    /// The peer.
    pub peer: NodeId,
    /// The session that was asked for, and the connection that it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<OnConnection>,
    /// The path in use first, and those that carry something and stand by, where all were asked for. None where no path
    /// carries anything.
    pub paths: Vec<Traced>,
}

/// Where a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnConnection {
    /// Its number in the node's log.
    pub session: u64,
    /// The number of its connection; see [`Connection::number`].
    pub connection: u64,
}

/// A path, hop by hop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Traced {
    /// How it goes.
    pub way: Way,
    /// Whether packets take it.
    pub in_use: bool,
    /// The relays on it; none on a direct path, or where only the peer knows them.
    pub hops: Vec<Hop>,
    /// The round trip to the peer itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Timing>,
}

/// Milliseconds, to the microsecond.
pub fn millis(time: Duration) -> f64 {
    time.as_micros() as f64 / 1_000.0
}

/// Seconds, to the millisecond.
pub fn seconds(time: Duration) -> f64 {
    time.as_millis() as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: &str) -> NodeId {
        id.parse().unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_looks_as_it_is_documented() {
        let timing = Timing {
            last_ms: 10.5,
            smoothed_ms: 11.0,
            seconds_ago: 0.25,
        };
        let through = Way::Relays(vec![id("t1"), id("t2")]);
        let mesh = Mesh {
            node: id("edge"),
            epoch: Epoch(7),
            peers: vec![Peer {
                node: id("exit"),
                reached: true,
                wanted: true,
                paths: vec![Path {
                    way: through.clone(),
                    standing: Standing::Proved,
                    in_use: true,
                    in_doubt: false,
                    round_trip: Some(timing),
                    loss: 0.5,
                }],
                switches: 2,
                last_switch: Some(Switch {
                    cause: Cause::Silent,
                    from: Some(Way::PeersFlow(Some(id("t3")))),
                    to: through,
                    seconds_ago: 3.0,
                }),
                flows: vec![Flow {
                    hops: vec![Hop {
                        relay: id("t1"),
                        ruling: Some("granted".to_owned()),
                        round_trip: Some(timing),
                    }],
                    open_seconds: Some(45.0),
                    lease: Lease::Held {
                        expires_in_seconds: 1800,
                        bits_per_second: 8,
                        packets_per_second: 9,
                    },
                }],
                connections: Vec::new(),
            }],
            peers_left_out: 0,
            places: Vec::new(),
            transit: None,
        };
        let json = serde_json::to_value(&mesh).unwrap();
        let expected = serde_json::json!({
            "node": "edge", "epoch": 7, "peers_left_out": 0,
            "peers": [{
                "node": "exit", "reached": true, "wanted": true, "switches": 2, "connections": [],
                "paths": [{
                    "way": {"relays": ["t1", "t2"]}, "standing": "proved", "in_use": true, "in_doubt": false,
                    "round_trip": {"last_ms": 10.5, "smoothed_ms": 11.0, "seconds_ago": 0.25}, "loss": 0.5,
                }],
                "last_switch": {
                    "cause": "silent", "from": {"peers_flow": "t3"}, "to": {"relays": ["t1", "t2"]},
                    "seconds_ago": 3.0,
                },
                "flows": [{
                    "hops": [{
                        "relay": "t1", "ruling": "granted",
                        "round_trip": {"last_ms": 10.5, "smoothed_ms": 11.0, "seconds_ago": 0.25},
                    }],
                    "open_seconds": 45.0,
                    "lease": {
                        "state": "held", "expires_in_seconds": 1800, "bits_per_second": 8,
                        "packets_per_second": 9,
                    },
                }],
            }],
        });
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_value::<Mesh>(json).unwrap(), mesh);
    }

    #[test]
    fn what_a_later_version_adds_is_passed_over() {
        let json = r#"{"relay":"t1","colour":"green"}"#;
        let hop: Hop = serde_json::from_str(json).unwrap();
        assert_eq!((hop.relay, hop.ruling), (id("t1"), None));
    }
}
