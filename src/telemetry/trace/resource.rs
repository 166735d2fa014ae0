//! The resource: what describes this process in every export.

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;

use super::context::SpanId;
use super::settings::TraceSettings;

/// The attribute that names the service.
const SERVICE_NAME: &str = "service.name";

/// Creates the resource. Settings win over our own attributes, and `service_name` over all.
///
/// The detectors of the SDK are not used, because they read the environment, which only `config` does.
pub(super) fn resource(settings: &TraceSettings, instance: (SpanId, SpanId)) -> Resource {
    let given = settings.attributes().unwrap_or_default();
    let given = given.into_iter().map(|(name, value)| KeyValue::new(name, value));
    let mut resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new(SERVICE_NAME, env!("CARGO_PKG_NAME")),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            // Replicas have the same name, so each process also has a random id.
            KeyValue::new("service.instance.id", format!("{}{}", instance.0, instance.1)),
            KeyValue::new("telemetry.sdk.language", "rust"),
            KeyValue::new("telemetry.sdk.name", "opentelemetry"),
            KeyValue::new("process.pid", i64::from(std::process::id())),
        ])
        .with_attributes(given);
    if !settings.service_name.is_empty() {
        resource =
            resource.with_attribute(KeyValue::new(SERVICE_NAME, settings.service_name.clone()));
    }
    resource.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(settings: &TraceSettings) -> String {
        let resource = resource(settings, (SpanId(1), SpanId(2)));
        resource.get(&SERVICE_NAME.into()).unwrap().to_string()
    }

    #[test]
    fn the_name_of_the_service_is_the_most_specific_that_is_given() {
        let mut settings = TraceSettings::default();
        assert_eq!(name(&settings), "blip-server");
        settings.resource_attributes = vec!["service.name=captions".to_owned()];
        assert_eq!(name(&settings), "captions");
        settings.service_name = "blip-eu".to_owned();
        assert_eq!(name(&settings), "blip-eu");
    }
}
