//! Counts what threads of another process ask of the kernel: their system calls, one by one, and the entries of its
//! io_uring rings.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Beyond the numbers of all system calls.
const NUMBERS: usize = 1024;

/// Threads whose system calls are counted until this is dropped. Each call takes them some microseconds longer.
pub struct Traced {
    counts: Arc<[AtomicU64]>,
    is_over: Arc<AtomicBool>,
    threads: Vec<(libc::pid_t, JoinHandle<()>)>,
    process: libc::pid_t,
}

impl Traced {
    /// Begins with all threads of `process` whose name starts with `name`. `None`, if this system does not allow it.
    pub fn begin(process: u32, name: &str) -> Option<Traced> {
        let process = libc::pid_t::try_from(process).expect("ids of processes are positive");
        let counts: Arc<[AtomicU64]> = (0..NUMBERS).map(|_| AtomicU64::new(0)).collect();
        let mut traced = Traced { counts, is_over: Arc::default(), threads: Vec::new(), process };
        for thread in threads(process, name) {
            let (counts, is_over) = (traced.counts.clone(), traced.is_over.clone());
            let (sender, begun) = std::sync::mpsc::channel();
            // Whoever attaches to a thread must be the one who waits for it.
            let tracer = std::thread::spawn(move || {
                let attached = attach(thread);
                let is_attached = attached.is_ok();
                // Whoever asked is there: it waits for this.
                let _ = sender.send(attached);
                if is_attached {
                    follow(thread, &counts, &is_over);
                }
            });
            traced.threads.push((thread, tracer));
            if let Err(error) = begun.recv().expect("it tells before it ends") {
                println!("system calls are not counted: {error}");
                return None;
            }
        }
        Some(traced)
    }

    /// Calls of this number so far.
    pub fn count(&self, number: libc::c_long) -> u64 {
        let number = usize::try_from(number).expect("numbers of calls are positive");
        self.counts[number].load(Ordering::Relaxed)
    }

    /// All calls so far.
    pub fn all(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        for (thread, tracer) in self.threads.drain(..) {
            // Something must happen to the thread for its tracer to see that. It never gets this signal.
            // SAFETY: a system call without pointers.
            unsafe { libc::syscall(libc::SYS_tgkill, self.process, thread, libc::SIGURG) };
            // One that panicked has said why.
            let _ = tracer.join();
        }
    }
}

/// Threads of a process whose name starts so.
fn threads(process: libc::pid_t, name: &str) -> Vec<libc::pid_t> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs").flatten();
    let is_named = |task: &fs::DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|found| found.starts_with(name))
    };
    tasks.filter(is_named).filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

/// Attaches to a thread, and stops it.
fn attach(thread: libc::pid_t) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD as usize;
    // SAFETY: requests that take numbers, no pointers.
    let result = unsafe {
        match libc::ptrace(libc::PTRACE_SEIZE, thread, 0usize, options) {
            0 => libc::ptrace(libc::PTRACE_INTERRUPT, thread, 0usize, 0usize),
            error => error,
        }
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Counts the calls of a thread that this one is attached to, until it is over or the thread ends.
fn follow(thread: libc::pid_t, counts: &[AtomicU64], is_over: &AtomicBool) {
    loop {
        let mut status = 0;
        // SAFETY: `status` is there for the call.
        let found = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
        if found != thread || !libc::WIFSTOPPED(status) {
            return;
        }
        let signal = libc::WSTOPSIG(status);
        let is_call = signal == libc::SIGTRAP | 0x80;
        if is_call && let Some(count) = entered(thread).and_then(|number| counts.get(number)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let is_event = status >> 16 != 0;
        let passed_on = if is_call || is_event || signal == libc::SIGURG { 0 } else { signal };
        let request = if is_over.load(Ordering::SeqCst) { libc::PTRACE_DETACH } else { libc::PTRACE_SYSCALL };
        // SAFETY: a request that takes a number, no pointer.
        let result = unsafe { libc::ptrace(request, thread, 0usize, passed_on as usize) };
        if request == libc::PTRACE_DETACH || result != 0 {
            return;
        }
    }
}

/// The number of the call that a stopped thread enters; `None`, if it leaves one.
fn entered(thread: libc::pid_t) -> Option<usize> {
    let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let len = size_of_val(&info);
    // SAFETY: the kernel writes at most `len` bytes to `info`.
    let result = unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, len, info.as_mut_ptr()) };
    // SAFETY: it is zeroed, and any bytes are one.
    let info = unsafe { info.assume_init() };
    if result <= 0 || info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: that is what the union holds for this operation.
    usize::try_from(unsafe { info.u.entry.nr }).ok()
}

/// Entries that a process has submitted to its rings so far.
pub fn ring_entries(process: u32) -> u64 {
    let open = fs::read_dir(format!("/proc/{process}/fd")).expect("it runs").flatten();
    let is_ring = |file: &fs::DirEntry| {
        fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == "anon_inode:[io_uring]")
    };
    open.filter(is_ring).map(|file| tail(process, file.file_name().to_str().expect("a number"))).sum()
}

/// Entries that a ring was given so far. Only ever grows, modulo 2^32, which a test is far from.
fn tail(process: u32, ring: &str) -> u64 {
    let path = format!("/proc/{process}/fdinfo/{ring}");
    for _ in 0..1000 {
        let info = fs::read_to_string(&path).expect("it runs");
        if let Some(tail) = info.lines().find_map(|line| line.strip_prefix("SqTail:")) {
            return tail.trim().parse().expect("a number");
        }
        // Nothing is told of a ring that is in use at the moment.
        std::thread::yield_now();
    }
    panic!("{path} does not tell how many entries the ring was given");
}
