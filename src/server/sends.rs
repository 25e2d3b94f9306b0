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

/// Sends that enter the kernel together, at most.
const ENTRIES: usize = 128;
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
    /// tell. May be called though nothing was to be sent.
    fn sent(&self, len: usize);
}

/// One executor's ring for sends.
pub struct SendRing {
    ring: RefCell<IoUring>,
}

impl SendRing {
    /// Errors: no memory may be locked for it; a kernel that has no rings.
    pub fn new() -> io::Result<SendRing> {
        let entries = ENTRIES as u32;
        // Nothing that a socket has to tell interrupts the thread. From 5.19 on.
        let ring =
            IoUring::builder().setup_coop_taskrun().build(entries).or_else(|_| IoUring::new(entries))?;
        Ok(SendRing { ring: ring.into() })
    }

    /// Has each of `senders` send what its socket takes now.
    fn send(&self, senders: &[Rc<dyn Sender>]) -> SmallVec<[usize; ENTRIES]> {
        assert!(senders.len() <= ENTRIES, "as many as the ring has room for");
        let mut ring = self.ring.borrow_mut();
        let mut lens = SmallVec::from_elem(0, senders.len());
        // Borrowed until the kernel is through with all of them.
        let bytes: SmallVec<[Ref<'_, [u8]>; ENTRIES]> =
            senders.iter().map(|sender| sender.to_send()).collect();
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
            if let Err(error) = ring.submit_and_wait(under_way)
                && !is_passing(&error)
            {
                // What it may still read is about to go.
                tracing::error!("the ring for sends does not take them: {error}");
                std::process::abort();
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

/// Those who send when the turn is over.
#[derive(Default)]
pub struct Turn {
    ring: Option<SendRing>,
    senders: RefCell<Vec<Rc<dyn Sender>>>,
}

impl Turn {
    /// Whose sends go through `ring`, if there is one.
    pub fn new(ring: Option<SendRing>) -> Turn {
        Turn { ring, senders: RefCell::default() }
    }

    /// Takes one more.
    pub fn join(&self, sender: Rc<dyn Sender>) {
        self.senders.borrow_mut().push(sender);
    }

    /// Sends for all who have joined, and tells them. Whether there were any.
    pub fn end(&self) -> bool {
        let senders = self.senders.take();
        for some in senders.chunks(ENTRIES) {
            match &self.ring {
                Some(ring) if some.len() >= TOGETHER_MIN => {
                    let lens = ring.send(some);
                    some.iter().zip(lens).for_each(|(sender, len)| sender.sent(len));
                }
                _ => some.iter().for_each(|sender| sender.sent(0)),
            }
        }
        !senders.is_empty()
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
        stream: TcpStream,
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

    fn one(stream: TcpStream, bytes: &[u8]) -> Rc<One> {
        Rc::new(One { stream, bytes: RefCell::new(bytes.to_vec()), sent: Cell::new(None) })
    }

    /// Were one that is full, or whose peer is gone, waited for, the test would not end.
    #[test]
    fn each_sends_what_its_socket_takes_and_none_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for count in [1, 2, 3, ENTRIES, ENTRIES + 1, 2 * ENTRIES + 7] {
            let turn = Turn::new(Some(SendRing::new().unwrap()));
            let (mut clients, mut senders) = (Vec::new(), Vec::new());
            for n in 0..count {
                let (client, server) = pair(&listener);
                senders.push(one(server, format!("reply {n}").as_bytes()));
                clients.push(client);
            }
            let (full_client, mut full) = pair(&listener);
            while full.write(&[0; 64 << 10]).is_ok() {}
            let full = one(full, b"no room");
            let (gone_client, gone) = pair(&listener);
            gone_client.set_nonblocking(true).unwrap();
            drop(gone_client);
            let gone = one(gone, b"nobody");
            let idle = one(pair(&listener).1, b"");
            for sender in senders.iter().chain([&full, &gone, &idle]) {
                turn.join(sender.clone());
            }
            assert!(turn.end());
            for (n, (mut client, sender)) in clients.into_iter().zip(&senders).enumerate() {
                let reply = format!("reply {n}");
                assert_eq!(sender.sent.get(), Some(reply.len()), "{count} at once");
                let mut read = vec![0; reply.len()];
                client.read_exact(&mut read).unwrap();
                assert_eq!(read, reply.as_bytes());
            }
            assert_eq!((full.sent.get(), idle.sent.get()), (Some(0), Some(0)));
            assert!(gone.sent.get().is_some(), "it may be told of a peer that has gone only later");
            assert!(!turn.end(), "all have left");
            drop(full_client);
        }
    }

    #[test]
    fn without_a_ring_each_is_told_to_send_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let turn = Turn::new(None);
        let senders = [one(pair(&listener).1, b"a"), one(pair(&listener).1, b"b")];
        senders.iter().for_each(|sender| turn.join(sender.clone()));
        assert!(turn.end());
        assert!(senders.iter().all(|sender| sender.sent.get() == Some(0)));
    }
}
