//! A name or key that was accepted is well-formed and survives its text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wavry_proto::id::{MAX_NAME_LEN, PublicKey, ServiceName};

fuzz_target!(|data: &[u8]| {
    if let Some(key) = PublicKey::from_spki(data) {
        assert_eq!(key.to_spki(), data);
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(name) = text.parse::<ServiceName>() {
        assert_eq!(name.as_str(), text);
        assert!(text.len() <= MAX_NAME_LEN && text.is_ascii());
    }
    if let Ok(key) = text.parse::<PublicKey>() {
        assert_eq!(key.to_string(), text.to_ascii_lowercase());
    }
});
