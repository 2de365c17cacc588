//! How a gateway comes by its certificate: from a real authority, or out of files that an operator imports.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

#[path = "../../credentials/tests/pebble/mod.rs"]
mod pebble;
mod support;

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use pebble::{Pebble, Setup, free_address};
use support::{DEADLINE, cluster::Cluster, http_get, output, stderr, wait_for, wavry};
use wavry_credentials::cert::DevelopmentAuthority;

#[test]
fn a_gateway_alone_obtains_its_certificate_and_is_ready_once_it_has_it() {
    let mut cluster = Cluster::new();
    cluster.add("echo", "echo:", false);
    let (listen, ops) = (free_address(), free_address());
    let pebble = Pebble::start(&Setup {
        validates_at: listen.port(),
        external: false,
        variables: &[],
    });
    // It takes connections and says nothing; for as long as it is there, there is no certificate.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let ca_file = pebble.ca_file();
    let table = format!(
        "[gateway.acme]\nnames = [\"gateway.example\", \"127.0.0.1\"]\nterms_of_service_agreed = true\n\
         listen = \"{listen}\"\n\
         [[gateway.acme.authorities]]\nname = \"silent\"\ndirectory = \"https://{}/\"\nca_file = {ca_file:?}\n\
         [[gateway.acme.authorities]]\nname = \"pebble\"\ndirectory = \"{}\"\nca_file = {ca_file:?}\n",
        silent.local_addr().unwrap(),
        pebble.url(),
    );
    cluster.obtain_certificate(&table, ops);
    // What it kept from before is of no use any more.
    let kept = cluster.directory().join("edge/state/acme/pairs/00000001");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&kept)
        .unwrap();
    let names = ["gateway.example", "127.0.0.1"];
    expired(&names, &kept.join("chain.pem"), &kept.join("key.pem"));
    let issued = br#"{"authority":"pebble"}"#;
    wavry_credentials::source::write_public(&kept.join("issued.json"), issued).unwrap();
    let cluster = std::thread::scope(|scope| {
        let starting = scope.spawn(|| cluster.start());
        let deadline = Instant::now() + DEADLINE;
        for address in [ops, listen] {
            while TcpStream::connect(address).is_err() {
                assert!(Instant::now() < deadline, "nobody listens at {address}");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        let (status, _) = http_get(&format!("http://{ops}/readyz"));
        assert_eq!(status, 503, "ready without a certificate");
        let refused = "certificate_loads_total{source=\"acme\",outcome=\"failed\"} 1";
        wait_for("what was kept is refused", || {
            let (_, metrics) = http_get(&format!("http://{ops}/metrics"));
            metrics.contains(refused)
        });
        let (status, _) = http_get(&format!("http://{listen}/.well-known/acme-challenge/x"));
        assert_eq!(status, 404);
        drop(silent);
        starting.join().unwrap()
    });
    let (status, _) = http_get(&format!("http://{ops}/readyz"));
    assert_eq!(status, 200);
    let root = pebble.root();
    let url = cluster.url("echo");
    let probed = output(wavry(&[
        "probe",
        &url,
        "--ca",
        root.to_str().unwrap(),
        "--duration",
        "1s",
    ]));
    assert!(probed.status.success(), "{}", stderr(&probed));

    let state_dir = cluster.directory().join("edge/state");
    let state = state_dir.to_str().unwrap();
    let ask = |words: &[&str]| output(wavry(&[&["cert"], words, &["--state-dir", state]].concat()));
    let other = ask(&["renew", "other.example"]);
    assert!(!other.status.success());
    assert!(
        stderr(&other).contains("is for other.example, but some for gateway.example, 127.0.0.1")
    );
    let renewed = ask(&["renew", "gateway.example"]);
    assert!(renewed.status.success(), "{}", stderr(&renewed));
    let revoked = ask(&[
        "revoke",
        "127.0.0.1",
        "--reason",
        "superseded",
        "--previous",
    ]);
    assert!(revoked.status.success(), "{}", stderr(&revoked));
    let next = "wavry_credentials_acme_next_attempt_timestamp_seconds";
    wait_for("an operator is told of the next attempt", || {
        let listed = ask(&["list", "--json"]);
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
        assert!(listed[0]["next_attempt"].is_null(), "{listed}");
        let told = cluster.metric("gateway", next);
        listed[1]["next_attempt"].as_f64() == Some(told.floor())
    });
    let newest = chains(&state_dir);
    assert_eq!(pebble.status(&newest[0])["Status"], "Revoked");
    assert_eq!(pebble.status(&newest[1])["Status"], "Valid");

    let metrics = cluster.metrics("gateway");
    for line in [
        "wavry_credentials_acme_attempts_total{authority=\"silent\",outcome=\"unreachable\"} 1",
        "wavry_credentials_acme_attempts_total{authority=\"pebble\",outcome=\"issued\"} 2",
        "wavry_credentials_acme_challenge_connections_total{type=\"http-01\",outcome=\"answered\"}",
        "wavry_gateway_certificate_expiry_timestamp_seconds{name=\"gateway.example\",source=\"acme\",issuer=\"",
        "wavry_credentials_acme_last_success_timestamp_seconds",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[test]
fn one_tcp_port_answers_the_authority_and_everybody_elses_https() {
    let mut cluster = Cluster::new();
    cluster.add("echo", "echo:", false);
    let https = free_address();
    let pebble = Pebble::start(&Setup {
        validates_at: https.port(),
        external: false,
        variables: &[("PEBBLE_AUTHZREUSE", "0")],
    });
    cluster.set("gateway", &format!("https_listen = \"{https}\""));
    let table = format!(
        "[gateway.acme]\nnames = [\"gateway.example\", \"127.0.0.1\"]\nterms_of_service_agreed = true\n\
         challenge = \"tls-alpn-01\"\n[[gateway.acme.authorities]]\nname = \"pebble\"\nprofile = \"default\"\n\
         directory = \"{}\"\nca_file = {:?}\n",
        pebble.url(),
        pebble.ca_file(),
    );
    cluster.obtain_certificate(&table, free_address());
    let cluster = cluster.start();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--include", "--cacert"])
        .arg(pebble.root())
        .arg(format!("https://{https}/healthz"));
    let asked = output(curl);
    assert!(asked.status.success(), "{}", stderr(&asked));
    let said = String::from_utf8(asked.stdout).unwrap();
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    let told = format!("alt-svc: h3=\":{}\"; ma=86400", cluster.gateway().port());
    assert!(said.contains(&told), "{told} is not in {said}");
    let connections = "wavry_gateway_https_connections_total{outcome=\"challenge\"}";
    assert!(cluster.metric("gateway", connections) >= 2.0);
}

#[test]
fn a_certificate_from_elsewhere_is_imported_and_in_use_without_a_restart() {
    let mut cluster = Cluster::new();
    cluster.add("echo", "echo:", false);
    let cluster = cluster.start();
    let directory = cluster.directory();
    let authority = DevelopmentAuthority::open(directory).unwrap();
    authority
        .issue("next", &["localhost", "127.0.0.1"])
        .unwrap();
    authority.issue("fewer", &["127.0.0.1"]).unwrap();
    let file = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let import = |chain: &str, key: &str| {
        let (chain, key) = (file(chain), file(key));
        let (to, its_key) = (file("gateway.crt"), file("gateway.key"));
        let words = ["cert", "import", &chain, &key, "--certificate", &to];
        output(wavry(
            &[&words[..], &["--certificate-key", &its_key]].concat(),
        ))
    };
    for (chain, key, why) in [
        ("next.crt", "fewer.key", "does not belong to"),
        ("fewer.crt", "fewer.key", "localhost"),
    ] {
        let refused = import(chain, key);
        assert!(!refused.status.success(), "{chain}");
        assert!(stderr(&refused).contains(why), "{}", stderr(&refused));
    }
    let loads = "wavry_credentials_certificate_loads_total{source=\"file\",outcome=\"loaded\"}";
    let before = cluster.metric("gateway", loads);
    let imported = import("next.crt", "next.key");
    assert!(imported.status.success(), "{}", stderr(&imported));
    let deadline = Instant::now() + DEADLINE;
    while cluster.metric("gateway", loads) == before {
        assert!(Instant::now() < deadline, "not loaded");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    cluster.probe("echo", &[]);
}

#[test]
fn a_gateway_whose_certificate_has_expired_comes_up_and_is_ready_once_it_has_another_one() {
    let mut cluster = Cluster::new();
    cluster.add("echo", "echo:", false);
    let directory = cluster.directory().to_owned();
    let at = |name: &str| directory.join(name);
    let authority = DevelopmentAuthority::open(&directory).unwrap();
    authority
        .issue("next", &["localhost", "127.0.0.1"])
        .unwrap();
    expired(
        &["localhost", "127.0.0.1"],
        &at("gateway.crt"),
        &at("gateway.key"),
    );
    let ops = free_address();
    let table = format!("certificate = {:?}", at("gateway.crt"));
    cluster.obtain_certificate(&table, ops);
    let cluster = std::thread::scope(|scope| {
        let starting = scope.spawn(|| cluster.start());
        // It has joined the cluster, and waits.
        let joined = "wavry_node_roster_epoch";
        wait_for("the gateway joins", || {
            TcpStream::connect(ops).is_ok()
                && http_get(&format!("http://{ops}/metrics"))
                    .1
                    .contains(joined)
        });
        assert_eq!(http_get(&format!("http://{ops}/readyz")).0, 503);
        let mut import = wavry(&["cert", "import"]);
        import.args([at("next.crt"), at("next.key")]);
        import.arg("--certificate").arg(at("gateway.crt"));
        import.arg("--certificate-key").arg(at("gateway.key"));
        let imported = output(import);
        assert!(imported.status.success(), "{}", stderr(&imported));
        starting.join().unwrap()
    });
    assert_eq!(http_get(&format!("http://{ops}/readyz")).0, 200);
    cluster.probe("echo", &[]);
}

/// Writes a pair whose time is over.
fn expired(names: &[&str], chain: &Path, key: &Path) {
    let pair = rcgen::KeyPair::generate().unwrap();
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - std::time::Duration::from_secs(14 * 24 * 60 * 60);
    params.not_after = now - std::time::Duration::from_secs(60);
    let certificate = params.self_signed(&pair).unwrap().pem();
    wavry_credentials::source::write_public(chain, certificate.as_bytes()).unwrap();
    wavry_credentials::source::write_private(key, pair.serialize_pem().as_bytes()).unwrap();
}

/// The chains that a gateway keeps, the oldest first.
fn chains(state_dir: &Path) -> Vec<PathBuf> {
    let pairs = fs::read_dir(state_dir.join("acme/pairs")).unwrap();
    let mut chains: Vec<_> = pairs
        .map(|pair| pair.unwrap().path().join("chain.pem"))
        .collect();
    chains.sort();
    chains
}
