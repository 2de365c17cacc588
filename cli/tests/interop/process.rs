//! Peers that are processes of their own.

use std::{io::Read as _, process::Command};

use serde_json::{Map, Value, json};

use crate::{
    seen::{Asked, Seen},
    stack::{Certificate, Target},
    support::peer::{Aioquic, Process, peers, python},
};

/// Where npm puts the program, below the peers.
pub(crate) const DENO: &str = "node_modules/@deno/linux-x64-glibc/deno";
const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");

/// Every feature on an aioquic client.
pub(crate) async fn aioquic(target: &Target) -> Map<String, Value> {
    client(python("venv", "interop/aioquic_client.py"), target).await
}

/// Every feature on a pywebtransport client.
pub(crate) async fn pywebtransport(target: &Target) -> Map<String, Value> {
    let script = "interop/pywebtransport_client.py";
    client(python("pywebtransport", script), target).await
}

/// A client in Python (script.py).
async fn client(mut command: Command, target: &Target) -> Map<String, Value> {
    let (host, port) = (target.address.ip(), target.address.port());
    command.args([host.to_string(), port.to_string(), target.base.clone()]);
    command.arg(&target.ca_file);
    report(command).await
}

/// The service on an aioquic server.
pub(crate) fn aioquic_server(certificate: &Certificate, seen: Seen) -> Aioquic {
    Aioquic::start(&certificate.certificate, &certificate.key, move |saw| {
        let asked = Asked::new(saw["path"].as_str().expect("a path"));
        seen.note(&asked, saw["saw"].clone());
    })
}

/// Every feature on a page of a browser.
pub(crate) async fn browser(name: &str, target: &Target, silent: &[&str]) -> Map<String, Value> {
    let mut command = Command::new("node");
    command.arg(format!("{TESTS}/browser/run.mjs"));
    command.args([name, "interop", &spec(target, silent, false)]);
    command.env("WAVRY_PEERS", peers());
    report(command).await
}

/// Every feature on Deno.
pub(crate) async fn deno(target: &Target, silent: &[&str]) -> Map<String, Value> {
    let mut command = Command::new(peers().join(DENO));
    command.args([
        "run",
        "--unstable-net",
        "--allow-net",
        "--no-remote",
        "--quiet",
    ]);
    command
        .arg(format!("{TESTS}/interop/deno.mjs"))
        .arg(spec(target, silent, true));
    command.env("DENO_NO_UPDATE_CHECK", "1");
    report(command).await
}

/// What a program says of its version.
pub(crate) fn version(program: &str) -> String {
    let mut command = match program {
        "aioquic" | "pywebtransport" => {
            let place = if program == "aioquic" {
                "venv"
            } else {
                program
            };
            let mut python = Command::new(peers().join(place).join("bin/python"));
            python.args([
                "-c",
                &format!("import {program}; print({program}.__version__)"),
            ]);
            python
        }
        "deno" => Command::new(peers().join(DENO)),
        installed => Command::new(installed),
    };
    if command.get_args().next().is_none() {
        command.arg("--version");
    }
    let output = command.output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// The version of a crate that is linked into this test.
pub(crate) fn locked(name: &str) -> String {
    let lock = include_str!("../../../Cargo.lock");
    let entry = lock.split("[[package]]").find(|entry| {
        entry
            .lines()
            .any(|line| line == format!("name = \"{name}\""))
    });
    let version = entry.and_then(|entry| {
        let line = entry
            .lines()
            .find_map(|line| line.strip_prefix("version = \""));
        line.map(|line| line.trim_end_matches('"').to_owned())
    });
    version.expect("it is a dependency")
}

/// What page.mjs is told; `silent` are features at which nothing is known to come, `endless`
/// says whether its streams are known not to end.
fn spec(target: &Target, silent: &[&str], endless: bool) -> String {
    let base = target.url("");
    json!({
        "base": base.trim_end_matches('/'),
        "hashes": [target.certificate_hash()],
        "certificate": target.certificate,
        "silent": silent,
        "endless": endless,
    })
    .to_string()
}

/// The JSON object that a process writes before it ends.
async fn report(mut command: Command) -> Map<String, Value> {
    let run = move || {
        let (_process, mut output) = Process::start(&mut command);
        let mut text = String::new();
        output.read_to_string(&mut text).expect("its output");
        match serde_json::from_str(&text) {
            Ok(Value::Object(report)) => report,
            _ => panic!("{command:?} wrote {text:?}"),
        }
    };
    tokio::task::spawn_blocking(run).await.expect("it runs")
}
