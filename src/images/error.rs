//! Why an image could not be had. `http/error` gives each its code and status.

use crate::input::InputError;
use crate::task::ImageId;

/// Why an image was refused or not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImagesError {
    /// The file itself is at fault.
    #[error(transparent)]
    Input(#[from] InputError),
    /// No prepared pixels under this id (`image_not_found`): never sent, sent under another key, or expired.
    #[error("the image {0} is not in the cache, send its bytes again")]
    NotFound(ImageId),
    /// The decoding queue is full (`overloaded`).
    #[error("too many images wait for decoding")]
    Overloaded,
}
