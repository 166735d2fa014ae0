//! The first frame of a GIF as its blocks describe it: what the decoder does not tell.

/// Facts about the first frame of a whole GIF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FirstFrame {
    /// True when a colour of the palette is transparent.
    pub(super) transparent: bool,
    /// The palette's first colour, RGB.
    pub(super) first_colour: [u8; 3],
    /// Its own width in pixels, which may exceed the screen's.
    pub(super) width: u32,
    /// Its own height in pixels.
    pub(super) height: u32,
}

/// Header, logical screen descriptor.
const HEAD: usize = 6 + 7;

/// Walks the blocks up to the end of the first frame's data; `None` when the file ends before or is no GIF.
pub(super) fn first_frame(file: &[u8]) -> Option<FirstFrame> {
    let screen_flags = *file.get(10)?;
    let global = file.get(HEAD..)?;
    let mut at = HEAD + table_bytes(screen_flags);
    let mut transparent = false;
    loop {
        match *file.get(at)? {
            // An extension: introducer, label, sub-blocks. A graphic control extension (0xf9) has one of 4 bytes.
            0x21 => {
                if *file.get(at + 1)? == 0xf9 && *file.get(at + 2)? >= 1 {
                    transparent = *file.get(at + 3)? & 1 == 1;
                }
                at = skip_sub_blocks(file, at + 2)?;
            }
            0x2c => {
                let &[.., w0, w1, h0, h1, frame_flags] = file.get(at..)?.first_chunk::<10>()?;
                let side = |bytes| u32::from(u16::from_le_bytes(bytes));
                let (width, height) = (side([w0, w1]), side([h0, h1]));
                let table = at + 10;
                let local = file.get(table..)?;
                let palette = if frame_flags & 0x80 == 0 { global } else { local };
                // The byte before the data is the code size.
                skip_sub_blocks(file, table + table_bytes(frame_flags) + 1)?;
                let first_colour = *palette.first_chunk()?;
                return Some(FirstFrame { transparent, first_colour, width, height });
            }
            0x3b => return None,
            // Pillow and the decoder pass over stray bytes between blocks.
            _ => at += 1,
        }
    }
}

/// Bytes of the colour table that these flags announce.
fn table_bytes(flags: u8) -> usize {
    if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) }
}

/// The place behind a chain of sub-blocks that starts at `at`.
fn skip_sub_blocks(file: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = usize::from(*file.get(at)?);
        at += 1 + length;
        if length == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2x2 screen, a global palette of two colours, transparency, a comment, one frame.
    const GIF: &[u8] = b"GIF89a\x02\0\x02\0\x80\0\0\x0a\x0b\x0c\xff\xff\xff\
        \x21\xf9\x04\x01\0\0\x00\0\x21\xfe\x02hi\0\
        \x2c\0\0\0\0\x02\0\x02\0\0\x02\x02\x4c\x01\0\x3b";

    #[test]
    fn palette_and_transparency_are_read() {
        let first_colour = [10, 11, 12];
        let expected = FirstFrame { transparent: true, first_colour, width: 2, height: 2 };
        assert_eq!(first_frame(GIF), Some(expected));
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
