//! Reads object headers: what an object is, and where a dataset's values are.
//!
//! Source: the HDF5 File Format Specification 3.0, sections IV.A.1 (object headers) and IV.A.2 (messages). Accepts the
//! forms that the HDF5 library writes by default, that is with `libver="earliest"`.

use candle_core::DType;

use super::TensorFlowError;
use super::source::{MetadataReader, RecordReader};

/// Maximum number of blocks of one header. A header with many attributes has a few.
const MAX_BLOCKS: u64 = 64;
/// Maximum number of dimensions. BLIP's largest tensors have 4.
const MAX_RANK: u8 = 8;
/// The size in bytes of a header before its messages.
const PREFIX_BYTES: u64 = 16;

/// An object of the file.
#[derive(Debug)]
pub(super) enum Object {
    Group(SymbolTable),
    Dataset(Dataset),
}

/// Positions of the two structures that list a group's members.
#[derive(Debug, Clone, Copy)]
pub(super) struct SymbolTable {
    /// Offset of the root of the B-tree, in bytes.
    pub(super) tree: u64,
    /// Offset of the local heap that holds the members' names, in bytes.
    pub(super) heap: u64,
}

/// A dataset as its header describes it. Nothing is checked against the file's length.
#[derive(Debug)]
pub(super) struct Dataset {
    /// `None` if the elements are of a type that weights do not use.
    pub(super) dtype: Option<DType>,
    pub(super) dims: Vec<usize>,
    /// Offset of the first value in the file, in bytes. Not an offset in the file if the values were never written.
    pub(super) start: u64,
    /// Size of all values in bytes.
    pub(super) bytes: u64,
}

/// The type of a dataset's elements; `None` if weights do not use it.
struct ElementType(Option<DType>);

/// What the messages of a header have said so far.
#[derive(Default)]
struct Messages {
    symbol_table: Option<SymbolTable>,
    dims: Option<Vec<usize>>,
    datatype: Option<ElementType>,
    place: Option<(u64, u64)>,
}

/// Reads the header at this offset.
pub(super) fn read(
    metadata: &mut MetadataReader<'_>,
    header: u64,
) -> Result<Object, TensorFlowError> {
    let prefix = metadata.read(header, PREFIX_BYTES)?;
    if prefix.starts_with(b"OHDR") {
        return Err(TensorFlowError::Unsupported {
            what: "object headers of the newer form (libver=\"latest\")",
        });
    }
    let mut fields = RecordReader(&prefix);
    if fields.u8()? != 1 {
        return Err(TensorFlowError::Damaged);
    }
    fields.skip(1)?;
    let mut left = fields.u16()?;
    fields.skip(4)?;
    let mut blocks = vec![(header + PREFIX_BYTES, u64::from(fields.u32()?))];
    let mut messages = Messages::default();
    let mut next = 0;
    while let Some(&(start, bytes)) = blocks.get(next) {
        next += 1;
        let block = metadata.read(start, bytes)?;
        let mut fields = RecordReader(&block);
        // The rest of a block may be too short for a message.
        while left > 0 && fields.0.len() >= 8 {
            left -= 1;
            let (kind, size, flags) = (fields.u16()?, fields.u16()?, fields.u8()?);
            fields.skip(3)?;
            let mut content = RecordReader(fields.take(size.into())?);
            if kind == CONTINUATION {
                blocks.push((content.u64()?, content.u64()?));
                if blocks.len() as u64 > MAX_BLOCKS {
                    let what = "blocks in a header";
                    return Err(TensorFlowError::TooLarge { what, limit: MAX_BLOCKS });
                }
            } else {
                messages.add(kind, flags, content)?;
            }
        }
    }
    messages.object()
}

const CONTINUATION: u16 = 0x10;

impl Messages {
    fn add(
        &mut self,
        kind: u16,
        flags: u8,
        content: RecordReader<'_>,
    ) -> Result<(), TensorFlowError> {
        const SHARED: u8 = 2;
        let unsupported = |what| Err(TensorFlowError::Unsupported { what });
        match kind {
            0x01 | 0x03 | 0x08 | 0x11 if flags & SHARED != 0 => {
                unsupported("types that several datasets share")
            }
            0x01 => set(&mut self.dims, dataspace(content)?),
            0x03 => set(&mut self.datatype, ElementType(datatype(content)?)),
            0x08 => set(&mut self.place, layout(content)?),
            0x11 => set(&mut self.symbol_table, symbol_table(content)?),
            0x02 | 0x06 => unsupported("groups of the newer form (libver=\"latest\")"),
            0x07 => unsupported("values in another file"),
            0x0b => unsupported("compressed values"),
            // Attributes, fill values, times and comments.
            _ => Ok(()),
        }
    }

    fn object(self) -> Result<Object, TensorFlowError> {
        match self {
            Self { symbol_table: Some(table), dims: None, datatype: None, place: None } => {
                Ok(Object::Group(table))
            }
            Self {
                symbol_table: None,
                dims: Some(dims),
                datatype: Some(ElementType(dtype)),
                place: Some((start, bytes)),
            } => Ok(Object::Dataset(Dataset { dtype, dims, start, bytes })),
            _ => Err(TensorFlowError::Damaged),
        }
    }
}

/// Stores what a message says. A second message of the same kind is `Damaged`, because programs differ in which one
/// they use.
fn set<T>(slot: &mut Option<T>, value: T) -> Result<(), TensorFlowError> {
    if slot.replace(value).is_some() {
        return Err(TensorFlowError::Damaged);
    }
    Ok(())
}

fn symbol_table(mut fields: RecordReader<'_>) -> Result<SymbolTable, TensorFlowError> {
    Ok(SymbolTable { tree: fields.u64()?, heap: fields.u64()? })
}

/// Returns the dimensions; none for a single value.
fn dataspace(mut fields: RecordReader<'_>) -> Result<Vec<usize>, TensorFlowError> {
    let (version, rank) = (fields.u8()?, fields.u8()?);
    match version {
        1 => fields.skip(6)?,
        2 => {
            const NO_VALUES: u8 = 2;
            fields.skip(1)?;
            if fields.u8()? == NO_VALUES {
                return Err(TensorFlowError::Unsupported { what: "datasets without values" });
            }
        }
        _ => return Err(TensorFlowError::Damaged),
    }
    if rank > MAX_RANK {
        let what = "dimensions in a dataset";
        return Err(TensorFlowError::TooLarge { what, limit: MAX_RANK.into() });
    }
    let side = |_| usize::try_from(fields.u64()?).map_err(|_| TensorFlowError::Damaged);
    (0..rank).map(side).collect()
}

/// Returns the element type; `None` if weights do not use it.
fn datatype(mut fields: RecordReader<'_>) -> Result<Option<DType>, TensorFlowError> {
    const INTEGER: u8 = 0;
    const FLOAT: u8 = 1;
    let class = fields.u8()? & 0xf;
    let bits = fields.u8()?;
    fields.skip(2)?;
    let size = fields.u32()?;
    let big_endian = bits & 1 != 0;
    let dtype = match class {
        INTEGER => {
            let signed = bits & 8 != 0;
            let whole = (fields.u16()?, u32::from(fields.u16()?)) == (0, size.saturating_mul(8));
            match (whole, signed, size) {
                (true, false, 1) => Some(DType::U8),
                (true, false, 4) => Some(DType::U32),
                (true, true, 2) => Some(DType::I16),
                (true, true, 4) => Some(DType::I32),
                (true, true, 8) => Some(DType::I64),
                _ => None,
            }
        }
        FLOAT => float(size, fields)?,
        _ => None,
    };
    if big_endian && dtype.is_some() {
        return Err(TensorFlowError::Unsupported { what: "numbers in big-endian order" });
    }
    Ok(dtype)
}

/// Returns the float type with this size and these positions of its parts.
fn float(size: u32, mut fields: RecordReader<'_>) -> Result<Option<DType>, TensorFlowError> {
    let bits = (fields.u16()?, fields.u16()?);
    let (exponent, mantissa) = ([fields.u8()?, fields.u8()?], [fields.u8()?, fields.u8()?]);
    let bias = fields.u32()?;
    // Offset and number of bits; position and number of bits of the exponent, and of the mantissa; bias.
    Ok(match (size, bits, exponent, mantissa, bias) {
        (4, (0, 32), [23, 8], [0, 23], 127) => Some(DType::F32),
        (8, (0, 64), [52, 11], [0, 52], 1023) => Some(DType::F64),
        (2, (0, 16), [10, 5], [0, 10], 15) => Some(DType::F16),
        (2, (0, 16), [7, 8], [0, 7], 127) => Some(DType::BF16),
        _ => None,
    })
}

/// Returns offset and size of the values.
fn layout(mut fields: RecordReader<'_>) -> Result<(u64, u64), TensorFlowError> {
    let unsupported = |what| Err(TensorFlowError::Unsupported { what });
    match (fields.u8()?, fields.u8()?) {
        (3, 1) => Ok((fields.u64()?, fields.u64()?)),
        (3, 0) => unsupported("values inside headers (a compact layout)"),
        (3, 2) => unsupported("values in chunks"),
        (1 | 2 | 4 | 5, _) => unsupported("a layout of an older or newer version of HDF5"),
        _ => Err(TensorFlowError::Damaged),
    }
}
