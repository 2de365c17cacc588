//! A KeyVault, driven through all it offers. What it hands to whom may have it is left out of the search;
//! everything else is in it: refusals, its log, its audit log, its metrics, its store.

use std::path::Path;

use serde_json::{Value, json};

use crate::{
    Seen,
    canaries::Canaries,
    support::{self, cluster::to_file, http_get, keyvault::KeyVault, output, wavry},
};

/// Requests that everybody, or whoever has a token, can send wrongly.
const PATHS: [(&str, &str); 22] = [
    ("POST", "/v1/auth"),
    ("GET", "/v1/secret/app/database"),
    ("POST", "/v1/secret/app/database"),
    ("POST", "/v1/secret/data/app/database"),
    ("GET", "/v1/secret/metadata/app"),
    ("PUT", "/v1/sys/init"),
    ("PUT", "/v1/sys/unseal"),
    ("GET", "/v1/sys/seal-status"),
    ("PUT", "/v1/sys/generate-root/attempt"),
    ("POST", "/v1/sys/mounts/other"),
    ("PUT", "/v1/sys/policies/acl/other"),
    ("POST", "/v1/sys/wrapping/wrap"),
    ("POST", "/v1/sys/wrapping/unwrap"),
    ("POST", "/v1/sys/wrapping/lookup"),
    ("POST", "/v1/auth/token/create"),
    ("POST", "/v1/auth/token/lookup"),
    ("POST", "/v1/auth/token/revoke"),
    ("POST", "/v1/auth/approle/login"),
    ("POST", "/v1/auth/approle/role/app/secret-id/lookup"),
    ("POST", "/v1/auth/kubernetes/login"),
    ("POST", "/v1/transit/encrypt/key"),
    ("POST", "/v1/transit/decrypt/key"),
];

pub(crate) fn drive(seen: &mut Seen, canaries: &mut Canaries, directory: &Path, logs: &Path) {
    let database = directory.join("keyvault.sqlite");
    let mut command = KeyVault::command(directory, &database);
    command.env("RUST_LOG", "trace");
    let command = to_file(&command, &logs.join("keyvault.log"));
    let mut vault = KeyVault::start(directory, command);
    canaries.paserk(
        "audit key of a KeyVault",
        &directory.join("keyvault-audit.key"),
    );
    canaries.secret("root token", &vault.root);
    for share in &vault.shares {
        canaries.secret("share", share);
        canaries.bytes("bytes of a share", &decoded_hex(share));
    }
    secrets(seen, canaries, &vault);
    wrong(seen, canaries, &vault);

    let pid = vault.process.pid();
    let metrics = vault.process.ready["ops"].as_str().unwrap();
    seen.add("metrics of keyvault", http_get(metrics).1);
    seen.process("keyvault", pid);
    for arguments in [
        &["tail", "-n", "10000", "--database"][..],
        &["verify", "--database"],
    ] {
        let mut command = wavry(&["audit"]);
        command.args(arguments).arg(&database);
        command.env("WAVRY_AUDIT_KEY_FILE", directory.join("keyvault-audit.key"));
        let said = output(command);
        assert!(said.status.success(), "{}", support::stderr(&said));
        seen.add(format!("audit {} of keyvault", arguments[0]), said.stdout);
    }
    // Sealed, it knows nothing any more; then it is ended as by a failed allocation.
    vault.does("PUT", "/v1/sys/seal", &Value::Null);
    add(
        seen,
        "sealed",
        vault.ask("GET", "/v1/secret/data/app/database", &Value::Null),
    );
    vault.unseal();
    support::signal(pid, "ABRT");
    support::wait_until_gone(&[pid]);
}

/// Secrets of every kind on every way through it.
fn secrets(seen: &mut Seen, canaries: &mut Canaries, vault: &KeyVault) {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let stored = canaries.word("a stored secret");
    let body = json!({"data": {"password": stored}});
    add(
        seen,
        "a write",
        vault.ask("POST", "/v1/secret/data/app/database", &body),
    );
    let read = vault.does("GET", "/v1/secret/data/app/database", &Value::Null);
    assert_eq!(read["data"]["password"], stored);
    add(
        seen,
        "metadata",
        vault.ask("GET", "/v1/secret/metadata/app/database", &Value::Null),
    );
    add(
        seen,
        "a list",
        vault.ask("LIST", "/v1/secret/metadata/app", &Value::Null),
    );
    let next = canaries.word("the next version");
    let body = json!({"data": {"password": next}, "options": {"cas": 7}});
    add(
        seen,
        "a wrong version",
        vault.ask("POST", "/v1/secret/data/app/database", &body),
    );
    let value = canaries.word("a secret of the short dialect");
    add(
        seen,
        "a short write",
        vault.ask("POST", "/v1/secret/app/short", &json!({"value": value})),
    );

    let (role_id, secret_id) = vault.unit("app");
    canaries.secret("secret-id", &secret_id);
    let ids = json!({"role_id": role_id, "secret_id": secret_id});
    let (status, login) = vault.ask_as("", "POST", "/v1/auth/approle/login", &ids);
    assert_eq!(status, 200, "{login}");
    let token = text(&login["auth"]["client_token"]);
    canaries.secret("token of a unit", &token);
    let forbidden = vault.ask_as(&token, "GET", "/v1/sys/mounts", &Value::Null);
    assert_eq!(forbidden.0, 403);
    add(seen, "what a policy forbids", forbidden);
    let itself = vault.ask_as(&token, "POST", "/v1/auth/token/renew-self", &json!({}));
    assert_eq!(itself.0, 200);

    let wrapped = support::keyvault::ask(
        &vault.https,
        "GET",
        "/v1/secret/data/app/database",
        &[("x-vault-token", &token), ("x-vault-wrap-ttl", "60")],
        &Value::Null,
    );
    let wrapping = text(&wrapped.1["wrap_info"]["token"]);
    canaries.secret("wrapping token", &wrapping);
    let unwrap = || vault.ask_as(&wrapping, "POST", "/v1/sys/wrapping/unwrap", &Value::Null);
    assert_eq!(unwrap().0, 200);
    let again = unwrap();
    assert_eq!(again.0, 400, "it opens once");
    add(seen, "the second use of a wrapping token", again);

    vault.does(
        "POST",
        "/v1/sys/mounts/transit",
        &json!({"type": "transit"}),
    );
    vault.does(
        "POST",
        "/v1/transit/keys/key",
        &json!({"type": "aes256-gcm96"}),
    );
    let plaintext = canaries.word("a plaintext");
    let encoded = crate::canaries::encoded(plaintext.as_bytes());
    let sealed = vault.does(
        "POST",
        "/v1/transit/encrypt/key",
        &json!({"plaintext": encoded}),
    );
    seen.add("a ciphertext", sealed.to_string());
    let opened = vault.does("POST", "/v1/transit/decrypt/key", &sealed);
    assert_eq!(opened["plaintext"], encoded);

    add(
        seen,
        "revoked",
        vault.ask_as(&token, "POST", "/v1/auth/token/revoke-self", &json!({})),
    );
    let late = vault.ask_as(&token, "GET", "/v1/secret/data/app/database", &Value::Null);
    assert_eq!(late.0, 403);
    add(seen, "a revoked token", late);
    add(
        seen,
        "deleted",
        vault.ask("DELETE", "/v1/secret/metadata/app/database", &Value::Null),
    );
}

/// Secrets where none belong, and none where one does.
fn wrong(seen: &mut Seen, canaries: &mut Canaries, vault: &KeyVault) {
    for (method, path) in PATHS {
        let place = format!("{method} {path}");
        let [token, query, body] = ["token", "query", "body"]
            .map(|kind| canaries.word(&format!("{kind} of {place} at a KeyVault")));
        let bodies = [
            format!("{{\"token\": \"{body}\"}}"),
            format!("{{\"role_id\": \"{body}\", \"secret_id\": \"{body}\"}}"),
            format!("{{\"jwt\": \"{body}\", \"role\": \"x\"}}"),
            format!("{{\"data\": \"{body}\"}}"),
            format!(
                "{{\"key\": \"{body}\", \"plaintext\": \"{body}\", \"ciphertext\": \"{body}\"}}"
            ),
            format!("{{\"policy\": \"path {body} {{\"}}"),
            format!("{{\"secret_shares\": \"{body}\", \"ttl\": \"{body}\", \"type\": \"{body}\"}}"),
            format!("{{\"{body}"),
            format!("\"{body}\""),
            format!("{}\"{body}\"{}", "[".repeat(80), "]".repeat(80)),
        ];
        for content in bodies {
            for token in [&token, ""] {
                let answer = vault.https.ask(
                    method,
                    &format!("{path}?token={query}"),
                    &[("x-vault-token", token)],
                    content.as_bytes(),
                );
                assert!(support::https::status(&answer) != 500, "{place}: {answer}");
                // A wrap answers with a token of its own; nobody else is given anything.
                seen.add(place.clone(), answer);
            }
        }
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", &*bearer), ("x-vault-namespace", "x")];
        seen.add(place, vault.https.ask(method, path, &headers, b"{}"));
    }
    // With a token that may do everything, what is malformed is looked at more closely.
    for (method, path) in PATHS {
        if path.contains("/token/revoke") || path.contains("/sys/init") {
            continue;
        }
        let body = canaries.word(&format!("malformed body of root's {method} {path}"));
        for content in [
            format!("{{\"x\": \"{body}"),
            format!("[\"{body}\"]"),
            format!("{{\"data\": {{\"a\": {body}}}}}"),
        ] {
            let headers = [("x-vault-token", &*vault.root)];
            let answer = vault.https.ask(method, path, &headers, content.as_bytes());
            seen.add(format!("root's {method} {path}"), answer);
        }
    }
}

fn add(seen: &mut Seen, place: &str, (status, said): support::keyvault::Said) {
    seen.add(format!("KeyVault, {place}: {status}"), said.to_string());
}

fn decoded_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.filter_map(byte).collect()
}
