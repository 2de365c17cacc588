//! TLS handshakes in memory, for the tests of this module.

use std::{sync::Arc, time::Duration};

use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Shakes hands and carries a byte; the certificate that the client saw, or why it refused.
pub(super) async fn shake_hands(
    server: rustls::ServerConfig,
    client: rustls::ClientConfig,
    name: &str,
) -> Result<CertificateDer<'static>, String> {
    let (near, far) = duplex(16 * 1024);
    let accepting = async {
        let mut stream = TlsAcceptor::from(Arc::new(server)).accept(far).await?;
        stream.write_u8(7).await?;
        stream.shutdown().await
    };
    let connecting = async {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut stream = TlsConnector::from(Arc::new(client))
            .connect(name, near)
            .await
            .map_err(|error| error.to_string())?;
        let byte = stream.read_u8().await.map_err(|error| error.to_string())?;
        assert_eq!(byte, 7);
        let certificates = stream.get_ref().1.peer_certificates();
        Ok(certificates.unwrap()[0].clone().into_owned())
    };
    let both = async { tokio::join!(accepting, connecting) };
    let (accepted, connected) = tokio::time::timeout(Duration::from_secs(10), both)
        .await
        .expect("a handshake in memory is done in no time");
    if connected.is_ok() {
        accepted.unwrap();
    }
    connected
}
