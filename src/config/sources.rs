//! Where settings come from: the documented defaults, a file, the environment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{DEFAULTS, InvalidSettings, Settings};

/// What the names of variables begin with.
const PREFIX: &str = "FLOODGATE_";
/// Settings whose values are never shown. A test compares it with the types of the fields.
const SECRETS: [&str; 4] = ["amqp_url", "redis_url", "database_url", "api.jwt_secret"];
/// Names that differ by more than this share of their letters are not suggested.
const ALIKE: f64 = 0.7;

/// Where the value of a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The documented default.
    Default,
    /// A file with settings.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// A file that holds nothing but the value, named by an environment variable.
    ValueFile {
        /// The variable.
        variable: String,
        /// The file.
        path: PathBuf,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => write!(f, "{name}"),
            Self::ValueFile { variable, path } => write!(f, "{variable}={}", path.display()),
        }
    }
}

/// Every setting by its name, such as `worker.max_batch`, with its value and origin.
#[derive(Debug)]
pub struct Sources(BTreeMap<String, (Value, Origin)>);

/// A setting as it is shown.
#[derive(Debug)]
pub struct Shown {
    /// Its name, such as `worker.max_batch`.
    pub name: String,
    /// Its value. Secrets are hidden.
    pub value: String,
    /// Where the value comes from.
    pub origin: Origin,
}

impl Sources {
    /// Defaults, then `file`, then the environment.
    pub fn read(file: Option<&Path>) -> Result<Self, InvalidSettings> {
        Self::of(file, std::env::vars_os())
    }

    pub(super) fn of(
        file: Option<&Path>,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, InvalidSettings> {
        let defaults: Table = DEFAULTS
            .parse()
            .unwrap_or_else(|error| unreachable!("tests read the defaults: {error}"));
        let mut sources = Self(BTreeMap::new());
        for (name, value) in flat(defaults) {
            sources.0.insert(name, (value, Origin::Default));
        }
        if let Some(path) = file {
            sources.add_file(path)?;
        }
        for (name, value) in variables {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with(PREFIX) && !is_of_kubernetes(&name) {
                sources.add_variable(name, value)?;
            }
        }
        Ok(sources)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), InvalidSettings> {
        let origin = Origin::File(path.to_owned());
        let text = read(path).map_err(|problem| bad(&origin, problem))?;
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            // The error itself would show the line, and what stands there may be a secret.
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            bad(&origin, format!("line {line} is not TOML: {}", error.message()))
        })?;
        for (name, value) in flat(table) {
            let Some((expected, _)) = self.0.get(&name) else {
                let names = self.0.keys().map(String::as_str);
                return Err(bad(
                    &origin,
                    format!("{name} is no setting{}", suggestion(&name, names)),
                ));
            };
            if expected.type_str() != value.type_str() {
                let (given, wanted) = (value.type_str(), wanted(expected));
                return Err(bad(&origin, format!("{name} is of type {given}; accepted: {wanted}")));
            }
            self.0.insert(name, (value, origin.clone()));
        }
        Ok(())
    }

    fn add_variable(&mut self, variable: String, value: OsString) -> Result<(), InvalidSettings> {
        let mut origin = Origin::Variable(variable.clone());
        let mut text = value.into_string().map_err(|_| bad(&origin, "the value is not UTF-8"))?;
        if text.is_empty() {
            return Ok(());
        }
        let known =
            |variable: &str| self.0.keys().find(|name| variable_of(name) == variable).cloned();
        let name = if let Some(name) = known(&variable) {
            name
        } else if let Some(name) = variable.strip_suffix("_FILE").and_then(known) {
            let path = PathBuf::from(text);
            origin = Origin::ValueFile { variable, path: path.clone() };
            text = read(&path).map_err(|problem| bad(&origin, problem))?;
            // Editors and `echo` end the line.
            text.truncate(text.trim_end_matches(['\r', '\n']).len());
            name
        } else {
            let names: Vec<String> = self.0.keys().map(|name| variable_of(name)).collect();
            let suggestion = suggestion(&variable, names.iter().map(String::as_str));
            return Err(bad(&origin, format!("there is no such setting{suggestion}")));
        };
        let (expected, earlier) = &self.0[&name];
        if let Origin::Variable(other) | Origin::ValueFile { variable: other, .. } = earlier {
            return Err(bad(&origin, format!("{other} is set too; accepted: one of them")));
        }
        let value = typed(&text, expected)
            .ok_or_else(|| bad(&origin, format!("the value is not {}", wanted(expected))))?;
        self.0.insert(name, (value, origin));
        Ok(())
    }

    /// The settings, checked.
    pub fn settings(&self) -> Result<Settings, InvalidSettings> {
        let mut table = Table::new();
        for (name, (value, _)) in &self.0 {
            match name.split_once('.') {
                None => drop(table.insert(name.clone(), value.clone())),
                Some((section, name)) => {
                    let section = table.entry(section).or_insert_with(|| Table::new().into());
                    section
                        .as_table_mut()
                        .map(|section| section.insert(name.to_owned(), value.clone()));
                }
            }
        }
        let mut settings: Settings = serde_path_to_error::deserialize(Value::Table(table))
            .map_err(|error| {
                let name = error.path().to_string();
                let problem = error.into_inner().message().to_owned();
                let origin = self.0.get(&name).map_or(&Origin::Default, |(_, origin)| origin);
                bad(origin, format!("{name}: {problem}"))
            })?;
        settings.check()?;
        settings.add_database_tls()?;
        Ok(settings)
    }

    /// Every setting, as it may be shown.
    pub fn shown(&self) -> Vec<Shown> {
        let shown = self.0.iter().map(|(name, (value, origin))| {
            let value = match value {
                Value::String(text) if text.is_empty() => String::new(),
                _ if SECRETS.contains(&name.as_str()) => "(hidden)".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            Shown { name: name.clone(), value, origin: origin.clone() }
        });
        shown.collect()
    }
}

fn bad(origin: &Origin, problem: impl Into<String>) -> InvalidSettings {
    InvalidSettings::Unreadable { origin: origin.clone(), problem: problem.into() }
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("can't be read: {error}"))
}

/// The settings of `table` by their names.
fn flat(table: Table) -> impl Iterator<Item = (String, Value)> {
    table.into_iter().flat_map(|(name, value)| match value {
        Value::Table(section) => section
            .into_iter()
            .map(|(inner, value)| (format!("{name}.{inner}"), value))
            .collect::<Vec<_>>(),
        value => vec![(name, value)],
    })
}

/// The variable that a setting can be given by.
fn variable_of(name: &str) -> String {
    format!("{PREFIX}{}", name.replace('.', "__").to_ascii_uppercase())
}

/// What Kubernetes sets in every pod for a Service called `floodgate`, or one whose name begins with it
/// (its page on Services, "environment variables").
fn is_of_kubernetes(variable: &str) -> bool {
    variable.ends_with("_SERVICE_HOST")
        || variable.contains("_SERVICE_PORT")
        || variable.ends_with("_PORT")
        || variable.contains("_PORT_")
}

/// `text` as a value of the type of `expected`.
fn typed(text: &str, expected: &Value) -> Option<Value> {
    match expected {
        Value::Integer(_) => text.trim().parse().ok().map(Value::Integer),
        Value::Boolean(_) => text.trim().parse().ok().map(Value::Boolean),
        Value::Array(_) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
        }
        _ => Some(Value::String(text.to_owned())),
    }
}

/// What is accepted where the default is `expected`.
fn wanted(expected: &Value) -> &'static str {
    match expected {
        Value::Integer(_) => "a whole number",
        Value::Boolean(_) => "true or false",
        Value::Array(_) => "a list of texts",
        _ => "a text",
    }
}

/// The one of `names` that `given` is most like, as a question.
fn suggestion<'a>(given: &str, names: impl Iterator<Item = &'a str>) -> String {
    let letters = |name: &str| name.replace(['_', '.'], "").to_ascii_lowercase();
    let likeness =
        |name: &str| strsim::normalized_damerau_levenshtein(&letters(given), &letters(name));
    let nearest = names.map(|name| (likeness(name), name)).max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, name)) if likeness >= ALIKE => format!("; did you mean {name}?"),
        _ => "; `floodgate settings` prints all".to_owned(),
    }
}

#[cfg(test)]
mod fuzz {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing::inputs;

    proptest! {
        #[test]
        fn fuzz_settings(text in inputs("settings"), name in "FLOODGATE_[A-Z_]{1,20}", value in "\\PC{0,20}") {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("floodgate.toml");
            std::fs::write(&path, text).unwrap();
            let variable = (OsString::from(name), OsString::from(value));
            let settings = Sources::of(Some(&path), [variable].into_iter());
            if let Err(error) = settings.and_then(|sources| sources.settings()) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }
}
