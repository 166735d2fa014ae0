//! Compares both forms of attention, at every level, with a slow reference in f64.

use super::super::context::KernelContext;
use super::super::gemm::Format;
use super::super::isa::{Level, to_bf16};
use super::super::rows::Rows;
use super::super::testing::{assert_all_close, levels, values};
use super::{AttentionRun, CausalRun, Heads, PackedKv, Shape, attend, attend_causally};

const FORMATS: [Format; 3] = [Format::F32, Format::Bf16, Format::Int8];

/// Queries, keys and values of one sequence as columns of one matrix, as the packed qkv product writes them.
struct Sequence {
    qkv: Vec<f32>,
    heads: Heads,
    rows: usize,
}

impl Sequence {
    fn new(heads: Heads, rows: usize, seed: u64) -> Self {
        Self { qkv: values(rows * 3 * heads.count * heads.width, seed), heads, rows }
    }

    fn part(&self, index: usize) -> Rows<'_> {
        let width = self.heads.count * self.heads.width;
        Rows { values: &self.qkv, stride: 3 * width, column: index * width, rows: self.rows }
    }

    fn packed(&self, format: Format, context: &mut KernelContext) -> PackedKv {
        let mut memory = PackedKv::default();
        memory.pack(context, format, self.heads, self.part(1), self.part(2));
        memory
    }
}

/// Slow reference: computes `softmax(q k^T / sqrt(d)) v` for every row, over the first `visible(row)` keys, with
/// operands rounded to the format. Returns, for each value of the result, a pair: the value itself, and the largest
/// magnitude in the column of `v` from which the value was computed; in 8 bits, in all columns of the head.
fn reference(
    format: Format,
    queries: Rows<'_>,
    memory: &Sequence,
    visible: impl Fn(usize) -> usize,
) -> Vec<(f64, f64)> {
    let kept = |x: f32| match format {
        Format::F32 | Format::Int8 => f64::from(x),
        Format::Bf16 => f64::from(f32::from_bits(to_bf16(x) << 16)),
    };
    let Heads { count, width } = memory.heads;
    let mut out = Vec::new();
    for row in 0..queries.rows {
        for head in 0..count {
            let query = queries.part(row, head * width, width);
            let scores: Vec<f64> = (0..visible(row))
                .map(|token| {
                    let key = memory.part(1).part(token, head * width, width);
                    let dot: f64 = query.iter().zip(key).map(|(q, k)| kept(*q) * kept(*k)).sum();
                    dot / (width as f64).sqrt()
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exponentials: Vec<f64> =
                scores.iter().map(|score| (score - largest).exp()).collect();
            let sum: f64 = exponentials.iter().sum();
            for column in 0..width {
                let value =
                    |token: usize| kept(memory.part(2).part(token, head * width + column, 1)[0]);
                let dot: f64 =
                    exponentials.iter().enumerate().map(|(token, e)| e * value(token)).sum();
                let magnitude = if format == Format::Int8 {
                    // A value's scale is that of its largest column.
                    let values = |token| memory.part(2).part(token, head * width, width).iter();
                    let all = (0..visible(row)).flat_map(values);
                    all.map(|x| f64::from(x.abs())).fold(0.0, f64::max)
                } else {
                    (0..visible(row)).map(|t| value(t).abs()).fold(0.0, f64::max)
                };
                out.push((dot / sum, magnitude));
            }
        }
    }
    out
}

/// Returns the accepted relative error. The probabilities are rounded to the format too; in bf16, the rounding changes
/// each probability by at most one part in 256.
fn tolerance(format: Format) -> f64 {
    match format {
        Format::F32 => 2e-6,
        Format::Bf16 => 1.0 / 256.0,
        // Rounding changes a query, a key, a probability and a value by up to one part in 254 of the largest one.
        Format::Int8 => 1.0 / 64.0,
    }
}

#[test]
fn attention_equals_the_slow_twin_around_the_edges_of_tiles_and_panels() {
    let mut failures = Vec::new();
    for level in levels() {
        let Shape { rows, columns, .. } = Shape::of(level);
        let sizes: &[usize] = if level.is_emulated() { &[1, 33] } else { &[1, 2, 15, 577] };
        for format in FORMATS {
            for &tokens in sizes.iter().chain(&[columns - 1, columns, columns + 1]) {
                for (count, width) in [(1, 64), (3, 8), (2, 40)] {
                    let memory = Sequence::new(Heads { count, width }, tokens, 1);
                    for queries in [1, rows, rows + 1] {
                        let asking = Sequence::new(memory.heads, queries, 2);
                        let mut context = KernelContext::new(level, 2);
                        let packed = memory.packed(format, &mut context);
                        let mut out = vec![f32::NAN; queries * count * width];
                        let run = AttentionRun {
                            queries: asking.part(0),
                            memory: &packed,
                            scale: memory.heads.scale(),
                        };
                        attend(&mut context, &[run], &mut out);
                        let expected = reference(format, asking.part(0), &memory, |_| tokens);
                        let what = format!(
                            "{level} {format:?} {queries} queries, {tokens} tokens, {count}x{width}"
                        );
                        let close = assert_all_close(&what, &out, &expected, tolerance(format));
                        failures.extend(close.err());
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_common_part_of_8_bit_keys_costs_no_precision_and_values_of_zeros_count() {
    let heads = Heads { count: 2, width: 32 };
    let mut failures = Vec::new();
    for level in levels() {
        let mut memory = Sequence::new(heads, 70, 11);
        for (token, row) in memory.qkv.chunks_mut(3 * 64).enumerate() {
            let (keys, values) = row[64..].split_at_mut(64);
            for key in keys {
                *key += 50.0;
            }
            if token % 3 == 0 {
                values.fill(0.0);
            }
        }
        let asking = Sequence::new(heads, 5, 12);
        let mut context = KernelContext::new(level, 2);
        let packed = memory.packed(Format::Int8, &mut context);
        let mut out = vec![f32::NAN; 5 * 64];
        let run = AttentionRun { queries: asking.part(0), memory: &packed, scale: heads.scale() };
        attend(&mut context, &[run], &mut out);
        let expected = reference(Format::Int8, asking.part(0), &memory, |_| 70);
        let what = format!("{level}");
        failures.extend(assert_all_close(&what, &out, &expected, tolerance(Format::Int8)).err());
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_memory_used_again_for_fewer_tokens_keeps_nothing_of_the_old() {
    let heads = Heads { count: 2, width: 24 };
    for level in levels() {
        for format in FORMATS {
            let mut context = KernelContext::new(level, 1);
            let mut old = Sequence::new(heads, 70, 3);
            old.qkv.fill(f32::NAN);
            let new = Sequence::new(heads, 13, 4);
            let mut used = old.packed(format, &mut context);
            used.pack(&mut context, format, heads, new.part(1), new.part(2));
            let fresh = new.packed(format, &mut context);
            let mut attended = |memory: &PackedKv| {
                let mut out = vec![0.0; 13 * 48];
                attend(
                    &mut context,
                    &[AttentionRun { queries: new.part(0), memory, scale: heads.scale() }],
                    &mut out,
                );
                out
            };
            assert_eq!(attended(&used), attended(&fresh), "{level} {format:?}");
        }
    }
}

#[test]
fn a_memory_packed_again_at_another_level_is_of_that_level() {
    let heads = Heads { count: 2, width: 24 };
    let sequence = Sequence::new(heads, 40, 10);
    for format in FORMATS {
        let mut used = sequence.packed(format, &mut KernelContext::new(Level::Portable, 1));
        for level in levels() {
            let mut context = KernelContext::new(level, 1);
            used.pack(&mut context, format, heads, sequence.part(1), sequence.part(2));
            let fresh = sequence.packed(format, &mut context);
            let mut attended = |memory: &PackedKv| {
                let mut out = vec![0.0; 40 * 48];
                let run = AttentionRun { queries: sequence.part(0), memory, scale: heads.scale() };
                attend(&mut context, &[run], &mut out);
                out
            };
            assert_eq!(attended(&used), attended(&fresh), "{level} {format:?}");
        }
    }
}

#[test]
fn a_query_has_the_same_bits_alone_and_with_any_batch_neighbours() {
    let heads = Heads { count: 2, width: 64 };
    let (first, second) = (Sequence::new(heads, 50, 5), Sequence::new(heads, 37, 6));
    for level in levels() {
        for format in FORMATS {
            let mut context = KernelContext::new(level, 3);
            let memories = [&first, &second].map(|sequence| sequence.packed(format, &mut context));
            let mut attended = |runs: &[AttentionRun<'_>], rows: usize| {
                let mut out = vec![0.0; rows * 128];
                attend(&mut context, runs, &mut out);
                out
            };
            let runs = [
                AttentionRun { queries: first.part(0), memory: &memories[0], scale: heads.scale() },
                AttentionRun {
                    queries: second.part(0),
                    memory: &memories[1],
                    scale: heads.scale(),
                },
            ];
            let together = attended(&runs, 87);
            for row in [0, 1, 31, 49] {
                let queries = Rows { values: &first.qkv[row * 384..], rows: 1, ..first.part(0) };
                let alone = attended(
                    &[AttentionRun { queries, memory: &memories[0], scale: heads.scale() }],
                    1,
                );
                assert_eq!(alone, together[row * 128..][..128], "{level} {format:?} row {row}");
            }
        }
    }
}

#[test]
fn a_row_of_what_is_not_a_number_comes_out_so_and_spoils_no_other() {
    let heads = Heads { count: 2, width: 16 };
    let memory = Sequence::new(heads, 40, 7);
    for level in levels() {
        for format in FORMATS {
            let mut asking = Sequence::new(heads, 5, 8);
            asking.qkv[3 * 96..][..32].fill(f32::NAN);
            let mut context = KernelContext::new(level, 1);
            let packed = memory.packed(format, &mut context);
            let mut out = vec![0.0; 5 * 32];
            let run = AttentionRun {
                queries: asking.part(0),
                memory: &packed,
                scale: memory.heads.scale(),
            };
            attend(&mut context, &[run], &mut out);
            for (row, values) in out.chunks(32).enumerate() {
                assert_eq!(
                    values.iter().all(|x| x.is_nan()),
                    row == 3,
                    "{level} {format:?} row {row}: {values:?}"
                );
            }
        }
    }
}

#[test]
fn causal_attention_equals_the_slow_twin_with_and_without_a_past() {
    let mut failures = Vec::new();
    for level in levels() {
        for (count, width) in [(12, 64), (1, 8), (3, 20)] {
            for (past, new) in [(0, 1), (0, 5), (7, 1), (40, 3), (511, 1)] {
                let heads = Heads { count, width };
                let sequence = Sequence::new(heads, past + new, 9);
                let whole = count * width;
                // Keys and values of the earlier rows, in pieces of three rows, followed by those of the new rows.
                let part = |first: usize, rows: usize| Rows {
                    values: &sequence.qkv[first * 3 * whole..],
                    stride: 3 * whole,
                    column: whole,
                    rows,
                };
                let mut pieces: Vec<Rows<'_>> =
                    (0..past).step_by(3).map(|first| part(first, 3.min(past - first))).collect();
                pieces.push(part(past, new));
                let queries = Rows {
                    values: &sequence.qkv[past * 3 * whole..],
                    rows: new,
                    ..sequence.part(0)
                };
                let mut out = vec![f32::NAN; new * whole];
                let run = CausalRun { queries, memory: &pieces };
                attend_causally(&mut KernelContext::new(level, 2), heads, &[run], &mut out);
                let expected = reference(Format::F32, queries, &sequence, |row| past + row + 1);
                let what = format!("{level} {past} + {new} rows, {count}x{width}");
                failures.extend(assert_all_close(&what, &out, &expected, 4e-6).err());
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Formats in which one matrix can be both the keys and the values.
const SHARED_FORMATS: [Format; 2] = [Format::F32, Format::Bf16];

impl Sequence {
    /// Creates a sequence of one head whose values equal its keys.
    fn shared(width: usize, rows: usize, seed: u64) -> Self {
        let mut sequence = Self::new(Heads { count: 1, width }, rows, seed);
        for row in sequence.qkv.chunks_mut(3 * width) {
            row.copy_within(width..2 * width, 2 * width);
        }
        sequence
    }

    fn packed_once(&self, format: Format, context: &mut KernelContext) -> PackedKv {
        let mut memory = PackedKv::default();
        memory.pack_once(context, format, self.part(1), self.heads.width);
        memory
    }
}

/// Attends to `memory` with one run of queries.
fn attended(context: &mut KernelContext, memory: &PackedKv, queries: Rows<'_>) -> Vec<f32> {
    let Heads { count, width } = memory.heads();
    let mut out = vec![f32::NAN; queries.rows * count * width];
    let run = AttentionRun { queries, memory, scale: memory.heads().scale() };
    attend(context, &[run], &mut out);
    out
}

#[test]
fn a_matrix_of_keys_and_values_equals_the_slow_twin_around_the_edges() {
    let mut failures = Vec::new();
    for level in levels() {
        let Shape { rows, columns, .. } = Shape::of(level);
        for format in SHARED_FORMATS {
            for tokens in [1, 2, 3, 4, 5, 15, 577, columns - 1, columns, columns + 1] {
                for width in [1, 8, 40, 64, columns - 1, columns + 1] {
                    let memory = Sequence::shared(width, tokens, 13);
                    let mut context = KernelContext::new(level, 2);
                    let packed = memory.packed_once(format, &mut context);
                    for queries in [1, 2, 5, rows, rows + 1] {
                        let asking = Sequence::new(memory.heads, queries, 14);
                        let out = attended(&mut context, &packed, asking.part(0));
                        let expected = reference(format, asking.part(0), &memory, |_| tokens);
                        let what = format!(
                            "{level} {format:?} {queries} queries, {tokens} tokens, width {width}"
                        );
                        let close = assert_all_close(&what, &out, &expected, tolerance(format));
                        failures.extend(close.err());
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_query_to_a_matrix_of_keys_and_values_has_the_same_bits_with_any_neighbours() {
    let (first, second) = (Sequence::shared(72, 50, 15), Sequence::shared(72, 37, 16));
    for level in levels() {
        for format in SHARED_FORMATS {
            let mut context = KernelContext::new(level, 3);
            let memories =
                [&first, &second].map(|sequence| sequence.packed_once(format, &mut context));
            let scale = first.heads.scale();
            let mut together = vec![0.0; 87 * 72];
            let runs = [
                AttentionRun { queries: first.part(0), memory: &memories[0], scale },
                AttentionRun { queries: second.part(0), memory: &memories[1], scale },
            ];
            attend(&mut context, &runs, &mut together);
            for threads in [1, 2] {
                let mut context = KernelContext::new(level, threads);
                // Every number of rows up to a tile and one more, so that every height of a tile occurs.
                for rows in 1..=Shape::of(level).rows + 1 {
                    let queries = Rows { values: &first.qkv[3 * 216..], rows, ..first.part(0) };
                    let some = attended(&mut context, &memories[0], queries);
                    assert_eq!(
                        some,
                        together[3 * 72..(3 + rows) * 72],
                        "{level} {format:?} {rows} rows, {threads} threads"
                    );
                }
            }
        }
    }
}

#[test]
fn a_memory_used_again_for_a_matrix_of_keys_and_values_keeps_nothing_of_the_old() {
    for level in levels() {
        for format in SHARED_FORMATS {
            let mut context = KernelContext::new(level, 1);
            let new = Sequence::shared(24, 13, 18);
            let expected = {
                let fresh = new.packed_once(format, &mut context);
                attended(&mut context, &fresh, new.part(0))
            };
            let mut old = Sequence::shared(40, 70, 17);
            old.qkv.fill(f32::NAN);
            for mut used in
                [old.packed_once(format, &mut context), old.packed(format, &mut context)]
            {
                used.pack_once(&mut context, format, new.part(1), 24);
                assert_eq!(
                    attended(&mut context, &used, new.part(0)),
                    expected,
                    "{level} {format:?}"
                );
                used.pack(&mut context, format, new.heads, new.part(1), new.part(2));
                let separate = new.packed(format, &mut context);
                assert_eq!(
                    attended(&mut context, &used, new.part(0)),
                    attended(&mut context, &separate, new.part(0)),
                    "{level} {format:?}"
                );
            }
        }
    }
}

#[test]
fn a_query_that_is_not_a_number_spoils_no_other_of_a_matrix_of_keys_and_values() {
    let memory = Sequence::shared(48, 41, 19);
    for level in levels() {
        for format in SHARED_FORMATS {
            let mut asking = Sequence::new(memory.heads, 5, 20);
            asking.qkv[3 * 144..][..48].fill(f32::NAN);
            let mut context = KernelContext::new(level, 1);
            let packed = memory.packed_once(format, &mut context);
            let out = attended(&mut context, &packed, asking.part(0));
            for (row, values) in out.chunks(48).enumerate() {
                let are_nan = values.iter().all(|x| x.is_nan());
                assert_eq!(are_nan, row == 3, "{level} {format:?} row {row}: {values:?}");
            }
        }
    }
}

#[test]
fn a_matrix_of_keys_and_values_takes_the_stated_bytes_at_every_level() {
    let sequence = Sequence::shared(72, 35, 21);
    for level in levels() {
        for format in FORMATS {
            let mut context = KernelContext::new(level, 1);
            let mut memory = PackedKv::default();
            memory.pack_shared(&mut context, format, sequence.part(1), 72);
            let bytes = 4 * (memory.keys.len() + memory.values.len());
            assert_eq!(bytes, PackedKv::shared_bytes(level, format, 72, 35), "{level} {format:?}");
            let expected = reference(format, sequence.part(0), &sequence, |_| 35);
            let out = attended(&mut context, &memory, sequence.part(0));
            let what = format!("{level} {format:?}");
            assert_all_close(&what, &out, &expected, tolerance(format)).unwrap();
        }
    }
}
