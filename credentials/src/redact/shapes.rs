//! Secrets that are known by their look.

use std::{ops::Range, sync::LazyLock};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};

/// Beginnings of secrets, and how many characters must follow for it to be one and no mention.
const BEGINNINGS: [(&str, usize); 25] = [
    ("v4.public.", 16),
    ("v4.local.", 16),
    ("v3.public.", 16),
    ("v3.local.", 16),
    ("v2.public.", 16),
    ("v2.local.", 16),
    ("k4.secret.", 16),
    ("k4.local.", 16),
    ("k4.secret-wrap.", 16),
    ("k4.local-wrap.", 16),
    ("k4.secret-pw.", 16),
    ("k4.local-pw.", 16),
    ("k4.seal.", 16),
    ("k3.secret.", 16),
    ("k3.local.", 16),
    ("hvs.", 8),
    ("hvb.", 8),
    ("hvr.", 8),
    ("ghp_", 20),
    ("ghs_", 20),
    ("gho_", 20),
    ("github_pat_", 20),
    ("glpat-", 16),
    ("xoxb-", 16),
    ("sk_live_", 16),
];
/// Parts of secrets that are long enough to be known in base64 and hexadecimal too.
const LONG_PARTS: [&str; 6] = [
    "v4.public.",
    "v4.local.",
    "k4.secret.",
    "k4.local.",
    "PRIVATE KEY-----",
    "eyJhbGciOi",
];

/// [`LONG_PARTS`] as they read within an encoding.
struct Disguise {
    text: Vec<u8>,
    is_hex: bool,
}

static DISGUISES: LazyLock<Vec<Disguise>> = LazyLock::new(|| {
    let mut disguises = Vec::new();
    let mut add = |text: Vec<u8>, is_hex| disguises.push(Disguise { text, is_hex });
    for part in LONG_PARTS {
        add(hex::encode(part).into_bytes(), true);
        add(hex::encode_upper(part).into_bytes(), true);
        for offset in 0..3 {
            let mut padded = vec![0; offset];
            padded.extend_from_slice(part.as_bytes());
            // Only the characters that no neighbouring byte has a share in.
            let whole = (offset * 8).div_ceil(6)..padded.len() * 8 / 6;
            add(
                STANDARD_NO_PAD.encode(&padded).as_bytes()[whole.clone()].to_vec(),
                false,
            );
            add(
                URL_SAFE_NO_PAD.encode(&padded).as_bytes()[whole].to_vec(),
                false,
            );
        }
    }
    disguises.sort_by(|a, b| a.text.cmp(&b.text));
    disguises.dedup_by(|a, b| a.text == b.text);
    disguises
});

/// Whether any shape can begin with this byte.
pub(super) static FIRST: LazyLock<[bool; 256]> = LazyLock::new(|| {
    let mut first = [false; 256];
    for byte in b"e-".iter().copied() {
        first[usize::from(byte)] = true;
    }
    for (beginning, _) in BEGINNINGS {
        first[usize::from(beginning.as_bytes()[0])] = true;
    }
    for disguise in DISGUISES.iter() {
        first[usize::from(disguise.text[0])] = true;
    }
    first
});

/// The secret whose look begins at `at`. It may reach back before `at`, but not before `from`.
pub(super) fn at(
    bytes: &[u8],
    at: usize,
    from: usize,
    ends: impl Fn(u8) -> bool,
) -> Option<Range<usize>> {
    let rest = &bytes[at..];
    for (beginning, least) in BEGINNINGS {
        if rest.starts_with(beginning.as_bytes()) {
            let body = run(&rest[beginning.len()..]);
            if body >= least {
                return Some(at..at + beginning.len() + body);
            }
        }
    }
    if let Some(length) = jwt(rest).or_else(|| pem(rest, ends)) {
        return Some(at..at + length);
    }
    let disguise = DISGUISES.iter().find(|d| rest.starts_with(&d.text))?;
    let belongs = |byte: &u8| match disguise.is_hex {
        true => byte.is_ascii_hexdigit(),
        false => byte.is_ascii_alphanumeric() || b"+/-_=".contains(byte),
    };
    let before = bytes[from..at]
        .iter()
        .rev()
        .take_while(|b| belongs(b))
        .count();
    let after = rest.iter().take_while(|b| belongs(b)).count();
    Some(at - before..at + after)
}

/// Length of the run of characters that tokens have (RFC 6750's b68token) at the start.
pub(super) fn run(bytes: &[u8]) -> usize {
    let length = bytes
        .iter()
        .take_while(|byte| is_token_byte(**byte))
        .count();
    // A sentence ends, not the token.
    length
        - bytes[..length]
            .iter()
            .rev()
            .take_while(|b| **b == b'.')
            .count()
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)
}

/// A JSON Web Token (RFC 7519): base64url of `{"`, and two parts more.
fn jwt(bytes: &[u8]) -> Option<usize> {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
    let part = |bytes: &[u8]| bytes.iter().take_while(|byte| is_base64(byte)).count();
    if !bytes.starts_with(b"eyJ") {
        return None;
    }
    let header = part(bytes);
    let payload = part(bytes.get(header + 1..)?);
    (header >= 8 && payload >= 4 && bytes[header] == b'.').then(|| run(bytes))
}

/// A private key in PEM (RFC 7468), to its end, or to where it was cut off.
fn pem(bytes: &[u8], ends: impl Fn(u8) -> bool) -> Option<usize> {
    const START: &[u8] = b"-----BEGIN ";
    const KIND: &[u8] = b"PRIVATE KEY";
    const MAX_LABEL: usize = 64;
    let label = bytes.strip_prefix(START)?;
    let label = &label[..label.len().min(MAX_LABEL)];
    let label = &label[..find(label, b"-----")?];
    find(label, KIND)?;
    let body = START.len() + label.len() + 5;
    let end = bytes
        .iter()
        .position(|byte| ends(*byte))
        .unwrap_or(bytes.len());
    let end = end.max(body);
    Some(match find(&bytes[body..end], b"-----END ") {
        Some(at) => {
            let rest = body + at + 9;
            find(&bytes[rest..end], b"-----").map_or(end, |at| rest + at + 5)
        }
        None => end,
    })
}

/// Where `part` first is in `bytes`.
pub(super) fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}
