//! Embedding vectors, and the arithmetic on them outside the model.

/// A raw feature vector, not normalised.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding(Vec<f32>);

/// Error: the vector has no direction, so it cannot be normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZeroNorm;

impl Embedding {
    /// Wraps a raw vector from the model.
    #[must_use]
    pub fn new(values: Vec<f32>) -> Self {
        Self(values)
    }

    /// Returns the raw values in model order.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }

    /// Returns the raw values without copying them.
    #[must_use]
    pub fn into_vec(self) -> Vec<f32> {
        self.0
    }

    /// Returns the vector divided by its Euclidean norm, which is accumulated in f64.
    ///
    /// # Errors
    /// [`ZeroNorm`] if the norm is zero or not finite.
    pub fn normalized(&self) -> Result<Self, ZeroNorm> {
        let squares: f64 = self.0.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
        let norm = squares.sqrt();
        if norm == 0.0 || !norm.is_finite() {
            return Err(ZeroNorm);
        }
        let scale = |&value: &f32| (f64::from(value) / norm) as f32;
        Ok(Self(self.0.iter().map(scale).collect()))
    }

    /// Returns the dot product with a vector of the same length, accumulated in f64.
    ///
    /// # Panics
    /// If the lengths differ.
    #[must_use]
    pub fn dot(&self, other: &Self) -> f32 {
        assert_eq!(self.0.len(), other.0.len(), "embeddings of one space have one length");
        let sum: f64 =
            self.0.iter().zip(&other.0).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        sum as f32
    }
}
