//! The relay between a real mesh endpoint and real upstreams. Only the cluster is made by hand.

mod echo;
mod exit;
mod tcp;
mod udp;
mod webtransport;

use std::{collections::BTreeMap, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wavry_credentials::{cert, identity::Identity};
use wavry_proto::{
    control::{Node, Role, Roster},
    id::{NodeId, ServiceName},
    mesh::Open,
    session::{Request, Response},
};
use wavry_transport::{
    mesh::{self, OpenError},
    session::{ReadError, RecvStream, SendStream, Session as _},
};

use crate::{
    Exit,
    config::{Config, Raw, RawUpstream},
    upstream::Upstream,
};

/// Nothing here takes so long unless it hangs.
const HANG: Duration = Duration::from_secs(20);

/// A relay that serves, and a gateway's end of the mesh.
struct World {
    gateway: mesh::Endpoint,
    relay: NodeId,
    exit: Arc<Exit>,
    mesh: mesh::Endpoint,
    sessions: TaskTracker,
    stop: CancellationToken,
    _roster: watch::Sender<Arc<Roster>>,
}

impl World {
    /// A relay with these upstreams.
    fn with(upstreams: &[(&str, RawUpstream)]) -> Self {
        Self::made(upstreams, Role::Gateway, 100)
    }

    fn made(upstreams: &[(&str, RawUpstream)], opener: Role, max_sessions: usize) -> Self {
        cert::install_crypto_provider();
        let config = config(upstreams, max_sessions);
        let upstreams: BTreeMap<ServiceName, Upstream> = config
            .upstreams
            .iter()
            .map(|(name, upstream)| {
                let dialable = Upstream::new(name.as_str(), upstream, HANG).unwrap();
                (name.clone(), dialable)
            })
            .collect();
        let (relay_identity, gateway_identity) = (Identity::generate(), Identity::generate());
        let node = |id: &str, role, identity: &Identity| Node {
            id: id.parse().unwrap(),
            role,
            keys: vec![identity.public_key()],
            addresses: Vec::new(),
            transit: Vec::new(),
            attached: Vec::new(),
            services: Vec::new(),
            registration: 1,
            leases: Default::default(),
            placement: Default::default(),
        };
        let mut nodes = Roster::empty("test".parse().unwrap());
        nodes.nodes = vec![
            node("opener", opener, &gateway_identity),
            node("relay", Role::Relay, &relay_identity),
        ]
        .into();
        let (sender, roster) = watch::channel(Arc::new(nodes.clone()));
        let relay_mesh = endpoint("relay", &relay_identity, &roster);
        let gateway = endpoint("opener", &gateway_identity, &roster);
        nodes.nodes[1].addresses = vec![relay_mesh.local_addr()];
        sender.send_replace(Arc::new(nodes));

        let world = Self {
            gateway,
            relay: "relay".parse().unwrap(),
            exit: Arc::new(Exit::new(upstreams, roster, config.max_sessions)),
            mesh: relay_mesh,
            sessions: TaskTracker::new(),
            stop: CancellationToken::new(),
            _roster: sender,
        };
        let (exit, mesh) = (world.exit.clone(), world.mesh.clone());
        let (sessions, stop) = (world.sessions.clone(), world.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            while let Some(requested) = mesh.accept().await {
                exit.take(requested, &sessions);
            }
        }));
        world
    }

    async fn open(&self, service: &str) -> Result<(mesh::Session, Response), OpenError> {
        self.ask(open(service)).await
    }

    async fn ask(&self, open: Open) -> Result<(mesh::Session, Response), OpenError> {
        soon(self.gateway.open(&self.relay, open)).await
    }

    async fn session(&self, service: &str) -> mesh::Session {
        self.open(service).await.unwrap().0
    }

    /// The status with which a session is refused.
    async fn refusal(&self, service: &str) -> u16 {
        match self.open(service).await {
            Err(OpenError::Rejected(response)) => response.status,
            Err(error) => panic!("not refused: {error}"),
            Ok(_) => panic!("not refused"),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn endpoint(
    node: &str,
    identity: &Identity,
    roster: &watch::Receiver<Arc<Roster>>,
) -> mesh::Endpoint {
    let tls = identity.mesh_tls(roster.clone()).unwrap();
    let config = mesh::Config {
        node: node.parse().unwrap(),
        server_tls: tls.server,
        client_tls: tls.client,
        key: tls.key,
        authenticator: tls.authenticator,
        roster: roster.clone(),
        leases: mesh::Leases::none(),
        limits: mesh::Limits::default(),
    };
    mesh::Endpoint::new(mesh::bind(loopback()).unwrap(), config).unwrap()
}

fn config(upstreams: &[(&str, RawUpstream)], max_sessions: usize) -> Config {
    Config::try_from(Raw {
        mesh_listen: loopback(),
        master: Some("https://127.0.0.1:1".into()),
        ca_file: Some("ca.crt".into()),
        state_dir: Some("state".into()),
        max_sessions,
        upstreams: upstreams
            .iter()
            .map(|(name, upstream)| ((*name).to_owned(), upstream.clone()))
            .collect(),
        ..Raw::default()
    })
    .unwrap()
}

fn open(service: &str) -> Open {
    Open {
        service: service.parse().unwrap(),
        request: Request {
            authority: "gateway.example".into(),
            path: "/rest?a=1".into(),
            origin: Some("https://app.example".into()),
            headers: Vec::new(),
            subprotocols: vec!["first".into(), "second".into()],
        },
        client: SocketAddr::from(([192, 0, 2, 7], 50_000)),
        subject: None,
        claims: None,
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// The outcome of what must not hang.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(HANG, Box::pin(future)).await.expect("it hangs")
}

async fn write(send: &mut impl SendStream, bytes: &'static [u8]) {
    soon(send.write(Bytes::from_static(bytes))).await.unwrap();
}

/// Reads so many bytes, and not more.
async fn read_exact(recv: &mut impl RecvStream, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        all.extend_from_slice(&soon(recv.read()).await.unwrap().expect("ended early"));
    }
    assert_eq!(all.len(), len);
    all
}

/// Reads to the end of the stream.
async fn read_to_end(recv: &mut impl RecvStream) -> Result<Vec<u8>, ReadError> {
    let mut all = Vec::new();
    while let Some(chunk) = soon(recv.read()).await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

/// Sends a datagram until its echo comes: datagrams may be lost.
async fn datagram_round_trip(session: &mesh::Session, payload: &'static [u8]) {
    let echoed = soon(async {
        loop {
            session.send_datagram(Bytes::from_static(payload)).unwrap();
            let wait = Duration::from_millis(200);
            if let Ok(received) = timeout(wait, session.recv_datagram()).await {
                return received.unwrap();
            }
        }
    })
    .await;
    assert_eq!(echoed, payload);
}
