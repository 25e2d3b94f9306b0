//! Log lines to standard error, and the last words of a thread that panics.
//!
//! - A shard never waits for whoever reads the log: lines go through a bounded queue to a thread of
//!   their own. When the queue is full lines are dropped, counted, and the count is logged.
//! - What the runtime says through the `log` crate comes out the same way.
//! - A panic in any thread is one line with its place, and ends the process: a shard that has lost its
//!   mind must not go on answering, in no build.
//!
//! The thread inherits the CPUs of whoever calls [`init`]: call it before pinning anything.

use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{Config, LogFormat};

/// Lines in the queue. At 200 bytes a line under a megabyte.
const QUEUE_LINES: usize = 4096;

/// How long [`flush`] waits for a reader that does not read.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

static LOG: OnceLock<Queue> = OnceLock::new();

/// Lines on their way to the thread that writes them.
#[derive(Clone, Debug)]
struct Queue {
    sender: SyncSender<Message>,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
    /// The same, and nothing after it is written any more.
    End(SyncSender<()>),
}

/// Lines that found the queue full since the last count was written.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Sends the log where `config` says, and makes every panic end the process. Only the first call in a
/// process has an effect.
pub fn init(config: &Config) {
    let Ok(filter) = EnvFilter::try_new(&config.log_filter) else {
        unreachable!("the configuration was validated: {}", config.log_filter)
    };
    let Some(queue) = start_queue() else {
        return;
    };
    // No colours: the log goes to files and journals more often than to a person.
    let builder = fmt().with_env_filter(filter).with_ansi(false).with_writer(queue);
    let installed = match config.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Err(error) = installed {
        // A test, or a program around the library, has its own: that one stays.
        tracing::debug!(%error, "a log is installed already");
    }
    std::panic::set_hook(Box::new(last_words));
}

/// Ends the log: waits until what was logged so far is written, and drops what comes after it, so that the last line
/// is the caller's, whatever other threads still do. Waits at most a second, for standard error may be a pipe that
/// nobody reads.
pub fn end() {
    await_written(Message::End);
}

/// Waits likewise, and lets the log go on.
fn flush() {
    await_written(Message::Flush);
}

fn await_written(message: impl FnOnce(SyncSender<()>) -> Message) {
    let Some(queue) = LOG.get() else { return };
    let (done, written) = mpsc::sync_channel(1);
    let mut message = message(done);
    let give_up = std::time::Instant::now() + FLUSH_PATIENCE;
    while let Err(TrySendError::Full(back)) = queue.sender.try_send(message) {
        if std::time::Instant::now() >= give_up {
            return;
        }
        message = back;
        thread::yield_now();
    }
    // Either it is written, or the reader had its time.
    let _ = written.recv_timeout(FLUSH_PATIENCE);
}

/// Starts the writing thread. `None` if there is one already, or threads can't be had.
fn start_queue() -> Option<Queue> {
    let (sender, receiver) = mpsc::sync_channel(QUEUE_LINES);
    let queue = Queue { sender };
    LOG.set(queue.clone()).ok()?;
    let write = move || write_lines(&receiver, &mut io::stderr(), &DROPPED);
    match thread::Builder::new().name("log".to_string()).spawn(write) {
        Ok(_) => Some(queue),
        Err(error) => {
            eprintln!("atlaskv: the log's thread could not be started ({error}); nothing will be logged");
            None
        }
    }
}

/// Writes what comes out of the queue until it is told to end, or nobody can send any more.
fn write_lines(receiver: &Receiver<Message>, output: &mut impl Write, dropped: &AtomicU64) {
    while let Ok(message) = receiver.recv() {
        // A failed write has nobody to be told to: standard error is where one would tell it.
        match message {
            Message::Line(line) => {
                let _ = output.write_all(&line);
            }
            Message::Flush(done) => {
                let _ = output.flush();
                let _ = done.try_send(());
            }
            Message::End(done) => {
                let _ = output.flush();
                let _ = done.try_send(());
                return;
            }
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ =
                writeln!(output, "atlaskv: {lost} log line(s) dropped: standard error is read too slowly");
        }
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { queue: self, bytes: Vec::new() }
    }
}

/// One event being formatted; enqueued when dropped.
struct Line<'a> {
    queue: &'a Queue,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if self.bytes.is_empty() {
            return;
        }
        let line = Message::Line(std::mem::take(&mut self.bytes));
        if self.queue.sender.try_send(line).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The panic hook: says what happened and where, then aborts. Written to standard error directly, since
/// the panic may have come from within the log.
fn last_words(info: &PanicHookInfo<'_>) {
    flush();
    let line = describe_panic(info);
    let mut stderr = io::stderr().lock();
    // The process ends whether or not anybody can be told.
    let _ = writeln!(stderr, "{line}");
    let trace = std::backtrace::Backtrace::capture();
    if trace.status() == std::backtrace::BacktraceStatus::Captured {
        let _ = writeln!(stderr, "{trace}");
    }
    let _ = stderr.flush();
    std::process::abort();
}

fn describe_panic(info: &PanicHookInfo<'_>) -> String {
    let message = info.payload_as_str().unwrap_or("no message").replace('\n', "; ");
    let thread = thread::current();
    let name = thread.name().unwrap_or("unnamed").to_string();
    match info.location() {
        Some(place) => format!("atlaskv: panic in thread {name} at {place}: {message}; the process aborts"),
        None => format!("atlaskv: panic in thread {name}: {message}; the process aborts"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_in_order_and_a_flush_is_answered() {
        let (sender, receiver) = mpsc::sync_channel(16);
        let (done, written) = mpsc::sync_channel(1);
        for line in ["one\n", "two\n"] {
            sender.send(Message::Line(line.into())).unwrap();
        }
        sender.send(Message::Flush(done)).unwrap();
        drop(sender);
        let mut output = Vec::new();
        write_lines(&receiver, &mut output, &AtomicU64::new(0));
        assert_eq!(output, b"one\ntwo\n");
        written.try_recv().unwrap();
    }

    #[test]
    fn nothing_is_written_after_the_end() {
        let (sender, receiver) = mpsc::sync_channel(16);
        let (done, written) = mpsc::sync_channel(1);
        sender.send(Message::Line(b"one\n".to_vec())).unwrap();
        sender.send(Message::End(done)).unwrap();
        sender.send(Message::Line(b"from a thread that does not know\n".to_vec())).unwrap();
        let mut output = Vec::new();
        write_lines(&receiver, &mut output, &AtomicU64::new(0));
        assert_eq!(output, b"one\n");
        written.try_recv().unwrap();
    }

    #[test]
    fn lost_lines_are_counted_once() {
        let (sender, receiver) = mpsc::sync_channel(16);
        sender.send(Message::Line(b"one\n".to_vec())).unwrap();
        sender.send(Message::Line(b"two\n".to_vec())).unwrap();
        drop(sender);
        let mut output = Vec::new();
        write_lines(&receiver, &mut output, &AtomicU64::new(3));
        let expected = "one\natlaskv: 3 log line(s) dropped: standard error is read too slowly\ntwo\n";
        assert_eq!(String::from_utf8(output).unwrap(), expected);
    }

    #[test]
    fn a_full_queue_drops_rather_than_waits() {
        let (sender, receiver) = mpsc::sync_channel(1);
        let queue = Queue { sender };
        let before = DROPPED.load(Ordering::Relaxed);
        for _ in 0..3 {
            queue.make_writer().write_all(b"line\n").unwrap();
        }
        assert!(matches!(receiver.try_recv(), Ok(Message::Line(line)) if line == b"line\n"));
        assert!(receiver.try_recv().is_err());
        assert_eq!(DROPPED.load(Ordering::Relaxed) - before, 2);
    }

    /// Run by [`a_panic_in_a_thread_ends_the_process_with_one_line`] in a process of its own.
    #[test]
    #[ignore = "ends the process"]
    fn panicking_child() {
        let flags = crate::config::Flags { memory: Some("1GiB".to_string()), ..Default::default() };
        init(&Config::new(flags, None, None).unwrap());
        tracing::info!("before the panic");
        log_through_the_other_crate();
        // The hook never returns, so nothing after this runs: neither the join nor the message.
        let _ = thread::Builder::new().name("shard-7".into()).spawn(|| panic!("two\nlines")).unwrap().join();
        println!("still alive");
    }

    fn log_through_the_other_crate() {
        tracing_log::log::warn!(target: "glommio::sys", "from the log crate");
    }

    #[test]
    fn a_panic_in_a_thread_ends_the_process_with_one_line() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server::logging::tests::panicking_child", "--ignored", "--nocapture"])
            .env_remove("RUST_BACKTRACE")
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        assert_eq!(signal, Some(libc::SIGABRT), "{stderr}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("still alive"));
        let lines: Vec<&str> = stderr.lines().collect();
        assert!(lines[0].contains("INFO") && lines[0].ends_with("before the panic"), "{stderr}");
        assert!(
            lines[1].contains("WARN glommio::sys") && lines[1].ends_with("from the log crate"),
            "{stderr}"
        );
        assert!(
            lines[2].starts_with("atlaskv: panic in thread shard-7 at src/server/logging.rs:"),
            "{stderr}"
        );
        assert!(lines[2].ends_with(": two; lines; the process aborts"), "{stderr}");
    }
}
