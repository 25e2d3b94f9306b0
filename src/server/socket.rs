//! One TCP connection, watched by its executor's [`Poller`].

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::SockRef;

use super::poller::{Place, Poller};
use super::sends::Sender;

/// A connected socket. Reading and writing may be polled by different tasks.
pub struct Socket {
    stream: std::net::TcpStream,
    place: Place,
}

impl Socket {
    /// Takes over an accepted connection, from whichever thread accepted it.
    pub fn adopt(stream: std::net::TcpStream, poller: &Rc<Poller>) -> io::Result<Socket> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let place = poller.watch(&stream)?;
        Ok(Socket { stream, place })
    }

    /// Reads what is there, or arranges a wake-up. 0 is the end.
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let len = buffer.len();
        self.place.poll_read(cx, len, || {
            let (read, _) = retry(|| recv(&self.stream, &mut *buffer, RecvFlags::DONTWAIT))?;
            Ok(read)
        })
    }

    /// Writes what fits, or arranges a wake-up.
    pub fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        self.place.poll_write(cx, || Ok(retry(|| send(&self.stream, bytes, flags))?))
    }

    /// Has `sender`, whose socket this is, send when the turn is over, if the poller waits for that. Whether it does.
    pub fn send_later(&self, sender: Rc<dyn Sender>) -> bool {
        self.place.send_later(sender)
    }

    /// When its poller last looked for what has come, on the executor's clock: about when what is read now came. While
    /// nothing comes it does not look.
    pub fn seen_at(&self) -> Duration {
        self.place.seen_at()
    }

    /// How many sockets had something then.
    pub fn seen(&self) -> usize {
        self.place.seen()
    }

    /// Whether the peer has closed its direction, or all, though there may be bytes that are not read.
    pub fn is_left(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        // It does not wait.
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0)
    }

    /// Bytes that were written and that the peer's side has not acknowledged.
    pub fn untaken(&self) -> io::Result<u32> {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the descriptor is open, and this request, which for a socket is SIOCOUTQ, writes one int there.
        match unsafe { libc::ioctl(self.stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) } {
            0 => Ok(bytes.unsigned_abs()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Ends one or both directions; pending reads and writes return. An error means that the peer was
    /// faster, which is as good.
    pub fn shutdown(&self, how: Shutdown) {
        let _ = SockRef::from(&self.stream).shutdown(how);
    }

    /// A second handle to the same connection, to be moved to another executor. This one is dropped after.
    pub fn duplicate(&self) -> io::Result<std::net::TcpStream> {
        self.stream.try_clone()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.place.leave(self.stream.as_fd());
    }
}

/// A call that a signal interrupted is made again.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            result => return result,
        }
    }
}
