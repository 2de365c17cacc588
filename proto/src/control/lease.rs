//! What a node asks of the master to have flows of its own carried: a lease for each.

use serde::{Deserialize, Serialize};

use crate::{id::NodeId, overlay::packet::Label};

/// `POST`: asks for leases.
pub const LEASES: &str = "/v1/leases";
/// Most of them at once.
pub const MAX_LEASES: usize = 64;
/// Longest answer, in bytes: each lease is a token of [`MAX_LEASE_LEN`](crate::token::MAX_LEASE_LEN) at most.
pub const MAX_LEASES_LEN: usize = MAX_LEASES * (crate::token::MAX_LEASE_LEN + 128) + 128;

/// What a flow is to be: between whom, and through which relays. The node that asks is at one end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Way {
    /// The flow's id, drawn at random by the node that asks.
    pub flow: Label,
    /// The other end.
    pub peer: NodeId,
    /// The relays on the way to it, first to last.
    pub hops: Vec<NodeId>,
}

/// Body of [`LEASES`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskLeases {
    /// At most [`MAX_LEASES`].
    pub ways: Vec<Way>,
}

/// Answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leases {
    /// One for each that was asked for, in the same order.
    pub leases: Vec<Answer>,
}

/// What the master says to one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The lease, a token.
    Lease(String),
    /// There is none.
    Refused(NoLease),
}

/// Why there is no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoLease {
    /// A node is not registered, or a relay forwards nothing now.
    NotListed,
    /// There are no relays or too many, or a node comes twice.
    NotAWay,
}

impl NoLease {
    /// The reason as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotListed => "not_listed",
            Self::NotAWay => "not_a_way",
        }
    }
}

/// What leases of a node's flows are to say, and which of them hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Terms {
    /// Those that were signed under a roster of an older epoch hold no more; 0 where none was revoked.
    #[serde(skip_serializing_if = "is_zero")]
    pub since: u64,
    /// Bits of one flow in a second, where it is not what the master's configuration says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_second: Option<u64>,
    /// Packets of one flow in a second, where it is not what the master's configuration says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets_per_second: Option<u64>,
}

impl Terms {
    /// Whether they are what a node has that nothing was said of.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_have_the_text_that_is_written_down() {
        let ask = AskLeases {
            ways: vec![Way {
                flow: Label::from_random(0xa1a2_a3a4_a5a6),
                peer: "exit".parse().unwrap(),
                hops: vec!["t1".parse().unwrap()],
            }],
        };
        let text = r#"{"ways":[{"flow":"a1a2a3a4a5a6","peer":"exit","hops":["t1"]}]}"#;
        assert_eq!(serde_json::to_string(&ask).unwrap(), text);
        assert_eq!(serde_json::from_str::<AskLeases>(text).unwrap(), ask);
        let answer = Leases {
            leases: vec![
                Answer::Lease("v4.public.x".to_owned()),
                Answer::Refused(NoLease::NotListed),
            ],
        };
        let text = r#"{"leases":[{"lease":"v4.public.x"},{"refused":"not_listed"}]}"#;
        assert_eq!(serde_json::to_string(&answer).unwrap(), text);
        assert_eq!(serde_json::from_str::<Leases>(text).unwrap(), answer);
        assert_eq!(serde_json::to_string(&Terms::default()).unwrap(), "{}");
    }

    #[test]
    fn the_largest_answer_is_within_its_bound() {
        let longest = "x".repeat(crate::token::MAX_LEASE_LEN);
        let answer = Leases {
            leases: vec![Answer::Lease(longest); MAX_LEASES],
        };
        assert!(serde_json::to_vec(&answer).unwrap().len() <= MAX_LEASES_LEN);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_messages_or_errors(bytes: Vec<u8>) {
            let _ = serde_json::from_slice::<AskLeases>(&bytes);
            let _ = serde_json::from_slice::<Leases>(&bytes);
        }
    }
}
