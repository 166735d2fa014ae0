//! Allocations that fail while a request is served.
//!
//! A failed allocation of std (`Vec::push`, `Box::new`) ends the process; only `try_reserve` gives an error. So a failure
//! may end in the right answer, in an error that does not blame the client, or in the end of the process, whose message
//! then says how large the allocation was.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use serde_json::Value;

use super::control::{Fault, Seen};
use super::requests::{Call, Outcome, Reply};
use super::server::{End, Launch, PATIENCE, Server};
use super::settled;
use super::tally::Tally;

/// From this size on, a client decides the size of an allocation. The buffers of hyper and of the multipart parser are
/// smaller (at most 57 KB were seen).
pub(super) const LARGE: u64 = 64 << 10;

/// Linux' number of the signal with which `abort` ends a process.
const SIGABRT: i32 = 6;
/// A server that aborts does so at once. Waited for only after a connection ended without an answer.
const ABORT_LIMIT: Duration = Duration::from_millis(500);

/// The n-th allocation of at least `min_bytes`.
pub(super) fn fault(nth: u64, min_bytes: u64) -> Fault {
    Fault { kind: "allocate", nth, action: 0, min_bytes }
}

/// Sends a call while an allocation fails.
pub(super) fn send(server: &Server, call: &Call, fault: Fault) -> (Reply, Seen) {
    server.control.arm(fault);
    let reply = settled::ask(server, call);
    (reply, server.control.disarm())
}

/// What became of a call during which an allocation failed, and whether the server lives on.
///
/// # Errors
/// Says what is wrong.
pub(super) fn judge(
    server: &mut Server,
    call: &Call,
    right: &Value,
    (reply, seen): (&Reply, &Seen),
) -> Result<(String, bool), String> {
    let outcome = reply.judge(right)?;
    let patience = if outcome == Outcome::Closed { ABORT_LIMIT } else { Duration::ZERO };
    if let Some(end) = server.end_within(patience) {
        check_end(&end, seen)?;
        let outcome = if outcome == Outcome::Closed { "abort" } else { "abort after the answer" };
        return Ok((outcome.to_owned(), false));
    }
    let outcome = match outcome {
        Outcome::Right => "right answer".to_owned(),
        Outcome::Refused(code) if is_of_server(&code) => code,
        Outcome::Part(codes) if codes.split('+').all(is_of_server) => format!("part: {codes}"),
        Outcome::Refused(code) | Outcome::Part(code) => {
            return Err(format!("the client is blamed: {code}"));
        }
        Outcome::Closed => "closed connection".to_owned(),
    };
    if let Err(error) = settled::check(server, call, right) {
        // It may have ended only now.
        let Some(end) = server.end_within(ABORT_LIMIT) else { return Err(error) };
        check_end(&end, seen)?;
        return Ok(("abort after the answer".to_owned(), false));
    }
    Ok((outcome, true))
}

/// Codes that say that the server could not do it, not that the request is wrong.
fn is_of_server(code: &str) -> bool {
    ["overloaded", "not_ready", "inference_failed", "internal_error"].contains(&code)
}

/// An end for want of memory says so, and which allocation failed.
fn check_end(end: &End, seen: &Seen) -> Result<(), String> {
    let size = seen.place.rsplit(' ').next().unwrap_or_default();
    // Written in pieces, between which a line of the log may come.
    let message = ["memory allocation of ".to_owned(), format!("{size} bytes failed")];
    // The C library's words, where a thread registers a destructor.
    let of_libc = "failed to register TLS destructor: out of memory";
    let says = message.iter().all(|part| end.log.contains(part)) || end.log.contains(of_libc);
    if end.status.signal() == Some(SIGABRT) && says {
        return Ok(());
    }
    Err(format!("it ended otherwise than with {:?}: {end:?}", message.concat()))
}

/// Each allocation of at least [`LARGE`] bytes fails in turn, over one request of each call. `stride` is 1, or more to
/// leave cases out. Returns the calls and sizes that end the process.
pub(super) fn large(
    launch: &Launch,
    calls: &[Call],
    stride: u64,
    tally: &mut Tally,
) -> Vec<String> {
    let mut server = Server::start(launch);
    let (mut ends, mut case) = (Vec::new(), 0);
    for call in calls {
        let right = settled::ask(&server, call).content().unwrap_or_else(|error| {
            panic!("{}: {error}\n{}", call.name, server.log());
        });
        for nth in 1.. {
            case += 1;
            if case % stride != 0 && nth > 1 {
                continue;
            }
            let (reply, seen) = send(&server, call, fault(nth, LARGE));
            if !seen.hit {
                assert_eq!(
                    reply.judge(&right),
                    Ok(Outcome::Right),
                    "{} without a fault",
                    call.name
                );
                break;
            }
            let place = format!("{}, allocation {nth} ({})", call.name, seen.place);
            match judge(&mut server, call, &right, (&reply, &seen)) {
                Ok((outcome, true)) => tally.add(&call.name, &outcome),
                Ok((outcome, false)) => {
                    tally.add(&call.name, &outcome);
                    ends.push(place);
                    server = Server::start(launch);
                }
                Err(why) => {
                    tally.add_wrong(&call.name, &place, &why);
                    server = Server::start(launch);
                }
            }
        }
    }
    server.stop();
    ends
}

/// Number of allocations after which a long run says how far it is.
const PROGRESS: u64 = 100;

/// Every allocation of any size fails in turn, over one request of a call, each in a server of its own. `stride` is 1,
/// or more to leave cases out; `first` is the first allocation.
pub(super) fn every(launch: &Launch, call: &Call, (first, stride): (u64, u64), tally: &mut Tally) {
    let server = Server::start(launch);
    let right = settled::ask(&server, call).content().expect("an answer without a fault");
    server.stop();
    let mut nth = first;
    loop {
        let mut server = Server::start(launch);
        let (reply, seen) = send(&server, call, fault(nth, 0));
        if !seen.hit {
            assert_eq!(reply.judge(&right), Ok(Outcome::Right), "{} without a fault", call.name);
            break;
        }
        let place = format!("{}, allocation {nth} ({})", call.name, seen.place);
        match judge(&mut server, call, &right, (&reply, &seen)) {
            Ok((outcome, _)) => tally.add(&call.name, &outcome),
            Err(why) => tally.add_wrong(&call.name, &place, &why),
        }
        nth += stride;
        // All of them take more than an hour.
        if stride == 1 && nth.is_multiple_of(PROGRESS) {
            eprintln!("{}: {nth} allocations have failed in turn", call.name);
        }
    }
}

/// Prints the stack of each large allocation over one request of a call: for those who look for what could be fallible.
pub(super) fn trace(launch: &Launch, call: &Call, min_bytes: u64) {
    let launch = Launch { trace: true, ..launch.clone() };
    let server = Server::start(&launch);
    let before = server.log().len();
    let (reply, _) = send(&server, call, fault(0, min_bytes));
    assert!(!matches!(reply, Reply::Late), "no answer within {PATIENCE:?}");
    eprintln!("==== {}\n{}", call.name, &server.log()[before..]);
}
