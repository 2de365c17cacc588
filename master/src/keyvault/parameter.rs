//! Parameters in the forms that Vault's clients write them in.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Unexpected, Visitor},
};

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
                let texts = text
                    .split(',')
                    .map(str::trim)
                    .filter(|text| !text.is_empty());
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
pub(super) struct Facts(pub BTreeMap<String, String>);

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
        let long =
            |(name, value): (&String, &String)| name.len() > MAX_FACT || value.len() > MAX_FACT;
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
        fn arbitrary_texts_never_panic(text: String) {
            let _ = from_value::<Facts>(json!(text));
            let _ = from_value::<Texts>(json!(text));
        }
    }
}
