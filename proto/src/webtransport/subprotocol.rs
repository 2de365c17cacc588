//! Subprotocol negotiation (draft-ietf-webtrans-http3, section 3.3): `wt-available-protocols` is a
//! list of strings and `wt-protocol` is one, as structured fields (RFC 9651). Up to draft-12 they
//! were tokens, which are read where the newest draft is not spoken.

/// Most subprotocols read from one request; more are not offered by any application.
const MAX_OFFERED: usize = 64;

/// Reads `wt-available-protocols`, whose field lines were joined with commas. Tokens are taken like
/// strings, and parameters are ignored. `None` when it is neither, in which case the field counts
/// as absent (RFC 9651, section 4.2).
pub fn parse_list(value: &str) -> Option<Vec<String>> {
    list(value, true)
}

/// Reads `wt-available-protocols` of the newest draft: the same, without tokens.
pub fn parse_strings(value: &str) -> Option<Vec<String>> {
    list(value, false)
}

/// Reads `wt-protocol`, like [`parse_list`].
pub fn parse_item(value: &str) -> Option<String> {
    single(value, true)
}

/// Reads `wt-protocol` of the newest draft: no token.
pub fn parse_string(value: &str) -> Option<String> {
    single(value, false)
}

fn list(value: &str, tokens: bool) -> Option<Vec<String>> {
    let mut items = Vec::new();
    let mut rest = value.trim_matches(' ');
    while !rest.is_empty() {
        if items.len() == MAX_OFFERED {
            return None;
        }
        let (item, after) = item(rest, tokens)?;
        items.push(item);
        rest = blank(after);
        if rest.is_empty() {
            break;
        }
        rest = blank(rest.strip_prefix(',')?);
        // A comma must be followed by a member.
        if rest.is_empty() {
            return None;
        }
    }
    Some(items)
}

fn single(value: &str, tokens: bool) -> Option<String> {
    let (item, rest) = item(value.trim_matches(' '), tokens)?;
    blank(rest).is_empty().then_some(item)
}

/// Writes `wt-available-protocols`. Names that no string can hold are left out; `None` when nothing
/// is left.
pub fn format_list<'a>(names: impl IntoIterator<Item = &'a String>) -> Option<String> {
    let items: Vec<_> = names
        .into_iter()
        .filter_map(|name| format_item(name))
        .collect();
    (!items.is_empty()).then(|| items.join(", "))
}

/// Writes `wt-protocol`. `None` when the name has a character outside printable ASCII.
pub fn format_item(name: &str) -> Option<String> {
    if !name.bytes().all(|b| matches!(b, 0x20..=0x7e)) {
        return None;
    }
    let mut item = String::with_capacity(name.len() + 2);
    item.push('"');
    for c in name.chars() {
        if matches!(c, '"' | '\\') {
            item.push('\\');
        }
        item.push(c);
    }
    item.push('"');
    Some(item)
}

fn blank(text: &str) -> &str {
    text.trim_start_matches([' ', '\t'])
}

/// A string, or a token where that may be, with its parameters, and what follows.
fn item(text: &str, tokens: bool) -> Option<(String, &str)> {
    if !tokens && !text.starts_with('"') {
        return None;
    }
    let (item, mut rest) = bare(text)?;
    while let Some(after) = rest.strip_prefix(';') {
        let after = after.trim_start_matches(' ');
        let key = after
            .find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.*".contains(c)))
            .unwrap_or(after.len());
        if key == 0 {
            return None;
        }
        rest = &after[key..];
        if let Some(value) = rest.strip_prefix('=') {
            rest = match bare(value) {
                Some((_, rest)) => rest,
                // A number, boolean, byte sequence or date: it ends where the item can go on.
                None => value.trim_start_matches(|c: char| !matches!(c, ';' | ',' | ' ' | '\t')),
            };
        }
    }
    Some((item, rest))
}

/// A string or token, and what follows.
fn bare(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:/".contains(c);
        if !text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '*') {
            return None;
        }
        let end = text.find(|c| !token(c)).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut string = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((string, &quoted[at + 1..])),
            '\\' => match chars.next()?.1 {
                c @ ('"' | '\\') => string.push(c),
                _ => return None,
            },
            ' '..='~' => string.push(c),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_of_strings_and_tokens_are_read() {
        for (value, names) in [
            ("\"a\", \"b\"", vec!["a", "b"]),
            ("\"a\",\"b\"", vec!["a", "b"]),
            ("a, b/1", vec!["a", "b/1"]),
            ("  \"x y\"  ", vec!["x y"]),
            ("\"a\";q=0.5;v, \"b\";n=\"1,2\"", vec!["a", "b"]),
            (r#""q\"\\""#, vec![r#"q"\"#]),
            ("", vec![]),
        ] {
            assert_eq!(
                parse_list(value).as_deref(),
                Some(&names.iter().map(|s| s.to_string()).collect::<Vec<_>>()[..]),
                "{value}"
            );
        }
        assert_eq!(parse_item("\"a\";v=1"), Some("a".into()));
    }

    #[test]
    fn the_newest_draft_has_no_tokens() {
        for value in ["a", "\"a\", b"] {
            assert!(parse_list(value).is_some());
            assert_eq!(parse_strings(value), None, "{value}");
        }
        let both = "\"a\";q=token, \"b\"";
        assert_eq!(parse_strings(both), parse_list(both));
        assert_eq!(parse_string("a"), None);
        assert_eq!(parse_string("\"a\""), Some("a".into()));
    }

    #[test]
    fn what_is_no_list_counts_as_absent() {
        for value in [
            "\"a",
            "\"a\",",
            "\"a\" \"b\"",
            "1",
            "\"\\n\"",
            "\"é\"",
            "(\"a\")",
            "\"a\";",
            ",",
        ] {
            assert_eq!(parse_list(value), None, "{value}");
        }
        assert_eq!(parse_item("\"a\", \"b\""), None);
        assert_eq!(parse_item(""), None);
    }

    proptest! {
        #[test]
        fn names_survive_their_encoding(names in prop::collection::vec("[ -~]{0,20}", 1..8)) {
            prop_assert_eq!(parse_list(&format_list(&names).unwrap()), Some(names.clone()));
            let item = format_item(&names[0]).unwrap();
            prop_assert_eq!(parse_item(&item), Some(names[0].clone()));
        }

        #[test]
        fn arbitrary_text_is_a_bounded_list_or_absent(value in "\\PC{0,60}|[\"\\\\;=, a*1]{0,60}") {
            if let Some(names) = parse_list(&value) {
                prop_assert!(names.len() <= MAX_OFFERED);
                prop_assert!(names.iter().map(String::len).sum::<usize>() <= value.len());
            }
        }
    }
}
