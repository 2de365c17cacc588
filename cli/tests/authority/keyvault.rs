//! A KeyVault that runs alone and has its certificate from the master.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use wavry_credentials::cert::{Pair, Trust, client_config};

use super::{files, kept, renewals};
use crate::support::{
    DEADLINE, RoleProcess,
    cluster::Cluster,
    https::Https,
    keyvault::{KeyVault, ask},
    output, stderr, wait_for, wavry,
};

/// Long enough for a start on a busy machine, short enough to see one expire.
const LIFETIME: &str = "certificate_lifetime = \"12s\"";

/// The command that starts it, with more lines of its table.
fn command(cluster: &Cluster, more: &str) -> Command {
    let at = |name: &str| cluster.directory().join(name);
    if !at("vault").exists() {
        let provision = [
            "provision",
            "keyvault",
            "vault",
            "--names",
            "127.0.0.1,localhost",
            "--out",
        ];
        let mut provision = cluster.signing(&provision);
        provision.arg(at("vault"));
        let done = output(provision);
        assert!(done.status.success(), "{}", stderr(&done));
    }
    let text = format!(
        "[keyvault]\nlisten = \"127.0.0.1:0\"\ndatabase = {:?}\nmaster = \"https://{}\"\nca_file = {:?}\n\
         state_dir = {:?}\n{more}\n[ops]\nlisten = \"127.0.0.1:0\"\n",
        at("keyvault.sqlite").display().to_string(),
        cluster.master(),
        at("ca.crt"),
        at("vault/state")
    );
    fs::write(at("keyvault.toml"), text).unwrap();
    let mut command = wavry(&["keyvault", "--config"]);
    command
        .arg(at("keyvault.toml"))
        .env("WAVRY_AUDIT_KEY_FILE", at("audit.key"))
        .env("WAVRY_IDENTITY_KEY_FILE", at("vault/identity.key"))
        .env(
            "WAVRY_REGISTRATION_TOKEN_FILE",
            at("vault/registration.token"),
        )
        .env("WAVRY_TLS_KEY_FILE", at("service.key"));
    command
}

/// The certificate that is shown to who trusts these; `None` if they do not trust it.
fn shown(authorities: &Path, address: SocketAddr) -> Option<CertificateDer<'static>> {
    let config = client_config(&Trust::Authorities(authorities.to_owned())).unwrap();
    let name = address.ip().to_string().try_into().unwrap();
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(DEADLINE)).unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp).ok()?;
    }
    Some(tls.peer_certificates()?[0].clone().into_owned())
}

/// It holds to the end of the second in which it expires.
fn has_expired(pair: &Pair) -> bool {
    pair.not_after() + Duration::from_secs(1) <= SystemTime::now()
}

/// Copies of the pair that a node keeps: it may be replaced at any time.
fn pair(directory: &Path, state: &Path) -> [PathBuf; 2] {
    let copies = ["shown.pem", "shown.key"].map(|name| directory.join(name));
    loop {
        let from = files(state, renewals(state));
        let mut both = from.iter().zip(&copies);
        if both.all(|(from, to)| fs::copy(from, to).is_ok()) {
            return copies;
        }
    }
}

#[test]
fn it_renews_its_certificate_and_lets_in_whom_the_roster_lists_and_starts_without_a_master() {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    cluster.issue_certificates(LIFETIME);
    let mut cluster = cluster.start();
    let directory = cluster.directory().to_owned();
    let at = |name: &str| directory.join(name);
    let state = at("vault/state");
    let mut vault = KeyVault::start(&directory, command(&cluster, ""));
    let address = vault.process.address();

    // A file with whom the roster trusts is there for clients, and has what vouches for it.
    let authorities = at("edge/state/authorities.pem");
    wait_for("the gateway knows whom to trust", || authorities.exists());
    let first = shown(&authorities, address).expect("a certificate of the cluster's authority");

    // Whom it lets in, its roles say, and the roster whose certificates hold.
    vault.does("POST", "/v1/sys/auth/cert", &json!({"type": "cert"}));
    let role = json!({
        "certificate": fs::read_to_string(&authorities).unwrap(),
        "allowed_uri_sans": "spiffe://wavry/gateway/*",
    });
    vault.does("POST", "/v1/auth/cert/certs/gateways", &role);
    vault.does(
        "POST",
        "/v1/secret/data/a",
        &json!({"data": {"value": "kept"}}),
    );
    let login = |state: &str| {
        let https = Https::of(&authorities, address).showing(pair(&directory, &at(state)));
        ask(&https, "POST", "/v1/auth/cert/login", &[], &json!({})).0
    };
    wait_for("the KeyVault has the roster", || login("edge/state") == 200);
    assert_eq!(login("exit/state"), 400);

    // It is renewed, and requests go on.
    let mut seen = vec![first];
    while seen.len() < 3 {
        let (status, said) = vault.ask("GET", "/v1/secret/data/a", &Value::Null);
        assert_eq!(status, 200, "{said}");
        let now = shown(&authorities, address).expect("it is trusted throughout");
        if seen.last() != Some(&now) {
            seen.push(now);
        }
    }

    // A gateway that is revoked is let in no more.
    let operator = cluster.operator_token("admin");
    let revoked = cluster.operate(&operator, &["node", "revoke", "edge"]);
    assert!(revoked.status.success(), "{}", stderr(&revoked));
    wait_for("the gateway's certificate is none", || {
        login("edge/state") == 400
    });

    // Without a master it starts with what it kept, sealed, and is unsealed.
    let before = renewals(&state);
    wait_for("a fresh certificate", || renewals(&state) > before);
    let master = cluster.master();
    cluster.kill_master();
    vault.kill();
    let alone = |more: &str| {
        let text = fs::read_to_string(at("keyvault.toml")).unwrap();
        let text = text.replace("\n[ops]", &format!("\n{more}\n[ops]"));
        fs::write(at("keyvault.toml"), text).unwrap();
        let mut command = wavry(&["keyvault", "--config"]);
        command
            .arg(at("keyvault.toml"))
            .env("WAVRY_AUDIT_KEY_FILE", at("audit.key"))
            .env("WAVRY_IDENTITY_KEY_FILE", at("vault/identity.key"))
            .env("WAVRY_TLS_KEY_FILE", at("service.key"));
        command
    };
    vault.start_again(alone(""), &directory);
    let (status, said) = vault.ask("GET", "/v1/secret/data/a", &Value::Null);
    assert_eq!(status, 200, "{said}");

    // What it kept expires; the one in a file is there for that, until the master is back.
    vault.kill();
    let (_, last) = kept(&state).unwrap();
    wait_for("it expires", || has_expired(&last));
    let file = format!("certificate = {:?}", at("service.crt"));
    vault.start_again(alone(&file), &directory);
    assert_eq!(
        shown(&authorities, address),
        None,
        "it is another authority's"
    );
    let (status, said) = vault.ask("GET", "/v1/secret/data/a", &Value::Null);
    assert_eq!(status, 200, "{said}");
    cluster.start_master(master);
    wait_for("the master's again", || {
        shown(&authorities, address).is_some()
    });

    // Revoked, it gets no other, and has none once that has expired.
    let revoked = cluster.operate(&operator, &["node", "revoke", "vault"]);
    assert!(revoked.status.success(), "{}", stderr(&revoked));
    let (number, last) = kept(&state).unwrap();
    wait_for("it expires", || has_expired(&last));
    assert_eq!(renewals(&state), number);
    assert_eq!(shown(&authorities, address), None);
}

#[test]
fn where_certificates_are_required_who_shows_none_is_refused() {
    let mut cluster = Cluster::new();
    cluster.add("open", "echo:", false);
    cluster.issue_certificates("");
    let cluster = cluster.start();
    let directory = cluster.directory().to_owned();
    let command = command(&cluster, "node_certificates = \"required\"");
    let process = RoleProcess::start(command, &directory.join("keyvault.ready"));
    let https = || Https::of(&directory.join("ca.crt"), process.address());
    let health = |https: Https| ask(&https, "GET", "/v1/sys/health", &[], &Value::Null);
    let (status, said) = health(https());
    assert_eq!(status, 403, "{said}");
    assert!(said["errors"][0].as_str().unwrap().contains("certificate"));
    // It was never initialised, and says so to a node.
    let state = directory.join("exit/state");
    wait_for("the relay is let in", || {
        health(https().showing(pair(&directory, &state))).0 == 501
    });
}
