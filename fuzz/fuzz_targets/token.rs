//! A token's outside is read or refused; claims that were understood survive their JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{from_slice, to_vec};
use wavry_proto::token::{self, KeyId, NodeRequest, Registration, Session};

macro_rules! survives {
    ($data:ident, $($claims:ty),*) => {$(
        if let Ok(claims) = from_slice::<$claims>($data) {
            let text = to_vec(&claims).expect("what was read can be written");
            assert_eq!(from_slice::<$claims>(&text).expect("and read again"), claims);
        }
    )*};
}

fuzz_target!(|data: &[u8]| {
    survives!(data, Registration, Session, NodeRequest);
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(key) = text.parse::<KeyId>() {
        assert_eq!(key.to_string(), text);
    }
    if let Ok(token) = token::parse(text) {
        assert!(text.starts_with("v4.public."));
        assert_eq!(token.key.to_string().parse(), Ok(token.key));
    }
});
