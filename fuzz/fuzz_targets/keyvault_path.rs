//! A path that was accepted reads the same however often it is read, and goes nowhere but down.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// The file itself, so that the target builds without the master.
#[path = "../../master/src/keyvault/path.rs"]
#[expect(dead_code, reason = "the KeyVault uses more of it")]
mod path;

use path::{Canonical, MAX_PATH};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(path) = Canonical::parse(text) else {
        return;
    };
    assert!(path.as_str().len() <= MAX_PATH);
    assert!(path.segments().all(|segment| !segment.is_empty() && !segment.ends_with('.')));
    assert!(!path.as_str().contains(['%', '\\']) && !path.as_str().chars().any(char::is_control));
    assert_eq!(Canonical::parse(path.as_str()).as_ref(), Ok(&path));
});
