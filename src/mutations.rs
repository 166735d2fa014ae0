//! Defects that were found and fixed once, and that tests bring back one by one, to show that the simulation of the
//! whole service (`app/simulation`) finds each of them. Other builds contain none of them: [`is_active`] is a constant
//! there.

/// A defect, as it was before it was fixed. The names in brackets are those of `docs/reliability.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// A call reserves a row and the declared length of its body before any of the body has arrived, and clients have no
    /// shares of the capacity (D1).
    DeclaredBodiesReserveCapacity,
    /// Pictures are decoded in the order of their arrival, whoever sent them (D3).
    DecodesInOrderOfArrival,
    /// Pictures of clients that have left stay in the decoding queue, outside of every limit (D4).
    AbandonedDecodesStay,
    /// The end of the drain time does not end calls that wait for their body or for a decoder (D5).
    DrainIgnoresEarlyCalls,
    /// A new connection is closed if all places are taken, even if another address has taken all of them (D7).
    ConnectionsWithoutShares,
    /// The worker takes turns among calls and not among clients (D10).
    TurnsByCallOnly,
    /// A connection whose client does not read its answer is never closed to make room.
    UnreadAnswersKeepPlaces,
    /// A connection that waits for its client to close keeps its socket, even if new connections need it.
    ClosingConnectionsKeepSockets,
    /// A caption stream that has begun waits for the worker only, even if the drain time ends.
    StreamsIgnoreTheEnd,
    /// A call waits for a picture that another client has sent until it is that client's turn.
    JoinedDecodesKeepTheirTurn,
    /// A bulk request that ends early reads nothing more, so that a client that sends everything before it reads gets no
    /// answer.
    EndedBulkRequestsReadNothing,
}

#[cfg(test)]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Mutation>> = const { std::cell::Cell::new(None) };
}

/// True if this defect is back on this thread.
#[cfg(test)]
pub(crate) fn is_active(mutation: Mutation) -> bool {
    ACTIVE.get() == Some(mutation)
}

/// True if this defect is back: never in this build.
#[cfg(not(test))]
#[inline]
pub(crate) const fn is_active(_: Mutation) -> bool {
    false
}

/// Brings a defect back on this thread while `body` runs.
#[cfg(test)]
pub(crate) fn with<T>(mutation: Option<Mutation>, body: impl FnOnce() -> T) -> T {
    struct Restore(Option<Mutation>);
    impl Drop for Restore {
        fn drop(&mut self) {
            ACTIVE.set(self.0);
        }
    }
    let _restore = Restore(ACTIVE.replace(mutation));
    body()
}
