//! Asks the ops listeners of nodes, which speak HTTP/1.1 without TLS.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::TcpStream, time::timeout};
use wavry_proto::view::MAX_LEN;

use crate::{config, role};

/// From connecting to the end of an answer: a trace is measured first.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest refusal that is shown, in bytes.
const MAX_REFUSAL: usize = 1024;

/// Where gateway and relay have their ops listeners unless they are told otherwise.
const USUAL: [&str; 2] = [
    <crate::roles::Gateway as config::Table>::OPS,
    <crate::roles::Relay as config::Table>::OPS,
];

/// What is said where neither of them is there.
const NOBODY_HERE: &str = "no gateway or relay of this host is where it listens by default: name its ops listener with \
                           --ops, or its configuration with --config";

/// Which nodes are asked.
#[derive(Debug, clap::Args)]
pub(super) struct Nodes {
    /// Ops listener of a node, http://HOST:PORT or HOST:PORT; several with commas, or given several times. Without it,
    /// and without --config, the gateway and the relay on this host are asked where they listen by default
    #[arg(
        long,
        value_name = "URL",
        env = "WAVRY_OPS",
        value_delimiter = ',',
        conflicts_with = "config"
    )]
    ops: Vec<Place>,
    /// Configuration of a gateway or relay on this host, whose ops listener is asked; may be given several times
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
}

/// Where an ops listener is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place(String);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.0)
    }
}

impl FromStr for Place {
    type Err = &'static str;

    /// What a ready file has (`http://HOST:PORT/metrics`) will do as well.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let authority = rest.split('/').next().unwrap_or_default();
        let port = authority.rsplit_once(':').map(|(_, port)| port);
        let is_port = port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
        match is_port && !authority.starts_with(':') && !text.starts_with("https:") {
            true => Ok(Self(authority.to_owned())),
            false => Err("expected http://HOST:PORT or HOST:PORT"),
        }
    }
}

/// Why a node does not tell.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Nobody is there.
    #[error("no ops listener can be reached at {at}")]
    Unreachable {
        /// Where.
        at: Place,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("the ops listener at {at} does not answer as one")]
    Broken {
        /// Where.
        at: Place,
    },
    /// It took too long.
    #[error("the ops listener at {at} has not answered within {DEADLINE:?}")]
    Late {
        /// Where.
        at: Place,
    },
    /// It says no.
    #[error("the node at {at} says: {said} ({status})")]
    Refused {
        /// Where.
        at: Place,
        /// The status.
        status: StatusCode,
        /// Its words.
        said: String,
    },
    /// It is none of ours, or of a version that tells something else.
    #[error("the answer of the node at {at} cannot be read: is it of another version?")]
    Malformed {
        /// Where.
        at: Place,
    },
}

/// A list of nodes to ask, and whether all of them have to be there.
pub(super) struct Chosen {
    places: Vec<Place>,
    all: bool,
}

impl Nodes {
    pub(super) fn choose(&self) -> anyhow::Result<Chosen> {
        if !self.ops.is_empty() {
            let places = self.ops.clone();
            return Ok(Chosen { places, all: true });
        }
        if !self.config.is_empty() {
            let places = self.config.iter().map(|file| configured(file));
            let places = places.collect::<anyhow::Result<_>>()?;
            return Ok(Chosen { places, all: true });
        }
        let places = USUAL.iter().map(|at| Place((*at).to_owned())).collect();
        Ok(Chosen { places, all: false })
    }
}

fn configured(file: &Path) -> anyhow::Result<Place> {
    let ops = config::ops_of_node(file, role::environment())?;
    if ops.listen.port() == 0 {
        anyhow::bail!(
            "{}: ops.listen has port 0, which is another one at each start: name the listener with --ops",
            file.display()
        );
    }
    Ok(Place(ops.listen.to_string()))
}

impl Chosen {
    /// What each of them answers. Those that had to be there and were not are named; it is an error if none is.
    pub(super) async fn ask<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &str,
        excuses: impl Fn(StatusCode) -> bool,
    ) -> anyhow::Result<Vec<T>> {
        // All at once, so that what they tell is of the same moment; in the order in which they were given.
        let asking = self.places.iter();
        let asking: Vec<_> = asking
            .map(|place| tokio::spawn(get(place.clone(), path.to_owned())))
            .collect();
        let mut answers = Vec::new();
        let mut failures = Vec::new();
        for asked in asking {
            match asked.await? {
                Ok(answer) => answers.push(answer),
                Err(failure) => failures.push(failure),
            }
        }
        let is_excused = |failure: &Failure| match failure {
            Failure::Unreachable { .. } => !self.all,
            Failure::Refused { status, .. } => excuses(*status),
            _ => false,
        };
        let serious = failures.iter().position(|failure| !is_excused(failure));
        let failure = match serious {
            Some(at) => Some(failures.swap_remove(at)),
            None if answers.is_empty() => failures.into_iter().next(),
            None => None,
        };
        match failure {
            Some(failure @ Failure::Unreachable { .. }) if !self.all => {
                Err(anyhow::Error::new(failure).context(NOBODY_HERE))
            }
            Some(failure) => Err(failure.into()),
            None => Ok(answers),
        }
    }
}

async fn get<T: DeserializeOwned>(at: Place, path: String) -> Result<T, Failure> {
    match timeout(DEADLINE, get_in_time(&at, &path)).await {
        Ok(got) => got,
        Err(_) => Err(Failure::Late { at }),
    }
}

async fn get_in_time<T: DeserializeOwned>(at: &Place, path: &str) -> Result<T, Failure> {
    let broken = || Failure::Broken { at: at.clone() };
    let stream = TcpStream::connect(&at.0).await;
    let stream = stream.map_err(|source| Failure::Unreachable {
        at: at.clone(),
        source,
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|_| broken())?;
    tokio::spawn(connection);
    let request = Request::get(path)
        .header("host", &at.0)
        .body(Body::empty())
        .map_err(|_| broken())?;
    let answer = sender.send_request(request).await.map_err(|_| broken())?;
    let status = answer.status();
    let body = Body::new(answer.into_body());
    if !status.is_success() {
        let said = to_bytes(body, MAX_REFUSAL).await.unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let said = said.lines().next().unwrap_or_default();
        return Err(Failure::Refused {
            at: at.clone(),
            status,
            said: said.chars().filter(|c| !c.is_control()).collect(),
        });
    }
    let body = to_bytes(body, MAX_LEN).await.map_err(|_| broken())?;
    serde_json::from_slice(&body).map_err(|_| Failure::Malformed { at: at.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_named_as_a_url_or_as_an_address() {
        let place = |text: &str| text.parse::<Place>();
        let shown = Place("127.0.0.1:9641".to_owned());
        for text in [
            "127.0.0.1:9641",
            "http://127.0.0.1:9641",
            "http://127.0.0.1:9641/metrics",
        ] {
            assert_eq!(place(text).as_ref(), Ok(&shown), "{text}");
        }
        assert_eq!(shown.to_string(), "http://127.0.0.1:9641");
        assert!(place("http://[::1]:9641").is_ok());
        for text in ["", "edge", ":9641", "edge:0", "edge:x", "https://edge:9641"] {
            assert!(place(text).is_err(), "{text}");
        }
    }
}
