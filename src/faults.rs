//! Fault injection: named places where tests inject a panic, a delay or an error. Works only with the cargo feature
//! `failpoints`; without it every function here is a constant "no" and leaves nothing in the binary.
//!
//! `tests/robustness/faults` enables them by name through the crate `fail`, whose documentation describes the syntax of
//! actions (`5%panic`, `sleep(20)`, `return(oom)`). Names are `folder::place`.

/// Names of all places, for tests that go through all of them.
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
    "engine::score",
    "engine::open",
    "engine::step",
    "engine::send",
    "engine::probe",
    "engine::rebuild",
];

/// Number of errors injected so far. Panics and delays are counted by the tests that request them.
#[cfg(feature = "failpoints")]
pub static ERRORS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Whether this place fails with an error now. Panics or sleeps if that is the action of the place.
#[cfg(feature = "failpoints")]
pub fn at(place: &str) -> bool {
    kind(place).is_some()
}

/// The error to return at this place now: the text in `return(...)`. Panics or sleeps like [`at`].
#[cfg(feature = "failpoints")]
pub fn kind(place: &str) -> Option<String> {
    debug_assert!(PLACES.contains(&place), "{place} is not in the list");
    fail::fail_point!(place, |kind| {
        ERRORS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Some(kind.unwrap_or_default())
    });
    None
}

/// Whether this place fails with an error now: never in this build.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub const fn at(_: &str) -> bool {
    false
}

/// The error to return at this place now: always `None` in this build.
#[cfg(not(feature = "failpoints"))]
#[inline]
#[must_use]
pub const fn kind(_: &str) -> Option<String> {
    None
}
