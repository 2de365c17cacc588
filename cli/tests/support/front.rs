//! What stands before gateways: an authority comes to it, and is led to one of them, or waits.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

/// Where the authority comes to: what forwards it to one gateway after the other.
pub(crate) struct Front {
    pub(crate) address: SocketAddr,
    /// As long as there are none, the authority waits.
    pub(crate) to: Arc<Mutex<Vec<SocketAddr>>>,
    /// Told of the first connection.
    pub(crate) comes: mpsc::Receiver<()>,
}

impl Front {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let to: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
        let (came, comes) = mpsc::sync_channel(1);
        let gateways = to.clone();
        std::thread::spawn(move || {
            for (turn, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                let _ = came.try_send(());
                let gateways = gateways.clone();
                std::thread::spawn(move || {
                    loop {
                        let gateways = gateways.lock().unwrap().clone();
                        if !gateways.is_empty() {
                            return forward(stream, gateways[turn % gateways.len()]);
                        }
                        std::thread::sleep(Duration::from_millis(10));
                    }
                });
            }
        });
        Self { address, to, comes }
    }
}

/// A connection, with whatever goes over it.
fn forward(mut from: TcpStream, to: SocketAddr) {
    let Ok(mut gateway) = TcpStream::connect(to) else {
        return;
    };
    let (mut asks, mut hears) = (from.try_clone().unwrap(), gateway.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = io::copy(&mut asks, &mut hears);
        let _ = hears.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut gateway, &mut from);
    let _ = from.shutdown(Shutdown::Both);
}
