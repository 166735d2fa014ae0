//! Operations on a GPU where their parts meet: caches that share pages, products of many rows, and models that do not fit
//! the kernels. The kernels run on the CPU (see `gpu`).

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{Device as CandleDevice, Tensor};

use super::gpu::on_host;
use crate::engine::backend::BackendError;
use crate::gpu::device::Format;
use crate::model::ops::gpu::{GpuActivations, GpuKvCache, GpuOps, GpuTable};
use crate::model::ops::{Activation, Epilogue, FeedForward, KvLifetime, Ops, PassKey};

const WIDTH: usize = 16;
const HEADS: usize = 2;

/// Number of different rows of queries, keys and values.
const ROWS: usize = 97;

fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0).collect()
}

fn tensor(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product();
    Tensor::from_vec(values(count, seed), shape, &CandleDevice::Cpu).unwrap()
}

/// Operations, and tables whose embeddings are rows of any content.
struct Rows {
    ops: GpuOps,
    contents: GpuTable,
    zeros: GpuTable,
}

impl Rows {
    /// Returns `None` if there is no C++ compiler.
    fn new() -> Option<Self> {
        let ops = on_host(Format::F32)?;
        ops.reserve_kv_caches(WIDTH).unwrap();
        let contents = ops.load_table(&tensor(&[ROWS, 3 * WIDTH], 3)).unwrap();
        let zeros = Tensor::zeros((1, 3 * WIDTH), candle_core::DType::F32, &CandleDevice::Cpu);
        let zeros = ops.load_table(&zeros.unwrap()).unwrap();
        Some(Self { ops, contents, zeros })
    }

    /// Returns the rows with these numbers, `[tokens, 3 x width]`.
    fn of(&self, tokens: &[u32]) -> GpuActivations {
        let tokens: Vec<(u32, u32)> = tokens.iter().map(|&token| (token, 0)).collect();
        self.ops.embed_tokens(&self.contents, &self.zeros, &tokens).unwrap()
    }

    /// Extends each cache by its tokens. Returns the results as bits, by sequence, and the caches.
    fn extend(
        &self,
        tokens: &[&[u32]],
        caches: &[Option<&GpuKvCache>],
    ) -> (Vec<Vec<u32>>, Vec<GpuKvCache>) {
        let lengths: Vec<usize> = tokens.iter().map(|tokens| tokens.len()).collect();
        let qkv = self.of(&tokens.concat());
        let (out, caches) = self.ops.cached_attention(&qkv, HEADS, &lengths, caches).unwrap();
        let mut rows = self.ops.to_host(&out).unwrap().into_iter();
        let of = |length| rows.by_ref().take(length).flatten().map(f32::to_bits).collect();
        (lengths.into_iter().map(of).collect(), caches)
    }

    /// Returns the result of the last token of a sequence, computed in one step.
    fn at_once(&self, tokens: &[u32]) -> Vec<u32> {
        let (results, _) = self.extend(&[tokens], &[None]);
        results[0][results[0].len() - WIDTH..].to_vec()
    }
}

/// Sequences are copied and continued as beams are: at random, from 1 to 40 tokens, so that they part within pages and
/// between them. Each step runs twice, as after a fault, the first time with other tokens.
#[test]
fn beams_that_share_pages_do_not_disturb_each_other() {
    let Some(rows) = Rows::new() else { return };
    let free = rows.ops.free_pages(WIDTH);
    let mut state = 1_u64;
    let mut random = |end: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040);
        (state >> 33) as usize % end
    };
    let start: Vec<u32> = (0..3).collect();
    let cache = rows.extend(&[&start], &[None]).1.remove(0);
    let mut beams = vec![(start, cache); 4];
    for step in 0..37 {
        let caches: Vec<_> = beams.iter().map(|(_, cache)| Some(cache)).collect();
        let drawn: Vec<[u32; 1]> = beams.iter().map(|_| [random(ROWS) as u32]).collect();
        let others = drawn.iter().map(|[token]| [(token + 1) % ROWS as u32]);
        let others: Vec<[u32; 1]> = others.collect();
        let [others, tokens] = [&others, &drawn]
            .map(|tokens| tokens.iter().map(<[u32; 1]>::as_slice).collect::<Vec<_>>());
        rows.extend(&others, &caches);
        let (results, extended) = rows.extend(&tokens, &caches);
        beams = beams
            .iter()
            .zip(tokens)
            .zip(extended)
            .map(|(((before, _), token), cache)| ([before.as_slice(), token].concat(), cache))
            .collect();
        if step % 4 == 0 || (11..=16).contains(&step) {
            for (index, (tokens, _)) in beams.iter().enumerate() {
                assert_eq!(results[index], rows.at_once(tokens), "step {step}, beam {index}");
            }
        }
        beams = (0..4).map(|_| beams[random(4)].clone()).collect();
    }
    drop(beams);
    assert_eq!(rows.ops.free_pages(WIDTH), free);
}

/// Passes with one key whose work differs in all ways: other weights, other numbers of rows, data that happens to be
/// equal, results that are kept, errors and panics.
#[test]
fn passes_with_one_key_compute_what_they_say() {
    let Some(rows) = Rows::new() else { return };
    let other = rows.ops.load_table(&tensor(&[ROWS, 3 * WIDTH], 8)).unwrap();
    let norm = rows.ops.load_layer_norm(&tensor(&[3 * WIDTH], 5), &tensor(&[3 * WIDTH], 6), 1e-5);
    let norm = norm.unwrap();
    let work = |table: &GpuTable, first: &[(u32, u32)], second: &[(u32, u32)]| {
        let first = rows.ops.embed_tokens(table, &rows.zeros, first)?;
        let second = rows.ops.embed_tokens(table, &rows.zeros, second)?;
        Ok([rows.ops.layer_norm(&first, &norm)?, rows.ops.layer_norm(&second, &norm)?])
    };
    let bits = |results: &[GpuActivations; 2]| -> Vec<u32> {
        let rows = results.iter().flat_map(|result| rows.ops.to_host(result).unwrap());
        rows.flatten().map(f32::to_bits).collect()
    };
    let pass = |run: &dyn Fn() -> Result<[GpuActivations; 2], BackendError>| {
        rows.ops.pass(PassKey::Decode { decoder: 7, rows: 9 }, run)
    };
    let mut kept = Vec::new();
    for number in 0..60_u32 {
        let tokens = |seed: u32| -> Vec<(u32, u32)> {
            (0..9).map(|row| ((row * 5 + seed) % ROWS as u32, 0)).collect()
        };
        let table = if number % 20 > 15 { &other } else { &rows.contents };
        let second = tokens(if number % 7 == 6 { number } else { number + 1 });
        let expected = bits(&work(table, &tokens(number), &second).unwrap());
        match number % 13 {
            11 => {
                let failed = pass(&|| {
                    work(table, &tokens(number), &second)?;
                    Err(BackendError::NonFinite("a test"))
                });
                assert!(matches!(failed, Err(BackendError::NonFinite(_))));
            }
            12 => {
                let run = || pass(&|| panic!("within a pass"));
                assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
            }
            _ => {}
        }
        let results = pass(&|| work(table, &tokens(number), &second)).unwrap();
        assert_eq!(bits(&results), expected, "pass {number}");
        if number % 10 == 9 {
            kept.push((results, expected));
        }
        if number % 30 > 15 {
            kept.truncate(1);
        }
    }
    assert!(rows.ops.replays() > 10, "{} passes were replayed", rows.ops.replays());
    for (results, expected) in &kept {
        assert_eq!(bits(results), *expected, "a result that was kept has changed");
    }
    assert!(!kept.is_empty());
}

#[test]
fn products_of_few_and_of_many_rows_agree() {
    let (n, k) = (24, 3 * WIDTH);
    for format in [Format::F32, Format::Bf16] {
        let Some(ops) = on_host(format) else { return };
        let table = ops.load_table(&tensor(&[ROWS, k], 3)).unwrap();
        let zeros = ops.load_table(&tensor(&[1, k], 9)).unwrap();
        let inner = ops.load_linear(&tensor(&[n, k], 4), Some(&tensor(&[n], 5))).unwrap();
        let outer = ops.load_linear(&tensor(&[k, n], 6), Some(&tensor(&[k], 7))).unwrap();
        let compute = |rows: usize| {
            let tokens: Vec<_> = (0..rows).map(|row| ((row % ROWS) as u32, 0)).collect();
            let x = ops.embed_tokens(&table, &zeros, &tokens).unwrap();
            let activation = Activation::Gelu;
            let results = [
                ops.linear(&x, &inner, Epilogue::Activation(activation)).unwrap(),
                ops.feed_forward(
                    &x,
                    None,
                    FeedForward { inner: &inner, activation, outer: &outer },
                )
                .unwrap(),
            ];
            results.map(|result| {
                let rows = ops.to_host(&result).unwrap();
                rows[..ROWS].concat()
            })
        };
        let tolerance = if format == Format::F32 { 1e-5 } else { 2e-2 };
        for (few, many) in compute(1024).iter().zip(&compute(1025)) {
            super::assert_close(&format!("{format:?}"), many, few, tolerance);
        }
    }
}

#[test]
fn models_that_do_not_fit_the_kernels_are_refused_when_they_are_loaded() {
    let Some(ops) = on_host(Format::F32) else { return };
    let load = |width: usize, heads: usize, states: usize| {
        let (weight, bias) = (tensor(&[2 * width, states], 1), tensor(&[2 * width], 2));
        ops.load_key_value(&weight, &bias, heads, KvLifetime::Transient).map(drop)
    };
    load(16, 2, 1024).unwrap();
    load(128, 1, 16).unwrap();
    for (case, expected) in [
        ((16, 2, 1025), "cross-attention to states of 1025 values"),
        ((129, 1, 16), "attention heads of 129 values"),
        ((1025, 1025, 16), "1025 attention heads"),
    ] {
        let error = load(case.0, case.1, case.2).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    ops.check_heads(768, 12).unwrap();
    assert!(ops.check_heads(768, 4).is_err());
}

#[test]
fn tokens_without_an_embedding_are_an_error() {
    let Some(rows) = Rows::new() else { return };
    for tokens in [[(ROWS as u32, 0)], [(0, 1)], [(u32::MAX, u32::MAX)]] {
        let error = rows.ops.embed_tokens(&rows.contents, &rows.zeros, &tokens).unwrap_err();
        assert!(error.to_string().contains("has no embedding"), "{error}");
    }
}
