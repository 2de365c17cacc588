use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::overlay::beginning;

fn label(number: u64) -> Label {
    Label::from_random(number)
}

fn none<T: std::fmt::Debug>(item: T, reason: Overdue) {
    panic!("{item:?} was dropped: {reason:?}");
}

/// Flows that always have something, in batches of these sizes: what each got of so many bytes in all.
fn shares(batches: &[usize], in_all: usize) -> Vec<usize> {
    let mut egress = Egress::default();
    let now = beginning();
    let mut got = vec![0; batches.len()];
    let push = |egress: &mut Egress<usize>, flow: usize| {
        let label = label(flow as u64);
        egress.push(label, Class::Data, flow, batches[flow], now, none);
    };
    for flow in 0..batches.len() {
        push(&mut egress, flow);
        push(&mut egress, flow);
    }
    while got.iter().sum::<usize>() < in_all {
        let flow = egress.pop(now, none).unwrap();
        got[flow] += batches[flow];
        push(&mut egress, flow);
    }
    got
}

#[test]
fn flows_that_always_have_something_share_the_link_whatever_their_batches() {
    let in_all = 40_000_000;
    let got = shares(&[100, 1_288, 12_880, 82_432], in_all);
    for share in &got {
        let part = *share as f64 / in_all as f64;
        assert!((0.245..0.255).contains(&part), "{got:?}");
    }
}

#[test]
fn who_sends_little_does_not_wait_behind_who_sends_much() {
    let mut egress = Egress::default();
    let now = beginning();
    for _ in 0..400 {
        egress.push(label(1), Class::Data, "much", 12_880, now, none);
    }
    egress.push(label(2), Class::Data, "little", 100, now, none);
    let before = std::iter::from_fn(|| egress.pop(now, none));
    let before = before.take_while(|item| *item == "much").count();
    assert!(before <= 1, "{before}");
}

#[test]
fn probes_go_before_everything_and_a_flood_of_them_does_not() {
    let mut egress = Egress::default();
    let now = beginning();
    egress.push(label(1), Class::Data, "data", 1_288, now, none);
    egress.push(label(2), Class::Urgent, "probe", 1_288, now, none);
    assert_eq!(egress.pop(now, none), Some("probe"));
    assert_eq!(egress.pop(now, none), Some("data"));
    assert!(egress.is_empty());

    // However often they come, what one flow calls probes takes nobody's share.
    let mut got = BTreeMap::<&str, usize>::new();
    for round in 0..10_000 {
        egress.push(label(1), Class::Data, "data", 1_288, now, |_, _| {});
        for _ in 0..2 {
            egress.push(label(2), Class::Urgent, "flood", 1_288, now, |_, _| {});
        }
        if round % 100 == 0 {
            let room = |item, _| assert_ne!(item, "probe");
            egress.push(label(3), Class::Urgent, "probe", 1_288, now, room);
        }
        *got.entry(egress.pop(now, none).unwrap()).or_default() += 1;
    }
    assert!(got["data"] >= 4_900, "{got:?}");
    assert!(got["probe"] >= 99, "{got:?}");
}

#[test]
fn what_waits_for_too_long_is_dropped_and_told() {
    let mut egress = Egress::default();
    let start = beginning();
    egress.push(label(1), Class::Data, 1, 100, start, none);
    egress.push(label(1), Class::Urgent, 2, 100, start, none);
    let later = start + WAITS_MOST;
    egress.push(label(1), Class::Data, 3, 100, later, none);
    let mut dropped = Vec::new();
    let late = later + Duration::from_millis(1);
    let next = egress.pop(late, |item, reason| dropped.push((item, reason)));
    assert_eq!(next, Some(3));
    assert_eq!(dropped, [(2, Overdue::Old), (1, Overdue::Old)]);
    assert_eq!((egress.bytes(), egress.is_empty()), (0, true));
}

#[test]
fn where_too_much_waits_it_is_dropped_of_the_flow_that_has_the_most() {
    let mut egress = Egress::default();
    let now = beginning();
    let mut dropped = BTreeMap::<u64, usize>::new();
    for _ in 0..BYTES / 12_880 + 10 {
        egress.push(label(1), Class::Data, 1, 12_880, now, |item, reason| {
            assert_eq!(reason, Overdue::Full);
            *dropped.entry(item).or_default() += 1;
        });
        assert!(egress.bytes() <= BYTES);
    }
    for _ in 0..50 {
        egress.push(label(2), Class::Data, 2, 1_288, now, |item, _| {
            *dropped.entry(item).or_default() += 1;
        });
    }
    assert_eq!(dropped.keys().collect::<Vec<_>>(), [&1]);
}

proptest! {
    #[test]
    fn nothing_is_lost_or_comes_twice_and_each_flow_keeps_its_order(
        steps in prop::collection::vec((0u64..4, 1usize..100_000, any::<bool>(), 0u64..30, 0usize..3), 1..200),
    ) {
        let mut egress = Egress::default();
        let mut now = beginning();
        let mut inside = BTreeMap::<(u64, usize), usize>::new();
        let mut last = BTreeMap::<u64, usize>::new();
        for (number, (flow, bytes, urgent, passes, pops)) in steps.into_iter().enumerate() {
            now += Duration::from_millis(passes);
            let class = if urgent { Class::Urgent } else { Class::Data };
            inside.insert((flow, number), bytes);
            let mut gone = Vec::new();
            egress.push(label(flow), class, (flow, number, urgent), bytes, now, |item, _| gone.push((item, false)));
            for _ in 0..pops {
                let next = egress.pop(now, |item, _| gone.push((item, false)));
                gone.extend(next.map(|item| (item, true)));
            }
            for ((flow, number, urgent), sent) in gone {
                prop_assert!(inside.remove(&(flow, number)).is_some(), "twice");
                if sent && !urgent {
                    prop_assert!(last.insert(flow, number).is_none_or(|before| before < number));
                }
            }
            prop_assert_eq!(egress.bytes(), inside.values().sum::<usize>());
            prop_assert!(egress.bytes() <= BYTES);
            prop_assert_eq!(egress.is_empty(), inside.is_empty());
        }
    }
}

#[test]
fn a_pace_is_kept_whether_it_is_looked_at_often_or_seldom() {
    for step in [1, 4, 20] {
        let start = beginning();
        let mut now = start;
        let mut pace = Pace::new(1_000_000, now);
        let mut sent = 0;
        while now < start + Duration::from_secs(10) {
            while pace.at() <= now {
                pace.sent(1_288, now);
                sent += 1_288;
            }
            now += Duration::from_millis(step);
        }
        // What was missed for more than 5 ms is not made up for; a packet may go beyond.
        let made_up = (5.0 + 1.288) / step as f64;
        let most = (10_000_000.0 * made_up.min(1.0)) as usize + 10 * 1_288;
        let least = most * 3 / 4;
        assert!((least..=most).contains(&sent), "{step}: {sent}");
    }
}
