//! Decodes the pixel data of a BMP file whose header has been parsed and checked.

use super::error::BmpError;
use super::header::{BmpHeader, PixelEncoding};
use super::runs::Runs;
use crate::input::memory;
use crate::input::raster::{Layout, Raster};
use crate::input::stop::{self, Stop};

impl BmpHeader<'_> {
    /// Decodes the pixels. The caller must have checked the size of the picture, because this function allocates 3 or 4
    /// bytes per pixel, plus one byte per pixel if the file is run-length encoded.
    ///
    /// # Errors
    /// `Incomplete`, `Damaged`, `OutOfMemory`, `Stopped`.
    pub(super) fn decode(&self, file: &[u8], stop: Stop<'_>) -> Result<Raster, BmpError> {
        self.check_length(file)?;
        let data = file.get(self.offset..).ok_or(BmpError::Incomplete)?;
        let (width, height) = (self.width as usize, self.height as usize);
        let mut unpacked = Vec::new();
        let (data, stride) = if let PixelEncoding::Runs { four_bits } = self.pixels {
            let odd = self.offset % 2;
            unpacked = Runs { data, odd, width, pixels: width * height, four_bits }.unpack(stop)?;
            if unpacked.len() < width * height {
                return Err(BmpError::Damaged);
            }
            (&unpacked[..], width)
        } else {
            (data, self.stride as usize)
        };
        let row_bytes = self.row_bytes();
        let layout = if self.has_alpha() { Layout::RGBA } else { Layout::RGB };
        let mut out = memory::with_capacity(width * height * layout.channels)?;
        for y in 0..height {
            stop::check(stop)?;
            let row = if self.top_down { y } else { height - 1 - y };
            self.push_row(&mut out, &data[row * stride..][..row_bytes]);
        }
        memory::release(unpacked);
        Ok(Raster { width: self.width, height: self.height, layout, data: out })
    }

    fn push_row(&self, out: &mut Vec<u8>, row: &[u8]) {
        match self.pixels {
            PixelEncoding::Indexed(bits) if bits < 8 => {
                let (bits, mask) = (usize::from(bits), (1_u8 << bits) - 1);
                for x in 0..self.width as usize {
                    let shift = 8 - bits - x * bits % 8;
                    out.extend(self.palette.colour(row[x * bits / 8] >> shift & mask));
                }
            }
            PixelEncoding::Indexed(_) | PixelEncoding::Runs { .. } => {
                out.extend(row.iter().flat_map(|&index| self.palette.colour(index)));
            }
            PixelEncoding::Bits16 { six_green } => {
                let (green_bits, red_at) = if six_green { (6, 11) } else { (5, 10) };
                for &pixel in row.as_chunks().0 {
                    let pixel = u32::from(u16::from_le_bytes(pixel));
                    let part = |at: u32, bits: u32| {
                        let most = (1 << bits) - 1;
                        ((pixel >> at & most) * 255 / most) as u8
                    };
                    out.extend([part(red_at, 5), part(5, green_bits), part(0, 5)]);
                }
            }
            PixelEncoding::Bytes { count, order, alpha } => {
                for pixel in row.chunks_exact(count) {
                    out.extend(order.map(|at| pixel[at]));
                    out.extend(alpha.map(|at| pixel[at]));
                }
            }
        }
    }
}
