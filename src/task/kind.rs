//! The four kinds of tasks, each with the type of its output. With these types, the compiler can check, for example,
//! that the output of a caption task is a list of sequences.

use super::{
    Caption, Decoded, Embed, Embedding, QuestionOutput, Similarity, SimilarityCell, Task,
    TaskOutput, Vqa,
};

/// A kind of task, with the type of its output.
pub trait TaskKind: Into<Task> {
    /// The type of the answer to a task of this kind.
    type Output: Send + Sync;

    /// Converts a task's output to the output of this kind. Returns `None` if the output belongs to another kind; an
    /// engine never returns such an output.
    fn output(output: TaskOutput) -> Option<Self::Output>;
}

/// Connects a task's type with its variant in [`Task`] and [`TaskOutput`].
macro_rules! kinds {
    ($($kind:ident => $output:ty,)+) => {$(
        impl From<$kind> for Task {
            fn from(task: $kind) -> Self {
                Self::$kind(task)
            }
        }

        impl TaskKind for $kind {
            type Output = $output;

            fn output(output: TaskOutput) -> Option<$output> {
                if let TaskOutput::$kind(output) = output { Some(output) } else { None }
            }
        }
    )+};
}

kinds! {
    Caption => Decoded,
    Vqa => Vec<QuestionOutput>,
    Similarity => Vec<Vec<SimilarityCell>>,
    Embed => Embedding,
}
