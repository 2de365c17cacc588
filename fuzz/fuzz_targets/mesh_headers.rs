//! A mesh stream or datagram header that is understood is written as no more bytes than it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wavry_proto::mesh::header::{
    StreamHeader, get_datagram, put_datagram, reset_code, split_reset_code,
};

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    if let Ok(Some(header)) = StreamHeader::get(&mut rest) {
        let mut again = Vec::new();
        header.put(&mut again);
        assert!(again.len() <= data.len() - rest.len());
        assert_eq!(StreamHeader::get(&mut &again[..]), Ok(Some(header)));
    }
    let mut rest = data;
    if let Some(id) = get_datagram(&mut rest) {
        let mut again = Vec::new();
        put_datagram(&mut again, id);
        assert!(again.len() <= data.len() - rest.len());
    }
    if let Some(code) = data.first_chunk() {
        let code = u64::from_be_bytes(*code);
        if let Some((id, application)) = split_reset_code(code) {
            assert_eq!(reset_code(id, application), code);
        }
    }
});
