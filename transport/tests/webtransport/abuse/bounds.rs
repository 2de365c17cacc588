//! What a peer can make a server hold, and for how long.

use std::time::Duration;

use futures_util::FutureExt as _;
use wavry_proto::{
    h3::{code, stream::CONTROL},
    webtransport::{
        code::BUFFERED_STREAM_REJECTED,
        stream::{UNI, datagram},
    },
};
use wavry_transport::{
    session::{Response, Session as _},
    webtransport::Limits,
};

use super::script::{frame_header, get, headers, session, typed, wt_uni};
use crate::{
    raw::{Raw, SETTINGS, answer, settings},
    support::{Service, read_all, request, soon},
};

/// Streams and datagrams of one connection that may wait for their session.
const WAITING: usize = 32;

#[tokio::test]
async fn streams_over_the_bound_are_rejected_at_once_and_the_others_wait() {
    let service = Service::start(Limits::default());
    // Of a draft that does not keep a session to 16 streams at first.
    let raw = Raw::silent(&service).await;
    let _control = raw.uni(CONTROL, &settings(&SETTINGS)).await;
    let (mut asked, mut asked_recv) = soon(raw.quic.open_bi()).await.unwrap();
    let mut early = Vec::new();
    for n in 0..WAITING as u8 + 4 {
        let mut send = soon(raw.quic.open_uni()).await.unwrap();
        send.write_all(&wt_uni(0, &[n])).await.unwrap();
        early.push(send);
    }
    for _ in 0..4 {
        let stopped = early.iter().map(|send| Box::pin(send.stopped()));
        let (code, at, _) = soon(futures_util::future::select_all(stopped)).await;
        let code = code.unwrap().expect("it is not ended");
        assert_eq!(code.into_inner(), BUFFERED_STREAM_REJECTED);
        early.remove(at);
    }
    for send in &mut early {
        send.finish().unwrap();
    }
    asked.write_all(&headers(&session())).await.unwrap();
    let requested = soon(service.requested()).await;
    let session = requested.accept(Response::ok()).await.unwrap();
    assert_eq!(answer(&mut asked_recv).await.status, 200);
    for _ in 0..WAITING {
        let mut recv = soon(session.accept_uni()).await.unwrap();
        assert_eq!(read_all(&mut recv).await.len(), 1);
    }
    assert!(session.accept_uni().now_or_never().is_none());
}

#[tokio::test]
async fn the_oldest_datagrams_over_the_bound_are_dropped() {
    let service = Service::start(Limits::default());
    let raw = Raw::connect(&service).await;
    let (mut asked, mut asked_recv) = soon(raw.quic.open_bi()).await.unwrap();
    let count = WAITING as u8 + 8;
    for n in 0..count {
        raw.quic.send_datagram(datagram(0, &[n])).unwrap();
    }
    // They have arrived when what was sent after them is answered.
    assert_eq!(raw.status(&get()).await, 404);
    asked.write_all(&headers(&session())).await.unwrap();
    let requested = soon(service.requested()).await;
    let session = requested.accept(Response::ok()).await.unwrap();
    assert_eq!(answer(&mut asked_recv).await.status, 200);
    for n in count - WAITING as u8..count {
        assert_eq!(soon(session.recv_datagram()).await.unwrap()[..], [n]);
    }
    assert!(session.recv_datagram().now_or_never().is_none());
}

/// The deadline begins with the first byte, and no further byte puts it off.
#[tokio::test]
async fn headers_that_drip_are_refused_in_time() {
    let service = Service::start(Limits {
        header_timeout: Duration::from_millis(600),
        ..Limits::default()
    });
    let raw = Raw::connect(&service).await;
    let request = headers(&session());
    let stream = typed(UNI, &[0xc0, 0, 0, 0, 0, 0, 0, 0]);
    let (asked, _asked_recv) = soon(raw.quic.open_bi()).await.unwrap();
    let opened = soon(raw.quic.open_uni()).await.unwrap();
    let drip = async |mut send: quinn::SendStream, bytes: &[u8]| {
        for byte in bytes {
            if let Err(refused) = send.write_all(&[*byte]).await {
                return Some(refused);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        None
    };
    let (request, stream) = tokio::join!(drip(asked, &request), drip(opened, &stream));
    for refused in [request, stream] {
        let refused = refused.expect("it was read to its end");
        let code = match refused {
            quinn::WriteError::Stopped(code) => code.into_inner(),
            // The connection has no session, and is closed for that.
            quinn::WriteError::ConnectionLost(quinn::ConnectionError::ApplicationClosed(close)) => {
                assert_eq!(close.error_code.into_inner(), code::NO_ERROR);
                continue;
            }
            other => panic!("not refused: {other}"),
        };
        assert_eq!(code, code::REQUEST_INCOMPLETE);
    }
}

#[tokio::test]
async fn settings_that_are_half_sent_do_not_keep_a_connection() {
    let service = Service::start(Limits {
        header_timeout: Duration::from_millis(400),
        ..Limits::default()
    });
    let raw = Raw::silent(&service).await;
    let _control = raw.uni(0, &frame_header(0x04, 10)).await;
    let (_send, _recv) = raw.bi(&headers(&session())).await;
    assert_eq!(raw.closed().await, code::NO_ERROR);
}

/// Requests that are reset as soon as they are made cost their stream, and nobody else anything.
#[tokio::test]
async fn requests_that_are_given_up_at_once_leave_room_for_others() {
    let service = Service::start(Limits::default());
    let server = service.server.clone();
    let serve = tokio::spawn(async move {
        while let Some(requested) = server.accept().await {
            let path = requested.request().path.clone();
            if let Ok(session) = requested.accept(Response::ok()).await
                && path == "/stays"
            {
                session.closed().await;
            }
        }
    });
    let raw = Raw::connect(&service).await;
    for _ in 0..500 {
        let (mut send, mut recv) = soon(raw.quic.open_bi()).await.unwrap();
        send.write_all(&headers(&session())).await.unwrap();
        send.reset(0u32.into()).unwrap();
        let _ = recv.stop(0u32.into());
    }
    // Those that were taken are still on their way out, and count until then.
    let status = async {
        loop {
            let (_send, mut recv) = raw.ask("/stays").await;
            match answer(&mut recv).await.status {
                429 | 503 => continue,
                status => break status,
            }
        }
    };
    assert_eq!(soon(status).await, 200);
    let client = service.client();
    soon(service.connect(&client, request("/stays")))
        .await
        .unwrap();
    serve.abort();
}
