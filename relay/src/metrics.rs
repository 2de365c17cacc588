//! What the relay counts. `upstream` is the kind: `webtransport`, `tcp`, `udp` or `echo`.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Sessions live now, by `upstream`.
pub(crate) const SESSIONS: &str = "wavry_relay_sessions";
/// Sessions that went live, by `service`.
pub(crate) const OPENED: &str = "wavry_relay_sessions_opened_total";
/// Sessions that were live and are over, by `service` and `reason`.
pub(crate) const ENDED: &str = "wavry_relay_sessions_ended_total";
/// Sessions that were asked for and refused, by `reason`.
pub(crate) const REFUSED: &str = "wavry_relay_sessions_refused_total";
/// How long upstreams took to take a session, by `upstream`.
pub(crate) const DIAL: &str = "wavry_relay_upstream_dial_seconds";
/// Streams of sessions, by `upstream` and `direction`.
pub(crate) const STREAMS: &str = "wavry_relay_session_streams_total";
/// Stream bytes, by `upstream` and `direction`.
pub(crate) const BYTES: &str = "wavry_relay_session_bytes_total";
/// Datagrams handed on, by `upstream` and `direction`.
pub(crate) const DATAGRAMS: &str = "wavry_relay_session_datagrams_total";
/// Datagrams dropped here, by `upstream`, `direction` and `reason`.
pub(crate) const DATAGRAMS_DROPPED: &str = "wavry_relay_session_datagrams_dropped_total";
/// Streams reset or stopped with a code of Wavry's own, by `upstream` and `reason`.
pub(crate) const STREAMS_REFUSED: &str = "wavry_relay_streams_refused_total";

/// Describes every metric of the relay with its unit.
pub fn describe() {
    describe_gauge!(SESSIONS, Unit::Count, "Sessions live now");
    describe_counter!(OPENED, Unit::Count, "Sessions that went live");
    describe_counter!(ENDED, Unit::Count, "Live sessions that are over, by reason");
    describe_counter!(REFUSED, Unit::Count, "Sessions refused, by reason");
    describe_histogram!(
        DIAL,
        Unit::Seconds,
        "How long upstreams took to take a session"
    );
    describe_counter!(STREAMS, Unit::Count, "Streams carried");
    describe_counter!(BYTES, Unit::Bytes, "Stream bytes carried");
    describe_counter!(DATAGRAMS, Unit::Count, "Datagrams handed on");
    describe_counter!(
        DATAGRAMS_DROPPED,
        Unit::Count,
        "Datagrams dropped at the relay, by reason"
    );
    describe_counter!(
        STREAMS_REFUSED,
        Unit::Count,
        "Streams reset or stopped with a code of Wavry's own"
    );
}
