//! Passes that become graphs, and the memory of the operations.
//!
//! A graph repeats launches with the addresses and sizes with which they were recorded. So activations come from a heap
//! that is empty at the start of each pass; data that differs between passes is copied into buffers that nothing else in
//! the pass uses; and a decode step is filled up to one of a few numbers of rows.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::GpuOps;
use crate::engine::backend::BackendError;
use crate::gpu::device::{Device, DeviceError};
use crate::gpu::heap::{Buffer, Heap};
use crate::model::ops::PassKey;

/// The data that a pass uploads at once takes a multiple of this many bytes. So a list of pages can grow without moving
/// the data that follows.
const DATA_BYTES: usize = 64 << 10;

/// Chunk of the heap for uploaded data: a decode step of 12 layers uploads some 30 lists.
const DATA_CHUNK_BYTES: usize = 4 << 20;

/// Numbers of rows up to which decode steps are filled up, above eight. Each number needs a graph of its own. Larger
/// numbers are multiples of the last one.
const ROWS: [usize; 2] = [16, 32];

/// Memory of one device.
#[derive(Debug)]
pub(super) struct Memory {
    device: Arc<dyn Device>,
    /// Weights and features. Activations, whose sizes differ more, would fragment it.
    lasting: Arc<Heap>,
    /// Activations. None of them outlives the call of the backend that computed it.
    passing: Arc<Heap>,
    /// Data that passes upload.
    data: Arc<Heap>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pass: Option<Pass>,
    /// Data that was uploaded, with its bytes: all of the current pass, or the last outside of a pass.
    placed: Vec<(Vec<u8>, Arc<Buffer>)>,
}

/// The current pass.
#[derive(Debug, Clone, Copy)]
struct Pass {
    /// `None` unless the pass is a decode step.
    filled_up: Option<FilledUp>,
}

/// Numbers of rows in a decode step.
#[derive(Debug, Clone, Copy)]
struct FilledUp {
    rows: usize,
    launched: usize,
}

impl Memory {
    pub(super) fn new(device: &Arc<dyn Device>) -> Self {
        let heap = || Arc::new(Heap::new(Arc::clone(device)));
        let data = Heap::with_chunks(Arc::clone(device), DATA_CHUNK_BYTES);
        Self {
            device: Arc::clone(device),
            lasting: heap(),
            passing: heap(),
            data: Arc::new(data),
            state: Mutex::default(),
        }
    }

    /// Returns the device, not behind the recorder: what is called on it is never part of a graph.
    pub(super) fn device(&self) -> Arc<dyn Device> {
        Arc::clone(&self.device)
    }

    /// Returns all heaps.
    pub(super) fn heaps(&self) -> [&Arc<Heap>; 3] {
        [&self.lasting, &self.passing, &self.data]
    }

    /// Returns the heap for weights and features.
    pub(super) fn lasting(&self) -> &Arc<Heap> {
        &self.lasting
    }

    /// Returns how many bytes the heaps have allocated, and how many of them are in buffers.
    pub(super) fn bytes(&self) -> [usize; 2] {
        let heaps = self.heaps();
        [heaps.map(|heap| heap.allocated_bytes()), heaps.map(|heap| heap.used_bytes())]
            .map(|bytes| bytes.into_iter().sum())
    }

    /// Returns the heap for activations.
    pub(super) fn passing(&self) -> &Arc<Heap> {
        &self.passing
    }

    /// Returns how many rows kernels compute for activations of this many rows. In a decode step that was filled up this
    /// is more; the values of the other rows are undefined, and nothing depends on them.
    pub(super) fn launched(&self, rows: usize) -> usize {
        match self.state().pass {
            Some(Pass { filled_up: Some(filled_up) }) if filled_up.rows == rows => {
                filled_up.launched
            }
            _ => rows,
        }
    }

    /// True during a pass of a vision tower.
    pub(super) fn is_vision_pass(&self) -> bool {
        self.state().pass.is_some_and(|pass| pass.filled_up.is_none())
    }

    /// Uploads data, unless equal data is already there.
    pub(super) fn place(
        &self,
        device: &dyn Device,
        bytes: Vec<u8>,
    ) -> Result<Arc<Buffer>, DeviceError> {
        let mut state = self.state();
        if let Some((_, buffer)) = state.placed.iter().find(|(placed, _)| *placed == bytes) {
            return Ok(Arc::clone(buffer));
        }
        if state.pass.is_none() {
            state.placed.clear();
        }
        let buffer = self.data.buffer(bytes.len().next_multiple_of(DATA_BYTES))?;
        device.upload(buffer.address(), &bytes)?;
        let buffer = Arc::new(buffer);
        state.placed.push((bytes, Arc::clone(&buffer)));
        Ok(buffer)
    }

    fn begin(&self, filled_up: Option<FilledUp>) {
        let mut state = self.state();
        state.placed.clear();
        state.pass = Some(Pass { filled_up });
    }

    fn end(&self) {
        let mut state = self.state();
        state.placed.clear();
        state.pass = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the pass when it is dropped, also by a panic.
struct PassGuard<'a>(&'a GpuOps);

impl Drop for PassGuard<'_> {
    fn drop(&mut self) {
        self.0.memory.end();
        // Does nothing after a pass that succeeded, which has been ended already.
        drop(self.0.device.end(false));
    }
}

impl GpuOps {
    /// Implements [`Ops::pass`](crate::model::ops::Ops::pass).
    pub(super) fn recorded<T>(
        &self,
        key: PassKey,
        pass: impl FnOnce() -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let (key, filled_up) = match key {
            PassKey::Vision { .. } => (key, None),
            PassKey::Decode { decoder, rows } => {
                let launched = filled_up(rows);
                (PassKey::Decode { decoder, rows: launched }, Some(FilledUp { rows, launched }))
            }
        };
        self.device.begin(key);
        self.memory.begin(filled_up);
        let guard = PassGuard(self);
        let result = pass()?;
        self.device.end(true)?;
        drop(guard);
        Ok(result)
    }
}

/// Returns the number of rows up to which a decode step is filled up.
fn filled_up(rows: usize) -> usize {
    let fitting = ROWS.into_iter().find(|&more| rows <= more);
    if rows <= 8 { rows } else { fitting.unwrap_or(rows.next_multiple_of(ROWS[1])) }
}
