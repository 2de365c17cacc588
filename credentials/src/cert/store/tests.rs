use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use metrics_exporter_prometheus::PrometheusBuilder;
use rcgen::{CertificateParams, KeyPair};
use time::OffsetDateTime;

use super::*;
use crate::cert::{DevelopmentAuthority, Trust, client_config, file_hash, handshake::shake_hands};

/// A directory with an authority, and the paths of what it issued.
struct World {
    directory: tempfile::TempDir,
    authority: DevelopmentAuthority,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = DevelopmentAuthority::open(directory.path()).unwrap();
        Self {
            directory,
            authority,
        }
    }

    fn issue(&self, name: &str, subjects: &[&str]) -> (PathBuf, PathBuf) {
        self.authority.issue(name, subjects).unwrap();
        self.files(name)
    }

    fn files(&self, name: &str) -> (PathBuf, PathBuf) {
        let file = |end: &str| self.directory.path().join(format!("{name}.{end}"));
        (file("crt"), file("key"))
    }

    fn watched(&self, store: &Store, name: &str) -> Follower<Files> {
        let (chain, key) = self.files(name);
        store.follower(&chain, &key)
    }
}

fn hash_of(key: &CertifiedKey) -> [u8; 32] {
    hash(&key.cert[0])
}

async fn look(files: &mut Follower<Files>, store: &Store) {
    if let Some(entry) = files.next().await {
        store.put(FILE, [entry]);
    }
}

fn found(store: &Store, name: Option<&str>) -> [u8; 32] {
    hash_of(store.0.current.load().find(name, |_| {}).1.unwrap())
}

#[test]
fn a_name_finds_its_own_certificate_then_its_wildcard_then_the_default() {
    let world = World::new();
    let store = Store::new();
    let (first, first_key) = world.issue("first", &["a.test", "127.0.0.1"]);
    let (second, second_key) = world.issue("second", &["*.test", "B.example"]);
    store.load(&first, &first_key).unwrap();
    store.load(&second, &second_key).unwrap();
    let (first, second) = (file_hash(&first).unwrap(), file_hash(&second).unwrap());
    for (name, hash) in [
        (Some("a.test"), first),
        (Some("c.test"), second),
        (Some("b.example"), second),
        (Some("test"), first),
        (Some("c.d.test"), first),
        (Some("elsewhere"), first),
        (None, first),
    ] {
        assert_eq!(found(&store, name), hash, "{name:?}");
    }
}

#[tokio::test]
async fn a_handshake_gets_the_certificate_for_its_name_in_any_case() {
    let world = World::new();
    let store = Store::new();
    let client = || {
        let roots = world.directory.path().join("ca.crt");
        client_config(&Trust::Authorities(roots)).unwrap()
    };
    let empty = shake_hands(store.server_config(), client(), "a.test").await;
    assert!(empty.is_err());

    let (first, first_key) = world.issue("first", &["a.test", "127.0.0.1"]);
    let (second, second_key) = world.issue("second", &["b.test"]);
    store.load(&first, &first_key).unwrap();
    store.load(&second, &second_key).unwrap();
    let (third, third_key) = world.issue("third", &["*.c.test"]);
    store.load(&third, &third_key).unwrap();
    for (name, chain) in [
        ("a.test", &first),
        ("B.TEST", &second),
        ("any.c.test", &third),
        ("127.0.0.1", &first),
    ] {
        let seen = shake_hands(store.server_config(), client(), name).await;
        let hash = hash(&seen.unwrap());
        assert_eq!(hash, file_hash(chain).unwrap(), "{name}");
    }
    // By itself twice, by a wildcard, without a name, and while there was nothing.
    assert_eq!(store.0.look_ups.totals(), [2, 1, 1, 1]);
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || store.count_look_ups());
    let text = recorder.handle().render();
    let line = r#"wavry_gateway_certificate_look_ups_total{outcome="hit"} 2"#;
    assert!(text.contains(line), "{text}");
}

#[test]
fn a_pair_that_cannot_be_used_is_refused_by_name_and_replaces_nothing() {
    let world = World::new();
    let store = Store::new();
    let (chain, key) = world.issue("gateway", &["localhost"]);
    let (_, other_key) = world.issue("other", &["localhost"]);
    store.load(&chain, &key).unwrap();
    let before = found(&store, None);

    let refusal = |chain: &Path, key: &Path| store.load(chain, key).unwrap_err().to_string();
    assert!(refusal(&chain, &other_key).contains("other.key: does not belong"));
    assert!(refusal(&key, &key).contains("gateway.key"));
    assert!(refusal(&chain, &chain).contains("chmod 600"));
    assert!(refusal(&chain, Path::new("/gone")).contains("/gone"));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refusal(&chain, &key).contains("chmod 600"));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    let pair = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_after = OffsetDateTime::now_utc() - time::Duration::seconds(1);
    let expired = params.self_signed(&pair).unwrap().pem();
    source::write_public(&chain, expired.as_bytes()).unwrap();
    source::write_private(&key, pair.serialize_pem().as_bytes()).unwrap();
    assert!(refusal(&chain, &key).contains("expired"));

    assert_eq!(found(&store, None), before);
}

#[tokio::test]
async fn a_pair_whose_time_has_not_come_is_told_of_once_and_in_use_from_then_on() {
    let world = World::new();
    let store = Store::new();
    let (chain, key) = world.issue("gateway", &["localhost"]);
    store.load(&chain, &key).unwrap();
    let mut files = world.watched(&store, "gateway");
    let recorder = PrometheusBuilder::new().build_recorder();
    let _recording = metrics::set_default_local_recorder(&recorder);

    let pair = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_before = OffsetDateTime::now_utc() + SKEW + Duration::from_secs(3);
    let early = params.self_signed(&pair).unwrap();
    source::write_public(&chain, early.pem().as_bytes()).unwrap();
    source::write_private(&key, pair.serialize_pem().as_bytes()).unwrap();
    assert!(matches!(
        store.load(&chain, &key),
        Err(Error::NotYet { .. })
    ));
    let before = found(&store, None);
    for _ in 0..3 {
        look(&mut files, &store).await;
        assert_eq!(found(&store, None), before);
    }
    let text = recorder.handle().render();
    // By `load`, and by the three looks together.
    let told = r#"certificate_loads_total{source="file",outcome="failed"} 2"#;
    assert!(text.contains(told), "{text}");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while found(&store, None) == before {
        assert!(
            tokio::time::Instant::now() < deadline,
            "it is not looked at again"
        );
        look(&mut files, &store).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(found(&store, None), hash(early.der()));
}

#[test]
fn what_may_be_trusted_by_its_hash_is_told_and_a_long_lived_certificate_is_not() {
    let world = World::new();
    let store = Store::new();
    assert!(store.pinnable().is_empty());
    let (chain, key) = world.issue("short", &["short.example"]);
    store.load(&chain, &key).unwrap();
    let long = KeyPair::generate().unwrap();
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::new(["long.example".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (now, now + time::Duration::days(90));
    let certificate = params.self_signed(&long).unwrap();
    let (long_chain, long_key) = world.files("long");
    source::write_public(&long_chain, certificate.pem().as_bytes()).unwrap();
    source::write_private(&long_key, long.serialize_pem().as_bytes()).unwrap();
    store.load(&long_chain, &long_key).unwrap();
    let told = store.pinnable();
    let hashes: Vec<_> = told.iter().map(|pinnable| pinnable.hash).collect();
    assert_eq!(hashes, [file_hash(&chain).unwrap()]);
    assert!(told[0].expires > SystemTime::now());
}

#[test]
fn expiry_is_the_earliest_and_shows_in_the_metrics_until_it_is_of_no_account() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let text = metrics::with_local_recorder(&recorder, || {
        names::describe();
        let world = World::new();
        let store = Store::new();
        assert_eq!(store.expiry(), None);
        let (chain, key) = world.issue("gateway", &["b.test", "c.test"]);
        store.load(&chain, &key).unwrap();
        let (chain, key) = world.issue("gateway", &["a.test", "b.test", "192.0.2.1"]);
        let before = SystemTime::now();
        store.load(&chain, &key).unwrap();
        let left = store.expiry().unwrap().duration_since(before).unwrap();
        let days = left.as_secs_f64() / (24.0 * 60.0 * 60.0);
        assert!((13.9..14.0).contains(&days), "{days}");
        assert!(store.load(&chain, Path::new("/gone")).is_err());
        recorder.handle().render()
    });
    for line in [
        r#"certificate_expiry_timestamp_seconds{name="a.test",source="file",issuer="Wavry development CA"} 1"#,
        r#"certificate_expiry_timestamp_seconds{name="b.test",source="file",issuer="Wavry development CA"} 1"#,
        r#"certificate_expiry_timestamp_seconds{name="c.test",source="file",issuer="Wavry development CA"} NaN"#,
        r#"certificate_expiry_timestamp_seconds{name="192.0.2.1",source="file",issuer="Wavry development CA"} 1"#,
        r#"certificate_not_before_timestamp_seconds{name="a.test",source="file",issuer="Wavry development CA"} 1"#,
        r#"wavry_credentials_certificate_loads_total{source="file",outcome="loaded"} 2"#,
        r#"wavry_credentials_certificate_loads_total{source="file",outcome="failed"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn changed_files_are_loaded_again_and_unchanged_ones_are_not() {
    let world = World::new();
    let store = Store::new();
    let (chain, key) = world.issue("gateway", &["localhost"]);
    store.load(&chain, &key).unwrap();
    let mut files = world.watched(&store, "gateway");
    let first = store.0.current.load_full();
    look(&mut files, &store).await;
    assert!(Arc::ptr_eq(&first, &store.0.current.load_full()));

    world.issue("gateway", &["localhost"]);
    look(&mut files, &store).await;
    assert_eq!(found(&store, None), file_hash(&chain).unwrap());
    assert_ne!(
        found(&store, None),
        hash_of(first.default.as_ref().unwrap())
    );
    assert_eq!(store.0.loaded().entries.len(), 1);
}

#[tokio::test]
async fn a_change_that_cannot_be_used_keeps_the_last_good_pair_until_it_is_put_right() {
    let world = World::new();
    let store = Store::new();
    let (chain, key) = world.issue("gateway", &["localhost"]);
    store.load(&chain, &key).unwrap();
    let good = found(&store, None);
    let mut files = world.watched(&store, "gateway");

    let pem = fs::read(&chain).unwrap();
    source::write_public(&chain, b"half a").unwrap();
    look(&mut files, &store).await;
    assert_eq!(found(&store, None), good);
    fs::remove_file(&chain).unwrap();
    look(&mut files, &store).await;
    assert_eq!(found(&store, None), good);

    // Key first: for a moment the pair does not fit.
    source::write_public(&chain, &pem).unwrap();
    let (new_chain, new_key) = world.issue("new", &["localhost"]);
    fs::rename(&new_key, &key).unwrap();
    look(&mut files, &store).await;
    assert_eq!(found(&store, None), good);
    fs::rename(&new_chain, &chain).unwrap();
    look(&mut files, &store).await;
    assert_eq!(found(&store, None), file_hash(&chain).unwrap());
    assert_ne!(found(&store, None), good);

    // Permissions alone are a change, too.
    let last = found(&store, None);
    world.issue("gateway", &["localhost"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    look(&mut files, &store).await;
    assert_eq!(found(&store, None), last);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    look(&mut files, &store).await;
    assert_eq!(found(&store, None), file_hash(&chain).unwrap());
}

#[tokio::test]
async fn a_watch_loads_what_changes_and_ends_with_its_store() {
    let world = World::new();
    let store = Store::new();
    let (chain, key) = world.issue("gateway", &["localhost"]);
    store.load(&chain, &key).unwrap();
    let config = store.server_config();
    let watch = store.watch_every(Duration::from_millis(1), &chain, &key);
    world.issue("gateway", &["localhost"]);
    let hash = file_hash(&chain).unwrap();
    let loaded = async {
        while found(&store, None) != hash {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let limit = Duration::from_secs(10);
    tokio::time::timeout(limit, loaded).await.unwrap();
    drop(store);
    assert!(!watch.is_finished());
    drop(config);
    tokio::time::timeout(limit, watch).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_mounted_pair_whose_link_is_changed_is_loaded_in_one_step() {
    let world = World::new();
    let store = Store::new();
    let mount = tempfile::tempdir().unwrap();
    let at = |name: &str| mount.path().join(name);
    symlink("..data/tls.crt", at("tls.crt")).unwrap();
    symlink("..data/tls.key", at("tls.key")).unwrap();
    let mut files = store.follower(&at("tls.crt"), &at("tls.key"));
    for version in ["..one", "..two"] {
        let (chain, key) = world.issue("gateway", &["localhost"]);
        let hash = file_hash(&chain).unwrap();
        fs::create_dir(at(version)).unwrap();
        fs::rename(chain, at(version).join("tls.crt")).unwrap();
        fs::rename(key, at(version).join("tls.key")).unwrap();
        // Nothing leads there yet.
        look(&mut files, &store).await;
        assert_ne!(
            store
                .0
                .current
                .load()
                .find(None, |_| {})
                .1
                .map(|key| hash_of(key)),
            Some(hash)
        );
        symlink(version, at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        look(&mut files, &store).await;
        assert_eq!(found(&store, None), hash);
    }
}

#[tokio::test]
async fn each_version_that_cannot_be_used_is_counted_once() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let counted = recorder.handle();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let failures = || {
        let text = counted.render();
        let line = text
            .lines()
            .find(|line| line.contains(r#"outcome="failed""#));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    };
    let world = World::new();
    let store = Store::new();
    let (chain, key) = world.issue("gateway", &["localhost"]);
    store.load(&chain, &key).unwrap();
    let mut files = world.watched(&store, "gateway");
    for bad in 1..=2 {
        source::write_public(&chain, b"half a").unwrap();
        for _ in 0..3 {
            look(&mut files, &store).await;
            assert_eq!(failures(), bad);
        }
    }
}

#[test]
fn a_name_that_two_have_is_served_by_the_later_one_until_that_one_gives_it_up() {
    let world = World::new();
    let store = Store::new();
    let (first, first_key) = world.issue("first", &["a.test", "b.test"]);
    let (second, second_key) = world.issue("second", &["a.test"]);
    store.load(&first, &first_key).unwrap();
    store.load(&second, &second_key).unwrap();
    let (one, two) = (file_hash(&first).unwrap(), file_hash(&second).unwrap());
    assert_eq!(found(&store, Some("a.test")), two);
    // Loaded again, it keeps its place.
    store.load(&first, &first_key).unwrap();
    assert_eq!(found(&store, Some("a.test")), two);

    world.issue("second", &["c.test"]);
    store.load(&second, &second_key).unwrap();
    assert_eq!(found(&store, Some("a.test")), one);
    world.issue("first", &["b.test"]);
    store.load(&first, &first_key).unwrap();
    let one = file_hash(&first).unwrap();
    assert_eq!(found(&store, Some("a.test")), one, "it is the default");
    assert_eq!(found(&store, Some("b.test")), one);
}

#[test]
fn many_are_put_in_use_in_one_step_or_none_of_them() {
    let world = World::new();
    let store = Store::new();
    let pair = |name: &str| {
        let (chain, key) = world.issue(name, &[name]);
        (chain.clone(), Pair::read(&chain, &key).unwrap())
    };
    let recorder = PrometheusBuilder::new().build_recorder();
    let text = metrics::with_local_recorder(&recorder, || {
        store
            .install_all(vec![pair("a.test"), pair("b.test")])
            .unwrap();
        recorder.handle().render()
    });
    assert!(text.contains("certificate_swaps_total 1"), "{text}");
    let (a, _) = world.files("a.test");
    assert_eq!(found(&store, Some("a.test")), file_hash(&a).unwrap());

    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["c.test".to_owned()]).unwrap();
    params.not_after = OffsetDateTime::now_utc() - time::Duration::seconds(1);
    let expired = params.self_signed(&key).unwrap().pem();
    let key = crate::secret::Secret::new(key.serialize_pem().into_bytes());
    let expired = Pair::from_pem("c".as_ref(), &expired, &key).unwrap();
    let before = found(&store, Some("b.test"));
    let refused = store.install_all(vec![pair("b.test"), ("c".into(), expired)]);
    assert!(refused.unwrap_err().to_string().contains("expired"));
    assert_eq!(found(&store, Some("b.test")), before);
}
