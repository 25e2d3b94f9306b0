//! The front acceptor: a plain thread that accepts connections and hands each to a shard.
//!
//! A thread and not an executor's task, since an accept that is raced or dropped on the ring takes
//! connections out of the backlog and loses them. It waits in `poll`, and holds the last port of the mesh.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::protocol::binary::TOO_MANY_CONNECTIONS;
use crate::shard::mesh::Port;
use crate::shard::{Arrival, Message};

/// After an error that will not go away at once (no descriptors left), and while some shard's queue is
/// full.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// What may happen thousands of times a second is told once in so long, with how often.
const QUIET: Duration = Duration::from_secs(1);

/// Something that is told now and then.
#[derive(Default)]
struct Rarely {
    /// How often it happened since it was told.
    count: u64,
    told: Option<Instant>,
}

impl Rarely {
    /// It happens at `now`. `Some`, if it is to be told: how often since it was told last.
    fn happens(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < QUIET) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

/// Counts the connections of the whole server.
pub struct Connections {
    open: AtomicUsize,
    max: usize,
}

impl Connections {
    /// At most `max`.
    pub fn new(max: usize) -> Arc<Connections> {
        Arc::new(Connections { open: AtomicUsize::new(0), max })
    }

    fn enter(&self) -> bool {
        self.open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < self.max).then_some(n + 1))
            .is_ok()
    }

    /// One less.
    pub fn leave(&self) {
        let before = self.open.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "a connection ends once");
    }
}

/// The running acceptor.
pub struct Acceptor {
    stop: UnixStream,
    thread: JoinHandle<Port<Message>>,
}

impl Acceptor {
    /// Starts to accept on `listener` for all shards, one after the other, and on those of `nodes` for the shard with
    /// that index. `port` is the mesh's last; those before it are the shards'.
    pub fn start(
        listener: TcpListener,
        nodes: Vec<TcpListener>,
        port: Port<Message>,
        connections: Arc<Connections>,
    ) -> io::Result<Acceptor> {
        assert!(nodes.is_empty() || nodes.len() == port.peers() - 1, "each shard is a node, or none is");
        let mut doors = vec![Door { listener, shard: None }];
        doors.extend(
            nodes.into_iter().zip(0..).map(|(listener, shard)| Door { listener, shard: Some(shard) }),
        );
        doors.iter().try_for_each(|door| door.listener.set_nonblocking(true))?;
        let (stop, stopped) = UnixStream::pair()?;
        let thread = std::thread::Builder::new().name("acceptor".to_owned()).spawn(move || {
            accept_until(&doors, &stopped, &port, &connections);
            port
        })?;
        Ok(Acceptor { stop, thread })
    }

    /// Stops accepting; those in the backlog are refused by the closing socket. Gives the port back.
    pub fn stop(mut self) -> Port<Message> {
        let _ = self.stop.write_all(&[1]); // an error means that the thread has ended already
        self.thread.join().unwrap_or_else(|_| unreachable!("a panic ends the process"))
    }
}

/// Where connections come in.
struct Door {
    listener: TcpListener,
    /// The shard that they are for, if clients chose it.
    shard: Option<usize>,
}

fn accept_until(doors: &[Door], mut stopped: &UnixStream, port: &Port<Message>, connections: &Connections) {
    let mut turns = Turns { shards: port.peers() - 1, ..Turns::default() };
    let first = [PollFd::new(stopped, PollFlags::IN)];
    let others = doors.iter().map(|door| PollFd::new(&door.listener, PollFlags::IN));
    let mut fds: Vec<PollFd<'_>> = first.into_iter().chain(others).collect();
    loop {
        port.flush();
        let is_congested = port.congested();
        let watched = if is_congested { &mut fds[..1] } else { &mut fds[..] };
        let _ = poll(watched, if is_congested { Some(&PAUSE) } else { None }); // an interruption is a wake-up
        if !fds[0].revents().is_empty() {
            let _ = stopped.read(&mut [0]);
            return;
        }
        for door in doors {
            accept_some(door, stopped, port, connections, &mut turns);
        }
    }
}

/// What [`accept_until`] remembers.
#[derive(Default)]
struct Turns {
    shards: usize,
    /// The shard that the next connection is for that chose none.
    next: usize,
    refusals: Rarely,
    failures: Rarely,
}

impl Turns {
    fn next(&mut self) -> usize {
        let next = self.next;
        self.next = (next + 1) % self.shards;
        next
    }
}

/// Accepts what waits at one door, unless the mesh is full.
fn accept_some(
    door: &Door,
    stopped: &UnixStream,
    port: &Port<Message>,
    connections: &Connections,
    turns: &mut Turns,
) {
    while !port.congested() {
        match door.listener.accept() {
            Ok((stream, _)) if connections.enter() => {
                let shard = door.shard.unwrap_or_else(|| turns.next());
                let is_node = door.shard.is_some();
                port.send(shard, Message::Connection(Arrival { stream, read: Vec::new(), is_node }));
            }
            Ok((stream, peer)) => {
                if let Some(refused) = turns.refusals.happens(Instant::now()) {
                    let max = connections.max;
                    tracing::warn!(%peer, max, refused, "refused connections: there are too many");
                }
                refuse(&stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if let Some(times) = turns.failures.happens(Instant::now()) {
                    tracing::error!(times, "a connection can't be accepted: {error}");
                }
                let _ = poll(&mut [PollFd::new(stopped, PollFlags::IN)], Some(&PAUSE));
                return;
            }
        }
    }
}

/// Turns a connection away, whose protocol is not known yet, with a line that clients of either understand.
fn refuse(mut stream: &TcpStream) {
    // Fits the empty socket buffer of a new connection; a client that is gone needs no answer.
    let _ = stream.set_nonblocking(true);
    let _ = stream.write(TOO_MANY_CONNECTIONS);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_turned_away_reads_why_also_if_it_has_sent_something() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        client.write_all(b"PING\r\n").expect("it is connected");
        let (server, _) = listener.accept().expect("one is there");
        refuse(&server);
        drop(server);
        let mut line = vec![0; TOO_MANY_CONNECTIONS.len()];
        client.read_exact(&mut line).expect("the line comes before the end");
        assert_eq!(line, TOO_MANY_CONNECTIONS);
    }

    #[test]
    fn what_happens_often_is_told_once_a_second_with_its_number() {
        let (mut rarely, begin) = (Rarely::default(), Instant::now());
        let told: Vec<_> = (0..3_500)
            .filter_map(|ms| rarely.happens(begin + Duration::from_millis(ms)).map(|count| (ms, count)))
            .collect();
        assert_eq!(told, [(0, 1), (1_000, 1_000), (2_000, 1_000), (3_000, 1_000)]);
    }
}
