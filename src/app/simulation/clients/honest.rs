//! Clients that keep the rules: they send whole requests, wait for each answer, and read it. The probe sends one small
//! request at a time and must always be served; the others may be told to come back later.

use super::super::chance::Chance;
use super::super::requests::{self, SMALL_CALLS};
use super::super::{network::Connection, pictures};
use super::{BUFFER, Client, Role};

impl Client {
    /// Sends requests until the end.
    pub(super) async fn be_honest(mut self) {
        let mut open: Option<Connection> = None;
        loop {
            let (first, last) = if self.role == Role::Probe { (20, 300) } else { (20, 900) };
            self.chance.pause(first, last).await;
            if self.world.is_over() {
                break;
            }
            // Some clients open a connection for each request.
            let keep = self.chance.percent(60);
            let buffer = if self.role == Role::Honest {
                self.chance.pick(&[4 << 10, BUFFER])
            } else {
                BUFFER
            };
            let connect = || self.connect_with(buffer);
            let Some(mut connection) = open.take().or_else(connect) else { continue };
            let answered = if self.role == Role::Honest && self.chance.percent(10) {
                let lines = self.chance.within(1, 40);
                self.ask_bulk(&mut connection, lines).await
            } else {
                let (what, request) = self.request();
                self.ask(&mut connection, what, &request).await
            };
            if answered.is_some() && keep {
                self.check_silence(&mut connection);
                open = Some(connection);
            }
        }
    }

    fn request(&mut self) -> (&'static str, Vec<u8>) {
        let kind = self.chance.below(10);
        match (self.role, kind) {
            (_, 0) => ("health", requests::get("/health")),
            (Role::Probe, _) => requests::small_call(kind % SMALL_CALLS, &mut self.chance),
            (_, 1) => ("metrics", requests::get("/metrics")),
            (_, 2) => ("batch", requests::batch(&small_pictures(&mut self.chance))),
            (_, 3) => ("beams", {
                let file = pictures::small(self.chance.below(8) as u64);
                requests::picture("/caption", "num_beams=4&max_new_tokens=12", &file)
            }),
            (_, 4) => ("large picture", {
                let file = pictures::large(self.chance.below(usize::MAX) as u64);
                requests::picture("/caption", "", &file)
            }),
            (_, kind) => requests::small_call(kind % SMALL_CALLS, &mut self.chance),
        }
    }
}

/// Returns a few small pictures, mostly new ones.
fn small_pictures(chance: &mut Chance) -> Vec<Vec<u8>> {
    (0..chance.within(2, 8)).map(|_| pictures::small(chance.below(64) as u64)).collect()
}
