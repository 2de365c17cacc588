//! The way to an authority, and what it says beside its answers.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::body::Body;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};

use super::machine::Time;
use crate::{
    cert::{self, Trust},
    clock::since_epoch,
    exchange,
};

pub(super) use exchange::Transport;

/// What the last answer said beside its content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Noted {
    /// The status.
    pub(super) status: u16,
    /// The authority does not want to be asked again before.
    pub(super) retry_at: Option<Time>,
}

/// A client of one authority. Clones share what was noted.
#[derive(Clone)]
pub(super) struct Client {
    exchange: exchange::Client,
    noted: Arc<Mutex<Noted>>,
}

impl Client {
    pub(super) fn new(trust: &Trust) -> Result<Self, cert::Error> {
        Ok(Self {
            exchange: exchange::Client::new(trust)?,
            noted: Arc::default(),
        })
    }

    /// One that asks `http://` URLs of loopback addresses, too.
    pub(super) fn with_plain_loopback(self) -> Self {
        Self {
            exchange: self.exchange.with_plain_loopback(),
            ..self
        }
    }

    /// What the last answer said; nothing more until the next one.
    pub(super) fn take_noted(&self) -> Noted {
        std::mem::take(&mut *self.noted())
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request, and gives the whole answer.
    pub(super) async fn ask<B>(
        self,
        request: Request<B>,
    ) -> Result<Response<Full<Bytes>>, Transport>
    where
        B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
            + Send
            + Unpin
            + 'static,
    {
        let response = self.exchange.ask(request).await?;
        *self.noted() = Noted {
            status: response.status().as_u16(),
            retry_at: response
                .headers()
                .get(header::RETRY_AFTER)
                .and_then(|value| retry_at(value, since_epoch())),
        };
        Ok(response.map(Full::new))
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.clone();
        Box::pin(async move {
            match client.ask(request).await {
                Ok(response) => Ok(BytesResponse::from(response)),
                Err(error) => Err(Error::Other(Box::new(error))),
            }
        })
    }
}

/// What `Retry-After` says (RFC 9110, section 10.2.3): seconds or a date.
fn retry_at(value: &HeaderValue, now: Time) -> Option<Time> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return now.checked_add(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    date.duration_since(SystemTime::UNIX_EPOCH).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Option<u64> {
        let value = HeaderValue::from_str(text).ok()?;
        retry_at(&value, Duration::from_secs(1000)).map(|time| time.as_secs())
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(read("120"), Some(1120));
        assert_eq!(read(" 0 "), Some(1000));
        assert_eq!(read("Thu, 01 Jan 1970 01:00:00 GMT"), Some(3600));
        for text in ["", "soon", "-1", "1.5", "99999999999999999999"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_read_or_passed_over(bytes: Vec<u8>) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                retry_at(&value, Duration::from_secs(1000));
            }
        }
    }
}
