//! Unpacks the run-length encoded indices of a BMP file exactly as Pillow's `BmpRleDecoder` does, including its quirks.

use super::error::BmpError;
use crate::input::memory;
use crate::input::stop::{self, Stop};

/// Number of RLE codes between two polls of `stop`.
const CODES_BETWEEN: usize = 1 << 14;

/// Run-length encoded indices, and the size of the picture that they unpack to.
pub(super) struct Runs<'a> {
    /// The file from the start of the pixel data to its end.
    pub(super) data: &'a [u8],
    /// 1 if the data starts at an odd offset in the file, otherwise 0. It is needed because literal runs are padded to
    /// an even offset in the file.
    pub(super) odd: usize,
    /// Width of the picture in pixels.
    pub(super) width: usize,
    /// Total number of pixels of the picture.
    pub(super) pixels: usize,
    /// True for RLE4, which has two indices in a byte.
    pub(super) four_bits: bool,
}

impl Runs<'_> {
    /// Returns the maximum size in bytes of the unpacked indices: one byte for each pixel, plus 256 bytes, because the
    /// last run may extend beyond the picture.
    pub(super) fn bytes(pixels: u64) -> u64 {
        pixels + 256
    }

    /// Returns the unpacked indices in file order. If the data ends early, there are fewer indices than `pixels`.
    ///
    /// # Errors
    /// `OutOfMemory`, `Stopped`.
    pub(super) fn unpack(&self, stop: Stop<'_>) -> Result<Vec<u8>, BmpError> {
        let mut out = memory::with_capacity(Self::bytes(self.pixels as u64) as usize)?;
        let (mut at, mut x, mut codes) = (0, 0, 0);
        while out.len() < self.pixels
            && let Some(&[count, value]) = self.data.get(at..).and_then(|rest| rest.first_chunk())
        {
            at += 2;
            codes += 1;
            if codes % CODES_BETWEEN == 0 {
                stop::check(stop)?;
            }
            match (count, value) {
                (0, 0) => {
                    out.resize(out.len().next_multiple_of(self.width), 0);
                    x = 0;
                }
                (0, 1) => break,
                (0, 2) => {
                    let Some(&[right, up]) =
                        self.data.get(at..).and_then(|rest| rest.first_chunk())
                    else {
                        break;
                    };
                    at += 2;
                    let step = usize::from(right) + usize::from(up) * self.width;
                    out.resize((out.len() + step).min(self.pixels), 0);
                    x = out.len() % self.width;
                }
                (0, count) => {
                    let Some(end) = self.literal(&mut out, at, usize::from(count)) else { break };
                    x += usize::from(count);
                    at = end;
                }
                (count, value) => {
                    let count = usize::from(count).min(self.width.saturating_sub(x));
                    let (high, low) =
                        if self.four_bits { (value >> 4, value & 15) } else { (value, value) };
                    out.extend((0..count).map(|index| if index % 2 == 0 { high } else { low }));
                    x += count;
                }
            }
        }
        Ok(out)
    }

    /// Copies the literal run of `count` indices at offset `at` to `out`. Returns the offset after it, or `None` if the
    /// data ends within the run or the picture is full.
    fn literal(&self, out: &mut Vec<u8>, at: usize, count: usize) -> Option<usize> {
        let count = count.min(self.pixels - out.len());
        let bytes = if self.four_bits { count.div_ceil(2) } else { count };
        let rest = &self.data[at.min(self.data.len())..];
        let found = &rest[..bytes.min(rest.len())];
        if self.four_bits {
            let indices = found.iter().flat_map(|&byte| [byte >> 4, byte & 15]);
            out.extend(indices.take(count));
        } else {
            out.extend(found);
        }
        let end = at + bytes;
        (found.len() == bytes && out.len() < self.pixels).then_some(end + (end + self.odd) % 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_lengths_never_fill_more_than_the_picture_and_a_run() {
        for data in [&b"\0\x02\xff\xff"[..], b"\xff\x01", b"\0\0\x01\x01", b"\0\xff"] {
            let data = data.repeat(5000);
            for four_bits in [false, true] {
                let runs = Runs { data: &data, odd: 0, width: 5, pixels: 15, four_bits };
                assert!(runs.unpack(&|| false).unwrap().len() <= 15 + 255, "{data:?}");
            }
        }
    }
}
