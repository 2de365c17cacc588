//! The KeyVault of a development cluster: inside the master, with a master key and a root token in
//! files, and an example secret. For development data only.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;
use wavry_credentials::{
    audit,
    bearer::{Document, Json, Token},
    key::aead,
    source,
};
use wavry_master::keyvault::{
    KeyVault,
    call::{Call, Operation},
    config::{RawVault, Seal, Vault},
    path::Canonical,
    seal,
};

use super::state::State;

/// File of the master key.
pub(crate) const KEY: &str = "master/keyvault.key";
/// SQLite file.
pub(crate) const DATABASE: &str = "master/keyvault.sqlite";
/// File with the root token, as JSON.
const ROOT: &str = "master/keyvault.json";
/// The example.
const EXAMPLE: &str = "secret/data/example";

/// The file with the root token.
pub(crate) fn root_file(state: &State) -> PathBuf {
    state.path(ROOT)
}

/// Makes it, unless it is there.
pub(crate) async fn prepare(state: &State) -> anyhow::Result<()> {
    let key_file = state.path(KEY);
    if !key_file.exists() {
        source::write_secret(&key_file, &aead::Key::generate().to_paserk())?;
    }
    let key = aead::Key::read(&source::read_file(&key_file)?)?;
    let audit_key = source::read_file(&state.path("master/audit.key"))?;
    let audit_key = audit::Key::from_paserk(&audit_key, state.cluster().clone())?;
    let config = RawVault {
        database: Some(state.path(DATABASE).to_string_lossy().into_owned()),
        seal: Seal::Key,
        ..RawVault::default()
    };
    let vault = KeyVault::open(&Vault::try_from(config)?, Arc::new(audit_key))
        .await
        .context("KeyVault")?;
    let made = vault.bootstrap(key, seal::Config::Key).await;
    if let Some(root) = made.context("KeyVault")? {
        let content = Document::object([("root_token", Document::from(&root))]);
        source::write_secret(&root_file(state), &content.into_secret())?;
        write_example(&vault, root).await?;
    }
    vault.close().await;
    Ok(())
}

async fn write_example(vault: &KeyVault, root: Token) -> anyhow::Result<()> {
    let data = serde_json::json!({"data": {"value": "development-data-only"}});
    let call = Call {
        operation: Operation::Update,
        path: Canonical::parse(EXAMPLE)?,
        query: Default::default(),
        token: Some(root),
        body: Some(Json::new(Document::of(&data).into_secret())?),
        client: ([127, 0, 0, 1], 0).into(),
        peer_certificates: Vec::new(),
        wrap_ttl: None,
        request: "wavry-dev".to_owned(),
    };
    vault.handle(call).await.map(drop).context("example secret")
}
