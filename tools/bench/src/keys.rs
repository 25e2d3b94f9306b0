//! Key numbers and the bytes that stand for them.

use crate::zipf::{Scramble, Zipfian};

/// How key numbers are drawn.
#[derive(Clone, Copy, Debug)]
pub enum Picker {
    Uniform { keys: u64 },
    Zipfian { ranks: Zipfian, scramble: Scramble },
}

impl Picker {
    pub fn uniform(keys: u64) -> Picker {
        Picker::Uniform { keys }
    }

    pub fn zipfian(keys: u64, theta: f64) -> Picker {
        Picker::Zipfian { ranks: Zipfian::new(keys, theta), scramble: Scramble::new(keys) }
    }

    #[inline]
    pub fn pick(&self, rng: &mut fastrand::Rng) -> u64 {
        match self {
            Picker::Uniform { keys } => rng.u64(..keys),
            Picker::Zipfian { ranks, scramble } => scramble.place(ranks.rank(rng.f64())),
        }
    }
}

/// Keys of one length: a prefix, then the key's number in decimal with leading zeros. Counters, which
/// hold numbers rather than self-describing values, have an `n` in place of the first zero. Absent keys, which
/// nothing ever sets, have a letter in place of the last digit: so they lie between the others, and it takes
/// more than the first and last key of a table to know that it has none of them.
///
/// With hash tags all digits but the last few stand in braces: `key:{000004}200` has number 4200.
#[derive(Clone, Debug)]
pub struct KeySpace {
    prefix: Vec<u8>,
    key_size: usize,
    /// Digits after the hash tag.
    untagged_digits: Option<usize>,
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
        Ok(KeySpace { prefix: prefix.as_bytes().to_vec(), key_size, untagged_digits })
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
        let mut rest = number;
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
    fn the_hottest_key_is_drawn_as_often_as_theory_says() {
        let picker = Picker::zipfian(100_000, 0.99);
        let mut rng = fastrand::Rng::with_seed(5);
        let draws = 300_000;
        let hot = (0..draws).filter(|_| picker.pick(&mut rng) == 0).count() as f64;
        let expected = f64::from(draws) / crate::zipf::Zeta::new(0.99).extend_to(100_000);
        assert!((0.97..1.03).contains(&(hot / expected)), "{hot} for {expected}");
    }
}
