//! The clients of a simulation: `honest` ones, whose answers are checked in full, and `attacks`. Both send `bulk`
//! requests.

mod attacks;
mod bulk;
mod honest;

use std::fmt::Display;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::answer::Answer;
use super::chance::Chance;
use super::network::{Connection, Received};
use super::scenario::Attack;
use super::world::{Role, World, count};

/// A client gives up on an answer after this time. Every deadline of the server is shorter.
const PATIENCE: Duration = Duration::from_secs(30);
/// Size of the buffers of most connections.
const BUFFER: usize = 16 << 10;

/// One client, or one of several connections of a client.
pub(super) struct Client {
    world: Rc<World>,
    chance: Chance,
    address: [u8; 4],
    name: String,
    role: Role,
}

/// Starts all clients of the world's scenario. The futures end when their clients are done.
pub(super) fn all(world: &Rc<World>) -> Vec<impl Future<Output = ()> + use<>> {
    let scenario = &world.scenario;
    let client = |stream: usize, name: String, address: [u8; 4], role: Role| Client {
        world: Rc::clone(world),
        chance: Chance::new(scenario.seed, 10 + stream as u64),
        address,
        name,
        role,
    };
    let mut plans = vec![(client(0, "probe".to_owned(), [10, 0, 0, 1], Role::Probe), None)];
    for number in 0..scenario.honest {
        let host = number as u8 + 2;
        let name = format!("honest {number}");
        plans.push((client(1 + number, name, [10, 0, 0, host], Role::Honest), None));
    }
    for (number, &(attack, address)) in scenario.attacks.iter().enumerate() {
        let name = format!("{attack:?} {number}");
        plans.push((client(100 + number, name, address, Role::Attacker), Some(attack)));
    }
    let run = async |(client, attack): (Client, Option<Attack>)| match attack {
        None => client.be_honest().await,
        Some(attack) => client.attack(attack).await,
    };
    plans.into_iter().map(run).collect()
}

/// Returns the body of an answer if it depends on the request alone.
fn comparable<'a>(what: &str, answer: &'a Answer) -> Option<&'a [u8]> {
    let varies = ["stream", "health", "metrics", "chat", "bulk"].contains(&what);
    (!varies).then_some(&answer.body)
}

impl Client {
    fn log(&self, what: impl Display) {
        self.world.log(&self.name, what);
    }

    /// Returns a client at the same address with random choices of its own.
    fn fork(&mut self, number: usize) -> Self {
        Self {
            world: Rc::clone(&self.world),
            chance: Chance::new(self.chance.below(usize::MAX) as u64, number as u64),
            address: self.address,
            name: format!("{}.{number}", self.name),
            role: self.role,
        }
    }

    fn connect(&self) -> Option<Connection> {
        self.connect_with(BUFFER)
    }

    /// Opens a connection; `None` if it is refused.
    fn connect_with(&self, buffer: usize) -> Option<Connection> {
        let connection = self.world.network.connect(self.address, buffer);
        if connection.is_none() {
            self.log("refused");
            if self.role == Role::Probe && self.world.ended().is_none() {
                self.world.violation(&self.name, "the connection was refused");
            }
        }
        connection
    }

    /// Sends a request, receives its answer, and checks it. Returns the status; `None` if the connection cannot be used
    /// any more.
    async fn ask(&self, connection: &mut Connection, what: &str, request: &[u8]) -> Option<u16> {
        let sent = Instant::now();
        self.log(format_args!("{what}, {} bytes", request.len()));
        // A server that rejects a request may answer and close before it has read all of it.
        connection.send(request).await;
        let answer = self.receive(connection, what, sent).await?;
        if let (200, Some(body)) = (answer.status, comparable(what, &answer)) {
            self.world.check_body(&self.name, what, request, body);
        }
        (!answer.closes).then_some(answer.status)
    }

    /// Receives and checks the answer to a request that was sent at `sent`; `None` if there is none.
    async fn receive(
        &self,
        connection: &mut Connection,
        what: &str,
        sent: Instant,
    ) -> Option<Answer> {
        let Ok(received) = timeout(PATIENCE, connection.receive()).await else {
            if self.role == Role::Attacker && what == "bulk" {
                // Its other bulk requests have their turns first.
                count(&self.world.left);
                return None;
            }
            self.world.violation(&self.name, format!("{what}: no answer in {PATIENCE:?}"));
            return None;
        };
        let waited = sent.elapsed();
        self.world.check(self.role, &self.name, what, &received, waited);
        self.log(format_args!("{what}: {received} after {waited:?}"));
        if let Received::Answer(answer) = received { Some(answer) } else { None }
    }

    /// Closes a connection on which a request may be unanswered.
    fn leave(&self, connection: Connection) {
        count(&self.world.left);
        self.log("leaves");
        drop(connection);
    }

    /// Checks that nothing follows the last answer.
    fn check_silence(&self, connection: &mut Connection) {
        if connection.has_more() {
            self.world.violation(&self.name, "more came than the answers to all requests");
        }
    }
}
