//! What a gateway counts of what it shares.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

/// Requests for the lease of a certificate. Label: `outcome`.
const LEASES: &str = "wavry_credentials_fleet_leases_total";
/// Leases that this gateway has.
const HELD: &str = "wavry_credentials_fleet_leases_held";
/// Answers to challenges that other gateways were waited for. Label: `outcome`.
const ACKNOWLEDGED: &str = "wavry_credentials_fleet_acknowledgements_total";
/// From the issue of a certificate by another gateway to its being here.
const SHARED: &str = "wavry_credentials_fleet_shared_seconds";
/// When the master last told what gateways share.
const HEARD: &str = "wavry_credentials_fleet_heard_timestamp_seconds";
/// What another gateway shared and this one cannot use. Label: `what`.
const REFUSED: &str = "wavry_credentials_fleet_refused_total";

pub(super) fn lease(outcome: &'static str) {
    counter!(LEASES, "outcome" => outcome).increment(1);
}

pub(super) fn holds(more: f64) {
    gauge!(HELD).increment(more);
}

pub(super) fn acknowledged(outcome: &'static str) {
    counter!(ACKNOWLEDGED, "outcome" => outcome).increment(1);
}

pub(super) fn shared(after: Duration) {
    histogram!(SHARED).record(after.as_secs_f64());
}

pub(super) fn heard(at: Duration) {
    gauge!(HEARD).set(at.as_secs_f64());
}

pub(super) fn refused(what: &'static str) {
    counter!(REFUSED, "what" => what).increment(1);
}

/// Describes them to the recorder.
pub(in crate::acme) fn describe() {
    describe_counter!(
        LEASES,
        Unit::Count,
        "Requests for the lease of a certificate that gateways share, by outcome"
    );
    describe_gauge!(
        HELD,
        Unit::Count,
        "Leases of certificates that this gateway has: those it orders"
    );
    describe_counter!(
        ACKNOWLEDGED,
        Unit::Count,
        "Answers to challenges that the other gateways were waited for, by outcome"
    );
    describe_histogram!(
        SHARED,
        Unit::Seconds,
        "From the issue of a certificate that another gateway ordered to its being at this one"
    );
    describe_gauge!(
        HEARD,
        Unit::Seconds,
        "When the master last told what gateways share, in seconds since the Unix epoch"
    );
    describe_counter!(
        REFUSED,
        Unit::Count,
        "What another gateway shared and this one cannot use"
    );
}
