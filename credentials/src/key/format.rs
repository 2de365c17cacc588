//! The forms in which people and programs keep secrets: PASERK, PKCS#8 PEM, hexadecimal, base64, a
//! password as it is, a field of a JSON object. What cannot be read is said by its place and by what was
//! expected there, never by what is there.

use std::{fmt, ops::Range};

use base64::{
    DecodeError, DecodeSliceError, Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use zeroize::Zeroizing;

use super::Ed25519;
use crate::{redact::Place, secret::Secret};

/// What is wrong with the text of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {}, column {}: expected {expected}", .place.line, .place.column)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What should be there.
    pub expected: &'static str,
}

const PASERK: &str = "k4.secret.";
const PEM: &str = "-----BEGIN";
/// Base64 of either alphabet, with its padding or without.
const STANDARD: GeneralPurpose = lenient(&alphabet::STANDARD);
const URL_SAFE: GeneralPurpose = lenient(&alphabet::URL_SAFE);

const fn lenient(alphabet: &alphabet::Alphabet) -> GeneralPurpose {
    let config = GeneralPurposeConfig::new();
    let config = config.with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(alphabet, config)
}

/// Reads an Ed25519 key: PASERK `k4.secret`, PKCS#8 PEM, or its seed in hexadecimal or base64.
#[expect(clippy::disallowed_methods, reason = "a key is read here")]
pub(crate) fn ed25519(text: &Secret<Vec<u8>>) -> Result<Ed25519, Fault> {
    let bytes = text.expose();
    let range = trimmed(bytes);
    let body = &bytes[range.clone()];
    if body.starts_with(PASERK.as_bytes()) {
        let body = range.start + PASERK.len()..range.end;
        let expected = "86 characters of base64url, of two halves that belong together";
        decode_base64(bytes, body.clone(), 64, &URL_SAFE, expected)?;
        return Ed25519::from_paserk(text).map_err(|_| fault(bytes, body.start, expected));
    }
    if body.starts_with(PEM.as_bytes()) {
        let expected = "an Ed25519 key in PKCS#8 PEM";
        return Ed25519::from_pem(text).map_err(|_| fault(bytes, range.start, expected));
    }
    let expected = "k4.secret., PKCS#8 PEM, or 32 bytes in hexadecimal or base64";
    let seed = array(bytes, expected)?;
    Ed25519::checked(seed).map_err(|_| fault(bytes, range.start, "a key that is not all zeros"))
}

/// Reads a key of `N` bytes: hexadecimal, base64, or the bytes themselves.
#[expect(clippy::disallowed_methods, reason = "a key is read here")]
pub fn symmetric<const N: usize>(text: &Secret<Vec<u8>>) -> Result<Secret<[u8; N]>, Fault> {
    let bytes = text.expose();
    if let Ok(key) = <[u8; N]>::try_from(bytes) {
        return Ok(Secret::new(key));
    }
    array(
        bytes,
        "the bytes of a key, or these in hexadecimal or base64",
    )
}

/// Reads a password: one line of text, whose end does not belong to it.
#[expect(clippy::disallowed_methods, reason = "a password is read here")]
pub fn password(text: &Secret<Vec<u8>>) -> Result<Secret<Vec<u8>>, Fault> {
    let bytes = text.expose();
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if let Err(error) = std::str::from_utf8(line) {
        return Err(fault(bytes, error.valid_up_to(), "UTF-8"));
    }
    if let Some(at) = line.iter().position(u8::is_ascii_control) {
        let expected = "one line without control characters";
        return Err(fault(bytes, at, expected));
    }
    match line.is_empty() {
        true => Err(fault(bytes, 0, "a password")),
        false => Ok(Secret::new(line.to_vec())),
    }
}

/// Takes the text of one field out of a JSON object; of an object within, if the path to it has several
/// names.
#[expect(clippy::disallowed_methods, reason = "a secret is read here")]
pub fn field(text: &Secret<Vec<u8>>, path: &[&str]) -> Result<Secret<Vec<u8>>, Fault> {
    let bytes = text.expose();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let found = Field(path).deserialize(&mut json);
    let found = found.and_then(|found| json.end().map(|()| found));
    let found = found.map_err(|error| Fault {
        place: Place::from(&error),
        expected: match error.is_data() {
            true => "an object whose field is text, and is there once",
            false => "JSON",
        },
    })?;
    found.ok_or_else(|| fault(bytes, 0, "an object with that field"))
}

/// The bytes that base64 stands for.
#[expect(clippy::disallowed_methods, reason = "a secret is read here")]
pub(crate) fn base64(text: &Secret<Vec<u8>>) -> Result<Secret<Vec<u8>>, Fault> {
    let bytes = text.expose();
    Secret::filled(base64::decoded_len_estimate(bytes.len()), |room| {
        let decoded = STANDARD.decode_slice(bytes, room);
        decoded.map_err(|_| fault(bytes, 0, "base64"))
    })
}

/// Reads what is no secret out of a JSON object that holds secrets as well.
#[expect(
    clippy::disallowed_methods,
    reason = "what is beside a secret is read here"
)]
pub(crate) fn beside<T: serde::de::DeserializeOwned>(text: &Secret<Vec<u8>>) -> Result<T, Fault> {
    serde_json::from_slice(text.expose()).map_err(|error| Fault {
        place: Place::from(&error),
        expected: "an object of its kind",
    })
}

/// One field of an object, by the names on the way to it; the others are passed over.
struct Field<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = Option<Secret<Vec<u8>>>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Option<Secret<Vec<u8>>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let (name, within) = self.0.split_first().unwrap_or((&"", &[]));
        let mut found = None;
        while let Some(is_wanted) = object.next_key_seed(Is(name))? {
            if !is_wanted {
                object.next_value::<IgnoredAny>()?;
            } else if found.is_some() {
                return Err(A::Error::custom("given twice"));
            } else if within.is_empty() {
                found = Some(object.next_value_seed(Text)?);
            } else {
                found = object.next_value_seed(Field(within))?;
            }
        }
        Ok(found)
    }
}

/// Whether a name is this one.
struct Is<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<bool, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

/// A text that is taken in as a secret.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Secret<Vec<u8>>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Text {
    type Value = Secret<Vec<u8>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Secret::new(text.as_bytes().to_vec()))
    }
}

/// `N` bytes in hexadecimal or base64.
fn array<const N: usize>(bytes: &[u8], expected: &'static str) -> Result<Secret<[u8; N]>, Fault> {
    let range = trimmed(bytes);
    let body = &bytes[range.clone()];
    let mut key = Zeroizing::new([0; N]);
    if body.len() == 2 * N {
        return match hex::decode_to_slice(body, &mut key[..]) {
            Ok(()) => Ok(Secret::new(*key)),
            Err(_) => {
                let at = body.iter().position(|byte| !byte.is_ascii_hexdigit());
                let at = range.start + at.unwrap_or_default();
                Err(fault(bytes, at, "a hexadecimal digit"))
            }
        };
    }
    let is_url_safe = body.iter().any(|byte| b"-_".contains(byte));
    let alphabet = if is_url_safe { &URL_SAFE } else { &STANDARD };
    let decoded = decode_base64(bytes, range, N, alphabet, expected)?;
    key.copy_from_slice(&decoded);
    Ok(Secret::new(*key))
}

/// The bytes that stand in `range` of `text` in base64, which must be so many.
fn decode_base64(
    text: &[u8],
    range: Range<usize>,
    length: usize,
    alphabet: &GeneralPurpose,
    expected: &'static str,
) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let body = &text[range.clone()];
    // Exactly the room that the decoder wants, so that no growth leaves a copy behind.
    let mut decoded = Zeroizing::new(vec![0; base64::decoded_len_estimate(body.len())]);
    match alphabet.decode_slice(body, &mut decoded) {
        Ok(found) if found == length => {
            decoded.truncate(length);
            Ok(decoded)
        }
        Ok(_) => Err(fault(text, range.start, expected)),
        Err(error) => {
            // The error has the byte as well, which is left where it is.
            let at = match error {
                DecodeSliceError::DecodeError(
                    DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _),
                ) => at,
                _ => 0,
            };
            Err(fault(text, range.start + at, expected))
        }
    }
}

/// Where in `bytes` text begins and ends that is no white space.
fn trimmed(bytes: &[u8]) -> Range<usize> {
    let start = bytes.len() - bytes.trim_ascii_start().len();
    start..start + bytes.trim_ascii().len()
}

pub(super) fn fault(text: &[u8], at: usize, expected: &'static str) -> Fault {
    let before = &text[..at.min(text.len())];
    let line_start = before.iter().rposition(|byte| *byte == b'\n');
    let line = &before[line_start.map_or(0, |newline| newline + 1)..];
    // Bytes that continue a character are none of their own.
    let characters = line.iter().filter(|byte| **byte & 0xc0 != 0x80);
    let lines = before.iter().filter(|byte| **byte == b'\n');
    Fault {
        place: Place {
            line: lines.count() + 1,
            column: characters.count() + 1,
        },
        expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEED: [u8; 32] = *b"0123456789abcdefghijklmnopqrstuv";

    fn secret(bytes: impl AsRef<[u8]>) -> Secret<Vec<u8>> {
        Secret::new(bytes.as_ref().to_vec())
    }

    fn key() -> Ed25519 {
        Ed25519::from_seed(Secret::new(SEED))
    }

    fn refusal<T>(read: Result<T, Fault>) -> (usize, usize, &'static str) {
        match read {
            Ok(_) => panic!("it was read"),
            Err(Fault { place, expected }) => (place.line, place.column, expected),
        }
    }

    #[test]
    fn a_key_is_read_in_every_form() {
        let hex = hex::encode(SEED);
        let forms = [
            hex.clone(),
            hex.to_uppercase(),
            STANDARD.encode(SEED),
            STANDARD.encode(SEED).trim_end_matches('=').to_owned(),
            URL_SAFE.encode(SEED),
            format!("\n {hex}\r\n"),
        ];
        for form in forms {
            let read = ed25519(&secret(&form));
            assert!(
                read.is_ok_and(|read| read.public() == key().public()),
                "{form}"
            );
            let read = symmetric::<32>(&secret(&form));
            assert!(read.is_ok_and(|read| read.matches(&SEED)), "{form}");
        }
        for form in [key().to_paserk(), key().to_pem()] {
            let read = ed25519(&form);
            assert!(read.is_ok_and(|read| read.public() == key().public()));
        }
        let raw = symmetric::<32>(&secret(SEED));
        assert!(raw.is_ok_and(|read| read.matches(&SEED)));
        let url = symmetric::<32>(&secret(URL_SAFE.encode([0xff; 32])));
        assert!(url.is_ok_and(|read| read.matches(&[0xff; 32])));
    }

    #[test]
    fn what_is_no_key_is_refused_at_its_place() {
        let mut hex = hex::encode(SEED);
        hex.replace_range(40..41, "g");
        let refused = refusal(symmetric::<32>(&secret(format!("\n  {hex}"))));
        assert_eq!(refused, (2, 43, "a hexadecimal digit"));
        let mut base64 = STANDARD.encode(SEED);
        base64.replace_range(9..10, "!");
        assert_eq!(refusal(ed25519(&secret(base64))).1, 10);
        assert_eq!(refusal(ed25519(&secret("k4.secret.AAAA"))).1, 11);
        let pem = format!(" {PEM} PRIVATE KEY-----\nAAAA");
        assert_eq!(refusal(ed25519(&secret(pem))).1, 2);
        let zeros = refusal(ed25519(&secret(hex::encode([0; 32]))));
        assert_eq!(zeros.2, "a key that is not all zeros");
        for short in ["", "ab", &hex::encode([1; 31])] {
            assert!(symmetric::<32>(&secret(short)).is_err());
        }
    }

    #[test]
    fn a_password_is_one_line() {
        for text in ["pass w\u{f6}rd", "pass w\u{f6}rd\n", "pass w\u{f6}rd\r\n"] {
            let read = password(&secret(text));
            assert!(read.is_ok_and(|read| read.matches("pass w\u{f6}rd".as_bytes())));
        }
        assert_eq!(refusal(password(&secret("\n"))).2, "a password");
        assert_eq!(refusal(password(&secret("one\ntwo"))).1, 4);
        assert_eq!(refusal(password(&secret(b"ab\xff"))), (1, 3, "UTF-8"));
    }

    #[test]
    fn a_field_of_an_object_is_taken_out() {
        let text = r#"{"user": "ann", "data": {"password": "x"}, "password": "s3\"cret"}"#;
        let text = secret(text);
        assert!(field(&text, &["password"]).is_ok_and(|read| read.matches(b"s3\"cret")));
        assert!(field(&text, &["user"]).is_ok_and(|read| read.matches(b"ann")));
        assert_eq!(
            refusal(field(&text, &["token"])).2,
            "an object with that field"
        );
        let shape = "an object whose field is text, and is there once";
        for (text, expected) in [
            (r#"{"password": 7}"#, shape),
            (r#"{"password": "a", "password": "b"}"#, shape),
            (r#"["password"]"#, shape),
            (r#"{"password": "a""#, "JSON"),
            (r#"{"password": "a"} x"#, "JSON"),
        ] {
            assert_eq!(
                refusal(field(&secret(text), &["password"])).2,
                expected,
                "{text}"
            );
        }
        let (line, column, _) = refusal(field(&secret("{\"a\": 1,\n  oops}"), &["a"]));
        assert_eq!((line, column), (1, 7));
        let (line, column, _) = refusal(field(&secret("{\"b\": 1,\n  oops}"), &["a"]));
        assert_eq!((line, column), (2, 3));
    }

    /// All that is said of `text` where it cannot be read, in whatever form.
    fn said(text: &[u8]) -> Vec<String> {
        let text = secret(text);
        let said = [
            ed25519(&text).err(),
            symmetric::<32>(&text).err(),
            password(&text).err(),
            field(&text, &["password"]).err(),
        ];
        let said = said.into_iter().flatten();
        said.map(|fault| fault.to_string()).collect()
    }

    proptest! {
        #[test]
        fn no_byte_of_a_value_is_said(
            form in prop::sample::select(vec![
                "", PASERK, "-----BEGIN PRIVATE KEY-----\n", "{\"password\": ", "{\"password\": \"",
            ]),
            // None of these characters stands in any message.
            value in "[\u{391}-\u{3c9}\u{a1}-\u{ff}@~^|]{0,80}",
        ) {
            for text in said(format!("{form}{value}").as_bytes()) {
                prop_assert!(!text.contains(|c: char| !c.is_ascii() || "@~^|".contains(c)), "{}", text);
            }
        }

        #[test]
        fn no_piece_of_a_value_is_said(value in "[a-z0-9]{6,90}") {
            const FORMS: [&str; 4] = ["", PASERK, "{\"password\": ", "{\"password\": \""];
            for form in FORMS {
                for text in said(format!("{form}{value}\u{7f}").as_bytes()) {
                    let mut pieces = (0..value.len() - 5).map(|at| &value[at..at + 6]);
                    prop_assert!(!pieces.any(|piece| text.contains(piece)), "{}", text);
                }
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            said(&bytes);
        }
    }
}
