//! Debian's rsyslog keeps a master's audit log, over every transport that syslog has.

use std::{
    fs,
    net::UdpSocket,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Instant,
};

use crate::support::{
    DEADLINE,
    cluster::Cluster,
    https::{Https, status},
    output,
    peer::Process,
    stderr, wavry,
};

const TRANSPORTS: [&str; 4] = ["tls", "tcp", "udp", "unix"];
/// The line numbered 1 as rsyslog understood it.
const FIRST: &str = "1 audit.notice wavry register [meta sequenceId=\"1\"] {\"seq\":1,";

/// rsyslogd with a configuration of its own.
struct Rsyslog {
    _process: Process,
    directory: PathBuf,
    udp_port: u16,
}

impl Rsyslog {
    fn start(directory: &Path) -> Self {
        // imudp cannot be asked which port it was given.
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp_port = free.local_addr().unwrap().port();
        drop(free);
        let at = |name: &str| directory.join(name).display().to_string();
        let mut text = format!(
            "global(workDirectory=\"{}\" maxMessageSize=\"64k\" defaultNetstreamDriverCAFile=\"{}\" \
             defaultNetstreamDriverCertFile=\"{}\" defaultNetstreamDriverKeyFile=\"{}\")\n\
             module(load=\"imtcp\" streamDriver.name=\"gtls\" streamDriver.mode=\"1\" \
             streamDriver.authMode=\"anon\")\n\
             module(load=\"imptcp\")\nmodule(load=\"imudp\")\nmodule(load=\"imuxsock\" sysSock.use=\"off\")\n\
             template(name=\"kept\" type=\"string\" string=\"%protocol-version% \
             %syslogfacility-text%.%syslogseverity-text% %app-name% %msgid% %structured-data% %msg%\\n\")\n",
            directory.display(),
            at("ca.crt"),
            at("service.crt"),
            at("service.key")
        );
        for transport in TRANSPORTS {
            let file = at(&format!("{transport}.log"));
            text += &format!(
                "ruleset(name=\"{transport}\") {{ action(type=\"omfile\" file=\"{file}\" template=\"kept\") }}\n"
            );
        }
        text += &format!(
            "input(type=\"imtcp\" address=\"127.0.0.1\" port=\"0\" listenPortFileName=\"{}\" ruleset=\"tls\")\n\
             input(type=\"imptcp\" address=\"127.0.0.1\" port=\"0\" listenPortFileName=\"{}\" ruleset=\"tcp\")\n\
             input(type=\"imudp\" address=\"127.0.0.1\" port=\"{udp_port}\" ruleset=\"udp\")\n\
             input(type=\"imuxsock\" socket=\"{}\" ruleset=\"unix\" useSpecialParser=\"off\" \
             parseHostname=\"on\" rateLimit.interval=\"0\")\n",
            at("tls.port"),
            at("tcp.port"),
            at("log.socket")
        );
        fs::write(directory.join("rsyslog.conf"), text).unwrap();
        let child = Command::new("/usr/sbin/rsyslogd")
            .args(["-n", "-f", &at("rsyslog.conf"), "-i", &at("rsyslog.pid")])
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .expect("rsyslog is installed");
        let process = Process::of(child);
        let started = Instant::now();
        // The last input is there when all are.
        while !directory.join("log.socket").exists() || port(directory, "tls").is_none() {
            assert!(started.elapsed() < DEADLINE, "rsyslogd does not start");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Self {
            _process: process,
            directory: directory.to_owned(),
            udp_port,
        }
    }

    fn url(&self, transport: &str) -> String {
        let port = |transport| port(&self.directory, transport).expect("a port");
        match transport {
            "udp" => format!("syslog+udp://127.0.0.1:{}", self.udp_port),
            "unix" => format!("syslog+unix://{}/log.socket", self.directory.display()),
            _ => format!("syslog+{transport}://127.0.0.1:{}", port(transport)),
        }
    }
}

fn port(directory: &Path, transport: &str) -> Option<u16> {
    let text = fs::read_to_string(directory.join(format!("{transport}.port"))).ok()?;
    text.trim().parse().ok()
}

#[test]
fn what_rsyslog_kept_verifies_and_every_change_to_it_is_found() {
    let mut cluster = Cluster::new();
    let directory = cluster.directory().to_owned();
    let rsyslog = Rsyslog::start(&directory);
    let copy = directory.join("copy.jsonl");
    cluster.add("echo", "echo:", false);
    cluster.add_audit_sink("copy", &format!("file://{}", copy.display()));
    for transport in TRANSPORTS {
        cluster.add_audit_sink(transport, &rsyslog.url(transport));
    }
    let cluster = cluster.start();
    let master = Https::of(&directory.join("ca.crt"), cluster.master());
    for _ in 0..3 {
        let refused = master.ask("POST", "/v1/nodes/heartbeat", &[], b"{}");
        assert_eq!(status(&refused), 401, "{refused}");
    }
    // Two nodes registered, and three requests were refused.
    let whole = "5 lines hold";
    let file = copy.to_str().unwrap();
    wait_for(whole, || verify(&directory, &["--file", file]));
    let seal = format!("{file}.seal");
    for transport in TRANSPORTS {
        let kept = directory.join(format!("{transport}.log"));
        let log = kept.to_str().unwrap();
        let again = || verify(&directory, &["--syslog", log, "--seal", &seal]);
        wait_for(whole, again);
        let text = fs::read_to_string(&kept).unwrap();
        assert!(text.starts_with(FIRST), "{transport}: {text}");
        changes_are_found(&kept, again);
    }
    // Apart from the master, which would put right what is missing.
    let kept = directory.join("kept.jsonl");
    fs::copy(&copy, &kept).unwrap();
    fs::copy(&seal, directory.join("kept.jsonl.seal")).unwrap();
    let file = kept.to_str().unwrap();
    changes_are_found(&kept, || verify(&directory, &["--file", file]));
}

/// Changes what was kept in every way, and wants the first bad line named.
fn changes_are_found(kept: &Path, verify: impl Fn() -> Output) {
    type Change = fn(&mut Vec<String>);
    let changes: [(Change, &str); 4] = [
        (
            |lines| lines[1] = lines[1].replace("register", "registor"),
            "line 2 was changed",
        ),
        (|lines| drop(lines.remove(2)), "line 3 "),
        (|lines| lines.swap(1, 2), "line 2 "),
        (|lines| lines.truncate(3), "line 4 is missing"),
    ];
    let text = fs::read_to_string(kept).unwrap();
    for (change, expected) in changes {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        change(&mut lines);
        fs::write(kept, lines.join("\n") + "\n").unwrap();
        let said = verify();
        assert_eq!(
            said.status.code(),
            Some(1),
            "{}: {expected}",
            kept.display()
        );
        let told = stderr(&said);
        assert!(told.contains(expected), "{}: {told}", kept.display());
    }
    fs::write(kept, text).unwrap();
    assert!(verify().status.success());
}

fn verify(directory: &Path, log: &[&str]) -> Output {
    let mut command = wavry(&["audit", "verify"]);
    command.args(log);
    command.env("WAVRY_AUDIT_KEY_FILE", directory.join("audit.key"));
    output(command)
}

/// Asks until the answer holds `expected`.
fn wait_for(expected: &str, ask: impl Fn() -> Output) {
    let started = Instant::now();
    loop {
        let said = ask();
        if String::from_utf8_lossy(&said.stdout).contains(expected) {
            return;
        }
        assert!(started.elapsed() < DEADLINE, "{said:?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
