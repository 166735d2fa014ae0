//! [`MockBackend`]: sleeps for fixed times, and answers with numbers and tokens that are derived from its inputs by
//! hashing. Equal requests get equal answers, alone or in a batch. It never fails. `mod.rs` describes its models.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::settings::MockSettings;
use crate::engine::backend::{
    Backend, BackendError, GroupSpec, SinglePassOutput, SinglePassRow, StepEvent,
};
use crate::task::{
    Embedding, FinishReason, GenerationParams, MatchLogits, ModelClass, ModelId, ModelInfo, Pixels,
    Pooling, ScoredText, Sequence, TokenIds, TokenLogprob, TowerId, VisionOutput,
};

/// Reported sizes in bytes of the features of an image, and of the KV cache that its captions share. They are small, so
/// that rows and the engine's other limits decide how many requests fit.
const FEATURE_BYTES: u64 = 100;
const CROSS_KV_BYTES: u64 = 1000;

/// The tokens that mock models generate.
#[derive(Debug, Clone)]
pub(super) struct MockVocabulary {
    /// The token that ends a text.
    pub(super) stop: u32,
    /// Ids of the words that a text consists of; at least one.
    pub(super) words: Vec<u32>,
}

/// The backend of the mock models. It lives on the engine's worker thread.
#[derive(Debug)]
pub(in crate::app) struct MockBackend {
    models: Vec<ModelInfo>,
    settings: MockSettings,
    vocabulary: Arc<MockVocabulary>,
    /// The bytes leaked so far.
    leaked: Vec<Vec<u8>>,
}

/// A hash of everything that an encoded image or question depends on.
#[derive(Debug, Clone, Copy, Hash)]
pub(in crate::app) struct MockStates(u64);

/// A sequence or beam search that generates a text of known length.
#[derive(Debug)]
pub(in crate::app) struct MockGroup {
    /// A hash of everything that the text depends on.
    digest: u64,
    params: GenerationParams,
    /// Number of patches of the image, if the sequence is explained.
    patches: Option<usize>,
    /// Number of tokens that the first step processes.
    prompt_tokens: usize,
    /// Number of tokens of every sequence of the group.
    length: usize,
    steps: usize,
    vocabulary: Arc<MockVocabulary>,
}

impl MockBackend {
    pub(super) fn new(
        models: Vec<ModelInfo>,
        settings: MockSettings,
        vocabulary: MockVocabulary,
    ) -> Self {
        Self { models, settings, vocabulary: Arc::new(vocabulary), leaked: Vec::new() }
    }

    /// Sleeps for the simulated duration of one backend call.
    #[expect(
        clippy::disallowed_methods,
        reason = "a mock simulates latency: the event that it waits for is the passing of time"
    )]
    fn spend(&self, images: usize, tokens: usize) {
        let MockSettings { unit_time, image_time, token_time, .. } = self.settings;
        let time = unit_time + image_time * images as u32 + token_time * tokens as u32;
        if !time.is_zero() {
            std::thread::sleep(time);
        }
    }

    fn leak(&mut self, images: usize) {
        let bytes = self.settings.leak_bytes;
        if bytes > 0 {
            // Fill the memory with ones, so that its pages are resident and not only reserved.
            self.leaked.extend((0..images).map(|_| vec![1; bytes]));
        }
    }
}

impl Backend for MockBackend {
    type EncoderStates = MockStates;
    type Group = MockGroup;

    fn models(&self) -> &[ModelInfo] {
        &self.models
    }

    fn feature_bytes(&self, _: TowerId) -> u64 {
        FEATURE_BYTES
    }

    fn cross_kv_bytes(&self, model: ModelId) -> u64 {
        match self.models[model.0].class {
            ModelClass::ConditionalGeneration => CROSS_KV_BYTES,
            ModelClass::QuestionAnswering
            | ModelClass::ImageTextRetrieval
            | ModelClass::Base
            | ModelClass::Vision
            | ModelClass::Text => 0,
        }
    }

    fn row_kv_bytes_per_token(&self, _: ModelId) -> u64 {
        1
    }

    fn encode(
        &mut self,
        output: VisionOutput,
        images: &[&Pixels],
    ) -> Result<Vec<MockStates>, BackendError> {
        self.leak(images.len());
        self.spend(images.len(), 0);
        let encode = |pixels: &&Pixels| MockStates(digest(&(output, pixels.as_bytes())));
        Ok(images.iter().map(encode).collect())
    }

    fn run_single_pass(
        &mut self,
        model: ModelId,
        rows: &[SinglePassRow<MockStates>],
    ) -> Result<Vec<SinglePassOutput<MockStates>>, BackendError> {
        self.spend(0, rows.iter().map(SinglePassRow::tokens).sum());
        let image_tokens = self.models[model.0].vision_tower().tokens;
        Ok(rows.iter().map(|row| output((model, image_tokens), row)).collect())
    }

    fn open(&mut self, spec: GroupSpec<MockStates>) -> MockGroup {
        let prompt_tokens = spec.first_step_tokens();
        let GroupSpec { model, states, prompt, params, sequence, explain } = spec;
        let patches = explain.map(|_| self.models[model.0].vision_tower().tokens - 1);
        MockGroup {
            digest: digest(&(model.0, states, &prompt, sequence)),
            prompt_tokens,
            length: self
                .settings
                .text_length
                .clamp(params.min_new_tokens.max(1), params.max_new_tokens),
            params,
            patches,
            steps: 0,
            vocabulary: Arc::clone(&self.vocabulary),
        }
    }

    fn pending_tokens(&self, group: &MockGroup) -> usize {
        if group.steps == 0 { group.prompt_tokens } else { group.params.rows_per_group() }
    }

    fn step(
        &mut self,
        _: ModelId,
        groups: &mut [&mut MockGroup],
    ) -> Result<Vec<StepEvent>, BackendError> {
        self.spend(0, groups.iter().map(|group| self.pending_tokens(group)).sum());
        Ok(groups.iter_mut().map(|group| group.advance()).collect())
    }
}

impl MockGroup {
    fn finish_reason(&self) -> FinishReason {
        let is_short = self.length < self.params.max_new_tokens;
        if is_short { FinishReason::Stop } else { FinishReason::Length }
    }

    /// Returns the token of sequence `beam` at position `place`, both counted from 0.
    fn token(&self, place: usize, beam: usize) -> TokenLogprob {
        let hash = digest(&(self.digest, place, beam));
        let MockVocabulary { stop, words } = &*self.vocabulary;
        let is_stop = place + 1 == self.length && self.finish_reason() == FinishReason::Stop;
        let id = if is_stop { *stop } else { words[(hash % words.len() as u64) as usize] };
        TokenLogprob { id, logprob: -((hash % 100) as f32) / 100.0 }
    }

    fn advance(&mut self) -> StepEvent {
        self.steps += 1;
        let beams = self.params.rows_per_group();
        let token = (beams == 1).then(|| self.token(self.steps - 1, 0));
        let finished = (self.steps == self.length).then(|| {
            (0..self.params.sequences_per_group()).map(|beam| self.sequence(beam)).collect()
        });
        StepEvent { token, generated: beams, finished }
    }

    fn sequence(&self, beam: usize) -> Sequence {
        let tokens = (0..self.length).map(|place| self.token(place, beam)).collect();
        let attention = self.patches.map(|patches| {
            let weights = vec![1.0 / (patches + 1) as f32; patches];
            vec![weights; self.length]
        });
        Sequence { tokens, finish_reason: self.finish_reason(), attention }
    }
}

/// `model` is the model and the number of tokens of its images.
fn output(
    (model, image_tokens): (ModelId, usize),
    row: &SinglePassRow<MockStates>,
) -> SinglePassOutput<MockStates> {
    let of = |states: Option<&MockStates>, text: Option<&TokenIds>| {
        let digest = digest(&(model.0, states, text));
        (digest, (digest % 1000) as f32 / 1000.0)
    };
    let embedding = |(digest, part): (u64, f32), pooling: Pooling, tokens: usize| {
        let value = |shift: u32| part + ((digest >> shift) % 16) as f32 + 1.0;
        let count = if pooling == Pooling::None { tokens } else { 1 };
        let values = [0, 8, 16, 24].map(value).repeat(count);
        SinglePassOutput::Embedding(Embedding::new(values))
    };
    match row {
        SinglePassRow::EncodeQuestion { image, question, explain, .. } => {
            let weights = || vec![1.0 / image_tokens as f32; image_tokens - 1];
            SinglePassOutput::EncoderStates {
                states: MockStates(of(Some(image), Some(question)).0),
                attention: explain.as_ref().map(|_| vec![weights(); question.len()]),
            }
        }
        SinglePassRow::ScoreCandidate { states, candidate } => {
            let logprob = -of(Some(states), Some(candidate)).1;
            let token = |&id: &u32| TokenLogprob { id, logprob };
            let tokens = candidate.as_slice()[1..].iter().map(token).collect();
            SinglePassOutput::Scored(ScoredText { tokens })
        }
        SinglePassRow::MatchPair { image, text, .. } => {
            let is_match = of(Some(image), Some(text)).1;
            SinglePassOutput::MatchLogits(MatchLogits { no_match: 0.0, is_match })
        }
        SinglePassRow::EmbedImage { image, pooling } => {
            embedding(of(Some(image), None), *pooling, image_tokens)
        }
        SinglePassRow::EmbedText { text, output } => {
            embedding(of(None, Some(text)), output.pooling, text.len())
        }
        SinglePassRow::EmbedMultimodal { image, text, output } => {
            embedding(of(Some(image), Some(text)), output.pooling, text.len())
        }
    }
}

fn digest(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::time::Duration;

    use super::*;
    use crate::app::mock::model;

    const STOP: u32 = 3;
    const IMAGE: MockStates = MockStates(1);

    fn backend(text_length: usize, leak_bytes: usize) -> MockBackend {
        let settings = MockSettings {
            workers: NonZeroUsize::MIN,
            unit_time: Duration::ZERO,
            image_time: Duration::ZERO,
            token_time: Duration::ZERO,
            image_size: 2,
            text_length,
            leak_bytes,
        };
        let words = (10..20).collect();
        let models = (0..3).map(|id| model(id, 2)).collect();
        MockBackend::new(models, settings, MockVocabulary { stop: STOP, words })
    }

    /// Generates one caption, and returns its sequences and the tokens of its steps.
    fn caption(
        backend: &mut MockBackend,
        params: GenerationParams,
    ) -> (Vec<Sequence>, Vec<TokenLogprob>) {
        let model = ModelId(0);
        let spec =
            GroupSpec { model, states: IMAGE, prompt: None, params, sequence: 0, explain: None };
        let mut group = backend.open(spec);
        let mut tokens = Vec::new();
        loop {
            let event = backend.step(model, &mut [&mut group]).unwrap().remove(0);
            tokens.extend(event.token);
            if let Some(sequences) = event.finished {
                return (sequences, tokens);
            }
        }
    }

    #[test]
    fn a_text_has_the_length_that_is_set_and_ends_with_the_stop_token() {
        let mut backend = backend(8, 0);
        let (sequences, streamed) = caption(&mut backend, GenerationParams::greedy(20));
        let [Sequence { tokens, finish_reason: FinishReason::Stop, .. }] = &sequences[..] else {
            panic!("{sequences:?}")
        };
        assert_eq!((tokens.len(), tokens, tokens[7].id), (8, &streamed, STOP));
        assert!(tokens[..7].iter().all(|token| (10..20).contains(&token.id)), "{tokens:?}");
    }

    #[test]
    fn a_text_keeps_within_the_limits_of_its_request() {
        for (max_new_tokens, min_new_tokens, length, reason) in [
            (5, 0, 5, FinishReason::Length),
            (8, 0, 8, FinishReason::Length),
            (30, 12, 12, FinishReason::Stop),
        ] {
            let params =
                GenerationParams { min_new_tokens, ..GenerationParams::greedy(max_new_tokens) };
            let (sequences, _) = caption(&mut backend(8, 0), params);
            let Sequence { tokens, finish_reason, .. } = &sequences[0];
            assert_eq!((tokens.len(), *finish_reason), (length, reason));
            let stops = tokens.iter().filter(|token| token.id == STOP).count();
            assert_eq!(stops, usize::from(reason == FinishReason::Stop));
        }
    }

    #[test]
    fn an_answer_depends_on_its_inputs_and_not_on_its_batch() {
        let mut backend = backend(8, 0);
        let pair = |image: u64, token: u32| SinglePassRow::MatchPair {
            image: MockStates(image),
            text: TokenIds::new([2, token, STOP]),
            is_only_text: true,
        };
        // Compare the bits of the outputs: two answers are either equal or different, never just close.
        let mut scores = |rows: &[SinglePassRow<MockStates>]| -> Vec<u32> {
            let outputs = backend.run_single_pass(ModelId(2), rows).unwrap();
            let score = |output: &SinglePassOutput<MockStates>| {
                let SinglePassOutput::MatchLogits(logits) = output else { panic!("{output:?}") };
                assert!((0.0..=1.0).contains(&logits.probability()));
                logits.is_match.to_bits()
            };
            outputs.iter().map(score).collect()
        };
        let together = scores(&[pair(1, 10), pair(1, 11), pair(2, 10)]);
        assert_eq!(scores(&[pair(1, 11)]), [together[1]]);
        assert!(together[0] != together[1] && together[0] != together[2], "{together:?}");
    }

    #[test]
    fn every_encoded_image_leaks_what_is_set() {
        let pixels = Pixels::new(2, 2, vec![7; 12]);
        for (leak_bytes, leaked) in [(0, 0), (1000, 3000)] {
            let mut backend = backend(8, leak_bytes);
            backend.encode(VisionOutput::last(TowerId(0)), &[&pixels, &pixels]).unwrap();
            backend.encode(VisionOutput::last(TowerId(0)), &[&pixels]).unwrap();
            assert_eq!(backend.leaked.iter().map(Vec::len).sum::<usize>(), leaked);
        }
    }
}
