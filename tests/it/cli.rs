//! The binary itself: exit codes, what goes to standard output and what to standard error.

use std::path::Path;
use std::process::{Command, Output};

/// Runs the binary with these arguments and nothing in its environment but `variables`.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blip-server"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_bad_configuration_is_exit_78_and_names_the_setting() {
    for arguments in [
        ["serve", "--listen", "nowhere"],
        ["healthcheck", "--listen", "nowhere"],
        ["config", "--listen", "nowhere"],
    ] {
        let output = run(&arguments, &[]);
        assert_eq!(output.status.code(), Some(78), "{arguments:?}");
        let message = text(&output.stderr);
        assert!(message.contains("server.listen") && message.contains("--listen"), "{message}");
        assert!(output.stdout.is_empty());
    }
}

#[cfg(not(feature = "demo"))]
#[test]
fn serving_without_a_model_is_exit_78_and_says_how_to_name_one() {
    for arguments in [&["serve"][..], &[]] {
        let output = run(arguments, &[]);
        assert_eq!(output.status.code(), Some(78));
        let message = text(&output.stderr);
        assert!(message.contains("--model") && message.contains("BLIP__MODELS"), "{message}");
    }
}

#[cfg(feature = "demo")]
#[test]
fn without_a_model_the_demo_models_are_served_and_the_log_says_what_they_know() {
    use std::io::{BufRead, BufReader, Read, Write};

    let mut server = Command::new(env!("CARGO_BIN_EXE_blip-server"))
        .args(["--listen", "127.0.0.1:0", "--log-format", "text"])
        .env_clear()
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut log = String::new();
    let address = loop {
        let line = lines.next().unwrap_or_else(|| panic!("the server ended: {log}"));
        log = log + &line + "\n";
        if let Some((_, rest)) = line.split_once("listening on http://") {
            break rest.split_whitespace().next().unwrap().to_owned();
        }
    };
    assert!(log.contains("synthetic scenes") && log.contains("--model Salesforce/"), "{log}");

    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /info HTTP/1.1\r\nHost: blip\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    for name in ["demo-caption", "demo-vqa", "demo-retrieval"] {
        assert!(answer.contains(name), "{answer}");
    }
    let id = rustix::process::Pid::from_child(&server);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    lines.for_each(drop);
    assert_eq!(server.wait().unwrap().code(), Some(0));
}

#[test]
fn an_unknown_variable_of_ours_is_exit_78() {
    let output = run(&["config"], &[("BLIP__SERVER__LISTN", "127.0.0.1:1")]);
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).contains("BLIP__SERVER__LISTN"));
}

#[test]
fn config_prints_what_holds_and_hides_the_token() {
    let output = run(
        &["config", "--listen", "127.0.0.1:9"],
        &[("HF_TOKEN", "hf_secret"), ("BLIP__LOG__FORMAT", "json")],
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    assert!(printed.contains("listen = \"127.0.0.1:9\""), "{printed}");
    assert!(printed.contains("format = \"json\""), "{printed}");
    assert!(!printed.contains("hf_secret"), "{printed}");
}

#[test]
fn openapi_prints_the_same_document_in_both_forms() {
    let yaml = run(&["openapi"], &[]);
    assert_eq!(yaml.status.code(), Some(0), "{}", text(&yaml.stderr));
    assert!(text(&yaml.stdout).starts_with("openapi: 3."));
    let json = run(&["openapi", "--json"], &[]);
    let document: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(document["paths"]["/caption"]["post"].is_object());
}

#[test]
fn a_checkpoint_that_is_not_there_is_exit_78_and_a_complete_directory_is_printed() {
    let output = run(&["download", "/no/such/checkpoint"], &[]);
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).contains("/no/such/checkpoint"));

    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vqa-varied");
    let output = run(&["download", fixture.to_str().unwrap()], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("vqa-varied"));
}

#[test]
fn a_checkpoint_whose_weights_do_not_fit_is_exit_78_and_names_the_tensor() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/caption-varied");
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, directory.path().join(path.file_name().unwrap())).unwrap();
    }
    let config = directory.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let other = text.replace("\"intermediate_size\": 88", "\"intermediate_size\": 96");
    assert_ne!(text, other);
    std::fs::write(&config, other).unwrap();
    let model = directory.path().to_str().unwrap();
    let output = run(&["--model", model, "--listen", "127.0.0.1:0", "--device", "cpu"], &[]);
    let message = self::text(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{message}");
    assert!(message.contains("vision_model.encoder.layers.0.mlp.fc1.weight"), "{message}");
    assert!(message.contains("[88, 48]") && message.contains("[96, 48]"), "{message}");
}

/// Weights that are finite and make every sum infinite, as those of a checkpoint that was damaged while it was trained.
#[test]
fn a_model_that_cannot_compute_is_exit_70_named_and_never_ready() {
    for (fixture, tensor, unit) in [
        // What the vision tower gave is first looked at in the logits.
        ("caption-varied", "vision_model.encoder.layers.0.mlp.fc1.weight", "generating a token"),
        ("retrieval", "text_proj.weight", "embedding a text"),
        ("retrieval", "vision_proj.weight", "embedding an image"),
        ("retrieval", "itm_head.weight", "matching an image and a text"),
    ] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture);
        let directory = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(source).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, directory.path().join(path.file_name().unwrap())).unwrap();
        }
        let weights = directory.path().join("model.safetensors");
        let mut bytes = std::fs::read(&weights).unwrap();
        let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let (start, end) = metadata.info(tensor).unwrap().data_offsets;
        for value in bytes[8 + header..][start..end].chunks_exact_mut(4) {
            value.copy_from_slice(&3.3e38_f32.to_le_bytes());
        }
        std::fs::write(&weights, bytes).unwrap();
        let name = format!("poisoned={}", directory.path().display());
        let arguments = ["--model", &name, "--listen", "127.0.0.1:0", "--dtype", "f32"];
        let output = run(&[&arguments[..], &["--device", "cpu"]].concat(), &[]);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(70), "{tensor}: {message}");
        let expected = format!(
            "cannot start: model poisoned cannot be served: {unit} failed during warm-up: "
        );
        assert!(message.contains(&expected), "{tensor}: {message}");
        assert!(!message.contains("listening on"), "{tensor}: {message}");
    }
}

#[test]
fn a_port_that_is_in_use_is_reported_with_advice() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["mock", "--listen", &address], &[]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    let expected = format!(
        "cannot listen on {address}: another program is already listening there; stop that program, or choose another port"
    );
    assert!(message.contains(&expected), "{message}");
}

#[test]
fn offline_without_a_cache_says_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let variables = [("HF_HOME", cache.path().to_str().unwrap()), ("HF_HUB_OFFLINE", "1")];
    let output = run(&["download", "owner/tiny"], &variables);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("HF_HUB_OFFLINE"), "{}", text(&output.stderr));
}

#[test]
fn shells_and_man_learn_every_command() {
    let script = run(&["completions", "bash"], &[]);
    assert_eq!(script.status.code(), Some(0));
    let script = text(&script.stdout);
    let folder = tempfile::tempdir().unwrap();
    let pages = run(&["man", folder.path().to_str().unwrap()], &[]);
    assert_eq!(pages.status.code(), Some(0), "{}", text(&pages.stderr));
    for command in
        ["serve", "download", "convert", "verify", "bench", "mock", "healthcheck", "doctor"]
    {
        assert!(script.contains(command), "{command}");
        let page = folder.path().join(format!("blip-server-{command}.1"));
        assert!(text(&pages.stdout).contains(&page.display().to_string()), "{command}");
        assert!(std::fs::read_to_string(page).unwrap().contains("EXTRA"), "{command}");
    }
    assert!(folder.path().join("blip-server.1").is_file());
    let new = folder.path().join("new/man1");
    assert_eq!(run(&["man", new.to_str().unwrap()], &[]).status.code(), Some(0));
    assert!(new.join("blip-server.1").is_file());
    let blocked = folder.path().join("blip-server.1/man1");
    let output = run(&["man", blocked.to_str().unwrap()], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cannot write manual pages to"));
}

#[test]
fn a_wrong_number_is_told_what_is_accepted() {
    for (arguments, words) in [
        (&["bench", "--batch", "0"][..], "'--batch <N>': a whole number, at least 1"),
        (&["bench", "--runs", "0"], "a whole number, at least 1"),
        (&["bench", "--tokens", "x"], "a whole number, at least 1"),
        (&["bench", "--warm-up", "x"], "a whole number, not negative"),
        (&["mock", "--workers", "0"], "a whole number, at least 1"),
    ] {
        let output = run(arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(words), "{}", text(&output.stderr));
    }
}

#[test]
fn several_formats_are_named_by_their_own_flag() {
    for (flag, value) in [("--dtypes", "f33"), ("--levels", "avx3"), ("--dtype", "f33")] {
        let output = run(&["bench", flag, value], &[]);
        assert_eq!(output.status.code(), Some(78));
        let message = text(&output.stderr);
        assert!(message.contains(&format!("\"{value}\" (from {flag}) is invalid")), "{message}");
    }
}

#[test]
fn a_model_without_a_source_is_told_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    std::fs::write(&file, "[[models]]\nname = \"a\"\n").unwrap();
    let output = run(&["config", "--config", file.to_str().unwrap()], &[]);
    assert_eq!(output.status.code(), Some(78));
    let expected = format!(
        "models.0.source (from {}) is missing; give a hub id (owner/name), a directory or demo",
        file.display()
    );
    assert!(text(&output.stderr).contains(&expected), "{}", text(&output.stderr));
}

#[test]
fn the_doctor_prints_json_for_wrong_settings_too() {
    let output = run(&["doctor", "--json", "--model", "/nope"], &[]);
    assert_eq!(output.status.code(), Some(78));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["result"], "problem");
    assert_eq!(report["findings"][0]["check"], "settings");
    let found = report["findings"][0]["text"].as_str().unwrap();
    assert!(found.contains("/nope") && text(&output.stderr).contains(found), "{found}");
}

#[test]
fn verify_without_the_hub_says_that_it_needs_it() {
    let cache = tempfile::tempdir().unwrap();
    let variables = [("HF_HOME", cache.path().to_str().unwrap()), ("HF_HUB_OFFLINE", "1")];
    let output = run(&["verify"], &variables);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("verify needs the official checkpoints"), "{message}");
    assert!(!message.contains("use a local directory"), "{message}");
}

#[test]
fn an_unknown_flag_is_exit_2() {
    assert_eq!(run(&["--bogus"], &[]).status.code(), Some(2));
    assert_eq!(run(&["--version"], &[]).status.code(), Some(0));
}

#[cfg(feature = "demo")]
#[test]
fn the_doctor_prints_findings_and_fails_only_for_problems() {
    let variables = [("BLIP__ENGINE__MAX_KV_BYTES", "1000000"), ("BLIP__COMPUTE__DEVICE", "cpu")];
    let output = run(&["doctor", "--listen", "127.0.0.1:0"], &variables);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}{}", text(&output.stderr));
    assert!(printed.contains("demo-caption: complete") && printed.contains("memory"), "{printed}");

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let output = run(&["doctor", "--json", "--listen", &taken], &variables);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["result"], "problem");
    let findings = report["findings"].as_array().unwrap();
    let address = findings.iter().find(|finding| finding["check"] == "address").unwrap();
    assert!(address["text"].as_str().unwrap().contains(&taken), "{address}");

    let output = run(&["doctor", "--listen", "nowhere"], &[]);
    assert_eq!(output.status.code(), Some(78));
}
