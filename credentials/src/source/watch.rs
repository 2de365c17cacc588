//! What changes while it is used: each new version is published, and who uses one keeps the last good one
//! when the new one is not. [`watch()`] does so for secrets, [`crate::cert::Store`] for certificates and
//! their keys.

use std::{error::Error as StdError, sync::Arc, time::Duration};

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
    let mut follower = Follower::new(Parsed {
        name,
        source,
        parse,
    });
    // There is no version yet that it could still be.
    let first = follower.look().await?.ok_or_else(|| Error::File {
        path: follower.watched.source.place().into(),
        problem: "was not there to be read".to_owned(),
    })?;
    let (published, watched) = watch::channel(Arc::new(first));
    tokio::spawn(async move {
        tokio::select! {
            () = follower.follow(interval, |next| published.send_replace(Arc::new(next))) => {}
            () = published.closed() => {}
        }
    });
    Ok(watched)
}

/// What can be looked at again and again.
pub(crate) trait Watched: Send + Sync {
    /// What a version of it means.
    type Meaning: Send;
    /// Why one cannot be used.
    type Error: StdError + Send + Sync + 'static;

    /// What it is, in the log.
    fn name(&self) -> String;

    /// Counts a version that was `loaded`, or one that `failed`.
    fn count(&self, outcome: &'static str);

    /// Whether a version that cannot be used for this may become good by itself: it is read again.
    fn may_pass(&self, error: &Self::Error) -> bool {
        let _ = error;
        false
    }

    /// What it is now; `None` while it is version `known`, or away for a moment to be replaced.
    fn read(
        &self,
        known: Option<&Version>,
    ) -> impl Future<Output = Result<Option<Seen<Self>>, Self::Error>> + Send;
}

/// A version, and what it means, or why it cannot be used.
pub(crate) struct Seen<W: Watched + ?Sized> {
    pub(crate) version: Version,
    pub(crate) meaning: Result<W::Meaning, W::Error>,
}

/// Who follows something.
pub(crate) struct Follower<W> {
    watched: W,
    /// The newest version that was looked at, good or bad.
    known: Option<Version>,
    /// For which reason no version could be read when it was looked for last.
    trouble: Option<String>,
}

impl<W: Watched> Follower<W> {
    /// Of something that nobody looked at yet.
    pub(crate) fn new(watched: W) -> Self {
        Self {
            watched,
            known: None,
            trouble: None,
        }
    }

    /// Of something of which a version is in use.
    pub(crate) fn from(watched: W, known: Option<Version>) -> Self {
        Self {
            known,
            ..Self::new(watched)
        }
    }

    /// Looks every `interval`, and gives each good version to `publish`. It never ends.
    pub(crate) async fn follow<T>(
        mut self,
        interval: Duration,
        mut publish: impl FnMut(W::Meaning) -> T,
    ) {
        loop {
            tokio::time::sleep(interval).await;
            if let Some(next) = self.next().await {
                publish(next);
            }
        }
    }

    /// What it means, if it is another version.
    async fn look(&mut self) -> Result<Option<W::Meaning>, W::Error> {
        match self.watched.read(self.known.as_ref()).await? {
            None => Ok(None),
            Some(seen) => self.take(seen).map(Some),
        }
    }

    fn take(&mut self, seen: Seen<W>) -> Result<W::Meaning, W::Error> {
        let passes = |error: &W::Error| self.watched.may_pass(error);
        if !seen.meaning.as_ref().is_err_and(passes) {
            self.known = Some(seen.version);
        }
        let meaning = seen.meaning?;
        self.watched.count("loaded");
        Ok(meaning)
    }

    /// The same, and tells of what is wrong: once of each version, and once of each reason for which
    /// none could be read.
    pub(crate) async fn next(&mut self) -> Option<W::Meaning> {
        match self.watched.read(self.known.as_ref()).await {
            Ok(None) => self.trouble = None,
            Ok(Some(seen)) => match self.take(seen) {
                Ok(meaning) => {
                    self.trouble = None;
                    tracing::info!(of = self.watched.name(), "a new version is in use");
                    return Some(meaning);
                }
                Err(error) if self.watched.may_pass(&error) => self.tell_once(error.to_string()),
                Err(error) => {
                    self.trouble = None;
                    self.tell(&error.to_string());
                }
            },
            Err(error) => self.tell_once(error.to_string()),
        }
        None
    }

    fn tell_once(&mut self, trouble: String) {
        if self.trouble.as_ref() != Some(&trouble) {
            self.tell(&trouble);
            self.trouble = Some(trouble);
        }
    }

    fn tell(&self, trouble: &str) {
        self.watched.count("failed");
        tracing::warn!(
            of = self.watched.name(),
            error = trouble,
            "the newest version cannot be used; the last good one stays"
        );
    }
}

/// A secret, and what its text means.
struct Parsed<S, P> {
    name: &'static str,
    source: S,
    parse: P,
}

impl<S, T, P> Watched for Parsed<S, P>
where
    S: Source,
    T: Send,
    P: Fn(&Secret<Vec<u8>>) -> Result<T, Fault> + Send + Sync,
{
    type Meaning = T;
    type Error = Error;

    fn name(&self) -> String {
        format!("secret {}", self.name)
    }

    fn count(&self, outcome: &'static str) {
        metrics::counter!(names::SECRET_LOADS, "secret" => self.name, "outcome" => outcome)
            .increment(1);
    }

    async fn read(&self, known: Option<&Version>) -> Result<Option<Seen<Self>>, Error> {
        let found = self.source.read(known).await?;
        Ok(found.map(|found| Seen {
            version: found.version,
            meaning: parse_as(self.name, &self.source.place(), found.text, &self.parse),
        }))
    }
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
        let mut follower = Follower::new(Parsed {
            name: "password",
            source: File::new(&path, None),
            parse: format::password,
        });
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
        write_private(&path, b"again\ntwo lines").unwrap();
        assert!(follower.next().await.is_none());
        assert_eq!((of("loaded"), of("failed")), (1, 2));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        for _ in 0..3 {
            assert!(follower.next().await.is_none());
        }
        assert_eq!((of("loaded"), of("failed")), (1, 3));
        // Away for a moment is no trouble.
        fs::remove_file(&path).unwrap();
        assert!(follower.next().await.is_none());
        assert_eq!((of("loaded"), of("failed")), (1, 3));
        write_private(&path, b"better").unwrap();
        let better = follower.next().await;
        assert!(better.is_some_and(|better| better.matches(b"better")));
        assert_eq!((of("loaded"), of("failed")), (2, 3));
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
