//! Which header fields pass the gateway, either way. Both are allow-lists: what is not named here
//! or in the configuration stays behind.

use wavry_proto::session::Header;

/// Request headers that every upstream gets.
const REQUEST: [&str; 2] = ["user-agent", "accept-language"];

/// Response headers that a client gets: those that explain an answer. None can set state at the
/// gateway's host, which may be shared by services (`set-cookie`, `alt-svc`, …).
const RESPONSE: [&str; 8] = [
    "cache-control",
    "content-language",
    "content-type",
    "retry-after",
    "server-timing",
    "traceresponse",
    "www-authenticate",
    "x-request-id",
];

/// Never forwarded: credentials, what belongs to one connection (RFC 9110, section 7.6.1), and
/// what the gateway itself says to the relay in other ways.
const FORBIDDEN: [&str; 18] = [
    "authorization",
    "connection",
    "content-length",
    "cookie",
    "cookie2",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "origin",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "sec-websocket-key",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
const FORBIDDEN_PREFIXES: [&str; 3] = ["x-wavry-", "x-forwarded-", "wt-"];

/// Names of the request headers that are forwarded.
#[derive(Debug, Clone)]
pub struct Headers {
    names: Box<[Box<str>]>,
}

impl Headers {
    /// The usual ones and `extra`. The error says which name cannot be, and why.
    pub fn new(extra: &[String]) -> Result<Self, String> {
        let mut names: Vec<Box<str>> = REQUEST.map(Into::into).into();
        for name in extra {
            let name = name.to_ascii_lowercase();
            if name.is_empty() || !name.bytes().all(is_token) {
                return Err("must be names of header fields".to_owned());
            }
            let forbidden = FORBIDDEN.contains(&name.as_str())
                || FORBIDDEN_PREFIXES.iter().any(|p| name.starts_with(p));
            if forbidden {
                return Err(format!("{name} is never forwarded"));
            }
            names.push(name.into());
        }
        Ok(Self {
            names: names.into(),
        })
    }

    /// The request headers that go on to the upstream.
    pub(crate) fn of_request(&self, headers: &[Header]) -> Vec<Header> {
        headers
            .iter()
            .filter(|h| self.names.iter().any(|name| **name == *h.name))
            .cloned()
            .collect()
    }
}

/// The response headers that go back to the client.
pub(crate) fn of_response(mut headers: Vec<Header>) -> Vec<Header> {
    headers.retain(|h| RESPONSE.contains(&h.name.as_str()));
    headers
}

/// `tchar` (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str) -> Header {
        Header {
            name: name.to_owned(),
            value: "x".to_owned(),
        }
    }

    fn names(headers: &[Header]) -> Vec<&str> {
        headers.iter().map(|h| h.name.as_str()).collect()
    }

    #[test]
    fn only_the_named_request_headers_pass() {
        let sent = ["user-agent", "authorization", "x-app", "cookie", "x-other"].map(header);
        let usual = Headers::new(&[]).unwrap();
        assert_eq!(names(&usual.of_request(&sent)), ["user-agent"]);
        let more = Headers::new(&["X-App".to_owned()]).unwrap();
        assert_eq!(names(&more.of_request(&sent)), ["user-agent", "x-app"]);
    }

    #[test]
    fn a_response_cannot_set_state_at_the_gateways_host() {
        let sent = ["set-cookie", "alt-svc", "retry-after", "server"].map(header);
        assert_eq!(names(&of_response(sent.into())), ["retry-after"]);
    }
}
