//! `wavry ROLE --check`: what is wrong is known before a role starts.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

mod support;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use support::{output, stderr, wavry};
use wavry_credentials::cert::DevelopmentAuthority;

const CANARY: &str = "canary-5ecret-value";

/// A directory with all that each role needs.
struct Deployment(tempfile::TempDir);

impl Deployment {
    fn new() -> Self {
        let deployment = Self(tempfile::tempdir().unwrap());
        let authority = DevelopmentAuthority::open(deployment.0.path()).unwrap();
        authority.issue("server", &["localhost"]).unwrap();
        let run = |mut command: Command| {
            command.envs(deployment.environment());
            let done = output(command);
            assert!(done.status.success(), "{}", stderr(&done));
        };
        for key in ["master.key", "audit.key"] {
            run(wavry(&["key", "generate", "--out", &deployment.at(key)]));
        }
        let vault_key = Path::new(&deployment.at("vault.key")).to_owned();
        fs::write(&vault_key, "5c".repeat(32)).unwrap();
        fs::set_permissions(&vault_key, fs::Permissions::from_mode(0o600)).unwrap();
        let node = deployment.at("node");
        run(wavry(&[
            "provision",
            "relay",
            "exit",
            "--services",
            "echo",
            "--out",
            &node,
        ]));
        let node = format!(
            "master = \"https://localhost:1\"\nca_file = {:?}\nstate_dir = {:?}\n",
            deployment.at("ca.crt"),
            deployment.at("state")
        );
        let certificate = format!("certificate = {:?}\n", deployment.at("server.crt"));
        let database = |name| format!("database = {:?}\n", deployment.at(name));
        for (role, table) in [
            (
                "master",
                format!(
                    "{certificate}{}[master.keyvault]\nseal = \"key\"\n{}",
                    database("m.sqlite"),
                    database("v.sqlite")
                ),
            ),
            (
                "keyvault",
                format!(
                    "seal = \"key\"\n{certificate}{}",
                    database("keyvault.sqlite")
                ),
            ),
            ("gateway", format!("{certificate}{node}")),
            (
                "relay",
                format!(
                    "mesh_listen = \"127.0.0.1:0\"\n{node}[relay.upstreams.echo]\nurl = \"echo:\"\n"
                ),
            ),
        ] {
            let file = deployment.at(&format!("{role}.toml"));
            fs::write(file, format!("[{role}]\n{table}")).unwrap();
        }
        deployment
    }

    fn at(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("WAVRY_MASTER_KEY_FILE", self.at("master.key")),
            ("WAVRY_AUDIT_KEY_FILE", self.at("audit.key")),
            ("WAVRY_KEYVAULT_KEY_FILE", self.at("vault.key")),
            ("WAVRY_TLS_KEY_FILE", self.at("server.key")),
            ("WAVRY_IDENTITY_KEY_FILE", self.at("node/identity.key")),
            (
                "WAVRY_REGISTRATION_TOKEN_FILE",
                self.at("node/registration.token"),
            ),
        ]
    }

    /// Exit code, and what was printed.
    fn check(&self, role: &str, more: &[(&str, &str)]) -> (Option<i32>, String) {
        let mut command = wavry(&[
            role,
            "--check",
            "--config",
            &self.at(&format!("{role}.toml")),
        ]);
        command.envs(self.environment()).envs(more.iter().copied());
        let checked = output(command);
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&checked.stdout),
            stderr(&checked)
        );
        assert!(!text.contains(CANARY), "shows a value: {text}");
        (checked.status.code(), text)
    }
}

#[test]
fn a_deployment_that_is_complete_is_said_to_be_and_nothing_is_started_or_written() {
    let deployment = Deployment::new();
    for (role, needs) in [
        (
            "master",
            [
                "secret master_key",
                "secret keyvault_key",
                "certificate and secret tls_key",
            ],
        ),
        (
            "keyvault",
            [
                "secret audit_key",
                "secret keyvault_key",
                "certificate and secret tls_key",
            ],
        ),
        (
            "gateway",
            [
                "secret identity_key",
                "secret registration_token",
                "certificate and secret tls_key",
            ],
        ),
        (
            "relay",
            [
                "secret identity_key",
                "secret registration_token",
                "authorities that vouch for the master",
            ],
        ),
    ] {
        let (code, text) = deployment.check(role, &[]);
        assert_eq!(code, Some(0), "{text}");
        for need in needs {
            assert!(text.contains(&format!("ok    {need}: ")), "{role}: {text}");
        }
        assert!(!text.contains("FAIL"), "{text}");
    }
    for made in ["m.sqlite", "v.sqlite", "keyvault.sqlite", "state"] {
        assert!(!Path::new(&deployment.at(made)).exists(), "{made}");
    }
}

#[test]
fn each_secret_that_is_missing_open_to_others_or_malformed_is_named_and_the_role_would_not_start() {
    let deployment = Deployment::new();
    let (open, malformed) = (deployment.at("open"), deployment.at("malformed"));
    for file in [&open, &malformed] {
        fs::write(file, CANARY).unwrap();
    }
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(&malformed, fs::Permissions::from_mode(0o600)).unwrap();
    let gone = deployment.at("gone");
    for (role, secrets) in [
        (
            "master",
            &["master_key", "audit_key", "tls_key", "keyvault_key"][..],
        ),
        ("keyvault", &["audit_key", "tls_key", "keyvault_key"]),
        (
            "gateway",
            &["tls_key", "identity_key", "registration_token"],
        ),
        ("relay", &["identity_key", "registration_token"]),
    ] {
        for secret in secrets {
            let variable = format!("WAVRY_{}_FILE", secret.to_uppercase());
            for file in [&gone, &open, &malformed] {
                let more = [(&*variable, &**file)];
                let (code, text) = deployment.check(role, &more);
                assert_eq!(code, Some(1), "{role} {secret} {file}: {text}");
                let failed: Vec<_> = text.lines().filter(|l| l.starts_with("FAIL")).collect();
                let [line] = failed[..] else {
                    panic!("{role} {secret} {file}: {text}");
                };
                assert!(line.contains(&format!("secret {secret}")), "{line}");
                assert!(line.contains(&**file), "{line}");
            }
        }
    }
}

#[test]
fn what_the_check_finds_wrong_is_what_a_start_stops_at() {
    let deployment = Deployment::new();
    let gone = deployment.at("gone");
    for (role, secret) in [
        ("master", "MASTER_KEY"),
        ("master", "AUDIT_KEY"),
        ("master", "TLS_KEY"),
        ("master", "KEYVAULT_KEY"),
        ("keyvault", "AUDIT_KEY"),
        ("keyvault", "TLS_KEY"),
        ("keyvault", "KEYVAULT_KEY"),
        ("gateway", "TLS_KEY"),
        ("gateway", "IDENTITY_KEY"),
        ("relay", "IDENTITY_KEY"),
        ("relay", "REGISTRATION_TOKEN"),
    ] {
        let variable = format!("WAVRY_{secret}_FILE");
        let mut command = wavry(&[role, "--config", &deployment.at(&format!("{role}.toml"))]);
        command
            .args(["--ops-listen", "127.0.0.1:0"])
            .envs(deployment.environment())
            .env(&variable, &gone);
        let started = output(command);
        assert_eq!(started.status.code(), Some(1), "{role} {secret}");
        assert!(stderr(&started).contains(&gone), "{}", stderr(&started));
    }
}

#[test]
fn a_configuration_that_is_wrong_is_said_to_be() {
    let deployment = Deployment::new();
    fs::write(deployment.at("relay.toml"), "[relay]\nlisen = 1\n").unwrap();
    let (code, text) = deployment.check("relay", &[]);
    assert_eq!(code, Some(1));
    assert!(text.contains("relay.lisen: unknown key"), "{text}");
}
