//! Copies of the audit log elsewhere: over every transport of syslog, to receivers that go away and come
//! back.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use rustls::server::WebPkiClientVerifier;
use sqlx::{Connection as _, SqliteConnection};
use tokio::net::{UdpSocket, UnixDatagram};
use tokio_rustls::TlsAcceptor;
use wavry_credentials::{cert, identity::Identity};
use wavry_master::{
    Config,
    audit_reader::Reader,
    audit_sink::{self, RawSink, Target, Transport},
};
use wavry_proto::control::Role;

use crate::{
    audit::jti,
    receiver::{Receiver, listener},
    wire::{Wire, claims, heartbeat, sign},
    world::{DEADLINE, Running, World, node_id, service},
};

fn with_sink(world: &World, url: &str) -> Config {
    with(
        world,
        RawSink {
            url: url.to_owned(),
            ..RawSink::default()
        },
    )
}

fn with(world: &World, raw: RawSink) -> Config {
    let raw = RawSink {
        name: "siem".into(),
        ..raw
    };
    Config {
        audit_sinks: audit_sink::sinks(vec![raw]).unwrap(),
        ..world.config()
    }
}

/// Has lines written, one for each node.
async fn register(world: &World, master: &Running, nodes: &[&str]) {
    for node in nodes {
        let mut wire = Wire::open(world, master.address).await;
        let token = world.token(node, Role::Relay, &["echo"]);
        let jti = jti(&token);
        let registered = wire.register(&Identity::generate(), &token, &jti).await;
        assert_eq!(registered.0, 201);
    }
}

/// The lines in the database.
async fn log(world: &World) -> Vec<String> {
    let reader = Reader::open(&world.database()).await.unwrap();
    let lines = reader.lines(0).await.unwrap();
    lines.into_iter().map(|(_, line)| line).collect()
}

/// What the receiver trusts to be a sink, and that sink's certificate and key.
fn client_certificate(world: &World) -> (rustls::RootCertStore, RawSink) {
    let made = rcgen::generate_simple_self_signed(["master".to_owned()]).unwrap();
    let (chain, key) = (world.path("sink.crt"), world.path("sink.key"));
    std::fs::write(&chain, made.cert.pem()).unwrap();
    let pem = made.signing_key.serialize_pem();
    wavry_credentials::source::write_private(&key, pem.as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let raw = RawSink {
        certificate: Some(chain),
        ca_file: Some(world.path("ca.crt")),
        ..RawSink::default()
    };
    (roots, raw)
}

fn server_tls(world: &World, clients: Option<rustls::RootCertStore>) -> TlsAcceptor {
    let (chain, key) = (world.path("master.crt"), world.path("master.key"));
    let store = cert::Store::new();
    store.load(&chain, &key).unwrap();
    let config = match clients {
        None => store.server_config(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
                .build()
                .unwrap();
            let mut config = rustls::ServerConfig::builder()
                .with_client_cert_verifier(verifier)
                .with_cert_resolver(store.server_config().cert_resolver);
            config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
            config
        }
    };
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn every_transport_carries_each_line_whole_and_in_order() {
    let world = World::new();
    for transport in ["tcp", "tls", "udp", "unix"] {
        let (mut receiver, url) = match transport {
            "tcp" => {
                let (listener, address) = listener().await;
                let url = format!("syslog+tcp://{address}");
                (Receiver::stream(listener, None), url)
            }
            "tls" => {
                let (listener, address) = listener().await;
                let url = format!("syslog+tls://{address}");
                let tls = server_tls(&world, None);
                (Receiver::stream(listener, Some(tls)), url)
            }
            "udp" => {
                let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                let url = format!("syslog+udp://{}", socket.local_addr().unwrap());
                (Receiver::udp(socket), url)
            }
            _ => {
                let path = world.path("log.socket");
                let url = format!("syslog+unix://{}", path.display());
                (Receiver::unix(UnixDatagram::bind(&path).unwrap()), url)
            }
        };
        let config = Config {
            database: world.path(&format!("{transport}.sqlite")).into(),
            ..with(
                &world,
                RawSink {
                    url,
                    ca_file: (transport == "tls").then(|| world.path("ca.crt")),
                    ..RawSink::default()
                },
            )
        };
        let database = config.database.clone();
        let master = world.start_with(config).await;
        register(&world, &master, &["one", "two", "three"]).await;
        let lines = Reader::open(&database)
            .await
            .unwrap()
            .lines(0)
            .await
            .unwrap();
        for (number, line) in lines {
            let message = receiver.next().await;
            assert_eq!(message.line, line, "{transport}");
            assert_eq!(message.sequence, number, "{transport}");
            assert_eq!(message.action, "register", "{transport}");
            assert_eq!(message.priority, 13 * 8 + 5, "{transport}");
        }
        master.stop().await;
    }
}

#[tokio::test]
async fn a_sink_and_its_receiver_show_each_other_certificates() {
    let world = World::new();
    let (clients, raw) = client_certificate(&world);
    let (listener, address) = listener().await;
    let tls = server_tls(&world, Some(clients));
    let mut receiver = Receiver::stream(listener, Some(tls));
    let mut config = with(
        &world,
        RawSink {
            url: format!("syslog+tls://{address}"),
            ..raw
        },
    );
    let Target::Syslog(target) = &mut config.audit_sinks[0].target else {
        panic!("syslog it is");
    };
    let Transport::Tls(_, tls) = &mut target.transport else {
        panic!("TLS it is");
    };
    tls.key = Some(world.path("sink.key"));
    let master = world.start_with(config).await;
    register(&world, &master, &["one"]).await;
    assert_eq!(receiver.lines(1).await, log(&world).await);
    master.stop().await;
}

#[tokio::test]
async fn a_receiver_that_nobody_vouches_for_is_given_nothing() {
    let world = World::new();
    let (listener, address) = listener().await;
    let tls = server_tls(&world, None);
    let mut receiver = Receiver::stream(listener, Some(tls.clone()));
    // The authorities of the system do not know this one.
    let config = with_sink(&world, &format!("syslog+tls://{address}"));
    let master = world.start_with(config).await;
    register(&world, &master, &["one"]).await;
    master.stop().await;

    let config = with(
        &world,
        RawSink {
            url: format!("syslog+tls://{address}"),
            ca_file: Some(world.path("ca.crt")),
            ..RawSink::default()
        },
    );
    let master = world.start_with(config).await;
    register(&world, &master, &["two"]).await;
    // What comes first comes over the connection that was made with the authority.
    assert_eq!(receiver.lines(2).await, log(&world).await);
    master.stop().await;
}

#[tokio::test]
async fn a_receiver_that_was_away_gets_every_line_once_it_is_back() {
    let world = World::new();
    let (first, address) = listener().await;
    let mut receiver = Receiver::stream(first, None);
    let config = with_sink(&world, &format!("syslog+tcp://{address}"));
    let master = world.start_with(config).await;
    register(&world, &master, &["one"]).await;
    let before = receiver.lines(1).await;
    drop(receiver);
    register(&world, &master, &["two", "three"]).await;
    let again = {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        socket.listen(16).unwrap()
    };
    let mut receiver = Receiver::stream(again, None);
    // The first line may come again: that it arrived, nobody said.
    let all = log(&world).await;
    assert_eq!(before, all[..1]);
    assert_eq!(receiver.lines(3).await, all);
    register(&world, &master, &["four"]).await;
    assert_eq!(receiver.lines(1).await, log(&world).await[3..]);
    master.stop().await;
}

#[tokio::test]
async fn a_sink_goes_on_where_it_was_when_the_master_starts_again() {
    let world = World::new();
    let (first, address) = listener().await;
    let mut receiver = Receiver::stream(first, None);
    let config = || with_sink(&world, &format!("syslog+tcp://{address}"));
    let master = world.start_with(config()).await;
    register(&world, &master, &["one", "two"]).await;
    receiver.lines(2).await;
    delivered(&world, 2).await;
    master.stop().await;
    let master = world.start_with(config()).await;
    register(&world, &master, &["three"]).await;
    assert_eq!(receiver.lines(1).await, log(&world).await[2..]);
    master.stop().await;
}

/// Waits until the sink is known to have so many lines.
async fn delivered(world: &World, lines: i64) {
    let url = format!("sqlite://{}", world.path("master.sqlite").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let started = Instant::now();
    loop {
        let seq: Option<i64> = sqlx::query_scalar("SELECT seq FROM audit_sink WHERE name = 'siem'")
            .fetch_optional(&mut database)
            .await
            .unwrap();
        if seq == Some(lines) {
            return;
        }
        assert!(started.elapsed() < DEADLINE, "{seq:?} of {lines} delivered");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_receiver_that_takes_nothing_holds_up_nobody_and_gets_all_of_it_later() {
    let world = World::new();
    let path = world.path("log.socket");
    let deaf = UnixDatagram::bind(&path).unwrap();
    let config = with_sink(&world, &format!("syslog+unix://{}", path.display()));
    let master = world.start_with(config).await;
    let mut wire = Wire::open(&world, master.address).await;
    let (identity, token) = (Identity::generate(), sign(&world, &claims("1")));
    assert_eq!(wire.register(&identity, &token, "1").await.0, 201);
    let bearer = wire.bearer(&world, &identity, &node_id("exit"));
    let mut forbidden = heartbeat();
    forbidden.services = vec![service("other")];
    // More than a socket's queue takes.
    for _ in 0..600 {
        assert_eq!(wire.heartbeat(Some(&bearer), &forbidden).await.0, 403);
    }
    let all = log(&world).await;
    assert_eq!(all.len(), 601);
    let mut receiver = Receiver::unix(deaf);
    let mut received = BTreeMap::new();
    while received.len() < all.len() {
        let message = receiver.next().await;
        received.insert(message.sequence, message.line);
    }
    assert!(received.into_values().eq(all));
    master.stop().await;
}
