//! Certificates of nodes: whose they are, and which authorities vouch for them as that changes.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error as TlsError, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{
        WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
    },
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, UnixTime};
use wavry_proto::{
    control::{Role, Roster},
    id::{ClusterName, NodeId},
};
use x509_parser::{
    extensions::GeneralName, oid_registry::OID_X509_SERIALNUMBER, prelude::X509Certificate,
};

use super::not_after;

/// A node as its certificate names it: by an SPIFFE id (SPIFFE-ID, section 2), and by its registration, so that
/// a certificate is worth nothing once the node has registered anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The cluster: the trust domain.
    pub cluster: ClusterName,
    /// What the node is.
    pub role: Role,
    /// Its id.
    pub node: NodeId,
    /// Number of its registration, as the roster has it.
    pub registration: u64,
}

impl Member {
    /// `spiffe://CLUSTER/ROLE/NODE`, the one URI that a certificate of the node has. Of other names a KeyVault's alone
    /// has some: those at which it is found.
    pub fn uri(&self) -> String {
        format!(
            "spiffe://{}/{}/{}",
            self.cluster,
            self.role.as_str(),
            self.node
        )
    }

    /// Whom a certificate names; `None` if it is not one of a node. Whether it holds is another question.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (rest, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let (uri, has_more) = only_uri(&certificate).filter(|_| rest.is_empty())?;
        let mut parts = uri.strip_prefix("spiffe://")?.split('/');
        let mut part = || parts.next();
        let (cluster, role, node) = (part()?, part()?, part()?);
        let role = Role::named(role).filter(|role| !has_more || *role == Role::KeyVault)?;
        let mut registration = certificate.subject().iter_by_oid(&OID_X509_SERIALNUMBER);
        let member = Self {
            cluster: cluster.parse().ok()?,
            role,
            node: node.parse().ok()?,
            registration: registration.next()?.as_str().ok()?.parse().ok()?,
        };
        part().is_none().then_some(member)
    }
}

impl Member {
    /// Whether this is a node as a roster lists it.
    pub fn is_listed_in(&self, roster: &Roster) -> bool {
        let node = roster.node(&self.node);
        roster.cluster == self.cluster
            && node.is_some_and(|node| {
                (node.role, node.registration) == (self.role, self.registration)
            })
    }
}

/// The URI of a certificate that has no other, and whether it has other names: of hosts, and addresses.
fn only_uri<'a>(certificate: &'a X509Certificate<'_>) -> Option<(&'a str, bool)> {
    let names = certificate.subject_alternative_name().ok().flatten()?;
    let (mut uri, mut has_more) = (None, false);
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(one) if uri.is_none() => uri = Some(*one),
            GeneralName::DNSName(_) | GeneralName::IPAddress(_) => has_more = true,
            _ => return None,
        }
    }
    Some((uri?, has_more))
}

/// Why a certificate that was shown is none of a node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotVouchedFor {
    /// There is none.
    #[error("no certificate was shown")]
    Missing,
    /// It has expired, or does not hold yet.
    #[error("the certificate does not hold at this time")]
    Time,
    /// No authority of the cluster's vouches for it as a client's.
    #[error("no authority of the cluster vouches for the certificate")]
    Authority,
    /// It names no node.
    #[error("the certificate names no node")]
    Name,
}

/// The authorities that vouch for nodes, as they are now. Clones share them.
#[derive(Clone, Default)]
pub struct Authorities(Arc<Shared>);

#[derive(Default)]
struct Shared {
    trusted: ArcSwapOption<Trusted>,
    /// Grows once there are others.
    generation: AtomicU64,
}

struct Trusted {
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Authorities {
    /// Has these vouch, and no others. What is no certificate is passed over.
    pub fn replace(&self, authorities: impl IntoIterator<Item = CertificateDer<'static>>) {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(authorities);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
        // Without any authority there is none.
        let trusted = verifier.ok().map(|verifier| Trusted { verifier }.into());
        self.0.trusted.store(trusted);
        self.0.generation.fetch_add(1, Ordering::Release);
    }

    /// A number that is another once others vouch. What was verified after it was read holds as long as it stays.
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// Whom a chain names, its own certificate first, if it holds at `now`; and until when it does.
    pub fn member(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<(Member, SystemTime), NotVouchedFor> {
        let (own, intermediates) = chain.split_first().ok_or(NotVouchedFor::Missing)?;
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        self.vouches(own, intermediates, UnixTime::since_unix_epoch(now))?;
        let member = Member::of(own).ok_or(NotVouchedFor::Name)?;
        let until = not_after(own).ok_or(NotVouchedFor::Name)?;
        Ok((member, until))
    }

    fn vouches(
        &self,
        own: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), NotVouchedFor> {
        use rustls::CertificateError as E;
        let trusted = self.0.trusted.load();
        let trusted = trusted.as_ref().ok_or(NotVouchedFor::Authority)?;
        let verified = trusted.verifier.verify_client_cert(own, intermediates, now);
        match verified {
            Ok(_) => Ok(()),
            Err(TlsError::InvalidCertificate(
                E::Expired
                | E::ExpiredContext { .. }
                | E::NotValidYet
                | E::NotValidYetContext { .. },
            )) => Err(NotVouchedFor::Time),
            Err(_) => Err(NotVouchedFor::Authority),
        }
    }

    /// Has a server ask for certificates of nodes. Those that nobody vouches for pass too, as long as who shows
    /// them holds their key: what they are worth is said for each request ([`member`](Self::member)), where the
    /// client can be told.
    pub(super) fn asking(&self) -> Arc<dyn ClientCertVerifier> {
        let hints = self.0.trusted.load();
        let hints = hints
            .as_ref()
            .map(|trusted| trusted.verifier.root_hint_subjects().to_vec());
        Arc::new(Asking {
            // All authorities of a cluster have one name.
            hints: hints.unwrap_or_default(),
            algorithms: aws_lc_rs::default_provider().signature_verification_algorithms,
        })
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorities").finish_non_exhaustive()
    }
}

/// Asks for a certificate, and leaves to others what it is worth.
#[derive(Debug)]
struct Asking {
    hints: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for Asking {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// When a certificate that holds from `from` until `until` is to be renewed: at half of that, and up to a tenth
/// later or earlier, as `chance` has it, which is uniform over its type, so that those that were issued together
/// are not renewed together.
pub fn renewal(from: SystemTime, until: SystemTime, chance: u16) -> SystemTime {
    let lifetime = until.duration_since(from).unwrap_or_default();
    let spread = lifetime / 5;
    let early: Duration = lifetime / 2 - spread / 2;
    from + early + spread * u32::from(chance) / u32::from(u16::MAX)
}
