//! Key numbers and the bytes that stand for them.

use crate::zipf::{Scramble, Zipfian};

/// How key numbers are drawn. Each client has one of its own, since it may grow.
#[derive(Clone, Copy, Debug)]
pub enum Picker {
    Uniform,
    /// Ranks scrambled over the `keys` that were there first; those that came later are the rarest, in their
    /// order.
    Zipfian {
        keys: u64,
        ranks: Zipfian,
        scramble: Scramble,
    },
    /// The newest most often.
    Latest {
        ranks: Zipfian,
    },
}

impl Picker {
    pub fn uniform() -> Picker {
        Picker::Uniform
    }

    pub fn zipfian(keys: u64, theta: f64) -> Picker {
        Picker::Zipfian { keys, ranks: Zipfian::new(keys, theta), scramble: Scramble::new(keys) }
    }

    pub fn latest(keys: u64, theta: f64) -> Picker {
        Picker::Latest { ranks: Zipfian::new(keys, theta) }
    }

    /// A number below `known`, of which there are never fewer than before.
    #[inline]
    pub fn pick(&mut self, known: u64, rng: &mut fastrand::Rng) -> u64 {
        match self {
            Picker::Uniform => rng.u64(..known),
            Picker::Zipfian { keys, ranks, scramble } => {
                follow(ranks, known);
                let rank = ranks.rank(rng.f64());
                if rank < *keys { scramble.place(rank) } else { rank }
            }
            Picker::Latest { ranks } => {
                follow(ranks, known);
                known - 1 - ranks.rank(rng.f64())
            }
        }
    }
}

/// Lets ranks grow with the number of keys, but by a thousandth at least: what that leaves out are the
/// rarest, and to grow takes as long as some draws.
#[inline]
fn follow(ranks: &mut Zipfian, known: u64) {
    if known > ranks.items() + ranks.items() / 1024 {
        ranks.grow(known);
    }
}

/// Digits that shuffled numbers have, if the key has room. With more, their places would not be found by
/// arithmetic of 64 bits for tens of millions of keys.
const SHUFFLED_DIGITS: usize = 12;

/// Keys of one length: a prefix, then the key's number in decimal with leading zeros. Counters, which
/// hold numbers rather than self-describing values, have an `n` in place of the first zero. Absent keys, which
/// nothing ever sets, have a letter in place of the last digit: so they lie between the others, and it takes
/// more than the first and last key of a table to know that it has none of them.
///
/// With hash tags all digits but the last few stand in braces: `key:{000004}200` has number 4200.
///
/// The number in a key may be another than the key's, so that new keys come between the old ones and not
/// behind them: see [`KeySpace::shuffle`].
#[derive(Clone, Debug)]
pub struct KeySpace {
    prefix: Vec<u8>,
    key_size: usize,
    /// Digits after the hash tag.
    untagged_digits: Option<usize>,
    /// Places that numbers, of keys or of tags, are spread over.
    places: Option<Scramble>,
}

/// Which keys a number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Values,
    Counters,
    Absent,
}

impl KeySpace {
    /// Fails, with the least key size that would do, if the numbers below `keys` do not fit.
    /// `tag_keys`, a power of ten, neighbours share a hash tag.
    pub fn new(
        prefix: &str,
        key_size: usize,
        keys: u64,
        counters: bool,
        tag_keys: Option<u64>,
    ) -> Result<KeySpace, usize> {
        let untagged_digits = tag_keys.map(|count| digits(count) - 1);
        let mut digits = digits(keys.saturating_sub(1)) + usize::from(counters);
        if let Some(untagged) = untagged_digits {
            // An empty tag would be none: the two braces hold a digit at least.
            digits = digits.max(untagged + 1 + usize::from(counters)) + 2;
        }
        let needed = prefix.len() + digits;
        if key_size < needed {
            return Err(needed);
        }
        Ok(KeySpace { prefix: prefix.as_bytes().to_vec(), key_size, untagged_digits, places: None })
    }

    /// Spreads numbers over all that keys of this size have, or a million millions of them: the same number
    /// leads to the same key however many there are. Neighbours that share a hash tag stay neighbours. There
    /// are no counters then. `keys` are those that [`KeySpace::new`] was told.
    pub fn shuffle(mut self, keys: u64) -> KeySpace {
        let braces = self.untagged_digits.map_or(0, |untagged| untagged + 2);
        let room = self.key_size - self.prefix.len() - braces;
        let needed = digits(keys.div_ceil(self.tag_keys()).saturating_sub(1));
        let places = 10u64.saturating_pow(room.min(SHUFFLED_DIGITS.max(needed)) as u32);
        self.places = Some(Scramble::new(places));
        self
    }

    /// Keys of one hash tag.
    fn tag_keys(&self) -> u64 {
        self.untagged_digits.map_or(1, |digits| 10u64.saturating_pow(digits as u32))
    }

    /// The end of the range of all keys with the hash tag of `key`; nothing, if there are no tags.
    pub fn tag_end(&self, key: &[u8], end: &mut Vec<u8>) {
        end.clear();
        if self.untagged_digits.is_some()
            && let Some(closing) = key.iter().rposition(|&byte| byte == b'}')
        {
            end.extend_from_slice(&key[..closing]);
            end.push(b'}' + 1);
        }
    }

    /// Appends the key with this number.
    #[inline]
    pub fn append(&self, family: Family, number: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.prefix);
        out.resize(start + self.key_size, b'0');
        let mut first = start + self.prefix.len();
        let mut closing = usize::MAX;
        if let Some(untagged) = self.untagged_digits {
            out[first] = b'{';
            first += 1;
            closing = out.len() - untagged - 1;
            out[closing] = b'}';
        }
        let mut rest = self.places.map_or(number, |places| {
            let tag_keys = self.tag_keys();
            places.place(number / tag_keys) * tag_keys + number % tag_keys
        });
        let mut at = out.len();
        while rest > 0 {
            at -= 1;
            if at == closing {
                at -= 1;
            }
            out[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        match family {
            Family::Values => {}
            Family::Counters => out[first] = b'n',
            Family::Absent => out[start + self.key_size - 1] = b'a' + (number % 10) as u8,
        }
    }
}

fn digits(number: u64) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(space: &KeySpace, family: Family, number: u64) -> String {
        let mut out = b"before ".to_vec();
        space.append(family, number, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn keys_have_one_size_and_counters_their_own_names() {
        let space = KeySpace::new("key:", 12, 1_000_000, true, None).unwrap();
        assert_eq!(key(&space, Family::Values, 0), "before key:00000000");
        assert_eq!(key(&space, Family::Values, 999_999), "before key:00999999");
        assert_eq!(key(&space, Family::Counters, 42), "before key:n0000042");
        assert_eq!(key(&space, Family::Absent, 42), "before key:0000004c");
    }

    #[test]
    fn neighbours_share_a_hash_tag() {
        let space = KeySpace::new("k:", 12, 1_000_000, true, Some(1000)).unwrap();
        assert_eq!(key(&space, Family::Values, 4200), "before k:{00004}200");
        assert_eq!(key(&space, Family::Values, 999_999), "before k:{00999}999");
        assert_eq!(key(&space, Family::Counters, 7), "before k:{n0000}007");
        let mut end = Vec::new();
        space.tag_end(b"k:{00004}200", &mut end);
        assert_eq!(end, b"k:{00004~");
        assert_eq!(key(&space, Family::Absent, 4200), "before k:{00004}20a");
        assert_eq!(KeySpace::new("k:", 9, 1_000_000, false, Some(1000)).unwrap_err(), 10);
        assert_eq!(KeySpace::new("", 5, 10, false, Some(1000)).unwrap_err(), 6, "a tag is not empty");
    }

    #[test]
    fn a_key_size_too_small_names_the_least_that_does() {
        assert_eq!(KeySpace::new("key:", 9, 1_000_000, false, None).unwrap_err(), 10);
        assert_eq!(KeySpace::new("key:", 10, 1_000_000, true, None).unwrap_err(), 11);
        assert!(KeySpace::new("", 6, 1_000_000, false, None).is_ok());
    }

    #[test]
    fn shuffled_numbers_are_each_its_own_and_tags_stay_together() {
        let space = KeySpace::new("k:", 5, 1000, false, None).unwrap().shuffle(1000);
        let mut keys: Vec<String> = (0..1000).map(|number| key(&space, Family::Values, number)).collect();
        assert!(keys[..100].iter().any(|key| key.as_str() > "before k:900"), "they begin all over");
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 1000);
        assert_eq!(keys[999], "before k:999");
        let few = KeySpace::new("k:", 12, 10, false, None).unwrap().shuffle(10);
        let many = KeySpace::new("k:", 12, 1_000_000_000, false, None).unwrap().shuffle(1_000_000_000);
        assert_eq!(key(&few, Family::Values, 7), key(&many, Family::Values, 7));
        assert_eq!(key(&few, Family::Values, 7).len(), "before ".len() + 12);
        let space = KeySpace::new("k:", 12, 100_000, false, Some(100)).unwrap().shuffle(100_000);
        let (first, second) = (key(&space, Family::Values, 4211), key(&space, Family::Values, 4212));
        assert_eq!((&first[..17], &first[17..], &second[17..]), (&second[..17], "11", "12"));
        assert_ne!(&first[..17], "before k:{000042}");
    }

    #[test]
    fn the_latest_keys_are_drawn_most_and_new_ones_at_once() {
        let mut picker = Picker::latest(1000, 0.99);
        let mut rng = fastrand::Rng::with_seed(6);
        let mut known = 1000;
        let mut newest = 0;
        for _ in 0..100_000 {
            known += 1;
            let number = picker.pick(known, &mut rng);
            assert!(number < known);
            newest += u32::from(number + 10 >= known);
        }
        // Of 100,000 keys at the end the ten hottest have a quarter, of 1000 at the start two fifths.
        assert!((25_000..33_000).contains(&newest), "{newest}");
    }

    #[test]
    fn the_hottest_keys_stay_the_hottest_while_others_come() {
        let mut picker = Picker::zipfian(1000, 0.99);
        let mut rng = fastrand::Rng::with_seed(7);
        let mut seen = [0u32; 2000];
        for draw in 0..200_000 {
            seen[picker.pick(1000 + draw / 200, &mut rng) as usize] += 1;
        }
        let hottest = (0..2000).max_by_key(|number| seen[*number]).unwrap();
        assert_eq!(hottest, 0);
        let late: u32 = seen[1000..].iter().sum();
        assert!((2_000..20_000).contains(&late), "{late} draws of keys that came later");
    }

    #[test]
    fn the_hottest_key_is_drawn_as_often_as_theory_says() {
        let mut picker = Picker::zipfian(100_000, 0.99);
        let mut rng = fastrand::Rng::with_seed(5);
        let draws = 300_000;
        let hot = (0..draws).filter(|_| picker.pick(100_000, &mut rng) == 0).count() as f64;
        let expected = f64::from(draws) / crate::zipf::Zeta::new(0.99).extend_to(100_000);
        assert!((0.97..1.03).contains(&(hot / expected)), "{hot} for {expected}");
    }
}
