//! What a storm does, as a text: which lives, which turns of each, which parts of a turn, which troubles, and when the
//! power goes. A storm that follows a plan does nothing else, so what failed can be made shorter ([`crate::minimise`])
//! and done again.
//!
//! ```text
//! 0:2,5-7,9.0-3.1001@9+14/3:@+120_0.2=9+5/4:0
//!
//! 0:      the first life; lives are parted by a slash
//! 2,5-7   its turns 2, 5, 6 and 7, whole
//! 9.0-3.1001   of turn 9 only these parts: requests by number, or one of those below
//! @9+14   the power goes at the 14th operation of the disk since turn 9 began; @+120: since the life began;
//!         @: once all is done; without it the store is killed then
//! _0.2=9+5     of the troubles that the life may have, the first and the third: that one strikes after 5 operations
//!         that it could have hit in turn 9
//! ```
//!
//! Whoever types it needs no quotes.

use std::collections::HashSet;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

/// Parts of a turn that are not one of its usual requests, which count from 0.
pub const RANGE: u32 = 1000;
pub const COPY: u32 = 1001;
/// The first page; the others follow.
pub const PAGE: u32 = 1002;

/// How a life ends that nothing else ends before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// The store is killed once all is done.
    #[default]
    Killed,
    /// The power goes once all is done.
    Cut,
    /// The power goes at an operation of the disk, counted from 1 since a turn began, or since the life did; once all
    /// is done if there are fewer.
    CutAt { turn: Option<u32>, operation: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    pub number: u32,
    /// `None`: all, or it has none.
    pub parts: Option<Vec<u32>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    pub number: u32,
    /// Ascending.
    pub turns: Vec<Turn>,
    pub end: End,
    pub troubles: Vec<Trouble>,
}

/// Something that the disk does in a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub number: u32,
    /// The turn in which it strikes, and how many operations that it could hit it lets pass then. `None`: it counts
    /// them from where it begins.
    pub strikes: Option<(u32, u64)>,
}

/// Lives, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub lives: Vec<Life>,
}

/// Something that a plan has and could do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Piece {
    Life(u32),
    Turn(u32, u32),
    Part(u32, u32, u32),
    Trouble(u32, u32),
    /// That a life ends by a power cut.
    Cut(u32),
}

/// Kinds of pieces, the largest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    Lives,
    Turns,
    Troubles,
    Parts,
    Cuts,
}

impl Grain {
    pub const ALL: [Grain; 5] = [Grain::Lives, Grain::Turns, Grain::Troubles, Grain::Parts, Grain::Cuts];
}

/// How much of everything there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub lives: usize,
    pub turns: usize,
    pub parts: usize,
}

impl Display for Size {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} lives, {} turns, {} requests", self.lives, self.turns, self.parts)
    }
}

impl Plan {
    pub fn size(&self) -> Size {
        let turns = || self.lives.iter().flat_map(|life| &life.turns);
        let parts = turns().map(|turn| turn.parts.as_ref().map_or(0, Vec::len)).sum();
        Size { lives: self.lives.len(), turns: turns().count(), parts }
    }

    pub fn life(&self, number: u32) -> Option<&Life> {
        self.lives.iter().find(|life| life.number == number)
    }

    /// All pieces of a kind.
    pub fn pieces(&self, grain: Grain) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for life in &self.lives {
            let Life { number: at, turns, end, troubles } = life;
            match grain {
                Grain::Lives => pieces.push(Piece::Life(*at)),
                Grain::Turns => pieces.extend(turns.iter().map(|turn| Piece::Turn(*at, turn.number))),
                Grain::Troubles => {
                    pieces.extend(troubles.iter().map(|trouble| Piece::Trouble(*at, trouble.number)))
                }
                Grain::Parts => pieces.extend(turns.iter().flat_map(|turn| {
                    let parts = turn.parts.iter().flatten();
                    parts.map(|part| Piece::Part(*at, turn.number, *part))
                })),
                Grain::Cuts => pieces.extend((*end != End::Killed).then_some(Piece::Cut(*at))),
            }
        }
        pieces
    }

    /// The same without some pieces.
    pub fn without(&self, pieces: &HashSet<Piece>) -> Plan {
        let mut plan = self.clone();
        plan.lives.retain(|life| !pieces.contains(&Piece::Life(life.number)));
        for Life { number: at, turns, end, troubles } in &mut plan.lives {
            troubles.retain(|trouble| !pieces.contains(&Piece::Trouble(*at, trouble.number)));
            if pieces.contains(&Piece::Cut(*at)) {
                *end = End::Killed;
            }
            turns.retain(|turn| !pieces.contains(&Piece::Turn(*at, turn.number)));
            for Turn { number, parts } in turns {
                parts
                    .iter_mut()
                    .for_each(|p| p.retain(|part| !pieces.contains(&Piece::Part(*at, *number, *part))));
            }
        }
        plan
    }
}

/// Ascending numbers as they are written.
fn write_numbers(f: &mut Formatter<'_>, numbers: &[u32]) -> fmt::Result {
    let mut dot = "";
    for run in numbers.chunk_by(|a, b| a + 1 == *b) {
        match run {
            [single] => write!(f, "{dot}{single}")?,
            [first, .., last] => write!(f, "{dot}{first}-{last}")?,
            [] => {}
        }
        dot = ".";
    }
    Ok(())
}

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (place, life) in self.lives.iter().enumerate() {
            let slash = if place > 0 { "/" } else { "" };
            write!(f, "{slash}{}:", life.number)?;
            let mut comma = "";
            let is_next =
                |a: &Turn, b: &Turn| a.parts.is_none() && b.parts.is_none() && a.number + 1 == b.number;
            for run in life.turns.chunk_by(is_next) {
                let [first, ..] = run else { continue };
                write!(f, "{comma}{}", first.number)?;
                if let [_, .., last] = run {
                    write!(f, "-{}", last.number)?;
                }
                if let Some(parts) = &first.parts {
                    f.write_str(".")?;
                    write_numbers(f, parts)?;
                }
                comma = ",";
            }
            match life.end {
                End::Killed => {}
                End::Cut => f.write_str("@")?,
                End::CutAt { turn: None, operation } => write!(f, "@+{operation}")?,
                End::CutAt { turn: Some(turn), operation } => write!(f, "@{turn}+{operation}")?,
            }
            for (place, trouble) in life.troubles.iter().enumerate() {
                write!(f, "{}{}", if place == 0 { '_' } else { '.' }, trouble.number)?;
                if let Some((turn, skip)) = trouble.strikes {
                    write!(f, "={turn}+{skip}")?;
                }
            }
        }
        Ok(())
    }
}

/// More numbers in one range are a slip.
const RANGE_MAX: u32 = 1 << 16;

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("'{text}' is no number"))
}

/// `3`, or `3-5`.
fn range(text: &str) -> Result<std::ops::RangeInclusive<u32>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if first > last || last - first >= RANGE_MAX {
        return Err(format!("'{text}' is no range"));
    }
    Ok(first..=last)
}

fn numbers<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<u32>, String> {
    let mut all = Vec::new();
    for text in texts.filter(|text| !text.is_empty()) {
        all.extend(range(text)?);
    }
    if all.is_sorted_by(|a, b| a < b) { Ok(all) } else { Err(format!("{all:?} don't ascend")) }
}

/// `2`, or `2=9+5`.
fn parse_trouble(text: &str) -> Result<Trouble, String> {
    let Some((trouble, strikes)) = text.split_once('=') else {
        return Ok(Trouble { number: number(text)?, strikes: None });
    };
    let (turn, skip) = strikes.split_once('+').ok_or_else(|| format!("no '+' in '{text}'"))?;
    Ok(Trouble { number: number(trouble)?, strikes: Some((number(turn)?, number(skip)?)) })
}

fn parse_life(text: &str) -> Result<Life, String> {
    let (at, rest) = text.split_once(':').ok_or_else(|| format!("no ':' in the life '{text}'"))?;
    let (rest, troubles) = rest.split_once('_').unwrap_or((rest, ""));
    let (rest, end) = match rest.split_once('@') {
        None => (rest, End::Killed),
        Some((rest, "")) => (rest, End::Cut),
        Some((rest, cut)) => {
            let (turn, operation) = cut.split_once('+').ok_or_else(|| format!("no '+' in '@{cut}'"))?;
            let turn = if turn.is_empty() { None } else { Some(number(turn)?) };
            (rest, End::CutAt { turn, operation: number(operation)? })
        }
    };
    let mut turns = Vec::new();
    for text in rest.split(',').filter(|text| !text.is_empty()) {
        match text.split_once('.') {
            None => turns.extend(range(text)?.map(|number| Turn { number, parts: None })),
            Some((turn, parts)) => {
                turns.push(Turn { number: number(turn)?, parts: Some(numbers(parts.split('.'))?) });
            }
        }
    }
    if !turns.is_sorted_by(|a, b| a.number < b.number) {
        return Err(format!("turns of '{text}' don't ascend"));
    }
    let troubles = troubles.split('.').filter(|text| !text.is_empty()).map(parse_trouble);
    let troubles = troubles.collect::<Result<Vec<Trouble>, String>>()?;
    if !troubles.is_sorted_by(|a, b| a.number < b.number) {
        return Err(format!("troubles of '{text}' don't ascend"));
    }
    Ok(Life { number: number(at)?, turns, end, troubles })
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Plan, String> {
        let lives = text.split('/').map(parse_life).collect::<Result<Vec<Life>, String>>()?;
        if !lives.is_sorted_by(|a, b| a.number < b.number) {
            return Err("lives don't ascend".to_owned());
        }
        Ok(Plan { lives })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "0:2,5-7,9.0-3.1001,10.@9+14/3:@+120_0.2=9+5/4:0/7:@/9:";

    #[test]
    fn a_plan_is_the_text_it_is_written_as() {
        let plan: Plan = TEXT.parse().unwrap();
        assert_eq!(plan.to_string(), TEXT);
        let first = &plan.lives[0];
        assert_eq!(first.turns.iter().map(|turn| turn.number).collect::<Vec<_>>(), [2, 5, 6, 7, 9, 10]);
        assert_eq!(first.turns[4].parts, Some(vec![0, 1, 2, 3, COPY]));
        assert_eq!(first.turns[5].parts, Some(Vec::new()));
        assert_eq!(first.end, End::CutAt { turn: Some(9), operation: 14 });
        assert_eq!(plan.lives[1].end, End::CutAt { turn: None, operation: 120 });
        let struck = Trouble { number: 2, strikes: Some((9, 5)) };
        assert_eq!(plan.lives[1].troubles, [Trouble { number: 0, strikes: None }, struck]);
        let ends: Vec<End> = plan.lives[2..].iter().map(|life| life.end).collect();
        assert_eq!(ends, [End::Killed, End::Cut, End::Killed]);
    }

    #[test]
    fn what_is_no_plan_is_refused() {
        for text in [
            "",
            "0",
            "x:",
            "0:1-",
            "0:3-2",
            "0:2,1",
            "0:1.3.2",
            "0:@5",
            "0:@a+1",
            "0:_x",
            "0:_1=5",
            "0:_2.1",
            "1:/0:",
            "0:/",
            "0:1-99999999",
        ] {
            assert!(text.parse::<Plan>().is_err(), "{text}");
        }
    }

    #[test]
    fn pieces_that_are_left_out_are_gone_and_nothing_else() {
        let plan: Plan = TEXT.parse().unwrap();
        let count = |grain| plan.pieces(grain).len();
        assert_eq!(Grain::ALL.map(count), [5, 7, 2, 5, 3]);
        assert_eq!(plan.size(), Size { lives: 5, turns: 7, parts: 5 });
        let pieces = [
            Piece::Life(9),
            Piece::Turn(0, 6),
            Piece::Turn(4, 0),
            Piece::Part(0, 9, 2),
            Piece::Trouble(3, 0),
            Piece::Cut(7),
        ];
        let rest = plan.without(&HashSet::from(pieces));
        assert_eq!(rest.to_string(), "0:2,5,7,9.0-1.3.1001,10.@9+14/3:@+120_2=9+5/4:/7:");
        for grain in Grain::ALL {
            let none = plan.without(&plan.pieces(grain).into_iter().collect());
            assert!(none.pieces(grain).is_empty(), "{grain:?}");
        }
    }
}
