//! Configuration: shipped files, precedence, and errors that name setting, value, origin and what is accepted.

use std::path::{Path, PathBuf};

use blip_server::config::{
    Config, ConfigError, DeviceChoice, DtypeChoice, Environment, Flags, Gpus, RawConfig, load,
};

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blip.toml");
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

fn load_file(text: &str) -> Result<Config, ConfigError> {
    let (_directory, path) = file(text);
    load(&Flags { config: Some(path), ..Flags::default() }, &Environment::new())
}

fn load_environment(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    load(&Flags::default(), &environment(variables))
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

/// `default.toml` with its commented settings switched on: `#key = value`, prose has a space after the mark.
fn documented() -> String {
    let text = std::fs::read_to_string(folder().join("default.toml")).unwrap();
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase()) => {
            setting.to_owned()
        }
        _ => line.to_owned(),
    };
    text.lines().map(uncomment).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_shipped_file_is_accepted() {
    let mut count = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let flags = Flags { config: Some(path.clone()), ..Flags::default() };
        load(&flags, &Environment::new())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        count += 1;
    }
    assert!(count >= 2, "config/ holds default.toml and docker.toml");
}

#[test]
fn default_toml_documents_every_setting_with_the_default_of_the_code() {
    let documented: toml::Table = documented().parse().unwrap();
    let defaults: toml::Table = RawConfig::default().to_toml().parse().unwrap();
    for (section, values) in &defaults {
        // Models have no default; their fields are prose.
        let Some(values) = values.as_table() else { continue };
        let file = documented.get(section).and_then(toml::Value::as_table);
        assert_eq!(file, Some(values), "[{section}] of config/default.toml against the code");
    }
    let sections = |table: &toml::Table| table.keys().filter(|key| *key != "models").count();
    assert_eq!(
        sections(&documented),
        sections(&defaults),
        "config/default.toml has a section of no meaning"
    );
    load_file(&self::documented()).unwrap();
}

#[test]
fn the_model_table_of_default_toml_is_accepted_once_switched_on() {
    let text = std::fs::read_to_string(folder().join("default.toml")).unwrap();
    let start = text.find("# [[models]]").expect("default.toml shows a model");
    let lines: Vec<&str> =
        text[start..].lines().map(|line| line.trim_start_matches("# ")).collect();
    let table = lines.join("\n");
    let config = load_file(&table).unwrap();
    assert_eq!(config.models[0].name, "caption");
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let (_directory, path) =
        file("[server]\nlisten = \"127.0.0.1:1\"\ndrain_delay_ms = 1\ndrain_timeout_ms = 1\n");
    let environment = environment(&[
        ("BLIP__SERVER__LISTEN", "127.0.0.1:2"),
        ("BLIP__SERVER__DRAIN_DELAY_MS", "2"),
    ]);
    let flags =
        Flags { config: Some(path), listen: Some("127.0.0.1:3".to_owned()), ..Flags::default() };
    let config = load(&flags, &environment).unwrap();
    assert_eq!(config.listen.port(), 3);
    assert_eq!(config.drain.delay.as_millis(), 2);
    assert_eq!(config.drain.timeout.as_millis(), 1);
    assert_eq!(config.engine.capacity_rows, 512);
}

#[test]
fn models_come_from_file_environment_or_flags_in_order() {
    let text = "[[models]]\nsource = \"a/b@v1\"\n\n[[models]]\nname = \"qa\"\nsource = \"c/d\"\n";
    let names = |config: &Config| {
        config
            .models
            .iter()
            .map(|model| format!("{}={}", model.name, model.source))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&load_file(text).unwrap()), ["a/b=a/b", "qa=c/d"]);

    let (_directory, path) = file(text);
    let variables = environment(&[("BLIP__MODELS", "x=e/f, g/h")]);
    let mut flags = Flags { config: Some(path), ..Flags::default() };
    assert_eq!(names(&load(&flags, &variables).unwrap()), ["x=e/f", "g/h=g/h"]);
    flags.models = vec!["i/j".to_owned()];
    assert_eq!(names(&load(&flags, &variables).unwrap()), ["i/j=i/j"]);
}

#[test]
fn choices_and_counts_are_typed() {
    let config = load_environment(&[
        ("BLIP__COMPUTE__DEVICE", "cpu"),
        ("BLIP__COMPUTE__DTYPE", "bf16"),
        ("BLIP__COMPUTE__THREADS", "3"),
    ])
    .unwrap();
    assert_eq!(config.compute.device, DeviceChoice::Cpu);
    assert_eq!(config.compute.dtype, DtypeChoice::Bf16);
    assert_eq!(config.compute.threads.map(std::num::NonZero::get), Some(3));
    assert_eq!(load_environment(&[]).unwrap().compute.threads, None);
}

#[test]
fn a_gpu_is_chosen_by_its_number() {
    let loaded = load_environment(&[("BLIP__COMPUTE__DEVICE", "cuda:1")]);
    assert_eq!(loaded.unwrap().compute.device, DeviceChoice::Cuda(Gpus::one(1).unwrap()));
}

#[test]
fn a_directory_without_a_checkpoint_and_too_many_threads_are_named() {
    let directory = tempfile::tempdir().unwrap();
    for source in ["/there/is/nothing".to_owned(), directory.path().display().to_string()] {
        let error = load_environment(&[("BLIP__MODELS", &source)]).unwrap_err().to_string();
        assert!(error.contains("models.0"), "{error}");
    }
    let error = load_environment(&[("BLIP__COMPUTE__THREADS", "100000")]).unwrap_err().to_string();
    assert!(error.contains("compute.threads") && error.contains("0 to 1024"), "{error}");
}

#[test]
fn the_variables_of_hugging_face_fill_the_hub_and_ours_win() {
    let config = load_environment(&[
        ("HF_HOME", "/hf"),
        ("HF_ENDPOINT", "https://mirror.example/"),
        ("HF_TOKEN", "12345"),
        ("HF_HUB_OFFLINE", "1"),
        ("BLIP__HUB__OFFLINE", "false"),
    ])
    .unwrap();
    assert_eq!(config.hub.endpoint, "https://mirror.example");
    assert_eq!(config.hub.cache, Path::new("/hf/hub"));
    assert!(config.hub.token.is_some(), "a token of digits is a token");
    assert!(!config.hub.offline);

    let config = load_environment(&[("HOME", "/home/me"), ("HF_HUB_OFFLINE", "YES")]).unwrap();
    assert_eq!(config.hub.cache, Path::new("/home/me/.cache/huggingface/hub"));
    assert!(config.hub.offline);
    let config = load_environment(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/cache")]).unwrap();
    assert_eq!(config.hub.cache, Path::new("/cache"));
}

#[test]
fn the_token_file_of_hugging_face_is_read() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), "hf_file\n").unwrap();
    let config = load_environment(&[("HF_HOME", home.path().to_str().unwrap())]).unwrap();
    assert_eq!(config.hub.token, blip_server::hub::Token::new("hf_file"));
}

#[test]
fn a_wrong_value_names_setting_value_origin_and_what_is_accepted() {
    struct Case {
        variable: &'static str,
        value: &'static str,
        says: [&'static str; 2],
    }
    let cases = [
        Case {
            variable: "BLIP__SERVER__LISTEN",
            value: "localhost",
            says: ["server.listen = \"localhost\"", "127.0.0.1:8080, localhost:8080"],
        },
        Case {
            variable: "BLIP__SERVER__LISTEN",
            value: "localhost:+80",
            says: ["server.listen = \"localhost:+80\"", ":8080 for every address"],
        },
        Case {
            variable: "BLIP__SERVER__DRAIN_DELAY_MS",
            value: "5s",
            says: ["server.drain_delay_ms = \"5s\"", "whole number"],
        },
        Case {
            variable: "BLIP__SERVER__DRAIN_DELAY_MS",
            value: "99999999999",
            says: ["99999999999", "86400000"],
        },
        // TOML has no larger number than 2^63 - 1.
        Case {
            variable: "BLIP__ENGINE__CAPACITY_BYTES",
            value: "9223372036854775808",
            says: ["engine.capacity_bytes", "at most 9223372036854775807"],
        },
        Case {
            variable: "BLIP__COMPUTE__DEVICE",
            value: "metal",
            says: ["compute.device = \"metal\"", "cuda:N"],
        },
        Case {
            variable: "BLIP__COMPUTE__DTYPE",
            value: "int4",
            says: ["compute.dtype = \"int4\"", "auto, f32, bf16, f16, int8"],
        },
        Case {
            variable: "BLIP__COMPUTE__CPU_ISA",
            value: "sse9",
            says: ["compute.cpu_isa = \"sse9\"", "auto, or what this CPU supports: portable"],
        },
        Case {
            variable: "BLIP__ENGINE__VISION_SHARE_PERCENT",
            value: "300",
            says: ["engine.vision_share_percent", "accepted: a whole number from 0 to 255"],
        },
        Case {
            variable: "BLIP__HUB__OFFLINE",
            value: "maybe",
            says: ["hub.offline = \"maybe\"", "true or false"],
        },
        Case {
            variable: "BLIP__HUB__ENDPOINT",
            value: "hub.example",
            says: ["hub.endpoint", "https://"],
        },
        Case { variable: "BLIP__MODELS", value: "no-such-place", says: ["models.0", "owner/name"] },
        Case { variable: "BLIP__MODELS", value: "x=demo", says: ["models.0", "demo"] },
        Case {
            variable: "BLIP__MODELS",
            value: "a/b@v1,a/b",
            says: ["models.1 = \"a/b\"", "NAME=SRC"],
        },
    ];
    for case in cases {
        let error = load_environment(&[(case.variable, case.value)]).expect_err(case.value);
        // With its sources: those of a model's error say what a source may be.
        let error = format!("{:#}", anyhow::Error::from(error));
        for says in case.says.into_iter().chain([case.variable]) {
            assert!(
                error.contains(says),
                "{}={}: {error:?} lacks {says:?}",
                case.variable,
                case.value
            );
        }
    }
}

#[test]
fn a_wrong_value_in_a_file_names_the_file_and_one_of_a_flag_the_flag() {
    let (_directory, path) = file("[engine]\nmax_batch_rows = \"many\"\n");
    let flags = Flags { config: Some(path.clone()), ..Flags::default() };
    let error = load(&flags, &Environment::new()).unwrap_err().to_string();
    for says in ["engine.max_batch_rows", "many", path.to_str().unwrap()] {
        assert!(error.contains(says), "{error}");
    }
    let flags = Flags { threads: Some("two".to_owned()), ..Flags::default() };
    let error = load(&flags, &Environment::new()).unwrap_err().to_string();
    assert!(error.contains("--threads") && error.contains("compute.threads"), "{error}");
}

#[test]
fn unknown_names_are_errors_in_every_source() {
    let error = load_file("[engine]\ncapacity = 3\n").unwrap_err();
    assert!(matches!(error, ConfigError::Unknown { .. }), "{error}");
    let error = error.to_string();
    assert!(error.contains("engine.capacity ") && error.contains("capacity_rows"), "{error}");
    assert!(error.contains("blip.toml"), "{error}");

    let error = load_file("[sever]\n").unwrap_err().to_string();
    assert!(error.contains("sever") && error.contains("server"), "{error}");
    let error = load_file("[[models]]\nsrc = \"a/b\"\n").unwrap_err().to_string();
    assert!(error.contains("src") && error.contains("source"), "{error}");

    for variable in
        ["BLIP__SERVER__LISTN", "BLIP__SEVER__LISTEN", "BLIP__SERVER", "BLIP__SERVER__LISTEN__X"]
    {
        let error = load_environment(&[(variable, "1")]).expect_err(variable);
        assert!(matches!(error, ConfigError::Unknown { .. }), "{variable}: {error}");
        assert!(error.to_string().contains(variable), "{error}");
    }
    load_environment(&[("BLIP_MODEL_DIR", "not ours: a single underscore")]).unwrap();
}

#[test]
fn a_file_that_is_not_there_or_no_toml_is_named() {
    let flags = Flags { config: Some("/no/such/file.toml".into()), ..Flags::default() };
    let error = load(&flags, &Environment::new()).unwrap_err().to_string();
    assert!(error.contains("/no/such/file.toml"), "{error}");
    let error = load_file("[server\n").unwrap_err();
    assert!(matches!(error, ConfigError::Syntax { .. }), "{error}");
}

#[test]
fn the_token_is_in_no_error_and_in_no_print() {
    let config = load_environment(&[("HF_TOKEN", "hf_secret")]).unwrap();
    assert!(!config.to_toml().contains("hf_secret"));
    assert!(config.to_toml().contains("(hidden)"));
    assert!(!format!("{:?}", config.hub).contains("hf_secret"));
}

#[test]
fn what_config_prints_is_a_file_that_means_the_same() {
    let config = load_environment(&[("BLIP__MODELS", "x=a/b"), ("HF_HOME", "/hf")]).unwrap();
    assert_eq!(load_file(&config.to_toml()).unwrap().to_toml(), config.to_toml());
}

#[test]
fn two_settings_that_contradict_each_other_are_both_named() {
    let cases = [
        (
            ["BLIP__LIMITS__MAX_ROWS", "513"],
            "limits.max_rows = 513",
            "engine.capacity_rows, which is 512 (the default)",
        ),
        (
            ["BLIP__LIMITS__MAX_BODY_BYTES", "1000"],
            "input.max_image_bytes = 10485760",
            "limits.max_body_bytes, which is 1000 (from BLIP__LIMITS__MAX_BODY_BYTES)",
        ),
        (
            ["BLIP__ENGINE__CAPACITY_BYTES", "1000"],
            "limits.max_body_bytes = 33554432",
            "engine.capacity_bytes",
        ),
        (
            ["BLIP__SERVER__DEADLINE_MS", "2000"],
            "engine.max_queue_wait_ms = 10000",
            "server.deadline_ms",
        ),
        (
            ["BLIP__SERVER__BODY_IDLE_TIMEOUT_MS", "40000"],
            "server.body_idle_timeout_ms = 40000",
            "server.body_total_timeout_ms",
        ),
        (
            ["BLIP__FETCH__CONNECT_TIMEOUT_MS", "6000"],
            "fetch.connect_timeout_ms = 6000",
            "fetch.total_timeout_ms",
        ),
    ];
    for ([variable, value], wrong, bound) in cases {
        let error = load_environment(&[(variable, value)]).expect_err(variable).to_string();
        assert!(error.contains(wrong) && error.contains(bound), "{variable}={value}: {error}");
    }
}

#[test]
fn what_a_folder_refuses_is_named_as_the_setting_that_its_writer_knows() {
    let cases = [
        ("BLIP__ENGINE__VISION_SHARE_PERCENT", "100", "engine.vision_share_percent = 100"),
        ("BLIP__ENGINE__MAX_QUEUE_WAIT_MS", "0", "engine.max_queue_wait_ms = 0"),
        ("BLIP__IMAGES__DECODE_THREADS", "300", "images.decode_threads = 300"),
        ("BLIP__IMAGES__PIXEL_CACHE_TTL_MS", "0", "images.pixel_cache_ttl_ms = 0"),
        ("BLIP__INPUT__MAX_SIDE", "70000", "input.max_side = 70000"),
        ("BLIP__LIMITS__MAX_TEXTS", "0", "limits.max_texts = 0"),
        ("BLIP__SERVER__KEEP_ALIVE_MS", "0", "server.keep_alive_ms = 0"),
        ("BLIP__SERVER__MAX_HEAD_BYTES", "1", "server.max_head_bytes = 1 "),
        (
            "BLIP__SERVER__CORS_ALLOWED_ORIGINS",
            "https://a.example, b",
            "server.cors_allowed_origins = [\"https://a.example\", \"b\"]",
        ),
        (
            "BLIP__FETCH__ALLOWED_HOSTS",
            "a.example,https://b.example",
            "fetch.allowed_hosts = [\"a.example\", \"https://b.example\"]",
        ),
        ("BLIP__FETCH__MAX_REDIRECTS", "11", "fetch.max_redirects = 11"),
        ("BLIP__LOG__FILTER", "blip=loud", "log.filter = \"blip=loud\""),
        ("BLIP__LOG__FORMAT", "xml", "log.format = \"xml\""),
        ("BLIP__INPUT__ALPHA_BACKGROUND", "0,0", "input.alpha_background = [0, 0]"),
    ];
    for (variable, value, says) in cases {
        let error = load_environment(&[(variable, value)]).expect_err(variable).to_string();
        assert!(error.contains(says) && error.contains(variable), "{variable}={value}: {error}");
    }
}

#[test]
fn lists_and_switches_reach_their_folders() {
    let config = load_environment(&[
        ("BLIP__SERVER__CORS_ALLOWED_ORIGINS", "https://a.example,https://b.example"),
        ("BLIP__SERVER__DOCS", "false"),
        ("BLIP__INPUT__ALPHA_BACKGROUND", "0,1,2"),
        ("BLIP__IMAGES__DECODE_THREADS", "7"),
        ("BLIP__FETCH__ENABLED", "true"),
        ("BLIP__FETCH__ALLOWED_HOSTS", "a.example,*.b.example"),
    ])
    .unwrap();
    let origins = config.http.cors.unwrap().allowed_origins;
    assert_eq!(origins, ["https://a.example", "https://b.example"]);
    assert!(!config.http.docs);
    assert_eq!(config.http.input.alpha_background, [0, 1, 2]);
    assert_eq!(config.images.decode_threads, 7);
    assert!(config.fetch.enabled && !config.fetch.allow_http);
    assert_eq!(config.fetch.allowed_hosts, ["a.example", "*.b.example"]);
    let defaults = load_environment(&[]).unwrap();
    assert_eq!(defaults.http, blip_server::http::HttpSettings::default());
    assert_eq!(defaults.engine, blip_server::engine::EngineSettings::default());
    assert_eq!(defaults.images, blip_server::images::ImagesSettings::default());
    assert_eq!(defaults.fetch, blip_server::fetch::FetchSettings::default());
}

#[test]
fn localhost_and_a_port_alone_are_addresses() {
    for (text, expected) in [
        ("localhost:8081", "127.0.0.1:8081"),
        (":8081", "0.0.0.0:8081"),
        ("[::1]:0", "[::1]:0"),
        ("10.0.0.7:80", "10.0.0.7:80"),
    ] {
        let flags = Flags { listen: Some(text.to_owned()), ..Flags::default() };
        let config = load(&flags, &Environment::new()).unwrap();
        assert_eq!(config.listen.to_string(), expected);
    }
    let same = [("BLIP__SERVER__LISTEN", ":80"), ("BLIP__SERVER__OPERATIONS_LISTEN", "0.0.0.0:80")];
    let error = load_environment(&same).unwrap_err().to_string();
    assert!(error.contains("an address or port other than server.listen"), "{error}");
}

#[test]
fn variables_that_look_like_settings_and_are_none_are_told() {
    let config = load_environment(&[
        ("BLIP_SERVER_LISTEN", "x"),
        ("BLIP_THREADS", "2"),
        ("BLIP_NONSENSE", "1"),
        ("BLIPPER", "1"),
        ("BLIP__SERVER__LISTEN", "127.0.0.1:0"),
    ]);
    let told = |variable: &str, meant: &str| {
        format!("{variable} has no effect: settings are named BLIP__SECTION__KEY{meant}")
    };
    let expected = [
        told("BLIP_NONSENSE", ""),
        told("BLIP_SERVER_LISTEN", "; did you mean BLIP__SERVER__LISTEN?"),
        told("BLIP_THREADS", "; did you mean BLIP__COMPUTE__THREADS?"),
    ];
    let mut warnings = config.unwrap().warnings;
    warnings.sort_unstable();
    assert_eq!(warnings, expected);
}

/// Values of every kind in place of every setting's: what is accepted is told in words.
#[test]
fn no_message_names_a_type_of_rust() {
    const TYPES: [&str; 9] =
        ["u8", "u16", "u32", "u64", "usize", "f64", "struct", "boolean", "sequence"];
    let defaults = RawConfig::default().to_toml().parse::<toml::Table>().unwrap();
    let mut refused = 0;
    for (section, keys) in &defaults {
        let keys = keys.as_table().map(|table| table.keys().cloned().collect()).unwrap_or_default();
        let keys: Vec<String> = keys;
        for key in keys {
            for value in ["\"text\"", "-1", "1.5", "true", "[1]", "{}", "99999999999999"] {
                let Err(error) = load_file(&format!("[{section}]\n{key} = {value}\n")) else {
                    continue;
                };
                refused += 1;
                let error = error.to_string();
                let accepted = error.split("accepted: ").nth(1).unwrap_or_default();
                let words: Vec<&str> = accepted.split(|c: char| !c.is_alphanumeric()).collect();
                for name in TYPES {
                    assert!(!words.contains(&name), "{section}.{key} = {value}: {error}");
                }
            }
        }
    }
    assert!(refused > 200, "{refused}");
}
