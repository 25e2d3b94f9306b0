//! Append-only memory in chunks, addressed by 8-byte words in 32 bits: up to 32 GiB.

/// Bytes of an ordinary chunk. A larger piece gets chunks' worth of address space of its own.
const CHUNK_BYTES: usize = 1 << 20;
const WORD: usize = 8;
const CHUNK_WORDS: u32 = (CHUNK_BYTES / WORD) as u32;

/// Where a piece starts, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(pub u32);

impl Place {
    /// No piece. The first word is never handed out.
    pub const NONE: Place = Place(0);
}

/// Memory that is only freed as a whole.
#[derive(Default)]
pub struct Arena {
    /// Chunk `i` covers words from `i · CHUNK_WORDS`. A large piece's chunk is followed by empty ones.
    chunks: Vec<Box<[u8]>>,
    used: usize,
    /// The ordinary chunk that is being filled.
    current: Option<usize>,
    bytes: usize,
}

impl Arena {
    /// Space for `len` bytes.
    ///
    /// # Panics
    /// Beyond 32 GiB; the memory budget is far below.
    pub fn alloc(&mut self, len: usize) -> Place {
        let len = len.next_multiple_of(WORD);
        if len > CHUNK_BYTES / 4 {
            let first = self.push(len);
            for _ in 1..len.div_ceil(CHUNK_BYTES) {
                self.chunks.push(Box::default());
            }
            return Self::place(first, 0);
        }
        let current = match self.current.filter(|_| self.used + len <= CHUNK_BYTES) {
            Some(current) => current,
            None => {
                let fresh = self.push(CHUNK_BYTES);
                // Word 0 means "none".
                self.used = if fresh == 0 { WORD } else { 0 };
                self.current = Some(fresh);
                fresh
            }
        };
        let place = Self::place(current, self.used);
        self.used += len;
        place
    }

    fn push(&mut self, len: usize) -> usize {
        if self.chunks.is_empty() && len != CHUNK_BYTES {
            // Word 0 means "none": a large first piece must not start there.
            self.chunks.push(Box::default());
        }
        self.chunks.push(vec![0; len].into_boxed_slice());
        self.bytes += len;
        self.chunks.len() - 1
    }

    fn place(chunk: usize, at: usize) -> Place {
        let word = chunk as u64 * u64::from(CHUNK_WORDS) + (at / WORD) as u64;
        Place(u32::try_from(word).expect("a memtable is far smaller than 32 GiB"))
    }

    /// `len` bytes at `place`, to fill.
    pub fn get_mut(&mut self, place: Place, len: usize) -> &mut [u8] {
        let at = (place.0 % CHUNK_WORDS) as usize * WORD;
        &mut self.chunks[(place.0 / CHUNK_WORDS) as usize][at..at + len]
    }

    /// `len` bytes at `place`.
    #[inline]
    pub fn get(&self, place: Place, len: usize) -> &[u8] {
        &self.from(place)[..len]
    }

    /// Everything from `place` to the end of its chunk.
    #[inline]
    pub fn from(&self, place: Place) -> &[u8] {
        &self.chunks[(place.0 / CHUNK_WORDS) as usize][(place.0 % CHUNK_WORDS) as usize * WORD..]
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frees one chunk; `false` if none is left.
    pub fn drop_step(&mut self) -> bool {
        self.chunks.pop().is_some()
    }
}
