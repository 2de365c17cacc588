//! Packets of the overlay. Integers are big-endian.
//!
//! ```text
//! header     0  kind: version in the high four bits, type in the low ones
//!            1  reserved, 0
//!            2  label of the peer (data, direct) or id of the flow; 6 bytes
//! data       8  a QUIC packet
//! probe      8  nonce; 8 bytes
//!           16  label under which the sender takes data; 6 bytes
//!           22  length of the sender's id; the id; length of the recipient's id; the id
//!               number of tags; the tags, 16 bytes each
//!               zeros up to the length that the probe proves
//! ```
//!
//! A probe's tags cover all of it but themselves and the zeros, and its length, so that a probe that was
//! cut on its way is none.

use std::fmt;

use crate::{
    id::{MAX_NAME_LEN, NodeId},
    overlay::{MAX_TAGS, TAG_LEN, Tag},
};

/// Bytes of a [`Header`].
pub const HEADER_LEN: usize = 8;

/// Longest probe without zeros, in bytes.
pub const MAX_PROBE_LEN: usize = PROBE_FIXED + 2 * (1 + MAX_NAME_LEN) + 1 + MAX_TAGS * TAG_LEN;

const PROBE_FIXED: usize = HEADER_LEN + 8 + 6;
const VERSION: u8 = 1 << 4;

/// A number of 48 bits that its giver drew at random: a peer's label, or the id of a flow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
}

impl Kind {
    fn to_wire(self) -> u8 {
        VERSION
            | match self {
                Self::Direct => 0,
                Self::Flow => 1,
                Self::Ping => 2,
                Self::Pong => 3,
            }
    }

    fn from_wire(byte: u8) -> Option<Self> {
        [Self::Direct, Self::Flow, Self::Ping, Self::Pong]
            .into_iter()
            .find(|kind| kind.to_wire() == byte)
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

/// A probe as it came: to be believed once its tags were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// What it says.
    pub probe: Probe,
    /// What its tags cover.
    pub message: Vec<u8>,
    /// Its tags.
    pub tags: Vec<Tag>,
}

/// Why a packet is not a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a probe: {0}")]
pub struct Malformed(&'static str);

impl Probe {
    /// Writes the packet into `packet`, `len` bytes long or as long as the probe itself is, with the tags
    /// that `tag` appends for what they are to cover.
    pub fn write(&self, packet: &mut Vec<u8>, len: usize, tag: impl FnOnce(&[u8], &mut Vec<Tag>)) {
        packet.clear();
        self.write_body(packet);
        // The tags' number is known only once they are made, and their number makes the length.
        let mut tags = Vec::with_capacity(MAX_TAGS);
        let total = |tags: usize| (packet.len() + 1 + tags * TAG_LEN).max(len);
        let longest = total(MAX_TAGS);
        let message = covered(packet, longest);
        tag(&message, &mut tags);
        tags.truncate(MAX_TAGS);
        packet.push(tags.len() as u8);
        for tag in tags {
            packet.extend_from_slice(&tag);
        }
        packet.resize(longest, 0);
    }

    fn write_body(&self, packet: &mut Vec<u8>) {
        let header = Header {
            kind: self.kind,
            label: self.flow,
        };
        packet.extend_from_slice(&header.to_wire());
        packet.extend_from_slice(&self.nonce.to_be_bytes());
        packet.extend_from_slice(&self.label.0);
        for id in [&self.from, &self.to] {
            packet.push(id.as_str().len() as u8);
            packet.extend_from_slice(id.as_str().as_bytes());
        }
    }

    /// Reads a packet whose header says that it is a probe. Only zeros may follow.
    pub fn read(packet: &[u8]) -> Result<Received, Malformed> {
        let (header, rest) = Header::read(packet).ok_or(Malformed("no header"))?;
        if !matches!(header.kind, Kind::Ping | Kind::Pong) {
            return Err(Malformed("another kind"));
        }
        let cut = Malformed("cut off");
        let (nonce, rest) = rest.split_first_chunk().ok_or(cut)?;
        let (label, rest) = rest.split_first_chunk().ok_or(cut)?;
        let (from, rest) = read_id(rest)?;
        let (to, rest) = read_id(rest)?;
        let body = &packet[..packet.len() - rest.len()];
        let (&count, rest) = rest.split_first().ok_or(cut)?;
        if usize::from(count) > MAX_TAGS {
            return Err(Malformed("too many tags"));
        }
        let (tags, zeros) = rest
            .split_at_checked(usize::from(count) * TAG_LEN)
            .ok_or(cut)?;
        if zeros.iter().any(|byte| *byte != 0) {
            return Err(Malformed("something behind it"));
        }
        let (tags, _) = tags.as_chunks::<TAG_LEN>();
        Ok(Received {
            probe: Self {
                kind: header.kind,
                flow: header.label,
                nonce: u64::from_be_bytes(*nonce),
                label: Label(*label),
                from,
                to,
            },
            message: covered(body, packet.len()),
            tags: tags.to_vec(),
        })
    }
}

/// What the tags of a probe cover: its body and the length of the whole packet.
fn covered(body: &[u8], len: usize) -> Vec<u8> {
    let len = u16::try_from(len).unwrap_or(u16::MAX);
    [body, &len.to_be_bytes()].concat()
}

fn read_id(bytes: &[u8]) -> Result<(NodeId, &[u8]), Malformed> {
    let cut = Malformed("cut off");
    let (&len, rest) = bytes.split_first().ok_or(cut)?;
    let (id, rest) = rest.split_at_checked(usize::from(len)).ok_or(cut)?;
    let id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
    Ok((id.ok_or(Malformed("no node id"))?, rest))
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

    #[test]
    fn a_header_of_another_version_or_kind_is_none() {
        let header = Header {
            kind: Kind::Flow,
            label: Label::from_random(7),
        };
        let wire = header.to_wire();
        assert_eq!(Header::read(&wire), Some((header, &[][..])));
        for (at, byte) in [(0, 0x21), (0, 0x14), (1, 1)] {
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
            read.message
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
            prop_assert!(packet.len() >= len && packet.len() <= len.max(MAX_PROBE_LEN));
            let read = Probe::read(&packet).unwrap();
            prop_assert_eq!(&read.probe, &probe);
            prop_assert_eq!(&read.message, &covered);
            prop_assert_eq!(read.tags.len(), with.len());
        }

        #[test]
        fn arbitrary_bytes_are_packets_or_none(mut bytes: Vec<u8>, kind in 0x10u8..0x14) {
            let _ = Probe::read(&bytes);
            if bytes.len() >= 2 {
                bytes[0] = kind;
                bytes[1] = 0;
            }
            if let Ok(read) = Probe::read(&bytes) {
                let mut again = Vec::new();
                read.probe.write(&mut again, bytes.len(), |_, tags| tags.extend(&read.tags));
                // Zeros that a shorter form would not have are all that may differ.
                let shared = bytes.len().min(again.len());
                prop_assert_eq!(&again[..shared], &bytes[..shared]);
            }
        }
    }
}
