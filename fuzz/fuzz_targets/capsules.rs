//! However the content of a CONNECT stream is cut, its capsules are the same, and they survive our
//! encoder; whether flow control is known changes nothing about the others; and no more is held than
//! the longest capsule.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wavry_proto::{
    session::MAX_CLOSE_REASON,
    webtransport::capsule::{Capsule, Decoder, Flow, MAX_DATAGRAM},
};

/// Most bytes of a capsule's type and length.
const HEADER: usize = 16;

/// The capsules, and whether all was well.
#[derive(Debug, PartialEq)]
struct Read {
    capsules: Vec<Capsule>,
    sound: bool,
    at_boundary: bool,
}

fn read<'a>(flow: Flow, pieces: impl IntoIterator<Item = &'a [u8]>) -> Read {
    let mut decoder = Decoder::new(flow);
    let mut capsules = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(capsule)) => capsules.push(capsule),
                Ok(None) => break,
                Err(_) => {
                    return Read {
                        capsules,
                        sound: false,
                        at_boundary: false,
                    };
                }
            }
        }
        assert!(decoder.held() <= MAX_DATAGRAM + HEADER);
    }
    Read {
        capsules,
        sound: true,
        at_boundary: decoder.at_boundary(),
    }
}

fn is_flow_control(capsule: &Capsule) -> bool {
    !matches!(
        capsule,
        Capsule::Close(_) | Capsule::Drain | Capsule::Datagram(_)
    )
}

fuzz_target!(|data: &[u8]| {
    let Some((&cut, content)) = data.split_first() else {
        return;
    };
    let piece = usize::from(cut) % 16 + 1;
    let [unknown, ignored, enabled] = [Flow::Unknown, Flow::Ignored, Flow::Enabled].map(|flow| {
        let whole = read(flow, [content]);
        assert_eq!(whole, read(flow, content.chunks(piece)));
        whole
    });
    for silent in [&unknown, &ignored] {
        assert!(!silent.capsules.iter().any(is_flow_control));
    }
    if enabled.sound {
        let rest: Vec<_> = enabled
            .capsules
            .iter()
            .filter(|c| !is_flow_control(c))
            .collect();
        assert_eq!(rest, unknown.capsules.iter().collect::<Vec<_>>());
        assert_eq!(unknown, ignored);
    }

    let mut again = Vec::new();
    for capsule in &enabled.capsules {
        if let Capsule::Close(close) = capsule {
            assert!(close.reason.len() <= MAX_CLOSE_REASON);
        }
        capsule.encode(&mut again);
    }
    let read = read(Flow::Enabled, [&again[..]]);
    assert_eq!(read.capsules, enabled.capsules);
    assert!(read.sound && read.at_boundary);
});
