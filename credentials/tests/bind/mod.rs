//! BIND, a DNS server that takes signed updates. It runs as whoever runs the test, and ends with it.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use crate::pebble::{DEADLINE, Process, free_address, quiet};

/// The key that may change zones, and one of which the server knows nothing.
pub(crate) const KEY: &str = "c2l4dGVlbiBieXRlcyBvciBtb3JlLCBidXQgc2VjcmV0";
pub(crate) const WRONG_KEY: &str = "YW5vdGhlciBrZXkgdGhhdCBpcyBhcyBsb25nIGFzIHRoZSBmaXJzdA==";
/// What the server calls the key.
pub(crate) const KEY_NAME: &str = "acme";

/// It, running or not.
pub(crate) struct Bind {
    directory: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    process: Option<Process>,
}

impl Bind {
    /// Starts it on a free port, for zones that the key may change, as `("zone.example", "further records")`.
    pub(crate) fn start(zones: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().display();
        let address = free_address();
        let mut config = format!(
            "options {{ directory \"{at}\"; pid-file \"{at}/pid\"; session-keyfile \"{at}/session.key\"; \
             managed-keys-directory \"{at}\"; listen-on port {} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; \
             recursion yes; dnssec-validation no; notify no; }};\ncontrols {{ }};\n\
             key \"{KEY_NAME}\" {{ algorithm hmac-sha256; secret \"{KEY}\"; }};\n",
            address.port(),
        );
        for (zone, records) in zones {
            let file = directory.path().join(format!("{zone}.zone"));
            let records = format!(
                "$TTL 60\n@ SOA ns.{zone}. operator.{zone}. 1 60 60 3600 60\n@ NS ns.{zone}.\nns A 127.0.0.1\n{records}\n"
            );
            fs::write(&file, records).unwrap();
            config += &format!(
                "zone \"{zone}\" {{ type primary; file {file:?}; update-policy {{ grant {KEY_NAME} zonesub ANY; }}; }};\n"
            );
        }
        fs::write(directory.path().join("named.conf"), config).unwrap();
        let mut bind = Self {
            directory,
            address,
            process: None,
        };
        bind.restart();
        bind
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again where it was, and waits until it answers.
    pub(crate) fn restart(&mut self) {
        let mut named = Command::new("/usr/sbin/named");
        named.args(["-4", "-g", "-n", "1", "-c"]);
        named.arg(self.directory.path().join("named.conf"));
        self.process = Some(quiet(&mut named));
        let deadline = Instant::now() + DEADLINE;
        while self.dig("version.bind", "CH TXT").is_none() {
            assert!(Instant::now() < deadline, "BIND does not come up");
        }
    }

    /// The texts of a name.
    pub(crate) fn texts(&self, name: &str) -> Vec<String> {
        let said = self.dig(name, "TXT").expect("BIND answers");
        // A CNAME is told before what it leads to.
        let texts = said.lines().filter(|line| line.starts_with('"'));
        texts.map(|line| line.replace('"', "")).collect()
    }

    /// A file that `nsupdate -k` reads.
    pub(crate) fn key_file(&self) -> PathBuf {
        let file = self.directory.path().join("acme.key");
        let key = format!("key \"{KEY_NAME}\" {{ algorithm hmac-sha256; secret \"{KEY}\"; }};\n");
        fs::write(&file, key).unwrap();
        file
    }

    /// A program that changes its zones as hooks do: `PROGRAM add|remove NAME VALUE`.
    pub(crate) fn hook(&self, at: &Path) {
        use std::os::unix::fs::PermissionsExt as _;
        let script = format!(
            "#!/bin/sh\nset -eu\n[ \"$(env | grep -c SECRET || true)\" = 0 ]\n\
             case \"$1\" in add) change=\"add $2. 60 TXT $3\" ;; remove) change=\"delete $2. TXT $3\" ;; esac\n\
             printf 'server 127.0.0.1 {}\\nupdate %s\\nsend\\n' \"$change\" | nsupdate -k {}\n\
             echo \"$1 $2\" >>{}.log\n",
            self.address.port(),
            self.key_file().display(),
            at.display(),
        );
        fs::write(at, script).unwrap();
        fs::set_permissions(at, fs::Permissions::from_mode(0o700)).unwrap();
    }

    fn dig(&self, name: &str, kind: &str) -> Option<String> {
        let asked = Command::new("dig")
            .args(["@127.0.0.1", "-p", &self.address.port().to_string()])
            .args(["+short", "+time=1", "+tries=1", name])
            .args(kind.split(' '))
            .stdin(Stdio::null())
            .output()
            .expect("dig, which scripts/test.sh installs");
        let said = String::from_utf8(asked.stdout).unwrap();
        asked.status.success().then_some(said)
    }
}
