//! Capsules on a session's CONNECT stream (RFC 9297, section 3; draft-ietf-webtrans-http3,
//! sections 5 and 6).

use bytes::{Buf, BufMut, BytesMut};

use crate::{
    session::{Close, MAX_CLOSE_REASON},
    varint,
};

/// Type of WT_CLOSE_SESSION.
pub const CLOSE_SESSION: u64 = 0x2843;
/// Type of WT_DRAIN_SESSION.
pub const DRAIN_SESSION: u64 = 0x78ae;

/// A capsule that means something to Wavry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capsule {
    /// The sender closed the session.
    Close(Close),
    /// The sender asks to finish and close.
    Drain,
}

/// A capsule is malformed, and so is the message it is in (RFC 9297, section 3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed capsule: {0}")]
pub struct Malformed(&'static str);

impl Capsule {
    /// Appends the capsule. A reason over [`MAX_CLOSE_REASON`] is cut.
    pub fn encode(&self, buf: &mut impl BufMut) {
        match self {
            Self::Close(close) => {
                let close = Close::new(close.code, &close.reason);
                varint::put(buf, CLOSE_SESSION);
                varint::put(buf, 4 + close.reason.len() as u64);
                buf.put_u32(close.code);
                buf.put_slice(close.reason.as_bytes());
            }
            Self::Drain => {
                varint::put(buf, DRAIN_SESSION);
                varint::put(buf, 0);
            }
        }
    }
}

/// Reads capsules from bytes that may be cut anywhere. Types it does not know are skipped by their
/// length. Holds at most one WT_CLOSE_SESSION and what was pushed last.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: BytesMut,
    skip: u64,
}

impl Decoder {
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
            match kind {
                CLOSE_SESSION => {
                    if !(4..=4 + MAX_CLOSE_REASON as u64).contains(&len) {
                        return Err(Malformed("WT_CLOSE_SESSION has a wrong length"));
                    }
                    if (peek.len() as u64) < len {
                        return Ok(None);
                    }
                    self.buf.advance(header);
                    let mut payload = self.buf.split_to(len as usize);
                    let code = payload.get_u32();
                    let reason = std::str::from_utf8(&payload)
                        .map_err(|_| Malformed("the reason is not UTF-8"))?;
                    return Ok(Some(Capsule::Close(Close::new(code, reason))));
                }
                DRAIN_SESSION if len == 0 => {
                    self.buf.advance(header);
                    return Ok(Some(Capsule::Drain));
                }
                DRAIN_SESSION => return Err(Malformed("WT_DRAIN_SESSION has a payload")),
                _ => {
                    self.buf.advance(header);
                    self.skip = len;
                }
            }
        }
    }

    /// Whether the content may end here: not within a capsule.
    pub fn at_boundary(&self) -> bool {
        self.buf.is_empty() && self.skip == 0
    }
}

#[cfg(test)]
mod tests {
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
    fn a_close_of_the_draft_is_written_as_it_says() {
        let mut buf = Vec::new();
        Capsule::Close(Close::new(420, "test")).encode(&mut buf);
        assert_eq!(buf, b"\x68\x43\x08\x00\x00\x01\xa4test");
        buf.clear();
        Capsule::Drain.encode(&mut buf);
        assert_eq!(buf, b"\x80\x00\x78\xae\x00");
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
    }

    proptest! {
        #[test]
        fn capsules_survive_any_cut_among_unknown_ones(
            code: u32,
            reason in "\\PC{0,40}",
            grease in prop::collection::vec(any::<u8>(), 0..100),
            cuts in prop::collection::vec(1..20usize, 1..20),
        ) {
            let close = Capsule::Close(Close::new(code, &reason));
            let mut bytes = Vec::new();
            varint::put(&mut bytes, 0x17);
            varint::put(&mut bytes, grease.len() as u64);
            bytes.extend(&grease);
            Capsule::Drain.encode(&mut bytes);
            close.encode(&mut bytes);
            let (mut decoder, mut got) = (Decoder::default(), Vec::new());
            let (mut rest, mut cuts) = (&bytes[..], cuts.into_iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                rest = later;
                got.extend(read(&mut decoder, now).unwrap());
            }
            prop_assert_eq!(got, [Capsule::Drain, close]);
            prop_assert!(decoder.at_boundary());
        }

        #[test]
        fn arbitrary_bytes_never_make_the_decoder_hold_more_than_one_close(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)
        ) {
            let mut decoder = Decoder::default();
            for chunk in chunks {
                if read(&mut decoder, &chunk).is_err() {
                    break;
                }
                prop_assert!(decoder.buf.len() <= 4 + MAX_CLOSE_REASON + 16);
            }
        }
    }
}
