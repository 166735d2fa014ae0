//! One run of one kind of work on one batch: makes the same backend calls, one after the other, as the worker thread of
//! the engine.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::inputs;
use super::work::Work;
use crate::engine::backend::{Backend, BackendError, GroupSpec, SinglePassOutput, SinglePassRow};
use crate::model::BlipBackend;
use crate::model::ops::Ops;
use crate::task::{
    EmbedOutput, GenerationParams, ModelId, ModelInfo, Pixels, Pooling, TokenIds, TowerId,
    VisionOutput,
};

type StatesOf<O> = <BlipBackend<O> as Backend>::EncoderStates;

/// One kind of work with its model and inputs.
pub(super) struct Workload {
    work: Work,
    model: ModelId,
    tower: TowerId,
    tokens: usize,
    pictures: Vec<Pixels>,
    texts: Vec<TokenIds>,
}

impl Workload {
    pub(super) fn new(
        info: &ModelInfo,
        work: Work,
        batch: usize,
        tokens: usize,
        vocabulary: usize,
    ) -> anyhow::Result<Self> {
        // The first position holds the start token, so it is not available for a generated token.
        let max_tokens = info.text.as_ref().map(|text| text.max_tokens);
        let most = max_tokens.unwrap_or_default().saturating_sub(1);
        ensure!(
            !work.generates() || tokens <= most,
            "model {} generates at most {most} tokens, but {tokens} were requested",
            info.name
        );
        let vision = info.vision_tower();
        let picture = |item| inputs::picture(item, vision.preprocessing);
        let texts =
            |max_tokens| (0..batch).map(move |item| inputs::text(item, vocabulary, max_tokens));
        Ok(Self {
            work,
            model: info.id,
            tower: vision.tower,
            tokens,
            pictures: (0..batch).map(picture).collect(),
            texts: max_tokens.into_iter().flat_map(texts).collect(),
        })
    }

    /// Encodes the images before the clock starts, if the work assumes that the image features are cached.
    pub(super) fn prepare<O: Ops>(
        &self,
        backend: &mut BlipBackend<O>,
    ) -> anyhow::Result<Vec<StatesOf<O>>> {
        if self.work == Work::CaptionKnown { self.encode(backend) } else { Ok(Vec::new()) }
    }

    /// Runs the whole batch once and returns the elapsed time. `known` is the result of [`prepare`](Self::prepare). The
    /// time includes freeing the memory of the batch, because the engine also frees it before its next batch.
    pub(super) fn run<O: Ops>(
        &self,
        backend: &mut BlipBackend<O>,
        known: Vec<StatesOf<O>>,
    ) -> anyhow::Result<Duration> {
        let start = Instant::now();
        match self.work {
            Work::Vision => drop(self.encode(backend)?),
            Work::Caption => {
                let images = self.encode(backend)?;
                self.generate(backend, images)?;
            }
            Work::CaptionKnown => self.generate(backend, known)?,
            Work::Vqa => {
                let questions = self.questions(backend)?;
                self.generate(backend, questions)?;
            }
            Work::Match => {
                let pair =
                    |(image, text)| SinglePassRow::MatchPair { image, text, is_only_text: true };
                let images = self.encode(backend)?;
                self.run_single_pass(
                    backend,
                    images.into_iter().zip(self.texts.clone()).map(pair),
                )?;
            }
            Work::EmbedImage => {
                let images = self.encode(backend)?;
                self.run_single_pass(
                    backend,
                    images.into_iter().map(|image| SinglePassRow::EmbedImage {
                        image,
                        pooling: Pooling::Projection,
                    }),
                )?;
            }
            Work::EmbedText => {
                let output = EmbedOutput::PROJECTION;
                let text = |text| SinglePassRow::EmbedText { text, output };
                self.run_single_pass(backend, self.texts.iter().cloned().map(text))?;
            }
        }
        Ok(start.elapsed())
    }

    fn encode<O: Ops>(&self, backend: &mut BlipBackend<O>) -> anyhow::Result<Vec<StatesOf<O>>> {
        let pictures: Vec<&Pixels> = self.pictures.iter().collect();
        Ok(backend.encode(VisionOutput::last(self.tower), &pictures)?)
    }

    fn run_single_pass<O: Ops>(
        &self,
        backend: &mut BlipBackend<O>,
        rows: impl Iterator<Item = SinglePassRow<StatesOf<O>>>,
    ) -> Result<Vec<SinglePassOutput<StatesOf<O>>>, BackendError> {
        backend.run_single_pass(self.model, &rows.collect::<Vec<_>>())
    }

    /// Encodes images and questions; returns the encoder states of the questions.
    fn questions<O: Ops>(&self, backend: &mut BlipBackend<O>) -> anyhow::Result<Vec<StatesOf<O>>> {
        let ask = |(image, question)| SinglePassRow::EncodeQuestion {
            image,
            question,
            is_only_text: true,
            explain: None,
        };
        let images = self.encode(backend)?;
        let outputs =
            self.run_single_pass(backend, images.into_iter().zip(self.texts.clone()).map(ask))?;
        let states = outputs.into_iter().filter_map(|output| match output {
            SinglePassOutput::EncoderStates { states, .. } => Some(states),
            SinglePassOutput::Scored(_)
            | SinglePassOutput::MatchLogits(_)
            | SinglePassOutput::Embedding(_) => None,
        });
        let states: Vec<_> = states.collect();
        ensure!(states.len() == self.texts.len(), "the backend returned no states for a question");
        Ok(states)
    }

    /// Opens one group (here a single greedy sequence) per set of encoder states, and decodes all groups together, step
    /// by step, until they have finished.
    fn generate<O: Ops>(
        &self,
        backend: &mut BlipBackend<O>,
        memories: Vec<StatesOf<O>>,
    ) -> anyhow::Result<()> {
        let params = GenerationParams {
            min_new_tokens: self.tokens,
            ..GenerationParams::greedy(self.tokens)
        };
        let mut groups = Vec::with_capacity(memories.len());
        for states in memories {
            let (model, params) = (self.model, params.clone());
            groups.push(backend.open(GroupSpec {
                model,
                states,
                prompt: None,
                params,
                sequence: 0,
                explain: None,
            }));
        }
        let mut steps = 0;
        while !groups.is_empty() {
            let mut step: Vec<_> = groups.iter_mut().collect();
            let mut events = backend.step(self.model, &mut step)?.into_iter();
            groups.retain(|_| events.next().is_some_and(|event| event.finished.is_none()));
            steps += 1;
        }
        ensure!(
            steps == self.tokens,
            "{} tokens were requested, but {steps} were generated",
            self.tokens
        );
        Ok(())
    }
}
