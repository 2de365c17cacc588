//! The right to order, and what others obtain meanwhile.

use std::time::Duration;

use ::metrics::counter;
use tokio::{sync::watch, time::sleep};

use super::{LONGEST_SLEEP, Work, check};
use crate::{
    acme::{
        machine::{Certificate, Machine},
        metrics as names,
        storage::{Left, Storage, Taken},
    },
    cert::{Pair, Store, pairs::Issued},
    clock::since_epoch,
};

impl<S: Storage> Work<S> {
    /// Asks for the right to order, and takes in what comes with it. How long to wait before another question
    /// where somebody else has it.
    pub(super) async fn take(
        &mut self,
        machine: &mut Machine,
        store: &Store,
        installed: &watch::Sender<bool>,
    ) -> Option<Duration> {
        let (room, storage) = (self.authorities.room.clone(), self.storage.clone());
        let place = tokio::select! {
            // Nobody closes it.
            place = room.acquire_owned() => place.ok(),
            pair = storage.newer() => {
                self.adopt(pair, machine, store, installed).await;
                return Some(Duration::ZERO);
            }
        };
        let left = match self.storage.take().await {
            Ok(Taken::Ours(left)) => *left,
            Ok(Taken::Elsewhere(pause)) => return Some(pause),
            Err(trouble) => {
                let error = &trouble.said;
                tracing::warn!(error, "no certificate can be ordered now");
                return Some(LONGEST_SLEEP);
            }
        };
        self.is_ours = true;
        self.place = place;
        let Left {
            record,
            pending,
            pair,
        } = left;
        if let Some(record) = record {
            machine.fared(self.backoffs(&record));
        }
        if let Some(pair) = pair {
            self.adopt(pair, machine, store, installed).await;
        }
        if let Some(pending) = pending
            && let Some(authority) = self.authority_named(&pending.authority)
            && machine.due() <= since_epoch()
        {
            let authority_name = &pending.authority;
            tracing::info!(authority = authority_name, "an order is gone on with");
            self.resumed = Some(pending.url);
            self.key = Some(pending.key);
            machine.resume(authority, since_epoch());
            return None;
        }
        self.put_off(machine).await
    }

    /// How long the first certificate of a host is put off, where many hosts got one of late; the right to order
    /// is given back then.
    async fn put_off(&mut self, machine: &Machine) -> Option<Duration> {
        let demand = self.demand.as_ref()?;
        if machine.certificate().is_some() || !machine.begins(since_epoch()) {
            return None;
        }
        let wait = match self.storage.charge(demand.pace).await {
            Ok(wait) => wait?,
            Err(trouble) => {
                let error = &trouble.said;
                tracing::warn!(error, "what is ordered for hosts cannot be counted");
                LONGEST_SLEEP
            }
        };
        counter!(names::DEMAND_PUT_OFF).increment(1);
        self.end_attempt(machine).await;
        Some(wait)
    }

    /// Waits, and takes in what others obtain meanwhile.
    pub(super) async fn wait(
        &mut self,
        pause: Duration,
        machine: &mut Machine,
        store: &Store,
        installed: &watch::Sender<bool>,
    ) {
        let storage = self.storage.clone();
        let unwanted = self.demand.as_ref().map(|demand| demand.wanted.clone());
        let asked = async {
            match unwanted {
                Some(mut wanted) if !*wanted.borrow() => {
                    // Where nobody is left to ask, this is about to end.
                    let _ = wanted.wait_for(|wanted| *wanted).await;
                }
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = asked => {}
            () = sleep(pause.min(LONGEST_SLEEP)) => {}
            () = storage.keep(), if self.is_ours => {
                machine.abandon();
                (self.is_ours, self.place) = (false, None);
                self.forget_attempt();
            }
            pair = storage.newer(), if !self.is_ours => {
                self.adopt(pair, machine, store, installed).await;
            }
        }
    }

    /// Puts a pair in use that another gateway obtained, if it is good and newer.
    async fn adopt(
        &mut self,
        (pair, issued): (Pair, Issued),
        machine: &mut Machine,
        store: &Store,
        installed: &watch::Sender<bool>,
    ) {
        if self.leaf.as_ref() == Some(pair.leaf()) {
            return;
        }
        let known = self.known(&pair, &issued);
        let newer = |in_use: Certificate| known.validity.end > in_use.validity.end || !in_use.fits;
        let refused = match check(&known, since_epoch()) {
            Ok(()) if !machine.certificate().is_none_or(newer) => {
                Some("is older than the one in use")
            }
            Ok(()) => None,
            Err(problem) => Some(problem),
        };
        if let Some(problem) = refused {
            tracing::warn!(
                problem,
                "a certificate of another gateway is not put in use"
            );
            return;
        }
        let leaf = pair.leaf().clone();
        match store.install(&self.origin, pair) {
            Ok(()) => {
                let authority = issued.authority;
                tracing::info!(
                    authority,
                    "a certificate that another gateway obtained is in use"
                );
                self.leaf = Some(leaf);
                machine.replaced(known, since_epoch());
                self.failures = 0;
                self.answer_wishes(None);
                installed.send_replace(true);
            }
            Err(error) => tracing::error!(%error, "a certificate of another gateway is not in use"),
        }
    }
}
