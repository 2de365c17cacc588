//! What obtaining certificates counts.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Attempts to obtain a certificate. Labels: `authority`; `outcome`, `issued` or why not.
pub(super) const ATTEMPTS: &str = "wavry_credentials_acme_attempts_total";
/// From the first request to the certificate in use. Label: `authority`.
pub(super) const ATTEMPT: &str = "wavry_credentials_acme_attempt_seconds";
/// When the last certificate was obtained.
pub(super) const LAST_SUCCESS: &str = "wavry_credentials_acme_last_success_timestamp_seconds";
/// When the next attempt is made, back-off included.
pub(super) const NEXT_ATTEMPT: &str = "wavry_credentials_acme_next_attempt_timestamp_seconds";
/// The window in which the authority wants the certificate renewed. Label: `edge`, `start` or `end`.
pub(super) const WINDOW: &str = "wavry_credentials_acme_window_timestamp_seconds";
/// Connections to the listener for challenges that are over. Labels: `type`; `outcome`.
pub(super) const CHALLENGES: &str = "wavry_credentials_acme_challenge_connections_total";

/// Hosts of services that a certificate is kept for, or would be.
pub(super) const DEMAND_HOSTS: &str = "wavry_credentials_acme_service_hosts";
/// Hosts of services beyond the bound.
pub(super) const DEMAND_LEFT_OUT: &str = "wavry_credentials_acme_service_hosts_left_out";
/// Hosts of services that a client was the first to ask for.
pub(super) const DEMAND_ASKED: &str = "wavry_credentials_acme_service_hosts_asked_total";
/// Times that the first certificate of a host was put off by the rate.
pub(super) const DEMAND_PUT_OFF: &str = "wavry_credentials_acme_service_hosts_put_off_total";

/// Describes them to the recorder.
pub(crate) fn describe() {
    super::fleet::describe();
    describe_gauge!(
        DEMAND_HOSTS,
        Unit::Count,
        "Hosts of services that may have certificates of their own"
    );
    describe_gauge!(
        DEMAND_LEFT_OUT,
        Unit::Count,
        "Hosts of services that have none, since there are too many"
    );
    describe_counter!(
        DEMAND_ASKED,
        Unit::Count,
        "Hosts of services without a certificate that a client was the first to ask for"
    );
    describe_counter!(
        DEMAND_PUT_OFF,
        Unit::Count,
        "Times that the first certificate of a host was put off by their rate"
    );
    describe_counter!(
        ATTEMPTS,
        Unit::Count,
        "Attempts to obtain a certificate, by authority and outcome"
    );
    describe_histogram!(
        ATTEMPT,
        Unit::Seconds,
        "From the first request for a certificate to its being in use"
    );
    describe_gauge!(
        LAST_SUCCESS,
        Unit::Seconds,
        "When a certificate was last obtained, in seconds since the Unix epoch"
    );
    describe_gauge!(
        NEXT_ATTEMPT,
        Unit::Seconds,
        "When the next attempt is made to obtain one, in seconds since the Unix epoch"
    );
    describe_gauge!(
        WINDOW,
        Unit::Seconds,
        "When the authority wants the certificate renewed, in seconds since the Unix epoch"
    );
    describe_counter!(
        CHALLENGES,
        Unit::Count,
        "Connections to the listener for challenges that are over"
    );
}
