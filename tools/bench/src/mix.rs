//! The share of each operation in the load.

use std::fmt;
use std::str::FromStr;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OpKind {
    Get,
    Set,
    Del,
    Incr,
    MGet,
    Scan,
    /// Sets a key that is new.
    Insert,
    /// Reads a key, and sets it once the value is there: one operation from the first to the last.
    ReadModifyWrite,
}

impl OpKind {
    /// Every one there is.
    pub const ALL: [OpKind; OpKind::COUNT] = [
        OpKind::Get,
        OpKind::Set,
        OpKind::Del,
        OpKind::Incr,
        OpKind::MGet,
        OpKind::Scan,
        OpKind::Insert,
        OpKind::ReadModifyWrite,
    ];
    /// How many there are.
    pub const COUNT: usize = 8;

    pub fn name(self) -> &'static str {
        match self {
            OpKind::Get => "get",
            OpKind::Set => "set",
            OpKind::Del => "del",
            OpKind::Incr => "incr",
            OpKind::MGet => "mget",
            OpKind::Scan => "scan",
            OpKind::Insert => "insert",
            OpKind::ReadModifyWrite => "rmw",
        }
    }
}

/// Weights of the operations, as in `get=90,set=10`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix {
    weights: [u32; OpKind::COUNT],
    total: u32,
}

impl Mix {
    /// Of operations and their weights, each at most once.
    pub fn of(parts: &[(OpKind, u32)]) -> Mix {
        let mut weights = [0; OpKind::COUNT];
        parts.iter().for_each(|(kind, weight)| weights[*kind as usize] = *weight);
        Mix { weights, total: weights.iter().sum() }
    }

    pub fn weight(&self, kind: OpKind) -> u32 {
        self.weights[kind as usize]
    }

    pub fn has(&self, kind: OpKind) -> bool {
        self.weight(kind) > 0
    }

    #[inline]
    pub fn pick(&self, rng: &mut fastrand::Rng) -> OpKind {
        let mut draw = rng.u32(..self.total);
        for kind in OpKind::ALL {
            let weight = self.weights[kind as usize];
            if draw < weight {
                return kind;
            }
            draw -= weight;
        }
        unreachable!("the weights add up to the total")
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Mix, String> {
        let mut weights = [0u32; OpKind::COUNT];
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            // A name alone counts once: `get` is all reads, `get,set` half and half.
            let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
            let kind = OpKind::ALL
                .into_iter()
                .find(|kind| kind.name().eq_ignore_ascii_case(name.trim()))
                .ok_or_else(|| {
                    let names = OpKind::ALL.map(OpKind::name).join(", ");
                    format!("no operation is called {name:?}; there are {names}")
                })?;
            let weight: u32 =
                weight.trim().parse().ok().filter(|&weight| weight <= 1_000_000).ok_or_else(|| {
                    format!("the weight of {name} is {weight:?}; give a number up to 1000000")
                })?;
            if weights[kind as usize] != 0 {
                return Err(format!("{name} is given twice"));
            }
            weights[kind as usize] = weight;
        }
        match weights.iter().sum() {
            0 => Err("nothing to do: give at least one operation a weight, as in get=90,set=10".into()),
            total => Ok(Mix { weights, total }),
        }
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for kind in OpKind::ALL.into_iter().filter(|&kind| self.has(kind)) {
            write!(f, "{separator}{}={}", kind.name(), self.weight(kind))?;
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_parse_and_print() {
        for (text, printed) in [
            ("get=90,set=10", "get=90,set=10"),
            ("SET=1", "set=1"),
            ("get", "get=1"),
            (" set , get = 3 ,", "get=3,set=1"),
            ("mget=5,incr=2,del=1", "del=1,incr=2,mget=5"),
            ("scan=1,get=2", "get=2,scan=1"),
            ("rmw=50,insert=5", "insert=5,rmw=50"),
        ] {
            assert_eq!(text.parse::<Mix>().unwrap().to_string(), printed);
        }
    }

    #[test]
    fn wrong_mixes_say_what_is_wrong() {
        for (text, part) in [
            ("", "nothing to do"),
            ("get=0", "nothing to do"),
            ("got=1", "\"got\""),
            ("get=x", "weight of get"),
            ("get=-1", "weight of get"),
            ("get=1,get=2", "twice"),
        ] {
            let error = text.parse::<Mix>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn draws_follow_the_weights() {
        let mix: Mix = "get=90,set=9,del=1".parse().unwrap();
        let mut rng = fastrand::Rng::with_seed(3);
        let mut seen = [0u32; OpKind::COUNT];
        for _ in 0..100_000 {
            seen[mix.pick(&mut rng) as usize] += 1;
        }
        assert!((89_000..91_000).contains(&seen[OpKind::Get as usize]));
        assert!((8_500..9_500).contains(&seen[OpKind::Set as usize]));
        assert!((850..1_150).contains(&seen[OpKind::Del as usize]));
    }
}
