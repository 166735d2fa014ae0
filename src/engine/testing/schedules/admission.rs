//! The admission controller alone. A call comes and goes while a drain waits for the last call to end. This test is
//! small enough to explore every possible schedule, so it is certain to find lost notifications and late admissions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use shuttle::future::block_on;
use shuttle::scheduler::DfsScheduler;
use shuttle::thread;

use super::run;
use crate::engine::EngineSettings;
use crate::engine::admission::AdmissionController;
use crate::engine::ids::CallNumbers;
use crate::fairness::ClientId;
use crate::telemetry::metrics::Metrics;

/// Makes a call on one thread and drains on another. The call is either rejected, or admitted before the drain, which
/// then waits for the call to end.
fn a_call_and_a_drain(admitted: &Arc<AtomicUsize>) {
    let metrics = Arc::new(Metrics::try_new().unwrap());
    let admission = AdmissionController::new(
        &EngineSettings::default(),
        Arc::clone(&metrics),
        CallNumbers::default(),
    );
    let was_emptied = Arc::new(AtomicBool::new(false));
    let call = {
        let admission = Arc::clone(&admission);
        let (admitted, was_emptied) = (Arc::clone(admitted), Arc::clone(&was_emptied));
        thread::spawn(move || {
            let now = Instant::now();
            if let Ok(reservation) =
                admission.admit(ClientId::default(), 10, now + Duration::from_secs(30), now)
            {
                assert!(!was_emptied.load(Ordering::SeqCst), "admitted when nothing was to remain");
                admitted.fetch_add(1, Ordering::Relaxed);
                drop(reservation);
            }
        })
    };
    admission.close();
    block_on(admission.emptied());
    was_emptied.store(true, Ordering::SeqCst);
    call.join().unwrap();
    assert_eq!((metrics.queue_rows.get(), metrics.queue_bytes.get()), (0, 0));
}

#[test]
fn under_every_schedule_a_drain_sees_the_last_call_go_and_none_come() {
    let admitted = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&admitted);
    let count = run(DfsScheduler::new(None, false), move || a_call_and_a_drain(&seen));
    let admitted = admitted.load(Ordering::Relaxed);
    assert!((1..count).contains(&admitted), "{admitted} admitted of {count}");
}
