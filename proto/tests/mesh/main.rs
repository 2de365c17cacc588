//! The mesh's wire format and credit rules, from outside.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod credit;
mod frames;
