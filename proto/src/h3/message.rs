//! Heads of requests and responses: what makes them well-formed (RFC 9114, sections 4.2 and 4.3;
//! RFC 9220, section 3).

use super::qpack::Field;
use crate::session::Header;

/// The head of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// `:method`.
    pub method: String,
    /// `:scheme`; only an ordinary CONNECT has none.
    pub scheme: Option<String>,
    /// `:authority`, or `host` where there is none.
    pub authority: String,
    /// `:path`; only an ordinary CONNECT has none.
    pub path: Option<String>,
    /// `:protocol`: the request is an extended CONNECT.
    pub protocol: Option<String>,
    /// The other fields, in order.
    pub headers: Vec<Header>,
}

/// The head of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// `:status`, 100 to 999.
    pub status: u16,
    /// The other fields, in order.
    pub headers: Vec<Header>,
}

/// A message is malformed: a stream error H3_MESSAGE_ERROR (RFC 9114, section 4.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct Malformed(pub &'static str);

/// Field names that speak of a connection and have no meaning in HTTP/3 (RFC 9114, section 4.2).
const CONNECTION_SPECIFIC: [&[u8]; 5] = [
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"transfer-encoding",
    b"upgrade",
];

impl Request {
    /// Reads the head of a request.
    pub fn from_fields(fields: Vec<Field>) -> Result<Self, Malformed> {
        let (mut method, mut scheme, mut authority, mut path, mut protocol) = Default::default();
        let headers = split(fields, |name, value| {
            let slot: &mut Option<String> = match name {
                b":method" => &mut method,
                b":scheme" => &mut scheme,
                b":authority" => &mut authority,
                b":path" => &mut path,
                b":protocol" => &mut protocol,
                _ => return Err(Malformed("unknown pseudo-header")),
            };
            fill(slot, value)
        })?;
        let method: String = method.ok_or(Malformed("no :method"))?;
        if !is_token(method.as_bytes()) {
            return Err(Malformed(":method is not a token"));
        }
        let host = single(&headers, "host")?;
        let authority = match (authority, host) {
            (Some(authority), Some(host)) if authority != host => {
                return Err(Malformed(":authority and host differ"));
            }
            (authority, host) => authority
                .or(host.map(str::to_owned))
                .filter(|authority| !authority.is_empty())
                .ok_or(Malformed("no :authority"))?,
        };
        if authority.contains('@') {
            return Err(Malformed(":authority has userinfo"));
        }
        let plain_connect = method == "CONNECT" && protocol.is_none();
        if protocol.is_some() && method != "CONNECT" {
            return Err(Malformed(":protocol without CONNECT"));
        }
        if plain_connect && (scheme.is_some() || path.is_some()) {
            return Err(Malformed("CONNECT with :scheme or :path"));
        }
        if !plain_connect {
            if scheme.is_none() {
                return Err(Malformed("no :scheme"));
            }
            let path = path.as_deref().ok_or(Malformed("no :path"))?;
            let whole_server = path == "*" && method == "OPTIONS";
            if !path.starts_with('/') && !whole_server {
                return Err(Malformed(":path is not absolute"));
            }
        }
        Ok(Self {
            method,
            scheme,
            authority,
            path,
            protocol,
            headers,
        })
    }

    /// The head as field lines, pseudo-headers first.
    pub fn to_fields(&self) -> Vec<Field> {
        let mut fields = vec![Field::new(":method", &self.method)];
        for (name, value) in [
            (":scheme", self.scheme.as_ref()),
            (":authority", Some(&self.authority)),
            (":path", self.path.as_ref()),
            (":protocol", self.protocol.as_ref()),
        ] {
            fields.extend(value.map(|value| Field::new(name, value)));
        }
        push_headers(&mut fields, &self.headers);
        fields
    }
}

impl Response {
    /// Reads the head of a response.
    pub fn from_fields(fields: Vec<Field>) -> Result<Self, Malformed> {
        let mut status = None;
        let headers = split(fields, |name, value| match name {
            b":status" => fill(&mut status, value),
            _ => Err(Malformed("unknown pseudo-header")),
        })?;
        let status = status.ok_or(Malformed("no :status"))?;
        if status.len() != 3 || !status.bytes().all(|b| b.is_ascii_digit()) {
            return Err(Malformed(":status is not three digits"));
        }
        match status.parse() {
            // RFC 9114, section 4.5.
            Ok(101) => Err(Malformed(":status 101 does not exist in HTTP/3")),
            Ok(status @ 100..) => Ok(Self { status, headers }),
            _ => Err(Malformed(":status is below 100")),
        }
    }

    /// The head as field lines, pseudo-headers first.
    pub fn to_fields(&self) -> Vec<Field> {
        let mut fields = vec![Field::new(":status", format!("{:03}", self.status))];
        push_headers(&mut fields, &self.headers);
        fields
    }
}

/// Whether a field may be part of a message: a lower-case name that speaks of no connection, and a
/// value without control characters.
pub fn is_header(name: &[u8], value: &[u8]) -> bool {
    check_header(name, value).is_ok()
}

/// Separates pseudo-headers, which come first and go to `pseudo`, from the other fields. Values that
/// are not UTF-8 are left out, as Wavry does not carry them.
fn split(
    fields: Vec<Field>,
    mut pseudo: impl FnMut(&[u8], Vec<u8>) -> Result<(), Malformed>,
) -> Result<Vec<Header>, Malformed> {
    let mut headers = Vec::with_capacity(fields.len());
    let mut regular = false;
    let mut length = None;
    for Field { name, value } in fields {
        if name.starts_with(b":") {
            if regular {
                return Err(Malformed("pseudo-header after a header"));
            }
            pseudo(&name, value)?;
            continue;
        }
        regular = true;
        check_header(&name, &value)?;
        if name == b"content-length" {
            let this = content_length(&value)?;
            if *length.get_or_insert(this) != this {
                return Err(Malformed("content-length twice"));
            }
        }
        if let (Ok(name), Ok(value)) = (String::from_utf8(name), String::from_utf8(value)) {
            headers.push(Header { name, value });
        }
    }
    Ok(headers)
}

fn fill(slot: &mut Option<String>, value: Vec<u8>) -> Result<(), Malformed> {
    if slot.is_some() {
        return Err(Malformed("pseudo-header twice"));
    }
    // None of the pseudo-headers can hold anything but visible ASCII (RFC 3986, section 2).
    if !value.iter().all(u8::is_ascii_graphic) {
        return Err(Malformed(
            "pseudo-header with a character outside visible ASCII",
        ));
    }
    *slot = String::from_utf8(value).ok();
    Ok(())
}

/// RFC 9110, section 8.6.
fn content_length(value: &[u8]) -> Result<u64, Malformed> {
    let digits = std::str::from_utf8(value)
        .ok()
        .filter(|value| value.bytes().all(|b| b.is_ascii_digit()));
    digits
        .and_then(|digits| digits.parse().ok())
        .ok_or(Malformed("content-length is not a number"))
}

fn single<'a>(headers: &'a [Header], name: &str) -> Result<Option<&'a str>, Malformed> {
    let mut values = headers.iter().filter(|header| header.name == name);
    let first = values.next();
    if values.next().is_some() {
        return Err(Malformed("host twice"));
    }
    Ok(first.map(|header| header.value.as_str()))
}

fn check_header(name: &[u8], value: &[u8]) -> Result<(), Malformed> {
    if !is_token(name) || name.iter().any(u8::is_ascii_uppercase) {
        return Err(Malformed("field name is not a lower-case token"));
    }
    if CONNECTION_SPECIFIC.contains(&name) || (name == b"te" && value != b"trailers") {
        return Err(Malformed("connection-specific field"));
    }
    let blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    if value.iter().any(|b| matches!(b, 0 | b'\r' | b'\n')) {
        return Err(Malformed("field value with a control character"));
    }
    if blank(value.first()) || blank(value.last()) {
        return Err(Malformed("field value begins or ends with a blank"));
    }
    Ok(())
}

/// RFC 9110, section 5.6.2.
fn is_token(text: &[u8]) -> bool {
    let special = |b: &u8| b"!#$%&'*+-.^_`|~".contains(b);
    !text.is_empty() && text.iter().all(|b| b.is_ascii_alphanumeric() || special(b))
}

fn push_headers(fields: &mut Vec<Field>, headers: &[Header]) {
    let carried = headers
        .iter()
        .filter(|header| is_header(header.name.as_bytes(), header.value.as_bytes()));
    fields.extend(carried.map(|header| Field::new(&header.name, &header.value)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(list: &[(&str, &str)]) -> Vec<Field> {
        list.iter().map(|(n, v)| Field::new(n, v)).collect()
    }

    const CONNECT: [(&str, &str); 5] = [
        (":method", "CONNECT"),
        (":scheme", "https"),
        (":authority", "a.example:443"),
        (":path", "/echo?x=1"),
        (":protocol", "webtransport"),
    ];

    #[test]
    fn an_extended_connect_is_read_and_written() {
        let mut list = CONNECT.to_vec();
        list.push(("origin", "https://a.example"));
        let request = Request::from_fields(fields(&list)).unwrap();
        assert_eq!(request.path.as_deref(), Some("/echo?x=1"));
        assert_eq!(request.protocol.as_deref(), Some("webtransport"));
        assert_eq!(request.to_fields(), fields(&list));
    }

    #[test]
    fn malformed_requests_are_refused() {
        let without = |name| {
            CONNECT
                .iter()
                .copied()
                .filter(|(n, _)| *n != name)
                .collect()
        };
        let with = |name, value| [&CONNECT[..], &[(name, value)]].concat();
        let replaced = |name, value| {
            CONNECT
                .map(|(n, v)| if n == name { (n, value) } else { (n, v) })
                .to_vec()
        };
        let cases: Vec<(&str, Vec<(&str, &str)>)> = vec![
            ("no method", without(":method")),
            ("no scheme", without(":scheme")),
            ("no path", without(":path")),
            ("no authority", without(":authority")),
            ("empty authority", replaced(":authority", "")),
            ("userinfo", replaced(":authority", "user@a.example")),
            ("relative path", replaced(":path", "echo")),
            ("empty path", replaced(":path", "")),
            ("NUL in path", replaced(":path", "/a\0b")),
            ("blank in path", replaced(":path", "/a b")),
            ("protocol with GET", replaced(":method", "GET")),
            ("twice", with(":path", "/")),
            ("unknown pseudo-header", with(":status", "200")),
            ("upper case", with("Origin", "x")),
            ("empty name", with("", "x")),
            ("name with a blank", with("a b", "x")),
            ("newline", with("a", "x\r\ny: z")),
            ("leading blank", with("a", " x")),
            ("connection", with("connection", "close")),
            ("upgrade", with("upgrade", "websocket")),
            ("te", with("te", "gzip")),
            ("other host", with("host", "b.example")),
            ("length", with("content-length", "-1")),
            (
                "lengths",
                [&with("content-length", "1")[..], &[("content-length", "2")]].concat(),
            ),
            (
                "pseudo-header after a header",
                [&[("a", "b")], &CONNECT[..]].concat(),
            ),
            ("CONNECT with path", without(":protocol")),
        ];
        for (what, list) in cases {
            assert!(
                Request::from_fields(fields(&list)).is_err(),
                "{what} was taken"
            );
        }
        assert!(Request::from_fields(fields(&with("te", "trailers"))).is_ok());
        assert!(Request::from_fields(fields(&with("host", "a.example:443"))).is_ok());
    }

    #[test]
    fn ordinary_requests_are_read() {
        let get = fields(&[
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/"),
            ("host", "a"),
        ]);
        assert_eq!(Request::from_fields(get).unwrap().authority, "a");
        let connect = fields(&[(":method", "CONNECT"), (":authority", "a:1")]);
        assert_eq!(Request::from_fields(connect).unwrap().path, None);
    }

    #[test]
    fn malformed_responses_are_refused() {
        for list in [
            &[][..],
            &[(":status", "")],
            &[(":status", "20")],
            &[(":status", "2000")],
            &[(":status", "099")],
            &[(":status", "101")],
            &[(":status", "+20")],
            &[(":status", "200"), (":status", "200")],
            &[(":status", "200"), (":path", "/")],
        ] {
            assert!(
                Response::from_fields(fields(list)).is_err(),
                "{list:?} was taken"
            );
        }
    }

    #[test]
    fn headers_that_no_message_may_have_are_not_written() {
        let header = |name: &str, value: &str| Header {
            name: name.into(),
            value: value.into(),
        };
        let response = Response {
            status: 200,
            headers: vec![
                header("a", "b"),
                header(":path", "/"),
                header("connection", "close"),
                header("x", "a\r\nb"),
            ],
        };
        assert_eq!(
            response.to_fields(),
            fields(&[(":status", "200"), ("a", "b")])
        );
    }

    proptest! {
        #[test]
        fn arbitrary_fields_are_a_message_that_survives_or_an_error(
            list in prop::collection::vec((
                prop_oneof![
                    "[a-z:]{0,4}".prop_map(String::into_bytes),
                    Just(b":method".to_vec()), Just(b":path".to_vec()), Just(b":scheme".to_vec()),
                    Just(b":authority".to_vec()), Just(b":status".to_vec()), any::<Vec<u8>>(),
                ],
                prop_oneof!["/?[!-~]{0,6}".prop_map(String::into_bytes), any::<Vec<u8>>()],
            ), 0..8)
        ) {
            let fields: Vec<_> = list.into_iter().map(|(n, v)| Field::new(n, v)).collect();
            if let Ok(request) = Request::from_fields(fields.clone()) {
                let again = Request::from_fields(request.to_fields()).unwrap();
                prop_assert_eq!(again, request);
            }
            if let Ok(response) = Response::from_fields(fields) {
                let again = Response::from_fields(response.to_fields()).unwrap();
                prop_assert_eq!(again, response);
            }
        }
    }
}
