//! From the text of a policy to its rules.

use std::{collections::BTreeMap, fmt, ops::Range};

use hcl::edit::{
    Span,
    expr::{Expression, ObjectKey},
    parser,
    structure::{Attribute, Block, Body, Structure},
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

use super::{Capability, Grant, MAX_RULES, MAX_TEXT, Policy, Rule, pattern::Template};
use crate::keyvault::ttl::Ttl;

/// Where a policy is wrong, and how. Nothing of its text is in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy, line {line}, column {column}: {what}")]
pub struct Malformed {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub what: &'static str,
}

pub(super) fn read(text: &str) -> Result<Policy, Malformed> {
    let whole = |what| Malformed {
        line: 1,
        column: 1,
        what,
    };
    if text.len() > MAX_TEXT {
        return Err(whole("longer than 65,536 bytes"));
    }
    let rules = match text.trim_start().starts_with('{') {
        true => read_json(text)?,
        false => read_hcl(text)?,
    };
    if rules.len() > MAX_RULES {
        return Err(whole("more than 512 paths"));
    }
    Ok(Policy { rules })
}

/// The old way to say it, in one word.
fn one_word(word: &str) -> Option<Vec<Capability>> {
    use Capability::{Create, Delete, Deny, List, Read, Sudo, Update};
    match word {
        "deny" => Some(vec![Deny]),
        "read" => Some(vec![Read, List]),
        "write" => Some(vec![Create, Read, Update, Delete, List]),
        "sudo" => Some(vec![Create, Read, Update, Delete, List, Sudo]),
        _ => None,
    }
}

fn pattern(text: &str) -> Result<Template, &'static str> {
    if text.contains("+*") {
        return Err("\"+*\" in a path");
    }
    Template::parse(text).ok_or("braces in the path that name nothing of a unit")
}

/// Names of parameters are told apart without regard to capitals.
fn lowercased(parameters: BTreeMap<String, Vec<Value>>) -> BTreeMap<String, Vec<Value>> {
    let lower = |(name, values): (String, Vec<Value>)| (name.to_ascii_lowercase(), values);
    parameters.into_iter().map(lower).collect()
}

fn checked_wrapping(grant: &Grant) -> Result<(), &'static str> {
    match (grant.min_wrapping, grant.max_wrapping) {
        (Some(min), Some(max)) if min > max => {
            Err("min_wrapping_ttl is more than max_wrapping_ttl")
        }
        _ => Ok(()),
    }
}

// HCL ------------------------------------------------------------------------------------------

fn read_hcl(text: &str) -> Result<Vec<Rule>, Malformed> {
    let body = parser::parse_body(text).map_err(|error| Malformed {
        line: error.location().line(),
        column: error.location().column(),
        what: "not HCL",
    })?;
    Hcl { text }.rules(&body)
}

struct Hcl<'a> {
    text: &'a str,
}

impl Hcl<'_> {
    fn wrong(&self, at: Option<Range<usize>>, what: &'static str) -> Malformed {
        let before = at.and_then(|at| self.text.get(..at.start)).unwrap_or("");
        let line_start = before.rfind('\n').map_or(0, |line| line + 1);
        Malformed {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            what,
        }
    }

    fn rules(&self, body: &Body) -> Result<Vec<Rule>, Malformed> {
        let mut rules = Vec::new();
        for structure in body.iter() {
            match structure {
                Structure::Attribute(name) if name.has_key("name") => (),
                Structure::Block(block) if block.has_ident("path") => rules.push(self.rule(block)?),
                other => return Err(self.wrong(other.span(), "expected path \"…\" { … }")),
            }
        }
        Ok(rules)
    }

    fn rule(&self, block: &Block) -> Result<Rule, Malformed> {
        let here = |what| self.wrong(block.span(), what);
        let [label] = &block.labels[..] else {
            return Err(here("a path rule has one path"));
        };
        let mut grant = Grant::default();
        let mut capabilities = Vec::new();
        for structure in block.body.iter() {
            match structure {
                Structure::Attribute(attribute) => {
                    self.attribute(attribute, &mut grant, &mut capabilities)?;
                }
                // The older HCL writes maps as blocks, too.
                Structure::Block(map) if map.labels.is_empty() => {
                    let mut values = BTreeMap::new();
                    for structure in map.body.iter() {
                        let Structure::Attribute(one) = structure else {
                            return Err(self.wrong(structure.span(), "expected a parameter"));
                        };
                        values.insert(one.key.as_str().to_owned(), self.values(&one.value)?);
                    }
                    match map.ident.as_str() {
                        "allowed_parameters" => grant.allowed = Some(lowercased(values)),
                        "denied_parameters" => grant.denied = lowercased(values),
                        _ => return Err(self.wrong(map.span(), "not known in a path rule")),
                    }
                }
                other => return Err(self.wrong(other.span(), "not known in a path rule")),
            }
        }
        grant.capabilities = capabilities.into_iter().collect();
        checked_wrapping(&grant).map_err(here)?;
        Ok(Rule {
            pattern: pattern(label.as_str()).map_err(here)?,
            grant,
        })
    }

    fn attribute(
        &self,
        attribute: &Attribute,
        grant: &mut Grant,
        capabilities: &mut Vec<Capability>,
    ) -> Result<(), Malformed> {
        let value = &attribute.value;
        let wrong = |what| self.wrong(value.span().or_else(|| attribute.span()), what);
        match attribute.key.as_str() {
            "capabilities" => {
                for text in self.texts(value)? {
                    let known = super::CAPABILITIES.iter().find(|(_, name)| *name == text);
                    let known = known.ok_or_else(|| wrong("a capability that is not known"))?;
                    capabilities.push(known.0);
                }
            }
            "policy" => {
                let word = value.as_str().and_then(one_word);
                capabilities
                    .extend(word.ok_or_else(|| wrong("expected deny, read, write or sudo"))?);
            }
            "allowed_parameters" => grant.allowed = Some(lowercased(self.parameters(value)?)),
            "denied_parameters" => grant.denied = lowercased(self.parameters(value)?),
            "required_parameters" => {
                let names = self.texts(value)?;
                grant.required = names.iter().map(|name| name.to_ascii_lowercase()).collect();
            }
            "min_wrapping_ttl" => grant.min_wrapping = Some(self.seconds(value)?),
            "max_wrapping_ttl" => grant.max_wrapping = Some(self.seconds(value)?),
            "comment" => (),
            _ => return Err(self.wrong(attribute.span(), "not known in a path rule")),
        }
        Ok(())
    }

    fn texts(&self, value: &Expression) -> Result<Vec<String>, Malformed> {
        let wrong = || self.wrong(value.span(), "expected an array of texts");
        let array = value.as_array().ok_or_else(wrong)?;
        let text = |item: &Expression| item.as_str().map(str::to_owned).ok_or_else(wrong);
        array.iter().map(text).collect()
    }

    fn parameters(&self, value: &Expression) -> Result<BTreeMap<String, Vec<Value>>, Malformed> {
        let wrong = || self.wrong(value.span(), "expected { name = [values] }");
        let object = value.as_object().ok_or_else(wrong)?;
        let member = |(key, value): (&ObjectKey, &hcl::edit::expr::ObjectValue)| {
            let name = match key {
                ObjectKey::Ident(ident) => ident.as_str(),
                ObjectKey::Expression(expression) => expression.as_str().ok_or_else(wrong)?,
            };
            Ok((name.to_owned(), self.values(value.expr())?))
        };
        object.iter().map(member).collect()
    }

    fn values(&self, value: &Expression) -> Result<Vec<Value>, Malformed> {
        let wrong = || self.wrong(value.span(), "expected an array of values");
        let array = value.as_array().ok_or_else(wrong)?;
        array
            .iter()
            .map(|item| json(item).ok_or_else(wrong))
            .collect()
    }

    fn seconds(&self, value: &Expression) -> Result<u64, Malformed> {
        let span = match value {
            Expression::String(text) => Ttl::parse(text).ok(),
            Expression::Number(number) => number.as_u64().map(Ttl),
            _ => None,
        };
        let wrong = || self.wrong(value.span(), "expected a time span like 5m");
        Ok(span.ok_or_else(wrong)?.0)
    }
}

/// A value that a parameter may be compared with.
fn json(value: &Expression) -> Option<Value> {
    match value {
        Expression::Null(_) => Some(Value::Null),
        Expression::Bool(value) => Some(Value::Bool(*value.value())),
        Expression::String(text) => Some(Value::String(text.value().clone())),
        Expression::Number(number) => serde_json::to_value(number.value()).ok(),
        Expression::Array(array) => array
            .iter()
            .map(json)
            .collect::<Option<_>>()
            .map(Value::Array),
        _ => None,
    }
}

// JSON -----------------------------------------------------------------------------------------

fn read_json(text: &str) -> Result<Vec<Rule>, Malformed> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Text {
        #[serde(default)]
        path: Rules,
        #[serde(default)]
        #[expect(dead_code, reason = "taken and not used, as in HCL")]
        name: Option<String>,
    }
    let text: Text = serde_json::from_str(text).map_err(|error| Malformed {
        line: error.line(),
        column: error.column().max(1),
        what: match error.is_data() {
            true => "not what a policy has here",
            false => "not JSON",
        },
    })?;
    Ok(text.path.0)
}

/// Paths with their rules, an object or an array of such.
#[derive(Default)]
struct Rules(Vec<Rule>);

impl<'de> Deserialize<'de> for Rules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Rules;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("paths with their rules")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Rules, A::Error> {
                let mut rules = Vec::new();
                while let Some(path) = map.next_key::<String>()? {
                    let pattern = pattern(&path).map_err(serde::de::Error::custom)?;
                    let grant = map.next_value_seed(GrantReader)?;
                    rules.push(Rule { pattern, grant });
                }
                Ok(Rules(rules))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Rules, A::Error> {
                let mut rules = Vec::new();
                while let Some(more) = seq.next_element::<Object>()? {
                    rules.extend(more.0.0);
                }
                Ok(Rules(rules))
            }
        }
        /// One object, so that arrays do not nest.
        struct Object(Rules);
        impl<'de> Deserialize<'de> for Object {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_map(Reader).map(Self)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

struct GrantReader;

impl<'de> DeserializeSeed<'de> for GrantReader {
    type Value = Grant;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Grant, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Text {
            #[serde(default)]
            capabilities: Vec<Capability>,
            policy: Option<String>,
            allowed_parameters: Option<BTreeMap<String, Vec<Value>>>,
            #[serde(default)]
            denied_parameters: BTreeMap<String, Vec<Value>>,
            #[serde(default)]
            required_parameters: Vec<String>,
            min_wrapping_ttl: Option<Ttl>,
            max_wrapping_ttl: Option<Ttl>,
            #[expect(dead_code, reason = "taken and not used")]
            comment: Option<String>,
        }
        let text = Text::deserialize(deserializer)?;
        let mut capabilities = text.capabilities;
        if let Some(word) = text.policy {
            let word = one_word(&word);
            capabilities
                .extend(word.ok_or_else(|| serde::de::Error::custom("not a policy's word"))?);
        }
        let lower = |name: &String| name.to_ascii_lowercase();
        let grant = Grant {
            capabilities: capabilities.into_iter().collect(),
            allowed: text.allowed_parameters.map(lowercased),
            denied: lowercased(text.denied_parameters),
            required: text.required_parameters.iter().map(lower).collect(),
            min_wrapping: text.min_wrapping_ttl.map(|ttl| ttl.0),
            max_wrapping: text.max_wrapping_ttl.map(|ttl| ttl.0),
        };
        checked_wrapping(&grant).map_err(serde::de::Error::custom)?;
        Ok(grant)
    }
}
