//! The rotation of the node's identity at work: does what [`rotation`](crate::identity::rotation) says, with
//! files and the master.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use wavry_proto::{
    control::{Challenge, IdentityTask, Roster, Rotate, Rotating, rotation_message},
    id::PublicKey,
};

use super::{
    Error,
    identities::Identities,
    metrics as names,
    work::{Link, json, over_connection, read},
};
use crate::{
    clock::unix_time,
    identity::{
        Identity,
        rotation::{Act, Heard, Keys, Pace, Step},
    },
    master::{Ask, Connection, Failure},
};

/// Pause after something failed. The margin is days; a master that refuses writes a line for each try.
const PAUSE: Duration = Duration::from_secs(60);
/// After a failure that says nothing of the request: the master is away, or its database is.
const SHORT_PAUSE: Duration = Duration::from_secs(2);
/// The time is looked at so often, as the system's clock may be set.
const LOOK: Duration = Duration::from_secs(1);

/// What the rotation works with.
pub(super) struct Rotation {
    pub(super) link: Arc<Link>,
    pub(super) identities: Identities,
    pub(super) pace: Pace,
    pub(super) roster: watch::Receiver<Arc<Roster>>,
    /// What the master last said is to be done.
    pub(super) task: watch::Receiver<Option<IdentityTask>>,
    /// Keys that the roster lists for this node and that it does not have.
    pub(super) foreign: Vec<PublicKey>,
}

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
enum Undone {
    #[error("the master did not admit the new identity")]
    Master(#[from] Failure),
    #[error("the node's identities cannot be kept or read")]
    Kept(#[from] Error),
    #[error("the new identity cannot be used")]
    Unusable(#[from] crate::identity::Error),
    #[error("the step was cut short")]
    Ended,
}

impl Undone {
    fn reason(&self) -> &'static str {
        match self {
            Self::Master(failure) => failure.reason(),
            Self::Kept(_) => "file",
            Self::Unusable(_) => "key",
            Self::Ended => "ended",
        }
    }
}

impl Rotation {
    /// Rotates the identity when it is time or an operator wants it, for as long as it is polled.
    pub(super) async fn run(mut self) {
        let mut connection = None;
        self.report();
        loop {
            let heard = (
                *self.task.borrow_and_update(),
                self.roster.borrow_and_update().clone(),
            );
            let pause = match self.step(&heard) {
                None => LOOK,
                Some(step) => match self.take(step, &mut connection).await {
                    Ok(()) => continue,
                    Err(undone) => self.failed(&undone),
                },
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = self.task.changed(), if pause == LOOK => if changed.is_err() { return },
                changed = self.roster.changed(), if pause == LOOK => if changed.is_err() { return },
            }
        }
    }

    fn step(&mut self, (task, roster): &(Option<IdentityTask>, Arc<Roster>)) -> Option<Step> {
        let node = roster.node(&self.link.record.node_id);
        let listed = node.map(|node| node.keys.as_slice());
        self.look_for_foreign(listed.unwrap_or_default());
        let heard = Heard {
            task: *task,
            listed,
        };
        let keys = self.identities.keys();
        keys.step(heard, &self.pace, unix_time())
    }

    /// A key that the roster lists for this node and that the node did not make is somebody else's.
    fn look_for_foreign(&mut self, listed: &[PublicKey]) {
        let keys = self.identities.keys();
        let foreign = listed.iter().copied();
        let foreign: Vec<_> = foreign
            .filter(|key| !keys.all().any(|own| own == *key))
            .collect();
        if foreign != self.foreign {
            for key in &foreign {
                tracing::error!(%key, "the roster lists a key for this node that it does not have");
            }
            metrics::gauge!(names::IDENTITY_FOREIGN).set(foreign.len() as f64);
            self.foreign = foreign;
        }
    }

    async fn take(
        &mut self,
        step: Step,
        connection: &mut Option<Connection>,
    ) -> Result<(), Undone> {
        match step {
            Step::Make => {
                metrics::counter!(names::IDENTITY_ATTEMPTS).increment(1);
                let next = Identity::generate();
                let key = next.public_key();
                tracing::info!(%key, "a new identity is made");
                let acts = self.identities.keys().made(key);
                self.act(acts, Some(next)).await
            }
            Step::Ask(key) => {
                let next = self.with_files(move |files| files.read_key(key)).await?;
                let asking = async |link: &Link, connection: &mut Connection| {
                    link.ask_to_rotate(connection, &next).await
                };
                let admitted = over_connection(&self.link, connection, asking).await?;
                tracing::info!(%key, epoch = %admitted.epoch, "the master lists the new identity");
                // What it says before the roster shows it would be asked again.
                let listed = self
                    .roster
                    .wait_for(|roster| roster.epoch >= admitted.epoch);
                let _ = tokio::time::timeout(PAUSE, listed).await;
                Ok(())
            }
            Step::Do(acts) => self.act(acts, None).await,
        }
    }

    /// Does what outlives the process, in order.
    async fn act(&mut self, acts: [Act; 2], mut made: Option<Identity>) -> Result<(), Undone> {
        for act in acts {
            match act {
                Act::WriteKey(_) => {
                    if let Some(made) = made.take() {
                        self.with_files(move |files| files.write_key(&made)).await?;
                    }
                }
                Act::WriteRecord(keys) => {
                    self.with_files(move |files| files.write_record(keys))
                        .await?;
                    self.report();
                }
                Act::Show(key) => {
                    let identity = self.with_files(move |files| files.read_key(key)).await?;
                    self.link.shown.show(identity)?;
                    metrics::counter!(names::IDENTITY_ROTATIONS).increment(1);
                    tracing::info!(%key, "the new identity is shown");
                    // The master hears of it by the next heartbeat, which this one is.
                    self.link.said.send_modify(|_| {});
                }
                Act::RemoveKey(key) => {
                    self.with_files(move |files| files.remove_key(key)).await?;
                    tracing::info!(%key, "the identity before is not listed any more, and is forgotten");
                }
            }
        }
        Ok(())
    }

    /// Works with files, which may take its time.
    async fn with_files<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Identities) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Undone> {
        let mut files = self.identities.clone();
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&mut files);
            (files, done)
        });
        let (files, done) = done.await.map_err(|_| Undone::Ended)?;
        self.identities = files;
        Ok(done?)
    }

    fn failed(&self, undone: &Undone) -> Duration {
        let reason = undone.reason();
        metrics::counter!(names::IDENTITY_FAILURES, "reason" => reason).increment(1);
        let error = undone as &dyn std::error::Error;
        tracing::warn!(reason, error, "the identity is not rotated yet; trying on");
        match undone {
            Undone::Master(failure) if !failure.is_final() => SHORT_PAUSE,
            _ => PAUSE,
        }
    }

    fn report(&self) {
        let keys: &Keys = self.identities.keys();
        metrics::gauge!(names::IDENTITY_SINCE).set(keys.since as f64);
        metrics::gauge!(names::IDENTITY_EXPIRY).set(keys.expiry(&self.pace) as f64);
        metrics::gauge!(names::IDENTITY_MARGIN).set(self.pace.margin().as_secs_f64());
        metrics::gauge!(names::IDENTITY_FOREIGN).set(self.foreign.len() as f64);
    }
}

impl Link {
    /// Asks the master to admit `next` beside the present identity.
    async fn ask_to_rotate(
        &self,
        connection: &mut Connection,
        next: &Identity,
    ) -> Result<Rotating, Failure> {
        let challenge = Ask::post("/v1/nodes/challenge", Vec::new());
        let Challenge { nonce } = read(&connection.ask(challenge).await?.body)?;
        let present = self.shown.present();
        let key = next.public_key();
        let message = rotation_message(
            &self.record.node_id,
            &present.identity.public_key(),
            &key,
            &nonce,
            &connection.exporter,
        );
        let request = Rotate {
            public_key: key,
            nonce,
            signature: hex::encode(present.identity.sign(&message)),
            next_signature: hex::encode(next.sign(&message)),
        };
        let authorization = self.authorization(connection);
        let mut ask = Ask::post("/v1/nodes/rotate", json(&request)?);
        ask.authorization = Some(&authorization);
        read(&connection.ask(ask).await?.body)
    }
}
