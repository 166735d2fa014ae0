//! [`World`]: what the clients of a simulation share: the network, the log, and the violations found so far.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use tokio::time::Instant;

use super::network::{Network, Received};
use super::scenario::Scenario;

/// Longest time for which the probe, an honest client with one small request at a time, may wait for an answer of a
/// healthy server, whatever the other clients do: the time for its own request, and a share for each other client, since
/// clients take turns in each stage. A request that generates text has a dozen work units; each may wait for a unit of the
/// other stages and models, even if a single other client fills them all, so more clients hardly add to that. The numbers
/// are the longest waits in 100,000 seeds, rounded up.
const PATIENCE: Patience = Patience { own: 1700, per_client: 450 };
const PATIENCE_FOR_TEXTS: Patience = Patience { own: 3100, per_client: 100 };
/// Time between two instants at which clients attack together.
const BURST: Duration = Duration::from_millis(250);
/// Time for which a bulk request of a client that has none may wait for its turn.
const TURN: Duration = Duration::from_secs(10);
/// Time beyond the deadline of a request in which its answer must arrive.
const GRACE: Duration = Duration::from_millis(500);

/// A time that grows with the number of other clients, in milliseconds.
struct Patience {
    own: u64,
    per_client: u64,
}

impl Patience {
    fn with(&self, other_clients: u32) -> Duration {
        Duration::from_millis(self.own + self.per_client * u64::from(other_clients))
    }
}

/// Who waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Sends one small request at a time from an address of its own. It must always be served.
    Probe,
    /// Sends requests of all kinds, one or two at a time. It may be told to come back later.
    Honest,
    /// Does what it likes. It must get whole answers or none.
    Attacker,
}

pub(super) struct World {
    pub(super) network: Network,
    pub(super) scenario: Scenario,
    start: Instant,
    log: RefCell<Vec<String>>,
    violations: RefCell<Vec<String>>,
    /// When the signal to end was sent.
    ended: Cell<Option<Instant>>,
    /// Number of requests that clients may have left unanswered by closing their connections.
    pub(super) left: Cell<u64>,
    /// Number of clients that may leave an answer unread until their connection is cut.
    pub(super) slow_readers: Cell<u64>,
    /// Number of whole answers that clients received.
    pub(super) answers: Cell<u64>,
    /// Longest time that the probe has waited for an answer.
    pub(super) longest_wait: Cell<Duration>,
    /// The body of the first answer to each request.
    bodies: RefCell<HashMap<Vec<u8>, Vec<u8>>>,
}

/// Raises a counter.
pub(super) fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

impl World {
    pub(super) fn new(network: Network, scenario: Scenario) -> Self {
        Self {
            network,
            scenario,
            start: Instant::now(),
            log: RefCell::default(),
            violations: RefCell::default(),
            ended: Cell::default(),
            left: Cell::default(),
            slow_readers: Cell::default(),
            answers: Cell::default(),
            longest_wait: Cell::default(),
            bodies: RefCell::default(),
        }
    }

    /// Waits for the next instant at which clients that attack together open their connections.
    pub(super) async fn wait_for_burst(&self) {
        let bursts = self.start.elapsed().as_millis() / BURST.as_millis() + 1;
        tokio::time::sleep_until(self.start + BURST * bursts as u32).await;
    }

    /// Appends a line to the log.
    pub(super) fn log(&self, who: &str, what: impl Display) {
        let time = self.start.elapsed().as_millis();
        self.log.borrow_mut().push(format!("{time:>6} {who}: {what}"));
    }

    /// Records that something happened that must not happen.
    pub(super) fn violation(&self, who: &str, what: impl Display) {
        self.log(who, format!("VIOLATION: {what}"));
        self.violations.borrow_mut().push(format!("{who}: {what}"));
    }

    /// Records the signal to end.
    pub(super) fn end(&self) {
        self.log("signal", "end");
        self.ended.set(Some(Instant::now()));
    }

    /// Returns when the signal to end was sent.
    pub(super) fn ended(&self) -> Option<Instant> {
        self.ended.get()
    }

    /// True if clients send no further requests.
    pub(super) fn is_over(&self) -> bool {
        self.start.elapsed() >= self.scenario.horizon || self.ended.get().is_some()
    }

    /// Returns the log and the violations.
    pub(super) fn into_findings(self) -> (Vec<String>, Vec<String>) {
        (self.log.into_inner(), self.violations.into_inner())
    }

    /// Checks what a client received for the request `what`, `waited` after it had sent it completely.
    pub(super) fn check(
        &self,
        role: Role,
        who: &str,
        what: &str,
        received: &Received,
        waited: Duration,
    ) {
        let is_ending = self.ended.get().is_some();
        match received {
            Received::Malformed(problem) => self.violation(who, format!("not HTTP: {problem}")),
            // It sends everything before it reads, and its answers are more than the server holds.
            Received::CutOff if role == Role::Attacker && what == "bulk" => count(&self.left),
            Received::CutOff => self.violation(who, "an answer was cut off"),
            Received::Closed if role == Role::Attacker || is_ending => {}
            Received::Closed => self.violation(who, "the connection was closed without an answer"),
            Received::Answer(answer) => {
                count(&self.answers);
                let (status, code) = (answer.status, answer.code.as_str());
                let is_expected = match role {
                    Role::Attacker => (200..600).contains(&status),
                    _ if status == 200 => true,
                    _ if self.scenario.faults.any() => [500, 503, 504].contains(&status),
                    _ if is_ending => status == 503,
                    Role::Probe if !self.scenario.has_many_clients() => false,
                    Role::Probe | Role::Honest => (status, code) == (503, "overloaded"),
                };
                if !is_expected {
                    self.violation(who, format!("answered with {status} {code}"));
                }
                self.check_wait(role, who, what, waited);
            }
        }
    }

    /// Checks that equal requests get equal answers, whatever else the server does at the same time.
    pub(super) fn check_body(&self, who: &str, what: &str, request: &[u8], body: &[u8]) {
        let mut bodies = self.bodies.borrow_mut();
        let first = bodies.entry(request.to_vec()).or_insert_with(|| body.to_vec());
        if first != body {
            let [first, body] = [&**first, body].map(String::from_utf8_lossy);
            self.violation(who, format_args!("{what}: {body} instead of {first}"));
        }
    }

    fn check_wait(&self, role: Role, who: &str, what: &str, waited: Duration) {
        let http = &self.scenario.config.http;
        let deadline =
            if what == "bulk" { http.bulk.deadline + TURN } else { http.deadline } + GRACE;
        let is_healthy = !self.scenario.faults.any() && self.ended.get().is_none();
        let longest = match role {
            Role::Attacker => return,
            Role::Probe if is_healthy && !self.scenario.has_many_clients() => {
                self.longest_wait.set(self.longest_wait.get().max(waited));
                let generates = ["caption", "stream", "vqa", "chat"].contains(&what);
                let patience = if generates { PATIENCE_FOR_TEXTS } else { PATIENCE };
                patience.with(self.scenario.other_clients())
            }
            Role::Probe | Role::Honest => deadline,
        };
        if waited > longest {
            self.violation(who, format!("waited {waited:?} for an answer to {what}"));
        }
    }
}
