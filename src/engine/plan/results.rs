//! Keeps a task's results in slots and assembles the answer from them. Rejects results that are not finite.

use super::Slot;
use crate::task::{
    DecodeMode, Decoded, Embedding, MatchLogits, PatchWeights, QuestionOutput, ScoredText, Scores,
    Sequence, SimilarityCell, Task, TaskOutput,
};

/// Why a task cannot be planned, or why its results cannot be assembled into an answer. The texts are for logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// A result contains NaN or infinity.
    #[error("non-finite values in {0}")]
    NonFinite(&'static str),
    /// An embedding is zero, so it has no direction and no cosine.
    #[error("an embedding has zero norm")]
    ZeroNorm,
    /// The model cannot do the task, or a result does not belong to the task.
    #[error("{0}")]
    Misfit(&'static str),
}

const WRONG_SLOT: PlanError = PlanError::Misfit("a result does not belong to its task");
const MISSING: PlanError = PlanError::Misfit("a result is missing");

/// The results received so far.
#[derive(Debug)]
pub(super) struct Results {
    /// Number of slots still empty.
    missing: usize,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Caption(Slots),
    Vqa(Vec<Question>),
    Similarity(Table),
    Vector(Option<Embedding>),
}

/// Results for one question.
#[derive(Debug)]
struct Question {
    slots: Slots,
    attention: Option<Vec<PatchWeights>>,
}

/// Results of a decoder: of each group, or of each candidate.
#[derive(Debug)]
enum Slots {
    Generated(Vec<Option<Vec<Sequence>>>),
    Ranked(Vec<Option<ScoredText>>),
}

/// Results of a similarity task, indexed by distinct image. The task's i-th image is the distinct image `places[i]`.
#[derive(Debug)]
struct Table {
    scores: Scores,
    places: Vec<usize>,
    texts: usize,
    matching: Vec<Vec<Option<MatchLogits>>>,
    image_directions: Vec<Option<Embedding>>,
    text_directions: Vec<Option<Embedding>>,
    logit_scale: Option<f32>,
}

impl Results {
    /// Creates empty slots for a task with `images` distinct images. The task's i-th image is the distinct image
    /// `places[i]`.
    pub(super) fn new(
        task: &Task,
        places: &[usize],
        images: usize,
        logit_scale: Option<f32>,
    ) -> Self {
        let (missing, kind) = match task {
            Task::Caption(caption) => {
                let slots = Slots::new(&caption.mode);
                (slots.len(), Kind::Caption(slots))
            }
            Task::Vqa(vqa) => {
                let question = |_| Question { slots: Slots::new(&vqa.mode), attention: None };
                let questions: Vec<Question> = vqa.questions.iter().map(question).collect();
                let missing = questions.iter().map(|question| question.slots.len()).sum();
                (missing, Kind::Vqa(questions))
            }
            Task::Similarity(similarity) => {
                let (scores, texts) = (similarity.scores, similarity.texts.len());
                let pairs = if scores.needs_pairs() { images * texts } else { 0 };
                let vectors = if scores.cosine { images + texts } else { 0 };
                let table = Table {
                    scores,
                    places: places.to_vec(),
                    texts,
                    matching: vec![vec![None; texts]; images],
                    image_directions: vec![None; images],
                    text_directions: vec![None; texts],
                    logit_scale,
                };
                (pairs + vectors, Kind::Similarity(table))
            }
            Task::Embed(_) => (1, Kind::Vector(None)),
        };
        Self { missing, kind }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Stores the attention weights of a question's tokens, if they were computed.
    pub(super) fn set_attention(
        &mut self,
        question: usize,
        attention: Option<Vec<PatchWeights>>,
    ) -> Result<(), PlanError> {
        if !attention.iter().flatten().flatten().all(|weight| weight.is_finite()) {
            return Err(PlanError::NonFinite("attention weights"));
        }
        if let Kind::Vqa(questions) = &mut self.kind
            && let Some(question) = questions.get_mut(question)
        {
            question.attention = attention;
        }
        Ok(())
    }

    /// Stores the score of a candidate.
    pub(super) fn set_scored(&mut self, slot: Slot, text: ScoredText) -> Result<(), PlanError> {
        if !text.tokens.iter().all(|token| token.logprob.is_finite()) {
            return Err(PlanError::NonFinite("log-probabilities"));
        }
        let cell = match (self.decoded(slot), slot) {
            (Some(Slots::Ranked(slots)), Slot::Candidate(_, c)) => slots.get_mut(c),
            _ => None,
        };
        let Some(cell) = cell else { return Err(WRONG_SLOT) };
        self.missing -= usize::from(cell.replace(text).is_none());
        Ok(())
    }

    /// Stores the outputs of the matching head for a pair.
    pub(super) fn set_match(&mut self, slot: Slot, logits: MatchLogits) -> Result<(), PlanError> {
        if !(logits.no_match.is_finite() && logits.is_match.is_finite()) {
            return Err(PlanError::NonFinite("match"));
        }
        let cell = match (&mut self.kind, slot) {
            (Kind::Similarity(table), Slot::Pair(i, t)) => {
                table.matching.get_mut(i).and_then(|of| of.get_mut(t))
            }
            _ => None,
        };
        fill(cell, logits, &mut self.missing)
    }

    /// Returns the slots of a caption (question 0) or of a question.
    fn decoded(&mut self, slot: Slot) -> Option<&mut Slots> {
        let (Slot::Group(question, _) | Slot::Candidate(question, _)) = slot else { return None };
        match &mut self.kind {
            Kind::Caption(slots) => Some(slots).filter(|_| question == 0),
            Kind::Vqa(questions) => questions.get_mut(question).map(|question| &mut question.slots),
            Kind::Similarity(_) | Kind::Vector(_) => None,
        }
    }

    /// Stores a vector: unchanged for an embedding task, normalised for a similarity task.
    pub(super) fn set_vector(&mut self, slot: Slot, vector: Embedding) -> Result<(), PlanError> {
        if !vector.as_slice().iter().all(|value| value.is_finite()) {
            return Err(PlanError::NonFinite("an embedding"));
        }
        let direction = vector.normalized();
        let (cell, value) = match (&mut self.kind, slot) {
            (Kind::Vector(cell), Slot::Vector) => {
                // Clients normalise this vector themselves, so a vector that cannot be normalised is rejected.
                direction.map_err(|_| PlanError::ZeroNorm)?;
                (Some(cell), vector)
            }
            (Kind::Similarity(table), Slot::Image(i)) => {
                (table.image_directions.get_mut(i), direction.map_err(|_| PlanError::ZeroNorm)?)
            }
            (Kind::Similarity(table), Slot::Text(t)) => {
                (table.text_directions.get_mut(t), direction.map_err(|_| PlanError::ZeroNorm)?)
            }
            _ => return Err(WRONG_SLOT),
        };
        fill(cell, value, &mut self.missing)
    }

    /// Stores the sequences that a group generated.
    pub(super) fn set_sequences(
        &mut self,
        slot: Slot,
        sequences: Vec<Sequence>,
    ) -> Result<(), PlanError> {
        let finite = |sequence: &Sequence| {
            let weights = sequence.attention.iter().flatten().flatten();
            sequence.tokens.iter().all(|t| t.logprob.is_finite())
                && weights.into_iter().all(|w| w.is_finite())
        };
        if !sequences.iter().all(finite) {
            return Err(PlanError::NonFinite("log-probabilities"));
        }
        let cell = match (self.decoded(slot), slot) {
            (Some(Slots::Generated(slots)), Slot::Group(_, s)) => slots.get_mut(s),
            _ => None,
        };
        let Some(cell) = cell else { return Err(WRONG_SLOT) };
        self.missing -= usize::from(cell.replace(sequences).is_none());
        Ok(())
    }

    /// Assembles the answer. Fails if a result is missing or the vectors to compare differ in length.
    pub(super) fn into_output(self) -> Result<TaskOutput, PlanError> {
        match self.kind {
            Kind::Caption(slots) => slots.into_decoded().map(TaskOutput::Caption),
            Kind::Vqa(questions) => questions
                .into_iter()
                .map(|Question { slots, attention }| {
                    slots.into_decoded().map(|decoded| QuestionOutput { decoded, attention })
                })
                .collect::<Result<_, _>>()
                .map(TaskOutput::Vqa),
            Kind::Similarity(table) if !table.is_one_space() => {
                Err(PlanError::Misfit("image and text vectors differ in length"))
            }
            Kind::Similarity(table) => Ok(TaskOutput::Similarity(table.into_cells())),
            Kind::Vector(vector) => vector.map(TaskOutput::Embed).ok_or(MISSING),
        }
    }
}

impl Slots {
    fn new(mode: &DecodeMode) -> Self {
        match mode {
            DecodeMode::Generate(params) => Self::Generated(vec![None; params.groups()]),
            DecodeMode::Rank(candidates) => Self::Ranked(vec![None; candidates.len()]),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Generated(slots) => slots.len(),
            Self::Ranked(slots) => slots.len(),
        }
    }

    fn into_decoded(self) -> Result<Decoded, PlanError> {
        match self {
            Self::Generated(slots) => {
                let groups: Option<Vec<Vec<Sequence>>> = slots.into_iter().collect();
                let groups = groups.ok_or(MISSING)?;
                Ok(Decoded::Generated(groups.into_iter().flatten().collect()))
            }
            Self::Ranked(slots) => {
                let texts: Option<Vec<ScoredText>> = slots.into_iter().collect();
                texts.map(Decoded::Ranked).ok_or(MISSING)
            }
        }
    }
}

impl Table {
    fn is_one_space(&self) -> bool {
        let mut vectors = self.image_directions.iter().chain(&self.text_directions).flatten();
        let first = vectors.next().map(|vector| vector.as_slice().len());
        vectors.all(|vector| Some(vector.as_slice().len()) == first)
    }

    fn into_cells(self) -> Vec<Vec<SimilarityCell>> {
        let row = |&image: &usize| (0..self.texts).map(|text| self.cell(image, text)).collect();
        self.places.iter().map(row).collect()
    }

    fn cell(&self, image: usize, text: usize) -> SimilarityCell {
        let directions = (&self.image_directions[image], &self.text_directions[text]);
        let cosine = match directions {
            // The norms are 1 only up to rounding, so the dot product may exceed 1.
            (Some(image), Some(text)) => Some(image.dot(text).clamp(-1.0, 1.0)),
            _ => None,
        };
        let logit = cosine.zip(self.logit_scale).map(|(cosine, scale)| cosine * scale);
        let logits = self.matching[image][text];
        SimilarityCell {
            matching: logits.filter(|_| self.scores.matching).map(MatchLogits::probability),
            match_logits: logits.filter(|_| self.scores.match_logits),
            cosine,
            logit,
        }
    }
}

fn fill<T>(cell: Option<&mut Option<T>>, value: T, missing: &mut usize) -> Result<(), PlanError> {
    let cell = cell.ok_or(WRONG_SLOT)?;
    if cell.replace(value).is_none() {
        *missing -= 1;
    }
    Ok(())
}
