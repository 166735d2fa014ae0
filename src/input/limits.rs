//! Checks the size of a picture against the limits in [`InputSettings`]. Every format calls these checks before it
//! allocates pixels.

use super::{InputError, InputSettings};

/// Checks width and height against the limits and returns the number of pixels.
///
/// # Errors
/// `ImageTooLarge`.
pub(super) fn check_size(
    width: u32,
    height: u32,
    settings: &InputSettings,
) -> Result<u64, InputError> {
    let &InputSettings { max_pixels, max_side, .. } = settings;
    let pixels = u64::from(width) * u64::from(height);
    if pixels > max_pixels || width > max_side || height > max_side {
        return Err(InputError::ImageTooLarge { width, height, max_pixels, max_side });
    }
    Ok(pixels)
}

/// Checks that `bytes`, the size of a decoded picture or of a buffer with the same limit, is at most
/// `max_decoded_bytes`.
///
/// # Errors
/// `DecodedImageTooLarge`.
pub(super) fn check_decoded(bytes: u64, settings: &InputSettings) -> Result<(), InputError> {
    let max_bytes = settings.max_decoded_bytes;
    if bytes > max_bytes {
        return Err(InputError::DecodedImageTooLarge { bytes, max_bytes });
    }
    Ok(())
}
