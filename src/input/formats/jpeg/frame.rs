//! The frame of a JPEG file (SOF): its components, their geometry in blocks, and their colour space.
//!
//! Sources: `get_sof` in `jdmarker.c`, `initial_setup` in `jdinput.c`, `default_decompress_parms` in `jdapimin.c`.

use super::error::JpegError;
use super::source::{Segment, marker};

/// Maximum width and height in pixels that libjpeg accepts (`JPEG_MAX_DIMENSION`).
const MAX_SIDE: u16 = 65_500;
/// Maximum sampling factor of a component (`MAX_SAMP_FACTOR`).
const MAX_SAMPLING: u8 = 4;
/// Width and height of a block of coefficients, in samples.
pub(super) const BLOCK_SIDE: usize = 8;

/// Coefficients of one block in natural order: row by row, with increasing frequencies.
pub(super) type CoefficientBlock = [i16; 64];

/// The coding process of the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) progressive: bool,
    pub(super) arithmetic: bool,
    /// True if samples are coded directly, not as coefficients. Each block is then a single sample.
    pub(super) lossless: bool,
}

impl Process {
    /// Sequential DCT with Huffman coding.
    pub(super) const SEQUENTIAL: Self =
        Self { progressive: false, arithmetic: false, lossless: false };

    /// Returns the width and height of a block in samples (`data_unit` of libjpeg-turbo).
    pub(super) fn block_side(self) -> usize {
        if self.lossless { 1 } else { BLOCK_SIDE }
    }
}

/// The colour space of the components.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colours {
    Grey,
    Rgb,
    YCbCr,
    /// CMYK with inverted samples, as Adobe writes it and Pillow reads it (raw mode `CMYK;I`).
    Cmyk,
    /// CMYK whose first three components are stored as `YCbCr`.
    Ycck,
}

/// One component of the frame, with its geometry.
#[derive(Debug, Clone)]
pub(super) struct Component {
    pub(super) id: u8,
    /// Sampling factors, horizontal (`h`) and vertical (`v`), 1 to 4.
    pub(super) h: usize,
    pub(super) v: usize,
    /// Slot of the quantisation table, as read from the file (unchecked).
    pub(super) quant_slot: u8,
    /// Width and height in blocks, not counting blocks that are only padding.
    pub(super) width_in_blocks: usize,
    pub(super) height_in_blocks: usize,
    /// Width and height in blocks, including the padding blocks of interleaved scans.
    pub(super) padded_width: usize,
    pub(super) padded_height: usize,
    /// Width and height in samples, without padding.
    pub(super) width: usize,
    pub(super) height: usize,
}

/// A frame header that passed all checks.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) process: Process,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) components: Vec<Component>,
    pub(super) max_h: usize,
    pub(super) max_v: usize,
    /// Number of rows of interleaved MCUs. An MCU (minimum coded unit) contains `h x v` blocks of each component.
    pub(super) mcu_rows: usize,
    /// Number of interleaved MCUs in a row.
    pub(super) mcus_per_row: usize,
}

impl Frame {
    /// Parses the segment after the marker `code`, which is one of SOF0 to SOF15.
    ///
    /// # Errors
    /// `Unsupported` if Pillow does not read such a frame, `Damaged`.
    pub(super) fn read(code: u8, mut segment: Segment<'_>) -> Result<Self, JpegError> {
        let process = process(code)?;
        let [precision, y0, y1, x0, x1, count] = segment.array()?;
        let (height, width) = (u16::from_be_bytes([y0, y1]), u16::from_be_bytes([x0, x1]));
        if width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE {
            return Err(JpegError::Damaged);
        }
        if segment.left() != usize::from(count) * 3 {
            return Err(JpegError::Damaged);
        }
        let list = segment.rest()?;
        if precision != 8 {
            return Err(JpegError::Unsupported("samples of more or fewer than 8 bits"));
        }
        if !matches!(count, 1 | 3 | 4) {
            return Err(JpegError::Unsupported(
                "a number of colour components other than 1, 3 or 4",
            ));
        }
        let (entries, _) = list.as_chunks::<3>();
        let sampling = |&[_, factors, _]: &[u8; 3]| (factors >> 4, factors & 15);
        let valid = |factor| (1..=MAX_SAMPLING).contains(&factor);
        if entries.iter().map(sampling).any(|(h, v)| !valid(h) || !valid(v)) {
            return Err(JpegError::Damaged);
        }
        let max_h = entries.iter().map(|entry| usize::from(sampling(entry).0)).max().unwrap_or(1);
        let max_v = entries.iter().map(|entry| usize::from(sampling(entry).1)).max().unwrap_or(1);
        let (width, height) = (usize::from(width), usize::from(height));
        let side = process.block_side();
        let mcus_per_row = width.div_ceil(max_h * side);
        let mcu_rows = height.div_ceil(max_v * side);
        let component = |entry: &[u8; 3]| {
            let (h, v) = sampling(entry);
            let (h, v) = (usize::from(h), usize::from(v));
            Component {
                id: entry[0],
                h,
                v,
                quant_slot: entry[2],
                width_in_blocks: (width * h).div_ceil(max_h * side),
                height_in_blocks: (height * v).div_ceil(max_v * side),
                padded_width: mcus_per_row * h,
                padded_height: mcu_rows * v,
                width: (width * h).div_ceil(max_h),
                height: (height * v).div_ceil(max_v),
            }
        };
        let components = entries.iter().map(component).collect();
        Ok(Self { process, width, height, components, max_h, max_v, mcu_rows, mcus_per_row })
    }

    /// Returns the number of samples in all components, including padding.
    pub(super) fn samples(&self) -> u64 {
        let blocks =
            |component: &Component| (component.padded_width * component.padded_height) as u64;
        let side = self.process.block_side() as u64;
        self.components.iter().map(blocks).sum::<u64>() * side * side
    }

    /// Returns the colour space according to the JFIF and Adobe markers. Without these markers, the component ids
    /// determine it. `jfif` is true if there is a JFIF marker; `adobe` is the transform code of the Adobe marker.
    ///
    /// # Errors
    /// `Unsupported` if lossless samples would need colour conversion, which libjpeg-turbo does not do.
    pub(super) fn colours(&self, jfif: bool, adobe: Option<u8>) -> Result<Colours, JpegError> {
        let lossless = self.process.lossless;
        match (self.components.as_slice(), adobe) {
            ([_], _) => Ok(Colours::Grey),
            ([_, _, _], Some(0)) if !jfif => Ok(Colours::Rgb),
            ([_, _, _], None) if !jfif && lossless => Ok(Colours::Rgb),
            ([r, g, b], None) if !jfif && [r.id, g.id, b.id] == *b"RGB" => Ok(Colours::Rgb),
            (_, None | Some(0)) if self.components.len() == 4 => Ok(Colours::Cmyk),
            _ if lossless => Err(JpegError::Unsupported("lossless JPEG in YCbCr or YCCK")),
            ([_, _, _], _) => Ok(Colours::YCbCr),
            _ => Ok(Colours::Ycck),
        }
    }
}

fn process(code: u8) -> Result<Process, JpegError> {
    let sequential = Process::SEQUENTIAL;
    match code - marker::SOF0 {
        0 | 1 => Ok(sequential),
        2 => Ok(Process { progressive: true, ..sequential }),
        3 => Ok(Process { lossless: true, ..sequential }),
        9 => Ok(Process { arithmetic: true, ..sequential }),
        10 => Ok(Process { progressive: true, arithmetic: true, ..sequential }),
        11 => Err(JpegError::Unsupported("lossless JPEG with arithmetic coding")),
        _ => Err(JpegError::Unsupported("a hierarchical JPEG process")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::ByteSource;
    use super::*;

    fn read(code: u8, data: &[u8]) -> Result<Frame, JpegError> {
        let length = (data.len() as u16 + 2).to_be_bytes();
        let file = [&length, data].concat();
        Frame::read(code, ByteSource::new(&file).segment().unwrap())
    }

    fn frame(width: u16, height: u16, sampling: &[u8]) -> Frame {
        let mut data = vec![8];
        data.extend(height.to_be_bytes());
        data.extend(width.to_be_bytes());
        data.push(sampling.len() as u8);
        for (id, &factors) in (1..).zip(sampling) {
            data.extend([id, factors, 0]);
        }
        read(marker::SOF0, &data).unwrap()
    }

    #[test]
    fn geometry_counts_blocks_with_and_without_padding() {
        let frame = frame(17, 33, &[0x22, 0x11, 0x11]);
        assert_eq!((frame.mcus_per_row, frame.mcu_rows), (2, 3));
        let [luma, chroma, _] = frame.components.as_slice() else { panic!() };
        assert_eq!((luma.width_in_blocks, luma.height_in_blocks), (3, 5));
        assert_eq!((luma.padded_width, luma.padded_height), (4, 6));
        assert_eq!((luma.width, luma.height), (17, 33));
        assert_eq!((chroma.width_in_blocks, chroma.height_in_blocks), (2, 3));
        assert_eq!((chroma.width, chroma.height), (9, 17));
        assert_eq!(frame.samples(), (24 + 6 + 6) * 64);
    }

    #[test]
    fn jfif_wins_over_adobe_and_adobe_over_ids() {
        let three = frame(8, 8, &[0x11; 3]);
        assert_eq!(three.colours(true, Some(0)), Ok(Colours::YCbCr));
        assert_eq!(three.colours(false, Some(0)), Ok(Colours::Rgb));
        assert_eq!(three.colours(false, Some(7)), Ok(Colours::YCbCr));
        assert_eq!(three.colours(false, None), Ok(Colours::YCbCr));
        let four = frame(8, 8, &[0x11; 4]);
        assert_eq!(four.colours(true, None), Ok(Colours::Cmyk));
        assert_eq!(four.colours(false, Some(0)), Ok(Colours::Cmyk));
        assert_eq!(four.colours(false, Some(1)), Ok(Colours::Ycck));
        let mut named = three;
        for (component, id) in named.components.iter_mut().zip(*b"RGB") {
            component.id = id;
        }
        assert_eq!(named.colours(false, None), Ok(Colours::Rgb));
    }

    #[test]
    fn lossless_samples_are_never_converted() {
        let mut three = frame(8, 8, &[0x11; 3]);
        three.process.lossless = true;
        assert_eq!(three.colours(false, None), Ok(Colours::Rgb));
        assert_eq!(three.colours(false, Some(0)), Ok(Colours::Rgb));
        let mut four = frame(8, 8, &[0x11; 4]);
        four.process.lossless = true;
        assert_eq!(four.colours(true, None), Ok(Colours::Cmyk));
        let refused = [
            three.colours(true, None),
            three.colours(false, Some(1)),
            four.colours(false, Some(2)),
        ];
        assert!(refused.iter().all(Result::is_err), "{refused:?}");
    }

    #[test]
    fn a_block_of_a_lossless_frame_is_a_sample() {
        let frame = read(0xc3, b"\x08\0\x05\0\x07\x02\x01\x21\0\x02\x12\0");
        assert!(matches!(frame, Err(JpegError::Unsupported(_))), "two components");
        let frame = read(0xc3, b"\x08\0\x05\0\x07\x03\x01\x22\0\x02\x11\0\x03\x11\0").unwrap();
        assert_eq!((frame.mcus_per_row, frame.mcu_rows), (4, 3));
        let [luma, chroma, _] = frame.components.as_slice() else { panic!() };
        assert_eq!((luma.width_in_blocks, luma.padded_width), (7, 8));
        assert_eq!((chroma.height_in_blocks, chroma.padded_height), (3, 3));
        assert_eq!(frame.samples(), 8 * 6 + 4 * 3 * 2);
    }

    #[test]
    fn headers_that_libjpeg_refuses_are_refused() {
        let read = |code, data: &[u8]| read(code, data).unwrap_err();
        let damaged: [&[u8]; 6] = [
            b"\x08\0\0\0\x08\x01\x01\x11\0",
            b"\x08\0\x08\0\0\x01\x01\x11\0",
            b"\x08\0\x08\0\x08\x01\x01\x11",
            b"\x08\0\x08\0\x08\x01\x01\x51\0",
            b"\x08\0\x08\0\x08\x01\x01\x10\0",
            b"\x08\xff\xff\0\x08\x01\x01\x11\0",
        ];
        for data in damaged {
            assert_eq!(read(marker::SOF0, data), JpegError::Damaged, "{data:x?}");
        }
        assert!(matches!(read(0xc0, b"\x0c\0\x08\0\x08\x01\x01\x11\0"), JpegError::Unsupported(_)));
        assert!(matches!(
            read(0xc0, b"\x08\0\x08\0\x08\x02\x01\x11\0\x02\x11\0"),
            JpegError::Unsupported(_)
        ));
        for code in [0xc5, 0xc7, 0xcb, 0xcf] {
            assert!(matches!(read(code, b""), JpegError::Unsupported(_)), "{code:x}");
        }
    }
}
