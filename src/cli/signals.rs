//! SIGTERM and SIGINT: the first begins the drain, the second ends the process at once. SIGHUP: files that may change
//! are read again.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::telemetry::logging;

/// Exit code after a second signal: nothing was waited for.
const INTERRUPTED: i32 = 130;

/// A token that the first signal cancels. The handlers are installed before this returns.
///
/// # Errors
/// When the system refuses a handler.
pub(super) fn shutdown() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let first = token.clone();
    tokio::spawn(async move {
        let name = next(&mut terminate, &mut interrupt).await;
        tracing::info!(signal = name, "shutting down; a second signal ends at once");
        first.cancel();
        let name = next(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal = name, "second signal; ending at once");
        logging::flush();
        std::process::exit(INTERRUPTED);
    });
    Ok(token)
}

/// Hangups, which from now on do not end the process.
///
/// # Errors
/// When the system refuses a handler.
pub(super) fn hangups() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Calls `reload` at each hangup.
pub(super) async fn on_hangup(mut hangups: Signal, reload: impl Fn()) {
    while hangups.recv().await.is_some() {
        tracing::info!(
            signal = "SIGHUP",
            "reading the files of keys and certificates again, where there are any"
        );
        reload();
    }
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_signal_cancels_the_token_and_the_process_lives_on() {
        let token = shutdown().unwrap();
        assert!(!token.is_cancelled());
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
            .unwrap();
        token.cancelled().await;
    }
}
