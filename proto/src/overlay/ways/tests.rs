use std::collections::BTreeMap;

use super::*;

fn id(id: &str) -> NodeId {
    id.parse().unwrap()
}

fn address(last: u8) -> SocketAddr {
    ([192, 0, 2, last], 4435).into()
}

fn node(name: &str, role: Role, last: u8, region: Option<&str>) -> Node {
    Node {
        id: id(name),
        role,
        keys: Vec::new(),
        addresses: vec![address(100 + last)],
        transit: match role {
            Role::Relay => vec![address(last)],
            _ => Vec::new(),
        },
        attached: Vec::new(),
        services: Vec::new(),
        registration: 1,
        leases: Default::default(),
        placement: crate::placement::Placement {
            region: region.map(|region| region.parse().unwrap()),
            ..Default::default()
        },
    }
}

/// The gateway `a`, the exit `b`, and `count` relays.
fn roster(count: u8) -> Roster {
    let mut nodes = vec![
        node("a", Role::Gateway, 50, None),
        node("b", Role::Relay, 51, None),
    ];
    nodes.extend((1..=count).map(|last| node(&format!("t{last}"), Role::Relay, last, None)));
    Roster {
        nodes: nodes.into(),
        ..Roster::empty("test".parse().unwrap())
    }
}

fn names(hops: &[Hop]) -> Vec<String> {
    hops.iter().map(|hop| hop.node.to_string()).collect()
}

fn through(roster: &Roster, from: &str, to: &str) -> Vec<Vec<String>> {
    let ways = ways(roster, &id(from), &id(to), |_| true);
    ways.iter().map(|way| names(&way.hops)).collect()
}

#[test]
fn ways_go_through_two_relays_each_through_both_and_through_a_third() {
    assert!(through(&roster(0), "a", "b").is_empty());
    assert_eq!(through(&roster(1), "a", "b"), [["t1"]]);
    let listed = roster(20);
    let found = through(&listed, "a", "b");
    let [one, other, both, three] = &found[..] else {
        panic!("{found:?}");
    };
    assert_ne!(one, other);
    assert_eq!(*both, [&one[..], &other[..]].concat());
    assert_eq!(three.len(), MAX_HOPS);
    assert_eq!(three[..2], both[..]);
    assert!(!both.contains(&three[2]));
    assert_eq!(through(&roster(2), "a", "b").len(), 3);
    // Neither end is its own relay.
    assert!(!found.iter().flatten().any(|hop| hop == "b"));
    let to_b = Next::At(address(151));
    let all = ways(&listed, &id("a"), &id("b"), |_| true);
    assert!(all.iter().all(|way| way.last == to_b));

    // A relay is asked where it is reached.
    let mut other = roster(1);
    other.nodes[2].transit = vec!["[2001:db8::1]:1".parse().unwrap(), address(9)];
    let reached = ways(&other, &id("a"), &id("b"), SocketAddr::is_ipv4);
    assert_eq!(reached[0].hops[0].address, address(9));
    other.nodes[2].transit.pop();
    assert!(ways(&other, &id("a"), &id("b"), SocketAddr::is_ipv4).is_empty());

    let mut near = roster(20);
    near.nodes[0].placement.region = Some("here".parse().unwrap());
    near.nodes.push(node("t88", Role::Relay, 88, Some("here")));
    assert_eq!(through(&near, "a", "b")[0], ["t88"]);
}

#[test]
fn a_peer_that_is_attached_is_reached_through_its_relays_and_never_at_an_address() {
    let mut listed = roster(20);
    listed.nodes[1].attached = ["t3", "t9", "gone"].map(id).to_vec();
    let found = ways(&listed, &id("a"), &id("b"), |_| true);
    assert!(found.iter().all(|way| way.last == Next::Attached));
    let mut last: Vec<_> = found
        .iter()
        .map(|way| names(&way.hops).pop().unwrap())
        .collect();
    assert_eq!(found.len(), 4);
    let (two_hops, three_hops) = (names(&found[2].hops), names(&found[3].hops));
    assert_eq!((two_hops.len(), three_hops.len()), (2, 3));
    assert!(!["t3", "t9"].contains(&two_hops[0].as_str()));
    assert!(!["t3", "t9"].contains(&three_hops[1].as_str()));
    assert_eq!(two_hops[0], three_hops[0]);
    last.sort();
    last.dedup();
    assert_eq!(last, ["t3", "t9"]);

    // Where there are no others, through both of its own.
    let mut few = roster(2);
    few.nodes[1].attached = ["t1", "t2"].map(id).to_vec();
    let found = through(&few, "a", "b");
    assert_eq!(found[2], [&found[1][..], &found[0][..]].concat());
    few.nodes[1].attached = vec![id("gone")];
    assert!(through(&few, "a", "b").is_empty());
}

#[test]
fn a_node_has_places_near_and_elsewhere() {
    let at = |roster: &Roster| names(&places(roster, &id("b"), |_| true));
    assert!(at(&roster(0)).is_empty());
    assert_eq!(at(&roster(2)).len(), 2);
    let all_alike = at(&roster(20));
    assert_eq!(all_alike.len(), PLACES);
    // One that goes changes the others' order for nobody.
    let mut less = roster(20);
    less.nodes.retain(|node| node.id.as_str() != all_alike[0]);
    assert_eq!(at(&less)[..2], all_alike[1..]);

    let mut regions = roster(20);
    regions.nodes[1].placement.region = Some("here".parse().unwrap());
    for (name, last, region) in [("t90", 90, "here"), ("t91", 91, "here"), ("t92", 92, "far")] {
        regions
            .nodes
            .push(node(name, Role::Relay, last, Some(region)));
    }
    let chosen = at(&regions);
    assert!(["t90", "t91"].contains(&chosen[0].as_str()), "{chosen:?}");
    // The other two are in other regions: in none, and far away.
    assert!(chosen.contains(&"t92".to_owned()), "{chosen:?}");
    assert!(
        !chosen[1..]
            .iter()
            .any(|name| ["t90", "t91"].contains(&name.as_str()))
    );
}

#[test]
fn relays_are_spread_over_pairs_of_nodes() {
    let roster = roster(10);
    let mut counts = BTreeMap::<NodeId, u32>::new();
    for gateway in 0..500 {
        let from = id(&format!("g{gateway}"));
        for way in ways(&roster, &from, &id("b"), |_| true).into_iter().take(2) {
            *counts.entry(way.hops[0].node.clone()).or_default() += 1;
        }
    }
    // 1,000 over ten relays; five standard deviations of a fair draw are 47.
    assert!(
        counts.values().all(|count| (53..=147).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn a_relay_of_twice_the_weight_is_first_for_twice_as_many_and_others_keep_their_order() {
    let equal = roster(4);
    let mut weighted = roster(4);
    for (node, weight) in [(2, 200), (3, 50)] {
        weighted.nodes[node].placement.weight = weight.try_into().unwrap();
    }
    let mut first = BTreeMap::<String, u32>::new();
    for gateway in 0..4_500 {
        let from = format!("g{gateway}");
        let order = |roster: &Roster| through(roster, &from, "b").remove(3);
        let one = order(&weighted).remove(0);
        *first.entry(one).or_default() += 1;
        let unchanged = |roster: &Roster| {
            let mut order = order(roster);
            order.retain(|relay| ["t3", "t4"].contains(&relay.as_str()));
            order
        };
        let (before, after) = (unchanged(&equal), unchanged(&weighted));
        assert!(before.len() < 2 || after.len() < 2 || before == after);
    }
    // Of 450: five standard deviations of a fair draw.
    for (relay, weight) in [("t1", 200.0), ("t2", 50.0), ("t3", 100.0), ("t4", 100.0)] {
        let part: f64 = weight / 450.0;
        let off = f64::from(first[relay]) - 4_500.0 * part;
        let deviation = (4_500.0 * part * (1.0 - part)).sqrt();
        assert!(off.abs() < 5.0 * deviation, "{relay}: {first:?}");
    }
}
