//! What went wrong, as the machine and the log hear it.

use instant_acme::Error;

use super::super::{
    http::{Client, Transport},
    machine::{Failure, Reason},
};

/// Longest text of an authority that is told on, in characters.
const MAX_SAID: usize = 500;
const PROBLEM: &str = "urn:ietf:params:acme:error:";

/// A failure, and what was said of it.
#[derive(Debug)]
pub(in crate::acme) struct Trouble {
    pub(in crate::acme) failure: Failure,
    pub(in crate::acme) said: String,
}

impl Trouble {
    pub(in crate::acme) fn new(reason: Reason, said: impl Into<String>) -> Self {
        let said: String = said.into();
        Self {
            failure: Failure { reason, wish: None },
            said: said.chars().take(MAX_SAID).collect(),
        }
    }

    /// Something here cannot be written or read.
    pub(in crate::acme) fn storage(error: impl std::error::Error) -> Self {
        Self::new(Reason::Storage, error.to_string())
    }

    /// What an earlier step should have left is not there: the authority led us astray.
    pub(in crate::acme) fn lost() -> Self {
        Self::new(Reason::Malformed, "an order out of order")
    }

    /// Whether asking again is all that is needed.
    pub(super) fn is_of_a_nonce(&self) -> bool {
        self.failure.reason == Reason::Nonce
    }

    /// What instant-acme says, with what the client noted of the last answer.
    pub(super) fn of(error: Error, client: &Client) -> Self {
        let noted = client.take_noted();
        let reason = reason(&error, noted.status);
        let said = match &error {
            // serde's words quote what was received.
            Error::Json(_) => format!("an answer, of status {}, that is no ACME", noted.status),
            error => error.to_string(),
        };
        let mut trouble = Self::new(reason, said);
        trouble.failure.wish = noted.retry_at;
        trouble
    }
}

fn reason(error: &Error, status: u16) -> Reason {
    match error {
        Error::Api(problem) => {
            let kind = problem.r#type.as_deref().unwrap_or_default();
            match kind.strip_prefix(PROBLEM).unwrap_or_default() {
                "rateLimited" => Reason::RateLimited,
                "badNonce" => Reason::Nonce,
                "accountDoesNotExist" => Reason::AccountGone,
                "serverInternal" => Reason::Server,
                _ => by_status(status, Reason::Refused),
            }
        }
        Error::Other(other) => match other.downcast_ref() {
            Some(Transport::Address(_) | Transport::TooLong(_)) => Reason::Malformed,
            Some(Transport::Timeout(_)) => Reason::Timeout,
            Some(_) => Reason::Unreachable,
            None => by_status(status, Reason::Malformed),
        },
        _ => by_status(status, Reason::Malformed),
    }
}

fn by_status(status: u16, otherwise: Reason) -> Reason {
    match status {
        429 => Reason::RateLimited,
        500.. => Reason::Server,
        _ => otherwise,
    }
}

/// Whether a certificate was revoked before (RFC 8555, section 7.6).
pub(super) fn is_about_revoked(error: &Error) -> bool {
    match error {
        Error::Api(problem) => {
            let kind = problem.r#type.as_deref().unwrap_or_default();
            kind.strip_prefix(PROBLEM) == Some("alreadyRevoked")
        }
        _ => false,
    }
}

/// Whether an order was refused because of what it says that it replaces (RFC 9773, section 5): the
/// certificate was replaced already, the authority does not know it, or it offers no such thing.
pub(super) fn is_about_replacing(error: &Error) -> bool {
    match error {
        Error::Api(problem) => {
            let kind = problem.r#type.as_deref().unwrap_or_default();
            let kind = kind.strip_prefix(PROBLEM).unwrap_or_default();
            let about = |text: &String| text.contains("replace");
            kind == "alreadyReplaced"
                || ["malformed", "unauthorized"].contains(&kind)
                    && problem.detail.as_ref().is_some_and(about)
        }
        Error::Unsupported(_) => true,
        // instant-acme's words for an answer that does not repeat what it was told.
        Error::Other(other) => other.to_string().starts_with("replaces field"),
        _ => false,
    }
}
