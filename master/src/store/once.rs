//! What operators order, and what came of it, for those who ask again because the answer was lost.
//!
//! What is kept is the outcome and not the answer: the answer is made from it as from a new one. So nothing
//! secret is kept: of a token, only what it says.

use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use wavry_credentials::audit::{Event, Key};
use wavry_proto::control::Revocation;

use super::{Change, Error, Part, Snapshot, Store, audit};
use crate::{
    database::sql::{Transaction, query},
    once::{Guard, InFlight, UnderWay},
};

/// How long an outcome is kept, in seconds: a day.
pub const KEPT: u64 = 24 * 3600;
/// Outcomes that are kept for one operator at most. Each is some hundred bytes; that of a session token with
/// as many claims as fit, 8 KiB.
pub const MAX_KEPT: usize = 10_000;
/// Outcome of an event that was answered from what was kept.
const REPEATED: &str = "repeated";

/// What an operator wants done: its line in the audit log, and the key that it bears, if it has one.
pub struct Order {
    /// What the audit log tells of it.
    pub event: Event,
    /// Under what its outcome is kept.
    pub once: Option<Once>,
}

/// A request with a key of its own. Digests stand for its parts, and bound what is kept of it.
pub struct Once {
    operator: [u8; 32],
    name: [u8; 32],
    request: [u8; 32],
    /// Requests with the same key are refused as long as this is there.
    _under_way: Option<Guard>,
}

/// Why an order was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OnceError {
    /// Something else was asked for with the key.
    #[error("the idempotency key was used for another request")]
    Reused,
    /// There are [`MAX_KEPT`] already; how many seconds until there is room.
    #[error("{MAX_KEPT} outcomes are kept for this operator already")]
    TooMany {
        /// Until the oldest is forgotten.
        wait: u64,
    },
}

/// An order that was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done<T> {
    /// What came of it.
    pub outcome: T,
    /// Whether that was some time before, and nothing was done now.
    pub is_repeated: bool,
    /// The snapshot, when the roster changed.
    pub changed: Option<Snapshot>,
}

/// What comes of an order, as it is kept.
pub(super) trait Outcome: Serialize + DeserializeOwned {
    /// Says in a line of the audit log what it is about, where only the outcome knows.
    fn name_in(&self, _event: &mut Event, _audit: &Key) {}
}

impl Outcome for () {}
impl Outcome for bool {}
impl Outcome for Revocation {}

/// What is to be done with an order.
pub(super) enum Begun<T> {
    New(Change),
    Before(Done<T>),
}

impl From<Event> for Order {
    fn from(event: Event) -> Self {
        Self { event, once: None }
    }
}

impl Once {
    /// Of `operator`, who gave it `key`, and what makes up the request.
    pub fn new(operator: &str, key: &str, request: [&[u8]; 3]) -> Self {
        Self {
            operator: digest([operator.as_bytes()]),
            name: digest([operator.as_bytes(), key.as_bytes()]),
            request: digest(request),
            _under_way: None,
        }
    }

    /// The same, as long as it is under way.
    pub(crate) fn begin(self, under_way: &UnderWay) -> Result<Self, InFlight> {
        let guard = under_way.begin(self.name)?;
        Ok(Self {
            _under_way: Some(guard),
            ..self
        })
    }
}

impl Order {
    /// In seconds since the Unix epoch.
    fn time(&self) -> u64 {
        self.event.time.unix_timestamp().max(0).cast_unsigned()
    }
}

impl Store {
    /// Begins to carry out an order, unless it was before.
    pub(super) async fn begin<T: Outcome>(&self, order: &Order) -> Result<Begun<T>, Error> {
        let mut change = self.change().await?;
        let Some(once) = &order.once else {
            return Ok(Begun::New(change));
        };
        let transaction = &mut change.transaction;
        let now = order.time();
        query("DELETE FROM idempotency_key WHERE expires_at <= $1")
            .bind(now)
            .execute(&mut *transaction)
            .await?;
        let kept = query("SELECT request, outcome FROM idempotency_key WHERE name = $1")
            .bind(&once.name[..])
            .optional(&mut *transaction)
            .await?;
        let Some(kept) = kept else {
            check_room(transaction, &once.operator, now).await?;
            return Ok(Begun::New(change));
        };
        if kept.get::<Vec<u8>>(0)? != once.request {
            return Err(OnceError::Reused.into());
        }
        let outcome = serde_json::from_str::<T>(&kept.get::<String>(1)?);
        let outcome = outcome.map_err(|_| Error::Row("idempotency_key"))?;
        let mut event = order.event.clone();
        event.outcome = REPEATED.to_owned();
        outcome.name_in(&mut event, &self.audit);
        audit::append(transaction, &self.audit, &event).await?;
        change.transaction.commit().await?;
        Ok(Begun::Before(Done {
            outcome,
            is_repeated: true,
            changed: None,
        }))
    }
}

impl Change {
    /// Puts an order on record, keeps what came of it, and commits; see [`Change::commit`].
    pub(super) async fn conclude<T: Outcome>(
        mut self,
        audit: &Key,
        order: &Order,
        outcome: T,
        parts: &[Part],
    ) -> Result<Done<T>, Error> {
        let mut event = order.event.clone();
        outcome.name_in(&mut event, audit);
        audit::append(&mut self.transaction, audit, &event).await?;
        if let Some(once) = &order.once {
            let text = serde_json::to_string(&outcome);
            query(
                "INSERT INTO idempotency_key (name, operator, request, outcome, expires_at)
                 VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(&once.name[..])
            .bind(&once.operator[..])
            .bind(&once.request[..])
            .bind(text.map_err(|_| Error::Row("idempotency_key"))?)
            .bind(order.time().saturating_add(KEPT))
            .execute(&mut self.transaction)
            .await?;
        }
        Ok(Done {
            outcome,
            is_repeated: false,
            changed: self.commit(parts).await?,
        })
    }
}

/// Of parts, each with its length before it, so that no others give the same.
fn digest<const N: usize>(parts: [&[u8]; N]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

/// Refuses an operator for whom much is kept.
async fn check_room(transaction: &mut Transaction, operator: &[u8], now: u64) -> Result<(), Error> {
    let kept = query(
        "SELECT count(*), coalesce(min(expires_at), 0) FROM idempotency_key WHERE operator = $1",
    )
    .bind(operator)
    .one(transaction)
    .await?;
    match usize::try_from(kept.number(0)?) {
        Ok(count) if count < MAX_KEPT => Ok(()),
        _ => {
            let wait = kept.number(1)?.saturating_sub(now);
            Err(OnceError::TooMany { wait }.into())
        }
    }
}
