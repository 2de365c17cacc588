//! Memory for secrets: whole pages, outside the heap.

use std::{
    alloc::{Layout, handle_alloc_error},
    sync::{Mutex, MutexGuard, Once, PoisonError},
};

use memmap2::MmapMut;
use zeroize::Zeroize;

/// Smallest mapping there is. Where pages are larger, the kernel rounds up.
const PAGE: usize = 4096;
/// Single pages kept for the next secret. Long-lived secrets are fewer than twenty a process; the rest
/// serves what comes and goes with sessions and requests. Each of a KeyVault's holds two or three while it
/// waits for its commit, so that this is for some 300 at once. They are 4 MiB, half of what a process may
/// lock unless it is told otherwise, and are only there if that many were in use at once before.
const MAX_FREE: usize = 1024;

/// Single pages, zeroed, that no secret is in. Taking one costs no system call.
static FREE: Mutex<Vec<MmapMut>> = Mutex::new(Vec::new());

/// Bytes in pages that hold nothing else.
pub(super) struct Pages {
    /// Always there, until it goes back to [`FREE`].
    map: Option<MmapMut>,
    length: usize,
}

impl Pages {
    /// Zeros.
    pub(super) fn zeroed(length: usize) -> Self {
        let free = if length <= PAGE { free().pop() } else { None };
        Self {
            map: Some(free.unwrap_or_else(|| map(length))),
            length,
        }
    }

    /// A copy of `bytes`.
    pub(super) fn holding(bytes: &[u8]) -> Self {
        let mut pages = Self::zeroed(bytes.len());
        pages.bytes_mut().copy_from_slice(bytes);
        pages
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.map.as_ref().map_or(&[], |map| &map[..self.length])
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let map = self.map.as_mut();
        map.map_or(&mut [], |map| &mut map[..self.length])
    }

    /// Keeps the first `length` bytes only, and zeroes the others.
    pub(super) fn truncate(&mut self, length: usize) {
        self.bytes_mut()[length..].zeroize();
        self.length = length;
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        if let Some(map) = self.map.take()
            && map.len() == PAGE
        {
            let mut free = free();
            if free.len() < MAX_FREE {
                free.push(map);
            }
        }
    }
}

fn free() -> MutexGuard<'static, Vec<MmapMut>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn map(length: usize) -> MmapMut {
    let length = length.next_multiple_of(PAGE).max(PAGE);
    let Ok(map) = MmapMut::map_anon(length) else {
        // As for any allocation.
        let layout = Layout::from_size_align(length, PAGE);
        handle_alloc_error(layout.unwrap_or(Layout::new::<u8>()));
    };
    #[cfg(target_os = "linux")]
    if let Err(error) = map.advise(memmap2::Advice::DontDump) {
        static SAID: Once = Once::new();
        SAID.call_once(|| tracing::warn!(%error, "secrets cannot be left out of core dumps"));
    }
    if let Err(error) = map.lock() {
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            tracing::warn!(
                %error,
                "secrets cannot be locked in memory and may be swapped out: raise the limit on \
                 locked memory (LimitMEMLOCK=, ulimit -l), or encrypt or turn off swap"
            );
        });
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_back_zeroed() {
        // Others use the free list meanwhile: nobody but this test writes this.
        const MARK: &[u8] = b"marked by pages_come_back_zeroed";
        drop(Pages::holding(MARK));
        let pages: Vec<_> = (0..2 * MAX_FREE).map(|_| Pages::zeroed(PAGE)).collect();
        for page in &pages {
            assert!(page.bytes().iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn no_more_pages_are_kept_than_said() {
        let pages: Vec<_> = (0..3 * MAX_FREE).map(|_| Pages::zeroed(1)).collect();
        drop(pages);
        assert!(free().len() <= MAX_FREE);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pages_are_left_out_of_core_dumps_and_locked() {
        let pages = Pages::holding(b"s3cret");
        let at = pages.bytes().as_ptr() as usize;
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        let flags = smaps.lines().find_map(|line| {
            let range = line.split(' ').next().and_then(|r| r.split_once('-'));
            let range = range.and_then(|(from, to)| {
                let from = usize::from_str_radix(from, 16).ok()?;
                Some(from..usize::from_str_radix(to, 16).ok()?)
            });
            if let Some(range) = range {
                inside = range.contains(&at);
            }
            line.strip_prefix("VmFlags:").filter(|_| inside)
        });
        let flags: Vec<&str> = flags.unwrap().split_whitespace().collect();
        assert!(flags.contains(&"dd"), "{flags:?}");
        // A machine may permit no locking at all; then there is nothing to see here.
        if rustix::process::getrlimit(rustix::process::Resource::Memlock).current != Some(0) {
            assert!(flags.contains(&"lo"), "{flags:?}");
        }
    }
}
