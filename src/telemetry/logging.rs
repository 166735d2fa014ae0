//! Logging to standard error, as text on a terminal or as JSON lines. `cli` calls [`init`] once.
//!
//! Lines go through a queue (`log_queue`), so that an unread log never blocks the code that logs. Code that ends the
//! process calls [`flush`] first, and reports errors with [`write_error`].
//!
//! Text from clients can reach a log line only inside a field. Control characters are escaped in both formats, so that
//! no client can forge lines or send commands to a terminal. For the same reason, the text format has no colours.
//! Anything that may repeat text from a client (parser errors, panic messages) must go through [`clipped`].

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::panic;
use std::str::FromStr;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use super::log_queue::LogQueue;
use crate::settings::{InvalidSetting, NotAccepted, Section, require, text};

/// The log queue of this process, set by [`init`].
static QUEUE: OnceLock<LogQueue> = OnceLock::new();

/// Settings of the log's format and filter: a part of the section `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoggingSettings {
    /// Plain text or JSON lines.
    #[serde(with = "text")]
    pub format: LogFormat,
    /// Levels of the lines to log, in the syntax of `EnvFilter`, such as `info` or `info,blip_server::engine=debug`.
    pub filter: String,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Plain text, one line per event, without colours.
    Text,
    /// One JSON object per line.
    Json,
}

impl Default for LoggingSettings {
    fn default() -> Self {
        Self { format: LogFormat::Auto, filter: "info".to_owned() }
    }
}

impl Section for LoggingSettings {
    const NAME: &'static str = "log";

    fn check(&self) -> Result<(), InvalidSetting> {
        let accepted = "a level (off, error, warn, info, debug, trace) or directives like info,blip_server::engine=debug";
        require(filter(self).is_ok(), "filter", &self.filter, accepted)
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

impl FromStr for LogFormat {
    type Err = NotAccepted;

    fn from_str(text: &str) -> Result<Self, NotAccepted> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(NotAccepted("auto, text, json")),
        }
    }
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The setting `log.filter` cannot be parsed.
    #[error("log.filter is {filter:?}: {problem}; use a level such as info, or info,target=debug")]
    Filter {
        /// The value of the setting.
        filter: String,
        /// The parser's description of the error.
        problem: String,
    },
    /// A global `tracing` subscriber already exists.
    #[error("a logger is already installed")]
    Installed,
    /// The operating system could not start the writer thread.
    #[error("cannot start the thread that writes the log")]
    Thread(#[source] io::Error),
}

/// Starts logging for the whole process, and logs panics with their source location.
///
/// # Errors
/// When the filter cannot be parsed, the thread cannot be started, or logging was started before.
pub fn init(settings: &LoggingSettings) -> Result<(), LoggingError> {
    let filter = filter(settings)?;
    if QUEUE.get().is_some() {
        return Err(LoggingError::Installed);
    }
    let queue = LogQueue::start(log_dropped).map_err(LoggingError::Thread)?;
    let queue = QUEUE.get_or_init(|| queue);
    let lines = lines(is_json(settings.format), || EscapingWriter(QueueWriter(queue)));
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init()
        .map_err(|_| LoggingError::Installed)?;
    panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Waits until all lines are written, for at most five seconds. Gives up after one second if nobody reads the log.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush();
    }
}

/// Writes a fatal error to standard error, after all log lines. Like [`flush`], it gives up if nobody reads the log.
pub fn write_error(text: &str) {
    if let Some(queue) = QUEUE.get() {
        queue.push(format!("{text}\n"));
        queue.flush();
    } else {
        // Logging has not started. If standard error is closed, there is nowhere to report to.
        let _ = writeln!(io::stderr(), "{text}");
    }
}

fn filter(settings: &LoggingSettings) -> Result<EnvFilter, LoggingError> {
    // rmcp logs several lines about each message, with text of the client. A more specific directive for it wins.
    let filter = settings.filter.trim();
    // An empty filter means errors only, which directives in front of it would change.
    let directives = if filter.is_empty() { String::new() } else { format!("rmcp=error,{filter}") };
    EnvFilter::builder().parse(directives).map_err(|error| LoggingError::Filter {
        filter: settings.filter.clone(),
        problem: error.to_string(),
    })
}

fn is_json(format: LogFormat) -> bool {
    match format {
        LogFormat::Auto => !io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    }
}

fn lines<W>(json: bool, writer: W) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
    if json { layer.json().flatten_event(true).boxed() } else { layer.boxed() }
}

/// Maximum size in bytes of a text from a client in one log field.
const MAX_FOREIGN_BYTES: usize = 256;

/// Cuts a text to at most 256 bytes at a character boundary and marks the cut with `...`. Must be used for log fields
/// that may hold text from a client.
pub fn clipped(text: &dyn fmt::Display) -> String {
    let mut text = text.to_string();
    if text.len() > MAX_FOREIGN_BYTES {
        let end = (0..=MAX_FOREIGN_BYTES).rev().find(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or(0));
        text.push_str("...");
    }
    text
}

/// Returns the message of a panic.
pub fn panic_message<'a>(info: &'a panic::PanicHookInfo<'_>) -> &'a str {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

fn log_panic(info: &panic::PanicHookInfo<'_>) {
    let message = panic_message(info);
    let place = info.location().map(ToString::to_string);
    let thread = std::thread::current();
    tracing::error!(panic = clipped(&message), place, thread = thread.name(), "panic");
    // This may be the last line of the process.
    flush();
}

/// Logs a notice of dropped lines. The writer thread calls this when it can write again.
fn log_dropped(lines: u64) {
    tracing::warn!(lines, "{lines} log lines were dropped here: the log was not read fast enough");
}

/// A writer that queues each write as one line. The subscriber writes every line with a single call.
struct QueueWriter(&'static LogQueue);

impl Write for QueueWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(String::from_utf8_lossy(line).into_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer that escapes control characters in a line, except the line feed at its end.
struct EscapingWriter<W>(W);

impl<W: Write> Write for EscapingWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(escape(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn escape(line: &str) -> String {
    let (line, end) = match line.strip_suffix('\n') {
        Some(line) => (line, "\n"),
        None => (line, ""),
    };
    // In addition to the C0 and C1 control characters, escape those that reorder or hide text on a terminal.
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut escaped = String::with_capacity(line.len() + 1);
    for c in line.chars() {
        if hidden(c) { escaped.extend(c.escape_unicode()) } else { escaped.push(c) }
    }
    escaped + end
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool, write: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let layer = lines(json, move || EscapingWriter(writer.clone()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), write);
        let bytes = captured.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn no_field_can_begin_a_line_or_command_the_terminal() {
        let hostile = "a\nINFO forged\r\u{1b}[2J\u{202e}\u{9b}31m";
        for json in [false, true] {
            let text = logged(json, || tracing::info!(name = hostile, path = %hostile, "seen"));
            assert_eq!(text.lines().count(), 1, "{text:?}");
            assert!(text.ends_with('\n'));
            let line = text.trim_end_matches('\n');
            assert!(!line.contains(|c: char| c.is_control() || c == '\u{202e}'), "{text:?}");
            assert!(line.contains("seen"), "{text:?}");
        }
    }

    #[test]
    fn of_a_clients_words_only_the_beginning_is_logged() {
        assert_eq!(clipped(&"short"), "short");
        let long = clipped(&"é".repeat(200));
        assert_eq!(long, format!("{}...", "é".repeat(128)));
        // With an odd number of leading bytes, the limit falls inside a character, which must not be split.
        assert_eq!(clipped(&format!("a{}", "é".repeat(200))).len(), 255 + 3);
    }

    #[test]
    fn json_lines_hold_fields_beside_the_message() {
        let text = logged(true, || tracing::warn!(status = 503, "refused"));
        assert!(text.contains("\"level\":\"WARN\""), "{text}");
        assert!(text.contains("\"message\":\"refused\""), "{text}");
        assert!(text.contains("\"status\":503"), "{text}");
    }

    #[test]
    fn a_broken_filter_is_refused_with_what_is_accepted() {
        let settings =
            LoggingSettings { filter: "blip=loud".to_owned(), ..LoggingSettings::default() };
        let error = filter(&settings).unwrap_err().to_string();
        assert!(error.starts_with("log.filter is \"blip=loud\""), "{error}");
        assert_eq!(settings.check().unwrap_err().key, "filter");
        assert_eq!(LoggingSettings::default().check(), Ok(()));
    }
}
