//! The words in which cases are written.

use wavry_proto::{
    h3::{frame, qpack, stream},
    varint,
    webtransport::{
        capsule::{self, Capsule},
        stream as wt_stream,
    },
};
use wavry_transport::session::Close;

use crate::raw;

/// Where a case starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// A connection on which nothing was said.
    Silent,
    /// Its settings were sent, and another session lives on it.
    Ready,
    /// The same, and a session of the case itself.
    Session,
    /// The same with a client of draft-07.
    Older,
    /// As `Ready`, with a server that waits for headers 400 ms only.
    ReadyHasty,
    /// As `Silent`, with such a server.
    SilentHasty,
}

/// What is sent.
pub(super) enum Step {
    /// The session beside is opened, on a connection whose settings were sent by a step.
    Beside,
    /// A unidirectional stream is opened with these bytes.
    Uni(Vec<u8>),
    /// A bidirectional stream is opened with these bytes.
    Bi(Vec<u8>),
    /// More on the control stream.
    Control(Vec<u8>),
    /// More on the CONNECT stream of the case's session.
    Connect(Vec<u8>),
    /// More on the stream that was opened last.
    More(Vec<u8>),
    /// The stream that was written last is ended with FIN.
    Fin,
    /// The stream that was written last is reset.
    Reset,
    /// The peer's unidirectional stream of this type is stopped.
    Stop(u64),
    /// A QUIC datagram.
    Datagram(Vec<u8>),
    /// The session beside is used, so that what was sent before has arrived.
    Meanwhile,
    /// Waits for the peer to end the stream that was written last.
    Ended,
}

/// What must come of it. It is about the stream that was written last where it is about one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// The connection is closed with this code.
    Connection(u64),
    /// The stream is reset and stopped with this code; the connection lives.
    Stream(u64),
    /// The request has this answer; the connection lives.
    Answer(u16),
    /// The peer ends its half of the stream in order; the connection lives.
    Closed,
    /// Nothing comes of it.
    Ignored,
}

/// A frame.
pub(super) fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
    let mut buf = Vec::new();
    frame::put(&mut buf, kind, payload);
    buf
}

/// The first bytes of a frame whose payload has this length.
pub(super) fn frame_header(kind: u64, len: u64) -> Vec<u8> {
    integers(&[kind, len])
}

pub(super) fn data(payload: &[u8]) -> Vec<u8> {
    frame(frame::kind::DATA, payload)
}

pub(super) fn integers(list: &[u64]) -> Vec<u8> {
    let mut buf = Vec::new();
    list.iter().for_each(|value| varint::put(&mut buf, *value));
    buf
}

/// A unidirectional stream of a type.
pub(super) fn typed(kind: u64, bytes: &[u8]) -> Vec<u8> {
    cat(&[&integers(&[kind]), bytes])
}

/// A control stream that begins with these settings.
pub(super) fn control(settings: &[(u64, u64)]) -> Vec<u8> {
    typed(stream::CONTROL, &raw::settings(settings))
}

/// A unidirectional WebTransport stream.
pub(super) fn wt_uni(session: u64, bytes: &[u8]) -> Vec<u8> {
    cat(&[&integers(&[wt_stream::UNI, session]), bytes])
}

/// A bidirectional WebTransport stream.
pub(super) fn wt_bi(session: u64, bytes: &[u8]) -> Vec<u8> {
    cat(&[&integers(&[wt_stream::BI, session]), bytes])
}

pub(super) fn cat(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// The fields of a sound request.
pub(super) fn get() -> Vec<(&'static str, &'static str)> {
    vec![
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", "/"),
    ]
}

/// The fields of a sound request for a session.
pub(super) fn session() -> Vec<(&'static str, &'static str)> {
    vec![
        (":method", "CONNECT"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", "/"),
        (":protocol", "webtransport"),
    ]
}

type Fields = Vec<(&'static str, &'static str)>;

pub(super) fn without(mut fields: Fields, name: &str) -> Fields {
    fields.retain(|(n, _)| *n != name);
    fields
}

pub(super) fn with(mut fields: Fields, name: &'static str, value: &'static str) -> Fields {
    fields.push((name, value));
    fields
}

pub(super) fn replaced(mut fields: Fields, name: &str, value: &'static str) -> Fields {
    for field in fields.iter_mut().filter(|(n, _)| *n == name) {
        field.1 = value;
    }
    fields
}

/// A HEADERS frame.
pub(super) fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    raw::headers(&raw::lines(fields)).to_vec()
}

/// A HEADERS frame with a field section as it stands.
pub(super) fn section(bytes: &[u8]) -> Vec<u8> {
    frame(frame::kind::HEADERS, bytes)
}

/// A field section, to be spoilt.
pub(super) fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut section = Vec::new();
    let lines = fields.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
    qpack::encode(lines, &mut section);
    section
}

/// A capsule with a payload as it stands.
pub(super) fn capsule(kind: u64, payload: &[u8]) -> Vec<u8> {
    cat(&[&integers(&[kind, payload.len() as u64]), payload])
}

/// A capsule with an integer for payload.
pub(super) fn limit(kind: u64, limit: u64) -> Vec<u8> {
    capsule(kind, &integers(&[limit]))
}

/// WT_CLOSE_SESSION.
pub(super) fn close(code: u32, reason: &str) -> Vec<u8> {
    let mut buf = Vec::new();
    Capsule::Close(Close::new(code, reason)).encode(&mut buf);
    buf
}

/// WT_CLOSE_SESSION with a reason as it stands.
pub(super) fn close_with(reason: &[u8]) -> Vec<u8> {
    capsule(capsule::CLOSE_SESSION, &cat(&[&[0; 4], reason]))
}
