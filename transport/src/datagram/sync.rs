//! What the hand-over of datagrams synchronises with. The model test (`tests/model`) puts loom's own
//! in its place.

pub(super) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};
