//! Checkpoint directories that something is wrong with: each is refused before a port is bound, with a message that names
//! the file, the field, its value and what is accepted, or what to do next.

use std::fs;
use std::path::Path;

use blip_server::app::{check_models, is_checkpoint_fault};
use blip_server::config::{Environment, Flags, load};
use serde_json::{Map, Value, json};

/// What is done to a good checkpoint, and the message then; `DIR` stands for the directory.
struct Case(fn(&Path), &'static str);

fn copy(directory: &Path) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/caption-varied");
    for entry in fs::read_dir(fixture).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), directory.join(entry.file_name())).unwrap();
    }
}

fn write(directory: &Path, file: &str, content: impl AsRef<[u8]>) {
    fs::write(directory.join(file), content).unwrap();
}

fn remove(directory: &Path, file: &str) {
    fs::remove_file(directory.join(file)).unwrap();
}

/// Sets a field, `block.field` or `field`, of a JSON file.
fn set(directory: &Path, file: &str, field: &str, value: Value) {
    edit(directory, file, |object| match field.split_once('.') {
        Some((block, field)) => object[block][field] = value,
        None => {
            object.insert(field.to_owned(), value);
        }
    });
}

fn edit(directory: &Path, file: &str, change: impl FnOnce(&mut Map<String, Value>)) {
    let path = directory.join(file);
    let text = fs::read(&path).unwrap_or_else(|_| b"{}".to_vec());
    let mut object: Map<String, Value> = serde_json::from_slice(&text).unwrap();
    change(&mut object);
    fs::write(path, serde_json::to_vec(&object).unwrap()).unwrap();
}

const LFS: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n";
const CONFIG: &str = "config.json";
const PROCESSOR: &str = "preprocessor_config.json";
const TOKENIZER: &str = "tokenizer.json";
const OPTIONS: &str = "tokenizer_config.json";
const INDEX: &str = "model.safetensors.index.json";

fn without_weights(directory: &Path) {
    remove(directory, "model.safetensors");
}

const CASES: &[Case] = &[
    // Files that are missing, or something else.
    Case(
        |d| remove(d, CONFIG),
        "models.0 (from --model): DIR has no config.json; copy it there: save_pretrained writes it with the weights",
    ),
    Case(
        without_weights,
        "models.0 (from --model): DIR has no weights (model.safetensors, pytorch_model.bin, an index of shards of either, or tf_model.h5); copy them there, or fetch a checkpoint with `blip-server download`",
    ),
    Case(
        |d| {
            without_weights(d);
            write(d, "tf_model.h5.index.json", "x");
        },
        "models.0 (from --model): DIR has no weights (model.safetensors, pytorch_model.bin, an index of shards of either, or tf_model.h5); its tf_model.h5 is in shards, which is not supported; save it in one file with transformers 4 and its class, such as TFBlipForConditionalGeneration.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)",
    ),
    Case(
        |d| {
            without_weights(d);
            write(d, "flax_model.msgpack", "x");
        },
        "models.0 (from --model): DIR has no weights (model.safetensors, pytorch_model.bin, an index of shards of either, or tf_model.h5); its flax_model.msgpack is a Flax file, and transformers has no BLIP for Flax; fetch a checkpoint with `blip-server download`",
    ),
    Case(
        |d| {
            remove(d, TOKENIZER);
            remove(d, "vocab.txt");
        },
        "models.0 (from --model): DIR has no tokenizer (tokenizer.json or vocab.txt); save the processor there too: processor.save_pretrained",
    ),
    Case(
        |d| remove(d, PROCESSOR),
        "models.0 (from --model): DIR has no image preprocessing (preprocessor_config.json or processor_config.json); save the processor there too: processor.save_pretrained",
    ),
    Case(|d| write(d, CONFIG, ""), "DIR/config.json is empty; copy or download it again"),
    Case(
        |d| write(d, CONFIG, LFS),
        "DIR/config.json is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`",
    ),
    Case(
        |d| write(d, CONFIG, "{\"text_config\": {"),
        "DIR/config.json is not valid JSON: line 1, column 17; copy or download it again",
    ),
    Case(
        |d| write(d, CONFIG, "<html>"),
        "DIR/config.json is not valid JSON: line 1, column 1; copy or download it again",
    ),
    Case(|d| write(d, CONFIG, "[]"), "DIR/config.json is a list; accepted: a JSON object"),
    Case(
        |d| write(d, CONFIG, [0xff, 0xfe, b'{', 0]),
        "DIR/config.json is not valid JSON: line 1, column 1; copy or download it again",
    ),
    // config.json.
    Case(
        |d| write(d, CONFIG, "{}"),
        "DIR/config.json has no architectures; accepted: BlipForConditionalGeneration, BlipForQuestionAnswering, BlipForImageTextRetrieval, BlipModel, BlipVisionModel or BlipTextModel",
    ),
    Case(
        |d| set(d, CONFIG, "architectures", json!(["ViTModel"])),
        r#"DIR/config.json: architectures is ["ViTModel"]; accepted: BlipForConditionalGeneration, BlipForQuestionAnswering, BlipForImageTextRetrieval, BlipModel, BlipVisionModel or BlipTextModel"#,
    ),
    Case(
        |d| set(d, CONFIG, "architectures", json!(7)),
        "DIR/config.json: architectures is 7; accepted: a list of class names",
    ),
    Case(
        |d| set(d, CONFIG, "text_config", json!([])),
        "DIR/config.json: text_config is []; accepted: an object",
    ),
    Case(
        |d| set(d, CONFIG, "text_config.hidden_size", json!("768")),
        r#"DIR/config.json: text_config.hidden_size is "768"; accepted: a whole number from 1 to 2147483647"#,
    ),
    Case(
        |d| set(d, CONFIG, "text_config.hidden_size", json!(null)),
        "DIR/config.json: text_config.hidden_size is null; accepted: a whole number from 1 to 2147483647",
    ),
    Case(
        |d| set(d, CONFIG, "text_config.hidden_size", json!(40.5)),
        "DIR/config.json: text_config.hidden_size is 40.5; accepted: a whole number from 1 to 2147483647",
    ),
    Case(
        |d| set(d, CONFIG, "text_config.hidden_size", json!(-1)),
        "DIR/config.json: text_config.hidden_size is -1; accepted: a whole number from 1 to 2147483647",
    ),
    Case(
        |d| set(d, CONFIG, "text_config.vocab_size", json!(1u64 << 40)),
        "DIR/config.json: text_config.vocab_size is 1099511627776; accepted: a whole number from 1 to 2147483647",
    ),
    Case(
        |d| set(d, CONFIG, "text_config.num_hidden_layers", json!(0)),
        "DIR/config.json: text_config.num_hidden_layers is 0; accepted: a whole number from 1 to 2147483647",
    ),
    Case(
        |d| set(d, CONFIG, "text_config.num_attention_heads", json!(7)),
        "DIR/config.json: text_config.num_attention_heads is 7; accepted: a divisor of hidden_size",
    ),
    Case(
        |d| set(d, CONFIG, "text_config.hidden_act", json!("mish")),
        r#"DIR/config.json: text_config.hidden_act is "mish"; accepted: gelu, gelu_python, gelu_new, gelu_pytorch_tanh, gelu_python_tanh, gelu_accurate, gelu_fast, quick_gelu, relu, silu, swish or tanh"#,
    ),
    Case(
        |d| set(d, CONFIG, "text_config.hidden_act", json!(1)),
        "DIR/config.json: text_config.hidden_act is 1; accepted: gelu, gelu_python, gelu_new, gelu_pytorch_tanh, gelu_python_tanh, gelu_accurate, gelu_fast, quick_gelu, relu, silu, swish or tanh",
    ),
    Case(
        |d| set(d, CONFIG, "text_config.layer_norm_eps", json!("1e-12")),
        r#"DIR/config.json: text_config.layer_norm_eps is "1e-12"; accepted: a number from 0 to below 1"#,
    ),
    Case(
        |d| set(d, CONFIG, "text_config.bos_token_id", json!(989)),
        "DIR/config.json: text_config.bos_token_id is 989; accepted: an id below vocab_size",
    ),
    Case(
        |d| set(d, CONFIG, "text_config.sep_token_id", json!(null)),
        "DIR/config.json: text_config.sep_token_id is null; accepted: an id below vocab_size",
    ),
    Case(
        |d| set(d, CONFIG, "text_config.is_decoder", json!(1)),
        "DIR/config.json: text_config.is_decoder is 1; accepted: true or false",
    ),
    Case(
        |d| set(d, CONFIG, "vision_config.image_size", json!([64, 48])),
        "DIR/config.json: vision_config.image_size is [64,48]; accepted: a whole number from 1, or two equal ones",
    ),
    Case(
        |d| set(d, CONFIG, "vision_config.patch_size", json!(65)),
        "DIR/config.json: vision_config.patch_size is 65; accepted: 1 to image_size",
    ),
    Case(
        |d| set(d, CONFIG, "vision_config.num_attention_heads", json!(5)),
        "DIR/config.json: vision_config.num_attention_heads is 5; accepted: a divisor of hidden_size",
    ),
    Case(
        |d| set(d, CONFIG, "projection_dim", json!(0)),
        "DIR/config.json: projection_dim is 0; accepted: a whole number from 1 to 2147483647",
    ),
    // The image processor.
    Case(
        |d| write(d, PROCESSOR, LFS),
        "DIR/preprocessor_config.json is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`",
    ),
    Case(
        |d| set(d, PROCESSOR, "size", json!({"shortest_edge": 64})),
        r#"DIR/preprocessor_config.json: size is {"shortest_edge":64}; accepted: a number, [height, width] or {"height": ..., "width": ...}; keeping the aspect ratio is not supported"#,
    ),
    Case(
        |d| set(d, PROCESSOR, "size", json!(32)),
        "DIR/preprocessor_config.json: size is 32; accepted: 64 for both sides, as vision_config.image_size of config.json; for another size, set image_size of the model (SRC?image_size=N)",
    ),
    Case(
        |d| set(d, PROCESSOR, "resample", json!(9)),
        "DIR/preprocessor_config.json: resample is 9; accepted: 0 (nearest), 1 (lanczos), 2 (bilinear), 3 (bicubic), 4 (box) or 5 (hamming)",
    ),
    Case(
        |d| set(d, PROCESSOR, "image_std", json!([1, 0, 1])),
        "DIR/preprocessor_config.json: image_std is [1,0,1]; accepted: a positive number, or three of them",
    ),
    Case(
        |d| set(d, PROCESSOR, "do_center_crop", json!(true)),
        "DIR/preprocessor_config.json: do_center_crop is true; accepted: false; cropping is not supported",
    ),
    Case(
        |d| set(d, PROCESSOR, "image_processor_type", json!("CLIPImageProcessor")),
        r#"DIR/preprocessor_config.json: image_processor_type is "CLIPImageProcessor"; accepted: BlipImageProcessor"#,
    ),
    Case(
        |d| {
            remove(d, PROCESSOR);
            write(d, "processor_config.json", "{}");
        },
        "DIR/processor_config.json: image_processor is missing; accepted: an object with the fields of a preprocessor_config.json, or a preprocessor_config.json next to this file",
    ),
    // Weights.
    Case(
        |d| write(d, "model.safetensors", ""),
        "DIR/model.safetensors is not a readable weights file: it is empty; download it again",
    ),
    Case(
        |d| write(d, "model.safetensors", LFS),
        "DIR/model.safetensors is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`",
    ),
    Case(
        |d| write(d, "model.safetensors", "<!DOCTYPE html>"),
        "DIR/model.safetensors is not a readable weights file: its format does not match its name; download it again",
    ),
    Case(
        |d| {
            let bytes = fs::read(d.join("model.safetensors")).unwrap();
            write(d, "model.safetensors", &bytes[..bytes.len() / 2]);
        },
        "DIR/model.safetensors is not a readable weights file: it is cut off or damaged; download it again",
    ),
    Case(
        |d| {
            without_weights(d);
            write(d, INDEX, LFS);
        },
        "models.0 (from --model): DIR/model.safetensors.index.json is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`",
    ),
    Case(
        |d| {
            without_weights(d);
            write(d, INDEX, "{}");
        },
        "models.0 (from --model): DIR/model.safetensors.index.json: weight_map is missing; accepted: an object that maps tensor names to file names",
    ),
    Case(
        |d| {
            without_weights(d);
            write(d, INDEX, r#"{"weight_map": {"a": 1}}"#);
        },
        r#"models.0 (from --model): DIR/model.safetensors.index.json: weight_map is {"a":1}; accepted: an object that maps tensor names to file names"#,
    ),
    Case(
        |d| {
            without_weights(d);
            write(d, INDEX, r#"{"weight_map": {}}"#);
        },
        "models.0 (from --model): DIR/model.safetensors.index.json: its weight_map is empty; download the checkpoint again",
    ),
    Case(
        |d| {
            without_weights(d);
            write(d, INDEX, r#"{"weight_map": {"a": "../b"}}"#);
        },
        r#"models.0 (from --model): DIR/model.safetensors.index.json: it names "../b", which is not a file next to it"#,
    ),
    Case(
        |d| {
            without_weights(d);
            write(d, INDEX, r#"{"weight_map": {"a": "b.safetensors"}}"#);
        },
        "models.0 (from --model): DIR has no b.safetensors; the weight index names it, so the checkpoint is incomplete; copy or download it again",
    ),
    Case(
        |d| {
            without_weights(d);
            write(d, "pytorch_model.bin", "");
        },
        "DIR/pytorch_model.bin is not a readable weights file: it is empty; download it again",
    ),
    Case(
        |d| {
            without_weights(d);
            write(d, "pytorch_model.bin", LFS);
        },
        "DIR/pytorch_model.bin is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`",
    ),
    Case(
        |d| {
            without_weights(d);
            write(d, "pytorch_model.bin", "PK\x03\x04");
        },
        "DIR/pytorch_model.bin is not a readable weights file: it is cut off or damaged; download it again",
    ),
    Case(
        |d| {
            without_weights(d);
            write(d, "pytorch_model.bin", "<html>");
        },
        "DIR/pytorch_model.bin is not a readable weights file: it was not written by torch.save; download it again",
    ),
    Case(
        |d| {
            without_weights(d);
            write(d, "tf_model.h5", "");
        },
        "DIR/tf_model.h5 is not a readable weights file: it is empty; download it again",
    ),
    Case(
        |d| {
            without_weights(d);
            write(d, "tf_model.h5", LFS);
        },
        "DIR/tf_model.h5 is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`",
    ),
    Case(
        |d| {
            without_weights(d);
            write(d, "tf_model.h5", "<html>");
        },
        "DIR/tf_model.h5 is not a readable weights file: it is not an HDF5 file; download it again",
    ),
    Case(
        |d| {
            without_weights(d);
            write(d, "tf_model.h5", b"\x89HDF\r\n\x1a\n\x00");
        },
        "DIR/tf_model.h5 is not a readable weights file: it is cut off or damaged; download it again",
    ),
    // The tokenizer.
    Case(
        |d| write(d, TOKENIZER, "{"),
        "DIR/tokenizer.json is not valid JSON: line 1, column 1; copy or download it again",
    ),
    Case(
        |d| write(d, TOKENIZER, "{}"),
        "DIR/tokenizer.json: added_tokens is missing; accepted: a list of objects with id and content",
    ),
    Case(
        |d| write(d, TOKENIZER, LFS),
        "DIR/tokenizer.json is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`",
    ),
    Case(
        |d| set(d, TOKENIZER, "added_tokens", json!(null)),
        "DIR/tokenizer.json: added_tokens is null; accepted: a list of objects with id and content",
    ),
    Case(
        |d| set(d, TOKENIZER, "added_tokens", json!([{"content": "a"}])),
        r#"DIR/tokenizer.json: added_tokens is {"content":"a"}; accepted: a list of objects with id and content"#,
    ),
    Case(
        |d| set(d, TOKENIZER, "model.vocab", json!({"a": "b"})),
        "DIR/tokenizer.json has no model.vocab that maps words to ids, which BertTokenizer needs",
    ),
    Case(
        |d| set(d, TOKENIZER, "pre_tokenizer", json!({"type": "Unheard"})),
        "DIR/tokenizer.json is not a valid tokenizer; save it again with tokenizer.save_pretrained of a current transformers release",
    ),
    Case(
        |d| {
            remove(d, TOKENIZER);
            write(d, "vocab.txt", [b'a', 0xff, b'\n']);
        },
        "DIR/vocab.txt is not UTF-8 text; copy or download it again",
    ),
    Case(
        |d| {
            remove(d, TOKENIZER);
            write(d, "vocab.txt", "[UNK]\na\n");
        },
        "the tokenizer's separator token has the id 2, but text_config.sep_token_id in config.json is 58: they belong to different models; copy both from the same checkpoint",
    ),
    Case(
        |d| {
            remove(d, TOKENIZER);
            write(d, "vocab.txt", "a\nb\n");
        },
        "DIR/vocab.txt has no vocabulary entry for the unknown token [UNK]",
    ),
    Case(
        |d| write(d, OPTIONS, "[]"),
        "DIR/tokenizer_config.json is a list; accepted: a JSON object",
    ),
    Case(
        |d| set(d, OPTIONS, "do_lower_case", json!("yes")),
        r#"DIR/tokenizer_config.json: do_lower_case is "yes"; accepted: true or false"#,
    ),
    Case(
        |d| set(d, OPTIONS, "cls_token", json!({"content": "[CLS]"})),
        r#"DIR/tokenizer_config.json: cls_token is {"content":"[CLS]"}; accepted: a token: its text, or an object with "__type": "AddedToken""#,
    ),
    Case(
        |d| set(d, OPTIONS, "sep_token", json!("[GONE] [SEP]")),
        r#"DIR/tokenizer_config.json: sep_token is "[GONE] [SEP]"; accepted: a token that is a single word"#,
    ),
    Case(
        |d| set(d, OPTIONS, "sep_token", json!(null)),
        "DIR/tokenizer_config.json: sep_token is null; accepted: a token that is a single word",
    ),
    Case(
        |d| set(d, OPTIONS, "tokenizer_class", json!("CLIPTokenizer")),
        r#"DIR/tokenizer_config.json: tokenizer_class is "CLIPTokenizer"; accepted: BertTokenizer or one of its aliases (such as DistilBertTokenizer), or PreTrainedTokenizerFast; with or without the suffix Fast"#,
    ),
    Case(
        |d| {
            remove(d, TOKENIZER);
            set(d, OPTIONS, "tokenizer_class", json!("PreTrainedTokenizerFast"));
        },
        r#"DIR/tokenizer_config.json: tokenizer_class is "PreTrainedTokenizerFast"; accepted: BertTokenizer, because there is no tokenizer.json"#,
    ),
    Case(
        |d| set(d, OPTIONS, "added_tokens_decoder", json!([])),
        "DIR/tokenizer_config.json: added_tokens_decoder is []; accepted: an object that maps ids to tokens",
    ),
    Case(
        |d| set(d, OPTIONS, "added_tokens_decoder", json!({"7": "[PAD]"})),
        r#"DIR/tokenizer_config.json: added_tokens_decoder.7 is "[PAD]"; accepted: an object with "content""#,
    ),
    Case(
        |d| set(d, OPTIONS, "extra_special_tokens", json!("a")),
        r#"DIR/tokenizer_config.json: extra_special_tokens is "a"; accepted: a list of tokens: strings, or objects with "__type""#,
    ),
    Case(
        |d| set(d, OPTIONS, "extra_special_tokens", json!(["<q>", "<r>", "<s>"])),
        "the tokenizer has 990 tokens, but text_config.vocab_size in config.json is 989: they belong to different models; copy both from the same checkpoint",
    ),
    Case(
        |d| set(d, "added_tokens.json", "blip", json!("7")),
        r#"DIR/added_tokens.json: blip is "7"; accepted: an id"#,
    ),
    Case(
        |d| set(d, "special_tokens_map.json", "pad_token", json!(7)),
        r#"DIR/special_tokens_map.json: pad_token is 7; accepted: a token: its text, or an object with "__type": "AddedToken""#,
    ),
    Case(
        |d| set(d, CONFIG, "text_config.sep_token_id", json!(57)),
        "the tokenizer's separator token has the id 58, but text_config.sep_token_id in config.json is 57: they belong to different models; copy both from the same checkpoint",
    ),
];

/// The message of a start with this directory, where the directory stands for itself as `DIR`.
fn message(directory: &Path) -> String {
    let flags = Flags { models: vec![directory.display().to_string()], ..Flags::default() };
    let message = match load(&flags, &Environment::new()) {
        // Files that are missing are the setting's fault.
        Err(error) => format!("{:#}", anyhow::Error::from(error)),
        Ok(config) => {
            let Err(error) = check_models(&config) else { return "nothing is wrong".to_owned() };
            let message = format!("{error:#}");
            assert!(is_checkpoint_fault(&*error.into_boxed_dyn_error()), "{message}");
            message
        }
    };
    message.replace(&directory.display().to_string(), "DIR")
}

#[test]
fn every_fault_of_a_checkpoint_is_reported_in_plain_words() {
    assert!(CASES.len() >= 70);
    let mut wrong = Vec::new();
    for Case(change, expected) in CASES {
        let directory = tempfile::Builder::new().prefix("tiny").tempdir().unwrap();
        copy(directory.path());
        change(directory.path());
        let message = message(directory.path());
        let name = directory.path().file_name().unwrap().to_str().unwrap();
        let message = message.replace(&format!("cannot serve model {name}: "), "");
        if message != *expected {
            wrong.push(format!("found:    {message}\nexpected: {expected}"));
        }
        for word in ["serde", "untagged", "variant", "expected value", "EOF", "EOCD", "Err(", "::"]
        {
            assert!(!message.contains(word), "{message}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
