//! Memory in chunks that is filled by appending, addressed by 8-byte words in 32 bits: up to 32 GiB.

use std::cell::RefCell;
use std::rc::Rc;

/// Bytes of an ordinary chunk: small enough that freeing one is no stall.
const CHUNK_BYTES: usize = 1 << 20;
/// A larger piece gets a chunk of its own, so at most this much is left unused at a chunk's end.
const PIECE_BYTES_MAX: usize = CHUNK_BYTES / 4;
const WORD: usize = 8;
const CHUNK_WORDS: u32 = (CHUNK_BYTES / WORD) as u32;

/// Where a piece starts, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(pub u32);

impl Place {
    /// No piece. The first word is never handed out.
    pub const NONE: Place = Place(0);
}

/// Ordinary chunks of arenas that were freed, for those that are filled next. What is given back to the system must be
/// cleared by it again page by page, on the shard's time: to keep it saves 1.5 % of an overwrite.
#[derive(Clone, Default)]
pub struct SpareChunks {
    chunks: Rc<RefCell<Vec<Vec<u8>>>>,
    most: usize,
}

impl SpareChunks {
    /// Keeps at most `bytes`.
    pub fn up_to(bytes: usize) -> SpareChunks {
        SpareChunks { chunks: Rc::default(), most: bytes / CHUNK_BYTES }
    }

    fn take(&self) -> Option<Vec<u8>> {
        self.chunks.borrow_mut().pop()
    }

    /// Keeps an ordinary chunk if there is room for it.
    fn keep(&self, mut chunk: Vec<u8>) {
        let mut chunks = self.chunks.borrow_mut();
        if chunk.capacity() == CHUNK_BYTES && chunks.len() < self.most {
            chunk.clear();
            chunks.push(chunk);
        }
    }
}

/// Memory that is only freed as a whole. Chunks are filled by appending, so nothing is zeroed first.
#[derive(Default)]
pub struct Arena {
    spare: SpareChunks,
    /// Chunk `i` covers words from `i · CHUNK_WORDS`. A large piece's chunk is followed by empty ones.
    chunks: Vec<Vec<u8>>,
    /// The ordinary chunk that is being filled.
    current: usize,
    bytes: usize,
}

impl Arena {
    /// An empty one that takes its chunks from `spare` first, and leaves them there.
    pub fn new(spare: SpareChunks) -> Arena {
        Arena { spare, ..Arena::default() }
    }

    /// What it takes chunks from.
    pub fn spare(&self) -> &SpareChunks {
        &self.spare
    }

    /// Appends the concatenation of `parts` as one piece.
    ///
    /// # Panics
    /// Beyond 32 GiB; the memory budget is far below.
    #[inline]
    pub fn push(&mut self, parts: &[&[u8]]) -> Place {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let number = self.chunk_for(len.next_multiple_of(WORD));
        let chunk = &mut self.chunks[number];
        let at = chunk.len();
        for part in parts {
            chunk.extend_from_slice(part);
        }
        chunk.resize(chunk.len().next_multiple_of(WORD), 0);
        let word = number as u64 * u64::from(CHUNK_WORDS) + (at / WORD) as u64;
        Place(u32::try_from(word).expect("a memtable is far smaller than 32 GiB"))
    }

    /// Takes in a large piece that was written elsewhere and begins at `start` of `chunk`, as a chunk of its own.
    ///
    /// # Panics
    /// If that is not a whole word, or it is not large.
    pub fn adopt(&mut self, chunk: Vec<u8>, start: usize) -> Place {
        assert!(
            start.is_multiple_of(WORD) && start < CHUNK_BYTES,
            "a piece begins with a word of its first chunk"
        );
        assert!(chunk.len() - start > PIECE_BYTES_MAX, "a large piece");
        self.begin();
        let own = self.chunks.len();
        self.bytes += chunk.capacity();
        let len = chunk.len();
        self.chunks.push(chunk);
        self.chunks.resize_with(own + len.div_ceil(CHUNK_BYTES), Vec::new);
        let word = own as u64 * u64::from(CHUNK_WORDS) + (start / WORD) as u64;
        Place(u32::try_from(word).expect("a memtable is far smaller than 32 GiB"))
    }

    /// The number of a chunk with room for `len` bytes.
    #[inline]
    fn chunk_for(&mut self, len: usize) -> usize {
        match self.chunks.get(self.current) {
            Some(chunk) if len <= PIECE_BYTES_MAX && chunk.len() + len <= CHUNK_BYTES => self.current,
            _ => self.add_chunk(len),
        }
    }

    #[cold]
    fn add_chunk(&mut self, len: usize) -> usize {
        self.begin();
        if len > PIECE_BYTES_MAX {
            let own = self.allocate(len);
            self.chunks.resize_with(own + len.div_ceil(CHUNK_BYTES), Vec::new);
            return own;
        }
        if self.chunks[self.current].len() + len > CHUNK_BYTES {
            self.current = self.allocate(CHUNK_BYTES);
        }
        self.current
    }

    /// The first chunk is an ordinary one with its first word taken: word 0 means "none".
    fn begin(&mut self) {
        if self.chunks.is_empty() {
            self.allocate(CHUNK_BYTES);
            self.chunks[0].resize(WORD, 0);
        }
    }

    fn allocate(&mut self, len: usize) -> usize {
        let spare = if len == CHUNK_BYTES { self.spare.take() } else { None };
        self.chunks.push(spare.unwrap_or_else(|| Vec::with_capacity(len)));
        self.bytes += len;
        self.chunks.len() - 1
    }

    /// Everything from `place` to the end of its chunk.
    #[inline]
    pub fn from(&self, place: Place) -> &[u8] {
        &self.chunks[(place.0 / CHUNK_WORDS) as usize][Self::offset(place)..]
    }

    /// The same, to change what is there. Pieces have no lengths here: whoever does so knows the one at `place`.
    #[inline]
    pub fn place_mut(&mut self, place: Place) -> &mut [u8] {
        &mut self.chunks[(place.0 / CHUNK_WORDS) as usize][Self::offset(place)..]
    }

    /// Replaces the first four bytes at `place`.
    #[inline]
    pub fn set_u32(&mut self, place: Place, value: u32) {
        let at = Self::offset(place);
        self.chunks[(place.0 / CHUNK_WORDS) as usize][at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn offset(place: Place) -> usize {
        (place.0 % CHUNK_WORDS) as usize * WORD
    }

    /// Bytes allocated.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frees one chunk; `false` if none is left.
    pub fn drop_step(&mut self) -> bool {
        if let Some(chunk) = self.chunks.pop() {
            self.bytes -= chunk.capacity();
            self.spare.keep(chunk);
        }
        !self.chunks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_every_size_come_back_and_none_is_at_word_0() {
        let sizes =
            [0, 1, 8, 200, PIECE_BYTES_MAX, PIECE_BYTES_MAX + 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 << 20];
        // Each size comes first once: the first piece decides what the first chunk is.
        for first in 0..sizes.len() {
            let mut arena = Arena::default();
            let mut places = Vec::new();
            for round in 0..2 * sizes.len() {
                let byte = round as u8 + 1;
                let piece = vec![byte; sizes[(first + round) % sizes.len()]];
                let place = arena.push(&[&piece[..piece.len() / 2], &piece[piece.len() / 2..]]);
                assert_ne!(place, Place::NONE);
                places.push((place, piece));
            }
            for (place, piece) in &places {
                assert_eq!(&arena.from(*place)[..piece.len()], &piece[..]);
            }
            let used: usize = places.iter().map(|(_, piece)| piece.len()).sum();
            assert!(arena.bytes() >= used);
            assert_eq!(arena.bytes(), arena.chunks.iter().map(Vec::capacity).sum::<usize>());
            while arena.drop_step() {}
            assert_eq!(arena.bytes(), 0);
            assert!(!arena.drop_step());
        }
    }

    #[test]
    fn chunks_are_used_again_and_no_more_are_kept_than_may_be() {
        let spare = SpareChunks::up_to(3 * CHUNK_BYTES + 1);
        let kept = || spare.chunks.borrow().len();
        let mut addresses = Vec::new();
        for (round, after) in [(1u8, 3), (2, 3)] {
            let mut arena = Arena::new(spare.clone());
            let pieces: Vec<Place> = (0..5).map(|n| arena.push(&[&vec![round + n; 200_000]])).collect();
            let large = arena.push(&[&vec![round; PIECE_BYTES_MAX + 1]]);
            let first = arena.chunks[0].as_ptr();
            for (n, place) in (0..).zip(pieces) {
                assert!(arena.from(place)[..200_000].iter().all(|byte| *byte == round + n), "round {round}");
            }
            assert!(arena.from(large)[..=PIECE_BYTES_MAX].iter().all(|byte| *byte == round));
            addresses.push(first);
            let mut other = Arena::new(spare.clone());
            (0..15).for_each(|_| assert_ne!(other.push(&[&[7; 200_000]]), Place::NONE));
            assert_eq!(kept(), 0, "all are in use");
            while arena.drop_step() {}
            assert_eq!(kept(), 1, "a large piece's chunk is not kept");
            while other.drop_step() {}
            assert_eq!(kept(), after);
        }
        let all: Vec<*const u8> = spare.chunks.borrow().iter().map(|chunk| chunk.as_ptr()).collect();
        assert!(spare.chunks.borrow().iter().all(Vec::is_empty) && all.contains(&addresses[1]), "{all:?}");
    }
}
