//! Computes, before a lossless `WebP` is decoded, how much memory its Huffman codes need. The decoder has no memory
//! limit, and a file of 700 KB can declare 65,536 groups of five Huffman codes (prefix code groups), whose tables take
//! 3 GB whatever the size of the picture.
//!
//! Parses the bitstream (RFC 9649, section 3) up to the codes of the picture itself. Skips the smaller images before
//! these codes, but notes the highest group number in the entropy image, because it determines the number of groups.
//! Table sizes are those of `image-webp` (`HuffmanTree::build_implicit`), the decoder that reads the file afterwards.

use super::parts::{Lossless, parts};

/// Error: the bitstream is invalid, so the decoder would reject it as well.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Number of symbols in the alphabet of each of the five codes in a group: green and lengths, red, blue, alpha,
/// distances.
const ALPHABETS: [usize; 5] = [256 + 24, 256, 256, 256, 40];
/// The order in which the lengths of the code length code are stored.
const LENGTH_ORDER: [usize; 19] =
    [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
/// Maximum length in bits of a code that the decoder looks up directly in a table. Longer codes continue in a tree
/// after the table.
const TABLE_BITS: usize = 10;
const NODE_BYTES: u64 = 16;
/// Size in bytes of a group without the tables of its codes.
const GROUP_BYTES: u64 = 5 * 64;

/// First byte of a VP8L bitstream.
const SIGNATURE: u32 = 0x2f;

/// Returns the size in bytes of the decoding tables for the picture's Huffman codes; 0 if the file has no lossless
/// bitstream. Stops counting once the total exceeds `most`. `canvas` is the size in the file's header, already checked
/// against the limits.
///
/// Takes at most one step for each bit of the bitstream, plus a few for each symbol of a code's alphabet.
///
/// # Errors
/// [`Malformed`] if the bitstream is truncated or inconsistent, or if its size differs from that of the frame or
/// exceeds the canvas.
pub(super) fn code_bytes(file: &[u8], canvas: (u32, u32), most: u64) -> Result<u64, Malformed> {
    let Some(Lossless { bytes, sides, is_alpha }) = parts(file, canvas).lossless else {
        return Ok(0);
    };
    if sides.0 > canvas.0 || sides.1 > canvas.1 {
        return Err(Malformed);
    }
    let mut bits = Bits { bytes, at: 0 };
    let head = bits.take(8)?;
    if !is_alpha {
        let own_sides = (bits.take(14)? + 1, bits.take(14)? + 1);
        // These four bits are the alpha hint and the version.
        if head != SIGNATURE || own_sides != sides || bits.take(4)? >> 1 != 0 {
            return Err(Malformed);
        }
    }
    picture_codes(&mut bits, sides, most)
}

fn picture_codes(
    bits: &mut Bits<'_>,
    (mut width, height): (u32, u32),
    most: u64,
) -> Result<u64, Malformed> {
    let blocks = |side: u32, bits: u32| side.div_ceil(1 << bits);
    let mut seen = [false; 4];
    while bits.take(1)? == 1 {
        let kind = bits.take(2)?;
        // As in the decoder, each transform may occur at most once. Otherwise images that take no bits could follow
        // each other endlessly.
        if std::mem::replace(&mut seen[kind as usize], true) {
            return Err(Malformed);
        }
        match kind {
            // The predictor and colour transforms have an image with one pixel for each block.
            0 | 1 => {
                let size = bits.take(3)? + 2;
                skip_image(bits, (blocks(width, size), blocks(height, size)))?;
            }
            2 => {}
            _ => {
                let colours = bits.take(8)? + 1;
                skip_image(bits, (colours, 1))?;
                let packed = match colours {
                    0..=2 => 3,
                    3..=4 => 2,
                    5..=16 => 1,
                    _ => 0,
                };
                width = blocks(width, packed);
            }
        }
    }
    let cache = cache_size(bits)?;
    let mut groups = 1;
    if bits.take(1)? == 1 {
        let size = bits.take(3)? + 2;
        groups = u64::from(skip_image(bits, (blocks(width, size), blocks(height, size)))?) + 1;
    }
    let mut bytes = groups * GROUP_BYTES;
    for _ in 0..groups {
        for (index, alphabet) in ALPHABETS.into_iter().enumerate() {
            let symbols = alphabet + if index == 0 { cache } else { 0 };
            bytes += PrefixCode::read(bits, symbols)?.table_bytes;
        }
        if bytes > most {
            break;
        }
    }
    Ok(bytes)
}

/// Skips an image that precedes the picture's codes. The red and green values of a pixel form a 16-bit number, which in
/// the entropy image is a group number. Returns the largest of these numbers. Back-references only repeat earlier
/// literals, so it is enough to examine the literals.
fn skip_image(bits: &mut Bits<'_>, (width, height): (u32, u32)) -> Result<u16, Malformed> {
    let cache = cache_size(bits)?;
    let mut codes = Vec::with_capacity(ALPHABETS.len());
    for (index, alphabet) in ALPHABETS.into_iter().enumerate() {
        codes.push(PrefixCode::read(bits, alphabet + if index == 0 { cache } else { 0 })?);
    }
    let (mut left, mut highest) = (u64::from(width) * u64::from(height), 0);
    while left > 0 {
        let start = bits.at;
        let green = codes[0].symbol(bits)?;
        let pixels = match green {
            0..256 => {
                let red = codes[1].symbol(bits)?;
                codes[2].symbol(bits)?;
                codes[3].symbol(bits)?;
                highest = highest.max(red << 8 | green);
                1
            }
            256..280 => {
                let length = prefixed(bits, green - 256)?;
                let distance = codes[4].symbol(bits)?;
                prefixed(bits, distance)?;
                u64::from(length)
            }
            _ => 1,
        };
        if bits.at == start {
            // A symbol that takes no bits repeats until the image is full. It must not be read pixel by pixel, since a
            // few bytes can declare billions of pixels.
            return if left % pixels == 0 { Ok(highest) } else { Err(Malformed) };
        }
        left = left.checked_sub(pixels).ok_or(Malformed)?;
    }
    Ok(highest)
}

/// Reads the number of entries in the colour cache, which extend the alphabet of a group's first code. Returns 0 if
/// there is no cache.
fn cache_size(bits: &mut Bits<'_>) -> Result<usize, Malformed> {
    if bits.take(1)? == 0 {
        return Ok(0);
    }
    match bits.take(4)? {
        size @ 1..=11 => Ok(1 << size),
        _ => Err(Malformed),
    }
}

/// Reads a length or distance whose prefix code is `prefix`. The prefix gives the number of extra bits to read.
fn prefixed(bits: &mut Bits<'_>, prefix: u16) -> Result<u32, Malformed> {
    let prefix = u32::from(prefix);
    if prefix < 4 {
        return Ok(prefix + 1);
    }
    let extra = (prefix - 2) >> 1;
    Ok(((2 + (prefix & 1)) << extra) + bits.take(extra)? + 1)
}

/// A canonical Huffman code: the number of symbols of each code length, and the symbols in code order.
struct PrefixCode {
    counts: [u16; 16],
    symbols: Vec<u16>,
    table_bytes: u64,
}

impl PrefixCode {
    fn read(bits: &mut Bits<'_>, alphabet: usize) -> Result<Self, Malformed> {
        if bits.take(1)? == 1 {
            return Self::read_simple(bits, alphabet);
        }
        let mut lengths = [0; LENGTH_ORDER.len()];
        for &place in &LENGTH_ORDER[..4 + bits.take(4)? as usize] {
            lengths[place] = bits.take(3)? as u8;
        }
        let of_lengths = Self::of(&lengths)?;
        let mut most = alphabet;
        if bits.take(1)? == 1 {
            let width = 2 + 2 * bits.take(3)?;
            most = 2 + bits.take(width)? as usize;
            if most > alphabet {
                return Err(Malformed);
            }
        }
        let mut lengths = vec![0; alphabet];
        let (mut symbol, mut previous) = (0, 8);
        while symbol < alphabet && most > 0 {
            most -= 1;
            let (value, repeat) = match of_lengths.symbol(bits)? {
                length @ 0..16 => (length as u8, 1),
                16 => (previous, 3 + bits.take(2)?),
                17 => (0, 3 + bits.take(3)?),
                _ => (0, 11 + bits.take(7)?),
            };
            let end = symbol + repeat as usize;
            lengths.get_mut(symbol..end).ok_or(Malformed)?.fill(value);
            if value != 0 {
                previous = value;
            }
            symbol = end;
        }
        Self::of(&lengths)
    }

    /// Reads a simple code: one or two symbols, stored directly.
    fn read_simple(bits: &mut Bits<'_>, alphabet: usize) -> Result<Self, Malformed> {
        let two = bits.take(1)? == 1;
        let width = 1 + 7 * bits.take(1)?;
        let mut symbols = vec![bits.take(width)? as u16];
        if two {
            symbols.push(bits.take(8)? as u16);
        }
        if symbols.iter().any(|&symbol| usize::from(symbol) >= alphabet) {
            return Err(Malformed);
        }
        let mut counts = [0; 16];
        counts[1] = symbols.len() as u16;
        let table_bytes = if two { 3 * NODE_BYTES + 2 * 4 } else { 0 };
        Ok(Self { counts, symbols, table_bytes })
    }

    /// Builds the code from these code lengths; a length of 0 marks an unused symbol.
    fn of(lengths: &[u8]) -> Result<Self, Malformed> {
        let mut counts = [0_u16; 16];
        for &length in lengths {
            counts[usize::from(length)] += u16::from(length > 0);
        }
        let longest = counts.iter().rposition(|&count| count > 0).ok_or(Malformed)?;
        let mut symbols = Vec::with_capacity(counts.iter().map(|&count| usize::from(count)).sum());
        let mut starts = [0; 17];
        for length in 1..16 {
            starts[length + 1] = starts[length] + usize::from(counts[length]);
        }
        symbols.resize(starts[16], 0);
        for (symbol, &length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
            symbols[starts[usize::from(length)]] = symbol as u16;
            starts[usize::from(length)] += 1;
        }
        if symbols.len() == 1 {
            return Ok(Self { counts, symbols, table_bytes: 0 });
        }
        let filled: u32 = (1..16).map(|length| u32::from(counts[length]) << (15 - length)).sum();
        if filled != 1 << 15 {
            return Err(Malformed);
        }
        let beyond: u64 = counts[TABLE_BITS + 1..].iter().map(|&count| u64::from(count)).sum();
        let table_bytes = (4 << longest.min(TABLE_BITS)) + beyond * 2 * NODE_BYTES;
        Ok(Self { counts, symbols, table_bytes })
    }

    /// Reads the next symbol. A code with a single symbol takes no bits.
    fn symbol(&self, bits: &mut Bits<'_>) -> Result<u16, Malformed> {
        if let [only] = self.symbols[..] {
            return Ok(only);
        }
        let (mut code, mut first, mut place) = (0, 0, 0);
        for &count in &self.counts[1..] {
            let count = u32::from(count);
            code = code << 1 | bits.take(1)?;
            if code - first < count {
                return Ok(self.symbols[(place + code - first) as usize]);
            }
            place += count;
            first = (first + count) << 1;
        }
        Err(Malformed)
    }
}

/// Bit reader, least significant bit of each byte first.
struct Bits<'a> {
    bytes: &'a [u8],
    /// Position of the next bit.
    at: usize,
}

impl Bits<'_> {
    /// Reads the next `count` bits, at most 24.
    fn take(&mut self, count: u32) -> Result<u32, Malformed> {
        let end = self.at + count as usize;
        if end > self.bytes.len() * 8 {
            return Err(Malformed);
        }
        let mut word = [0; 4];
        let rest = &self.bytes[(self.at / 8).min(self.bytes.len())..];
        let there = rest.len().min(4);
        word[..there].copy_from_slice(&rest[..there]);
        let value = u32::from_le_bytes(word) >> (self.at % 8) & ((1 << count) - 1);
        self.at = end;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a lossless WebP file of a 40 x 30 gradient.
    fn encoded() -> Vec<u8> {
        let pixels: Vec<u8> = (0..1200_u32).flat_map(|i| [i as u8, (i >> 4) as u8, 7]).collect();
        let mut file = Vec::new();
        image::codecs::webp::WebPEncoder::new_lossless(&mut file)
            .encode(&pixels, 40, 30, image::ExtendedColorType::Rgb8)
            .unwrap();
        file
    }

    #[test]
    fn the_tables_of_an_ordinary_picture_are_small() {
        let bytes = code_bytes(&encoded(), (40, 30), u64::MAX).unwrap();
        assert!((GROUP_BYTES + 1..64 << 10).contains(&bytes), "{bytes}");
    }

    #[test]
    fn codes_that_break_off_are_malformed() {
        let file = encoded();
        assert_eq!(code_bytes(&file[..40], (40, 30), u64::MAX), Err(Malformed));
    }

    #[test]
    fn lossy_pictures_have_no_such_tables() {
        assert_eq!(code_bytes(b"RIFF\x12\0\0\0WEBPVP8 \x02\0\0\0xx", (1, 1), 0), Ok(0));
    }

    /// A bit writer in the order of the format, least significant bit first.
    #[derive(Default)]
    struct Writer(Vec<bool>);

    impl Writer {
        fn put(&mut self, value: u32, count: u32) -> &mut Self {
            self.0.extend((0..count).map(|bit| value.unbounded_shr(bit) & 1 == 1));
            self
        }

        /// Writes the five codes of an image, with one symbol each. Green has a normal code rather than a simple one,
        /// so that its symbol may exceed 255.
        fn image_of(&mut self, green: u32) -> &mut Self {
            // No colour cache; then five lengths for the code length code, in which the symbols 0 and 1 take one bit
            // each.
            self.put(0, 1).put(0, 1).put(1, 4).put(0, 6).put(1, 3).put(1, 3);
            self.put(0, 3);
            // One code length for each symbol up to `green`, but at least two: 1 for `green`, 0 for the others.
            let lengths = (green + 1).max(2);
            self.put(1, 1).put(4, 3).put(lengths - 2, 10);
            self.put(0, green).put(1, 1).put(0, lengths - green - 1);
            for _ in 0..4 {
                self.put(0b101, 3).put(0, 8);
            }
            self
        }

        fn stream(&self, sides: (u32, u32)) -> Vec<u8> {
            let mut bits = Self::default();
            bits.put(SIGNATURE, 8).put(sides.0 - 1, 14).put(sides.1 - 1, 14).put(0, 4);
            bits.0.extend(&self.0);
            let byte = |bits: &[bool]| {
                bits.iter().enumerate().map(|(place, bit)| u8::from(*bit) << place).sum::<u8>()
            };
            bits.0.chunks(8).map(byte).collect()
        }

        /// Returns a WebP file with this bitstream as its only picture.
        fn file(&self, sides: (u32, u32)) -> Vec<u8> {
            let stream = self.stream(sides);
            let size = |bytes: usize| (bytes as u32).to_le_bytes();
            let head = [b"RIFF", &size(stream.len() + 12)[..], b"WEBPVP8L", &size(stream.len())];
            [&head.concat()[..], &stream].concat()
        }
    }

    /// Writes the header of a transform of this kind, whose image has one pixel for each 4 x 4 block of the picture.
    fn transform(writer: &mut Writer, kind: u32) -> &mut Writer {
        writer.put(1, 1).put(kind, 2).put(0, 3)
    }

    #[test]
    fn an_image_that_takes_no_bits_is_passed_over_at_once() {
        // An image of the size of the largest canvas (24 bits per side): reading it pixel by pixel would practically
        // never end.
        let sides = (1 << 24, 1 << 24);
        for (green, fits) in [(0, true), (255, true), (256, true), (257, true), (258, false)] {
            let bytes = Writer::default().image_of(green).stream((1, 1));
            let mut bits = Bits { bytes: &bytes, at: 40 };
            let highest = skip_image(&mut bits, sides);
            let literal = if green < 256 { green as u16 } else { 0 };
            // The symbol 258 copies three pixels at a time. The number of pixels is a power of two, so it is not a
            // multiple of three.
            assert_eq!(highest, if fits { Ok(literal) } else { Err(Malformed) }, "{green}");
        }
    }

    #[test]
    fn a_transform_comes_once() {
        let end = |writer: &mut Writer| {
            // No further transform and no cache; then one group of codes in which a pixel takes no bits.
            writer.put(0, 1).put(0, 2);
            for _ in 0..5 {
                writer.put(0b101, 3).put(0, 8);
            }
            code_bytes(&writer.file((64, 64)), (64, 64), u64::MAX)
        };
        let mut once = Writer::default();
        transform(transform(&mut once, 0).image_of(256), 1).image_of(0);
        once.put(1, 1).put(2, 2);
        assert_eq!(end(&mut once), Ok(GROUP_BYTES));
        for kind in [0, 1] {
            let mut twice = Writer::default();
            transform(transform(&mut twice, kind).image_of(0), kind).image_of(0);
            assert_eq!(end(&mut twice), Err(Malformed), "{kind}");
        }
        let mut twice = Writer::default();
        twice.put(1, 1).put(2, 2).put(1, 1).put(2, 2);
        assert_eq!(end(&mut twice), Err(Malformed));
    }

    #[test]
    fn sides_are_those_of_the_canvas() {
        assert!(code_bytes(&encoded(), (40, 30), u64::MAX).is_ok());
        assert_eq!(code_bytes(&encoded(), (41, 30), u64::MAX), Err(Malformed));
        assert_eq!(code_bytes(&encoded(), (39, 30), u64::MAX), Err(Malformed));
    }
}
