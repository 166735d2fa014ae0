//! Reads the first frame of a GIF with Pillow's rules (`GifImagePlugin`). Rewrites it as a file with one colour table
//! of 256 entries and a screen of the frame's size, so that the decoder returns the pixels that Pillow reads from the
//! original. `standalone` places the frame on the original screen.

use std::ops::Range;

use crate::input::memory::{self, OutOfMemory};

/// The first frame of a complete GIF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FirstFrame<'a> {
    /// Width and height of the screen in pixels, enlarged if the frame extends beyond it.
    pub(super) screen: (u32, u32),
    /// Width and height of the frame in pixels.
    pub(super) sides: (u32, u32),
    /// Index of the transparent colour, if there is one.
    pub(super) transparent: Option<u8>,
    /// Position of the frame's left and top edges on the screen in pixels.
    pub(super) place: (u32, u32),
    interlaced: bool,
    /// The colour table as RGB triples; `None` for a grey ramp (see [`is_grey_ramp`]).
    colours: Option<&'a [u8]>,
    /// LZW code size and sub-blocks, including the empty sub-block at the end.
    data: &'a [u8],
}

/// Size in bytes of the header and the logical screen descriptor.
const HEAD: usize = 6 + 7;
/// Number of entries of the colour table in the rewritten file.
const COLOURS: usize = 256;

/// Walks the blocks up to the end of the first frame's data and returns this frame. Returns `None` if the file ends
/// earlier or has no frame.
pub(super) fn first_frame(file: &[u8]) -> Option<FirstFrame<'_>> {
    let &[w0, w1, h0, h1, screen_flags] = file.get(6..)?.first_chunk()?;
    let global = colour_table(file, HEAD, screen_flags)?;
    let mut at = HEAD + global.len();
    let mut transparent = None;
    loop {
        match *file.get(at)? {
            0x21 => at = skip_extension(file, at, &mut transparent)?,
            0x2c => break,
            0x3b => return None,
            // Pillow skips stray bytes between blocks.
            _ => at += 1,
        }
    }
    let &[_, x0, x1, y0, y1, fw0, fw1, fh0, fh1, flags] = file.get(at..)?.first_chunk()?;
    let local = colour_table(file, at + 10, flags)?;
    let start = at + 10 + local.len();
    // The byte before the data is the LZW code size.
    let data = sub_blocks(file, start + 1)?;
    // In Pillow, a local colour table that is a grey ramp does not replace the global colour table. If the frame also
    // has a transparent colour, Pillow raises an error, whereas this function uses the local table.
    let own = !local.is_empty() && (transparent.is_some() || !is_grey_ramp(local));
    let table = if own { local } else { global };
    let number = |bytes| u32::from(u16::from_le_bytes(bytes));
    let (sides, place) =
        ((number([fw0, fw1]), number([fh0, fh1])), (number([x0, x1]), number([y0, y1])));
    Some(FirstFrame {
        screen: (number([w0, w1]).max(place.0 + sides.0), number([h0, h1]).max(place.1 + sides.1)),
        sides,
        transparent,
        place,
        interlaced: flags & 0x40 != 0,
        colours: (!is_grey_ramp(table)).then_some(table),
        data: file.get(start..data.end)?,
    })
}

impl FirstFrame<'_> {
    /// Returns the RGB colour of an index. As in Pillow, the index is the grey value if there is no colour table, and
    /// an index beyond the end of the table is black.
    pub(super) fn colour(&self, index: u8) -> [u8; 3] {
        let Some(colours) = self.colours else { return [index; 3] };
        colours.as_chunks().0.get(usize::from(index)).copied().unwrap_or_default()
    }

    /// Returns the RGBA colour of the screen around the frame. As in Pillow (`GifImagePlugin.load_prepare`), this is
    /// the first colour of the palette, or full transparency if the frame has a transparent colour.
    pub(super) fn uncovered(&self) -> [u8; 4] {
        if self.transparent.is_some() {
            return [0; 4];
        }
        let [red, green, blue] = self.colour(0);
        [red, green, blue, 255]
    }

    /// Returns a GIF file with only this frame, at most 900 bytes longer than the frame's data.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(super) fn still(&self) -> Result<Vec<u8>, OutOfMemory> {
        // The format stores each side in 16 bits.
        let [width, height] = [self.sides.0, self.sides.1].map(|side| (side as u16).to_le_bytes());
        let mut file = memory::with_capacity(self.data.len() + 3 * COLOURS + 64)?;
        file.extend(b"GIF89a");
        file.extend([width, height].concat());
        // Flags (a colour table of 256 entries), background index and aspect ratio.
        file.extend([0xf7, 0, 0]);
        file.extend((0..=255).flat_map(|index| self.colour(index)));
        if let Some(transparent) = self.transparent {
            file.extend([0x21, 0xf9, 4, 1, 0, 0, transparent, 0]);
        }
        file.push(0x2c);
        file.extend([[0; 2], [0; 2], width, height].concat());
        file.push(if self.interlaced { 0x40 } else { 0 });
        file.extend(self.data);
        file.push(0x3b);
        Ok(file)
    }
}

/// Returns the colour table at offset `at`; an empty table if `flags` say that there is none; `None` if the file ends
/// before the table does.
fn colour_table(file: &[u8], at: usize, flags: u8) -> Option<&[u8]> {
    let length = if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    file.get(at..at + length)
}

/// True if the table is empty, or if each entry is the grey value that equals the entry's index (Pillow's
/// `_is_palette_needed`).
fn is_grey_ramp(table: &[u8]) -> bool {
    let (colours, _) = table.as_chunks::<3>();
    colours
        .iter()
        .enumerate()
        .all(|(index, colour)| colour.iter().all(|&value| usize::from(value) == index))
}

/// Skips an extension (introducer, label, sub-blocks) and returns the offset after it. A graphic control extension
/// (label 0xf9) may set `transparent`; a later extension does not clear it.
fn skip_extension(file: &[u8], at: usize, transparent: &mut Option<u8>) -> Option<usize> {
    let &[_, label, length] = file.get(at..)?.first_chunk()?;
    if label == 0xf9 && length >= 1 && *file.get(at + 3)? & 1 == 1 {
        // The index comes after the flags and the delay, which has two bytes.
        *transparent = Some(*file.get(at + 6).filter(|_| length >= 4)?);
    }
    let mut end = sub_blocks(file, at + 2)?.end;
    // After an empty extension other than a comment (0xfe), Pillow skips a second chain of sub-blocks.
    if length == 0 && label != 0xfe {
        end = sub_blocks(file, end)?.end;
    }
    Some(end)
}

/// Returns the range of the chain of sub-blocks that begins at `start`, including the empty sub-block at its end.
fn sub_blocks(file: &[u8], start: usize) -> Option<Range<usize>> {
    let mut at = start;
    loop {
        let length = usize::from(*file.get(at)?);
        at += 1 + length;
        if length == 0 {
            return Some(start..at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A GIF with a 2x2 screen, a global palette of two colours, transparency, a comment and one frame.
    const GIF: &[u8] = b"GIF89a\x02\0\x02\0\x80\0\0\x0a\x0b\x0c\xff\xff\xff\
        \x21\xf9\x04\x01\0\0\x01\0\x21\xfe\x02hi\0\
        \x2c\0\0\0\0\x02\0\x02\0\0\x02\x02\x4c\x01\0\x3b";

    #[test]
    fn palette_and_transparency_are_read() {
        let frame = first_frame(GIF).unwrap();
        assert_eq!((frame.screen, frame.sides, frame.transparent), ((2, 2), (2, 2), Some(1)));
        assert_eq!([0, 1, 2].map(|index| frame.colour(index)), [[10, 11, 12], [255; 3], [0; 3]]);
    }

    #[test]
    fn a_still_is_the_same_picture() {
        let frame = first_frame(GIF).unwrap();
        let still = frame.still().unwrap();
        let again = first_frame(&still).unwrap();
        assert_eq!((again.screen, again.place, again.data), (frame.sides, (0, 0), frame.data));
        assert_eq!(again.colour(0), frame.colour(0));
    }

    #[test]
    fn a_frame_outside_enlarges_the_screen() {
        let mut file = GIF.to_vec();
        let at = GIF.iter().position(|&byte| byte == 0x2c).unwrap();
        file[at + 1] = 3;
        assert_eq!(first_frame(&file).unwrap().screen, (5, 2));
        file[at + 2] = 0xff;
        file[at + 6] = 0xff;
        assert_eq!(first_frame(&file).unwrap().screen.0, 0xff03 + 0xff02);
    }

    #[test]
    fn a_cut_frame_is_not_whole_but_the_trailer_may_miss() {
        let whole_without_trailer = GIF.len() - 1;
        assert!(first_frame(&GIF[..whole_without_trailer]).is_some());
        for length in 0..whole_without_trailer {
            assert_eq!(first_frame(&GIF[..length]), None, "{length} bytes");
        }
    }
}
