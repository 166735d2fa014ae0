//! Ids of tasks, rows and groups, and the key of an image's features. Ids are plain numbers, unique within one engine's
//! lifetime.

pub(crate) use crate::fairness::CallId;
use crate::task::{ImageId, PreparedImage, Preprocessing, Scope, VisionOutput};

/// Id of one submitted task of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TaskId(pub(crate) u64);

/// Id of one row or group of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ItemId(pub(crate) u64);

/// Key of the features of one image. Requests with equal keys share one encoding. `output` identifies the weights, their
/// dtype and the layer; `scope` identifies the owner of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FeatureKey {
    pub(crate) output: VisionOutput,
    pub(crate) scope: Scope,
    pub(crate) image: ImageId,
    pub(crate) preprocessing: Preprocessing,
}

impl FeatureKey {
    /// Returns the key of the features `output` of `image`.
    pub(crate) fn new(output: VisionOutput, image: &PreparedImage) -> Self {
        let PreparedImage { info, scope, preprocessing, .. } = image;
        Self { output, scope: *scope, image: info.id, preprocessing: *preprocessing }
    }
}
