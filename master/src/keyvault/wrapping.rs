//! Response wrapping: an answer lies in the KeyVault, and whoever brings its token gets it, once.
//!
//! Of a wrapped answer there is a record at `wrap/…` and the answer itself at `wrap-value/…`, both by
//! the token's fingerprint. Unwrapping takes the answer away and leaves the record until it expires,
//! so that who comes second is told from who made a token up: somebody else has the answer, and that
//! is an alarm.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use wavry_credentials::{
    audit::Action,
    bearer::{Document, Fingerprint, Json, Token},
};

use super::{
    api::envelope,
    barrier::{Change, CommitError, Error, Revision},
    call::{Answer, Call, Noted, Planned, Refusal, Wrapped},
    random_id,
    token::{self, Tokens},
    ttl::Ttl,
};
use crate::metrics as names;

/// Longest time that an answer can lie here.
pub(super) const MAX_TTL: Duration = Duration::from_secs(32 * 24 * 3600);
const RECORDS: &str = "wrap/";
const VALUES: &str = "wrap-value/";
/// Names looked at in one step of [`sweep`].
const SWEPT_AT_ONCE: usize = 256;

/// What is known of a wrapped answer, without the answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    accessor: String,
    creation_path: String,
    /// Seconds since the Unix epoch.
    created: u64,
    expires: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wrapped_accessor: Option<String>,
    /// Somebody has it.
    #[serde(default)]
    used: bool,
}

struct Found {
    fingerprint: Fingerprint,
    revision: Revision,
    record: Record,
}

/// Plans that the answer of `planned` lies here, and that its token is the answer instead. Refusals
/// stay what they are, and so does an answer that tells nothing.
pub(super) async fn wrap(
    tokens: &Tokens,
    call: &Call,
    ttl: Duration,
    mut planned: Planned,
) -> Result<Planned, Refusal> {
    let answer = match planned.outcome {
        Ok(Answer::Done | Answer::Wrapped(_)) | Err(_) => return Ok(planned),
        Ok(answer) => answer,
    };
    let wrapped_accessor = match &answer {
        Answer::Auth(auth) => Some(auth.accessor.clone()),
        _ => None,
    };
    let value = envelope(answer, &call.request, false);
    let path = call.path.as_str();
    let wrapped = keep(
        tokens,
        &mut planned.change,
        path,
        ttl,
        value,
        wrapped_accessor,
    )
    .await?;
    planned.outcome = Ok(Answer::Wrapped(wrapped));
    planned.noted.action.get_or_insert(Action::Wrap);
    Ok(planned)
}

/// Plans that `value` lies here.
async fn keep(
    tokens: &Tokens,
    change: &mut Change,
    creation_path: &str,
    ttl: Duration,
    value: Document,
    wrapped_accessor: Option<String>,
) -> Result<Wrapped, Refusal> {
    let token = Token::random("hvs.");
    let fingerprint = tokens.fingerprints().await?.of("wrap", &token);
    let now = tokens.now();
    let record = Record {
        accessor: random_id(),
        creation_path: creation_path.to_owned(),
        created: now,
        expires: now + ttl.as_secs(),
        wrapped_accessor: wrapped_accessor.clone(),
        used: false,
    };
    change.put_record(format!("{RECORDS}{fingerprint}"), &record);
    change.put(format!("{VALUES}{fingerprint}"), value.into_secret());
    Ok(Wrapped {
        token,
        accessor: record.accessor,
        ttl,
        creation_time: rfc3339(now),
        creation_path: record.creation_path,
        wrapped_accessor,
    })
}

/// `sys/wrapping/wrap`: the body is the answer.
pub(super) async fn wrap_body(tokens: &Tokens, call: &Call) -> Result<Planned, Refusal> {
    let ttl = call
        .wrap_ttl
        .ok_or_else(|| Refusal::invalid("X-Vault-Wrap-TTL is missing"))?;
    let body: Json = match &call.body {
        Some(_) => call.body()?,
        None => return Err(Refusal::invalid("the body is missing")),
    };
    if !body.is_object() {
        return Err(Refusal::invalid("the body is not an object"));
    }
    let planned = Planned::answer(Answer::Data(body.into()));
    wrap(tokens, call, ttl, planned).await
}

#[derive(Default, Deserialize)]
struct Named {
    token: Option<Token>,
}

/// `sys/wrapping/unwrap`: the answer, for who is first.
pub(super) async fn unwrap(tokens: &Tokens, call: &Call) -> Result<Planned, Refusal> {
    let (found, value) = match open(tokens, call).await? {
        Ok(opened) => opened,
        Err(refused) => return Ok(refused),
    };
    let (change, noted) = used(&found, Action::Unwrap);
    metrics::counter!(names::KEYVAULT_UNWRAPS, "outcome" => "done").increment(1);
    let answer = Answer::Bare(http::StatusCode::OK, value.into());
    Ok(Planned::of(change, Ok(answer)).noting(noted))
}

/// `sys/wrapping/rewrap`: a new token in place of the old one.
pub(super) async fn rewrap(tokens: &Tokens, call: &Call) -> Result<Planned, Refusal> {
    let (found, value) = match open(tokens, call).await? {
        Ok(opened) => opened,
        Err(refused) => return Ok(refused),
    };
    let (mut change, noted) = used(&found, Action::Wrap);
    let record = found.record;
    let ttl = Duration::from_secs(record.expires - record.created);
    let path = &record.creation_path;
    let accessor = record.wrapped_accessor;
    let wrapped = keep(tokens, &mut change, path, ttl, value.into(), accessor).await?;
    Ok(Planned::of(change, Ok(Answer::Wrapped(wrapped))).noting(noted))
}

/// `sys/wrapping/lookup`: what is known of the answer.
pub(super) async fn lookup(tokens: &Tokens, call: &Call) -> Result<Planned, Refusal> {
    let found = match find(tokens, call).await? {
        Ok(found) => found,
        Err(refused) => return Ok(refused),
    };
    let record = found.record;
    let data = json!({
        "creation_path": record.creation_path,
        "creation_time": rfc3339(record.created),
        "creation_ttl": record.expires - record.created,
    });
    let noted = Noted {
        secret: Some(record.accessor),
        ..Noted::default()
    };
    Ok(Planned::answer(Answer::Data(Document::of(&data))).noting(noted))
}

/// What the call's token stands for; inside, the refusal of one that stands for nothing any more.
async fn find(tokens: &Tokens, call: &Call) -> Result<Result<Found, Planned>, Refusal> {
    let named: Named = call.body()?;
    let token = named.token.as_ref().or(call.token.as_ref());
    let token = token.ok_or_else(|| Refusal::invalid("no wrapping token"))?;
    let refused = Refusal::invalid("wrapping token is not valid or does not exist");
    if token.is_longer_than(token::MAX_LEN) {
        return Err(refused);
    }
    let fingerprint = tokens.fingerprints().await?.of("wrap", token);
    let path = format!("{RECORDS}{fingerprint}");
    let read = tokens.barrier().read_record::<Record>(&path).await?;
    let (revision, record) = match read {
        Some((revision, record)) if record.expires > tokens.now() => (revision, record),
        _ => {
            metrics::counter!(names::KEYVAULT_UNWRAPS, "outcome" => "unknown").increment(1);
            return Err(refused);
        }
    };
    if record.used {
        metrics::counter!(names::KEYVAULT_UNWRAPS, "outcome" => "used").increment(1);
        tracing::warn!(
            accessor = record.accessor,
            creation_path = &*record.creation_path,
            client = %call.client,
            "a wrapping token was brought a second time: somebody else has what was in it",
        );
        let noted = Noted {
            action: Some(Action::Alarm),
            subject: Some(record.creation_path),
            secret: Some(record.accessor),
            ..Noted::default()
        };
        return Ok(Err(
            Planned::of(Change::default(), Err(refused)).noting(noted)
        ));
    }
    Ok(Ok(Found {
        fingerprint,
        revision,
        record,
    }))
}

/// What the call's token stands for, and the answer that lies in it.
async fn open(tokens: &Tokens, call: &Call) -> Result<Result<(Found, Json), Planned>, Refusal> {
    let found = match find(tokens, call).await? {
        Ok(found) => found,
        Err(refused) => return Ok(Err(refused)),
    };
    let path = format!("{VALUES}{}", found.fingerprint);
    if let Some(entry) = tokens.barrier().read(&path).await? {
        return Ok(Ok((found, Json::stored(entry.value))));
    }
    // Somebody took it between the two reads: then the record is no longer what it was, and the call
    // starts again and finds that.
    let mut change = Change::default();
    change.expect(
        format!("{RECORDS}{}", found.fingerprint),
        Some(found.revision),
    );
    let refused = Refusal::Internal("a wrapped answer is missing");
    let noted = Noted {
        action: Some(Action::Unwrap),
        subject: Some(found.record.creation_path),
        secret: Some(found.record.accessor),
        ..Noted::default()
    };
    Ok(Err(Planned::of(change, Err(refused)).noting(noted)))
}

/// Plans that the answer is taken away, if nobody did meanwhile.
fn used(found: &Found, action: Action) -> (Change, Noted) {
    let mut change = Change::default();
    let path = format!("{RECORDS}{}", found.fingerprint);
    change.expect(path.clone(), Some(found.revision));
    let record = Record {
        used: true,
        ..found.record.clone()
    };
    change.put_record(path, &record);
    change.delete(format!("{VALUES}{}", found.fingerprint));
    let noted = Noted {
        action: Some(action),
        subject: Some(record.creation_path),
        secret: Some(record.accessor),
        ..Noted::default()
    };
    (change, noted)
}

/// Takes away what expired.
pub(super) async fn sweep(tokens: &Tokens) -> Result<(), Error> {
    let barrier = tokens.barrier();
    let mut after: Option<String> = None;
    loop {
        let listed = barrier
            .list(RECORDS, after.as_deref(), SWEPT_AT_ONCE)
            .await?;
        for name in &listed {
            let path = format!("{RECORDS}{name}");
            let Some((revision, record)) = barrier.read_record::<Record>(&path).await? else {
                continue;
            };
            if record.expires > tokens.now() {
                continue;
            }
            let mut change = Change::default();
            change.expect(path.clone(), Some(revision));
            change.delete(path);
            change.delete(format!("{VALUES}{name}"));
            match barrier.commit(change).await {
                Ok(()) | Err(CommitError::Conflict) => (),
                Err(CommitError::Failed(error)) => return Err(error),
            }
        }
        if listed.len() < SWEPT_AT_ONCE {
            return Ok(());
        }
        after = listed.into_iter().next_back();
    }
}

/// The wish of `X-Vault-Wrap-TTL`.
pub(super) fn wished(text: &str) -> Result<Option<Duration>, Refusal> {
    let ttl =
        Ttl::parse(text).map_err(|error| Refusal::invalid(format!("X-Vault-Wrap-TTL: {error}")))?;
    match ttl.said() {
        Some(ttl) if ttl > MAX_TTL => Err(Refusal::invalid("X-Vault-Wrap-TTL: more than 32 days")),
        ttl => Ok(ttl),
    }
}

/// Seconds since the Unix epoch as RFC 3339.
pub(super) fn rfc3339(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok();
    let time = time.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
