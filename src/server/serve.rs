//! One shard's executor, from its first breath to its last.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::accept::Connections;
use super::connection::Connection;
use super::open::OpenConnections;
use super::poller::{Home, Poller};
use super::redis::{Setup, context_of};
use super::sends::SendRing;
use crate::base::LogId;
use crate::disk::glommio::ReadRing;
use crate::engine::manifest::State;
use crate::engine::recovery::{self, Start};
use crate::engine::wal::{LogScan, SegmentFile};
use crate::engine::{Engine, EngineOptions};
use crate::env::glommio::GlommioEnv;
use crate::env::{Env, Queue};
use crate::metrics::Metrics;
use crate::placement::SlotTable;
use crate::protocol::Limits;
use crate::redis::session;
use crate::shard::mesh::{Inbox, Port};
use crate::shard::topology::COORDINATOR;
use crate::shard::{Message, Settings, Shard};

/// How often idle and stalled connections are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// What shards and signals tell the control thread.
pub enum Event {
    /// A shard has scanned its part of the old logs.
    Scanned(Result<Vec<LogScan>, String>),
    /// A shard serves.
    Opened(Result<(), String>),
    /// A shard has no connections any more.
    Drained,
    /// A shard has ended.
    Closed(Result<(), String>),
    /// The process was told to stop.
    Signal,
}

/// Something that the control thread hands to all shards once.
pub struct Handout<T> {
    value: Mutex<Option<Option<Arc<T>>>>,
    inboxes: Vec<Inbox>,
}

impl<T> Handout<T> {
    /// For `takers`.
    pub fn new(takers: usize) -> Arc<Handout<T>> {
        Arc::new(Handout {
            value: Mutex::new(None),
            inboxes: (0..takers).map(|_| Inbox::default()).collect(),
        })
    }

    /// Hands it out; `None`: there will be nothing, give up.
    pub fn give(&self, value: Option<Arc<T>>) {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        self.inboxes.iter().for_each(Inbox::signal);
    }

    async fn take(&self, taker: usize) -> Option<Arc<T>> {
        loop {
            let value = self.value.lock().unwrap_or_else(PoisonError::into_inner).clone();
            match value {
                Some(value) => return value,
                None => self.inboxes[taker].signalled().await,
            }
        }
    }
}

/// What a shard is given to start.
pub struct ShardSeed {
    /// Its number.
    pub id: usize,
    /// The data directory.
    pub root: PathBuf,
    /// What was on disk.
    pub state: Arc<State>,
    /// The old logs that it scans.
    pub logs: Vec<(LogId, Vec<SegmentFile>)>,
    /// What comes of all scans.
    pub start: Arc<Handout<Start>>,
    /// Limits of its engine.
    pub options: EngineOptions,
    /// Limits of requests.
    pub limits: Limits,
    /// How it behaves.
    pub settings: Settings,
    /// What clients of Redis are told of the server.
    pub setup: Arc<Setup>,
    /// Its end of the mesh.
    pub port: Port<Message>,
    /// Counts connections.
    pub connections: Arc<Connections>,
    /// After how long an idle connection is closed.
    pub idle_timeout: Option<Duration>,
    /// After how long one that takes no replies is closed.
    pub stall_timeout: Duration,
    /// Whether tablets are moved and split by load.
    pub auto_balance: bool,
    /// Whether its core is its own, so that it may look for requests for a while before it sleeps.
    pub may_spin: bool,
    /// Where to tell what happens.
    pub events: Sender<Event>,
}

/// A shard, as its poller sees it.
struct AtHome {
    shard: Rc<Shard<GlommioEnv>>,
    inbox: Arc<Inbox>,
}

impl Home for AtHome {
    fn has_open_turn(&self) -> bool {
        self.shard.has_open_turn()
    }

    fn end_turn(&self) {
        self.shard.end_turn();
    }

    fn attend(&self, does: bool) {
        self.inbox.attend(does);
    }

    fn look(&self) -> bool {
        self.inbox.look()
    }
}

/// Runs a shard to its end.
pub async fn serve(seed: ShardSeed) {
    let events = seed.events.clone();
    let tell = move |event| {
        // Nobody listens any more only when the process is ending.
        let _ = events.send(event);
    };
    let env = match GlommioEnv::new(&seed.root).await {
        Ok(env) => env,
        Err(error) => return tell(Event::Scanned(Err(error.to_string()))),
    };
    // Before anything runs that would have to end in order.
    let reads = match ReadRing::new() {
        Ok(ring) => Some(Rc::new(ring)),
        Err(error) => {
            tracing::warn!("disk reads take the longer way, since there is no ring for them: {error}");
            None
        }
    };
    let sends = match SendRing::new() {
        Ok(ring) => Some(ring),
        Err(error) => {
            tracing::warn!("replies are sent one by one, since there is no ring for them: {error}");
            None
        }
    };
    if let Some(reads) = &reads {
        env.disk().read_through(reads.clone());
    }
    let poller = match Poller::new(seed.may_spin, env.now(), reads, sends) {
        Ok(poller) => poller,
        Err(error) => return tell(Event::Scanned(Err(format!("no epoll can be made: {error}")))),
    };
    let scans = recovery::scan(&env, &seed.state, seed.logs).await;
    tell(Event::Scanned(scans.map_err(|error| error.to_string())));
    let Some(start) = seed.start.take(seed.id).await else { return };
    let metrics = Rc::new(Metrics::default());
    let engine = Engine::open(&env, seed.options, &start, seed.id as u32, metrics.clone()).await;
    let engine = match engine {
        Ok(engine) => engine,
        Err(error) => return tell(Event::Opened(Err(error.to_string()))),
    };
    let slots = Rc::new(SlotTable::new(&start.state));
    drop(start);
    let shard = Shard::new(seed.id, &env, engine, slots, seed.limits, seed.settings, metrics, seed.port);
    let running = crate::env::Gate::new();
    for which in 0..2 {
        let (shard, guard) = (shard.clone(), running.enter());
        env.spawn(Queue::Foreground, async move {
            match which {
                0 => shard.release_loop().await,
                _ => shard.room_loop().await,
            }
            drop(guard);
        });
    }
    if seed.auto_balance && seed.id == COORDINATOR {
        let (shard, guard) = (shard.clone(), running.enter());
        env.spawn(Queue::Foreground, async move {
            shard.balance_loop().await;
            drop(guard);
        });
    }
    {
        let (env, poller, shard, guard) = (env.clone(), poller.clone(), shard.clone(), running.enter());
        env.clone().spawn(Queue::Foreground, async move {
            let home = AtHome { inbox: shard.inbox(), shard };
            poller.run(&env, &home, &home.shard.metrics).await;
            drop(home);
            drop(guard);
        });
    }
    let open = Rc::new(OpenConnections::new());
    let context = Rc::new(context_of(&seed.setup, &shard));
    {
        // Detached: it holds nothing that the end of the shard waits for.
        let (env, open) = (env.clone(), Rc::downgrade(&open));
        env.clone().spawn(Queue::Foreground, async move {
            let mut missed = Duration::ZERO;
            loop {
                let begin = env.now();
                env.sleep(SWEEP).await;
                let Some(open) = open.upgrade() else { return };
                // For so long nothing ran here: the process was stopped, or the machine was elsewhere.
                let absent = (env.now() - begin).saturating_sub(SWEEP) + missed;
                missed = open.sweep(&env, seed.idle_timeout, seed.stall_timeout, absent).await;
            }
        });
    }
    tell(Event::Opened(Ok(())));
    let served = crate::env::Gate::new();
    let control = control(seed.connections.clone(), &env, &shard, open, context, &poller, tell.clone());
    {
        // In the poller's queue: what it sees that others have sent is then looked at in the same turn.
        let (shard, guard) = (shard.clone(), served.enter());
        env.spawn(Queue::Foreground, async move {
            shard.serve_mesh(control).await;
            drop(guard);
        });
    }
    served.empty().await;
    shard.pending.empty().await;
    shard.close();
    poller.end();
    running.empty().await;
    let engine = shard.engine.clone();
    drop(shard);
    let closed = engine.close().await;
    tell(Event::Closed(closed.map_err(|error| error.to_string())));
}

/// What a shard does with messages that are neither requests nor replies.
fn control(
    connections: Arc<Connections>,
    env: &GlommioEnv,
    shard: &Rc<Shard<GlommioEnv>>,
    open: Rc<OpenConnections<GlommioEnv>>,
    context: Rc<session::Context>,
    poller: &Rc<Poller>,
    tell: impl Fn(Event) + Clone + 'static,
) -> impl FnMut(Message) + 'static {
    let (env, shard, poller) = (env.clone(), shard.clone(), poller.clone());
    let mut is_draining = false;
    move |message| match message {
        // One that changed shards while the server was told to stop: it is closed, as all others are.
        Message::Connection(..) if is_draining => connections.leave(),
        Message::Connection(arrival) => {
            let (shard, open, connections) = (shard.clone(), open.clone(), connections.clone());
            let (context, poller) = (context.clone(), poller.clone());
            let guard = open.enter();
            env.spawn(Queue::Foreground, async move {
                let has_moved = Connection::serve(shard, arrival, context, &open, &poller).await;
                if !has_moved {
                    connections.leave();
                }
                drop(guard);
            });
        }
        Message::Drain => {
            is_draining = true;
            shard.stop_changes();
            open.drain();
            let (open, tell, shard) = (open.clone(), tell.clone(), shard.clone());
            env.spawn(Queue::Foreground, async move {
                open.gate.empty().await;
                shard.saves_ended().await;
                drop(shard);
                tell(Event::Drained);
            });
        }
        Message::Abandon => open.abandon(),
        _ => unreachable!("the mesh keeps requests and replies to itself"),
    }
}
