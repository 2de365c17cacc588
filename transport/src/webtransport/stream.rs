//! Streams of a session.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use quinn::VarInt;
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;
use wavry_proto::webtransport::code;

use super::{
    credit::Place,
    shared::{REASON_WAIT, Shared},
};
use crate::{
    chunk,
    session::{self, Closed, ReadError, WriteError},
};

/// Longest chunk read at once, in bytes, where it is not [joined](chunk::read) with others.
pub(super) const MAX_CHUNK: usize = 64 * 1024;

/// How long after a stream was opened it is not reset yet, at least and at most: two round trips in
/// between. Without RESET_STREAM_AT a reset overtakes what was not delivered, the stream's header too,
/// and then the peer never sees the stream, its code, nor the credit that it cost.
const RESET_HOLD: (Duration, Duration) = (Duration::from_millis(25), Duration::from_secs(1));

/// `code` as QUIC has it.
pub(super) fn varint(code: u64) -> VarInt {
    // Every code in this crate is a constant or an application code mapped below 2⁴⁷.
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

/// An application code as it goes on the wire.
fn app(code: u32) -> VarInt {
    varint(code::to_h3(code))
}

/// Refuses both halves of a stream with an HTTP/3 code.
pub(super) fn refuse(
    send: Option<quinn::SendStream>,
    recv: Option<quinn::RecvStream>,
    h3_code: u64,
) {
    // Either fails only when that half has ended, and then there is nothing to refuse.
    if let Some(mut send) = send {
        let _ = send.reset(varint(h3_code));
    }
    if let Some(mut recv) = recv {
        let _ = recv.stop(varint(h3_code));
    }
}

/// Sending half of a WebTransport stream.
pub struct SendStream {
    /// `None` once it was left to the session, which is over.
    stream: Option<quinn::SendStream>,
    session: Arc<Shared>,
    /// Of a stream that the peer opened, until this half of it is over.
    place: Option<Arc<Place>>,
    /// When it was opened here. `None` of a stream that the peer opened.
    opened: Option<Instant>,
    done: bool,
}

impl SendStream {
    /// The half of a stream that was opened here.
    pub(super) fn opened(stream: quinn::SendStream, session: Arc<Shared>) -> Self {
        Self {
            stream: Some(stream),
            session,
            place: None,
            opened: Some(Instant::now()),
            done: false,
        }
    }

    /// The half of a stream that the peer opened.
    pub(super) fn accepted(
        stream: quinn::SendStream,
        session: Arc<Shared>,
        place: Arc<Place>,
    ) -> Self {
        Self {
            stream: Some(stream),
            session,
            place: Some(place),
            opened: None,
            done: false,
        }
    }

    /// Writes the stream's header, for which no credit is needed.
    pub(super) async fn write_header(&mut self, header: Bytes) -> Result<(), WriteError> {
        let Some(stream) = &mut self.stream else {
            return Err(WriteError::Finished);
        };
        let written = tokio::select! {
            biased;
            written = stream.write_chunk(header) => Ok(written),
            closed = self.session.over() => Err(closed),
        };
        self.judge(written).await
    }

    /// Writes as the session's credit allows.
    async fn write_limited(&mut self, mut chunk: Bytes) -> Result<(), WriteError> {
        while !chunk.is_empty() {
            let Some(stream) = &mut self.stream else {
                return Err(WriteError::Finished);
            };
            let session = &self.session;
            let step = async {
                let mut credit = tokio::select! {
                    biased;
                    credit = session.credit(chunk.len()) => credit,
                    stopped = stream.stopped() => return Err(stopped_early(stopped)),
                };
                let mut piece = [chunk.slice(..credit.left())];
                let written = stream.write_chunks(&mut piece).await?;
                credit.spend(written.bytes);
                Ok(written.bytes)
            };
            let written = tokio::select! {
                biased;
                written = step => Ok(written),
                closed = session.over() => Err(closed),
            };
            match written {
                Ok(Ok(bytes)) => chunk = chunk.slice(bytes..),
                Ok(Err(error)) => return self.judge(Ok(Err(error))).await,
                Err(closed) => return self.judge(Err(closed)).await,
            }
        }
        Ok(())
    }

    /// What became of a write, for the application.
    async fn judge(
        &mut self,
        written: Result<Result<(), quinn::WriteError>, Closed>,
    ) -> Result<(), WriteError> {
        match written {
            Ok(Ok(())) => Ok(()),
            Err(closed) => Err(self.gone(closed)),
            Ok(Err(quinn::WriteError::Stopped(code))) => {
                if code == varint(code::SESSION_GONE)
                    && let Some(closed) = self.session.over_within(REASON_WAIT).await
                {
                    return Err(self.gone(closed));
                }
                let code = code::from_h3(code.into_inner()).unwrap_or(0);
                self.abandon(app(code));
                Err(WriteError::Stopped(code))
            }
            Ok(Err(quinn::WriteError::ConnectionLost(error))) => {
                self.done = true;
                Err(self.session.lost(&error).await.into())
            }
            Ok(Err(quinn::WriteError::ClosedStream | quinn::WriteError::ZeroRttRejected)) => {
                self.done = true;
                Err(WriteError::Finished)
            }
        }
    }

    fn abandon(&mut self, h3_code: VarInt) {
        self.place = None;
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        let (shortest, longest) = RESET_HOLD;
        let held = |opened: Instant| {
            let hold = 2 * self.session.connection.quic.rtt();
            opened + hold.clamp(shortest, longest)
        };
        match self.opened.map(held) {
            Some(until) if Instant::now() < until => {
                if let Some(stream) = self.stream.take() {
                    let reset = reset_at(until, stream, h3_code, self.session.clone());
                    tokio::spawn(reset.in_current_span());
                }
            }
            _ => {
                if let Some(stream) = &mut self.stream {
                    // Fails only when the stream has ended.
                    let _ = stream.reset(h3_code);
                }
            }
        }
    }

    fn gone(&mut self, closed: Closed) -> WriteError {
        if !std::mem::replace(&mut self.done, true) {
            self.session.part(self.stream.take(), None);
        }
        self.place = None;
        closed.into()
    }
}

/// Resets a stream once its header has had the time to arrive. As many wait as there are streams.
async fn reset_at(
    until: Instant,
    mut stream: quinn::SendStream,
    h3_code: VarInt,
    session: Arc<Shared>,
) {
    tokio::select! {
        // Fails only when the stream has ended.
        () = sleep_until(until) => drop(stream.reset(h3_code)),
        _ = session.over() => session.part(Some(stream), None),
    }
}

/// A stream that was stopped, or lost with its connection, while it waited for credit.
fn stopped_early(stopped: Result<Option<VarInt>, quinn::StoppedError>) -> quinn::WriteError {
    match stopped {
        Ok(Some(code)) => quinn::WriteError::Stopped(code),
        Ok(None) => quinn::WriteError::ClosedStream,
        Err(quinn::StoppedError::ConnectionLost(error)) => quinn::WriteError::ConnectionLost(error),
        Err(quinn::StoppedError::ZeroRttRejected) => quinn::WriteError::ZeroRttRejected,
    }
}

impl session::SendStream for SendStream {
    async fn write(&mut self, chunk: Bytes) -> Result<(), WriteError> {
        if self.done {
            return Err(WriteError::Finished);
        }
        if let Some(closed) = self.session.closed_now() {
            return Err(self.gone(closed));
        }
        if self.session.limited {
            return self.write_limited(chunk).await;
        }
        self.write_header(chunk).await
    }

    fn finish(&mut self) -> Result<(), WriteError> {
        if self.done {
            return Err(WriteError::Finished);
        }
        if let Some(closed) = self.session.closed_now() {
            return Err(self.gone(closed));
        }
        self.done = true;
        self.place = None;
        let stream = self.stream.as_mut().ok_or(WriteError::Finished)?;
        stream.finish().map_err(|_| WriteError::Finished)
    }

    fn reset(&mut self, code: u32) {
        // After `finish` too: what is not yet delivered is abandoned. Fails once all is delivered.
        self.done = false;
        match self.session.closed_now() {
            Some(closed) => drop(self.gone(closed)),
            None => self.abandon(app(code)),
        }
    }

    async fn stopped(&mut self) -> Option<u32> {
        let stream = self.stream.as_mut()?;
        let stopped = tokio::select! {
            biased;
            stopped = stream.stopped() => stopped.ok().flatten()?,
            _ = self.session.over() => return None,
        };
        // The session's end, not the stream's.
        if stopped == varint(code::SESSION_GONE)
            && self.session.over_within(REASON_WAIT).await.is_some()
        {
            return None;
        }
        code::from_h3(stopped.into_inner()).or(Some(0))
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        match self.session.closed_now() {
            Some(closed) => drop(self.gone(closed)),
            None => self.abandon(app(0)),
        }
    }
}

/// How many chunks a stop looks through for the end of its stream: about a window's worth of packets.
const CHUNKS_AT_ONCE: usize = 1024;

/// Receiving half of a WebTransport stream.
pub struct RecvStream {
    /// `None` once it was left to the session, which is over.
    stream: Option<quinn::RecvStream>,
    session: Arc<Shared>,
    /// Of a stream that the peer opened, until this half of it is over.
    place: Option<Arc<Place>>,
    /// What was read together with the stream's header.
    first: Bytes,
    done: bool,
    /// Nothing more will be read, and the session knows.
    ended: bool,
}

impl RecvStream {
    /// The half of a stream that was opened here.
    pub(super) fn opened(stream: quinn::RecvStream, session: Arc<Shared>) -> Self {
        session.reading.begin();
        Self::new(stream, Bytes::new(), session, None)
    }

    /// The half of a stream that the peer opened, which the session knows of.
    pub(super) fn accepted(
        stream: quinn::RecvStream,
        first: Bytes,
        session: Arc<Shared>,
        place: Arc<Place>,
    ) -> Self {
        Self::new(stream, first, session, Some(place))
    }

    fn new(
        stream: quinn::RecvStream,
        first: Bytes,
        session: Arc<Shared>,
        place: Option<Arc<Place>>,
    ) -> Self {
        Self {
            stream: Some(stream),
            session,
            place,
            first,
            done: false,
            ended: false,
        }
    }

    /// This half is over; `all` says whether it was read to its end.
    fn end(&mut self, all: bool) {
        self.done = true;
        if !std::mem::replace(&mut self.ended, true) {
            self.session.reading.end();
            if !all {
                self.session.lost_payload();
            }
        }
        self.place = None;
    }

    fn abandon(&mut self, h3_code: VarInt) {
        if self.done {
            return;
        }
        if self.session.limited && self.is_all_here() {
            return;
        }
        if let Some(stream) = &mut self.stream {
            // Fails only when the stream has ended.
            let _ = stream.stop(h3_code);
        }
        self.end(false);
    }

    /// Throws away what has come. Whether that was all, so that the session need not guess.
    fn is_all_here(&mut self) -> bool {
        self.session.read(std::mem::take(&mut self.first).len());
        for _ in 0..CHUNKS_AT_ONCE {
            let Some(stream) = &mut self.stream else {
                return false;
            };
            match stream.read_chunk(MAX_CHUNK, true).now_or_never() {
                Some(Ok(Some(chunk))) => self.session.read(chunk.bytes.len()),
                Some(Ok(None)) => {
                    self.end(true);
                    return true;
                }
                Some(Err(_)) => {
                    self.end(false);
                    return true;
                }
                None => return false,
            }
        }
        false
    }

    fn gone(&mut self, closed: Closed) -> ReadError {
        if !self.done {
            self.session.part(None, self.stream.take());
        }
        self.end(true);
        closed.into()
    }
}

impl session::RecvStream for RecvStream {
    async fn read(&mut self) -> Result<Option<Bytes>, ReadError> {
        if let Some(closed) = self.session.closed_now() {
            return Err(self.gone(closed));
        }
        if !self.first.is_empty() {
            let chunk = std::mem::take(&mut self.first);
            self.session.read(chunk.len());
            return Ok(Some(chunk));
        }
        if self.done {
            return Ok(None);
        }
        let Some(stream) = &mut self.stream else {
            return Ok(None);
        };
        let read = tokio::select! {
            biased;
            read = self.session.reading.wait(chunk::read(stream)) => Ok(read),
            closed = self.session.over() => Err(closed),
        };
        match read {
            Ok(Ok(Some(chunk))) => {
                self.session.read(chunk.len());
                Ok(Some(chunk))
            }
            Ok(Ok(None)) => {
                self.end(true);
                Ok(None)
            }
            Err(closed) => Err(self.gone(closed)),
            Ok(Err(quinn::ReadError::Reset(code))) => {
                self.end(false);
                if code == varint(code::SESSION_GONE)
                    && let Some(closed) = self.session.over_within(REASON_WAIT).await
                {
                    return Err(closed.into());
                }
                Err(ReadError::Reset(
                    code::from_h3(code.into_inner()).unwrap_or(0),
                ))
            }
            Ok(Err(quinn::ReadError::ConnectionLost(error))) => {
                self.end(true);
                Err(self.session.lost(&error).await.into())
            }
            // Stopped here before, as reading unordered and 0-RTT are never done.
            Ok(Err(_)) => {
                self.end(true);
                Ok(None)
            }
        }
    }

    fn stop(&mut self, code: u32) {
        match self.session.closed_now() {
            Some(closed) => drop(self.gone(closed)),
            None => self.abandon(app(code)),
        }
        self.first.clear();
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        match self.session.closed_now() {
            Some(closed) => drop(self.gone(closed)),
            None => self.abandon(app(0)),
        }
    }
}
