//! What a relay's thread makes of members that claim without end.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{net::UdpSocket, time::timeout};
use tokio_util::sync::CancellationToken;
use wavry_proto::{
    id::{Epoch, NodeId},
    overlay::{
        Authenticator,
        packet::{Claim, Label, Next, Ruling, Verdict},
        transit::Limits,
    },
    token::{Lease, Validity},
};
use wavry_transport::{mesh, transit::Viewer};

use crate::{
    nodes::{Cluster, Key, id},
    transit::{DEADLINE, Relay},
};

/// A member that claims a flow to `b`, from an address of its own.
struct Claimant {
    socket: UdpSocket,
    authenticator: Arc<dyn Authenticator>,
    claim: Claim,
    relay: SocketAddr,
}

impl Claimant {
    async fn new(
        node: &NodeId,
        authenticator: Arc<dyn Authenticator>,
        flow: u64,
        relay: SocketAddr,
        exit: SocketAddr,
    ) -> Self {
        let flow = Label::from_random(flow);
        let lease = Lease {
            sub: node.clone(),
            peer: id("b"),
            hops: vec![id("t1")],
            flow,
            bps: 8_000_000,
            pps: 1_000,
            epoch: Epoch(1),
            validity: Validity {
                iat: 0,
                nbf: 0,
                exp: 3600,
            },
        };
        Self {
            socket: UdpSocket::bind("127.0.0.1:0").await.unwrap(),
            authenticator,
            claim: Claim {
                flow,
                nonce: 0,
                cookie: 0,
                from: node.clone(),
                to: id("t1"),
                peer: id("b"),
                hops: vec![id("t1")],
                next: Next::At(exit),
                lease: serde_json::to_vec(&lease).unwrap(),
            },
            relay,
        }
    }

    /// Claims, and waits for no answer.
    async fn send(&mut self) {
        self.claim.nonce += 1;
        let mut packet = Vec::new();
        let (authenticator, to) = (&self.authenticator, &self.claim.to);
        self.claim.write(&mut packet, |message, tags| {
            authenticator.tags(to, message, tags);
        });
        self.socket.send_to(&packet, self.relay).await.unwrap();
    }

    async fn answer(&self) -> Ruling {
        let mut packet = [0; 2_048];
        let len = self.socket.recv(&mut packet).await.unwrap();
        Verdict::read(&packet[..len]).unwrap().said.ruling
    }

    /// Claims, and is answered.
    async fn ask(&mut self) -> Ruling {
        self.send().await;
        timeout(DEADLINE, self.answer()).await.expect("an answer")
    }

    /// Has its flow.
    async fn open(&mut self) {
        let Ruling::Prove { cookie } = self.ask().await else {
            panic!("it is asked for proof");
        };
        self.claim.cookie = cookie;
        assert!(matches!(self.ask().await, Ruling::Granted { .. }));
        self.claim.cookie = 0;
    }

    /// Answers that wait.
    fn answers(&self) -> u64 {
        let mut packet = [0; 2_048];
        let mut count = 0;
        while self.socket.try_recv(&mut packet).is_ok() {
            count += 1;
        }
        count
    }
}

/// Both claim without end, until `stop`. None of it is lost on its way: what the relay has not looked at or counted is
/// never more than its socket holds. Gives how many claims were counted as too many in `dropped`.
async fn flood(
    mut claimants: [Claimant; 2],
    viewer: Viewer,
    dropped: &AtomicU64,
    stop: CancellationToken,
) {
    const AT_ONCE: u64 = 64;
    let (mut sent, mut answered) = (0, 0);
    while !stop.is_cancelled() {
        for number in 0..AT_ONCE {
            claimants[number as usize % 2].send().await;
        }
        sent += AT_ONCE;
        let settled = async {
            while answered + dropped.load(Ordering::SeqCst) < sent {
                answered += claimants.iter().map(Claimant::answers).sum::<u64>();
                let view = viewer.look(0).await.unwrap();
                let count = view.dropped.get("too_many_claims").copied();
                dropped.store(count.unwrap_or(0), Ordering::SeqCst);
            }
        };
        timeout(DEADLINE, settled).await.expect("each is counted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_claims_without_end_takes_no_other_members_share() {
    let cluster = Cluster::new();
    let exit = cluster.node("b");
    let relay = Relay::start(&cluster, "t1", Limits::default());
    let member = |name: &str| {
        let key = Arc::new(Key::generate());
        cluster.list(name, key.public, "127.0.0.1:9".parse().unwrap());
        let config = cluster.config(name, &key, mesh::Limits::default());
        (config.node, config.authenticator)
    };
    let (floods, quiet) = (member("floods"), member("quiet"));
    let claimant = |(node, authenticator): &(NodeId, Arc<dyn Authenticator>), flow| {
        let (node, authenticator) = (node.clone(), authenticator.clone());
        let (at, exit) = (relay.address, exit.local_addr());
        async move { Claimant::new(&node, authenticator, flow, at, exit).await }
    };
    // Each has a flow, and asks for another from elsewhere, where nothing of it is known.
    let mut flooding = [claimant(&floods, 1).await, claimant(&floods, 2).await];
    let mut asking = [claimant(&quiet, 3).await, claimant(&quiet, 4).await];
    flooding[0].open().await;
    asking[0].open().await;

    let (dropped, stop) = (AtomicU64::new(0), CancellationToken::new());
    let asked = async {
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        let mut asked = 0;
        // For some seconds, each of which begins a new count of what is looked at.
        while asked < 400 || dropped.load(Ordering::SeqCst) < 20_000 {
            tick.tick().await;
            let [known, new] = &mut asking;
            assert!(matches!(known.ask().await, Ruling::Granted { .. }));
            assert!(matches!(new.ask().await, Ruling::Prove { .. }));
            asked += 1;
        }
        stop.cancel();
        asked
    };
    let flooded = flood(flooding, relay.viewer.clone(), &dropped, stop.clone());
    let (asked, ()) = tokio::join!(asked, flooded);
    let dropped = dropped.load(Ordering::SeqCst);
    println!("{asked} times both were answered, while {dropped} claims were too many");
}
