//! Clients that break the rules, on purpose or not.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::super::requests::{self, SMALL_CALLS};
use super::super::{network::Received, pictures, world::count};
use super::{Attack, Client, PATIENCE};

impl Client {
    /// Attacks until the end.
    pub(super) async fn attack(mut self, attack: Attack) {
        let connections = match attack {
            Attack::SilentBodies => self.chance.within(16, 40),
            Attack::IdleConnections | Attack::UnreadAnswers => {
                self.world.scenario.config.http.connections.max_connections + 4
            }
            Attack::ManyRequests => self.chance.within(6, 20),
            Attack::ManyAddresses => self.chance.within(4, 30),
            Attack::LongTexts => self.chance.within(20, 90),
            Attack::LargePictures => self.chance.within(1, 3),
            Attack::Bulk => {
                let all = self.world.scenario.config.http.connections.max_connections + 4;
                self.chance.pick(&[1, 3, 6, 20, all])
            }
            Attack::Trickle
            | Attack::WrongLength
            | Attack::Leave
            | Attack::SlowReader
            | Attack::Pipeline
            | Attack::Garbage => self.chance.within(1, 4),
        };
        let mut forks: Vec<Self> = (0..connections).map(|number| self.fork(number)).collect();
        if attack == Attack::ManyAddresses {
            for (number, client) in forks.iter_mut().enumerate() {
                client.address = [10, 0, 2, number as u8];
            }
        }
        join_all(forks.into_iter().map(|mut client| async move {
            while !client.world.is_over() {
                client.chance.pause(0, 400).await;
                client.attack_once(attack).await;
            }
        }))
        .await;
    }

    async fn attack_once(&mut self, attack: Attack) {
        match attack {
            Attack::SilentBodies => self.send_silent_body().await,
            Attack::Trickle => self.trickle().await,
            Attack::WrongLength => self.send_wrong_length().await,
            Attack::LargePictures => self.send_large_pictures().await,
            Attack::Leave => self.send_and_leave().await,
            Attack::IdleConnections => self.hold_connection().await,
            Attack::ManyRequests | Attack::ManyAddresses => self.send_small_calls().await,
            Attack::LongTexts => self.send_long_text().await,
            Attack::SlowReader => self.read_slowly().await,
            Attack::UnreadAnswers => self.leave_unread().await,
            Attack::Pipeline => self.pipeline().await,
            Attack::Garbage => self.send_garbage().await,
            Attack::Bulk => self.send_bulk().await,
        }
    }

    async fn send_silent_body(&mut self) {
        let Some(mut connection) = self.connect() else { return };
        let most = self.world.scenario.config.http.limits.max_body_bytes as usize;
        let declared = self.chance.pick(&[300, most / 4, most, most]);
        self.log(format_args!("declares {declared} bytes"));
        connection.send(requests::head("/caption", "image/png", declared).as_bytes()).await;
        connection.send(b"x").await;
        let patience = self.chance.milliseconds(100, 6000);
        match timeout(patience, connection.receive()).await {
            Ok(received) => {
                self.world.check(self.role, &self.name, "attack", &received, Duration::ZERO);
            }
            Err(_) => self.leave(connection),
        }
    }

    async fn trickle(&mut self) {
        let Some(mut connection) = self.connect() else { return };
        let kind = self.chance.below(SMALL_CALLS);
        let (what, request) = requests::small_call(kind, &mut self.chance);
        let pieces = self.chance.within(2, 12);
        for piece in request.chunks(request.len().div_ceil(pieces)) {
            if !connection.send(piece).await {
                break;
            }
            self.chance.pause(0, 700).await;
        }
        let answered = self.receive(&mut connection, what, Instant::now()).await;
        if answered.is_some_and(|answer| !answer.closes) {
            self.check_silence(&mut connection);
        }
    }

    async fn send_wrong_length(&mut self) {
        let Some(mut connection) = self.connect() else { return };
        let file = pictures::small(self.chance.below(8) as u64);
        let longer = self.chance.percent(50);
        let declared = if longer { file.len() + 10 } else { file.len() - 10 };
        self.log(format_args!("declares {declared} bytes and sends {}", file.len()));
        connection.send(requests::head("/caption", "image/png", declared).as_bytes()).await;
        connection.send(&file).await;
        if self.chance.percent(50) {
            connection.finish_sending().await;
        }
        // The bytes beyond the declared length are a second request, and not a good one.
        for _ in 0..2 {
            let received = timeout(PATIENCE, connection.receive()).await;
            let Ok(received) = received else {
                self.world.violation(&self.name, "no answer to a body of a wrong length");
                return;
            };
            self.world.check(self.role, &self.name, "attack", &received, Duration::ZERO);
            self.log(&received);
            let Received::Answer(answer) = received else { return };
            if answer.closes || longer {
                return;
            }
        }
    }

    async fn send_large_pictures(&mut self) {
        let Some(mut connection) = self.connect() else { return };
        let first = self.chance.below(usize::MAX >> 8) as u64;
        let files = (0..self.chance.within(4, 16) as u64).map(|n| pictures::large(first + n));
        let request = requests::batch(&files.collect::<Vec<_>>());
        if self.chance.percent(50) {
            self.ask(&mut connection, "large pictures", &request).await;
            return;
        }
        connection.send(&request).await;
        self.chance.pause(0, 500).await;
        self.leave(connection);
    }

    async fn send_and_leave(&mut self) {
        let Some(mut connection) = self.connect() else { return };
        let kind = self.chance.below(SMALL_CALLS);
        let (what, request) = requests::small_call(kind, &mut self.chance);
        let sent = self.chance.within(1, request.len());
        let part = if self.chance.percent(70) { &request[..] } else { &request[..sent] };
        self.log(format_args!("{what}, {} of {} bytes", part.len(), request.len()));
        connection.send(part).await;
        self.chance.pause(0, 120).await;
        self.leave(connection);
    }

    async fn hold_connection(&mut self) {
        let Some(mut connection) = self.connect() else {
            self.chance.pause(100, 500).await;
            return;
        };
        let sends = self.chance.percent(30);
        if sends && self.ask(&mut connection, "health", &requests::get("/health")).await.is_none() {
            return;
        }
        let patience = self.chance.milliseconds(500, 8000);
        let mut piece = [0; 64];
        // Ends when the server closes the connection.
        let _ = timeout(patience, connection.receive_piece(&mut piece)).await;
    }

    async fn send_small_calls(&mut self) {
        let Some(mut connection) = self.connect() else { return };
        for _ in 0..3 {
            let kind = self.chance.below(SMALL_CALLS);
            let (mut what, mut request) = requests::small_call(kind, &mut self.chance);
            match self.chance.below(8) {
                0 => request = requests::hurried(&request, self.chance.within(1, 600)),
                1 => (what, request) = ("by id", requests::by_id(&mut self.chance)),
                2 => (what, request) = ("broken picture", requests::broken(&mut self.chance)),
                _ => {}
            }
            if self.ask(&mut connection, what, &request).await.is_none() || self.world.is_over() {
                return;
            }
            self.check_silence(&mut connection);
        }
    }

    async fn send_long_text(&mut self) {
        let Some(mut connection) = self.connect() else { return };
        let file = pictures::small(self.chance.below(64) as u64);
        let request = requests::picture("/caption", "max_new_tokens=40", &file);
        self.ask(&mut connection, "long text", &request).await;
    }

    async fn read_slowly(&mut self) {
        count(&self.world.slow_readers);
        let Some(mut connection) = self.connect_with(256) else { return };
        self.log("reads slowly");
        let kind = self.chance.below(SMALL_CALLS);
        let request = match self.chance.below(3) {
            0 => requests::get("/metrics"),
            _ => requests::small_call(kind, &mut self.chance).1,
        };
        let pieces = self.chance.within(0, 30);
        if timeout(PATIENCE, connection.send(&request)).await.is_err() {
            self.world.violation(&self.name, "a request was neither read nor rejected");
        }
        let mut piece = [0; 100];
        for _ in 0..pieces {
            self.chance.pause(10, 400).await;
            let received = timeout(PATIENCE, connection.receive_piece(&mut piece)).await;
            if received.unwrap_or(0) == 0 {
                break;
            }
        }
        self.chance.pause(0, 5000).await;
        self.leave(connection);
    }

    async fn leave_unread(&mut self) {
        if self.chance.percent(70) {
            // Several connections open at the same instant.
            self.world.wait_for_burst().await;
        }
        let Some(mut connection) = self.connect_with(64) else { return };
        count(&self.world.slow_readers);
        self.log("does not read");
        connection.send(&requests::get("/metrics")).await;
        self.chance.pause(500, 6000).await;
        self.leave(connection);
    }

    async fn pipeline(&mut self) {
        let Some(mut connection) = self.connect() else { return };
        let count = self.chance.within(2, 5);
        let mut all = Vec::new();
        for _ in 0..count {
            let kind = self.chance.below(SMALL_CALLS + 1);
            if kind == SMALL_CALLS {
                all.extend(requests::get("/health"));
            } else {
                all.extend(requests::small_call(kind, &mut self.chance).1);
            }
        }
        self.log(format_args!("sends {count} requests at once"));
        let sent = Instant::now();
        connection.send(&all).await;
        for number in 0..count {
            let what = format!("request {number} of {count}");
            let answer = self.receive(&mut connection, &what, sent).await;
            if answer.is_none_or(|answer| answer.closes) {
                return;
            }
        }
        self.check_silence(&mut connection);
    }

    async fn send_garbage(&mut self) {
        let Some(mut connection) = self.connect() else { return };
        let bytes = requests::garbage(&mut self.chance);
        self.log(format_args!("sends {} bytes that are no request", bytes.len()));
        connection.send(&bytes).await;
        if self.chance.percent(50) {
            connection.finish_sending().await;
        }
        let Ok(received) = timeout(PATIENCE, connection.receive()).await else {
            self.world.violation(&self.name, "a connection with an unfinished head stays open");
            return;
        };
        self.world.check(self.role, &self.name, "attack", &received, Duration::ZERO);
        self.leave(connection);
    }
}
