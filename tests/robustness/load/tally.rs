//! What came back, counted.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What became of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A whole answer, with its status and, in a refusal, its problem code.
    Answer(u16, Option<String>),
    /// The connection was refused.
    NoConnection,
    /// The connection was reset or ended before the answer's end.
    Cut,
    /// No answer within the client's patience.
    TimedOut,
}

/// The counts of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Whole answers by status and problem code, "ok" where there is none.
    pub(crate) answers: BTreeMap<(u16, String), u64>,
    /// Requests that no connection was had for.
    pub(crate) no_connection: u64,
    /// Requests whose answer did not come whole.
    pub(crate) cut: u64,
    /// Requests that were waited for too long.
    pub(crate) timed_out: u64,
    /// Of each answer with status 200, in microseconds.
    latencies: Vec<u32>,
}

impl Tally {
    /// Counts one request.
    pub(crate) fn count(&mut self, outcome: Outcome, latency: Duration) {
        match outcome {
            Outcome::Answer(status, code) => {
                if status == 200 {
                    self.latencies.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
                }
                let code = code.unwrap_or_else(|| "ok".to_owned());
                *self.answers.entry((status, code)).or_default() += 1;
            }
            Outcome::NoConnection => self.no_connection += 1,
            Outcome::Cut => self.cut += 1,
            Outcome::TimedOut => self.timed_out += 1,
        }
    }

    /// Adds another's counts.
    pub(crate) fn add(&mut self, other: &Self) {
        for (key, count) in &other.answers {
            *self.answers.entry(key.clone()).or_default() += count;
        }
        self.no_connection += other.no_connection;
        self.cut += other.cut;
        self.timed_out += other.timed_out;
        self.latencies.extend(&other.latencies);
    }

    /// Requests that were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.answered() + self.no_connection + self.cut + self.timed_out
    }

    /// Requests that got a whole answer.
    pub(crate) fn answered(&self) -> u64 {
        self.answers.values().sum()
    }

    /// Answers with this status.
    pub(crate) fn with(&self, status: u16) -> u64 {
        self.answers.iter().filter(|((found, _), _)| *found == status).map(|(_, count)| count).sum()
    }

    /// Every status that was answered.
    pub(crate) fn statuses(&self) -> impl Iterator<Item = u16> {
        self.answers.keys().map(|(status, _)| *status)
    }

    /// The latency that so many in a thousand of the answers with status 200 stayed within; zero without any.
    pub(crate) fn quantile(&self, per_mille: usize) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * per_mille).div_ceil(1000);
        let latency = sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default();
        Duration::from_micros(latency.into())
    }
}

/// One line: `sent 10: 200 ok 8, 503 overloaded 2; p50 1.0 ms, p99 2.0 ms`.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sent {}:", self.sent())?;
        for ((status, code), count) in &self.answers {
            write!(f, " {status} {code} {count},")?;
        }
        for (name, count) in [
            ("no connection", self.no_connection),
            ("cut", self.cut),
            ("timed out", self.timed_out),
        ] {
            if count > 0 {
                write!(f, " {name} {count},")?;
            }
        }
        write!(f, " p50 {:.1?}, p99 {:.1?}", self.quantile(500), self.quantile(990))
    }
}

#[test]
fn a_tally_knows_its_sums_and_quantiles() {
    let mut tally = Tally::default();
    for milliseconds in 1..=100 {
        tally.count(Outcome::Answer(200, None), Duration::from_millis(milliseconds));
    }
    let refused = Outcome::Answer(503, Some("overloaded".to_owned()));
    tally.count(refused, Duration::from_secs(9));
    tally.count(Outcome::Cut, Duration::ZERO);
    let mut both = tally.clone();
    both.add(&tally);
    assert_eq!((both.sent(), both.answered(), both.with(200), both.with(503)), (204, 202, 200, 2));
    assert_eq!(tally.quantile(990), Duration::from_millis(99));
    assert_eq!(tally.quantile(500), Duration::from_millis(50));
    assert_eq!(Tally::default().quantile(990), Duration::ZERO);
}
