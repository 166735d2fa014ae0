//! Files of torch: tensors as torch wrote them, and files that are meant to harm whoever reads them.

use std::fs;
use std::path::Path;

use blip_server::torch::TorchFile;
use candle_core::{DType, Tensor};

use crate::robustness::fuzz::targets::archive::{Entry, archive, with_pickle};
use crate::support::process::assert_refused_in_little_memory;

/// BINUNICODE.
fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A tuple of BININT.
fn sizes(numbers: &[i32]) -> Vec<u8> {
    let numbers = numbers.iter().flat_map(|number| [b"J", &number.to_le_bytes()[..]].concat());
    [b"(".to_vec(), numbers.collect(), b"t".to_vec()].concat()
}

/// A call of `_rebuild_tensor_v2`.
fn tensor(class: &str, key: &str, offset: u8, size: &[i32], strides: &[i32]) -> Vec<u8> {
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        format!("ctorch\n{class}\n").into_bytes(),
        text(key),
        text("cpu"),
        vec![b'K', 0, b't', b'Q', b'K', offset],
        sizes(size),
        sizes(strides),
        b"\x89ccollections\nOrderedDict\n)RtR".to_vec(),
    ]
    .concat()
}

/// A state dict, which is an `OrderedDict`.
fn state_dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut pickle = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec();
    for (name, value) in entries {
        pickle.extend([&text(name), &value[..]].concat());
    }
    pickle.extend(b"u.");
    pickle
}

fn open(bytes: &[u8]) -> Result<TorchFile, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    TorchFile::open(file.path()).map_err(|error| error.to_string())
}

/// Why a file with this pickle and four bytes of values is refused.
fn refusal(pickle: &[u8]) -> String {
    open(&with_pickle(pickle, &[0; 4])).err().unwrap_or_else(|| "nothing is wrong".to_owned())
}

fn pickle_of(parts: &[&[u8]]) -> Vec<u8> {
    [b"\x80\x02", &parts.concat()[..]].concat()
}

const DAMAGED: &str = "it is cut off or damaged; download it again";
const NO_STATE_DICT: &str = "it holds no state dict of tensors";
/// Deep enough to overflow the stack of a main thread, were it dropped or walked by recursion.
const DEEP: usize = 300_000;

/// Pickles that do harm where values are copied, nested or allocated as announced.
fn harmful() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let stack = "it has more than 16384 values on its pickle's stack";
    vec![
        // Each round makes a pair of the value before, twice: 2^30 values of 160 bytes.
        ("doubling", pickle_of(&[b"N", &b"q\0h\0\x86".repeat(30), b"."]), NO_STATE_DICT),
        ("doubling lists", pickle_of(&[b"]", &b"q\0]h\0ah\0a".repeat(30), b"."]), NO_STATE_DICT),
        ("nested tuples", pickle_of(&[b"N", &b"\x85".repeat(DEEP), b"."]), NO_STATE_DICT),
        ("nested lists", pickle_of(&[&b"]".repeat(DEEP), &b"a".repeat(DEEP - 1), b"."]), stack),
        (
            "nested dictionaries",
            pickle_of(&[b"}", &b"N}".repeat(DEEP), &b"s".repeat(DEEP), b"."]),
            stack,
        ),
        ("nested calls", pickle_of(&[b"N", &b"N\x85R".repeat(DEEP), b"."]), NO_STATE_DICT),
        ("nested objects", pickle_of(&[b"N", &b"NR".repeat(DEEP), b"."]), NO_STATE_DICT),
        ("nested ids", pickle_of(&[b"N", &b"Q".repeat(DEEP), b"."]), NO_STATE_DICT),
        (
            "open tuples",
            pickle_of(&[&b"(".repeat(DEEP)]),
            "it has more than 1024 levels of nesting in its pickle",
        ),
        ("a list in itself", pickle_of(&[b"]q\0h\0a."]), NO_STATE_DICT),
        ("a dictionary in itself", pickle_of(&[b"}q\0h\0h\0s."]), NO_STATE_DICT),
        ("a text of 4 GiB", pickle_of(&[b"X\xff\xff\xff\xffabc."]), DAMAGED),
        ("an integer of 2 GiB", pickle_of(&[b"\x8b\xff\xff\xff\x7f."]), "it has the opcode LONG4"),
        (
            "opcodes without end",
            pickle_of(&[b"]", &b"Na".repeat(1 << 19)]),
            "it has more than 1048576 opcodes in its pickle",
        ),
        (
            "a tensor of 2^62 bytes",
            state_dict(&[(
                "w",
                tensor("FloatStorage", "0", 0, &[1 << 30, 1 << 30], &[1 << 30, 1]),
            )]),
            "it does not hold all values of tensor \"w\"",
        ),
        (
            "a tensor of more values than can be counted",
            state_dict(&[("w", tensor("FloatStorage", "0", 0, &[i32::MAX; 3], &[1, 1, 1]))]),
            DAMAGED,
        ),
    ]
}

#[test]
fn harmful_pickles_are_refused_in_plain_words() {
    for (name, pickle, expected) in harmful() {
        let found = refusal(&pickle).replace("its pickle has the opcode", "it has the opcode");
        assert!(found.starts_with(expected), "{name}: {found}");
    }
}

/// The whole program with a checkpoint whose pickle is harmful, in an address space of 1 GiB.
#[test]
fn a_harmful_checkpoint_is_exit_78_and_takes_no_memory() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vqa-varied");
    let directory = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, directory.path().join(path.file_name().unwrap())).unwrap();
    }
    let weights = directory.path().join("pytorch_model.bin");
    for (name, pickle, _) in harmful() {
        fs::write(&weights, with_pickle(&pickle, &[0; 4])).unwrap();
        assert_refused_in_little_memory(directory.path(), "pytorch_model.bin", name);
    }
}

#[test]
fn opcodes_that_torch_does_not_write_are_refused_by_name() {
    for (opcode, name) in [
        (&b"0"[..], "POP"),
        (b"2", "DUP"),
        (b"i", "INST"),
        (b"o", "OBJ"),
        (b"P", "PERSID"),
        (b"\x82", "EXT1"),
        (b"\x8b", "LONG4"),
        (b"\x8d", "BINUNICODE8"),
        (b"\x93", "STACK_GLOBAL"),
        (b"\x95", "FRAME"),
    ] {
        let message = refusal(&pickle_of(&[b"N", opcode, b"."]));
        let expected = format!("its pickle has the opcode {name}, which torch.save does not write");
        assert!(message.starts_with(&expected), "{message}");
    }
    assert_eq!(refusal(b"\x80\x02\xff."), DAMAGED);
}

#[test]
fn pickles_that_contradict_themselves_are_damaged() {
    for pickle in [
        &b""[..],
        b"\x80\x02",
        b"\x80\x02N",
        b"\x80\x02.",
        b"\x80\x02a.",
        b"\x80\x02Nt.",
        b"\x80\x02N(.",
        b"\x80\x02N(a.",
        b"\x80\x02(\x85.",
        b"\x80\x02h\x07.",
        b"\x80\x02q\x07.",
        b"\x80\x02}Ns.",
        b"\x80\x02}(Nu.",
        b"\x80\x02(}(NNs.",
        b"\x80\x02NR.",
        b"\x80\x02c\n",
        b"\x80\x02X\x02\0\0\0\xff\xfe.",
    ] {
        assert_eq!(refusal(pickle), DAMAGED, "{}", pickle.escape_ascii());
    }
}

#[test]
fn archives_that_promise_more_than_they_hold_are_refused() {
    let pickle = state_dict(&[("w", tensor("FloatStorage", "0", 0, &[1], &[1]))]);
    let pickle = |method, size| Entry { method, size, ..Entry::stored("m/data.pkl", &pickle) };
    let values = |content| Entry::stored("m/data/0", content);
    let good = (pickle(0, pickle(0, 0).content.len() as u32), values(&[0; 4]));
    assert!(open(&archive(&[good.0, good.1])).is_ok());
    let large = vec![0; 9 << 20];
    let cases = [
        // A thousandfold, had it been unpacked.
        (archive(&[pickle(8, 1 << 30), good.1]), "its entry \"m/data.pkl\" is compressed"),
        (archive(&[good.0, Entry { method: 8, ..good.1 }]), "its entry \"m/data/0\" is compressed"),
        (archive(&[pickle(0, 1 << 30), good.1]), "its entry \"m/data.pkl\" is compressed"),
        (archive(&[Entry::stored("m/data.pkl", &large)]), "it has more than 8388608 bytes of data"),
        (archive(&[good.0]), DAMAGED),
        (archive(&[good.0, values(&[0; 3])]), "it does not hold all values of tensor \"w\""),
        (archive(&[good.0, good.1, good.1]), DAMAGED),
        (archive(&[good.0, good.1, Entry { name: "n/data.pkl", ..good.0 }]), DAMAGED),
        (
            archive(&[good.0, good.1, Entry::stored("m/byteorder", b"big")]),
            "its numbers are in big-",
        ),
        (archive(&[good.1]), NO_STATE_DICT),
        (archive(&[]), NO_STATE_DICT),
    ];
    for (bytes, expected) in cases {
        let message = open(&bytes).err().unwrap();
        assert!(message.starts_with(expected), "expected: {expected}\nfound: {message}");
    }
}

/// Every number in the records of an archive, set to the largest.
#[test]
fn no_number_of_an_archive_is_trusted() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vqa-varied");
    let whole = fs::read(fixture.join("pytorch_model.bin")).unwrap();
    let small =
        with_pickle(&state_dict(&[("w", tensor("FloatStorage", "0", 0, &[1], &[1]))]), &[0; 4]);
    // The records at the end of the fixture, which has the 64-bit ones; all of the small archive.
    let ends = (whole.len() - 98..whole.len()).map(|at| (&whole, at));
    for (bytes, at) in ends.chain((0..small.len()).map(|at| (&small, at))) {
        for width in [1, 2, 4, 8] {
            let mut bytes = bytes.clone();
            let end = (at + width).min(bytes.len());
            bytes[at..end].fill(0xff);
            // Some are not read at all; the others are an error and never a panic.
            if let Err(error) = open(&bytes) {
                assert!(!error.is_empty());
            }
        }
    }
}

#[test]
fn tensors_that_claim_the_same_values_are_bounded() {
    let names: Vec<String> = (0..2000).map(|number| format!("w{number}")).collect();
    let one = || tensor("FloatStorage", "0", 0, &[1 << 20], &[1]);
    let dict = |names: &[String]| {
        let entries: Vec<_> = names.iter().map(|name| (name.as_str(), one())).collect();
        with_pickle(&state_dict(&entries), &vec![0; 4 << 20])
    };
    // Embeddings are tied three times.
    assert_eq!(open(&dict(&names[..3])).unwrap().names().count(), 3);
    let message = open(&dict(&names)).err().unwrap();
    assert!(message.starts_with("its tensors claim more than 8 times the bytes"), "{message}");
}

#[test]
fn every_tensor_of_a_file_that_torch_wrote_is_what_candle_reads() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vqa-varied");
    let path = fixture.join("pytorch_model.bin");
    let file = TorchFile::open(&path).unwrap();
    let expected = candle_core::pickle::read_all(&path).unwrap();
    assert_eq!(file.names().count(), expected.len());
    let floats = expected.iter().filter(|(_, tensor)| tensor.dtype().is_float());
    let floats: u64 = floats.map(|(_, tensor)| tensor.elem_count() as u64).sum();
    assert_eq!(file.float_count(), floats);
    for (name, expected) in expected {
        let tensor = file.read(&name).unwrap().unwrap();
        assert_eq!((tensor.dtype(), tensor.dims()), (expected.dtype(), expected.dims()), "{name}");
        assert_eq!(values(&tensor), values(&expected), "{name}");
    }
    assert!(file.read("no such tensor").unwrap().is_none());
}

/// Every value in the order of rows; f64 holds them all.
fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

#[test]
fn parameters_transposed_tensors_and_other_types_are_read() {
    let wrapped = |inner: Vec<u8>| {
        let hooks = b"\x88ccollections\nOrderedDict\n)RtR".to_vec();
        [b"ctorch._utils\n_rebuild_parameter\n(".to_vec(), inner, hooks].concat()
    };
    let pickle = state_dict(&[
        ("rows", tensor("FloatStorage", "0", 1, &[2, 2], &[2, 1])),
        ("columns", tensor("FloatStorage", "0", 0, &[2, 3], &[1, 2])),
        ("parameter", wrapped(tensor("FloatStorage", "0", 5, &[1], &[1]))),
        ("scalar", tensor("FloatStorage", "0", 2, &[], &[])),
        ("empty", tensor("FloatStorage", "0", 6, &[0, 3], &[3, 1])),
        ("bytes", tensor("ByteStorage", "0", 0, &[2], &[1])),
        ("gaps", tensor("FloatStorage", "0", 0, &[3], &[2])),
        ("flags", tensor("BoolStorage", "0", 0, &[3], &[1])),
        ("note", text("not a tensor")),
    ]);
    let numbers: Vec<u8> = (0..6_u8).flat_map(|number| f32::from(number).to_le_bytes()).collect();
    let file = open(&with_pickle(&pickle, &numbers)).unwrap();
    let names: Vec<&str> = file.names().collect();
    assert_eq!(names, ["bytes", "columns", "empty", "gaps", "parameter", "rows", "scalar"]);
    for (name, dims, expected) in [
        ("rows", &[2, 2][..], &[1.0, 2.0, 3.0, 4.0][..]),
        ("columns", &[2, 3], &[0.0, 2.0, 4.0, 1.0, 3.0, 5.0]),
        ("parameter", &[1], &[5.0]),
        ("scalar", &[], &[2.0]),
        ("empty", &[0, 3], &[]),
        ("bytes", &[2], &[0.0, 0.0]),
    ] {
        let tensor = file.read(name).unwrap().unwrap();
        assert_eq!((tensor.dims(), &values(&tensor)[..]), (dims, expected), "{name}");
    }
    let error = file.read("gaps").unwrap_err().to_string();
    assert_eq!(
        error,
        "tensor \"gaps\" is a view with gaps, which is not supported; save it with tensor.contiguous()"
    );
}

#[test]
fn a_long_name_with_control_characters_is_shown_on_one_line() {
    let name = "\u{1b}[31m".to_owned() + &"n".repeat(5000) + "\n";
    let message = refusal(&state_dict(&[(&name, tensor("FloatStorage", "0", 0, &[9], &[1]))]));
    assert!(message.len() < 300 && !message.contains(['\u{1b}', '\n']), "{message}");
}
