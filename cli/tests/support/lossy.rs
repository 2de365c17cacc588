//! What stands between an operator and a master, and loses an answer.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// A TLS record's type and the length of its head.
const APPLICATION_DATA: u8 = 23;
const HEAD: usize = 5;
/// A request bears a token, and is longer than what else a client sends.
const REQUEST: usize = 300;

/// Passes connections on. Of the first, nothing comes back once a request was sent on it.
pub(crate) struct Lossy {
    pub(crate) address: SocketAddr,
    first: TcpStream,
}

impl Lossy {
    /// Takes connections for `master`, and returns once the first has come, which `client` makes.
    pub(crate) fn before(master: SocketAddr, client: impl FnOnce(SocketAddr)) -> Self {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        client(address);
        let (first, _) = listener.accept().unwrap();
        let to_cut = first.try_clone().unwrap();
        pass(first, master, true);
        thread::spawn(move || {
            while let Ok((more, _)) = listener.accept() {
                pass(more, master, false);
            }
        });
        Self {
            address,
            first: to_cut,
        }
    }

    /// Ends the first connection.
    pub(crate) fn cut(&self) {
        self.first.shutdown(Shutdown::Both).unwrap();
    }
}

fn pass(client: TcpStream, master: SocketAddr, loses_answer: bool) {
    let master = TcpStream::connect(master).unwrap();
    let was_asked = Arc::new(AtomicBool::new(false));
    let (mut from, mut to) = (client.try_clone().unwrap(), master.try_clone().unwrap());
    let asked = was_asked.clone();
    thread::spawn(move || {
        // Until either end is gone.
        let _ = requests(&mut from, &mut to, &asked);
        let _ = to.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (master, client);
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let is_lost = loses_answer && was_asked.load(Ordering::SeqCst);
            if !is_lost && to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
    });
}

/// Passes records on, and says before the first that is a request.
fn requests(from: &mut TcpStream, to: &mut TcpStream, was_asked: &AtomicBool) -> io::Result<()> {
    loop {
        let mut record = vec![0; HEAD];
        from.read_exact(&mut record)?;
        let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
        record.resize(HEAD + length, 0);
        from.read_exact(&mut record[HEAD..])?;
        if record[0] == APPLICATION_DATA && length > REQUEST {
            was_asked.store(true, Ordering::SeqCst);
        }
        to.write_all(&record)?;
    }
}
