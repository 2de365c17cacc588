//! A message to a DNS server, and its answer: over UDP, and over TCP where that does not do (RFC 1035, section 4.2).

use std::{io, net::SocketAddr, time::Duration};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RecordType},
    serialize::binary::BinEncodable as _,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::{Error, answer::read};

/// How long each datagram is waited for, and how many are sent.
const WAIT: Duration = Duration::from_secs(2);
const TRIES: usize = 2;
/// From the first packet of a TCP connection to the end of the answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest datagram that is read, in bytes: what a server sends without being told of a longer one is 512.
const MAX_DATAGRAM: usize = 4096;

/// Asks `server` for records, and gives an answer that says that there are some or none. `recursive`: it is to ask
/// others in its turn.
pub(super) async fn query(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
    recursive: bool,
) -> Result<Message, Error> {
    let mut request = Message::query();
    request.metadata.recursion_desired = recursive;
    request.add_query(Query::query(name.clone(), kind));
    let (_, answer) = send(server, &request).await?;
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer),
        code => Err(Error::Refused(server, code)),
    }
}

/// Sends `request`, again where it is not answered. Gives the bytes of the answer beside what they say.
pub(super) async fn send(
    server: SocketAddr,
    request: &Message,
) -> Result<(Vec<u8>, Message), Error> {
    let malformed = |_| Error::Malformed(server);
    let bytes = request.to_bytes().map_err(malformed)?;
    if let Some((bytes, answer)) = over_udp(server, request, &bytes).await
        && !answer.metadata.truncation
    {
        return Ok((bytes, answer));
    }
    let answered = timeout(DEADLINE, over_tcp(server, &bytes)).await;
    let answer = answered.map_err(|_| Error::Silent(server))?;
    let bytes = answer.map_err(|error| Error::Unreachable(server, error))?;
    match read(&bytes, request) {
        Some(answer) => Ok((bytes, answer)),
        None => Err(Error::Malformed(server)),
    }
}

/// `None` if nothing came that answers.
async fn over_udp(
    server: SocketAddr,
    request: &Message,
    bytes: &[u8],
) -> Option<(Vec<u8>, Message)> {
    let here = match server {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
    };
    let socket = UdpSocket::bind(here).await.ok()?;
    socket.connect(server).await.ok()?;
    let mut buffer = vec![0; MAX_DATAGRAM];
    for _ in 0..TRIES {
        socket.send(bytes).await.ok()?;
        let answer = timeout(WAIT, async {
            loop {
                let length = socket.recv(&mut buffer).await.ok()?;
                // What is not the answer may be a late one, or forged.
                if let Some(answer) = read(&buffer[..length], request) {
                    return Some((buffer[..length].to_vec(), answer));
                }
            }
        });
        match answer.await {
            Ok(answered) => return answered,
            Err(_) => continue,
        }
    }
    None
}

async fn over_tcp(server: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(request.len()).map_err(io::Error::other)?;
    // In one packet: some servers read no further than the first.
    let framed = [&length.to_be_bytes(), request].concat();
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::OpCode;

    use super::*;

    fn request() -> Message {
        let mut request = Message::query();
        let name = Name::from_ascii("_acme-challenge.gateway.example.").unwrap();
        request.add_query(Query::query(name, RecordType::TXT));
        request
    }

    #[tokio::test]
    async fn what_does_not_fit_into_a_datagram_is_asked_for_over_tcp() {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let address = udp.local_addr().unwrap();
            if let Ok(tcp) = tokio::net::TcpListener::bind(address).await {
                break (udp, tcp);
            }
        };
        let server = tcp.local_addr().unwrap();
        let serve = tokio::spawn(async move {
            let mut buffer = [0; 512];
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = Message::response(asked.metadata.id, OpCode::Query);
            answer.add_queries(asked.queries);
            answer.metadata.truncation = true;
            udp.send_to(b"no DNS", from).await.unwrap();
            udp.send_to(&answer.to_bytes().unwrap(), from)
                .await
                .unwrap();
            let (mut stream, _) = tcp.accept().await.unwrap();
            let length = stream.read_u16().await.unwrap();
            stream
                .read_exact(&mut buffer[..length.into()])
                .await
                .unwrap();
            answer.metadata.truncation = false;
            let bytes = answer.to_bytes().unwrap();
            stream
                .write_u16(bytes.len().try_into().unwrap())
                .await
                .unwrap();
            stream.write_all(&bytes).await.unwrap();
        });
        let (_, answer) = send(server, &request()).await.unwrap();
        assert!(!answer.metadata.truncation);
        serve.await.unwrap();
    }
}
