//! What the server refuses to start without: each refusal is one line, exit code 1. Where the world has
//! to be worse than it is, it is made worse for the server's process only, between fork and exec.

use std::ffi::CString;
use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::{OrdinaryUser, Server, command, connect, disk_dir, is_root, refusal, start_or_refusal};

/// Lowers a limit of the process to be.
fn with_limit(mut command: Command, resource: Resource, bytes: u64) -> Command {
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    // SAFETY: the closure makes one system call and touches no memory that other threads share.
    unsafe { command.pre_exec(move || Ok(setrlimit(resource, limit)?)) };
    command
}

/// Makes `io_uring_setup` fail with `errno` in the process to be, as Docker's default profile does.
fn without_io_uring(mut command: Command, errno: i32) -> Command {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let errno = u32::try_from(errno).expect("error numbers are positive");
    let setup = u32::try_from(libc::SYS_io_uring_setup).expect("system calls have small numbers");
    let mut filter = [
        // The system call's number is the first field of what the filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter { jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, setup) },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: both calls read their arguments only, and `program` and the filter that it points to
        // outlive the second.
        unsafe {
            succeeded(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            succeeded(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program))
        }
    };
    // SAFETY: the closure makes two system calls on memory of its own.
    unsafe { command.pre_exec(install) };
    command
}

#[test]
fn it_starts_says_so_and_stops_when_told() {
    let dir = disk_dir();
    let data = dir.path().join("made/on/the/way");
    let server = Server::start(&data, &["--cores", "1"]);
    assert_eq!(server.shards, 1);
    let expected = format!("atlaskv ready: {}, 1 shard, data in {}\n", server.address, data.display());
    assert_eq!(server.ready_line, expected);
    TcpStream::connect(server.address).unwrap();
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn a_data_directory_may_be_relative() {
    let dir = disk_dir();
    let mut command = command(Path::new("./atlaskv-data"), &["--cores", "1"]);
    command.current_dir(&dir);
    let server = Server::start_command(command);
    assert!(server.ready_line.ends_with("1 shard, data in ./atlaskv-data\n"), "{}", server.ready_line);
    connect(&server).set(b"key", b"value").unwrap();
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    let server = Server::start(&dir.path().join("atlaskv-data"), &["--cores", "1"]);
    assert_eq!(connect(&server).get(b"key").unwrap().unwrap().value, b"value");
}

#[test]
fn systemd_is_told_that_it_serves_and_stops() {
    let dir = disk_dir();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let received = || {
        let mut bytes = [0; 64];
        let len = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    };
    let mut command = command(&dir.path().join("data"), &["--cores", "1"]);
    command.env("NOTIFY_SOCKET", &path);
    let server = Server::start_command(command);
    assert_eq!(received(), "READY=1\n");
    server.stop();
    assert_eq!(received(), "STOPPING=1\n");
}

#[test]
fn the_log_can_be_json() {
    let dir = disk_dir();
    let server = Server::start(dir.path(), &["--cores", "1", "--log-format", "json"]);
    let (_, log) = server.stop();
    assert!(!log.is_empty());
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(value["level"].is_string() && value["message"].is_string(), "{line}");
    }
}

#[test]
fn more_cores_than_usable_are_refused() {
    let dir = disk_dir();
    let line = refusal(command(dir.path(), &["--cores", "1000"]));
    assert!(line.starts_with("--cores 1000 is more than the "), "{line}");
    assert!(line.ends_with("; lower it, or pass --oversubscribe"), "{line}");
}

#[test]
fn the_affinity_mask_bounds_the_cores() {
    let dir = disk_dir();
    let mask = rustix::thread::sched_getaffinity(None).unwrap();
    let cpu = (0..rustix::thread::CpuSet::MAX_CPU).find(|&cpu| mask.is_set(cpu)).unwrap();
    let pinned = |arguments| {
        let mut command = command(dir.path(), arguments);
        let mut only = rustix::thread::CpuSet::new();
        only.set(cpu);
        // SAFETY: the closure makes one system call and touches no memory that other threads share.
        unsafe { command.pre_exec(move || Ok(rustix::thread::sched_setaffinity(None, &only)?)) };
        command
    };
    assert_eq!(
        refusal(pinned(&["--cores", "2"])),
        format!(
            "--cores 2 is more than the 1 CPU this process may use ({cpu}); lower it, or pass --oversubscribe"
        )
    );
    assert_eq!(Server::start_command(pinned(&[])).shards, 1);
    assert_eq!(Server::start_command(pinned(&["--cores", "2", "--oversubscribe"])).shards, 2);
}

#[test]
fn flags_that_make_no_sense_are_refused() {
    let dir = disk_dir();
    let line = refusal(command(dir.path(), &["--sync", "maybe"]));
    assert!(line.starts_with("--sync maybe: not always, interval=<milliseconds> or none"), "{line}");
    let line = refusal(command(dir.path(), &["--memory", "40MiB", "--cores", "1"]));
    assert!(line.starts_with("--memory 40MiB is less than the 80MiB that 1 shard(s)"), "{line}");
    let mut by_variable = command(dir.path(), &[]);
    by_variable.env("ATLASKV_MAX_VALUE_SIZE", "1GB");
    let line = refusal(by_variable);
    assert_eq!(line, "--max-value-size 1GB is more than the most possible, 32MiB; lower it");
}

#[test]
fn a_port_in_use_is_refused() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let dir = disk_dir();
    assert_eq!(
        refusal(command(dir.path(), &["--cores", "1", "--listen", &address])),
        format!(
            "--listen {address}: the address is in use; stop the process that has it, or pass another --listen"
        )
    );
}

#[test]
fn a_second_server_on_the_port_of_the_first_is_refused() {
    let (first_dir, second_dir) = (disk_dir(), disk_dir());
    let first = Server::start(first_dir.path(), &["--cores", "1"]);
    let address = first.address.to_string();
    let line = refusal(command(second_dir.path(), &["--cores", "1", "--listen", &address]));
    assert!(line.contains("the address is in use"), "{line}");
}

#[test]
fn an_address_of_no_interface_is_refused() {
    let dir = disk_dir();
    // Reserved for documentation.
    let line = refusal(command(dir.path(), &["--cores", "1", "--listen", "192.0.2.1:7379"]));
    assert!(line.starts_with("--listen 192.0.2.1:7379: no interface of this machine has"), "{line}");
}

#[test]
fn a_privileged_port_is_refused_to_an_ordinary_user() {
    let first_free = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if first_free.trim().parse::<u16>().unwrap() < 2 {
        eprintln!("skipped: this machine lets everybody listen on every port");
        return;
    }
    let user = OrdinaryUser::new();
    let line = refusal(user.command(&["--cores", "1", "--listen", "127.0.0.1:1"]));
    assert!(line.starts_with("--listen 127.0.0.1:1: this user may not listen on port 1; "), "{line}");
}

#[test]
fn a_second_server_on_the_same_data_is_refused() {
    let dir = disk_dir();
    let mut first = Server::start(dir.path(), &["--cores", "1"]);
    let line = refusal(command(dir.path(), &["--cores", "1"]));
    let expected = format!(
        "data directory {} is in use by process {}; stop that server, or pass another --data-dir",
        dir.path().display(),
        first.pid()
    );
    assert_eq!(line, expected);
    // However the first one ends, its lock and its port end with it.
    first.kill();
    let second = Server::start(dir.path(), &["--cores", "1", "--listen", &first.address.to_string()]);
    assert_eq!(second.address, first.address);
}

#[test]
fn a_data_directory_of_another_user_is_refused() {
    if !is_root() {
        eprintln!("skipped: only root can make another user's directory");
        return;
    }
    let user = OrdinaryUser::new();
    std::os::unix::fs::chown(user.data_dir(), Some(0), Some(0)).unwrap();
    let line = refusal(user.command(&["--cores", "1"]));
    let data = user.data_dir().display().to_string();
    assert_eq!(
        line,
        format!(
            "data directory {data}: can't write its lock file (Permission denied); give it to user 65534 \
             (chown -R 65534 {data}), or pass another --data-dir"
        )
    );
}

#[test]
fn io_uring_forbidden_by_a_seccomp_filter_is_refused() {
    let dir = disk_dir();
    let line = refusal(without_io_uring(command(dir.path(), &["--cores", "1"]), libc::EPERM));
    assert!(
        line.starts_with("io_uring is forbidden to this process (Operation not permitted) by "),
        "{line}"
    );
    let line = refusal(without_io_uring(command(dir.path(), &["--cores", "1"]), libc::ENOSYS));
    assert!(line.starts_with("io_uring is missing here (Function not implemented); "), "{line}");
}

#[test]
fn too_little_locked_memory_is_refused() {
    // The runtime looks at the limit, not at who is bound by it: root would be refused as well.
    let user = OrdinaryUser::new();
    let line = refusal(with_limit(user.command(&["--cores", "1"]), Resource::Memlock, 64 << 10));
    assert!(
        line.starts_with(
            "the limit of locked memory, 64.0KiB, is less than the 512.0KiB that io_uring needs"
        ),
        "{line}"
    );
}

#[test]
fn too_few_open_files_are_refused() {
    let user = OrdinaryUser::new();
    let line = refusal(with_limit(user.command(&["--cores", "1"]), Resource::Nofile, 64));
    assert!(
        line.starts_with("the limit of open files, 64, is less than the 120 that 1 shard(s) need"),
        "{line}"
    );
}

#[test]
fn an_ordinary_user_with_8_mib_of_locked_memory_is_served() {
    let most = 8 << 20;
    if getrlimit(Resource::Memlock).maximum.is_some_and(|limit| limit < most) && !is_root() {
        eprintln!("skipped: this user may lock less than 8 MiB");
        return;
    }
    let user = OrdinaryUser::with_id(65_001);
    // Recent kernels count rings, and a start with four shards never ended for lack of memory for them.
    let small = ["--oversubscribe", "--memory", "256MiB", "--max-value-size", "1MiB"];
    for (cores, limit) in [("1", 1 << 20), ("4", most), ("8", most)] {
        let arguments: Vec<_> = ["--cores", cores].iter().chain(&small).copied().collect();
        let server = Server::start_command(with_limit(user.command(&arguments), Resource::Memlock, limit));
        let mut client = connect(&server);
        assert_eq!(client.ping(b"there?").unwrap(), b"there?");
        client.set(b"key", b"value").unwrap();
        assert_eq!(client.get(b"key").unwrap().unwrap().value, b"value");
        drop(client);
        let (status, log) = server.stop();
        assert_eq!(status.code(), Some(0), "{log}");
        // All I/O memory is registered: what does not fit is not asked for.
        assert!(!log.contains("Skipping"), "--cores {cores}: {log}");
    }
}

/// The next server waits until the kernel has cleared up behind the last one, or says who is in its way.
#[test]
fn locked_memory_is_waited_for_and_its_lack_explained() {
    if !is_root() {
        eprintln!("skipped: only root can be a user who has no other processes");
        return;
    }
    let (first, second) = (OrdinaryUser::with_id(65_002), OrdinaryUser::with_id(65_002));
    let command = |user: &OrdinaryUser, limit: u64| {
        with_limit(user.command(&["--cores", "1"]), Resource::Memlock, limit)
    };
    // It has more than the other may have.
    let server = Server::start_command(command(&first, 8 << 20));
    match start_or_refusal(command(&second, 1 << 20)) {
        Err(line) => {
            let (begin, end) =
                ("io_uring can't be used: io_uring_setup failed (Cannot allocate", "in a systemd unit");
            assert!(line.starts_with(begin) && line.ends_with(end), "{line}");
            assert!(line.contains("other processes of this user"), "{line}");
        }
        // Kernels from 5.12 on did not count rings for a while.
        Ok(server) => drop(connect(&server).set(b"key", b"value").unwrap()),
    }
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    for _ in 0..5 {
        let mut server = Server::start_command(command(&second, 1 << 20));
        connect(&server).set(b"key", b"value").unwrap();
        server.kill();
    }
}

/// Puts a ramfs on `dir`, in a mount namespace of the process to be; it goes when that goes. Who is no
/// root becomes it in a user namespace.
fn with_ramfs_on(mut command: Command, dir: &Path) -> Command {
    let target = CString::new(dir.as_os_str().as_encoded_bytes()).expect("paths hold no zero byte");
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let maps = [
        ("/proc/self/setgroups", "deny".to_string()),
        ("/proc/self/uid_map", format!("0 {uid} 1")),
        ("/proc/self/gid_map", format!("0 {gid} 1")),
    ];
    let mount = move || {
        if uid != 0 {
            // SAFETY: changes nothing but what this process, which has one thread, may do.
            succeeded(unsafe { libc::unshare(libc::CLONE_NEWUSER) })?;
            for (file, text) in &maps {
                fs::write(file, text)?;
            }
        }
        let (none, root, kind) = (c"none".as_ptr(), c"/".as_ptr(), c"ramfs".as_ptr());
        let private = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: the calls read zero-terminated strings that live as long as the closure.
        unsafe {
            succeeded(libc::unshare(libc::CLONE_NEWNS))?;
            succeeded(libc::mount(none, root, ptr::null(), private, ptr::null()))?;
            succeeded(libc::mount(none, target.as_ptr(), kind, 0, ptr::null()))
        }
    };
    // SAFETY: the closure makes system calls, and allocates nothing unless one of them fails.
    unsafe { command.pre_exec(mount) };
    command
}

fn succeeded(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn a_file_system_without_direct_io_is_refused() {
    // Not tmpfs, which takes O_DIRECT since Linux 6.6.
    let dir = disk_dir();
    let mut probe = with_ramfs_on(Command::new("true"), dir.path());
    if let Err(error) = probe.status() {
        eprintln!("skipped: a ramfs can't be mounted here ({error}); run as root, outside a container");
        return;
    }
    let line = refusal(with_ramfs_on(command(dir.path(), &["--cores", "1"]), dir.path()));
    let expected = format!(
        "data directory {}: its file system refuses O_DIRECT (Invalid argument); pass a --data-dir on a disk \
         with ext4, xfs or btrfs",
        dir.path().display()
    );
    assert_eq!(line, expected);
}

/// A data directory with some keys in it, after a clean stop.
fn stopped_store(data: &Path) {
    let server = Server::start(data, &["--cores", "1"]);
    let mut client = connect(&server);
    for number in 0..100 {
        client.set(format!("key-{number}").as_bytes(), b"value").unwrap();
    }
    drop(client);
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn data_of_a_newer_format_is_refused_and_left_alone() {
    let dir = disk_dir();
    stopped_store(dir.path());
    let current = dir.path().join("CURRENT");
    let mut bytes = fs::read(&current).unwrap();
    let older = bytes.clone();
    bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
    let crc = atlaskv::base::crc32c(&bytes[..24]);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    fs::write(&current, &bytes).unwrap();
    let line = refusal(command(dir.path(), &["--cores", "1"]));
    let what =
        "CURRENT was written by a newer version (format 2, this build reads 1); start it with that version";
    assert_eq!(line, format!("{}: {what}", dir.path().display()));
    assert_eq!(fs::read(&current).unwrap(), bytes);
    fs::write(&current, older).unwrap();
    let server = Server::start(dir.path(), &["--cores", "1"]);
    assert_eq!(connect(&server).get(b"key-99").unwrap().unwrap().value, b"value");
}

#[test]
fn a_rotten_log_is_refused_and_left_alone() {
    let dir = disk_dir();
    stopped_store(dir.path());
    let mut logs: Vec<_> = fs::read_dir(dir.path().join("wal")).unwrap().map(|e| e.unwrap().path()).collect();
    logs.sort();
    let log = &logs[0];
    let mut bytes = fs::read(log).unwrap();
    let at = bytes.windows(6).position(|window| window == b"key-50").expect("the key is in the log");
    bytes[at] ^= 1;
    fs::write(log, &bytes).unwrap();
    let line = refusal(command(dir.path(), &["--cores", "1"]));
    let name = log.file_name().unwrap().to_str().unwrap();
    assert!(line.contains(name) && line.contains("byte "), "{line}");
    assert_eq!(fs::read(log).unwrap(), bytes);
    bytes[at] ^= 1;
    fs::write(log, &bytes).unwrap();
    let server = Server::start(dir.path(), &["--cores", "2", "--oversubscribe"]);
    assert_eq!(connect(&server).get(b"key-50").unwrap().unwrap().value, b"value");
}
