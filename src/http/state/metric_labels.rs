//! Creates the time series whose labels are known before the first request, with the value 0, so that rates exist from
//! the first scrape. `state` and `router` call these functions at startup, and `state` again when the models are
//! loaded.

use super::models::Models;
use crate::http::error::Code;
use crate::task::Role;
use crate::telemetry::metrics::Metrics;

/// Labels of request heads that hyper cannot parse.
pub(crate) mod malformed {
    use crate::http::error::Code;

    /// The route label of such heads in metrics and the log.
    pub(crate) const ROUTE: &str = "malformed";
    /// The method label of such heads in metrics and the log.
    pub(crate) const METHOD: &str = "other";

    /// The error codes with which such heads are answered.
    pub(crate) const CODES: [Code; 3] =
        [Code::InvalidRequest, Code::HeadTooLarge, Code::RequestTimeout];
}

/// Creates the time series of every error code, of clients that disconnect, and of malformed request heads.
pub(crate) fn initialise(metrics: &Metrics) {
    for code in Code::ALL {
        metrics.request_failures_total.with_label_values(&[code.name()]);
    }
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

/// Creates the counters of successful inputs of each loaded model.
pub(crate) fn initialise_models(metrics: &Metrics, models: &Models) {
    for model in models.iter() {
        let tasks: &[&str] = match model.info.role() {
            Role::Caption => &["caption"],
            Role::Vqa => &["vqa"],
            Role::Retrieval => &["similarity", "embeddings"],
        };
        for task in tasks {
            metrics.items_total.with_label_values(&[*task, &model.info.name, "ok"]);
        }
    }
}
