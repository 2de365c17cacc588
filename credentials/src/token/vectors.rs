//! The official test vectors of PASETO version 4 (public) and of PASERK `k4.public`, `k4.secret` and
//! `k4.pid` (github.com/paseto-standard/test-vectors), against the code that signs and verifies.

use super::*;
use crate::signer;

const SEED: &str = "b4cbfb43df4ce210727d953e4a713307fa19bb7d9f85041438d9e11b942a3774";
const PUBLIC: &str = "1eb9dbbbbc047c03fd70604e0071f0987e16b28b757225c11f00415d0e20b1a2";
const PAYLOAD: &str = r#"{"data":"this is a signed message","exp":"2022-01-01T00:00:00+00:00"}"#;
const KID_FOOTER: &str = r#"{"kid":"zVhMiPBP9fRf2snEcT7gFTioeA9COcNy9DfgL1W60haN"}"#;

/// Name, footer, implicit assertion, token.
const SIGNED: [(&str, &str, &str, &str); 3] = [
    (
        "4-S-1",
        "",
        "",
        "v4.public.eyJkYXRhIjoidGhpcyBpcyBhIHNpZ25lZCBtZXNzYWdlIiwiZXhwIjoiMjAyMi0wMS0wMVQwMDowMDow\
         MCswMDowMCJ9bg_XBBzds8lTZShVlwwKSgeKpLT3yukTw6JUz3W4h_ExsQV-P0V54zemZDcAxFaSeef1QlXEFtkqxT1ci\
         iQEDA",
    ),
    (
        "4-S-2",
        KID_FOOTER,
        "",
        "v4.public.eyJkYXRhIjoidGhpcyBpcyBhIHNpZ25lZCBtZXNzYWdlIiwiZXhwIjoiMjAyMi0wMS0wMVQwMDowMDow\
         MCswMDowMCJ9v3Jt8mx_TdM2ceTGoqwrh4yDFn0XsHvvV_D0DtwQxVrJEBMl0F2caAdgnpKlt4p7xBnx1HcO-SPo8FPp2\
         14HDw.eyJraWQiOiJ6VmhNaVBCUDlmUmYyc25FY1Q3Z0ZUaW9lQTlDT2NOeTlEZmdMMVc2MGhhTiJ9",
    ),
    (
        "4-S-3",
        KID_FOOTER,
        r#"{"test-vector":"4-S-3"}"#,
        "v4.public.eyJkYXRhIjoidGhpcyBpcyBhIHNpZ25lZCBtZXNzYWdlIiwiZXhwIjoiMjAyMi0wMS0wMVQwMDowMDow\
         MCswMDowMCJ9NPWciuD3d0o5eXJXG5pJy-DiVEoyPYWs1YSTwWHNJq6DZD3je5gf-0M4JR9ipdUSJbIovzmBECeaWmaqc\
         aP0DQ.eyJraWQiOiJ6VmhNaVBCUDlmUmYyc25FY1Q3Z0ZUaW9lQTlDT2NOeTlEZmdMMVc2MGhhTiJ9",
    ),
];

/// What no implementation of v4.public may take.
const FAILING: [(&str, &str, &str); 5] = [
    (
        "4-F-1",
        r#"{"test-vector":"4-F-1"}"#,
        "v4.local.vngXfCISbnKgiP6VWGuOSlYrFYU300fy9ijW33rznDYgxHNPwWluAY2Bgb0z54CUs6aYYkIJ-bOOOmJHPuX_\
         34Agt_IPlNdGDpRdGNnBz2MpWJvB3cttheEc1uyCEYltj7wBQQYX.YXJiaXRyYXJ5LXN0cmluZy10aGF0LWlzbid0LWpz\
         b24",
    ),
    (
        "4-F-2",
        r#"{"test-vector":"4-F-2"}"#,
        "v4.public.eyJpbnZhbGlkIjoidGhpcyBzaG91bGQgbmV2ZXIgZGVjb2RlIn22Sp4gjCaUw0c7EH84ZSm_jN_Qr41MrgL\
         Nu5LIBCzUr1pn3Z-Wukg9h3ceplWigpoHaTLcwxj0NsI1vjTh67YB.eyJraWQiOiJ6VmhNaVBCUDlmUmYyc25FY1Q3Z0ZU\
         aW9lQTlDT2NOeTlEZmdMMVc2MGhhTiJ9",
    ),
    (
        "4-F-3",
        r#"{"test-vector":"4-F-3"}"#,
        "v3.local.23e_2PiqpQBPvRFKzB0zHhjmxK3sKo2grFZRRLM-U7L0a8uHxuF9RlVz3Ic6WmdUUWTxCaYycwWV1yM8gKbZ\
         B2JhygDMKvHQ7eBf8GtF0r3K0Q_gF1PXOxcOgztak1eD1dPe9rLVMSgR0nHJXeIGYVuVrVoLWQ.YXJiaXRyYXJ5LXN0cmlu\
         Zy10aGF0LWlzbid0LWpzb24",
    ),
    (
        "4-F-4",
        "",
        "v4.local.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAQAr68PS4AXe7If_ZgesdkUMvSwscFlAl1pk5HC0e8\
         kApeaqMfGo_7OpBnwJOAbY9V7WU6abu74MmcUE8YWAiaArVI8XJ5hOb_4v9RmDkneN0S92dx0OW4pgy7omxgf3S8c3LlQh",
    ),
    (
        "4-F-5",
        "",
        "v4.local.32VIErrEkmY4JVILovbmfPXKW9wT1OdQepjMTC_MOtjA4kiqw7_tcaOM5GNEcnTxl60WkwMsYXw6FSNb_UdJ\
         PXjpzm0KW9ojM5f4O2mRvE2IcweP-PRdoHjd5-RHCiExR1IK6t4x-RMNXtQNbz7FvFZ_G-lFpk5RG3EOrwDL6CgDqcerSQ==\
         .eyJraWQiOiJ6VmhNaVBCUDlmUmYyc25FY1Q3Z0ZUaW9lQTlDT2NOeTlEZmdMMVc2MGhhTiJ9",
    ),
];

/// Public key and id.
const IDS: [(&str, &str, &str); 3] = [
    (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "k4.public.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "k4.pid.S_XQmeEwHbbvRmiyfXfHYpLGjXGzjTRSDoT1YtTakWFE",
    ),
    (
        "707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f",
        "k4.public.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjo8",
        "k4.pid.9ShR3xc8-qVJ_di0tc9nx0IDIqbatdeM2mqLFBJsKRHs",
    ),
    (
        "707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e90",
        "k4.public.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjpA",
        "k4.pid.-nyvbaTz8U6TQz7OZWW-iB3va31iAxIpUgzUcVQVmW9A",
    ),
];

/// Seed, public half, text. The vector `k4.secret-1`, whose seed is zeros, is refused: it is nobody's
/// key.
const SECRETS: [(&str, &str, &str); 2] = [
    (
        "707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f",
        "1ce56a48c82ff99162a14bc544612674e5d61fb9317e65d4055780fdbcb4dc35",
        "k4.secret.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjo8c5WpIyC_5kWKhS8VEYSZ05dYfuTF-ZdQFV4D9vLTcNQ",
    ),
    (
        "707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e90",
        "60fe37571a5d6e7d30b15154ce4a9fb92c70c870848f4ccdf1626588097f73f7",
        "k4.secret.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjpBg_jdXGl1ufTCxUVTOSp-5LHDIcISPTM3xYmWICX9z9w",
    ),
];

fn bytes(text: &str) -> [u8; 32] {
    hex::decode(text).unwrap().try_into().unwrap()
}

fn public(text: &str) -> AsymmetricPublicKey<V4> {
    AsymmetricPublicKey::from(&bytes(text)).unwrap()
}

#[tokio::test]
async fn the_tokens_of_the_vectors_are_signed_byte_for_byte_and_verify() {
    let key = Ed25519::from_seed(Secret::new(bytes(SEED)));
    let signing = SigningKey::of(Arc::new(Ed25519::from_seed(Secret::new(bytes(SEED)))));
    assert_eq!(key.public(), bytes(PUBLIC));
    for (name, footer, assertion, token) in SIGNED {
        let signed = key.paseto(PAYLOAD.as_bytes(), footer.as_bytes(), assertion.as_bytes());
        assert_eq!(signed, token, "{name}");
        let (payload, assertion_bytes) = (PAYLOAD.as_bytes().to_vec(), assertion.as_bytes());
        let by_signer = signer::signed(&signing, payload, footer.as_bytes(), assertion_bytes).await;
        assert_eq!(by_signer.unwrap(), token, "{name}");
        let payload = signed_payload(&public(PUBLIC), token, assertion.as_bytes());
        assert_eq!(payload.as_deref(), Ok(PAYLOAD), "{name}");
        let other = signed_payload(&public(PUBLIC), token, b"another assertion");
        assert_eq!(other, Err(Rejected::Signature), "{name}");
    }
}

#[test]
fn the_tokens_that_must_fail_fail() {
    let cluster = "c1".parse().unwrap();
    let scope = Scope {
        cluster: &cluster,
        audience: "echo",
        binding: &[],
    };
    let keys = KeySet::from_public_keys(&[PublicKey(bytes(PUBLIC))]);
    for (name, assertion, token) in FAILING {
        let payload = signed_payload(&public(PUBLIC), token, assertion.as_bytes());
        assert!(payload.is_err(), "{name}");
        // Each is refused for its outside, before any cryptography.
        let refused = keys.verify::<token::Session>(token, scope, 0);
        assert_eq!(refused, Err(Rejected::Malformed), "{name}");
    }
}

#[test]
fn public_keys_and_their_ids_are_read_and_written_as_the_vectors_have_them() {
    for (key, text, id) in IDS {
        assert_eq!(paserk(&public(key)), text);
        assert_eq!(key_id(&public(key)).to_string(), id);
        let set = KeySet::from_paserk(&[text]).unwrap();
        assert!(set.keys.contains_key(&id.parse().unwrap()), "{text}");
    }
    // k4.public-fail-1, k4.pid-fail-1 and -fail-2: keys of another version, or cut short.
    for wrong in [49, 31] {
        assert!(AsymmetricPublicKey::<V4>::from(&vec![0x70; wrong]).is_err());
    }
    let short = "k4.public.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjg";
    let other_version =
        "k3.public.AnBxcnN0dXZ3eHl6e3x9fn-AgYKDhIWGh4iJiouMjY6PkJGSk5SVlpeYmZqbnJ2enw";
    for text in [short, other_version] {
        assert!(KeySet::from_paserk(&[text]).is_err(), "{text}");
    }
}

#[test]
fn secret_keys_are_read_and_written_as_the_vectors_have_them() {
    for (seed, public, text) in SECRETS {
        let key = SigningKey::from_paserk(&Secret::new(text.as_bytes().to_vec())).unwrap();
        assert_eq!(key.key.public(), bytes(public));
        assert!(key.to_paserk().matches(text.as_bytes()));
        let same = Ed25519::from_seed(Secret::new(bytes(seed)));
        assert!(same.to_paserk().matches(text.as_bytes()));
    }
    // k4.secret-fail-1 is cut short, -fail-2 is of another version.
    let short = SECRETS[0].2.trim_end_matches("NQ");
    let other_version = SECRETS[0].2.replace("k4", "k3");
    for text in [short, &other_version] {
        let text = Secret::new(text.as_bytes().to_vec());
        assert!(SigningKey::from_paserk(&text).is_err());
    }
}
