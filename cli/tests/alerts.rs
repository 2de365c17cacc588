//! Debian's Prometheus watches a gateway whose certificate runs out, and Debian's Alertmanager hears of it; and it
//! answers what the board of the mesh asks.

#[path = "../../credentials/tests/pebble/address.rs"]
mod address;
mod support;

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use address::free_address;
use serde_json::Value;
use support::{DEADLINE, cluster::Cluster};
use time::OffsetDateTime;
use wavry_credentials::source;

/// One of them, until it is dropped.
struct Peer(Child);

impl Peer {
    fn start(name: &str, arguments: &[String]) -> Self {
        let peers = std::env::var_os("WAVRY_PEERS");
        let peers = peers.expect("WAVRY_PEERS is not set: run ./scripts/test.sh");
        let place = Path::new(&peers).join("prometheus");
        let program = place.join("usr/bin").join(name);
        let child = Command::new(&program)
            .args(arguments)
            .current_dir(place)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap_or_else(|error| {
            panic!(
                "{}, which scripts/test.sh installs, does not start: {error}",
                program.display()
            )
        }))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A certificate that was made for two weeks and has half a day left.
fn expire_soon(directory: &Path) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = rcgen::CertificateParams::new(names).expect("names");
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::from_secs(13 * 24 * 60 * 60);
    params.not_after = now + Duration::from_secs(12 * 60 * 60);
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    let at = |name: &str| directory.join(name);
    source::write_public(&at("gateway.crt"), certificate.as_bytes()).expect("written");
    source::write_private(&at("gateway.key"), key.serialize_pem().as_bytes()).expect("written");
}

#[test]
fn a_certificate_that_is_about_to_expire_is_heard_of_at_alertmanager() {
    let mut cluster = Cluster::new();
    cluster.add("echo", "echo:", false);
    expire_soon(cluster.directory());
    let cluster = cluster.start();
    let directory = cluster.directory();
    let at = |name: &str| directory.join(name).display().to_string();

    // The rules as they are shipped, but for how long something must be so before it is told of.
    let rules = include_str!("../../deploy/prometheus/certificates.rules.yml");
    let rules: String = rules
        .lines()
        .map(|line| match line.trim_start().strip_prefix("for:") {
            Some(_) => "        for: 1s\n".to_owned(),
            None => format!("{line}\n"),
        })
        .collect();
    assert!(rules.contains("for: 1s"));
    fs::write(at("rules.yml"), rules).unwrap();

    let (prometheus, alertmanager) = (free_address(), free_address());
    let ops = cluster.ops_address("gateway");
    let config = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{:?}]\n\
         scrape_configs:\n- job_name: wavry\n  static_configs: [{{targets: [\"{ops}\"]}}]\n\
         alerting:\n  alertmanagers:\n  - static_configs: [{{targets: [\"{alertmanager}\"]}}]\n",
        at("rules.yml")
    );
    fs::write(at("prometheus.yml"), config).unwrap();
    let config = "route: {receiver: nobody, group_wait: 0s}\nreceivers: [{name: nobody}]\n";
    fs::write(at("alertmanager.yml"), config).unwrap();
    let _alertmanager = Peer::start(
        "prometheus-alertmanager",
        &[
            format!("--config.file={}", at("alertmanager.yml")),
            format!("--storage.path={}", at("alertmanager")),
            format!("--web.listen-address={alertmanager}"),
            "--cluster.listen-address=".to_owned(),
        ],
    );
    let _prometheus = Peer::start(
        "prometheus",
        &[
            format!("--config.file={}", at("prometheus.yml")),
            format!("--storage.tsdb.path={}", at("prometheus")),
            format!("--web.listen-address={prometheus}"),
        ],
    );

    let heard = wait_for_alerts(
        alertmanager,
        &[
            "WavryCertificateExpiresInADay",
            "WavryCertificateExpiresInAWeek",
        ],
    );
    let day = &heard["WavryCertificateExpiresInADay"];
    assert_eq!(day["labels"]["severity"], "critical");
    assert_eq!(day["labels"]["source"], "file");
    assert_eq!(day["labels"]["instance"], ops.to_string());
    let said = day["annotations"]["summary"].as_str().unwrap();
    assert!(
        said.contains("expires in 11h 59m") || said.contains("expires in 12h"),
        "{said}"
    );
    // Nobody obtains this one, and nothing fails.
    let others = [
        "WavryCertificateNotRenewed",
        "WavryCertificateRenewalFailing",
    ];
    assert!(
        others.iter().all(|name| heard.get(*name).is_none()),
        "{heard:?}"
    );
}

/// Panels of the board that have something to show of a mesh that is well and has a transit relay.
const SHOWN: [&str; 12] = [
    "Peers",
    "Paths by standing",
    "Round trip of the path in use",
    "Loss on the path in use",
    "Changes of path, by cause",
    "Probes",
    "Flows kept ready",
    "Leases",
    "Forwarded",
    "Flows carried",
    "Claims",
    "Connections and sessions",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_answers_what_each_panel_of_the_mesh_board_asks() {
    let mut cluster = Cluster::new();
    cluster.add("echo", "echo:", false);
    cluster.add_service_only("other");
    cluster.add_relay("transit-a", "other", "echo:", &[]);
    cluster.set("further", "[relay.transit]\nlisten = \"127.0.0.1:0\"");
    let cluster = cluster.start();
    // Who has no session with an exit wants no way to it.
    let client = cluster.native();
    let _session = client.open("/echo").await;
    let at = |name: &str| cluster.directory().join(name).display().to_string();
    let transit = cluster.metrics_of("transit-a");
    let transit = transit
        .trim_start_matches("http://")
        .trim_end_matches("/metrics");
    let targets = ["gateway", "relay"].map(|role| cluster.ops_address(role).to_string());
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: wavry\n  \
         static_configs: [{{targets: [{:?}, {:?}, {transit:?}]}}]\n",
        targets[0], targets[1]
    );
    fs::write(at("prometheus.yml"), config).unwrap();
    let prometheus = free_address();
    let _prometheus = Peer::start(
        "prometheus",
        &[
            format!("--config.file={}", at("prometheus.yml")),
            format!("--storage.tsdb.path={}", at("prometheus")),
            format!("--web.listen-address={prometheus}"),
        ],
    );

    let board = include_str!("../../deploy/grafana/mesh.json");
    let board: Value = serde_json::from_str(board).unwrap();
    let mut asked = Vec::new();
    for panel in board["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            // What Grafana puts there.
            let expression = expression
                .replace("$instance", ".*")
                .replace("$__rate_interval", "1m");
            asked.push((title, expression));
        }
    }
    let titles = asked.iter().map(|(title, _)| *title);
    let titles: Vec<_> = titles.collect();
    assert!(
        SHOWN.iter().all(|title| titles.contains(title)),
        "{titles:?}"
    );
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut empty = Vec::new();
        for (title, expression) in &asked {
            if query(prometheus, expression).is_empty() && SHOWN.contains(title) {
                empty.push(*title);
            }
        }
        if empty.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "nothing on {empty:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// What Prometheus has of it, once it answers.
fn query(at: SocketAddr, expression: &str) -> Vec<Value> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let asked = Command::new("curl")
            .args(["--silent", "--get", "--data-urlencode"])
            .arg(format!("query={expression}"))
            .arg(format!("http://{at}/api/v1/query"))
            .output()
            .expect("curl, which scripts/test.sh installs");
        if let Ok(answer) = serde_json::from_slice::<Value>(&asked.stdout) {
            assert_eq!(answer["status"], "success", "{expression}: {answer}");
            return answer["data"]["result"].as_array().expect("a list").clone();
        }
        // It is not there yet, or says so in words.
        assert!(Instant::now() < deadline, "{:?}", asked.stdout);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The alerts that Alertmanager has, by name, once it has all of these.
fn wait_for_alerts(at: SocketAddr, wanted: &[&str]) -> serde_json::Map<String, Value> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut heard = serde_json::Map::new();
        let asked = Command::new("curl")
            .args(["--silent", "--fail", &format!("http://{at}/api/v2/alerts")])
            .output()
            .expect("curl, which scripts/test.sh installs");
        let alerts: Vec<Value> = serde_json::from_slice(&asked.stdout).unwrap_or_default();
        for alert in alerts {
            let name = alert["labels"]["alertname"].as_str().unwrap_or_default();
            heard.insert(name.to_owned(), alert);
        }
        if wanted.iter().all(|name| heard.contains_key(*name)) {
            return heard;
        }
        assert!(Instant::now() < deadline, "{heard:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
