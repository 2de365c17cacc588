//! http-01: a key authorization as the answer to `GET /.well-known/acme-challenge/TOKEN`.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::{Answer, Answers, DEADLINE};

const PREFIX: &str = "/.well-known/acme-challenge/";
/// Longest request head, in bytes; hyper's least.
const MAX_HEAD: usize = 8 * 1024;

/// Answers one request.
pub(super) async fn serve(stream: TcpStream, answers: Answers) -> &'static str {
    let answered = AtomicBool::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), &answers);
        answered.fetch_or(response.status().is_success(), Ordering::Relaxed);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .timer(TokioTimer::new())
        .header_read_timeout(DEADLINE)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    match (connection.is_ok(), answered.load(Ordering::Relaxed)) {
        (_, true) => "answered",
        (true, false) => "unknown",
        (false, false) => "malformed",
    }
}

fn answer(method: &Method, path: &str, answers: &Answers) -> Response<Full<Bytes>> {
    let found = match method {
        &Method::GET | &Method::HEAD => path
            .strip_prefix(PREFIX)
            .and_then(|token| answers.find(token)),
        _ => None,
    };
    let mut response = Response::new(Full::default());
    match found {
        Some(Answer::Text(text)) => {
            let octets = HeaderValue::from_static("application/octet-stream");
            response.headers_mut().insert(header::CONTENT_TYPE, octets);
            *response.body_mut() = Full::from(text);
        }
        _ => *response.status_mut() = StatusCode::NOT_FOUND,
    }
    response
}
