//! Sessions through transit relays: when there is no other way, when the way they took dies, and what the
//! relays see of them.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use wavry_proto::{
    overlay::{
        TAG_LEN,
        packet::{Claim, Header, Kind, Label, Next, Probe},
        paths::{Route, Standing, View},
        transit::Limits,
    },
    session::Response,
};
use wavry_transport::{
    mesh::{self, Endpoint, Session},
    session::{RecvStream, SendStream, Session as _},
    transit::{self, Transit},
};

use crate::{
    nodes::{Cluster, Credulous, Key, id, request, session},
    sessions::read_all,
    wire::Wire,
};

/// Long enough for anything that happens at all.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A transit relay, until it is dropped.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    pub(crate) viewer: transit::Viewer,
    wire: Arc<Wire>,
    draining: CancellationToken,
    running: tokio::task::JoinHandle<()>,
    _stop: DropGuard,
}

impl Relay {
    pub(crate) fn start(cluster: &Cluster, name: &str, limits: Limits) -> Self {
        Self::on_a_link(cluster, name, limits, None)
    }

    /// One whose link carries so many bytes in a second.
    pub(crate) fn on_a_link(
        cluster: &Cluster,
        name: &str,
        limits: Limits,
        link: Option<u64>,
    ) -> Self {
        let key = Arc::new(Key::generate());
        let config = cluster.config(name, &key, mesh::Limits::default());
        let wire = Wire::that_captures();
        let transit = transit::Config {
            node: config.node,
            roster: config.roster,
            authenticator: config.authenticator,
            verifier: Arc::new(Credulous),
            // One answers, so that a claim needs a lease.
            master: watch::channel(true).1,
            limits,
            link,
        };
        let transit = Transit::new(wire.clone(), transit).unwrap();
        let (address, viewer) = (transit.local_addr(), transit.viewer());
        // As an exit it is not there at all: nothing answers at its address for that.
        cluster.list(name, key.public, "127.0.0.1:9".parse().unwrap());
        cluster.change(|roster| {
            let mut nodes = roster.nodes.iter_mut();
            let node = nodes.find(|node| node.id.as_str() == name).unwrap();
            node.transit = vec![address];
        });
        let (draining, stopped) = (CancellationToken::new(), CancellationToken::new());
        let running = tokio::spawn(transit.run(draining.clone(), stopped.clone()));
        Self {
            address,
            viewer,
            wire,
            draining,
            running,
            _stop: stopped.drop_guard(),
        }
    }

    /// Ends at once, without a word.
    pub(crate) async fn kill(self) -> SocketAddr {
        let Self {
            address,
            running,
            wire,
            ..
        } = self;
        running.abort();
        let _ = running.await;
        drop(wire);
        address
    }
}

/// Two nodes whose packets to each other can be cut.
pub(crate) struct Ends {
    pub(crate) cluster: Cluster,
    pub(crate) a: Endpoint,
    pub(crate) b: Endpoint,
    wires: [Arc<Wire>; 2],
}

impl Ends {
    pub(crate) fn new() -> Self {
        Self::with(mesh::Limits::default())
    }

    pub(crate) fn with(limits: mesh::Limits) -> Self {
        let cluster = Cluster::new();
        let [(a, at_a), (b, at_b)] = ["a", "b"].map(|name| {
            let key = Arc::new(Key::generate());
            let wire = Wire::new();
            let config = cluster.config(name, &key, limits.clone());
            let endpoint = Endpoint::sharded(wire.sockets(), config).unwrap();
            cluster.list(name, key.public, endpoint.local_addr());
            (endpoint, wire)
        });
        Self {
            cluster,
            a,
            b,
            wires: [at_a, at_b],
        }
    }

    /// Nothing goes from one to the other directly any more.
    pub(crate) fn cut(&self) {
        self.wires[0].cut(self.b.local_addr());
        self.wires[1].cut(self.a.local_addr());
    }

    pub(crate) async fn session(&self) -> (Session, Session) {
        session(&self.a, "b", &self.b).await
    }

    /// The path that `a` sends over.
    fn active(&self) -> Option<View> {
        self.a.paths(&id("b")).into_iter().find(|view| view.active)
    }

    /// Waits until `a` has such paths.
    pub(crate) async fn until(&self, what: &str, is: impl Fn(&[View]) -> bool) {
        let waiting = async {
            while !is(&self.a.paths(&id("b"))) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, waiting).await;
        assert!(waited.is_ok(), "{what}: {:?}", self.a.paths(&id("b")));
    }
}

pub(crate) fn proved_flows(views: &[View]) -> usize {
    let is = |view: &&View| {
        matches!(view.route, Route::Flow { .. }) && view.standing == Standing::Proved
    };
    views.iter().filter(is).count()
}

pub(crate) fn via(route: Route) -> SocketAddr {
    match route {
        Route::Flow { via, .. } => via,
        Route::Direct(address) => address,
    }
}

pub(crate) async fn question_and_answer(here: &Session, there: &Session) {
    let asking = async {
        let (mut send, mut recv) = here.open_bi().await.unwrap();
        send.write(Bytes::from_static(b"question")).await.unwrap();
        send.finish().unwrap();
        assert_eq!(read_all(&mut recv).await, b"answer");
    };
    let answering = async {
        let (mut send, mut recv) = there.accept_bi().await.unwrap();
        assert_eq!(read_all(&mut recv).await, b"question");
        send.write(Bytes::from_static(b"answer")).await.unwrap();
        send.finish().unwrap();
    };
    let both = async { tokio::join!(asking, answering) };
    tokio::time::timeout(DEADLINE, both).await.unwrap();
}

/// Sends numbers over a stream, one each millisecond, until told to stop; how many came, all in order, and
/// the longest pause between two.
pub(crate) async fn numbers(
    here: &Session,
    there: &Session,
    stop: CancellationToken,
) -> (u64, Duration) {
    let sending = async {
        let mut send = here.open_uni().await.unwrap();
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        let mut number = 0u64;
        while !stop.is_cancelled() {
            tick.tick().await;
            // More than one packet each 13 numbers, so that batches are sent, too.
            let bytes = Bytes::copy_from_slice(&[number.to_be_bytes(); 12].concat());
            send.write(bytes).await.unwrap();
            number += 1;
        }
        send.finish().unwrap();
        number
    };
    let receiving = async {
        let mut recv = there.accept_uni().await.unwrap();
        let (mut left, mut next) = (Vec::new(), 0u64);
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        while let Some(chunk) = recv.read().await.unwrap() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
            left.extend_from_slice(&chunk);
            let whole = left.len() / 96 * 96;
            for number in left[..whole].chunks(96) {
                assert_eq!(number, [next.to_be_bytes(); 12].concat());
                next += 1;
            }
            left.drain(..whole);
        }
        (next, longest)
    };
    let (sent, (received, longest)) = tokio::join!(sending, receiving);
    assert_eq!(sent, received);
    (received, longest)
}

#[tokio::test]
async fn nodes_that_cannot_reach_each_other_do_so_through_a_transit_relay() {
    let ends = Ends::new();
    let relay = Relay::start(&ends.cluster, "t1", Limits::default());
    ends.cut();
    let (here, there) = ends.session().await;
    question_and_answer(&here, &there).await;
    question_and_answer(&there, &here).await;
    assert_eq!(via(ends.active().unwrap().route), relay.address);
}

#[tokio::test]
async fn who_is_dialled_answers_although_its_own_path_is_proved_later() {
    let ends = Ends::new();
    // The answer to the first probe of b, which has to ask again: the handshake of a comes before that.
    ends.wires[0].lose_next(Kind::Pong);
    // What b says meanwhile is not lost: then QUIC would ask again after a second.
    let soon = Duration::from_millis(700);
    let answering = async {
        let asked = tokio::time::timeout(DEADLINE, ends.b.accept()).await;
        let requested = asked.unwrap().unwrap();
        requested.accept(Response::ok()).await.unwrap()
    };
    let to = id("b");
    let (opened, _there) = tokio::join!(ends.a.open_soon(&to, request("/"), soon), answering);
    assert!(opened.is_ok(), "{:?}", opened.err());
    assert!(!ends.wires[0].is_to_lose());
}

#[tokio::test]
async fn two_transit_relays_one_behind_the_other_carry_a_session() {
    let ends = Ends::new();
    let one = Relay::start(&ends.cluster, "t1", Limits::default());
    let two = Relay::start(&ends.cluster, "t2", Limits::default());
    ends.cut();
    // Neither is enough: the one does not reach b, the other is not reached by a.
    let ways =
        wavry_proto::overlay::ways::ways(&ends.cluster.roster(), &id("a"), &id("b"), |_| true);
    let (first, second) = match ways[2].hops[0].address == one.address {
        true => (&one, &two),
        false => (&two, &one),
    };
    first.wire.cut(ends.b.local_addr());
    ends.wires[0].cut(second.address);
    let (here, there) = ends.session().await;
    question_and_answer(&here, &there).await;
    question_and_answer(&there, &here).await;
    assert_eq!(via(ends.active().unwrap().route), first.address);
    // Neither answered by itself: packets of b came to the second one.
    let seen = second.wire.seen().len();
    assert!(seen > 2 * 1288, "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_byte_for_byte_when_its_path_dies_and_again_when_the_next_one_does() {
    let ends = Ends::new();
    let one = Relay::start(&ends.cluster, "t1", Limits::default());
    let two = Relay::start(&ends.cluster, "t2", Limits::default());
    let (here, there) = ends.session().await;
    ends.until("two relays stand by", |views| proved_flows(views) >= 2)
        .await;
    assert!(matches!(ends.active().unwrap().route, Route::Direct(_)));
    let stop = CancellationToken::new();
    let dying = async {
        let mut used = Vec::new();
        tokio::time::sleep(Duration::from_millis(300)).await;
        ends.cut();
        let died = Instant::now();
        ends.until("a relay is taken", |views| {
            views
                .iter()
                .any(|view| view.active && matches!(view.route, Route::Flow { .. }))
        })
        .await;
        used.push(died.elapsed());
        let taken = via(ends.active().unwrap().route);
        let (taken, left) = match taken == one.address {
            true => (one, two),
            false => (two, one),
        };
        tokio::time::sleep(Duration::from_millis(300)).await;
        let died = Instant::now();
        let gone = taken.kill().await;
        ends.until("the other relay is taken", |views| {
            views
                .iter()
                .any(|view| view.active && via(view.route) == left.address)
        })
        .await;
        used.push(died.elapsed());
        assert_ne!(gone, left.address);
        tokio::time::sleep(Duration::from_millis(500)).await;
        stop.cancel();
        (used, left)
    };
    let ((used, _left), (count, longest)) =
        tokio::join!(dying, numbers(&here, &there, stop.clone()));
    println!("{count} numbers, the longest pause {longest:?}; paths left after {used:?}");
    assert!(count > 500);
    question_and_answer(&here, &there).await;
}

#[tokio::test]
async fn a_relay_that_leaves_is_left_before_it_goes() {
    let ends = Ends::new();
    let one = Relay::start(&ends.cluster, "t1", Limits::default());
    ends.cut();
    let (here, there) = ends.session().await;
    let two = Relay::start(&ends.cluster, "t2", Limits::default());
    ends.until("the other stands by", |views| proved_flows(views) >= 2)
        .await;
    let (leaving, name, staying) = match via(ends.active().unwrap().route) == one.address {
        true => (one, "t1", two),
        false => (two, "t2", one),
    };
    // As the master tells of a relay that drains.
    ends.cluster.change(|roster| {
        let mut nodes = roster.nodes.iter_mut();
        let node = nodes.find(|node| node.id.as_str() == name).unwrap();
        node.transit.clear();
    });
    leaving.draining.cancel();
    ends.until("it is left", |views| {
        views.iter().all(|view| via(view.route) != leaving.address)
    })
    .await;
    tokio::time::timeout(DEADLINE, leaving.running)
        .await
        .expect("it ends by itself")
        .unwrap();
    question_and_answer(&here, &there).await;
    assert_eq!(via(ends.active().unwrap().route), staying.address);
}

#[tokio::test]
async fn a_flow_that_was_left_is_no_path_again_and_the_peer_leaves_it_too() {
    let ends = Ends::new();
    let relays = ["t1", "t2"].map(|name| Relay::start(&ends.cluster, name, Limits::default()));
    ends.cut();
    let (here, there) = ends.session().await;
    let flows = |of: &Endpoint, peer| -> Vec<(Label, SocketAddr)> {
        let views = of.paths(&id(peer)).into_iter();
        let flow = |view: View| match view.route {
            Route::Flow { id, via } if view.standing == Standing::Proved => Some((id, via)),
            _ => None,
        };
        views.filter_map(flow).collect()
    };
    let until = async |what: &str, is: &dyn Fn() -> bool| {
        let waiting = async {
            while !is() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, waiting).await;
        let both = || (ends.a.paths(&id("b")), ends.b.paths(&id("a")));
        assert!(waited.is_ok(), "{what}: {:?}", both());
    };
    until("all ways stand by at both ends", &|| {
        flows(&ends.a, "b").len() == 3 && flows(&ends.b, "a").len() == 3
    })
    .await;
    // The one through both, which begins at another relay from each end.
    let (of_a, of_b) = (flows(&ends.a, "b"), flows(&ends.b, "a"));
    let is_longer = |(id, via): &&(Label, SocketAddr)| {
        let mut same = of_b.iter().filter(|(other, _)| other == id);
        same.any(|(_, other)| other != via)
    };
    let (longer, first) = *of_a.iter().find(is_longer).unwrap();

    let list = |transit: Vec<SocketAddr>| {
        let relay = relays.iter().position(|relay| relay.address == first);
        ends.cluster.change(|roster| {
            let name = ["t1", "t2"][relay.unwrap()];
            let mut nodes = roster.nodes.iter_mut();
            let node = nodes.find(|node| node.id.as_str() == name).unwrap();
            node.transit = transit;
        });
    };
    list(Vec::new());
    ends.until("its relay is left", |views| {
        views.iter().all(|view| via(view.route) != first)
    })
    .await;
    assert!(
        flows(&ends.b, "a").iter().any(|(id, _)| *id == longer),
        "its peer knows nothing of that: the relay that it sends to is listed"
    );
    list(vec![first]);
    until("its peer has left it, too", &|| {
        let left = ends.a.paths(&id("b"));
        let has = |view: &View| matches!(view.route, Route::Flow { id, .. } if id == longer);
        assert!(!left.iter().any(has), "it is a path again: {left:?}");
        !ends.b.paths(&id("a")).iter().any(has)
    })
    .await;
    question_and_answer(&here, &there).await;
}

#[tokio::test]
async fn a_direct_path_that_comes_back_is_proved_beside_the_relay_and_the_session_stays() {
    let ends = Ends::new();
    let _relay = Relay::start(&ends.cluster, "t1", Limits::default());
    ends.cut();
    let (here, there) = ends.session().await;
    for wire in &ends.wires {
        wire.mend();
    }
    ends.until("the direct path is proved", |views| {
        let is = |view: &View| {
            matches!(view.route, Route::Direct(_)) && view.standing == Standing::Proved
        };
        views.iter().any(is)
    })
    .await;
    question_and_answer(&here, &there).await;
}

#[tokio::test]
async fn a_relay_sees_nothing_of_what_it_carries() {
    const CANARY: &[u8] = b"canary-8d1f6c-in-plain-text";
    let ends = Ends::new();
    let relay = Relay::start(&ends.cluster, "t1", Limits::default());
    ends.cut();
    let (here, there) = ends.session().await;
    let mut send = here.open_uni().await.unwrap();
    for _ in 0..200 {
        send.write(Bytes::from_static(CANARY)).await.unwrap();
    }
    send.finish().unwrap();
    let mut recv = there.accept_uni().await.unwrap();
    assert_eq!(read_all(&mut recv).await, CANARY.repeat(200));
    let seen = relay.wire.seen();
    assert!(seen.len() > 200 * CANARY.len(), "{}", seen.len());
    assert!(!seen.windows(8).any(|bytes| bytes == &CANARY[..8]));
    // Its own ids it does see: the capture is one.
    assert!(seen.windows(2).any(|bytes| bytes == b"t1"));
}

#[tokio::test]
async fn a_relay_forwards_nothing_for_strangers_and_to_nobody_else() {
    let ends = Ends::new();
    let relay = Relay::start(&ends.cluster, "t1", Limits::default());
    ends.cut();
    let (here, there) = ends.session().await;
    let Route::Flow { id: flow, .. } = ends.active().unwrap().route else {
        panic!("it goes through the relay");
    };
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.set_nonblocking(true).unwrap();
    for kind in [
        Kind::Flow,
        Kind::Ping,
        Kind::Pong,
        Kind::Claim,
        Kind::Verdict,
        Kind::Direct,
    ] {
        for label in [flow, Label::NONE, Label::from_random(77)] {
            let header = Header { kind, label }.to_wire();
            for len in [0, 1, 40, 1280] {
                let packet = [&header[..], &vec![0x41; len]].concat();
                stranger.send_to(&packet, relay.address).unwrap();
            }
        }
    }
    // What came before them came through, so they were looked at.
    question_and_answer(&here, &there).await;
    let seen = relay.wire.seen();
    assert!(!seen.windows(32).any(|bytes| bytes == [0x41; 32]));
    assert_eq!(
        stranger.recv(&mut [0; 2000]).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
}

#[tokio::test]
async fn whoever_claims_or_probes_as_a_member_without_its_key_is_not_answered() {
    let ends = Ends::new();
    let relay = Relay::start(&ends.cluster, "t1", Limits::default());
    let (here, there) = ends.session().await;
    let forger = UdpSocket::bind("127.0.0.1:0").unwrap();
    forger.set_nonblocking(true).unwrap();
    let claim = Claim {
        flow: Label::from_random(7),
        nonce: 7,
        cookie: 0,
        from: id("a"),
        to: id("t1"),
        peer: id("b"),
        hops: vec![id("t1")],
        next: Next::At(ends.b.local_addr()),
        lease: vec![7; 300],
    };
    let probe = Probe {
        kind: Kind::Ping,
        flow: Label::NONE,
        nonce: 7,
        label: Label::from_random(7),
        from: id("a"),
        to: id("b"),
    };
    let mut packet = Vec::new();
    for forged in [&[][..], &[[0; TAG_LEN]], &[[7; TAG_LEN]; 2]] {
        claim.write(&mut packet, |_, tags| tags.extend(forged));
        forger.send_to(&packet, relay.address).unwrap();
        probe.write(&mut packet, 1288, |_, tags| tags.extend(forged));
        forger.send_to(&packet, ends.b.local_addr()).unwrap();
    }
    // What came before these came through, so they were looked at.
    question_and_answer(&here, &there).await;
    ends.until("the relay answers who claims as itself", |views| {
        proved_flows(views) >= 1
    })
    .await;
    let answer = forger.recv(&mut [0; 2000]).unwrap_err().kind();
    assert_eq!(answer, io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_node_that_is_revoked_is_forwarded_for_no_more() {
    let ends = Ends::new();
    let relay = Relay::start(&ends.cluster, "t1", Limits::default());
    ends.cut();
    let (here, _there) = ends.session().await;
    ends.cluster.unlist("b");
    here.closed().await;
    assert!(ends.a.open(&id("b"), request("/")).await.is_err());
    let before = relay.wire.seen().len();
    let refused = ends.a.open(&id("b"), request("/")).await;
    assert!(refused.is_err());
    let after = relay.wire.seen().len();
    assert_eq!(before, after);
}

#[tokio::test]
async fn a_flow_that_sends_too_much_is_held_to_its_rate_and_the_session_lives() {
    let ends = Ends::new();
    // 400 packets a second are some 4 Mbit/s.
    let limits = Limits {
        packets_per_second: 400,
        ..Limits::default()
    };
    let _relay = Relay::start(&ends.cluster, "t1", limits);
    ends.cut();
    let (here, there) = ends.session().await;
    let started = Instant::now();
    let sending = async {
        let mut send = here.open_uni().await.unwrap();
        send.write(Bytes::from(vec![7; 1_000_000])).await.unwrap();
        send.finish().unwrap();
    };
    let receiving = async {
        let mut recv = there.accept_uni().await.unwrap();
        read_all(&mut recv).await.len()
    };
    let ((), received) = tokio::join!(sending, receiving);
    assert_eq!(received, 1_000_000);
    // 820 packets of data alone, and acknowledgements: two seconds at least.
    assert!(
        started.elapsed() >= Duration::from_millis(1_900),
        "{:?}",
        started.elapsed()
    );
}
