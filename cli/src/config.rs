//! Configuration of a role: built-in defaults < TOML file < environment < flags, then validated.
//!
//! A file has one table per role and the tables `[ops]` and `[log]`. A variable
//! `WAVRY_<TABLE>__<KEY>` overrides a key; only variables with a double underscore are
//! configuration (`WAVRY_<NAME>_FILE` names the file of a secret).
//!
//! An error names where, which key and what was expected. It never shows a value: a secret may have
//! been pasted into the wrong place.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use figment::{
    Figment, Metadata, Profile, Provider,
    error::{Actual, Kind},
    providers::Serialized,
    value::{Dict, Map, Value},
};
use serde::{Serialize, de::DeserializeOwned};
use wavry_credentials::redact::Place;
use wavry_proto::config::Invalid;

use crate::{
    log, ops,
    roles::{Gateway, Relay},
};

/// Tables that a file or a variable may have.
const TABLES: [&str; 6] = ["master", "keyvault", "gateway", "relay", "ops", "log"];

/// A role's own table: what it is called, what may stand in it, and what that becomes.
pub(crate) trait Table {
    /// Name of the table and of the role.
    const NAME: &'static str;
    /// Where the ops listener is unless configured.
    const OPS: &'static str;
    /// What may stand in the table.
    type Raw: Serialize + DeserializeOwned + Default;
    /// What the role takes.
    type Config;

    /// Checks everything that can be checked without binding a port.
    fn validate(raw: Self::Raw) -> Result<Self::Config, Invalid>;
}

/// A role's configuration, validated.
pub(crate) struct Loaded<T: Table> {
    /// The role's own table.
    pub(crate) role: T::Config,
    /// `[ops]`.
    pub(crate) ops: ops::Config,
    /// `[log]`.
    pub(crate) log: log::Config,
}

/// Values given on the command line: key with its table, flag, value.
#[derive(Default)]
pub(crate) struct Flags(Vec<(String, &'static str, Value)>);

impl Flags {
    /// Sets `key` (`gateway.listen`) from `flag` (`--listen`) when there is a value.
    pub(crate) fn set(
        &mut self,
        key: impl Into<String>,
        flag: &'static str,
        value: Option<impl Into<Value>>,
    ) {
        if let Some(value) = value {
            self.0.push((key.into(), flag, value.into()));
        }
    }
}

/// Why there is no configuration. Says where and what was expected, never what was found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file cannot be read.
    #[error("{} cannot be read", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}:{column}: not valid TOML: {message}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What the parser expected.
        message: String,
    },
    /// A key is unknown, missing, of the wrong type, or has a value that is no good.
    #[error("{origin}: {key}: {problem}")]
    Key {
        /// Where the value comes from.
        origin: Origin,
        /// The key with its table.
        key: String,
        /// What was expected.
        problem: String,
    },
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A line of a file, or the file as a whole where a key is missing.
    File(PathBuf, Option<usize>),
    /// An environment variable.
    Variable(String),
    /// A flag.
    Flag(&'static str),
    /// Nothing sets it.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file, Some(line)) => write!(f, "{}:{line}", file.display()),
            Self::File(file, None) => file.display().fmt(f),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Default => f.write_str("configuration"),
        }
    }
}

/// Loads and validates the configuration of role `T`. `environment` is the process's variables.
pub(crate) fn load<T: Table>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &Flags,
) -> Result<Loaded<T>, Error> {
    let layers = Layers::read::<T>(file, environment, flags)?;
    let figment = Figment::new()
        .merge(Serialized::default(T::NAME, T::Raw::default()))
        .merge(Serialized::default("ops", ops::Raw::at(T::OPS)))
        .merge(Serialized::default("log", log::Raw::default()))
        .merge(Layer("file", layers.file_values()))
        .merge(Layer("environment", nested(layers.environment.iter())))
        .merge(Layer("flags", nested(flags.0.iter())));

    let raw: T::Raw = layers.extract(&figment, T::NAME)?;
    let ops: ops::Raw = layers.extract(&figment, "ops")?;
    let log: log::Raw = layers.extract(&figment, "log")?;
    let check = |table: &'static str| {
        let (layers, figment) = (&layers, &figment);
        move |invalid| layers.invalid(figment, table, invalid)
    };
    Ok(Loaded {
        ops: ops.try_into().map_err(check("ops"))?,
        log: log.try_into().map_err(check("log"))?,
        role: T::validate(raw).map_err(check(T::NAME))?,
    })
}

/// Where the ops listener is of the gateway or relay that a file configures.
pub(crate) fn ops_of_node(
    file: &Path,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<ops::Config, Error> {
    let document = parse_file(file)?;
    let flags = Flags::default();
    match document.as_table().contains_key(Relay::NAME) {
        true => Layers::read::<Relay>(Some(file), environment, &flags)?.ops(Relay::OPS),
        false => Layers::read::<Gateway>(Some(file), environment, &flags)?.ops(Gateway::OPS),
    }
}

/// The places that can set a key, kept to tell which one did.
struct Layers<'a> {
    path: Option<PathBuf>,
    document: Option<toml_edit::Document<String>>,
    /// Key with its table, variable's name, value.
    environment: Vec<(String, String, Value)>,
    flags: &'a Flags,
}

impl<'a> Layers<'a> {
    fn read<T: Table>(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &'a Flags,
    ) -> Result<Self, Error> {
        let layers = Self {
            path: file.map(Path::to_owned),
            document: file.map(parse_file).transpose()?,
            environment: read_environment::<T>(environment)?,
            flags,
        };
        if let Some(document) = &layers.document {
            for (table, _) in document.as_table().iter() {
                if ![T::NAME, "ops", "log"].contains(&table) {
                    let problem = format!("unknown table; expected {}, ops or log", T::NAME);
                    return Err(layers.key_error(&[table.to_owned()], problem));
                }
            }
        }
        Ok(layers)
    }

    /// `[ops]` alone, of a role whose listener is at `listen` unless it is said where.
    fn ops(&self, listen: &str) -> Result<ops::Config, Error> {
        let figment = Figment::new()
            .merge(Serialized::default("ops", ops::Raw::at(listen)))
            .merge(Layer("file", self.file_values()))
            .merge(Layer("environment", nested(self.environment.iter())));
        let raw: ops::Raw = self.extract(&figment, "ops")?;
        raw.try_into()
            .map_err(|invalid| self.invalid(&figment, "ops", invalid))
    }

    fn file_values(&self) -> Dict {
        self.document
            .as_ref()
            .map(|document| table_values(document.as_table()))
            .unwrap_or_default()
    }

    fn extract<V: DeserializeOwned>(
        &self,
        figment: &Figment,
        table: &'static str,
    ) -> Result<V, Error> {
        figment.extract_inner(table).map_err(|error| {
            // figment puts the path that was asked for last.
            let inner = error.path.split_last().map_or(&[][..], |(_, inner)| inner);
            let mut path = vec![table.to_owned()];
            path.extend_from_slice(inner);
            if let Kind::MissingField(key) = &error.kind {
                path.push(key.to_string());
            }
            let problem = self.without_value(figment, &path, expectation(&error.kind));
            self.key_error(&path, problem)
        })
    }

    fn invalid(&self, figment: &Figment, table: &str, invalid: Invalid) -> Error {
        let path: Vec<String> = std::iter::once(table)
            .chain(
                invalid
                    .key
                    .split(['.', '[', ']'])
                    .filter(|part| !part.is_empty()),
            )
            .map(str::to_owned)
            .collect();
        let problem = self.without_value(figment, &path, invalid.problem);
        self.key_error(&path, problem)
    }

    /// `problem`, unless it quotes what stands at `path`: serde's own messages may.
    fn without_value(&self, figment: &Figment, path: &[String], problem: String) -> String {
        // Shorter ones cannot be secrets and may well be words of the message.
        const SHORTEST_SECRET: usize = 8;
        let mut texts = Vec::new();
        if let Ok(value) = figment.find_value(&path.join(".")) {
            leaves(&value, &mut texts);
        }
        if texts
            .iter()
            .any(|text| text.len() >= SHORTEST_SECRET && problem.contains(text.as_str()))
        {
            "has a value that is not accepted here".to_owned()
        } else {
            problem
        }
    }

    fn key_error(&self, path: &[String], problem: String) -> Error {
        Error::Key {
            origin: self.origin(path),
            key: key_text(path),
            problem,
        }
    }

    /// The strongest layer that sets `path` or something under or over it.
    fn origin(&self, path: &[String]) -> Origin {
        let path_text = path.join(".");
        let related = |key: &str| {
            let under =
                |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.starts_with('.'));
            key == path_text || under(&path_text, key) || under(key, &path_text)
        };
        if let Some((_, flag, _)) = self.flags.0.iter().find(|(key, ..)| related(key)) {
            return Origin::Flag(flag);
        }
        if let Some((_, name, _)) = self.environment.iter().find(|(key, ..)| related(key)) {
            return Origin::Variable(name.clone());
        }
        match (&self.path, &self.document) {
            (Some(file), Some(document)) => Origin::File(file.clone(), line_of_key(document, path)),
            _ => Origin::Default,
        }
    }
}

/// A path as people write it: `services[1].name`.
fn key_text(path: &[String]) -> String {
    path.iter()
        .fold(String::new(), |text, part| match part.parse::<usize>() {
            Ok(index) => format!("{text}[{index}]"),
            Err(_) if text.is_empty() => part.clone(),
            Err(_) => format!("{text}.{part}"),
        })
}

fn parse_file(file: &Path) -> Result<toml_edit::Document<String>, Error> {
    let text = std::fs::read_to_string(file).map_err(|source| Error::Read {
        file: file.to_owned(),
        source,
    })?;
    toml_edit::Document::parse(text.clone()).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let Place { line, column } = Place::of(&text, start);
        Error::Syntax {
            file: file.to_owned(),
            line,
            column,
            message: error.message().lines().collect::<Vec<_>>().join("; "),
        }
    })
}

/// Variables that are configuration of role `T`, as keys. Those of other roles are passed over: a
/// machine may run several.
fn read_environment<T: Table>(
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<(String, String, Value)>, Error> {
    let mut found = Vec::new();
    for (name, value) in variables {
        let Some(path) = name
            .strip_prefix("WAVRY_")
            .filter(|rest| rest.contains("__"))
        else {
            continue;
        };
        let key = path.to_ascii_lowercase().replace("__", ".");
        let table = key.split('.').next().unwrap_or_default();
        if !TABLES.contains(&table) {
            return Err(Error::Key {
                problem: format!("unknown table; expected one of {}", TABLES.join(", ")),
                origin: Origin::Variable(name),
                key,
            });
        }
        if [T::NAME, "ops", "log"].contains(&table) {
            let value = value
                .parse()
                .unwrap_or_else(|never: std::convert::Infallible| match never {});
            found.push((key, name, value));
        }
    }
    found.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    Ok(found)
}

/// A layer for figment.
struct Layer(&'static str, Dict);

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.0)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.1.clone()))
    }
}

fn nested<'a, X: 'a>(values: impl Iterator<Item = &'a (String, X, Value)>) -> Dict {
    let figment = values.fold(Figment::new(), |figment, (key, _, value)| {
        figment.merge(Serialized::default(key, value))
    });
    figment.extract().unwrap_or_default()
}

fn table_values(table: &toml_edit::Table) -> Dict {
    table
        .iter()
        .filter_map(|(key, item)| Some((key.to_owned(), item_value(item)?)))
        .collect()
}

fn item_value(item: &toml_edit::Item) -> Option<Value> {
    Some(match item {
        toml_edit::Item::None => return None,
        toml_edit::Item::Value(value) => scalar(value),
        toml_edit::Item::Table(table) => table_values(table).into(),
        toml_edit::Item::ArrayOfTables(tables) => {
            tables.iter().map(table_values).collect::<Vec<_>>().into()
        }
    })
}

fn scalar(value: &toml_edit::Value) -> Value {
    match value {
        toml_edit::Value::String(text) => text.value().clone().into(),
        toml_edit::Value::Integer(number) => (*number.value()).into(),
        toml_edit::Value::Float(number) => (*number.value()).into(),
        toml_edit::Value::Boolean(flag) => (*flag.value()).into(),
        toml_edit::Value::Datetime(time) => time.value().to_string().into(),
        toml_edit::Value::Array(array) => array.iter().map(scalar).collect::<Vec<_>>().into(),
        toml_edit::Value::InlineTable(table) => table
            .iter()
            .map(|(key, value)| (key.to_owned(), scalar(value)))
            .collect::<Dict>()
            .into(),
    }
}

/// The line, from 1, of the deepest part of `path` that the file has; `None` if it has none of it.
fn line_of_key(document: &toml_edit::Document<String>, path: &[String]) -> Option<usize> {
    let mut item = document.as_item();
    let mut at = None;
    for part in path {
        let (span, next) = match item.as_table_like() {
            Some(table) => match table.get_key_value(part) {
                Some((key, next)) => (key.span(), next),
                None => break,
            },
            None => match part.parse::<usize>().ok().and_then(|index| item.get(index)) {
                Some(next) => (next.span(), next),
                None => break,
            },
        };
        at = span.or(at);
        item = next;
    }
    let start = at?.start;
    Some(document.raw().get(..start)?.matches('\n').count() + 1)
}

/// What was expected, in words that hold no value.
fn expectation(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => message.clone(),
        Kind::InvalidType(found, expected) => {
            format!("expected {expected}, found {}", type_of(found))
        }
        Kind::InvalidValue(_, expected) => format!("expected {expected}"),
        Kind::InvalidLength(found, expected) => format!("expected {expected}, found {found}"),
        Kind::UnknownVariant(_, expected) => format!("expected one of {}", expected.join(", ")),
        Kind::UnknownField(_, expected) => {
            format!("unknown key; expected one of {}", expected.join(", "))
        }
        Kind::MissingField(_) => "missing".to_owned(),
        Kind::DuplicateField(_) => "given twice".to_owned(),
        Kind::ISizeOutOfRange(_) | Kind::USizeOutOfRange(_) => "number out of range".to_owned(),
        Kind::Unsupported(found) | Kind::UnsupportedKey(found, _) => {
            format!("{} is not supported here", type_of(found))
        }
    }
}

fn type_of(found: &Actual) -> &'static str {
    match found {
        Actual::Bool(_) => "a boolean",
        Actual::Unsigned(_) | Actual::Signed(_) => "an integer",
        Actual::Float(_) => "a floating point number",
        Actual::Char(_) | Actual::Str(_) => "a string",
        Actual::Bytes(_) => "bytes",
        Actual::Seq => "an array",
        Actual::Map => "a table",
        _ => "something else",
    }
}

fn leaves(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::String(_, text) => texts.push(text.clone()),
        Value::Char(_, text) => texts.push(text.to_string()),
        Value::Dict(_, dict) => dict.values().for_each(|value| leaves(value, texts)),
        Value::Array(_, array) => array.iter().for_each(|value| leaves(value, texts)),
        Value::Num(_, number) => texts.extend(number_text(number)),
        Value::Bool(..) | Value::Empty(..) => {}
    }
}

/// A number as an error message would write it.
fn number_text(number: &figment::value::Num) -> Option<String> {
    let whole = number.to_u128().map(|n| n.to_string());
    let whole = whole.or_else(|| number.to_i128().map(|n| n.to_string()));
    whole.or_else(|| number.to_f64().map(|n| n.to_string()))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use serde::Deserialize;

    use super::*;

    const CANARY: &str = "canary-5ecret-value";

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Raw {
        listen: SocketAddr,
        name: String,
        limit: u32,
        services: Vec<Service>,
    }

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Service {
        name: wavry_proto::id::ServiceName,
    }

    impl Default for Raw {
        fn default() -> Self {
            Self {
                listen: ([127, 0, 0, 1], 1).into(),
                name: "built-in".into(),
                limit: 7,
                services: Vec::new(),
            }
        }
    }

    struct Gateway;

    impl Table for Gateway {
        const NAME: &'static str = "gateway";
        const OPS: &'static str = "127.0.0.1:9641";
        type Raw = Raw;
        type Config = Raw;
        fn validate(raw: Raw) -> Result<Raw, Invalid> {
            if raw.limit == 0 {
                return Err(Invalid::new("limit", "must be at least 1"));
            }
            Ok(raw)
        }
    }

    fn load_with(
        text: &str,
        environment: &[(&str, &str)],
        flags: &Flags,
    ) -> (PathBuf, Result<Loaded<Gateway>, Error>) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("gateway.toml");
        std::fs::write(&file, text).unwrap();
        let environment = environment
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()));
        let loaded = load(Some(&file), environment, flags);
        (file, loaded)
    }

    /// The error's text, with the file's name taken off it.
    fn error_of(text: &str, environment: &[(&str, &str)]) -> String {
        let (file, loaded) = load_with(text, environment, &Flags::default());
        let error = match loaded {
            Ok(_) => panic!("{text:?} was taken"),
            Err(error) => error,
        };
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(CANARY), "shows the value: {shown}");
        error
            .to_string()
            .replace(&file.display().to_string(), "FILE")
    }

    #[test]
    fn flags_win_over_environment_over_file_over_defaults() {
        let mut flags = Flags::default();
        flags.set("gateway.limit", "--limit", Some(40u32));
        let (_, loaded) = load_with(
            "[gateway]\nlimit = 20\nname = 'file'\n[ops]\nlisten = '127.0.0.1:2'\n",
            &[
                ("WAVRY_GATEWAY__LIMIT", "30"),
                ("WAVRY_GATEWAY__LISTEN", "127.0.0.1:3"),
                ("WAVRY_MASTER__LISTEN", "passed over"),
                ("WAVRY_MASTER_KEY_FILE", "/not/configuration"),
            ],
            &flags,
        );
        let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(loaded.role.limit, 40);
        assert_eq!(loaded.role.listen, ([127, 0, 0, 1], 3).into());
        assert_eq!(loaded.role.name, "file");
        assert_eq!(loaded.ops.listen, ([127, 0, 0, 1], 2).into());
    }

    #[test]
    fn without_a_file_the_defaults_hold() {
        let loaded = load::<Gateway>(None, [], &Flags::default()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(loaded.role.name, "built-in");
        assert_eq!(loaded.ops.listen, Gateway::OPS.parse().unwrap());
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_known_ones() {
        let text = format!("[gateway]\nname = 'x'\n\nlisen = '{CANARY}'\n");
        assert_eq!(
            error_of(&text, &[]),
            "FILE:4: gateway.lisen: unknown key; expected one of listen, name, limit, services"
        );
    }

    #[test]
    fn an_unknown_table_is_named_with_its_line() {
        assert_eq!(
            error_of(&format!("[gateway]\n[gatway]\nname = '{CANARY}'\n"), &[]),
            "FILE:2: gatway: unknown table; expected gateway, ops or log"
        );
    }

    #[test]
    fn a_wrong_type_is_named_with_its_line_and_what_was_expected() {
        assert_eq!(
            error_of(&format!("[gateway]\nlimit = '{CANARY}'\n"), &[]),
            "FILE:2: gateway.limit: expected u32, found a string"
        );
        assert_eq!(
            error_of("[gateway]\nname = 987654321\n", &[]),
            "FILE:2: gateway.name: expected a string, found an integer"
        );
    }

    #[test]
    fn an_element_of_an_array_is_named_with_its_own_line() {
        let text = "[gateway]\n[[gateway.services]]\nname = 'a'\n[[gateway.services]]\nnam = 'b'\n";
        assert_eq!(
            error_of(text, &[]),
            "FILE:5: gateway.services[1].nam: unknown key; expected one of name"
        );
        let text = format!(
            "[gateway]\nservices = [\n  {{ name = 'a' }},\n  {{ name = 'B{CANARY}' }},\n]\n"
        );
        assert!(
            error_of(&text, &[])
                .starts_with("FILE:4: gateway.services[1].name: a service name must be")
        );
    }

    #[test]
    fn a_text_that_does_not_parse_is_not_shown() {
        assert_eq!(
            error_of(&format!("[gateway]\nlisten = '{CANARY}'\n"), &[]),
            "FILE:2: gateway.listen: invalid socket address syntax"
        );
    }

    #[test]
    fn a_value_that_is_no_good_is_named_with_its_line() {
        assert_eq!(
            error_of("[gateway]\nname = 'x'\nlimit = 0\n", &[]),
            "FILE:3: gateway.limit: must be at least 1"
        );
    }

    #[test]
    fn a_message_that_quotes_the_value_is_replaced() {
        let problem = error_of(&format!("[log]\nfilter = '{CANARY}=={CANARY}'\n"), &[]);
        assert!(problem.starts_with("FILE:2: log.filter: "), "{problem}");
    }

    #[test]
    fn broken_toml_is_named_with_line_and_column_and_without_the_line() {
        let problem = error_of(&format!("[gateway]\nname = '{CANARY}\nlimit = 3\n"), &[]);
        assert!(problem.starts_with("FILE:2:"), "{problem}");
        let problem = error_of(&format!("[gateway]\nname = {CANARY}\n"), &[]);
        assert!(problem.starts_with("FILE:2:"), "{problem}");
        let problem = error_of("[gateway]\nlimit = 1\nlimit = 2\n", &[]);
        assert!(problem.starts_with("FILE:3:1: not valid TOML"), "{problem}");
    }

    #[test]
    fn a_bad_variable_is_named() {
        assert_eq!(
            error_of("", &[("WAVRY_GATEWAY__LIMIT", CANARY)]),
            "environment variable WAVRY_GATEWAY__LIMIT: gateway.limit: expected u32, found a string"
        );
        assert_eq!(
            error_of("", &[("WAVRY_GATEWEY__LIMIT", CANARY)]),
            "environment variable WAVRY_GATEWEY__LIMIT: gatewey.limit: unknown table; expected one \
             of master, keyvault, gateway, relay, ops, log"
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = load::<Gateway>(Some(Path::new("/no/such/file")), [], &Flags::default());
        assert_eq!(
            error.map(|_| ()).unwrap_err().to_string(),
            "/no/such/file cannot be read"
        );
    }
}
