//! Bit reader for Huffman-coded data, most significant bit first (`jpeg_fill_bit_buffer` of libjpeg-turbo's
//! `jdhuff.c`).

use super::error::JpegError;
use super::source::ByteSource;

/// Reader of the bits up to the next marker. After the last bit, the reader supplies zero bits. [`Self::is_exhausted`]
/// is true once such a zero bit has been consumed.
#[derive(Debug)]
pub(super) struct BitReader<'s, 'a> {
    source: &'s mut ByteSource<'a>,
    /// The next bits, left-justified and followed by zeros.
    buffer: u64,
    /// Number of valid bits in `buffer`.
    left: u32,
    exhausted: bool,
}

impl<'s, 'a> BitReader<'s, 'a> {
    pub(super) fn new(source: &'s mut ByteSource<'a>) -> Self {
        Self { source, buffer: 0, left: 0, exhausted: false }
    }

    /// True once a bit beyond the end of the data has been consumed (`insufficient_data`).
    pub(super) fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// Loads enough bits to read a Huffman code and the value after it with [`Self::peek`] and [`Self::take`]. Code and
    /// value together have at most 32 bits.
    #[inline]
    pub(super) fn prepare(&mut self) -> Result<(), JpegError> {
        if self.left < 32 { self.fill() } else { Ok(()) }
    }

    #[inline]
    fn fill(&mut self) -> Result<(), JpegError> {
        if self.source.pending() == 0
            && let Some(bytes) = self.source.peek::<8>()
        {
            let chunk = u64::from_be_bytes(bytes);
            if !has_byte_ff(chunk) {
                self.buffer |= chunk >> self.left;
                self.source.skip(((63 - self.left) / 8) as usize);
                // The whole bytes that were added bring the number of valid bits to between 56 and 63.
                self.left |= 0b11_1000;
                // Clear the bits of the partial byte, which `left` does not count, so that the next refill does not mix
                // them with another byte.
                self.buffer &= !0 << (64 - self.left);
                return Ok(());
            }
        }
        self.fill_by_bytes()
    }

    /// Loads bytes one by one, up to a marker or the end of the file. Reaching the end of the file is not an error
    /// here, because the loaded bits may suffice.
    #[cold]
    fn fill_by_bytes(&mut self) -> Result<(), JpegError> {
        while self.left <= 56 {
            match self.source.data_byte() {
                Ok(Some(byte)) => {
                    self.buffer |= u64::from(byte) << (56 - self.left);
                    self.left += 8;
                }
                Ok(None) | Err(JpegError::Truncated) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns the next `count` bits, 1 to 16, without consuming them. Bits beyond the end of the data are zero.
    #[inline]
    pub(super) fn peek(&self, count: u32) -> u32 {
        (self.buffer >> (64 - count)) as u32
    }

    /// Consumes `count` bits.
    ///
    /// # Errors
    /// `Truncated` if the file ends without a marker.
    #[inline]
    pub(super) fn consume(&mut self, count: u32) -> Result<(), JpegError> {
        if count > self.left {
            return self.exhaust();
        }
        self.buffer <<= count;
        self.left -= count;
        Ok(())
    }

    /// Reads the next `count` bits, 1 to 16.
    ///
    /// # Errors
    /// Same as for [`Self::consume`].
    #[inline]
    pub(super) fn take(&mut self, count: u32) -> Result<u32, JpegError> {
        let bits = self.peek(count);
        self.consume(count)?;
        Ok(bits)
    }

    /// Reads one bit. Loads more bits first if none is left.
    ///
    /// # Errors
    /// Same as for [`Self::consume`].
    #[inline]
    pub(super) fn bit(&mut self) -> Result<bool, JpegError> {
        if self.left == 0 {
            self.fill()?;
        }
        Ok(self.take(1)? != 0)
    }

    /// Supplies zero bits from now on if a marker ended the data. Fails if the file ended instead.
    #[cold]
    fn exhaust(&mut self) -> Result<(), JpegError> {
        if self.source.pending() == 0 {
            return Err(JpegError::Truncated);
        }
        self.exhausted = true;
        self.buffer = 0;
        self.left = 64;
        Ok(())
    }

    /// Discards the remaining data of the restart interval and continues after the restart marker with number `due`
    /// (`process_restart`).
    ///
    /// # Errors
    /// `Truncated`.
    pub(super) fn restart(&mut self, due: u8) -> Result<(), JpegError> {
        self.buffer = 0;
        self.left = 0;
        self.source.restart(due)?;
        // If a marker stays pending, the next interval has no data, so `exhausted` is not reset.
        if self.source.pending() == 0 {
            self.exhausted = false;
        }
        Ok(())
    }
}

/// True if any of the eight bytes is 0xFF, which begins every marker and precedes every stuffed zero.
fn has_byte_ff(bytes: u64) -> bool {
    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // The usual bit trick that tests whether a word contains a zero byte, applied to the complement.
    (!bytes).wrapping_sub(LOW) & bytes & HIGH != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_in_order_over_stuffing_and_refills() {
        let data: Vec<u8> = (0..=255).collect();
        let stuffed = [&data[..], b"\x00", &data[..], b"\x00\xff\xd9"].concat();
        let mut source = ByteSource::new(&stuffed);
        let mut bits = BitReader::new(&mut source);
        let mut read = Vec::new();
        // Reads alternate between 3 and 5 bits, so that refills happen at different positions.
        while read.len() < 512 {
            bits.prepare().unwrap();
            let high = bits.take(3).unwrap();
            read.push((high << 5 | bits.take(5).unwrap()) as u8);
        }
        assert_eq!(read, [&data[..], &data[..]].concat());
        assert!(!bits.is_exhausted());
    }

    #[test]
    fn behind_a_marker_bits_are_zero_and_behind_the_end_there_are_none() {
        let mut source = ByteSource::new(b"\xa5\xff\xd9");
        let mut bits = BitReader::new(&mut source);
        bits.prepare().unwrap();
        assert_eq!(bits.take(8), Ok(0xa5));
        assert!(!bits.is_exhausted());
        assert_eq!(bits.take(16), Ok(0));
        assert!(bits.is_exhausted());

        let mut source = ByteSource::new(b"\xa5");
        let mut bits = BitReader::new(&mut source);
        bits.prepare().unwrap();
        assert_eq!(bits.take(8), Ok(0xa5));
        assert_eq!(bits.take(1), Err(JpegError::Truncated));
    }

    #[test]
    fn a_byte_ff_is_found_at_every_place() {
        assert!(!has_byte_ff(0xfe00_8001_7f80_fe0f));
        for place in 0..8 {
            assert!(has_byte_ff(0xff << (place * 8)), "{place}");
            assert!(!has_byte_ff(0xfe << (place * 8)), "{place}");
        }
    }
}
