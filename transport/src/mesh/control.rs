//! The control stream of a session: opening, answering, frames both ways, closing.

use std::{sync::Arc, time::Duration};

use bytes::{Buf, BytesMut};
use quinn::VarInt;
use wavry_proto::{
    mesh::{
        Open,
        frame::{self, Decoder, Frame},
        header::{StreamHeader, reset_code},
    },
    session::Response,
};

use crate::{
    mesh::core::Core,
    session::{Close, Closed},
};

/// How long a peer may take to acknowledge the last words on a control stream.
const FLUSH: Duration = Duration::from_secs(1);

/// Control frames go before stream data: a grant that waits behind bulk would stall a session.
const PRIORITY: i32 = 1;

/// A session's control stream. Dropped before [`run`](Self::run), it is reset.
pub(super) struct Control {
    core: Arc<Core>,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    decoder: Decoder,
    /// Bytes to send before anything else.
    unsent: BytesMut,
    running: bool,
}

/// Why there is no answer.
pub(super) enum NoAnswer {
    /// The request does not fit a frame.
    TooLong,
    /// The session or its connection ended first.
    Closed(Closed),
    /// Nothing was heard from the peer meanwhile.
    Silent,
}

impl Control {
    pub(super) fn new(
        core: Arc<Core>,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
        first: &[u8],
    ) -> Self {
        let _ = send.set_priority(PRIORITY); // fails on a closed stream, where it is of no use
        let mut decoder = Decoder::default();
        decoder.push(first);
        Self {
            core,
            send,
            recv,
            decoder,
            unsent: BytesMut::new(),
            running: false,
        }
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Sends OPEN and waits for the answer.
    pub(super) async fn ask(&mut self, open: Open) -> Result<Response, NoAnswer> {
        StreamHeader::Control(self.core.id).put(&mut self.unsent);
        Frame::Open(Box::new(open))
            .put(&mut self.unsent)
            .map_err(|_| NoAnswer::TooLong)?;
        let request = self.unsent.split().freeze();
        let core = self.core.clone();
        let answer = core.unless_over(async {
            if let Err(error) = self.send.write_chunk(request).await {
                return Err(Closed::Lost(error.to_string()));
            }
            match self.next_frame().await? {
                Frame::Answer(answer) => Ok(answer),
                _ => Err(Closed::Lost("the peer did not answer first".into())),
            }
        });
        answer
            .await
            .and_then(|answer| answer)
            .map_err(NoAnswer::Closed)
    }

    /// Reads the peer's OPEN. `Ok(Err(answer))` is what to answer instead of a session.
    pub(super) async fn asked(&mut self) -> Result<Result<Open, Response>, Closed> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(Frame::Open(open))) => return Ok(Ok(*open)),
                Ok(Some(_)) | Err(frame::Error::Malformed(_)) => {
                    return Ok(Err(Response::status(400)));
                }
                Err(frame::Error::TooLong(_)) => return Ok(Err(Response::status(431))),
                Err(frame::Error::Version(_)) => return Ok(Err(Response::status(505))),
                Ok(None) => self.more().await?,
            }
        }
    }

    async fn next_frame(&mut self) -> Result<Frame, Closed> {
        next_frame(&mut self.recv, &mut self.decoder).await
    }

    async fn more(&mut self) -> Result<(), Closed> {
        more(&mut self.recv, &mut self.decoder).await
    }

    /// Answers that there is no session, and waits a moment for the peer to have it.
    pub(super) async fn refuse(mut self, response: Response) {
        self.running = true;
        self.core.end(Closed::Here(Close::new(0, "refused")));
        let answer = Frame::Answer(response);
        if answer.put(&mut self.unsent).is_err() {
            Frame::Answer(Response::status(500))
                .put(&mut self.unsent)
                .expect("a status is never too long");
        }
        self.flush().await;
    }

    /// The peer answered that there is no session.
    pub(super) fn end_refused(mut self) {
        self.running = true;
        self.core.end(Closed::Peer(Close::default()));
        let _ = self.send.finish();
    }

    /// Puts the answer that makes the session first.
    pub(super) fn accept(&mut self, response: Response) -> Result<(), frame::TooLong> {
        Frame::Answer(response).put(&mut self.unsent)
    }

    /// Serves the control stream until the session is over and the peer knows.
    pub(super) async fn run(mut self) {
        self.running = true;
        let core = self.core.clone();
        {
            let reading = async {
                loop {
                    match next_frame(&mut self.recv, &mut self.decoder).await {
                        Ok(frame) => core.on_frame(frame),
                        Err(closed) => return closed,
                    }
                }
            };
            // Writes in pieces and keeps what is left, so that a close never follows half a frame.
            let writing = async {
                loop {
                    while self.unsent.has_remaining() {
                        match self.send.write(&self.unsent).await {
                            Ok(written) => self.unsent.advance(written),
                            Err(error) => return Closed::Lost(error.to_string()),
                        }
                    }
                    core.fill(&mut self.unsent).await;
                }
            };
            tokio::select! {
                biased;
                () = core.over_token.cancelled() => {}
                closed = reading => match closed {
                    Closed::Here(close) => core.violated(close.reason),
                    other => core.end(other),
                },
                closed = writing => core.end(closed),
            }
        }
        match core.closed_now() {
            Closed::Here(close) => {
                Frame::Close(close)
                    .put(&mut self.unsent)
                    .expect("a reason is cut to 1 KiB");
                self.flush().await;
            }
            Closed::Peer(_) => {
                let _ = self.send.finish();
            }
            Closed::Lost(_) => self.running = false,
        }
    }

    async fn flush(&mut self) {
        let last = async {
            while self.unsent.has_remaining() {
                match self.send.write(&self.unsent).await {
                    Ok(written) => self.unsent.advance(written),
                    Err(_) => return,
                }
            }
            if self.send.finish().is_ok() {
                let _ = self.send.stopped().await;
                // Its FIN shows that the peer has read the CLOSE.
                while let Ok(Some(_)) = self.recv.read_chunk(frame::MAX_BODY, true).await {}
            }
        };
        let _ = tokio::time::timeout(FLUSH, last).await;
        self.core.flushed();
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if !self.running {
            self.core
                .end(Closed::Lost("the session was abandoned".into()));
            let code = VarInt::from_u64(reset_code(self.core.id, 0))
                .expect("30 and 32 bits fit the 62 of a varint");
            let _ = self.send.reset(code);
        }
        self.core.flushed();
    }
}

/// The next frame. The error is `Here` when the peer broke the protocol.
async fn next_frame(recv: &mut quinn::RecvStream, decoder: &mut Decoder) -> Result<Frame, Closed> {
    loop {
        match decoder.next_frame() {
            Ok(Some(frame)) => return Ok(frame),
            Ok(None) => more(recv, decoder).await?,
            Err(error) => return Err(Closed::Here(Close::new(0, &error.to_string()))),
        }
    }
}

async fn more(recv: &mut quinn::RecvStream, decoder: &mut Decoder) -> Result<(), Closed> {
    match recv.read_chunk(frame::MAX_BODY, true).await {
        Ok(Some(chunk)) => {
            decoder.push(&chunk.bytes);
            Ok(())
        }
        Ok(None) if decoder.is_mid_frame() => Err(Closed::Here(Close::new(
            0,
            "control stream ends in a frame",
        ))),
        // As with a CONNECT stream that just ends: code 0, no reason.
        Ok(None) => Err(Closed::Peer(Close::default())),
        Err(quinn::ReadError::Reset(_)) => {
            Err(Closed::Lost("the peer abandoned the session".into()))
        }
        Err(error) => Err(Closed::Lost(error.to_string())),
    }
}
