//! Stores whose files are damaged: of random shape, with all that a data directory may hold. Each is at rest: its
//! server was stopped, or killed when it had been idle. What was in flight when the power goes may be torn, and what
//! is torn looks like what is damaged; of a store that has come to rest nothing may be.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use atlaskv::base::{Codec, Compression, Op, OpKind, TabletId};
use atlaskv::disk::Disk;
use atlaskv::disk::sim::SimDisk;
use atlaskv::engine::checkpoint::{self, MARKER, Unfinished};
use atlaskv::engine::wal::parse_segment_name;
use atlaskv::engine::{EngineOptions, Room, WRITE_OVERHEAD};
use atlaskv::env::Env;
use atlaskv::env::sim::{SimEnv, SimWorld};
use atlaskv::slot::{Slot, SlotRange};
use atlaskv_inspect::{backup, verify};
use tempfile::TempDir;

use crate::common::{self, Opened, options, write_out};
use crate::look::Contents;
use crate::places::Places;

/// Keys that are written; a few more are asked for.
const KEYS: u32 = 120;
/// By then a log is sealed, flushes and merges are done. The time is simulated.
const REST: Duration = Duration::from_secs(3);
const COPY: &str = "copy";

/// A data directory, in the simulated world and in the real one.
pub struct Specimen {
    /// Its story, for messages.
    pub what: String,
    pub disk: SimDisk,
    pub dir: TempDir,
    pub files: BTreeMap<String, Vec<u8>>,
    pub shards: u32,
    /// How it is opened to look at it.
    pub options: EngineOptions,
    pub keys: Vec<Vec<u8>>,
    pub places: Places,
    /// What it holds.
    pub contents: Contents,
}

/// One store, a backup of it, and that as it was before it was complete.
pub struct Specimens {
    pub live: Specimen,
    pub backup: Specimen,
    pub marked: Specimen,
}

/// How a life of a store ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stopped,
    /// After it has been idle for a while.
    Killed,
    /// The power goes amid writes; so many percent of what was not synced stay.
    PowerCut(u32),
}

fn key(number: u32) -> Vec<u8> {
    match number % 3 {
        // Some keys of one slot, which a batch may be about.
        0 => format!("{{of {}}}-{number:03}", number % 5).into_bytes(),
        1 => format!("key-{number:03}").into_bytes(),
        _ => format!("a longer key, as alike as they are in practice: {number:03}").into_bytes(),
    }
}

fn random_options(rng: &mut fastrand::Rng) -> EngineOptions {
    let mut codec = || Codec::ALL[rng.usize(..3)];
    let compression = Compression { upper: codec(), last: codec() };
    EngineOptions {
        compression,
        sealed_max: rng.usize(1..=2),
        cache_bytes: [1, 16 << 10, 1 << 20][rng.usize(..3)],
        row_bytes: [0, 16 << 10][rng.usize(..2)],
        // No index is resident, some are, all are.
        index_bytes: [0, 12 << 10, 1 << 20][rng.usize(..3)],
        segment_bytes: [32 << 10, 64 << 10, 256 << 10][rng.usize(..3)],
        window: rng.usize(1..=3),
        lazy: (rng.u8(..4) == 0).then_some(Duration::from_millis(3)),
        compaction_fan: rng.usize(2..=4),
        level_ratio: rng.u64(1..=4),
        last_table_bytes: [8 << 10, 32 << 10, 1 << 20][rng.usize(..3)],
        ..options()
    }
}

/// A store that serves.
struct Store<'a> {
    env: &'a SimEnv,
    rng: &'a mut fastrand::Rng,
    opened: Opened,
    value_bytes_max: usize,
}

impl Store<'_> {
    async fn open<'a>(env: &'a SimEnv, rng: &'a mut fastrand::Rng, shards: u32, tablets: u16) -> Store<'a> {
        let options = random_options(rng);
        let value_bytes_max = options.segment_bytes as usize / 2;
        let opened = common::open(env, &options, shards, tablets).await.expect("a sound store opens");
        Store { env, rng, opened, value_bytes_max }
    }

    fn value(&mut self) -> Vec<u8> {
        let len = match self.rng.u8(..40) {
            // Of several pages, alone in a block.
            0 => self.rng.usize(..self.value_bytes_max),
            1..4 => self.rng.usize(..6000),
            _ => self.rng.usize(..120),
        };
        match self.rng.bool() {
            true => (0..len).map(|_| self.rng.u8(..)).collect(),
            false => format!("{} and again ", self.rng.u32(..)).bytes().cycle().take(len).collect(),
        }
    }

    async fn write(&mut self) {
        let number = self.rng.u32(..KEYS);
        if self.rng.u8(..60) == 0 {
            return self.delete_range(number).await;
        }
        let is_batch = number.is_multiple_of(3) && self.rng.bool();
        let others = if is_batch { self.rng.u32(1..4) } else { 0 };
        // Numbers 15 apart share their slot.
        let numbers = (0..=others).map(|other| (number + other * 15) % KEYS);
        let mut writes = Vec::new();
        for key in numbers.map(key) {
            let (kind, value, expiry_ms) = match self.rng.u8(..8) {
                0 => (OpKind::Delete, Vec::new(), 0),
                1 => (OpKind::Put, self.value(), self.env.wall_ms() + self.rng.u64(..60_000)),
                2 => (OpKind::Put, self.value(), u64::MAX / 2),
                _ => (OpKind::Put, self.value(), 0),
            };
            if writes.is_empty() || value.len() < 1000 {
                writes.push((kind, key, value, expiry_ms));
            }
        }
        let ops: Vec<Op<'_>> = writes
            .iter()
            .map(|(kind, key, value, expiry_ms)| Op { kind: *kind, key, value, expiry_ms: *expiry_ms })
            .collect();
        let slot = Slot::of_key(ops[0].key);
        let (shard, local) = (self.opened.slots.shard(slot), self.opened.slots.local(slot));
        let bytes = ops.iter().map(|op| op.key.len() + op.value.len() + WRITE_OVERHEAD).sum();
        self.room(shard, bytes).await;
        let engine = &self.opened.engines[shard];
        let hashes: Vec<u64> = ops.iter().map(|op| engine.hash(op.key)).collect();
        engine.write(local, &ops, &hashes).expect("there is room");
    }

    async fn room(&self, shard: usize, bytes: usize) {
        while self.opened.engines[shard].room(true, bytes).expect("nothing fails") == Room::Wait {
            self.env.sleep(Duration::from_millis(1)).await;
        }
    }

    async fn delete_range(&mut self, number: u32) {
        let (start, end) = (key(number), key(number + 3 * self.rng.u32(1..8)));
        let (start, end) = if start < end { (start, end) } else { (end, start) };
        if start == end {
            return;
        }
        for (shard, engine) in self.opened.engines.iter().enumerate() {
            self.room(shard, 4096).await;
            if engine.room_everywhere(&start, &end).is_ok_and(|room| room == Room::Yes) {
                engine.delete_everywhere(&start, &end).expect("there is room");
            }
        }
    }

    async fn write_some(&mut self, count: u32) {
        for _ in 0..count {
            self.write().await;
            if self.rng.u8(..8) == 0 {
                let micros = self.rng.u64(..3000);
                self.env.sleep(Duration::from_micros(micros)).await;
            }
        }
    }

    /// Flushes what some shards hold, or all.
    async fn flush(&mut self) {
        for engine in &self.opened.engines {
            if self.rng.u8(..4) > 0 {
                engine.rotate();
            }
        }
        self.env.sleep(REST).await;
    }

    fn any_tablet(&mut self) -> (usize, TabletId, SlotRange) {
        let place = self.rng.usize(..self.opened.tablets.len());
        let (id, slots) = self.opened.tablets[place];
        (place, id, slots)
    }

    async fn move_tablet(&mut self) {
        let (_, id, slots) = self.any_tablet();
        let table = &self.opened.slots;
        let from = table.shard(Slot::new(slots.first()).unwrap());
        let to = (from + 1) % self.opened.engines.len();
        if to == from {
            return;
        }
        let (source, target) = (&self.opened.engines[from], &self.opened.engines[to]);
        source.prepare_to_leave(id).await.unwrap();
        target.prepare_to_take(id, &source.tables_of(id)).await.unwrap();
        let state = source.pack(id, to as u32).await.unwrap();
        let local = target.take(state).await.unwrap();
        table.assign(slots, to, local, table.epoch() + 1);
        source.part(id).await.unwrap();
    }

    async fn split_tablet(&mut self) {
        let (place, id, slots) = self.any_tablet();
        if slots.count() < 2 {
            return;
        }
        let at = self.rng.u16(slots.first() + 1..=slots.last());
        let into = TabletId(self.opened.tablets.iter().map(|(id, _)| id.0 + 1).max().unwrap());
        let table = &self.opened.slots;
        let shard = table.shard(Slot::new(slots.first()).unwrap());
        let engine = &self.opened.engines[shard];
        engine.prepare_to_leave(id).await.unwrap();
        engine.prepare_to_split(id, into).await.unwrap();
        let local = engine.split(id, at, into).await.unwrap();
        let upper = SlotRange::new(at, slots.last()).unwrap();
        table.assign(upper, shard, local, table.epoch() + 1);
        self.opened.tablets[place].1 = SlotRange::new(slots.first(), at - 1).unwrap();
        self.opened.tablets.push((into, upper));
    }

    async fn checkpoint(&self) {
        checkpoint::prepare(self.env, COPY).await.unwrap();
        self.opened.engines.iter().for_each(|engine| engine.seal_checkpoint());
        let mut states = Vec::new();
        for engine in &self.opened.engines {
            let captured = engine.captured().await.unwrap();
            engine.link_checkpoint(&captured, COPY).await.unwrap();
            states.push(captured.state);
        }
        checkpoint::complete(self.env, COPY, states).await.unwrap();
    }

    async fn end(mut self, end: End) {
        match end {
            End::Stopped => {
                for engine in self.opened.engines {
                    engine.close().await.expect("a sound store stops");
                }
            }
            End::Killed => self.env.sleep(REST).await,
            End::PowerCut(_) => {
                let last = self.rng.u32(1..6);
                self.write_some(last).await;
            }
        }
    }
}

/// What a life does before it ends: all sorts of work, the last of which stays in the log; the first life also has a
/// checkpoint made.
async fn live(store: &mut Store<'_>, is_first: bool) {
    for _ in 0..store.rng.u32(u32::from(is_first)..4) {
        let count = store.rng.u32(20..120);
        store.write_some(count).await;
        store.flush().await;
        if store.rng.bool() {
            store.move_tablet().await;
        }
        if store.rng.u8(..3) == 0 {
            store.split_tablet().await;
        }
    }
    if is_first {
        store.checkpoint().await;
    }
    let count = store.rng.u32(..60);
    store.write_some(count).await;
}

fn files(disk: &SimDisk) -> BTreeMap<String, Vec<u8>> {
    let below = |path: &String| !path.starts_with(COPY);
    disk.paths().into_iter().filter(below).map(|path| (path.clone(), disk.peek(&path).unwrap())).collect()
}

/// Makes specimens. All that they are follows from `rng`.
pub fn make(rng: &mut fastrand::Rng) -> Specimens {
    let tablets = [1, 2, 4, 8][rng.usize(..4)];
    let lives = rng.usize(1..=3);
    let mut what = format!("{tablets} tablets");
    let mut before: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut world = SimWorld::new(rng.u64(..));
    let mut disk = SimDisk::new(&world);
    let mut shards = 0;
    for life in 1..=lives {
        shards = rng.u32(1..=3);
        let end = match rng.u8(..if life < lives { 4 } else { 2 }) {
            0 => End::Stopped,
            1 => End::Killed,
            _ => End::PowerCut([0, 50, 100][rng.usize(..3)]),
        };
        what += &format!("; {shards} shards, {end:?}");
        let env = SimEnv::new(&world, disk);
        world.run(async {
            let mut store = Store::open(&env, rng, shards, tablets).await;
            live(&mut store, life == 1).await;
            store.end(end).await;
        });
        world.kill();
        if life < lives {
            before.append(&mut files(env.disk()));
        }
        let keep = if let End::PowerCut(keep) = end { keep } else { 100 };
        world = SimWorld::new(rng.u64(..));
        disk = env.disk().crash(&world, rng, keep);
    }
    let copy = disk.below(COPY, &world);
    for path in disk.paths().into_iter().filter(|path| path.starts_with(COPY)) {
        world.run(async { disk.remove(&path).await.unwrap() });
    }
    let left_over = rng.bool();
    if left_over {
        // What a crash leaves that comes before names are removed for good.
        let known = disk.paths();
        let log = |path: &str| path.strip_prefix("wal/").and_then(parse_segment_name).map(|(log, _)| log);
        let logs: Vec<_> = known.iter().filter_map(|path| log(path)).collect();
        before.retain(|path, bytes| {
            !known.contains(path) && !bytes.is_empty() && log(path).is_none_or(|log| !logs.contains(&log))
        });
        before.into_iter().for_each(|(path, bytes)| disk.poke(&path, bytes));
        disk.poke("CURRENT.tmp", disk.peek("CURRENT").unwrap());
        what += "; with files left over";
    }
    disk.poke("LOCK", b"4711\n".to_vec());
    let live = specimen(rng, what, &disk, shards);
    let (backup, marked) = backups(rng, &copy);
    Specimens { live, backup, marked }
}

/// A backup of a checkpoint, and that as it was before it was complete.
fn backups(rng: &mut fastrand::Rng, copy: &SimDisk) -> (Specimen, Specimen) {
    let dir = tempfile::tempdir().unwrap();
    let (from, target) = (dir.path().join("checkpoint"), dir.path().join("backups"));
    write_out(copy, &from);
    let is_damaged = backup::backup(&from, &target, Some("one".to_owned()), &mut Vec::new()).unwrap();
    assert!(!is_damaged, "a sound checkpoint is copied");
    let disk = read_in(&target.join("one"));
    let shards = rng.u32(1..=3);
    let backup = specimen(rng, "a backup".to_owned(), &disk, shards);
    let mut page = vec![0; 4096];
    Unfinished::Backup.encode(&mut page);
    disk.poke(MARKER, page);
    let marked = specimen(rng, "a backup that is not complete".to_owned(), &disk, shards);
    (backup, marked)
}

/// The files of a real data directory.
fn read_in(dir: &Path) -> SimDisk {
    let world = SimWorld::new(0);
    let disk = SimDisk::new(&world);
    for below in ["", "sst", "manifest", "wal"] {
        world.run(async { disk.create_dir(below).await.unwrap() });
        for entry in std::fs::read_dir(dir.join(below)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_file() {
                let path = if below.is_empty() { name } else { format!("{below}/{name}") };
                disk.poke(&path, std::fs::read(entry.path()).unwrap());
            }
        }
    }
    disk
}

fn specimen(rng: &mut fastrand::Rng, what: String, disk: &SimDisk, shards: u32) -> Specimen {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("wal")).unwrap();
    write_out(disk, dir.path());
    let mut said = Vec::new();
    let is_damaged = verify::verify(dir.path(), &mut said).unwrap();
    let is_marked = disk.peek(MARKER).is_some();
    assert_eq!(is_damaged, is_marked, "{what} is sound: {}", String::from_utf8_lossy(&said));
    let mut options = random_options(rng);
    options.segment_bytes = 64 << 10;
    options.scrub_bytes_per_s = 1 << 30;
    let disk = disk.crash(&SimWorld::new(0), rng, 100);
    let keys = (0..KEYS + 5).map(key).collect();
    let (files, places) = (files(&disk), Places::of(dir.path()));
    let contents = Contents::new();
    let mut specimen = Specimen { what, disk, dir, files, shards, options, keys, places, contents };
    // What is not complete is never opened.
    if !is_marked {
        specimen.contents = specimen.read_whole();
    }
    specimen
}
