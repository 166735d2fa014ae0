//! Lists the members of groups, and walks from the root group to all datasets.
//!
//! Source: the HDF5 File Format Specification 3.0, sections II (superblock), III.A.1 (B-trees), III.B (symbol tables)
//! and III.D (local heaps).

use std::collections::HashSet;

use super::TensorFlowError;
use super::header::{self, Dataset, Object, SymbolTable};
use super::source::{MetadataReader, RecordReader, Source};

/// The first bytes of every HDF5 file without a user block.
pub(super) const SIGNATURE: [u8; 8] = *b"\x89HDF\r\n\x1a\n";
/// Maximum number of groups and datasets. A BLIP model with a large vision tower has about 2,000.
const MAX_OBJECTS: u64 = 1 << 14;
/// Maximum length of a path in bytes. Those of BLIP have up to 130.
const MAX_PATH_BYTES: u64 = 512;
const SUPERBLOCK_BYTES: u64 = 96;
const TREE_BYTES: u64 = 24;
const HEAP_BYTES: u64 = 32;
const SYMBOL_NODE_BYTES: u64 = 8;
const SYMBOL_BYTES: u64 = 40;

/// Returns all datasets and their paths, such as `vision_model/.../kernel:0`.
pub(super) fn datasets(source: &Source) -> Result<Vec<(String, Dataset)>, TensorFlowError> {
    let mut metadata = MetadataReader::new(source);
    let mut pending = vec![(String::new(), root(&mut metadata, source.length())?)];
    // A group inside itself would never end, and a second path to a dataset would be a second tensor.
    let mut seen = HashSet::new();
    let mut datasets = Vec::new();
    let mut left = MAX_OBJECTS;
    while let Some((path, header)) = pending.pop() {
        if !seen.insert(header) {
            return Err(TensorFlowError::Damaged);
        }
        let table = match header::read(&mut metadata, header)? {
            Object::Group(table) => table,
            // The root must be a group.
            Object::Dataset(_) if path.is_empty() => return Err(TensorFlowError::Damaged),
            Object::Dataset(dataset) => {
                datasets.push((path, dataset));
                continue;
            }
        };
        for (name, header) in members(&mut metadata, table, &mut left)? {
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            if path.len() as u64 > MAX_PATH_BYTES {
                let what = "bytes in a path";
                return Err(TensorFlowError::TooLarge { what, limit: MAX_PATH_BYTES });
            }
            pending.push((path, header));
        }
    }
    Ok(datasets)
}

/// Returns the offset of the header of the root group, from the superblock.
fn root(metadata: &mut MetadataReader<'_>, length: u64) -> Result<u64, TensorFlowError> {
    let start = metadata.read(0, SUPERBLOCK_BYTES.min(length))?;
    if !start.starts_with(&SIGNATURE) {
        return Err(TensorFlowError::NotHdf5);
    }
    let mut fields = RecordReader(&start[SIGNATURE.len()..]);
    if fields.u8()? != 0 {
        return Err(TensorFlowError::Unsupported {
            what: "a superblock of the newer form (libver=\"latest\")",
        });
    }
    fields.skip(4)?;
    // Sizes in bytes of offsets and of lengths.
    if (fields.u8()?, fields.u8()?) != (8, 8) {
        return Err(TensorFlowError::Unsupported { what: "offsets of a size other than 64 bits" });
    }
    fields.skip(9)?;
    let base = fields.u64()?;
    fields.skip(8)?;
    let end = fields.u64()?;
    if base != 0 || end > length {
        return Err(TensorFlowError::Damaged);
    }
    fields.skip(16)?;
    fields.u64()
}

/// Returns names and header offsets of a group's members. Subtracts their number from `left`.
fn members(
    metadata: &mut MetadataReader<'_>,
    table: SymbolTable,
    left: &mut u64,
) -> Result<Vec<(String, u64)>, TensorFlowError> {
    let names = heap(metadata, table.heap)?;
    let mut members = Vec::new();
    // Nodes that still have to be read, with the level that each of them must have. The levels fall from a node to its
    // children, so a node cannot be below itself.
    let mut nodes = vec![(table.tree, None)];
    while let Some((start, expected)) = nodes.pop() {
        let (level, children) = tree_node(metadata, start)?;
        if expected.is_some_and(|expected: u8| expected != level) {
            return Err(TensorFlowError::Damaged);
        }
        for child in children {
            if let Some(below) = level.checked_sub(1) {
                nodes.push((child, Some(below)));
                continue;
            }
            for (name, header) in symbols(metadata, child)? {
                *left = left.checked_sub(1).ok_or(TensorFlowError::TooLarge {
                    what: "groups and datasets",
                    limit: MAX_OBJECTS,
                })?;
                members.push((name_at(&names, name)?, header));
            }
        }
    }
    Ok(members)
}

/// Reads a node of a B-tree: its level (0 for leaves) and the offsets of its children.
fn tree_node(
    metadata: &mut MetadataReader<'_>,
    start: u64,
) -> Result<(u8, Vec<u64>), TensorFlowError> {
    const OF_GROUP: u8 = 0;
    let header = metadata.read(start, TREE_BYTES)?;
    let mut fields = RecordReader(&header);
    fields.signature(*b"TREE", OF_GROUP)?;
    let (level, count) = (fields.u8()?, fields.u16()?);
    // Each child is between two keys.
    let entries = metadata.read(start + TREE_BYTES, u64::from(count) * 16 + 8)?;
    let (pairs, _) = entries.as_chunks::<16>();
    let child = |pair: &[u8; 16]| RecordReader(&pair[8..]).u64();
    Ok((level, pairs.iter().map(child).collect::<Result<_, _>>()?))
}

/// Reads a symbol table node: for each symbol the offset of its name in the heap, and of its header in the file.
fn symbols(
    metadata: &mut MetadataReader<'_>,
    start: u64,
) -> Result<Vec<(u64, u64)>, TensorFlowError> {
    const SYMBOLIC_LINK: u32 = 2;
    let header = metadata.read(start, SYMBOL_NODE_BYTES)?;
    let mut fields = RecordReader(&header);
    fields.signature(*b"SNOD", 1)?;
    fields.skip(1)?;
    let count = fields.u16()?;
    let entries = metadata.read(start + SYMBOL_NODE_BYTES, u64::from(count) * SYMBOL_BYTES)?;
    let mut fields = RecordReader(&entries);
    let mut symbols = Vec::new();
    for _ in 0..count {
        let (name, header, kind) = (fields.u64()?, fields.u64()?, fields.u32()?);
        if kind == SYMBOLIC_LINK {
            return Err(TensorFlowError::Unsupported { what: "symbolic links" });
        }
        fields.skip(20)?;
        symbols.push((name, header));
    }
    Ok(symbols)
}

/// Reads the data of a local heap.
fn heap(metadata: &mut MetadataReader<'_>, start: u64) -> Result<Vec<u8>, TensorFlowError> {
    let header = metadata.read(start, HEAP_BYTES)?;
    let mut fields = RecordReader(&header);
    fields.signature(*b"HEAP", 0)?;
    fields.skip(3)?;
    let bytes = fields.u64()?;
    fields.skip(8)?;
    metadata.read(fields.u64()?, bytes)
}

/// Returns the name that starts at this offset of the heap. It ends with a zero byte.
fn name_at(heap: &[u8], offset: u64) -> Result<String, TensorFlowError> {
    let start = usize::try_from(offset).ok().and_then(|offset| heap.get(offset..));
    let start = start.ok_or(TensorFlowError::Damaged)?;
    let longest = &start[..start.len().min(MAX_PATH_BYTES as usize + 1)];
    let end = longest.iter().position(|&byte| byte == 0).ok_or(TensorFlowError::Damaged)?;
    let name = std::str::from_utf8(&start[..end]).map_err(|_| TensorFlowError::Damaged)?;
    if name.is_empty() || name.contains('/') {
        return Err(TensorFlowError::Damaged);
    }
    Ok(name.to_owned())
}
