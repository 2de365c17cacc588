//! UDP sockets with the buffers that QUIC needs.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
};

use socket2::{Domain, Protocol, Socket, Type};

mod drained;
pub(crate) mod shards;
use drained::Drained;
pub use shards::MAX_SHARDS;

/// Asked of the kernel for each direction. At 1 Gbit/s it holds 33 ms: time for a busy process to
/// come back to its socket before the kernel drops packets.
pub const BUFFER: usize = 4 * 1024 * 1024;

/// Binds a UDP socket, not blocking, with [`BUFFER`] bytes each way or what the kernel grants
/// (`net.core.rmem_max`, `net.core.wmem_max`).
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    Ok(open(address, false)?.into())
}

/// Binds `count` such sockets to one port, among which the kernel shares out what comes: one for
/// each shard of a server, see [`Server::sharded`](crate::webtransport::Server::sharded). At least
/// one, at most [`MAX_SHARDS`]. A port that is taken is an error, also if it is taken by sockets
/// that would share it.
pub fn bind_shards(address: SocketAddr, count: usize) -> io::Result<Vec<UdpSocket>> {
    let first = open(address, false)?;
    let mut sockets = Vec::new();
    if count > 1 {
        // Only now, as it would have shared the port with strangers.
        first.set_reuse_port(true)?;
        let bound = first.local_addr()?.as_socket().unwrap_or(address);
        for _ in 1..count.min(MAX_SHARDS) {
            sockets.push(open(bound, true)?.into());
        }
    }
    sockets.insert(0, first.into());
    Ok(sockets)
}

/// A socket as quinn wants it, for this task's runtime.
pub(crate) fn for_quinn(socket: UdpSocket) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
    Ok(Arc::new(Drained::new(socket)?))
}

fn open(address: SocketAddr, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    // A kernel that grants less does so silently; one that refuses leaves its default in place.
    let asked = socket
        .set_recv_buffer_size(BUFFER)
        .and(socket.set_send_buffer_size(BUFFER));
    socket.set_nonblocking(true)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    let socket_address = socket.local_addr()?.as_socket();
    // Linux reports twice the size that counts for data (socket(7)).
    let half = if cfg!(target_os = "linux") { 2 } else { 1 };
    let receive_bytes = socket.recv_buffer_size()? / half;
    let send_bytes = socket.send_buffer_size()? / half;
    if asked.is_err() || receive_bytes < BUFFER || send_bytes < BUFFER {
        tracing::warn!(
            address = ?socket_address,
            receive_bytes,
            send_bytes,
            wanted_bytes = BUFFER,
            "socket buffers are small: raise net.core.rmem_max and net.core.wmem_max"
        );
    } else {
        tracing::debug!(address = ?socket_address, receive_bytes, send_bytes, "socket bound");
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_socket_has_an_address_and_says_when_its_port_is_taken() {
        let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        assert_ne!(address.port(), 0);
        assert_eq!(bind(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn shards_have_one_port_which_no_stranger_shares() {
        let sockets = bind_shards("127.0.0.1:0".parse().unwrap(), 4).unwrap();
        let address = sockets[0].local_addr().unwrap();
        assert_ne!(address.port(), 0);
        assert_eq!(sockets.len(), 4);
        for socket in &sockets {
            assert_eq!(socket.local_addr().unwrap(), address);
        }
        for stranger in [1, 4] {
            let taken = bind_shards(address, stranger).unwrap_err();
            assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        }
    }

    #[test]
    fn shards_share_what_comes() {
        let sockets = bind_shards("127.0.0.1:0".parse().unwrap(), 4).unwrap();
        let address = sockets[0].local_addr().unwrap();
        for _ in 0..200 {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.send_to(b"x", address).unwrap();
        }
        let mut total = 0;
        for socket in &sockets {
            let mut received = 0;
            while socket.recv(&mut [0; 8]).is_ok() {
                received += 1;
            }
            // One that got nothing has a chance of 1 in 10²⁴.
            assert_ne!(received, 0);
            total += received;
        }
        assert_eq!(total, 200);
    }
}
