//! The two-endpoint dialect: `POST /v1/auth` gives a token, `GET /v1/secret/…` a secret.
//!
//! `POST /v1/auth` is a login of the method whose credentials the body has, mounted under the name of
//! its kind. (`secret/…` needs the table of mounts and is told apart in [`super::super::dispatch`].)

use serde::{Deserialize, de::IgnoredAny};

use crate::keyvault::{
    call::{Call, Operation, Refusal},
    path::Canonical,
};

/// What tells the method.
#[derive(Deserialize)]
struct Login {
    method: Option<String>,
    role_id: Option<IgnoredAny>,
    jwt: Option<IgnoredAny>,
    token: Option<IgnoredAny>,
}

/// The call as Vault's API has it.
pub(super) fn translated(mut call: Call) -> Result<Call, Refusal> {
    if call.path.name() != "auth" {
        return Ok(call);
    }
    if call.operation != Operation::Update {
        return Err(Refusal::Unsupported);
    }
    let login: Login = call.body()?;
    let method = match login {
        Login {
            method: Some(method),
            ..
        } => match &*method {
            "approle" => "approle",
            "kubernetes" => "kubernetes",
            "cert" => "cert",
            "bootstrap" => "bootstrap",
            _ => {
                return Err(Refusal::invalid(
                    "method: not approle, kubernetes, cert or bootstrap",
                ));
            }
        },
        Login {
            role_id: Some(_), ..
        } => "approle",
        Login { jwt: Some(_), .. } => "kubernetes",
        Login { token: Some(_), .. } => "bootstrap",
        _ if !call.peer_certificates.is_empty() => "cert",
        _ => {
            return Err(Refusal::invalid(
                "no credentials: expected role_id and secret_id, jwt and role, or token",
            ));
        }
    };
    call.path = Canonical::parse(&format!("auth/{method}/login"))
        .map_err(|error| Refusal::invalid(error.to_string()))?;
    Ok(call)
}
