//! The mesh: one bounded ring per ordered pair of peers, and one inbox per peer that wakes it.
//!
//! Invariants:
//! - Sending never waits. What does not fit the ring goes to a local overflow list, in order.
//! - Receiving never waits for sending: a peer drains every ring that is not empty before it sleeps.
//!   So two peers with full rings towards each other both make progress, and no cycle of waiting can
//!   form, whatever the ring size.
//! - While [`Port::congested`] holds, its owner takes in no new work (it stops reading sockets). So the
//!   overflow lists hold at most what was being executed when the ring filled.
//! - One wake-up per batch: an inbox that is already signalled is not signalled again.
//!
//! Rings are wait-free single-producer single-consumer queues and the wake-up is an atomic waker, so the
//! mesh works on any executor, across threads, and inside the simulator.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use atomic_waker::AtomicWaker;
use rtrb::{Consumer, Producer, PushError, RingBuffer};

/// Wakes one peer. Shared by all who send to it.
#[derive(Default)]
pub struct Inbox {
    signalled: AtomicBool,
    /// Its peer looks here by itself, again and again.
    attended: AtomicBool,
    waker: AtomicWaker,
}

impl Inbox {
    /// There is something to look at. Callable from any thread.
    pub fn signal(&self) {
        // In one order with what [`Inbox::attend`] and [`Inbox::look`] do: either it is seen here that nobody looks any
        // more, or the last look sees the signal.
        if !self.signalled.swap(true, Ordering::SeqCst) && !self.attended.load(Ordering::SeqCst) {
            self.waker.wake();
        }
    }

    /// From here on its peer [looks](Inbox::look) by itself, so that it need not be woken from afar; or no longer does:
    /// then it looks once more.
    pub fn attend(&self, does: bool) {
        self.attended.store(does, Ordering::SeqCst);
    }

    /// Whether there is a signal. If so, who waits for it is woken. For its own peer.
    pub fn look(&self) -> bool {
        let is_signalled = self.signalled.load(Ordering::SeqCst);
        if is_signalled {
            self.waker.wake();
        }
        is_signalled
    }

    /// Waits for a signal and takes it. One task per inbox may wait.
    pub async fn signalled(&self) {
        poll_fn(|cx| {
            if self.signalled.swap(false, Ordering::SeqCst) {
                return Poll::Ready(());
            }
            self.waker.register(cx.waker());
            // A signal between the swap and the registration would find no waker to wake.
            if self.signalled.swap(false, Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// One direction between two peers, as its sender sees it.
struct Outgoing<M> {
    ring: Producer<M>,
    overflow: VecDeque<M>,
    inbox: Arc<Inbox>,
    /// Set while the overflow is not empty: the receiver signals us once it has made room.
    starved: Arc<AtomicBool>,
}

/// One direction between two peers, as its receiver sees it.
struct Incoming<M> {
    ring: Consumer<M>,
    inbox: Arc<Inbox>,
    starved: Arc<AtomicBool>,
}

/// One peer's end of the mesh. Belongs to one thread.
pub struct Port<M> {
    inbox: Arc<Inbox>,
    /// Messages sent to others, ever.
    sent: Cell<u64>,
    /// Whether some overflow list has become empty since this was last asked.
    is_relieved: Cell<bool>,
    outgoing: RefCell<Vec<Option<Outgoing<M>>>>,
    incoming: RefCell<Vec<Option<Incoming<M>>>>,
}

/// Wires `peers` ports to each other with rings of `capacity` messages.
pub fn mesh<M>(peers: usize, capacity: usize) -> Vec<Port<M>> {
    assert!(capacity > 0, "a ring holds at least one message");
    let inboxes: Vec<Arc<Inbox>> = (0..peers).map(|_| Arc::default()).collect();
    let empty = |n: usize| (0..n).map(|_| None).collect::<Vec<Option<_>>>();
    let mut outgoing: Vec<Vec<Option<Outgoing<M>>>> = (0..peers).map(|_| empty(peers)).collect();
    let mut incoming: Vec<Vec<Option<Incoming<M>>>> =
        (0..peers).map(|_| (0..peers).map(|_| None).collect()).collect();
    for source in 0..peers {
        for target in (0..peers).filter(|&target| target != source) {
            let (producer, consumer) = RingBuffer::new(capacity);
            let starved = Arc::new(AtomicBool::new(false));
            outgoing[source][target] = Some(Outgoing {
                ring: producer,
                overflow: VecDeque::new(),
                inbox: inboxes[target].clone(),
                starved: starved.clone(),
            });
            incoming[target][source] =
                Some(Incoming { ring: consumer, inbox: inboxes[source].clone(), starved });
        }
    }
    inboxes
        .into_iter()
        .zip(outgoing.into_iter().zip(incoming))
        .map(|(inbox, (outgoing, incoming))| Port {
            inbox,
            sent: Cell::new(0),
            is_relieved: Cell::new(false),
            outgoing: RefCell::new(outgoing),
            incoming: RefCell::new(incoming),
        })
        .collect()
}

impl<M> Outgoing<M> {
    /// Moves what fits from the overflow into the ring. Returns whether anything moved.
    fn drain_overflow(&mut self) -> bool {
        let mut moved = false;
        while let Some(message) = self.overflow.pop_front() {
            if let Err(PushError::Full(message)) = self.ring.push(message) {
                self.overflow.push_front(message);
                break;
            }
            moved = true;
        }
        moved
    }
}

impl<M> Port<M> {
    /// What wakes this peer; for whoever has to stop it from outside.
    pub fn inbox(&self) -> Arc<Inbox> {
        self.inbox.clone()
    }

    /// Messages that this peer has sent.
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Number of peers, this one included.
    pub fn peers(&self) -> usize {
        self.outgoing.borrow().len()
    }

    /// Sends, or queues locally if the ring is full. Order per target is kept.
    ///
    /// # Panics
    /// If `target` is this peer or none.
    pub fn send(&self, target: usize, message: M) {
        let mut outgoing = self.outgoing.borrow_mut();
        let out = outgoing[target].as_mut().expect("a peer sends only to others");
        self.sent.set(self.sent.get() + 1);
        if out.overflow.is_empty() {
            if let Err(PushError::Full(message)) = out.ring.push(message) {
                out.overflow.push_back(message);
            }
        } else {
            out.overflow.push_back(message);
        }
        if !out.overflow.is_empty() {
            self.settle(out);
        }
        out.inbox.signal();
    }

    /// Tries to empty the overflow lists. Called whenever this peer wakes.
    pub fn flush(&self) {
        for out in self.outgoing.borrow_mut().iter_mut().flatten() {
            if !out.overflow.is_empty() {
                self.settle(out);
                out.inbox.signal();
            }
        }
    }

    /// Asks the receiver for a signal *before* trying once more, so that room made in between is seen
    /// by one of the two.
    fn settle(&self, out: &mut Outgoing<M>) {
        out.starved.store(true, Ordering::SeqCst);
        out.drain_overflow();
        if out.overflow.is_empty() {
            out.starved.store(false, Ordering::SeqCst);
            // Whoever serves this port tells those who wait. It may not be the one who is sending, and the
            // receiver may have seen no reason to signal.
            self.is_relieved.set(true);
            self.inbox.signal();
        }
    }

    /// Whether some overflow list has become empty since this was last asked.
    pub fn take_relief(&self) -> bool {
        self.is_relieved.take()
    }

    /// Whether some overflow list is not empty.
    pub fn congested(&self) -> bool {
        self.outgoing.borrow().iter().flatten().any(|out| !out.overflow.is_empty())
    }

    /// Takes at most `limit` messages from each peer in turn into `into`, with the sender's number.
    /// Returns whether there may be more.
    pub fn receive(&self, limit: usize, into: &mut Vec<(usize, M)>) -> bool {
        let mut more = false;
        for (source, incoming) in self.incoming.borrow_mut().iter_mut().enumerate() {
            let Some(incoming) = incoming else { continue };
            let mut taken = 0;
            while taken < limit {
                let Ok(message) = incoming.ring.pop() else { break };
                into.push((source, message));
                taken += 1;
            }
            if taken > 0 && incoming.starved.swap(false, Ordering::SeqCst) {
                incoming.inbox.signal();
            }
            more |= taken == limit;
        }
        more
    }

    /// Waits until there may be something to receive or to flush.
    pub async fn wait(&self) {
        self.inbox.signalled().await;
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use futures_lite::future::block_on;

    use super::*;
    use crate::env::glommio::{Locked, spawn_executor};

    /// Every peer floods every other through rings of one message, and echoes whatever it is asked, so
    /// that all rings are full in both directions all the time. If any send could wait, this would hang.
    #[test]
    fn full_rings_in_every_direction_do_not_deadlock() {
        const PEERS: usize = 3;
        const ASKS: usize = 2_000;
        enum Ask {
            Ping(usize),
            Pong(usize),
        }
        let threads: Vec<_> = mesh::<Ask>(PEERS, 1)
            .into_iter()
            .enumerate()
            .map(|(me, port)| {
                thread::spawn(move || {
                    block_on(async {
                        let others: Vec<usize> = (0..PEERS).filter(|&p| p != me).collect();
                        let (mut sent, mut asked) = (0, 0);
                        let mut answered = [0usize; PEERS];
                        let mut inbox = Vec::new();
                        while asked < ASKS * others.len()
                            || answered.iter().sum::<usize>() < ASKS * others.len()
                            || port.congested()
                        {
                            // Take in new work only while not congested, as a shard does.
                            while sent < ASKS && !port.congested() {
                                others.iter().for_each(|&p| port.send(p, Ask::Ping(sent)));
                                sent += 1;
                            }
                            let had_overflow = port.congested();
                            port.flush();
                            let more = port.receive(16, &mut inbox);
                            // Nobody owes a signal to a peer whose own overflow has just drained.
                            let idle = if sent < ASKS {
                                port.congested()
                            } else {
                                !had_overflow || port.congested()
                            };
                            if idle && !more && inbox.is_empty() {
                                port.wait().await;
                            }
                            for (source, message) in inbox.drain(..) {
                                match message {
                                    Ask::Ping(n) => {
                                        asked += 1;
                                        port.send(source, Ask::Pong(n));
                                    }
                                    Ask::Pong(n) => {
                                        assert_eq!(n, answered[source], "order per pair is kept");
                                        answered[source] += 1;
                                    }
                                }
                            }
                        }
                    });
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no peer fails");
        }
    }

    #[test]
    fn overflow_keeps_order_and_drains_when_room_is_made() {
        let mut ports = mesh::<u32>(2, 2).into_iter();
        let (a, b) = (ports.next().unwrap(), ports.next().unwrap());
        (0..10).for_each(|n| a.send(1, n));
        assert!(a.congested());
        let mut got = Vec::new();
        while got.len() < 10 {
            b.receive(1, &mut got);
            if a.congested() {
                block_on(a.wait()); // `b` made room, so it must have signalled
                a.flush();
            }
        }
        assert!(!a.congested());
        assert_eq!(got.into_iter().map(|(_, n)| n).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    }

    /// A connection that waited for the congestion to end was not told when a send had ended it.
    #[test]
    fn a_send_that_ends_the_congestion_says_so() {
        let mut ports = mesh::<u32>(2, 2).into_iter();
        let (a, b) = (ports.next().unwrap(), ports.next().unwrap());
        (0..3).for_each(|n| a.send(1, n));
        assert!(a.congested() && !a.take_relief());
        let mut got = Vec::new();
        b.receive(8, &mut got);
        block_on(a.wait()); // as a task that has not run yet
        a.send(1, 3);
        assert!(!a.congested());
        assert!(block_on(futures_lite::future::poll_once(a.wait())).is_some(), "it is woken");
        assert!(a.take_relief() && !a.take_relief());
    }

    /// The runtime's own channels count each poll of an idle receiver, and end the executor after 32,766.
    #[test]
    fn an_idle_mesh_can_be_polled_for_ever() {
        const TICKS: usize = 40_000;
        let executors: Vec<_> = mesh::<usize>(2, 4)
            .into_iter()
            .enumerate()
            .map(|(me, port)| {
                let name = format!("idle-{me}");
                let work = move || async move {
                    let mut inbox = Vec::new();
                    for _ in 0..TICKS {
                        // Polled once and dropped, which is what a race with a timer comes to.
                        let idle = futures_lite::future::poll_once(port.wait()).await;
                        assert!(idle.is_none() && !port.receive(4, &mut inbox), "nobody sends yet");
                        futures_lite::future::yield_now().await;
                    }
                    assert!(inbox.is_empty());
                    // The peer may still be counting; it looks only when it is done.
                    TICKS_DONE.wait();
                    port.send(1 - me, me);
                    while inbox.is_empty() {
                        port.wait().await;
                        port.receive(4, &mut inbox);
                    }
                    inbox
                };
                spawn_executor(&name, None, Locked::ample(1 << 20), work).expect("it starts")
            })
            .collect();
        for (me, executor) in executors.into_iter().enumerate() {
            assert_eq!(executor.join().expect("no panic"), [(1 - me, 1 - me)]);
        }
    }

    /// Both executors have counted to the end.
    static TICKS_DONE: std::sync::Barrier = std::sync::Barrier::new(2);
}
