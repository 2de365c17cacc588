//! Takes the session token out of a request, so that nothing after this place can see it.

use wavry_credentials::bearer::Token;
use wavry_proto::session::{Header, Request};

use crate::route::percent_decode;

/// The query parameter that a browser sends its token in, as it cannot set a header.
const PARAMETER: &[u8] = b"token";

/// What a request brought to prove itself.
pub enum Bearer {
    /// Nothing.
    None,
    /// One token, not verified yet.
    Token(Token),
    /// More than one token, or one that cannot be read (RFC 6750, section 2: at most one method).
    Malformed,
}

/// Takes the token out of `request`: the query parameter `token`, in whatever encoding and
/// however often it is there, and the header `authorization`, whatever its scheme.
pub fn take(request: &mut Request) -> Bearer {
    let mut found = Vec::new();
    request.headers.retain(|header| {
        let is_authorization = header.name.eq_ignore_ascii_case("authorization");
        if is_authorization && let Some(token) = bearer(header) {
            found.push(Some(token.to_owned()));
        }
        !is_authorization
    });
    if let Some((path, query)) = request.path.split_once('?') {
        let (tokens, others): (Vec<_>, Vec<_>) = query.split('&').partition(|p| is_token(p));
        found.extend(tokens.iter().map(|parameter| value(parameter)));
        if !tokens.is_empty() {
            request.path = match others.is_empty() {
                true => path.to_owned(),
                false => format!("{path}?{}", others.join("&")),
            };
        }
    }
    match (found.pop(), found.is_empty()) {
        (None, _) => Bearer::None,
        (Some(Some(token)), true) => Bearer::Token(Token::new(token)),
        (Some(_), _) => Bearer::Malformed,
    }
}

/// The token of an `authorization: Bearer TOKEN` header; the scheme's case does not matter.
fn bearer(header: &Header) -> Option<&str> {
    let (scheme, token) = header.value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_matches(' '))
}

/// Whether a query parameter is the token's, however its name is spelt.
fn is_token(parameter: &str) -> bool {
    let name = parameter.split('=').next().unwrap_or_default();
    let mut decoded = Vec::new();
    percent_decode(name, &mut decoded).is_some() && decoded == PARAMETER
}

/// The value of a query parameter; `None` if it is not text once decoded.
fn value(parameter: &str) -> Option<String> {
    let (_, value) = parameter.split_once('=')?;
    let mut decoded = Vec::new();
    percent_decode(value, &mut decoded)?;
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(path: &str, authorization: &[&str]) -> Request {
        Request {
            authority: "gateway.example".to_owned(),
            path: path.to_owned(),
            headers: authorization
                .iter()
                .map(|value| Header {
                    name: "authorization".to_owned(),
                    value: (*value).to_owned(),
                })
                .collect(),
            ..Request::default()
        }
    }

    fn text(bearer: &Bearer) -> Option<String> {
        match bearer {
            Bearer::Token(token) => Some(token.authorization().replacen("Bearer ", "", 1)),
            Bearer::None | Bearer::Malformed => None,
        }
    }

    #[test]
    fn a_token_is_taken_from_the_query_and_the_rest_stays() {
        for (path, rest) in [
            ("/echo?token=v4.public.x", "/echo"),
            ("/echo?token=v4%2Epublic.x&a=1", "/echo?a=1"),
            ("/echo?a=1&%74oken=v4.public.x&b", "/echo?a=1&b"),
            ("/echo/?&token=v4.public.x&", "/echo/?&"),
        ] {
            let mut request = request(path, &[]);
            let token = text(&take(&mut request));
            assert_eq!(token.as_deref(), Some("v4.public.x"), "{path}");
            assert_eq!(request.path, rest);
        }
    }

    #[test]
    fn a_token_is_taken_from_the_authorization_header() {
        for value in ["Bearer v4.public.x", "bearer  v4.public.x "] {
            let mut request = request("/echo?a", &[value]);
            assert_eq!(text(&take(&mut request)).as_deref(), Some("v4.public.x"));
            assert_eq!(request.path, "/echo?a");
            assert!(request.headers.is_empty());
        }
    }

    #[test]
    fn credentials_of_another_scheme_are_removed_and_are_no_token() {
        let mut request = request("/echo", &["Basic YTpi"]);
        assert!(matches!(take(&mut request), Bearer::None));
        assert!(request.headers.is_empty());
    }

    #[test]
    fn a_request_without_a_token_is_left_alone() {
        for path in [
            "/echo",
            "/echo?",
            "/echo?tokens=1&atoken=2&a=token",
            "/token=1",
        ] {
            let mut request = request(path, &[]);
            assert!(matches!(take(&mut request), Bearer::None));
            assert_eq!(request.path, path);
        }
    }

    #[test]
    fn two_tokens_are_none() {
        for (path, headers) in [
            ("/echo?token=a&token=a", &[][..]),
            ("/echo?token=a", &["Bearer a"]),
            ("/echo", &["Bearer a", "Bearer a"]),
            ("/echo?token", &[]),
            ("/echo?token=%ff", &[]),
            ("/echo?token=%", &[]),
        ] {
            let mut request = request(path, headers);
            assert!(matches!(take(&mut request), Bearer::Malformed), "{path}");
            assert_eq!(request.path, "/echo");
            assert!(request.headers.is_empty());
        }
    }

    /// Some octets of a text percent-encoded, chosen by the bits of `which`.
    fn encoded(text: &str, which: u64) -> String {
        text.bytes()
            .enumerate()
            .map(|(i, byte)| match which >> (i % 64) & 1 {
                1 => format!("%{byte:02x}"),
                _ => char::from(byte).to_string(),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn a_token_survives_nowhere(
            before in prop::collection::vec("[a-z]{1,5}(=[a-z%2]{0,5})?", 0..4),
            after in prop::collection::vec("[a-z]{1,5}(=[a-z%2]{0,5})?", 0..4),
            token in "v4\\.public\\.[A-Za-z0-9_-]{40,80}",
            spelling: (u64, u64),
            in_header: bool,
        ) {
            let parameter = format!("{}={}", encoded("token", spelling.0), encoded(&token, spelling.1));
            let mut parameters = before;
            parameters.push(parameter);
            parameters.extend(after);
            let header = format!("Bearer {token}");
            let headers: &[&str] = if in_header { &[&header] } else { &[] };
            let mut request = request(&format!("/echo/a?{}", parameters.join("&")), headers);
            let bearer = take(&mut request);
            let mut forwarded = Vec::new();
            for text in [&request.path, &format!("{request:?}")] {
                forwarded.extend_from_slice(text.as_bytes());
                percent_decode(text, &mut forwarded);
            }
            let forwarded = String::from_utf8_lossy(&forwarded);
            prop_assert!(!forwarded.contains(&token[10..]), "{forwarded}");
            // A parameter generated beside it may be a second `token`; then there is none.
            if let Some(text) = text(&bearer) {
                prop_assert_eq!(text, token);
                prop_assert!(!in_header);
            }
        }

        #[test]
        fn arbitrary_requests_never_panic_and_only_shrink(path: String, header: String) {
            let mut request = request(&path, &[&header]);
            take(&mut request);
            prop_assert!(request.path.len() <= path.len());
        }
    }
}
