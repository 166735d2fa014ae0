//! Matrix products by cuBLASLt.
//!
//! - [`columns`]: how a product looks to cuBLASLt;
//! - [`descriptors`]: the objects of cuBLASLt.

#![expect(unsafe_code, reason = "calls cuBLASLt and the CUDA driver")]

mod columns;
mod descriptors;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_int;
use std::ptr::{from_ref, without_provenance_mut};

use cudarc::cublaslt::sys::{
    self, cublasLtMatmulAlgo_t, cublasLtMatmulHeuristicResult_t, cublasStatus_t,
};
use cudarc::driver::sys as driver;

use self::columns::{Columns, Matrix, PlanKey, describe, objection};
use self::descriptors::{Layout, LibraryHandle, Operation, Preference, WORKSPACE_BYTES, Workspace};
use super::context::Context;
use super::library::Library;
use super::probe::OLDEST_DRIVER;
use super::status::{check, check_cublas};
use super::unavailable::{CudaUnavailable, Version};
use crate::gpu::device::{DeviceError, Product};

/// Number of shapes whose algorithms are remembered. A server computes a few hundred, so this is only a bound on memory.
const MOST_PLANS: usize = 4096;

/// A version of cuBLASLt fits if we have tried its interface and the driver loads its code.
fn check_version(found: Version, driver: Version) -> Result<(), CudaUnavailable> {
    if found.major >= OLDEST_DRIVER.major && found.major <= driver.major {
        return Ok(());
    }
    Err(CudaUnavailable::CublasLtMismatch { found, driver })
}

/// Checks that cuBLASLt is there and fits the driver.
pub(super) fn require_cublas_lt(driver: Version) -> Result<(), CudaUnavailable> {
    Library::CublasLt.require(CudaUnavailable::CublasLtMissing)?;
    // SAFETY: the function has no requirements.
    let number = unsafe { sys::cublasLtGetCudartVersion() };
    check_version(Version::from_number(u32::try_from(number).unwrap_or(0)), driver)
}

/// Computes products, and remembers cuBLASLt's choices.
#[derive(Debug)]
pub(super) struct Products {
    /// Before `library`, which must outlive them.
    plans: HashMap<PlanKey, Plan>,
    preference: Preference,
    library: LibraryHandle,
    workspace: Workspace,
}

impl Products {
    /// Allocates the workspace. The context must be current, and [`require_cublas_lt`] must have succeeded.
    pub(super) fn try_new() -> Result<Self, DeviceError> {
        Ok(Self {
            plans: HashMap::new(),
            preference: Preference::try_new()?,
            library: LibraryHandle::try_new()?,
            workspace: Workspace::try_new()?,
        })
    }

    /// Starts a product.
    pub(super) fn compute(
        &mut self,
        context: &Context,
        product: &Product,
    ) -> Result<(), DeviceError> {
        if product.m == 0 || product.n == 0 {
            return Ok(());
        }
        if let Some(objection) = objection(product) {
            return Err(DeviceError::Failed(format!("{}: {objection}", describe(product))));
        }
        let columns = Columns::of(product);
        let key = PlanKey::of(product);
        if self.plans.len() >= MOST_PLANS && !self.plans.contains_key(&key) {
            self.plans.clear();
        }
        let plan = match self.plans.entry(key) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(free) => {
                let plan = Plan::try_new(&self.library, &self.preference, product)
                    .map_err(|error| after_cublas(error, product))?;
                free.insert(plan)
            }
        };
        plan.launch(&self.library, &self.workspace, context, &columns)
            .map_err(|error| after_cublas(error, product))
    }
}

/// cuBLASLt reports a lost context as a failed execution or an internal error. The driver knows better, so it is asked by
/// a call that is allowed at any time, also while the stream captures.
fn after_cublas(error: DeviceError, product: &Product) -> DeviceError {
    let DeviceError::Failed(message) = error else {
        return error;
    };
    let (mut free, mut total) = (0, 0);
    // SAFETY: the pointers are to local variables.
    let status = unsafe { driver::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
    match check("cuMemGetInfo", status) {
        Err(DeviceError::Lost(cause)) => DeviceError::Lost(format!("{message}: {cause}")),
        _ => DeviceError::Failed(format!("{}: {message}", describe(product))),
    }
}

/// cuBLASLt's descriptors and algorithm for one shape.
#[derive(Debug)]
struct Plan {
    operation: Operation,
    a: Layout,
    b: Layout,
    /// Of `c` and `d`.
    result: Layout,
    algorithm: cublasLtMatmulAlgo_t,
}

impl Plan {
    /// Asks cuBLASLt's heuristic for the best algorithm.
    fn try_new(
        library: &LibraryHandle,
        preference: &Preference,
        product: &Product,
    ) -> Result<Self, DeviceError> {
        let columns = Columns::of(product);
        let operation = Operation::try_new()?;
        // Also the pointer, because the heuristic reads the bias's alignment from it.
        operation.set_bias(columns.bias)?;
        let (a, b) = (Layout::try_new(columns.a)?, Layout::try_new(columns.b)?);
        let result = Layout::try_new(columns.d)?;
        preference.set_alignments(PlanKey::of(product).alignments)?;

        let mut best = cublasLtMatmulHeuristicResult_t {
            algo: cublasLtMatmulAlgo_t { data: [0; 8] },
            workspaceSize: 0,
            state: cublasStatus_t::CUBLAS_STATUS_NOT_INITIALIZED,
            wavesCount: 0.0,
            reserved: [0; 4],
        };
        let mut found: c_int = 0;
        // SAFETY: all descriptors live. cuBLASLt writes at most one result.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                library.0.0,
                operation.0.0,
                a.0.0,
                b.0.0,
                result.0.0,
                result.0.0,
                preference.0.0,
                1,
                &raw mut best,
                &raw mut found,
            )
        };
        check_cublas("cublasLtMatmulAlgoGetHeuristic", status)?;
        if found == 0 {
            return Err(DeviceError::Failed("cuBLASLt has no algorithm".to_owned()));
        }
        check_cublas("cublasLtMatmulAlgoGetHeuristic", best.state)?;
        Ok(Self { operation, a, b, result, algorithm: best.algo })
    }

    fn launch(
        &self,
        library: &LibraryHandle,
        workspace: &Workspace,
        context: &Context,
        columns: &Columns,
    ) -> Result<(), DeviceError> {
        self.operation.set_bias(columns.bias)?;
        let alpha = 1.0_f32;
        let pointer = |matrix: Matrix| without_provenance_mut(matrix.address.0 as usize);
        // SAFETY: all descriptors live, and cuBLASLt reads them and the factors before it returns. The addresses are the
        // caller's, whose memory has the shapes of the product; the workspace is only used in this stream.
        let status = unsafe {
            sys::cublasLtMatmul(
                library.0.0,
                self.operation.0.0,
                from_ref(&alpha).cast(),
                pointer(columns.a),
                self.a.0.0,
                pointer(columns.b),
                self.b.0.0,
                from_ref(&columns.beta).cast(),
                pointer(columns.c),
                self.result.0.0,
                pointer(columns.d),
                self.result.0.0,
                &raw const self.algorithm,
                without_provenance_mut(workspace.0.0 as usize),
                WORKSPACE_BYTES,
                context.stream().cast(),
            )
        };
        check_cublas("cublasLtMatmul", status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cublas_must_not_be_of_a_newer_major_version_than_the_driver() {
        let version = |major, minor| Version { major, minor };
        let cases = [
            (version(12, 8), version(12, 0), true),
            (version(12, 1), version(13, 0), true),
            (version(13, 0), version(12, 9), false),
            (version(11, 8), version(12, 0), false),
        ];
        for (found, driver, fits) in cases {
            assert_eq!(check_version(found, driver).is_ok(), fits, "{found} with {driver}");
        }
    }
}
