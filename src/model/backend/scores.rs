//! What the searches of a step need of its logits. Most need only the best tokens of their rows. A device may find these
//! itself, so that the logits of the whole vocabulary need not be copied to the host.

use crate::engine::backend::BackendError;
use crate::model::ops::{BestTokens, HostRows, Ops};
use crate::model::search::{RowScores, WantedScores};

/// The scores of all rows of a step.
pub(super) struct StepScores<'a> {
    host: HostRows<'a>,
    best: Vec<BestTokens>,
    /// For each row, where its scores are.
    places: Vec<Place>,
}

/// Index of a row's scores.
enum Place {
    Host(usize),
    Best(usize),
}

impl<'a> StepScores<'a> {
    /// Reads what each row's search wants of `logits` `[rows, vocabulary]`. What is read for a row does not depend on the
    /// other rows.
    pub(super) fn read<O: Ops>(
        ops: &O,
        logits: &'a O::Act,
        wanted: &[WantedScores],
    ) -> Result<Self, BackendError> {
        let few = wanted.iter().filter_map(|wanted| match wanted {
            WantedScores::Best(count) => Some(*count),
            WantedScores::All => None,
        });
        let Some(best) = few.max().map(|most| ops.best_tokens(logits, most)).transpose()?.flatten()
        else {
            let places = (0..wanted.len()).map(Place::Host).collect();
            return Ok(Self { host: ops.host_rows(logits)?, best: Vec::new(), places });
        };
        let mut complete = Vec::new();
        let mut places = Vec::with_capacity(wanted.len());
        for (row, wanted) in wanted.iter().enumerate() {
            places.push(match wanted {
                WantedScores::Best(_) => Place::Best(row),
                WantedScores::All => {
                    complete.push(row);
                    Place::Host(complete.len() - 1)
                }
            });
        }
        let host = if complete.is_empty() {
            HostRows::new(Vec::new(), 1)
        } else {
            ops.host_rows(&ops.select_rows(logits, &complete)?)?.into_owned()
        };
        Ok(Self { host, best, places })
    }

    /// Returns the scores of each row.
    pub(super) fn rows(&self) -> Vec<RowScores<'_>> {
        let host: Vec<&[f32]> = self.host.iter().collect();
        let row = |place: &Place| match place {
            Place::Host(index) => RowScores::All(host[*index]),
            Place::Best(index) => RowScores::Best(&self.best[*index]),
        };
        self.places.iter().map(row).collect()
    }
}
