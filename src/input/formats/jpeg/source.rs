//! Reads the bytes of a JPEG file: markers, segments and entropy-coded data.
//!
//! Follows `jdmarker.c` of libjpeg-turbo. A marker that ends entropy-coded data stays *pending* until it is consumed,
//! like `unread_marker` there.

use super::error::JpegError;

/// Marker codes without the leading 0xFF.
pub(super) mod marker {
    pub(in super::super) const TEM: u8 = 0x01;
    pub(in super::super) const SOF0: u8 = 0xc0;
    pub(in super::super) const DHT: u8 = 0xc4;
    pub(in super::super) const DAC: u8 = 0xcc;
    pub(in super::super) const RST0: u8 = 0xd0;
    pub(in super::super) const RST7: u8 = 0xd7;
    pub(in super::super) const SOI: u8 = 0xd8;
    pub(in super::super) const EOI: u8 = 0xd9;
    pub(in super::super) const SOS: u8 = 0xda;
    pub(in super::super) const DQT: u8 = 0xdb;
    pub(in super::super) const DNL: u8 = 0xdc;
    pub(in super::super) const DRI: u8 = 0xdd;
    pub(in super::super) const APP0: u8 = 0xe0;
    pub(in super::super) const APP1: u8 = 0xe1;
    pub(in super::super) const APP14: u8 = 0xee;
    pub(in super::super) const APP15: u8 = 0xef;
    pub(in super::super) const COM: u8 = 0xfe;
}

/// Number of bytes that Pillow reads at a time (`MAXBLOCK` of `ImageFile.py`).
const READ_BYTES: usize = 1 << 16;

/// A cursor over the bytes of the file.
#[derive(Debug)]
pub(super) struct ByteSource<'a> {
    data: &'a [u8],
    at: usize,
    /// A marker that has been found but not consumed; 0 if there is none.
    pending: u8,
}

impl<'a> ByteSource<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0, pending: 0 }
    }

    /// Returns the unread bytes of the file.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.data.get(self.at..).unwrap_or_default()
    }

    /// Truncates the file to the part that Pillow has read by the time it reaches the current position.
    pub(super) fn end_with_read(&mut self) {
        let read = self.at.next_multiple_of(READ_BYTES).min(self.data.len());
        self.data = &self.data[..read];
    }

    /// Returns the pending marker; 0 if there is none.
    pub(super) fn pending(&self) -> u8 {
        self.pending
    }

    pub(super) fn clear_pending(&mut self) {
        self.pending = 0;
    }

    /// Reads the next byte.
    ///
    /// # Errors
    /// `Truncated` at the end of the file.
    pub(super) fn byte(&mut self) -> Result<u8, JpegError> {
        let byte = *self.data.get(self.at).ok_or(JpegError::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    /// Returns the next `N` bytes without consuming them, or `None` if fewer are left.
    pub(super) fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        self.data.get(self.at..)?.first_chunk().copied()
    }

    /// Consumes bytes that [`Self::peek`] returned.
    pub(super) fn skip(&mut self, bytes: usize) {
        self.at += bytes;
    }

    /// Reads one byte of entropy-coded data, removing byte stuffing. Returns `None` at a marker, which becomes pending.
    ///
    /// # Errors
    /// `Truncated` at the end of the file.
    pub(super) fn data_byte(&mut self) -> Result<Option<u8>, JpegError> {
        if self.pending != 0 {
            return Ok(None);
        }
        let byte = self.byte()?;
        if byte != 0xff {
            return Ok(Some(byte));
        }
        let mut code = self.byte()?;
        // Fill bytes (0xFF) may precede a marker. libjpeg accepts them before a stuffed zero as well.
        while code == 0xff {
            code = self.byte()?;
        }
        if code == 0 {
            return Ok(Some(0xff));
        }
        self.pending = code;
        Ok(None)
    }

    /// Skips past the next marker, makes it pending and returns it (`next_marker`).
    ///
    /// # Errors
    /// `Truncated` if no marker follows.
    pub(super) fn next_marker(&mut self) -> Result<u8, JpegError> {
        loop {
            while self.byte()? != 0xff {}
            let mut code = self.byte()?;
            while code == 0xff {
                code = self.byte()?;
            }
            if code != 0 {
                self.pending = code;
                return Ok(code);
            }
        }
    }

    /// Returns the pending marker. If there is none, reads the next marker, which becomes pending.
    ///
    /// # Errors
    /// `Truncated` if no marker follows.
    pub(super) fn marker(&mut self) -> Result<u8, JpegError> {
        match self.pending {
            0 => self.next_marker(),
            code => Ok(code),
        }
    }

    /// Reads the next two bytes, which must be an SOI marker (`first_marker`).
    ///
    /// # Errors
    /// `Truncated`, `Damaged`.
    pub(super) fn start_of_image(&mut self) -> Result<(), JpegError> {
        if self.byte()? != 0xff || self.byte()? != marker::SOI {
            return Err(JpegError::Damaged);
        }
        Ok(())
    }

    /// Reads the segment after a marker, or as much of it as the file contains. The first two bytes of a segment are
    /// its length, which includes these two bytes. If the length is below 2, the segment is empty and [`Segment::end`]
    /// rejects it.
    ///
    /// # Errors
    /// `Truncated` if the file ends within the length field.
    pub(super) fn segment(&mut self) -> Result<Segment<'a>, JpegError> {
        let length = usize::from(u16::from_be_bytes([self.byte()?, self.byte()?]));
        let declared = length.saturating_sub(2);
        let start = self.at;
        self.at = (start + declared).min(self.data.len());
        Ok(Segment { data: &self.data[start..self.at], declared, is_too_short: length < 2 })
    }

    /// Skips past the restart marker that is due, or resynchronises if it is missing (`read_restart_marker`,
    /// `jpeg_resync_to_restart`). `due` is the number of the marker that is due, 0 to 7. If a marker is pending
    /// afterwards, the next restart interval has no data.
    ///
    /// # Errors
    /// `Truncated`.
    pub(super) fn restart(&mut self, due: u8) -> Result<(), JpegError> {
        let mut found = self.marker()?;
        if found == marker::RST0 + due {
            self.pending = 0;
            return Ok(());
        }
        loop {
            match found {
                // Not a valid marker: look for the next one.
                ..marker::SOF0 => {}
                marker::RST0..=marker::RST7 => match (found - marker::RST0).wrapping_sub(due) & 7 {
                    // One of the two markers that come after the due marker in sequence: the due marker was lost,
                    // together with its interval.
                    1 | 2 => return Ok(()),
                    // One of the two markers that come before the due marker in sequence: the due marker must still
                    // follow, so look for the next marker.
                    6 | 7 => {}
                    // The due marker, or a marker so far from it in sequence that no conclusion is possible: continue
                    // after the found marker.
                    _ => {
                        self.pending = 0;
                        return Ok(());
                    }
                },
                // Any other marker ends the scan.
                _ => return Ok(()),
            }
            found = self.next_marker()?;
        }
    }
}

/// The part of a segment's data that has not been consumed yet.
#[derive(Debug)]
pub(super) struct Segment<'a> {
    data: &'a [u8],
    /// Number of unconsumed bytes according to the length field; `data` has fewer if the file ends earlier.
    declared: usize,
    /// True if the segment's length field is below 2. The length includes the field's own two bytes, so a smaller value
    /// is invalid.
    is_too_short: bool,
}

impl<'a> Segment<'a> {
    /// Returns the number of unconsumed bytes according to the segment's length field.
    pub(super) fn left(&self) -> usize {
        self.declared
    }

    /// Reads the next `bytes` bytes.
    ///
    /// # Errors
    /// `Damaged` if the segment ends earlier, `Truncated` if the file ends earlier.
    pub(super) fn take(&mut self, bytes: usize) -> Result<&'a [u8], JpegError> {
        self.declared = self.declared.checked_sub(bytes).ok_or(JpegError::Damaged)?;
        let (taken, rest) = self.data.split_at_checked(bytes).ok_or(JpegError::Truncated)?;
        self.data = rest;
        Ok(taken)
    }

    /// Reads the next `N` bytes as an array.
    ///
    /// # Errors
    /// Same as for [`Self::take`].
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], JpegError> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| JpegError::Damaged)
    }

    /// Reads the rest of the segment.
    ///
    /// # Errors
    /// `Truncated`.
    pub(super) fn rest(mut self) -> Result<&'a [u8], JpegError> {
        self.take(self.declared)
    }

    /// Checks that the segment has been consumed exactly to its end.
    ///
    /// # Errors
    /// `Damaged`.
    pub(super) fn end(self) -> Result<(), JpegError> {
        if self.declared == 0 && !self.is_too_short { Ok(()) } else { Err(JpegError::Damaged) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stuffing_is_removed_and_a_marker_ends_the_data() {
        let mut source = ByteSource::new(b"a\xff\x00\xff\xff\x00b\xff\xff\xd9c");
        let mut data = Vec::new();
        while let Some(byte) = source.data_byte().unwrap() {
            data.push(byte);
        }
        assert_eq!(data, b"a\xff\xffb");
        assert_eq!(source.pending(), marker::EOI);
        assert_eq!(source.data_byte(), Ok(None));
    }

    #[test]
    fn bytes_in_front_of_a_marker_are_skipped() {
        let mut source = ByteSource::new(b"junk\xff\x00\xff\xff\xda..");
        assert_eq!(source.marker(), Ok(marker::SOS));
        assert_eq!(source.marker(), Ok(marker::SOS));
        source.clear_pending();
        assert_eq!(source.marker(), Err(JpegError::Truncated));
    }

    #[test]
    fn a_restart_marker_is_found_or_left_pending_as_libjpeg_does() {
        // Each case: the remaining bytes of the file when RST2 is due, and the marker that is pending after `restart`.
        let cases: [(&[u8], u8); 6] = [
            (b"..\xff\xd2", 0),
            (b"\xff\xd3", 0xd3),
            (b"\xff\xd4", 0xd4),
            (b"\xff\xd5", 0),
            (b"\xff\xd0\x00\xff\x02\xff\xd9", 0xd9),
            (b"\xff\xd1\xff\xd2", 0),
        ];
        for (data, pending) in cases {
            let mut source = ByteSource::new(data);
            source.restart(2).unwrap();
            assert_eq!(source.pending(), pending, "{data:x?}");
        }
        assert_eq!(ByteSource::new(b"\xff\xd1..").restart(2), Err(JpegError::Truncated));
    }

    #[test]
    fn a_segment_ends_where_its_length_says() {
        let mut source = ByteSource::new(b"\x00\x04ab\x00\x00\x00\x07abc");
        let mut segment = source.segment().unwrap();
        assert_eq!(segment.array::<1>(), Ok(*b"a"));
        assert_eq!(segment.take(2), Err(JpegError::Damaged));
        assert_eq!(source.segment().unwrap().rest(), Ok(&b""[..]));
        let mut cut = source.segment().unwrap();
        assert_eq!(cut.take(3), Ok(&b"abc"[..]));
        assert_eq!((cut.left(), cut.take(1)), (2, Err(JpegError::Truncated)));
        assert_eq!(source.byte(), Err(JpegError::Truncated));
    }
}
