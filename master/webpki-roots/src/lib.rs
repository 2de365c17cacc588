//! Stands for the crate of this name, which is Mozilla's list of authorities, in this workspace alone.
//!
//! sqlx trusts that list *beside* the authorities it is given, and has no feature for TLS by aws-lc-rs without
//! it: any public authority could vouch for a database's name. With an empty list a connection to PostgreSQL
//! trusts whom its configuration names, and nobody else (ADR 0017).

use rustls_pki_types::TrustAnchor;

/// Nobody.
pub const TLS_SERVER_ROOTS: &[TrustAnchor<'static>] = &[];
