//! A policy that was accepted is within its bounds and reads the same with a line more; one that was refused
//! says where, within the text.
#![no_main]
#![expect(dead_code, reason = "the KeyVault uses more of these files")]

use libfuzzer_sys::fuzz_target;

// The files themselves, as they know each other, so that the target builds without the master.
#[path = "../../master/src/keyvault/policy/pattern.rs"]
mod pattern;
#[path = "../../master/src/keyvault/policy/read.rs"]
mod read;
#[path = "../../master/src/keyvault/policy/rule.rs"]
mod rule;
#[path = "../../master/src/keyvault/ttl.rs"]
mod ttl;
mod keyvault {
    pub(crate) use crate::ttl;
}

use rule::{CAPABILITIES, Capability, Grant, MAX_RULES, MAX_TEXT, Policy, Rule};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match read::read(text) {
        Ok(policy) => {
            assert!(text.len() <= MAX_TEXT && policy.rules.len() <= MAX_RULES);
            if text.len() < MAX_TEXT {
                assert_eq!(read::read(&format!("{text}\n")), Ok(policy));
            }
        }
        Err(malformed) => {
            assert!(malformed.line >= 1 && malformed.column >= 1);
            assert!(malformed.line <= text.lines().count() + 1, "{malformed}");
        }
    }
});
