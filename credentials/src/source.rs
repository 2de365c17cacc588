//! The one door through which a secret is read.
//!
//! A secret named `master_key` comes from the file that `WAVRY_MASTER_KEY_FILE` names, else from
//! `/run/secrets/wavry_master_key`. It is the same in development, CI and production. A file may hold several
//! secrets as a JSON object: `WAVRY_MASTER_KEY_FIELD` says which of its fields is this one.
//!
//! [`load`] reads from a KeyVault as well: `WAVRY_MASTER_KEY_KEYVAULT` is a path there ([`keyvault`]); and what AWS
//! KMS encrypted: `WAVRY_MASTER_KEY_KMS_FILE` names a file that holds the ciphertext ([`kms`]).
//! [`watch()`] follows a secret as it changes.

mod check;
mod file;
pub mod keyvault;
pub mod kms;
pub(crate) mod watch;

use std::{
    env,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use crate::{
    key::format::{self, Fault},
    secret::Secret,
};

pub use check::{Finding, check, check_file};
pub(crate) use file::version_of;
pub use file::{File, MAX_LEN, read_file, read_public, write_private, write_public, write_secret};
pub use keyvault::KeyVault;
pub use kms::Kms;
pub use watch::watch;

const DEFAULT_DIRECTORY: &str = "/run/secrets";

/// Where a secret is kept.
pub trait Source: Send + Sync + 'static {
    /// Where that is, as messages say it.
    fn place(&self) -> String;

    /// The secret as it is now; `None` while it is still version `known`.
    fn read(
        &self,
        known: Option<&Version>,
    ) -> impl Future<Output = Result<Option<Found>, Error>> + Send;
}

/// Tells one state of a secret from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(String);

impl Version {
    /// That of two things which are one only together.
    pub(crate) fn and(&self, other: &Self) -> Self {
        Self(format!("{} {}", self.0, other.0))
    }
}

/// A secret as a source has it.
pub struct Found {
    /// Which state of it.
    pub version: Version,
    /// Its text.
    pub text: Secret<Vec<u8>>,
}

/// Where a secret was found to be.
pub enum Place {
    /// In a file.
    File(File),
    /// In a KeyVault.
    KeyVault(Box<KeyVault>),
    /// In a file, encrypted by AWS KMS.
    Kms(Box<Kms>),
}

impl Source for Place {
    fn place(&self) -> String {
        match self {
            Self::File(file) => file.place(),
            Self::KeyVault(keyvault) => keyvault.place(),
            Self::Kms(kms) => kms.place(),
        }
    }

    async fn read(&self, known: Option<&Version>) -> Result<Option<Found>, Error> {
        match self {
            Self::File(file) => file.read(known).await,
            Self::KeyVault(keyvault) => keyvault.read(known).await,
            Self::Kms(kms) => kms.read(known).await,
        }
    }
}

/// Why a secret could not be read or written. No variant holds a value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no file.
    #[error("no {name}: set {variable} to the file that holds it, or put it at {default}")]
    Missing {
        /// The secret's name.
        name: String,
        /// The variable that could name a file.
        variable: String,
        /// The file that is read when the variable is not set.
        default: PathBuf,
    },
    /// The file is there and must not or cannot be used.
    #[error("{path} {problem}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// What was found is not what it should be.
    #[error("secret {name} in {place}: {fault}")]
    Malformed {
        /// The secret's name.
        name: String,
        /// Where it was found.
        place: String,
        /// Where what was expected.
        fault: Fault,
    },
    /// Two variables say where a secret is.
    #[error("{one} and {other} are both set: a secret is in one place")]
    TwoPlaces {
        /// A variable that is set.
        one: String,
        /// Another one.
        other: String,
    },
    /// The KeyVault did not give it.
    #[error("{place}: {failure}")]
    KeyVault {
        /// Where it was looked for.
        place: String,
        /// What went wrong.
        failure: Box<keyvault::Failure>,
    },
    /// AWS KMS did not decrypt it.
    #[error("{place}: {failure}")]
    Kms {
        /// Where its ciphertext is.
        place: String,
        /// What went wrong.
        failure: Box<kms::Failure>,
    },
}

/// The file that secret `name` (lower case, `_`) is read from. The error names both places.
pub fn locate(name: &str) -> Result<PathBuf, Error> {
    locate_among(
        name,
        |variable| env::var_os(variable),
        Path::new(DEFAULT_DIRECTORY),
    )
}

/// Where secret `name` is: in `file` where that is given, else where the variables say (see the
/// module).
pub fn find(name: &str, file: Option<&Path>) -> Result<Place, Error> {
    find_among(
        name,
        file,
        |variable| env::var_os(variable),
        Path::new(DEFAULT_DIRECTORY),
    )
}

/// Reads secret `name` from where [`find`] finds it, and what its text means.
pub async fn load<T>(
    name: &str,
    file: Option<&Path>,
    parse: impl FnOnce(&Secret<Vec<u8>>) -> Result<T, Fault>,
) -> Result<T, Error> {
    let source = find(name, file)?;
    let found = source.read(None).await?;
    // Nothing is known yet that it could still be.
    let text = found.map_or_else(|| Secret::new(Vec::new()), |found| found.text);
    parse_as(name, &source.place(), text, parse)
}

/// Reads secret `name` from a file, from `file` where that is given, and what its text means. Where
/// `WAVRY_<NAME>_FIELD` is set, that text is a field of a JSON object.
pub fn read_as<T>(
    name: &str,
    file: Option<&Path>,
    parse: impl FnOnce(&Secret<Vec<u8>>) -> Result<T, Fault>,
) -> Result<T, Error> {
    let path = match file {
        Some(file) => file.to_owned(),
        None => locate(name)?,
    };
    let text = read_file(&path)?;
    let place = path.display().to_string();
    let malformed = |fault| Error::Malformed {
        name: name.to_owned(),
        place: place.clone(),
        fault,
    };
    match field_of(name, |variable| env::var_os(variable)) {
        None => parse_as(name, &place, text, parse),
        Some(field) => {
            let text = format::field(&text, &[&field]).map_err(malformed)?;
            parse_as(name, &place, text, parse)
        }
    }
}

fn parse_as<T>(
    name: &str,
    place: &str,
    text: Secret<Vec<u8>>,
    parse: impl FnOnce(&Secret<Vec<u8>>) -> Result<T, Fault>,
) -> Result<T, Error> {
    parse(&text).map_err(|fault| Error::Malformed {
        name: name.to_owned(),
        place: place.to_owned(),
        fault,
    })
}

/// Reads secret `name`; see the module.
pub fn read(name: &str) -> Result<Secret<Vec<u8>>, Error> {
    read_file(&locate(name)?)
}

/// The field of a JSON object that secret `name` is.
fn field_of(name: &str, variable_of: impl Fn(&str) -> Option<OsString>) -> Option<String> {
    let variable = format!("WAVRY_{}_FIELD", name.to_ascii_uppercase());
    let field = variable_of(&variable)?.to_string_lossy().into_owned();
    (!field.is_empty()).then_some(field)
}

fn find_among(
    name: &str,
    file: Option<&Path>,
    variable_of: impl Fn(&str) -> Option<OsString>,
    directory: &Path,
) -> Result<Place, Error> {
    let field = field_of(name, &variable_of);
    if let Some(file) = file {
        return Ok(Place::File(File::new(file, field)));
    }
    let upper = name.to_ascii_uppercase();
    let is_set = |variable: &str| variable_of(variable).filter(|value| !value.is_empty());
    let set = |end| {
        let variable = format!("WAVRY_{upper}_{end}");
        is_set(&variable).map(|value| (variable, value))
    };
    let mut places = ["FILE", "KEYVAULT", "KMS_FILE"].into_iter().filter_map(set);
    let (place, another) = (places.next(), places.next());
    match (place, another) {
        (Some((one, _)), Some((other, _))) => Err(Error::TwoPlaces { one, other }),
        (Some((variable, path)), None) if variable.ends_with("_KEYVAULT") => {
            let path = path.to_string_lossy();
            let config = keyvault::Config::from_variables(&is_set)?;
            Ok(Place::KeyVault(Box::new(KeyVault::new(
                config, &path, field,
            )?)))
        }
        (Some((variable, path)), None) if variable.ends_with("_KMS_FILE") => {
            let config = kms::Config::from_variables(&is_set);
            let kms = config.and_then(|config| Kms::new(config, name, path.into(), field));
            let kms = kms.map_err(|failure| Error::Kms {
                place: variable,
                failure: Box::new(failure),
            })?;
            Ok(Place::Kms(Box::new(kms)))
        }
        _ => {
            let path = locate_among(name, variable_of, directory)?;
            Ok(Place::File(File::new(path, field)))
        }
    }
}

fn locate_among(
    name: &str,
    variable_of: impl Fn(&str) -> Option<OsString>,
    directory: &Path,
) -> Result<PathBuf, Error> {
    let variable = format!("WAVRY_{}_FILE", name.to_ascii_uppercase());
    // Compose and systemd hand an unset variable on as an empty one.
    if let Some(path) = variable_of(&variable).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::File {
                path,
                problem: format!("does not exist, and {variable} names it"),
            }),
            _ => Ok(path),
        };
    }
    let default = directory.join(format!("wavry_{name}"));
    if default.symlink_metadata().is_ok() {
        Ok(default)
    } else {
        Err(Error::Missing {
            name: name.to_owned(),
            variable,
            default,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    fn file(directory: &Path, name: &str, mode: u32) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, b"s3cret").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn the_variable_wins_over_the_default_place() {
        let directory = tempfile::tempdir().unwrap();
        let default = file(directory.path(), "wavry_master_key", 0o600);
        let named = file(directory.path(), "elsewhere", 0o600);
        let with = |value: Option<&Path>| {
            locate_among(
                "master_key",
                |variable| {
                    assert_eq!(variable, "WAVRY_MASTER_KEY_FILE");
                    value.map(OsString::from)
                },
                directory.path(),
            )
        };
        assert_eq!(with(Some(&named)).unwrap(), named);
        assert_eq!(with(None).unwrap(), default);
        assert_eq!(with(Some(Path::new(""))).unwrap(), default);
    }

    #[test]
    fn a_missing_secret_is_an_error_that_names_variable_and_file() {
        let directory = tempfile::tempdir().unwrap();
        let error = locate_among("tls_key", |_| None, directory.path()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("WAVRY_TLS_KEY_FILE"), "{text}");
        assert!(text.contains("wavry_tls_key"), "{text}");

        let gone = directory.path().join("gone");
        let error = locate_among("tls_key", |_| Some(gone.clone().into()), directory.path());
        let text = error.unwrap_err().to_string();
        assert!(text.contains("WAVRY_TLS_KEY_FILE"), "{text}");
        assert!(text.contains("gone"), "{text}");
    }

    #[test]
    fn a_secret_that_is_malformed_is_named_with_its_file_and_place_and_without_its_value() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(directory.path(), "key", 0o600);
        let refused = read_as("master_key", Some(&path), format::symmetric::<32>);
        let text = refused.err().unwrap().to_string();
        assert!(text.starts_with("secret master_key in /"), "{text}");
        assert!(
            text.contains("key: line 1, column 6: expected the bytes"),
            "{text}"
        );
        assert!(!text.contains("s3cret"), "{text}");
        let read = read_as("password", Some(&path), format::password);
        assert!(read.is_ok_and(|read| read.matches(b"s3cret")));
    }

    #[test]
    fn a_secret_is_in_one_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(directory.path(), "key", 0o600);
        let with = |variables: &'static [(&str, &str)]| {
            let variable_of = |variable: &str| {
                let set = variables.iter().find(|(name, _)| *name == variable);
                match set {
                    Some((_, "FILE")) => Some(path.clone().into()),
                    Some((_, value)) => Some(OsString::from(value)),
                    None => None,
                }
            };
            find_among("master_key", None, variable_of, directory.path())
        };
        let in_file = with(&[("WAVRY_MASTER_KEY_FILE", "FILE")]);
        assert!(matches!(in_file, Ok(Place::File(_))));
        let both = with(&[
            ("WAVRY_MASTER_KEY_FILE", "FILE"),
            ("WAVRY_MASTER_KEY_KEYVAULT", "secret/wavry/master"),
        ]);
        assert!(matches!(both, Err(Error::TwoPlaces { .. })));
        let others = with(&[
            ("WAVRY_MASTER_KEY_KMS_FILE", "/key.kms"),
            ("WAVRY_MASTER_KEY_KEYVAULT", "secret/wavry/master"),
        ]);
        let text = others.err().unwrap().to_string();
        assert!(
            text.contains("WAVRY_MASTER_KEY_KEYVAULT and WAVRY_MASTER_KEY_KMS_FILE"),
            "{text}"
        );
        let without_region = with(&[("WAVRY_MASTER_KEY_KMS_FILE", "/key.kms")]);
        let text = without_region.err().unwrap().to_string();
        assert_eq!(
            text,
            "WAVRY_MASTER_KEY_KMS_FILE: WAVRY_AWS_REGION is not set"
        );
        let encrypted = with(&[
            ("WAVRY_MASTER_KEY_KMS_FILE", "/key.kms"),
            ("WAVRY_AWS_REGION", "eu-central-1"),
            ("WAVRY_AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ]);
        assert!(matches!(encrypted, Ok(Place::Kms(_))));
        let without_address = with(&[("WAVRY_MASTER_KEY_KEYVAULT", "secret/wavry/master")]);
        let text = without_address.err().unwrap().to_string();
        assert!(text.contains("WAVRY_KEYVAULT_URL"), "{text}");
        assert!(with(&[]).is_err());
    }

    #[test]
    fn a_variable_says_which_field_of_an_object_a_secret_is() {
        let with = |value: &str| {
            field_of("master_key", |variable| {
                assert_eq!(variable, "WAVRY_MASTER_KEY_FIELD");
                Some(value.into())
            })
        };
        assert_eq!(with("key").as_deref(), Some("key"));
        assert_eq!(with(""), None);
        assert_eq!(field_of("master_key", |_| None), None);
    }
}
