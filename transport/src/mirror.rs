//! Joins two sessions so that each sees what the other's peer does.

use std::time::Duration;

use crate::session::{Close, Closed, Session};

/// How two sessions are joined.
#[derive(Debug, Clone)]
pub struct Options {
    /// Nothing moved either way for so long: both are closed with `close_code::IDLE`.
    pub idle_timeout: Duration,
    /// What `a` is closed with when `b`'s connection is lost.
    pub b_lost: Close,
    /// What `b` is closed with when `a`'s connection is lost.
    pub a_lost: Close,
}

/// How a mirrored pair ended, and what went through it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// What each side said last.
    pub a: Closed,
    /// What each side said last.
    pub b: Closed,
    /// Stream bytes and datagrams from `a` to `b`.
    pub a_to_b: Carried,
    /// Stream bytes and datagrams from `b` to `a`.
    pub b_to_a: Carried,
}

/// What went through one direction of a mirror.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Streams, of both kinds.
    pub streams: u64,
    /// Stream bytes.
    pub bytes: u64,
    /// Datagrams handed on.
    pub datagrams: u64,
    /// Datagrams dropped here.
    pub datagrams_dropped: u64,
}

/// Mirrors `a` and `b` until one of them is over, then ends the other the same way.
pub async fn mirror<A: Session, B: Session>(_a: &A, _b: &B, _options: &Options) -> Ended {
    todo!()
}
