//! No secret comes out: a system with a canary for each kind of secret is driven through all it offers, and
//! whatever it said, wrote or left behind is searched for every one of them.
//!
//! What is driven: every route of the master, sessions and requests at the gateway, every command that
//! issues something, every file and variable that can be malformed, a panic and an abort — all with logs at
//! trace level. What is searched: standard output and error, answers, metrics, audit logs, databases, state
//! directories, `/proc/PID/environ` and `cmdline` of each process, and core dumps if there are any.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod canaries;
mod keyvault;
mod scanner;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use canaries::Canaries;
use support::{
    client::Ask,
    cluster::Cluster,
    http_get,
    https::{Https, status},
    output, plain, wavry,
};

/// What was said and written, with where.
#[derive(Default)]
struct Seen(Vec<(String, Vec<u8>)>);

impl Seen {
    fn add(&mut self, place: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.0.push((place.into(), bytes.into()));
    }

    /// Runs a command, and takes both of its outputs. Gives the standard output.
    fn run(&mut self, place: &str, command: Command) -> Vec<u8> {
        let said = output(command);
        self.add(format!("{place}: stdout"), said.stdout.clone());
        self.add(format!("{place}: stderr"), said.stderr);
        said.stdout
    }

    /// Everything in a directory but what is meant to hold secrets.
    fn directory(&mut self, directory: &Path, but: &[PathBuf]) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                self.directory(&path, but);
            } else if path.is_file() && !but.contains(&path) {
                self.add(path.display().to_string(), fs::read(&path).unwrap());
            }
        }
    }

    /// What the operating system shows of a process.
    fn process(&mut self, name: &str, pid: u32) {
        for file in ["environ", "cmdline", "status"] {
            let path = format!("/proc/{pid}/{file}");
            let shown = fs::read(&path);
            self.add(format!("{path} of {name}"), shown.unwrap_or_default());
        }
    }

    /// The leaks in all of it.
    fn leaks(&self, canaries: &Canaries) -> Vec<String> {
        let leaks = self.0.iter().filter_map(|(place, bytes)| {
            let leak = canaries.scanner.scan(bytes)?;
            Some(format!("{place}: {leak:?}"))
        });
        leaks.collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_comes_out_of_a_system_in_any_encoding() {
    let mut cluster = Cluster::new();
    let directory = cluster.directory().to_owned();
    let logs = directory.join("logs");
    fs::create_dir(&logs).unwrap();
    cluster.log_everything_to(&logs);
    cluster.add("echo", "echo:", false);
    cluster.add_with_token("chat", "echo:");
    let copy = directory.join("copy.jsonl");
    cluster.add_audit_sink("copy", &format!("file://{}", copy.display()));
    let mut cluster = cluster.start();

    let mut canaries = Canaries::default();
    let mut seen = Seen::default();
    let mut secrets = canaries.of_cluster(&directory);
    secrets.push(directory.join("keyvault-audit.key"));
    let session = cluster.session_token("chat");
    canaries.token("session token", &fs::read_to_string(&session).unwrap());

    master(&mut seen, &mut canaries, &cluster);
    gateway(&mut seen, &mut canaries, &cluster, &session).await;
    commands(&mut seen, &mut canaries, &cluster);
    malformed(&mut seen, &mut canaries, &directory);
    keyvault::drive(&mut seen, &mut canaries, &directory, &logs);
    audit(&mut seen, &directory);
    for process in cluster.processes() {
        let pid = process.pid();
        let role = process.ready["role"].as_str().unwrap().to_owned();
        let metrics = process.ready["ops"].as_str().unwrap();
        let (status, text) = http_get(metrics);
        assert_eq!(status, 200);
        seen.add(format!("metrics of {role}"), text);
        seen.process(&role, pid);
    }
    // An abort is what a failed allocation or a second panic come to.
    for process in cluster.processes() {
        support::signal(process.pid(), "ABRT");
    }
    let pids: Vec<u32> = cluster.processes().iter_mut().map(|p| p.pid()).collect();
    support::wait_until_gone(&pids);

    seen.directory(&directory, &secrets);
    core_dumps(&mut seen, &directory, &pids);
    for name in ["master.log", "gateway.log", "relay.log", "keyvault.log"] {
        let log = fs::read_to_string(logs.join(name)).unwrap();
        assert!(log.contains("TRACE"), "{name} does not hold everything");
    }
    let leaks = seen.leaks(&canaries);
    assert!(
        leaks.is_empty(),
        "{} leaks:\n{}",
        leaks.len(),
        leaks.join("\n")
    );

    // The same eyes see what is there: a token in a file that is scanned like all the others.
    seen.add("planted", fs::read(&session).unwrap());
    assert_eq!(seen.leaks(&canaries).len(), 1);
}

/// Every route of the master, with secrets in every place that a request has.
fn master(seen: &mut Seen, canaries: &mut Canaries, cluster: &Cluster) {
    let https = Https::of(&cluster.directory().join("ca.crt"), cluster.master());
    let paths = [
        ("POST", "/v1/nodes/challenge"),
        ("POST", "/v1/nodes/register"),
        ("POST", "/v1/nodes/heartbeat"),
        ("GET", "/v1/roster?after=0"),
        ("GET", "/.well-known/wavry/keys"),
        ("GET", "/nowhere"),
        ("PATCH", "/v1/roster"),
    ];
    for (number, (method, path)) in paths.into_iter().enumerate() {
        let place = format!("{method} {path}");
        let [bearer, query, header, body, user] = ["bearer", "query", "header", "body", "basic"]
            .map(|kind| canaries.word(&format!("{kind} of {place}, {number}")));
        let query = match path.contains('?') {
            true => format!("{path}&token={query}"),
            false => format!("{path}?token={query}"),
        };
        let bodies = [
            "{}".to_owned(),
            format!("{{\"token\":\"{body}\"}}"),
            format!("{{\"token\":\"{body}\",\"public_key\":\"{body}\",\"nonce\":{{}}}}"),
            format!("{{\"token\": {body}"),
            format!("\"{body}\""),
            format!("[\"{body}\", 1]"),
            format!("{{\"{body}\": true}}"),
            body.repeat(64 * 1024 / body.len() + 1),
        ];
        for content in bodies {
            let headers = [
                ("authorization", format!("Bearer {bearer}")),
                ("x-vault-token", header.clone()),
                ("cookie", format!("session={header}")),
                ("content-type", "application/json".to_owned()),
            ];
            let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
            let answer = https.ask(method, &query, &headers, content.as_bytes());
            // A server that does not read what is too large may close before its answer is read.
            let is_too_large = content.len() > 64 * 1024;
            assert!(
                is_too_large && answer.is_empty() || status(&answer) < 500,
                "{place}: {answer}"
            );
            seen.add(place.clone(), answer);
        }
        for headers in [
            vec![("authorization", format!("Basic {user}"))],
            vec![("authorization", user.clone())],
            vec![("authorization", format!("Bearer v4.public.{user}"))],
        ] {
            let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
            let answer = https.ask(method, path, &headers, b"");
            seen.add(place.clone(), answer);
        }
    }
    // The token of a node that has registered is used up, and still its secret.
    let token = fs::read_to_string(cluster.directory().join("exit/registration.token")).unwrap();
    let body = format!("{{\"token\":\"{}\"}}", token.trim());
    seen.add(
        "a used token",
        https.ask("POST", "/v1/nodes/register", &[], body.as_bytes()),
    );
    let garbage = canaries.word("no HTTP at all");
    seen.add(
        "garbage",
        https.send(format!("{garbage} {garbage}\r\n\r\n").as_bytes()),
    );
}

/// Sessions and requests at the gateway.
async fn gateway(seen: &mut Seen, canaries: &mut Canaries, cluster: &Cluster, session: &Path) {
    let token = session.display().to_string();
    let probed = cluster.try_probe("chat", &["--token-file", &token]);
    assert!(probed.status.success(), "{}", support::stderr(&probed));
    seen.add("probe: stdout", probed.stdout);
    seen.add("probe: stderr", probed.stderr);

    let good = fs::read_to_string(session).unwrap().trim().to_owned();
    let native = cluster.native();
    for path in [
        "/chat",
        "/chat/room/7?x=1",
        "/nowhere",
        "/chat/%zz",
        "/chat/../echo",
    ] {
        let query = canaries.word(&format!("query of {path}"));
        let bearer = canaries.word(&format!("bearer of {path}"));
        let joined = if path.contains('?') { '&' } else { '?' };
        for (path, bearer) in [
            (format!("{path}{joined}token={good}"), None),
            (format!("{path}{joined}token={query}"), None),
            (format!("{path}{joined}token={good}"), Some(bearer.as_str())),
            (path.to_owned(), Some(bearer.as_str())),
        ] {
            let ask = Ask {
                path: &path,
                origin: Some("https://app.example"),
                bearer,
            };
            // Some of these are no requests to which there is an answer at all.
            let _ = native.ask(ask).await;
        }
    }
    let ca = cluster.directory().join("ca.crt");
    for path in [
        "/healthz",
        "/.well-known/wavry/certificate-hashes",
        "/chat",
        "/nowhere",
    ] {
        let [query, bearer] =
            ["query", "bearer"].map(|kind| canaries.word(&format!("HTTP/3 {kind} of {path}")));
        for method in ["GET", "POST"] {
            let path = format!("{path}?token={query}");
            let bearer = format!("Bearer {bearer}");
            let headers = [("authorization", &*bearer), ("cookie", &bearer[7..])];
            let (_, body) = plain::ask(&ca, cluster.gateway(), method, &path, &headers).await;
            seen.add(format!("HTTP/3 {method} {path}"), body);
        }
    }
}

/// Commands that make secrets, and commands that are given some where none belong.
fn commands(seen: &mut Seen, canaries: &mut Canaries, cluster: &Cluster) {
    let directory = cluster.directory();
    let [user, query, flag] = ["URL's user", "URL's query", "flag"].map(|kind| canaries.word(kind));
    for (name, arguments) in [
        (
            "probe",
            vec![
                "probe".to_owned(),
                format!("https://ann:{user}@127.0.0.1:1/x?token={query}"),
            ],
        ),
        (
            "probe nonsense",
            vec!["probe".to_owned(), format!("nonsense?token={query}")],
        ),
        (
            "gateway",
            vec!["gateway".to_owned(), "--listen".to_owned(), flag.clone()],
        ),
        (
            "unknown flag",
            vec!["relay".to_owned(), format!("--token={flag}")],
        ),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        seen.run(name, wavry(&arguments));
    }
    let mut provision = cluster.signing(&["provision", "relay", "other", "--services", "chat"]);
    provision.arg("--out").arg(directory.join("other"));
    seen.run("provision", provision);
    let token = fs::read_to_string(directory.join("other/registration.token")).unwrap();
    canaries.token("registration token of a command", &token);
    canaries.pem(
        "identity of a command",
        &directory.join("other/identity.key"),
    );
    fs::remove_dir_all(directory.join("other")).unwrap();

    // A panic whose message holds what it was given: tokio's, before anything of ours runs.
    let panic = canaries.word("a variable that makes the runtime panic");
    let mut command = wavry(&["probe", "https://127.0.0.1:1/"]);
    command
        .env("TOKIO_WORKER_THREADS", &panic)
        .env("RUST_BACKTRACE", "full")
        .env("RUST_LOG", "trace");
    let said = output(command);
    assert_eq!(said.status.code(), Some(101), "{}", support::stderr(&said));
    seen.add("a panic: stdout", said.stdout);
    seen.add("a panic: stderr", said.stderr);
}

/// Every secret of every role, holding something else; every table, with a secret where none belongs.
fn malformed(seen: &mut Seen, canaries: &mut Canaries, directory: &Path) {
    let scratch = tempfile::tempdir().unwrap();
    for role in ["master", "relay", "gateway"] {
        let config = fs::read_to_string(directory.join(format!("{role}.toml"))).unwrap();
        for (variable, good) in secrets_of(role) {
            for shape in [
                "",
                "k4.secret.",
                "-----BEGIN PRIVATE KEY-----\n",
                "{\"key\":\"",
                "\u{ff}",
            ] {
                let canary = canaries.word(&format!("{variable} of {role} as {shape:?}"));
                let file = scratch.path().join("secret");
                let text = format!("{shape}{canary}\n");
                wavry_credentials::source::write_private(&file, text.as_bytes()).unwrap();
                let mut command = wavry(&[role, "--config"]);
                // State of its own, so that a relay has to register.
                let state = scratch.path().join("state");
                let text = config
                    .replace("edge/state", "none/state")
                    .replace("exit/state", "none/state");
                let text = text.replace(
                    &directory.join("none/state").display().to_string(),
                    &state.display().to_string(),
                );
                let file_of_config = scratch.path().join("config.toml");
                let text = text.replace("master.sqlite", "scratch.sqlite");
                fs::write(&file_of_config, text).unwrap();
                command.arg(&file_of_config).env("RUST_LOG", "trace");
                for (name, file) in secrets_of(role) {
                    command.env(name, directory.join(file));
                }
                command.env(variable, &file);
                assert!(directory.join(good).exists());
                let said = output(command);
                assert_eq!(said.status.code(), Some(1), "{role} {variable} {shape:?}");
                seen.add(
                    format!("{role} with {variable} malformed: stdout"),
                    said.stdout,
                );
                seen.add(
                    format!("{role} with {variable} malformed: stderr"),
                    said.stderr,
                );
            }
        }
        for line in [
            "listen = 'C'",
            "services = 'C'",
            "ca_file = ['C']",
            "[C",
            "x = C",
        ] {
            let canary = canaries.word(&format!("{line} in the configuration of {role}"));
            let file = scratch.path().join("config.toml");
            fs::write(&file, format!("[{role}]\n{}\n", line.replace('C', &canary))).unwrap();
            let mut command = wavry(&[role, "--config"]);
            command.arg(file);
            seen.run(&format!("{role} with {line}"), command);
        }
        let canary = canaries.word(&format!("a variable of {role}"));
        let mut command = wavry(&[role]);
        command.env(format!("WAVRY_{}__STATE_DIR", role.to_uppercase()), &canary);
        command.env(
            format!("WAVRY_{}__DRAIN_TIMEOUT", role.to_uppercase()),
            &canary,
        );
        seen.run(&format!("{role} with a variable"), command);
    }
}

/// Variables that name a role's secrets, and the files that hold good ones.
fn secrets_of(role: &str) -> Vec<(&'static str, &'static str)> {
    match role {
        "master" => vec![
            ("WAVRY_MASTER_KEY_FILE", "signing.key"),
            ("WAVRY_AUDIT_KEY_FILE", "audit.key"),
            ("WAVRY_TLS_KEY_FILE", "master.key"),
        ],
        "relay" => vec![
            ("WAVRY_IDENTITY_KEY_FILE", "exit/identity.key"),
            ("WAVRY_REGISTRATION_TOKEN_FILE", "exit/registration.token"),
        ],
        _ => vec![
            ("WAVRY_IDENTITY_KEY_FILE", "edge/identity.key"),
            ("WAVRY_REGISTRATION_TOKEN_FILE", "edge/registration.token"),
            ("WAVRY_TLS_KEY_FILE", "gateway.key"),
        ],
    }
}

fn audit(seen: &mut Seen, directory: &Path) {
    for arguments in [
        &["tail", "-n", "1000", "--database"][..],
        &["query", "--action", "deny", "--database"],
        &["verify", "--database"],
    ] {
        let mut command = wavry(&["audit"]);
        command.args(arguments).arg(directory.join("master.sqlite"));
        command.env("WAVRY_AUDIT_KEY_FILE", directory.join("audit.key"));
        let said = seen.run(&format!("audit {}", arguments[0]), command);
        assert!(!said.is_empty());
    }
}

/// Core dumps of processes, where a system without special arrangements puts them.
fn core_dumps(seen: &mut Seen, directory: &Path, pids: &[u32]) {
    let here = std::env::current_dir().unwrap();
    for directory in [
        here.as_path(),
        directory,
        Path::new("/var/crash"),
        Path::new("/cores"),
    ] {
        for name in pids
            .iter()
            .map(|pid| format!("core.{pid}"))
            .chain(["core".to_owned()])
        {
            if let Ok(core) = fs::read(directory.join(&name)) {
                seen.add(name, core);
            }
        }
    }
}
