//! Until when sessions may live, and how a newer token makes that later.
//!
//! A session that was opened with a token lives no longer than the token. If the token names the
//! session (claim `sid`), a newer one for the same service, subject and session takes its place,
//! and nothing of the session notices.

use std::{sync::Arc, time::Duration};

use dashmap::{DashMap, Entry};
use tokio::{sync::watch, time::sleep};
use wavry_credentials::{clock::since_epoch, token::Grounds};
use wavry_proto::{id::ServiceName, token};

/// The wall clock may be set while a session waits for its end, so it looks again so often.
const LOOK: Duration = Duration::from_secs(60);

/// What tokens name: a service and one of its sessions.
type Name = (ServiceName, Box<str>);

/// The live sessions that a newer token can extend. It has at most one entry for each session that
/// [`Limits`](crate::limits::Limits) permits, and an entry goes with its session.
#[derive(Default)]
pub(crate) struct Table {
    sessions: DashMap<Name, Vec<Arc<Term>>>,
}

/// Why a token extends no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unchanged {
    /// It names no session.
    NoSession,
    /// No such session is live here.
    UnknownSession,
    /// The session is another subject's.
    OtherSubject,
    /// The sessions' tokens are newer, or hold longer.
    NotNewer,
}

/// Until when one session may live. Dropped with it.
pub(crate) struct Expiry {
    term: Arc<Term>,
    /// Where it can be found; `None` if its token names no session.
    entry: Option<(Arc<Table>, Name)>,
}

struct Term {
    subject: Box<str>,
    times: watch::Sender<Times>,
}

/// What the newest token says, in seconds since the Unix epoch.
#[derive(Debug, Clone, Copy)]
struct Times {
    iat: u64,
    exp: u64,
    grounds: Grounds,
    /// The session is being closed; nothing extends it any more.
    over: bool,
}

impl Table {
    /// A session that `token` opens.
    pub(crate) fn open(
        self: &Arc<Self>,
        service: &ServiceName,
        token: &token::Session,
        grounds: Grounds,
    ) -> Expiry {
        let term = Arc::new(Term {
            subject: token.sub.as_str().into(),
            times: watch::Sender::new(Times {
                iat: token.validity.iat,
                exp: token.validity.exp,
                grounds,
                over: false,
            }),
        });
        let name = name(service, token);
        if let Some(name) = &name {
            let mut sessions = self.sessions.entry(name.clone()).or_default();
            sessions.push(term.clone());
        }
        Expiry {
            term,
            entry: name.map(|name| (self.clone(), name)),
        }
    }

    /// Lets the sessions that `token`, which holds now, names live as long as it does. How many; a
    /// token that they have already counts as newer, so that asking twice is no error.
    pub(crate) fn extend(
        &self,
        service: &ServiceName,
        token: &token::Session,
        grounds: Grounds,
    ) -> Result<usize, Unchanged> {
        let name = name(service, token).ok_or(Unchanged::NoSession)?;
        let named = self.sessions.get(&name).map(|sessions| sessions.clone());
        let mut outcome = Err(Unchanged::UnknownSession);
        for term in named.unwrap_or_default() {
            let extended = term.extend(token, grounds);
            outcome = match (outcome, extended) {
                (Ok(count), Ok(())) => Ok(count + 1),
                (Err(_), Ok(())) => Ok(1),
                (Ok(count), Err(_)) => Ok(count),
                // Of several reasons the one that came closest to an extension.
                (Err(one), Err(other)) => Err(one.closest(other)),
            };
        }
        outcome
    }
}

fn name(service: &ServiceName, token: &token::Session) -> Option<Name> {
    let session = token.sid.as_deref()?;
    Some((service.clone(), session.into()))
}

impl Unchanged {
    fn closest(self, other: Self) -> Self {
        let rank = |reason| match reason {
            Self::NoSession => 0,
            Self::UnknownSession => 1,
            Self::OtherSubject => 2,
            Self::NotNewer => 3,
        };
        std::cmp::max_by_key(self, other, |reason| rank(*reason))
    }
}

impl Term {
    fn extend(&self, token: &token::Session, grounds: Grounds) -> Result<(), Unchanged> {
        if *self.subject != *token.sub {
            return Err(Unchanged::OtherSubject);
        }
        let new = &token.validity;
        let mut outcome = Ok(());
        self.times.send_if_modified(|times| {
            if times.over {
                outcome = Err(Unchanged::UnknownSession);
                return false;
            }
            if new.iat < times.iat || new.exp < times.exp {
                outcome = Err(Unchanged::NotNewer);
                return false;
            }
            times.iat = new.iat;
            times.exp = new.exp;
            times.grounds = grounds;
            true
        });
        outcome
    }

    /// Ends the term if it has expired at `now`, since the Unix epoch. Whether it is over.
    fn end(&self, now: Duration) -> bool {
        let mut over = false;
        self.times.send_if_modified(|times| {
            times.over |= left(times.exp, Duration::ZERO, now).is_none();
            over = times.over;
            false
        });
        over
    }
}

impl Expiry {
    /// When the session's newest token expires, in seconds since the Unix epoch.
    pub(crate) fn at(&self) -> u64 {
        self.term.times.borrow().exp
    }

    /// On what the session's newest token stands.
    pub(crate) fn grounds(&self) -> Grounds {
        self.term.times.borrow().grounds
    }

    /// From now on nothing extends the session.
    pub(crate) fn end(&self) {
        self.term.times.send_modify(|times| times.over = true);
    }

    /// Resolves when the end is no more than `ahead` away. Cancel-safe.
    pub(crate) async fn near(&self, ahead: Duration) {
        let mut times = self.term.times.subscribe();
        loop {
            let exp = times.borrow_and_update().exp;
            let Some(left) = left(exp, ahead, since_epoch()) else {
                return;
            };
            tokio::select! {
                () = sleep(left.min(LOOK)) => {}
                // The sender is in `self`.
                _ = times.changed() => {}
            }
        }
    }

    /// Resolves when the end has come; from then on nothing extends the session. Cancel-safe.
    pub(crate) async fn over(&self) {
        loop {
            self.near(Duration::ZERO).await;
            if self.term.end(since_epoch()) {
                return;
            }
        }
    }
}

impl Drop for Expiry {
    fn drop(&mut self) {
        let Some((table, name)) = self.entry.take() else {
            return;
        };
        if let Entry::Occupied(mut entry) = table.sessions.entry(name) {
            entry
                .get_mut()
                .retain(|term| !Arc::ptr_eq(term, &self.term));
            if entry.get().is_empty() {
                entry.remove();
            }
        }
    }
}

/// Time left until `ahead` before `exp`; `None` once it has come.
fn left(exp: u64, ahead: Duration, now: Duration) -> Option<Duration> {
    Duration::from_secs(exp)
        .checked_sub(ahead)?
        .checked_sub(now)
        .filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wavry_proto::token::Validity;

    fn service(name: &str) -> ServiceName {
        name.parse().unwrap()
    }

    fn token(sub: &str, sid: Option<&str>, iat: u64, exp: u64) -> token::Session {
        token::Session {
            jti: "1".into(),
            sub: sub.into(),
            sid: sid.map(Into::into),
            claims: Default::default(),
            validity: Validity { iat, nbf: iat, exp },
        }
    }

    fn grounds() -> Grounds {
        Grounds {
            key: "k4.pid.9ShR3xc8-qVJ_di0tc9nx0IDIqbatdeM2mqLFBJsKRHs"
                .parse()
                .unwrap(),
            subject: wavry_credentials::token::digest("ana"),
            iat: 100,
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_newer_token_of_the_same_session_subject_and_service_extends_and_no_other_does() {
        let (table, echo) = (Arc::new(Table::default()), service("echo"));
        let session = table.open(&echo, &token("ana", Some("tab"), 100, 200), grounds());
        for (service, other, why) in [
            ("echo", token("ana", None, 150, 300), Unchanged::NoSession),
            (
                "echo",
                token("ana", Some("b"), 150, 300),
                Unchanged::UnknownSession,
            ),
            (
                "chat",
                token("ana", Some("tab"), 150, 300),
                Unchanged::UnknownSession,
            ),
            (
                "echo",
                token("bob", Some("tab"), 150, 300),
                Unchanged::OtherSubject,
            ),
            (
                "echo",
                token("ana", Some("tab"), 99, 300),
                Unchanged::NotNewer,
            ),
            (
                "echo",
                token("ana", Some("tab"), 150, 199),
                Unchanged::NotNewer,
            ),
        ] {
            let refused = table.extend(&self::service(service), &other, grounds());
            assert_eq!(refused, Err(why), "{other:?}");
            assert_eq!(session.at(), 200);
        }
        let newer = token("ana", Some("tab"), 150, 300);
        for _ in 0..2 {
            assert_eq!(table.extend(&echo, &newer, grounds()), Ok(1));
            assert_eq!(session.at(), 300);
        }
    }

    #[test]
    fn all_sessions_of_one_name_are_extended_and_those_of_another_subject_are_not() {
        let (table, echo) = (Arc::new(Table::default()), service("echo"));
        let open = |sub, iat, exp| table.open(&echo, &token(sub, Some("tab"), iat, exp), grounds());
        let (one, two, other) = (
            open("ana", 100, 200),
            open("ana", 110, 210),
            open("bob", 100, 200),
        );
        let newer = token("ana", Some("tab"), 120, 300);
        assert_eq!(table.extend(&echo, &newer, grounds()), Ok(2));
        assert_eq!([one.at(), two.at(), other.at()], [300, 300, 200]);
        drop((one, two));
        assert_eq!(
            table.extend(&echo, &newer, grounds()),
            Err(Unchanged::OtherSubject)
        );
        drop(other);
        assert!(table.sessions.is_empty());
    }

    #[test]
    fn an_extension_and_the_end_cannot_both_win() {
        let (table, echo) = (Arc::new(Table::default()), service("echo"));
        let session = table.open(&echo, &token("ana", Some("tab"), 100, 200), grounds());
        assert!(!session.term.end(199 * SECOND));
        assert_eq!(
            table.extend(&echo, &token("ana", Some("tab"), 150, 300), grounds()),
            Ok(1)
        );
        assert!(!session.term.end(200 * SECOND));
        assert!(session.term.end(300 * SECOND));
        assert_eq!(
            table.extend(&echo, &token("ana", Some("tab"), 290, 400), grounds()),
            Err(Unchanged::UnknownSession)
        );
        assert!(session.term.end(300 * SECOND));
    }

    #[test]
    fn the_end_is_near_from_the_notice_on() {
        let at = |now: u64| left(200, 60 * SECOND, Duration::from_secs(now));
        assert_eq!(at(100), Some(40 * SECOND));
        assert_eq!(at(139), Some(SECOND));
        assert_eq!(at(140), None);
        assert_eq!(at(300), None);
        assert_eq!(left(20, 60 * SECOND, Duration::ZERO), None);
    }

    proptest! {
        #[test]
        fn a_session_never_outlives_the_latest_of_its_tokens_and_never_loses_time(
            tokens in prop::collection::vec((0..50u64, 1..50u64), 1..20),
        ) {
            let (table, echo) = (Arc::new(Table::default()), service("echo"));
            let mut tokens = tokens.into_iter().map(|(iat, ttl)| token("ana", Some("tab"), iat, iat + ttl));
            let first = tokens.next().unwrap();
            let session = table.open(&echo, &first, grounds());
            let mut newest = first.validity;
            for token in tokens {
                let before = session.at();
                let extended = table.extend(&echo, &token, grounds());
                prop_assert!(session.at() >= before);
                if extended.is_ok() {
                    prop_assert_eq!(session.at(), token.validity.exp);
                    prop_assert!(token.validity.iat >= newest.iat);
                    newest = token.validity;
                } else {
                    prop_assert_eq!(session.at(), before);
                }
            }
            drop(session);
            prop_assert!(table.sessions.is_empty());
        }
    }
}
