//! Small file systems of their own, to be filled, broken and mounted again.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tempfile::TempDir;

use crate::harness::{disk_dir, eventually, is_root};

/// Which file system, and what makes and breaks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    /// The command that makes one, and the Debian package that has it.
    fn maker(self) -> (&'static [&'static str], &'static str) {
        match self {
            Kind::Ext4 => (&["mkfs.ext4", "-q", "-F"], "e2fsprogs"),
            Kind::Xfs => (&["mkfs.xfs", "-q", "-f"], "xfsprogs"),
        }
    }
}

/// A file system of its own, as large as its file, in a mount namespace of this thread and what it starts:
/// it goes when they go.
pub struct SmallDisk {
    kind: Kind,
    dir: TempDir,
}

impl SmallDisk {
    /// Makes and mounts one.
    ///
    /// # Panics
    /// With what to do, if this machine does not allow it: a test that can't have its disk has shown nothing.
    pub fn new(kind: Kind, mib: u64) -> SmallDisk {
        assert!(is_root(), "only root can mount a file system; run the tests as root");
        let dir = disk_dir();
        let image = dir.path().join("image");
        File::create(&image).and_then(|file| file.set_len(mib << 20)).expect("/var/tmp is writable");
        fs::create_dir(dir.path().join("mnt")).expect("our own directory");
        let (maker, package) = kind.maker();
        run(Command::new(maker[0]).args(&maker[1..]).arg(&image))
            .unwrap_or_else(|why| panic!("{why}; apt-get install {package}"));
        own_mounts().unwrap_or_else(|error| {
            panic!("no mount namespace ({error}); run the tests as root, outside a container")
        });
        let disk = SmallDisk { kind, dir };
        disk.mount();
        disk
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// Mounts it, as after a start of the machine.
    pub fn mount(&self) {
        let image = self.dir.path().join("image");
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(self.path()))
            .unwrap_or_else(|why| panic!("{why}; a loop device and {:?} are needed", self.kind));
    }

    /// Takes it away, once nobody uses it: of a server that has just ended the kernel closes what its ring had open a
    /// moment later.
    pub fn unmount(&self) {
        let mut last = String::new();
        eventually("it is unmounted", || match run(Command::new("umount").arg(self.path())) {
            Ok(()) => true,
            Err(why) => {
                if why != last {
                    println!("not yet: {why}");
                    last = why;
                }
                false
            }
        });
    }

    /// Has the file system give up, as it does when its disk fails: nothing can be written until it is mounted
    /// again, and on xfs nothing be read.
    pub fn fail(&self) {
        match self.kind {
            Kind::Ext4 => run(Command::new("mount").args(["-o", "remount,abort"]).arg(self.path())),
            Kind::Xfs => run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(self.path())),
        }
        .unwrap_or_else(|why| panic!("{why}; apt-get install {}", self.kind.maker().1));
    }

    /// Bytes that may still be taken.
    pub fn free(&self) -> u64 {
        let space = statvfs(self.path()).expect("it is mounted");
        space.f_bavail * space.f_frsize
    }

    /// Takes all space but `left` bytes, for a file that gives it back when it is removed.
    pub fn fill(&self, name: &str, left: u64) -> PathBuf {
        let path = self.path().join(name);
        let file = File::create(&path).expect("a file takes no block yet");
        let mut end = 0;
        let mut piece = 16u64 << 20;
        while piece >= 4 << 10 && self.free() > left {
            let wanted = piece.min(self.free() - left).max(4 << 10);
            match fallocate(file.as_fd(), FallocateFlags::empty(), end, wanted) {
                Ok(()) => end += wanted,
                // Somebody else took it meanwhile, or its own bookkeeping needs it: smaller ones may fit.
                Err(_) => piece /= 4,
            }
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The server on it has been waited for. What can't be unmounted goes with the thread.
        let _ = run(Command::new("umount").arg(self.path()));
    }
}

/// Gives this thread mounts of its own, which those of the machine are not changed by.
fn own_mounts() -> io::Result<()> {
    let root = CString::new("/").expect("no zero byte");
    let none = CString::new("none").expect("no zero byte");
    // SAFETY: the calls read strings that outlive them, and change what this thread alone sees.
    unsafe {
        succeeded(libc::unshare(libc::CLONE_NEWNS))?;
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        succeeded(libc::mount(none.as_ptr(), root.as_ptr(), ptr::null(), flags, ptr::null()))
    }
}

/// Has this thread and what it starts see `dir` read-only.
pub fn make_read_only(dir: &Path) {
    assert!(is_root(), "only root can mount a file system; run the tests as root");
    own_mounts().expect("root outside a container may have mounts of its own");
    run(Command::new("mount").arg("--bind").arg(dir).arg(dir)).expect("a directory can be mounted on itself");
    run(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(dir)).expect("a mount can be read-only");
}

/// Takes the mount on `dir` away again.
pub fn unmount(dir: &Path) {
    run(Command::new("umount").arg(dir)).expect("nobody uses it");
}

fn succeeded(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs a command to its end. `Err` tells why it failed.
pub fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}
