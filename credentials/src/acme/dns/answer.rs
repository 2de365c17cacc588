//! What the answers of DNS servers say. Pure: bytes in, and the names, addresses and texts that are in them.

use std::net::IpAddr;

use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{Name, RData, RecordType},
};

/// What `bytes` say, if they answer `request`. A refusal may leave the question out.
pub(super) fn read(bytes: &[u8], request: &Message) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let (head, asked) = (&answer.metadata, &request.metadata);
    let is_answer = head.id == asked.id
        && head.message_type == MessageType::Response
        && head.op_code == asked.op_code
        && (answer.queries == request.queries
            || answer.queries.is_empty() && head.response_code != ResponseCode::NoError
            || head.op_code == OpCode::Update);
    is_answer.then_some(answer)
}

/// Where `name` leads by CNAME.
pub(super) fn alias(answer: &Message, name: &Name) -> Option<Name> {
    answer.answers.iter().find_map(|record| match &record.data {
        RData::CNAME(target) if record.name == *name => Some(target.0.clone()),
        _ => None,
    })
}

/// The zone that `asked` is in, where the answer tells. Where there is no record at the name, it says which zone there is
/// none in. The root is nobody's to change.
pub(super) fn zone(answer: &Message, asked: &Name) -> Option<Name> {
    let mut records = answer.answers.iter().chain(&answer.authorities);
    let start = records
        .find(|record| record.record_type() == RecordType::SOA && record.name.zone_of(asked));
    let start = start.filter(|start| !start.name.is_root());
    start.map(|start| start.name.clone())
}

/// The names of the servers of `zone`.
pub(super) fn servers<'a>(answer: &'a Message, zone: &'a Name) -> impl Iterator<Item = Name> + 'a {
    answer
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::NS(name) if record.name == *zone => Some(name.0.clone()),
            _ => None,
        })
}

/// The addresses in an answer, whose name was asked for or is where that leads.
pub(super) fn addresses(answer: &Message) -> impl Iterator<Item = IpAddr> {
    answer
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(IpAddr::from(address.0)),
            RData::AAAA(address) => Some(IpAddr::from(address.0)),
            _ => None,
        })
}

/// Whether `value` is among the texts of `name`.
pub(super) fn has_text(answer: &Message, name: &Name, value: &str) -> bool {
    answer.answers.iter().any(|record| match &record.data {
        RData::TXT(text) => record.name == *name && text.txt_data.concat() == value.as_bytes(),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::Query,
        rr::{
            Record,
            rdata::{A, CNAME, NS, SOA, TXT},
        },
        serialize::binary::BinEncodable as _,
    };
    use proptest::prelude::*;

    use super::*;

    const NAME: &str = "_acme-challenge.gateway.example.";

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn request() -> Message {
        let mut request = Message::query();
        request.add_query(Query::query(name(NAME), RecordType::TXT));
        request
    }

    /// An answer to `request` with a record of each kind that is looked for.
    fn full(request: &Message) -> Message {
        let mut answer = Message::response(request.metadata.id, OpCode::Query);
        answer.add_queries(request.queries.iter().cloned());
        let soa = SOA::new(name("ns1.example."), name("o.example."), 1, 60, 60, 60, 60);
        for (at, data) in [
            (NAME, RData::CNAME(CNAME(name("a.validation.example.")))),
            ("example.", RData::SOA(soa)),
            ("example.", RData::NS(NS(name("ns1.example.")))),
            ("ns1.example.", RData::A(A::new(192, 0, 2, 1))),
            (NAME, RData::TXT(TXT::from_bytes(vec![b"va", b"lue"]))),
        ] {
            answer.add_answer(Record::from_rdata(name(at), 60, data));
        }
        answer
    }

    #[test]
    fn an_answer_has_the_id_and_the_question_of_what_was_asked() {
        let request = request();
        let mut answer = Message::response(request.metadata.id, OpCode::Query);
        let is_read = |answer: &Message| read(&answer.to_bytes().unwrap(), &request).is_some();
        assert!(!is_read(&answer), "no question");
        answer.metadata.response_code = ResponseCode::Refused;
        assert!(is_read(&answer));
        answer.metadata.response_code = ResponseCode::NoError;
        answer.add_queries(request.queries.iter().cloned());
        assert!(is_read(&answer));
        assert!(!is_read(&request), "what was asked is no answer");
        answer.queries[0].query_type = RecordType::A;
        assert!(!is_read(&answer));
        let mut other = Message::response(request.metadata.id.wrapping_add(1), OpCode::Query);
        other.add_queries(request.queries.iter().cloned());
        assert!(!is_read(&other));
    }

    #[test]
    fn what_is_looked_for_is_taken_from_records_of_the_name_alone() {
        let request = request();
        let answer = read(&full(&request).to_bytes().unwrap(), &request).unwrap();
        let (at, example) = (name(NAME), name("example."));
        assert_eq!(alias(&answer, &at), Some(name("a.validation.example.")));
        assert_eq!(alias(&answer, &example), None);
        assert_eq!(zone(&answer, &at), Some(example.clone()));
        assert_eq!(zone(&answer, &name("other.test.")), None);
        let of = |zone: &Name| servers(&answer, zone).collect::<Vec<_>>();
        assert_eq!(of(&example), [name("ns1.example.")]);
        assert!(of(&at).is_empty());
        assert_eq!(addresses(&answer).count(), 1);
        assert!(has_text(&answer, &at, "value"));
        assert!(!has_text(&answer, &at, "val") && !has_text(&answer, &example, "value"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_answer(bytes: Vec<u8>) {
            prop_assert!(read(&bytes, &request()).is_none());
        }

        #[test]
        fn an_answer_that_was_changed_or_cut_is_read_or_not_and_nothing_breaks(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            length in any::<prop::sample::Index>(),
        ) {
            let request = request();
            let mut bytes = full(&request).to_bytes().unwrap();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(length.index(bytes.len() + 1));
            if let Some(answer) = read(&bytes, &request) {
                prop_assert_eq!(answer.metadata.id, request.metadata.id);
                let asked = name(NAME);
                if let Some(zone) = zone(&answer, &asked) {
                    prop_assert!(zone.zone_of(&asked) && !zone.is_root());
                }
                let _ = (alias(&answer, &asked), has_text(&answer, &asked, "value"));
                prop_assert!(addresses(&answer).count() <= answer.answers.len());
                prop_assert!(servers(&answer, &asked).count() <= answer.answers.len());
            }
        }
    }
}
