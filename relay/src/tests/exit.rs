use wavry_proto::session::{Close, close_code};
use wavry_transport::session::Closed;

use super::*;

fn echo() -> [(&'static str, RawUpstream); 1] {
    [("echo", RawUpstream::new("echo:"))]
}

#[tokio::test]
async fn a_service_without_an_upstream_is_404() {
    let world = World::with(&echo());
    assert_eq!(world.refusal("other").await, 404);
}

#[tokio::test]
async fn a_node_that_is_no_gateway_is_403() {
    let world = World::made(&echo(), Role::Relay, 100);
    assert_eq!(world.refusal("echo").await, 403);
}

#[tokio::test]
async fn one_session_too_many_is_503_until_another_ends() {
    let world = World::made(&echo(), Role::Gateway, 1);
    let only = world.session("echo").await;
    assert_eq!(world.refusal("echo").await, 503);
    only.close(Close::default());
    soon(async { while world.open("echo").await.is_err() {} }).await;
}

#[tokio::test]
async fn a_draining_relay_asks_sessions_to_finish_then_closes_them_and_takes_no_more() {
    let world = World::with(&echo());
    let session = world.session("echo").await;
    world.exit.draining.cancel();
    soon(session.draining()).await;
    assert_eq!(world.refusal("echo").await, 503);
    datagram_round_trip(&session, b"still served").await;

    world.exit.closing.cancel();
    let Closed::Peer(close) = soon(session.closed()).await else {
        panic!("not closed by the relay");
    };
    assert_eq!(close.code, close_code::DRAINED);
    world.sessions.close();
    soon(world.sessions.wait()).await;
}

#[tokio::test]
async fn a_refusal_of_the_relays_own_says_so() {
    let world = World::with(&echo());
    let Err(OpenError::Rejected(response)) = world.open("other").await else {
        panic!("not refused");
    };
    let header = &response.headers[0];
    assert_eq!(header.name, wavry_proto::session::REFUSED_BY_RELAY);
    assert_eq!(header.value, "unknown_service");
}

#[tokio::test]
async fn an_answer_tells_how_full_the_relay_is() {
    let world = World::made(&echo(), Role::Gateway, 4);
    let mut live = Vec::new();
    for load in ["250", "500", "750", "1000"] {
        let (session, response) = world.open("echo").await.unwrap();
        let mut headers = response.headers.iter();
        let told = headers.find(|header| header.name == wavry_proto::placement::LOAD);
        assert_eq!(told.unwrap().value, load);
        live.push(session);
    }
}
