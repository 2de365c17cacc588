//! AppRole: a unit shows a role-id, which may be known, and a secret-id, which must not be.
//!
//! Of a secret-id its HMAC is kept, below a random id of the role: a role that is made again under
//! the same name does not know the secret-ids of the one before. Everything that is wrong with a
//! login is one refusal, found by the same reads: an unknown role-id is looked up as far as a known
//! one with a wrong secret-id. Only who may log in uses up a use.

mod roles;
mod secret_ids;

use std::time::Instant;

use serde::{Deserialize, de::DeserializeOwned};
use wavry_credentials::{
    audit::Action,
    bearer::{Fingerprint, Fingerprints, Token},
};

use super::{At, terms::Login};
use crate::{
    keyvault::{
        barrier::{Change, Revision},
        call::{Answer, Call, Noted, Operation, Planned, Refusal},
        token::{self, MAX_LEN},
    },
    metrics as names,
};

pub(super) use secret_ids::sweep;

use roles::Role;
use secret_ids::SecretId;

/// Plans an answer below an AppRole mount.
pub(super) async fn handle(at: At<'_>, call: &Call) -> Result<Planned, Refusal> {
    use Operation::{Create, Delete, List, Read, Update};
    let operation = at.granted.operation();
    let writes = matches!(operation, Create | Update);
    let rest = at.rest.trim_end_matches('/');
    if rest == "login" && writes {
        return login(&at, call).await;
    }
    if rest == "tidy/secret-id" && writes {
        return secret_ids::tidy(&at).await;
    }
    let Some(rest) = rest.strip_prefix("role") else {
        return Err(Refusal::Absent);
    };
    let rest = rest.strip_prefix('/').unwrap_or(rest);
    let (name, rest) = rest.split_once('/').unwrap_or((rest, ""));
    match (operation, name, rest) {
        (List, "", _) => at.list_answer("role/").await,
        (_, "", _) => Err(Refusal::Unsupported),
        (Read, name, "") => roles::show(&at, name).await,
        (Create | Update, name, "") => roles::put(&at, name, call).await,
        (Delete, name, "") => roles::delete(&at, name).await,
        (Read, name, "role-id") => roles::show_id(&at, name).await,
        (Create | Update, name, "role-id") => roles::put_id(&at, name, call).await,
        (List, name, "secret-id") => secret_ids::list(&at, name).await,
        (Create | Update, name, "secret-id") => secret_ids::generate(&at, name, call).await,
        (Create | Update, name, "custom-secret-id") => secret_ids::choose(&at, name, call).await,
        (Create | Update, name, "secret-id/lookup") => secret_ids::lookup(&at, name, call).await,
        (Create | Update | Delete, name, "secret-id/destroy") => {
            secret_ids::destroy(&at, name, call).await
        }
        (Create | Update, name, "secret-id-accessor/lookup") => {
            secret_ids::lookup_accessor(&at, name, call).await
        }
        (Create | Update | Delete, name, "secret-id-accessor/destroy") => {
            secret_ids::destroy_accessor(&at, name, call).await
        }
        (operation, name, field) => roles::field(&at, name, field, operation, call).await,
    }
}

/// What all failed logins are told.
const WRONG: &str = "invalid role or secret ID";

#[derive(Deserialize)]
struct Shown {
    role_id: Option<Token>,
    secret_id: Option<Token>,
}

async fn login(at: &At<'_>, call: &Call) -> Result<Planned, Refusal> {
    let shown: Shown = call.body()?;
    let role_id = shown.role_id.ok_or(Refusal::invalid("missing role_id"))?;
    let secret_id = shown.secret_id.unwrap_or_else(|| Token::new(String::new()));
    if role_id.is_longer_than(MAX_LEN) || secret_id.is_longer_than(MAX_LEN) {
        return Err(Refusal::invalid(WRONG));
    }
    let gate = at.authorizer.logins();
    let fingerprints = at.authorizer.tokens().fingerprints().await?;
    let role_print = fingerprints.of("role-id", &role_id);
    // Failures count for a role-id, whether there is such a role or not.
    let who = fingerprints.of_name("approle", &format!("{}/{role_print}", at.mount.id));
    gate.may_try(who, Instant::now())
        .map_err(Refusal::TooMany)?;

    let found = find(at, &fingerprints, role_print, &secret_id).await?;
    let Some((revision, role, held)) = found else {
        return Ok(failed(at, who, "role"));
    };
    let client = call.client.ip();
    if !token::is_within(&role.secret_id_bound_cidrs, client)
        || held
            .as_ref()
            .is_some_and(|held| !token::is_within(&held.id.cidr_list, client))
    {
        // Who has the right credential in the wrong place is not guessing, and must not be able to
        // lock its owner out.
        return Ok(refused(&role.name, at));
    }
    let mut change = Change::default();
    change.expect(at.entry(&format!("role/{}", role.name)), Some(revision));
    let id = held.as_ref().map(|held| &held.id);
    let mut facts = id.map(|id| id.metadata.clone()).unwrap_or_default();
    facts.insert("role_name".to_owned(), role.name.clone());
    let login = Login {
        call,
        mount: at.mount,
        unit: role.name.clone(),
        facts,
        bound_cidrs: id
            .map(|id| id.token_bound_cidrs.clone())
            .unwrap_or_default(),
    };
    let issued = role
        .terms
        .issue(at.authorizer.tokens(), &mut change, login)
        .await;
    let issued = match issued {
        Ok(issued) => issued,
        Err(Refusal::Denied) => return Ok(refused(&role.name, at)),
        Err(other) => return Err(other),
    };
    if let Some(held) = held {
        held.count_use(at, &fingerprints, &role, &mut change);
    }
    gate.succeeded(who);
    let noted = Noted {
        action: Some(Action::Login),
        actor: Some(issued.record.display_name.clone()),
        secret: Some(issued.record.accessor.clone()),
        ..Noted::default()
    };
    Ok(Planned::of(change, Ok(Answer::Auth(issued.into_auth()))).noting(noted))
}

/// Counts a failure, and plans the refusal. The one that locks is an alarm.
fn failed(at: &At<'_>, who: Fingerprint, unit: &str) -> Planned {
    let locks = at.authorizer.logins().failed(who, Instant::now());
    let mut planned = refused(unit, at);
    if locks {
        metrics::counter!(names::KEYVAULT_LOCK_OUTS).increment(1);
        planned.noted.action = Some(Action::Alarm);
    }
    planned
}

fn refused(unit: &str, at: &At<'_>) -> Planned {
    let method = at.mount.path.trim_end_matches('/');
    let noted = Noted {
        actor: Some(format!("{method}/{unit}")),
        ..Noted::default()
    };
    Planned::of(Change::default(), Err(Refusal::invalid(WRONG))).noting(noted)
}

/// The role, which version of it, and the secret-id that were shown, if both are good.
///
/// Whatever is wrong with them, the store is asked for as many entries, of which as many are there and
/// are decrypted: what cannot be found is looked for below a role that nobody has, and what is found
/// has something else looked for in vain.
async fn find(
    at: &At<'_>,
    fingerprints: &Fingerprints,
    role_id: Fingerprint,
    secret_id: &Token,
) -> Result<Option<(Revision, Role, Option<secret_ids::Held>)>, Refusal> {
    let barrier = at.barrier();
    let index = at.entry(&format!("role-id/{role_id}"));
    let decoy = at.entry("decoy-index");
    let (_, name, is_named) = either::<String>(at, &index, &decoy).await?;
    // A mount without roles has no decoy, and nothing to hide.
    let name = name.unwrap_or_default();
    let path = match name.as_str() {
        "" => at.entry("decoy"),
        name => at.entry(&format!("role/{name}")),
    };
    let Some((revision, role)) = barrier.read_record_from_store::<Role>(&path).await? else {
        return Ok(None);
    };
    let is_known = is_named && role.role_print == role_id;
    let print = fingerprints.of("secret-id", secret_id);
    let path = secret_ids::path(at, &role.id, print);
    let decoy = at.entry("decoy-secret-id");
    let (read, id, is_there) = either::<SecretId>(at, &path, &decoy).await?;
    if !is_known {
        return Ok(None);
    }
    if !role.bind_secret_id {
        return Ok(Some((revision, role, None)));
    }
    let now = at.authorizer.tokens().now();
    let held = id.filter(|id| is_there && id.is_good(now));
    Ok(held.zip(read).map(|(id, read)| {
        let held = secret_ids::Held {
            print,
            revision: read,
            id,
        };
        (revision, role, Some(held))
    }))
}

/// What lies at `path`, or else at `decoy`; whether it is the former. Both ways two entries are asked for,
/// of which one is there.
async fn either<T: DeserializeOwned>(
    at: &At<'_>,
    path: &str,
    decoy: &str,
) -> Result<(Option<Revision>, Option<T>, bool), Refusal> {
    let barrier = at.barrier();
    let shown = barrier.read_record_from_store::<T>(path).await?;
    let other = match &shown {
        Some(_) => at.entry("nothing"),
        None => decoy.to_owned(),
    };
    let other = barrier.read_record_from_store::<T>(&other).await?;
    let is_there = shown.is_some();
    let (revision, found) = shown.or(other).unzip();
    Ok((revision, found, is_there))
}

#[cfg(test)]
mod tests;
