//! All sections of a settings file, with their values as written. Their keys and defaults come from the settings types
//! that [`RawConfig::default`] lists, so that a new setting requires no change in this file.

use figment::value::Value;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::compute::ComputeSettings;
use super::server::{DrainSettings, ListenSettings};
use crate::engine::EngineSettings;
use crate::fetch::FetchSettings;
use crate::http::{
    AccessLogSettings, AuthSettings, BulkSettings, CompatSettings, ConnectionSettings,
    HttpSettings, Limits, McpSettings, RateLimitSettings, TlsSettings,
};
use crate::hub::{HubSettings, Retry};
use crate::images::ImagesSettings;
use crate::input::InputSettings;
use crate::settings::Section;
use crate::telemetry::logging::LoggingSettings;
use crate::telemetry::trace::TraceSettings;

/// Text that is shown instead of a secret.
pub(super) const HIDDEN: &str = "(hidden)";

/// The values of all settings as a settings file writes them, in the order of `config/default.toml`. They are not
/// checked. [`RawConfig::default`] returns the default of every setting.
#[derive(Debug, Clone, PartialEq)]
pub struct RawConfig {
    pub(super) sections: Vec<RawSection>,
    pub(super) models: Vec<RawModel>,
}

/// One section of a settings file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RawSection {
    pub(super) name: &'static str,
    /// Keys and values, in the order in which the settings types declare them.
    pub(super) values: Vec<(String, Value)>,
    /// Keys whose values are never shown.
    secrets: Vec<&'static str>,
}

/// One entry of the list `[[models]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawModel {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    pub(super) source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) image_size: Option<u32>,
}

impl Default for RawConfig {
    /// Lists every settings type. Types of the same section are adjacent.
    fn default() -> Self {
        let mut raw = Self { sections: Vec::new(), models: Vec::new() };
        raw.add::<ListenSettings>();
        raw.add::<TlsSettings>();
        raw.add::<HttpSettings>();
        raw.add_after::<DrainSettings>("deadline_ms");
        raw.add::<ConnectionSettings>();
        raw.add::<AuthSettings>();
        raw.add::<RateLimitSettings>();
        raw.add::<CompatSettings>();
        raw.add::<McpSettings>();
        raw.add::<BulkSettings>();
        raw.add::<Limits>();
        raw.add::<ComputeSettings>();
        raw.add::<EngineSettings>();
        raw.add::<ImagesSettings>();
        raw.add::<InputSettings>();
        raw.add::<FetchSettings>();
        raw.add::<HubSettings>();
        raw.add::<Retry>();
        raw.add::<LoggingSettings>();
        raw.add::<AccessLogSettings>();
        raw.add::<TraceSettings>();
        raw
    }
}

impl RawConfig {
    /// Formats the settings as a TOML file, with secrets hidden.
    ///
    /// # Panics
    /// Never: settings are plain data.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.clone().without_secrets()).expect("settings are plain data")
    }

    /// Replaces every secret by [`HIDDEN`], which is not a valid secret.
    pub(super) fn without_secrets(mut self) -> Self {
        for section in &mut self.sections {
            let secrets = &section.secrets;
            let is_secret = |(key, _): &&mut (String, Value)| secrets.contains(&key.as_str());
            section.values.iter_mut().filter(is_secret).for_each(|(_, value)| hide(value));
        }
        self
    }

    /// True if the value of the setting `path`, or of an element of it, is never shown.
    pub(super) fn is_secret(&self, path: &str) -> bool {
        let mut names = path.split('.');
        let (section, key) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
        let section = self.sections.iter().find(|known| known.name == section);
        section.is_some_and(|section| section.secrets.contains(&key))
    }

    /// Adds the settings of `S` at the end of their section.
    fn add<S: Section>(&mut self) {
        self.section(S::NAME, S::SECRETS).values.extend(defaults::<S>());
    }

    /// Adds the settings of `S` after the setting `key` of their section.
    fn add_after<S: Section>(&mut self, key: &str) {
        let values = &mut self.section(S::NAME, S::SECRETS).values;
        let place = values.iter().position(|(known, _)| known == key);
        let place = place.expect("the key is declared by an earlier type") + 1;
        values.splice(place..place, defaults::<S>());
    }

    fn section(&mut self, name: &'static str, secrets: &[&'static str]) -> &mut RawSection {
        if self.sections.last().is_none_or(|last| last.name != name) {
            self.sections.push(RawSection { name, values: Vec::new(), secrets: Vec::new() });
        }
        let section = self.sections.last_mut().expect("a section was just added if there was none");
        section.secrets.extend(secrets);
        section
    }
}

/// Returns the keys of a settings type in the order of its fields, with their defaults.
fn defaults<S: Section>() -> Vec<(String, Value)> {
    // TOML tables keep the order of keys; figment's dictionaries do not.
    let table = toml::Table::try_from(S::default()).expect("settings are plain data");
    let value = |value: &toml::Value| Value::serialize(value).expect("TOML is plain data");
    table.iter().map(|(key, default)| (key.clone(), value(default))).collect()
}

/// Hides a text, or each element of a list. An empty text is no secret.
fn hide(value: &mut Value) {
    if let Value::Array(_, elements) = value {
        elements.iter_mut().for_each(hide);
    } else if value.as_str() != Some("") {
        *value = Value::from(HIDDEN);
    }
}

impl Serialize for RawConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut file = serializer.serialize_map(Some(self.sections.len() + 1))?;
        for section in &self.sections {
            file.serialize_entry(section.name, section)?;
        }
        // Write the models last, as in `config/default.toml`.
        file.serialize_entry("models", &self.models)?;
        file.end()
    }
}

impl Serialize for RawSection {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.values.iter().map(|(key, value)| (key, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two types that declare the same key would both be filled with its value.
    #[test]
    fn every_section_and_every_key_is_declared_once() {
        let raw = RawConfig::default();
        let names: Vec<&str> = raw.sections.iter().map(|section| section.name).collect();
        let once = |names: &[&str]| {
            names.iter().all(|name| names.iter().filter(|other| *other == name).count() == 1)
        };
        assert!(once(&names), "{names:?}");
        for section in &raw.sections {
            let keys: Vec<&str> = section.values.iter().map(|(key, _)| key.as_str()).collect();
            assert!(once(&keys), "[{}]: {keys:?}", section.name);
            let unknown = section.secrets.iter().find(|secret| !keys.contains(secret));
            assert_eq!(unknown, None, "[{}]", section.name);
        }
    }

    /// `Layers::read` limits a time to one day, with an error message about milliseconds, only if its key ends in
    /// `_ms`.
    #[test]
    fn every_time_has_its_unit_in_its_key() {
        for section in &RawConfig::default().sections {
            for (key, _) in &section.values {
                let is_time = ["timeout", "deadline", "pause", "ttl", "delay", "interval", "wait"]
                    .iter()
                    .any(|word| key.split('_').any(|part| part == *word));
                assert!(!is_time || key.ends_with("_ms"), "{}.{key}", section.name);
            }
        }
    }
}
