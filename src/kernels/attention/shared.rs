//! One matrix that is both the keys and the values, as in the folded cross-attention of `model::ops::cpu::folded`.
//!
//! A product wants keys and values in different orders: a group of keys holds adjacent columns of one token, a group of
//! values holds adjacent tokens of one column. A shared matrix is stored once, in panels of `columns` columns:
//! `[panels of columns][tokens][groups of a panel's columns]`. In bf16 on AVX-512, a token takes one cache line of each
//! panel.
//!
//! - For a score, the lanes of the accumulator are columns, and [`Isa::store_sums`] adds them up at the end. On AVX-512
//!   in bf16, that is one reduction of four accumulators after 24 dot products into each, for a width of 768. With queries
//!   in the lanes instead, no reduction would be needed, but 12 queries would fill only 12 of 16 lanes.
//! - For the weighted sum in bf16, the vectors of two adjacent tokens are interleaved in registers, which takes two
//!   shuffles for 24 dot products. The sums are then in an order that [`Isa::interleaved_to_order`] undoes.
//!
//! The matrix unit multiplies tiles that it loads from memory, so the interleaved vectors would have to be stored first. In
//! bf16, its keys and values are therefore stored separately.

#![expect(unsafe_code, reason = "tiles, panels and vectors by pointer")]

use super::super::aligned_buffer::LINE;
use super::super::disjoint::DisjointMutPtr;
use super::super::gemm::{Bf16, Convert, DotGroups, F32, Format, STREAM_AHEAD, Shape, place};
use super::super::isa::{Isa, Kernel, Level};
use super::super::rows::Rows;
use super::formats::AttentionFormat;

/// Number of tokens whose scores are computed at a time. The matrix is padded with tokens of zeros to a multiple of
/// this.
const TOKENS: usize = 4;

/// True if a matrix that is both the keys and the values is stored once.
pub(super) fn is_stored_once(level: Level, format: Format) -> bool {
    // At the portable level, one copy was slower: attention of 8 rows in f32 took 120 ms instead of 96 ms (577 x 768
    // values, 12 layers, two cores of an AMD EPYC, 2026-12-01), perhaps because this level cannot prefetch the short
    // pieces that the scores read from every panel.
    let is_fast = level != Level::Portable;
    match format {
        Format::F32 => is_fast,
        Format::Bf16 => is_fast && !Shape::of(level).matrix_unit,
        // Keys and values are rounded differently.
        Format::Int8 => false,
    }
}

/// Returns the size of a shared matrix in groups.
pub(super) fn size(level: Level, format: Format, width: usize, tokens: usize) -> usize {
    let width = width.next_multiple_of(Shape::of(level).columns);
    tokens.next_multiple_of(TOKENS) * width / format.group()
}

/// Packs the tokens `first..last` of a shared matrix.
pub(super) struct PackShared<'a> {
    pub(super) format: Format,
    pub(super) matrix: Rows<'a>,
    pub(super) width: usize,
    /// The first token, a multiple of [`TOKENS`].
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) to: DisjointMutPtr<u32>,
}

impl Kernel for PackShared<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self.format {
            Format::Bf16 => self.pack::<I, Bf16>(isa),
            Format::F32 | Format::Int8 => self.pack::<I, F32>(isa),
        }
    }
}

impl PackShared<'_> {
    #[inline(always)]
    fn pack<I: Isa, C: Convert<I, Scaling = ()>>(self, isa: I) {
        let Self { matrix, width, first, last, to, .. } = self;
        let tokens = matrix.rows.next_multiple_of(TOKENS);
        let row = I::LANES * I::VECTORS / C::GROUP;
        let piece = row.min(LINE);
        let groups = width.next_multiple_of(I::LANES * I::VECTORS) / C::GROUP;
        let mut padded = [0.0f32; 2 * LINE];
        // The last part also writes the padding.
        let end = if last == matrix.rows { tokens } else { last };
        for token in first..end {
            for first_group in (0..groups).step_by(LINE) {
                let column = first_group * C::GROUP;
                let wide = if token < last { width.saturating_sub(column) } else { 0 };
                let wide = wide.min(LINE * C::GROUP);
                let mut line = [0u32; LINE];
                let values = if wide > 0 { matrix.part(token, column, wide) } else { &[] };
                // SAFETY: both `values`, if it is whole, and `padded` hold a line of values.
                unsafe {
                    if wide == LINE * C::GROUP {
                        C::line(isa, values.as_ptr(), line.as_mut_ptr(), ());
                    } else {
                        // The scores also sum over this padding, so it is filled with zeros.
                        padded[..wide].copy_from_slice(values);
                        padded[wide..].fill(0.0);
                        C::line(isa, padded.as_ptr(), line.as_mut_ptr(), ());
                    }
                }
                for at in (0..LINE.min(groups - first_group)).step_by(piece) {
                    let (panel, group) = ((first_group + at) / row, (first_group + at) % row);
                    let offset = (panel * tokens + token) * row + group;
                    // SAFETY: the groups lie in this token's row of the panel, which only this part writes.
                    unsafe {
                        let to = to.pointer().add(offset);
                        std::ptr::copy_nonoverlapping(line.as_ptr().add(at), to, piece);
                    }
                }
            }
        }
    }
}

/// A format in which keys and values can be one matrix.
pub(super) trait SharedFormat<I: Isa>:
    AttentionFormat<I> + DotGroups<I, Sum = I::F>
{
    /// Number of tokens with which a tile of queries is multiplied before the next tile of queries follows, a multiple of
    /// [`TOKENS`].
    const TOKEN_BLOCK: usize;
    /// Distance at which the matrix is prefetched while scores are computed, in tokens; 12 KB for a width of 768.
    const TOKENS_AHEAD: usize = TOKENS * Self::GROUP;
    /// Loads a group of tokens for all columns of a panel, in the order that [`SharedFormat::in_order`] undoes.
    ///
    /// # Safety
    /// `from` is valid for reading the rows of this many tokens.
    unsafe fn load_values(isa: I, from: *const u32) -> [I::G; 2];
    /// Returns sums that were computed with [`SharedFormat::load_values`] in the order of the columns.
    fn in_order(isa: I, sums: [I::F; 2]) -> [I::F; 2];
}

impl<I: Isa> SharedFormat<I> for F32 {
    // For a width of 768, 12 queries (36 KB) would fill the first-level cache. Six of them stay in it while they are
    // multiplied with a block, which the next six queries then read from the second level (192 KB).
    const TOKEN_BLOCK: usize = 64;
    #[inline(always)]
    unsafe fn load_values(isa: I, from: *const u32) -> [I::G; 2] {
        // SAFETY: this function's contract.
        unsafe { [isa.load_groups(from), isa.load_groups(from.add(I::LANES))] }
    }
    #[inline(always)]
    fn in_order(_: I, sums: [I::F; 2]) -> [I::F; 2] {
        sums
    }
}

impl<I: Isa> SharedFormat<I> for Bf16 {
    // For a width of 768, 12 queries (18 KB) and a block (12 KB) fit into the first-level cache together.
    const TOKEN_BLOCK: usize = 8;
    #[inline(always)]
    unsafe fn load_values(isa: I, from: *const u32) -> [I::G; 2] {
        // SAFETY: this function's contract.
        let (even, odd) = unsafe { (isa.load_groups(from), isa.load_groups(from.add(I::LANES))) };
        isa.interleave_bf16(even, odd)
    }
    #[inline(always)]
    fn in_order(isa: I, sums: [I::F; 2]) -> [I::F; 2] {
        isa.interleaved_to_order(sums)
    }
}

/// Returns the offset of a panel in a shared matrix, in groups.
#[inline(always)]
pub(super) fn panel_start<I: Isa, D: Convert<I>>(tokens: usize, panel: usize) -> usize {
    panel * tokens.next_multiple_of(TOKENS) * I::LANES * I::VECTORS / D::GROUP
}

/// The product of a strip of queries with all tokens of a shared matrix.
#[derive(Clone, Copy)]
pub(super) struct SharedScores {
    /// Number of queries.
    pub(super) rows: usize,
    /// Packed queries, `[blocks of 16 groups][rows][16]`.
    pub(super) queries: *const u32,
    pub(super) matrix: *const u32,
    /// Width of the matrix in values.
    pub(super) width: usize,
    pub(super) tokens: usize,
    /// Result, `[panels of tokens][rows][columns]`.
    pub(super) scores: *mut f32,
}

/// Computes the scores of a strip.
///
/// # Safety
/// The pointers are valid for these sizes, and `rows` is at least 1.
#[inline(always)]
pub(super) unsafe fn scores<I: Isa, D: SharedFormat<I>>(isa: I, product: SharedScores) {
    let SharedScores { rows, queries, matrix, width, tokens, scores } = product;
    const {
        assert!((I::LANES * I::VECTORS).is_multiple_of(TOKENS));
        assert!(D::TOKEN_BLOCK.is_multiple_of(TOKENS));
    }
    let columns = I::LANES * I::VECTORS;
    let vectors = width.div_ceil(D::GROUP * I::LANES);
    let panel = panel_start::<I, D>(tokens, 1);
    // The sums of 6 x 4 scores and four vectors of tokens take 28 of the 32 registers of AVX-512.
    macro_rules! highest {
        ($height:expr, $($rows:literal)*) => {
            match $height {
                $($rows.. if 2 * $rows <= I::ROWS => $rows,)*
                _ => 1,
            }
        };
    }
    macro_rules! tile {
        ($height:expr, $operands:expr, $($rows:literal)*) => {
            match $height {
                // SAFETY: this function's contract.
                $($rows if 2 * $rows <= I::ROWS => unsafe {
                    score_tile::<I, D, $rows>(isa, $operands);
                },)*
                _ => unreachable!("the height was chosen above"),
            }
        };
    }
    for block in (0..tokens).step_by(D::TOKEN_BLOCK) {
        let end = (block + D::TOKEN_BLOCK).min(tokens);
        let mut first = 0;
        while first < rows {
            let height = highest!(rows - first, 6 4 3 2 1);
            for token in (block..end).step_by(TOKENS) {
                let is_ahead = first == 0 && token + D::TOKENS_AHEAD < tokens;
                // SAFETY: row `first` starts `first` lines into each block of the queries.
                let operands = unsafe {
                    let row = (token / columns * rows + first) * columns;
                    ScoreTile {
                        queries: queries.add(first * LINE),
                        stride: rows * LINE,
                        matrix: matrix.add(token * columns / D::GROUP),
                        panel,
                        vectors,
                        scores: scores.add(row + token % columns),
                        ahead: if is_ahead { D::TOKENS_AHEAD } else { 0 },
                    }
                };
                tile!(height, operands, 6 4 3 2 1);
            }
            first += height;
        }
    }
}

/// Operands and result of [`score_tile`].
#[derive(Clone, Copy)]
struct ScoreTile {
    queries: *const u32,
    /// Number of groups from one block of 16 groups of the queries to the next.
    stride: usize,
    /// The first token in the first panel.
    matrix: *const u32,
    /// Size of a panel in groups.
    panel: usize,
    /// Number of vectors of a token.
    vectors: usize,
    scores: *mut f32,
    /// Distance of the tokens that are prefetched meanwhile; 0 if none are.
    ahead: usize,
}

#[inline(always)]
unsafe fn score_tile<I: Isa, D: SharedFormat<I>, const R: usize>(isa: I, operands: ScoreTile) {
    let ScoreTile { queries, stride, mut matrix, panel, vectors, scores, ahead } = operands;
    let columns = I::LANES * I::VECTORS;
    let row = columns / D::GROUP;
    let in_row = row / I::LANES;
    // SAFETY: the contract of `scores`.
    unsafe {
        let mut acc = [[D::zero(isa); TOKENS]; R];
        let mut vector = 0;
        while vector < vectors {
            if ahead > 0 {
                for line in (0..TOKENS * row).step_by(LINE) {
                    isa.prefetch(matrix.wrapping_add(ahead * row + line));
                }
            }
            for index in 0..in_row.min(vectors - vector) {
                let query = queries.add(place((vector + index) * I::LANES, stride));
                let token = matrix.add(index * I::LANES);
                // The smaller of both sides stays in registers.
                if R > TOKENS {
                    let mut tokens = [isa.zero_groups(); TOKENS];
                    for (t, value) in tokens.iter_mut().enumerate() {
                        *value = isa.load_groups(token.add(t * row));
                    }
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let query = isa.load_groups(query.add(r * LINE));
                        for (acc, token) in acc.iter_mut().zip(tokens) {
                            *acc = D::dot(isa, *acc, query, token);
                        }
                    }
                } else {
                    let mut row_queries = [isa.zero_groups(); R];
                    for (r, value) in row_queries.iter_mut().enumerate() {
                        *value = isa.load_groups(query.add(r * LINE));
                    }
                    for t in 0..TOKENS {
                        let token = isa.load_groups(token.add(t * row));
                        for (acc, query) in acc.iter_mut().zip(row_queries) {
                            acc[t] = D::dot(isa, acc[t], query, token);
                        }
                    }
                }
            }
            vector += in_row;
            matrix = matrix.wrapping_add(panel);
        }
        for (r, acc) in acc.into_iter().enumerate() {
            isa.store_sums(scores.add(r * columns), acc);
        }
    }
}

/// The product of a strip's probabilities with a panel of a shared matrix.
#[derive(Clone, Copy)]
pub(super) struct SharedSums {
    /// Number of queries.
    pub(super) rows: usize,
    /// Packed probabilities, `[blocks of 16 groups][rows][16]`.
    pub(super) probabilities: *const u32,
    pub(super) panel: *const u32,
    /// Number of groups of tokens.
    pub(super) groups: usize,
    /// Result, `[rows, columns]`.
    pub(super) sums: *mut u32,
}

/// Computes the weighted sums of a strip in the columns of a panel.
///
/// # Safety
/// The pointers are valid for these sizes, and `rows` is at least 1.
#[inline(always)]
pub(super) unsafe fn weighted_sums<I: Isa, D: SharedFormat<I>>(isa: I, product: SharedSums) {
    let SharedSums { rows, probabilities, sums, .. } = product;
    macro_rules! highest {
        ($height:expr, $product:expr, $stride:expr, $($rows:literal)*) => {
            match $height {
                $($rows.. if $rows <= I::ROWS => {
                    // SAFETY: this function's contract.
                    unsafe { sum_tile::<I, D, $rows>(isa, $product, $stride) };
                    $rows
                })*
                _ => unreachable!("a strip has at least one row"),
            }
        };
    }
    let mut first = 0;
    while first < rows {
        // SAFETY: row `first` starts `first` lines into each block of the probabilities, and `first` rows into the sums.
        let part = unsafe {
            let sums = sums.add(first * I::LANES * I::VECTORS);
            SharedSums { probabilities: probabilities.add(first * LINE), sums, ..product }
        };
        first += highest!(rows - first, part, rows * LINE, 12 8 6 4 3 2 1);
    }
}

#[inline(always)]
unsafe fn sum_tile<I: Isa, D: SharedFormat<I>, const R: usize>(
    isa: I,
    product: SharedSums,
    stride: usize,
) {
    let SharedSums { probabilities: mut a, panel: mut b, groups, sums, .. } = product;
    let columns = I::LANES * I::VECTORS;
    // SAFETY: the contract of `weighted_sums`.
    unsafe {
        let mut acc = [[D::zero(isa); 2]; R];
        let mut left = groups;
        while left > 0 {
            let block = left.min(LINE);
            for line in 0..columns {
                isa.prefetch(b.wrapping_add(STREAM_AHEAD + line * LINE));
            }
            for j in 0..block {
                let [b0, b1] = D::load_values(isa, b.add(j * columns));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let a = isa.splat_group(*a.add(j + r * LINE));
                    *acc = [D::dot(isa, acc[0], a, b0), D::dot(isa, acc[1], a, b1)];
                }
            }
            a = a.wrapping_add(stride);
            b = b.wrapping_add(columns * LINE);
            left -= block;
        }
        for (r, acc) in acc.into_iter().enumerate() {
            let acc = D::in_order(isa, acc);
            D::store(isa, sums.add(r * columns), acc[0]);
            D::store(isa, sums.add(r * columns + I::LANES), acc[1]);
        }
    }
}
