//! What waits where a transit relay's link is full: a queue for each flow, which take turns by deficit round
//! robin (Shreedhar and Varghese, SIGCOMM 1995), so that a flow that sends much waits behind itself and not
//! before others. Probes and claims go first: a path is not to be given up because much goes over it.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::overlay::packet::Label;

/// What waited for so long is dropped: QUIC has sent it again, or will see in time that it sends too fast.
pub const WAITS_MOST: Duration = Duration::from_millis(50);

/// Bytes that wait at most: 50 ms of 1 Gbit/s, and a batch.
pub const BYTES: usize = 6_400_000;

/// Bytes that a flow may send in its turn: a batch that quinn sends at once, ten packets.
const QUANTUM: usize = 10 * 1_288;

/// Bytes of a flow's probes and claims that wait before everything else: it has three probes in 100 ms when its path
/// is in doubt, from each side. What is beyond waits like data: anybody may call packets probes.
const URGENT_EACH: usize = 8 * 1_288;

/// The same of all flows.
const URGENT: usize = 256 * 1_288;

/// Why something that waited was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overdue {
    /// It waited for longer than [`WAITS_MOST`].
    Old,
    /// More than [`BYTES`] waited, and of its flow the most.
    Full,
}

impl Overdue {
    /// The reason as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Old => "queued_too_long",
            Self::Full => "queue_full",
        }
    }
}

/// Whether something is sent before what waits of all flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Probes and claims.
    Urgent,
    /// Everything else.
    Data,
}

/// What waits: packets `T` that are sent together.
#[derive(Debug)]
pub struct Egress<T> {
    urgent: VecDeque<(Label, Waiting<T>)>,
    urgent_bytes: usize,
    /// Of each flow of which some wait.
    urgent_each: HashMap<Label, usize>,
    /// Bytes of them that were sent, less a quarter of the data that were since: data have their turn after a quantum.
    urgent_sent: usize,
    flows: HashMap<Label, Flow<T>>,
    /// Flows of which something waits, in the order of their turns.
    turns: VecDeque<Label>,
    /// The same, by how many bytes of them wait: the last is the one that has to make room. A member may have thousands
    /// of flows, so that looking at each for a packet that is dropped would cost more than the packet.
    longest: BTreeSet<(usize, Label)>,
    bytes: usize,
}

#[derive(Debug)]
struct Flow<T> {
    waiting: VecDeque<Waiting<T>>,
    bytes: usize,
    /// Bytes that it may send in this turn. What of it was urgent counts, too.
    deficit: i64,
    /// Whether it got its quantum in this turn.
    begun: bool,
}

#[derive(Debug)]
struct Waiting<T> {
    item: T,
    bytes: usize,
    since: Instant,
}

impl<T> Default for Egress<T> {
    fn default() -> Self {
        Self {
            urgent: VecDeque::new(),
            urgent_bytes: 0,
            urgent_each: HashMap::new(),
            urgent_sent: 0,
            flows: HashMap::new(),
            turns: VecDeque::new(),
            longest: BTreeSet::new(),
            bytes: 0,
        }
    }
}

impl<T> Egress<T> {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `item` of this flow waits from now on. `dropped` is given what has to go for that.
    pub fn push(
        &mut self,
        flow: Label,
        class: Class,
        item: T,
        bytes: usize,
        now: Instant,
        mut dropped: impl FnMut(T, Overdue),
    ) {
        self.bytes += bytes;
        let waiting = Waiting {
            item,
            bytes,
            since: now,
        };
        let of_flow = self.urgent_each.get(&flow).copied().unwrap_or(0);
        let has_room = of_flow + bytes <= URGENT_EACH && self.urgent_bytes + bytes <= URGENT;
        if class == Class::Urgent && has_room {
            self.urgent_bytes += bytes;
            self.urgent_each.insert(flow, of_flow + bytes);
            self.urgent.push_back((flow, waiting));
        } else {
            let (turns, label) = (&mut self.turns, flow);
            let flow = self.flows.entry(label).or_insert_with(|| {
                turns.push_back(label);
                Flow {
                    waiting: VecDeque::new(),
                    bytes: 0,
                    deficit: 0,
                    begun: false,
                }
            });
            flow.weigh(label, &mut self.longest, |weight| weight + bytes);
            flow.waiting.push_back(waiting);
        }
        while self.bytes > BYTES {
            let Some(item) = self.take_of_longest() else {
                break;
            };
            dropped(item, Overdue::Full);
        }
    }

    /// What is sent next. `dropped` is given what waited for too long.
    pub fn pop(&mut self, now: Instant, mut dropped: impl FnMut(T, Overdue)) -> Option<T> {
        let is_old =
            |waiting: &Waiting<T>| now.saturating_duration_since(waiting.since) > WAITS_MOST;
        while (self.urgent_sent < QUANTUM || self.turns.is_empty())
            && let Some((flow, waiting)) = self.urgent.pop_front()
        {
            self.bytes -= waiting.bytes;
            self.urgent_bytes -= waiting.bytes;
            if let Some(each) = self.urgent_each.get_mut(&flow) {
                *each -= waiting.bytes;
                if *each == 0 {
                    self.urgent_each.remove(&flow);
                }
            }
            if !is_old(&waiting) {
                self.urgent_sent += waiting.bytes;
                if let Some(flow) = self.flows.get_mut(&flow) {
                    flow.deficit -= waiting.bytes as i64;
                }
                return Some(waiting.item);
            }
            dropped(waiting.item, Overdue::Old);
        }
        while let Some(label) = self.turns.front().copied() {
            let Some(flow) = self.flows.get_mut(&label) else {
                self.turns.pop_front();
                continue;
            };
            while let Some(waiting) = flow.waiting.pop_front_if(|waiting| is_old(waiting)) {
                self.bytes -= waiting.bytes;
                flow.weigh(label, &mut self.longest, |weight| weight - waiting.bytes);
                dropped(waiting.item, Overdue::Old);
            }
            if !std::mem::replace(&mut flow.begun, true) {
                flow.deficit += QUANTUM as i64;
            }
            let deficit = flow.deficit;
            if let Some(waiting) = flow
                .waiting
                .pop_front_if(|next| next.bytes as i64 <= deficit)
            {
                flow.deficit -= waiting.bytes as i64;
                flow.weigh(label, &mut self.longest, |weight| weight - waiting.bytes);
                self.urgent_sent = self.urgent_sent.saturating_sub(waiting.bytes / 4);
                self.bytes -= waiting.bytes;
                if flow.waiting.is_empty() {
                    self.end(label);
                }
                return Some(waiting.item);
            }
            // Its turn is over: the next one's.
            if flow.waiting.is_empty() {
                self.end(label);
            } else {
                flow.begun = false;
                self.turns.rotate_left(1);
            }
        }
        // All data were too old.
        self.urgent_sent = 0;
        match self.urgent.is_empty() {
            true => None,
            false => self.pop(now, dropped),
        }
    }

    /// Nothing waits of the flow whose turn it is. It keeps nothing of what it did not use.
    fn end(&mut self, label: Label) {
        self.flows.remove(&label);
        self.turns.pop_front();
    }

    /// Takes the oldest of the flow of which the most waits. If nothing is left of it, it ends at its turn.
    fn take_of_longest(&mut self) -> Option<T> {
        let (_, label) = *self.longest.last()?;
        let flow = self.flows.get_mut(&label)?;
        let waiting = flow.waiting.pop_front()?;
        flow.weigh(label, &mut self.longest, |weight| weight - waiting.bytes);
        self.bytes -= waiting.bytes;
        Some(waiting.item)
    }
}

impl<T> Flow<T> {
    /// Other bytes wait than before.
    fn weigh(
        &mut self,
        label: Label,
        longest: &mut BTreeSet<(usize, Label)>,
        change: impl FnOnce(usize) -> usize,
    ) {
        longest.remove(&(self.bytes, label));
        self.bytes = change(self.bytes);
        if self.bytes > 0 {
            longest.insert((self.bytes, label));
        }
    }
}

/// When the next packets may be sent on a link of a given rate.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: u64,
    /// When what was sent so far has left.
    free_at: Instant,
}

/// What a link may be behind: as long as a thread may be kept from sending without the link being idle.
const BEHIND: Duration = Duration::from_millis(5);

impl Pace {
    /// Of a link that carries so much.
    pub fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            free_at: now,
        }
    }

    /// When something may be sent.
    pub fn at(&self) -> Instant {
        self.free_at
    }

    /// So many bytes were sent.
    pub fn sent(&mut self, bytes: usize, now: Instant) {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let behind = now.checked_sub(BEHIND).unwrap_or(now);
        self.free_at = self.free_at.max(behind) + takes;
    }
}

#[cfg(test)]
mod tests;
