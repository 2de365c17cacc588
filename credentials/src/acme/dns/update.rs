//! Changes of a zone, signed (RFC 2136, RFC 8945).

use std::net::SocketAddr;

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata::TXT},
};

use super::{Change, Error, exchange};
use crate::{clock::unix_time, key::tsig::Key, random};

/// How long others may remember a record, in seconds.
const TTL: u32 = 60;

/// Adds a text to those of a name, or takes it away; others of the same name stay (RFC 2136, sections 2.5.1 and 2.5.4).
pub(super) async fn update(
    server: SocketAddr,
    key: &Key,
    zone: &Name,
    change: Change,
    name: &Name,
    value: &str,
) -> Result<(), Error> {
    let malformed = |_| Error::Malformed(server);
    let mut message = message(zone, change, name, value);
    let asked = key.sign(&mut message, unix_time()).map_err(malformed)?;
    let (bytes, answer) = exchange::send(server, &message).await?;
    key.verify(&bytes, &asked, unix_time())
        .map_err(|problem| Error::Unverified(server, Box::new(problem)))?;
    match answer.metadata.response_code {
        ResponseCode::NoError => Ok(()),
        code => Err(Error::Refused(server, code)),
    }
}

fn message(zone: &Name, change: Change, name: &Name, value: &str) -> Message {
    let id = u16::from_le_bytes(random::bytes());
    let mut message = Message::new(id, MessageType::Query, OpCode::Update);
    // The sections of an update are those of a query by other names (RFC 2136, section 2.2).
    message.add_query(Query::query(zone.clone(), RecordType::SOA));
    let text = RData::TXT(TXT::new(vec![value.to_owned()]));
    let mut record = Record::from_rdata(name.clone(), TTL, text);
    if change == Change::Remove {
        (record.dns_class, record.ttl) = (DNSClass::NONE, 0);
    }
    message.add_authority(record);
    message
}
