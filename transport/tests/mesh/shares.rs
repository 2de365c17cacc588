//! Flows whose relay has a link that is too narrow for all of them.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use wavry_proto::{
    control::lease::Way,
    overlay::{
        lease::Offer,
        packet::{Claim, Header, Kind, Label, Next, Ruling, Verdict},
        transit::Limits,
    },
};
use wavry_transport::mesh;

use crate::{
    nodes::{Cluster, Key, id},
    transit::Relay,
};

/// Bytes of a packet that is sent here.
const PACKET: usize = 1_288;
/// What the link carries in a second: 800 packets.
const LINK: u64 = 800 * PACKET as u64;

/// A member with a flow to `sink`, without QUIC: it sends what it likes.
struct Member {
    socket: UdpSocket,
    relay: SocketAddr,
    flow: Label,
}

impl Member {
    fn new(cluster: &Cluster, relay: &Relay, name: &str, sink: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let key = Arc::new(Key::generate());
        let config = cluster.config(name, &key, mesh::Limits::default());
        cluster.list(name, key.public, socket.local_addr().unwrap());
        let flow = Label::from_random(name.bytes().map(u64::from).sum());
        let leases = &config.leases.source;
        leases.want(Way {
            flow,
            peer: id("sink"),
            hops: vec![id("t1")],
        });
        let Offer::Lease(lease) = leases.offer(flow) else {
            panic!("there is no lease");
        };
        let mut claim = Claim {
            flow,
            nonce: 1,
            cookie: 0,
            from: id(name),
            to: id("t1"),
            peer: id("sink"),
            hops: vec![id("t1")],
            next: Next::At(sink),
            lease: lease.to_vec(),
        };
        let mut packet = Vec::new();
        let mut answer = [0; 2_000];
        loop {
            claim.write(&mut packet, |message, tags| {
                config.authenticator.tags(&id("t1"), message, tags);
            });
            socket.send_to(&packet, relay.address).unwrap();
            let len = socket.recv(&mut answer).unwrap();
            match Verdict::read(&answer[..len]).unwrap().said.ruling {
                Ruling::Prove { cookie } => claim.cookie = cookie,
                Ruling::Granted { .. } => break,
                Ruling::Refused(refusal) => panic!("{refusal:?}"),
            }
        }
        Self {
            socket,
            relay: relay.address,
            flow: claim.flow,
        }
    }

    /// Sends so many packets in a second, spread evenly, for so long.
    fn send(&self, per_second: u32, lasts: Duration) -> u32 {
        let mut packet = [0; PACKET];
        let (kind, label) = (Kind::Flow, self.flow);
        packet[..8].copy_from_slice(&Header { kind, label }.to_wire());
        let start = Instant::now();
        let mut sent = 0;
        while start.elapsed() < lasts {
            let due = (start.elapsed().as_secs_f64() * f64::from(per_second)) as u32;
            while sent < due {
                self.socket.send_to(&packet, self.relay).unwrap();
                sent += 1;
            }
            thread::sleep(Duration::from_millis(2));
        }
        sent
    }
}

/// How many packets of each flow come to `sink` until nothing comes for a while.
fn receive(sink: &UdpSocket, flows: [Label; 3]) -> [u32; 3] {
    sink.set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let mut packet = [0; 2_000];
    let mut got = [0; 3];
    while let Ok(len) = sink.recv(&mut packet) {
        let (header, _) = Header::read(&packet[..len]).unwrap();
        let flow = flows.iter().position(|flow| *flow == header.label);
        got[flow.unwrap()] += 1;
    }
    got
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_that_sends_little_has_what_it_sends_however_much_others_do() {
    let cluster = Cluster::new();
    let limits = Limits::default();
    let relay = Relay::on_a_link(&cluster, "t1", limits, Some(LINK));
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = sink.local_addr().unwrap();
    cluster.list("sink", Key::generate().public, to);
    let counting = async {
        let members =
            ["greedy", "another", "modest"].map(|name| Member::new(&cluster, &relay, name, to));
        let flows = [0, 1, 2].map(|at: usize| members[at].flow);
        let lasts = Duration::from_secs(3);
        // Five times the link, twice, and a tenth of it.
        let rates = [4_000, 1_600, 80];
        thread::scope(|scope| {
            let receiving = scope.spawn(|| receive(&sink, flows));
            let sending: Vec<_> = members
                .iter()
                .zip(rates)
                .map(|(member, rate)| scope.spawn(move || member.send(rate, lasts)))
                .collect();
            let sent: Vec<_> = sending.into_iter().map(|one| one.join().unwrap()).collect();
            (sent, receiving.join().unwrap())
        })
    };
    // What blocks has a thread of its own: the relay is on this runtime, too.
    let (sent, got) =
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(counting));
    println!("sent {sent:?}, got {got:?}");
    let [greedy, another, modest] = got.map(f64::from);
    assert!(modest >= f64::from(sent[2]) * 0.95, "{sent:?} {got:?}");
    // The two that want more than their share have the same, whatever they send.
    assert!((0.8..1.25).contains(&(greedy / another)), "{got:?}");
    // And all together no more than the link carries, and most of that.
    let all = greedy + another + modest;
    assert!((1_600.0..=2_600.0).contains(&all), "{got:?}");
}
