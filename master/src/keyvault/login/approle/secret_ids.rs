//! Secret-ids of AppRole. Their HMAC is kept, never they themselves.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use wavry_credentials::{
    audit::Action,
    bearer::{Document, Fingerprint, Fingerprints, Token},
};

use super::{
    super::{At, Authorizer, Mount, keys},
    roles::{self, Role},
};
use crate::keyvault::{
    barrier::{Change, CommitError, Revision},
    call::{Answer, Call, Noted, Planned, Refusal},
    parameter::{Facts, Texts},
    random_id,
    token::{self, MAX_LEN, smallest},
    ttl::Ttl,
};

/// Secret-ids that are taken away with their role in one go; tidying takes the others.
const AT_ONCE: usize = 500;

/// What is kept of a secret-id.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct SecretId {
    pub(super) accessor: String,
    pub(super) created: u64,
    pub(super) updated: u64,
    /// 0: without end.
    pub(super) ttl: u64,
    /// How often it can still be used; 0: without bound.
    pub(super) uses_left: u64,
    pub(super) cidr_list: Vec<IpNet>,
    pub(super) token_bound_cidrs: Vec<IpNet>,
    pub(super) metadata: BTreeMap<String, String>,
}

impl SecretId {
    /// One that nobody has, as large as others.
    pub(super) fn decoy() -> Self {
        Self {
            accessor: random_id(),
            created: 0,
            updated: 0,
            ttl: 1,
            uses_left: 0,
            cidr_list: Vec::new(),
            token_bound_cidrs: Vec::new(),
            metadata: BTreeMap::new(),
        }
    }

    pub(super) fn is_good(&self, now: u64) -> bool {
        self.ttl == 0 || now < self.created.saturating_add(self.ttl)
    }
}

/// One that was found.
pub(super) struct Held {
    pub(super) print: Fingerprint,
    pub(super) revision: Revision,
    pub(super) id: SecretId,
}

impl Held {
    /// Plans that a use is counted. Who else uses it at the same time, or takes it away, is a
    /// conflict.
    pub(super) fn count_use(
        &self,
        at: &At<'_>,
        fingerprints: &Fingerprints,
        role: &Role,
        change: &mut Change,
    ) {
        let path = path(at, &role.id, self.print);
        change.expect(&*path, Some(self.revision));
        match self.id.uses_left {
            0 => (),
            1 => self.delete(at, fingerprints, role, change),
            left => {
                let mut id = self.id.clone();
                id.uses_left = left - 1;
                id.updated = at.authorizer.tokens().now();
                change.put_record(path, &id);
            }
        }
    }

    fn delete(&self, at: &At<'_>, fingerprints: &Fingerprints, role: &Role, change: &mut Change) {
        change.delete(path(at, &role.id, self.print));
        let prefix = at.mount.prefix();
        change.delete(accessor_path(
            &prefix,
            fingerprints,
            &role.id,
            &self.id.accessor,
        ));
    }
}

pub(super) fn path(at: &At<'_>, role: &str, print: Fingerprint) -> String {
    at.entry(&format!("secret-id/{role}/{print}"))
}

fn accessor_path(prefix: &str, fingerprints: &Fingerprints, role: &str, accessor: &str) -> String {
    let print = fingerprints.of_name("secret-id-accessor", accessor);
    format!("{prefix}accessor/{role}/{print}")
}

/// An accessor, and whose it is.
#[derive(Serialize, Deserialize)]
struct Accessor {
    secret_id: Fingerprint,
    accessor: String,
}

#[derive(Deserialize)]
struct Body {
    secret_id: Option<Token>,
    secret_id_accessor: Option<String>,
    #[serde(default)]
    metadata: Facts,
    #[serde(default)]
    cidr_list: Texts,
    #[serde(default)]
    token_bound_cidrs: Texts,
    ttl: Option<Ttl>,
    num_uses: Option<u64>,
}

async fn role(at: &At<'_>, name: &str) -> Result<Role, Refusal> {
    let role = roles::read(at, name).await?;
    role.map(|(_, role)| role).ok_or(Refusal::Absent)
}

pub(super) async fn list(at: &At<'_>, name: &str) -> Result<Planned, Refusal> {
    let role = role(at, name).await?;
    let folder = format!("accessor/{}/", role.id);
    let mut accessors = Vec::new();
    for name in at.list(&folder).await? {
        let path = at.entry(&format!("{folder}{name}"));
        if let Some((_, held)) = at.barrier().read_record::<Accessor>(&path).await? {
            accessors.push(held.accessor);
        }
    }
    keys(accessors)
}

/// Makes one that nobody can guess.
pub(super) async fn generate(at: &At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    let body: Body = call.body()?;
    make(at, name, Token::random(""), body).await
}

/// Keeps one that somebody chose.
pub(super) async fn choose(at: &At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    let mut body: Body = call.body()?;
    let chosen = body.secret_id.take();
    let chosen = chosen.filter(|id| !id.matches("") && !id.is_longer_than(MAX_LEN));
    let chosen = chosen.ok_or(Refusal::invalid(
        "missing secret_id, or one that is too long",
    ))?;
    make(at, name, chosen, body).await
}

async fn make(at: &At<'_>, name: &str, secret_id: Token, body: Body) -> Result<Planned, Refusal> {
    let (read, role) = roles::read(at, name).await?.ok_or(Refusal::Absent)?;
    if !role.bind_secret_id {
        return Err(Refusal::invalid("bind_secret_id is not set on the role"));
    }
    let cidr_list = within(&body.cidr_list, &role.secret_id_bound_cidrs)?;
    let token_bound_cidrs = within(&body.token_bound_cidrs, role.terms.networks())?;
    let ttl = smallest(body.ttl.unwrap_or_default().0, role.secret_id_ttl);
    let uses = smallest(body.num_uses.unwrap_or(0), role.secret_id_num_uses);
    let now = at.authorizer.tokens().now();
    let id = SecretId {
        accessor: random_id(),
        created: now,
        updated: now,
        ttl,
        uses_left: uses,
        cidr_list,
        token_bound_cidrs,
        metadata: body.metadata.0,
    };
    let fingerprints = at.authorizer.tokens().fingerprints().await?;
    let print = fingerprints.of("secret-id", &secret_id);
    let path = path(at, &role.id, print);
    if at.barrier().read(&path).await?.is_some() {
        return Err(Refusal::invalid("SecretID is already registered"));
    }
    let mut change = Change::default();
    change.expect(at.entry(&format!("role/{}", role.name)), Some(read));
    change.expect(&*path, None);
    change.put_record(path, &id);
    let accessor = Accessor {
        secret_id: print,
        accessor: id.accessor.clone(),
    };
    let accessor_path = accessor_path(&at.mount.prefix(), &fingerprints, &role.id, &id.accessor);
    change.put_record(accessor_path, &accessor);
    let plain = |value: Value| Document::of(&value);
    let answer = Document::object([
        ("secret_id", Document::from(&secret_id)),
        ("secret_id_accessor", plain(json!(id.accessor))),
        ("secret_id_ttl", plain(json!(id.ttl))),
        ("secret_id_num_uses", plain(json!(id.uses_left))),
    ]);
    let noted = noted(Action::Issue, &id.accessor);
    Ok(Planned::of(change, Ok(Answer::Data(answer))).noting(noted))
}

/// Networks that lie in those of the role, if that has any.
fn within(texts: &Texts, bounds: &[IpNet]) -> Result<Vec<IpNet>, Refusal> {
    let networks = token::networks(texts)?;
    let fits =
        |network: &IpNet| bounds.is_empty() || bounds.iter().any(|bound| bound.contains(network));
    match networks.iter().all(fits) {
        true => Ok(networks),
        false => Err(Refusal::invalid(
            "the CIDRs of a secret-id must lie in those of its role",
        )),
    }
}

fn noted(action: Action, accessor: &str) -> Noted {
    Noted {
        action: Some(action),
        secret: Some(accessor.to_owned()),
        ..Noted::default()
    }
}

async fn find(at: &At<'_>, role: &Role, call: &Call) -> Result<Option<Held>, Refusal> {
    let body: Body = call.body()?;
    let shown = body
        .secret_id
        .ok_or(Refusal::invalid("missing secret_id"))?;
    if shown.is_longer_than(MAX_LEN) {
        return Ok(None);
    }
    let print = at
        .authorizer
        .tokens()
        .fingerprints()
        .await?
        .of("secret-id", &shown);
    held(at, role, print).await
}

async fn find_by_accessor(at: &At<'_>, role: &Role, call: &Call) -> Result<Option<Held>, Refusal> {
    let body: Body = call.body()?;
    let missing = Refusal::invalid("missing secret_id_accessor");
    let accessor = body.secret_id_accessor.ok_or(missing)?;
    let fingerprints = at.authorizer.tokens().fingerprints().await?;
    let path = accessor_path(&at.mount.prefix(), &fingerprints, &role.id, &accessor);
    match at.barrier().read_record::<Accessor>(&path).await? {
        Some((_, named)) => held(at, role, named.secret_id).await,
        None => Ok(None),
    }
}

async fn held(at: &At<'_>, role: &Role, print: Fingerprint) -> Result<Option<Held>, Refusal> {
    let record = at
        .barrier()
        .read_record::<SecretId>(&path(at, &role.id, print))
        .await?;
    let now = at.authorizer.tokens().now();
    Ok(record
        .filter(|(_, id)| id.is_good(now))
        .map(|(revision, id)| Held {
            print,
            revision,
            id,
        }))
}

pub(super) async fn lookup(at: &At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    let role = role(at, name).await?;
    match find(at, &role, call).await? {
        Some(held) => Ok(shown(&role, &held.id)),
        // As Vault has it: nothing to tell.
        None => Ok(Planned::answer(Answer::Done)),
    }
}

pub(super) async fn lookup_accessor(
    at: &At<'_>,
    name: &str,
    call: &Call,
) -> Result<Planned, Refusal> {
    let role = role(at, name).await?;
    match find_by_accessor(at, &role, call).await? {
        Some(held) => Ok(shown(&role, &held.id)),
        None => Err(Refusal::Absent),
    }
}

fn shown(role: &Role, id: &SecretId) -> Planned {
    let expires = if id.ttl == 0 {
        None
    } else {
        written(id.created.saturating_add(id.ttl))
    };
    let never = "0001-01-01T00:00:00Z".to_owned();
    let data = json!({
        "cidr_list": id.cidr_list,
        "creation_time": written(id.created),
        "expiration_time": expires.unwrap_or(never),
        "last_updated_time": written(id.updated),
        "metadata": id.metadata,
        "secret_id_accessor": id.accessor,
        "secret_id_num_uses": id.uses_left,
        "secret_id_ttl": id.ttl,
        "token_bound_cidrs": id.token_bound_cidrs,
        "role_name": role.name,
    });
    Planned::answer(Answer::data(&data)).noting(noted(Action::Read, &id.accessor))
}

fn written(seconds: u64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()?;
    time.format(&Rfc3339).ok()
}

pub(super) async fn destroy(at: &At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    let role = role(at, name).await?;
    match find(at, &role, call).await? {
        Some(held) => destroyed(at, &role, &held).await,
        None => Ok(Planned::answer(Answer::Done)),
    }
}

pub(super) async fn destroy_accessor(
    at: &At<'_>,
    name: &str,
    call: &Call,
) -> Result<Planned, Refusal> {
    let role = role(at, name).await?;
    match find_by_accessor(at, &role, call).await? {
        Some(held) => destroyed(at, &role, &held).await,
        None => Err(Refusal::Absent),
    }
}

async fn destroyed(at: &At<'_>, role: &Role, held: &Held) -> Result<Planned, Refusal> {
    let fingerprints = at.authorizer.tokens().fingerprints().await?;
    let mut change = Change::default();
    change.expect(path(at, &role.id, held.print), Some(held.revision));
    held.delete(at, &fingerprints, role, &mut change);
    Ok(Planned::done(change).noting(noted(Action::Revoke, &held.id.accessor)))
}

/// Plans that a role's secret-ids are gone, as far as one change should.
pub(super) async fn delete_all(
    at: &At<'_>,
    role: &Role,
    change: &mut Change,
) -> Result<(), Refusal> {
    for kind in ["secret-id", "accessor"] {
        let folder = at.entry(&format!("{kind}/{}/", role.id));
        for name in at.barrier().list(&folder, None, AT_ONCE).await? {
            change.delete(format!("{folder}{name}"));
        }
    }
    Ok(())
}

/// Takes away what is left of roles that are gone, and secret-ids that expired; some hundred in one
/// go.
pub(super) async fn tidy(at: &At<'_>) -> Result<Planned, Refusal> {
    let (change, _) = plan_tidy(at.authorizer, at.mount).await?;
    let noted = Noted {
        action: Some(Action::Revoke),
        ..Noted::default()
    };
    Ok(Planned::done(change).noting(noted))
}

/// The same in the background. Gives how many entries were taken away.
pub(in crate::keyvault::login) async fn sweep(
    authorizer: &Authorizer,
    mount: &Mount,
) -> Result<u64, Refusal> {
    let (change, count) = plan_tidy(authorizer, mount).await?;
    if count == 0 {
        return Ok(0);
    }
    match authorizer.barrier().commit(change).await {
        Ok(()) => Ok(count),
        // Another one is used meanwhile; the next round finds the rest.
        Err(CommitError::Conflict) => Ok(0),
        Err(CommitError::Failed(error)) => Err(error.into()),
    }
}

async fn plan_tidy(authorizer: &Authorizer, mount: &Mount) -> Result<(Change, u64), Refusal> {
    let barrier = authorizer.barrier();
    let prefix = mount.prefix();
    let now = authorizer.tokens().now();
    let fingerprints = authorizer.tokens().fingerprints().await?;
    let mut change = Change::default();
    let mut room = AT_ONCE;
    // Before the roles: whatever is there and belongs to none of them is left of one that is gone.
    let mut folders = Vec::new();
    for kind in ["secret-id", "accessor"] {
        let kind = format!("{prefix}{kind}/");
        for folder in barrier.list(&kind, None, usize::MAX).await? {
            folders.push((kind.clone(), folder));
        }
    }
    let mut known = std::collections::BTreeSet::new();
    let roles = format!("{prefix}role/");
    for name in barrier.list(&roles, None, usize::MAX).await? {
        let Some((_, role)) = barrier
            .read_record::<Role>(&format!("{roles}{name}"))
            .await?
        else {
            continue;
        };
        let folder = format!("{prefix}secret-id/{}/", role.id);
        for name in barrier.list(&folder, None, usize::MAX).await? {
            let path = format!("{folder}{name}");
            let record = barrier.read_record::<SecretId>(&path).await?;
            if let Some((revision, id)) = record.filter(|(_, id)| !id.is_good(now)) {
                change.expect(&*path, Some(revision));
                change.delete(path);
                change.delete(accessor_path(
                    &prefix,
                    &fingerprints,
                    &role.id,
                    &id.accessor,
                ));
                room -= 1;
            }
            if room == 0 {
                break;
            }
        }
        known.insert(role.id);
        if room == 0 {
            break;
        }
    }
    for (kind, folder) in folders {
        if room == 0 || known.contains(folder.trim_end_matches('/')) {
            continue;
        }
        let folder = format!("{kind}{folder}");
        for name in barrier.list(&folder, None, room).await? {
            change.delete(format!("{folder}{name}"));
            room -= 1;
        }
    }
    Ok((change, (AT_ONCE - room) as u64))
}
