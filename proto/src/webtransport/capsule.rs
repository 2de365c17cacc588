//! Capsules on a session's CONNECT stream (RFC 9297, section 3; draft-ietf-webtrans-http3-16,
//! sections 4.7, 5.6 and 6).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    session::{Close, MAX_CLOSE_REASON},
    varint,
    webtransport::flow::Kind,
};

/// Type of DATAGRAM (RFC 9297, section 3.5).
pub const DATAGRAM: u64 = 0x00;
/// Type of WT_CLOSE_SESSION.
pub const CLOSE_SESSION: u64 = 0x2843;
/// Type of WT_DRAIN_SESSION.
pub const DRAIN_SESSION: u64 = 0x78ae;
/// Type of WT_MAX_DATA.
pub const MAX_DATA: u64 = 0x190b_4d3d;
/// Type of WT_MAX_STREAM_DATA, which is for HTTP/2 and prohibited here (draft, section 5.4).
pub const MAX_STREAM_DATA: u64 = 0x190b_4d3e;
/// Type of WT_MAX_STREAMS for bidirectional streams.
pub const MAX_STREAMS_BIDI: u64 = 0x190b_4d3f;
/// Type of WT_MAX_STREAMS for unidirectional streams.
pub const MAX_STREAMS_UNI: u64 = 0x190b_4d40;
/// Type of WT_DATA_BLOCKED.
pub const DATA_BLOCKED: u64 = 0x190b_4d41;
/// Type of WT_STREAM_DATA_BLOCKED, which is for HTTP/2 and prohibited here (draft, section 5.4).
pub const STREAM_DATA_BLOCKED: u64 = 0x190b_4d42;
/// Type of WT_STREAMS_BLOCKED for bidirectional streams.
pub const STREAMS_BLOCKED_BIDI: u64 = 0x190b_4d43;
/// Type of WT_STREAMS_BLOCKED for unidirectional streams.
pub const STREAMS_BLOCKED_UNI: u64 = 0x190b_4d44;

/// Longest DATAGRAM that is read, in bytes: what fits a UDP datagram. A longer one is skipped.
pub const MAX_DATAGRAM: usize = 65_535;

/// A capsule that means something to Wavry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capsule {
    /// The sender closed the session.
    Close(Close),
    /// The sender asks to finish and close.
    Drain,
    /// A datagram that goes the reliable way.
    Datagram(Bytes),
    /// Total of stream payload, in bytes, that the receiver may send in the session.
    MaxData(u64),
    /// Total of streams of a kind that the receiver may open in the session.
    MaxStreams(Kind, u64),
    /// The sender would send more, but for this limit on data.
    DataBlocked(u64),
    /// The sender would open more, but for this limit on streams.
    StreamsBlocked(Kind, u64),
}

/// What flow control capsules are to a [`Decoder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flow {
    /// Capsules like any that are not known: the peer's draft has none.
    #[default]
    Unknown,
    /// Ignored, whatever is in them: the draft has them, and they are not enabled (section 5.1).
    /// Prohibited ones are malformed.
    Ignored,
    /// Read. Prohibited ones are malformed.
    Enabled,
}

/// A capsule is malformed, and so is the message it is in (RFC 9297, section 3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed capsule: {0}")]
pub struct Malformed(&'static str);

impl Capsule {
    /// Appends the capsule. A reason over [`MAX_CLOSE_REASON`] is cut.
    pub fn encode(&self, buf: &mut impl BufMut) {
        let (kind, value) = match self {
            Self::Close(close) => {
                let close = Close::new(close.code, &close.reason);
                varint::put(buf, CLOSE_SESSION);
                varint::put(buf, 4 + close.reason.len() as u64);
                buf.put_u32(close.code);
                return buf.put_slice(close.reason.as_bytes());
            }
            Self::Drain => {
                varint::put(buf, DRAIN_SESSION);
                return varint::put(buf, 0);
            }
            Self::Datagram(payload) => {
                varint::put(buf, DATAGRAM);
                varint::put(buf, payload.len() as u64);
                return buf.put_slice(payload);
            }
            Self::MaxData(total) => (MAX_DATA, *total),
            Self::MaxStreams(Kind::Bidi, total) => (MAX_STREAMS_BIDI, *total),
            Self::MaxStreams(Kind::Uni, total) => (MAX_STREAMS_UNI, *total),
            Self::DataBlocked(limit) => (DATA_BLOCKED, *limit),
            Self::StreamsBlocked(Kind::Bidi, limit) => (STREAMS_BLOCKED_BIDI, *limit),
            Self::StreamsBlocked(Kind::Uni, limit) => (STREAMS_BLOCKED_UNI, *limit),
        };
        varint::put(buf, kind);
        varint::put(buf, varint::size(value) as u64);
        varint::put(buf, value);
    }
}

/// Reads capsules from bytes that may be cut anywhere. Types it does not know are skipped by their
/// length. Holds at most one capsule that it knows and what was pushed last.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: BytesMut,
    skip: u64,
    flow: Flow,
}

/// What becomes of a capsule.
enum Fate {
    Read(usize),
    Skip,
}

impl Decoder {
    /// A decoder to which flow control capsules are `flow`.
    pub fn new(flow: Flow) -> Self {
        Self {
            flow,
            ..Self::default()
        }
    }

    /// Adds content of the CONNECT stream. Call [`next`](Self::next) until it has nothing before
    /// the next.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// The next capsule that means something; `None` when more bytes are needed.
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator would end, this goes on"
    )]
    pub fn next(&mut self) -> Result<Option<Capsule>, Malformed> {
        loop {
            let skipped = self.skip.min(self.buf.len() as u64);
            self.buf.advance(skipped as usize);
            self.skip -= skipped;
            if self.skip > 0 {
                return Ok(None);
            }
            let mut peek = &self.buf[..];
            let (Some(kind), Some(len)) = (varint::get(&mut peek), varint::get(&mut peek)) else {
                return Ok(None);
            };
            let header = self.buf.len() - peek.len();
            match self.fate(kind, len)? {
                Fate::Skip => {
                    self.buf.advance(header);
                    self.skip = len;
                }
                Fate::Read(len) if peek.len() < len => return Ok(None),
                Fate::Read(len) => {
                    self.buf.advance(header);
                    let payload = self.buf.split_to(len).freeze();
                    return read(kind, payload).map(Some);
                }
            }
        }
    }

    fn fate(&self, kind: u64, len: u64) -> Result<Fate, Malformed> {
        let within = |range: std::ops::RangeInclusive<u64>, what| {
            let fits = range.contains(&len);
            fits.then_some(Fate::Read(len as usize))
                .ok_or(Malformed(what))
        };
        match kind {
            CLOSE_SESSION => within(
                4..=4 + MAX_CLOSE_REASON as u64,
                "WT_CLOSE_SESSION has a wrong length",
            ),
            DRAIN_SESSION => within(0..=0, "WT_DRAIN_SESSION has a payload"),
            DATAGRAM if len <= MAX_DATAGRAM as u64 => Ok(Fate::Read(len as usize)),
            MAX_STREAM_DATA | STREAM_DATA_BLOCKED if self.flow != Flow::Unknown => {
                Err(Malformed("limits on one stream are QUIC's"))
            }
            MAX_DATA | MAX_STREAMS_BIDI | MAX_STREAMS_UNI | DATA_BLOCKED | STREAMS_BLOCKED_BIDI
            | STREAMS_BLOCKED_UNI
                if self.flow == Flow::Enabled =>
            {
                within(1..=8, "a limit has a wrong length")
            }
            _ => Ok(Fate::Skip),
        }
    }

    /// Whether the content may end here: not within a capsule.
    pub fn at_boundary(&self) -> bool {
        self.buf.is_empty() && self.skip == 0
    }

    /// Bytes held at this moment.
    pub fn held(&self) -> usize {
        self.buf.len()
    }
}

fn read(kind: u64, mut payload: Bytes) -> Result<Capsule, Malformed> {
    match kind {
        CLOSE_SESSION => {
            let code = payload.get_u32();
            let reason =
                std::str::from_utf8(&payload).map_err(|_| Malformed("the reason is not UTF-8"))?;
            return Ok(Capsule::Close(Close::new(code, reason)));
        }
        DRAIN_SESSION => return Ok(Capsule::Drain),
        DATAGRAM => return Ok(Capsule::Datagram(payload)),
        _ => {}
    }
    let value = varint::get(&mut payload).filter(|_| payload.is_empty());
    let value = value.ok_or(Malformed("a limit is not an integer"))?;
    Ok(match kind {
        MAX_DATA => Capsule::MaxData(value),
        MAX_STREAMS_BIDI => Capsule::MaxStreams(Kind::Bidi, value),
        MAX_STREAMS_UNI => Capsule::MaxStreams(Kind::Uni, value),
        DATA_BLOCKED => Capsule::DataBlocked(value),
        STREAMS_BLOCKED_BIDI => Capsule::StreamsBlocked(Kind::Bidi, value),
        // The last type that is read.
        _ => Capsule::StreamsBlocked(Kind::Uni, value),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<Capsule>, Malformed> {
        decoder.push(bytes);
        let mut capsules = Vec::new();
        while let Some(capsule) = decoder.next()? {
            capsules.push(capsule);
        }
        Ok(capsules)
    }

    #[test]
    fn capsules_of_the_draft_are_written_as_it_says() {
        let kind = |kind| if kind == 0 { Kind::Bidi } else { Kind::Uni };
        for (capsule, bytes) in [
            (
                Capsule::Close(Close::new(420, "test")),
                &b"\x68\x43\x08\x00\x00\x01\xa4test"[..],
            ),
            (Capsule::Drain, b"\x80\x00\x78\xae\x00"),
            (Capsule::MaxData(64), b"\x99\x0b\x4d\x3d\x02\x40\x40"),
            (Capsule::MaxStreams(kind(0), 3), b"\x99\x0b\x4d\x3f\x01\x03"),
            (Capsule::MaxStreams(kind(1), 3), b"\x99\x0b\x4d\x40\x01\x03"),
            (Capsule::DataBlocked(0), b"\x99\x0b\x4d\x41\x01\x00"),
            (
                Capsule::StreamsBlocked(kind(0), 1),
                b"\x99\x0b\x4d\x43\x01\x01",
            ),
            (
                Capsule::StreamsBlocked(kind(1), 1),
                b"\x99\x0b\x4d\x44\x01\x01",
            ),
        ] {
            let mut buf = Vec::new();
            capsule.encode(&mut buf);
            assert_eq!(buf, bytes, "{capsule:?}");
            let read = read(&mut Decoder::new(Flow::Enabled), bytes);
            assert_eq!(read, Ok(vec![capsule]));
        }
    }

    #[test]
    fn malformed_capsules_are_refused() {
        for bytes in [
            &b"\x68\x43\x03\0\0\0"[..],  // no room for the code
            b"\x68\x43\x44\x05",         // reason of 1,025 bytes
            b"\x68\x43\x05\0\0\0\0\xff", // not UTF-8
            b"\x80\x00\x78\xae\x01x",    // drain with a payload
        ] {
            assert!(read(&mut Decoder::default(), bytes).is_err(), "{bytes:x?}");
        }
        for bytes in [
            &b"\x99\x0b\x4d\x3d\x00"[..],  // a limit without an integer
            b"\x99\x0b\x4d\x3f\x02\x01\0", // more than one integer
            b"\x99\x0b\x4d\x44\x01\x40",   // half an integer
            b"\x99\x0b\x4d\x41\x09",       // longer than any integer
            b"\x99\x0b\x4d\x3e\x02\x00\0", // prohibited
            b"\x99\x0b\x4d\x42\x02\x00\0", // prohibited
        ] {
            let enabled = read(&mut Decoder::new(Flow::Enabled), bytes);
            assert!(enabled.is_err(), "{bytes:x?}");
            let unknown = read(&mut Decoder::default(), bytes);
            assert_eq!(unknown, Ok(vec![]), "{bytes:x?}");
        }
    }

    #[test]
    fn flow_control_that_is_not_enabled_is_ignored_whatever_it_says() {
        let bytes = b"\x99\x0b\x4d\x3d\x00\x99\x0b\x4d\x3f\x02\x01\0\x80\x00\x78\xae\x00";
        let mut ignoring = Decoder::new(Flow::Ignored);
        assert_eq!(read(&mut ignoring, bytes), Ok(vec![Capsule::Drain]));
        let prohibited = b"\x99\x0b\x4d\x3e\x02\x00\0";
        assert!(read(&mut Decoder::new(Flow::Ignored), prohibited).is_err());
    }

    #[test]
    fn a_datagram_that_no_udp_packet_holds_is_skipped() {
        let mut bytes = Vec::new();
        Capsule::Datagram(vec![7; MAX_DATAGRAM + 1].into()).encode(&mut bytes);
        Capsule::Datagram(b"short"[..].into()).encode(&mut bytes);
        let mut decoder = Decoder::default();
        assert_eq!(
            read(&mut decoder, &bytes),
            Ok(vec![Capsule::Datagram(b"short"[..].into())])
        );
    }

    /// Every capsule that means something.
    pub(crate) fn any_capsule() -> impl Strategy<Value = Capsule> {
        let kind = prop_oneof![Just(Kind::Bidi), Just(Kind::Uni)];
        let limit = 0..=varint::MAX;
        prop_oneof![
            (any::<u32>(), "\\PC{0,40}")
                .prop_map(|(code, reason)| Capsule::Close(Close::new(code, &reason))),
            Just(Capsule::Drain),
            prop::collection::vec(any::<u8>(), 0..100).prop_map(|p| Capsule::Datagram(p.into())),
            limit.clone().prop_map(Capsule::MaxData),
            limit.clone().prop_map(Capsule::DataBlocked),
            (kind.clone(), limit.clone()).prop_map(|(k, n)| Capsule::MaxStreams(k, n)),
            (kind, limit).prop_map(|(k, n)| Capsule::StreamsBlocked(k, n)),
        ]
    }

    proptest! {
        #[test]
        fn capsules_survive_any_cut_among_unknown_ones(
            sent in prop::collection::vec(any_capsule(), 0..6),
            grease in prop::collection::vec(any::<u8>(), 0..100),
            cuts in prop::collection::vec(1..20usize, 1..20),
        ) {
            let mut bytes = Vec::new();
            for capsule in &sent {
                varint::put(&mut bytes, 0x17);
                varint::put(&mut bytes, grease.len() as u64);
                bytes.extend(&grease);
                capsule.encode(&mut bytes);
            }
            let (mut decoder, mut got) = (Decoder::new(Flow::Enabled), Vec::new());
            let (mut rest, mut cuts) = (&bytes[..], cuts.into_iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                rest = later;
                got.extend(read(&mut decoder, now).unwrap());
            }
            prop_assert_eq!(got, sent);
            prop_assert!(decoder.at_boundary());
        }

        #[test]
        fn arbitrary_bytes_never_make_the_decoder_hold_more_than_one_capsule(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20),
            flow in prop_oneof![Just(Flow::Unknown), Just(Flow::Ignored), Just(Flow::Enabled)],
        ) {
            let mut decoder = Decoder::new(flow);
            for chunk in chunks {
                if read(&mut decoder, &chunk).is_err() {
                    break;
                }
                prop_assert!(decoder.held() <= MAX_DATAGRAM + 16);
            }
        }
    }
}
