//! The context in which every kernel runs: the instruction set level, the thread pool, and memory that is reused
//! between calls.

use std::io;

use super::gemm::rows::PackedRows;
use super::isa::Level;
use super::pool::Pool;

/// Instruction set level, thread pool and scratch memory of the kernels. Its owner runs one kernel at a time.
#[derive(Debug)]
pub struct KernelContext {
    pub(in crate::kernels) level: Level,
    pub(in crate::kernels) pool: Pool,
    /// Scratch memory: the packed left operand of the current product.
    pub(in crate::kernels) packed_rows: PackedRows,
    /// Scratch memory: the packed result of a feed-forward block's first product.
    pub(in crate::kernels) packed_inner: PackedRows,
}

impl KernelContext {
    /// Creates a context for `level`, which the CPU must support, with a pool of `threads` threads, including the
    /// calling thread.
    ///
    /// # Errors
    /// When the operating system cannot start the threads.
    pub fn try_new(level: Level, threads: usize) -> io::Result<Self> {
        let pool = Pool::try_new(threads)?;
        let (packed_rows, packed_inner) = (PackedRows::default(), PackedRows::default());
        Ok(Self { level, pool, packed_rows, packed_inner })
    }

    /// Creates a context for tests. Panics if the threads cannot be started.
    #[cfg(test)]
    pub(in crate::kernels) fn new(level: Level, threads: usize) -> Self {
        Self::try_new(level, threads).expect("a few threads")
    }

    /// Returns the instruction set level of the kernels.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// Returns the thread pool, for jobs that are not kernels.
    pub fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }
}
