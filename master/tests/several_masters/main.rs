//! Three masters on one PostgreSQL, each a process of its own, of which two at a time are killed while
//! nodes register. On its own because it starts itself as those masters.

#![allow(
    clippy::unwrap_used,
    reason = "it is test code, outside of test functions"
)]

mod history;
#[path = "../support/postgres.rs"]
mod postgres;

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use wavry_credentials::{
    audit::{self, Action},
    cert::{self, DevelopmentAuthority},
    identity::Identity,
    master::{Ask, Client, Connection, Failure},
    source,
    token::{KeySet, Scope, SigningKey},
};
use wavry_master::{
    Config, Master,
    audit_reader::Reader,
    config::{Raw, RawService},
};
use wavry_proto::{
    control::{Challenge, Register, Role, Roster, possession_message},
    id::ClusterName,
    token::{MAX_ROSTER_LEN, NodeRequest, Registration, Validity},
};

use history::{Answer, Attempt, Entry, Reading, What, check};

/// Names the directory to a master that is to be killed.
const DIRECTORY: &str = "WAVRY_TEST_MASTERS_DIRECTORY";
const TEST: &str = "of_three_masters_any_two_may_be_killed_while_nodes_register";
/// Times that two of the three are killed; each pair is.
const KILLS: usize = 3;
const REGISTRANTS: usize = 4;
const READERS: usize = 2;
/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn of_three_masters_any_two_may_be_killed_while_nodes_register() {
    cert::install_crypto_provider();
    if let Some(directory) = env::var_os(DIRECTORY) {
        runtime().block_on(serve_until_killed(Path::new(&directory)));
    }
    runtime().block_on(async {
        let server = postgres::Server::start(true);
        let url = server.database("masters").await;
        let world = Arc::new(World::new(&url));
        let mut masters: Vec<_> = (0..3).map(|_| Some(Process::start(&world))).collect();
        for (slot, master) in masters.iter().enumerate() {
            world.serves(slot, master.as_ref().map(|master| master.address));
        }
        world.register_readers().await;
        let over = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        for number in 0..REGISTRANTS {
            let (world, over) = (world.clone(), over.clone());
            clients.push(tokio::spawn(async move {
                world.keep_registering(number, &over).await
            }));
        }
        for number in 0..READERS {
            let (world, over) = (world.clone(), over.clone());
            clients.push(tokio::spawn(async move {
                world.keep_reading(number, &over).await
            }));
        }

        for kill in 0..KILLS {
            world.wait_for_more(20).await;
            // One, the next while the first is away, and both are back before the next pair.
            let pair = [kill % 3, (kill + 1) % 3];
            for slot in pair {
                drop(masters[slot].take());
                world.serves(slot, None);
                world.wait_for_more(8).await;
            }
            for slot in pair {
                let master = Process::start(&world);
                world.serves(slot, Some(master.address));
                masters[slot] = Some(master);
            }
        }
        world.wait_for_more(20).await;
        over.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.unwrap();
        }

        let last = world.read(0, 0).await.expect("a master answers");
        let history = world.history.lock().unwrap().clone();
        let registered = audited(&world, &url).await;
        let wrong = check(&history, &last, &registered);
        let count = |answer| history.iter().filter(|entry| is(entry, answer)).count();
        println!(
            "{} registrations done, {} refused, {} lost; {} nodes, {} readings, epoch {}",
            count(Answer::Done),
            count(Answer::Refused),
            count(Answer::Lost),
            last.nodes.len(),
            history.len()
                - [Answer::Done, Answer::Refused, Answer::Lost]
                    .map(count)
                    .iter()
                    .sum::<usize>(),
            last.epoch
        );
        assert!(
            count(Answer::Lost) > 0,
            "nobody was killed in the middle of something"
        );
        assert!(wrong.is_empty(), "{wrong:#?}");
    });
}

fn is(entry: &Entry, answer: Answer) -> bool {
    matches!(&entry.what, What::Registration(attempt) if attempt.answer == answer)
}

/// The nodes that the audit log, which holds, says were registered.
async fn audited(world: &World, url: &str) -> Vec<String> {
    let reader = Reader::open(&url.parse().unwrap()).await.unwrap();
    let mut nodes = Vec::new();
    let show = |_: &str, line: audit::Line| {
        if line.event.action == Action::Register {
            nodes.push(line.event.subject);
        }
    };
    reader
        .verify(&world.audit_key().verifier(), show)
        .await
        .unwrap();
    nodes
}

/// A cluster's secrets, where its masters are, and what was asked of them.
struct World {
    directory: tempfile::TempDir,
    key: SigningKey,
    cluster: ClusterName,
    masters: Mutex<[Option<SocketAddr>; 3]>,
    readers: Vec<Identity>,
    began: Instant,
    history: Mutex<Vec<Entry>>,
    done: AtomicUsize,
}

impl World {
    fn new(url: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = DevelopmentAuthority::open(directory.path()).unwrap();
        authority.issue("master", &["127.0.0.1"]).unwrap();
        let key = SigningKey::generate();
        let at = |name: &str| directory.path().join(name);
        source::write_secret(&at("master_key"), &key.to_paserk()).unwrap();
        source::write_secret(&at("audit_key"), &SigningKey::generate().to_paserk()).unwrap();
        fs::write(at("database"), url).unwrap();
        Self {
            directory,
            key,
            cluster: cluster(),
            masters: Mutex::default(),
            readers: (0..READERS).map(|_| Identity::generate()).collect(),
            began: Instant::now(),
            history: Mutex::default(),
            done: AtomicUsize::new(0),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn audit_key(&self) -> audit::Key {
        let key = source::read_file(&self.path("audit_key")).unwrap();
        audit::Key::read(&key, cluster()).unwrap()
    }

    fn serves(&self, slot: usize, address: Option<SocketAddr>) {
        self.masters.lock().unwrap()[slot] = address;
    }

    /// A connection to a master that was not killed as far as is known: another one each time.
    async fn connect(&self, turn: usize) -> Result<Connection, Failure> {
        let masters = *self.masters.lock().unwrap();
        let up: Vec<_> = masters.into_iter().flatten().collect();
        let url = format!("https://{}", up[turn % up.len()]);
        Client::new(&url, &self.path("ca.crt"))
            .unwrap()
            .connect()
            .await
    }

    fn now(&self) -> u128 {
        self.began.elapsed().as_nanos()
    }

    /// Until so many more registrations were acknowledged.
    async fn wait_for_more(&self, more: usize) {
        let until = self.done.load(Ordering::Relaxed) + more;
        let begun = Instant::now();
        while self.done.load(Ordering::Relaxed) < until {
            assert!(begun.elapsed() < DEADLINE, "registrations come to a halt");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn register_readers(&self) {
        for (number, identity) in self.readers.iter().enumerate() {
            let (node, token) = (format!("reader-{number}"), format!("r{number}"));
            let answer = self.register(number, &node, &token, identity).await;
            assert_eq!(answer, Answer::Done);
        }
    }

    async fn keep_registering(&self, number: usize, over: &AtomicBool) {
        for turn in 0.. {
            if over.load(Ordering::Relaxed) {
                return;
            }
            let (node, token) = (format!("n{number}-{turn}"), format!("t{number}-{turn}"));
            let key = Identity::generate();
            if turn % 4 == 3 {
                // Two who have the same token, at two masters, at once.
                let other = Identity::generate();
                tokio::join!(
                    self.register(turn, &node, &token, &key),
                    self.register(turn + 1, &node, &token, &other)
                );
                continue;
            }
            if self.register(turn, &node, &token, &key).await == Answer::Lost {
                // As a node does, that does not know.
                self.register(turn + 1, &node, &token, &key).await;
            }
        }
    }

    async fn keep_reading(&self, number: usize, over: &AtomicBool) {
        for turn in 0.. {
            if over.load(Ordering::Relaxed) {
                return;
            }
            // Who did not answer said nothing.
            let _ = self.read(number, turn).await;
        }
    }

    /// Registers, and puts what came of it on record.
    async fn register(&self, turn: usize, node: &str, token: &str, key: &Identity) -> Answer {
        let invoked = self.now();
        let answer = match self.try_register(turn, node, token, key).await {
            Ok(()) => Answer::Done,
            Err(Failure::Refused { status: 409, .. }) => Answer::Refused,
            Err(failure) if failure.is_final() => panic!("{failure}"),
            Err(_) => Answer::Lost,
        };
        self.record(
            invoked,
            What::Registration(Attempt {
                node: node.to_owned(),
                token: token.to_owned(),
                key: key.public_key().0,
                answer,
            }),
        );
        if answer == Answer::Done {
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    async fn try_register(
        &self,
        turn: usize,
        node: &str,
        token: &str,
        key: &Identity,
    ) -> Result<(), Failure> {
        let mut connection = self.connect(turn).await?;
        let answer = connection
            .ask(Ask::post("/v1/nodes/challenge", Vec::new()))
            .await?;
        let Challenge { nonce } = serde_json::from_slice(&answer.body).unwrap();
        let message = possession_message(token, &nonce, &connection.exporter);
        let registration = Registration {
            placement: Default::default(),
            jti: token.to_owned(),
            sub: node.parse().unwrap(),
            role: Role::Relay,
            services: vec!["echo".parse().unwrap()],
            validity: valid_for(3600),
        };
        let scope = Scope {
            cluster: &self.cluster,
            audience: "master",
            binding: &[],
        };
        let request = Register {
            token: self.key.sign(&registration, scope),
            public_key: key.public_key(),
            nonce,
            signature: hex::encode(key.sign(&message)),
            addresses: vec!["127.0.0.1:4444".parse().unwrap()],
            services: vec!["echo".parse().unwrap()],
        };
        let body = serde_json::to_vec(&request).unwrap();
        connection
            .ask(Ask::post("/v1/nodes/register", body))
            .await?;
        Ok(())
    }

    /// Reads the roster, and puts it on record.
    async fn read(&self, number: usize, turn: usize) -> Result<Reading, Failure> {
        let invoked = self.now();
        let mut connection = self.connect(turn + number).await?;
        let request = NodeRequest {
            sub: format!("reader-{number}").parse().unwrap(),
            validity: valid_for(30),
        };
        let scope = Scope {
            cluster: &self.cluster,
            audience: "master",
            binding: &connection.exporter.clone(),
        };
        let bearer = SigningKey::from(&self.readers[number]).sign(&request, scope);
        let authorization = format!("Bearer {bearer}");
        let answer = connection
            .ask(Ask {
                authorization: Some(&authorization),
                max_answer: MAX_ROSTER_LEN,
                ..Ask::get("/v1/roster")
            })
            .await?;
        let keys = KeySet::from_paserk(&[&self.key.public_paserk()]).unwrap();
        let token = std::str::from_utf8(&answer.body).unwrap();
        let scope = Scope {
            audience: "nodes",
            binding: &[],
            ..scope
        };
        let roster: Roster = keys.verify(token, scope, unix_time()).unwrap();
        let nodes = roster.nodes.iter();
        let keys = |keys: &[wavry_proto::id::PublicKey]| keys.iter().map(|key| key.0).collect();
        let reading = Reading {
            epoch: roster.epoch.0,
            nodes: nodes
                .map(|node| (node.id.to_string(), keys(&node.keys)))
                .collect(),
        };
        self.record(invoked, What::Reading(reading.clone()));
        Ok(reading)
    }

    fn record(&self, invoked: u128, what: What) {
        let completed = self.now();
        self.history.lock().unwrap().push(Entry {
            invoked,
            completed,
            what,
        });
    }
}

/// A master; killed (SIGKILL) when dropped.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start(world: &World) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args([TEST, "--exact", "--nocapture", "--quiet"])
            .env(DIRECTORY, world.directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test can be started");
        // The harness says a few words before.
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let address = lines.find_map(|line| line.unwrap().strip_prefix("> ")?.parse().ok());
        Self {
            child,
            address: address.expect("it says where it serves"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn serve_until_killed(directory: &Path) -> ! {
    let at = |name: &str| directory.join(name);
    let raw = Raw {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        cluster: cluster().to_string(),
        database: Some(fs::read_to_string(at("database")).unwrap()),
        certificate: Some(at("master.crt")),
        heartbeat_interval: Duration::from_millis(500),
        // None of these nodes sends heartbeats.
        suspect_after: Duration::from_secs(3600),
        services: vec![RawService {
            name: "echo".into(),
            ..RawService::default()
        }],
        ..Raw::default()
    };
    let mut config = Config::try_from(raw).unwrap();
    config.master_key = Some(at("master_key"));
    config.audit_key = Some(at("audit_key"));
    config.tls_key = Some(at("master.key"));
    let master = Master::start(config).await.expect("it starts");
    let mut stdout = std::io::stdout();
    writeln!(stdout, "\n> {}", master.local_addr())
        .and_then(|()| stdout.flush())
        .expect("somebody listens");
    let Ok(()) = master.run(CancellationToken::new()).await;
    unreachable!("nobody tells it to leave");
}

fn cluster() -> ClusterName {
    "test".parse().unwrap()
}

fn valid_for(seconds: u64) -> Validity {
    let now = unix_time();
    Validity {
        iat: now,
        nbf: now,
        exp: now + seconds,
    }
}

fn unix_time() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}
