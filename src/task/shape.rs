//! The number of rows and images that a task needs. A row is one sequence that a text tower processes, such as a beam
//! or an image-text pair. Rows are counted only in this file: `http` computes a shape before the images are prepared,
//! to reserve capacity; the engine computes the shape again from the submitted task.

use super::{DecodeMode, EmbedSubject, GenerationParams, PreparedImage, Scores, Task};

/// The number of rows and images that a task needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskShape {
    /// Number of rows that the task occupies in the engine, at least 1.
    pub rows: usize,
    /// Number of images that the task names; an image named twice counts twice.
    pub images: usize,
}

impl TaskShape {
    /// Returns the shape of generated captions: one row for each beam or each sequence to draw.
    #[must_use]
    pub fn caption(params: &GenerationParams) -> Self {
        Self::new(params.rows(), 1)
    }

    /// Returns the shape of ranked captions: one row for each candidate.
    #[must_use]
    pub fn ranked_captions(candidates: usize) -> Self {
        Self::new(candidates, 1)
    }

    /// Returns the shape of questions with generated answers: for each question, one row for each beam or sequence to
    /// draw.
    #[must_use]
    pub fn generated_answers(questions: usize, params: &GenerationParams) -> Self {
        Self::new(questions * params.rows(), 1)
    }

    /// Returns the shape of questions with ranked candidates: one row for each pair of a question and a candidate.
    #[must_use]
    pub fn ranked_answers(questions: usize, candidates: usize) -> Self {
        Self::new(questions * candidates, 1)
    }

    /// Returns the shape of a similarity task. The matching score needs one row for each image-text pair. The cosine
    /// needs one row for each text and none for the images.
    #[must_use]
    pub fn similarity(images: usize, texts: usize, scores: Scores) -> Self {
        let pairs = if scores.needs_pairs() { images * texts } else { 0 };
        let encoded = if scores.cosine { texts } else { 0 };
        Self::new(pairs + encoded, images)
    }

    /// Returns the shape of an embedding task: one row, because the task encodes one image, one text, or both
    /// together.
    #[must_use]
    pub fn embed(images: usize) -> Self {
        Self::new(1, images)
    }

    fn new(rows: usize, images: usize) -> Self {
        Self { rows: rows.max(1), images }
    }
}

impl Task {
    /// Returns the number of rows and images that the task needs.
    #[must_use]
    pub fn shape(&self) -> TaskShape {
        match self {
            Self::Caption(caption) => match &caption.mode {
                DecodeMode::Generate(params) => TaskShape::caption(params),
                DecodeMode::Rank(candidates) => TaskShape::ranked_captions(candidates.len()),
            },
            Self::Vqa(vqa) => match &vqa.mode {
                DecodeMode::Generate(params) => {
                    TaskShape::generated_answers(vqa.questions.len(), params)
                }
                DecodeMode::Rank(candidates) => {
                    TaskShape::ranked_answers(vqa.questions.len(), candidates.len())
                }
            },
            Self::Similarity(similarity) => TaskShape::similarity(
                similarity.images.len(),
                similarity.texts.len(),
                similarity.scores,
            ),
            Self::Embed(_) => TaskShape::embed(self.images().len()),
        }
    }

    /// Returns the prepared images that the task needs, in order; an image given twice is listed twice.
    #[must_use]
    pub fn images(&self) -> Vec<&PreparedImage> {
        match self {
            Self::Caption(caption) => vec![&caption.image],
            Self::Vqa(vqa) => vec![&vqa.image],
            Self::Similarity(similarity) => similarity.images.iter().collect(),
            Self::Embed(embed) => match &embed.subject {
                EmbedSubject::Image(image) | EmbedSubject::Multimodal(image, _) => vec![image],
                EmbedSubject::Text(_) => Vec::new(),
            },
        }
    }

    /// Returns the images without repetitions, in order of first use. Also returns, for each image that the task lists,
    /// its index among the distinct images.
    #[must_use]
    pub fn distinct_images(&self) -> (Vec<&PreparedImage>, Vec<usize>) {
        let mut distinct: Vec<&PreparedImage> = Vec::new();
        let mut places = Vec::new();
        for image in self.images() {
            let known = distinct.iter().position(|other| other.has_features_of(image));
            places.push(known.unwrap_or(distinct.len()));
            if known.is_none() {
                distinct.push(image);
            }
        }
        (distinct, places)
    }
}
