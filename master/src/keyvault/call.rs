//! What the KeyVault is asked, what it plans to do about it, and what it says: one vocabulary for
//! both dialects and for every engine.
//!
//! A handler reads, and gives a [`Planned`]: an answer, and the [`Change`] that must be durable before
//! the answer may be seen. Nothing is written, and nothing leaves, but by [`super::KeyVault::handle`].

use std::{borrow::Cow, collections::BTreeMap, net::SocketAddr, time::Duration};

use axum::http::StatusCode;
use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use wavry_credentials::{
    audit::Action,
    bearer::{Document, Json, Misread, Token},
};

use super::{
    barrier::{self, Change},
    path::Canonical,
};

/// What is done to a path. Policies grant these; the words are Vault's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// `GET`.
    Read,
    /// `LIST`, or `GET` with `?list=true`.
    List,
    /// `POST` or `PUT` of what is not there yet.
    Create,
    /// `POST` or `PUT`.
    Update,
    /// `PATCH`.
    Patch,
    /// `DELETE`.
    Delete,
}

/// A request, whichever dialect it came in.
pub struct Call {
    /// What is to be done.
    pub operation: Operation,
    /// To what: the path below `/v1/`.
    pub path: Canonical,
    /// What stood after `?`, but for `list`.
    pub query: BTreeMap<String, String>,
    /// By whom.
    pub token: Option<Token>,
    /// With what.
    pub body: Option<Json>,
    /// The other end of the connection.
    pub client: SocketAddr,
    /// The certificates that the client proved to hold, its own first; empty without mTLS.
    pub peer_certificates: Vec<CertificateDer<'static>>,
    /// How long the answer is to lie wrapped, if it is to be.
    pub wrap_ttl: Option<Duration>,
    /// Id of the request, as its answer and the audit log have it.
    pub request: String,
}

impl Call {
    /// The body as a `T`; an empty one where there is none. The refusal says where the body does not
    /// fit, and shows nothing of it.
    pub fn body<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        match &self.body {
            Some(body) => Ok(body.read()?),
            None => serde_json::from_str("{}").map_err(|_| Refusal::invalid("the body is missing")),
        }
    }
}

/// What a handler decided. The change is committed also when the answer is a refusal: a failed login
/// is counted.
pub struct Planned {
    /// What must be durable first.
    pub change: Change,
    /// What is said then.
    pub outcome: Result<Answer, Refusal>,
    /// What the audit line of the call says beside what the call tells.
    pub noted: Noted,
}

impl Planned {
    /// An answer that changes nothing.
    pub fn answer(answer: Answer) -> Self {
        Self::of(Change::default(), Ok(answer))
    }

    /// A refusal that changes nothing.
    pub fn refused(refusal: Refusal) -> Self {
        Self::of(Change::default(), Err(refusal))
    }

    /// A change, and nothing to tell.
    pub fn done(change: Change) -> Self {
        Self::of(change, Ok(Answer::Done))
    }

    /// A change, and what is said when it is durable.
    pub fn of(change: Change, outcome: Result<Answer, Refusal>) -> Self {
        Self {
            change,
            outcome,
            noted: Noted::default(),
        }
    }

    /// With this in the audit line.
    pub fn noting(self, noted: Noted) -> Self {
        Self { noted, ..self }
    }
}

/// What the audit line of a call is to say. What is left out follows from the call: the action from
/// the operation, the subject from the path, the actor from the token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Noted {
    /// What was done.
    pub action: Option<Action>,
    /// To what.
    pub subject: Option<String>,
    /// By whom, where the call's token does not tell: who logged in.
    pub actor: Option<String>,
    /// The identifier of the secret that it is about, such as a token's accessor. Its HMAC is written.
    pub secret: Option<String>,
    /// Which version of the subject.
    pub version: Option<u64>,
}

/// What is said.
pub enum Answer {
    /// 204.
    Done,
    /// Member `data` of Vault's envelope.
    Data(Document),
    /// Member `auth` of Vault's envelope: a token for its holder.
    Auth(Auth),
    /// Member `data`, with warnings.
    Warned(Document, Vec<&'static str>),
    /// A body of its own form.
    Bare(StatusCode, Document),
    /// The wrapping token that was made for another answer.
    Wrapped(Wrapped),
}

impl Answer {
    /// Member `data` of Vault's envelope, of what holds no secret.
    pub fn data(data: &impl serde::Serialize) -> Self {
        Self::Data(Document::of(data))
    }
}

/// A token for its holder, and what it is good for.
pub struct Auth {
    /// It.
    pub client_token: Token,
    /// The name under which it can be looked up and revoked.
    pub accessor: String,
    /// All its policies.
    pub policies: Vec<String>,
    /// What its login knew of its holder.
    pub metadata: BTreeMap<String, String>,
    /// For how long from now; zero is for ever.
    pub lease_duration: Duration,
    /// Whether that can be made longer.
    pub renewable: bool,
    /// Whether it outlives the token that made it.
    pub orphan: bool,
    /// How often it can be used; zero is any number.
    pub num_uses: u64,
}

/// A token that can be exchanged once for an answer.
pub struct Wrapped {
    /// It.
    pub token: Token,
    /// Its accessor.
    pub accessor: String,
    /// For how long from now.
    pub ttl: Duration,
    /// When it was made, as RFC 3339.
    pub creation_time: String,
    /// The path that was asked.
    pub creation_path: String,
    /// Accessor of the token that lies in it.
    pub wrapped_accessor: Option<String>,
}

/// Why a call was refused. No variant holds what the call held, but for names that were checked.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The call is not one.
    #[error("{0}")]
    Invalid(Cow<'static, str>),
    /// The token, or the credential of a login, does not permit it.
    #[error("permission denied")]
    Denied,
    /// There is nothing.
    #[error("there is nothing at this path")]
    Absent,
    /// There is nothing to be had, and this is known of it.
    #[error("there is nothing to be had at this path")]
    Gone(Document),
    /// The path does not take the operation.
    #[error("unsupported operation")]
    Unsupported,
    /// The body is longer than [`super::api::MAX_BODY`], or than [`super::api::MAX_MESSAGE_BODY`].
    #[error("the body is longer than it may be here")]
    TooLarge,
    /// The request did not arrive in time.
    #[error("the request took too long")]
    TooSlow,
    /// Too many of these.
    #[error("too many requests; try again in {} seconds", .0.as_secs())]
    TooMany(Duration),
    /// The KeyVault is sealed, or was never initialised.
    #[error("the KeyVault is sealed")]
    Sealed,
    /// The store or the audit log cannot be written now.
    #[error("the audit log or the store cannot be written; try again")]
    Unavailable,
    /// It is not the call's fault; the log says why.
    #[error("{0}")]
    Internal(&'static str),
}

impl Refusal {
    /// The call is not one, for this reason.
    pub fn invalid(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Invalid(reason.into())
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.kind().0
    }

    /// What the audit log and the metrics call it.
    pub fn word(&self) -> &'static str {
        self.kind().1
    }

    fn kind(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid"),
            Self::Denied => (StatusCode::FORBIDDEN, "denied"),
            Self::Absent | Self::Gone(_) => (StatusCode::NOT_FOUND, "absent"),
            Self::Unsupported => (StatusCode::METHOD_NOT_ALLOWED, "unsupported"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "too-slow"),
            Self::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "too-many"),
            Self::Sealed => (StatusCode::SERVICE_UNAVAILABLE, "sealed"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }
}

impl From<Misread> for Refusal {
    fn from(error: Misread) -> Self {
        Self::invalid(format!("body: {error}"))
    }
}

/// Of a store that cannot be read or written now, and of one that is not what was written.
impl From<barrier::Error> for Refusal {
    fn from(error: barrier::Error) -> Self {
        use barrier::Error;
        match error {
            Error::Sealed | Error::Closed => Self::Sealed,
            Error::Busy | Error::TooSlow | Error::Store(_) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "not on record, so not answered"
                );
                Self::Unavailable
            }
            _ => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the KeyVault failed"
                );
                Self::Internal("internal error: the log says which entry")
            }
        }
    }
}
