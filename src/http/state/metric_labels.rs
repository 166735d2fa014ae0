//! Creates, with the value 0, every time series whose labels are known before the first request, so that rates exist
//! from the first scrape. `state` and `router` call this at startup, and `state` calls it again when the models are
//! loaded.

use std::sync::OnceLock;

use super::models::{Eligible, Models};
use crate::http::error::Code;
use crate::telemetry::metrics::Metrics;

/// Labels of request heads that hyper cannot parse.
pub(crate) mod malformed {
    use crate::http::error::Code;

    /// Route label of malformed heads in metrics and the log.
    pub(crate) const ROUTE: &str = "malformed";
    /// Method label of malformed heads in metrics and the log.
    pub(crate) const METHOD: &str = "other";

    /// The error codes with which malformed heads are answered.
    pub(crate) const CODES: [Code; 3] =
        [Code::InvalidRequest, Code::HeadTooLarge, Code::RequestTimeout];
}

/// Creates the time series of every error code, of clients that disconnect, and of malformed request heads.
pub(crate) fn initialise(metrics: &Metrics) {
    for code in Code::ALL {
        metrics.request_failures_total.with_label_values(&[code.name()]);
    }
    metrics.bulk_lines_total.with_label_values(&["ok"]);
    metrics.request_failures_total.with_label_values(&["client_closed"]);
    for code in malformed::CODES {
        let status = code.status();
        let labels = [malformed::ROUTE, malformed::METHOD, status.as_str(), code.name()];
        metrics.http_requests_total.with_label_values(&labels);
    }
}

/// Creates the counters of successful responses and the latency histograms of these inference routes.
pub(crate) fn initialise_routes<'r>(metrics: &Metrics, routes: impl Iterator<Item = &'r String>) {
    for route in routes {
        metrics.http_requests_total.with_label_values(&[route, "POST", "200", "ok"]);
        metrics.http_request_duration_seconds.with_label_values(&[route]);
    }
}

/// The metric label `task` of one endpoint: the metrics count the inputs of the endpoint under this label.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TaskLabel {
    /// The models that serve the endpoint.
    pub(crate) models: Eligible,
    /// Value of the metric label `task`.
    pub(crate) name: &'static str,
}

/// Creates the counters of successful inputs, and of inputs that failed by the server's fault, so that an alert sees the
/// first such failure. Does so once both the endpoints of the router and the loaded models are known; either may become
/// known first.
#[derive(Default)]
pub(crate) struct ItemCounters {
    tasks: OnceLock<Vec<TaskLabel>>,
    models: OnceLock<Models>,
}

impl ItemCounters {
    /// Sets the tasks of the router's endpoints. A second call changes nothing.
    pub(crate) fn set_tasks(&self, metrics: &Metrics, tasks: Vec<TaskLabel>) {
        // `set` fails only on a second call, which by contract changes nothing.
        let _ = self.tasks.set(tasks);
        self.initialise(metrics);
    }

    /// Sets the loaded models. A second call changes nothing.
    pub(crate) fn set_models(&self, metrics: &Metrics, models: &Models) {
        // `set` fails only on a second call, which by contract changes nothing.
        let _ = self.models.set(models.clone());
        self.initialise(metrics);
    }

    fn initialise(&self, metrics: &Metrics) {
        let (Some(tasks), Some(models)) = (self.tasks.get(), self.models.get()) else { return };
        for model in models.iter() {
            for task in tasks.iter().filter(|task| task.models.include(&model.info)) {
                for code in ["ok", Code::InferenceFailed.name(), Code::InternalError.name()] {
                    metrics.items_total.with_label_values(&[task.name, &model.info.name, code]);
                }
            }
        }
    }
}
