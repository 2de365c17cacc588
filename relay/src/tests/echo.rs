use super::*;

fn world() -> World {
    World::with(&[("echo", RawUpstream::new("echo:"))])
}

#[tokio::test]
async fn the_first_subprotocol_offered_is_chosen() {
    let world = world();
    let (_session, response) = world.open("echo").await.unwrap();
    assert_eq!(response.status, 200);
    assert_eq!(response.subprotocol.as_deref(), Some("first"));
}

#[tokio::test]
async fn a_bidirectional_stream_comes_back_with_its_end() {
    let world = world();
    let session = world.session("echo").await;
    let (mut send, mut recv) = session.open_bi().await.unwrap();
    write(&mut send, b"hello").await;
    assert_eq!(read_exact(&mut recv, 5).await, b"hello");
    write(&mut send, b", world").await;
    send.finish().unwrap();
    assert_eq!(read_to_end(&mut recv).await.unwrap(), b", world");
}

#[tokio::test]
async fn a_unidirectional_stream_comes_back_on_a_new_one() {
    let world = world();
    let session = world.session("echo").await;
    let mut send = session.open_uni().await.unwrap();
    write(&mut send, b"one way").await;
    send.finish().unwrap();
    let mut recv = soon(session.accept_uni()).await.unwrap();
    assert_eq!(read_to_end(&mut recv).await.unwrap(), b"one way");
}

#[tokio::test]
async fn reset_and_stop_come_back_with_their_codes() {
    let world = world();
    let session = world.session("echo").await;
    let (mut send, mut recv) = session.open_bi().await.unwrap();
    write(&mut send, b"x").await;
    read_exact(&mut recv, 1).await;
    send.reset(41);
    assert_eq!(read_to_end(&mut recv).await, Err(ReadError::Reset(41)));

    let (mut send, mut recv) = session.open_bi().await.unwrap();
    write(&mut send, b"x").await;
    read_exact(&mut recv, 1).await;
    recv.stop(42);
    assert_eq!(soon(send.stopped()).await, Some(42));
}

#[tokio::test]
async fn datagrams_come_back() {
    let world = world();
    let session = world.session("echo").await;
    datagram_round_trip(&session, b"ping").await;
}

#[tokio::test]
async fn a_stream_that_is_not_read_holds_its_writer_and_no_other_session() {
    let world = world();
    let (stalled, other) = (world.session("echo").await, world.session("echo").await);
    let (mut unread, _recv) = stalled.open_bi().await.unwrap();
    let chunk = Bytes::from(vec![7; 64 * 1024]);
    // More than every buffer on the way holds, so that it never ends.
    let flood = async {
        for _ in 0..1024 {
            unread.write(chunk.clone()).await.unwrap();
        }
    };
    let echoes = async {
        for _ in 0..200 {
            let (mut send, mut recv) = other.open_bi().await.unwrap();
            write(&mut send, b"still there").await;
            send.finish().unwrap();
            assert_eq!(read_to_end(&mut recv).await.unwrap(), b"still there");
        }
    };
    tokio::select! {
        () = flood => panic!("64 MiB were held somewhere"),
        () = echoes => {}
    }
}
