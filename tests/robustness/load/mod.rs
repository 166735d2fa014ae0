//! The server as a process under load: overload, clients that leave, that are slow or behind a bad network, signals, and
//! hours of traffic.
//!
//! What the runs share: `process` starts and watches a server, `client` asks it and counts what comes back, `scrape`
//! reads its metrics, `traffic` says what is asked, `open_loop` when, `tally` counts answers, `toxics` spoil the way,
//! `raw` are bare sockets, `slope` judges a series of memory readings.

mod chance;
mod client;
mod disconnects;
mod open_loop;
mod overload;
pub(super) mod process;
mod proxy;
mod raw;
#[cfg(feature = "demo")]
mod real_model;
mod scrape;
mod signals;
mod slope;
mod slow_clients;
mod soak;
mod tally;
mod toxics;
mod traffic;
