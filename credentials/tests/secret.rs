//! What can be done with a secret. On its own because it builds the crate a second time.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every way in which somebody would try to print, copy, compare, store or take apart a secret.
#[test]
fn leaking_a_secret_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/secret/*.rs");
}

/// clippy bans [`wavry_credentials::secret::Secret::expose`]; this knows who lifts the ban.
#[test]
fn two_modules_see_the_bytes_of_secrets() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let banned = fs::read_to_string(workspace.join("clippy.toml")).unwrap();
    assert!(banned.contains("\"wavry_credentials::secret::Secret::expose\""));

    let crates = [
        "cli",
        "credentials",
        "gateway",
        "loadtest",
        "master",
        "proto",
        "relay",
        "transport",
    ];
    let mut found: Vec<String> = crates
        .iter()
        .flat_map(|name| sources(&workspace.join(name).join("src")))
        .filter(|file| fs::read_to_string(file).unwrap().contains(".expose()"))
        .map(|file| file.strip_prefix(&workspace).unwrap().display().to_string())
        .collect();
    found.sort();
    assert_eq!(
        found,
        [
            "credentials/src/bearer.rs",
            "credentials/src/bearer/unit.rs",
            "credentials/src/key.rs",
            "credentials/src/key/aead.rs",
            "credentials/src/key/format.rs",
            "credentials/src/key/record.rs",
        ]
    );
}

/// The Rust files in a directory and below.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("the directory is there");
    entries
        .map(|entry| entry.expect("the directory can be read").path())
        .flat_map(|path| match path.is_dir() {
            true => sources(&path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}
