use std::{collections::BTreeMap, net::UdpSocket, time::Instant};

use super::*;

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    // Long enough for anything that comes at all.
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    socket
}

/// Two sockets, each a host.
fn two(network: &Shaper) -> [(UdpSocket, Host); 2] {
    [(); 2].map(|()| {
        let (socket, host) = (socket(), network.host().unwrap());
        network.attach(host, socket.local_addr().unwrap());
        (socket, host)
    })
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2_000];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..len].to_vec(), from)
}

#[test]
fn what_is_sent_to_a_host_comes_from_the_senders_address_and_after_the_delay() {
    let network = Shaper::start(1).unwrap();
    let [(here, at), (there, to)] = two(&network);
    network.link(at, to, Link::delayed(Duration::from_millis(30)));
    let sent = Instant::now();
    here.send_to(b"question", to.address()).unwrap();
    let (question, from) = receive(&there);
    assert!(sent.elapsed() >= Duration::from_millis(30));
    assert_eq!((&question[..], from), (&b"question"[..], at.address()));
    there.send_to(b"answer", from).unwrap();
    assert_eq!(receive(&here), (b"answer".to_vec(), to.address()));
    let tally = network.tally(at, to);
    assert_eq!((tally.packets, tally.bytes, tally.lost()), (1, 8, 0));
}

#[test]
fn what_is_dropped_is_counted_by_reason_and_the_rest_comes() {
    let network = Shaper::start(1).unwrap();
    let [(here, at), (there, to)] = two(&network);
    let steps = [
        (Link::blackhole(), 100, Some(Dropped::Blackhole)),
        (
            Link {
                mtu: Some(500),
                ..Link::default()
            },
            600,
            Some(Dropped::TooLarge),
        ),
        (
            Link {
                loss: Loss::Single(1.0),
                ..Link::default()
            },
            100,
            Some(Dropped::Lost),
        ),
        (Link::default(), 100, None),
    ];
    let mut expected = BTreeMap::new();
    for (link, len, reason) in steps {
        network.link(at, to, link);
        here.send_to(&vec![7; len], to.address()).unwrap();
        let Some(reason) = reason else { break };
        *expected.entry(reason).or_insert(0) += 1;
        // Until it has been looked at.
        while network.tally(at, to).dropped != expected {
            std::thread::yield_now();
        }
    }
    assert_eq!(receive(&there).0, [7; 100]);
    assert_eq!(network.tally(at, to).dropped, expected);
    // Who is no host is not heard.
    let stranger = socket();
    stranger.send_to(b"stranger", to.address()).unwrap();
    while network.strangers().dropped.get(&Dropped::Stranger) != Some(&1) {
        std::thread::yield_now();
    }
}

#[test]
fn a_host_behind_a_translator_is_seen_at_another_address_once_it_rebinds() {
    let network = Shaper::start(1).unwrap();
    let (here, at) = (socket(), network.host().unwrap());
    let (there, behind) = (socket(), network.host_behind(Nat::usual()).unwrap());
    network.attach(at, here.local_addr().unwrap());
    network.attach(behind, there.local_addr().unwrap());
    let mut seen = Vec::new();
    for _ in 0..2 {
        there.send_to(b"hello", at.address()).unwrap();
        let (_, from) = receive(&here);
        here.send_to(b"you are there", from).unwrap();
        assert_eq!(receive(&there).1, at.address());
        seen.push(from);
        network.change(Change::Rebind(behind));
    }
    assert_eq!(seen[0], behind.address());
    assert_ne!(seen[0], seen[1]);
    here.send_to(b"are you?", seen[0]).unwrap();
    while network.tally(at, behind).dropped.get(&Dropped::NoMapping) != Some(&1) {
        std::thread::yield_now();
    }
}

#[test]
fn what_is_scheduled_happens_in_its_turn_and_not_before() {
    let network = Shaper::start(1).unwrap();
    let [(here, at), (there, to)] = two(&network);
    let after = |millis, link| (Duration::from_millis(millis), Change::Link(at, to, link));
    network.link(at, to, Link::blackhole());
    network.schedule([after(60, Link::default())]);
    let begun = Instant::now();
    there
        .set_read_timeout(Some(Duration::from_millis(1)))
        .unwrap();
    while there.recv(&mut [0; 8]).is_err() {
        here.send_to(b"now?", to.address()).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    assert!(begun.elapsed() >= Duration::from_millis(60));
}

#[test]
fn batches_come_whole_and_in_order() {
    let network = Shaper::start(1).unwrap();
    let [(here, at), (there, to)] = two(&network);
    network.link(at, to, Link::delayed(Duration::from_millis(2)));
    // Of several lengths, and so in several batches; fewer than a socket's buffer holds.
    let payload = |number: u32| number.to_be_bytes().repeat(1 + number as usize / 20 % 4);
    for numbers in (0..400).collect::<Vec<u32>>().chunks(50) {
        for number in numbers {
            here.send_to(&payload(*number), to.address()).unwrap();
        }
        for number in numbers {
            assert_eq!(receive(&there).0, payload(*number), "{number}");
        }
    }
}

#[test]
fn lateness_is_told_by_percentiles() {
    let mut lateness = Lateness::default();
    for _ in 0..99 {
        lateness.count(Duration::from_micros(3));
    }
    lateness.count(Duration::from_millis(5));
    assert_eq!(lateness.percentile(50), Duration::from_micros(4));
    assert_eq!(lateness.percentile(99), Duration::from_micros(4));
    assert_eq!(lateness.percentile(100), Duration::from_micros(8_192));
}
