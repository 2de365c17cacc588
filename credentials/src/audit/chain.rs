//! Lines, each bound to the one before it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Event, MAX_TEXT};
use crate::redact;

/// Separates these hashes from all others.
const CONTEXT: &[u8] = b"wavry audit line 1\n";
/// What stands between an event and the hash of its line.
const HASH_START: &str = ",\"hash\":\"";
const HASH_END: &str = "\"}";

/// How far a log goes: number and hash of its newest line. The default is that of an empty log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// From 1; 0 of an empty log.
    pub seq: u64,
    /// SHA-256 of the line.
    pub hash: [u8; 32],
}

impl Head {
    /// The line for `event` after this head, without its end, and the head it makes.
    pub fn follow(&self, event: &Event) -> (Self, String) {
        let linked = Linked {
            seq: self.seq + 1,
            prev: hex::encode(self.hash),
            event: presentable(event),
        };
        let mut text = serde_json::to_string(&linked).expect("an event is plain data");
        // The end is put back behind the hash.
        text.pop();
        let hash = digest(text.as_bytes());
        text.extend([HASH_START, &hex::encode(hash), HASH_END]);
        let head = Self {
            seq: linked.seq,
            hash,
        };
        (head, text)
    }
}

/// A line that was read, and whose own hash is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its number and hash.
    pub head: Head,
    /// Hash of the line before.
    pub prev: [u8; 32],
    /// What it tells.
    pub event: Event,
}

/// Why a text is no line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedLine {
    /// Not the shape of one.
    #[error("is not a line of an audit log")]
    Shape,
    /// Its hash is another's.
    #[error("was changed: its hash does not fit it")]
    Hash,
}

impl Line {
    /// Reads a line without its end.
    pub fn read(text: &str) -> Result<Self, MalformedLine> {
        let shape = MalformedLine::Shape;
        let (body, hash) = text
            .strip_suffix(HASH_END)
            .and_then(|text| text.rsplit_once(HASH_START))
            .ok_or(shape)?;
        let hash = bytes(hash).ok_or(shape)?;
        if digest(body.as_bytes()) != hash {
            return Err(MalformedLine::Hash);
        }
        let linked: Linked = serde_json::from_str(&format!("{body}}}")).map_err(|_| shape)?;
        Ok(Self {
            head: Head {
                seq: linked.seq,
                hash,
            },
            prev: bytes(&linked.prev).ok_or(shape)?,
            event: linked.event,
        })
    }
}

/// A line but for its hash.
#[derive(Serialize, Deserialize)]
struct Linked {
    seq: u64,
    prev: String,
    #[serde(flatten)]
    event: Event,
}

/// The event with texts of bounded length, and nothing in them that looks like a secret.
fn presentable(event: &Event) -> Event {
    let mut event = event.clone();
    for text in [
        &mut event.subject,
        &mut event.actor,
        &mut event.path,
        &mut event.outcome,
    ] {
        *text = redact::text(text).into_owned();
        text.truncate(text.floor_char_boundary(MAX_TEXT));
    }
    event
}

fn digest(body: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(CONTEXT)
        .chain_update(body)
        .finalize()
        .into()
}

fn bytes(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(hex, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Action;
    use proptest::prelude::*;

    fn event(subject: &str, secret: Option<String>, unwritten: u64) -> Event {
        Event {
            secret,
            unwritten,
            source: Some(([127, 0, 0, 1], 9).into()),
            ..Event::now(Action::Deny, subject, "/v1/nodes/register")
        }
    }

    #[test]
    fn a_line_reads_as_one_json_object_with_its_number_first_and_its_hash_last() {
        let (_, text) = Head::default().follow(&event("relay-1", None, 0));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["seq"], 1);
        assert_eq!(json["action"], "deny");
        assert_eq!(json["source"], "127.0.0.1:9");
        assert!(text.starts_with("{\"seq\":1,\"prev\":\"0000"), "{text}");
        assert!(json.get("secret").is_none() && json.get("unwritten").is_none());
    }

    #[test]
    fn texts_are_cut_and_what_looks_like_a_secret_is_taken_out() {
        let mut long = event("x", None, 0);
        long.actor = "\u{e4}".repeat(MAX_TEXT);
        long.path = "/a?token=v4.public.s3cret".to_owned();
        let (_, text) = Head::default().follow(&long);
        let event = Line::read(&text).unwrap().event;
        assert_eq!(event.actor.len(), MAX_TEXT);
        assert_eq!(event.path, "/a?token=[redacted]");
    }

    proptest! {
        #[test]
        fn a_line_that_was_made_is_read(
            subject in "[a-z\u{e4}\"\\\\ ]{0,40}",
            secret in prop::option::of("[0-9a-f]{32}"),
            token in prop::option::of("[0-9a-f]{32}"),
            version: Option<u64>,
            unwritten: u64,
            seq in 0..u64::MAX,
            hash: [u8; 32],
        ) {
            let before = Head { seq, hash };
            let event = Event { token, version, ..event(&subject, secret, unwritten) };
            let (head, text) = before.follow(&event);
            prop_assert!(!text.contains('\n'));
            prop_assert_eq!(Line::read(&text), Ok(Line { head, prev: hash, event }));
        }

        #[test]
        fn a_line_of_which_any_byte_was_changed_is_refused(at: prop::sample::Index, bit in 0_u8..7) {
            let (_, text) = Head::default().follow(&event("relay-1", None, 7));
            let mut bytes = text.into_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            // In a hexadecimal digit the bit may only turn its case, which says the same.
            prop_assume!(!(bytes[at].is_ascii_alphabetic() && bit == 5 && at > bytes.len() - 67));
            let text = String::from_utf8(bytes).unwrap();
            prop_assert!(Line::read(&text).is_err());
        }

        #[test]
        fn arbitrary_lines_never_panic(text: String, json in "\\{\"seq\":[0-9]{1,30},\"prev\":\"[0-9a-f]{64}\",\"hash\":\"[0-9a-f]{64}\"\\}") {
            prop_assert!(Line::read(&text).is_err());
            prop_assert!(Line::read(&json).is_err());
        }
    }
}
