//! Keys by name, for very many names. A look-up reads one line of memory for the name; a change copies a small
//! piece of the table and shares the rest.

use std::{hash::BuildHasher as _, sync::Arc};

use foldhash::fast::FixedState;
use rustls::sign::CertifiedKey;

use crate::random;

/// Pieces of a table. With 100,000 names a change copies one of some 200 names, and a pointer for each.
const PIECES: usize = 512;
/// Longest name that is kept in its slot. Longer ones cost a look-up one line of memory more.
const INLINE: usize = 46;

/// Keys by name. Never changed, only replaced. Names are lower case.
#[derive(Clone)]
pub(super) struct Names {
    /// Seeded at random: who chooses names does not choose where they are.
    hasher: FixedState,
    pieces: Box<[Piece]>,
}

/// A table with open addressing: a power of two of slots, one of which at least is empty.
type Piece = Arc<[Slot]>;

/// What belongs together in one line of memory.
#[derive(Clone, Default)]
#[repr(align(64))]
struct Slot {
    hash: u64,
    /// None of an empty slot.
    key: Option<Arc<CertifiedKey>>,
    name: Name,
}

const _: () = assert!(size_of::<Slot>() == 64);

#[derive(Clone)]
enum Name {
    Inline { length: u8, bytes: [u8; INLINE] },
    Long(Box<[u8]>),
}

/// A name, and the key it is to have; it loses the one it had if there is none.
pub(super) type Change<'a> = (&'a str, Option<&'a Arc<CertifiedKey>>);

impl Default for Names {
    fn default() -> Self {
        let empty = piece_with(Vec::new());
        Self {
            hasher: FixedState::with_seed(u64::from_ne_bytes(random::bytes())),
            pieces: vec![empty; PIECES].into(),
        }
    }
}

impl Names {
    /// Takes no lock and allocates nothing.
    pub(super) fn get(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let hash = self.hash(name);
        let slots = &self.pieces[piece_of(hash)];
        let mut place = first_place(hash, slots.len());
        loop {
            let slot = &slots[place];
            // An empty slot ends the search.
            let key = slot.key.as_ref()?;
            if slot.hash == hash && slot.name.is(name) {
                return Some(key);
            }
            place = (place + 1) & (slots.len() - 1);
        }
    }

    /// These with changes; of each name there is one at most.
    pub(super) fn with(&self, changes: &[Change<'_>]) -> Self {
        let mut next = self.clone();
        let mut changes: Vec<_> = changes
            .iter()
            .map(|(name, key)| (self.hash(name), *name, *key))
            .collect();
        changes.sort_unstable_by_key(|(hash, ..)| (piece_of(*hash), *hash));
        for changes in changes.chunk_by(|a, b| piece_of(a.0) == piece_of(b.0)) {
            let piece = &mut next.pieces[piece_of(changes[0].0)];
            let is_changed = |slot: &Slot| {
                let from = changes.partition_point(|(hash, ..)| *hash < slot.hash);
                let same = changes[from..]
                    .iter()
                    .take_while(|(hash, ..)| *hash == slot.hash);
                same.into_iter().any(|(_, name, _)| slot.name.is(name))
            };
            let used = piece.iter().filter(|slot| slot.key.is_some());
            let mut slots: Vec<_> = used.filter(|slot| !is_changed(slot)).cloned().collect();
            slots.extend(changes.iter().filter_map(|(hash, name, key)| {
                Some(Slot {
                    hash: *hash,
                    key: Some((*key)?.clone()),
                    name: Name::new(name),
                })
            }));
            *piece = piece_with(slots);
        }
        next
    }

    fn hash(&self, name: &str) -> u64 {
        self.hasher.hash_one(name.as_bytes())
    }
}

fn piece_with(used: Vec<Slot>) -> Piece {
    // Three of four are used at most: a search ends in the next line or two.
    let length = (used.len() * 4 / 3 + 1).next_power_of_two();
    let mut slots = vec![Slot::default(); length];
    for slot in used {
        let mut place = first_place(slot.hash, length);
        while slots[place].key.is_some() {
            place = (place + 1) & (length - 1);
        }
        slots[place] = slot;
    }
    slots.into()
}

/// By other bits than those that tell the place in it.
fn piece_of(hash: u64) -> usize {
    (hash >> 32) as usize % PIECES
}

/// `length` is a power of two.
fn first_place(hash: u64, length: usize) -> usize {
    hash as usize & (length - 1)
}

impl Name {
    fn new(name: &str) -> Self {
        let mut bytes = [0; INLINE];
        match (bytes.get_mut(..name.len()), u8::try_from(name.len())) {
            (Some(room), Ok(length)) => {
                room.copy_from_slice(name.as_bytes());
                Self::Inline { length, bytes }
            }
            _ => Self::Long(name.as_bytes().into()),
        }
    }

    fn is(&self, name: &str) -> bool {
        match self {
            Self::Inline { length, bytes } => bytes[..usize::from(*length)] == *name.as_bytes(),
            Self::Long(bytes) => **bytes == *name.as_bytes(),
        }
    }
}

impl Default for Name {
    fn default() -> Self {
        Self::new("")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::cert::{DevelopmentAuthority, store::certified_key};

    fn key() -> Arc<CertifiedKey> {
        let directory = tempfile::tempdir().unwrap();
        let authority = DevelopmentAuthority::open(directory.path()).unwrap();
        authority.issue("a", &["localhost"]).unwrap();
        let file = |end| directory.path().join(end);
        Arc::new(certified_key(&file("a.crt"), &file("a.key")).unwrap())
    }

    /// Names with a length around the longest that has its place in a slot, and short ones that meet again.
    fn name() -> impl Strategy<Value = String> {
        prop_oneof!["[a-c]{1,3}", "[ab]{44,48}", Just("x".repeat(300))]
    }

    proptest! {
        #[test]
        fn it_is_a_map_and_what_was_there_before_does_not_change(
            steps in prop::collection::vec(
                prop::collection::hash_map(name(), any::<bool>(), 0..40),
                0..12,
            ),
        ) {
            let keys = [key(), key()];
            let (mut names, mut model) = (Names::default(), HashMap::new());
            for (turn, step) in steps.iter().enumerate() {
                let key = &keys[turn % 2];
                let changes: Vec<_> = step
                    .iter()
                    .map(|(name, is_there)| (name.as_str(), is_there.then_some(key)))
                    .collect();
                let next = names.with(&changes);
                let known: Vec<_> = steps.iter().flat_map(|step| step.keys()).collect();
                for name in &known {
                    let is_same = match (names.get(name), model.get(name.as_str())) {
                        (Some(found), Some(expected)) => Arc::ptr_eq(found, expected),
                        (found, expected) => found.is_none() && expected.is_none(),
                    };
                    prop_assert!(is_same);
                }
                for (name, key) in changes {
                    match key {
                        Some(key) => drop(model.insert(name, key.clone())),
                        None => drop(model.remove(name)),
                    }
                }
                names = next;
            }
            for (name, key) in model {
                prop_assert!(names.get(name).is_some_and(|found| Arc::ptr_eq(found, &key)));
            }
        }
    }

    #[test]
    fn many_names_are_spread_over_the_pieces_and_their_slots() {
        let key = key();
        let names: Vec<_> = (0..100_000)
            .map(|n| format!("service-{n}.example"))
            .collect();
        let changes: Vec<_> = names
            .iter()
            .map(|name| (name.as_str(), Some(&key)))
            .collect();
        let table = Names::default().with(&changes);
        assert!(names.iter().all(|name| table.get(name).is_some()));
        assert!(table.get("service-100000.example").is_none());
        let used = |piece: &Piece| piece.iter().filter(|slot| slot.key.is_some()).count();
        let largest = table.pieces.iter().map(used).max().unwrap();
        assert!(largest < 2 * 100_000 / PIECES, "{largest}");
        // How far names are from where they are looked for first.
        let far = table.pieces.iter().flat_map(|piece| {
            let used = piece
                .iter()
                .enumerate()
                .filter(|(_, slot)| slot.key.is_some());
            used.map(|(place, slot)| {
                place.wrapping_sub(first_place(slot.hash, piece.len())) & (piece.len() - 1)
            })
        });
        let mean = far.sum::<usize>() as f64 / 100_000.0;
        assert!(mean < 2.0, "{mean}");
    }
}
