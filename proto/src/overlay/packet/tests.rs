use proptest::prelude::*;

use super::*;

fn probe() -> Probe {
    Probe {
        kind: Kind::Ping,
        flow: Label::NONE,
        nonce: 0x0102_0304_0506_0708,
        label: Label::from_random(0xffff_a1a2_a3a4_a5a6),
        from: "gateway-1".parse().unwrap(),
        to: "exit".parse().unwrap(),
    }
}

/// As many tags of these bytes.
fn tags(with: &[u8]) -> impl FnOnce(&[u8], &mut Vec<Tag>) + use<> {
    let with = with.to_vec();
    move |_, tags| tags.extend(with.into_iter().map(|byte| [byte; TAG_LEN]))
}

fn written(probe: &Probe, len: usize, with: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    probe.write(&mut packet, len, tags(with));
    packet
}

#[test]
fn a_probe_has_the_bytes_that_are_written_down() {
    let packet = written(&probe(), 0, &[0x77]);
    let expected = [
        "12 00 000000000000",
        "0102030405060708",
        "a1a2a3a4a5a6",
        "09 676174657761792d31",
        "04 65786974",
        "01 77777777777777777777777777777777",
        "00000000000000000000000000000000",
    ];
    let expected = hex::decode(expected.concat().replace(' ', "")).unwrap();
    assert_eq!(packet, expected);
}

fn claim() -> Claim {
    Claim {
        flow: Label::from_random(0xf1f2_f3f4_f5f6),
        nonce: 0x0102_0304_0506_0708,
        cookie: 9,
        from: "a".parse().unwrap(),
        to: "t2".parse().unwrap(),
        peer: "b".parse().unwrap(),
        hops: ["t1", "t2"].map(|id| id.parse().unwrap()).to_vec(),
        next: Next::At(([192, 0, 2, 1], 4434).into()),
        lease: vec![0xaa, 0xbb],
    }
}

#[test]
fn the_largest_claim_goes_over_every_path() {
    let longest: NodeId = "a".repeat(63).parse().unwrap();
    let claim = Claim {
        from: longest.clone(),
        to: longest.clone(),
        peer: longest.clone(),
        hops: vec![longest; MAX_HOPS],
        next: Next::At(([0x2001, 0, 0, 0, 0, 0, 0, 1], 1).into()),
        lease: vec![7; MAX_PACKED_LEN],
        ..claim()
    };
    let mut packet = Vec::new();
    claim.write(&mut packet, tags(&[1, 2]));
    assert!(packet.len() <= 1280, "{}", packet.len());
    assert_eq!(Claim::read(&packet).unwrap().said, claim);
}

#[test]
fn a_lease_that_is_too_long_or_cut_off_is_refused() {
    let mut long = Vec::new();
    let claim = Claim {
        lease: vec![7; MAX_PACKED_LEN + 1],
        ..claim()
    };
    claim.write(&mut long, tags(&[1]));
    assert_eq!(Claim::read(&long), Err(Malformed("length of a lease")));
    let cut = long.len() - 100;
    long.truncate(cut);
    assert!(Claim::read(&long).is_err());
}

fn verdict(ruling: Ruling) -> Verdict {
    Verdict {
        flow: claim().flow,
        nonce: claim().nonce,
        ruling,
        from: "t2".parse().unwrap(),
        to: "a".parse().unwrap(),
        seen: None,
    }
}

fn attach() -> Attach {
    Attach {
        place: Label::from_random(0xe1e2_e3e4_e5e6),
        nonce: 0x0102_0304_0506_0708,
        cookie: 9,
        from: "exit".parse().unwrap(),
        to: "t1".parse().unwrap(),
    }
}

#[test]
fn a_claim_and_a_verdict_have_the_bytes_that_are_written_down() {
    let mut packet = Vec::new();
    claim().write(&mut packet, tags(&[0x77]));
    let expected = [
        "14 00 f1f2f3f4f5f6",
        "0102030405060708 0000000000000009",
        "01 61 02 7432 01 62",
        "02 02 7431 02 7432",
        "04 c0000201 1152",
        "0002 aabb",
        "01 77777777777777777777777777777777",
        "00000000000000000000000000000000",
    ];
    let expected = hex::decode(expected.concat().replace(' ', "")).unwrap();
    assert_eq!(packet, expected);

    verdict(Ruling::Granted { lasts: 60 }).write(&mut packet, tags(&[0x77]));
    let expected = [
        "15 00 f1f2f3f4f5f6",
        "0102030405060708 00",
        "0000000000000000 0000003c",
        "02 7432 01 61 00",
        "01 77777777777777777777777777777777",
        "00000000000000000000000000000000",
    ];
    let expected = hex::decode(expected.concat().replace(' ', "")).unwrap();
    assert_eq!(packet, expected);

    let attached = Claim {
        next: Next::Attached,
        ..claim()
    };
    attached.write(&mut packet, tags(&[]));
    assert_eq!(Claim::read(&packet).unwrap().said, attached);
    // Before the lease, the number of its bytes, and what is kept free for tags.
    let family = packet.len() - 33 - (2 + attached.lease.len()) - 1;
    assert_eq!(packet[family], 0);
    packet[family] = 5;
    let family = Err(Malformed("family of an address"));
    assert_eq!(Claim::read(&packet), family);
}

#[test]
fn an_attach_and_its_verdict_have_the_bytes_that_are_written_down() {
    let mut packet = Vec::new();
    attach().write(&mut packet, tags(&[0x77]));
    let expected = [
        "16 00 e1e2e3e4e5e6",
        "0102030405060708 0000000000000009",
        "04 65786974 02 7431",
        "01 77777777777777777777777777777777",
    ];
    let expected = hex::decode(expected.concat().replace(' ', "")).unwrap();
    let (front, zeros) = packet.split_at(expected.len());
    assert_eq!(front, expected);
    assert_eq!(zeros, vec![0; ATTACH_LEN - expected.len()]);

    let verdict = Verdict {
        flow: attach().place,
        from: attach().to,
        to: attach().from,
        seen: Some(([192, 0, 2, 9], 40_000).into()),
        ..verdict(Ruling::Prove { cookie: 9 })
    };
    verdict.write(&mut packet, tags(&[0x77]));
    let expected = [
        "15 00 e1e2e3e4e5e6",
        "0102030405060708 01",
        "0000000000000009 00000000",
        "02 7431 04 65786974 04 c0000209 9c40",
        "01 77777777777777777777777777777777",
        "00000000000000000000000000000000",
    ];
    let expected = hex::decode(expected.concat().replace(' ', "")).unwrap();
    assert_eq!(packet, expected);
    assert_eq!(Verdict::read(&packet).unwrap().said, verdict);
}

#[test]
fn no_verdict_is_longer_than_the_attach_that_it_answers() {
    let longest: NodeId = "n".repeat(63).parse().unwrap();
    let mut packet = Vec::new();
    let verdict = Verdict {
        from: longest.clone(),
        to: longest.clone(),
        seen: Some(([u16::MAX; 8], 40_000).into()),
        ..verdict(Ruling::Prove { cookie: 9 })
    };
    verdict.write(&mut packet, tags(&[1, 2]));
    assert!(packet.len() <= ATTACH_LEN, "{}", packet.len());
    let attach = Attach {
        from: longest.clone(),
        to: longest,
        ..attach()
    };
    attach.write(&mut packet, tags(&[1, 2]));
    assert_eq!(packet.len(), ATTACH_LEN);
    assert_eq!(Attach::read(&packet).unwrap().said, attach);
    // Even one that says nothing wrong.
    packet.truncate(ATTACH_LEN - 1);
    assert_eq!(Attach::read(&packet), Err(CUT));
}

#[test]
fn every_verdict_survives_the_wire_and_no_other_is_read() {
    let mut rulings = vec![Ruling::Granted { lasts: 7 }, Ruling::Prove { cookie: 7 }];
    rulings.extend(Refusal::ALL.map(Ruling::Refused));
    let mut packet = Vec::new();
    for ruling in rulings {
        verdict(ruling).write(&mut packet, tags(&[1]));
        assert_eq!(Verdict::read(&packet).unwrap().said, verdict(ruling));
    }
    packet[16] = 2 + Refusal::ALL.len() as u8;
    assert_eq!(Verdict::read(&packet), Err(Malformed("verdict")));
}

#[test]
fn a_label_is_twelve_digits() {
    let label = Label::from_random(0xa1a2_0304_05f6);
    assert_eq!("a1a2030405f6".parse(), Ok(label));
    for text in [
        "",
        "a1a2030405",
        "a1a2030405f",
        "a1a2030405f6a7",
        "A1A2030405F6",
        "g1a2030405f6",
    ] {
        assert_eq!(text.parse::<Label>(), Err(Malformed("label")), "{text}");
    }
}

#[test]
fn a_header_of_another_version_or_kind_is_none() {
    let header = Header {
        kind: Kind::Flow,
        label: Label::from_random(7),
    };
    let wire = header.to_wire();
    assert_eq!(Header::read(&wire), Some((header, &[][..])));
    for (at, byte) in [(0, 0x21), (0, 0x17), (1, 1)] {
        let mut other = wire;
        other[at] = byte;
        assert_eq!(Header::read(&other), None, "{other:?}");
    }
    assert_eq!(Header::read(&wire[..7]), None);
}

#[test]
fn tags_cover_every_byte_of_a_probe_and_its_length() {
    let message = |probe: &Probe, len| {
        let read = Probe::read(&written(probe, len, &[1])).unwrap();
        read.covered
    };
    let one = probe();
    let mut seen = vec![message(&one, 0)];
    let changes: [fn(&mut Probe); 6] = [
        |probe| probe.kind = Kind::Pong,
        |probe| probe.flow = Label::from_random(1),
        |probe| probe.nonce ^= 1,
        |probe| probe.label = Label::from_random(1),
        |probe| probe.from = "gateway-2".parse().unwrap(),
        |probe| probe.to = "exi".parse().unwrap(),
    ];
    for change in changes {
        let mut other = probe();
        change(&mut other);
        seen.push(message(&other, 0));
    }
    seen.push(message(&one, 1288));
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), count);
}

#[test]
fn what_is_not_a_whole_probe_is_refused() {
    let packet = written(&probe(), 100, &[1, 2]);
    let end = 8 + 8 + 6 + 10 + 5 + 1 + 32;
    for len in 0..end {
        assert!(Probe::read(&packet[..len]).is_err(), "{len}");
    }
    assert!(Probe::read(&packet).is_ok());
    let mut behind = packet.clone();
    behind[99] = 1;
    assert_eq!(Probe::read(&behind), Err(Malformed("something behind it")));
    let mut many = packet;
    many[end - 33] = 3;
    assert_eq!(Probe::read(&many), Err(Malformed("too many tags")));
}

proptest! {
    #[test]
    fn a_probe_survives_the_wire(
        nonce: u64, label: u64, flow: u64, pong: bool, len in 0usize..1500,
        from in "[a-z][a-z0-9]{0,62}", to in "[a-z]", with in prop::collection::vec(any::<u8>(), 0..=2),
    ) {
        let probe = Probe {
            kind: if pong { Kind::Pong } else { Kind::Ping },
            flow: Label::from_random(flow),
            nonce,
            label: Label::from_random(label),
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
        };
        let mut covered = Vec::new();
        let mut packet = Vec::new();
        probe.write(&mut packet, len, |message, tags| {
            covered = message.to_vec();
            tags.extend(with.iter().map(|byte| [*byte; TAG_LEN]));
        });
        let own = HEADER_LEN + 8 + 6 + 2 + from.len() + to.len() + 1 + MAX_TAGS * TAG_LEN;
        prop_assert_eq!(packet.len(), len.max(own));
        let read = Probe::read(&packet).unwrap();
        prop_assert_eq!(&read.said, &probe);
        prop_assert_eq!(&read.covered, &covered);
        prop_assert_eq!(read.tags.len(), with.len());
    }

    #[test]
    fn a_claim_survives_the_wire(
        nonce: u64, cookie: u64, flow: u64, next: Option<SocketAddr>,
        ids in prop::collection::vec("[a-z][a-z0-9]{0,62}", 4..=6),
        lease in prop::collection::vec(any::<u8>(), 0..=MAX_PACKED_LEN),
    ) {
        let mut ids = ids.into_iter().map(|id| id.parse().unwrap());
        let claim = Claim {
            flow: Label::from_random(flow),
            nonce,
            cookie,
            from: ids.next().unwrap(),
            to: ids.next().unwrap(),
            peer: ids.next().unwrap(),
            hops: ids.collect(),
            // Flow label and scope have no meaning between hosts.
            next: next.map_or(Next::Attached, |next| Next::At(SocketAddr::new(next.ip(), next.port()))),
            lease,
        };
        let mut packet = Vec::new();
        claim.write(&mut packet, tags(&[1, 2]));
        prop_assert_eq!(Claim::read(&packet).unwrap().said, claim);
    }

    #[test]
    fn arbitrary_bytes_are_packets_or_none(mut bytes: Vec<u8>, kind in 0x10u8..0x17) {
        let _ = Probe::read(&bytes);
        if bytes.len() >= 2 {
            bytes[0] = kind;
            bytes[1] = 0;
        }
        let _ = (Claim::read(&bytes), Verdict::read(&bytes), Attach::read(&bytes));
        if let Ok(read) = Probe::read(&bytes) {
            let mut again = Vec::new();
            read.said.write(&mut again, bytes.len(), |_, tags| tags.extend(&read.tags));
            // Zeros that a shorter form would not have are all that may differ.
            let shared = bytes.len().min(again.len());
            prop_assert_eq!(&again[..shared], &bytes[..shared]);
        }
    }
}
