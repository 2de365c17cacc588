//! Nodes for tests: identities, a roster that tests change, and endpoints over loopback.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    sign::CertifiedKey,
};
use tokio::sync::watch;
use wavry_proto::{
    control::{Node, Role, Roster, lease::Way},
    id::{Epoch, NodeId, PublicKey},
    mesh::Open,
    overlay::{
        Authenticator, Tag,
        lease::{self, Offer, Terms, Unfit, Verified, Verifier},
        packet::Label,
    },
    session::Request,
    token::{KeyId, Lease, Validity},
};
use wavry_transport::mesh::{self, Config, Endpoint, Leases, Limits, Requested, Session};

use crate::SOCKETS;

/// A roster that can be changed.
#[derive(Clone)]
pub(crate) struct Cluster {
    sender: watch::Sender<Arc<Roster>>,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let roster = Roster::empty("test".parse().unwrap());
        Self {
            sender: watch::Sender::new(Arc::new(roster)),
        }
    }

    /// The roster now.
    pub(crate) fn roster(&self) -> Arc<Roster> {
        self.sender.borrow().clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Roster)) {
        self.sender.send_modify(|roster| {
            let mut next = (**roster).clone();
            next.epoch.0 += 1;
            change(&mut next);
            *roster = Arc::new(next);
        });
    }

    pub(crate) fn node(&self, id: &str) -> Endpoint {
        self.node_with(id, Limits::default())
    }

    /// Starts a node that the roster lists.
    pub(crate) fn node_with(&self, id: &str, limits: Limits) -> Endpoint {
        let key = Arc::new(Key::generate());
        let endpoint = self.stranger(id, &key, limits);
        self.list(id, key.public, endpoint.local_addr());
        endpoint
    }

    /// Lists a node.
    pub(crate) fn list(&self, id: &str, key: PublicKey, address: SocketAddr) {
        let node = Node {
            id: id.parse().unwrap(),
            role: Role::Relay,
            keys: vec![key],
            addresses: vec![address],
            transit: Vec::new(),
            attached: Vec::new(),
            services: vec![],
            registration: 1,
            leases: Default::default(),
            placement: Default::default(),
        };
        self.change(|roster| {
            roster.nodes.retain(|n| n.id != node.id);
            roster.nodes.push(node);
        });
    }

    pub(crate) fn unlist(&self, id: &str) {
        self.change(|roster| roster.nodes.retain(|n| n.id.as_str() != id));
    }

    /// Starts a node that the roster does not list (yet).
    pub(crate) fn stranger(&self, id: &str, key: &Arc<Key>, limits: Limits) -> Endpoint {
        Endpoint::sharded(sockets(), self.config(id, key, limits)).unwrap()
    }

    pub(crate) fn config(&self, id: &str, key: &Arc<Key>, limits: Limits) -> Config {
        self.config_showing(id, &Shown::new(key.clone()), limits)
    }

    /// Of a node that protects packets of connections that it dials with what `provider` has.
    pub(crate) fn config_dialling_by(
        &self,
        id: &str,
        key: &Arc<Key>,
        limits: Limits,
        provider: CryptoProvider,
    ) -> Config {
        let shown = Shown::new(key.clone());
        Config {
            client_tls: self.client_tls(&shown, provider),
            ..self.config_showing(id, &shown, limits)
        }
    }

    /// Starts a node that the roster lists, and whose identity can be rotated.
    pub(crate) fn rotating(&self, id: &str, limits: Limits) -> (Endpoint, Shown) {
        let shown = Shown::new(Arc::new(Key::generate()));
        let config = self.config_showing(id, &shown, limits);
        let endpoint = Endpoint::sharded(sockets(), config).unwrap();
        self.list(id, shown.public(), endpoint.local_addr());
        (endpoint, shown)
    }

    /// Lists these keys for a node.
    pub(crate) fn list_keys(&self, id: &str, keys: &[PublicKey]) {
        self.change(|roster| {
            let mut nodes = roster.nodes.iter_mut();
            let node = nodes.find(|node| node.id.as_str() == id).unwrap();
            node.keys = keys.to_vec();
        });
    }

    fn client_tls(&self, shown: &Shown, provider: CryptoProvider) -> Arc<rustls::ClientConfig> {
        let listed = Arc::new(Listed {
            roster: self.sender.subscribe(),
            provider: Arc::new(provider),
        });
        let mut tls = rustls::ClientConfig::builder_with_provider(listed.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(listed)
            .with_client_cert_resolver(Arc::new(shown.clone()));
        tls.resumption = rustls::client::Resumption::disabled();
        tls.enable_sni = false;
        Arc::new(tls)
    }

    fn config_showing(&self, id: &str, shown: &Shown, limits: Limits) -> Config {
        let listed = Arc::new(Listed {
            roster: self.sender.subscribe(),
            provider: Arc::new(aws_lc_rs::default_provider()),
        });
        let mut server_tls = rustls::ServerConfig::builder_with_provider(listed.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(listed)
            .with_cert_resolver(Arc::new(shown.clone()));
        server_tls.send_tls13_tickets = 0;
        Config {
            node: id.parse().unwrap(),
            server_tls: Arc::new(server_tls),
            client_tls: self.client_tls(shown, aws_lc_rs::default_provider()),
            key: shown.public.subscribe(),
            authenticator: Arc::new(Pairs {
                own: shown.public.subscribe(),
                roster: self.sender.subscribe(),
            }),
            roster: self.sender.subscribe(),
            leases: Leases {
                source: Arc::new(Signed::of(id)),
                changed: watch::channel(()).1,
            },
            limits,
        }
    }
}

/// Leases that anybody could make: what is tested here is who shows which.
struct Signed {
    node: NodeId,
    ways: Mutex<HashMap<Label, Way>>,
}

impl Signed {
    fn of(node: &str) -> Self {
        Self {
            node: node.parse().unwrap(),
            ways: Mutex::default(),
        }
    }
}

impl lease::Source for Signed {
    fn want(&self, way: Way) {
        self.ways.lock().unwrap().insert(way.flow, way);
    }

    fn forget(&self, flow: Label) {
        self.ways.lock().unwrap().remove(&flow);
    }

    fn offer(&self, flow: Label) -> Offer {
        let ways = self.ways.lock().unwrap();
        let Some(way) = ways.get(&flow) else {
            return Offer::Wait;
        };
        let lease = Lease {
            sub: self.node.clone(),
            peer: way.peer.clone(),
            hops: way.hops.clone(),
            flow,
            bps: 8_000_000_000,
            pps: 1_000_000,
            epoch: Epoch(1),
            validity: Validity {
                iat: 0,
                nbf: 0,
                exp: 3600,
            },
        };
        Offer::Lease(serde_json::to_vec(&lease).unwrap().into())
    }

    fn terms(&self, flow: Label) -> Option<Terms> {
        let ways = self.ways.lock().unwrap();
        ways.contains_key(&flow).then_some(Terms {
            left: Duration::from_secs(3600),
            bits_per_second: 8_000_000_000,
            packets_per_second: 1_000_000,
        })
    }
}

/// Believes them.
pub(crate) struct Credulous;

impl Verifier for Credulous {
    fn verify(&self, lease: &[u8]) -> Result<Verified, Unfit> {
        let lease: Lease = serde_json::from_slice(lease).map_err(|_| Unfit::Forged)?;
        Ok(Verified {
            left: Duration::from_secs(lease.validity.exp),
            key: KEY.parse().unwrap(),
            lease,
        })
    }

    fn trusts(&self, _: &KeyId) -> bool {
        true
    }
}

const KEY: &str = "k4.pid.9ShR3xc8-qVJ_di0tc9nx0IDIqbatdeM2mqLFBJsKRHs";

/// Tags that follow from both public keys. Anybody could make them: what is tested here is who asks whom.
struct Pairs {
    own: watch::Receiver<PublicKey>,
    roster: watch::Receiver<Arc<Roster>>,
}

impl Pairs {
    fn with(&self, peer: &NodeId, message: &[u8]) -> Vec<Tag> {
        let own = *self.own.borrow();
        let roster = self.roster.borrow();
        let keys = roster.node(peer).map_or(&[][..], |node| &node.keys);
        let tag = |theirs: &PublicKey| {
            let pair = (own.min(*theirs), own.max(*theirs));
            let half = |salt: u64| {
                let mut hasher = DefaultHasher::new();
                (salt, pair, message).hash(&mut hasher);
                hasher.finish().to_be_bytes()
            };
            [half(0), half(1)].concat().try_into().unwrap()
        };
        keys.iter().map(tag).collect()
    }
}

impl Authenticator for Pairs {
    fn tags(&self, peer: &NodeId, message: &[u8], tags: &mut Vec<Tag>) {
        tags.extend(self.with(peer, message));
    }

    fn verify(&self, peer: &NodeId, message: &[u8], tags: &[Tag]) -> bool {
        self.with(peer, message)
            .iter()
            .any(|tag| tags.contains(tag))
    }
}

/// The identity that a node shows.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    key: watch::Sender<Arc<Key>>,
    public: watch::Sender<PublicKey>,
}

impl Shown {
    fn new(key: Arc<Key>) -> Self {
        Self {
            public: watch::Sender::new(key.public),
            key: watch::Sender::new(key),
        }
    }

    pub(crate) fn public(&self) -> PublicKey {
        *self.public.borrow()
    }

    pub(crate) fn show(&self, key: Key) {
        let public = key.public;
        self.key.send_replace(Arc::new(key));
        self.public.send_replace(public);
    }
}

impl rustls::server::ResolvesServerCert for Shown {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.borrow().certified.clone())
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }
}

impl rustls::client::ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.key.borrow().certified.clone())
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// An identity.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) public: PublicKey,
    certified: Arc<CertifiedKey>,
}

impl Key {
    pub(crate) fn generate() -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let private = PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
        let signer = aws_lc_rs::sign::any_supported_type(&private).unwrap();
        let spki = signer.public_key().unwrap();
        Self {
            public: PublicKey::from_spki(&spki).unwrap(),
            certified: Arc::new(CertifiedKey::new(
                vec![CertificateDer::from(spki.to_vec())],
                signer,
            )),
        }
    }
}

/// Accepts the keys that the roster lists.
#[derive(Debug)]
struct Listed {
    roster: watch::Receiver<Arc<Roster>>,
    provider: Arc<CryptoProvider>,
}

impl Listed {
    fn verify(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(key.as_ref()),
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }
}

impl ServerCertVerifier for Listed {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let id: NodeId = name.to_str().parse().unwrap();
        let key = PublicKey::from_spki(key).unwrap();
        match self.roster.borrow().node(&id) {
            Some(node) if node.keys.contains(&key) => Ok(ServerCertVerified::assertion()),
            _ => Err(Error::General("not the node's key".into())),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Listed {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let key = PublicKey::from_spki(key).unwrap();
        match self.roster.borrow().node_by_key(&key) {
            Some(_) => Ok(ClientCertVerified::assertion()),
            None => Err(Error::General("unknown key".into())),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The sockets of a node.
fn sockets() -> Vec<Arc<dyn quinn::AsyncUdpSocket>> {
    mesh::bind_shards("127.0.0.1:0".parse().unwrap(), SOCKETS).unwrap()
}

/// One connection per peer, so that sessions share it.
pub(crate) fn one_connection() -> Limits {
    Limits {
        shards: 1,
        ..Limits::default()
    }
}

pub(crate) fn id(node: &str) -> NodeId {
    node.parse().unwrap()
}

pub(crate) fn request(path: &str) -> Open {
    Open {
        service: "echo".parse().unwrap(),
        request: Request {
            authority: "example.test".into(),
            path: path.into(),
            origin: Some("https://app.test".into()),
            headers: vec![],
            subprotocols: vec!["a".into(), "b".into()],
        },
        client: "192.0.2.1:4433".parse().unwrap(),
        subject: Some("someone".into()),
        claims: Some("{}".into()),
    }
}

/// A session from `from` to node `to`, whose endpoint `accepting` is: both ends of it.
pub(crate) async fn session(from: &Endpoint, to: &str, accepting: &Endpoint) -> (Session, Session) {
    let to = id(to);
    let (opened, accepted) = tokio::join!(from.open(&to, request("/")), async {
        let requested: Requested = accepting.accept().await.unwrap();
        requested
            .accept(wavry_proto::session::Response::ok())
            .await
            .unwrap()
    });
    (opened.unwrap().0, accepted)
}
