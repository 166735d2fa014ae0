//! [`Scenario`]: what happens in a simulation, drawn from its seed.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::sync::LazyLock;
use std::time::Duration;

use super::backend::Faults;
use super::chance::Chance;
use crate::config::{Config, Environment, Flags, load};

/// What an attacker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attack {
    /// Declares long bodies on many connections and sends a byte of each.
    SilentBodies,
    /// Sends requests a few bytes at a time.
    Trickle,
    /// Declares another length than it sends.
    WrongLength,
    /// Sends batches of large pictures, and sometimes leaves.
    LargePictures,
    /// Sends requests and leaves before their answers.
    Leave,
    /// Holds as many connections as it can.
    IdleConnections,
    /// Sends small requests on many connections.
    ManyRequests,
    /// Sends small requests from many addresses.
    ManyAddresses,
    /// Asks for long texts on many connections.
    LongTexts,
    /// Reads answers slowly, or not at all.
    SlowReader,
    /// Leaves answers unread on as many connections as it can.
    UnreadAnswers,
    /// Sends several requests at once on a connection.
    Pipeline,
    /// Sends what is not HTTP.
    Garbage,
    /// Sends bulk requests, reads their answers slowly or not at all, and sometimes leaves.
    Bulk,
}

impl Attack {
    pub(super) const ALL: [Self; 14] = [
        Self::SilentBodies,
        Self::Trickle,
        Self::WrongLength,
        Self::LargePictures,
        Self::Leave,
        Self::IdleConnections,
        Self::ManyRequests,
        Self::ManyAddresses,
        Self::LongTexts,
        Self::SlowReader,
        Self::UnreadAnswers,
        Self::Pipeline,
        Self::Garbage,
        Self::Bulk,
    ];
}

/// One simulation, before it runs.
#[derive(Debug)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) config: Config,
    pub(super) faults: Faults,
    /// Number of tokens of each generated text; `None` generates 2 to 8.
    pub(super) text_length: Option<usize>,
    /// The attacks, each with the address that it comes from.
    pub(super) attacks: Vec<(Attack, [u8; 4])>,
    /// Number of honest clients besides the probe.
    pub(super) honest: usize,
    /// Time at which clients stop sending new requests.
    pub(super) horizon: Duration,
    /// Time of the signal to end; `None` sends it when all clients are done.
    pub(super) shutdown: Option<Duration>,
    /// Number of workers of the engine.
    pub(super) workers: usize,
}

impl Scenario {
    /// Returns the number of clients besides the probe, for each of which the server keeps a share. Clients at the same
    /// address are one client.
    pub(super) fn other_clients(&self) -> u32 {
        let attackers: BTreeSet<[u8; 4]> =
            self.attacks.iter().map(|(_, address)| *address).collect();
        (attackers.len() + self.honest) as u32
    }

    /// True if so many clients send requests that even a fair share may be too small for the probe.
    pub(super) fn has_many_clients(&self) -> bool {
        self.attacks.iter().any(|(attack, _)| *attack == Attack::ManyAddresses)
    }

    /// Draws the scenario of a seed.
    pub(super) fn of(seed: u64) -> Self {
        let mut chance = Chance::new(seed, 0);
        let one_address = chance.percent(30);
        let attacks = (0..chance.within(0, 3)).map(|number| {
            let host = if one_address { 1 } else { number as u8 + 1 };
            (chance.pick(&Attack::ALL), [10, 0, 1, host])
        });
        let attacks = attacks.collect();
        let horizon = chance.milliseconds(2000, 5000);
        Self {
            seed,
            config: config(&mut chance),
            faults: faults(&mut chance),
            text_length: chance.pick(&[None, Some(12)]),
            attacks,
            honest: chance.within(0, 2),
            horizon,
            shutdown: chance.percent(50).then(|| chance.milliseconds(0, 6000)),
            workers: if chance.percent(25) { 2 } else { 1 },
        }
    }
}

/// Two in three backends are healthy.
fn faults(chance: &mut Chance) -> Faults {
    let healthy = Faults::default();
    match chance.below(15) {
        0 => Faults { errors: 10, ..healthy },
        1 => Faults { out_of_memory: 20, ..healthy },
        2 => Faults { panics: 10, ..healthy },
        3 => {
            let rebuild_fails = chance.percent(50);
            Faults { errors: 40, panics: 40, rebuild_fails, ..healthy }
        }
        4 => Faults { hangs_at: Some(chance.below(200) as u64), ..healthy },
        _ => healthy,
    }
}

/// Small limits, so that few clients suffice to reach them.
fn config(chance: &mut Chance) -> Config {
    static DEFAULT: LazyLock<Config> = LazyLock::new(|| {
        load(&Flags::default(), &Environment::default()).expect("the defaults are valid")
    });
    let mut config = DEFAULT.clone();
    config.engine.capacity_rows = 96;
    config.engine.capacity_bytes = 4 << 20;
    config.engine.max_queue_wait = Duration::from_secs(3);
    config.engine.worker_hang_limit = Duration::from_secs(4);
    config.engine.worker_rebuild_interval = chance.pick(&[Duration::ZERO, Duration::from_secs(5)]);
    config.engine.unit_time = Some(Duration::from_millis(50));
    config.engine.linger = chance.pick(&[Duration::ZERO, Duration::from_millis(20)]);
    config.engine.feature_cache_bytes = chance.pick(&[0, 1000, 256 << 20]);
    config.images.decode_threads = 2;
    config.images.decode_queue = 64;
    config.images.decode_budget_bytes = chance.pick(&[8 << 20, 32 << 20]);
    // Resident memory depends on what else the process does.
    config.images.memory_high_water_bytes = NonZeroU64::new(u64::MAX);
    config.http.docs = false;
    config.http.deadline = Duration::from_secs(8);
    config.http.limits.max_rows = 16;
    config.http.limits.max_body_bytes = 1 << 20;
    config.http.bulk.max_lines_in_flight = 16;
    config.http.bulk.max_held_bytes = chance.pick(&[32 << 10, 64 << 10]);
    config.http.bulk.deadline = Duration::from_secs(20);
    config.http.bulk.idle_timeout = Duration::from_secs(3);
    // More than rows, as by default, so that calls in progress cannot fill all places.
    let connections = &mut config.http.connections;
    connections.max_connections = chance.pick(&[128, 160]);
    connections.header_read_timeout = Duration::from_secs(2);
    connections.keep_alive = Duration::from_secs(6);
    connections.body_idle_timeout = Duration::from_secs(2);
    connections.body_total_timeout = Duration::from_secs(6);
    connections.write_timeout = Duration::from_secs(3);
    connections.drain_timeout = chance.pick(&[Duration::from_millis(300), Duration::from_secs(4)]);
    config.drain.timeout = connections.drain_timeout;
    config.drain.delay = chance.pick(&[Duration::ZERO, Duration::from_millis(500)]);
    config
}
