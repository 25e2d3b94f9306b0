//! LCS: the longest common subsequence of two values, by the usual table of the lengths of all their
//! beginnings.
//!
//! Redis keeps that table whole, four bytes a cell. Only two of its lines are needed to fill it, and to walk
//! it back one bit of each cell: whether one byte less of the first string leaves more than one byte less of
//! the second.

use super::{Outcome, Run};
use crate::protocol::resp;
use crate::redis::command::{Lcs, LcsAnswer};
use crate::redis::fault::Fault;
use crate::redis::keyspace::Keyspace;

/// Cells of the largest table that is filled. Redis' own limit: 512 MiB, its longest string, of four bytes
/// each. Ours takes 16 MiB then; filling it takes some tenths of a second, during which the shard does
/// nothing else.
pub const CELLS_MAX: u64 = (512 << 20) / 4;

/// A piece that both strings have: where it begins in each, and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    a: usize,
    b: usize,
    len: usize,
}

impl<K: Keyspace> Run<'_, K> {
    pub(super) fn lcs(&mut self, lcs: &Lcs<'_>) -> Outcome<(), K> {
        let [a, b] = lcs.keys;
        let sizes = [self.peek(a)?, self.peek(b)?].map(|meta| meta.map_or(0, |meta| meta.len as u64));
        if (sizes[0] + 1).saturating_mul(sizes[1] + 1) > CELLS_MAX {
            return Err(Fault::LcsMemory.into());
        }
        let (a, _) = self.take(a, 0)?;
        let (b, _) = self.take(b, 0)?;
        if lcs.answer == LcsAnswer::Len {
            let len = fill(&a, &b, |_, _| {});
            return self.len(len);
        }
        let table = Table::of(&a, &b);
        match lcs.answer {
            LcsAnswer::Matches { len_min, with_len } => self.reply_matches(&table, len_min, with_len),
            LcsAnswer::Text | LcsAnswer::Len => {
                resp::bulk(self.out, &table.text());
                Ok(())
            }
        }
    }

    fn reply_matches(&mut self, table: &Table<'_>, len_min: u64, with_len: bool) -> Outcome<(), K> {
        let mut pieces = table.pieces();
        pieces.retain(|piece| piece.len as u64 >= len_min);
        resp::map(self.out, 2, self.proto);
        resp::bulk(self.out, b"matches");
        resp::array(self.out, pieces.len());
        for piece in pieces {
            resp::array(self.out, if with_len { 3 } else { 2 });
            for start in [piece.a, piece.b] {
                resp::array(self.out, 2);
                self.len(start)?;
                self.len(start + piece.len - 1)?;
            }
            if with_len {
                self.len(piece.len)?;
            }
        }
        resp::bulk(self.out, b"len");
        self.len(table.len)
    }
}

/// Fills the table line by line and returns its last cell. Of each cell in which the bytes differ, `step` is
/// told its number, and whether less of `a` leaves more than less of `b`.
fn fill(a: &[u8], b: &[u8], mut step: impl FnMut(usize, bool)) -> usize {
    let mut above = vec![0u32; b.len() + 1];
    for (i, a_byte) in a.iter().enumerate() {
        let (mut left, mut above_left) = (0, 0);
        for (j, b_byte) in b.iter().enumerate() {
            let less_of_a = above[j + 1];
            let here = if a_byte == b_byte {
                above_left + 1
            } else {
                step(i * b.len() + j, less_of_a > left);
                less_of_a.max(left)
            };
            (above_left, left) = (less_of_a, here);
            above[j + 1] = here;
        }
    }
    above[b.len()] as usize
}

/// The two strings, and the way back through their table.
struct Table<'v> {
    a: &'v [u8],
    b: &'v [u8],
    /// Of each cell, whether the way goes to less of `a`.
    steps: Vec<u64>,
    len: usize,
}

impl<'v> Table<'v> {
    fn of(a: &'v [u8], b: &'v [u8]) -> Table<'v> {
        let mut steps = vec![0u64; (a.len() * b.len()).div_ceil(64)];
        let len = fill(a, b, |cell, is_less_of_a| steps[cell / 64] |= u64::from(is_less_of_a) << (cell % 64));
        Table { a, b, steps, len }
    }

    /// The bytes of the subsequence, from its last, with their places in both strings.
    fn walk(&self, mut visit: impl FnMut(usize, usize)) {
        let (mut i, mut j) = (self.a.len(), self.b.len());
        while i > 0 && j > 0 {
            if self.a[i - 1] == self.b[j - 1] {
                (i, j) = (i - 1, j - 1);
                visit(i, j);
                continue;
            }
            let cell = (i - 1) * self.b.len() + (j - 1);
            if self.steps[cell / 64] >> (cell % 64) & 1 == 1 {
                i -= 1;
            } else {
                j -= 1;
            }
        }
    }

    fn text(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.len);
        self.walk(|i, _| text.push(self.a[i]));
        text.reverse();
        assert_eq!(text.len(), self.len, "the way back meets every byte that was counted");
        text
    }

    /// What of the subsequence stands together in both strings, from the end.
    fn pieces(&self) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        self.walk(|a, b| match pieces.last_mut() {
            Some(piece) if piece.a == a + 1 && piece.b == b + 1 => {
                *piece = Piece { a, b, len: piece.len + 1 }
            }
            _ => pieces.push(Piece { a, b, len: 1 }),
        });
        pieces
    }
}
