//! [`WorkItems`]: the state of every row and group that waits or runs. `turn` adds and removes items; `units` runs
//! them. What the scheduler knows about an item (its cost and its queue) is in `scheduler`.
//!
//! ```text
//! row    add_row ──> waiting ── take_row ──> owned by the unit, which runs it once
//!
//! group  add_group ──> waiting ── join ──> running ── begin_step ──> owned by the unit ── finish ──> gone
//!                                             ^                              │
//!                                             └─────────── advance ──────────┘
//! ```
//!
//! While a unit runs, it owns its rows and groups. If their task ends in the meantime, the unit drops them. `drop_item`
//! drops all other items of a task that ends.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::engine::backend::{GroupSpec, SinglePassRow};
use crate::engine::ids::{FeatureKey, ItemId, TaskId};
use crate::engine::plan::Slot;

/// What an item belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ItemOwner {
    pub(super) task: TaskId,
    /// Place of the item's result in the task's answer.
    pub(super) slot: Slot,
    /// The image that the task pins for this item.
    pub(super) image: Option<FeatureKey>,
}

/// A single-pass row that waits.
#[derive(Debug)]
pub(super) struct WaitingRow<M> {
    pub(super) owner: ItemOwner,
    pub(super) input: SinglePassRow<M>,
}

/// A group that has not joined a step.
#[derive(Debug)]
pub(super) struct WaitingGroup<M> {
    pub(super) owner: ItemOwner,
    /// Number of rows that the group occupies, one for each beam.
    pub(super) rows: usize,
    /// Passed to the backend when the group joins.
    pub(super) spec: GroupSpec<M>,
    /// When the call of the group's task was admitted.
    pub(super) admitted: Instant,
}

/// A group that has joined a step and has not finished.
#[derive(Debug)]
pub(super) struct RunningGroup<G> {
    pub(super) owner: ItemOwner,
    rows: usize,
    /// The backend's state of the group.
    pub(super) state: G,
    /// Number of steps that the group has taken.
    steps: usize,
    /// Number of tokens that each of the group's rows has processed.
    tokens: f64,
    /// When the group got its newest token. Before its first token: when its call was admitted.
    last_token: Instant,
}

/// A group whose search has finished. The backend's state has been dropped.
#[derive(Debug, PartialEq)]
pub(super) struct FinishedGroup {
    pub(super) owner: ItemOwner,
    pub(super) steps: usize,
    pub(super) tokens: f64,
}

impl<G> RunningGroup<G> {
    /// Records a step in which each row processed `tokens` tokens. Returns the time since the group's previous token,
    /// and whether the new token is the group's first.
    pub(super) fn took_step(&mut self, tokens: f64, now: Instant) -> (Duration, bool) {
        self.steps += 1;
        self.tokens += tokens;
        let gap = now.saturating_duration_since(self.last_token);
        self.last_token = now;
        (gap, self.steps == 1)
    }

    /// Ends the group, and drops the backend's state.
    pub(super) fn finish(self) -> FinishedGroup {
        let Self { owner, steps, tokens, .. } = self;
        FinishedGroup { owner, steps, tokens }
    }
}

#[derive(Debug)]
enum ItemState<M, G> {
    Row(WaitingRow<M>),
    Waiting(WaitingGroup<M>),
    Running(RunningGroup<G>),
}

/// All rows and groups that no unit owns. `M` stands for encoder states, `G` for the backend's state of a group.
#[derive(Debug)]
pub(super) struct WorkItems<M, G>(HashMap<ItemId, ItemState<M, G>>);

#[expect(
    clippy::result_large_err,
    reason = "`Err` moves an item back into the map, which happens only if the caller is wrong about its state"
)]
impl<M, G> WorkItems<M, G> {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    pub(super) fn add_row(&mut self, id: ItemId, row: WaitingRow<M>) {
        self.0.insert(id, ItemState::Row(row));
    }

    pub(super) fn add_group(&mut self, id: ItemId, group: WaitingGroup<M>) {
        self.0.insert(id, ItemState::Waiting(group));
    }

    /// Hands a waiting row to the unit that runs it.
    pub(super) fn take_row(&mut self, id: ItemId) -> Option<WaitingRow<M>> {
        self.take(id, |state| match state {
            ItemState::Row(row) => Ok(row),
            ItemState::Waiting(_) | ItemState::Running(_) => Err(state),
        })
    }

    /// Makes a waiting group join the running groups. `open` creates the backend's state of the group. Does nothing if
    /// the group no longer waits.
    ///
    /// # Errors
    /// The group's task and the error of `open`. In this case the group has been removed, and its task must fail.
    pub(super) fn join<E>(
        &mut self,
        id: ItemId,
        open: impl FnOnce(GroupSpec<M>) -> Result<G, E>,
    ) -> Result<(), (TaskId, E)> {
        let waiting = self.take(id, |state| match state {
            ItemState::Waiting(group) => Ok(group),
            ItemState::Row(_) | ItemState::Running(_) => Err(state),
        });
        let Some(WaitingGroup { owner, rows, spec, admitted }) = waiting else { return Ok(()) };
        let state = open(spec).map_err(|error| (owner.task, error))?;
        let last_token = admitted;
        let group = RunningGroup { owner, rows, state, steps: 0, tokens: 0.0, last_token };
        self.0.insert(id, ItemState::Running(group));
        Ok(())
    }

    /// Hands the running groups among `ids` to the unit that runs their next step, in the order of `ids`.
    pub(super) fn begin_step(&mut self, ids: &[ItemId]) -> Vec<(ItemId, RunningGroup<G>)> {
        let running = |state| match state {
            ItemState::Running(group) => Ok(group),
            ItemState::Row(_) | ItemState::Waiting(_) => Err(state),
        };
        ids.iter().filter_map(|&id| self.take(id, running).map(|group| (id, group))).collect()
    }

    /// Takes back a group that has taken a step and has not finished.
    pub(super) fn advance(&mut self, id: ItemId, group: RunningGroup<G>) {
        self.0.insert(id, ItemState::Running(group));
    }

    /// Drops an item whose task has ended. Does nothing if a unit owns the item.
    pub(super) fn drop_item(&mut self, id: ItemId) {
        self.0.remove(&id);
    }

    /// Returns the number of rows of a group, and the backend's state if the group is running; `None` if the item is
    /// not a group.
    pub(super) fn group(&self, id: ItemId) -> Option<(usize, Option<&G>)> {
        match self.0.get(&id)? {
            ItemState::Row(_) => None,
            ItemState::Waiting(group) => Some((group.rows, None)),
            ItemState::Running(group) => Some((group.rows, Some(&group.state))),
        }
    }

    /// Removes an item if `select` accepts its state, and otherwise leaves the item in place.
    fn take<T>(
        &mut self,
        id: ItemId,
        select: impl FnOnce(ItemState<M, G>) -> Result<T, ItemState<M, G>>,
    ) -> Option<T> {
        match select(self.0.remove(&id)?) {
            Ok(selected) => Some(selected),
            Err(state) => {
                self.0.insert(id, state);
                None
            }
        }
    }
}

#[cfg(test)]
impl<M, G> WorkItems<M, G> {
    /// Returns all items. The flag of each is true if it is a running group.
    pub(super) fn running(&self) -> std::collections::BTreeMap<ItemId, bool> {
        let is_running = |state: &ItemState<M, G>| matches!(state, ItemState::Running(_));
        self.0.iter().map(|(&id, state)| (id, is_running(state))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::fake;
    use crate::task::EmbedOutput;
    use crate::task::{GenerationParams, ModelId};

    /// In these tests, encoder states are strings. The backend's state of a group is an `Rc`, whose reference count
    /// shows whether the state has been dropped.
    type Items = WorkItems<&'static str, std::rc::Rc<()>>;

    const ROW: ItemId = ItemId(1);
    const GROUP: ItemId = ItemId(2);

    fn owner(task: u64) -> ItemOwner {
        ItemOwner { task: TaskId(task), slot: Slot::Group(0, 0), image: None }
    }

    fn row() -> WaitingRow<&'static str> {
        WaitingRow {
            owner: owner(1),
            input: SinglePassRow::EmbedText {
                text: fake::text(&[5]),
                output: EmbedOutput::PROJECTION,
            },
        }
    }

    fn group(rows: usize, admitted: Instant) -> WaitingGroup<&'static str> {
        let params = GenerationParams::greedy(4);
        let spec = GroupSpec {
            model: ModelId(0),
            states: "image",
            prompt: None,
            params,
            sequence: 0,
            explain: None,
        };
        WaitingGroup { owner: owner(2), rows, spec, admitted }
    }

    fn open(items: &mut Items, id: ItemId) -> std::rc::Rc<()> {
        let state = std::rc::Rc::new(());
        items.join(id, |_| Ok::<_, ()>(std::rc::Rc::clone(&state))).unwrap();
        state
    }

    #[test]
    fn a_row_runs_once() {
        let mut items = Items::new();
        items.add_row(ROW, row());
        assert_eq!(items.take_row(ROW).unwrap().owner, owner(1));
        assert!(items.take_row(ROW).is_none());
        assert!(items.running().is_empty());
    }

    #[test]
    fn a_group_waits_joins_advances_and_finishes() {
        let (mut items, admitted) = (Items::new(), Instant::now());
        items.add_group(GROUP, group(3, admitted));
        assert!(matches!(items.group(GROUP), Some((3, None))));
        let state = open(&mut items, GROUP);
        assert!(matches!(items.group(GROUP), Some((3, Some(_)))));
        let at = |ms| admitted + Duration::from_millis(ms);

        let [(GROUP, mut group)] = <[_; 1]>::try_from(items.begin_step(&[GROUP])).unwrap() else {
            panic!("another group")
        };
        assert!(items.group(GROUP).is_none(), "the unit owns it");
        assert_eq!(group.took_step(2.5, at(30)), (Duration::from_millis(30), true));
        items.advance(GROUP, group);
        assert_eq!(items.running(), [(GROUP, true)].into());

        let (_, mut group) = items.begin_step(&[GROUP]).remove(0);
        assert_eq!(group.took_step(1.0, at(40)), (Duration::from_millis(10), false));
        assert_eq!(std::rc::Rc::strong_count(&state), 2);
        let finished = FinishedGroup { owner: owner(2), steps: 2, tokens: 3.5 };
        assert_eq!(group.finish(), finished);
        assert_eq!(std::rc::Rc::strong_count(&state), 1, "the backend's state is dropped");
        assert!(items.running().is_empty());
    }

    #[test]
    fn a_group_opens_once_and_takes_part_in_steps_only_after_it_has_joined() {
        let mut items = Items::new();
        items.add_row(ROW, row());
        items.add_group(GROUP, group(1, Instant::now()));
        assert!(items.begin_step(&[ROW, GROUP]).is_empty());
        assert!(items.take_row(GROUP).is_none());
        assert_eq!(items.running(), [(ROW, false), (GROUP, false)].into(), "they still wait");
        open(&mut items, GROUP);
        let again = items.join(GROUP, |_| -> Result<_, ()> { panic!("opened twice") });
        assert_eq!(again, Ok(()));
        assert_eq!(items.begin_step(&[ROW, GROUP, GROUP]).len(), 1);
    }

    #[test]
    fn a_group_that_cannot_be_opened_is_gone_and_names_its_task() {
        let mut items = Items::new();
        items.add_group(GROUP, group(1, Instant::now()));
        assert_eq!(items.join(GROUP, |_| Err("no memory")), Err((TaskId(2), "no memory")));
        assert!(items.running().is_empty());
    }

    #[test]
    fn an_item_of_a_task_that_ends_is_dropped_in_every_state() {
        let mut items = Items::new();
        items.add_row(ROW, row());
        items.add_group(GROUP, group(1, Instant::now()));
        items.add_group(ItemId(3), group(1, Instant::now()));
        let state = open(&mut items, GROUP);
        for id in [ROW, GROUP, ItemId(3), ItemId(4)] {
            items.drop_item(id);
        }
        assert!(items.running().is_empty());
        assert_eq!(std::rc::Rc::strong_count(&state), 1);
    }
}
