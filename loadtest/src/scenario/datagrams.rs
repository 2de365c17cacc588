//! Datagrams at a steady rate to an `echo:` upstream and back, and an account of every one that did
//! not return: which hop lost it, or which node dropped it and why.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use wavry_transport::session::{Close, DatagramError, Session};

use super::Common;
use crate::{
    Error, Report, Row,
    ops::{Datagrams, Link},
    pattern::Pattern,
    progress,
    target::Target,
};

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Datagrams in all
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Datagrams per second
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: u64,
    /// Bytes in each
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(8..=65_000))]
    size: u64,
    #[command(flatten)]
    pub(super) common: Common,
}

/// Nothing for so long after the last was sent: no more come.
const QUIET: Duration = Duration::from_secs(1);

pub(super) async fn run(args: &Args) -> Result<Report, Error> {
    // Before anything is counted: a counter made earlier would count for nobody.
    let recorder = PrometheusBuilder::new()
        .install_recorder()
        .map_err(|error| Error::Argument(format!("this process's own metrics: {error}")))?;
    let target = Target::open(&args.common.target).await?;
    if target.ops.is_empty() {
        return Err(Error::Argument(
            "name the nodes on the way with --ops, or every loss is unaccounted for".to_owned(),
        ));
    }
    let session = Arc::new(target.connect().await?);
    let before = Counted::read(&recorder, &target).await?;
    let kernel_before = kernel_drops();

    let receive = tokio::spawn(receive(session.clone(), args.count));
    let start = Instant::now();
    let refused = send(session.as_ref(), args).await?;
    let elapsed = start.elapsed().as_secs_f64();
    let back = match receive.await {
        Ok(back) => back?,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    };

    let kernel = kernel_drops()
        .zip(kernel_before)
        .map(|(now, then)| now - then);
    let mut counted = Counted::read(&recorder, &target).await?;
    counted.subtract(&before);
    session.close(Close::default());
    target.stop().await?;

    let account = Account::of(&counted, &back, args.count as i64, refused as i64);
    let mut results = vec![
        Row::plain("datagrams", "datagrams", args.count as f64),
        Row::plain("rate", "datagrams/s", args.count as f64 / elapsed),
    ];
    results.extend(account.rows());
    if let Some(kernel) = kernel {
        results.push(Row::plain(
            "udp_receive_buffer_errors",
            "packets",
            kernel as f64,
        ));
    }
    Ok(Report {
        scenario: "datagrams",
        results,
        failures: account.failures,
    })
}

/// Sends them all, in bursts of what is due. Returns how many the client's own buffer refused.
async fn send<S: Session>(session: &S, args: &Args) -> Result<u64, Error> {
    let start = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let (mut number, mut refused) = (0u64, 0u64);
    while number < args.count {
        tick.tick().await;
        let due = (start.elapsed().as_secs_f64() * args.rate as f64) as u64;
        while number < due.min(args.count) {
            match session.send_datagram(numbered(number, args.size as usize)) {
                Ok(()) => {}
                Err(DatagramError::Full) => refused += 1,
                Err(DatagramError::Session(closed)) => return Err(closed.into()),
                Err(error) => return Err(Error::Argument(format!("--size: {error}"))),
            }
            number += 1;
            if number.is_multiple_of(args.count.div_ceil(10)) {
                progress(&format!("{number} of {} sent", args.count));
            }
        }
    }
    Ok(refused)
}

/// A datagram that begins with its number; the rest follows from it.
fn numbered(number: u64, size: usize) -> bytes::Bytes {
    let mut payload = number.to_be_bytes().to_vec();
    payload.extend_from_slice(&Pattern::new(0, number).take(size - 8));
    payload.into()
}

/// What came back.
#[derive(Debug, Default)]
struct Back {
    received: i64,
    twice: i64,
    different: i64,
}

async fn receive<S: Session>(session: Arc<S>, count: u64) -> Result<Back, Error> {
    let mut back = Back::default();
    let mut seen = vec![false; count as usize];
    let start = Instant::now();
    loop {
        // The first may take as long as the path takes to warm up.
        let patience = match back.received {
            0 => QUIET.saturating_mul(10).saturating_sub(start.elapsed()),
            _ => QUIET,
        };
        let Ok(payload) = tokio::time::timeout(patience, session.recv_datagram()).await else {
            return Ok(back);
        };
        let payload = payload?;
        back.received += 1;
        let number = payload
            .first_chunk()
            .map(|number| u64::from_be_bytes(*number));
        match number.and_then(|number| seen.get_mut(number as usize).map(|seen| (number, seen))) {
            Some((number, seen)) if payload == numbered(number, payload.len()) => {
                back.twice += i64::from(*seen);
                *seen = true;
            }
            _ => back.different += 1,
        }
    }
}

/// The counters of every process on the way.
struct Counted {
    client: Datagrams,
    gateway: Datagrams,
    relay: Datagrams,
}

impl Counted {
    async fn read(recorder: &PrometheusHandle, target: &Target) -> Result<Self, Error> {
        let mut counted = Self {
            client: Datagrams::parse(&recorder.render()),
            gateway: Datagrams::default(),
            relay: Datagrams::default(),
        };
        for (role, url) in &target.ops {
            // Several relays may stand ready; the session goes through one, and so their sum does.
            let node = match role {
                role if role.starts_with("gateway") => &mut counted.gateway,
                role if role.starts_with("relay") => &mut counted.relay,
                _ => continue,
            };
            node.add(&Datagrams::scrape(url).await?, 1);
        }
        Ok(counted)
    }

    fn subtract(&mut self, before: &Self) {
        self.client.add(&before.client, -1);
        self.gateway.add(&before.gateway, -1);
        self.relay.add(&before.relay, -1);
    }
}

/// Where every datagram went.
struct Account {
    rows: Vec<(String, i64)>,
    failures: Vec<String>,
}

impl Account {
    fn of(counted: &Counted, back: &Back, attempted: i64, refused: i64) -> Self {
        let client = counted.client.link("webtransport");
        let front = counted.gateway.link("webtransport");
        let rear = counted.gateway.link("mesh");
        let relay = counted.relay.link("mesh");

        let mut account = Self {
            rows: vec![
                ("sent".to_owned(), client.sent),
                ("received".to_owned(), back.received),
            ],
            failures: Vec::new(),
        };
        for (hop, from, to) in [
            ("client_to_gateway", &client, &front),
            ("gateway_to_relay", &rear, &relay),
            ("relay_to_gateway", &relay, &rear),
            ("gateway_to_client", &front, &client),
        ] {
            account.rows.push((format!("lost_{hop}"), lost(from, to)));
        }
        for (node, link) in [
            ("client", &client),
            ("gateway_webtransport", &front),
            ("gateway_mesh", &rear),
            ("relay_mesh", &relay),
        ] {
            for (reason, &count) in link.dropped.iter().filter(|(_, count)| **count != 0) {
                account
                    .rows
                    .push((format!("dropped_{node}_{reason}"), count));
            }
        }

        // What went into each node, less what came out, less what it says it dropped.
        let unaccounted = BTreeMap::from([
            (
                "client, sending",
                attempted - client.sent - dropped_sending(&client),
            ),
            (
                "gateway, outwards",
                front.received - rear.sent - passing(&front, &rear),
            ),
            (
                "relay",
                relay.received - relay.sent - passing(&relay, &relay),
            ),
            (
                "gateway, back",
                rear.received - front.sent - passing(&rear, &front),
            ),
            (
                "client, receiving",
                client.received - back.received - dropped_received(&client),
            ),
        ]);
        let hops = account
            .rows
            .iter()
            .filter(|(name, _)| name.starts_with("lost_"));
        let invented: i64 = hops.map(|(_, lost)| (-lost).max(0)).sum();
        let total = invented + unaccounted.values().map(|count| count.abs()).sum::<i64>();
        for (place, count) in unaccounted.iter().filter(|(_, count)| **count != 0) {
            account
                .failures
                .push(format!("{place}: {count} unaccounted for"));
        }
        for (what, count) in [
            ("came on a hop that were not sent on it", invented),
            ("came back twice", back.twice),
            ("came back different", back.different),
            (
                "were refused and not counted as dropped",
                refused - dropped_sending(&client),
            ),
        ] {
            if count != 0 {
                account.failures.push(format!("{count} {what}"));
            }
        }
        account.rows.push(("unaccounted".to_owned(), total));
        account
    }

    fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.rows
            .iter()
            .map(|(name, count)| Row::plain(name, "datagrams", *count as f64))
    }
}

/// What the wire lost between two ends: sent at one, and neither taken nor dropped by QUIC at the
/// other.
fn lost(from: &Link, to: &Link) -> i64 {
    from.sent - to.received - count(to, |reason| reason == "receive_buffer_full")
}

/// Dropped on the way through a node, in on one link and out on the other.
fn passing(inwards: &Link, outwards: &Link) -> i64 {
    dropped_received(inwards) + dropped_sending(outwards)
}

/// Dropped before QUIC took them.
fn dropped_sending(link: &Link) -> i64 {
    count(link, is_sending)
}

/// Dropped after they were taken from QUIC.
fn dropped_received(link: &Link) -> i64 {
    count(link, |reason| {
        !is_sending(reason) && reason != "receive_buffer_full"
    })
}

fn is_sending(reason: &str) -> bool {
    matches!(reason, "send_buffer_full" | "too_large")
}

fn count(link: &Link, mut counts: impl FnMut(&str) -> bool) -> i64 {
    let counted = link.dropped.iter().filter(|(reason, _)| counts(reason));
    counted.map(|(_, count)| count).sum()
}

/// UDP packets that this host dropped because a socket's buffer was full (`RcvbufErrors`): the only
/// wire there is on loopback. `None` where the system does not say.
fn kernel_drops() -> Option<i64> {
    let text = std::fs::read_to_string("/proc/net/snmp").ok()?;
    let mut udp = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let column = udp
        .next()?
        .split(' ')
        .position(|name| name == "RcvbufErrors")?;
    udp.next()?.split(' ').nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(client: &str, gateway: &str, relay: &str) -> Counted {
        // `link sent received reason=count…`, lines separated by `;`.
        let parse = |text: &str| {
            let mut page = String::new();
            for line in text.split(';') {
                let mut words = line.split_whitespace();
                let mut word = || words.next().unwrap_or("0");
                let link = word();
                page += &format!(
                    "wavry_transport_datagrams_total{{link=\"{link}\",direction=\"sent\"}} {}\n\
                     wavry_transport_datagrams_total{{link=\"{link}\",direction=\"received\"}} {}\n",
                    word(),
                    word()
                );
                for (reason, count) in words.filter_map(|word| word.split_once('=')) {
                    page += &format!(
                        "wavry_transport_datagrams_dropped_total{{link=\"{link}\",reason=\"{reason}\"}} {count}\n"
                    );
                }
            }
            Datagrams::parse(&page)
        };
        Counted {
            client: parse(client),
            gateway: parse(gateway),
            relay: parse(relay),
        }
    }

    fn back(received: i64) -> Back {
        Back {
            received,
            ..Back::default()
        }
    }

    fn value(account: &Account, name: &str) -> i64 {
        let row = account.rows.iter().find(|(row, _)| row == name);
        row.unwrap_or_else(|| panic!("no row {name}")).1
    }

    #[test]
    fn losses_with_a_reason_leave_nothing_unaccounted() {
        // 100 tried: 5 refused, 2 lost on the wire, 3 dropped by QUIC at the gateway, 10 in its
        // queue, 4 at its mesh side; the relay drops 1 on its way back.
        let counted = counted(
            "webtransport 95 75 send_buffer_full=5",
            "webtransport 75 90 receive_buffer_full=3 receive_queue_full=10; mesh 76 75 send_buffer_full=4",
            "mesh 75 76 send_buffer_full=1",
        );
        let account = Account::of(&counted, &back(75), 100, 5);
        assert_eq!(account.failures, Vec::<String>::new());
        assert_eq!(value(&account, "lost_client_to_gateway"), 2);
        assert_eq!(
            value(&account, "dropped_gateway_webtransport_receive_queue_full"),
            10
        );
        assert_eq!(value(&account, "unaccounted"), 0);
    }

    #[test]
    fn a_datagram_that_a_node_swallows_is_unaccounted() {
        let counted = counted(
            "webtransport 10 9",
            "webtransport 9 10; mesh 9 9",
            "mesh 9 9",
        );
        let account = Account::of(&counted, &back(9), 10, 0);
        assert_eq!(account.failures, ["gateway, outwards: 1 unaccounted for"]);
        assert_eq!(value(&account, "unaccounted"), 1);
    }

    #[test]
    fn a_datagram_from_nowhere_is_unaccounted() {
        let counted = counted(
            "webtransport 10 10",
            "webtransport 10 10; mesh 10 11",
            "mesh 10 10",
        );
        let account = Account::of(&counted, &back(10), 10, 0);
        assert_eq!(
            value(&account, "unaccounted"),
            2,
            "it came, and it went nowhere"
        );
    }

    #[test]
    fn a_numbered_datagram_is_like_no_other() {
        assert_eq!(numbered(7, 100).len(), 100);
        assert_ne!(numbered(7, 100)[8..], numbered(8, 100)[8..]);
        assert_eq!(numbered(7, 8).len(), 8);
    }
}
