//! Distributed tracing: what reaches a collector, and what happens without one.

mod export;
mod process;
mod propagation;
mod settings;
mod stages;

use std::sync::Arc;
use std::time::Duration;

use blip_server::telemetry::metrics::Metrics;
use blip_server::telemetry::trace::{TraceSettings, Tracer};

use crate::support::TestApp;
use crate::support::app::TestConfig;
use crate::support::collector::{Collector, Spans};

/// Settings with which nothing is exported before a batch is full or the tracer is shut down.
fn to(collector: &Collector) -> TraceSettings {
    TraceSettings {
        endpoint: Some(collector.endpoint().parse().unwrap()),
        batch_delay: Duration::from_secs(3600),
        ..TraceSettings::default()
    }
}

/// A service that exports its traces.
fn traced(settings: &TraceSettings) -> TestApp {
    traced_with(settings, |_| ())
}

/// A service with other settings that exports its traces.
fn traced_with(settings: &TraceSettings, change: impl FnOnce(&mut TestConfig)) -> TestApp {
    TestApp::with(|config| {
        let metrics = Arc::new(Metrics::try_new().unwrap());
        config.tracer = Tracer::start(settings, &metrics, std::time::Instant::now).unwrap();
        config.metrics = Some(metrics);
        change(config);
    })
}

/// Ends the exporter, and returns what it has sent.
fn exported(app: &TestApp, collector: &Collector) -> Spans {
    app.state.tracer().unwrap().shut_down();
    collector.spans()
}
