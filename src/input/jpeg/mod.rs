//! JPEG files, decoded to the pixels that Pillow gives, bit for bit.
//!
//! Pillow decodes with libjpeg-turbo. Its arithmetic is integers, so this folder repeats it: the same transform, the
//! same upsampling, the same colours, and the same way on where data are damaged. One reading of the file decides
//! limits and pixels: [`read_header`] and [`decode`] go through the same code. Written for libjpeg-turbo 3.2, which
//! Pillow 13 brings; `tests/fixtures/jpeg` has what Pillow made of several hundred variants.
//!
//! What is read: Huffman and arithmetic coding, sequential and progressive, lossless with Huffman codes, 8 bits a
//! sample, one, three or four components. What is not, Pillow does not read either. A crate was weighed
//! (libjpeg-turbo-rs 0.9): it differs from Pillow in one variant of eight, panics on some damaged files, and promises
//! no memory safety.
//!
//! `source` (bytes and markers), `header` (segments), `frame` (geometry), `scan` (order of blocks) with `sequential`,
//! `progressive`, `arithmetic` (coding), `coefficients`, `smoothing`, `idct`; `lossless` in place of all these;
//! `output` (upsampling, colours).

mod arithmetic;
mod bits;
mod coefficients;
mod error;
mod frame;
#[cfg(test)]
mod goldens;
mod header;
mod huffman;
mod idct;
mod lossless;
mod output;
mod probabilities;
mod progressive;
mod scan;
mod sequential;
mod smoothing;
mod source;
mod work;

pub(super) use error::JpegError;

use super::memory::{self, OutOfMemory};
use super::orientation::Metadata;
use super::stop::{self, Stop};
use arithmetic::Arithmetic;
use coefficients::BlockGrid;
use frame::{Frame, Process};
use header::{Event, Header, Scan};
use output::{Picture, Plane};
use progressive::Progressive;
use scan::{BlockDecoder, blocks_in_scan, check_mcu, decode_mcu_row, work_of_scan};
use sequential::Sequential;
use smoothing::Progress;
use source::{Segment, Source, marker};
use std::borrow::Cow;

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct JpegInfo {
    /// Width in pixels, as stored.
    pub(super) width: u32,
    /// Height in pixels, as stored.
    pub(super) height: u32,
    /// Most bytes that [`decode`] holds at one time, the picture itself included.
    pub(super) working_bytes: u64,
    /// Cost of [`decode`] in pixels, as `ImageHeader::work` has them.
    pub(super) work: u64,
}

/// Bounds on the work of one file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Most work of all scans together, in blocks that a scan without data walks over (`scan::work_of_scan`). A scan
    /// costs a file a few bytes and the decoder a walk over the picture.
    pub(super) max_blocks: u64,
}

/// A decoded picture, `[height, width, 3]`, RGB, as stored: orientation is the caller's.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) data: Vec<u8>,
}

/// Reads the file up to its first scan. Allocates no pixels.
///
/// # Errors
/// [`JpegError`].
pub(super) fn read_header(file: &[u8]) -> Result<JpegInfo, JpegError> {
    let mut source = Source::new(file);
    let (frame, scan) = Header::new().first_scan(&mut source)?;
    let (width, height) = (frame.width as u32, frame.height as u32);
    let work = work::estimate(&frame, &scan, source.rest());
    Ok(JpegInfo { width, height, working_bytes: working_bytes(&frame, &scan), work })
}

/// Planes of all components, and beside them coefficients while scans are read, then the picture. Lossless files have no
/// coefficients, and those in one scan a strip of them.
fn working_bytes(frame: &Frame, first_scan: &Scan) -> u64 {
    let planes: u64 = frame.components.iter().map(|component| Plane::bytes(frame, component)).sum();
    let decoding = if frame.process.lossless {
        lossless::row_bytes(frame)
    } else if is_in_parts(frame, first_scan) {
        coefficients::whole_bytes(frame) + smoothing::row_bytes(frame)
    } else {
        coefficients::strip_bytes(frame)
    };
    planes + decoding.max(Picture::bytes(frame))
}

/// True when coefficients of a block come in several scans, or different components do.
fn is_in_parts(frame: &Frame, first_scan: &Scan) -> bool {
    frame.process.progressive || first_scan.components.len() < frame.components.len()
}

/// EXIF and XMP data in front of the first scan, as Pillow collects them (`JpegImagePlugin.APP`): EXIF data go on in
/// further segments, of several XMP segments the last counts. Empty where the head cannot be read.
///
/// # Errors
/// [`OutOfMemory`]: pieces of EXIF data may be as long as the file together.
pub(super) fn metadata(file: &[u8]) -> Result<Metadata<'_>, OutOfMemory> {
    const EXIF: &[u8] = b"Exif\0\0";
    const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
    let mut found = Metadata::default();
    let mut source = Source::new(file);
    if source.start_of_image().is_err() {
        return Ok(found);
    }
    while let Ok(code) = source.marker() {
        source.clear_pending();
        match code {
            marker::SOS => break,
            marker::TEM | marker::RST0..=marker::EOI => continue,
            _ => {}
        }
        let Ok(data) = source.segment().and_then(Segment::rest) else { break };
        if code == marker::APP1 && data.starts_with(EXIF) {
            match &mut found.exif {
                Some(exif) => append(exif, &data[EXIF.len()..])?,
                none => *none = Some(Cow::Borrowed(data)),
            }
        } else if code == marker::APP1
            && let Some(xmp) = data.strip_prefix(XMP)
        {
            found.xmp = Some(Cow::Borrowed(xmp));
        }
    }
    Ok(found)
}

fn append(exif: &mut Cow<'_, [u8]>, piece: &[u8]) -> Result<(), OutOfMemory> {
    // The first piece alone is one segment: 64 KiB at most.
    let exif = exif.to_mut();
    let refused = OutOfMemory { bytes: (exif.len() + piece.len()) as u64 };
    exif.try_reserve(piece.len()).map_err(|_| refused)?;
    exif.extend_from_slice(piece);
    Ok(())
}

/// Decodes a file. `stop` is asked between rows.
///
/// # Errors
/// [`JpegError`].
pub(super) fn decode(file: &[u8], limits: Limits, stop: Stop<'_>) -> Result<Decoded, JpegError> {
    let mut source = Source::new(file);
    let mut header = Header::new();
    let (frame, scan) = header.first_scan(&mut source)?;
    let colours = header.colours(&frame)?;
    if frame.process == Process::SEQUENTIAL {
        huffman::fill_in_standard_tables(&mut header.tables);
    }
    let mut reader = ScanReader {
        quant: vec![None; frame.components.len()],
        progress: Progress::new(&frame),
        blocks_left: limits.max_blocks,
        decisions_left: arithmetic_fuel(&frame, file.len()),
        source,
        header,
        frame: &frame,
        stop,
    };
    let planes = if frame.process.lossless {
        reader.lossless_scans(scan)?
    } else if is_in_parts(&frame, &scan) {
        reader.many_scans(scan)?
    } else {
        reader.one_scan(&scan)?
    };
    let picture = Picture { frame: &frame, planes: &planes, colours, stop };
    let data = pulp::Arch::new().dispatch(picture)?;
    for plane in planes {
        memory::release(plane.samples);
    }
    Ok(Decoded { width: frame.width as u32, height: frame.height as u32, data })
}

/// Reads the scans of a frame.
struct ScanReader<'f, 'a> {
    source: Source<'a>,
    header: Header,
    frame: &'f Frame,
    /// The table of each component, as it was when its first scan began (`latch_quant_tables`).
    quant: Vec<Option<[u16; 64]>>,
    progress: Progress,
    blocks_left: u64,
    /// Decisions that arithmetic decoding may still take.
    decisions_left: u64,
    stop: Stop<'f>,
}

impl ScanReader<'_, '_> {
    /// All components in one scan: each row of MCUs becomes samples at once.
    fn one_scan(&mut self, scan: &Scan) -> Result<Vec<Plane>, JpegError> {
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

    /// Reads on behind the only scan, as libjpeg does up to the end marker. Pillow has all rows by then: that the file
    /// ends is no error any more, anything else that is wrong is one, as far as Pillow has read the file.
    fn finish(&mut self) -> Result<(), JpegError> {
        self.source.end_with_read();
        match self.header.next(&mut self.source) {
            Ok(Event::End) | Err(JpegError::Truncated) => Ok(()),
            Ok(Event::Scan(_)) => Err(JpegError::Damaged),
            Err(error) => Err(error),
        }
    }

    /// Coefficients are collected from all scans first.
    fn many_scans(&mut self, mut scan: Scan) -> Result<Vec<Plane>, JpegError> {
        let frame = self.frame;
        let mut planes = planes(frame, self.stop)?;
        let mut grids = coefficients::whole_picture(frame, self.stop)?;
        loop {
            self.begin(&scan)?;
            self.run(&scan, &mut grids, |_, _| {})?;
            match self.header.next(&mut self.source)? {
                Event::Scan(next) => scan = next,
                Event::End => break,
            }
        }
        let smoothing = self.progress.smoothing(&self.quant).filter(|_| frame.process.progressive);
        for (index, (grid, plane)) in grids.into_iter().zip(&mut planes).enumerate() {
            // A component that no scan names is grey, as zeros are.
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

    /// Lossless scans give the samples of their components, with no coefficients between.
    fn lossless_scans(&mut self, mut scan: Scan) -> Result<Vec<Plane>, JpegError> {
        let frame = self.frame;
        let in_parts = is_in_parts(frame, &scan);
        let mut planes = planes(frame, self.stop)?;
        let mut is_missing = vec![true; planes.len()];
        loop {
            self.charge(&scan)?;
            let tables = &self.header.tables;
            let source = &mut self.source;
            lossless::decode_scan(source, tables, frame, &scan, &mut planes, self.stop)?;
            for part in &scan.components {
                is_missing[part.index] = false;
            }
            if !in_parts {
                self.finish()?;
                break;
            }
            match self.header.next(&mut self.source)? {
                Event::Scan(next) => scan = next,
                Event::End => break,
            }
        }
        // libjpeg refuses to show samples that were never written.
        if is_missing.contains(&true) { Err(JpegError::Damaged) } else { Ok(planes) }
    }

    /// Counts the work of a scan.
    fn charge(&mut self, scan: &Scan) -> Result<(), JpegError> {
        check_mcu(self.frame, scan)?;
        let work = work_of_scan(self.frame, scan);
        self.blocks_left = self.blocks_left.checked_sub(work).ok_or(JpegError::TooMuchWork)?;
        Ok(())
    }

    /// Checks a scan and keeps the quantisation tables of components that it names first.
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
            self.progress.note(scan);
        }
        Ok(self.quant.iter().map(|table| table.unwrap_or([0; 64])).collect())
    }

    /// Decodes a scan; `row_done` sees each row of MCUs.
    fn run(
        &mut self,
        scan: &Scan,
        grids: &mut [BlockGrid],
        row_done: impl FnMut(&mut [BlockGrid], usize),
    ) -> Result<(), JpegError> {
        let (frame, process) = (self.frame, self.frame.process);
        let (tables, progress) = (&self.header.tables, &mut self.progress);
        let source = &mut self.source;
        let target = Target { frame, scan, grids, progress, stop: self.stop };
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

/// Decisions that all scans of a picture may take beside those of empty blocks: far more than a file of this length can
/// code, and some for each block, because behind the last byte a decoder goes on with zeros, which may mean anything.
fn arithmetic_fuel(frame: &Frame, file_bytes: usize) -> u64 {
    const PER_BLOCK: u64 = 128;
    const PER_BYTE: u64 = 32;
    let blocks = frame.samples() / 64;
    blocks * PER_BLOCK + file_bytes as u64 * PER_BYTE
}

/// Decisions that a block takes to say that it has nothing: two, and the refinement of some coefficients.
const EMPTY_BLOCK_DECISIONS: u64 = 8;

/// Where the blocks of a scan go.
struct Target<'t> {
    frame: &'t Frame,
    scan: &'t Scan,
    grids: &'t mut [BlockGrid],
    progress: &'t mut Progress,
    stop: Stop<'t>,
}

impl Target<'_> {
    fn run(
        self,
        decoder: &mut impl BlockDecoder,
        mut row_done: impl FnMut(&mut [BlockGrid], usize),
    ) -> Result<(), JpegError> {
        let Self { frame, scan, grids, progress, stop } = self;
        for mcu_row in 0..frame.mcu_rows {
            stop::check(stop)?;
            if decode_mcu_row(decoder, frame, scan, grids, mcu_row)? {
                progress.good_row(mcu_row);
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

/// A row of blocks to its samples.
fn transform(blocks: &[frame::Block], quant: &[u16; 64], plane: &mut Plane, row: usize) {
    let stride = plane.stride;
    let out = &mut plane.samples[row * stride * 8..][..stride * 8];
    let blocks = &blocks[..stride / 8];
    pulp::Arch::new().dispatch(TransformRow { blocks, quant, out, stride });
}

struct TransformRow<'r> {
    blocks: &'r [frame::Block],
    quant: &'r [u16; 64],
    out: &'r mut [u8],
    stride: usize,
}

// `dispatch` compiles `call` once for each vector width: what is inlined into it uses those instructions.
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
