//! The move of a call to another worker, when its rows are known and it has none yet
//! ([`Admission::reserve`](crate::engine::Admission::reserve)).

use std::sync::Arc;
use std::time::Duration;

use super::{AdmissionController, CallReservation, Usage};
use crate::engine::ids::CallId;

impl AdmissionController {
    /// Returns the number of interactive rows in use.
    pub(crate) fn interactive_rows(&self) -> usize {
        let state = self.state();
        state.usage.rows - state.bulk.rows
    }

    /// True if an admitted call that has no rows yet could reserve `rows` and `images` here, and `bytes` more bytes.
    pub(crate) fn would_reserve(
        &self,
        call: CallId,
        (rows, images): (usize, usize),
        bytes: u64,
        left: Duration,
    ) -> bool {
        let state = self.state();
        let more = Usage { rows, images, bytes, ..Usage::default() };
        self.check_wait(&state, call, (rows, images), left).is_ok()
            && self.check_capacity(&state, call.client, more).is_ok()
    }

    /// Admits a call that another worker has admitted, even during a drain, and reserves its `bytes`. `None` if there is no
    /// room for them.
    pub(super) fn take_over(
        self: &Arc<Self>,
        call: CallId,
        bytes: u64,
        whole: Option<CallReservation>,
    ) -> Option<CallReservation> {
        let mut state = self.state();
        let more = Usage { bytes, ..Usage::default() };
        self.check_capacity(&state, call.client, more).ok()?;
        let reservation = self.begin_call(&mut state, call, whole);
        self.add(&mut state, call, more);
        Some(reservation)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::engine::EngineSettings;
    use crate::engine::ids::CallNumbers;
    use crate::fairness::ClientId;
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn a_call_moves_with_its_bytes_to_another_controller_but_not_to_its_own() {
        let metrics = Arc::new(Metrics::try_new().unwrap());
        let numbers = CallNumbers::default();
        let [first, second] = [(); 2].map(|()| {
            let settings = EngineSettings { capacity_bytes: 100, ..EngineSettings::default() };
            AdmissionController::new(&settings, Arc::clone(&metrics), numbers.clone())
        });
        let (now, left) = (Instant::now(), Duration::from_secs(30));
        let admit = |controller: &Arc<AdmissionController>| {
            controller.admit(ClientId(1), 0, now + left, now).unwrap()
        };
        let bytes = || [&first, &second].map(|controller| controller.state().usage.bytes);
        let mut call = admit(&first);
        call.reserve_bytes(60).unwrap();
        assert!(!call.move_to(&first), "its own");
        let full = admit(&second);
        full.reserve_bytes(50).unwrap();
        assert!(!call.move_to(&second), "no room");
        assert_eq!(bytes(), [60, 50]);
        drop(full);
        assert!(call.move_to(&second));
        assert_eq!(bytes(), [0, 60]);
        assert!(first.is_empty());
        call.raise_bytes(70).unwrap();
        call.raise_bytes(10).unwrap();
        call.reserve(1, 1, left).unwrap();
        assert_eq!((bytes(), second.interactive_rows()), ([0, 70], 1));
        drop(call);
        assert_eq!(bytes(), [0, 0]);
        assert!(second.is_empty());
    }
}
