//! Gateways and relays rotate their identities, while sessions go on.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

mod support;

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use bytes::Bytes;
use serde_json::Value;
use support::{
    DEADLINE,
    client::{Ask, Native, echo, within},
    cluster::Cluster,
    output, signal, stderr,
};
use tokio::{sync::watch, task::JoinSet, time::interval};
use wavry_credentials::{
    identity::{Identity, MeshTls},
    source,
};
use wavry_proto::{
    control::{Node, Role, Roster},
    id::{Epoch, NodeId, PublicKey},
    overlay::paths::{Standing, View},
    session::close_code,
};
use wavry_transport::{
    mesh,
    session::{Closed, Session as _},
    webtransport::Session,
};

/// Live sessions while identities rotate.
const SESSIONS: usize = 200;
/// Datagrams that each session sends and has sent back, one every [`PACE`].
const DATAGRAMS: u32 = 100;
const PACE: Duration = Duration::from_millis(150);
/// Within which what was revoked is closed everywhere.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);
/// Within which an identity is refused once its overlap is over.
const REFUSED_WITHIN: Duration = Duration::from_secs(60);

/// A cluster in which rotations take seconds, with an overlap of so many.
fn cluster(overlap: &str) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    cluster.set("master", "heartbeat_interval = \"100ms\"");
    cluster.set("master", "suspect_after = \"5s\"");
    cluster.set("master", &format!("identity_overlap = {overlap:?}"));
    cluster.set("gateway", "sessions_per_ip = 1000");
    cluster
}

/// The identities of a node as the master knows them, by state.
fn identities(cluster: &Cluster, operator: &Path, role: &str, node: &str) -> Vec<(String, String)> {
    let shown = cluster.operate(operator, &[role, "identity", "show", node, "--json"]);
    assert!(shown.status.success(), "{}", stderr(&shown));
    let node: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let identities = node["identities"].as_array().unwrap().iter();
    let text = |identity: &Value, field: &str| identity[field].as_str().unwrap().to_owned();
    let mut identities: Vec<_> = identities
        .map(|identity| (text(identity, "state"), text(identity, "key")))
        .collect();
    identities.sort();
    identities
}

fn present(identities: &[(String, String)]) -> String {
    let mut present = identities.iter().filter(|(state, _)| state == "present");
    present.next().expect("one is shown").1.clone()
}

/// Waits until the master lists only one identity for a node, which is another than `before`.
fn wait_until_rotated(
    cluster: &Cluster,
    operator: &Path,
    (role, node): (&str, &str),
    before: &str,
) -> String {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let identities = identities(cluster, operator, role, node);
        if identities.len() == 1 && present(&identities) != before {
            return present(&identities);
        }
        assert!(Instant::now() < deadline, "{node} has {identities:?}");
    }
}

/// Sends [`DATAGRAMS`] on every session and counts those that come back.
async fn traffic(sessions: Vec<Arc<Session>>) -> usize {
    let mut all = JoinSet::new();
    for session in sessions {
        all.spawn(async move {
            let sending = async {
                let mut tick = interval(PACE);
                for number in 0..DATAGRAMS {
                    tick.tick().await;
                    let datagram = Bytes::copy_from_slice(&number.to_be_bytes());
                    session.send_datagram(datagram).unwrap();
                }
                // For those under way.
                tokio::time::sleep(Duration::from_secs(2)).await;
            };
            let mut back = HashSet::new();
            let receiving = async {
                loop {
                    back.insert(session.recv_datagram().await.unwrap());
                }
            };
            tokio::select! {
                () = sending => {}
                () = receiving => {}
            }
            back.len()
        });
    }
    all.join_all().await.into_iter().sum()
}

/// Somebody who has the file of an identity, and dials the relay.
struct Holder {
    mesh: mesh::Endpoint,
    relay: NodeId,
    _roster: watch::Sender<Arc<Roster>>,
}

impl Holder {
    /// The file is of `node`.
    fn of(node: &str, file: &Path, cluster: &Cluster, relays_key: &str) -> Self {
        let identity = source::read_as("identity_key", Some(file), Identity::read).unwrap();
        let mut roster = Roster::empty("wavry".parse().unwrap());
        roster.epoch = Epoch(1);
        roster.nodes.push(Node {
            id: "exit".parse().unwrap(),
            role: Role::Relay,
            keys: vec![relays_key.parse::<PublicKey>().unwrap()],
            addresses: vec![cluster.relay()],
            transit: Vec::new(),
            attached: Vec::new(),
            services: Vec::new(),
            registration: 0,
            leases: Default::default(),
            placement: Default::default(),
        });
        let (sender, roster) = watch::channel(Arc::new(roster));
        let MeshTls {
            server,
            client,
            key,
            authenticator,
        } = identity.mesh_tls(roster.clone()).unwrap();
        let config = mesh::Config {
            node: node.parse().unwrap(),
            server_tls: server,
            client_tls: client,
            key,
            authenticator,
            roster,
            leases: mesh::Leases::none(),
            limits: mesh::Limits::default(),
        };
        let socket = mesh::bind(([127, 0, 0, 1], 0).into()).unwrap();
        Self {
            mesh: mesh::Endpoint::new(socket, config).unwrap(),
            relay: "exit".parse().unwrap(),
            _roster: sender,
        }
    }

    /// Whether the relay answers what its identity authenticates. It gets no further: what the relay sends to
    /// the node goes where the node itself is.
    async fn is_believed(&self) -> bool {
        let is_proved = |view: &View| view.standing == Standing::Proved;
        let proved = async {
            while !self.mesh.paths(&self.relay).iter().any(is_proved) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = proved => true,
            reached = self.mesh.reach(&self.relay) => reached.is_ok(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn identities_rotate_under_200_live_sessions_and_nothing_is_lost_and_the_old_ones_are_refused()
 {
    let cluster = cluster("3s").start();
    let operator = cluster.operator_token("operator");
    let native = cluster.native();
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(Arc::new(native.open("/open").await));
    }
    let sent = SESSIONS * DATAGRAMS as usize;
    let without = traffic(sessions.clone()).await;

    let nodes = [("relay", "exit"), ("gateway", "edge")];
    let before = nodes.map(|(role, node)| present(&identities(&cluster, &operator, role, node)));
    let at = |path: &str| cluster.directory().join(path);
    let old = Holder::of("edge", &at("edge/identity.key"), &cluster, &before[0]);
    assert!(
        old.is_believed().await,
        "the identity is accepted while it is listed"
    );
    drop(old);

    let carrying = tokio::spawn(traffic(sessions.clone()));
    for (role, node) in nodes {
        let rotate = [role, "identity", "rotate", node, "--wait", "30s", "--json"];
        let done = cluster.operate(&operator, &rotate);
        assert!(done.status.success(), "{}", stderr(&done));
        let shown: Value = serde_json::from_slice(&done.stdout).unwrap();
        let states = shown["identities"].as_array().unwrap().iter();
        let mut states: Vec<_> = states.map(|identity| identity["state"].as_str()).collect();
        states.sort_unstable();
        assert_eq!(states, [Some("before"), Some("present")], "both are listed");
        let until = shown["identities"].as_array().unwrap().iter();
        let until = until
            .filter_map(|identity| identity["until"].as_u64())
            .max();
        assert!(until.unwrap() >= UNIX_EPOCH.elapsed().unwrap().as_secs());
    }
    let more = native.open("/open").await;
    echo(&more, b"opened while both are listed").await.unwrap();
    sessions.push(Arc::new(more));
    let after = [0, 1].map(|at| wait_until_rotated(&cluster, &operator, nodes[at], &before[at]));
    let over = Instant::now();
    let by_old = async {
        // A new endpoint each time: no path that it has is used again.
        while Holder::of("edge", &at("edge/identity.key"), &cluster, &after[0])
            .is_believed()
            .await
        {}
    };
    within(REFUSED_WITHIN, "the refusal", by_old).await;
    println!("refused {:?} after it left the roster", over.elapsed());
    let other = Holder::of("edge", &at("exit/identity.key"), &cluster, &after[0]);
    assert!(
        !other.is_believed().await,
        "nor is another node's identity under its name"
    );
    assert!(
        !carrying.is_finished(),
        "the rotation took longer than the traffic"
    );
    let with = carrying.await.unwrap();

    println!("came back: {without} of {sent} without a rotation, {with} with two");
    assert!(
        with >= without,
        "{with} came back, {without} without a rotation"
    );
    for session in &sessions {
        echo(session, b"still there").await.unwrap();
    }
    echo(&native.open("/open").await, b"opened after")
        .await
        .unwrap();
    for (role, _) in nodes {
        let of = |name: &str| cluster.metric(role, &format!("wavry_node_identity_{name}"));
        assert_eq!(of("rotations_total"), 1.0);
        assert_eq!(of("foreign_keys"), 0.0);
        assert!(of("expiry_timestamp_seconds") > of("since_timestamp_seconds"));
    }

    // Connections that identities now gone made end with their sessions.
    drop(sessions);
    let deadline = Instant::now() + DEADLINE;
    let connections = || cluster.metric("gateway", "wavry_transport_mesh_connections");
    while connections() > 2.0 {
        assert!(
            Instant::now() < deadline,
            "{} connections are left",
            connections()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_identity_was_rotated_is_revoked_within_five_seconds() {
    let cluster = cluster("3s").start();
    let operator = cluster.operator_token("operator");
    let native = cluster.native();
    let session = native.open("/open").await;
    echo(&session, b"by the first identity").await.unwrap();
    let first = present(&identities(&cluster, &operator, "relay", "exit"));
    let done = cluster.operate(&operator, &["relay", "identity", "rotate", "exit"]);
    assert!(done.status.success(), "{}", stderr(&done));
    wait_until_rotated(&cluster, &operator, ("relay", "exit"), &first);
    echo(&session, b"outlives it").await.unwrap();

    let asked = Instant::now();
    let done = cluster.operate(&operator, &["node", "revoke", "exit"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let closed = within(REVOKED_WITHIN, "the close", session.closed()).await;
    println!("closed {:?} after the command began", asked.elapsed());
    assert!(
        matches!(&closed, Closed::Peer(close) if close.code == close_code::RELAY_LOST),
        "{closed}"
    );
    assert!(asked.elapsed() < REVOKED_WITHIN);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_identity_waits_for_a_node_that_does_not_know_it_also_over_a_kill() {
    let mut cluster = cluster("3s").start();
    let operator = cluster.operator_token("operator");
    let of_relay = |cluster: &Cluster| identities(cluster, &operator, "relay", "exit");
    let first = present(&of_relay(&cluster));
    let refused = cluster.operate(&operator, &["gateway", "identity", "rotate", "exit"]);
    assert!(
        stderr(&refused).contains("exit is a relay"),
        "{}",
        stderr(&refused)
    );

    let gateway = cluster.pid("gateway");
    signal(gateway, "STOP");
    let rotate = ["relay", "identity", "rotate", "exit", "--wait", "2s"];
    let late = cluster.operate(&operator, &rotate);
    assert!(stderr(&late).contains("--wait"), "{}", stderr(&late));
    let states = |cluster: &Cluster| {
        let identities = of_relay(cluster).into_iter();
        identities.map(|(state, _)| state).collect::<Vec<_>>()
    };
    assert_eq!(states(&cluster), ["next", "present"]);
    signal(cluster.pid("relay"), "KILL");
    let relay = cluster.kill_relay();
    cluster.start_relay(relay);
    assert_eq!(states(&cluster), ["next", "present"]);
    assert_eq!(present(&of_relay(&cluster)), first);

    signal(gateway, "CONT");
    wait_until_rotated(&cluster, &operator, ("relay", "exit"), &first);
    carries(&cluster.native()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_present_identity_is_missing_does_not_start_and_says_which_file() {
    let mut cluster = cluster("3s").start();
    let operator = cluster.operator_token("operator");
    let first = present(&identities(&cluster, &operator, "relay", "exit"));
    let done = cluster.operate(&operator, &["relay", "identity", "rotate", "exit"]);
    assert!(done.status.success(), "{}", stderr(&done));
    wait_until_rotated(&cluster, &operator, ("relay", "exit"), &first);

    let relay = cluster.kill_relay();
    let state = cluster.directory().join("exit/state");
    let kept = key_files(&state);
    assert_eq!(kept.len(), 1, "{kept:?}");
    let elsewhere = cluster.directory().join("elsewhere");
    fs::rename(&kept[0], &elsewhere).unwrap();
    let mut again = Command::new(relay.get_program());
    again.args(relay.get_args()).envs(variables(&relay));
    let refused = output(again);
    assert!(!refused.status.success());
    let text = stderr(&refused);
    assert!(text.contains(kept[0].to_str().unwrap()), "{text}");
    assert!(text.contains("provision the node anew"), "{text}");

    fs::rename(&elsewhere, &kept[0]).unwrap();
    cluster.start_relay(relay);
    carries(&cluster.native()).await;
}

/// How often the relay is killed.
const KILLS: u32 = 16;
/// Each of these calls takes so long, so that kills fall into every one of them.
const SLOWLY: [&str; 7] = [
    "-f",
    "-qq",
    "-o",
    "/dev/null",
    "-e",
    "trace=fsync,rename,unlink",
    "-einject=fsync,rename,unlink:delay_enter=60000",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_killed_at_any_step_of_a_rotation_works_again() {
    let mut cluster = cluster("1s");
    // It rotates all the time.
    cluster.set("relay", "identity_lifetime = \"1s\"");
    let mut cluster = cluster.start();
    let operator = cluster.operator_token("operator");
    let native = cluster.native();
    let state = cluster.directory().join("exit/state");
    let first = record(&state)["keys"]["present"].clone();
    let mut seen = HashSet::new();
    for kill in 0..KILLS {
        signal(cluster.pid("relay"), "KILL");
        let keys = &record(&state)["keys"];
        let is_there = |name: &str| !keys[name].is_null();
        seen.insert((
            is_there("next"),
            is_there("before"),
            key_files(&state).len(),
        ));
        let relay = cluster.kill_relay();
        // What it is started with is whole, and the master takes it.
        cluster.start_relay(slowly(&relay));
        carries(&native).await;
        // Not to wait for anything, but to be killed somewhere else each time.
        tokio::time::sleep(Duration::from_millis(u64::from(kill) * 61)).await;
    }
    println!("killed with (next, before, files of keys): {seen:?}");
    assert!(
        seen.len() >= 3,
        "it was killed in the same place always: {seen:?}"
    );
    signal(cluster.pid("relay"), "KILL");
    let relay = cluster.kill_relay();
    cluster.start_relay(relay);
    let now = present(&identities(&cluster, &operator, "relay", "exit"));
    assert_ne!(Value::String(now.clone()), first, "it never rotated");
    let deadline = Instant::now() + DEADLINE;
    while present(&identities(&cluster, &operator, "relay", "exit")) == now {
        assert!(Instant::now() < deadline, "it does not rotate any more");
    }
    carries(&native).await;
    let kept = key_files(&state);
    assert!(kept.len() <= 3, "keys of no use are left: {kept:?}");
}

/// A session reaches the relay, once the gateway has noticed that the one before it is gone.
async fn carries(native: &Native) {
    let deadline = Instant::now() + DEADLINE;
    let session = loop {
        let asked = Ask {
            path: "/open",
            ..Ask::default()
        };
        match native.ask(asked).await {
            Ok((session, _)) => break session,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    echo(&session, b"it works").await.unwrap();
}

/// The same command, as a disk would have it that takes its time.
fn slowly(command: &Command) -> Command {
    let mut slow = Command::new("strace");
    slow.args(SLOWLY)
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear()
        .envs(std::env::vars_os())
        .envs(variables(command));
    slow
}

/// The variables that a command sets.
fn variables(command: &Command) -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
    let variables = command.get_envs();
    variables
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect()
}

/// What a node keeps of which identities it has.
fn record(state: &Path) -> Value {
    let text = fs::read(state.join("identity.json")).unwrap();
    serde_json::from_slice(&text).expect("it is whole at any time")
}

/// The files of keys that a node made, those that were being written included.
fn key_files(state: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(state)
        .unwrap()
        .map(|file| file.unwrap().path());
    files
        .filter(|file| {
            let name = file.file_name().unwrap().to_str().unwrap();
            name.trim_start_matches('.').starts_with("identity-")
        })
        .collect()
}
