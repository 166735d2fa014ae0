//! Objects of cuBLASLt, each freed when it is dropped.

#![expect(unsafe_code, reason = "calls cuBLASLt and the CUDA driver")]

use std::ptr::{from_ref, null_mut};

use cudarc::cublaslt::sys::{
    self, cublasComputeType_t, cublasLtContext, cublasLtEpilogue_t,
    cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatmulDescOpaque_t,
    cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute, cublasLtMatmulPreferenceOpaque_t,
    cublasLtMatrixLayoutOpaque_t, cublasLtReductionScheme_t, cudaDataType,
};
use cudarc::driver::sys as driver;

use super::super::context::Handle;
use super::super::status::{check, check_cublas};
use super::columns::Matrix;
use crate::gpu::device::{Address, DeviceError, Format};

/// Size of cuBLASLt's workspace: what NVIDIA recommends for Hopper (4 MB for older architectures).
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;

/// `CUBLAS_OP_T` of `cublasOperation_t` in `cublas_api.h`, as the `int32_t` that the descriptor takes.
const TRANSPOSE: i32 = 1;

/// `cudaDataType` in `library_types.h`.
fn data_type(format: Format) -> cudaDataType {
    match format {
        Format::F32 => cudaDataType::CUDA_R_32F,
        Format::Bf16 => cudaDataType::CUDA_R_16BF,
        Format::F16 => cudaDataType::CUDA_R_16F,
    }
}

#[derive(Debug)]
pub(super) struct LibraryHandle(pub(super) Handle<cublasLtContext>);

impl LibraryHandle {
    pub(super) fn try_new() -> Result<Self, DeviceError> {
        let mut handle = null_mut();
        // SAFETY: the pointer is to a local variable.
        check_cublas("cublasLtCreate", unsafe { sys::cublasLtCreate(&raw mut handle) })?;
        Ok(Self(Handle(handle)))
    }
}

impl Drop for LibraryHandle {
    fn drop(&mut self) {
        // SAFETY: the handle is ours, and is not used afterwards.
        let _ = unsafe { sys::cublasLtDestroy(self.0.0) };
    }
}

#[derive(Debug)]
pub(super) struct Workspace(pub(super) Address);

impl Workspace {
    pub(super) fn try_new() -> Result<Self, DeviceError> {
        let mut address = 0;
        // SAFETY: the pointer is to a local variable.
        let status = unsafe { driver::cuMemAlloc_v2(&raw mut address, WORKSPACE_BYTES) };
        check("cuMemAlloc of cuBLASLt's workspace", status)?;
        Ok(Self(Address(address)))
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // SAFETY: the memory is ours, and no product is running: `CudaDevice` has synchronised the stream.
        let _ = unsafe { driver::cuMemFree_v2(self.0.0) };
    }
}

/// What is computed: formats of the sums, transposition, epilogue.
#[derive(Debug)]
pub(super) struct Operation(pub(super) Handle<cublasLtMatmulDescOpaque_t>);

impl Operation {
    /// Sums and factors are f32. `CUBLAS_COMPUTE_32F` does not use TF32; that would be `CUBLAS_COMPUTE_32F_FAST_TF32`.
    pub(super) fn try_new() -> Result<Self, DeviceError> {
        let mut operation = null_mut();
        // SAFETY: the pointer is to a local variable.
        let status = unsafe {
            sys::cublasLtMatmulDescCreate(
                &raw mut operation,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cudaDataType::CUDA_R_32F,
            )
        };
        check_cublas("cublasLtMatmulDescCreate", status)?;
        let this = Self(Handle(operation));
        // That of `b` is `CUBLAS_OP_N` unless set.
        this.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSE)?;
        Ok(this)
    }

    /// The format of the bias is that of `d` unless `CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE` is set.
    pub(super) fn set_bias(&self, bias: Option<Address>) -> Result<(), DeviceError> {
        let Some(bias) = bias else {
            return Ok(());
        };
        // `uint32_t` of `cublasLtEpilogue_t`, and a device pointer.
        let epilogue = cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
        self.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        self.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.0)
    }

    /// `T` must be the type that `cublasLtMatmulDescAttributes_t` documents for the attribute.
    fn set<T>(&self, attribute: Attribute, value: &T) -> Result<(), DeviceError> {
        // SAFETY: the descriptor lives, and cuBLASLt copies the value, after it has checked its size.
        let status = unsafe {
            sys::cublasLtMatmulDescSetAttribute(
                self.0.0,
                attribute,
                from_ref(value).cast(),
                size_of::<T>(),
            )
        };
        check_cublas("cublasLtMatmulDescSetAttribute", status)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours, and is not used afterwards.
        let _ = unsafe { sys::cublasLtMatmulDescDestroy(self.0.0) };
    }
}

/// Format and shape of a matrix.
#[derive(Debug)]
pub(super) struct Layout(pub(super) Handle<cublasLtMatrixLayoutOpaque_t>);

impl Layout {
    pub(super) fn try_new(matrix: Matrix) -> Result<Self, DeviceError> {
        let mut layout = null_mut();
        // SAFETY: the pointer is to a local variable.
        let status = unsafe {
            sys::cublasLtMatrixLayoutCreate(
                &raw mut layout,
                data_type(matrix.format),
                matrix.rows,
                matrix.columns,
                matrix.leading,
            )
        };
        check_cublas("cublasLtMatrixLayoutCreate", status)?;
        Ok(Self(Handle(layout)))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours, and is not used afterwards.
        let _ = unsafe { sys::cublasLtMatrixLayoutDestroy(self.0.0) };
    }
}

/// What the heuristic must respect.
#[derive(Debug)]
pub(super) struct Preference(pub(super) Handle<cublasLtMatmulPreferenceOpaque_t>);

impl Preference {
    pub(super) fn try_new() -> Result<Self, DeviceError> {
        let mut preference = null_mut();
        // SAFETY: the pointer is to a local variable.
        let status = unsafe { sys::cublasLtMatmulPreferenceCreate(&raw mut preference) };
        check_cublas("cublasLtMatmulPreferenceCreate", status)?;
        let this = Self(Handle(preference));
        // `uint64_t`.
        let bytes = WORKSPACE_BYTES as u64;
        this.set(PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes)?;
        // `uint32_t`. The other two schemes add partial sums in the format of the result, but all sums shall be f32.
        let schemes = cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        this.set(PreferenceAttribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes)?;
        Ok(this)
    }

    /// Excludes algorithms that need better alignments, in bytes, of `a`, `b`, `c` and `d`.
    pub(super) fn set_alignments(&self, alignments: [u32; 4]) -> Result<(), DeviceError> {
        let attributes = [
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ];
        // `uint32_t` each.
        attributes
            .into_iter()
            .zip(alignments)
            .try_for_each(|(attribute, alignment)| self.set(attribute, &alignment))
    }

    /// `T` must be the type that `cublasLtMatmulPreferenceAttributes_t` documents for the attribute.
    fn set<T>(&self, attribute: PreferenceAttribute, value: &T) -> Result<(), DeviceError> {
        // SAFETY: the descriptor lives, and cuBLASLt copies the value, after it has checked its size.
        let status = unsafe {
            sys::cublasLtMatmulPreferenceSetAttribute(
                self.0.0,
                attribute,
                from_ref(value).cast(),
                size_of::<T>(),
            )
        };
        check_cublas("cublasLtMatmulPreferenceSetAttribute", status)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours, and is not used afterwards.
        let _ = unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0.0) };
    }
}
