//! The matrix of docs/INTEROP.md: every peer and every feature, against a service and through the
//! whole mesh. `scripts/interop.sh` writes the document; this test holds it to what happens.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

#[path = "../support/mod.rs"]
mod support;

mod answer;
mod document;
mod exception;
mod feature;
mod peer;
mod process;
mod script;
mod seen;
mod stack;

use std::net::SocketAddr;

use document::Column;
use feature::{Feature, Shown};
use peer::Peer;
use seen::Seen;
use serde_json::Value;
use stack::{Certificate, Target};
use support::cluster::Cluster;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/INTEROP.md");

/// The variable that has the document written instead of compared.
const WRITE: &str = "WAVRY_INTEROP_WRITE";
/// The variable that names the peers to run, with commas.
const ONLY: &str = "WAVRY_INTEROP_ONLY";

/// Everything that runs while peers do.
struct World {
    cluster: Cluster,
    seen: Seen,
    /// The services by the names that the mesh has for them.
    services: Vec<(&'static str, SocketAddr)>,
    _aioquic: support::peer::Aioquic,
}

impl World {
    fn start() -> Self {
        let mut cluster = Cluster::new();
        let seen = Seen::default();
        let at = |name: &str| cluster.directory().join(name);
        let certificate = Certificate {
            certificate: at("service.crt"),
            key: at("service.key"),
        };
        let aioquic = process::aioquic_server(&certificate, seen.clone());
        let services = vec![
            ("ours", stack::ours::start(&certificate, seen.clone())),
            ("aioquic", SocketAddr::from(([127, 0, 0, 1], aioquic.port))),
            (
                "wtransport",
                stack::wtransport::start(&certificate, seen.clone()),
            ),
            (
                "wtq",
                stack::web_transport_quinn::start(&certificate, seen.clone()),
            ),
        ];
        for (name, address) in &services {
            cluster.add(name, &format!("https://{address}/"), true);
        }
        Self {
            cluster: cluster.start(),
            seen,
            services,
            _aioquic: aioquic,
        }
    }

    /// Runs one peer after the other.
    async fn run_all(
        &self,
        peers: impl Iterator<Item = Peer>,
        features: &[Feature],
    ) -> Vec<Column> {
        let mut columns = Vec::new();
        for peer in peers {
            columns.push(self.run(peer, features).await);
        }
        columns
    }

    /// Runs a peer both ways.
    async fn run(&self, peer: Peer, features: &[Feature]) -> Column {
        let service = peer.service();
        let at = |name: &str| self.cluster.directory().join(name);
        let (_, address) = *self
            .services
            .iter()
            .find(|(name, _)| *name == service)
            .unwrap();
        let direct = Target {
            address,
            base: format!("/{peer:?}-direct"),
            ca_file: at("ca.crt"),
            certificate: at("service.crt"),
        };
        let mesh = Target {
            address: self.cluster.gateway(),
            base: format!("/{service}/{peer:?}-mesh"),
            ca_file: at("ca.crt"),
            certificate: at("gateway.crt"),
        };
        let direct = self.run_at(peer, features, direct);
        let mesh = self.run_at(peer, features, mesh);
        let (direct, mesh) = if peer.is_browser() {
            (direct.await, mesh.await)
        } else {
            tokio::join!(direct, mesh)
        };
        Column {
            peer,
            version: peer.version(),
            direct,
            mesh,
        }
    }

    async fn run_at(&self, peer: Peer, features: &[Feature], target: Target) -> Vec<Shown> {
        let run = target
            .base
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let report = peer.run(target).await;
        let mut shown = Vec::new();
        for feature in features {
            let exception = peer.exception(feature);
            let expected = feature.expected(exception.as_ref());
            if exception.is_some_and(|exception| exception.unsteady) {
                shown.push(expected);
                continue;
            }
            let service = match &feature.service {
                Some((path, _)) if expected.service.is_null() => self.seen.now(&run, path),
                Some((path, _)) => self.seen.wait(&run, path).await,
                None => Value::Null,
            };
            let client = report.get(feature.name).cloned().unwrap_or_default();
            shown.push(Shown { client, service });
        }
        shown
    }
}

#[test]
fn every_peer_does_what_the_document_says() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let only = std::env::var(ONLY).ok();
    let wanted = |peer: &Peer| {
        let name = format!("{peer:?}");
        let is_named = |only: &String| only.split(',').any(|one| one == name);
        only.as_ref().is_none_or(is_named) && peer.is_installed()
    };
    let features = feature::all();
    let run = async {
        let world = World::start();
        let wanted = || {
            Peer::CLIENTS
                .into_iter()
                .chain(Peer::SERVERS)
                .filter(wanted)
        };
        // One browser at a time is what a small machine has time for, and the others beside it.
        let browsers = world.run_all(wanted().filter(|peer| peer.is_browser()), &features);
        let others = world.run_all(wanted().filter(|peer| !peer.is_browser()), &features);
        let (mut columns, others) = tokio::join!(browsers, others);
        columns.extend(others);
        columns
    };
    let columns = runtime.block_on(run);
    let problems = document::problems(&features, &columns);
    let (clients, servers) = columns
        .into_iter()
        .partition::<Vec<_>, _>(|column| column.peer.is_client());
    let document = document::render(&features, &clients, &servers);
    let is_whole = clients.len() + servers.len() == Peer::CLIENTS.len() + Peer::SERVERS.len();
    if is_whole && std::env::var_os(WRITE).is_some() {
        std::fs::write(DOCUMENT, &document).unwrap();
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    if is_whole {
        let written = std::fs::read_to_string(DOCUMENT).unwrap();
        assert_eq!(
            document::lasting(&written),
            document::lasting(&document),
            "docs/INTEROP.md is not what happens: run ./scripts/interop.sh"
        );
    } else {
        println!("not every peer was run, and the document was not looked at:\n{document}");
    }
}
