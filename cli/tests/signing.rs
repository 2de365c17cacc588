//! The key that signs tokens and rosters is in a KeyVault, and stays there.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use support::{
    DEADLINE, RoleProcess,
    client::{Native, echo, within},
    cluster::Cluster,
    keyvault::KeyVault,
    output, signal, stderr, wavry,
};
use wavry_proto::session::close_code;
use wavry_transport::{
    session::{Closed, Session as _},
    webtransport::Session,
};

/// What the master is told of how long a signature may take.
const SIGNED_WITHIN: Duration = Duration::from_secs(2);
/// Within which what somebody else may hold ends everywhere.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);

/// A KeyVault with a key that signs, and a unit that may have it do so, and nothing else.
struct Vault {
    vault: KeyVault,
    directory: PathBuf,
}

impl Vault {
    fn start(directory: &Path) -> Self {
        let command = KeyVault::command(directory, &directory.join("keyvault.sqlite"));
        let vault = KeyVault::start(directory, command);
        vault.does(
            "POST",
            "/v1/sys/mounts/transit",
            &json!({"type": "transit"}),
        );
        vault.does(
            "POST",
            "/v1/transit/keys/wavry",
            &json!({"type": "ed25519"}),
        );
        let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/keyvault/signer.hcl");
        let policy = json!({"policy": fs::read_to_string(policy).unwrap()});
        vault.does("PUT", "/v1/sys/policies/acl/signer", &policy);
        vault.does("POST", "/v1/sys/auth/approle", &json!({"type": "approle"}));
        let role = "/v1/auth/approle/role/master";
        vault.does("POST", role, &json!({"token_policies": ["signer"]}));
        let role_id = vault.does("GET", &format!("{role}/role-id"), &Value::Null);
        let secret_id = vault.does("POST", &format!("{role}/secret-id"), &json!({}));
        for (file, id) in [
            ("role_id", &role_id["role_id"]),
            ("secret_id", &secret_id["secret_id"]),
        ] {
            let text = id.as_str().unwrap().as_bytes();
            wavry_credentials::source::write_private(&directory.join(file), text).unwrap();
        }
        Self {
            vault,
            directory: directory.to_owned(),
        }
    }

    /// Has the cluster's master sign here; further lines of `master.signing`.
    fn sign_for(&self, cluster: &mut Cluster, more: &str) {
        let table = format!(
            "[master.signing]\nurl = \"https://{}\"\nca_file = {:?}\nkey = \"wavry\"\ndeadline = \"{}s\"\n{more}\n",
            self.vault.process.address(),
            self.directory.join("ca.crt"),
            SIGNED_WITHIN.as_secs()
        );
        let environment = [
            (
                "WAVRY_KEYVAULT_ROLE_ID_FILE",
                self.directory.join("role_id"),
            ),
            (
                "WAVRY_KEYVAULT_SECRET_ID_FILE",
                self.directory.join("secret_id"),
            ),
        ];
        cluster.sign_with_vault(&table, &environment);
    }

    fn kill(&mut self) {
        let pid = self.vault.process.pid();
        signal(pid, "KILL");
        support::wait_until_gone(&[pid]);
    }

    /// Starts it again where it was, and unseals it.
    fn start_again(&mut self) {
        let database = self.directory.join("keyvault.sqlite");
        let mut command = KeyVault::command(&self.directory, &database);
        command.args(["--listen", &self.vault.process.address().to_string()]);
        self.vault.process = RoleProcess::start(command, &self.directory.join("keyvault.again"));
        self.vault.unseal();
    }

    /// Of the key that signs.
    fn latest_version(&self) -> u64 {
        let key = self
            .vault
            .does("GET", "/v1/transit/keys/wavry", &Value::Null);
        key["latest_version"].as_u64().unwrap()
    }
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    cluster.add_with_token("closed", "echo:");
    cluster.add_upstream_only("made", "echo:");
    cluster
}

/// A session with a token by the key that signs now.
async fn live(cluster: &Cluster, native: &Native, name: &str) -> Session {
    let token = cluster.token_by_present_key("closed", name, "10m");
    let session = native.open(&format!("/closed?token={token}")).await;
    echo(&session, b"it carries").await.unwrap();
    session
}

fn key_states(cluster: &Cluster, operator: &Path) -> Vec<String> {
    let listed = cluster.operate(operator, &["key", "list", "--json"]);
    assert!(listed.status.success(), "{}", stderr(&listed));
    let keys: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let keys = keys.as_array().unwrap().iter();
    keys.map(|key| key["state"].as_str().unwrap().to_owned())
        .collect()
}

/// Rotates in turn, and waits until the next key signs and nodes act on a roster by it.
async fn rotate_in_turn(cluster: &Cluster, admin: &Path) {
    let before = key_states(cluster, admin).len();
    let rotate = [
        "key",
        "rotate",
        "--reason",
        "request",
        "--wait",
        "1s",
        "--overlap",
        "10m",
    ];
    succeeds(&cluster.operate(admin, &rotate));
    let deadline = Instant::now() + DEADLINE;
    while key_states(cluster, admin)[before] != "signing" {
        assert!(Instant::now() < deadline, "it does not sign");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let signed = cluster.metric("master", "wavry_master_roster_epoch");
    for role in ["gateway", "relay"] {
        while cluster.metric(role, "wavry_node_roster_epoch") < signed {
            assert!(Instant::now() < deadline, "the {role} does not follow");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn succeeds(done: &Output) {
    assert!(done.status.success(), "{}", stderr(done));
}

/// The rows of the master's keys, as a backup has them.
fn key_rows(cluster: &Cluster) -> Vec<Value> {
    let file = cluster.directory().join("backup");
    let _ = fs::remove_file(&file);
    let mut backup = wavry(&["master", "backup", "--database"]);
    backup
        .arg(cluster.directory().join("master.sqlite"))
        .arg(&file)
        .env(
            "WAVRY_AUDIT_KEY_FILE",
            cluster.directory().join("audit.key"),
        );
    succeeds(&output(backup));
    let text = fs::read_to_string(file).unwrap();
    let rows = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let rows = rows.filter(|row| row.to_string().contains("k4.pid"));
    let rows: Vec<_> = rows
        .filter(|row| row.to_string().contains("signing_key"))
        .collect();
    assert!(!rows.is_empty(), "{text}");
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_key_is_in_a_vault_joins_serves_and_rotates_and_the_key_is_nowhere_else() {
    let mut cluster = cluster();
    let vault = Vault::start(cluster.directory());
    vault.sign_for(&mut cluster, "");
    // Gateway and relay register with tokens that the vault signed, and take its rosters.
    let cluster = cluster.start();
    assert!(!cluster.directory().join("signing.key").exists());
    let native = cluster.native();
    let admin = cluster.operator_token("admin");
    let session = live(&cluster, &native, "first").await;

    rotate_in_turn(&cluster, &admin).await;
    assert_eq!(key_states(&cluster, &admin), ["accepted", "signing"]);
    assert_eq!(vault.latest_version(), 2);
    echo(&session, b"it goes on").await.unwrap();
    let second = live(&cluster, &native, "second").await;

    let rotated = Instant::now();
    succeeds(&cluster.operate(&admin, &["key", "rotate", "--reason", "compromise"]));
    for session in [session, second] {
        let closed = within(REVOKED_WITHIN, "its end", session.closed()).await;
        assert!(
            matches!(&closed, Closed::Peer(close) if close.code == close_code::TOKEN_REVOKED),
            "{closed}"
        );
    }
    assert!(rotated.elapsed() < REVOKED_WITHIN);
    assert_eq!(vault.latest_version(), 3);
    let third = live(&cluster, &native, "third").await;
    echo(&third, b"by the new key").await.unwrap();
    let admin = cluster.operator_token("operator");
    assert_eq!(
        key_states(&cluster, &admin),
        ["revoked", "revoked", "signing"]
    );

    for row in key_rows(&cluster) {
        let row = row.to_string();
        assert!(
            row.contains("transit/wavry") && row.contains("null"),
            "{row}"
        );
    }
    for entry in fs::read_dir(cluster.directory()).unwrap() {
        let file = entry.unwrap().path();
        let is_of_master = file.to_string_lossy().contains("master.sqlite");
        let holds = |text: &[u8]| text.windows(10).any(|window| window == b"k4.secret.");
        assert!(
            !is_of_master || !holds(&fs::read(&file).unwrap()),
            "{file:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_vault_sessions_go_on_signing_is_refused_in_time_and_goes_on_once_it_is_back() {
    let mut cluster = cluster();
    let mut vault = Vault::start(cluster.directory());
    vault.sign_for(&mut cluster, "");
    let mut cluster = cluster.start();
    let native = cluster.native();
    let operator = cluster.operator_token("admin");
    let session = live(&cluster, &native, "first").await;
    let kept_token = cluster.token_by_present_key("closed", "later", "10m");

    // One that does not answer is as one that is gone.
    signal(vault.vault.process.pid(), "STOP");
    refuses_in_time(&cluster, &operator);
    signal(vault.vault.process.pid(), "CONT");
    let deadline = Instant::now() + DEADLINE;
    while !output_of_issue(&cluster, &operator).status.success() {
        assert!(Instant::now() < deadline, "it does not sign again");
    }

    vault.kill();
    refuses_in_time(&cluster, &operator);
    // A change is made, and is signed as soon as that can be done.
    let made = [
        "service", "set", "made", "--access", "public", "--origin", "*",
    ];
    succeeds(&cluster.operate(&operator, &made));
    wait_for_metric(&cluster, "wavry_master_signs", 0.0).await;
    assert!(cluster.metric("master", "wavry_master_rosters_unsigned_total") > 0.0);
    echo(&session, b"it goes on").await.unwrap();
    let opened = native.open(&format!("/closed?token={kept_token}")).await;
    echo(&opened, b"opened without a vault").await.unwrap();
    // Nodes are told so, and not left to wait.
    let deadline = Instant::now() + DEADLINE;
    while cluster.metric("gateway", "wavry_node_master_failures_total") == 0.0 {
        assert!(Instant::now() < deadline, "the gateway waits");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A master starts without one, as it knows the public half, and says that it cannot sign.
    cluster.restart_master();
    wait_for_metric(&cluster, "wavry_master_signs", 0.0).await;
    assert_eq!(native.status(of_made()).await, 404, "no node was told yet");

    vault.start_again();
    wait_for_metric(&cluster, "wavry_master_signs", 1.0).await;
    let deadline = Instant::now() + DEADLINE;
    while native.ask(of_made()).await.is_err() {
        assert!(Instant::now() < deadline, "the roster does not come");
    }
    succeeds(&output_of_issue(&cluster, &operator));
    echo(&session, b"all the time").await.unwrap();
}

fn of_made() -> support::client::Ask<'static> {
    support::client::Ask {
        path: "/made",
        ..Default::default()
    }
}

async fn wait_for_metric(cluster: &Cluster, name: &str, value: f64) {
    let deadline = Instant::now() + DEADLINE;
    while cluster.metric("master", name) != value || !cluster.metrics("master").contains(name) {
        assert!(Instant::now() < deadline, "{name} is not {value}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn output_of_issue(cluster: &Cluster, operator: &Path) -> Output {
    let file = cluster.directory().join("issued.token");
    let _ = fs::remove_file(&file);
    let file = file.display().to_string();
    let issue = [
        "token",
        "issue",
        "session",
        "closed",
        "--subject",
        "ann",
        "--out",
        &file,
    ];
    cluster.operate(operator, &issue)
}

/// A token is refused with what to do about it, and no later than the master is told.
fn refuses_in_time(cluster: &Cluster, operator: &Path) {
    let (client, token) = (cluster.https(), fs::read_to_string(operator).unwrap());
    let asked = Instant::now();
    let bearer = format!("Bearer {}", token.trim());
    let body = json!({"service": "closed", "subject": "ann"}).to_string();
    let headers = [
        ("authorization", &*bearer),
        ("content-type", "application/json"),
    ];
    let answer = client.ask("POST", "/v1/tokens/session", &headers, body.as_bytes());
    let took = asked.elapsed();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("urn:wavry:problem:not-signed"), "{answer}");
    assert!(answer.to_lowercase().contains("retry-after: 1"), "{answer}");
    assert!(took < SIGNED_WITHIN + Duration::from_secs(1), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_moves_into_a_vault_and_out_of_it_again_and_no_session_notices() {
    let mut cluster = cluster().start();
    let vault = Vault::start(cluster.directory());
    let native = cluster.native();
    let admin = cluster.operator_token("admin");
    let first = live(&cluster, &native, "first").await;

    vault.sign_for(&mut cluster, "");
    cluster.restart_master();
    assert_eq!(
        key_states(&cluster, &admin),
        ["signing"],
        "it signs as before"
    );
    rotate_in_turn(&cluster, &admin).await;
    let second = live(&cluster, &native, "second").await;
    let rows = key_rows(&cluster);
    assert!(rows[1].to_string().contains("transit/wavry"), "{rows:?}");

    // The vault is still there while its key signs.
    vault.sign_for(&mut cluster, "new_keys = \"database\"");
    cluster.restart_master();
    rotate_in_turn(&cluster, &admin).await;
    assert_eq!(
        key_states(&cluster, &admin),
        ["accepted", "accepted", "signing"]
    );
    assert!(!key_rows(&cluster)[2].to_string().contains("transit"));
    let third = live(&cluster, &native, "third").await;
    for session in [first, second, third] {
        echo(&session, b"it goes on").await.unwrap();
    }
}

#[test]
fn a_master_that_has_no_way_to_the_key_that_signs_does_not_start() {
    let mut cluster = cluster();
    let vault = Vault::start(cluster.directory());
    vault.sign_for(&mut cluster, "");
    let mut cluster = cluster.start();
    let refused = cluster.master_that_is_refused(
        "[master.signing]\nurl = \"https://127.0.0.1:1\"\nkey = \"other\"\n",
    );
    assert!(refused.contains("transit/wavry"), "{refused}");
}
