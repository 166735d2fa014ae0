//! Parses the segments before each scan: tables (DQT, DHT, DAC), the frame (SOF), colour markers (APP0, APP14) and
//! restart intervals (DRI).
//!
//! Follows `read_markers` of libjpeg-turbo's `jdmarker.c`, including the order of its checks.

use super::error::JpegError;
use super::frame::{Colours, Frame};
use super::source::{ByteSource, Segment, marker};

/// Zigzag order: the position of each coefficient in a block ([`super::frame::CoefficientBlock`]), in the order in
/// which coefficients are coded. The last sixteen entries are for damaged data, in which a run of zeros may lead beyond
/// the block.
#[rustfmt::skip]
pub(super) const ZIGZAG: [u8; 80] = [
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
];

/// A Huffman table as defined in a DHT segment.
#[derive(Debug, Clone)]
pub(super) struct HuffmanSpec {
    /// Number of codes by length in bits, from 1 to 16; entry 0 is unused.
    pub(super) counts: [u8; 17],
    /// Symbols in the order of their codes; unused entries are 0.
    pub(super) symbols: [u8; 256],
}

/// The tables in effect when a scan starts.
#[derive(Debug, Clone)]
pub(super) struct Tables {
    /// Quantisation tables by slot. Their entries are in natural order (see [`super::frame::CoefficientBlock`]).
    pub(super) quant: [Option<[u16; 64]>; 4],
    pub(super) dc: [Option<HuffmanSpec>; 4],
    pub(super) ac: [Option<HuffmanSpec>; 4],
    /// Parameters of arithmetic coding by slot. `arithmetic_dc` contains the bounds L and U for DC values,
    /// `arithmetic_ac` contains Kx for AC values (see `arithmetic::ArithmeticState`).
    pub(super) arithmetic_dc: [(u8, u8); 16],
    pub(super) arithmetic_ac: [u8; 16],
    /// Number of MCUs between restart markers; 0 if there are no restart markers.
    pub(super) restart_interval: u16,
}

/// One component of a scan, with the slots of its entropy-coding tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ScanComponent {
    /// Index of the component in the frame.
    pub(super) index: usize,
    pub(super) dc_table: usize,
    pub(super) ac_table: usize,
}

/// A parsed scan header (SOS).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scan {
    /// The components of the scan, between one and four.
    pub(super) components: Vec<ScanComponent>,
    /// First and last coefficient that the scan contains, as indices in zigzag order. In lossless scans, these fields
    /// have other meanings (see `lossless::Method`).
    pub(super) first: u8,
    pub(super) last: u8,
    /// Successive approximation: the position of the lowest bit in the previous scan of these coefficients (`high`; 0
    /// if there was none) and in this scan (`low`).
    pub(super) high: u8,
    pub(super) low: u8,
}

/// What [`HeaderParser::next`] stopped at.
#[derive(Debug)]
pub(super) enum HeaderEvent {
    /// The header of a scan, whose entropy-coded data follows.
    Scan(Scan),
    /// The end-of-image marker (EOI).
    End,
}

/// Parses segments, and stores the contents of those read so far.
#[derive(Debug)]
pub(super) struct HeaderParser {
    pub(super) tables: Tables,
    frame: Option<Frame>,
    jfif: bool,
    adobe: Option<u8>,
    started: bool,
    saw_scan: bool,
}

impl HeaderParser {
    pub(super) fn new() -> Self {
        let tables = Tables {
            quant: [const { None }; 4],
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            arithmetic_dc: [(0, 1); 16],
            arithmetic_ac: [5; 16],
            restart_interval: 0,
        };
        Self { tables, frame: None, jfif: false, adobe: None, started: false, saw_scan: false }
    }

    /// Reads up to the first scan. Returns the frame and the scan header. As in libjpeg, abbreviated streams that
    /// contain only tables may precede the picture.
    ///
    /// # Errors
    /// `Truncated`, `Damaged`, `Unsupported`.
    pub(super) fn first_scan(
        &mut self,
        source: &mut ByteSource<'_>,
    ) -> Result<(Frame, Scan), JpegError> {
        loop {
            match self.next(source)? {
                HeaderEvent::Scan(scan) => {
                    let frame = self.frame.clone().ok_or(JpegError::Damaged)?;
                    return Ok((frame, scan));
                }
                HeaderEvent::End if self.frame.is_some() => return Err(JpegError::Damaged),
                HeaderEvent::End => self.started = false,
            }
        }
    }

    /// Reads up to the next scan or the end of the picture (`read_markers`).
    ///
    /// # Errors
    /// `Truncated`, `Damaged`, `Unsupported`.
    pub(super) fn next(&mut self, source: &mut ByteSource<'_>) -> Result<HeaderEvent, JpegError> {
        if !self.started {
            source.start_of_image()?;
            self.start();
        }
        loop {
            let code = source.marker()?;
            source.clear_pending();
            match code {
                marker::SOS => {
                    self.saw_scan = true;
                    return self.scan(source.segment()?).map(HeaderEvent::Scan);
                }
                marker::EOI => return Ok(HeaderEvent::End),
                marker::DHT => self.huffman(source.segment()?)?,
                marker::DAC => self.conditioning(source.segment()?)?,
                marker::DQT => self.quantisation(source.segment()?)?,
                marker::DRI => self.restart_interval(source.segment()?)?,
                // JPG, a reserved marker. All other codes from SOF0 to 0xCF that reach this point start a frame (SOF).
                0xc8 => return Err(JpegError::Unsupported("a reserved JPEG extension")),
                marker::SOF0..=0xcf => {
                    // A file may have only one frame.
                    if self.frame.is_some() {
                        return Err(JpegError::Damaged);
                    }
                    self.frame = Some(Frame::read(code, source.segment()?)?);
                }
                marker::APP0 => {
                    let data = source.segment()?.rest()?;
                    self.jfif |= data.len() >= 14 && data.starts_with(b"JFIF\0");
                }
                marker::APP14 => {
                    let data = source.segment()?.rest()?;
                    if data.len() >= 12 && data.starts_with(b"Adobe") {
                        self.adobe = Some(data[11]);
                    }
                }
                marker::APP0..=marker::APP15 | marker::COM | marker::DNL => {
                    source.segment()?.rest()?;
                }
                // Pillow's own header parser, which reads up to the first scan, rejects TEM.
                marker::TEM if !self.saw_scan => return Err(JpegError::Damaged),
                marker::TEM | marker::RST0..=marker::RST7 => {}
                // A second SOI, or a marker that no current JPEG file contains.
                _ => return Err(JpegError::Damaged),
            }
        }
    }

    /// Returns the colour space of the frame, according to the markers read so far.
    ///
    /// # Errors
    /// `Unsupported`.
    pub(super) fn colours(&self, frame: &Frame) -> Result<Colours, JpegError> {
        frame.colours(self.jfif, self.adobe)
    }

    /// Resets everything that an SOI marker resets (`get_soi`); the quantisation and Huffman tables are kept.
    fn start(&mut self) {
        self.started = true;
        self.jfif = false;
        self.adobe = None;
        self.tables.arithmetic_dc = [(0, 1); 16];
        self.tables.arithmetic_ac = [5; 16];
        self.tables.restart_interval = 0;
    }

    fn scan(&self, mut segment: Segment<'_>) -> Result<Scan, JpegError> {
        let frame = self.frame.as_ref().ok_or(JpegError::Damaged)?;
        let [count] = segment.array()?;
        if !(1..=4).contains(&count) || segment.left() != usize::from(count) * 2 + 3 {
            return Err(JpegError::Damaged);
        }
        let mut components: Vec<ScanComponent> = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let [id, tables] = segment.array()?;
            // Several components may share an id. As in libjpeg, the search skips components of the frame whose index
            // is below the number of components already read from the scan header.
            let found = frame
                .components
                .iter()
                .enumerate()
                .position(|(index, component)| component.id == id && index >= components.len());
            let index = found.ok_or(JpegError::Damaged)?;
            if components.iter().any(|other| other.index == index) {
                return Err(JpegError::Damaged);
            }
            let (dc_table, ac_table) = (usize::from(tables >> 4), usize::from(tables & 15));
            components.push(ScanComponent { index, dc_table, ac_table });
        }
        let [first, last, approximation] = segment.array()?;
        Ok(Scan { components, first, last, high: approximation >> 4, low: approximation & 15 })
    }

    fn huffman(&mut self, mut segment: Segment<'_>) -> Result<(), JpegError> {
        while segment.left() > 16 {
            let mut counts: [u8; 17] = segment.array()?;
            let slot = std::mem::take(&mut counts[0]);
            let total = counts.iter().map(|&count| usize::from(count)).sum();
            let mut symbols = [0; 256];
            let room = symbols.get_mut(..total).ok_or(JpegError::Damaged)?;
            room.copy_from_slice(segment.take(total)?);
            let class = if slot & 0x10 == 0 { &mut self.tables.dc } else { &mut self.tables.ac };
            let table = class.get_mut(usize::from(slot & !0x10)).ok_or(JpegError::Damaged)?;
            *table = Some(HuffmanSpec { counts, symbols });
        }
        segment.end()
    }

    fn quantisation(&mut self, mut segment: Segment<'_>) -> Result<(), JpegError> {
        while segment.left() > 0 {
            let [head] = segment.array()?;
            let slot = self.tables.quant.get_mut(usize::from(head & 15));
            let slot = slot.ok_or(JpegError::Damaged)?;
            let width = if head >> 4 == 0 { 1 } else { 2 };
            let values = segment.take(64 * width)?;
            let mut table = [0; 64];
            for (value, &position) in values.chunks(width).zip(&ZIGZAG) {
                table[usize::from(position)] =
                    value.iter().fold(0, |sum, &byte| sum << 8 | u16::from(byte));
            }
            *slot = Some(table);
        }
        segment.end()
    }

    fn conditioning(&mut self, mut segment: Segment<'_>) -> Result<(), JpegError> {
        while segment.left() > 0 {
            let [slot, value] = segment.array()?;
            match slot {
                0..16 => {
                    let (low, high) = (value & 15, value >> 4);
                    if low > high {
                        return Err(JpegError::Damaged);
                    }
                    self.tables.arithmetic_dc[usize::from(slot)] = (low, high);
                }
                16..32 => self.tables.arithmetic_ac[usize::from(slot) - 16] = value,
                _ => return Err(JpegError::Damaged),
            }
        }
        segment.end()
    }

    fn restart_interval(&mut self, mut segment: Segment<'_>) -> Result<(), JpegError> {
        if segment.left() != 2 {
            return Err(JpegError::Damaged);
        }
        self.tables.restart_interval = u16::from_be_bytes(segment.array()?);
        Ok(())
    }
}
