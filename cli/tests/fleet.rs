//! Gateways that share certificates by way of a real master, and a real authority that counts orders.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

#[path = "../../credentials/tests/pebble/mod.rs"]
mod pebble;
#[path = "../../master/tests/support/postgres.rs"]
mod postgres;
mod support;

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use pebble::{Pebble, Setup, free_address};
use support::{DEADLINE, RoleProcess, front::Front, http_get, output, signal, stderr, wavry};
use wavry_credentials::cert::{self, DevelopmentAuthority};

const GATEWAYS: [&str; 3] = ["one", "two", "three"];

/// How it is set up.
struct Plan<'a> {
    /// Each has a certificate of its own.
    names: &'a [String],
    challenge: &'a str,
    /// Further lines of `gateway.acme`.
    acme: &'a str,
    /// Further tables of the master.
    master: &'a str,
    /// The database of all masters; of one master alone if none.
    database: Option<&'a str>,
    /// How many masters, which gateways ask in turns.
    masters: usize,
}

impl<'a> Plan<'a> {
    fn of(names: &'a [String]) -> Self {
        Self {
            names,
            challenge: "http-01",
            acme: "",
            master: "",
            database: None,
            masters: 1,
        }
    }
}

/// Masters, and gateways that share certificates.
struct Fleet {
    directory: tempfile::TempDir,
    gateways: Vec<Guard>,
    ops: [SocketAddr; 3],
    challenges: [SocketAddr; 3],
    _masters: Vec<RoleProcess>,
}

impl Fleet {
    fn start(plan: &Plan<'_>, pebble: &Pebble) -> Self {
        cert::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let authority = DevelopmentAuthority::open(directory.path()).unwrap();
        authority.issue("master", &["127.0.0.1"]).unwrap();
        for key in ["master_key", "audit_key"] {
            let mut make = wavry(&["key", "generate", "--out"]);
            make.arg(at(key));
            succeeds(make);
        }
        let key = wavry_credentials::key::aead::Key::generate().to_paserk();
        wavry_credentials::source::write_secret(&at("fleet_key"), &key).unwrap();
        let text = format!(
            "[master]\nlisten = \"127.0.0.1:0\"\ndatabase = {:?}\ncertificate = {:?}\n\
             heartbeat_interval = \"500ms\"\nsuspect_after = \"2s\"\n{}\n{OPS}\n",
            plan.database
                .map_or_else(|| at("master.sqlite"), PathBuf::from),
            at("master.crt"),
            plan.master,
        );
        fs::write(at("master.toml"), text).unwrap();
        let masters = (0..plan.masters).map(|number| {
            let mut master = wavry(&["master", "--config"]);
            master.arg(at("master.toml"));
            master.env("WAVRY_MASTER_KEY_FILE", at("master_key"));
            master.env("WAVRY_AUDIT_KEY_FILE", at("audit_key"));
            master.env("WAVRY_TLS_KEY_FILE", at("master.key"));
            RoleProcess::start(master, &at(&format!("master-{number}.ready")))
        });
        let masters: Vec<_> = masters.collect();

        let challenges = [(); 3].map(|()| free_address());
        let asked = masters.iter().cycle();
        for ((gateway, challenges), master) in GATEWAYS.iter().zip(challenges).zip(asked) {
            let mut provision = wavry(&["provision", "gateway", gateway, "--out"]);
            provision.arg(at(gateway));
            provision.env("WAVRY_MASTER_KEY_FILE", at("master_key"));
            provision.env("WAVRY_AUDIT_KEY_FILE", at("audit_key"));
            succeeds(provision);
            let text = format!(
                "[gateway]\nlisten = \"127.0.0.1:0\"\nmaster = \"https://{}\"\nca_file = {:?}\nstate_dir = {:?}\n\
                 [gateway.acme]\nnames = {:?}\nseparate = true\nfleet = true\nchallenge = {:?}\n\
                 terms_of_service_agreed = true\nlisten = \"{challenges}\"\n{}\n\
                 [[gateway.acme.authorities]]\nname = \"pebble\"\ndirectory = \"{}\"\nca_file = {:?}\n{OPS}\n",
                master.address(),
                at("ca.crt"),
                at(gateway).join("state"),
                plan.names,
                plan.challenge,
                plan.acme,
                pebble.url(),
                pebble.ca_file(),
            );
            fs::write(at(gateway).with_extension("toml"), text).unwrap();
        }
        let mut fleet = Self {
            directory,
            gateways: Vec::new(),
            ops: [(); 3].map(|()| free_address()),
            challenges,
            _masters: masters,
        };
        for (gateway, ops) in GATEWAYS.iter().zip(fleet.ops) {
            let mut command = fleet.gateway(gateway);
            command.args(["--ops-listen", &ops.to_string()]);
            fleet.gateways.push(Guard(command.spawn().unwrap()));
        }
        // An authority is led to gateways that are there.
        for gateway in 0..3 {
            wait_until("a gateway does not follow", DEADLINE, || {
                let metrics = fleet.metrics(gateway);
                value(&metrics, "wavry_credentials_fleet_heard_timestamp_seconds") > 0.0
            });
        }
        fleet
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn gateway(&self, name: &str) -> Command {
        let mut gateway = wavry(&["gateway", "--config"]);
        gateway.arg(self.at(name).with_extension("toml"));
        let at = |file: &str| self.at(name).join(file);
        gateway.env("WAVRY_IDENTITY_KEY_FILE", at("identity.key"));
        gateway.env("WAVRY_REGISTRATION_TOKEN_FILE", at("registration.token"));
        gateway.env("WAVRY_FLEET_KEY_FILE", self.at("fleet_key"));
        gateway
    }

    /// Nothing before its ops listener is there.
    fn metrics(&self, gateway: usize) -> String {
        match TcpStream::connect(self.ops[gateway]) {
            Ok(_) => http_get(&format!("http://{}/metrics", self.ops[gateway])).1,
            Err(_) => String::new(),
        }
    }

    /// The names that a gateway has certificates for.
    fn certificates(&self, gateway: usize) -> usize {
        let metrics = self.metrics(gateway);
        let expiry = "wavry_gateway_certificate_expiry_timestamp_seconds{";
        metrics
            .lines()
            .filter(|line| line.starts_with(expiry))
            .count()
    }

    /// The lines of the master's audit log with this action and path.
    fn audited(&self, action: &str, path: &str) -> usize {
        let mut tail = wavry(&["audit", "tail", "--database"]);
        tail.arg(self.at("master.sqlite"));
        tail.args(["--lines", "100000"]);
        tail.env("WAVRY_AUDIT_KEY_FILE", self.at("audit_key"));
        let told = succeeds(tail);
        let lines = told.lines().filter(|line| {
            line.contains(&format!("\"action\":\"{action}\"")) && line.contains(path)
        });
        lines.count()
    }

    /// All that the master keeps, as text.
    fn database(&self) -> String {
        let files = ["master.sqlite", "master.sqlite-wal"];
        let read = files.map(|file| fs::read(self.at(file)).unwrap_or_default());
        read.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .concat()
    }
}

const OPS: &str = "[ops]\nlisten = \"127.0.0.1:0\"";

fn succeeds(command: Command) -> String {
    let done = output(command);
    assert!(done.status.success(), "{}", stderr(&done));
    String::from_utf8(done.stdout).unwrap()
}

/// A value of a metric, or the sum of those with labels that begin so.
fn value(metrics: &str, begins: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with(begins));
    lines
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

fn wait_until(what: &str, deadline: Duration, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + deadline;
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn pebble(front: &Front) -> Pebble {
    Pebble::start(&Setup {
        validates_at: front.address.port(),
        external: false,
        variables: &[("PEBBLE_AUTHZREUSE", "0")],
    })
}

#[test]
fn three_gateways_order_fifty_names_fifty_times_and_whichever_is_asked_answers() {
    let names: Vec<String> = (0..50).map(|n| format!("n{n}.fleet.example")).collect();
    let front = Front::start();
    let pebble = pebble(&front);
    let fleet = Fleet::start(&Plan::of(&names), &pebble);
    *front.to.lock().unwrap() = fleet.challenges.to_vec();
    for gateway in 0..3 {
        wait_until("certificates are missing", DEADLINE, || {
            fleet.certificates(gateway) == names.len()
        });
    }
    assert_eq!(pebble.log_has("Added order "), names.len());
    assert_eq!(pebble.log_has("Issued certificate serial "), names.len());

    let metrics = [0, 1, 2].map(|gateway| fleet.metrics(gateway));
    let issued = "wavry_credentials_acme_attempts_total{authority=\"pebble\",outcome=\"issued\"}";
    let by_each = metrics.each_ref().map(|metrics| value(metrics, issued));
    assert_eq!(by_each.iter().sum::<f64>(), 50.0);
    let answered = metrics.each_ref().map(|metrics| {
        let outcome = "wavry_credentials_acme_challenge_connections_total{type=\"http-01\",outcome=\"answered\"}";
        value(metrics, outcome)
    });
    println!("issued by each {by_each:?}, answered by each {answered:?}");
    assert!(
        answered.iter().all(|answered| *answered > 10.0),
        "{answered:?}"
    );
    // In use everywhere within 5 s of its issue.
    let mut shared = 0.0;
    for metrics in &metrics {
        let all = value(metrics, "wavry_credentials_fleet_shared_seconds_count");
        let step = "wavry_credentials_fleet_shared_seconds_bucket{le=\"5\"}";
        assert_eq!(value(metrics, step), all, "not all in time");
        shared += all;
    }
    assert_eq!(shared, 100.0, "each by the two that did not order it");

    // What the master keeps is sealed, and who had it is on record.
    let database = fleet.database();
    assert!(database.contains("n49.fleet.example"), "it is looked into");
    for gateway in GATEWAYS {
        let kept = fleet.at(gateway).join("state/acme/fleet");
        for name in &names {
            let key = newest_key(&kept.join(name));
            let line = key.lines().nth(1).unwrap();
            assert!(!database.contains(line), "a key is in the database");
        }
    }
    let (values, told) = encoded(&database);
    assert!(values > 100, "{values} values");
    assert!(!told, "what gateways share is in the database as it is");
    assert!(fleet.audited("issue", "/v1/fleet/entry") >= 51);
    assert!(fleet.audited("read", "/v1/fleet/changes") >= 3 * 50);
}

/// How many values there are in base64, and whether any of them tells of a certificate or a key. A value may be in
/// pieces, which begin anywhere.
fn encoded(database: &str) -> (usize, bool) {
    let is_one = |c: char| c.is_ascii_alphanumeric() || "+/".contains(c);
    let pieces = database
        .split(|c| !is_one(c))
        .filter(|piece| piece.len() >= 256);
    let (mut values, mut told) = (0, false);
    for piece in pieces {
        values += 1;
        for start in 0..4 {
            let whole = (piece.len() - start) / 4 * 4;
            let bytes = STANDARD.decode(&piece[start..start + whole]);
            let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
            told |= ["CERTIFICATE", "PRIVATE KEY", "authority"]
                .iter()
                .any(|word| text.contains(word));
        }
    }
    (values, told)
}

fn newest_key(pairs: &Path) -> String {
    let mut all: Vec<_> = fs::read_dir(pairs)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    all.sort();
    fs::read_to_string(all.last().unwrap().join("key.pem")).unwrap()
}

#[test]
fn the_order_of_a_gateway_that_is_killed_is_brought_to_its_end_by_another_one() {
    let names = ["killed.fleet.example".to_owned()];
    let front = Front::start();
    let pebble = pebble(&front);
    let mut fleet = Fleet::start(&Plan::of(&names), &pebble);

    // The authority has begun to validate, and waits.
    front
        .comes
        .recv_timeout(DEADLINE)
        .expect("the authority comes");
    let has_lease = |gateway: &usize| {
        let metrics = fleet.metrics(*gateway);
        value(&metrics, "wavry_credentials_fleet_leases_held") == 1.0
    };
    let holder = (0..3).find(has_lease).expect("somebody has the lease");
    signal(fleet.gateways[holder].0.id(), "KILL");
    fleet.gateways[holder].0.wait().unwrap();
    let others: Vec<_> = (0..3).filter(|gateway| *gateway != holder).collect();
    let lead_to = others.iter().map(|other| fleet.challenges[*other]);
    *front.to.lock().unwrap() = lead_to.collect();

    for other in &others {
        wait_until("the certificate is missing", DEADLINE, || {
            fleet.certificates(*other) == 1
        });
    }
    assert_eq!(
        pebble.log_has("Added order "),
        1,
        "the order was gone on with"
    );
    assert_eq!(pebble.log_has("Issued certificate serial "), 1);
}

#[test]
fn an_authority_that_validates_in_handshakes_may_come_to_any_of_three_gateways() {
    let names: Vec<String> = (0..12).map(|n| format!("t{n}.fleet.example")).collect();
    let front = Front::start();
    let pebble = pebble(&front);
    let plan = Plan {
        challenge: "tls-alpn-01",
        ..Plan::of(&names)
    };
    let fleet = Fleet::start(&plan, &pebble);
    *front.to.lock().unwrap() = fleet.challenges.to_vec();
    for gateway in 0..3 {
        wait_until("certificates are missing", DEADLINE, || {
            fleet.certificates(gateway) == names.len()
        });
    }
    assert_eq!(pebble.log_has("Added order "), names.len());
    let answered = [0, 1, 2].map(|gateway| {
        let outcome = "wavry_credentials_acme_challenge_connections_total{type=\"tls-alpn-01\",outcome=\"answered\"}";
        value(&fleet.metrics(gateway), outcome)
    });
    println!("answered by each {answered:?}");
    assert!(
        answered.iter().all(|answered| *answered > 0.0),
        "{answered:?}"
    );

    // Whichever gateway an operator asks, one orders, and all use what comes of it.
    let name = &names[3];
    let own = |gateway: &str| newest_key(&fleet.at(gateway).join("state/acme/fleet").join(name));
    let before = own("one");
    for (asked, gateway) in GATEWAYS.iter().enumerate() {
        let mut renew = wavry(&["cert", "renew", name, "--state-dir"]);
        renew.arg(fleet.at(gateway).join("state"));
        succeeds(renew);
        assert_eq!(pebble.log_has("Added order "), names.len() + asked + 1);
        let renewed = own(gateway);
        assert_ne!(renewed, before);
        wait_until("they differ", DEADLINE, || {
            GATEWAYS.iter().all(|gateway| own(gateway) == renewed)
        });
    }
    let shared = "wavry_credentials_acme_consecutive_failures{certificate=\"t3.fleet.example\"}";
    assert_eq!(value(&fleet.metrics(0), shared), 0.0);
    assert!(fleet.metrics(0).contains(shared));
}

#[test]
fn hosts_of_services_have_one_rate_for_all_gateways_whichever_master_they_ask() {
    const AN_HOUR: usize = 4;
    let server = postgres::Server::start(false);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let database = runtime.block_on(server.database("fleet"));
    let names = ["rate.fleet.example".to_owned()];
    let front = Front::start();
    let pebble = pebble(&front);
    let hosts: Vec<String> = (0..10).map(|n| format!("h{n}.fleet.example")).collect();
    let plan = Plan {
        acme: &format!("service_hosts = \"registered\"\nnew_hosts_per_hour = {AN_HOUR}"),
        master: &format!(
            "[[master.services]]\nname = \"app\"\naccess = \"public\"\nallowed_origins = [\"*\"]\nhosts = {hosts:?}"
        ),
        database: Some(&database),
        masters: 2,
        ..Plan::of(&names)
    };
    let fleet = Fleet::start(&plan, &pebble);
    *front.to.lock().unwrap() = fleet.challenges.to_vec();
    let of_hosts = |gateway: usize| {
        let metrics = fleet.metrics(gateway);
        let expiry = "wavry_gateway_certificate_expiry_timestamp_seconds{name=\"h";
        metrics
            .lines()
            .filter(|line| line.starts_with(expiry))
            .count()
    };
    let put_off = |gateway: usize| {
        value(
            &fleet.metrics(gateway),
            "wavry_credentials_acme_service_hosts_put_off_total",
        )
    };
    let failed = || {
        let of = |gateway| {
            let metrics = fleet.metrics(gateway);
            let attempts = metrics.lines().filter(|line| {
                line.starts_with("wavry_credentials_acme_attempts_total{")
                    && !line.contains("issued")
            });
            attempts.count()
        };
        (0..3).map(of).sum::<usize>()
    };
    // The hosts that the authority has heard of.
    let ordered = || hosts.iter().filter(|host| pebble.log_has(host) > 0).count();
    // An attempt that fails, as one may where all is slow, has had its share and is not made up for.
    wait_until("as many as an hour allows", DEADLINE, || {
        ordered() == AN_HOUR || failed() > 0
    });
    let left = (hosts.len() - AN_HOUR) as f64;
    wait_until("the others are put off", DEADLINE, || {
        (0..3).map(put_off).sum::<f64>() >= left
    });
    for gateway in 0..3 {
        wait_until("certificates are missing", DEADLINE, || {
            of_hosts(gateway) == AN_HOUR || failed() > 0
        });
        let asked = value(
            &fleet.metrics(gateway),
            "wavry_credentials_fleet_leases_total",
        );
        assert!(asked > 0.0, "gateway {gateway} wants none");
    }
    for _ in 0..100 {
        assert!(ordered() <= AN_HOUR, "{} hosts in an hour", ordered());
        std::thread::sleep(Duration::from_millis(20));
    }
    if failed() == 0 {
        assert_eq!(pebble.log_has("Added order "), names.len() + AN_HOUR);
    }
}

/// Killed with the test.
struct Guard(std::process::Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
