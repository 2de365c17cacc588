//! A service of the operator's that changes the DNS: `POST URL` with `{"action","name","value"}`.

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use serde::Serialize;

use super::{super::http::Client, Change, Error};
use crate::bearer::Token;

#[derive(Serialize)]
struct Body<'a> {
    action: &'static str,
    name: &'a str,
    value: &'a str,
}

/// Asks for a change; any 2xx says that it is made.
pub(super) async fn post(
    client: &Client,
    url: &str,
    token: &Token,
    change: Change,
    name: &str,
    value: &str,
) -> Result<(), Error> {
    let body = Body {
        action: change.word(),
        name,
        value,
    };
    let body = serde_json::to_vec(&body).expect("plain data with text keys");
    let request = Request::post(url)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONTENT_LENGTH, body.len())
        .header(header::AUTHORIZATION, token.authorization())
        .body(Full::new(Bytes::from(body)));
    let request = request.map_err(|_| Error::Webhook("its URL cannot be used".to_owned()))?;
    let answered = client.clone().ask(request).await;
    let answer = answered.map_err(|error| Error::Webhook(error.to_string()))?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(Error::Webhook(format!("it answers {status}"))),
    }
}
