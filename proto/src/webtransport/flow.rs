//! Flow control of one session (draft-ietf-webtrans-http3-16, section 5): how much stream data, and
//! how many streams, each side may send and open. Totals that only grow.
//!
//! What a receiver grants starts small and grows while it is used. A stack that does not tell the
//! final size of a stream that was reset (RFC 9000, section 4.5) leaves its receiver to guess how
//! much credit went with it; [`Flow::lost`] guesses high, so that an honest sender is never left
//! without.

use super::capsule::Capsule;
use crate::varint;

/// A stream's direction (RFC 9000, section 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Bidirectional.
    Bidi,
    /// Unidirectional.
    Uni,
}

/// Most streams a limit can speak of: 2⁶⁰ (draft, section 5.6.2).
pub const MAX_STREAMS: u64 = 1 << 60;

/// What one side grants in every session before it says anything in it
/// (SETTINGS_WT_INITIAL_MAX_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Initial {
    /// Stream payload, in bytes.
    pub data: u64,
    /// Bidirectional streams.
    pub bidi: u64,
    /// Unidirectional streams.
    pub uni: u64,
}

impl Initial {
    /// Whether these declare the intent to use flow control (draft, section 5.1).
    pub fn declares(&self) -> bool {
        *self != Self::default()
    }
}

/// How far what is granted grows, as credit that is not used yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Stream payload, in bytes.
    pub data: u64,
    /// Streams of each kind that are open.
    pub streams: u64,
}

/// What a peer did that ends the session with WT_FLOW_CONTROL_ERROR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It opened more streams than it was granted.
    #[error("more streams than were granted")]
    Streams,
    /// It sent more than it was granted.
    #[error("more stream data than was granted")]
    Data,
    /// A limit that is not higher than the one before.
    #[error("a limit that does not grow")]
    Limit,
    /// A count of streams over [`MAX_STREAMS`].
    #[error("a limit of more streams than there can be")]
    Count,
}

/// What this side may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spending {
    limit: u64,
    spent: u64,
    /// The limit came from the peer's settings, which a first capsule may repeat.
    initial: bool,
    /// The limit at which more was wanted, if that is to be told; and the last one that was told.
    blocked: Option<u64>,
    told: Option<u64>,
}

impl Spending {
    fn new(limit: u64) -> Self {
        Self {
            limit,
            spent: 0,
            initial: true,
            blocked: None,
            told: None,
        }
    }

    fn take(&mut self, want: u64) -> u64 {
        let taken = want.min(self.limit - self.spent);
        self.spent += taken;
        if taken == 0 && want > 0 && self.told != Some(self.limit) {
            self.blocked = Some(self.limit);
        }
        taken
    }

    fn raise(&mut self, limit: u64) -> Result<(), Violation> {
        let repeated = self.initial && limit == self.limit && limit > 0;
        if limit <= self.limit && !repeated {
            return Err(Violation::Limit);
        }
        self.initial = false;
        self.limit = limit;
        self.blocked = None;
        Ok(())
    }

    fn due(&mut self) -> Option<u64> {
        let blocked = self.blocked.take()?;
        self.told = Some(blocked);
        Some(blocked)
    }
}

/// What the peer may use, counted in bytes or in streams.
#[derive(Debug, Clone, Copy)]
struct Granting {
    /// Credit the peer has at least, once it is told.
    window: u64,
    max: u64,
    granted: u64,
    /// What of that the peer was told.
    told: u64,
}

impl Granting {
    fn new(initial: u64, max: u64) -> Self {
        Self {
            window: initial.max(1),
            max: max.max(initial).max(1),
            granted: initial,
            told: initial,
        }
    }

    /// Grants a window beyond `returned` once a quarter of it is gone.
    fn renew(&mut self, returned: u64, most: u64) {
        self.grant(returned, most, self.window.div_ceil(4));
    }

    /// Doubles the window and grants it, unless it is at its end.
    fn grow(&mut self, returned: u64, most: u64) {
        let window = (self.window * 2).min(self.max);
        if std::mem::replace(&mut self.window, window) != window {
            self.grant(returned, most, 1);
        }
    }

    fn grant(&mut self, returned: u64, most: u64, least: u64) {
        let next = returned.saturating_add(self.window).min(most);
        if next.saturating_sub(self.granted) >= least {
            self.granted = next;
        }
    }

    fn is_due(&self) -> bool {
        self.told != self.granted
    }

    fn due(&mut self) -> Option<u64> {
        let before = std::mem::replace(&mut self.told, self.granted);
        (before != self.granted).then_some(self.granted)
    }
}

/// Streams of one kind that the peer opens.
#[derive(Debug, Clone, Copy)]
struct Streams {
    grant: Granting,
    opened: u64,
    over: u64,
    /// Opened as far as the peer is concerned, and never seen in this session.
    missed: u64,
}

impl Streams {
    fn returned(&self) -> u64 {
        self.over.saturating_add(self.missed)
    }

    fn renew(&mut self) {
        self.grant.renew(self.returned(), MAX_STREAMS);
    }
}

/// Both directions of one session's flow control.
#[derive(Debug, Clone)]
pub struct Flow {
    send_data: Spending,
    send_bidi: Spending,
    send_uni: Spending,
    data: Granting,
    /// Bytes that were read.
    read: u64,
    /// Bytes that are taken for sent and will never be read. Too many rather than too few.
    lost: u64,
    bidi: Streams,
    uni: Streams,
}

impl Flow {
    /// `ours` is what this side grants at first, growing up to `windows`; `theirs` what the peer does.
    pub fn new(ours: Initial, windows: Windows, theirs: Initial) -> Self {
        let streams = |initial| Streams {
            grant: Granting::new(initial, windows.streams.min(MAX_STREAMS)),
            opened: 0,
            over: 0,
            missed: 0,
        };
        let mut flow = Self {
            send_data: Spending::new(theirs.data),
            send_bidi: Spending::new(theirs.bidi.min(MAX_STREAMS)),
            send_uni: Spending::new(theirs.uni.min(MAX_STREAMS)),
            data: Granting::new(ours.data, windows.data.min(varint::MAX / 4)),
            read: 0,
            lost: 0,
            bidi: streams(ours.bidi),
            uni: streams(ours.uni),
        };
        flow.renew_data();
        flow.bidi.renew();
        flow.uni.renew();
        flow
    }

    fn streams(&mut self, kind: Kind) -> &mut Streams {
        match kind {
            Kind::Bidi => &mut self.bidi,
            Kind::Uni => &mut self.uni,
        }
    }

    fn spending(&mut self, kind: Kind) -> &mut Spending {
        match kind {
            Kind::Bidi => &mut self.send_bidi,
            Kind::Uni => &mut self.send_uni,
        }
    }

    /// Takes up to `want` bytes of credit for sending; 0 when there is none.
    pub fn take(&mut self, want: u64) -> u64 {
        self.send_data.take(want)
    }

    /// Gives back credit that was taken and not used.
    pub fn give_back(&mut self, unused: u64) {
        self.send_data.spent = self.send_data.spent.saturating_sub(unused);
    }

    /// Takes the permission to open a stream; `false` when there is none.
    pub fn open(&mut self, kind: Kind) -> bool {
        self.spending(kind).take(1) == 1
    }

    /// Gives back a permission that was not used.
    pub fn unopen(&mut self, kind: Kind) {
        let spending = self.spending(kind);
        spending.spent = spending.spent.saturating_sub(1);
    }

    /// WT_MAX_DATA came.
    pub fn max_data(&mut self, total: u64) -> Result<(), Violation> {
        self.send_data.raise(total)
    }

    /// WT_MAX_STREAMS came.
    pub fn max_streams(&mut self, kind: Kind, total: u64) -> Result<(), Violation> {
        Self::streams_blocked(total)?;
        self.spending(kind).raise(total)
    }

    /// WT_STREAMS_BLOCKED came. It asks for nothing: credit returns as streams do.
    pub fn streams_blocked(limit: u64) -> Result<(), Violation> {
        match limit {
            0..=MAX_STREAMS => Ok(()),
            _ => Err(Violation::Count),
        }
    }

    /// The peer opened a stream. More of them will be granted while it has over half of them open.
    pub fn opened(&mut self, kind: Kind) -> Result<(), Violation> {
        let streams = self.streams(kind);
        if streams.opened >= streams.grant.told {
            return Err(Violation::Streams);
        }
        streams.opened += 1;
        let open = streams.opened.saturating_sub(streams.over);
        if open * 2 > streams.grant.window {
            let returned = streams.returned();
            streams.grant.grow(returned, MAX_STREAMS);
        }
        Ok(())
    }

    /// A stream that the peer opened is over.
    pub fn over(&mut self, kind: Kind) {
        let streams = self.streams(kind);
        streams.over = (streams.over + 1).min(streams.opened);
        streams.renew();
    }

    /// The peer opened a stream that ended before it told its session, which may have been this one:
    /// without RESET_STREAM_AT a reset overtakes the stream's header.
    pub fn missed(&mut self, kind: Kind) {
        let streams = self.streams(kind);
        streams.missed = streams.missed.saturating_add(1);
        streams.renew();
    }

    /// The application read stream payload. Returns by how much the data window has grown. A peer
    /// that sent too much is found out only if this is more than it was [told](Self::due) by now.
    pub fn read(&mut self, bytes: u64) -> Result<u64, Violation> {
        self.read = self.read.saturating_add(bytes);
        let Some(left) = self.data.told.checked_sub(self.read) else {
            return Err(Violation::Data);
        };
        // More cannot have been lost than the peer was told it may send, and was not read.
        self.lost = self.lost.min(left);
        let (granted, window) = (self.data.granted, self.data.window);
        self.renew_data();
        if self.data.granted != granted {
            self.data
                .grow(self.read.saturating_add(self.lost), varint::MAX);
        }
        Ok(self.data.window - window)
    }

    /// A stream ended with a reset, or was stopped here: up to `most` bytes, as far as its own window
    /// allowed, may have been sent on it that nobody will read.
    pub fn lost(&mut self, most: u64) {
        let left = self.data.told.saturating_sub(self.read);
        self.lost = self.lost.saturating_add(most).min(left);
        self.renew_data();
    }

    fn renew_data(&mut self) {
        let returned = self.read.saturating_add(self.lost);
        self.data.renew(returned, varint::MAX);
    }

    /// Credit in bytes that the peer is given beyond what was read. What is taken for
    /// [lost](Self::lost) and is not may come on top.
    pub fn window(&self) -> u64 {
        self.data.window
    }

    /// What the peer is to be told, once: limits that grew, and those of the peer
    /// that are in the way.
    pub fn due(&mut self) -> impl Iterator<Item = Capsule> {
        let max_streams = |kind| move |total| Capsule::MaxStreams(kind, total);
        let blocked = |kind| move |limit| Capsule::StreamsBlocked(kind, limit);
        [
            self.data.due().map(Capsule::MaxData),
            self.bidi.grant.due().map(max_streams(Kind::Bidi)),
            self.uni.grant.due().map(max_streams(Kind::Uni)),
            self.send_data.due().map(Capsule::DataBlocked),
            self.send_bidi.due().map(blocked(Kind::Bidi)),
            self.send_uni.due().map(blocked(Kind::Uni)),
        ]
        .into_iter()
        .flatten()
    }

    /// Whether [`due`](Self::due) has anything.
    pub fn is_due(&self) -> bool {
        let grants = [&self.data, &self.bidi.grant, &self.uni.grant];
        let spendings = [&self.send_data, &self.send_bidi, &self.send_uni];
        grants.iter().any(|grant| grant.is_due())
            || spendings.iter().any(|spending| spending.blocked.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OURS: Initial = Initial {
        data: 100,
        bidi: 4,
        uni: 4,
    };
    const WINDOWS: Windows = Windows {
        data: 400,
        streams: 16,
    };

    fn flow() -> Flow {
        Flow::new(OURS, WINDOWS, OURS)
    }

    fn due(flow: &mut Flow) -> Vec<Capsule> {
        flow.due().collect()
    }

    #[test]
    fn nothing_is_due_where_the_settings_said_it_all() {
        assert!(!flow().is_due());
        let mut silent = Flow::new(Initial::default(), WINDOWS, OURS);
        assert!(silent.is_due());
        assert_eq!(
            due(&mut silent),
            [
                Capsule::MaxData(1),
                Capsule::MaxStreams(Kind::Bidi, 1),
                Capsule::MaxStreams(Kind::Uni, 1)
            ]
        );
    }

    #[test]
    fn a_quarter_of_a_window_read_renews_the_grant_and_doubles_the_window() {
        let mut flow = flow();
        assert_eq!(flow.read(24), Ok(0));
        assert!(!flow.is_due());
        assert_eq!(flow.read(1), Ok(100));
        assert_eq!(due(&mut flow), [Capsule::MaxData(225)]);
        assert_eq!(flow.read(50), Ok(200));
        assert_eq!(due(&mut flow), [Capsule::MaxData(475)]);
        assert_eq!(flow.read(100), Ok(0), "the window is at its end");
        assert_eq!(due(&mut flow), [Capsule::MaxData(575)]);
        assert_eq!(flow.read(400), Ok(0));
        assert_eq!(flow.read(1), Err(Violation::Data), "it was told of no more");
    }

    #[test]
    fn a_stream_more_than_granted_is_a_violation() {
        let mut flow = flow();
        for _ in 0..2 {
            flow.opened(Kind::Uni).unwrap();
        }
        assert!(!flow.is_due());
        flow.opened(Kind::Uni).unwrap();
        assert_eq!(due(&mut flow), [Capsule::MaxStreams(Kind::Uni, 8)]);
        for _ in 3..8 {
            flow.opened(Kind::Uni).unwrap();
        }
        assert_eq!(due(&mut flow), [Capsule::MaxStreams(Kind::Uni, 16)]);
        for _ in 8..16 {
            flow.opened(Kind::Uni).unwrap();
        }
        assert_eq!(flow.opened(Kind::Uni), Err(Violation::Streams));
        for _ in 0..4 {
            flow.over(Kind::Uni);
        }
        assert_eq!(due(&mut flow), [Capsule::MaxStreams(Kind::Uni, 20)]);
        flow.opened(Kind::Uni).unwrap();
        flow.opened(Kind::Bidi).unwrap();
    }

    #[test]
    fn limits_of_the_peer_must_grow() {
        let mut flow = flow();
        flow.max_data(100).expect("as its settings said");
        assert_eq!(flow.max_data(100), Err(Violation::Limit));
        flow.max_data(101).unwrap();
        assert_eq!(flow.max_data(99), Err(Violation::Limit));
        assert_eq!(flow.max_streams(Kind::Bidi, 3), Err(Violation::Limit));
        flow.max_streams(Kind::Bidi, MAX_STREAMS).unwrap();
        assert_eq!(
            flow.max_streams(Kind::Uni, MAX_STREAMS + 1),
            Err(Violation::Count)
        );
        assert_eq!(Flow::streams_blocked(MAX_STREAMS), Ok(()));
        assert_eq!(
            Flow::streams_blocked(MAX_STREAMS + 1),
            Err(Violation::Count)
        );
    }

    #[test]
    fn a_limit_in_the_way_is_told_once() {
        let mut flow = flow();
        assert_eq!(flow.take(70), 70);
        assert_eq!(flow.take(70), 30);
        assert!(!flow.is_due());
        assert_eq!(flow.take(1), 0);
        assert_eq!(flow.take(1), 0);
        assert_eq!(due(&mut flow), [Capsule::DataBlocked(100)]);
        assert_eq!(flow.take(1), 0);
        assert!(!flow.is_due());
        flow.max_data(110).unwrap();
        assert_eq!(flow.take(20), 10);
        flow.give_back(4);
        assert_eq!(flow.take(20), 4);
        assert_eq!(flow.take(20), 0);
        for _ in 0..4 {
            assert!(flow.open(Kind::Bidi));
        }
        assert!(!flow.open(Kind::Bidi));
        assert_eq!(
            due(&mut flow),
            [
                Capsule::DataBlocked(110),
                Capsule::StreamsBlocked(Kind::Bidi, 4)
            ]
        );
        flow.unopen(Kind::Bidi);
        assert!(flow.open(Kind::Bidi));
    }

    #[test]
    fn a_limit_that_grew_in_time_is_not_told() {
        let mut flow = flow();
        flow.take(100);
        flow.take(1);
        flow.max_data(200).unwrap();
        assert!(!flow.is_due());
    }

    #[test]
    fn a_stream_that_was_never_seen_returns_as_credit() {
        let mut flow = flow();
        flow.missed(Kind::Bidi);
        assert_eq!(due(&mut flow), [Capsule::MaxStreams(Kind::Bidi, 5)]);
    }

    /// An honest peer and what is on its way.
    struct Pair {
        sender: Flow,
        receiver: Flow,
        streams: Vec<(u64, u64)>,
        told: [u64; 3],
    }

    impl Pair {
        fn tell(&mut self) {
            for capsule in self.receiver.due().collect::<Vec<_>>() {
                let (slot, total) = match capsule {
                    Capsule::MaxData(total) => {
                        self.sender.max_data(total).unwrap();
                        (0, total)
                    }
                    Capsule::MaxStreams(kind, total) => {
                        self.sender.max_streams(kind, total).unwrap();
                        (1 + usize::from(kind == Kind::Uni), total)
                    }
                    other => panic!("{other:?}"),
                };
                assert!(total > self.told[slot], "a grant must grow");
                self.told[slot] = total;
            }
        }
    }

    proptest! {
        /// Whatever is opened, sent, read, reset on the way and lost from sight: an honest peer never
        /// breaks a rule, and is never left without credit.
        #[test]
        fn an_honest_peer_breaks_no_rule_and_never_starves(
            actions in prop::collection::vec((0..6u8, 0..300u64, any::<prop::sample::Index>()), 0..300)
        ) {
            const STREAM_WINDOW: u64 = 80;
            let mut pair = Pair { sender: flow(), receiver: flow(), streams: Vec::new(), told: [0; 3] };
            for (action, amount, which) in actions {
                let stream = (!pair.streams.is_empty()).then(|| which.index(pair.streams.len()));
                match (action, stream) {
                    (0, _) if pair.sender.open(Kind::Uni) => {
                        pair.receiver.opened(Kind::Uni).unwrap();
                        pair.streams.push((0, 0));
                    }
                    // The header is overtaken by a reset.
                    (1, _) if pair.sender.open(Kind::Uni) => {
                        let sent = pair.sender.take(amount.min(STREAM_WINDOW));
                        pair.receiver.missed(Kind::Uni);
                        let _ = sent;
                        pair.receiver.lost(STREAM_WINDOW);
                    }
                    (2, Some(stream)) => {
                        let (sent, read) = pair.streams[stream];
                        let room = STREAM_WINDOW - (sent - read);
                        pair.streams[stream].0 += pair.sender.take(amount.min(room));
                    }
                    (3, Some(stream)) => {
                        let (sent, read) = &mut pair.streams[stream];
                        let now = amount.min(*sent - *read);
                        *read += now;
                        pair.receiver.read(now).unwrap();
                    }
                    (4, Some(stream)) => {
                        pair.streams.swap_remove(stream);
                        pair.receiver.lost(STREAM_WINDOW);
                        pair.receiver.over(Kind::Uni);
                    }
                    (5, _) => pair.tell(),
                    _ => {}
                }
            }
            // All is read, all is told: then there is credit again.
            for (sent, read) in std::mem::take(&mut pair.streams) {
                pair.receiver.read(sent - read).unwrap();
                pair.receiver.over(Kind::Uni);
            }
            pair.tell();
            prop_assert!(pair.sender.open(Kind::Uni));
            prop_assert!(pair.sender.take(1) == 1);
        }
    }
}
