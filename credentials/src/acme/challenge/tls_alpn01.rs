//! tls-alpn-01: a certificate that holds the hash of the key authorization, shown to whoever offers the
//! protocol `acme-tls/1` (RFC 8737).

use std::{fmt, net::IpAddr, sync::Arc};

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::{Answer, Answers};

/// What an authority offers that validates a name in a TLS handshake (RFC 8737, section 6.2).
pub const PROTOCOL: &[u8] = b"acme-tls/1";

/// The certificate that answers a challenge for `name`. Its key is made for it and forgotten with it.
pub(super) fn certificate(
    name: &str,
    digest: impl AsRef<[u8]>,
) -> Result<CertifiedKey, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest.as_ref())];
    let certificate = params.self_signed(&key)?.der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = aws_lc_rs::sign::any_supported_type(&key).expect("a key that was just made");
    Ok(CertifiedKey::new(vec![certificate], key))
}

/// The name that an authority asks for to validate `name`: itself, or for an address its name in the reverse
/// DNS (RFC 8738, section 6).
pub(super) fn server_name(name: &str) -> String {
    match name.parse() {
        Ok(IpAddr::V4(address)) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        Ok(IpAddr::V6(address)) => {
            let bytes = address.octets();
            let nibbles = bytes.iter().rev().flat_map(|byte| [byte & 15, byte >> 4]);
            let labels: String = nibbles.map(|nibble| format!("{nibble:x}.")).collect();
            labels + "ip6.arpa"
        }
        Err(_) => name.to_owned(),
    }
}

/// TLS that speaks the one protocol only.
pub(in crate::acme) fn config(answers: Answers) -> Arc<ServerConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs has the cipher suites of TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Resolver(answers)));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    // Nobody comes back with a ticket.
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// One handshake. All that is said is said in it.
pub(super) async fn serve(stream: TcpStream, config: Arc<ServerConfig>) -> &'static str {
    match TlsAcceptor::from(config).accept(stream).await {
        Ok(_) => "answered",
        // An unknown name fails the handshake as everything else does that is no validation.
        Err(_) => "unknown",
    }
}

struct Resolver(Answers);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Who offers no protocol at all is not refused by rustls, and gets no certificate here.
        if !hello.alpn()?.any(|protocol| protocol == PROTOCOL) {
            return None;
        }
        match self.0.find(hello.server_name()?)? {
            Answer::Certificate(certificate) => Some(certificate),
            Answer::Text(_) => None,
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_asked_for_by_its_name_in_the_reverse_dns() {
        assert_eq!(server_name("gateway.example"), "gateway.example");
        assert_eq!(server_name("192.0.2.7"), "7.2.0.192.in-addr.arpa");
        assert_eq!(
            server_name("2001:db8::1"),
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
        );
    }
}
