//! The answer to a query in pieces. A single caption arrives while it is generated. Everything else arrives in one piece
//! per text: answers of VQA models are a word or two, and several texts are generated together.

use std::collections::VecDeque;

use super::stop::StopCutter;
use super::text_query::{AnswerFacts, PreparedQuery};
use crate::http::context::RequestContext;
use crate::http::error::ApiError;
use crate::http::inference::sequences::GeneratedText;
use crate::http::routes::caption::stream::{CaptionPart, CaptionStream, caption_stream};

/// A part of the answer.
#[derive(Debug)]
pub(super) enum TextPart {
    /// The next piece of the text with this index.
    Piece { index: usize, text: String },
    /// The end of the text with this index, with the whole text.
    End { index: usize, generated: GeneratedText },
    /// The error that ended the stream.
    Failed(ApiError),
}

/// An answer that is being generated.
pub(super) struct TextStream {
    caption: Option<(CaptionStream, StopCutter)>,
    /// Parts that are ready to be sent.
    ready: VecDeque<TextPart>,
    facts: AnswerFacts,
}

impl TextStream {
    /// Waits for the first piece.
    ///
    /// # Errors
    /// Any error that occurs before the first piece.
    pub(super) async fn begin(
        query: PreparedQuery,
        facts: AnswerFacts,
        context: &RequestContext,
    ) -> Result<Self, ApiError> {
        match query {
            PreparedQuery::Caption(single) if facts.texts() == 1 => {
                let stream = caption_stream(single, context.clone()).await;
                let stream = stream.map_err(|error| facts.rename(error))?;
                let cutter = StopCutter::new(facts.stops().to_vec());
                Ok(Self { caption: Some((stream, cutter)), ready: VecDeque::new(), facts })
            }
            query @ (PreparedQuery::Caption(_) | PreparedQuery::Vqa(_)) => {
                let texts = query.answer(&facts).await?;
                let parts = texts.into_iter().enumerate().flat_map(|(index, generated)| {
                    let text = generated.text.clone();
                    [TextPart::Piece { index, text }, TextPart::End { index, generated }]
                });
                Ok(Self { caption: None, ready: parts.collect(), facts })
            }
        }
    }

    /// Returns the facts about the answer.
    pub(super) fn facts(&self) -> &AnswerFacts {
        &self.facts
    }

    /// Returns the next part; `None` after the last. If the stream is dropped, the work in the engine is cancelled.
    pub(super) async fn next(&mut self) -> Option<TextPart> {
        while self.ready.is_empty() {
            let (stream, cutter) = self.caption.as_mut()?;
            match stream.next().await? {
                CaptionPart::Delta(delta) => {
                    let text = cutter.push(&delta.text);
                    if !text.is_empty() {
                        self.ready.push_back(TextPart::Piece { index: 0, text });
                    }
                }
                CaptionPart::Done(done) => {
                    let rest = cutter.finish();
                    if !rest.is_empty() {
                        self.ready.push_back(TextPart::Piece { index: 0, text: rest });
                    }
                    let texts = done.answer.into_texts().into_iter();
                    let ends = texts.map(|generated| TextPart::End { index: 0, generated });
                    self.ready.extend(ends);
                }
                CaptionPart::Failed(error) => {
                    self.ready.push_back(TextPart::Failed(self.facts.rename(error)));
                }
            }
        }
        self.ready.pop_front()
    }
}
