//! Cross-attention over encoder states.

use super::support::*;
use crate::gpu::device::{Address, Device, DeviceError, Format};
use crate::gpu::host::HostDevice;
use crate::gpu::kernels::folded::{self, Heads, MAX_STATES_WIDTH};

const fn heads(heads: usize, head_width: usize, states_width: usize) -> Heads {
    Heads { heads, head_width, states_width }
}

/// Dimensions of tiny models, edges of what a block takes, BLIP base and BLIP large.
const DIMENSIONS: [Heads; 9] = [
    heads(1, 1, 1),
    heads(2, 4, 8),
    heads(4, 9, 36),
    heads(3, 15, 45),
    heads(17, 3, 17),
    heads(2, 130, 127),
    heads(5, 8, 136),
    heads(12, 64, 768),
    heads(16, 64, 1024),
];

#[test]
fn folded_queries_agree_with_their_twin() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        for of in DIMENSIONS {
            let width = of.heads * of.head_width;
            for rows in [1, 7, 8, 9] {
                let (query, key) =
                    (random(1, rows * width), rounded(format, &random(2, width * of.states_width)));
                let mut expected = Vec::new();
                for row in 0..rows {
                    for head in 0..of.heads {
                        let mut sums = vec![0.0; of.states_width];
                        for d in head * of.head_width..(head + 1) * of.head_width {
                            let keys = &key[d * of.states_width..][..of.states_width];
                            for (sum, &k) in sums.iter_mut().zip(keys) {
                                *sum += f64::from(query[row * width + d]) * f64::from(k);
                            }
                        }
                        expected.extend(
                            sums.into_iter().map(|sum| sum / (of.head_width as f64).sqrt()),
                        );
                    }
                }
                let operands =
                    [upload(&device, Format::F32, &query), upload(&device, format, &key)];
                let actual = in_every_order(&device, of, || {
                    let out = room(&device, format, expected.len());
                    folded::fold_query(&device, format, [operands[0], operands[1], out], rows, of)
                        .unwrap();
                    let actual = download(&device, format, out, expected.len());
                    device.free(out);
                    actual
                });
                assert_close(&actual, &expected, unit(format) + 2e-6, (format, of, rows));
                free(&device, operands);
            }
        }
    }
}

#[test]
fn projected_values_agree_with_their_twin() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        for of in DIMENSIONS {
            let width = of.heads * of.head_width;
            for rows in [1, 7, 8, 9] {
                let context = rounded(format, &random(1, rows * of.heads * of.states_width));
                let value = rounded(format, &random(2, width * of.states_width));
                let bias = random(3, width);
                let mut expected = Vec::new();
                for row in 0..rows {
                    for column in 0..width {
                        let states = (row * of.heads + column / of.head_width) * of.states_width;
                        let products = context[states..][..of.states_width].iter();
                        let sum: f64 = products
                            .zip(&value[column * of.states_width..])
                            .map(|(&x, &w)| f64::from(x) * f64::from(w))
                            .sum();
                        expected.push(sum + f64::from(bias[column]));
                    }
                }
                let operands = [
                    upload(&device, format, &context),
                    upload(&device, format, &value),
                    upload(&device, Format::F32, &bias),
                ];
                let actual = in_every_order(&device, of, || {
                    let out = room(&device, format, expected.len());
                    let [context, value, bias] = operands;
                    folded::project_values(&device, format, [context, value, bias, out], rows, of)
                        .unwrap();
                    let actual = download(&device, format, out, expected.len());
                    device.free(out);
                    actual
                });
                assert_close(&actual, &expected, unit(format) + 2e-5, (format, of, rows));
                free(&device, operands);
            }
        }
    }
}

/// Rows with the encoder states that each attends to.
struct Case {
    format: Format,
    of: Heads,
    query: Vec<f32>,
    states: Vec<Vec<f32>>,
}

impl Case {
    /// Creates a row for each number of tokens.
    fn new(format: Format, of: Heads, tokens: &[usize]) -> Self {
        let query = random(1, tokens.len() * of.heads * of.states_width);
        // Scores of a few units, whatever the width.
        let scale = 8.0 / (of.states_width as f32).sqrt();
        let query: Vec<f32> = query.iter().map(|x| x * scale).collect();
        let states = tokens
            .iter()
            .enumerate()
            .map(|(i, tokens)| rounded(format, &random(10 + i as u64, tokens * of.states_width)))
            .collect();
        Self { format, of, query: rounded(format, &query), states }
    }

    /// Returns the part of one row.
    fn row(&self, row: usize) -> Self {
        let width = self.of.heads * self.of.states_width;
        let query = self.query[row * width..(row + 1) * width].to_vec();
        Self { query, states: vec![self.states[row].clone()], ..*self }
    }

    fn run(&self, device: &HostDevice) -> Vec<f32> {
        let mut slots = Vec::new();
        let mut owned: Vec<Address> = Vec::new();
        for states in &self.states {
            let address = upload(device, self.format, states);
            owned.push(address);
            slots.extend(address.0.to_le_bytes());
            slots.extend(((states.len() / self.of.states_width) as u64).to_le_bytes());
        }
        let query = upload(device, self.format, &self.query);
        let out = room(device, self.format, self.query.len());
        let states = upload_bytes(device, &slots);
        folded::folded_attention(
            device,
            self.format,
            [query, states, out],
            self.states.len(),
            self.of,
        )
        .unwrap();
        let actual = download(device, self.format, out, self.query.len());
        owned.extend([query, out, states]);
        free(device, owned);
        actual
    }

    fn check(&self, device: &HostDevice) {
        let (width, tokens) = (self.of.states_width, self.states.iter().map(Vec::len));
        let what = (self.format, self.of, tokens.map(|length| length / width).collect::<Vec<_>>());
        let actual = in_every_order(device, &what, || bits(&self.run(device)));
        let actual: Vec<f32> = actual.into_iter().map(f32::from_bits).collect();
        for (i, query) in self.query.chunks(width).enumerate() {
            let (actual, states) = (&actual[i * width..][..width], &self.states[i / self.of.heads]);
            if states.is_empty() {
                assert!(actual.iter().all(|x| x.is_nan()), "{what:?}: padding was written");
                continue;
            }
            let scores: Vec<f64> = states
                .chunks(width)
                .map(|token| {
                    query.iter().zip(token).map(|(&q, &x)| f64::from(q) * f64::from(x)).sum()
                })
                .collect();
            let mut expected = vec![0.0; width];
            for (token, weight) in states.chunks(width).zip(softmax(&scores)) {
                expected.iter_mut().zip(token).for_each(|(sum, &x)| *sum += weight * f64::from(x));
            }
            let tolerance = match self.format {
                Format::F32 => 5e-6,
                Format::Bf16 | Format::F16 => 2.0 * unit(self.format),
            };
            assert_close(actual, &expected, tolerance, (&what, i));
        }
    }
}

#[test]
fn folded_attention_agrees_with_its_twin_at_every_edge_of_a_tile_and_of_a_part() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        let tokens = [0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 47, 49, 63, 64, 65, 100];
        Case::new(format, heads(3, 4, 24), &tokens).check(&device);
        Case::new(format, heads(20, 4, 15), &tokens).check(&device);
    }
}

#[test]
fn folded_attention_agrees_with_its_twin_for_all_dimensions() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        for of in DIMENSIONS {
            Case::new(format, of, &[33, 0]).check(&device);
        }
    }
}

#[test]
fn folded_attention_agrees_with_its_twin_at_the_size_of_blip() {
    let Some(device) = HostDevice::try_new() else { return };
    Case::new(Format::Bf16, heads(12, 64, 768), &[577]).check(&device);
}

#[test]
fn large_scores_do_not_overflow() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        let mut case = Case::new(format, heads(2, 4, 16), &[70, 300]);
        case.query.iter_mut().for_each(|x| *x = round(format, *x * 300.0));
        let actual = case.run(&device);
        assert!(actual.iter().all(|x| x.is_finite()), "{format:?}: {actual:?}");
    }
}

#[test]
fn folded_attention_of_a_row_does_not_depend_on_its_batch() {
    for device in devices() {
        for format in FORMATS {
            for of in [heads(2, 4, 8), heads(20, 4, 16)] {
                // More rows than the scratch memory of the kernels holds.
                let tokens: Vec<usize> = (0..70).map(|i| i * 37 % 90).collect();
                let together = Case::new(format, of, &tokens);
                let all = together.run(&device);
                let width = of.heads * of.states_width;
                for row in [1, 2, 31, 32, 63, 64, 69] {
                    let alone = together.row(row).run(&device);
                    assert_eq!(
                        bits(&alone),
                        bits(&all[row * width..(row + 1) * width]),
                        "{format:?} row {row}"
                    );
                }
            }
        }
    }
}

#[test]
fn states_that_are_too_wide_are_refused() {
    let Some(device) = HostDevice::try_new() else { return };
    let of = heads(1, 1, MAX_STATES_WIDTH + 1);
    let result = folded::folded_attention(&device, Format::F32, [Address::NULL; 3], 1, of);
    assert!(matches!(result, Err(DeviceError::Failed(_))), "{result:?}");
}
