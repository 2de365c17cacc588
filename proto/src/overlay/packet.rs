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
mod tests;
