//! The import law as a table: which folders of `src/` may import which folders, and which packages they must not use.
//! Also the rules that no compiler checks. The file exceeds 500 lines because each rule stands next to its check.
//!
//! Every path that starts with `crate::` counts, in `use` lines and in the middle of code, tests included.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use blip_server::task::ImageFormat;

/// One folder (or file) of `src/` and what it may reach.
struct Room {
    name: &'static str,
    /// Paths below `crate::` that it may name; a folder opens everything below it.
    may_import: &'static [&'static str],
    /// Packages that it must never name.
    never_sees: &'static [&'static str],
}

const CANDLE: [&str; 2] = ["candle_core", "candle_nn"];

const LAW: [Room; 25] = [
    Room {
        name: "settings",
        may_import: &[],
        never_sees: &["candle_core", "candle_nn", "tokio", "tracing", "axum"],
    },
    Room {
        name: "kernels",
        may_import: &[],
        never_sees: &["candle_core", "candle_nn", "tokio", "tracing", "axum"],
    },
    Room {
        name: "gpu",
        may_import: &[],
        never_sees: &["candle_core", "candle_nn", "tokio", "tracing", "axum"],
    },
    Room {
        name: "task",
        may_import: &[],
        never_sees: &[
            "candle_core",
            "candle_nn",
            "tokio",
            "tracing",
            "axum",
            "serde",
            "prometheus",
        ],
    },
    Room {
        name: "telemetry",
        may_import: &["settings"],
        never_sees: &["candle_core", "candle_nn", "tokio", "axum", "image"],
    },
    Room {
        name: "input",
        may_import: &["document", "settings", "task", "faults"],
        never_sees: &["candle_core", "candle_nn", "tokio", "axum"],
    },
    Room {
        name: "images",
        may_import: &[
            "task",
            "input",
            "settings",
            "telemetry",
            "fairness",
            "faults",
            "mutations",
            "platform",
        ],
        never_sees: &["candle_core", "candle_nn", "axum"],
    },
    Room {
        name: "fetch",
        may_import: &["settings", "task", "telemetry"],
        never_sees: &["candle_core", "candle_nn", "axum"],
    },
    Room {
        name: "engine",
        may_import: &[
            "settings",
            "task",
            "telemetry",
            "fairness",
            "faults",
            "mutations",
            "platform",
        ],
        never_sees: &["candle_core", "candle_nn", "axum", "image"],
    },
    Room {
        name: "model",
        may_import: &[
            "document",
            "task",
            "tensorflow",
            "torch",
            "kernels",
            "gpu",
            "engine::backend",
        ],
        never_sees: &["axum", "tokio"],
    },
    Room {
        name: "document",
        may_import: &[],
        never_sees: &["candle_core", "candle_nn", "tokio", "tracing", "axum"],
    },
    Room {
        name: "fairness",
        may_import: &[],
        never_sees: &["candle_core", "candle_nn", "tokio", "tracing", "axum", "serde"],
    },
    Room {
        name: "faults",
        may_import: &[],
        never_sees: &["candle_core", "candle_nn", "tokio", "tracing", "axum", "serde"],
    },
    Room {
        name: "mutations",
        may_import: &[],
        never_sees: &["candle_core", "candle_nn", "tokio", "tracing", "axum", "serde"],
    },
    Room {
        name: "platform",
        may_import: &[],
        never_sees: &["candle_core", "candle_nn", "axum", "serde"],
    },
    Room {
        name: "demo",
        may_import: &[],
        never_sees: &["candle_core", "candle_nn", "tokio", "tracing", "axum", "serde"],
    },
    Room {
        name: "torch",
        may_import: &[],
        never_sees: &["candle_nn", "tokio", "axum", "serde", "image"],
    },
    Room {
        name: "tensorflow",
        may_import: &[],
        never_sees: &["candle_nn", "tokio", "axum", "serde", "image"],
    },
    Room {
        name: "hub",
        may_import: &["demo", "document", "settings", "tensorflow", "torch"],
        never_sees: &["axum", "candle_nn"],
    },
    Room {
        name: "http",
        may_import: &[
            "task",
            "images",
            "input",
            "fetch",
            "settings",
            "telemetry",
            "engine",
            "fairness",
            "faults",
            "mcp",
            "mutations",
            "platform",
        ],
        never_sees: &CANDLE,
    },
    Room {
        name: "config",
        may_import: &[
            "engine",
            "http",
            "hub",
            "images",
            "input",
            "fetch",
            "kernels",
            "settings",
            "telemetry",
        ],
        never_sees: &["candle_core", "candle_nn", "tokio", "axum"],
    },
    Room { name: "mcp", may_import: &[], never_sees: &["candle_core", "candle_nn", "axum"] },
    Room { name: "annotate", may_import: &[], never_sees: &["candle_core", "candle_nn", "axum"] },
    Room {
        name: "app",
        may_import: &[
            "annotate",
            "config",
            "demo",
            "document",
            "engine",
            "fairness",
            "fetch",
            "gpu",
            "http",
            "hub",
            "images",
            "input",
            "kernels",
            "mcp",
            "model",
            "mutations",
            "platform",
            "task",
            "telemetry",
        ],
        never_sees: &[],
    },
    Room {
        name: "cli",
        may_import: &["annotate", "app", "config", "http", "hub", "mcp", "task", "telemetry"],
        never_sees: &CANDLE,
    },
];

/// Files of `src/` that are no rooms: they only name rooms.
const DOORS: [&str; 2] = ["lib.rs", "main.rs"];

#[test]
fn folders_import_only_what_the_law_allows() {
    let mut broken = Vec::new();
    for room in &LAW {
        for file in files_of(room.name) {
            let text = std::fs::read_to_string(&file).unwrap();
            let code = code_of(&text);
            let name = file.strip_prefix(source()).unwrap().display().to_string();
            broken
                .extend(violations(room, &code).into_iter().map(|what| format!("{name}: {what}")));
            if climbs_out(&file, &code) {
                broken.push(format!("{name}: `super` leads out of the folder; write `crate::...`"));
            }
        }
    }
    assert!(broken.is_empty(), "the import law is broken:\n{}", broken.join("\n"));
}

/// Rows of a Markdown table: their cells, without the header.
fn table_below(heading: &str) -> Vec<Vec<String>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let text = std::fs::read_to_string(file).unwrap();
    let (_, section) = text.split_once(heading).expect(heading);
    let rows = section.lines().skip_while(|line| !line.starts_with('|'));
    let rows = rows.take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

/// The words of a cell that stand between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_architecture_page_says_what_the_law_says() {
    let mut documented = Vec::new();
    for row in table_below("\n## The import law\n") {
        let [rooms, imports, packages] = &row[..] else { panic!("{row:?}") };
        let named: BTreeSet<&str> = quoted(imports).into_iter().collect();
        let others = imports.starts_with("everything except");
        // "candle" stands for both of its packages.
        let packages: BTreeSet<&str> = packages
            .split(", ")
            .filter(|package| !package.is_empty())
            .flat_map(|package| if package == "candle" { CANDLE } else { [package; 2] })
            .collect();
        for room in quoted(rooms) {
            let rest = LAW.iter().map(|room| room.name);
            let rest = rest.filter(|name| *name != room && !named.contains(name));
            let imports = if others { rest.collect() } else { named.clone() };
            documented.push((room.to_owned(), format!("{imports:?}"), format!("{packages:?}")));
        }
    }
    let set = |names: &[&str]| format!("{:?}", names.iter().collect::<BTreeSet<_>>());
    let mut law =
        LAW.map(|room| (room.name.to_owned(), set(room.may_import), set(room.never_sees)));
    documented.sort();
    law.sort();
    assert_eq!(documented, law);

    let folders = table_below("\n## Folders\n");
    let folders: BTreeSet<&str> = folders.iter().flat_map(|row| quoted(&row[0])).collect();
    assert_eq!(folders, LAW.iter().map(|room| room.name).collect());
}

#[test]
fn every_folder_of_the_source_has_its_place_in_the_law() {
    let rooms: BTreeSet<&str> = LAW.iter().map(|room| room.name).collect();
    for entry in std::fs::read_dir(source()).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let known = DOORS.contains(&file.as_str()) || rooms.contains(file.trim_end_matches(".rs"));
        assert!(known, "src/{file} is in no row of the import law");
    }
    let main = std::fs::read_to_string(source().join("main.rs")).unwrap();
    for path in paths_after("blip_server::", &code_of(&main)) {
        assert!(["cli", "app", "config"].contains(&first(&path)), "main.rs imports {path}");
    }
}

#[test]
fn the_checker_sees_arrows_in_every_spelling() {
    let room = Room { name: "x", may_import: &["task", "engine::backend"], never_sees: &["tokio"] };
    let allowed = [
        "use crate::task::Task;",
        "use crate::{task::{self, Task}, engine::backend::{Backend, StepEvent}};",
        "use crate::engine::{backend};",
        "let a: crate::task::Task = x(); tokiox::y(); pub(crate) fn z() {}",
        "use crate::x::other;",
    ];
    for code in allowed {
        assert_eq!(violations(&room, code), [""; 0], "{code}");
    }
    let forbidden = [
        "use crate::http::Router;",
        "use crate::{task::Task, http};",
        "use crate::engine::EngineHandle;",
        "use crate::engine::{\n    backend::Backend,\n    EngineError,\n};",
        "fn f() -> crate::model::Model {",
        "use tokio::sync::mpsc;",
        "fn f() { tokio::spawn(g()) }",
        "use crate::taskless::X;",
    ];
    for code in forbidden {
        assert_eq!(violations(&room, code).len(), 1, "{code}");
    }
    assert!(violations(&room, &code_of("//! [`crate::http`]\n/// `tokio::x`\n")).is_empty());
}

/// The rooms of `src/http`, lowest first: a file may name its own room and those before it.
const HTTP_ORDER: [&str; 14] = [
    "error",
    "blocking",
    "context",
    "reload",
    "access",
    "settings",
    "state",
    "middleware",
    "extract",
    "inference",
    "openapi",
    "routes",
    "router",
    "transport",
];

/// The rooms of `src/input`, lowest first: a file may name its own room and those before it.
const INPUT_ORDER: [&str; 22] = [
    "error",
    "settings",
    "stop",
    "memory",
    "raster",
    "limits",
    "orientation",
    "format",
    "standalone",
    "image_crate",
    "formats",
    "flatten",
    "turn",
    "decode",
    "resize",
    "text",
    "tokenizer",
    "detokenizer",
    "image_value",
    "agreement",
    "containers",
    "goldens",
];

#[test]
fn the_rooms_of_http_import_downwards_only() {
    import_downwards("http", &HTTP_ORDER);
}

#[test]
fn the_rooms_of_input_import_downwards_only() {
    import_downwards("input", &INPUT_ORDER);
}

#[test]
fn no_picture_format_imports_another() {
    let mut formats = ImageFormat::ALL.map(ImageFormat::name);
    import_downwards("input/formats", &formats);
    formats.reverse();
    import_downwards("input/formats", &formats);
}

/// The packages of OpenTelemetry, which may change with each of their versions.
const OPENTELEMETRY: [&str; 5] = [
    "opentelemetry",
    "opentelemetry_http",
    "opentelemetry_otlp",
    "opentelemetry_proto",
    "opentelemetry_sdk",
];

#[test]
fn only_the_folder_of_traces_sees_opentelemetry() {
    let mut seen = BTreeSet::new();
    for file in files_of("") {
        let code = code_of(&std::fs::read_to_string(&file).unwrap());
        let folder = file.parent().unwrap().strip_prefix(source()).unwrap();
        if OPENTELEMETRY.iter().any(|package| names_package(&code, package)) {
            seen.insert(folder.to_path_buf());
        }
    }
    assert_eq!(seen, BTreeSet::from([PathBuf::from("telemetry/trace")]));
}

fn rank(order: &[&str], room: &str) -> Option<usize> {
    order.iter().position(|known| *known == room)
}

/// Checks that each room of `folder` imports only rooms before it in `order`.
fn import_downwards(folder: &str, order: &[&str]) {
    let mut wrong = Vec::new();
    for file in files_of(folder) {
        let place = file.strip_prefix(source().join(folder)).unwrap();
        let room = place.components().next().unwrap().as_os_str().to_str().unwrap();
        let room = room.trim_end_matches(".rs");
        if room == "mod" {
            continue;
        }
        let own = rank(order, room)
            .unwrap_or_else(|| panic!("{folder}/{room} has no place in the order of its folder"));
        let text = std::fs::read_to_string(&file).unwrap();
        let code = code_of(&text);
        // Tests may drive the whole folder.
        let code = code.split("#[cfg(test)]").next().unwrap_or(&code);
        let depth = place.components().count() - usize::from(file.ends_with("mod.rs"));
        let absolute = format!("crate::{}::", folder.replace('/', "::"));
        for start in [absolute, "super::".repeat(depth)] {
            for path in paths_after(&start, code) {
                if rank(order, first(&path)).is_some_and(|other| other > own) {
                    wrong.push(format!("{folder}/{}: {start}{path}", place.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "these imports go upwards:\n{}", wrong.join("\n"));
}

/// The modules that only tests use, in files of `src/`. `engine/testing` and `fetch/testing.rs` say what they offer.
const TEST_DOORS: [&str; 2] = ["engine/mod.rs", "fetch/mod.rs"];

#[test]
fn test_doors_are_shut_unless_tests_are_built() {
    let mut doors = Vec::new();
    for file in files_of("") {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.strip_prefix(source()).unwrap().display().to_string();
        if text.contains("pub mod testing;") {
            assert!(text.contains("#[cfg(feature = \"test-util\")]\npub mod testing;"), "{name}");
            doors.push(name);
        }
    }
    doors.sort();
    assert_eq!(doors, TEST_DOORS);
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest: toml::Table = std::fs::read_to_string(manifest).unwrap().parse().unwrap();
    let features = manifest["features"].as_table().unwrap();
    for (name, implied) in features {
        let implied = implied.as_array().unwrap();
        assert!(!implied.contains(&"test-util".into()), "the feature `{name}` opens the doors");
    }
}

#[test]
fn every_document_that_the_source_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    for file in files_of("") {
        let text = std::fs::read_to_string(&file).unwrap();
        let is_path = |c: char| c.is_ascii_alphanumeric() || "/_-.".contains(c);
        for word in text.split(|c: char| !is_path(c)).map(|word| word.trim_end_matches('.')) {
            // A README of a checkpoint is no document of ours.
            let named = Path::new(word).extension().is_some_and(|extension| extension == "md")
                && word != "README.md";
            if named && !root.join(word).exists() {
                missing.push(format!("{}: {word}", file.display()));
            }
        }
    }
    assert!(missing.is_empty(), "documents that do not exist:\n{}", missing.join("\n"));
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The Rust files of a room; none while the room is not built yet.
fn files_of(room: &str) -> Vec<PathBuf> {
    let file = source().join(format!("{room}.rs"));
    let mut files: Vec<PathBuf> = file.is_file().then_some(file).into_iter().collect();
    let mut folders = vec![source().join(room)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// The text without comments that fill their lines: documentation may name anything.
fn code_of(text: &str) -> String {
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    text.lines().filter(is_code).collect::<Vec<_>>().join("\n")
}

fn violations(room: &Room, code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for path in paths_after("crate::", code) {
        let below =
            |allowed: &&&str| path == **allowed || path.starts_with(&format!("{allowed}::"));
        if first(&path) != room.name && !room.may_import.iter().any(|allowed| below(&allowed)) {
            found.push(format!("`{}` must not import `crate::{path}`", room.name));
        }
    }
    for package in room.never_sees {
        if names_package(code, package) {
            found.push(format!("`{}` must not see the package `{package}`", room.name));
        }
    }
    found
}

/// Every path that follows `start` in `code`, groups in braces spelled out, `start` itself left away.
fn paths_after(start: &str, code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (position, _) in code.match_indices(start) {
        let before = code[..position].chars().next_back();
        if before.is_none_or(|c| !is_name(c) && c != ':') {
            spell_out(&code[position + start.len()..], "", &mut paths);
        }
    }
    paths
}

/// Reads one tree of a `use` line (`a::{b, c::d}`), or a path, and returns what follows it.
fn spell_out<'a>(text: &'a str, prefix: &str, paths: &mut Vec<String>) -> &'a str {
    let text = text.trim_start();
    let name = text.find(|c: char| !is_name(c)).map_or(text, |end| &text[..end]);
    let rest = &text[name.len()..];
    let path =
        [prefix, name].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("::");
    if let Some(deeper) = rest.strip_prefix("::") {
        return spell_out(deeper, &path, paths);
    }
    let Some(mut group) = rest.strip_prefix('{').filter(|_| name.is_empty()) else {
        paths.push(path.trim_end_matches("::self").to_owned());
        return rest;
    };
    loop {
        group = group.trim_start();
        if let Some(end) = group.strip_prefix('}') {
            return end;
        }
        let rest = spell_out(group, prefix, paths);
        // `as name`, a glob, or a comma.
        let end = rest.find([',', '}']).unwrap_or(rest.len());
        group = rest[end..].trim_start_matches(',');
        if group.is_empty() {
            return group;
        }
    }
}

fn names_package(code: &str, package: &str) -> bool {
    code.match_indices(package).any(|(position, _)| {
        let before = code[..position].chars().next_back();
        let after = &code[position + package.len()..];
        // A field or module of ours may have a package's name; `x::image::y` and `image.width` are no packages.
        let starts = before.is_none_or(|c| !is_name(c) && !matches!(c, ':' | '.'));
        starts && after.starts_with("::")
    })
}

/// Whether code outside the file's inline test module climbs above the room with `super::super::...`.
fn climbs_out(file: &Path, code: &str) -> bool {
    let code = code.split("#[cfg(test)]").next().unwrap_or(code);
    let depth = file.strip_prefix(source()).unwrap().components().count();
    let depth = if file.ends_with("mod.rs") { depth - 1 } else { depth };
    code.contains(&"super::".repeat(depth))
}

fn first(path: &str) -> &str {
    path.split("::").next().unwrap_or(path)
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Returns the files of `src` whose code, tests excluded, satisfies `is_wanted`. The code comes without white space.
fn files_where(is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
    const TESTS: [&str; 5] = ["tests", "testing", "schedules", "properties", "simulation"];
    let mut found = Vec::new();
    for room in &LAW {
        for file in files_of(room.name) {
            let place = file.strip_prefix(source()).unwrap().with_extension("");
            if place.iter().any(|part| TESTS.iter().any(|test| part == *test)) {
                continue;
            }
            let code = code_of(&std::fs::read_to_string(&file).unwrap());
            let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or(&code);
            if is_wanted(&code.split_whitespace().collect::<String>()) {
                found.push(place.with_extension("rs").display().to_string());
            }
        }
    }
    found
}

/// Deadlines, waits and lifetimes are measured on the monotonic clock: a wall clock that is set forward or back in the
/// middle of a request changes nothing. Only metrics, the answers of other APIs, exported traces and the doctor's check of
/// certificates use wall-clock time, and only one file each reads it.
#[test]
fn wall_time_is_for_metrics_traces_certificates_and_other_apis_alone() {
    let mut files = files_where(|code| code.contains("SystemTime::now"));
    files.sort();
    let readers = [
        "app/doctor/machine.rs",
        "engine/heartbeat.rs",
        "http/routes/compatible/now.rs",
        "telemetry/trace/tracer.rs",
    ];
    assert_eq!(files, readers);
}

/// The lifecycle is the state, and these gauges only show it. A second writer could make them disagree.
#[test]
fn the_gauges_of_the_lifecycle_are_written_in_one_place() {
    let gauges = ["ready.set(", "draining.set(", "worker_up.with_label_values("];
    let files = files_where(|code| gauges.iter().any(|gauge| code.contains(gauge)));
    assert_eq!(files, ["engine/lifecycle.rs"]);
}

/// Decisions are made from state; metrics only report it.
#[test]
fn no_metric_is_read() {
    assert!(reads_a_metric("letnow=self.metrics.oom_total.get();"));
    assert!(reads_a_metric("ifmetrics().hits.with_label_values(&[\"a\"]).get()>0{"));
    assert!(!reads_a_metric("self.metrics.ready.set(1);x.get()"));
    let files = files_where(reads_a_metric);
    assert!(files.is_empty(), "{files:?}");
}

/// Whether code without white space contains `metrics.NAME.get()`, with or without labels and parentheses.
fn reads_a_metric(code: &str) -> bool {
    code.split("metrics").skip(1).any(|rest| {
        let rest = rest.strip_prefix("()").unwrap_or(rest);
        let Some(rest) = rest.strip_prefix('.') else { return false };
        let rest = rest.trim_start_matches(is_name);
        let rest = match rest.strip_prefix(".with_label_values(") {
            Some(labels) => labels.split_once("])").map_or("", |(_, rest)| rest),
            None => rest,
        };
        rest.starts_with(".get()")
    })
}
