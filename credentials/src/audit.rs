//! The audit log: who did what to which credential, in an order that cannot be changed unseen.
//!
//! An [`Event`] becomes a [`Line`] of JSON that holds its number, the hash of the line before and its
//! own; [`Head::follow`] makes it. The newest line is sealed by a [`Checkpoint`], signed by the audit
//! key, which is kept beside the lines: it shows when their end is cut off. [`verify`] reads a log and
//! names the first line that is bad. All that is pure; [`mod@file`] keeps a log in a file, and the master
//! keeps one in its database.
//!
//! Values of secrets are never in it. A secret's identifier is there as its HMAC under the audit key
//! ([`Key::identifier`]), so that lines about one secret can be found, and the identifier cannot.

mod chain;
pub mod file;
pub mod syslog;
pub mod verify;

use std::{fmt, net::SocketAddr, str::FromStr, time::SystemTime};

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use wavry_proto::{
    id::ClusterName,
    token::{Claims, Validity},
};

use crate::{
    key::{MacKey, format},
    secret::Secret,
    token::{KeySet, MalformedKey, Rejected, Scope, SigningKey},
};

pub use chain::{Head, Line, MalformedLine};

/// What was done, or tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A credential was made: a token, a key, an id.
    Issue,
    /// A node took its place in the cluster.
    Register,
    /// A unit showed who it is.
    Login,
    /// A credential was made to last longer.
    Renew,
    /// A key took another's place.
    Rotate,
    /// A credential was made worthless.
    Revoke,
    /// A secret, or what is known of one, was given out.
    Read,
    /// Names of secrets were given out.
    List,
    /// A secret, or a new version of one, was kept.
    Write,
    /// A secret was hidden, and can be brought back.
    Delete,
    /// A deleted secret was brought back.
    Undelete,
    /// A secret was made unreadable for good.
    Destroy,
    /// An answer was kept back behind a token that can be used once.
    Wrap,
    /// An answer that was kept back was given out.
    Unwrap,
    /// A key that stays here encrypted something.
    Encrypt,
    /// A key that stays here decrypted something.
    Decrypt,
    /// A key that stays here signed something.
    Sign,
    /// A key that stays here checked something.
    Verify,
    /// A KeyVault got its master key.
    Init,
    /// A KeyVault forgot its master key.
    Seal,
    /// A KeyVault was given its master key, or a share of it.
    Unseal,
    /// The master key, or its shares, took the place of others.
    Rekey,
    /// A secret engine or a way to log in was put at a path.
    Mount,
    /// A secret engine or a way to log in was taken away, with all it kept.
    Unmount,
    /// A policy, a role or a setting was changed.
    Configure,
    /// An older state of the store was accepted.
    Rollback,
    /// All that is kept was copied to a file.
    Backup,
    /// What is kept was made from such a copy.
    Restore,
    /// A request was refused.
    Deny,
    /// Something happened that an attack explains best, such as the second use of what serves once.
    Alarm,
}

/// The actions and their names.
const ACTIONS: [(Action, &str); 30] = [
    (Action::Issue, "issue"),
    (Action::Register, "register"),
    (Action::Login, "login"),
    (Action::Renew, "renew"),
    (Action::Rotate, "rotate"),
    (Action::Revoke, "revoke"),
    (Action::Read, "read"),
    (Action::List, "list"),
    (Action::Write, "write"),
    (Action::Delete, "delete"),
    (Action::Undelete, "undelete"),
    (Action::Destroy, "destroy"),
    (Action::Wrap, "wrap"),
    (Action::Unwrap, "unwrap"),
    (Action::Encrypt, "encrypt"),
    (Action::Decrypt, "decrypt"),
    (Action::Sign, "sign"),
    (Action::Verify, "verify"),
    (Action::Init, "init"),
    (Action::Seal, "seal"),
    (Action::Unseal, "unseal"),
    (Action::Rekey, "rekey"),
    (Action::Mount, "mount"),
    (Action::Unmount, "unmount"),
    (Action::Configure, "configure"),
    (Action::Rollback, "rollback"),
    (Action::Backup, "backup"),
    (Action::Restore, "restore"),
    (Action::Deny, "deny"),
    (Action::Alarm, "alarm"),
];

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = ACTIONS.iter().find(|(action, _)| action == self);
        f.write_str(named.map_or("", |(_, name)| name))
    }
}

/// Not the name of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected one of {}", ACTIONS.map(|(_, name)| name).join(", "))]
pub struct UnknownAction;

impl FromStr for Action {
    type Err = UnknownAction;
    fn from_str(text: &str) -> Result<Self, UnknownAction> {
        let named = ACTIONS.iter().find(|(_, name)| *name == text);
        named.map(|(action, _)| *action).ok_or(UnknownAction)
    }
}

/// What happened. No field holds a secret; texts are cut at [`MAX_TEXT`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, as RFC 3339 in UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// What was done.
    pub action: Action,
    /// To whom or what: a node, a client, a key; in a KeyVault a unit, a policy, or a secret by its
    /// mount and name.
    pub subject: String,
    /// By whom: a node, a unit as its login names it (`approle/web`), or the user of the operating
    /// system who ran a command.
    pub actor: String,
    /// The path or command by which.
    pub path: String,
    /// `done`, or the word of the problem.
    pub outcome: String,
    /// Id of the request, as its answer has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Where the request came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SocketAddr>,
    /// The secret that it is about: [`Key::identifier`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// The token that the actor showed: [`Key::identifier`] of its accessor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Which version of the subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// How many events like this one were not written since the last line, because strangers caused
    /// too many.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unwritten: u64,
}

/// Longest text of an event, in bytes; the rest is cut off. A path that may be longer than that is not
/// told from others that begin like it.
pub const MAX_TEXT: usize = 512;
/// Outcome of what was done.
pub const DONE: &str = "done";

impl Event {
    /// An event of now, that was done.
    pub fn now(action: Action, subject: impl Into<String>, path: impl Into<String>) -> Self {
        let now = OffsetDateTime::from(SystemTime::now());
        Self {
            // Milliseconds tell enough, and read better.
            time: now.truncate_to_millisecond(),
            action,
            subject: subject.into(),
            actor: String::new(),
            path: path.into(),
            outcome: DONE.to_owned(),
            request: None,
            source: None,
            secret: None,
            token: None,
            version: None,
            unwritten: 0,
        }
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The audit key: seals logs, and hides identifiers.
pub struct Key {
    signing: SigningKey,
    identifiers: MacKey,
    cluster: ClusterName,
}

impl Key {
    /// Reads PASERK `k4.secret`.
    pub fn from_paserk(text: &Secret<Vec<u8>>, cluster: ClusterName) -> Result<Self, MalformedKey> {
        Ok(Self::of(SigningKey::from_paserk(text)?, cluster))
    }

    /// Reads it in any form that [`mod@format`] knows.
    pub fn read(text: &Secret<Vec<u8>>, cluster: ClusterName) -> Result<Self, format::Fault> {
        Ok(Self::of(SigningKey::read(text)?, cluster))
    }

    fn of(signing: SigningKey, cluster: ClusterName) -> Self {
        Self {
            identifiers: signing.mac_key("wavry audit identifiers"),
            signing,
            cluster,
        }
    }

    /// What stands for the identifier of a secret: 128 bits of an HMAC, as hexadecimal.
    pub fn identifier(&self, id: &str) -> String {
        hex::encode(&self.identifiers.mac(id.as_bytes())[..16])
    }

    /// Seals log `log` up to and with `head`.
    pub fn seal(&self, log: &str, head: &Head) -> String {
        let sealed = Checkpoint {
            seq: head.seq,
            hash: hex::encode(head.hash),
            time: OffsetDateTime::from(SystemTime::now())
                .truncate_to_second()
                .format(&Rfc3339)
                .unwrap_or_default(),
        };
        self.signing.sign(&sealed, scope(&self.cluster, log))
    }

    /// The half that checks seals.
    pub fn verifier(&self) -> Verifier {
        Verifier {
            keys: self.signing.key_set(),
            cluster: self.cluster.clone(),
        }
    }
}

/// Checks seals.
#[derive(Clone)]
pub struct Verifier {
    keys: KeySet,
    cluster: ClusterName,
}

impl Verifier {
    /// From PASERK `k4.public`.
    pub fn from_paserk(text: &str, cluster: ClusterName) -> Result<Self, MalformedKey> {
        let keys = KeySet::from_paserk(&[text])?;
        Ok(Self { keys, cluster })
    }

    /// The head of log `log` that `seal` vouches for.
    pub fn open(&self, log: &str, seal: &str) -> Result<Head, Rejected> {
        // It has no expiry, so that no time is looked at.
        let sealed: Checkpoint = self.keys.verify(seal, scope(&self.cluster, log), 0)?;
        let mut hash = [0; 32];
        hex::decode_to_slice(&sealed.hash, &mut hash).map_err(|_| Rejected::Claims)?;
        Ok(Head {
            seq: sealed.seq,
            hash,
        })
    }
}

fn scope<'a>(cluster: &'a ClusterName, log: &'a str) -> Scope<'a> {
    Scope {
        cluster,
        audience: log,
        binding: b"",
    }
}

/// What a seal says: how far the log went when it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Checkpoint {
    seq: u64,
    hash: String,
    time: String,
}

impl Claims for Checkpoint {
    const PURPOSE: &'static str = "audit";
    fn validity(&self) -> Option<&Validity> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn key() -> Key {
        Key::from_paserk(&SigningKey::generate().to_paserk(), cluster()).unwrap()
    }

    pub(super) fn cluster() -> ClusterName {
        "c1".parse().unwrap()
    }

    #[test]
    fn an_identifier_is_the_same_each_time_and_tells_nothing() {
        let (key, other) = (key(), key());
        assert_eq!(key.identifier("jti"), key.identifier("jti"));
        assert_ne!(key.identifier("jti"), key.identifier("jtj"));
        assert_ne!(key.identifier("jti"), other.identifier("jti"));
        assert_eq!(key.identifier("jti").len(), 32);
    }

    #[test]
    fn a_seal_opens_for_its_key_cluster_and_log_only() {
        let (key, other) = (key(), key());
        let head = Head::default()
            .follow(&Event::now(Action::Issue, "a", "b"))
            .0;
        let seal = key.seal("master", &head);
        assert_eq!(key.verifier().open("master", &seal), Ok(head));
        assert!(key.verifier().open("provision", &seal).is_err());
        assert!(other.verifier().open("master", &seal).is_err());
        let elsewhere = Verifier::from_paserk(&key.signing.public_paserk(), "c2".parse().unwrap());
        assert!(elsewhere.unwrap().open("master", &seal).is_err());
        let here = Verifier::from_paserk(&key.signing.public_paserk(), cluster());
        assert_eq!(here.unwrap().open("master", &seal), Ok(head));
    }

    #[test]
    fn every_action_has_a_name_and_is_read_from_it() {
        for (action, name) in ACTIONS {
            assert_eq!(action.to_string(), name);
            assert_eq!(name.parse(), Ok(action));
            assert_eq!(serde_json::to_value(action).unwrap(), name);
        }
        assert_eq!("".parse::<Action>(), Err(UnknownAction));
    }

    proptest! {
        #[test]
        fn arbitrary_seals_never_panic(seal: String) {
            prop_assert!(key().verifier().open("master", &seal).is_err());
        }
    }
}
