//! Whatever a node sends as a request for a certificate, it is read as one by the P-256 key that signed it, or it is none.
#![no_main]

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use libfuzzer_sys::fuzz_target;
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};

// The file itself, so that the target builds without all that has to do with certificates.
#[path = "../../credentials/src/cert/authority/request.rs"]
mod request;

use request::{MAX_REQUEST_LEN, Request};

static KEY: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().expect("a P-256 key"));
/// AlgorithmIdentifier of ecdsa-with-SHA256 (RFC 5758, section 3.2).
const ECDSA_WITH_SHA256: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 3;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, bytes)) = data.split_first() else {
        return;
    };
    if kind == 0 {
        let is_request = read(bytes).is_some();
        assert!(!is_request || bytes.len() <= MAX_REQUEST_LEN);
        return;
    }
    // What stands before and behind the key, signed: a signature that does not hold hides all that is behind it.
    let Some((&length, rest)) = bytes.split_first() else {
        return;
    };
    let (subject, attributes) = rest.split_at(rest.len().min(length.into()));
    let key = KEY.subject_public_key_info();
    let info = der(SEQUENCE, &[&[2, 1, 0], subject, &key, attributes]);
    let signature = KEY.sign(&info).expect("a signature");
    let signature = der(BIT_STRING, &[&[0], &signature]);
    let request = der(SEQUENCE, &[&info, ECDSA_WITH_SHA256, &signature]);
    if let Some(read) = read(&request) {
        assert_eq!(read.key().der_bytes(), KEY.der_bytes());
    }
});

/// Reads a request both ways.
fn read(der: &[u8]) -> Option<Request> {
    let read = Request::read(der).ok();
    let from_text = Request::from_base64(&STANDARD.encode(der)).ok();
    assert_eq!(read.is_some(), from_text.is_some());
    for request in [&read, &from_text].into_iter().flatten() {
        // A point of P-256, uncompressed.
        let point = request.key().der_bytes();
        assert!(point.len() == 65 && point[0] == 4);
    }
    read
}

/// An element of DER.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = u32::try_from(content.len()).expect("an input's length");
    let mut element = vec![tag];
    match length.to_be_bytes() {
        [0, 0, 0, byte @ 0..=127] => element.push(byte),
        [0, 0, 0, byte] => element.extend([0x81, byte]),
        [0, 0, high, low] => element.extend([0x82, high, low]),
        all => element.extend([0x84, all[0], all[1], all[2], all[3]]),
    }
    element.extend(content);
    element
}
