//! Debian's Prometheus watches a gateway whose certificate runs out, and Debian's Alertmanager hears of it.

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
