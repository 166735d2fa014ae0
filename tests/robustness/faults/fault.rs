//! One fault at one place, switched on and off, and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blip_server::faults;

/// What happens at a place.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Effect {
    Panic,
    /// The place fails in this way ("" for its only one).
    Error(&'static str),
    /// The thread waits.
    DelayMs(u64),
}

/// A fault to inject at every n-th passage.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Injection {
    pub(crate) place: &'static str,
    pub(crate) effect: Effect,
    pub(crate) every: u64,
}

/// The text by which injected panics are known.
const PANIC: &str = "injected panic";

/// A fault that is on. Dropping it switches it off.
pub(crate) struct Fault {
    injection: Injection,
    injected: Arc<AtomicU64>,
    errors_before: u64,
}

impl Fault {
    pub(crate) fn start(injection: &Injection) -> Self {
        let injection = *injection;
        let injected = Arc::new(AtomicU64::new(0));
        let (count, passages) = (Arc::clone(&injected), AtomicU64::new(0));
        let hits = move || {
            let hit =
                (passages.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(injection.every);
            if hit {
                count.fetch_add(1, Ordering::Relaxed);
            }
            hit
        };
        match injection.effect {
            Effect::Panic => fail::cfg_callback(injection.place, move || {
                assert!(!hits(), "{PANIC}");
            }),
            Effect::DelayMs(milliseconds) => fail::cfg_callback(injection.place, move || {
                if hits() {
                    pass_time(Duration::from_millis(milliseconds));
                }
            }),
            // The crate's own language knows shares only.
            Effect::Error(kind) => {
                fail::cfg(injection.place, &format!("{}%return({kind})", 100 / injection.every))
            }
        }
        .unwrap();
        Self { injection, injected, errors_before: faults::ERRORS.load(Ordering::Relaxed) }
    }

    /// Switches it off; how often it struck.
    pub(crate) fn stop(self) -> u64 {
        match self.injection.effect {
            Effect::Error(_) => faults::ERRORS.load(Ordering::Relaxed) - self.errors_before,
            Effect::Panic | Effect::DelayMs(_) => self.injected.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        fail::remove(self.injection.place);
    }
}

#[expect(clippy::disallowed_methods, reason = "a delay is what is injected")]
fn pass_time(time: Duration) {
    std::thread::sleep(time);
}

/// Thousands of reports would hide a real one.
pub(crate) fn silence_injected_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.to_string().contains(PANIC) {
            report(info);
        }
    }));
}
