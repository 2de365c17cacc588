//! `wavry probe`: a native client that measures one session.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use serde::Serialize;
use url::Url;
use wavry_credentials::{bearer, cert, source};
use wavry_transport::{
    session::{Close, Header, Request, Response, Session as _},
    webtransport::{Client, ConnectError, Limits, Session},
};

mod measure;

/// `wavry probe`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Session to open: `https://HOST:PORT/SERVICE/PATH?token=TOKEN`
    url: Url,
    /// Trust the authorities in this PEM file instead of the operating system's
    #[arg(long, value_name = "FILE", conflicts_with = "certificate_hash")]
    ca: Option<PathBuf>,
    /// Trust a certificate with this SHA-256 hash, as a browser's serverCertificateHashes does
    #[arg(long, value_name = "HEX", value_parser = parse_hash)]
    certificate_hash: Vec<[u8; 32]>,
    /// Read a session token from FILE and send it as Authorization: Bearer
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How long to measure, in all
    #[arg(long, default_value = "5s", value_parser = crate::provision::parse_duration)]
    duration: Duration,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Send a header field; may be given several times
    #[arg(long, value_name = "NAME: VALUE", value_parser = parse_header)]
    header: Vec<Header>,
    /// Send an origin, as a browser would
    #[arg(long)]
    origin: Option<String>,
    /// Offer a subprotocol; may be given several times, best first
    #[arg(long, value_name = "NAME")]
    subprotocol: Vec<String>,
}

/// What was measured. Milliseconds and bytes per second, as the names say; `null` where the
/// service did not answer in kind, which `notes` explains.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// The URL without its query, which may hold a token.
    pub(crate) url: String,
    /// Address connected to.
    pub(crate) remote: String,
    /// Status of the answer.
    pub(crate) status: u16,
    /// Subprotocol chosen.
    pub(crate) subprotocol: Option<String>,
    /// From the first packet to the answer.
    pub(crate) connect_ms: f64,
    /// Longest datagram the session takes.
    pub(crate) max_datagram_bytes: usize,
    /// Datagrams.
    #[serde(flatten)]
    pub(crate) datagrams: Datagrams,
    /// Streams.
    #[serde(flatten)]
    pub(crate) streams: Streams,
    /// What could not be measured, and why.
    pub(crate) notes: Vec<String>,
}

/// Datagrams sent, echoed, and their round trip.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Datagrams {
    /// Given to the session.
    pub(crate) datagrams_sent: u64,
    /// Echoed.
    pub(crate) datagrams_received: u64,
    /// Median round trip.
    pub datagram_rtt_p50_ms: Option<f64>,
    /// 90th percentile.
    pub datagram_rtt_p90_ms: Option<f64>,
    /// 99th percentile.
    pub datagram_rtt_p99_ms: Option<f64>,
}

/// Round trips over one bidirectional stream, and throughput each way over another.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Streams {
    /// Round trips made.
    pub(crate) stream_round_trips: u64,
    /// Median round trip.
    pub stream_rtt_p50_ms: Option<f64>,
    /// 90th percentile.
    pub stream_rtt_p90_ms: Option<f64>,
    /// 99th percentile.
    pub stream_rtt_p99_ms: Option<f64>,
    /// Client to service.
    pub(crate) stream_up_bytes_per_second: Option<f64>,
    /// Service to client, while it echoes what it is sent.
    pub(crate) stream_down_bytes_per_second: Option<f64>,
}

/// How long the service has to answer the request.
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);

/// Opens the session, measures, prints.
pub(crate) async fn run(args: &Args) -> anyhow::Result<()> {
    let trust = match (&args.ca, args.certificate_hash.as_slice()) {
        (Some(file), _) => cert::Trust::Authorities(file.clone()),
        (None, []) => cert::Trust::System,
        (None, hashes) => cert::Trust::Hashes(hashes.to_vec()),
    };
    let request = request(args)?;
    let report = measure(&args.url, &trust, request, args.duration).await?;
    let text = if args.json {
        serde_json::to_string(&report).context("report")?
    } else {
        table(&report)
    };
    writeln!(std::io::stdout(), "{text}").context("standard output")
}

/// Opens a session, closes it again, and tells how the service answered.
pub(crate) async fn check(url: &Url, trust: &cert::Trust) -> anyhow::Result<Response> {
    let (session, response, _) = connect(url, trust, plain_request(url)?).await?;
    session.close(Close::default());
    Ok(response)
}

async fn measure(
    url: &Url,
    trust: &cert::Trust,
    request: Request,
    duration: Duration,
) -> anyhow::Result<Report> {
    let started = Instant::now();
    let (session, response, remote) = connect(url, trust, request).await?;
    let connect = started.elapsed();
    let mut report = Report {
        url: shown(url),
        remote: remote.to_string(),
        status: response.status,
        subprotocol: response.subprotocol,
        connect_ms: millis(connect),
        max_datagram_bytes: session.max_datagram_size(),
        ..Report::default()
    };
    let part = duration / 3;
    let measured = async {
        report.datagrams = measure::datagrams(&session, part, &mut report.notes).await?;
        measure::stream_round_trips(&session, part, &mut report.streams, &mut report.notes).await?;
        measure::throughput(&session, part, &mut report.streams, &mut report.notes).await
    };
    measured
        .await
        .map_err(|closed: measure::Ended| anyhow!("{}: {closed}", shown(url)))?;
    session.close(Close::new(0, "probe finished"));
    session.closed().await;
    Ok(report)
}

async fn connect(
    url: &Url,
    trust: &cert::Trust,
    request: Request,
) -> anyhow::Result<(Session, Response, SocketAddr)> {
    let host = url.host_str().context("the URL has no host")?;
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let port = url.port_or_known_default().unwrap_or(443);
    let tls = cert::client_config(trust)?;
    let mut last = anyhow!("{name} has no address");
    for remote in tokio::net::lookup_host((name, port))
        .await
        .with_context(|| format!("{name} cannot be resolved"))?
    {
        let local: IpAddr = match remote {
            SocketAddr::V4(_) => [0, 0, 0, 0].into(),
            SocketAddr::V6(_) => [0u16; 8].into(),
        };
        let client =
            Client::new((local, 0).into(), tls.clone(), Limits::default()).context("UDP socket")?;
        let connected = client.connect(remote, name, request.clone());
        match tokio::time::timeout(CONNECT_DEADLINE, connected).await {
            Ok(Ok((session, response))) => return Ok((session, response, remote)),
            Ok(Err(ConnectError::Rejected(response))) => bail!(
                "{}: refused with status {}{}",
                shown(url),
                response.status,
                meaning(response.status)
            ),
            Ok(Err(error)) => last = anyhow!("{} at {remote}: {error}", shown(url)),
            Err(_) => {
                last = anyhow!(
                    "{} at {remote}: no answer within {CONNECT_DEADLINE:?}",
                    shown(url)
                );
            }
        }
    }
    Err(last)
}

fn plain_request(url: &Url) -> anyhow::Result<Request> {
    if url.scheme() != "https" {
        bail!("the URL must start with https://");
    }
    let host = url.host_str().context("the URL has no host")?;
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    Ok(Request {
        authority: match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        },
        path,
        ..Request::default()
    })
}

fn request(args: &Args) -> anyhow::Result<Request> {
    let mut request = plain_request(&args.url)?;
    request.origin = args.origin.clone();
    request.headers = args.header.clone();
    request.subprotocols = args.subprotocol.clone();
    if let Some(file) = &args.token_file {
        let token = bearer::Token::read(&source::read_file(file)?)
            .with_context(|| file.display().to_string())?;
        request.headers.push(Header {
            name: "authorization".to_owned(),
            value: token.authorization(),
        });
    }
    Ok(request)
}

/// The URL as it may be shown: without user, query and fragment.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

fn meaning(status: u16) -> &'static str {
    match status {
        400 => " (bad request)",
        401 => " (no valid token)",
        403 => " (forbidden: origin or token)",
        404 => " (no such service or path)",
        429 => " (too many sessions)",
        431 => " (headers too long)",
        502 => " (the upstream refused or is gone)",
        503 => " (no relay for the service, or draining)",
        504 => " (the upstream did not answer)",
        _ => "",
    }
}

fn table(report: &Report) -> String {
    let ms = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
    let rate = |value: Option<f64>| {
        value.map_or("-".to_owned(), |value| format!("{:.1} MB/s", value / 1e6))
    };
    let Report {
        datagrams, streams, ..
    } = report;
    let mut lines = vec![
        format!("{}  ({})", report.url, report.remote),
        format!("  status           {}", report.status),
        format!(
            "  subprotocol      {}",
            report.subprotocol.as_deref().unwrap_or("-")
        ),
        format!("  connect          {:.3} ms", report.connect_ms),
        format!("  max datagram     {} bytes", report.max_datagram_bytes),
        format!(
            "  datagrams        {} of {} came back",
            datagrams.datagrams_received, datagrams.datagrams_sent
        ),
        String::new(),
        format!(
            "  {:16} {:>9} {:>9} {:>9}",
            "round trip, ms", "p50", "p90", "p99"
        ),
        format!(
            "  {:16} {:>9} {:>9} {:>9}",
            "datagram",
            ms(datagrams.datagram_rtt_p50_ms),
            ms(datagrams.datagram_rtt_p90_ms),
            ms(datagrams.datagram_rtt_p99_ms)
        ),
        format!(
            "  {:16} {:>9} {:>9} {:>9}",
            "stream",
            ms(streams.stream_rtt_p50_ms),
            ms(streams.stream_rtt_p90_ms),
            ms(streams.stream_rtt_p99_ms)
        ),
        String::new(),
        format!(
            "  up               {}",
            rate(streams.stream_up_bytes_per_second)
        ),
        format!(
            "  down             {}",
            rate(streams.stream_down_bytes_per_second)
        ),
    ];
    lines.extend(report.notes.iter().map(|note| format!("  note: {note}")));
    lines.join("\n")
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn parse_hash(text: &str) -> Result<[u8; 32], String> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| *byte != b':')
        .map(|byte| char::from(byte).to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()
        .unwrap_or_default();
    let bytes: Vec<u8> = digits
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |a, b| a << 4 | b))
        .collect();
    let right_length = digits.len() == 64;
    bytes
        .try_into()
        .ok()
        .filter(|_| right_length)
        .ok_or_else(|| "expected the 64 hexadecimal digits of a SHA-256 hash".to_owned())
}

fn parse_header(text: &str) -> Result<Header, String> {
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| "expected NAME: VALUE".to_owned())?;
    let name = name.trim().to_ascii_lowercase();
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err("expected a header field name before the colon".to_owned());
    }
    let value = value.trim();
    if value.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
        return Err("a header field value has no control characters".to_owned());
    }
    Ok(Header {
        name,
        value: value.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_64_digits_with_or_without_colons() {
        let plain = "0f".repeat(32);
        let colons = vec!["0F"; 32].join(":");
        assert_eq!(parse_hash(&plain), Ok([15; 32]));
        assert_eq!(parse_hash(&colons), Ok([15; 32]));
        for text in [
            "",
            "0f",
            &"0f".repeat(33),
            &"0g".repeat(32),
            &"0".repeat(63),
        ] {
            assert!(parse_hash(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_header_is_a_lower_case_name_and_a_value() {
        let header = parse_header("X-Game: chess: blitz").unwrap();
        assert_eq!(
            (header.name.as_str(), header.value.as_str()),
            ("x-game", "chess: blitz")
        );
        for text in ["x", ": y", ":path: /", "a b: c", "a: b\r\nc: d"] {
            assert!(parse_header(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_shown_url_has_no_token() {
        let url =
            Url::parse("https://me:secret@host:1/chat/x?token=v4.public.secret#secret").unwrap();
        assert_eq!(shown(&url), "https://host:1/chat/x");
        assert_eq!(
            plain_request(&url).unwrap().path,
            "/chat/x?token=v4.public.secret"
        );
    }

    #[test]
    fn a_report_has_units_in_its_keys_and_null_for_what_was_not_measured() {
        let json = serde_json::to_value(Report::default()).unwrap();
        for key in [
            "connect_ms",
            "max_datagram_bytes",
            "datagram_rtt_p50_ms",
            "stream_rtt_p99_ms",
            "stream_up_bytes_per_second",
            "stream_down_bytes_per_second",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert!(json["datagram_rtt_p50_ms"].is_null());
    }
}
