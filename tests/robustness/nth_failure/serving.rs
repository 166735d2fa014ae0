//! System calls that fail while requests are served: one request on a new connection, and one on the same connection,
//! where it is still open.

use super::control::{COUNT, Fault, Seen};
use super::errors::{self, SERVING};
use super::requests::{Call, Outcome, Reply, exchange};
use super::server::{Launch, Server};
use super::settled;
use super::tally::Tally;
use serde_json::Value;

/// Sends the call twice.
fn send(server: &Server, call: &Call, fault: Fault) -> ([Reply; 2], Seen) {
    server.control.arm(fault);
    let replies = match server.connect() {
        Ok(mut stream) => {
            let first = exchange(&mut stream, &call.request);
            if first.ends_connection() {
                drop(stream);
                [first, settled::ask(server, call)]
            } else {
                [first, exchange(&mut stream, &call.request)]
            }
        }
        Err(_) => [Reply::Closed, settled::ask(server, call)],
    };
    (replies, server.control.disarm())
}

/// Each call of each kind fails in turn with each of its errors. `stride` is 1, or more to leave cases out.
pub(super) fn run(launch: &Launch, calls: &[Call], stride: usize, tally: &mut Tally) {
    let mut server = Server::start(launch);
    let mut case = 0;
    for call in calls {
        let right = settled::ask(&server, call).content().unwrap_or_else(|error| {
            panic!("{}: {error}\n{}", call.name, server.log());
        });
        let (_, counted) = send(&server, call, COUNT);
        for (kind, action) in SERVING
            .iter()
            .flat_map(|(kind, actions)| actions.iter().map(move |action| (*kind, *action)))
        {
            for nth in 1..=most(kind, &counted) {
                case += 1;
                if case % stride != 0 {
                    continue;
                }
                if kind == THREAD {
                    server = Server::start(launch);
                }
                let fault = Fault { kind, nth, action, min_bytes: u64::MAX };
                if !one(&mut server, call, &right, fault, tally) {
                    server = Server::start(launch);
                }
            }
        }
    }
    server.stop();
}

/// Threads are started by the first request that needs one, so each case needs a new server.
const THREAD: &str = "thread";

/// The last call of a kind that is tried. What runs beside a request calls a little more or less often from one time to
/// the next.
fn most(kind: &str, counted: &Seen) -> u64 {
    if kind == THREAD { 2 } else { counted.count(kind) + 2 }
}

/// One case. Returns false if the server is of no more use.
fn one(server: &mut Server, call: &Call, right: &Value, fault: Fault, tally: &mut Tally) -> bool {
    let (replies, seen) = send(server, call, fault);
    if !seen.hit {
        return true;
    }
    let (kind, error) = (fault.kind, errors::name(fault.action));
    let name =
        format!("{}: call {} of {kind} ({}) fails with {error}", call.name, fault.nth, seen.place);
    let judged: Result<Vec<Outcome>, String> =
        replies.iter().map(|reply| reply.judge(right)).collect();
    let checked = judged.and_then(|outcomes| {
        for outcome in &outcomes {
            match outcome {
                Outcome::Refused(code) | Outcome::Part(code) if !is_fitting(code) => {
                    return Err(format!("answered with {code}"));
                }
                Outcome::Right | Outcome::Closed | Outcome::Refused(_) | Outcome::Part(_) => {}
            }
        }
        settled::check(server, call, right).map(|()| outcomes)
    });
    let kind = format!("{kind} {error}");
    match checked {
        Ok(outcomes) => {
            // The worse of the two.
            let worst = outcomes.into_iter().max().unwrap_or(Outcome::Right);
            tally.add(&kind, &label(worst));
            true
        }
        Err(why) => {
            let log = server.log();
            let tail: String = log.lines().rev().take(3).collect::<Vec<_>>().join("\n");
            tally.add_wrong(&kind, &name, &format!("{why}\n{tail}"));
            false
        }
    }
}

/// Codes that fit a connection or a system that fails.
fn is_fitting(code: &str) -> bool {
    ["overloaded", "not_ready", "internal_error", "request_timeout", "invalid_request"]
        .contains(&code)
}

fn label(outcome: Outcome) -> String {
    match outcome {
        Outcome::Right => "right answer".to_owned(),
        Outcome::Refused(code) => code,
        Outcome::Part(code) => format!("part: {code}"),
        Outcome::Closed => "closed connection".to_owned(),
    }
}
