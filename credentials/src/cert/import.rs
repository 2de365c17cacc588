//! A pair from elsewhere, put where another one is read.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{Error, Pair};
use crate::source;

/// Puts a pair of PEM files, chain and key, in the place of another one. It is checked as one that is loaded, and
/// must hold now. Both files are complete and synced under other names before the first is renamed: whoever watches the
/// places sees the old pair, for a moment two that do not belong together, which are not taken, and the new pair.
/// The files belong to whom those belonged to that were there.
pub fn import(from: (&Path, &Path), to: (&Path, &Path)) -> Result<(), Error> {
    let pair = Pair::read(from.0, from.1)?;
    let now = SystemTime::now();
    if now < pair.not_before() || pair.not_after() <= now {
        return Err(Error::malformed(from.0, "does not hold now"));
    }
    let chain = source::read_public(from.0)?;
    let key = source::read_file(from.1)?;
    let (new_chain, new_key) = (beside(to.0), beside(to.1));
    let written = (|| {
        source::write_secret(&new_key, &key)?;
        source::write_public(&new_chain, &chain)?;
        // What is read in between by somebody else is not what was checked.
        let same = Pair::read(&new_chain, &new_key)?;
        if same.leaf() != pair.leaf() {
            return Err(Error::malformed(from.0, "changed while it was read"));
        }
        for (new, place) in [(&new_key, to.1), (&new_chain, to.0)] {
            keep_owner(new, place).map_err(|error| unwritable(place, &error))?;
        }
        fs::rename(&new_key, to.1).map_err(|error| unwritable(to.1, &error))?;
        fs::rename(&new_chain, to.0).map_err(|error| unwritable(to.0, &error))?;
        for place in [to.0, to.1] {
            sync(place).map_err(|error| unwritable(place, &error))?;
        }
        Ok(())
    })();
    if written.is_err() {
        let _ = fs::remove_file(&new_key);
        let _ = fs::remove_file(&new_chain);
    }
    written
}

fn unwritable(place: &Path, error: &io::Error) -> Error {
    Error::Source(source::Error::File {
        path: place.to_owned(),
        problem: format!("cannot be written: {error}"),
    })
}

fn beside(place: &Path) -> PathBuf {
    let mut name = place.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    place.with_file_name(name)
}

fn keep_owner(new: &Path, place: &Path) -> io::Result<()> {
    match fs::metadata(place) {
        Ok(there) => {
            let (owner, made_as) = ((there.uid(), there.gid()), fs::metadata(new)?);
            match owner == (made_as.uid(), made_as.gid()) {
                true => Ok(()),
                false => chown(new, Some(owner.0), Some(owner.1)),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn sync(place: &Path) -> io::Result<()> {
    let directory = place.parent().filter(|parent| *parent != Path::new(""));
    fs::File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cert::DevelopmentAuthority;

    #[test]
    fn a_pair_takes_the_place_of_another_one_and_anything_else_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let authority = DevelopmentAuthority::open(directory.path()).unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["old", "new"] {
            authority.issue(name, &["gateway.example"]).unwrap();
        }
        let (chain, key) = (at("place.crt"), at("place.key"));
        let put = |from: &str, its_key: &str| import((&at(from), &at(its_key)), (&chain, &key));
        put("old.crt", "old.key").unwrap();
        let leaf = |chain: &Path, key: &Path| Pair::read(chain, key).unwrap().leaf().clone();
        let old = leaf(&at("old.crt"), &at("old.key"));
        assert_eq!(leaf(&chain, &key), old);
        let mode = |file: &Path| fs::metadata(file).unwrap().mode() & 0o777;
        assert_eq!((mode(&chain), mode(&key)), (0o644, 0o600));

        assert!(put("new.crt", "old.key").is_err());
        assert!(put("new.key", "new.crt").is_err());
        assert_eq!(leaf(&chain, &key), old);

        put("new.crt", "new.key").unwrap();
        assert_eq!(leaf(&chain, &key), leaf(&at("new.crt"), &at("new.key")));
        let names = fs::read_dir(directory.path()).unwrap();
        let mut left = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(!left.any(|name| name.ends_with(".new")));
    }
}
