//! Where a peer differs from what everyone else shows, and the evidence.

use serde_json::{Value, json};

use crate::{feature::Shown, peer::Peer};

/// A cell in which a peer differs. What is seen then is held to as well: a peer that learns a
/// feature fails the test, and its cell is written anew.
pub(crate) struct Exception {
    pub(crate) feature: &'static str,
    /// Whether the feature is not to be had; else it only shows in another way.
    pub(crate) lacks: bool,
    pub(crate) evidence: &'static str,
    /// Whether what is seen is left to chance, and not looked at.
    pub(crate) unsteady: bool,
    client: Option<Value>,
    service: Option<Value>,
}

impl Exception {
    /// What is seen, where usually it is `usual`. What the service sees of a feature that is not to
    /// be had is nothing, or listed here.
    pub(crate) fn shown(&self, usual: Shown) -> Shown {
        let service = if self.lacks {
            Value::Null
        } else {
            usual.service
        };
        Shown {
            client: self.client.clone().unwrap_or(usual.client),
            service: self.service.clone().unwrap_or(service),
        }
    }

    /// The feature shows as it does everywhere, but there is something to say of it.
    fn as_usual(feature: &'static str, evidence: &'static str) -> Self {
        Self {
            feature,
            lacks: false,
            evidence,
            unsteady: false,
            client: None,
            service: None,
        }
    }

    /// The feature works; its client sees this of it.
    fn differs(feature: &'static str, client: Value, evidence: &'static str) -> Self {
        Self {
            client: Some(client),
            ..Self::as_usual(feature, evidence)
        }
    }

    /// The feature is not to be had; its client sees this instead.
    fn lacks(feature: &'static str, client: Value, evidence: &'static str) -> Self {
        Self {
            lacks: true,
            ..Self::differs(feature, client, evidence)
        }
    }

    /// What is seen is left to chance.
    fn unsteady(self) -> Self {
        Self {
            unsteady: true,
            ..self
        }
    }

    /// And its service sees this.
    fn and(self, service: Value) -> Self {
        Self {
            service: Some(service),
            ..self
        }
    }
}

const REFUSALS: [&str; 4] = ["status/403", "status/404", "status/429", "status/431"];

const WTRANSPORT_DRAINS: &str = "WT_DRAIN_SESSION is not known to it (`capsule/mod.rs` has \
                                 WT_CLOSE_SESSION alone). One that comes is skipped, and the \
                                 session goes on.";
const WEB_TRANSPORT_QUINN_DRAINS: &str = "WT_DRAIN_SESSION is not known to it (`capsule.rs` of \
                                          web-transport-proto). One that comes is skipped, and the \
                                          session goes on.";

/// The same of every status.
fn refusals(client: &Value, evidence: &'static str) -> impl Iterator<Item = Exception> {
    REFUSALS
        .map(|feature| Exception::differs(feature, client.clone(), evidence))
        .into_iter()
}

/// Where `peer` differs.
pub(crate) fn of(peer: Peer) -> Vec<Exception> {
    match peer {
        Peer::Chromium => chromium(),
        Peer::Firefox => firefox(),
        Peer::Deno => deno(),
        Peer::AioquicClient => vec![aioquic()],
        Peer::Pywebtransport => pywebtransport(),
        Peer::WtransportClient => wtransport_client(),
        Peer::WebTransportQuinnClient => web_transport_quinn_client(),
        Peer::AioquicServer => vec![aioquic(), no_get()],
        Peer::WtransportServer => wtransport_server(),
        Peer::WebTransportQuinnServer => web_transport_quinn_server(),
    }
}

fn aioquic() -> Exception {
    Exception::as_usual(
        "two sessions",
        "its SETTINGS speak of draft-02, which knows one session on a connection; the test adds the \
         setting of draft-07, which counts them.",
    )
}

fn pywebtransport() -> Vec<Exception> {
    let refused = json!("wt_connection open failed actual=127.0.0.1 error_code=0x10b");
    let mut all = vec![Exception::lacks(
        "get",
        json!(["no such call", "echo"]),
        "it has no GET.",
    )];
    all.extend(refusals(
        &refused,
        "its error does not say with which status.",
    ));
    all
}

fn no_get() -> Exception {
    Exception::lacks(
        "get",
        json!(["no such call", "echo"]),
        "the client is Wavry's own, which asks for sessions only.",
    )
}

/// What the W3C's interface keeps from pages, or has no call for. `echo` is what becomes of an echo.
fn page(echo: &str) -> Vec<Exception> {
    let mut all = vec![
        Exception::lacks(
            "two sessions",
            json!(["on two connections", echo, echo, echo]),
            "each `WebTransport` has a connection of its own; the service sees two client addresses.",
        ),
        Exception::lacks(
            "drain by client",
            json!("no such call"),
            "the W3C's interface has no call for it.",
        ),
        Exception::lacks(
            "drain by service",
            json!(["no such call", echo]),
            "`WebTransport` has no attribute `draining`; the session goes on.",
        ),
    ];
    let evidence = "whatever the status, a page is told the same.";
    all.extend(refusals(&json!("refused"), evidence));
    all
}

fn chromium() -> Vec<Exception> {
    let mut all = page("echo");
    all.push(Exception::as_usual(
        "stop by service",
        "a page is told of every stop, but of its code in most tries only: network process and \
         renderer race. The script tries until the code comes, 30 times at most.",
    ));
    all
}

fn firefox() -> Vec<Exception> {
    let mut all = page("echo");
    all.push(Exception::as_usual(
        "reset by service",
        "the code comes with the reader's `closed`. If a read is pending, both fail without it.",
    ));
    all.push(Exception::lacks(
        "subprotocol",
        json!("no such attribute"),
        "`WebTransport` has no attribute `protocol`, and no offer is sent.",
    ));
    all.push(Exception::lacks(
        "stop by client",
        json!("nothing came"),
        "`cancel` on a stream's reader sends no STOP_SENDING.",
    ));
    all
}

fn deno() -> Vec<Exception> {
    let endless = "streams are not finished by `close` and not reset by `abort` (denoland/deno#36822); \
                   what was written arrives.";
    let cancels = "a stream that is cancelled is stopped when its garbage is collected \
                   (denoland/deno#36822), and with code 0.";
    let codes = "the error comes with a text alone, in which the HTTP/3 code is.";
    let closes = "`close` closes the QUIC connection and the CONNECT stream is not read \
                  (`ext/web/webtransport.js`): no WT_CLOSE_SESSION is sent or seen. `closed` shows the \
                  code that the connection is closed with.";
    let mut all = page("echo without an end");
    all.extend([
        Exception::lacks(
            "subprotocol",
            json!("no such attribute"),
            "`WebTransport` has no attribute `protocol`, and no offer is sent.",
        ),
        Exception::differs("bi by client", json!("echo without an end"), endless),
        Exception::as_usual("bi by service", endless).and(json!("a client without an end")),
        Exception::as_usual("uni by client", endless).and(json!("a client without an end")),
        // A collection of garbage may end or stop the stream.
        Exception::lacks("reset by client", json!("nothing came"), endless).unsteady(),
        Exception::lacks("reset by service", json!("an error without a code"), codes),
        Exception::lacks("stop by client", json!("nothing came"), cancels).unsteady(),
        Exception::lacks("stop by service", json!("an error without a code"), codes),
        Exception::lacks("close by client", json!("closed here"), closes).and(json!("lost")),
        Exception::lacks("close by service", json!([256, ""]), closes),
        Exception::lacks(
            "get",
            json!("no such call"),
            "`fetch` does not speak HTTP/3.",
        ),
    ]);
    all
}

fn wtransport_client() -> Vec<Exception> {
    let refused = json!("server rejected WebTransport session request");
    let mut all = vec![
        Exception::lacks(
            "subprotocol",
            json!("no such call"),
            "the offer goes out as a header of the application's; the headers of the answer are not \
             shown (`endpoint.rs` looks at its status alone).",
        )
        .and(json!(["first", "last"])),
        Exception::lacks(
            "close by client",
            json!("closed here"),
            "`Connection::close` closes the QUIC connection; no WT_CLOSE_SESSION is sent, so the \
             service sees a lost connection, and behind the mesh the close code `CLIENT_LOST`.",
        )
        .and(json!("lost")),
        Exception::lacks(
            "drain by client",
            json!("no such call"),
            WTRANSPORT_DRAINS,
        ),
        Exception::lacks(
            "drain by service",
            json!(["no such call", "echo"]),
            WTRANSPORT_DRAINS,
        ),
        Exception::lacks(
            "two sessions",
            json!("no such call"),
            "`Endpoint::connect` opens a connection for each session.",
        ),
        Exception::as_usual(
            "get",
            "it has no GET; the request is put on its session's QUIC connection by the test.",
        ),
    ];
    all.extend(codes());
    let evidence = "`ConnectingError::SessionRejected` does not say with which status.";
    all.extend(refusals(&refused, evidence));
    all
}

fn codes() -> [Exception; 4] {
    let features = [
        "reset by client",
        "reset by service",
        "stop by client",
        "stop by service",
    ];
    let evidence =
        "it sends and shows HTTP/3 codes; the test maps them to application codes and back.";
    features.map(|feature| Exception::as_usual(feature, evidence))
}

fn web_transport_quinn_client() -> Vec<Exception> {
    let drains = WEB_TRANSPORT_QUINN_DRAINS;
    vec![
        Exception::lacks("drain by client", json!("no such call"), drains),
        Exception::lacks("drain by service", json!(["no such call", "echo"]), drains),
        Exception::lacks(
            "two sessions",
            json!("no such call"),
            "`Client::connect` opens a connection for each session, and `Session::connect` wants a \
             new one.",
        ),
        Exception::as_usual(
            "get",
            "it has no GET; the request is put on its session's QUIC connection by the test.",
        ),
    ]
}

fn one_session() -> Exception {
    Exception::lacks(
        "two sessions",
        json!("cannot connect: the server takes no more sessions on this connection"),
        "its SETTINGS allow one (SETTINGS_WEBTRANSPORT_MAX_SESSIONS is 1), and our client does not ask \
         for another. Through the mesh it works, as the relay opens a connection for each session.",
    )
}

fn wtransport_server() -> Vec<Exception> {
    let drains = WTRANSPORT_DRAINS;
    let mut all = vec![
        Exception::lacks(
            "status/431",
            json!("cannot connect: no answer came"),
            "a request can be refused with 403, 404 or 429 (`SessionRequest`); one that is dropped \
             gets no answer. Through the mesh that is 502.",
        ),
        Exception::lacks(
            "close by service",
            json!("lost"),
            "`Connection::close` closes the QUIC connection; no WT_CLOSE_SESSION is sent. Through the \
             mesh that is the close code `UPSTREAM_LOST`.",
        ),
        Exception::lacks("drain by client", json!("nothing came"), drains),
        Exception::lacks("drain by service", json!("nothing came"), drains),
        one_session(),
        no_get(),
    ];
    all.extend(codes());
    all
}

fn web_transport_quinn_server() -> Vec<Exception> {
    let drains = WEB_TRANSPORT_QUINN_DRAINS;
    vec![
        Exception::lacks("drain by client", json!("nothing came"), drains),
        Exception::lacks("drain by service", json!("nothing came"), drains),
        one_session(),
        no_get(),
    ]
}
