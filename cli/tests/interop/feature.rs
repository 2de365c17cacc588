//! The features, and what each shows where all is well.

use serde_json::{Value, json};

use crate::exception::Exception;

/// One line of the matrix.
pub(crate) struct Feature {
    /// Its key in a client's report.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// What the client sees.
    pub(crate) client: Value,
    /// What the service sees, and at which request.
    pub(crate) service: Option<(&'static str, Value)>,
}

/// Every line of the matrix, in its order.
pub(crate) fn all() -> Vec<Feature> {
    let feature = |name, title, client, service| Feature {
        name,
        title,
        client,
        service,
    };
    vec![
        feature("connect", "connect", json!("connected"), None),
        refusal("status/403", "refused with 403", 403),
        refusal("status/404", "refused with 404", 404),
        refusal("status/429", "refused with 429", 429),
        refusal("status/431", "refused with 431", 431),
        feature(
            "subprotocol",
            "subprotocol",
            json!("last"),
            Some(("subprotocol", json!(["first", "last"]))),
        ),
        feature(
            "bi by client",
            "bidirectional stream, opened by the client",
            json!("echo"),
            None,
        ),
        feature(
            "bi by service",
            "bidirectional stream, opened by the server",
            json!("the service"),
            Some(("open/bi", json!("a client"))),
        ),
        feature(
            "uni by client",
            "unidirectional stream, opened by the client",
            json!("seen"),
            Some(("hear/uni", json!("a client"))),
        ),
        feature(
            "uni by service",
            "unidirectional stream, opened by the server",
            json!("the service"),
            None,
        ),
        feature("datagrams", "datagrams", json!("a datagram"), None),
        feature(
            "reset by client",
            "reset code, by the client",
            json!("seen"),
            Some(("observe/reset", json!(33))),
        ),
        feature(
            "reset by service",
            "reset code, by the server",
            json!(33),
            None,
        ),
        feature(
            "stop by client",
            "stop code, by the client",
            json!("seen"),
            Some(("observe/stop", json!(44))),
        ),
        feature(
            "stop by service",
            "stop code, by the server",
            json!(44),
            None,
        ),
        feature(
            "close by client",
            "close code and reason, by the client",
            json!("closed here"),
            Some(("closed", json!([4242, "done"]))),
        ),
        feature(
            "close by service",
            "close code and reason, by the server",
            json!([4242, "done"]),
            None,
        ),
        feature(
            "drain by client",
            "drain, by the client",
            json!("seen"),
            Some(("drained", json!(true))),
        ),
        feature(
            "drain by service",
            "drain, by the server",
            json!(["told", "echo"]),
            None,
        ),
        feature(
            "two sessions",
            "two sessions on one connection",
            json!(["echo", "echo", "echo"]),
            None,
        ),
        feature("get", "GET beside a session", json!([404, "echo"]), None),
    ]
}

fn refusal(path: &'static str, title: &'static str, status: u16) -> Feature {
    Feature {
        name: path,
        title,
        client: json!(status),
        service: Some((path, json!(status))),
    }
}

/// What one run showed of one feature.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shown {
    pub(crate) client: Value,
    pub(crate) service: Value,
}

impl Feature {
    pub(crate) fn expected(&self, exception: Option<&Exception>) -> Shown {
        let service = self.service.as_ref();
        let usual = Shown {
            client: self.client.clone(),
            service: service.map_or(Value::Null, |(_, saw)| saw.clone()),
        };
        match exception {
            Some(exception) => exception.shown(usual),
            None => usual,
        }
    }
}
