//! What a client does to show each feature, whatever stack carries it.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::time::{Duration, timeout};
use wavry_transport::session::{Close, Closed, RecvStream as _, SendStream as _, Session};

use crate::answer::{CLIENT, how_closed, say, to_end};

/// How long a feature may take to show.
const STEP: Duration = Duration::from_secs(10);
/// How long one may take that this peer is known not to have.
const SILENCE: Duration = Duration::from_secs(2);
/// How often a datagram is sent until it comes back.
const AGAIN: Duration = Duration::from_millis(100);

/// A client of one stack that opens sessions to one service.
pub(crate) trait Dial {
    type Session: Session;

    /// Asks for `path`; the session and the subprotocol that was chosen.
    async fn dial(&self, path: &str, offered: &[&str]) -> Result<(Self::Session, Value), Refused>;

    /// Asks for another session on the connection of one.
    async fn dial_beside(&self, _: &Self::Session, _path: &str) -> Result<Self::Session, Refused> {
        Err(Refused("no such call".into()))
    }

    /// The status of a GET on the connection of a session.
    async fn get(&self, _: &Self::Session) -> Value {
        json!("no such call")
    }

    /// Whether the service is known to say nothing where this feature should show.
    fn is_silent(&self, _feature: &str) -> bool {
        false
    }

    /// Whether a session of this stack can be drained.
    const DRAINS: bool;
}

/// How a client is told that it was refused: a status, or words.
pub(crate) struct Refused(pub(crate) Value);

type Shown = Result<Value, Value>;

impl From<Refused> for Value {
    fn from(Refused(how): Refused) -> Self {
        how
    }
}

/// What `client` sees of every feature, by the feature's name.
pub(crate) async fn run(client: &impl Dial) -> Map<String, Value> {
    let mut all = Map::new();
    macro_rules! show {
        ($name:literal, $what:expr) => {
            let limit = match client.is_silent($name) {
                true => SILENCE,
                false => STEP,
            };
            let shown = match timeout(limit, Box::pin($what)).await {
                Ok(Ok(value) | Err(value)) => value,
                Err(_) => json!("nothing came"),
            };
            all.insert($name.to_owned(), shown);
        };
    }
    show!("connect", connect(client));
    show!("status/403", status(client, "status/403"));
    show!("status/404", status(client, "status/404"));
    show!("status/429", status(client, "status/429"));
    show!("status/431", status(client, "status/431"));
    show!("subprotocol", subprotocol(client));
    show!("bi by client", bi_by_client(client));
    show!("bi by service", bi_by_service(client));
    show!("uni by client", uni_by_client(client));
    show!("uni by service", uni_by_service(client));
    show!("datagrams", datagrams(client));
    show!("reset by client", reset_by_client(client));
    show!("reset by service", reset_by_service(client));
    show!("stop by client", stop_by_client(client));
    show!("stop by service", stop_by_service(client));
    show!("close by client", close_by_client(client));
    show!("close by service", close_by_service(client));
    show!("drain by client", drain_by_client(client));
    show!("drain by service", drain_by_service(client));
    show!("two sessions", two_sessions(client));
    show!("get", get(client));
    all
}

async fn open<D: Dial>(client: &D, path: &str) -> Result<D::Session, Value> {
    Ok(client.dial(path, &[]).await?.0)
}

fn closed(closed: Closed) -> Value {
    how_closed(&closed)
}

/// Ends a session without a word and waits until that is done.
async fn leave(session: &impl Session) {
    session.close(Close::default());
    session.closed().await;
}

async fn connect(client: &impl Dial) -> Shown {
    leave(&open(client, "echo").await?).await;
    Ok(json!("connected"))
}

async fn status(client: &impl Dial, path: &str) -> Shown {
    match client.dial(path, &[]).await {
        Ok(_) => Ok(json!("connected")),
        Err(Refused(how)) => Ok(how),
    }
}

async fn subprotocol(client: &impl Dial) -> Shown {
    let (session, chosen) = client.dial("subprotocol", &["first", "last"]).await?;
    leave(&session).await;
    Ok(chosen)
}

/// Longer than any packet and than the chunks of any stack.
fn long() -> Vec<u8> {
    (0..100_000_u32).map(|n| b'a' + (n % 26) as u8).collect()
}

async fn echoes(session: &impl Session) -> Shown {
    let (mut send, mut recv) = session.open_bi().await.map_err(closed)?;
    let sent = long();
    let write = async {
        let _ = send.write(Bytes::from(sent.clone())).await;
        let _ = send.finish();
    };
    let ((), back) = tokio::join!(write, to_end(&mut recv));
    let exact = back.as_str().is_some_and(|back| back.as_bytes() == sent);
    Ok(if exact { json!("echo") } else { back })
}

async fn bi_by_client(client: &impl Dial) -> Shown {
    let session = open(client, "echo/bi").await?;
    let shown = echoes(&session).await;
    leave(&session).await;
    shown
}

async fn seen(session: &impl Session) -> Shown {
    let mut recv = session.accept_uni().await.map_err(closed)?;
    Ok(to_end(&mut recv).await)
}

async fn bi_by_service(client: &impl Dial) -> Shown {
    let session = open(client, "open/bi").await?;
    let (mut send, mut recv) = session.accept_bi().await.map_err(closed)?;
    let heard = to_end(&mut recv).await;
    say(&mut send, CLIENT).await;
    seen(&session).await?;
    leave(&session).await;
    Ok(heard)
}

async fn uni_by_client(client: &impl Dial) -> Shown {
    let session = open(client, "hear/uni").await?;
    say(&mut session.open_uni().await.map_err(closed)?, CLIENT).await;
    let shown = seen(&session).await;
    leave(&session).await;
    shown
}

async fn uni_by_service(client: &impl Dial) -> Shown {
    let session = open(client, "open/uni").await?;
    let heard = seen(&session).await;
    leave(&session).await;
    heard
}

async fn datagrams(client: &impl Dial) -> Shown {
    let session = open(client, "echo/datagram").await?;
    let back = loop {
        let _ = session.send_datagram(Bytes::from_static(b"a datagram"));
        if let Ok(back) = timeout(AGAIN, session.recv_datagram()).await {
            break back.map_err(closed)?;
        }
    };
    leave(&session).await;
    Ok(String::from_utf8_lossy(&back).into_owned().into())
}

/// A stream on which both sides have written something.
async fn talk<S: Session>(session: &S) -> Result<(S::Send, S::Recv), Value> {
    let (mut send, mut recv) = session.open_bi().await.map_err(closed)?;
    let _ = send.write(Bytes::from_static(b"x")).await;
    let _ = recv.read().await;
    Ok((send, recv))
}

async fn reset_by_client(client: &impl Dial) -> Shown {
    let session = open(client, "observe/reset").await?;
    let (mut send, _recv) = talk(&session).await?;
    send.reset(33);
    let shown = seen(&session).await;
    leave(&session).await;
    shown
}

async fn stop_by_client(client: &impl Dial) -> Shown {
    let session = open(client, "observe/stop").await?;
    let (_send, mut recv) = talk(&session).await?;
    recv.stop(44);
    let shown = seen(&session).await;
    leave(&session).await;
    shown
}

async fn reset_by_service(client: &impl Dial) -> Shown {
    let session = open(client, "reset/33").await?;
    let (mut send, mut recv) = session.open_bi().await.map_err(closed)?;
    let _ = send.write(Bytes::from_static(b"x")).await;
    let how = to_end(&mut recv).await;
    leave(&session).await;
    Ok(how)
}

async fn stop_by_service(client: &impl Dial) -> Shown {
    let session = open(client, "stop/44").await?;
    let (mut send, _recv) = session.open_bi().await.map_err(closed)?;
    let _ = send.write(Bytes::from_static(b"x")).await;
    let how = json!(send.stopped().await);
    leave(&session).await;
    Ok(how)
}

async fn close_by_client(client: &impl Dial) -> Shown {
    let session = open(client, "closed").await?;
    session.close(Close::new(4242, "done"));
    Ok(closed(session.closed().await))
}

async fn close_by_service(client: &impl Dial) -> Shown {
    let session = open(client, "close/4242/done").await?;
    say(&mut session.open_uni().await.map_err(closed)?, CLIENT).await;
    // Some stacks tell only whoever waits for a stream.
    match session.accept_uni().await {
        Ok(_) => Ok(json!("a stream")),
        Err(how) => Ok(closed(how)),
    }
}

async fn drain_by_client<D: Dial>(client: &D) -> Shown {
    if !D::DRAINS {
        return Ok(json!("no such call"));
    }
    let session = open(client, "drained").await?;
    session.drain();
    let shown = seen(&session).await;
    leave(&session).await;
    shown
}

async fn drain_by_service<D: Dial>(client: &D) -> Shown {
    let session = open(client, "drain").await?;
    let (_send, _recv) = talk(&session).await?;
    if D::DRAINS {
        session.draining().await;
    }
    let after = echoes(&session).await?;
    leave(&session).await;
    Ok(json!([
        if D::DRAINS { "told" } else { "no such call" },
        after
    ]))
}

async fn two_sessions(client: &impl Dial) -> Shown {
    let first = open(client, "two/a").await?;
    let second = client.dial_beside(&first, "two/b").await?;
    let both = (echoes(&first).await?, echoes(&second).await?);
    leave(&first).await;
    let after = echoes(&second).await?;
    leave(&second).await;
    Ok(json!([both.0, both.1, after]))
}

async fn get(client: &impl Dial) -> Shown {
    let session = open(client, "echo/get").await?;
    let status = client.get(&session).await;
    let beside = echoes(&session).await?;
    leave(&session).await;
    Ok(json!([status, beside]))
}
