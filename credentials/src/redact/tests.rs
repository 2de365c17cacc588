use super::*;
use base64::{Engine as _, engine::general_purpose};
use proptest::prelude::*;
use std::io::Write as _;

const PASETO: &str = "v4.public.eyJqdGkiOiI1ZTIzIn0xMjM0NTY3ODkwYWJjZGVm.eyJraWQiOiJrNC5waWQifQ";
const PASERK: &str = "k4.secret.tMv7Q99M4hByfZU-SnEzB_oZu32fhQQUONnhG5QqN3Q";
const VAULT: &str = "hvs.CAESIJ1yG0t9PqXw";
const PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEILTL+0PfTOIQcn2V\n-----END PRIVATE KEY-----\n";

#[test]
fn secrets_are_known_by_their_look() {
    for (before, after) in [
        (
            format!("a token {PASETO}, refused"),
            "a token [redacted], refused",
        ),
        (format!("{PASERK}."), "[redacted]."),
        (format!("x{VAULT}x"), "x[redacted]"),
        (
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl".to_owned(),
            "[redacted]",
        ),
        (format!("key:\n{PEM}end"), "key:\n[redacted]\nend"),
        (
            "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE".to_owned(),
            "[redacted]",
        ),
        (
            "using Bearer 0123abcd".to_owned(),
            "using Bearer [redacted]",
        ),
        ("basic YWxhZGRpbjpvcGVu".to_owned(), "basic [redacted]"),
        (
            "https://user:s3cret@host:1/a@b?x".to_owned(),
            "https://[redacted]@host:1/a@b?x",
        ),
        (
            "postgres://app:p/a@ss@db:5432/x".to_owned(),
            "postgres://[redacted]@db:5432/x",
        ),
    ] {
        assert_eq!(text(&before), after, "{before}");
    }
}

#[test]
fn secrets_are_known_by_their_name() {
    for (before, after) in [
        (
            "GET /echo?a=1&token=abc&b=2",
            "GET /echo?a=1&token=[redacted]&b=2",
        ),
        ("/echo?%74oken=a%62c", "/echo?%74oken=[redacted]"),
        (
            "password: hunter2, user: ann",
            "password: [redacted], user: ann",
        ),
        (
            "Server=db;Password=p;Database=x",
            "Server=db;Password=[redacted];Database=x",
        ),
        (
            "host=db password='a \"b' user=c",
            "host=db password='[redacted]' user=c",
        ),
        (
            "DefaultEndpointsProtocol=https;AccountKey=abc+/==;x",
            "DefaultEndpointsProtocol=https;AccountKey=[redacted];x",
        ),
        (
            "Authorization: Digest a b\r\nhost: x",
            "Authorization: [redacted]\r\nhost: x",
        ),
        (
            "authorization=Bearer abc service=echo",
            "authorization=[redacted] service=echo",
        ),
        ("x-vault-token: abc", "x-vault-token: [redacted]"),
        (
            r#"Header { name: "cookie", value: "sid=1; b" }"#,
            r#"Header { name: "cookie", value: "[redacted]" }"#,
        ),
        (
            r#"Args { token: Some("abc"), n: 1 }"#,
            r#"Args { token: Some("[redacted]"), n: 1 }"#,
        ),
        (
            "\x1b[3mtoken\x1b[0m\x1b[2m=\x1b[0mabc x",
            "\x1b[3mtoken\x1b[0m\x1b[2m=\x1b[0m[redacted] x",
        ),
        (
            r#"{"unseal_keys":["a","b"],"n":["c"]}"#,
            r#"{"unseal_keys":["[redacted]","[redacted]"],"n":["c"]}"#,
        ),
        (
            r#"{%22unseal_keys\":[%22a\",%22b\"]}"#,
            r#"{%22unseal_keys\":[%22[redacted]\"[redacted]"#,
        ),
        (
            r#"{"credentials":{"user":"a","deep":[{"x":"b"}]},"n":1}"#,
            r#"{"credentials":{"user":"[redacted]","deep":[{"x":"[redacted]"}]},"n":1}"#,
        ),
        (
            r#"{"password":12345,"n":1}"#,
            r#"{"password":"[redacted]","n":1}"#,
        ),
        (
            r#"{"msg":"body {\"client_token\":\"abc\",\"a\":1}"}"#,
            r#"{"msg":"body {\"client_token\":\"[redacted]\",\"a\":1}"}"#,
        ),
        (
            r#"{"m":"{\"m\":\"{\\\"password\\\":\\\"abc\\\"}\"}"}"#,
            r#"{"m":"{\"m\":\"{\\\"password\\\":\\\"[redacted]\\\"}\"}"}"#,
        ),
    ] {
        assert_eq!(text(before), after, "{before}");
    }
}

#[test]
fn ordinary_text_is_left_alone() {
    for ordinary in [
        "",
        "registration refused: the registration token was used before; ask for a new one",
        "no registration_token: set WAVRY_REGISTRATION_TOKEN_FILE to the file that holds it",
        "secret master_key: not a PASERK k4.secret key",
        "secret registration_token: malformed",
        "token: expected a PASETO v4.public token",
        "INFO wavry_credentials::membership::work: registered node=relay-1 cluster=wavry",
        "WWW-Authenticate: Bearer realm=\"wavry\"",
        "the request needs a bearer token",
        "Bearer authentication is needed; basic authentication is not",
        "signed by k4.pid.9ShR3xc8-qVJ_di0tc9nx0IDIqbatdeM2mqLFBJsKRHs",
        "k4.public.Hrnbu7wEfAP9cGBOAHHwmH4Wsot1ciXBHwBBXQ4gsaI",
        "peer 192.0.2.1:4433, hash 1eb9dbbbbc047c03fd70604e0071f0987e16b28b757225c11f00415d0e20b1a2",
        "https://gateway.example:4433/echo/@user?a=b#c",
        "https://[2001:db8::1]:4433/a",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "{\"token\":null,\"secret\":false,\"epoch\":3}",
        "100% sure, 50%25, \\path\\to \u{1f980}",
    ] {
        assert!(matches!(text(ordinary), Cow::Borrowed(_)), "{ordinary}");
    }
}

#[test]
fn an_errors_sources_are_told_without_their_secrets() {
    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);
    let inner = io::Error::other(format!("cannot send {PASETO}"));
    assert_eq!(error(&Outer(inner)), "outer: cannot send [redacted]");
}

#[test]
fn a_parsers_place_says_nothing_else() {
    let parsed: Result<Vec<u8>, _> = serde_json::from_str("[1,\n \"s3cret\"]");
    let place = Place::from(&parsed.unwrap_err());
    assert_eq!(place.to_string(), "line 2, column 9");
    assert_eq!(Place::of("ä\näb", 5).to_string(), "line 2, column 2");
    assert_eq!(Place::of("a", 9).to_string(), "line 1, column 2");
}

#[test]
fn what_is_written_passes_through_the_writer() {
    let mut written = Vec::new();
    let line = format!("a {PASERK} b\n");
    Writer::new(&mut written)
        .write_all(line.as_bytes())
        .unwrap();
    assert_eq!(written, b"a [redacted] b\n");
}

/// A secret, and words that make it one.
fn planted() -> impl Strategy<Value = (String, String)> {
    let canary = "[A-Z][a-z]{3}[0-9][A-Za-z0-9]{19}";
    let around = prop_oneof![
        Just(("v4.public.", "")),
        Just(("v4.local.", ".Zm9v")),
        Just(("k4.secret.", "")),
        Just(("hvs.", "")),
        Just(("eyJhbGciOiJFZERTQSJ9.", ".c2ln")),
        Just((
            "-----BEGIN PRIVATE KEY-----\n",
            "\n-----END PRIVATE KEY-----"
        )),
        Just(("-----BEGIN RSA PRIVATE KEY-----\n", "")),
        Just(("Bearer ", "")),
        Just(("Basic ", "==")),
        Just(("Authorization: ", "")),
        Just(("authorization=Bearer ", "")),
        Just(("https://user:", "@host/path")),
        Just(("postgres://", "@host/path")),
        Just(("token=", "")),
        Just(("/echo?token=", "&b=1")),
        Just(("password: ", "")),
        Just(("db_password='x ", " y'")),
        Just(("\"client_token\":\"", "\"")),
        Just(("\"secret_id\": \"", "\"")),
        Just(("{\"unseal_keys\":[\"a\",\"", "\"]}")),
        Just(("Password=", ";")),
    ];
    (around, canary)
        .prop_map(|((before, after), canary)| (format!("{before}{canary}{after}"), canary))
}

/// Words that mean nothing, and end where something else begins.
fn surroundings() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[a-z]{1,8}( [a-z]{1,8}){0,4} ",
        "[a-z]{1,8}: [a-z]{1,8}, ",
        "GET /[a-z]{1,8}/[a-z]{1,8} ",
        Just("\u{e4}\u{1f980} ".to_owned()),
    ]
}

fn percent(text: &str, which: u64) -> String {
    let bytes = text.bytes().enumerate();
    let encoded = bytes.map(
        |(i, byte)| match which >> (i % 64) & 1 == 1 || !byte.is_ascii() {
            true => format!("%{byte:02X}"),
            false => char::from(byte).to_string(),
        },
    );
    encoded.collect()
}

fn escaped(text: &str, which: u64) -> String {
    let characters = text.chars().enumerate();
    let escaped =
        characters.map(
            |(i, c)| match which >> (i % 64) & 1 == 1 && c.is_ascii_alphanumeric() {
                true => format!("\\u{:04x}", u32::from(c)),
                false => {
                    let json = serde_json::to_string(&c).unwrap();
                    json[1..json.len() - 1].to_owned()
                }
            },
        );
    escaped.collect()
}

proptest! {
    #[test]
    fn a_planted_secret_survives_in_no_place_and_no_encoding(
        before in surroundings(),
        (secret, canary) in planted(),
        after in surroundings(),
        layers in prop::collection::vec((0_u8..3, any::<u64>()), 0..=3),
    ) {
        let mut shown = format!("{before}{secret} {after}");
        let (is_plain, mut is_json) = (layers.is_empty(), false);
        for (encoding, which) in layers {
            match encoding {
                0 => {
                    shown = percent(&shown, which);
                    is_json = false;
                }
                1 => shown = escaped(&shown, which),
                _ => {
                    shown = serde_json::to_string(&serde_json::json!({ "message": shown, "n": 1 })).unwrap();
                    is_json = true;
                }
            }
        }
        let redacted = text(&shown);
        // Decoded as far as it goes, eight characters of it are nowhere.
        let mut survived = false;
        decode::Level::first(&redacted).each(&mut |level| {
            let mut pieces = canary.as_bytes().windows(8);
            survived |= pieces.any(|piece| shapes::find(&level.bytes, piece).is_some());
        });
        prop_assert!(!survived, "{shown} -> {redacted}");
        if is_json && serde_json::from_str::<serde_json::Value>(&shown).is_ok() {
            prop_assert!(serde_json::from_str::<serde_json::Value>(&redacted).is_ok(), "{redacted}");
        }
        if is_plain {
            prop_assert_eq!(text(&redacted), redacted.as_ref());
        }
    }

    #[test]
    fn a_token_in_base64_or_hexadecimal_is_known(
        before: Vec<u8>,
        body in "[A-Za-z0-9_-]{40}",
        kind in prop::sample::select(vec!["v4.public.", "v4.local.", "k4.secret."]),
    ) {
        let mut bytes = before.clone();
        bytes.extend_from_slice(kind.as_bytes());
        bytes.extend_from_slice(body.as_bytes());
        for encoded in [
            hex::encode(&bytes),
            hex::encode_upper(&bytes),
            general_purpose::STANDARD.encode(&bytes),
            general_purpose::URL_SAFE_NO_PAD.encode(&bytes),
        ] {
            let shown = format!("got {encoded} here");
            let left = text(&shown);
            // What is before it may by chance look like the beginning of a secret, and is left up to there.
            let kept = left
                .strip_prefix("got ")
                .and_then(|left| left.strip_suffix("[redacted] here"));
            let most = encoded.len() * before.len() / bytes.len() + 1;
            prop_assert!(
                kept.is_some_and(|kept| encoded.starts_with(kept) && kept.len() <= most),
                "{left}"
            );
        }
    }

    #[test]
    fn ordinary_words_are_left_alone(words in prop::collection::vec("[a-zA-Z]{1,12}[:,.]?|[0-9]{1,6}|[a-z]{1,5}=[a-z0-9.:/]{1,9}", 0..20)) {
        let ordinary = words.join(" ");
        let says = ["bearer", "basic", "digest", "negotiate", "token", "secret", "pwd", "password", "cookie"];
        prop_assume!(!says.iter().any(|word| ordinary.to_ascii_lowercase().contains(word)));
        prop_assert!(matches!(text(&ordinary), Cow::Borrowed(_)), "{ordinary}");
    }

    #[test]
    fn arbitrary_text_never_panics_and_is_redacted_once(anything: String, spiced in "[%\\\\\"':=@/{}\\[\\]a-f0-9u-v.]{0,60}") {
        for shown in [anything, format!("token{spiced}"), format!("x://{spiced}")] {
            let once = text(&shown).into_owned();
            let _ = text(&once);
        }
    }
}
