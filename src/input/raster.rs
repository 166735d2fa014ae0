//! Decoded pixels in any layout, before they are flattened to opaque RGB.

use image::ColorType;

/// The number and the width of the samples of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Number of samples per pixel: 1 for grey, 2 for grey and alpha, 3 for RGB, 4 for RGBA.
    pub(super) channels: usize,
    /// True for 16-bit samples, in native byte order; false for 8-bit samples.
    pub(super) wide: bool,
}

impl Layout {
    pub(super) const RGB: Self = Self { channels: 3, wide: false };
    pub(super) const RGBA: Self = Self { channels: 4, wide: false };

    /// Returns the layout of a colour type; `None` for floating-point samples, which no accepted format has.
    pub(super) fn of(colour: ColorType) -> Option<Self> {
        let channels = usize::from(colour.channel_count());
        match usize::from(colour.bytes_per_pixel()) / channels {
            1 => Some(Self { channels, wide: false }),
            2 => Some(Self { channels, wide: true }),
            _ => None,
        }
    }

    pub(super) fn bytes_per_pixel(self) -> usize {
        self.channels * if self.wide { 2 } else { 1 }
    }
}

/// A picture as the decoder returns it, before it is flattened and its orientation is applied.
#[derive(Debug)]
pub(super) struct Raster {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) layout: Layout,
    /// Samples in row-major order without row padding.
    pub(super) data: Vec<u8>,
}
