//! Tests number formats with less precision than f32: results stay close to f32, and every model class that generates
//! text works.

use super::{CPU_F32, Reference, cuda, gpu, kernels, spec, tokens};
use crate::engine::backend::{Backend, GroupSpec, SinglePassOutput, SinglePassRow};
use crate::gpu::device::Format as GpuFormat;
use crate::kernels::gemm::Format;
use crate::kernels::isa::Level;
use crate::kernels::testing::levels;
use crate::model::ops::Ops;
use crate::model::{BlipBackend, Placement};
use crate::task::{Dtype, Embedding, GenerationParams, ModelId, Pooling, TowerId, VisionOutput};

fn placement(dtype: Dtype) -> Placement {
    Placement { dtype, ..CPU_F32 }
}

/// Returns the smallest cosine similarity, over all images, between the image embedding of the tiny retrieval model and
/// that of the reference.
fn least_cosine<O: Ops>(ops: O, dtype: Dtype) -> f32 {
    let reference = Reference::read("retrieval");
    let mut backend =
        BlipBackend::load(ops, &[spec("retrieval")], placement(dtype), |_| {}).unwrap();
    let mut least = 1.0f32;
    for photo in reference.names("vision") {
        let image = backend
            .encode(VisionOutput::last(TowerId(0)), &[&reference.pixels(&photo)])
            .unwrap()
            .remove(0);
        let output = backend
            .run_single_pass(
                ModelId(0),
                &[SinglePassRow::EmbedImage { image, pooling: Pooling::Projection }],
            )
            .unwrap();
        let SinglePassOutput::Embedding(actual) = &output[0] else { panic!("{output:?}") };
        let expected = Embedding::new(reference.tensor(&format!("image_embed.{photo}")));
        least = least.min(actual.normalized().unwrap().dot(&expected.normalized().unwrap()));
    }
    least
}

/// bf16 has 8 bits of mantissa, f16 has 11, and 8-bit integers have about 7, relative to the largest value of a row or
/// column. In the tiny model, the errors of the embeddings are about as large as the rounding errors of the format, so
/// the accepted cosine differs per format.
#[test]
fn every_format_stays_near_f32_at_every_level() {
    for (dtype, least) in [(Dtype::Bf16, 0.999), (Dtype::F16, 0.9999)] {
        let cosine = least_cosine(placement(dtype).candle_ops().unwrap(), dtype);
        assert!(cosine > least, "candle in {}: {cosine}", dtype.name());
    }
    let on_gpu = |format, dtype, least| {
        for ops in [gpu::on_host(format), cuda::on_cuda(format)].into_iter().flatten() {
            let cosine = least_cosine(ops, dtype);
            assert!(cosine > least, "the GPU kernels in {}: {cosine}", dtype.name());
        }
    };
    on_gpu(GpuFormat::Bf16, Dtype::Bf16, 0.999);
    on_gpu(GpuFormat::F16, Dtype::F16, 0.9999);
    for level in levels() {
        for (format, dtype, least) in
            [(Format::Bf16, Dtype::Bf16, 0.999), (Format::Int8, Dtype::Int8, 0.995)]
        {
            let cosine = least_cosine(kernels(level, format), dtype);
            assert!(cosine > least, "{level} in {}: {cosine}", dtype.name());
        }
    }
}

/// Generates a caption and an answer with greedy search, and checks that their log-probabilities are finite.
fn generates<O: Ops>(ops: impl Fn() -> O, dtype: Dtype) {
    for checkpoint in ["caption-talkative", "vqa-talkative"] {
        let reference = Reference::read(checkpoint);
        let mut backend =
            BlipBackend::load(ops(), &[spec(checkpoint)], placement(dtype), |_| {}).unwrap();
        let case = &reference.list("generation")[0];
        let pixels = reference.pixels(case["photo"].as_str().unwrap());
        let mut memory =
            backend.encode(VisionOutput::last(TowerId(0)), &[&pixels]).unwrap().remove(0);
        if !case["question_ids"].is_null() {
            let question = tokens(&case["question_ids"]);
            let row = SinglePassRow::EncodeQuestion {
                image: memory,
                question,
                is_only_text: true,
                explain: None,
            };
            let output = backend.run_single_pass(ModelId(0), &[row]).unwrap().remove(0);
            let SinglePassOutput::EncoderStates { states, .. } = output else {
                panic!("{output:?}")
            };
            memory = states;
        }
        let mut group = backend.open(GroupSpec {
            model: ModelId(0),
            states: memory,
            prompt: None,
            params: GenerationParams::greedy(20),
            sequence: 0,
            explain: None,
        });
        let finished = (0..20)
            .find_map(|_| backend.step(ModelId(0), &mut [&mut group]).unwrap().remove(0).finished);
        let tokens = finished.expect("twenty steps end every sequence").remove(0).tokens;
        assert!(!tokens.is_empty() && tokens.iter().all(|token| token.logprob.is_finite()));
    }
}

#[test]
fn every_class_generates_in_every_format() {
    for dtype in [Dtype::Bf16, Dtype::F16] {
        generates(|| placement(dtype).candle_ops().unwrap(), dtype);
    }
    for (format, dtype) in [(GpuFormat::Bf16, Dtype::Bf16), (GpuFormat::F16, Dtype::F16)] {
        if gpu::on_host(format).is_some() {
            generates(|| gpu::on_host(format).unwrap(), dtype);
        }
        if cuda::on_cuda(format).is_some() {
            generates(|| cuda::on_cuda(format).unwrap(), dtype);
        }
    }
    for (format, dtype) in [(Format::Bf16, Dtype::Bf16), (Format::Int8, Dtype::Int8)] {
        generates(|| kernels(Level::detect(), format), dtype);
    }
}
