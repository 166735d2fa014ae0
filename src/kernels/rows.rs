//! Views of rows.

/// Rows of a matrix that stands in columns of a wider one.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// The wider matrix, row by row, from the first row of these on.
    pub values: &'a [f32],
    /// Its width.
    pub stride: usize,
    /// Where these rows' columns begin in it.
    pub column: usize,
    /// How many rows.
    pub rows: usize,
}

impl<'a> Rows<'a> {
    /// A whole matrix of this width.
    ///
    /// # Panics
    /// When the values are not whole rows.
    #[must_use]
    pub fn of(values: &'a [f32], width: usize) -> Self {
        assert!(values.len().is_multiple_of(width), "values are [rows, width]");
        Self { values, stride: width, column: 0, rows: values.len() / width }
    }

    /// `width` columns of a row from `column` of these on.
    #[inline(always)]
    pub(in crate::kernels) fn part(&self, row: usize, column: usize, width: usize) -> &'a [f32] {
        &self.values[row * self.stride + self.column + column..][..width]
    }
}
