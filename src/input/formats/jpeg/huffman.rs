//! Huffman decoding tables (`jpeg_make_d_derived_tbl` of libjpeg-turbo's `jdhuff.c`), and the standard tables, which
//! Motion JPEG files omit (`jstdhuff.c`; Recommendation T.81, annex K.3).

use super::bits::BitReader;
use super::error::JpegError;
use super::header::{HuffmanSpec, Tables};

/// Number of bits that one table lookup decodes. Longer codes are rare.
const LOOKAHEAD: u32 = 10;
const ENTRIES: usize = 1 << LOOKAHEAD;

/// A Huffman table prepared for decoding.
#[derive(Debug, Clone)]
pub(super) struct HuffmanTable {
    /// Indexed by the next [`LOOKAHEAD`] bits. An entry has the code length in its upper byte and the symbol in its
    /// lower byte. The entry is 0 if the code is longer.
    short: Box<[u16; ENTRIES]>,
    /// For AC tables, indexed by the next [`LOOKAHEAD`] bits. If a code and the value after it fit into these bits, the
    /// entry describes the whole coefficient: the value in the upper byte, four bits for the number of zeros before it,
    /// and four bits for the total length. Otherwise the entry is 0.
    whole: Box<[i16; ENTRIES]>,
    /// The largest code of each length in bits; -1 if there is none.
    max_code: [i32; 17],
    /// For each code length, the number that is added to a code to get the index of its symbol in `symbols`.
    offset: [i32; 17],
    symbols: [u8; 256],
}

/// The kind of values that a table encodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TableClass {
    /// Differences between DC values.
    Dc,
    /// Zero runs and sizes of AC values.
    Ac,
    /// Differences between samples in lossless files.
    Lossless,
}

impl TableClass {
    fn largest_symbol(self) -> u8 {
        match self {
            Self::Dc => 15,
            Self::Ac => u8::MAX,
            Self::Lossless => 16,
        }
    }
}

impl HuffmanTable {
    /// Prepares the table in `slot`, which the scan header specifies.
    ///
    /// # Errors
    /// `Damaged` if the file does not define this table, if its codes do not form a prefix code, or if a symbol is too
    /// large for `class`.
    pub(super) fn find(
        specs: &[Option<HuffmanSpec>; 4],
        slot: usize,
        class: TableClass,
    ) -> Result<Self, JpegError> {
        let spec = specs.get(slot).and_then(Option::as_ref).ok_or(JpegError::Damaged)?;
        Self::new(spec, class)
    }

    fn new(spec: &HuffmanSpec, class: TableClass) -> Result<Self, JpegError> {
        let mut table = Self {
            short: Box::new([0; ENTRIES]),
            whole: Box::new([0; ENTRIES]),
            max_code: [-1; 17],
            offset: [0; 17],
            symbols: spec.symbols,
        };
        let mut symbols = spec.symbols.iter();
        let (mut code, mut index) = (0_u32, 0_u32);
        for length in 1..=16 {
            let count = usize::from(spec.counts[length]);
            table.offset[length] = index.cast_signed() - code.cast_signed();
            for &symbol in symbols.by_ref().take(count) {
                if symbol > class.largest_symbol() {
                    return Err(JpegError::Damaged);
                }
                table.fill_short(code, length as u32, symbol)?;
                code += 1;
                index += 1;
            }
            if count > 0 {
                table.max_code[length] = code.cast_signed() - 1;
                // The code of all ones is not allowed, because longer codes would start with it.
                if code >= 1 << length {
                    return Err(JpegError::Damaged);
                }
            }
            code <<= 1;
        }
        if class == TableClass::Ac {
            table.fill_whole();
        }
        Ok(table)
    }

    fn fill_short(&mut self, code: u32, length: u32, symbol: u8) -> Result<(), JpegError> {
        if length <= LOOKAHEAD {
            let free = LOOKAHEAD - length;
            let range = (code << free) as usize..((code + 1) << free) as usize;
            let entries = self.short.get_mut(range);
            entries.ok_or(JpegError::Damaged)?.fill((length as u16) << 8 | u16::from(symbol));
        }
        Ok(())
    }

    fn fill_whole(&mut self) {
        for (bits, (whole, &short)) in self.whole.iter_mut().zip(self.short.iter()).enumerate() {
            let (length, symbol) = (u32::from(short >> 8), short & 0xff);
            let (run, size) = (symbol >> 4, u32::from(symbol & 15));
            if length == 0 || size == 0 || length + size > LOOKAHEAD {
                continue;
            }
            let raw = bits as u32 >> (LOOKAHEAD - length - size) & ((1 << size) - 1);
            let value = extend(raw, size);
            if (-128..128).contains(&value) {
                let lengths = run << 4 | (length + size) as u16;
                *whole = (value << 8) as i16 | lengths.cast_signed();
            }
        }
    }

    /// Decodes the next symbol. Call [`BitReader::prepare`] first.
    ///
    /// # Errors
    /// `Truncated`.
    #[inline]
    pub(super) fn symbol(&self, bits: &mut BitReader<'_, '_>) -> Result<u8, JpegError> {
        let [length, symbol] = self.short[bits.peek(LOOKAHEAD) as usize].to_be_bytes();
        if length == 0 {
            return self.long_symbol(bits);
        }
        bits.consume(u32::from(length))?;
        Ok(symbol)
    }

    /// Decodes a code of more than [`LOOKAHEAD`] bits. If the next bits are not a code, consumes 17 bits and returns 0,
    /// as libjpeg does.
    #[cold]
    fn long_symbol(&self, bits: &mut BitReader<'_, '_>) -> Result<u8, JpegError> {
        for length in LOOKAHEAD + 1..=16 {
            let code = bits.peek(length).cast_signed();
            if code <= self.max_code[length as usize] {
                bits.consume(length)?;
                let index = code + self.offset[length as usize];
                return Ok(usize::try_from(index)
                    .ok()
                    .map_or(0, |index| self.symbols[index & 255]));
            }
        }
        bits.consume(16)?;
        bits.consume(1)?;
        Ok(0)
    }

    /// Looks up the next coefficient in `whole`, without consuming its bits. Returns its value, the number of zeros
    /// before it, and the total length of code and value in bits; `None` if there is no entry. Call
    /// [`BitReader::prepare`] first.
    #[inline]
    pub(super) fn whole_coefficient(&self, bits: &BitReader<'_, '_>) -> Option<(i16, usize, u32)> {
        let entry = self.whole[bits.peek(LOOKAHEAD) as usize];
        let [value, rest] = entry.to_be_bytes();
        (entry != 0)
            .then(|| (i16::from(value.cast_signed()), usize::from(rest >> 4), u32::from(rest & 15)))
    }
}

/// Returns the signed value that `raw` encodes in `size` bits, 1 to 15. A negative value `v` is stored as the low bits
/// of `v - 1` (`HUFF_EXTEND`; T.81, figure F.12).
#[inline]
pub(super) fn extend(raw: u32, size: u32) -> i32 {
    let raw = raw.cast_signed();
    if raw < 1 << (size - 1) { raw + (-1 << size) + 1 } else { raw }
}

/// Puts the standard tables of annex K into the first two slots of the DC and AC tables, as `std_huff_tables` does.
/// Slots for which the file defines a table are left unchanged.
pub(super) fn fill_in_standard_tables(tables: &mut Tables) {
    let [luma, chroma, ..] = &mut tables.dc;
    luma.get_or_insert_with(|| spec(DC_LUMA_COUNTS, DC_SYMBOLS));
    chroma.get_or_insert_with(|| spec(DC_CHROMA_COUNTS, DC_SYMBOLS));
    let [luma, chroma, ..] = &mut tables.ac;
    luma.get_or_insert_with(|| spec(AC_LUMA_COUNTS, AC_LUMA_SYMBOLS));
    chroma.get_or_insert_with(|| spec(AC_CHROMA_COUNTS, AC_CHROMA_SYMBOLS));
}

fn spec(lengths: [u8; 16], list: &[u8]) -> HuffmanSpec {
    let mut counts = [0; 17];
    counts[1..].copy_from_slice(&lengths);
    let mut symbols = [0; 256];
    symbols[..list.len()].copy_from_slice(list);
    HuffmanSpec { counts, symbols }
}

const DC_LUMA_COUNTS: [u8; 16] = [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0];
const DC_CHROMA_COUNTS: [u8; 16] = [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0];
const DC_SYMBOLS: &[u8] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
const AC_LUMA_COUNTS: [u8; 16] = [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 0x7d];
const AC_CHROMA_COUNTS: [u8; 16] = [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 0x77];
#[rustfmt::skip]
const AC_LUMA_SYMBOLS: &[u8] = b"\
\x01\x02\x03\x00\x04\x11\x05\x12\x21\x31\x41\x06\x13\x51\x61\x07\x22\x71\x14\x32\x81\x91\xa1\x08\x23\x42\xb1\xc1\x15\x52\xd1\xf0\
\x24\x33\x62\x72\x82\x09\x0a\x16\x17\x18\x19\x1a\x25\x26\x27\x28\x29\x2a\x34\x35\x36\x37\x38\x39\x3a\x43\x44\x45\x46\x47\x48\x49\
\x4a\x53\x54\x55\x56\x57\x58\x59\x5a\x63\x64\x65\x66\x67\x68\x69\x6a\x73\x74\x75\x76\x77\x78\x79\x7a\x83\x84\x85\x86\x87\x88\x89\
\x8a\x92\x93\x94\x95\x96\x97\x98\x99\x9a\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xb2\xb3\xb4\xb5\xb6\xb7\xb8\xb9\xba\xc2\xc3\xc4\xc5\
\xc6\xc7\xc8\xc9\xca\xd2\xd3\xd4\xd5\xd6\xd7\xd8\xd9\xda\xe1\xe2\xe3\xe4\xe5\xe6\xe7\xe8\xe9\xea\xf1\xf2\xf3\xf4\xf5\xf6\xf7\xf8\
\xf9\xfa";
#[rustfmt::skip]
const AC_CHROMA_SYMBOLS: &[u8] = b"\
\x00\x01\x02\x03\x11\x04\x05\x21\x31\x06\x12\x41\x51\x07\x61\x71\x13\x22\x32\x81\x08\x14\x42\x91\xa1\xb1\xc1\x09\x23\x33\x52\xf0\
\x15\x62\x72\xd1\x0a\x16\x24\x34\xe1\x25\xf1\x17\x18\x19\x1a\x26\x27\x28\x29\x2a\x35\x36\x37\x38\x39\x3a\x43\x44\x45\x46\x47\x48\
\x49\x4a\x53\x54\x55\x56\x57\x58\x59\x5a\x63\x64\x65\x66\x67\x68\x69\x6a\x73\x74\x75\x76\x77\x78\x79\x7a\x82\x83\x84\x85\x86\x87\
\x88\x89\x8a\x92\x93\x94\x95\x96\x97\x98\x99\x9a\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xb2\xb3\xb4\xb5\xb6\xb7\xb8\xb9\xba\xc2\xc3\
\xc4\xc5\xc6\xc7\xc8\xc9\xca\xd2\xd3\xd4\xd5\xd6\xd7\xd8\xd9\xda\xe2\xe3\xe4\xe5\xe6\xe7\xe8\xe9\xea\xf2\xf3\xf4\xf5\xf6\xf7\xf8\
\xf9\xfa";

#[cfg(test)]
mod tests {
    use super::super::source::ByteSource;
    use super::*;

    fn table(
        class: TableClass,
        lengths: [u8; 16],
        symbols: &[u8],
    ) -> Result<HuffmanTable, JpegError> {
        HuffmanTable::new(&spec(lengths, symbols), class)
    }

    #[test]
    fn codes_of_every_length_are_read() {
        // One code of each length from 1 to 16 (0, 10, 110, and so on). The symbol of each code is its length.
        let symbols: Vec<u8> = (1..=16).collect();
        let table = table(TableClass::Ac, [1; 16], &symbols).unwrap();
        let text = b"\xef\xff\x00\xe0\xff\x00\xff\x00\xff\x00\xff\xd9";
        let mut source = ByteSource::new(text);
        let mut bits = BitReader::new(&mut source);
        let mut read = || {
            bits.prepare().unwrap();
            table.symbol(&mut bits).unwrap()
        };
        // 1110 | 1111 1111 1111 1110 | 0000 | 1111 1111 1111 1111 1 (no code: 17 bits, symbol 0).
        assert_eq!([read(), read(), read(), read(), read(), read()], [4, 16, 1, 1, 1, 1]);
        assert_eq!(read(), 0);
    }

    #[test]
    fn codes_that_do_not_fit_are_refused() {
        let mut full = [0; 16];
        full[0] = 2;
        assert!(table(TableClass::Ac, full, &[1, 2]).is_err(), "the code of all ones");
        full[0] = 3;
        assert!(table(TableClass::Ac, full, &[1, 2, 3]).is_err());
        full[0] = 1;
        assert!(table(TableClass::Dc, full, &[16]).is_err(), "a difference of 16 bits");
        assert!(table(TableClass::Ac, full, &[16]).is_ok());
        assert!(table(TableClass::Lossless, full, &[16]).is_ok());
        assert!(table(TableClass::Lossless, full, &[17]).is_err());
    }

    #[test]
    fn the_standard_tables_are_whole() {
        for (class, counts, symbols) in [
            (TableClass::Dc, DC_LUMA_COUNTS, DC_SYMBOLS),
            (TableClass::Dc, DC_CHROMA_COUNTS, DC_SYMBOLS),
            (TableClass::Ac, AC_LUMA_COUNTS, AC_LUMA_SYMBOLS),
            (TableClass::Ac, AC_CHROMA_COUNTS, AC_CHROMA_SYMBOLS),
        ] {
            assert_eq!(
                counts.iter().map(|&count| usize::from(count)).sum::<usize>(),
                symbols.len()
            );
            table(class, counts, symbols).unwrap();
        }
    }

    #[test]
    fn short_coefficients_equal_code_and_value_read_apart() {
        let table = table(TableClass::Ac, AC_LUMA_COUNTS, AC_LUMA_SYMBOLS).unwrap();
        let mut seen = 0;
        for pattern in 0..=u16::MAX {
            let bytes = pattern.to_be_bytes();
            let data = [bytes[0], bytes[1], 0, 0, 0, 0, 0, 0, 0];
            if bytes.contains(&0xff) {
                continue;
            }
            let mut source = ByteSource::new(&data);
            let mut bits = BitReader::new(&mut source);
            bits.prepare().unwrap();
            let Some((value, run, length)) = table.whole_coefficient(&bits) else { continue };
            let symbol = table.symbol(&mut bits).unwrap();
            let size = u32::from(symbol & 15);
            assert_eq!(i32::from(value), extend(bits.take(size).unwrap(), size));
            assert_eq!(run, usize::from(symbol >> 4));
            assert!(length <= LOOKAHEAD);
            seen += 1;
        }
        assert!(seen > 10_000);
    }

    #[test]
    fn values_are_extended_by_their_sign() {
        assert_eq!([extend(0, 1), extend(1, 1)], [-1, 1]);
        assert_eq!([extend(0, 3), extend(3, 3), extend(4, 3), extend(7, 3)], [-7, -4, 4, 7]);
    }
}
