//! Path patterns, and what stands in them for the unit that asks.

use std::{cmp::Ordering, collections::BTreeMap};

use serde::{Deserialize, Serialize};

/// Who asks, as the login found out. Patterns may name it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// `identity.entity.name`: what the login calls the unit.
    pub name: String,
    /// `identity.entity.metadata.KEY`: facts about it.
    pub metadata: BTreeMap<String, String>,
    /// `identity.entity.aliases.ACCESSOR.name`: the accessor of the mount where it logged in.
    pub mount: String,
}

/// A pattern as it is written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Name,
    Metadata(String),
    AliasName(String),
    AliasMetadata(String, String),
}

impl Template {
    /// Reads a pattern. `None`: braces that hold nothing known.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = Vec::new();
        // Clients may write the slash before it; paths have none.
        let mut rest = text.strip_prefix('/').unwrap_or(text);
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, after) = after.split_once("}}")?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::parse(name.trim())?);
            rest = after;
        }
        if rest.contains("}}") {
            return None;
        }
        parts.push(Part::Text(rest.to_owned()));
        Some(Self(parts))
    }

    /// The pattern for `identity`, or `None` where that does not have what the pattern names, or not
    /// as one plain segment.
    pub(super) fn fill(&self, identity: &Identity) -> Option<Pattern> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(plain) => text.push_str(plain),
                part => text.push_str(part.value(identity).filter(|value| is_plain(value))?),
            }
        }
        Some(Pattern::new(&text))
    }
}

impl Part {
    fn parse(name: &str) -> Option<Self> {
        let name = name.strip_prefix("identity.entity.")?;
        if name == "name" {
            return Some(Self::Name);
        }
        if let Some(key) = name.strip_prefix("metadata.") {
            return (!key.is_empty()).then(|| Self::Metadata(key.to_owned()));
        }
        let (mount, fact) = name.strip_prefix("aliases.")?.split_once('.')?;
        if fact == "name" {
            return Some(Self::AliasName(mount.to_owned()));
        }
        let key = fact
            .strip_prefix("metadata.")
            .filter(|key| !key.is_empty())?;
        Some(Self::AliasMetadata(mount.to_owned(), key.to_owned()))
    }

    fn value<'a>(&self, identity: &'a Identity) -> Option<&'a str> {
        let alias = |mount: &String| (*mount == identity.mount).then_some(identity);
        match self {
            Self::Text(_) => None,
            Self::Name => Some(&identity.name),
            Self::Metadata(key) => identity.metadata.get(key).map(String::as_str),
            Self::AliasName(mount) => alias(mount).map(|identity| identity.name.as_str()),
            Self::AliasMetadata(mount, key) => {
                let value = alias(mount)?.metadata.get(key);
                value.map(String::as_str)
            }
        }
    }
}

/// Whether a value says nothing but one segment of a path.
fn is_plain(value: &str) -> bool {
    !value.is_empty()
        && !value.ends_with('.')
        && !value.contains(|c: char| "/*+\\%{}".contains(c) || c.is_control())
}

/// A pattern of paths: segments that are `+` stand for one segment each, and a `*` at the end for any
/// rest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Pattern {
    text: Box<str>,
    /// Without the `*`.
    length: usize,
    pluses: usize,
    first_wildcard: usize,
}

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        let length = text.strip_suffix('*').unwrap_or(text).len();
        let pluses = text[..length].split('/').filter(|s| *s == "+");
        let mut start = 0;
        let plus = text[..length].split('/').find_map(|segment| {
            let here = start;
            start += segment.len() + 1;
            (segment == "+").then_some(here)
        });
        Self {
            pluses: pluses.count(),
            first_wildcard: plus.unwrap_or(length),
            length,
            text: text.into(),
        }
    }

    /// Whether it fits one path only, which is then its text.
    pub(super) fn is_exact(&self) -> bool {
        self.pluses == 0 && !self.is_open()
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    fn is_open(&self) -> bool {
        self.length < self.text.len()
    }

    pub(super) fn fits(&self, path: &str) -> bool {
        let fixed = &self.text[..self.length];
        if self.pluses == 0 {
            return match self.is_open() {
                true => path.starts_with(fixed),
                false => path == fixed,
            };
        }
        let mut rest = Some(path);
        let mut segments = fixed.split('/').peekable();
        while let Some(segment) = segments.next() {
            let Some(here) = rest else { return false };
            let is_last = segments.peek().is_none();
            // What is open at its end fits as a prefix, across slashes.
            if is_last && self.is_open() && segment != "+" {
                return here.starts_with(segment);
            }
            let (first, after) = match here.split_once('/') {
                Some((first, after)) => (first, Some(after)),
                None => (here, None),
            };
            let fits = match segment {
                "+" => !first.is_empty(),
                fixed => first == fixed,
            };
            if !fits {
                return false;
            }
            rest = after;
        }
        rest.is_none() || self.is_open()
    }

    /// Which of two patterns that both fit is the closer one: that is the smaller. In this order, as
    /// Vault has it: the first wildcard comes later; no `*` at the end; fewer `+`; longer; later in
    /// the alphabet.
    pub(super) fn by_closeness(&self, other: &Self) -> Ordering {
        other
            .first_wildcard
            .cmp(&self.first_wildcard)
            .then(self.is_open().cmp(&other.is_open()))
            .then(self.pluses.cmp(&other.pluses))
            .then(other.text.len().cmp(&self.text.len()))
            .then_with(|| other.text.cmp(&self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pattern_fits_what_vault_says_it_fits() {
        for (pattern, fits, misses) in [
            (
                "secret/foo",
                &["secret/foo"][..],
                &["secret/foo/", "secret/foobar", "secret"][..],
            ),
            (
                "secret/foo*",
                &["secret/foo", "secret/foobar", "secret/foo/a/b"],
                &["secret/fo"],
            ),
            ("*", &["a", "a/b"], &[]),
            (
                "secret/+/team",
                &["secret/a/team"],
                &[
                    "secret/team",
                    "secret/a/b/team",
                    "secret//team",
                    "secret/a/team/",
                ],
            ),
            (
                "+/+/team*",
                &["a/b/team", "a/b/teams/c"],
                &["a/b/tea", "a/team"],
            ),
            (
                "secret/+/*",
                &["secret/a/", "secret/a/b/c"],
                &["secret/a", "secret/"],
            ),
            (
                "secret/+",
                &["secret/a"],
                &["secret/", "secret/a/b", "secret"],
            ),
            ("a+b/c", &["a+b/c"], &["axb/c"]),
            ("a*/b", &["a*/b"], &["ax/b"]),
        ] {
            let pattern_ = Pattern::new(pattern);
            for path in fits {
                assert!(pattern_.fits(path), "{pattern} {path}");
            }
            for path in misses {
                assert!(!pattern_.fits(path), "{pattern} {path}");
            }
        }
    }

    #[test]
    fn the_closer_pattern_comes_first() {
        let mut patterns = [
            "*",
            "secret/*",
            "secret/+/+/foo/*",
            "secret/+/+/foo/bar",
            "secret/+/*",
            "secret/a/*",
            "secret/+/a",
            "secret/+/b",
        ]
        .map(Pattern::new);
        patterns.sort_by(Pattern::by_closeness);
        let order: Vec<_> = patterns.iter().map(Pattern::text).collect();
        assert_eq!(
            order,
            [
                "secret/a/*",
                "secret/+/b",
                "secret/+/a",
                "secret/+/+/foo/bar",
                "secret/*",
                "secret/+/*",
                "secret/+/+/foo/*",
                "*",
            ]
        );
    }

    #[test]
    fn a_unit_is_named_by_one_plain_segment_or_not_at_all() {
        let template =
            Template::parse("/s/{{ identity.entity.name }}/{{identity.entity.metadata.env}}/*");
        let template = template.unwrap();
        let unit = |name: &str, env: Option<&str>| Identity {
            name: name.to_owned(),
            metadata: env
                .map(|env| ("env".to_owned(), env.to_owned()))
                .into_iter()
                .collect(),
            mount: "auth_approle_1".to_owned(),
        };
        let filled = template.fill(&unit("web", Some("prod"))).unwrap();
        assert_eq!(filled.text(), "s/web/prod/*");
        for (name, env) in [
            ("web", None),
            ("", Some("prod")),
            ("*", Some("prod")),
            ("+", Some("prod")),
            ("a/b", Some("prod")),
            ("..", Some("prod")),
            ("web", Some("%2e")),
        ] {
            assert_eq!(template.fill(&unit(name, env)), None, "{name} {env:?}");
        }
        let alias = Template::parse("s/{{identity.entity.aliases.auth_approle_1.name}}").unwrap();
        assert_eq!(alias.fill(&unit("web", None)).unwrap().text(), "s/web");
        let elsewhere = Template::parse("s/{{identity.entity.aliases.other.name}}").unwrap();
        assert_eq!(elsewhere.fill(&unit("web", None)), None);
        for broken in [
            "{{",
            "a}}",
            "{{identity.entity}}",
            "{{x}}",
            "{{identity.entity.metadata.}}",
        ] {
            assert_eq!(Template::parse(broken), None, "{broken}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_patterns_and_paths_never_panic(pattern in "[a+*/{}.]{0,12}|.{0,12}", path in "[a+*/.]{0,12}") {
            let _ = Template::parse(&pattern);
            let _ = Pattern::new(&pattern).fits(&path);
        }

        #[test]
        fn a_pattern_without_wildcards_fits_itself_only(path in "[a-c/]{1,12}", other in "[a-c/]{1,12}") {
            let pattern = Pattern::new(&path);
            prop_assert!(pattern.is_exact());
            prop_assert_eq!(pattern.fits(&other), path == other);
        }
    }
}
