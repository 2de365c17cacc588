//! Sessions that do nothing: what each keeps of every node's memory.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::task::JoinSet;
use wavry_transport::webtransport::{Client, Session};

use super::Common;
use crate::{Error, Report, Row, progress, servers::resident, target::Target};

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Sessions, each on a connection of its own
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sessions: u32,
    /// Sessions from one address (127.0.0.1, 127.0.0.2, …), for gateways limit them
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    per_address: u32,
    /// A node's process, `ROLE=PID`, on this machine; once for each node. Not needed without --url
    #[arg(long = "process", value_parser = parse_process)]
    processes: Vec<(String, u32)>,
    #[command(flatten)]
    pub(super) common: Common,
}

fn parse_process(text: &str) -> Result<(String, u32), String> {
    let (role, pid) = text.split_once('=').ok_or("expected ROLE=PID")?;
    let pid = pid.parse().map_err(|_| "not a process id".to_owned())?;
    Ok((role.to_owned(), pid))
}

/// Sessions opened before any is counted: what the first ones cost is the node's.
const FIRST_SESSIONS: u32 = 50;
/// Sessions opened at once.
const OPENING: usize = 32;
/// How long sessions are left alone before memory is looked at.
const SETTLE: Duration = Duration::from_secs(2);

pub(super) async fn run(args: &Args) -> Result<Report, Error> {
    let target = Target::open(&args.common.target).await?;
    let mut processes = target.processes.clone();
    processes.extend(args.processes.iter().cloned());
    processes.retain(|(role, _)| role.starts_with("gateway") || role.starts_with("relay"));
    if processes.is_empty() {
        return Err(Error::Argument(
            "name the nodes on the way with --process".to_owned(),
        ));
    }
    let memory =
        || -> Result<Vec<u64>, Error> { processes.iter().map(|&(_, pid)| resident(pid)).collect() };

    let mut held = Vec::new();
    let first = open(&target, FIRST_SESSIONS, args.per_address, 0).await?;
    tokio::time::sleep(SETTLE).await;
    let before = memory()?;
    let addresses = FIRST_SESSIONS.div_ceil(args.per_address);
    progress(&format!("opening {} sessions", args.sessions));
    held.push(open(&target, args.sessions, args.per_address, addresses).await?);
    tokio::time::sleep(SETTLE).await;
    let after = memory()?;
    held.push(first);
    for (clients, sessions) in held {
        drop(sessions);
        for client in clients {
            client.close().await;
        }
    }
    target.stop().await?;

    let mut results = vec![Row::plain("sessions", "sessions", args.sessions.into())];
    for ((role, _), (after, before)) in processes.iter().zip(after.iter().zip(&before)) {
        let grown = after.saturating_sub(*before) as f64;
        let each = (grown / f64::from(args.sessions)).round();
        results.push(Row::plain(format!("{role}_memory"), "bytes/session", each));
    }
    Ok(Report {
        scenario: "idle",
        results,
        failures: Vec::new(),
    })
}

/// Opens `count` sessions, from as many addresses as are needed after the first `used`.
async fn open(
    target: &Target,
    count: u32,
    per_address: u32,
    used: u32,
) -> Result<(Vec<Client>, Vec<Session>), Error> {
    let mut clients = Vec::new();
    let mut opening = JoinSet::new();
    let mut sessions = Vec::with_capacity(count as usize);
    for number in 0..count {
        if number.is_multiple_of(per_address) {
            let address = u32::from(Ipv4Addr::LOCALHOST) + used + number / per_address;
            clients.push(target.client(SocketAddr::from((Ipv4Addr::from(address), 0)))?);
        }
        if opening.len() == OPENING {
            sessions.extend(next(&mut opening).await.transpose()?);
        }
        if let Some(client) = clients.last() {
            opening.spawn(target.connecting(client.clone()).await?);
        }
    }
    while let Some(session) = next(&mut opening).await.transpose()? {
        sessions.push(session);
    }
    Ok((clients, sessions))
}

async fn next(opening: &mut JoinSet<Result<Session, Error>>) -> Option<Result<Session, Error>> {
    match opening.join_next().await? {
        Ok(opened) => Some(opened),
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
