//! The command `convert DIR`: converts PyTorch or TensorFlow weights to safetensors and prints what was written. `hub`
//! does the work.

use std::path::Path;

use super::error::CommandError;
use crate::hub::convert_to_safetensors;

pub(super) fn run(directory: &Path) -> Result<(), CommandError> {
    let converted = convert_to_safetensors(directory)?;
    let kinds: Vec<String> =
        converted.tensors.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
    super::print(&format!(
        "wrote {}: {} bytes, tensors: {}; all tensors were read back and equal the originals\n",
        converted.path.display(),
        converted.bytes,
        kinds.join(", ")
    ))
}
