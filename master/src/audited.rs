//! Refused requests on record. No route can pass by this: it stands around all of them.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Mutex, OnceLock, PoisonError},
    time::Instant,
};

use axum::http::StatusCode;
use wavry_credentials::{
    audit::{Action, Event},
    random,
};

use crate::problem::KEY_UNDER_WAY;

/// What is known of a request beside its content. It travels as an extension of the request.
pub(crate) struct Asked {
    /// Its id, which the answer and the audit log have.
    pub(crate) id: String,
    /// Where it comes from.
    pub(crate) address: IpAddr,
    /// Who asks, a node or an operator, once a token has shown it.
    pub(crate) who: OnceLock<String>,
    /// The registration or operator's token, as the audit log names it.
    pub(crate) secret: OnceLock<String>,
}

/// The word of the problem, in the extensions of a refusal's response.
#[derive(Clone, Copy)]
pub(crate) struct Word(pub(crate) &'static str);

impl Asked {
    pub(crate) fn new(address: IpAddr) -> Self {
        Self {
            address,
            id: hex::encode(random::bytes::<8>()),
            who: OnceLock::new(),
            secret: OnceLock::new(),
        }
    }

    /// An event of this request.
    pub(crate) fn event(&self, action: Action, path: &str, source: SocketAddr) -> Event {
        let who = self.who.get().cloned();
        let mut event = Event::now(action, who.clone().unwrap_or_default(), path);
        event.actor = who.unwrap_or_else(|| "stranger".to_owned());
        event.request = Some(self.id.clone());
        event.source = Some(source);
        event.secret = self.secret.get().cloned();
        event
    }
}

/// Whether an answer, with the word of its problem, refuses somebody something, rather than being about a
/// faulty request, or one that is to wait for another like it.
pub(crate) fn is_denial(status: StatusCode, word: &str) -> bool {
    let denials = [
        StatusCode::UNAUTHORIZED,
        StatusCode::FORBIDDEN,
        StatusCode::CONFLICT,
    ];
    denials.contains(&status) && word != KEY_UNDER_WAY
}

/// Bounds what strangers can have written: everybody can send requests that are refused, and each
/// line costs a sync and stays. A burst of [`BURST`] lines, then one a second, some 40 MB a day.
#[derive(Default)]
pub(crate) struct Strangers {
    state: Mutex<State>,
}

const BURST: u64 = 32;

#[derive(Default)]
struct State {
    /// Lines written since `since`, less one for each second.
    written: u64,
    since: Option<Instant>,
    unwritten: u64,
}

impl Strangers {
    /// Whether a denial may be written now, and if so how many were not since the last one.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *state.since.get_or_insert(now);
        let seconds = now.saturating_duration_since(since).as_secs();
        if seconds > 0 {
            state.written = state.written.saturating_sub(seconds);
            state.since = Some(now);
        }
        if state.written == BURST {
            state.unwritten += 1;
            return None;
        }
        state.written += 1;
        Some(std::mem::take(&mut state.unwritten))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn strangers_have_a_burst_written_then_one_line_a_second_that_tells_of_the_others() {
        let strangers = Strangers::default();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(strangers.admit(start), Some(0));
        }
        for _ in 0..100 {
            assert_eq!(strangers.admit(start), None);
        }
        let later = start + Duration::from_millis(1500);
        assert_eq!(strangers.admit(later), Some(100));
        assert_eq!(strangers.admit(later), None);
        let much_later = start + Duration::from_secs(3600);
        assert_eq!(strangers.admit(much_later), Some(1));
        for _ in 1..BURST {
            assert_eq!(strangers.admit(much_later), Some(0));
        }
        assert_eq!(strangers.admit(much_later), None);
    }
}
