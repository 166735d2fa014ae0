//! The tools: names, descriptions and arguments, written for the language model that calls them.

use std::sync::Arc;

use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use serde_json::{Map, Value, json};

/// A tool of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ToolKind {
    Caption,
    Ask,
    Match,
    Classify,
    Rank,
}

/// Where a tool may get its pictures from, besides data in the arguments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PictureSources {
    /// The names of folders whose files may be read; `None` if no file may be read.
    pub(super) folders: Option<String>,
    /// Whether the server fetches URLs.
    pub(super) urls: bool,
}

impl ToolKind {
    pub(super) const ALL: [Self; 5] =
        [Self::Caption, Self::Ask, Self::Match, Self::Classify, Self::Rank];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Caption => "caption",
            Self::Ask => "ask",
            Self::Match => "match",
            Self::Classify => "classify",
            Self::Rank => "rank",
        }
    }

    /// Returns the tool of this name.
    pub(super) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Returns the route that does the work.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Caption => "/caption",
            Self::Ask => "/vqa",
            Self::Match => "/similarity",
            Self::Classify => "/classify",
            Self::Rank => "/rank",
        }
    }

    /// Returns the role of the models that the tool needs, as `/info` names it.
    pub(super) fn role(self) -> &'static str {
        match self {
            Self::Caption => "caption",
            Self::Ask => "vqa",
            Self::Match | Self::Classify | Self::Rank => "retrieval",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Caption => "Describe a picture",
            Self::Ask => "Ask about a picture",
            Self::Match => "Compare a picture with texts",
            Self::Classify => "Choose a label for a picture",
            Self::Rank => "Find the best picture or text",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Caption => {
                "Describes a picture in one short sentence. Use it first, to learn what a picture shows. The caption names the \
                 main subject, not every detail, and reads no text in the picture; use ask for details."
            }
            Self::Ask => {
                "Answers questions about a picture, each in one to three words: how many, what color, what is behind, is there. \
                 Ask all questions about one picture in one call. The model always answers, even if the picture does not show \
                 what was asked, so check a doubtful answer with match."
            }
            Self::Match => {
                "Tells how well each text describes a picture: the probability, from 0 to 1, that text and picture belong \
                 together. Use it to check a claim about a picture. The probabilities of several texts do not sum to 1."
            }
            Self::Classify => {
                "Chooses among labels for a picture. Returns a probability for each label, best first; together they sum to 1, \
                 so give all labels that are possible."
            }
            Self::Rank => {
                "Finds among many pictures those that a text describes best (text with the pictures), or among many texts those \
                 that describe a picture best (a picture with texts). Returns the best, in order."
            }
        }
    }

    /// Returns the names of the arguments that the tool needs, apart from pictures.
    pub(super) fn required(self) -> &'static [&'static str] {
        match self {
            Self::Caption | Self::Rank => &[],
            Self::Ask => &["questions"],
            Self::Match => &["texts"],
            Self::Classify => &["labels"],
        }
    }

    /// Returns the arguments of the tool with their schemas.
    pub(super) fn arguments(self, sources: &PictureSources) -> Map<String, Value> {
        let mut arguments = pictures(self == Self::Rank, sources);
        arguments.extend(object(match self {
            Self::Caption => json!({
                "prompt": text("Beginning of the caption, which the model continues, such as: a photo of"),
                "max_new_tokens": {
                    "type": "integer", "minimum": 1, "description": "Maximum length of the caption in tokens.",
                },
                "num_beams": {
                    "type": "integer", "minimum": 1, "maximum": 8,
                    "description": "Beams of the search. 1 is fastest; 3 to 5 give better sentences.",
                },
                "verify": {
                    "type": "boolean",
                    "description": "Adds the probability that the caption describes the picture.",
                },
            }),
            Self::Ask => json!({
                "questions": texts("Short questions in English."),
                "candidates": texts("The only possible answers, such as yes and no. The best one is the answer."),
            }),
            Self::Match => json!({"texts": texts("Sentences that may describe the picture, such as: a dog on a beach.")}),
            Self::Classify => json!({
                "labels": texts("Distinct labels, best with an article, such as: a cat."),
                "template": text("Sentence in which the label replaces {}. Default: a photo of {}"),
            }),
            Self::Rank => json!({
                "text": text("Sentence for which the pictures are ranked."),
                "texts": texts("Sentences that are ranked for one picture."),
                "top_k": {
                    "type": "integer", "minimum": 1, "description": "Number of results. Default: 10.",
                },
            }),
        }));
        let model = text("Name of the model. Leave it out for the default.");
        arguments.insert("model".to_owned(), model);
        arguments
    }

    /// Describes the tool. `note` is added to its description.
    pub(super) fn tool(self, sources: &PictureSources, note: Option<&str>) -> Tool {
        let mut required: Vec<&str> = self.required().to_vec();
        // With files, either of two arguments names the picture. Many clients do not understand `anyOf`, so the
        // descriptions say it.
        if self != Self::Rank && sources.folders.is_none() {
            required.insert(0, "image");
        }
        let mut schema = object(json!({
            "type": "object",
            "properties": self.arguments(sources),
            "additionalProperties": false,
        }));
        // Older versions of JSON Schema do not allow an empty list.
        if !required.is_empty() {
            schema.insert("required".to_owned(), required.into());
        }
        let description = match note {
            Some(note) => format!("{} Note: the model {note}.", self.description()),
            None => self.description().to_owned(),
        };
        let annotations = ToolAnnotations::new()
            .read_only(true)
            .destructive(false)
            .idempotent(true)
            .open_world(sources.urls);
        Tool::new(self.name(), description, Arc::new(schema))
            .with_title(self.title())
            .with_annotations(annotations)
    }
}

/// Returns the arguments that name pictures.
fn pictures(many: bool, sources: &PictureSources) -> Map<String, Value> {
    let mut data =
        "Picture as base64 or data URI, or the id (sha256:...) that an earlier answer contains"
            .to_owned();
    if sources.urls {
        data.push_str(", or an https:// URL");
    }
    let mut pictures = Map::new();
    pictures.insert("image".to_owned(), text(&format!("{data}.")));
    if many {
        let list = texts(&format!("Pictures that are ranked for a text. {data}."));
        pictures.insert("images".to_owned(), list);
    }
    if let Some(folders) = &sources.folders {
        let below = format!("absolute, or relative to {folders}. Only files in there can be read");
        let path = text(&format!("Path of a picture file, instead of image: {below}."));
        pictures.insert("path".to_owned(), path);
        if many {
            let paths = texts(&format!("Paths of picture files, instead of images: {below}."));
            pictures.insert("paths".to_owned(), paths);
        }
    }
    pictures
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn texts(description: &str) -> Value {
    json!({"type": "array", "items": {"type": "string"}, "minItems": 1, "description": description})
}

fn object(value: Value) -> JsonObject {
    if let Value::Object(object) = value { object } else { Map::new() }
}
