//! Roles of AppRole.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use wavry_credentials::bearer::Fingerprint;

use super::{
    super::{
        At, configured, role_name,
        terms::{Parameters, Terms},
    },
    SecretId,
};
use crate::keyvault::{
    barrier::{Change, Revision},
    call::{Answer, Call, Operation, Planned, Refusal},
    parameter::Texts,
    random_id,
    token::{self, MAX_LEN},
    ttl::Ttl,
};

/// What is kept of a role.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Role {
    pub(super) name: String,
    /// Random; its secret-ids lie under it.
    pub(super) id: String,
    pub(super) role_id: String,
    pub(super) role_print: Fingerprint,
    pub(super) bind_secret_id: bool,
    pub(super) secret_id_bound_cidrs: Vec<IpNet>,
    pub(super) secret_id_num_uses: u64,
    pub(super) secret_id_ttl: u64,
    pub(super) local_secret_ids: bool,
    pub(super) terms: Terms,
}

/// What a request says of one. What is left out stays as it is.
#[derive(Default, Deserialize)]
struct Body {
    role_id: Option<String>,
    bind_secret_id: Option<bool>,
    #[serde(alias = "bound_cidr_list")]
    secret_id_bound_cidrs: Option<Texts>,
    secret_id_num_uses: Option<u64>,
    secret_id_ttl: Option<Ttl>,
    #[serde(alias = "enable_local_secret_ids")]
    local_secret_ids: Option<bool>,
    #[serde(flatten)]
    terms: Parameters,
}

pub(super) async fn read(at: &At<'_>, name: &str) -> Result<Option<(Revision, Role)>, Refusal> {
    let path = at.entry(&format!("role/{}", role_name(name)?));
    Ok(at.barrier().read_record(&path).await?)
}

pub(super) async fn show(at: &At<'_>, name: &str) -> Result<Planned, Refusal> {
    let (_, role) = read(at, name).await?.ok_or(Refusal::Absent)?;
    Ok(Planned::answer(Answer::data(&role.shown())))
}

impl Role {
    fn shown(&self) -> Map<String, Value> {
        let mut shown = Map::new();
        let cidrs = (!self.secret_id_bound_cidrs.is_empty()).then_some(&self.secret_id_bound_cidrs);
        shown.insert("bind_secret_id".into(), json!(self.bind_secret_id));
        shown.insert("local_secret_ids".into(), json!(self.local_secret_ids));
        shown.insert("secret_id_bound_cidrs".into(), json!(cidrs));
        shown.insert("secret_id_num_uses".into(), json!(self.secret_id_num_uses));
        shown.insert("secret_id_ttl".into(), json!(self.secret_id_ttl));
        self.terms.show(&mut shown);
        shown
    }

    fn update(&mut self, body: Body) -> Result<(), Refusal> {
        self.bind_secret_id = body.bind_secret_id.unwrap_or(self.bind_secret_id);
        if let Some(texts) = body.secret_id_bound_cidrs {
            self.secret_id_bound_cidrs = token::networks(&texts)?;
        }
        self.secret_id_num_uses = body.secret_id_num_uses.unwrap_or(self.secret_id_num_uses);
        self.secret_id_ttl = body.secret_id_ttl.map_or(self.secret_id_ttl, |ttl| ttl.0);
        self.terms.update(body.terms)?;
        if !self.bind_secret_id
            && self.secret_id_bound_cidrs.is_empty()
            && !self.terms.has_networks()
        {
            return Err(Refusal::invalid(
                "at least one constraint should be enabled on the role: bind_secret_id, or CIDRs",
            ));
        }
        Ok(())
    }
}

pub(super) async fn put(at: &At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    let name = role_name(name)?;
    let held = read(at, &name).await?;
    let path = at.entry(&format!("role/{name}"));
    let mut change = Change::default();
    change.expect(&*path, held.as_ref().map(|(revision, _)| *revision));
    let body: Body = call.body()?;
    let chosen = body.role_id.clone();
    let is_new = held.is_none();
    let mut role = match held {
        Some((_, role)) => role,
        None => made(at, &name).await?,
    };
    let before = role.role_print;
    if is_new && let Some(local) = body.local_secret_ids {
        role.local_secret_ids = local;
    }
    role.update(body)?;
    if let Some(role_id) = chosen.filter(|id| !id.is_empty()) {
        choose_id(at, &mut role, role_id).await?;
    }
    if is_new || role.role_print != before {
        index(at, &role, (!is_new).then_some(before), &mut change);
    }
    if is_new && at.barrier().read(&at.entry("decoy")).await?.is_none() {
        // What an unknown role-id is looked up in, so that it takes as long as a known one. Nobody
        // can name it: a role's name is not empty.
        change.put_record(at.entry("decoy"), &made(at, "").await?);
        change.put_record(at.entry("decoy-index"), &String::new());
        change.put_record(at.entry("decoy-secret-id"), &SecretId::decoy());
    }
    change.put_record(path, &role);
    Ok(configured(change))
}

async fn made(at: &At<'_>, name: &str) -> Result<Role, Refusal> {
    let role_id = random_id();
    let fingerprints = at.authorizer.tokens().fingerprints().await?;
    Ok(Role {
        name: name.to_owned(),
        id: random_id(),
        role_print: fingerprints.of_name("role-id", &role_id),
        role_id,
        bind_secret_id: true,
        secret_id_bound_cidrs: Vec::new(),
        secret_id_num_uses: 0,
        secret_id_ttl: 0,
        local_secret_ids: false,
        terms: Terms::default(),
    })
}

async fn choose_id(at: &At<'_>, role: &mut Role, role_id: String) -> Result<(), Refusal> {
    if role_id.is_empty() || role_id.len() > MAX_LEN {
        return Err(Refusal::invalid(
            "missing role_id, or a role_id that is too long",
        ));
    }
    let fingerprints = at.authorizer.tokens().fingerprints().await?;
    role.role_print = fingerprints.of_name("role-id", &role_id);
    role.role_id = role_id;
    Ok(())
}

/// Plans that the role is found by its role-id, and by no other one. Another role's is not taken.
fn index(at: &At<'_>, role: &Role, before: Option<Fingerprint>, change: &mut Change) {
    if before == Some(role.role_print) {
        return;
    }
    let path = at.entry(&format!("role-id/{}", role.role_print));
    change.expect(&*path, None);
    change.put_record(path, &role.name);
    if let Some(before) = before {
        change.delete(at.entry(&format!("role-id/{before}")));
    }
}

pub(super) async fn delete(at: &At<'_>, name: &str) -> Result<Planned, Refusal> {
    let mut change = Change::default();
    if let Some((revision, role)) = read(at, name).await? {
        let path = at.entry(&format!("role/{}", role.name));
        change.expect(&*path, Some(revision));
        change.delete(path);
        change.delete(at.entry(&format!("role-id/{}", role.role_print)));
        // Its secret-ids are found by nobody any more; tidying takes away what is left of them.
        super::secret_ids::delete_all(at, &role, &mut change).await?;
    }
    Ok(configured(change))
}

pub(super) async fn show_id(at: &At<'_>, name: &str) -> Result<Planned, Refusal> {
    let (_, role) = read(at, name).await?.ok_or(Refusal::Absent)?;
    Ok(Planned::answer(Answer::data(
        &json!({ "role_id": role.role_id }),
    )))
}

pub(super) async fn put_id(at: &At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    #[derive(Deserialize)]
    struct Body {
        role_id: Option<String>,
    }
    let body: Body = call.body()?;
    let (revision, mut role) = read(at, name).await?.ok_or(Refusal::Absent)?;
    let before = role.role_print;
    choose_id(at, &mut role, body.role_id.unwrap_or_default()).await?;
    if role.role_print != before {
        let taken = at.entry(&format!("role-id/{}", role.role_print));
        if at.barrier().read(&taken).await?.is_some() {
            return Err(Refusal::invalid("another role has this role_id"));
        }
    }
    let mut change = Change::default();
    let path = at.entry(&format!("role/{}", role.name));
    change.expect(&*path, Some(revision));
    index(at, &role, Some(before), &mut change);
    change.put_record(path, &role);
    Ok(configured(change))
}

/// One setting at a path of its own, as `role/NAME/policies`.
pub(super) async fn field(
    at: &At<'_>,
    name: &str,
    field: &str,
    operation: Operation,
    call: &Call,
) -> Result<Planned, Refusal> {
    const FIELDS: [(&str, &str); 12] = [
        ("policies", "token_policies"),
        ("local-secret-ids", "local_secret_ids"),
        ("bound-cidr-list", "secret_id_bound_cidrs"),
        ("secret-id-bound-cidrs", "secret_id_bound_cidrs"),
        ("token-bound-cidrs", "token_bound_cidrs"),
        ("bind-secret-id", "bind_secret_id"),
        ("secret-id-num-uses", "secret_id_num_uses"),
        ("secret-id-ttl", "secret_id_ttl"),
        ("period", "token_period"),
        ("token-num-uses", "token_num_uses"),
        ("token-ttl", "token_ttl"),
        ("token-max-ttl", "token_max_ttl"),
    ];
    let known = FIELDS.iter().find(|(path, _)| *path == field);
    let (_, key) = known.ok_or(Refusal::Absent)?;
    let (revision, mut role) = read(at, name).await?.ok_or(Refusal::Absent)?;
    match operation {
        Operation::Read => {
            let shown = role.shown();
            let value = shown.get(*key).cloned().unwrap_or_default();
            let mut data = Map::new();
            data.insert((*key).to_owned(), value);
            Ok(Planned::answer(Answer::data(&data)))
        }
        Operation::Create | Operation::Update => {
            if *key == "local_secret_ids" {
                return Err(Refusal::Unsupported);
            }
            let body: Body = call.body()?;
            role.update(body)?;
            let mut change = Change::default();
            let path = at.entry(&format!("role/{}", role.name));
            change.expect(&*path, Some(revision));
            change.put_record(path, &role);
            Ok(configured(change))
        }
        Operation::Delete => {
            let fresh = made(at, &role.name).await?;
            match *key {
                "secret_id_bound_cidrs" => role.secret_id_bound_cidrs = Vec::new(),
                "bind_secret_id" => role.bind_secret_id = fresh.bind_secret_id,
                "secret_id_num_uses" => role.secret_id_num_uses = 0,
                "secret_id_ttl" => role.secret_id_ttl = 0,
                key => role.terms.reset(key),
            }
            role.update(Body::default())?;
            let mut change = Change::default();
            let path = at.entry(&format!("role/{}", role.name));
            change.expect(&*path, Some(revision));
            change.put_record(path, &role);
            Ok(configured(change))
        }
        _ => Err(Refusal::Unsupported),
    }
}
