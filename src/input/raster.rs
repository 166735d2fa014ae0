//! Decoded pixels of any layout, before they are flattened to opaque RGB.

use image::ColorType;

/// Samples of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
    pub(super) channels: usize,
    /// 16 bits a sample, in the byte order of the machine; else 8.
    pub(super) wide: bool,
}

impl Layout {
    pub(super) const RGB: Self = Self { channels: 3, wide: false };
    pub(super) const RGBA: Self = Self { channels: 4, wide: false };

    /// `None` for floating-point samples, which no accepted format has.
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

/// A picture as its decoder gives it.
#[derive(Debug)]
pub(super) struct Raster {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) layout: Layout,
    /// Row-major, without padding.
    pub(super) data: Vec<u8>,
}
