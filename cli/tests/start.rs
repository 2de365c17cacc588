//! What stops a role before it starts, and the tools that make keys and tokens.

mod support;

use std::{fs, net::UdpSocket, os::unix::fs::PermissionsExt as _, path::Path};

use support::{output, stderr, wavry};
use wavry_credentials::cert::DevelopmentAuthority;

const CANARY: &str = "canary-5ecret-value";

fn config(directory: &Path, text: &str) -> String {
    let file = directory.join("config.toml");
    fs::write(&file, text).expect("a temporary directory can be written");
    file.display().to_string()
}

/// Starts a role that cannot start; what it says.
fn refused(role: &str, config: &str, environment: &[(&str, &str)]) -> String {
    let mut command = wavry(&[role, "--config", config]);
    command.envs(environment.iter().copied());
    let output = output(command);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let text = stderr(&output);
    assert!(!text.contains(CANARY), "shows a value: {text}");
    text
}

#[test]
fn a_broken_configuration_is_named_by_file_line_and_key_and_never_by_value() {
    let directory = tempfile::tempdir().unwrap();
    for (role, text, expected) in [
        (
            "gateway",
            format!("[gateway]\nlisen = '{CANARY}'\n"),
            ":2: gateway.lisen: unknown key",
        ),
        (
            "gateway",
            format!("[gateway]\n\nlisten = '{CANARY}'\n"),
            ":3: gateway.listen: ",
        ),
        (
            "relay",
            format!("[relay]\nmax_sessions = '{CANARY}'\n"),
            ":2: relay.max_sessions: expected ",
        ),
        (
            "relay",
            format!("[relay.upstreams.x]\nurl = 'gopher://{CANARY}'\n"),
            ": relay.",
        ),
        (
            "master",
            format!("[[master.services]]\nname = 'a'\nacces = '{CANARY}'\n"),
            ":3: master.services[0].acces: unknown key",
        ),
        ("master", format!("[master\n{CANARY}\n"), ":1:"),
        (
            "master",
            format!("[ops]\nlisten = '{CANARY}'\n"),
            ":2: ops.listen: ",
        ),
        (
            "master",
            "[ops]\nlisten = '0.0.0.0:0'\n".to_owned(),
            ":2: ops.listen: must be a loopback address",
        ),
        ("gateway", "[gateway]\n".to_owned(), "gateway."),
    ] {
        let file = config(directory.path(), &text);
        let said = refused(role, &file, &[]);
        assert!(said.contains(&file), "{said}");
        assert!(said.contains(expected), "{expected:?} is not in {said}");
    }
}

#[test]
fn a_bad_variable_or_flag_is_named() {
    let said = output({
        let mut command = wavry(&["gateway"]);
        command.env("WAVRY_GATEWAY__MAX_SESSIONS", CANARY);
        command
    });
    let text = stderr(&said);
    assert_eq!(said.status.code(), Some(1));
    assert!(
        text.contains("environment variable WAVRY_GATEWAY__MAX_SESSIONS"),
        "{text}"
    );
    assert!(!text.contains(CANARY), "{text}");

    let said = output(wavry(&["relay", "--listen", CANARY]));
    let text = stderr(&said);
    assert_eq!(said.status.code(), Some(1));
    assert!(text.contains("flag --listen: relay.mesh_listen"), "{text}");
    assert!(!text.contains(CANARY), "{text}");
}

#[test]
fn a_missing_key_stops_the_start_and_the_error_names_variable_and_path() {
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "[master]\nlisten = '127.0.0.1:0'\ndatabase = '{0}/db'\ncertificate = '{0}/none.crt'\n\
         [ops]\nlisten = '127.0.0.1:0'\n",
        directory.path().display()
    );
    let file = config(directory.path(), &text);
    let said = refused("master", &file, &[]);
    assert!(said.contains("WAVRY_MASTER_KEY_FILE"), "{said}");
    assert!(said.contains("/run/secrets/wavry_master_key"), "{said}");

    let key = directory.path().join("some.key").display().to_string();
    assert!(
        output(wavry(&["key", "generate", "--out", &key]))
            .status
            .success()
    );
    let said = refused("master", &file, &[("WAVRY_MASTER_KEY_FILE", &key)]);
    assert!(said.contains("WAVRY_AUDIT_KEY_FILE"), "{said}");

    let missing = directory.path().join("no.key").display().to_string();
    let said = refused("master", &file, &[("WAVRY_MASTER_KEY_FILE", &missing)]);
    assert!(said.contains(&missing), "{said}");

    let open = directory.path().join("open.key");
    fs::write(&open, CANARY).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let open = open.display().to_string();
    let said = refused("master", &file, &[("WAVRY_MASTER_KEY_FILE", &open)]);
    assert!(said.contains(&open), "{said}");
}

#[test]
fn a_missing_identity_stops_a_node_before_it_binds_a_port() {
    let directory = tempfile::tempdir().unwrap();
    let authority = DevelopmentAuthority::open(directory.path()).unwrap();
    authority.issue("gateway", &["localhost"]).unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap();
    let node = format!(
        "master = 'https://127.0.0.1:1'\nca_file = '{}'\nstate_dir = '{}'\n\
         [ops]\nlisten = '127.0.0.1:0'\n",
        at("ca.crt"),
        at("state")
    );
    for (role, text) in [
        (
            "gateway",
            format!(
                "[gateway]\nlisten = '{port}'\ncertificate = '{}'\n{node}",
                at("gateway.crt")
            ),
        ),
        ("relay", format!("[relay]\nmesh_listen = '{port}'\n{node}")),
    ] {
        let file = config(directory.path(), &text);
        let key = at("gateway.key");
        let said = refused(role, &file, &[("WAVRY_TLS_KEY_FILE", &key)]);
        assert!(said.contains("WAVRY_IDENTITY_KEY_FILE"), "{role}: {said}");
        assert!(!said.contains("cannot listen"), "{role}: {said}");
    }
}

#[test]
fn the_example_configurations_get_as_far_as_the_secrets_of_their_machine() {
    for role in ["master", "gateway", "relay"] {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples");
        let text = refused(role, &format!("{root}/{role}.toml"), &[]);
        assert!(text.contains("cannot start"), "{text}");
        assert!(!text.contains(root), "the configuration is faulty: {text}");
    }
}

#[test]
fn keys_and_tokens_are_made_for_their_owner_alone_and_never_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("master.key").display().to_string();
    let made = output(wavry(&["key", "generate", "--out", &key]));
    assert!(made.status.success(), "{}", stderr(&made));
    let again = output(wavry(&["key", "generate", "--out", &key]));
    assert!(!again.status.success());
    assert!(stderr(&again).contains(&key), "{}", stderr(&again));

    let audit_key = directory.path().join("audit.key").display().to_string();
    let made = output(wavry(&["key", "generate", "--out", &audit_key]));
    assert!(made.status.success(), "{}", stderr(&made));

    let out = directory.path().join("edge-1").display().to_string();
    let provision = || {
        let mut command = wavry(&[
            "provision",
            "relay",
            "edge-1",
            "--services",
            "chat,game",
            "--out",
            &out,
        ]);
        command.env("WAVRY_MASTER_KEY_FILE", &key);
        command.env("WAVRY_AUDIT_KEY_FILE", &audit_key);
        output(command)
    };
    let made = provision();
    assert!(made.status.success(), "{}", stderr(&made));
    for file in [
        key.as_str(),
        &format!("{out}/identity.key"),
        &format!("{out}/registration.token"),
    ] {
        let mode = fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let identity = fs::read(format!("{out}/identity.key")).unwrap();
    assert!(!provision().status.success());
    assert_eq!(fs::read(format!("{out}/identity.key")).unwrap(), identity);

    let mut command = wavry(&[
        "token",
        "session",
        "chat",
        "--subject",
        "alice",
        "--ttl",
        "15m",
    ]);
    command.env("WAVRY_MASTER_KEY_FILE", &key);
    command.env("WAVRY_AUDIT_KEY_FILE", &audit_key);
    let token = output(command);
    assert!(token.status.success(), "{}", stderr(&token));
    assert!(token.stdout.starts_with(b"v4.public."));
}

#[test]
fn arguments_that_are_none_are_told_without_what_looks_like_a_secret() {
    for arguments in [
        &["probe", "nonsense?token=s3cretcanary"][..],
        &["probe", "https://h/", "https://ann:s3cretcanary@h/"],
        &["s3cret", "v4.public.s3cretcanarys3cretcanary"],
    ] {
        let said = output(wavry(arguments));
        assert_eq!(said.status.code(), Some(2));
        let text = stderr(&said);
        assert!(text.starts_with("error: "), "{text}");
        assert!(!text.contains("s3cretcanary"), "{text}");
    }
}

#[test]
fn every_subcommand_explains_itself() {
    for (arguments, expected) in [
        (&["--help"][..], "dev"),
        (&["dev", "--help"], "--ready-file"),
        (&["master", "--help"], "WAVRY_MASTER_KEY_FILE"),
        (&["gateway", "--help"], "[gateway]"),
        (&["relay", "--help"], "[relay.upstreams.chat]"),
        (&["probe", "--help"], "--certificate-hash"),
        (&["provision", "--help"], "identity.key"),
        (&["token", "session", "--help"], "--subject"),
        (&["key", "generate", "--help"], "k4.secret"),
        (&["audit", "verify", "--help"], "--public-key"),
        (&["sample", "--help"], "tls_key"),
    ] {
        let said = output(wavry(arguments));
        assert!(said.status.success(), "{arguments:?}");
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(
            text.contains(expected),
            "{arguments:?} does not say {expected}"
        );
    }
    let short = output(wavry(&["-h"]));
    assert!(!String::from_utf8_lossy(&short.stdout).contains("sample"));
}

#[test]
fn the_example_environment_has_every_variable_of_the_documentation() {
    let at = |file: &str| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        fs::read_to_string(root.join(file)).unwrap()
    };
    let (example, document) = (at(".env.example"), at("docs/CONFIG.md"));
    let is_part = |c: char| c.is_ascii_uppercase() || c == '_';
    let words = |text: &str| {
        let words = text.split(|c| !is_part(c));
        let variables = words.filter(|word| word.starts_with("WAVRY_") && !word.ends_with('_'));
        let variables = variables.filter(|word| !word.contains("__"));
        variables
            .map(str::to_owned)
            .collect::<std::collections::BTreeSet<_>>()
    };
    let set: std::collections::BTreeSet<_> = example
        .lines()
        .filter_map(|line| line.strip_prefix('#')?.strip_suffix('='))
        .filter(|name| name.starts_with("WAVRY_"))
        .map(str::to_owned)
        .collect();
    let documented = words(&document);
    assert!(documented.len() > 10, "{documented:?}");
    let missing: Vec<_> = documented.difference(&set).collect();
    assert!(missing.is_empty(), "not in .env.example: {missing:?}");
    for name in &set {
        let template = ["_FILE", "_KEYVAULT", "_FIELD"]
            .iter()
            .any(|end| name.ends_with(end));
        assert!(
            template || documented.contains(name),
            "not documented: {name}"
        );
    }
}

#[test]
fn a_keyvault_that_is_to_unseal_itself_does_not_start_without_its_key() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let authority = DevelopmentAuthority::open(directory.path()).unwrap();
    authority.issue("vault", &["localhost"]).unwrap();
    let audit_key = at("audit.key").display().to_string();
    assert!(
        output(wavry(&["key", "generate", "--out", &audit_key]))
            .status
            .success()
    );
    let config = format!(
        "[keyvault]\nlisten = \"127.0.0.1:0\"\nseal = \"key\"\ndatabase = {:?}\ncertificate = {:?}\n\
         [ops]\nlisten = \"127.0.0.1:0\"\n",
        at("keyvault.sqlite"),
        at("vault.crt")
    );
    fs::write(at("keyvault.toml"), config).unwrap();
    let mut command = wavry(&["keyvault", "--config"]);
    command
        .arg(at("keyvault.toml"))
        .env("WAVRY_AUDIT_KEY_FILE", at("audit.key"))
        .env("WAVRY_TLS_KEY_FILE", at("vault.key"));
    let refused = output(command);
    assert_eq!(refused.status.code(), Some(1));
    let text = stderr(&refused);
    assert!(text.contains("WAVRY_KEYVAULT_KEY_FILE"), "{text}");
    assert!(text.contains("/run/secrets/wavry_keyvault_key"), "{text}");
}
