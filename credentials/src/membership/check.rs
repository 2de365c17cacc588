//! What a node needs to be a member, looked at before it starts; nothing is written.

use super::{Config, Error, MEMBERSHIP, identities, record::Record};
use crate::{
    bearer::{Malformed, Token},
    identity::Identity,
    master,
    source::{self, Finding},
};

/// Looks at the node's identity, at its registration token if it has not registered yet, and at the
/// authorities that vouch for the master.
pub async fn check(config: &Config) -> Vec<Finding> {
    let mut key = None;
    let file = config.identity_key.as_deref();
    let provisioned = source::check("identity_key", file, |text| {
        Identity::read(text).map(|identity| key = Some(identity.public_key()))
    })
    .await;
    let mut findings = vec![provisioned];
    if let Some(key) = key {
        match identities::file_in_use(&config.state_dir, key) {
            Ok(None) => (),
            in_use => {
                let file = in_use.map(|file| file.unwrap_or_default().display().to_string());
                findings.push(Finding::new("identity that followed it", file));
            }
        }
    }
    let membership = config.state_dir.join(MEMBERSHIP);
    findings.push(match Record::read(&membership) {
        Ok(Some(record)) if Some(record.public_key) == key => {
            Finding::new("registration", Ok::<_, Error>(membership.display()))
        }
        Ok(_) => {
            let file = config.registration_token.as_deref();
            source::check_file("registration_token", file, |text| {
                Token::read(text)?.id().map(drop).ok_or(Malformed)
            })
        }
        Err(error) => Finding::new("registration", Err::<String, _>(error)),
    });
    let client = master::Client::new(&config.master, &config.ca_file);
    findings.push(Finding::new(
        "authorities that vouch for the master",
        client.map(|_| config.ca_file.display().to_string()),
    ));
    findings
}
