//! Calls take turns: one item each, round and round; first come first served inside a call.

use std::collections::{HashMap, VecDeque};

use crate::engine::ids::CallId;

/// Items that wait, by call.
#[derive(Debug)]
pub(super) struct Turns<T> {
    /// Whose turn it is, from the front; every call here has items.
    order: VecDeque<CallId>,
    queues: HashMap<CallId, VecDeque<T>>,
}

/// What to do with the item at the head of a call.
pub(super) enum Pick {
    /// Take it; the call's turn is over.
    Take,
    /// Not now; the call keeps its place.
    Pass,
    /// It has been taken through another call: forget it, the call's turn stays.
    Forget,
    /// The unit is full.
    Stop,
}

impl<T: Copy + PartialEq> Turns<T> {
    pub(super) fn new() -> Self {
        Self { order: VecDeque::new(), queues: HashMap::new() }
    }

    /// Appends `item` to its call; a call without items enters behind the others.
    pub(super) fn push(&mut self, call: CallId, item: T) {
        let queue = self.queues.entry(call).or_default();
        if queue.is_empty() {
            self.order.push_back(call);
        }
        queue.push_back(item);
    }

    /// Takes `item` out of its call's queue, if it is there.
    pub(super) fn remove(&mut self, call: CallId, item: T) {
        let Some(queue) = self.queues.get_mut(&call) else { return };
        queue.retain(|&waiting| waiting != item);
        if queue.is_empty() {
            self.queues.remove(&call);
            self.order.retain(|&waiting| waiting != call);
        }
    }

    /// The item whose turn is next.
    pub(super) fn front(&self) -> Option<T> {
        let call = self.order.front()?;
        self.queues.get(call)?.front().copied()
    }

    /// Goes round the calls and asks `pick` about the item at the head of each, until it stops or all pass.
    pub(super) fn take(&mut self, mut pick: impl FnMut(T) -> Pick) -> Vec<T> {
        let mut taken = Vec::new();
        // Calls before `place` have passed and keep their places; those that took an item go to the back.
        let mut place = 0;
        while let Some(&call) = self.order.get(place) {
            let queue = self.queues.get_mut(&call).expect("a call in the order has a queue");
            let head = *queue.front().expect("a queue in the map has items");
            match pick(head) {
                Pick::Stop => break,
                Pick::Pass => place += 1,
                Pick::Forget => {
                    queue.pop_front();
                    self.leave_if_empty(place, call);
                }
                Pick::Take => {
                    queue.pop_front();
                    taken.push(head);
                    if !self.leave_if_empty(place, call) {
                        self.order.remove(place);
                        self.order.push_back(call);
                    }
                }
            }
        }
        taken
    }

    fn leave_if_empty(&mut self, place: usize, call: CallId) -> bool {
        let empty = self.queues.get(&call).is_none_or(VecDeque::is_empty);
        if empty {
            self.queues.remove(&call);
            self.order.remove(place);
        }
        empty
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_n(turns: &mut Turns<u32>, n: usize) -> Vec<u32> {
        let mut left = n;
        turns.take(|_| {
            if left == 0 {
                return Pick::Stop;
            }
            left -= 1;
            Pick::Take
        })
    }

    #[test]
    fn a_large_call_does_not_stand_before_a_single_one() {
        let mut turns = Turns::new();
        (0..64).for_each(|item| turns.push(CallId(1), item));
        turns.push(CallId(2), 100);
        assert_eq!(take_n(&mut turns, 2), [0, 100]);
        assert_eq!(take_n(&mut turns, 2), [1, 2]);
    }

    #[test]
    fn a_call_that_passes_keeps_its_place() {
        let mut turns = Turns::new();
        turns.push(CallId(1), 1);
        turns.push(CallId(2), 2);
        turns.push(CallId(3), 4);
        let even = turns.take(|item| if item % 2 == 0 { Pick::Take } else { Pick::Pass });
        assert_eq!(even, [2, 4]);
        assert_eq!(turns.front(), Some(1));
    }

    #[test]
    fn an_item_taken_through_another_call_costs_no_turn() {
        let mut turns = Turns::new();
        turns.push(CallId(1), 7);
        turns.push(CallId(2), 7);
        turns.push(CallId(2), 8);
        let mut seen = Vec::new();
        let taken = turns.take(|item| {
            if seen.contains(&item) {
                return Pick::Forget;
            }
            seen.push(item);
            Pick::Take
        });
        assert_eq!(taken, [7, 8]);
        assert_eq!(turns.front(), None);
    }

    #[test]
    fn removing_the_last_item_removes_the_call() {
        let mut turns = Turns::new();
        turns.push(CallId(1), 1);
        turns.push(CallId(2), 2);
        turns.remove(CallId(1), 1);
        turns.remove(CallId(9), 1);
        assert_eq!(take_n(&mut turns, 5), [2]);
        assert_eq!(turns.front(), None);
    }
}
