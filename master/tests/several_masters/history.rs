//! What clients asked and were answered, and whether one registry can have answered so.
//!
//! The masters together owe what one would: each registration that was acknowledged is there once, one
//! whose answer was lost at most once, a token serves once, an epoch has one content, and who reads is
//! shown what was acknowledged before the reading began.

use std::collections::{BTreeMap, BTreeSet};

/// Nodes and their keys.
pub(crate) type Nodes = BTreeMap<String, Vec<[u8; 32]>>;

/// A request and its answer. Times are from the beginning, by one clock.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) invoked: u128,
    pub(crate) completed: u128,
    pub(crate) what: What,
}

#[derive(Debug, Clone)]
pub(crate) enum What {
    Registration(Attempt),
    Reading(Reading),
}

/// An attempt to register.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) node: String,
    pub(crate) token: String,
    pub(crate) key: [u8; 32],
    pub(crate) answer: Answer,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    Refused,
    /// Nobody knows.
    Lost,
}

/// A roster that was read.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) epoch: u64,
    pub(crate) nodes: Nodes,
}

/// What is wrong with a history, `last` being the roster at its end and `audited` the nodes that the
/// audit log's registrations name.
pub(crate) fn check(history: &[Entry], last: &Reading, audited: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    registrations(history, last, audited, &mut wrong);
    epochs(history, last, &mut wrong);
    readings(history, &mut wrong);
    wrong
}

fn attempts(history: &[Entry]) -> impl Iterator<Item = (&Entry, &Attempt)> {
    history.iter().filter_map(|entry| match &entry.what {
        What::Registration(attempt) => Some((entry, attempt)),
        What::Reading(_) => None,
    })
}

fn read(history: &[Entry]) -> impl Iterator<Item = (&Entry, &Reading)> {
    history.iter().filter_map(|entry| match &entry.what {
        What::Reading(reading) => Some((entry, reading)),
        What::Registration(_) => None,
    })
}

/// Each token names one node, and is tried with one key or several.
fn registrations(history: &[Entry], last: &Reading, audited: &[String], wrong: &mut Vec<String>) {
    let mut tokens: BTreeMap<&str, Vec<&Attempt>> = BTreeMap::new();
    for (_, attempt) in attempts(history) {
        tokens.entry(&attempt.token).or_default().push(attempt);
    }
    for (token, attempts) in &tokens {
        let node = &attempts[0].node;
        let of = |answer| attempts.iter().filter(move |one| one.answer == answer);
        let lines = audited.iter().filter(|audited| *audited == node).count();
        let there = last.nodes.get(node);
        // Whoever has the key that the token served may ask again, and is answered again.
        let mut served: Vec<_> = of(Answer::Done).map(|one| one.key).collect();
        served.dedup();
        if served.len() > 1 {
            wrong.push(format!("token {token} served more than once"));
        }
        let may_be = |one: &&&Attempt| one.answer != Answer::Refused;
        let of_key = |key| {
            attempts
                .iter()
                .filter(may_be)
                .filter(move |one| one.key == key)
        };
        let most = attempts.iter().map(|one| of_key(one.key).count()).max();
        if lines > most.unwrap_or_default() || lines < of(Answer::Done).count() {
            wrong.push(format!("node {node} was registered {lines} times"));
        }
        if (lines > 0) != there.is_some() {
            wrong.push(format!(
                "node {node} is in only one of registry and audit log"
            ));
        }
        match (of(Answer::Done).next(), there) {
            (Some(done), Some(keys)) if *keys != [done.key] => {
                wrong.push(format!(
                    "node {node} has another key than the one acknowledged"
                ));
            }
            (Some(_), None) => wrong.push(format!("node {node} was acknowledged and is lost")),
            (None, Some(keys)) if of(Answer::Lost).all(|lost| *keys != [lost.key]) => {
                wrong.push(format!(
                    "node {node} is there, and nobody can have registered it"
                ));
            }
            _ => {}
        }
    }
    let known: BTreeSet<_> = attempts(history)
        .map(|(_, one)| one.node.as_str())
        .collect();
    for node in last
        .nodes
        .keys()
        .filter(|node| !known.contains(node.as_str()))
    {
        wrong.push(format!("node {node} was never asked for"));
    }
}

/// An epoch has one content, and later ones have what earlier ones had: nothing is taken away here.
fn epochs(history: &[Entry], last: &Reading, wrong: &mut Vec<String>) {
    let mut epochs: BTreeMap<u64, &Nodes> = BTreeMap::new();
    for reading in read(history).map(|(_, reading)| reading).chain([last]) {
        let first = epochs.entry(reading.epoch).or_insert(&reading.nodes);
        if **first != reading.nodes {
            wrong.push(format!("epoch {} has two contents", reading.epoch));
        }
    }
    let pairs = epochs.iter().zip(epochs.iter().skip(1));
    for ((epoch, nodes), (next, later)) in pairs {
        if nodes
            .iter()
            .any(|(node, keys)| later.get(node) != Some(keys))
        {
            wrong.push(format!("epoch {next} lacks something of epoch {epoch}"));
        }
    }
    if let Some((newest, _)) = epochs.last_key_value()
        && *newest > last.epoch
    {
        wrong.push(format!(
            "epoch {newest} was read, and the last is {}",
            last.epoch
        ));
    }
}

/// Who reads is shown what was acknowledged, and what was read, before the reading began.
fn readings(history: &[Entry], wrong: &mut Vec<String>) {
    // What was known before is what counts: by the times at which it became known.
    let mut done: Vec<_> = attempts(history)
        .filter(|(_, attempt)| attempt.answer == Answer::Done)
        .collect();
    done.sort_by_key(|(entry, _)| entry.completed);
    let mut seen: Vec<_> = read(history).collect();
    seen.sort_by_key(|(entry, _)| entry.completed);
    for (entry, reading) in read(history) {
        let before = seen
            .iter()
            .take_while(|(other, _)| other.completed < entry.invoked);
        let newest = before.map(|(_, other)| other.epoch).max();
        if newest.is_some_and(|newest| newest > reading.epoch) {
            wrong.push(format!(
                "epoch {} was read after epoch {newest:?}",
                reading.epoch
            ));
        }
        for (_, attempt) in done
            .iter()
            .take_while(|(other, _)| other.completed < entry.invoked)
        {
            if reading.nodes.get(&attempt.node) != Some(&vec![attempt.key]) {
                wrong.push(format!(
                    "epoch {} was read without node {}, which was acknowledged before",
                    reading.epoch, attempt.node
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(invoked: u128, node: &str, key: u8, answer: Answer) -> Entry {
        Entry {
            invoked,
            completed: invoked + 1,
            what: What::Registration(Attempt {
                node: node.to_owned(),
                token: format!("token of {node}"),
                key: [key; 32],
                answer,
            }),
        }
    }

    fn reading(epoch: u64, nodes: &[(&str, u8)]) -> Reading {
        let nodes = nodes.iter();
        let nodes = nodes.map(|(node, key)| ((*node).to_owned(), vec![[*key; 32]]));
        Reading {
            epoch,
            nodes: nodes.collect(),
        }
    }

    fn read(invoked: u128, epoch: u64, nodes: &[(&str, u8)]) -> Entry {
        Entry {
            invoked,
            completed: invoked + 1,
            what: What::Reading(reading(epoch, nodes)),
        }
    }

    fn wrong(history: &[Entry], last: Reading, audited: &[&str]) -> String {
        let audited: Vec<_> = audited.iter().map(|node| (*node).to_owned()).collect();
        check(history, &last, &audited).join("; ")
    }

    use Answer::{Done, Lost, Refused};

    #[test]
    fn a_history_as_of_one_registry_holds() {
        let history = [
            attempt(0, "a", 1, Done),
            attempt(0, "a", 2, Refused),
            read(2, 1, &[("a", 1)]),
            attempt(3, "b", 3, Lost),
            attempt(3, "c", 4, Lost),
            // While b was being registered, or not.
            read(3, 2, &[("a", 1), ("b", 3)]),
            read(3, 1, &[("a", 1)]),
            // Its answer was lost, and it asked again.
            attempt(5, "d", 5, Lost),
            attempt(7, "d", 5, Done),
        ];
        let last = reading(3, &[("a", 1), ("b", 3), ("d", 5)]);
        assert_eq!(wrong(&history, last, &["a", "b", "d", "d"]), "");
    }

    #[test]
    fn what_no_registry_can_have_answered_is_found() {
        let a = || attempt(0, "a", 1, Done);
        let there = || reading(5, &[("a", 1)]);
        for (history, last, audited, found) in [
            (vec![a()], reading(5, &[]), &[][..], "is lost"),
            (vec![a()], there(), &["a", "a"], "registered 2 times"),
            (vec![a()], there(), &[], "only one of"),
            (vec![a()], reading(5, &[("a", 2)]), &["a"], "another key"),
            (
                vec![a(), attempt(0, "a", 2, Done)],
                there(),
                &["a"],
                "more than once",
            ),
            (
                vec![attempt(0, "a", 1, Refused)],
                there(),
                &["a"],
                "nobody can have",
            ),
            (
                vec![a()],
                reading(5, &[("a", 1), ("x", 1)]),
                &["a"],
                "never asked for",
            ),
            (
                vec![a(), read(2, 4, &[])],
                there(),
                &["a"],
                "without node a",
            ),
            (vec![a(), read(0, 5, &[])], there(), &["a"], "two contents"),
            (
                vec![a(), read(2, 4, &[("a", 1)]), read(4, 3, &[("a", 1)])],
                there(),
                &["a"],
                "epoch 3 was read after epoch",
            ),
            (
                vec![a(), read(2, 6, &[("a", 1)])],
                there(),
                &["a"],
                "the last is 5",
            ),
            (
                vec![a(), attempt(0, "b", 2, Lost), read(0, 4, &[("b", 2)])],
                there(),
                &["a"],
                "lacks something",
            ),
        ] {
            let wrong = wrong(&history, last, audited);
            assert!(wrong.contains(found), "{found}: {wrong}");
        }
    }
}
