//! A decoded picture: upright, opaque, 8-bit RGB.

use crate::task::{ImageFormat, ImageId, ImageInfo};
use std::fmt;

/// A decoded picture: RGB pixels, row-major `[height, width, 3]`, after the orientation is applied and before resizing.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    width: u32,
    height: u32,
    data: Vec<u8>,
}

impl Picture {
    /// Wraps the RGB samples in `data`, row-major `[height, width, 3]`.
    ///
    /// # Panics
    /// If a side is zero, or if `data` does not hold `height * width * 3` bytes.
    #[must_use]
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Self {
        let expected = width as usize * height as usize * 3;
        assert!(expected > 0, "a picture has pixels");
        assert_eq!(data.len(), expected, "a picture of {width}x{height} needs {expected} bytes");
        Self { width, height, data }
    }

    /// Width in pixels, after the orientation is applied.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, after the orientation is applied.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Returns the RGB samples, row-major `[height, width, 3]`.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.data
    }

    /// Returns the id, size and format, for responses to clients.
    #[must_use]
    pub fn info(&self, id: ImageId, format: ImageFormat) -> ImageInfo {
        ImageInfo { id, width: self.width, height: self.height, format }
    }
}

impl fmt::Debug for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Picture({}x{})", self.width, self.height)
    }
}
