//! Stores on the simulated disk, for tests of the tool.
#![allow(dead_code)] // each test binary uses a part of it

use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use atlaskv::base::{Compression, Lsn, TableName, TabletId};
use atlaskv::disk::sim::SimDisk;
use atlaskv::engine::{Engine, EngineError, EngineOptions, Key, Loaded, Lookup, recovery};
use atlaskv::env::sim::SimEnv;
use atlaskv::metrics::Metrics;
use atlaskv::placement::SlotTable;
use atlaskv::slot::SlotRange;

/// What a key has: version, time of expiry, value.
pub type Entry = (Lsn, u64, Vec<u8>);

pub fn options() -> EngineOptions {
    EngineOptions {
        memtable_bytes: 64 << 20,
        sealed_max: 1,
        cache_bytes: 1 << 20,
        row_bytes: 1 << 20,
        reads_max: 128,
        index_bytes: 1 << 20,
        compression: Compression::default(),
        segment_bytes: 1 << 20,
        window: 2,
        lazy: None,
        compaction_fan: 4,
        snapshot_life: Duration::from_secs(60),
        snapshot_bytes: 1 << 30,
        scrub_bytes_per_s: 0,
        level_ratio: 4,
        last_table_bytes: 64 << 10,
        reserve_bytes: 0,
    }
}

/// A store that serves, without the shards around its engines.
pub struct Opened {
    pub engines: Vec<Rc<Engine<SimEnv>>>,
    pub slots: SlotTable,
    pub tablets: Vec<(TabletId, SlotRange)>,
}

/// Starts a store, a new one with so many tablets.
pub async fn open(
    env: &SimEnv,
    options: &EngineOptions,
    shards: u32,
    tablets: u16,
) -> Result<Opened, EngineError> {
    let found = recovery::load(env, tablets).await?;
    let scans = recovery::scan(env, &found.state, found.logs.into_iter().collect()).await?;
    let start = recovery::plan(found.state, scans, shards)?;
    recovery::install(env, &start).await?;
    let mut engines = Vec::new();
    for shard in 0..shards {
        engines.push(Engine::open(env, options.clone(), &start, shard, Rc::new(Metrics::default())).await?);
    }
    let tablets = start.state.tablets.values().map(|tablet| (tablet.id, tablet.slots)).collect();
    Ok(Opened { engines, slots: SlotTable::new(&start.state), tablets })
}

/// Reads a key of the tablet with this local number.
pub async fn get(engine: &Engine<SimEnv>, tablet: usize, key: &[u8]) -> Result<Option<Entry>, EngineError> {
    let key = Key { bytes: key, hash: engine.hash(key), tablet };
    let mut loaded = Loaded::new();
    loop {
        let lookup = engine.lookup(&key, &loaded, |found| {
            found.entry.map(|entry| (entry.lsn, entry.expiry_ms, entry.value.to_vec()))
        })?;
        match lookup {
            Lookup::Done(found) => return Ok(found),
            Lookup::Missing(block) => engine.load(block, &mut loaded).await?,
        }
    }
}

/// Writes all files of a simulated disk to a real one. Tables that are one file with two names stay one.
pub fn write_out(disk: &SimDisk, dir: &Path) {
    let mut tables: Vec<(TableName, Vec<u8>)> = Vec::new();
    for path in disk.paths() {
        let (to, bytes) = (dir.join(&path), disk.peek(&path).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let name = path.strip_prefix("sst/").and_then(TableName::parse);
        let same = name
            .and_then(|name| tables.iter().find(|(known, other)| known.file == name.file && *other == bytes));
        match same {
            Some((known, _)) => fs::hard_link(dir.join(known.path()), to).unwrap(),
            None => fs::write(to, &bytes).unwrap(),
        }
        tables.extend(name.map(|name| (name, bytes)));
    }
}
