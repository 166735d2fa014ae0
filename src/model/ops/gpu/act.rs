//! Activations on a GPU, and copies of their rows.

use std::sync::Arc;

use super::GpuOps;
use crate::engine::backend::BackendError;
use crate::gpu::device::{Address, Format};
use crate::gpu::heap::Buffer;
use crate::gpu::kernels::rows;

/// Activations `[rows, width]`, in f32 ("wide"), in the format of the weights ("narrow"), or in both; clones share the
/// buffers.
#[derive(Debug, Clone)]
pub struct GpuActivations {
    rows: usize,
    /// Number of rows that kernels compute, at least `rows`; see [`Memory::launched`](super::pass::Memory::launched).
    launched: usize,
    width: usize,
    /// At least one of the two is there. With weights in f32, both are the same buffer.
    wide: Option<Arc<Buffer>>,
    narrow: Option<Arc<Buffer>>,
}

impl GpuActivations {
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the number of rows that kernels compute, at least [`rows`](Self::rows).
    pub(super) fn launched(&self) -> usize {
        self.launched
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }
}

impl GpuOps {
    /// Returns activations in these buffers. With weights in f32, one buffer is enough for both forms.
    pub(super) fn act(
        &self,
        rows: usize,
        width: usize,
        wide: Option<Arc<Buffer>>,
        narrow: Option<Arc<Buffer>>,
    ) -> GpuActivations {
        let (wide, narrow) = match self.format {
            Format::F32 => (wide.clone().or_else(|| narrow.clone()), narrow.or(wide)),
            Format::Bf16 | Format::F16 => (wide, narrow),
        };
        GpuActivations { rows, launched: self.memory.launched(rows), width, wide, narrow }
    }

    pub(super) fn wide_act(&self, rows: usize, width: usize, wide: Buffer) -> GpuActivations {
        self.act(rows, width, Some(Arc::new(wide)), None)
    }

    pub(super) fn narrow_act(&self, rows: usize, width: usize, narrow: Buffer) -> GpuActivations {
        self.act(rows, width, None, Some(Arc::new(narrow)))
    }

    /// Returns the values in f32, converted if they are not there yet.
    pub(super) fn wide(&self, x: &GpuActivations) -> Result<Arc<Buffer>, BackendError> {
        let count = x.launched * x.width;
        match (&x.wide, &x.narrow) {
            (Some(wide), _) => Ok(Arc::clone(wide)),
            (None, Some(narrow)) => {
                let wide = self.wide_buffer(count)?;
                let (from, to) = (narrow.address(), wide.address());
                rows::widen(self.device(), self.format, from, to, count)?;
                Ok(Arc::new(wide))
            }
            (None, None) => unreachable!("activations have at least one form"),
        }
    }

    /// Returns the values in the format of the weights, converted if they are not there yet.
    pub(super) fn narrow(&self, x: &GpuActivations) -> Result<Arc<Buffer>, BackendError> {
        let count = x.launched * x.width;
        match (&x.narrow, &x.wide) {
            (Some(narrow), _) => Ok(Arc::clone(narrow)),
            (None, Some(wide)) => {
                let narrow = self.narrow_buffer(count)?;
                let (from, to) = (wide.address(), narrow.address());
                rows::narrow(self.device(), self.format, from, to, count)?;
                Ok(Arc::new(narrow))
            }
            (None, None) => unreachable!("activations have at least one form"),
        }
    }

    /// Returns the values in the format of the weights, in a buffer that may outlive the call of the backend.
    pub(super) fn lasting_narrow(&self, x: &GpuActivations) -> Result<Arc<Buffer>, BackendError> {
        // Only `split` makes states that are kept, and its slices are lasting.
        if let Some(narrow) = &x.narrow {
            return Ok(Arc::clone(narrow));
        }
        let slices = self.split(x, &[x.rows])?;
        self.narrow(&slices[0])
    }

    /// Copies the rows with these indices.
    pub(super) fn gather(
        &self,
        x: &GpuActivations,
        indices: &[usize],
    ) -> Result<GpuActivations, BackendError> {
        let rows = self.memory.launched(indices.len());
        let mut places = indices.to_vec();
        places.resize(rows, 0);
        let places = self.place_ints(&places)?;
        let gather = |from: &Arc<Buffer>, value_bytes: usize| {
            let row_bytes = x.width * value_bytes;
            let out = self.memory.passing().buffer(rows * row_bytes)?;
            let (from, to, indices) = (from.address(), out.address(), places.address());
            rows::gather(self.device(), rows::Gather { from, indices, to, rows, row_bytes })?;
            Ok::<_, BackendError>(Arc::new(out))
        };
        let wide = x.wide.as_ref().map(|wide| gather(wide, size_of::<f32>())).transpose()?;
        let narrow = match self.format {
            Format::F32 => None,
            Format::Bf16 | Format::F16 => {
                x.narrow.as_ref().map(|narrow| gather(narrow, self.format.bytes())).transpose()?
            }
        };
        Ok(self.act(indices.len(), x.width, wide, narrow))
    }

    /// Splits the rows into slices, each with a buffer of its own in the format of the weights. Slices are the only results
    /// that outlive a call of the backend, so they are copied even if there is only one.
    pub(super) fn split(
        &self,
        x: &GpuActivations,
        lengths: &[usize],
    ) -> Result<Vec<GpuActivations>, BackendError> {
        let narrow = self.narrow(x)?;
        let row_bytes = x.width * self.format.bytes();
        let mut from = narrow.address();
        let mut slices = Vec::with_capacity(lengths.len());
        for &rows in lengths {
            let slice = self.memory.lasting().buffer(rows * row_bytes)?;
            self.device().copy(from, slice.address(), rows * row_bytes)?;
            from = from.offset(rows * row_bytes);
            slices.push(self.narrow_act(rows, x.width, slice));
        }
        Ok(slices)
    }

    /// Copies the rows of several activations, in the format of the weights, into one buffer.
    pub(super) fn concatenated(&self, parts: &[&GpuActivations]) -> Result<Buffer, BackendError> {
        let bytes = |part: &GpuActivations| part.rows * part.width * self.format.bytes();
        let all = self.memory.passing().buffer(parts.iter().map(|part| bytes(part)).sum())?;
        let mut to: Address = all.address();
        for part in parts {
            self.device().copy(self.narrow(part)?.address(), to, bytes(part))?;
            to = to.offset(bytes(part));
        }
        Ok(all)
    }
}
