//! A tablet's part of a memtable as a source: keys are copied in chunks, each begun with a search, so that the
//! memtable may take writes between two steps.

use super::{Context, Standing};
use crate::base::{Entry, Lsn};
use crate::engine::Engine;
use crate::engine::memtable::{Place, Visible};
use crate::engine::sstable::Bound;
use crate::env::Env;

/// Keys of the first chunk; each is twice the one before it.
const KEYS_MIN: usize = 8;
/// Keys of a chunk.
const KEYS_MAX: usize = 256;
/// Bytes of a chunk's keys, unless it is one key.
const KEY_BYTES_MAX: usize = 16 << 10;
/// Keys looked at for a chunk: those that came after the snapshot are passed over.
const LOOKED_AT_MAX: usize = 512;
/// Versions of a key looked at in one step.
const VERSIONS_MAX: usize = 512;

/// Keys of a tablet in a memtable, as a snapshot sees them.
pub struct MemorySource {
    local: usize,
    lsn: Lsn,
    memtable: u64,
    /// Where the next chunk begins.
    bound: Bound,
    /// Nothing comes after this chunk.
    is_last: bool,
    keys: Vec<u8>,
    /// Where each key ends, and the place of its version.
    items: Vec<(u32, Place)>,
    at: usize,
    key_start: usize,
    chunk: usize,
    /// A key with so many versions that they are looked at in several steps: it and the next version.
    long: Option<(Vec<u8>, Place)>,
}

impl MemorySource {
    pub fn new(local: usize, lsn: Lsn, memtable: u64, bound: Bound) -> MemorySource {
        MemorySource {
            local,
            lsn,
            memtable,
            bound,
            is_last: false,
            keys: Vec::new(),
            items: Vec::new(),
            at: 0,
            key_start: 0,
            chunk: KEYS_MIN,
            long: None,
        }
    }

    /// The key it stands on.
    #[inline]
    pub fn key(&self) -> &[u8] {
        self.items.get(self.at).map_or(&[], |(end, _)| &self.keys[self.key_start..*end as usize])
    }

    /// Shows the entry it stands on; `None` if the memtable has gone meanwhile.
    #[inline]
    pub fn with_entry<E: Env, R>(&self, engine: &Engine<E>, show: impl FnOnce(Entry<'_>) -> R) -> Option<R> {
        let (_, place) = *self.items.get(self.at)?;
        engine.with_memtable(self.memtable, |memtable| show(memtable.entry_at(place)))
    }

    #[inline]
    pub fn advance<E: Env>(&mut self, context: &Context<'_, E>) -> Standing {
        if let Some((end, _)) = self.items.get(self.at) {
            self.key_start = *end as usize;
            self.at += 1;
        }
        if self.at < self.items.len() { Standing::Ready } else { self.settle(context) }
    }

    pub fn settle<E: Env>(&mut self, context: &Context<'_, E>) -> Standing {
        if self.at < self.items.len() {
            return Standing::Ready;
        }
        if self.is_last && self.long.is_none() {
            return Standing::End;
        }
        self.refill(context);
        if self.items.is_empty() { Standing::Busy } else { Standing::Ready }
    }

    /// Copies the next keys, if some are there in one step.
    fn refill<E: Env>(&mut self, context: &Context<'_, E>) {
        self.keys.clear();
        self.items.clear();
        (self.at, self.key_start) = (0, 0);
        let range = context.range;
        // Gone, it has become tables, and the scan is about to see that.
        context.engine.with_memtable(self.memtable, |memtable| {
            if memtable.sort_tablet_step(self.local) {
                return;
            }
            if let Some((key, place)) = self.long.take() {
                match memtable.visible(place, self.lsn, VERSIONS_MAX) {
                    Visible::At(place) => self.push(&key, place),
                    Visible::Nothing => {}
                    Visible::More(place) => self.long = Some((key, place)),
                }
                return;
            }
            let (bound, is_reverse) = (std::mem::replace(&mut self.bound, Bound::None), range.is_reverse);
            let (mut last, mut looked_at) = (&[][..], 0);
            self.is_last = true;
            memtable.walk(self.local, bound.key(), is_reverse, |key, newest| {
                if range.is_behind(key) {
                    return false;
                }
                if looked_at == LOOKED_AT_MAX
                    || self.items.len() == self.chunk
                    || self.keys.len() > KEY_BYTES_MAX
                {
                    self.is_last = false;
                    return false;
                }
                (last, looked_at) = (key, looked_at + 1);
                match memtable.visible(newest, self.lsn, VERSIONS_MAX) {
                    Visible::At(place) => self.push(key, place),
                    Visible::Nothing => {}
                    Visible::More(place) => {
                        self.long = Some((key.to_vec(), place));
                        self.is_last = false;
                        return false;
                    }
                }
                true
            });
            if !self.is_last {
                let mut key = last.to_vec();
                if !is_reverse {
                    key.push(0);
                }
                self.bound = Bound::Key(key);
            }
            self.chunk = (self.chunk * 2).min(KEYS_MAX);
        });
    }

    fn push(&mut self, key: &[u8], place: Place) {
        self.keys.extend_from_slice(key);
        self.items.push((self.keys.len() as u32, place));
    }
}
