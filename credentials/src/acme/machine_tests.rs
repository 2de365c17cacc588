use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{super::schedule::Record, *};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

fn at(seconds: u64) -> Time {
    Duration::from_secs(seconds)
}

fn fresh(authorities: usize) -> Machine {
    Machine::new(vec![Backoff::default(); authorities], None)
}

fn stands(standing: Standing) -> Event {
    Event::Stands {
        standing,
        look: None,
    }
}

fn failed(reason: Reason) -> Event {
    Event::Failed(Failure { reason, wish: None })
}

fn certificate(start: u64, lifetime: u64, authority: usize) -> Certificate {
    Certificate {
        validity: Validity {
            start: at(start),
            end: at(start + lifetime),
        },
        authority: Some(authority),
        fits: true,
        chance: 0,
    }
}

/// What an authority that does its work answers at `now`.
fn good(action: Action, authority: usize, now: u64) -> Event {
    match action {
        Action::Wait(_) => panic!("nothing is asked"),
        Action::AskWindow { .. } => Event::Window {
            window: None,
            again: None,
        },
        Action::Open { .. } => Event::Opened,
        Action::Order { .. } | Action::Resume => stands(Standing::Pending),
        Action::Answer => Event::Answering,
        Action::Announce => Event::Announced,
        Action::Look => stands(Standing::Ready),
        Action::Finalise => stands(Standing::Valid),
        Action::Download => Event::Downloaded,
        Action::Install => Event::Installed(certificate(now, 90 * DAY, authority)),
    }
}

/// Runs until the machine rests; what it did, and until when it rests.
fn run(machine: &mut Machine, now: u64) -> (Vec<Action>, Time) {
    let (mut done, mut time) = (Vec::new(), at(now));
    loop {
        match machine.next(time, 0) {
            Action::Wait(until) if until < time + at(MINUTE) => time = until,
            Action::Wait(until) => return (done, until),
            action => {
                done.push(action);
                let authority = machine.authority().unwrap_or(0);
                machine.happened(good(action, authority, now), time, 0);
            }
        }
    }
}

#[test]
fn from_nothing_to_a_certificate_and_to_the_next_one() {
    let mut machine = fresh(1);
    let order = |replacing| {
        [
            Action::Open { authority: 0 },
            Action::Order { replacing },
            Action::Answer,
            Action::Announce,
            Action::Look,
            Action::Finalise,
            Action::Download,
            Action::Install,
            Action::AskWindow { authority: 0 },
        ]
    };
    let (done, rests) = run(&mut machine, 1000);
    assert_eq!(done, order(false));
    let asked_again = at(1000 + 6 * HOUR);
    assert!(
        rests >= asked_again && rests < asked_again + at(1),
        "{rests:?}"
    );
    assert_eq!(machine.due(), at(1000 + 60 * DAY));
    machine.ask_at = at(100 * DAY);
    let (done, _) = run(&mut machine, 1000 + 60 * DAY);
    assert_eq!(done[..9], order(true));
}

#[test]
fn what_holds_already_is_not_validated_again() {
    let mut machine = fresh(1);
    machine.next(at(0), 0);
    machine.happened(Event::Opened, at(0), 0);
    assert_eq!(machine.next(at(0), 0), Action::Order { replacing: false });
    machine.happened(stands(Standing::Ready), at(0), 0);
    assert_eq!(machine.next(at(0), 0), Action::Finalise);
}

#[test]
fn an_order_is_gone_on_with_from_where_it_stands_though_its_authority_is_left_alone() {
    for (standing, next) in [
        (Standing::Pending, Action::Answer),
        (Standing::Ready, Action::Finalise),
        (Standing::Valid, Action::Download),
        (Standing::Invalid, Action::Order { replacing: false }),
    ] {
        let mut machine = fresh(1);
        let mut backoff = Backoff::default();
        backoff.begin(at(0), 0);
        machine.fared(vec![backoff]);
        assert!(!machine.begins(at(1)));
        machine.resume(0, at(1));
        assert_eq!(machine.next(at(1), 0), Action::Open { authority: 0 });
        machine.happened(Event::Opened, at(1), 0);
        assert_eq!(machine.next(at(1), 0), Action::Resume);
        machine.happened(stands(standing), at(1), 0);
        assert_eq!(machine.next(at(1), 0), next);
        assert_eq!(machine.backoffs(), [backoff], "it is no attempt more");
    }
    // It is being issued: it is looked at until it is there.
    let mut machine = fresh(1);
    machine.resume(0, at(1));
    machine.happened(Event::Opened, at(1), 0);
    machine.happened(stands(Standing::Processing), at(1), 0);
    assert!(matches!(machine.next(at(1), 0), Action::Wait(_)));
    assert_eq!(machine.next(at(2), 0), Action::Look);
    machine.happened(stands(Standing::Valid), at(2), 0);
    assert_eq!(machine.next(at(2), 0), Action::Download);
}

#[test]
fn who_loses_the_right_to_order_blames_nobody_and_waits_for_what_the_other_obtains() {
    let mut machine = fresh(1);
    assert!(machine.begins(at(0)));
    machine.next(at(0), 0);
    assert!(!machine.begins(at(0)), "it has begun");
    machine.fared(vec![Backoff::default()]);
    machine.abandon();
    assert!(machine.begins(at(0)));
    machine.replaced(certificate(0, 90 * DAY, 0), at(0));
    assert_eq!(machine.next(at(0), 0), Action::AskWindow { authority: 0 });
    assert!(!machine.begins(at(0)));
    assert_eq!(machine.due(), at(60 * DAY));
}

#[test]
fn an_authority_that_fails_is_left_alone_and_the_next_one_is_asked_at_once() {
    let mut machine = fresh(2);
    assert_eq!(machine.next(at(0), 0), Action::Open { authority: 0 });
    machine.happened(failed(Reason::Unreachable), at(0), 0);
    assert_eq!(machine.next(at(0), 0), Action::Open { authority: 1 });
    machine.happened(failed(Reason::Server), at(0), 0);
    assert_eq!(machine.next(at(0), 0), Action::Wait(at(30)));
    assert_eq!(machine.next(at(30), 0), Action::Open { authority: 0 });
}

#[test]
fn an_authority_that_is_away_for_two_days_is_asked_ever_more_rarely_and_issues_when_it_is_back() {
    let in_use = certificate(0, 90 * DAY, 0);
    let mut machine = Machine::new(vec![Backoff::default()], Some(in_use));
    machine.ask_at = at(90 * DAY);
    let away = machine.due();
    let back = away + at(2 * DAY);
    let (mut now, mut waits) = (away, Vec::new());
    while now < back {
        assert_eq!(machine.next(now, u16::MAX), Action::Open { authority: 0 });
        machine.happened(failed(Reason::Unreachable), now, u16::MAX);
        let Action::Wait(until) = machine.next(now, u16::MAX) else {
            panic!("it is not left alone");
        };
        waits.push((until - now).as_secs());
        now = until;
    }
    assert_eq!(waits[..3], [MINUTE, 2 * MINUTE, 4 * MINUTE]);
    assert!(waits.is_sorted() && waits.iter().all(|wait| *wait <= 6 * HOUR));
    assert!(waits.len() < 20, "asked {} times in two days", waits.len());
    // What was in use is in use, and another one six hours after the authority is back at the latest.
    assert_eq!(machine.certificate, Some(in_use));
    assert!(now < back + at(6 * HOUR));
    let (done, _) = run(&mut machine, now.as_secs());
    assert!(done.contains(&Action::Install), "{done:?}");
}

#[test]
fn what_an_operator_wants_is_done_before_its_time_and_to_whom_failed_only_at_once() {
    let in_use = certificate(0, 90 * DAY, 0);
    let mut machine = Machine::new(vec![Backoff::default()], Some(in_use));
    machine.ask_at = at(90 * DAY);
    machine.want(false);
    assert_eq!(machine.next(at(DAY), 0), Action::Open { authority: 0 });
    machine.happened(failed(Reason::Dns), at(DAY), 0);
    machine.want(false);
    assert_eq!(machine.next(at(DAY), 0), Action::Wait(at(DAY + 30)));
    machine.want(true);
    let (done, _) = run(&mut machine, DAY);
    assert!(done.contains(&Action::Install), "{done:?}");
    // It was wanted once.
    assert_eq!(machine.due(), at(61 * DAY));
}

#[test]
fn a_limit_is_kept_to_and_one_without_a_time_means_an_hour() {
    let mut machine = fresh(1);
    machine.next(at(0), 0);
    let limited = Failure {
        reason: Reason::RateLimited,
        wish: Some(at(3 * HOUR)),
    };
    machine.happened(Event::Failed(limited), at(0), 0);
    assert_eq!(machine.next(at(1), 0), Action::Wait(at(3 * HOUR)));
    machine.next(at(3 * HOUR), 0);
    machine.happened(failed(Reason::RateLimited), at(3 * HOUR), 0);
    assert_eq!(machine.next(at(3 * HOUR), 0), Action::Wait(at(4 * HOUR)));
}

#[test]
fn an_attempt_that_ends_with_its_process_counts_as_one_that_failed() {
    let mut machine = fresh(1);
    machine.next(at(0), 0);
    machine.happened(Event::Opened, at(0), 0);
    let record = Record::new([("a", machine.backoffs()[0])].into_iter());
    let mut machine = Machine::new(record.of(["a"].into_iter(), at(1)), None);
    assert_eq!(machine.next(at(1), 0), Action::Wait(at(30)));
}

#[test]
fn a_window_moves_the_renewal_and_one_in_the_past_means_now() {
    let mut machine = Machine::new(vec![Backoff::default()], Some(certificate(0, 90 * DAY, 0)));
    let ask = Action::AskWindow { authority: 0 };
    assert_eq!(machine.next(at(DAY), 0), ask);
    let window = |start, end| Event::Window {
        window: Some(Window {
            start: at(start),
            end: at(end),
        }),
        again: Some(at(1)),
    };
    machine.happened(window(10 * DAY, 11 * DAY), at(DAY), 0);
    assert_eq!(machine.due(), at(10 * DAY));
    assert_eq!(machine.next(at(DAY), 0), Action::Wait(at(DAY + MINUTE)));
    assert_eq!(machine.next(at(DAY + MINUTE), 0), ask);
    machine.happened(window(10, 20), at(DAY + MINUTE), 0);
    assert_eq!(
        machine.next(at(DAY + MINUTE), 0),
        Action::Open { authority: 0 }
    );
    machine.happened(Event::Opened, at(DAY + MINUTE), 0);
    let order = Action::Order { replacing: true };
    assert_eq!(machine.next(at(DAY + MINUTE), 0), order);
    machine.happened(Event::ReplacesNothing, at(DAY + MINUTE), 0);
    let order = Action::Order { replacing: false };
    assert_eq!(machine.next(at(DAY + MINUTE), 0), order);
}

#[test]
fn a_certificate_of_an_authority_that_is_no_more_is_renewed_by_the_calendar() {
    let mut old = certificate(0, 90 * DAY, 0);
    old.authority = None;
    let mut machine = Machine::new(vec![Backoff::default()], Some(old));
    assert_eq!(machine.next(at(DAY), 0), Action::Wait(at(60 * DAY)));
    machine.next(at(60 * DAY), 0);
    machine.happened(Event::Opened, at(60 * DAY), 0);
    let order = Action::Order { replacing: false };
    assert_eq!(machine.next(at(60 * DAY), 0), order);
}

#[test]
fn a_certificate_that_does_not_have_the_names_is_replaced_at_once() {
    let mut other = certificate(0, 90 * DAY, 0);
    (other.fits, other.authority) = (false, None);
    let mut machine = Machine::new(vec![Backoff::default()], Some(other));
    assert_eq!(machine.next(at(DAY), 0), Action::Open { authority: 0 });
}

#[test]
fn an_order_that_never_becomes_ready_times_out() {
    let mut machine = fresh(1);
    for event in [
        Event::Opened,
        stands(Standing::Pending),
        Event::Answering,
        Event::Announced,
    ] {
        machine.next(at(0), 0);
        machine.happened(event, at(0), 0);
    }
    let (mut now, mut looks) = (at(0), 0);
    while machine.authority().is_some() {
        match machine.next(now, 0) {
            Action::Wait(until) => now = until,
            Action::Look => {
                looks += 1;
                machine.happened(stands(Standing::Pending), now, 0);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(now < at(15 * MINUTE) && now > at(14 * MINUTE), "{now:?}");
    assert!((100..130).contains(&looks), "{looks} looks");
}

#[test]
fn an_order_that_is_further_than_we_are_is_no_use() {
    for standing in [Standing::Valid, Standing::Processing] {
        let mut machine = fresh(1);
        machine.next(at(0), 0);
        machine.happened(Event::Opened, at(0), 0);
        machine.happened(stands(standing), at(0), 0);
        assert_eq!(machine.authority(), None, "{standing:?}");
    }
}

/// An authority in the simulation: what happens to a request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Good,
    Fails(Reason),
    /// What was asked for is answered by the answer to something else.
    Confused,
    Limited(u64),
    /// The process ends, and is started again later.
    Killed(u64),
    /// The system's clock jumps.
    Jump(i64),
}

fn fate() -> impl Strategy<Value = Fate> {
    let reason = prop::sample::select(vec![
        Reason::Unreachable,
        Reason::Timeout,
        Reason::Server,
        Reason::Malformed,
        Reason::AccountGone,
        Reason::Refused,
        Reason::Validation,
        Reason::Certificate,
        Reason::Storage,
    ]);
    prop_oneof![
        6 => Just(Fate::Good),
        3 => reason.prop_map(Fate::Fails),
        1 => Just(Fate::Confused),
        1 => (0..2 * DAY).prop_map(Fate::Limited),
        1 => (0..HOUR).prop_map(Fate::Killed),
        1 => (-(DAY as i64)..DAY as i64).prop_map(Fate::Jump),
    ]
}

/// A gateway's life of years, in which things go wrong as told and then go well.
struct World {
    machine: Machine,
    now: Time,
    /// What is in use, over restarts.
    certificate: Option<Certificate>,
    /// When each attempt at each authority began.
    attempts: Vec<Vec<Time>>,
    issued: u64,
    jumped: bool,
}

impl World {
    fn new(authorities: usize) -> Self {
        Self {
            machine: fresh(authorities),
            now: at(1_800_000_000),
            certificate: None,
            attempts: vec![Vec::new(); authorities],
            issued: 0,
            jumped: false,
        }
    }

    /// One action, or the wait for it.
    fn step(&mut self, fate: Fate, chance: u16) {
        let before = self.machine.authority();
        let action = self.machine.next(self.now, chance);
        if let (None, Some(authority)) = (before, self.machine.authority()) {
            self.attempts[authority].push(self.now);
        }
        if let Action::Wait(until) = action {
            assert!(until > self.now, "a wait for what is past never ends");
            assert!(until < self.now + at(400 * DAY));
            self.now = until;
            return;
        }
        let authority = self.machine.authority().unwrap_or_default();
        let event = match fate {
            Fate::Good => good(action, authority, self.now.as_secs()),
            Fate::Fails(_) if matches!(action, Action::AskWindow { .. }) => Event::Window {
                window: None,
                again: None,
            },
            Fate::Fails(reason) => failed(reason),
            Fate::Confused => Event::Downloaded,
            Fate::Limited(seconds) => Event::Failed(Failure {
                reason: Reason::RateLimited,
                wish: Some(self.now + at(seconds)),
            }),
            Fate::Killed(seconds) => {
                self.now += at(seconds);
                let names: Vec<_> = (0..self.attempts.len()).map(|i| i.to_string()).collect();
                let names = names.iter().map(String::as_str);
                let kept = names.clone().zip(self.machine.backoffs().iter().copied());
                let record = Record::new(kept).of(names, self.now);
                self.machine = Machine::new(record, self.certificate);
                return;
            }
            Fate::Jump(seconds) => {
                self.jumped = true;
                self.now = match u64::try_from(seconds) {
                    Ok(seconds) => self.now + at(seconds),
                    Err(_) => self.now - at(seconds.unsigned_abs()),
                };
                return;
            }
        };
        self.now += Duration::from_millis(100);
        if let Event::Installed(certificate) = event {
            self.certificate = Some(certificate);
            self.issued += 1;
            // An authority that has issued may be asked at once again.
            self.attempts[authority].clear();
        }
        self.machine.happened(event, self.now, chance);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 300 } else { 3000 }))]

    #[test]
    fn whatever_goes_wrong_authorities_are_left_alone_and_a_certificate_comes_in_the_end(
        authorities in 1..4_usize,
        fates in prop::collection::vec((fate(), any::<u16>()), 0..200),
    ) {
        let mut world = World::new(authorities);
        for (fate, chance) in fates {
            world.step(fate, chance);
        }
        if !world.jumped {
            for attempts in &world.attempts {
                for pair in attempts.windows(2) {
                    prop_assert!(pair[1] - pair[0] >= at(29), "{pair:?}");
                }
            }
        }
        // All is well from here on: within the longest wait and one attempt there is a certificate, and
        // in the years after that never one that has expired.
        let (issued, trouble_ends) = (world.issued, world.now);
        while world.now < trouble_ends + at(8 * DAY) {
            world.step(Fate::Good, 0);
        }
        let certificate = world.certificate;
        prop_assert!(certificate.is_some_and(|c| c.validity.end > world.now));
        let mut seen = BTreeSet::new();
        while world.now < trouble_ends + at(3 * 365 * DAY) {
            world.step(Fate::Good, 0);
            let end = world.certificate.unwrap().validity.end;
            prop_assert!(end > world.now);
            seen.insert(end);
        }
        prop_assert!((15..22).contains(&seen.len()), "{} in three years", seen.len());
        prop_assert!(world.issued > issued);
    }

    #[test]
    fn an_authority_that_is_away_for_hours_is_asked_ever_less_and_used_when_it_is_back(
        hours in 1..100_u64,
        chance: u16,
    ) {
        let mut world = World::new(1);
        let back = world.now + at(hours * HOUR);
        while world.now < back {
            world.step(Fate::Fails(Reason::Unreachable), chance);
        }
        // 1, 2, 4 … minutes, half of each perhaps, up to six hours.
        prop_assert!(world.attempts[0].len() as u64 <= 11 + hours / 3);
        while world.certificate.is_none() {
            world.step(Fate::Good, chance);
        }
        prop_assert!(world.now < back + at(6 * HOUR + MINUTE));
    }
}
