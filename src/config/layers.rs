//! Merges file, environment and flags as layers over the defaults, and remembers the origin of each value. `load` adds
//! the layers; `validate` fills the settings types from them and asks for origins.
//!
//! The tree of defaults defines which settings exist and which type each has. Text from the environment and from flags
//! is parsed as the type of its setting. For example, a hub token that consists of digits stays a string, and `5s` is
//! rejected where a number is expected.

use std::collections::BTreeMap;
use std::path::Path;

use figment::providers::Serialized;
use figment::value::{Dict, Map, Num, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::ConfigError;
use super::sections::{HIDDEN, RawConfig};
use crate::settings::Section;

/// Upper bound of all times in milliseconds: one day. Longer times are probably mistakes in the unit.
const MAX_MILLIS: u64 = 24 * 3600 * 1000;

/// The layers merged so far; a later layer overrides the earlier ones.
pub(super) struct Layers {
    figment: Figment,
    /// The result of merging all layers.
    merged: Value,
    /// All sections with their defaults.
    raw: RawConfig,
    /// The values of `raw` as a tree.
    defaults: Value,
    /// For each setting (`section.key`), the name of the variable or flag that set it.
    names: BTreeMap<String, String>,
}

/// One layer of values. Its name identifies the origin: a file, or [`NAMED`].
struct Layer {
    name: String,
    values: Dict,
}

/// Metadata name of layers that contain one variable or flag each; `Layers::names` records which one.
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
    /// Creates the layers with the defaults alone.
    pub(super) fn new() -> Self {
        let raw = RawConfig::default();
        let defaults = Value::serialize(&raw).expect("settings are plain data");
        let figment = Figment::from(Serialized::defaults(&raw));
        Self { figment, merged: defaults.clone(), raw, defaults, names: BTreeMap::new() }
    }

    /// Adds a settings file as the top layer.
    ///
    /// # Errors
    /// `File` or `Syntax`. Unknown names and wrong types are found later, by [`check_names`](Self::check_names) and
    /// [`read`](Self::read).
    pub(super) fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
        // Report line number and error, but not the line itself: the line may contain a secret.
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
            value: self.shown(path, || format!("\"{text}\"")),
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

    /// Sets a text that is empty in all layers. Error messages still report its origin as the default.
    pub(super) fn fill_if_empty(&mut self, path: &str, text: &str) {
        let values = figment::util::nest(path, Value::from(text));
        let values = values.into_dict().expect("a path has at least one segment");
        self.merge("completed".to_owned(), values);
    }

    fn merge(&mut self, name: String, values: Dict) {
        self.figment = std::mem::take(&mut self.figment).merge(Layer { name, values });
        self.merged = self.figment.find_value("").expect("layers are plain values");
    }

    /// Checks that every name in the layers is the name of a section or of a setting.
    ///
    /// # Errors
    /// Fails at the first unknown name or at a section that is not a table.
    pub(super) fn check_names(&self) -> Result<(), ConfigError> {
        for (name, values) in self.merged.as_dict().into_iter().flatten() {
            if name == "models" {
                continue;
            }
            let Some(section) = self.raw.sections.iter().find(|section| section.name == name)
            else {
                let names = self.raw.sections.iter().map(|section| section.name);
                let accepted = names.chain(["models"]).collect::<Vec<_>>().join(", ");
                let origin = self.origin(name);
                return Err(ConfigError::Unknown { setting: name.clone(), origin, accepted });
            };
            let Some(values) = values.as_dict() else { return Err(self.invalid(name, "a table")) };
            let keys: Vec<&str> = section.values.iter().map(|(key, _)| key.as_str()).collect();
            if let Some(key) = values.keys().find(|key| !keys.contains(&key.as_str())) {
                let setting = format!("{name}.{key}");
                let origin = self.origin(&setting);
                return Err(ConfigError::Unknown { setting, origin, accepted: keys.join(", ") });
            }
        }
        Ok(())
    }

    /// Fills the settings type `S` and checks it.
    ///
    /// # Errors
    /// The first value that has the wrong type or is not accepted.
    pub(super) fn read<S: Section>(&self) -> Result<S, ConfigError> {
        let values = self.merged.find_ref(S::NAME).expect("every section has defaults");
        let settings: S = values.deserialize().map_err(|error| self.explain(S::NAME, &error))?;
        let path = |key: &str| format!("{}.{key}", S::NAME);
        for key in values.as_dict().into_iter().flat_map(Dict::keys) {
            let too_long = |millis| millis > MAX_MILLIS;
            if key.ends_with("_ms") && self.number(&path(key)).is_some_and(too_long) {
                return Err(self.invalid(&path(key), "milliseconds, at most 86400000 (one day)"));
            }
        }
        let checked = settings.check();
        checked.map_err(|error| self.invalid(&path(error.key), error.accepted))?;
        Ok(settings)
    }

    /// Returns the values of all settings as they are written, and the list of models.
    ///
    /// # Errors
    /// If the list of models is malformed.
    pub(super) fn effective(&self) -> Result<RawConfig, ConfigError> {
        let mut raw = self.raw.clone();
        for section in &mut raw.sections {
            for (key, value) in &mut section.values {
                let written = self.merged.find_ref(&format!("{}.{key}", section.name));
                written.expect("every setting has a default").clone_into(value);
            }
        }
        let models = self.merged.find_ref("models").expect("the list of models has a default");
        raw.models = models.deserialize().map_err(|error| self.explain("models", &error))?;
        Ok(raw)
    }

    /// Returns the value of a setting if it is a whole number and not negative.
    pub(super) fn number(&self, path: &str) -> Option<u64> {
        let number = self.merged.find_ref(path)?.to_num()?;
        let signed = || number.to_i128()?.try_into().ok();
        number.to_u128().or_else(signed)?.try_into().ok()
    }

    /// True if the value of the setting is an empty text.
    pub(super) fn is_empty_text(&self, path: &str) -> bool {
        self.merged.find_ref(path).and_then(Value::as_str) == Some("")
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
        let value = self.merged.find_ref(path).map_or_else(|| "nothing".to_owned(), as_written);
        ConfigError::Invalid {
            setting: path.to_owned(),
            value: self.shown(path, || value),
            origin: self.origin(path),
            accepted: accepted.into(),
        }
    }

    /// Guesses which setting `name` means: `server_listen` and `listen` both mean `server.listen`. Returns `None` if
    /// `name` is ambiguous.
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

    /// Translates figment's error about the section `section`. Only a value from a file can have a wrong type, because
    /// text from the environment and from flags was parsed by type before it became a layer.
    fn explain(&self, section: &str, error: &figment::Error) -> ConfigError {
        use figment::error::Kind;

        let names = [section].into_iter().chain(error.path.iter().map(String::as_str));
        let path = names.collect::<Vec<_>>().join(".");
        if let Kind::UnknownField(_, expected) = &error.kind {
            let (origin, accepted) = (self.origin(&path), expected.join(", "));
            return ConfigError::Unknown { setting: path, origin, accepted };
        }
        if let Kind::MissingField(field) = &error.kind {
            // Only entries of the list of models have a field without a default.
            let setting = format!("{path}.{field}");
            let advice = "give a hub id (owner/name), a directory or demo";
            return ConfigError::Missing { origin: self.origin(&setting), setting, advice };
        }
        if let Kind::InvalidType(_, accepted) | Kind::InvalidValue(_, accepted) = &error.kind {
            return self.invalid(&path, in_words(accepted));
        }
        // This message comes from the settings type itself and says which values it accepts.
        if let Kind::Message(accepted) = &error.kind {
            return self.invalid(&path, accepted);
        }
        self.invalid(&path, "another value")
    }

    /// Formats the value of the setting `path` for an error message; a secret value stays hidden.
    fn shown(&self, path: &str, value: impl FnOnce() -> String) -> String {
        if self.raw.is_secret(path) { HIDDEN.to_owned() } else { value() }
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
        "a string" | "path string" => "a string in quotes",
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

/// Parses text as a value of the same type as `like`. The error describes the accepted values.
fn read_as(text: &str, like: &Value) -> Result<Value, String> {
    match like {
        Value::Num(_, Num::F64(_)) => {
            text.parse::<f64>().map(Value::from).map_err(|_| "a number".to_owned())
        }
        Value::Num(..) => match text.parse::<u64>() {
            Ok(number) if i64::try_from(number).is_ok() => Ok(Value::from(number)),
            // A settings file cannot have a larger number, and `config` writes a settings file.
            Ok(_) => Err(format!("a whole number, at most {}", i64::MAX)),
            Err(_) => Err("a whole number, not negative".to_owned()),
        },
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
