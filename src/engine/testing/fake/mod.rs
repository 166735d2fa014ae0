//! A scripted backend for tests. It computes hashes instead of captions, waits at a gate that the test opens, and fails
//! where the test tells it to. Neither side sleeps: the test blocks until the worker waits at the gate, and the worker
//! blocks until the test opens the gate.
//!
//! The answers depend on all that they should depend on (pixels, texts, parameters, sequence) and on nothing else. So
//! if data of one row leaks into another, the answer of the other row changes. Tests control the backend through
//! [`FakeControl`]. `blip-server mock` has a backend of its own (`app/mock`).

mod control;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

pub use control::{FakeCall, FakeControl, FakeFault, FakeMark, FakeUnit};

use crate::engine::backend::{
    Backend, BackendError, GroupSpec, SinglePassOutput, SinglePassRow, StepEvent,
};
use crate::task::{
    Device, Dtype, Embedding, FinishReason, GenerationParams, ImageFormat, ImageId, ImageInfo,
    MatchLogits, ModelClass, ModelId, ModelInfo, Pixels, Pooling, PreparedImage, Preprocessing,
    Scope, ScoredText, Sequence, StatesShape, TextInfo, TokenIds, TokenLogprob, TowerId,
    VisionInfo, VisionOutput,
};

/// The stop token of fake models (`[SEP]`).
const STOP: u32 = 102;

/// Ids of the tokens that fake models generate before the stop token.
const TOKEN_IDS: Range<u32> = 1000..2000;

/// The part of an encoded image or question that the fake backend stores.
#[derive(Debug, Clone)]
pub struct FakeEncoderStates {
    digest: u64,
    marks: Arc<[FakeMark]>,
}

/// A fake sequence or beam search.
#[derive(Debug)]
pub struct FakeGroup {
    digest: u64,
    marks: Arc<[FakeMark]>,
    /// Number of patches of the image, if the sequence is explained.
    patches: Option<usize>,
    params: GenerationParams,
    prompt_tokens: usize,
    steps: usize,
    control: FakeControl,
}

/// The fake backend. Its [`FakeControl`] stays with the test.
#[derive(Debug)]
pub struct FakeBackend {
    models: Vec<ModelInfo>,
    control: FakeControl,
}

/// Returns a model for images of 2 x 2 pixels, with embeddings of length four.
#[must_use]
pub fn model(id: usize, name: &str, class: ModelClass, tower: usize) -> ModelInfo {
    ModelInfo {
        id: ModelId(id),
        name: name.to_owned(),
        class,
        source: "fake".to_owned(),
        revision: None,
        dtype: Dtype::F32,
        device: Device::Cpu,
        vision: (class != ModelClass::Text).then(|| VisionInfo {
            tower: TowerId(tower),
            preprocessing: Preprocessing::bicubic(2, 2),
            states: StatesShape { layers: 2, width: 4 },
            tokens: 5,
        }),
        text: (class != ModelClass::Vision).then(|| TextInfo {
            states: StatesShape { layers: 3, width: 4 },
            max_tokens: 512,
            has_pooler: class == ModelClass::Base,
        }),
        embedding_dimensions: Some(4),
        multimodal_dimensions: Some(4),
        logit_scale: (class == ModelClass::Base).then_some(100.0),
        parameter_count: 1,
        demo: false,
    }
}

/// Returns models with ids 0 to 3: caption (tower 0), VQA (tower 1), retrieval (tower 2) and `BlipModel` (also tower
/// 2).
#[must_use]
pub fn models() -> Vec<ModelInfo> {
    vec![
        model(0, "fake-caption", ModelClass::ConditionalGeneration, 0),
        model(1, "fake-vqa", ModelClass::QuestionAnswering, 1),
        model(2, "fake-retrieval", ModelClass::ImageTextRetrieval, 2),
        model(3, "fake-clip", ModelClass::Base, 2),
    ]
}

/// Returns a 2 x 2 image whose bytes are all `mark`. Its id is derived from the mark.
#[must_use]
pub fn image(mark: u8) -> PreparedImage {
    let mut id = [0; 32];
    id[0] = mark;
    PreparedImage {
        info: ImageInfo {
            id: ImageId::from_digest(id),
            width: 2,
            height: 2,
            format: ImageFormat::Png,
        },
        scope: Scope::EVERYONE,
        preprocessing: Preprocessing::bicubic(2, 2),
        pixels: Arc::new(Pixels::new(2, 2, vec![mark; 12])),
    }
}

/// Returns a text with the token ids `[CLS] tokens [SEP]`.
#[must_use]
pub fn text(tokens: &[u32]) -> TokenIds {
    TokenIds::new([&[101], tokens, &[STOP]].concat())
}

impl FakeBackend {
    /// Creates a backend with these models, and the control that drives it.
    #[must_use]
    pub fn new(models: Vec<ModelInfo>) -> (Self, FakeControl) {
        let control = FakeControl::new();
        (Self::on(models, &control), control)
    }

    /// Creates a backend that is driven by an existing control.
    #[must_use]
    pub fn on(models: Vec<ModelInfo>, control: &FakeControl) -> Self {
        Self { models, control: control.clone() }
    }
}

impl Backend for FakeBackend {
    type EncoderStates = FakeEncoderStates;
    type Group = FakeGroup;

    fn models(&self) -> &[ModelInfo] {
        &self.models
    }

    fn feature_bytes(&self, _: TowerId) -> u64 {
        self.control.panic_if_scripted();
        100
    }

    fn cross_kv_bytes(&self, model: ModelId) -> u64 {
        if self.models[model.0].class == ModelClass::ConditionalGeneration { 1000 } else { 0 }
    }

    fn row_kv_bytes_per_token(&self, _: ModelId) -> u64 {
        1
    }

    fn encode(
        &mut self,
        output: VisionOutput,
        images: &[&Pixels],
    ) -> Result<Vec<FakeEncoderStates>, BackendError> {
        let mark = |pixels: &&Pixels| FakeMark::Image(pixels.as_bytes()[0]);
        let marks: Vec<Vec<FakeMark>> = images.iter().map(|pixels| vec![mark(pixels)]).collect();
        self.control.enter(FakeCall::Encode, output.tower.0, 0, &marks)?;
        let encode = |(pixels, marks): (&&Pixels, Vec<FakeMark>)| FakeEncoderStates {
            digest: match output.layer {
                None => digest(&(output.tower.0, pixels.as_bytes())),
                Some(_) => digest(&(output, pixels.as_bytes())),
            },
            marks: marks.into(),
        };
        Ok(images.iter().zip(marks).map(encode).collect())
    }

    fn run_single_pass(
        &mut self,
        model: ModelId,
        rows: &[SinglePassRow<FakeEncoderStates>],
    ) -> Result<Vec<SinglePassOutput<FakeEncoderStates>>, BackendError> {
        let marks: Vec<Vec<FakeMark>> = rows.iter().map(row_marks).collect();
        let tokens = rows.iter().map(SinglePassRow::tokens).sum();
        self.control.enter(FakeCall::SinglePass, model.0, tokens, &marks)?;
        let poisoned = |marks: &[FakeMark]| self.control.is_non_finite(FakeCall::SinglePass, marks);
        let outputs = rows.iter().zip(&marks);
        let image_tokens = self.models[model.0].vision_tower().tokens;
        let output = |(row, marks): (_, &Vec<FakeMark>)| {
            row_output((model, image_tokens), row, marks, poisoned(marks))
        };
        Ok(outputs.map(output).collect())
    }

    fn open(&mut self, spec: GroupSpec<FakeEncoderStates>) -> FakeGroup {
        let prompt = spec.prompt.as_ref();
        let mut marks = spec.states.marks.to_vec();
        marks.extend(prompt.iter().flat_map(|prompt| token_marks(prompt)));
        let key = (spec.model.0, spec.states.digest, prompt, spec.sequence);
        self.control.opened();
        FakeGroup {
            digest: digest(&key),
            marks: marks.into(),
            prompt_tokens: spec.first_step_tokens(),
            params: spec.params,
            patches: spec.explain.map(|_| self.models[spec.model.0].vision_tower().tokens - 1),
            steps: 0,
            control: self.control.clone(),
        }
    }

    fn pending_tokens(&self, group: &FakeGroup) -> usize {
        if group.steps == 0 { group.prompt_tokens } else { group.params.rows_per_group() }
    }

    fn step(
        &mut self,
        model: ModelId,
        groups: &mut [&mut FakeGroup],
    ) -> Result<Vec<StepEvent>, BackendError> {
        let marks: Vec<Vec<FakeMark>> = groups.iter().map(|group| group.marks.to_vec()).collect();
        let tokens = groups.iter().map(|group| self.pending_tokens(group)).sum();
        self.control.enter(FakeCall::Step, model.0, tokens, &marks)?;
        Ok(groups.iter_mut().map(|group| group.advance()).collect())
    }
}

impl FakeGroup {
    /// Returns the number of tokens that the group generates, within the parameters' limits. The number is derived from
    /// the digest unless the control sets it.
    fn length(&self) -> usize {
        let wanted = self.control.text_length().unwrap_or(2 + (self.digest % 7) as usize);
        wanted.clamp(self.params.min_new_tokens.max(1), self.params.max_new_tokens)
    }

    fn token(&self, place: usize, beam: usize) -> TokenLogprob {
        let hash = digest(&(self.digest, place, beam));
        let stops = place + 1 == self.length() && self.finish() == FinishReason::Stop;
        let id =
            if stops { STOP } else { TOKEN_IDS.start + (hash % TOKEN_IDS.len() as u64) as u32 };
        let finite = !self.control.is_non_finite(FakeCall::Step, &self.marks);
        let logprob = if finite { -((hash % 100) as f32) / 100.0 } else { f32::NAN };
        TokenLogprob { id, logprob }
    }

    fn finish(&self) -> FinishReason {
        let short = self.length() < self.params.max_new_tokens;
        if short { FinishReason::Stop } else { FinishReason::Length }
    }

    fn advance(&mut self) -> StepEvent {
        self.steps += 1;
        let beams = self.params.rows_per_group();
        let token = (beams == 1).then(|| self.token(self.steps - 1, 0));
        let finished = (self.steps == self.length())
            .then(|| (0..self.params.sequences_per_group()).map(|beam| self.text(beam)).collect());
        StepEvent { token, generated: beams, finished }
    }

    fn text(&self, beam: usize) -> Sequence {
        let tokens: Vec<TokenLogprob> =
            (0..self.length()).map(|place| self.token(place, beam)).collect();
        let attention = self.patches.map(|patches| {
            let weights = vec![0.5 / (patches + 1) as f32; patches];
            vec![weights; tokens.len()]
        });
        Sequence { tokens, finish_reason: self.finish(), attention }
    }
}

impl Drop for FakeGroup {
    fn drop(&mut self) {
        self.control.closed();
    }
}

fn digest(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn token_marks(text: &TokenIds) -> Vec<FakeMark> {
    text.as_slice().iter().map(|&id| FakeMark::Token(id)).collect()
}

/// Returns four numbers or, without pooling, four for each token. They depend on the layer.
fn embedding(
    part: f32,
    digest: u64,
    pooling: Pooling,
    layer: Option<u16>,
    tokens: usize,
) -> SinglePassOutput<FakeEncoderStates> {
    let layer = layer.map_or(0.0, |layer| f32::from(layer) + 1.0);
    let value = |shift: u32| part + ((digest >> shift) % 16) as f32 + 1.0 + layer;
    let token = [0, 8, 16, 24].map(value);
    let count = if pooling == Pooling::None { tokens } else { 1 };
    SinglePassOutput::Embedding(Embedding::new(token.repeat(count)))
}

fn row_marks(row: &SinglePassRow<FakeEncoderStates>) -> Vec<FakeMark> {
    let (states, text) = parts(row);
    let mut marks = states.map_or_else(Vec::new, |states| states.marks.to_vec());
    marks.extend(text.iter().flat_map(|text| token_marks(text)));
    marks
}

fn parts(
    row: &SinglePassRow<FakeEncoderStates>,
) -> (Option<&FakeEncoderStates>, Option<&TokenIds>) {
    match row {
        SinglePassRow::EncodeQuestion { image: states, question: text, .. }
        | SinglePassRow::ScoreCandidate { states, candidate: text }
        | SinglePassRow::MatchPair { image: states, text, .. }
        | SinglePassRow::EmbedMultimodal { image: states, text, .. } => (Some(states), Some(text)),
        SinglePassRow::EmbedImage { image, .. } => (Some(image), None),
        SinglePassRow::EmbedText { text, .. } => (None, Some(text)),
    }
}

/// `model` is the model and the number of tokens of its images.
fn row_output(
    (model, image_tokens): (ModelId, usize),
    row: &SinglePassRow<FakeEncoderStates>,
    marks: &[FakeMark],
    non_finite: bool,
) -> SinglePassOutput<FakeEncoderStates> {
    let (states, text) = parts(row);
    let digest = digest(&(model.0, states.map(|states| states.digest), text));
    let part = if non_finite { f32::NAN } else { (digest % 1000) as f32 / 1000.0 };
    match row {
        SinglePassRow::EncodeQuestion { question, explain, .. } => {
            let states = FakeEncoderStates { digest, marks: marks.into() };
            let weights = || vec![0.5 / image_tokens as f32; image_tokens - 1];
            let attention = explain.as_ref().map(|_| vec![weights(); question.len()]);
            SinglePassOutput::EncoderStates { states, attention }
        }
        SinglePassRow::ScoreCandidate { candidate, .. } => {
            let token = |&id: &u32| TokenLogprob { id, logprob: -part };
            let tokens = candidate.as_slice()[1..].iter().map(token).collect();
            SinglePassOutput::Scored(ScoredText { tokens })
        }
        SinglePassRow::MatchPair { .. } => {
            SinglePassOutput::MatchLogits(MatchLogits { no_match: 0.0, is_match: part })
        }
        SinglePassRow::EmbedImage { pooling, .. } => {
            embedding(part, digest, *pooling, None, image_tokens)
        }
        SinglePassRow::EmbedText { text, output }
        | SinglePassRow::EmbedMultimodal { text, output, .. } => {
            embedding(part, digest, output.pooling, output.layer, text.len())
        }
    }
}
