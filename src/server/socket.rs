//! One TCP connection on the executor's ring. The only place where `server` touches the runtime's sockets.

use std::cell::RefCell;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{SockRef, Socket as RawSocket};

/// A connected socket. Reading and writing may be polled by different tasks; no call holds a borrow when
/// it returns.
pub struct Socket {
    stream: RefCell<TcpStream>,
}

impl Socket {
    /// Takes over an accepted connection, from whichever thread accepted it.
    pub fn adopt(stream: std::net::TcpStream) -> io::Result<Socket> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Socket { stream: RefCell::new(TcpStream::from(RawSocket::from(stream))) })
    }

    /// Reads what is there, or arranges a wake-up. 0 is the end.
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, buffer)
    }

    /// Writes what fits, or arranges a wake-up.
    pub fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_write(cx, bytes)
    }

    /// Whether the peer has closed its direction, or all, though there may be bytes that are not read.
    pub fn is_left(&self) -> bool {
        let stream = self.stream.borrow();
        // SAFETY: the descriptor is the stream's, which is borrowed until the end of this function, and so stays open.
        let socket = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
        let mut fds = [PollFd::new(&socket, PollFlags::RDHUP)];
        // It does not wait.
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0)
    }

    /// Ends one or both directions; pending reads and writes return. An error means that the peer was
    /// faster, which is as good.
    pub fn shutdown(&self, how: Shutdown) {
        let stream = self.stream.borrow();
        let _ = SockRef::from(&*stream).shutdown(how);
    }

    /// A second handle to the same connection, to be moved to another executor. This one is dropped after.
    pub fn duplicate(&self) -> io::Result<std::net::TcpStream> {
        let stream = self.stream.borrow();
        Ok(SockRef::from(&*stream).try_clone()?.into())
    }
}
