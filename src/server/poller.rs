//! Which sockets of a shard have bytes, or room for more: one epoll for all of them.
//!
//! Each socket is watched from its adoption to its end, edge-triggered: what is ready stays noted here until a call of
//! the socket finds that there is no more. So a request costs no system call but its receive and, if it is alone, its
//! send; those that came together are seen together, with one `epoll_wait`, and answered together, with one entry into
//! the kernel ([`sends`](super::sends)). The epoll itself is what the ring polls, and only when nothing has come for a
//! while. (Before, each socket was polled in the ring anew for each request.)
//!
//! It attends to the ring for reads as well: what of the disk has come is looked at together with the sockets, some at a
//! time, so that the first are answered, and others begun, before the last are seen to. And to what other shards send:
//! while it looks, nobody wakes the executor from afar.
//!
//! A shard whose requests come faster than a thread goes to sleep and wakes again is *busy*: its poller looks again
//! for some microseconds before it lets the executor sleep. How long it is until something comes is estimated from
//! the past, so that a shard with less to do burns nothing.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_lite::future::or;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use slab::Slab;

use super::sends::{SendRing, Sender, Turn};
use crate::disk::glommio::ReadRing;
use crate::env::glommio::readable;
use crate::env::{Env, Notify};
use crate::metrics::{Metrics, note_slow};

/// Events taken at once. All of them have their turn before more are asked for.
const EVENTS: usize = 128;
/// The mean gap between events, at most, for which the poller looks on instead of sleeping. To sleep and wake costs
/// 15 to 40 µs of the core, so to wait as long as that costs twice at most.
const GAP_MAX: Duration = Duration::from_micros(60);
/// How many mean gaps it looks on for.
const PATIENCE: u32 = 2;
/// A gap counts as no more than this, so that a pause is forgotten after some requests.
const GAP_COUNTED: Duration = Duration::from_micros(500);
/// Tells the ring for reads from sockets.
const READS_KEY: u64 = u64::MAX;
/// Reads that are seen to at once: what comes of those leaves, and the next are begun, before there are more, so that the
/// disk is not idle meanwhile.
const LANDED: usize = 8;
/// But if there were that many, and so maybe more, at each look for so long, all are seen to. They would be behind ever
/// more where turns are long for other reasons; and a core that is full gains nothing: eight are of as many connections,
/// and each is a send, and the client's next request one more receive.
const BEHIND_MAX: Duration = Duration::from_micros(400);
/// How often the rings are seen to at least while something waits for that and there is always more to do. Each time
/// flush and merges may have a slice of some 100 us as well: with 50 us they had most of a core that was behind.
const REST_EVERY: Duration = Duration::from_micros(250);
/// Yields after which a turn that is not over is not waited for.
const TURN_YIELDS_MAX: usize = 16;
/// The last gap counts for one part in so many of the mean.
const MEAN_OF: u32 = 8;

/// Watches the sockets of one executor.
pub struct Poller {
    epoll: OwnedFd,
    watched: RefCell<Slab<Rc<Watched>>>,
    /// What it attends to beside them.
    reads: Option<Rc<ReadRing>>,
    /// Who sends at the end of this turn.
    turn: Turn,
    /// Whether a turn is going on whose end it waits for.
    is_in_turn: Cell<bool>,
    /// Whether it may look on at all.
    may_spin: bool,
    mean_gap: Cell<Duration>,
    /// When it last looked.
    seen_at: Cell<Duration>,
    /// For how many there was something then.
    seen: Cell<usize>,
    is_over: Cell<bool>,
    over: Notify,
}

/// What is known of a socket.
#[derive(Default)]
struct Watched {
    reading: Side,
    writing: Side,
    /// The peer has closed, or the connection broke: what that means, a read tells.
    is_left: Cell<bool>,
}

#[derive(Default)]
struct Side {
    is_ready: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Side {
    fn set_ready(&self) {
        self.is_ready.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits for [`Side::set_ready`].
    fn wait<T>(&self, cx: &Context<'_>) -> Poll<T> {
        let mut waker = self.waker.borrow_mut();
        match waker.as_mut() {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

/// A socket's place at its poller, left when dropped.
pub struct Place {
    poller: Rc<Poller>,
    key: usize,
    watched: Rc<Watched>,
}

/// The shard whose sockets it watches, or whoever's.
pub trait Home {
    /// Whether a task is on its way that will send replies to what was asked.
    fn has_open_turn(&self) -> bool;

    /// Has what came up since the end of the turn delivered.
    fn end_turn(&self);

    /// From here on the poller looks for what other shards have sent, or no longer does.
    fn attend(&self, does: bool);

    /// Whether others have sent something that was not looked at; who is to look at it is woken.
    fn look(&self) -> bool;
}

impl Poller {
    /// For the sockets of this executor, whose clock says `now`, and its disk reads; replies of a turn go through
    /// `sends`. `may_spin`: the core is its own.
    pub fn new(
        may_spin: bool,
        now: Duration,
        reads: Option<Rc<ReadRing>>,
        sends: Option<SendRing>,
    ) -> io::Result<Rc<Poller>> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        if let Some(reads) = &reads {
            epoll::add(&epoll, reads.fd(), EventData::new_u64(READS_KEY), EventFlags::IN)?;
        }
        Ok(Rc::new(Poller {
            epoll,
            watched: RefCell::default(),
            reads,
            turn: Turn::new(sends),
            is_in_turn: Cell::new(false),
            may_spin,
            mean_gap: Cell::new(GAP_COUNTED),
            seen_at: Cell::new(now),
            seen: Cell::new(0),
            is_over: Cell::new(false),
            over: Notify::new(),
        }))
    }

    /// Begins to watch a socket. Whoever has the place tells it before the socket is closed.
    ///
    /// Errors: the kernel has no memory for it, or the user watches as many as they may.
    pub fn watch(self: &Rc<Self>, socket: impl AsFd) -> io::Result<Place> {
        let watched = Rc::new(Watched::default());
        let key = self.watched.borrow_mut().insert(watched.clone());
        let place = Place { poller: self.clone(), key, watched };
        let events = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, socket, EventData::new_u64(key as u64), events)?;
        Ok(place)
    }

    /// Wakes who waits for what has come, until [`Poller::end`], of those at `home` as well. Rounds that take long are
    /// counted in `metrics`.
    pub async fn run<E: Env>(&self, env: &E, home: &impl Home, metrics: &Metrics) {
        let mut last = env.now();
        // When it last had the rings seen to, and when it last saw to all reads that had landed.
        let (mut rested, mut caught_up) = (last, last);
        if let Some(reads) = &self.reads {
            reads.open();
        }
        home.attend(true);
        while !self.is_over.get() {
            let over = self.over.notified();
            // First, so that the disk has something to do meanwhile.
            let are_with_disk = self.hand_over_reads();
            let count = match self.look() {
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                // A shard that hears of no socket any more must not go on as if it served.
                Err(error) => {
                    panic!("an epoll that is this poller's own, and open, has events to tell: {error}")
                }
            };
            let is_behind = self.seen_at.get().saturating_sub(caught_up) > BEHIND_MAX;
            let most = if is_behind { usize::MAX } else { LANDED };
            let landed = self.reads.as_ref().map_or(0, |reads| reads.reap(most));
            let now = env.now();
            self.seen_at.set(now);
            self.seen.set(count);
            let gap = now.saturating_sub(last);
            // A signal is there until it is taken, and would count several times.
            if count + landed > 0 {
                self.count_gap(gap);
                last = now;
            }
            let has_some = home.look() || count + landed > 0;
            if landed < most {
                caught_up = now;
            }
            if has_some || !are_with_disk || self.may_spin && gap < self.patience() {
                // While more comes all the time, the rings are seen to now and then; else before anything else.
                let may_rest = !has_some || now.saturating_sub(rested) >= REST_EVERY;
                if self.pass(env, home, may_rest).await {
                    rested = env.now();
                }
                note_slow(env.now() - now, &metrics.slow_rounds, &metrics.slow_round_micros);
                continue;
            }
            let readable = async {
                if let Err(error) = readable(&self.epoll).await {
                    // No descriptor is left, say. Others go on meanwhile.
                    tracing::warn!(
                        "sockets are looked at once a millisecond, since waiting for them fails: {error}"
                    );
                    env.sleep(Duration::from_millis(1)).await;
                }
            };
            self.attend(home, false);
            // What was sent before others saw that.
            if !home.look() {
                or(or(readable, over), self.reads_kept()).await;
            }
            self.attend(home, true);
        }
        // Reads that are under way come to their end, and whoever reads from here on does so in another way.
        if let Some(reads) = &self.reads {
            reads.close();
            while !reads.is_idle() {
                reads.submit();
                reads.reap(LANDED);
                env.rest().await;
            }
        }
        self.attend(home, false);
        home.look();
    }

    /// Lets those run who were woken, to the end of their turn, and sends what they have to send. Then, if it `may`, has
    /// the rings seen to, if anything waits for that. Whether it has. Each look at the rings is several system calls,
    /// some 10 us.
    async fn pass<E: Env>(&self, env: &E, home: &impl Home, may_rest: bool) -> bool {
        self.is_in_turn.set(true);
        for _ in 0..TURN_YIELDS_MAX {
            env.yield_now().await;
            if !home.has_open_turn() {
                break;
            }
        }
        self.is_in_turn.set(false);
        if self.turn.end() {
            // What was sent may let others go on.
            home.end_turn();
        }
        let rests = may_rest && env.needs_rests();
        if rests {
            // Others may have a slice of the core meanwhile.
            self.hand_over_reads();
            // As short as a suspension can be in which the rings are seen to.
            env.rest().await;
        }
        rests
    }

    /// Has the disk begin with the reads that wait for it. Whether it has all of them.
    fn hand_over_reads(&self) -> bool {
        self.reads.as_ref().is_none_or(|reads| {
            reads.submit();
            reads.is_handed_over()
        })
    }

    /// Waits until a read was begun that the kernel did not take.
    async fn reads_kept(&self) {
        match &self.reads {
            Some(reads) => reads.kept().await,
            None => std::future::pending().await,
        }
    }

    fn attend(&self, home: &impl Home, does: bool) {
        home.attend(does);
        if let Some(reads) = &self.reads {
            reads.set_attended(does);
        }
    }

    /// Has [`Poller::run`] end.
    pub fn end(&self) {
        self.is_over.set(true);
        self.over.notify();
    }

    /// Asks the kernel what has come, without waiting; wakes whom it concerns. How many sockets that are.
    fn look(&self) -> rustix::io::Result<usize> {
        let mut events = [const { MaybeUninit::<Event>::uninit() }; EVENTS];
        let (events, _) = epoll::wait(&self.epoll, &mut events[..], Some(&Timespec::default()))?;
        let watched = self.watched.borrow();
        let mut count = events.len();
        for event in events.iter() {
            let (data, flags) = (event.data.u64(), event.flags);
            if data == READS_KEY {
                count -= 1;
                continue;
            }
            // Wakers only put tasks into a queue: nobody leaves, and no key is given anew, within this loop.
            let Some(watched) = watched.get(data as usize) else { continue };
            let left = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
            if flags.intersects(left) {
                watched.is_left.set(true);
            }
            if flags.intersects(left | EventFlags::IN) {
                watched.reading.set_ready();
            }
            if flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR) {
                watched.writing.set_ready();
            }
        }
        Ok(count)
    }

    fn count_gap(&self, gap: Duration) {
        let mean = self.mean_gap.get();
        self.mean_gap.set((mean * (MEAN_OF - 1) + gap.min(GAP_COUNTED)) / MEAN_OF);
    }

    /// How long after the last event to look on.
    fn patience(&self) -> Duration {
        let mean = self.mean_gap.get();
        if mean <= GAP_MAX { mean * PATIENCE } else { Duration::ZERO }
    }
}

impl Place {
    /// Runs `read`, which must not block, if there may be something to read; it is given `len` bytes of room. Pending:
    /// there is nothing, and the task of `cx` is woken when there is.
    pub fn poll_read(
        &self,
        cx: &Context<'_>,
        len: usize,
        read: impl FnOnce() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let side = &self.watched.reading;
        if !side.is_ready.get() {
            return side.wait(cx);
        }
        match read() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                side.is_ready.set(false);
                side.wait(cx)
            }
            Ok(read) => {
                // There was no more, and what comes now is told anew. An end comes but once.
                if read < len && !self.watched.is_left.get() {
                    side.is_ready.set(false);
                }
                Poll::Ready(Ok(read))
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Runs `write`, which must not block. Pending: there is no room, and the task of `cx` is woken when there is.
    pub fn poll_write(
        &self,
        cx: &Context<'_>,
        write: impl FnOnce() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        match write() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.watched.writing.wait(cx),
            result => Poll::Ready(result),
        }
    }

    /// Has `sender` send when the turn is over, with others. `false`: nobody waits for its end.
    pub fn send_later(&self, sender: Rc<dyn Sender>) -> bool {
        self.poller.is_in_turn.get() && self.poller.turn.join(sender)
    }

    /// When the poller last looked.
    pub fn seen_at(&self) -> Duration {
        self.poller.seen_at.get()
    }

    /// For how many sockets there was something then.
    pub fn seen(&self) -> usize {
        self.poller.seen.get()
    }

    /// Ceases to watch. `socket` is the one that was given.
    pub fn leave(&self, socket: impl AsFd) {
        // Else a duplicate that lives on elsewhere would go on to be watched under a key that others get.
        let _ = epoll::delete(&self.poller.epoll, socket);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.poller.watched.borrow_mut().remove(self.key);
    }
}

#[cfg(test)]
mod tests;
