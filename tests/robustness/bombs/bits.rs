//! Bit streams: what writes the insides of compressed formats by hand.

/// Bits, the lowest of each byte first (DEFLATE, lossless WebP).
#[derive(Default)]
pub(super) struct LowFirst {
    bytes: Vec<u8>,
    used: u32,
}

impl LowFirst {
    /// Appends the lowest `count` bits of `value`.
    pub(super) fn put(&mut self, value: u32, count: u32) {
        for bit in 0..count {
            if self.used == 0 {
                self.bytes.push(0);
            }
            let last = self.bytes.last_mut().expect("a byte was pushed");
            *last |= ((value >> bit & 1) as u8) << self.used;
            self.used = (self.used + 1) % 8;
        }
    }

    /// Appends a Huffman code, whose highest bit comes first.
    pub(super) fn put_code(&mut self, code: u32, count: u32) {
        self.put(code.reverse_bits() >> (32 - count), count);
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// `count` zeros as zlib: fixed Huffman codes, each 13 bits one match of 258 bytes.
pub(super) fn zlib_zeros(count: u64) -> Vec<u8> {
    let mut bits = LowFirst::default();
    bits.put(0b1, 1);
    bits.put(0b01, 2);
    let matches = count.saturating_sub(1) / 258;
    // The literal 0, and what is left over, one by one.
    for _ in 0..count - matches * 258 {
        bits.put_code(0b0011_0000, 8);
    }
    let mut left = matches;
    while bits.used != 0 && left > 0 {
        put_match(&mut bits);
        left -= 1;
    }
    // Eight matches fill 13 bytes, so from here on most of it is a repetition.
    let mut eight = LowFirst::default();
    (0..8).for_each(|_| put_match(&mut eight));
    bits.bytes.extend(eight.bytes.repeat((left / 8) as usize));
    (0..left % 8).for_each(|_| put_match(&mut bits));
    bits.put_code(0, 7);
    let sum = (1, (count % 65521) as u32);
    [&[0x78, 0x01][..], &bits.finish(), &(sum.1 << 16 | sum.0).to_be_bytes()].concat()
}

/// Length 258 (code 285), distance 1.
fn put_match(bits: &mut LowFirst) {
    bits.put_code(0b1100_0101, 8);
    bits.put_code(0, 5);
}
