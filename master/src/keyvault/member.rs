//! A KeyVault that runs alone as a node of a cluster: it has its certificate from the cluster's authority, and knows
//! from the roster whose certificates hold. It needs no master for anything else.

use std::{future::Future, sync::Arc};

use tokio::sync::watch;
use wavry_credentials::{
    cert::{self, Member},
    membership::{self, Membership},
};
use wavry_proto::control::Roster;

use crate::{authority, shown};

/// The roster as the KeyVault knows it: none until it has joined, and while the newest is too old to act on.
#[derive(Clone, Default)]
pub(super) struct Listed(Arc<Shared>);

#[derive(Default)]
struct Shared {
    vouching: cert::Authorities,
    roster: watch::Sender<Option<Arc<Roster>>>,
}

impl Listed {
    /// Follows the roster once the node has joined, as long as it is polled.
    pub(super) async fn follow(
        self,
        joining: impl Future<Output = Result<Membership, membership::Error>>,
    ) {
        let membership = match joining.await {
            Ok(membership) => membership,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                return tracing::error!(
                    error,
                    "this KeyVault is no node of its cluster; its certificate is not renewed"
                );
            }
        };
        let mut rosters = membership.roster();
        loop {
            let roster = rosters.borrow_and_update().clone();
            let trusted = authority::certificates(&roster.authorities.trusted);
            self.0.vouching.replace(trusted);
            self.0.roster.send_replace(Some(roster));
            if rosters.changed().await.is_err() {
                return;
            }
        }
    }
}

impl shown::Roster for Listed {
    fn vouching(&self) -> &cert::Authorities {
        &self.0.vouching
    }

    fn lists(&self, member: &Member) -> bool {
        let roster = self.0.roster.borrow();
        roster
            .as_ref()
            .is_some_and(|roster| member.is_listed_in(roster))
    }
}
