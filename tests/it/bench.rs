//! The command `bench` on the demo models: what was asked for is in its answers. Nothing here says how long anything
//! may take.

use std::collections::BTreeSet;
use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blip-server"))
        .arg("bench")
        .args(arguments)
        .env_clear()
        .output()
        .unwrap()
}

/// The least that is measured: one run of two tokens.
fn measured(arguments: &[&str]) -> Value {
    let least = ["--runs", "1", "--warm-up", "0", "--tokens", "2", "--json", "-"];
    let output = bench(&[arguments, &least].concat());
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
}

fn positive(value: &Value) -> f64 {
    let number = value.as_f64().unwrap_or_else(|| panic!("{value} is no number"));
    assert!(number > 0.0 && number.is_finite(), "{number}");
    number
}

/// Model, task, number format and batch of each result.
fn combinations(document: &Value) -> BTreeSet<String> {
    let results = document["results"].as_array().unwrap();
    let name = |result: &Value| {
        let field = |name: &str| result[name].to_string().replace('"', "");
        ["model", "task", "dtype", "batch"].map(field).join(" ")
    };
    let names: BTreeSet<String> = results.iter().map(name).collect();
    assert_eq!(names.len(), results.len(), "a combination was measured twice: {names:?}");
    names
}

#[test]
fn every_combination_that_is_asked_for_is_measured() {
    let document = measured(&[
        "--model",
        "demo-caption",
        "--task",
        "vision",
        "--task",
        "caption",
        "--batch",
        "1",
        "--batch",
        "3",
        "--dtypes",
        "f32,bf16",
        "--threads",
        "2",
        "--profile",
    ]);
    let expected = ["f32", "bf16"].into_iter().flat_map(|dtype| {
        ["vision", "caption"].into_iter().flat_map(move |task| {
            [1, 3].map(|batch| format!("demo-caption {task} {dtype} {batch}"))
        })
    });
    assert_eq!(combinations(&document), expected.collect());
    assert_eq!(document["version"], env!("CARGO_PKG_VERSION"));
    let machine = &document["machine"];
    assert!(!machine["cpu"].as_str().unwrap().is_empty());
    assert!(machine["levels"].as_array().unwrap().contains(&"portable".into()), "{machine}");
    assert_eq!(machine["threads"], 2);
    positive(&machine["cores"]);

    let limits = &document["limits"];
    positive(&limits["read_bytes_per_second"]);
    let by_format = limits["by_format"].as_array().unwrap();
    assert_eq!(by_format.len(), 2, "{limits}");
    assert_eq!(limits["operations_per_second"], by_format[0]["operations_per_second"]);
    for limit in by_format {
        positive(&limit["operations_per_second"]);
    }

    for result in document["results"].as_array().unwrap() {
        let median = positive(&result["median_s"]);
        assert_eq!(result["seconds"].as_array().unwrap().len(), 1);
        assert_eq!([&result["min_s"], &result["max_s"]], [&result["median_s"]; 2]);
        let batch = positive(&result["batch"]);
        assert!((positive(&result["per_item_s"]) * batch - median).abs() < 1e-9, "{result}");
        assert_eq!(
            (&result["threads"], &result["runs"], &result["warm_up"]),
            (&2.into(), &1.into(), &0.into())
        );
        let generates = result["task"] == "caption";
        assert_eq!(result["tokens"], if generates { 2.into() } else { Value::Null });
        let parts = result["parts"].as_array().unwrap();
        let has = |name: &str| parts.iter().any(|part| part["part"] == name);
        assert!(has("patch embedding") && has("self attention"), "{parts:?}");
        assert_eq!(has("keys and values"), generates, "{parts:?}");
        for part in parts {
            assert!(part["seconds"].as_f64().unwrap() >= 0.0 && part["calls"].is_u64(), "{part}");
            let knows = part["operations"].is_u64() || part["bytes"].is_u64();
            let name = part["part"].as_str().unwrap();
            let is_product = name.starts_with("linear") || name.starts_with("feed-forward");
            assert_eq!(knows, is_product, "{part}");
        }
    }
}

#[test]
fn without_names_the_models_are_measured_in_all_that_they_do() {
    let document =
        measured(&["--model", "demo", "--batch", "2", "--dtype", "f32", "--cpu-isa", "portable"]);
    let expected = [
        "demo-caption vision",
        "demo-caption caption",
        "demo-caption caption-known",
        "demo-vqa vqa",
        "demo-retrieval match",
        "demo-retrieval embed-image",
        "demo-retrieval embed-text",
    ];
    assert_eq!(combinations(&document), expected.map(|name| format!("{name} f32 2")).into());
    for result in document["results"].as_array().unwrap() {
        assert_eq!(result["level"], "portable");
        assert_eq!(result["parts"], Value::Array(Vec::new()));
    }
}

#[test]
fn the_table_has_a_line_for_each_result_and_the_file_has_the_json() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bench.json");
    let output = bench(&[
        "--model",
        "x=demo-caption",
        "--task",
        "vision",
        "--batch",
        "1",
        "--runs",
        "2",
        "--warm-up",
        "0",
        "--json",
        file.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    let line =
        table.lines().find(|line| line.starts_with("x ")).unwrap_or_else(|| panic!("{table}"));
    assert!(
        line.contains("vision") && table.contains("median ms") && table.contains("GB/s"),
        "{table}"
    );
    let document: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(document["results"][0]["seconds"].as_array().unwrap().len(), 2);
}

#[test]
fn what_cannot_be_measured_is_refused_with_what_can() {
    struct Case {
        arguments: &'static [&'static str],
        code: i32,
        says: &'static [&'static str],
    }
    let cases = [
        Case {
            arguments: &["--task", "captions"],
            code: 2,
            says: &["captions", "caption-known", "embed-text"],
        },
        Case { arguments: &["--batch", "0"], code: 2, says: &["--batch"] },
        Case { arguments: &["--dtypes", "f32,f8"], code: 78, says: &["f8", "bf16", "int8"] },
        Case { arguments: &["--levels", "sse9"], code: 78, says: &["sse9", "portable"] },
        Case {
            arguments: &["--model", "demo-vqa", "--task", "match"],
            code: 1,
            says: &["match", "vision, vqa"],
        },
        Case {
            arguments: &["--model", "demo-caption", "--task", "caption", "--tokens", "1000"],
            code: 1,
            says: &["demo-caption", "1000"],
        },
    ];
    for Case { arguments, code, says } in cases {
        let output = bench(arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        assert!(says.iter().all(|part| message.contains(part)), "{arguments:?}: {message}");
        assert!(output.stdout.is_empty());
    }
}
