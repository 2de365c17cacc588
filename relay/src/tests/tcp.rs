use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use wavry_proto::session::{Close, stream_code};

use super::*;

async fn world() -> (World, TcpListener) {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    (World::with(&[("tcp", RawUpstream::new(url))]), listener)
}

async fn accept(listener: &TcpListener) -> TcpStream {
    soon(listener.accept()).await.unwrap().0
}

async fn read_some(tcp: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    soon(tcp.read_exact(&mut bytes)).await.unwrap();
    bytes
}

/// What reading meets once everything was read.
async fn end(tcp: &mut TcpStream) -> io::Result<usize> {
    soon(tcp.read(&mut [0])).await
}

#[tokio::test]
async fn each_stream_is_a_connection_and_the_first_uses_the_one_that_was_dialled() {
    let (world, listener) = world().await;
    let session = world.session("tcp").await;
    let mut dialled = accept(&listener).await;

    let (mut first, mut first_back) = session.open_bi().await.unwrap();
    write(&mut first, b"one").await;
    assert_eq!(read_some(&mut dialled, 3).await, b"one");
    dialled.write_all(b"eins").await.unwrap();
    assert_eq!(read_exact(&mut first_back, 4).await, b"eins");

    let (mut second, mut second_back) = session.open_bi().await.unwrap();
    write(&mut second, b"two").await;
    let mut another = accept(&listener).await;
    assert_eq!(read_some(&mut another, 3).await, b"two");
    another.write_all(b"zwei").await.unwrap();
    assert_eq!(read_exact(&mut second_back, 4).await, b"zwei");
}

#[tokio::test]
async fn fin_is_half_close_either_way() {
    let (world, listener) = world().await;
    let session = world.session("tcp").await;
    let mut tcp = accept(&listener).await;
    let (mut send, mut recv) = session.open_bi().await.unwrap();
    write(&mut send, b"question").await;
    send.finish().unwrap();
    assert_eq!(read_some(&mut tcp, 8).await, b"question");
    assert_eq!(end(&mut tcp).await.unwrap(), 0);
    tcp.write_all(b"answer").await.unwrap();
    tcp.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut recv).await.unwrap(), b"answer");
}

#[tokio::test]
async fn an_upstream_that_resets_resets_the_stream_and_not_the_session() {
    let (world, listener) = world().await;
    let session = world.session("tcp").await;
    let mut tcp = accept(&listener).await;
    let (mut send, mut recv) = session.open_bi().await.unwrap();
    write(&mut send, b"x").await;
    read_some(&mut tcp, 1).await;
    socket2::SockRef::from(&tcp)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(tcp);
    let reset = Err(ReadError::Reset(stream_code::UPSTREAM_RESET));
    assert_eq!(read_to_end(&mut recv).await, reset);
    assert_eq!(
        soon(send.stopped()).await,
        Some(stream_code::UPSTREAM_RESET)
    );

    let (mut send, _recv) = session.open_bi().await.unwrap();
    write(&mut send, b"y").await;
    assert_eq!(read_some(&mut accept(&listener).await, 1).await, b"y");
}

#[tokio::test]
async fn a_client_that_resets_resets_the_connection() {
    let (world, listener) = world().await;
    let session = world.session("tcp").await;
    let mut tcp = accept(&listener).await;
    let (mut send, mut recv) = session.open_bi().await.unwrap();
    write(&mut send, b"x").await;
    read_some(&mut tcp, 1).await;
    send.reset(5);
    let met = end(&mut tcp).await.map_err(|error| error.kind());
    assert_eq!(met, Err(io::ErrorKind::ConnectionReset));
    let reset = Err(ReadError::Reset(stream_code::UPSTREAM_RESET));
    assert_eq!(read_to_end(&mut recv).await, reset);
}

#[tokio::test]
async fn a_session_that_ends_never_makes_a_half_written_stream_look_complete() {
    let (world, listener) = world().await;
    let session = world.session("tcp").await;
    let mut tcp = accept(&listener).await;
    let (mut send, _recv) = session.open_bi().await.unwrap();
    write(&mut send, b"half").await;
    read_some(&mut tcp, 4).await;
    session.close(Close::new(0, ""));
    let met = end(&mut tcp).await.map_err(|error| error.kind());
    assert_eq!(met, Err(io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_client_that_stops_reading_may_go_on_sending() {
    let (world, listener) = world().await;
    let session = world.session("tcp").await;
    let tcp = accept(&listener).await;
    let (mut send, mut recv) = session.open_bi().await.unwrap();
    write(&mut send, b"a").await;
    recv.stop(6);
    let (mut from, mut to) = tcp.into_split();
    // More than any buffer on the way holds: it only goes when somebody takes it.
    let flood = tokio::spawn(async move { to.write_all(&vec![0; 16 << 20]).await });
    soon(flood).await.unwrap().unwrap();
    write(&mut send, b"bc").await;
    send.finish().unwrap();
    let mut received = Vec::new();
    soon(from.read_to_end(&mut received)).await.unwrap();
    assert_eq!(received, b"abc");
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_502() {
    let (world, listener) = world().await;
    drop(listener);
    assert_eq!(world.refusal("tcp").await, 502);
}

#[tokio::test]
async fn an_upstream_that_goes_refuses_streams_and_not_the_session() {
    let (world, listener) = world().await;
    let session = world.session("tcp").await;
    let _dialled = accept(&listener).await;
    let (mut first, _back) = session.open_bi().await.unwrap();
    write(&mut first, b"x").await;
    drop(listener);
    let (mut send, mut recv) = session.open_bi().await.unwrap();
    write(&mut send, b"x").await;
    let refused = Err(ReadError::Reset(stream_code::UPSTREAM_REFUSED));
    assert_eq!(read_to_end(&mut recv).await, refused);
    assert_eq!(
        soon(send.stopped()).await,
        Some(stream_code::UPSTREAM_REFUSED)
    );
    write(&mut first, b"y").await;
}

#[tokio::test]
async fn a_first_connection_that_ended_while_it_waited_is_replaced() {
    let (world, listener) = world().await;
    let session = world.session("tcp").await;
    drop(accept(&listener).await);
    let (mut send, _recv) = session.open_bi().await.unwrap();
    write(&mut send, b"fresh").await;
    assert_eq!(read_some(&mut accept(&listener).await, 5).await, b"fresh");
}

#[tokio::test]
async fn a_unidirectional_stream_is_stopped() {
    let (world, _listener) = world().await;
    let session = world.session("tcp").await;
    let mut send = session.open_uni().await.unwrap();
    write(&mut send, b"x").await;
    assert_eq!(soon(send.stopped()).await, Some(stream_code::UNSUPPORTED));
}
