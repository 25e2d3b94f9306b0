//! Writes what is readable of a damaged data directory into a fresh one, and lists what is lost.
//!
//! All that counts of tables and logs is merged, by key and version, into tables of a last level: of each key its
//! newest version that can be read, unless that is a tombstone or a range delete has removed it. So the new
//! directory needs no log, has no range deletes, and nothing in it can hide or bring back anything. What is lost may
//! have held newer versions than what was found: that is why the list names keys and versions.
//!
//! A manifest says which tables and which parts of the logs count. Without one all count, which may bring back what
//! had been deleted; so that is done on request only.

mod logs;
mod merge;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::path::Path;

use atlaskv::base::{EntryIndex, LogId, TableName};
use atlaskv::disk::Disk;
use atlaskv::engine::checkpoint::{self, MARKER, Unfinished};
use atlaskv::engine::manifest::{self, State};
use atlaskv::engine::ranges::RangeDeletes;
use atlaskv::env::Env;
use atlaskv::env::below::EnvBelow;
use atlaskv::placement;
use futures_lite::future::block_on;

use self::merge::{Merge, Merged, Outputs, TableSource};
use crate::fresh::Fresh;
use crate::readonly::ReadOnly;
use crate::verify::lock;
use crate::{Failure, Outcome};

/// Entry indexes that are passed over, so that no version is given out twice, not even one that was lost: clients may
/// know it. No log holds that many entries, and of all indexes it is a 65,536th.
const LOST_ENTRIES_MAX: u64 = 1 << 32;
/// Bits of an entry index.
const INDEX_BITS: u32 = 48;
/// Tablets of a directory whose own nobody knows.
const TABLETS: u16 = 16;

/// What is lost, as it is found.
pub struct Losses<'a, W> {
    out: &'a mut W,
    places: u64,
    failed: Option<std::io::Error>,
}

impl<W: Write> Losses<'_, W> {
    /// Something that no copy here has.
    pub fn lost(&mut self, what: &str) {
        self.places += 1;
        self.say("LOST", what);
    }

    /// Something that harms nothing.
    pub fn note(&mut self, what: &str) {
        self.say("note", what);
    }

    fn say(&mut self, kind: &str, what: &str) {
        if let Err(error) = writeln!(self.out, "{kind}: {what}") {
            self.failed.get_or_insert(error);
        }
    }
}

fn refused(what: impl ToString) -> Failure {
    Failure::Refused(what.to_string())
}

/// Salvages `from` into the new directory `to`.
pub fn salvage(from: &Path, to: &Path, without_manifest: bool, out: &mut impl Write) -> Outcome {
    let _lock = lock(from)?;
    if from.join(MARKER).exists() {
        return Err(refused(format!(
            "{}: a copy that was never completed; salvage what it was made of",
            from.display()
        )));
    }
    let env = ReadOnly::patient(from);
    let mut losses = Losses { out, places: 0, failed: None };
    let known = block_on(known_state(&env, &mut losses));
    let (target, fresh) = (std::path::absolute(to).map_err(refused)?, Fresh::new());
    let Some(target) = target.to_str() else { return Err(refused(format!("{}: no text", to.display()))) };
    let begin = || block_on(checkpoint::prepare_as(&fresh, target, Unfinished::Salvage)).map_err(refused);
    let below = EnvBelow::new(&fresh, target);
    let (state, merged) = match known {
        Ok(state) => {
            begin()?;
            block_on(with_manifest(&env, &below, state, &mut losses))?
        }
        Err(why) if without_manifest => {
            losses.lost(&format!(
                "{why}: all tables and logs are taken for valid, so deleted keys may be back"
            ));
            begin()?;
            block_on(all_there_is(&env, &below, &mut losses))?
        }
        Err(why) => {
            return Err(refused(format!(
                "{why}; nothing says which tables count, and which keys were deleted: with --without-manifest all \
                 tables and logs count, and deleted keys and older values may come back"
            )));
        }
    };
    block_on(checkpoint::complete(&fresh, target, vec![state])).map_err(refused)?;
    let Losses { out, places, failed } = losses;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let verdict = if places == 0 { "nothing was lost".to_owned() } else { format!("{places} losses") };
    writeln!(
        out,
        "{verdict}: {} keys in {} tables, {} bytes, in {target}",
        merged.keys, merged.tables, merged.bytes
    )?;
    Ok(places > 0)
}

/// What the manifest says. `CURRENT` only names the generation. Another one that is whole says the same: files of
/// an older one are gone before a newer one takes edits, and a newer one takes none before `CURRENT` names it.
async fn known_state<W: Write>(env: &ReadOnly, losses: &mut Losses<'_, W>) -> Result<State, String> {
    let why = match manifest::load(env).await {
        Ok(Some(state)) => return Ok(state),
        Ok(None) => "CURRENT is missing".to_owned(),
        Err(error) => error.to_string(),
    };
    for current in manifest::generations(env).await.map_err(|error| format!("{why}; {error}"))? {
        if let Ok(Some(state)) = manifest::load_generation(env, current).await {
            losses.note(&format!(
                "{why}; generation {} of the manifest is whole, and is taken",
                current.generation
            ));
            return Ok(state);
        }
    }
    Err(format!("{why}; no generation of the manifest is whole"))
}

/// As the manifest tells it.
async fn with_manifest<F: Env, W: Write>(
    env: &ReadOnly,
    fresh: &F,
    mut state: State,
    losses: &mut Losses<'_, W>,
) -> Result<(State, Merged), Failure> {
    let mut logged = logs::needed(env, &state, losses).await?;
    let tablets = state.tablets.values().map(|tablet| (tablet.id, tablet.slots)).collect();
    let mut outputs = Outputs::new(fresh, LogId(state.store.next_log), state.store.hash_seed, tablets);
    for tablet in state.tablets.values_mut() {
        let mut logged = logged.remove(&tablet.id).unwrap_or_default();
        let known = tablet.ranges.fragments().iter();
        logged.ranges = known.fold(logged.ranges, |ranges, range| ranges.with(range));
        tablet.flushed = behind(tablet.flushed.max(logged.last))?;
        let tables = tablet.tables.iter().map(|table| TableSource::known(tablet, table)).collect();
        Merge::new(env, tables, BTreeMap::from([(tablet.id, logged)])).run(&mut outputs, losses).await?;
    }
    let merged = outputs.finish().await?;
    for tablet in state.tablets.values_mut() {
        tablet.logs.clear();
        tablet.ranges = RangeDeletes::default();
        tablet.tables = merged.of.get(&tablet.id).cloned().unwrap_or_default();
    }
    state.logs.clear();
    state.pins.clear();
    state.store.next_log += 1;
    Ok((state, merged))
}

/// With nothing that says what counts.
async fn all_there_is<F: Env, W: Write>(
    env: &ReadOnly,
    fresh: &F,
    losses: &mut Losses<'_, W>,
) -> Result<(State, Merged), Failure> {
    let random = || RandomState::new().build_hasher().finish();
    let cluster = u128::from(random()) << 64 | u128::from(random());
    let mut state = State::create(cluster, random(), TABLETS);
    placement::assign(&mut state, 1);
    state.generation = 1;
    let tablets = state.tablets.values().map(|tablet| (tablet.id, tablet.slots)).collect();
    let mut outputs = Outputs::new(fresh, LogId(state.store.next_log), state.store.hash_seed, tablets);
    let logged = logs::all(env, losses).await?;
    let last = logged.values().map(|logged| logged.last).max().unwrap_or(EntryIndex::ZERO);
    let entries = match env.list(TableName::DIR).await {
        Err(error) if error.is_not_found() => Vec::new(),
        entries => entries.map_err(refused)?,
    };
    let mut sources = Vec::new();
    for name in entries.iter().filter_map(|entry| TableName::parse(&entry.name)) {
        sources.extend(TableSource::found(env, name, losses).await);
    }
    let highest = Merge::new(env, sources, logged).run(&mut outputs, losses).await?;
    let merged = outputs.finish().await?;
    for tablet in state.tablets.values_mut() {
        tablet.flushed = behind(last.max(highest.index()))?;
        tablet.flushed_term = tablet.term;
        tablet.tables = merged.of.get(&tablet.id).cloned().unwrap_or_default();
    }
    state.store.next_log += 1;
    Ok((state, merged))
}

/// An entry index behind all that may have been lost together with this one.
fn behind(index: EntryIndex) -> Result<EntryIndex, Failure> {
    let end = index.0.checked_add(LOST_ENTRIES_MAX).filter(|end| *end >> INDEX_BITS == 0);
    end.map(EntryIndex).ok_or_else(|| refused(format!("no entry index is left behind {index}")))
}
