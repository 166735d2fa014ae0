//! The steps of decoding a file: reads the header, decodes all scans, transforms coefficients to samples and converts
//! the samples to RGB. Also computes from the header how much memory these steps take.

use super::arithmetic::Arithmetic;
use super::coefficients::{self, BlockGrid};
use super::error::JpegError;
use super::frame::{self, Frame, Process};
use super::header::{HeaderEvent, HeaderParser, Scan};
use super::lossless::{self, LosslessScan};
use super::output::{Plane, RgbConversion};
use super::progressive::{self, Progressive};
use super::scan::{
    BlockDecoder, blocks_in_scan, check_mcu, decode_mcu_row, is_multi_scan, work_of_scan,
};
use super::sequential::Sequential;
use super::smoothing::{self, KnownBits};
use super::source::ByteSource;
use super::{huffman, idct, work};
use crate::input::memory;
use crate::input::raster::{Layout, Raster};
use crate::input::stop::{self, Stop};

/// Size and estimated costs of a picture, from its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct JpegInfo {
    /// Width in pixels, as stored.
    pub(super) width: u32,
    /// Height in pixels, as stored.
    pub(super) height: u32,
    /// Peak memory of [`decode`] in bytes, including the picture itself.
    pub(super) working_bytes: u64,
    /// Estimated cost of [`decode`]; the unit is one pixel of a plain JPEG, as in `ImageHeader::work`.
    pub(super) work: u64,
}

/// Limit on the cost of decoding one file.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkLimit {
    /// Maximum total work of all scans, in the unit of `scan::work_of_scan`. The limit is needed because a scan may
    /// take only a few bytes of the file, but makes the decoder traverse the whole picture.
    pub(super) max_blocks: u64,
}

/// Reads the file up to its first scan (SOS) and returns the picture's size and estimated costs. Allocates no memory
/// for pixels.
///
/// # Errors
/// Any [`JpegError`] of the header.
pub(super) fn read_header(file: &[u8]) -> Result<JpegInfo, JpegError> {
    let mut source = ByteSource::new(file);
    let (frame, scan) = HeaderParser::new().first_scan(&mut source)?;
    let (width, height) = (frame.width as u32, frame.height as u32);
    let work = work::estimate(&frame, &scan, source.rest());
    Ok(JpegInfo { width, height, working_bytes: working_bytes(&frame, &scan), work })
}

/// Returns the peak memory of [`decode`] in bytes. The planes of all components are allocated throughout. In addition,
/// [`decode`] needs the coefficients while it decodes scans, and the picture afterwards. Single-scan files need only
/// one strip of coefficients; lossless files need a few rows of differences instead.
fn working_bytes(frame: &Frame, first_scan: &Scan) -> u64 {
    let planes: u64 = frame.components.iter().map(|component| Plane::bytes(frame, component)).sum();
    let decoding = if frame.process.lossless {
        lossless::row_bytes(frame)
    } else if is_multi_scan(frame, first_scan) {
        coefficients::whole_bytes(frame) + smoothing::row_bytes(frame)
    } else {
        coefficients::strip_bytes(frame)
    };
    planes + decoding.max(RgbConversion::bytes(frame))
}

/// Decodes a file to RGB pixels as stored. `stop` is polled between rows.
///
/// # Errors
/// Any [`JpegError`] of the header or the scans.
pub(super) fn decode(file: &[u8], limit: WorkLimit, stop: Stop<'_>) -> Result<Raster, JpegError> {
    let mut source = ByteSource::new(file);
    let mut header = HeaderParser::new();
    let (frame, scan) = header.first_scan(&mut source)?;
    let colours = header.colours(&frame)?;
    if frame.process == Process::SEQUENTIAL {
        huffman::fill_in_standard_tables(&mut header.tables);
    }
    let mut reader = ScanReader {
        quant: vec![None; frame.components.len()],
        known_bits: KnownBits::new(&frame),
        blocks_left: limit.max_blocks,
        decisions_left: decision_budget(&frame, file.len()),
        source,
        header,
        frame: &frame,
        stop,
    };
    let planes = if frame.process.lossless {
        reader.lossless_scans(scan)?
    } else if is_multi_scan(&frame, &scan) {
        reader.decode_multi_scan(scan)?
    } else {
        reader.decode_single_scan(&scan)?
    };
    let picture = RgbConversion { frame: &frame, planes: &planes, colours, stop };
    let data = pulp::Arch::new().dispatch(picture)?;
    for plane in planes {
        memory::release(plane.samples);
    }
    let (width, height) = (frame.width as u32, frame.height as u32);
    Ok(Raster { width, height, layout: Layout::RGB, data })
}

/// Decoder for all scans of a frame.
struct ScanReader<'f, 'a> {
    source: ByteSource<'a>,
    header: HeaderParser,
    frame: &'f Frame,
    /// The quantisation table of each component, as it was at the start of the component's first scan
    /// (`latch_quant_tables`).
    quant: Vec<Option<[u16; 64]>>,
    known_bits: KnownBits,
    blocks_left: u64,
    /// Number of binary decisions that may still be decoded in arithmetic-coded scans.
    decisions_left: u64,
    stop: Stop<'f>,
}

impl ScanReader<'_, '_> {
    /// Decodes a single-scan file. Transforms each row of MCUs to samples as soon as it is decoded.
    fn decode_single_scan(&mut self, scan: &Scan) -> Result<Vec<Plane>, JpegError> {
        let frame = self.frame;
        let mut planes = planes(frame, self.stop)?;
        let mut grids = coefficients::one_strip(frame, self.stop)?;
        let quant = self.begin(scan)?;
        self.run(scan, &mut grids, |grids, mcu_row| {
            for (index, grid) in grids.iter_mut().enumerate() {
                let component = &frame.components[index];
                let first = mcu_row * component.v;
                let end = (first + component.v).min(component.height_in_blocks);
                for row in first..end {
                    transform(grid.row(row), &quant[index], &mut planes[index], row);
                }
                grid.restart_at(first + component.v);
            }
        })?;
        grids.into_iter().for_each(BlockGrid::release);
        self.finish()?;
        Ok(planes)
    }

    /// Reads the segments after the only scan up to EOI, as libjpeg does. Pillow already has all rows by then, so it is
    /// not an error if the file ends before EOI. Any other problem is an error only if it lies in the part of the file
    /// that Pillow has read.
    fn finish(&mut self) -> Result<(), JpegError> {
        self.source.end_with_read();
        match self.header.next(&mut self.source) {
            Ok(HeaderEvent::End) | Err(JpegError::Truncated) => Ok(()),
            Ok(HeaderEvent::Scan(_)) => Err(JpegError::Damaged),
            Err(error) => Err(error),
        }
    }

    /// Decodes a multi-scan file: collects the coefficients of all scans, then transforms them to samples.
    fn decode_multi_scan(&mut self, mut scan: Scan) -> Result<Vec<Plane>, JpegError> {
        let frame = self.frame;
        let mut planes = planes(frame, self.stop)?;
        let mut grids = coefficients::whole_picture(frame, self.stop)?;
        loop {
            self.begin(&scan)?;
            self.run(&scan, &mut grids, |_, _| {})?;
            match self.header.next(&mut self.source)? {
                HeaderEvent::Scan(next) => scan = next,
                HeaderEvent::End => break,
            }
        }
        let smoothing =
            self.known_bits.smoothing(&self.quant).filter(|_| frame.process.progressive);
        for (index, (grid, plane)) in grids.into_iter().zip(&mut planes).enumerate() {
            // If no scan contains this component, its coefficients are zero, so its samples are medium grey.
            let quant = self.quant[index].unwrap_or([0; 64]);
            for row in 0..frame.components[index].height_in_blocks {
                stop::check(self.stop)?;
                match &smoothing {
                    Some(smoothing) => {
                        let blocks = smoothing.row(frame, index, &grid, row, &quant)?;
                        transform(&blocks, &quant, plane, row);
                        memory::release(blocks);
                    }
                    None => transform(grid.row(row), &quant, plane, row),
                }
            }
            grid.release();
        }
        Ok(planes)
    }

    /// Decodes lossless scans, which contain the samples of their components instead of coefficients.
    fn lossless_scans(&mut self, mut scan: Scan) -> Result<Vec<Plane>, JpegError> {
        let frame = self.frame;
        let in_parts = is_multi_scan(frame, &scan);
        let mut planes = planes(frame, self.stop)?;
        let mut is_missing = vec![true; planes.len()];
        loop {
            self.charge(&scan)?;
            let (source, tables) = (&mut self.source, &self.header.tables);
            LosslessScan::start(source, tables, frame, &scan)?.decode(&mut planes, self.stop)?;
            for part in &scan.components {
                is_missing[part.index] = false;
            }
            if !in_parts {
                self.finish()?;
                break;
            }
            match self.header.next(&mut self.source)? {
                HeaderEvent::Scan(next) => scan = next,
                HeaderEvent::End => break,
            }
        }
        // libjpeg refuses to output samples that were never written.
        if is_missing.contains(&true) { Err(JpegError::Damaged) } else { Ok(planes) }
    }

    /// Checks the size of the scan's MCUs and subtracts its work from `blocks_left`.
    fn charge(&mut self, scan: &Scan) -> Result<(), JpegError> {
        check_mcu(self.frame, scan)?;
        let work = work_of_scan(self.frame, scan);
        self.blocks_left = self.blocks_left.checked_sub(work).ok_or(JpegError::TooMuchWork)?;
        Ok(())
    }

    /// Checks a scan and stores the current quantisation tables of components that appear for the first time. Returns
    /// the tables of all components; those of components that have not appeared yet contain zeros.
    fn begin(&mut self, scan: &Scan) -> Result<Vec<[u16; 64]>, JpegError> {
        let frame = self.frame;
        self.charge(scan)?;
        for part in &scan.components {
            if self.quant[part.index].is_none() {
                let slot = usize::from(frame.components[part.index].quant_slot);
                let table = self.header.tables.quant.get(slot).copied().flatten();
                self.quant[part.index] = Some(table.ok_or(JpegError::Damaged)?);
            }
        }
        if frame.process.progressive {
            progressive::check(scan)?;
            self.known_bits.note(scan);
        }
        Ok(self.quant.iter().map(|table| table.unwrap_or([0; 64])).collect())
    }

    /// Decodes a scan and calls `row_done` after each row of MCUs.
    fn run(
        &mut self,
        scan: &Scan,
        grids: &mut [BlockGrid],
        row_done: impl FnMut(&mut [BlockGrid], usize),
    ) -> Result<(), JpegError> {
        let (frame, process) = (self.frame, self.frame.process);
        let (tables, known_bits) = (&self.header.tables, &mut self.known_bits);
        let source = &mut self.source;
        let target = ScanTarget { frame, scan, grids, known_bits, stop: self.stop };
        if process.arithmetic {
            let fuel = self.decisions_left + blocks_in_scan(frame, scan) * EMPTY_BLOCK_DECISIONS;
            let mut decoder = Arithmetic::start(source, tables, scan, process, fuel);
            target.run(&mut decoder, row_done)?;
            self.decisions_left = decoder.fuel();
            Ok(())
        } else if process.progressive {
            target.run(&mut Progressive::start(source, tables, scan)?, row_done)
        } else {
            target.run(&mut Sequential::start(source, tables, scan)?, row_done)
        }
    }
}

/// Returns the maximum number of binary decisions for all scans of a picture together. Each byte of the file adds
/// `PER_BYTE` decisions, far more than a byte can encode. Each block adds `PER_BLOCK` decisions, because the decoder
/// continues with zeros after the last byte, and these zeros may decode to anything. The [`EMPTY_BLOCK_DECISIONS`] that
/// each scan gets for every block that it traverses are not included.
fn decision_budget(frame: &Frame, file_bytes: usize) -> u64 {
    const PER_BLOCK: u64 = 128;
    const PER_BYTE: u64 = 32;
    let blocks = frame.samples() / 64;
    blocks * PER_BLOCK + file_bytes as u64 * PER_BYTE
}

/// Number of decisions allowed for an empty block: two to mark it as empty, and six to refine some coefficients.
const EMPTY_BLOCK_DECISIONS: u64 = 8;

/// Destination of the blocks of a scan.
struct ScanTarget<'t> {
    frame: &'t Frame,
    scan: &'t Scan,
    grids: &'t mut [BlockGrid],
    known_bits: &'t mut KnownBits,
    stop: Stop<'t>,
}

impl ScanTarget<'_> {
    fn run(
        self,
        decoder: &mut impl BlockDecoder,
        mut row_done: impl FnMut(&mut [BlockGrid], usize),
    ) -> Result<(), JpegError> {
        let Self { frame, scan, grids, known_bits, stop } = self;
        for mcu_row in 0..frame.mcu_rows {
            stop::check(stop)?;
            if decode_mcu_row(decoder, frame, scan, grids, mcu_row)? {
                known_bits.good_row(mcu_row);
            }
            row_done(grids, mcu_row);
        }
        Ok(())
    }
}

fn planes(frame: &Frame, stop: Stop<'_>) -> Result<Vec<Plane>, JpegError> {
    let plane = |component| Plane::new(frame, component, stop);
    frame.components.iter().map(plane).collect()
}

/// Transforms a row of blocks to samples (IDCT) and writes them to `plane`. `row` counts rows of blocks.
fn transform(blocks: &[frame::CoefficientBlock], quant: &[u16; 64], plane: &mut Plane, row: usize) {
    let stride = plane.stride;
    let out = &mut plane.samples[row * stride * 8..][..stride * 8];
    let blocks = &blocks[..stride / 8];
    pulp::Arch::new().dispatch(TransformRow { blocks, quant, out, stride });
}

struct TransformRow<'r> {
    blocks: &'r [frame::CoefficientBlock],
    quant: &'r [u16; 64],
    out: &'r mut [u8],
    stride: usize,
}

// `dispatch` compiles `call` once for each vector width. Only code that is inlined into `call` uses that width.
impl pulp::NullaryFnOnce for TransformRow<'_> {
    type Output = ();

    #[expect(
        clippy::inline_always,
        reason = "a separate function would not use the vector instructions"
    )]
    #[inline(always)]
    fn call(self) {
        idct::transform_row(self.blocks, self.quant, self.out, self.stride);
    }
}
