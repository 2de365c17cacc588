//! Certificates of nodes, and the turns of who signs them.

use wavry_credentials::{
    audit::Event,
    cert::{
        self, Member,
        authority::{Request, Validity},
    },
};
use wavry_proto::{control::IssuedCertificate, id::NodeId};

use tokio::time::timeout;

use super::{AUDIT_DEADLINE, Registry, unix_time};
use crate::{
    authority::{self, Demand, now},
    keys::{Due, Pace, Reason, due},
    metrics as names,
    problem::Refusal,
    store::{CertifyError, Order, keys::Rotation},
};

impl Registry {
    /// Who vouches for the certificates of nodes, as that changes.
    pub(crate) fn vouching(&self) -> &cert::Authorities {
        &self.shared.vouching
    }

    /// How long authorities stay in each part of their life; `None` where this master has none.
    pub(crate) fn authority_pace(&self) -> Option<Pace> {
        Some(self.shared.authority.as_ref()?.pace)
    }

    /// Whether nodes must show a certificate; `None` where they are not asked for one.
    pub(crate) fn demand(&self) -> Option<Demand> {
        Some(self.shared.authority.as_ref()?.node_certificates)
    }

    /// Whether this is a node as the roster lists it.
    pub(crate) fn lists(&self, member: &Member) -> bool {
        member.is_listed_in(&self.shared.published.borrow().roster)
    }

    /// Issues a certificate to a node that the roster lists; once this returned, that is on record.
    pub(crate) async fn certify(
        &self,
        node: NodeId,
        request: &Request,
        event: Event,
    ) -> Result<IssuedCertificate, Refusal> {
        let published = self.shared.published.borrow().clone();
        let config = self.shared.authority.as_ref();
        let signing = published.authorities.signing.as_ref();
        let (Some(config), Some(signing)) = (config, signing) else {
            return Err(Refusal::NoAuthority);
        };
        let listed = published.roster.node(&node).ok_or(Refusal::UnknownNode)?;
        let member = Member {
            cluster: self.shared.cluster.clone(),
            role: listed.role,
            registration: listed.registration,
            node,
        };
        let validity = Validity::from(now(), config.certificate_lifetime);
        let names = &listed.placement.names;
        let chain = signing.admit(request, &member, names, validity);
        let chain = chain.map_err(|error| Refusal::NotCertified(error.into()))?;
        self.detached(move |shared| async move {
            let written = timeout(AUDIT_DEADLINE, async {
                let _writing = shared.writing.lock().await;
                let store = &shared.store;
                let certified = store.certify(&member.node, member.registration, &event);
                certified.await
            });
            shared.audited::<_, CertifyError>(written.await)
        })
        .await?;
        Ok(IssuedCertificate { chain })
    }

    /// Makes an authority that is to take the place of the one that signs; gives the hash of its certificate.
    pub(crate) async fn rotate_authority(
        &self,
        reason: Reason,
        pace: Pace,
        order: Order,
    ) -> Result<String, Refusal> {
        let rotation = match reason {
            Reason::Compromise => Rotation::AtOnce,
            Reason::Schedule | Reason::Request => Rotation::InTurn(pace),
        };
        let successor = self.next_authority(&pace)?;
        let rotated = self.carry_out(async move |shared| {
            let now = unix_time();
            let store = &shared.store;
            let rotated = store.rotate_authority(&successor, rotation, now, &order);
            rotated.await
        });
        let rotated = rotated.await?;
        let (hash, reason) = (rotated.outcome.0, reason.as_str());
        if !rotated.is_repeated {
            metrics::counter!(names::AUTHORITY_ROTATIONS, "reason" => reason).increment(1);
            tracing::warn!(
                hash,
                reason,
                "a new authority takes the place of the one that signs certificates"
            );
        }
        Ok(hash)
    }

    fn next_authority(&self, pace: &Pace) -> Result<authority::Successor, Refusal> {
        let made = authority::successor(&self.shared.custody, &self.shared.cluster, pace);
        made.map_err(Refusal::NotCertified)
    }

    /// Does what is due of the authorities' lives.
    pub(super) async fn turn_authorities(&self) {
        let Some(pace) = self.authority_pace() else {
            return;
        };
        let lives = self.shared.published.borrow().authorities.lives();
        let due = due(&lives, &pace, unix_time());
        if due.is_empty() {
            return;
        }
        let successor = match due.contains(&Due::Rotate) {
            false => None,
            true => match self.next_authority(&pace) {
                Ok(successor) => Some(successor),
                Err(refusal) => {
                    let error = &refusal as &dyn std::error::Error;
                    return tracing::error!(
                        error,
                        "the next authority could not be made; trying on"
                    );
                }
            },
        };
        let turned = self.detached(move |shared| async move {
            let _writing = shared.writing.lock().await;
            let store = &shared.store;
            let turned = store.turn_authorities(successor.as_ref(), pace, unix_time());
            let (due, changed) = turned.await?;
            shared.audited.send_replace(());
            shared.publish(changed).await?;
            Ok(due)
        });
        match turned.await {
            Ok(due) => {
                if due.contains(&Due::Rotate) {
                    let reason = Reason::Schedule.as_str();
                    metrics::counter!(names::AUTHORITY_ROTATIONS, "reason" => reason).increment(1);
                }
                tracing::info!(?due, "authorities took their turns");
            }
            Err(refusal) => {
                let error = &refusal as &dyn std::error::Error;
                tracing::error!(error, "authorities could not be turned; trying on");
            }
        }
    }
}
