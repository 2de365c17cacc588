//! Masters whose certificates their own authority signs, nodes that show theirs, and what becomes of others.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use wavry_credentials::{
    cert,
    membership::{self, Membership},
    source,
};
use wavry_master::{
    Config,
    authority::{self, Demand, RawAuthority},
    keyvault,
};
use wavry_proto::{
    control::{Problem, Role},
    token::OperatorRole,
};

use crate::{
    operate::{get, operator},
    wire::{Wire, json as read_json},
    world::{DEADLINE, Running, World, join, node_id, roster_where},
};

/// Short, so that there are renewals while a test runs.
const LIFETIME: Duration = Duration::from_secs(6);

/// A master whose certificate its own authority signs.
fn config(world: &World, demand: Demand) -> Config {
    let authority = RawAuthority {
        names: vec!["127.0.0.1".to_owned()],
        certificate_lifetime: LIFETIME,
        node_certificates: demand,
        ..RawAuthority::default()
    };
    Config {
        authority: Some(authority.try_into().unwrap()),
        certificate: None,
        tls_key: None,
        ..world.config()
    }
}

/// Starts it, and has the file of authorities be what `wavry master authority show` writes.
async fn start(world: &World, demand: Demand) -> Running {
    let master = world.start_with(config(world, demand)).await;
    let trusted = authority::trusted(&world.database()).await.unwrap();
    fs::write(world.path("ca.crt"), trusted).unwrap();
    master
}

/// What Debian's OpenSSL says of the master, which it asks for a page.
fn openssl(world: &World, address: SocketAddr, more: &[&Path]) -> String {
    let mut command = Command::new("openssl");
    command
        .args([
            "s_client",
            "-verify_return_error",
            "-ign_eof",
            "-verify_ip",
            "127.0.0.1",
        ])
        .arg("-connect")
        .arg(address.to_string())
        .arg("-CAfile")
        .arg(world.path("ca.crt"));
    if let [certificate, key] = more {
        command.arg("-cert").arg(certificate).arg("-key").arg(key);
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("Debian's openssl");
    let request = b"GET /v1/roster HTTP/1.1\r\nhost: master\r\nconnection: close\r\n\r\n";
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), request).unwrap();
    let said = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr)
}

/// The certificate that the master shows now.
async fn shown(world: &World, master: &Running) -> Vec<u8> {
    let stream = crate::wire::tls(world, master.address).await;
    let certificates = stream.get_ref().1.peer_certificates().unwrap();
    certificates[0].to_vec()
}

/// The newest pair that a node keeps: certificate and key.
fn kept(config: &membership::Config) -> Option<[PathBuf; 2]> {
    let pairs = fs::read_dir(config.state_dir.join("certificate/pairs")).ok()?;
    let mut pairs: Vec<_> = pairs.flatten().map(|entry| entry.path()).collect();
    pairs.sort();
    pairs.retain(|pair| !pair.file_name().unwrap().to_string_lossy().starts_with('.'));
    let newest = pairs.pop()?;
    Some([newest.join("chain.pem"), newest.join("key.pem")])
}

async fn kept_in_time(config: &membership::Config, is_new: impl Fn(&Path) -> bool) -> [PathBuf; 2] {
    let found = async {
        loop {
            if let Some(pair) = kept(config).filter(|pair| is_new(&pair[0])) {
                return pair;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(DEADLINE, found)
        .await
        .expect("a certificate comes in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn masters_and_nodes_renew_their_certificates_and_no_request_fails() {
    let world = World::new();
    let master = start(&world, Demand::Required).await;
    let config = world.node(&master, "exit", Role::Relay, &["echo"]);
    let node = join(config.clone()).await;
    node.announce(vec!["127.0.0.1:1".parse().unwrap()]);
    let mut rosters = node.roster();
    roster_where(&mut rosters, |roster| {
        roster.exits(&"echo".parse().unwrap()).count() == 1
    })
    .await;

    // Openssl agrees that the chain holds, and has no session of a node's without a certificate.
    let address = master.address;
    let said = openssl(&world, address, &[]);
    assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
    assert!(said.contains("token-missing"), "{said}");

    // Connections and requests go on while both are renewed, several times.
    let requests = node.requests();
    let (mut of_master, mut of_node) = (vec![shown(&world, &master).await], Vec::new());
    let end = tokio::time::Instant::now() + LIFETIME * 3;
    let mut asked = 0;
    while tokio::time::Instant::now() < end {
        let now = shown(&world, &master).await;
        if of_master.last() != Some(&now) {
            of_master.push(now);
        }
        if let Some([chain, _]) = kept(&config)
            && of_node.last() != Some(&chain)
        {
            of_node.push(chain);
        }
        // A certificate is not needed for the answer to be of the node's: it is refused as no gateway's.
        let answer = requests.get::<serde_json::Value>(
            "/v1/fleet/changes?after=0",
            Duration::from_secs(10),
            1024,
        );
        let refused = answer.await.unwrap_err();
        assert!(refused.to_string().contains("gateways alone"), "{refused}");
        asked += 1;
        sleep(Duration::from_millis(20)).await;
    }
    assert!(
        of_master.len() >= 4,
        "{} certificates of the master",
        of_master.len()
    );
    assert!(
        of_node.len() >= 4,
        "{} certificates of the node",
        of_node.len()
    );
    assert!(asked > 100, "{asked} requests");
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_that_holds_a_node_is_refused_and_with_anothers_too() {
    let world = World::new();
    let master = start(&world, Demand::Required).await;
    let config = world.node(&master, "gw", Role::Gateway, &[]);
    let node = join(config.clone()).await;
    let other = world.node(&master, "other", Role::Gateway, &[]);
    let _other = join(other.clone()).await;
    let own = kept_in_time(&config, |_| true).await;
    let others = kept_in_time(&other, |_| true).await;
    // Copies, which the node does not renew.
    let copy = |[chain, key]: &[PathBuf; 2], name: &str| {
        let copies = [
            world.path(&format!("{name}.pem")),
            world.path(&format!("{name}.key")),
        ];
        fs::copy(chain, &copies[0]).unwrap();
        fs::copy(key, &copies[1]).unwrap();
        copies
    };
    let (own, others) = (copy(&own, "own"), copy(&others, "others"));
    let identity = source::read_file(config.identity_key.as_ref().unwrap());
    let identity = wavry_credentials::identity::Identity::from_pem(&identity.unwrap()).unwrap();
    let trust = cert::Trust::Authorities(world.path("ca.crt"));
    let ask = async |pair: Option<&[PathBuf; 2]>| {
        let tls = match pair {
            None => cert::client_config(&trust),
            Some([chain, key]) => cert::client_config_with(&trust, chain, key),
        };
        let mut wire = Wire::over(tls.unwrap(), master.address).await;
        let bearer = wire.bearer(&world, &identity, &node_id("gw"));
        wire.problem(Method::GET, "/v1/roster", Some(&bearer), "")
            .await
    };
    assert_eq!(ask(Some(&own)).await.0, 200);
    assert_eq!(ask(None).await, (403, "certificate-required".to_owned()));
    assert_eq!(
        ask(Some(&others)).await,
        (403, "certificate-foreign".to_owned())
    );
    // A stranger's authority.
    cert::DevelopmentAuthority::open(&world.path("strangers"))
        .unwrap()
        .issue("gw", &["gw"])
        .unwrap();
    let stranger = [
        world.path("strangers/gw.crt"),
        world.path("strangers/gw.key"),
    ];
    assert_eq!(
        ask(Some(&stranger)).await,
        (403, "certificate-required".to_owned())
    );
    // One that has expired, by the second in which it does.
    sleep(LIFETIME + Duration::from_secs(2)).await;
    assert_eq!(
        ask(Some(&own)).await,
        (403, "certificate-required".to_owned())
    );

    // Revoked, it is refused at once with one that holds, and gets no other.
    let newest = copy(&kept(&config).unwrap(), "newest");
    assert_eq!(ask(Some(&newest)).await.0, 200);
    let mut wire = Wire::open(&world, master.address).await;
    let bearer = operator(&world, OperatorRole::Operator);
    let revoked = wire.send(Method::POST, "/v1/nodes/gw/revoke", Some(&bearer), "");
    assert_eq!(revoked.await.0, 204);
    assert_eq!(ask(Some(&newest)).await, (401, "node-unknown".to_owned()));
    let mut wire = Wire::open(&world, master.address).await;
    let bearer = wire.bearer(&world, &identity, &node_id("gw"));
    let body = json!({"request": ""}).to_string();
    let asked = wire.problem(Method::POST, "/v1/nodes/certificate", Some(&bearer), body);
    assert_eq!(asked.await, (401, "node-unknown".to_owned()));
    drop(node);
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_authority_is_known_before_it_signs_and_the_old_one_is_trusted_until_it_is_over() {
    let world = World::new();
    let master = start(&world, Demand::Required).await;
    let config = world.node(&master, "gw", Role::Gateway, &[]);
    let node = join(config.clone()).await;
    let mut rosters = node.roster();
    let before = roster_where(&mut rosters, |roster| roster.authorities.trusted.len() == 1).await;
    let rotate = async |reason: &str| {
        let mut wire = Wire::open(&world, master.address).await;
        let bearer = operator(&world, OperatorRole::Admin);
        let body = json!({"reason": reason, "wait_seconds": 3, "overlap_seconds": 8}).to_string();
        let sent = wire.send(Method::POST, "/v1/authorities/rotate", Some(&bearer), body);
        let (status, _, body) = sent.await;
        assert_eq!(status, 201, "{body:?}");
        read_json(&body)
    };
    let made = rotate("request").await;
    assert_eq!(made["state"], "published");
    let published =
        roster_where(&mut rosters, |roster| roster.authorities.trusted.len() == 2).await;
    assert_eq!(
        published.authorities.trusted[0],
        before.authorities.trusted[0]
    );
    let first = published.authorities.trusted[1].clone();
    let signs = roster_where(&mut rosters, |roster| {
        roster.authorities.trusted[0] == first
    })
    .await;
    assert_eq!(signs.authorities.trusted.len(), 2);
    let over = roster_where(&mut rosters, |roster| roster.authorities.trusted.len() == 1).await;
    assert_eq!(over.authorities.trusted, [first]);
    // The node, whose file names the old one alone, finds the master, over a restart too.
    let held = kept(&config).unwrap();
    kept_in_time(&config, |chain| chain != held[0]).await;
    drop(node);
    let node = join(config.clone()).await;
    let mut rosters = node.roster();
    roster_where(&mut rosters, |roster| roster.epoch >= over.epoch).await;

    // Somebody has the key: nobody trusts it any more, and everybody has another certificate.
    let trusted = authority::trusted(&world.database()).await.unwrap();
    fs::write(world.path("ca.crt"), trusted).unwrap();
    let held = kept(&config).unwrap();
    let made = rotate("compromise").await;
    assert_eq!(made["state"], "signing");
    let revoked = roster_where(&mut rosters, |roster| roster.authorities.revoked.len() == 1).await;
    assert_eq!(revoked.authorities.trusted.len(), 1);
    kept_in_time(&config, |chain| chain != held[0]).await;
    let trusted = authority::trusted(&world.database()).await.unwrap();
    fs::write(world.path("ca.crt"), trusted).unwrap();
    let mut wire = Wire::open(&world, master.address).await;
    let bearer = operator(&world, OperatorRole::Viewer);
    let listed = get(&mut wire, "/v1/authorities", &bearer).await;
    let states: Vec<_> = listed["authorities"].as_array().unwrap().iter().collect();
    let states: Vec<_> = states
        .iter()
        .map(|one| one["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["retired", "revoked", "signing"]);
    master.stop().await;
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_a_node_that_asks_too_often_waits() {
    let world = World::new();
    let master = start(&world, Demand::Optional).await;
    let config = world.node(&master, "gw", Role::Gateway, &[]);
    let node = join(config.clone()).await;
    let identity = node.identity();
    let mut wire = Wire::open(&world, master.address).await;
    let mut refusals = Vec::new();
    for request in ["", "?", "AAAA", &"A".repeat(10_000)]
        .iter()
        .cycle()
        .take(12)
    {
        let bearer = wire.bearer(&world, &identity, &node_id("gw"));
        let body = json!({"request": request}).to_string();
        let asked = wire.problem(Method::POST, "/v1/nodes/certificate", Some(&bearer), body);
        refusals.push(asked.await);
    }
    let malformed = (400, "malformed-request".to_owned());
    assert_eq!(refusals[..4], [(); 4].map(|()| malformed.clone()));
    let last = refusals.pop().unwrap();
    assert_eq!(last, (429, "too-many-requests".to_owned()));
    master.stop().await;

    // A master without an authority has none to give, and nodes go on without.
    let world = World::new();
    let master = world.start().await;
    let config = world.node(&master, "gw", Role::Gateway, &[]);
    let node = join(config.clone()).await;
    let mut wire = Wire::open(&world, master.address).await;
    let bearer = wire.bearer(&world, &node.identity(), &node_id("gw"));
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let request = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    let request = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        request.der().as_ref(),
    );
    let body = json!({"request": request}).to_string();
    let asked = wire.problem(Method::POST, "/v1/nodes/certificate", Some(&bearer), body);
    assert_eq!(asked.await, (404, "no-authority".to_owned()));
    assert!(kept(&config).is_none());
}

/// Somebody at a master's address, with a master's certificate, that wants a certificate of every node and has none to
/// give: as a master does that cannot open its authority's key. How often it was asked for one.
async fn start_without_authority(world: &World) -> (SocketAddr, Arc<AtomicUsize>) {
    let store = cert::Store::new();
    let (chain, key) = (world.path("master.crt"), world.path("master.key"));
    store.load(&chain, &key).unwrap();
    let tls = TlsAcceptor::from(Arc::new(store.server_config()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (tls, count) = (tls.clone(), count.clone());
            tokio::spawn(async move {
                let stream = tls.accept(stream).await.unwrap();
                let answer = service_fn(move |request: hyper::Request<Incoming>| {
                    let is_asked = request.uri().path() == "/v1/nodes/certificate";
                    count.fetch_add(usize::from(is_asked), Ordering::Relaxed);
                    let (status, word) = match is_asked {
                        true => (404, "no-authority"),
                        false => (403, "certificate-required"),
                    };
                    let problem = Problem {
                        r#type: format!("{}{word}", Problem::URN),
                        title: word.to_owned(),
                        status,
                        detail: word.to_owned(),
                    };
                    let answer = hyper::Response::builder()
                        .status(status)
                        .header("content-type", "application/problem+json")
                        .body(Full::new(Bytes::from(
                            serde_json::to_vec(&problem).unwrap(),
                        )));
                    async move { answer }
                });
                // It ends when the node goes elsewhere.
                let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                let _ = serving.await;
            });
        }
    });
    (address, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_needs_a_certificate_finds_the_master_that_signs_one() {
    let world = World::new();
    let config = Config {
        // From files: both are found throughout.
        certificate: world.config().certificate,
        tls_key: world.config().tls_key,
        ..config(&world, Demand::Required)
    };
    let master = world.start_with(config).await;
    let (without, asked) = start_without_authority(&world).await;
    let mut config = world.node(&master, "gw", Role::Gateway, &[]);
    drop(join(config.clone()).await);
    let forget = |config: &membership::Config| {
        fs::remove_dir_all(config.state_dir.join("certificate")).unwrap();
        fs::remove_file(config.state_dir.join("roster")).unwrap();
    };
    config.master = format!("https://{without}, https://{}", master.address);
    // Which of them it asks first is chance.
    while asked.load(Ordering::Relaxed) == 0 {
        forget(&config);
        drop(join(config.clone()).await);
        assert!(kept(&config).is_some());
    }
    // Where there is no other, it waits for one.
    forget(&config);
    config.master = format!("https://{without}");
    let before = asked.load(Ordering::Relaxed);
    let joining = tokio::spawn(Membership::join(config.clone()));
    let asks_again = async {
        while asked.load(Ordering::Relaxed) < before + 3 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, asks_again).await.expect("it asks on");
    assert!(!joining.is_finished());
    joining.abort();
    master.stop().await;
}

/// A master with a KeyVault, whose certificates last.
fn with_keyvault(world: &World) -> Config {
    let authority = RawAuthority {
        names: vec!["127.0.0.1".to_owned()],
        ..RawAuthority::default()
    };
    let vault = keyvault::config::Vault::at(world.path("keyvault.sqlite").into());
    Config {
        authority: Some(authority.try_into().unwrap()),
        keyvault: Some(vault),
        ..config(world, Demand::Optional)
    }
}

/// Whether the KeyVault lets in by a certificate.
async fn is_let_in(world: &World, master: &Running, [chain, key]: &[PathBuf; 2]) -> bool {
    let trust = cert::Trust::Authorities(world.path("ca.crt"));
    let tls = cert::client_config_with(&trust, chain, key).unwrap();
    let mut wire = Wire::over(tls, master.address).await;
    let sent = wire.send(Method::POST, "/v1/auth/cert/login", None, "{}");
    let (status, _, body) = sent.await;
    match status.as_u16() {
        200 => read_json(&body)["auth"]["client_token"].is_string(),
        400 => false,
        _ => panic!("{status}: {}", read_json(&body)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_masters_keyvault_takes_certificates_of_nodes_as_they_are_listed_and_of_no_revoked_authority()
 {
    let world = World::new();
    let master = world.start_with(with_keyvault(&world)).await;
    let trusted = async || authority::trusted(&world.database()).await.unwrap();
    fs::write(world.path("ca.crt"), trusted().await).unwrap();
    let root = std::cell::RefCell::new(None::<String>);
    let put = async |path: &str, body: serde_json::Value| {
        let mut wire = Wire::open(&world, master.address).await;
        let root = root.borrow().clone();
        let sent = wire.send(Method::PUT, path, root.as_deref(), body.to_string());
        let (status, _, body) = sent.await;
        let said = String::from_utf8_lossy(&body).into_owned();
        assert!(status.is_success(), "{path}: {status} {said}");
        serde_json::from_str(&said).unwrap_or(serde_json::Value::Null)
    };
    let shares = json!({"secret_shares": 1, "secret_threshold": 1});
    let made = put("/v1/sys/init", shares).await;
    put("/v1/sys/unseal", json!({"key": made["keys"][0]})).await;
    root.replace(Some(made["root_token"].as_str().unwrap().to_owned()));
    put("/v1/sys/auth/cert", json!({"type": "cert"})).await;
    // A role that trusts every authority that ever was, and one of somebody else's.
    let strangers = cert::DevelopmentAuthority::open(&world.path("strangers")).unwrap();
    let theirs = fs::read_to_string(world.path("strangers/ca.crt")).unwrap();
    let (role, first) = ("/v1/auth/cert/certs/all", trusted().await);
    put(role, json!({"certificate": format!("{theirs}{first}")})).await;

    let copied = std::cell::Cell::new(0);
    let copy = |[chain, key]: [PathBuf; 2]| {
        copied.set(copied.get() + 1);
        let copies = ["pem", "key"].map(|end| world.path(&format!("{}.{end}", copied.get())));
        fs::copy(chain, &copies[0]).unwrap();
        fs::copy(key, &copies[1]).unwrap();
        copies
    };
    let config = world.node(&master, "gw", Role::Gateway, &[]);
    let node = join(config.clone()).await;
    let own = copy(kept_in_time(&config, |_| true).await);
    assert!(is_let_in(&world, &master, &own).await);

    // Registered anew, the node is let in by its new certificate alone, which the old one's key does not help to.
    drop(node);
    let again = membership::Config {
        state_dir: world.path("gw.again"),
        ..world.node(&master, "gw", Role::Gateway, &[])
    };
    let node = join(again.clone()).await;
    let anew = copy(kept_in_time(&again, |_| true).await);
    assert!(is_let_in(&world, &master, &anew).await);
    assert!(
        !is_let_in(&world, &master, &own).await,
        "of a former registration"
    );

    // Revoked, by none.
    let other = world.node(&master, "other", Role::Relay, &["echo"]);
    let other_node = join(other.clone()).await;
    let others = copy(kept_in_time(&other, |_| true).await);
    let mut wire = Wire::open(&world, master.address).await;
    let bearer = operator(&world, OperatorRole::Admin);
    let revoked = wire.send(Method::POST, "/v1/nodes/gw/revoke", Some(&bearer), "");
    assert_eq!(revoked.await.0, 204);
    assert!(
        !is_let_in(&world, &master, &anew).await,
        "of a revoked node"
    );
    assert!(is_let_in(&world, &master, &others).await);

    // Somebody has the authority's key: what it signed is of no use any more, although a role trusts it still.
    let held = kept(&other).unwrap();
    let body = json!({"reason": "compromise"}).to_string();
    let rotated = wire.send(Method::POST, "/v1/authorities/rotate", Some(&bearer), body);
    assert_eq!(rotated.await.0, 201);
    fs::write(world.path("ca.crt"), trusted().await).unwrap();
    assert!(
        !is_let_in(&world, &master, &others).await,
        "of a revoked authority"
    );
    let second = trusted().await;
    put(
        role,
        json!({"certificate": format!("{theirs}{first}{second}")}),
    )
    .await;
    assert!(
        !is_let_in(&world, &master, &others).await,
        "of a revoked authority"
    );
    let renewed = copy(kept_in_time(&other, |chain| chain != held[0]).await);
    assert!(is_let_in(&world, &master, &renewed).await);

    // Who is no node is a question of the role alone.
    strangers.issue("unit", &["unit.example"]).unwrap();
    let unit = ["strangers/unit.crt", "strangers/unit.key"].map(|name| world.path(name));
    assert!(is_let_in(&world, &master, &unit).await, "a unit of others");
    drop((node, other_node));
    master.stop().await;
}
