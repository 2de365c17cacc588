//! Leases of this node's flows through transit relays: asked for when they are wanted, renewed at half of their
//! life, and replaced when the roster says that they hold no more.
//!
//! They are not kept over a restart: flows are drawn anew then, and a lease is of one flow.

mod book;
#[cfg(test)]
mod simulation;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::Method;
use tokio::sync::{Notify, watch};
use wavry_proto::{
    control::{
        Roster,
        lease::{Answer, AskLeases, LEASES, Leases as Answers, MAX_LEASES_LEN, Way},
    },
    id::NodeId,
    overlay::{
        lease::{Offer, Source, Terms, Verifier as _},
        packet::Label,
    },
    token::pack,
};

use self::book::{Book, Said};
use super::{
    metrics as names,
    requests::Requests,
    retry::{Attempts, fraction},
};
use crate::{clock::since_epoch, master::Failure, token::lease::Verifier};

/// How far away the next look is where no lease is wanted.
const NOTHING_WANTED: Duration = Duration::from_secs(3600);
/// From the first that is wanted to the request: those that come with it are asked for in the same one.
const TOGETHER: Duration = Duration::from_millis(5);

/// The leases of a node's flows. Cheap to clone.
#[derive(Clone)]
pub struct Leases {
    shared: Arc<Shared>,
}

struct Shared {
    book: Mutex<Book>,
    wanted: Notify,
    changed: watch::Sender<()>,
}

impl Leases {
    pub(super) fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                book: Mutex::default(),
                wanted: Notify::new(),
                changed: watch::Sender::default(),
            }),
        }
    }

    /// Tells when what is offered has changed.
    pub fn changed(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }

    /// Keeps leases until it is dropped.
    pub(super) async fn keep(
        self,
        node: NodeId,
        requests: Requests,
        mut roster: watch::Receiver<Arc<Roster>>,
        verifier: Verifier,
    ) {
        let mut attempts = Attempts::at("leases");
        loop {
            let since = roster
                .borrow_and_update()
                .node(&node)
                .map(|node| node.leases_since());
            let (ways, next) = {
                let (mut book, now) = (self.shared.book(), since_epoch());
                book.revoked(since.unwrap_or_default());
                let (held, wanted) = book.counts(now);
                metrics::gauge!(names::LEASES, "state" => "held").set(held as f64);
                metrics::gauge!(names::LEASES, "state" => "missing").set((wanted - held) as f64);
                let next = book.next(now).map(|next| next.saturating_sub(now));
                (book.due(now), next.unwrap_or(NOTHING_WANTED))
            };
            if ways.is_empty() {
                tokio::select! {
                    () = tokio::time::sleep(next) => {}
                    () = self.shared.wanted.notified() => tokio::time::sleep(TOGETHER).await,
                    changed = roster.changed() => if changed.is_err() { return },
                }
                continue;
            }
            let asked = ask(&requests, &ways).await;
            let now = since_epoch();
            match asked {
                Ok(answers) => {
                    attempts.succeeded();
                    let said = answers
                        .leases
                        .into_iter()
                        .map(|answer| read(&verifier, answer));
                    let said: Vec<_> = ways.into_iter().zip(said).collect();
                    self.shared.book().answered(said, now, fraction);
                }
                Err(failure) => {
                    let pause = attempts.failed(&failure);
                    self.shared
                        .book()
                        .failed(is_unanswered(&failure), now, pause);
                }
            }
            self.shared.changed.send_replace(());
        }
    }
}

/// Whether a failure means that there is no master that answers and signs.
fn is_unanswered(failure: &Failure) -> bool {
    failure.is_of_the_connection() || matches!(failure, Failure::Refused { status: 500.., .. })
}

async fn ask(requests: &Requests, ways: &[Way]) -> Result<Answers, Failure> {
    let ask = AskLeases {
        ways: ways.to_vec(),
    };
    let asked = requests.send(Method::POST, LEASES, &ask, MAX_LEASES_LEN);
    let answers: Answers = asked.await?;
    match answers.leases.len() == ways.len() {
        true => Ok(answers),
        false => Err(Failure::Malformed),
    }
}

/// What the master said, if a lease verifies: the node's roster may not list the key yet that signed it.
fn read(verifier: &Verifier, answer: Answer) -> Said {
    let (said, outcome) = match answer {
        Answer::Refused(why) => (Said::Nothing, why.as_str()),
        Answer::Lease(token) => {
            let packed = pack(&token).ok();
            let verified = packed.and_then(|packed| Some((verifier.verify(&packed).ok()?, packed)));
            match verified {
                Some((verified, packed)) => (Said::Lease(verified.lease, packed), "signed"),
                None => (Said::Nothing, "not_verified"),
            }
        }
    };
    metrics::counter!(names::LEASES_ASKED, "outcome" => outcome).increment(1);
    said
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Leases {
    fn want(&self, way: Way) {
        if self.shared.book().want(way, since_epoch()) {
            self.shared.wanted.notify_one();
        }
    }

    fn forget(&self, flow: Label) {
        self.shared.book().forget(flow);
    }

    fn offer(&self, flow: Label) -> Offer {
        self.shared.book().offer(flow, since_epoch())
    }

    fn terms(&self, flow: Label) -> Option<Terms> {
        self.shared.book().terms(flow, since_epoch())
    }
}
