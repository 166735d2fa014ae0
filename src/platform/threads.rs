//! Threads whose work must not slow down the inference worker.

use std::io;

/// Niceness of background threads. A busy thread of normal priority gets about ten times as much of a core.
const NICENESS: i32 = 10;

/// Starts a thread with a lower priority than the inference worker. If the priority cannot be lowered (some sandboxes
/// forbid it), the thread runs at normal priority, and `report` says whether that is logged.
///
/// # Errors
/// If the operating system does not create the thread.
pub(crate) fn spawn_background(
    name: String,
    report: bool,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    #[cfg(test)]
    if super::simulated::is_active() {
        super::simulated::spawn(body);
        return Ok(());
    }
    let body = move || {
        lower_priority(report);
        body();
    };
    std::thread::Builder::new().name(name).spawn(body).map(drop)
}

/// Tries to lower the priority of this thread. Linux keeps the priority per thread, so the rest of the process is not
/// affected.
fn lower_priority(report: bool) {
    let result = rustix::process::setpriority_process(None, NICENESS);
    if let Err(error) = result
        && report
    {
        tracing::warn!(%error, "cannot lower the priority of background threads; they run at normal priority");
    }
}
