//! Two sessions that speak to each other, with everything that an application and a network can do
//! in between, never accuse each other, never say anything unsound, always agree on how it ended, and
//! never starve. And a session whose peer says and does anything at all stays sound itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wavry_proto::{
    session::Close,
    varint,
    webtransport::{
        capsule::{self, Capsule},
        flow::{Flow, Initial, Kind, Windows},
        session::{Event, Session},
    },
};

const KINDS: [Kind; 2] = [Kind::Bidi, Kind::Uni];

/// What honest ends grant at most at once, so that no input uses up what a limit can count.
const MOST: u64 = 1 << 32;

/// The input, as a list of choices.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    fn kind(&mut self) -> Kind {
        KINDS[usize::from(self.byte() & 1)]
    }

    /// Mostly small numbers.
    fn number(&mut self) -> u64 {
        match self.byte() {
            0xff => u64::MAX,
            0xfe => varint::MAX,
            shifted @ 0xc0.. => 1 << (shifted & 0x3f),
            small => u64::from(small),
        }
    }

    fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes
    }

    fn initial(&mut self, most: u64) -> Initial {
        Initial {
            data: self.number().min(most),
            bidi: self.number().min(most),
            uni: self.number().min(most),
        }
    }

    fn windows(&mut self, most: u64) -> Windows {
        Windows {
            data: self.number().min(most),
            streams: self.number().min(most),
        }
    }
}

/// Checks what one session says, in its order.
struct Ear {
    decoder: capsule::Decoder,
    limits: [u64; 3],
    drained: bool,
    closed: bool,
}

impl Ear {
    fn new() -> Self {
        Self {
            decoder: capsule::Decoder::new(capsule::Flow::Enabled),
            limits: [0; 3],
            drained: false,
            closed: false,
        }
    }

    fn hear(&mut self, said: &[u8]) {
        self.decoder.push(said);
        while let Some(capsule) = self.decoder.next().expect("it speaks in sound capsules") {
            assert!(!self.closed, "something follows the close");
            let (slot, total) = match capsule {
                Capsule::Close(_) => {
                    self.closed = true;
                    continue;
                }
                Capsule::Drain => {
                    assert!(!std::mem::replace(&mut self.drained, true), "two drains");
                    continue;
                }
                Capsule::MaxData(total) => (0, total),
                Capsule::MaxStreams(kind, total) => (1 + usize::from(kind == Kind::Uni), total),
                Capsule::DataBlocked(_) | Capsule::StreamsBlocked(..) => continue,
                Capsule::Datagram(_) => panic!("a datagram that nobody sent"),
            };
            assert!(total > self.limits[slot], "a limit that does not grow");
            self.limits[slot] = total;
        }
        assert!(self.decoder.at_boundary(), "half a capsule");
    }
}

/// One end, what it has said and done, and what of that is on its way to the other end.
struct End {
    session: Session,
    ear: Ear,
    said: Vec<u8>,
    /// Credit taken and not yet used.
    held: u64,
    /// Payload on its way.
    payload: u64,
    /// Streams on their way, and open at the other end; by kind.
    opening: [u64; 2],
    open: [u64; 2],
    drains_seen: u32,
    closed_here: Option<Close>,
    closed_by_peer: Option<Close>,
    asked_to_drain: bool,
}

impl End {
    fn new(session: Session) -> Self {
        Self {
            session,
            ear: Ear::new(),
            said: Vec::new(),
            held: 0,
            payload: 0,
            opening: [0; 2],
            open: [0; 2],
            drains_seen: 0,
            closed_here: None,
            closed_by_peer: None,
            asked_to_drain: false,
        }
    }

    fn transmit(&mut self) {
        let mut said = Vec::new();
        let wanted = self.session.wants_transmit();
        assert_eq!(self.session.transmit(&mut said), wanted);
        assert_eq!(wanted, !said.is_empty());
        self.ear.hear(&said);
        self.said.extend(said);
    }

    /// The other end's next words arrive.
    fn hear(&mut self, words: &[u8]) {
        self.session.receive(words);
        while let Some(event) = self.session.poll().expect("an honest peer is not accused") {
            match event {
                Event::Drain => self.drains_seen += 1,
                Event::Closed(close) => {
                    assert!(self.closed_by_peer.replace(close).is_none(), "two closes");
                }
                Event::Datagram(_) => panic!("a datagram that nobody sent"),
                Event::Data | Event::Streams(_) => {}
            }
        }
        assert!(self.drains_seen <= 1);
    }
}

fn honest(choices: &mut Choices<'_>) {
    let (a, b) = (choices.initial(MOST), choices.initial(MOST));
    let sessions = [(a, b), (b, a)].map(|(ours, theirs)| {
        let flow = Flow::new(ours, choices.windows(MOST), theirs);
        Session::new(capsule::Flow::Enabled, Some(flow))
    });
    let mut ends = sessions.map(End::new);
    while let Some(choice) = choices.next() {
        let side = usize::from(choice & 1);
        let [near, far] = &mut ends;
        let (near, far) = if side == 0 { (near, far) } else { (far, near) };
        match choice >> 1 & 0xf {
            0 => near.transmit(),
            1 => {
                let len = usize::from(choices.byte()).min(far.said.len());
                let words: Vec<_> = far.said.drain(..len).collect();
                near.hear(&words);
            }
            2 => {
                let want = choices.number();
                let taken = near.session.take(want);
                assert!(taken <= want);
                near.held += taken;
            }
            3 => {
                let unused = choices.number().min(near.held);
                near.held -= unused;
                near.session.give_back(unused);
            }
            4 => {
                let sent = choices.number().min(near.held);
                near.held -= sent;
                near.payload += sent;
            }
            5 => {
                let read = choices.number().min(far.payload);
                far.payload -= read;
                near.session.read(read).expect("it was granted");
            }
            6 => {
                // Part of a stream that was reset; this side can only guess how much.
                let lost = choices.number().min(far.payload);
                far.payload -= lost;
                near.session.lost(lost.saturating_add(choices.number()));
            }
            7 | 8 => {
                let kind = choices.kind();
                if near.session.open(kind) {
                    near.opening[kind as usize] += 1;
                }
            }
            9 => {
                // Before the stream's header is sent.
                let kind = choices.kind();
                if near.opening[kind as usize] > 0 {
                    near.opening[kind as usize] -= 1;
                    near.session.unopen(kind);
                }
            }
            10 | 11 => {
                let kind = choices.kind();
                if far.opening[kind as usize] > 0 {
                    far.opening[kind as usize] -= 1;
                    far.open[kind as usize] += 1;
                    near.session.opened(kind).expect("it was granted");
                }
            }
            12 => {
                let kind = choices.kind();
                if far.open[kind as usize] > 0 {
                    far.open[kind as usize] -= 1;
                    near.session.over(kind);
                }
            }
            13 => {
                let kind = choices.kind();
                if far.opening[kind as usize] > 0 {
                    far.opening[kind as usize] -= 1;
                    near.session.missed(kind);
                }
            }
            14 => {
                near.asked_to_drain = true;
                near.session.drain();
            }
            _ => {
                let close = Close::new(choices.number() as u32, "reason");
                if near.session.close(close.clone()) {
                    near.closed_here = Some(close);
                }
            }
        }
    }
    settle(&mut ends);
}

/// Everything that was said and sent arrives, and everything that was opened ends: both sides can go
/// on, or know how it ended.
fn settle(ends: &mut [End; 2]) {
    // Limits grow by what was used of them: a few rounds are enough.
    for _ in 0..4 {
        for side in [0, 1] {
            let [near, far] = ends;
            let (near, far) = if side == 0 { (near, far) } else { (far, near) };
            far.transmit();
            near.hear(&std::mem::take(&mut far.said));
            let read = std::mem::take(&mut far.payload);
            near.session.read(read).expect("it was granted");
            for kind in KINDS {
                for _ in 0..std::mem::take(&mut far.opening[kind as usize]) {
                    near.session.opened(kind).expect("it was granted");
                    near.session.over(kind);
                }
                for _ in 0..std::mem::take(&mut far.open[kind as usize]) {
                    near.session.over(kind);
                }
            }
            let held = std::mem::take(&mut far.held);
            far.session.give_back(held);
        }
    }
    for side in [0, 1] {
        let [near, far] = ends;
        let (near, far) = if side == 0 { (near, far) } else { (far, near) };
        assert_eq!(
            near.closed_by_peer, far.closed_here,
            "another close than was said"
        );
        if !near.session.is_over() {
            assert!(!far.session.is_over(), "one end is over, one is not");
            assert_eq!(near.drains_seen == 1, far.asked_to_drain);
            assert_eq!(near.session.take(1), 1, "no credit ever again");
            for kind in KINDS {
                assert!(near.session.open(kind), "no stream ever again");
            }
        }
    }
    for end in ends {
        let closed = end.session.finish().expect("the end is sound");
        assert_eq!(closed.is_some(), end.closed_by_peer.is_none());
    }
}

fn hostile(choices: &mut Choices<'_>) {
    let (ours, theirs) = (choices.initial(varint::MAX), choices.initial(varint::MAX));
    let flow = Flow::new(ours, choices.windows(u64::MAX), theirs);
    let capsules = match choices.byte() % 4 {
        0 => capsule::Flow::Unknown,
        1 => capsule::Flow::Ignored,
        _ => capsule::Flow::Enabled,
    };
    let mut session = Session::new(capsules, Some(flow));
    let mut ear = Ear::new();
    let (mut drains, mut closes) = (0, 0);
    while let Some(choice) = choices.next() {
        let sound = match choice % 16 {
            0..5 => {
                let content = match choice % 16 {
                    0 => choices.bytes().to_vec(),
                    1 => {
                        let kind = capsule::MAX_DATA + u64::from(choices.byte() % 8);
                        let mut buf = Vec::new();
                        let total = choices.number().min(varint::MAX);
                        varint::put(&mut buf, kind);
                        varint::put(&mut buf, varint::size(total) as u64);
                        varint::put(&mut buf, total);
                        buf
                    }
                    2 => {
                        let mut buf = Vec::new();
                        varint::put(&mut buf, capsule::DRAIN_SESSION);
                        varint::put(&mut buf, 0);
                        buf
                    }
                    3 => {
                        let mut buf = Vec::new();
                        let reason = choices.bytes();
                        varint::put(&mut buf, capsule::CLOSE_SESSION);
                        varint::put(&mut buf, 4 + reason.len() as u64);
                        buf.extend([0; 4]);
                        buf.extend(reason);
                        buf
                    }
                    _ => vec![choices.byte()],
                };
                session.receive(&content);
                loop {
                    match session.poll() {
                        Ok(None) => break true,
                        Ok(Some(Event::Drain)) => drains += 1,
                        Ok(Some(Event::Closed(_))) => closes += 1,
                        Ok(Some(_)) => {}
                        Err(_) => break false,
                    }
                }
            }
            5 => match session.finish() {
                Ok(close) => {
                    closes += u32::from(close.is_some());
                    true
                }
                Err(_) => false,
            },
            6 => {
                let mut said = Vec::new();
                let wanted = session.wants_transmit();
                assert_eq!(session.transmit(&mut said), wanted);
                ear.hear(&said);
                true
            }
            7 => {
                session.drain();
                true
            }
            8 => {
                session.close(Close::new(choices.number() as u32, "reason"));
                true
            }
            9 => {
                let want = choices.number();
                assert!(session.take(want) <= want);
                true
            }
            10 => {
                session.give_back(choices.number());
                true
            }
            11 => {
                session.open(choices.kind());
                session.opened(choices.kind()).is_ok()
            }
            12 => {
                session.over(choices.kind());
                true
            }
            13 => {
                session.missed(choices.kind());
                true
            }
            14 => session.read(choices.number()).is_ok(),
            _ => {
                session.lost(choices.number());
                true
            }
        };
        assert!(drains <= 1 && closes <= 1);
        if !sound {
            return;
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices(data);
    match choices.next() {
        None => {}
        Some(first) if first & 1 == 0 => honest(&mut choices),
        Some(_) => hostile(&mut choices),
    }
});
