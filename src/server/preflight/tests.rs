use super::super::cpu::CpuList;
use super::*;

fn line(error: &PreflightError) -> String {
    let line = error.to_string();
    assert!(!line.contains('\n'), "{line}");
    line
}

fn os_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

fn usable(list: &str, parallelism: usize) -> UsableCpus {
    UsableCpus { allowed: CpuList::parse(list).unwrap(), parallelism }
}

#[test]
fn kernels_before_5_8_are_refused() {
    for release in ["5.7.19", "4.19.0-26-amd64", "3.10.0-1160.el7.x86_64", "5.4.0-1.fc31"] {
        let error = check_kernel(release).unwrap_err();
        assert!(line(&error).starts_with(&format!("Linux {release} is older than 5.8, ")), "{error}");
        assert!(line(&error).ends_with("upgrade the kernel"));
    }
    for release in ["5.8", "5.8.0-63-generic", "5.10.0-30-amd64", "6.18.44", "10.0-rc1", "homemade"] {
        check_kernel(release).unwrap();
    }
    check_kernel(&rustix::system::uname().release().to_string_lossy()).unwrap();
}

#[test]
fn io_uring_refusals_name_who_refuses() {
    let by = |code, sysctl| line(&explain_io_uring(os_error(code), sysctl));
    assert!(by(libc::EPERM, "0\n").contains("seccomp"));
    assert!(by(libc::EPERM, "").contains("docker run --security-opt"));
    assert!(by(libc::EPERM, "1\n").contains("kernel.io_uring_group"));
    assert!(by(libc::EPERM, "2\n").ends_with("run: sysctl kernel.io_uring_disabled=0"));
    assert!(by(libc::ENOSYS, "").starts_with("io_uring is missing here"));
    assert!(by(libc::ENOMEM, "").contains("Cannot allocate memory"));
    check_io_uring().unwrap();
}

#[test]
fn locked_memory_below_half_a_mebibyte_is_refused() {
    assert!(
        line(&choose_locked(Some(64 << 10), true, 1, 1 << 20).unwrap_err()).starts_with(
            "the limit of locked memory, 64.0KiB, is less than the 512.0KiB that io_uring needs"
        )
    );
    assert!(choose_locked(Some(512 << 10), false, 1, 1 << 20).is_ok());
    let ample = Locked::ample(1 << 20);
    assert_eq!(choose_locked(None, false, 100, 1 << 20).unwrap(), ample);
    assert_eq!(choose_locked(Some(8 << 20), true, 100, 1 << 20).unwrap(), ample);
    assert!(choose_locked(Some(8 << 20), false, 8, 1 << 20).unwrap().ring_entries < ample.ring_entries);
    assert_eq!(
        line(&choose_locked(Some(8 << 20), false, 200, 1 << 20).unwrap_err()),
        "the limit of locked memory, 8.0MiB, is less than the 9.4MiB that io_uring needs; raise it: ulimit -l \
         65536, LimitMEMLOCK=64M in a systemd unit, or docker run --ulimit memlock=67108864"
    );
}

#[test]
fn more_cores_than_usable_are_refused_with_the_way_out() {
    let refusal = |cores, usable| line(&choose_cpus(Some(cores), false, usable).unwrap_err());
    assert_eq!(
        refusal(16, usable("0-7", 8)),
        "--cores 16 is more than the 8 CPUs this process may use (0-7); lower it, or pass --oversubscribe"
    );
    assert_eq!(
        refusal(2, usable("3", 1)),
        "--cores 2 is more than the 1 CPU this process may use (3); lower it, or pass --oversubscribe"
    );
    assert_eq!(
        refusal(4, usable("0-7", 2)),
        "--cores 4 is more than the time of 2 CPUs that its cgroup's CPU quota allows this process (on CPUs \
         0-7); lower it, or pass --oversubscribe"
    );
}

#[test]
fn cores_default_to_what_is_usable() {
    assert_eq!(choose_cpus(None, false, usable("0-7", 2)).unwrap().len(), 2);
    assert_eq!(choose_cpus(Some(1), false, usable("5", 1)).unwrap(), [5]);
    assert_eq!(choose_cpus(Some(3), true, usable("5", 1)).unwrap(), [5, 5, 5]);
}

#[test]
fn connections_follow_from_the_limit_of_open_files() {
    assert_eq!(derive_connections(10_000, 2, None).unwrap(), 10_000);
    assert_eq!(derive_connections(10_000, 2, Some(1 << 20)).unwrap(), 10_000);
    assert_eq!(derive_connections(10_000, 2, Some(1024)).unwrap(), (1024 - 64 - 48) / 2);
    let refusal = line(&derive_connections(10_000, 2, Some(100)).unwrap_err());
    assert!(refusal.starts_with("the limit of open files, 100, is less than the 144 that 2 shard(s) need"));
    assert_eq!(derive_connections(10_000, 2, Some(144)).unwrap(), 16);
}

#[test]
fn a_path_through_a_file_is_no_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let error = open_data_dir(&dir.path().join("file")).unwrap_err();
    assert!(line(&error).contains("file: can't make it (File exists"), "{error}");
    let error = open_data_dir(&dir.path().join("file/below")).unwrap_err();
    assert!(line(&error).contains("can't make it (Not a directory"), "{error}");
}

#[test]
fn a_data_directory_in_use_is_refused_with_the_process_that_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let _lock = open_data_dir(dir.path()).unwrap();
    let error = open_data_dir(dir.path()).unwrap_err();
    let expected = format!("is in use by process {}; stop that server", std::process::id());
    assert!(line(&error).contains(&expected), "{error}");
}

#[test]
fn an_unclear_failure_to_write_is_not_blamed_on_the_flag() {
    let explain = |code| line(&explain_direct_io(Path::new("/data"), os_error(code)));
    assert!(explain(libc::EINVAL).starts_with("data directory /data: its file system refuses O_DIRECT"));
    assert!(explain(libc::EOPNOTSUPP).contains("refuses O_DIRECT"));
    assert!(explain(libc::ENOSPC).ends_with("make room"));
    assert!(explain(libc::EIO).ends_with("check the disk, or pass another --data-dir"));
}

#[test]
fn the_probe_leaves_nothing_behind() {
    // On a disk nearly everywhere, which /tmp need not be.
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    check_direct_io(dir.path()).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_port_that_is_taken_is_refused() {
    let (first, address) = listen("127.0.0.1:0".parse().unwrap(), "listen").unwrap();
    let error = listen(address, "listen").unwrap_err();
    assert_eq!(
        line(&error),
        format!(
            "--listen {address}: the address is in use; stop the process that has it, or pass another --listen"
        )
    );
    drop(first);
    listen(address, "listen").unwrap();
}

#[test]
fn an_address_of_another_machine_is_refused() {
    // 192.0.2.0/24 is reserved for documentation: no interface has it.
    let error = listen("192.0.2.1:0".parse().unwrap(), "listen").unwrap_err();
    assert!(line(&error).contains("no interface of this machine has this address"), "{error}");
    let privileged = explain_listen("listen", "0.0.0.0:80".parse().unwrap(), os_error(libc::EACCES));
    assert!(line(&privileged).contains("this user may not listen on port 80"));
}
