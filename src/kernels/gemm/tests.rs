//! Compares every level and format with a slow reference: three loops over the same rounded operands, in f64.

use super::super::activation::Activation;
use super::super::context::KernelContext;
use super::super::isa::{Level, to_bf16};
use super::super::pointwise::{LayerNorm, layer_norm};
use super::super::testing::{assert_all_close, levels, values};
use super::{
    Epilogue, Format, PackedWeights, Shape, feed_forward, linear, linear_by_head, normed_linear,
};

/// Returns the values of a matrix row, rounded to the format.
fn rounded(format: Format, row: &[f32], is_weight: bool) -> Vec<f64> {
    match format {
        Format::F32 => row.iter().map(|&x| f64::from(x)).collect(),
        Format::Bf16 => row.iter().map(|&x| f64::from(f32::from_bits(to_bf16(x) << 16))).collect(),
        Format::Int8 if is_weight => {
            let scale = row.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
            let whole = |x: f32| if scale > 0.0 { (x / scale).round_ties_even() } else { 0.0 };
            row.iter().map(|&x| f64::from(whole(x)) * f64::from(scale)).collect()
        }
        Format::Int8 => {
            let low = row.iter().fold(0.0f32, |a, &b| a.min(b));
            let high = row.iter().fold(0.0f32, |a, &b| a.max(b));
            if high - low <= 0.0 {
                return vec![0.0; row.len()];
            }
            let (scale, inverse) = ((high - low) / 255.0, 255.0 / (high - low));
            let zero = (-low * inverse).round_ties_even();
            row.iter()
                .map(|&x| {
                    let byte = (x * inverse + zero).round_ties_even().clamp(0.0, 255.0);
                    f64::from(byte - zero) * f64::from(scale)
                })
                .collect()
        }
    }
}

/// Computes `x W^T + b` of the rounded operands. Returns, for each value of the result, a pair: the value itself, and
/// the sum of the magnitudes of its terms. Errors are measured relative to this sum.
fn reference(
    format: Format,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    k: usize,
) -> Vec<(f64, f64)> {
    let rows: Vec<_> = x.chunks(k).map(|row| rounded(format, row, false)).collect();
    let columns: Vec<_> = weight.chunks(k).map(|row| rounded(format, row, true)).collect();
    let mut out = Vec::new();
    for row in &rows {
        for (j, column) in columns.iter().enumerate() {
            let products = || row.iter().zip(column).map(|(a, b)| a * b);
            let bias = bias.map_or(0.0, |bias| f64::from(bias[j]));
            let magnitude = products().map(f64::abs).sum::<f64>() + bias.abs();
            out.push((products().sum::<f64>() + bias, magnitude));
        }
    }
    out
}

/// Returns the accepted relative error of a sum of k f32 products. In any order of addition, the error is at most k/2
/// times `f32::EPSILON`; for a chain of additions, it is closer to sqrt(k) times `f32::EPSILON`.
fn tolerance(k: usize) -> f64 {
    f64::from(f32::EPSILON) * (4.0 + (k as f64).sqrt())
}

fn check(level: Level, format: Format, m: usize, n: usize, k: usize) -> Result<(), String> {
    check_on(&mut KernelContext::new(level, 2), format, [m, n, k])
}

fn check_on(
    context: &mut KernelContext,
    format: Format,
    [m, n, k]: [usize; 3],
) -> Result<(), String> {
    let (x, weight) = (values(m * k, 1), values(n * k, 2));
    let bias = (n % 2 == 1).then(|| values(n, 3));
    let weights = PackedWeights::pack(context, format, &weight, bias.as_deref(), n);
    let mut out = vec![f32::NAN; m * n];
    linear(context, &x, &weights, Epilogue::None, &mut out);
    let expected = reference(format, &x, &weight, bias.as_deref(), k);
    let level = context.level();
    assert_all_close(&format!("{level} {format:?} {m}x{n}x{k}"), &out, &expected, tolerance(k))
}

const FORMATS: [Format; 3] = [Format::F32, Format::Bf16, Format::Int8];

#[test]
fn every_level_and_format_equals_the_slow_twin_around_the_edges_of_tiles_and_blocks() {
    let mut failures = Vec::new();
    for level in levels() {
        let Shape { rows, columns, .. } = Shape::of(level);
        for format in FORMATS {
            for m in [0, 1, 2, rows - 1, rows, rows + 1, 2 * rows + 3] {
                for n in [1, columns - 1, columns, columns + 1] {
                    for k in [1, 3, 16, 31, 33, 64, 65] {
                        failures.extend(check(level, format, m, n, k).err());
                    }
                }
            }
            // Values of `k` close to a whole number of blocks. A block has 192 groups (128 on the matrix unit) of 1, 2
            // or 4 values.
            for k in [191, 192, 193, 255, 257, 385, 511, 513, 767, 768, 769] {
                failures.extend(check(level, format, rows + 2, columns + 1, k).err());
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_norm_and_a_packed_inner_result_change_no_bit_of_a_feed_forward_block() {
    let width = 33;
    let (weight, bias) = (values(width, 7), values(width, 8));
    let norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-5 };
    for level in levels() {
        let Shape { rows: tile, columns, .. } = Shape::of(level);
        for format in FORMATS {
            // Its scratch memory keeps what earlier blocks have left there.
            let mut context = KernelContext::new(level, 2);
            for inner in [400, 1, columns - 1, columns, 3 * columns + 5] {
                let layer = |context: &mut KernelContext, n: usize, k: usize, seed| {
                    let bias = values(n, seed + 1);
                    PackedWeights::pack(context, format, &values(n * k, seed), Some(&bias), n)
                };
                let first = layer(&mut context, inner, width, 1);
                let second = layer(&mut context, width, inner, 3);
                for rows in [1, tile - 1, tile, 2 * tile + 3] {
                    let x = values(rows * width, 5);
                    let what = format!("{level} {format:?} {rows} rows, {inner} inside");
                    let context = &mut context;
                    let mut normed = vec![f32::NAN; rows * width];
                    layer_norm(context, &x, norm, &mut normed);
                    let gelu = Epilogue::Activation(Activation::Gelu);
                    let (mut apart, mut fused) =
                        (vec![f32::NAN; rows * inner], vec![f32::NAN; rows * inner]);
                    linear(context, &normed, &first, gelu, &mut apart);
                    normed_linear(context, &x, Some(norm), &first, gelu, &mut fused);
                    assert_eq!(bits(&apart), bits(&fused), "{what}");
                    if format == Format::Int8 {
                        continue;
                    }
                    let (mut expected, mut actual) =
                        (vec![f32::NAN; rows * width], vec![f32::NAN; rows * width]);
                    linear(context, &apart, &second, Epilogue::Residual(&x), &mut expected);
                    feed_forward(context, &x, Some(norm), [&first, &second], &x, &mut actual);
                    assert_eq!(bits(&expected), bits(&actual), "{what}");
                }
            }
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Checks the products of the base, large and demo models. Where the slow reference would take too long, the products
/// have fewer rows and columns, but still more than one row block and more than one block of panels.
#[test]
fn every_level_and_format_equals_the_slow_twin_on_the_shapes_of_the_models() {
    let mut failures = Vec::new();
    for level in levels() {
        let emulated = level.is_emulated();
        for format in FORMATS {
            let shapes: &[_] = if emulated {
                &[(33, 70, 768), (2, 40, 3072)]
            } else {
                &[
                    (577, 96, 768),
                    (40, 768, 768),
                    (30, 200, 3072),
                    (290, 64, 1024),
                    (20, 96, 4096),
                    (3, 3000, 192),
                    (145, 576, 192),
                    (1, 1030, 768),
                ]
            };
            for &(m, n, k) in shapes {
                failures.extend(check(level, format, m, n, k).err());
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_row_has_the_same_bits_alone_and_with_any_batch_neighbours_on_any_number_of_threads() {
    let (n, k, m) = (70, 200, 61);
    let (x, weight) = (values(m * k, 4), values(n * k, 5));
    for level in levels() {
        for format in FORMATS {
            let mut one = KernelContext::new(level, 1);
            let weights = PackedWeights::pack(&mut one, format, &weight, None, n);
            let run = |context: &mut KernelContext, rows: &[f32]| {
                let mut out = vec![0.0; rows.len() / k * n];
                linear(context, rows, &weights, Epilogue::Activation(Activation::Gelu), &mut out);
                out
            };
            let together = run(&mut KernelContext::new(level, 3), &x);
            // One context is used for products of many rows and for products of one row, so its buffers hold values of
            // earlier products.
            assert_eq!(run(&mut one, &x), together, "{level} {format:?}");
            for row in 0..m {
                let alone = run(&mut one, &x[row * k..][..k]);
                assert_eq!(alone, together[row * n..][..n], "{level} {format:?} row {row}");
            }
            let some = run(&mut KernelContext::new(level, 2), &x[7 * k..][..20 * k]);
            assert_eq!(some, together[7 * n..][..20 * n], "{level} {format:?}");
        }
    }
}

/// If the lowest and the highest value have equal magnitude, the highest is quantized to 255.5. This rounds to 256,
/// which must be clamped to 255.
#[test]
fn the_largest_value_of_an_8_bit_row_stays_the_largest() {
    for level in levels() {
        for (low, high) in [(-1.0f32, 1.0f32), (-2.284_194_7, 2.847_696_3), (-3.0, 0.5)] {
            let mut x = values(64, 17).iter().map(|x| x * 0.1).collect::<Vec<f32>>();
            (x[5], x[40]) = (low, high);
            let mut weight = vec![0.0f32; 2 * 64];
            (weight[5], weight[64 + 40]) = (1.0, 1.0);
            let mut context = KernelContext::new(level, 1);
            let weights = PackedWeights::pack(&mut context, Format::Int8, &weight, None, 2);
            let mut out = [0.0f32; 2];
            linear(&mut context, &x, &weights, Epilogue::None, &mut out);
            let step = (high - low) / 255.0;
            assert!(
                (out[0] - low).abs() <= step && (out[1] - high).abs() <= step,
                "{level} {out:?}"
            );
        }
    }
}

/// On a machine without a matrix unit, checks that the emulator runs. If it did not, the other tests would not cover
/// the code for the matrix unit.
#[test]
fn the_matrix_unit_multiplies_bf16_and_integers_but_not_f32() {
    for level in levels().into_iter().filter(|level| level.is_emulated()) {
        for (format, uses) in [(Format::F32, false), (Format::Bf16, true), (Format::Int8, true)] {
            let before = level.emulated_products();
            // Use only one thread, because the emulator counts the products of each thread separately.
            check_on(&mut KernelContext::new(level, 1), format, [40, 33, 100]).unwrap();
            assert_eq!(level.emulated_products() > before, uses, "{level} {format:?}");
        }
    }
}

#[test]
fn products_by_head_equal_each_heads_own() {
    for level in levels() {
        for format in FORMATS {
            for (rows, heads, n, k) in [(1, 3, 40, 64), (14, 2, 64, 33), (2, 12, 24, 8)] {
                let mut context = KernelContext::new(level, 2);
                let x = values(rows * heads * k, 15);
                let weights: Vec<PackedWeights> = (0..heads)
                    .map(|head| {
                        let (weight, bias) = (values(n * k, head as u64), values(n, 16));
                        PackedWeights::pack(&mut context, format, &weight, Some(&bias), n)
                    })
                    .collect();
                let mut out = vec![f32::NAN; rows * heads * n];
                linear_by_head(&mut context, &x, &weights, &mut out);
                for (head, weights) in weights.iter().enumerate() {
                    let own: Vec<f32> = x
                        .chunks(heads * k)
                        .flat_map(|row| &row[head * k..][..k])
                        .copied()
                        .collect();
                    let mut expected = vec![0.0; rows * n];
                    linear(&mut context, &own, weights, Epilogue::None, &mut expected);
                    let actual: Vec<f32> = out
                        .chunks(heads * n)
                        .flat_map(|row| &row[head * n..][..n])
                        .copied()
                        .collect();
                    assert_eq!(actual, expected, "{level} {format:?} head {head}");
                }
            }
        }
    }
}

#[test]
fn epilogues_are_what_they_are_called() {
    let (m, n, k) = (5, 39, 48);
    let (x, weight, bias) = (values(m * k, 6), values(n * k, 7), values(n, 8));
    let residual = values(m * n, 9);
    for level in levels() {
        let mut context = KernelContext::new(level, 2);
        let weights = PackedWeights::pack(&mut context, Format::F32, &weight, Some(&bias), n);
        let mut run = |epilogue| {
            let mut out = vec![0.0; m * n];
            linear(&mut context, &x, &weights, epilogue, &mut out);
            out
        };
        let plain = run(Epilogue::None);
        let pointwise = |f: &dyn Fn(f64) -> f64| -> Vec<(f64, f64)> {
            plain.iter().map(|&x| (f(f64::from(x)), f64::from(x).abs().max(1.0))).collect()
        };
        let gelu = |x: f64| x * (1.0 + super::super::testing::erf(x / 2.0f64.sqrt())) / 2.0;
        let close = |what: &str, actual: &[f32], expected: &[(f64, f64)]| {
            assert_all_close(&format!("{level} {what}"), actual, expected, 4e-7).unwrap();
        };
        close("gelu", &run(Epilogue::Activation(Activation::Gelu)), &pointwise(&gelu));
        close("tanh", &run(Epilogue::Activation(Activation::Tanh)), &pointwise(&f64::tanh));
        let sum: Vec<f32> = plain.iter().zip(&residual).map(|(a, b)| a + b).collect();
        assert_eq!(run(Epilogue::Residual(&residual)), sum, "{level} residual");
    }
}

#[test]
fn what_is_not_a_number_stays_so_and_spoils_no_other_row() {
    let (m, n, k) = (4, 40, 100);
    let weight = values(n * k, 10);
    for level in levels() {
        for format in FORMATS {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = values(m * k, 11);
                x[2 * k + 57] = bad;
                let mut context = KernelContext::new(level, 1);
                let weights = PackedWeights::pack(&mut context, format, &weight, None, n);
                let mut out = vec![0.0; m * n];
                linear(
                    &mut context,
                    &x,
                    &weights,
                    Epilogue::Activation(Activation::Gelu),
                    &mut out,
                );
                for (row, values) in out.chunks(n).enumerate() {
                    let finite = values.iter().filter(|x| x.is_finite()).count();
                    // GELU may turn an infinity into 0, but at least one value of that row must not be finite.
                    let expected = if row == 2 { finite < n } else { finite == n };
                    assert!(expected, "{level} {format:?} {bad} row {row}: {finite} finite");
                }
            }
        }
    }
}

#[test]
fn weights_of_zeros_and_rows_of_zeros_give_the_bias() {
    let (m, n, k) = (3, 33, 40);
    let bias = values(n, 12);
    for level in levels() {
        for format in FORMATS {
            for (x, weight) in
                [(vec![0.0; m * k], values(n * k, 13)), (values(m * k, 14), vec![0.0; n * k])]
            {
                let mut context = KernelContext::new(level, 1);
                let weights = PackedWeights::pack(&mut context, format, &weight, Some(&bias), n);
                let mut out = vec![f32::NAN; m * n];
                linear(&mut context, &x, &weights, Epilogue::None, &mut out);
                for row in out.chunks(n) {
                    assert_eq!(row, bias, "{level} {format:?}");
                }
            }
        }
    }
}
