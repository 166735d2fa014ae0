//! A server after a fault: as good as new.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::requests::{Call, Outcome, Reply, exchange, get};
use super::server::Server;

/// Until nothing is in progress any more.
const RECOVERY: Duration = Duration::from_secs(10);

/// Sends a request on a connection of its own.
pub(super) fn ask(server: &Server, call: &Call) -> Reply {
    match server.connect() {
        Ok(mut stream) => exchange(&mut stream, &call.request),
        Err(_) => Reply::Closed,
    }
}

/// Checks that the server is ready, that nothing is in progress, and that the call has its right answer.
///
/// # Errors
/// Says what is not.
pub(super) fn check(server: &Server, call: &Call, right: &Value) -> Result<(), String> {
    let again = ask(server, call).judge(right)?;
    if again != Outcome::Right {
        return Err(format!("the next answer to {}: {again:?}", call.name));
    }
    let ready = ask(server, &get("/health/ready"));
    if !matches!(ready, Reply::Whole { status: 200, .. }) {
        return Err(format!("not ready afterwards: {ready:?}"));
    }
    let start = Instant::now();
    loop {
        let held = held(server)?;
        if held.is_empty() {
            return Ok(());
        }
        if start.elapsed() > RECOVERY {
            return Err(format!("still held: {held:?}"));
        }
        std::thread::yield_now();
    }
}

/// Gauges of what is in progress, except for this request itself.
fn held(server: &Server) -> Result<Vec<String>, String> {
    let Reply::Whole { status: 200, body, .. } = ask(server, &get("/metrics")) else {
        return Err("no metrics".to_owned());
    };
    let text = String::from_utf8_lossy(&body);
    let gauges = [
        ("blip_http_requests_in_flight", 1.0),
        ("blip_queue_rows", 0.0),
        ("blip_queue_bytes", 0.0),
        ("blip_queue_depth", 0.0),
        ("blip_decode_permits_in_use", 0.0),
        ("blip_fetch_permits_in_use", 0.0),
    ];
    let differs = |line: &&str| {
        let (series, value) = line.rsplit_once(' ').unwrap_or_default();
        let name = series.split('{').next().unwrap_or_default();
        let idle = gauges.iter().find(|(gauge, _)| *gauge == name);
        idle.is_some_and(|(_, idle)| value.parse() != Ok(*idle))
    };
    Ok(text.lines().filter(differs).map(str::to_owned).collect())
}
