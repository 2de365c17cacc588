//! Requests that are carried out once, however often they are sent: the header `Idempotency-Key`
//! (draft-ietf-httpapi-idempotency-key-header).
//!
//! A key is its operator's own. What came of a request is kept under it, in the transaction that did it
//! ([`store::Order`](crate::store::Order)); who sends the same again is answered from that, and who sends
//! something else with the key is refused.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use axum::http::{HeaderMap, HeaderName};

use crate::problem::Refusal;

/// The header.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest key, in bytes: room for a UUID and what one may want to put before it.
pub(crate) const MAX_KEY: usize = 128;

/// Requests with a key that this master is carrying out. There is one for each connection at most, and one
/// for each write that its connection did not wait for.
#[derive(Clone, Default)]
pub(crate) struct UnderWay(Arc<Mutex<HashSet<[u8; 32]>>>);

/// The request is under way as long as this is.
pub(crate) struct Guard {
    under_way: UnderWay,
    name: [u8; 32],
}

/// A request with the same key is under way.
#[derive(Debug)]
pub(crate) struct InFlight;

impl UnderWay {
    /// Begins the request whose digest of operator and key is `name`.
    pub(crate) fn begin(&self, name: [u8; 32]) -> Result<Guard, InFlight> {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !names.insert(name) {
            return Err(InFlight);
        }
        let under_way = self.clone();
        Ok(Guard { under_way, name })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let names = &self.under_way.0;
        let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
        names.remove(&self.name);
    }
}

/// The key in a request's headers, if there is one: a string as RFC 8941 (section 3.3.3) writes it, without parameters.
pub(crate) fn key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let malformed = || {
        Refusal::Malformed(format!(
            "Idempotency-Key is not one string in double quotes, of 1 to {MAX_KEY} characters"
        ))
    };
    let mut values = headers.get_all(HEADER).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let quoted = value.to_str().ok().map(str::trim);
    let quoted = quoted.and_then(|text| text.strip_prefix('"')?.strip_suffix('"'));
    let quoted = quoted.filter(|_| values.next().is_none());
    let mut key = String::new();
    let mut characters = quoted.ok_or_else(malformed)?.chars();
    while let Some(character) = characters.next() {
        key.push(match character {
            '\\' => match characters.next() {
                Some(escaped @ ('"' | '\\')) => escaped,
                _ => return Err(malformed()),
            },
            ' '..='~' if character != '"' => character,
            _ => return Err(malformed()),
        });
    }
    match (1..=MAX_KEY).contains(&key.len()) {
        true => Ok(Some(key)),
        false => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    fn headers(values: &[&[u8]]) -> HeaderMap {
        let values = values.iter().map(|v| HeaderValue::from_bytes(v).unwrap());
        values.map(|value| (HEADER, value)).collect()
    }

    #[test]
    fn a_key_is_a_string_in_quotes() {
        let read = |values: &[&[u8]]| key(&headers(values)).map_err(|r| r.word());
        assert_eq!(read(&[]), Ok(None));
        for (text, expected) in [(r#""a""#, "a"), (r#" "a \"\\" "#, r#"a "\"#)] {
            assert_eq!(read(&[text.as_bytes()]), Ok(Some(expected.to_owned())));
        }
        let long = format!("\"{}\"", "a".repeat(MAX_KEY + 1));
        for bad in [
            "", "a", "\"", "\"\"", "\"a", "a\"", "\"a\"b\"", "\"a\";b", r#""\a""#, r#""\"#,
            "\"\t\"", &long,
        ] {
            assert_eq!(read(&[bad.as_bytes()]), Err("malformed-request"), "{bad}");
        }
        assert_eq!(read(&[b"\"\xff\""]), Err("malformed-request"));
        assert_eq!(read(&[b"\"a\"", b"\"a\""]), Err("malformed-request"));
    }

    proptest! {
        #[test]
        fn any_value_is_a_key_or_refused(value in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let headers = HeaderMap::from_iter([(HEADER, value)]);
                if let Ok(key) = key(&headers) {
                    prop_assert!((1..=MAX_KEY).contains(&key.unwrap().len()));
                }
            }
        }
    }

    #[test]
    fn of_two_requests_with_a_key_one_is_under_way_at_a_time() {
        let under_way = UnderWay::default();
        let first = under_way.begin([1; 32]).unwrap();
        assert!(under_way.begin([1; 32]).is_err());
        let _other = under_way.begin([2; 32]).unwrap();
        drop(first);
        under_way.begin([1; 32]).unwrap();
    }
}
