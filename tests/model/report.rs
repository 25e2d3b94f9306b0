//! What a run met, and what is told of one that failed.

use std::cell::Cell;
use std::collections::VecDeque;

use crate::keys::Key;
use crate::reference::Op;
use crate::store::Answer;

/// What a run met, to be sure that it meets what it is for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Met {
    pub ops: u64,
    pub lives: u64,
    pub crashes: u64,
    pub cut_off: u64,
    pub moves: u64,
    pub splits: u64,
    pub checkpoints: u64,
    pub pages: u64,
    pub renewals: u64,
    pub scans_refused: u64,
    pub too_large: u64,
    pub batches: u64,
    pub unmet: u64,
    pub ranges: u64,
    pub ranges_refused: u64,
    /// Requests that found that their tablet had moved, since room for their replies was short until then.
    pub sent_away: u64,
    pub expired: u64,
    /// How often the wall clock was set back.
    pub turned_back: u64,
    pub flushes: u64,
    pub merges: u64,
    pub trivial_moves: u64,
    pub disk_waits: u64,
    pub faults: u64,
    pub starts_refused: u64,
    pub restarts: u64,
    /// Copies of stores that were damaged, and those that have shown it.
    pub damaged: u64,
    pub damage_at_start: u64,
    pub damage_on_read: u64,
}

impl Met {
    pub fn add(&mut self, other: &Met) {
        for ((_, sum), (_, more)) in self.each().into_iter().zip((*other).clone().each()) {
            *sum += *more;
        }
        self.sent_away += other.sent_away;
    }

    fn each(&mut self) -> [(&'static str, &mut u64); 18] {
        [
            ("requests", &mut self.ops),
            ("lives", &mut self.lives),
            ("power cuts", &mut self.crashes),
            ("pipelines cut off", &mut self.cut_off),
            ("moves", &mut self.moves),
            ("splits", &mut self.splits),
            ("checkpoints", &mut self.checkpoints),
            ("pages", &mut self.pages),
            ("renewed scans", &mut self.renewals),
            ("batches", &mut self.batches),
            ("batches with a condition that fails", &mut self.unmet),
            ("range deletes", &mut self.ranges),
            ("keys expired", &mut self.expired),
            ("clocks set back", &mut self.turned_back),
            ("flushes", &mut self.flushes),
            ("merges", &mut self.merges),
            ("trivial moves", &mut self.trivial_moves),
            ("reads of blocks", &mut self.disk_waits),
        ]
    }

    /// The same of stores in trouble: other things are met there.
    pub fn add_storm(&mut self, other: &Met) {
        self.add(other);
        self.faults += other.faults;
        self.starts_refused += other.starts_refused;
        self.restarts += other.restarts;
        self.damaged += other.damaged;
        self.damage_at_start += other.damage_at_start;
        self.damage_on_read += other.damage_on_read;
    }

    /// Panics if something was never met, or too often.
    pub fn check(mut self) {
        let most = 2 + self.ops / 200_000;
        let away = self.sent_away;
        assert!(away <= most, "{away} of {} requests were sent away by moves, more than {most}", self.ops);
        for (what, count) in self.each() {
            assert!(*count > 0, "a test without {what} shows little");
        }
    }
}

/// What is told of a run that fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Telling {
    /// The last events, and the last requests for the keys that differ.
    #[default]
    Last,
    /// All events and requests in order: of one that was made short.
    Whole,
    Nothing,
}

/// The last requests and events, for the report of a difference.
#[derive(Default)]
pub struct Log {
    requests: VecDeque<(u64, Op, Option<Answer>)>,
    events: VecDeque<(u64, String)>,
    pub telling: Telling,
    is_told: Cell<bool>,
}

const LOG_REQUESTS: usize = 100_000;
const LOG_EVENTS: usize = 60;

impl Log {
    pub fn note(&mut self, step: u64, op: Op, answer: Option<Answer>) {
        if self.requests.len() == LOG_REQUESTS {
            self.requests.pop_front();
        }
        self.requests.push_back((step, op, answer));
    }

    pub fn event(&mut self, step: u64, what: String) {
        if self.events.len() == LOG_EVENTS && self.telling != Telling::Whole {
            self.events.pop_front();
        }
        self.events.push_back((step, what));
    }

    /// Prints what there is of some keys, once.
    pub fn print(&self, keys: &[Key]) {
        if self.is_told.replace(true) {
            return;
        }
        match self.telling {
            Telling::Nothing => {}
            Telling::Whole => self.print_all(),
            Telling::Last => self.print_last(keys),
        }
    }

    fn print_all(&self) {
        eprintln!("all that was done:");
        let mut events = self.events.iter().peekable();
        for (step, op, answer) in &self.requests {
            while let Some((at, what)) = events.next_if(|(at, _)| at <= step) {
                eprintln!("  {at:>5}  {what}");
            }
            eprintln!("  {step:>5}    {}  ->  {}", shown(op), shown(answer));
        }
        events.for_each(|(at, what)| eprintln!("  {at:>5}  {what}"));
    }

    fn print_last(&self, keys: &[Key]) {
        eprintln!("the last events:");
        self.events.iter().for_each(|(step, what)| eprintln!("  {step:>9}  {what}"));
        for key in keys {
            eprintln!("the last requests that name {:.60}:", key.escape_ascii().to_string());
            let named = self.requests.iter().filter(|(_, op, _)| op.is_about(key));
            let named: Vec<_> = named.collect();
            for (step, op, answer) in &named[named.len().saturating_sub(30)..] {
                eprintln!("  {step:>9}  {}  ->  {}", shown(op), shown(answer));
            }
        }
    }
}

/// As much of something as fits a line.
pub fn shown(what: &impl std::fmt::Debug) -> String {
    let text = format!("{what:?}");
    if text.len() > 300 { format!("{}...", text.chars().take(300).collect::<String>()) } else { text }
}
