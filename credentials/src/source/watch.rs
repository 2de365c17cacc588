//! Secrets that change while they are used: each new version is published, and who uses one keeps the last
//! good one when the new one is not.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{Error, Source, Version, parse_as};
use crate::{key::format::Fault, metrics as names, secret::Secret};

/// Reads secret `name` and follows it: looks every `interval` whether there is another version, and
/// publishes what its text means. Fails if it cannot be read to begin with. One that cannot be used later is
/// told of once, in the log and in a metric, and what was published before stays. Ends when nobody
/// watches any more.
pub async fn watch<S: Source, T: Send + Sync + 'static>(
    name: &'static str,
    source: S,
    interval: Duration,
    parse: impl Fn(&Secret<Vec<u8>>) -> Result<T, Fault> + Send + Sync + 'static,
) -> Result<watch::Receiver<Arc<T>>, Error> {
    let mut follower = Follower {
        name,
        source,
        parse,
        known: None,
        trouble: None,
    };
    // There is no version yet that it could still be.
    let first = follower.look().await?.ok_or_else(|| Error::File {
        path: follower.source.place().into(),
        problem: "was not there to be read".to_owned(),
    })?;
    let (published, watched) = watch::channel(Arc::new(first));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = published.closed() => return,
            }
            if let Some(next) = follower.next().await {
                published.send_replace(Arc::new(next));
            }
        }
    });
    Ok(watched)
}

struct Follower<S, P> {
    name: &'static str,
    source: S,
    parse: P,
    /// The newest version that was looked at, good or bad.
    known: Option<Version>,
    /// What was said of it last, so that it is said once.
    trouble: Option<String>,
}

impl<S: Source, T, P: Fn(&Secret<Vec<u8>>) -> Result<T, Fault>> Follower<S, P> {
    /// What the secret means, if it is another version.
    async fn look(&mut self) -> Result<Option<T>, Error> {
        let Some(found) = self.source.read(self.known.as_ref()).await? else {
            return Ok(None);
        };
        self.known = Some(found.version);
        let meaning = parse_as(self.name, &self.source.place(), found.text, &self.parse)?;
        count(self.name, "loaded");
        Ok(Some(meaning))
    }

    /// The same, and tells of what is wrong.
    async fn next(&mut self) -> Option<T> {
        match self.look().await {
            Ok(None) => None,
            Ok(Some(meaning)) => {
                tracing::info!(secret = self.name, "a new version is in use");
                self.trouble = None;
                Some(meaning)
            }
            Err(error) => {
                let trouble = error.to_string();
                if self.trouble.as_ref() != Some(&trouble) {
                    count(self.name, "failed");
                    tracing::warn!(
                        secret = self.name,
                        error = trouble,
                        "the newest version cannot be used; the last good one stays"
                    );
                    self.trouble = Some(trouble);
                }
                None
            }
        }
    }
}

fn count(secret: &'static str, outcome: &'static str) {
    metrics::counter!(names::SECRET_LOADS, "secret" => secret, "outcome" => outcome).increment(1);
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
        path::Path,
    };

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::{
        key::format,
        source::{File, write_private},
    };

    const INTERVAL: Duration = Duration::from_millis(5);
    const DEADLINE: Duration = Duration::from_secs(20);

    type Watched = watch::Receiver<Arc<Secret<Vec<u8>>>>;

    async fn watched(path: &Path) -> Watched {
        let source = File::new(path, None);
        watch("password", source, INTERVAL, format::password)
            .await
            .unwrap()
    }

    async fn becomes(watched: &mut Watched, text: &str) {
        let changed = watched.wait_for(|now| now.matches(text.as_bytes()));
        tokio::time::timeout(DEADLINE, changed)
            .await
            .expect("the new version comes in time")
            .unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_renamed_into_place_or_written_over_is_published() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        write_private(&path, b"one").unwrap();
        let mut watched = watched(&path).await;
        becomes(&mut watched, "one").await;
        // To a new file, which is renamed.
        write_private(&path, b"two").unwrap();
        becomes(&mut watched, "two").await;
        fs::write(&path, b"three").unwrap();
        becomes(&mut watched, "three").await;
    }

    #[tokio::test]
    async fn a_mounted_secret_whose_link_is_changed_is_published() {
        let mount = tempfile::tempdir().unwrap();
        let at = |name: &str| mount.path().join(name);
        symlink("..data/secret", at("secret")).unwrap();
        let mut watched_secret = None;
        for (version, text) in [("..one", "one"), ("..two", "two"), ("..three", "three")] {
            fs::create_dir(at(version)).unwrap();
            write_private(&at(version).join("secret"), text.as_bytes()).unwrap();
            symlink(version, at("..data_tmp")).unwrap();
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
            if watched_secret.is_none() {
                watched_secret = Some(watched(&at("secret")).await);
            }
            becomes(watched_secret.as_mut().unwrap(), text).await;
        }
    }

    #[tokio::test]
    async fn a_bad_version_leaves_the_last_good_one_and_is_told_of_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        write_private(&path, b"good").unwrap();
        let mut follower = Follower {
            name: "password",
            source: File::new(&path, None),
            parse: format::password,
            known: None,
            trouble: None,
        };
        let recorder = PrometheusBuilder::new().build_recorder();
        let counted = recorder.handle();
        let _recording = metrics::set_default_local_recorder(&recorder);
        let of = |outcome: &str| {
            let text = counted.render();
            let line = text.lines().find(|line| line.contains(outcome));
            line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
        };
        assert!(follower.look().await.unwrap().is_some());
        write_private(&path, b"two\nlines").unwrap();
        for _ in 0..3 {
            assert!(follower.next().await.is_none());
        }
        assert_eq!((of("loaded"), of("failed")), (1, 1));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        for _ in 0..3 {
            assert!(follower.next().await.is_none());
        }
        assert_eq!((of("loaded"), of("failed")), (1, 2));
        // Away for a moment is no trouble.
        fs::remove_file(&path).unwrap();
        assert!(follower.next().await.is_none());
        assert_eq!((of("loaded"), of("failed")), (1, 2));
        write_private(&path, b"better").unwrap();
        let better = follower.next().await;
        assert!(better.is_some_and(|better| better.matches(b"better")));
        assert_eq!((of("loaded"), of("failed")), (2, 2));
    }

    #[tokio::test]
    async fn what_cannot_be_read_to_begin_with_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let source = File::new(directory.path().join("gone"), None);
        let refused = watch("password", source, INTERVAL, format::password).await;
        assert!(matches!(refused, Err(Error::File { .. })));
    }

    #[tokio::test]
    async fn a_watch_ends_with_its_last_watcher() {
        struct Ending(
            #[expect(dead_code, reason = "its end is what is waited for")] Arc<()>,
            File,
        );
        impl Source for Ending {
            fn place(&self) -> String {
                self.1.place()
            }
            async fn read(
                &self,
                known: Option<&Version>,
            ) -> Result<Option<super::super::Found>, Error> {
                self.1.read(known).await
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        write_private(&path, b"one").unwrap();
        let alive = Arc::new(());
        let source = Ending(alive.clone(), File::new(&path, None));
        let watched = watch("password", source, INTERVAL, format::password).await;
        drop(watched);
        let ended = async {
            while Arc::strong_count(&alive) > 1 {
                tokio::time::sleep(INTERVAL).await;
            }
        };
        tokio::time::timeout(DEADLINE, ended).await.unwrap();
    }
}
