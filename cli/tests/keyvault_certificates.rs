//! A gateway whose certificate and key are kept in a KeyVault: it follows new versions, and does without a KeyVault.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

#[path = "../../credentials/tests/pebble/mod.rs"]
mod pebble;
mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use pebble::{Pebble, Setup, free_address};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;
use support::{
    cluster::Cluster,
    front::Front,
    http_get,
    keyvault::KeyVault,
    output, stderr, wait_for, wavry,
    witness::{Witness, client, open},
};
use wavry_credentials::{cert::DevelopmentAuthority, source};

const LOADS: &str = "wavry_credentials_certificate_loads_total{source=\"keyvault\",outcome=";
const HEARD: &str = "wavry_credentials_keyvault_heard_timestamp_seconds";

/// Pairs of one authority, and a KeyVault that one of them at a time is put into.
struct World {
    directory: PathBuf,
    vault: KeyVault,
}

impl World {
    /// `directory` is a cluster's.
    fn new(directory: &Path) -> Self {
        let authority = DevelopmentAuthority::open(directory).unwrap();
        for name in ["one", "two", "three"] {
            authority.issue(name, &["localhost", "127.0.0.1"]).unwrap();
        }
        let command = KeyVault::command(directory, &directory.join("keyvault.sqlite"));
        let vault = KeyVault::start(directory, command);
        let (role_id, secret_id) = vault.unit("gateway");
        for (file, text) in [("role_id", role_id), ("secret_id", secret_id)] {
            source::write_private(&directory.join(file), text.as_bytes()).unwrap();
        }
        Self {
            directory: directory.to_owned(),
            vault,
        }
    }

    /// A new version of the secret.
    fn keep(&self, chain: &str, key: &str) {
        let read = |file: String| fs::read_to_string(self.directory.join(file)).unwrap();
        let data = json!({
            "certificate": read(format!("{chain}.crt")),
            "private_key": read(format!("{key}.key")),
        });
        let path = "/v1/secret/data/wavry/gateway";
        self.vault.does("POST", path, &json!({ "data": data }));
    }

    fn leaf(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.directory.join(format!("{name}.crt"))).unwrap()
    }

    fn start_again(&mut self) {
        let database = self.directory.join("keyvault.sqlite");
        let command = KeyVault::command(&self.directory, &database);
        self.vault.start_again(command, &self.directory);
    }

    /// The gateway's configuration and environment.
    fn tell(&self, cluster: &mut Cluster, ops: SocketAddr) {
        let table = "[gateway.keyvault]\ncertificates = [\"secret/wavry/gateway\"]\npoll_interval = \"1s\"\n";
        cluster.obtain_certificate(table, ops);
        for (variable, value) in self.environment() {
            cluster.tell_gateway(variable, value);
        }
    }

    fn environment(&self) -> [(&'static str, String); 4] {
        let at = |name: &str| self.directory.join(name).display().to_string();
        let url = format!("https://{}", self.vault.process.address());
        [
            ("WAVRY_KEYVAULT_URL", url),
            ("WAVRY_KEYVAULT_CA", at("ca.crt")),
            ("WAVRY_KEYVAULT_ROLE_ID_FILE", at("role_id")),
            ("WAVRY_KEYVAULT_SECRET_ID_FILE", at("secret_id")),
        ]
    }
}

/// Clients that come one after the other, each with a full handshake.
struct Storm {
    witness: Arc<Witness>,
    handshakes: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Storm {
    fn start(root: &Path, gateway: SocketAddr) -> Self {
        let witness = Arc::new(Witness::new(root));
        let (handshakes, is_over) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (root, seeing, made, over) = (
            root.to_owned(),
            witness.clone(),
            handshakes.clone(),
            is_over.clone(),
        );
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let client = client(&root, &seeing);
                while !over.load(Ordering::Relaxed) {
                    drop(open(&client, gateway).await);
                    made.fetch_add(1, Ordering::Relaxed);
                }
                client.close().await;
            });
        });
        Self {
            witness,
            handshakes,
            is_over,
            thread: Some(thread),
        }
    }

    /// Waits until a client was shown the certificate.
    fn sees(&self, leaf: CertificateDer<'_>) {
        wait_for("a client sees the certificate", || {
            self.goes_on();
            self.witness.last() == Some(leaf.clone())
        });
    }

    /// Waits until some more clients have come.
    fn more(&self) {
        let before = self.handshakes.load(Ordering::Relaxed);
        wait_for("more clients come", || {
            self.goes_on();
            self.handshakes.load(Ordering::Relaxed) >= before + 20
        });
    }

    fn goes_on(&self) {
        let is_finished = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        assert!(!is_finished, "a handshake failed");
    }

    /// How many there were, none of which failed.
    fn end(mut self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().unwrap();
        thread.join().expect("a handshake failed");
        self.handshakes.load(Ordering::Relaxed)
    }
}

#[test]
fn a_certificate_is_rotated_in_a_keyvault_while_clients_come_and_none_of_them_fails() {
    let mut cluster = Cluster::new();
    cluster.add("echo", "echo:", false);
    cluster.set("gateway", "sessions_per_ip = 5000");
    cluster.set("gateway", "webtransport.connections_per_ip = 5000");
    cluster.set("gateway", "webtransport.handshake_rate_per_ip = 5000");
    let directory = cluster.directory().to_owned();
    let mut world = World::new(&directory);
    let ops = free_address();
    world.tell(&mut cluster, ops);

    // Two that do not belong together, and then no KeyVault at all: there is nobody to serve with.
    world.keep("one", "two");
    let cluster = thread::scope(|scope| {
        let starting = scope.spawn(|| cluster.start());
        let metric = |begins: &str| match TcpStream::connect(ops) {
            Ok(_) => value(&http_get(&format!("http://{ops}/metrics")).1, begins),
            Err(_) => 0.0,
        };
        wait_for("the pair is refused", || {
            metric(&format!("{LOADS}\"failed\"")) == 1.0
        });
        let ready = || http_get(&format!("http://{ops}/readyz")).0;
        assert_eq!(ready(), 503);
        world.vault.kill();
        wait_for("it is missed", || {
            metric(&format!("{LOADS}\"failed\"")) == 2.0
        });
        assert_eq!(ready(), 503);
        world.start_again();
        world.keep("one", "one");
        let cluster = starting.join().unwrap();
        assert_eq!(ready(), 200);
        cluster
    });

    let storm = Storm::start(&directory.join("ca.crt"), cluster.gateway());
    storm.sees(world.leaf("one"));
    world.keep("two", "two");
    storm.sees(world.leaf("two"));
    let loaded = format!("{LOADS}\"loaded\"}}");
    assert_eq!(cluster.metric("gateway", &loaded), 2.0);

    // One that cannot be used changes nothing, and is told of once.
    let failed = format!("{LOADS}\"failed\"}}");
    let before = cluster.metric("gateway", &failed);
    world.keep("three", "two");
    wait_for("the pair is refused", || {
        cluster.metric("gateway", &failed) == before + 1.0
    });
    storm.more();
    assert_eq!(storm.witness.last(), Some(world.leaf("two")));

    // Without a KeyVault they go on, and take up what is there when it is back.
    let heard = cluster.metric("gateway", HEARD);
    assert!(heard > 0.0);
    world.vault.kill();
    wait_for("the KeyVault is missed", || {
        cluster.metric("gateway", &failed) == before + 2.0
    });
    storm.more();
    assert_eq!(storm.witness.last(), Some(world.leaf("two")));
    world.start_again();
    world.keep("three", "three");
    storm.sees(world.leaf("three"));
    assert!(cluster.metric("gateway", HEARD) > heard);
    let (certificates, came_back) = storm.witness.seen();
    assert_eq!((certificates, came_back), (3, false));
    let handshakes = storm.end();
    assert!(handshakes > 50, "{handshakes}");
    let expiry =
        "wavry_gateway_certificate_expiry_timestamp_seconds{name=\"localhost\",source=\"keyvault\"";
    assert!(cluster.metrics("gateway").contains(expiry));
}

/// The sum of the values whose lines begin so.
fn value(metrics: &str, begins: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with(begins));
    let values = lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
    values.sum()
}

#[test]
fn a_gateway_is_checked_with_what_its_keyvault_has_for_it() {
    let cluster = Cluster::new();
    let directory = cluster.directory();
    let world = World::new(directory);
    let config = directory.join("check.toml");
    let text = format!(
        "[gateway]\nmaster = \"https://127.0.0.1:1\"\nca_file = {:?}\nstate_dir = {:?}\n\
         [gateway.keyvault]\ncertificates = [\"secret/wavry/gateway\"]\n",
        directory.join("ca.crt"),
        directory.join("state"),
    );
    fs::write(&config, text).unwrap();
    let check = || {
        let mut check = wavry(&["gateway", "--check", "--config"]);
        check.arg(&config).envs(world.environment());
        let checked = output(check);
        String::from_utf8_lossy(&checked.stdout).into_owned() + &stderr(&checked)
    };
    let place = "KeyVault path secret/wavry/gateway";
    for (chain, key, said) in [
        ("", "", "404"),
        ("one", "two", "does not belong to the key"),
        ("one", "one", place),
    ] {
        if !chain.is_empty() {
            world.keep(chain, key);
        }
        let told = check();
        let mut lines = told.lines().filter(|line| line.contains(place));
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("nothing of it in {told}"));
        assert!(line.contains(said), "{told}");
        assert!(!told.contains("PRIVATE KEY"), "{told}");
    }
}

/// What a gateway may do that keeps what it obtains there.
const MAY_WRITE: &str = include_str!("../../deploy/keyvault/certificates.hcl");

#[test]
fn what_a_gateway_obtains_is_kept_in_a_keyvault_and_on_no_disk_and_fetched_later_where_that_was_away()
 {
    let mut cluster = Cluster::new();
    cluster.add("echo", "echo:", false);
    let directory = cluster.directory().to_owned();
    let mut world = World::new(&directory);
    let front = Front::start();
    let pebble = Pebble::start(&Setup {
        validates_at: front.address.port(),
        external: false,
        variables: &[("PEBBLE_AUTHZREUSE", "0")],
    });
    let [ops, listen] = [(); 2].map(|()| free_address());
    let table = format!(
        "[gateway.acme]\nnames = [\"gateway.example\", \"127.0.0.1\"]\nterms_of_service_agreed = true\n\
         keyvault = \"secret/wavry/acme\"\nlisten = \"{listen}\"\n\
         [[gateway.acme.authorities]]\nname = \"pebble\"\ndirectory = \"{}\"\nca_file = {:?}\n",
        pebble.url(),
        pebble.ca_file(),
    );
    cluster.obtain_certificate(&table, ops);
    for (variable, value) in world.environment() {
        cluster.tell_gateway(variable, value);
    }
    let orders = || pebble.log_has("Added order ");
    let ready = || http_get(&format!("http://{ops}/readyz")).0;
    let state = directory.join("edge/state");

    // It may read there and not write: an order is not gone on with, let alone validated.
    let cluster = thread::scope(|scope| {
        let starting = scope.spawn(|| cluster.start());
        let failed =
            "wavry_credentials_acme_attempts_total{authority=\"pebble\",outcome=\"storage\"}";
        wait_for("it cannot be kept", || {
            TcpStream::connect(ops).is_ok()
                && value(&http_get(&format!("http://{ops}/metrics")).1, failed) >= 1.0
        });
        assert_eq!((orders(), ready()), (0, 503), "the account comes first");
        let may = json!({"policy": format!("path \"secret/data/*\" {{ capabilities = [\"read\"] }}\n{MAY_WRITE}")});
        world.vault.does("PUT", "/v1/sys/policies/acl/reader", &may);
        // It would be tried again after a minute by itself.
        let mut renew = wavry(&["cert", "renew", "gateway.example", "--now", "--state-dir"]);
        renew.arg(&state);
        let asked = scope.spawn(move || output(renew));
        front
            .comes
            .recv_timeout(support::DEADLINE)
            .expect("the authority comes");
        front.to.lock().unwrap().push(listen);
        let asked = asked.join().unwrap();
        assert!(asked.status.success(), "{}", stderr(&asked));
        starting.join().unwrap()
    });
    assert_eq!((orders(), ready()), (1, 200));

    let first = kept(&world);
    assert!(
        !holds(&state.join("acme"), "PRIVATE KEY"),
        "a key is on disk"
    );
    assert!(
        !holds(&state.join("acme"), "key_pkcs8"),
        "an account is on disk"
    );
    let storm = Storm::start(&pebble.root(), cluster.gateway());
    storm.sees(first.clone());
    storm.end();

    // The KeyVault is killed while the authority validates: what is issued cannot be written, and is fetched later.
    front.to.lock().unwrap().clear();
    while front.comes.try_recv().is_ok() {}
    let renew = |more: &[&str]| {
        let mut renew = wavry(&["cert", "renew", "gateway.example", "--state-dir"]);
        renew.arg(&state).args(more);
        output(renew)
    };
    let failed = "wavry_credentials_acme_attempts_total{authority=\"pebble\",outcome=\"storage\"}";
    let before = cluster.metric("gateway", failed);
    thread::scope(|scope| {
        let asked = scope.spawn(|| renew(&[]));
        let came = front.comes.recv_timeout(support::DEADLINE);
        came.expect("the authority comes");
        world.vault.kill();
        front.to.lock().unwrap().push(listen);
        let asked = asked.join().unwrap();
        assert!(!asked.status.success());
        assert!(stderr(&asked).contains("KeyVault"), "{}", stderr(&asked));
    });
    assert_eq!(cluster.metric("gateway", failed), before + 1.0);
    world.start_again();
    assert_eq!(kept(&world), first);
    let asked = renew(&["--now"]);
    assert!(asked.status.success(), "{}", stderr(&asked));
    assert_ne!(kept(&world), first);
    assert_eq!(orders(), 2);
    assert_eq!(pebble.log_has("Issued certificate serial "), 2);
    let mut cluster = cluster;
    let second = kept(&world);

    // Without a KeyVault nothing is ordered, and what is in use stays; a gateway that starts waits for it.
    world.vault.kill();
    assert!(!renew(&["--wait", "1s"]).status.success());
    assert_eq!(ready(), 200);
    thread::scope(|scope| {
        let restarting = scope.spawn(|| cluster.restart_gateway());
        wait_for("it waits for the KeyVault", || readiness(ops) == Some(503));
        world.start_again();
        restarting.join().unwrap();
    });
    let storm = Storm::start(&pebble.root(), cluster.gateway());
    storm.more();
    assert!(storm.witness.seen().0 >= 1);
    storm.end();
    // What the operator asked for meanwhile is done now.
    wait_for("it is renewed", || kept(&world) != second);
    assert_eq!(orders(), 3);
}

/// What `/readyz` says there; nothing of a process that is being killed.
fn readiness(ops: SocketAddr) -> Option<u16> {
    let mut stream = TcpStream::connect(ops).ok()?;
    let request = "GET /readyz HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

/// The certificate that the gateway keeps in the KeyVault.
fn kept(world: &World) -> CertificateDer<'static> {
    let nothing = serde_json::Value::Null;
    let all = world.vault.does(
        "LIST",
        "/v1/secret/metadata/wavry/acme/certificates",
        &nothing,
    );
    let names: Vec<_> = all["keys"].as_array().unwrap().iter().collect();
    assert_eq!(names.len(), 1, "{all}");
    let path = format!(
        "/v1/secret/data/wavry/acme/certificates/{}",
        names[0].as_str().unwrap()
    );
    let secret = world.vault.does("GET", &path, &nothing);
    let field = |name: &str| secret["data"][name].as_str().unwrap().to_owned();
    assert!(field("private_key").contains("PRIVATE KEY"));
    assert_eq!(field("authority"), "pebble");
    CertificateDer::from_pem_slice(field("certificate").as_bytes()).unwrap()
}

/// Whether any file below a directory has a text in it.
fn holds(directory: &Path, text: &str) -> bool {
    fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => holds(&path, text),
            false => String::from_utf8_lossy(&fs::read(&path).unwrap()).contains(text),
        }
    })
}
