//! A peer whose QUIC closes a connection by itself, because of what came over it (RFC 9000, section 11.1): no
//! application says how or why.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustls::{
    Error, SupportedCipherSuite, Tls13CipherSuite,
    crypto::{
        CipherSuiteCommon, CryptoProvider, aws_lc_rs,
        cipher::{AeadKey, Iv},
    },
    quic::{Algorithm, HeaderProtectionKey, PacketKey, Tag},
};
use tokio::time::timeout;
use wavry_transport::{
    mesh::{self, Endpoint, Limits, Session},
    mirror::{Options, Traffic, mirror},
    session::{Close, Closed, Session as _, close_code},
};

use crate::{
    nodes::{Cluster, Key, id, session},
    transit::{DEADLINE, question_and_answer},
};

/// No frame has this type (RFC 9000, section 12.4).
const NO_FRAME: u8 = 0x3f;

/// Packet protection that puts what is no frame into the next packet, when it is told to.
struct Spoiling {
    inner: &'static dyn Algorithm,
    next: Arc<AtomicBool>,
}

struct SpoilingKey {
    inner: Box<dyn PacketKey>,
    next: Arc<AtomicBool>,
}

impl Algorithm for Spoiling {
    fn packet_key(&self, key: AeadKey, iv: Iv) -> Box<dyn PacketKey> {
        Box::new(SpoilingKey {
            inner: self.inner.packet_key(key, iv),
            next: self.next.clone(),
        })
    }

    fn header_protection_key(&self, key: AeadKey) -> Box<dyn HeaderProtectionKey> {
        self.inner.header_protection_key(key)
    }

    fn aead_key_len(&self) -> usize {
        self.inner.aead_key_len()
    }
}

impl PacketKey for SpoilingKey {
    fn encrypt_in_place(
        &self,
        packet_number: u64,
        header: &[u8],
        payload: &mut [u8],
    ) -> Result<Tag, Error> {
        // With a short header: the handshake is done.
        let is_short = header.first().is_some_and(|first| first & 0x80 == 0);
        if is_short && self.next.swap(false, Ordering::SeqCst) {
            payload[0] = NO_FRAME;
        }
        self.inner.encrypt_in_place(packet_number, header, payload)
    }

    fn decrypt_in_place<'a>(
        &self,
        packet_number: u64,
        header: &[u8],
        payload: &'a mut [u8],
    ) -> Result<&'a [u8], Error> {
        self.inner.decrypt_in_place(packet_number, header, payload)
    }

    fn tag_len(&self) -> usize {
        self.inner.tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.inner.confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.inner.integrity_limit()
    }
}

/// What spoils a packet when `next` is set.
fn spoiling(next: &Arc<AtomicBool>) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    for suite in &mut provider.cipher_suites {
        let Some(tls13) = suite.tls13() else { continue };
        let Some(inner) = tls13.quic else { continue };
        let next = next.clone();
        // They live as long as the test's process.
        let quic: &'static Spoiling = Box::leak(Box::new(Spoiling { inner, next }));
        let spoiled = Tls13CipherSuite {
            common: CipherSuiteCommon { ..tls13.common },
            hkdf_provider: tls13.hkdf_provider,
            aead_alg: tls13.aead_alg,
            quic: Some(quic),
        };
        *suite = SupportedCipherSuite::Tls13(Box::leak(Box::new(spoiled)));
    }
    provider
}

/// The numbers of its connections with `right`.
async fn to_right(middle: &Endpoint) -> BTreeSet<u64> {
    let told = middle.viewer().mesh(Some(&id("right")), 10).await.unwrap();
    let connections = told.peers.iter().flat_map(|peer| &peer.connections);
    connections.map(|connection| connection.number).collect()
}

/// How the session ended.
async fn lost(session: &Session) -> String {
    match timeout(DEADLINE, session.closed()).await.unwrap() {
        Closed::Lost(how) => how,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_the_peers_quic_closes_takes_its_sessions_with_it_and_is_replaced() {
    let cluster = Cluster::new();
    let (left, right) = (cluster.node("left"), cluster.node("right"));
    let next = Arc::default();
    let limits = Limits {
        shards: 2,
        ..Limits::default()
    };
    let key = Arc::new(Key::generate());
    let config = cluster.config_dialling_by("middle", &key, limits, spoiling(&next));
    let socket = mesh::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let middle = Endpoint::new(socket, config).unwrap();
    cluster.list("middle", key.public, middle.local_addr());

    // As a gateway does it, which stands between a client and an exit; each session has a connection of its own.
    let mut carried = Vec::new();
    for count in 1..=2 {
        let (client, from) = session(&left, "middle", &middle).await;
        let (to, exit) = session(&middle, "right", &right).await;
        let to = Arc::new(to);
        let further = to.clone();
        let carrying = tokio::spawn(async move {
            let options = Options {
                idle_timeout: Duration::from_secs(600),
                a_lost: Close::new(close_code::CLIENT_LOST, "client lost"),
                b_lost: Close::new(close_code::RELAY_LOST, "relay lost"),
            };
            mirror(&from, &*further, &options, &Arc::<Traffic>::default()).await;
        });
        question_and_answer(&client, &exit).await;
        assert_eq!(to_right(&middle).await.len(), count);
        carried.push((client, to, exit, carrying));
    }
    let before = to_right(&middle).await;

    // One of the two sends the next packet, as soon as it keeps itself alive.
    next.store(true, Ordering::SeqCst);
    let died = {
        let [(_, one, ..), (_, other, ..)] = &carried[..] else {
            unreachable!("there are two");
        };
        let first = async {
            tokio::select! {
                _ = one.closed() => 0,
                _ = other.closed() => 1,
            }
        };
        timeout(DEADLINE, first).await.unwrap()
    };
    let (client, to, exit, carrying) = carried.remove(died);
    let how = lost(&to).await;
    println!("here: {how}; there: {}", lost(&exit).await);
    assert!(how.starts_with("aborted by peer"), "{how}");
    match timeout(DEADLINE, client.closed()).await.unwrap() {
        Closed::Peer(close) => assert_eq!(close.code, close_code::RELAY_LOST),
        other => panic!("{other}"),
    }
    carrying.await.unwrap();

    // The other session goes on, and new ones have a connection in place of the one that is gone.
    let (client, _to, exit, _carrying) = &carried[0];
    question_and_answer(client, exit).await;
    let replaced = async {
        let mut more = Vec::new();
        while to_right(&middle).await.is_subset(&before) {
            more.push(session(&middle, "right", &right).await);
        }
        for (here, there) in &more {
            question_and_answer(here, there).await;
        }
    };
    timeout(DEADLINE, replaced).await.unwrap();
    question_and_answer(client, exit).await;
}
