//! The palette of a BMP file.

use super::error::BmpError;

/// The colours that palette indices map to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Palette<'a> {
    /// The colours, and the number of bytes of each colour. The bytes are in the order blue, green, red. Indices beyond
    /// the last colour are black.
    Table(&'a [u8], usize),
    /// Index 0 is black, and every other index is white.
    BlackWhite,
    /// The index is the grey value itself.
    Grey,
}

impl<'a> Palette<'a> {
    /// Reads the palette at `start`, with `entry` bytes for each colour. Returns the palette and how many of its bytes
    /// the file contains.
    pub(super) fn read(
        file: &'a [u8],
        start: usize,
        entry: usize,
        colours: u32,
    ) -> Result<(Self, usize), BmpError> {
        if colours == 0 || colours > 1 << 16 {
            return Err(BmpError::Unsupported);
        }
        let colours = colours as usize;
        let end = (start + entry * colours).min(file.len());
        let table = file.get(start..end).ok_or(BmpError::Incomplete)?;
        let is_grey = (0..colours).all(|index| {
            let grey = if colours == 2 { index * 255 } else { index } as u8;
            table.get(index * entry..).is_some_and(|rest| rest.starts_with(&[grey; 3]))
        });
        if !is_grey && table.len() / entry > 256 {
            return Err(BmpError::Unsupported);
        }
        let palette = match (is_grey, colours) {
            (true, ..=2) => Self::BlackWhite,
            (true, _) => Self::Grey,
            (false, _) => Self::Table(table, entry),
        };
        Ok((palette, table.len()))
    }

    /// Returns the RGB colour of an index.
    #[inline]
    pub(super) fn colour(self, index: u8) -> [u8; 3] {
        match self {
            Self::Grey => [index; 3],
            Self::BlackWhite => [if index == 0 { 0 } else { 255 }; 3],
            Self::Table(table, entry) => {
                let found = table.chunks_exact(entry).nth(usize::from(index));
                found.map_or([0; 3], |colour| [colour[2], colour[1], colour[0]])
            }
        }
    }
}
