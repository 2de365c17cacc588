use super::*;
use crate::overlay::beginning;

/// Believes nobody.
pub(in crate::overlay) struct Nobody;

impl Verifier for Nobody {
    fn verify(&self, _: &[u8]) -> Result<Verified, Unfit> {
        Err(Unfit::Forged)
    }

    fn trusts(&self, _: &KeyId) -> bool {
        false
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// What there is at each second, when a master answers (`+`), or none does (`-`), from second to second.
fn silence(heard: &str) -> String {
    let (mut silence, mut now) = (Silence::new(beginning()), beginning());
    let mut at = |answers: char| {
        now += SECOND;
        silence.hears(answers == '+', now);
        if silence.is_at(now) { 's' } else { '.' }
    };
    heard.chars().map(&mut at).collect()
}

fn seconds(parts: &[(char, usize)]) -> String {
    let part = |(what, count): &(char, usize)| what.to_string().repeat(*count);
    parts.iter().map(part).collect()
}

#[test]
fn silence_begins_when_no_master_has_answered_for_a_while_and_ends_a_while_after_one_has() {
    for (heard, said) in [
        (&[('+', 200)][..], &[('.', 200)][..]),
        // One that is restarted is no silence.
        (&[('+', 5), ('-', 29), ('+', 9)], &[('.', 43)]),
        (
            &[('+', 5), ('-', 100), ('+', 100)],
            &[('.', 35), ('s', 130), ('.', 40)],
        ),
        // None since the start, for a moment or for long.
        (&[('-', 20), ('+', 50)], &[('s', 20), ('.', 50)]),
        (&[('-', 50), ('+', 70)], &[('s', 110), ('.', 10)]),
        // One that answers now and then does not draw it out.
        (
            &[
                ('+', 1),
                ('-', 40),
                ('+', 1),
                ('-', 20),
                ('+', 1),
                ('-', 20),
                ('+', 1),
                ('-', 29),
            ],
            &[('.', 31), ('s', 70), ('.', 12)],
        ),
        (
            &[('+', 1), ('-', 40), ('+', 5), ('-', 90), ('+', 61)],
            &[('.', 31), ('s', 165), ('.', 1)],
        ),
        (
            &[('+', 1), ('-', 40), ('+', 70), ('-', 40)],
            &[('.', 31), ('s', 70), ('.', 40), ('s', 10)],
        ),
    ] {
        assert_eq!(silence(&seconds(heard)), seconds(said), "{heard:?}");
    }
}

mod relays;
