//! Loads the configuration: applies the layers in order, and is the only code that reads the environment. `cli` calls
//! this.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::layers::Layers;
use super::{Config, ConfigError, otel_variables, service_manager, validate};

/// The environment variables as a value, so that tests can pass their own.
pub type Environment = BTreeMap<String, String>;

/// The flags of the command line. Values are unchecked text: [`load`] validates them like those of any other layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// Path of the settings file.
    pub config: Option<PathBuf>,
    /// Overrides the setting `server.listen`, if given.
    pub listen: Option<String>,
    /// Models, each as `[NAME=]SRC`. If not empty, the list replaces the `models` of all lower layers.
    pub models: Vec<String>,
    /// Overrides the setting `compute.device`, if given.
    pub device: Option<String>,
    /// Overrides the setting `compute.dtype`, if given.
    pub dtype: Option<String>,
    /// Overrides the setting `compute.cpu_isa`, if given.
    pub cpu_isa: Option<String>,
    /// Overrides the setting `compute.threads`, if given.
    pub threads: Option<String>,
    /// Overrides the setting `log.format`, if given.
    pub log_format: Option<String>,
}

/// Variables of Hugging Face's tools and the settings that they set. `BLIP__HUB__...` variables override them.
const HF_VARIABLES: [(&str, &str); 4] = [
    ("HF_ENDPOINT", "hub.endpoint"),
    ("HF_TOKEN", "hub.token"),
    ("HF_HUB_CACHE", "hub.cache"),
    ("HF_HUB_OFFLINE", "hub.offline"),
];

/// Reads the environment of this process. Variables that are not UTF-8 are ignored: no setting needs them.
pub fn process_environment() -> Environment {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    let variables = std::env::vars_os();
    variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Merges file, environment and flags over the defaults and validates the result.
///
/// # Errors
/// The first error found. At that point, nothing has been started and no port has been bound.
pub fn load(flags: &Flags, environment: &Environment) -> Result<Config, ConfigError> {
    let mut layers = Layers::new();
    if let Some(file) = &flags.config {
        layers.add_file(file)?;
    }
    add_environment(&mut layers, environment)?;
    add_flags(&mut layers, flags)?;
    layers.check_names()?;
    let mut warnings = misspelt(&layers, environment);
    warnings.extend(otel_variables::warnings(environment));
    complete_hub(&mut layers, environment);
    let config = validate::validate(&layers, warnings)?;
    let service_manager = service_manager::read(environment, std::process::id());
    Ok(Config { service_manager, ..config })
}

/// Returns warnings about variables that start with `BLIP_` but not with `BLIP__`, which have no effect.
fn misspelt(layers: &Layers, environment: &Environment) -> Vec<String> {
    let variables = environment.keys().filter_map(|variable| {
        let name = variable.strip_prefix("BLIP_")?;
        (!name.starts_with('_')).then(|| (variable, name.to_ascii_lowercase()))
    });
    let warning = |(variable, name): (&String, String)| {
        let meant = layers.names_like(&name).map_or_else(String::new, |path| {
            let path = path.to_ascii_uppercase().replace('.', "__");
            format!("; did you mean BLIP__{path}?")
        });
        format!("{variable} has no effect: settings are named BLIP__SECTION__KEY{meant}")
    };
    variables.map(warning).collect()
}

fn add_environment(layers: &mut Layers, environment: &Environment) -> Result<(), ConfigError> {
    for (variable, path) in HF_VARIABLES {
        let Some(text) = environment.get(variable).filter(|text| !text.is_empty()) else {
            continue;
        };
        let text = match (path, text.to_ascii_lowercase().as_str()) {
            // The spellings of true and false that huggingface_hub accepts.
            ("hub.offline", "1" | "on" | "yes" | "true") => "true",
            ("hub.offline", "0" | "off" | "no" | "false") => "false",
            _ => text,
        };
        layers.add_text(path, text, variable)?;
    }
    otel_variables::add(layers, environment)?;
    for (variable, text) in environment {
        let Some(name) = variable.strip_prefix("BLIP__") else { continue };
        let path = name.to_ascii_lowercase().replace("__", ".");
        if path == "models" {
            let sources: Vec<&str> =
                text.split(',').map(str::trim).filter(|source| !source.is_empty()).collect();
            layers.add_models(&sources, variable);
        } else {
            layers.add_text(&path, text, variable)?;
        }
    }
    Ok(())
}

fn add_flags(layers: &mut Layers, flags: &Flags) -> Result<(), ConfigError> {
    let texts = [
        ("server.listen", &flags.listen, "--listen"),
        ("compute.device", &flags.device, "--device"),
        ("compute.dtype", &flags.dtype, "--dtype"),
        ("compute.cpu_isa", &flags.cpu_isa, "--cpu-isa"),
        ("compute.threads", &flags.threads, "--threads"),
        ("log.format", &flags.log_format, "--log-format"),
    ];
    for (path, text, flag) in texts {
        if let Some(text) = text {
            layers.add_text(path, text, flag)?;
        }
    }
    if !flags.models.is_empty() {
        let sources: Vec<&str> = flags.models.iter().map(String::as_str).collect();
        layers.add_models(&sources, "--model");
    }
    Ok(())
}

/// Fills in the hub's cache folder and token if they are not set. Takes both from `HF_HOME`, else from the user's cache
/// folder, as Hugging Face's tools do.
fn complete_hub(layers: &mut Layers, environment: &Environment) {
    let folder =
        |name: &str| environment.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = folder("HF_HOME")
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/huggingface")))
        .unwrap_or_else(|| PathBuf::from("huggingface"));
    if layers.is_empty_text("hub.cache") {
        layers.fill_if_empty("hub.cache", &home.join("hub").to_string_lossy());
    }
    if layers.is_empty_text("hub.token") {
        let file = folder("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        layers.fill_if_empty("hub.token", &read_token(&file).unwrap_or_default());
    }
}

/// Reads the token file, which is optional: `huggingface-cli login` writes one, but most servers have none.
fn read_token(file: &Path) -> Option<String> {
    std::fs::read_to_string(file).ok().map(|text| text.trim().to_owned())
}
