//! Names of the master's metrics.

use metrics::{Unit, describe_counter, describe_gauge};

pub(crate) const REQUESTS: &str = "wavry_master_requests_total";
pub(crate) const REGISTRATIONS: &str = "wavry_master_registrations_total";
pub(crate) const CONNECTIONS: &str = "wavry_master_connections";
pub(crate) const HANDSHAKES_FAILED: &str = "wavry_master_handshakes_failed_total";
pub(crate) const ROSTER_EPOCH: &str = "wavry_master_roster_epoch";
pub(crate) const SERVICES: &str = "wavry_master_services";
pub(crate) const NODES: &str = "wavry_master_nodes";

pub(crate) const KEYS: &str = "wavry_master_signing_keys";
pub(crate) const KEY_SIGNS_SINCE: &str = "wavry_master_signing_key_since_timestamp_seconds";
pub(crate) const KEY_ROTATIONS: &str = "wavry_master_key_rotations_total";
pub(crate) const REVOCATIONS: &str = "wavry_master_revocations_total";

pub(crate) const AUDIT_LINES: &str = "wavry_master_audit_lines_total";
pub(crate) const AUDIT_UNWRITTEN: &str = "wavry_master_audit_unwritten_total";

pub(crate) const AUDIT_FILE_FAILURES: &str = "wavry_master_audit_file_failures_total";

/// Describes each metric with its unit, those of the credentials too.
pub fn describe() {
    wavry_credentials::metrics::describe();
    describe_counter!(
        REQUESTS,
        Unit::Count,
        "HTTP requests answered, by route and status"
    );
    describe_counter!(
        REGISTRATIONS,
        Unit::Count,
        "Registrations tried, by outcome: registered, or the word of the problem"
    );
    describe_gauge!(
        KEYS,
        Unit::Count,
        "Keys that sign tokens and rosters, by state: published, signing, accepted, retired, revoked"
    );
    describe_gauge!(
        KEY_SIGNS_SINCE,
        Unit::Seconds,
        "Since when the key signs that signs now, in seconds since the Unix epoch"
    );
    describe_counter!(
        KEY_ROTATIONS,
        Unit::Count,
        "Keys made to take another's place, by reason: schedule, request, compromise"
    );
    describe_counter!(
        REVOCATIONS,
        Unit::Count,
        "What operators revoked, by kind: node, subject"
    );
    describe_counter!(
        AUDIT_LINES,
        Unit::Count,
        "Lines written to the audit log, by outcome: written, failed"
    );
    describe_counter!(
        AUDIT_UNWRITTEN,
        Unit::Count,
        "Denials that were not written to the audit log, by reason: strangers"
    );
    describe_counter!(
        AUDIT_FILE_FAILURES,
        Unit::Count,
        "Attempts to copy the audit log to its file that failed"
    );
    describe_gauge!(CONNECTIONS, Unit::Count, "Open TLS connections");
    describe_counter!(
        HANDSHAKES_FAILED,
        Unit::Count,
        "Connections that ended before a request could be read, by reason: timeout, tls, version"
    );
    describe_gauge!(ROSTER_EPOCH, Unit::Count, "Epoch of the roster served");
    describe_gauge!(SERVICES, Unit::Count, "Services in the roster served");
    describe_gauge!(
        NODES,
        Unit::Count,
        "Registered nodes, by role and by how they do: present, draining, suspect, gone"
    );
}
