//! The server as a process: its log, its signals, its exit code.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longer than anything in these tests takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running mock server, killed when dropped.
pub(crate) struct ServerProcess {
    child: Child,
    /// Without a buffer: nobody reads from the pipe while nobody reads here.
    log: Receiver<String>,
}

impl ServerProcess {
    /// Starts a mock with further environment variables.
    pub(crate) fn start_with(
        variables: &[(&str, &str)],
        arguments: &[&str],
        settings: &[(&str, &str)],
    ) -> Self {
        let mut command = Command::new("env");
        command.args(variables.iter().map(|(name, value)| format!("{name}={value}")));
        command.arg(env!("CARGO_BIN_EXE_blip-server"));
        Self::spawn(command, arguments, settings)
    }

    /// Starts a mock with these arguments and settings.
    pub(crate) fn start(arguments: &[&str], settings: &[(&str, &str)]) -> Self {
        Self::spawn(Command::new(env!("CARGO_BIN_EXE_blip-server")), arguments, settings)
    }

    /// The same from a shell that has run `limits` before: `ulimit -n 64`.
    pub(crate) fn start_limited(
        limits: &str,
        arguments: &[&str],
        settings: &[(&str, &str)],
    ) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{limits} && exec \"$0\" \"$@\"")]);
        shell.arg(env!("CARGO_BIN_EXE_blip-server"));
        Self::spawn(shell, arguments, settings)
    }

    fn spawn(mut command: Command, arguments: &[&str], settings: &[(&str, &str)]) -> Self {
        // A free port, unless the test names one.
        let listen =
            if arguments.contains(&"--listen") { &[][..] } else { &["--listen", "127.0.0.1:0"] };
        let mut child = command
            .args(["mock", "--log-format", "text"])
            .args(listen)
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .envs(settings.iter().map(|(name, value)| (format!("BLIP__{name}"), value)))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = sync_channel(0);
        std::thread::spawn(move || {
            // Until the log ends, or the test.
            let mut lines = lines.map_while(Result::ok);
            while lines.next().is_some_and(|line| sender.send(line).is_ok()) {}
        });
        Self { child, log }
    }

    /// Reads the log up to the first line with these words; that line.
    pub(crate) fn line_with(&mut self, words: &str) -> String {
        let mut log = String::new();
        loop {
            let line = self.log.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("no {words:?} ({error}): {log}"));
            if line.contains(words) {
                return line;
            }
            log = log + &line + "\n";
        }
    }

    /// The address that the log names after these words.
    pub(crate) fn address(&mut self, words: &str) -> String {
        let line = self.line_with(words);
        let (_, rest) = line.split_once(words).unwrap();
        rest.split_whitespace().next().unwrap().to_owned()
    }

    /// The address of the public listener in plain HTTP.
    pub(crate) fn public_address(&mut self) -> String {
        self.address("listening on http://")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// A file of its own in `/proc`.
    pub(crate) fn proc_file(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap()
    }

    /// The names of its threads.
    pub(crate) fn thread_names(&self) -> Vec<String> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        // A thread may end meanwhile.
        let name = |path: std::path::PathBuf| std::fs::read_to_string(path.join("comm")).ok();
        let names = threads.filter_map(|thread| name(thread.unwrap().path()));
        names.map(|name| name.trim().to_owned()).collect()
    }

    /// The rest of its log, to its end, and then its exit code.
    pub(crate) fn end(mut self) -> (String, Option<i32>) {
        let rest: Vec<String> = self.log.iter().collect();
        (rest.join("\n"), self.child.wait().unwrap().code())
    }

    /// Its exit code, while nobody reads its log.
    pub(crate) fn end_unread(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(start.elapsed() < PATIENCE, "the server does not end");
            std::thread::yield_now();
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection on which this was sent.
pub(crate) fn send(address: &str, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// Everything up to the end of a connection.
pub(crate) fn read(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The answer to a GET on a connection of its own, with further header lines.
pub(crate) fn get_with(address: &str, path: &str, fields: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{fields}\r\n");
    read(send(address, &request))
}

/// The answer to a GET on a connection of its own.
pub(crate) fn get(address: &str, path: &str) -> String {
    get_with(address, path, "")
}

/// Runs `serve` and `convert` on the checkpoint in `directory`, each in an address space of 1 GiB. `case` names the
/// checkpoint in messages.
///
/// # Panics
/// When one of them does not end with exit code 78 and a message that names `weights`.
pub(crate) fn assert_refused_in_little_memory(directory: &Path, weights: &str, case: &str) {
    for command in ["serve", "convert"] {
        let mut arguments = vec![command];
        if command == "serve" {
            arguments.extend(["--listen", "127.0.0.1:0", "--model"]);
        }
        arguments.push(directory.to_str().unwrap());
        let output = Command::new("sh")
            .args(["-c", r#"ulimit -v 1048576 && exec "$0" "$@""#])
            .arg(env!("CARGO_BIN_EXE_blip-server"))
            .args(&arguments)
            .env_clear()
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{case}, {command}: {output:?}");
        assert!(message.contains(weights), "{case}, {command}: {message}");
    }
}
