use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicU8, Ordering},
};

use rcgen::{CertificateParams, Issuer, KeyPair};
use wavry_credentials::source::write_private;

use super::*;
use crate::{
    database::Location,
    keyvault::{self, KeyVault},
    postgres_server, store,
};

const DEADLINE: Duration = Duration::from_secs(60);

fn refusal(url: &str) -> Option<UnusableUrl> {
    url.parse::<Server>().err()
}

fn parsed(url: &str) -> Server {
    url.parse().unwrap()
}

#[test]
fn a_url_names_a_database_and_never_a_password() {
    let server = parsed("postgres://wavry@db.example:5433/vault?sslrootcert=/ca.crt");
    let text = format!("{server:?}");
    for part in ["db.example", "vault", "5433", "wavry"] {
        assert!(text.contains(part), "{text}");
    }
    for url in [
        "postgres://wavry:s3cret@db.example/vault",
        "postgres://wavry:@db.example/vault",
        "postgres://db.example/vault?password=s3cret",
        "postgres://db.example/vault?p%61ssword=s3cret",
    ] {
        assert_eq!(refusal(url), Some(UnusableUrl::Password), "{url}");
    }
    for url in [
        "",
        "keyvault.db",
        "mysql://a@b/c",
        "postgres://a@b:port/c",
        "postgres://a@localhost/c/d",
        "postgres://a@localhost/c#d",
        "postgres:///c",
    ] {
        assert_eq!(refusal(url), Some(UnusableUrl::Malformed), "{url}");
    }
    let refused = refusal("postgres://a@localhost/c?options=-c%20x");
    assert_eq!(refused, Some(UnusableUrl::Parameter));
}

#[test]
fn what_leaves_this_host_is_encrypted_and_verified_unless_the_url_says_otherwise() {
    let mode = |url: &str| parsed(url).options.get_ssl_mode();
    let is_full = |url: &str| matches!(mode(url), PgSslMode::VerifyFull);
    let is_plain = |url: &str| matches!(mode(url), PgSslMode::Disable);
    for host in [
        "db.example",
        "10.0.0.1",
        "[2001:db8::1]",
        "localhost.example",
    ] {
        let url = format!("postgres://a@{host}/c");
        assert_eq!(refusal(&url), Some(UnusableUrl::Authorities), "{host}");
        assert!(is_full(&format!("{url}?sslrootcert=/ca.crt")), "{host}");
        assert!(is_plain(&format!("{url}?sslmode=disable")), "{host}");
        // The parameter is where it goes to.
        let url = format!(
            "postgres://a@localhost/c?host={}",
            host.trim_matches(['[', ']'])
        );
        assert_eq!(refusal(&url), Some(UnusableUrl::Authorities), "{host}");
    }
    for host in [
        "localhost",
        "127.0.0.1",
        "127.9.8.7",
        "[::1]",
        "%2Frun%2Fpg",
    ] {
        assert!(is_plain(&format!("postgres://a@{host}/c")), "{host}");
        let url = format!("postgres://a@{host}/c?sslmode=verify-full");
        assert_eq!(refusal(&url), Some(UnusableUrl::Authorities), "{host}");
    }
    assert!(is_plain("postgres://a@db.example/c?host=/run/pg"));
    for mode in ["prefer", "allow", "require", "maybe", ""] {
        let refused = refusal(&format!("postgres://a@b/c?sslrootcert=/ca&sslmode={mode}"));
        assert_eq!(refused, Some(UnusableUrl::Mode), "{mode}");
    }
}

#[test]
fn parts_of_a_url_are_what_they_stand_for() {
    let server = parsed("postgres://a%40b+c@[::1]/d%2Be?sslmode=disable");
    assert_eq!(server.options.get_username(), "a@b+c");
    assert_eq!(server.options.get_host(), "::1");
    assert_eq!(server.options.get_database(), Some("d+e"));
    let server = parsed("postgres://a@localhost/d?host=/run/pg");
    assert_eq!(server.options.get_host(), "/run/pg");
}

#[test]
fn a_server_does_not_print_its_password() {
    let server = parsed("postgres://wavry@localhost/vault");
    let server = Server {
        options: Box::new(server.options.password("s3cret")),
        authorities: None,
        password: None,
    };
    assert!(!format!("{server:?} {server}").contains("s3cret"));
}

#[test]
fn no_public_authority_vouches_for_a_database() {
    assert!(webpki_roots::TLS_SERVER_ROOTS.is_empty());
}

/// A server that speaks TLS and wants a password, and what its clients need.
struct World {
    directory: tempfile::TempDir,
    server: postgres_server::Server,
    /// An address that its certificate is for.
    own: IpAddr,
    /// Another one of the same server.
    other: IpAddr,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = |file: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
            let name = &mut params.distinguished_name;
            name.push(rcgen::DnType::CommonName, file);
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).unwrap();
            fs::write(directory.path().join(file), certificate.pem()).unwrap();
            Issuer::new(params, key)
        };
        let issuer = authority("ca.crt");
        authority("other.crt");
        let (own, other) = (loopback(), loopback());
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([own.to_string()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();

        let server = postgres_server::Server::configured(|data| {
            fs::write(data.join("tls.crt"), certificate.pem()).unwrap();
            write_private(&data.join("tls.key"), key.serialize_pem().as_bytes()).unwrap();
            let rules = "local all all trust\nhostssl all all 127.0.0.0/8 scram-sha-256\n";
            fs::write(data.join("pg_hba.conf"), rules).unwrap();
            let settings = [
                "fsync=off",
                "ssl=on",
                "ssl_cert_file=tls.crt",
                "ssl_key_file=tls.key",
            ];
            let mut settings: Vec<_> = settings.map(str::to_owned).into();
            settings.push(format!("listen_addresses={own},{other}"));
            settings
        });
        let world = Self {
            directory,
            server,
            own,
            other,
        };
        world
            .admin("CREATE ROLE wavry LOGIN PASSWORD 'one-s3cret'")
            .await;
        world.admin("CREATE DATABASE vault OWNER wavry").await;
        world.admin("CREATE DATABASE master OWNER wavry").await;
        world
    }

    async fn admin(&self, sql: &'static str) -> Vec<(String, bool)> {
        let url = self.server.url("postgres");
        let mut admin = PgConnection::connect(&url).await.unwrap();
        let rows = match sql.starts_with("SELECT") {
            true => sqlx::query_as(sql).fetch_all(&mut admin).await.unwrap(),
            false => {
                admin.execute(sql).await.unwrap();
                Vec::new()
            }
        };
        admin.close().await.unwrap();
        rows
    }

    /// Writes the file of the password.
    fn password(&self, text: &str) -> PathBuf {
        let file = self.directory.path().join("password");
        write_private(&file, text.as_bytes()).unwrap();
        file
    }

    fn at(&self, address: IpAddr, database: &str, mode: &str, authorities: &str) -> Server {
        let authorities = self.directory.path().join(authorities);
        let url = format!(
            "postgres://wavry@{address}/{database}?sslmode={mode}&sslrootcert={}",
            authorities.display()
        );
        Server {
            password: Some(self.directory.path().join("password")),
            ..parsed(&url)
        }
    }
}

/// An address of this host that no other test has.
fn loopback() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    Ipv4Addr::new(127, high | 1, low, NEXT.fetch_add(1, Ordering::Relaxed)).into()
}

async fn connect(server: &Server) -> Result<PgConnection, Unreachable> {
    server.login().await?.connection().await
}

/// An error with its causes.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[tokio::test]
async fn a_server_shows_who_it_is_and_gets_a_password_that_nobody_else_sees() {
    let world = World::new().await;
    world.password("one-s3cret");
    let mut connection = connect(&world.at(world.own, "vault", "verify-full", "ca.crt"))
        .await
        .unwrap();
    let is_encrypted: bool =
        sqlx::query_scalar("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert!(is_encrypted);
    // Its name is not looked at, if so asked.
    connect(&world.at(world.other, "vault", "verify-ca", "ca.crt"))
        .await
        .unwrap();

    let (own, other) = (world.own, world.other);
    for (server, why) in [
        (
            world.at(other, "vault", "verify-full", "ca.crt"),
            "not valid for name",
        ),
        (
            world.at(own, "vault", "verify-full", "other.crt"),
            "UnknownIssuer",
        ),
        (
            world.at(own, "vault", "verify-ca", "other.crt"),
            "UnknownIssuer",
        ),
        (world.at(own, "vault", "disable", "ca.crt"), "no encryption"),
        (
            world.at(own, "vault", "verify-full", "gone.crt"),
            "gone.crt",
        ),
        (
            world.at(own, "vault", "verify-full", "password"),
            "password",
        ),
    ] {
        let refused = connect(&server).await.expect_err(why);
        let text = told(&refused);
        assert!(text.contains(why), "{why}: {text}");
        if matches!(refused, Unreachable::Refused { .. }) {
            assert!(text.contains(&server.to_string()), "{why}: {text}");
        }
        assert!(!format!("{text} {refused:?}").contains("s3cret"), "{text}");
    }

    world.password("wrong-s3cret");
    let server = world.at(own, "vault", "verify-full", "ca.crt");
    let refused = connect(&server).await.err().unwrap();
    let text = told(&refused);
    assert!(text.contains("password authentication failed"), "{text}");
    assert!(!format!("{text} {refused:?}").contains("s3cret"), "{text}");
    world.password("two\nlines");
    let text = told(&connect(&server).await.err().unwrap());
    assert!(text.contains("secret database_password in /"), "{text}");
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_is_not_talked_to() {
    let address = loopback();
    let _server = postgres_server::Server::configured(|_| {
        vec![
            "fsync=off".to_owned(),
            format!("listen_addresses={address}"),
        ]
    });
    let directory = tempfile::tempdir().unwrap();
    let authority = cert::DevelopmentAuthority::open(directory.path());
    authority.unwrap();
    let authorities = directory.path().join("ca.crt");
    let server = parsed(&format!(
        "postgres://postgres@{address}/postgres?sslmode=verify-full&sslrootcert={}",
        authorities.display()
    ));
    let text = told(&connect(&server).await.err().unwrap());
    assert!(text.contains("does not support TLS"), "{text}");
    assert!(text.contains(&server.to_string()), "{text}");
}

#[tokio::test]
async fn masters_and_keyvaults_have_no_connection_that_is_not_encrypted() {
    let world = World::new().await;
    world.password("one-s3cret");
    let at = |database| Location::Postgres(world.at(world.own, database, "verify-full", "ca.crt"));
    let audit = keyvault::tests::audit_key();
    let master = store::Store::open(&at("master"), audit.clone()).await;
    let vault = KeyVault::open(&keyvault::Config::at(at("vault")), audit.clone()).await;
    let (master, vault) = (master.unwrap(), vault.unwrap());
    let connections = world
        .admin(
            "SELECT application_name, ssl FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)
             WHERE usename = 'wavry'",
        )
        .await;
    for name in ["wavry master", "wavry keyvault"] {
        assert!(
            connections.contains(&(name.to_owned(), true)),
            "{connections:?}"
        );
    }
    assert!(connections.iter().all(|(_, ssl)| *ssl), "{connections:?}");
    master.close().await;
    vault.close().await;

    let unverified =
        |database| Location::Postgres(world.at(world.own, database, "verify-full", "other.crt"));
    let master = store::Store::open(&unverified("master"), audit.clone()).await;
    assert!(matches!(master, Err(store::Error::Unreachable(_))));
    let vault = KeyVault::open(&keyvault::Config::at(unverified("vault")), audit).await;
    assert!(vault.is_err_and(|error| told(&error).contains("UnknownIssuer")));
}

#[tokio::test]
async fn a_new_password_is_in_use_without_a_restart() {
    let world = World::new().await;
    world.password("one-s3cret");
    let server = world.at(world.own, "vault", "verify-full", "ca.crt");
    let login = server.login().await.unwrap();
    let pool = PgPoolOptions::new().max_connections(1);
    let pool = login.pool(pool).await.unwrap();
    world.admin("ALTER ROLE wavry PASSWORD 'two-s3cret'").await;
    world.password("two-s3cret");
    world
        .admin("SELECT usename::text, pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'wavry'")
        .await;
    let works = async {
        while sqlx::query("SELECT 1").execute(&pool).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, works)
        .await
        .expect("the new password is in use in time");
    pool.close().await;
}
