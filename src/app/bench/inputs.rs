//! Generates the input batches of the benchmarks: the bytes are the same in every run, and no two items of a batch are
//! alike.

use crate::task::{Pixels, Preprocessing, TokenIds};

/// Number of tokens of a short sentence, including `[CLS]` and `[SEP]`.
const TEXT_TOKENS: usize = 10;

/// Pseudo-random numbers that depend only on the index of the item.
struct Noise(u64);

impl Noise {
    fn of_item(item: usize) -> Self {
        Self((item as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Returns the next number of the splitmix64 generator.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }
}

/// Generates a synthetic image: a brightness gradient with a different colour for each item, plus grain. It resembles a
/// photograph that is out of focus.
pub(super) fn picture(item: usize, size: Preprocessing) -> Pixels {
    let mut noise = Noise::of_item(item);
    let slopes: [(u64, u64); 3] = std::array::from_fn(|_| (noise.next() % 128, noise.next() % 128));
    let (width, height) = (u64::from(size.width), u64::from(size.height));
    let mut bytes = Vec::with_capacity((width * height * 3) as usize);
    for y in 0..height {
        for x in 0..width {
            let grain = noise.next();
            for (channel, (across, down)) in slopes.into_iter().enumerate() {
                let light = x * across / width + y * down / height;
                let grain = grain >> (8 * channel) & 31;
                bytes.push((light + grain).min(255) as u8);
            }
        }
    }
    Pixels::new(size.width, size.height, bytes)
}

/// Generates a short text of at most `most` tokens, with random ids below `vocabulary`. The choice of tokens does not
/// change the amount of computation.
pub(super) fn text(item: usize, vocabulary: usize, most: usize) -> TokenIds {
    let mut noise = Noise::of_item(item);
    let ids = (0..TEXT_TOKENS.min(most)).map(|_| (noise.next() % vocabulary as u64) as u32);
    TokenIds::new(ids.collect::<Vec<u32>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_differ_from_each_other_and_are_the_same_every_time() {
        let size = Preprocessing::bicubic(32, 16);
        assert_eq!(picture(3, size), picture(3, size));
        assert_ne!(picture(3, size), picture(4, size));
        assert_eq!(text(3, 100, 512), text(3, 100, 512));
        assert_ne!(text(3, 100, 512), text(4, 100, 512));
        assert!(text(0, 7, 4).as_slice().iter().all(|&id| id < 7));
        assert_eq!(text(0, 7, 4).len(), 4);
    }
}
