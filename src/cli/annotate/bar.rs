//! The progress bar of the commands that process files: rate, remaining time, failures. On a terminal only; warnings appear
//! everywhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::annotate::{Progress, Summary};
use crate::cli::printable::printable;
use crate::telemetry::logging;

/// The bar.
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// Creates the bar; it stays hidden if standard error is not a terminal.
    pub(super) fn start() -> Self {
        let style = ProgressStyle::with_template(
            "[{bar:30}] {human_pos}/{human_len} {per_sec} {eta} left {msg}",
        )
        .expect("the template is a constant that the test renders")
        .progress_chars("=> ");
        let bar = ProgressBar::no_length().with_style(style);
        if !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self(bar)
    }

    /// Removes the bar.
    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

impl Progress for Bar {
    fn found(&self, pictures: u64, is_all: bool) {
        if is_all || self.0.length().is_some_and(|length| length < pictures) {
            self.0.set_length(pictures);
        }
    }

    fn advanced(&self, summary: &Summary) {
        let Summary { done, failed, skipped, .. } = summary;
        self.0.set_position(done + failed + skipped);
        if *failed > 0 {
            self.0.set_message(format!("({failed} failed)"));
        }
    }

    fn warn(&self, message: &str) {
        self.0.suspend(|| logging::write_error(&format!("blip-server: {}", printable(message))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_counts_finished_pictures() {
        let bar = Bar::start();
        bar.found(10, true);
        bar.advanced(&Summary { done: 3, failed: 1, skipped: 2, ..Summary::default() });
        assert_eq!((bar.0.position(), bar.0.length()), (6, Some(10)));
        assert_eq!(bar.0.message(), "(1 failed)");
    }
}
