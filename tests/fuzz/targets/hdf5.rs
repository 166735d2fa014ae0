//! HDF5 files as Keras writes them, and worse ones.

/// An object of a file.
#[derive(Debug, Clone)]
pub(crate) enum Node<'a> {
    /// A group of named members.
    Group(Vec<(&'a str, Node<'a>)>),
    /// A dataset of f32 values with these dimensions. The bytes of the values need not be as many as they should.
    Values(&'a [u64], &'a [u8]),
    /// An object whose header has these messages: kind and content.
    Header(Vec<(u16, Vec<u8>)>),
    /// Whatever is at this offset.
    At(u64),
}

/// Bytes before the first object.
pub(crate) const SUPERBLOCK_BYTES: usize = 96;
/// Offset, in the superblock, of the offset of the root group's header.
pub(crate) const ROOT_AT: usize = 64;

/// A file with this root.
pub(crate) fn file(root: &Node<'_>) -> Vec<u8> {
    let mut bytes = vec![0; SUPERBLOCK_BYTES];
    bytes[..8].copy_from_slice(b"\x89HDF\r\n\x1a\n");
    // Sizes of offsets and lengths.
    bytes[13..15].fill(8);
    bytes[16] = 4;
    bytes[18] = 16;
    for undefined in [32, 48] {
        bytes[undefined..undefined + 8].fill(0xff);
    }
    let root = write(&mut bytes, root);
    bytes[ROOT_AT..ROOT_AT + 8].copy_from_slice(&root.to_le_bytes());
    let length = bytes.len() as u64;
    bytes[40..48].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// The message that describes dimensions.
pub(crate) fn dataspace(dims: &[u64]) -> (u16, Vec<u8>) {
    let mut content = vec![1, dims.len() as u8, 0, 0, 0, 0, 0, 0];
    content.extend(dims.iter().flat_map(|side| side.to_le_bytes()));
    (1, content)
}

/// The message that describes f32 in little-endian order.
pub(crate) fn f32_type() -> (u16, Vec<u8>) {
    let bits = [0, 0, 32, 0, 23, 8, 0, 23, 127, 0, 0, 0];
    (3, [&[0x11, 0x20, 31, 0, 4, 0, 0, 0][..], &bits, &[0; 4]].concat())
}

/// The message that describes where contiguous values are.
pub(crate) fn layout(start: u64, bytes: u64) -> (u16, Vec<u8>) {
    (8, [&[3, 1][..], &start.to_le_bytes(), &bytes.to_le_bytes(), &[0; 6]].concat())
}

/// The message that says where members and their names are.
pub(crate) fn symbol_table(tree: u64, heap: u64) -> (u16, Vec<u8>) {
    (0x11, [tree.to_le_bytes(), heap.to_le_bytes()].concat())
}

/// Appends an object and returns the offset of its header.
fn write(bytes: &mut Vec<u8>, node: &Node<'_>) -> u64 {
    match node {
        Node::At(offset) => *offset,
        Node::Header(messages) => header(bytes, messages),
        Node::Values(dims, values) => {
            let place = layout(append(bytes, values), values.len() as u64);
            header(bytes, &[dataspace(dims), f32_type(), place])
        }
        Node::Group(members) => {
            let headers: Vec<u64> = members.iter().map(|(_, node)| write(bytes, node)).collect();
            let mut names = vec![0; 8];
            let mut symbols = [b"SNOD\x01\0", &(members.len() as u16).to_le_bytes()[..]].concat();
            for ((name, _), header) in members.iter().zip(headers) {
                let offset = names.len() as u64;
                names.extend([name.as_bytes(), &[0]].concat());
                symbols.extend([offset.to_le_bytes(), header.to_le_bytes()].concat());
                symbols.extend([0; 24]);
            }
            let heap = heap(bytes, &names);
            let symbols = append(bytes, &symbols);
            let tree = tree(bytes, 0, &[symbols]);
            header(bytes, &[symbol_table(tree, heap)])
        }
    }
}

/// Appends a local heap with these names and returns its offset.
pub(crate) fn heap(bytes: &mut Vec<u8>, names: &[u8]) -> u64 {
    let (size, place) = ((names.len() as u64).to_le_bytes(), append(bytes, names).to_le_bytes());
    append(bytes, &[b"HEAP\0\0\0\0", &size[..], &[0; 8], &place].concat())
}

/// Appends a node of a B-tree and returns its offset.
pub(crate) fn tree(bytes: &mut Vec<u8>, level: u8, children: &[u64]) -> u64 {
    let mut node = [&b"TREE\0"[..], &[level], &(children.len() as u16).to_le_bytes()[..]].concat();
    node.extend([0xff; 16]);
    for child in children {
        node.extend([[0; 8], child.to_le_bytes()].concat());
    }
    node.extend([0; 8]);
    append(bytes, &node)
}

/// Appends an object header with these messages and returns its offset.
pub(crate) fn header(bytes: &mut Vec<u8>, messages: &[(u16, Vec<u8>)]) -> u64 {
    let mut block = Vec::new();
    for (kind, content) in messages {
        let size = content.len() as u16;
        block.extend([&kind.to_le_bytes()[..], &size.to_le_bytes(), &[0; 4], content].concat());
    }
    let (count, size) = (messages.len() as u16, block.len() as u32);
    let mut prefix = [&[1, 0][..], &count.to_le_bytes(), &[1, 0, 0, 0]].concat();
    prefix.extend([&size.to_le_bytes()[..], &[0; 4]].concat());
    append(bytes, &[prefix, block].concat())
}

fn append(bytes: &mut Vec<u8>, content: &[u8]) -> u64 {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let offset = bytes.len() as u64;
    bytes.extend(content);
    offset
}
