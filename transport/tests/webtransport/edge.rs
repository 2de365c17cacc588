//! Many clients, clients that want too much, and clients that move.

use std::{net::UdpSocket, time::Duration};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use wavry_proto::{h3::code, webtransport::stream as wt_stream};
use wavry_transport::{session::Response, webtransport::Limits};

use crate::{
    raw::{Raw, answer, client_config, endpoint},
    support::{Service, echo, loopback, soon},
};

/// What is counted while a test runs, which it does on one thread.
struct Counted {
    handle: PrometheusHandle,
    _guard: metrics::LocalRecorderGuard<'static>,
}

impl Counted {
    fn start() -> Self {
        let recorder: &'static PrometheusRecorder =
            Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
        Self {
            handle: recorder.handle(),
            _guard: metrics::set_default_local_recorder(recorder),
        }
    }

    /// The value of a metric; 0 if it was never counted.
    fn value(&self, line: &str) -> u64 {
        let text = self.handle.render();
        let rest = text
            .lines()
            .find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        rest.map_or(0, |value| value.parse().unwrap())
    }

    fn refused(&self, reason: &str) -> u64 {
        let name = "wavry_transport_connections_refused_total";
        self.value(&format!("{name}{{reason=\"{reason}\"}}"))
    }

    /// Waits until a metric has a value.
    async fn reaches(&self, line: &str, value: u64) {
        soon(async {
            while self.value(line) != value {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
}

/// An attempt to connect from an address of this host.
async fn connect(
    service: &Service,
    from: [u8; 4],
) -> Result<(quinn::Endpoint, quinn::Connection), quinn::ConnectionError> {
    let endpoint = quinn::Endpoint::client((from, 0).into()).unwrap();
    let config = client_config(&service.identity, &[b"h3"]);
    let connecting = endpoint.connect_with(config, service.address(), "localhost");
    let connection = soon(connecting.unwrap()).await?;
    Ok((endpoint, connection))
}

fn is_refusal(error: &quinn::ConnectionError) -> bool {
    matches!(
        error,
        quinn::ConnectionError::ConnectionClosed(close)
            if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED
    )
}

const CONNECTIONS: &str = "wavry_transport_connections{side=\"server\"}";
const HANDSHAKES: &str = "wavry_transport_handshakes";
const RETRIES: &str = "wavry_transport_retries_total";
const HANDED_OVER: &str = "wavry_transport_packets_handed_over_total{link=\"webtransport\"}";

#[tokio::test]
async fn an_address_with_too_many_connections_is_refused_and_another_is_not() {
    let counted = Counted::start();
    let service = Service::start(Limits {
        connections_per_ip: 3,
        ..Limits::default()
    });
    let (greedy, other) = ([127, 0, 0, 2], [127, 0, 0, 3]);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(connect(&service, greedy).await.unwrap());
    }
    // The third had to prove its address.
    assert_eq!(counted.value(RETRIES), 1);
    let refused = connect(&service, greedy).await.unwrap_err();
    assert!(is_refusal(&refused), "{refused}");
    assert_eq!(counted.refused("too_many_from_address"), 1);
    let _other = connect(&service, other).await.unwrap();
    counted.reaches(HANDSHAKES, 0).await;
    counted.reaches(CONNECTIONS, 4).await;

    // A connection that ends makes room.
    let (_endpoint, connection) = held.pop().unwrap();
    connection.close(0u32.into(), b"");
    counted.reaches(CONNECTIONS, 3).await;
    connect(&service, greedy).await.unwrap();
}

#[tokio::test]
async fn an_address_that_comes_too_often_is_refused_and_another_is_not() {
    let counted = Counted::start();
    let service = Service::start(Limits {
        handshake_rate_per_ip: 1,
        ..Limits::default()
    });
    let (greedy, other) = ([127, 0, 0, 2], [127, 0, 0, 3]);
    // It is let in four times, and once more for each second that passes meanwhile.
    let mut attempts = 0;
    let refused = loop {
        attempts += 1;
        assert!(attempts < 1000, "let in again and again");
        if let Err(refused) = connect(&service, greedy).await {
            break refused;
        }
    };
    assert!(is_refusal(&refused), "{refused}");
    assert_eq!(counted.refused("address_rate"), 1);
    connect(&service, other).await.unwrap();
}

#[tokio::test]
async fn a_server_under_pressure_lets_in_who_answers_a_retry() {
    let counted = Counted::start();
    for shards in [1, 4] {
        let limits = Limits {
            unproven_handshakes: 0,
            ..Limits::default()
        };
        let service = Service::sharded(limits, shards);
        soon(service.pair()).await;
    }
    assert_eq!(counted.value(RETRIES), 2);
}

#[tokio::test]
async fn the_limit_of_connections_holds_over_all_shards() {
    let counted = Counted::start();
    let limits = Limits {
        connections: 5,
        ..Limits::default()
    };
    let service = Service::sharded(limits, 4);
    let mut held = Vec::new();
    for _ in 0..20 {
        match connect(&service, [127, 0, 0, 1]).await {
            Ok(connected) => held.push(connected),
            Err(refused) => assert!(is_refusal(&refused), "{refused}"),
        }
    }
    assert_eq!((held.len(), counted.refused("too_many")), (5, 15));
}

/// Handshakes that are begun and never finished: what an attacker sends who answers from nowhere.
#[tokio::test]
async fn handshakes_that_stand_still_are_given_up_and_keep_nobody_out() {
    let counted = Counted::start();
    let service = Service::start(Limits {
        unproven_handshakes: 3,
        header_timeout: Duration::from_millis(700),
        ..Limits::default()
    });
    // What a client would send first, recorded and sent again from addresses that answer nothing.
    let client = endpoint();
    let mut packets = Vec::new();
    for _ in 0..6 {
        let deaf = UdpSocket::bind(loopback()).unwrap();
        let config = client_config(&service.identity, &[b"h3"]);
        let to = deaf.local_addr().unwrap();
        let connecting = client.connect_with(config, to, "localhost").unwrap();
        let received = tokio::task::spawn_blocking(move || {
            let mut buf = [0; 2000];
            let len = deaf.recv(&mut buf).unwrap();
            buf[..len].to_vec()
        });
        packets.push(soon(received).await.unwrap());
        drop(connecting);
    }
    let silent: Vec<_> = (0..6)
        .map(|_| UdpSocket::bind(loopback()).unwrap())
        .collect();
    for (socket, packet) in silent.iter().zip(&packets) {
        socket.send_to(packet, service.address()).unwrap();
    }
    counted.reaches(RETRIES, 3).await;
    assert_eq!(counted.value(HANDSHAKES), 3);
    // Meanwhile others come in, and those who stand still are forgotten.
    soon(service.pair()).await;
    counted
        .reaches(
            "wavry_transport_handshakes_failed_total{reason=\"timeout\"}",
            3,
        )
        .await;
    assert_eq!(counted.value(HANDSHAKES), 0);
}

/// A client with a session on which everything comes back.
struct Echoed {
    raw: Raw,
    connect: quinn::SendStream,
    _answer: quinn::RecvStream,
}

impl Echoed {
    async fn open(service: &Service) -> Self {
        let raw = Raw::connect(service).await;
        let (connect, mut recv) = raw.ask("/").await;
        let requested = soon(service.requested()).await;
        let session = requested.accept(Response::ok()).await.unwrap();
        assert_eq!(answer(&mut recv).await.status, 200);
        tokio::spawn(echo(session));
        Self {
            raw,
            connect,
            _answer: recv,
        }
    }

    /// Goes on from another port, and sees that the session does too.
    async fn moves(&self) {
        let socket = UdpSocket::bind(loopback()).unwrap();
        self.raw.endpoint.rebind(socket).unwrap();
        let header = wt_stream::header(wt_stream::BI, self.connect.id().into());
        let (mut send, mut back) = self.raw.bi(&header).await;
        send.write_all(&[7; 20_000]).await.unwrap();
        send.finish().unwrap();
        assert_eq!(soon(back.read_to_end(1 << 16)).await.unwrap(), [7; 20_000]);
    }
}

#[tokio::test]
async fn a_session_goes_on_when_its_client_moves_to_an_address_of_another_shard() {
    let counted = Counted::start();
    let service = Service::sharded(Limits::default(), 4);
    let client = Echoed::open(&service).await;
    assert_eq!(counted.value(HANDED_OVER), 0);
    let mut moved = 0;
    for _ in 0..24 {
        let before = counted.value(HANDED_OVER);
        client.moves().await;
        moved += usize::from(counted.value(HANDED_OVER) > before);
    }
    // Three of four ports belong to another shard.
    assert!(moved > 3, "moved {moved} times");
    assert!(client.raw.quic.close_reason().is_none());
    assert_eq!(counted.value(CONNECTIONS), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn shards_on_several_threads_lose_nothing_that_they_hand_over() {
    let service = Service::sharded(Limits::default(), 8);
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(Echoed::open(&service).await);
    }
    let moving = clients.into_iter().map(|client| {
        tokio::spawn(async move {
            for _ in 0..10 {
                client.moves().await;
            }
            client.raw.quic.close_reason()
        })
    });
    for done in futures_util::future::join_all(moving).await {
        assert_eq!(done.unwrap(), None);
    }
}

#[tokio::test]
async fn draining_and_closing_reach_every_shard() {
    let service = Service::sharded(Limits::default(), 4);
    let address = service.address();
    let mut clients = Vec::new();
    for _ in 0..16 {
        clients.push(Raw::connect(&service).await);
    }
    service.server.drain();
    // Without a session they have nothing to wait for.
    for client in &clients[..8] {
        assert_eq!(client.closed().await, code::NO_ERROR);
    }
    let refused = connect(&service, [127, 0, 0, 1]).await.unwrap_err();
    assert!(is_refusal(&refused), "{refused}");
    soon(service.server.close()).await;
    for client in &clients {
        assert_eq!(client.closed().await, code::NO_ERROR);
    }
    drop(service);
    // The port is free again as soon as the endpoints are gone.
    soon(async {
        while UdpSocket::bind(address).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
