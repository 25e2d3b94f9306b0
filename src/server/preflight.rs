//! Everything that can be known to be wrong before the first shard starts.
//!
//! The runtime below panics, or quietly does the wrong thing, where the kernel, the limits or the file
//! system fall short. So each need is tried here first, the way it will be used, and a refusal is one
//! sentence that says what to change. What was taken on the way (the lock of the data directory, the
//! listening socket) is handed on in [`Preflight`], so that a check that passed stays passed.
//!
//! Left to the caller: a data directory of a newer format, which only the manifest can tell.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::CapabilitySet;

use super::cpu::UsableCpus;
use super::device;
use super::lock::{DataDirLock, LOCK_FILE, LockError};
use crate::base::PAGE_SIZE;
use crate::config::{Config, ConfigError, ShardMemory, rough_size};
use crate::env::glommio::{Locked, once_lockable};

/// Oldest kernel whose io_uring has what the runtime asks for.
const KERNEL_MIN: (u32, u32) = (5, 8);

/// The runtime refuses to start an executor below this limit.
const MEMLOCK_BYTES_MIN: u64 = 512 << 10;

/// Connections the kernel keeps for us until they are accepted; it caps the figure at
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Open files that are neither a client's nor a table's: rings, logs, manifest, standard streams.
const FILES_RESERVED: u64 = 64;
const FILES_RESERVED_PER_SHARD: u64 = 24;

/// A server for fewer clients than this is not worth starting.
const CONNECTIONS_MIN: u64 = 16;

/// What start-up found out and took hold of.
#[derive(Debug)]
pub struct Preflight {
    /// The CPU of each shard, in shard order; distinct unless oversubscribed.
    pub cpus: Vec<usize>,
    /// One shard's memory.
    pub memory: ShardMemory,
    /// What its executor, and each other, locks.
    pub locked: Locked,
    /// Reads that a shard has under way at a time, as the device allows.
    pub reads_max: usize,
    /// Connections at a time: what was configured, or what the limit of open files leaves of it.
    pub connections_max: usize,
    /// The socket clients connect to, listening.
    pub listener: TcpListener,
    /// Where `listener` listens: the configured address, with the port that was picked for port 0.
    pub address: SocketAddr,
    /// The sockets of the shards as nodes of a cluster, listening, in shard order; none without a cluster.
    pub nodes: Vec<(TcpListener, SocketAddr)>,
    /// Keeps other processes out of the data directory while it lives.
    pub lock: DataDirLock,
}

/// Why the server can't start here. Each is one line that says what to change.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// A flag that can't be used, here.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel lacks what io_uring needs.
    #[error(
        "Linux {release} is older than {}.{}, the first kernel whose io_uring can be used; upgrade the kernel",
        KERNEL_MIN.0, KERNEL_MIN.1
    )]
    KernelTooOld {
        /// What `uname -r` says.
        release: String,
    },
    /// io_uring exists and this process may not use it.
    #[error("io_uring is forbidden to this process ({}) by {by}", reason(.error))]
    IoUringForbidden {
        /// What the kernel said.
        error: io::Error,
        /// Who forbids it, and how to change that.
        by: &'static str,
    },
    /// The kernel was built without io_uring, or hides it.
    #[error(
        "io_uring is missing here ({}); use a kernel built with CONFIG_IO_URING, and no sandbox that \
         hides it (gVisor does)",
        reason(.error)
    )]
    IoUringMissing {
        /// What the kernel said.
        error: io::Error,
    },
    /// Any other failure of the first ring.
    #[error("io_uring can't be used: io_uring_setup failed ({error}){}", advice(.error))]
    IoUringFailed {
        /// What the kernel said.
        error: io::Error,
    },
    /// Too little memory may be locked.
    #[error(
        "the limit of locked memory, {}, is less than the {} that io_uring needs; raise it: ulimit -l 65536, \
         LimitMEMLOCK=64M in a systemd unit, or docker run --ulimit memlock=67108864",
        rough_size(*.limit), rough_size(*.needed)
    )]
    MemlockTooLow {
        /// The hard limit in bytes.
        limit: u64,
        /// The least that is of use.
        needed: u64,
    },
    /// Too few files may be open.
    #[error(
        "the limit of open files, {limit}, is less than the {needed} that {shards} shard(s) need; raise it: \
         ulimit -n 65536, or LimitNOFILE=65536 in a systemd unit"
    )]
    TooFewFiles {
        /// The hard limit.
        limit: u64,
        /// The least that is of use.
        needed: u64,
        /// Shards.
        shards: usize,
    },
    /// More shards than CPUs.
    #[error("--cores {cores} is more than {usable}; lower it, or pass --oversubscribe")]
    TooManyCores {
        /// Shards wanted.
        cores: usize,
        /// What there is.
        usable: Usable,
    },
    /// The data directory can't be used as one.
    #[error("data directory {}: can't {action} ({}); {fix}", .dir.display(), reason(.error))]
    DataDir {
        /// The directory.
        dir: PathBuf,
        /// What failed.
        action: &'static str,
        /// What the kernel said.
        error: io::Error,
        /// What to do.
        fix: String,
    },
    /// Another process has the data directory.
    #[error(
        "data directory {} is in use by {}; stop that server, or pass another --data-dir",
        .dir.display(), owner(*.pid)
    )]
    DataDirInUse {
        /// The directory.
        dir: PathBuf,
        /// The process that has it, if its lock file tells.
        pid: Option<u32>,
    },
    /// A file system on which files can't be read and written past the page cache.
    #[error(
        "data directory {}: its file system refuses O_DIRECT ({}); pass a --data-dir on a disk with \
         ext4, xfs or btrfs",
        .dir.display(), reason(.error)
    )]
    NoDirectIo {
        /// The directory.
        dir: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// Somebody listens there already.
    #[error(
        "--{flag} {address}: the address is in use; stop the process that has it, or pass another --{flag}"
    )]
    AddressInUse {
        /// What said so.
        flag: &'static str,
        /// Where we wanted to listen.
        address: SocketAddr,
    },
    /// No interface of this machine has the address.
    #[error(
        "--{flag} {address}: no interface of this machine has this address; pass one that does, or 0.0.0.0 for all"
    )]
    AddressNotAvailable {
        /// What said so.
        flag: &'static str,
        /// Where we wanted to listen.
        address: SocketAddr,
    },
    /// A port that ordinary users can't have.
    #[error("--{flag} {address}: this user may not listen on port {}; pass a port from 1024 up, or grant CAP_NET_BIND_SERVICE", .address.port())]
    AddressForbidden {
        /// What said so.
        flag: &'static str,
        /// Where we wanted to listen.
        address: SocketAddr,
    },
    /// Any other failure to listen.
    #[error("--{flag} {address}: {}; pass another --{flag}", reason(.error))]
    Listen {
        /// What said so.
        flag: &'static str,
        /// Where we wanted to listen.
        address: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// Ports end before the shards do.
    #[error(
        "--cluster-port {first}: {shards} nodes need a port each, and the last one is 65535; pass a lower one"
    )]
    TooFewPorts {
        /// That of the first node.
        first: u16,
        /// Shards.
        shards: usize,
    },
}

/// What CPU time there is, as [`PreflightError::TooManyCores`] tells it.
#[derive(Debug)]
pub struct Usable(UsableCpus);

impl std::fmt::Display for Usable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let UsableCpus { allowed, parallelism } = &self.0;
        let plural = if *parallelism == 1 { "" } else { "s" };
        match self.0.is_quota_bound() {
            false => write!(f, "the {parallelism} CPU{plural} this process may use ({allowed})"),
            true => write!(
                f,
                "the time of {parallelism} CPU{plural} that its cgroup's CPU quota allows this process \
                 (on CPUs {allowed})"
            ),
        }
    }
}

/// What to do about a ring or an executor that could not be made.
pub(super) fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => {
            "; other processes of this user hold the memory that it may lock: end them, or raise the limit: \
             ulimit -l 65536, or LimitMEMLOCK=64M in a systemd unit"
        }
        _ => "",
    }
}

/// What an error says, without the number that the standard library adds.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error ").next().unwrap_or(&text).to_string()
}

fn owner(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_string(), |pid| format!("process {pid}"))
}

/// Tries everything that `config` needs here. Raises the soft limits of locked memory and open files to
/// the hard ones, and leaves the listener listening: clients that connect from now on wait until they are
/// accepted.
pub fn check(config: &Config) -> Result<Preflight, PreflightError> {
    outlive_file_size_limit();
    check_kernel(&rustix::system::uname().release().to_string_lossy())?;
    check_io_uring()?;
    let cpus = choose_cpus(config.cores, config.oversubscribe, UsableCpus::detect())?;
    let memory = config.shard_memory(cpus.len())?;
    let io_bytes = memory.io_buffers as usize;
    let locked = choose_locked(raise_limit(Resource::Memlock), may_lock_all(), cpus.len(), io_bytes)?;
    let connections_max =
        derive_connections(config.connections_max, cpus.len(), raise_limit(Resource::Nofile))?;
    let lock = open_data_dir(&config.data_dir)?;
    check_direct_io(&config.data_dir)?;
    let reads_max = device::reads_max(&config.data_dir, cpus.len());
    let (listener, address) = listen(config.listen, "listen")?;
    let nodes = match &config.cluster {
        Some(cluster) => listen_as_nodes(config.listen, cluster.port, cpus.len())?,
        None => Vec::new(),
    };
    tracing::info!(
        ?cpus,
        ?memory,
        ?locked,
        reads_max,
        connections_max,
        "everything that start-up needs is there"
    );
    Ok(Preflight { cpus, memory, locked, reads_max, connections_max, listener, address, nodes, lock })
}

/// Has a write beyond the limit of file sizes (`ulimit -f`) fail, as any other write may, and not end the process
/// without a word.
fn outlive_file_size_limit() {
    // The flag is of no interest, and without it the server only says less before it ends.
    if let Err(error) = signal_hook::flag::register(libc::SIGXFSZ, Arc::default()) {
        tracing::warn!("a limit of file sizes would end this process: {error}");
    }
}

/// Refuses a kernel release (as `uname -r` prints it) that is too old. One that can't be read is let
/// through: trying io_uring comes next.
pub fn check_kernel(release: &str) -> Result<(), PreflightError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        tracing::warn!(release, "can't read the kernel's version");
        return Ok(());
    };
    if (major, minor) < KERNEL_MIN {
        return Err(PreflightError::KernelTooOld { release: release.to_string() });
    }
    Ok(())
}

/// Sets up a ring, and drops it again.
fn check_io_uring() -> Result<(), PreflightError> {
    let result = once_lockable(|| {
        let mut params = rustix::io_uring::io_uring_params::default();
        // SAFETY: without flags the call reads and writes nothing but `params`, and the ring that it returns
        // is closed without ever being mapped or entered.
        Ok(unsafe { rustix::io_uring::io_uring_setup(2, &mut params) }?)
    });
    let sysctl = || fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    result.map(drop).map_err(|error| explain_io_uring(error, &sysctl()))
}

/// What a failed `io_uring_setup` means, given the sysctl `kernel.io_uring_disabled` (empty where the
/// kernel has none).
fn explain_io_uring(error: io::Error, sysctl: &str) -> PreflightError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => PreflightError::IoUringForbidden {
            error,
            by: match sysctl.trim() {
                "1" => {
                    "kernel.io_uring_disabled = 1; run: sysctl kernel.io_uring_disabled=0, or put this user \
                     into the group kernel.io_uring_group names"
                }
                "2" => "kernel.io_uring_disabled = 2; run: sysctl kernel.io_uring_disabled=0",
                _ => {
                    "a seccomp filter or security module; allow it: docker run --security-opt \
                     seccomp=unconfined (or a profile with io_uring_setup, io_uring_enter and \
                     io_uring_register), or SystemCallFilter=@aio in a systemd unit"
                }
            },
        },
        Some(libc::ENOSYS) => PreflightError::IoUringMissing { error },
        _ => PreflightError::IoUringFailed { error },
    }
}

/// Raises a soft limit to the hard one, and tells what then holds. `None`: no limit.
fn raise_limit(resource: Resource) -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(resource);
    if current == maximum {
        return current;
    }
    // Allowed to everyone; where it fails all the same, the soft limit is what holds.
    match setrlimit(resource, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(_) => current,
    }
}

/// Whether no limit of locked memory holds for this process.
fn may_lock_all() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
}

/// What each executor of `shards` shards locks. The runtime looks at the limit even where it does not hold.
fn choose_locked(
    limit: Option<u64>,
    is_exempt: bool,
    shards: usize,
    io_bytes: usize,
) -> Result<Locked, PreflightError> {
    let Some(limit) = limit else { return Ok(Locked::ample(io_bytes)) };
    if limit < MEMLOCK_BYTES_MIN {
        return Err(PreflightError::MemlockTooLow { limit, needed: MEMLOCK_BYTES_MIN });
    }
    if is_exempt {
        return Ok(Locked::ample(io_bytes));
    }
    // Those of the shards, the one that reads and writes the manifest at a start, and the one before that.
    Locked::within(limit, shards + 2, io_bytes)
        .map_err(|needed| PreflightError::MemlockTooLow { limit, needed })
}

fn choose_cpus(
    cores: Option<usize>,
    oversubscribe: bool,
    usable: UsableCpus,
) -> Result<Vec<usize>, PreflightError> {
    let shards = cores.unwrap_or(usable.parallelism);
    if shards > usable.parallelism && !oversubscribe {
        return Err(PreflightError::TooManyCores { cores: shards, usable: Usable(usable) });
    }
    Ok(usable.choose(shards))
}

/// How many connections `files` open files allow beside the server's own. Tables may take half of them:
/// each is open while it is live.
fn derive_connections(wanted: usize, shards: usize, files: Option<u64>) -> Result<usize, PreflightError> {
    let Some(limit) = files else { return Ok(wanted) };
    let reserved = FILES_RESERVED + FILES_RESERVED_PER_SHARD * shards as u64;
    let left = limit.saturating_sub(reserved) / 2;
    if left < CONNECTIONS_MIN {
        return Err(PreflightError::TooFewFiles { limit, needed: reserved + 2 * CONNECTIONS_MIN, shards });
    }
    Ok(usize::try_from(left).map_or(wanted, |left| wanted.min(left)))
}

/// Makes the directory if need be, and takes its lock, which also shows that it can be written.
fn open_data_dir(dir: &Path) -> Result<DataDirLock, PreflightError> {
    let uid = rustix::process::geteuid().as_raw();
    let refused = |action, error: io::Error| {
        let fix = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                format!(
                    "give it to user {uid} (chown -R {uid} {}), or pass another --data-dir",
                    dir.display()
                )
            }
            io::ErrorKind::ReadOnlyFilesystem => "mount it writable, or pass another --data-dir".to_string(),
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                "something on this path is not a directory, pass another --data-dir".to_string()
            }
            io::ErrorKind::StorageFull => "make room, or pass another --data-dir".to_string(),
            _ => "pass another --data-dir".to_string(),
        };
        PreflightError::DataDir { dir: dir.to_path_buf(), action, error, fix }
    };
    // Only the owner: values are whatever the clients store.
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| refused("make it", error))?;
    DataDirLock::take(dir).map_err(|error| match error {
        LockError::Held(pid) => PreflightError::DataDirInUse { dir: dir.to_path_buf(), pid },
        LockError::Io(error) => refused("write its lock file", error),
    })
}

#[repr(align(4096))]
struct Page([u8; PAGE_SIZE]);

/// Writes one page past the page cache, to a file of its own that is gone afterwards.
fn check_direct_io(dir: &Path) -> Result<(), PreflightError> {
    let path = dir.join("direct-io.probe");
    let result = write_page_directly(&path);
    // Left behind by a failure it would be 4 KiB, overwritten by the next start.
    let _ = fs::remove_file(&path);
    result.map_err(|error| explain_direct_io(dir, error))
}

fn write_page_directly(path: &Path) -> io::Result<()> {
    let file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let mut page = Page([0xA5; PAGE_SIZE]);
    file.write_all_at(&page.0, 0)?;
    page.0.fill(0);
    file.read_exact_at(&mut page.0, 0)?;
    match page.0.iter().all(|&byte| byte == 0xA5) {
        true => Ok(()),
        false => Err(io::Error::other("a page read back differs from what was written")),
    }
}

fn explain_direct_io(dir: &Path, error: io::Error) -> PreflightError {
    let dir = dir.to_path_buf();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::EOPNOTSUPP) => PreflightError::NoDirectIo { dir, error },
        _ => PreflightError::DataDir {
            dir,
            action: "write a page to it",
            fix: match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room".to_string(),
                _ => "check the disk, or pass another --data-dir".to_string(),
            },
            error,
        },
    }
}

/// Listens with a long backlog. The standard library's own bind sets SO_REUSEADDR, so that a restart
/// need not wait for old connections to time out, and not SO_REUSEPORT, with which a second server would
/// share our clients instead of being refused.
fn listen(address: SocketAddr, flag: &'static str) -> Result<(TcpListener, SocketAddr), PreflightError> {
    let listener = TcpListener::bind(address).map_err(|error| explain_listen(flag, address, error))?;
    // Listening once more only changes the backlog.
    rustix::net::listen(&listener, BACKLOG).map_err(|errno| PreflightError::Listen {
        flag,
        address,
        error: errno.into(),
    })?;
    let address = listener.local_addr().unwrap_or(address);
    Ok((listener, address))
}

/// Listens for each shard as a node, on the interface of `common`.
fn listen_as_nodes(
    common: SocketAddr,
    first: Option<u16>,
    shards: usize,
) -> Result<Vec<(TcpListener, SocketAddr)>, PreflightError> {
    // Behind a free port there need not be others.
    let first = first.unwrap_or(if common.port() == 0 { 0 } else { common.port().saturating_add(1) });
    let flag = "cluster-port";
    let port_of = |shard| match first {
        0 => Ok(0),
        _ => u16::try_from(usize::from(first) + shard)
            .map_err(|_| PreflightError::TooFewPorts { first, shards }),
    };
    (0..shards).map(|shard| listen(SocketAddr::new(common.ip(), port_of(shard)?), flag)).collect()
}

fn explain_listen(flag: &'static str, address: SocketAddr, error: io::Error) -> PreflightError {
    match error.kind() {
        io::ErrorKind::AddrInUse => PreflightError::AddressInUse { flag, address },
        io::ErrorKind::AddrNotAvailable => PreflightError::AddressNotAvailable { flag, address },
        io::ErrorKind::PermissionDenied => PreflightError::AddressForbidden { flag, address },
        _ => PreflightError::Listen { flag, address, error },
    }
}

/// Whether `name`, in the data directory, is something that start-up puts there rather than data.
pub fn is_startup_file(name: &str) -> bool {
    name == LOCK_FILE || name == "direct-io.probe"
}

#[cfg(test)]
mod tests;
