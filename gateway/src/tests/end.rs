use bytes::Bytes;
use wavry_credentials::token::digest;
use wavry_proto::{
    control::Revocation,
    session::{Close, close_code},
};
use wavry_transport::session::{RecvStream as _, SendStream as _};

use super::{close_code as code_of, *};

#[tokio::test]
async fn a_close_passes_with_its_code_and_reason_either_way() {
    let world = World::new();
    let (client, exit) = world.live(to("/open")).await;
    client.close(Close::new(3, "done"));
    assert_eq!(
        soon(exit.closed()).await,
        Closed::Peer(Close::new(3, "done"))
    );
    let (client, exit) = world.live(to("/open")).await;
    exit.close(Close::new(4, "enough"));
    assert_eq!(
        soon(client.closed()).await,
        Closed::Peer(Close::new(4, "enough"))
    );
}

#[tokio::test]
async fn a_lost_exit_closes_the_session() {
    let world = World::new();
    let (client, _exit) = world.live(to("/open")).await;
    soon(world.exit.close()).await;
    assert_eq!(code_of(&client).await, close_code::RELAY_LOST);
}

#[tokio::test]
async fn a_session_on_which_nothing_moves_is_closed() {
    let world = World::with(|raw| raw.idle_timeout = Duration::from_millis(500));
    let (client, exit) = world.live(to("/open")).await;
    assert_eq!(code_of(&client).await, close_code::IDLE);
    assert_eq!(code_of(&exit).await, close_code::IDLE);
}

#[tokio::test]
async fn a_session_ends_when_its_token_does() {
    let world = World::new();
    let token = world.token("closed", 3);
    let (client, exit) = world.live(to(&format!("/closed?token={token}"))).await;
    assert_eq!(code_of(&client).await, close_code::TOKEN_EXPIRED);
    assert_eq!(code_of(&exit).await, close_code::TOKEN_EXPIRED);
}

#[tokio::test]
async fn a_draining_gateway_asks_both_ends_to_finish_and_closes_at_its_deadline() {
    let mut world = World::new();
    let (client, exit) = world.live(to("/open")).await;
    world.shutdown.cancel();
    soon(client.draining()).await;
    soon(exit.draining()).await;
    assert_eq!(code_of(&client).await, close_code::DRAINED);
    assert_eq!(code_of(&exit).await, close_code::DRAINED);
    soon(&mut world.serving).await.unwrap();
}

#[tokio::test]
async fn a_draining_gateway_is_gone_as_soon_as_its_sessions_are() {
    let mut world = World::with(|raw| raw.drain_timeout = HANG * 2);
    let (client, _exit) = world.live(to("/open")).await;
    world.shutdown.cancel();
    soon(client.draining()).await;
    client.close(Close::default());
    soon(&mut world.serving).await.unwrap();
}

#[tokio::test]
async fn bytes_pass_both_ways_to_their_end() {
    let world = World::new();
    let (client, exit) = world.live(to("/open")).await;
    let (mut send, mut recv) = client.open_bi().await.unwrap();
    send.write(Bytes::from_static(b"question")).await.unwrap();
    send.finish().unwrap();
    let (mut back, mut from) = soon(exit.accept_bi()).await.unwrap();
    assert_eq!(soon(from.read()).await.unwrap().unwrap(), "question");
    assert_eq!(soon(from.read()).await.unwrap(), None);
    back.write(Bytes::from_static(b"answer")).await.unwrap();
    back.finish().unwrap();
    assert_eq!(soon(recv.read()).await.unwrap().unwrap(), "answer");
    assert_eq!(soon(recv.read()).await.unwrap(), None);
}

#[tokio::test]
async fn a_drain_passes_either_way() {
    let world = World::new();
    let (client, exit) = world.live(to("/open")).await;
    exit.drain();
    soon(client.draining()).await;
    client.drain();
    soon(exit.draining()).await;
}

#[tokio::test]
async fn a_client_is_asked_to_finish_before_its_token_expires_and_the_upstream_is_not() {
    let world = World::with(|raw| raw.expiry_notice = Duration::from_secs(3600));
    let token = world.token("closed", 3);
    let (client, exit) = world.live(to(&format!("/closed?token={token}"))).await;
    soon(client.draining()).await;
    tokio::select! {
        closed = soon(exit.closed()) => {
            assert!(matches!(closed, Closed::Peer(close) if close.code == close_code::TOKEN_EXPIRED));
        }
        () = exit.draining() => panic!("the upstream was asked to finish"),
    }
    let world = World::with(|raw| raw.expiry_notice = Duration::ZERO);
    let token = world.token("closed", 3);
    let (client, _exit) = world.live(to(&format!("/closed?token={token}"))).await;
    tokio::select! {
        biased;
        () = client.draining() => panic!("asked to finish without a notice"),
        code = code_of(&client) => assert_eq!(code, close_code::TOKEN_EXPIRED),
    }
}

/// Tokens of `sub` that were issued until an hour from now.
fn revoked(sub: &str, service: Option<&str>) -> Revocation {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    Revocation {
        service: service.map(|name| name.parse().unwrap()),
        subject: digest(sub),
        through: now + 3600,
    }
}

#[tokio::test]
async fn a_session_ends_when_its_subject_is_revoked_and_no_other_does() {
    let world = World::new();
    let (public, _public_exit) = world.live(to("/open")).await;
    let token = world.token("closed", 60);
    let (client, exit) = world.live(to(&format!("/closed?token={token}"))).await;
    for other in [revoked("bob", None), revoked("ana", Some("told"))] {
        world.change_roster(|roster| roster.revoked.push(other));
    }
    let (mut send, _recv) = client.open_bi().await.unwrap();
    send.write(Bytes::from_static(b"still here")).await.unwrap();
    let (_send, mut recv) = soon(exit.accept_bi()).await.unwrap();
    assert_eq!(soon(recv.read()).await.unwrap().unwrap(), "still here");

    world.change_roster(|roster| roster.revoked.push(revoked("ana", Some("closed"))));
    assert_eq!(code_of(&client).await, close_code::TOKEN_REVOKED);
    assert_eq!(code_of(&exit).await, close_code::TOKEN_REVOKED);
    let again = world.refusal(to(&format!("/closed?token={token}"))).await;
    assert_eq!(again.status, 401);
    public.close(Close::new(7, "never noticed"));
}

#[tokio::test]
async fn a_session_ends_when_the_key_that_signed_its_token_does_not_count_any_more() {
    let world = World::new();
    let token = world.token("closed", 60);
    let (client, exit) = world.live(to(&format!("/closed?token={token}"))).await;
    let other = SigningKey::generate().public_paserk();
    world.change_roster(|roster| roster.token_keys = vec![other]);
    assert_eq!(code_of(&client).await, close_code::TOKEN_REVOKED);
    assert_eq!(code_of(&exit).await, close_code::TOKEN_REVOKED);
}

#[tokio::test]
async fn a_gateway_that_knows_of_nothing_recent_takes_no_sessions_and_carries_none() {
    let world = World::new();
    let token = world.token("closed", 60);
    let (client, _exit) = world.live(to(&format!("/closed?token={token}"))).await;
    let known = world.roster.borrow().clone();
    world
        .roster
        .send_replace(Arc::new(Roster::empty(known.cluster.clone())));
    assert_eq!(code_of(&client).await, close_code::RELAY_LOST);
    assert_eq!(world.status(to("/open")).await, 503);

    world.roster.send_replace(known);
    world.live(to("/open")).await;
}
