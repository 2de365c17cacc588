//! A packet of the overlay that is understood says the same when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wavry_proto::overlay::packet::{Attach, Claim, Header, Probe, Verdict};

fuzz_target!(|data: &[u8]| {
    if let Some((header, rest)) = Header::read(data) {
        assert_eq!(header.to_wire(), data[..data.len() - rest.len()]);
    }
    let mut again = Vec::new();
    if let Ok(read) = Probe::read(data) {
        read.said.write(&mut again, data.len(), |_, tags| tags.extend(&read.tags));
        assert_eq!(Probe::read(&again).map(|read| read.said), Ok(read.said));
    }
    if let Ok(read) = Claim::read(data) {
        read.said.write(&mut again, |_, tags| tags.extend(&read.tags));
        assert_eq!(Claim::read(&again).map(|read| read.said), Ok(read.said));
    }
    if let Ok(read) = Attach::read(data) {
        read.said.write(&mut again, |_, tags| tags.extend(&read.tags));
        assert_eq!(Attach::read(&again).map(|read| read.said), Ok(read.said));
    }
    if let Ok(read) = Verdict::read(data) {
        read.said.write(&mut again, |_, tags| tags.extend(&read.tags));
        assert_eq!(Verdict::read(&again).map(|read| read.said), Ok(read.said));
    }
});
