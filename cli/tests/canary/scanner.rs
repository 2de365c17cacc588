//! That the scanner finds what there is, and nothing else.

use crate::support::scanner::{PIECE, Scanner};

const PLANTED: &[u8] = b"Zk3:w9~Qf7\"xR2?pL5/vT8+hN1";

fn scanner() -> Scanner {
    let mut scanner = Scanner::new();
    scanner.watch("planted", PLANTED);
    scanner
}

/// `line` with something planted in it.
fn planted(text: &str) -> Vec<u8> {
    format!("2026-11-22T10:00:00Z INFO request{{path=/v1/nodes}}: \"{text}\", and more\n")
        .into_bytes()
}

/// Base64 without padding, with another 62nd and 63rd character.
fn to_base64(bytes: &[u8], last: [char; 2]) -> String {
    let alphabet: Vec<char> = ('A'..='Z')
        .chain('a'..='z')
        .chain('0'..='9')
        .chain(last)
        .collect();
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let mut bits = [0; 4];
        bits[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(bits);
        for place in 0..=group.len() {
            text.push(alphabet[(bits >> (18 - 6 * place) & 63) as usize]);
        }
    }
    text
}

#[test]
fn a_leak_planted_in_any_encoding_is_found() {
    let digits =
        |form: fn(u8) -> String| PLANTED.iter().map(|byte| form(*byte)).collect::<String>();
    let raw = String::from_utf8(PLANTED.to_vec()).unwrap();
    let mut forms = vec![
        ("raw", raw.clone()),
        ("hex", digits(|byte| format!("{byte:02x}"))),
        ("HEX", digits(|byte| format!("{byte:02X}"))),
        (
            "hex behind a digit",
            "a".to_owned() + &digits(|byte| format!("{byte:02x}")),
        ),
        ("percent", digits(|byte| format!("%{byte:02X}"))),
        ("percent, lower case", digits(|byte| format!("%{byte:02x}"))),
        (
            "json, all escaped",
            digits(|byte| format!("\\u{:04x}", u32::from(byte))),
        ),
        ("json", serde_json::to_string(&raw).unwrap()),
        ("debug", format!("{raw:?}")),
        ("bytes", digits(|byte| format!("\\x{byte:02x}"))),
    ];
    let percent = |byte: u8| match byte {
        b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    forms.push(("URL", PLANTED.iter().map(|byte| percent(*byte)).collect()));
    for front in ["", "a", "ab"] {
        let bytes = [front.as_bytes(), PLANTED].concat();
        for (name, last) in [("base64", ['+', '/']), ("base64url", ['-', '_'])] {
            let encoded = to_base64(&bytes, last);
            forms.push((name, encoded.clone()));
            forms.push(("base64 behind other text", format!("xyz{encoded}")));
            forms.push((
                "base64 in JSON in JSON",
                serde_json::to_string(&format!("\"{encoded}\"")).unwrap(),
            ));
            let hex: String = encoded.bytes().map(|byte| format!("{byte:02x}")).collect();
            forms.push(("base64 in hex", hex));
        }
    }
    for (name, form) in forms {
        let leak = scanner().scan(&planted(&form));
        assert!(leak.is_some(), "{name} is not found: {form}");
    }
}

#[test]
fn any_eight_bytes_of_a_secret_are_found_and_no_seven() {
    for piece in PLANTED.windows(PIECE) {
        let text = String::from_utf8(piece.to_vec()).unwrap();
        assert!(scanner().scan(&planted(&text)).is_some(), "{text}");
        let less = format!(" {} ", &text[1..]);
        assert!(scanner().scan(&planted(&less)).is_none(), "{less}");
        let hex: String = piece.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(scanner().scan(&planted(&hex)).is_some(), "{hex}");
        let encoded = to_base64(piece, ['-', '_']);
        assert!(scanner().scan(&planted(&encoded)).is_some(), "{encoded}");
    }
}

#[test]
fn text_without_the_secret_is_clean() {
    assert_eq!(scanner().scan(&planted("nothing to see here")), None);
    assert_eq!(scanner().scan(b""), None);
    let other: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    assert_eq!(scanner().scan(&other), None);
}
