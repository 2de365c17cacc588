//! An integer that was read is written in no more bytes, and read again as itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wavry_proto::varint;

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    if let Some(value) = varint::get(&mut rest) {
        let mut shortest = Vec::new();
        varint::put(&mut shortest, value);
        assert!(shortest.len() <= data.len() - rest.len());
        assert_eq!(varint::get(&mut &shortest[..]), Some(value));
    } else {
        assert_eq!(
            rest.len(),
            data.len(),
            "nothing is taken of what is not there"
        );
    }
});
