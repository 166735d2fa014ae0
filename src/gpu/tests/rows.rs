//! Kernels that read and write rows.

use super::scripted::ScriptedDevice;
use super::support::*;
use crate::gpu::device::{Address, Device, Format};
use crate::gpu::host::HostDevice;
use crate::gpu::kernels::attention::{self, Attention};
use crate::gpu::kernels::rows::{
    self, Activation, EmbedPatches, EmbedTokens, Gather, LayerNorm, Patchify,
};

const ACTIVATIONS: [Activation; 7] = [
    Activation::Identity,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Relu,
    Activation::Silu,
    Activation::Tanh,
];

pub(super) fn activation(of: Activation, x: f64) -> f64 {
    match of {
        Activation::Identity => x,
        Activation::Gelu => x * (1.0 + erf(x / 2_f64.sqrt())) / 2.0,
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            x * (1.0 + inner.tanh()) / 2.0
        }
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
    }
}

#[test]
fn patches_hold_the_normalised_pixels_of_their_square() {
    let Some(device) = HostDevice::try_new() else { return };
    let table = random(1, 3 * 256);
    // The last size is that of BLIP.
    for (images, height, width, patch) in
        [(1, 2, 2, 1), (2, 8, 12, 4), (1, 36, 18, 9), (1, 384, 384, 16)]
    {
        let mut numbers = Numbers::new(2);
        let pixels: Vec<u8> =
            (0..images * height * width * 3).map(|_| numbers.bits() as u8).collect();
        let (across, area) = (width / patch, patch * patch);
        let mut expected = vec![0.0; pixels.len()];
        for (i, &pixel) in pixels.iter().enumerate() {
            let (channel, x, y, image) =
                (i % 3, i / 3 % width, i / 3 / width % height, i / 3 / width / height);
            let row = (image * (height / patch) + y / patch) * across + x / patch;
            expected[row * 3 * area + channel * area + y % patch * patch + x % patch] =
                table[channel * 256 + usize::from(pixel)];
        }
        let addresses = (upload_bytes(&device, &pixels), upload(&device, Format::F32, &table));
        for format in FORMATS {
            let actual = in_every_order(&device, (height, patch), || {
                let out = room(&device, format, expected.len());
                let of = Patchify {
                    pixels: addresses.0,
                    table: addresses.1,
                    out,
                    images,
                    height,
                    width,
                    patch,
                };
                rows::patchify(&device, format, of).unwrap();
                let actual = download(&device, format, out, expected.len());
                device.free(out);
                actual
            });
            assert_eq!(actual, rounded(format, &expected), "{format:?}, patches of {patch}");
        }
    }
}

#[test]
fn class_token_comes_before_the_patches_of_each_image() {
    let Some(device) = HostDevice::try_new() else { return };
    for (images, tokens, width) in [(1, 2, 1), (3, 5, 257), (1, 577, 768)] {
        let patches = random(1, images * (tokens - 1) * width);
        let (class, positions) = (random(2, width), random(3, tokens * width));
        let mut expected = Vec::new();
        for image in 0..images {
            for token in 0..tokens {
                for i in 0..width {
                    let value = match token {
                        0 => class[i],
                        _ => patches[(image * (tokens - 1) + token - 1) * width + i],
                    };
                    expected.push(value + positions[token * width + i]);
                }
            }
        }
        let out = room(&device, Format::F32, expected.len());
        let of = EmbedPatches {
            patches: upload(&device, Format::F32, &patches),
            class: upload(&device, Format::F32, &class),
            positions: upload(&device, Format::F32, &positions),
            out,
            images,
            tokens,
            width,
        };
        rows::embed_patches(&device, of).unwrap();
        assert_eq!(download(&device, Format::F32, out, expected.len()), expected);
    }
}

#[test]
fn embeddings_are_those_of_the_token_and_of_its_position() {
    let Some(device) = HostDevice::try_new() else { return };
    let tokens = [[3, 0], [0, 4], [6, 2], [3, 1]];
    for width in [1, 255, 256, 257] {
        let (words, positions) = (random(1, 7 * width), random(2, 5 * width));
        let out = room(&device, Format::F32, 4 * width);
        let of = EmbedTokens {
            words: upload(&device, Format::F32, &words),
            positions: upload(&device, Format::F32, &positions),
            tokens: upload_ints(&device, tokens.as_flattened()),
            out,
            rows: 4,
            width,
        };
        rows::embed_tokens(&device, of).unwrap();
        let expected: Vec<f32> = tokens
            .iter()
            .flat_map(|&[id, position]| {
                let (word, position) = (id as usize * width, position as usize * width);
                let (words, positions) = (&words, &positions);
                (0..width).map(move |i| words[word + i] + positions[position + i])
            })
            .collect();
        assert_eq!(download(&device, Format::F32, out, 4 * width), expected);
    }
}

/// Runs a layer norm. Returns the wide and the narrow result.
fn layer_norm(
    device: &HostDevice,
    format: Format,
    x: &[f32],
    width: usize,
) -> (Vec<f32>, Vec<f32>) {
    let (wide, narrow) = (room(device, Format::F32, x.len()), room(device, format, x.len()));
    let of = LayerNorm {
        x: upload(device, Format::F32, x),
        weight: upload(device, Format::F32, &random(20, width)),
        bias: upload(device, Format::F32, &random(21, width)),
        wide: Some(wide),
        narrow: Some(narrow),
        rows: x.len() / width,
        width,
        eps: 1e-5,
    };
    rows::layer_norm(device, format, of).unwrap();
    (download(device, Format::F32, wide, x.len()), download(device, format, narrow, x.len()))
}

#[test]
fn layer_norm_agrees_with_its_twin() {
    let Some(device) = HostDevice::try_new() else { return };
    for width in [1, 31, 32, 33, 255, 256, 257, 768, 1024] {
        // A mean far from zero: the variance must not be a difference of large sums.
        let x: Vec<f32> = random(width as u64, 3 * width).iter().map(|x| x + 30.0).collect();
        let (weight, bias) = (random(20, width), random(21, width));
        let expected: Vec<f64> = x
            .chunks(width)
            .flat_map(|row| {
                let row: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
                let mean = row.iter().sum::<f64>() / width as f64;
                let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                let deviation = (variance + 1e-5).sqrt();
                let scaled = row.iter().zip(&weight).zip(&bias);
                scaled
                    .map(|((x, &weight), &bias)| {
                        (x - mean) / deviation * f64::from(weight) + f64::from(bias)
                    })
                    .collect::<Vec<f64>>()
            })
            .collect();
        for format in FORMATS {
            let (wide, narrow) =
                in_every_order(&device, width, || layer_norm(&device, format, &x, width));
            assert_close(&wide, &expected, 2e-5, (format, width));
            assert_eq!(narrow, rounded(format, &wide), "{format:?}, {width} values");
        }
    }
}

#[test]
fn layer_norm_of_a_row_does_not_depend_on_other_rows_or_on_where_it_is_written() {
    for device in devices() {
        let width = 300;
        let x = random(5, 4 * width);
        let (together, _) = layer_norm(&device, Format::Bf16, &x, width);
        let (alone, _) = layer_norm(&device, Format::Bf16, &x[2 * width..3 * width], width);
        assert_eq!(bits(&alone), bits(&together[2 * width..3 * width]));
        let address = upload(&device, Format::F32, &x);
        let of = LayerNorm {
            x: address,
            weight: upload(&device, Format::F32, &random(20, width)),
            bias: upload(&device, Format::F32, &random(21, width)),
            wide: Some(address),
            narrow: None,
            rows: 4,
            width,
            eps: 1e-5,
        };
        rows::layer_norm(&device, Format::Bf16, of).unwrap();
        assert_eq!(bits(&download(&device, Format::F32, address, x.len())), bits(&together));
    }
}

#[test]
fn activations_agree_with_their_twins() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        for count in [0, 1, 7, 8, 9, 2047, 2048, 2049] {
            let x: Vec<f32> = random(count as u64, count).iter().map(|x| x * 6.0).collect();
            for of in ACTIVATIONS {
                let address = upload(&device, format, &x);
                rows::activate(&device, format, address, count, of).unwrap();
                let inputs = rounded(format, &x);
                let expected: Vec<f64> =
                    inputs.iter().map(|&x| activation(of, f64::from(x))).collect();
                let actual = download(&device, format, address, count);
                assert_close(&actual, &expected, unit(format) + 4e-7, (format, of, count));
            }
        }
    }
}

#[test]
fn activations_of_unaligned_values_leave_their_neighbours_alone() {
    let Some(device) = HostDevice::try_new() else { return };
    let x = random(1, 20);
    for format in FORMATS {
        let address = upload(&device, format, &x);
        rows::activate(&device, format, address.offset(format.bytes()), 18, Activation::Relu)
            .unwrap();
        let mut expected = rounded(format, &x);
        expected[1..19].iter_mut().for_each(|x| *x = x.max(0.0));
        assert_eq!(download(&device, format, address, 20), expected);
    }
}

#[test]
fn narrow_values_become_wide_exactly() {
    let Some(device) = HostDevice::try_new() else { return };
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for format in [Format::Bf16, Format::F16] {
        let (from, to) = (upload_bytes(&device, &all), room(&device, Format::F32, 1 << 16));
        rows::widen(&device, format, from, to, 1 << 16).unwrap();
        for (bits, actual) in (0..=u16::MAX).zip(download(&device, Format::F32, to, 1 << 16)) {
            let expected = from_bits(format, bits);
            assert!(
                actual.to_bits() == expected.to_bits() || actual.is_nan() && expected.is_nan(),
                "{format:?}: {bits:#x} became {actual}, not {expected}"
            );
        }
    }
}

#[test]
fn wide_values_are_rounded_to_the_nearest_ties_to_even() {
    let Some(device) = HostDevice::try_new() else { return };
    let mut numbers = Numbers::new(1);
    let mut values: Vec<f32> =
        vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 65504.0, 65519.99, 65520.0];
    // Values around the smallest of f16, and half of it.
    values.extend([
        5.96e-8,
        2_f32.powi(-24),
        2_f32.powi(-25),
        2.99e-8,
        6.1e-5,
        6.097e-5,
        1e-30,
        1e-40,
    ]);
    // Ties of both formats, and their neighbours.
    for tie in [
        1.0 + 2_f32.powi(-8),
        1.0 + 3.0 * 2_f32.powi(-8),
        1.0 + 2_f32.powi(-11),
        1.0 + 3.0 * 2_f32.powi(-11),
    ] {
        values.extend([tie, -tie, tie.next_up(), tie.next_down()]);
    }
    values.extend((0..3000).map(|_| f32::from_bits(numbers.bits())).filter(|x| !x.is_nan()));
    values.extend((0..1000).map(|_| numbers.value() * 2_f32.powi(-12)));
    for format in FORMATS {
        let from = upload(&device, Format::F32, &values);
        let to = room(&device, format, values.len());
        rows::narrow(&device, format, from, to, values.len()).unwrap();
        let actual = download(&device, format, to, values.len());
        for ((&value, actual), expected) in values.iter().zip(actual).zip(rounded(format, &values))
        {
            assert_eq!(
                actual.to_bits(),
                expected.to_bits(),
                "{format:?}: {value} became {actual}, not {expected}"
            );
        }
    }
}

#[test]
fn rows_are_gathered_by_index() {
    let Some(device) = HostDevice::try_new() else { return };
    let indices = [4, 0, 0, 2];
    for row_bytes in [2, 6, 16, 18, 510, 512, 514, 4096, 4112] {
        let from: Vec<u8> = (0..5 * row_bytes).map(|i| (i * 7 + i / 256) as u8).collect();
        let to = device.allocate(4 * row_bytes).unwrap();
        let of = Gather {
            from: upload_bytes(&device, &from),
            indices: upload_ints(&device, &indices),
            to,
            rows: 4,
            row_bytes,
        };
        rows::gather(&device, of).unwrap();
        let mut actual = vec![0; 4 * row_bytes];
        device.download(to, &mut actual).unwrap();
        let expected: Vec<u8> = indices
            .iter()
            .flat_map(|&row| from[row as usize * row_bytes..][..row_bytes].to_vec())
            .collect();
        assert!(actual == expected, "rows of {row_bytes} bytes");
    }
}

/// Sizes that do not fit into the kernels' 32-bit integers, or into a grid, must not be cut off.
#[test]
fn sizes_that_are_too_large_are_errors() {
    let device = ScriptedDevice::default();
    let [from, to] = [Address(1), Address(2)];
    let attention = |sequence_count, kv_stride| Attention {
        query: from,
        key: from,
        value: from,
        out: to,
        query_stride: 64,
        kv_stride,
        sequences: from,
        sequence_count,
        most_queries: 1,
        heads: 1,
        head_width: 64,
        causal: false,
    };
    for (result, expected) in [
        (rows::widen(&device, Format::Bf16, from, to, 1 << 31), "argument 2147483648"),
        (rows::narrow(&device, Format::Bf16, from, to, i32::MAX as usize), "argument 2147483647"),
        (attention::attention(&device, Format::F32, attention(65_536, 64)), "grid [1, 1, 65536]"),
        (
            attention::attention(&device, Format::F32, attention(0, 1 << 40)),
            "argument 1099511627776",
        ),
    ] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected) && error.ends_with("is too large"), "{error}");
    }
    assert!(device.take_calls().is_empty());
}
