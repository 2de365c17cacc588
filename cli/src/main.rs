//! The `wavry` binary: every role, and the tools around them.

mod audit;
mod backup;
mod cert;
mod check;
mod config;
mod demo;
mod dev;
mod log;
mod mesh;
mod operate;
mod ops;
mod probe;
mod provision;
mod ready;
mod role;
mod roles;
mod sample;
mod shutdown;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use wavry_proto::control::Role;

/// Takes a browser's WebTransport session to any service, anywhere.
#[derive(Debug, Parser)]
#[command(name = "wavry", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring up a whole cluster on this machine, with a demo page
    #[command(after_long_help = DEV_HELP)]
    Dev(dev::Args),
    /// Run the master: registry, roster, tokens
    #[command(after_long_help = MASTER_HELP)]
    Master(roles::MasterArgs),
    /// Run a KeyVault: keeps secrets, and hands them to whom its policies allow
    #[command(name = "keyvault", after_long_help = KEYVAULT_HELP)]
    KeyVault(roles::KeyVaultArgs),
    /// Run a gateway: terminates WebTransport, authenticates, routes
    #[command(after_long_help = GATEWAY_HELP)]
    Gateway(roles::GatewayArgs),
    /// Run a relay: carries sessions to the services it has upstreams for
    #[command(after_long_help = RELAY_HELP)]
    Relay(roles::RelayArgs),
    /// Open one session natively and measure it
    #[command(after_long_help = PROBE_HELP)]
    Probe(probe::Args),
    /// Drive a system as many clients do, and print the figures
    #[command(subcommand, after_long_help = LOADTEST_HELP)]
    Loadtest(wavry_loadtest::Scenario),
    /// Make the identity and registration token of a relay, a gateway or a KeyVault
    #[command(after_long_help = PROVISION_HELP)]
    Provision(provision::NodeArgs),
    /// Look at the cluster's gateways, relays and KeyVaults, and revoke them (see also `wavry relay identity`)
    #[command(subcommand, after_long_help = NODE_HELP)]
    Node(operate::NodeCommand),
    /// Look at the mesh: nodes, paths in use, flows and leases, and how long packets take to each hop
    #[command(subcommand, after_long_help = MESH_HELP)]
    Mesh(mesh::MeshCommand),
    /// Look at services, and make, change and delete them
    #[command(subcommand, after_long_help = SERVICE_HELP)]
    Service(operate::ServiceCommand),
    /// Make tokens for clients and operators, and revoke clients' tokens
    #[command(subcommand)]
    Token(Token),
    /// Make keys, and rotate the one that signs tokens and rosters
    #[command(subcommand)]
    Key(Key),
    /// Look at certificates, and at their hashes
    #[command(subcommand, after_long_help = CERT_HELP)]
    Cert(cert::Command),
    /// Read and check audit logs
    #[command(subcommand, after_long_help = AUDIT_HELP)]
    Audit(audit::Command),
    /// Serve the sample WebTransport service
    #[command(hide = true)]
    Sample(sample::Args),
}

#[derive(Debug, Subcommand)]
enum Token {
    /// Print a token that opens sessions to a service
    #[command(after_long_help = TOKEN_HELP)]
    Session(provision::SessionArgs),
    /// Write a token with which an operator works on the cluster, readable by its owner alone
    #[command(after_long_help = OPERATOR_HELP)]
    Operator(provision::OperatorArgs),
    /// Have a master sign a token, without its key at hand
    #[command(subcommand, after_long_help = ISSUE_HELP)]
    Issue(operate::IssueCommand),
    /// Make the session tokens of a subject worthless, and close the sessions they opened
    #[command(after_long_help = REVOKE_HELP)]
    Revoke(operate::RevokeArgs),
}

#[derive(Debug, Subcommand)]
enum Key {
    /// Write a new master or audit key (PASERK k4.secret), readable by its owner alone
    #[command(after_long_help = KEY_HELP)]
    Generate(provision::KeyArgs),
    /// List the keys that sign tokens and rosters, and where in their lives they are
    #[command(after_long_help = ROTATE_HELP)]
    List(operate::Master),
    /// Have a new key take the place of the one that signs
    #[command(after_long_help = ROTATE_HELP)]
    Rotate(operate::RotateArgs),
}

const DEV_HELP: &str = "\
Makes a development authority, certificates for 14 days, keys and tokens as files in the state
directory, starts master, gateway, two relays and a sample WebTransport service as processes of
their own, and serves a page that connects to them. A second start uses the same state. A process
that dies is started again. Ctrl-C drains.

  wavry dev
  wavry dev --port 0 --state-dir /tmp/w --ready-file /tmp/w.json    # for scripts: any free ports

Services: echo (public), sample (needs a token; the ready file and the page have one).";

const MASTER_HELP: &str = "\
  export WAVRY_MASTER_KEY_FILE=master.key WAVRY_AUDIT_KEY_FILE=audit.key WAVRY_TLS_KEY_FILE=tls.key
  wavry master --config master.toml

  [master]
  listen = \"0.0.0.0:8443\"
  database = \"/var/lib/wavry/master.sqlite\"
  certificate = \"/etc/wavry/master.crt\"

  [[master.services]]
  name = \"chat\"
  access = \"token\"
  allowed_origins = [\"https://app.example\"]

Secrets: master_key, audit_key, tls_key. Each is read from the file that WAVRY_<NAME>_FILE names, or from
/run/secrets/wavry_<name>. Any key can be set by variable: WAVRY_MASTER__LISTEN, WAVRY_OPS__LISTEN.";

const KEYVAULT_HELP: &str = "\
  export WAVRY_AUDIT_KEY_FILE=audit.key WAVRY_TLS_KEY_FILE=tls.key
  wavry keyvault --config keyvault.toml

  [keyvault]
  listen = \"0.0.0.0:8200\"
  database = \"/var/lib/wavry/keyvault.sqlite\"   # or postgres://wavry@db.example/keyvault?sslrootcert=FILE
  certificate = \"/etc/wavry/keyvault.crt\"
  seal = \"shares\"                              # or \"key\": secret keyvault_key

With a master that has [master.authority] it is a node of that cluster, and has its certificate from there:

  wavry provision keyvault vault-1 --names vault.example,192.0.2.7 --out vault-1
  export WAVRY_IDENTITY_KEY_FILE=vault-1/identity.key WAVRY_REGISTRATION_TOKEN_FILE=vault-1/registration.token

  master = \"https://master.example:8443\"        # certificate may be left out then
  ca_file = \"/etc/wavry/ca.pem\"                # `wavry master authority show`
  state_dir = \"/var/lib/wavry/keyvault\"

It speaks HashiCorp Vault's HTTP API: `vault operator init`, `vault operator unseal`, and then any of
Vault's clients. Secrets: audit_key, tls_key, and keyvault_key with seal = \"key\". Each is read from the
file that WAVRY_<NAME>_FILE names, or from /run/secrets/wavry_<name>. Any key can be set by variable:
WAVRY_KEYVAULT__LISTEN, WAVRY_OPS__LISTEN.";

const GATEWAY_HELP: &str = "\
  [gateway]
  listen = \"0.0.0.0:443\"
  certificate = \"/etc/wavry/gateway.crt\"
  state_dir = \"/var/lib/wavry\"
  master = \"https://master.example:8443\"
  ca_file = \"/etc/wavry/ca.crt\"

  [gateway.acme]                        # in place of certificate: it is obtained, and renewed
  names = [\"gateway.example\"]
  terms_of_service_agreed = true        # Let's Encrypt's, which comes to TCP port 80

  [gateway.keyvault]                    # or: kept in a KeyVault with its key, and read again
  certificates = [\"secret/wavry/gateway\"]

  [gateway.self_signed]                 # or: for clients that trust it by its hash, and by no name

Secrets: tls_key (with certificate), identity_key, registration_token (see `wavry provision gateway`).
Each is read from the file that WAVRY_<NAME>_FILE names, or from /run/secrets/wavry_<name>. Any key can
be set by variable: WAVRY_GATEWAY__LISTEN, WAVRY_OPS__LISTEN.";

const CERT_HELP: &str = "\
  wavry cert list --state-dir /var/lib/wavry       # what is kept of ACME, and what the gateway signed
  wavry cert show /etc/wavry/gateway.crt
  wavry cert hashes --state-dir /var/lib/wavry     # the one in use, then the next one
  wavry cert renew gateway.example --state-dir /var/lib/wavry
  wavry cert revoke gateway.example --state-dir /var/lib/wavry --reason key-compromise
  wavry cert import chain.pem key.pem --certificate /etc/wavry/gateway.crt

renew and revoke ask the gateway of that directory, which does it between other things, also one that is
started later. They are for certificates of [gateway.acme], import for those that are read from files.";

const RELAY_HELP: &str = "\
  [relay]
  mesh_listen = \"0.0.0.0:4434\"
  advertise = [\"192.0.2.7:4434\"]
  state_dir = \"/var/lib/wavry\"
  master = \"https://master.example:8443\"
  ca_file = \"/etc/wavry/ca.crt\"

  [relay.upstreams.chat]
  url = \"https://localhost:9000/\"     # or tcp://HOST:PORT, udp://HOST:PORT, echo:

Secrets: identity_key, registration_token (see `wavry provision relay`). Each is read from the file
that WAVRY_<NAME>_FILE names, or from /run/secrets/wavry_<name>. Any key can be set by variable:
WAVRY_RELAY__MESH_LISTEN, WAVRY_OPS__LISTEN.";

const PROBE_HELP: &str = "\
  wavry probe https://localhost:4433/echo --ca .wavry/tls/ca.crt
  wavry probe https://gateway.example/chat/room --token-file token --duration 10s --json

An echo service gives every figure; one that does not echo datagrams or streams gives what it can,
and notes say what is missing. Throughput is measured on one stream that is sent back as it comes.
Exit code 2: the service refused, closed, or cannot be reached. The token is never printed.";

const LOADTEST_HELP: &str = "\
  wavry loadtest echo --baseline                 # beside bare QUIC, in the same run
  wavry loadtest transfer --streams 200          # 1 GiB, every byte checked
  wavry loadtest datagrams --rate 20000 --json   # every loss accounted for
  wavry loadtest idle --sessions 5000            # memory of each node for one session
  wavry loadtest mesh --only kill --only drain   # sessions whose paths die, on a shaped network
  wavry loadtest servers                         # the session layer alone, beside bare QUIC

Without --url, a scenario starts a cluster of its own (`wavry dev`) on free ports and stops it when
it is done. Progress goes to standard error. Exit code 1: something that was checked does not hold.";

const PROVISION_HELP: &str = "\
Signs with the master key: the file that WAVRY_MASTER_KEY_FILE names, or /run/secrets/wavry_master_key.
Writes to an audit log that is sealed with the audit key: WAVRY_AUDIT_KEY_FILE, or
/run/secrets/wavry_audit_key.

  export WAVRY_MASTER_KEY_FILE=master.key WAVRY_AUDIT_KEY_FILE=audit.key
  wavry provision relay edge-1 --services chat,game --out edge-1

Copy both files to the node, name them there in WAVRY_IDENTITY_KEY_FILE and
WAVRY_REGISTRATION_TOKEN_FILE, and start `wavry relay`. The token can be used once.";

const TOKEN_HELP: &str = "\
Signs with the master key: the file that WAVRY_MASTER_KEY_FILE names, or /run/secrets/wavry_master_key.
Writes to an audit log that is sealed with the audit key: WAVRY_AUDIT_KEY_FILE, or
/run/secrets/wavry_audit_key.

  export WAVRY_MASTER_KEY_FILE=master.key WAVRY_AUDIT_KEY_FILE=audit.key
  wavry token session chat --subject alice --ttl 15m

The client sends it as `Authorization: Bearer TOKEN`, or, from a browser, as `?token=TOKEN`.";

const OPERATOR_HELP: &str = "\
Signs with the master key: the file that WAVRY_MASTER_KEY_FILE names, or /run/secrets/wavry_master_key.
Writes to an audit log that is sealed with the audit key: WAVRY_AUDIT_KEY_FILE, or
/run/secrets/wavry_audit_key.

  wavry token operator --subject alice --role operator --ttl 8h --out operator.token
  export WAVRY_OPERATOR_TOKEN_FILE=operator.token
  wavry node list --master https://master.example:8443 --ca-file ca.crt

A viewer looks; an operator also changes services, issues session tokens and revokes; an admin may do
everything. Who holds the file is the
operator until the token expires.";

const ISSUE_HELP: &str = "\
  export WAVRY_MASTER=https://master.example:8443 WAVRY_CA_FILE=ca.crt
  export WAVRY_OPERATOR_TOKEN_FILE=operator.token       # see `wavry token operator`
  wavry token issue operator --role viewer --ttl 15m --out script.token
  wavry token issue session chat --subject alice --ttl 15m --out alice.token
  wavry token issue registration relay exit-1 --services chat --out registration.token

A viewer gets tokens of its own name and role; an operator also issues those of sessions; an admin issues
any. An operator's token holds no longer than the one that asks for it: what has leaked is of use until it
expires, and not for longer. The master's audit log has a line of each before anybody has the token.";

const NODE_HELP: &str = "\
  export WAVRY_MASTER=https://master.example:8443 WAVRY_CA_FILE=ca.crt
  export WAVRY_OPERATOR_TOKEN_FILE=operator.token       # see `wavry token operator`
  wavry node list
  wavry node set edge-1 --weight 50 --region eu-west
  wavry node revoke edge-1

A region or weight that was set holds until the node registers anew; gateways choose by it for sessions from then
on, and live ones stay where they are.

A revoked node leaves the roster at once, and every node closes its connections to it. Its keys never
register again. To take it back, provision it anew, 30 s later or more, with a new identity.";

const MESH_HELP: &str = "\
  wavry mesh paths                                # of the gateway and the relay on this host
  wavry mesh paths exit-1 --config /etc/wavry/gateway.toml --watch
  wavry mesh flows --ops http://10.0.0.1:9641,http://10.0.0.2:9641 --json
  wavry mesh transit --ops 10.0.0.7:9642          # what a transit relay carries, and what it drops
  wavry mesh trace exit-1                         # each relay on the way, measured now
  wavry mesh trace --session 4711                 # the same, for a session by its id in the node's log
  wavry mesh nodes                                # needs a master: see `wavry node`

Nodes tell at their ops listeners (GET /mesh, GET /mesh/trace), which are on loopback unless ops.allow_remote
is set: ask on the node's host, or through an SSH tunnel.

A trace has a row for each relay on the way and one for the peer. LAST is the newest round trip, ADDED what it
takes longer than to the hop before, and * stands for no answer. A relay's answer is a verdict on a claim, which
takes the way of packets and the relay some tens of microseconds.";

const SERVICE_HELP: &str = "\
  export WAVRY_MASTER=https://master.example:8443 WAVRY_CA_FILE=ca.crt
  export WAVRY_OPERATOR_TOKEN_FILE=operator.token       # see `wavry token operator`
  wavry service set chat --origin https://app.example --host chat.example
  wavry service set chat --origin https://app.example --key k4.public.…
  wavry service list
  wavry service delete chat

A relay announces a service if its registration token names it (`wavry provision relay --services`).
With --key the service's owner signs session tokens, with the audience chat and without asking
anybody. Services of the master's configuration are changed there, and not by these commands.";

const REVOKE_HELP: &str = "\
  export WAVRY_MASTER=https://master.example:8443 WAVRY_CA_FILE=ca.crt
  export WAVRY_OPERATOR_TOKEN_FILE=operator.token       # see `wavry token operator`
  wavry token revoke --subject alice
  wavry token revoke --subject alice --service chat

Every token of the subject that was issued until now, and in the next 30 s as clocks may differ,
holds no more. Sessions that were opened with one are closed with code 0x57560009.";

const ROTATE_HELP: &str = "\
  export WAVRY_MASTER=https://master.example:8443 WAVRY_CA_FILE=ca.crt
  export WAVRY_OPERATOR_TOKEN_FILE=admin.token          # see `wavry token operator`
  wavry key list
  wavry key rotate --reason request
  wavry key rotate --reason compromise

A master rotates its key every year by itself. On request it does so now: the new key is published,
signs after --wait, and the old one is accepted for --overlap more, so that nothing is dropped. After
a compromise the new key signs at once, and nothing that any other signed holds any more: sessions that
were opened with such a token are closed, and operators need new tokens. Nodes stay what they are.

New keys are kept in the master's database, sealed under the secret master_key. Commands that sign with
the master key at hand find the present one there: --database, or WAVRY_MASTER_DATABASE.";

const AUDIT_HELP: &str = "\
  wavry audit tail --database /var/lib/wavry/master.sqlite --follow
  wavry audit query --database /var/lib/wavry/master.sqlite --action deny --since 2026-11-22T10:00:00Z
  wavry audit verify --file /etc/wavry/secrets/provision.jsonl --public-key k4.public.…

Each line is a JSON object with the hash of the line before it; the newest is sealed with the audit
key. `verify` finds lines that were edited, removed, moved or cut off, and says where.";

const KEY_HELP: &str = "\
  wavry key generate --out master.key
  wavry key generate --out audit.key

Name the files in WAVRY_MASTER_KEY_FILE and WAVRY_AUDIT_KEY_FILE, or put them at
/run/secrets/wavry_master_key and /run/secrets/wavry_audit_key, and start `wavry master`. Whoever
holds the master key can admit nodes and clients; whoever holds the audit key can forge the log.";

fn main() -> ExitCode {
    log::report_panics();
    if let Err(error) = wavry_credentials::process::harden() {
        return failed(&error.into());
    }
    wavry_credentials::cert::install_crypto_provider();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::new(error).context("runtime")),
    };
    match runtime.block_on(dispatch(cli.command)) {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Dev(args) => dev::run(&args).await?,
        Command::Master(args) => match &args.command {
            Some(roles::MasterCommand::Key(roles::MasterKey::Rotate(args))) => {
                operate::rotate(args).await?;
            }
            Some(roles::MasterCommand::Authority(command)) => operate::authority(command).await?,
            Some(roles::MasterCommand::Backup(args)) => backup::backup(args).await?,
            Some(roles::MasterCommand::Restore(args)) => backup::restore(args).await?,
            // Its configuration is large.
            None => Box::pin(role::run::<roles::Master>(&args.role, &args.flags())).await?,
        },
        Command::KeyVault(args) => match &args.command {
            Some(roles::NodeCommand::Identity(command)) => {
                operate::identity(Role::KeyVault, command).await?;
            }
            None => role::run::<roles::KeyVault>(&args.role, &args.flags()).await?,
        },
        Command::Gateway(args) => match &args.command {
            Some(roles::NodeCommand::Identity(command)) => {
                operate::identity(Role::Gateway, command).await?;
            }
            None => role::run::<roles::Gateway>(&args.role, &args.flags()).await?,
        },
        Command::Relay(args) => match &args.command {
            Some(roles::NodeCommand::Identity(command)) => {
                operate::identity(Role::Relay, command).await?;
            }
            None => role::run::<roles::Relay>(&args.role, &args.flags()).await?,
        },
        Command::Probe(args) => return probe_exit(probe::run(&args).await),
        Command::Loadtest(scenario) => {
            log::start_for_tool("warn");
            return Ok(wavry_loadtest::run(&scenario).await?);
        }
        Command::Sample(args) => sample::run(&args).await?,
        Command::Provision(args) => provision::node(&args).await?,
        Command::Node(command) => operate::node(&command).await?,
        Command::Mesh(command) => mesh::run(&command).await?,
        Command::Service(command) => operate::service(&command).await?,
        Command::Token(Token::Session(args)) => provision::session(&args).await?,
        Command::Token(Token::Operator(args)) => provision::operator(&args).await?,
        Command::Token(Token::Issue(command)) => operate::issue(&command).await?,
        Command::Token(Token::Revoke(args)) => operate::revoke(&args).await?,
        Command::Key(Key::Generate(args)) => provision::key(&args)?,
        Command::Key(Key::List(master)) => operate::keys(&master).await?,
        Command::Key(Key::Rotate(args)) => operate::rotate(&args).await?,
        Command::Cert(command) => cert::run(&command).await?,
        Command::Audit(command) => return audit::run(&command).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// A probe that found no session says so with a code of its own.
fn probe_exit(result: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    Ok(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            failed(&error);
            ExitCode::from(2)
        }
    })
}

/// Arguments that are none, or a call for help. What was given may be a URL with a token in it.
fn misused(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        error.exit();
    }
    log::complain(error.render().to_string().trim_end());
    ExitCode::from(2)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    log::complain(&format!("wavry: {error:#}"));
    ExitCode::FAILURE
}
