//! A connection to a syslog receiver, over any of its transports.

use std::{io, sync::Arc, time::Duration};

use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufWriter},
    net::{TcpStream, UdpSocket, UnixDatagram},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use wavry_credentials::{audit::syslog::octet_counted, cert, source};

use super::{
    Error,
    config::{Host, Syslog, Tls, Transport},
};

/// From the first packet to the end of the TLS handshake.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// How long the receiver may take to make room for one message.
const SEND_DEADLINE: Duration = Duration::from_secs(10);
/// How long what was sent over TCP may stay unacknowledged, before the system calls the connection broken.
pub(super) const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// A connection; it is closed when dropped.
pub(super) enum Connection {
    /// TCP, with or without TLS: messages are framed by their length.
    Stream(BufWriter<Box<dyn Stream>>),
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

/// Both ways of one.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Connection {
    /// Connects. Names and files are looked at anew each time.
    pub(super) async fn open(target: &Syslog) -> Result<Self, Error> {
        within(OPEN_DEADLINE, async {
            Ok(match &target.transport {
                Transport::Tls(host, tls) => {
                    let config = tls_config(tls)?;
                    let name = ServerName::try_from(host.name.clone()).map_err(io::Error::other)?;
                    let stream = tcp(host).await?;
                    let connector = TlsConnector::from(Arc::new(config));
                    let stream = connector.connect(name, stream).await?;
                    Self::Stream(BufWriter::new(Box::new(stream)))
                }
                Transport::Tcp(host) => Self::Stream(BufWriter::new(Box::new(tcp(host).await?))),
                Transport::Udp(host) => Self::Udp(udp(host).await?),
                Transport::Unix(path) => {
                    let socket = UnixDatagram::unbound()?;
                    socket.connect(path)?;
                    Self::Unix(socket)
                }
            })
        })
        .await
    }

    /// Sends a message; it may wait in a buffer until [`Connection::flush`].
    pub(super) async fn send(&mut self, message: &[u8]) -> Result<(), Error> {
        within(SEND_DEADLINE, async {
            match self {
                Self::Stream(stream) => stream.write_all(&octet_counted(message)).await?,
                Self::Udp(socket) => whole(socket.send(message).await?, message)?,
                Self::Unix(socket) => whole(socket.send(message).await?, message)?,
            }
            Ok(())
        })
        .await
    }

    /// Hands everything sent to the system.
    pub(super) async fn flush(&mut self) -> Result<(), Error> {
        within(SEND_DEADLINE, async {
            match self {
                Self::Stream(stream) => stream.flush().await?,
                Self::Udp(_) | Self::Unix(_) => {}
            }
            Ok(())
        })
        .await
    }

    /// Returns when the peer has closed the connection, or nobody listens there any more. Receivers say
    /// nothing; what one says is passed over.
    pub(super) async fn broken(&mut self) -> io::Error {
        let mut said = [0; 256];
        loop {
            let read = match self {
                Self::Stream(stream) => match stream.read(&mut said).await {
                    Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                    read => read,
                },
                Self::Udp(socket) => socket.recv(&mut said).await,
                // Nobody can write to a socket without a name, and its peer's end shows when it is sent to.
                Self::Unix(_) => std::future::pending().await,
            };
            if let Err(error) = read {
                return error;
            }
        }
    }
}

async fn tcp(host: &Host) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host.name.as_str(), host.port)).await?;
    let socket = socket2::SockRef::from(&stream);
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    // A peer that vanished is noticed also while nothing is sent.
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(Duration::from_secs(60)))?;
    Ok(stream)
}

async fn udp(host: &Host) -> io::Result<UdpSocket> {
    let mut last = io::ErrorKind::NotFound.into();
    for address in tokio::net::lookup_host((host.name.as_str(), host.port)).await? {
        let any = match address {
            std::net::SocketAddr::V4(_) => "0.0.0.0:0",
            std::net::SocketAddr::V6(_) => "[::]:0",
        };
        let socket = UdpSocket::bind(any).await?;
        match socket.connect(address).await {
            Ok(()) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Whether what TLS to a receiver takes can be read; `None` where nothing is to be read.
pub(crate) fn check(receiver: &Syslog) -> Option<Result<(), Error>> {
    match &receiver.transport {
        Transport::Tls(_, tls) => Some(tls_config(tls).map(drop)),
        Transport::Tcp(_) | Transport::Udp(_) | Transport::Unix(_) => None,
    }
}

fn tls_config(tls: &Tls) -> Result<rustls::ClientConfig, Error> {
    let trust = match &tls.ca_file {
        Some(file) => cert::Trust::Authorities(file.clone()),
        None => cert::Trust::System,
    };
    let Some(certificate) = &tls.certificate else {
        return Ok(cert::client_config(&trust)?);
    };
    let key = match &tls.key {
        Some(file) => file.clone(),
        None => source::locate(KEY)?,
    };
    Ok(cert::client_config_with(&trust, certificate, &key)?)
}

/// The secret that is the key of a sink's certificate.
const KEY: &str = "syslog_key";

fn whole(sent: usize, message: &[u8]) -> io::Result<()> {
    match sent == message.len() {
        true => Ok(()),
        false => Err(io::ErrorKind::WriteZero.into()),
    }
}

async fn within<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(deadline, work)
        .await
        .unwrap_or(Err(Error::TooSlow(deadline)))
}
