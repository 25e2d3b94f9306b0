//! Waits for a file descriptor that the runtime has no name for.

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::Poll;
use std::{io, net};

use futures_lite::AsyncRead;
use glommio::net::TcpStream;
use socket2::Socket;

/// Waits until `fd`, which is no socket, is readable (`poll(2)`); an epoll is when it has events.
///
/// The runtime polls sockets only. It takes any descriptor for one, though: it polls it first, and when that has come,
/// tries to receive, which fails with `ENOTSOCK`. Each wait takes a duplicate of the descriptor, since a stream of the
/// runtime begins to poll once, when it is made.
///
/// Errors: no descriptor left; a poll that the kernel refuses.
pub async fn readable(fd: &OwnedFd) -> io::Result<()> {
    let mut stream = TcpStream::from(Socket::from(net::TcpStream::from(fd.try_clone()?)));
    poll_fn(|cx| match Pin::new(&mut stream).poll_read(cx, &mut [0]) {
        Poll::Pending => Poll::Pending,
        Poll::Ready(Err(error)) if error.raw_os_error() == Some(libc::ENOTSOCK) => Poll::Ready(Ok(())),
        Poll::Ready(result) => Poll::Ready(result.map(drop)),
    })
    .await
}
