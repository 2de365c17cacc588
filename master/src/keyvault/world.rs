//! A KeyVault for tests, asked as its dialects ask it.

use std::{net::SocketAddr, sync::Arc};

use serde_json::{Value, json};
use wavry_credentials::{
    audit::{self, Event},
    bearer::{Json, Token},
    key::aead,
    secret::Secret,
};

use super::{
    KeyVault,
    barrier::Change,
    call::{Answer, Auth, Call, Operation, Refusal},
    config, mount,
    path::Canonical,
    postgres_server::Server,
    seal, store,
    tests::audit_key,
};

/// A KeyVault that is unsealed, and its first token.
pub(super) struct World {
    pub(super) vault: KeyVault,
    pub(super) root: Token,
    location: store::Location,
    audit: Arc<audit::Key>,
    master_key: Secret<Vec<u8>>,
    _directory: tempfile::TempDir,
}

/// Who asks from where.
pub(super) struct Ask<'a> {
    world: &'a World,
    token: Option<Token>,
    client: SocketAddr,
}

impl World {
    /// With SQLite.
    pub(super) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = store::Location::Sqlite(directory.path().join("keyvault.db"));
        Self::at(store, directory).await
    }

    /// With a database of PostgreSQL.
    pub(super) async fn on(server: &Server, name: &str) -> Self {
        let location = server.database(name).await.parse().unwrap();
        let directory = tempfile::tempdir().unwrap();
        Self::at(store::Location::Postgres(location), directory).await
    }

    async fn at(location: store::Location, directory: tempfile::TempDir) -> Self {
        let audit = audit_key();
        let config = config::Vault::at(location.clone());
        let vault = KeyVault::open(&config, audit.clone()).await.unwrap();
        let key = aead::Key::generate();
        let master_key = key.to_paserk();
        assert!(vault.initialise(&key, seal::Config::Key).await.unwrap());
        vault.unseal(key).await.unwrap();
        let mut change = Change::default();
        mount::initialize(&mut change);
        let tokens = vault.authorizer.tokens();
        let root = tokens.issue_root(&mut change, "sys/init").await.unwrap();
        vault.barrier().commit(change).await.unwrap();
        Self {
            vault,
            root: root.token,
            location,
            audit,
            master_key,
            _directory: directory,
        }
    }

    /// Another instance on the same database.
    pub(super) async fn another(&self) -> Self {
        let config = config::Vault::at(self.location.clone());
        let vault = KeyVault::open(&config, self.audit.clone()).await.unwrap();
        let key = aead::Key::read(&self.master_key).unwrap();
        vault.unseal(key).await.unwrap();
        Self {
            vault,
            root: self.root.copied(),
            location: self.location.clone(),
            audit: self.audit.clone(),
            master_key: aead::Key::read(&self.master_key).unwrap().to_paserk(),
            _directory: tempfile::tempdir().unwrap(),
        }
    }

    /// As the holder of the first token.
    pub(super) fn root(&self) -> Ask<'_> {
        self.with(&self.root)
    }

    /// As the holder of a token.
    pub(super) fn with(&self, token: &Token) -> Ask<'_> {
        Ask {
            token: Some(token.copied()),
            ..self.stranger()
        }
    }

    /// As somebody without a token.
    pub(super) fn stranger(&self) -> Ask<'_> {
        Ask {
            world: self,
            token: None,
            client: "192.0.2.1:5000".parse().unwrap(),
        }
    }

    /// Mounts an auth method at its name.
    pub(super) async fn enable(&self, method: &str) {
        let path = format!("sys/auth/{method}");
        self.root()
            .post(&path, json!({"type": method}))
            .await
            .unwrap();
    }

    pub(super) async fn put_policy(&self, name: &str, text: &str) {
        let path = format!("sys/policies/acl/{name}");
        self.root()
            .post(&path, json!({"policy": text}))
            .await
            .unwrap();
    }

    /// The lines of the audit log, oldest first.
    pub(super) async fn log(&self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut after = 0;
        loop {
            let (lines, _) = self.vault.barrier().audit_lines(after).await.unwrap();
            let Some((last, _)) = lines.last() else {
                return events;
            };
            after = *last;
            events.extend(
                lines
                    .iter()
                    .map(|(_, line)| serde_json::from_str::<Event>(line).unwrap()),
            );
        }
    }
}

impl Ask<'_> {
    pub(super) fn from(mut self, address: &str) -> Self {
        self.client = SocketAddr::new(address.parse().unwrap(), 5000);
        self
    }

    pub(super) fn call(&self, operation: Operation, path: &str, body: Option<&Value>) -> Call {
        let body = body.map(|body| Json::new(Secret::new(body.to_string().into_bytes())).unwrap());
        Call {
            operation,
            path: Canonical::parse(path).unwrap(),
            query: Default::default(),
            token: self.token.as_ref().map(Token::copied),
            body,
            client: self.client,
            peer_certificates: Vec::new(),
            wrap_ttl: None,
            request: "r1".to_owned(),
        }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, Refusal> {
        shown(
            self.world
                .vault
                .handle(self.call(Operation::Read, path, None))
                .await,
        )
    }

    pub(super) async fn list(&self, path: &str) -> Result<Value, Refusal> {
        shown(
            self.world
                .vault
                .handle(self.call(Operation::List, path, None))
                .await,
        )
    }

    pub(super) async fn delete(&self, path: &str) -> Result<Value, Refusal> {
        shown(
            self.world
                .vault
                .handle(self.call(Operation::Delete, path, None))
                .await,
        )
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> Result<Value, Refusal> {
        let call = self.call(Operation::Update, path, Some(&body));
        shown(self.world.vault.handle(call).await)
    }

    /// Asks for a token.
    pub(super) async fn token(&self, path: &str, body: Value) -> Result<Auth, Refusal> {
        let call = self.call(Operation::Update, path, Some(&body));
        auth(self.world.vault.handle(call).await)
    }
}

pub(super) fn auth(answer: Result<Answer, Refusal>) -> Result<Auth, Refusal> {
    match answer? {
        Answer::Auth(auth) => Ok(auth),
        _ => panic!("the answer has no token"),
    }
}

/// The data of an answer.
fn shown(answer: Result<Answer, Refusal>) -> Result<Value, Refusal> {
    Ok(match answer? {
        Answer::Data(document) | Answer::Warned(document, _) | Answer::Bare(_, document) => {
            serde_json::from_slice(&document.into_body()).unwrap()
        }
        _ => Value::Null,
    })
}

/// A token as a parameter.
pub(super) fn text(token: &Token) -> Value {
    let text = token.authorization();
    json!(text.strip_prefix("Bearer ").unwrap())
}

/// Runs all of these at once; how many succeeded.
pub(super) async fn at_once<F>(count: usize, ask: impl Fn(usize) -> F) -> usize
where
    F: Future<Output = bool> + Send + 'static,
{
    let start = Arc::new(tokio::sync::Barrier::new(count));
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..count {
        let (start, ask) = (start.clone(), ask(i));
        tasks.spawn(async move {
            start.wait().await;
            ask.await
        });
    }
    let done = tasks.join_all().await;
    done.into_iter().filter(|done| *done).count()
}
