//! JSON that holds secrets: taken in as it comes, read no more than needed, handed to its holder.
//!
//! A [`Json`] is a value that came from a holder or lies in a store. A [`Document`] is put together
//! from what may be known and what may not, and leaves as one piece: to the store, or to whom it is
//! for. Neither has a textual form.

use std::{fmt, io};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error as _},
};
use serde_json::{Map, Value, value::RawValue};
use zeroize::Zeroize;

use super::{Malformed, Token};
use crate::secret::Secret;

/// Deepest nesting of objects and arrays.
pub const MAX_DEPTH: usize = 64;

/// What was not JSON of the kind expected. It says where, and never shows what was there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misread {
    /// Not JSON.
    #[error("not valid JSON at line {line}, column {column}")]
    Syntax {
        /// From 1.
        line: usize,
        /// From 1; 0 before the first.
        column: usize,
    },
    /// Nested more deeply than [`MAX_DEPTH`].
    #[error("nested more than {MAX_DEPTH} deep")]
    TooDeep,
    /// JSON, but not what is taken here.
    #[error("line {line}, column {column} does not fit: a member is missing or has the wrong type")]
    Shape {
        /// From 1.
        line: usize,
        /// From 1; 0 before the first.
        column: usize,
    },
}

impl From<serde_json::Error> for Misread {
    fn from(error: serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        match error.is_data() {
            true => Self::Shape { line, column },
            false => Self::Syntax { line, column },
        }
    }
}

/// One JSON value that is a secret, as the text it came in. Nobody looked into it further than to
/// see that it is JSON, and not too deep.
pub struct Json(Secret<Vec<u8>>);

impl Json {
    /// Takes in what arrived.
    #[expect(clippy::disallowed_methods, reason = "a secret is taken in here")]
    pub fn new(text: Secret<Vec<u8>>) -> Result<Self, Misread> {
        let bytes = text.expose();
        if depth(bytes) > MAX_DEPTH {
            return Err(Misread::TooDeep);
        }
        let _: &RawValue = serde_json::from_slice(bytes)?;
        Ok(Self(text))
    }

    /// What is known to be JSON: an entry of our own store.
    pub fn stored(text: Secret<Vec<u8>>) -> Self {
        Self(text)
    }

    /// Reads it as a `T`. Members that are secrets are [`Json`], [`Token`] or [`Plaintext`] there.
    #[expect(clippy::disallowed_methods, reason = "a secret is taken apart here")]
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Misread> {
        Ok(serde_json::from_slice(self.0.expose())?)
    }

    /// Whether it is an object.
    #[expect(
        clippy::disallowed_methods,
        reason = "only its first character is seen"
    )]
    pub fn is_object(&self) -> bool {
        self.0.expose().trim_ascii_start().first() == Some(&b'{')
    }

    /// Whether it is `null`.
    #[expect(clippy::disallowed_methods, reason = "only this is seen")]
    pub fn is_null(&self) -> bool {
        self.0.expose().trim_ascii() == b"null"
    }

    /// Length of its text in bytes.
    #[expect(clippy::disallowed_methods, reason = "only its length is seen")]
    pub fn text_len(&self) -> usize {
        self.0.expose().len()
    }

    /// The names in an object without the values: a value that is no object becomes null, objects
    /// are entered to `depth` levels (0: all).
    pub fn subkeys(&self, depth: usize) -> Result<Value, Misread> {
        fn names(value: &Value, depth: usize, level: usize) -> Value {
            match value {
                Value::Object(members) if depth == 0 || level < depth => members
                    .iter()
                    .map(|(name, value)| (name.clone(), names(value, depth, level + 1)))
                    .collect::<Map<_, _>>()
                    .into(),
                _ => Value::Null,
            }
        }
        let tree = Tree(self.read()?);
        Ok(names(&tree.0, depth, 0))
    }

    /// What `look` says of an object's members; `None` of another value. What it saw is zeroed then.
    pub fn inspect<T>(&self, look: impl FnOnce(&Map<String, Value>) -> T) -> Option<T> {
        let tree = Tree(self.read().ok()?);
        tree.0.as_object().map(look)
    }

    /// This value with `patch` merged into it (RFC 7396).
    pub fn merged(&self, patch: &Self) -> Result<Self, Misread> {
        fn merge(target: &mut Value, patch: &mut Value) {
            let Value::Object(patch) = patch else {
                target.zeroize_strings();
                *target = patch.take();
                return;
            };
            if !target.is_object() {
                target.zeroize_strings();
                *target = Value::Object(Map::new());
            }
            let Value::Object(members) = target else {
                return;
            };
            for (name, value) in patch.iter_mut() {
                if value.is_null() {
                    if let Some(mut gone) = members.remove(name) {
                        gone.zeroize_strings();
                    }
                } else {
                    merge(members.entry(name.as_str()).or_insert(Value::Null), value);
                }
            }
        }
        let (mut target, mut patch) = (Tree(self.read()?), Tree(patch.read()?));
        merge(&mut target.0, &mut patch.0);
        Self::new(written(&target.0))
    }
}

/// A member of an object that is taken in with it.
impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // One allocation of its own, which the secret zeroes.
        let text = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Self(Secret::new(
            Box::<str>::from(text).into_string().into_bytes(),
        )))
    }
}

/// Bytes that stand in JSON as base64 (RFC 4648, section 4).
pub struct Plaintext(pub Secret<Vec<u8>>);

impl<'de> Deserialize<'de> for Plaintext {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Secret::new(String::deserialize(deserializer)?);
        Self::from_base64(&text).ok_or_else(|| D::Error::custom("not base64"))
    }
}

impl Plaintext {
    #[expect(clippy::disallowed_methods, reason = "a secret is read here")]
    fn from_base64(text: &Secret<String>) -> Option<Self> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let text = text.expose();
        let room = base64::decoded_len_estimate(text.len());
        Secret::filled(room, |room| STANDARD.decode_slice(text, room))
            .ok()
            .map(Self)
    }

    /// As a member of an answer.
    #[expect(clippy::disallowed_methods, reason = "a secret is handed on here")]
    pub fn document(&self) -> Document {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let bytes = self.0.expose();
        let room = bytes.len().div_ceil(3) * 4 + 2;
        let text = Secret::filled(room, |room| {
            room[0] = b'"';
            let length = STANDARD.encode_slice(bytes, &mut room[1..])?;
            room[length + 1] = b'"';
            Ok::<_, base64::EncodeSliceError>(length + 2)
        });
        Document(vec![Part::Secret(
            text.expect("the room is what base64 takes"),
        )])
    }
}

/// A JSON text put together from parts of which some are secrets.
pub struct Document(Vec<Part>);

enum Part {
    Plain(Vec<u8>),
    Secret(Secret<Vec<u8>>),
}

impl Document {
    /// What holds no secret.
    pub fn of(value: &impl Serialize) -> Self {
        let text = serde_json::to_vec(value).expect("answers have text keys");
        Self(vec![Part::Plain(text)])
    }

    /// What is a secret from its first character to its last, such as a key that is told once. Its
    /// text is written straight into the pages of a [`Secret`].
    pub fn secret(value: &impl Serialize) -> Self {
        Self(vec![Part::Secret(written(value))])
    }

    /// A text that is a secret, as a string. The error is that of bytes that are no text.
    #[expect(clippy::disallowed_methods, reason = "a secret is handed on here")]
    pub(crate) fn text(text: &Secret<Vec<u8>>) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(text.expose()).map_err(|_| Malformed)?;
        Ok(Self::secret(&text))
    }

    /// An object of these members, in this order.
    pub fn object<'a>(members: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        let mut parts = Vec::new();
        let mut before = "{";
        for (name, member) in members {
            let name = serde_json::to_string(name).unwrap_or_default();
            parts.push(Part::Plain(format!("{before}{name}:").into_bytes()));
            parts.extend(member.0);
            before = ",";
        }
        let end = if before == "{" { "{}" } else { "}" };
        parts.push(Part::Plain(end.into()));
        Self(parts)
    }

    /// An array of these values.
    pub fn array(values: impl IntoIterator<Item = Self>) -> Self {
        let mut parts = Vec::new();
        let mut before = "[";
        for value in values {
            parts.push(Part::Plain(before.into()));
            parts.extend(value.0);
            before = ",";
        }
        let end = if before == "[" { "[]" } else { "]" };
        parts.push(Part::Plain(end.into()));
        Self(parts)
    }

    /// The members of an object without secrets, to stand beside others.
    pub fn public_members(&self) -> Option<Members> {
        match &self.0[..] {
            [Part::Plain(text)] => {
                let text = text.strip_prefix(b"{")?.strip_suffix(b"}")?;
                Some(Members(text.to_vec()))
            }
            _ => None,
        }
    }

    /// In one piece, to be stored.
    #[expect(clippy::disallowed_methods, reason = "a secret is put together here")]
    pub fn into_secret(mut self) -> Secret<Vec<u8>> {
        if let [Part::Secret(_)] = &self.0[..]
            && let Some(Part::Secret(whole)) = self.0.pop()
        {
            return whole;
        }
        let bytes = |part: &Part| match part {
            Part::Plain(text) => text.len(),
            Part::Secret(secret) => secret.expose().len(),
        };
        let room = self.0.iter().map(bytes).sum();
        let whole = Secret::filled(room, |mut room| {
            for part in &self.0 {
                let text = match part {
                    Part::Plain(text) => text,
                    Part::Secret(secret) => secret.expose(),
                };
                let (here, rest) = room.split_at_mut(text.len());
                here.copy_from_slice(text);
                room = rest;
            }
            Ok::<_, std::convert::Infallible>(self.0.iter().map(bytes).sum())
        });
        match whole {
            Ok(whole) => whole,
            Err(never) => match never {},
        }
    }

    /// The bytes for the holder: the body of an answer. They are the pages of a [`Secret`] and are
    /// zeroed when the connection let go of them.
    pub fn into_body(self) -> Bytes {
        match &self.0[..] {
            [Part::Plain(text)] => Bytes::copy_from_slice(text),
            _ => Bytes::from_owner(Handed(self.into_secret())),
        }
    }
}

/// Members of an object, without secrets.
pub struct Members(Vec<u8>);

impl Members {
    /// An object of these members and of `more`. Where both name one, `more` counts.
    pub fn with<'a>(self, more: impl IntoIterator<Item = (&'a str, Document)>) -> Document {
        let mut more: Vec<_> = more.into_iter().collect();
        let Ok(own) =
            serde_json::from_slice::<Map<String, Value>>(&[b"{", &self.0[..], b"}"].concat())
        else {
            return Document::object(more);
        };
        let own = own
            .iter()
            .filter(|(name, _)| more.iter().all(|(more, _)| more != name));
        let own: Vec<_> = own
            .map(|(name, value)| (name.as_str(), Document::of(value)))
            .collect();
        Document::object(own.into_iter().chain(more.drain(..)))
    }
}

impl From<Json> for Document {
    fn from(value: Json) -> Self {
        Self(vec![Part::Secret(value.0)])
    }
}

/// As a JSON string.
impl From<&Token> for Document {
    #[expect(clippy::disallowed_methods, reason = "a token is handed out here")]
    fn from(token: &Token) -> Self {
        Self::secret(&token.0.expose())
    }
}

impl From<Json> for Secret<Vec<u8>> {
    fn from(value: Json) -> Self {
        value.0
    }
}

struct Handed(Secret<Vec<u8>>);

impl AsRef<[u8]> for Handed {
    #[expect(clippy::disallowed_methods, reason = "an answer is sent from here")]
    fn as_ref(&self) -> &[u8] {
        self.0.expose()
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Document")
    }
}

/// `value` as JSON, written once to know how long it is, and once to where it stays.
fn written(value: &impl Serialize) -> Secret<Vec<u8>> {
    struct Length(usize);
    impl io::Write for Length {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut length = Length(0);
    serde_json::to_writer(&mut length, value).expect("answers have text keys");
    Secret::filled(length.0, |room| {
        serde_json::to_writer(room, value).map(|()| length.0)
    })
    .expect("it is as long as it was")
}

/// How deeply objects and arrays are nested in a JSON text; of any other text, some number.
fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => (),
        }
    }
    deepest
}

/// A secret that had to be taken apart. Its texts are zeroed when it is dropped.
struct Tree(Value);

impl Drop for Tree {
    fn drop(&mut self) {
        self.0.zeroize_strings();
    }
}

trait ZeroizeStrings {
    fn zeroize_strings(&mut self);
}

impl ZeroizeStrings for Value {
    fn zeroize_strings(&mut self) {
        match self {
            Self::String(text) => text.zeroize(),
            Self::Array(values) => values.iter_mut().for_each(Self::zeroize_strings),
            Self::Object(members) => members.values_mut().for_each(Self::zeroize_strings),
            Self::Number(_) | Self::Bool(_) | Self::Null => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn json(text: &str) -> Result<Json, Misread> {
        Json::new(Secret::new(text.as_bytes().to_vec()))
    }

    fn text(document: Document) -> String {
        String::from_utf8(document.into_body().to_vec()).unwrap()
    }

    #[test]
    fn a_secret_goes_out_as_it_came_in() {
        #[derive(Deserialize)]
        struct Write {
            data: Json,
            options: Option<Value>,
        }
        let odd = r#"{"b" : 1.50, "a":"é\u0041" ,"n":123456789012345678901234567890}"#;
        let body = json(&format!(r#"{{"options":{{"cas":1}},"data":{odd}}}"#)).unwrap();
        let write: Write = body.read().unwrap();
        assert_eq!(write.options, Some(json!({"cas": 1})));
        assert!(write.data.is_object());
        let answer = Document::object([
            ("data", write.data.into()),
            ("metadata", Document::of(&json!({"version": 1}))),
        ]);
        assert_eq!(
            text(answer),
            format!(r#"{{"data":{odd},"metadata":{{"version":1}}}}"#)
        );
    }

    #[test]
    fn documents_without_members_are_json_too() {
        assert_eq!(text(Document::object([])), "{}");
        assert_eq!(text(Document::array([])), "[]");
        let two = Document::array([Document::of(&1), Document::secret(&"a\"b")]);
        assert_eq!(text(two), r#"[1,"a\"b"]"#);
        let nested = Document::object([("a\"", Document::array([Document::of(&1)]))]);
        assert!(nested.into_secret().matches(br#"{"a\"":[1]}"#));
    }

    #[test]
    fn errors_say_where_and_not_what() {
        #[derive(Debug, Deserialize)]
        #[expect(dead_code, reason = "it is about what does not fit")]
        struct Login {
            role_id: u32,
        }
        let error = json("{\"a\":\n s3cret}").map(|_| ()).unwrap_err();
        assert_eq!(error, Misread::Syntax { line: 2, column: 2 });
        let wrong = json(r#"{"role_id":"s3cret"}"#).unwrap();
        let error = wrong.read::<Login>().unwrap_err().to_string();
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn deep_nesting_is_refused_and_brackets_in_strings_are_not_nesting() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(json(&nested(MAX_DEPTH)).is_ok());
        let deeper = json(&nested(MAX_DEPTH + 1)).map(|_| ());
        assert_eq!(deeper, Err(Misread::TooDeep));
        let flat = format!(r#"["\"{}"]"#, "[".repeat(MAX_DEPTH));
        assert!(json(&flat).is_ok());
    }

    #[test]
    fn a_patch_is_merged_as_rfc_7396_has_it() {
        // Appendix A of the RFC, and one of its longer examples.
        for (original, patch, result) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, r#"{}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (
                r#"{"a":{"b":"c"}}"#,
                r#"{"a":{"b":"d","c":null}}"#,
                r#"{"a":{"b":"d"}}"#,
            ),
            (
                r#"{"a":"foo"}"#,
                r#"{"b":{"c":null}}"#,
                r#"{"a":"foo","b":{}}"#,
            ),
            (r#"{"a":[1]}"#, r#"[2]"#, r#"[2]"#),
        ] {
            let merged = json(original).unwrap().merged(&json(patch).unwrap());
            assert_eq!(text(merged.unwrap().into()), result, "{original} {patch}");
        }
    }

    #[test]
    fn subkeys_show_names_and_no_values() {
        let secret = json(r#"{"a":{"b":{"c":"s3cret"}},"d":[{"e":1}]}"#).unwrap();
        let all = json!({"a": {"b": {"c": null}}, "d": null});
        assert_eq!(secret.subkeys(0).unwrap(), all);
        assert_eq!(secret.subkeys(1).unwrap(), json!({"a": null, "d": null}));
    }

    #[test]
    fn plaintext_is_base64_both_ways() {
        let read = json(r#""aGkgaHZhYw==""#).unwrap().read::<Plaintext>();
        let plaintext = read.unwrap();
        assert!(plaintext.0.matches(b"hi hvac"));
        assert_eq!(text(plaintext.document()), r#""aGkgaHZhYw==""#);
        for wrong in [r#""%""#, "1", r#""aGk""#] {
            assert!(json(wrong).unwrap().read::<Plaintext>().is_err());
        }
        let empty = json(r#""""#).unwrap().read::<Plaintext>().unwrap();
        assert_eq!(text(empty.document()), r#""""#);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, text in r#"[\[\]{}":,\\a0 ]{0,64}"#) {
            for bytes in [bytes, text.into_bytes()] {
                if let Ok(value) = Json::new(Secret::new(bytes)) {
                    let _ = (value.subkeys(0), value.read::<Plaintext>().is_ok());
                    prop_assert!(value.merged(&value).is_ok());
                }
            }
        }
    }
}
