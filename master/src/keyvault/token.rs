//! Tokens: what units show to be let in.
//!
//! A token is 256 random bits; the KeyVault keeps its HMAC and what it is good for. A [`Record`] says
//! what that is and until when: arithmetic over seconds, without a clock. A token that another one
//! made is good only while that one is, all the way up: so a revoked token's descendants are dead the
//! moment it is gone, however many they are, and are swept away later.
//!
//! Tokens with a number of uses are counted where they are let in ([`super::authorize`]), in the same
//! commit as what the use does.

mod lifetime;
mod role;
mod routes;
mod store;
mod sweep;

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wavry_credentials::bearer::Fingerprint;

use super::{
    call::Refusal,
    parameter::Texts,
    policy::{self, Identity},
};

pub(super) use lifetime::smallest;
pub use lifetime::{Lifetime, NotRenewable, Wishes};
pub(super) use routes::{exists, handle};
pub use store::{Found, Issued, New, Tokens};
pub use sweep::{PAUSE, Sweep};

/// How long tokens last where nobody says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Without a wish, in seconds.
    pub default_ttl: u64,
    /// At most, however often they are renewed, in seconds. Tokens with a period are not held to it.
    pub max_ttl: u64,
}

impl Default for Limits {
    /// 15 minutes, and Vault's 32 days at most.
    fn default() -> Self {
        Self {
            default_ttl: 15 * 60,
            max_ttl: 32 * 24 * 3600,
        }
    }
}

/// How a token's text begins.
pub const PREFIX: &str = "hvs.";
/// Bytes of a token with the root policy.
pub const ROOT_LEN: usize = PREFIX.len() + 24;
/// Longest token that is looked at, in bytes.
pub const MAX_LEN: usize = 256;
/// How many tokens up a token may have made another one.
pub const MAX_DEPTH: usize = 16;

/// What is kept of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What names it without being it.
    pub accessor: String,
    /// What it may do, and for whom.
    pub scope: Scope,
    /// Until when it is good.
    pub lifetime: Lifetime,
    /// The token that made it, if it ends with that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Fingerprint>,
    /// How many tokens up to one that was not made by a token.
    #[serde(default)]
    pub depth: usize,
    /// The path where it was made.
    pub path: String,
    /// Facts for its holder and the audit log.
    #[serde(default)]
    pub meta: BTreeMap<String, String>,
    /// What it is called.
    pub display_name: String,
    /// How often it can still be used; 0: without bound.
    #[serde(default)]
    pub uses_left: u64,
    /// How often it could be used at first.
    #[serde(default)]
    pub num_uses: u64,
    /// Where it may be used from; empty: anywhere.
    #[serde(default)]
    pub bound_cidrs: Vec<IpNet>,
    /// The token role by which it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Id of the mount where its holder logged in: with the mount, the token ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
    /// It was revoked without those that it made: nobody can use it, and they do not end with it.
    #[serde(default)]
    pub released: bool,
}

/// Policies and the unit they are filled in for: what an [`policy::Acl`] is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Scope {
    /// Sorted names.
    pub policies: Vec<String>,
    /// Who asks.
    pub identity: Identity,
}

impl Record {
    /// Whether it may be used from an address.
    pub fn is_for(&self, client: IpAddr) -> bool {
        is_within(&self.bound_cidrs, client)
    }

    /// Whether it has the root policy.
    pub fn is_root(&self) -> bool {
        self.scope.policies.iter().any(|name| name == policy::ROOT)
    }
}

/// Whether an address is in one of these networks, or there are none.
pub fn is_within(networks: &[IpNet], address: IpAddr) -> bool {
    // A socket for both families shows IPv4 clients as IPv6.
    let address = address.to_canonical();
    networks.is_empty() || networks.iter().any(|network| network.contains(&address))
}

/// Networks as clients write them: CIDRs, or single addresses.
pub fn networks(texts: &Texts) -> Result<Vec<IpNet>, Refusal> {
    const MAX_NETWORKS: usize = 64;
    if texts.0.len() > MAX_NETWORKS {
        return Err(Refusal::invalid(format!("more than {MAX_NETWORKS} CIDRs")));
    }
    let network = |text: &String| {
        let host = || text.parse::<IpAddr>().map(IpNet::from);
        text.parse::<IpNet>()
            .map(|network| network.trunc())
            .or_else(|_| host())
            .map_err(|_| Refusal::invalid("not a CIDR: write 10.0.0.0/8 or 2001:db8::/32"))
    };
    texts.0.iter().map(network).collect()
}

/// Names of policies as they are kept: in small letters, sorted, each once.
pub fn policies(texts: &Texts) -> Result<Vec<String>, Refusal> {
    let name = |text: &String| {
        policy::canonical_name(text.trim()).ok_or(Refusal::invalid("not the name of a policy"))
    };
    let mut names = texts.0.iter().map(name).collect::<Result<Vec<_>, _>>()?;
    names.sort();
    names.dedup();
    if names.len() > policy::MAX_POLICIES {
        let most = policy::MAX_POLICIES;
        return Err(Refusal::invalid(format!("more than {most} policies")));
    }
    Ok(names)
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod form {
    use super::*;

    #[test]
    fn addresses_are_held_to_networks() {
        let networks = networks(&Texts(vec![
            "10.1.2.3/8".into(),
            "192.0.2.1".into(),
            "2001:db8::/32".into(),
        ]));
        let networks = networks.unwrap();
        for (address, fits) in [
            ("10.255.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
            ("2001:db8:1::1", true),
            ("2001:db9::1", false),
        ] {
            assert_eq!(
                is_within(&networks, address.parse().unwrap()),
                fits,
                "{address}"
            );
        }
        assert!(is_within(&[], "11.0.0.1".parse().unwrap()));
        assert!(super::networks(&Texts(vec!["10.0.0.0/33".into()])).is_err());
    }

    #[test]
    fn policies_are_kept_in_one_form() {
        let texts = Texts(vec!["Web".into(), "a".into(), " web".into()]);
        assert_eq!(policies(&texts).unwrap(), ["a", "web"]);
        for wrong in ["", "a/b", "a b", "a\nb"] {
            assert!(
                policies(&Texts(vec![wrong.to_owned()])).is_err(),
                "{wrong:?}"
            );
        }
    }
}
