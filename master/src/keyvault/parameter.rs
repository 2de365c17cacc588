//! Parameters in the forms that Vault's clients write them in.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, SeqAccess, Unexpected, Visitor},
};

/// A time span in whole seconds: a number, or a text like `90`, `90s`, `15m`, `1h30m`, `7d`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Seconds(pub u64);

/// Longest time span that is taken: 100 years of 365 days.
pub const MAX_SECONDS: u64 = 100 * 365 * 24 * 3600;

impl Seconds {
    /// Reads a text. Parts of a second are cut off.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.is_empty() {
            return Some(Self(0));
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Self::bounded(text.parse().ok()?);
        }
        let mut milliseconds = 0_u64;
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit())?;
            let (number, after) = rest.split_at(digits);
            let end = after.find(|c: char| c.is_ascii_digit());
            let (unit, after) = after.split_at(end.unwrap_or(after.len()));
            let unit = match unit {
                "ms" => 1,
                "s" => 1000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return None,
            };
            let part = number.parse::<u64>().ok()?.checked_mul(unit)?;
            milliseconds = milliseconds.checked_add(part)?;
            rest = after;
        }
        Self::bounded(milliseconds / 1000)
    }

    fn bounded(seconds: u64) -> Option<Self> {
        (seconds <= MAX_SECONDS).then_some(Self(seconds))
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Seconds;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("seconds, or a text like 15m")
            }
            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Seconds, E> {
                let wrong = || E::invalid_value(Unexpected::Other("too long"), &self);
                Seconds::bounded(seconds).ok_or_else(wrong)
            }
            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Seconds, E> {
                let wrong = |_| E::invalid_value(Unexpected::Other("negative"), &self);
                self.visit_u64(seconds.try_into().map_err(wrong)?)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Seconds, E> {
                let wrong = || E::invalid_value(Unexpected::Other("another text"), &self);
                Seconds::parse(text).ok_or_else(wrong)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// Texts: an array, or one text with commas between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts(pub Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Texts;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of texts, or a text with commas")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Texts, E> {
                let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
                Ok(Texts(texts.map(str::to_owned).collect()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = seq.next_element()? {
                    texts.push(text);
                }
                Ok(Texts(texts))
            }
            fn visit_unit<E: de::Error>(self) -> Result<Texts, E> {
                Ok(Texts::default())
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// Facts by name: an object of texts, or the JSON of one as a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts(pub BTreeMap<String, String>);

/// Most facts, and the longest name and value of one in bytes.
const MAX_FACTS: usize = 64;
const MAX_FACT: usize = 512;

impl<'de> Deserialize<'de> for Facts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Object(BTreeMap<String, String>),
            Text(String),
            Nothing(()),
        }
        let wrong = |what| de::Error::invalid_value(Unexpected::Other(what), &"an object of texts");
        let facts = match Either::deserialize(deserializer).map_err(|_| wrong("another value"))? {
            Either::Object(facts) => facts,
            Either::Text(text) if text.is_empty() => BTreeMap::new(),
            Either::Text(text) => serde_json::from_str(&text).map_err(|_| wrong("another text"))?,
            Either::Nothing(()) => BTreeMap::new(),
        };
        let long = |(name, value): (&String, &String)| name.len() > MAX_FACT || value.len() > MAX_FACT;
        if facts.len() > MAX_FACTS || facts.iter().any(long) {
            return Err(wrong("too many or too long facts"));
        }
        Ok(Self(facts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{from_value, json};

    #[test]
    fn time_spans_are_read_as_vault_reads_them() {
        for (written, seconds) in [
            (json!(300), 300),
            (json!("300"), 300),
            (json!("5m"), 300),
            (json!("1h30m"), 5400),
            (json!("7d"), 604_800),
            (json!("1500ms"), 1),
            (json!(""), 0),
        ] {
            assert_eq!(from_value::<Seconds>(written.clone()).unwrap().0, seconds, "{written}");
        }
        for wrong in [json!(-1), json!("5"[..0].to_owned() + "x"), json!("5y"), json!("m"), json!(1.5), json!([])] {
            assert!(from_value::<Seconds>(wrong.clone()).is_err(), "{wrong}");
        }
        assert!(from_value::<Seconds>(json!(u64::MAX)).is_err());
        assert!(from_value::<Seconds>(json!("18446744073709551615h")).is_err());
    }

    #[test]
    fn lists_and_facts_come_in_two_forms_each() {
        let texts = |value| from_value::<Texts>(value).unwrap().0;
        assert_eq!(texts(json!(["a", "b"])), ["a", "b"]);
        assert_eq!(texts(json!("a, b,")), ["a", "b"]);
        assert!(texts(json!("")).is_empty());
        let facts = |value| from_value::<Facts>(value).map(|facts| facts.0.get("a").cloned());
        assert_eq!(facts(json!({"a": "1"})).unwrap().as_deref(), Some("1"));
        assert_eq!(facts(json!(r#"{"a": "1"}"#)).unwrap().as_deref(), Some("1"));
        assert!(facts(json!("{")).is_err());
        assert!(facts(json!({"a": "x".repeat(MAX_FACT + 1)})).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_texts_never_panic(text in ".{0,32}|[0-9smhd]{0,24}") {
            let _ = Seconds::parse(&text);
            let _ = from_value::<Facts>(json!(text));
            let _ = from_value::<Texts>(json!(text));
        }

        #[test]
        fn a_number_of_seconds_is_read_back(seconds in 0..=MAX_SECONDS) {
            prop_assert_eq!(Seconds::parse(&format!("{seconds}s")), Some(Seconds(seconds)));
        }
    }
}
