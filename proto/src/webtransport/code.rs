//! Application error codes on QUIC streams (draft-ietf-webtrans-http3, section 4.4).
//!
//! The 2³² application codes are spread over a range of HTTP/3 error codes, past the code points
//! `0x1f * N + 0x21` that HTTP/3 reserves.

/// The HTTP/3 code of application code 0.
const FIRST: u64 = 0x52e4_a40f_a8db;
/// The HTTP/3 code of application code 2³² − 1.
const LAST: u64 = 0x52e5_ac98_3162;

/// A stream arrived before its session and could not wait.
pub const BUFFERED_STREAM_REJECTED: u64 = 0x3994_bd84;
/// The stream's session is over, or its CONNECT stream is no longer read.
pub const SESSION_GONE: u64 = 0x170d_7b68;
/// The session's peer broke a rule of flow control.
pub const FLOW_CONTROL_ERROR: u64 = 0x045d_4487;
/// The server chose a subprotocol that was not offered.
pub const ALPN_ERROR: u64 = 0x0817_b3dd;
/// The connection has not what WebTransport needs: a setting or a transport parameter.
pub const REQUIREMENTS_NOT_MET: u64 = 0x212c_0d48;

/// The HTTP/3 code that carries an application code.
pub const fn to_h3(code: u32) -> u64 {
    FIRST + code as u64 + code as u64 / 0x1e
}

/// The application code that an HTTP/3 code carries; `None` when it carries none.
pub const fn from_h3(code: u64) -> Option<u32> {
    if code < FIRST || code > LAST || (code - 0x21).is_multiple_of(0x1f) {
        return None;
    }
    let shifted = code - FIRST;
    Some((shifted - shifted / 0x1f) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn codes_at_the_edges_map_as_the_draft_says() {
        for (app, h3) in [
            (0, FIRST),
            (29, FIRST + 29),
            (30, FIRST + 31),
            (59, FIRST + 60),
            (60, FIRST + 62),
            (u32::MAX, LAST),
        ] {
            assert_eq!(to_h3(app), h3);
            assert_eq!(from_h3(h3), Some(app));
        }
    }

    #[test]
    fn reserved_code_points_and_codes_outside_the_range_carry_nothing() {
        for h3 in [
            0,
            0x100,
            FIRST - 1,
            FIRST + 30,
            FIRST + 61,
            LAST + 1,
            SESSION_GONE,
            BUFFERED_STREAM_REJECTED,
            u64::MAX,
        ] {
            assert_eq!(from_h3(h3), None, "{h3:#x}");
        }
    }

    proptest! {
        #[test]
        fn every_code_survives_its_mapping(code: u32) {
            prop_assert_eq!(from_h3(to_h3(code)), Some(code));
            prop_assert_ne!((to_h3(code) - 0x21) % 0x1f, 0);
        }

        #[test]
        fn every_code_of_the_range_is_reserved_or_maps_back(h3 in FIRST..=LAST) {
            match from_h3(h3) {
                Some(code) => prop_assert_eq!(to_h3(code), h3),
                None => prop_assert_eq!((h3 - 0x21) % 0x1f, 0),
            }
        }
    }
}
