use base64::{Engine as _, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SigningKey as _};
use wavry_proto::control::Role;
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

use super::*;
use crate::cert::{
    Authorities, NotVouchedFor, Store, Trust, client_config, handshake::shake_hands, renewal,
    to_pem,
};

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::now()
}

fn authority() -> Authority {
    let cluster = "ours".parse().unwrap();
    let made = Authority::generate(&cluster, Validity::from(now(), 1000 * HOUR)).unwrap();
    Authority::open(&made.certificate, &made.key).unwrap()
}

fn member(node: &str) -> Member {
    Member {
        cluster: "ours".parse().unwrap(),
        role: Role::Relay,
        node: node.parse().unwrap(),
        registration: 7,
    }
}

fn request(key: &KeyPair) -> Vec<u8> {
    let params = CertificateParams::new(["master.example".to_owned()]).unwrap();
    params.serialize_request(key).unwrap().der().to_vec()
}

/// What of a request is signed (CertificationRequestInfo).
fn info(request: &[u8]) -> &[u8] {
    let (_, request) = X509CertificationRequest::from_der(request).unwrap();
    request.certification_request_info.raw
}

/// An element of DER.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let header = match length {
        [0, short @ 0..=127] => vec![tag, short],
        [0, byte] => vec![tag, 0x81, byte],
        [high, low] => vec![tag, 0x82, high, low],
    };
    [header, content.to_vec()].concat()
}

/// AlgorithmIdentifier of ecdsa-with-SHA256 (RFC 5758, section 3.2).
const ECDSA_WITH_SHA256: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";

fn p256() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

/// A node's certificate that holds for an hour from `at` on.
fn certified(authority: &Authority, member: &Member, at: SystemTime) -> CertificateDer<'static> {
    use rustls_pki_types::pem::PemObject as _;
    let request = Request::read(&request(&p256())).unwrap();
    let chain = authority.admit(&request, member, &[], Validity::from(at, HOUR));
    CertificateDer::from_pem_slice(chain.unwrap().as_bytes()).unwrap()
}

#[tokio::test]
async fn a_server_is_trusted_by_its_authority_for_its_names_and_by_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, other) = (authority(), authority());
    let store = Store::new();
    let names = ["master.example", "127.0.0.1"].map(str::to_owned);
    let pair = ours.serve(&names, Validity::from(now(), HOUR)).unwrap();
    store.install_member("own".as_ref(), pair).unwrap();
    let client = |of: &Authority| {
        let file = directory.path().join(hex::encode(of.hash()));
        crate::source::write_public(&file, to_pem(of.certificate()).as_bytes()).unwrap();
        client_config(&Trust::Authorities(file)).unwrap()
    };
    for name in ["master.example", "127.0.0.1"] {
        let seen = shake_hands(store.server_config(), client(&ours), name).await;
        assert!(seen.is_ok(), "{name}: {seen:?}");
    }
    let of_other = shake_hands(store.server_config(), client(&other), "master.example").await;
    assert!(of_other.is_err());
    let foreign = shake_hands(store.server_config(), client(&ours), "node.example").await;
    assert!(foreign.is_err());
}

#[test]
fn a_node_is_named_by_its_certificate_for_as_long_as_that_holds() {
    let (ours, exit) = (authority(), member("exit"));
    let authorities = Authorities::default();
    let own = certified(&ours, &exit, now());
    let said = |own: &CertificateDer<'static>, at| {
        let member = authorities.member(std::slice::from_ref(own), at);
        member.map(|(member, _)| member)
    };
    assert_eq!(
        said(&own, now()),
        Err(NotVouchedFor::Authority),
        "nobody vouches yet"
    );
    authorities.replace([authority().certificate().clone()]);
    assert_eq!(
        said(&own, now()),
        Err(NotVouchedFor::Authority),
        "another does"
    );
    let before = authorities.generation();
    authorities.replace([
        authority().certificate().clone(),
        ours.certificate().clone(),
    ]);
    assert_ne!(authorities.generation(), before);
    assert_eq!(said(&own, now()), Ok(exit.clone()));
    assert_eq!(
        said(&own, now() + HOUR + Duration::from_secs(2)),
        Err(NotVouchedFor::Time)
    );
    assert_eq!(said(&own, now() - HOUR), Err(NotVouchedFor::Time));
    assert_eq!(
        authorities.member(&[], now()).err(),
        Some(NotVouchedFor::Missing)
    );
    // One for servers is none of a client's, whoever asks.
    let names = ["exit".to_owned()];
    let server = ours.serve(&names, Validity::from(now(), HOUR)).unwrap();
    assert_eq!(said(server.leaf(), now()), Err(NotVouchedFor::Authority));
    assert_eq!(Member::of(server.leaf()), None);
}

#[test]
fn what_a_request_says_beside_its_key_is_not_in_the_certificate() {
    let ours = authority();
    // It asks for master.example.
    let own = certified(&ours, &member("exit"), now());
    let facts = Facts::read(&own).unwrap();
    assert!(facts.dns_names.is_empty() && facts.addresses.is_empty());
    assert_eq!(Member::of(&own), Some(member("exit")));
    let (_, parsed) = x509_parser::parse_x509_certificate(&own).unwrap();
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    assert!(!parsed.is_ca());
}

#[tokio::test]
async fn a_keyvault_serves_and_asks_by_one_certificate_and_no_other_node_has_names() {
    let directory = tempfile::tempdir().unwrap();
    let ours = authority();
    let member = |role| Member {
        role,
        ..member("vault")
    };
    let names = ["vault.example", "192.0.2.1"].map(str::to_owned);
    let issue = |role, key: &KeyPair| {
        let request = Request::read(&request(key)).unwrap();
        let validity = Validity::from(now(), HOUR);
        let chain = ours.admit(&request, &member(role), &names, validity);
        let key = Secret::new(key.serialize_pem().into_bytes());
        Pair::from_pem("own".as_ref(), &chain.unwrap(), &key).unwrap()
    };
    let pair = issue(Role::KeyVault, &p256());
    let authorities = Authorities::default();
    authorities.replace([ours.certificate().clone()]);
    let said = authorities.member(std::slice::from_ref(pair.leaf()), now());
    assert_eq!(said.unwrap().0, member(Role::KeyVault));
    let store = Store::new();
    store.install_member("own".as_ref(), pair).unwrap();
    let file = directory.path().join("ca.pem");
    crate::source::write_public(&file, to_pem(ours.certificate()).as_bytes()).unwrap();
    let client = || client_config(&Trust::Authorities(file.clone())).unwrap();
    for (name, is_one) in [
        ("vault.example", true),
        ("192.0.2.1", true),
        ("other", false),
    ] {
        let seen = shake_hands(store.server_config(), client(), name).await;
        assert_eq!(seen.is_ok(), is_one, "{name}: {seen:?}");
    }
    // Whoever signed it so, it is none of a gateway's.
    for role in [Role::Gateway, Role::Relay] {
        assert_eq!(Member::of(issue(role, &p256()).leaf()), None);
    }
}

#[test]
fn an_authority_may_sign_no_other_and_what_it_signs_ends_with_it() {
    let ours = authority();
    let (_, parsed) = x509_parser::parse_x509_certificate(ours.certificate()).unwrap();
    let constraints = parsed.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let usage = parsed.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && !usage.digital_signature());
    let names = ["master".to_owned()];
    let longer = ours.serve(&names, Validity::from(now(), 5000 * HOUR));
    assert_eq!(longer.unwrap().not_after(), ours.not_after());
}

#[test]
fn an_authority_with_anothers_key_is_refused() {
    let cluster = "ours".parse().unwrap();
    let [one, two] = std::array::from_fn(|_| {
        Authority::generate(&cluster, Validity::from(now(), HOUR)).unwrap()
    });
    let refused = |certificate: &[u8], key| Authority::open(certificate, key).err().unwrap();
    let crossed = refused(&one.certificate, &two.key).to_string();
    assert!(crossed.contains("not its certificate's"), "{crossed}");
    assert!(refused(b"?", &one.key).to_string().contains("certificate"));
    let no_key = refused(&one.certificate, &Secret::new(b"s3cret".to_vec()));
    assert!(!no_key.to_string().contains("s3cret"));
}

#[test]
fn a_request_is_of_a_p256_key_that_signed_it_or_it_is_none() {
    let good = request(&p256());
    assert!(Request::read(&good).is_ok());
    assert!(Request::from_base64(&STANDARD.encode(&good)).is_ok());
    for algorithm in [&PKCS_ED25519, &PKCS_ECDSA_P384_SHA384] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        assert_eq!(Request::read(&request(&key)).err(), Some(MalformedRequest));
    }
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(Request::read(&forged).err(), Some(MalformedRequest));
    let mut long = good.clone();
    long.resize(MAX_REQUEST_LEN + 1, 0);
    for bytes in [&[][..], &good[..good.len() - 1], &long] {
        assert_eq!(Request::read(bytes).err(), Some(MalformedRequest));
    }
    for text in ["", "?", &"A".repeat(100_000)] {
        assert_eq!(Request::from_base64(text).err(), Some(MalformedRequest));
    }
}

#[test]
fn names_are_dns_names_or_addresses() {
    for name in [
        "master.example",
        "localhost",
        "192.0.2.1",
        "2001:db8::1",
        "*.example",
    ] {
        let is_one = is_name(name);
        let pair = authority().serve(&[name.to_owned()], Validity::from(now(), HOUR));
        assert_eq!(is_one, pair.is_ok() && name != "*.example", "{name}");
    }
    for name in ["", "master.example:8443", "https://master", "a b", "[::1]"] {
        assert!(!is_name(name), "{name}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_no_request_and_no_member(bytes: Vec<u8>, text: String) {
        prop_assert!(Request::read(&bytes).is_err());
        prop_assert!(Request::from_base64(&text).is_err());
        prop_assert!(Member::of(&CertificateDer::from(bytes)).is_none());
    }

    #[test]
    fn a_damaged_request_is_read_as_it_was_or_not_at_all(at in 0usize..200, bit in 0u8..8) {
        let key = p256();
        let mut damaged = request(&key);
        let at = at % damaged.len();
        damaged[at] ^= 1 << bit;
        if let Ok(read) = Request::read(&damaged) {
            prop_assert_eq!(read.key().der_bytes(), key.der_bytes());
        }
    }

    #[test]
    fn whatever_a_request_asks_for_is_passed_over_or_it_is_none(
        subject: Vec<u8>, attributes: Vec<u8>, at in 0usize..300, bit in 0u8..8,
    ) {
        let key = p256();
        // Arbitrary contents, and those of a good request with a bit of them changed; both are signed.
        let good = request(&key);
        let info = info(&good).to_vec();
        let mut changed = info.clone();
        changed[at % info.len()] ^= 1 << bit;
        let arbitrary = der(0x30, &[
            &[2, 1, 0][..],
            &der(0x30, &subject),
            &key.subject_public_key_info(),
            &der(0xa0, &attributes),
        ].concat());
        let signed = |info: &[u8]| {
            let signature = key.sign(info).unwrap();
            let signature = der(3, &[&[0], &signature[..]].concat());
            der(0x30, &[info, ECDSA_WITH_SHA256, &signature].concat())
        };
        prop_assert!(Request::read(&signed(&info)).is_ok());
        for info in [changed, arbitrary] {
            if let Ok(read) = Request::read(&signed(&info)) {
                prop_assert_eq!(read.key().der_bytes(), key.der_bytes());
            }
        }
    }

    #[test]
    fn a_renewal_is_due_about_half_way(lifetime in 4u64..10_000_000, chance: u16) {
        let (from, lifetime) = (now(), Duration::from_secs(lifetime));
        let due = renewal(from, from + lifetime, chance).duration_since(from).unwrap();
        prop_assert!(due >= lifetime * 2 / 5 - Duration::from_micros(1));
        prop_assert!(due <= lifetime * 3 / 5 + Duration::from_micros(1));
    }
}
