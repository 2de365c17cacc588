//! Streams of a mesh session.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use quinn::VarInt;
use wavry_proto::mesh::header::{SessionId, reset_code, split_reset_code};

use crate::{
    chunk,
    mesh::core::{Core, Stop},
    session::{self, Closed, ReadError, WriteError},
};

/// Most credit that a write takes at once, in bytes: while the stream's own window is full, it is
/// kept from the session's other streams.
const MAX_PIECE: usize = 64 * 1024;

/// A stream that QUIC stops belongs to a session that is over: how long its CLOSE may be behind.
const REASON_WAIT: Duration = Duration::from_secs(1);

/// Sending half of a mesh stream.
pub struct SendStream {
    core: Arc<Core>,
    /// `None` once it was left to the session, which is over.
    inner: Option<quinn::SendStream>,
    stream: u64,
    stop: Arc<Stop>,
    /// Session credit spent on this stream.
    spent: u64,
    /// A write was begun and not seen to its end.
    writing: bool,
    open: bool,
}

impl SendStream {
    pub(super) fn new(core: Arc<Core>, inner: quinn::SendStream) -> Self {
        let stream = u64::from(inner.id());
        Self {
            stop: core.watch_stop(stream),
            core,
            inner: Some(inner),
            stream,
            spent: 0,
            writing: false,
            open: true,
        }
    }

    /// Writes what belongs to no session's credit: the stream's header.
    pub(super) async fn write_header(&mut self, header: Bytes) -> Result<(), Closed> {
        let Some(inner) = &mut self.inner else {
            return Err(self.core.closed_now());
        };
        self.writing = true;
        let written = self.core.unless_over(inner.write_chunk(header)).await?;
        self.writing = false;
        match written {
            Ok(()) => Ok(()),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&self, error: quinn::WriteError) -> Closed {
        match error {
            quinn::WriteError::ConnectionLost(error) => self.core.lost(&error),
            // The mesh stops streams by STOP_STREAM; QUIC's own comes when the peer has forgotten
            // the session.
            _ => self
                .core
                .over()
                .unwrap_or_else(|| Closed::Lost("stream refused by the peer".into())),
        }
    }
}

impl session::SendStream for SendStream {
    async fn write(&mut self, mut chunk: Bytes) -> Result<(), WriteError> {
        if !self.open || self.writing {
            return Err(WriteError::Finished);
        }
        self.writing = true;
        while !chunk.is_empty() {
            if let Some(code) = self.stop.code() {
                self.writing = false;
                return Err(WriteError::Stopped(code));
            }
            let want = chunk.len().min(MAX_PIECE) as u64;
            let mut taken = self.core.data.try_take(want);
            if taken == 0 {
                taken = tokio::select! {
                    biased;
                    taken = self.core.data.take(want) => taken,
                    code = self.stop.wait() => {
                        self.writing = false;
                        return Err(WriteError::Stopped(code));
                    }
                    () = self.core.over_token.cancelled() => {
                        return Err(self.core.closed_now().into());
                    }
                };
            }
            self.spent += taken;
            let piece = chunk.split_to(taken as usize);
            let Some(inner) = &mut self.inner else {
                return Err(self.core.closed_now().into());
            };
            tokio::select! {
                biased;
                written = inner.write_chunk(piece) => {
                    if let Err(error) = written {
                        return Err(self.failed(error).into());
                    }
                }
                code = self.stop.wait() => return Err(WriteError::Stopped(code)),
                () = self.core.over_token.cancelled() => {
                    return Err(self.core.closed_now().into());
                }
            }
        }
        self.writing = false;
        Ok(())
    }

    fn finish(&mut self) -> Result<(), WriteError> {
        if !self.open {
            return Err(WriteError::Finished);
        }
        if let Some(closed) = self.core.over() {
            return Err(closed.into());
        }
        if self.writing {
            // Part of a chunk may be missing: the stream must not look complete.
            self.reset(0);
            return Err(WriteError::Finished);
        }
        self.open = false;
        if let Some(inner) = &mut self.inner {
            let _ = inner.finish(); // fails only when finished or reset, which it is not
        }
        self.core.sent_all(self.stream);
        Ok(())
    }

    fn reset(&mut self, code: u32) {
        if !self.open {
            return;
        }
        self.open = false;
        if self.core.over_token.is_cancelled() {
            return self.core.part(self.inner.take(), None);
        }
        if let Some(inner) = &mut self.inner {
            reset(inner, self.core.id, code);
        }
        self.core.abandoned(self.stream, self.spent);
    }

    async fn stopped(&mut self) -> Option<u32> {
        let acknowledged = self.inner.as_ref()?.stopped();
        tokio::select! {
            biased;
            code = self.stop.wait() => return Some(code),
            stopped = acknowledged => match stopped {
                // QUIC's own stop comes when the session is over.
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            },
            () = self.core.over_token.cancelled() => return None,
        }
        let over = self.core.over_token.cancelled();
        match tokio::time::timeout(REASON_WAIT, over).await {
            Ok(()) => None,
            Err(_) => Some(0),
        }
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        session::SendStream::reset(self, self.stop.code().unwrap_or(0));
        self.core.unwatch_stop(self.stream);
    }
}

/// Resets a stream of the session `id`.
pub(super) fn reset(stream: &mut quinn::SendStream, id: SessionId, code: u32) {
    let code =
        VarInt::from_u64(reset_code(id, code)).expect("30 and 32 bits fit the 62 of a varint");
    let _ = stream.reset(code); // fails only when finished or reset, and then it is over
}

/// Receiving half of a mesh stream.
pub struct RecvStream {
    core: Arc<Core>,
    /// `None` once a stopped stream was handed to the task that reads it to its end.
    inner: Option<quinn::RecvStream>,
    stream: u64,
    /// Bytes that came with the header.
    first: Bytes,
    /// Session credit that this stream has given back.
    read: u64,
    state: State,
    /// Nobody reads it any more; see [`RecvStream::discard`].
    discarding: bool,
}

/// How many chunks a stop looks through for the end before it leaves that to a task: about as much
/// as a session's window holds in full packets.
const CHUNKS_AT_ONCE: usize = 2048;

#[derive(Clone, Copy)]
enum State {
    Open,
    Finished,
    Reset(u32),
    Stopped,
}

impl RecvStream {
    pub(super) fn new(
        core: Arc<Core>,
        inner: quinn::RecvStream,
        first: Bytes,
        reset: Option<u32>,
    ) -> Self {
        let mut stream = Self {
            core,
            stream: u64::from(inner.id()),
            inner: Some(inner),
            first,
            read: 0,
            state: State::Open,
            discarding: false,
        };
        if let Some(code) = reset {
            stream.ended(State::Reset(code));
        }
        stream
    }

    fn consumed(&mut self, chunk: &Bytes) {
        self.read += chunk.len() as u64;
        self.core.consumed(chunk.len() as u64);
    }

    fn ended(&mut self, state: State) {
        self.state = state;
        match state {
            State::Finished => self.core.received_all(self.stream),
            State::Reset(_) => self.core.received_reset(self.stream, self.read),
            State::Open | State::Stopped => {}
        }
    }

    /// The next chunk, whatever the session's state. Cancel-safe.
    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        if !self.first.is_empty() {
            let chunk = std::mem::take(&mut self.first);
            self.consumed(&chunk);
            return Ok(Some(chunk));
        }
        match (self.state, &mut self.inner) {
            (State::Reset(code), _) => Err(ReadError::Reset(code)),
            (State::Open, Some(inner)) => match chunk::read(inner).await {
                Ok(Some(chunk)) => {
                    self.consumed(&chunk);
                    Ok(Some(chunk))
                }
                Ok(None) => {
                    self.ended(State::Finished);
                    Ok(None)
                }
                Err(quinn::ReadError::Reset(code)) => {
                    let code = split_reset_code(code.into_inner()).map_or(0, |(_, code)| code);
                    self.ended(State::Reset(code));
                    Err(ReadError::Reset(code))
                }
                Err(quinn::ReadError::ConnectionLost(error)) => Err(self.core.lost(&error).into()),
                Err(_) => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// Throws away what comes until the stream ends, so that its credit returns.
    async fn discard(mut self) {
        let core = self.core.clone();
        let _ = core
            .unless_over(async { while let Ok(Some(_)) = self.next().await {} })
            .await;
    }
}

impl session::RecvStream for RecvStream {
    async fn read(&mut self) -> Result<Option<Bytes>, ReadError> {
        let core = self.core.clone();
        let read = core.unless_over(self.next()).await?;
        match (&read, core.over()) {
            // The session's end, not the stream's.
            (Err(ReadError::Reset(_)), Some(closed)) => Err(closed.into()),
            _ => read,
        }
    }

    fn stop(&mut self, code: u32) {
        if !matches!(self.state, State::Open) {
            return;
        }
        if self.core.over_token.is_cancelled() {
            self.state = State::Stopped;
            return self.core.part(None, self.inner.take());
        }
        // What is here already may be all: then there is nothing to stop.
        for _ in 0..CHUNKS_AT_ONCE {
            match self.next().now_or_never() {
                Some(Ok(Some(_))) => {}
                Some(_) => return,
                None => break,
            }
        }
        self.core.stop(self.stream, code);
        let rest = Self {
            core: self.core.clone(),
            inner: self.inner.take(),
            stream: self.stream,
            first: Bytes::new(),
            read: self.read,
            state: State::Open,
            discarding: true,
        };
        self.state = State::Stopped;
        self.core.link.runtime.spawn(rest.discard());
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        if !self.discarding && self.inner.is_some() {
            session::RecvStream::stop(self, 0);
        }
    }
}
