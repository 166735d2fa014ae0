//! The plan of one task: which images, rows and groups it needs, and how its answer is assembled. A plan is a state
//! machine that uses no clock, queue or tensor; `worker` drives it.
//!
//! Images come first. Each encoded image makes rows and groups ready to run, and so does each encoded question. Every
//! result fills a slot of the answer. When no slot is empty, the answer is complete.

mod results;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub(crate) use self::results::PlanError;
use self::results::Results;
use super::backend::{GroupSpec, SinglePassOutput, SinglePassRow};
use super::ids::FeatureKey;
use crate::task::{
    Caption, DecodeMode, Embed, EmbedOutput, EmbedSubject, GenerationParams, ModelInfo, Pixels,
    Pooling, PreparedImage, Role, Sequence, Task, TaskOutput, TokenIds, VisionOutput,
};

/// Where a result belongs in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Hidden states of question `.0`; an intermediate result.
    Question(usize),
    /// The score of candidate `.1` for question `.0` (a caption counts as question 0).
    Candidate(usize, usize),
    /// The sequences of group `.1` for question `.0` (a caption counts as question 0).
    Group(usize, usize),
    /// The matching score of text `.1` and the distinct image with index `.0`.
    Pair(usize, usize),
    /// The projection of the distinct image with index `.0`.
    Image(usize),
    /// The projection of text `.0`.
    Text(usize),
    /// The only vector of an embedding task.
    Vector,
}

/// Work that is ready to run.
#[derive(Debug)]
pub(crate) enum Work<M> {
    /// A single-pass row. `image` is the image whose features it uses.
    Row { slot: Slot, row: SinglePassRow<M>, image: Option<FeatureKey> },
    /// A group. It attends to `image`, or to a question of `question_tokens` tokens.
    Group { slot: Slot, spec: GroupSpec<M>, image: Option<FeatureKey>, question_tokens: usize },
}

/// Plan and results of one task.
#[derive(Debug)]
pub(crate) struct Plan {
    model: ModelInfo,
    task: Task,
    /// Distinct images, in order of first use.
    images: Vec<(FeatureKey, Arc<Pixels>)>,
    results: Results,
}

impl Plan {
    /// Plans `task` for `model`.
    ///
    /// # Errors
    /// [`PlanError::Misfit`] if the model cannot do the task; `http` should not submit such a task.
    pub(crate) fn try_new(model: &ModelInfo, task: Task) -> Result<Self, PlanError> {
        check(model, &task)?;
        let (distinct, places) = task.distinct_images();
        let layer = image_layer(&task);
        let towers = model.vision.iter().flat_map(|vision| {
            let output = VisionOutput { tower: vision.tower, layer };
            distinct
                .iter()
                .map(move |image| (FeatureKey::new(output, image), Arc::clone(&image.pixels)))
        });
        let images: Vec<(FeatureKey, Arc<Pixels>)> = towers.collect();
        let results = Results::new(&task, &places, images.len(), model.logit_scale);
        Ok(Self { model: model.clone(), task, images, results })
    }

    /// Returns the distinct images that the task needs.
    pub(crate) fn images(&self) -> &[(FeatureKey, Arc<Pixels>)] {
        &self.images
    }

    /// True if no result is missing.
    pub(crate) fn is_complete(&self) -> bool {
        self.results.is_complete()
    }

    /// Assembles the answer of a complete plan.
    ///
    /// # Errors
    /// [`PlanError::Misfit`] if a result is missing or the vectors to compare differ in length.
    pub(crate) fn into_output(self) -> Result<TaskOutput, PlanError> {
        self.results.into_output()
    }

    /// Returns the work that needs no image and is therefore ready at the start.
    pub(crate) fn start<M>(&self) -> Vec<Work<M>> {
        match &self.task {
            Task::Similarity(similarity) if similarity.scores.cosine => {
                let texts = similarity.texts.iter().cloned().enumerate();
                texts
                    .map(|(t, text)| embed_text(Slot::Text(t), text, EmbedOutput::PROJECTION))
                    .collect()
            }
            Task::Embed(Embed { subject: EmbedSubject::Text(text), output }) => {
                vec![embed_text(Slot::Vector, text.clone(), *output)]
            }
            Task::Similarity(_) | Task::Embed(_) | Task::Caption(_) | Task::Vqa(_) => Vec::new(),
        }
    }

    /// Returns the work that becomes ready once the image with this key is encoded; `states` holds the image's
    /// features.
    pub(crate) fn image_ready<M: Clone>(&self, key: FeatureKey, states: &M) -> Vec<Work<M>> {
        let Some(place) = self.images.iter().position(|(other, _)| *other == key) else {
            return Vec::new();
        };
        let row = |slot, row| Work::Row { slot, row, image: Some(key) };
        let image = || states.clone();
        match &self.task {
            Task::Caption(Caption { prompt, mode, .. }) => {
                self.decode(0, states, prompt.as_ref(), mode, Some(key))
            }
            Task::Vqa(vqa) => vqa
                .questions
                .iter()
                .enumerate()
                .map(|(q, question)| {
                    let question = question.clone();
                    row(
                        Slot::Question(q),
                        SinglePassRow::EncodeQuestion {
                            image: image(),
                            question,
                            is_only_text: vqa.questions.len() == 1,
                            explain: vqa.explain.clone(),
                        },
                    )
                })
                .collect(),
            Task::Similarity(similarity) => {
                let mut work = Vec::new();
                if similarity.scores.cosine {
                    let pooling = Pooling::Projection;
                    let embed = SinglePassRow::EmbedImage { image: image(), pooling };
                    work.push(row(Slot::Image(place), embed));
                }
                if similarity.scores.needs_pairs() {
                    work.extend(similarity.texts.iter().enumerate().map(|(t, text)| {
                        let pair = SinglePassRow::MatchPair {
                            image: image(),
                            text: text.clone(),
                            is_only_text: similarity.texts.len() == 1,
                        };
                        row(Slot::Pair(place, t), pair)
                    }));
                }
                work
            }
            Task::Embed(Embed { subject, output }) => match subject {
                EmbedSubject::Image(_) => {
                    let pooling = output.pooling;
                    vec![row(Slot::Vector, SinglePassRow::EmbedImage { image: image(), pooling })]
                }
                EmbedSubject::Multimodal(_, text) => {
                    let (text, output) = (text.clone(), *output);
                    let embed = SinglePassRow::EmbedMultimodal { image: image(), text, output };
                    vec![row(Slot::Vector, embed)]
                }
                EmbedSubject::Text(_) => Vec::new(),
            },
        }
    }

    /// Stores a row's result. If the result is the hidden states of a question, returns the rows or groups that attend
    /// to these states.
    ///
    /// # Errors
    /// [`PlanError`] if the result does not fit the slot or is not finite.
    pub(crate) fn row_done<M: Clone>(
        &mut self,
        slot: Slot,
        output: SinglePassOutput<M>,
    ) -> Result<Vec<Work<M>>, PlanError> {
        match (slot, output, &self.task) {
            (
                Slot::Question(q),
                SinglePassOutput::EncoderStates { states, attention },
                Task::Vqa(vqa),
            ) => {
                self.results.set_attention(q, attention)?;
                Ok(self.decode(q, &states, None, &vqa.mode, None))
            }
            (Slot::Question(_), _, _) | (_, SinglePassOutput::EncoderStates { .. }, _) => {
                Err(PlanError::Misfit("a row's output has the wrong kind"))
            }
            (slot, SinglePassOutput::Scored(text), _) => {
                self.results.set_scored(slot, text).map(|()| Vec::new())
            }
            (slot, SinglePassOutput::MatchLogits(logits), _) => {
                self.results.set_match(slot, logits).map(|()| Vec::new())
            }
            (slot, SinglePassOutput::Embedding(vector), _) => {
                self.results.set_vector(slot, vector).map(|()| Vec::new())
            }
        }
    }

    /// Stores the sequences of a finished group, best first.
    ///
    /// # Errors
    /// [`PlanError`] if a log-probability is not finite.
    pub(crate) fn group_done(
        &mut self,
        slot: Slot,
        sequences: Vec<Sequence>,
    ) -> Result<(), PlanError> {
        self.results.set_sequences(slot, sequences)
    }

    /// Returns the groups or rows of a decoder that attends to `states`: the features of `image`, or the hidden states
    /// of a question.
    fn decode<M: Clone>(
        &self,
        question: usize,
        states: &M,
        prompt: Option<&TokenIds>,
        mode: &DecodeMode,
        image: Option<FeatureKey>,
    ) -> Vec<Work<M>> {
        match mode {
            DecodeMode::Generate(params) => self.groups(question, states, prompt, params, image),
            DecodeMode::Rank(candidates) => candidates
                .iter()
                .enumerate()
                .map(|(c, candidate)| Work::Row {
                    slot: Slot::Candidate(question, c),
                    row: SinglePassRow::ScoreCandidate {
                        states: states.clone(),
                        candidate: candidate.clone(),
                    },
                    image,
                })
                .collect(),
        }
    }

    fn groups<M: Clone>(
        &self,
        question: usize,
        states: &M,
        prompt: Option<&TokenIds>,
        params: &GenerationParams,
        image: Option<FeatureKey>,
    ) -> Vec<Work<M>> {
        let explain = match &self.task {
            Task::Caption(caption) => caption.explain.clone(),
            Task::Vqa(_) | Task::Similarity(_) | Task::Embed(_) => None,
        };
        let question_tokens = match &self.task {
            Task::Vqa(vqa) => vqa.questions[question].len(),
            Task::Caption(_) | Task::Similarity(_) | Task::Embed(_) => 0,
        };
        let group = |sequence| Work::Group {
            slot: Slot::Group(question, sequence),
            spec: GroupSpec {
                model: self.model.id,
                states: states.clone(),
                prompt: prompt.cloned(),
                params: params.clone(),
                sequence,
                explain: explain.clone(),
            },
            image,
            question_tokens,
        };
        (0..params.groups()).map(group).collect()
    }
}

fn embed_text<M>(slot: Slot, text: TokenIds, output: EmbedOutput) -> Work<M> {
    Work::Row { slot, row: SinglePassRow::EmbedText { text, output }, image: None }
}

/// Returns the layer of the vision tower that the task wants; `None` for the last hidden state, to which texts attend.
fn image_layer(task: &Task) -> Option<u16> {
    match task {
        Task::Embed(Embed { subject: EmbedSubject::Image(_), output }) => output.layer,
        Task::Embed(_) | Task::Caption(_) | Task::Vqa(_) | Task::Similarity(_) => None,
    }
}

fn check(model: &ModelInfo, task: &Task) -> Result<(), PlanError> {
    let role = match task {
        Task::Caption(_) => Some(Role::Caption),
        Task::Vqa(_) => Some(Role::Vqa),
        Task::Similarity(_) => Some(Role::Retrieval),
        Task::Embed(_) => None,
    };
    if role.is_some_and(|role| model.role() != role) {
        return Err(PlanError::Misfit("the model has a different role"));
    }
    let projected = match task {
        Task::Similarity(_) => true,
        Task::Embed(embed) => embed.output.pooling == Pooling::Projection,
        Task::Caption(_) | Task::Vqa(_) => false,
    };
    if projected && !model.class.has_projection() {
        return Err(PlanError::Misfit("the model has no projection"));
    }
    let prepared = |image: &&PreparedImage| Some(image.preprocessing) == model.preprocessing();
    if !task.images().iter().all(prepared) {
        return Err(PlanError::Misfit("an image is prepared for another model"));
    }
    if let Task::Embed(embed) = task
        && !matches!(embed.subject, EmbedSubject::Image(_))
        && !model.class.has_text_encoder()
    {
        return Err(PlanError::Misfit("the model has no text encoder"));
    }
    if let Task::Similarity(similarity) = task
        && similarity.scores.needs_pairs()
        && !model.class.has_matching_head()
    {
        return Err(PlanError::Misfit("the model has no matching head"));
    }
    Ok(())
}
