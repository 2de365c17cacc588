//! What a KeyVault does in a second, and what of its cost is encryption, audit, policy and sync.
//!
//! ```sh
//! cargo bench -p wavry-master --bench keyvault -- --seconds 10 --json keyvault.json
//! ```
//!
//! With `--rotation`, two instances on one PostgreSQL are asked a thousand times a second, on record,
//! while the master key is replaced; a read that fails makes the command fail.
//!
//! Each line is one composition of the same parts ([`work`]), on SQLite and on PostgreSQL (a server of its
//! own, started here): what is left out in one of them shows what it costs. The parts can be left out here
//! only. Databases lie in the directory that `TMPDIR` names, whose disk the syncs are of.

#![expect(clippy::print_stdout, reason = "what a command prints is its result")]

#[path = "../../tests/support/postgres.rs"]
mod postgres;
mod report;
mod rotation;
mod vault;
mod work;

use std::{env, fs, sync::Arc, time::Duration};

use wavry_master::keyvault::store::Location;

use report::Figure;

fn main() {
    let arguments = Arguments::read();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (figures, failures) = runtime.block_on(async {
        let server = postgres::Server::start(true);
        let url = server.database("keyvault").await;
        let postgres = Location::Postgres(url.parse().expect("a URL"));
        match arguments.rotation {
            true => rotation::run(postgres, &url, arguments.duration).await,
            false => (measure(postgres, &arguments).await, Vec::new()),
        }
    });
    let costs = report::costs(&figures);
    println!("{}", report::table(&figures, &costs));
    if let Some(file) = arguments.json {
        let json = report::to_json(&figures, &costs, &failures);
        fs::write(file, json).expect("the figures are written");
    }
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    if !failures.is_empty() || figures.iter().any(|figure| figure.failed > 0) {
        std::process::exit(1);
    }
}

async fn measure(postgres: Location, arguments: &Arguments) -> Vec<Figure> {
    let directory = tempfile::tempdir().expect("a directory");
    let sqlite = Location::Sqlite(directory.path().join("keyvault.db"));
    let mut figures = Vec::new();
    for (store, location) in [("SQLite", sqlite), ("PostgreSQL", postgres)] {
        if arguments
            .store
            .as_ref()
            .is_some_and(|wanted| !store.eq_ignore_ascii_case(wanted))
        {
            continue;
        }
        let world = Arc::new(vault::World::new(location).await);
        for work in work::ALL {
            if arguments
                .only
                .as_ref()
                .is_some_and(|wanted| work.name() != wanted)
            {
                continue;
            }
            figures.push(work::run(store, work, &world, arguments.duration).await);
        }
        world.vault.close().await;
    }
    figures
}

struct Arguments {
    duration: Duration,
    json: Option<String>,
    rotation: bool,
    /// For a profiler: one store, one work.
    store: Option<String>,
    only: Option<String>,
}

impl Arguments {
    fn read() -> Self {
        let mut read = Self {
            duration: Duration::from_secs(5),
            json: None,
            rotation: false,
            store: None,
            only: None,
        };
        let mut arguments = env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match &*argument {
                "--seconds" => {
                    let seconds = arguments.next().unwrap_or_default();
                    read.duration = Duration::from_secs(seconds.parse().expect("--seconds NUMBER"));
                }
                "--json" => read.json = arguments.next(),
                "--rotation" => read.rotation = true,
                "--store" => read.store = arguments.next(),
                "--only" => read.only = arguments.next(),
                // cargo's own.
                "--bench" => {}
                other => panic!(
                    "unknown argument {other}: --seconds NUMBER --json FILE --rotation \
                     --store sqlite|postgresql --only WORK"
                ),
            }
        }
        read
    }
}
