//! `wavry keyvault`, running, and requests to it as Vault's clients send them.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use serde_json::{Value, json};

use super::{
    RoleProcess,
    https::{Https, status},
    output, signal, stderr, wait_until_gone, wavry,
};

/// A KeyVault that was initialised and unsealed.
pub(crate) struct KeyVault {
    pub(crate) process: RoleProcess,
    pub(crate) https: Https,
    pub(crate) root: String,
    /// Three shares, of which two unseal it.
    pub(crate) shares: Vec<String>,
}

/// What came back: status, and JSON where there is some.
pub(crate) type Said = (u16, Value);

impl KeyVault {
    /// The command that starts one in a directory with `ca.crt`, `master.crt` and its key; its database is
    /// at `database`.
    pub(crate) fn command(directory: &Path, database: &Path) -> Command {
        let at = |name: &str| directory.join(name);
        let key = at("keyvault-audit.key");
        if !key.exists() {
            let file = key.display().to_string();
            let made = output(wavry(&["key", "generate", "--out", &file]));
            assert!(made.status.success(), "{}", stderr(&made));
        }
        let text = format!(
            "[keyvault]\nlisten = \"127.0.0.1:0\"\ndatabase = {:?}\ncertificate = {:?}\n\
             [ops]\nlisten = \"127.0.0.1:0\"\n",
            database.display().to_string(),
            at("master.crt")
        );
        fs::write(at("keyvault.toml"), text).unwrap();
        let mut command = wavry(&["keyvault", "--config"]);
        command
            .arg(at("keyvault.toml"))
            .env("WAVRY_AUDIT_KEY_FILE", key)
            .env("WAVRY_TLS_KEY_FILE", at("master.key"));
        command
    }

    /// Starts it, and makes it ready for use.
    pub(crate) fn start(directory: &Path, command: Command) -> Self {
        let process = RoleProcess::start(command, &directory.join("keyvault.ready"));
        let https = Https::of(&directory.join("ca.crt"), process.address());
        let shape = json!({"secret_shares": 3, "secret_threshold": 2});
        let (status, made) = ask(&https, "PUT", "/v1/sys/init", &[], &shape);
        assert_eq!(status, 200, "{made}");
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let vault = Self {
            process,
            https,
            root: text(&made["root_token"]),
            shares: made["keys"].as_array().unwrap().iter().map(text).collect(),
        };
        vault.unseal();
        vault
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) -> SocketAddr {
        let address = self.process.address();
        let pid = self.process.pid();
        signal(pid, "KILL");
        wait_until_gone(&[pid]);
        address
    }

    /// Starts it again where it was, and unseals it.
    pub(crate) fn start_again(&mut self, mut command: Command, directory: &Path) {
        command.args(["--listen", &self.process.address().to_string()]);
        self.process = RoleProcess::start(command, &directory.join("keyvault.again"));
        self.unseal();
    }

    /// Brings as many shares as it takes.
    pub(crate) fn unseal(&self) {
        for share in &self.shares[..2] {
            let key = json!({"key": share});
            let (status, said) = ask(&self.https, "PUT", "/v1/sys/unseal", &[], &key);
            assert_eq!(status, 200, "{said}");
        }
    }

    /// A request with the root token.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &Value) -> Said {
        self.ask_as(&self.root, method, path, body)
    }

    /// A request with another token.
    pub(crate) fn ask_as(&self, token: &str, method: &str, path: &str, body: &Value) -> Said {
        ask(&self.https, method, path, &[("x-vault-token", token)], body)
    }

    /// The same, which must succeed; the answer's `data`, or else all of it.
    pub(crate) fn does(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, mut said) = self.ask(method, path, body);
        assert!(
            (200..300).contains(&status),
            "{method} {path}: {status} {said}"
        );
        match said["data"].is_null() {
            true => said,
            false => said["data"].take(),
        }
    }

    /// Makes a role for AppRole with a policy that lets it read below `secret/`; its ids.
    pub(crate) fn unit(&self, name: &str) -> (String, String) {
        let policy = "path \"secret/data/*\" { capabilities = [\"read\"] }";
        self.does(
            "PUT",
            "/v1/sys/policies/acl/reader",
            &json!({"policy": policy}),
        );
        let (status, _) = self.ask("POST", "/v1/sys/auth/approle", &json!({"type": "approle"}));
        assert!(
            [200, 204, 400].contains(&status),
            "400 if it is there already: {status}"
        );
        let role = format!("/v1/auth/approle/role/{name}");
        self.does("POST", &role, &json!({"token_policies": ["reader"]}));
        let role_id = self.does("GET", &format!("{role}/role-id"), &Value::Null);
        let secret_id = self.does("POST", &format!("{role}/secret-id"), &json!({}));
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        (text(&role_id["role_id"]), text(&secret_id["secret_id"]))
    }
}

/// A request as it is.
pub(crate) fn ask(
    https: &Https,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> Said {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let answer = https.ask(method, path, headers, body.as_bytes());
    let content = answer
        .split_once("\r\n\r\n")
        .map_or("", |(_, content)| content);
    let said = serde_json::from_str(content).unwrap_or(Value::Null);
    (status(&answer), said)
}
