//! What clients notice when a part of the system fails: as little as can be, and soon.

mod support;

use std::time::{Duration, Instant};

use support::{
    DEADLINE, Dev,
    client::{Ask, Native, echo, within},
    signal, wait_until_gone,
};
use wavry_proto::session::close_code;
use wavry_transport::session::{Closed, Session as _};

#[tokio::test]
async fn a_killed_relay_closes_its_sessions_within_three_seconds_and_a_new_one_works() {
    let directory = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(directory.path());
    let native = Native::new(&dev);
    let session = native.open("/echo").await;
    echo(&session, b"before").await.unwrap();
    let before = dev.ready["pids"].clone();

    signal(dev.pid_of("relay-a"), "KILL");
    let killed = Instant::now();
    match within(Duration::from_secs(3), "the close", session.closed()).await {
        Closed::Peer(close) => assert_eq!(close.code, close_code::RELAY_LOST),
        other => panic!("{other}"),
    }
    println!("closed {:?} after the relay was killed", killed.elapsed());

    // `dev` starts the relay again; neither gateway nor master is restarted.
    let deadline = Instant::now() + DEADLINE;
    let session = loop {
        let asked = native.ask(Ask {
            path: "/echo",
            ..Ask::default()
        });
        match asked.await {
            Ok((session, _)) => break session,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    echo(&session, b"after").await.unwrap();
    dev.wait_until(|ready| ready["pids"]["relay-a"] != before["relay-a"]);
    for role in ["gateway", "master"] {
        assert_eq!(
            dev.ready["pids"][role], before[role],
            "{role} was restarted"
        );
    }
}

#[tokio::test]
async fn sessions_go_on_without_the_master_and_new_ones_open() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path());
    let native = Native::new(&dev);
    let session = native.open("/echo").await;
    let with_token = dev.service("sample");
    let path = with_token
        .strip_prefix(dev.text("gateway"))
        .expect("a URL at the gateway")
        .to_owned();

    // Stopped, not killed: `dev` would start it again.
    let master = dev.pid_of("master");
    signal(master, "STOP");
    echo(&session, b"the old one goes on").await.unwrap();
    let new = native.open("/echo").await;
    echo(&new, b"a new one opens").await.unwrap();
    let authorised = native.open(&path).await;
    assert!(authorised.max_datagram_size() > 0);
    signal(master, "CONT");
}

#[tokio::test]
async fn a_gateway_that_leaves_lets_sessions_finish_and_then_closes_them() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path());
    let native = Native::new(&dev);
    let session = native.open("/echo").await;
    let gateway = dev.pid_of("gateway");
    signal(gateway, "TERM");
    within(DEADLINE, "the drain", session.draining()).await;
    echo(&session, b"still served").await.unwrap();
    session.close(wavry_transport::session::Close::new(0, "done"));
    wait_until_gone(&[gateway]);
}
