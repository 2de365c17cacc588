//! The order machine: from no account to an installed certificate, and to the next one. Sans-IO: it is told
//! what happened and when, and says what to do next.
//!
//! ```text
//!          ┌──────────────── a failure: this authority is left alone ─────────────────┐
//!          ▼                                                                          │
//! resting ─┬▶ opening ▶ ordering ▶ answering ▶ announcing ▶ validating ▶ finalising ▶ issuing ▶ downloading ▶ installing ─▶ resting
//!          └▶ asking for the renewal window ─▶ resting
//! ```
//!
//! Where an order stands is the authority's to say (RFC 8555, section 7.1.6); each of its words leads to one
//! step, so that authorizations that hold already, or an order that is valid at once, skip what they need not.

use std::time::Duration;

use super::schedule::{Backoff, UNSAID_LIMIT, Validity, Window};

/// Since the Unix epoch.
pub(super) type Time = Duration;

/// From the first request of an attempt to the installed certificate.
const ATTEMPT: Duration = Duration::from_secs(15 * 60);
/// Between two looks at an order, unless its authority names a pause: the first, and the longest.
const FIRST_LOOK: Duration = Duration::from_millis(250);
const LONGEST_LOOK: Duration = Duration::from_secs(8);
/// Between two questions for the window, however often the authority would be asked (RFC 9773, section 4.3.2).
const WINDOW_PACE: (Duration, Duration) =
    (Duration::from_secs(60), Duration::from_secs(24 * 60 * 60));
/// After an answer that says nothing (RFC 9773, section 4.3.3).
const WINDOW_RETRY: Duration = Duration::from_secs(6 * 60 * 60);

/// What to do next. Each but the first is answered by an [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing, until then.
    Wait(Time),
    /// Ask the authority that issued the certificate when it should be renewed.
    AskWindow { authority: usize },
    /// Open the account that is kept, or a new one.
    Open { authority: usize },
    /// Look at the order that was placed before, by this process or another.
    Resume,
    /// Place an order, which says that it replaces the certificate in use or does not.
    Order { replacing: bool },
    /// Read the authorizations and put up what answers their challenges.
    Answer,
    /// Tell the authority that it is up.
    Announce,
    /// Look at the order.
    Look,
    /// Make a key, and send a request for a certificate.
    Finalise,
    /// Fetch the certificate.
    Download,
    /// Check the certificate, write it down, and put it in use.
    Install,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// The authority that was asked says when; nothing if it does not. `again`: how long until it would be
    /// asked again.
    Window {
        window: Option<Window>,
        again: Option<Duration>,
    },
    /// The account is open.
    Opened,
    /// The order stands so; `look`: how long its authority wants not to be asked again.
    Stands {
        standing: Standing,
        look: Option<Duration>,
    },
    /// The authority does not take that the order replaces the certificate in use.
    ReplacesNothing,
    /// All answers are up.
    Answering,
    /// The authority knows.
    Announced,
    /// The certificate is there.
    Downloaded,
    /// It is in use.
    Installed(Certificate),
    /// What was to be done cannot.
    Failed(Failure),
}

/// Where an order stands (RFC 8555, section 7.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Pending,
    Ready,
    Processing,
    Valid,
    Invalid,
}

/// What the machine knows of the certificate in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Certificate {
    pub(super) validity: Validity,
    /// Who issued it, where that is one of the authorities.
    pub(super) authority: Option<usize>,
    /// Whether it is good for the names that are wanted.
    pub(super) fits: bool,
    /// Where in its window it is renewed: chance, but the same at each start.
    pub(super) chance: u16,
}

/// Why an attempt came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    /// The authority wants to be left alone until then.
    pub(super) wish: Option<Time>,
}

/// What kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// No connection to the authority.
    Unreachable,
    /// Out of time.
    Timeout,
    /// The authority has trouble of its own: 5xx.
    Server,
    /// It answers with what is no ACME.
    Malformed,
    /// It was asked too often.
    RateLimited,
    /// It takes no nonce, however often it is asked for a new one.
    Nonce,
    /// It does not know the account.
    AccountGone,
    /// It says no.
    Refused,
    /// A name could not be validated.
    Validation,
    /// The DNS could not be changed, or not be seen to have changed.
    Dns,
    /// What it issued cannot be used.
    Certificate,
    /// Something cannot be written or read here.
    Storage,
}

impl Reason {
    /// A label for metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Server => "server",
            Self::Malformed => "malformed",
            Self::RateLimited => "rate_limited",
            Self::Nonce => "nonce",
            Self::AccountGone => "account",
            Self::Refused => "refused",
            Self::Validation => "validation",
            Self::Dns => "dns",
            Self::Certificate => "certificate",
            Self::Storage => "storage",
        }
    }
}

/// The state of it all.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    /// How each authority has fared.
    backoffs: Vec<Backoff>,
    certificate: Option<Certificate>,
    window: Option<Window>,
    /// When the window is asked for next.
    ask_at: Time,
    attempt: Option<Attempt>,
    /// An operator wants another certificate, due or not.
    wanted: bool,
}

/// One attempt with one authority.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    authority: usize,
    began: Time,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Opening { resumes: bool },
    Resuming,
    Ordering { replacing: bool },
    Answering,
    Announcing,
    Validating(Look),
    Finalising,
    Issuing(Look),
    Downloading,
    Installing,
}

/// When an order is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    at: Time,
    /// From there to the next one, unless the authority names a pause.
    pause: Duration,
}

impl Machine {
    /// With one state of back-off for each authority, in the order in which they are tried.
    pub(super) fn new(backoffs: Vec<Backoff>, certificate: Option<Certificate>) -> Self {
        Self {
            backoffs,
            certificate,
            window: None,
            ask_at: Duration::ZERO,
            attempt: None,
            wanted: false,
        }
    }

    /// An operator wants a certificate, of authorities that failed as well if `at_once`.
    pub(super) fn want(&mut self, at_once: bool) {
        self.wanted = true;
        if at_once {
            self.backoffs.iter_mut().for_each(Backoff::forgive);
        }
    }

    /// How each authority has fared. To be written down before what [`next`](Self::next) says is done.
    pub(super) fn backoffs(&self) -> &[Backoff] {
        &self.backoffs
    }

    /// The authority of the attempt under way.
    pub(super) fn authority(&self) -> Option<usize> {
        self.attempt.map(|attempt| attempt.authority)
    }

    /// When the attempt under way began.
    pub(super) fn began(&self) -> Option<Time> {
        self.attempt.map(|attempt| attempt.began)
    }

    /// The window that the renewal is planned by.
    pub(super) fn window(&self) -> Option<Window> {
        self.window
    }

    /// When a certificate is due: at once where there is none that fits, or another one is wanted.
    pub(super) fn due(&self) -> Time {
        match self.certificate {
            Some(certificate) if certificate.fits && !self.wanted => {
                let Certificate {
                    validity, chance, ..
                } = certificate;
                validity.renew_at(self.window, chance)
            }
            _ => Duration::ZERO,
        }
    }

    /// When the next attempt begins, unless the window moves.
    pub(super) fn next_attempt(&self) -> Time {
        let free = self.backoffs.iter().map(Backoff::until).min();
        free.unwrap_or_default().max(self.due())
    }

    /// Whether an attempt would begin at `now`.
    pub(super) fn begins(&self, now: Time) -> bool {
        self.attempt.is_none() && self.asks(now).is_none() && self.next_attempt() <= now
    }

    /// The certificate in use.
    pub(super) fn certificate(&self) -> Option<Certificate> {
        self.certificate
    }

    /// Others know how authorities have fared.
    pub(super) fn fared(&mut self, backoffs: Vec<Backoff>) {
        self.backoffs = backoffs;
    }

    /// Goes on with an order that was placed before. It is no attempt more, so that no back-off holds it up.
    pub(super) fn resume(&mut self, authority: usize, now: Time) {
        self.attempt = Some(Attempt {
            authority,
            began: now,
            step: Step::Opening { resumes: true },
        });
    }

    /// Leaves the attempt under way to somebody else.
    pub(super) fn abandon(&mut self) {
        self.attempt = None;
    }

    /// A certificate that somebody else obtained is in use.
    pub(super) fn replaced(&mut self, certificate: Certificate, now: Time) {
        self.certificate = Some(certificate);
        self.wanted = false;
        self.window = None;
        self.ask_at = now;
        self.attempt = None;
    }

    /// What to do at `now`. Begins an attempt where one is due.
    pub(super) fn next(&mut self, now: Time, chance: u16) -> Action {
        if self.attempt.is_none() {
            if let Some(authority) = self.asks(now) {
                return Action::AskWindow { authority };
            }
            let due = self.due();
            let free = (due <= now)
                .then(|| self.backoffs.iter().position(|b| b.permits(now)))
                .flatten();
            let Some(authority) = free else {
                let begin = self.next_attempt();
                return Action::Wait(match self.issuer() {
                    Some(_) => begin.min(self.ask_at),
                    None => begin,
                });
            };
            self.backoffs[authority].begin(now, chance);
            self.attempt = Some(Attempt {
                authority,
                began: now,
                step: Step::Opening { resumes: false },
            });
        }
        let Some(attempt) = self.attempt else {
            return Action::Wait(now);
        };
        match attempt.step {
            Step::Opening { .. } => Action::Open {
                authority: attempt.authority,
            },
            Step::Resuming => Action::Resume,
            Step::Ordering { replacing } => Action::Order { replacing },
            Step::Answering => Action::Answer,
            Step::Announcing => Action::Announce,
            Step::Validating(look) | Step::Issuing(look) if now < look.at => Action::Wait(look.at),
            Step::Validating(_) | Step::Issuing(_) => Action::Look,
            Step::Finalising => Action::Finalise,
            Step::Downloading => Action::Download,
            Step::Installing => Action::Install,
        }
    }

    /// Takes in what happened at `now`. What does not answer the last action is an authority's doing, and a
    /// failure as any other.
    pub(super) fn happened(&mut self, event: Event, now: Time, chance: u16) {
        if let Event::Window { window, again } = event {
            return self.learn(window, again, now);
        }
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        let step = match (attempt.step, event) {
            (_, Event::Failed(failure)) => return self.fail(failure, now, chance),
            (Step::Opening { resumes: true }, Event::Opened) => Ok(Step::Resuming),
            // It has come to nothing meanwhile.
            (
                Step::Resuming,
                Event::Stands {
                    standing: Standing::Invalid,
                    ..
                },
            ) => Ok(Step::Ordering { replacing: false }),
            (Step::Opening { resumes: false }, Event::Opened) => {
                let issuer = self.certificate.and_then(|c| c.authority);
                Ok(Step::Ordering {
                    replacing: issuer == Some(attempt.authority),
                })
            }
            (Step::Ordering { replacing: true }, Event::ReplacesNothing) => {
                Ok(Step::Ordering { replacing: false })
            }
            (Step::Answering, Event::Answering) => Ok(Step::Announcing),
            (Step::Announcing, Event::Announced) => Ok(Step::Validating(Look::first(None, now))),
            (Step::Downloading, Event::Downloaded) => Ok(Step::Installing),
            (Step::Installing, Event::Installed(certificate)) => {
                self.backoffs[attempt.authority] = Backoff::default();
                self.certificate = Some(certificate);
                self.wanted = false;
                self.window = None;
                self.ask_at = now;
                self.attempt = None;
                return;
            }
            (step, Event::Stands { standing, look }) => step.after(standing, look, now),
            _ => Err(Reason::Malformed),
        };
        let step = step.and_then(|step| match step {
            Step::Validating(look) | Step::Issuing(look) if look.at >= attempt.began + ATTEMPT => {
                Err(Reason::Timeout)
            }
            step => Ok(step),
        });
        match step {
            Ok(step) => attempt.step = step,
            Err(reason) => self.fail(Failure { reason, wish: None }, now, chance),
        }
    }

    /// The authority that issued the certificate.
    fn issuer(&self) -> Option<usize> {
        self.certificate.and_then(|c| c.authority)
    }

    /// Whom to ask at `now` for the window.
    fn asks(&self, now: Time) -> Option<usize> {
        self.issuer().filter(|_| self.ask_at <= now)
    }

    fn learn(&mut self, window: Option<Window>, again: Option<Duration>, now: Time) {
        let (shortest, longest) = WINDOW_PACE;
        let again = again.unwrap_or(WINDOW_RETRY).clamp(shortest, longest);
        self.ask_at = now + again;
        // What it said last holds until it says something else.
        self.window = window.or(self.window);
    }

    fn fail(&mut self, failure: Failure, now: Time, chance: u16) {
        let Some(Attempt { authority, .. }) = self.attempt.take() else {
            return;
        };
        let limited = failure.reason == Reason::RateLimited;
        let wish = failure.wish.or(limited.then_some(now + UNSAID_LIMIT));
        self.backoffs[authority].fail(now, wish, chance);
    }
}

impl Step {
    /// What follows when the order stands so.
    fn after(self, standing: Standing, look: Option<Duration>, now: Time) -> Result<Self, Reason> {
        use Standing::{Invalid, Pending, Processing, Ready, Valid};
        match (self, standing) {
            (Self::Ordering { .. } | Self::Validating(_), Invalid) => Err(Reason::Validation),
            (Self::Ordering { .. } | Self::Resuming, Pending) => Ok(Self::Answering),
            (Self::Ordering { .. } | Self::Resuming | Self::Validating(_), Ready) => {
                Ok(Self::Finalising)
            }
            (Self::Validating(last), Pending) => Ok(Self::Validating(last.next(look, now))),
            (Self::Finalising | Self::Resuming, Processing) => {
                Ok(Self::Issuing(Look::first(look, now)))
            }
            (Self::Issuing(last), Processing) => Ok(Self::Issuing(last.next(look, now))),
            (Self::Finalising | Self::Issuing(_) | Self::Resuming, Valid) => Ok(Self::Downloading),
            (Self::Finalising | Self::Issuing(_), Invalid) => Err(Reason::Refused),
            // An order that is further than we are was finalised with a key that nobody has.
            _ => Err(Reason::Malformed),
        }
    }
}

impl Look {
    fn first(wanted: Option<Duration>, now: Time) -> Self {
        let pause = FIRST_LOOK;
        Self { pause, at: now }.next(wanted, now)
    }

    /// `wanted`: the authority's pause.
    fn next(self, wanted: Option<Duration>, now: Time) -> Self {
        Self {
            at: now + wanted.unwrap_or(self.pause),
            pause: (self.pause * 2).min(LONGEST_LOOK),
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
