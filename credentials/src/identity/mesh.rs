//! TLS between nodes: raw public keys (RFC 7250), held against the roster at every handshake.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature_with_raw_key},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use tokio::sync::watch;
use wavry_proto::{
    control::Roster,
    id::{NodeId, PublicKey},
};

use super::{Error, Identity, MeshTls, Present, pairs::Pairs};

pub(super) fn tls(
    present: watch::Receiver<Arc<Present>>,
    key: watch::Receiver<PublicKey>,
    roster: watch::Receiver<Arc<Roster>>,
) -> Result<MeshTls, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let authenticator = Arc::new(Pairs::new(present.clone(), roster.clone()));
    let verifier = Arc::new(Listed {
        roster,
        algorithms: provider.signature_verification_algorithms,
    });
    let shows = Arc::new(Shows { present });

    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier.clone())
        .with_cert_resolver(shows.clone());
    // A resumed handshake shows no key, so a node that left the roster would come back with it.
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.max_early_data_size = 0;

    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(shows);
    client.resumption = Resumption::disabled();
    client.enable_early_data = false;
    // The name is a node's id; it is nobody's business on the way.
    client.enable_sni = false;

    Ok(MeshTls {
        server: Arc::new(server),
        client: Arc::new(client),
        key,
        authenticator,
    })
}

pub(super) fn certified_key(identity: &Identity) -> Result<CertifiedKey, Error> {
    let key = identity.key().tls()?;
    let spki = identity.public_key().to_spki();
    Ok(CertifiedKey::new(
        vec![CertificateDer::from(spki.to_vec())],
        key,
    ))
}

/// Shows the identity that the node has at the time of the handshake.
struct Shows {
    present: watch::Receiver<Arc<Present>>,
}

impl fmt::Debug for Shows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shows").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Shows {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.present.borrow().certified.clone())
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }
}

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.present.borrow().certified.clone())
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Accepts the keys that the current roster lists.
struct Listed {
    roster: watch::Receiver<Arc<Roster>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Listed {
    fn check(
        &self,
        spki: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        listed: impl FnOnce(&Roster, &PublicKey) -> bool,
    ) -> Result<(), TlsError> {
        let key = PublicKey::from_spki(spki)
            .filter(|_| intermediates.is_empty())
            .ok_or(CertificateError::BadEncoding)?;
        let roster = self.roster.borrow().clone();
        if listed(&roster, &key) {
            Ok(())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(spki.as_ref()),
            signature,
            &self.algorithms,
        )
    }
}

impl fmt::Debug for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listed").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Listed {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let dialled: NodeId = match server_name {
            ServerName::DnsName(name) => name.as_ref().parse().ok(),
            _ => None,
        }
        .ok_or(CertificateError::NotValidForName)?;
        self.check(end_entity, intermediates, |roster, key| {
            let node = roster.node(&dialled);
            node.is_some_and(|node| node.role.is_in_mesh() && node.keys.contains(key))
        })?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.verify_signature(message, cert, dss)
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
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        self.check(end_entity, intermediates, |roster, key| {
            let node = roster.node_by_key(key);
            node.is_some_and(|node| node.role.is_in_mesh())
        })?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::HandshakeKind;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio_rustls::{TlsAcceptor, TlsConnector};
    use wavry_proto::control::{Node, Role};

    use super::*;

    fn roster(nodes: &[(&str, &Identity)]) -> Arc<Roster> {
        let mut roster = Roster::empty("c1".parse().unwrap());
        roster.nodes = nodes
            .iter()
            .map(|(id, identity)| Node {
                id: id.parse().unwrap(),
                role: Role::Relay,
                keys: vec![identity.public_key()],
                addresses: Vec::new(),
                transit: Vec::new(),
                attached: Vec::new(),
                services: Vec::new(),
                registration: 1,
                leases: Default::default(),
                placement: Default::default(),
            })
            .collect();
        Arc::new(roster)
    }

    /// Shakes hands and carries one byte each way; the error of whichever side refused, each side
    /// under its name. Tells how the client's handshake went.
    async fn shake_hands(
        server: &MeshTls,
        client: &MeshTls,
        dialled: &'static str,
    ) -> Result<Option<HandshakeKind>, String> {
        let (near, far) = duplex(16 * 1024);
        let accepting = async {
            let mut stream = TlsAcceptor::from(server.server.clone())
                .accept(far)
                .await
                .map_err(|error| format!("server: {error}"))?;
            let byte = stream.read_u8().await.map_err(|e| format!("server: {e}"))?;
            stream.write_u8(byte).await.map_err(|e| e.to_string())?;
            stream.shutdown().await.map_err(|e| e.to_string())
        };
        let connecting = async {
            let mut stream = TlsConnector::from(client.client.clone())
                .connect(ServerName::try_from(dialled).unwrap(), near)
                .await
                .map_err(|error| format!("client: {error}"))?;
            stream.write_u8(7).await.map_err(|e| e.to_string())?;
            // A client only learns here that the server refused its key.
            let mut answer = Vec::new();
            stream
                .read_to_end(&mut answer)
                .await
                .map_err(|e| e.to_string())?;
            let (_, connection) = stream.get_ref();
            assert_eq!(connection.tls13_tickets_received(), 0);
            Ok::<_, String>(connection.handshake_kind())
        };
        let both = async { tokio::join!(accepting, connecting) };
        let (accepted, connected) = tokio::time::timeout(Duration::from_secs(10), both)
            .await
            .expect("a handshake in memory is done in no time");
        match (accepted, connected) {
            (Ok(()), Ok(kind)) => Ok(kind),
            (Err(server), Ok(_)) => Err(server),
            // What the refusing side says is the reason; the other only sees an alert.
            (Err(server), Err(client)) if client.starts_with("client: ") => {
                Err(format!("{client} / {server}"))
            }
            (Err(server), Err(_)) => Err(server),
            (Ok(()), Err(client)) => Err(client),
        }
    }

    #[tokio::test]
    async fn nodes_that_the_roster_lists_shake_hands_in_full_each_time_and_get_no_ticket() {
        let (a, b) = (Identity::generate(), Identity::generate());
        let (_sender, roster) = watch::channel(roster(&[("a", &a), ("b", &b)]));
        let (a, b) = (
            a.mesh_tls(roster.clone()).unwrap(),
            b.mesh_tls(roster).unwrap(),
        );
        for _ in 0..3 {
            assert_eq!(
                shake_hands(&a, &b, "a").await,
                Ok(Some(HandshakeKind::Full))
            );
        }
    }

    #[tokio::test]
    async fn a_client_whose_key_is_not_listed_is_refused_by_the_server() {
        let (a, stranger) = (Identity::generate(), Identity::generate());
        let (_sender, roster) = watch::channel(roster(&[("a", &a)]));
        let (a, stranger) = (
            a.mesh_tls(roster.clone()).unwrap(),
            stranger.mesh_tls(roster).unwrap(),
        );
        let refusal = shake_hands(&a, &stranger, "a").await.unwrap_err();
        assert!(refusal.starts_with("server: invalid peer"), "{refusal}");
    }

    #[tokio::test]
    async fn a_server_whose_key_is_not_listed_is_refused_by_the_client() {
        let (b, stranger) = (Identity::generate(), Identity::generate());
        let a = Identity::generate();
        let (_sender, roster) = watch::channel(roster(&[("a", &a), ("b", &b)]));
        let (b, stranger) = (
            b.mesh_tls(roster.clone()).unwrap(),
            stranger.mesh_tls(roster).unwrap(),
        );
        let refusal = shake_hands(&stranger, &b, "a").await.unwrap_err();
        assert!(refusal.starts_with("client: invalid peer"), "{refusal}");
    }

    #[tokio::test]
    async fn a_key_listed_for_another_node_is_refused_by_whoever_dials() {
        let (a, b, c) = (
            Identity::generate(),
            Identity::generate(),
            Identity::generate(),
        );
        let (_sender, roster) = watch::channel(roster(&[("a", &a), ("b", &b), ("c", &c)]));
        let (b, c) = (
            b.mesh_tls(roster.clone()).unwrap(),
            c.mesh_tls(roster).unwrap(),
        );
        let refusal = shake_hands(&c, &b, "a").await.unwrap_err();
        assert!(refusal.starts_with("client: invalid peer"), "{refusal}");
        assert!(shake_hands(&c, &b, "c").await.is_ok());
    }

    #[tokio::test]
    async fn a_node_that_leaves_the_roster_is_refused_at_its_next_handshake() {
        let (a, b) = (Identity::generate(), Identity::generate());
        let (sender, watched) = watch::channel(roster(&[("a", &a), ("b", &b)]));
        let (a_tls, b_tls) = (
            a.mesh_tls(watched.clone()).unwrap(),
            b.mesh_tls(watched).unwrap(),
        );
        assert!(shake_hands(&a_tls, &b_tls, "a").await.is_ok());

        sender.send(roster(&[("a", &a)])).unwrap();
        let refusal = shake_hands(&a_tls, &b_tls, "a").await.unwrap_err();
        assert!(refusal.starts_with("server: invalid peer"), "{refusal}");

        sender.send(roster(&[("a", &a), ("b", &b)])).unwrap();
        assert!(shake_hands(&a_tls, &b_tls, "a").await.is_ok());
    }

    #[tokio::test]
    async fn both_keys_are_accepted_while_an_identity_rotates() {
        let (a, old, new) = (
            Identity::generate(),
            Identity::generate(),
            Identity::generate(),
        );
        let mut both = (*roster(&[("a", &a), ("b", &old)])).clone();
        both.nodes[1].keys.push(new.public_key());
        let (_sender, watched) = watch::channel(Arc::new(both));
        let a = a.mesh_tls(watched.clone()).unwrap();
        for b in [old, new] {
            let b = b.mesh_tls(watched.clone()).unwrap();
            assert!(shake_hands(&a, &b, "a").await.is_ok());
            assert!(shake_hands(&b, &a, "b").await.is_ok());
        }
    }

    #[tokio::test]
    async fn the_identity_that_is_shown_takes_the_place_of_the_one_before_in_both_directions() {
        let (a, old, new) = (
            Identity::generate(),
            Identity::generate(),
            Identity::generate(),
        );
        let key = new.public_key();
        let (sender, watched) = watch::channel(roster(&[("a", &a), ("b", &old)]));
        let a_tls = a.mesh_tls(watched.clone()).unwrap();
        let shown = crate::identity::Shown::new(old).unwrap();
        let b = shown.mesh_tls(watched).unwrap();
        assert!(shake_hands(&a_tls, &b, "a").await.is_ok());
        assert!(shake_hands(&b, &a_tls, "b").await.is_ok());

        sender.send(roster(&[("a", &a), ("b", &new)])).unwrap();
        assert!(shake_hands(&a_tls, &b, "a").await.is_err());
        assert!(shake_hands(&b, &a_tls, "b").await.is_err());
        shown.show(new).unwrap();
        assert_eq!(*b.key.borrow(), key);
        assert!(shake_hands(&a_tls, &b, "a").await.is_ok());
        assert!(shake_hands(&b, &a_tls, "b").await.is_ok());
    }

    /// Offers raw public keys, and then has none.
    #[derive(Debug)]
    struct NoKey;

    impl ResolvesClientCert for NoKey {
        fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            None
        }
        fn only_raw_public_keys(&self) -> bool {
            true
        }
        fn has_certs(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn a_client_without_a_key_is_refused() {
        let a = Identity::generate();
        let (_sender, watched) = watch::channel(roster(&[("a", &a)]));
        let tls = a.mesh_tls(watched.clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Listed {
                roster: watched,
                algorithms: provider.signature_verification_algorithms,
            }))
            .with_client_cert_resolver(Arc::new(NoKey));
        let anonymous = MeshTls {
            server: tls.server.clone(),
            client: Arc::new(client),
            key: tls.key.clone(),
            authenticator: tls.authenticator.clone(),
        };
        let refusal = shake_hands(&tls, &anonymous, "a").await.unwrap_err();
        assert_eq!(refusal, "server: peer sent no certificates");
    }

    #[tokio::test]
    async fn a_keyvault_has_no_part_in_the_mesh() {
        let identities = [(); 2].map(|()| Identity::generate());
        let [vault, relay] = &identities;
        let (rosters, listed) = watch::channel(roster(&[("vault", vault), ("relay", relay)]));
        let at_vault = vault.mesh_tls(listed.clone()).unwrap();
        let at_relay = relay.mesh_tls(listed).unwrap();
        assert!(shake_hands(&at_relay, &at_vault, "relay").await.is_ok());
        rosters.send_modify(|roster| {
            let mut next = (**roster).clone();
            next.nodes[0].role = Role::KeyVault;
            *roster = Arc::new(next);
        });
        let dials = shake_hands(&at_relay, &at_vault, "relay").await;
        assert!(dials.unwrap_err().starts_with("server:"));
        let is_dialled = shake_hands(&at_vault, &at_relay, "vault").await;
        assert!(is_dialled.unwrap_err().starts_with("client:"));
    }
}
