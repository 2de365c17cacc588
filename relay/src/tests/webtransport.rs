use tempfile::TempDir;
use wavry_credentials::cert::{DevelopmentAuthority, Store};
use wavry_proto::session::{Close, Header, close_code};
use wavry_transport::{
    session::Closed,
    webtransport::{Limits, Requested, Server},
};

use super::*;

/// A WebTransport server, and a relay that knows it.
struct Site {
    world: World,
    server: Server,
    _files: TempDir,
}

fn site(path: &str) -> Site {
    cert::install_crypto_provider();
    let files = TempDir::new().unwrap();
    let authority = DevelopmentAuthority::open(files.path()).unwrap();
    authority
        .issue("upstream", &["localhost", "127.0.0.1"])
        .unwrap();
    let store = Store::new();
    store
        .load(
            &files.path().join("upstream.crt"),
            &files.path().join("upstream.key"),
        )
        .unwrap();
    let socket = std::net::UdpSocket::bind(loopback()).unwrap();
    let server = Server::new(socket, store.server_config(), Limits::default()).unwrap();
    let mut upstream = RawUpstream::new(format!("https://{}{path}", server.local_addr().unwrap()));
    upstream.ca_file = Some(files.path().join("ca.crt"));
    upstream.connect_timeout = Duration::from_secs(2);
    Site {
        world: World::with(&[("web", upstream)]),
        server,
        _files: files,
    }
}

fn header(name: &str, value: &str) -> Header {
    Header {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

impl Site {
    async fn requested(&self) -> Requested {
        soon(self.server.accept()).await.unwrap()
    }
}

#[tokio::test]
async fn the_upstream_sees_the_request_and_who_the_client_is() {
    let site = site("/base/");
    let mut open = open("web");
    open.subject = Some("ana maría".into());
    open.claims = Some(r#"{"room":1}"#.into());
    open.request.headers = vec![
        header("user-agent", "test"),
        header("x-wavry-subject", "root"),
        header("x-forwarded-for", "198.51.100.1"),
    ];
    let asked = site.world.ask(open);
    let answered = async {
        let requested = site.requested().await;
        let request = requested.request().clone();
        let session = requested.accept(Response::ok()).await.unwrap();
        (request, session)
    };
    let (session, (request, _upstream)) = tokio::join!(asked, answered);
    session.unwrap();
    let local = site.server.local_addr().unwrap();
    assert_eq!(request.authority, local.to_string());
    assert_eq!(request.path, "/base/rest?a=1");
    assert_eq!(request.origin.as_deref(), Some("https://app.example"));
    assert_eq!(request.subprotocols, ["first", "second"]);
    let values = |name: &str| -> Vec<&str> {
        let named = request.headers.iter().filter(|h| h.name == name);
        named.map(|h| h.value.as_str()).collect()
    };
    assert_eq!(values("user-agent"), ["test"]);
    assert_eq!(values("x-wavry-subject"), ["ana%20mar%C3%ADa"]);
    assert_eq!(values("x-wavry-claims"), ["eyJyb29tIjoxfQ"]);
    assert_eq!(values("x-forwarded-for"), ["192.0.2.7"]);
}

#[tokio::test]
async fn its_status_subprotocol_and_headers_are_the_answer() {
    let site = site("");
    let refused = async {
        let mut response = Response::status(418);
        response.headers.push(header("retry-after", "9"));
        site.requested().await.reject(response).await;
    };
    let (asked, ()) = tokio::join!(site.world.open("web"), refused);
    let Err(OpenError::Rejected(response)) = asked else {
        panic!("not refused");
    };
    assert_eq!(response.status, 418);
    assert!(response.headers.contains(&header("retry-after", "9")));

    let taken = async {
        let mut response = Response::ok();
        response.subprotocol = Some("second".into());
        response.headers.push(header("x-request-id", "5"));
        site.requested().await.accept(response).await.unwrap()
    };
    let (asked, _upstream) = tokio::join!(site.world.open("web"), taken);
    let (_session, response) = asked.unwrap();
    assert_eq!(response.status, 200);
    assert_eq!(response.subprotocol.as_deref(), Some("second"));
    assert!(response.headers.contains(&header("x-request-id", "5")));
}

#[tokio::test]
async fn its_close_is_the_clients_and_the_clients_is_its() {
    let site = site("");
    let taken = async { site.requested().await.accept(Response::ok()).await.unwrap() };
    let (session, upstream) = tokio::join!(site.world.session("web"), taken);
    upstream.close(Close::new(7, "enough"));
    let closed = soon(session.closed()).await;
    assert_eq!(closed, Closed::Peer(Close::new(7, "enough")));

    let taken = async { site.requested().await.accept(Response::ok()).await.unwrap() };
    let (session, upstream) = tokio::join!(site.world.session("web"), taken);
    session.close(Close::new(8, "bye"));
    let closed = soon(upstream.closed()).await;
    assert_eq!(closed, Closed::Peer(Close::new(8, "bye")));
}

#[tokio::test]
async fn a_drain_goes_either_way_and_so_does_the_upstreams_goaway() {
    let site = site("");
    let take = || async { site.requested().await.accept(Response::ok()).await.unwrap() };
    let (session, upstream) = tokio::join!(site.world.session("web"), take());
    let (other, _kept) = tokio::join!(site.world.session("web"), take());
    upstream.drain();
    soon(session.draining()).await;
    session.drain();
    soon(upstream.draining()).await;
    site.server.drain();
    soon(other.draining()).await;
}

#[tokio::test]
async fn bytes_go_both_ways() {
    let site = site("");
    let taken = async { site.requested().await.accept(Response::ok()).await.unwrap() };
    let (session, upstream) = tokio::join!(site.world.session("web"), taken);
    let (mut send, mut recv) = session.open_bi().await.unwrap();
    write(&mut send, b"question").await;
    send.finish().unwrap();
    let (mut back, mut from) = soon(upstream.accept_bi()).await.unwrap();
    assert_eq!(read_to_end(&mut from).await.unwrap(), b"question");
    write(&mut back, b"answer").await;
    back.finish().unwrap();
    assert_eq!(read_to_end(&mut recv).await.unwrap(), b"answer");
}

#[tokio::test]
async fn an_upstream_that_vanishes_closes_the_session() {
    let site = site("");
    let taken = async { site.requested().await.accept(Response::ok()).await.unwrap() };
    let (session, _upstream) = tokio::join!(site.world.session("web"), taken);
    soon(site.server.close()).await;
    let Closed::Peer(close) = soon(session.closed()).await else {
        panic!("not closed by the relay");
    };
    assert_eq!(close.code, close_code::UPSTREAM_LOST);
}

#[tokio::test]
async fn an_upstream_that_accepts_and_says_nothing_is_504() {
    let site = site("");
    let (status, _kept) = tokio::join!(site.world.refusal("web"), site.requested());
    assert_eq!(status, 504);
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_504() {
    let silent = std::net::UdpSocket::bind(loopback()).unwrap();
    let mut upstream = RawUpstream::new(format!("https://{}", silent.local_addr().unwrap()));
    upstream.certificate_hashes = vec!["00".repeat(32)];
    upstream.connect_timeout = Duration::from_millis(300);
    let world = World::with(&[("web", upstream)]);
    assert_eq!(world.refusal("web").await, 504);
}

#[tokio::test]
async fn an_upstream_with_a_certificate_of_somebody_else_is_502() {
    let site = site("");
    let mut upstream = RawUpstream::new(format!("https://{}", site.server.local_addr().unwrap()));
    upstream.certificate_hashes = vec!["00".repeat(32)];
    let world = World::with(&[("web", upstream)]);
    assert_eq!(world.refusal("web").await, 502);
}
