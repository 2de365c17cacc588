//! Entries as they are kept, encrypted, for a store that only this process changes.
//!
//! What a commit changes is taken out before anyone learns of the commit, so that nobody who knows of it
//! reads what was there before.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use dashmap::DashMap;

use crate::keyvault::store::Row;

/// Bytes of entries kept, and what keeping one costs besides. A secret of 1 KiB each for 30,000 units
/// has room.
const ROOM: usize = 64 * 1024 * 1024;
const COST: usize = 256;

#[derive(Default)]
pub(in crate::keyvault) struct Cache {
    /// `None` of an entry that is not there.
    rows: DashMap<String, Option<Arc<Row>>>,
    size: AtomicUsize,
    /// Grows with each commit that changes entries.
    epoch: AtomicU64,
}

/// A moment before which a store was read.
#[derive(Clone, Copy)]
pub(super) struct Epoch(u64);

impl Cache {
    /// An entry; or if it is not known, the moment to give with it.
    pub(super) fn get(&self, path: &str) -> Result<Option<Arc<Row>>, Epoch> {
        match self.rows.get(path) {
            Some(row) => Ok(row.clone()),
            None => Err(Epoch(self.epoch.load(Ordering::SeqCst))),
        }
    }

    /// Keeps what was read after a moment, unless something was committed since.
    pub(super) fn put(&self, path: &str, row: Option<Arc<Row>>, Epoch(epoch): Epoch) {
        let size = size(path, row.as_deref());
        // When it is full it begins anew: what is asked for often is back at once.
        if self.size.fetch_add(size, Ordering::Relaxed) + size > ROOM {
            self.clear();
            self.size.fetch_add(size, Ordering::Relaxed);
        }
        let entry = self.rows.entry(path.to_owned());
        // A commit grows the epoch, and then waits for this lock to take its entries out.
        if self.epoch.load(Ordering::SeqCst) == epoch {
            entry.insert(row);
        }
    }

    /// Something was committed: these entries are to be read again.
    pub(in crate::keyvault) fn changed<'a>(&self, paths: impl IntoIterator<Item = &'a str>) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        for path in paths {
            self.rows.remove(path);
        }
    }

    /// Forgets all.
    pub(in crate::keyvault) fn clear(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.rows.clear();
        self.size.store(0, Ordering::Relaxed);
    }
}

fn size(path: &str, row: Option<&Row>) -> usize {
    let row = row.map_or(0, |row| {
        row.path.len() + row.wrapped_key.len() + row.ciphertext.len()
    });
    COST + path.len() + row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(path: &str, length: usize) -> Option<Arc<Row>> {
        Some(Arc::new(Row {
            path: path.to_owned(),
            revision: 1,
            term: 1,
            wrapped_key: Vec::new(),
            ciphertext: vec![0; length],
        }))
    }

    #[test]
    fn what_was_read_before_a_commit_is_not_kept_after_it() {
        let cache = Cache::default();
        let Err(before) = cache.get("a") else {
            panic!()
        };
        cache.changed(["b"]);
        cache.put("a", row("a", 1), before);
        let Err(now) = cache.get("a") else {
            panic!("it was kept")
        };
        cache.put("a", row("a", 1), now);
        assert!(cache.get("a").is_ok_and(|row| row.is_some()));
        cache.changed(["a"]);
        assert!(cache.get("a").is_err());
    }

    #[test]
    fn it_takes_no_more_room_than_it_has() {
        let cache = Cache::default();
        let large = ROOM / 8;
        for i in 0..100 {
            let path = i.to_string();
            let Err(epoch) = cache.get(&path) else {
                panic!()
            };
            cache.put(&path, row(&path, large), epoch);
            assert!(cache.rows.len() <= 8);
        }
    }
}
