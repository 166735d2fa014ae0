//! Parses everything before the pixel data: the file header, the DIB header with its bit fields, and the palette.

use super::error::BmpError;
use super::palette::Palette;
use super::runs::Runs;

/// Size in bytes of the file header. It contains `BM`, the file size, two reserved fields, and the offset of the
/// pixels.
const FILE_HEAD: usize = 14;

/// The parsed file header, DIB header and palette.
#[derive(Debug)]
pub(super) struct BmpHeader<'a> {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) top_down: bool,
    pub(super) pixels: PixelEncoding,
    /// Number of bytes per row in the file, including padding.
    pub(super) stride: u64,
    /// Offset of the pixel data in the file.
    pub(super) offset: usize,
    pub(super) palette: Palette<'a>,
}

/// How the pixels are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PixelEncoding {
    /// Palette indices with this number of bits.
    Indexed(u8),
    /// Run-length encoded palette indices: two in a byte if `four_bits` is true (RLE4), otherwise one (RLE8).
    Runs { four_bits: bool },
    /// 16 bits per pixel: 5 each for blue, green and red, or 6 for green if `six_green` is true.
    Bits16 { six_green: bool },
    /// Whole bytes, `count` per pixel. `order` contains the positions of red, green and blue in a pixel, `alpha` the
    /// position of the alpha byte.
    Bytes { count: usize, order: [usize; 3], alpha: Option<usize> },
}

impl<'a> BmpHeader<'a> {
    /// Parses everything before the pixel data.
    ///
    /// # Errors
    /// `Incomplete`, `Unsupported`.
    pub(super) fn read(file: &'a [u8]) -> Result<Self, BmpError> {
        let word = |at| u32_at(file, at).ok_or(BmpError::Incomplete);
        let short = |at| u16_at(file, at).ok_or(BmpError::Incomplete);
        let size = word(FILE_HEAD)? as usize;
        if !matches!(size, 12 | 40 | 52 | 56 | 64 | 108 | 124) {
            return Err(BmpError::Unsupported);
        }
        let end = FILE_HEAD + size;
        if file.len() < end {
            return Err(BmpError::Incomplete);
        }
        let old = size == 12;
        let (width, height, bits) = if old {
            (u32::from(short(18)?), u32::from(short(20)?), short(24)?)
        } else {
            (word(18)?, word(22)?, short(28)?)
        };
        let top_down = !old && file[25] == 0xff;
        let height = if top_down { height.wrapping_neg() } else { height };
        let (compression, colours) = if old { (0, 0) } else { (word(30)?, word(46)?) };
        let entry = if old { 3 } else { 4 };
        let pixels = PixelEncoding::read(file, size, bits, compression)?;
        let stride = (u64::from(width) * u64::from(bits)).div_ceil(32) * 4;
        let mut header = Self {
            width,
            height,
            top_down,
            pixels,
            stride,
            offset: word(10)? as usize,
            palette: Palette::Grey,
        };
        // After a 40-byte DIB header, a file with bit fields (compression 3) has 12 bytes of masks, and the pixel data
        // starts after these masks.
        let mut behind = end + if compression == 3 && size == 40 { 12 } else { 0 };
        if bits <= 8 {
            let colours = if colours == 0 { 1 << bits } else { colours };
            let (palette, bytes) = Palette::read(file, end, entry, colours)?;
            (header.palette, behind) = (palette, end + bytes);
            header.narrow(bits)?;
            // Some writers store the offset of the palette instead of the offset of the pixels.
            if header.offset == end {
                header.offset += entry * colours as usize;
            }
        }
        if header.offset == 0 {
            header.offset = behind;
        }
        Ok(header)
    }

    /// If the palette is grey, sets the number of bits per index as Pillow does: 1 for [`Palette::BlackWhite`], 8 for
    /// [`Palette::Grey`].
    fn narrow(&mut self, bits: u16) -> Result<(), BmpError> {
        if self.pixels != PixelEncoding::Indexed(bits as u8) {
            return Ok(());
        }
        let narrowed = match self.palette {
            Palette::Table(..) => bits as u8,
            Palette::BlackWhite => 1,
            Palette::Grey => 8,
        };
        if u16::from(narrowed) > bits {
            return Err(BmpError::Unsupported);
        }
        self.pixels = PixelEncoding::Indexed(narrowed);
        Ok(())
    }

    /// True if the pixels have an alpha byte.
    pub(super) fn has_alpha(&self) -> bool {
        matches!(self.pixels, PixelEncoding::Bytes { alpha: Some(_), .. })
    }

    /// Returns the number of bytes per pixel of the decoded picture.
    pub(super) fn bytes_per_pixel(&self) -> u64 {
        if self.has_alpha() { 4 } else { 3 }
    }

    /// Returns the size in bytes of the unpacked indices; 0 if the file is not run-length encoded.
    pub(super) fn unpacked_bytes(&self) -> u64 {
        match self.pixels {
            PixelEncoding::Runs { .. } => {
                Runs::bytes(u64::from(self.width) * u64::from(self.height))
            }
            PixelEncoding::Indexed(_)
            | PixelEncoding::Bits16 { .. }
            | PixelEncoding::Bytes { .. } => 0,
        }
    }

    /// Checks that the file contains all pixels, before memory is allocated for them. Run-length encoded data is not
    /// checked here, because its length is known only after unpacking.
    ///
    /// # Errors
    /// `Incomplete`.
    pub(super) fn check_length(&self, file: &[u8]) -> Result<(), BmpError> {
        let rows = u64::from(self.height).saturating_sub(1);
        let needed = match self.pixels {
            PixelEncoding::Runs { .. } => 0,
            PixelEncoding::Indexed(_)
            | PixelEncoding::Bits16 { .. }
            | PixelEncoding::Bytes { .. } => {
                // The padding of the last row may be missing.
                self.stride.saturating_mul(rows).saturating_add(self.row_bytes() as u64)
            }
        };
        let there = file.len().checked_sub(self.offset).ok_or(BmpError::Incomplete)?;
        if (there as u64) < needed { Err(BmpError::Incomplete) } else { Ok(()) }
    }

    /// Returns the number of bytes per row of the pixel data, without padding.
    pub(super) fn row_bytes(&self) -> usize {
        let width = self.width as usize;
        match self.pixels {
            PixelEncoding::Indexed(bits) => (width * usize::from(bits)).div_ceil(8),
            PixelEncoding::Runs { .. } => width,
            PixelEncoding::Bits16 { .. } => width * 2,
            PixelEncoding::Bytes { count, .. } => width * count,
        }
    }
}

impl PixelEncoding {
    fn read(file: &[u8], size: usize, bits: u16, compression: u32) -> Result<Self, BmpError> {
        let bgr = |count| Self::Bytes { count, order: [2, 1, 0], alpha: None };
        match (compression, bits) {
            (0, 1 | 4 | 8) => Ok(Self::Indexed(bits as u8)),
            (0, 16) => Ok(Self::Bits16 { six_green: false }),
            (0, 24) => Ok(bgr(3)),
            (0, 32) => Ok(bgr(4)),
            (1 | 2, 1 | 4 | 8) => Ok(Self::Runs { four_bits: compression == 2 }),
            (3, 16 | 24 | 32) => Self::of_masks(file, size, bits),
            _ => Err(BmpError::Unsupported),
        }
    }

    /// Determines the pixel format from the bit fields: masks of red, green, blue and alpha. The masks are part of a
    /// long DIB header, or follow a 40-byte header.
    fn of_masks(file: &[u8], size: usize, bits: u16) -> Result<Self, BmpError> {
        let mask =
            |index: usize| u32_at(file, FILE_HEAD + 40 + index * 4).ok_or(BmpError::Incomplete);
        let alpha = if size >= 56 { mask(3)? } else { 0 };
        let masks = [mask(0)?, mask(1)?, mask(2)?];
        let bytes = |order, alpha| Ok(Self::Bytes { count: 4, order, alpha });
        match (bits, masks, alpha) {
            (16, [0xf800, 0x7e0, 0x1f], _) => Ok(Self::Bits16 { six_green: true }),
            (16, [0x7c00, 0x3e0, 0x1f], _) => Ok(Self::Bits16 { six_green: false }),
            (24, [0xff_0000, 0xff00, 0xff], _) => {
                Ok(Self::Bytes { count: 3, order: [2, 1, 0], alpha: None })
            }
            (32, [0xff_0000, 0xff00, 0xff], 0) => bytes([2, 1, 0], None),
            (32, [0xff00_0000, 0xff_0000, 0xff00], 0) => bytes([3, 2, 1], None),
            (32, [0xff00_0000, 0xff00, 0xff], 0) => bytes([3, 1, 0], None),
            (32, [0xff00_0000, 0xff_0000, 0xff00], 0xff) => bytes([3, 2, 1], Some(0)),
            (32, [0xff, 0xff00, 0xff_0000], 0xff00_0000) => bytes([0, 1, 2], Some(3)),
            (32, [0xff_0000, 0xff00, 0xff], 0xff00_0000) | (32, [0, 0, 0], 0) => {
                bytes([2, 1, 0], Some(3))
            }
            (32, [0xff00_0000, 0xff00, 0xff], 0xff_0000) => bytes([3, 1, 0], Some(2)),
            _ => Err(BmpError::Unsupported),
        }
    }
}

fn u32_at(file: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?))
}

fn u16_at(file: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*file.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a file header and a 40-byte DIB header for `width` x `height` pixels, without a palette.
    fn head((width, height): (i32, i32), bits: u16, compression: u32, colours: u32) -> Vec<u8> {
        let mut file = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
        file.extend([width.to_le_bytes(), height.to_le_bytes()].concat());
        file.extend([1_u16.to_le_bytes(), bits.to_le_bytes()].concat());
        file.extend([compression, 0, 0, 0, colours, 0].map(u32::to_le_bytes).concat());
        file
    }

    #[test]
    fn a_head_that_promises_what_the_file_has_not_is_refused_before_pixels() {
        let largest = (i32::MAX, i32::MAX);
        for file in [
            head(largest, 24, 0, 0),
            head((-1, -1), 32, 0, 0),
            [head((8, 8), 8, 0, 2), vec![0; 60]].concat(),
            [head((8, 8), 24, 0, 0), vec![0; 191]].concat(),
        ] {
            let header = BmpHeader::read(&file).unwrap();
            assert_eq!(header.check_length(&file), Err(BmpError::Incomplete));
            assert_eq!(header.decode(&file, &|| false).unwrap_err(), BmpError::Incomplete);
        }
        let absurd = head((8, 8), 8, 0, u32::MAX);
        assert_eq!(BmpHeader::read(&absurd).unwrap_err(), BmpError::Unsupported);
        for length in 14..54 {
            assert!(BmpHeader::read(&head(largest, 24, 0, 0)[..length]).is_err(), "{length}");
        }
    }
}
