//! A server with the shim in front of the C library, as a process of its own.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::control::{Control, Fault};
use super::requests::{Reply, get};
use super::settled;

/// Far above the time that any of these servers needs to start, to answer or to end.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// A server that may be unable to log its address is looked for after this time.
const UNSEEN: Duration = Duration::from_secs(5);

/// The shim as a library, compiled once for all tests of this process.
static SHIM: LazyLock<PathBuf> = LazyLock::new(|| {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/robustness/nth_failure/shim.rs");
    let library = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("nth_failure_shim_{}.so", std::process::id()));
    // The compiler beside the cargo that built this test.
    let status = Command::new(Path::new(env!("CARGO")).with_file_name("rustc"))
        .args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "nth_failure_shim"])
        .args(["-O", "-C", "panic=abort", "-o"])
        .args([&library, &source])
        .status();
    assert!(status.is_ok_and(|status| status.success()), "the shim cannot be compiled");
    library
});

/// How a server is started.
#[derive(Debug, Clone, Default)]
pub(super) struct Launch {
    pub(super) arguments: Vec<String>,
    /// `SECTION__KEY` and value.
    pub(super) settings: Vec<(String, String)>,
    pub(super) trace: bool,
}

impl Launch {
    /// The mock models without latency, and no cache that could answer instead of a decoder or a model.
    pub(super) fn mock() -> Self {
        let arguments = ["mock", "--unit-us", "0", "--image-us", "0", "--token-us", "0"];
        Self::with(&arguments, &[])
    }

    /// A command and settings, on top of those that every server here has.
    pub(super) fn with(arguments: &[&str], settings: &[(&str, &str)]) -> Self {
        let common = [
            ("SERVER__LISTEN", "127.0.0.1:0"),
            ("LOG__FORMAT", "text"),
            ("IMAGES__PIXEL_CACHE_BYTES", "0"),
            ("ENGINE__FEATURE_CACHE_BYTES", "0"),
            // Whatever is cut short must end soon.
            ("SERVER__HEADER_READ_TIMEOUT_MS", "2000"),
            ("SERVER__BODY_IDLE_TIMEOUT_MS", "2000"),
            ("SERVER__WRITE_TIMEOUT_MS", "2000"),
        ];
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Self {
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            settings: common.iter().chain(settings).map(own).collect(),
            trace: false,
        }
    }
}

enum Event {
    Listens(SocketAddr),
    Ended(ExitStatus),
}

/// How a server ended by itself.
#[derive(Debug)]
pub(super) struct End {
    pub(super) status: ExitStatus,
    pub(super) log: String,
}

/// A running server, killed when dropped.
pub(super) struct Server {
    pub(super) control: Control,
    pub(super) address: SocketAddr,
    /// Names this process and no later one with its number.
    handle: OwnedFd,
    events: Receiver<Event>,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts a server in which nothing fails.
    pub(super) fn start(launch: &Launch) -> Self {
        match Self::try_start(launch, Control::new(), None) {
            Ok(server) => {
                // The listener is there before the router. The first answer says that both are.
                let ready = settled::ask(&server, &get("/health/ready"));
                assert!(matches!(ready, Reply::Whole { status: 200, .. }), "{ready:?}");
                server
            }
            Err((_, end)) => panic!("the server does not start: {end:?}"),
        }
    }

    /// Starts a server. With a fault, calls count from the beginning of the process.
    ///
    /// # Errors
    /// How it ended, and its control block.
    pub(super) fn try_start(
        launch: &Launch,
        control: Control,
        fault: Option<Fault>,
    ) -> Result<Self, (Control, End)> {
        if let Some(fault) = fault {
            control.arm(fault);
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_blip-server"));
        command.args(&launch.arguments).env_clear().env("PATH", "/usr/bin:/bin");
        command.envs(launch.settings.iter().map(|(key, value)| (format!("BLIP__{key}"), value)));
        command.env("LD_PRELOAD", &*SHIM).env("NTH_CONTROL", control.path());
        if launch.trace {
            command.env("NTH_TRACE", "1");
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let handle = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let stderr = child.stderr.take().expect("it is piped");
        let (sender, events) = channel();
        let log = Arc::<Mutex<String>>::default();
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            read_log(BufReader::new(stderr), &kept, &sender);
            let status = child.wait().expect("a child can be waited for");
            // The test may be over.
            let _ = sender.send(Event::Ended(status));
        });
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { control, address, handle, events, log };
        // If the fault took the log line away, the system still knows where the server listens, be it ready or not.
        let may_be_mute = fault.is_some_and(|fault| fault.kind == "write");
        let mut event = server.events.recv_timeout(if may_be_mute { UNSEEN } else { PATIENCE });
        if may_be_mute && matches!(event, Err(RecvTimeoutError::Timeout)) {
            let found = listening(pid).map(Event::Listens).ok_or(RecvTimeoutError::Timeout);
            event = found.or_else(|_| server.events.recv_timeout(PATIENCE));
        }
        match event {
            Ok(Event::Listens(address)) => {
                server.address = address;
                Ok(server)
            }
            Ok(Event::Ended(status)) => {
                let log = server.log();
                let control = std::mem::replace(&mut server.control, Control::new());
                Err((control, End { status, log }))
            }
            Err(error) => {
                panic!("the server neither listens nor ends ({error}):\n{}", server.log())
            }
        }
    }

    /// Everything that it has logged.
    pub(super) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// A new connection.
    pub(super) fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// How it ended, if it ends within this time.
    pub(super) fn end_within(&mut self, limit: Duration) -> Option<End> {
        match self.events.recv_timeout(limit) {
            Ok(Event::Ended(status)) => Some(End { status, log: self.log() }),
            // The log line that was waited for in vain, late.
            Ok(Event::Listens(_)) => self.end_within(limit),
            Err(RecvTimeoutError::Timeout) => None,
            Err(error @ RecvTimeoutError::Disconnected) => panic!("{error}"),
        }
    }

    /// SIGTERM has to end it well.
    pub(super) fn stop(mut self) {
        pidfd_send_signal(&self.handle, Signal::TERM).unwrap();
        let end = self.end_within(PATIENCE);
        let end = end.unwrap_or_else(|| panic!("SIGTERM does not end it:\n{}", self.log()));
        assert_eq!(end.status.code(), Some(0), "{}", end.log);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }
}

/// Where a process listens on 127.0.0.1, as `/proc` says.
fn listening(pid: Pid) -> Option<SocketAddr> {
    let proc = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let sockets: Vec<String> = std::fs::read_dir(proc.join("fd"))
        .ok()?
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.display().to_string())
        .collect();
    let table = std::fs::read_to_string(proc.join("net/tcp")).ok()?;
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let (_, port) = local.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let listens = *state == "0A" && sockets.contains(&format!("socket:[{inode}]"));
        listens.then(|| SocketAddr::from(([127, 0, 0, 1], port)))
    })
}

/// Reads a log to its end, and tells the address of the listener.
fn read_log(mut reader: impl BufRead, log: &Mutex<String>, events: &Sender<Event>) {
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&line).into_owned();
        for scheme in [" listening on http://", " listening on https://"] {
            if let Some((_, rest)) = text.split_once(scheme) {
                let address = rest.split_whitespace().next().unwrap_or_default();
                if let Ok(address) = address.parse() {
                    // The test may be over.
                    let _ = events.send(Event::Listens(address));
                }
            }
        }
        log.lock().unwrap().push_str(&text);
        line.clear();
    }
}
