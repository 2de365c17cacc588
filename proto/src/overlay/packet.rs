//! Packets of the overlay. Integers are big-endian.
//!
//! ```text
//! header     0  kind: version in the high four bits, type in the low ones
//!            1  reserved, 0
//!            2  label of the peer (data, direct) or id of the flow; 6 bytes
//! data       8  a QUIC packet
//! probe      8  nonce; 8 bytes
//!           16  label under which the sender takes data; 6 bytes
//!           22  the sender's id; the recipient's id
//! claim      8  nonce; 8 bytes
//!           16  cookie, zeros at first; 8 bytes
//!           24  the claimant's id; the id of the relay that is asked, of the peer at the other end
//!               number of relays on the way, from 1 to 3; the id of each
//!               where the relay is to send what comes: an address, or none where the peer is attached to it
//!               number of the lease's bytes, 2 bytes; the lease
//! attach     8  nonce; 8 bytes
//!           16  cookie, zeros at first; 8 bytes
//!           24  the id of the node that attaches itself; the id of the relay
//! verdict    8  the nonce of what it answers; 8 bytes
//!           16  verdict; 1 byte
//!           17  cookie; 8 bytes
//!           25  for how many seconds the flow is there, or the node is attached; 4 bytes
//!           29  the relay's id; the id of who asked
//!               where an attach came from: an address; none in a verdict on a claim
//! ```
//!
//! An address is its family, one byte, 4 or 6; itself; its port, 2 bytes. None is a single 0.
//!
//! An id has its length before it, one byte. At the end of a probe, a claim and a verdict come their tags –
//! how many, one byte; 16 bytes each – and zeros up to the length that is to be proved. The tags cover all
//! but themselves and the zeros, and the length, so that what was cut on its way is refused.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{
    id::NodeId,
    overlay::{MAX_TAGS, TAG_LEN, Tag, lease::MAX_PACKED_LEN},
};

/// Bytes of a [`Header`].
pub const HEADER_LEN: usize = 8;

const VERSION: u8 = 1 << 4;

/// A number of 48 bits that its giver drew at random: a peer's label, or the id of a flow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label([u8; 6]);

impl Label {
    /// No label: what a probe over a direct path has in its header.
    pub const NONE: Self = Self([0; 6]);

    /// From the low 48 bits of `random`.
    pub fn from_random(random: u64) -> Self {
        let [_, _, label @ ..] = random.to_be_bytes();
        Self(label)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Label {
    type Err = Malformed;
    /// Twelve hexadecimal digits, in lower case.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let digit = |byte: &u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let digits = text.bytes().map(|byte| digit(&byte));
        let digits: Option<Vec<u8>> = digits.collect();
        let (pairs, []) = digits.as_deref().unwrap_or_default().as_chunks::<2>() else {
            return Err(Malformed("label"));
        };
        let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
        let label = bytes.try_into().map_err(|_| Malformed("label"))?;
        Ok(Self(label))
    }
}

impl TryFrom<String> for Label {
    type Error = Malformed;
    fn try_from(text: String) -> Result<Self, Malformed> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.to_string()
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// What a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A QUIC packet straight from its sender; the label is the one that the recipient gave it.
    Direct,
    /// A QUIC packet on a flow; the label is the flow's.
    Flow,
    /// A probe: asks for an answer over the path that it came by.
    Ping,
    /// The answer to a probe.
    Pong,
    /// Asks a transit relay for a flow.
    Claim,
    /// The relay's answer to a claim or an attach.
    Verdict,
    /// Tells a transit relay where a node can be reached.
    Attach,
}

impl Kind {
    fn to_wire(self) -> u8 {
        VERSION
            | match self {
                Self::Direct => 0,
                Self::Flow => 1,
                Self::Ping => 2,
                Self::Pong => 3,
                Self::Claim => 4,
                Self::Verdict => 5,
                Self::Attach => 6,
            }
    }

    fn from_wire(byte: u8) -> Option<Self> {
        Some(match byte.checked_sub(VERSION)? {
            0 => Self::Direct,
            1 => Self::Flow,
            2 => Self::Ping,
            3 => Self::Pong,
            4 => Self::Claim,
            5 => Self::Verdict,
            6 => Self::Attach,
            _ => return None,
        })
    }
}

/// What every packet begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header {
    /// What the packet is.
    pub kind: Kind,
    /// Whose it is, or which flow's.
    pub label: Label,
}

impl Header {
    /// The header's bytes.
    pub fn to_wire(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = self.kind.to_wire();
        bytes[2..].copy_from_slice(&self.label.0);
        bytes
    }

    /// Reads it off the front of a packet; `None` where that is of another version, an unknown kind or too
    /// short.
    pub fn read(packet: &[u8]) -> Option<(Self, &[u8])> {
        let (header, rest) = packet.split_first_chunk::<HEADER_LEN>()?;
        let [kind, 0, label @ ..] = *header else {
            return None;
        };
        let header = Self {
            kind: Kind::from_wire(kind)?,
            label: Label(label),
        };
        Some((header, rest))
    }
}

/// A probe, or the answer to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// [`Kind::Ping`] or [`Kind::Pong`].
    pub kind: Kind,
    /// The flow that it goes over; [`Label::NONE`] over a direct path.
    pub flow: Label,
    /// Drawn at random for each ping; the pong has its ping's.
    pub nonce: u64,
    /// The label under which the sender takes data that comes directly.
    pub label: Label,
    /// Who sends it.
    pub from: NodeId,
    /// For whom it is.
    pub to: NodeId,
}

/// Asks a transit relay to carry a flow: by the node at one end of it, to each relay on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The flow, drawn at random by the claimant.
    pub flow: Label,
    /// The flow's claims are counted in the high 32 bits, from 1 on; the low ones are drawn at random.
    pub nonce: u64,
    /// What the relay gave for proof that the claimant receives where it sends from; 0 before it did.
    pub cookie: u64,
    /// The claimant: one end of the flow.
    pub from: NodeId,
    /// The relay that is asked.
    pub to: NodeId,
    /// The other end.
    pub peer: NodeId,
    /// The relays from `from` to `peer`; 1 to [`MAX_HOPS`].
    pub hops: Vec<NodeId>,
    /// Where the relay that is asked is to send what comes from the claimant's side.
    pub next: Next,
    /// The lease, [packed](crate::token::pack); empty where no master answers who claims. At most
    /// [`MAX_PACKED_LEN`] bytes.
    pub lease: Vec<u8>,
}

/// Where a transit relay finds the next node on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Next {
    /// At this address, which the roster has for it.
    At(SocketAddr),
    /// Where it attached itself: the peer, which cannot be reached otherwise.
    Attached,
}

/// Tells a transit relay that what comes for a node is to be sent to where this came from: by a node that can be
/// reached from outside only by who was sent something by it (RFC 4787).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// What the node calls its place at this relay, drawn at random.
    pub place: Label,
    /// Drawn at random for each attach.
    pub nonce: u64,
    /// What the relay gave for proof that the node receives where it sends from; 0 before it did.
    pub cookie: u64,
    /// The node.
    pub from: NodeId,
    /// The relay.
    pub to: NodeId,
}

/// Bytes of an [`Attach`], at least: no verdict on it is longer.
const ATTACH_LEN: usize = 320;

/// Most transit relays on one way.
pub const MAX_HOPS: usize = 3;

/// A transit relay's answer to a claim or an attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The flow, or the place.
    pub flow: Label,
    /// The claim's or the attach's.
    pub nonce: u64,
    /// What is said.
    pub ruling: Ruling,
    /// The relay.
    pub from: NodeId,
    /// Who asked.
    pub to: NodeId,
    /// Where an attach came from, as the relay sees it.
    pub seen: Option<SocketAddr>,
}

/// What a transit relay says to a claim or an attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// Packets are forwarded for so many seconds, or the node is attached for as long.
    Granted {
        /// Seconds.
        lasts: u32,
    },
    /// The claim is to be made again with this cookie, from where it was made.
    Prove {
        /// The cookie; never 0.
        cookie: u64,
    },
    /// No.
    Refused(Refusal),
}

impl Ruling {
    /// The ruling as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Granted { .. } => "granted",
            Self::Prove { .. } => "prove",
            Self::Refused(refusal) => refusal.as_str(),
        }
    }
}

/// Why a transit relay carries no flow, or has no place for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A node on the way, or an address, is not in the relay's roster.
    NotListed,
    /// The relay is not on the way, or the claim came from another than the one before it.
    NotOnTheWay,
    /// The flow's id is another's.
    InUse,
    /// The relay, or what it carries for this claimant, is full.
    Full,
    /// The relay leaves.
    Draining,
    /// The peer is not attached to the relay.
    NotAttached,
    /// There is no lease with it, and masters answer the relay.
    NoLease,
    /// What is with it is no lease, or none by a key that the relay's roster lists.
    Forged,
    /// The lease does not hold yet.
    NotYet,
    /// The lease does not hold any more.
    Expired,
    /// The lease is another claimant's, or for another peer, other relays or another flow.
    OtherLease,
    /// The lease was signed before leases of the claimant were revoked.
    Revoked,
    /// The claim came before, or is older than one that did.
    Replayed,
    /// The relay checks as many leases as it may.
    Busy,
}

impl Refusal {
    const ALL: [Self; 14] = [
        Self::NotListed,
        Self::NotOnTheWay,
        Self::InUse,
        Self::Full,
        Self::Draining,
        Self::NotAttached,
        Self::NoLease,
        Self::Forged,
        Self::NotYet,
        Self::Expired,
        Self::OtherLease,
        Self::Revoked,
        Self::Replayed,
        Self::Busy,
    ];

    /// The reason as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotListed => "not_listed",
            Self::NotOnTheWay => "not_on_the_way",
            Self::InUse => "in_use",
            Self::Full => "full",
            Self::Draining => "draining",
            Self::NotAttached => "not_attached",
            Self::NoLease => "no_lease",
            Self::Forged => "forged",
            Self::NotYet => "not_yet",
            Self::Expired => "expired",
            Self::OtherLease => "other_lease",
            Self::Revoked => "revoked",
            Self::Replayed => "replayed",
            Self::Busy => "busy",
        }
    }
}

/// A message as it came: to be believed once its tags were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received<M> {
    /// What it says.
    pub said: M,
    /// What its tags cover.
    pub covered: Vec<u8>,
    /// Its tags.
    pub tags: Vec<Tag>,
}

/// Why a packet is not a message of the overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a message of the overlay: {0}")]
pub struct Malformed(&'static str);

const CUT: Malformed = Malformed("cut off");

impl Probe {
    /// Writes the packet into `packet`, `len` bytes long or as long as the probe itself is, with the tags
    /// that `tag` appends for what they are to cover.
    pub fn write(&self, packet: &mut Vec<u8>, len: usize, tag: impl FnOnce(&[u8], &mut Vec<Tag>)) {
        begin(packet, self.kind, self.flow);
        packet.extend_from_slice(&self.nonce.to_be_bytes());
        packet.extend_from_slice(&self.label.0);
        for id in [&self.from, &self.to] {
            write_id(packet, id);
        }
        end(packet, len, tag);
    }

    /// Reads a packet whose header says that it is a probe.
    pub fn read(packet: &[u8]) -> Result<Received<Self>, Malformed> {
        let (header, rest) = read_header(packet, &[Kind::Ping, Kind::Pong])?;
        let (nonce, rest) = read_number(rest)?;
        let (label, rest) = rest.split_first_chunk().ok_or(CUT)?;
        let (from, rest) = read_id(rest)?;
        let (to, rest) = read_id(rest)?;
        let probe = Self {
            kind: header.kind,
            flow: header.label,
            nonce,
            label: Label(*label),
            from,
            to,
        };
        received(probe, packet, rest)
    }
}

impl Claim {
    /// Writes the packet into `packet`, with the tags that `tag` appends for what they are to cover.
    pub fn write(&self, packet: &mut Vec<u8>, tag: impl FnOnce(&[u8], &mut Vec<Tag>)) {
        begin(packet, Kind::Claim, self.flow);
        packet.extend_from_slice(&self.nonce.to_be_bytes());
        packet.extend_from_slice(&self.cookie.to_be_bytes());
        for id in [&self.from, &self.to, &self.peer] {
            write_id(packet, id);
        }
        packet.push(self.hops.len() as u8);
        for id in &self.hops {
            write_id(packet, id);
        }
        write_address(
            packet,
            match self.next {
                Next::At(address) => Some(address),
                Next::Attached => None,
            },
        );
        packet.extend_from_slice(&(self.lease.len() as u16).to_be_bytes());
        packet.extend_from_slice(&self.lease);
        end(packet, 0, tag);
    }

    /// Reads a packet whose header says that it is a claim.
    pub fn read(packet: &[u8]) -> Result<Received<Self>, Malformed> {
        let (header, rest) = read_header(packet, &[Kind::Claim])?;
        let (nonce, rest) = read_number(rest)?;
        let (cookie, rest) = read_number(rest)?;
        let (from, rest) = read_id(rest)?;
        let (to, rest) = read_id(rest)?;
        let (peer, rest) = read_id(rest)?;
        let (&count, mut rest) = rest.split_first().ok_or(CUT)?;
        if !(1..=MAX_HOPS).contains(&usize::from(count)) {
            return Err(Malformed("number of relays"));
        }
        let mut hops = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let (id, more) = read_id(rest)?;
            hops.push(id);
            rest = more;
        }
        let (next, rest) = read_address(rest)?;
        let (len, rest) = rest.split_first_chunk().ok_or(CUT)?;
        let len = usize::from(u16::from_be_bytes(*len));
        if len > MAX_PACKED_LEN {
            return Err(Malformed("length of a lease"));
        }
        let (lease, rest) = rest.split_at_checked(len).ok_or(CUT)?;
        let claim = Self {
            flow: header.label,
            nonce,
            cookie,
            from,
            to,
            peer,
            hops,
            next: next.map_or(Next::Attached, Next::At),
            lease: lease.to_vec(),
        };
        received(claim, packet, rest)
    }
}

impl Attach {
    /// Writes the packet into `packet`, with the tags that `tag` appends for what they are to cover.
    pub fn write(&self, packet: &mut Vec<u8>, tag: impl FnOnce(&[u8], &mut Vec<Tag>)) {
        begin(packet, Kind::Attach, self.place);
        packet.extend_from_slice(&self.nonce.to_be_bytes());
        packet.extend_from_slice(&self.cookie.to_be_bytes());
        for id in [&self.from, &self.to] {
            write_id(packet, id);
        }
        end(packet, ATTACH_LEN, tag);
    }

    /// Reads a packet whose header says that it is an attach. One that is shorter than a verdict on it might be is
    /// refused.
    pub fn read(packet: &[u8]) -> Result<Received<Self>, Malformed> {
        let (header, rest) = read_header(packet, &[Kind::Attach])?;
        if packet.len() < ATTACH_LEN {
            return Err(CUT);
        }
        let (nonce, rest) = read_number(rest)?;
        let (cookie, rest) = read_number(rest)?;
        let (from, rest) = read_id(rest)?;
        let (to, rest) = read_id(rest)?;
        let attach = Self {
            place: header.label,
            nonce,
            cookie,
            from,
            to,
        };
        received(attach, packet, rest)
    }
}

impl Verdict {
    /// Writes the packet into `packet`, with the tags that `tag` appends for what they are to cover.
    pub fn write(&self, packet: &mut Vec<u8>, tag: impl FnOnce(&[u8], &mut Vec<Tag>)) {
        begin(packet, Kind::Verdict, self.flow);
        packet.extend_from_slice(&self.nonce.to_be_bytes());
        let (ruling, cookie, lasts) = match self.ruling {
            Ruling::Granted { lasts } => (0, 0, lasts),
            Ruling::Prove { cookie } => (1, cookie, 0),
            Ruling::Refused(refusal) => (2 + refusal as u8, 0, 0),
        };
        packet.push(ruling);
        packet.extend_from_slice(&u64::to_be_bytes(cookie));
        packet.extend_from_slice(&u32::to_be_bytes(lasts));
        for id in [&self.from, &self.to] {
            write_id(packet, id);
        }
        write_address(packet, self.seen);
        end(packet, 0, tag);
    }

    /// Reads a packet whose header says that it is a verdict.
    pub fn read(packet: &[u8]) -> Result<Received<Self>, Malformed> {
        let (header, rest) = read_header(packet, &[Kind::Verdict])?;
        let (nonce, rest) = read_number(rest)?;
        let (&ruling, rest) = rest.split_first().ok_or(CUT)?;
        let (cookie, rest) = read_number(rest)?;
        let (lasts, rest) = rest.split_first_chunk().ok_or(CUT)?;
        let ruling = match ruling {
            0 => Ruling::Granted {
                lasts: u32::from_be_bytes(*lasts),
            },
            1 => Ruling::Prove { cookie },
            code => {
                let refusal = Refusal::ALL.get(usize::from(code) - 2);
                Ruling::Refused(*refusal.ok_or(Malformed("verdict"))?)
            }
        };
        let (from, rest) = read_id(rest)?;
        let (to, rest) = read_id(rest)?;
        let (seen, rest) = read_address(rest)?;
        let verdict = Self {
            flow: header.label,
            nonce,
            ruling,
            from,
            to,
            seen,
        };
        received(verdict, packet, rest)
    }
}

// What messages have in common.

fn begin(packet: &mut Vec<u8>, kind: Kind, label: Label) {
    packet.clear();
    packet.extend_from_slice(&Header { kind, label }.to_wire());
}

/// Appends tags to a body, and zeros.
fn end(packet: &mut Vec<u8>, len: usize, tag: impl FnOnce(&[u8], &mut Vec<Tag>)) {
    // As if there were the most tags: how many there are is known only once they are made.
    let len = len.max(packet.len() + 1 + MAX_TAGS * TAG_LEN);
    let mut tags = Vec::with_capacity(MAX_TAGS);
    tag(&covered(packet, len), &mut tags);
    tags.truncate(MAX_TAGS);
    packet.push(tags.len() as u8);
    for tag in tags {
        packet.extend_from_slice(&tag);
    }
    packet.resize(len, 0);
}

/// What the tags of a message cover: its body and the length of the whole packet.
fn covered(body: &[u8], len: usize) -> Vec<u8> {
    let len = u16::try_from(len).unwrap_or(u16::MAX);
    [body, &len.to_be_bytes()].concat()
}

fn read_header<'a>(packet: &'a [u8], kinds: &[Kind]) -> Result<(Header, &'a [u8]), Malformed> {
    let (header, rest) = Header::read(packet).ok_or(Malformed("no header"))?;
    match kinds.contains(&header.kind) {
        true => Ok((header, rest)),
        false => Err(Malformed("another kind")),
    }
}

fn read_number(bytes: &[u8]) -> Result<(u64, &[u8]), Malformed> {
    let (number, rest) = bytes.split_first_chunk().ok_or(CUT)?;
    Ok((u64::from_be_bytes(*number), rest))
}

fn write_id(packet: &mut Vec<u8>, id: &NodeId) {
    packet.push(id.as_str().len() as u8);
    packet.extend_from_slice(id.as_str().as_bytes());
}

fn read_id(bytes: &[u8]) -> Result<(NodeId, &[u8]), Malformed> {
    let (&len, rest) = bytes.split_first().ok_or(CUT)?;
    let (id, rest) = rest.split_at_checked(usize::from(len)).ok_or(CUT)?;
    let id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
    Ok((id.ok_or(Malformed("no node id"))?, rest))
}

fn write_address(packet: &mut Vec<u8>, address: Option<SocketAddr>) {
    let Some(address) = address else {
        return packet.push(0);
    };
    match address.ip() {
        IpAddr::V4(ip) => {
            packet.push(4);
            packet.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            packet.push(6);
            packet.extend_from_slice(&ip.octets());
        }
    }
    packet.extend_from_slice(&address.port().to_be_bytes());
}

fn read_address(bytes: &[u8]) -> Result<(Option<SocketAddr>, &[u8]), Malformed> {
    let (&family, rest) = bytes.split_first().ok_or(CUT)?;
    let (ip, rest): (IpAddr, _) = match family {
        0 => return Ok((None, rest)),
        4 => {
            let (octets, rest) = rest.split_first_chunk::<4>().ok_or(CUT)?;
            ((*octets).into(), rest)
        }
        6 => {
            let (octets, rest) = rest.split_first_chunk::<16>().ok_or(CUT)?;
            ((*octets).into(), rest)
        }
        _ => return Err(Malformed("family of an address")),
    };
    let (port, rest) = rest.split_first_chunk().ok_or(CUT)?;
    let address = SocketAddr::new(ip, u16::from_be_bytes(*port));
    Ok((Some(address), rest))
}

/// Takes the tags, which begin with `rest`, off a message. Only zeros may follow.
fn received<M>(said: M, packet: &[u8], rest: &[u8]) -> Result<Received<M>, Malformed> {
    let body = &packet[..packet.len() - rest.len()];
    let (&count, rest) = rest.split_first().ok_or(CUT)?;
    if usize::from(count) > MAX_TAGS {
        return Err(Malformed("too many tags"));
    }
    let (tags, zeros) = rest
        .split_at_checked(usize::from(count) * TAG_LEN)
        .ok_or(CUT)?;
    if zeros.iter().any(|byte| *byte != 0) {
        return Err(Malformed("something behind it"));
    }
    let (tags, _) = tags.as_chunks::<TAG_LEN>();
    Ok(Received {
        said,
        covered: covered(body, packet.len()),
        tags: tags.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn probe() -> Probe {
        Probe {
            kind: Kind::Ping,
            flow: Label::NONE,
            nonce: 0x0102_0304_0506_0708,
            label: Label::from_random(0xffff_a1a2_a3a4_a5a6),
            from: "gateway-1".parse().unwrap(),
            to: "exit".parse().unwrap(),
        }
    }

    /// As many tags of these bytes.
    fn tags(with: &[u8]) -> impl FnOnce(&[u8], &mut Vec<Tag>) + use<> {
        let with = with.to_vec();
        move |_, tags| tags.extend(with.into_iter().map(|byte| [byte; TAG_LEN]))
    }

    fn written(probe: &Probe, len: usize, with: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        probe.write(&mut packet, len, tags(with));
        packet
    }

    #[test]
    fn a_probe_has_the_bytes_that_are_written_down() {
        let packet = written(&probe(), 0, &[0x77]);
        let expected = [
            "12 00 000000000000",
            "0102030405060708",
            "a1a2a3a4a5a6",
            "09 676174657761792d31",
            "04 65786974",
            "01 77777777777777777777777777777777",
            "00000000000000000000000000000000",
        ];
        let expected = hex::decode(expected.concat().replace(' ', "")).unwrap();
        assert_eq!(packet, expected);
    }

    fn claim() -> Claim {
        Claim {
            flow: Label::from_random(0xf1f2_f3f4_f5f6),
            nonce: 0x0102_0304_0506_0708,
            cookie: 9,
            from: "a".parse().unwrap(),
            to: "t2".parse().unwrap(),
            peer: "b".parse().unwrap(),
            hops: ["t1", "t2"].map(|id| id.parse().unwrap()).to_vec(),
            next: Next::At(([192, 0, 2, 1], 4434).into()),
            lease: vec![0xaa, 0xbb],
        }
    }

    #[test]
    fn the_largest_claim_goes_over_every_path() {
        let longest: NodeId = "a".repeat(63).parse().unwrap();
        let claim = Claim {
            from: longest.clone(),
            to: longest.clone(),
            peer: longest.clone(),
            hops: vec![longest; MAX_HOPS],
            next: Next::At(([0x2001, 0, 0, 0, 0, 0, 0, 1], 1).into()),
            lease: vec![7; MAX_PACKED_LEN],
            ..claim()
        };
        let mut packet = Vec::new();
        claim.write(&mut packet, tags(&[1, 2]));
        assert!(packet.len() <= 1280, "{}", packet.len());
        assert_eq!(Claim::read(&packet).unwrap().said, claim);
    }

    #[test]
    fn a_lease_that_is_too_long_or_cut_off_is_refused() {
        let mut long = Vec::new();
        let claim = Claim {
            lease: vec![7; MAX_PACKED_LEN + 1],
            ..claim()
        };
        claim.write(&mut long, tags(&[1]));
        assert_eq!(Claim::read(&long), Err(Malformed("length of a lease")));
        let cut = long.len() - 100;
        long.truncate(cut);
        assert!(Claim::read(&long).is_err());
    }

    fn verdict(ruling: Ruling) -> Verdict {
        Verdict {
            flow: claim().flow,
            nonce: claim().nonce,
            ruling,
            from: "t2".parse().unwrap(),
            to: "a".parse().unwrap(),
            seen: None,
        }
    }

    fn attach() -> Attach {
        Attach {
            place: Label::from_random(0xe1e2_e3e4_e5e6),
            nonce: 0x0102_0304_0506_0708,
            cookie: 9,
            from: "exit".parse().unwrap(),
            to: "t1".parse().unwrap(),
        }
    }

    #[test]
    fn a_claim_and_a_verdict_have_the_bytes_that_are_written_down() {
        let mut packet = Vec::new();
        claim().write(&mut packet, tags(&[0x77]));
        let expected = [
            "14 00 f1f2f3f4f5f6",
            "0102030405060708 0000000000000009",
            "01 61 02 7432 01 62",
            "02 02 7431 02 7432",
            "04 c0000201 1152",
            "0002 aabb",
            "01 77777777777777777777777777777777",
            "00000000000000000000000000000000",
        ];
        let expected = hex::decode(expected.concat().replace(' ', "")).unwrap();
        assert_eq!(packet, expected);

        verdict(Ruling::Granted { lasts: 60 }).write(&mut packet, tags(&[0x77]));
        let expected = [
            "15 00 f1f2f3f4f5f6",
            "0102030405060708 00",
            "0000000000000000 0000003c",
            "02 7432 01 61 00",
            "01 77777777777777777777777777777777",
            "00000000000000000000000000000000",
        ];
        let expected = hex::decode(expected.concat().replace(' ', "")).unwrap();
        assert_eq!(packet, expected);

        let attached = Claim {
            next: Next::Attached,
            ..claim()
        };
        attached.write(&mut packet, tags(&[]));
        assert_eq!(Claim::read(&packet).unwrap().said, attached);
        // Before the lease, the number of its bytes, and what is kept free for tags.
        let family = packet.len() - 33 - (2 + attached.lease.len()) - 1;
        assert_eq!(packet[family], 0);
        packet[family] = 5;
        let family = Err(Malformed("family of an address"));
        assert_eq!(Claim::read(&packet), family);
    }

    #[test]
    fn an_attach_and_its_verdict_have_the_bytes_that_are_written_down() {
        let mut packet = Vec::new();
        attach().write(&mut packet, tags(&[0x77]));
        let expected = [
            "16 00 e1e2e3e4e5e6",
            "0102030405060708 0000000000000009",
            "04 65786974 02 7431",
            "01 77777777777777777777777777777777",
        ];
        let expected = hex::decode(expected.concat().replace(' ', "")).unwrap();
        let (front, zeros) = packet.split_at(expected.len());
        assert_eq!(front, expected);
        assert_eq!(zeros, vec![0; ATTACH_LEN - expected.len()]);

        let verdict = Verdict {
            flow: attach().place,
            from: attach().to,
            to: attach().from,
            seen: Some(([192, 0, 2, 9], 40_000).into()),
            ..verdict(Ruling::Prove { cookie: 9 })
        };
        verdict.write(&mut packet, tags(&[0x77]));
        let expected = [
            "15 00 e1e2e3e4e5e6",
            "0102030405060708 01",
            "0000000000000009 00000000",
            "02 7431 04 65786974 04 c0000209 9c40",
            "01 77777777777777777777777777777777",
            "00000000000000000000000000000000",
        ];
        let expected = hex::decode(expected.concat().replace(' ', "")).unwrap();
        assert_eq!(packet, expected);
        assert_eq!(Verdict::read(&packet).unwrap().said, verdict);
    }

    #[test]
    fn no_verdict_is_longer_than_the_attach_that_it_answers() {
        let longest: NodeId = "n".repeat(63).parse().unwrap();
        let mut packet = Vec::new();
        let verdict = Verdict {
            from: longest.clone(),
            to: longest.clone(),
            seen: Some(([u16::MAX; 8], 40_000).into()),
            ..verdict(Ruling::Prove { cookie: 9 })
        };
        verdict.write(&mut packet, tags(&[1, 2]));
        assert!(packet.len() <= ATTACH_LEN, "{}", packet.len());
        let attach = Attach {
            from: longest.clone(),
            to: longest,
            ..attach()
        };
        attach.write(&mut packet, tags(&[1, 2]));
        assert_eq!(packet.len(), ATTACH_LEN);
        assert_eq!(Attach::read(&packet).unwrap().said, attach);
        // Even one that says nothing wrong.
        packet.truncate(ATTACH_LEN - 1);
        assert_eq!(Attach::read(&packet), Err(CUT));
    }

    #[test]
    fn every_verdict_survives_the_wire_and_no_other_is_read() {
        let mut rulings = vec![Ruling::Granted { lasts: 7 }, Ruling::Prove { cookie: 7 }];
        rulings.extend(Refusal::ALL.map(Ruling::Refused));
        let mut packet = Vec::new();
        for ruling in rulings {
            verdict(ruling).write(&mut packet, tags(&[1]));
            assert_eq!(Verdict::read(&packet).unwrap().said, verdict(ruling));
        }
        packet[16] = 2 + Refusal::ALL.len() as u8;
        assert_eq!(Verdict::read(&packet), Err(Malformed("verdict")));
    }

    #[test]
    fn a_label_is_twelve_digits() {
        let label = Label::from_random(0xa1a2_0304_05f6);
        assert_eq!("a1a2030405f6".parse(), Ok(label));
        for text in [
            "",
            "a1a2030405",
            "a1a2030405f",
            "a1a2030405f6a7",
            "A1A2030405F6",
            "g1a2030405f6",
        ] {
            assert_eq!(text.parse::<Label>(), Err(Malformed("label")), "{text}");
        }
    }

    #[test]
    fn a_header_of_another_version_or_kind_is_none() {
        let header = Header {
            kind: Kind::Flow,
            label: Label::from_random(7),
        };
        let wire = header.to_wire();
        assert_eq!(Header::read(&wire), Some((header, &[][..])));
        for (at, byte) in [(0, 0x21), (0, 0x17), (1, 1)] {
            let mut other = wire;
            other[at] = byte;
            assert_eq!(Header::read(&other), None, "{other:?}");
        }
        assert_eq!(Header::read(&wire[..7]), None);
    }

    #[test]
    fn tags_cover_every_byte_of_a_probe_and_its_length() {
        let message = |probe: &Probe, len| {
            let read = Probe::read(&written(probe, len, &[1])).unwrap();
            read.covered
        };
        let one = probe();
        let mut seen = vec![message(&one, 0)];
        let changes: [fn(&mut Probe); 6] = [
            |probe| probe.kind = Kind::Pong,
            |probe| probe.flow = Label::from_random(1),
            |probe| probe.nonce ^= 1,
            |probe| probe.label = Label::from_random(1),
            |probe| probe.from = "gateway-2".parse().unwrap(),
            |probe| probe.to = "exi".parse().unwrap(),
        ];
        for change in changes {
            let mut other = probe();
            change(&mut other);
            seen.push(message(&other, 0));
        }
        seen.push(message(&one, 1288));
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count);
    }

    #[test]
    fn what_is_not_a_whole_probe_is_refused() {
        let packet = written(&probe(), 100, &[1, 2]);
        let end = 8 + 8 + 6 + 10 + 5 + 1 + 32;
        for len in 0..end {
            assert!(Probe::read(&packet[..len]).is_err(), "{len}");
        }
        assert!(Probe::read(&packet).is_ok());
        let mut behind = packet.clone();
        behind[99] = 1;
        assert_eq!(Probe::read(&behind), Err(Malformed("something behind it")));
        let mut many = packet;
        many[end - 33] = 3;
        assert_eq!(Probe::read(&many), Err(Malformed("too many tags")));
    }

    proptest! {
        #[test]
        fn a_probe_survives_the_wire(
            nonce: u64, label: u64, flow: u64, pong: bool, len in 0usize..1500,
            from in "[a-z][a-z0-9]{0,62}", to in "[a-z]", with in prop::collection::vec(any::<u8>(), 0..=2),
        ) {
            let probe = Probe {
                kind: if pong { Kind::Pong } else { Kind::Ping },
                flow: Label::from_random(flow),
                nonce,
                label: Label::from_random(label),
                from: from.parse().unwrap(),
                to: to.parse().unwrap(),
            };
            let mut covered = Vec::new();
            let mut packet = Vec::new();
            probe.write(&mut packet, len, |message, tags| {
                covered = message.to_vec();
                tags.extend(with.iter().map(|byte| [*byte; TAG_LEN]));
            });
            let own = HEADER_LEN + 8 + 6 + 2 + from.len() + to.len() + 1 + MAX_TAGS * TAG_LEN;
            prop_assert_eq!(packet.len(), len.max(own));
            let read = Probe::read(&packet).unwrap();
            prop_assert_eq!(&read.said, &probe);
            prop_assert_eq!(&read.covered, &covered);
            prop_assert_eq!(read.tags.len(), with.len());
        }

        #[test]
        fn a_claim_survives_the_wire(
            nonce: u64, cookie: u64, flow: u64, next: Option<SocketAddr>,
            ids in prop::collection::vec("[a-z][a-z0-9]{0,62}", 4..=6),
            lease in prop::collection::vec(any::<u8>(), 0..=MAX_PACKED_LEN),
        ) {
            let mut ids = ids.into_iter().map(|id| id.parse().unwrap());
            let claim = Claim {
                flow: Label::from_random(flow),
                nonce,
                cookie,
                from: ids.next().unwrap(),
                to: ids.next().unwrap(),
                peer: ids.next().unwrap(),
                hops: ids.collect(),
                // Flow label and scope have no meaning between hosts.
                next: next.map_or(Next::Attached, |next| Next::At(SocketAddr::new(next.ip(), next.port()))),
                lease,
            };
            let mut packet = Vec::new();
            claim.write(&mut packet, tags(&[1, 2]));
            prop_assert_eq!(Claim::read(&packet).unwrap().said, claim);
        }

        #[test]
        fn arbitrary_bytes_are_packets_or_none(mut bytes: Vec<u8>, kind in 0x10u8..0x17) {
            let _ = Probe::read(&bytes);
            if bytes.len() >= 2 {
                bytes[0] = kind;
                bytes[1] = 0;
            }
            let _ = (Claim::read(&bytes), Verdict::read(&bytes), Attach::read(&bytes));
            if let Ok(read) = Probe::read(&bytes) {
                let mut again = Vec::new();
                read.said.write(&mut again, bytes.len(), |_, tags| tags.extend(&read.tags));
                // Zeros that a shorter form would not have are all that may differ.
                let shared = bytes.len().min(again.len());
                prop_assert_eq!(&again[..shared], &bytes[..shared]);
            }
        }
    }
}
