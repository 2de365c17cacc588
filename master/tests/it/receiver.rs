//! A syslog receiver that takes messages apart by the letter of RFC 5424, 5425, 5426 and 6587, and takes
//! nothing else.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::{TcpListener, TcpStream, UdpSocket, UnixDatagram},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::world::DEADLINE;

/// Messages of some test; far more than any test sends.
const ROOM: usize = 1024;

/// It stops listening, and closes every connection, when it is dropped.
pub(crate) struct Receiver {
    messages: mpsc::Receiver<Message>,
    _tasks: JoinSet<()>,
}

/// A message, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) priority: u8,
    pub(crate) action: String,
    pub(crate) sequence: u64,
    pub(crate) line: String,
}

impl Receiver {
    /// Takes messages over TCP, or TLS.
    pub(crate) fn stream(listener: TcpListener, tls: Option<TlsAcceptor>) -> Self {
        let (give, messages) = mpsc::channel(ROOM);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, tls.clone(), give.clone()));
            }
        });
        Self {
            messages,
            _tasks: tasks,
        }
    }

    pub(crate) fn udp(socket: UdpSocket) -> Self {
        let (give, messages) = mpsc::channel(ROOM);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut datagram = vec![0; 65_536];
            loop {
                let length = socket.recv(&mut datagram).await.unwrap();
                give.send(message(&datagram[..length])).await.unwrap();
            }
        });
        Self {
            messages,
            _tasks: tasks,
        }
    }

    pub(crate) fn unix(socket: UnixDatagram) -> Self {
        let (give, messages) = mpsc::channel(ROOM);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut datagram = vec![0; 65_536];
            loop {
                let length = socket.recv(&mut datagram).await.unwrap();
                give.send(message(&datagram[..length])).await.unwrap();
            }
        });
        Self {
            messages,
            _tasks: tasks,
        }
    }

    pub(crate) async fn next(&mut self) -> Message {
        timeout(DEADLINE, self.messages.recv())
            .await
            .expect("a message comes in time")
            .expect("the receiver took all apart")
    }

    /// The next `count` lines.
    pub(crate) async fn lines(&mut self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.len() < count {
            lines.push(self.next().await.line);
        }
        lines
    }
}

/// A listener at a free port, and the port.
pub(crate) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, give: mpsc::Sender<Message>) {
    match tls {
        // A client that does not trust us is no receiver's fault.
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                frames(stream, give).await;
            }
        }
        None => frames(stream, give).await,
    }
}

/// MSG-LEN SP SYSLOG-MSG (RFC 5425, section 4.3).
async fn frames(mut stream: impl AsyncRead + Unpin, give: mpsc::Sender<Message>) {
    loop {
        let mut length = 0_usize;
        loop {
            let Ok(byte) = stream.read_u8().await else {
                assert_eq!(length, 0, "the connection ended within a length");
                return;
            };
            match byte {
                b' ' => break,
                b'0' if length == 0 => panic!("a length begins with 0"),
                b'0'..=b'9' => length = length * 10 + usize::from(byte - b'0'),
                other => panic!("{other:#x} is in a length"),
            }
        }
        assert!(length > 0, "an empty length");
        let mut frame = vec![0; length];
        stream.read_exact(&mut frame).await.unwrap();
        if give.send(message(&frame)).await.is_err() {
            return;
        }
    }
}

/// RFC 5424, section 6.
pub(crate) fn message(bytes: &[u8]) -> Message {
    let head_end = {
        // PRI VERSION, TIMESTAMP, HOSTNAME, APP-NAME, PROCID, MSGID: six words.
        let spaces = bytes.iter().enumerate().filter(|(_, byte)| **byte == b' ');
        spaces.map(|(at, _)| at).nth(5).expect("a header")
    };
    let head = std::str::from_utf8(&bytes[..head_end]).expect("a header of ASCII");
    let words: Vec<&str> = head.split(' ').collect();
    let [priority, time, host, application, process, action] = words[..] else {
        panic!("{head} has not six words");
    };
    let priority = priority
        .strip_prefix('<')
        .and_then(|rest| rest.strip_suffix(">1"))
        .expect("<PRIVAL>1");
    assert!(priority == "0" || !priority.starts_with('0'));
    let priority: u8 = priority.parse().unwrap();
    assert!(priority <= 191, "{priority}");
    timestamp(time);
    for (word, longest) in [(host, 255), (application, 48), (process, 128), (action, 32)] {
        assert!((1..=longest).contains(&word.len()), "{word}");
        assert!(word.bytes().all(|byte| byte.is_ascii_graphic()), "{word}");
    }
    assert_eq!(application, "wavry");
    assert_eq!(process, std::process::id().to_string());

    let rest = &bytes[head_end + 1..];
    let rest = rest
        .strip_prefix(b"[meta sequenceId=\"")
        .expect("the element meta (section 7.3)");
    let end = rest.iter().position(|byte| *byte == b'"').unwrap();
    let sequence = std::str::from_utf8(&rest[..end]).unwrap().parse().unwrap();
    assert!((1..=2_147_483_647).contains(&sequence));
    let text = rest[end..].strip_prefix(b"\"] ").expect("one element");
    let line = match text.strip_prefix(b"\xef\xbb\xbf") {
        Some(utf8) => std::str::from_utf8(utf8).expect("UTF-8 behind a byte order mark"),
        None => std::str::from_utf8(text).unwrap(),
    };
    assert_eq!(text.starts_with(b"\xef\xbb\xbf"), !line.is_ascii());
    Message {
        priority,
        action: action.to_owned(),
        sequence,
        line: line.to_owned(),
    }
}

/// FULL-DATE "T" FULL-TIME, with six digits of a second at most (section 6.2.3).
fn timestamp(text: &str) {
    let (date, time) = text.split_once('T').expect("a date and a time");
    let parts = |text: &str, between: char, lengths: &[usize]| {
        let parts: Vec<&str> = text.split(between).collect();
        assert_eq!(parts.len(), lengths.len(), "{text}");
        for (part, length) in parts.iter().zip(lengths) {
            assert_eq!(part.len(), *length, "{text}");
            assert!(part.bytes().all(|byte| byte.is_ascii_digit()), "{text}");
        }
    };
    parts(date, '-', &[4, 2, 2]);
    let time = time.strip_suffix('Z').expect("UTC");
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    parts(time, ':', &[2, 2, 2]);
    assert!((1..=6).contains(&fraction.len()) && fraction.bytes().all(|b| b.is_ascii_digit()));
}
