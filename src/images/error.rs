//! Errors of image preparation. `http` maps each variant to an error code and a status.

use crate::input::InputError;
use crate::task::ImageId;

/// Why an image was rejected or not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImagesError {
    /// The file itself is invalid or exceeds a limit.
    #[error(transparent)]
    Input(#[from] InputError),
    /// There are no prepared pixels under this id (`image_not_found`): the image was never sent, was sent with another
    /// API key, has expired or was evicted.
    #[error("image {0} is not in the cache; send its bytes again")]
    NotFound(ImageId),
    /// The decoding queue is full, or memory is above its high-water mark (`overloaded`).
    #[error("too many images are waiting to be decoded")]
    Overloaded,
}
