//! Fault injection: named places where tests inject a panic, a delay or an error. Works only with the cargo feature
//! `failpoints`. Without it, every function here returns a constant that means "no fault" and leaves nothing in the
//! binary.
//!
//! `tests/robustness/faults` enables the places by name through the crate `fail`, whose documentation describes the
//! syntax of actions (`5%panic`, `sleep(20)`, `return(oom)`). The names have the form `folder::place`.

/// Names of all places where faults can be injected, for tests that cover every one.
pub const PLACES: [&str; 24] = [
    "http::accept",
    "http::admit",
    "http::body",
    "http::tokenize",
    "http::image_values",
    "http::answer",
    "http::stream",
    "http::metrics",
    "input::reserve",
    "images::identify",
    "images::enqueue",
    "images::inspect",
    "images::decode",
    "images::resize",
    "engine::submit",
    "engine::accept",
    "engine::turn",
    "engine::encode",
    "engine::single_pass",
    "engine::open",
    "engine::step",
    "engine::send",
    "engine::probe",
    "engine::rebuild",
];

/// Number of errors injected so far. Panics and delays are counted by the tests that request them.
#[cfg(feature = "failpoints")]
pub static ERRORS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Returns whether the code at this place must return an error now. If a test has set a panic or a delay for the place,
/// panics or sleeps first.
#[cfg(feature = "failpoints")]
pub fn at(place: &str) -> bool {
    kind(place).is_some()
}

/// Returns the text of the failpoint's `return(...)` action, which names the error that the code at this place has to
/// return, or `None` if no error is to be injected. Like [`at`], it may first panic or sleep.
#[cfg(feature = "failpoints")]
pub fn kind(place: &str) -> Option<String> {
    debug_assert!(PLACES.contains(&place), "{place} is not in the list");
    fail::fail_point!(place, |kind| {
        ERRORS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Some(kind.unwrap_or_default())
    });
    None
}

/// Returns whether the code at this place must return an error now: always false in this build.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub const fn at(_: &str) -> bool {
    false
}

/// Returns the error that the code at this place must return now: always `None` in this build.
#[cfg(not(feature = "failpoints"))]
#[inline]
#[must_use]
pub const fn kind(_: &str) -> Option<String> {
    None
}
