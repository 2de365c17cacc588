//! One request over HTTPS, as whoever likes sends it.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
};

use wavry_credentials::cert::{Trust, client_config, client_config_with};

use super::DEADLINE;

/// A server and the authority that vouches for it.
pub(crate) struct Https {
    address: SocketAddr,
    authority: PathBuf,
    /// What the client shows, by key and chain.
    shown: Option<[PathBuf; 2]>,
}

impl Https {
    pub(crate) fn of(authority: &Path, address: SocketAddr) -> Self {
        Self {
            address,
            authority: authority.to_owned(),
            shown: None,
        }
    }

    /// The same by a client that shows the certificate in a file, whose key is in another.
    pub(crate) fn showing(self, files: [PathBuf; 2]) -> Self {
        Self {
            shown: Some(files),
            ..self
        }
    }

    /// Sends a request of these headers and this body; the whole answer with its head.
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> String {
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\nconnection: close\r\n",
            self.address,
            body.len()
        );
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += "\r\n";
        self.send(&[request.as_bytes(), body].concat())
    }

    /// Sends bytes, be they a request or not; what came back until the server closed.
    pub(crate) fn send(&self, bytes: &[u8]) -> String {
        let trust = Trust::Authorities(self.authority.clone());
        let config = match &self.shown {
            None => client_config(&trust),
            Some([chain, key]) => client_config_with(&trust, chain, key),
        };
        let config = config.expect("an authority, and a pair");
        let name = self.address.ip().to_string().try_into().expect("a name");
        let tls = rustls::ClientConnection::new(Arc::new(config), name).expect("TLS");
        let tcp = TcpStream::connect(self.address).expect("somebody listens");
        tcp.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let mut stream = rustls::StreamOwned::new(tls, tcp);
        // A server that does not want to read on may close, and has answered all the same.
        let _ = stream.write_all(bytes).and_then(|()| stream.flush());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// The status of an answer.
pub(crate) fn status(answer: &str) -> u16 {
    let word = answer.split(' ').nth(1);
    word.and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("no status in {answer:?}"))
}
