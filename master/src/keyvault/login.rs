//! How units show who they are: AppRole, Kubernetes, client certificates, bootstrap tokens.
//!
//! Each method is mounted below `auth/`, keeps its roles under the mount's id, and has one path that
//! is open to anyone, `login`. There it answers with a token or with one refusal that is the same for
//! all that is wrong. [`Gate`] holds logins to a rate, so that a flood of them leaves room for
//! everything else, and makes who guesses wait.

pub(super) mod approle;
pub(super) mod bootstrap;
pub(super) mod cert;
mod gate;
pub(super) mod kubernetes;
mod terms;

use wavry_credentials::audit::Action;

use super::{
    authorize::{Authorizer, Granted},
    barrier::{Barrier, Change},
    call::{Answer, Call, Noted, Operation, Planned, Refusal},
    mount::{self, Kind, Mount},
};

pub(super) use gate::Gate;
pub use gate::Limits;

/// Most names in one answer.
const MAX_NAMES: usize = 10_000;

/// Where a method is asked, and by whom.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) authorizer: &'a Authorizer,
    pub(super) granted: &'a Granted,
    pub(super) mount: &'a Mount,
    /// The path below the mount.
    pub(super) rest: &'a str,
}

impl At<'_> {
    pub(super) fn barrier(&self) -> &Barrier {
        self.authorizer.barrier()
    }

    /// Path in the barrier of what this mount keeps as `name`.
    fn entry(&self, name: &str) -> String {
        format!("{}{name}", self.mount.prefix())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, Refusal> {
        Ok(self
            .barrier()
            .list(&self.entry(prefix), None, MAX_NAMES)
            .await?)
    }

    async fn list_answer(&self, prefix: &str) -> Result<Planned, Refusal> {
        keys(self.list(prefix).await?)
    }
}

/// Asks the method that is mounted there.
pub(super) async fn handle(at: At<'_>, call: &Call) -> Result<Planned, Refusal> {
    match at.mount.kind {
        Kind::Token => super::token::handle(at, call).await,
        Kind::AppRole => approle::handle(at, call).await,
        Kind::Kubernetes => kubernetes::handle(at, call).await,
        Kind::Cert => cert::handle(at, call).await,
        Kind::Bootstrap => bootstrap::handle(at, call).await,
        _ => Err(Refusal::Internal(
            "a secret engine is mounted as an auth method",
        )),
    }
}

/// Whether what a write names is there already: it decides whether `create` or `update` is asked of
/// the policy.
pub(super) async fn exists(barrier: &Barrier, mount: &Mount, rest: &str) -> Result<bool, Refusal> {
    let name = |folder: &str| {
        let name = rest.strip_prefix(folder)?;
        (!name.is_empty() && !name.contains('/')).then(|| format!("{folder}{name}"))
    };
    let entry = match mount.kind {
        Kind::Token => return super::token::exists(barrier, rest).await,
        Kind::AppRole | Kind::Bootstrap => name("role/"),
        Kind::Kubernetes => name("role/").or((rest == "config").then(|| rest.to_owned())),
        Kind::Cert => name("certs/"),
        _ => None,
    };
    match entry {
        Some(entry) => Ok(barrier
            .read(&format!("{}{entry}", mount.prefix()))
            .await?
            .is_some()),
        None => Ok(true),
    }
}

/// Whether a path below a mount of this kind is open to anyone.
pub(super) fn is_login(kind: Kind, rest: &str, operation: Operation) -> bool {
    let can_login = matches!(
        kind,
        Kind::AppRole | Kind::Kubernetes | Kind::Cert | Kind::Bootstrap
    );
    let writes = matches!(operation, Operation::Create | Operation::Update);
    can_login && rest == "login" && writes
}

/// Takes away what expired below the methods' mounts, some hundred entries of each in one go. Gives
/// how many it took.
pub(super) async fn sweep(authorizer: &Authorizer) -> Result<u64, Refusal> {
    let mounts = mount::Read::from(authorizer.barrier()).await?;
    let mut swept = 0;
    for mount in mounts.table.list(true) {
        swept += match mount.kind {
            Kind::AppRole => approle::sweep(authorizer, mount).await?,
            Kind::Bootstrap => bootstrap::sweep(authorizer, mount).await?,
            _ => 0,
        };
    }
    Ok(swept)
}

/// Names, as `LIST` gives them. Without any there is nothing at the path.
pub(super) fn keys(keys: Vec<String>) -> Result<Planned, Refusal> {
    match keys.is_empty() {
        true => Err(Refusal::Absent),
        false => Ok(Planned::answer(Answer::data(
            &serde_json::json!({ "keys": keys }),
        ))),
    }
}

/// A change of a setting, with nothing to tell.
pub(super) fn configured(change: Change) -> Planned {
    Planned::done(change).noting(Noted {
        action: Some(Action::Configure),
        ..Noted::default()
    })
}

/// A role's name as it is kept: in small letters.
fn role_name(name: &str) -> Result<String, Refusal> {
    const MAX_NAME: usize = 128;
    let fits = !name.is_empty() && name.len() <= MAX_NAME && !name.contains(['/', ',']);
    match fits {
        true => Ok(name.to_lowercase()),
        false => Err(Refusal::invalid("not the name of a role")),
    }
}
