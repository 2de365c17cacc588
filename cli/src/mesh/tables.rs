//! What nodes tell of the mesh, as tables.

use wavry_master::operate::NodeStatus;
use wavry_proto::view::{Flow, Hop, Lease, Mesh, Path, Peer, Timing, Trace, Traced, Transit};

use crate::operate::{say, say_table};

/// Prints what nodes tell.
pub(super) type Tables = fn(&[Mesh]) -> anyhow::Result<()>;

/// A measurement that is older was not answered when it was to be made anew.
const FRESH_SECONDS: f64 = 5.0;

const NODES: [&str; 8] = [
    "ID",
    "ROLE",
    "STATE",
    "HEARD",
    "REGION",
    "REACHED AT",
    "FORWARDS AT",
    "ATTACHED TO",
];

pub(super) fn nodes(nodes: &[NodeStatus]) -> anyhow::Result<()> {
    let row = |node: &NodeStatus| {
        [
            node.id.clone(),
            node.role.clone(),
            node.state.clone(),
            format!("{}s ago", node.heard_seconds_ago),
            node.region.clone().unwrap_or_default(),
            node.addresses.join(" "),
            node.transit.join(" "),
            node.attached.join(" "),
        ]
    };
    say_table(&NODES, &nodes.iter().map(row).collect::<Vec<_>>())
}

const PATHS: [&str; 9] = [
    "NODE", "PEER", "PATH", "USE", "STANDING", "RTT", "LOSS", "HEARD", "SWITCHES",
];

pub(super) fn paths(nodes: &[Mesh]) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for (node, peer) in with_peers(nodes) {
        if peer.paths.is_empty() {
            rows.push(path_row(node, peer, None));
        }
        rows.extend(
            peer.paths
                .iter()
                .map(|path| path_row(node, peer, Some(path))),
        );
    }
    say_table(&PATHS, &rows)?;
    say_left_out(nodes)
}

/// What concerns the peer stands beside the path in use; where there is none, beside the first.
fn path_row(node: &Mesh, peer: &Peer, path: Option<&Path>) -> [String; 9] {
    let is_first = path.is_none_or(|path| peer.paths.first() == Some(path));
    let timing = path.and_then(|path| path.round_trip);
    let usage = path.map_or("", |path| match (path.in_use, path.in_doubt) {
        (true, true) => "in doubt",
        (true, false) => "in use",
        (false, _) => "",
    });
    [
        node.node.to_string(),
        peer.node.to_string(),
        path.map_or("none".to_owned(), |path| path.way.to_string()),
        usage.to_owned(),
        path.map_or("", |path| path.standing.as_str()).to_owned(),
        timing.map_or(String::new(), |timing| ms(timing.smoothed_ms)),
        path.map_or(String::new(), |path| format!("{:.0} %", path.loss * 100.0)),
        timing.map_or(String::new(), |timing| ago(timing.seconds_ago)),
        if is_first {
            switches(peer)
        } else {
            String::new()
        },
    ]
}

fn switches(peer: &Peer) -> String {
    let last = peer.last_switch.as_ref();
    let last = last.map(|last| format!(", {} {}", last.cause.as_str(), ago(last.seconds_ago)));
    format!("{}{}", peer.switches, last.unwrap_or_default())
}

const FLOWS: [&str; 8] = [
    "NODE",
    "PEER",
    "RELAYS",
    "OPEN FOR",
    "LEASE",
    "EXPIRES IN",
    "BITS/S",
    "PACKETS/S",
];

pub(super) fn flows(nodes: &[Mesh]) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for (node, peer) in with_peers(nodes) {
        rows.extend(peer.flows.iter().map(|flow| flow_row(node, peer, flow)));
    }
    say_table(&FLOWS, &rows)?;
    say_left_out(nodes)
}

fn flow_row(node: &Mesh, peer: &Peer, flow: &Flow) -> [String; 8] {
    let hops: Vec<_> = flow.hops.iter().map(ruled).collect();
    let [state, expires, bits, packets] = match &flow.lease {
        Lease::Held {
            expires_in_seconds,
            bits_per_second,
            packets_per_second,
        } => [
            "held".to_owned(),
            format!("{expires_in_seconds}s"),
            bits_per_second.to_string(),
            packets_per_second.to_string(),
        ],
        Lease::Missing => ["missing", "", "", ""].map(str::to_owned),
        Lease::Unanswered => ["no master answers", "", "", ""].map(str::to_owned),
    };
    [
        node.node.to_string(),
        peer.node.to_string(),
        hops.join(", "),
        flow.open_seconds
            .map_or("not open".to_owned(), |open| format!("{open:.0}s")),
        state,
        expires,
        bits,
        packets,
    ]
}

/// A relay, and what it said unless it carries the flow.
fn ruled(hop: &Hop) -> String {
    match hop.ruling.as_deref() {
        Some("granted") => hop.relay.to_string(),
        Some(ruling) => format!("{} ({ruling})", hop.relay),
        None => format!("{} (no answer yet)", hop.relay),
    }
}

const TRANSIT: [&str; 9] = [
    "NODE", "FLOWS", "ATTACHED", "PACKETS", "BYTES", "QUEUED", "SILENCE", "LEAVES", "DROPPED",
];

const CLAIMANTS: [&str; 3] = ["NODE", "CLAIMANT", "FLOWS"];

pub(super) fn transit(nodes: &[Mesh]) -> anyhow::Result<()> {
    let relays = || {
        let relays = nodes.iter();
        relays.filter_map(|node| Some((node, node.transit.as_ref()?)))
    };
    let rows: Vec<_> = relays()
        .map(|(node, transit)| transit_row(node, transit))
        .collect();
    say_table(&TRANSIT, &rows)?;
    let mut claimants = Vec::new();
    for (node, transit) in relays() {
        claimants.extend(transit.claimants.iter().map(|claimant| {
            [
                node.node.to_string(),
                claimant.node.to_string(),
                claimant.flows.to_string(),
            ]
        }));
    }
    say("")?;
    say_table(&CLAIMANTS, &claimants)?;
    for (node, transit) in relays().filter(|(_, transit)| transit.claimants_left_out > 0) {
        let more = transit.claimants_left_out;
        say(&format!("{}: {more} more claimants (--limit)", node.node))?;
    }
    Ok(())
}

fn transit_row(node: &Mesh, transit: &Transit) -> [String; 9] {
    let dropped = transit.dropped.iter();
    let dropped: Vec<_> = dropped
        .map(|(reason, packets)| format!("{reason} {packets}"))
        .collect();
    let attached = transit.attached.len() + transit.attached_left_out;
    let yes = |is: bool| if is { "yes" } else { "" }.to_owned();
    [
        node.node.to_string(),
        transit.flows.to_string(),
        attached.to_string(),
        transit.packets.to_string(),
        transit.bytes.to_string(),
        transit.queued_bytes.to_string(),
        yes(transit.silence),
        yes(transit.draining),
        dropped.join(", "),
    ]
}

const PLACES: [&str; 4] = ["NODE", "RELAY", "HELD", "SEEN AT"];

pub(super) fn places(nodes: &[Mesh]) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for node in nodes {
        rows.extend(node.places.iter().map(|place| {
            [
                node.node.to_string(),
                place.relay.to_string(),
                if place.held { "yes" } else { "no" }.to_owned(),
                place.seen.map_or(String::new(), |seen| seen.to_string()),
            ]
        }));
    }
    say_table(&PLACES, &rows)
}

/// Traces, one below the other.
pub(super) fn traces(traces: &[Trace]) -> anyhow::Result<()> {
    for (at, trace) in traces.iter().enumerate() {
        if at > 0 {
            say("")?;
        }
        let session = trace.session.map(|on| {
            let (session, connection) = (on.session, on.connection);
            format!(", session {session} on connection {connection}")
        });
        let session = session.unwrap_or_default();
        say(&format!("{} to {}{session}", trace.node, trace.peer))?;
        if trace.paths.is_empty() {
            say("no path carries anything")?;
        }
        for path in &trace.paths {
            let usage = if path.in_use { "in use" } else { "stands by" };
            say(&format!("{}: {usage}", path.way))?;
            say_table(&HOPS, &hop_rows(trace, path))?;
        }
    }
    Ok(())
}

const HOPS: [&str; 5] = ["HOP", "NODE", "LAST", "SMOOTHED", "ADDED"];

/// A row for each relay, and one for the peer. What did not answer has a star.
fn hop_rows(trace: &Trace, path: &Traced) -> Vec<[String; 5]> {
    let relays = path.hops.iter().map(|hop| (&hop.relay, hop.round_trip));
    let hops = relays.chain([(&trace.peer, path.end)]);
    let mut before = 0.0;
    let row = |(at, (node, timing)): (usize, (&_, Option<Timing>))| {
        let number = (at + 1).to_string();
        let node = format!("{node}");
        match timing.filter(|timing| timing.seconds_ago < FRESH_SECONDS) {
            Some(timing) => {
                let added = timing.last_ms - before;
                before = timing.last_ms;
                [
                    number,
                    node,
                    ms(timing.last_ms),
                    ms(timing.smoothed_ms),
                    ms(added),
                ]
            }
            None => [number, node, "*".to_owned(), String::new(), String::new()],
        }
    };
    let hops: Vec<(_, Option<Timing>)> = hops.collect();
    hops.into_iter().enumerate().map(row).collect()
}

fn with_peers(nodes: &[Mesh]) -> impl Iterator<Item = (&Mesh, &Peer)> {
    let nodes = nodes.iter();
    nodes.flat_map(|node| node.peers.iter().map(move |peer| (node, peer)))
}

fn say_left_out(nodes: &[Mesh]) -> anyhow::Result<()> {
    for node in nodes.iter().filter(|node| node.peers_left_out > 0) {
        let more = node.peers_left_out;
        say(&format!("{}: {more} more peers (--limit)", node.node))?;
    }
    Ok(())
}

fn ms(milliseconds: f64) -> String {
    format!("{milliseconds:.1} ms")
}

/// How long ago, as short as it is of use.
fn ago(seconds: f64) -> String {
    match seconds {
        ..1.0 => format!("{:.0} ms ago", seconds * 1_000.0),
        1.0..120.0 => format!("{seconds:.0} s ago"),
        120.0..7_200.0 => format!("{:.0} min ago", seconds / 60.0),
        _ => format!("{:.0} h ago", seconds / 3_600.0),
    }
}

#[cfg(test)]
mod tests {
    use wavry_proto::{
        overlay::paths::{Cause, Standing},
        view::{Switch, Way},
    };

    use super::*;

    fn timing(last_ms: f64, seconds_ago: f64) -> Option<Timing> {
        Some(Timing {
            last_ms,
            smoothed_ms: last_ms + 1.0,
            seconds_ago,
        })
    }

    fn hop(relay: &str, round_trip: Option<Timing>) -> Hop {
        Hop {
            relay: relay.parse().unwrap(),
            ruling: Some("granted".to_owned()),
            round_trip,
        }
    }

    #[test]
    fn what_each_hop_adds_is_what_it_takes_longer_than_the_last_one_that_answered() {
        let path = Traced {
            way: Way::Relays(Vec::new()),
            in_use: true,
            hops: vec![
                hop("t1", timing(20.0, 0.1)),
                hop("t2", timing(60.0, 30.0)),
                hop("t3", None),
            ],
            end: timing(75.04, 0.0),
        };
        let trace = Trace {
            node: "edge".parse().unwrap(),
            peer: "exit".parse().unwrap(),
            session: None,
            paths: Vec::new(),
        };
        let rows = hop_rows(&trace, &path);
        let expected = [
            ["1", "t1", "20.0 ms", "21.0 ms", "20.0 ms"],
            ["2", "t2", "*", "", ""],
            ["3", "t3", "*", "", ""],
            ["4", "exit", "75.0 ms", "76.0 ms", "55.0 ms"],
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn a_peer_without_a_path_has_a_row_and_one_with_some_tells_of_its_last_change_once() {
        let path = |address: &str, in_use| Path {
            way: Way::Direct(address.parse().unwrap()),
            standing: Standing::Proved,
            in_use,
            in_doubt: false,
            round_trip: timing(4.0, 0.5),
            loss: 0.25,
        };
        let mut peer = Peer {
            node: "exit".parse().unwrap(),
            reached: true,
            wanted: true,
            paths: vec![path("192.0.2.1:1", true), path("192.0.2.2:1", false)],
            switches: 2,
            last_switch: Some(Switch {
                cause: Cause::Silent,
                from: None,
                to: Way::PeersFlow(None),
                seconds_ago: 90.0,
            }),
            flows: Vec::new(),
            connections: Vec::new(),
        };
        let node = Mesh {
            node: "edge".parse().unwrap(),
            epoch: wavry_proto::id::Epoch(1),
            peers: Vec::new(),
            peers_left_out: 0,
            places: Vec::new(),
            transit: None,
        };
        let rows: Vec<_> = peer
            .paths
            .iter()
            .map(|path| path_row(&node, &peer, Some(path)))
            .collect();
        let (first, second) = (&rows[0], &rows[1]);
        assert_eq!(
            first[2..],
            [
                "direct, 192.0.2.1:1",
                "in use",
                "proved",
                "5.0 ms",
                "25 %",
                "500 ms ago",
                "2, silent 90 s ago"
            ]
        );
        assert_eq!(second[3], "");
        assert_eq!(second[8], "");
        peer.paths.clear();
        assert_eq!(path_row(&node, &peer, None)[2], "none");
    }

    #[test]
    fn a_relay_that_refuses_a_flow_is_shown_with_its_reason() {
        let mut refused = hop("t1", None);
        refused.ruling = Some("full".to_owned());
        assert_eq!(ruled(&refused), "t1 (full)");
        assert_eq!(ruled(&hop("t2", None)), "t2");
    }
}
