//! The time of the system, in the formats of other APIs.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Time at which the routes were created.
static STARTED: LazyLock<Duration> = LazyLock::new(since_1970);

/// Notes the time at which the server starts, if that has not been done.
pub(super) fn start() {
    LazyLock::force(&STARTED);
}

/// Returns the time in seconds since 1970.
pub(super) fn unix_seconds() -> u64 {
    since_1970().as_secs()
}

/// Returns the time at which the server started, in seconds since 1970.
pub(super) fn started_seconds() -> u64 {
    STARTED.as_secs()
}

/// Returns the time in the format of RFC 3339, such as `2026-01-02T03:04:05.678901Z`.
pub(super) fn rfc3339() -> String {
    as_rfc3339(since_1970())
}

/// Returns the time at which the server started, in the format of RFC 3339.
pub(super) fn started_rfc3339() -> String {
    as_rfc3339(*STARTED)
}

fn as_rfc3339(since_1970: Duration) -> String {
    let microseconds = Duration::from_micros(since_1970.as_micros() as u64);
    // Formatting fails only for years above 9999.
    (OffsetDateTime::UNIX_EPOCH + microseconds).format(&Rfc3339).unwrap_or_default()
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_format_of_rfc_3339() {
        let time = as_rfc3339(Duration::new(1_767_323_045, 678_901_234));
        assert_eq!(time, "2026-01-02T03:04:05.678901Z");
        assert_eq!(as_rfc3339(Duration::ZERO), "1970-01-01T00:00:00Z");
    }
}
