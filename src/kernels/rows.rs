//! Views of matrix rows.

/// A matrix that is stored in some columns of a wider row-major matrix.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// Values of the wider matrix, starting at the first row of this matrix.
    pub values: &'a [f32],
    /// Width of the wider matrix, in values.
    pub stride: usize,
    /// First column of this matrix in the wider one.
    pub column: usize,
    /// Number of rows of this matrix.
    pub rows: usize,
}

impl<'a> Rows<'a> {
    /// Views `values` as a whole matrix whose rows have `width` values.
    ///
    /// # Panics
    /// When `values` is not a whole number of rows.
    #[must_use]
    pub fn of(values: &'a [f32], width: usize) -> Self {
        assert!(values.len().is_multiple_of(width), "values are [rows, width]");
        Self { values, stride: width, column: 0, rows: values.len() / width }
    }

    /// Returns `width` values of row `row`, starting at `column` of this matrix.
    #[inline(always)]
    pub(in crate::kernels) fn part(&self, row: usize, column: usize, width: usize) -> &'a [f32] {
        &self.values[row * self.stride + self.column + column..][..width]
    }
}
