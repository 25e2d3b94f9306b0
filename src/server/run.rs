//! Start and stop of the whole server, on the main thread.
//!
//! Start: what is on disk is read; the shards' executors start and scan the old logs; the scans become a
//! new generation, which is made live; the shards open their engines; the acceptor starts.
//!
//! Stop: the acceptor stops; the shards take in no more requests, answer what is in flight, and lose their
//! connections; then, all being quiet, they close their logs and end. A second signal, or clients that take no
//! replies for too long, cut the middle part short: connections are dropped, and every write that was
//! acknowledged is in the log all the same.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::accept::{Acceptor, Connections};
use super::announce;
use super::notify::{self, State as Word};
use super::preflight::{Preflight, advice};
use super::redis::Setup;
use super::serve::{Event, Handout, ShardSeed, serve};
use crate::config::{Config, SyncMode};
use crate::engine::EngineOptions;
use crate::engine::recovery::{self, OnDisk, Start};
use crate::env::glommio::{Executor, GlommioEnv, Locked, spawn_executor};
use crate::placement;
use crate::protocol::Limits;
use crate::shard::mesh::{Port, mesh};
use crate::shard::{Message, Settings};

/// Messages that a ring of the mesh holds. Each is a batch, so a few are many requests.
const RING_MESSAGES: usize = 256;
/// Blocks of the log in flight: with 3, commits follow each other twice as fast as with 1.
const WINDOW: usize = 3;
/// `--sync none`: what is in memory is written at least this often.
const LAZIEST: Duration = Duration::from_secs(1);
/// Tables of like size that are merged into one, above the last level.
const COMPACTION_FAN: usize = 4;
/// A snapshot that nobody uses for so long, since a client went away in the middle of a scan, is given up.
const SNAPSHOT_LIFE: Duration = Duration::from_secs(60);
/// Bytes of tables that snapshots may keep beside as many as are live: some GiB of a full disk are worth less than a
/// scan that need not go on as of a later moment.
const SNAPSHOT_BYTES: u64 = 1 << 30;
/// How many times what is above it the last level may be.
const LEVEL_RATIO: u64 = 4;
/// Size of a table of the last level: a step of a descent writes one or two.
const LAST_TABLE_BYTES: u64 = 32 << 20;
/// Registered I/O memory of the short-lived executors that read and write the manifest.
const CONTROL_IO_BYTES: usize = 1 << 20;

/// Why the server did not start, or did not end well: one line for a person.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A signal handler could not be installed.
    #[error("signals can't be handled ({0})")]
    Signals(io::Error),
    /// A thread or executor could not be started.
    #[error("a shard's executor could not be started ({}){}", .0, advice(.0))]
    Executor(io::Error),
    /// An executor ended otherwise than it should.
    #[error("a shard's executor ended: {0}")]
    Ended(io::Error),
    /// The data directory can't be used as it is.
    #[error("{0}")]
    Data(String),
}

/// Serves until a signal ends it.
pub fn run(config: Config, preflight: Preflight) -> Result<(), ServerError> {
    let (events, told) = channel();
    watch_signals(events.clone())?;
    let shards = preflight.cpus.len();
    let root = config.data_dir.clone();
    let tablets = config.tablets.unwrap_or_else(|| placement::tablets_for(shards));
    let control = Locked { io_bytes: CONTROL_IO_BYTES.min(preflight.locked.io_bytes), ..preflight.locked };
    let OnDisk { state, logs } =
        on_executor(&root, control, async move |env| recovery::load(&env, tablets).await)?;
    tracing::debug!(tablets = state.tablets.len(), "the manifest is read");
    let state = Arc::new(state);
    let start = Handout::new(shards);
    let setup = Arc::new(Setup::new(&config, &preflight));
    let connections = Connections::new(preflight.connections_max);
    let mut ports = mesh::<Message>(shards + 1, RING_MESSAGES).into_iter();
    let mut logs_of: Vec<Vec<_>> = vec![Vec::new(); shards];
    for (number, log) in logs.into_iter().enumerate() {
        logs_of[number % shards].push(log);
    }
    let mut executors = Vec::with_capacity(shards);
    for (id, (port, logs)) in ports.by_ref().take(shards).zip(logs_of).enumerate() {
        let seed = ShardSeed {
            id,
            root: root.clone(),
            state: state.clone(),
            logs,
            start: start.clone(),
            options: engine_options(&config, &preflight),
            limits: Limits::for_values(config.value_bytes_max as usize)
                .with_pipeline(preflight.memory.pipeline_bytes()),
            settings: Settings {
                is_durable: config.sync == SyncMode::Always,
                connection_bytes: preflight.memory.connections as usize,
            },
            setup: setup.clone(),
            port,
            connections: connections.clone(),
            idle_timeout: config.idle_timeout,
            stall_timeout: config.stall_timeout,
            auto_balance: config.auto_balance,
            may_spin: !config.oversubscribe,
            events: events.clone(),
        };
        let (name, cpu) = (format!("shard-{id}"), preflight.cpus[id]);
        let executor = spawn_executor(&name, Some(cpu), preflight.locked, move || serve(seed));
        executors.push(executor.map_err(ServerError::Executor)?);
    }
    let opened = bring_up(&root, control, &state, shards, &start, &told);
    if opened.is_err() {
        start.give(None); // those that still wait for it end
        return opened;
    }
    let port = ports.next().unwrap_or_else(|| unreachable!("the mesh has one port more than shards"));
    let (listeners, addresses): (Vec<_>, Vec<_>) = preflight.nodes.into_iter().unzip();
    let acceptor = Acceptor::start(preflight.listener, listeners, port, connections);
    let acceptor = acceptor.map_err(ServerError::Executor)?;
    if let (Some(first), Some(last)) = (addresses.first(), addresses.last()) {
        tracing::info!(%first, %last, "each shard is a node of a cluster");
    }
    announce(preflight.address, shards, &root);
    wait_for_signal(&told);
    notify::notify(Word::Stopping);
    tracing::info!("stopping");
    let result = bring_down(&acceptor.stop(), shards, 2 * config.stall_timeout, &told);
    for executor in executors {
        executor.join().map_err(ServerError::Ended)?;
    }
    drop(preflight.lock);
    tracing::info!("stopped");
    result
}

fn engine_options(config: &Config, preflight: &Preflight) -> EngineOptions {
    let memory = &preflight.memory;
    let segment_bytes = memory.segment_bytes(config.value_bytes_max);
    EngineOptions {
        memtable_bytes: memory.memtable_seal_bytes() as usize,
        sealed_max: 1,
        cache_bytes: memory.block_cache as usize,
        row_bytes: memory.row_cache as usize,
        reads_max: preflight.reads_max,
        index_bytes: memory.indexes as usize,
        compression: config.compression,
        segment_bytes,
        window: WINDOW,
        lazy: match config.sync {
            SyncMode::Always => None,
            SyncMode::Interval(interval) => Some(interval),
            SyncMode::None => Some(LAZIEST),
        },
        compaction_fan: COMPACTION_FAN,
        snapshot_life: SNAPSHOT_LIFE,
        snapshot_bytes: SNAPSHOT_BYTES,
        scrub_bytes_per_s: config.scrub_bytes_per_s,
        level_ratio: LEVEL_RATIO,
        last_table_bytes: LAST_TABLE_BYTES,
        // The tables of all memtables, the merge that they cause, and the next segments of the log: of all shards,
        // since each of them sees the same free space.
        reserve_bytes: preflight.cpus.len() as u64 * 2 * (memory.memtables + segment_bytes),
    }
}

/// Runs `work` on an executor of its own and waits for it.
fn on_executor<T: Send + 'static>(
    root: &Path,
    locked: Locked,
    work: impl AsyncFnOnce(GlommioEnv) -> Result<T, crate::engine::EngineError> + Send + 'static,
) -> Result<T, ServerError> {
    let path = root.to_path_buf();
    let executor: Executor<Result<T, String>> = spawn_executor("control", None, locked, move || async move {
        let env = GlommioEnv::new(&path).await.map_err(|error| error.to_string())?;
        // Paths in errors are below the data directory, and an error may be about that itself.
        work(env).await.map_err(|error| format!("{}: {error}", path.display()))
    })
    .map_err(ServerError::Executor)?;
    executor.join().map_err(ServerError::Ended)?.map_err(ServerError::Data)
}

/// From running executors to open engines.
fn bring_up(
    root: &Path,
    control: Locked,
    state: &crate::engine::manifest::State,
    shards: usize,
    handout: &Handout<Start>,
    told: &Receiver<Event>,
) -> Result<(), ServerError> {
    let mut scans = Vec::new();
    for _ in 0..shards {
        match next(told) {
            Event::Scanned(Ok(some)) => scans.extend(some),
            Event::Scanned(Err(error)) | Event::Opened(Err(error)) => return Err(ServerError::Data(error)),
            Event::Signal => return Err(ServerError::Data("stopped before it had started".to_owned())),
            _ => unreachable!("shards scan before anything else"),
        }
    }
    tracing::debug!(logs = scans.len(), "the logs are read for the first time");
    let start = recovery::plan(state.clone(), scans, shards as u32)
        .map_err(|error| ServerError::Data(error.to_string()))?;
    let start = Arc::new(start);
    let installed = start.clone();
    on_executor(root, control, async move |env| recovery::install(&env, &installed).await)?;
    tracing::debug!("the new generation is live");
    handout.give(Some(start));
    for _ in 0..shards {
        match next(told) {
            Event::Opened(Ok(())) => {}
            Event::Opened(Err(error)) => return Err(ServerError::Data(error)),
            Event::Signal => return Err(ServerError::Data("stopped before it had started".to_owned())),
            _ => unreachable!("shards open after they were given the start"),
        }
    }
    Ok(())
}

fn next(told: &Receiver<Event>) -> Event {
    told.recv().unwrap_or_else(|_| unreachable!("this thread holds a sender"))
}

fn wait_for_signal(told: &Receiver<Event>) {
    loop {
        match next(told) {
            Event::Signal => return,
            Event::Closed(Err(error)) => tracing::error!("a shard ended: {error}"),
            _ => {}
        }
    }
}

/// Ends all shards. Clients that take no replies hold each other up, one stall timeout after the other: after `patience`
/// those that are left are disconnected.
fn bring_down(
    port: &Port<Message>,
    shards: usize,
    patience: Duration,
    told: &Receiver<Event>,
) -> Result<(), ServerError> {
    let mut result = Ok(());
    let mut deadline = Some(Instant::now() + patience);
    to_all(port, shards, || Message::Drain);
    let mut drained = 0;
    while drained < shards {
        let event = match deadline {
            None => Some(next(told)),
            Some(deadline) => told.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok(),
        };
        match event {
            Some(Event::Drained) => drained += 1,
            Some(Event::Signal) => {
                tracing::info!("stopping at once");
                to_all(port, shards, || Message::Abandon);
            }
            Some(_) => {}
            None => {
                tracing::warn!("clients don't take their replies: stopping without them");
                deadline = None;
                to_all(port, shards, || Message::Abandon);
            }
        }
    }
    to_all(port, shards, || Message::Close);
    let mut closed = 0;
    while closed < shards {
        if let Event::Closed(end) = next(told) {
            closed += 1;
            if let Err(error) = end {
                result = Err(ServerError::Data(error));
            }
        }
    }
    result
}

fn to_all(port: &Port<Message>, shards: usize, message: impl Fn() -> Message) {
    (0..shards).for_each(|shard| port.send(shard, message()));
    while port.congested() {
        futures_lite::future::block_on(port.wait());
        port.flush();
    }
}

/// A thread that turns signals into events. `main` has no executor that could.
fn watch_signals(events: Sender<Event>) -> Result<(), ServerError> {
    let mut signals =
        signal_hook::iterator::Signals::new([libc::SIGTERM, libc::SIGINT]).map_err(ServerError::Signals)?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for _ in signals.forever() {
                if events.send(Event::Signal).is_err() {
                    return;
                }
            }
        })
        .map(drop)
        .map_err(ServerError::Executor)
}
