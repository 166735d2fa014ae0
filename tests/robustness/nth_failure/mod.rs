//! Failure at every call: the n-th allocation over a request, and the n-th system call of each kind while the server
//! loads and while it serves, for every n. Each time there has to be the right answer, a clear error or a closed
//! connection, never a wrong answer and never a hang; and unless the process ended, it then is as good as new.
//!
//! - `shim.rs` is no module, but a library of its own, which is loaded in front of the C library into the real server.
//!   `layout.rs` is what it shares with `control.rs`, through which a test says which call fails.
//! - `allocations`, `loading`, `serving`: the three kinds of runs. `server`, `requests`, `settled`: what they run on,
//!   send and expect.
//!
//! Only for Linux with the GNU C library, whose functions the shim replaces.
//!
//! ```text
//! cargo test --release --test it -- --ignored --nocapture robustness::nth_failure::long
//! ```

mod allocations;
mod control;
mod errors;
mod layout;
mod loading;
mod requests;
mod server;
mod serving;
mod settled;
mod tally;

use self::allocations::{every, large};
use self::requests::{Call, busy_picture, of_every_document, of_every_endpoint, of_every_format};
use self::server::Launch;
use self::tally::Tally;

/// The tiny checkpoints, one of each class.
fn tiny() -> Launch {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let models: Vec<String> = ["caption-varied", "vqa-varied", "retrieval"]
        .iter()
        .map(|name| format!("{name}={}", fixtures.join(name).display()))
        .collect();
    let mut arguments = vec!["serve", "--dtype", "f32"];
    arguments.extend(models.iter().flat_map(|model| ["--model", model.as_str()]));
    Launch::with(&arguments, &[])
}

fn small_picture() -> Vec<u8> {
    busy_picture(8, 6, image::ImageFormat::Png)
}

/// Of a format whose decoder is our own, with 360,000 bytes.
fn large_picture() -> Vec<u8> {
    busy_picture(400, 300, image::ImageFormat::Bmp)
}

/// Calls of all paths, of which some are large enough for threads of their own.
fn served_calls() -> Vec<Call> {
    let mut calls = of_every_endpoint(&small_picture());
    calls.extend(of_every_document());
    calls.extend(of_every_endpoint(&large_picture()).into_iter().take(3));
    calls
}

/// Formats whose decoders, of other crates, cannot report that an allocation failed.
const FOREIGN: [&str; 3] = ["png", "gif", "webp"];

/// Only large allocations of foreign decoders may have ended the process.
fn check_ends(ends: &[String]) {
    let is_own = |end: &&String| !FOREIGN.iter().any(|format| end.starts_with(format));
    let own: Vec<_> = ends.iter().filter(is_own).collect();
    eprintln!("{} large allocations end the process:", ends.len());
    for end in ends {
        eprintln!("  {end}");
    }
    assert!(own.is_empty(), "of our own code: {own:#?}");
}

#[test]
fn a_large_allocation_that_fails_is_an_error_and_the_process_lives() {
    let mut tally = Tally::default();
    let mut calls = of_every_endpoint(&large_picture());
    calls.extend(of_every_format(400, 300));
    let ends = large(&Launch::mock(), &calls, 5, &mut tally);
    tally.finish("large allocations");
    check_ends(&ends);
}

#[test]
fn any_allocation_that_fails_is_an_error_or_the_end_of_the_process() {
    let mut tally = Tally::default();
    for (index, call) in of_every_endpoint(&small_picture()).iter().enumerate() {
        every(&Launch::mock(), call, (1 + 7 * index as u64, 400), &mut tally);
    }
    tally.finish("all allocations");
}

#[test]
fn a_system_call_that_fails_while_serving_costs_at_most_its_connection() {
    let mut tally = Tally::default();
    serving::run(&Launch::mock(), &served_calls(), 60, &mut tally);
    tally.finish("system calls while serving");
}

#[test]
fn a_system_call_that_fails_while_loading_is_an_error_that_names_the_file() {
    let mut tally = Tally::default();
    loading::run(&loading::Site::new(), 29, &mut tally);
    tally.finish("system calls while loading");
}

/// Prints where the large allocations are.
#[test]
#[ignore = "long"]
fn where_the_large_allocations_are() {
    let mut calls = of_every_endpoint(&large_picture());
    calls.extend(of_every_format(400, 300));
    for call in calls {
        allocations::trace(&Launch::mock(), &call, allocations::LARGE);
    }
    for call in of_every_endpoint(&large_picture()) {
        allocations::trace(&tiny(), &call, allocations::LARGE);
    }
}

mod long {
    use super::*;

    #[test]
    #[ignore = "long"]
    fn large_allocations() {
        let (mut tally, mut ends) = (Tally::default(), Vec::new());
        let mut calls = of_every_endpoint(&large_picture());
        calls.extend(of_every_format(400, 300));
        ends.extend(large(&Launch::mock(), &calls, 1, &mut tally));
        ends.extend(large(&tiny(), &of_every_endpoint(&large_picture()), 1, &mut tally));
        tally.finish("large allocations");
        check_ends(&ends);
    }

    #[test]
    #[ignore = "long"]
    fn every_allocation() {
        let mut tally = Tally::default();
        for launch in [Launch::mock(), tiny()] {
            for call in of_every_endpoint(&small_picture()) {
                every(&launch, &call, (1, 1), &mut tally);
            }
        }
        tally.finish("all allocations");
    }

    #[test]
    #[ignore = "long"]
    fn serving() {
        let mut tally = Tally::default();
        serving::run(&Launch::mock(), &served_calls(), 1, &mut tally);
        tally.finish("system calls while serving");
    }

    #[test]
    #[ignore = "long"]
    fn loading() {
        let mut tally = Tally::default();
        loading::run(&loading::Site::new(), 1, &mut tally);
        tally.finish("system calls while loading");
    }
}
