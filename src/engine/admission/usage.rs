//! How much capacity calls and clients use, and how much work is ahead of a call.

use std::collections::{BTreeMap, VecDeque};

use super::estimate::{Estimates, Profile, WorkAhead};
use crate::engine::ids::CallId;
use crate::fairness::ClientId;

/// Capacity in use by one call, one client, or all clients.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) rows: usize,
    /// Number of images not yet looked up in the feature cache.
    pub(super) images: usize,
    /// Number of images that were cache misses and still have to be encoded.
    pub(super) encodings: usize,
    pub(super) bytes: u64,
}

/// Capacity that a client uses. `usage` is the total; `calls` holds the part of each call in progress, by its number.
#[derive(Debug, Default)]
pub(super) struct Client {
    pub(super) usage: Usage,
    pub(super) calls: BTreeMap<u64, Usage>,
    pub(super) profile: Profile,
}

impl Usage {
    /// True if there is work for the worker. A call whose body is still being read uses bytes only.
    pub(super) fn is_work(self) -> bool {
        self.rows + self.images + self.encodings > 0
    }

    pub(super) fn plus(self, more: Self) -> Self {
        Self {
            rows: self.rows + more.rows,
            images: self.images + more.images,
            encodings: self.encodings + more.encodings,
            bytes: self.bytes + more.bytes,
        }
    }

    pub(super) fn minus(self, less: Self) -> Self {
        Self {
            rows: self.rows - less.rows,
            images: self.images - less.images,
            encodings: self.encodings - less.encodings,
            bytes: self.bytes - less.bytes,
        }
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) usage: Usage,
    /// The part of `usage` that is bulk work.
    pub(super) bulk: Usage,
    /// Number of entries of `clients` that are bulk work.
    pub(super) bulk_clients: usize,
    /// Number of interactive calls in progress.
    pub(super) calls: usize,
    /// Number of calls of bulk work in progress.
    pub(super) bulk_calls: usize,
    /// The calls of bulk work that wait for room, in order of arrival.
    pub(super) waiting: VecDeque<CallId>,
    /// The clients with calls in progress. Empty when all admitted calls have ended.
    pub(super) clients: BTreeMap<ClientId, Client>,
    pub(super) closed: bool,
    pub(super) estimates: Estimates,
    /// Factor by which calls wait longer than the estimates say.
    pub(super) safety_factor: f64,
}

impl State {
    /// Returns the number of calls in progress of the same kind as `call`.
    pub(super) fn calls_like(&mut self, call: CallId) -> &mut usize {
        if call.client.is_bulk() { &mut self.bulk_calls } else { &mut self.calls }
    }

    /// Returns the recent cost of the client's work. Nothing is known about a client without a call in progress.
    pub(super) fn profile(&self, client: ClientId) -> Profile {
        self.clients.get(&client).map(|client| client.profile).unwrap_or_default()
    }

    /// Returns two things. The first is how many competitors have work: the client's other calls, and the other clients.
    /// The second is the work that is scheduled before the last item of `call`. `own` is the number of rows and images that
    /// `call` needs.
    ///
    /// Round robin serves the clients in turn, and serves the calls of each client in turn. So from any other call of the
    /// same client, at most `own` items run before the last item of `call`. Any other client runs at most one item in each
    /// round, up to the round with the last item of `call`.
    pub(super) fn queue_ahead_of(&self, call: CallId, own: (usize, usize)) -> (usize, WorkAhead) {
        let mut queue = WorkAhead::default();
        let (mut calls, mut all) = (0, Usage::default());
        // Number of rounds until the call's last item.
        let (mut turns_rows, mut turns_images) = own;
        let mut count = |usage: Usage, most: (usize, usize), profile: Profile| {
            let encodings = usage.encodings.min(most.1);
            let unknown = usage.images.min(most.1 - encodings);
            let rows = usage.rows.min(most.0);
            queue.rows += rows as f64 * self.estimates.row_weight(profile);
            queue.images += encodings as f64 + self.estimates.encodings(unknown, profile);
            (rows, encodings + unknown)
        };
        if let Some(client) = self.clients.get(&call.client) {
            for usage in
                client.calls.iter().filter(|&(&other, _)| other != call.number).map(|it| *it.1)
            {
                let (rows, images) = count(usage, own, client.profile);
                turns_rows += rows;
                turns_images += images;
                calls += usize::from(usage.is_work());
                all = all.plus(usage);
            }
        }
        // Bulk work runs behind all other work.
        let runs_behind = |other: &ClientId| other.is_bulk() && !call.client.is_bulk();
        let others = self.clients.iter().filter(|(other, _)| **other != call.client);
        for client in others.filter(|(other, _)| !runs_behind(other)).map(|it| it.1) {
            count(client.usage, (turns_rows, turns_images), client.profile);
            calls += usize::from(client.usage.is_work());
            all = all.plus(client.usage);
        }
        let images =
            all.encodings as f64 + self.estimates.encodings(all.images, Profile::default());
        queue.text_has_other_work = all.rows as f64 > images;
        queue.vision_has_other_work = images > 0.0;
        (calls, queue)
    }
}
