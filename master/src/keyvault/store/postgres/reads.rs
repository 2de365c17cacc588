//! Entries that are read at the same time are asked for together: one statement for all who wait, as one
//! commit is for all who write. Each sees what was committed before it asked, for its statement begins
//! after that.

use std::{collections::HashMap, sync::Arc};

use sqlx::{PgPool, Row as _};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::timeout,
};

use super::{CONNECTIONS, Error, Row, read_row};
use crate::keyvault::barrier::DEADLINE;

/// Reads that wait for a statement. Each call makes some five, one after the other, so that this is for
/// thousands of calls at once; who comes when it is full waits for room.
const QUEUE: usize = 4096;
/// Paths in one statement.
const TOGETHER: usize = 256;
/// Statements under way: the server works on one while rows of the other are handed out.
const ASKERS: usize = 2;

const ROWS: &str = "SELECT revision, term, wrapped_key, ciphertext, path FROM entry
    WHERE path = ANY ($1)";

type Outcome = Result<Option<Row>, Error>;

struct Read {
    path: String,
    done: oneshot::Sender<Outcome>,
}

/// Reads entries. The tasks that work for it end with the last clone.
#[derive(Clone)]
pub(super) struct Reads(mpsc::Sender<Read>);

impl Reads {
    pub(super) fn new(pool: &PgPool) -> Self {
        let (queue, reads) = mpsc::channel(QUEUE);
        let reads = Arc::new(Mutex::new(reads));
        for _ in 0..ASKERS {
            tokio::spawn(ask(pool.clone(), reads.clone()));
        }
        Self(queue)
    }

    pub(super) async fn row(&self, path: &str) -> Outcome {
        // It would spoil the statement for all, and PostgreSQL keeps no such text.
        if path.contains('\0') {
            return Ok(None);
        }
        let (done, outcome) = oneshot::channel();
        let read = Read {
            path: path.to_owned(),
            done,
        };
        let closed = || Error::from(sqlx::Error::PoolClosed);
        self.0.send(read).await.map_err(|_| closed())?;
        outcome.await.unwrap_or_else(|_| Err(closed()))
    }
}

async fn ask(pool: PgPool, reads: Arc<Mutex<mpsc::Receiver<Read>>>) {
    let mut together = Vec::with_capacity(TOGETHER);
    loop {
        // Held while nobody asks, too: the other one has nothing to do then either.
        if reads.lock().await.recv_many(&mut together, TOGETHER).await == 0 {
            return;
        }
        let mut waiting: HashMap<String, Vec<oneshot::Sender<Outcome>>> = HashMap::new();
        for Read { path, done } in together.drain(..) {
            waiting.entry(path).or_default().push(done);
        }
        let mut asked = rows(&pool, &waiting).await;
        // A connection that broke shows when it is used, and is not used again.
        for _ in 1..CONNECTIONS {
            if !matches!(asked, Err(Error::Database(sqlx::Error::Io(_)))) {
                break;
            }
            asked = rows(&pool, &waiting).await;
        }
        match asked {
            Ok(mut rows) => {
                for (path, waiting) in waiting {
                    let row = rows.remove(&path);
                    for done in waiting {
                        // Whoever waits no more is not told.
                        let _ = done.send(Ok(row.clone()));
                    }
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for done in waiting.into_values().flatten() {
                    let _ = done.send(Err(Error::Together(error.clone())));
                }
            }
        }
    }
}

async fn rows<W>(
    pool: &PgPool,
    waiting: &HashMap<String, W>,
) -> Result<HashMap<String, Row>, Error> {
    let paths: Vec<&str> = waiting.keys().map(|path| &**path).collect();
    let mut connection = pool.acquire().await?;
    let rows = sqlx::query(ROWS).bind(paths).fetch_all(&mut *connection);
    let Ok(rows) = timeout(DEADLINE, rows).await else {
        // Whether an answer is still to come on it nobody can tell.
        connection.close_on_drop();
        return Err(Error::TooSlow);
    };
    let rows = rows?;
    let rows = rows.iter().map(|row| {
        let path: String = row.try_get(4)?;
        Ok((path.clone(), read_row(&path, row)?))
    });
    rows.collect()
}
