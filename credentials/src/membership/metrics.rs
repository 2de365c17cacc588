//! Names of a membership's metrics.

use metrics::{Unit, describe_counter, describe_gauge};

pub(super) const ROSTER_EPOCH: &str = "wavry_node_roster_epoch";
pub(super) const ROSTER_ISSUED: &str = "wavry_node_roster_issued_timestamp_seconds";
pub(super) const ROSTER_AGE: &str = "wavry_node_roster_age_seconds";
pub(super) const ROSTER_KEPT: &str = "wavry_node_roster_kept";
pub(super) const ROSTER_STALE: &str = "wavry_node_roster_stale";
pub(super) const IDENTITY_SINCE: &str = "wavry_node_identity_since_timestamp_seconds";
pub(super) const IDENTITY_EXPIRY: &str = "wavry_node_identity_expiry_timestamp_seconds";
pub(super) const IDENTITY_MARGIN: &str = "wavry_node_identity_margin_seconds";
pub(super) const IDENTITY_ATTEMPTS: &str = "wavry_node_identity_rotation_attempts_total";
pub(super) const IDENTITY_ROTATIONS: &str = "wavry_node_identity_rotations_total";
pub(super) const IDENTITY_FAILURES: &str = "wavry_node_identity_rotation_failures_total";
pub(super) const IDENTITY_FOREIGN: &str = "wavry_node_identity_foreign_keys";
pub(super) const LEASES: &str = "wavry_node_leases";
pub(super) const LEASES_ASKED: &str = "wavry_node_leases_asked_total";
pub(super) const CERTIFICATE_NOT_BEFORE: &str =
    "wavry_node_certificate_not_before_timestamp_seconds";
pub(super) const CERTIFICATE_EXPIRY: &str = "wavry_node_certificate_expiry_timestamp_seconds";
pub(super) const CERTIFICATE_RENEWALS: &str = "wavry_node_certificate_renewals_total";
pub(super) const MASTER_UP: &str = "wavry_node_master_up";
pub(super) const MASTER_FAILURES: &str = "wavry_node_master_failures_total";

/// Describes each metric with its unit.
pub(crate) fn describe() {
    describe_gauge!(
        ROSTER_EPOCH,
        Unit::Count,
        "Epoch of the roster the node acts on"
    );
    describe_gauge!(
        ROSTER_ISSUED,
        Unit::Seconds,
        "When the roster the node acts on was signed, since the Unix epoch"
    );
    describe_gauge!(
        ROSTER_AGE,
        Unit::Seconds,
        "How long ago the newest roster was signed"
    );
    describe_gauge!(
        ROSTER_KEPT,
        Unit::Count,
        "1 when the roster that the node acts on is in its state directory, 0 when it could not be written"
    );
    describe_gauge!(
        ROSTER_STALE,
        Unit::Count,
        "1 when the newest roster is too old to act on, 0 when it is not"
    );
    describe_gauge!(
        LEASES,
        Unit::Count,
        "Leases of flows that the node claims, by state: held, or missing where one is wanted and none holds"
    );
    describe_counter!(
        LEASES_ASKED,
        Unit::Count,
        "Leases that a master was asked for and said something to, by outcome: signed, not_listed, not_a_way, or \
         not_verified where the node knows no such key yet"
    );
    describe_gauge!(
        IDENTITY_SINCE,
        Unit::Seconds,
        "When the identity that the node shows took the place of the one before, since the Unix epoch"
    );
    describe_gauge!(
        IDENTITY_EXPIRY,
        Unit::Seconds,
        "By when another identity should have taken its place, since the Unix epoch"
    );
    describe_gauge!(
        IDENTITY_MARGIN,
        Unit::Seconds,
        "From when an identity is rotated at the latest to its expiry"
    );
    describe_counter!(IDENTITY_ATTEMPTS, Unit::Count, "Identities made");
    describe_counter!(
        IDENTITY_ROTATIONS,
        Unit::Count,
        "Identities that took the place of others"
    );
    describe_counter!(
        IDENTITY_FAILURES,
        Unit::Count,
        "Steps of a rotation of the identity that failed and are tried again, by reason"
    );
    describe_gauge!(
        IDENTITY_FOREIGN,
        Unit::Count,
        "Keys that the roster lists for this node and that it does not have"
    );
    describe_gauge!(
        CERTIFICATE_NOT_BEFORE,
        Unit::Seconds,
        "From when the certificate holds that the node shows to masters, since the Unix epoch"
    );
    describe_gauge!(
        CERTIFICATE_EXPIRY,
        Unit::Seconds,
        "When the certificate expires that the node shows to masters, since the Unix epoch"
    );
    describe_counter!(
        CERTIFICATE_RENEWALS,
        Unit::Count,
        "Certificates that the node asked a master for, by outcome: issued, or why not"
    );
    describe_gauge!(
        MASTER_UP,
        Unit::Count,
        "1 when the last heartbeat was answered, 0 when it was not"
    );
    describe_counter!(
        MASTER_FAILURES,
        Unit::Count,
        "Requests to the master that failed, by operation (register, heartbeat, roster) and reason"
    );
}
