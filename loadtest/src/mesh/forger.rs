//! Members of the cluster whose tags are right and whose leases are forged.

use std::{net::UdpSocket, sync::Arc};

use wavry_credentials::{
    identity::Identity,
    token::{Scope, SigningKey, lease::AUDIENCE},
};
use wavry_proto::{
    id::{Epoch, NodeId},
    overlay::{
        Authenticator,
        packet::{Claim, Label, Next, Ruling, Verdict},
    },
    token::{self, Lease, Validity},
};

use super::{Bed, Node, Relay, failed};
use crate::{Error, shaper::Host};

/// Cookies that a forger has left: more than a relay gives it in a turn.
const COOKIES: usize = 1_024;

/// A member without QUIC: it claims flows to an exit through a relay, with a lease that no master signed.
pub(crate) struct Forger {
    pub(crate) host: Host,
    socket: UdpSocket,
    authenticator: Arc<dyn Authenticator>,
    claim: Claim,
    cookies: Vec<u64>,
    packet: Vec<u8>,
    /// Claims that were granted.
    pub(crate) granted: u64,
}

impl Bed {
    /// Has leases looked at: who claims with one needs the signature of the key that is given.
    pub(crate) fn sign_leases(&self) -> SigningKey {
        let key = SigningKey::generate();
        self.publish(|roster| roster.token_keys = vec![key.public_paserk()]);
        key
    }

    /// A member that has what `key` signed, with one bit of the signature flipped: what costs a relay the most.
    pub(crate) fn forger(
        &self,
        name: &str,
        relay: &Relay,
        exit: &Node,
        key: &SigningKey,
    ) -> Result<Forger, Error> {
        let (id, identity) = (
            name.parse::<NodeId>().map_err(failed)?,
            Identity::generate(),
        );
        let tls = identity.mesh_tls(self.roster.subscribe()).map_err(failed)?;
        let host = self.network.host().map_err(failed)?;
        let socket = UdpSocket::bind("127.0.0.1:0").map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        self.network
            .attach(host, socket.local_addr().map_err(failed)?);
        self.list(&id, identity.public_key(), vec![host.address()], Vec::new());
        let lease = Lease {
            sub: id.clone(),
            peer: exit.id.clone(),
            hops: vec![relay.id.clone()],
            flow: Label::from_random(1),
            bps: 1_000_000_000,
            pps: 1_000_000,
            epoch: Epoch(1),
            validity: Validity {
                iat: 0,
                nbf: 0,
                exp: token::MAX_LEASE_LIFETIME,
            },
        };
        let roster = self.roster();
        let scope = Scope {
            cluster: &roster.cluster,
            audience: AUDIENCE,
            binding: &[],
        };
        let mut lease = token::pack(&key.sign(&lease, scope)).map_err(failed)?;
        if let Some(last) = lease.last_mut() {
            *last ^= 1;
        }
        let claim = Claim {
            flow: Label::NONE,
            nonce: 0,
            cookie: 0,
            from: id.clone(),
            to: relay.id.clone(),
            peer: exit.id.clone(),
            hops: vec![relay.id.clone()],
            next: Next::At(exit.host.address()),
            lease,
        };
        Ok(Forger {
            host,
            socket,
            authenticator: tls.authenticator,
            claim,
            cookies: Vec::new(),
            packet: Vec::new(),
            granted: 0,
        })
    }
}

impl Forger {
    /// Claims so many flows, with the cookies that it has; how many of them were sent.
    pub(crate) fn claim(&mut self, flows: u64, at: Host) -> u64 {
        self.listen();
        let mut sent = 0;
        for _ in 0..flows {
            self.claim.nonce += 1;
            self.claim.flow =
                Label::from_random(self.claim.nonce.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            self.claim.cookie = self.cookies.pop().unwrap_or(0);
            let (authenticator, relay) = (&self.authenticator, &self.claim.to);
            self.claim.write(&mut self.packet, |message, tags| {
                authenticator.tags(relay, message, tags);
            });
            sent += u64::from(self.socket.send_to(&self.packet, at.address()).is_ok());
        }
        sent
    }

    /// Takes what the relay has said.
    fn listen(&mut self) {
        let mut packet = [0; 2_048];
        while let Ok(len) = self.socket.recv(&mut packet) {
            match Verdict::read(&packet[..len]).map(|verdict| verdict.said.ruling) {
                Ok(Ruling::Prove { cookie }) if self.cookies.len() < COOKIES => {
                    self.cookies.push(cookie)
                }
                Ok(Ruling::Granted { .. }) => self.granted += 1,
                _ => {}
            }
        }
    }
}
