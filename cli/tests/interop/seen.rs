//! What the services saw, to be compared with what the clients say.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;
use tokio::{
    sync::Notify,
    time::{Duration, timeout},
};

/// How long a service may take to see what its client has already done.
const WAIT: Duration = Duration::from_secs(5);

/// A request of the interop services: `/RUN/WHAT/ARGUMENT…`.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    run: String,
    what: String,
}

impl Asked {
    pub(crate) fn new(path: &str) -> Self {
        let path = path.split('?').next().unwrap_or_default();
        let (run, what) = path
            .trim_start_matches('/')
            .split_once('/')
            .unwrap_or_default();
        Self {
            run: run.to_owned(),
            what: what.to_owned(),
        }
    }

    /// What the service is to do, word by word.
    pub(crate) fn words(&self) -> Vec<&str> {
        self.what.split('/').collect()
    }

    /// The status that a request is to be refused with.
    pub(crate) fn status(&self) -> Option<u16> {
        self.what.strip_prefix("status/")?.parse().ok()
    }
}

/// What all services saw, by run and request.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    all: Arc<Mutex<HashMap<(String, String), Value>>>,
    more: Arc<Notify>,
}

impl Seen {
    pub(crate) fn note(&self, asked: &Asked, saw: Value) {
        let key = (asked.run.clone(), asked.what.clone());
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(key, saw);
        self.more.notify_waiters();
    }

    /// What was seen of `what` in `run` until now; null if nothing was.
    pub(crate) fn now(&self, run: &str, what: &str) -> Value {
        let key = (run.to_owned(), what.to_owned());
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&key).cloned().unwrap_or_default()
    }

    /// What was seen of `what` in `run`; null if nothing comes in time.
    pub(crate) async fn wait(&self, run: &str, what: &str) -> Value {
        let find = || match self.now(run, what) {
            Value::Null => None,
            saw => Some(saw),
        };
        let seen = async {
            loop {
                let more = self.more.notified();
                tokio::pin!(more);
                more.as_mut().enable();
                if let Some(saw) = find() {
                    return saw;
                }
                more.await;
            }
        };
        timeout(WAIT, seen).await.unwrap_or_default()
    }
}
