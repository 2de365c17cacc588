//! The upstream that is built in, for demonstrations and tests: what comes goes back.
//!
//! Bidirectional streams are echoed on themselves, each unidirectional stream on a new one, and
//! datagrams as datagrams. FIN, reset and stop codes come back as well. Of the subprotocols that a
//! client offers the first is chosen.

use std::sync::Arc;

use wavry_proto::session::{Request, Response};
use wavry_transport::session::{Closed, RecvStream, Session};

use super::{
    Counts, Ended,
    stream::{copy, drop_reason, each_bi, each_uni},
};

/// The echo of one session.
pub(crate) struct Dialled {
    subprotocol: Option<String>,
}

impl Dialled {
    pub(super) fn new(request: &Request) -> Self {
        Self {
            subprotocol: request.subprotocols.first().cloned(),
        }
    }

    pub(super) fn response(&self) -> Response {
        Response {
            subprotocol: self.subprotocol.clone(),
            ..Response::ok()
        }
    }

    pub(super) async fn carry<S: Session>(&self, session: &Arc<S>) -> Ended {
        let counts = Counts::new("echo");
        let bi = each_bi(&**session, &counts, |send, recv| {
            let counts = counts.clone();
            async move { copy(recv, send, &counts).await }
        });
        let uni = each_uni(&**session, &counts, |recv| {
            echo_on_a_new_stream(session.clone(), recv, counts.clone())
        });
        let closed = tokio::select! {
            closed = session.closed() => closed,
            closed = bi => closed,
            closed = uni => closed,
            closed = echo_datagrams(&**session, &counts) => closed,
        };
        Ended::here(closed)
    }
}

async fn echo_on_a_new_stream<S: Session>(session: Arc<S>, recv: impl RecvStream, counts: Counts) {
    if let Ok(send) = session.open_uni().await {
        copy(recv, send, &counts).await;
    }
}

async fn echo_datagrams<S: Session>(session: &S, counts: &Counts) -> Closed {
    loop {
        let payload = match session.recv_datagram().await {
            Ok(payload) => payload,
            Err(closed) => return closed,
        };
        counts.datagrams_from_client.increment(1);
        match session.send_datagram(payload).map_err(drop_reason) {
            Ok(()) => counts.datagrams_to_client.increment(1),
            Err(Ok(reason)) => counts.datagram_dropped("to_client", reason),
            Err(Err(closed)) => return closed,
        }
    }
}
