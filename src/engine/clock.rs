//! The engine's clock. It is passed in as an argument, so that tests can advance the time themselves.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::platform;

/// A source of monotonic time. Clones share the source.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Instant + Send + Sync>);

impl Clock {
    /// Creates a clock that reads the time from `source`.
    pub(crate) fn new(source: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Self(Arc::new(source))
    }

    /// Returns the process's monotonic clock.
    pub(crate) fn system() -> Self {
        Self::new(platform::now)
    }

    /// Returns the current time of this clock.
    pub(crate) fn now(&self) -> Instant {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
