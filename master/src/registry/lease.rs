//! Leases of flows through transit relays: whether a way is one, and what its lease says.

use std::{
    sync::{MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use wavry_credentials::{
    clock::unix_time,
    signer::{self, SignError},
    token::Scope,
};
use wavry_proto::{
    control::{
        Role, Roster,
        lease::{Answer, NoLease, Way},
    },
    id::NodeId,
    overlay::packet::MAX_HOPS,
    token::{Lease, Validity},
};

use super::Registry;
use crate::config::Leases;

/// Who could not be given a lease asks again within some seconds.
const LATELY: Duration = Duration::from_secs(60);

impl Registry {
    /// Signs a lease for each way that `claimant` may have, by what the roster says now.
    pub(crate) async fn lease(
        &self,
        claimant: &NodeId,
        ways: Vec<Way>,
        leases: &Leases,
    ) -> Result<Vec<Answer>, SignError> {
        let published = self.published().borrow().clone();
        let (roster, ring) = (&published.roster, &published.ring);
        let scope = Scope {
            cluster: &roster.cluster,
            audience: "transit",
            binding: &[],
        };
        let now = unix_time();
        let answers = ways.into_iter().map(async |way| {
            let lease = match lease(roster, claimant, way, leases, now) {
                Ok(lease) => lease,
                Err(why) => return Ok(Answer::Refused(why)),
            };
            let signed = signer::sign(&*ring.signing, &lease, scope);
            signed.await.map(Answer::Lease)
        });
        let answers = try_join_all(answers).await;
        // Where nothing was to be signed, nothing is known.
        let signed = |answer: &Answer| matches!(answer, Answer::Lease(_));
        match &answers {
            Err(_) => *self.unsigned() = Some(Instant::now()),
            Ok(answers) if answers.iter().any(signed) => *self.unsigned() = None,
            Ok(_) => {}
        }
        answers
    }

    /// Whether what was to be signed lately could be. Relays hear of it, and want no lease where none can be had.
    pub(crate) fn signs(&self) -> bool {
        let failed = self.unsigned().is_some_and(|at| at.elapsed() < LATELY);
        *self.shared.signs.borrow() && !failed
    }

    fn unsigned(&self) -> MutexGuard<'_, Option<Instant>> {
        let unsigned = &self.shared.unsigned_leases;
        unsigned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the lease of a way says at `now`, in seconds since the Unix epoch.
fn lease(
    roster: &Roster,
    claimant: &NodeId,
    way: Way,
    leases: &Leases,
    now: u64,
) -> Result<Lease, NoLease> {
    let Way { flow, peer, hops } = way;
    let ids = || hops.iter().chain([&peer, claimant]);
    let twice = |id: &NodeId| ids().filter(|other| *other == id).count() > 1;
    if !(1..=MAX_HOPS).contains(&hops.len()) || ids().any(twice) {
        return Err(NoLease::NotAWay);
    }
    let listed = |id: &NodeId| roster.node(id).filter(|node| node.role.is_in_mesh());
    let terms = listed(claimant).ok_or(NoLease::NotListed)?.leases;
    let forwards = |id: &NodeId| {
        let node = roster.node(id);
        node.is_some_and(|node| node.role == Role::Relay && !node.transit.is_empty())
    };
    if listed(&peer).is_none() || !hops.iter().all(forwards) {
        return Err(NoLease::NotListed);
    }
    Ok(Lease {
        sub: claimant.clone(),
        peer,
        hops,
        flow,
        bps: terms.bits_per_second.unwrap_or(leases.bits_per_second),
        pps: terms
            .packets_per_second
            .unwrap_or(leases.packets_per_second),
        epoch: roster.epoch,
        validity: Validity {
            iat: now,
            nbf: now,
            exp: now + leases.lifetime.as_secs(),
        },
    })
}

#[cfg(test)]
mod tests {
    use wavry_proto::{
        control::{Node, lease::Terms},
        id::Epoch,
        overlay::packet::Label,
        token::{MAX_LEASE_LEN, MAX_LEASE_LIFETIME},
    };

    use super::*;

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn roster() -> Roster {
        let node = |name: &str, role, transit: &[&str]| Node {
            id: id(name),
            role,
            keys: Vec::new(),
            addresses: Vec::new(),
            transit: transit.iter().map(|at| at.parse().unwrap()).collect(),
            services: Vec::new(),
            registration: 1,
            attached: Vec::new(),
            leases: Terms::default(),
            placement: Default::default(),
        };
        Roster {
            epoch: Epoch(7),
            nodes: vec![
                node("a", Role::Gateway, &[]),
                node("b", Role::Relay, &[]),
                node("t1", Role::Relay, &["192.0.2.1:1"]),
                node("t2", Role::Relay, &["192.0.2.2:1"]),
                node("v", Role::KeyVault, &[]),
            ]
            .into(),
            ..Roster::empty("c1".parse().unwrap())
        }
    }

    fn way(peer: &str, hops: &[&str]) -> Way {
        Way {
            flow: Label::from_random(1),
            peer: id(peer),
            hops: hops.iter().map(|hop| id(hop)).collect(),
        }
    }

    #[test]
    fn a_lease_is_for_a_way_between_registered_nodes_through_relays_that_forward() {
        let granted = |claimant: &str, way| {
            lease(&roster(), &id(claimant), way, &Leases::default(), 100).map(|lease| lease.hops)
        };
        assert!(granted("a", way("b", &["t1", "t2"])).is_ok());
        for (claimant, way, why) in [
            ("a", way("b", &[]), NoLease::NotAWay),
            ("a", way("b", &["t1", "t2", "t1"]), NoLease::NotAWay),
            ("a", way("b", &["t1", "t2", "a"]), NoLease::NotAWay),
            ("a", way("b", &["t1", "b"]), NoLease::NotAWay),
            ("a", way("a", &["t1"]), NoLease::NotAWay),
            ("a", way("b", &["t1", "t2", "t3", "t4"]), NoLease::NotAWay),
            ("a", way("c", &["t1"]), NoLease::NotListed),
            ("c", way("b", &["t1"]), NoLease::NotListed),
            ("t1", way("a", &["b"]), NoLease::NotListed),
            ("b", way("t1", &["a"]), NoLease::NotListed),
            ("a", way("b", &["t1", "t3"]), NoLease::NotListed),
            // It has no part in the mesh.
            ("v", way("b", &["t1"]), NoLease::NotListed),
            ("a", way("v", &["t1"]), NoLease::NotListed),
            ("a", way("b", &["v"]), NoLease::NotListed),
        ] {
            assert_eq!(granted(claimant, way.clone()), Err(why), "{way:?}");
        }
    }

    #[test]
    fn what_a_flow_may_carry_is_as_configured_unless_it_is_said_of_its_node() {
        let mut roster = roster();
        let rates = |roster: &Roster| {
            let way = way("b", &["t1"]);
            let lease = lease(roster, &id("a"), way, &Leases::default(), 100).unwrap();
            assert_eq!(lease.epoch, roster.epoch);
            assert_eq!(lease.validity.exp, 100 + MAX_LEASE_LIFETIME);
            (lease.bps, lease.pps)
        };
        assert_eq!(rates(&roster), (1_000_000_000, 125_000));
        roster.nodes[0].leases.bits_per_second = Some(2_000_000);
        assert_eq!(rates(&roster), (2_000_000, 125_000));
        roster.nodes[0].leases.packets_per_second = Some(9);
        assert_eq!(rates(&roster), (2_000_000, 9));
    }

    #[tokio::test]
    async fn the_longest_lease_is_within_its_bound() {
        let key = wavry_credentials::token::SigningKey::generate();
        let longest = id(&"a".repeat(63));
        let lease = Lease {
            sub: longest.clone(),
            peer: longest.clone(),
            hops: vec![longest; MAX_HOPS],
            flow: Label::from_random(1),
            bps: u64::MAX,
            pps: u64::MAX,
            epoch: Epoch(u64::MAX),
            validity: Validity {
                iat: u64::MAX,
                nbf: u64::MAX,
                exp: u64::MAX,
            },
        };
        let scope = Scope {
            cluster: &"c1".parse().unwrap(),
            audience: "transit",
            binding: &[],
        };
        let token = signer::sign(&key, &lease, scope).await.unwrap();
        assert!(token.len() <= MAX_LEASE_LEN, "{}", token.len());
    }
}
