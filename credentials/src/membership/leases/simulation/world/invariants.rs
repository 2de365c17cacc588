//! What holds of the world after each step, and once all is well again.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use wavry_proto::{
    control::Roster,
    id::NodeId,
    overlay::{
        lease::{Offer, Silence},
        packet::{Label, Ruling},
        transit::LASTS,
    },
    token::Lease,
};

use super::{
    super::{Broken, Sabotage},
    BEGINNING, CLAIMANTS, REVOKED_WITHIN, World, at, id, transit, wall,
};

/// A flow whose lease was revoked goes on for so long.
const VOID_LAGS: Duration = Duration::from_millis(2250);

impl World {
    /// Which invariant does not hold.
    pub(super) fn check(&mut self) -> Option<(u32, String)> {
        if let Some(amplified) = self
            .events
            .iter()
            .find(|event| event.starts_with("amplified"))
        {
            return Some((2, amplified.clone()));
        }
        for number in 0..self.claimants.len() {
            for which in 0..self.claimants[number].passages.len() {
                let flow = self.claimants[number].passages[which].flow();
                let way = self.claimants[number].passages[which].to_lease();
                let claimant = self.claimants[number].id.clone();
                for relay in 0..self.relays.len() {
                    let source = match way
                        .hops
                        .iter()
                        .position(|hop| *hop == id(&format!("t{relay}")))
                    {
                        Some(0) => self.claimants[number].address,
                        Some(_) => transit(0),
                        None => continue,
                    };
                    if let Some(broken) = self.forwards(relay, flow, source, &claimant) {
                        return Some(broken);
                    }
                }
            }
        }
        None
    }

    /// A packet of this flow comes to a relay: what is wrong if that forwards it.
    fn forwards(
        &mut self,
        number: usize,
        flow: Label,
        source: SocketAddr,
        claimant: &NodeId,
    ) -> Option<(u32, String)> {
        let now = self.now;
        let relay = &mut self.relays[number];
        let to = match relay.flows.forward(flow, source, 1, 100, now) {
            Ok(to) => to,
            Err(_) if self.sabotage == Some(Sabotage::OpenRelay) => at(200, 1),
            Err(_) => return None,
        };
        let roster = relay.node.roster.borrow().clone();
        let is_listed = roster
            .nodes
            .iter()
            .any(|node| node.addresses.contains(&to) || node.transit.contains(&to));
        if !is_listed && !relay.proved.contains(&to) {
            return Some((4, format!("t{number} sends to {to}")));
        }
        // In silence, and what began in it.
        let trails = Silence::ENDS + LASTS + Duration::from_secs(1);
        let was_silent = relay.silent.is_some_and(|silent| now - silent <= trails);
        let wall = wall(self.start, now, relay.node.skew).as_secs();
        let void = |lease: &Lease, roster: &Roster| {
            let node = roster.node(claimant);
            node.is_none_or(|node| lease.epoch < node.leases_since())
        };
        let holds = |lease: &&Lease| {
            let is_of =
                lease.flow == flow && lease.sub == *claimant && lease.hops.contains(&relay.id);
            // A second is what both clocks are read to.
            let lasts = lease.validity.exp + 1 > wall;
            let lately = relay
                .before
                .iter()
                .any(|(until, before)| now - *until <= VOID_LAGS && !void(lease, before));
            is_of && lasts && (!void(lease, &roster) || lately)
        };
        let leased = self.signed.iter().rev().find(holds);
        match leased {
            Some(_) => self.counts.leased += 1,
            None if was_silent => self.counts.in_silence += 1,
            None => {
                let what = format!("t{number} forwards {flow} of {claimant} without a lease");
                return Some((1, what));
            }
        }
        // What it could hear of, it has heard.
        let revoked = self.revoked.get(claimant).copied();
        let follows = relay.follows;
        if let Some(revoked) = revoked
            && now - revoked > REVOKED_WITHIN
            && follows.is_some_and(|since| since <= revoked)
            && !was_silent
        {
            let since = (revoked - self.start).as_secs() + BEGINNING;
            let is_after = self.signed.iter().rev().any(|lease| {
                lease.flow == flow && lease.validity.iat >= since && !void(lease, &roster)
            });
            if !is_after {
                let what = format!("t{number} forwards {flow} of {claimant}, which was revoked");
                return Some((3, what));
            }
        }
        None
    }

    /// Flows that carry packets to the exit.
    pub(in super::super) fn carried(&mut self) -> usize {
        let mut carried = 0;
        for number in 0..self.claimants.len() {
            for which in 0..self.claimants[number].passages.len() {
                let passage = &self.claimants[number].passages[which];
                let (flow, now) = (passage.flow(), self.now);
                let mut source = self.claimants[number].address;
                let Some(_) = passage.route(now) else {
                    continue;
                };
                let way = passage.to_lease();
                let through = way.hops.iter().all(|hop| {
                    let relay = self.relays.iter().position(|relay| relay.id == *hop);
                    let relay = relay.unwrap();
                    let to = self.relays[relay].flows.forward(flow, source, 1, 100, now);
                    source = transit(relay);
                    to.is_ok()
                });
                carried += usize::from(through);
            }
        }
        carried
    }

    /// How each flow does.
    fn standing(&self) -> Vec<(String, bool, Option<Ruling>, Offer)> {
        let mut standing = Vec::new();
        for claimant in &self.claimants {
            let wall = wall(self.start, self.now, claimant.node.skew);
            for passage in &claimant.passages {
                let flow = passage.flow();
                let name = format!("{flow} {:?}", passage.to_lease().hops);
                let is_open = passage.route(self.now).is_some();
                let offer = match claimant.book.offer(flow, wall) {
                    Offer::Lease(_) => Offer::Lease(Arc::default()),
                    other => other,
                };
                standing.push((name, is_open, self.rulings.get(&flow).copied(), offer));
            }
        }
        standing
    }

    /// Whether every flow carries packets.
    pub(in super::super) fn is_well(&mut self) -> Result<(), Broken> {
        let wanted = CLAIMANTS.len() * 3;
        match self.carried() {
            carried if carried == wanted => Ok(()),
            carried => Err(Broken {
                invariant: 5,
                what: format!(
                    "{carried} of {wanted} flows carry packets: {:?}",
                    self.standing()
                ),
                events: self.events.clone(),
            }),
        }
    }
}
