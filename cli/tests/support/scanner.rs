//! Finds a secret in what a program left behind, in whatever encoding.
//!
//! What is scanned is read as it is, and as what it stands for once encodings are taken off: percent,
//! JSON, hexadecimal, base64 of both alphabets at every alignment, two layers deep. A secret is found when
//! any eight of its bytes in a row are.

use std::collections::HashMap;

/// So many bytes in a row are a leak.
pub(crate) const PIECE: usize = 8;
/// Layers of encoding.
const DEPTH: usize = 2;

type Piece = [u8; PIECE];

/// What must be nowhere.
pub(crate) struct Scanner {
    pieces: HashMap<Piece, String>,
    /// Whether a piece begins with two bytes: what most of a log can be passed over by.
    beginnings: Vec<bool>,
}

/// Where what was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Leak {
    /// The kind of secret.
    pub(crate) secret: String,
    /// Encodings, outermost first.
    pub(crate) encodings: Vec<&'static str>,
    /// A few bytes around it, in the innermost layer.
    pub(crate) around: String,
}

impl Scanner {
    pub(crate) fn new() -> Self {
        Self {
            pieces: HashMap::new(),
            beginnings: vec![false; 1 << 16],
        }
    }

    /// Looks for `secret` from now on.
    pub(crate) fn watch(&mut self, kind: &str, secret: &[u8]) {
        assert!(
            secret.len() >= PIECE,
            "{kind} is too short to be told from chance"
        );
        for piece in secret.windows(PIECE) {
            let piece: Piece = piece.try_into().unwrap();
            self.beginnings[beginning(&piece)] = true;
            let other = self.pieces.insert(piece, kind.to_owned());
            assert!(
                other.is_none_or(|other| other == kind),
                "{kind} shares a piece with another secret"
            );
        }
    }

    /// The first leak in `bytes`.
    pub(crate) fn scan(&self, bytes: &[u8]) -> Option<Leak> {
        self.layer(bytes, &mut Vec::new())
    }

    fn layer(&self, bytes: &[u8], encodings: &mut Vec<&'static str>) -> Option<Leak> {
        for (at, piece) in bytes.windows(PIECE).enumerate() {
            let piece: &Piece = piece.try_into().unwrap();
            if !self.beginnings[beginning(piece)] {
                continue;
            }
            if let Some(secret) = self.pieces.get(piece) {
                let around = &bytes[at.saturating_sub(40)..bytes.len().min(at + 40)];
                return Some(Leak {
                    secret: secret.clone(),
                    encodings: encodings.clone(),
                    around: String::from_utf8_lossy(around).into_owned(),
                });
            }
        }
        if encodings.len() == DEPTH {
            return None;
        }
        let decoded = [
            ("percent", unescaped(bytes, percent)),
            ("json", unescaped(bytes, json)),
        ];
        let runs = [("hex", hex(bytes)), ("base64", base64(bytes))];
        let layers = decoded
            .into_iter()
            .filter_map(|(name, layer)| Some((name, vec![layer?])))
            .chain(runs);
        for (name, layers) in layers {
            encodings.push(name);
            for layer in layers {
                let leak = self.layer(&layer, encodings);
                if leak.is_some() {
                    return leak;
                }
            }
            encodings.pop();
        }
        None
    }
}

fn beginning(piece: &Piece) -> usize {
    usize::from(u16::from_be_bytes([piece[0], piece[1]]))
}

/// `bytes` with each escape replaced by what it stands for; `None` if there is none.
fn unescaped(bytes: &[u8], escape: fn(&[u8]) -> Option<(u8, usize)>) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut found = false;
    let mut at = 0;
    while at < bytes.len() {
        let (byte, length) = escape(&bytes[at..]).unwrap_or((bytes[at], 1));
        found |= length > 1;
        plain.push(byte);
        at += length;
    }
    found.then_some(plain)
}

fn percent(bytes: &[u8]) -> Option<(u8, usize)> {
    match bytes {
        [b'%', high, low, ..] => Some((nibble(*high)? << 4 | nibble(*low)?, 3)),
        _ => None,
    }
}

fn json(bytes: &[u8]) -> Option<(u8, usize)> {
    match bytes {
        [b'\\', b'u', b'0', b'0', high, low, ..] => Some((nibble(*high)? << 4 | nibble(*low)?, 6)),
        // Rust's Debug of bytes.
        [b'\\', b'x', high, low, ..] => Some((nibble(*high)? << 4 | nibble(*low)?, 4)),
        [b'\\', escaped @ (b'"' | b'\\' | b'/'), ..] => Some((*escaped, 2)),
        _ => None,
    }
}

/// What runs of hexadecimal digits stand for, from the first digit and from the second.
fn hex(bytes: &[u8]) -> Vec<Vec<u8>> {
    let runs = runs(bytes, 2 * PIECE, |byte| nibble(byte).is_some());
    let pairs = |run: &[u8]| {
        let pair = |pair: &[u8]| Some(nibble(pair[0])? << 4 | nibble(pair[1])?);
        run.chunks_exact(2).filter_map(pair).collect()
    };
    runs.flat_map(|run| [pairs(run), pairs(&run[1..])])
        .collect()
}

/// What runs of base64 characters stand for, from each of the first four.
fn base64(bytes: &[u8]) -> Vec<Vec<u8>> {
    let runs = runs(bytes, PIECE * 4 / 3, |byte| sextet(byte).is_some());
    let groups = |run: &[u8]| {
        let sextets: Vec<u32> = run.iter().filter_map(|byte| sextet(*byte)).collect();
        let group = |group: &[u32]| {
            let bits = group.iter().fold(0, |bits, sextet| bits << 6 | sextet);
            let bits = bits << (6 * (4 - group.len()));
            let [_, bytes @ ..] = bits.to_be_bytes();
            bytes[..group.len() - 1].to_vec()
        };
        let groups = sextets.chunks(4).filter(|group| group.len() > 1);
        groups.flat_map(group).collect()
    };
    runs.flat_map(|run| (0..4).map(move |start| groups(&run[start..])))
        .collect()
}

/// The longest stretches of bytes of which `holds`, of `least` at least.
fn runs(bytes: &[u8], least: usize, holds: impl Fn(u8) -> bool) -> impl Iterator<Item = &[u8]> {
    let runs = bytes.split(move |byte| !holds(*byte));
    runs.filter(move |run| run.len() >= least)
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|digit| digit as u8)
}

/// Of the alphabets of RFC 4648, sections 4 and 5.
fn sextet(byte: u8) -> Option<u32> {
    let value = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    };
    Some(value.into())
}
