//! A control message that was understood is written as JSON that is understood the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{from_slice, to_vec};
use wavry_proto::control::{
    Challenge, Heard, Heartbeat, Register, Registered, Roster, Rotate, Rotating,
};

macro_rules! survives {
    ($data:ident, $($message:ty),*) => {$(
        if let Ok(message) = from_slice::<$message>($data) {
            let text = to_vec(&message).expect("what was read can be written");
            assert_eq!(from_slice::<$message>(&text).expect("and read again"), message);
        }
    )*};
}

fuzz_target!(|data: &[u8]| {
    survives!(
        data, Challenge, Register, Registered, Heartbeat, Heard, Rotate, Rotating, Roster
    );
    if let Ok(roster) = from_slice::<Roster>(data) {
        for service in &roster.services {
            for exit in roster.exits(&service.name) {
                assert!(exit.services.contains(&service.name));
            }
        }
    }
});
