//! The settings of bulk work.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{AT_LEAST_ONE, require_time};
use crate::fairness;
use crate::settings::{InvalidSetting, Section, millis, require};

/// Limits of bulk requests: the section `[bulk]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BulkSettings {
    /// Maximum number of bulk requests from which the server reads at a time. Further requests wait for their turn.
    pub max_requests: usize,
    /// Maximum size of one line in bytes.
    pub max_line_bytes: usize,
    /// Maximum number of lines of one request that are worked on at a time.
    pub max_lines_in_flight: usize,
    /// Number of bytes of answers that one request may hold for a client that does not read. Above it, the server reads
    /// no further lines.
    pub max_held_bytes: usize,
    /// Maximum time from the moment when a line has been read to its answer.
    #[serde(rename = "deadline_ms", with = "millis")]
    pub deadline: Duration,
    /// Maximum time without a line from the client, and maximum time for which a client may neither send nor read.
    #[serde(rename = "idle_timeout_ms", with = "millis")]
    pub idle_timeout: Duration,
}

impl BulkSettings {
    /// Returns the maximum number of bytes of lines and answers that all bulk requests hold outside admission control.
    #[must_use]
    pub fn most_bytes(&self) -> u64 {
        let each = self.max_line_bytes.saturating_add(self.max_held_bytes) as u64;
        fairness::with_reserve(self.max_requests as u64).saturating_mul(each)
    }
}

impl Default for BulkSettings {
    fn default() -> Self {
        Self {
            max_requests: 4,
            // A picture of 10 MiB has 13.4 MiB in base64.
            max_line_bytes: 14 << 20,
            max_lines_in_flight: 128,
            max_held_bytes: 64 << 20,
            deadline: Duration::from_secs(600),
            idle_timeout: Duration::from_secs(300),
        }
    }
}

impl Section for BulkSettings {
    const NAME: &'static str = "bulk";

    fn check(&self) -> Result<(), InvalidSetting> {
        let counts = [
            ("max_requests", self.max_requests),
            ("max_line_bytes", self.max_line_bytes),
            ("max_lines_in_flight", self.max_lines_in_flight),
            ("max_held_bytes", self.max_held_bytes),
        ];
        for (key, count) in counts {
            require(count > 0, key, count, AT_LEAST_ONE)?;
        }
        require_time("deadline_ms", self.deadline)?;
        require_time("idle_timeout_ms", self.idle_timeout)
    }
}
