//! Word of changes, among masters that share a server.
//!
//! Word is only ever a reason to look: it may come late, twice or not at all, and says nothing itself.

use std::time::Duration;

use sqlx::{PgPool, postgres::PgListener};
use tokio::sync::Notify;

use super::{Error, Store};
use crate::{
    database::sql::{Pool, Transaction, query},
    metrics as names,
};

/// PostgreSQL's channel.
const CHANNEL: &str = "wavry_roster";
/// Pause before the connection that brings word is made anew.
const PAUSE: Duration = Duration::from_millis(250);

impl Store {
    /// Whether other masters may use it.
    pub(crate) fn is_shared(&self) -> bool {
        self.pool.is_postgres()
    }

    /// Tells `news` when some master has changed the roster, and when word of that may have been lost.
    /// It never ends.
    pub(crate) async fn listen(&self, news: &Notify) {
        let Pool::Postgres(pool) = &self.pool else {
            return std::future::pending().await;
        };
        loop {
            if let Err(error) = listen_once(pool, news).await {
                tracing::debug!(%error, "no word of other masters' changes");
            }
            metrics::counter!(names::FEED_LOST).increment(1);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Until the connection breaks.
async fn listen_once(pool: &PgPool, news: &Notify) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    // What was said before it listened.
    news.notify_one();
    while listener.try_recv().await?.is_some() {
        news.notify_one();
    }
    Ok(())
}

/// Has the others told once the transaction is committed, and not if it is not.
pub(super) async fn tell(transaction: &mut Transaction) -> Result<(), Error> {
    if let Transaction::Postgres(_) = transaction {
        query("SELECT pg_notify($1, '')")
            .bind(CHANNEL)
            .one(transaction)
            .await?;
    }
    Ok(())
}
