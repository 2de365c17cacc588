//! `wavry keyvault` as people ask it: with curl.

mod support;

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use serde_json::{Value, json};
use support::{DEADLINE, Dev, output, wavry};
use wavry_credentials::cert::DevelopmentAuthority;

/// A KeyVault, running, initialised and unsealed.
struct Vault {
    child: Child,
    directory: tempfile::TempDir,
    address: SocketAddr,
    root: String,
}

impl Drop for Vault {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn at(directory: &Path, name: &str) -> PathBuf {
    directory.join(name)
}

fn start(directory: &Path, more: &str) -> (Child, SocketAddr) {
    let database = at(directory, "keyvault.sqlite").display().to_string();
    let certificate = at(directory, "tls/vault.crt").display().to_string();
    let config = format!(
        "[keyvault]\nlisten = \"127.0.0.1:0\"\ndatabase = {database:?}\n\
         certificate = {certificate:?}\n{more}\n[ops]\nlisten = \"127.0.0.1:0\"\n"
    );
    fs::write(at(directory, "keyvault.toml"), config).expect("a file can be written");
    let ready = at(directory, "ready.json");
    let _ = fs::remove_file(&ready);
    let mut child = wavry(&["keyvault", "--config"])
        .arg(at(directory, "keyvault.toml"))
        .arg("--ready-file")
        .arg(&ready)
        .env("WAVRY_AUDIT_KEY_FILE", at(directory, "audit.key"))
        .env("WAVRY_TLS_KEY_FILE", at(directory, "tls/vault.key"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(at(directory, "log")).expect("a file can be written"))
        .spawn()
        .expect("the binary starts");
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Ok(text) = fs::read_to_string(&ready) {
            let ready: Value = serde_json::from_str(&text).expect("the ready file is JSON");
            let address = ready["address"].as_str().expect("an address");
            return (child, address.parse().expect("an address"));
        }
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            let log = fs::read_to_string(at(directory, "log")).unwrap_or_default();
            panic!("{status}: {log}");
        }
        assert!(Instant::now() < deadline, "does not start");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

impl Vault {
    fn start(more: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path();
        fs::create_dir(at(path, "tls")).expect("a directory can be made");
        let authority = DevelopmentAuthority::open(&at(path, "tls")).expect("an authority");
        authority
            .issue("vault", &["localhost"])
            .expect("a certificate");
        authority.issue("unit", &["unit-1"]).expect("a certificate");
        let mut key = wavry(&["key", "generate", "--out"]);
        key.arg(at(path, "audit.key"));
        assert!(output(key).status.success());
        let (child, address) = start(path, more);
        let mut vault = Self {
            child,
            directory,
            address,
            root: String::new(),
        };
        vault.initialise();
        vault
    }

    fn initialise(&mut self) {
        let body = json!({"secret_shares": 3, "secret_threshold": 2});
        let (status, init) = self.curl(&["-X", "PUT", "/v1/sys/init", "-d", &body.to_string()]);
        assert_eq!(status, 200, "{init}");
        self.root = init["root_token"].as_str().expect("a token").to_owned();
        let (status, health) = self.curl(&["/v1/sys/health"]);
        assert_eq!((status, &health["sealed"]), (503, &Value::Bool(true)));
        for share in &init["keys"].as_array().expect("shares")[1..] {
            let body = json!({"key": share}).to_string();
            let (status, _) = self.curl(&["-X", "PUT", "/v1/sys/unseal", "-d", &body]);
            assert_eq!(status, 200);
        }
        assert_eq!(self.curl(&["/v1/sys/health"]).0, 200);
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    /// What curl gets: the status, and the body. An argument that begins with `/` and is no file is a
    /// path.
    fn curl(&self, arguments: &[&str]) -> (u16, Value) {
        let (text, code) = self.run(arguments);
        assert_eq!(code, Some(0), "curl {arguments:?}: {text}");
        let (body, status) = text.rsplit_once('\n').expect("a status");
        let body = serde_json::from_str(body).unwrap_or(Value::Null);
        (status.parse().expect("a status"), body)
    }

    fn run(&self, arguments: &[&str]) -> (String, Option<i32>) {
        let ca = at(self.directory.path(), "tls/ca.crt");
        let mut command = Command::new("curl");
        command.args([
            "-s",
            "-S",
            "--max-time",
            "30",
            "-w",
            "\n%{http_code}",
            "--cacert",
        ]);
        command.arg(ca);
        for argument in arguments {
            match argument.starts_with('/') && !Path::new(argument).exists() {
                true => command.arg(self.url(argument)),
                false => command.arg(argument),
            };
        }
        let done = output(command);
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        (text, done.status.code())
    }

    fn as_root(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let header = format!("X-Vault-Token: {}", self.root);
        self.curl(&["-X", method, "-H", &header, path, "-d", &body.to_string()])
    }
}

#[test]
fn a_unit_gets_a_token_and_a_secret_with_two_requests() {
    let vault = Vault::start("");
    let policy = r#"path "secret/data/app/*" { capabilities = ["read"] }"#;
    for (path, body) in [
        ("/v1/secret/app/database", json!({"value": "s3cret"})),
        ("/v1/secret/other/database", json!({"value": "s3cret"})),
        ("/v1/sys/policies/acl/app", json!({"policy": policy})),
        ("/v1/sys/auth/approle", json!({"type": "approle"})),
        (
            "/v1/auth/approle/role/app",
            json!({"token_policies": "app"}),
        ),
    ] {
        let (status, answer) = vault.as_root("POST", path, &body);
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
    }
    let role = "/v1/auth/approle/role/app";
    let (_, id) = vault.as_root("GET", &format!("{role}/role-id"), &json!({}));
    let (_, secret) = vault.as_root("POST", &format!("{role}/secret-id"), &json!({}));
    let login = json!({
        "role_id": id["data"]["role_id"],
        "secret_id": secret["data"]["secret_id"],
    });

    // As the requirement has it: POST /v1/auth gives .auth.client_token, GET /v1/secret/:path gives
    // .data.value.
    let (status, auth) = vault.curl(&["-X", "POST", "/v1/auth", "-d", &login.to_string()]);
    assert_eq!(status, 200, "{auth}");
    let token = auth["auth"]["client_token"].as_str().unwrap();
    let bearer = format!("Authorization: Bearer {token}");
    let (status, secret) = vault.curl(&["-H", &bearer, "/v1/secret/app/database"]);
    assert_eq!((status, &secret["data"]["value"]), (200, &json!("s3cret")));

    let (status, refused) = vault.curl(&["-H", &bearer, "/v1/secret/other/database"]);
    assert_eq!(
        (status, refused),
        (403, json!({"errors": ["permission denied"]}))
    );
    let (status, _) = vault.curl(&["/v1/secret/app/database"]);
    assert_eq!(status, 403);
    let write = [
        "-X",
        "POST",
        "-H",
        &bearer,
        "/v1/secret/app/database",
        "-d",
        r#"{"value":"x"}"#,
    ];
    assert_eq!(vault.curl(&write).0, 403);
    let wrong = json!({"role_id": login["role_id"], "secret_id": "wrong"});
    let (status, refused) = vault.curl(&["-X", "POST", "/v1/auth", "-d", &wrong.to_string()]);
    assert!((400..404).contains(&status), "{refused}");
}

#[test]
fn bodies_and_paths_beyond_the_limits_get_clear_errors() {
    let vault = Vault::start("");
    let long = at(vault.directory.path(), "long");
    fs::write(&long, format!("{{\"value\":\"{}\"}}", "x".repeat(1 << 20))).unwrap();
    let header = format!("X-Vault-Token: {}", vault.root);
    let data = format!("@{}", long.display());
    let put = |data: &str| vault.curl(&["-X", "POST", "-H", &header, "/v1/secret/a", "-d", data]);
    assert_eq!(put(&data).0, 413);
    let deep = format!("{{\"value\":{}{}}}", "[".repeat(100), "]".repeat(100));
    for (body, named) in [
        (deep.as_str(), "deep"),
        ("{\"value\":", "line 1"),
        ("[1]", "object"),
    ] {
        let (status, answer) = put(body);
        assert_eq!(status, 400, "{body}");
        assert!(
            answer["errors"][0].as_str().unwrap().contains(named),
            "{answer}"
        );
    }
    for path in [
        "/v1/secret/../sys/mounts",
        "/v1/secret/%2e%2e/x",
        "/v1/secret//x",
        "/v1/secret/a%00",
    ] {
        let (status, answer) = vault.curl(&["--path-as-is", "-H", &header, path]);
        assert_eq!(status, 400, "{path}: {answer}");
    }
    let (status, document) = vault.curl(&["/openapi.json"]);
    assert_eq!(
        (status, &document["info"]["title"]),
        (200, &json!("Wavry KeyVault"))
    );
    assert_eq!(vault.curl(&["/v1/nothing/here"]).0, 403);
    assert_eq!(vault.curl(&["/elsewhere"]).0, 404);
}

#[test]
fn a_client_that_does_not_finish_its_request_is_cut_off() {
    let vault = Vault::start("");
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &vault.address.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl starts");
    // Kept, so that it is not the client that ends the connection.
    let mut stdin = client.stdin.take().unwrap();
    stdin
        .write_all(b"GET /v1/sys/health HTTP/1.1\r\nhost: a")
        .unwrap();
    assert!(ended(&mut client), "a head that does not end is waited for");
    drop(stdin);
}

/// Whether a process ends by itself; it does not outlive the test either way.
fn ended(child: &mut Child) -> bool {
    let deadline = Instant::now() + DEADLINE;
    while child.try_wait().expect("it can be waited for").is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    true
}

#[test]
fn a_client_without_a_certificate_gets_nothing_where_one_is_required() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::create_dir(at(path, "tls")).unwrap();
    let authority = DevelopmentAuthority::open(&at(path, "tls")).unwrap();
    authority.issue("vault", &["localhost"]).unwrap();
    authority.issue("unit", &["unit-1"]).unwrap();
    let mut key = wavry(&["key", "generate", "--out"]);
    key.arg(at(path, "audit.key"));
    assert!(output(key).status.success());
    let ca = at(path, "tls/ca.crt").display().to_string();
    let (child, address) = start(path, &format!("client_ca = {ca:?}"));
    let vault = Vault {
        child,
        directory,
        address,
        root: String::new(),
    };
    let (_, code) = vault.run(&["/v1/sys/health"]);
    assert_ne!(code, Some(0), "a client without a certificate was served");
    let file = |name: &str| at(vault.directory.path(), name).display().to_string();
    let (cert, key) = (file("tls/unit.crt"), file("tls/unit.key"));
    let (status, health) = vault.curl(&["--cert", &cert, "--key", &key, "/v1/sys/health"]);
    assert_eq!((status, &health["initialized"]), (501, &json!(false)));
}

#[test]
fn tls_1_2_is_spoken_with_aead_and_nothing_older() {
    let vault = Vault::start("");
    let get = |more: &[&str]| {
        let mut arguments = vec!["/v1/sys/health"];
        arguments.extend(more);
        vault.run(&arguments).1
    };
    assert_eq!(get(&["--tls-max", "1.2"]), Some(0));
    assert_eq!(get(&["--tlsv1.3"]), Some(0));
    let cbc = [
        "--tls-max",
        "1.2",
        "--ciphers",
        "ECDHE-ECDSA-AES256-SHA384:ECDHE-RSA-AES256-SHA384:AES256-SHA",
    ];
    assert_ne!(get(&cbc), Some(0));
    assert_ne!(get(&["--tlsv1.0", "--tls-max", "1.1"]), Some(0));
}

#[test]
fn a_development_cluster_has_a_keyvault_that_answers_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path());
    let file = dev.ready["keyvault"]["root_token_file"].as_str().unwrap();
    let root: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let url = dev.ready["keyvault"]["address"].as_str().unwrap();
    let get = |path: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "--max-time", "30", "--cacert"])
            .arg(dev.ready["ca_file"].as_str().unwrap());
        let token = root["root_token"].as_str().unwrap();
        curl.args(["-H", &format!("X-Vault-Token: {token}")])
            .arg(format!("{url}{path}"));
        serde_json::from_slice::<Value>(&output(curl).stdout).unwrap()
    };
    let value = json!("development-data-only");
    assert_eq!(get("/v1/secret/example")["data"]["value"], value);
    assert_eq!(
        get("/v1/secret/data/example")["data"]["data"]["value"],
        value
    );
    assert_eq!(get("/v1/sys/health")["sealed"], false);
}

#[test]
fn its_audit_log_is_copied_to_its_sinks_and_verifies_there() {
    let elsewhere = tempfile::tempdir().unwrap();
    let copy = at(elsewhere.path(), "keyvault.jsonl");
    let vault = Vault::start(&format!(
        "[[keyvault.audit_sinks]]\nname = \"copy\"\nurl = \"file://{}\"",
        copy.display()
    ));
    for value in ["one", "two"] {
        let body = json!({ "value": value });
        assert_eq!(vault.as_root("POST", "/v1/secret/app", &body).0, 200);
    }
    let verify = |log: &str, place: &Path| {
        let mut verify = wavry(&["audit", "verify", log]);
        verify.arg(place).env(
            "WAVRY_AUDIT_KEY_FILE",
            at(vault.directory.path(), "audit.key"),
        );
        let done = output(verify);
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let held = said.split_once(": ").map(|(_, held)| held.to_owned());
        held.filter(|_| done.status.success())
    };
    let kept = verify("--database", &at(vault.directory.path(), "keyvault.sqlite"));
    assert!(kept.is_some(), "the log in the database holds");
    let deadline = Instant::now() + DEADLINE;
    while verify("--file", &copy) != kept {
        assert!(Instant::now() < deadline, "the copy is not complete");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
