//! Client certificates: a unit shows in the handshake that it has a key, and roles say whose
//! certificates, and for which names, may log in.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rustls::{
    RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, UnixTime, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use wavry_credentials::audit::Action;
use x509_parser::{extensions::GeneralName, prelude::*};

use super::{
    At, configured, role_name,
    terms::{Login, Parameters, Terms},
};
use crate::{
    keyvault::{
        barrier::{Change, Revision},
        call::{Answer, Call, Noted, Operation, Planned, Refusal},
        parameter::Texts,
    },
    registry::unix_time,
};

/// Longest PEM of a role, and most certificates in it.
const MAX_PEM: usize = 64 * 1024;
const MAX_CERTIFICATES: usize = 16;
/// Roles that are tried where the login names none.
const MAX_TRIED: usize = 256;
/// What all failed logins are told.
const WRONG: &str = "invalid certificate or no client certificate supplied";

/// What is kept of a role.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Role {
    certificate: String,
    allowed_names: Vec<String>,
    allowed_common_names: Vec<String>,
    allowed_dns_sans: Vec<String>,
    allowed_email_sans: Vec<String>,
    allowed_uri_sans: Vec<String>,
    allowed_organizational_units: Vec<String>,
    display_name: String,
    terms: Terms,
}

#[derive(Deserialize)]
struct Body {
    certificate: Option<String>,
    allowed_names: Option<Texts>,
    allowed_common_names: Option<Texts>,
    allowed_dns_sans: Option<Texts>,
    allowed_email_sans: Option<Texts>,
    allowed_uri_sans: Option<Texts>,
    allowed_organizational_units: Option<Texts>,
    #[serde(default)]
    required_extensions: Texts,
    display_name: Option<String>,
    #[serde(flatten)]
    terms: Parameters,
}

/// Plans an answer below a mount of client certificates.
pub(super) async fn handle(at: At<'_>, call: &Call) -> Result<Planned, Refusal> {
    use Operation::{Create, Delete, List, Read, Update};
    let operation = at.granted.operation();
    let rest = at.rest.trim_end_matches('/');
    match (operation, rest) {
        (Create | Update, "login") => return login(&at, call).await,
        (Read, "config") => {
            let shown = json!({"disable_binding": false, "enable_identity_alias_metadata": false});
            return Ok(Planned::answer(Answer::data(&shown)));
        }
        // Nothing of it can be changed: a token is bound to what its role says.
        (Create | Update, "config") => return Ok(configured(Change::default())),
        _ => (),
    }
    let rest = rest.strip_prefix("certs").ok_or(Refusal::Absent)?;
    match (operation, rest.strip_prefix('/').unwrap_or(rest)) {
        (List, "") => at.list_answer("certs/").await,
        (_, "") => Err(Refusal::Unsupported),
        (Read, name) => {
            let (_, role) = read(&at, name).await?.ok_or(Refusal::Absent)?;
            Ok(Planned::answer(Answer::data(&role.shown())))
        }
        (Create | Update, name) => put(&at, name, call).await,
        (Delete, name) => {
            let mut change = Change::default();
            change.delete(at.entry(&format!("certs/{}", role_name(name)?)));
            Ok(configured(change))
        }
        _ => Err(Refusal::Unsupported),
    }
}

async fn read(at: &At<'_>, name: &str) -> Result<Option<(Revision, Role)>, Refusal> {
    let path = at.entry(&format!("certs/{}", role_name(name)?));
    Ok(at.barrier().read_record(&path).await?)
}

async fn put(at: &At<'_>, name: &str, call: &Call) -> Result<Planned, Refusal> {
    let body: Body = call.body()?;
    let name = role_name(name)?;
    let held = read(at, &name).await?;
    let path = at.entry(&format!("certs/{name}"));
    let mut change = Change::default();
    change.expect(&*path, held.as_ref().map(|(revision, _)| *revision));
    let mut role = held.map(|(_, role)| role).unwrap_or_default();
    role.update(body, &name)?;
    change.put_record(path, &role);
    Ok(configured(change))
}

impl Role {
    fn update(&mut self, body: Body, name: &str) -> Result<(), Refusal> {
        if !body.required_extensions.0.is_empty() {
            return Err(Refusal::invalid(
                "'required_extensions' is not supported here",
            ));
        }
        if let Some(pem) = body.certificate {
            certificates(&pem)?;
            self.certificate = pem;
        }
        if self.certificate.is_empty() {
            return Err(Refusal::invalid(
                "failed to parse certificate: none was given",
            ));
        }
        for (held, new) in [
            (&mut self.allowed_names, body.allowed_names),
            (&mut self.allowed_common_names, body.allowed_common_names),
            (&mut self.allowed_dns_sans, body.allowed_dns_sans),
            (&mut self.allowed_email_sans, body.allowed_email_sans),
            (&mut self.allowed_uri_sans, body.allowed_uri_sans),
            (
                &mut self.allowed_organizational_units,
                body.allowed_organizational_units,
            ),
        ] {
            if let Some(Texts(texts)) = new {
                *held = texts;
            }
        }
        self.display_name = match body.display_name {
            Some(said) if !said.is_empty() => said,
            _ if self.display_name.is_empty() => name.to_owned(),
            _ => std::mem::take(&mut self.display_name),
        };
        self.terms.update(body.terms)
    }

    fn shown(&self) -> Map<String, serde_json::Value> {
        let mut shown = Map::new();
        for (name, value) in [
            ("certificate", json!(self.certificate)),
            ("allowed_names", json!(self.allowed_names)),
            ("allowed_common_names", json!(self.allowed_common_names)),
            ("allowed_dns_sans", json!(self.allowed_dns_sans)),
            ("allowed_email_sans", json!(self.allowed_email_sans)),
            ("allowed_uri_sans", json!(self.allowed_uri_sans)),
            (
                "allowed_organizational_units",
                json!(self.allowed_organizational_units),
            ),
            ("required_extensions", json!([])),
            ("display_name", json!(self.display_name)),
        ] {
            shown.insert(name.to_owned(), value);
        }
        self.terms.show(&mut shown);
        shown
    }

    /// Whether a chain, its owner's certificate first, may log in at a time.
    fn admits(&self, chain: &[CertificateDer<'_>], now: u64) -> bool {
        let Some((own, intermediates)) = chain.split_first() else {
            return false;
        };
        let Ok(trusted) = certificates(&self.certificate) else {
            return false;
        };
        let Ok((_, parsed)) = X509Certificate::from_der(own) else {
            return false;
        };
        let vouched_for = trusted.iter().any(|one| one.as_ref() == own.as_ref())
            && is_valid(&parsed, now)
            || is_issued(&trusted, own, intermediates, now);
        vouched_for && self.names_fit(&parsed)
    }

    fn names_fit(&self, certificate: &X509Certificate<'_>) -> bool {
        let mut common = Vec::new();
        let mut units = Vec::new();
        for name in certificate.subject().iter_common_name() {
            common.extend(name.as_str().ok());
        }
        for unit in certificate.subject().iter_organizational_unit() {
            units.extend(unit.as_str().ok());
        }
        let (mut dns, mut emails, mut uris) = (Vec::new(), Vec::new(), Vec::new());
        if let Ok(Some(names)) = certificate.subject_alternative_name() {
            for name in &names.value.general_names {
                match name {
                    GeneralName::DNSName(name) => dns.push(*name),
                    GeneralName::RFC822Name(name) => emails.push(*name),
                    GeneralName::URI(name) => uris.push(*name),
                    _ => (),
                }
            }
        }
        let fit = |globs: &[String], names: &[&str]| {
            let one = |name: &&str| globs.iter().any(|glob| glob_fits(glob, name));
            globs.is_empty() || names.iter().any(one)
        };
        let any: Vec<&str> = [&common[..], &dns, &emails].concat();
        fit(&self.allowed_names, &any)
            && fit(&self.allowed_common_names, &common)
            && fit(&self.allowed_dns_sans, &dns)
            && fit(&self.allowed_email_sans, &emails)
            && fit(&self.allowed_uri_sans, &uris)
            && fit(&self.allowed_organizational_units, &units)
    }
}

/// `*` at the start, the end or both stands for any rest.
fn glob_fits(glob: &str, name: &str) -> bool {
    match (glob.strip_prefix('*'), glob.strip_suffix('*')) {
        (Some(""), _) => true,
        (Some(inner), Some(_)) => name.contains(inner.strip_suffix('*').unwrap_or(inner)),
        (Some(end), None) => name.ends_with(end),
        (None, Some(start)) => name.starts_with(start),
        (None, None) => glob == name,
    }
}

fn is_valid(certificate: &X509Certificate<'_>, now: u64) -> bool {
    let validity = certificate.validity();
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    validity.not_before.timestamp() <= now && now <= validity.not_after.timestamp()
}

/// Whether a chain leads to one of these authorities, for a TLS client, at a time.
fn is_issued(
    authorities: &[CertificateDer<'static>],
    own: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: u64,
) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.iter().cloned());
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    verifier.is_ok_and(|verifier| verifier.verify_client_cert(own, intermediates, now).is_ok())
}

/// The certificates in a PEM.
fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Refusal> {
    let wrong = || Refusal::invalid("failed to parse certificate: not X.509 in PEM");
    if pem.len() > MAX_PEM {
        return Err(wrong());
    }
    let read = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let certificates = read.map_err(|_| wrong())?;
    let is_x509 = |der: &CertificateDer<'_>| X509Certificate::from_der(der).is_ok();
    let fits =
        (1..=MAX_CERTIFICATES).contains(&certificates.len()) && certificates.iter().all(is_x509);
    match fits {
        true => Ok(certificates),
        false => Err(wrong()),
    }
}

async fn login(at: &At<'_>, call: &Call) -> Result<Planned, Refusal> {
    #[derive(Deserialize)]
    struct Shown {
        #[serde(default)]
        name: String,
    }
    let shown: Shown = call.body()?;
    let wrong = || Refusal::invalid(WRONG);
    if call.peer_certificates.is_empty() {
        return Err(wrong());
    }
    let names = match shown.name.as_str() {
        "" => {
            at.barrier()
                .list(&at.entry("certs/"), None, MAX_TRIED)
                .await?
        }
        name => vec![role_name(name)?],
    };
    // The certificates' time is that of the wall.
    let now = unix_time();
    let mut admitted = None;
    for name in names {
        if let Some((revision, role)) = read(at, &name).await?
            && role.admits(&call.peer_certificates, now)
        {
            admitted = Some((name, revision, role));
            break;
        }
    }
    let (name, revision, role) = admitted.ok_or_else(wrong)?;
    let (unit, facts) = facts(&name, &call.peer_certificates[0])?;
    let login = Login {
        call,
        mount: at.mount,
        unit,
        facts,
        bound_cidrs: Vec::new(),
    };
    let mut change = Change::default();
    change.expect(at.entry(&format!("certs/{name}")), Some(revision));
    let issued = match role
        .terms
        .issue(at.authorizer.tokens(), &mut change, login)
        .await
    {
        Err(Refusal::Denied) => return Err(wrong()),
        issued => issued?,
    };
    let noted = Noted {
        action: Some(Action::Login),
        actor: Some(issued.record.display_name.clone()),
        secret: Some(issued.record.accessor.clone()),
        ..Noted::default()
    };
    Ok(Planned::of(change, Ok(Answer::Auth(issued.into_auth()))).noting(noted))
}

/// What the unit is called, by its certificate's common name, and what is known of it.
fn facts(
    role: &str,
    certificate: &CertificateDer<'_>,
) -> Result<(String, BTreeMap<String, String>), Refusal> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| Refusal::invalid(WRONG))?;
    let common = parsed.subject().iter_common_name().next();
    let common = common
        .and_then(|name| name.as_str().ok())
        .unwrap_or_default();
    let facts = [
        ("cert_name", role.to_owned()),
        ("common_name", common.to_owned()),
        ("serial_number", parsed.raw_serial_as_string()),
    ];
    let facts = facts.map(|(name, value)| (name.to_owned(), value)).into();
    let unit = if common.is_empty() { role } else { common };
    Ok((unit.to_owned(), facts))
}

#[cfg(test)]
mod tests;
