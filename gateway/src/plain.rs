//! Requests that ask for no session: health, certificate hashes, refresh.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use wavry_credentials::cert::Pinnable;
use wavry_transport::webtransport::plain::{Request, Response};

use crate::{core::Core, refresh};

/// Whether sessions are taken.
const HEALTH: &str = "/healthz";
/// What a page needs to connect to a gateway without a certificate of a public authority.
const HASHES: &str = "/.well-known/wavry/certificate-hashes";

/// Answers `request`, that came at `now`, since the Unix epoch.
pub(crate) fn answer(core: &Core, request: &Request, now: Duration) -> Response {
    let path = request.path.split('?').next().unwrap_or_default();
    match (path, request.method.as_str()) {
        (HEALTH, "GET" | "HEAD") => health(core),
        (HASHES, "GET" | "HEAD") => hashes(core),
        (HEALTH | HASHES, _) => Response::method_not_allowed("GET, HEAD"),
        (refresh::PATH, "POST") => refresh::refresh(core, request, now.as_secs()),
        (refresh::PATH, "OPTIONS") => refresh::preflight(core, request),
        (refresh::PATH, _) => Response::method_not_allowed("POST, OPTIONS"),
        _ => Response::status(404),
    }
}

fn health(core: &Core) -> Response {
    let (status, word) = match core.draining.is_cancelled() {
        false => (200, "ok\n"),
        true => (503, "draining\n"),
    };
    Response::content(status, "text/plain; charset=utf-8", word).with("cache-control", "no-store")
}

/// The hashes for `serverCertificateHashes`. They are no secret, and whoever has them has learned
/// nothing that the handshake does not show; any page may ask.
fn hashes(core: &Core) -> Response {
    #[derive(Serialize)]
    struct Hashes {
        hashes: Vec<Hash>,
    }
    /// As W3C WebTransport's `WebTransportHash`, the value in hexadecimal.
    #[derive(Serialize)]
    struct Hash {
        algorithm: &'static str,
        value: String,
        /// Seconds since the Unix epoch.
        not_after: u64,
    }
    let hash = |pinnable: Pinnable| Hash {
        algorithm: "sha-256",
        value: pinnable.hash.iter().map(|b| format!("{b:02x}")).collect(),
        not_after: pinnable
            .expires
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs(),
    };
    let hashes = core.certificates.pinnable().into_iter().map(hash);
    json(
        200,
        "application/json",
        &Hashes {
            hashes: hashes.collect(),
        },
    )
    .with("cache-control", "no-store")
    .with("access-control-allow-origin", "*")
}

/// An answer with JSON.
pub(crate) fn json(status: u16, media_type: &str, content: &impl Serialize) -> Response {
    let content = serde_json::to_vec(content).expect("answers are plain data with text keys");
    Response::content(status, media_type, content)
}
