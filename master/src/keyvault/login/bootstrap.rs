//! Bootstrap tokens: what a unit is given to log in with for the first time. Each is good for minutes
//! and once.
//!
//! A token that was used is remembered until it would have expired: who shows it again, or was first
//! and is not the unit, is told from who made one up, and that is an alarm.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use wavry_credentials::{
    audit::Action,
    bearer::{Document, Token},
};

use super::{
    At, Authorizer, Mount, configured, role_name,
    terms::{Login, Parameters, Terms},
};
use crate::keyvault::{
    barrier::{Change, CommitError, Revision},
    call::{Answer, Call, Noted, Operation, Planned, Refusal},
    parameter::{Facts, Texts},
    token::{self, MAX_LEN},
    ttl::Ttl,
};

/// How a bootstrap token's text begins.
const PREFIX: &str = "wvb.";
/// For how long one is good, where nobody says; and at most.
const TTL: u64 = 10 * 60;
const MAX_TTL: u64 = 24 * 3600;
/// What all failed logins are told.
const WRONG: &str = "invalid bootstrap token";

/// What is kept of a role.
#[derive(Default, Serialize, Deserialize)]
struct Role {
    terms: Terms,
    /// For how long its bootstrap tokens are good.
    bootstrap_ttl: u64,
}

/// What is kept of a bootstrap token.
#[derive(Serialize, Deserialize)]
struct Record {
    role: String,
    expires: u64,
    cidr_list: Vec<IpNet>,
    metadata: BTreeMap<String, String>,
    unit: String,
    used: bool,
}

/// Plans an answer below a mount of bootstrap tokens.
pub(super) async fn handle(at: At<'_>, call: &Call) -> Result<Planned, Refusal> {
    use Operation::{Create, Delete, List, Read, Update};
    let operation = at.granted.operation();
    let rest = at.rest.trim_end_matches('/');
    if rest == "login" && matches!(operation, Create | Update) {
        return login(&at, call).await;
    }
    let rest = rest.strip_prefix("role").ok_or(Refusal::Absent)?;
    let rest = rest.strip_prefix('/').unwrap_or(rest);
    match (operation, rest.split_once('/').unwrap_or((rest, ""))) {
        (List, ("", _)) => at.list_answer("role/").await,
        (_, ("", _)) => Err(Refusal::Unsupported),
        (Read, (name, "")) => {
            let (_, role) = read(&at, name).await?.ok_or(Refusal::Absent)?;
            let mut shown = Map::new();
            shown.insert("bootstrap_ttl".into(), json!(role.bootstrap_ttl));
            role.terms.show(&mut shown);
            Ok(Planned::answer(Answer::data(&shown)))
        }
        (Create | Update, (name, "")) => put(&at, name, call).await,
        (Create | Update, (name, "token")) => issue(&at, name, call).await,
        (Delete, (name, "")) => {
            let mut change = Change::default();
            change.delete(at.entry(&format!("role/{}", role_name(name)?)));
            Ok(configured(change))
        }
        _ => Err(Refusal::Unsupported),
    }
}

async fn read(at: &At<'_>, name: &str) -> Result<Option<(Revision, Role)>, Refusal> {
    let path = at.entry(&format!("role/{}", role_name(name)?));
    Ok(at.barrier().read_record(&path).await?)
}

async fn put(at: &At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    #[derive(Deserialize)]
    struct Body {
        bootstrap_ttl: Option<Ttl>,
        #[serde(flatten)]
        terms: Parameters,
    }
    let body: Body = call.body()?;
    let held = read(at, name).await?;
    let path = at.entry(&format!("role/{}", role_name(name)?));
    let mut change = Change::default();
    change.expect(&*path, held.as_ref().map(|(revision, _)| *revision));
    let mut role = held.map(|(_, role)| role).unwrap_or_default();
    if let Some(Ttl(ttl)) = body.bootstrap_ttl {
        if ttl > MAX_TTL {
            return Err(Refusal::invalid(
                "a bootstrap token is good for a day at most",
            ));
        }
        role.bootstrap_ttl = ttl;
    }
    role.terms.update(body.terms)?;
    change.put_record(path, &role);
    Ok(configured(change))
}

async fn issue(at: &At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        ttl: Ttl,
        #[serde(default)]
        metadata: Facts,
        #[serde(default)]
        cidr_list: Texts,
        /// What the unit is called; as the role, unless said.
        unit: Option<String>,
    }
    let body: Body = call.body()?;
    let name = role_name(name)?;
    let (revision, role) = read(at, &name).await?.ok_or(Refusal::Absent)?;
    let longest = match role.bootstrap_ttl {
        0 => TTL,
        ttl => ttl,
    };
    let ttl = token::smallest(body.ttl.0, longest);
    let unit = match body.unit {
        Some(unit) => role_name(&unit)?,
        None => name.clone(),
    };
    let token = Token::random(PREFIX);
    let tokens = at.authorizer.tokens();
    let record = Record {
        role: name.clone(),
        expires: tokens.now() + ttl,
        cidr_list: token::networks(&body.cidr_list)?,
        metadata: body.metadata.0,
        unit: unit.clone(),
        used: false,
    };
    let print = tokens.fingerprints().await?.of("bootstrap", &token);
    let mut change = Change::default();
    change.expect(at.entry(&format!("role/{name}")), Some(revision));
    change.put_record(at.entry(&format!("bootstrap/{print}")), &record);
    let plain = |value: Value| Document::of(&value);
    let answer = Document::object([
        ("bootstrap_token", Document::from(&token)),
        ("bootstrap_token_ttl", plain(json!(ttl))),
        ("unit", plain(json!(unit))),
    ]);
    let noted = Noted {
        action: Some(Action::Issue),
        secret: Some(print.to_string()),
        ..Noted::default()
    };
    Ok(Planned::of(change, Ok(Answer::Data(answer))).noting(noted))
}

async fn login(at: &At<'_>, call: &Call) -> Result<Planned, Refusal> {
    #[derive(Deserialize)]
    struct Shown {
        #[serde(alias = "token")]
        bootstrap_token: Option<Token>,
    }
    let shown: Shown = call.body()?;
    let shown = shown
        .bootstrap_token
        .ok_or(Refusal::invalid("missing bootstrap_token"))?;
    let wrong = || Refusal::invalid(WRONG);
    if shown.is_longer_than(MAX_LEN) {
        return Err(wrong());
    }
    let tokens = at.authorizer.tokens();
    let print = tokens.fingerprints().await?.of("bootstrap", &shown);
    let path = at.entry(&format!("bootstrap/{print}"));
    let held = at.barrier().read_record::<Record>(&path).await?;
    let held = held.filter(|(_, record)| tokens.now() < record.expires);
    let Some((revision, mut record)) = held else {
        return Err(wrong());
    };
    let method = at.mount.path.trim_end_matches('/');
    let noted = |action| Noted {
        action: Some(action),
        actor: Some(format!("{method}/{}", record.unit)),
        secret: Some(print.to_string()),
        ..Noted::default()
    };
    if record.used {
        let alarm = noted(Action::Alarm);
        return Ok(Planned::of(Change::default(), Err(wrong())).noting(alarm));
    }
    let noted = noted(Action::Login);
    let refused = |noted| Ok(Planned::of(Change::default(), Err(wrong())).noting(noted));
    if !token::is_within(&record.cidr_list, call.client.ip()) {
        return refused(noted);
    }
    let Some((role_revision, role)) = read(at, &record.role).await? else {
        return refused(noted);
    };
    let mut facts = record.metadata.clone();
    facts.insert("role_name".to_owned(), record.role.clone());
    let login = Login {
        call,
        mount: at.mount,
        unit: record.unit.clone(),
        facts,
        bound_cidrs: Vec::new(),
    };
    let mut change = Change::default();
    change.expect(
        at.entry(&format!("role/{}", record.role)),
        Some(role_revision),
    );
    let issued = match role.terms.issue(tokens, &mut change, login).await {
        Ok(issued) => issued,
        Err(Refusal::Denied) => return refused(noted),
        Err(other) => return Err(other),
    };
    record.used = true;
    change.expect(&*path, Some(revision));
    change.put_record(path, &record);
    Ok(Planned::of(change, Ok(Answer::Auth(issued.into_auth()))).noting(noted))
}

/// Takes away tokens below a mount that expired; a thousand at most.
pub(super) async fn sweep(authorizer: &Authorizer, mount: &Mount) -> Result<u64, Refusal> {
    const AT_ONCE: usize = 1000;
    let (barrier, now) = (authorizer.barrier(), authorizer.tokens().now());
    let folder = format!("{}bootstrap/", mount.prefix());
    let mut swept = 0;
    for name in barrier.list(&folder, None, AT_ONCE).await? {
        let path = format!("{folder}{name}");
        let held = barrier.read_record::<Record>(&path).await?;
        let Some((revision, _)) = held.filter(|(_, record)| record.expires <= now) else {
            continue;
        };
        let mut change = Change::default();
        change.expect(&*path, Some(revision));
        change.delete(path);
        match barrier.commit(change).await {
            Ok(()) => swept += 1,
            Err(CommitError::Conflict) => (),
            Err(CommitError::Failed(error)) => return Err(error.into()),
        }
    }
    Ok(swept)
}

#[cfg(test)]
mod tests;
