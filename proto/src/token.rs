//! The outside of a PASETO token: its grammar, its purpose, its claims. No cryptography is here.
//!
//! A token is `v4.public.` + base64url(payload ‖ signature) + `.` + base64url(footer), without
//! padding (PASETO Version 4). Its footer is `{"kid":"k4.pid…"}`, byte for byte: it names the key and
//! says nothing else, so nothing of an unverified token is ever parsed as JSON.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    control::{Role, Roster},
    id::{ClusterName, Epoch, NodeId, ServiceName},
    overlay::packet::Label,
    placement::Placement,
};

/// Longest token accepted, in bytes; checked before anything is parsed.
pub const MAX_TOKEN_LEN: usize = 8 * 1024;
/// Longest signed roster accepted, in bytes: some 10,000 nodes with their keys and addresses.
pub const MAX_ROSTER_LEN: usize = 8 * 1024 * 1024;
/// Longest that a registration or session token may hold, in seconds: 7 days. It bounds how long a
/// key that signs no more is still accepted, and how long a revocation is remembered.
pub const MAX_LIFETIME: u64 = 7 * 24 * 3600;
/// Longest that a node's own token may hold, in seconds.
pub const MAX_NODE_LIFETIME: u64 = 60;
/// Longest that an operator's token may hold, in seconds: half a day's work.
pub const MAX_OPERATOR_LIFETIME: u64 = 12 * 3600;
/// Longest that a lease may hold, in seconds.
pub const MAX_LEASE_LIFETIME: u64 = 3600;
/// Longest lease, in bytes, as text; [packed](pack) it is a quarter shorter.
pub const MAX_LEASE_LEN: usize = 1024;
/// Clocks may differ by this many seconds on `nbf` and `iat`. There is no leeway on `exp`.
pub const CLOCK_SKEW: u64 = 30;

const HEADER: &str = "v4.public.";
const SIGNATURE_LEN: usize = 64;
const KEY_ID_HEADER: &str = "k4.pid.";
const KEY_ID_LEN: usize = 33;
const KEY_ID_TEXT_LEN: usize = 44;
const FOOTER_START: &[u8] = b"{\"kid\":\"";
const FOOTER_END: &[u8] = b"\"}";
const FOOTER_LEN: usize =
    FOOTER_START.len() + KEY_ID_HEADER.len() + KEY_ID_TEXT_LEN + FOOTER_END.len();

/// The id of a public key: PASERK `k4.pid`, a hash of the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; KEY_ID_LEN]);

/// What an unverified token shows: which key is said to have signed it. The payload stays out of
/// reach; it is only to be had from a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unverified {
    /// The key that the footer names.
    pub key: KeyId,
}

/// Not a token of the grammar above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a v4.public token with a footer that names a key")]
pub struct Malformed;

/// Reads a token's outside. Allocates no more than the token is long; the caller bounds that.
pub fn parse(token: &str) -> Result<Unverified, Malformed> {
    let rest = token.strip_prefix(HEADER).ok_or(Malformed)?;
    let (body, footer) = rest.split_once('.').ok_or(Malformed)?;
    let body = URL_SAFE_NO_PAD.decode(body).map_err(|_| Malformed)?;
    if body.len() <= SIGNATURE_LEN {
        return Err(Malformed);
    }
    // Room for whole groups of three bytes, as the decoder wants it.
    let mut buffer = [0; FOOTER_LEN.next_multiple_of(3)];
    let length = URL_SAFE_NO_PAD
        .decode_slice(footer, &mut buffer)
        .map_err(|_| Malformed)?;
    let key = buffer[..length]
        .strip_prefix(FOOTER_START)
        .and_then(|rest| rest.strip_suffix(FOOTER_END))
        .and_then(|key| std::str::from_utf8(key).ok())
        .ok_or(Malformed)?;
    Ok(Unverified { key: key.parse()? })
}

/// A token as bytes, for where there is little room: the id of its key, then payload and signature.
pub fn pack(token: &str) -> Result<Vec<u8>, Malformed> {
    let Unverified { key } = parse(token)?;
    let rest = token.strip_prefix(HEADER).ok_or(Malformed)?;
    let (body, _) = rest.split_once('.').ok_or(Malformed)?;
    let mut packed = key.0.to_vec();
    let decoded = URL_SAFE_NO_PAD.decode_vec(body, &mut packed);
    decoded.map_err(|_| Malformed)?;
    Ok(packed)
}

/// The token that was [packed](pack), and the key that it names.
pub fn unpack(packed: &[u8]) -> Result<(KeyId, String), Malformed> {
    let (key, body) = packed.split_first_chunk().ok_or(Malformed)?;
    let key = KeyId(*key);
    if body.len() <= SIGNATURE_LEN {
        return Err(Malformed);
    }
    let body = URL_SAFE_NO_PAD.encode(body);
    let footer = URL_SAFE_NO_PAD.encode(footer(&key));
    Ok((key, format!("{HEADER}{body}.{footer}")))
}

/// The footer that names `key`.
pub fn footer(key: &KeyId) -> String {
    format!("{{\"kid\":\"{key}\"}}")
}

/// What a token's signature covers and the token does not carry: the PAE encoding (PASETO, Common
/// implementation details, "PAE definition") of purpose, cluster, audience and binding — their
/// number, then each with its length before it, all as 64-bit little endian. No two different
/// quadruples give the same bytes.
pub fn implicit_assertion(
    purpose: &str,
    cluster: &ClusterName,
    audience: &str,
    binding: &[u8],
) -> Vec<u8> {
    let parts = [
        purpose.as_bytes(),
        cluster.as_str().as_bytes(),
        audience.as_bytes(),
        binding,
    ];
    let mut assertion = (parts.len() as u64).to_le_bytes().to_vec();
    for part in parts {
        assertion.extend_from_slice(&(part.len() as u64).to_le_bytes());
        assertion.extend_from_slice(part);
    }
    assertion
}

impl FromStr for KeyId {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let id = text.strip_prefix(KEY_ID_HEADER).ok_or(Malformed)?;
        let mut bytes = [0; KEY_ID_LEN];
        match URL_SAFE_NO_PAD.decode_slice(id, &mut bytes) {
            Ok(KEY_ID_LEN) => Ok(Self(bytes)),
            _ => Err(Malformed),
        }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KEY_ID_HEADER}{}", URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// When a token holds, in seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    /// Issued at.
    pub iat: u64,
    /// Not before.
    pub nbf: u64,
    /// Expires; the token is refused from this second on.
    pub exp: u64,
}

/// Why a token does not hold now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotValid {
    /// It expires before it begins.
    #[error("expires before it begins")]
    Never,
    /// It begins, or was issued, later than now and [`CLOCK_SKEW`].
    #[error("not valid yet")]
    NotYet,
    /// It has expired.
    #[error("expired")]
    Expired,
    /// It holds longer than tokens of its purpose may.
    #[error("holds for too long")]
    TooLasting,
}

impl Validity {
    /// Whether it holds at `now`, in seconds since the Unix epoch.
    pub fn check(&self, now: u64) -> Result<(), NotValid> {
        let latest = now.saturating_add(CLOCK_SKEW);
        if self.exp <= self.nbf {
            Err(NotValid::Never)
        } else if now >= self.exp {
            Err(NotValid::Expired)
        } else if self.nbf > latest || self.iat > latest {
            Err(NotValid::NotYet)
        } else {
            Ok(())
        }
    }

    /// Whether it lasts no longer than `seconds`, from being issued to expiring.
    pub fn lasts(&self, seconds: u64) -> Result<(), NotValid> {
        match self.exp.saturating_sub(self.iat) <= seconds {
            true => Ok(()),
            false => Err(NotValid::TooLasting),
        }
    }
}

/// What a token says. Each purpose is its own type, so one cannot be taken for another.
pub trait Claims: Serialize + DeserializeOwned {
    /// Enters the implicit assertion: a token of one purpose does not verify as another.
    const PURPOSE: &'static str;
    /// Longest token of this purpose that is accepted, in bytes.
    const MAX_LEN: usize = MAX_TOKEN_LEN;
    /// Longest that a token of this purpose may hold, in seconds; one that claims more is refused.
    const MAX_LIFETIME: u64 = MAX_LIFETIME;
    /// When the token holds; `None` for messages that have no expiry of their own.
    fn validity(&self) -> Option<&Validity>;
}

/// Lets a node register, once. Audience: `master`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Id of this token; accepted once.
    pub jti: String,
    /// Id the node will have.
    pub sub: NodeId,
    /// What the node may be.
    pub role: Role,
    /// Services a relay may announce.
    pub services: Vec<ServiceName>,
    /// Where the node is, and how much a relay is to take.
    #[serde(default, skip_serializing_if = "Placement::is_default")]
    pub placement: Placement,
    /// When it holds.
    #[serde(flatten)]
    pub validity: Validity,
}

impl Claims for Registration {
    const PURPOSE: &'static str = "registration";
    fn validity(&self) -> Option<&Validity> {
        Some(&self.validity)
    }
}

/// Lets a client open sessions to one service. Audience: the service's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Id of this token.
    pub jti: String,
    /// Who the client is, in the service owner's words.
    pub sub: String,
    /// Which of the client's sessions it is for, in the service owner's words. A newer token with
    /// the same one extends the sessions that were opened with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sid: Option<String>,
    /// Further claims, handed to the exit relay as they are.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub claims: serde_json::Map<String, serde_json::Value>,
    /// When it holds.
    #[serde(flatten)]
    pub validity: Validity,
}

impl Claims for Session {
    const PURPOSE: &'static str = "session";
    fn validity(&self) -> Option<&Validity> {
        Some(&self.validity)
    }
}

/// A node's own word to the master, signed with its identity and bound to the TLS connection.
/// Audience: `master`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRequest {
    /// The node that speaks.
    pub sub: NodeId,
    /// When it holds: a minute at most.
    #[serde(flatten)]
    pub validity: Validity,
}

impl Claims for NodeRequest {
    const PURPOSE: &'static str = "node";
    const MAX_LIFETIME: u64 = MAX_NODE_LIFETIME;
    fn validity(&self) -> Option<&Validity> {
        Some(&self.validity)
    }
}

/// What an operator may do. Each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperatorRole {
    /// Look.
    Viewer,
    /// Change services, issue tokens, revoke.
    Operator,
    /// Rotate keys.
    Admin,
}

impl OperatorRole {
    /// All of them, each with the rights of those before.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// The role as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// Lets a person or program work on the cluster through the master. Audience: `master`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// Id of this token.
    pub jti: String,
    /// Who it is; the audit log names it as the actor.
    pub sub: String,
    /// What it may do.
    pub role: OperatorRole,
    /// When it holds: half a day at most.
    #[serde(flatten)]
    pub validity: Validity,
}

impl Claims for Operator {
    const PURPOSE: &'static str = "operator";
    const MAX_LIFETIME: u64 = MAX_OPERATOR_LIFETIME;
    fn validity(&self) -> Option<&Validity> {
        Some(&self.validity)
    }
}

/// Has transit relays carry one flow. Audience: `transit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The claimant: one end of the flow. It shows by the tags of its claim that it is this node.
    pub sub: NodeId,
    /// The other end.
    pub peer: NodeId,
    /// The relays on the way, from the claimant's side.
    pub hops: Vec<NodeId>,
    /// The flow.
    pub flow: Label,
    /// Bits that it may carry in a second, both ways together.
    pub bps: u64,
    /// Packets that it may carry in a second, both ways together.
    pub pps: u64,
    /// The epoch of the roster under which it was signed.
    pub epoch: Epoch,
    /// When it holds: an hour at most.
    #[serde(flatten)]
    pub validity: Validity,
}

impl Claims for Lease {
    const PURPOSE: &'static str = "lease";
    const MAX_LEN: usize = MAX_LEASE_LEN;
    const MAX_LIFETIME: u64 = MAX_LEASE_LIFETIME;
    fn validity(&self) -> Option<&Validity> {
        Some(&self.validity)
    }
}

/// What a key that signs says of the one that takes its place: who trusts the one trusts the other, so
/// that a node finds its way to the present key from whichever it knew. Audience: `nodes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Succession {
    /// The key, as PASERK `k4.public`.
    pub next: String,
}

impl Claims for Succession {
    const PURPOSE: &'static str = "succession";
    fn validity(&self) -> Option<&Validity> {
        None
    }
}

/// The roster is signed like a token. Audience: `nodes`.
impl Claims for Roster {
    const PURPOSE: &'static str = "roster";
    const MAX_LEN: usize = MAX_ROSTER_LEN;
    fn validity(&self) -> Option<&Validity> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: &str = "k4.pid.9ShR3xc8-qVJ_di0tc9nx0IDIqbatdeM2mqLFBJsKRHs";

    fn token(payload: &[u8], footer: &str) -> String {
        let mut body = payload.to_vec();
        body.extend_from_slice(&[7; SIGNATURE_LEN]);
        let body = URL_SAFE_NO_PAD.encode(body);
        format!("v4.public.{body}.{}", URL_SAFE_NO_PAD.encode(footer))
    }

    #[test]
    fn a_token_shows_the_key_its_footer_names() {
        let key: KeyId = KEY.parse().unwrap();
        let token = token(b"{}", &footer(&key));
        assert_eq!(parse(&token), Ok(Unverified { key }));
        assert_eq!(key.to_string(), KEY);
    }

    #[test]
    fn a_token_is_the_same_once_it_was_packed() {
        let key: KeyId = KEY.parse().unwrap();
        let token = token(b"{\"a\":1}", &footer(&key));
        let packed = pack(&token).unwrap();
        assert_eq!(packed.len(), KEY_ID_LEN + 7 + SIGNATURE_LEN);
        assert_eq!(unpack(&packed), Ok((key, token)));
        for len in [0, KEY_ID_LEN, KEY_ID_LEN + SIGNATURE_LEN] {
            assert_eq!(unpack(&packed[..len]), Err(Malformed));
        }
    }

    #[test]
    fn anything_but_the_one_footer_is_malformed() {
        let good = format!("{{\"kid\":\"{KEY}\"}}");
        assert!(parse(&token(b"{}", &good)).is_ok());
        for footer in [
            String::new(),
            KEY.to_owned(),
            format!("{{ \"kid\":\"{KEY}\"}}"),
            format!("{{\"kid\":\"{KEY}\"}}\n"),
            format!("{{\"kid\":\"{KEY}\",\"a\":1}}"),
            format!("{{\"KID\":\"{KEY}\"}}"),
            format!("{{\"kid\":\"{}\"}}", &KEY[..KEY.len() - 1]),
            format!("{{\"kid\":\"{KEY}A\"}}"),
            format!("{{\"kid\":\"{}\"}}", KEY.replace("pid", "sid")),
            "a".repeat(10_000),
        ] {
            assert_eq!(parse(&token(b"{}", &footer)), Err(Malformed), "{footer}");
        }
    }

    #[test]
    fn other_headers_missing_parts_and_loose_base64_are_malformed() {
        let good = token(b"{}", &footer(&KEY.parse().unwrap()));
        for bad in [
            String::new(),
            "v4.public.".to_owned(),
            good.replace("v4.public", "v4.local"),
            good.replace("v4.public", "v2.public"),
            good.rsplit_once('.').unwrap().0.to_owned(),
            format!("{good}."),
            format!("{good}="),
            format!("{good}.e30"),
            format!(" {good}"),
            token(b"", &footer(&KEY.parse().unwrap())),
        ] {
            assert_eq!(parse(&bad), Err(Malformed), "{bad}");
        }
    }

    #[test]
    fn validity_has_skew_at_its_start_and_none_at_its_end() {
        let validity = Validity {
            iat: 1000,
            nbf: 1000,
            exp: 1060,
        };
        assert_eq!(validity.check(969), Err(NotValid::NotYet));
        assert_eq!(validity.check(970), Ok(()));
        assert_eq!(validity.check(1059), Ok(()));
        assert_eq!(validity.check(1060), Err(NotValid::Expired));
        let issued_later = Validity {
            iat: 1031,
            ..validity
        };
        assert_eq!(issued_later.check(1000), Err(NotValid::NotYet));
        let never = Validity {
            exp: 1000,
            ..validity
        };
        assert_eq!(never.check(999), Err(NotValid::Never));
    }

    #[test]
    fn a_token_lasts_from_being_issued_to_expiring() {
        let validity = Validity {
            iat: 1000,
            nbf: 1030,
            exp: 1060,
        };
        assert_eq!(validity.lasts(60), Ok(()));
        assert_eq!(validity.lasts(59), Err(NotValid::TooLasting));
    }

    #[test]
    fn the_implicit_assertion_is_the_pae_of_its_four_parts() {
        let cluster = "c1".parse().unwrap();
        assert_eq!(
            implicit_assertion("p", &cluster, "", b"xyz"),
            b"\x04\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0p\x02\0\0\0\0\0\0\0c1\
              \0\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0xyz"
        );
    }

    #[test]
    fn claims_keep_their_validity_beside_them() {
        let text = r#"{"jti":"1","sub":"ann","claims":{"a":1},"iat":1,"nbf":2,"exp":3}"#;
        let session: Session = serde_json::from_str(text).unwrap();
        assert_eq!((session.validity.exp, &session.sid), (3, &None));
        assert_eq!(serde_json::to_string(&session).unwrap(), text);
        let text = r#"{"jti":"1","sub":"ann","sid":"tab 1","iat":1,"nbf":2,"exp":3}"#;
        let session: Session = serde_json::from_str(text).unwrap();
        assert_eq!(session.sid.as_deref(), Some("tab 1"));
        assert_eq!(serde_json::to_string(&session).unwrap(), text);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_packed_tokens_or_none(bytes: Vec<u8>) {
            if let Ok((key, token)) = unpack(&bytes) {
                prop_assert_eq!(parse(&token), Ok(Unverified { key }));
                prop_assert_eq!(pack(&token), Ok(bytes));
            }
        }

        #[test]
        fn a_key_id_survives_text_and_footer(bytes: [u8; KEY_ID_LEN], payload in prop::collection::vec(any::<u8>(), 1..100)) {
            let key = KeyId(bytes);
            prop_assert_eq!(key.to_string().parse::<KeyId>(), Ok(key));
            prop_assert_eq!(parse(&token(&payload, &footer(&key))), Ok(Unverified { key }));
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".*") {
            let _ = parse(&text);
            let _ = parse(&format!("v4.public.{text}"));
            let _ = text.parse::<KeyId>();
        }

        #[test]
        fn a_token_with_one_character_changed_keeps_its_key_or_is_malformed(at in 0usize..200, with in any::<char>()) {
            let key: KeyId = KEY.parse().unwrap();
            let mut text: Vec<char> = token(b"{\"a\":1}", &footer(&key)).chars().collect();
            let footer_at = text.iter().rposition(|c| *c == '.').unwrap();
            let at = at % footer_at;
            text[at] = with;
            if let Ok(found) = parse(&text.into_iter().collect::<String>()) {
                prop_assert_eq!(found.key, key);
            }
        }

        #[test]
        fn validity_never_panics(iat: u64, nbf: u64, exp: u64, now: u64) {
            let validity = Validity { iat, nbf, exp };
            let _ = (validity.check(now), validity.lasts(now));
        }
    }
}
