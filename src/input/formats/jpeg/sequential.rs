//! Sequential Huffman coding: `decode_mcu` of libjpeg-turbo's `jdhuff.c` (T.81, annex F.2.2).

use super::bits::BitReader;
use super::error::JpegError;
use super::frame::CoefficientBlock;
use super::header::{Scan, ScanComponent, Tables, ZIGZAG};
use super::huffman::{HuffmanTable, TableClass, extend};
use super::scan::{BlockDecoder, Restarts};
use super::source::ByteSource;

/// Decoder for the blocks of a sequential scan.
#[derive(Debug)]
pub(super) struct Sequential<'s, 'a> {
    bits: BitReader<'s, 'a>,
    restarts: Restarts,
    components: Vec<HuffmanState>,
}

#[derive(Debug)]
struct HuffmanState {
    dc: HuffmanTable,
    ac: HuffmanTable,
    /// DC value of the previous block (the DC predictor).
    predicted: i32,
}

impl<'s, 'a> Sequential<'s, 'a> {
    /// Starts a scan: prepares its Huffman tables.
    ///
    /// # Errors
    /// `Damaged` if a table is missing or invalid.
    pub(super) fn start(
        source: &'s mut ByteSource<'a>,
        tables: &Tables,
        scan: &Scan,
    ) -> Result<Self, JpegError> {
        let coder = |component: &ScanComponent| {
            Ok(HuffmanState {
                dc: HuffmanTable::find(&tables.dc, component.dc_table, TableClass::Dc)?,
                ac: HuffmanTable::find(&tables.ac, component.ac_table, TableClass::Ac)?,
                predicted: 0,
            })
        };
        let components = scan.components.iter().map(coder).collect::<Result<_, JpegError>>()?;
        Ok(Self { bits: BitReader::new(source), restarts: Restarts::new(tables), components })
    }
}

impl BlockDecoder for Sequential<'_, '_> {
    fn is_exhausted(&self) -> bool {
        self.bits.is_exhausted()
    }

    fn begin_mcu(&mut self) -> Result<bool, JpegError> {
        if let Some(due) = self.restarts.next() {
            self.bits.restart(due)?;
            for component in &mut self.components {
                component.predicted = 0;
            }
        }
        Ok(!self.bits.is_exhausted())
    }

    fn block(&mut self, component: usize, block: &mut CoefficientBlock) -> Result<bool, JpegError> {
        let bits = &mut self.bits;
        let HuffmanState { dc, ac, predicted } = &mut self.components[component];
        bits.prepare()?;
        let size = u32::from(dc.symbol(bits)?);
        if size > 0 {
            *predicted = predicted.wrapping_add(extend(bits.take(size)?, size));
        }
        block[0] = *predicted as i16;
        let mut at = 1;
        while at < 64 {
            bits.prepare()?;
            if let Some((value, run, length)) = ac.whole_coefficient(bits) {
                bits.consume(length)?;
                at += run;
                block[usize::from(ZIGZAG[at])] = value;
                at += 1;
                continue;
            }
            let symbol = ac.symbol(bits)?;
            let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if size > 0 {
                at += run;
                // Damaged data can move `at` beyond the block. `ZIGZAG` then gives the position that libjpeg uses.
                block[usize::from(ZIGZAG[at])] = extend(bits.take(size)?, size) as i16;
                at += 1;
            } else if run == 15 {
                at += 16;
            } else {
                break;
            }
        }
        Ok(true)
    }
}
