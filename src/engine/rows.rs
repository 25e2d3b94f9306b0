//! The row cache of a shard: single entries of tables that were read again while their block was in memory. One found
//! here needs no index, filter or block: two cache misses instead of some ten, both of which can be
//! [fetched](RowCache::prefetch_row) for many keys at once. And a row takes its own length of memory, where its block
//! takes that of 30 others that nobody may want.
//!
//! Rows lie in a ring, in the order in which they came; what the ring comes round to is overwritten. A row that is read
//! when it is about to be is moved to the front. A bucket of 8 slots, one cache line, says by hash where rows are; a
//! slot whose row was overwritten is free.
//!
//! ```text
//! slot:  16 bits of the hash | 48 bits of place, in words of 8 bytes; counted on from lap to lap, so that it also
//!                              tells whether the row is still there. 0: free
//! row:   LSN 8 | expiry 8 | key length 2 | value length 2 | key | value, from a word's start on
//! ```
//!
//! A row is the newest version that tables have of its key, so it is asked after the memtables, in place of the tables:
//! - A key that is in a memtable is found there. The flush that takes it from there [removes](RowCache::remove) the
//!   row, some time before tables have what is newer.
//! - A range delete hides the rows it concerns by their LSN, as it hides entries of tables, until it is forgotten: so
//!   one [clears](RowCache::clear) all. So do a tablet that goes and one that comes.
//!
//! Bounded by the bytes it is given, 1/8 of which are slots. Memory is taken as rows come, not before.

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::base::{Entry, Lsn, OpKind, prefetch};

/// Key and value of a row, at most: for longer ones the way to them is little beside what is copied.
pub const ROW_BYTES_MAX: usize = 1024;

const WORD: usize = 8;
const CACHE_LINE: usize = 64;
const WAYS: usize = CACHE_LINE / WORD;
/// A row that is read moves to the front if the ring has come on by so many eighths of its length since: late, so that
/// where nearly all rows fit they seldom move; and early enough that whoever is read now and then is before it goes.
const OLD_EIGHTHS: u64 = 6;
const PLACE_BITS: u32 = 48;
const PLACE_MAX: u64 = (1 << PLACE_BITS) - 1;

/// Buckets that are made together: 4 KiB of them.
const PAGE_BUCKETS: usize = 64;
/// Words by which the ring grows in its first lap.
const GROWTH: usize = (64 << 10) / WORD;

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Bucket([u64; WAYS]);

type Page = [Bucket; PAGE_BUCKETS];

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RowHeader {
    lsn: U64,
    expiry_ms: U64,
    key_len: U16,
    value_len: U16,
}

const HEADER: usize = size_of::<RowHeader>();

/// See the top of this file.
pub struct RowCache {
    /// Buckets by page; one of which no bucket was ever used is not there.
    pages: Box<[Option<Box<Page>>]>,
    pages_made: usize,
    buckets: usize,
    /// As long as it was used so far, within its capacity.
    ring: Vec<u64>,
    words: usize,
    /// Where the next row goes.
    head: u64,
    /// Where the lap began in which `head` is.
    lap: u64,
    /// What is before this was cleared.
    floor: u64,
}

/// The bits of a hash that a slot has. Buckets are chosen by others.
fn tag(hash: u64) -> u64 {
    hash >> PLACE_BITS
}

impl RowCache {
    /// Takes up to `bytes`. Too few for some rows of any length: holds none.
    pub fn new(bytes: usize) -> RowCache {
        let bytes = if bytes < 8 * ROW_BYTES_MAX { 0 } else { bytes };
        let buckets = bytes / 8 / CACHE_LINE;
        let words = (bytes - buckets * CACHE_LINE) / WORD;
        let mut cache = RowCache {
            pages: (0..buckets.div_ceil(PAGE_BUCKETS)).map(|_| None).collect(),
            pages_made: 0,
            buckets,
            // Not touched by that, unlike zeros would be where the allocator has used memory.
            ring: Vec::with_capacity(words),
            words,
            head: 0,
            lap: 0,
            floor: 0,
        };
        cache.begin();
        cache
    }

    /// Counts places from the start. There is a lap before the first, so that no place is 0.
    fn begin(&mut self) {
        self.head = self.words();
        (self.lap, self.floor) = (self.head, self.head);
    }

    /// Whether places of another lap can be told.
    fn counts_on(&self) -> bool {
        self.head + 2 * self.words() <= PLACE_MAX
    }

    fn words(&self) -> u64 {
        self.words as u64
    }

    /// Whether it holds nothing.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head == self.floor
    }

    /// Bytes that it has taken so far, of those it may.
    pub fn bytes(&self) -> u64 {
        (self.ring.len() * WORD + self.pages_made * size_of::<Page>()) as u64
    }

    /// Drops all rows.
    pub fn clear(&mut self) {
        self.floor = self.head;
    }

    /// Page, and place in it.
    #[inline]
    fn place_of_bucket(&self, hash: u64) -> (usize, usize) {
        let number = (((hash & 0xffff_ffff) * self.buckets as u64) >> 32) as usize;
        (number / PAGE_BUCKETS, number % PAGE_BUCKETS)
    }

    #[inline]
    fn bucket(&self, hash: u64) -> Option<&Bucket> {
        if self.is_empty() {
            return None;
        }
        let (page, at) = self.place_of_bucket(hash);
        self.pages[page].as_deref().map(|page| &page[at])
    }

    /// The slots for this hash, made if need be.
    fn slots_mut(&mut self, hash: u64) -> &mut [u64; WAYS] {
        let (page, at) = self.place_of_bucket(hash);
        let made = &mut self.pages_made;
        let page = self.pages[page].get_or_insert_with(|| {
            *made += 1;
            Box::new([Bucket([0; WAYS]); PAGE_BUCKETS])
        });
        &mut page[at].0
    }

    #[inline]
    fn is_live(&self, place: u64) -> bool {
        place >= self.floor && place + self.words() >= self.head
    }

    /// Where in the ring a live place is.
    #[inline]
    fn offset(&self, place: u64) -> usize {
        let offset = if place >= self.lap { place - self.lap } else { place + self.words() - self.lap };
        offset as usize
    }

    /// The row at a live place.
    #[inline]
    fn row(&self, place: u64) -> (&[u8], Entry<'_>) {
        let bytes = self.ring[self.offset(place)..].as_bytes();
        let (header, rest) = RowHeader::ref_from_prefix(bytes).expect("a row is whole");
        let (key, rest) = rest.split_at(header.key_len.get().into());
        let value = &rest[..header.value_len.get().into()];
        let (lsn, expiry_ms) = (Lsn(header.lsn.get()), header.expiry_ms.get());
        (key, Entry { lsn, kind: OpKind::Put, expiry_ms, value })
    }

    /// Live places of rows whose hash may be this one, and the number of the slot.
    #[inline]
    fn places(&self, hash: u64) -> impl Iterator<Item = (usize, u64)> {
        let slots = self.bucket(hash).map_or(&[][..], |bucket| &bucket.0);
        let own = slots.iter().enumerate().filter(move |(_, slot)| **slot >> PLACE_BITS == tag(hash));
        own.map(|(way, slot)| (way, slot & PLACE_MAX)).filter(|(_, place)| self.is_live(*place))
    }

    /// Starts to fetch what every other access with this hash looks at first.
    #[inline]
    pub fn prefetch_slots(&self, hash: u64) {
        if let Some(bucket) = self.bucket(hash) {
            prefetch(bucket);
        }
    }

    /// Starts to fetch the row with this hash; `false` if there is none.
    #[inline]
    pub fn prefetch_row(&self, hash: u64) -> bool {
        let Some((_, place)) = self.places(hash).next() else { return false };
        let at = self.offset(place);
        let lines = (at..at + 3 * WAYS).step_by(WAYS);
        lines.filter_map(|word| self.ring.get(word)).for_each(prefetch);
        true
    }

    /// The row of `key`, a put.
    #[inline]
    pub fn get(&mut self, hash: u64, key: &[u8]) -> Option<Entry<'_>> {
        let (way, place) = self.places(hash).find(|(_, place)| self.row(*place).0 == key)?;
        let is_old = self.head - place > self.words() / 8 * OLD_EIGHTHS && self.counts_on();
        let place = if is_old { self.move_up(hash, way, place) } else { place };
        Some(self.row(place).1)
    }

    /// Moves a live row to the front.
    #[cold]
    fn move_up(&mut self, hash: u64, way: usize, place: u64) -> u64 {
        let (key, entry) = self.row(place);
        let words = words_of(key.len() + entry.value.len());
        let from = self.offset(place);
        let moved = self.advance(words as u64);
        let to = self.offset(moved);
        // It may overlap with where it was.
        self.ring.copy_within(from..from + words, to);
        self.slots_mut(hash)[way] = (tag(hash) << PLACE_BITS) | moved;
        moved
    }

    /// Takes so many words at the front; what is there is gone.
    fn advance(&mut self, words: u64) -> u64 {
        assert!(words <= self.words(), "a row is shorter than the ring");
        if self.head - self.lap + words > self.words() {
            self.head = self.lap + self.words();
        }
        if self.head - self.lap == self.words() {
            self.lap = self.head;
        }
        let place = self.head;
        self.head += words;
        let used = (self.head - self.lap) as usize;
        if used > self.ring.len() {
            self.ring.resize(used.next_multiple_of(GROWTH).min(self.words), 0);
        }
        place
    }

    /// Takes in a key's newest entry in tables, a put that is not in here. One that is too long is not.
    pub fn insert(&mut self, hash: u64, key: &[u8], entry: &Entry<'_>) {
        let len = key.len() + entry.value.len();
        if self.buckets == 0 || len > ROW_BYTES_MAX {
            return;
        }
        assert!(entry.kind == OpKind::Put, "rows are puts");
        debug_assert!(self.places(hash).all(|(_, place)| self.row(place).0 != key), "it is not in here");
        if !self.counts_on() {
            self.pages.iter_mut().flatten().for_each(|page| page.fill(Bucket([0; WAYS]))); // after 2 PiB
            self.begin();
        }
        let place = self.advance(words_of(len) as u64);
        let at = self.offset(place);
        let header = RowHeader {
            lsn: entry.lsn.0.into(),
            expiry_ms: entry.expiry_ms.into(),
            key_len: (key.len() as u16).into(),
            value_len: (entry.value.len() as u16).into(),
        };
        let row = &mut self.ring[at..].as_mut_bytes()[..HEADER + len];
        row[..HEADER].copy_from_slice(header.as_bytes());
        row[HEADER..HEADER + key.len()].copy_from_slice(key);
        row[HEADER + key.len()..].copy_from_slice(entry.value);
        // The oldest goes. Slots that are free, or whose row is gone, are older than any other.
        let oldest = self
            .slots_mut(hash)
            .iter_mut()
            .min_by_key(|slot| **slot & PLACE_MAX)
            .expect("a bucket has slots");
        *oldest = (tag(hash) << PLACE_BITS) | place;
    }

    /// Drops the row with this hash, if there is one, or any that only seems to have it.
    #[inline]
    pub fn remove(&mut self, hash: u64) {
        loop {
            let first = self.places(hash).next();
            let Some((way, _)) = first else { return };
            self.slots_mut(hash)[way] = 0;
        }
    }
}

/// Words of a row whose key and value are so many bytes.
fn words_of(len: usize) -> usize {
    (HEADER + len).div_ceil(WORD)
}

/// Rows to be removed, each some keys after its slots were fetched.
#[derive(Default)]
pub struct Removals {
    waiting: [Option<u64>; WAYS],
    next: usize,
}

impl Removals {
    /// Removes a row soon.
    #[inline]
    pub fn push(&mut self, rows: &mut RowCache, hash: u64) {
        rows.prefetch_slots(hash);
        if let Some(earlier) = self.waiting[self.next].replace(hash) {
            rows.remove(earlier);
        }
        self.next = (self.next + 1) % WAYS;
    }

    /// Removes what is left.
    pub fn finish(self, rows: &mut RowCache) {
        self.waiting.into_iter().flatten().for_each(|hash| rows.remove(hash));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn put(lsn: u64, value: &[u8]) -> Entry<'_> {
        Entry { lsn: Lsn(lsn), kind: OpKind::Put, expiry_ms: lsn % 3, value }
    }

    /// Beside a map: what is found is right, whatever was inserted, removed, cleared, moved up and overwritten. Hashes
    /// are from a few on purpose, so that keys share them.
    #[test]
    fn what_is_found_is_what_was_put_last() {
        for seed in 0..20 {
            println!("seed {seed}");
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut cache = RowCache::new(8 * ROW_BYTES_MAX + rng.usize(..64 << 10));
            let hashes: Vec<u64> = (0..300).map(|_| rng.u64(..)).collect();
            let mut last: BTreeMap<u32, (u64, Vec<u8>)> = BTreeMap::new();
            let (mut hits, mut vain) = (0, 0);
            for step in 1..40_000 {
                let number = rng.u32(..600);
                let key = format!("key {number}").into_bytes();
                let hash = hashes[number as usize % hashes.len()];
                match rng.u8(..100) {
                    0..60 => {
                        assert!(!cache.prefetch_row(hash) || !cache.is_empty());
                        let Some((lsn, value)) = last.get(&number) else {
                            assert!(cache.get(hash, &key).is_none(), "key {number} was removed");
                            continue;
                        };
                        match cache.get(hash, &key) {
                            Some(found) => {
                                assert_eq!((found.lsn, found.value), (Lsn(*lsn), value.as_slice()));
                                assert_eq!(found.expiry_ms, lsn % 3);
                                hits += 1;
                            }
                            None => vain += 1,
                        }
                    }
                    60..90 if cache.get(hash, &key).is_none() => {
                        let value = vec![step as u8; rng.usize(..ROW_BYTES_MAX / 4)];
                        cache.insert(hash, &key, &put(step, &value));
                        last.insert(number, (step, value));
                    }
                    60..99 => {
                        let mut removals = Removals::default();
                        removals.push(&mut cache, hash);
                        removals.finish(&mut cache);
                        last.retain(|other, _| hashes[*other as usize % hashes.len()] != hash);
                    }
                    _ if rng.u8(..20) == 0 => {
                        cache.clear();
                        assert!(cache.is_empty());
                        last.clear();
                    }
                    _ => {}
                }
            }
            assert!(hits > 500 && vain > 50, "seed {seed}: {hits} found, {vain} overwritten");
        }
    }

    #[test]
    fn where_all_rows_fit_all_stay_and_hot_ones_outlive_many_that_pass() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut cache = RowCache::new(1 << 20);
        let hashes: Vec<u64> = (0..100_000).map(|_| rng.u64(..)).collect();
        let insert = |cache: &mut RowCache, at: usize| {
            cache.insert(hashes[at], &at.to_be_bytes(), &put(at as u64, &[7; 100]));
        };
        assert_eq!(cache.bytes(), 0);
        let fit = (1 << 20) / 8 * 7 / 136 * 9 / 10;
        (0..fit).for_each(|at| insert(&mut cache, at));
        assert!(cache.bytes() <= 1 << 20 && cache.bytes() > 1 << 19, "{}", cache.bytes());
        let found = (0..fit).filter(|at| cache.get(hashes[*at], &at.to_be_bytes()).is_some()).count();
        assert!(found * 100 >= fit * 98, "{found} of {fit}: buckets are seldom too small");
        // Ten times as many pass, while a tenth of those are read now and then.
        let hot = fit / 10;
        for at in fit..fit * 11 {
            insert(&mut cache, at);
            for _ in 0..3 {
                let wanted = rng.usize(..hot);
                cache.get(hashes[wanted], &wanted.to_be_bytes());
            }
        }
        let stayed = (0..hot).filter(|at| cache.get(hashes[*at], &at.to_be_bytes()).is_some()).count();
        assert!(stayed * 10 >= hot * 8, "{stayed} of {hot}");
    }

    #[test]
    fn what_is_too_long_or_has_no_room_is_left_out() {
        let mut cache = RowCache::new(1 << 20);
        cache.insert(1, b"k", &put(1, &[0; ROW_BYTES_MAX]));
        assert!(cache.is_empty());
        cache.insert(1, b"k", &put(1, &[0; ROW_BYTES_MAX - 1]));
        assert!(cache.get(1, b"k").is_some());
        let mut none = RowCache::new(1000);
        none.insert(1, b"k", &put(1, b"v"));
        none.prefetch_slots(1);
        none.remove(1);
        none.clear();
        assert!(none.get(1, b"k").is_none() && none.is_empty() && !none.prefetch_row(1));
        assert_eq!(none.bytes(), 0);
    }
}
