//! What the master knows of one TLS connection: its exporter, its peer, and the nonces given on it.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use rustls::pki_types::CertificateDer;
use wavry_credentials::{
    cert::{Authorities, Member, NotVouchedFor},
    random,
};
use wavry_proto::control::EXPORTER_LEN;

/// One TLS connection. Nonces live and die with it, so none is of use on another.
#[derive(Debug)]
pub(crate) struct Channel {
    /// TLS exporter (RFC 9266).
    pub(crate) exporter: [u8; EXPORTER_LEN],
    /// The other end.
    pub(crate) peer: SocketAddr,
    /// The certificates that the client proved to hold, its own first; none where none were asked for.
    pub(crate) peer_certificates: Vec<CertificateDer<'static>>,
    nonces: Mutex<VecDeque<(String, Instant)>>,
    /// Whom the certificates name, once that was found to hold.
    vouched: Mutex<Option<Vouched>>,
}

/// A certificate that was found to hold: by whom, and until when that stays so.
#[derive(Debug, Clone)]
struct Vouched {
    generation: u64,
    until: SystemTime,
    member: Member,
}

/// Nonces open at once on a connection: a node needs one at a time, and asks again after a failure.
const MAX_NONCES: usize = 4;
/// How long a nonce can be used.
const NONCE_LIFETIME: Duration = Duration::from_secs(60);

impl Channel {
    pub(crate) fn new(exporter: [u8; EXPORTER_LEN], peer: SocketAddr) -> Self {
        Self {
            exporter,
            peer,
            peer_certificates: Vec::new(),
            nonces: Mutex::default(),
            vouched: Mutex::default(),
        }
    }

    /// The same, of a client that proved to hold certificates.
    pub(crate) fn with_peer_certificates(self, certificates: Vec<CertificateDer<'static>>) -> Self {
        Self {
            peer_certificates: certificates,
            ..self
        }
    }

    /// The same connection, as if its client had shown none.
    pub(crate) fn without_certificates(&self) -> Self {
        Self::new(self.exporter, self.peer)
    }

    /// Whether its certificate names a node, whoever signed it.
    pub(crate) fn names_member(&self) -> bool {
        self.peer_certificates
            .first()
            .and_then(Member::of)
            .is_some()
    }

    /// Whom its certificates name, if these authorities vouch for them at `now`. What was found to hold is not
    /// verified again until it expires or there are other authorities.
    pub(crate) fn member(
        &self,
        authorities: &Authorities,
        now: SystemTime,
    ) -> Result<Member, NotVouchedFor> {
        let mut vouched = self.vouched.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = authorities.generation();
        let known = vouched
            .as_ref()
            .filter(|vouched| vouched.generation == generation && now < vouched.until);
        if let Some(known) = known {
            return Ok(known.member.clone());
        }
        let (member, until) = authorities.member(&self.peer_certificates, now)?;
        *vouched = Some(Vouched {
            generation,
            until,
            member: member.clone(),
        });
        Ok(member)
    }

    /// A fresh nonce. The oldest open one goes when there are too many.
    pub(crate) fn challenge(&self, now: Instant) -> String {
        let nonce = hex::encode(random::bytes::<32>());
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        if nonces.len() == MAX_NONCES {
            nonces.pop_front();
        }
        nonces.push_back((nonce.clone(), now));
        nonce
    }

    /// Whether this nonce is open, which it is not afterwards.
    pub(crate) fn take(&self, nonce: &str, now: Instant) -> bool {
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = nonces.iter().position(|(open, _)| open == nonce) else {
            return false;
        };
        nonces
            .remove(at)
            .is_some_and(|(_, given)| now.saturating_duration_since(given) < NONCE_LIFETIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> Channel {
        Channel::new([0; 32], SocketAddr::from(([127, 0, 0, 1], 1)))
    }

    #[test]
    fn a_nonce_is_good_once_and_for_a_minute() {
        let (channel, now) = (channel(), Instant::now());
        let nonce = channel.challenge(now);
        assert!(channel.take(&nonce, now + Duration::from_secs(59)));
        assert!(!channel.take(&nonce, now));

        let nonce = channel.challenge(now);
        assert!(!channel.take(&nonce, now + Duration::from_secs(60)));
        assert!(!channel.take(&nonce, now));
    }

    #[test]
    fn a_nonce_that_was_not_given_is_not_taken_and_spends_no_other() {
        let (given, other, now) = (channel(), channel(), Instant::now());
        let nonce = given.challenge(now);
        let foreign = other.challenge(now);
        for made_up in ["", &"0".repeat(64), &foreign] {
            assert!(!given.take(made_up, now));
        }
        assert!(given.take(&nonce, now));
    }

    #[test]
    fn a_connection_holds_few_nonces() {
        let (channel, now) = (channel(), Instant::now());
        let nonces: Vec<_> = (0..1000).map(|_| channel.challenge(now)).collect();
        let open = nonces.iter().filter(|n| channel.take(n, now)).count();
        assert_eq!(open, MAX_NONCES);
    }
}
