//! The four kinds of tasks, each with the type of its output: a caption can only be answered by sequences.

use super::{
    Answer, Caption, Embed, Embedding, Sequence, Similarity, SimilarityCell, Task, TaskOutput, Vqa,
};

/// One kind of task.
pub trait TaskKind: Into<Task> {
    /// What answers a task of this kind.
    type Output;

    /// The output of this kind; `None` if the output belongs to another kind, which no engine returns.
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
    Caption => Vec<Sequence>,
    Vqa => Vec<Answer>,
    Similarity => Vec<Vec<SimilarityCell>>,
    Embed => Embedding,
}
