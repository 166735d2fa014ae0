//! Converts untrusted bytes to model-ready values. All functions are synchronous and use no threads, sockets or clock.
//!
//! - [`ImageValue`]: the string that represents an image in a request.
//! - [`inspect`], [`decode()`], [`resize()`]: the stages that convert a picture file to [`Pixels`], with the results of
//!   Pillow and `transformers`. They are separate so that `images` can bound and time each one. `formats` has one
//!   module per picture format; the code that formats share is next to that folder.
//! - [`Tokenizer`], [`Detokenizer`]: convert text to token ids and back.
//!
//! Callers: `images` (pictures, on its decoding thread pool) and `http` (image values, texts). A decoder may panic on a
//! malicious file: the caller of `inspect` or `decode` must catch the panic.

#[cfg(test)]
mod agreement;
#[cfg(test)]
mod containers;
mod decode;
mod detokenizer;
mod error;
mod flatten;
mod format;
mod formats;
#[cfg(test)]
mod goldens;
mod image_crate;
mod image_value;
mod limits;
mod memory;
mod orientation;
mod raster;
mod resize;
mod settings;
mod standalone;
mod stop;
mod text;
mod tokenizer;
mod turn;

pub use decode::{decode, inspect};
pub use detokenizer::Detokenizer;
pub use error::{InputError, TokenizerError};
pub use format::ImageHeader;
pub use formats::{is_quick_to_inspect, sniff_format};
pub use image_value::ImageValue;
pub(crate) use memory::{probe_for_json, reserve};
pub use resize::resize;
pub use settings::{InputSettings, ResizeOrder};
pub use stop::Stop;
pub use text::check_text;
pub use tokenizer::Tokenizer;

use crate::task::{ImageId, ImageInfo, Pixels, Preprocessing};
use sha2::{Digest, Sha256};

/// Returns the id of a picture file, which is the SHA-256 of its bytes.
#[must_use]
pub fn image_id(file: &[u8]) -> ImageId {
    ImageId::from_digest(Sha256::digest(file).into())
}

/// Converts a picture file to pixels in one call: [`inspect`], [`decode()`], [`resize()`].
///
/// # Errors
/// The errors of [`inspect`], [`decode()`] and [`resize()`].
pub fn prepare(
    file: &[u8],
    preprocessing: Preprocessing,
    settings: &InputSettings,
) -> Result<(ImageInfo, Pixels), InputError> {
    let header = inspect(file, settings)?;
    let picture = decode(file, &header, settings, &|| false)?;
    let (width, height) = (picture.width(), picture.height());
    let info = ImageInfo { id: image_id(file), width, height, format: header.format };
    Ok((info, resize(&picture, preprocessing, settings.resize_order)?))
}
