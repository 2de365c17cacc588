//! A node that is revoked while it holds all that could let it go on: a live connection, a flow with a lease, and a
//! TLS ticket. It does what such a node may do and no other does: it asks for tickets, and takes no notice of the
//! roster.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

mod support;

use std::{
    net::{SocketAddr, UdpSocket},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    ClientConfig, DigitallySignedStruct, NamedGroup, SignatureScheme,
    client::{
        ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde_json::Value;
use support::{DEADLINE, client::within, cluster::Cluster, stderr, wait_for};
use tokio::sync::watch;
use wavry_credentials::{
    identity::{Identity, MeshTls},
    membership::{self, Leases, Membership},
    source,
};
use wavry_proto::{
    control::lease::Way,
    id::NodeId,
    mesh::{ALPN, Open},
    overlay::{
        Authenticator,
        lease::{Offer, Source as _},
        packet::{Claim, Header, Kind, Label, Next, Probe, Ruling, Verdict},
    },
    session::Request,
};
use wavry_transport::{
    mesh::{self, Endpoint},
    session::{Closed, Session as _},
};

const NODE: &str = "edge-2";
const EXIT: &str = "exit";
/// Tickets that the node has: more than it makes connections.
const TICKETS: usize = 8;

const RELAY: &str = "transit-a";

/// Within which all of it has come to nothing.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);

/// For how long nothing is let through after that.
const STAYS: Duration = Duration::from_secs(2);

fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_with_a_ticket_a_live_connection_and_a_leased_flow_is_left_with_none_of_them()
 {
    let cluster = cluster();
    let operator = cluster.operator_token("operator");
    let node = Node::join(&cluster).await;
    let ticket = node.gets_a_ticket(&cluster).await;
    let relay = transit_address(&cluster, &operator);

    // The ticket is good for who gave it, and for the exit it is nothing: it shakes hands from the beginning, and
    // gives none.
    let handshakes = node.tls.handshakes();
    let mesh = node.endpoint(&ticket);
    let (session, _) = within(DEADLINE, "a session", mesh.open(&id(EXIT), open()))
        .await
        .unwrap();
    assert_eq!(
        node.tls.handshakes(),
        handshakes + 1,
        "the exit resumed what it never knew"
    );
    assert!(ticket.was_offered() > 0, "the ticket was not offered");
    assert_eq!(ticket.given(), 0, "the exit gives tickets");

    let mut flow = node.claim(relay).await;
    assert!(flow.carries(), "the flow carries nothing");

    let began = Instant::now();
    let probing = tokio::task::spawn_blocking(move || flow.until_refused(began));
    let done = cluster.operate(&operator, &["node", "revoke", NODE]);
    assert!(done.status.success(), "{}", stderr(&done));
    let closed = within(REVOKED_WITHIN, "the close", session.closed()).await;
    let took = began.elapsed();
    let Closed::Lost(reason) = closed else {
        panic!("{closed}");
    };
    println!("{took:?} after the command began: {reason}");
    assert!(took < REVOKED_WITHIN, "{took:?}");
    assert!(reason.contains("(code 1)"), "the connection tells why");
    for mesh in [mesh, node.endpoint(&ticket)] {
        let again = mesh.open(&id(EXIT), open()).await;
        assert!(again.is_err(), "it has a session again");
    }
    assert!(ticket.was_offered() > 1, "the ticket was not offered");
    let answered = node.tls.handshakes() - handshakes;
    assert_eq!(answered, 1, "the exit answers a handshake");
    let (carried, granted) = probing.await.unwrap();
    println!("its flow carried until {carried:?}, and was granted until {granted:?}");
    assert!(!carried.is_zero() && carried < REVOKED_WITHIN);
    assert!(!granted.is_zero() && granted < REVOKED_WITHIN);
    for reason in ["unknown_flow", "unknown_sender"] {
        let series = format!("wavry_transport_transit_dropped_total{{reason=\"{reason}\"}}");
        assert!(
            cluster.metric_of(RELAY, &series) > 0.0,
            "{reason} is not counted"
        );
    }
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    cluster.add_relay(RELAY, "other", "echo:", &[]);
    cluster.add_service_only("other");
    cluster.set("further", "[relay.transit]\nlisten = \"127.0.0.1:0\"");
    cluster.start()
}

/// Where the relay forwards.
fn transit_address(cluster: &Cluster, operator: &Path) -> SocketAddr {
    let listed = || {
        let shown = cluster.operate(operator, &["node", "show", RELAY, "--json"]);
        assert!(shown.status.success(), "{}", stderr(&shown));
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        shown["transit"][0].as_str().map(|at| at.parse().unwrap())
    };
    wait_for("the roster has where it forwards", || listed().is_some());
    listed().unwrap()
}

fn open() -> Open {
    Open {
        service: "open".parse().unwrap(),
        request: Request {
            authority: "example.test".to_owned(),
            path: "/".to_owned(),
            origin: None,
            headers: Vec::new(),
            subprotocols: Vec::new(),
        },
        client: ([192, 0, 2, 1], 1).into(),
        subject: None,
        claims: None,
    }
}

/// A gateway in this process.
struct Node {
    membership: Membership,
    tls: Tls,
}

impl Node {
    async fn join(cluster: &Cluster) -> Self {
        let directory = cluster.directory().join(NODE);
        let mut provision = cluster.signing(&["provision", "gateway", NODE, "--out"]);
        let done = provision.arg(&directory).output().unwrap();
        assert!(done.status.success(), "{}", stderr(&done));
        let joining = Box::pin(Membership::join(membership::Config {
            master: format!("https://{}", cluster.master()),
            ca_file: cluster.directory().join("ca.crt"),
            state_dir: directory.join("state"),
            services: Vec::new(),
            max_roster_age: Duration::from_secs(3600),
            identity_lifetime: Duration::from_secs(3600 * 24 * 30),
            identity_key: Some(directory.join("identity.key")),
            registration_token: Some(directory.join("registration.token")),
        }));
        let membership = within(DEADLINE, "a place in the cluster", joining)
            .await
            .unwrap();
        let is_there = |name| {
            move |roster: &Arc<wavry_proto::control::Roster>| {
                roster
                    .node(&id(name))
                    .is_some_and(|node| !node.addresses.is_empty())
            }
        };
        for name in [EXIT, RELAY] {
            let mut roster = membership.roster();
            let listed = roster.wait_for(is_there(name));
            within(DEADLINE, "a roster with all", listed).await.unwrap();
        }
        let tls = Tls::of(membership.mesh_tls().unwrap());
        Self { membership, tls }
    }

    /// A ticket for the exit, by somebody who has its identity and gives tickets; it is good there.
    async fn gets_a_ticket(&self, cluster: &Cluster) -> Arc<Tickets> {
        let file = cluster.directory().join(EXIT).join("identity.key");
        let exit = source::read_as("identity_key", Some(&file), Identity::read).unwrap();
        let mut tls = (*exit.mesh_tls(self.membership.roster()).unwrap().server).clone();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.send_tls13_tickets = TICKETS;
        tls.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
        tls.max_early_data_size = u32::MAX;
        let config = QuicServerConfig::try_from(tls).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(config));
        let at = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = quinn::Endpoint::server(config, at).unwrap();
        let to = server.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let mut connections = Vec::new();
            while let Some(incoming) = server.accept().await {
                connections.push(incoming.await);
            }
        });

        let tickets = Arc::new(Tickets::default());
        let mut tls = self.tls.with(&tickets);
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let config = QuicClientConfig::try_from(tls).unwrap();
        let client = quinn::Endpoint::client(at).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(config));
        let connect = || client.connect_with(config.clone(), to, EXIT).unwrap();
        let first = within(DEADLINE, "a handshake", connect()).await.unwrap();
        wait_for("all tickets", || tickets.given() == TICKETS);
        first.close(0u32.into(), b"");
        let handshakes = self.tls.handshakes();
        let Ok((again, accepted)) = connect().into_0rtt() else {
            panic!("the ticket is not used");
        };
        assert!(
            within(DEADLINE, "an answer", accepted).await,
            "0-RTT is refused"
        );
        assert_eq!(self.tls.handshakes(), handshakes, "it is resumed");
        again.close(0u32.into(), b"");
        within(DEADLINE, "the end", client.wait_idle()).await;
        serving.abort();
        tickets.count_anew();
        tickets
    }

    /// The node's end of the mesh, which asks for tickets and offers this one.
    fn endpoint(&self, ticket: &Arc<Tickets>) -> Endpoint {
        let MeshTls {
            server,
            key,
            authenticator,
            ..
        } = self.membership.mesh_tls().unwrap();
        let config = mesh::Config {
            node: id(NODE),
            server_tls: server,
            client_tls: Arc::new(self.tls.with(ticket)),
            key,
            authenticator,
            roster: self.membership.roster(),
            leases: mesh::Leases {
                source: Arc::new(self.membership.leases()),
                changed: watch::channel(()).1,
            },
            limits: mesh::Limits::default(),
        };
        let socket = mesh::bind(([127, 0, 0, 1], 0).into()).unwrap();
        Endpoint::new(socket, config).unwrap()
    }

    /// A flow to the exit, by a lease that the master signed.
    async fn claim(&self, relay: SocketAddr) -> Flow {
        let flow = Label::from_random(77);
        let leases = self.membership.leases();
        leases.want(Way {
            flow,
            peer: id(EXIT),
            hops: vec![id(RELAY)],
        });
        let lease = within(DEADLINE, "a lease", leased(&leases, flow)).await;
        let roster = self.membership.roster().borrow().clone();
        let exit = roster.node(&id(EXIT)).unwrap().addresses[0];
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        Flow {
            socket,
            relay,
            authenticator: self.membership.mesh_tls().unwrap().authenticator,
            claim: Claim {
                flow,
                nonce: 0,
                cookie: 0,
                from: id(NODE),
                to: id(RELAY),
                peer: id(EXIT),
                hops: vec![id(RELAY)],
                next: Next::At(exit),
                lease: lease.to_vec(),
            },
        }
    }
}

async fn leased(leases: &Leases, flow: Label) -> Arc<[u8]> {
    loop {
        if let Offer::Lease(lease) = leases.offer(flow) {
            return lease;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A flow that is claimed and probed by hand.
struct Flow {
    socket: UdpSocket,
    relay: SocketAddr,
    authenticator: Arc<dyn Authenticator>,
    claim: Claim,
}

/// What came back.
#[derive(Debug, Default)]
struct Heard {
    granted: bool,
    pong: bool,
}

impl Flow {
    /// Claims the flow, probes the exit over it, and listens for a moment.
    fn turn(&mut self) -> Heard {
        let mut packet = Vec::new();
        self.claim.nonce += 1;
        self.claim.write(&mut packet, |message, tags| {
            self.authenticator.tags(&id(RELAY), message, tags);
        });
        self.socket.send_to(&packet, self.relay).unwrap();
        let probe = Probe {
            kind: Kind::Ping,
            flow: self.claim.flow,
            nonce: self.claim.nonce,
            label: Label::from_random(78),
            from: id(NODE),
            to: id(EXIT),
        };
        probe.write(&mut packet, 0, |message, tags| {
            self.authenticator.tags(&id(EXIT), message, tags);
        });
        self.socket.send_to(&packet, self.relay).unwrap();
        let (mut heard, mut buffer) = (Heard::default(), [0; 2_048]);
        while let Ok(len) = self.socket.recv(&mut buffer) {
            let packet = &buffer[..len];
            match Header::read(packet).map(|(header, _)| header.kind) {
                Some(Kind::Pong) => heard.pong = true,
                Some(Kind::Verdict) => match Verdict::read(packet).unwrap().said.ruling {
                    Ruling::Prove { cookie } => self.claim.cookie = cookie,
                    Ruling::Granted { .. } => heard.granted = true,
                    Ruling::Refused(_) => {}
                },
                _ => {}
            }
        }
        heard
    }

    /// Whether it is granted, and the exit answers over it.
    fn carries(&mut self) -> bool {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            let Heard { granted, pong } = self.turn();
            if granted && pong {
                return true;
            }
        }
        false
    }

    /// Goes on until nothing comes back any more; when an answer came last over the flow, and a grant.
    fn until_refused(mut self, began: Instant) -> (Duration, Duration) {
        let (mut carried, mut granted) = (Duration::ZERO, Duration::ZERO);
        while began.elapsed() < carried.max(granted) + STAYS {
            assert!(began.elapsed() < DEADLINE, "it goes on and on");
            let heard = self.turn();
            if heard.pong {
                carried = began.elapsed();
            }
            if heard.granted {
                granted = began.elapsed();
            }
        }
        (carried, granted)
    }
}

/// TLS as somebody has it who has the node's identity and believes whoever answers.
struct Tls {
    own: MeshTls,
    anybody: Arc<Anybody>,
}

impl Tls {
    fn of(own: MeshTls) -> Self {
        Self {
            own,
            anybody: Arc::default(),
        }
    }

    /// Handshakes in which the other side showed its key: those that were not resumed.
    fn handshakes(&self) -> usize {
        self.anybody.asked.load(Ordering::SeqCst)
    }

    fn with(&self, tickets: &Arc<Tickets>) -> ClientConfig {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(self.anybody.clone())
            .with_client_cert_resolver(self.own.client.client_auth_cert_resolver.clone());
        tls.resumption = Resumption::store(tickets.clone());
        tls.enable_early_data = true;
        tls
    }
}

#[derive(Debug, Default)]
struct Anybody {
    asked: AtomicUsize,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("it speaks TLS 1.3 alone")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Tickets that servers gave, of which each is offered once.
#[derive(Debug, Default)]
struct Tickets {
    given: AtomicUsize,
    offered: AtomicUsize,
    kept: Mutex<Vec<Tls13ClientSessionValue>>,
}

impl Tickets {
    fn given(&self) -> usize {
        self.given.load(Ordering::SeqCst)
    }

    fn was_offered(&self) -> usize {
        self.offered.load(Ordering::SeqCst)
    }

    /// What is given and was offered is counted from now on.
    fn count_anew(&self) {
        self.given.store(0, Ordering::SeqCst);
        self.offered.store(0, Ordering::SeqCst);
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.given.fetch_add(1, Ordering::SeqCst);
        self.kept.lock().unwrap().push(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let ticket = self.kept.lock().unwrap().pop();
        self.offered
            .fetch_add(usize::from(ticket.is_some()), Ordering::SeqCst);
        ticket
    }
}
