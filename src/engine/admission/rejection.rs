//! Why admission control rejects a call.

use crate::engine::EngineError;

/// Why a call was rejected; a label value of `queue_rejected_total`, which `Metrics` initialises.
#[derive(Debug, Clone, Copy)]
pub(super) enum RejectReason {
    Full,
    Deadline,
    Draining,
}

/// Why a call cannot be admitted, and the error for its client.
#[derive(Debug)]
pub(super) struct Rejection(pub(super) RejectReason, pub(super) EngineError);

impl RejectReason {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Deadline => "deadline",
            Self::Draining => "draining",
        }
    }
}
