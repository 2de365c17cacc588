//! The newest roster as a file in the state directory, so that a node can start while no master
//! answers. It is the master's signed token, and is checked like one that comes from a master.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use wavry_proto::{control::Roster, id::Epoch, token::MAX_ROSTER_LEN};

use super::{metrics as names, roster::Pinned};
use crate::source;

/// Where the newest roster is kept.
#[derive(Clone)]
pub(super) struct Kept {
    file: PathBuf,
}

impl Kept {
    pub(super) fn in_directory(state_dir: &Path) -> Self {
        Self {
            file: state_dir.join("roster"),
        }
    }

    /// The roster that was kept. One that is damaged, of another cluster or by a key that is not
    /// pinned is none: the master has a good one.
    pub(super) fn read(&self, pinned: &Pinned, now: u64) -> Option<Roster> {
        let file = self.file.display();
        match read_up_to(&self.file, MAX_ROSTER_LEN) {
            Ok(token) => match pinned.accept(&token, Epoch(0), now) {
                Ok(roster) => Some(roster),
                Err(reason) => {
                    tracing::warn!(%file, reason, "the kept roster is of no use");
                    None
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%file, %error, "the kept roster cannot be read");
                None
            }
        }
    }

    /// Keeps a roster. A node acts on it all the same where that fails, and says so: what was revoked must end here,
    /// and a disk that is full must not keep it alive. Such a node starts from an older one if no master
    /// answers then, or waits for a master where it has kept none.
    pub(super) async fn write(&self, token: Vec<u8>) {
        let file = self.file.clone();
        let written =
            tokio::task::spawn_blocking(move || source::write_public(&file, &token)).await;
        metrics::gauge!(names::ROSTER_KEPT).set(f64::from(u8::from(matches!(written, Ok(Ok(()))))));
        if let Ok(Err(error)) = written {
            let error = &error as &dyn std::error::Error;
            tracing::error!(
                error,
                "the roster is acted on, and is not kept: after a restart without a master it is not known here"
            );
        }
    }
}

/// The beginning of a file. One that goes on is longer than any roster, and its signature will not fit.
fn read_up_to(file: &Path, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?
        .take(length as u64)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::token::{Scope, SigningKey};

    #[tokio::test]
    async fn what_was_kept_is_read_if_it_is_whole_and_by_a_pinned_key() {
        let directory = tempfile::tempdir().unwrap();
        let kept = Kept::in_directory(directory.path());
        let key = SigningKey::generate();
        let cluster = || "ours".parse().unwrap();
        let pinned = |key: &SigningKey| Pinned::new(cluster(), &[key.public_paserk()]).unwrap();
        assert_eq!(kept.read(&pinned(&key), 0), None);

        let roster = Roster {
            epoch: Epoch(7),
            ..Roster::empty("ours".parse().unwrap())
        };
        let scope = Scope {
            cluster: &roster.cluster,
            audience: "nodes",
            binding: &[],
        };
        let token = key.sign(&roster, scope).into_bytes();
        kept.write(token.clone()).await;
        assert_eq!(kept.read(&pinned(&key), 0), Some(roster));
        assert_eq!(kept.read(&pinned(&SigningKey::generate()), 0), None);

        let file = directory.path().join("roster");
        for damaged in [&token[..token.len() - 1], b"", b"\xff"] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(kept.read(&pinned(&key), 0), None);
        }
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert_eq!(kept.read(&pinned(&key), 0), None);

        // What cannot be kept is told.
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let told = recorder.handle();
        let _guard = metrics::set_default_local_recorder(&recorder);
        fs::write(file.join("full"), b"").unwrap();
        kept.write(token.clone()).await;
        let line = |kept: u8| format!("wavry_node_roster_kept {kept}");
        assert!(told.render().contains(&line(0)), "{}", told.render());
        fs::remove_dir_all(&file).unwrap();
        kept.write(token).await;
        assert!(told.render().contains(&line(1)), "{}", told.render());
    }
}
