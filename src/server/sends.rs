//! Sends of one turn, handed to the kernel together.
//!
//! A turn answers many connections, a send each. Through a ring they enter the kernel once for all. Nothing is left
//! under way: a send takes what the socket has room for, or tells that there is none, before the call returns
//! (`MSG_DONTWAIT`), so that the bytes may stay where they are.

use std::cell::{Ref, RefCell};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::rc::Rc;

use io_uring::{IoUring, opcode, types};
use smallvec::SmallVec;

use crate::env::glommio::SEND_RING_ENTRIES;

/// Sends that enter the kernel together, at most.
const MOST: usize = SEND_RING_ENTRIES as usize;
/// Bytes of one, at most.
const BYTES_MAX: usize = 64 << 10;
/// For fewer, calls of their own cost no more.
const TOGETHER_MIN: usize = 2;

/// One who has something to send.
pub trait Sender {
    /// Where to.
    fn socket(&self) -> BorrowedFd<'_>;

    /// What is to be sent; nothing, if it is not the time for that.
    fn to_send(&self) -> Ref<'_, [u8]>;

    /// The socket took so many bytes of that. 0: it has no room, or is broken, or was not asked: a send of its own will
    /// tell. May be called though nothing was to be sent. It must not send for others: what they have to send may have
    /// left already, and they are told next.
    fn sent(&self, len: usize);
}

/// One executor's ring for sends.
pub struct SendRing {
    ring: RefCell<IoUring>,
}

impl SendRing {
    /// Errors: no memory may be locked for it; a kernel that has no rings.
    pub fn new() -> io::Result<SendRing> {
        Ok(SendRing { ring: IoUring::new(SEND_RING_ENTRIES)?.into() })
    }

    /// Has each of `senders` send what its socket takes now. Blocks the thread while the kernel has no memory for that:
    /// what it was given can't be taken back.
    fn send(&self, senders: &[Rc<dyn Sender>]) -> SmallVec<[usize; MOST]> {
        assert!(senders.len() <= MOST, "as many as the ring has room for");
        let mut ring = self.ring.borrow_mut();
        let mut lens = SmallVec::from_elem(0, senders.len());
        // Borrowed until the kernel is through with all of them.
        let bytes: SmallVec<[Ref<'_, [u8]>; MOST]> = senders.iter().map(|sender| sender.to_send()).collect();
        let mut under_way = 0;
        for (place, (sender, bytes)) in
            senders.iter().zip(&bytes).enumerate().filter(|(_, (_, b))| !b.is_empty())
        {
            let len = bytes.len().min(BYTES_MAX) as u32;
            let entry = opcode::Send::new(types::Fd(sender.socket().as_raw_fd()), bytes.as_ptr(), len)
                .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                .build();
            // SAFETY: the bytes are borrowed, and the descriptor is open, until this function returns, which it does
            // when the kernel has told of every send.
            let pushed = unsafe { ring.submission().push(&entry.user_data(place as u64)) };
            pushed.expect("there is room for as many as were counted");
            under_way += 1;
        }
        while under_way > 0 {
            match ring.submit_and_wait(under_way) {
                Ok(_) => {}
                Err(error) if is_passing(&error) => std::thread::yield_now(),
                Err(error) => {
                    // What it may still read is about to go.
                    tracing::error!("the ring for sends does not take them: {error}");
                    std::process::abort();
                }
            }
            for event in ring.completion() {
                lens[event.user_data() as usize] = usize::try_from(event.result()).unwrap_or(0);
                under_way -= 1;
            }
        }
        lens
    }
}

/// Whether the same call may well succeed later.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM))
}

/// Those who send when the turn is over: each connection of the shard once, at most.
pub struct Turn {
    ring: Option<SendRing>,
    senders: RefCell<Vec<Rc<dyn Sender>>>,
}

impl Turn {
    /// Whose sends go through `ring`, if there is one.
    pub fn new(ring: Option<SendRing>) -> Turn {
        Turn { ring, senders: RefCell::default() }
    }

    /// Takes one more; once, until it is told. `false`: all send by themselves.
    pub fn join(&self, sender: Rc<dyn Sender>) -> bool {
        if self.ring.is_some() {
            self.senders.borrow_mut().push(sender);
        }
        self.ring.is_some()
    }

    /// Sends for all who have joined, and tells them. Whether there were any.
    pub fn end(&self) -> bool {
        let mut senders = self.senders.take();
        let had_some = !senders.is_empty();
        for some in senders.chunks(MOST) {
            match &self.ring {
                Some(ring) if some.len() >= TOGETHER_MIN => {
                    let lens = ring.send(some);
                    some.iter().zip(lens).for_each(|(sender, len)| sender.sent(len));
                }
                _ => some.iter().for_each(|sender| sender.sent(0)),
            }
        }
        senders.clear();
        let left = self.senders.replace(senders);
        assert!(left.is_empty(), "nobody joins while others are told");
        had_some
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    struct One {
        stream: Rc<TcpStream>,
        bytes: RefCell<Vec<u8>>,
        sent: Cell<Option<usize>>,
    }

    impl Sender for One {
        fn socket(&self) -> BorrowedFd<'_> {
            self.stream.as_fd()
        }

        fn to_send(&self) -> Ref<'_, [u8]> {
            Ref::map(self.bytes.borrow(), |bytes| &bytes[..])
        }

        fn sent(&self, len: usize) {
            // What was sent may be changed as soon as this is told.
            self.bytes.borrow_mut().drain(..len);
            assert!(self.sent.replace(Some(len)).is_none(), "told once");
        }
    }

    fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        (client, server)
    }

    fn one(stream: impl Into<Rc<TcpStream>>, bytes: &[u8]) -> Rc<One> {
        Rc::new(One { stream: stream.into(), bytes: RefCell::new(bytes.to_vec()), sent: Cell::new(None) })
    }

    /// Were one that is full, or whose peer is gone, waited for, the test would not end.
    #[test]
    fn each_sends_what_its_socket_takes_and_none_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_full_client, full) = pair(&listener);
        let turn = Turn::new(Some(SendRing::new().unwrap()));
        let all: Vec<(TcpStream, Rc<TcpStream>)> = (0..2 * MOST + 1)
            .map(|_| pair(&listener))
            .map(|(client, server)| (client, server.into()))
            .collect();
        for count in [1, 2, MOST - 1, MOST, MOST + 1, 2 * MOST + 1] {
            let sender = |n: usize| one(all[n].1.clone(), format!("reply {n}").as_bytes());
            let senders: Vec<_> = (0..count).map(sender).collect();
            senders.iter().for_each(|sender| assert!(turn.join(sender.clone())));
            assert!(turn.end());
            for (n, sender) in senders.iter().enumerate() {
                let reply = format!("reply {n}");
                // The last of 129 is alone.
                let by_itself = count % MOST == 1 && n == count - 1;
                assert_eq!(
                    sender.sent.get(),
                    Some(if by_itself { 0 } else { reply.len() }),
                    "{n} of {count}"
                );
                if !by_itself {
                    let mut read = vec![0; reply.len()];
                    (&all[n].0).read_exact(&mut read).unwrap();
                    assert_eq!(read, reply.as_bytes());
                }
            }
            assert!(!turn.end(), "all have left");
        }
        let (gone_client, gone) = pair(&listener);
        drop(gone_client);
        let (gone, idle) = (one(gone, b"nobody"), one(pair(&listener).1, b""));
        // Some of what it is full of may be moved to the other side in between.
        let is_found_full = (0..1000).any(|_| {
            while (&full).write(&[0; 64 << 10]).is_ok_and(|len| len > 0) {}
            let full = one(full.try_clone().unwrap(), b"no room");
            [&full, &gone, &idle].into_iter().for_each(|sender| assert!(turn.join(sender.clone())));
            assert!(turn.end());
            assert_eq!(idle.sent.take(), Some(0));
            assert!(gone.sent.take().is_some(), "it may be told of a peer that has gone only later");
            full.sent.get() == Some(0)
        });
        assert!(is_found_full);
    }

    #[test]
    fn a_socket_with_little_room_takes_a_part() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let turn = Turn::new(Some(SendRing::new().unwrap()));
        let (client, server) = pair(&listener);
        let other = one(pair(&listener).1, &[1; 1000]);
        // More than the kernels hold between them.
        let sender = one(server, &vec![7; 16 << 20]);
        let mut sent = 0;
        loop {
            [&sender, &other].into_iter().for_each(|sender| sender.sent.set(None));
            other.bytes.replace(vec![1]);
            [&sender, &other].into_iter().for_each(|sender| assert!(turn.join(sender.clone())));
            assert!(turn.end());
            let len = sender.sent.get().unwrap();
            assert!(len <= BYTES_MAX);
            sent += len;
            if len < BYTES_MAX {
                break;
            }
        }
        assert!(
            (BYTES_MAX..16 << 20).contains(&sent),
            "{sent} bytes: it was full at the end, and not before"
        );
        let mut read = vec![0; sent];
        (&client).read_exact(&mut read).unwrap();
        assert!(read.iter().all(|byte| *byte == 7) && sender.bytes.borrow().len() == (16 << 20) - sent);
    }

    #[test]
    fn without_a_ring_each_sends_by_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let turn = Turn::new(None);
        assert!(!turn.join(one(pair(&listener).1, b"a")));
        assert!(!turn.end());
    }
}
