//! What a role needs, looked at before it starts.

use std::{error::Error as StdError, fmt, path::Path};

use super::{Error, Source as _, find, locate, read_file};
use crate::secret::Secret;

/// One thing that a role needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is, as in `secret tls_key`.
    pub what: String,
    /// Where it is, or why it cannot be used; never what it is.
    pub outcome: Result<String, String>,
}

impl Finding {
    /// That of something which is `what`.
    pub fn new(
        what: impl Into<String>,
        outcome: Result<impl fmt::Display, impl StdError + 'static>,
    ) -> Self {
        Self {
            what: what.into(),
            outcome: outcome
                .map(|place| place.to_string())
                .map_err(|error| with_causes(&error)),
        }
    }

    fn parsed<T>(what: String, place: &str, parsed: Result<T, impl StdError + 'static>) -> Self {
        let mut finding = Self::new(what, parsed.map(|_| place));
        if let Err(why) = &mut finding.outcome {
            *why = format!("{place}: {why}");
        }
        finding
    }
}

/// Looks at secret `name` as [`load`](super::load) would read it.
pub async fn check<T, E: StdError + 'static>(
    name: &str,
    file: Option<&Path>,
    parse: impl FnOnce(&Secret<Vec<u8>>) -> Result<T, E>,
) -> Finding {
    let what = format!("secret {name}");
    match read(name, file).await {
        Err(error) => Finding::new(what, Err::<String, _>(error)),
        Ok((place, text)) => Finding::parsed(what, &place, parse(&text)),
    }
}

/// Looks at secret `name` as [`read_as`](super::read_as) would, which takes it from files alone.
pub fn check_file<T, E: StdError + 'static>(
    name: &str,
    file: Option<&Path>,
    parse: impl FnOnce(&Secret<Vec<u8>>) -> Result<T, E>,
) -> Finding {
    let what = format!("secret {name}");
    let found = file.map_or_else(|| locate(name), |file| Ok(file.to_owned()));
    let read = found.and_then(|file| Ok((file.display().to_string(), read_file(&file)?)));
    match read {
        Err(error) => Finding::new(what, Err::<String, _>(error)),
        Ok((place, text)) => Finding::parsed(what, &place, parse(&text)),
    }
}

async fn read(name: &str, file: Option<&Path>) -> Result<(String, Secret<Vec<u8>>), Error> {
    let source = find(name, file)?;
    let found = source.read(None).await?;
    // Nothing is known yet that it could still be.
    let text = found.map_or_else(|| Secret::new(Vec::new()), |found| found.text);
    Ok((source.place(), text))
}

fn with_causes(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some say their cause themselves.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{key::format, source::write_private};

    #[tokio::test]
    async fn what_is_found_is_told_by_place_and_never_by_value() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        write_private(&file, b"canary-5ecret").unwrap();
        let good = check("database_password", Some(&file), format::password).await;
        assert_eq!(good.what, "secret database_password");
        assert_eq!(good.outcome, Ok(file.display().to_string()));

        write_private(&file, b"canary-5ecret\nand another line").unwrap();
        let bad = check("database_password", Some(&file), format::password).await;
        let text = bad.outcome.unwrap_err();
        assert!(
            text.contains("password") && !text.contains("canary"),
            "{text}"
        );

        let file = directory.path().join("gone");
        let gone = check("database_password", Some(&file), format::password).await;
        assert!(gone.outcome.unwrap_err().contains("gone"));
    }
}
