//! The kernel of [`attend`](super::attend): computes attention for some queries of one head, strip by strip. A strip is
//! as high as a tile of the matrix product.

#![expect(unsafe_code, reason = "tiles, panels and vectors by pointer")]

use std::cell::RefCell;

use super::super::aligned_buffer::{AlignedBuffer, LINE};
use super::super::disjoint::DisjointMutPtr;
use super::super::gemm::{Bf16, F32, Format, Int8, Prefetch, TileProduct, WideBf16, multiply};
use super::super::isa::{Isa, Kernel, MOST_COLUMNS, MOST_ROWS};
use super::formats::{AttentionFormat, HeadMemory, QueryFactors, Scores};
use super::shared::{self, SharedFormat, SharedScores, SharedSums};
use super::{AttentionRun, HeadQueries, Heads};

/// Scratch buffers of one strip.
#[derive(Debug, Default)]
pub(super) struct StripBuffers {
    queries: AlignedBuffer,
    /// Scores, `[panels of tokens][rows][columns]`; in causal attention, those of one row.
    pub(super) scores: AlignedBuffer,
    probabilities: AlignedBuffer,
    sums: AlignedBuffer,
}

thread_local! {
    /// This thread's scratch buffers. For 577 tokens and 12 rows, the scores take 28 KB, and the probabilities in bf16
    /// take 14 KB.
    pub(super) static BUFFERS: RefCell<StripBuffers> = RefCell::new(StripBuffers::default());
}

/// Computes attention for the queries of one part of the job.
pub(super) struct Strips<'a> {
    pub(super) run: AttentionRun<'a>,
    pub(super) part: HeadQueries,
    pub(super) buffers: &'a mut StripBuffers,
    /// Result of all runs, `[rows of all runs, heads x width]`.
    pub(super) out: DisjointMutPtr<f32>,
}

impl Kernel for Strips<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let memory = self.run.memory;
        match (memory.format, memory.is_shared) {
            (Format::Bf16, false) if I::WIDENS_BF16 => {
                self.run_in::<I, WideBf16, Separate>(isa);
            }
            (Format::Bf16, false) => self.run_in::<I, Bf16, Separate>(isa),
            (Format::Bf16, true) => self.run_in::<I, Bf16, Shared>(isa),
            (Format::F32, false) => self.run_in::<I, F32, Separate>(isa),
            (Format::F32, true) => self.run_in::<I, F32, Shared>(isa),
            (Format::Int8, false) => self.run_in::<I, Int8, Separate>(isa),
            (Format::Int8, true) => unreachable!("8-bit keys and values are separate"),
        }
    }
}

impl Strips<'_> {
    /// Computes attention for the queries, with operands in the format `D` and a memory of the layout `L`.
    #[inline(always)]
    fn run_in<I: Isa, D: AttentionFormat<I>, L: Layout<I, D>>(self, isa: I) {
        let Self { run, part, buffers, out } = self;
        for first in (part.first..part.last).step_by(I::ROWS) {
            let rows = I::ROWS.min(part.last - first);
            let strip = Strip::new::<I, D>(run, part, first, rows);
            strip.resize::<I, D>(buffers);
            // SAFETY: the buffers were made large enough for the strip. Only this part writes its rows of the result in
            // this head's columns.
            unsafe {
                let factors = strip.compute_scores::<I, D, L>(isa, buffers);
                let inverse_sums = strip.compute_probabilities::<I, D>(isa, buffers, &factors);
                strip.add_values::<I, D, L>(isa, buffers, &inverse_sums, out);
            }
        }
    }
}

/// A strip: the queries of one tile, and the sizes of the packed operands.
#[derive(Clone, Copy)]
struct Strip<'a> {
    run: AttentionRun<'a>,
    part: HeadQueries,
    /// The first query.
    first: usize,
    /// Number of queries.
    rows: usize,
    /// Number of panels of tokens.
    panels: usize,
    /// Number of groups of one query or key.
    key_groups: usize,
    /// Number of groups of one column of the values.
    token_groups: usize,
}

impl<'a> Strip<'a> {
    #[inline(always)]
    fn new<I: Isa, D: AttentionFormat<I>>(
        run: AttentionRun<'a>,
        part: HeadQueries,
        first: usize,
        rows: usize,
    ) -> Self {
        let group = D::GROUP * D::ROW_LINES;
        let groups = |values: usize| values.div_ceil(group).next_multiple_of(I::GROUPS);
        let (width, tokens) = (run.memory.heads.width, run.memory.tokens);
        let panels = tokens.div_ceil(I::LANES * I::VECTORS);
        let (key_groups, token_groups) = (groups(width), groups(tokens));
        Self { run, part, first, rows, panels, key_groups, token_groups }
    }

    /// Makes the buffers large enough.
    #[inline(always)]
    fn resize<I: Isa, D: AttentionFormat<I>>(self, buffers: &mut StripBuffers) {
        let columns = I::LANES * I::VECTORS;
        let query_lines = self.key_groups.div_ceil(LINE) * D::ROW_LINES;
        buffers.queries.resize(query_lines * LINE * self.rows);
        buffers.scores.resize(self.panels * self.rows * columns);
        let lines = (self.panels * columns).div_ceil(LINE * D::GROUP);
        buffers.probabilities.resize(lines * LINE * self.rows);
        buffers.sums.resize(self.rows * columns);
    }

    /// Packs the queries and multiplies them by the keys. Returns the queries' factors.
    ///
    /// # Safety
    /// The buffers have been resized for this strip.
    #[inline(always)]
    unsafe fn compute_scores<I: Isa, D: AttentionFormat<I>, L: Layout<I, D>>(
        self,
        isa: I,
        buffers: &mut StripBuffers,
    ) -> QueryFactors {
        let Self { run: AttentionRun { queries, memory, .. }, part, rows, .. } = self;
        let mut factors = [1.0; MOST_ROWS];
        let width = memory.heads.width;
        // SAFETY: this function's contract.
        unsafe {
            for (r, factor) in factors.iter_mut().enumerate().take(rows) {
                let query = queries.part(self.first + r, part.head * width, width);
                let to = buffers.queries.as_mut_ptr().add(r * LINE);
                *factor = D::pack_query(isa, query, rows, to);
            }
            L::multiply_keys(isa, self, buffers);
        }
        factors
    }

    /// Replaces the scores by probabilities that are not yet divided by their sum. Returns the inverse of each row's
    /// sum.
    ///
    /// # Safety
    /// The buffers have been resized for this strip, and hold its scores.
    #[inline(always)]
    unsafe fn compute_probabilities<I: Isa, D: AttentionFormat<I>>(
        self,
        isa: I,
        buffers: &mut StripBuffers,
        factors: &QueryFactors,
    ) -> [f32; MOST_ROWS] {
        let of = HeadMemory { memory: self.run.memory, head: self.part.head };
        let (rows, columns) = (self.rows, I::LANES * I::VECTORS);
        let mut inverse_sums = [0.0f32; MOST_ROWS];
        // SAFETY: this function's contract.
        unsafe {
            for (r, inverse) in inverse_sums.iter_mut().enumerate().take(rows) {
                let scores = Scores {
                    first: buffers.scores.as_mut_ptr().add(r * columns).cast(),
                    stride: rows * columns,
                    tokens: self.run.memory.tokens,
                    scale: self.run.scale,
                };
                let to = buffers.probabilities.as_mut_ptr().add(r * LINE);
                D::finish_scores(isa, scores, of, factors[r]);
                *inverse = 1.0 / softmax::<I, D>(isa, scores, of, to, rows * LINE);
            }
        }
        inverse_sums
    }

    /// Adds up the values, weighted by the probabilities, and writes the result.
    ///
    /// # Safety
    /// The buffers have been resized for this strip, and hold its probabilities. No other part writes the rows of the
    /// strip in this head's columns of `out`.
    #[inline(always)]
    unsafe fn add_values<I: Isa, D: AttentionFormat<I>, L: Layout<I, D>>(
        self,
        isa: I,
        buffers: &mut StripBuffers,
        inverse_sums: &[f32; MOST_ROWS],
        out: DisjointMutPtr<f32>,
    ) {
        let Self { run: AttentionRun { memory, .. }, part, rows, .. } = self;
        let Heads { count, width } = memory.heads;
        let columns = I::LANES * I::VECTORS;
        for panel in 0..width.div_ceil(columns) {
            // SAFETY: this function's contract; the panel is one of the head's panels.
            unsafe { L::multiply_values(isa, self, buffers, panel) };
            let wide = columns.min(width - panel * columns);
            for (r, inverse) in inverse_sums.iter().enumerate().take(rows) {
                let sums = &mut buffers.sums[r * columns..][..columns];
                let mut result = [0.0f32; MOST_COLUMNS];
                for lane in (0..columns).step_by(I::LANES) {
                    // SAFETY: the vector lies within `sums` and `result`.
                    unsafe {
                        let sums = D::to_f32(isa, sums.as_ptr().add(lane));
                        let value = isa.mul(sums, isa.splat(*inverse));
                        isa.store(result.as_mut_ptr().add(lane), value);
                    }
                }
                let row = part.start + self.first + r;
                let at = (row * count + part.head) * width + panel * columns;
                // SAFETY: the values lie in a row of the strip, in this head's columns.
                unsafe {
                    std::ptr::copy_nonoverlapping(result.as_ptr(), out.pointer().add(at), wide);
                }
            }
        }
    }
}

/// How keys and values are stored.
trait Layout<I: Isa, D> {
    /// Multiplies the strip's packed queries by the keys.
    ///
    /// # Safety
    /// The buffers have been resized for the strip, and hold its queries.
    unsafe fn multiply_keys(isa: I, strip: Strip<'_>, buffers: &mut StripBuffers);
    /// Multiplies the strip's probabilities by a panel of the head's values. The result is in `sums`.
    ///
    /// # Safety
    /// The buffers have been resized for the strip, and hold its probabilities. The head has this panel.
    unsafe fn multiply_values(isa: I, strip: Strip<'_>, buffers: &mut StripBuffers, panel: usize);
}

/// Keys and values that are stored separately, as panels of the matrix product.
struct Separate;

impl<I: Isa, D: AttentionFormat<I>> Layout<I, D> for Separate {
    #[inline(always)]
    unsafe fn multiply_keys(isa: I, strip: Strip<'_>, buffers: &mut StripBuffers) {
        let Strip { run, part, rows, panels, key_groups: groups, .. } = strip;
        let columns = I::LANES * I::VECTORS;
        let keys = &run.memory.keys[part.head * panels * groups * columns..];
        for panel in 0..panels {
            let b = keys[panel * groups * columns..].as_ptr();
            // SAFETY: this function's contract; the scores hold all panels.
            unsafe {
                let product = TileProduct {
                    rows,
                    a: buffers.queries.as_ptr(),
                    b,
                    groups,
                    sums: buffers.scores.as_mut_ptr().add(panel * rows * columns),
                    add: false,
                    prefetch: Prefetch::stream::<I>(b),
                };
                multiply::<I, D>(isa, product);
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply_values(isa: I, strip: Strip<'_>, buffers: &mut StripBuffers, panel: usize) {
        let Strip { run: AttentionRun { memory, .. }, part, rows, token_groups: groups, .. } =
            strip;
        let columns = I::LANES * I::VECTORS;
        let panels = memory.heads.width.div_ceil(columns);
        let b = memory.values[(part.head * panels + panel) * groups * columns..].as_ptr();
        let product = TileProduct {
            rows,
            a: buffers.probabilities.as_ptr(),
            b,
            groups,
            sums: buffers.sums.as_mut_ptr(),
            add: false,
            prefetch: Prefetch::stream::<I>(b),
        };
        // SAFETY: this function's contract.
        unsafe { multiply::<I, D>(isa, product) };
    }
}

/// One matrix that is both the keys and the values of one head.
struct Shared;

impl<I: Isa, D: SharedFormat<I>> Layout<I, D> for Shared {
    #[inline(always)]
    unsafe fn multiply_keys(isa: I, strip: Strip<'_>, buffers: &mut StripBuffers) {
        let memory = strip.run.memory;
        let product = SharedScores {
            rows: strip.rows,
            queries: buffers.queries.as_ptr(),
            matrix: memory.keys.as_ptr(),
            width: memory.heads.width,
            tokens: memory.tokens,
            scores: buffers.scores.as_mut_ptr().cast(),
        };
        // SAFETY: this function's contract.
        unsafe { shared::scores::<I, D>(isa, product) };
    }

    #[inline(always)]
    unsafe fn multiply_values(isa: I, strip: Strip<'_>, buffers: &mut StripBuffers, panel: usize) {
        let Strip { run: AttentionRun { memory, .. }, rows, .. } = strip;
        let product = SharedSums {
            rows,
            probabilities: buffers.probabilities.as_ptr(),
            panel: memory.keys[shared::panel_start::<I, D>(memory.tokens, panel)..].as_ptr(),
            groups: memory.tokens.div_ceil(D::GROUP),
            sums: buffers.sums.as_mut_ptr(),
        };
        // SAFETY: this function's contract.
        unsafe { shared::weighted_sums::<I, D>(isa, product) };
    }
}

/// Turns the scores of one row into probabilities that are not yet divided by their sum, `e^(scale (score - largest))`,
/// and writes them as groups of the format. The row's cache lines start at `to` and are `stride` groups apart. Columns
/// beyond the tokens get numbers close to zero. These do not change the result, because the packed `v` is padded with
/// zeros. Returns the sum that results are divided by.
///
/// # Safety
/// The scores are valid for `tokens` reads, rounded up to whole panels, and `to` is valid for writing the groups of
/// that number of values.
#[inline(always)]
unsafe fn softmax<I: Isa, D: AttentionFormat<I>>(
    isa: I,
    scores: Scores,
    of: HeadMemory<'_>,
    to: *mut u32,
    stride: usize,
) -> f32 {
    let columns = I::LANES * I::VECTORS;
    let panels = scores.tokens.div_ceil(columns);
    // Columns beyond the tokens hold meaningless scores, so the last panel is copied without them.
    let mut last = [f32::NEG_INFINITY; MOST_COLUMNS];
    let in_last = scores.tokens - (panels - 1) * columns;
    // SAFETY: this function's contract.
    unsafe {
        let last_scores = scores.first.add((panels - 1) * scores.stride);
        std::ptr::copy_nonoverlapping(last_scores, last.as_mut_ptr(), in_last);
        // The closure handles only pointers: a closure over vectors would not be compiled for the level's instructions.
        let panel_at = |panel: usize| {
            let is_last = panel + 1 == panels;
            if is_last { last.as_ptr() } else { scores.first.add(panel * scores.stride) }
        };
        let (mut first, mut second) = (isa.splat(f32::NEG_INFINITY), isa.splat(f32::NEG_INFINITY));
        for panel in 0..panels {
            first = isa.max(first, isa.load(panel_at(panel)));
            second = isa.max(second, isa.load(panel_at(panel).add(I::LANES)));
        }
        let scale = isa.splat(D::exponent_scale(scores.scale));
        let largest = isa.splat(isa.largest(isa.max(first, second)));
        let mut sums = [isa.splat(0.0); 2];
        for panel in 0..panels {
            // Subtract before scaling, so that the exponent is never above 0, however large the scores are.
            let first = isa.mul(isa.sub(isa.load(panel_at(panel)), largest), scale);
            let second = isa.mul(isa.sub(isa.load(panel_at(panel).add(I::LANES)), largest), scale);
            let pair = [D::probability(isa, first), D::probability(isa, second)];
            let token = panel * columns;
            sums[0] = D::add(isa, sums[0], pair[0], of, token);
            sums[1] = D::add(isa, sums[1], pair[1], of, token + I::LANES);
            D::write_pair(isa, pair, to, stride, panel);
        }
        isa.sum(isa.add(sums[0], sums[1]))
    }
}
