//! A canary for each kind of secret: the part of it that nobody else may see.

use std::{
    fs,
    path::{Path, PathBuf},
};

use wavry_credentials::random;

use crate::support::scanner::Scanner;

/// Letters and digits of one canary.
const LENGTH: usize = 24;

pub(crate) struct Canaries {
    pub(crate) scanner: Scanner,
}

impl Default for Canaries {
    fn default() -> Self {
        Self {
            scanner: Scanner::new(),
        }
    }
}

impl Canaries {
    /// A word that nobody has ever said.
    pub(crate) fn word(&mut self, kind: &str) -> String {
        const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        let random = random::bytes::<LENGTH>();
        let word: String = random
            .iter()
            .map(|byte| char::from(LETTERS[usize::from(byte % 32)]))
            .collect();
        self.scanner.watch(kind, word.as_bytes());
        word
    }

    /// The keys and tokens of a cluster in a directory. Gives the files that hold them.
    pub(crate) fn of_cluster(&mut self, directory: &Path) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut at = |name: &str| {
            let file = directory.join(name);
            files.push(file.clone());
            file
        };
        for key in ["signing.key", "audit.key"] {
            self.paserk(key, &at(key));
        }
        for key in [
            "master.key",
            "gateway.key",
            "service.key",
            "ca.key",
            "exit/identity.key",
            "edge/identity.key",
        ] {
            self.pem(key, &at(key));
        }
        for token in ["exit/registration.token", "edge/registration.token"] {
            self.token(token, &fs::read_to_string(at(token)).unwrap());
        }
        at("session.token");
        files
    }

    /// A PASERK `k4.secret`: the seed, and the characters that hold nothing else.
    pub(crate) fn paserk(&mut self, kind: &str, file: &Path) {
        let text = fs::read_to_string(file).unwrap();
        let body = text
            .trim()
            .strip_prefix("k4.secret.")
            .expect("a PASERK key");
        let bytes = decoded(body);
        self.watch_both(kind, &bytes[..32], &body[..42]);
    }

    /// A private key in PKCS#8: the number that it is.
    pub(crate) fn pem(&mut self, kind: &str, file: &Path) {
        let text = fs::read_to_string(file).unwrap();
        let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
        let der = decoded(&body);
        // OCTET STRING of 32 bytes: Ed25519's seed (RFC 8410), or P-256's scalar (RFC 5915).
        let start = der.windows(2).position(|pair| pair == [0x04, 0x20]);
        let start = start.expect("a key of 32 bytes") + 2;
        // Characters between these hold bytes of the key alone.
        let (first, last) = (start.div_ceil(3) * 4, (start + 32) / 3 * 4);
        self.watch_both(kind, &der[start..start + 32], &body[first..last]);
    }

    /// A PASETO: its signature. Who has that can use it; what it says is no secret.
    pub(crate) fn token(&mut self, kind: &str, text: &str) {
        let body = text
            .trim()
            .split('.')
            .nth(2)
            .expect("v4.public.BODY.FOOTER");
        let bytes = decoded(body);
        let start = bytes.len() - 64;
        self.watch_both(kind, &bytes[start..], &body[start.div_ceil(3) * 4..]);
    }

    /// A text that is a secret, behind the dot of its prefix if it has one.
    pub(crate) fn secret(&mut self, kind: &str, text: &str) {
        let text = text.split_once('.').map_or(text, |(_, rest)| rest);
        self.scanner.watch(kind, text.as_bytes());
    }

    /// Bytes that are a secret.
    pub(crate) fn bytes(&mut self, kind: &str, bytes: &[u8]) {
        self.scanner.watch(kind, bytes);
    }

    fn watch_both(&mut self, kind: &str, bytes: &[u8], text: &str) {
        self.scanner.watch(kind, bytes);
        self.scanner.watch(kind, text.as_bytes());
    }
}

/// As base64, for what takes its input so.
pub(crate) fn encoded(bytes: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(bytes)
}

fn decoded(text: &str) -> Vec<u8> {
    use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
    let text = text
        .trim_end_matches('=')
        .replace('-', "+")
        .replace('_', "/");
    STANDARD_NO_PAD.decode(text).expect("base64")
}
