//! The services: processes of others, and one more WebTransport stack.

use std::{
    io::{BufRead as _, BufReader},
    net::{SocketAddr, UdpSocket},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    sync::Arc,
};

use quinn::crypto::rustls::QuicServerConfig;
use wavry_credentials::cert;

use crate::support::{
    cluster::Cluster,
    peer::{Aioquic, Process},
};

/// The interop service on aioquic, with the cluster's certificate for services.
pub(crate) fn aioquic(cluster: &Cluster) -> Aioquic {
    let at = |name: &str| cluster.directory().join(name);
    Aioquic::start(&at("service.crt"), &at("service.key"), drop)
}

/// An echo by socat.
pub(crate) struct Socat {
    _process: Process,
    url: String,
}

impl Socat {
    /// Each connection is a `cat`.
    pub(crate) fn tcp() -> Self {
        let address = "TCP4-LISTEN:0,bind=127.0.0.1,fork,backlog=64";
        Self::start("tcp", address, "EXEC:cat")
    }

    /// Each sender is a `cat` behind a socket pair that keeps datagrams apart.
    pub(crate) fn udp() -> Self {
        // socat takes the address anew for each sender, so that it cannot be told to take any.
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let address = format!("UDP4-LISTEN:{port},bind=127.0.0.1,fork");
        Self::start("udp", &address, "EXEC:cat,socktype=2")
    }

    fn start(scheme: &str, address: &str, echo: &str) -> Self {
        let mut child = Command::new("socat")
            .args(["-d", "-d", address, echo])
            .process_group(0)
            .stderr(Stdio::piped())
            .spawn()
            .expect("socat is installed");
        let mut log = BufReader::new(child.stderr.take().expect("piped")).lines();
        let process = Process::of(child);
        // N listening on AF=2 127.0.0.1:58467
        let address = loop {
            let line = log.next().expect("socat listens").unwrap();
            if line.contains("listening on")
                && let Some(address) = line.rsplit(' ').next()
            {
                break address.to_owned();
            }
        };
        std::thread::spawn(move || log.for_each(drop));
        Self {
            _process: process,
            url: format!("{scheme}://{address}"),
        }
    }

    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }
}

/// A WebTransport echo by web-transport-quinn, on threads of its own.
pub(crate) struct WebTransportQuinn {
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl WebTransportQuinn {
    /// Starts it with the cluster's certificate for services.
    pub(crate) fn start(cluster: &Cluster) -> Self {
        let at = |name: &str| cluster.directory().join(name);
        let store = cert::Store::new();
        store.load(&at("service.crt"), &at("service.key")).unwrap();
        let mut tls = store.server_config();
        tls.alpn_protocols = vec![web_transport_quinn::ALPN.as_bytes().to_vec()];
        let tls = QuicServerConfig::try_from(tls).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let endpoint = {
            let _runtime = runtime.enter();
            quinn::Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()
        };
        let address = endpoint.local_addr().unwrap();
        let server = web_transport_quinn::Server::new(endpoint);
        runtime.spawn(serve(server));
        Self {
            address,
            _runtime: runtime,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}/", self.address.port())
    }
}

async fn serve(mut server: web_transport_quinn::Server) {
    while let Some(request) = server.accept().await {
        tokio::spawn(async move {
            let session = request.ok().await.expect("accepted");
            let datagrams = session.clone();
            tokio::spawn(async move {
                while let Ok(payload) = datagrams.read_datagram().await {
                    if datagrams.send_datagram(payload).is_err() {
                        return;
                    }
                }
            });
            while let Ok((mut send, mut recv)) = session.accept_bi().await {
                tokio::spawn(async move {
                    while let Ok(Some(chunk)) = recv.read_chunk(64 * 1024, true).await {
                        if send.write_chunk(chunk.bytes).await.is_err() {
                            return;
                        }
                    }
                    let _ = send.finish();
                });
            }
        });
    }
}
