//! Addresses for programs that cannot take one from the system and say which.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Mutex,
};

use socket2::{Domain, SockAddr, Socket, Type};

/// Bound, and never listening, for as long as the test's process lives.
static RESERVED: Mutex<Vec<Socket>> = Mutex::new(Vec::new());

/// An address at which nobody listens, until a program is told to. While a socket is bound to it that does not
/// listen, Linux gives its TCP port to nobody who asks for any, but to whoever asks for this one with
/// `SO_REUSEADDR`, as all servers do.
pub(crate) fn free_address() -> SocketAddr {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    socket.bind(&SockAddr::from(any)).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    RESERVED.lock().unwrap().push(socket);
    address
}
