//! Text as it reads once escapes are taken off, and where each byte of that came from.

use std::ops::Range;

/// How many layers of encoding are looked through: a URL in a JSON text in a log line of JSON.
const MAX_DEPTH: usize = 3;
/// A quotation mark that was escaped: it ends what is inside, but not the string around it. The byte
/// is in no UTF-8 text.
pub(super) const INNER_QUOTE: u8 = 0xff;

/// One layer.
pub(super) struct Level {
    /// How many encodings were taken off.
    pub(super) depth: usize,
    pub(super) bytes: Vec<u8>,
    /// For each byte, the bytes of the source that it stands for.
    origin: Vec<(usize, usize)>,
}

impl Level {
    /// The text as it is, but for the escape sequences that colour a terminal: they stand between a
    /// field's name and its value.
    pub(super) fn first(text: &str) -> Self {
        let source = text.as_bytes();
        let mut level = Self::with_room(source.len());
        let mut at = 0;
        while at < source.len() {
            if let Some(length) = control_sequence(&source[at..]) {
                at += length;
                continue;
            }
            level.push(source[at], (at, at + 1));
            at += 1;
        }
        level.whole_characters(text);
        level
    }

    /// Shows this layer and all that are under it: which encoding is the outer one cannot be told,
    /// so each is tried.
    pub(super) fn each(&self, show: &mut impl FnMut(&Self)) {
        show(self);
        if self.depth < MAX_DEPTH {
            for unescape in [percent, json] {
                if let Some(under) = self.without(unescape) {
                    under.each(show);
                }
            }
        }
    }

    /// Without one layer of an encoding; `None` if there is none of it.
    fn without(&self, unescape: Unescape) -> Option<Self> {
        let mut level = Self::with_room(self.bytes.len());
        level.depth = self.depth + 1;
        let mut changed = false;
        let mut at = 0;
        while at < self.bytes.len() {
            let (byte, length) = unescape(&self.bytes[at..]).unwrap_or((self.bytes[at], 1));
            changed |= length > 1;
            let origin = (self.origin[at].0, self.origin[at + length - 1].1);
            level.push(byte, origin);
            at += length;
        }
        changed.then_some(level)
    }

    /// The bytes of the source that `span` stands for.
    pub(super) fn source(&self, span: &Range<usize>) -> Range<usize> {
        let first = self.origin[span.start].0;
        first
            ..self.origin[span.start..span.end]
                .last()
                .map_or(first, |(_, end)| *end)
    }

    fn with_room(room: usize) -> Self {
        Self {
            depth: 0,
            bytes: Vec::with_capacity(room),
            origin: Vec::with_capacity(room),
        }
    }

    fn push(&mut self, byte: u8, origin: (usize, usize)) {
        self.bytes.push(byte);
        self.origin.push(origin);
    }

    /// Gives every byte of a character the whole character as its origin, so that no span cuts one.
    fn whole_characters(&mut self, text: &str) {
        for origin in &mut self.origin {
            while !text.is_char_boundary(origin.0) {
                origin.0 -= 1;
            }
            while !text.is_char_boundary(origin.1) {
                origin.1 += 1;
            }
        }
    }
}

/// Length of the control sequence that `bytes` begin with (ECMA-48, 5.4), if they do.
fn control_sequence(bytes: &[u8]) -> Option<usize> {
    let rest = bytes.strip_prefix(b"\x1b[")?;
    let end = rest.iter().position(|byte| (0x40..=0x7e).contains(byte))?;
    rest[..end]
        .iter()
        .all(|byte| (0x20..0x40).contains(byte))
        .then_some(2 + end + 1)
}

/// The byte that an escape at the start stands for, and the escape's length.
type Unescape = fn(&[u8]) -> Option<(u8, usize)>;

/// RFC 3986, section 2.1.
fn percent(bytes: &[u8]) -> Option<(u8, usize)> {
    match bytes {
        [b'%', high, low, ..] => Some((hex(*high)? << 4 | hex(*low)?, 3)),
        _ => None,
    }
}

/// RFC 8259, section 7, and what Rust's `Debug` adds. Of characters outside ASCII only that they are
/// there matters.
fn json(bytes: &[u8]) -> Option<(u8, usize)> {
    match bytes {
        [b'\\', b'u', a, b, c, d, ..] => {
            let high = hex(*a)? << 4 | hex(*b)?;
            let low = hex(*c)? << 4 | hex(*d)?;
            let byte = match (high, low) {
                (0, b'"') => INNER_QUOTE,
                (0, low) if low.is_ascii() => low,
                _ => b'?',
            };
            Some((byte, 6))
        }
        [b'\\', escaped, ..] => {
            let byte = match *escaped {
                b'"' => INNER_QUOTE,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                byte @ (b'\\' | b'/' | b'\'' | INNER_QUOTE) => byte,
                _ => return None,
            };
            Some((byte, 2))
        }
        _ => None,
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|digit| digit as u8)
}
