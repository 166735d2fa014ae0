//! The server as a process, and what processes took, as Linux says.

use std::io::{BufRead, BufReader, Lines};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Command, Stdio};

use anyhow::{Context, bail};

use crate::arguments::Arguments;

/// Clock ticks of a second in `/proc/PID/stat`: 100 on every architecture that Linux shows them to (`USER_HZ`).
const TICKS: f64 = 100.0;

/// A server that is ended when this is dropped.
pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
}

/// What a process took up to now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Seconds of CPU, all threads, user and system.
    pub(crate) cpu: f64,
    /// Most memory that was resident at a time.
    pub(crate) peak_bytes: u64,
}

impl Server {
    /// Starts the server that was built with this on a free port; returns when it is ready.
    pub(crate) fn start(arguments: &Arguments) -> anyhow::Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blip-server"));
        command.args(["--listen", "127.0.0.1:0", "--log-format", "text"]).env_clear();
        command.args(arguments.models.iter().flat_map(|model| ["--model", model]));
        command.args(arguments.dtype.iter().flat_map(|dtype| ["--dtype", dtype]));
        if let Some(threads) = arguments.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        for setting in &arguments.settings {
            let (key, value) = setting.split_once('=').context("--set takes SECTION__KEY=VALUE")?;
            command.env(format!("BLIP__{key}"), value);
        }
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let log = child.stderr.take().context("the server has no standard error")?;
        let mut lines = BufReader::new(log).lines();
        let address = address_in(&mut lines);
        // Read to its end, or the server would wait for room.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { address: address.inspect_err(|_| _ = child.kill())?, child })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it took up to now.
    pub(crate) fn usage(&self) -> Option<Usage> {
        Usage::of(&self.child.id().to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        // One that has ended by itself cannot be told to.
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Reads the log to the line that says that the server listens.
fn address_in(lines: &mut Lines<BufReader<ChildStderr>>) -> anyhow::Result<SocketAddr> {
    let mut log = String::new();
    for line in lines {
        let line = line?;
        if let Some((_, rest)) = line.split_once("listening on http://") {
            let address = rest.split_whitespace().next().unwrap_or_default();
            return address.parse().with_context(|| format!("{address} is no address"));
        }
        log = log + &line + "\n";
    }
    bail!("the server ended:\n{log}")
}

impl Usage {
    /// `None` on systems without `/proc`.
    pub(crate) fn of_this_process() -> Option<Self> {
        Self::of("self")
    }

    fn of(process: &str) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name, in parentheses, may hold anything; the third field follows it (proc(5)).
        let (_, rest) = stat.rsplit_once(')')?;
        let ticks: Vec<f64> = rest
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse().ok())
            .collect();
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kilobytes: u64 = peak.split_whitespace().next()?.parse().ok()?;
        Some(Self { cpu: ticks.iter().sum::<f64>() / TICKS, peak_bytes: kilobytes * 1024 })
    }
}
