//! Copies of the audit log of several instances on PostgreSQL. Those of SQLite are tested beside
//! `audit_reader`.

use std::time::Duration;

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::{TcpListener, TcpStream},
};
use wavry_credentials::audit::{Line, file};

use super::*;
use crate::{
    audit_reader::Reader,
    audit_sink::{self, RawSink},
    keyvault::postgres_server::Server,
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn sink(name: &str, url: String) -> audit_sink::Config {
    let raw = RawSink {
        name: name.to_owned(),
        url,
        ..RawSink::default()
    };
    audit_sink::sinks(vec![raw]).unwrap().remove(0)
}

async fn record(vault: &KeyVault, subject: &str) {
    let mut change = Change::default();
    change.record(event(subject));
    vault.barrier().commit(change).await.unwrap();
}

/// A receiver's connection from the instance that serves it.
async fn accept(listener: &TcpListener) -> BufReader<TcpStream> {
    let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
    BufReader::new(accepted.expect("it connects in time").unwrap().0)
}

/// The subject of the next message: MSG-LEN SP SYSLOG-MSG (RFC 6587, section 3.4.1).
async fn next(stream: &mut BufReader<TcpStream>) -> String {
    let message = async {
        let mut length = Vec::new();
        stream.read_until(b' ', &mut length).await.unwrap();
        let length = String::from_utf8(length).unwrap();
        let mut message = vec![0; length.trim_end().parse().unwrap()];
        stream.read_exact(&mut message).await.unwrap();
        let message = String::from_utf8(message).unwrap();
        let line = &message[message.find('{').unwrap()..];
        Line::read(line).unwrap().event.subject
    };
    tokio::time::timeout(PATIENCE, message).await.unwrap()
}

#[tokio::test]
async fn one_of_several_instances_serves_a_receiver_and_another_takes_over() {
    let server = Server::start(false);
    let url = server.database("sinks").await;
    let location = Location::Postgres(url.parse().unwrap());
    let world = World::at(tempfile::tempdir().unwrap(), location);
    let (one, other) = (world.vault().await, world.vault().await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = format!("syslog+tcp://{}", listener.local_addr().unwrap());

    let serving = tokio::spawn(one.barrier().copy_audit_to(sink("siem", target.clone())));
    let mut stream = accept(&listener).await;
    let waiting = tokio::spawn(other.barrier().copy_audit_to(sink("siem", target)));
    for (vault, subject) in [(&one, "1"), (&other, "2"), (&one, "3")] {
        record(vault, subject).await;
        assert_eq!(next(&mut stream).await, subject);
    }
    serving.abort();
    // What was not known to have arrived for certain goes again.
    let mut stream = accept(&listener).await;
    for subject in ["1", "2", "3"] {
        assert_eq!(next(&mut stream).await, subject);
    }
    record(&one, "4").await;
    assert_eq!(next(&mut stream).await, "4");

    let copy = world.directory.path().join("copy.jsonl");
    let to_file = sink("copy", format!("file://{}", copy.display()));
    let copying = tokio::spawn(other.barrier().copy_audit_to(to_file));
    let verifier = one.barrier().audit_key().verifier();
    let caught_up = async {
        let lines = || file::read(&copy, LOG, &verifier, |_, _| ());
        while lines().map_or(0, |head| head.seq) != 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, caught_up).await.unwrap();

    let reader = Reader::open(&url.parse().unwrap()).await.unwrap();
    let mut subjects = Vec::new();
    let show = |_: &str, line: Line| subjects.push(line.event.subject);
    assert_eq!(reader.verify(&verifier, show).await.unwrap().seq, 4);
    assert_eq!(subjects, ["1", "2", "3", "4"]);
    waiting.abort();
    copying.abort();
}
