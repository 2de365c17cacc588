//! The keys that wrap entries' keys, one for each term, and what they vouch for.
//!
//! A term's key is wrapped under the master key, an entry's key under that of the current term. What
//! is encrypted names its place in its associated data: KeyVault, kind, path, revision, key. So nothing
//! opens in another's place.

use std::{collections::BTreeMap, sync::Arc};

use wavry_credentials::{
    key::{
        MacKey,
        aead::{self, Forged},
    },
    random,
    secret::Secret,
};

use super::store::{Head, Row, WrappedTerm};

/// The first term.
const FIRST: u32 = 1;

/// An open keyring.
pub(super) struct Keyring {
    vault: [u8; 16],
    pub(super) generation: u64,
    pub(super) current: u32,
    terms: BTreeMap<u32, Term>,
    /// The key it was opened with: opens what other processes add to it.
    master_key: Arc<aead::Key>,
}

struct Term {
    key: aead::Key,
    mac: MacKey,
}

/// Why a row of the store is not an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// Its term is not in this keyring: the keyring is old, or the row is.
    UnknownTerm,
    /// It was changed, or is another's.
    Forged,
}

/// Why a keyring cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    /// No key of it is wrapped under this one.
    #[error("the keyring is not under master key {given}, but under {wanted}")]
    OtherKey {
        /// Id of the key that was given.
        given: String,
        /// Ids of those that open it.
        wanted: String,
    },
    /// It was changed.
    #[error("the keyring was changed: term {term} does not authenticate")]
    Forged {
        /// The term whose key is not what was wrapped.
        term: u32,
    },
    /// The head was changed.
    #[error("the head of the store was changed: it does not authenticate")]
    Head,
}

impl Keyring {
    /// A new keyring's head, and its one term under `master_key`.
    pub(super) fn generate(master_key: &aead::Key, now: u64) -> (Head, WrappedTerm) {
        let vault = random::bytes();
        let key = aead::Key::generate();
        let wrapped = wrap(&vault, FIRST, now, master_key, &key);
        let mut head = Head {
            vault,
            position: 0,
            generation: 1,
            term: FIRST,
            master_key: master_key.id(),
            wraps: 0,
            digest: [0; 32],
            mac: [0; 32],
        };
        head.mac = Term::new(key).head_mac(&head);
        (head, wrapped)
    }

    /// Opens the keyring that a store keeps.
    pub(super) fn open(
        head: &Head,
        wrapped: &[WrappedTerm],
        master_key: Arc<aead::Key>,
    ) -> Result<Self, Unopened> {
        let id = master_key.id();
        let mut terms = BTreeMap::new();
        for wrapped in wrapped.iter().filter(|wrapped| wrapped.master_key == id) {
            let context = term_context(&head.vault, wrapped.term, wrapped.created, &id);
            let key = master_key.unwrap(&context, &wrapped.wrapped_key);
            let term = wrapped.term;
            let key = key.map_err(|Forged| Unopened::Forged { term })?;
            terms.insert(term, Term::new(key));
        }
        if terms.is_empty() {
            let mut wanted: Vec<_> = wrapped.iter().map(|term| &*term.master_key).collect();
            wanted.sort_unstable();
            wanted.dedup();
            return Err(Unopened::OtherKey {
                given: id,
                wanted: wanted.join(", "),
            });
        }
        let keyring = Self {
            vault: head.vault,
            generation: head.generation,
            current: head.term,
            terms,
            master_key,
        };
        match keyring.vouches_for(head) {
            true => Ok(keyring),
            false => Err(Unopened::Head),
        }
    }

    /// The same keyring as it is now in the store, by the same master key.
    pub(super) fn reopen(&self, head: &Head, wrapped: &[WrappedTerm]) -> Result<Self, Unopened> {
        Self::open(head, wrapped, self.master_key.clone())
    }

    /// A keyring with one term more, which is current, and what the store is to keep of it: the new
    /// term under the master keys that are accepted, and if `master_key` is a new one, all terms under
    /// it too.
    pub(super) fn grow(
        &self,
        head: &mut Head,
        kept: &[WrappedTerm],
        master_key: Option<&aead::Key>,
        now: u64,
    ) -> Vec<WrappedTerm> {
        let key = aead::Key::generate();
        let newest = self.terms.keys().max().copied().unwrap_or_default();
        let term = newest + 1;
        let mut wrapped = vec![wrap(&self.vault, term, now, &self.master_key, &key)];
        if let Some(master_key) = master_key {
            let id = self.master_key.id();
            for old in kept.iter().filter(|old| old.master_key == id) {
                if let Some(known) = self.terms.get(&old.term) {
                    let (term, created) = (old.term, old.created);
                    wrapped.push(wrap(&self.vault, term, created, master_key, &known.key));
                }
            }
            wrapped.push(wrap(&self.vault, term, now, master_key, &key));
            head.master_key = master_key.id();
        }
        head.term = term;
        head.generation += 1;
        head.wraps = 0;
        head.mac = Term::new(key).head_mac(head);
        wrapped
    }

    /// Whether all is under the current term and master key.
    pub(super) fn is_settled(&self, head: &Head, wrapped: &[WrappedTerm]) -> bool {
        wrapped
            .iter()
            .all(|wrapped| wrapped.term == head.term && wrapped.master_key == head.master_key)
    }

    /// Gives an entry's key another wrapping, under the current term.
    pub(super) fn rewrap_entry(&self, row: &mut Row) -> Result<(), Unreadable> {
        let old = self.terms.get(&row.term).ok_or(Unreadable::UnknownTerm)?;
        let new = self
            .terms
            .get(&self.current)
            .ok_or(Unreadable::UnknownTerm)?;
        let place = Place {
            vault: &self.vault,
            path: &row.path,
            revision: row.revision,
        };
        let key = old
            .key
            .unwrap(&place.key_context(row.term), &row.wrapped_key);
        let key = key.map_err(|Forged| Unreadable::Forged)?;
        // What does not open now must not look as if it had been kept well.
        key.open(&place.value_context(), &row.ciphertext)
            .map_err(|Forged| Unreadable::Forged)?;
        row.wrapped_key = new.key.wrap(&place.key_context(self.current), &key);
        row.term = self.current;
        Ok(())
    }

    /// Which KeyVault it is of.
    pub(super) fn vault(&self) -> &[u8; 16] {
        &self.vault
    }

    /// MAC of the counter's content, under a term that is known.
    pub(super) fn counter_mac(&self, term: u32, content: &[u8]) -> Option<[u8; 32]> {
        let term = self.terms.get(&term)?;
        Some(term.key.mac_key("wavry keyvault counter").mac(content))
    }

    /// Encrypts a value under a key of its own.
    pub(super) fn seal_entry(&self, path: &str, revision: u64, value: &Secret<Vec<u8>>) -> Row {
        let key = aead::Key::generate();
        let place = Place {
            vault: &self.vault,
            path,
            revision,
        };
        Row {
            path: path.to_owned(),
            revision,
            term: self.current,
            wrapped_key: self.terms[&self.current]
                .key
                .wrap(&place.key_context(self.current), &key),
            ciphertext: key.seal(&place.value_context(), value),
        }
    }

    /// Decrypts an entry.
    pub(super) fn open_entry(&self, row: &Row) -> Result<Secret<Vec<u8>>, Unreadable> {
        let term = self.terms.get(&row.term).ok_or(Unreadable::UnknownTerm)?;
        let place = Place {
            vault: &self.vault,
            path: &row.path,
            revision: row.revision,
        };
        let opened = term
            .key
            .unwrap(&place.key_context(row.term), &row.wrapped_key)
            .and_then(|key| key.open(&place.value_context(), &row.ciphertext));
        opened.map_err(|Forged| Unreadable::Forged)
    }

    /// What an entry adds to the digest of them all.
    pub(super) fn mark(&self, path: &str, revision: u64, term: u32) -> Option<[u8; 32]> {
        let mut message = revision.to_be_bytes().to_vec();
        message.extend_from_slice(path.as_bytes());
        self.terms.get(&term).map(|term| term.mac.mac(&message))
    }

    /// Whether a head was written by who holds this keyring.
    pub(super) fn vouches_for(&self, head: &Head) -> bool {
        let term = self.terms.get(&head.term);
        let mac = term.map(|term| Secret::new(term.head_mac(head)));
        head.vault == self.vault && mac.is_some_and(|mac| mac.matches(&head.mac))
    }

    /// Puts a MAC under the current term on a head.
    pub(super) fn sign(&self, head: &mut Head) {
        head.term = self.current;
        head.mac = self.terms[&self.current].head_mac(head);
    }
}

impl Term {
    fn new(key: aead::Key) -> Self {
        let mac = key.mac_key("wavry keyvault marks");
        Self { key, mac }
    }

    fn head_mac(&self, head: &Head) -> [u8; 32] {
        let mut message = b"head".to_vec();
        message.extend_from_slice(&head.vault);
        for number in [head.position, head.generation, head.term.into(), head.wraps] {
            message.extend_from_slice(&number.to_be_bytes());
        }
        message.extend_from_slice(&head.digest);
        message.extend_from_slice(head.master_key.as_bytes());
        self.key.mac_key("wavry keyvault head").mac(&message)
    }
}

/// Where an entry's version belongs.
struct Place<'a> {
    vault: &'a [u8; 16],
    path: &'a str,
    revision: u64,
}

impl Place<'_> {
    /// For the entry's key, which another term may wrap later.
    fn key_context(&self, term: u32) -> Vec<u8> {
        let mut context = self.context(b"entry key");
        context.extend_from_slice(&term.to_be_bytes());
        context
    }

    /// For its value, whose key is its alone, and stays.
    fn value_context(&self) -> Vec<u8> {
        self.context(b"entry val")
    }

    /// The path is length-prefixed, all else has its length.
    fn context(&self, kind: &[u8; 9]) -> Vec<u8> {
        let mut context = Vec::with_capacity(64 + self.path.len());
        context.extend_from_slice(b"wavry keyvault 1 ");
        context.extend_from_slice(kind);
        context.extend_from_slice(self.vault);
        context.extend_from_slice(&self.revision.to_be_bytes());
        context.extend_from_slice(&(self.path.len() as u64).to_be_bytes());
        context.extend_from_slice(self.path.as_bytes());
        context
    }
}

pub(super) fn term_context(vault: &[u8; 16], term: u32, created: u64, master_key: &str) -> Vec<u8> {
    let mut context = b"wavry keyvault 1 term key ".to_vec();
    context.extend_from_slice(vault);
    context.extend_from_slice(&term.to_be_bytes());
    context.extend_from_slice(&created.to_be_bytes());
    context.extend_from_slice(master_key.as_bytes());
    context
}

fn wrap(
    vault: &[u8; 16],
    term: u32,
    created: u64,
    master_key: &aead::Key,
    key: &aead::Key,
) -> WrappedTerm {
    let id = master_key.id();
    let context = term_context(vault, term, created, &id);
    WrappedTerm {
        term,
        wrapped_key: master_key.wrap(&context, key),
        master_key: id,
        created,
    }
}

/// Every place that an entry's key and value can be sealed for, under any of these terms.
#[cfg(test)]
pub(super) fn entry_contexts(
    vault: &[u8; 16],
    row: &Row,
    terms: std::ops::RangeInclusive<u32>,
) -> Vec<Vec<u8>> {
    let place = Place {
        vault,
        path: &row.path,
        revision: row.revision,
    };
    let keys = terms.map(|term| place.key_context(term));
    keys.chain([place.value_context()]).collect()
}

/// Adds a mark to a digest: a sum modulo 2²⁵⁶, so that entries come and go in any order.
pub(super) fn add(digest: &mut [u8; 32], mark: &[u8; 32]) {
    let mut carry = 0;
    for (sum, byte) in digest.iter_mut().zip(mark).rev() {
        let total = u16::from(*sum) + u16::from(*byte) + carry;
        *sum = total as u8;
        carry = total >> 8;
    }
}

/// Takes a mark out of a digest.
pub(super) fn subtract(digest: &mut [u8; 32], mark: &[u8; 32]) {
    let mut borrow = 0;
    for (rest, byte) in digest.iter_mut().zip(mark).rev() {
        let total = i16::from(*rest) - i16::from(*byte) - borrow;
        *rest = total as u8;
        borrow = i16::from(total < 0);
    }
}
