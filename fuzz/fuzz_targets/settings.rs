//! Settings that were accepted are written as they were read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wavry_proto::h3::settings::Settings;

fuzz_target!(|data: &[u8]| {
    let Ok(settings) = Settings::decode(data) else {
        return;
    };
    let mut payload = Vec::new();
    settings.encode(&mut payload);
    assert_eq!(Settings::decode(&payload), Ok(settings));
});
