//! Ids of tasks, rows and groups, and the key of an image's features. Ids are plain numbers, unique within one engine's
//! lifetime.

pub(crate) use crate::fairness::CallId;
use crate::task::{ImageId, PreparedImage, Preprocessing, Scope, TowerId};

/// Id of one submitted task of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TaskId(pub(crate) u64);

/// Id of one row or group of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ItemId(pub(crate) u64);

/// Key of the features of one image. Requests with equal keys share one encoding. `tower` identifies the weights and
/// their dtype; `scope` identifies the owner of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FeatureKey {
    pub(crate) tower: TowerId,
    pub(crate) scope: Scope,
    pub(crate) image: ImageId,
    pub(crate) preprocessing: Preprocessing,
}

impl FeatureKey {
    /// Returns the key of the features that `tower` computes for `image`.
    pub(crate) fn new(tower: TowerId, image: &PreparedImage) -> Self {
        let PreparedImage { info, scope, preprocessing, .. } = image;
        Self { tower, scope: *scope, image: info.id, preprocessing: *preprocessing }
    }
}
