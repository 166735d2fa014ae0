//! One kind of work on one batch: the calls that the engine's worker makes for it, one after the other.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::inputs;
use super::work::Work;
use crate::engine::backend::{Backend, BackendError, GroupSpec, OnePassOutput, OnePassRow};
use crate::model::BlipBackend;
use crate::model::ops::Ops;
use crate::task::{GenerationParams, ModelId, ModelInfo, Pixels, TokenIds, TowerId};

type Memory<O> = <BlipBackend<O> as Backend>::Memory;

/// What is run, with everything that it runs on.
pub(super) struct Job {
    work: Work,
    model: ModelId,
    tower: TowerId,
    tokens: usize,
    pictures: Vec<Pixels>,
    texts: Vec<TokenIds>,
}

impl Job {
    pub(super) fn new(
        info: &ModelInfo,
        work: Work,
        batch: usize,
        tokens: usize,
        vocabulary: usize,
    ) -> anyhow::Result<Self> {
        // One token to start from.
        let most = info.max_text_tokens.saturating_sub(1);
        ensure!(
            !work.generates() || tokens <= most,
            "model {} writes at most {most} tokens, {tokens} are asked for",
            info.name
        );
        let picture = |item| inputs::picture(item, info.preprocessing);
        let text = |item| inputs::text(item, vocabulary, info.max_text_tokens);
        Ok(Self {
            work,
            model: info.id,
            tower: info.tower,
            tokens,
            pictures: (0..batch).map(picture).collect(),
            texts: (0..batch).map(text).collect(),
        })
    }

    /// What is there before the clock starts.
    pub(super) fn prepare<O: Ops>(
        &self,
        backend: &mut BlipBackend<O>,
    ) -> anyhow::Result<Vec<Memory<O>>> {
        if self.work == Work::CaptionKnown { self.encode(backend) } else { Ok(Vec::new()) }
    }

    /// The whole batch once; `known` is what [`prepare`](Self::prepare) gave. Memory that the batch took is free again
    /// when the clock stops, as it is when the engine takes the next one.
    pub(super) fn run<O: Ops>(
        &self,
        backend: &mut BlipBackend<O>,
        known: Vec<Memory<O>>,
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
                let pair = |(image, text)| OnePassRow::MatchPair { image, text };
                let images = self.encode(backend)?;
                self.score(backend, images.into_iter().zip(self.texts.clone()).map(pair))?;
            }
            Work::EmbedImage => {
                let images = self.encode(backend)?;
                self.score(
                    backend,
                    images.into_iter().map(|image| OnePassRow::EmbedImage { image }),
                )?;
            }
            Work::EmbedText => {
                let text = |text| OnePassRow::EmbedText { text };
                self.score(backend, self.texts.iter().cloned().map(text))?;
            }
        }
        Ok(start.elapsed())
    }

    fn encode<O: Ops>(&self, backend: &mut BlipBackend<O>) -> anyhow::Result<Vec<Memory<O>>> {
        let pictures: Vec<&Pixels> = self.pictures.iter().collect();
        let images = backend.encode(self.tower, &pictures)?;
        if let Some(last) = images.last() {
            backend.wait_for(last)?;
        }
        Ok(images)
    }

    fn score<O: Ops>(
        &self,
        backend: &mut BlipBackend<O>,
        rows: impl Iterator<Item = OnePassRow<Memory<O>>>,
    ) -> Result<Vec<OnePassOutput<Memory<O>>>, BackendError> {
        backend.score(self.model, &rows.collect::<Vec<_>>())
    }

    /// The states of the questions.
    fn questions<O: Ops>(&self, backend: &mut BlipBackend<O>) -> anyhow::Result<Vec<Memory<O>>> {
        let ask = |(image, question)| OnePassRow::EncodeQuestion { image, question };
        let images = self.encode(backend)?;
        let outputs = self.score(backend, images.into_iter().zip(self.texts.clone()).map(ask))?;
        let states = outputs.into_iter().filter_map(|output| match output {
            OnePassOutput::Memory(states) => Some(states),
            OnePassOutput::Logprob(_)
            | OnePassOutput::Probability(_)
            | OnePassOutput::Embedding(_) => None,
        });
        let states: Vec<_> = states.collect();
        ensure!(states.len() == self.texts.len(), "a question has no states");
        Ok(states)
    }

    /// A group over each memory, all of them step by step to their end.
    fn generate<O: Ops>(
        &self,
        backend: &mut BlipBackend<O>,
        memories: Vec<Memory<O>>,
    ) -> anyhow::Result<()> {
        let params = GenerationParams {
            min_new_tokens: self.tokens,
            ..GenerationParams::greedy(self.tokens)
        };
        let mut groups = Vec::with_capacity(memories.len());
        for memory in memories {
            let (model, params) = (self.model, params.clone());
            groups.push(backend.open(GroupSpec {
                model,
                memory,
                prompt: None,
                params,
                sequence: 0,
            }));
        }
        let mut steps = 0;
        while !groups.is_empty() {
            let mut step: Vec<_> = groups.iter_mut().collect();
            let mut events = backend.step(self.model, &mut step)?.into_iter();
            groups.retain(|_| events.next().is_some_and(|event| event.finished.is_none()));
            steps += 1;
        }
        ensure!(steps == self.tokens, "{} tokens were asked for, {steps} came", self.tokens);
        Ok(())
    }
}
