//! From authority and path to a service and what its upstream is asked for.
//!
//! A path is checked before it is looked at, and refused rather than repaired: gateway, relay and
//! upstream must never disagree on what it means.
//!
//! * At a host that is bound to a service, the whole path belongs to it and is forwarded as it is.
//! * Elsewhere the first segment names the service and is taken off: `/SERVICE/rest` is forwarded
//!   as `/rest`, `/SERVICE` and `/SERVICE/` as `/`.

use wavry_proto::control::{Roster, Service};

/// The path or the authority is not one that everybody reads in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(&'static str);

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub struct Route<'a> {
    /// The service.
    pub service: &'a Service,
    /// Path and query for the upstream.
    pub path: String,
}

/// Finds the service for a request; `None` when there is none.
pub fn find<'a>(
    roster: &'a Roster,
    authority: &str,
    target: &str,
) -> Result<Option<Route<'a>>, Malformed> {
    let (path, query) = canonical(target)?;
    let host = host(authority)?;
    if let Some(service) = roster.service_by_host(&host) {
        let path = target.to_owned();
        return Ok(Some(Route { service, path }));
    }
    let (first, rest) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    Ok(roster.service(first).map(|service| Route {
        service,
        path: match query {
            Some(query) => format!("/{rest}?{query}"),
            None => format!("/{rest}"),
        },
    }))
}

/// Splits a request target into path and query, if its path has one meaning only: absolute, made
/// of visible ASCII, without empty segments (but for a last one), `.` or `..` in any spelling, and
/// without encoded slashes, backslashes or control characters.
pub fn canonical(target: &str) -> Result<(&str, Option<&str>), Malformed> {
    if !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(Malformed("target is not visible ASCII"));
    }
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let Some(segments) = path.strip_prefix('/') else {
        return Err(Malformed("path is not absolute"));
    };
    let mut segments = segments.split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        if segment.is_empty() && !is_last {
            return Err(Malformed("path has an empty segment"));
        }
        let mut decoded = Vec::with_capacity(segment.len());
        percent_decode(segment, &mut decoded).ok_or(Malformed("path is not percent-encoded"))?;
        if decoded
            .iter()
            .any(|b| b.is_ascii_control() || b"/\\".contains(b))
        {
            return Err(Malformed("path hides a separator or control character"));
        }
        // Some servers cut path parameters off before they resolve dots: `..;x` is `..` to them.
        let name = decoded.split(|b| *b == b';').next().unwrap_or_default();
        if matches!(name, b"." | b"..") {
            return Err(Malformed("path has a dot segment"));
        }
    }
    Ok((path, query))
}

/// The host of an authority: lower case, without port and without the root's dot.
pub(crate) fn host(authority: &str) -> Result<String, Malformed> {
    let malformed = Malformed("authority is not HOST or HOST:PORT");
    let end = match authority.rfind(']') {
        Some(bracket) => bracket + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(end);
    let port_ok = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()) && digits.len() <= 5,
        None => port.is_empty(),
    };
    let host_ok = host
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b));
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() || !host_ok || !port_ok {
        return Err(malformed);
    }
    Ok(host.to_ascii_lowercase())
}

/// Appends the octets that `text` stands for (RFC 3986, section 2.1); `None` if a `%` is not
/// followed by two hexadecimal digits.
pub(crate) fn percent_decode(text: &str, into: &mut Vec<u8>) -> Option<()> {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        into.push(match byte {
            b'%' => 16 * hex_digit(bytes.next()?)? + hex_digit(bytes.next()?)?,
            _ => byte,
        });
    }
    Some(())
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn roster() -> Roster {
        let service = |name: &str, hosts: &[&str]| Service {
            name: name.parse().unwrap(),
            hosts: hosts.iter().map(ToString::to_string).collect(),
            access: Default::default(),
            allowed_origins: Vec::new(),
            max_sessions: None,
            refuse_with: Default::default(),
            keys: Vec::new(),
        };
        let mut roster = Roster::empty("test".parse().unwrap());
        roster.services = vec![service("chat", &["chat.example"]), service("echo", &[])];
        roster
    }

    fn found(authority: &str, target: &str) -> Option<(String, String)> {
        find(&roster(), authority, target)
            .unwrap()
            .map(|route| (route.service.name.to_string(), route.path))
    }

    fn to(service: &str, path: &str) -> Option<(String, String)> {
        Some((service.to_owned(), path.to_owned()))
    }

    #[test]
    fn the_first_segment_names_the_service_and_is_taken_off() {
        for (target, forwarded) in [
            ("/echo", "/"),
            ("/echo/", "/"),
            ("/echo?a=1", "/?a=1"),
            ("/echo/?", "/?"),
            ("/echo/a/b/", "/a/b/"),
            ("/echo/a%20b?x=/../y", "/a%20b?x=/../y"),
        ] {
            assert_eq!(found("gateway.example:4433", target), to("echo", forwarded));
        }
    }

    #[test]
    fn a_bound_host_takes_the_whole_path() {
        for authority in ["chat.example", "CHAT.example:443", "chat.example.:443"] {
            assert_eq!(found(authority, "/echo/x?y"), to("chat", "/echo/x?y"));
        }
    }

    #[test]
    fn what_names_no_service_goes_nowhere() {
        for target in ["/", "/nothing", "/ECHO", "/ech%6f", "/?echo"] {
            assert_eq!(found("gateway.example", target), None, "{target}");
        }
    }

    #[test]
    fn a_path_that_could_be_read_in_two_ways_is_refused() {
        for target in [
            "",
            "echo",
            "*",
            "//echo",
            "/echo//a",
            "/echo/../chat",
            "/echo/.",
            "/echo/./a",
            "/echo/%2e%2e/chat",
            "/echo/.%2E/chat",
            "/echo/..;x/chat",
            "/echo/%2e;/chat",
            "/echo%2fchat",
            "/echo/..%2Fchat",
            "/echo/a%5c..%5cb",
            "/echo/a\\b",
            "/echo/\0",
            "/echo/%00",
            "/echo/%0d%0a",
            "/echo/%7f",
            "/echo/a b",
            "/echo/é",
            "/echo/#a",
            "/echo?a#b",
            "/echo/%",
            "/echo/%2",
            "/echo/%zz",
        ] {
            let refused = find(&roster(), "gateway.example", target).is_err();
            assert!(refused, "{target:?} was taken");
        }
    }

    #[test]
    fn an_authority_with_more_than_host_and_port_is_refused() {
        for authority in [
            "",
            ":443",
            ".",
            "a@chat.example",
            "chat.example:x",
            "chat.example:443:1",
            "[::1]x",
            "chat.example/",
            "a b",
        ] {
            let refused = find(&roster(), authority, "/echo").is_err();
            assert!(refused, "{authority:?} was taken");
        }
        assert_eq!(found("[::1]:443", "/echo"), to("echo", "/"));
        assert_eq!(found("127.0.0.1:4433", "/echo"), to("echo", "/"));
    }

    proptest! {
        #[test]
        fn a_canonical_path_stays_below_its_root(
            target in "(/|%|2|e|E|f|\\.|;|5|c|a|\\\\|\\?){0,24}",
        ) {
            let target = format!("/{target}");
            let Ok((path, _)) = canonical(&target) else {
                return Ok(());
            };
            let mut decoded = Vec::new();
            percent_decode(path, &mut decoded).unwrap();
            let decoded = String::from_utf8_lossy(&decoded).replace('\\', "/");
            prop_assert_eq!(decoded.matches('/').count(), path.matches('/').count());
            for segment in decoded.split('/') {
                prop_assert!(segment != "." && segment != "..");
            }
        }

        #[test]
        fn arbitrary_requests_never_panic_and_only_shrink(authority: String, target: String) {
            if let Ok(Some(route)) = find(&roster(), &authority, &target) {
                prop_assert!(route.path.len() <= target.len());
                prop_assert!(route.path.starts_with('/'));
            }
        }
    }
}
