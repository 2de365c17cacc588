//! Master, gateway and relay, each its own process with its own configuration, keys and tokens —
//! made by the commands that an operator uses.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    time::{Duration, Instant},
};

use serde_json::Value;
use wavry_credentials::cert::{self, DevelopmentAuthority};

use super::{DEADLINE, RoleProcess, client::Native, https::Https, output, stderr, wavry};

/// A cluster of one gateway and one relay, or more.
pub(crate) struct Cluster {
    directory: tempfile::TempDir,
    /// Further lines of each role's table.
    settings: HashMap<&'static str, String>,
    services: String,
    sinks: String,
    upstreams: String,
    names: Vec<String>,
    /// Table `gateway.acme`, and where the gateway's ops listener is then.
    acme: Option<(String, SocketAddr)>,
    /// Table `master.signing` and the master's environment, where a vault has the key that signs.
    vault: Option<(String, Vec<(String, PathBuf)>)>,
    /// Table `master.authority`, where the cluster's own authority issues the master's certificate.
    authority: Option<String>,
    /// More of the gateway's environment.
    environment: Vec<(&'static str, String)>,
    /// Where each role's log goes, at trace level; to standard error if nowhere.
    logs: Option<PathBuf>,
    /// Gateway, relay, master: in the order in which they are dropped, clients' side first.
    processes: Vec<RoleProcess>,
    /// Relays beside the first.
    more: Vec<Further>,
    /// Gateways beside the first.
    gateways: Vec<RoleProcess>,
}

/// A relay beside the first, an exit for one service.
struct Further {
    name: &'static str,
    service: &'static str,
    upstream: String,
    /// More of what `wavry provision relay` is told.
    provisioned: Vec<&'static str>,
    process: Option<RoleProcess>,
}

impl Cluster {
    /// Its certificates; nothing runs yet.
    pub(crate) fn new() -> Self {
        cert::install_crypto_provider();
        let cluster = Self {
            directory: tempfile::tempdir().unwrap(),
            settings: HashMap::new(),
            services: String::new(),
            sinks: String::new(),
            upstreams: String::new(),
            names: Vec::new(),
            acme: None,
            vault: None,
            authority: None,
            environment: Vec::new(),
            logs: None,
            processes: Vec::new(),
            more: Vec::new(),
            gateways: Vec::new(),
        };
        let authority = DevelopmentAuthority::open(cluster.directory()).unwrap();
        for name in ["master", "gateway", "service"] {
            authority.issue(name, &["localhost", "127.0.0.1"]).unwrap();
        }
        cluster
    }

    /// A line of the table of `master`, `gateway` or `relay`: all of them, or only the first relay (`exit`), those
    /// beside it (`further`), or one of these by its name.
    pub(crate) fn set(&mut self, role: &'static str, line: &str) {
        let lines = self.settings.entry(role).or_default();
        writeln!(lines, "{line}").unwrap();
    }

    fn settings(&self, role: &str) -> &str {
        self.settings.get(role).map_or("", String::as_str)
    }

    /// Where its files are: `ca.crt`, and `service.crt` with its key for a service.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A public service. `tls` says whether the upstream has a certificate of this authority.
    pub(crate) fn add(&mut self, name: &str, upstream: &str, tls: bool) {
        self.service(name, upstream, "public");
        if tls {
            let ca = self.directory().join("ca.crt");
            writeln!(self.upstreams, "ca_file = {ca:?}").unwrap();
        }
    }

    /// A service that is reached with a token.
    pub(crate) fn add_with_token(&mut self, name: &str, upstream: &str) {
        self.service(name, upstream, "token");
    }

    /// A service that the relay has an upstream for, and that the master's configuration does not have.
    pub(crate) fn add_upstream_only(&mut self, name: &str, upstream: &str) {
        writeln!(
            self.upstreams,
            "[relay.upstreams.{name}]\nurl = {upstream:?}"
        )
        .unwrap();
        self.names.push(name.to_owned());
    }

    /// A public service that the first relay has no upstream for.
    pub(crate) fn add_service_only(&mut self, name: &str) {
        writeln!(
            self.services,
            "[[master.services]]\nname = {name:?}\naccess = \"public\"\nallowed_origins = [\"*\"]"
        )
        .unwrap();
    }

    /// One more relay, an exit for `service`; it is provisioned with these flags, too.
    pub(crate) fn add_relay(
        &mut self,
        name: &'static str,
        service: &'static str,
        upstream: &str,
        provisioned: &[&'static str],
    ) {
        self.more.push(Further {
            name,
            service,
            upstream: upstream.to_owned(),
            provisioned: provisioned.to_vec(),
            process: None,
        });
    }

    /// The service that was added last has this host to itself.
    pub(crate) fn bind_to_host(&mut self, host: &str) {
        writeln!(self.services, "hosts = [{host:?}]").unwrap();
    }

    /// The service that was added last tells by a close that it refuses a session.
    pub(crate) fn tell_refusals_by_a_close(&mut self) {
        writeln!(self.services, "refuse_with = \"close\"").unwrap();
    }

    /// A place that the master's audit log is copied to; a receiver has a certificate of this authority.
    pub(crate) fn add_audit_sink(&mut self, name: &str, url: &str) {
        let sink = format!("[[master.audit_sinks]]\nname = {name:?}\nurl = {url:?}");
        writeln!(self.sinks, "{sink}").unwrap();
        if url.starts_with("syslog+tls:") {
            let ca = self.directory().join("ca.crt");
            writeln!(self.sinks, "ca_file = {ca:?}").unwrap();
        }
    }

    /// The gateway obtains its certificate; `table` is its table `gateway.acme`, and it answers at `ops` before
    /// it has one.
    pub(crate) fn obtain_certificate(&mut self, table: &str, ops: SocketAddr) {
        self.acme = Some((table.to_owned(), ops));
    }

    /// The cluster has an authority of its own, which issues the master's certificate and those of nodes; `table` has
    /// more lines of its table `master.authority`.
    pub(crate) fn issue_certificates(&mut self, table: &str) {
        let names = "names = [\"127.0.0.1\", \"localhost\"]";
        self.authority = Some(format!("[master.authority]\n{names}\n{table}"));
    }

    /// Has `ca.crt` be the one that services have their certificates from, and those that vouch for the master now.
    pub(crate) fn trust_authorities(&self) {
        if self.authority.is_none() {
            return;
        }
        let show = ["master", "authority", "show", "--database"];
        let shown = run(wavry(&show).arg(self.directory().join("master.sqlite")));
        let first = self.directory().join("services-ca.crt");
        if !first.exists() {
            fs::copy(self.directory().join("ca.crt"), &first).unwrap();
        }
        let both = [fs::read(first).unwrap(), shown.stdout].concat();
        fs::write(self.directory().join("ca.crt"), both).unwrap();
    }

    /// Adds to the gateway's environment.
    pub(crate) fn tell_gateway(&mut self, variable: &'static str, value: impl ToString) {
        self.environment.push((variable, value.to_string()));
    }

    /// The master signs with a key in a vault; `table` is its table `master.signing`, and `environment` names what it
    /// logs in with. From its next start on.
    pub(crate) fn sign_with_vault(&mut self, table: &str, environment: &[(&str, PathBuf)]) {
        let environment = environment.iter();
        let environment = environment.map(|(name, file)| ((*name).to_owned(), file.clone()));
        self.vault = Some((table.to_owned(), environment.collect()));
    }

    /// Writes everything that each role has to say to `DIRECTORY/ROLE.log`.
    pub(crate) fn log_everything_to(&mut self, directory: &Path) {
        self.logs = Some(directory.to_owned());
    }

    fn launch(&self, role: &str, mut command: Command, ready_file: &Path) -> RoleProcess {
        if let Some(logs) = &self.logs {
            command.env("RUST_LOG", "trace");
            command = to_file(&command, &logs.join(format!("{role}.log")));
        }
        RoleProcess::start(command, ready_file)
    }

    fn service(&mut self, name: &str, upstream: &str, access: &str) {
        writeln!(
            self.services,
            "[[master.services]]\nname = {name:?}\naccess = {access:?}\nallowed_origins = [\"*\"]"
        )
        .unwrap();
        writeln!(
            self.upstreams,
            "[relay.upstreams.{name}]\nurl = {upstream:?}"
        )
        .unwrap();
        self.names.push(name.to_owned());
    }

    /// Starts every process; each serves when this returns.
    pub(crate) fn start(mut self) -> Self {
        let directory = self.directory().to_owned();
        let at = |name: &str| directory.join(name);
        // Where a vault has it, there is none here.
        let key = self.vault.is_none().then(|| at("signing.key"));
        for key in key.into_iter().chain([at("audit.key")]) {
            run(wavry(&["key", "generate", "--out"]).arg(key));
        }
        let master = self.launch("master", self.master_command(), &at("master.ready"));
        self.trust_authorities();
        run(self
            .signing(&["provision", "gateway", "edge", "--out"])
            .arg(at("edge")));
        let services = self.names.join(",");
        let relay = [
            "provision",
            "relay",
            "exit",
            "--services",
            &services,
            "--out",
        ];
        run(self.signing(&relay).arg(at("exit")));

        let (ops, host) = (OPS, own_host());
        let node = format!(
            "master = \"https://{}\"\nca_file = {:?}",
            master.address(),
            at("ca.crt")
        );
        let text = format!(
            "[relay]\nmesh_listen = \"{host}:0\"\nstate_dir = {:?}\n{node}\n{}\n{}\n{}\n{ops}\n",
            at("exit/state"),
            self.settings("exit"),
            self.settings("relay"),
            self.upstreams
        );
        fs::write(at("relay.toml"), text).unwrap();
        let relay = self.launch("relay", self.relay_command(), &at("relay.ready"));

        let (certificate, ops) = match &self.acme {
            None => (
                format!("certificate = {:?}", at("gateway.crt")),
                ops.to_owned(),
            ),
            Some((table, ops)) => (String::new(), format!("{table}\n[ops]\nlisten = \"{ops}\"")),
        };
        let text = format!(
            "[gateway]\nlisten = \"127.0.0.1:0\"\n{certificate}\nstate_dir = {:?}\n{node}\n{}\n{ops}\n",
            at("edge/state"),
            self.settings("gateway")
        );
        fs::write(at("gateway.toml"), text).unwrap();
        let gateway = self.launch("gateway", self.gateway_command(), &at("gateway.ready"));

        self.processes = vec![gateway, relay, master];
        for at in 0..self.more.len() {
            let further = &self.more[at];
            let directory = self.directory().join(further.name);
            let services = ["--services", further.service, "--out"];
            run(self
                .signing(&["provision", "relay", further.name])
                .args(&further.provisioned)
                .args(services)
                .arg(&directory));
            let text = format!(
                "[relay]\nmesh_listen = \"{host}:0\"\nstate_dir = {:?}\n{node}\n{}\n{}\n{}\n\
                 [relay.upstreams.{}]\nurl = {:?}\n{OPS}\n",
                directory.join("state"),
                self.settings("relay"),
                self.settings("further"),
                self.settings(further.name),
                further.service,
                further.upstream
            );
            fs::write(at_name(&directory, further.name), text).unwrap();
            self.start_further(further.name, None);
        }
        if !self.more.is_empty() {
            self.wait_for_exits(1 + self.more.len());
        }
        self
    }

    /// Waits until the gateway knows so many exits: a relay that serves has yet to tell where it is.
    fn wait_for_exits(&self, exits: usize) {
        let deadline = Instant::now() + DEADLINE;
        while self.metric("gateway", "wavry_gateway_exits") < exits as f64 {
            assert!(Instant::now() < deadline, "the gateway misses an exit");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts a relay beside the first, where it was if it was killed.
    fn start_further(&mut self, name: &str, address: Option<SocketAddr>) {
        let directory = self.directory().join(name);
        let mut relay = role("relay", &at_name(&directory, name));
        identity(&mut relay, &directory);
        if let Some(address) = address {
            relay.args(["--listen", &address.to_string()]);
        }
        let process = RoleProcess::start(relay, &directory.join("ready"));
        self.further(name).process = Some(process);
    }

    fn further(&mut self, name: &str) -> &mut Further {
        let mut more = self.more.iter_mut();
        more.find(|further| further.name == name)
            .expect("it was added")
    }

    /// Starts a gateway beside the first, with the same certificate, which knows as many exits as that one; a client
    /// of it.
    pub(crate) fn start_gateway(&mut self, name: &str) -> Native {
        let directory = self.directory().join(name);
        run(self
            .signing(&["provision", "gateway", name, "--out"])
            .arg(&directory));
        let text = format!(
            "[gateway]\nlisten = \"127.0.0.1:0\"\ncertificate = {:?}\nstate_dir = {:?}\n\
             master = \"https://{}\"\nca_file = {:?}\n{}\n{OPS}\n",
            self.directory().join("gateway.crt"),
            directory.join("state"),
            self.master(),
            self.directory().join("ca.crt"),
            self.settings("gateway")
        );
        fs::write(at_name(&directory, name), text).unwrap();
        let mut gateway = role("gateway", &at_name(&directory, name));
        identity(&mut gateway, &directory);
        gateway.env("WAVRY_TLS_KEY_FILE", self.directory().join("gateway.key"));
        let process = RoleProcess::start(gateway, &directory.join("ready"));
        let native = Native::of(&self.directory().join("ca.crt"), process.address());
        let ops = process.ready["ops"].as_str().unwrap().to_owned();
        self.gateways.push(process);
        let exits = || sum(&super::http_get(&ops).1, "wavry_gateway_exits");
        let deadline = Instant::now() + DEADLINE;
        while exits() < 1.0 + self.more.len() as f64 {
            assert!(Instant::now() < deadline, "{name} misses an exit");
            std::thread::sleep(Duration::from_millis(20));
        }
        native
    }

    /// Kills a relay beside the first; where it was.
    pub(crate) fn kill_further(&mut self, name: &str) -> SocketAddr {
        let process = self.further(name).process.take();
        process.expect("it runs").address()
    }

    /// Where one is.
    pub(crate) fn further_address(&mut self, name: &str) -> SocketAddr {
        let process = self.further(name).process.as_ref();
        process.expect("it runs").address()
    }

    /// Tells one to leave.
    pub(crate) fn tell_further_to_leave(&mut self, name: &str) {
        let process = self.further(name).process.as_mut();
        super::signal(process.expect("it runs").pid(), "TERM");
    }

    /// Tells the gateway that was started last to leave.
    pub(crate) fn tell_last_gateway_to_leave(&mut self) {
        let last = self.gateways.last_mut();
        super::signal(last.expect("it runs").pid(), "TERM");
    }

    /// Waits until it has.
    pub(crate) fn last_gateway_left(&mut self) -> ExitStatus {
        self.gateways.pop().expect("it runs").left()
    }

    /// Waits until a relay beside the first has left, which was told to.
    pub(crate) fn further_left(&mut self, name: &str) -> ExitStatus {
        let process = self.further(name).process.take();
        process.expect("it runs").left()
    }

    /// Tells one to leave, and waits until it has.
    pub(crate) fn stop_further(&mut self, name: &str) -> ExitStatus {
        let process = self.further(name).process.take();
        process.expect("it runs").stop()
    }

    /// Starts it again.
    pub(crate) fn start_further_again(&mut self, name: &str, address: SocketAddr) {
        self.start_further(name, Some(address));
    }

    /// Kills the gateway, and starts it again where it was.
    pub(crate) fn restart_gateway(&mut self) {
        let address = self.processes.remove(0).address();
        let mut command = self.gateway_command();
        command.args(["--listen", &address.to_string()]);
        let gateway = RoleProcess::start(command, &self.directory().join("gateway.again"));
        self.processes.insert(0, gateway);
    }

    /// What a role's ops listener answers.
    pub(crate) fn ops(&self, role: &str, path: &str) -> (u16, String) {
        let metrics = self.process(role).ready["ops"].as_str().unwrap();
        super::http_get(&metrics.replace("/metrics", path))
    }

    /// Where a role's ops listener is.
    pub(crate) fn ops_address(&self, role: &str) -> SocketAddr {
        let url = self.process(role).ready["ops"].as_str().unwrap();
        let place = url
            .trim_start_matches("http://")
            .trim_end_matches("/metrics");
        place.parse().unwrap()
    }

    /// A metric of a role without labels, or the sum of those with some.
    pub(crate) fn metric(&self, role: &str, name: &str) -> f64 {
        sum(&self.metrics(role), name)
    }

    /// The same of a relay beside the first.
    pub(crate) fn metric_of(&self, relay: &str, name: &str) -> f64 {
        sum(&super::http_get(&self.metrics_of(relay)).1, name)
    }

    /// Where the metrics of a relay beside the first are.
    pub(crate) fn metrics_of(&self, relay: &str) -> String {
        let mut more = self.more.iter();
        let further = more.find(|further| further.name == relay).unwrap();
        let process = further.process.as_ref().expect("it runs");
        process.ready["ops"].as_str().unwrap().to_owned()
    }
}

/// A metric without labels, or the sum of those with some.
fn sum(metrics: &str, name: &str) -> f64 {
    let of_name = metrics.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with([' ', '{']))
    });
    of_name
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

impl Cluster {
    fn master_command(&self) -> Command {
        let at = |name: &str| self.directory().join(name);
        let certificate = match &self.authority {
            None => format!("certificate = {:?}", at("master.crt")),
            Some(_) => String::new(),
        };
        let text = format!(
            "[master]\nlisten = \"127.0.0.1:0\"\ndatabase = {:?}\n{certificate}\n{}\n{}\n{}\n{}\n{}\n{OPS}\n",
            at("master.sqlite"),
            self.settings("master"),
            self.authority.as_deref().unwrap_or_default(),
            self.vault.as_ref().map_or("", |(table, _)| table),
            self.services,
            self.sinks
        );
        fs::write(at("master.toml"), text).unwrap();
        let mut master = role("master", &at("master.toml"));
        self.name_keys(&mut master);
        master.env("WAVRY_TLS_KEY_FILE", at("master.key"));
        master
    }

    /// Tells a command where the keys are that sign, and what is signed is put on record with.
    fn name_keys(&self, command: &mut Command) {
        let at = |name: &str| self.directory().join(name);
        command.env("WAVRY_AUDIT_KEY_FILE", at("audit.key"));
        if at("signing.key").exists() {
            command.env("WAVRY_MASTER_KEY_FILE", at("signing.key"));
        }
        for (name, file) in self.vault.iter().flat_map(|(_, environment)| environment) {
            command.env(name, file);
        }
    }

    /// Kills the master, and starts it again with another table `master.signing`, with which it does not start;
    /// what it says of that.
    pub(crate) fn master_that_is_refused(&mut self, table: &str) -> String {
        self.processes.remove(2);
        let environment = self.vault.take().map(|(_, environment)| environment);
        self.vault = Some((table.to_owned(), environment.unwrap_or_default()));
        let refused = output(self.master_command());
        assert!(!refused.status.success());
        stderr(&refused)
    }

    /// Requests to its master as they are.
    pub(crate) fn https(&self) -> Https {
        Https::of(&self.directory().join("ca.crt"), self.master())
    }

    /// Kills the master, and starts it again where it was, as it is configured now.
    pub(crate) fn restart_master(&mut self) {
        let address = self.processes.remove(2).address();
        let mut command = self.master_command();
        command.args(["--listen", &address.to_string()]);
        let ready = self.directory().join("master.again");
        let master = self.launch("master", command, &ready);
        self.processes.insert(2, master);
    }

    /// Starts the master that was killed, where it was.
    pub(crate) fn start_master(&mut self, address: SocketAddr) {
        let mut command = self.master_command();
        command.args(["--listen", &address.to_string()]);
        let ready = self.directory().join("master.again");
        let master = self.launch("master", command, &ready);
        self.processes.push(master);
    }

    fn relay_command(&self) -> Command {
        let mut relay = role("relay", &self.directory().join("relay.toml"));
        identity(&mut relay, &self.directory().join("exit"));
        relay
    }

    fn gateway_command(&self) -> Command {
        let mut gateway = role("gateway", &self.directory().join("gateway.toml"));
        identity(&mut gateway, &self.directory().join("edge"));
        gateway.env("WAVRY_TLS_KEY_FILE", self.directory().join("gateway.key"));
        for (variable, value) in &self.environment {
            gateway.env(variable, value);
        }
        gateway
    }

    /// Kills gateway and relay, and starts them again where they were.
    pub(crate) fn restart_nodes(&mut self) {
        let addresses = [self.processes[0].address(), self.processes[1].address()];
        let rest = self.processes.split_off(2);
        self.processes.clear();
        for (mut command, name, address) in [
            (self.gateway_command(), "gateway", addresses[0]),
            (self.relay_command(), "relay", addresses[1]),
        ] {
            command.args(["--listen", &address.to_string()]);
            let ready = self.directory().join(format!("{name}.again"));
            self.processes.push(RoleProcess::start(command, &ready));
        }
        self.processes.extend(rest);
    }

    /// Kills the relay. What starts it again where it was.
    pub(crate) fn kill_relay(&mut self) -> Command {
        let address = self.processes.remove(1).address();
        let mut command = self.relay_command();
        command.args(["--listen", &address.to_string()]);
        command
    }

    /// Starts the relay that was killed.
    pub(crate) fn start_relay(&mut self, command: Command) {
        let ready = self.directory().join("relay.again");
        let relay = RoleProcess::start(command, &ready);
        self.processes.insert(1, relay);
    }

    /// Starts the relay again, which is not let in; what it says of that.
    pub(crate) fn relay_that_is_refused(&mut self) -> String {
        self.processes.remove(1);
        let refused = output(self.relay_command());
        assert!(!refused.status.success());
        stderr(&refused)
    }

    /// What a role's metrics are now.
    pub(crate) fn metrics(&self, role: &str) -> String {
        let url = self.process(role).ready["ops"].as_str().unwrap();
        super::http_get(url).1
    }

    fn process(&self, role: &str) -> &RoleProcess {
        let mut processes = self.processes.iter();
        processes
            .find(|p| p.ready["role"] == role)
            .expect("it runs")
    }

    /// A file with a new operator's token.
    pub(crate) fn operator_token(&self, role: &str) -> PathBuf {
        let file = self.directory().join(format!("{role}.token"));
        let arguments = [
            "token",
            "operator",
            "--subject",
            "alice",
            "--role",
            role,
            "--out",
        ];
        run(self.signing(&arguments).arg(&file));
        file
    }

    /// A command to the master by an operator whose token is in `token`.
    pub(crate) fn operate(&self, token: &Path, arguments: &[&str]) -> Output {
        let master = self.process("master").address();
        output(self.operating(master, token, arguments))
    }

    /// The same, to whatever is at an address.
    pub(crate) fn operating(
        &self,
        master: SocketAddr,
        token: &Path,
        arguments: &[&str],
    ) -> Command {
        let mut command = wavry(arguments);
        command
            .env("WAVRY_OPERATOR_TOKEN_FILE", token)
            .env("WAVRY_CA_FILE", self.directory().join("ca.crt"))
            .env("WAVRY_MASTER", format!("https://{master}"));
        command
    }

    /// A command that signs with the master key, or with the one in the vault.
    pub(crate) fn signing(&self, arguments: &[&str]) -> Command {
        let mut command = wavry(arguments);
        self.name_keys(&mut command);
        if self.vault.is_some() {
            command.env("WAVRY_MASTER_CONFIG", self.directory().join("master.toml"));
        }
        command
    }

    /// Where its gateway is.
    pub(crate) fn gateway(&self) -> SocketAddr {
        self.processes[0].address()
    }

    /// Where its master is.
    pub(crate) fn master(&self) -> SocketAddr {
        self.processes[2].address()
    }

    /// URL of a service, with whatever path follows its name.
    pub(crate) fn url(&self, service: &str) -> String {
        format!("https://{}/{service}", self.gateway())
    }

    /// SHA-256 of the gateway's certificate, as hexadecimal.
    pub(crate) fn certificate_hash(&self) -> String {
        let hash = cert::file_hash(&self.directory().join("gateway.crt")).unwrap();
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A file with a session token for `service`.
    pub(crate) fn session_token(&self, service: &str) -> PathBuf {
        let made = run(&mut self.signing(&["token", "session", service, "--subject", "tester"]));
        let file = self.directory().join("session.token");
        wavry_credentials::source::write_private(&file, &made.stdout).unwrap();
        file
    }

    /// A token for session `session` with `service`, good for `ttl`.
    pub(crate) fn token(&self, service: &str, session: &str, ttl: &str) -> String {
        let arguments = ["token", "session", service, "--subject", "tester"];
        let mut making = self.signing(&arguments);
        making.args(["--session", session, "--ttl", ttl]);
        let made = run(&mut making);
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    }

    /// A token by the key that the master signs with now.
    pub(crate) fn token_by_present_key(&self, service: &str, session: &str, ttl: &str) -> String {
        let arguments = ["token", "session", service, "--subject", "tester"];
        let mut making = self.signing(&arguments);
        making.args(["--session", session, "--ttl", ttl]);
        if self.vault.is_none() {
            making.env(
                "WAVRY_MASTER_DATABASE",
                self.directory().join("master.sqlite"),
            );
        }
        let made = run(&mut making);
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    }

    /// Probes a service.
    pub(crate) fn try_probe(&self, service: &str, more: &[&str]) -> Output {
        let (url, ca) = (self.url(service), self.directory().join("ca.crt"));
        let ca = ca.to_str().unwrap();
        let mut probe = wavry(&["probe", &url, "--ca", ca, "--json", "--duration", "1s"]);
        probe.args(more);
        output(probe)
    }

    /// Probes a service that answers; the report.
    pub(crate) fn probe(&self, service: &str, more: &[&str]) -> Value {
        let probed = self.try_probe(service, more);
        assert!(probed.status.success(), "{}", stderr(&probed));
        serde_json::from_slice(&probed.stdout).expect("one JSON object")
    }

    /// A native client of its gateway.
    pub(crate) fn native(&self) -> Native {
        Native::of(&self.directory().join("ca.crt"), self.gateway())
    }

    /// Where its relay's mesh is.
    pub(crate) fn relay(&self) -> SocketAddr {
        self.process("relay").address()
    }

    /// The process id of a role.
    pub(crate) fn pid(&self, role: &str) -> u32 {
        let pid = self.process(role).ready["pid"].as_u64().unwrap();
        pid.try_into().unwrap()
    }

    /// Its processes: gateway, relay, master.
    pub(crate) fn processes(&mut self) -> &mut [RoleProcess] {
        &mut self.processes
    }

    /// Kills the master.
    pub(crate) fn kill_master(&mut self) {
        self.processes.truncate(2);
    }
}

const OPS: &str = "[ops]\nlisten = \"127.0.0.1:0\"";

/// The configuration of a relay beside the first.
/// An address of this host that no other test has: a relay that is killed finds its port there when it comes back.
pub(crate) fn own_host() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 1 + high % 254, middle, low.clamp(1, 254))
}

fn at_name(directory: &Path, name: &str) -> PathBuf {
    directory.join(name).with_extension("toml")
}

fn role(name: &str, config: &Path) -> Command {
    let mut command = wavry(&[name, "--config"]);
    command.arg(config);
    command
}

fn identity(command: &mut Command, directory: &Path) {
    command
        .env("WAVRY_IDENTITY_KEY_FILE", directory.join("identity.key"))
        .env(
            "WAVRY_REGISTRATION_TOKEN_FILE",
            directory.join("registration.token"),
        );
}

/// `command`, with all its output in a file. It has the same process id.
pub(crate) fn to_file(command: &Command, file: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args([
            "-c",
            "file=$1 && shift && exec \"$@\" >>\"$file\" 2>&1",
            "sh",
        ])
        .arg(file)
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// Runs a command that must succeed.
fn run(command: &mut Command) -> Output {
    let done = command.output().expect("the binary starts");
    assert!(done.status.success(), "{command:?}: {}", stderr(&done));
    done
}
