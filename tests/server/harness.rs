//! Starts the real server, waits until it says that it serves, and never leaves one behind.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use atlaskv::client::{Client, Config, Error};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

/// The server under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_atlaskv");

/// "nobody" on every Linux: the user that tests become when they are root and need not to be.
pub const ORDINARY_USER: u32 = 65_534;

/// Longer than any start takes; a server that hangs must fail the test, not stop it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory on a disk, which `/tmp` need not be. Gone when dropped.
pub fn disk_dir() -> TempDir {
    tempfile::Builder::new().prefix("atlaskv-test-").tempdir_in("/var/tmp").expect("/var/tmp is writable")
}

/// The server with its data in `data_dir`, on a port of its own, with little memory, and with nothing from
/// the environment of the tests. A flag in `arguments` wins over these.
pub fn command(data_dir: &Path, arguments: &[&str]) -> Command {
    command_of(Path::new(BINARY), data_dir, arguments)
}

fn command_of(binary: &Path, data_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        let of_server = name.as_encoded_bytes().starts_with(b"ATLASKV_");
        if of_server || name == OsStr::new("RUST_LOG") || name == OsStr::new("RUST_BACKTRACE") {
            command.env_remove(name);
        }
    }
    command.arg("--data-dir").arg(data_dir);
    for (flag, default) in [("--listen", "127.0.0.1:0"), ("--memory", "256MiB")] {
        if !arguments.iter().any(|argument| argument.split('=').next() == Some(flag)) {
            command.args([flag, default]);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A running server that has said it is ready. Killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Where it serves.
    pub address: SocketAddr,
    /// Shards, as it says.
    pub shards: usize,
    /// The line it said it with.
    pub ready_line: String,
    /// Sockets that it has open without a client.
    pub sockets: usize,
    stderr: PathBuf,
    _stderr_dir: TempDir,
}

impl Server {
    /// Starts a server with its data in `data_dir` and waits until it serves.
    pub fn start(data_dir: &Path, arguments: &[&str]) -> Server {
        Server::start_command(command(data_dir, arguments))
    }

    /// Starts `command`, made by [`command`], and waits until it serves. Panics with all that it said if
    /// it ends instead.
    pub fn start_command(command: Command) -> Server {
        Server::try_start_command(command).unwrap_or_else(|(status, said)| {
            panic!("the server is not ready: it ended with {status:?}, and logged:\n{said}")
        })
    }

    /// Starts `command` and waits until it serves. `Err` is how it ended instead, and what it said.
    pub fn try_start_command(mut command: Command) -> Result<Server, (ExitStatus, String)> {
        let stderr_dir = tempfile::tempdir().expect("a temporary directory");
        let stderr = stderr_dir.path().join("stderr");
        let file = File::create(&stderr).expect("a file for standard error");
        let mut child =
            command.stdout(Stdio::piped()).stderr(file).spawn().expect("the server's process starts");
        let stdout = child.stdout.take().expect("standard output is piped");
        let (sender, line) = mpsc::channel();
        // Reads on after the first line, so that the pipe never fills up.
        thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = String::new();
            // An unreadable line is an empty one, and that fails below.
            let _ = reader.read_line(&mut line);
            let _ = sender.send(line);
            let _ = io::copy(&mut reader, &mut io::sink());
        });
        let line = line.recv_timeout(PATIENCE).unwrap_or_default();
        let Some((address, shards)) = parse_ready(&line) else {
            // It has closed its output and ends, or has said nothing for a minute.
            let status = if line.is_empty() { ended(&mut child) } else { None }.unwrap_or_else(|| {
                let _ = child.kill();
                child.wait().expect("our own child can be waited for")
            });
            return Err((status, fs::read_to_string(&stderr).unwrap_or_default()));
        };
        let sockets = open_sockets(child.id()).expect("it runs");
        Ok(Server { child, address, shards, ready_line: line, sockets, stderr, _stderr_dir: stderr_dir })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("our own child can be signalled");
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("our own child can be killed");
        self.child.wait().expect("our own child can be waited for");
    }

    /// Asks it to stop, and waits until it did. Panics if it does not within a minute.
    pub fn stop(mut self) -> (ExitStatus, String) {
        self.signal(Signal::TERM);
        let status = self.wait();
        (status, self.log())
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the server logged:\n{}", self.log());
        }
    }
}

/// A client of `server`.
pub fn connect(server: &Server) -> Client {
    try_connect(server.address).expect("the server serves")
}

/// A client that tries everything once.
pub fn try_connect(address: SocketAddr) -> Result<Client, Error> {
    Client::connect(Config { retries: 0, ..Config::new(&address.to_string()) })
}

/// The seed of a random test: a new one, or that of `ATLASKV_TEST_SEED`. Printed with how to repeat it.
pub fn seed(test: &str) -> u64 {
    let given = std::env::var("ATLASKV_TEST_SEED").ok();
    let seed = given.map_or_else(|| fastrand::u64(..1 << 32), |text| text.parse().expect("a number"));
    println!("to repeat: ATLASKV_TEST_SEED={seed} cargo test --test server {test}");
    seed
}

/// Waits until `holds`, a minute at most. For what can't be awaited: the state of another process.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// How many sockets a process has open; `None` when it is gone.
pub fn open_sockets(pid: u32) -> Option<usize> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let links = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    Some(links.filter(|link| link.as_os_str().as_encoded_bytes().starts_with(b"socket:")).count())
}

/// Waits for the end of a child, a minute at most.
fn wait(child: &mut Child) -> ExitStatus {
    // Killed by the drop of whoever owns it.
    ended(child).unwrap_or_else(|| panic!("process {} does not end", child.id()))
}

/// How a child ended; `None` if it does not within a minute.
fn ended(child: &mut Child) -> Option<ExitStatus> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).expect("our own child exists");
    let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    let count =
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)).expect("a valid descriptor");
    (count == 1).then(|| child.wait().expect("our own child can be waited for"))
}

/// Starts a server that may refuse to: `Err` is the line that it refused with, as [`refusal`] has it. Anything
/// else, a panic above all, fails.
pub fn start_or_refusal(command: Command) -> Result<Server, String> {
    Server::try_start_command(command).map_err(|(status, said)| own_line(status, &said))
}

/// The one line `atlaskv: …` of a refusal, without that prefix.
fn own_line(status: ExitStatus, said: &str) -> String {
    assert_eq!(status.code(), Some(1), "{status}: {said}");
    let own: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("atlaskv: ")).collect();
    assert_eq!(own.len(), 1, "{said}");
    assert!(said.ends_with(&format!("atlaskv: {}\n", own[0])), "{said}");
    own[0].to_string()
}

/// `atlaskv ready: 127.0.0.1:7379, 2 shards, data in ./atlaskv-data`
fn parse_ready(line: &str) -> Option<(SocketAddr, usize)> {
    let mut parts = line.strip_prefix("atlaskv ready: ")?.trim_end().splitn(3, ", ");
    let address = parts.next()?.parse().ok()?;
    let shards = parts.next()?.split(' ').next()?.parse().ok()?;
    parts.next()?.starts_with("data in ").then_some((address, shards))
}

/// Runs a server that must refuse to start: exit code 1, nothing on standard output, and one line
/// `atlaskv: …` as the last on standard error, which is returned without that prefix.
pub fn refusal(mut command: Command) -> String {
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the server's process starts");
    let mut said = String::new();
    let stdout = child.stdout.take().expect("standard output is piped");
    // Ends with the process, or with the ready line of one that started all the same.
    let _ = BufReader::new(stdout).read_line(&mut said);
    if !said.is_empty() {
        let _ = child.kill();
        let _ = child.wait();
        panic!("the server started: {said}");
    }
    let status = wait(&mut child);
    let mut stderr = String::new();
    let mut pipe = child.stderr.take().expect("standard error is piped");
    pipe.read_to_string(&mut stderr).expect("standard error is text");
    own_line(status, &stderr)
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A place where an ordinary user can run the server: the binary and a data directory, both reachable
/// for it wherever the source tree is.
pub struct OrdinaryUser {
    dir: TempDir,
    id: u32,
}

impl OrdinaryUser {
    /// Makes the place.
    pub fn new() -> OrdinaryUser {
        OrdinaryUser::with_id(ORDINARY_USER)
    }

    /// Of a user who has no other processes, if this one is root: some limits are about all of them together.
    pub fn with_id(id: u32) -> OrdinaryUser {
        let dir = disk_dir();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("our own directory");
        let binary = dir.path().join("atlaskv");
        if fs::hard_link(BINARY, &binary).is_err() {
            fs::copy(BINARY, &binary).expect("/var/tmp has room for the binary");
        }
        fs::create_dir(dir.path().join("data")).expect("our own directory");
        if is_root() {
            let data = dir.path().join("data");
            chown(&data, Some(id), Some(id)).expect("root may give files away");
        }
        OrdinaryUser { dir, id }
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// As [`command`], as that user. Tests that are no root stay who they are: an ordinary user.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command_of(&self.dir.path().join("atlaskv"), &self.data_dir(), arguments);
        command.current_dir(self.dir.path());
        if is_root() {
            command.uid(self.id).gid(self.id);
        }
        command
    }
}
