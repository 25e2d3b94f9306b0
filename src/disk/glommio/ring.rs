//! Reads of single blocks, through a ring of their own.
//!
//! The runtime looks at its rings once a round, with several system calls each time, some 10 to 20 µs. Who has many
//! reads under way gets to know of all that came in such a round at once, and begins the next ones all at once, so that
//! core and disk wait for each other. Here a look at what has come costs none, and what is begun is handed to the
//! kernel some at a time. Somebody must *attend* to it: [submit](ReadRing::submit) and [reap](ReadRing::reap) again and
//! again, and while nothing else is to do wait for its [descriptor](ReadRing::fd) to be readable.
//!
//! Invariants:
//! - A buffer that the kernel was given stays here until the kernel has told of it, whatever becomes of who waits for
//!   it; so the ring ends only when nothing is under way.
//! - A read whose future was dropped before it was handed over never is: by then its descriptor may be another file's.
//! - While nobody attends, a read is handed over at once.
//! - What waits here is as much as those who read have under way: their bounds are those of this.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use io_uring::{IoUring, opcode, types};
use slab::Slab;
use smallvec::SmallVec;

use super::WriteBuffer;

/// Reads that the kernel has at a time, at most; more wait here.
pub const ENTRIES: u32 = 256;
/// Reads that wait for others, to be handed over together.
const TOGETHER: usize = 8;

/// One executor's. Reads go through it from [`ReadRing::open`] until [`ReadRing::close`].
pub struct ReadRing {
    ring: RefCell<IoUring>,
    reads: RefCell<Slab<Read>>,
    /// Those that the kernel was not given yet, oldest first.
    begun: RefCell<VecDeque<usize>>,
    /// How many it was given and has not told of.
    given: Cell<u32>,
    /// Of those, how many stand in the ring and were not taken yet: it had no memory, say.
    left: Cell<u32>,
    /// Who is to know when some are, and nobody attends.
    kept: Cell<Option<Waker>>,
    is_open: Cell<bool>,
    is_attended: Cell<bool>,
}

struct Read {
    fd: RawFd,
    offset: u64,
    buffer: WriteBuffer,
    state: State,
}

enum State {
    Waits(Option<Waker>),
    /// So many bytes.
    Done(io::Result<usize>),
    /// Nobody waits for it.
    Abandoned,
}

/// A read that somebody waits for.
struct Ticket<'r> {
    ring: &'r ReadRing,
    /// Until it has its result.
    id: Option<usize>,
}

impl ReadRing {
    /// Errors: no memory may be locked for it; a kernel that has no rings.
    pub fn new() -> io::Result<ReadRing> {
        // What has come is told of when the thread enters the kernel anyway, instead of interrupting it. From 5.19 on.
        let ring =
            IoUring::builder().setup_coop_taskrun().build(ENTRIES).or_else(|_| IoUring::new(ENTRIES))?;
        Ok(ReadRing {
            ring: ring.into(),
            reads: RefCell::default(),
            begun: RefCell::default(),
            given: Cell::new(0),
            left: Cell::new(0),
            kept: Cell::default(),
            is_open: Cell::new(false),
            is_attended: Cell::new(false),
        })
    }

    /// Readable while something has come.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring has it open until it is dropped, which this borrow keeps it from.
        unsafe { BorrowedFd::borrow_raw(self.ring.borrow().as_raw_fd()) }
    }

    /// Whether reads may go through it.
    pub fn is_open(&self) -> bool {
        self.is_open.get()
    }

    /// From here on somebody attends to it.
    pub fn open(&self) {
        self.is_open.set(true);
        self.is_attended.set(true);
    }

    /// No more reads are to come. Who attends does so until [there are none](ReadRing::is_idle).
    pub fn close(&self) {
        self.is_open.set(false);
    }

    /// Whoever attends sleeps from here on, or is back. Nothing may wait to be handed over.
    pub fn set_attended(&self, is_attended: bool) {
        assert!(is_attended || self.is_handed_over(), "what was begun is handed over before");
        self.is_attended.set(is_attended);
    }

    /// Whether the kernel has taken all that it has room for.
    pub fn is_handed_over(&self) -> bool {
        self.left.get() == 0 && (self.begun.borrow().is_empty() || self.given.get() == ENTRIES)
    }

    /// Waits until the kernel has not taken what was begun, while nobody attended: somebody must, or it never will be.
    pub async fn kept(&self) {
        poll_fn(|cx| {
            self.kept.set(Some(cx.waker().clone()));
            if self.is_handed_over() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.given.get() == 0 && self.begun.borrow().is_empty()
    }

    /// Fills `buffer` from `offset` of `fd` on, which stays open until this comes to its end or is dropped. Returns it,
    /// and how many bytes were read.
    pub async fn read(
        &self,
        fd: RawFd,
        offset: u64,
        buffer: WriteBuffer,
    ) -> (WriteBuffer, io::Result<usize>) {
        let read = Read { fd, offset, buffer, state: State::Waits(None) };
        let id = self.reads.borrow_mut().insert(read);
        let ticket = Ticket { ring: self, id: Some(id) };
        let begun = {
            let mut begun = self.begun.borrow_mut();
            begun.push_back(id);
            begun.len()
        };
        if begun >= TOGETHER || !self.is_attended.get() {
            self.submit();
        }
        if !self.is_attended.get() && !self.is_handed_over() {
            self.kept.take().into_iter().for_each(Waker::wake);
        }
        ticket.await
    }

    /// Hands over what was begun, as much as the kernel takes now.
    pub fn submit(&self) {
        let (mut ring, mut reads) = (self.ring.borrow_mut(), self.reads.borrow_mut());
        let mut begun = self.begun.borrow_mut();
        while self.given.get() < ENTRIES
            && let Some(id) = begun.pop_front()
        {
            let read = &mut reads[id];
            if matches!(read.state, State::Abandoned) {
                reads.remove(id);
                continue;
            }
            let len = u32::try_from(read.buffer.len()).expect("blocks are far smaller than 4 GiB");
            let target = read.buffer.as_mut_ptr();
            let entry = opcode::Read::new(types::Fd(read.fd), target, len).offset(read.offset).build();
            // SAFETY: the buffer, which does not move, is `len` bytes long and stays in `reads` until the kernel has
            // told of this read; nobody looks into it before. The descriptor is open: its read is waited for.
            let pushed = unsafe { ring.submission().push(&entry.user_data(id as u64)) };
            pushed.expect("there is room for as many as may be given");
            self.given.set(self.given.get() + 1);
            self.left.set(self.left.get() + 1);
        }
        if self.left.get() == 0 {
            return;
        }
        match ring.submit() {
            Ok(taken) => self.left.set(self.left.get() - taken as u32),
            // It is given them with the next ones, or at the next look.
            Err(error) if is_passing(&error) => {}
            Err(error) => panic!("a ring that is this thread's own takes what it has room for: {error}"),
        }
    }

    /// Wakes those whose reads have come, at most `most` of them. How many came.
    pub fn reap(&self, most: usize) -> usize {
        let mut wakers = SmallVec::<[Waker; TOGETHER]>::new();
        let mut came = 0;
        {
            let (mut ring, mut reads) = (self.ring.borrow_mut(), self.reads.borrow_mut());
            for event in ring.completion().take(most) {
                came += 1;
                let id = event.user_data() as usize;
                let result = match usize::try_from(event.result()) {
                    Ok(len) => Ok(len),
                    Err(_) => Err(io::Error::from_raw_os_error(-event.result())),
                };
                match std::mem::replace(&mut reads[id].state, State::Done(result)) {
                    State::Waits(waker) => wakers.extend(waker),
                    State::Abandoned => drop(reads.remove(id)),
                    State::Done(_) => unreachable!("the kernel tells of a read once"),
                }
            }
        }
        self.given.set(self.given.get() - came as u32);
        wakers.into_iter().for_each(Waker::wake);
        came
    }

    /// Has the kernel take all that it was given. Blocks the thread while it has no memory.
    fn force(&self) {
        while self.left.get() > 0 {
            self.submit();
            std::thread::yield_now();
        }
    }

    /// Waits until nothing is under way. Blocks the thread.
    fn drain(&self) {
        while !self.is_idle() {
            self.submit();
            self.force();
            if self.given.get() > 0
                && let Err(error) = self.ring.borrow().submit_and_wait(1)
                && !is_passing(&error)
            {
                // Its buffers must outlive what the kernel may still write.
                std::process::abort();
            }
            self.reap(usize::MAX);
        }
    }
}

/// Whether the same call may well succeed later.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM))
}

impl Drop for ReadRing {
    fn drop(&mut self) {
        self.drain();
    }
}

impl Future for Ticket<'_> {
    type Output = (WriteBuffer, io::Result<usize>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let id = self.id.expect("who has its result does not ask again");
        let mut reads = self.ring.reads.borrow_mut();
        match &mut reads[id].state {
            State::Done(_) => {}
            State::Waits(Some(waker)) => {
                waker.clone_from(cx.waker());
                return Poll::Pending;
            }
            State::Waits(waker) => {
                *waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            State::Abandoned => unreachable!("it is waited for"),
        }
        let Read { buffer, state: State::Done(result), .. } = reads.remove(id) else {
            unreachable!("it was looked at")
        };
        drop(reads);
        self.id = None;
        Poll::Ready((buffer, result))
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut reads = self.ring.reads.borrow_mut();
        if matches!(reads[id].state, State::Done(_)) {
            reads.remove(id);
            return;
        }
        reads[id].state = State::Abandoned;
        drop(reads);
        // It may be among those that stand in the ring, and its descriptor may be closed next.
        self.ring.force();
    }
}

#[cfg(test)]
mod tests;
