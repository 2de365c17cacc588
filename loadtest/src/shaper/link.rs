//! One direction of a way between two hosts: when a packet that enters it comes out, or why it does not.

use std::time::{Duration, Instant};

use super::{Dropped, Random};

/// Bytes of the IPv4 and UDP headers around a payload: what an MTU counts and a rate does not.
const IP_AND_UDP: usize = 28;

/// What a link does to the packets of one direction. The default is a perfect one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// From one end to the other.
    pub delay: Duration,
    /// Added to the delay: for each packet anew, evenly from nothing to this. Packets stay in order.
    pub jitter: Duration,
    /// The part of packets, from 0 to 1, that are not delayed at all, and so overtake others.
    pub reorder: f64,
    /// Which packets are lost on their way.
    pub loss: Loss,
    /// Bits of UDP payload in a second; `None` is as fast as the host.
    pub rate: Option<u64>,
    /// For how long a packet waits for its turn at most, where there is a rate: the queue before it.
    pub queue: Duration,
    /// Bytes of an IP packet at most; `None` is no limit.
    pub mtu: Option<u16>,
    /// Nothing comes through.
    pub blackhole: bool,
}

/// Which packets are lost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// Each for itself, with this probability.
    Single(f64),
    /// In bursts: the model of Gilbert (1960), in which a good state loses nothing and a bad one everything.
    Bursty {
        /// The part of all packets that is lost, from 0 up to, but not including, 1.
        part: f64,
        /// Packets in a burst, on average; at least 1.
        burst: f64,
    },
}

impl Link {
    /// A perfect one but for its delay.
    pub fn delayed(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }

    /// One through which nothing comes.
    pub fn blackhole() -> Self {
        Self {
            blackhole: true,
            ..Self::default()
        }
    }
}

impl Default for Link {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            reorder: 0.0,
            loss: Loss::Single(0.0),
            rate: None,
            queue: Duration::from_millis(50),
            mtu: None,
            blackhole: false,
        }
    }
}

/// A link's state.
#[derive(Debug)]
pub(super) struct Direction {
    link: Link,
    random: Random,
    /// Whether it is losing a burst.
    loses: bool,
    /// When the packets that wait before it have left.
    free_at: Option<Instant>,
    /// When the last packet comes out that keeps its place.
    last_out: Option<Instant>,
}

impl Direction {
    pub(super) fn new(link: Link, random: Random) -> Self {
        Self {
            link,
            random,
            loses: false,
            free_at: None,
            last_out: None,
        }
    }

    /// What enters from now on is treated as `link` says. What is on its way is not; it may be overtaken, as
    /// when a route changes.
    pub(super) fn change(&mut self, link: Link) {
        self.link = link;
        self.last_out = None;
    }

    /// When a packet with a payload of `len` bytes that enters at `now` comes out.
    pub(super) fn enter(&mut self, len: usize, now: Instant) -> Result<Instant, Dropped> {
        let link = self.link;
        if link.blackhole {
            return Err(Dropped::Blackhole);
        }
        if link
            .mtu
            .is_some_and(|mtu| len + IP_AND_UDP > usize::from(mtu))
        {
            return Err(Dropped::TooLarge);
        }
        let left = match link.rate {
            None => now,
            Some(rate) => {
                let starts = self.free_at.map_or(now, |at| at.max(now));
                if starts.saturating_duration_since(now) > link.queue {
                    return Err(Dropped::QueueFull);
                }
                let left = starts + Duration::from_secs_f64(len as f64 * 8.0 / rate.max(1) as f64);
                self.free_at = Some(left);
                left
            }
        };
        if self.is_lost() {
            return Err(Dropped::Lost);
        }
        if link.reorder > 0.0 && self.random.fraction() < link.reorder {
            return Ok(left);
        }
        let jitter = match link.jitter {
            Duration::ZERO => Duration::ZERO,
            jitter => jitter.mul_f64(self.random.fraction()),
        };
        let out = left + link.delay + jitter;
        let out = self.last_out.map_or(out, |last| out.max(last));
        self.last_out = Some(out);
        Ok(out)
    }

    fn is_lost(&mut self) -> bool {
        match self.link.loss {
            Loss::Single(part) => part > 0.0 && self.random.fraction() < part,
            Loss::Bursty { part, burst } => {
                let ends = 1.0 / burst.max(1.0);
                // In balance, what begins is what ends.
                let begins = ends * part / (1.0 - part).max(f64::EPSILON);
                let changes = if self.loses { ends } else { begins };
                self.loses ^= self.random.fraction() < changes;
                self.loses
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn direction(link: Link) -> Direction {
        Direction::new(link, Random::new(7))
    }

    #[test]
    fn what_is_delayed_comes_out_so_much_later_and_nothing_else_happens_to_it() {
        let mut way = direction(Link::delayed(ms(20)));
        let now = Instant::now();
        for millis in 0..100 {
            let now = now + ms(millis);
            assert_eq!(way.enter(1_288, now), Ok(now + ms(20)));
        }
    }

    #[test]
    fn a_rate_spaces_packets_out_and_its_queue_is_bounded() {
        let mut way = direction(Link {
            rate: Some(8_000_000),
            queue: ms(10),
            ..Link::default()
        });
        let now = Instant::now();
        // A kilobyte each millisecond: the first leaves after one, and eleven more wait for ten at most.
        for number in 1..=11 {
            assert_eq!(way.enter(1_000, now), Ok(now + ms(number)));
        }
        assert_eq!(way.enter(1_000, now), Err(Dropped::QueueFull));
        let later = now + ms(1);
        assert_eq!(way.enter(1_000, later), Ok(later + ms(11)));
    }

    #[test]
    fn packets_over_the_mtu_do_not_come_through_and_those_that_fit_do() {
        let mut way = direction(Link {
            mtu: Some(1_280),
            ..Link::default()
        });
        let now = Instant::now();
        assert_eq!(way.enter(1_252, now), Ok(now));
        assert_eq!(way.enter(1_253, now), Err(Dropped::TooLarge));
    }

    #[test]
    fn some_packets_overtake_others_where_they_are_to() {
        let mut way = direction(Link {
            reorder: 0.1,
            ..Link::delayed(ms(20))
        });
        let now = Instant::now();
        let outs: Vec<_> = (0..1_000)
            .map(|n| way.enter(100, now + ms(n)).unwrap())
            .collect();
        let early = outs.windows(2).filter(|pair| pair[1] < pair[0]).count();
        assert!((50..200).contains(&early), "{early}");
    }

    #[test]
    fn a_link_that_became_faster_lets_later_packets_overtake() {
        let mut way = direction(Link::delayed(ms(40)));
        let now = Instant::now();
        let before = way.enter(100, now).unwrap();
        way.change(Link::delayed(ms(1)));
        assert!(way.enter(100, now).unwrap() < before);
    }

    /// How many of 100,000 were lost, and in how many bursts.
    fn losses(loss: Loss) -> (usize, usize) {
        let mut way = direction(Link {
            loss,
            ..Link::default()
        });
        let now = Instant::now();
        let lost: Vec<_> = (0..100_000)
            .map(|_| way.enter(100, now) == Err(Dropped::Lost))
            .collect();
        let bursts = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        (lost.iter().filter(|lost| **lost).count(), bursts)
    }

    #[test]
    fn as_many_are_lost_as_is_said_and_in_bursts_as_long_as_is_said() {
        for part in [0.02, 0.1, 0.25] {
            let expected = part * 100_000.0;
            let near = |count: usize, of: f64| (count as f64 - of).abs() < of * 0.15;
            let (lost, bursts) = losses(Loss::Single(part));
            assert!(near(lost, expected), "{lost} of {expected}");
            assert!(near(bursts, expected * (1.0 - part)), "{bursts}");
            let (lost, bursts) = losses(Loss::Bursty { part, burst: 5.0 });
            assert!(near(lost, expected), "{lost} of {expected}");
            assert!(near(bursts, expected / 5.0), "{bursts}");
        }
        assert_eq!(losses(Loss::Single(0.0)).0, 0);
    }

    fn link() -> impl Strategy<Value = Link> {
        let millis = || (0u64..100).prop_map(ms);
        let loss = prop_oneof![
            (0.0..1.0).prop_map(Loss::Single),
            (0.0..0.9, 1.0..20.0).prop_map(|(part, burst)| Loss::Bursty { part, burst }),
        ];
        let rate = prop::option::of(1_000u64..1_000_000_000);
        let mtu = prop::option::of(68u16..1_500);
        (
            millis(),
            millis(),
            (0.0..1.0, loss, rate),
            millis(),
            mtu,
            any::<bool>(),
        )
            .prop_map(
                |(delay, jitter, (reorder, loss, rate), queue, mtu, blackhole)| Link {
                    delay,
                    jitter,
                    reorder,
                    loss,
                    rate,
                    queue,
                    mtu,
                    blackhole,
                },
            )
    }

    proptest! {
        #[test]
        fn nothing_comes_out_before_it_entered_nor_later_than_the_link_allows_and_a_seed_repeats_it(
            link in link(),
            seed in any::<u64>(),
            packets in prop::collection::vec((0usize..1_500, 0u64..5_000), 1..200),
        ) {
            let mut ways = [0; 2].map(|_| Direction::new(link, Random::new(seed)));
            let mut now = Instant::now();
            for (len, pause) in packets {
                now += Duration::from_micros(pause);
                let [one, other] = ways.each_mut().map(|way| way.enter(len, now));
                prop_assert_eq!(one, other);
                let Ok(out) = one else { continue };
                prop_assert!(!link.blackhole);
                prop_assert!(out >= now);
                let takes = link.rate.map_or(Duration::ZERO, |rate| {
                    link.queue + Duration::from_secs_f64(len as f64 * 8.0 / rate as f64)
                });
                // One that keeps its place comes out after the one before it.
                let most = takes + link.delay + link.jitter + Duration::from_micros(1);
                let waits = link.queue + link.jitter + Duration::from_secs_f64(12_000.0 / 1_000.0);
                prop_assert!(out <= now + most + waits, "{:?}", out - now);
            }
        }
    }
}
