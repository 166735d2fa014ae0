//! Reference tensors, read from `reference/{name}.safetensors`.

use super::fixtures;

pub(crate) struct Tensors(safetensors::SafeTensors<'static>);

impl Tensors {
    pub(crate) fn read(name: &str) -> Self {
        let path = fixtures().join("reference").join(format!("{name}.safetensors"));
        let bytes = std::fs::read(path).unwrap();
        Self(safetensors::SafeTensors::deserialize(bytes.leak()).unwrap())
    }

    /// Returns the values of an f32 tensor and the width of its rows.
    pub(crate) fn rows(&self, name: &str) -> (Vec<f64>, usize) {
        let tensor = self.0.tensor(name).unwrap_or_else(|_| panic!("no tensor {name}"));
        let (bytes, _) = tensor.data().as_chunks::<4>();
        let values = bytes.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect();
        (values, *tensor.shape().last().unwrap())
    }
}
