//! Certificates of sixty seconds, renewed while clients come and stay: no handshake fails, no session ends.
//!
//! `WAVRY_RENEWAL_SECONDS=600 cargo nextest run --workspace --test renewal` is the run of ten minutes.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "it is test code, outside of test functions"
)]

#[path = "../../credentials/tests/pebble/mod.rs"]
mod pebble;
mod support;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use pebble::{Pebble, Setup, free_address};
use support::{
    DEADLINE,
    client::echo,
    cluster::Cluster,
    output,
    peer::peers,
    stderr,
    witness::{Witness, client, open},
};
use wavry_credentials::cert::file_hash;

/// Sessions that stay.
const STAYING: usize = 200;
/// Clients that come and go, one after the other.
const COMING: usize = 4;
/// How often each session that stays is used.
const USED_EVERY: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_while_clients_come_and_stay_and_none_of_them_notices() {
    let seconds = env::var("WAVRY_RENEWAL_SECONDS").ok();
    let seconds = seconds.map_or(60, |text| text.parse().expect("seconds"));
    let (mut cluster, listen) = (Cluster::new(), free_address());
    cluster.add("echo", "echo:", false);
    cluster.set("gateway", "max_sessions = 5000");
    cluster.set("gateway", "sessions_per_ip = 5000");
    cluster.set("gateway", "webtransport.connections_per_ip = 5000");
    cluster.set("gateway", "webtransport.handshake_rate_per_ip = 5000");
    let pebble = Pebble::of_a_minute(&Setup {
        validates_at: listen.port(),
        external: false,
        variables: &[("PEBBLE_AUTHZREUSE", "100")],
    });
    let table = format!(
        "[gateway.acme]\nnames = [\"localhost.example\", \"127.0.0.1\"]\nterms_of_service_agreed = true\n\
         listen = \"{listen}\"\n[[gateway.acme.authorities]]\nname = \"pebble\"\nprofile = \"minute\"\n\
         directory = \"{}\"\nca_file = {:?}\n",
        pebble.url(),
        pebble.ca_file(),
    );
    cluster.obtain_certificate(&table, free_address());
    let cluster = cluster.start();
    let (gateway, root) = (cluster.gateway(), pebble.root());
    let state = cluster.directory().join("edge/state");
    visit(&cluster, &state);

    let witness = Arc::new(Witness::new(&root));
    let (is_over, handshakes) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let resident = client(&root, &witness);
    let mut staying = Vec::new();
    for _ in 0..STAYING {
        staying.push(open(&resident, gateway).await);
    }
    let mut tasks = Vec::new();
    for _ in 0..COMING {
        let (guest, is_over, handshakes) =
            (client(&root, &witness), is_over.clone(), handshakes.clone());
        tasks.push(tokio::spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                let session = open(&guest, gateway).await;
                echo(&session, b"new").await.expect("it lives");
                handshakes.fetch_add(1, Ordering::Relaxed);
            }
            guest.close().await;
        }));
    }
    let used = async {
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            for session in &staying {
                echo(session, b"still here").await.expect("a session ended");
            }
            let rest = end.saturating_duration_since(Instant::now());
            tokio::time::sleep(rest.min(USED_EVERY)).await;
            assert!(
                !tasks.iter().any(|task| task.is_finished()),
                "a handshake failed"
            );
        }
    };
    used.await;
    for session in &staying {
        echo(session, b"still here").await.expect("a session ended");
    }
    is_over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let (certificates, came_back) = witness.seen();
    let made = handshakes.load(Ordering::Relaxed);
    println!("{made} handshakes, {STAYING} sessions, {certificates} certificates in {seconds} s");
    assert!(!came_back, "a certificate came back that had been replaced");
    let wanted = 1 + (seconds * 8 / 600).max(1);
    assert!(
        certificates as u64 >= wanted,
        "{certificates} certificates of {wanted}"
    );
    assert_eq!(
        cluster.metric("gateway", "wavry_gateway_sessions"),
        STAYING as f64
    );
    visit(&cluster, &state);
}

/// Chromium opens a session, trusting the certificate that is in use by its hash.
fn visit(cluster: &Cluster, state: &Path) {
    // Not in a moment in which another one takes its place.
    let deadline = Instant::now() + DEADLINE * 2;
    let left = || {
        let next = "wavry_credentials_acme_next_attempt_timestamp_seconds";
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        cluster.metric("gateway", next) - now.unwrap().as_secs_f64()
    };
    while left() < 20.0 {
        assert!(Instant::now() < deadline, "it is renewed all the time");
        std::thread::sleep(Duration::from_millis(100));
    }
    let newest = chains(state).pop().expect("there is one");
    let hash = file_hash(&newest).unwrap();
    let spec = serde_json::json!({
        "url": cluster.url("echo"),
        "certificate_hashes": [hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>()],
    });
    let file = cluster.directory().join("spec.json");
    fs::write(&file, spec.to_string()).unwrap();
    let mut node = Command::new("node");
    node.arg(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/browser/run.mjs"
    ))
    .args(["chromium", "session"])
    .arg(&file)
    .env("WAVRY_PEERS", peers());
    let seen = output(node);
    assert!(seen.status.success(), "{}", stderr(&seen));
}

/// The chains that a gateway keeps, the oldest first.
fn chains(state: &Path) -> Vec<PathBuf> {
    let pairs = fs::read_dir(state.join("acme/pairs")).unwrap();
    let pairs = pairs.map(|pair| pair.unwrap().path().join("chain.pem"));
    let mut chains: Vec<_> = pairs.filter(|chain| chain.is_file()).collect();
    chains.sort();
    chains
}
