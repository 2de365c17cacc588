//! Whatever a DNS server sends, it is read within bounds, or it is no answer; and what is taken from it is about what was
//! asked.
#![no_main]

use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RecordType, rdata::tsig::signed_bitmessage_to_buf},
};
use libfuzzer_sys::fuzz_target;

// The file itself, so that the target builds without all that has to do with certificates.
#[path = "../../credentials/src/acme/dns/answer.rs"]
mod answer;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, bytes)) = data.split_first() else {
        return;
    };
    let kinds = [
        RecordType::CNAME,
        RecordType::SOA,
        RecordType::NS,
        RecordType::A,
        RecordType::TXT,
    ];
    let name = Name::from_ascii("_acme-challenge.a.example.").expect("a name");
    let mut request = Message::query();
    // That of the answer: the rest would never be reached otherwise.
    if let Some(id) = bytes.first_chunk() {
        request.metadata.id = u16::from_be_bytes(*id);
    }
    request.add_query(Query::query(
        name.clone(),
        kinds[usize::from(kind) % kinds.len()],
    ));
    if let Some(told) = answer::read(bytes, &request) {
        assert_eq!(told.metadata.id, request.metadata.id);
        assert!(told.queries.is_empty() || told.queries == request.queries);
        let records = told.answers.len();
        assert!(answer::servers(&told, &name).count() <= records);
        assert!(answer::addresses(&told).count() <= records);
        let alias = answer::alias(&told, &name);
        assert!(records > 0 || alias.is_none() && !answer::has_text(&told, &name, "value"));
        if let Some(zone) = answer::zone(&told, &name) {
            assert!(zone.zone_of(&name) && !zone.is_root());
        }
        // What is computed over, before a signature is looked at; of what was read alone, as hickory adds the counts of
        // whatever else it is given beyond what their type holds.
        if let Ok((signed, _)) = signed_bitmessage_to_buf(bytes, Some(b"mac"), true) {
            // What was asked's signature with its length, and what the record says beside its own.
            assert!(signed.len() <= bytes.len() + 2 * 255 + 64);
        }
    }
});
