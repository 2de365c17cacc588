//! The interop service: what a session is served with, whatever stack carries it.
//!
//! The request says what is to happen:
//!
//! | path after the run's name | the service |
//! |---|---|
//! | `echo/…`, `two/…` | echoes streams of both kinds and datagrams |
//! | `status/N` | refuses with status N |
//! | `subprotocol` | chooses the last subprotocol of those offered |
//! | `open/bi`, `open/uni` | opens a stream |
//! | `hear/uni` | notes the text of a stream |
//! | `observe/…` | echoes the first chunk of a stream, then notes how either half ends |
//! | `reset/N`, `stop/N` | resets, stops a stream with code N after its first chunk |
//! | `close/N/REASON` | closes the session once the client has opened a stream |
//! | `closed` | notes how the client closes |
//! | `drain`, `drained` | drains once the client has opened a stream; notes that the client drains |
//!
//! Where a client waits to hear that something was noted, a stream with the text `seen` tells it.

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::{Duration, timeout};
use wavry_transport::session::{Close, Closed, ReadError, RecvStream, SendStream, Session};

use crate::seen::{Asked, Seen};

/// What a service says on a stream that it opens.
pub(crate) const SERVICE: &[u8] = b"the service";
/// What a client says on a stream that it opens.
pub(crate) const CLIENT: &[u8] = b"a client";

/// How long a stream's end may take after what was said on it.
const SILENCE: Duration = Duration::from_secs(2);

/// Serves a session until it is over.
pub(crate) async fn serve<S: Session>(session: S, asked: Asked, seen: Seen) {
    if let Err(closed) = act(&session, &asked, &seen).await
        && asked.words() == ["closed"]
    {
        seen.note(&asked, how_closed(&closed));
    }
    session.closed().await;
}

/// A session's end, as everyone here reports it.
pub(crate) fn how_closed(closed: &Closed) -> Value {
    match closed {
        Closed::Peer(Close { code, reason }) => json!([code, reason]),
        Closed::Here(_) => json!("closed here"),
        Closed::Lost(_) => json!("lost"),
    }
}

async fn act<S: Session>(session: &S, asked: &Asked, seen: &Seen) -> Result<(), Closed> {
    match asked.words()[..] {
        ["echo" | "two" | "drain", ..] => {
            tokio::join!(
                echo_bi(session, asked),
                echo_uni(session),
                echo_datagrams(session)
            );
        }
        ["open", "bi"] => {
            let (mut send, mut recv) = session.open_bi().await?;
            say(&mut send, SERVICE).await;
            seen.note(asked, hear(&mut recv).await);
            tell(session).await?;
        }
        ["open", "uni"] => say(&mut session.open_uni().await?, SERVICE).await,
        ["hear", "uni"] => {
            let mut recv = session.accept_uni().await?;
            seen.note(asked, hear(&mut recv).await);
            tell(session).await?;
        }
        ["observe", half] => {
            let (mut send, mut recv) = session.accept_bi().await?;
            if let Ok(Some(chunk)) = recv.read().await {
                let _ = send.write(chunk).await;
            }
            let saw = match half {
                "reset" => to_end(&mut recv).await,
                _ => json!(send.stopped().await),
            };
            seen.note(asked, saw);
            tell(session).await?;
            session.closed().await;
        }
        ["reset", code] => {
            let (mut send, mut recv) = session.accept_bi().await?;
            let _ = recv.read().await;
            send.reset(code.parse().unwrap_or_default());
            let _ = to_end(&mut recv).await;
        }
        // Chromium loses the code in some tries, and tries again.
        ["stop", code] => loop {
            let (_send, mut recv) = session.accept_bi().await?;
            let _ = recv.read().await;
            recv.stop(code.parse().unwrap_or_default());
        },
        ["close", code, reason] => {
            // Held until then: a stream that is stopped ahead of the close can cost Chromium the code.
            let _stream = session.accept_uni().await?;
            session.close(Close::new(code.parse().unwrap_or_default(), reason));
            session.closed().await;
        }
        // Some stacks tell only whoever waits for a stream.
        ["closed"] => drop(session.accept_uni().await?),
        ["drained"] => {
            session.draining().await;
            seen.note(asked, json!(true));
            tell(session).await?;
        }
        _ => {}
    }
    Ok(())
}

async fn echo_bi<S: Session>(session: &S, asked: &Asked) {
    while let Ok((send, recv)) = session.accept_bi().await {
        if asked.words() == ["drain"] {
            session.drain();
        }
        tokio::spawn(echo(recv, send));
    }
}

async fn echo_uni<S: Session>(session: &S) {
    while let Ok(recv) = session.accept_uni().await {
        let Ok(send) = session.open_uni().await else {
            return;
        };
        tokio::spawn(echo(recv, send));
    }
}

async fn echo(mut recv: impl RecvStream, mut send: impl SendStream) {
    while let Ok(Some(chunk)) = recv.read().await {
        if send.write(chunk).await.is_err() {
            return;
        }
    }
    let _ = send.finish();
}

async fn echo_datagrams<S: Session>(session: &S) {
    while let Ok(payload) = session.recv_datagram().await {
        let _ = session.send_datagram(payload);
    }
}

/// Tells the client that something was noted.
async fn tell<S: Session>(session: &S) -> Result<(), Closed> {
    say(&mut session.open_uni().await?, b"seen").await;
    Ok(())
}

/// What a client says to the end; Deno's clients never end a stream.
async fn hear<R: RecvStream>(recv: &mut R) -> Value {
    let mut text = Vec::new();
    while let Ok(read) = timeout(SILENCE, recv.read()).await {
        match read {
            Ok(Some(chunk)) => text.extend_from_slice(&chunk),
            Ok(None) => return String::from_utf8_lossy(&text).into_owned().into(),
            Err(_) => return json!("an error"),
        }
    }
    format!("{} without an end", String::from_utf8_lossy(&text)).into()
}

/// Writes a whole stream. It may be stopped; who is told shows that.
pub(crate) async fn say<S: SendStream>(send: &mut S, text: &'static [u8]) {
    let _ = send.write(Bytes::from_static(text)).await;
    let _ = send.finish();
}

/// A stream's text if it ends, else the code that it was reset with.
pub(crate) async fn to_end<R: RecvStream>(recv: &mut R) -> Value {
    let mut all = Vec::new();
    loop {
        match recv.read().await {
            Ok(Some(chunk)) => all.extend_from_slice(&chunk),
            Ok(None) => return String::from_utf8_lossy(&all).into_owned().into(),
            Err(ReadError::Reset(code)) => return code.into(),
            Err(ReadError::Session(closed)) => return how_closed(&closed),
        }
    }
}
