//! Weight files of TensorFlow: tensors as the `TFBlip` classes wrote them, and hostile files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use blip_server::hub::{CheckpointFiles, WeightFiles, convert_to_safetensors};
use blip_server::tensorflow::TensorFlowFile;
use candle_core::{DType, Tensor};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::robustness::fuzz::targets::allocations;
use crate::robustness::fuzz::targets::hdf5::{
    Node, ROOT_AT, dataspace, f32_type, file, header, heap, layout, symbol_table, tree,
};
use crate::support::process::assert_refused_in_little_memory;

/// Directories of `tests/fixtures/tensorflow`, one for each `TFBlip` class.
const CLASSES: [&str; 6] = ["caption", "vqa", "retrieval", "base", "text", "vision"];
const DAMAGED: &str = "it is cut off or damaged; download it again";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tensorflow")
}

/// Shapes and sums of the tensors as transformers converts them to PyTorch.
fn reference(class: &str) -> BTreeMap<String, (Vec<usize>, f64)> {
    let text = fs::read_to_string(fixtures().join("reference.json")).unwrap();
    let mut all: Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(all["state_dict"][class].take()).unwrap()
}

fn copy(class: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixtures().join(class)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, directory.path().join(path.file_name().unwrap())).unwrap();
    }
    directory
}

fn open(bytes: &[u8]) -> Result<TensorFlowFile, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    TensorFlowFile::open(file.path()).map_err(|error| error.to_string())
}

fn refusal(bytes: &[u8]) -> String {
    open(bytes).err().unwrap_or_else(|| "nothing is wrong".to_owned())
}

/// The sum of the reference: it depends on the order of the values.
fn weighted_sum(tensor: &Tensor) -> f64 {
    let values: Vec<f64> =
        tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
    values.iter().enumerate().map(|(at, value)| value * (1 + at % 97) as f64).sum()
}

#[track_caller]
fn assert_sum(name: &str, actual: f64, expected: f64) {
    assert!(
        (actual - expected).abs() <= 1e-9 * expected.abs().max(1.0),
        "{name}: {actual} for {expected}"
    );
}

#[test]
fn every_tensor_of_every_class_is_the_one_that_transformers_converts() {
    for class in CLASSES {
        let file = TensorFlowFile::open(&fixtures().join(class).join("tf_model.h5")).unwrap();
        let expected = reference(class);
        let names: Vec<&str> = file.names().collect();
        assert_eq!(names, expected.keys().collect::<Vec<_>>(), "{class}");
        let mut floats = 0;
        for (name, (shape, sum)) in expected {
            let tensor = file.read(&name).unwrap().unwrap();
            assert_eq!((tensor.dtype(), tensor.dims()), (DType::F32, &shape[..]), "{class} {name}");
            assert_sum(&name, weighted_sum(&tensor), sum);
            floats += tensor.elem_count() as u64;
        }
        assert_eq!(file.float_count(), floats);
        assert!(file.read("no such tensor").unwrap().is_none());
    }
}

#[test]
fn a_converted_file_holds_the_same_tensors() {
    for class in ["caption", "base"] {
        let directory = copy(class);
        let source = directory.path().join("tf_model.h5");
        let weights = || CheckpointFiles::resolve(directory.path()).unwrap().weights;
        assert_eq!(weights(), WeightFiles::TensorFlow(source));
        let converted = convert_to_safetensors(directory.path()).unwrap();
        assert_eq!(weights(), WeightFiles::Safetensors(vec![converted.path.clone()]));
        let bytes = fs::read(&converted.path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let expected = reference(class);
        assert_eq!(converted.tensors, BTreeMap::from([("f32".to_owned(), expected.len())]));
        for (name, (shape, sum)) in expected {
            let tensor = tensors.tensor(&name).unwrap();
            assert_eq!(tensor.shape(), shape, "{name}");
            let (values, _) = tensor.data().as_chunks::<4>();
            let values: Vec<f32> = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
            assert_sum(
                &name,
                weighted_sum(&Tensor::new(values, &candle_core::Device::Cpu).unwrap()),
                sum,
            );
        }
    }
}

/// A file with one dataset, whose header has these messages.
fn dataset(messages: Vec<(u16, Vec<u8>)>) -> Vec<u8> {
    file(&Node::Group(vec![("kernel:0", Node::Header(messages))]))
}

/// A file of one group with this B-tree and these names, written by `members`.
fn group(members: impl FnOnce(&mut Vec<u8>) -> (u64, u64)) -> Vec<u8> {
    let mut bytes = file(&Node::At(0));
    let (tree, heap) = members(&mut bytes);
    let root = header(&mut bytes, &[symbol_table(tree, heap)]);
    bytes[ROOT_AT..ROOT_AT + 8].copy_from_slice(&root.to_le_bytes());
    bytes
}

/// A symbol table node with these symbols: offset of the name, and of the header.
fn symbols(bytes: &mut Vec<u8>, symbols: &[(u64, u64)]) -> u64 {
    let offset = bytes.len() as u64;
    bytes.extend([b"SNOD\x01\0", &(symbols.len() as u16).to_le_bytes()[..]].concat());
    for (name, header) in symbols {
        bytes.extend([name.to_le_bytes(), header.to_le_bytes()].concat());
        bytes.extend([0; 24]);
    }
    offset
}

/// A group that is a member of itself.
fn cycle() -> Vec<u8> {
    const MARK: u64 = 0x1122_3344_5566_7788;
    let mut bytes = file(&Node::Group(vec![("a", Node::Group(vec![("b", Node::At(MARK))]))]));
    let root: [u8; 8] = bytes[ROOT_AT..ROOT_AT + 8].try_into().unwrap();
    let at = bytes.windows(8).position(|window| window == MARK.to_le_bytes()).unwrap();
    bytes[at..at + 8].copy_from_slice(&root);
    bytes
}

/// Groups in groups, deep enough to overflow a stack.
fn nested() -> Vec<u8> {
    let mut bytes = file(&Node::At(0));
    let names = heap(&mut bytes, b"\0x\0");
    let mut inner = header(&mut bytes, &[dataspace(&[1]), f32_type(), layout(0, 4)]);
    for _ in 0..10_000 {
        let node = symbols(&mut bytes, &[(1, inner)]);
        let tree = tree(&mut bytes, 0, &[node]);
        inner = header(&mut bytes, &[symbol_table(tree, names)]);
    }
    bytes[ROOT_AT..ROOT_AT + 8].copy_from_slice(&inner.to_le_bytes());
    bytes
}

/// A B-tree whose nodes all list the same children, many times each.
fn repeated_children() -> Vec<u8> {
    group(|bytes| {
        let names = heap(bytes, &[b"\0", &[b'x'; 500][..], b"\0"].concat());
        let value = header(bytes, &[dataspace(&[1]), f32_type(), layout(0, 4)]);
        let mut node = symbols(bytes, &vec![(1, value); 500]);
        for level in 0..6 {
            node = tree(bytes, level, &[node; 500]);
        }
        (node, names)
    })
}

/// B-tree nodes without any member, again and again.
fn empty_children() -> Vec<u8> {
    group(|bytes| {
        let names = heap(bytes, b"\0");
        let mut node = symbols(bytes, &[]);
        for level in 0..6 {
            node = tree(bytes, level, &[node; 500]);
        }
        (node, names)
    })
}

/// A file, what it is, and the start of its refusal.
type HarmfulFile = (&'static str, Vec<u8>, &'static str);

/// Files that do harm where numbers of a file are trusted.
fn harmful() -> Vec<HarmfulFile> {
    [harmful_structures(), harmful_values(), harmful_headers(), harmful_names()].concat()
}

/// The messages of a dataset with one value.
fn good() -> Vec<(u16, Vec<u8>)> {
    vec![dataspace(&[1]), f32_type(), layout(0, 4)]
}

/// A file whose dataset has one more message than it should.
fn with(message: (u16, Vec<u8>)) -> Vec<u8> {
    dataset([good(), vec![message]].concat())
}

fn harmful_structures() -> Vec<HarmfulFile> {
    let metadata = "it has more than 16777216 bytes of names and headers";
    let mut latest = file(&Node::Group(vec![]));
    latest[8] = 3;
    let mut based = file(&Node::Group(vec![]));
    based[24] = 8;
    let whole = file(&Node::Group(vec![("a", Node::Values(&[2], &[0; 8]))]));
    let twice = group(|bytes| {
        let names = heap(bytes, b"a\0b\0");
        let one = header(bytes, &good());
        let node = symbols(bytes, &[(0, one), (2, one)]);
        (tree(bytes, 0, &[node]), names)
    });
    vec![
        ("no HDF5 file", b"PK\x03\x04 something else".to_vec(), "it is not an HDF5 file"),
        ("an empty file", Vec::new(), "it is not an HDF5 file"),
        ("a file that ends in the superblock", whole[..50].to_vec(), DAMAGED),
        ("a file that lacks its last byte", whole[..whole.len() - 1].to_vec(), DAMAGED),
        ("a newer superblock", latest, "it has a superblock of the newer form"),
        ("a base address", based, DAMAGED),
        ("a file without datasets", file(&Node::Group(vec![])), "it holds no weights"),
        ("a root that is a dataset", file(&Node::Header(good())), DAMAGED),
        ("a group in itself", cycle(), DAMAGED),
        ("two paths to a dataset", twice, DAMAGED),
        ("nested groups", nested(), "it has more than 512 bytes in a path"),
        ("repeated children", repeated_children(), "it has more than 16384 groups and datasets"),
        ("empty children", empty_children(), metadata),
        ("a root outside the file", file(&Node::At(1 << 40)), DAMAGED),
        ("a root at the largest offset", file(&Node::At(u64::MAX)), DAMAGED),
        ("a root in the superblock", file(&Node::At(0)), DAMAGED),
    ]
}

fn harmful_values() -> Vec<HarmfulFile> {
    let placed = |dims: &[u64], start, bytes| {
        dataset(vec![dataspace(dims), f32_type(), layout(start, bytes)])
    };
    let truncated = "it does not hold all values of dataset \"kernel:0\"";
    vec![
        ("values outside the file", placed(&[1], 1 << 40, 4), truncated),
        ("values at the largest offset", placed(&[1], u64::MAX - 1, 4), truncated),
        ("values that were never written", placed(&[1], u64::MAX, 4), truncated),
        ("more values than bytes", placed(&[3], 0, 8), truncated),
        ("2^62 bytes of values", placed(&[1 << 30, 1 << 30], 0, 1 << 62), truncated),
        ("more values than can be counted", placed(&[u64::MAX, u64::MAX], 0, 4), truncated),
        ("no values, but sides that overflow", placed(&[0, u64::MAX, 3], 0, 0), truncated),
        ("nine dimensions", placed(&[1; 9], 0, 4), "it has more than 8 dimensions"),
        ("255 dimensions", placed(&[1; 255], 0, 4), "it has more than 8 dimensions"),
        ("compressed values", with((0x0b, vec![1, 1])), "it has compressed values"),
        ("values in another file", with((7, vec![1; 16])), "it has values in another file"),
        (
            "values in chunks",
            dataset(vec![dataspace(&[1]), f32_type(), (8, vec![3, 2, 2, 0, 0, 0, 0, 0])]),
            "it has values in chunks",
        ),
        (
            "values in the header",
            dataset(vec![dataspace(&[1]), f32_type(), (8, vec![3, 0, 4, 0, 0, 0, 0, 0])]),
            "it has values inside headers",
        ),
        (
            "a layout of a newer version",
            dataset(vec![dataspace(&[1]), f32_type(), (8, vec![4, 1, 0, 0])]),
            "it has a layout of an older or newer version",
        ),
        (
            "big-endian values",
            dataset(vec![
                dataspace(&[1]),
                (
                    3,
                    f32_type()
                        .1
                        .iter()
                        .enumerate()
                        .map(|(at, byte)| byte | u8::from(at == 1))
                        .collect(),
                ),
                layout(0, 4),
            ]),
            "it has numbers in big-endian order",
        ),
    ]
}

fn harmful_headers() -> Vec<HarmfulFile> {
    let continuation =
        |at: u64, bytes: u64| (0x10, [at.to_le_bytes(), bytes.to_le_bytes()].concat());
    vec![
        ("a newer group", dataset(vec![(2, vec![0; 18])]), "it has groups of the newer form"),
        ("two dataspaces", with(dataspace(&[1])), DAMAGED),
        ("a dataset that is a group", with(symbol_table(0, 0)), DAMAGED),
        ("a dataset without a type", dataset(vec![dataspace(&[1]), layout(0, 4)]), DAMAGED),
        ("a header without messages", dataset(Vec::new()), DAMAGED),
        ("a message of no bytes", with((8, Vec::new())), DAMAGED),
        ("a block outside the file", with(continuation(1 << 40, 8)), DAMAGED),
        ("a block of 2^60 bytes", with(continuation(0, 1 << 60)), DAMAGED),
        ("many blocks", dataset(vec![continuation(0, 8); 100]), "it has more than 64 blocks"),
    ]
}

fn harmful_names() -> Vec<HarmfulFile> {
    vec![
        (
            "a name of the group's heap without an end",
            group(|bytes| {
                let names = heap(bytes, &[b'x'; 64]);
                let node = symbols(bytes, &[(0, 0)]);
                (tree(bytes, 0, &[node]), names)
            }),
            DAMAGED,
        ),
        (
            "a name outside the heap",
            group(|bytes| {
                let names = heap(bytes, b"\0");
                let node = symbols(bytes, &[(u64::MAX, 0)]);
                (tree(bytes, 0, &[node]), names)
            }),
            DAMAGED,
        ),
        ("a name that is a path", file(&Node::Group(vec![("a/b", Node::At(0))])), DAMAGED),
        ("an empty name", file(&Node::Group(vec![("", Node::At(0))])), DAMAGED),
        (
            "a B-tree below itself",
            group(|bytes| {
                let names = heap(bytes, b"\0");
                let own = bytes.len().next_multiple_of(8) as u64;
                (tree(bytes, 1, &[own]), names)
            }),
            DAMAGED,
        ),
        (
            "two datasets of one name",
            file(&Node::Group(vec![
                ("gamma:0", Node::Values(&[1], &[0; 4])),
                ("weight:0", Node::Values(&[1], &[0; 4])),
            ])),
            "two of its datasets are the tensor \"weight\"",
        ),
    ]
}

#[test]
fn harmful_files_are_refused_in_plain_words_and_little_memory() {
    for (name, bytes, expected) in harmful() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &bytes).unwrap();
        let (peak, result) = allocations::peak(|| TensorFlowFile::open(file.path()));
        let message = result.err().map_or("nothing is wrong".to_owned(), |error| error.to_string());
        assert!(message.starts_with(expected), "{name}: {message}");
        // Headers and names, and 16,384 paths of 512 bytes at most.
        let most = 2 * bytes.len() as u64 + (12 << 20);
        assert!(peak <= most, "{name}: {peak} bytes for a file of {}", bytes.len());
    }
}

#[test]
fn datasets_that_share_their_values_are_bounded() {
    let shared = |count: usize| {
        let names: Vec<String> = (0..count).map(|number| format!("w{number}")).collect();
        let one = || Node::Header(vec![dataspace(&[1024]), f32_type(), layout(0, 4096)]);
        let mut members: Vec<(&str, Node<'_>)> =
            names.iter().map(|name| (&name[..], one())).collect();
        members.push(("values", Node::Values(&[1024], &[0; 4096])));
        file(&Node::Group(members))
    };
    assert!(open(&shared(0)).is_ok());
    assert!(refusal(&shared(100)).starts_with("its datasets claim more bytes than the file has"));
}

/// The whole program with a checkpoint whose weights are harmful, in an address space of 1 GiB.
#[test]
fn a_harmful_checkpoint_is_exit_78_and_takes_no_memory() {
    let directory = copy("caption");
    let weights = directory.path().join("tf_model.h5");
    for (name, bytes, _) in harmful() {
        fs::write(&weights, &bytes).unwrap();
        assert_refused_in_little_memory(directory.path(), "tf_model.h5", name);
    }
}

/// Every number in the metadata of a file that the HDF5 library wrote, set to the largest and to zero.
#[test]
fn no_number_of_a_file_is_trusted() {
    let whole = fs::read(fixtures().join("vision/tf_model.h5")).unwrap();
    // The superblock and the first headers; of the rest one in 131, a prime, so that every field of the records is met.
    for at in (0..1024).chain((1024..whole.len()).step_by(131)) {
        for (width, value) in [(1, 0xff), (2, 0xff), (8, 0xff), (8, 0)] {
            let mut bytes = whole.clone();
            let end = (at + width).min(bytes.len());
            bytes[at..end].fill(value);
            if let Err(error) = open(&bytes) {
                assert!(!error.is_empty());
            }
        }
    }
    for length in (0..whole.len()).step_by(997) {
        let message = refusal(&whole[..length]);
        assert!(message.starts_with(DAMAGED) || length < 8, "cut to {length} bytes: {message}");
    }
}

#[test]
fn other_floats_are_read_and_other_types_are_left_out() {
    let f16 = (
        3,
        [&[0x11, 0x20, 15, 0, 2, 0, 0, 0][..], &[0, 0, 16, 0, 10, 5, 0, 10, 15, 0, 0, 0]].concat(),
    );
    let text = (3, vec![0x13, 0, 0, 0, 4, 0, 0, 0]);
    let member = |kind: (u16, Vec<u8>)| Node::Header(vec![dataspace(&[1]), kind, layout(0, 4)]);
    let file =
        open(&file(&Node::Group(vec![("half:0", member(f16)), ("name", member(text))]))).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["half"]);
    assert_eq!(file.read("half").unwrap().unwrap().dtype(), DType::F16);
}
