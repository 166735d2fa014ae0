//! The section `[tracing]` and the variables `OTEL_*`.

use std::process::Command;

use blip_server::config::{Config, ConfigError, Environment, Flags, load};

fn load_with(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let environment: Environment =
        variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    load(&Flags::default(), &environment)
}

fn endpoint(variables: &[(&str, &str)]) -> Option<String> {
    load_with(variables).unwrap().tracing.endpoint.map(|endpoint| endpoint.to_string())
}

#[test]
fn the_endpoint_comes_from_the_most_specific_variable() {
    assert_eq!(endpoint(&[]), None);
    assert_eq!(endpoint(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), None);
    let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318");
    let of =
        |extra: &[(&'static str, &'static str)]| endpoint(&[&[general], extra].concat()).unwrap();
    assert_eq!(of(&[]), "http://c:4318/v1/traces");
    let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://t.example/x");
    assert_eq!(of(&[traces]), "https://t.example/x");
    assert_eq!(
        of(&[traces, ("BLIP__TRACING__ENDPOINT", "http://o/v1/traces")]),
        "http://o/v1/traces"
    );
    let below = endpoint(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://h.example/otlp/")]);
    assert_eq!(below.unwrap(), "https://h.example/otlp/v1/traces");
}

#[test]
fn every_variable_sets_its_setting() {
    let config = load_with(&[
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2000"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_SERVICE_NAME", "captions"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=1,b=x%2Cy"),
        ("OTEL_TRACES_SAMPLER", "traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ("OTEL_PROPAGATORS", "tracecontext,baggage"),
        ("OTEL_BSP_SCHEDULE_DELAY", "3"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "4"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "600"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5"),
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_SDK_DISABLED", "FALSE"),
        ("OTEL_METRICS_EXPORTER", "whatever"),
    ]);
    let settings = config.unwrap().tracing;
    assert!(settings.enabled);
    assert_eq!(settings.timeout.as_millis(), 2000);
    assert_eq!(settings.compression.to_string(), "gzip");
    assert_eq!(settings.service_name, "captions");
    assert_eq!(settings.resource_attributes, ["a=1", "b=x%2Cy"]);
    assert_eq!(settings.sampler.to_string(), "traceidratio");
    assert!((settings.sample_ratio - 0.25).abs() < 1e-12);
    assert_eq!(settings.propagators, ["tracecontext", "baggage"]);
    assert_eq!(settings.batch_delay.as_millis(), 3);
    assert_eq!(settings.export_timeout.as_millis(), 4);
    assert_eq!((settings.max_queue_spans, settings.max_batch_spans), (600, 5));
}

#[test]
fn the_argument_counts_only_for_a_sampler_that_has_one() {
    for sampler in [None, Some("always_on"), Some("parentbased_always_on")] {
        let argument = ("OTEL_TRACES_SAMPLER_ARG", "0.5");
        let sampler = sampler.map(|name| ("OTEL_TRACES_SAMPLER", name));
        let variables: Vec<_> = sampler.into_iter().chain([argument]).collect();
        let ratio = load_with(&variables).unwrap().tracing.sample_ratio;
        assert!((ratio - 1.0).abs() < 1e-12);
    }
}

#[test]
fn tracing_can_be_switched_off_whatever_else_is_set() {
    for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
        let others = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ];
        let config = load_with(&[&[off], &others[..]].concat()).unwrap();
        assert!(!config.tracing.enabled, "{off:?}");
    }
}

#[test]
fn bad_values_stop_the_start_with_their_name() {
    let cases = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "http://localhost:4318/v1/traces"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:4318", "with its path"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "neither gRPC nor http/json"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret-token", "name=value"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "gzip"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "whole number"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/there/is/nothing.pem", "PEM file"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote", "parentbased_traceidratio"),
        ("OTEL_PROPAGATORS", "b3", "tracecontext"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "1 to 100000"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096", "at most max_queue_spans"),
        ("OTEL_SDK_DISABLED", "yes", "true or false"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "otlp or none"),
        ("BLIP__TRACING__SAMPLE_RATIO", "2", "0 to 1"),
        ("BLIP__TRACING__SAMPLE_RATIO", "half", "a number"),
    ];
    for (variable, value, accepted) in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_blip-server"))
            .arg("config")
            .env_clear()
            .env(variable, value)
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{variable}: {message}");
        assert!(message.contains(variable) && message.contains(accepted), "{message}");
        assert!(!message.contains("secret-token"), "{message}");
    }
}

#[test]
fn the_effective_settings_hide_header_fields() {
    let output = Command::new(env!("CARGO_BIN_EXE_blip-server"))
        .arg("config")
        .env_clear()
        .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret-token")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")
        .env("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key.pem")
        .output()
        .unwrap();
    let (shown, log) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(shown.contains("[tracing]") && shown.contains("headers = [\"(hidden)\"]"), "{shown}");
    assert!(shown.contains("endpoint = \"http://c:4318/v1/traces\""), "{shown}");
    assert!(!shown.contains("secret-token") && !log.contains("secret-token"));
    assert!(log.contains("OTEL_EXPORTER_OTLP_CLIENT_KEY has no effect"), "{log}");
}
