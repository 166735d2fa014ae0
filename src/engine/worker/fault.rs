//! Catches panics and errors of the backend, and searches for the item at fault.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::engine::EngineError;
use crate::engine::backend::BackendError;
use crate::telemetry::logging::clipped;

/// Why a call of the backend returned no result.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    Error(BackendError),
    Panic(String),
}

impl Fault {
    /// Returns the error for the task at fault. Running out of memory even with a single item is reported as overload,
    /// because it is not the item's fault.
    pub(super) fn to_error(&self, retry_after: Duration) -> EngineError {
        match self {
            Self::Error(BackendError::OutOfMemory(_)) => EngineError::Overloaded { retry_after },
            Self::Error(error) => EngineError::InferenceFailed(error.to_string()),
            Self::Panic(message) => EngineError::InferenceFailed(format!("panic: {message}")),
        }
    }

    /// Returns the cause as text, for the operator who starts the server.
    pub(super) fn cause(&self) -> String {
        match self {
            Self::Error(error) => error.to_string(),
            Self::Panic(message) => format!("panic: {}", clipped(message)),
        }
    }

    /// True if a smaller unit may succeed.
    pub(super) fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Error(BackendError::OutOfMemory(_)))
    }
}

/// True if no call of the backend can succeed any more.
fn is_lost(fault: &Fault) -> bool {
    matches!(fault, Fault::Error(BackendError::DeviceLost(_)))
}

/// Calls the backend and catches panics. This is unwind-safe because the contract of `Backend` says that a failed
/// backend call leaves the groups unchanged.
pub(super) fn attempt<T>(call: impl FnOnce() -> Result<T, BackendError>) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Fault::Error(error)),
        Err(payload) => Err(Fault::Panic(message(payload.as_ref()))),
    }
}

/// Fails with the error that `crate::faults` injects into this backend call, if any.
pub(super) fn injected(place: &str) -> Result<(), BackendError> {
    match crate::faults::kind(place).as_deref() {
        None => Ok(()),
        Some("oom") => Err(BackendError::OutOfMemory("injected".into())),
        Some("nan") => Err(BackendError::NonFinite("an injected fault")),
        Some(_) => Err(BackendError::Device("injected".into())),
    }
}

/// Returns the message of a panic.
pub(super) fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown".into())
}

/// Runs `items` together. If that fails, runs each half, and so on down to single items, so that only the items at
/// fault fail. Returns one result per item, in order.
///
/// If the backend runs out of memory, the items are halved only once. If a half runs out of memory too, all its items
/// fail: whatever fills the memory is unlikely to leave room for quarters. If the device is lost, all items fail at once.
pub(super) fn run_or_split<T, R>(
    items: &mut [T],
    call: &mut impl FnMut(&mut [T]) -> Result<Vec<R>, Fault>,
) -> Vec<Result<R, Fault>> {
    run(items, call, true)
}

fn run<T, R>(
    items: &mut [T],
    call: &mut impl FnMut(&mut [T]) -> Result<Vec<R>, Fault>,
    halve_for_memory: bool,
) -> Vec<Result<R, Fault>> {
    if items.is_empty() {
        return Vec::new();
    }
    let outcome = call(items).and_then(|outputs| {
        if outputs.len() == items.len() {
            return Ok(outputs);
        }
        Err(Fault::Error(BackendError::Device(
            "a call returned the wrong number of results".into(),
        )))
    });
    match outcome {
        Ok(outputs) => outputs.into_iter().map(Ok).collect(),
        Err(fault) if items.len() == 1 => vec![Err(fault)],
        Err(fault) if is_lost(&fault) || fault.is_out_of_memory() && !halve_for_memory => {
            items.iter().map(|_| Err(fault.clone())).collect()
        }
        Err(fault) => {
            let halve_for_memory = halve_for_memory && !fault.is_out_of_memory();
            let (left, right) = items.split_at_mut(items.len() / 2);
            let mut results = run(left, call, halve_for_memory);
            results.extend(run(right, call, halve_for_memory));
            results
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_items_at_fault_alone_fail_and_the_others_run_once_more() {
        let mut items: Vec<u32> = (0..16).collect();
        let mut calls = 0;
        let results = run_or_split(&mut items, &mut |part: &mut [u32]| {
            calls += 1;
            attempt(|| {
                assert!(!part.contains(&11), "eleven");
                Ok(part.iter().map(|item| item * 2).collect())
            })
        });
        for (item, result) in results.iter().enumerate() {
            match result {
                Ok(double) => assert_eq!(*double as usize, item * 2),
                Err(Fault::Panic(text)) => assert_eq!((item, text.as_str()), (11, "eleven")),
                Err(fault) => panic!("{fault:?}"),
            }
        }
        // One backend call with all 16 items, then two each with 8, 4, 2 and 1 items.
        assert_eq!((results.len(), calls), (16, 9));
    }

    #[test]
    fn what_does_not_fit_into_memory_is_halved_once() {
        let mut calls = Vec::new();
        let results = run_or_split(&mut [0; 8], &mut |part: &mut [u8]| {
            calls.push(part.len());
            let full = BackendError::OutOfMemory("full".into());
            if part.len() > 2 { Err(Fault::Error(full)) } else { Ok(part.to_vec()) }
        });
        assert_eq!(calls, [8, 4, 4]);
        assert!(
            results.iter().all(|result| matches!(result, Err(fault) if fault.is_out_of_memory()))
        );
    }

    #[test]
    fn a_poisoned_item_is_found_after_halving_for_memory() {
        let mut items: Vec<u8> = (0..8).collect();
        let results = run_or_split(&mut items, &mut |part: &mut [u8]| {
            attempt(|| {
                if part.len() > 4 {
                    return Err(BackendError::OutOfMemory("full".into()));
                }
                assert!(!part.contains(&6), "six");
                Ok(part.to_vec())
            })
        });
        let failed: Vec<usize> = (0..8).filter(|&item| results[item].is_err()).collect();
        assert_eq!(failed, [6]);
    }

    #[test]
    fn a_missing_result_is_a_fault() {
        let results = run_or_split(&mut [1], &mut |_: &mut [i32]| Ok(Vec::<i32>::new()));
        assert!(matches!(results[..], [Err(Fault::Error(BackendError::Device(_)))]));
    }
}
