//! Rules for a capacity that all clients share.

/// Returns the capacity plus a reserve of a quarter of it. The reserve is for clients that use little of the capacity.
#[must_use]
pub fn with_reserve(capacity: u64) -> u64 {
    capacity.saturating_add(capacity / 4)
}

/// True if a client that uses `own` of the capacity may take `more`. `clients` is the number of clients that share the
/// capacity, this one included, and `taken` is the total that all of them use.
///
/// A client that is alone may take everything. If there are other clients, the total may exceed the capacity only if
/// the client, with `more`, uses at most its equal share and at most a quarter of the capacity. So a client that has
/// filled the capacity cannot lock the others out. The total in use never exceeds 1.25 times the capacity.
#[must_use]
pub fn fits(capacity: u64, taken: u64, own: u64, clients: usize, more: u64) -> bool {
    let after = taken.saturating_add(more);
    if after <= capacity {
        return true;
    }
    let most = with_reserve(capacity);
    let share = (capacity / clients.max(1) as u64).min(most - capacity);
    clients > 1 && own.saturating_add(more) <= share && after <= most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_alone_may_take_everything_and_no_more() {
        assert!(fits(100, 60, 60, 1, 40));
        assert!(!fits(100, 60, 60, 1, 41));
    }

    #[test]
    fn a_client_that_holds_little_gets_room_beyond_what_another_has_filled() {
        assert!(fits(100, 100, 0, 2, 25));
        assert!(!fits(100, 100, 0, 2, 26), "above the reserve");
        assert!(fits(100, 110, 10, 2, 15));
        assert!(!fits(100, 100, 100, 2, 1), "who has filled it gets nothing more");
        assert!(!fits(100, 100, 0, 10, 11), "above the share of ten");
        assert!(fits(100, 100, 0, 10, 10));
        assert!(!fits(100, 100, 1, 2, u64::MAX), "no overflow");
    }
}
