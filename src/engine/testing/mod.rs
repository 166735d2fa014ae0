//! Scaffolding for tests of the engine, and for other tests that run an engine. Only builds with the cargo feature
//! `test-util` contain it; `cargo test` and everything else that builds tests, benches or examples of this package
//! enable that feature by themselves (`[dev-dependencies]` in `Cargo.toml`).
//!
//! For tests of all folders and for `tests/`:
//! - [`fake`]: a scripted backend.
//! - [`ManualClock`]: a clock that the test advances.
//!
//! For the engine's own tests, which need private items or dev-dependencies:
//! - `bench`: a running engine on the fake backend, and tasks for it.
//! - `schedules`: the engine under thread schedules that a checker chooses.
//! - `twins`: the locks, channels and threads that the checker controls. `sync` hands them to the engine.
//!
//! Test modules that need the private items of one file are next to that file: `plan/tests.rs`,
//! `scheduler/properties`, `worker/properties.rs`. Tests through the engine's handle are in `engine/tests`.

#[cfg(test)]
pub(crate) mod bench;
mod clock;
pub mod fake;
#[cfg(test)]
mod schedules;
#[cfg(test)]
pub(crate) mod twins;

pub use clock::ManualClock;
