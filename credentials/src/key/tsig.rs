//! Keys that sign changes of the DNS (TSIG, RFC 8945).

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hickory_proto::{
    ProtoError,
    op::Message,
    rr::{
        DNSClass, Name,
        rdata::tsig::{
            TSIG, TsigAlgorithm, TsigError, make_tsig_record, message_tbs, signed_bitmessage_to_buf,
        },
    },
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::format::{Fault, fault};
use crate::secret::Secret;

/// How far the clocks of both sides may be apart, in seconds (RFC 8945, section 10).
const FUDGE: u16 = 300;

/// What a key signs with: those that a server must or should know (RFC 8945, section 6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    #[default]
    #[serde(rename = "hmac-sha256")]
    Sha256,
    /// HMAC with SHA-384.
    #[serde(rename = "hmac-sha384")]
    Sha384,
    /// HMAC with SHA-512.
    #[serde(rename = "hmac-sha512")]
    Sha512,
}

/// Why an answer is not acted on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unverified {
    #[error(
        "the server does not take the signature of key {0} ({1}): it has no such key, or another one"
    )]
    Refused(Name, &'static str),
    #[error("the server's clock and the one here differ by more than {FUDGE} s")]
    Clock,
    #[error("its answer is not signed with the key")]
    Forged,
}

/// A key that a server knows by its name.
pub(crate) struct Key {
    name: Name,
    algorithm: TsigAlgorithm,
    mac: hmac::Key,
}

impl Key {
    /// Reads a key in base64, as `tsig-keygen` writes it.
    #[expect(clippy::disallowed_methods, reason = "a key is read here")]
    pub(crate) fn read(
        text: &Secret<Vec<u8>>,
        name: Name,
        algorithm: Algorithm,
    ) -> Result<Self, Fault> {
        let bytes = text.expose();
        let key = STANDARD.decode(bytes.trim_ascii()).map(Zeroizing::new).ok();
        let key = key.filter(|key| (16..=512).contains(&key.len()));
        let key = key.ok_or_else(|| fault(bytes, 0, "16 bytes or more in base64"))?;
        let (algorithm, with) = match algorithm {
            Algorithm::Sha256 => (TsigAlgorithm::HmacSha256, hmac::HMAC_SHA256),
            Algorithm::Sha384 => (TsigAlgorithm::HmacSha384, hmac::HMAC_SHA384),
            Algorithm::Sha512 => (TsigAlgorithm::HmacSha512, hmac::HMAC_SHA512),
        };
        Ok(Self {
            name,
            algorithm,
            mac: hmac::Key::new(with, &key),
        })
    }

    /// Signs `message` at `now`, in seconds since the Unix epoch. Gives the signature, to which that of the answer
    /// belongs.
    pub(crate) fn sign(&self, message: &mut Message, now: u64) -> Result<Vec<u8>, ProtoError> {
        let id = message.metadata.id;
        let algorithm = self.algorithm.clone();
        let unsigned = TSIG::new(algorithm, now, FUDGE, Vec::new(), id, None, Vec::new());
        let signed = message_tbs(message, &unsigned, &self.name)?;
        let mac = hmac::sign(&self.mac, &signed).as_ref().to_vec();
        let record = make_tsig_record(self.name.clone(), unsigned.set_mac(mac.clone()));
        message.set_signature(Box::new(record));
        Ok(mac)
    }

    /// Whether `answer`, which was read as a message, is that of a server with the key to the message whose signature
    /// is `asked` (RFC 8945, section 5.4). Truncated signatures are not taken.
    pub(crate) fn verify(&self, answer: &[u8], asked: &[u8], now: u64) -> Result<(), Unverified> {
        let (signed, record) =
            signed_bitmessage_to_buf(answer, Some(asked), true).map_err(|_| Unverified::Forged)?;
        let tsig = &record.data;
        // Both are sent without a signature (RFC 8945, section 5.3.2): there is none that both sides know.
        let refused = |code| Err(Unverified::Refused(self.name.clone(), code));
        match tsig.error {
            Some(TsigError::BadKey) => return refused("BADKEY"),
            Some(TsigError::BadSig) => return refused("BADSIG"),
            _ => {}
        }
        let is_in_form = record.dns_class == DNSClass::ANY && record.ttl == 0;
        if record.name != self.name || tsig.algorithm != self.algorithm || !is_in_form {
            return Err(Unverified::Forged);
        }
        hmac::verify(&self.mac, &signed, &tsig.mac).map_err(|_| Unverified::Forged)?;
        match tsig.error.is_none() && tsig.time.abs_diff(now) <= FUDGE.into() {
            true => Ok(()),
            false => Err(Unverified::Clock),
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::{op::OpCode, serialize::binary::BinEncodable as _};
    use proptest::prelude::*;

    use super::*;

    fn key(name: &str, text: &str) -> Key {
        let text = Secret::new(text.as_bytes().to_vec());
        Key::read(&text, Name::from_ascii(name).unwrap(), Algorithm::Sha384).unwrap()
    }

    fn ours() -> Key {
        key("acme.", "c2l4dGVlbiBieXRlcyBvciBtb3JlIQ==\n")
    }

    /// The answer of a server with `key` at `now` to a message whose signature was `asked`. The library signs no
    /// answers in this form, so that the test does.
    fn answer(key: &Key, asked: &[u8], now: u64) -> Vec<u8> {
        let mut message = Message::response(7, OpCode::Update);
        let algorithm = key.algorithm.clone();
        let unsigned = TSIG::new(algorithm, now, FUDGE, Vec::new(), 7, None, Vec::new());
        let mut signed = u16::try_from(asked.len()).unwrap().to_be_bytes().to_vec();
        signed.extend(asked);
        signed.extend(message_tbs(&message, &unsigned, &key.name).unwrap());
        let mac = hmac::sign(&key.mac, &signed).as_ref().to_vec();
        let record = make_tsig_record(key.name.clone(), unsigned.set_mac(mac));
        message.set_signature(Box::new(record));
        message.to_bytes().unwrap()
    }

    #[test]
    fn an_answer_is_taken_from_who_has_the_key_and_was_asked_now() {
        let ours = ours();
        let good = answer(&ours, b"mac", 1_000_000);
        assert_eq!(ours.verify(&good, b"mac", 1_000_300), Ok(()));
        assert_eq!(
            ours.verify(&good, b"mac", 1_000_301),
            Err(Unverified::Clock)
        );
        assert_eq!(ours.verify(&good, b"mac", 999_699), Err(Unverified::Clock));
        let forged = Err(Unverified::Forged);
        assert_eq!(ours.verify(&good, b"another", 1_000_000), forged);
        let other = answer(
            &key("acme.", "YW5vdGhlciBzaXh0ZWVuIGJ5dGVz"),
            b"mac",
            1_000_000,
        );
        assert_eq!(ours.verify(&other, b"mac", 1_000_000), forged);
        let other = answer(
            &key("other.", "c2l4dGVlbiBieXRlcyBvciBtb3JlIQ=="),
            b"mac",
            1_000_000,
        );
        assert_eq!(ours.verify(&other, b"mac", 1_000_000), forged);
        let unsigned = Message::response(7, OpCode::Update).to_bytes().unwrap();
        assert_eq!(ours.verify(&unsigned, b"mac", 1_000_000), forged);
        for at in 0..good.len() {
            let mut changed = good.clone();
            changed[at] ^= 1;
            // The id is the one thing that the signature says itself.
            assert!(
                at < 2 || ours.verify(&changed, b"mac", 1_000_000).is_err(),
                "{at}"
            );
        }
    }

    #[test]
    fn a_key_is_base64_of_some_length() {
        let read = |text: &str| {
            let text = Secret::new(text.as_bytes().to_vec());
            Key::read(&text, Name::root(), Algorithm::Sha256).is_ok()
        };
        assert!(read("c2l4dGVlbiBieXRlcyBvciBtb3JlIQ=="));
        for text in ["", "c2hvcnQ=", "not base64, at all!!!!!!!!!!!!!!!!!"] {
            assert!(!read(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_answers_are_refused(bytes: Vec<u8>) {
            prop_assert!(ours().verify(&bytes, b"mac", 0).is_err());
        }
    }
}
