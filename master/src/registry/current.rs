//! Serving what the database holds now, where other masters write to it too.
//!
//! A master learns of another's change by word ([`Store::listen`](crate::store::Store::listen)), and looks
//! every second in any case. Whoever asks for something that must not be older than what was answered
//! elsewhere has it look first ([`Registry::catch_up`]); all who ask at once share one look. A master that
//! cannot look says so, and its clients go on with another.

use std::time::{Duration, Instant};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use super::{Published, Registry, Shared};
use crate::{authority::Authorities, metrics as names, problem::Refusal, ring::Ring, store};

/// How often a master looks without word.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A look takes so long at most.
const LOOK_DEADLINE: Duration = Duration::from_secs(2);
/// A master that could not look for so long ends requests that wait for a newer roster: with the time
/// that a look may take, less than the 5 s in which a revocation is to reach every node.
const BEHIND_AFTER: Duration = Duration::from_secs(2);

impl Registry {
    /// Has what is served be no older than what the database held when this was called.
    pub(crate) async fn catch_up(&self) -> Result<(), Refusal> {
        let shared = &self.shared;
        if !shared.store.is_shared() {
            return Ok(());
        }
        match timeout(LOOK_DEADLINE, shared.look(Instant::now())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if !error.is_of_the_moment() => Err(Refusal::Internal(error)),
            Ok(Err(error)) => Err(Refusal::Behind(error)),
            Err(_) => Err(Refusal::Behind(store::Error::TooSlow)),
        }
    }

    /// Follows other masters' changes. It never ends.
    pub(crate) async fn follow_others(&self) {
        let shared = &self.shared;
        if !shared.store.is_shared() {
            return std::future::pending().await;
        }
        let news = Notify::new();
        let look = async {
            let mut current = Instant::now();
            loop {
                let looked = self.catch_up().await;
                match &looked {
                    Ok(()) => current = Instant::now(),
                    Err(refusal) => tracing::debug!(%refusal, "the database was not looked at"),
                }
                let is_current = current.elapsed() < BEHIND_AFTER;
                if shared.is_current.send_replace(is_current) != is_current {
                    match is_current {
                        true => tracing::info!("what is served is current again"),
                        false => {
                            tracing::error!("the database cannot be read; nodes are sent elsewhere")
                        }
                    }
                }
                metrics::gauge!(names::CURRENT).set(f64::from(u8::from(is_current)));
                let _ = timeout(LOOK_AGAIN, news.notified()).await;
            }
        };
        tokio::select! {
            () = look => (),
            () = shared.store.listen(&news) => (),
        }
    }

    /// Whether this master sees what others write, as that changes.
    pub(crate) fn is_current(&self) -> watch::Receiver<bool> {
        self.shared.is_current.subscribe()
    }

    /// Returns once this master has been unable to see what others write.
    pub(crate) async fn behind(&self) {
        let mut is_current = self.is_current();
        // The sender is `self`'s.
        let _ = is_current.wait_for(|is_current| !is_current).await;
    }
}

impl Shared {
    /// Looks, unless somebody began to since `asked`.
    async fn look(&self, asked: Instant) -> Result<(), store::Error> {
        let mut looked = self.looked.lock().await;
        if *looked >= asked {
            return Ok(());
        }
        let now = Instant::now();
        let (epoch, revision) = self.store.versions().await?;
        if epoch > self.published.borrow().roster.epoch {
            self.reload().await?;
        }
        self.fleet_has(revision);
        *looked = now;
        Ok(())
    }

    /// Serves what the database holds, keys and all.
    pub(super) async fn reload(&self) -> Result<(), store::Error> {
        let state = self.store.state().await?;
        let ring = Ring::of(state.keys, &self.custody)?;
        let authorities = Authorities::of(state.authorities, &self.custody);
        self.serve(Published::new(
            state.snapshot,
            ring.into(),
            authorities.into(),
            &self.cluster,
        ));
        Ok(())
    }
}
