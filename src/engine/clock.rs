//! The engine's clock comes in as an argument, so tests can move it by hand.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// Tells the time. Clones share the source.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Instant + Send + Sync>);

impl Clock {
    /// A clock that asks `source`.
    pub fn new(source: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Self(Arc::new(source))
    }

    /// The system's monotonic clock.
    pub fn system() -> Self {
        Self::new(Instant::now)
    }

    /// The present.
    pub fn now(&self) -> Instant {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
