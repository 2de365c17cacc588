//! A thread for each node, kept to its core.

use std::{fs, thread, time::Duration};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Where a thread runs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Core {
    /// On the last one.
    Last,
    /// On any of the others.
    Others,
}

impl Core {
    /// Keeps this thread there; where there is one core only, there is nothing to choose.
    fn take(self) {
        let all = sched_getaffinity(None).unwrap();
        let mut cores: Vec<_> = (0..CpuSet::MAX_CPU)
            .filter(|core| all.is_set(*core))
            .collect();
        let Some(last) = cores.pop().filter(|_| !cores.is_empty()) else {
            return;
        };
        let mut those = CpuSet::new();
        match self {
            Self::Last => those.set(last),
            Self::Others => cores.into_iter().for_each(|core| those.set(core)),
        }
        sched_setaffinity(None, &those).unwrap();
    }
}

/// A thread with a runtime of its own, until it is dropped.
pub(crate) struct Lane {
    pub(crate) runtime: Handle,
    thread: String,
    _stop: DropGuard,
}

impl Lane {
    pub(crate) fn start(core: Core) -> Self {
        let stopped = CancellationToken::new();
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let until = stopped.clone();
        thread::spawn(move || {
            core.take();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let thread = fs::read_link("/proc/thread-self").unwrap();
            tell.send((runtime.handle().clone(), thread)).unwrap();
            runtime.block_on(until.cancelled());
            runtime.shutdown_background();
        });
        let (runtime, thread) = told.recv().unwrap();
        Self {
            runtime,
            thread: format!("/proc/{}", thread.display()),
            _stop: stopped.drop_guard(),
        }
    }

    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            let _ = tell.send(work.await);
        });
        told.recv().unwrap()
    }

    /// Processor time of its thread so far.
    pub(crate) fn used(&self) -> Duration {
        let text = fs::read_to_string(format!("{}/schedstat", self.thread)).unwrap();
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    }
}
