//! What a role says of the tokens that its logins get: Vault's `token_*` parameters.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::keyvault::{
    barrier::Change,
    call::{Call, Refusal},
    mount::Mount,
    parameter::Texts,
    policy::{DEFAULT, Identity, ROOT},
    token::{self, Issued, New, Scope, Tokens, Wishes},
    ttl::Ttl,
};

/// For how long a login's token is good where its role does not say, and at most: 30 minutes, and 8
/// hours.
const TTL: u64 = 30 * 60;
const MAX_TTL: u64 = 8 * 3600;

/// What a role says of its tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Terms {
    policies: Vec<String>,
    ttl: u64,
    max_ttl: u64,
    explicit_max_ttl: u64,
    period: u64,
    num_uses: u64,
    no_default_policy: bool,
    bound_cidrs: Vec<IpNet>,
    token_type: String,
}

/// The same, as a request has it. What is left out stays as it is.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Parameters {
    #[serde(alias = "policies")]
    token_policies: Option<Texts>,
    #[serde(alias = "ttl")]
    token_ttl: Option<Ttl>,
    #[serde(alias = "max_ttl")]
    token_max_ttl: Option<Ttl>,
    token_explicit_max_ttl: Option<Ttl>,
    #[serde(alias = "period")]
    token_period: Option<Ttl>,
    #[serde(alias = "num_uses")]
    token_num_uses: Option<u64>,
    token_no_default_policy: Option<bool>,
    #[serde(alias = "bound_cidrs")]
    token_bound_cidrs: Option<Texts>,
    token_type: Option<String>,
}

impl Terms {
    /// Takes over what a request says.
    pub(super) fn update(&mut self, parameters: Parameters) -> Result<(), Refusal> {
        let p = parameters;
        if let Some(texts) = p.token_policies {
            self.policies = token::policies(&texts)?;
            if self.policies.iter().any(|name| name == ROOT) {
                return Err(Refusal::invalid("a login cannot give the root policy"));
            }
        }
        for (held, new) in [
            (&mut self.ttl, p.token_ttl),
            (&mut self.max_ttl, p.token_max_ttl),
            (&mut self.explicit_max_ttl, p.token_explicit_max_ttl),
            (&mut self.period, p.token_period),
        ] {
            if let Some(Ttl(new)) = new {
                *held = new;
            }
        }
        if self.max_ttl > 0 && self.ttl > self.max_ttl {
            return Err(Refusal::invalid(
                "token_ttl should not be greater than token_max_ttl",
            ));
        }
        self.num_uses = p.token_num_uses.unwrap_or(self.num_uses);
        self.no_default_policy = p.token_no_default_policy.unwrap_or(self.no_default_policy);
        if let Some(texts) = p.token_bound_cidrs {
            self.bound_cidrs = token::networks(&texts)?;
        }
        match p.token_type.as_deref() {
            None => (),
            Some("" | "default" | "default-service") => "default".clone_into(&mut self.token_type),
            Some("service") => "service".clone_into(&mut self.token_type),
            Some("batch" | "default-batch") => {
                return Err(Refusal::invalid("batch tokens are not given out here"));
            }
            Some(_) => return Err(Refusal::invalid("invalid 'token_type' value")),
        }
        Ok(())
    }

    /// Where tokens may be used from.
    pub(super) fn networks(&self) -> &[IpNet] {
        &self.bound_cidrs
    }

    pub(super) fn has_networks(&self) -> bool {
        !self.bound_cidrs.is_empty()
    }

    /// Forgets one setting, by the name of its parameter.
    pub(super) fn reset(&mut self, parameter: &str) {
        match parameter {
            "token_policies" => self.policies.clear(),
            "token_bound_cidrs" => self.bound_cidrs.clear(),
            "token_period" => self.period = 0,
            "token_num_uses" => self.num_uses = 0,
            "token_ttl" => self.ttl = 0,
            "token_max_ttl" => self.max_ttl = 0,
            _ => (),
        }
    }

    /// As a role's answer shows it.
    pub(super) fn show(&self, role: &mut Map<String, Value>) {
        let token_type = match self.token_type.as_str() {
            "" => "default",
            said => said,
        };
        let shown = json!({
            "token_bound_cidrs": self.bound_cidrs,
            "token_explicit_max_ttl": self.explicit_max_ttl,
            "token_max_ttl": self.max_ttl,
            "token_no_default_policy": self.no_default_policy,
            "token_num_uses": self.num_uses,
            "token_period": self.period,
            "token_policies": self.policies,
            "token_ttl": self.ttl,
            "token_type": token_type,
        });
        if let Value::Object(shown) = shown {
            role.extend(shown);
        }
    }

    /// Plans the token of a login.
    pub(super) async fn issue(
        &self,
        tokens: &Tokens,
        change: &mut Change,
        login: Login<'_>,
    ) -> Result<Issued, Refusal> {
        let client = login.call.client.ip();
        for networks in [&self.bound_cidrs, &login.bound_cidrs] {
            if !token::is_within(networks, client) {
                return Err(Refusal::Denied);
            }
        }
        let mut policies = self.policies.clone();
        if !self.no_default_policy && !policies.iter().any(|name| name == DEFAULT) {
            policies.push(DEFAULT.to_owned());
            policies.sort();
        }
        let ttl = match self.ttl {
            0 => TTL,
            ttl => ttl,
        };
        let max_ttl = match self.max_ttl {
            0 => MAX_TTL,
            max_ttl => max_ttl,
        };
        let bound_cidrs = match login.bound_cidrs.is_empty() {
            true => self.bound_cidrs.clone(),
            false => login.bound_cidrs,
        };
        let new = New {
            scope: Scope {
                policies,
                identity: Identity {
                    name: login.unit.clone(),
                    metadata: login.facts.clone(),
                    mount: login.mount.accessor(),
                },
            },
            wishes: Wishes {
                ttl,
                max_ttl: token::smallest(max_ttl, login.mount.max_lease_ttl.0),
                explicit_max_ttl: self.explicit_max_ttl,
                period: self.period,
                renewable: true,
            },
            parent: None,
            path: login.call.path.as_str().to_owned(),
            meta: login.facts,
            display_name: format!("{}/{}", login.mount.path.trim_end_matches('/'), login.unit),
            num_uses: self.num_uses,
            bound_cidrs,
            role: None,
            mount: Some(login.mount.id.clone()),
        };
        Ok(tokens.issue(change, new).await?)
    }
}

/// A login that succeeds.
pub(super) struct Login<'a> {
    pub(super) call: &'a Call,
    pub(super) mount: &'a Mount,
    /// What the unit is called.
    pub(super) unit: String,
    /// What is known of it.
    pub(super) facts: BTreeMap<String, String>,
    /// Where its token may be used from, in place of what the role says.
    pub(super) bound_cidrs: Vec<IpNet>,
}
