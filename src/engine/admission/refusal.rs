//! Why admission control rejects a call.

use crate::engine::EngineError;

/// Why a call was rejected; a label value of `queue_rejected_total`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Refusal {
    Full,
    Deadline,
    Draining,
}

/// Why a call cannot be admitted, and the error for its client.
#[derive(Debug)]
pub(super) struct Refused(pub(super) Refusal, pub(super) EngineError);

impl Refusal {
    pub(super) const ALL: [Self; 3] = [Self::Full, Self::Deadline, Self::Draining];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Deadline => "deadline",
            Self::Draining => "draining",
        }
    }
}
