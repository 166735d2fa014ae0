//! The bytes of a JPEG file: markers, segments, and the place where entropy-coded data continue.
//!
//! Follows `jdmarker.c` of libjpeg-turbo. A marker that ends a run of entropy-coded data stays *pending* until
//! somebody reads it, as `unread_marker` does there.

use super::JpegError;

/// Marker codes, without the 0xFF in front of them.
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

/// Bytes that Pillow reads at a time (`MAXBLOCK` of `ImageFile.py`).
const READ_BYTES: usize = 1 << 16;

/// A cursor over the file.
#[derive(Debug)]
pub(super) struct Source<'a> {
    data: &'a [u8],
    at: usize,
    /// A marker that was met and not read yet; 0 where there is none.
    pending: u8,
}

impl<'a> Source<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0, pending: 0 }
    }

    /// What is not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.data.get(self.at..).unwrap_or_default()
    }

    /// Ends the file with the piece of it that Pillow has read by now.
    pub(super) fn end_with_read(&mut self) {
        let read = self.at.next_multiple_of(READ_BYTES).min(self.data.len());
        self.data = &self.data[..read];
    }

    /// The pending marker; 0 where there is none.
    pub(super) fn pending(&self) -> u8 {
        self.pending
    }

    pub(super) fn clear_pending(&mut self) {
        self.pending = 0;
    }

    /// The next byte.
    ///
    /// # Errors
    /// `Truncated` at the end of the file.
    pub(super) fn byte(&mut self) -> Result<u8, JpegError> {
        let byte = *self.data.get(self.at).ok_or(JpegError::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    /// `N` bytes at once, without moving, where the file has so many.
    pub(super) fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        self.data.get(self.at..)?.first_chunk().copied()
    }

    /// Moves past bytes that [`Self::peek`] showed.
    pub(super) fn skip(&mut self, bytes: usize) {
        self.at += bytes;
    }

    /// One byte of entropy-coded data, stuffing removed; `None` where a marker ends them, which is then pending.
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
        // Fill bytes may stand in front of a marker. libjpeg takes them in front of a stuffed zero too.
        while code == 0xff {
            code = self.byte()?;
        }
        if code == 0 {
            return Ok(Some(0xff));
        }
        self.pending = code;
        Ok(None)
    }

    /// Moves past the next marker, over anything in front of it, and leaves it pending (`next_marker`).
    ///
    /// # Errors
    /// `Truncated` where no marker comes.
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

    /// The pending marker, else the next one.
    ///
    /// # Errors
    /// `Truncated` where no marker comes.
    pub(super) fn marker(&mut self) -> Result<u8, JpegError> {
        match self.pending {
            0 => self.next_marker(),
            code => Ok(code),
        }
    }

    /// The first marker, which must be SOI with nothing in front of it (`first_marker`).
    ///
    /// # Errors
    /// `Truncated`, `Damaged`.
    pub(super) fn start_of_image(&mut self) -> Result<(), JpegError> {
        if self.byte()? != 0xff || self.byte()? != marker::SOI {
            return Err(JpegError::Damaged);
        }
        Ok(())
    }

    /// The segment behind a marker: its first two bytes give the length, themselves included. Moves past it, or to the
    /// end of the file. A length below two, which does not cover itself, makes an empty segment.
    ///
    /// # Errors
    /// `Truncated` where the length itself is cut off.
    pub(super) fn segment(&mut self) -> Result<Segment<'a>, JpegError> {
        let length = usize::from(u16::from_be_bytes([self.byte()?, self.byte()?]));
        let declared = length.saturating_sub(2);
        let start = self.at;
        self.at = (start + declared).min(self.data.len());
        Ok(Segment { data: &self.data[start..self.at], declared, is_too_short: length < 2 })
    }

    /// Finds the restart marker that is due, or decides how to go on without it (`read_restart_marker`,
    /// `jpeg_resync_to_restart`). A marker that stays pending makes the next interval an empty one.
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
                // Not a marker of any kind: look for the next one.
                ..marker::SOF0 => {}
                marker::RST0..=marker::RST7 => match (found - marker::RST0).wrapping_sub(due) & 7 {
                    // One of the next two: the one that is due was lost, so its data are.
                    1 | 2 => return Ok(()),
                    // One of the last two: it came late, the one that is due lies ahead.
                    6 | 7 => {}
                    // The one that is due, or one too far away to tell: go on behind it.
                    _ => {
                        self.pending = 0;
                        return Ok(());
                    }
                },
                // The end of the scan.
                _ => return Ok(()),
            }
            found = self.next_marker()?;
        }
    }
}

/// The data of a segment, read from its beginning.
#[derive(Debug)]
pub(super) struct Segment<'a> {
    data: &'a [u8],
    /// Bytes that the segment has left by its own length; `data` has fewer where the file ends.
    declared: usize,
    /// Its length does not even cover itself.
    is_too_short: bool,
}

impl<'a> Segment<'a> {
    /// Bytes left by the segment's own length.
    pub(super) fn left(&self) -> usize {
        self.declared
    }

    /// The next bytes.
    ///
    /// # Errors
    /// `Damaged` behind the end of the segment, `Truncated` behind the end of the file.
    pub(super) fn take(&mut self, bytes: usize) -> Result<&'a [u8], JpegError> {
        self.declared = self.declared.checked_sub(bytes).ok_or(JpegError::Damaged)?;
        let (taken, rest) = self.data.split_at_checked(bytes).ok_or(JpegError::Truncated)?;
        self.data = rest;
        Ok(taken)
    }

    /// The next bytes, as an array.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], JpegError> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| JpegError::Damaged)
    }

    /// All that is left.
    ///
    /// # Errors
    /// `Truncated`.
    pub(super) fn rest(mut self) -> Result<&'a [u8], JpegError> {
        self.take(self.declared)
    }

    /// Checks that the segment is read exactly to its end.
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
        let mut source = Source::new(b"a\xff\x00\xff\xff\x00b\xff\xff\xd9c");
        let mut data = Vec::new();
        while let Some(byte) = source.data_byte().unwrap() {
            data.push(byte);
        }
        assert_eq!(data, b"a\xff\xffb");
        assert_eq!(source.pending(), marker::EOI);
        assert_eq!(source.data_byte(), Ok(None));
    }

    #[test]
    fn what_stands_in_front_of_a_marker_is_passed_over() {
        let mut source = Source::new(b"junk\xff\x00\xff\xff\xda..");
        assert_eq!(source.marker(), Ok(marker::SOS));
        assert_eq!(source.marker(), Ok(marker::SOS));
        source.clear_pending();
        assert_eq!(source.marker(), Err(JpegError::Truncated));
    }

    #[test]
    fn a_restart_marker_is_found_or_left_pending_as_libjpeg_does() {
        // What lies ahead when RST2 is due, and what is pending afterwards.
        let cases: [(&[u8], u8); 6] = [
            (b"..\xff\xd2", 0),
            (b"\xff\xd3", 0xd3),
            (b"\xff\xd4", 0xd4),
            (b"\xff\xd5", 0),
            (b"\xff\xd0\x00\xff\x02\xff\xd9", 0xd9),
            (b"\xff\xd1\xff\xd2", 0),
        ];
        for (data, pending) in cases {
            let mut source = Source::new(data);
            source.restart(2).unwrap();
            assert_eq!(source.pending(), pending, "{data:x?}");
        }
        assert_eq!(Source::new(b"\xff\xd1..").restart(2), Err(JpegError::Truncated));
    }

    #[test]
    fn a_segment_ends_where_its_length_says() {
        let mut source = Source::new(b"\x00\x04ab\x00\x00\x00\x07abc");
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
