//! Identifiers of what moves through the engine. Plain numbers, unique within one engine's lifetime.

pub(crate) use crate::fairness::CallId;
use crate::task::{ImageId, PreparedImage, Preprocessing, Scope, TowerId};

/// One submitted task of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TaskId(pub(crate) u64);

/// One row or group of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ItemId(pub(crate) u64);

/// Identifies the features of one image: two requests with equal keys share one encoding. The tower stands for weights
/// and dtype, the scope for the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FeatureKey {
    pub(crate) tower: TowerId,
    pub(crate) scope: Scope,
    pub(crate) image: ImageId,
    pub(crate) preprocessing: Preprocessing,
}

impl FeatureKey {
    /// The key of `image`'s features as computed by `tower`.
    pub(crate) fn new(tower: TowerId, image: &PreparedImage) -> Self {
        let PreparedImage { info, scope, preprocessing, .. } = image;
        Self { tower, scope: *scope, image: info.id, preprocessing: *preprocessing }
    }
}
