//! The keys of a run: of all shapes, some of them in one slot, and which of them come next.

use std::rc::Rc;

use atlaskv::slot::Slot;

/// A key, as cheap to keep as a number.
pub type Key = Rc<[u8]>;

/// Which keys the operations of a while are about.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    Uniform,
    /// Mostly some keys that are neighbours.
    Hot(usize),
    /// One after the other.
    Ascending(usize),
    /// What is at the head is written, what is at the tail is read and deleted.
    Queue(usize),
}

/// All keys of a run, ascending.
pub struct Pool {
    pub keys: Vec<Key>,
    /// Those with a hash tag, by slot.
    groups: Vec<Vec<Key>>,
    pattern: Pattern,
    left: u32,
}

/// Longest key but for those that are as long as a key can be.
const LONG: usize = 3000;

fn random_key(rng: &mut fastrand::Rng, count: usize, longest: usize) -> Vec<u8> {
    let number = rng.usize(..count * 2);
    match rng.u8(..100) {
        0..40 => format!("k-{number:05}").into_bytes(),
        40..60 => format!("{{t{}}}:{number:04}", rng.u8(..6)).into_bytes(),
        60..70 => format!("user:{}:{{{}}}:mail", number % 17, number % 40).into_bytes(),
        70..80 => vec![0xFF; rng.usize(1..12)],
        80..84 => [vec![0xFF; rng.usize(1..4)], vec![rng.u8(..); rng.usize(1..3)]].concat(),
        84..90 => vec![rng.u8(..)],
        90..94 => vec![0; rng.usize(1..5)],
        94..98 => (0..rng.usize(1..20)).map(|_| rng.u8(..)).collect(),
        98 => [format!("long-{number}-").into_bytes(), vec![b'x'; rng.usize(..LONG)]].concat(),
        _ if longest > LONG => [vec![b'm'; longest - 2], vec![rng.u8(..), rng.u8(..)]].concat(),
        _ => b"{}".to_vec(),
    }
}

impl Pool {
    /// About `count` keys, none longer than `longest`.
    pub fn new(rng: &mut fastrand::Rng, count: usize, longest: usize) -> Pool {
        let mut keys: Vec<Key> = (0..count).map(|_| random_key(rng, count, longest).into()).collect();
        keys.sort();
        keys.dedup();
        let mut by_slot: std::collections::BTreeMap<u16, Vec<Key>> = std::collections::BTreeMap::new();
        for key in &keys {
            by_slot.entry(Slot::of_key(key).number()).or_default().push(key.clone());
        }
        let groups = by_slot.into_values().filter(|keys| keys.len() > 1).collect();
        Pool { keys, groups, pattern: Pattern::Uniform, left: 0 }
    }

    /// Most bytes of a key.
    pub fn longest(&self) -> usize {
        self.keys.iter().map(|key| key.len()).max().unwrap_or(0)
    }

    /// Chooses a pattern in which so many keys were written already.
    fn choose(&mut self, rng: &mut fastrand::Rng, written: usize) {
        let first = rng.usize(..self.keys.len());
        self.pattern = match rng.u8(..6) {
            0 | 1 => Pattern::Uniform,
            2 | 3 => Pattern::Hot(first),
            4 => Pattern::Ascending(first + written),
            _ => Pattern::Queue(first + written),
        };
    }

    /// The same, and it stays.
    pub fn settle_on(&mut self, rng: &mut fastrand::Rng, written: usize) {
        self.left = u32::MAX;
        self.choose(rng, written);
    }

    /// The key of the next write, or of the next operation that reads or deletes.
    pub fn pick(&mut self, rng: &mut fastrand::Rng, is_put: bool) -> Key {
        if self.left == 0 {
            self.left = rng.u32(100..4000);
            self.choose(rng, 0);
        }
        self.left -= 1;
        let count = self.keys.len();
        let at = match &mut self.pattern {
            Pattern::Hot(at) if rng.u8(..8) > 0 => *at + rng.usize(..8),
            Pattern::Uniform | Pattern::Hot(_) => rng.usize(..count),
            Pattern::Ascending(at) if is_put => {
                *at += 1;
                *at
            }
            Pattern::Ascending(at) => *at + count - rng.usize(..count.min(50)),
            Pattern::Queue(head) if is_put => {
                *head += 1;
                *head
            }
            // A few rounds on, since there may be one key only.
            Pattern::Queue(head) => *head + 4 * count - (count / 4).min(30) - rng.usize(..4),
        };
        self.keys[at % count].clone()
    }

    /// Some keys of one slot, perhaps one of them twice.
    pub fn pick_group(&mut self, rng: &mut fastrand::Rng) -> Vec<Key> {
        if self.groups.is_empty() || rng.u8(..8) == 0 {
            let key = self.pick(rng, true);
            return vec![key; rng.usize(1..3)];
        }
        let group = &self.groups[rng.usize(..self.groups.len())];
        let few = if rng.u8(..10) == 0 { 20 } else { 5 };
        (0..rng.usize(1..=few)).map(|_| group[rng.usize(..group.len())].clone()).collect()
    }

    /// A bound of a scan: a key, a prefix of one, or something near.
    pub fn bound(&self, rng: &mut fastrand::Rng) -> Vec<u8> {
        let mut key = self.keys[rng.usize(..self.keys.len())].to_vec();
        match rng.u8(..4) {
            0 => key.truncate(rng.usize(..=key.len())),
            1 if key.len() < LONG => key.push(rng.u8(..)),
            _ => {}
        }
        key
    }
}
