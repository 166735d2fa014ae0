//! Fair queueing: round robin over clients, within a client over its calls, and first in, first out within a call.
//!
//! The bulk work of clients is served behind all interactive work, round robin in the same way. The callers see to it that
//! it gets its share.

use std::collections::{HashMap, VecDeque};

use super::{CallId, ClientId};

/// A fair queue of waiting items, by client and call.
#[derive(Debug)]
pub struct Turns<T> {
    /// Clients in the order of their turns, those with bulk work at the end. Every client in this list has items.
    clients: VecDeque<ClientId>,
    /// Number of entries of `clients` that are bulk work.
    bulk_clients: usize,
    /// For each client, the calls that have items, in the order of their turns.
    calls: HashMap<ClientId, VecDeque<CallId>>,
    queues: HashMap<CallId, VecDeque<T>>,
}

/// What [`Turns::take`] does with the item at the head of a call's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// Take the item, and end the turn of its call and client.
    Take,
    /// Skip the item. Its call and client keep their places, and the client's next call is tried.
    Pass,
    /// Skip all items of this client. The client keeps its place.
    PassClient,
    /// Remove the item without using up the turn, because the item has already been taken through another call.
    Forget,
    /// Stop, because the work unit is full.
    Stop,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self {
            clients: VecDeque::new(),
            bulk_clients: 0,
            calls: HashMap::new(),
            queues: HashMap::new(),
        }
    }
}

impl<T: Copy + PartialEq> Turns<T> {
    /// Creates a queue without any items.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `item` to the queue of `call`. If the call had no items, it goes behind the client's other calls. If the
    /// client had no items, it goes behind all other clients.
    pub fn push(&mut self, call: CallId, item: T) {
        let queue = self.queues.entry(call).or_default();
        if queue.is_empty() {
            let calls = self.calls.entry(call.client).or_default();
            let is_new = calls.is_empty();
            calls.push_back(call);
            queue.push_back(item);
            if is_new {
                self.enqueue(call.client);
            }
            return;
        }
        queue.push_back(item);
    }

    /// Removes `item` from its call's queue, if it is there.
    pub fn remove(&mut self, call: CallId, item: T) {
        let Some(queue) = self.queues.get_mut(&call) else { return };
        queue.retain(|&waiting| waiting != item);
        if queue.is_empty() {
            self.queues.remove(&call);
            let Some(calls) = self.calls.get_mut(&call.client) else { return };
            calls.retain(|&waiting| waiting != call);
            if calls.is_empty() {
                self.calls.remove(&call.client);
                if let Some(place) = self.place_of(call.client) {
                    self.dequeue(place);
                }
            }
        }
    }

    /// Returns the item whose turn is next.
    #[must_use]
    pub fn front(&self) -> Option<T> {
        let call = self.calls.get(self.clients.front()?)?.front()?;
        self.queues.get(call)?.front().copied()
    }

    /// Returns the item whose turn is next among bulk work, or among all other work.
    #[must_use]
    pub fn front_of(&self, bulk: bool) -> Option<T> {
        let place = if bulk { self.clients.len() - self.bulk_clients } else { 0 };
        let client = self.clients.get(place).filter(|client| client.is_bulk() == bulk)?;
        self.queues.get(self.calls.get(client)?.front()?)?.front().copied()
    }

    /// Removes and returns the item whose turn is next.
    pub fn pop(&mut self) -> Option<T> {
        let client = *self.clients.front()?;
        self.pop_from(client)
    }

    fn place_of(&self, client: ClientId) -> Option<usize> {
        self.clients.iter().position(|&waiting| waiting == client)
    }

    /// Puts a client behind all clients of its class.
    fn enqueue(&mut self, client: ClientId) {
        if client.is_bulk() {
            self.clients.push_back(client);
            self.bulk_clients += 1;
        } else {
            self.clients.insert(self.clients.len() - self.bulk_clients, client);
        }
    }

    /// Removes the client at this index from the order.
    fn dequeue(&mut self, place: usize) {
        let removed = self.clients.remove(place);
        self.bulk_clients -= usize::from(removed.is_some_and(ClientId::is_bulk));
    }

    /// Returns the clients that have items, in the order of their turns.
    pub fn clients(&self) -> impl Iterator<Item = ClientId> {
        self.clients.iter().copied()
    }

    /// Removes and returns this client's next item, even if it is not the client's turn. Meant for callers that choose
    /// the client themselves.
    pub fn pop_from(&mut self, client: ClientId) -> Option<T> {
        let place = self.place_of(client)?;
        self.take_head(place, 0)
    }

    /// Returns the client's calls that have items, in the order of their turns.
    pub fn calls_of(&self, client: ClientId) -> impl Iterator<Item = CallId> {
        self.calls.get(&client).into_iter().flatten().copied()
    }

    /// Cycles over clients and calls, and asks `pick` about the item at the head of each call's queue. Ends when `pick`
    /// returns `Stop` or all remaining items have been skipped. Returns the items taken.
    ///
    /// # Panics
    /// Never: a client in the order has calls, and a call in the order has items.
    pub fn take(&mut self, pick: impl FnMut(T) -> Pick) -> Vec<T> {
        self.take_from(0, pick)
    }

    /// Like [`take`](Self::take), but only from the clients with bulk work.
    pub fn take_bulk(&mut self, pick: impl FnMut(T) -> Pick) -> Vec<T> {
        self.take_from(self.clients.len() - self.bulk_clients, pick)
    }

    fn take_from(&mut self, first: usize, mut pick: impl FnMut(T) -> Pick) -> Vec<T> {
        let mut taken = Vec::new();
        // Index of the client whose turn it is. Nothing more can be taken from the clients before it; they keep their
        // places. For each client, `passed` counts the skipped calls at the front of the client's order; these calls
        // keep their places, too. A client or call from which an item was taken goes to the back.
        let mut place = first;
        let mut passed: HashMap<ClientId, usize> = HashMap::new();
        while let Some(&client) = self.clients.get(place) {
            let calls = self.calls.get_mut(&client).expect("a client in the order has calls");
            let skip = *passed.get(&client).unwrap_or(&0);
            let Some(&call) = calls.get(skip) else {
                place += 1;
                continue;
            };
            let queue = self.queues.get_mut(&call).expect("a call in the order has a queue");
            let head = *queue.front().expect("a queue in the map has items");
            match pick(head) {
                Pick::Stop => break,
                Pick::Pass => *passed.entry(client).or_default() += 1,
                Pick::PassClient => place += 1,
                Pick::Forget => {
                    queue.pop_front();
                    if queue.is_empty() {
                        self.queues.remove(&call);
                        calls.remove(skip);
                        self.leave_if_empty(place);
                    }
                }
                Pick::Take => taken.extend(self.take_head(place, skip)),
            }
        }
        taken
    }

    /// Removes and returns the first item of the call at index `skip` among the calls of the client at index `place`.
    /// If the call or the client has items left, it goes to the back.
    fn take_head(&mut self, place: usize, skip: usize) -> Option<T> {
        let client = *self.clients.get(place)?;
        let calls = self.calls.get_mut(&client)?;
        let call = calls.remove(skip)?;
        let queue = self.queues.get_mut(&call)?;
        let head = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&call);
        } else {
            calls.push_back(call);
        }
        if !self.leave_if_empty(place) {
            self.dequeue(place);
            self.enqueue(client);
        }
        head
    }

    /// Removes the client at index `place` if it has no calls left. Returns true in that case.
    fn leave_if_empty(&mut self, place: usize) -> bool {
        let Some(&client) = self.clients.get(place) else { return true };
        let empty = self.calls.get(&client).is_none_or(VecDeque::is_empty);
        if empty {
            self.calls.remove(&client);
            self.dequeue(place);
        }
        empty
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(client: u64, number: u64) -> CallId {
        CallId { client: ClientId(client), number }
    }

    /// Returns the id of a client's only call. Client and call have the same number.
    fn lone(number: u64) -> CallId {
        call(number, number)
    }

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
    fn a_large_call_does_not_delay_a_call_of_one_item() {
        for [large, single] in [[lone(1), lone(2)], [call(1, 1), call(1, 2)]] {
            let mut turns = Turns::new();
            (0..64).for_each(|item| turns.push(large, item));
            turns.push(single, 100);
            assert_eq!(take_n(&mut turns, 2), [0, 100]);
            assert_eq!(take_n(&mut turns, 2), [1, 2]);
        }
    }

    #[test]
    fn a_client_with_many_calls_does_not_delay_a_client_with_one() {
        let mut turns = Turns::new();
        (0..64).for_each(|item| turns.push(call(1, u64::from(item)), item));
        turns.push(call(2, 100), 100);
        turns.push(call(2, 100), 101);
        assert_eq!(take_n(&mut turns, 5), [0, 100, 1, 101, 2]);
        turns.push(call(3, 101), 102);
        assert_eq!(take_n(&mut turns, 2), [3, 102]);
    }

    #[test]
    fn a_call_that_passes_keeps_its_place() {
        let mut turns = Turns::new();
        turns.push(lone(1), 1);
        turns.push(lone(2), 2);
        turns.push(lone(3), 4);
        let even = turns.take(|item| if item % 2 == 0 { Pick::Take } else { Pick::Pass });
        assert_eq!(even, [2, 4]);
        assert_eq!(turns.front(), Some(1));
    }

    #[test]
    fn a_client_whose_call_passes_offers_its_next_one_and_keeps_the_first_in_front() {
        let mut turns = Turns::new();
        turns.push(call(1, 1), 1);
        turns.push(call(1, 2), 2);
        turns.push(call(1, 2), 3);
        turns.push(call(1, 3), 4);
        let even = turns.take(|item| if item % 2 == 0 { Pick::Take } else { Pick::Pass });
        assert_eq!(even, [2, 4]);
        assert_eq!(take_n(&mut turns, 5), [1, 3]);
        assert_eq!(turns.front(), None);
    }

    #[test]
    fn a_client_that_passes_is_asked_once_and_keeps_its_place() {
        let mut turns = Turns::new();
        turns.push(call(1, 1), 1);
        turns.push(call(1, 2), 2);
        turns.push(call(2, 3), 3);
        let mut asked = Vec::new();
        let taken = turns.take(|item| {
            asked.push(item);
            if item < 3 { Pick::PassClient } else { Pick::Take }
        });
        assert_eq!((asked, taken), (vec![1, 3], vec![3]));
        assert_eq!(turns.front(), Some(1));
    }

    #[test]
    fn one_client_can_be_served_out_of_turn() {
        let mut turns = Turns::new();
        turns.push(call(1, 1), 1);
        turns.push(call(2, 2), 2);
        turns.push(call(2, 3), 3);
        assert_eq!(turns.pop_from(ClientId(2)), Some(2));
        assert_eq!(turns.pop_from(ClientId(2)), Some(3));
        assert_eq!(turns.pop_from(ClientId(2)), None);
        assert_eq!(turns.clients().collect::<Vec<_>>(), [ClientId(1)]);
    }

    #[test]
    fn an_item_taken_through_another_call_costs_no_turn() {
        let mut turns = Turns::new();
        turns.push(lone(1), 7);
        turns.push(lone(2), 7);
        turns.push(lone(2), 8);
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

    fn bulk(number: u64) -> CallId {
        CallId { client: ClientId(number).bulk(), number }
    }

    #[test]
    fn bulk_work_is_taken_behind_all_other_work() {
        let mut turns = Turns::new();
        turns.push(bulk(1), 100);
        turns.push(bulk(2), 200);
        turns.push(bulk(2), 201);
        (0..3).for_each(|item| turns.push(lone(7), item));
        turns.push(lone(8), 10);
        assert_eq!((turns.front(), turns.front_of(false)), (Some(0), Some(0)));
        assert_eq!(turns.front_of(true), Some(100));
        let none = turns.take_bulk(|item| if item < 200 { Pick::PassClient } else { Pick::Stop });
        assert!(none.is_empty());
        assert_eq!(take_n(&mut turns, 7), [0, 10, 1, 2, 100, 200, 201]);
        assert_eq!((turns.bulk_clients, turns.clients.len()), (0, 0));
        assert_eq!((turns.front_of(false), turns.front_of(true)), (None, None));
    }

    #[test]
    fn removing_the_last_item_removes_call_and_client() {
        let mut turns = Turns::new();
        turns.push(lone(1), 1);
        turns.push(lone(2), 2);
        turns.remove(lone(1), 1);
        turns.remove(lone(9), 1);
        assert_eq!(turns.pop(), Some(2));
        assert_eq!(turns.pop(), None);
        assert_eq!(turns.front(), None);
        assert_eq!(turns.clients().count(), 0);
        assert!(turns.queues.is_empty());
    }
}
