//! Decodes arithmetic-coded scans, sequential and progressive, like `jdarith.c` of libjpeg-turbo (T.81, annexes D,
//! F.2.4 and G.1.3).

use super::error::JpegError;
use super::frame::{CoefficientBlock, Process};
use super::header::{Scan, ScanComponent, Tables, ZIGZAG};
use super::probabilities::STATES;
use super::scan::{BlockDecoder, Restarts};
use super::source::ByteSource;

/// Decoder for the blocks of an arithmetic-coded scan.
#[derive(Debug)]
pub(super) struct Arithmetic<'s, 'a> {
    decoder: BinaryDecoder<'s, 'a>,
    restarts: Restarts,
    /// Adaptive states that estimate probabilities (see [`STATES`]) for DC values (`dc`) and AC values (`ac`), with one
    /// element per conditioning table.
    dc: [DcStatistics; 16],
    ac: [AcStatistics; 16],
    components: Vec<ArithmeticState>,
    pass: ArithmeticPass,
    first: usize,
    last: usize,
    low: u32,
}

type DcStatistics = [u8; 64];
type AcStatistics = [u8; 256];

/// The decoding state of one component of the scan.
#[derive(Debug)]
struct ArithmeticState {
    tables: ScanComponent,
    /// DC value of the previous block (the DC predictor).
    predicted: i32,
    /// Index in [`DcStatistics`] of the first state for the next DC difference. It depends on the previous difference
    /// (T.81, table F.4).
    context: usize,
    /// Bounds L and U, as exponents of 2, that classify a DC difference as zero, small or large.
    bounds: (u8, u8),
    /// Kx: the last coefficient, in zigzag order, whose magnitude uses the statistics for low frequencies.
    low_coefficients: u8,
}

/// Which part of the coefficients a scan decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ArithmeticPass {
    Sequential,
    DcFirst,
    DcRefine,
    AcFirst,
    AcRefine,
}

impl<'s, 'a> Arithmetic<'s, 'a> {
    /// Starts a scan. A progressive scan must have passed [`super::progressive::check`]. `fuel` is the maximum number
    /// of binary decisions. The limit is needed because the decoder continues with zeros after a marker, so the length
    /// of the file does not limit the number of decisions.
    pub(super) fn start(
        source: &'s mut ByteSource<'a>,
        tables: &Tables,
        scan: &Scan,
        process: Process,
        fuel: u64,
    ) -> Self {
        let pass = match (process.progressive, scan.first, scan.high) {
            (false, _, _) => ArithmeticPass::Sequential,
            (true, 0, 0) => ArithmeticPass::DcFirst,
            (true, 0, _) => ArithmeticPass::DcRefine,
            (true, _, 0) => ArithmeticPass::AcFirst,
            (true, _, _) => ArithmeticPass::AcRefine,
        };
        let coder = |&component: &ScanComponent| ArithmeticState {
            tables: component,
            predicted: 0,
            context: 0,
            bounds: tables.arithmetic_dc[component.dc_table],
            low_coefficients: tables.arithmetic_ac[component.ac_table],
        };
        Self {
            decoder: BinaryDecoder::new(source, fuel),
            restarts: Restarts::new(tables),
            dc: [[0; 64]; 16],
            ac: [[0; 256]; 16],
            components: scan.components.iter().map(coder).collect(),
            pass,
            first: usize::from(scan.first),
            last: usize::from(scan.last),
            // The parameters of a sequential scan are ignored, whatever the file contains.
            low: if process.progressive { u32::from(scan.low) } else { 0 },
        }
    }

    /// Returns the number of binary decisions that may still be decoded.
    pub(super) fn fuel(&self) -> u64 {
        self.decoder.fuel
    }

    /// Decodes the difference between a block's DC value and that of the previous block, and adds it to the component's
    /// predictor. Returns false if the data is damaged.
    fn dc_value(&mut self, component: usize) -> Result<bool, JpegError> {
        let coder = &mut self.components[component];
        let statistics = &mut self.dc[coder.tables.dc_table];
        let decoder = &mut self.decoder;
        if !decoder.decide(&mut statistics[coder.context])? {
            coder.context = 0;
            return Ok(true);
        }
        let negative = decoder.decide(&mut statistics[coder.context + 1])?;
        let mut at = coder.context + 2 + usize::from(negative);
        let mut magnitude = i32::from(decoder.decide(&mut statistics[at])?);
        if magnitude != 0 {
            at = 20;
            while decoder.decide(&mut statistics[at])? {
                magnitude <<= 1;
                if magnitude == 0x8000 {
                    decoder.give_up();
                    return Ok(false);
                }
                at += 1;
            }
        }
        let (small, large) = coder.bounds;
        let sign = usize::from(negative) * 4;
        coder.context = if magnitude < (1 << small) >> 1 {
            0
        } else if magnitude > (1 << large) >> 1 {
            12 + sign
        } else {
            4 + sign
        };
        let value = decoder.magnitude_bits(&mut statistics[at + 14], magnitude)? + 1;
        let difference = if negative { -value } else { value };
        coder.predicted = (coder.predicted + difference) & 0xffff;
        Ok(true)
    }

    /// Decodes the scan's AC values into `block`, shifted left by `low` bits. Returns false if the data is damaged.
    fn ac_values(
        &mut self,
        component: usize,
        block: &mut CoefficientBlock,
    ) -> Result<bool, JpegError> {
        let (first, last) = match self.pass {
            ArithmeticPass::Sequential => (1, 63),
            ArithmeticPass::DcFirst
            | ArithmeticPass::DcRefine
            | ArithmeticPass::AcFirst
            | ArithmeticPass::AcRefine => (self.first, self.last),
        };
        let coder = &self.components[component];
        let statistics = &mut self.ac[coder.tables.ac_table];
        let decoder = &mut self.decoder;
        let mut k = first;
        while k <= last {
            let mut at = 3 * (k - 1);
            if decoder.decide(&mut statistics[at])? {
                break;
            }
            while !decoder.decide(&mut statistics[at + 1])? {
                at += 3;
                k += 1;
                if k > last {
                    decoder.give_up();
                    return Ok(false);
                }
            }
            let negative = decoder.decide_evenly()?;
            at += 2;
            let mut magnitude = i32::from(decoder.decide(&mut statistics[at])?);
            if magnitude != 0 && decoder.decide(&mut statistics[at])? {
                magnitude <<= 1;
                at = if k <= usize::from(coder.low_coefficients) { 189 } else { 217 };
                while decoder.decide(&mut statistics[at])? {
                    magnitude <<= 1;
                    if magnitude == 0x8000 {
                        decoder.give_up();
                        return Ok(false);
                    }
                    at += 1;
                }
            }
            let value = decoder.magnitude_bits(&mut statistics[at + 14], magnitude)? + 1;
            let value = if negative { -value } else { value };
            block[usize::from(ZIGZAG[k])] = (value << self.low) as i16;
            k += 1;
        }
        Ok(true)
    }

    /// Decodes the next lower bit of each AC coefficient from `first` to `last`. Returns false if the data is damaged.
    fn refine(&mut self, block: &mut CoefficientBlock) -> Result<bool, JpegError> {
        let bit = 1_i16 << self.low;
        let statistics = &mut self.ac[self.components[0].tables.ac_table];
        let decoder = &mut self.decoder;
        let is_set = |&k: &usize| block[usize::from(ZIGZAG[k])] != 0;
        let end_before = (1..=self.last).rev().find(is_set).unwrap_or(0);
        let mut k = self.first;
        while k <= self.last {
            let mut at = 3 * (k - 1);
            if k > end_before && decoder.decide(&mut statistics[at])? {
                break;
            }
            loop {
                let coefficient = &mut block[usize::from(ZIGZAG[k])];
                if *coefficient != 0 {
                    if decoder.decide(&mut statistics[at + 2])? {
                        let away_from_zero = if *coefficient < 0 { -bit } else { bit };
                        *coefficient = coefficient.wrapping_add(away_from_zero);
                    }
                    break;
                }
                if decoder.decide(&mut statistics[at + 1])? {
                    *coefficient = if decoder.decide_evenly()? { -bit } else { bit };
                    break;
                }
                at += 3;
                k += 1;
                if k > self.last {
                    decoder.give_up();
                    return Ok(false);
                }
            }
            k += 1;
        }
        Ok(true)
    }
}

impl BlockDecoder for Arithmetic<'_, '_> {
    /// Always false, because a marker does not mean that data is missing: encoders omit zeros at the end.
    fn is_exhausted(&self) -> bool {
        false
    }

    fn begin_mcu(&mut self) -> Result<bool, JpegError> {
        if let Some(due) = self.restarts.next() {
            self.decoder.restart(due)?;
            for coder in &mut self.components {
                if matches!(self.pass, ArithmeticPass::Sequential | ArithmeticPass::DcFirst) {
                    self.dc[coder.tables.dc_table] = [0; 64];
                    (coder.predicted, coder.context) = (0, 0);
                }
                if matches!(
                    self.pass,
                    ArithmeticPass::Sequential | ArithmeticPass::AcFirst | ArithmeticPass::AcRefine
                ) {
                    self.ac[coder.tables.ac_table] = [0; 256];
                }
            }
        }
        Ok(self.pass == ArithmeticPass::DcRefine || !self.decoder.gave_up())
    }

    fn block(&mut self, component: usize, block: &mut CoefficientBlock) -> Result<bool, JpegError> {
        match self.pass {
            ArithmeticPass::Sequential => {
                if !self.dc_value(component)? {
                    return Ok(false);
                }
                block[0] = self.components[component].predicted as i16;
                self.ac_values(component, block)
            }
            ArithmeticPass::DcFirst => {
                if !self.dc_value(component)? {
                    return Ok(false);
                }
                block[0] = (self.components[component].predicted << self.low) as i16;
                Ok(true)
            }
            ArithmeticPass::DcRefine => {
                if self.decoder.decide_evenly()? {
                    block[0] |= 1 << self.low;
                }
                Ok(true)
            }
            ArithmeticPass::AcFirst => self.ac_values(component, block),
            ArithmeticPass::AcRefine => self.refine(block),
        }
    }
}

/// Binary arithmetic decoder (T.81, annex D.2).
#[derive(Debug)]
struct BinaryDecoder<'s, 'a> {
    source: &'s mut ByteSource<'a>,
    /// Base of the coding interval, with the bits that have been read ahead (C register).
    code: i64,
    /// Size of the coding interval, normalised to 0x8000..=0x10000 (A register).
    size: i64,
    /// Number of bits that may be shifted out before the next byte is read; [`AT_START`] before the first byte,
    /// [`GAVE_UP`] after damaged data.
    shifts_left: i32,
    /// Number of binary decisions that may still be decoded.
    fuel: u64,
}

const GAVE_UP: i32 = -1;
/// Value of `shifts_left` that makes the decoder read two bytes first.
const AT_START: i32 = -16;

impl<'s, 'a> BinaryDecoder<'s, 'a> {
    fn new(source: &'s mut ByteSource<'a>, fuel: u64) -> Self {
        Self { source, code: 0, size: 0, shifts_left: AT_START, fuel }
    }

    fn restart(&mut self, due: u8) -> Result<(), JpegError> {
        self.source.restart(due)?;
        (self.code, self.size, self.shifts_left) = (0, 0, AT_START);
        Ok(())
    }

    /// Records that the data is damaged. From then on, blocks stay unchanged until the next restart.
    fn give_up(&mut self) {
        self.shifts_left = GAVE_UP;
    }

    fn gave_up(&self) -> bool {
        self.shifts_left == GAVE_UP
    }

    /// Decodes one binary decision and updates `state`, which contains an index in [`STATES`] and, in its top bit, the
    /// more probable symbol.
    fn decide(&mut self, state: &mut u8) -> Result<bool, JpegError> {
        self.fuel = self.fuel.checked_sub(1).ok_or(JpegError::TooMuchWork)?;
        self.renormalise()?;
        let more_probable = *state & 0x80;
        let (estimate, after_less, after_more, switch) = STATES[usize::from(*state & 0x7f)];
        let estimate = i64::from(estimate);
        let less = (more_probable ^ (switch << 7)) | after_less;
        self.size -= estimate;
        let bound = self.size << self.shifts_left;
        let smaller = self.size < estimate;
        let is_less_probable = if self.code >= bound {
            self.code -= bound;
            self.size = estimate;
            !smaller
        } else if self.size < 0x8000 {
            smaller
        } else {
            return Ok(more_probable != 0);
        };
        *state = if is_less_probable { less } else { more_probable | after_more };
        Ok((more_probable != 0) != is_less_probable)
    }

    /// Decodes one binary decision with a fixed probability of one half.
    fn decide_evenly(&mut self) -> Result<bool, JpegError> {
        self.decide(&mut 113)
    }

    /// Decodes the bits of a magnitude below its highest bit (T.81, figure F.24). `magnitude` contains only the highest
    /// bit. Returns the complete magnitude.
    fn magnitude_bits(&mut self, state: &mut u8, magnitude: i32) -> Result<i32, JpegError> {
        let (mut value, mut bit) = (magnitude, magnitude >> 1);
        while bit > 0 {
            if self.decide(state)? {
                value |= bit;
            }
            bit >>= 1;
        }
        Ok(value)
    }

    fn renormalise(&mut self) -> Result<(), JpegError> {
        while self.size < 0x8000 {
            self.shifts_left -= 1;
            if self.shifts_left < 0 {
                // After a marker, the data continues with zeros.
                let byte = self.source.data_byte()?.unwrap_or(0);
                self.code = self.code << 8 | i64::from(byte);
                self.shifts_left += 8;
                if self.shifts_left < 0 {
                    self.shifts_left += 1;
                    if self.shifts_left == 0 {
                        self.size = 0x8000;
                    }
                }
            }
            self.size <<= 1;
        }
        Ok(())
    }
}
