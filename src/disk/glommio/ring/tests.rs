//! A real ring, on a real executor, since buffers are the runtime's.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::rc::Rc;

use futures_lite::future::{poll_once, yield_now};
use tempfile::TempDir;

use super::*;
use crate::base::PAGE_SIZE;
use crate::disk::glommio::allocate;
use crate::env::glommio::{Locked, spawn_executor};

/// Runs `test` with a ring that is open, and a file of [`PAGES`] pages each of which is filled with its number.
fn with_ring(test: impl AsyncFnOnce(Rc<ReadRing>, File) + Send + 'static) {
    let dir: TempDir = tempfile::Builder::new().prefix("atlaskv-test-").tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("pages");
    let pages: Vec<u8> = (0..PAGES).flat_map(|page| [page as u8; PAGE_SIZE]).collect();
    std::fs::write(&path, pages).unwrap();
    let executor = spawn_executor("ring-test", None, Locked::ample(1 << 20), move || async move {
        let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        let ring = Rc::new(ReadRing::new().unwrap());
        ring.open();
        test(ring.clone(), file).await;
        assert!(ring.is_idle() && ring.reads.borrow().is_empty(), "nothing is left");
    });
    executor.unwrap().join().unwrap();
}

const PAGES: usize = 200;

async fn read(ring: &ReadRing, file: &File, page: usize) -> io::Result<Vec<u8>> {
    let (buffer, read) = ring.read(file.as_raw_fd(), (page * PAGE_SIZE) as u64, allocate(PAGE_SIZE)).await;
    read.map(|len| buffer[..len].to_vec())
}

/// Waits for the kernel until nothing is under way.
fn land(ring: &ReadRing) {
    ring.drain();
}

#[test]
fn many_more_than_the_kernel_is_given_are_all_read_whoever_comes_first() {
    with_ring(async |ring, file| {
        let count = 3 * ENTRIES as usize;
        let mut reads: Vec<_> = (0..count).map(|n| Box::pin(read(&ring, &file, n * 7 % PAGES))).collect();
        for read in &mut reads {
            assert!(poll_once(read).await.is_none(), "it takes a while");
        }
        assert_eq!(ring.given.get(), ENTRIES, "as many as it has room for");
        assert_eq!(ring.begun.borrow().len(), count - ENTRIES as usize);
        let mut left: Vec<_> = reads.into_iter().enumerate().collect();
        while !left.is_empty() {
            ring.submit();
            assert!(ring.reap(5) <= 5);
            let mut waiting = Vec::new();
            for (n, mut read) in left {
                match poll_once(&mut read).await {
                    Some(bytes) => assert_eq!(bytes.unwrap(), [(n * 7 % PAGES) as u8; PAGE_SIZE]),
                    None => waiting.push((n, read)),
                }
            }
            left = waiting;
        }
    });
}

#[test]
fn some_are_handed_over_together_and_alone_while_nobody_attends() {
    with_ring(async |ring, file| {
        let mut reads: Vec<_> = (0..TOGETHER).map(|page| Box::pin(read(&ring, &file, page))).collect();
        for (n, read) in reads.iter_mut().enumerate() {
            assert!(poll_once(read).await.is_none());
            let given = if n + 1 < TOGETHER { 0 } else { TOGETHER as u32 };
            assert_eq!(ring.given.get(), given, "after {}", n + 1);
        }
        ring.set_attended(false);
        let mut alone = Box::pin(read(&ring, &file, 3));
        assert!(poll_once(&mut alone).await.is_none());
        assert_eq!(ring.given.get(), TOGETHER as u32 + 1);
        land(&ring);
        assert_eq!(alone.await.unwrap(), [3; PAGE_SIZE]);
        for read in reads {
            assert!(read.await.is_ok());
        }
        ring.set_attended(true);
    });
}

#[test]
fn whoever_waits_is_woken() {
    with_ring(async |ring, file| {
        let done = Rc::new(Cell::new(0));
        let tasks: Vec<_> = (0..50)
            .map(|page| {
                let (ring, file, done) = (ring.clone(), file.try_clone().unwrap(), done.clone());
                glommio::spawn_local(async move {
                    assert_eq!(read(&ring, &file, page).await.unwrap(), [page as u8; PAGE_SIZE]);
                    done.set(done.get() + 1);
                })
            })
            .collect();
        while done.get() < 50 {
            ring.submit();
            ring.reap(8);
            yield_now().await;
        }
        for task in tasks {
            task.await;
        }
    });
}

/// The descriptor may be another file's by the time that it would be handed over, or a socket's, of which it would take
/// what a client sent.
#[test]
fn what_nobody_waits_for_any_more_is_not_begun() {
    with_ring(async |ring, file| {
        let mut given_up = Box::pin(read(&ring, &file, 1));
        let mut kept = Box::pin(read(&ring, &file, 2));
        assert!(poll_once(&mut given_up).await.is_none() && poll_once(&mut kept).await.is_none());
        drop(given_up);
        ring.submit();
        assert_eq!((ring.given.get(), ring.reads.borrow().len()), (1, 1));
        land(&ring);
        assert_eq!(kept.await.unwrap(), [2; PAGE_SIZE]);
    });
}

#[test]
fn a_buffer_outlives_who_waited_for_it_until_the_kernel_is_done() {
    with_ring(async |ring, file| {
        for is_done in [false, true] {
            let mut given_up = Box::pin(read(&ring, &file, 1));
            assert!(poll_once(&mut given_up).await.is_none());
            ring.submit();
            if is_done {
                land(&ring);
            }
            drop(given_up);
            assert_eq!(ring.reads.borrow().len(), usize::from(!is_done), "done: {is_done}");
            land(&ring);
            assert!(ring.reads.borrow().is_empty());
        }
        // And the ring itself waits for the kernel.
        let other = Rc::new(ReadRing::new().unwrap());
        let mut given_up = Box::pin(read(&other, &file, 1));
        assert!(poll_once(&mut given_up).await.is_none());
        drop(given_up);
        drop(other);
    });
}

#[test]
fn ends_and_errors_are_told_as_the_kernel_has_them() {
    with_ring(async |ring, file| {
        let mut at_end = Box::pin(read(&ring, &file, PAGES));
        assert!(poll_once(&mut at_end).await.is_none());
        ring.submit();
        land(&ring);
        assert_eq!(at_end.await.unwrap(), [0u8; 0]);
        let dir = tempfile::tempdir().unwrap();
        let writable = File::options().write(true).create_new(true).open(dir.path().join("w")).unwrap();
        writable.write_all_at(&[1; PAGE_SIZE], 0).unwrap();
        let mut refused = Box::pin(read(&ring, &writable, 0));
        assert!(poll_once(&mut refused).await.is_none());
        ring.submit();
        land(&ring);
        assert_eq!(refused.await.unwrap_err().raw_os_error(), Some(libc::EBADF));
    });
}
