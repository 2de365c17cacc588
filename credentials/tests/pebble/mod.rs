//! Pebble, a small ACME authority, with its DNS server. What a test starts ends with the test, by its
//! process id.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

mod address;

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::json;
use wavry_credentials::cert::DevelopmentAuthority;

pub(crate) use self::address::free_address;

/// How long anything may take; far more than it does on a slow machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A key id and its key, as Pebble is told of them.
pub(crate) const EXTERNAL: (&str, &str) = (
    "kid-1",
    "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W",
);

/// How it is set up.
pub(crate) struct Setup<'a> {
    /// Where it validates names: TCP port for http-01 and for tls-alpn-01.
    pub validates_at: u16,
    /// Whether accounts must be bound to one elsewhere.
    pub external: bool,
    /// Variables.
    pub variables: &'a [(&'a str, &'a str)],
}

/// It, running.
pub(crate) struct Pebble {
    directory: tempfile::TempDir,
    address: SocketAddr,
    management: SocketAddr,
    _processes: [Process; 2],
}

pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Pebble {
    /// Starts it on free ports. Every name is at 127.0.0.1 for it.
    pub(crate) fn start(setup: &Setup<'_>) -> Self {
        Self::with(setup, None, months())
    }

    /// The same, but it asks the DNS server at that address for names.
    pub(crate) fn asking(setup: &Setup<'_>, server: SocketAddr) -> Self {
        Self::with(setup, Some(server), months())
    }

    /// The same, but what it issues holds for a minute.
    pub(crate) fn of_a_minute(setup: &Setup<'_>) -> Self {
        let minute = json!({ "minute": { "description": "a minute", "validityPeriod": 60 } });
        Self::with(setup, None, minute)
    }

    fn with(setup: &Setup<'_>, server: Option<SocketAddr>, profiles: serde_json::Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let authority = DevelopmentAuthority::open(directory.path()).unwrap();
        authority.issue("pebble", &["127.0.0.1"]).unwrap();
        let [address, management, dns] = [(); 3].map(|()| free_address());
        let config = json!({ "pebble": {
            "listenAddress": address.to_string(),
            "managementListenAddress": management.to_string(),
            "certificate": at("pebble.crt"),
            "privateKey": at("pebble.key"),
            "httpPort": setup.validates_at,
            "tlsPort": setup.validates_at,
            "ocspResponderURL": "",
            "retryAfter": { "authz": 1, "order": 1 },
            "externalAccountBindingRequired": setup.external,
            "externalAccountMACKeys": { (EXTERNAL.0): EXTERNAL.1 },
            "keyAlgorithm": "ecdsa",
            "profiles": profiles,
        }});
        fs::write(at("config.json"), config.to_string()).unwrap();
        let mut names = program("pebble-challtestsrv");
        names.args(["-management", "", "-http01", "", "-https01", "", "-doh", ""]);
        names.args(["-tlsalpn01", "", "-defaultIPv6", "", "-dnsserver"]);
        names.arg(dns.to_string());
        let mut pebble = program("pebble");
        pebble.arg("-config").arg(at("config.json"));
        pebble.arg("-dnsserver");
        pebble.arg(server.unwrap_or(dns).to_string());
        pebble.env("PEBBLE_VA_NOSLEEP", "1");
        pebble.envs(setup.variables.iter().copied());
        let log = fs::File::create(at("pebble.log")).unwrap();
        let started = Self {
            _processes: [
                start(&mut names, Stdio::null()),
                start(&mut pebble, log.into()),
            ],
            directory,
            address,
            management,
        };
        for address in [dns, address, management] {
            let deadline = Instant::now() + DEADLINE;
            while TcpStream::connect(address).is_err() {
                assert!(Instant::now() < deadline, "Pebble does not come up");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        started
    }

    /// URL of its directory.
    pub(crate) fn url(&self) -> String {
        format!("https://{}/dir", self.address)
    }

    /// How many lines of its log have this in them.
    pub(crate) fn log_has(&self, text: &str) -> usize {
        let log = fs::read(self.directory.path().join("pebble.log")).unwrap();
        let log = String::from_utf8_lossy(&log);
        log.lines().filter(|line| line.contains(text)).count()
    }

    /// PEM file of what vouches for its HTTPS.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// PEM file of the root of what it issues.
    pub(crate) fn root(&self) -> PathBuf {
        let file = self.directory.path().join("root.crt");
        fs::write(&file, self.manage(&["--fail"], "roots/0")).unwrap();
        file
    }

    /// Says when the certificate in a PEM file should be renewed.
    pub(crate) fn suggest(&self, chain: &Path, start: &str, end: &str) {
        let window = json!({ "suggestedWindow": { "start": start, "end": end } });
        let request = json!({
            "certificate": fs::read_to_string(chain).unwrap(),
            "ariResponse": window.to_string(),
        });
        let arguments = ["--fail", "--data", &request.to_string()];
        self.manage(&arguments, "set-renewal-info/");
    }

    /// What it says of the certificate in a PEM file: `Status`, and `Reason` of one that was revoked.
    pub(crate) fn status(&self, chain: &Path) -> serde_json::Value {
        let serial = Command::new("openssl")
            .args(["x509", "-noout", "-serial", "-in"])
            .arg(chain)
            .output()
            .expect("openssl, which scripts/test.sh installs");
        let serial = String::from_utf8(serial.stdout).unwrap();
        let serial = serial.trim().strip_prefix("serial=").unwrap();
        let said = self.manage(&["--fail"], &format!("cert-status-by-serial/{serial}"));
        serde_json::from_slice(&said).unwrap()
    }

    fn manage(&self, arguments: &[&str], path: &str) -> Vec<u8> {
        let asked = Command::new("curl")
            .args(["--silent", "--show-error", "--cacert"])
            .arg(self.ca_file())
            .args(arguments)
            .arg(format!("https://{}/{path}", self.management))
            .output()
            .expect("curl, which scripts/test.sh installs");
        let said = String::from_utf8_lossy(&asked.stderr);
        assert!(
            asked.status.success(),
            "Pebble does not offer {path}, which is new in 2.7; scripts/test.sh installs a newer one: {said}"
        );
        asked.stdout
    }
}

fn program(name: &str) -> Command {
    let peers = std::env::var_os("WAVRY_PEERS");
    let peers =
        peers.expect("WAVRY_PEERS is not set: run ./scripts/test.sh, which installs Pebble");
    Command::new(Path::new(&peers).join("pebble/usr/bin").join(name))
}

/// Where none is asked for, Pebble takes any.
fn months() -> serde_json::Value {
    json!({
        "default": { "description": "three months", "validityPeriod": 7_776_000 },
        "shortlived": { "description": "six days", "validityPeriod": 518_400 },
    })
}

/// Starts a program that has nothing to say.
pub(crate) fn quiet(command: &mut Command) -> Process {
    start(command, Stdio::null())
}

fn start(command: &mut Command, log: Stdio) -> Process {
    let quiet = command.stdin(Stdio::null()).stdout(log);
    let child = quiet.stderr(Stdio::null()).spawn();
    Process(child.unwrap_or_else(|error| {
        panic!("{command:?}, which scripts/test.sh installs, does not start: {error}")
    }))
}
