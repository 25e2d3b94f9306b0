//! What a simulated file holds: pages that copies of the file share until one of them is written to, since most crashes
//! leave most pages as they are, and most pages of a log that begins are zeros.

use std::rc::Rc;

use crate::base::{PAGE_SIZE, is_blank};

/// A page. `None`: zeros.
pub type Page = Option<Rc<[u8; PAGE_SIZE]>>;

/// The bytes of a file.
#[derive(Clone, Default)]
pub struct Contents {
    /// Zeros follow in the last one where the file ends inside it.
    pages: Vec<Page>,
    len: usize,
}

/// The pages of `bytes`, the last of which may be filled up.
pub fn pages_of(bytes: &[u8]) -> Vec<Page> {
    let page = |chunk: &[u8]| {
        (!is_blank(chunk)).then(|| {
            let mut page = [0; PAGE_SIZE];
            page[..chunk.len()].copy_from_slice(chunk);
            Rc::new(page)
        })
    };
    bytes.chunks(PAGE_SIZE).map(page).collect()
}

/// The bytes of a page.
pub fn bytes_of(page: &Page) -> &[u8; PAGE_SIZE] {
    page.as_deref().unwrap_or(&[0; PAGE_SIZE])
}

impl Contents {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.pages.len() * PAGE_SIZE);
        self.pages.iter().for_each(|page| bytes.extend_from_slice(bytes_of(page)));
        bytes.truncate(self.len);
        bytes
    }

    /// Whole pages from `offset` on; `None` where the file ends before.
    pub fn read(&self, offset: usize, len: usize) -> Option<Vec<u8>> {
        let end = offset.checked_add(len).filter(|end| *end <= self.len)?;
        let mut bytes = Vec::with_capacity(len);
        for page in &self.pages[offset / PAGE_SIZE..end / PAGE_SIZE] {
            bytes.extend_from_slice(bytes_of(page));
        }
        Some(bytes)
    }

    /// Puts `pages` from `offset` on.
    pub fn put(&mut self, offset: usize, pages: &[Page]) {
        let first = offset / PAGE_SIZE;
        self.grow(offset + pages.len() * PAGE_SIZE);
        self.pages[first..first + pages.len()].clone_from_slice(pages);
    }

    /// Puts a part of a page.
    pub fn put_part(&mut self, offset: usize, bytes: &[u8]) {
        self.grow(offset + bytes.len());
        let page = self.pages[offset / PAGE_SIZE].get_or_insert_with(|| Rc::new([0; PAGE_SIZE]));
        Rc::make_mut(page)[offset % PAGE_SIZE..][..bytes.len()].copy_from_slice(bytes);
    }

    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        self.len = len;
        self.pages.truncate(len.div_ceil(PAGE_SIZE));
        if let (rest @ 1.., Some(Some(page))) = (len % PAGE_SIZE, self.pages.last_mut()) {
            Rc::make_mut(page)[rest..].fill(0);
        }
    }

    /// Files grow by whole pages.
    fn grow(&mut self, end: usize) {
        if self.len < end {
            self.len = end.next_multiple_of(PAGE_SIZE);
            self.pages.resize(self.len / PAGE_SIZE, None);
        }
    }
}

impl From<Vec<u8>> for Contents {
    fn from(bytes: Vec<u8>) -> Contents {
        Contents { pages: pages_of(&bytes), len: bytes.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a plain vector does.
    #[test]
    fn pages_that_are_shared_are_those_of_each() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let mut pairs = vec![(Contents::default(), Vec::<u8>::new())];
            for _ in 0..60 {
                let at = rng.usize(..pairs.len());
                let (contents, plain) = &mut pairs[at];
                let offset = rng.usize(..6) * PAGE_SIZE;
                let byte = rng.u8(..3);
                match rng.u8(..5) {
                    0 | 1 => {
                        let bytes = vec![byte; rng.usize(1..4) * PAGE_SIZE];
                        contents.put(offset, &pages_of(&bytes));
                        overlay(plain, offset, &bytes);
                    }
                    2 => {
                        let offset = offset + rng.usize(..8) * 512;
                        contents.put_part(offset, &[byte; 512]);
                        overlay(plain, offset, &[byte; 512]);
                    }
                    3 => {
                        let len = rng.usize(..8 * PAGE_SIZE);
                        contents.truncate(len);
                        plain.truncate(len);
                    }
                    _ => {
                        let copy = (contents.clone(), plain.clone());
                        pairs.push(copy);
                    }
                }
            }
            for (contents, plain) in &pairs {
                assert_eq!((contents.len(), contents.to_vec()), (plain.len(), plain.clone()));
                assert_eq!(Contents::from(plain.clone()).to_vec(), *plain);
                let (offset, len) = (rng.usize(..8) * PAGE_SIZE, rng.usize(1..4) * PAGE_SIZE);
                assert_eq!(contents.read(offset, len).as_deref(), plain.get(offset..offset + len));
            }
        }
    }

    fn overlay(target: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if target.len() < end {
            target.resize(end.next_multiple_of(PAGE_SIZE), 0);
        }
        target[offset..end].copy_from_slice(bytes);
    }
}
