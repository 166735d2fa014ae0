//! The text of all kernels, as one program, and the names of its entry points.
//!
//! `tests/gpu/compile.sh` and `tests/gpu/sanitize.sh` read the names and the order of the files from this file.

use crate::gpu::device::Format;

/// What the kernels use of the GPU, for NVRTC.
const CUDA_PRELUDE: &str = include_str!("prelude/cuda.cuh");

/// The kernels. A file may use what those before it define.
const KERNELS: [&str; 7] = [
    include_str!("formats.cu"),
    include_str!("rows.cu"),
    include_str!("attention.cu"),
    include_str!("paged.cu"),
    include_str!("folded.cu"),
    include_str!("products.cu"),
    include_str!("scores.cu"),
];

/// [`cuda_source`] compiled for `sm_80`. Drivers compile it further for any newer architecture, so it serves hosts without
/// NVRTC. `tests/gpu/compile.sh --write` writes it, with an old NVRTC, so that old drivers accept its version.
pub const PTX: &str = include_str!("kernels.ptx");

/// Kernels with an entry point for each format. Its suffix names the format.
const IN_EVERY_FORMAT: [&str; 16] = [
    "activate",
    "append_kv",
    "attention_d128",
    "attention_d16",
    "attention_d32",
    "attention_d64",
    "attention_weights",
    "fold_query",
    "folded_attention",
    "folded_merge",
    "layer_norm",
    "narrow",
    "paged_attention",
    "patchify",
    "project_values",
    "widen",
];

/// Entry points that are the same for each format, or exist for some formats only.
const OTHERS: [&str; 14] = [
    "embed_patches",
    "embed_tokens",
    "few_row_product_f32",
    "few_row_product_r16_bf16",
    "few_row_product_r16_f16",
    "few_row_product_r32_bf16",
    "few_row_product_r32_f16",
    "few_row_product_r64_bf16",
    "few_row_product_r64_f16",
    "few_row_product_r8_bf16",
    "few_row_product_r8_f16",
    "gather",
    "greedy",
    "top_k",
];

/// Returns the program for NVRTC. It needs no include files.
#[must_use]
pub fn cuda_source() -> String {
    program(CUDA_PRELUDE)
}

/// Joins the kernels to the definitions of what they use.
pub(in crate::gpu) fn program(prelude: &str) -> String {
    let mut text = String::from(prelude);
    for kernels in KERNELS {
        text.push('\n');
        text.push_str(kernels);
    }
    text
}

/// Returns the names of all entry points.
#[must_use]
pub fn entry_points() -> Vec<String> {
    let mut names: Vec<String> = OTHERS.map(String::from).into();
    for format in [Format::F32, Format::Bf16, Format::F16] {
        let suffix = super::suffix(format);
        names.extend(IN_EVERY_FORMAT.iter().map(|name| format!("{name}_{suffix}")));
    }
    names
}
