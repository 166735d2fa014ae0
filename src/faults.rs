//! Places where a fault can be injected: a panic, a delay, an error. Only with the cargo feature `failpoints`; without it
//! every question here is a constant "no" and nothing is left in the binary.
//!
//! `tests/robustness/faults` switches them on by name, through the crate `fail`; its documentation has the language
//! (`5%panic`, `sleep(20)`, `return(oom)`). Names are `folder::place`.

/// Every place, for tests that go through all of them.
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

/// Errors that were injected so far; panics and delays are counted by whoever asked for them.
#[cfg(feature = "failpoints")]
pub static ERRORS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Should this place fail now? Panics or waits where it is told to.
#[cfg(feature = "failpoints")]
pub fn at(place: &str) -> bool {
    kind(place).is_some()
}

/// How this place should fail now: the text in `return(...)`.
#[cfg(feature = "failpoints")]
pub fn kind(place: &str) -> Option<String> {
    debug_assert!(PLACES.contains(&place), "{place} is not in the list");
    fail::fail_point!(place, |kind| {
        ERRORS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Some(kind.unwrap_or_default())
    });
    None
}

/// Should this place fail now? Never in this build.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub const fn at(_: &str) -> bool {
    false
}

/// How this place should fail now. Never in this build.
#[cfg(not(feature = "failpoints"))]
#[inline]
#[must_use]
pub const fn kind(_: &str) -> Option<String> {
    None
}
