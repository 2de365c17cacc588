//! A session between two nodes, as its application sees it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use wavry_proto::{
    id::NodeId,
    mesh::header::{StreamHeader, put_datagram},
};

use crate::{
    mesh::{
        core::{Core, Sending},
        stream::{RecvStream, SendStream},
    },
    session::{self, Close, Closed, DatagramError},
};

/// A session between two nodes. Dropping it closes it with code 0 and no reason.
pub struct Session {
    core: Arc<Core>,
}

impl Session {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// The node at the other end.
    pub fn peer(&self) -> &NodeId {
        &self.core.link.peer
    }

    /// The number that the connection it is on has in this process.
    pub fn connection(&self) -> u64 {
        self.core.link.number
    }

    fn header(&self) -> Bytes {
        let mut header = BytesMut::with_capacity(StreamHeader::MAX_LEN);
        StreamHeader::Data(self.core.id).put(&mut header);
        header.freeze()
    }
}

/// Permission to open one stream; given back unless it was used.
struct Permit<'a> {
    credit: &'a Sending,
    used: bool,
}

impl<'a> Permit<'a> {
    async fn take(credit: &'a Sending) -> Self {
        credit.take(1).await;
        Self {
            credit,
            used: false,
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.used {
            self.credit.give_back(1);
        }
    }
}

impl session::Session for Session {
    type Send = SendStream;
    type Recv = RecvStream;

    async fn open_bi(&self) -> Result<(SendStream, RecvStream), Closed> {
        let core = &self.core;
        let opening = async {
            let mut permit = Permit::take(&core.bidi).await;
            let (send, recv) = core
                .link
                .connection
                .open_bi()
                .await
                .map_err(|error| core.lost(&error))?;
            permit.used = true;
            core.opened_bidi(u64::from(send.id()));
            Ok((
                SendStream::new(core.clone(), send),
                RecvStream::new(core.clone(), recv, Bytes::new(), None),
            ))
        };
        if let Some(closed) = core.over() {
            return Err(closed);
        }
        let (mut send, recv) = core.unless_over(opening).await??;
        send.write_header(self.header()).await?;
        Ok((send, recv))
    }

    async fn open_uni(&self) -> Result<SendStream, Closed> {
        let core = &self.core;
        let opening = async {
            let mut permit = Permit::take(&core.uni).await;
            let send = core
                .link
                .connection
                .open_uni()
                .await
                .map_err(|error| core.lost(&error))?;
            permit.used = true;
            Ok(SendStream::new(core.clone(), send))
        };
        if let Some(closed) = core.over() {
            return Err(closed);
        }
        let mut send = core.unless_over(opening).await??;
        send.write_header(self.header()).await?;
        Ok(send)
    }

    async fn accept_bi(&self) -> Result<(SendStream, RecvStream), Closed> {
        self.core.unless_over(self.core.incoming_bidi.pop()).await
    }

    async fn accept_uni(&self) -> Result<RecvStream, Closed> {
        self.core.unless_over(self.core.incoming_uni.pop()).await
    }

    fn send_datagram(&self, payload: Bytes) -> Result<(), DatagramError> {
        if let Some(closed) = self.core.over() {
            return Err(closed.into());
        }
        let header = self.core.id.datagram_header_len();
        let mut datagram = BytesMut::with_capacity(header + payload.len());
        put_datagram(&mut datagram, self.core.id);
        datagram.extend_from_slice(&payload);
        self.core
            .link
            .meter
            .send(&self.core.link.connection, header, datagram.freeze())
    }

    async fn recv_datagram(&self) -> Result<Bytes, Closed> {
        let core = &self.core;
        let inbox = &core.link.datagrams;
        match inbox.recv(&core.datagrams, &*core.link, core.id).await {
            Some(payload) => Ok(payload),
            None => Err(self.core.closed_now()),
        }
    }

    fn max_datagram_size(&self) -> usize {
        self.core
            .link
            .connection
            .max_datagram_size()
            .unwrap_or(0)
            .saturating_sub(self.core.id.datagram_header_len())
    }

    fn drain(&self) {
        self.core.drain();
    }

    async fn draining(&self) {
        self.core.drained.cancelled().await;
    }

    fn close(&self, close: Close) {
        self.core
            .end(Closed::Here(Close::new(close.code, &close.reason)));
    }

    async fn closed(&self) -> Closed {
        self.core.closed().await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.core.end(Closed::Here(Close::default()));
    }
}
