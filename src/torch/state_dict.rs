//! Finds the tensors among the values of a pickle. The arguments of a call of `torch._utils._rebuild_tensor_v2`
//! describe a tensor; the call itself is not executed.

use candle_core::{DType, Device, Result as CandleResult, Shape, Tensor};

use super::TorchError;
use super::pickle::{Pickle, PickleValue};

/// Maximum number of dimensions. torch itself allows 64; BLIP's largest tensors have 4.
const MAX_RANK: usize = 8;

/// A tensor as the pickle describes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorInfo {
    pub(super) dtype: DType,
    /// Name, below `data/`, of the archive entry that contains the tensor's values.
    pub(super) key: String,
    /// Number of values in the entry before the first value of this tensor.
    pub(super) offset: u64,
    /// Number of values of this tensor: the product of `size`.
    pub(super) count: usize,
    size: Vec<usize>,
    strides: Vec<usize>,
}

/// Memory layout of a tensor whose values have no gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryLayout {
    /// Row-major: the last index varies fastest.
    Rows,
    /// Column-major: the first index varies fastest, as in a transposed tensor.
    Columns,
}

/// Returns the tensors of a state dict with their names. Skips entries that are not tensors or have types that weights
/// do not use.
///
/// # Errors
/// `NoStateDict`; `Damaged` if the pickled description of a tensor does not have the form that torch writes.
pub(super) fn tensors(pickle: &Pickle<'_>) -> Result<Vec<(String, TensorInfo)>, TorchError> {
    let entries = pickle.root_entries().ok_or(TorchError::NoStateDict)?;
    let mut tensors = Vec::new();
    for &(name, value) in entries {
        let PickleValue::Text(name) = name else { continue };
        let Some(arguments) = rebuild_arguments(pickle, value) else { continue };
        match read_arguments(pickle, arguments).ok_or(TorchError::Damaged)? {
            Read::Tensor(info) => tensors.push((name.to_owned(), info)),
            Read::Unsupported(storage) => {
                tracing::warn!(
                    tensor.name = name,
                    tensor.storage = storage,
                    "skipping a tensor of an unsupported type"
                );
            }
        }
    }
    Ok(tensors)
}

/// Returns the arguments of `_rebuild_tensor_v2` if `value` is a call of this function, or a call that makes a
/// parameter or a subclass from the result of such a call.
fn rebuild_arguments<'p, 'a>(
    pickle: &'p Pickle<'a>,
    mut value: PickleValue<'a>,
) -> Option<&'p [PickleValue<'a>]> {
    // In the deepest nesting that torch writes, a tensor is built, a parameter is made from the tensor, and an instance
    // of a subclass is made from the parameter.
    const MOST_CALLS: usize = 3;
    for _ in 0..MOST_CALLS {
        let PickleValue::Call(call) = value else { return None };
        let [mut callable, PickleValue::Tuple(arguments)] = *pickle.items(call) else {
            return None;
        };
        let mut arguments = pickle.items(arguments);
        if callable == PickleValue::Global("torch._tensor\n_rebuild_from_type_v2") {
            let [function, _, PickleValue::Tuple(inner), ..] = *arguments else { return None };
            (callable, arguments) = (function, pickle.items(inner));
        }
        let PickleValue::Global(name) = callable else { return None };
        match name {
            "torch._utils\n_rebuild_tensor_v2" => return Some(arguments),
            "torch._utils\n_rebuild_parameter" => value = *arguments.first()?,
            _ => return None,
        }
    }
    None
}

enum Read<'a> {
    Tensor(TensorInfo),
    /// The tensor has this storage class, which no weights use.
    Unsupported(&'a str),
}

/// Reads storage, offset, size and strides; `None` if they do not have the form that torch writes.
fn read_arguments<'a>(pickle: &Pickle<'a>, arguments: &[PickleValue<'a>]) -> Option<Read<'a>> {
    let [
        PickleValue::Persistent(id),
        offset,
        PickleValue::Tuple(size),
        PickleValue::Tuple(strides),
        ..,
    ] = *arguments
    else {
        return None;
    };
    let [PickleValue::Tuple(id)] = *pickle.items(id) else { return None };
    let [PickleValue::Text("storage"), PickleValue::Global(class), PickleValue::Text(key), ..] =
        *pickle.items(id)
    else {
        return None;
    };
    let Some(dtype) = dtype_of(class) else { return Some(Read::Unsupported(class)) };
    let numbers =
        |values: &[PickleValue<'_>]| values.iter().map(number).collect::<Option<Vec<usize>>>();
    let (size, strides) = (numbers(pickle.items(size))?, numbers(pickle.items(strides))?);
    if size.len() != strides.len() || size.len() > MAX_RANK {
        return None;
    }
    // The product of the dimensions must not overflow. A dimension of zero counts as one here, because products of only
    // some of the dimensions are computed later, and these must not overflow either.
    size.iter().try_fold(1_usize, |count, &side| count.checked_mul(side.max(1)))?;
    Some(Read::Tensor(TensorInfo {
        dtype,
        key: key.to_owned(),
        offset: number(&offset)? as u64,
        count: size.iter().product(),
        size,
        strides,
    }))
}

fn number(value: &PickleValue<'_>) -> Option<usize> {
    let PickleValue::Int(number) = value else { return None };
    usize::try_from(*number).ok()
}

fn dtype_of(class: &str) -> Option<DType> {
    Some(match class.strip_prefix("torch\n")? {
        "FloatStorage" => DType::F32,
        "DoubleStorage" => DType::F64,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "ByteStorage" => DType::U8,
        "ShortStorage" => DType::I16,
        "IntStorage" => DType::I32,
        "LongStorage" => DType::I64,
        _ => return None,
    })
}

impl TensorInfo {
    /// Returns the memory layout of the values; `None` if there are gaps or repetitions.
    pub(super) fn order(&self) -> Option<MemoryLayout> {
        let shape = Shape::from(self.size.clone());
        if self.count == 0 || shape.is_contiguous(&self.strides) {
            Some(MemoryLayout::Rows)
        } else if shape.is_fortran_contiguous(&self.strides) {
            Some(MemoryLayout::Columns)
        } else {
            None
        }
    }
}

impl MemoryLayout {
    /// Builds the tensor from the bytes of its values.
    pub(super) fn tensor(
        self,
        values: &[u8],
        info: &TensorInfo,
        device: &Device,
    ) -> CandleResult<Tensor> {
        match self {
            Self::Rows => Tensor::from_raw_buffer(values, info.dtype, &info.size, device),
            Self::Columns => {
                let reversed: Vec<usize> = info.size.iter().rev().copied().collect();
                let axes: Vec<usize> = (0..info.size.len()).rev().collect();
                Tensor::from_raw_buffer(values, info.dtype, &reversed, device)?.permute(axes)
            }
        }
    }
}
