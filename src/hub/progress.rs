//! Progress of downloads: bars on a terminal, log lines otherwise.

use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How the progress of downloads is shown.
#[derive(Debug, Clone)]
pub enum DownloadProgress {
    /// A bar per file on standard error.
    Bars(MultiProgress),
    /// A log line when the download of a file starts, after every tenth of the file, and at its end.
    Log,
}

impl DownloadProgress {
    /// Returns `Bars` if standard error is a terminal, otherwise `Log`.
    #[must_use]
    pub fn detect() -> Self {
        use std::io::IsTerminal;
        if std::io::stderr().is_terminal() { Self::Bars(MultiProgress::new()) } else { Self::Log }
    }

    pub(super) fn file(&self, name: &str, size: Option<u64>) -> FileProgress {
        let bar = match self {
            Self::Bars(bars) => {
                let template = "{msg:<28} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
                let style = ProgressStyle::with_template(template)
                    .expect("the template is a constant that the tests render")
                    .progress_chars("=> ");
                let bar = ProgressBar::new(size.unwrap_or(0)).with_style(style);
                Some(bars.add(bar.with_message(name.to_owned())))
            }
            Self::Log => {
                tracing::info!(file = name, size, "downloading");
                None
            }
        };
        FileProgress { bar, name: name.to_owned(), size, tenth: AtomicU64::new(0) }
    }
}

/// Progress of the download of one file.
pub(super) struct FileProgress {
    bar: Option<ProgressBar>,
    name: String,
    size: Option<u64>,
    /// The last tenth that was logged.
    tenth: AtomicU64,
}

impl FileProgress {
    /// Reports that `bytes` bytes of the file are on disk now.
    pub(super) fn at(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        } else if let Some(tenth) = self.next_tenth(bytes) {
            tracing::info!(file = self.name, percent = tenth * 10, "downloading");
        }
    }

    /// Reports that the file is complete and verified.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        } else {
            tracing::info!(file = self.name, "downloaded");
        }
    }

    /// Returns the tenth of the file that has been reached, or `None` if it has been returned before. `finish` reports
    /// the last tenth.
    fn next_tenth(&self, bytes: u64) -> Option<u64> {
        let size = self.size.filter(|&size| size > 0)?;
        let tenth = (bytes.saturating_mul(10) / size).min(9);
        (tenth > self.tenth.swap(tenth, Ordering::Relaxed)).then_some(tenth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tenth_is_logged_once() {
        let file = DownloadProgress::Log.file("model.safetensors", Some(1000));
        let logged: Vec<u64> = [0, 99, 100, 150, 420, 499, 999, 1000]
            .into_iter()
            .filter_map(|bytes| file.next_tenth(bytes))
            .collect();
        assert_eq!(logged, [1, 4, 9]);
    }

    #[test]
    fn the_bar_of_a_file_of_unknown_size_counts_its_bytes() {
        let bars = MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden());
        let file = DownloadProgress::Bars(bars).file("config.json", None);
        file.at(10);
        let bar = file.bar.as_ref().unwrap();
        assert_eq!((bar.position(), bar.is_finished()), (10, false));
        file.finish();
        assert!(file.bar.unwrap().is_finished());
    }
}
