//! Credit is conserved and nothing gets stuck, whatever two ends of a session do to its streams.
//!
//! The model is QUIC's: each stream delivers bytes in order and then a FIN, or a RESET that
//! overtakes and destroys what is not delivered yet; the control stream delivers in order. Streams
//! and control stream race each other.

use std::collections::{HashMap, VecDeque};

use proptest::{collection::vec, prelude::*};
use wavry_proto::mesh::{
    credit::{ReceiveCredit, SendCredit},
    header::Side,
    streams::{Grants, Kind, Streams, kind},
};

const WINDOW: u64 = 1000;
const STREAMS: u64 = 24;

#[derive(Debug, Clone)]
enum Action {
    Open(usize, Kind),
    Write(usize, prop::sample::Index, u64),
    Finish(usize, prop::sample::Index),
    Reset(usize, prop::sample::Index),
    Read(usize, prop::sample::Index, u64),
    Stop(usize, prop::sample::Index),
    DeliverStream(usize, prop::sample::Index),
    DeliverControl(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let end = 0..2usize;
    let which = any::<prop::sample::Index>;
    prop_oneof![
        3 => (end.clone(), prop_oneof![Just(Kind::Bidi), Just(Kind::Uni)])
            .prop_map(|(end, kind)| Action::Open(end, kind)),
        6 => (end.clone(), which(), 1..600u64).prop_map(|(e, w, n)| Action::Write(e, w, n)),
        2 => (end.clone(), which()).prop_map(|(e, w)| Action::Finish(e, w)),
        2 => (end.clone(), which()).prop_map(|(e, w)| Action::Reset(e, w)),
        6 => (end.clone(), which(), 1..600u64).prop_map(|(e, w, n)| Action::Read(e, w, n)),
        2 => (end.clone(), which()).prop_map(|(e, w)| Action::Stop(e, w)),
        8 => (end.clone(), which()).prop_map(|(e, w)| Action::DeliverStream(e, w)),
        8 => end.prop_map(Action::DeliverControl),
    ]
}

enum Control {
    Grants(Grants),
    Abandoned { stream: u64, bytes: u64 },
    Stop { stream: u64 },
}

#[derive(Default)]
struct Outgoing {
    spent: u64,
    ended: bool,
}

#[derive(Default)]
struct Arriving {
    /// Sent, not delivered.
    in_flight: u64,
    end: Option<End>,
    /// Delivered, not read.
    here: u64,
    read: u64,
    seen: bool,
    stopped: bool,
    over: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Fin,
    Reset,
}

struct Node {
    side: Side,
    data: SendCredit,
    bidi: SendCredit,
    uni: SendCredit,
    receive: ReceiveCredit,
    streams: Streams,
    outgoing: HashMap<u64, Outgoing>,
    arriving: HashMap<u64, Arriving>,
    /// On its way to this node.
    control: VecDeque<Control>,
    opened: [u64; 2],
}

struct World {
    nodes: [Node; 2],
}

impl World {
    fn new() -> Self {
        let node = |side| Node {
            side,
            data: SendCredit::default(),
            bidi: SendCredit::default(),
            uni: SendCredit::default(),
            receive: ReceiveCredit::new(WINDOW),
            streams: Streams::new(side, STREAMS),
            outgoing: HashMap::new(),
            arriving: HashMap::new(),
            control: VecDeque::new(),
            opened: [0; 2],
        };
        let mut world = Self {
            nodes: [node(Side::Client), node(Side::Server)],
        };
        for end in 0..2 {
            let first = Grants {
                data: Some(world.nodes[end].receive.granted()),
                bidi: Some(world.nodes[end].streams.window(Kind::Bidi)),
                uni: Some(world.nodes[end].streams.window(Kind::Uni)),
            };
            world.tell(end, first);
        }
        world
    }

    fn tell(&mut self, from: usize, grants: Grants) {
        if grants != Grants::default() {
            self.nodes[1 - from]
                .control
                .push_back(Control::Grants(grants));
        }
    }

    fn consume(&mut self, end: usize, bytes: u64) {
        let data = self.nodes[end].receive.consume(bytes).unwrap();
        self.tell(
            end,
            Grants {
                data,
                ..Grants::default()
            },
        );
    }

    fn open(&mut self, end: usize, wanted: Kind) -> bool {
        let node = &mut self.nodes[end];
        let (credit, bit) = match wanted {
            Kind::Bidi => (&node.bidi, 0),
            Kind::Uni => (&node.uni, 2),
        };
        if credit.take(1) == 0 {
            return false;
        }
        let count = &mut node.opened[usize::from(bit != 0)];
        let stream = *count * 4 + bit + u64::from(node.side == Side::Server);
        *count += 1;
        assert_eq!(kind(stream), wanted);
        node.outgoing.insert(stream, Outgoing::default());
        if wanted == Kind::Bidi {
            node.streams.opened_here(stream);
            let back = Arriving {
                seen: true,
                ..Arriving::default()
            };
            node.arriving.insert(stream, back);
        }
        self.nodes[1 - end]
            .arriving
            .insert(stream, Arriving::default());
        true
    }

    fn write(&mut self, end: usize, stream: u64, want: u64) -> u64 {
        let node = &mut self.nodes[end];
        let out = node.outgoing.get_mut(&stream).unwrap();
        if out.ended {
            return 0;
        }
        let taken = node.data.take(want);
        out.spent += taken;
        let other = self.nodes[1 - end].arriving.get_mut(&stream).unwrap();
        other.in_flight += taken;
        taken
    }

    fn end_sending(&mut self, end: usize, stream: u64, how: End) {
        let node = &mut self.nodes[end];
        let out = node.outgoing.get_mut(&stream).unwrap();
        if out.ended {
            return;
        }
        out.ended = true;
        let bytes = out.spent;
        let grants = node.streams.sent(stream);
        if how == End::Reset {
            self.nodes[1 - end]
                .control
                .push_back(Control::Abandoned { stream, bytes });
        }
        let other = self.nodes[1 - end].arriving.get_mut(&stream).unwrap();
        other.end = Some(how);
        if how == End::Reset {
            // What is not delivered yet never will be.
            other.in_flight = 0;
        }
        self.tell(end, grants);
    }

    /// The stream's packets arrive: its header at least.
    fn deliver_stream(&mut self, end: usize, stream: u64) {
        let node = &mut self.nodes[end];
        let arriving = node.arriving.get_mut(&stream).unwrap();
        arriving.here += std::mem::take(&mut arriving.in_flight);
        if arriving.seen {
            return;
        }
        arriving.seen = true;
        let headless = arriving.end == Some(End::Reset) && arriving.here == 0;
        if kind(stream) == Kind::Bidi {
            node.outgoing.insert(stream, Outgoing::default());
            self.nodes[1 - end].arriving.entry(stream).or_default();
        }
        let grants = self.nodes[end].streams.opened_by_peer(stream).unwrap();
        self.tell(end, grants);
        if headless {
            // Nobody is given the stream.
            self.read(end, stream, u64::MAX);
            if kind(stream) == Kind::Bidi {
                self.end_sending(end, stream, End::Reset);
            }
        }
    }

    fn read(&mut self, end: usize, stream: u64, most: u64) {
        let arriving = self.nodes[end].arriving.get_mut(&stream).unwrap();
        if !arriving.seen || arriving.over {
            return;
        }
        let most = if arriving.stopped { u64::MAX } else { most };
        // A reset is told before data that was not read (QUIC may do either).
        let bytes = if arriving.end == Some(End::Reset) {
            0
        } else {
            arriving.here.min(most)
        };
        arriving.here -= bytes;
        arriving.read += bytes;
        let read = arriving.read;
        let end_seen = match arriving.end {
            Some(End::Fin) if arriving.here == 0 && arriving.in_flight == 0 => Some(End::Fin),
            Some(End::Reset) => Some(End::Reset),
            _ => None,
        };
        arriving.over = end_seen.is_some();
        if bytes > 0 {
            self.consume(end, bytes);
        }
        let node = &mut self.nodes[end];
        let grants = match end_seen {
            Some(End::Fin) => node.streams.finished(stream),
            Some(End::Reset) => node.streams.reset(stream, read, &node.receive).unwrap(),
            None => return,
        };
        self.tell(end, grants);
    }

    fn stop(&mut self, end: usize, stream: u64) {
        let arriving = self.nodes[end].arriving.get_mut(&stream).unwrap();
        if !arriving.seen || arriving.over || arriving.stopped {
            return;
        }
        arriving.stopped = true;
        self.nodes[1 - end]
            .control
            .push_back(Control::Stop { stream });
    }

    fn deliver_control(&mut self, end: usize) -> bool {
        let Some(frame) = self.nodes[end].control.pop_front() else {
            return false;
        };
        let node = &mut self.nodes[end];
        match frame {
            Control::Grants(grants) => {
                grants.data.map(|total| node.data.raise(total));
                grants.bidi.map(|total| node.bidi.raise(total));
                grants.uni.map(|total| node.uni.raise(total));
            }
            Control::Abandoned { stream, bytes } => {
                let grants = node
                    .streams
                    .abandoned(stream, bytes, &node.receive)
                    .unwrap();
                self.tell(end, grants);
            }
            Control::Stop { stream } => {
                if node.outgoing.contains_key(&stream) {
                    self.end_sending(end, stream, End::Reset);
                }
            }
        }
        true
    }

    fn pick(&self, end: usize, which: &prop::sample::Index, outgoing: bool) -> Option<u64> {
        let node = &self.nodes[end];
        let mut ids: Vec<u64> = if outgoing {
            node.outgoing.keys().copied().collect()
        } else {
            node.arriving.keys().copied().collect()
        };
        ids.sort_unstable();
        (!ids.is_empty()).then(|| ids[which.index(ids.len())])
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Open(end, kind) => {
                self.open(*end, *kind);
            }
            Action::Write(end, which, bytes) => {
                if let Some(stream) = self.pick(*end, which, true) {
                    self.write(*end, stream, *bytes);
                }
            }
            Action::Finish(end, which) => {
                if let Some(stream) = self.pick(*end, which, true) {
                    self.end_sending(*end, stream, End::Fin);
                }
            }
            Action::Reset(end, which) => {
                if let Some(stream) = self.pick(*end, which, true) {
                    self.end_sending(*end, stream, End::Reset);
                }
            }
            Action::Read(end, which, bytes) => {
                if let Some(stream) = self.pick(*end, which, false) {
                    self.read(*end, stream, *bytes);
                }
            }
            Action::Stop(end, which) => {
                if let Some(stream) = self.pick(*end, which, false) {
                    self.stop(*end, stream);
                }
            }
            Action::DeliverStream(end, which) => {
                if let Some(stream) = self.pick(*end, which, false) {
                    self.deliver_stream(*end, stream);
                }
            }
            Action::DeliverControl(end) => {
                self.deliver_control(*end);
            }
        }
        for node in &self.nodes {
            let peer = &self.nodes[usize::from(node.side == Side::Client)];
            let unread = peer.data.spent() - node.receive.consumed();
            assert!(unread <= WINDOW, "{unread} bytes are unread");
            let local_bidi = node.opened[0] as usize;
            assert!(node.streams.live() <= 2 * STREAMS as usize + local_bidi);
        }
    }

    /// Everything is delivered, everything is ended, everything is read.
    fn settle(&mut self) {
        for _ in 0..4 {
            for end in 0..2 {
                while self.deliver_control(end) {}
                let mut out: Vec<u64> = self.nodes[end].outgoing.keys().copied().collect();
                out.sort_unstable();
                for stream in out {
                    self.end_sending(end, stream, End::Fin);
                }
            }
            for end in 0..2 {
                let mut arriving: Vec<u64> = self.nodes[end].arriving.keys().copied().collect();
                arriving.sort_unstable();
                for stream in arriving {
                    self.deliver_stream(end, stream);
                    self.read(end, stream, u64::MAX);
                }
            }
        }
        for end in 0..2 {
            while self.deliver_control(end) {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn credit_is_conserved_and_nothing_is_stuck(actions in vec(action(), 0..400)) {
        let mut world = World::new();
        for action in &actions {
            world.act(action);
        }
        world.settle();
        for end in 0..2 {
            let (node, peer) = (&world.nodes[end], &world.nodes[1 - end]);
            prop_assert_eq!(node.streams.live(), 0, "a stream is never over");
            prop_assert_eq!(peer.data.spent(), node.receive.consumed(), "credit is lost");
        }
        // At least half of each window is there again.
        for end in 0..2 {
            prop_assert!(world.nodes[end].data.take(WINDOW) >= WINDOW / 2);
            prop_assert!(world.nodes[end].bidi.take(STREAMS) >= 8);
            prop_assert!(world.nodes[end].uni.take(STREAMS) >= 8);
        }
    }
}

#[test]
fn a_peer_that_opens_more_than_it_may_is_found_out() {
    let mut streams = Streams::new(Side::Server, 1);
    assert!(streams.opened_by_peer(0).is_ok());
    assert!(streams.opened_by_peer(4).is_err());
    assert!(streams.opened_by_peer(2).is_ok());
    assert!(streams.opened_by_peer(1).is_err(), "a stream of our own");
}

#[test]
fn a_peer_that_reports_what_cannot_be_is_found_out() {
    let credit = ReceiveCredit::new(100);
    let mut streams = Streams::new(Side::Server, 4);
    streams.opened_by_peer(2).unwrap();
    assert!(
        streams.abandoned(2, 101, &credit).is_err(),
        "over its credit"
    );
    streams.abandoned(2, 10, &credit).unwrap();
    assert!(streams.abandoned(2, 10, &credit).is_err(), "twice");
    assert!(streams.reset(2, 11, &credit).is_err(), "less than was read");
    assert!(streams.abandoned(1, 0, &credit).is_err(), "not its stream");
}
