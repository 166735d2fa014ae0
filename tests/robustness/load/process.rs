//! A server as a process of its own: started, watched, signalled, and killed at the latest when its handle is dropped.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::{ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open, pidfd_send_signal, prlimit,
};
use tokio::sync::watch;

use crate::robustness::memory;

/// Loading the demo models in the dev profile takes a few seconds, on a busy machine many.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Lines kept of a log whose lines are not asked for.
const TAIL: usize = 40;

/// A server on a port of its own.
pub(crate) struct Process {
    address: SocketAddr,
    pid: Pid,
    /// Names this process and no later one with its number.
    handle: OwnedFd,
    ended: watch::Receiver<Option<ExitStatus>>,
    waiter: Option<JoinHandle<()>>,
    log: Option<JoinHandle<Vec<String>>>,
    start_time: Duration,
}

/// What a process takes at a moment, as Linux says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Bytes of memory that are resident.
    pub(crate) rss: u64,
    /// Open file descriptors.
    pub(crate) descriptors: usize,
    /// Threads.
    pub(crate) threads: usize,
}

/// Which lines of the log are kept for [`Process::finish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Every one.
    All,
    /// The last few, for messages of failed tests.
    Tail,
}

impl Process {
    /// The whole service before a backend of fixed latency; `flags` set it, `settings` are `SECTION__KEY` and value.
    pub(crate) fn mock(flags: &[&str], settings: &[(&str, &str)]) -> Self {
        Self::start("mock", flags, settings, Keep::Tail)
    }

    /// Starts `command`; returns when it listens.
    pub(crate) fn start(
        command: &str,
        flags: &[&str],
        settings: &[(&str, &str)],
        keep: Keep,
    ) -> Self {
        let began = Instant::now();
        let mut server = Command::new(env!("CARGO_BIN_EXE_blip-server"));
        server.arg(command).args(["--listen", "127.0.0.1:0", "--log-format", "json"]).args(flags);
        server.env_clear();
        server.envs(settings.iter().map(|(key, value)| (format!("BLIP__{key}"), *value)));
        let mut child = server.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        let handle = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let stderr = child.stderr.take().expect("it is piped");
        let (tell, ended) = watch::channel(None);
        let waiter = std::thread::spawn(move || {
            let status = child.wait().expect("a child can be waited for");
            tell.send_replace(Some(status));
        });
        let (found, address) = mpsc::channel();
        let log = std::thread::spawn(move || read_log(stderr, keep, &found));
        // From here on a panic kills it.
        let mut process = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            pid,
            handle,
            ended,
            waiter: Some(waiter),
            log: Some(log),
            start_time: Duration::ZERO,
        };
        match address.recv_timeout(START_LIMIT) {
            Ok(address) => process.address = address,
            Err(error) => panic!("the server does not listen ({error}):\n{}", process.last_words()),
        }
        process.start_time = began.elapsed();
        process
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From its start until it listened, ready.
    pub(crate) fn start_time(&self) -> Duration {
        self.start_time
    }

    /// What it takes now.
    pub(crate) fn usage(&self) -> Usage {
        let descriptors = format!("/proc/{}/fd", self.pid.as_raw_nonzero());
        Usage {
            rss: self.status("VmRSS:") << 10,
            descriptors: std::fs::read_dir(descriptors).unwrap().count(),
            threads: self.status("Threads:") as usize,
        }
    }

    /// Most bytes of memory that were resident at a time.
    pub(crate) fn peak_rss(&self) -> u64 {
        self.status("VmHWM:") << 10
    }

    fn status(&self, field: &str) -> u64 {
        memory::status(&self.pid.as_raw_nonzero().to_string(), field).unwrap()
    }

    /// Leaves it so many bytes of address space beside what it has now: larger allocations fail from here on.
    pub(crate) fn limit_address_space(&self, bytes: u64) {
        let most = (self.status("VmSize:") << 10) + bytes;
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        prlimit(Some(self.pid), Resource::As, limit).unwrap();
    }

    /// Sends a signal; one that has ended does not mind.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.handle, signal);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it has not ended within `limit`.
    pub(crate) async fn wait(&mut self, limit: Duration) -> ExitStatus {
        let ended = tokio::time::timeout(limit, self.ended.wait_for(Option::is_some)).await;
        ended.expect("the server ends in time").expect("the waiter tells").expect("it has ended")
    }

    /// The kept lines of the log of a server that has ended.
    pub(crate) async fn finish(mut self, limit: Duration) -> (ExitStatus, Vec<String>) {
        let status = self.wait(limit).await;
        let log = self.log.take().expect("it is taken once");
        let lines = tokio::task::spawn_blocking(move || log.join()).await.unwrap();
        (status, lines.expect("the log is read to its end"))
    }

    /// SIGTERM has to end it well.
    pub(crate) async fn stop(self) {
        self.signal(Signal::TERM);
        let (status, log) = self.finish(Duration::from_secs(30)).await;
        assert_eq!(status.code(), Some(0), "{}", log.join("\n"));
    }

    /// Kills it; the end of its log.
    fn last_words(&mut self) -> String {
        self.signal(Signal::KILL);
        self.log.take().and_then(|log| log.join().ok()).unwrap_or_default().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        if let Some(waiter) = self.waiter.take() {
            let _ = waiter.join();
        }
    }
}

/// Reads a log to its end; tells the address once it is there.
fn read_log(stderr: ChildStderr, keep: Keep, found: &mpsc::Sender<SocketAddr>) -> Vec<String> {
    let mut lines = Vec::new();
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if let Some((_, rest)) = line.split_once("listening on http://") {
            let end = rest.find(['"', ' ']).unwrap_or(rest.len());
            // Nobody may be waiting any more.
            let _ = found.send(rest[..end].parse().expect("an address"));
        }
        lines.push(line);
        if keep == Keep::Tail && lines.len() > 2 * TAIL {
            lines.drain(..TAIL);
        }
    }
    lines
}
