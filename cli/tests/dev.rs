//! `wavry dev`, end to end: every role its own process, a native client through all of them.

mod support;

use std::{net::UdpSocket, os::unix::fs::PermissionsExt as _};

use serde_json::Value;
use support::{
    Dev, ended_well, http_get, is_alive, output, signal, stderr, wait_until_gone, wavry,
};

const ROLES: [&str; 5] = ["gateway", "master", "relay-a", "relay-b", "sample"];

#[test]
fn everything_comes_up_answers_and_drains_on_a_signal() {
    let directory = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(directory.path());

    for key in [
        "gateway",
        "ca_file",
        "certificate_hashes",
        "demo",
        "master",
        "services",
        "ops",
        "pids",
    ] {
        assert!(!dev.ready[key].is_null(), "the ready file lacks {key}");
    }
    let pids: Vec<u32> = ROLES.iter().map(|role| dev.pid_of(role)).collect();
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    for pid in &pids {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"));
        let core: Vec<&str> = core.unwrap().split_whitespace().skip(4).take(2).collect();
        assert_eq!(core, ["0", "0"]);
    }
    for role in ["gateway", "master", "relay-a", "relay-b"] {
        assert!(dev.metrics(role).contains("wavry_build_info"), "{role}");
        let url = dev.ready["ops"][role].as_str().unwrap();
        assert_eq!(
            http_get(&url.replace("/metrics", "/readyz")).0,
            200,
            "{role}"
        );
        assert_eq!(
            http_get(&url.replace("/metrics", "/healthz")).0,
            200,
            "{role}"
        );
    }

    let echo = dev.report("echo", &[]);
    assert_eq!(echo["status"], 200);
    for key in [
        "connect_ms",
        "datagram_rtt_p50_ms",
        "datagram_rtt_p90_ms",
        "datagram_rtt_p99_ms",
        "stream_rtt_p50_ms",
        "stream_rtt_p90_ms",
        "stream_rtt_p99_ms",
        "stream_up_bytes_per_second",
        "stream_down_bytes_per_second",
        "max_datagram_bytes",
    ] {
        assert!(
            echo[key].as_f64().is_some_and(|value| value > 0.0),
            "{key} in {echo}"
        );
    }
    assert_eq!(echo["notes"], Value::Array(Vec::new()), "{echo}");

    let sample = dev.report(
        "sample",
        &["--subprotocol", "other", "--subprotocol", "wavry-clock.v1"],
    );
    assert_eq!(sample["subprotocol"], "wavry-clock.v1");
    assert!(sample["stream_rtt_p50_ms"].is_f64(), "{sample}");
    assert!(sample["datagram_rtt_p50_ms"].is_f64(), "{sample}");

    let (status, page) = http_get(dev.text("demo"));
    assert_eq!(status, 200);
    assert!(page.contains("<title>Wavry demo</title>"));
    let (status, config) = http_get(&format!("{}config.json", dev.text("demo")));
    assert_eq!(status, 200);
    assert!(config.contains(dev.ready["certificate_hashes"][0].as_str().unwrap()));

    let mode = std::fs::metadata(directory.path().join("ready.json"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o077, 0, "the ready file holds a token");
    for file in [
        "master/master.key",
        "gateway/identity.key",
        "relay-a/registration.token",
        "tls/gateway.key",
    ] {
        let mode = std::fs::metadata(dev.state.join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "{file}");
    }

    assert!(ended_well(dev.signal_and_wait("TERM")));
    wait_until_gone(&pids);
    assert!(
        !directory.path().join("ready.json").exists(),
        "it tells of what is gone"
    );
}

#[test]
fn a_certificate_hash_is_trusted_as_a_browser_does() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path());
    let hash = dev.ready["certificate_hashes"][0].as_str().unwrap();
    let probe = |hash: &str| {
        let arguments = [
            "probe",
            dev.service("echo"),
            "--certificate-hash",
            hash,
            "--duration",
            "90ms",
        ];
        output(wavry(&arguments))
    };
    let right = probe(hash);
    assert!(right.status.success(), "{}", stderr(&right));
    assert!(String::from_utf8_lossy(&right.stdout).contains("round trip, ms"));
    let wrong = probe(&"00".repeat(32));
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn a_probe_that_is_refused_says_with_which_status_and_never_shows_the_token() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path());
    let gateway = dev.text("gateway");
    let canary = "v4.public.canary-token";
    for (path, status) in [
        (format!("/sample?token={canary}"), "401"),
        ("/sample".to_owned(), "401"),
        ("/nothing".to_owned(), "404"),
    ] {
        let refused = dev.probe(&format!("{gateway}{path}"), &[]);
        assert_eq!(refused.status.code(), Some(2), "{path}");
        let text = stderr(&refused);
        assert!(text.contains(&format!("status {status}")), "{path}: {text}");
        assert!(!text.contains(canary), "{text}");
    }
    let foreign = dev.probe(dev.service("echo"), &["--origin", "https://evil.example"]);
    assert!(
        stderr(&foreign).contains("status 403"),
        "{}",
        stderr(&foreign)
    );

    for role in ROLES {
        let log = std::fs::read_to_string(dev.state.join(format!("log/{role}.log"))).unwrap();
        assert!(!log.contains("canary-token"), "{role} logs a token");
        assert!(!log.contains("v4.public."), "{role} logs a token");
        assert!(
            !log.contains("[redacted]"),
            "{role} would have logged a secret"
        );
    }
}

#[test]
fn a_second_start_uses_the_same_state_and_one_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = Dev::start(directory.path());
    let hashes = first.ready["certificate_hashes"].clone();
    let identity = std::fs::read(first.state.join("relay-a/identity.key")).unwrap();

    let state = first.state.display().to_string();
    let second = output(wavry(&["dev", "--port", "0", "--state-dir", &state]));
    assert!(!second.status.success());
    assert!(stderr(&second).contains(&state), "{}", stderr(&second));

    assert!(ended_well(first.signal_and_wait("INT")));
    let again = Dev::start(directory.path());
    assert_eq!(again.ready["certificate_hashes"], hashes);
    assert_eq!(
        std::fs::read(again.state.join("relay-a/identity.key")).unwrap(),
        identity
    );
    assert_eq!(again.report("sample", &[])["status"], 200);
}

#[test]
fn a_taken_port_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let state = directory.path().display().to_string();
    let refused = output(wavry(&[
        "dev",
        "--port",
        &port,
        "--demo-port",
        "0",
        "--master-port",
        "0",
        "--state-dir",
        &state,
    ]));
    assert!(!refused.status.success());
    let text = stderr(&refused);
    assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
    assert!(text.contains("gateway"), "{text}");
}

#[test]
fn a_killed_relay_is_started_again_and_serves_without_the_others_restarting() {
    let directory = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(directory.path());
    let before = dev.ready["pids"].clone();
    signal(dev.pid_of("relay-a"), "KILL");
    dev.wait_until(|ready| ready["pids"]["relay-a"] != before["relay-a"]);
    for role in ["gateway", "master", "relay-b", "sample"] {
        assert_eq!(dev.ready["pids"][role], before[role], "{role}");
    }
    // Until the gateway has noticed that the old connection is dead, a session may be refused.
    let deadline = std::time::Instant::now() + support::DEADLINE;
    loop {
        let probed = dev.probe(dev.service("echo"), &["--duration", "90ms"]);
        if probed.status.success() {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{}", stderr(&probed));
    }
}

#[test]
fn no_process_outlives_a_killed_dev() {
    let directory = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(directory.path());
    let pids: Vec<u32> = ROLES.iter().map(|role| dev.pid_of(role)).collect();
    dev.signal_and_wait("KILL");
    wait_until_gone(&pids);
}
