//! What somebody has who captures every packet around a transit relay: real processes in a network namespace of
//! their own, in which gateway and exit reach each other through the relay alone, `dumpcap` on its interface, and
//! `tshark` on what that kept.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and tells what it saw"
)]

#[path = "../support/mod.rs"]
mod support;

mod pcap;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::Value;
use support::{
    DEADLINE, Guard, client::within, cluster::Cluster, output_within, scanner::Scanner,
    signal_and_wait, stderr, wait_for,
};
use wavry_credentials::cert::{Trust, client_config};
use wavry_transport::{
    session::{self, RecvStream as _, Request, SendStream as _, Session as _},
    webtransport::{Client, ConnectError, Limits, Session},
};

use pcap::Packet;

const TEST: &str =
    "who_captures_all_around_a_transit_relay_reads_nothing_of_what_a_session_carries";

/// Set in the process that runs in the namespace.
const INSIDE: &str = "IN_A_NAMESPACE";

/// Gateway and exit are in the lower half of 127.0.0.0/8, and nothing goes from one to the other there. The
/// relay is in the upper one.
const LOWER_HALF: &str = "127.0.0.0/9";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);
const TRANSIT: Ipv4Addr = Ipv4Addr::new(127, 200, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 66, 213, 88);

const RELAY: &str = "transit-a";

/// What goes each way on a stream, and how many datagrams do.
const BYTES: usize = 1_400_000;
const DATAGRAMS: usize = 300;

/// Packets that come and go on each side of the relay at least. One has 1,288 bytes at most.
const PACKETS: usize = 1_000;
const LARGEST: usize = 1_288;

/// What is nowhere else; no two have eight bytes in a row in common.
const HOST: &str = "h7qp2vz9d.k4nwt8rx.example";
const IN_STREAM: &str = "wK8:s+Zq3!4mZ%Qx1^bT7";
const IN_DATAGRAM: &str = "r3T~d/Gn5?9xVbN&2kW";
const IN_PATH: &str = "bN6-pT_hY.1cDkW0sYq";
const IN_HEADER: &str = "yE5(hR)v=0gHuT7@mC3";
const IN_PLAIN: &str = "uJ2;pL,o'7sLpR8f|Xz";

#[test]
fn who_captures_all_around_a_transit_relay_reads_nothing_of_what_a_session_carries() {
    if std::env::var_os(INSIDE).is_none() {
        return in_a_namespace();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.unwrap().block_on(capture_and_look());
}

/// Runs the test once more, in a process that has a network to itself.
fn in_a_namespace() {
    let alone = ["unshare", "--map-root-user", "--net", "--kill-child"];
    // Some systems give no rights in a namespace that anybody may make.
    let by_root = ["sudo", "-n", "-E", "unshare", "--net", "--kill-child"];
    let path = std::env::var("PATH").unwrap_or_default();
    let command = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        // Where Debian has `ip`.
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        command
    };
    let mut trying = command(&alone);
    trying.args(["ip", "link", "set", "lo", "up"]);
    let mut again = match output_within(trying, DEADLINE).status.success() {
        true => command(&alone),
        false => command(&by_root),
    };
    again
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .env(INSIDE, "1");
    let done = output_within(again, 2 * DEADLINE);
    let said = String::from_utf8_lossy(&done.stdout);
    println!("{said}");
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(said.contains("1 passed"), "it was not run: {said}");
}

async fn capture_and_look() {
    keep_gateway_and_exit_apart();
    let files = tempfile::tempdir().unwrap();
    let capture = Capture::start(files.path().join("all.pcap"));
    let cluster = cluster();
    let transit = transit_address(&cluster);
    let token = cluster.token("closed", "tab", "10m");
    let client = SocketAddrV4::new(CLIENT, free_port());
    carry(&open(&cluster, client, &token).await).await;
    let planted = plant();
    let kept = capture.stop(&planted);

    let frames = pcap::read(&kept);
    let packets: Vec<_> = frames.iter().filter_map(|frame| frame.packet).collect();
    let is_of = |packet: &Packet<'_>, ip| [packet.from, packet.to].iter().any(|at| *at.ip() == ip);
    let around = packets.iter().filter(|packet| is_of(packet, TRANSIT));
    let around: Vec<_> = around.flat_map(|packet| packet.split(LARGEST)).collect();
    let IpAddr::V4(exit) = cluster.relay().ip() else {
        panic!("the exit has an address of IPv4");
    };
    for (end, ip) in [("gateway", GATEWAY), ("exit", exit)] {
        let count = |is: fn(&Packet<'_>) -> Ipv4Addr| {
            around.iter().filter(|packet| is(packet) == ip).count()
        };
        let (came, went) = (
            count(|packet| *packet.from.ip()),
            count(|packet| *packet.to.ip()),
        );
        println!("{came} packets from the {end} to the relay, {went} back");
        assert!(came >= PACKETS && went >= PACKETS);
    }
    let past = packets
        .iter()
        .filter(|packet| is_of(packet, GATEWAY) && is_of(packet, exit));
    assert_eq!(past.count(), 0, "gateway and exit reach each other");

    let mut scanner = Scanner::new();
    for (what, canary) in [
        ("host", HOST),
        ("stream", IN_STREAM),
        ("datagram", IN_DATAGRAM),
        ("path", IN_PATH),
        ("header", IN_HEADER),
        ("token", token.as_str()),
    ] {
        scanner.watch(what, canary.as_bytes());
    }
    for frame in &frames {
        assert_eq!(scanner.scan(frame.bytes), None, "in a packet of whomever");
    }
    scanner.watch("client's address", CLIENT.to_string().as_bytes());
    let of_client = [&CLIENT.octets()[..], &client.port().to_be_bytes()].concat();
    for packet in &around {
        assert_eq!(
            scanner.scan(packet.payload),
            None,
            "in a packet around the relay"
        );
        assert!(!tells(packet.payload, &of_client), "the client's address");
    }

    // What tshark makes of it once the header of flows is taken off. The keys of QUIC's first packets follow from what
    // everybody sees (RFC 9001, section 5.2): it reads how the handshake begins.
    let at = |name: &str| files.path().join(name);
    let bare = around.iter().filter_map(|packet| packet.of_flow());
    fs::write(at("bare.pcap"), pcap::write(bare)).unwrap();
    let quic = format!("udp.port=={},quic", transit.port());
    let text = dissected(&at("bare.pcap"), &["-d", &quic]);
    println!("tshark shows {} MB", text.len() / 1_000_000);
    assert!(tells(&text, b"wavry-mesh/1"), "a handshake is read");
    assert_eq!(scanner.scan(&text), None, "in what tshark shows");
    assert!(
        around
            .iter()
            .any(|packet| tells(packet.payload, RELAY.as_bytes())),
        "a claim names the relay"
    );

    // The same search finds what is there.
    let mut control = Scanner::new();
    control.watch("plain", IN_PLAIN.as_bytes());
    for payload in planted {
        let is_it = |packet: &&Packet<'_>| packet.payload == payload;
        let packet = packets.iter().find(is_it).expect("it was captured");
        assert!(
            control.scan(packet.payload).is_some(),
            "{payload:?} is not found"
        );
    }
    let text = dissected(&at("all.pcap"), &["-Y", "udp && data.len < 100"]);
    assert!(control.scan(&text).is_some(), "tshark does not show it");
}

/// Nothing goes from the gateway's end of the mesh to the exit or back.
fn keep_gateway_and_exit_apart() {
    let ip = |arguments: &str| {
        let mut command = Command::new("ip");
        command.args(arguments.split(' '));
        let done = output_within(command, DEADLINE);
        assert!(done.status.success(), "ip {arguments}: {}", stderr(&done));
    };
    ip("link set lo up");
    // The addresses of the host itself are looked up before all else: these are to come first.
    ip("rule add pref 100 lookup local");
    ip("rule del pref 0");
    ip(&format!(
        "rule add pref 10 from {GATEWAY} to {LOWER_HALF} prohibit"
    ));
    ip(&format!(
        "rule add pref 11 from {LOWER_HALF} to {GATEWAY} prohibit"
    ));
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.add_with_token("closed", "echo:");
    cluster.bind_to_host(HOST);
    cluster.add_service_only("other");
    cluster.add_relay(RELAY, "other", "echo:", &[]);
    let listen = format!("[relay.transit]\nlisten = \"{TRANSIT}:0\"");
    cluster.set("further", &listen);
    cluster.set("gateway", &format!("mesh_bind = \"{GATEWAY}:0\""));
    cluster.start()
}

/// Where the relay forwards.
fn transit_address(cluster: &Cluster) -> SocketAddr {
    let operator = cluster.operator_token("viewer");
    let listed = || {
        let shown = cluster.operate(&operator, &["node", "show", RELAY, "--json"]);
        assert!(shown.status.success(), "{}", stderr(&shown));
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        shown["transit"][0].as_str().map(|at| at.parse().unwrap())
    };
    wait_for("the roster has where it forwards", || listed().is_some());
    listed().unwrap()
}

fn free_port() -> u16 {
    let socket = UdpSocket::bind((CLIENT, 0)).unwrap();
    socket.local_addr().unwrap().port()
}

async fn open(cluster: &Cluster, client: SocketAddrV4, token: &str) -> Session {
    let trust = Trust::Authorities(cluster.directory().join("ca.crt"));
    let tls = client_config(&trust).unwrap();
    let client = Client::new(client.into(), tls, Limits::default()).unwrap();
    let request = || Request {
        authority: HOST.to_owned(),
        path: format!("/{IN_PATH}?token={token}"),
        origin: None,
        headers: vec![session::Header {
            name: "user-agent".to_owned(),
            value: IN_HEADER.to_owned(),
        }],
        subprotocols: Vec::new(),
    };
    // The exit is reached once a flow to it was granted.
    let asked = async {
        loop {
            let connecting = client.connect(cluster.gateway(), "127.0.0.1", request());
            match connecting.await {
                Ok((session, _)) => return session,
                Err(ConnectError::Rejected(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    within(DEADLINE, "a session", asked).await
}

/// Sends and gets back what is to be found nowhere.
async fn carry(session: &Session) {
    let content = Bytes::from(IN_STREAM.repeat(BYTES / IN_STREAM.len()));
    let (mut send, mut recv) = session.open_bi().await.unwrap();
    let sending = async {
        send.write(content.clone()).await.unwrap();
        send.finish().unwrap();
    };
    let receiving = async {
        let mut back = Vec::new();
        while let Some(chunk) = recv.read().await.unwrap() {
            back.extend_from_slice(&chunk);
        }
        back
    };
    let datagrams = async {
        for number in 0..DATAGRAMS {
            let datagram = Bytes::from(format!("{number} {IN_DATAGRAM}"));
            session.send_datagram(datagram).unwrap();
            let back = session.recv_datagram().await.unwrap();
            assert!(tells(&back, IN_DATAGRAM.as_bytes()));
        }
    };
    let both = async { tokio::join!(sending, receiving).1 };
    let back = within(DEADLINE, "the stream", both).await;
    assert!(back == content, "it comes back as it was");
    within(DEADLINE, "the datagrams", datagrams).await;
}

/// Sends packets in which something stands that is found: as it is, and in two encodings. What was sent.
fn plant() -> [Vec<u8>; 3] {
    let hex = IN_PLAIN.bytes().map(|byte| format!("{byte:02x}"));
    let planted = [
        format!("plain {IN_PLAIN}"),
        format!("hex {}", hex.collect::<String>()),
        format!("base64 {}", STANDARD.encode(IN_PLAIN)),
    ];
    let socket = UdpSocket::bind((CLIENT, 0)).unwrap();
    let nobody = UdpSocket::bind((CLIENT, 0)).unwrap();
    planted.map(|text| {
        socket
            .send_to(text.as_bytes(), nobody.local_addr().unwrap())
            .unwrap();
        text.into_bytes()
    })
}

/// Whether a piece of text stands somewhere.
fn tells(bytes: &[u8], piece: &[u8]) -> bool {
    bytes.windows(piece.len()).any(|at| at == piece)
}

/// `dumpcap` on the loopback interface.
struct Capture {
    child: Guard,
    file: PathBuf,
}

impl Capture {
    /// Starts it, and waits until it captures.
    fn start(file: PathBuf) -> Self {
        // Enough memory for what comes while it writes (MiB), and all of each packet.
        let mut dumpcap = Command::new("dumpcap");
        dumpcap
            .args(["-i", "lo", "-P", "-B", "128", "-w"])
            .arg(&file);
        let child = dumpcap.stderr(Stdio::piped()).spawn();
        let mut child = Guard::of(child.expect("dumpcap is installed"));
        let said = child.get().stderr.take().unwrap();
        let mut said = BufReader::new(said).lines().map_while(Result::ok);
        assert!(
            said.any(|line| line.starts_with("File:")),
            "it does not capture"
        );
        std::thread::spawn(move || said.for_each(|line| println!("dumpcap: {line}")));
        Self { child, file }
    }

    /// Waits until it has kept the last of these, and what came before them; gives the file.
    fn stop(mut self, last: &[Vec<u8>]) -> Vec<u8> {
        wait_for("all was kept", || {
            let kept = fs::read(&self.file).unwrap();
            last.iter().all(|payload| tells(&kept, payload))
        });
        let status = signal_and_wait(&mut self.child, "INT");
        assert!(status.success(), "dumpcap: {status}");
        fs::read(&self.file).unwrap()
    }
}

/// All that `tshark` says of a file.
fn dissected(file: &Path, more: &[&str]) -> Vec<u8> {
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-V", "-r"]).arg(file).args(more);
    let done = output_within(tshark, DEADLINE);
    assert!(done.status.success(), "{}", stderr(&done));
    done.stdout
}
