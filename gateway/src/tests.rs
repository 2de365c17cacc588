//! The gateway between a real WebTransport client and a real mesh endpoint that plays the exit.
//! Only the cluster is made by hand.

mod end;
mod https;
mod opening;
mod plain;
mod refresh;
mod refusal;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use wavry_credentials::{
    cert::{self, DevelopmentAuthority, Store, Trust},
    identity::Identity,
    token::{Scope, SigningKey},
};
use wavry_proto::{
    control::{Access, Node, RefuseWith, Role, Roster, Service},
    id::{ClusterName, Epoch},
    session::{Header, Request, Response},
    token::{self, Validity},
};
use wavry_transport::{
    mesh,
    session::{Closed, Session as _},
    webtransport::{self, Client, ConnectError, Server},
};

use crate::{
    Front,
    config::{Config, Raw},
    core::Core,
};

/// Nothing here takes so long unless it hangs.
const HANG: Duration = Duration::from_secs(20);

/// A gateway that serves, a client of it, and the exit that it knows.
struct World {
    core: Arc<Core>,
    address: SocketAddr,
    client: Client,
    exit: mesh::Endpoint,
    signing_key: SigningKey,
    cluster: ClusterName,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
    roster: watch::Sender<Arc<Roster>>,
    _files: TempDir,
}

impl World {
    fn new() -> Self {
        Self::with(|_| {})
    }

    /// A gateway with other than the default configuration.
    ///
    /// Services: `open` is public, to pages of any origin. `closed` needs a token, and a browser's
    /// page must be of `https://app.example`. `chat` is public and bound to `chat.example`.
    /// `single` takes one session at a time. `nowhere` has no exit. `told` is `closed` to pages of
    /// any origin, and has its refusals told by a close.
    fn with(change: impl FnOnce(&mut Raw)) -> Self {
        cert::install_crypto_provider();
        let files = TempDir::new().unwrap();
        let authority = DevelopmentAuthority::open(files.path()).unwrap();
        authority.issue("gateway", &["localhost"]).unwrap();
        let file = |name: &str| files.path().join(name);
        let store = Store::new();
        store
            .load(&file("gateway.crt"), &file("gateway.key"))
            .unwrap();
        let tls = cert::client_config(&Trust::Authorities(file("ca.crt"))).unwrap();
        let client = Client::new(loopback(), tls, webtransport::Limits::default()).unwrap();

        let signing_key = SigningKey::generate();
        let (exit_identity, gateway_identity) = (Identity::generate(), Identity::generate());
        let mut nodes = roster(&signing_key, &exit_identity, &gateway_identity);
        let (sender, roster) = watch::channel(Arc::new(nodes.clone()));
        let exit = endpoint("exit", &exit_identity, &roster);
        let mesh = endpoint("gateway", &gateway_identity, &roster);
        nodes.nodes[0].addresses = vec![exit.local_addr()];
        let cluster = nodes.cluster.clone();
        sender.send_replace(Arc::new(nodes));

        let mut raw = Raw {
            certificate: Some(file("gateway.crt")),
            state_dir: Some(files.path().into()),
            master: Some("https://127.0.0.1:1".into()),
            ca_file: Some(file("ca.crt")),
            drain_timeout: Duration::from_millis(300),
            ..Raw::default()
        };
        change(&mut raw);
        let config = Config::try_from(raw).unwrap();
        let socket = std::net::UdpSocket::bind(loopback()).unwrap();
        let limits = config.webtransport.clone();
        let server = Server::new(socket, store.server_config(), limits).unwrap();
        let address = server.local_addr().unwrap();
        let drain_timeout = config.drain_timeout;
        let core = Core::new(
            config,
            cluster.clone(),
            "gateway".parse().unwrap(),
            store,
            roster,
            mesh,
        );
        let front = Front::new(drain_timeout, core, server);
        let core = front.core.clone();
        let shutdown = CancellationToken::new();
        let told = shutdown.clone();
        let serving = tokio::spawn(async move {
            front.serve(&told).await.unwrap();
            front.drain().await;
            front.close().await;
        });
        Self {
            core,
            address,
            client,
            exit,
            signing_key,
            cluster,
            shutdown,
            serving,
            roster: sender,
            _files: files,
        }
    }

    /// Lists one exit more, for the same services.
    fn add_exit(&self, id: &str, identity: &Identity, address: Option<SocketAddr>) {
        self.roster.send_modify(|roster| {
            let mut changed = Roster::clone(roster);
            let exit = &changed.nodes[0];
            let another = Node {
                id: id.parse().unwrap(),
                keys: vec![identity.public_key()],
                addresses: address.into_iter().collect(),
                ..exit.clone()
            };
            changed.nodes.push(another);
            *roster = Arc::new(changed);
        });
    }

    /// Publishes a changed roster.
    fn change_roster(&self, change: impl FnOnce(&mut Roster)) {
        self.roster.send_modify(|roster| {
            let mut changed = Roster::clone(roster);
            changed.epoch.0 += 1;
            change(&mut changed);
            *roster = Arc::new(changed);
        });
    }

    async fn ask(
        &self,
        request: Request,
    ) -> Result<(webtransport::Session, Response), ConnectError> {
        soon(self.client.connect(self.address, "localhost", request)).await
    }

    /// The answer to a request that is refused.
    async fn refusal(&self, request: Request) -> Response {
        match self.ask(request).await {
            Err(ConnectError::Rejected(response)) => response,
            Err(error) => panic!("not answered: {error}"),
            Ok(_) => panic!("not refused"),
        }
    }

    async fn status(&self, request: Request) -> u16 {
        self.refusal(request).await.status
    }

    /// A live session: the client's end, and the exit's.
    async fn live(&self, request: Request) -> (webtransport::Session, mesh::Session) {
        let take = async {
            let requested = soon(self.exit.accept()).await.unwrap();
            requested.accept(Response::ok()).await.unwrap()
        };
        let (asked, exit) = tokio::join!(self.ask(request), take);
        (asked.unwrap().0, exit)
    }

    /// A session token for `audience` that expires in `seconds` from now.
    fn token(&self, audience: &str, seconds: i64) -> String {
        self.token_by(&self.signing_key, audience, -60, seconds)
    }

    fn token_by(&self, key: &SigningKey, audience: &str, from: i64, until: i64) -> String {
        self.token_of(key, audience, ("ana", None), from, until)
    }

    /// A session token of a subject for one of its sessions.
    fn token_of(
        &self,
        key: &SigningKey,
        audience: &str,
        (sub, sid): (&str, Option<&str>),
        from: i64,
        until: i64,
    ) -> String {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let at = |seconds| now.checked_add_signed(seconds).unwrap();
        let claims = token::Session {
            jti: "1".into(),
            sub: sub.into(),
            sid: sid.map(Into::into),
            claims: serde_json::from_str(r#"{"room":1}"#).unwrap(),
            validity: Validity {
                iat: at(from),
                nbf: at(from),
                exp: at(until),
            },
        };
        let scope = Scope {
            cluster: &self.cluster,
            audience,
            binding: &[],
        };
        key.sign(&claims, scope)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn roster(key: &SigningKey, exit: &Identity, gateway: &Identity) -> Roster {
    let service = |name: &str, access, origin: &str| Service {
        name: name.parse().unwrap(),
        hosts: Vec::new(),
        access,
        allowed_origins: vec![origin.to_owned()],
        max_sessions: None,
        refuse_with: Default::default(),
        keys: Vec::new(),
    };
    let mut services = vec![
        service("chat", Access::Public, "*"),
        service("closed", Access::Token, "https://app.example"),
        service("nowhere", Access::Public, "*"),
        service("open", Access::Public, "*"),
        service("single", Access::Public, "*"),
        service("told", Access::Token, "*"),
    ];
    services[0].hosts = vec!["chat.example".into()];
    services[4].max_sessions = Some(1);
    services[5].refuse_with = RefuseWith::Close;
    let served = ["chat", "closed", "open", "single", "told"];
    let node = |id: &str, role, identity: &Identity, services: &[&str]| Node {
        id: id.parse().unwrap(),
        role,
        keys: vec![identity.public_key()],
        addresses: Vec::new(),
        transit: Vec::new(),
        attached: Vec::new(),
        services: services.iter().map(|name| name.parse().unwrap()).collect(),
        registration: 1,
        leases: Default::default(),
        placement: Default::default(),
    };
    Roster {
        nodes: vec![
            node("exit", Role::Relay, exit, &served),
            node("gateway", Role::Gateway, gateway, &[]),
        ]
        .into(),
        services,
        token_keys: vec![key.public_paserk()],
        epoch: Epoch(1),
        ..Roster::empty("test".parse().unwrap())
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

/// A request for a path, as one that is no browser makes it.
fn to(path: &str) -> Request {
    Request {
        authority: "localhost".into(),
        path: path.into(),
        ..Request::default()
    }
}

fn header(name: &str, value: &str) -> Header {
    Header {
        name: name.into(),
        value: value.into(),
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// The outcome of what must not hang.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(HANG, Box::pin(future)).await.expect("it hangs")
}

/// The code that the gateway closed a session with.
async fn close_code(session: &impl wavry_transport::session::Session) -> u32 {
    match soon(session.closed()).await {
        Closed::Peer(close) => close.code,
        other => panic!("not closed by the gateway: {other}"),
    }
}
