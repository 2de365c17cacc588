//! Certificates from a real authority, Pebble, and from some that are none.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

mod pebble;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use metrics_exporter_prometheus::PrometheusBuilder;
use pebble::{DEADLINE, EXTERNAL, Pebble, Setup, free_address};
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    net::TcpListener,
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use wavry_credentials::{
    acme::{
        Acme, Authority, Challenge, Config, ExternalAccount, Kind, Renewal, When,
        request::{self, Outcome, Reason, Request},
    },
    cert::{DevelopmentAuthority, Store, Trust, client_config},
};
use wavry_proto::{control::Roster, id::Epoch};

const NAMES: [&str; 2] = ["gateway.example", "127.0.0.1"];

/// One gateway's directory and listener.
struct Gateway {
    directory: tempfile::TempDir,
    listen: SocketAddr,
    challenge: Kind,
    service_hosts: When,
    authorities: Vec<Authority>,
}

impl Gateway {
    fn new(challenge: Kind) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            listen: free_address(),
            challenge,
            service_hosts: When::Never,
            authorities: Vec::new(),
        }
    }

    /// An authority that validates where this gateway listens.
    fn pebble(&self, variables: &[(&str, &str)]) -> Pebble {
        Pebble::start(&Setup {
            validates_at: self.listen.port(),
            external: false,
            variables,
        })
    }

    async fn start(&self) -> (Store, Renewal) {
        let acme = Acme::bind(Config {
            directory: self.directory.path().join("acme"),
            names: NAMES.map(str::to_owned).to_vec(),
            separate: false,
            service_hosts: self.service_hosts,
            new_hosts_per_hour: 2,
            authorities: self.authorities.clone(),
            contacts: vec!["mailto:operator@gateway.example".to_owned()],
            challenge: Challenge::Listener {
                kind: self.challenge,
                listen: self.listen,
            },
        });
        let store = Store::new();
        let renewal = acme.await.unwrap().start(store.clone()).unwrap();
        (store, renewal)
    }

    /// Starts, and waits for a certificate.
    async fn obtain(&self) -> (Store, Renewal) {
        let (store, mut renewal) = self.start().await;
        let installed = tokio::time::timeout(DEADLINE, renewal.installed()).await;
        installed.unwrap_or_else(|_| panic!("no certificate: {}", self.record()));
        (store, renewal)
    }

    /// Waits until nobody listens any more.
    async fn is_gone(&self) {
        let deadline = Instant::now() + DEADLINE;
        while std::net::TcpListener::bind(self.listen).is_err() {
            assert!(Instant::now() < deadline, "still there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The chains that are kept, oldest first.
    fn chains(&self) -> Vec<PathBuf> {
        let pairs = fs::read_dir(self.directory.path().join("acme/pairs")).unwrap();
        let mut chains: Vec<_> = pairs
            .map(|pair| pair.unwrap().path().join("chain.pem"))
            .collect();
        chains.sort();
        chains
    }

    /// Asks as an operator does, and waits for what comes of it.
    async fn ask(&self, request: Request) -> Outcome {
        let asked = request::ask(&self.directory.path().join("acme/requests"), &request).unwrap();
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(outcome) = asked.outcome() {
                return outcome;
            }
            assert!(Instant::now() < deadline, "no answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn record(&self) -> Value {
        let text = fs::read(self.directory.path().join("acme/record.json"));
        text.map_or(Value::Null, |text| serde_json::from_slice(&text).unwrap())
    }
}

fn authority(name: &str, pebble: &Pebble) -> Authority {
    Authority {
        name: name.to_owned(),
        directory: pebble.url(),
        ca_file: Some(pebble.ca_file()),
        profile: None,
        external_account: None,
    }
}

/// Shakes hands as a client that trusts the authority; how many days the certificate holds.
async fn shake_hands(store: &Store, pebble: &Pebble, name: &str) -> u64 {
    let client = client_config(&Trust::Authorities(pebble.root())).unwrap();
    let (near, far) = duplex(16 * 1024);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let (server, client) = tokio::join!(
        TlsAcceptor::from(Arc::new(store.server_config())).accept(far),
        TlsConnector::from(Arc::new(client)).connect(name, near),
    );
    server.unwrap();
    client.unwrap();
    let left = store.expiry().unwrap().duration_since(SystemTime::now());
    left.unwrap().as_secs() / 86_400
}

#[tokio::test]
async fn names_and_addresses_are_validated_over_http_though_half_of_all_nonces_are_refused() {
    let mut gateway = Gateway::new(Kind::Http01);
    let pebble = gateway.pebble(&[("PEBBLE_WFE_NONCEREJECT", "50"), ("PEBBLE_AUTHZREUSE", "0")]);
    // Where none is asked for, Pebble takes any of its profiles.
    gateway.authorities.push(Authority {
        profile: Some("default".to_owned()),
        ..authority("pebble", &pebble)
    });
    let (store, _renewal) = gateway.obtain().await;
    for name in NAMES {
        assert_eq!(shake_hands(&store, &pebble, name).await, 89, "{name}");
    }
    assert_eq!(gateway.record()["authorities"]["pebble"]["until"], 0);
}

#[tokio::test]
async fn names_and_addresses_are_validated_in_a_tls_handshake() {
    let mut gateway = Gateway::new(Kind::TlsAlpn01);
    let pebble = gateway.pebble(&[("PEBBLE_AUTHZREUSE", "0")]);
    gateway.authorities.push(authority("pebble", &pebble));
    let (store, _renewal) = gateway.obtain().await;
    for name in NAMES {
        shake_hands(&store, &pebble, name).await;
    }
}

#[tokio::test]
async fn an_account_is_bound_to_one_elsewhere_and_a_profile_is_asked_for() {
    let mut gateway = Gateway::new(Kind::Http01);
    let pebble = Pebble::start(&Setup {
        validates_at: gateway.listen.port(),
        external: true,
        variables: &[],
    });
    let key_file = gateway.directory.path().join("external.key");
    let bound = |name: &str, key: &str| {
        let key_file = key_file.with_extension(name);
        wavry_credentials::source::write_private(&key_file, key.as_bytes()).unwrap();
        Authority {
            profile: Some("shortlived".to_owned()),
            external_account: Some(ExternalAccount {
                key_id: EXTERNAL.0.to_owned(),
                key_file,
            }),
            ..authority(name, &pebble)
        }
    };
    gateway.authorities.push(authority("unbound", &pebble));
    gateway.authorities.push(bound("forged", "AAAA"));
    gateway.authorities.push(bound("bound", EXTERNAL.1));
    let (store, _renewal) = gateway.obtain().await;
    assert_eq!(shake_hands(&store, &pebble, NAMES[0]).await, 5);
    for refused in ["unbound", "forged"] {
        assert_eq!(gateway.record()["authorities"][refused]["failures"], 1);
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_when_its_authority_says_so_and_kept_over_a_restart() {
    let mut gateway = Gateway::new(Kind::Http01);
    let pebble = gateway.pebble(&[]);
    gateway.authorities.push(authority("pebble", &pebble));
    let (store, renewal) = gateway.obtain().await;
    let first = store.expiry();
    drop(renewal);
    gateway.is_gone().await;
    let chains = gateway.chains();
    assert_eq!(chains.len(), 1);

    pebble.suggest(&chains[0], "2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z");
    let (store, _renewal) = gateway.obtain().await;
    assert_eq!(store.expiry(), first, "what was kept is used at once");
    let deadline = Instant::now() + DEADLINE;
    while gateway.chains().len() < 2 || store.expiry() == first {
        assert!(
            Instant::now() < deadline,
            "not renewed: {}",
            gateway.record()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    shake_hands(&store, &pebble, NAMES[0]).await;
    let key = |chain: &Path| fs::read(chain.with_file_name("key.pem")).unwrap();
    let chains = gateway.chains();
    assert_ne!(
        key(&chains[0]),
        key(&chains[1]),
        "each has a key of its own"
    );
}

#[tokio::test]
async fn authorities_that_fail_in_every_way_are_passed_over_for_one_that_does_not() {
    let mut gateway = Gateway::new(Kind::Http01);
    let pebble = gateway.pebble(&[]);
    let broken = Broken::new();
    for (name, answer) in [
        (
            "failing",
            Some("HTTP/1.1 500 Oops\r\ncontent-length: 5\r\n\r\n<p>no"),
        ),
        (
            "limiting",
            Some("HTTP/1.1 429 Slow\r\nretry-after: 7200\r\ncontent-length: 2\r\n\r\n{}"),
        ),
        (
            "babbling",
            Some("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{\"a\": [1]"),
        ),
        ("mute", Some("\x16\x03\x01 no HTTP at all")),
        ("hanging", None),
    ] {
        gateway.authorities.push(broken.start(name, answer).await);
    }
    gateway.authorities.push(Authority {
        directory: format!("https://{}/dir", free_address()),
        ..authority("away", &pebble)
    });
    gateway.authorities.push(authority("pebble", &pebble));
    let (store, _renewal) = gateway.obtain().await;
    shake_hands(&store, &pebble, NAMES[0]).await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap().as_secs();
    for failed in &gateway.authorities[..6] {
        let fared = &gateway.record()["authorities"][&failed.name];
        assert_eq!(fared["failures"], 1, "{}", failed.name);
        // Those that failed first may be asked again by now.
        let wait = fared["until"].as_u64().unwrap().saturating_sub(now);
        match failed.name.as_str() {
            "limiting" => assert!((7100..7205).contains(&wait), "{wait}"),
            name => assert!(wait <= 60, "{name}: {wait}"),
        }
    }
}

#[tokio::test]
async fn a_name_that_cannot_be_validated_costs_one_attempt_and_leaves_nothing_in_use() {
    let mut gateway = Gateway::new(Kind::Http01);
    let pebble = Pebble::start(&Setup {
        validates_at: free_address().port(),
        external: false,
        variables: &[],
    });
    gateway.authorities.push(authority("pebble", &pebble));
    // The test's runtime has one thread, this one.
    let recorder = PrometheusBuilder::new().build_recorder();
    let _here = metrics::set_default_local_recorder(&recorder);
    let (store, _renewal) = gateway.start().await;
    let failed = r#"acme_attempts_total{authority="pebble",outcome="validation"} 1"#;
    let deadline = Instant::now() + DEADLINE;
    while !recorder.handle().render().contains(failed) {
        assert!(Instant::now() < deadline, "{}", recorder.handle().render());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(gateway.record()["authorities"]["pebble"]["failures"], 1);
    assert_eq!(store.expiry(), None);
    assert_eq!(gateway.chains(), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn an_operator_has_certificates_renewed_before_their_time_and_revoked() {
    let mut gateway = Gateway::new(Kind::Http01);
    let pebble = gateway.pebble(&[]);
    gateway.authorities.push(authority("pebble", &pebble));
    let (store, _renewal) = gateway.obtain().await;
    let hash = |chain: &Path| hex::encode(wavry_credentials::cert::file_hash(chain).unwrap());
    let revoke = |chain: &Path| Request::Revoke {
        certificate: hash(chain),
        reason: Reason::KeyCompromise,
    };
    let first = gateway.chains().remove(0);
    let outcome = gateway.ask(Request::Renew { now: false }).await;
    assert!(outcome.done, "{}", outcome.said);
    let second = gateway.chains().remove(1);
    assert_ne!(hash(&first), hash(&second));

    // One that is in use no more is revoked, and that is all.
    let outcome = gateway.ask(revoke(&first)).await;
    assert!(outcome.done, "{}", outcome.said);
    assert_eq!(pebble.status(&first)["Status"], "Revoked");
    assert_eq!(pebble.status(&second)["Status"], "Valid");
    let again = gateway.ask(revoke(&first)).await;
    assert!(again.done, "{}", again.said);
    assert_eq!(gateway.chains(), [first, second.clone()]);

    // One that is in use is replaced by one with another key.
    let key = |chain: &Path| fs::read(chain.with_file_name("key.pem")).unwrap();
    let old_key = key(&second);
    let outcome = gateway.ask(revoke(&second)).await;
    assert!(outcome.done, "{}", outcome.said);
    let status = pebble.status(&second);
    assert_eq!(status["Status"], "Revoked");
    assert_eq!(status["Reason"], 1);
    let deadline = Instant::now() + DEADLINE;
    while *gateway.chains().last().unwrap() == second {
        assert!(Instant::now() < deadline, "not replaced");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_ne!(key(gateway.chains().last().unwrap()), old_key);
    shake_hands(&store, &pebble, NAMES[0]).await;

    let unknown = gateway.ask(Request::Revoke {
        certificate: "00".to_owned(),
        reason: Reason::Unspecified,
    });
    assert!(!unknown.await.done);
}

/// The certificate that a handshake for `name` is answered with, whoever vouches for it.
async fn shown(store: &Store, name: &str) -> Option<Vec<u8>> {
    let (near, far) = duplex(16 * 1024);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = client_config(&Trust::System).unwrap();
    let seen = Arc::new(Seen::default());
    client.dangerous().set_certificate_verifier(seen.clone());
    let _ = tokio::join!(
        TlsAcceptor::from(Arc::new(store.server_config())).accept(far),
        TlsConnector::from(Arc::new(client)).connect(name, near),
    );
    seen.0.lock().unwrap().take()
}

fn roster(epoch: u64, hosts: &[&str]) -> Arc<Roster> {
    let service = serde_json::json!({ "name": "echo", "hosts": hosts });
    Arc::new(Roster {
        epoch: Epoch(epoch),
        services: vec![serde_json::from_value(service).unwrap()],
        ..Roster::empty("test".parse().unwrap())
    })
}

async fn wait_until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_host_of_a_service_gets_a_certificate_once_a_client_asks_for_it_and_no_other_name_does() {
    let mut gateway = Gateway::new(Kind::Http01);
    gateway.service_hosts = When::Asked;
    let pebble = gateway.pebble(&[]);
    gateway.authorities.push(authority("pebble", &pebble));
    let (store, mut renewal) = gateway.obtain().await;
    let default = shown(&store, NAMES[0]).await.unwrap();
    let hosts = [
        "a.service.example",
        "b.service.example",
        "c.service.example",
    ];
    let (rosters, roster_of) = watch::channel(roster(1, &hosts));
    renewal.joined(roster_of);

    // Nobody has asked for them; others are asked for by whoever likes.
    for number in 0..500 {
        let name = format!("n{number}.service.example");
        assert_eq!(shown(&store, &name).await.as_ref(), Some(&default));
    }
    assert_eq!(
        pebble.log_has("Added order "),
        1,
        "that of the gateway itself"
    );

    // Who comes first gets what there is, and the next one the host's own. The roster may be taken in meanwhile.
    for host in &hosts[..2] {
        wait_until("no certificate for a host", async || {
            shown(&store, host).await.unwrap() != default
        })
        .await;
        shake_hands(&store, &pebble, host).await;
    }
    assert_eq!(pebble.log_has("Added order "), 3);

    // Two in an hour were allowed.
    for _ in 0..100 {
        assert_eq!(shown(&store, hosts[2]).await.as_ref(), Some(&default));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(pebble.log_has("Added order "), 3);

    // What was counted, and what was obtained, outlives the process.
    drop(renewal);
    gateway.is_gone().await;
    let (store, mut renewal) = gateway.obtain().await;
    renewal.joined(rosters.subscribe());
    for host in &hosts[..2] {
        wait_until("what was kept is not used", async || {
            shown(&store, host).await.unwrap() != default
        })
        .await;
    }
    for _ in 0..100 {
        assert_eq!(shown(&store, hosts[2]).await.as_ref(), Some(&default));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(pebble.log_has("Added order "), 3);
}

#[tokio::test]
async fn hosts_of_services_get_certificates_as_the_roster_lists_them() {
    let mut gateway = Gateway::new(Kind::Http01);
    gateway.service_hosts = When::Registered;
    let pebble = gateway.pebble(&[]);
    gateway.authorities.push(authority("pebble", &pebble));
    let (store, mut renewal) = gateway.obtain().await;
    // Names of the gateway, and what no authority would certify, get none of their own.
    let (rosters, roster_of) = watch::channel(roster(1, &[NAMES[0], "localhost"]));
    renewal.joined(roster_of);
    let default = shown(&store, NAMES[0]).await.unwrap();
    rosters.send_replace(roster(2, &["a.service.example"]));
    wait_until("no certificate for a host", async || {
        shown(&store, "a.service.example").await.unwrap() != default
    })
    .await;
    assert_eq!(pebble.log_has("Added order "), 2);
}

/// Notes the certificate of a server, and goes on with nobody.
#[derive(Debug, Default)]
struct Seen(std::sync::Mutex<Option<Vec<u8>>>);

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().unwrap() = Some(certificate.to_vec());
        Err(rustls::Error::General("it was seen".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("it was seen".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("it was seen".to_owned()))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Authorities that are none.
struct Broken(tempfile::TempDir);

impl Broken {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = DevelopmentAuthority::open(directory.path()).unwrap();
        authority.issue("broken", &["127.0.0.1"]).unwrap();
        Self(directory)
    }

    /// One that answers every request so, or not at all.
    async fn start(&self, name: &str, answer: Option<&'static str>) -> Authority {
        let at = |name: &str| self.0.path().join(name);
        let store = Store::new();
        store.load(&at("broken.crt"), &at("broken.key")).unwrap();
        let tls = TlsAcceptor::from(Arc::new(store.server_config()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let directory = format!("https://{}/dir", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = tls.accept(stream).await else {
                    continue;
                };
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                if let Some(answer) = answer {
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
                held.push(stream);
            }
        });
        Authority {
            name: name.to_owned(),
            directory,
            ca_file: Some(at("ca.crt")),
            profile: None,
            external_account: None,
        }
    }
}
