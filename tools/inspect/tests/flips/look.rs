//! Opens a damaged copy of a store and reads all of it, by key and by scan, while the scrub does its round. Whatever
//! it answers must be what the undamaged store answers.

use std::collections::BTreeMap;
use std::time::Duration;

use atlaskv::engine::EngineError;
use atlaskv::engine::scan::{Filled, ScanRange};
use atlaskv::env::Env;
use atlaskv::env::sim::{SimEnv, SimWorld};
use atlaskv::slot::Slot;

use crate::common::{self, Entry, Opened};
use crate::stores::Specimen;

/// So much later than the specimens were made: some keys have expired by then.
const LATER_MS: i64 = 3_600_000;
/// A round of the scrub is over by then. The time is simulated.
const ROUND_MAX: Duration = Duration::from_secs(600);

/// What a store holds.
pub type Contents = BTreeMap<Vec<u8>, Entry>;

/// How a damaged copy has shown its damage.
#[derive(Default)]
pub struct Seen {
    /// Why it did not start.
    pub refusal: Option<String>,
    /// Damage that a start told of, and went on.
    pub at_start: u64,
    /// Reads and scans that were refused.
    pub on_read: u64,
    /// Places that the scrub found.
    pub by_scrub: u64,
}

impl Seen {
    /// Whether it was as if nothing were damaged.
    pub fn is_nothing(&self) -> bool {
        self.refusal.is_none() && self.at_start == 0 && self.on_read == 0 && self.by_scrub == 0
    }
}

impl Specimen {
    /// What the undamaged store answers.
    pub fn read_whole(&self) -> Contents {
        let (world, env) = self.copy(None);
        let contents = world.run(async {
            let opened =
                common::open(&env, &self.options, self.shards, 1).await.expect("a sound store opens");
            let mut contents = Contents::new();
            for key in &self.keys {
                if let Some(found) = read(&opened, key).await.expect("a sound store is readable") {
                    contents.insert(key.clone(), found);
                }
            }
            let seen = look_at(&env, &opened, &self.keys, &contents).await.expect("scans say the same");
            assert!(seen.is_nothing(), "a sound store is sound");
            contents
        });
        world.kill();
        contents
    }

    /// Looks at a copy of which one file holds other bytes. `Err`: it gave a wrong answer.
    pub fn look(&self, path: &str, bytes: Vec<u8>) -> Result<Seen, String> {
        let (world, env) = self.copy(Some((path, bytes)));
        let seen = world.run(async {
            match common::open(&env, &self.options, self.shards, 1).await {
                Ok(opened) => look_at(&env, &opened, &self.keys, &self.contents).await,
                Err(error) => Ok(Seen { refusal: Some(error.to_string()), ..Seen::default() }),
            }
        });
        world.kill();
        seen
    }

    fn copy(&self, damage: Option<(&str, Vec<u8>)>) -> (SimWorld, SimEnv) {
        let world = SimWorld::new(1);
        let disk = self.disk.crash(&world, &mut fastrand::Rng::with_seed(0), 100);
        if let Some((path, bytes)) = damage {
            // Under all its names.
            disk.damage(path, bytes);
        }
        world.jump_wall(LATER_MS);
        let env = SimEnv::new(&world, disk);
        (world, env)
    }
}

async fn read(opened: &Opened, key: &[u8]) -> Result<Option<Entry>, EngineError> {
    let slot = Slot::of_key(key);
    let engine = &opened.engines[opened.slots.shard(slot)];
    common::get(engine, opened.slots.local(slot), key).await
}

async fn look_at(
    env: &SimEnv,
    opened: &Opened,
    keys: &[Vec<u8>],
    contents: &Contents,
) -> Result<Seen, String> {
    let mut seen = Seen::default();
    for key in keys {
        match read(opened, key).await {
            Err(_) => seen.on_read += 1,
            Ok(found) if found.as_ref() == contents.get(key) => {}
            Ok(found) => {
                let (key, wanted) = (key.escape_ascii(), contents.get(key));
                return Err(format!("{key} is {}, not {}", show(found.as_ref()), show(wanted)));
            }
        }
    }
    for shard in 0..opened.engines.len() {
        seen.on_read += u64::from(scan(opened, shard, contents).await?);
    }
    let begun = env.now();
    let is_scrubbed = || opened.engines.iter().all(|engine| engine.metrics().scrub_rounds > 0);
    while !is_scrubbed() && env.now() < begun + ROUND_MAX {
        env.sleep(Duration::from_millis(50)).await;
    }
    if !is_scrubbed() {
        return Err("the scrub does not come to the end of a round".to_owned());
    }
    for engine in &opened.engines {
        let metrics = engine.metrics();
        seen.at_start += metrics.start_damage;
        seen.by_scrub += metrics.scrub_damage;
    }
    Ok(seen)
}

/// Scans all that a shard has. Whether that was refused: what came before is right nevertheless.
async fn scan(opened: &Opened, shard: usize, contents: &Contents) -> Result<bool, String> {
    let engine = &opened.engines[shard];
    let mut wanted = contents.iter().filter(|(key, _)| opened.slots.shard(Slot::of_key(key)) == shard);
    let mut wrong = None;
    let mut scan = engine.scan(None, ScanRange { start: vec![], end: vec![], is_reverse: false });
    let scanned = scan
        .run(engine, &mut u32::MAX.clone(), |key, entry| {
            let found = (entry.lsn, entry.expiry_ms, entry.value.to_vec());
            let next = wanted.next();
            if next != Some((&key.to_vec(), &found)) {
                let (key, found) = (key.escape_ascii(), show(Some(&found)));
                let next = next.map_or("nothing".to_owned(), |(key, entry)| {
                    format!("{} {}", key.escape_ascii(), show(Some(entry)))
                });
                wrong = Some(format!("a scan gives {key} {found}, not {next}"));
            }
            wrong.is_none()
        })
        .await;
    match (wrong, scanned) {
        (Some(wrong), _) => Err(wrong),
        (None, Err(_)) => Ok(true),
        (None, Ok(Filled::End)) => match wanted.next() {
            None => Ok(false),
            Some((key, _)) => Err(format!("a scan does not give {}", key.escape_ascii())),
        },
        (None, Ok(filled)) => Err(format!("a scan stops as {filled:?}")),
    }
}

fn show(entry: Option<&Entry>) -> String {
    match entry {
        None => "absent".to_owned(),
        Some((lsn, expiry_ms, value)) => {
            let shown = value[..value.len().min(20)].escape_ascii();
            format!("{lsn} \"{shown}\" of {} bytes, expiry {expiry_ms}", value.len())
        }
    }
}
