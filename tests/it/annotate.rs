//! The commands that process files: tables, files beside the pictures, resuming, exit codes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::png;
use crate::support::process::ServerProcess;

/// A folder with these pictures, each with other content.
fn folder(names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (mark, name) in names.iter().enumerate() {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, png(mark as u8)).unwrap();
    }
    folder
}

fn url(server: &mut ServerProcess) -> String {
    format!("http://{}", server.public_address())
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blip-server"));
    command.args(arguments).current_dir(folder).env_clear();
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

/// Runs a command and checks its exit code. Returns what it printed.
fn output(folder: &Path, arguments: &[&str], code: i32) -> (String, String) {
    let output = run(folder, arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (printed, log) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {log}");
    (printed, log)
}

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// The paths of rows, sorted. Each must occur once.
fn paths(rows: &[Value]) -> Vec<&str> {
    let mut paths: Vec<&str> = rows.iter().map(|row| row["path"].as_str().unwrap()).collect();
    paths.sort_unstable();
    let distinct: BTreeSet<&str> = paths.iter().copied().collect();
    assert_eq!(paths.len(), distinct.len(), "a picture has two rows: {paths:?}");
    paths
}

/// The files of a folder and those below it, with these extensions.
fn files(folder: &Path, extensions: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| extensions.contains(&it.to_str().unwrap()))
            {
                found.push(path.strip_prefix(folder).unwrap().display().to_string());
            }
        }
    }
    found.sort_unstable();
    found
}

#[cfg(feature = "demo")]
#[test]
fn a_folder_is_captioned_in_this_process() {
    let folder = folder(&["a/one.png", "b/two.png", "b/three.PNG", "thumbs/four.png"]);
    fs::write(folder.path().join("b/broken.jpg"), "no picture").unwrap();
    fs::write(folder.path().join("b/notes.md"), "no picture either").unwrap();
    let (printed, log) = output(folder.path(), &["caption", ".", "--exclude", "thumbs"], 3);
    let rows = rows(&printed);
    assert_eq!(paths(&rows), ["./a/one.png", "./b/broken.jpg", "./b/three.PNG", "./b/two.png"]);
    for row in &rows {
        let is_broken = row["path"] == "./b/broken.jpg";
        assert_eq!(row["error"]["code"] == "unsupported_image_format", is_broken, "{row}");
        assert_eq!(row["captions"][0]["text"].is_string(), !is_broken, "{row}");
        assert_eq!(
            row["size"],
            fs::metadata(folder.path().join(row["path"].as_str().unwrap())).unwrap().len()
        );
    }
    assert!(printed.starts_with("{\"path\":"), "{printed}");
    assert!(log.contains("3 done, 1 failed, 0 done before"), "{log}");
}

#[test]
fn a_csv_table_holds_any_path_and_is_resumed() {
    let mut server = ServerProcess::start(&[], &[]);
    let url = url(&mut server);
    let names = ["a, b.png", "say \"hi\".png", "two\nlines.png", "plain.png"];
    let folder = folder(&names);
    fs::write(folder.path().join("torn.jpg"), "").unwrap();
    let arguments = ["ask", ".", "-q", "how many, really?", "--output", "t.csv", "--server", &url];
    output(folder.path(), &arguments, 3);
    let table = folder.path().join("t.csv");
    let read = || -> Vec<csv::StringRecord> {
        let mut reader = csv::Reader::from_path(&table).unwrap();
        let header = reader.headers().unwrap();
        assert_eq!(
            header,
            vec!["path", "size", "modified", "sha256", "how many, really?", "error"]
        );
        reader.records().map(Result::unwrap).collect()
    };
    let rows = read();
    assert_eq!(rows.len(), 5);
    for name in names {
        let row = rows.iter().find(|row| row[0] == format!("./{name}")).expect(name);
        assert!(!row[4].is_empty() && row[5].is_empty(), "{row:?}");
    }
    // A second run refuses, another command as well.
    output(folder.path(), &arguments, 1);
    let other = ["caption", ".", "--output", "t.csv", "--resume", "--server", &url];
    let (_, log) = output(folder.path(), &other, 1);
    assert!(log.contains("other columns or fields"), "{log}");
    // One picture has changed, the end of the table is torn, and the broken file is mended.
    fs::write(folder.path().join("plain.png"), png(99)).unwrap();
    fs::write(folder.path().join("torn.jpg"), png(98)).unwrap();
    let whole = fs::read(&table).unwrap();
    fs::write(&table, [&whole[..], b"./again.png,12,\"torn in the mid"].concat()).unwrap();
    let resumed = [&arguments[..], &["--resume"]].concat();
    let (_, log) = output(folder.path(), &resumed, 0);
    assert!(log.contains("2 done, 0 failed, 3 done before"), "{log}");
    let rows = read();
    assert_eq!(rows.len(), 5);
    assert!(rows.iter().all(|row| !row[4].is_empty() && row[5].is_empty()), "{rows:?}");
}

#[test]
fn a_run_that_was_killed_is_resumed_without_a_gap_or_a_second_row() {
    // Slow enough that every kill comes in the middle.
    let mut server = ServerProcess::start(&["--image-us", "50000"], &[]);
    let url = url(&mut server);
    let names: Vec<String> = (0..60).map(|number| format!("{}/{number}.png", number % 7)).collect();
    let folder = folder(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let table = folder.path().join("t.jsonl");
    let arguments =
        ["caption", ".", "--output", "t.jsonl", "--resume", "--sidecar", "txt", "--server", &url];
    let lines = || fs::read_to_string(&table).unwrap_or_default().lines().count();
    for round in 1..=3 {
        let mut child = command(folder.path(), &arguments).stderr(Stdio::null()).spawn().unwrap();
        while lines() < round * 10 {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // As if it had been killed in the middle of a row.
        let whole = fs::read(&table).unwrap();
        fs::write(&table, [&whole[..], b"{\"path\":\"./0/"].concat()).unwrap();
    }
    output(folder.path(), &arguments, 0);
    let text = fs::read_to_string(&table).unwrap();
    let rows = rows(&text);
    let mut expected: Vec<String> = names.iter().map(|name| format!("./{name}")).collect();
    expected.sort_unstable();
    assert_eq!(paths(&rows), expected);
    assert_eq!(files(folder.path(), &["txt"]).len(), names.len());
    assert!(files(folder.path(), &["tmp"]).len() <= 3, "a killed run leaves at most one file");
}

#[test]
fn an_interrupted_run_keeps_what_is_done() {
    let mut server = ServerProcess::start(&["--image-us", "50000"], &[]);
    let url = url(&mut server);
    let names: Vec<String> = (0..60).map(|number| format!("{number}.png")).collect();
    let folder = folder(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let table = folder.path().join("t.jsonl");
    let arguments = ["embed", ".", "--output", "t.jsonl", "--server", &url, "--resume"];
    let child = command(folder.path(), &arguments).stderr(Stdio::piped()).spawn().unwrap();
    let lines = || fs::read_to_string(&table).unwrap_or_default().lines().count();
    while lines() < 5 {
        std::thread::yield_now();
    }
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    let ended = child.wait_with_output().unwrap();
    let log = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{log}");
    assert!(log.contains("interrupted") && log.contains("--resume"), "{log}");
    let before = rows(&fs::read_to_string(&table).unwrap()).len();
    assert!(before < names.len());
    let (_, log) = output(folder.path(), &arguments, 0);
    assert!(
        log.contains(&format!("{} done, 0 failed, {before} done before", names.len() - before)),
        "{log}"
    );
    assert_eq!(rows(&fs::read_to_string(&table).unwrap()).len(), names.len());
}

#[test]
fn an_interrupted_run_that_cannot_be_resumed_says_so() {
    use std::io::{BufRead, BufReader};

    let mut server = ServerProcess::start(&["--image-us", "50000"], &[]);
    let url = url(&mut server);
    let names: Vec<String> = (0..60).map(|number| format!("{number}.png")).collect();
    let folder = folder(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut child = command(folder.path(), &["embed", ".", "--server", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    lines.for_each(drop);
    let ended = child.wait_with_output().unwrap();
    let log = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{log}");
    assert!(log.contains("interrupted") && log.contains("--output FILE"), "{log}");
    assert!(!log.contains("--resume does the rest"), "{log}");
}

#[test]
fn files_beside_pictures_have_their_stem_unless_two_share_it() {
    let mut server = ServerProcess::start(&[], &[]);
    let url = url(&mut server);
    let folder = folder(&["one.png", "two.png", "two.gif", "sub/two.png", "blocked.png"]);
    fs::create_dir(folder.path().join("blocked.txt")).unwrap();
    let arguments = [
        "caption",
        ".",
        "--sidecar",
        "txt,json,xmp",
        "--language",
        "en",
        "--prefix",
        "photo of ",
        "--server",
        &url,
    ];
    let (_, log) = output(folder.path(), &arguments, 3);
    assert!(log.contains("./blocked.png") && log.contains("blocked.txt"), "{log}");
    let expected = ["one.txt", "sub/two.txt", "two.gif.txt", "two.png.txt"];
    assert_eq!(files(folder.path(), &["txt"]), expected);
    let text = fs::read_to_string(folder.path().join("one.txt")).unwrap();
    assert!(text.starts_with("photo of ") && text.ends_with('\n'), "{text:?}");
    let row: Value =
        serde_json::from_slice(&fs::read(folder.path().join("one.json")).unwrap()).unwrap();
    assert_eq!(format!("photo of {}\n", row["captions"][0]["text"].as_str().unwrap()), text);
    let xmp = fs::read_to_string(folder.path().join("one.png.xmp")).unwrap();
    assert!(
        xmp.contains("xml:lang=\"en\"")
            && xmp.contains(row["captions"][0]["text"].as_str().unwrap())
    );
    // They are kept, and replaced when asked.
    fs::remove_dir(folder.path().join("blocked.txt")).unwrap();
    let (_, log) = output(folder.path(), &arguments, 3);
    assert!(
        log.contains("one.txt exists; use --resume") && log.contains("1 done, 4 failed"),
        "{log}"
    );
    let resumed = [&arguments[..], &["--resume"]].concat();
    let (_, log) = output(folder.path(), &resumed, 0);
    assert!(log.contains("0 done, 0 failed, 5 done before"), "{log}");
    let replaced = [&arguments[..], &["--overwrite"]].concat();
    let (_, log) = output(folder.path(), &replaced, 0);
    assert!(log.contains("5 done, 0 failed, 0 done before"), "{log}");
}

#[test]
fn vectors_are_what_numpy_reads() {
    let mut server = ServerProcess::start(&[], &[]);
    let url = url(&mut server);
    let folder = folder(&["a.png", "b.png", "c.png"]);
    let arguments = ["embed", ".", "--npy", "v.npy", "-o", "t.jsonl", "--server", &url];
    output(folder.path(), &arguments, 0);
    let bytes = fs::read(folder.path().join("v.npy")).unwrap();
    let header = std::str::from_utf8(&bytes[10..128]).unwrap();
    let listed = fs::read_to_string(folder.path().join("v.paths.txt")).unwrap();
    let rows = rows(&fs::read_to_string(folder.path().join("t.jsonl")).unwrap());
    let width = rows[0]["embedding"].as_array().unwrap().len();
    assert!(header.contains(&format!("'shape': (3, {width})")), "{header}");
    for (number, name) in listed.lines().enumerate() {
        let row = rows.iter().find(|row| row["path"] == name).expect(name);
        let expected: Vec<f32> = row["embedding"]
            .as_array()
            .unwrap()
            .iter()
            .map(|value| value.as_f64().unwrap() as f32)
            .collect();
        let begin = 128 + number * width * 4;
        let vector: Vec<f32> = bytes[begin..begin + width * 4]
            .chunks(4)
            .map(|it| f32::from_le_bytes(it.try_into().unwrap()))
            .collect();
        assert_eq!(vector, expected, "{name}");
    }
}

#[test]
fn lists_name_pictures_and_their_own_fields() {
    let mut server = ServerProcess::start(&[], &[]);
    let url = url(&mut server);
    let folder = folder(&["a.png", "b.png"]);
    let list = "a.png\n\n{\"path\": \"b.png\", \"question\": \"where?\"}\na.png\nmissing.png\n{\"x\": 1}\n";
    fs::write(folder.path().join("list"), list).unwrap();
    let arguments = ["ask", "--list", "list", "--server", &url];
    let (printed, log) = output(folder.path(), &arguments, 3);
    let rows = rows(&printed);
    let answer = |path: &str| rows.iter().find(|row| row["path"] == path).expect(path);
    assert_eq!(answer("b.png")["answers"][0]["question"], "where?");
    // The first has no question of its own, and there is none for all.
    assert_eq!(answer("a.png")["error"]["code"], "invalid_request");
    assert_eq!(answer("missing.png")["error"]["code"], "unreadable");
    assert!(log.contains("1 done, 3 failed"), "{log}");
}

#[test]
fn a_wrong_command_says_so_before_it_works() {
    let mut server = ServerProcess::start(&[], &[]);
    let url = url(&mut server);
    let folder = folder(&["a.png", "b.png"]);
    for (arguments, code, words) in [
        (&["caption", ".", "--num-beams", "99"][..], 2, "--num-beams: invalid value"),
        (&["caption", ".", "--temperature", "0.5"], 2, "without --do-sample; set --do-sample"),
        (&["caption", ".", "--prefix", "a "], 2, "need --sidecar txt"),
        (&["caption", ".", "--language", "en"], 2, "needs --sidecar xmp"),
        (&["caption", ".", "--verify", "abc"], 2, "a probability from 0 to 1"),
        (&["caption", ".", "--verify", "1.5"], 2, "a probability from 0 to 1"),
        (&["caption", ".", "-o", "cap.tsv"], 2, "cap.tsv: the name must end in .csv"),
        (&["caption", ".", "-o", "out.txt", "--resume"], 2, "out.txt: the name must end in .csv"),
        (&["caption", ".", "--include", "[a"], 2, "no pattern"),
        (&["caption", ".", "--model", "none"], 2, "model_not_found"),
        (&["classify", "."], 2, "--label"),
    ] {
        let (_, log) = output(folder.path(), &[arguments, &["--server", &url]].concat(), code);
        assert!(log.contains(words), "{log}");
    }
    let (printed, _) = output(folder.path(), &["caption", ".", "--dry-run"], 0);
    assert_eq!(printed, "./a.png\n./b.png\n");
    let (_, log) = output(folder.path(), &["caption", ".", "--server", "example.com"], 2);
    assert!(log.contains("http://"), "{log}");
    let (_, log) =
        output(folder.path(), &["caption", ".", "--server", &format!("{url}/caption")], 1);
    assert!(log.contains("the address of the server without a path"), "{log}");
}

#[test]
fn resuming_needs_answers_that_can_be_read_again() {
    let folder = folder(&["a.png"]);
    for command in [
        &["caption"][..],
        &["ask", "-q", "where?"],
        &["match", "--text", "a cat"],
        &["embed"],
        &["classify", "-l", "a cat"],
    ] {
        for outputs in [&[][..], &["-o", "-"]] {
            let arguments = [command, &[".", "--resume"], outputs].concat();
            let (_, log) = output(folder.path(), &arguments, 2);
            assert!(log.contains("--resume needs --output FILE"), "{arguments:?}: {log}");
            assert_eq!(log.contains("--npy"), command[0] == "embed", "{log}");
        }
    }
}

#[test]
fn a_server_with_keys_needs_a_file_with_one() {
    let key = format!("team:{}", "s".repeat(32));
    let mut server = ServerProcess::start(&[], &[("AUTH__KEYS", key.as_str())]);
    let url = url(&mut server);
    let folder = folder(&["a.png"]);
    let arguments = ["caption", ".", "--server", &url];
    let (_, log) = output(folder.path(), &arguments, 1);
    assert!(log.contains("--api-key-file FILE") && !log.contains("Bearer"), "{log}");
    let with = |secret: &str, code: i32| {
        fs::write(folder.path().join("key"), secret).unwrap();
        output(folder.path(), &[&arguments[..], &["--api-key-file", "key"]].concat(), code).1
    };
    let log = with(&"x".repeat(32), 1);
    assert!(log.contains("the API key is not valid"), "{log}");
    with(&format!("{}\n", "s".repeat(32)), 0);
}

#[test]
fn a_folder_without_pictures_says_what_it_has_instead() {
    let mut server = ServerProcess::start(&[], &[]);
    let url = url(&mut server);
    let folder = folder(&["photos/one.heic", "photos/sub/two.heic", "photos/a.png"]);
    fs::create_dir(folder.path().join("empty")).unwrap();
    std::os::unix::fs::symlink("../photos", folder.path().join("empty/link")).unwrap();
    fs::write(folder.path().join("list"), "\n").unwrap();
    for (arguments, words) in [
        (
            &["empty"][..],
            "no pictures in empty (looked for names ending in jpg, jpeg, png, gif, webp, bmp, jfif; 1 symbolic link to a \
             folder was not followed)",
        ),
        (
            &["photos", "--exclude", "a.png"],
            "; 2 other files were skipped; 1 picture is left out by --include or --exclude)",
        ),
        (&["--list", "list"], "no pictures in list\n"),
    ] {
        for dry in [&[][..], &["--dry-run"]] {
            let arguments = [&["caption"], arguments, &["--server", &url], dry].concat();
            let (printed, log) = output(folder.path(), &arguments, 0);
            assert!(log.contains(words), "{log}");
            assert_eq!(printed, "");
        }
    }
    let (_, log) = output(folder.path(), &["caption", "photos", "--server", &url], 0);
    assert!(!log.contains("no pictures"), "{log}");
}

#[test]
fn a_dry_run_tells_what_a_run_would_do() {
    let mut server = ServerProcess::start(&[], &[]);
    let url = url(&mut server);
    let folder = folder(&["a.png", "b.png", "pics/c.png"]);
    let arguments = |rest: &[&'static str]| {
        let all = [&["caption", "-o", "t.jsonl", "--server", &url], rest].concat();
        all.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = |rest: &[&'static str], code| {
        let arguments = arguments(rest);
        output(folder.path(), &arguments.iter().map(String::as_str).collect::<Vec<_>>(), code)
    };
    let (printed, log) = run(&["missing", "a.png", "--dry-run"], 3);
    assert_eq!(printed, "a.png\n");
    assert!(log.contains("missing: No such file"), "{log}");
    assert!(log.contains("1 would be processed, 1 would fail, 0 done before"), "{log}");
    assert!(!folder.path().join("t.jsonl").exists());
    run(&["missing", "a.png"], 3);
    // An existing table is refused, and continued with what is left.
    run(&["a.png", "b.png", "--dry-run"], 1);
    let before = fs::read(folder.path().join("t.jsonl")).unwrap();
    let (printed, log) = run(&["a.png", "b.png", "--resume", "--dry-run"], 0);
    assert_eq!(printed, "b.png\n");
    assert!(log.contains("1 would be processed, 0 would fail, 1 done before"), "{log}");
    assert_eq!(fs::read(folder.path().join("t.jsonl")).unwrap(), before);
    let (printed, _) = run(&["a.png", "--overwrite", "--dry-run"], 0);
    assert_eq!(printed, "a.png\n");
    // A pattern that no shell has expanded.
    let (_, log) = run(&["pics/*.png", "--overwrite", "--dry-run"], 3);
    assert!(log.contains("pics --include '*.png'"), "{log}");
}

#[test]
fn a_list_that_cannot_be_read_is_no_picture() {
    let folder = folder(&["a.png"]);
    for dry in [&[][..], &["--dry-run"]] {
        let arguments = ["caption", "--list", "nolist.txt", "-o", "t.jsonl"];
        let (_, log) = output(folder.path(), &[&arguments[..], dry].concat(), 1);
        assert!(log.contains("cannot read the list nolist.txt: No such file"), "{log}");
        assert!(!folder.path().join("t.jsonl").exists());
    }
    let (_, log) = output(folder.path(), &["caption", "--list", ".", "-o", "t.jsonl"], 1);
    assert!(log.contains("cannot read the list .: it is a folder"), "{log}");
}

#[test]
fn a_list_from_a_pipe_is_read_once() {
    let mut server = ServerProcess::start(&[], &[]);
    let url = url(&mut server);
    let names: Vec<String> = (0..40).map(|number| format!("{number}.png")).collect();
    let folder = folder(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let pipe = folder.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let writer = std::thread::spawn({
        let (pipe, text) = (pipe.clone(), names.join("\n"));
        move || fs::write(pipe, text).unwrap()
    });
    let arguments = ["embed", "--list", "pipe", "-o", "t.jsonl", "--server", &url];
    output(folder.path(), &arguments, 0);
    writer.join().unwrap();
    let rows = rows(&fs::read_to_string(folder.path().join("t.jsonl")).unwrap());
    assert_eq!(paths(&rows).len(), names.len());
}

#[test]
fn names_cannot_control_the_terminal() {
    let mut server = ServerProcess::start(&[], &[]);
    let url = url(&mut server);
    let name = "\u{1b}]0;title\u{7}\n.png";
    let folder = folder(&[name]);
    let (printed, _) = output(folder.path(), &["caption", ".", "--dry-run"], 0);
    assert_eq!(printed, "{\"path\":\"./\\u001b]0;title\\u0007\\n.png\"}\n");
    // It is a list of pictures, whose table has the exact name.
    fs::write(folder.path().join("list"), printed).unwrap();
    let (printed, _) = output(folder.path(), &["embed", "--list", "list", "--server", &url], 0);
    assert_eq!(rows(&printed)[0]["path"], format!("./{name}"));
    fs::write(folder.path().join(name), "no picture").unwrap();
    let (_, log) = output(folder.path(), &["caption", ".", "--server", &url], 3);
    assert!(log.contains(r"./\u{1b}]0;title\u{7}\n.png: "), "{log:?}");
    assert!(!log.contains(['\u{1b}', '\u{7}']), "{log:?}");
}

#[test]
fn a_closed_standard_output_ends_the_run_without_a_message() {
    let mut server = ServerProcess::start(&[], &[]);
    let url = url(&mut server);
    let folder = folder(&["a.png", "b.png"]);
    for (arguments, code) in [
        (&["caption", ".", "--server", &url][..], 1),
        // All that it had to print is known, so the exit code is that of its findings.
        (&["caption", ".", "--dry-run"], 0),
        (&["openapi"], 0),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = command(folder.path(), arguments).stdout(writer).output().unwrap();
        let log = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(code), "{log}");
        assert!(!log.contains("roken pipe") && !log.contains("standard output"), "{log}");
    }
}

/// Runs a command whose models are loaded in its process, and which has no picture. Returns its log.
fn without_pictures(arguments: &[&str], code: i32) -> String {
    let folder = folder(&[]);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/caption-varied");
    let model = ["--model", model.to_str().unwrap()];
    output(folder.path(), &[&["caption", "."], &model[..], arguments].concat(), code).1
}

#[test]
fn more_threads_than_cpus_are_told_at_the_start() {
    let usable = std::thread::available_parallelism().unwrap().get();
    let log = without_pictures(&["--device", "cpu", "--threads", &(usable + 1).to_string()], 0);
    assert!(log.contains("the threads will wait for each other"), "{log}");
    let log = without_pictures(&["--device", "cpu", "--threads", "1"], 0);
    assert!(!log.contains("wait for each other"), "{log}");
}

#[test]
fn a_gpu_that_cannot_be_used_says_how_to_do_without() {
    // No machine has so many.
    let log = without_pictures(&["--device", "cuda:63"], 1);
    assert!(log.contains("set --device auto or cpu"), "{log}");
}

#[test]
fn a_task_without_a_model_names_the_flag() {
    let folder = folder(&["a.png"]);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/caption-varied");
    let arguments = ["ask", ".", "-q", "where?", "--device", "cpu", "--model"];
    let (_, log) = output(folder.path(), &[&arguments[..], &[model.to_str().unwrap()]].concat(), 2);
    assert!(log.contains("no vqa model is loaded; name one with --model SRC"), "{log}");
}

#[test]
fn a_server_that_stops_loses_nothing() {
    let mut server = ServerProcess::start(&["--image-us", "50000"], &[]);
    let url = url(&mut server);
    let names: Vec<String> = (0..40).map(|number| format!("{number}.png")).collect();
    let folder = folder(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let table = folder.path().join("t.jsonl");
    let arguments = ["caption", ".", "-o", "t.jsonl", "--server", &url];
    let child = command(folder.path(), &arguments).stderr(Stdio::null()).spawn().unwrap();
    let lines = || fs::read_to_string(&table).unwrap_or_default().lines().count();
    while lines() < 5 {
        std::thread::yield_now();
    }
    // Another one takes its place while the command tries again.
    let address = url.strip_prefix("http://").unwrap().to_owned();
    server.terminate();
    assert_eq!(server.end_unread(), Some(0));
    let _other = ServerProcess::start(&["--listen", &address], &[]);
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    let rows = rows(&fs::read_to_string(&table).unwrap());
    assert_eq!(paths(&rows).len(), names.len());
    assert!(rows.iter().all(|row| row.get("error").is_none()), "{rows:?}");
}

#[test]
fn resuming_replaces_nothing_that_is_not_its_own() {
    let mut server = ServerProcess::start(&[], &[]);
    let url = url(&mut server);
    let folder = folder(&["a.png", "b.png"]);
    fs::write(folder.path().join("a.txt"), "by hand").unwrap();
    let caption =
        ["caption", ".", "-o", "t.jsonl", "--sidecar", "txt", "--resume", "--server", &url];
    output(folder.path(), &caption, 0);
    assert_eq!(fs::read_to_string(folder.path().join("a.txt")).unwrap(), "by hand");
    assert!(folder.path().join("b.txt").exists());
    // A picture whose file beside it is gone is done again, and has one row.
    fs::remove_file(folder.path().join("b.txt")).unwrap();
    let (_, log) = output(folder.path(), &caption, 0);
    assert!(log.contains("1 done, 0 failed, 1 done before"), "{log}");
    assert_eq!(paths(&rows(&fs::read_to_string(folder.path().join("t.jsonl")).unwrap())).len(), 2);
    // Rows of another command or question, and files that are no tables.
    let ask =
        |question| ["ask", ".", "-q", question, "-o", "q.jsonl", "--resume", "--server", &url];
    output(folder.path(), &ask("one?"), 0);
    let (_, log) = output(folder.path(), &ask("two?"), 1);
    assert!(log.contains("other columns or fields"), "{log}");
    fs::write(folder.path().join("notes"), "my notes\n").unwrap();
    let notes = ["caption", ".", "-o", "notes", "--resume", "--server", &url];
    output(folder.path(), &notes, 1);
    assert_eq!(fs::read_to_string(folder.path().join("notes")).unwrap(), "my notes\n");
    // What is replaced stays until the first answer.
    let before = fs::read(folder.path().join("q.jsonl")).unwrap();
    let wrong = [
        "ask",
        ".",
        "-q",
        "a?",
        "-o",
        "q.jsonl",
        "--overwrite",
        "--num-beams",
        "99",
        "--server",
        &url,
    ];
    output(folder.path(), &wrong, 2);
    assert_eq!(fs::read(folder.path().join("q.jsonl")).unwrap(), before);
    let right = ["ask", ".", "-q", "a?", "-o", "q.jsonl", "--overwrite", "--server", &url];
    output(folder.path(), &right, 0);
    assert_eq!(rows(&fs::read_to_string(folder.path().join("q.jsonl")).unwrap()).len(), 2);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_the_run_and_says_so() {
    let mut server = ServerProcess::start(&[], &[]);
    let url = url(&mut server);
    let folder = folder(&["a.png", "b.png"]);
    let arguments = ["embed", ".", "--server", &url, "-o", "/dev/full"];
    let (_, log) = output(folder.path(), &arguments, 1);
    assert!(log.contains("cannot write /dev/full") && log.contains("No space left"), "{log}");
}

#[test]
fn pictures_of_a_list_may_be_on_standard_input() {
    use std::io::Write;

    let mut server = ServerProcess::start(&[], &[]);
    let url = url(&mut server);
    let folder = folder(&["a.png"]);
    let mut child = command(folder.path(), &["match", "-", "--text", "a cat", "--server", &url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"a.png\r\n").unwrap();
    let ended = child.wait_with_output().unwrap();
    let rows = rows(&String::from_utf8(ended.stdout).unwrap());
    assert!(rows[0]["scores"][0][0]["match"].is_number(), "{rows:?}");
    assert_eq!(ended.status.code(), Some(0));
}
