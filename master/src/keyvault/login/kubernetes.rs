//! Kubernetes: a pod shows the JWT of its service account.
//!
//! Whether the JWT holds is found out in one of two ways: with the cluster's public keys, given as PEM
//! or JWKS; or by asking the cluster (TokenReview), which also knows of pods that are gone. Then the
//! role says which service accounts of which namespaces may log in.

mod review;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use wavry_credentials::{
    audit::Action,
    bearer::{
        Document, Json, Token,
        jwt::{Expected, Keys},
    },
};

use super::{
    At, configured, role_name,
    terms::{Login, Parameters, Terms},
};
use crate::{
    keyvault::{
        barrier::{Change, Revision},
        call::{Answer, Call, Noted, Operation, Planned, Refusal},
        parameter::Texts,
    },
    registry::unix_time,
};

/// Longest JWT and longest PEM or JWKS, in bytes.
const MAX_JWT: usize = 16 * 1024;
const MAX_PEM: usize = 64 * 1024;
const MAX_KEYS: usize = 16;
/// The issuer of service accounts' tokens where the cluster does not say another one.
const ISSUER: &str = "kubernetes/serviceaccount";

/// What is kept of a mount's settings, but for the token of the reviewer.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Config {
    kubernetes_host: String,
    kubernetes_ca_cert: String,
    pem_keys: Vec<String>,
    /// A JWKS as text.
    jwks: String,
    issuer: String,
    disable_iss_validation: bool,
    disable_local_ca_jwt: bool,
}

#[derive(Deserialize)]
struct ConfigBody {
    kubernetes_host: Option<String>,
    kubernetes_ca_cert: Option<String>,
    token_reviewer_jwt: Option<Token>,
    pem_keys: Option<Texts>,
    jwks: Option<String>,
    issuer: Option<String>,
    disable_iss_validation: Option<bool>,
    disable_local_ca_jwt: Option<bool>,
}

/// What is kept of a role.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Role {
    bound_service_account_names: Vec<String>,
    bound_service_account_namespaces: Vec<String>,
    audience: String,
    alias_name_source: String,
    terms: Terms,
}

#[derive(Deserialize)]
struct RoleBody {
    bound_service_account_names: Option<Texts>,
    bound_service_account_namespaces: Option<Texts>,
    audience: Option<String>,
    alias_name_source: Option<String>,
    #[serde(flatten)]
    terms: Parameters,
}

/// Plans an answer below a Kubernetes mount.
pub(super) async fn handle(at: At<'_>, call: &Call) -> Result<Planned, Refusal> {
    use Operation::{Create, Delete, List, Read, Update};
    let operation = at.granted.operation();
    let rest = at.rest.trim_end_matches('/');
    match (operation, rest) {
        (Create | Update, "login") => return login(&at, call).await,
        (Read, "config") => return show_config(&at).await,
        (Create | Update, "config") => return put_config(&at, call).await,
        _ => (),
    }
    let rest = rest.strip_prefix("role").ok_or(Refusal::Absent)?;
    match (operation, rest.strip_prefix('/').unwrap_or(rest)) {
        (List, "") => at.list_answer("role/").await,
        (_, "") => Err(Refusal::Unsupported),
        (Read, name) => {
            let (_, role) = read(&at, name).await?.ok_or(Refusal::Absent)?;
            Ok(Planned::answer(Answer::data(&role.shown())))
        }
        (Create | Update, name) => put(&at, name, call).await,
        (Delete, name) => {
            let mut change = Change::default();
            change.delete(at.entry(&format!("role/{}", role_name(name)?)));
            Ok(configured(change))
        }
        _ => Err(Refusal::Unsupported),
    }
}

// Settings ------------------------------------------------------------------------------------

async fn config(at: &At<'_>) -> Result<Option<(Revision, Config)>, Refusal> {
    Ok(at.barrier().read_record(&at.entry("config")).await?)
}

async fn reviewer(at: &At<'_>) -> Result<Option<Token>, Refusal> {
    let entry = at.barrier().read(&at.entry("reviewer")).await?;
    let broken = |_| Refusal::Internal("the token of the reviewer cannot be read");
    let token = entry.map(|entry| Json::stored(entry.value).read().map_err(broken));
    token.transpose()
}

async fn show_config(at: &At<'_>) -> Result<Planned, Refusal> {
    let (_, config) = config(at).await?.ok_or(Refusal::Absent)?;
    let data = json!({
        "kubernetes_host": config.kubernetes_host,
        "kubernetes_ca_cert": config.kubernetes_ca_cert,
        "pem_keys": config.pem_keys,
        "jwks": config.jwks,
        "issuer": config.issuer,
        "disable_iss_validation": config.disable_iss_validation,
        "disable_local_ca_jwt": config.disable_local_ca_jwt,
        "token_reviewer_jwt_set": reviewer(at).await?.is_some(),
    });
    Ok(Planned::answer(Answer::data(&data)))
}

async fn put_config(at: &At<'_>, call: &Call) -> Result<Planned, Refusal> {
    let body: ConfigBody = call.body()?;
    let held = config(at).await?;
    let mut change = Change::default();
    change.expect(
        at.entry("config"),
        held.as_ref().map(|(revision, _)| *revision),
    );
    // The whole is given each time, as Vault has it.
    let config = Config {
        kubernetes_host: body.kubernetes_host.unwrap_or_default(),
        kubernetes_ca_cert: body.kubernetes_ca_cert.unwrap_or_default(),
        pem_keys: body.pem_keys.unwrap_or_default().0,
        jwks: body.jwks.unwrap_or_default(),
        issuer: body.issuer.unwrap_or_default(),
        disable_iss_validation: body.disable_iss_validation.unwrap_or(true),
        disable_local_ca_jwt: body.disable_local_ca_jwt.unwrap_or(false),
    };
    config.check()?;
    change.put_record(at.entry("config"), &config);
    match body.token_reviewer_jwt {
        Some(token) if token.is_longer_than(MAX_JWT) => {
            return Err(Refusal::invalid("'token_reviewer_jwt' is too long"));
        }
        Some(token) if !token.matches("") => {
            change.put(at.entry("reviewer"), Document::from(&token).into_secret());
        }
        _ => change.delete(at.entry("reviewer")),
    }
    Ok(configured(change))
}

impl Config {
    fn check(&self) -> Result<(), Refusal> {
        if review::Server::parse(&self.kubernetes_host).is_none() {
            return Err(Refusal::invalid("kubernetes_host: write https://HOST:PORT"));
        }
        if self.disable_local_ca_jwt && self.kubernetes_ca_cert.is_empty() {
            return Err(Refusal::invalid(
                "kubernetes_ca_cert must be given when disable_local_ca_jwt is true",
            ));
        }
        let long = |text: &String| text.len() > MAX_PEM;
        if self.pem_keys.len() > MAX_KEYS
            || self.pem_keys.iter().any(long)
            || long(&self.kubernetes_ca_cert)
            || long(&self.jwks)
        {
            return Err(Refusal::invalid("too many or too long keys"));
        }
        self.keys().map(|_| ())
    }

    /// The cluster's public keys, if they were given.
    fn keys(&self) -> Result<Option<Keys>, Refusal> {
        let keys = match (self.pem_keys.is_empty(), self.jwks.is_empty()) {
            (true, true) => return Ok(None),
            (false, true) => Keys::from_pem(self.pem_keys.iter().map(String::as_str)),
            (true, false) => Keys::from_jwks(self.jwks.as_bytes()),
            (false, false) => {
                return Err(Refusal::invalid("give either pem_keys or jwks"));
            }
        };
        keys.map(Some)
            .map_err(|error| Refusal::invalid(error.to_string()))
    }

    fn issuer(&self) -> Option<&str> {
        match (self.disable_iss_validation, self.issuer.as_str()) {
            (true, _) => None,
            (false, "") => Some(ISSUER),
            (false, issuer) => Some(issuer),
        }
    }
}

// Roles ---------------------------------------------------------------------------------------

async fn read(at: &At<'_>, name: &str) -> Result<Option<(Revision, Role)>, Refusal> {
    let path = at.entry(&format!("role/{}", role_name(name)?));
    Ok(at.barrier().read_record(&path).await?)
}

async fn put(at: &At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    let body: RoleBody = call.body()?;
    let held = read(at, name).await?;
    let path = at.entry(&format!("role/{}", role_name(name)?));
    let mut change = Change::default();
    change.expect(&*path, held.as_ref().map(|(revision, _)| *revision));
    let mut role = held.map(|(_, role)| role).unwrap_or_default();
    role.update(body)?;
    change.put_record(path, &role);
    Ok(configured(change))
}

impl Role {
    fn update(&mut self, body: RoleBody) -> Result<(), Refusal> {
        if let Some(Texts(names)) = body.bound_service_account_names {
            self.bound_service_account_names = names;
        }
        if let Some(Texts(namespaces)) = body.bound_service_account_namespaces {
            self.bound_service_account_namespaces = namespaces;
        }
        if self.bound_service_account_names.is_empty() {
            return Err(Refusal::invalid(
                "\"bound_service_account_names\" can not be empty",
            ));
        }
        if self.bound_service_account_namespaces.is_empty() {
            return Err(Refusal::invalid(
                "\"bound_service_account_namespaces\" can not be empty",
            ));
        }
        if let Some(audience) = body.audience {
            self.audience = audience;
        }
        match body.alias_name_source.as_deref() {
            None | Some("") if !self.alias_name_source.is_empty() => (),
            None | Some("" | "serviceaccount_uid") => {
                "serviceaccount_uid".clone_into(&mut self.alias_name_source);
            }
            Some("serviceaccount_name") => {
                "serviceaccount_name".clone_into(&mut self.alias_name_source);
            }
            Some(_) => return Err(Refusal::invalid("invalid alias_name_source")),
        }
        self.terms.update(body.terms)
    }

    fn shown(&self) -> Map<String, serde_json::Value> {
        let mut shown = Map::new();
        for (name, value) in [
            (
                "bound_service_account_names",
                json!(self.bound_service_account_names),
            ),
            (
                "bound_service_account_namespaces",
                json!(self.bound_service_account_namespaces),
            ),
            ("audience", json!(self.audience)),
            ("alias_name_source", json!(self.alias_name_source)),
        ] {
            shown.insert(name.to_owned(), value);
        }
        self.terms.show(&mut shown);
        shown
    }

    fn admits(&self, account: &Account) -> bool {
        let fits = |bounds: &[String], name: &str| {
            let one = |bound: &String| match bound.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => bound == name,
            };
            bounds.iter().any(one)
        };
        fits(&self.bound_service_account_names, &account.name)
            && fits(&self.bound_service_account_namespaces, &account.namespace)
    }

    fn audience(&self) -> Option<&str> {
        (!self.audience.is_empty()).then_some(&*self.audience)
    }
}

// Login ---------------------------------------------------------------------------------------

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Account {
    namespace: String,
    name: String,
    uid: String,
}

/// What a service account's JWT says: the older form of a secret, or that of a projected volume.
#[derive(Deserialize)]
struct Claims {
    #[serde(rename = "kubernetes.io")]
    projected: Option<Projected>,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: Option<String>,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    name: Option<String>,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: Option<String>,
}

#[derive(Deserialize)]
struct Projected {
    namespace: String,
    serviceaccount: Named,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    uid: String,
}

impl Claims {
    fn account(self) -> Option<Account> {
        let account = match self.projected {
            Some(projected) => Account {
                namespace: projected.namespace,
                name: projected.serviceaccount.name,
                uid: projected.serviceaccount.uid,
            },
            None => Account {
                namespace: self.namespace?,
                name: self.name?,
                uid: self.uid?,
            },
        };
        let is_name = |text: &String| {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
            !text.is_empty() && text.len() <= 253 && text.chars().all(plain)
        };
        let fits = is_name(&account.namespace) && is_name(&account.name) && is_name(&account.uid);
        fits.then_some(account)
    }
}

async fn login(at: &At<'_>, call: &Call) -> Result<Planned, Refusal> {
    #[derive(Deserialize)]
    struct Shown {
        role: Option<String>,
        jwt: Option<Token>,
    }
    let shown: Shown = call.body()?;
    let role = shown.role.ok_or(Refusal::invalid("missing role"))?;
    let jwt = shown.jwt.ok_or(Refusal::invalid("missing jwt"))?;
    if jwt.is_longer_than(MAX_JWT) {
        return Err(Refusal::Denied);
    }
    let name = role_name(&role)?;
    let (settings, config) = config(at).await?.ok_or(Refusal::Denied)?;
    let (revision, role) = read(at, &name).await?.ok_or(Refusal::Denied)?;
    let account = verified(at, &config, &role, &jwt).await?;
    let account = account
        .filter(|account| role.admits(account))
        .ok_or(Refusal::Denied)?;
    let facts: BTreeMap<_, _> = [
        ("role", &name),
        ("service_account_name", &account.name),
        ("service_account_namespace", &account.namespace),
        ("service_account_uid", &account.uid),
    ]
    .map(|(name, value)| (name.to_owned(), value.clone()))
    .into();
    let login = Login {
        call,
        mount: at.mount,
        // A namespace has no dot, so that no two accounts have one name.
        unit: match role.alias_name_source.as_str() {
            "serviceaccount_name" => format!("{}.{}", account.namespace, account.name),
            _ => account.uid.clone(),
        },
        facts,
        bound_cidrs: Vec::new(),
    };
    let mut change = Change::default();
    change.expect(at.entry("config"), Some(settings));
    change.expect(at.entry(&format!("role/{name}")), Some(revision));
    let issued = role
        .terms
        .issue(at.authorizer.tokens(), &mut change, login)
        .await?;
    let noted = Noted {
        action: Some(Action::Login),
        actor: Some(issued.record.display_name.clone()),
        secret: Some(issued.record.accessor.clone()),
        ..Noted::default()
    };
    Ok(Planned::of(change, Ok(Answer::Auth(issued.into_auth()))).noting(noted))
}

/// Whose JWT it is, if it holds.
async fn verified(
    at: &At<'_>,
    config: &Config,
    role: &Role,
    jwt: &Token,
) -> Result<Option<Account>, Refusal> {
    let expected = Expected {
        audience: role.audience(),
        issuer: config.issuer(),
    };
    if let Some(keys) = config.keys()? {
        // The issuer's time is that of the wall.
        let claims = jwt.verify_jwt::<Claims>(&keys, expected, unix_time());
        return Ok(claims.ok().and_then(Claims::account));
    }
    // Nobody else's tokens are shown to the cluster.
    let said = jwt
        .unverified_jwt::<Claims>()
        .ok()
        .and_then(Claims::account);
    let Some(said) = said.filter(|account| role.admits(account)) else {
        return Ok(None);
    };
    let reviewer = reviewer(at).await?;
    let reviewed = review::ask(config, reviewer.as_ref(), jwt, role.audience()).await;
    let reviewed = reviewed.map_err(|failure| {
        tracing::warn!(error = %failure, "the Kubernetes API server reviewed no token");
        Refusal::Internal("the Kubernetes API server did not review the token")
    })?;
    Ok(reviewed.filter(|account| *account == said))
}

#[cfg(test)]
mod tests;
