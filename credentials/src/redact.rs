//! The backstop: takes what looks like a secret out of text that is about to be shown.
//!
//! Secrets are kept out of text by [`crate::secret`]; this is for what slips by — a token in a
//! peer's URL, a library's error that quotes its input. [`Writer`] stands before the log, [`text`]
//! and [`error`] before answers and standard error, [`on_panic`] before panics, and [`Place`] in the
//! place of errors of parsers, which quote what they could not read.
//!
//! What is taken out: PASETO and JWT tokens, secret PASERK keys, private keys in PEM, tokens of
//! Vault and of well-known forges, credentials behind `Bearer` and `Basic`, the user part of URLs,
//! and the values of everything named like a secret (`token=`, `"password":`, `X-Vault-Token:`,
//! `AccountKey=`) — plain, percent-encoded, JSON-escaped, three times over, and tokens and keys also
//! in base64 and hexadecimal. What is no secret by its look or name (a bare hash, a public key)
//! stays.

mod decode;
mod names;
mod panic;
mod scan;
mod shapes;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, error::Error, fmt, io, ops::Range};

pub use panic::{Panic, on_panic};

/// What stands where something was taken out.
pub const MARK: &str = "[redacted]";

/// `text` without what looks like a secret. A line of JSON stays one.
pub fn text(text: &str) -> Cow<'_, str> {
    let mut found = Vec::new();
    let is_json = text.trim_start().starts_with(['{', '[']);
    decode::Level::first(text).each(&mut |level| {
        scan::scan(&level.bytes, is_json, |span, needs_quotes| {
            let source = level.source(&span);
            found.push((source, needs_quotes && level.depth == 0));
        });
    });
    if found.is_empty() {
        return Cow::Borrowed(text);
    }
    found.sort_by_key(|(span, _)| (span.start, span.end));
    Cow::Owned(without(text, found))
}

/// An error and its sources, without what looks like a secret.
pub fn error(error: &(dyn Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words.push_str(": ");
        words.push_str(&cause.to_string());
        source = cause.source();
    }
    text(&words).into_owned()
}

/// Passes on what is written to it without what looks like a secret. Each write must be whole: a
/// secret that is cut in two is not seen.
pub struct Writer<W>(W);

impl<W: io::Write> Writer<W> {
    /// Before `inner`.
    pub fn new(inner: W) -> Self {
        Self(inner)
    }
}

impl<W: io::Write> io::Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .write_all(text(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Where a parser stopped: all of its error that may be shown, as its words quote what they are
/// about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}")]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
}

impl From<&serde_json::Error> for Place {
    fn from(error: &serde_json::Error) -> Self {
        Self {
            line: error.line(),
            column: error.column(),
        }
    }
}

impl Place {
    /// That of byte `at` of `text`.
    pub fn of(text: &str, at: usize) -> Self {
        let mut end = at.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let before = &text[..end];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// Shows a value without what looks like a secret in it.
pub struct Shown<T>(pub T);

impl<T: fmt::Display> fmt::Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(&self.0.to_string()))
    }
}

/// `text` with a mark in the place of each span; spans that touch or overlap share one.
fn without(text: &str, spans: Vec<(Range<usize>, bool)>) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut at = 0;
    let mut spans = spans.into_iter().peekable();
    while let Some((mut span, needs_quotes)) = spans.next() {
        while let Some((next, _)) = spans.next_if(|(next, _)| next.start <= span.end) {
            span.end = span.end.max(next.end);
        }
        shown.push_str(&text[at..span.start]);
        let quote = if needs_quotes { "\"" } else { "" };
        shown.extend([quote, MARK, quote]);
        at = span.end;
    }
    shown.push_str(&text[at..]);
    shown
}
