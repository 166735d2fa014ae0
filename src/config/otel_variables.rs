//! The standard variables of OpenTelemetry for traces, as settings of the section `[tracing]`. `BLIP__TRACING__...`
//! variables override them. Variables for metrics, for logs and for parts of an SDK that this server does not use are
//! ignored.
//!
//! Names and meanings are those of the OpenTelemetry specification (SDK environment variables; OTLP exporter
//! configuration). An empty variable counts as unset.

use super::ConfigError;
use super::layers::Layers;
use super::load::Environment;

/// Settings and the variables that set them. If several variables are set, the last of them counts: the one for traces.
const VARIABLES: [(&str, &[&str]); 14] = [
    ("tracing.headers", &["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"]),
    ("tracing.protocol", &["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"]),
    (
        "tracing.compression",
        &["OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"],
    ),
    (
        "tracing.certificate",
        &["OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"],
    ),
    ("tracing.timeout_ms", &["OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"]),
    ("tracing.endpoint", &["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]),
    ("tracing.service_name", &["OTEL_SERVICE_NAME"]),
    ("tracing.resource_attributes", &["OTEL_RESOURCE_ATTRIBUTES"]),
    ("tracing.sampler", &["OTEL_TRACES_SAMPLER"]),
    ("tracing.propagators", &["OTEL_PROPAGATORS"]),
    ("tracing.batch_delay_ms", &["OTEL_BSP_SCHEDULE_DELAY"]),
    ("tracing.export_timeout_ms", &["OTEL_BSP_EXPORT_TIMEOUT"]),
    ("tracing.max_queue_spans", &["OTEL_BSP_MAX_QUEUE_SIZE"]),
    ("tracing.max_batch_spans", &["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"]),
];

/// The path that the specification appends to the general endpoint.
const TRACES_PATH: &str = "v1/traces";

/// Variables that concern the export of traces, and that have no effect here.
const WITHOUT_EFFECT: [&str; 4] = [
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
];

/// Adds the variables as layers. If one of them switches tracing off, the others do not count.
///
/// # Errors
/// `Invalid` when a variable has a value that is not accepted.
pub(super) fn add(layers: &mut Layers, environment: &Environment) -> Result<(), ConfigError> {
    let value = |name: &str| environment.get(name).filter(|value| !value.trim().is_empty());
    if let Some(text) = value("OTEL_SDK_DISABLED") {
        let is_disabled = match text.to_ascii_lowercase().as_str() {
            "true" => true,
            "false" => false,
            _ => return Err(invalid("OTEL_SDK_DISABLED", text, "true or false")),
        };
        if is_disabled {
            return layers.add_text("tracing.enabled", "false", "OTEL_SDK_DISABLED");
        }
    }
    match value("OTEL_TRACES_EXPORTER").map(|text| text.trim()) {
        None | Some("otlp") => {}
        Some("none") => return layers.add_text("tracing.enabled", "false", "OTEL_TRACES_EXPORTER"),
        Some(text) => return Err(invalid("OTEL_TRACES_EXPORTER", text, "otlp or none")),
    }
    if let Some(base) = value("OTEL_EXPORTER_OTLP_ENDPOINT") {
        let url = format!("{}/{TRACES_PATH}", base.trim().trim_end_matches('/'));
        layers.add_text("tracing.endpoint", &url, "OTEL_EXPORTER_OTLP_ENDPOINT")?;
    }
    for (path, names) in VARIABLES {
        for name in names {
            if let Some(text) = value(name) {
                layers.add_text(path, text.trim(), name)?;
            }
        }
    }
    // Other samplers have no argument, or one of another kind.
    let has_ratio = value("OTEL_TRACES_SAMPLER").is_some_and(|name| name.ends_with("traceidratio"));
    if let Some(text) = value("OTEL_TRACES_SAMPLER_ARG").filter(|_| has_ratio) {
        layers.add_text("tracing.sample_ratio", text.trim(), "OTEL_TRACES_SAMPLER_ARG")?;
    }
    Ok(())
}

/// Returns warnings about variables that have no effect.
pub(super) fn warnings(environment: &Environment) -> impl Iterator<Item = String> {
    let set = |name: &&str| environment.get(*name).is_some_and(|value| !value.is_empty());
    WITHOUT_EFFECT.into_iter().filter(set).map(|name| {
        format!(
            "{name} has no effect: this server sends traces without a client certificate; if the collector needs one, send \
             them to a collector on this machine"
        )
    })
}

fn invalid(variable: &str, value: &str, accepted: &str) -> ConfigError {
    ConfigError::Invalid {
        setting: "tracing.enabled".to_owned(),
        value: format!("\"{value}\""),
        origin: format!("from {variable}"),
        accepted: accepted.to_owned(),
    }
}
