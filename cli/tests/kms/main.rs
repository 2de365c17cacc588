//! Secrets that AWS KMS encrypted: roles that start with them, and what they say where it does not decrypt them. KMS is
//! moto's, which checks signatures and permissions as AWS does.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};
use support::{
    RoleProcess, output,
    peer::{Process, python},
    stderr, wavry,
};
use wavry_credentials::{
    bearer::Token,
    cert::{self, DevelopmentAuthority},
    clock::unix_time,
    source,
    token::{Scope, SigningKey},
};
use wavry_proto::token::Session;

/// moto, with a user who may decrypt.
struct Aws {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    made: Value,
    process: Process,
}

impl Aws {
    fn start() -> Self {
        use std::os::unix::process::CommandExt as _;
        let mut child: Child = python("moto", "kms/kms.py")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("moto starts");
        let mut aws = Self {
            stdin: child.stdin.take().expect("piped"),
            stdout: BufReader::new(child.stdout.take().expect("piped")),
            made: Value::Null,
            process: Process::of(child),
        };
        aws.made = aws.answer();
        aws
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).expect("one JSON object a line")
    }

    fn does(&mut self, what: &Value) -> Value {
        writeln!(self.stdin, "{what}").unwrap();
        self.answer()
    }

    fn made(&self, what: &str) -> &str {
        self.made[what].as_str().unwrap()
    }

    /// `plaintext` as the ciphertext of secret `name`.
    fn encrypt(&mut self, name: &str, plaintext: &str) -> String {
        let key = self.made("key").to_owned();
        let context = json!({"wavry:secret": name});
        let encrypt =
            json!({"do": "encrypt", "key": key, "plaintext": plaintext, "context": context});
        let done = self.does(&encrypt);
        done["ciphertext"].as_str().unwrap().to_owned()
    }
}

struct World {
    directory: tempfile::TempDir,
    aws: Aws,
}

impl World {
    fn new() -> Self {
        cert::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        let authority = DevelopmentAuthority::open(directory.path()).unwrap();
        authority.issue("server", &["127.0.0.1"]).unwrap();
        let world = Self {
            directory,
            aws: Aws::start(),
        };
        let secret = world.aws.made("secret_access_key").as_bytes();
        source::write_private(&world.at("secret_access_key"), secret).unwrap();
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Keeps a new key, encrypted, as secret `name`; its text.
    fn keep(&mut self, name: &str, kind: &[&str]) -> String {
        let plain = self.at("plain");
        let mut generate = wavry(&["key", "generate"]);
        generate.args(kind).arg("--out").arg(&plain);
        let made = output(generate);
        assert!(made.status.success(), "{}", stderr(&made));
        let text = fs::read_to_string(&plain).unwrap();
        fs::remove_file(plain).unwrap();
        self.keep_text(name, &text);
        text
    }

    fn keep_text(&mut self, name: &str, text: &str) {
        let ciphertext = self.aws.encrypt(name, text);
        fs::write(self.at(&format!("{name}.kms")), ciphertext + "\n").unwrap();
    }

    fn names_secrets(&self, command: &mut Command, secrets: &[&str]) {
        command
            .env("WAVRY_TLS_KEY_FILE", self.at("server.key"))
            .env("WAVRY_AWS_REGION", self.aws.made("region"))
            .env("WAVRY_AWS_ACCESS_KEY_ID", self.aws.made("access_key_id"))
            .env(
                "WAVRY_AWS_SECRET_ACCESS_KEY_FILE",
                self.at("secret_access_key"),
            )
            .env("WAVRY_AWS_KMS_URL", self.aws.made("url"))
            .env("WAVRY_AWS_KMS_KEY", self.aws.made("key"));
        for name in secrets {
            let variable = format!("WAVRY_{}_KMS_FILE", name.to_uppercase());
            command.env(variable, self.at(&format!("{name}.kms")));
        }
    }

    /// A role that finds these secrets encrypted.
    fn role(&self, role: &str, table: &str, secrets: &[&str]) -> Command {
        let file = self.at(&format!("{role}.toml"));
        let text = format!(
            "[{role}]\nlisten = \"127.0.0.1:0\"\ndatabase = {:?}\ncertificate = {:?}\n{table}\n\
             [ops]\nlisten = \"127.0.0.1:0\"\n",
            self.at("database.sqlite"),
            self.at("server.crt")
        );
        fs::write(&file, text).unwrap();
        let mut command = wavry(&[role, "--config"]);
        command.arg(file);
        self.names_secrets(&mut command, secrets);
        command
    }

    fn master(&self) -> Command {
        self.role("master", "", &["master_key", "audit_key"])
    }
}

fn succeeds(command: Command) -> String {
    let done = output(command);
    assert!(done.status.success(), "{}", stderr(&done));
    String::from_utf8(done.stdout).unwrap()
}

/// No file below `directory` has `text` in it.
fn is_nowhere(directory: &Path, text: &str) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            is_nowhere(&path, text);
        } else {
            let bytes = fs::read(&path).unwrap();
            let found = bytes
                .windows(text.len())
                .any(|part| part == text.as_bytes());
            assert!(!found, "{}", path.display());
        }
    }
}

#[test]
fn a_master_signs_with_a_key_that_is_on_disk_as_ciphertext_alone() {
    let mut world = World::new();
    let text = world.keep("master_key", &[]);
    world.keep("audit_key", &[]);
    let master = RoleProcess::start(world.master(), &world.at("master.ready"));

    let token = world.at("operator.token");
    let mut make = wavry(&["token", "operator", "--subject", "alice", "--role", "admin"]);
    make.arg("--out").arg(&token);
    make.env("WAVRY_MASTER_CONFIG", world.at("master.toml"));
    world.names_secrets(&mut make, &["master_key", "audit_key"]);
    succeeds(make);

    // The master knows the operator by the same key, and signs with it.
    let operate = |arguments: &[&str]| {
        let mut command = wavry(arguments);
        command
            .env("WAVRY_OPERATOR_TOKEN_FILE", &token)
            .env("WAVRY_CA_FILE", world.at("ca.crt"))
            .env("WAVRY_MASTER", format!("https://{}", master.address()));
        command
    };
    succeeds(operate(&["service", "set", "chat", "--origin", "*"]));
    let issued = world.at("issued.token");
    let mut issue = operate(&["token", "issue", "session", "chat", "--subject", "bob"]);
    issue.arg("--out").arg(&issued);
    succeeds(issue);
    let issued = Token::read(&source::read_file(&issued).unwrap()).unwrap();
    let key = SigningKey::from_paserk(&wavry_credentials::secret::Secret::new(
        text.trim().as_bytes().to_vec(),
    ));
    let scope = Scope {
        cluster: &"wavry".parse().unwrap(),
        audience: "chat",
        binding: &[],
    };
    let by = |key: &SigningKey| issued.verify::<Session>(&key.key_set(), scope, unix_time());
    assert_eq!(by(&key.unwrap()).unwrap().sub, "bob");
    assert!(by(&SigningKey::generate()).is_err());
    is_nowhere(world.directory.path(), text.trim());
}

#[test]
fn a_keyvault_unseals_itself_with_a_key_that_kms_decrypts() {
    let mut world = World::new();
    let symmetric = "7".repeat(64);
    world.keep_text("keyvault_key", &symmetric);
    world.keep("audit_key", &[]);
    let secrets = ["keyvault_key", "audit_key"];
    let keyvault = |world: &World| world.role("keyvault", "seal = \"key\"", &secrets);
    let started = RoleProcess::start(keyvault(&world), &world.at("keyvault.ready"));
    assert!(started.address().ip().is_loopback());
    drop(started);
    // Its place is told; it is not what was told.
    let mut check = keyvault(&world);
    check.arg("--check");
    let text = succeeds(check);
    assert!(text.contains("WAVRY_KEYVAULT_KEY_KMS_FILE"), "{text}");
    assert!(!text.contains(&symmetric), "{text}");

    world.keep_text("keyvault_key", "canary-of-no-key");
    let refused = output(keyvault(&world));
    assert_eq!(refused.status.code(), Some(1));
    let text = stderr(&refused);
    assert!(text.contains("keyvault_key"), "{text}");
    assert!(!text.contains("canary"), "{text}");
}

#[test]
fn what_kms_does_not_decrypt_stops_the_start_with_variable_and_file_and_without_a_secret() {
    let mut world = World::new();
    let text = world.keep("master_key", &[]);
    world.keep("audit_key", &[]);
    let secret = world.aws.made("secret_access_key").to_owned();
    let refused = |command: Command| {
        let said = output(command);
        assert_eq!(said.status.code(), Some(1));
        let said = stderr(&said);
        for named in ["WAVRY_MASTER_KEY_KMS_FILE", "master_key.kms"] {
            assert!(said.contains(named), "{said}");
        }
        assert!(
            !said.contains(text.trim()) && !said.contains(&secret),
            "{said}"
        );
        said
    };

    // The ciphertext of another secret, by the same key.
    let (own, other) = (world.at("master_key.kms"), world.at("audit_key.kms"));
    let ciphertext = fs::read(&own).unwrap();
    fs::copy(other, &own).unwrap();
    let said = refused(world.master());
    assert!(said.contains("the context of secret master_key"), "{said}");
    fs::write(&own, "no ciphertext").unwrap();
    assert!(refused(world.master()).contains("base64"));
    fs::write(&own, ciphertext).unwrap();

    // Another key than the one that is to have encrypted it.
    let another = world.aws.does(&json!({"do": "new_key"}));
    let mut master = world.master();
    master.env("WAVRY_AWS_KMS_KEY", another["key"].as_str().unwrap());
    assert!(refused(master).contains("AccessDeniedException"));

    // Not signed by whom it says.
    let mut master = world.master();
    let wrong = world.at("wrong");
    source::write_private(&wrong, &[b'x'; 40]).unwrap();
    master.env("WAVRY_AWS_SECRET_ACCESS_KEY_FILE", wrong);
    assert!(refused(master).contains("AWS KMS refused with 403"));

    let mut master = world.master();
    master.env("WAVRY_AWS_SECRET_ACCESS_KEY_FILE", world.at("none"));
    let said = refused(master);
    assert!(said.contains("WAVRY_AWS_SECRET_ACCESS_KEY_FILE"), "{said}");

    // No plain HTTP but on this machine.
    let mut master = world.master();
    master.env("WAVRY_AWS_KMS_URL", "http://kms.example:80");
    assert!(refused(master).contains("WAVRY_AWS_KMS_URL"));

    // Nothing was wrong with the rest.
    drop(RoleProcess::start(
        world.master(),
        &world.at("master.ready"),
    ));

    world.aws.does(&json!({"do": "forbid"}));
    assert!(refused(world.master()).contains("AWS KMS refused with 4"));

    let master = world.master();
    drop(world.aws.process);
    let said = refused(master);
    assert!(said.contains("cannot be reached"), "{said}");
}
