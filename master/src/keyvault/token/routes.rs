//! `auth/token/*`.

use serde::Deserialize;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use wavry_credentials::{
    audit::Action,
    bearer::{Document, Token},
};

use super::{Found, MAX_DEPTH, New, Record, Scope, Wishes, policies, role, store::auth};
use crate::keyvault::{
    authorize::{Authorizer, Granted},
    barrier::{Barrier, Change},
    call::{Answer, Call, Noted, Operation, Planned, Refusal},
    login::{At, keys},
    parameter::{Facts, Texts},
    policy::{DEFAULT, ROOT},
    ttl::Ttl,
};

/// Longest name that a token is given, in bytes.
const MAX_DISPLAY_NAME: usize = 128;

/// Plans an answer below `auth/token/`.
pub(in crate::keyvault) async fn handle(at: At<'_>, call: &Call) -> Result<Planned, Refusal> {
    use Operation::{Create, Delete, List, Read, Update};
    let rest = at.rest.trim_end_matches('/');
    match (at.granted.operation(), rest) {
        (Create | Update, "create") => create(&at, call, None, false).await,
        (Create | Update, "create-orphan") => create(&at, call, None, true).await,
        (Read, "lookup-self") | (Create | Update, "lookup-self") => lookup_self(&at, call).await,
        (Create | Update, "lookup") => lookup(&at, call).await,
        (Create | Update, "lookup-accessor") => lookup_accessor(&at, call).await,
        (Create | Update, "renew-self") => renew_self(&at, call).await,
        (Create | Update, "renew") => renew(&at, call).await,
        (Create | Update, "renew-accessor") => renew_accessor(&at, call).await,
        (Create | Update, "revoke-self") => revoke(&at, holder(at.granted)?.clone()).await,
        (Create | Update, "revoke" | "revoke-orphan") => {
            let named = Named::read(call)?;
            let found = at.authorizer.tokens().find(&named.token()?).await?;
            let found = found.ok_or(Refusal::invalid("token to revoke not found"))?;
            match rest {
                "revoke" => revoke(&at, found).await,
                _ => release(&at, found).await,
            }
        }
        (Create | Update, "revoke-accessor") => {
            let found = by_accessor(&at, &Named::read(call)?.accessor()?).await?;
            revoke(&at, found).await
        }
        (List, "accessors") => keys(at.authorizer.tokens().accessors().await?),
        (Create | Update, "tidy") => {
            let swept = at.authorizer.tokens().sweep_all().await?;
            let noted = noted(Action::Revoke, None);
            let data = json!({ "swept": swept });
            Ok(Planned::answer(Answer::data(&data)).noting(noted))
        }
        (List | Read, "roles") => keys(role::names(at.barrier()).await?),
        (operation, rest) => match rest.split_once('/') {
            Some(("create", name)) if matches!(operation, Create | Update) => {
                create(&at, call, Some(name), false).await
            }
            Some(("roles", name)) => match operation {
                Read => role::show(at.barrier(), name).await,
                Create | Update => role::put(at.barrier(), name, call).await,
                Delete => role::delete(name),
                _ => Err(Refusal::Unsupported),
            },
            // The older form, with the token in the path, would put it into logs.
            _ => Err(Refusal::Unsupported),
        },
    }
}

/// Whether what a write names is there already.
pub(in crate::keyvault) async fn exists(barrier: &Barrier, rest: &str) -> Result<bool, Refusal> {
    match rest.strip_prefix("roles/") {
        Some(name) => Ok(role::read(barrier, name).await?.is_some()),
        None => Ok(true),
    }
}

/// A token that a request names.
#[derive(Deserialize)]
struct Named {
    token: Option<Token>,
    accessor: Option<String>,
    #[serde(default)]
    increment: Ttl,
}

impl Named {
    fn read(call: &Call) -> Result<Self, Refusal> {
        call.body()
    }

    fn token(self) -> Result<Token, Refusal> {
        self.token.ok_or(Refusal::invalid("missing token"))
    }

    fn accessor(self) -> Result<String, Refusal> {
        self.accessor.ok_or(Refusal::invalid("missing accessor"))
    }
}

fn holder(granted: &Granted) -> Result<&Found, Refusal> {
    granted.holder().ok_or(Refusal::Denied)
}

async fn by_accessor(at: &At<'_>, accessor: &str) -> Result<Found, Refusal> {
    let found = at.authorizer.tokens().find_by_accessor(accessor).await?;
    Ok(counted(
        at,
        found.ok_or(Refusal::invalid("invalid accessor"))?,
    ))
}

/// The same token as that of the holder, with the use that is counted now.
fn counted(at: &At<'_>, found: Found) -> Found {
    match at.granted.holder() {
        Some(holder) if holder.fingerprint == found.fingerprint => holder.clone(),
        _ => found,
    }
}

fn noted(action: Action, accessor: Option<&str>) -> Noted {
    Noted {
        action: Some(action),
        secret: accessor.map(str::to_owned),
        ..Noted::default()
    }
}

// Making --------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct Wanted {
    id: Option<Token>,
    #[serde(default)]
    policies: Option<Texts>,
    #[serde(default)]
    meta: Facts,
    #[serde(default)]
    no_parent: bool,
    #[serde(default)]
    no_default_policy: bool,
    #[serde(default = "yes")]
    renewable: bool,
    #[serde(default)]
    ttl: Ttl,
    /// The older word for it.
    #[serde(default)]
    lease: Ttl,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    explicit_max_ttl: Ttl,
    #[serde(default)]
    display_name: String,
    #[serde(default)]
    num_uses: u64,
    #[serde(default)]
    period: Ttl,
    entity_alias: Option<String>,
    /// Of the older form of creating by a role.
    role_name: Option<String>,
}

fn yes() -> bool {
    true
}

async fn create(
    at: &At<'_>,
    call: &Call,
    role: Option<&str>,
    orphan: bool,
) -> Result<Planned, Refusal> {
    let wanted: Wanted = call.body()?;
    let parent = holder(at.granted)?;
    if parent.record.num_uses > 0 {
        return Err(Refusal::invalid(
            "restricted use token cannot generate child tokens",
        ));
    }
    if parent.record.depth + 1 > MAX_DEPTH {
        return Err(Refusal::invalid(format!(
            "tokens make tokens {MAX_DEPTH} deep at most"
        )));
    }
    if wanted.id.is_some() {
        return Err(Refusal::invalid(
            "tokens are random here; 'id' cannot be chosen",
        ));
    }
    if wanted.entity_alias.is_some_and(|alias| !alias.is_empty()) {
        return Err(Refusal::invalid("'entity_alias' is not supported here"));
    }
    match wanted.kind.as_str() {
        "" | "service" => (),
        "batch" => return Err(Refusal::invalid("batch tokens are not given out here")),
        _ => return Err(Refusal::invalid("invalid 'type' value")),
    }
    if wanted.display_name.len() > MAX_DISPLAY_NAME {
        return Err(Refusal::invalid("'display_name' is too long"));
    }
    let mut change = Change::default();
    let role = match role.or(wanted.role_name.as_deref()) {
        Some(name) => {
            let role = role::read_for(&mut change, at.barrier(), name).await?;
            let role = role.ok_or(Refusal::invalid("unknown role"))?;
            Some((name.to_lowercase(), role))
        }
        None => None,
    };
    let is_administrator = at.granted.is_administrator(call.path.as_str());
    let rules = role.as_ref().map(|(_, role)| role);
    if rules.is_none() && !is_administrator && (wanted.no_parent || wanted.period.0 > 0) {
        return Err(Refusal::invalid(
            "root or sudo privileges required to create orphan or periodic token",
        ));
    }
    let named = wanted.policies.as_ref().map(policies).transpose()?;
    let granted = granted_policies(&parent.record, rules, named, is_administrator)?;
    let no_default = wanted.no_default_policy || rules.is_some_and(|role| role.no_default_policy);
    let policies = with_default(granted, no_default);
    if let Some(role) = rules {
        role.forbids(&policies)?;
    }
    if policies.iter().any(|name| name == ROOT) && !parent.record.is_root() {
        return Err(Refusal::invalid(
            "root tokens may not be created without parent token being root",
        ));
    }
    let is_orphan = match rules {
        Some(role) => role.orphan,
        None => orphan || wanted.no_parent,
    };
    let ttl = if wanted.ttl.0 > 0 {
        wanted.ttl.0
    } else {
        wanted.lease.0
    };
    let explicit = wanted.explicit_max_ttl.0;
    let new = New {
        scope: Scope {
            policies,
            identity: parent.record.scope.identity.clone(),
        },
        wishes: Wishes {
            ttl,
            max_ttl: 0,
            explicit_max_ttl: rules.map_or(explicit, |role| {
                super::smallest(role.explicit_max_ttl, explicit)
            }),
            period: match rules {
                Some(role) if role.period > 0 => role.period,
                Some(_) if !is_administrator => 0,
                _ => wanted.period.0,
            },
            renewable: wanted.renewable && rules.is_none_or(|role| role.renewable),
        },
        parent: (!is_orphan).then_some(parent),
        path: match rules {
            Some(role) if !role.path_suffix.is_empty() => {
                format!("{}/{}", call.path.name(), role.path_suffix)
            }
            _ => call.path.name().to_owned(),
        },
        meta: wanted.meta.0,
        display_name: match wanted.display_name.as_str() {
            "" | "token" => "token".to_owned(),
            name => format!("token-{}", plain(name)),
        },
        num_uses: match rules {
            Some(role) if role.num_uses > 0 => super::smallest(role.num_uses, wanted.num_uses),
            _ => wanted.num_uses,
        },
        bound_cidrs: match rules {
            Some(role) if !role.bound_cidrs.is_empty() => role.bound_cidrs.clone(),
            // A token must not make itself usable from elsewhere.
            _ => parent.record.bound_cidrs.clone(),
        },
        role: role.map(|(name, _)| name),
        mount: parent.record.mount.clone().filter(|_| !is_orphan),
    };
    let issued = at.authorizer.tokens().issue(&mut change, new).await?;
    let noted = noted(Action::Issue, Some(&issued.record.accessor));
    Ok(Planned::of(change, Ok(Answer::Auth(issued.into_auth()))).noting(noted))
}

/// The policies that a new token gets: those that are asked for, if they may be, else those of who
/// asks or of the role.
fn granted_policies(
    parent: &Record,
    role: Option<&role::Role>,
    named: Option<Vec<String>>,
    is_administrator: bool,
) -> Result<Vec<String>, Refusal> {
    if let Some(role) = role.filter(|role| role.restricts()) {
        return match named {
            Some(named) if !named.is_empty() => {
                role.allows(&named)?;
                Ok(named)
            }
            _ => Ok(role.allowed_policies.clone()),
        };
    }
    match named {
        None => Ok(parent.scope.policies.clone()),
        Some(named) if named.is_empty() => Ok(parent.scope.policies.clone()),
        Some(named) => {
            let held = |name: &String| name == DEFAULT || parent.scope.policies.contains(name);
            match is_administrator || named.iter().all(held) {
                true => Ok(named),
                false => Err(Refusal::invalid("child policies must be subset of parent")),
            }
        }
    }
}

fn with_default(mut policies: Vec<String>, no_default: bool) -> Vec<String> {
    let is_root = policies.iter().any(|name| name == ROOT);
    if no_default {
        policies.retain(|name| name != DEFAULT);
    } else if !is_root && !policies.iter().any(|name| name == DEFAULT) {
        policies.push(DEFAULT.to_owned());
    }
    policies.sort();
    policies
}

/// A name for logs: what is not a letter, a digit or plain punctuation becomes a dash.
fn plain(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_.@/".contains(c);
    name.chars()
        .map(|c| if plain(c) { c } else { '-' })
        .collect()
}

// Looking up ----------------------------------------------------------------------------------

async fn lookup_self(at: &At<'_>, call: &Call) -> Result<Planned, Refusal> {
    let found = holder(at.granted)?;
    Ok(shown(at.authorizer, found, call.token.as_ref()))
}

async fn lookup(at: &At<'_>, call: &Call) -> Result<Planned, Refusal> {
    let token = Named::read(call)?.token()?;
    let found = at.authorizer.tokens().find(&token).await?;
    let found = counted(at, found.ok_or(Refusal::Denied)?);
    Ok(shown(at.authorizer, &found, Some(&token)))
}

async fn lookup_accessor(at: &At<'_>, call: &Call) -> Result<Planned, Refusal> {
    let found = by_accessor(at, &Named::read(call)?.accessor()?).await?;
    Ok(shown(at.authorizer, &found, None))
}

/// What is known of a token; without the token itself where only its accessor was named.
fn shown(authorizer: &Authorizer, found: &Found, token: Option<&Token>) -> Planned {
    let record = &found.record;
    let lifetime = &record.lifetime;
    let id = match token {
        Some(token) => Document::from(token),
        None => Document::of(&""),
    };
    let plain = |value: Value| Document::of(&value);
    let mut members = vec![
        ("accessor", plain(json!(record.accessor))),
        ("creation_time", plain(json!(lifetime.created))),
        ("creation_ttl", plain(json!(lifetime.ttl))),
        ("display_name", plain(json!(record.display_name))),
        ("entity_id", plain(json!(""))),
        ("expire_time", plain(json!(lifetime.expires.map(written)))),
        ("explicit_max_ttl", plain(json!(lifetime.explicit_max_ttl))),
        ("id", id),
        ("issue_time", plain(json!(written(lifetime.created)))),
        (
            "meta",
            plain(json!((!record.meta.is_empty()).then_some(&record.meta))),
        ),
        ("num_uses", plain(json!(record.uses_left))),
        ("orphan", plain(json!(record.parent.is_none()))),
        ("path", plain(json!(record.path))),
        ("policies", plain(json!(record.scope.policies))),
        ("renewable", plain(json!(lifetime.renewable))),
        (
            "ttl",
            plain(json!(lifetime.left(authorizer.tokens().now()))),
        ),
        ("type", plain(json!("service"))),
    ];
    if lifetime.period > 0 {
        members.push(("period", plain(json!(lifetime.period))));
    }
    if let Some(renewed) = lifetime.renewed {
        members.push(("last_renewal", plain(json!(written(renewed)))));
        members.push(("last_renewal_time", plain(json!(renewed))));
    }
    if !record.bound_cidrs.is_empty() {
        members.push(("bound_cidrs", plain(json!(record.bound_cidrs))));
    }
    if let Some(role) = &record.role {
        members.push(("role", plain(json!(role))));
    }
    let noted = noted(Action::Read, Some(&record.accessor));
    Planned::answer(Answer::Data(Document::object(members))).noting(noted)
}

fn written(seconds: u64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()?;
    time.format(&Rfc3339).ok()
}

// Renewing and ending -------------------------------------------------------------------------

async fn renew_self(at: &At<'_>, call: &Call) -> Result<Planned, Refusal> {
    let named = Named::read(call)?;
    let found = holder(at.granted)?.clone();
    let token = call.token.as_ref().map(Token::copied);
    renewed(at, found, token.ok_or(Refusal::Denied)?, named.increment)
}

async fn renew(at: &At<'_>, call: &Call) -> Result<Planned, Refusal> {
    let named = Named::read(call)?;
    let wanted = named.increment;
    let token = named.token()?;
    let found = at.authorizer.tokens().find(&token).await?;
    let found = counted(at, found.ok_or(Refusal::invalid("token not found"))?);
    renewed(at, found, token, wanted)
}

async fn renew_accessor(at: &At<'_>, call: &Call) -> Result<Planned, Refusal> {
    let named = Named::read(call)?;
    let wanted = named.increment;
    let found = by_accessor(at, &named.accessor()?).await?;
    renewed(at, found, Token::new(String::new()), wanted)
}

fn renewed(at: &At<'_>, found: Found, token: Token, wanted: Ttl) -> Result<Planned, Refusal> {
    let tokens = at.authorizer.tokens();
    let mut change = Change::default();
    let wanted = (wanted.0 > 0).then_some(wanted.0);
    let record = tokens
        .renew(&mut change, &found, wanted)
        .map_err(|error| Refusal::invalid(error.to_string()))?;
    let noted = noted(Action::Renew, Some(&record.accessor));
    let answer = Answer::Auth(auth(token, record, tokens.now()));
    Ok(Planned::of(change, Ok(answer)).noting(noted))
}

async fn revoke(at: &At<'_>, found: Found) -> Result<Planned, Refusal> {
    let mut change = Change::default();
    at.authorizer.tokens().end(&mut change, &found).await?;
    let noted = noted(Action::Revoke, Some(&found.record.accessor));
    Ok(Planned::done(change).noting(noted))
}

async fn release(at: &At<'_>, found: Found) -> Result<Planned, Refusal> {
    let mut change = Change::default();
    at.authorizer.tokens().release(&mut change, &found).await?;
    let noted = noted(Action::Revoke, Some(&found.record.accessor));
    Ok(Planned::done(change).noting(noted))
}
