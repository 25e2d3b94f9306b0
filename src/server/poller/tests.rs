//! Real sockets on a real executor.

use std::cell::Ref;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::super::socket::Socket;
use super::*;
use crate::base::PAGE_SIZE;
use crate::disk::{Disk, File, OpenMode, OpenOptions};
use crate::env::glommio::{GlommioEnv, Locked, spawn_executor};
use crate::env::{Gate, Queue};
use crate::metrics::Metrics;
use crate::shard::mesh::Inbox;

/// No shard, and nobody sends it anything.
struct Alone;

impl Home for Alone {
    fn has_open_turn(&self) -> bool {
        false
    }

    fn end_turn(&self) {}

    fn attend(&self, _: bool) {}

    fn look(&self) -> bool {
        false
    }
}

/// Has a poller run until it is told to end; then nobody is in the gate.
fn begin(env: &GlommioEnv, poller: &Rc<Poller>, home: impl Home + 'static) -> Gate {
    let over = Gate::new();
    let (own, poller, guard) = (env.clone(), poller.clone(), over.enter());
    env.spawn(Queue::Foreground, async move {
        poller.run(&own, &home, &Metrics::default()).await;
        drop(guard);
    });
    over
}

/// Runs `test` beside a poller, with the two ends of a connection: ours, and the client's.
fn with_socket<F>(test: impl FnOnce(GlommioEnv, Rc<Poller>, Socket, TcpStream) -> F + Send + 'static)
where
    F: Future<Output = ()> + 'static,
{
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    let executor = spawn_executor("poller-test", None, Locked::ample(1 << 20), move || async move {
        let env = GlommioEnv::new(&root).await.unwrap();
        let poller = Poller::new(true, env.now(), None, None).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = Socket::adopt(listener.accept().unwrap().0, &poller).unwrap();
        let over = begin(&env, &poller, Alone);
        test(env.clone(), poller.clone(), socket, client).await;
        poller.end();
        over.empty().await;
    });
    executor.unwrap().join().unwrap();
}

async fn read(socket: &Socket, most: usize) -> Vec<u8> {
    let mut buffer = vec![0; most];
    let len = std::future::poll_fn(|cx| socket.poll_read(cx, &mut buffer)).await.unwrap();
    buffer.truncate(len);
    buffer
}

async fn poll_once(socket: &Socket) -> Option<usize> {
    let mut buffer = [0; 16];
    let read = std::future::poll_fn(|cx| socket.poll_read(cx, &mut buffer));
    futures_lite::future::poll_once(read).await.map(|read| read.unwrap())
}

#[test]
fn whoever_waits_is_woken_by_what_comes_each_time() {
    with_socket(|env, _, socket, mut client| async move {
        for round in 0..100u8 {
            assert_eq!(poll_once(&socket).await, None, "nothing has come");
            if round % 3 == 0 {
                env.sleep(Duration::from_millis(2)).await; // the poller has gone to sleep
            }
            client.write_all(&[round; 5]).unwrap();
            // In part: the rest is still there, and nothing tells of it again.
            assert_eq!(read(&socket, 2).await, [round; 2]);
            assert_eq!(read(&socket, 2).await, [round; 2]);
            assert_eq!(read(&socket, 2).await, [round]);
        }
    });
}

#[test]
fn the_end_is_seen_behind_what_came_before_it() {
    with_socket(|_, _, socket, mut client| async move {
        client.write_all(b"last").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read(&socket, 100).await, b"last");
        assert_eq!(read(&socket, 100).await, b"");
        assert_eq!(read(&socket, 100).await, b"", "an end does not pass");
        // The other direction is open.
        let sent = std::future::poll_fn(|cx| socket.poll_write(cx, b"reply")).await.unwrap();
        assert_eq!(sent, 5);
        let mut reply = [0; 5];
        client.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"reply");
    });
}

#[test]
fn a_shutdown_of_ours_wakes_who_waits() {
    with_socket(|env, _, socket, _client| async move {
        let socket = Rc::new(socket);
        env.spawn(Queue::Foreground, {
            let (env, socket) = (env.clone(), socket.clone());
            async move {
                env.sleep(Duration::from_millis(2)).await;
                socket.shutdown(Shutdown::Both);
            }
        });
        assert_eq!(read(&socket, 100).await, b"");
    });
}

#[test]
fn whoever_writes_waits_for_room() {
    with_socket(|env, _, socket, mut client| async move {
        let socket = Rc::new(socket);
        let all = 64 << 20;
        let written = Rc::new(Cell::new(0));
        env.spawn(Queue::Foreground, {
            let (socket, written) = (socket.clone(), written.clone());
            async move {
                let bytes = vec![7; 1 << 20];
                while written.get() < all {
                    let most = (all - written.get()).min(bytes.len());
                    let sent =
                        std::future::poll_fn(|cx| socket.poll_write(cx, &bytes[..most])).await.unwrap();
                    written.set(written.get() + sent);
                }
            }
        });
        env.sleep(Duration::from_millis(20)).await;
        assert!(written.get() < all, "the kernel does not take 64 MiB that nobody reads");
        client.set_nonblocking(true).unwrap();
        let (mut buffer, mut len) = (vec![0; 1 << 20], 0);
        while len < all {
            match client.read(&mut buffer) {
                Ok(read) => {
                    assert!(buffer[..read].iter().all(|byte| *byte == 7));
                    len += read;
                }
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    env.rest().await;
                }
            }
        }
        assert_eq!((len, written.get()), (all, all));
    });
}

#[test]
fn one_that_was_handed_over_is_not_watched_any_more_though_it_lives_on() {
    with_socket(|env, poller, socket, mut client| async move {
        let elsewhere = socket.duplicate().unwrap();
        drop(socket);
        assert_eq!(poller.watched.borrow().len(), 0);
        client.write_all(b"for the other").unwrap();
        env.sleep(Duration::from_millis(5)).await;
        assert_eq!(poller.seen.get(), 0, "nothing came");
        // Its key may be given to another.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let other = Socket::adopt(listener.accept().unwrap().0, &poller).unwrap();
        assert_eq!(poll_once(&other).await, None);
        drop(elsewhere);
    });
}

#[test]
fn with_nothing_to_do_it_looks_at_nothing() {
    with_socket(|env, poller, socket, mut client| async move {
        client.write_all(b"x").unwrap();
        assert_eq!(read(&socket, 10).await, b"x");
        // As after a busy time, so that it looks on for a while.
        poller.mean_gap.set(GAP_MAX);
        assert!(poller.patience() > GAP_MAX, "it looks on for longer than a gap");
        env.sleep(Duration::from_millis(20)).await;
        let looked_at = poller.seen_at.get();
        env.sleep(Duration::from_millis(200)).await;
        assert_eq!(poller.seen_at.get(), looked_at, "it has slept meanwhile");
        client.write_all(b"y").unwrap();
        assert_eq!(read(&socket, 10).await, b"y");
    });
}

#[test]
fn it_looks_on_only_as_long_as_requests_come_fast() {
    let poller = Poller::new(true, Duration::ZERO, None, None).unwrap();
    assert_eq!(poller.patience(), Duration::ZERO, "nothing is known yet");
    (0..100).for_each(|_| poller.count_gap(Duration::from_micros(20)));
    let patience = poller.patience();
    assert!(patience >= Duration::from_micros(40) && patience < Duration::from_micros(60), "{patience:?}");
    // One pause is forgotten soon.
    poller.count_gap(Duration::from_secs(10));
    assert_eq!(poller.patience(), Duration::ZERO);
    (0..8).for_each(|_| poller.count_gap(Duration::from_micros(20)));
    assert!(poller.patience() > Duration::ZERO);
    (0..100).for_each(|_| poller.count_gap(Duration::from_millis(1)));
    assert_eq!(poller.patience(), Duration::ZERO, "a thousand a second are no reason to burn a core");
}

/// Reads that begin while the poller sleeps, and while it is busy, in a disk that goes through its ring.
#[test]
fn reads_of_the_disk_are_attended_to_until_the_end() {
    let dir = tempfile::Builder::new().prefix("atlaskv-test-").tempdir_in("/var/tmp").unwrap();
    let root = dir.path().to_path_buf();
    let executor = spawn_executor("poller-test", None, Locked::ample(1 << 20), move || async move {
        let env = GlommioEnv::new(&root).await.unwrap();
        let ring = Rc::new(ReadRing::new().unwrap());
        env.disk().read_through(ring.clone());
        let poller = Poller::new(true, env.now(), Some(ring.clone()), None).unwrap();
        let options = OpenOptions { mode: OpenMode::CreateNew, dsync: false };
        let file = Rc::new(env.disk().open("pages", options).await.unwrap());
        for page in 0..64 {
            let mut buffer = env.disk().alloc(PAGE_SIZE);
            buffer.fill(page);
            file.write_at(u64::from(page) * PAGE_SIZE as u64, buffer).await.unwrap();
        }
        let read = async |page: u8| file.read_at(u64::from(page) * PAGE_SIZE as u64, PAGE_SIZE).await;
        // Not open yet.
        assert!(read(1).await.unwrap().iter().all(|byte| *byte == 1));
        let over = begin(&env, &poller, Alone);
        for round in 0..50u8 {
            if round % 2 == 0 {
                env.sleep(Duration::from_millis(2)).await; // it sleeps
            }
            let pages: Vec<u8> =
                (0..round % 40 + 1).map(|n| ((u32::from(n) * 7 + u32::from(round)) % 64) as u8).collect();
            let reads = crate::env::join_all(pages.iter().map(|page| read(*page)).collect()).await;
            for (page, bytes) in pages.iter().zip(reads) {
                assert!(bytes.unwrap().iter().all(|byte| byte == page), "page {page} of round {round}");
            }
            assert!(ring.is_idle());
        }
        let beyond = file.read_at(64 * PAGE_SIZE as u64, PAGE_SIZE).await.err().unwrap();
        assert_eq!(beyond.source.kind(), std::io::ErrorKind::UnexpectedEof);
        // Under way when it is told to end.
        let mut last = Box::pin(read(9));
        assert!(futures_lite::future::poll_once(&mut last).await.is_none());
        poller.end();
        over.empty().await;
        assert!(last.await.unwrap().iter().all(|byte| *byte == 9));
        assert!(ring.is_idle() && !ring.is_open());
        assert!(read(2).await.unwrap().iter().all(|byte| *byte == 2));
        let Ok(file) = Rc::try_unwrap(file) else { panic!("nobody else has it") };
        file.close().await.unwrap();
    });
    executor.unwrap().join().unwrap();
}

/// What another thread sends is seen while the poller looks by itself, and wakes the executor while it does not.
#[test]
fn who_is_at_home_hears_of_what_others_send_however_the_poller_is() {
    struct Shared(Arc<Inbox>);
    impl Home for Shared {
        fn has_open_turn(&self) -> bool {
            false
        }

        fn end_turn(&self) {}

        fn attend(&self, does: bool) {
            self.0.attend(does);
        }

        fn look(&self) -> bool {
            self.0.look()
        }
    }
    const SIGNALS: u32 = 3000;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    let inbox = Arc::new(Inbox::default());
    let (heard, hears) = std::sync::mpsc::channel();
    let at_home = inbox.clone();
    let executor = spawn_executor("poller-test", None, Locked::ample(1 << 20), move || async move {
        let env = GlommioEnv::new(&root).await.unwrap();
        let poller = Poller::new(true, env.now(), None, None).unwrap();
        let over = begin(&env, &poller, Shared(at_home.clone()));
        for n in 0..SIGNALS {
            at_home.signalled().await;
            heard.send(n).unwrap();
        }
        poller.end();
        over.empty().await;
    });
    let executor = executor.unwrap();
    let mut rng = fastrand::Rng::with_seed(7);
    for n in 0..SIGNALS {
        // At once, while it looks on, about when it goes to sleep, and when it sleeps.
        let pause = [0, 0, 5, 20, 50, 100, 200, 1000][rng.usize(..8)];
        let begin = std::time::Instant::now();
        while begin.elapsed() < Duration::from_micros(pause) {
            std::hint::spin_loop();
        }
        inbox.signal();
        assert_eq!(hears.recv_timeout(Duration::from_secs(20)), Ok(n), "a signal is lost");
    }
    executor.join().unwrap();
}

/// A client whose reply leaves at the end of the turn in which it was made.
struct Replier {
    socket: Socket,
    reply: RefCell<Vec<u8>>,
    by_ring: Rc<Cell<u32>>,
}

impl Sender for Replier {
    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn to_send(&self) -> Ref<'_, [u8]> {
        Ref::map(self.reply.borrow(), |reply| &reply[..])
    }

    fn sent(&self, len: usize) {
        let reply = self.reply.take();
        if len == 0 {
            // It was alone.
            let sent = self.socket.poll_write(&mut Context::from_waker(Waker::noop()), &reply);
            assert!(matches!(sent, Poll::Ready(Ok(len)) if len == reply.len()), "the socket has room");
        } else {
            assert_eq!(len, reply.len(), "the socket has room");
            self.by_ring.set(self.by_ring.get() + 1);
        }
    }
}

/// Those whose requests came together are answered together, and the turn is ended once more after it. Whoever answers
/// at another time sends by itself.
#[test]
fn what_is_answered_in_a_turn_leaves_at_its_end() {
    struct Turns(Rc<Cell<u32>>);
    impl Home for Turns {
        fn has_open_turn(&self) -> bool {
            false
        }

        fn end_turn(&self) {
            self.0.set(self.0.get() + 1);
        }

        fn attend(&self, _: bool) {}

        fn look(&self) -> bool {
            false
        }
    }
    const CLIENTS: usize = 9;
    const ROUNDS: u32 = 50;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    let executor = spawn_executor("poller-test", None, Locked::ample(1 << 20), move || async move {
        let env = GlommioEnv::new(&root).await.unwrap();
        let sends = SendRing::new().unwrap();
        let poller = Poller::new(true, env.now(), None, Some(sends)).unwrap();
        let turns = Rc::new(Cell::new(0));
        let over = begin(&env, &poller, Turns(turns.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut clients, done) = (Vec::new(), Gate::new());
        let (together, alone) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let by_ring = Rc::new(Cell::new(0));
        for _ in 0..CLIENTS {
            clients.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            let socket = Socket::adopt(listener.accept().unwrap().0, &poller).unwrap();
            let replier = Rc::new(Replier { socket, reply: RefCell::default(), by_ring: by_ring.clone() });
            assert!(!replier.socket.send_later(replier.clone()), "no turn is going on");
            let (guard, together, alone) = (done.enter(), together.clone(), alone.clone());
            env.spawn(Queue::Foreground, async move {
                for _ in 0..ROUNDS {
                    let request = read(&replier.socket, 100).await;
                    replier.reply.replace(request);
                    if replier.socket.send_later(replier.clone()) {
                        together.set(together.get() + 1);
                    } else {
                        alone.set(alone.get() + 1);
                        let reply = replier.reply.take();
                        poll_fn(|cx| replier.socket.poll_write(cx, &reply)).await.unwrap();
                    }
                }
                drop(guard);
            });
        }
        let clients = std::thread::spawn(move || {
            for round in 0..ROUNDS {
                let request = |client: usize| [round as u8, client as u8];
                (0..CLIENTS).for_each(|n| clients[n].write_all(&request(n)).unwrap());
                for (n, client) in clients.iter_mut().enumerate() {
                    let mut reply = [0; 2];
                    client.read_exact(&mut reply).unwrap();
                    assert_eq!(reply, request(n), "round {round}");
                }
            }
        });
        done.empty().await;
        clients.join().unwrap();
        // Of some the poller was not told when they were read: they were there when the task came to read.
        let all = (together.get(), alone.get());
        assert_eq!(all.0 + all.1, CLIENTS as u32 * ROUNDS);
        let seen = (by_ring.get(), turns.get());
        assert!(
            seen.0 > 0 && seen.1 > 0,
            "{all:?} at the end of turns and alone, {seen:?} by the ring and turns"
        );
        poller.end();
        over.empty().await;
    });
    executor.unwrap().join().unwrap();
}
