//! A session's request and its answer, as HTTP messages (draft-ietf-webtrans-http3, section 3).

use super::{agreement::Draft, subprotocol};
use crate::{
    h3::message::{self, Malformed},
    session::{Header, Request, Response},
};

/// `:protocol` of every draft that today's browsers and libraries speak.
pub(super) const PROTOCOL: &str = "webtransport";
/// `:protocol` since draft-ietf-webtrans-http3-15.
pub(super) const PROTOCOL_H3: &str = "webtransport-h3";

const AVAILABLE_PROTOCOLS: &str = "wt-available-protocols";
const SELECTED_PROTOCOL: &str = "wt-protocol";
/// Sent by clients of draft-ietf-webtrans-http3-02 ...
const DRAFT02_REQUEST: &str = "sec-webtransport-http3-draft02";
/// ... which want to see this in the answer.
const DRAFT02_RESPONSE: &str = "sec-webtransport-http3-draft";

/// What a request to a WebTransport server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A session.
    Session {
        /// What is asked for.
        request: Request,
        /// The client wants to see draft-02 in the answer.
        draft02: bool,
    },
    /// Something else, which has this status for an answer.
    Other(u16),
}

impl Asked {
    /// What the request asks for.
    pub fn new(head: message::Request) -> Result<Self, Malformed> {
        let read_subprotocols: fn(&str) -> Option<Vec<String>> =
            match (head.method.as_str(), head.protocol.as_deref()) {
                ("CONNECT", Some(PROTOCOL)) => subprotocol::parse_list,
                ("CONNECT", Some(PROTOCOL_H3)) => subprotocol::parse_strings,
                // RFC 9220, section 3.
                ("CONNECT", Some(_)) => return Ok(Self::Other(501)),
                ("GET" | "HEAD", _) => return Ok(Self::Other(404)),
                _ => return Ok(Self::Other(405)),
            };
        if head.scheme.as_deref() != Some("https") {
            return Err(Malformed("a session's :scheme is https"));
        }
        let mut request = Request {
            authority: head.authority,
            path: head.path.unwrap_or_default(),
            ..Request::default()
        };
        let (mut draft02, mut offered) = (false, String::new());
        for header in head.headers {
            match header.name.as_str() {
                "host" => {}
                "origin" if request.origin.is_some() => return Err(Malformed("origin twice")),
                "origin" => request.origin = Some(header.value),
                DRAFT02_REQUEST => draft02 = true,
                AVAILABLE_PROTOCOLS => {
                    if !offered.is_empty() {
                        offered.push(',');
                    }
                    offered.push_str(&header.value);
                }
                _ => request.headers.push(header),
            }
        }
        request.subprotocols = read_subprotocols(&offered).unwrap_or_default();
        Ok(Self::Session { request, draft02 })
    }
}

/// The request as an HTTP message, as servers of drafts up to 14 expect it.
pub fn head(request: &Request) -> message::Request {
    head_in(Draft::Draft02, request)
}

/// The request as an HTTP message of this draft.
pub fn head_in(draft: Draft, request: &Request) -> message::Request {
    let header = |name: &str, value: String| Header {
        name: name.to_owned(),
        value,
    };
    let mut headers = Vec::with_capacity(request.headers.len() + 3);
    if draft < Draft::Draft15 {
        headers.push(header(DRAFT02_REQUEST, "1".to_owned()));
    }
    headers.extend(request.origin.clone().map(|value| header("origin", value)));
    let offered = subprotocol::format_list(&request.subprotocols);
    headers.extend(offered.map(|value| header(AVAILABLE_PROTOCOLS, value)));
    headers.extend(
        request
            .headers
            .iter()
            .filter(|header| {
                ![DRAFT02_REQUEST, "origin", "host", AVAILABLE_PROTOCOLS]
                    .contains(&header.name.as_str())
            })
            .cloned(),
    );
    message::Request {
        method: "CONNECT".to_owned(),
        scheme: Some("https".to_owned()),
        authority: request.authority.clone(),
        path: Some(request.path.clone()),
        protocol: Some(draft.protocol().to_owned()),
        headers,
    }
}

/// The answer as an HTTP message, as the client of `draft02` expects it.
pub fn response_head(response: &Response, draft02: bool) -> message::Response {
    let mut headers = Vec::with_capacity(response.headers.len() + 2);
    if draft02 && response.is_ok() {
        headers.push(Header {
            name: DRAFT02_RESPONSE.to_owned(),
            value: "draft02".to_owned(),
        });
    }
    let selected = response
        .subprotocol
        .as_deref()
        .and_then(subprotocol::format_item);
    headers.extend(selected.map(|value| Header {
        name: SELECTED_PROTOCOL.to_owned(),
        value,
    }));
    let own = |name: &str| [DRAFT02_RESPONSE, SELECTED_PROTOCOL].contains(&name);
    headers.extend(response.headers.iter().filter(|h| !own(&h.name)).cloned());
    message::Response {
        status: response.status,
        headers,
    }
}

/// The answer to a request that offered `subprotocols`. One that was not offered counts as none.
pub fn response(head: message::Response, subprotocols: &[String]) -> Response {
    let mut response = answer(head, subprotocol::parse_item);
    response
        .subprotocol
        .take_if(|selected| !subprotocols.contains(selected));
    response
}

/// The server chose a subprotocol that was not offered, which since draft-15 ends the session with
/// WT_ALPN_ERROR (draft-ietf-webtrans-http3, section 3.3).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server chose a subprotocol that was not offered")]
pub struct NotOffered;

/// The answer in this draft to a request that offered `subprotocols`.
pub fn response_in(
    draft: Draft,
    head: message::Response,
    subprotocols: &[String],
) -> Result<Response, NotOffered> {
    if draft < Draft::Draft15 {
        return Ok(response(head, subprotocols));
    }
    let mut response = answer(head, subprotocol::parse_string);
    match &response.subprotocol {
        Some(selected) if !subprotocols.contains(selected) => {
            if response.is_ok() {
                return Err(NotOffered);
            }
            response.subprotocol = None;
        }
        _ => {}
    }
    Ok(response)
}

fn answer(head: message::Response, read: fn(&str) -> Option<String>) -> Response {
    let mut response = Response::status(head.status);
    for header in head.headers {
        match header.name.as_str() {
            SELECTED_PROTOCOL => response.subprotocol = read(&header.value),
            DRAFT02_RESPONSE => {}
            _ => response.headers.push(header),
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> Request {
        Request {
            authority: "a.example".into(),
            path: "/echo".into(),
            origin: Some("https://a.example".into()),
            headers: vec![Header {
                name: "user-agent".into(),
                value: "x".into(),
            }],
            subprotocols: vec!["v1".into(), "v2".into()],
        }
    }

    #[test]
    fn both_names_of_the_protocol_ask_for_a_session() {
        let mut asked = head(&example());
        for protocol in [PROTOCOL, PROTOCOL_H3] {
            asked.protocol = Some(protocol.into());
            let Asked::Session { request, draft02 } = Asked::new(asked.clone()).unwrap() else {
                panic!("not taken for a session");
            };
            assert_eq!(request, example());
            assert!(draft02);
        }
    }

    #[test]
    fn other_requests_have_a_status() {
        let ask = |method: &str, protocol: Option<&str>| {
            let mut asked = head(&example());
            asked.method = method.into();
            asked.protocol = protocol.map(str::to_owned);
            Asked::new(asked).unwrap()
        };
        assert_eq!(ask("GET", None), Asked::Other(404));
        assert_eq!(ask("HEAD", None), Asked::Other(404));
        assert_eq!(ask("POST", None), Asked::Other(405));
        assert_eq!(ask("CONNECT", None), Asked::Other(405));
        assert_eq!(ask("CONNECT", Some("websocket")), Asked::Other(501));
        let mut http = head(&example());
        http.scheme = Some("http".into());
        assert!(Asked::new(http).is_err());
    }

    #[test]
    fn a_subprotocol_that_was_not_offered_counts_as_none() {
        let mut answer = Response::ok();
        answer.subprotocol = Some("v2".into());
        let head = response_head(&answer, true);
        assert_eq!(response(head.clone(), &["v1".into(), "v2".into()]), answer);
        assert_eq!(response(head, &["v1".into()]), Response::ok());
    }

    #[test]
    fn a_subprotocol_that_was_not_offered_ends_a_session_of_the_newest_draft() {
        let mut answer = Response::ok();
        answer.subprotocol = Some("v2".into());
        let head = response_head(&answer, false);
        let offered = ["v1".to_owned(), "v2".to_owned()];
        let read = |draft, offered| response_in(draft, head.clone(), offered);
        assert_eq!(read(Draft::Draft15, &offered[..]), Ok(answer.clone()));
        assert_eq!(read(Draft::Draft15, &offered[..1]), Err(NotOffered));
        assert_eq!(read(Draft::Draft13, &offered[..1]), Ok(Response::ok()));
    }

    #[test]
    fn a_request_of_the_newest_draft_says_so_and_nothing_of_draft_02() {
        let asked = head_in(Draft::Draft15, &example());
        assert_eq!(asked.protocol.as_deref(), Some("webtransport-h3"));
        let Asked::Session { request, draft02 } = Asked::new(asked).unwrap() else {
            panic!("not taken for a session");
        };
        assert_eq!((request, draft02), (example(), false));
    }

    proptest! {
        #[test]
        fn a_request_survives_its_message(
            authority in "[a-z]{1,9}",
            path in "/[!-~]{0,9}",
            origin in prop::option::of("[!-~]{1,9}"),
            subprotocols in prop::collection::vec("[ -~]{1,9}", 0..4),
            headers in prop::collection::vec(("x-[a-z]{1,9}", "[!-~]{0,9}"), 0..4),
        ) {
            let headers = headers.into_iter().map(|(name, value)| Header { name, value }).collect();
            let request = Request { authority, path, origin, headers, subprotocols };
            let fields = head(&request).to_fields();
            let asked = Asked::new(message::Request::from_fields(fields).unwrap()).unwrap();
            prop_assert_eq!(asked, Asked::Session { request, draft02: true });
        }
    }
}
