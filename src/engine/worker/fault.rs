//! Panics and errors of the backend, caught; and the search for the item at fault.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::engine::EngineError;
use crate::engine::backend::BackendError;

/// Why a call of the backend gave nothing.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    Error(BackendError),
    Panic(String),
}

impl Fault {
    /// What the task at fault is told. Running out of memory with a single item is the server's load, not the item.
    pub(super) fn to_error(&self, retry_after: Duration) -> EngineError {
        match self {
            Self::Error(BackendError::OutOfMemory(_)) => EngineError::Overloaded { retry_after },
            Self::Error(error) => EngineError::InferenceFailed(error.to_string()),
            Self::Panic(message) => EngineError::InferenceFailed(format!("panic: {message}")),
        }
    }
}

/// Calls the backend. Its contract makes the unwind safe: a failed call keeps nothing, groups stay as they were.
pub(super) fn attempt<T>(call: impl FnOnce() -> Result<T, BackendError>) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Fault::Error(error)),
        Err(payload) => Err(Fault::Panic(message(payload.as_ref()))),
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown".into())
}

/// Runs `items` together; when that fails, its halves, down to the items at fault, which alone have errors.
/// One result per item, in order.
pub(super) fn run_or_split<T, R>(
    items: &mut [T],
    call: &mut impl FnMut(&mut [T]) -> Result<Vec<R>, Fault>,
) -> Vec<Result<R, Fault>> {
    if items.is_empty() {
        return Vec::new();
    }
    let outcome = call(items).and_then(|outputs| {
        if outputs.len() == items.len() {
            return Ok(outputs);
        }
        Err(Fault::Error(BackendError::Device("a call gave too few or too many results".into())))
    });
    match outcome {
        Ok(outputs) => outputs.into_iter().map(Ok).collect(),
        Err(fault) if items.len() == 1 => vec![Err(fault)],
        Err(_) => {
            let (left, right) = items.split_at_mut(items.len() / 2);
            let mut results = run_or_split(left, call);
            results.extend(run_or_split(right, call));
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
        // 16, then two halves of 8, 4, 2 and 1.
        assert_eq!((results.len(), calls), (16, 9));
    }

    #[test]
    fn a_missing_result_is_a_fault() {
        let results = run_or_split(&mut [1], &mut |_: &mut [i32]| Ok(Vec::<i32>::new()));
        assert!(matches!(results[..], [Err(Fault::Error(BackendError::Device(_)))]));
    }
}
