//! UDP sockets with the buffers that QUIC needs.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Asked of the kernel for each direction. At 1 Gbit/s it holds 33 ms: time for a busy process to
/// come back to its socket before the kernel drops packets.
pub const BUFFER: usize = 4 * 1024 * 1024;

/// Binds a UDP socket, not blocking, with [`BUFFER`] bytes each way or what the kernel grants
/// (`net.core.rmem_max`, `net.core.wmem_max`).
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
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
    socket.bind(&address.into())?;
    let socket_address = socket.local_addr()?.as_socket();
    // Linux reports twice the size that counts for data (socket(7)).
    let share = if cfg!(target_os = "linux") { 2 } else { 1 };
    let receive_bytes = socket.recv_buffer_size()? / share;
    let send_bytes = socket.send_buffer_size()? / share;
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
    Ok(socket.into())
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
}
