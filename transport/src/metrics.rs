//! Names of this crate's metrics.

use metrics::{Unit, describe_counter, describe_gauge};

/// Datagrams given to (`direction="sent"`) and taken from (`direction="received"`) QUIC, by `link`
/// (`webtransport` or `mesh`).
pub const DATAGRAMS: &str = "wavry_transport_datagrams_total";
/// Datagrams dropped at this node, by `link` and `reason` (see [`reason`]). What was sent at one
/// end, minus what was received and dropped at the other, is what the wire lost.
pub const DATAGRAMS_DROPPED: &str = "wavry_transport_datagrams_dropped_total";

/// Handshakes that are under way on this node's WebTransport servers.
pub const HANDSHAKES: &str = "wavry_transport_handshakes";
/// Connections refused before their handshake, by `reason` (see [`connection_refusal`]).
pub const CONNECTIONS_REFUSED: &str = "wavry_transport_connections_refused_total";
/// Clients that were asked to prove their address first.
pub const RETRIES: &str = "wavry_transport_retries_total";
/// Handshakes of clients that came to no connection, by `reason` (see [`handshake_failure`]).
pub const HANDSHAKES_FAILED: &str = "wavry_transport_handshakes_failed_total";
/// Packets that came to another shard than their connection's, as those of a client do whose address has
/// changed, or of a node to which another path is taken, and were handed over; by `link`.
pub const PACKETS_HANDED_OVER: &str = "wavry_transport_packets_handed_over_total";
/// Packets dropped before QUIC saw them, by `link` and `reason` (see [`packet_drop`]).
pub const PACKETS_DROPPED: &str = "wavry_transport_packets_dropped_total";

/// Mesh connections that are up, by `side` (`client`: dialled here; `server`).
pub const MESH_CONNECTIONS: &str = "wavry_transport_mesh_connections";
/// Mesh handshakes, by `side` and `outcome` (`done`, `failed`, `unknown_key`).
pub const MESH_HANDSHAKES: &str = "wavry_transport_mesh_handshakes_total";
/// Mesh sessions that are live, asked for or being opened included.
pub const MESH_SESSIONS: &str = "wavry_transport_mesh_sessions";
/// Mesh connections closed because the peer left the roster.
pub const MESH_REVOKED: &str = "wavry_transport_mesh_revoked_total";
/// Mesh connections that take no new sessions any more: an identity that made them was rotated out, or the peer fell silent.
pub const MESH_RETIRED: &str = "wavry_transport_mesh_retired_total";
/// Sessions ended because the peer broke the mesh protocol.
pub const MESH_VIOLATIONS: &str = "wavry_transport_mesh_violations_total";
/// Times that another path to a peer was taken, by `cause` (`first`, `silent`, `gone`, `better`).
pub const OVERLAY_SWITCHES: &str = "wavry_transport_overlay_switches_total";
/// Peers that this node wants to reach or is heard by, by `state` (`reached`; `unreached`: wanted, and there is no
/// path).
pub const OVERLAY_PEERS: &str = "wavry_transport_overlay_peers";
/// Paths to peers, by `standing` (`asked`, `proved`, `silent`).
pub const OVERLAY_PATHS: &str = "wavry_transport_overlay_paths";
/// Flows that this node keeps ready, by `state` (`open`: all relays on the way carry it; `closed`).
pub const OVERLAY_FLOWS: &str = "wavry_transport_overlay_flows";
/// Smoothed round trip of the path in use to a `peer`.
pub const OVERLAY_ROUND_TRIP: &str = "wavry_transport_overlay_path_round_trip_seconds";
/// Of the last probes of the path in use to a `peer`, the part that was lost.
pub const OVERLAY_LOSS: &str = "wavry_transport_overlay_path_loss_ratio";
/// Probes sent, by `kind` (`ping`, `pong`).
pub const OVERLAY_PROBES: &str = "wavry_transport_overlay_probes_total";
/// Packets that went over a second path too, as the one in use was in doubt.
pub const OVERLAY_DOUBLED: &str = "wavry_transport_overlay_doubled_packets_total";
/// Flows that transit relays refused this node, by `reason` (`not_listed`, `not_on_the_way`, `in_use`, `full`,
/// `draining`, `no_lease`, `forged`, `not_yet`, `expired`, `other_lease`, `revoked`, `replayed`, `busy`).
pub const OVERLAY_REFUSALS: &str = "wavry_transport_overlay_refusals_total";
/// Flows that this node carries as a transit relay.
pub const TRANSIT_FLOWS: &str = "wavry_transport_transit_flows";
/// Packets that this node forwarded as a transit relay.
pub const TRANSIT_PACKETS: &str = "wavry_transport_transit_packets_total";
/// Bytes of UDP payload that this node forwarded as a transit relay.
pub const TRANSIT_BYTES: &str = "wavry_transport_transit_bytes_total";
/// Packets that this node did not forward as a transit relay, by `reason` (see [`transit_drop`]).
pub const TRANSIT_DROPPED: &str = "wavry_transport_transit_dropped_total";
/// Leases of claims that were looked at, by what (`by`): `signature`, or `memory` where it was checked before.
pub const TRANSIT_LEASES: &str = "wavry_transport_transit_leases_total";
/// 1 where a transit relay takes the roster for permission, as no master answers it.
pub const TRANSIT_SILENCE: &str = "wavry_transport_transit_silence";
/// Bytes that wait because this transit relay's link is full.
pub const TRANSIT_QUEUED: &str = "wavry_transport_transit_queued_bytes";
/// Claims of flows, by `ruling` (`granted`, `prove`, or the reason of a refusal).
pub const TRANSIT_CLAIMS: &str = "wavry_transport_transit_claims_total";
/// Attaches of nodes that nobody reaches otherwise, by `ruling` (`granted`, `prove`, or the reason of a refusal).
pub const TRANSIT_ATTACHES: &str = "wavry_transport_transit_attaches_total";
/// Nodes that are attached to this one as a transit relay.
pub const TRANSIT_ATTACHED: &str = "wavry_transport_transit_attached";
/// Transit relays through which this node is reached, where nobody reaches it otherwise.
pub const OVERLAY_PLACES: &str = "wavry_transport_overlay_places";
/// Packets between nodes that were dropped by the overlay, by `reason` (see [`overlay_drop`]).
pub const OVERLAY_DROPPED: &str = "wavry_transport_overlay_dropped_total";
/// Requests to this node's WebTransport servers, by `outcome` (see [`outcome`]).
pub const REQUESTS: &str = "wavry_transport_requests_total";
/// WebTransport streams that a peer opened and that were refused, by `reason` (see [`refusal`]).
pub const STREAMS_REFUSED: &str = "wavry_transport_streams_refused_total";

/// WebTransport connections that are up, by `side` (`client`, `server`).
pub const CONNECTIONS: &str = "wavry_transport_connections";
/// WebTransport sessions that are there, asked for and not answered ones included, by `side`.
pub const SESSIONS: &str = "wavry_transport_sessions";
/// WebTransport sessions that were ended because nobody read them while they held up others on their
/// connection.
pub const SESSIONS_UNREAD: &str = "wavry_transport_sessions_unread_total";

/// Values of the label `reason` of [`OVERLAY_DROPPED`].
pub mod overlay_drop {
    /// A batch of packets to a peer to which no path was proved, when as many as may waited for one.
    pub const NO_PATH: &str = "no_path";
    /// Not the overlay's, or cut off.
    pub const MALFORMED: &str = "malformed";
    /// A QUIC packet under a label, or on a flow, that is nobody's: its peer, or this node, was started anew.
    pub const UNKNOWN_LABEL: &str = "unknown_label";
    /// A probe by a node that the roster does not list, or for another one.
    pub const UNKNOWN_SENDER: &str = "unknown_sender";
    /// A probe through a relay that the roster does not list, or not as one that forwards.
    pub const UNKNOWN_RELAY: &str = "unknown_relay";
    /// A probe over a flow that this node claimed and has left.
    pub const LEFT_FLOW: &str = "left_flow";
    /// A probe whose tags are not its sender's.
    pub const UNAUTHENTICATED: &str = "unauthenticated";
    /// A probe beyond what is looked at each second.
    pub const TOO_MANY_PROBES: &str = "too_many_probes";
    /// A QUIC packet of one peer in the buffer of another, when too many waited already.
    pub const OVERFLOW: &str = "overflow";
}

/// Values of the label `reason` of [`TRANSIT_DROPPED`], beside those of
/// [`NotForwarded`](wavry_proto::overlay::transit::NotForwarded) and
/// [`Overdue`](wavry_proto::overlay::egress::Overdue).
pub mod transit_drop {
    /// Not the overlay's, or not for a transit relay.
    pub const MALFORMED: &str = "malformed";
    /// A claim by a node that the roster does not list.
    pub const UNKNOWN_SENDER: &str = "unknown_sender";
    /// A claim whose tags are not its sender's.
    pub const UNAUTHENTICATED: &str = "unauthenticated";
    /// A claim beyond its sender's share of what is looked at each second, and what the others left.
    pub const TOO_MANY_CLAIMS: &str = "too_many_claims";
    /// The operating system refused it.
    pub const SEND_FAILED: &str = "send_failed";
}

/// Values of the label `outcome` of [`REQUESTS`].
pub mod outcome {
    /// Became a session.
    pub const ACCEPTED: &str = "accepted";
    /// Refused by whoever accepts sessions.
    pub const REJECTED: &str = "rejected";
    /// Nobody answered it in time: 503.
    pub const UNANSWERED: &str = "unanswered";
    /// The connection has as many sessions as it may: 429.
    pub const TOO_MANY: &str = "too_many";
    /// Came after GOAWAY.
    pub const DRAINING: &str = "draining";
    /// Asked for no session, and was answered.
    pub const PLAIN: &str = "plain";
    /// Asked for no session, and had more content than is taken: 413.
    pub const CONTENT_TOO_LONG: &str = "content_too_long";
    /// Asked for no session, and the answer was not ready in time: 503.
    pub const OVERLOADED: &str = "overloaded";
    /// A kind of request that no server here answers, or its header block was too long.
    pub const OTHER: &str = "other";
    /// Malformed, cut off or too slow.
    pub const MALFORMED: &str = "malformed";
}

/// Values of the label `reason` of [`CONNECTIONS_REFUSED`].
pub mod connection_refusal {
    /// The server takes no more.
    pub const DRAINING: &str = "draining";
    /// The server has as many connections as it may.
    pub const TOO_MANY: &str = "too_many";
    /// The client's address has as many connections as it may.
    pub const TOO_MANY_FROM_ADDRESS: &str = "too_many_from_address";
    /// The server's handshakes come too fast.
    pub const RATE: &str = "rate";
    /// The address's handshakes come too fast.
    pub const ADDRESS_RATE: &str = "address_rate";
}

/// Values of the label `reason` of [`PACKETS_DROPPED`].
pub mod packet_drop {
    /// Too many wait to be taken over by the shard they belong to.
    pub const HAND_OVER_FULL: &str = "hand_over_full";
}

/// Values of the label `reason` of [`HANDSHAKES_FAILED`].
pub mod handshake_failure {
    /// Not done in time.
    pub const TIMEOUT: &str = "timeout";
    /// TLS or QUIC failed.
    pub const FAILED: &str = "failed";
}

/// Values of the label `reason` of [`STREAMS_REFUSED`].
pub mod refusal {
    /// Its header did not come in time.
    pub const HEADER_TIMEOUT: &str = "header_timeout";
    /// Its session was not asked for in time, or too many waited already.
    pub const UNKNOWN_SESSION: &str = "unknown_session";
    /// Its session is over.
    pub const SESSION_GONE: &str = "session_gone";
    /// Its session was not granted another one, and is ended for it.
    pub const FLOW_CONTROL: &str = "flow_control";
}

/// Values of the label `link`.
pub mod link {
    /// Between a client or an upstream and this node.
    pub const WEBTRANSPORT: &str = "webtransport";
    /// Between two nodes.
    pub const MESH: &str = "mesh";
}

/// Values of the label `reason` of [`DATAGRAMS_DROPPED`].
pub mod reason {
    /// QUIC could not send as fast as datagrams came.
    pub const SEND_BUFFER_FULL: &str = "send_buffer_full";
    /// Longer than the path or the peer takes.
    pub const TOO_LARGE: &str = "too_large";
    /// The session's reader is slower than its datagrams: the oldest waiting one was dropped.
    pub const RECEIVE_QUEUE_FULL: &str = "receive_queue_full";
    /// Dropped by QUIC before this node's reader took it.
    pub const RECEIVE_BUFFER_FULL: &str = "receive_buffer_full";
    /// For a session that is not (or no longer) there.
    pub const UNKNOWN_SESSION: &str = "unknown_session";
    /// Its header does not decode.
    pub const MALFORMED: &str = "malformed";
    /// Waited in a session's queue when the session ended.
    pub const SESSION_CLOSED: &str = "session_closed";
}

/// Describes every metric of this crate to the installed recorder.
pub fn describe() {
    describe_counter!(
        DATAGRAMS,
        Unit::Count,
        "Datagrams given to and taken from QUIC"
    );
    describe_counter!(
        DATAGRAMS_DROPPED,
        Unit::Count,
        "Datagrams dropped at this node"
    );
    describe_gauge!(
        HANDSHAKES,
        Unit::Count,
        "Handshakes under way on this node's WebTransport servers"
    );
    describe_counter!(
        CONNECTIONS_REFUSED,
        Unit::Count,
        "Connections refused before their handshake"
    );
    describe_counter!(
        RETRIES,
        Unit::Count,
        "Clients asked to prove their address first"
    );
    describe_counter!(
        HANDSHAKES_FAILED,
        Unit::Count,
        "Handshakes of clients that came to no connection"
    );
    describe_counter!(
        PACKETS_HANDED_OVER,
        Unit::Count,
        "Packets handed over to the shard of their connection"
    );
    describe_counter!(
        PACKETS_DROPPED,
        Unit::Count,
        "Packets dropped before QUIC saw them"
    );
    describe_gauge!(
        MESH_CONNECTIONS,
        Unit::Count,
        "Mesh connections that are up"
    );
    describe_counter!(MESH_HANDSHAKES, Unit::Count, "Mesh handshakes");
    describe_gauge!(MESH_SESSIONS, Unit::Count, "Mesh sessions that are live");
    describe_counter!(
        MESH_REVOKED,
        Unit::Count,
        "Mesh connections closed because the peer left the roster"
    );
    describe_counter!(
        MESH_RETIRED,
        Unit::Count,
        "Mesh connections that take no new sessions any more: an identity that made them was rotated out, or the peer fell silent"
    );
    describe_counter!(
        OVERLAY_SWITCHES,
        Unit::Count,
        "Times that another path to a peer was taken"
    );
    describe_gauge!(
        OVERLAY_PEERS,
        Unit::Count,
        "Peers that this node wants to reach or is heard by"
    );
    describe_gauge!(OVERLAY_PATHS, Unit::Count, "Paths to peers");
    describe_gauge!(
        OVERLAY_FLOWS,
        Unit::Count,
        "Flows that this node keeps ready"
    );
    describe_gauge!(
        OVERLAY_ROUND_TRIP,
        Unit::Seconds,
        "Smoothed round trip of the path in use to a peer"
    );
    describe_gauge!(
        OVERLAY_LOSS,
        Unit::Count,
        "Part of the last probes of the path in use to a peer that was lost, from 0 to 1"
    );
    describe_counter!(
        OVERLAY_PROBES,
        Unit::Count,
        "Probes of paths to peers that were sent"
    );
    describe_counter!(
        OVERLAY_DOUBLED,
        Unit::Count,
        "Packets that went over a second path too"
    );
    describe_counter!(
        OVERLAY_REFUSALS,
        Unit::Count,
        "Flows that transit relays refused this node"
    );
    describe_gauge!(
        TRANSIT_FLOWS,
        Unit::Count,
        "Flows carried as a transit relay"
    );
    describe_counter!(
        TRANSIT_PACKETS,
        Unit::Count,
        "Packets forwarded as a transit relay"
    );
    describe_counter!(
        TRANSIT_BYTES,
        Unit::Bytes,
        "Bytes of UDP payload forwarded as a transit relay"
    );
    describe_counter!(
        TRANSIT_DROPPED,
        Unit::Count,
        "Packets not forwarded as a transit relay"
    );
    describe_gauge!(
        TRANSIT_QUEUED,
        Unit::Bytes,
        "Bytes that wait for this transit relay's link"
    );
    describe_counter!(
        TRANSIT_LEASES,
        Unit::Count,
        "Leases of claims that were looked at, by what: signature, or memory where it was checked before"
    );
    describe_gauge!(
        TRANSIT_SILENCE,
        Unit::Count,
        "1 if no master answers, so that the roster permits flows without a lease, else 0"
    );
    describe_counter!(
        TRANSIT_CLAIMS,
        Unit::Count,
        "Claims of flows, by what became of them"
    );
    describe_counter!(
        TRANSIT_ATTACHES,
        Unit::Count,
        "Attaches of nodes, by what became of them"
    );
    describe_gauge!(
        TRANSIT_ATTACHED,
        Unit::Count,
        "Nodes attached to this transit relay"
    );
    describe_gauge!(
        OVERLAY_PLACES,
        Unit::Count,
        "Transit relays through which this node is reached"
    );
    describe_counter!(
        OVERLAY_DROPPED,
        Unit::Count,
        "Packets between nodes dropped by the overlay"
    );
    describe_counter!(
        MESH_VIOLATIONS,
        Unit::Count,
        "Sessions ended because the peer broke the mesh protocol"
    );
    describe_counter!(
        REQUESTS,
        Unit::Count,
        "Requests to this node's WebTransport servers"
    );
    describe_gauge!(
        CONNECTIONS,
        Unit::Count,
        "WebTransport connections that are up"
    );
    describe_gauge!(
        SESSIONS,
        Unit::Count,
        "WebTransport sessions that are there"
    );
    describe_counter!(
        SESSIONS_UNREAD,
        Unit::Count,
        "WebTransport sessions ended because nobody read them"
    );
    describe_counter!(
        STREAMS_REFUSED,
        Unit::Count,
        "WebTransport streams that a peer opened and that were refused"
    );
}
