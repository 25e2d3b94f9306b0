//! One thread: an epoll loop over the connections of its clients.
//!
//! A turn reads what is ready, takes the time once per connection, records all replies of that read at
//! that time, and writes all that these let the client send with one call. In an open loop a heap holds
//! the next intended send of every client that the server does not hold up, and a timer wakes the loop
//! to the nanosecond where epoll's own timeout rounds up to the next millisecond.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use crate::client::{Client, Pacing, Scratch, Shared, Workload};
use crate::cpu;
use crate::record::{Recorder, Second, Totals};
use crate::wire::Wire;

/// One read takes at most this much; a reply that is larger takes several.
const READ_BYTES: usize = 256 << 10;
/// What a read adds to a reply that was cut.
const PARTIAL_READ_BYTES: usize = 64 << 10;
const EVENTS_MAX: usize = 512;
const TIMER: u64 = u64::MAX;
/// How long the loop may sleep without looking whether it shall stop.
const NAP: u64 = 100_000_000;
/// How long after the end replies are waited for.
pub const DRAIN: u64 = 10_000_000_000;

/// Nanoseconds since the start of the run, the same for all threads.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    #[inline]
    pub fn now(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// What a worker is to do until when.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    pub begin: u64,
    pub from: u64,
    pub until: u64,
    /// Requests that may be begun from `from` on.
    pub quota: u64,
    pub open_loop: bool,
}

/// What came of it.
pub struct Outcome {
    pub totals: Totals,
    pub recorder: Recorder,
    /// When the measured window ended for this worker.
    pub end: u64,
    /// Sends that were due and never made, because the server held them up to the last.
    pub unsent: u64,
    /// Processor and wall time in the measured window.
    pub cpu: Duration,
    pub wall: Duration,
    /// What ended it early.
    pub error: Option<anyhow::Error>,
}

pub struct Worker<W> {
    pub clients: Vec<Client<W>>,
    workload: Arc<Workload>,
    clock: Clock,
    epoll: OwnedFd,
    timer: OwnedFd,
    spin: bool,
    /// An open loop does something at multiples of so many nanoseconds only.
    tick: Option<u64>,
    /// The socket of lane `l` of client `c` is number `c * lanes_each + l`.
    sockets: Vec<Socket>,
    lanes_each: usize,
    buffer: Vec<u8>,
    scratch: Scratch,
    /// Clients with several lanes that have had replies in this turn.
    to_pump: Vec<usize>,
    schedule: BinaryHeap<Reverse<(u64, usize)>>,
    /// Per client: is on the list, is on the heap.
    pumping: Vec<bool>,
    scheduled: Vec<bool>,
}

struct Socket {
    stream: TcpStream,
    wants_write: bool,
}

impl<W: Wire> Worker<W> {
    pub fn new(
        workload: Arc<Workload>,
        clock: Clock,
        lanes_each: usize,
        spin: bool,
        tick: Option<Duration>,
    ) -> Result<Worker<W>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll_create failed")?;
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )
        .context("timerfd_create failed")?;
        // Edge-triggered, so that an expired timer need not be read.
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN | EventFlags::ET)
            .context("epoll_ctl failed")?;
        Ok(Worker {
            clients: Vec::new(),
            workload,
            clock,
            epoll,
            timer,
            spin,
            tick: tick.map(|tick| tick.as_nanos() as u64),
            sockets: Vec::new(),
            lanes_each,
            buffer: vec![0; READ_BYTES],
            scratch: Scratch::default(),
            to_pump: Vec::new(),
            schedule: BinaryHeap::new(),
            pumping: Vec::new(),
            scheduled: Vec::new(),
        })
    }

    /// Adds a client and the socket of each of its lanes.
    pub fn add(&mut self, client: Client<W>, streams: Vec<TcpStream>) -> Result<()> {
        assert!(client.lanes.len() == self.lanes_each && streams.len() == self.lanes_each);
        for stream in streams {
            stream.set_nonblocking(true).context("a socket cannot be made nonblocking")?;
            let token = EventData::new_u64(self.sockets.len() as u64);
            epoll::add(&self.epoll, &stream, token, EventFlags::IN).context("epoll_ctl failed")?;
            self.sockets.push(Socket { stream, wants_write: false });
        }
        self.clients.push(client);
        self.pumping.push(false);
        self.scheduled.push(false);
        Ok(())
    }

    /// Runs one phase to its end, to a fault, or until `stop` is set and what is in flight has been answered.
    pub fn run(&mut self, phase: Phase, stop: &[&AtomicBool], seconds: &Sender<Second>) -> Outcome {
        let workload = Arc::clone(&self.workload);
        let loads = self.clients.iter().any(|client| matches!(client.pacing, Pacing::Load { .. }));
        let used = |kind| if loads { kind == crate::mix::OpKind::Set } else { workload.mix.has(kind) };
        let mut turn = Turn {
            recorder: Recorder::new(phase.begin, phase.from, phase.until, phase.open_loop, used),
            quota: phase.quota,
            stop,
            seconds,
            cpu_start: None,
        };
        // Threads take their time to start; the run begins for all of them at once.
        std::thread::sleep(Duration::from_nanos(phase.begin.saturating_sub(self.clock.now())));
        let error = self.turns(&mut turn, phase).err();
        let now = self.clock.now();
        let (cpu_start, wall_start) = turn.cpu_start.unwrap_or((cpu::of_this_thread(), now));
        let cpu = cpu::of_this_thread().saturating_sub(cpu_start);
        let wall = Duration::from_nanos(now - wall_start);
        let mut recorder = turn.recorder;
        let mut unsent = 0;
        for client in &mut self.clients {
            for flight in client.lanes.iter().flat_map(|lane| lane.in_flight.waiting()) {
                recorder.gave_up(flight.kind, flight.intended, now);
            }
            if let Pacing::Open(table) = &mut client.pacing {
                while turn.quota > 0 && table.next() < recorder.until {
                    unsent += u64::from(table.next() >= recorder.from);
                    table.advance();
                }
            }
        }
        let end = if error.is_some() {
            now
        } else if turn.quota == 0 {
            recorder.last_reply
        } else {
            recorder.until
        };
        let (totals, recorder) = recorder.finish();
        let end = end.min(recorder.until).max(recorder.from);
        Outcome { totals, end, recorder, unsent, cpu, wall, error }
    }

    fn turns(&mut self, turn: &mut Turn<'_>, phase: Phase) -> Result<()> {
        self.schedule.clear();
        self.scheduled.fill(false);
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut now = self.clock.now();
        turn.begin(now);
        for client in 0..self.clients.len() {
            self.pump(client, now, turn)?;
        }
        loop {
            now = self.clock.now();
            turn.begin(now);
            if phase.open_loop {
                self.send_due(now, turn)?;
            }
            if self.is_done(now, turn) {
                return Ok(());
            }
            if now >= turn.recorder.until.saturating_add(DRAIN) {
                // What is still missing is counted by the caller.
                return Ok(());
            }
            self.wait(now, phase, turn, &mut events)?;
            self.handle_events(&events, turn)?;
        }
    }

    fn is_done(&self, now: u64, turn: &Turn<'_>) -> bool {
        let until = turn.recorder.until;
        // In the middle of a run the first client says no at once.
        self.clients.iter().all(|client| client.in_flight() == 0 && !client.has_more(now, until, turn.quota))
    }

    /// Sleeps until a socket is ready or something is due.
    fn wait(&self, now: u64, phase: Phase, turn: &Turn<'_>, events: &mut Vec<Event>) -> Result<()> {
        let recorder = &turn.recorder;
        let mut wake = recorder.second_end().min(now + NAP);
        if now < recorder.until {
            wake = wake.min(recorder.until);
        }
        if let Some(Reverse((due, _))) = self.schedule.peek() {
            wake = wake.min(*due);
        }
        let mut nanos = wake.saturating_sub(now);
        if let Some(tick) = self.tick.filter(|_| phase.open_loop) {
            std::thread::sleep(Duration::from_nanos(tick - now % tick));
            nanos = 0;
        }
        let timeout = if nanos == 0 || self.spin && phase.open_loop {
            Timespec { tv_sec: 0, tv_nsec: 0 }
        } else if phase.open_loop {
            let value =
                Timespec { tv_sec: (nanos / 1_000_000_000) as i64, tv_nsec: (nanos % 1_000_000_000) as i64 };
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
            rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)
                .context("timerfd_settime failed")?;
            Timespec { tv_sec: 1, tv_nsec: 0 }
        } else {
            // Whole milliseconds, for which a kernel of any age will do. A nap is less than a second.
            Timespec { tv_sec: 0, tv_nsec: (nanos.div_ceil(1_000_000) * 1_000_000).min(999_000_000) as i64 }
        };
        events.clear();
        match epoll::wait(&self.epoll, spare_capacity(events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("epoll_wait failed"),
        }
    }

    fn handle_events(&mut self, events: &[Event], turn: &mut Turn<'_>) -> Result<()> {
        for event in events {
            let (token, flags) = (event.data.u64(), event.flags);
            if token == TIMER {
                continue;
            }
            let number = token as usize;
            let client = number / self.lanes_each;
            if flags.contains(EventFlags::OUT) {
                self.flush(number)?;
            }
            let now = if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                self.read(number, turn)?
            } else {
                self.clock.now()
            };
            if self.lanes_each == 1 {
                self.pump(client, now, turn)?;
            } else if !self.pumping[client] {
                // Its other lanes may be ready in this turn too: their requests go out together.
                self.pumping[client] = true;
                self.to_pump.push(client);
            }
        }
        if let Some(client) = self.to_pump.pop() {
            let now = self.clock.now();
            turn.begin(now);
            self.pumping[client] = false;
            self.pump(client, now, turn)?;
            while let Some(client) = self.to_pump.pop() {
                self.pumping[client] = false;
                self.pump(client, now, turn)?;
            }
        }
        Ok(())
    }

    /// Sends what is due by the timetables.
    fn send_due(&mut self, now: u64, turn: &mut Turn<'_>) -> Result<()> {
        while let Some(&Reverse((due, client))) = self.schedule.peek() {
            if due > now {
                return Ok(());
            }
            self.schedule.pop();
            self.scheduled[client] = false;
            self.pump(client, now, turn)?;
        }
        Ok(())
    }

    /// Lets a client send all that it may.
    #[inline]
    fn pump(&mut self, client: usize, now: u64, turn: &mut Turn<'_>) -> Result<()> {
        loop {
            self.scratch.touched.clear();
            let mut shared = turn.shared(&self.workload, &mut self.scratch);
            self.clients[client].fill(now, &mut shared);
            if self.scratch.touched.is_empty() {
                break;
            }
            for at in 0..self.scratch.touched.len() {
                self.flush(client * self.lanes_each + self.scratch.touched[at])?;
            }
            // Large values stop at the buffer's limit before the pipeline is full; go on if they are gone.
        }
        if !self.scheduled[client]
            && let Some(due) = self.clients[client].due(turn.recorder.until, turn.quota)
        {
            self.scheduled[client] = true;
            self.schedule.push(Reverse((due, client)));
        }
        Ok(())
    }

    /// Writes what a lane has to send, as much as the socket takes.
    #[inline]
    fn flush(&mut self, number: usize) -> Result<()> {
        let lane = &mut self.clients[number / self.lanes_each].lanes[number % self.lanes_each];
        let socket = &mut self.sockets[number];
        lane.dirty = false;
        if lane.outgoing.len() > 0 {
            match socket.stream.write(lane.outgoing.unsent()) {
                Ok(count) => lane.outgoing.advance(count),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("a connection broke while sending"),
            }
        }
        let wants_write = lane.outgoing.len() > 0;
        if wants_write != socket.wants_write {
            socket.wants_write = wants_write;
            let flags = if wants_write { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(&self.epoll, &socket.stream, EventData::new_u64(number as u64), flags)
                .context("epoll_ctl failed")?;
        }
        Ok(())
    }

    /// Reads once and takes in all whole replies. Returns when that was.
    #[inline]
    fn read(&mut self, number: usize, turn: &mut Turn<'_>) -> Result<u64> {
        let client = &mut self.clients[number / self.lanes_each];
        let lane = number % self.lanes_each;
        let stream = &mut self.sockets[number].stream;
        let mut partial = std::mem::take(&mut client.lanes[lane].partial);
        let mut filled = client.lanes[lane].partial_len;
        let count = if filled == 0 {
            stream.read(&mut self.buffer)
        } else {
            if partial.len() < filled + PARTIAL_READ_BYTES {
                partial.resize(filled + PARTIAL_READ_BYTES, 0);
            }
            stream.read(&mut partial[filled..])
        };
        let now = self.clock.now();
        turn.begin(now);
        let count = match count {
            Ok(0) => bail!("the server closed a connection"),
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(error) => return Err(anyhow!(error).context("a connection broke while reading")),
        };
        let mut shared = turn.shared(&self.workload, &mut self.scratch);
        if filled == 0 {
            let input = &self.buffer[..count];
            let taken = client.receive(lane, input, now, &mut shared)?;
            filled = count - taken;
            if filled > 0 {
                if partial.len() < filled {
                    partial.resize(filled, 0);
                }
                partial[..filled].copy_from_slice(&input[taken..]);
            }
        } else {
            filled += count;
            let taken = client.receive(lane, &partial[..filled], now, &mut shared)?;
            partial.copy_within(taken..filled, 0);
            filled -= taken;
            if filled == 0 && partial.len() > READ_BYTES {
                partial = Vec::new();
            }
        }
        let lane = &mut client.lanes[lane];
        lane.partial = partial;
        lane.partial_len = filled;
        Ok(now)
    }
}

/// What the loop carries from turn to turn.
struct Turn<'a> {
    recorder: Recorder,
    quota: u64,
    stop: &'a [&'a AtomicBool],
    seconds: &'a Sender<Second>,
    cpu_start: Option<(Duration, u64)>,
}

impl Turn<'_> {
    /// Notes what time it is: ends seconds, begins the measured window, stops when told to.
    #[inline]
    fn begin(&mut self, now: u64) {
        while now >= self.recorder.second_end() {
            // The receiver is gone only when the run is being given up.
            let _ = self.seconds.send(self.recorder.end_second());
        }
        if self.cpu_start.is_none() && now >= self.recorder.from {
            self.cpu_start = Some((cpu::of_this_thread(), now));
        }
        if self.recorder.until > now && self.stop.iter().any(|stop| stop.load(Ordering::Relaxed)) {
            self.recorder.until = now;
        }
    }

    #[inline]
    fn shared<'s>(&'s mut self, workload: &'s Workload, scratch: &'s mut Scratch) -> Shared<'s> {
        Shared { workload, recorder: &mut self.recorder, scratch, quota: &mut self.quota }
    }
}
