//! Claims that were understood are written as JSON that is understood the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{from_slice, to_vec};
use wavry_proto::token::{NodeRequest, Registration, Session};

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
});
