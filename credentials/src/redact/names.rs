//! What a value is by its name.

/// How a name's value is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A secret, whatever it looks like.
    Secret,
    /// A secret; but prose says `token: expected …` too, so after a colon and a space the value has
    /// to look like one.
    Token,
    /// A header whose whole value is a credential.
    Header,
}

/// Names of headers that carry credentials.
const HEADERS: [&str; 4] = ["authorization", "proxyauthorization", "cookie", "setcookie"];
/// Ends of names whose values are secret, in lower case and without `_` and `-`.
const SECRETS: [&str; 14] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "apikey",
    "privatekey",
    "secretkey",
    "accesskey",
    "accountkey",
    "unsealkey",
    "unsealkeys",
    "clientsecret",
    "secretid",
    "vaulttoken",
];
const TOKENS: [&str; 6] = [
    "token",
    "secret",
    "credential",
    "credentials",
    "keysbase64",
    "recoverykeys",
];
/// Longest name looked at: more than any of those above with what may stand before it.
pub(super) const MAX_LEN: usize = 96;

/// What the value of `name` is, if it is a secret.
pub(super) fn kind(name: &[u8]) -> Option<Kind> {
    if name.len() > MAX_LEN {
        return None;
    }
    let name: String = name
        .iter()
        .filter(|byte| !matches!(byte, b'_' | b'-'))
        .map(|byte| char::from(byte.to_ascii_lowercase()))
        .collect();
    if HEADERS.contains(&name.as_str()) {
        Some(Kind::Header)
    } else if SECRETS.iter().any(|end| name.ends_with(end)) {
        Some(Kind::Secret)
    } else if TOKENS.iter().any(|end| name.ends_with(end)) {
        Some(Kind::Token)
    } else {
        None
    }
}
