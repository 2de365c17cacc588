//! Pairs that are kept in a KeyVault: each is a secret with two fields, a PEM chain and its PEM key.
//!
//! They are read again and again. What is good is put in use, all that changed in one step; what is not, and a KeyVault
//! that does not answer, is told of, and leaves what is in use as it is.

use std::{path::PathBuf, sync::Arc, time::Duration};

use metrics::gauge;
use tokio::{task::JoinHandle, time::sleep};

use super::{
    Error, Pair,
    store::{Entry, KEYVAULT, POLL_INTERVAL, Store, count},
};
use crate::{
    clock::since_epoch,
    metrics as names,
    source::{
        self, Finding, Version,
        keyvault::{self, Client, SecretPath},
        watch::{Follower, Seen, Watched},
    },
};

/// Pairs in a KeyVault.
pub struct InKeyVault(Vec<Kept>);

impl InKeyVault {
    /// Those at `paths`, each MOUNT/PATH, with chain and key in these fields. Nothing is sent yet.
    pub fn new(
        keyvault: keyvault::Config,
        paths: &[String],
        fields: (&str, &str),
    ) -> Result<Self, source::Error> {
        let client = Client::new(keyvault).map_err(|failure| source::Error::KeyVault {
            place: "the KeyVault".to_owned(),
            failure: Box::new(failure),
        })?;
        let client = Arc::new(client);
        let kept = |path: &String| {
            Ok(Kept {
                secret: SecretPath::new(client.clone(), path)?,
                chain_field: fields.0.to_owned(),
                key_field: fields.1.to_owned(),
            })
        };
        paths.iter().map(kept).collect::<Result<_, _>>().map(Self)
    }

    /// Looks at each as it would be read.
    pub async fn check(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for kept in &self.0 {
            let found = match kept.read(None).await {
                Ok(seen) => seen.map_or(Ok(()), |seen| seen.meaning.map(drop)),
                Err(error) => Err(error),
            };
            findings.push(Finding::new(
                "certificate",
                found.map(|()| kept.secret.place()),
            ));
        }
        findings
    }

    /// Looks at them every `interval`, and keeps the newest good ones in `store`, until it is aborted. Until each was
    /// loaded once, it looks more often. The first one loaded is the default.
    pub fn watch(self, store: Store, interval: Duration) -> JoinHandle<()> {
        tokio::spawn(async move {
            gauge!(names::KEYVAULT_HEARD).set(0.0);
            let mut missing = self.0.len();
            let mut followers: Vec<_> = self.0.into_iter().map(Follower::new).collect();
            let mut loaded = vec![false; followers.len()];
            loop {
                let mut entries = Vec::new();
                // One after the other: each has a deadline, and a KeyVault that is slow is not asked for more at once.
                for (follower, loaded) in followers.iter_mut().zip(&mut loaded) {
                    if let Some(entry) = follower.next().await {
                        entries.push(entry);
                        missing -= usize::from(!std::mem::replace(loaded, true));
                    }
                }
                if !entries.is_empty() {
                    store.put(KEYVAULT, entries);
                }
                let pause = match missing {
                    0 => interval,
                    _ => interval.min(POLL_INTERVAL),
                };
                sleep(pause).await;
            }
        })
    }
}

/// One of them.
struct Kept {
    secret: SecretPath,
    chain_field: String,
    key_field: String,
}

impl Watched for Kept {
    type Meaning = Entry;
    type Error = Error;

    fn name(&self) -> String {
        format!("certificate in {}", self.secret.place())
    }

    fn count(&self, outcome: &'static str) {
        count(KEYVAULT, outcome);
    }

    fn may_pass(&self, error: &Error) -> bool {
        matches!(error, Error::NotYet { .. })
    }

    async fn read(&self, known: Option<&Version>) -> Result<Option<Seen<Self>>, Error> {
        let read = self.secret.read(known).await?;
        gauge!(names::KEYVAULT_HEARD).set(since_epoch().as_secs_f64());
        let Some((version, answer)) = read else {
            return Ok(None);
        };
        let meaning = (|| {
            let origin = PathBuf::from(self.secret.place());
            let chain = self.secret.field(&answer, &self.chain_field)?;
            let key = self.secret.field(&answer, &self.key_field)?;
            let pair = Pair::from_secrets(&origin, &chain, &key)?;
            Entry::holding(&origin, Some(version.clone()), pair)
        })();
        Ok(Some(Seen { version, meaning }))
    }
}
