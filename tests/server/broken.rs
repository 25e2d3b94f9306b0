//! Data directories that lack a file, have one too many, may not be written or may not be read: a start says so in
//! one line and leaves everything as it is, so that it starts with all its data once that is put right.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use atlaskv::engine::manifest::{State, inspect_current, inspect_manifest};

use crate::disk::{make_read_only, run, unmount};
use crate::harness::{
    ORDINARY_USER, OrdinaryUser, Server, command, connect, disk_dir, eventually, is_root, refusal,
    start_or_refusal,
};

const KEYS: usize = 3_000;
const ARGUMENTS: [&str; 5] = ["--cores", "1", "--oversubscribe", "--memory", "48MiB"];
const SMALL_VALUES: [&str; 2] = ["--max-value-size", "64KiB"];

fn arguments() -> Vec<&'static str> {
    ARGUMENTS.iter().chain(&SMALL_VALUES).copied().collect()
}

fn key(number: usize) -> Vec<u8> {
    format!("key {number}").into_bytes()
}

fn value(number: usize) -> Vec<u8> {
    let mut value = format!("value {number} ").into_bytes();
    value.resize(4 << 10, b'v');
    value
}

/// Writes all keys and has tables made of the first; the last are in the log.
fn fill(server: &Server) {
    let mut client = connect(server);
    for some in (0..KEYS).collect::<Vec<_>>().chunks(100) {
        let mut pipeline = client.pipeline();
        some.iter().for_each(|number| _ = pipeline.set(&key(*number), &value(*number)));
        pipeline.run().into_iter().for_each(|answer| drop(answer.expect("a write")));
    }
    eventually("a memtable is flushed", || server.log().contains("flushed a memtable"));
    client.set(b"last", b"of all").expect("a write");
}

fn check(server: &Server) {
    let mut client = connect(server);
    for some in (0..KEYS).collect::<Vec<_>>().chunks(100) {
        let keys: Vec<_> = some.iter().map(|number| key(*number)).collect();
        for (number, found) in some.iter().zip(client.mget(&keys).expect("a read")) {
            assert!(found.is_some_and(|found| found.value == value(*number)), "key {number}");
        }
    }
    assert_eq!(client.get(b"last").expect("a read").expect("it was written").value, b"of all");
}

/// A directory of a server that was stopped, or killed.
fn store(data: &Path, is_stopped: bool) {
    let mut server = Server::start(data, &arguments());
    fill(&server);
    match is_stopped {
        true => drop(server.stop()),
        false => server.kill(),
    }
}

/// Names and contents of all there is, the lock and what start-up probes apart.
fn contents(data: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut dirs = vec![data.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("our own directory") {
            let path = entry.expect("our own directory").path();
            match path.is_dir() {
                true => dirs.push(path),
                false if path.ends_with("LOCK") => {}
                false => found.push((path.clone(), fs::read(path).expect("our own file"))),
            }
        }
    }
    found.sort();
    found
}

/// The files of a directory below `data`, sorted.
fn files(data: &Path, below: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join(below)).expect("our own directory");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("our own directory").path()).collect();
    files.sort();
    files
}

/// The tables that the manifest refers to. Others may be there: the server was killed, or stopped, before it had
/// removed what a merge had read.
fn tables(data: &Path) -> Vec<PathBuf> {
    let current = fs::read(data.join("CURRENT")).expect("our own file");
    let generation = inspect_current(&current).expect("our own server wrote it").generation;
    let mut state = State::create(1, 1, 1);
    state.tablets.clear();
    for path in files(data, "manifest") {
        let name = path.file_name().expect("a name").to_str().expect("plain text");
        let bytes = fs::read(&path).expect("our own file");
        let (key, edits) = inspect_manifest(name, &bytes).expect("our own server wrote it");
        if key.generation == generation {
            let changes = edits.iter().flat_map(|edit| &edit.edit.changes);
            changes.for_each(|change| state.apply(change).expect("it fits what is before it"));
        }
    }
    let live: Vec<_> = state.live_tables().into_iter().map(|name| data.join(name.path())).collect();
    assert!(!live.is_empty(), "a memtable was flushed");
    live
}

/// Takes `paths` away, sees that a start is refused with a line that has all of `said`, and puts them back. What there
/// is before tables are opened, such a start does not change.
fn is_missed(data: &Path, paths: &[PathBuf], said: &[&str]) {
    let aside = disk_dir();
    let place = |path: &Path| aside.path().join(path.file_name().expect("a file has a name"));
    paths.iter().for_each(|path| fs::rename(path, place(path)).expect("on the same file system"));
    let before = contents(data);
    let line = refusal(command(data, &arguments()));
    for word in said {
        assert!(line.contains(word), "{paths:?}: {line}");
    }
    let is_of_tables = paths.iter().any(|path| path.to_string_lossy().contains("/sst"));
    assert!(is_of_tables || before == contents(data), "{paths:?}: a refused start changed something: {line}");
    paths.iter().for_each(|path| fs::rename(place(path), path).expect("on the same file system"));
}

/// Without `CURRENT` a start took the directory for a new one, began a generation there, and removed every log and
/// table that this did not name: all of the data. And a log without files was taken for one that was never begun.
#[test]
fn a_missing_file_of_any_kind_is_refused_and_missed_no_more_when_it_is_back() {
    for is_stopped in [true, false] {
        let dir = disk_dir();
        let data = dir.path().join("data");
        store(&data, is_stopped);
        is_missed(&data, &[data.join("CURRENT")], &["CURRENT is missing", "restore"]);
        is_missed(&data, &files(&data, "manifest"), &["manifest/", "is missing", "restore"]);
        for table in tables(&data) {
            let name = table.file_name().expect("a name").to_str().expect("plain text").to_owned();
            is_missed(&data, &[table], &[&name, "No such file"]);
        }
        is_missed(&data, &files(&data, "wal"), &["wal/", "restore"]);
        let server = Server::start(&data, &arguments());
        check(&server);
        let (status, log) = server.stop();
        assert_eq!(status.code(), Some(0), "{log}");
    }
}

/// The directories of the store as a whole, one by one and all.
#[test]
fn missing_directories_are_refused() {
    let dir = disk_dir();
    let data = dir.path().join("data");
    store(&data, false);
    for below in ["manifest", "wal", "sst"] {
        is_missed(&data, &[data.join(below)], &[below]);
    }
    is_missed(&data, &[data.join("CURRENT"), data.join("wal")], &["CURRENT is missing"]);
    is_missed(&data, &[data.join("CURRENT"), data.join("manifest")], &["CURRENT is missing"]);
    check(&Server::start(&data, &arguments()));
}

/// A clean stop notes where each log ends, so that no segment of it goes unnoticed: without one a start is refused,
/// or there was nothing in it that tables lack.
#[test]
fn after_a_clean_stop_each_missing_segment_is_noticed() {
    let dir = disk_dir();
    let data = dir.path().join("data");
    store(&data, true);
    let mut refused = 0;
    for segment in files(&data, "wal") {
        let copy = dir.path().join("copy");
        run(Command::new("cp").arg("-a").arg(&data).arg(&copy)).expect("there is space");
        fs::remove_file(copy.join("wal").join(segment.file_name().expect("a name"))).expect("our own file");
        match start_or_refusal(command(&copy, &arguments())) {
            Ok(server) => check(&server),
            Err(line) => {
                assert!(line.contains("wal/") && line.contains("restore"), "{line}");
                refused += 1;
            }
        }
        fs::remove_dir_all(&copy).expect("our own directory");
    }
    assert!(refused > 0, "some segment was needed");
    check(&Server::start(&data, &arguments()));
}

/// Killed, a store has no note of where its log ends. What it has is the log's beginning.
#[test]
fn after_a_kill_a_missing_beginning_of_the_log_is_noticed() {
    let dir = disk_dir();
    let data = dir.path().join("data");
    let mut server = Server::start(&data, &arguments());
    connect(&server).set(b"key", b"value").expect("a write");
    eventually("the next segment is ready", || files(&data, "wal").len() > 1);
    server.kill();
    let segments = files(&data, "wal");
    is_missed(&data, &segments[..1], &["wal/", "restore"]);
    is_missed(&data, &segments, &["wal/", "restore"]);
    let server = Server::start(&data, &arguments());
    assert_eq!(connect(&server).get(b"key").expect("a read").expect("it was written").value, b"value");
}

#[test]
fn files_that_do_not_belong_there_are_left_alone() {
    let dir = disk_dir();
    let data = dir.path().join("data");
    store(&data, false);
    let strange =
        ["notes.txt", "wal/notes.txt", "wal/0.wal.bak", "sst/notes", "sst/lost+found", "manifest/x"];
    for name in strange {
        fs::write(data.join(name), "not of this store").expect("our own directory");
    }
    // Names that the file system or people may bring, of bytes that are no text.
    let odd: OsString = std::os::unix::ffi::OsStringExt::from_vec(vec![b'o', 0xff, b'd']);
    fs::write(data.join("wal").join(&odd), "").expect("our own directory");
    fs::create_dir(data.join("sst/a directory")).expect("our own directory");
    fs::create_dir(data.join("lost+found")).expect("our own directory");
    for _ in 0..2 {
        let mut server = Server::start(&data, &arguments());
        check(&server);
        server.kill();
        for name in strange {
            assert_eq!(fs::read(data.join(name)).expect("it is there"), b"not of this store", "{name}");
        }
        assert!(data.join("wal").join(&odd).exists() && data.join("sst/a directory").is_dir());
    }
}

/// A directory where the store would have a file of its own.
#[test]
fn a_directory_in_the_place_of_a_file_is_refused() {
    let dir = disk_dir();
    let data = dir.path().join("data");
    store(&data, true);
    for path in [data.join("CURRENT"), files(&data, "manifest")[0].clone(), tables(&data)[0].clone()] {
        let aside = data.with_extension("aside");
        fs::rename(&path, &aside).expect("on the same file system");
        fs::create_dir(&path).expect("our own directory");
        let line = refusal(command(&data, &arguments()));
        let name = path.file_name().expect("a name").to_str().expect("plain text");
        assert!(line.contains(name), "{path:?}: {line}");
        fs::remove_dir(&path).expect("our own directory");
        fs::rename(&aside, &path).expect("on the same file system");
    }
    check(&Server::start(&data, &arguments()));
}

#[test]
fn a_read_only_directory_is_refused() {
    let dir = disk_dir();
    let data = dir.path().join("data");
    store(&data, true);
    let before = contents(&data);
    make_read_only(&data);
    let line = refusal(command(&data, &arguments()));
    let place = data.display();
    assert_eq!(
        line,
        format!(
            "data directory {place}: can't write its lock file (Read-only file system); mount it writable, or \
             pass another --data-dir"
        )
    );
    unmount(&data);
    assert!(before == contents(&data));
    check(&Server::start(&data, &arguments()));
}

/// What even root may not write: each directory of the store in turn, and one of its files.
#[test]
fn immutable_files_and_directories_are_refused() {
    assert!(is_root(), "only root can make a file immutable; run the tests as root");
    let dir = disk_dir();
    let data = dir.path().join("data");
    store(&data, true);
    let chattr = |flag: &str, path: &Path| run(Command::new("chattr").arg(flag).arg(path));
    for path in [data.clone(), data.join("manifest"), data.join("wal"), data.join("CURRENT")] {
        chattr("+i", &path).expect("/var/tmp is on ext4, xfs or btrfs, and e2fsprogs is installed");
        let said = start_or_refusal(command(&data, &arguments()));
        chattr("-i", &path).expect("what was set can be taken away");
        let line = said.err().unwrap_or_else(|| panic!("{path:?} is immutable, and the server started"));
        assert!(line.contains("Operation not permitted"), "{path:?}: {line}");
        assert!(line.contains(data.to_str().expect("plain text")), "{path:?}: {line}");
    }
    // Tables are not needed to start; what flushes lack is tried again.
    chattr("+i", &data.join("sst")).expect("as above");
    let outcome = start_or_refusal(command(&data, &arguments()));
    chattr("-i", &data.join("sst")).expect("as above");
    match outcome {
        Ok(server) => check(&server),
        Err(line) => assert!(line.contains("sst"), "{line}"),
    }
    check(&Server::start(&data, &arguments()));
}

/// As an ordinary user, whom permissions bind: a file of each kind that it may not read.
#[test]
fn files_of_another_user_are_refused() {
    assert!(is_root(), "only root can give files to other users; run the tests as root");
    let user = OrdinaryUser::new();
    let data = user.data_dir();
    let command = || user.command(&arguments());
    let mut server = Server::start_command(command());
    fill(&server);
    server.kill();
    let one = |below: &str| files(&data, below)[0].clone();
    let table = tables(&data)[0].clone();
    for path in [data.join("CURRENT"), one("manifest"), one("wal"), table, data.join("LOCK")] {
        let give = |uid: u32, mode: u32| {
            chown(&path, Some(uid), Some(uid)).expect("root may give files away");
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("root may change all files");
        };
        give(0, 0o600);
        let line = refusal(command());
        give(ORDINARY_USER, 0o600);
        assert!(line.contains("Permission denied"), "{path:?}: {line}");
        let name = path.file_name().expect("a name").to_str().expect("plain text");
        assert!(line.contains(name) || name == "LOCK" && line.contains("lock file"), "{path:?}: {line}");
    }
    for below in ["manifest", "wal", "sst"] {
        let path = data.join(below);
        chown(&path, Some(0), Some(0)).expect("root may give files away");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("root may change all files");
        let outcome = start_or_refusal(command());
        chown(&path, Some(ORDINARY_USER), Some(ORDINARY_USER)).expect("root may give files away");
        match outcome {
            Err(line) => {
                assert!(line.contains("Permission denied") && line.contains(below), "{below}: {line}")
            }
            // Only what is begun later needs to be written there.
            Ok(server) => assert_eq!(below, "sst", "{}", server.ready_line),
        }
    }
    check(&Server::start_command(command()));
}
