//! Counters of the nodes, read from their ops listeners in Prometheus' text format.

use std::{collections::BTreeMap, time::Duration};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use url::Url;

use crate::Error;

/// Datagrams of one process on one link, as `wavry_transport_datagrams_total` and
/// `wavry_transport_datagrams_dropped_total` have them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) sent: i64,
    pub(crate) received: i64,
    /// By reason.
    pub(crate) dropped: BTreeMap<String, i64>,
}

/// Datagrams of one process, by link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Datagrams(BTreeMap<String, Link>);

impl Datagrams {
    /// Picks the counters out of a page of metrics.
    pub(crate) fn parse(page: &str) -> Self {
        let mut links: BTreeMap<String, Link> = BTreeMap::new();
        for sample in page.lines().filter_map(Sample::parse) {
            let Some(&link) = sample.labels.get("link") else {
                continue;
            };
            let link = links.entry(link.to_owned()).or_default();
            let direction = sample.labels.get("direction").copied();
            match (sample.name, direction) {
                ("wavry_transport_datagrams_total", Some("sent")) => link.sent += sample.value,
                ("wavry_transport_datagrams_total", Some("received")) => {
                    link.received += sample.value;
                }
                ("wavry_transport_datagrams_dropped_total", _) => {
                    let reason = sample.labels.get("reason").copied().unwrap_or("unnamed");
                    *link.dropped.entry(reason.to_owned()).or_default() += sample.value;
                }
                _ => {}
            }
        }
        Self(links)
    }

    /// Reads them from a node.
    pub(crate) async fn scrape(url: &Url) -> Result<Self, Error> {
        let page = fetch(url).await.map_err(|problem| Error::Metrics {
            url: url.to_string(),
            problem,
        })?;
        Ok(Self::parse(&page))
    }

    /// The counters of one link; zero when it was never used.
    pub(crate) fn link(&self, name: &str) -> Link {
        self.0.get(name).cloned().unwrap_or_default()
    }

    /// Adds another process's counters `times` over: 1 to add, -1 to subtract.
    pub(crate) fn add(&mut self, other: &Self, times: i64) {
        for (name, theirs) in &other.0 {
            let link = self.0.entry(name.clone()).or_default();
            link.sent += times * theirs.sent;
            link.received += times * theirs.received;
            for (reason, count) in &theirs.dropped {
                *link.dropped.entry(reason.clone()).or_default() += times * count;
            }
        }
    }
}

/// A counter's samples on a page of metrics, by the value of a label.
pub(crate) fn by_label(page: &str, name: &str, label: &str) -> BTreeMap<String, i64> {
    let mut counts = BTreeMap::new();
    for sample in page.lines().filter_map(Sample::parse) {
        if let Some(value) = sample.labels.get(label).filter(|_| sample.name == name) {
            *counts.entry((*value).to_owned()).or_default() += sample.value;
        }
    }
    counts
}

/// A counter without labels on a page of metrics.
pub(crate) fn count(page: &str, name: &str) -> i64 {
    let samples = page.lines().filter_map(Sample::parse);
    let of_name = samples.filter(|sample| sample.name == name);
    of_name.map(|sample| sample.value).sum()
}

/// One line of the text format.
struct Sample<'a> {
    name: &'a str,
    labels: BTreeMap<&'a str, &'a str>,
    value: i64,
}

impl<'a> Sample<'a> {
    /// `None` for comments, and for what is no whole number. Label values with quotes or commas in
    /// them do not occur among the labels that are asked for here.
    fn parse(line: &'a str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}')?),
            None => (series, ""),
        };
        let labels = labels
            .split(',')
            .filter_map(|label| label.split_once('='))
            .map(|(key, value)| (key.trim(), value.trim_matches('"')))
            .collect();
        Some(Self {
            name,
            labels,
            value: value.parse().ok()?,
        })
    }
}

/// Pages of metrics are far under this.
const MAX_PAGE: usize = 16 * 1024 * 1024;
/// A node on loopback answers at once.
const TIMEOUT: Duration = Duration::from_secs(10);

async fn fetch(url: &Url) -> Result<String, String> {
    let request = async {
        if url.scheme() != "http" {
            return Err("only http:// addresses can be read".to_owned());
        }
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or(80);
        let stream = tokio::net::TcpStream::connect((host, port))
            .await
            .map_err(|error| error.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        let request = http::Request::get(url.path())
            .header("host", format!("{host}:{port}"))
            .body(Empty::<bytes::Bytes>::new())
            .map_err(|error| error.to_string())?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        if !response.status().is_success() {
            return Err(format!("status {}", response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_PAGE)
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        String::from_utf8(body.to_bytes().into()).map_err(|error| error.to_string())
    };
    match tokio::time::timeout(TIMEOUT, request).await {
        Ok(page) => page,
        Err(_) => Err(format!("no answer within {TIMEOUT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"# HELP wavry_transport_datagrams_total Datagrams given to and taken from QUIC
# TYPE wavry_transport_datagrams_total counter
wavry_transport_datagrams_total{link="mesh",direction="sent"} 12
wavry_transport_datagrams_total{direction="received",link="mesh"} 10
wavry_transport_datagrams_dropped_total{link="mesh",reason="send_buffer_full"} 2
wavry_transport_datagrams_dropped_total{link="webtransport",reason="too_large"} 1
wavry_other_seconds{link="mesh",quantile="0.5"} 0.25
process_start_time_seconds 1.5
"#;

    #[test]
    fn the_counters_of_a_page_are_found() {
        let datagrams = Datagrams::parse(PAGE);
        let mesh = datagrams.link("mesh");
        assert_eq!((mesh.sent, mesh.received), (12, 10));
        assert_eq!(mesh.dropped["send_buffer_full"], 2);
        assert_eq!(datagrams.link("webtransport").dropped["too_large"], 1);
        assert_eq!(datagrams.link("tin cans"), Link::default());
    }

    #[test]
    fn a_counter_is_read_by_its_reasons() {
        let dropped = by_label(PAGE, "wavry_transport_datagrams_dropped_total", "reason");
        let expected = [("send_buffer_full", 2), ("too_large", 1)];
        let expected = expected.map(|(reason, count)| (reason.to_owned(), count));
        assert_eq!(dropped, BTreeMap::from(expected));
    }

    #[test]
    fn what_was_before_is_subtracted() {
        let mut datagrams = Datagrams::parse(PAGE);
        datagrams.add(&Datagrams::parse(PAGE), 1);
        datagrams.add(&Datagrams::parse(PAGE), -1);
        assert_eq!(datagrams, Datagrams::parse(PAGE));
    }

    #[tokio::test]
    async fn a_node_that_does_not_answer_is_named() {
        // A port that was free a moment ago.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let url: Url = format!("http://{address}/metrics").parse().unwrap();
        let error = Datagrams::scrape(&url).await.unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
