//! Ids of tasks, rows and groups, and the key of an image's features. Ids are plain numbers, unique within one engine's
//! lifetime.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use crate::fairness::CallId;
use crate::task::{ImageId, PreparedImage, Preprocessing, Scope, VisionOutput};

/// Source of the numbers of calls. The workers of one engine share it, so that no two calls of a client have one number.
#[derive(Debug, Clone, Default)]
pub(crate) struct CallNumbers(Arc<AtomicU64>);

impl CallNumbers {
    /// Returns a number that was not returned before.
    pub(crate) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

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
