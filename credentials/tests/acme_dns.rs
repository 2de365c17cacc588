//! Certificates for names that are validated in the DNS: a real authority, Pebble, asks a real server, BIND.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

mod bind;
mod pebble;

use std::{
    env, fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use metrics_exporter_prometheus::PrometheusBuilder;

use bind::{Bind, KEY, KEY_NAME, WRONG_KEY};
use pebble::{DEADLINE, Pebble, Setup, free_address};
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    net::TcpListener,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tracing_subscriber::fmt::MakeWriter;
use wavry_credentials::{
    acme::{
        Acme, Authority, Challenge, Config, Renewal, When,
        dns::{self, Algorithm, Provider},
        request::{self, Request},
    },
    cert::{Store, Trust, client_config},
    source,
};

const ZONE: &str = "gateway.example";
const CHALLENGED: &str = "_acme-challenge.gateway.example";
/// A certificate for a name and all below it is one order with two texts at one name.
const NAMES: [&str; 2] = [ZONE, "*.gateway.example"];

fn pebble(bind: &Bind) -> Pebble {
    let setup = Setup {
        validates_at: free_address().port(),
        external: false,
        variables: &[("PEBBLE_AUTHZREUSE", "0")],
    };
    Pebble::asking(&setup, bind.address)
}

/// A server that takes updates which are signed with `key`.
fn update(bind: &Bind, directory: &Path, key: &str) -> Provider {
    let key_file = directory.join("dns.key");
    source::write_private(&key_file, key.as_bytes()).unwrap();
    Provider::Update {
        server: bind.address.to_string(),
        key_name: KEY_NAME.to_owned(),
        algorithm: Algorithm::Sha256,
        key_file: Some(key_file),
    }
}

/// What is wanted of an authority at `url`, whose HTTPS `ca_file` vouches for.
fn config(directory: &Path, url: String, ca_file: PathBuf, dns: dns::Config) -> Config {
    Config {
        directory: directory.join("acme"),
        names: NAMES.map(str::to_owned).to_vec(),
        separate: false,
        service_hosts: When::Never,
        new_hosts_per_hour: 1,
        authorities: vec![Authority {
            name: "pebble".to_owned(),
            directory: url,
            ca_file: Some(ca_file),
            profile: None,
            external_account: None,
        }],
        contacts: Vec::new(),
        challenge: Challenge::Dns(dns),
    }
}

async fn start(
    directory: &Path,
    pebble: &Pebble,
    provider: Provider,
    resolver: SocketAddr,
    servers: Vec<SocketAddr>,
) -> (Store, Renewal) {
    let dns = dns::Config {
        provider,
        resolver: Some(resolver),
        servers,
        propagation_timeout: Duration::from_secs(60),
    };
    let config = config(directory, pebble.url(), pebble.ca_file(), dns);
    let acme = Acme::bind(config);
    let store = Store::new();
    let renewal = acme.await.unwrap().start(store.clone()).unwrap();
    (store, renewal)
}

/// Starts, and waits for a certificate that is good for all names.
async fn obtain(directory: &Path, pebble: &Pebble, provider: Provider, bind: &Bind) {
    let at = bind.address;
    let (store, mut renewal) = start(directory, pebble, provider, at, vec![at]).await;
    let installed = tokio::time::timeout(DEADLINE, renewal.installed()).await;
    installed.unwrap_or_else(|_| panic!("no certificate: {}", record(directory)));
    let client = Arc::new(client_config(&Trust::Authorities(pebble.root())).unwrap());
    for name in [ZONE, "any.gateway.example"] {
        let (near, far) = duplex(16 * 1024);
        let name = ServerName::try_from(name).unwrap();
        let (server, client) = tokio::join!(
            TlsAcceptor::from(Arc::new(store.server_config())).accept(far),
            TlsConnector::from(client.clone()).connect(name, near),
        );
        server.unwrap();
        client.unwrap();
    }
    // Records are removed once the certificate is in use.
    until(|| bind.texts(CHALLENGED).is_empty(), "the record stays").await;
    until(|| published(directory) == "[]", "it is still to be removed").await;
}

async fn until(mut is_so: impl FnMut() -> bool, otherwise: &str) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{otherwise}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn record(directory: &Path) -> Value {
    let text = fs::read(directory.join("acme/record.json"));
    text.map_or(Value::Null, |text| serde_json::from_slice(&text).unwrap())
}

fn published(directory: &Path) -> String {
    fs::read_to_string(directory.join("acme/published.json")).unwrap_or_default()
}

#[tokio::test]
async fn a_name_and_all_below_it_are_validated_by_signed_updates() {
    let directory = tempfile::tempdir().unwrap();
    let bind = Bind::start(&[(ZONE, "")]);
    let provider = update(&bind, directory.path(), KEY);
    obtain(directory.path(), &pebble(&bind), provider, &bind).await;
}

#[tokio::test]
async fn a_cname_leads_to_a_zone_that_holds_nothing_but_challenges() {
    let directory = tempfile::tempdir().unwrap();
    let alias = "_acme-challenge CNAME gateway.validation.test.";
    let bind = Bind::start(&[(ZONE, alias), ("validation.test", "")]);
    let provider = update(&bind, directory.path(), KEY);
    obtain(directory.path(), &pebble(&bind), provider, &bind).await;
    assert!(bind.texts("gateway.validation.test").is_empty());
}

#[tokio::test]
async fn a_program_changes_the_dns() {
    let directory = tempfile::tempdir().unwrap();
    let bind = Bind::start(&[(ZONE, "")]);
    let program = directory.path().join("hook");
    bind.hook(&program);
    let provider = Provider::Hook {
        program: program.clone(),
        arguments: Vec::new(),
    };
    obtain(directory.path(), &pebble(&bind), provider, &bind).await;
    let told = fs::read_to_string(program.with_extension("log")).unwrap();
    let line = |change| format!("{change} {CHALLENGED}\n");
    let expected = line("add").repeat(2) + &line("remove").repeat(2);
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_webhook_changes_the_dns_for_who_shows_the_token() {
    let directory = tempfile::tempdir().unwrap();
    let bind = Bind::start(&[(ZONE, "")]);
    let program = directory.path().join("hook");
    bind.hook(&program);
    let token_file = directory.path().join("token");
    source::write_private(&token_file, b"show this\n").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let provider = Provider::Webhook {
        url: format!("http://{}/dns", listener.local_addr().unwrap()),
        ca_file: None,
        token_file: Some(token_file),
    };
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            let body = loop {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
                let text = String::from_utf8_lossy(&request);
                let Some((head, body)) = text.split_once("\r\n\r\n") else {
                    continue;
                };
                assert!(head.starts_with("POST /dns HTTP/1.1\r\n"), "{head}");
                assert!(head.contains("authorization: Bearer show this"), "{head}");
                if let Ok(body) = serde_json::from_str::<Value>(body) {
                    break body;
                }
            };
            let words = ["action", "name", "value"].map(|key| body[key].as_str().unwrap());
            let changed = Command::new(&program).args(words).status().unwrap();
            let status = if changed.success() {
                "204 Done"
            } else {
                "500 No"
            };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    obtain(directory.path(), &pebble(&bind), provider, &bind).await;
}

/// Keeps what is logged in a thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Write::write(&mut *self.0.lock().unwrap(), bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_key_that_the_server_does_not_know_is_told_of_and_followed_by_a_wait() {
    let directory = tempfile::tempdir().unwrap();
    let bind = Bind::start(&[(ZONE, "")]);
    let pebble = pebble(&bind);
    let log = Log::default();
    // The test's runtime has one thread, this one.
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).finish();
    let _here = tracing::subscriber::set_default(subscriber);
    let provider = update(&bind, directory.path(), WRONG_KEY);
    let at = bind.address;
    let (store, _renewal) = start(directory.path(), &pebble, provider, at, vec![at]).await;
    until(|| log.text().contains("no certificate"), "it goes on").await;
    let said = log.text();
    let expected =
        format!("DNS server {at}: the server does not take the signature of key acme. (BADSIG)");
    assert!(said.contains(&expected), "{said}");
    assert!(!said.contains(WRONG_KEY));
    assert_eq!(
        record(directory.path())["authorities"]["pebble"]["failures"],
        1
    );
    assert_eq!(store.expiry(), None);
    assert!(bind.texts(CHALLENGED).is_empty());
}

#[tokio::test]
async fn a_server_that_is_away_is_asked_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut bind = Bind::start(&[(ZONE, "")]);
    let pebble = pebble(&bind);
    bind.kill();
    // The test's runtime has one thread, this one.
    let recorder = PrometheusBuilder::new().build_recorder();
    let _here = metrics::set_default_local_recorder(&recorder);
    let provider = update(&bind, directory.path(), KEY);
    let at = bind.address;
    let (store, mut renewal) = start(directory.path(), &pebble, provider, at, vec![at]).await;
    let failures = || record(directory.path())["authorities"]["pebble"]["failures"].clone();
    let failed = r#"acme_attempts_total{authority="pebble",outcome="dns"} 1"#;
    let is_noticed = || recorder.handle().render().contains(failed);
    until(is_noticed, "it is not noticed").await;
    assert_eq!(failures(), 1);
    assert_eq!(store.expiry(), None);
    bind.restart();
    // It would be asked by itself after half a minute to a minute.
    let ask = |now| {
        request::ask(
            &directory.path().join("acme/requests"),
            &Request::Renew { now },
        )
        .unwrap()
    };
    let patient = ask(false);
    let mut outcome = None;
    until(
        || {
            outcome = patient.outcome();
            outcome.is_some()
        },
        "no answer",
    )
    .await;
    let outcome = outcome.unwrap();
    assert!(
        !outcome.done && outcome.said.contains("left alone"),
        "{}",
        outcome.said
    );
    let eager = ask(true);
    let installed = tokio::time::timeout(DEADLINE, renewal.installed()).await;
    installed.unwrap_or_else(|_| panic!("no certificate: {}", record(directory.path())));
    until(
        || eager.outcome().is_some_and(|outcome| outcome.done),
        "no answer",
    )
    .await;
    // It is written down once the right to order is given back.
    until(|| failures() == 0, "it is not forgiven").await;
}

/// Names the directory to the process that is killed, and the addresses of its peers.
const KILLED: &str = "WAVRY_TEST_KILLED";
const KILLED_TEST: &str = "a_record_of_a_process_that_was_killed_is_removed_when_it_starts_again";

#[tokio::test]
async fn a_record_of_a_process_that_was_killed_is_removed_when_it_starts_again() {
    if let Ok(setup) = env::var(KILLED) {
        return be_killed(&setup).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let bind = Bind::start(&[(ZONE, "")]);
    let pebble = pebble(&bind);
    let setup = format!(
        "{} {} {} {}",
        directory.path().display(),
        pebble.url(),
        pebble.ca_file().display(),
        bind.address
    );
    let mut child = Command::new(env::current_exe().unwrap())
        .args([KILLED_TEST, "--exact"])
        .env(KILLED, setup)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until(|| bind.texts(CHALLENGED).len() == 2, "there are no records").await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(bind.texts(CHALLENGED).len(), 2);

    let provider = update(&bind, directory.path(), KEY);
    let at = bind.address;
    let (store, _renewal) = start(directory.path(), &pebble, provider, at, vec![at]).await;
    until(|| bind.texts(CHALLENGED).is_empty(), "the records stay").await;
    until(
        || published(directory.path()) == "[]",
        "they are still to be removed",
    )
    .await;
    // The attempt that ended with the process counts: the next one waits.
    assert_eq!(store.expiry(), None);
    assert_eq!(
        record(directory.path())["authorities"]["pebble"]["failures"],
        1
    );
}

/// Waits for a record to be seen where it never is.
async fn be_killed(setup: &str) {
    let words: Vec<_> = setup.split(' ').collect();
    let directory = Path::new(words[0]);
    let key_file = directory.join("dns.key");
    source::write_private(&key_file, KEY.as_bytes()).unwrap();
    let dns = dns::Config {
        provider: Provider::Update {
            server: words[3].to_owned(),
            key_name: KEY_NAME.to_owned(),
            algorithm: Algorithm::Sha256,
            key_file: Some(key_file),
        },
        resolver: Some(words[3].parse().unwrap()),
        servers: vec![free_address()],
        propagation_timeout: DEADLINE * 2,
    };
    let config = config(directory, words[1].to_owned(), words[2].into(), dns);
    let acme = Acme::bind(config);
    let mut renewal = acme.await.unwrap().start(Store::new()).unwrap();
    renewal.installed().await;
}
