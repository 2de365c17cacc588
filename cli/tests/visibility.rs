//! `wavry mesh` beside real processes on a shaped network: which paths there are and which is in use, when and why
//! another one was taken, and how long packets take to each hop.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Output, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use support::{
    client::echo,
    cluster::{Cluster, own_host},
    output, stderr, wait_for, wavry,
};
use wavry_loadtest::shaper::{Host, Link, Shaper};
use wavry_proto::{
    control::{Node, Role, Roster},
    id::NodeId,
    overlay::{packet::Label, ways},
};

const RELAYS: [&str; 2] = ["transit-a", "transit-b"];

/// How long packets take, one way: to the first relay, from there to the second, and from there to the exit.
const TO_FIRST: Duration = Duration::from_millis(10);
const TO_SECOND: Duration = Duration::from_millis(20);
const TO_EXIT: Duration = Duration::from_millis(5);
/// On a detour.
const FAR: Duration = Duration::from_millis(200);
/// By how much more a round trip may be than its links make it, on a host that has to do other things now and then.
const SLACK: f64 = 15.0;
/// A packet may come out this much early: the shaper's clock ticks in milliseconds.
const EARLY: f64 = 1.5;

fn id(id: &str) -> NodeId {
    id.parse().unwrap()
}

/// The relays, in the order in which the way through both of them has them.
fn in_order() -> [&'static str; 2] {
    let nodes = [("edge", Role::Gateway), ("exit", Role::Relay)];
    let nodes = nodes
        .into_iter()
        .chain(RELAYS.map(|relay| (relay, Role::Relay)));
    let somewhere: SocketAddr = ([192, 0, 2, 1], 1).into();
    let nodes = nodes.map(|(name, role)| Node {
        id: id(name),
        role,
        keys: Vec::new(),
        addresses: vec![somewhere],
        transit: RELAYS
            .contains(&name)
            .then_some(somewhere)
            .into_iter()
            .collect(),
        attached: Vec::new(),
        services: Vec::new(),
        registration: 1,
        leases: Default::default(),
        placement: Default::default(),
    });
    let roster = Roster {
        nodes: nodes.collect(),
        ..Roster::empty("test".parse().unwrap())
    };
    let ways = ways::ways(&roster, &id("edge"), &id("exit"), |_| true);
    match ways[0].hops[0].node.as_str() == RELAYS[0] {
        true => RELAYS,
        false => [RELAYS[1], RELAYS[0]],
    }
}

/// A cluster on a network where the best way is through both relays.
struct Bed {
    cluster: Cluster,
    relays: [&'static str; 2],
    _network: Shaper,
}

impl Bed {
    fn start() -> Self {
        let network = Shaper::start(10).unwrap();
        let host = || network.host().unwrap();
        let (edge, exit, transits) = (host(), host(), [host(), host()]);
        let relays = in_order();

        let mut cluster = Cluster::new();
        cluster.add("open", "echo:", false);
        cluster.add_service_only("other");
        let at = |port| SocketAddr::from((own_host(), port));
        cluster.set("gateway", &format!("mesh_bind = \"{}\"", at(4437)));
        cluster.set("exit", &format!("advertise = [\"{}\"]", exit.address()));
        network.attach(edge, at(4437));
        for ((relay, host), port) in relays.into_iter().zip(transits).zip([4438, 4439]) {
            cluster.add_relay(relay, "other", "echo:", &[]);
            let (listen, advertise) = (at(port), host.address());
            let transit = "[relay.transit]\nlisten = ";
            let table = format!("{transit}\"{listen}\"\nadvertise = [\"{advertise}\"]");
            cluster.set(relay, &table);
            network.attach(host, listen);
        }
        let link = |one: Host, other: Host, delay| network.both(one, other, Link::delayed(delay));
        network.both(edge, exit, Link::blackhole());
        link(edge, transits[0], TO_FIRST);
        link(transits[0], transits[1], TO_SECOND);
        link(transits[1], exit, TO_EXIT);
        link(edge, transits[1], FAR);
        link(transits[0], exit, FAR);
        let cluster = cluster.start();
        network.attach(exit, cluster.relay());
        Self {
            cluster,
            relays,
            _network: network,
        }
    }

    fn ops(&self, node: &str) -> String {
        match node {
            "edge" => self.cluster.ops_address("gateway").to_string(),
            "exit" => self.cluster.ops_address("relay").to_string(),
            relay => self.cluster.metrics_of(relay),
        }
    }

    /// What a command says that asks this node.
    fn mesh(&self, node: &str, arguments: &[&str]) -> Output {
        let ops = self.ops(node);
        output(wavry(&[&["mesh"], arguments, &["--ops", &ops]].concat()))
    }

    fn table(&self, node: &str, arguments: &[&str]) -> String {
        let shown = self.mesh(node, arguments);
        assert!(shown.status.success(), "{}", stderr(&shown));
        String::from_utf8(shown.stdout).unwrap()
    }

    /// The one answer that there is as JSON.
    fn json(&self, node: &str, arguments: &[&str]) -> Value {
        let text = self.table(node, &[arguments, &["--json"]].concat());
        let mut answers: Vec<Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(answers.len(), 1, "{text}");
        answers.remove(0)
    }

    /// What the gateway tells of the exit.
    fn exit(&self) -> Value {
        let mesh = self.json("edge", &["paths", "exit"]);
        mesh["peers"][0].clone()
    }

    /// The path that the gateway sends over.
    fn path_in_use(&self) -> Value {
        let path = self.exit()["paths"][0].clone();
        match path["in_use"] == true {
            true => path["way"].clone(),
            false => Value::Null,
        }
    }
}

/// Round trips to the hops of the path in use, and to the peer, in milliseconds.
fn round_trips(trace: &Value) -> Vec<f64> {
    let path = &trace["paths"][0];
    let hops = path["hops"].as_array().unwrap().iter();
    let hops = hops.map(|hop| &hop["round_trip"]);
    let all = hops.chain([&path["end"]]);
    all.map(|timing| timing["last_ms"].as_f64().unwrap())
        .collect()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

#[tokio::test(flavor = "multi_thread")]
async fn the_path_in_use_is_shown_hop_by_hop_and_another_one_once_a_relay_on_it_is_killed() {
    let mut bed = Bed::start();
    let [first, second] = bed.relays;
    let session = bed.cluster.native().open("/open").await;
    echo(&session, b"through both relays").await.unwrap();

    let through = |relays: &[&str]| json!({ "relays": relays });
    wait_for("the best path is in use", || {
        bed.path_in_use() == through(&[first, second])
    });
    let way = format!(" via {first}, {second} ");
    wait_for("the table has it", || {
        let table = bed.table("edge", &["paths"]);
        let is = |line: &str| {
            let words = [&way, " in use ", " proved "];
            line.starts_with("edge ") && words.iter().all(|word| line.contains(*word))
        };
        assert!(table.contains(" direct, "), "{table}");
        table.lines().any(is)
    });

    // Each hop is as far away as its links make it; never nearer, and soon enough no farther.
    let least = [
        TO_FIRST,
        TO_FIRST + TO_SECOND,
        TO_FIRST + TO_SECOND + TO_EXIT,
    ];
    let least = least.map(|one_way| 2.0 * ms(one_way) - EARLY);
    wait_for("each hop is measured", || {
        let trace = bed.json("edge", &["trace", "exit"]);
        assert!(trace["paths"].as_array().unwrap().len() <= 1, "{trace}");
        if trace["paths"][0]["way"] != through(&[first, second]) {
            return false;
        }
        let taken = round_trips(&trace);
        assert_eq!(taken.len(), 3, "{trace}");
        let farther = |(taken, least): (&f64, &f64)| taken >= least;
        assert!(taken.iter().zip(&least).all(farther), "{trace}");
        let nearer = |(taken, least): (&f64, &f64)| *taken <= least + EARLY + SLACK;
        taken.iter().zip(&least).all(nearer)
    });
    let round_trip = "wavry_transport_overlay_path_round_trip_seconds";
    let measured = || bed.cluster.metric("gateway", round_trip) * 1_000.0;
    wait_for("it is in the metrics", || measured() >= least[2]);
    let reached = bed.cluster.metrics("gateway");
    let reached = reached.contains("wavry_transport_overlay_peers{state=\"reached\"} 1");
    assert!(reached, "{}", bed.cluster.metrics("gateway"));
    // The same by the session's number in the gateway's log, and as a table.
    let trace = bed.json("edge", &["trace", "--session", "1"]);
    assert_eq!(trace["peer"], "exit");
    assert_eq!(trace["session"]["session"], 1);
    let connection = &trace["session"]["connection"];
    let connections = bed.exit()["connections"].as_array().unwrap().clone();
    let on = connections.iter().find(|on| on["number"] == *connection);
    assert_eq!(on.unwrap()["sessions"], 1, "{connections:?}");
    wait_for("a table has each hop", || {
        let table = bed.table("edge", &["trace", "exit"]);
        let hops = ["1", "2", "3"].iter().zip([first, second, "exit"]);
        let mut starts = hops.map(|(hop, node)| format!("{hop:<3}  {node}"));
        starts.all(|start| table.lines().any(|line| line.starts_with(&start)))
    });

    // What flows there are, with their leases; and what the relay says of that.
    let flows = || bed.exit()["flows"].as_array().unwrap().clone();
    wait_for("all ways are open, the far ones too", || {
        let is_open = |flow: &Value| flow["open_seconds"].is_number();
        flows().len() == 3 && flows().iter().all(is_open)
    });
    for flow in flows() {
        assert_eq!(flow["lease"]["state"], "held", "{flow}");
        assert_eq!(flow["hops"][0]["ruling"], "granted", "{flow}");
    }
    assert!(bed.table("edge", &["flows"]).contains(" held "));
    let carried = bed.json(second, &["transit"]);
    let transit = &carried["transit"];
    assert_eq!(
        transit["claimants"],
        json!([{ "node": "edge", "flows": 2 }])
    );
    assert!(transit["packets"].as_u64().unwrap() > 0, "{transit}");
    assert!(bed.table(second, &["transit"]).contains("edge"));
    // The exit knows of the flows only by which relay they come.
    let seen = bed.json("exit", &["paths", "edge"]);
    let seen = seen["peers"][0]["paths"].as_array().unwrap();
    let by = |relay: &str| seen.iter().any(|path| path["way"]["peers_flow"] == relay);
    assert!(by(first) && by(second), "{seen:?}");

    // No id of a flow is told, to nobody.
    assert!(names_a_flow(r#"{"flow":"0123456789ab"}"#));
    for node in ["edge", "exit", first] {
        for path in ["/mesh", "/mesh/trace?peer=exit"] {
            let ops = bed.ops(node);
            let ops = ops.trim_start_matches("http://");
            let ops = ops.trim_end_matches("/metrics");
            let (_, answer) = support::http_get(&format!("http://{ops}{path}"));
            assert!(!names_a_flow(&answer), "{answer}");
        }
    }

    bed.cluster.kill_further(first);
    wait_for("the other relay's path is in use", || {
        bed.path_in_use() == through(&[second])
    });
    echo(&session, b"through the other relay").await.unwrap();
    let exit = bed.exit();
    assert_eq!(exit["last_switch"]["to"], through(&[second]), "{exit}");
    assert_eq!(exit["last_switch"]["cause"], "silent", "{exit}");
    assert!(exit["last_switch"]["from"].is_object(), "{exit}");
    let table = bed.table("edge", &["paths"]);
    assert!(table.contains(", silent "), "{table}");
    wait_for("the other way is traced", || {
        let trace = bed.json("edge", &["trace", "exit"]);
        if trace["paths"][0]["way"] != through(&[second]) {
            return false;
        }
        let taken = round_trips(&trace);
        assert!(taken[0] >= 2.0 * ms(FAR) - EARLY, "{trace}");
        taken.len() == 2
    });
}

/// Whether a word of it could be the id of a flow.
fn names_a_flow(text: &str) -> bool {
    let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.any(|word| word.parse::<Label>().is_ok())
}

#[test]
fn what_is_asked_for_and_not_there_is_named() {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    let cluster = cluster.start();
    let gateway = cluster.ops_address("gateway").to_string();
    let failed = |arguments: &[&str]| {
        let done = output(wavry(&[&["mesh"], arguments].concat()));
        assert!(!done.status.success(), "{arguments:?}");
        stderr(&done)
    };
    let said = failed(&["trace", "nobody", "--ops", &gateway]);
    assert!(said.contains("nobody here wants to reach nobody"), "{said}");
    assert!(said.contains(&gateway), "{said}");
    let said = failed(&["trace", "--session", "77", "--ops", &gateway]);
    assert!(said.contains("there is no session 77 here"), "{said}");
    let said = failed(&["paths", "--limit", "0", "--ops", &gateway]);
    assert!(said.contains("limit from 1 to 1000"), "{said}");
    let master = cluster.ops_address("master").to_string();
    let said = failed(&["flows", "--ops", &master]);
    assert!(said.contains("no part in the mesh"), "{said}");
    // A port that was free a moment ago.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = closed.local_addr().unwrap().to_string();
    drop(closed);
    let said = failed(&["paths", "--ops", &format!("{gateway},{nobody}")]);
    assert!(said.contains(&nobody), "{said}");

    let operator = cluster.operator_token("viewer");
    let nodes = cluster.operate(&operator, &["mesh", "nodes"]);
    assert!(nodes.status.success(), "{}", stderr(&nodes));
    let nodes = String::from_utf8(nodes.stdout).unwrap();
    assert!(nodes.contains(&cluster.relay().to_string()), "{nodes}");
    for node in ["edge", "exit"] {
        assert!(nodes.lines().any(|line| line.starts_with(node)), "{nodes}");
    }
}

/// A command that goes on, until this is dropped.
struct Watching(Child);

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nodes_are_found_by_their_configuration_and_shown_again_and_again() {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    let cluster = cluster.start();
    let at = |name: &str| cluster.directory().join(name).display().to_string();
    let paths = |file: &str| wavry(&["mesh", "paths", "--json", "--config", &at(file)]);
    // It has any port, so that the file does not say which; the environment does.
    let refused = output(paths("gateway.toml"));
    let said = stderr(&refused);
    assert!(!refused.status.success());
    assert!(
        said.contains("gateway.toml") && said.contains("--ops"),
        "{said}"
    );
    let asked = |mut command: std::process::Command, listen: Option<SocketAddr>| {
        command.envs(listen.map(|listen| ("WAVRY_OPS__LISTEN", listen.to_string())));
        let asked = output(command);
        assert!(asked.status.success(), "{}", stderr(&asked));
        serde_json::from_slice::<Value>(&asked.stdout).unwrap()
    };
    let gateway = cluster.ops_address("gateway");
    let told = asked(paths("gateway.toml"), Some(gateway));
    assert_eq!(told[0]["node"], "edge");
    let relay = cluster.ops_address("relay");
    let file = format!("[relay]\n[ops]\nlisten = \"{relay}\"\n");
    fs::write(at("found.toml"), file).unwrap();
    assert_eq!(asked(paths("found.toml"), None)[0]["node"], "exit");

    let ops = format!("{gateway},{relay}");
    let watching = wavry(&["mesh", "paths", "--watch=20ms", "--ops", &ops])
        .stdout(Stdio::piped())
        .spawn();
    let mut watching = Watching(watching.unwrap());
    let shown = BufReader::new(watching.0.stdout.take().unwrap()).lines();
    let mut tables = shown.filter(|line| line.as_ref().unwrap().starts_with("NODE "));
    assert!(tables.nth(2).is_some(), "it ended before the third time");
}
