//! The workflows in `.github` and the Dockerfile: what they name exists, actions are pinned to a commit, and the same
//! versions and commands are used everywhere.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn workflow(name: &str) -> String {
    std::fs::read_to_string(root().join(".github/workflows").join(name)).unwrap()
}

fn dockerfile() -> String {
    std::fs::read_to_string(root().join("Dockerfile")).unwrap()
}

/// Returns the items of the first list with this key.
fn list(workflow: &str, key: &str) -> BTreeSet<String> {
    let lines = workflow.lines().skip_while(|line| line.trim() != format!("{key}:")).skip(1);
    let items = lines.map_while(|line| line.trim().strip_prefix("- "));
    items.map(str::to_owned).collect()
}

/// True if `tests/robustness` has this test, such as `load::signals::long`, and it runs only on demand.
fn is_long_test(name: &str) -> bool {
    let (module, function) = name.rsplit_once("::").unwrap();
    let place: PathBuf = module.split("::").collect();
    let folder = root().join("tests/robustness").join(place);
    [folder.with_extension("rs"), folder.join("mod.rs")].iter().any(|file| {
        let code = std::fs::read_to_string(file).unwrap_or_default();
        code.contains(&format!("fn {function}()")) && code.contains("#[ignore = \"long\"]")
    })
}

#[test]
fn the_nightly_run_names_long_tests_that_exist() {
    let tests = list(&workflow("nightly.yml"), "test");
    assert!(tests.len() > 10, "{tests:?}");
    let missing: Vec<_> = tests.iter().filter(|test| !is_long_test(test)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(!is_long_test("load::signals::no_such_test"));
}

#[test]
fn the_nightly_run_fuzzes_every_target() {
    let files = std::fs::read_dir(root().join("tests/fuzz/bin")).unwrap();
    let targets = files.map(|file| file.unwrap().path().file_stem().unwrap().to_owned());
    let targets: BTreeSet<_> = targets.map(|name| name.into_string().unwrap()).collect();
    assert_eq!(list(&workflow("nightly.yml"), "target"), targets);
}

/// Each night, because vulnerabilities are published while the code does not change.
#[test]
fn the_nightly_run_checks_the_advisories_of_both_lock_files() {
    let workflow = workflow("nightly.yml");
    for manifest in ["", " --manifest-path tests/fuzz/Cargo.toml"] {
        let step = format!("- run: $(.ci/tools)/cargo-deny --locked{manifest} check advisories\n");
        assert!(workflow.contains(&step), "{step}");
    }
}

#[test]
fn ci_makes_the_sbom_with_the_commands_of_the_dockerfile() {
    let (dockerfile, ci) = (dockerfile(), workflow("ci.yml"));
    for start in ["cargo install ", "cargo auditable build ", "cargo cyclonedx "] {
        let lines = dockerfile.lines().map(|line| line.trim().trim_start_matches("&& "));
        let command = lines.filter(|line| line.starts_with(start)).collect::<String>();
        let step = format!("- run: {}\n", command.trim_end_matches(" \\"));
        assert!(!command.is_empty() && ci.contains(&step), "not in ci.yml: {step}");
    }
}

#[test]
fn the_dockerfile_uses_the_pinned_toolchain_and_tools_of_exact_versions() {
    let toolchain = std::fs::read_to_string(root().join("rust-toolchain.toml")).unwrap();
    let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap();
    let version = channel.trim_matches('"');
    let dockerfile = dockerfile();
    assert!(dockerfile.contains(&format!("FROM rust:{version}-")), "{version}");
    assert!(dockerfile.contains(&format!("ENV RUSTUP_TOOLCHAIN={version}\n")), "{version}");
    let tools =
        dockerfile.lines().find_map(|line| line.trim().strip_prefix("cargo install ")).unwrap();
    for tool in tools.split_whitespace().filter(|word| !word.starts_with('-')) {
        let (_, version) = tool.split_once('@').unwrap();
        assert_eq!(version.split('.').count(), 3, "{tool}");
    }
}

#[test]
fn the_nightly_run_has_every_form_of_the_sanitizers() {
    let script = std::fs::read_to_string(root().join("tests/sanitizers/run.sh")).unwrap();
    let usage = script.lines().filter_map(|line| line.strip_prefix("#   tests/sanitizers/run.sh "));
    let forms = usage.map(|line| line.split_whitespace().next().unwrap().to_owned());
    assert_eq!(list(&workflow("nightly.yml"), "form"), forms.collect());
}

/// A tag of an action can be moved to other code; a commit cannot.
#[test]
fn actions_are_pinned_to_a_commit() {
    for name in ["ci.yml", "nightly.yml"] {
        let workflow = workflow(name);
        let uses = workflow.lines().filter_map(|line| line.trim().strip_prefix("- uses: "));
        let mut count = 0;
        for action in uses {
            let (_, version) = action.split_once('@').unwrap();
            let commit = version.split_whitespace().next().unwrap();
            let is_commit = commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit());
            assert!(is_commit, "{name}: {action}");
            count += 1;
        }
        assert!(count > 0, "{name}");
    }
}
