//! Names of the master's metrics.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

pub(crate) const REQUESTS: &str = "wavry_master_requests_total";
pub(crate) const REGISTRATIONS: &str = "wavry_master_registrations_total";
pub(crate) const CONNECTIONS: &str = "wavry_master_connections";
pub(crate) const HANDSHAKES_FAILED: &str = "wavry_master_handshakes_failed_total";
pub(crate) const ROSTER_EPOCH: &str = "wavry_master_roster_epoch";
pub(crate) const ROSTERS_SIGNED: &str = "wavry_master_rosters_signed_total";
pub(crate) const ROSTERS_UNSIGNED: &str = "wavry_master_rosters_unsigned_total";
pub(crate) const SIGNS: &str = "wavry_master_signs";
pub(crate) const SERVICES: &str = "wavry_master_services";
pub(crate) const NODES: &str = "wavry_master_nodes";
pub(crate) const CURRENT: &str = "wavry_master_current";
pub(crate) const FEED_LOST: &str = "wavry_master_feed_lost_total";

pub(crate) const KEYS: &str = "wavry_master_signing_keys";
pub(crate) const KEY_SIGNS_SINCE: &str = "wavry_master_signing_key_since_timestamp_seconds";
pub(crate) const KEY_ROTATIONS: &str = "wavry_master_key_rotations_total";
pub(crate) const AUTHORITIES: &str = "wavry_master_authorities";
pub(crate) const AUTHORITY_EXPIRY: &str = "wavry_master_authority_expiry_timestamp_seconds";
pub(crate) const AUTHORITY_ROTATIONS: &str = "wavry_master_authority_rotations_total";
pub(crate) const OWN_CERTIFICATES: &str = "wavry_master_own_certificates_total";
pub(crate) const NODE_CERTIFICATES: &str = "wavry_master_node_certificates_total";
pub(crate) const CERTIFICATES_SHOWN: &str = "wavry_master_certificates_shown_total";
pub(crate) const IDENTITY_ROTATIONS: &str = "wavry_master_identity_rotations_total";
pub(crate) const LEASES: &str = "wavry_master_leases_total";
pub(crate) const REVOCATIONS: &str = "wavry_master_revocations_total";

pub(crate) const AUDIT_LINES: &str = "wavry_master_audit_lines_total";
pub(crate) const AUDIT_UNWRITTEN: &str = "wavry_master_audit_unwritten_total";

pub(crate) const SINK_LINES: &str = "wavry_audit_sink_lines_total";
pub(crate) const SINK_FAILURES: &str = "wavry_audit_sink_failures_total";
pub(crate) const SINK_NEWEST: &str = "wavry_audit_sink_newest_line";

pub(crate) const KEYVAULT_REQUESTS: &str = "wavry_keyvault_requests_total";
pub(crate) const KEYVAULT_REQUEST_SECONDS: &str = "wavry_keyvault_request_seconds";
pub(crate) const KEYVAULT_CONNECTIONS: &str = "wavry_keyvault_connections";
pub(crate) const KEYVAULT_HANDSHAKES_FAILED: &str = "wavry_keyvault_handshakes_failed_total";
pub(crate) const KEYVAULT_UNSEALED: &str = "wavry_keyvault_unsealed";
pub(crate) const KEYVAULT_UNWRAPS: &str = "wavry_keyvault_unwraps_total";
pub(crate) const KEYVAULT_LOGINS: &str = "wavry_keyvault_logins_total";
pub(crate) const KEYVAULT_LOCK_OUTS: &str = "wavry_keyvault_lock_outs_total";
pub(crate) const KEYVAULT_TOKENS: &str = "wavry_keyvault_tokens";
pub(crate) const KEYVAULT_ROTATION_LEFT: &str = "wavry_keyvault_rotation_entries_left";
pub(crate) const KEYVAULT_TERM_WRAPS: &str = "wavry_keyvault_term_wraps";
pub(crate) const KEYVAULT_GROUP_CHANGES: &str = "wavry_keyvault_group_changes";
pub(crate) const KEYVAULT_CHANGES_REFUSED: &str = "wavry_keyvault_changes_refused_total";
pub(crate) const KEYVAULT_COMMIT_FAILURES: &str = "wavry_keyvault_commit_failures_total";
pub(crate) const KEYVAULT_COUNTER_FAILURES: &str = "wavry_keyvault_counter_failures_total";
pub(crate) const KEYVAULT_INTEGRITY_FAILURES: &str = "wavry_keyvault_integrity_failures_total";
pub(crate) const KEYVAULT_KEEPER_FAILURES: &str = "wavry_keyvault_keeper_failures_total";
pub(crate) const KEYVAULT_AUDIT_LINES: &str = "wavry_keyvault_audit_lines_total";

/// Describes each metric with its unit, those of the credentials and of a KeyVault too.
pub fn describe() {
    describe_counter!(
        REQUESTS,
        Unit::Count,
        "HTTP requests answered, by route and status"
    );
    describe_gauge!(
        AUTHORITIES,
        Unit::Count,
        "Authorities of the cluster's own certificates, by state"
    );
    describe_gauge!(
        AUTHORITY_EXPIRY,
        Unit::Seconds,
        "When the first of the authorities in a state expires, in seconds since the Unix epoch"
    );
    describe_counter!(
        AUTHORITY_ROTATIONS,
        Unit::Count,
        "Authorities made to take the place of the one that signs, by reason"
    );
    describe_counter!(
        OWN_CERTIFICATES,
        Unit::Count,
        "Certificates of the master's HTTPS that the authority was asked for, by outcome"
    );
    describe_counter!(
        NODE_CERTIFICATES,
        Unit::Count,
        "Certificates that nodes asked for, by outcome: issued, or the word of the problem"
    );
    describe_counter!(
        CERTIFICATES_SHOWN,
        Unit::Count,
        "Requests of nodes, by what the certificate that they showed is worth"
    );
    describe_counter!(
        REGISTRATIONS,
        Unit::Count,
        "Registrations tried, by outcome: registered, or the word of the problem"
    );
    describe_counter!(
        ROSTERS_UNSIGNED,
        Unit::Count,
        "Attempts to sign a roster that failed, as the vault that has the key did not sign"
    );
    describe_gauge!(
        SIGNS,
        Unit::Count,
        "1 if the newest roster could be signed when that was last tried, else 0"
    );
    describe_counter!(
        ROSTERS_SIGNED,
        Unit::Count,
        "Rosters signed for the nodes that watch; changes that come in a burst share one"
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
        IDENTITY_ROTATIONS,
        Unit::Count,
        "Steps of rotations of nodes' identities, by step: ordered, admitted, shown, retired"
    );
    describe_counter!(
        REVOCATIONS,
        Unit::Count,
        "What operators revoked, by kind: node, subject, leases"
    );
    describe_counter!(
        LEASES,
        Unit::Count,
        "Leases of flows that nodes asked for, by outcome: signed, not_listed, not_a_way"
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
    describe_gauge!(
        CURRENT,
        Unit::Count,
        "Whether this master sees what others write to the database that they share: 1 or 0"
    );
    describe_counter!(
        FEED_LOST,
        Unit::Count,
        "Times that the connection was lost by which other masters tell of changes"
    );
    describe_keyvault();
}

/// Describes the metrics of a KeyVault, those of the credentials too.
pub fn describe_keyvault() {
    wavry_credentials::metrics::describe();
    describe_counter!(
        SINK_LINES,
        Unit::Count,
        "Lines of the audit log that were written to a sink, those that came twice too"
    );
    describe_counter!(
        SINK_FAILURES,
        Unit::Count,
        "Attempts to write the audit log to a sink that failed"
    );
    describe_gauge!(
        SINK_NEWEST,
        Unit::Count,
        "Number of the newest line that was written to a sink"
    );
    describe_counter!(
        KEYVAULT_LOGINS,
        Unit::Count,
        "Logins tried, by method and outcome: done, or the word of the refusal"
    );
    describe_counter!(
        KEYVAULT_LOCK_OUTS,
        Unit::Count,
        "Times a role-id was locked because logins with it failed too often"
    );
    describe_gauge!(
        KEYVAULT_TOKENS,
        Unit::Count,
        "Good tokens, as the last sweep over all of them found"
    );
    describe_gauge!(
        KEYVAULT_ROTATION_LEFT,
        Unit::Count,
        "Entries that a rotation has not wrapped anew yet; 0 while none runs"
    );
    describe_gauge!(
        KEYVAULT_TERM_WRAPS,
        Unit::Count,
        "Keys wrapped under the current term: it is rotated at 2^31, and refuses at 2^32"
    );
    describe_histogram!(
        KEYVAULT_GROUP_CHANGES,
        Unit::Count,
        "Changes of the KeyVault committed together"
    );
    describe_counter!(
        KEYVAULT_CHANGES_REFUSED,
        Unit::Count,
        "Changes of the KeyVault that were not made for lack of time or room, by reason: queue_full, \
         deadline"
    );
    describe_counter!(
        KEYVAULT_COMMIT_FAILURES,
        Unit::Count,
        "Groups of changes that the KeyVault's store could not write"
    );
    describe_counter!(
        KEYVAULT_COUNTER_FAILURES,
        Unit::Count,
        "Attempts to write the KeyVault's counter that failed"
    );
    describe_counter!(
        KEYVAULT_INTEGRITY_FAILURES,
        Unit::Count,
        "Times an entry of the KeyVault did not authenticate"
    );
    describe_counter!(
        KEYVAULT_KEEPER_FAILURES,
        Unit::Count,
        "Rounds of the KeyVault's rotation and upkeep of keys that failed"
    );
    describe_counter!(
        KEYVAULT_AUDIT_LINES,
        Unit::Count,
        "Lines written to the KeyVault's audit log"
    );
    describe_counter!(
        KEYVAULT_REQUESTS,
        Unit::Count,
        "Requests answered by the KeyVault, by outcome: done, or the word of the refusal"
    );
    describe_histogram!(
        KEYVAULT_REQUEST_SECONDS,
        Unit::Seconds,
        "From the head of a request to the KeyVault to its answer, audit line included"
    );
    describe_gauge!(
        KEYVAULT_CONNECTIONS,
        Unit::Count,
        "Open TLS connections of a KeyVault that runs alone"
    );
    describe_counter!(
        KEYVAULT_HANDSHAKES_FAILED,
        Unit::Count,
        "Connections to a KeyVault that runs alone that ended before a request could be read, by reason: timeout, tls"
    );
    describe_gauge!(
        KEYVAULT_UNSEALED,
        Unit::Count,
        "1 while the KeyVault is unsealed, else 0"
    );
    describe_counter!(
        KEYVAULT_UNWRAPS,
        Unit::Count,
        "Wrapping tokens brought, by outcome: done, used (an alarm: somebody else has what was in it), unknown"
    );
}
