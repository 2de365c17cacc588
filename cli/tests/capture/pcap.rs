//! Files of captured packets, as `dumpcap -P` writes them: of Ethernet frames, of which those with UDP over IPv4
//! are looked into (`draft-ietf-opsawg-pcap`; RFC 791, RFC 768).

use std::net::{Ipv4Addr, SocketAddrV4};

use wavry_proto::overlay::packet::{Header, Kind};

const MAGIC: u32 = 0xa1b2_c3d4;
const ETHERNET: u32 = 1;
const HEADER: usize = 24;
const RECORD: usize = 16;
const FRAME: usize = 14;
const IP: usize = 20;
const UDP: u8 = 17;
const UDP_HEADER: usize = 8;

/// What was captured at once: a packet, or several of one size that the kernel had together (GSO).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) packet: Option<Packet<'a>>,
}

/// A payload of UDP.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet<'a> {
    pub(crate) from: SocketAddrV4,
    pub(crate) to: SocketAddrV4,
    pub(crate) payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// The packets of `size` that the kernel had together.
    pub(crate) fn split(self, size: usize) -> impl Iterator<Item = Self> {
        let payloads = self.payload.chunks(size);
        payloads.map(move |payload| Self { payload, ..self })
    }

    /// What a flow carries, without the relay's header.
    pub(crate) fn of_flow(self) -> Option<Self> {
        let (header, payload) = Header::read(self.payload)?;
        (header.kind == Kind::Flow).then_some(Self { payload, ..self })
    }
}

/// All frames of a file.
pub(crate) fn read(file: &[u8]) -> Vec<Frame<'_>> {
    assert_eq!(number(file, 0), MAGIC, "it is a capture of this host");
    assert_eq!(number(file, 20), ETHERNET);
    let mut frames = Vec::new();
    let mut rest = &file[HEADER..];
    while rest.len() >= RECORD {
        let (kept, was) = (number(rest, 8), number(rest, 12));
        assert_eq!(kept, was, "frames are kept whole");
        let (frame, after) = rest[RECORD..].split_at(kept as usize);
        frames.push(Frame {
            bytes: frame,
            packet: packet(frame),
        });
        rest = after;
    }
    frames
}

/// A file of these packets, in frames of their own.
pub(crate) fn write<'a>(packets: impl Iterator<Item = Packet<'a>>) -> Vec<u8> {
    let mut file = Vec::new();
    for field in [MAGIC, 4 << 16 | 2, 0, 0, 65_535, ETHERNET] {
        file.extend(field.to_ne_bytes());
    }
    for (at, packet) in packets.enumerate() {
        let udp = UDP_HEADER + packet.payload.len();
        let len = (FRAME + IP + udp) as u32;
        for field in [0, at as u32, len, len] {
            file.extend(field.to_ne_bytes());
        }
        file.extend([0; 12]);
        file.extend([8, 0, 0x45, 0]);
        file.extend(((IP + udp) as u16).to_be_bytes());
        file.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
        file.extend(packet.from.ip().octets());
        file.extend(packet.to.ip().octets());
        file.extend(packet.from.port().to_be_bytes());
        file.extend(packet.to.port().to_be_bytes());
        file.extend((udp as u16).to_be_bytes());
        file.extend([0, 0]);
        file.extend(packet.payload);
    }
    file
}

fn packet(frame: &[u8]) -> Option<Packet<'_>> {
    let ip = frame.get(FRAME..)?;
    let is_ip = frame[12..FRAME] == [8, 0] && ip.first()? >> 4 == 4;
    let header = usize::from(ip.first()? & 15) * 4;
    let udp = ip.get(header..)?;
    if !is_ip || ip.get(9)? != &UDP || udp.len() < UDP_HEADER {
        return None;
    }
    let octets = |at: usize| <[u8; 4]>::try_from(&ip[at..at + 4]).unwrap();
    let port = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
    Some(Packet {
        from: SocketAddrV4::new(Ipv4Addr::from(octets(12)), port(0)),
        to: SocketAddrV4::new(Ipv4Addr::from(octets(16)), port(2)),
        payload: &udp[UDP_HEADER..],
    })
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}
