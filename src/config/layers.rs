//! Merges file, environment and flags as layers over the defaults, and remembers the origin of each value. `load` adds
//! the layers; `validate` asks for origins.
//!
//! The tree of defaults defines which settings exist and which type each has. Text from the environment and from flags
//! is parsed as the type of its setting. For example, a hub token that consists of digits stays a string, and `5s` is
//! rejected where a number is expected.

use std::collections::BTreeMap;
use std::path::Path;

use figment::providers::Serialized;
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::raw::HIDDEN;
use super::{ConfigError, RawConfig};

/// Settings whose values are never shown.
const SECRETS: [&str; 2] = ["hub.token", "auth.keys"];

/// The layers merged so far; later ones win.
pub(super) struct Layers {
    figment: Figment,
    defaults: Value,
    /// Name of the variable or flag that set each setting, by `section.key`.
    names: BTreeMap<String, String>,
}

/// One layer of values. Its name identifies the origin: a file, or [`NAMED`].
struct Layer {
    name: String,
    values: Dict,
}

/// Metadata name of layers that hold one variable or flag each; `Layers::names` records which one.
const NAMED: &str = "named";

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

impl Layers {
    /// Starts with the defaults alone.
    pub(super) fn new() -> Self {
        let raw = RawConfig::default();
        let defaults = Value::serialize(&raw).expect("settings are plain data");
        let figment = Figment::from(Serialized::defaults(raw));
        Self { figment, defaults, names: BTreeMap::new() }
    }

    /// Adds a settings file as the top layer.
    ///
    /// # Errors
    /// `File` or `Syntax`. Unknown names and wrong types are found later, by [`extract`](Self::extract).
    pub(super) fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
        // Report line number and error, but not the line itself: it may hold a secret.
        let values = toml::from_str(&text).map_err(|error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = 1 + before.matches('\n').count();
            let reason = format!("line {line}: {}", error.message());
            ConfigError::Syntax { path: path.to_owned(), reason }
        })?;
        self.merge(format!("from {}", path.display()), values);
        Ok(())
    }

    /// Adds one value as the top layer. `text` comes from the variable or flag called `name`.
    ///
    /// # Errors
    /// `Unknown`, or `Invalid` when the text does not have the type of the setting.
    pub(super) fn add_text(
        &mut self,
        path: &str,
        text: &str,
        name: &str,
    ) -> Result<(), ConfigError> {
        let origin = format!("from {name}");
        let Some(like) = self.defaults.find_ref(path).filter(|like| like.as_dict().is_none())
        else {
            return Err(self.unknown(path, origin));
        };
        let value = read_as(text, like).map_err(|accepted| ConfigError::Invalid {
            setting: path.to_owned(),
            value: shown(path, || format!("\"{text}\"")),
            origin,
            accepted,
        })?;
        let values = figment::util::nest(path, value);
        self.names.insert(path.to_owned(), name.to_owned());
        self.merge(NAMED.to_owned(), values.into_dict().expect("a path has at least one segment"));
        Ok(())
    }

    /// Adds a list of models, each as `[NAME=]SRC`, as the top layer. It replaces the lists of all lower layers.
    pub(super) fn add_models(&mut self, sources: &[&str], name: &str) {
        let models: Vec<Value> = sources
            .iter()
            .map(|source| Value::from(Dict::from([("source".to_owned(), Value::from(*source))])))
            .collect();
        self.names.insert("models".to_owned(), name.to_owned());
        self.merge(NAMED.to_owned(), Dict::from([("models".to_owned(), Value::from(models))]));
    }

    fn merge(&mut self, name: String, values: Dict) {
        self.figment = std::mem::take(&mut self.figment).merge(Layer { name, values });
    }

    /// Merges all layers into one configuration.
    ///
    /// # Errors
    /// The first unknown name or value of the wrong type.
    pub(super) fn extract(&self) -> Result<RawConfig, ConfigError> {
        self.figment.extract().map_err(|error| self.explain(&error))
    }

    /// Describes the origin of a setting's value, for messages: "from ..." or "the default".
    pub(super) fn origin(&self, path: &str) -> String {
        // The list of models is replaced as a whole, so its fields have the same origin as the list.
        let path = if path.starts_with("models") { "models" } else { path };
        match self.figment.find_metadata(path).map(|metadata| metadata.name.as_ref()) {
            Some(NAMED) => format!("from {}", self.names.get(path).map_or(NAMED, String::as_str)),
            Some(file) if file.starts_with("from ") => file.to_owned(),
            _ => "the default".to_owned(),
        }
    }

    /// Creates an `Invalid` error about the current value of a setting.
    pub(super) fn invalid(&self, path: &str, accepted: impl Into<String>) -> ConfigError {
        let value = self
            .figment
            .find_value(path)
            .map_or_else(|_| "nothing".to_owned(), |value| as_written(&value));
        ConfigError::Invalid {
            setting: path.to_owned(),
            value: shown(path, || value),
            origin: self.origin(path),
            accepted: accepted.into(),
        }
    }

    /// True if a setting of this name exists.
    pub(super) fn has(&self, path: &str) -> bool {
        self.defaults.find_ref(path).is_some()
    }

    /// Guesses which setting `name` means: `server_listen` and `listen` both mean `server.listen`. `None` if ambiguous.
    pub(super) fn names_like(&self, name: &str) -> Option<String> {
        let sections = self.defaults.as_dict()?;
        let keys =
            sections.iter().filter_map(|(section, values)| Some((section, values.as_dict()?)));
        let paths = keys.flat_map(|(section, values)| {
            values.keys().map(move |key| (format!("{section}.{key}"), key))
        });
        let mut alike = paths
            .filter(|(path, key)| path.replace('.', "_") == name || *key == name)
            .map(|(path, _)| path);
        alike.next().filter(|_| alike.next().is_none())
    }

    fn unknown(&self, path: &str, origin: String) -> ConfigError {
        let (section, key) = path.split_once('.').unwrap_or((path, ""));
        let names = |dict: &Dict| dict.keys().cloned().collect::<Vec<_>>().join(", ");
        let accepted = match self.defaults.find_ref(section).and_then(Value::as_dict) {
            Some(dict) if !key.is_empty() => format!("in {section}: {}", names(dict)),
            _ => {
                let sections = self.defaults.as_dict().map(names).unwrap_or_default();
                format!("a key of one of the sections {sections}")
            }
        };
        ConfigError::Unknown { setting: path.to_owned(), origin, accepted }
    }

    /// Translates figment's error. Only values of files can cause it: text was parsed by type before it became a layer.
    fn explain(&self, error: &figment::Error) -> ConfigError {
        use figment::error::Kind;

        let path = error.path.join(".");
        if let Kind::UnknownField(_, expected) = &error.kind {
            let (origin, accepted) = (self.origin(&path), expected.join(", "));
            return ConfigError::Unknown { setting: path, origin, accepted };
        }
        if let Kind::MissingField(field) = &error.kind {
            let path = format!("{path}.{field}");
            return self.invalid(&path, "a value (this setting has no default)");
        }
        if let Kind::InvalidType(_, accepted) | Kind::InvalidValue(_, accepted) = &error.kind {
            return self.invalid(&path, in_words(accepted));
        }
        self.invalid(&path, "another value")
    }
}

/// Translates the type that serde expected into the words of a settings file.
fn in_words(expected: &str) -> &str {
    match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number, not negative",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" => "a string in quotes",
        "a sequence" => "a list in square brackets",
        _ if expected.contains("struct ") || expected.contains("map") => "a table",
        _ => expected,
    }
}

/// Formats a value as a settings file would spell it.
fn as_written(value: &Value) -> String {
    let list = |values: &[Value]| values.iter().map(as_written).collect::<Vec<_>>().join(", ");
    match value {
        Value::String(_, text) => format!("\"{text}\""),
        Value::Char(_, char) => format!("\"{char}\""),
        Value::Bool(_, flag) => flag.to_string(),
        Value::Num(_, number) => {
            let unsigned = number.to_u128().map(|number| number.to_string());
            let signed = || number.to_i128().map(|number| number.to_string());
            let float = || number.to_f64().map(|number| number.to_string());
            unsigned.or_else(signed).or_else(float).unwrap_or_default()
        }
        Value::Array(_, values) => format!("[{}]", list(values)),
        Value::Empty(..) | Value::Dict(..) => "a table".to_owned(),
    }
}

/// Formats the value of the setting `path` for an error message; a secret value stays hidden.
fn shown(path: &str, value: impl FnOnce() -> String) -> String {
    // The elements of a secret list are secret too.
    let is_secret = SECRETS.iter().any(|secret| {
        path.strip_prefix(secret).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    });
    if is_secret { HIDDEN.to_owned() } else { value() }
}

/// Parses text as a value of the same type as `like`. The error describes the accepted values.
fn read_as(text: &str, like: &Value) -> Result<Value, String> {
    match like {
        Value::Num(..) => text
            .parse::<u64>()
            .map(Value::from)
            .map_err(|_| "a whole number, not negative".to_owned()),
        Value::Bool(..) => {
            text.parse::<bool>().map(Value::from).map_err(|_| "true or false".to_owned())
        }
        Value::Array(_, defaults) => {
            let element = defaults.first().cloned().unwrap_or_else(|| Value::from(""));
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            let list: Result<Vec<Value>, String> =
                parts.map(|part| read_as(part, &element)).collect();
            list.map(Value::from).map_err(|accepted| format!("{accepted}, separated by commas"))
        }
        Value::String(..) | Value::Char(..) | Value::Empty(..) | Value::Dict(..) => {
            Ok(Value::from(text))
        }
    }
}
