//! Progressive Huffman coding: `jdphuff.c` of libjpeg-turbo (T.81, annex G.1.2).

use super::bits::BitReader;
use super::error::JpegError;
use super::frame::CoefficientBlock;
use super::header::{Scan, ScanComponent, Tables, ZIGZAG};
use super::huffman::{HuffmanTable, TableClass, extend};
use super::scan::{BlockDecoder, Restarts};
use super::source::ByteSource;

/// Decoder for the blocks of a progressive scan.
#[derive(Debug)]
pub(super) struct Progressive<'s, 'a> {
    bits: BitReader<'s, 'a>,
    restarts: Restarts,
    pass: ProgressivePass,
    first: usize,
    last: usize,
    low: u32,
}

/// Which part of the coefficients a scan decodes (spectral selection and successive approximation).
#[derive(Debug)]
enum ProgressivePass {
    /// The DC values without their lowest bits, with one coder for each component.
    DcFirst(Vec<DcCoder>),
    /// The next lower bit of each DC value.
    DcRefine,
    /// The AC values of one component in a band (the range of coefficients that the scan contains), without their
    /// lowest bits.
    AcFirst { table: HuffmanTable, end_of_band_run: u32 },
    /// The next lower bit of each AC value in a band.
    AcRefine { table: HuffmanTable, end_of_band_run: u32 },
}

#[derive(Debug)]
struct DcCoder {
    table: HuffmanTable,
    predicted: i32,
}

/// Checks the parameters of a progressive scan, with Huffman or arithmetic coding (`start_pass_phuff_decoder`).
///
/// # Errors
/// `Damaged`.
pub(super) fn check(scan: &Scan) -> Result<(), JpegError> {
    let band = match scan.first {
        0 => scan.last == 0,
        first => first <= scan.last && scan.last < 64 && scan.components.len() == 1,
    };
    let refines_next_bit = scan.high == 0 || scan.low + 1 == scan.high;
    if band && refines_next_bit && scan.low <= 13 { Ok(()) } else { Err(JpegError::Damaged) }
}

impl<'s, 'a> Progressive<'s, 'a> {
    /// Starts a scan that has passed [`check`].
    ///
    /// # Errors
    /// `Damaged` if a table is missing or invalid.
    pub(super) fn start(
        source: &'s mut ByteSource<'a>,
        tables: &Tables,
        scan: &Scan,
    ) -> Result<Self, JpegError> {
        let ac_table =
            || HuffmanTable::find(&tables.ac, scan.components[0].ac_table, TableClass::Ac);
        let pass = match (scan.first, scan.high) {
            (0, 0) => {
                let coder = |component: &ScanComponent| {
                    let table = HuffmanTable::find(&tables.dc, component.dc_table, TableClass::Dc)?;
                    Ok(DcCoder { table, predicted: 0 })
                };
                ProgressivePass::DcFirst(
                    scan.components.iter().map(coder).collect::<Result<_, JpegError>>()?,
                )
            }
            (0, _) => ProgressivePass::DcRefine,
            (_, 0) => ProgressivePass::AcFirst { table: ac_table()?, end_of_band_run: 0 },
            (_, _) => ProgressivePass::AcRefine { table: ac_table()?, end_of_band_run: 0 },
        };
        Ok(Self {
            bits: BitReader::new(source),
            restarts: Restarts::new(tables),
            pass,
            first: usize::from(scan.first),
            last: usize::from(scan.last),
            low: u32::from(scan.low),
        })
    }
}

impl BlockDecoder for Progressive<'_, '_> {
    fn is_exhausted(&self) -> bool {
        self.bits.is_exhausted()
    }

    fn begin_mcu(&mut self) -> Result<bool, JpegError> {
        if let Some(due) = self.restarts.next() {
            self.bits.restart(due)?;
            match &mut self.pass {
                ProgressivePass::DcFirst(coders) => {
                    for coder in coders {
                        coder.predicted = 0;
                    }
                }
                ProgressivePass::DcRefine => {}
                ProgressivePass::AcFirst { end_of_band_run, .. }
                | ProgressivePass::AcRefine { end_of_band_run, .. } => {
                    *end_of_band_run = 0;
                }
            }
        }
        // In the DC refinement pass, zero bits do not change a DC value, so libjpeg does not check for the end of the
        // data.
        Ok(matches!(self.pass, ProgressivePass::DcRefine) || !self.bits.is_exhausted())
    }

    fn block(&mut self, component: usize, block: &mut CoefficientBlock) -> Result<bool, JpegError> {
        let bits = &mut self.bits;
        let band = Band { first: self.first, last: self.last, low: self.low };
        match &mut self.pass {
            ProgressivePass::DcFirst(coders) => {
                let DcCoder { table, predicted } = &mut coders[component];
                bits.prepare()?;
                let size = u32::from(table.symbol(bits)?);
                if size > 0 {
                    let difference = extend(bits.take(size)?, size);
                    *predicted = predicted.checked_add(difference).ok_or(JpegError::Damaged)?;
                }
                block[0] = (*predicted << self.low) as i16;
            }
            ProgressivePass::DcRefine => {
                if bits.bit()? {
                    block[0] |= 1 << self.low;
                }
            }
            ProgressivePass::AcFirst { table, end_of_band_run } => {
                if *end_of_band_run > 0 {
                    *end_of_band_run -= 1;
                } else {
                    *end_of_band_run = ac_first(bits, table, band, block)?;
                }
            }
            ProgressivePass::AcRefine { table, end_of_band_run } => {
                *end_of_band_run = ac_refine(bits, table, band, block, *end_of_band_run)?;
            }
        }
        Ok(true)
    }
}

/// The range of coefficients in a scan, as indices in zigzag order, and the position of the lowest bit that the scan
/// contains.
#[derive(Clone, Copy)]
struct Band {
    first: usize,
    last: usize,
    low: u32,
}

/// First pass: decodes the upper bits of each coefficient in a band. Returns how many of the next blocks have no
/// coefficients in this band (the rest of the end-of-band run).
fn ac_first(
    bits: &mut BitReader<'_, '_>,
    table: &HuffmanTable,
    band: Band,
    block: &mut CoefficientBlock,
) -> Result<u32, JpegError> {
    let mut at = band.first;
    while at <= band.last {
        bits.prepare()?;
        if let Some((value, run, length)) = table.whole_coefficient(bits) {
            bits.consume(length)?;
            at += run;
            block[usize::from(ZIGZAG[at])] = value << band.low;
            at += 1;
            continue;
        }
        let symbol = table.symbol(bits)?;
        let (run, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        if size > 0 {
            at += run as usize;
            let value = extend(bits.take(size)?, size) << band.low;
            block[usize::from(ZIGZAG[at])] = value as i16;
            at += 1;
        } else if run == 15 {
            at += 16;
        } else {
            return Ok(end_of_band(bits, run)? - 1);
        }
    }
    Ok(0)
}

/// Returns the number of blocks that an end-of-band code covers, including the current one. This is 2^run plus the
/// value of the next `run` bits.
fn end_of_band(bits: &mut BitReader<'_, '_>, run: u32) -> Result<u32, JpegError> {
    let more = if run > 0 { bits.take(run)? } else { 0 };
    Ok((1 << run) + more)
}

/// Refinement pass: decodes the next lower bit of each coefficient in a band. `end_of_band_run` is the number of blocks
/// without new coefficients, including this one. Returns how many of them remain after this block.
fn ac_refine(
    bits: &mut BitReader<'_, '_>,
    table: &HuffmanTable,
    band: Band,
    block: &mut CoefficientBlock,
    mut end_of_band_run: u32,
) -> Result<u32, JpegError> {
    let bit = 1_i16 << band.low;
    let mut at = band.first;
    if end_of_band_run == 0 {
        while at <= band.last {
            bits.prepare()?;
            let symbol = table.symbol(bits)?;
            let (run, size) = (u32::from(symbol >> 4), symbol & 15);
            let mut new = 0;
            if size > 0 {
                // A new coefficient has size 1. In damaged data, libjpeg treats any other size as 1.
                new = if bits.take(1)? != 0 { bit } else { -bit };
            } else if run < 15 {
                end_of_band_run = end_of_band(bits, run)?;
                break;
            }
            at = refine_up_to_zero(bits, Band { first: at, ..band }, block, run)?;
            if new != 0 {
                block[usize::from(ZIGZAG[at])] = new;
            }
            at += 1;
        }
    }
    if end_of_band_run > 0 {
        refine_up_to_zero(bits, Band { first: at, ..band }, block, u32::MAX)?;
        end_of_band_run -= 1;
    }
    Ok(end_of_band_run)
}

/// Refines the non-zero coefficients of a band and skips the first `zeros` zero coefficients. Stops at the next zero
/// coefficient and returns its position; if there is none, returns the position after the band.
#[inline]
fn refine_up_to_zero(
    bits: &mut BitReader<'_, '_>,
    band: Band,
    block: &mut CoefficientBlock,
    mut zeros: u32,
) -> Result<usize, JpegError> {
    let bit = 1_i16 << band.low;
    for at in band.first..=band.last {
        let coefficient = &mut block[usize::from(ZIGZAG[at])];
        if *coefficient == 0 {
            if zeros == 0 {
                return Ok(at);
            }
            zeros -= 1;
        } else if bits.bit()? && *coefficient & bit == 0 {
            let away_from_zero = if *coefficient >= 0 { bit } else { -bit };
            *coefficient = coefficient.wrapping_add(away_from_zero);
        }
    }
    Ok(band.last + 1)
}
