//! A master that takes connections and does nothing with them holds nobody up.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::sleep,
};
use wavry_credentials::membership;
use wavry_proto::control::{Role, Roster};

use crate::world::{Running, World, exits, join, node_id, roster_where};

/// `suspect_after` where nothing else is configured.
const SUSPECT_AFTER: Duration = Duration::from_secs(10);

/// A way to a master, until it stalls: then it takes bytes and connections, and hands nothing on.
struct Way {
    address: SocketAddr,
    stalled: watch::Sender<bool>,
    connections: Arc<()>,
}

impl Way {
    async fn to(master: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let way = Self {
            address: listener.local_addr().unwrap(),
            stalled: watch::Sender::new(false),
            connections: Arc::new(()),
        };
        let (stalled, connections) = (way.stalled.subscribe(), way.connections.clone());
        tokio::spawn(async move {
            loop {
                let (mut here, _) = listener.accept().await.unwrap();
                let (mut stalled, counted) = (stalled.clone(), connections.clone());
                tokio::spawn(async move {
                    let _counted = counted;
                    let carried = async {
                        let mut there = TcpStream::connect(master).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
                    };
                    tokio::select! {
                        biased;
                        _ = stalled.wait_for(|stalled| *stalled) => {}
                        () = carried => return,
                    }
                    // Both sockets stay open.
                    std::future::pending::<()>().await;
                });
            }
        });
        way
    }

    /// Whether somebody uses it.
    fn is_used(&self) -> bool {
        // Its own and the listener's.
        Arc::strong_count(&self.connections) > 2
    }
}

/// Two ways to one master.
async fn ways(master: &Running) -> [Way; 2] {
    [Way::to(master.address).await, Way::to(master.address).await]
}

fn over(ways: &[Way; 2], config: membership::Config) -> membership::Config {
    let [one, two] = ways.each_ref().map(|way| way.address);
    membership::Config {
        master: format!("https://{one}, https://{two}"),
        ..config
    }
}

/// Stalls the way that is in use.
async fn stall(ways: &[Way; 2]) {
    while !ways.iter().any(Way::is_used) {
        sleep(Duration::from_millis(5)).await;
    }
    let used = ways.iter().find(|way| way.is_used()).unwrap();
    used.stalled.send_replace(true);
}

#[tokio::test]
async fn a_node_goes_on_with_another_master_before_it_is_suspect_when_one_stalls() {
    let world = World::new();
    let master = world.start().await;
    let observer = join(world.node(&master, "gw", Role::Gateway, &[])).await;
    let ways = ways(&master).await;
    let config = world.node(&master, "exit", Role::Relay, &["echo"]);
    let relay = join(over(&ways, config)).await;
    let [before, after] = [4444, 5555].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let mut rosters = observer.roster();
    relay.announce(vec![before]);
    roster_where(&mut rosters, |r| exits(r, "echo") == 1).await;

    stall(&ways).await;
    let stalled = Instant::now();
    relay.announce(vec![after]);
    let is_heard = |r: &Roster| r.node(&node_id("exit")).unwrap().addresses == [after];
    roster_where(&mut rosters, is_heard).await;
    println!("heard {:?} after the stall", stalled.elapsed());
    assert!(stalled.elapsed() < SUSPECT_AFTER);
}

#[tokio::test]
async fn a_node_that_waits_for_a_roster_at_a_master_that_stalls_gets_it_from_another() {
    let world = World::new();
    let master = world.start().await;
    let ways = ways(&master).await;
    let gateway = join(over(&ways, world.node(&master, "gw", Role::Gateway, &[]))).await;
    let mut rosters = gateway.roster();

    stall(&ways).await;
    let stalled = Instant::now();
    let _relay = join(world.node(&master, "exit", Role::Relay, &["echo"])).await;
    roster_where(&mut rosters, |r| r.node(&node_id("exit")).is_some()).await;
    println!("known {:?} after the stall", stalled.elapsed());
    assert!(stalled.elapsed() < SUSPECT_AFTER);
}

#[tokio::test]
async fn a_node_starts_from_the_roster_it_kept_when_the_only_master_stalls() {
    let world = World::new();
    let master = world.start().await;
    let ways = ways(&master).await;
    let config = over(&ways, world.node(&master, "gw", Role::Gateway, &[]));
    let first = join(config.clone()).await.roster().borrow().clone();
    for way in &ways {
        way.stalled.send_replace(true);
    }
    let again = join(config).await;
    assert_eq!(again.roster().borrow().epoch, first.epoch);
}
