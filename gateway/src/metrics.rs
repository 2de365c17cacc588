//! What the gateway counts.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Sessions live now.
pub(crate) const SESSIONS: &str = "wavry_gateway_sessions";
/// Sessions that went live, by `service`.
pub(crate) const OPENED: &str = "wavry_gateway_sessions_opened_total";
/// Sessions that were live and are over, by `service` and `reason`.
pub(crate) const ENDED: &str = "wavry_gateway_sessions_ended_total";
/// Requests that did not become a session, by `reason`.
pub(crate) const REFUSED: &str = "wavry_gateway_sessions_refused_total";
/// Requests to extend sessions with a newer token, by `outcome`.
pub(crate) const REFRESHES: &str = "wavry_gateway_refreshes_total";
/// From a client's request to its live session.
pub(crate) const SETUP: &str = "wavry_gateway_session_setup_seconds";
/// Exits that failed to take a session, by `reason`.
pub(crate) const EXIT_FAILURES: &str = "wavry_gateway_exit_failures_total";
/// Exits that are left out for a while, by `reason`.
pub(crate) const EXIT_EJECTIONS: &str = "wavry_gateway_exit_ejections_total";
/// Exits of the roster, by `state`.
pub(crate) const EXITS: &str = "wavry_gateway_exits";
/// Streams carried, by `direction`.
pub(crate) const STREAMS: &str = "wavry_gateway_session_streams_total";
/// Stream bytes carried, by `direction`.
pub(crate) const BYTES: &str = "wavry_gateway_session_bytes_total";
/// Datagrams handed on, by `direction`.
pub(crate) const DATAGRAMS: &str = "wavry_gateway_session_datagrams_total";
/// Datagrams that the gateway dropped between client and mesh, by `direction`.
pub(crate) const DATAGRAMS_DROPPED: &str = "wavry_gateway_session_datagrams_dropped_total";

/// HTTPS connections over TCP that are over, by `outcome`.
pub(crate) const HTTPS_CONNECTIONS: &str = "wavry_gateway_https_connections_total";

/// Describes every metric of the gateway with its unit.
pub fn describe() {
    describe_gauge!(SESSIONS, Unit::Count, "Sessions live now");
    describe_counter!(OPENED, Unit::Count, "Sessions that went live");
    describe_counter!(ENDED, Unit::Count, "Live sessions that are over, by reason");
    describe_counter!(REFUSED, Unit::Count, "Requests refused, by reason");
    describe_counter!(
        REFRESHES,
        Unit::Count,
        "Requests to extend sessions with a newer token"
    );
    describe_histogram!(
        SETUP,
        Unit::Seconds,
        "From a client's request to its live session"
    );
    describe_counter!(
        HTTPS_CONNECTIONS,
        Unit::Count,
        "HTTPS connections over TCP that are over"
    );
    describe_counter!(
        EXIT_FAILURES,
        Unit::Count,
        "Exits that failed to take a session"
    );
    describe_counter!(
        EXIT_EJECTIONS,
        Unit::Count,
        "Times that an exit was left out, because it failed or was lost"
    );
    describe_gauge!(EXITS, Unit::Count, "Exits of the roster, by how they do");
    describe_counter!(STREAMS, Unit::Count, "Streams carried");
    describe_counter!(BYTES, Unit::Bytes, "Stream bytes carried");
    describe_counter!(DATAGRAMS, Unit::Count, "Datagrams handed on");
    describe_counter!(
        DATAGRAMS_DROPPED,
        Unit::Count,
        "Datagrams dropped between client and mesh"
    );
}
