use std::{fs, net::SocketAddr, time::Duration};

use tokio::time::timeout;
use wavry_credentials::membership::{Error, Membership};
use wavry_proto::control::Role;

use crate::world::{DEADLINE, World, exits, join, node_id, roster_where};

const RELAY_ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 4444);

#[tokio::test]
async fn a_gateway_and_a_relay_that_join_learn_of_each_other() {
    let world = World::new();
    let master = world.start().await;
    let gateway = join(world.node(&master, "gw", Role::Gateway, &[])).await;
    let relay = join(world.node(&master, "exit", Role::Relay, &["echo"])).await;
    relay.announce(vec![SocketAddr::from(RELAY_ADDRESS)]);

    for member in [&gateway, &relay] {
        let roster = roster_where(&mut member.roster(), |r| exits(r, "echo") == 1).await;
        assert_eq!(roster.cluster, world.cluster);
        assert_eq!(roster.token_keys, [world.key.public_paserk()]);
        assert!(roster.service("echo").is_some());
        let exit = roster.node(&node_id("exit")).unwrap();
        assert_eq!(exit.keys, [relay.identity().public_key()]);
        assert_eq!(exit.addresses, [SocketAddr::from(RELAY_ADDRESS)]);
        let gw = roster.node(&node_id("gw")).unwrap();
        assert_eq!(gw.role, Role::Gateway);
        assert_eq!(gw.keys, [gateway.identity().public_key()]);
    }
    assert_eq!(*gateway.node_id(), node_id("gw"));
    assert_eq!(*gateway.cluster(), world.cluster);
    master.stop().await;
}

#[tokio::test]
async fn a_relay_without_an_address_is_an_exit_for_nothing() {
    let world = World::new();
    let master = world.start().await;
    let relay = join(world.node(&master, "exit", Role::Relay, &["echo"])).await;
    let roster = relay.roster().borrow().clone();
    assert!(roster.node(&node_id("exit")).is_some());
    assert_eq!(exits(&roster, "echo"), 0);
    relay.announce(vec![SocketAddr::from(RELAY_ADDRESS)]);
    roster_where(&mut relay.roster(), |r| exits(r, "echo") == 1).await;
}

#[tokio::test]
async fn a_node_that_registered_before_joins_without_a_token() {
    let world = World::new();
    let master = world.start().await;
    let config = world.node(&master, "exit", Role::Relay, &["echo"]);
    let key = join(config.clone()).await.identity().public_key();
    fs::remove_file(config.registration_token.as_ref().unwrap()).unwrap();

    let again = join(config).await;
    assert_eq!(*again.node_id(), node_id("exit"));
    assert_eq!(again.identity().public_key(), key);
}

#[tokio::test]
async fn a_node_without_a_token_is_told_where_to_put_one() {
    let world = World::new();
    let master = world.start().await;
    let mut config = world.node(&master, "exit", Role::Relay, &["echo"]);
    config.registration_token = Some(world.path("nowhere"));
    let Err(error) = Membership::join(config).await else {
        panic!("joined without a token");
    };
    assert!(error.to_string().contains("nowhere"), "{error}");

    let mut config = world.node(&master, "exit", Role::Relay, &["echo"]);
    config.registration_token = None;
    let Err(error) = Membership::join(config).await else {
        panic!("joined without a token");
    };
    let text = error.to_string();
    assert!(text.contains("WAVRY_REGISTRATION_TOKEN_FILE"), "{text}");
    assert!(
        text.contains("/run/secrets/wavry_registration_token"),
        "{text}"
    );
}

#[tokio::test]
async fn a_refused_registration_ends_at_once_with_the_masters_words() {
    let world = World::new();
    let master = world.start().await;
    let mut config = world.node(&master, "exit", Role::Relay, &["echo"]);
    config.services = vec!["other".parse().unwrap()];
    match timeout(DEADLINE, Membership::join(config)).await.unwrap() {
        Err(Error::Refused { status, detail }) => {
            assert_eq!(status, 403);
            assert!(detail.contains("other"), "{detail}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("joined with a service it was not granted"),
    }
}

#[tokio::test]
async fn a_node_that_the_master_forgot_is_told_so() {
    let world = World::new();
    let master = world.start().await;
    let config = world.node(&master, "exit", Role::Relay, &["echo"]);
    drop(join(config.clone()).await);
    master.stop().await;

    let mut forgetful = world.config();
    forgetful.database = world.path("new.sqlite").into();
    let master = world.start_with(forgetful).await;
    let config = wavry_credentials::membership::Config {
        master: format!("https://{}", master.address),
        ..config
    };
    match timeout(DEADLINE, Membership::join(config)).await.unwrap() {
        Err(Error::Refused {
            status: 401,
            detail,
        }) => {
            assert!(detail.contains("not registered"), "{detail}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("joined a master that does not know it"),
    }
}

#[tokio::test]
async fn a_node_waits_for_a_master_that_is_not_there_yet() {
    let world = World::new();
    let master = world.start().await;
    let config = world.node(&master, "exit", Role::Relay, &["echo"]);
    let address = master.stop().await;

    let joining = tokio::spawn(Membership::join(config));
    let mut late = world.config();
    late.listen = address;
    let _master = world.start_with(late).await;
    let member = timeout(DEADLINE, joining).await.unwrap().unwrap().unwrap();
    assert_eq!(*member.node_id(), node_id("exit"));
}

#[tokio::test]
async fn a_leaving_relay_keeps_its_keys_in_the_roster_and_loses_its_services() {
    let world = World::new();
    let master = world.start().await;
    let gateway = join(world.node(&master, "gw", Role::Gateway, &[])).await;
    let relay = join(world.node(&master, "exit", Role::Relay, &["echo"])).await;
    relay.announce(vec![SocketAddr::from(RELAY_ADDRESS)]);
    let mut rosters = gateway.roster();
    roster_where(&mut rosters, |r| exits(r, "echo") == 1).await;

    relay.leave().await;
    let roster = roster_where(&mut rosters, |r| exits(r, "echo") == 0).await;
    let exit = roster.node(&node_id("exit")).unwrap();
    assert_eq!(exit.keys, [relay.identity().public_key()]);
}

#[tokio::test]
async fn a_relay_that_falls_silent_loses_its_services_until_it_is_heard_again() {
    let world = World::new();
    let mut config = world.config();
    config.suspect_after = Duration::from_millis(500);
    let master = world.start_with(config).await;
    let gateway = join(world.node(&master, "gw", Role::Gateway, &[])).await;
    let relay_config = world.node(&master, "exit", Role::Relay, &["echo"]);
    let relay = join(relay_config.clone()).await;
    relay.announce(vec![SocketAddr::from(RELAY_ADDRESS)]);
    let mut rosters = gateway.roster();
    roster_where(&mut rosters, |r| exits(r, "echo") == 1).await;

    let key = relay.identity().public_key();
    drop(relay);
    let roster = roster_where(&mut rosters, |r| exits(r, "echo") == 0).await;
    assert_eq!(roster.node(&node_id("exit")).unwrap().keys, [key]);

    let relay = join(relay_config).await;
    relay.announce(vec![SocketAddr::from(RELAY_ADDRESS)]);
    roster_where(&mut rosters, |r| exits(r, "echo") == 1).await;
}

#[tokio::test]
async fn a_restarted_master_is_found_again_and_the_roster_goes_on() {
    let world = World::new();
    let master = world.start().await;
    let gateway = join(world.node(&master, "gw", Role::Gateway, &[])).await;
    let relay_config = world.node(&master, "exit", Role::Relay, &["echo"]);
    let relay = join(relay_config).await;
    let mut rosters = gateway.roster();
    let before = roster_where(&mut rosters, |r| r.nodes.len() == 2).await;

    let address = master.stop().await;
    // Told while the master is away; the roster stays what it was.
    relay.announce(vec![SocketAddr::from(RELAY_ADDRESS)]);
    assert_eq!(*rosters.borrow(), before);

    let mut config = world.config();
    config.listen = address;
    let _master = world.start_with(config).await;
    let after = roster_where(&mut rosters, |r| exits(r, "echo") == 1).await;
    assert!(after.epoch > before.epoch);
    let keys = |roster: &wavry_proto::control::Roster| {
        let node = |id| roster.node(&node_id(id)).unwrap().keys.clone();
        [node("gw"), node("exit")]
    };
    assert_eq!(keys(&after), keys(&before));
}

#[tokio::test]
async fn a_dropped_membership_ends_its_roster() {
    let world = World::new();
    let master = world.start().await;
    let member = join(world.node(&master, "gw", Role::Gateway, &[])).await;
    let mut rosters = member.roster();
    drop(member);
    let ended = timeout(DEADLINE, async { while rosters.changed().await.is_ok() {} });
    ended.await.expect("the sender goes with the membership");
}

#[tokio::test]
async fn a_node_starts_from_the_roster_it_kept_when_no_master_answers_and_finds_the_master_later() {
    let world = World::new();
    let master = world.start().await;
    let gateway_config = world.node(&master, "gw", Role::Gateway, &[]);
    let gateway = join(gateway_config.clone()).await;
    let relay = join(world.node(&master, "exit", Role::Relay, &["echo"])).await;
    relay.announce(vec![SocketAddr::from(RELAY_ADDRESS)]);
    let mut rosters = gateway.roster();
    let before = roster_where(&mut rosters, |r| exits(r, "echo") == 1).await;
    drop(gateway);
    let address = master.stop().await;

    let gateway = join(gateway_config.clone()).await;
    let mut rosters = gateway.roster();
    assert_eq!(*rosters.borrow(), before);
    let mut config = world.config();
    config.listen = address;
    let master = world.start_with(config).await;
    let after = roster_where(&mut rosters, |r| r.epoch > before.epoch).await;
    assert_eq!(after.nodes, before.nodes);
    drop(gateway);
    master.stop().await;

    // Damaged, it is none, and the node waits for a master.
    let kept = gateway_config.state_dir.join("roster");
    let mut token = fs::read(&kept).unwrap();
    let middle = token.len() / 2;
    token[middle] ^= 1;
    fs::write(&kept, token).unwrap();
    let joining = timeout(Duration::from_millis(500), Membership::join(gateway_config));
    assert!(joining.await.is_err(), "joined with a damaged roster");
}

#[tokio::test]
async fn a_roster_that_is_too_old_is_not_acted_on_until_a_master_answers() {
    let world = World::new();
    let mut config = world.config();
    config.roster_refresh = Duration::from_secs(1);
    let master = world.start_with(config.clone()).await;
    let mut gateway_config = world.node(&master, "gw", Role::Gateway, &[]);
    gateway_config.max_roster_age = Duration::from_secs(4);
    let gateway = join(gateway_config.clone()).await;
    let mut rosters = gateway.roster();
    let first = rosters.borrow().clone();
    // Nothing changes, and still the roster is signed anew.
    roster_where(&mut rosters, |r| r.issued_at > first.issued_at).await;

    let address = master.stop().await;
    roster_where(&mut rosters, |roster| roster.is_empty()).await;
    drop(gateway);
    // A node that starts now does not act on what it kept either.
    let joining = tokio::spawn(Membership::join(gateway_config));
    config.listen = address;
    let _master = world.start_with(config).await;
    let gateway = timeout(DEADLINE, joining).await.unwrap().unwrap().unwrap();
    let roster = gateway.roster().borrow().clone();
    assert!(roster.epoch > first.epoch && roster.issued_at > first.issued_at);
}

#[tokio::test]
async fn a_node_that_kept_a_roster_takes_no_older_one() {
    let world = World::new();
    let master = world.start().await;
    let config = world.node(&master, "gw", Role::Gateway, &[]);
    let gateway = join(config.clone()).await;
    let old = fs::read(config.state_dir.join("roster")).unwrap();
    let relay = join(world.node(&master, "exit", Role::Relay, &["echo"])).await;
    let newer = roster_where(&mut gateway.roster(), |r| r.nodes.len() == 2).await;
    drop((gateway, relay));
    let newest = fs::read(config.state_dir.join("roster")).unwrap();
    assert_ne!(old, newest);
    master.stop().await;
    let gateway = join(config).await;
    assert_eq!(gateway.roster().borrow().epoch, newer.epoch);
}

#[tokio::test]
async fn a_node_that_cannot_keep_rosters_acts_on_them_all_the_same() {
    let world = World::new();
    let master = world.start().await;
    let config = world.node(&master, "gw", Role::Gateway, &[]);
    // Nothing can take the place of a directory that is not empty.
    fs::create_dir_all(config.state_dir.join("roster/full")).unwrap();
    let gateway = join(config).await;
    let mut rosters = gateway.roster();
    let relay = join(world.node(&master, "exit", Role::Relay, &["echo"])).await;
    relay.announce(vec!["127.0.0.1:4444".parse().unwrap()]);
    roster_where(&mut rosters, |r| exits(r, "echo") == 1).await;
}
