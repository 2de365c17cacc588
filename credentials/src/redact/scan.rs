//! Finds what looks like a secret in one layer of text.

use std::ops::Range;

use super::{
    MARK,
    decode::INNER_QUOTE,
    names::{self, Kind},
    shapes,
};

/// Calls `found` for each secret: where it is, and whether a mark in its place needs quotation marks
/// so that JSON stays JSON. `is_json` says that plain quotation marks are the document's own.
pub(super) fn scan(bytes: &[u8], is_json: bool, mut found: impl FnMut(Range<usize>, bool)) {
    let scan = Scan { bytes, is_json };
    let mut at = 0;
    // End of the last secret, before which nothing is looked at again.
    let mut from = 0;
    while at < bytes.len() {
        match scan.at(at, from) {
            Some(Found {
                spans,
                next,
                needs_quotes,
            }) => {
                for span in spans {
                    let span = span.start..span.start + before_escape(&bytes[span]);
                    let is_marked = bytes[span.start..].starts_with(MARK.as_bytes())
                        && span.len() <= MARK.len();
                    if !span.is_empty() && !is_marked {
                        found(span, needs_quotes);
                    }
                }
                at = next.max(at + 1);
                from = at;
            }
            None => at += 1,
        }
    }
}

struct Scan<'a> {
    bytes: &'a [u8],
    is_json: bool,
}

struct Found {
    spans: Vec<Range<usize>>,
    /// Where to go on.
    next: usize,
    needs_quotes: bool,
}

impl Found {
    fn new(span: Range<usize>) -> Self {
        Self {
            next: span.end,
            spans: vec![span],
            needs_quotes: false,
        }
    }
}

impl Scan<'_> {
    fn at(&self, at: usize, from: usize) -> Option<Found> {
        let byte = self.bytes[at];
        if shapes::FIRST[usize::from(byte)] {
            let shape = shapes::at(self.bytes, at, from, |byte| self.is_json && byte == b'"');
            if let Some(span) = shape {
                return Some(Found::new(span));
            }
        }
        if byte == b':' && self.bytes[at..].starts_with(b"://") {
            return self.user_of_url(at + 3).map(Found::new);
        }
        let starts_a_word = is_name_byte(byte) && (at == 0 || !is_name_byte(self.bytes[at - 1]));
        if !starts_a_word {
            return None;
        }
        self.value_by_name(at).or_else(|| self.behind_scheme(at))
    }

    /// User and password of a URL (RFC 3986, section 3.2.1), which a connection string often leaves
    /// unencoded.
    fn user_of_url(&self, start: usize) -> Option<Range<usize>> {
        let rest = &self.bytes[start..];
        let length = |ends: &[u8]| {
            let is_end = |byte: &u8| {
                byte.is_ascii_whitespace()
                    || is_quote(*byte)
                    || b"<>".contains(byte)
                    || ends.contains(byte)
            };
            rest.iter().position(is_end).unwrap_or(rest.len())
        };
        let authority = &rest[..length(b"/?#")];
        let last_at = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte == b'@');
        if let Some(end) = last_at(authority) {
            return Some(start..start + end);
        }
        // `user:pass/word@host`: what stands behind the colon is no port.
        let colon = authority.iter().rposition(|byte| *byte == b':')?;
        let is_port = authority[colon + 1..].iter().all(u8::is_ascii_digit);
        if is_port || authority.first() == Some(&b'[') {
            return None;
        }
        let end = last_at(&rest[..length(b"")])?;
        Some(start..start + end)
    }

    /// The value of a name at `at` that says it is secret.
    fn value_by_name(&self, at: usize) -> Option<Found> {
        let bytes = self.bytes;
        let length = count(&bytes[at..], is_name_byte);
        let kind = names::kind(&bytes[at..at + length])?;
        let mut next = at + length;
        let closing = bytes.get(next).copied().filter(|byte| is_quote(*byte));
        next += usize::from(closing.is_some());
        next += count(&bytes[next..], is_space);
        let separator = match *bytes.get(next)? {
            // `wavry_credentials::source` names a module.
            b':' if bytes.get(next + 1) == Some(&b':') => return None,
            separator @ (b'=' | b':') => separator,
            // `{ name: "cookie", value: "…" }`
            b',' if closing.is_some() => {
                next = self.colon_of_value(next + 1)?;
                b':'
            }
            _ => return None,
        };
        next += 1;
        // `=>`, `==`
        next += count(&bytes[next..], |byte| b"=>".contains(&byte)).min(1);
        let spaces = count(&bytes[next..], is_space);
        next += spaces;
        let first = *bytes.get(next)?;
        let in_document = self.is_json && closing == Some(b'"');

        if b"[{".contains(&first) && !bytes[next..].starts_with(MARK.as_bytes()) {
            return Some(self.strings_inside(next));
        }
        if let Some(span) = self.quoted(next) {
            return Some(Found {
                next: span.end + 1,
                spans: vec![span],
                needs_quotes: false,
            });
        }
        let span = match kind {
            Kind::Header => next..self.end_of_header(next, separator),
            Kind::Secret | Kind::Token => next..next + self.unquoted(next),
        };
        let value = &bytes[span.clone()];
        let is_prose = kind == Kind::Token && separator == b':' && spaces > 0 && closing.is_none();
        let says_nothing = matches!(value, b"" | b"true" | b"false" | b"null" | b"None");
        if says_nothing || is_prose && !looks_random(value) {
            return None;
        }
        Some(Found {
            next: span.end,
            spans: vec![span],
            needs_quotes: in_document,
        })
    }

    /// The colon of a field `value` at `at`.
    fn colon_of_value(&self, at: usize) -> Option<usize> {
        let rest = &self.bytes[at..];
        let name = count(rest, |byte| is_space(byte) || is_quote(byte));
        let end = name + count(&rest[name..], is_name_byte);
        let colon = end + count(&rest[end..], |byte| is_space(byte) || is_quote(byte));
        (&rest[name..end] == b"value" && rest.get(colon) == Some(&b':')).then_some(at + colon)
    }

    /// The strings in the list or object at `at`, but for the names in it. Where some quotation marks
    /// were encoded in one way and some in another, it cannot be told which belong together: both
    /// readings count.
    fn strings_inside(&self, at: usize) -> Found {
        let mut spans = Vec::new();
        let next = self.strings_until_closed(at, |_| false, &mut spans);
        if self.bytes[at..next].contains(&INNER_QUOTE) {
            self.strings_until_closed(at, |end| self.closes_an_element(end), &mut spans);
        }
        Found {
            spans,
            next,
            needs_quotes: false,
        }
    }

    /// Adds the strings up to the bracket that closes the one at `at`, and gives where that is. An
    /// [`INNER_QUOTE`] ends a string that a quotation mark began if `ends` says so.
    fn strings_until_closed(
        &self,
        at: usize,
        ends: impl Fn(usize) -> bool,
        spans: &mut Vec<Range<usize>>,
    ) -> usize {
        let bytes = self.bytes;
        let mut depth = 0_usize;
        let mut next = at;
        while next < bytes.len() {
            match bytes[next] {
                b'[' | b'{' => depth += 1,
                b']' | b'}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            match self.quoted(next).filter(|_| is_quote(bytes[next])) {
                Some(mut span) => {
                    let inner = |end: &usize| bytes[*end] == INNER_QUOTE && ends(*end);
                    span.end = span.clone().find(inner).unwrap_or(span.end);
                    next = (span.end + 1).min(bytes.len());
                    let after = next + count(&bytes[next..], is_space);
                    if bytes.get(after) != Some(&b':') {
                        spans.push(span);
                    }
                }
                None => next += 1,
            }
        }
        next
    }

    /// Whether behind the quotation mark at `end` a list or object goes on, or ends.
    fn closes_an_element(&self, end: usize) -> bool {
        let rest = &self.bytes[end + 1..];
        let rest = &rest[count(rest, is_space)..];
        match rest {
            [b']' | b'}' | b':', ..] => true,
            [b',', rest @ ..] => rest
                .get(count(rest, is_space))
                .is_some_and(|byte| is_quote(*byte)),
            _ => false,
        }
    }

    /// The inside of the string at `at`, if one is there: also in `Some("…")`.
    fn quoted(&self, at: usize) -> Option<Range<usize>> {
        const MAX_WRAPPER: usize = 32;
        let bytes = self.bytes;
        let wrapper = &bytes[at..bytes.len().min(at + MAX_WRAPPER)];
        let word = count(wrapper, is_name_byte);
        let opening = count(&wrapper[word..], |byte| b"([{".contains(&byte));
        let start = match opening {
            0 if word == 0 => at,
            0 => return None,
            _ => at + word + opening,
        };
        let quote = *bytes.get(start).filter(|byte| is_quote(**byte))?;
        let inside = start + 1;
        let is_end = |byte: &u8| match quote {
            // Within a document, its own quotation marks end everything.
            b'\'' | b'`' => *byte == quote || *byte == b'\n' || self.is_json && *byte == b'"',
            _ => *byte == quote || *byte == b'"',
        };
        let length = bytes[inside..].iter().position(is_end);
        let end = length.map_or(bytes.len(), |length| inside + length);
        Some(inside..end)
    }

    /// Length of a value without quotation marks.
    fn unquoted(&self, at: usize) -> usize {
        let rest = &self.bytes[at..];
        let is_end = |byte: u8| is_space(byte) || is_quote(byte) || b"\r\n&;<>\0".contains(&byte);
        let length = count(rest, |byte| !is_end(byte));
        // Punctuation at the end belongs to what is around.
        length
            - rest[..length]
                .iter()
                .rev()
                .take_while(|byte| b",)]}".contains(byte))
                .count()
    }

    /// End of a header's value: of the line, or of the string it is in; after `=` of its second word,
    /// which is what follows a scheme.
    fn end_of_header(&self, at: usize, separator: u8) -> usize {
        let rest = &self.bytes[at..];
        let line = count(rest, |byte| {
            !b"\r\n\"".contains(&byte) && byte != INNER_QUOTE
        });
        if separator == b':' {
            return at + line;
        }
        let scheme = self.unquoted(at);
        let spaces = count(&rest[scheme..], is_space);
        match is_scheme(&rest[..scheme]) {
            true => at + scheme + spaces + self.unquoted(at + scheme + spaces),
            false => at + scheme,
        }
    }

    /// Credentials behind `Bearer` or `Basic` (RFC 9110, section 11.4).
    fn behind_scheme(&self, at: usize) -> Option<Found> {
        let rest = &self.bytes[at..];
        let word = count(rest, is_name_byte);
        if !is_scheme(&rest[..word]) {
            return None;
        }
        let spaces = count(&rest[word..], is_space);
        let start = word + spaces;
        let length = shapes::run(&rest[start..]);
        (spaces > 0 && looks_random(&rest[start..start + length]))
            .then(|| Found::new(at + start..at + start + length))
    }
}

/// Length of a value without the backslashes at its end, which belong to the quotation mark behind:
/// they are its escape, one layer up.
fn before_escape(value: &[u8]) -> usize {
    value.len()
        - value
            .iter()
            .rev()
            .take_while(|byte| **byte == b'\\')
            .count()
}

/// Whether a word is none that people write: long enough, with digits or with capitals inside.
fn looks_random(word: &[u8]) -> bool {
    const LEAST: usize = 6;
    let inside = word.get(1..).unwrap_or_default();
    let has_lower = word.iter().any(u8::is_ascii_lowercase);
    word.len() >= LEAST
        && (word.iter().any(u8::is_ascii_digit)
            || has_lower && inside.iter().any(u8::is_ascii_uppercase))
}

fn is_scheme(word: &[u8]) -> bool {
    [&b"bearer"[..], b"basic", b"digest", b"negotiate"]
        .iter()
        .any(|scheme| word.eq_ignore_ascii_case(scheme))
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-".contains(&byte)
}

fn is_quote(byte: u8) -> bool {
    b"\"'`".contains(&byte) || byte == INNER_QUOTE
}

fn is_space(byte: u8) -> bool {
    b" \t".contains(&byte)
}

fn count(bytes: &[u8], holds: impl Fn(u8) -> bool) -> usize {
    bytes.iter().take_while(|byte| holds(**byte)).count()
}
