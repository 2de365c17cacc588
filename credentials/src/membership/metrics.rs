//! Names of a membership's metrics.

use metrics::{Unit, describe_counter, describe_gauge};

pub(super) const ROSTER_EPOCH: &str = "wavry_node_roster_epoch";
pub(super) const ROSTER_ISSUED: &str = "wavry_node_roster_issued_timestamp_seconds";
pub(super) const ROSTER_AGE: &str = "wavry_node_roster_age_seconds";
pub(super) const ROSTER_STALE: &str = "wavry_node_roster_stale";
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
        ROSTER_STALE,
        Unit::Count,
        "1 when the newest roster is too old to act on, 0 when it is not"
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
