//! What a master or a KeyVault needs, looked at before it starts.

use std::path::Path;

use wavry_credentials::{
    audit, cert,
    key::{aead, format},
    membership,
    source::{self, Finding},
    token::SigningKey,
};

use crate::{
    Config,
    audit_sink::{self, Target},
    database::Location,
    keyvault::{
        self,
        config::{Seal, Vault},
    },
    signing::{self, Place},
};

/// Looks at all that a master needs, without starting it or opening its database.
pub async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = keys(config).await;
    findings.extend([
        source::check("audit_key", config.audit_key.as_deref(), |text| {
            audit::Key::read(text, config.cluster.clone())
        })
        .await,
    ]);
    if let Some(chain) = &config.certificate {
        findings.push(cert::check(chain, config.tls_key.as_deref()));
    }
    findings.extend(password(&config.database).await);
    findings.extend(sinks(&config.audit_sinks));
    if let Some(vault) = &config.keyvault {
        findings.extend(entries(vault).await);
    }
    findings
}

/// The secret `master_key`, unless it is not there and need not be, and the key in the vault.
async fn keys(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let file = config.master_key.as_deref();
    let needs_none = config
        .signing
        .as_ref()
        .is_some_and(|signing| signing.new_keys == Place::Vault)
        && matches!(
            source::find("master_key", file),
            Err(source::Error::Missing { .. })
        )
        // It seals the authority's key.
        && config.authority.is_none();
    if !needs_none {
        findings.push(source::check("master_key", file, SigningKey::read).await);
    }
    if let Some(config) = &config.signing {
        findings.push(Finding::new("signing key", signing::look(config).await));
    }
    findings
}

/// Looks at all that a KeyVault needs which runs alone, without starting it or opening its store.
pub async fn check_keyvault(config: &keyvault::config::Standalone) -> Vec<Finding> {
    let mut findings = vec![
        source::check("audit_key", None, |text| {
            audit::Key::read(text, config.cluster.clone())
        })
        .await,
    ];
    if let Some(chain) = &config.certificate {
        findings.push(cert::check(chain, None));
    }
    if let Some(node) = &config.node {
        findings.extend(membership::check(&node.membership).await);
    }
    if let Some(clients) = &config.clients {
        findings.push(authorities("client_ca", &clients.authorities));
    }
    findings.extend(entries(&config.vault).await);
    findings
}

async fn entries(vault: &Vault) -> Vec<Finding> {
    let mut findings = Vec::new();
    if vault.seal == Seal::Key {
        findings.push(source::check("keyvault_key", None, aead::Key::read).await);
    }
    findings.extend(password(&vault.store).await);
    findings.extend(sinks(&vault.audit_sinks));
    findings
}

/// Only where one is given: the server may ask for none.
async fn password(database: &Location) -> Option<Finding> {
    const NAME: &str = "database_password";
    let is_given = matches!(database, Location::Postgres(_))
        && !matches!(source::find(NAME, None), Err(source::Error::Missing { .. }));
    match is_given {
        true => Some(source::check(NAME, None, format::password).await),
        false => None,
    }
}

fn sinks(sinks: &[audit_sink::Config]) -> impl Iterator<Item = Finding> {
    sinks.iter().filter_map(|sink| {
        let Target::Syslog(receiver) = &sink.target else {
            return None;
        };
        let outcome = audit_sink::check(receiver)?;
        Some(Finding::new(
            format!("TLS of audit sink {}", sink.name),
            outcome.map(|()| "can be used"),
        ))
    })
}

fn authorities(what: &str, file: &Path) -> Finding {
    let read = cert::client_config(&cert::Trust::Authorities(file.to_owned()));
    Finding::new(what, read.map(|_| file.display().to_string()))
}
