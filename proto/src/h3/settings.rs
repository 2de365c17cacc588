//! SETTINGS (RFC 9114, section 7.2.4).

use bytes::{Buf, BufMut};

use super::code;
use crate::{
    varint,
    webtransport::flow::{Initial, MAX_STREAMS},
};

/// Setting identifiers.
pub mod id {
    /// Capacity of the QPACK dynamic table (RFC 9204, section 5).
    pub const QPACK_MAX_TABLE_CAPACITY: u64 = 0x01;
    /// Longest field section accepted, counted as in RFC 9114, section 4.2.2.
    pub const MAX_FIELD_SECTION_SIZE: u64 = 0x06;
    /// Streams that may wait for the QPACK dynamic table (RFC 9204, section 5).
    pub const QPACK_BLOCKED_STREAMS: u64 = 0x07;
    /// Extended CONNECT (RFC 9220, section 3).
    pub const ENABLE_CONNECT_PROTOCOL: u64 = 0x08;
    /// HTTP datagrams (RFC 9297, section 2.1.1).
    pub const H3_DATAGRAM: u64 = 0x33;
    /// HTTP datagrams as of draft-ietf-masque-h3-datagram-04.
    pub const H3_DATAGRAM_DRAFT04: u64 = 0x00ff_d277;
    /// WebTransport as of draft-ietf-webtrans-http3-02, which browsers speak.
    pub const WEBTRANSPORT_DRAFT02: u64 = 0x2b60_3742;
    /// Most sessions at once, as of draft-ietf-webtrans-http3-07.
    pub const WEBTRANSPORT_MAX_SESSIONS_DRAFT07: u64 = 0xc671_706a;
    /// Most sessions at once, as of draft-ietf-webtrans-http3-13.
    pub const WT_MAX_SESSIONS_DRAFT13: u64 = 0x14e9_cd29;
    /// WebTransport as of draft-ietf-webtrans-http3-15.
    pub const WT_ENABLED: u64 = 0x2c7c_f000;
    /// Stream payload that each session may send at first (draft-ietf-webtrans-http3-13 and later).
    pub const WT_INITIAL_MAX_DATA: u64 = 0x2b61;
    /// Unidirectional streams that each session may open at first.
    pub const WT_INITIAL_MAX_STREAMS_UNI: u64 = 0x2b64;
    /// Bidirectional streams that each session may open at first.
    pub const WT_INITIAL_MAX_STREAMS_BIDI: u64 = 0x2b65;
}

/// Most settings kept of one frame. Those that mean something are thirteen; the rest is grease.
const MAX_SETTINGS: usize = 64;

/// The settings of one side: identifiers and values, in the order of the wire.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings(Vec<(u64, u64)>);

/// Why a SETTINGS payload is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// It ends within a setting.
    #[error("SETTINGS ends within a setting")]
    Truncated,
    /// An identifier comes twice.
    #[error("setting {0:#x} comes twice")]
    Duplicate(u64),
    /// An identifier that HTTP/2 used and HTTP/3 reserves.
    #[error("setting {0:#x} is reserved")]
    Reserved(u64),
    /// A value that the setting cannot have.
    #[error("setting {0:#x} cannot be {1}")]
    Value(u64, u64),
    /// More settings than are tolerated.
    #[error("more than {MAX_SETTINGS} settings")]
    TooMany,
}

impl Invalid {
    /// The connection error this is.
    pub const fn code(&self) -> u64 {
        match self {
            Self::Truncated => code::FRAME_ERROR,
            Self::TooMany => code::EXCESSIVE_LOAD,
            _ => code::SETTINGS_ERROR,
        }
    }
}

impl FromIterator<(u64, u64)> for Settings {
    /// Settings with these identifiers and values, in this order.
    fn from_iter<T: IntoIterator<Item = (u64, u64)>>(settings: T) -> Self {
        Self(settings.into_iter().collect())
    }
}

impl Settings {
    /// What this side announces: WebTransport in every draft that peers of today ask for, no QPACK
    /// dynamic table, `max_sessions` at once and field sections up to `max_field_section` bytes.
    pub fn webtransport(max_sessions: u64, max_field_section: u64) -> Self {
        Self(vec![
            (id::QPACK_MAX_TABLE_CAPACITY, 0),
            (id::MAX_FIELD_SECTION_SIZE, max_field_section),
            (id::QPACK_BLOCKED_STREAMS, 0),
            (id::ENABLE_CONNECT_PROTOCOL, 1),
            (id::H3_DATAGRAM, 1),
            (id::H3_DATAGRAM_DRAFT04, 1),
            (id::WEBTRANSPORT_DRAFT02, 1),
            (id::WEBTRANSPORT_MAX_SESSIONS_DRAFT07, max_sessions),
            (id::WT_MAX_SESSIONS_DRAFT13, max_sessions),
            (id::WT_ENABLED, 1),
        ])
    }

    /// These, and that each session may use this much at first.
    pub fn with_initial_flow(mut self, initial: Initial) -> Self {
        self.0.extend([
            (id::WT_INITIAL_MAX_DATA, initial.data),
            (id::WT_INITIAL_MAX_STREAMS_UNI, initial.uni),
            (id::WT_INITIAL_MAX_STREAMS_BIDI, initial.bidi),
        ]);
        self
    }

    /// What each session may use at first, which is nothing unless it was said.
    pub fn initial_flow(&self) -> Initial {
        let value = |id| self.get(id).unwrap_or(0);
        Initial {
            data: value(id::WT_INITIAL_MAX_DATA),
            bidi: value(id::WT_INITIAL_MAX_STREAMS_BIDI),
            uni: value(id::WT_INITIAL_MAX_STREAMS_UNI),
        }
    }

    /// The value of a setting; `None` when it was not sent.
    pub fn get(&self, id: u64) -> Option<u64> {
        self.0.iter().find(|(i, _)| *i == id).map(|(_, v)| *v)
    }

    /// Whether the side that sent these speaks WebTransport, in whichever draft.
    pub fn supports_webtransport(&self) -> bool {
        let set = |id| self.get(id).is_some_and(|value| value > 0);
        let datagrams = set(id::H3_DATAGRAM) || set(id::H3_DATAGRAM_DRAFT04);
        datagrams
            && (set(id::WT_ENABLED)
                || set(id::WT_MAX_SESSIONS_DRAFT13)
                || set(id::WEBTRANSPORT_MAX_SESSIONS_DRAFT07)
                || set(id::WEBTRANSPORT_DRAFT02))
    }

    /// Appends the payload of a SETTINGS frame.
    pub fn encode(&self, buf: &mut impl BufMut) {
        for (id, value) in &self.0 {
            varint::put(buf, *id);
            varint::put(buf, *value);
        }
    }

    /// Reads the payload of a SETTINGS frame.
    pub fn decode(mut payload: &[u8]) -> Result<Self, Invalid> {
        let mut settings = Self::default();
        while payload.has_remaining() {
            let id = varint::get(&mut payload).ok_or(Invalid::Truncated)?;
            let value = varint::get(&mut payload).ok_or(Invalid::Truncated)?;
            match (id, value) {
                // RFC 9114, section 7.2.4.1.
                (0x00 | 0x02..=0x05, _) => return Err(Invalid::Reserved(id)),
                // WT_ENABLED: draft-ietf-webtrans-http3, section 3.1.
                (id::ENABLE_CONNECT_PROTOCOL | id::H3_DATAGRAM | id::WT_ENABLED, 2..) => {
                    return Err(Invalid::Value(id, value));
                }
                // There cannot be more streams (draft-ietf-webtrans-http3, section 5.6.2).
                (id::WT_INITIAL_MAX_STREAMS_UNI | id::WT_INITIAL_MAX_STREAMS_BIDI, value)
                    if value > MAX_STREAMS =>
                {
                    return Err(Invalid::Value(id, value));
                }
                _ if settings.get(id).is_some() => return Err(Invalid::Duplicate(id)),
                _ if settings.0.len() == MAX_SETTINGS => return Err(Invalid::TooMany),
                _ => settings.0.push((id, value)),
            }
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_we_announce_supports_webtransport() {
        let settings = Settings::webtransport(16, 16384);
        let mut buf = Vec::new();
        settings.encode(&mut buf);
        let decoded = Settings::decode(&buf).unwrap();
        assert_eq!(decoded, settings);
        assert!(decoded.supports_webtransport());
        assert!(!Settings::default().supports_webtransport());
    }

    #[test]
    fn what_sessions_may_use_at_first_survives_its_encoding() {
        let initial = Initial {
            data: 1 << 18,
            bidi: 16,
            uni: 17,
        };
        let mut buf = Vec::new();
        Settings::webtransport(16, 16384)
            .with_initial_flow(initial)
            .encode(&mut buf);
        assert_eq!(Settings::decode(&buf).unwrap().initial_flow(), initial);
        assert!(!Settings::default().initial_flow().declares());
    }

    #[test]
    fn reserved_repeated_truncated_and_impossible_settings_are_refused() {
        assert_eq!(Settings::decode(&[0x02, 0]), Err(Invalid::Reserved(2)));
        assert_eq!(
            Settings::decode(&[0x33, 1, 0x33, 1]),
            Err(Invalid::Duplicate(0x33))
        );
        assert_eq!(Settings::decode(&[0x33]), Err(Invalid::Truncated));
        for (id, value) in [
            (id::H3_DATAGRAM, 2),
            (id::ENABLE_CONNECT_PROTOCOL, 2),
            (id::WT_ENABLED, 2),
            (id::WT_INITIAL_MAX_STREAMS_UNI, (1 << 60) + 1),
            (id::WT_INITIAL_MAX_STREAMS_BIDI, (1 << 60) + 1),
        ] {
            let mut buf = Vec::new();
            Settings(vec![(id, value)]).encode(&mut buf);
            assert_eq!(Settings::decode(&buf), Err(Invalid::Value(id, value)));
        }
        let many: Vec<u8> = (0..65u8).flat_map(|n| [0x40, 0x40 + n, 0]).collect();
        assert_eq!(Settings::decode(&many), Err(Invalid::TooMany));
    }

    proptest! {
        #[test]
        fn settings_survive_their_encoding(
            values in prop::collection::btree_map(0x40..=varint::MAX, 0..=varint::MAX, 0..MAX_SETTINGS)
        ) {
            let settings = Settings(values.into_iter().collect());
            let mut buf = Vec::new();
            settings.encode(&mut buf);
            prop_assert_eq!(Settings::decode(&buf), Ok(settings));
        }

        #[test]
        fn arbitrary_bytes_are_settings_or_an_error(bytes: Vec<u8>) {
            if let Ok(settings) = Settings::decode(&bytes) {
                prop_assert!(settings.0.len() <= MAX_SETTINGS);
            }
        }
    }
}
