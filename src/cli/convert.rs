//! `convert DIR`: pickled weights to safetensors; says what was written.

use std::path::Path;

use super::error::CommandError;
use crate::hub::convert_to_safetensors;

pub(super) fn run(directory: &Path) -> Result<(), CommandError> {
    let converted = convert_to_safetensors(directory)?;
    let kinds: Vec<String> =
        converted.tensors.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
    super::print(&format!(
        "{}: {} bytes, tensors: {}; every one was read back and equals the original\n",
        converted.path.display(),
        converted.bytes,
        kinds.join(", ")
    ))
}
