use tokio::net::UdpSocket;
use wavry_proto::session::{close_code, stream_code};
use wavry_transport::session::Closed;

use super::*;

async fn world() -> (World, UdpSocket) {
    let socket = UdpSocket::bind(loopback()).await.unwrap();
    let url = format!("udp://{}", socket.local_addr().unwrap());
    (World::with(&[("udp", RawUpstream::new(url))]), socket)
}

async fn echo(socket: UdpSocket) {
    let mut buffer = [0; 2048];
    while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
        socket.send_to(&buffer[..len], from).await.unwrap();
    }
}

#[tokio::test]
async fn datagrams_go_to_the_socket_and_come_back() {
    let (world, socket) = world().await;
    tokio::spawn(echo(socket));
    let session = world.session("udp").await;
    datagram_round_trip(&session, b"ping").await;
}

#[tokio::test]
async fn each_session_has_a_socket_of_its_own() {
    let (world, socket) = world().await;
    let (one, two) = (world.session("udp").await, world.session("udp").await);
    let mut sources = Vec::new();
    for session in [&one, &two] {
        let mut buffer = [0; 16];
        session.send_datagram(Bytes::from_static(b"x")).unwrap();
        sources.push(soon(socket.recv_from(&mut buffer)).await.unwrap().1);
    }
    assert_ne!(sources[0], sources[1]);
}

#[tokio::test]
async fn an_upstream_that_is_not_there_closes_the_session() {
    let (world, socket) = world().await;
    let session = world.session("udp").await;
    drop(socket);
    session.send_datagram(Bytes::from_static(b"x")).unwrap();
    let Closed::Peer(close) = soon(session.closed()).await else {
        panic!("not closed by the relay");
    };
    assert_eq!(close.code, close_code::UPSTREAM_LOST);
}

#[tokio::test]
async fn streams_are_refused() {
    let (world, _socket) = world().await;
    let session = world.session("udp").await;
    let (mut send, mut recv) = session.open_bi().await.unwrap();
    write(&mut send, b"x").await;
    let refused = Err(ReadError::Reset(stream_code::UNSUPPORTED));
    assert_eq!(read_to_end(&mut recv).await, refused);
    assert_eq!(soon(send.stopped()).await, Some(stream_code::UNSUPPORTED));

    let mut send = session.open_uni().await.unwrap();
    write(&mut send, b"x").await;
    assert_eq!(soon(send.stopped()).await, Some(stream_code::UNSUPPORTED));
}
