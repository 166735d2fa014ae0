//! Bulk requests: an answer has one line for each line of its request, and a summary at its end.

use std::collections::BTreeMap;

use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::super::network::Connection;
use super::super::requests;
use super::super::world::{Role, count};
use super::{Client, PATIENCE};

impl Client {
    /// Sends a bulk request of so many lines and checks all of its answers. Returns the status; `None` if the connection
    /// cannot be used any more.
    pub(super) async fn ask_bulk(
        &mut self,
        connection: &mut Connection,
        lines: usize,
    ) -> Option<u16> {
        let request = requests::bulk(lines, &mut self.chance);
        let sent = Instant::now();
        self.log(format_args!("bulk, {lines} lines, {} bytes", request.len()));
        connection.send(&request).await;
        let answer = self.receive(connection, "bulk", sent).await?;
        if answer.status == 200 {
            self.check_lines(lines, &answer.body);
        }
        (!answer.closes).then_some(answer.status)
    }

    /// Checks that each line has exactly one answer, and that only a server that ends or fails refuses any.
    fn check_lines(&self, lines: usize, body: &[u8]) {
        let parsed =
            body.split_inclusive(|&byte| byte == b'\n').map(serde_json::from_slice::<Value>);
        let Ok(mut answers) = parsed.collect::<Result<Vec<_>, _>>() else {
            return self.world.violation(&self.name, "a line of an answer is not JSON");
        };
        let summary = answers.pop().unwrap_or_default();
        let mut statuses: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for answer in &answers {
            let id = answer["id"].as_u64().unwrap_or(u64::MAX);
            statuses.entry(id).or_default().push(answer["status"].as_u64().unwrap_or(0));
        }
        let is_ended = self.world.ended().is_some();
        let may_fail = is_ended || self.world.scenario.faults.any() || self.role == Role::Attacker;
        let once = statuses.values().all(|statuses| statuses.len() == 1);
        let failed = statuses.values().flatten().filter(|status| **status != 200).count();
        let is_whole = statuses.len() == lines && statuses.keys().all(|id| (*id as usize) < lines);
        let is_summary = summary["done"] == answers.len() && summary["failed"] == failed;
        // What was read before a failure is answered; the summary says that the rest was not read.
        let is_complete = is_whole || (may_fail && summary["error"].is_object());
        if !(once && is_complete && is_summary && (failed == 0 || may_fail)) {
            self.world.violation(
                &self.name,
                format_args!("{lines} lines are answered with {statuses:?}, then {summary}"),
            );
        }
    }

    /// Sends a bulk request as a client that breaks the rules.
    pub(super) async fn send_bulk(&mut self) {
        let most = self.chance.pick(&[4, 120]);
        let lines = self.chance.within(1, most);
        let kind = self.chance.below(4);
        let buffer = self.chance.pick(&[256, 4096, 1 << 20]);
        let Some(mut connection) = self.connect_with(buffer) else { return };
        if kind == 0 {
            self.ask_bulk(&mut connection, lines).await;
            return;
        }
        let request = requests::bulk(lines, &mut self.chance);
        let sent = if kind == 1 { request.len() } else { self.chance.within(1, request.len()) };
        self.log(format_args!("bulk, {lines} lines, {sent} of {} bytes", request.len()));
        if kind == 2 {
            // Sends a part and waits until the server gives up.
            connection.send(&request[..sent]).await;
            self.receive(&mut connection, "bulk", Instant::now()).await;
            return;
        }
        // Sends, reads little or nothing, and leaves.
        count(&self.world.slow_readers);
        let patience = self.chance.milliseconds(100, 5000);
        let _ = timeout(patience, connection.send(&request[..sent])).await;
        let mut piece = [0; 100];
        for _ in 0..self.chance.within(0, 20) {
            self.chance.pause(10, 300).await;
            if timeout(PATIENCE, connection.receive_piece(&mut piece)).await.unwrap_or(0) == 0 {
                break;
            }
        }
        self.leave(connection);
    }
}
