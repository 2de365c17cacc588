//! `sys/policies/acl/*`, the older `sys/policy/*`, and `sys/capabilities*`.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use wavry_credentials::{
    audit::Action,
    bearer::{Document, Token},
};

use super::{Policy, canonical_name};
use crate::keyvault::{
    authorize::{Authorizer, Granted},
    barrier::Change,
    call::{Answer, Call, Noted, Operation, Planned, Refusal},
    parameter::Texts,
    token::Found,
};

/// Most paths that are asked about at once.
const MAX_PATHS: usize = 256;

/// Plans an answer below `sys/policies/acl` (`rest` is what follows, without a slash before it).
pub(in crate::keyvault) async fn acl(
    authorizer: &Authorizer,
    call: &Call,
    rest: &str,
) -> Result<Planned, Refusal> {
    let policies = authorizer.policies();
    match (call.operation, rest.trim_end_matches('/')) {
        (Operation::List | Operation::Read, "") => {
            let keys = policies.names().await?;
            Ok(Planned::answer(Answer::Data(Document::of(
                &json!({ "keys": keys }),
            ))))
        }
        (Operation::Read, name) => {
            let name = named(name)?;
            let text = policies.text(&name).await?.ok_or(Refusal::Absent)?;
            let data = json!({ "name": name, "policy": text });
            Ok(Planned::answer(Answer::Data(Document::of(&data))))
        }
        (_, "") => Err(Refusal::Unsupported),
        (operation, name) => change(authorizer, call, operation, name),
    }
}

/// Plans an answer below `sys/policy`, which says the same in other words.
pub(in crate::keyvault) async fn policy(
    authorizer: &Authorizer,
    call: &Call,
    rest: &str,
) -> Result<Planned, Refusal> {
    let policies = authorizer.policies();
    match (call.operation, rest.trim_end_matches('/')) {
        (Operation::List | Operation::Read, "") => {
            let names = policies.names().await?;
            let data = json!({ "keys": names, "policies": names });
            Ok(Planned::answer(Answer::Data(Document::of(&data))))
        }
        (Operation::Read, name) => {
            let name = named(name)?;
            let text = policies.text(&name).await?.ok_or(Refusal::Absent)?;
            let data = json!({ "name": name, "rules": text });
            Ok(Planned::answer(Answer::Data(Document::of(&data))))
        }
        (_, "") => Err(Refusal::Unsupported),
        (operation, name) => change(authorizer, call, operation, name),
    }
}

fn change(
    authorizer: &Authorizer,
    call: &Call,
    operation: Operation,
    name: &str,
) -> Result<Planned, Refusal> {
    #[derive(Deserialize)]
    struct Body {
        policy: Option<String>,
        /// The older word.
        rules: Option<String>,
    }
    let mut change = Change::default();
    let noted = Noted {
        action: Some(Action::Configure),
        ..Noted::default()
    };
    match operation {
        Operation::Create | Operation::Update => {
            let name = named(name)?;
            let body: Body = call.body()?;
            let missing = || Refusal::invalid("'policy' parameter not supplied or empty");
            let text = body.policy.or(body.rules).ok_or_else(missing)?;
            if text.trim().is_empty() {
                return Err(missing());
            }
            // Clients send base64 as well.
            let text = decoded(text);
            Policy::parse(&text).map_err(|malformed| Refusal::invalid(malformed.to_string()))?;
            let put = authorizer.policies().put(&mut change, &name, text);
            put.map_err(|fixed| Refusal::invalid(fixed.to_string()))?;
        }
        Operation::Delete => {
            // What cannot be a policy's name is not there, which is what was asked for.
            let Some(name) = canonical_name(name) else {
                return Ok(Planned::done(change));
            };
            let deleted = authorizer.policies().delete(&mut change, &name);
            deleted.map_err(|fixed| Refusal::invalid(fixed.to_string()))?;
        }
        _ => return Err(Refusal::Unsupported),
    }
    Ok(Planned::done(change).noting(noted))
}

fn named(name: &str) -> Result<String, Refusal> {
    canonical_name(name).ok_or(Refusal::invalid("not the name of a policy"))
}

/// Vault takes a policy's text as base64, too.
fn decoded(text: String) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let bytes = STANDARD.decode(&text).ok();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .unwrap_or(text)
}

/// Plans an answer of `sys/capabilities`, `sys/capabilities-self` or `sys/capabilities-accessor`.
pub(in crate::keyvault) async fn capabilities(
    authorizer: &Authorizer,
    call: &Call,
    granted: &Granted,
    rest: &str,
) -> Result<Planned, Refusal> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        paths: Texts,
        #[serde(default)]
        path: Texts,
        token: Option<Token>,
        accessor: Option<String>,
    }
    if !matches!(call.operation, Operation::Create | Operation::Update) {
        return Err(Refusal::Unsupported);
    }
    let body: Body = call.body()?;
    let paths = [body.paths.0, body.path.0].concat();
    if paths.is_empty() {
        return Err(Refusal::invalid("paths must be supplied"));
    }
    if paths.len() > MAX_PATHS {
        return Err(Refusal::invalid(format!("more than {MAX_PATHS} paths")));
    }
    let tokens = authorizer.tokens();
    let other: Option<Found> = match rest {
        "capabilities-self" => None,
        "capabilities" => {
            let token = body
                .token
                .ok_or(Refusal::invalid("token must be supplied"))?;
            let found = tokens.find(&token).await?;
            Some(found.ok_or(Refusal::invalid("invalid token"))?)
        }
        _ => {
            let accessor = body
                .accessor
                .ok_or(Refusal::invalid("accessor must be supplied"))?;
            let found = tokens.find_by_accessor(&accessor).await?;
            Some(found.ok_or(Refusal::invalid("invalid accessor"))?)
        }
    };
    let mut change = Change::default();
    let acl = match &other {
        Some(found) => {
            let policies = authorizer.policies();
            policies.acl(&mut change, &found.record.scope).await?
        }
        None => granted.acl().clone(),
    };
    let mut data = Map::new();
    for path in &paths {
        let names = acl.capabilities(path.strip_prefix('/').unwrap_or(path));
        data.insert(path.clone(), json!(names));
        // The older form, for one path.
        data.entry("capabilities").or_insert_with(|| json!(names));
    }
    let answer = Answer::Data(Document::of(&Value::Object(data)));
    Ok(Planned::of(change, Ok(answer)))
}
