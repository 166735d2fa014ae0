//! Tests that the profiler (`ops::timed`) gives the same answers as the operations that it wraps, and records where
//! time is spent.

use std::time::{Duration, Instant};

use super::{CPU_F32, Reference, kernels, spec};
use crate::engine::backend::{Backend, GroupSpec};
use crate::kernels::gemm::Format;
use crate::kernels::isa::Level;
use crate::model::BlipBackend;
use crate::model::ops::Ops;
use crate::model::ops::timed::{Timed, WorkKind};
use crate::task::{GenerationParams, ModelId, Sequence, TowerId, VisionOutput};

const CHECKPOINT: &str = "caption-talkative";

fn load<O: Ops>(ops: O) -> BlipBackend<O> {
    BlipBackend::load(ops, &[spec(CHECKPOINT)], CPU_F32, |_| {}).unwrap()
}

/// Returns greedy captions of two photographs.
fn captions<O: Ops>(backend: &mut BlipBackend<O>) -> Vec<Sequence> {
    let reference = Reference::read(CHECKPOINT);
    let cases = reference.list("generation").iter();
    let photos: Vec<&str> = cases.map(|case| case["photo"].as_str().unwrap()).take(2).collect();
    let pixels: Vec<_> = photos.iter().map(|photo| reference.pixels(photo)).collect();
    let pixels: Vec<_> = pixels.iter().collect();
    let open = |states| GroupSpec {
        model: ModelId(0),
        states,
        prompt: None,
        params: GenerationParams::greedy(12),
        sequence: 0,
        explain: None,
    };
    let memories = backend.encode(VisionOutput::last(TowerId(0)), &pixels).unwrap();
    let generate = |states| {
        let mut group = backend.open(open(states));
        let finished = (0..12)
            .find_map(|_| backend.step(ModelId(0), &mut [&mut group]).unwrap().remove(0).finished);
        finished.unwrap().remove(0)
    };
    memories.into_iter().map(generate).collect()
}

#[test]
fn timed_operations_answer_the_same_and_their_parts_add_up() {
    let ops = || kernels(Level::detect(), Format::F32);
    let plain = captions(&mut load(ops()));
    let timed = Timed::new(ops());
    let times = timed.times();
    let mut backend = load(timed);
    assert_eq!(captions(&mut backend), plain);
    assert_eq!(times.stop(), [], "nothing is recorded before it is asked for");

    times.start();
    let start = Instant::now();
    assert_eq!(captions(&mut backend), plain);
    let whole = start.elapsed();
    let parts = times.stop();
    assert!(parts.is_sorted_by(|(_, a), (_, b)| a.time >= b.time));
    let sum: Duration = parts.iter().map(|(_, spent)| spent.time).sum();
    assert!(!sum.is_zero() && sum <= whole, "{sum:?} of {whole:?}");
    let calls = |part| parts.iter().find(|(other, _)| *other == part).map(|(_, spent)| spent.calls);
    assert_eq!(calls(WorkKind::PatchEmbedding), Some(1));
    let steps: usize = plain.iter().map(|sequence| sequence.tokens.len()).sum();
    assert_eq!(calls(WorkKind::EmbedTokens), Some(steps));
    for part in [
        WorkKind::SelfAttention,
        WorkKind::CachedAttention,
        WorkKind::CrossAttention,
        WorkKind::Copies,
    ] {
        assert!(calls(part).is_some(), "{part} is not in {parts:?}");
    }
    assert_eq!(times.stop(), [], "what was read is gone");
}

#[test]
fn a_part_is_named_by_its_shape_and_many_rows() {
    let linear = |rows| WorkKind::Linear { input: 768, output: 3072, rows }.to_string();
    assert_eq!(linear(None), "linear 768x3072");
    assert_eq!(linear(Some(577)), "linear 768x3072 (577 rows)");
    let block = |rows| WorkKind::FeedForward { width: 768, inner: 3072, rows }.to_string();
    assert_eq!(block(None), "feed-forward 768x3072");
    assert_eq!(block(Some(577)), "feed-forward 768x3072 (577 rows)");
    assert_eq!(WorkKind::KeysAndValues.to_string(), "keys and values");
}
