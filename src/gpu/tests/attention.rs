//! Attention over projected keys and values.

use super::support::*;
use crate::gpu::device::{Address, Format};
use crate::gpu::host::HostDevice;
use crate::gpu::kernels::attention::{self, Attention, AttentionWeights};

/// First query, number of queries, first key and number of keys of a sequence.
type Sequence = [i32; 4];

/// A call of `attention` with its operands: queries, keys and values side by side in each row, as a product leaves them.
struct Case {
    format: Format,
    rows: usize,
    heads: usize,
    head_width: usize,
    sequences: Vec<Sequence>,
    causal: bool,
    qkv: Vec<f32>,
}

impl Case {
    fn new(
        format: Format,
        rows: usize,
        heads: usize,
        head_width: usize,
        sequences: &[Sequence],
        causal: bool,
    ) -> Self {
        let mut qkv = rounded(format, &random(3, rows * 3 * heads * head_width));
        // Queries that make the softmax far from uniform.
        for row in qkv.chunks_mut(3 * heads * head_width) {
            row[..heads * head_width].iter_mut().for_each(|x| *x = round(format, *x * 6.0));
        }
        Self { format, rows, heads, head_width, sequences: sequences.to_vec(), causal, qkv }
    }

    fn width(&self) -> usize {
        self.heads * self.head_width
    }

    fn run(&self, device: &HostDevice) -> Vec<f32> {
        let qkv = upload(device, self.format, &self.qkv);
        let out = room(device, self.format, self.rows * self.width());
        let sequences = upload_ints(device, self.sequences.as_flattened());
        let part = |i: usize| qkv.offset(i * self.width() * self.format.bytes());
        let of = Attention {
            query: part(0),
            key: part(1),
            value: part(2),
            out,
            query_stride: 3 * self.width(),
            kv_stride: 3 * self.width(),
            sequences,
            sequence_count: self.sequences.len(),
            most_queries: self.sequences.iter().map(|s| s[1] as usize).max().unwrap_or(0),
            heads: self.heads,
            head_width: self.head_width,
            causal: self.causal,
        };
        attention::attention(device, self.format, of).unwrap();
        let actual = download(device, self.format, out, self.rows * self.width());
        free(device, [qkv, out, sequences]);
        actual
    }

    /// Returns the result of one query and head.
    fn twin(
        &self,
        [_, queries, first_key, keys]: Sequence,
        query_row: usize,
        query: usize,
        head: usize,
    ) -> Vec<f64> {
        let (width, stride) = (self.width(), 3 * self.width());
        let value = |part: usize, row: usize, i: usize| {
            f64::from(self.qkv[row * stride + part * width + head * self.head_width + i])
        };
        let visible =
            if self.causal { (query as i32 + 1 + keys - queries).clamp(0, keys) } else { keys };
        let rows: Vec<usize> = (0..visible).map(|key| (first_key + key) as usize).collect();
        let scores: Vec<f64> = rows
            .iter()
            .map(|&row| {
                let product: f64 =
                    (0..self.head_width).map(|i| value(0, query_row, i) * value(1, row, i)).sum();
                product / (self.head_width as f64).sqrt()
            })
            .collect();
        let weights = softmax(&scores);
        (0..self.head_width)
            .map(|i| {
                rows.iter().zip(&weights).map(|(&row, weight)| weight * value(2, row, i)).sum()
            })
            .collect()
    }

    /// Compares every `step`-th query with the twin, and checks that rows outside of the sequences are not written.
    fn check(&self, device: &HostDevice, step: usize) {
        let what = (self.format, self.heads, self.head_width, &self.sequences, self.causal);
        let actual = in_every_order(device, what, || bits(&self.run(device)));
        let actual: Vec<f32> = actual.into_iter().map(f32::from_bits).collect();
        let mut written = vec![false; self.rows];
        // Probabilities and values are below 1, so the sum's error is about one rounding of the probabilities, and the
        // result has one more.
        let tolerance = match self.format {
            Format::F32 => 4e-6,
            Format::Bf16 | Format::F16 => 2.0 * unit(self.format),
        };
        for &sequence in &self.sequences {
            for query in 0..sequence[1] as usize {
                let row = sequence[0] as usize + query;
                written[row] = true;
                if query % step == 0 {
                    for head in 0..self.heads {
                        let expected = self.twin(sequence, row, query, head);
                        let at = row * self.width() + head * self.head_width;
                        assert_close(
                            &actual[at..at + self.head_width],
                            &expected,
                            tolerance,
                            (what, query, head),
                        );
                    }
                }
            }
        }
        for (row, written) in written.iter().enumerate() {
            let values = &actual[row * self.width()..][..self.width()];
            assert!(
                *written || values.iter().all(|x| x.is_nan()),
                "{what:?}: row {row} is padding"
            );
        }
    }
}

#[test]
fn attention_agrees_with_its_twin_at_every_edge_of_a_tile() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        for length in [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129] {
            for causal in [false, true] {
                Case::new(
                    format,
                    length + 1,
                    1,
                    16,
                    &[[0, length as i32, 0, length as i32]],
                    causal,
                )
                .check(&device, 1);
            }
        }
    }
}

#[test]
fn attention_agrees_with_its_twin_for_every_head_width() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        for head_width in [1, 4, 8, 9, 12, 15, 16, 24, 31, 32, 40, 64, 72, 80, 128] {
            Case::new(format, 70, 3, head_width, &[[0, 70, 0, 70]], head_width % 2 == 0)
                .check(&device, 1);
        }
    }
}

#[test]
fn attention_of_ragged_sequences_reads_the_keys_of_its_own_only() {
    let Some(device) = HostDevice::try_new() else { return };
    // Fewer queries than keys, none at all, keys shared by two sequences, no keys, and one query.
    let sequences = [
        [0, 5, 0, 70],
        [5, 0, 0, 9],
        [5, 70, 70, 3],
        [75, 20, 0, 70],
        [95, 3, 12, 0],
        [99, 1, 99, 1],
    ];
    for format in FORMATS {
        for causal in [false, true] {
            Case::new(format, 101, 2, 8, &sequences, causal).check(&device, 1);
        }
    }
}

#[test]
fn attention_agrees_with_its_twin_at_the_size_of_blip() {
    let Some(device) = HostDevice::try_new() else { return };
    let case = Case::new(Format::Bf16, 577, 12, 64, &[[0, 577, 0, 577]], false);
    let actual = case.run(&device);
    for query in (0..577).step_by(41) {
        for head in [0, 5, 11] {
            let expected = case.twin(case.sequences[0], query, query, head);
            let at = query * 768 + head * 64;
            assert_close(&actual[at..at + 64], &expected, 2.0 * unit(Format::Bf16), (query, head));
        }
    }
}

#[test]
fn attention_of_a_query_does_not_depend_on_its_batch() {
    for device in devices() {
        for format in FORMATS {
            let together = Case::new(
                format,
                200,
                2,
                16,
                &[[0, 30, 0, 30], [30, 100, 30, 100], [130, 70, 30, 90]],
                true,
            );
            let all = together.run(&device);
            for (case, rows) in [
                (vec![[30, 100, 30, 100]], 30..130),
                // The last queries of a sequence alone see the same keys.
                (vec![[129, 1, 30, 100]], 129..130),
                (vec![[113, 17, 30, 100]], 113..130),
                (vec![[130, 70, 30, 90], [0, 30, 0, 30]], 130..200),
            ] {
                let alone = Case { sequences: case, ..Case::new(format, 200, 2, 16, &[], true) };
                let rows = rows.start * 32..rows.end * 32;
                assert_eq!(
                    bits(&alone.run(&device)[rows.clone()]),
                    bits(&all[rows]),
                    "{format:?} {:?}",
                    alone.sequences
                );
            }
        }
    }
}

#[test]
fn causal_attention_of_a_query_does_not_depend_on_keys_that_it_does_not_see() {
    for device in devices() {
        for format in FORMATS {
            let case = |sequences: &[Sequence]| Case::new(format, 100, 2, 16, sequences, true);
            let all = case(&[[0, 90, 10, 90]]).run(&device);
            // The queries of a block see up to 64 keys, and up to one tile, more than its first one.
            for query in [0, 1, 30, 31, 62, 63, 64, 65, 89] {
                let alone = case(&[[query, 1, 10, query + 1]]).run(&device);
                let row = query as usize * 32..(query as usize + 1) * 32;
                assert_eq!(bits(&alone[row.clone()]), bits(&all[row]), "{format:?} query {query}");
            }
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        let mut case = Case::new(format, 40, 1, 16, &[[0, 40, 0, 40]], false);
        case.qkv
            .chunks_mut(48)
            .for_each(|row| row[..32].iter_mut().for_each(|x| *x = round(format, *x * 100.0)));
        let actual = case.run(&device);
        for query in 0..40 {
            let expected = case.twin(case.sequences[0], query, query, 0);
            // Scores of a few thousand: in f32 their differences have errors of about 1e-3.
            assert_close(
                &actual[query * 16..][..16],
                &expected,
                2.0 * unit(format) + 2e-3,
                (format, query),
            );
        }
    }
}

#[test]
fn attention_weights_are_averaged_over_the_heads() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        for (rows, tokens, heads, head_width) in
            [(1, 1, 1, 1), (2, 255, 3, 5), (1, 256, 2, 8), (2, 257, 1, 16), (1, 577, 12, 64)]
        {
            let width = heads * head_width;
            let (query, key) =
                (random(1, rows * width), rounded(format, &random(2, tokens * 2 * width)));
            let mut expected = vec![0.0; rows * tokens];
            for row in 0..rows {
                for head in 0..heads {
                    let value = |token: usize, i: usize| {
                        f64::from(query[row * width + head * head_width + i])
                            * f64::from(key[token * 2 * width + head * head_width + i])
                    };
                    let scores: Vec<f64> = (0..tokens)
                        .map(|token| {
                            (0..head_width).map(|i| value(token, i)).sum::<f64>()
                                / (head_width as f64).sqrt()
                        })
                        .collect();
                    for (token, weight) in softmax(&scores).into_iter().enumerate() {
                        expected[row * tokens + token] += weight / heads as f64;
                    }
                }
            }
            let (query, key) =
                (upload(&device, Format::F32, &query), upload(&device, format, &key));
            let actual = in_every_order(&device, (tokens, heads), || {
                let out: Address = room(&device, Format::F32, rows * tokens);
                let of = AttentionWeights {
                    query,
                    key,
                    key_stride: 2 * width,
                    out,
                    rows,
                    tokens,
                    heads,
                    head_width,
                };
                attention::attention_weights(&device, format, of).unwrap();
                download(&device, Format::F32, out, rows * tokens)
            });
            assert_close(&actual, &expected, 1e-6, (format, tokens, heads));
        }
    }
}
