//! Sessions outlive the identities that their connections were made by, and nothing else does.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use wavry_proto::id::PublicKey;
use wavry_transport::{
    mesh::{Endpoint, Session},
    session::{Close, Closed, SendStream as _, Session as _},
};

use crate::{
    nodes::{Cluster, Key, Shown, id, one_connection, request, session},
    sessions::read_all,
};

const DEADLINE: Duration = Duration::from_secs(10);

/// Carries a question from one end of a session to the other, and the answer back.
async fn carries((here, there): &(Session, Session)) {
    let (mut send, mut recv) = here.open_bi().await.unwrap();
    send.write(Bytes::from_static(b"question")).await.unwrap();
    send.finish().unwrap();
    let (mut back, mut asked) = there.accept_bi().await.unwrap();
    assert_eq!(read_all(&mut asked).await, b"question");
    back.write(Bytes::from_static(b"answer")).await.unwrap();
    back.finish().unwrap();
    assert_eq!(read_all(&mut recv).await, b"answer");
}

/// Rotates the identity of node `name`: lists both, shows the new one, lists it alone. Gives the new key.
/// After each step a session is opened from `a` to `b`.
async fn rotate(
    cluster: &Cluster,
    (name, shown): (&str, &Shown),
    (a, b): (&Endpoint, &Endpoint),
    live: &mut Vec<(Session, Session)>,
) -> PublicKey {
    let next = Key::generate();
    let (old, new) = (shown.public(), next.public);
    cluster.list_keys(name, &[old, new]);
    live.push(session(a, "b", b).await);
    shown.show(next);
    live.push(session(a, "b", b).await);
    cluster.list_keys(name, &[new]);
    live.push(session(a, "b", b).await);
    new
}

#[tokio::test]
async fn sessions_outlive_the_identity_of_the_node_that_dialled() {
    let cluster = Cluster::new();
    let (a, shown) = cluster.rotating("a", one_connection());
    let b = cluster.node_with("b", one_connection());
    let mut live = vec![session(&a, "b", &b).await];
    for _ in 0..3 {
        rotate(&cluster, ("a", &shown), (&a, &b), &mut live).await;
    }
    for session in &live {
        carries(session).await;
    }
    // What a revoked node opened is cut, by whichever identity.
    cluster.unlist("a");
    for (here, there) in &live {
        let closed = async { (here.closed().await, there.closed().await) };
        let closed = timeout(DEADLINE, closed).await.expect("it is cut");
        assert!(matches!(closed, (Closed::Lost(_), Closed::Lost(_))));
    }
}

#[tokio::test]
async fn sessions_outlive_the_identity_of_the_node_that_was_dialled() {
    let cluster = Cluster::new();
    let a = cluster.node_with("a", one_connection());
    let (b, shown) = cluster.rotating("b", one_connection());
    let mut live = vec![session(&a, "b", &b).await];
    for _ in 0..3 {
        rotate(&cluster, ("b", &shown), (&a, &b), &mut live).await;
    }
    for session in &live {
        carries(session).await;
    }
    cluster.unlist("b");
    for (here, _) in &live {
        let closed = timeout(DEADLINE, here.closed()).await.expect("it is cut");
        assert!(matches!(closed, Closed::Lost(_)));
    }
}

#[tokio::test]
async fn an_identity_that_was_rotated_out_opens_nothing_more_and_keeps_what_it_has() {
    let cluster = Cluster::new();
    let (a, _shown) = cluster.rotating("a", one_connection());
    let b = cluster.node_with("b", one_connection());
    let live = session(&a, "b", &b).await;
    // Somebody else holds the identity now, and this one goes on with the connection it has.
    cluster.list_keys("a", &[Key::generate().public]);
    assert!(a.open(&id("b"), request("/")).await.is_err());
    carries(&live).await;
    live.0.close(Close::new(7, "done"));
    let closed = timeout(DEADLINE, live.1.closed()).await.expect("it ends");
    assert!(
        matches!(&closed, Closed::Peer(close) if close.code == 7),
        "the last session's close is not lost with its connection: {closed}"
    );
    // And with no connection at all once that has no session left.
    let refused = async { while a.open(&id("b"), request("/")).await.is_ok() {} };
    timeout(DEADLINE, refused).await.expect("it is refused");
}

#[tokio::test]
async fn a_node_that_registers_anew_keeps_no_connection_by_another_key() {
    let cluster = Cluster::new();
    let (a, _shown) = cluster.rotating("a", one_connection());
    let b = cluster.node_with("b", one_connection());
    let (_here, there) = session(&a, "b", &b).await;
    cluster.change(|roster| {
        roster.nodes[0].keys = vec![Key::generate().public];
        roster.nodes[0].registration += 1;
    });
    let closed = timeout(DEADLINE, there.closed()).await.expect("it is cut");
    assert!(matches!(closed, Closed::Lost(_)));
}
