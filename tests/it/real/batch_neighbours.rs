//! Same bytes, same answer, alone or in any batch: requests of all endpoints mixed on real models, each answer
//! held against its lone one, and proof that they really shared steps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blip_server::engine::{Answered, Engine, EngineContext, EngineSettings};
use blip_server::fairness::ClientId;
use blip_server::input::{InputSettings, Tokenizer};
use blip_server::kernels::gemm::Format;
use blip_server::kernels::isa::Level;
use blip_server::model::load::{ModelFiles, WeightFiles};
use blip_server::model::ops::cpu::CpuOps;
use blip_server::model::{BlipBackend, ModelSpec, Placement};
use blip_server::task::{
    Caption, Cutoffs, DecodeMode, Decoded, Device, Dtype, EarlyStopping, Embed, EmbedOutput,
    EmbedSubject, Explain, ExponentialDecay, GenerationParams, ImageFormat, ImageId, ImageInfo,
    ModelId, ModelInfo, PatchWeights, Pixels, Pooling, PreparedImage, Scope, Scores, Sequence,
    Similarity, StopStrings, Strategy, Task, TaskOutput, Vqa,
};
use blip_server::telemetry::metrics::Metrics;

use super::{PHOTOS, fixtures};

/// f32 scores with batch neighbours may differ from lone ones by rounding.
const ROUNDING: f32 = 1e-5;
const CAPTION: ModelId = ModelId(0);
const VQA: ModelId = ModelId(1);
const RETRIEVAL: ModelId = ModelId(2);

fn backend(format: Format, dtype: Dtype) -> BlipBackend<CpuOps> {
    let spec = |name: &str| {
        let directory = fixtures().join(name);
        let weights = match name {
            "caption-varied" | "retrieval" => {
                WeightFiles::Safetensors(vec![directory.join("model.safetensors").into()])
            }
            _ => WeightFiles::Pickle(vec![directory.join("pytorch_model.bin")]),
        };
        let preprocessor = ["preprocessor_config.json", "processor_config.json"]
            .map(|file| directory.join(file))
            .into_iter()
            .find(|path| path.exists())
            .map(Into::into);
        let config = directory.join("config.json").into();
        let files = ModelFiles { config, preprocessor, weights };
        ModelSpec {
            name: name.to_owned(),
            source: name.to_owned(),
            revision: None,
            demo: false,
            files,
            image_size: None,
        }
    };
    let specs = ["caption-varied", "vqa-varied", "retrieval"].map(spec);
    let placement = Placement { device: Device::Cpu, dtype };
    let ops = CpuOps::try_new(Level::detect(), format, 2).unwrap();
    BlipBackend::load(ops, &specs, placement, |_| {}).unwrap()
}

/// A photo at a model's input size. The pictures themselves do not matter here, only that they differ.
fn prepared(info: &ModelInfo, index: usize) -> PreparedImage {
    let (width, height) =
        (info.vision_tower().preprocessing.width, info.vision_tower().preprocessing.height);
    let bytes: Vec<u8> = (0..width as usize * height as usize * 3)
        .map(|i| ((i * (index + 3) + i / 97 * 31) % 251) as u8)
        .collect();
    let mut digest = [0; 32];
    digest[0] = index as u8;
    PreparedImage {
        info: ImageInfo {
            id: ImageId::from_digest(digest),
            width,
            height,
            format: ImageFormat::Png,
        },
        scope: Scope::EVERYONE,
        preprocessing: info.vision_tower().preprocessing,
        pixels: Arc::new(Pixels::new(width, height, bytes)),
    }
}

fn beams(num_beams: usize) -> GenerationParams {
    let strategy = Strategy::Beams {
        num_beams,
        num_return_sequences: 2,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::Heuristic,
        renormalize_logits: num_beams > 4,
    };
    GenerationParams { strategy, ..GenerationParams::greedy(16) }
}

/// Every kind of work: prompts of several lengths, greedy, beams, samples, questions, candidates, pairs, embeddings.
fn tasks(models: &[ModelInfo], tokenizer: &Tokenizer) -> Vec<(ModelId, Task)> {
    let ids = |text: &str| tokenizer.encode(text).unwrap();
    let word = |text: &str| -> Box<[u32]> {
        let ids = ids(text);
        ids.as_slice()[1..ids.len() - 1].into()
    };
    let stop_strings: [Arc<str>; 2] = ["ing".into(), "o".into()];
    let words = GenerationParams {
        bad_words: Some([word("the"), word("man and")].into()),
        exponential_decay_length_penalty: Some(ExponentialDecay { start: 3, factor: 1.2 }),
        stop_strings: Some(StopStrings::new(stop_strings.into(), tokenizer.token_texts())),
        ..GenerationParams::greedy(12)
    };
    let sample = |seed, cutoffs| GenerationParams {
        strategy: Strategy::Sample {
            seed,
            num_return_sequences: 2,
            temperature: 1.0,
            top_k: 50,
            top_p: 0.9,
            cutoffs,
        },
        ..GenerationParams::greedy(12)
    };
    let params = [
        GenerationParams::greedy(20),
        beams(3),
        sample(7, Cutoffs::default()),
        sample(8, Cutoffs { min_p: 0.01, typical_p: 0.9, epsilon_cutoff: 1e-4, eta_cutoff: 1e-3 }),
        GenerationParams { repetition_penalty: 1.3, ..GenerationParams::greedy(9) },
        beams(5),
        GenerationParams { strategy: beams(3).strategy, ..words.clone() },
        words,
    ];
    let prompts = [None, Some(ids("a picture of")), Some(ids("the man and the woman in the"))];
    let mut tasks = Vec::new();
    for index in 0..PHOTOS.len() {
        let image = |model: ModelId| prepared(&models[model.0], index);
        let vqa = |questions, mode| {
            let explain = Some(Explain([0, 2].into()));
            Task::Vqa(Vqa { image: image(VQA), questions, mode, explain })
        };
        for (round, params) in params.iter().enumerate() {
            let prompt = prompts[(round + index) % prompts.len()].clone();
            let mode = DecodeMode::Generate(params.clone());
            let caption = Caption { image: image(CAPTION), prompt, mode, explain: explain(round) };
            tasks.push((CAPTION, Task::Caption(caption)));
            let questions = vec![ids("what is this ?"), ids("how many men are in the city ?")];
            tasks.push((VQA, vqa(questions, DecodeMode::Generate(params.clone()))));
        }
        let mode = DecodeMode::Rank(vec![ids("a man"), ids("two"), ids("in the city")]);
        let caption =
            Caption { image: image(CAPTION), prompt: None, mode: mode.clone(), explain: None };
        tasks.push((CAPTION, Task::Caption(caption)));
        let questions = vec![ids("where is it ?")];
        tasks.push((VQA, vqa(questions, mode)));
        let texts = vec![ids("a man"), ids("the woman in the city")];
        let images =
            vec![image(RETRIEVAL), prepared(&models[RETRIEVAL.0], (index + 1) % PHOTOS.len())];
        let scores = Scores { matching: true, match_logits: true, cosine: true };
        tasks.push((RETRIEVAL, Task::Similarity(Similarity { images, texts, scores })));
        for model in [CAPTION, VQA, RETRIEVAL] {
            for output in outputs(model) {
                let subject = EmbedSubject::Image(image(model));
                tasks.push((model, Task::Embed(Embed { subject, output })));
                if model != CAPTION {
                    let subject = EmbedSubject::Multimodal(image(model), ids("a man"));
                    tasks.push((model, Task::Embed(Embed { subject, output })));
                }
            }
        }
    }
    for output in outputs(RETRIEVAL) {
        let subject = EmbedSubject::Text(ids("the city"));
        tasks.push((RETRIEVAL, Task::Embed(Embed { subject, output })));
    }
    tasks
}

/// Explains the greedy search of the first round, which has one row.
fn explain(round: usize) -> Option<Explain> {
    (round == 0).then(|| Explain([0, 1].into()))
}

/// Hidden states of several layers and, for the retrieval model, projections.
fn outputs(model: ModelId) -> Vec<EmbedOutput> {
    let pooled = [Pooling::Cls, Pooling::Mean, Pooling::None];
    let mut outputs: Vec<EmbedOutput> = pooled
        .into_iter()
        .flat_map(|pooling| [None, Some(0), Some(1)].map(|layer| EmbedOutput { pooling, layer }))
        .collect();
    if model == RETRIEVAL {
        outputs.push(EmbedOutput::PROJECTION);
    }
    outputs
}

fn assert_same(what: &str, together: &TaskOutput, alone: &TaskOutput) {
    let close = |a: f32, b: f32| {
        assert!(
            (a - b).abs() <= ROUNDING * b.abs().max(1.0),
            "{what}: {a} with batch neighbours, {b} alone"
        );
    };
    let same_attention = |a: Option<&Vec<PatchWeights>>, b: Option<&Vec<PatchWeights>>| {
        assert_eq!(a.is_some(), b.is_some(), "{what}");
        let flat = |maps: Option<&Vec<PatchWeights>>| {
            maps.into_iter().flatten().flatten().copied().collect::<Vec<f32>>()
        };
        flat(a).into_iter().zip(flat(b)).for_each(|(a, b)| close(a, b));
    };
    let same_sequences = |a: &[Sequence], b: &[Sequence]| {
        assert_eq!(a.len(), b.len(), "{what}");
        for (a, b) in a.iter().zip(b) {
            assert_eq!(a.finish_reason, b.finish_reason, "{what}");
            assert_eq!(a.text_ids(), b.text_ids(), "{what}");
            same_attention(a.attention.as_ref(), b.attention.as_ref());
            for (a, b) in a.tokens.iter().zip(&b.tokens) {
                close(a.logprob, b.logprob);
            }
        }
    };
    let same_decoded = |a: &Decoded, b: &Decoded| match (a, b) {
        (Decoded::Generated(a), Decoded::Generated(b)) => same_sequences(a, b),
        (Decoded::Ranked(a), Decoded::Ranked(b)) => {
            assert_eq!(a.len(), b.len(), "{what}");
            for (a, b) in
                a.iter().flat_map(|text| &text.tokens).zip(b.iter().flat_map(|text| &text.tokens))
            {
                assert_eq!(a.id, b.id, "{what}");
                close(a.logprob, b.logprob);
            }
        }
        answers => panic!("{what}: {answers:?}"),
    };
    match (together, alone) {
        (TaskOutput::Caption(a), TaskOutput::Caption(b)) => same_decoded(a, b),
        (TaskOutput::Vqa(a), TaskOutput::Vqa(b)) => {
            assert_eq!(a.len(), b.len(), "{what}");
            for (a, b) in a.iter().zip(b) {
                same_decoded(&a.decoded, &b.decoded);
                same_attention(a.attention.as_ref(), b.attention.as_ref());
            }
        }
        (TaskOutput::Similarity(a), TaskOutput::Similarity(b)) => {
            for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
                close(a.matching.unwrap(), b.matching.unwrap());
                close(a.match_logits.unwrap().is_match, b.match_logits.unwrap().is_match);
                close(a.cosine.unwrap(), b.cosine.unwrap());
            }
        }
        (TaskOutput::Embed(a), TaskOutput::Embed(b)) => {
            assert_eq!(a.as_slice().len(), b.as_slice().len(), "{what}");
            a.as_slice().iter().zip(b.as_slice()).for_each(|(a, b)| close(*a, *b));
        }
        outputs => panic!("{what}: {outputs:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_with_mixed_batch_neighbours_equals_its_lone_one() {
    for (format, dtype) in
        [(Format::F32, Dtype::F32), (Format::Bf16, Dtype::Bf16), (Format::Int8, Dtype::Int8)]
    {
        answers_with_batch_neighbours_equal_lone_ones(format, dtype).await;
    }
}

async fn answers_with_batch_neighbours_equal_lone_ones(format: Format, dtype: Dtype) {
    let settings = EngineSettings {
        capacity_rows: 4096,
        max_queue_wait: Duration::from_secs(600),
        ..EngineSettings::default()
    };
    let backend = backend(format, dtype);
    let models = blip_server::engine::backend::Backend::models(&backend).to_vec();
    let tokenizer =
        Tokenizer::load(&fixtures().join("vqa-varied"), &InputSettings::default()).unwrap();
    let tasks = tasks(&models, &tokenizer);
    let context = EngineContext::without_server(Arc::new(Metrics::try_new().unwrap()));
    let engine = Engine::start(backend, settings, context).unwrap();
    let handle = engine.handle();
    let deadline = Instant::now() + Duration::from_secs(600);

    let mut alone: Vec<Answered> = Vec::new();
    for (model, task) in &tasks {
        let mut admission = handle.admit(ClientId::default(), 0, deadline).unwrap();
        admission.reserve(task.shape().rows, task.images().len()).unwrap();
        alone.push(admission.submit(*model, task.clone()).await.unwrap());
    }
    let before = handle.stats();

    // A long caption sets the pace: with each of its tokens more tasks arrive, so that they join what is running.
    let long = |params| {
        let params = GenerationParams { max_new_tokens: 40, ..params };
        let mode = DecodeMode::Generate(params);
        Task::Caption(Caption {
            image: prepared(&models[CAPTION.0], 0),
            prompt: None,
            mode,
            explain: None,
        })
    };
    let mut admission = handle.admit(ClientId::default(), 0, deadline).unwrap();
    admission.reserve(1, 1).unwrap();
    let (pace, mut tokens) =
        admission.submit_streaming(CAPTION, long(GenerationParams::greedy(40)));
    let mut admission = handle.admit(ClientId::default(), 0, deadline).unwrap();
    admission.reserve(3, 1).unwrap();
    let beams = admission.submit(CAPTION, long(beams(3)));
    let mut replies = Vec::new();
    for arriving in tasks.chunks(8) {
        tokens.next().await.unwrap();
        for (model, task) in arriving {
            let mut admission = handle.admit(ClientId::default(), 0, deadline).unwrap();
            admission.reserve(task.shape().rows, task.images().len()).unwrap();
            replies.push(admission.submit(*model, task.clone()));
        }
    }
    pace.await.unwrap();
    beams.await.unwrap();
    for (index, reply) in replies.into_iter().enumerate() {
        let together = reply.await.unwrap();
        assert_same(
            &format!("task {index}: {:?}", tasks[index].1),
            &together.output,
            &alone[index].output,
        );
    }
    let after = handle.stats();
    let steps = after.steps - before.steps;
    let rows = after.step_rows - before.step_rows;
    assert!(rows >= 4 * steps, "{rows} rows in {steps} steps");
    assert!(
        after.mixed_steps > before.mixed_steps,
        "no step held prompt, decoding and beam rows together"
    );
    assert_eq!(after.answered - before.answered, tasks.len() as u64 + 2);
    tokio::task::spawn_blocking(move || engine.join()).await.unwrap();
}
