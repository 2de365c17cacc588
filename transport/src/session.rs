//! The one interface a WebTransport session has inside Wavry.
//!
//! It is shaped by draft-ietf-webtrans-http3 and by nothing else: a session opens and accepts
//! streams, sends and receives datagrams, is drained, and ends with a code and a reason. Bytes
//! move as [`Bytes`], so that a chunk read from one session is written to another without a copy.

use std::future::Future;

use bytes::Bytes;
pub use wavry_proto::session::{Close, Header, Request, Response, close_code};

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// The peer closed it. A peer that just ends the session's CONNECT stream closed it with code
    /// 0 and no reason (draft-ietf-webtrans-http3, section 6).
    #[error("closed by the peer with code {} ({:?})", .0.code, .0.reason)]
    Peer(Close),
    /// This side closed it.
    #[error("closed here with code {} ({:?})", .0.code, .0.reason)]
    Here(Close),
    /// The connection under it was lost; the text says how and holds no secret.
    #[error("connection lost: {0}")]
    Lost(String),
}

/// Why a chunk could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The peer asked to stop, with this application error code.
    #[error("stopped by the peer with code {0}")]
    Stopped(u32),
    /// The stream was finished or reset here before.
    #[error("stream finished or reset")]
    Finished,
    /// The session is over.
    #[error(transparent)]
    Session(#[from] Closed),
}

/// Why a chunk could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The peer reset the stream, with this application error code.
    #[error("reset by the peer with code {0}")]
    Reset(u32),
    /// The session is over.
    #[error(transparent)]
    Session(#[from] Closed),
}

/// Why a datagram was not sent. Datagrams never wait: one that cannot go now is dropped, counted
/// in `wavry_transport_datagrams_dropped_total`, and reported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    /// Longer than [`Session::max_datagram_size`].
    #[error("datagram of {len} bytes is over the limit of {max}")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes, at this moment.
        max: usize,
    },
    /// The send buffer is full.
    #[error("datagram send buffer is full")]
    Full,
    /// The session is over.
    #[error(transparent)]
    Session(#[from] Closed),
}

/// A WebTransport session, whatever carries it.
///
/// All methods take `&self`: a session is shared by the tasks that serve it. Futures are
/// cancel-safe unless they say otherwise.
pub trait Session: Send + Sync + 'static {
    /// Sending half of a stream.
    type Send: SendStream;
    /// Receiving half of a stream.
    type Recv: RecvStream;

    /// Opens a bidirectional stream; waits while the peer grants no more streams.
    fn open_bi(&self) -> impl Future<Output = Result<(Self::Send, Self::Recv), Closed>> + Send;

    /// Opens a unidirectional stream; waits while the peer grants no more streams.
    fn open_uni(&self) -> impl Future<Output = Result<Self::Send, Closed>> + Send;

    /// The next bidirectional stream the peer opened.
    fn accept_bi(&self) -> impl Future<Output = Result<(Self::Send, Self::Recv), Closed>> + Send;

    /// The next unidirectional stream the peer opened.
    fn accept_uni(&self) -> impl Future<Output = Result<Self::Recv, Closed>> + Send;

    /// Sends a datagram now or not at all.
    fn send_datagram(&self, payload: Bytes) -> Result<(), DatagramError>;

    /// The next datagram from the peer.
    fn recv_datagram(&self) -> impl Future<Output = Result<Bytes, Closed>> + Send;

    /// Longest payload in bytes that [`send_datagram`](Self::send_datagram) takes at this moment;
    /// 0 when the peer takes no datagrams.
    fn max_datagram_size(&self) -> usize;

    /// Asks the peer to finish and close (WT_DRAIN_SESSION). Says so once, however often called.
    fn drain(&self);

    /// Resolves when the peer has asked to finish and close; pending for ever if it never does.
    fn draining(&self) -> impl Future<Output = ()> + Send;

    /// Ends the session. Its streams are reset, and what was not yet delivered may be lost. The
    /// first call decides the code.
    fn close(&self, close: Close);

    /// Resolves when the session is over, from whichever side.
    fn closed(&self) -> impl Future<Output = Closed> + Send;
}

/// The sending half of a stream. Dropping one that was neither finished nor reset resets it with
/// code 0: a half-written stream never looks complete.
pub trait SendStream: Send + 'static {
    /// Writes the whole chunk; waits while there is no credit. Not cancel-safe: a cancelled write
    /// may have written part of the chunk, after which the stream is only good for a reset.
    fn write(&mut self, chunk: Bytes) -> impl Future<Output = Result<(), WriteError>> + Send;

    /// Marks the end of the stream (FIN). What was written is still delivered.
    fn finish(&mut self) -> Result<(), WriteError>;

    /// Abandons the stream with an application error code (RESET_STREAM).
    fn reset(&mut self, code: u32);

    /// Resolves with the code when the peer asks to stop (STOP_SENDING), or with `None` when the
    /// peer has everything or the session is over.
    fn stopped(&mut self) -> impl Future<Output = Option<u32>> + Send;
}

/// The receiving half of a stream. Dropping one that was not read to its end stops it with code 0.
pub trait RecvStream: Send + 'static {
    /// The next chunk in order; `None` at the end of the stream.
    fn read(&mut self) -> impl Future<Output = Result<Option<Bytes>, ReadError>> + Send;

    /// Asks the peer to stop sending, with an application error code (STOP_SENDING).
    fn stop(&mut self, code: u32);
}
