//! The progress bar of the model that is being loaded; it starts again for each model. It appears only on a terminal;
//! elsewhere, only a log line reports each loaded model. `loading` drives it.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Progress bar of the model that is being loaded; reused for the next model.
pub(super) struct LoadBar(ProgressBar);

impl LoadBar {
    /// Creates the bar; it stays hidden if standard error is not a terminal.
    pub(super) fn start() -> Self {
        let style = ProgressStyle::with_template("loading {msg:<28} [{bar:30}] {percent:>3} %")
            .expect("the template is a constant that the test renders")
            .progress_chars("=> ");
        let bar = ProgressBar::new(1).with_style(style);
        if !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self(bar)
    }

    /// Advances the bar by `values` newly read weight values; the model has `of` values in all.
    pub(super) fn read(&self, model: &str, values: u64, of: u64) {
        if self.0.position() == 0 {
            self.0.set_message(model.to_owned());
            self.0.set_length(of);
        }
        self.0.inc(values);
    }

    /// Clears the bar of a loaded model, to make room for the log line.
    pub(super) fn next(&self) {
        self.0.set_position(0);
        self.0.finish_and_clear();
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_counts_each_model_from_the_start() {
        let bar = LoadBar::start();
        bar.read("first", 30, 40);
        assert_eq!((bar.0.position(), bar.0.length()), (30, Some(40)));
        bar.next();
        bar.read("second", 5, 10);
        assert_eq!((bar.0.position(), bar.0.length()), (5, Some(10)));
        assert_eq!(bar.0.message(), "second");
    }
}
