//! What clients meet over TCP.

use std::{net::Ipv4Addr, time::Instant};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{plain::ask, *};
use crate::https::{Https, Serving};

/// How long a head, a handshake or content may take where it is waited for.
const HEADER_TIMEOUT: Duration = Duration::from_millis(400);

fn limits(header_timeout: Duration) -> webtransport::Limits {
    webtransport::Limits {
        header_timeout,
        connections_per_ip: 4,
        max_content: 1024,
        ..webtransport::Limits::default()
    }
}

/// A listener that answers for `world`, and where it is.
async fn serve(world: &World, header_timeout: Duration) -> (Serving, SocketAddr) {
    serve_within(world, limits(header_timeout)).await
}

async fn serve_within(world: &World, limits: webtransport::Limits) -> (Serving, SocketAddr) {
    let https = Https::bind(loopback(), &world.core.certificates, None, limits);
    let https = https.await.unwrap();
    let address = https.local_addr().unwrap();
    let serving = https.start();
    serving.answer(world.core.clone(), 4433);
    (serving, address)
}

async fn connect(
    world: &World,
    to: SocketAddr,
    from: [u8; 4],
) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::from(from), 0).into())?;
    let stream = socket.connect(to).await?;
    let trust = Trust::Authorities(world._files.path().join("ca.crt"));
    let tls = TlsConnector::from(Arc::new(cert::client_config(&trust).unwrap()));
    tls.connect("localhost".try_into().unwrap(), stream).await
}

/// Sends `request` and reads until the other side closes.
async fn exchange(stream: &mut TlsStream<TcpStream>, request: &str) -> String {
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    // How it ends says nothing: who is cut off is told by no close_notify.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

async fn get(world: &World, to: SocketAddr, head: &str) -> String {
    let mut stream = connect(world, to, [127, 0, 0, 1]).await.unwrap();
    let request = format!("{head}\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    soon(exchange(&mut stream, &request)).await
}

#[tokio::test]
async fn it_is_answered_as_over_http_3_and_told_where_that_is() {
    let world = World::new();
    let (_serving, address) = serve(&world, HANG * 3).await;
    for (method, path) in [
        ("GET", "/healthz"),
        ("GET", "/.well-known/wavry/certificate-hashes"),
        ("GET", "/open"),
        ("PUT", "/healthz"),
        ("POST", "/.well-known/wavry/session/refresh?service=closed"),
    ] {
        let expected = ask(&world, method, path, Vec::new());
        let answer = get(&world, address, &format!("{method} {path} HTTP/1.1")).await;
        let (head, content) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with(&format!("HTTP/1.1 {}", expected.status)),
            "{head}"
        );
        assert!(head.contains("alt-svc: h3=\":4433\"; ma=86400"), "{head}");
        assert_eq!(content.as_bytes(), &expected.content[..], "{method} {path}");
        for header in expected.headers {
            let line = format!("{}: {}", header.name, header.value);
            assert!(head.contains(&line), "{line} is not in {head}");
        }
    }
}

#[tokio::test]
async fn before_the_gateway_serves_it_says_that_it_does_not() {
    let world = World::new();
    let https = Https::bind(loopback(), &world.core.certificates, None, limits(HANG * 3));
    let https = https.await.unwrap();
    let address = https.local_addr().unwrap();
    let _serving = https.start();
    let answer = get(&world, address, "GET /healthz HTTP/1.1").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
}

#[tokio::test]
async fn who_dawdles_is_cut_off_in_handshake_head_and_content() {
    let world = World::new();
    let (_serving, address) = serve(&world, HEADER_TIMEOUT).await;
    let began = Instant::now();
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut byte = [0];
    assert!(matches!(soon(silent.read(&mut byte)).await, Ok(0) | Err(_)));

    // A byte now and then keeps nothing open.
    let mut slow = connect(&world, address, [127, 0, 0, 1]).await.unwrap();
    let dripped = soon(async {
        loop {
            if slow.write_all(b"G").await.is_err() || slow.flush().await.is_err() {
                break;
            }
            let read = timeout(Duration::from_millis(20), slow.read(&mut byte)).await;
            if let Ok(Ok(0) | Err(_)) = read {
                break;
            }
        }
    });
    dripped.await;
    assert!(
        began.elapsed() >= HEADER_TIMEOUT * 2,
        "it was cut off for something else"
    );

    let mut owing = connect(&world, address, [127, 0, 0, 1]).await.unwrap();
    let head = "POST /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nless";
    let answer = soon(exchange(&mut owing, head)).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn what_is_too_long_is_refused() {
    let world = World::new();
    let (_serving, address) = serve(&world, HANG * 3).await;
    let long = "x".repeat(64 * 1024);
    let answer = get(
        &world,
        address,
        &format!("GET /healthz HTTP/1.1\r\nlong: {long}"),
    )
    .await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    let mut stream = connect(&world, address, [127, 0, 0, 1]).await.unwrap();
    let head = format!(
        "POST /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 2000\r\n\r\n{}",
        "x".repeat(2000)
    );
    let answer = soon(exchange(&mut stream, &head)).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let mut stream = connect(&world, address, [127, 0, 0, 1]).await.unwrap();
    let answer = soon(exchange(
        &mut stream,
        "GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n",
    ))
    .await;
    assert!(answer.starts_with("HTTP/1.1 400"), "no host: {answer}");
}

#[tokio::test]
async fn a_flood_from_one_address_keeps_nobody_else_out() {
    let world = World::new();
    let (_serving, address) = serve(&world, HANG * 3).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(connect(&world, address, [127, 0, 0, 1]).await.unwrap());
    }
    for _ in 0..20 {
        assert!(
            soon(connect(&world, address, [127, 0, 0, 1]))
                .await
                .is_err()
        );
    }
    let mut other = connect(&world, address, [127, 0, 0, 2]).await.unwrap();
    let request = "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let answer = soon(exchange(&mut other, request)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // There is room again once some have left.
    held.clear();
    soon(async {
        while connect(&world, address, [127, 0, 0, 1]).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn handshakes_that_do_not_come_to_an_end_leave_room_for_those_of_others() {
    let world = World::new();
    let limits = webtransport::Limits {
        connections_per_ip: 1024,
        handshake_rate_per_ip: 1000,
        ..limits(HANG * 3)
    };
    let (_serving, address) = serve_within(&world, limits).await;
    // More than one address may have under way.
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let refused = soon(connect(&world, address, [127, 0, 0, 1])).await;
    assert!(refused.is_err());
    let answer = {
        let mut other = connect(&world, address, [127, 0, 0, 2]).await.unwrap();
        let request = "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        soon(exchange(&mut other, request)).await
    };
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // And of those that are made none is counted any more.
    silent.clear();
    soon(async {
        while connect(&world, address, [127, 0, 0, 1]).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn handshakes_have_a_rate_of_an_address_and_one_of_all() {
    let world = World::new();
    let limits = webtransport::Limits {
        connections_per_ip: 1024,
        handshake_rate: 4,
        handshake_rate_per_ip: 1,
        ..limits(HANG * 3)
    };
    let (_serving, address) = serve_within(&world, limits).await;
    // Four seconds' worth at once; on a slow machine some more come in time.
    let made = |host| {
        let world = &world;
        async move {
            for made in 0..1000 {
                if soon(connect(world, address, [127, 0, 0, host]))
                    .await
                    .is_err()
                {
                    return made;
                }
            }
            panic!("nobody is refused");
        }
    };
    assert!(made(1).await >= 4);
    assert!(soon(connect(&world, address, [127, 0, 0, 2])).await.is_ok());
    let mut by_all = 0;
    for host in 3..=250 {
        match soon(connect(&world, address, [127, 0, 0, host])).await {
            Ok(_) => by_all += 1,
            Err(_) => break,
        }
    }
    assert!((1..248).contains(&by_all), "{by_all}");
}

#[tokio::test]
async fn told_to_close_it_answers_what_it_read_and_takes_nobody_more() {
    let world = World::new();
    let (serving, address) = serve(&world, HANG * 3).await;
    let mut idle = connect(&world, address, [127, 0, 0, 1]).await.unwrap();
    let request = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    idle.write_all(request.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    soon(idle.read_exact(&mut start)).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    // It would be waited for much longer than this takes.
    soon(serving.close()).await;
    let mut rest = Vec::new();
    let _ = soon(idle.read_to_end(&mut rest)).await;
    assert!(TcpStream::connect(address).await.is_err());
}
