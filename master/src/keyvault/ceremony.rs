//! What several people do together: each brings a share, and when there are enough of them it happens.
//! What was brought is in memory only, of this process.

use std::sync::{Mutex, MutexGuard, PoisonError};

use wavry_credentials::{bearer::Token, key::shamir::Share};

use super::random_id;

/// The ceremonies of a KeyVault.
#[derive(Default)]
pub(super) struct Ceremonies {
    pub(super) unseal: Ceremony,
    pub(super) root: Ceremony,
    pub(super) rekey: Ceremony,
}

/// One of them.
#[derive(Default)]
pub(super) struct Ceremony(Mutex<State>);

#[derive(Default)]
struct State {
    nonce: String,
    /// Each once; as many as the threshold at most.
    shares: Vec<Share>,
    /// What hides a root token.
    otp: Option<Token>,
    /// How many shares a new key is to have, and how many make it.
    new_shares: (u8, u8),
}

/// How far a ceremony is.
pub(super) struct Progress {
    pub(super) is_started: bool,
    pub(super) nonce: String,
    pub(super) given: usize,
}

/// What came of a share.
pub(super) enum Collected {
    /// More are needed.
    Some,
    /// These are enough. They are forgotten here.
    All(Vec<Share>),
}

impl Ceremony {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one with a nonce, unless one is going on.
    pub(super) fn start(&self, otp: Option<Token>) -> bool {
        let mut state = self.state();
        let is_new = state.nonce.is_empty();
        if is_new {
            *state = State {
                nonce: random_id(),
                otp,
                ..State::default()
            };
        }
        is_new
    }

    /// Begins one that makes new shares.
    pub(super) fn start_shares(&self, new_shares: (u8, u8)) -> bool {
        let is_new = self.start(None);
        if is_new {
            self.state().new_shares = new_shares;
        }
        is_new
    }

    /// How many shares are to be made, and how many make the key.
    pub(super) fn shares(&self) -> (u8, u8) {
        self.state().new_shares
    }

    /// Whether one with this nonce is going on.
    pub(super) fn is(&self, nonce: &str) -> bool {
        let state = self.state();
        !state.nonce.is_empty() && state.nonce == nonce
    }

    /// Takes a share. The same one does not count twice.
    pub(super) fn give(&self, share: Share, threshold: u8) -> Collected {
        let mut state = self.state();
        if state.nonce.is_empty() {
            state.nonce = random_id();
        }
        if !state.shares.iter().any(|given| given.matches(&share)) {
            state.shares.push(share);
        }
        match state.shares.len() >= usize::from(threshold) {
            true => Collected::All(std::mem::take(&mut state.shares)),
            false => Collected::Some,
        }
    }

    /// How far it is.
    pub(super) fn progress(&self) -> Progress {
        let state = self.state();
        Progress {
            is_started: !state.nonce.is_empty(),
            nonce: state.nonce.clone(),
            given: state.shares.len(),
        }
    }

    /// Ends it, and gives what hides the root token.
    pub(super) fn finish(&self) -> Option<Token> {
        std::mem::take(&mut *self.state()).otp
    }

    /// Ends it.
    pub(super) fn cancel(&self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wavry_credentials::key::{aead::Key, shamir::split};

    #[test]
    fn shares_are_collected_up_to_the_threshold_and_each_counts_once() {
        let ceremony = Ceremony::default();
        let shares = split(&Key::generate(), 3, 2);
        let give = |at: usize| {
            let share = Share::read(&shares[at].to_hex()).unwrap();
            match ceremony.give(share, 2) {
                Collected::Some => 0,
                Collected::All(all) => all.len(),
            }
        };
        assert_eq!(give(0), 0);
        assert_eq!(give(0), 0);
        assert_eq!(ceremony.progress().given, 1);
        assert_eq!(give(2), 2);
        assert_eq!(ceremony.progress().given, 0);
        give(1);
        ceremony.cancel();
        assert!(!ceremony.progress().is_started);
    }

    #[test]
    fn one_goes_on_at_a_time_and_knows_its_nonce() {
        let ceremony = Ceremony::default();
        assert!(!ceremony.is(""));
        assert!(ceremony.start_shares((5, 3)));
        assert!(!ceremony.start(None));
        let nonce = ceremony.progress().nonce;
        assert!(ceremony.is(&nonce) && !ceremony.is("") && !ceremony.is("other"));
        assert_eq!(ceremony.shares(), (5, 3));
        assert!(ceremony.finish().is_none());
        assert!(!ceremony.is(&nonce));
        assert!(ceremony.start(Some(Token::new("otp".to_owned()))));
        assert!(ceremony.finish().is_some_and(|otp| otp.matches("otp")));
    }
}
