//! Where a record has to be, and whether everybody can see it.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_proto::rr::{Name, RecordType};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{Error, answer, exchange::query};

/// Most names that one leads to another by CNAME.
const MAX_ALIASES: usize = 8;
/// Most servers of a zone that are asked.
const MAX_SERVERS: usize = 32;
/// Between two looks: the first, and the longest.
const FIRST_LOOK: Duration = Duration::from_millis(250);
const LONGEST_LOOK: Duration = Duration::from_secs(5);

/// A name, and the zone that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located {
    pub(super) name: Name,
    pub(super) zone: Name,
}

/// Where records of `name` are kept: where its CNAME leads, and the zone of that. An authority goes the same way
/// (RFC 8555, section 8.4).
pub(super) async fn locate(resolver: SocketAddr, name: Name) -> Result<Located, Error> {
    let mut name = name;
    for _ in 0..MAX_ALIASES {
        let answer = query(resolver, &name, RecordType::CNAME, true).await?;
        let Some(target) = answer::alias(&answer, &name) else {
            let zone = zone_of(resolver, &name).await?;
            return Ok(Located { name, zone });
        };
        name = target;
    }
    Err(Error::Aliases(Box::new(name)))
}

/// The zone of `name`: that of the SOA record at the name, or nearest above it.
async fn zone_of(resolver: SocketAddr, name: &Name) -> Result<Name, Error> {
    let mut asked = name.clone();
    while !asked.is_root() {
        let answer = query(resolver, &asked, RecordType::SOA, true).await?;
        if let Some(zone) = answer::zone(&answer, &asked) {
            return Ok(zone);
        }
        asked = asked.base_name();
    }
    Err(Error::NoZone(Box::new(name.clone())))
}

/// The addresses of the servers of `zone`.
pub(super) async fn servers(resolver: SocketAddr, zone: &Name) -> Result<Vec<IpAddr>, Error> {
    let answer = query(resolver, zone, RecordType::NS, true).await?;
    let mut addresses = Vec::new();
    for name in answer::servers(&answer, zone).take(MAX_SERVERS) {
        for kind in [RecordType::A, RecordType::AAAA] {
            let answer = query(resolver, &name, kind, true).await?;
            addresses.extend(answer::addresses(&answer));
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(MAX_SERVERS);
    match addresses.is_empty() {
        true => Err(Error::NoServers(Box::new(zone.clone()))),
        false => Ok(addresses),
    }
}

/// Waits until each of `servers` has `value` among the texts of `name`. At `deadline`, servers that do not answer are
/// told of and passed over, if there is one that has it.
pub(super) async fn wait(
    servers: &[SocketAddr],
    name: &Name,
    value: &str,
    deadline: Instant,
) -> Result<(), Error> {
    let mut without: Vec<SocketAddr> = servers.to_vec();
    let mut pause = FIRST_LOOK;
    loop {
        let mut looks = JoinSet::new();
        for server in without.drain(..) {
            let (name, value) = (name.clone(), value.to_owned());
            looks.spawn(async move { (server, has(server, &name, &value).await) });
        }
        let mut silent = Vec::new();
        while let Some(look) = looks.join_next().await {
            match look {
                Ok((_, Ok(true))) => {}
                Ok((server, Ok(false))) => without.push(server),
                Ok((server, Err(_))) => silent.push(server),
                Err(_) => {}
            }
        }
        if without.is_empty() && silent.is_empty() {
            return Ok(());
        }
        if Instant::now() + pause > deadline {
            let Some(server) = without
                .first()
                .or(silent.first().filter(|_| silent.len() == servers.len()))
            else {
                tracing::warn!(?silent, "servers of the zone do not answer");
                return Ok(());
            };
            return Err(Error::NotSeen(Box::new(name.clone()), *server));
        }
        without.append(&mut silent);
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_LOOK);
    }
}

async fn has(server: SocketAddr, name: &Name, value: &str) -> Result<bool, Error> {
    let answer = query(server, name, RecordType::TXT, false).await?;
    Ok(answer::has_text(&answer, name, value))
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use hickory_proto::{
        op::{Message, OpCode, ResponseCode},
        rr::{
            RData, Record,
            rdata::{A, AAAA, CNAME, NS, SOA, TXT},
        },
        serialize::binary::BinEncodable as _,
    };
    use tokio::net::UdpSocket;

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn start(zone: &str) -> Record {
        let data = SOA::new(name("ns1.example."), name("o.example."), 1, 60, 60, 60, 60);
        Record::from_rdata(name(zone), 60, RData::SOA(data))
    }

    fn alias(from: &str, to: &str) -> Record {
        Record::from_rdata(name(from), 60, RData::CNAME(CNAME(name(to))))
    }

    /// A server that answers with the records that have the name and the type that is asked for, else with those of
    /// `without`; and refuses what is in no zone of its own.
    async fn serve(records: Vec<Record>, without: Vec<Record>) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let mut known: HashMap<_, Vec<Record>> = HashMap::new();
        for record in records {
            let key = (record.name.clone(), record.record_type());
            known.entry(key).or_default().push(record);
        }
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let asked = Message::from_vec(&buffer[..length]).unwrap();
                let query = asked.queries[0].clone();
                let mut answer = Message::response(asked.metadata.id, OpCode::Query);
                answer.add_queries(asked.queries);
                match known.get(&(query.name.clone(), query.query_type)) {
                    Some(found) => drop(answer.add_answers(found.iter().cloned())),
                    None if name("example.").zone_of(&query.name) => {
                        answer.metadata.response_code = ResponseCode::NXDomain;
                        answer.add_authorities(without.iter().cloned());
                    }
                    None => answer.metadata.response_code = ResponseCode::Refused,
                }
                let _ = socket.send_to(&answer.to_bytes().unwrap(), from).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn a_record_is_where_its_cname_leads_in_the_zone_that_is_nearest() {
        let records = vec![
            alias("_acme-challenge.a.example.", "A.validation.example."),
            alias("a.validation.example.", "b.other.example."),
            start("other.example."),
        ];
        let resolver = serve(records, vec![start("example.")]).await;
        let located = locate(resolver, name("_acme-challenge.a.example.")).await;
        let Located { name: at, zone } = located.unwrap();
        // What the server said first of the two: that `other` is no part of `example` is said at `other` only.
        assert_eq!((at, zone), (name("b.other.example."), name("example.")));
        let located = locate(resolver, name("other.example.")).await.unwrap();
        assert_eq!(located.zone, name("other.example."));
    }

    #[tokio::test]
    async fn the_start_of_a_zone_is_looked_for_upwards() {
        let resolver = serve(vec![start("zone.example.")], Vec::new()).await;
        let located = locate(resolver, name("_acme-challenge.a.zone.example."));
        assert_eq!(located.await.unwrap().zone, name("zone.example."));
        let lost = locate(resolver, name("_acme-challenge.a.example.")).await;
        assert!(matches!(lost, Err(Error::NoZone(_))), "{lost:?}");
        let refused = locate(resolver, name("_acme-challenge.elsewhere.")).await;
        assert!(matches!(refused, Err(Error::Refused(..))), "{refused:?}");
    }

    #[tokio::test]
    async fn names_that_lead_to_each_other_are_followed_no_further_than_an_authority_would() {
        let records = vec![
            alias("a.example.", "b.example."),
            alias("b.example.", "a.example."),
        ];
        let resolver = serve(records, Vec::new()).await;
        let lost = locate(resolver, name("a.example.")).await;
        assert!(matches!(lost, Err(Error::Aliases(_))), "{lost:?}");
    }

    #[tokio::test]
    async fn the_servers_of_a_zone_are_all_addresses_of_all_of_its_names() {
        let zone = name("example.");
        let server = |text| RData::NS(NS(name(text)));
        let resolver = serve(
            vec![
                Record::from_rdata(zone.clone(), 60, server("ns1.example.")),
                Record::from_rdata(zone.clone(), 60, server("ns2.example.")),
                Record::from_rdata(name("ns1.example."), 60, RData::A(A::new(192, 0, 2, 1))),
                Record::from_rdata(name("ns2.example."), 60, RData::A(A::new(192, 0, 2, 1))),
                Record::from_rdata(
                    name("ns2.example."),
                    60,
                    RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
                ),
            ],
            Vec::new(),
        )
        .await;
        let expected: [IpAddr; 2] = ["192.0.2.1", "2001:db8::1"].map(|a| a.parse().unwrap());
        assert_eq!(servers(resolver, &zone).await.unwrap(), expected);
        let none = servers(resolver, &name("other.example.")).await;
        assert!(matches!(none, Err(Error::NoServers(_))), "{none:?}");
    }

    #[tokio::test]
    async fn all_servers_must_have_a_record_but_for_those_that_do_not_answer() {
        let at = name("a.example.");
        let text = TXT::from_bytes(vec![b"va", b"lue"]);
        let record = Record::from_rdata(at.clone(), 60, RData::TXT(text));
        let with = serve(vec![record], Vec::new()).await;
        let without = serve(Vec::new(), Vec::new()).await;
        // It is bound and never read, and nobody listens for TCP there.
        let silent = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let silent_at = silent.local_addr().unwrap();
        let soon = || Instant::now() + Duration::from_millis(300);
        wait(&[with], &at, "value", soon()).await.unwrap();
        wait(&[with, silent_at], &at, "value", soon())
            .await
            .unwrap();
        let unseen = wait(&[with, without], &at, "value", soon()).await;
        assert!(matches!(unseen, Err(Error::NotSeen(_, server)) if server == without));
        let unseen = wait(&[with], &at, "another", soon()).await;
        assert!(matches!(unseen, Err(Error::NotSeen(..))));
        let unseen = wait(&[silent_at], &at, "value", soon()).await;
        assert!(matches!(unseen, Err(Error::NotSeen(_, server)) if server == silent_at));
    }
}
