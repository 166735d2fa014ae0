//! The pointer through which the parts of a job write to one buffer. All kernels that run on the thread pool use it.

/// A pointer through which the parts of a job write in parallel; no two parts write to the same elements.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct DisjointMutPtr<T>(pub(in crate::kernels) *mut T);

#[expect(unsafe_code, reason = "disjoint writes from several threads")]
// SAFETY: users write only to disjoint elements; each user says why they are disjoint.
unsafe impl<T: Send> Send for DisjointMutPtr<T> {}
#[expect(unsafe_code, reason = "disjoint writes from several threads")]
// SAFETY: as for `Send`.
unsafe impl<T: Send> Sync for DisjointMutPtr<T> {}

impl<T> DisjointMutPtr<T> {
    /// Returns a pointer to the value that is `column` columns further to the right in the first row.
    pub(in crate::kernels) fn columns_from(self, column: usize) -> Self {
        Self(self.0.wrapping_add(column))
    }

    pub(in crate::kernels) fn pointer(self) -> *mut T {
        self.0
    }
}
