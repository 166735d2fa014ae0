//! The server's own counts, as `/metrics` tells them.

use std::net::SocketAddr;
use std::time::Duration;

use super::client::Pool;
use super::traffic::Ask;

/// How long a server may take until its gauges are down: far more than it needs.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// One reading of every metric.
#[derive(Debug, Clone)]
pub(crate) struct Scrape {
    lines: Vec<Line>,
}

#[derive(Debug, Clone)]
struct Line {
    name: String,
    labels: String,
    value: f64,
}

impl Scrape {
    /// Reads the metrics over a connection of its own.
    pub(crate) async fn of(address: SocketAddr) -> Self {
        let pool = Pool::new(address);
        let text = pool.text(&Ask::get("/metrics")).await;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let lines = lines.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            let value = value.parse().ok()?;
            Some(Line { name: name.to_owned(), labels: labels.to_owned(), value })
        });
        Self { lines: lines.collect() }
    }

    /// The sum of a metric's series that have all these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.sum_where(name, |line| {
            labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
        })
    }

    /// Requests that were counted, but for these scrapes.
    pub(crate) fn requests(&self) -> u64 {
        self.sum_where("blip_http_requests_total", is_no_scrape)
    }

    /// Those of one status.
    pub(crate) fn requests_with(&self, status: u16) -> u64 {
        let status = format!("status=\"{status}\"");
        let has_status = |labels: &str| is_no_scrape(labels) && labels.contains(&status);
        self.sum_where("blip_http_requests_total", has_status)
    }

    fn sum_where(&self, name: &str, matches: impl Fn(&str) -> bool) -> u64 {
        let lines = self.lines.iter().filter(|line| line.name == name && matches(&line.labels));
        lines.map(|line| line.value.round() as i64).sum::<i64>().try_into().expect("no less than 0")
    }

    /// True when the server does nothing but answer this scrape.
    fn is_idle(&self) -> bool {
        let down = [
            "blip_queue_rows",
            "blip_queue_bytes",
            "blip_queue_depth",
            "blip_fetch_permits_in_use",
            "blip_decode_permits_in_use",
        ];
        down.iter().all(|gauge| self.sum(gauge, &[]) == 0)
            && self.sum("blip_http_requests_in_flight", &[]) == 1
    }

    /// Waits until a server has nothing in flight and nothing reserved, then reads its metrics.
    ///
    /// # Panics
    /// When that does not come: something was lost inside.
    pub(crate) async fn of_idle(address: SocketAddr) -> Self {
        Self::when(address, "nothing is in flight", Self::is_idle).await;
        // A scrape reads one metric after the other, so counters of the last one may be older than its gauges.
        Self::of(address).await
    }

    /// Waits until a server has nothing in flight and no other connection.
    ///
    /// # Panics
    /// When that does not come.
    pub(crate) async fn of_deserted(address: SocketAddr) -> Self {
        let deserted =
            |scrape: &Self| scrape.is_idle() && scrape.sum("blip_http_connections", &[]) == 1;
        Self::when(address, "nothing is in flight or connected", deserted).await;
        Self::of(address).await
    }

    /// Reads the metrics until they are as told.
    ///
    /// # Panics
    /// When they do not become so.
    pub(crate) async fn when(
        address: SocketAddr,
        what: &str,
        holds: impl Fn(&Self) -> bool,
    ) -> Self {
        let deadline = tokio::time::Instant::now() + SETTLE_LIMIT;
        loop {
            let scrape = Self::of(address).await;
            if holds(&scrape) {
                return scrape;
            }
            assert!(tokio::time::Instant::now() < deadline, "not in time: {what}: {scrape:#?}");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn is_no_scrape(labels: &str) -> bool {
    !labels.contains("route=\"/metrics\"")
}

#[test]
fn a_scrape_sums_the_series_that_have_the_labels() {
    let text = "# HELP x\nx{a=\"1\",b=\"2\"} 3\nx{a=\"1\",b=\"3\"} 4\nxy 7\n\
        blip_http_requests_total{route=\"/metrics\"} 9\nblip_http_requests_total{route=\"/vqa\"} 2\n";
    let scrape = Scrape::parse(text);
    assert_eq!(scrape.sum("x", &[]), 7);
    assert_eq!(scrape.sum("x", &[("a", "1"), ("b", "3")]), 4);
    assert_eq!(scrape.sum("x", &[("a", "2")]), 0);
    assert_eq!(scrape.requests(), 2);
}
