//! The frames on a session's control stream: type, length and body; integers are QUIC varints and
//! texts are UTF-8 with their length before them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    mesh::Open,
    session::{Close, Header, MAX_CLOSE_REASON, Request, Response},
    varint,
};

/// The version that OPEN carries.
pub const VERSION: u64 = 1;

/// Longest body of a frame, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// First frame from the opener.
    Open(Box<Open>),
    /// First frame from the other side: whether there is a session.
    Answer(Response),
    /// Total of stream payload bytes the receiver of this frame may send in the session.
    MaxData(u64),
    /// Total of bidirectional streams the receiver of this frame may open in the session.
    MaxStreamsBidi(u64),
    /// Total of unidirectional streams the receiver of this frame may open in the session.
    MaxStreamsUni(u64),
    /// The sender of this frame reset a stream.
    StreamAbandoned {
        /// QUIC stream id.
        stream: u64,
        /// Credit spent on the stream: payload bytes written to it, delivered or not.
        bytes: u64,
    },
    /// The sender of this frame wants no more of a stream (it stands for QUIC's STOP_SENDING).
    StopStream {
        /// QUIC stream id.
        stream: u64,
        /// Application error code.
        code: u32,
    },
    /// Finish and close, please.
    Drain,
    /// The session is over. The last frame.
    Close(Close),
}

const OPEN: u64 = 0x01;
const ANSWER: u64 = 0x02;
const MAX_DATA: u64 = 0x03;
const MAX_STREAMS_BIDI: u64 = 0x04;
const MAX_STREAMS_UNI: u64 = 0x05;
const STREAM_ABANDONED: u64 = 0x06;
const STOP_STREAM: u64 = 0x07;
const DRAIN: u64 = 0x08;
const CLOSE: u64 = 0x09;

/// Why bytes are not frames. Whichever it is, the session cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A body over [`MAX_BODY`].
    #[error("frame of {0} bytes is too long")]
    TooLong(u64),
    /// OPEN of a version that is not [`VERSION`].
    #[error("version {0} is not known")]
    Version(u64),
    /// A body that is not what its type says.
    #[error("malformed {0} frame")]
    Malformed(&'static str),
}

/// A frame that would be over [`MAX_BODY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frame of {0} bytes is too long to send")]
pub struct TooLong(pub usize);

impl Frame {
    /// Appends the frame; nothing is appended when it is too long.
    pub fn put(&self, buf: &mut BytesMut) -> Result<(), TooLong> {
        let mut body = Vec::new();
        let kind = self.put_body(&mut body);
        if body.len() > MAX_BODY {
            return Err(TooLong(body.len()));
        }
        varint::put(buf, kind);
        varint::put(buf, body.len() as u64);
        buf.put_slice(&body);
        Ok(())
    }

    fn put_body(&self, body: &mut Vec<u8>) -> u64 {
        match self {
            Self::Open(open) => {
                varint::put(body, VERSION);
                put_open(body, open);
                OPEN
            }
            Self::Answer(answer) => {
                varint::put(body, u64::from(answer.status));
                put_option(body, answer.subprotocol.as_deref());
                put_headers(body, &answer.headers);
                ANSWER
            }
            Self::MaxData(total) => {
                varint::put(body, *total);
                MAX_DATA
            }
            Self::MaxStreamsBidi(total) => {
                varint::put(body, *total);
                MAX_STREAMS_BIDI
            }
            Self::MaxStreamsUni(total) => {
                varint::put(body, *total);
                MAX_STREAMS_UNI
            }
            Self::StreamAbandoned { stream, bytes } => {
                varint::put(body, *stream);
                varint::put(body, *bytes);
                STREAM_ABANDONED
            }
            Self::StopStream { stream, code } => {
                varint::put(body, *stream);
                varint::put(body, u64::from(*code));
                STOP_STREAM
            }
            Self::Drain => DRAIN,
            Self::Close(close) => {
                varint::put(body, u64::from(close.code));
                // `Close::new` cuts; a struct literal may not have.
                put_text(body, &Close::new(close.code, &close.reason).reason);
                CLOSE
            }
        }
    }

    fn get_body(kind: u64, mut body: Bytes) -> Result<Option<Self>, Error> {
        let body = &mut body;
        let frame = match kind {
            OPEN => {
                let malformed = Error::Malformed("OPEN");
                match varint::get(body) {
                    Some(VERSION) => {}
                    Some(other) => return Err(Error::Version(other)),
                    None => return Err(malformed),
                }
                get_open(body).map(|open| Self::Open(Box::new(open)))
            }
            ANSWER => get_answer(body).map(Self::Answer),
            MAX_DATA => varint::get(body).map(Self::MaxData),
            MAX_STREAMS_BIDI => varint::get(body).map(Self::MaxStreamsBidi),
            MAX_STREAMS_UNI => varint::get(body).map(Self::MaxStreamsUni),
            STREAM_ABANDONED => varint::get(body)
                .zip(varint::get(body))
                .map(|(stream, bytes)| Self::StreamAbandoned { stream, bytes }),
            STOP_STREAM => varint::get(body)
                .zip(get_u32(body))
                .map(|(stream, code)| Self::StopStream { stream, code }),
            DRAIN => Some(Self::Drain),
            CLOSE => get_u32(body)
                .zip(get_text(body).filter(|reason| reason.len() <= MAX_CLOSE_REASON))
                .map(|(code, reason)| Self::Close(Close { code, reason })),
            _ => return Ok(None),
        };
        match frame {
            Some(frame) if !body.has_remaining() => Ok(Some(frame)),
            _ => Err(Error::Malformed(name(kind))),
        }
    }
}

fn name(kind: u64) -> &'static str {
    match kind {
        OPEN => "OPEN",
        ANSWER => "ANSWER",
        MAX_DATA => "MAX_DATA",
        MAX_STREAMS_BIDI => "MAX_STREAMS_BIDI",
        MAX_STREAMS_UNI => "MAX_STREAMS_UNI",
        STREAM_ABANDONED => "STREAM_ABANDONED",
        STOP_STREAM => "STOP_STREAM",
        DRAIN => "DRAIN",
        CLOSE => "CLOSE",
        _ => "unknown",
    }
}

/// Takes frames out of a control stream's bytes, in whatever pieces these come. It holds at most
/// one frame's worth of bytes plus the last piece.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: BytesMut,
}

impl Decoder {
    /// Adds the next bytes of the stream. Take all frames before adding more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// The next frame; `None` when more bytes are needed. Frames of unknown type are skipped, so
    /// that a later version can add some that an older node may ignore.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            let mut rest = &self.buf[..];
            let (Some(kind), Some(len)) = (varint::get(&mut rest), varint::get(&mut rest)) else {
                return Ok(None);
            };
            if len > MAX_BODY as u64 {
                return Err(Error::TooLong(len));
            }
            let len = len as usize;
            if rest.len() < len {
                return Ok(None);
            }
            self.buf.advance(self.buf.len() - rest.len());
            let body = self.buf.split_to(len).freeze();
            if let Some(frame) = Frame::get_body(kind, body)? {
                return Ok(Some(frame));
            }
        }
    }

    /// Whether bytes of an unfinished frame are held: the stream must not end here.
    pub fn is_mid_frame(&self) -> bool {
        !self.buf.is_empty()
    }
}

fn put_text(buf: &mut Vec<u8>, text: &str) {
    varint::put(buf, text.len() as u64);
    buf.put_slice(text.as_bytes());
}

fn get_text(buf: &mut Bytes) -> Option<String> {
    let len = usize::try_from(varint::get(buf)?).ok()?;
    if buf.remaining() < len {
        return None;
    }
    let text = std::str::from_utf8(&buf[..len]).ok()?.to_owned();
    buf.advance(len);
    Some(text)
}

fn put_option(buf: &mut Vec<u8>, text: Option<&str>) {
    buf.put_u8(u8::from(text.is_some()));
    if let Some(text) = text {
        put_text(buf, text);
    }
}

fn get_option(buf: &mut Bytes) -> Option<Option<String>> {
    match get_u8(buf)? {
        0 => Some(None),
        1 => get_text(buf).map(Some),
        _ => None,
    }
}

fn put_headers(buf: &mut Vec<u8>, headers: &[Header]) {
    varint::put(buf, headers.len() as u64);
    for header in headers {
        put_text(buf, &header.name);
        put_text(buf, &header.value);
    }
}

fn get_headers(buf: &mut Bytes) -> Option<Vec<Header>> {
    get_list(buf, |buf| {
        Some(Header {
            name: get_text(buf)?,
            value: get_text(buf)?,
        })
    })
}

/// A count and as many items. An item takes at least a byte, so a count over what is left lies, and
/// is refused before anything is allocated for it.
fn get_list<T>(buf: &mut Bytes, mut item: impl FnMut(&mut Bytes) -> Option<T>) -> Option<Vec<T>> {
    let count = usize::try_from(varint::get(buf)?).ok()?;
    if count > buf.remaining() {
        return None;
    }
    let mut list = Vec::new();
    for _ in 0..count {
        list.push(item(buf)?);
    }
    Some(list)
}

fn get_u8(buf: &mut Bytes) -> Option<u8> {
    buf.has_remaining().then(|| buf.get_u8())
}

fn get_u32(buf: &mut Bytes) -> Option<u32> {
    u32::try_from(varint::get(buf)?).ok()
}

fn put_open(buf: &mut Vec<u8>, open: &Open) {
    let Request {
        authority,
        path,
        origin,
        headers,
        subprotocols,
    } = &open.request;
    put_text(buf, open.service.as_str());
    put_text(buf, authority);
    put_text(buf, path);
    put_option(buf, origin.as_deref());
    put_headers(buf, headers);
    varint::put(buf, subprotocols.len() as u64);
    for subprotocol in subprotocols {
        put_text(buf, subprotocol);
    }
    match open.client.ip() {
        IpAddr::V4(ip) => {
            buf.put_u8(4);
            buf.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            buf.put_u8(6);
            buf.put_slice(&ip.octets());
        }
    }
    buf.put_u16(open.client.port());
    put_option(buf, open.subject.as_deref());
    put_option(buf, open.claims.as_deref());
}

fn get_open(buf: &mut Bytes) -> Option<Open> {
    Some(Open {
        service: get_text(buf)?.parse().ok()?,
        request: Request {
            authority: get_text(buf)?,
            path: get_text(buf)?,
            origin: get_option(buf)?,
            headers: get_headers(buf)?,
            subprotocols: get_list(buf, get_text)?,
        },
        client: get_address(buf)?,
        subject: get_option(buf)?,
        claims: get_option(buf)?,
    })
}

fn get_address(buf: &mut Bytes) -> Option<SocketAddr> {
    let ip = match get_u8(buf)? {
        4 => {
            let mut octets = [0; 4];
            buf.try_copy_to_slice(&mut octets).ok()?;
            IpAddr::V4(Ipv4Addr::from(octets))
        }
        6 => {
            let mut octets = [0; 16];
            buf.try_copy_to_slice(&mut octets).ok()?;
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, buf.try_get_u16().ok()?))
}

fn get_answer(buf: &mut Bytes) -> Option<Response> {
    Some(Response {
        status: u16::try_from(varint::get(buf)?)
            .ok()
            .filter(|status| (100..1000).contains(status))?,
        subprotocol: get_option(buf)?,
        headers: get_headers(buf)?,
    })
}
