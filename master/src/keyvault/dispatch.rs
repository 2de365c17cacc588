//! What lies where: from a path to the room that answers it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use time::OffsetDateTime;

use super::{
    KeyVault,
    authorize::{Access, Granted, Handler, Route},
    call::{Answer, Call, Operation, Planned, Refusal},
    engine, login, mount, sys, wrapping,
};

/// How long the table of mounts is used without being read again. What was decided with an older one
/// is never done: each change expects the table that it was planned with.
const MAX_AGE: Duration = Duration::from_secs(1);

/// The table of mounts, as it was read.
#[derive(Default)]
pub(super) struct Mounts(arc_swap::ArcSwapOption<(Instant, mount::Read)>);

impl Mounts {
    /// Forgets it.
    pub(super) fn forget(&self) {
        self.0.store(None);
    }
}

/// One call on its way.
pub(super) struct Dispatch<'a> {
    vault: &'a KeyVault,
    /// The two-endpoint dialect.
    is_plain: bool,
    /// Whether the table of mounts was looked at: who has to look again looks at it as it is now.
    has_looked: AtomicBool,
}

impl KeyVault {
    /// Answers a call: finds who asks and whether they may, does it, puts it on record, and only then
    /// answers.
    pub async fn handle(&self, mut call: Call) -> Result<Answer, Refusal> {
        let is_plain = self.make_plain(&mut call).await?;
        let dispatch = Dispatch {
            vault: self,
            is_plain,
            has_looked: AtomicBool::new(false),
        };
        let answer = self.authorizer.handle(&call, &dispatch).await;
        if sys::changes_mounts(&call) {
            self.mounts.forget();
        }
        answer
    }

    /// Whether a call is in the two-endpoint dialect: a path below `secret/` that is none of KV
    /// version 2. It then gets the path of the same secret there, so that policies and the audit log
    /// know one name for it.
    async fn make_plain(&self, call: &mut Call) -> Result<bool, Refusal> {
        if !call.path.as_str().starts_with(PLAIN_MOUNT) || !self.barrier.is_unsealed() {
            return Ok(false);
        }
        let mounts = self.mounts(false).await?;
        let Some((mount, rest)) = mounts.1.table.find(call.path.as_str()) else {
            return Ok(false);
        };
        let is_of_vault = engine::kv2::has_room(rest.split('/').next().unwrap_or_default());
        if mount.kind != mount::Kind::Kv2 || mount.path != PLAIN_MOUNT || is_of_vault {
            return Ok(false);
        }
        let room = match call.operation {
            Operation::List => "metadata",
            _ => "data",
        };
        call.path = super::path::Canonical::parse(&format!("{PLAIN_MOUNT}{room}/{rest}"))
            .map_err(|error| Refusal::invalid(error.to_string()))?;
        Ok(true)
    }

    /// The table of mounts; `fresh`: as it is now.
    async fn mounts(&self, fresh: bool) -> Result<Arc<(Instant, mount::Read)>, Refusal> {
        if !fresh
            && let Some(held) = self.mounts.0.load_full()
            && held.0.elapsed() < MAX_AGE
        {
            return Ok(held);
        }
        let read = Arc::new((Instant::now(), mount::Read::from(&self.barrier).await?));
        self.mounts.0.store(Some(read.clone()));
        Ok(read)
    }
}

/// Where the two-endpoint dialect's secrets are.
const PLAIN_MOUNT: &str = "secret/";

impl Handler for Dispatch<'_> {
    async fn route(&self, call: &Call) -> Result<Route, Refusal> {
        let again = self.has_looked.swap(true, Ordering::Relaxed);
        let path = call.path.as_str();
        let holder = |operation| Route {
            operation,
            access: Access::Holder,
        };
        if let Some(rest) = path.strip_prefix("sys/") {
            return Ok(Route {
                operation: call.operation,
                access: sys::access(rest, call.operation),
            });
        }
        let mounts = self.vault.mounts(again).await?;
        let Some((mount, rest)) = mounts.1.table.find(path) else {
            return Ok(holder(call.operation));
        };
        if mount.kind.is_auth() && login::is_login(mount.kind, rest, call.operation) {
            return Ok(Route {
                operation: call.operation,
                access: Access::Login,
            });
        }
        if call.operation != Operation::Update {
            return Ok(holder(call.operation));
        }
        let exists = match mount.kind.is_auth() {
            true => login::exists(&self.vault.barrier, mount, rest).await?,
            false => engine::exists(self.at(mount, rest)).await?,
        };
        Ok(holder(match exists {
            true => Operation::Update,
            false => Operation::Create,
        }))
    }

    async fn plan(&self, call: &Call, granted: &Granted) -> Planned {
        let planned = match self.answer(call, granted).await {
            Ok(planned) => planned,
            Err(refusal) => return Planned::refused(refusal),
        };
        match call.wrap_ttl {
            Some(ttl) => {
                let tokens = self.vault.authorizer.tokens();
                let wrapped = wrapping::wrap(tokens, call, ttl, planned).await;
                wrapped.unwrap_or_else(Planned::refused)
            }
            None => planned,
        }
    }

    async fn has_mount(&self, id: &str) -> Result<bool, Refusal> {
        let mounts = self.vault.mounts(false).await?;
        Ok(mounts.1.table.list(true).any(|mount| mount.id == id))
    }
}

impl Dispatch<'_> {
    async fn answer(&self, call: &Call, granted: &Granted) -> Result<Planned, Refusal> {
        let path = call.path.as_str();
        if let Some(rest) = path.strip_prefix("sys/") {
            return sys::handle(self.vault, call, granted, rest).await;
        }
        let mounts = self.vault.mounts(false).await?;
        let (mount, rest) = mounts.1.table.find(path).ok_or(Refusal::Absent)?;
        let planned = match mount.kind.is_auth() {
            true => {
                let at = login::At {
                    authorizer: &self.vault.authorizer,
                    granted,
                    mount,
                    rest,
                };
                login::handle(at, call).await
            }
            false => engine::handle(self.at(mount, rest), call).await,
        };
        // A refusal, too, is of the mount that is there.
        let mut planned = planned.unwrap_or_else(Planned::refused);
        mounts.1.expect(&mut planned.change);
        Ok(planned)
    }

    fn at<'m>(&'m self, mount: &'m mount::Mount, rest: &'m str) -> engine::At<'m> {
        engine::At {
            barrier: &self.vault.barrier,
            mount,
            rest,
            now: OffsetDateTime::now_utc().truncate_to_millisecond(),
            is_plain: self.is_plain,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::keyvault::{call::Refusal, world::World};

    #[tokio::test]
    async fn both_dialects_know_one_secret_by_one_name() {
        let world = World::new().await;
        let root = world.root();
        root.post("secret/app/db", json!({"value": "s3cret", "user": "a"}))
            .await
            .unwrap();
        let plain = root.get("secret/app/db").await.unwrap();
        assert_eq!(plain, json!({"value": "s3cret", "user": "a"}));
        let full = root.get("secret/data/app/db").await.unwrap();
        assert_eq!(full["data"], plain);
        assert_eq!(full["metadata"]["version"], 1);
        let names = root.list("secret/app").await.unwrap();
        assert_eq!(names, json!({"keys": ["db"]}));
        root.delete("secret/app/db").await.unwrap();
        assert!(matches!(
            root.get("secret/app/db").await,
            Err(Refusal::Absent)
        ));

        // Policies and the audit log have the one name.
        let log = world.log().await;
        assert!(log.iter().all(|line| line.path != "secret/app/db"));
        assert!(log.iter().any(|line| line.path == "secret/data/app/db"));
        world
            .put_policy(
                "app",
                r#"path "secret/data/app/*" { capabilities = ["read"] }"#,
            )
            .await;
        let auth = root
            .token("auth/token/create", json!({"policies": ["app"]}))
            .await;
        let app = world.with(&auth.unwrap().client_token);
        root.post("secret/app/key", json!({"value": "x"}))
            .await
            .unwrap();
        root.post("secret/other", json!({"value": "x"}))
            .await
            .unwrap();
        assert_eq!(app.get("secret/app/key").await.unwrap()["value"], "x");
        assert!(matches!(
            app.get("secret/other").await,
            Err(Refusal::Denied)
        ));
        let write = app.post("secret/app/key", json!({"value": "y"})).await;
        assert!(matches!(write, Err(Refusal::Denied)));
    }

    #[tokio::test]
    async fn what_was_unmounted_is_gone_at_once_and_swept_away_after() {
        let world = World::new().await;
        let root = world.root();
        let mount = json!({"type": "kv", "options": {"version": "1"}});
        root.post("sys/mounts/kv", mount.clone()).await.unwrap();
        root.post("kv/a/b", json!({"x": "s3cret"})).await.unwrap();
        root.delete("sys/mounts/kv").await.unwrap();
        root.post("sys/mounts/kv", mount).await.unwrap();
        assert!(matches!(root.get("kv/a/b").await, Err(Refusal::Absent)));
        let barrier = world.vault.barrier();
        let before = barrier.list("logical/", None, 10).await.unwrap();
        super::super::mount::sweep(barrier).await.unwrap();
        let after = barrier.list("logical/", None, 10).await.unwrap();
        assert_eq!((before.len(), after.len()), (1, 0));
    }

    #[tokio::test]
    async fn of_two_who_write_the_same_version_one_is_refused() {
        let world = World::new().await;
        let root = world.root();
        let write = |cas: u64| {
            root.post(
                "secret/data/a",
                json!({"data": {"v": 1}, "options": {"cas": cas}}),
            )
        };
        let (one, other) = tokio::join!(write(0), write(0));
        assert!(one.is_ok() != other.is_ok());
        assert!(write(1).await.is_ok());
    }

    #[tokio::test]
    async fn a_destroyed_version_leaves_nothing_behind() {
        let world = World::new().await;
        let root = world.root();
        root.post("secret/data/a", json!({"data": {"v": 1}}))
            .await
            .unwrap();
        let barrier = world.vault.barrier();
        let mounts = barrier.list("logical/", None, 10).await.unwrap();
        let versions = format!("logical/{}version/a/", mounts[0]);
        assert_eq!(barrier.list(&versions, None, 10).await.unwrap(), ["1"]);
        root.post("secret/destroy/a", json!({"versions": [1]}))
            .await
            .unwrap();
        assert!(barrier.list(&versions, None, 10).await.unwrap().is_empty());
        let gone = root.get("secret/data/a").await;
        assert!(matches!(gone, Err(Refusal::Gone(_))));
    }

    #[tokio::test]
    async fn transit_signs_and_encrypts_across_rotations() {
        let world = World::new().await;
        let root = world.root();
        root.post("sys/mounts/transit", json!({"type": "transit"}))
            .await
            .unwrap();
        root.post("transit/keys/e", json!({})).await.unwrap();
        root.post("transit/keys/s", json!({"type": "ed25519"}))
            .await
            .unwrap();
        let plaintext = json!({"plaintext": "aGk="});
        let sealed = root.post("transit/encrypt/e", plaintext).await.unwrap();
        let signed = root
            .post("transit/sign/s", json!({"input": "aGk="}))
            .await
            .unwrap();
        for key in ["e", "s"] {
            let path = format!("transit/keys/{key}/rotate");
            root.post(&path, json!({})).await.unwrap();
        }
        let ciphertext = json!({"ciphertext": sealed["ciphertext"]});
        let opened = root
            .post("transit/decrypt/e", ciphertext.clone())
            .await
            .unwrap();
        assert_eq!(opened["plaintext"], "aGk=");
        let again = root
            .post("transit/rewrap/e", ciphertext.clone())
            .await
            .unwrap();
        assert_eq!(again["key_version"], 2);
        let verify = |input: &str| {
            let body = json!({"input": input, "signature": signed["signature"]});
            root.post("transit/verify/s", body)
        };
        assert_eq!(verify("aGk=").await.unwrap()["valid"], true);
        assert_eq!(verify("aGkh").await.unwrap()["valid"], false);

        let config = json!({"min_decryption_version": 2});
        root.post("transit/keys/e/config", config).await.unwrap();
        let refused = root.post("transit/decrypt/e", ciphertext).await;
        assert!(matches!(refused, Err(Refusal::Invalid(_))));
        let wrong_kind = root.post("transit/sign/e", json!({"input": "aGk="})).await;
        assert!(matches!(wrong_kind, Err(Refusal::Invalid(_))));
        let exported = root
            .post("transit/keys/x", json!({"exportable": true}))
            .await;
        assert!(matches!(exported, Err(Refusal::Invalid(_))));
    }
}
