//! How a storm follows its plan and notes what it does: its notes are a plan as well, by which it does the same again.
//!
//! Each life, and each turn of one, draws from streams of its own, which depend on nothing but the seed and its
//! number. So the others stay as they are when one is left out, as far as the store lets them.

use std::cell::RefCell;
use std::rc::Rc;

use atlaskv::disk::sim::{Countdown, SimDisk};
use atlaskv::env::sim::SimWorld;

use crate::plan::{End, Life, Plan, Trouble, Turn};

/// What random numbers are for.
#[derive(Clone, Copy, Debug)]
pub enum Stream {
    /// The order of tasks, and how long the disk takes.
    World,
    Shapes,
    Work,
    /// What is usual for some turns.
    Habits,
    /// What a power cut leaves.
    Remains,
}

/// Turns that have the same habits.
pub const HABIT: u32 = 64;

/// What was done so far. It stays when the run has panicked.
#[derive(Default)]
pub struct Done {
    pub plan: Plan,
    /// What differs, if that is how it ended.
    pub difference: Option<String>,
    /// Depends on every choice that the worlds of lives that are over have made.
    pub trace: u64,
    /// The world of the life that goes on.
    pub world: Option<SimWorld>,
}

/// What a storm is to do.
pub struct Script {
    seed: u64,
    /// `None`: everything.
    plan: Option<Plan>,
    pub done: Rc<RefCell<Done>>,
    life: Option<u32>,
    turn: Option<u32>,
    /// Operations of the disk when the turn began, or the life.
    operations: u64,
    /// The one at which the power goes.
    cut_at: u64,
    /// Troubles of the life that may strike yet.
    awaited: Vec<(u32, Countdown)>,
}

/// Spreads numbers that are near each other over all seeds.
fn mix(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0, |sum: u64, number| {
        let mut mixed = (sum ^ number).wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    })
}

impl Script {
    pub fn new(seed: u64, plan: Option<Plan>) -> Script {
        let done = Rc::default();
        let awaited = Vec::new();
        Script { seed, plan, done, life: None, turn: None, operations: 0, cut_at: u64::MAX, awaited }
    }

    /// The seed of one of the streams of this turn, or of this life if none has begun.
    pub fn seed(&self, stream: Stream) -> u64 {
        let turn = match stream {
            Stream::Habits => self.turn.map(|turn| turn / HABIT),
            Stream::Remains => None,
            _ => self.turn,
        };
        let number = |number: Option<u32>| number.map_or(0, |number| u64::from(number) + 1);
        mix(&[self.seed, number(self.life), number(turn), stream as u64])
    }

    pub fn turn(&self) -> u32 {
        self.turn.unwrap_or(0)
    }

    /// Goes on to the next life. Without a plan there is one as long as it `is_wanted`.
    pub fn next_life(&mut self, is_wanted: bool) -> Option<u32> {
        let least = self.life.map_or(0, |life| life + 1);
        self.life = match &self.plan {
            None => is_wanted.then_some(least),
            Some(plan) => plan.lives.iter().map(|life| life.number).find(|life| *life >= least),
        };
        self.turn = None;
        self.life
    }

    /// The life begins. Without a plan the power goes at the operation that was `drawn`, counted from 1.
    pub fn begin_life(&mut self, world: &SimWorld, disk: &SimDisk, drawn: u64) {
        let number = self.life.expect("there is a next one");
        let mut done = self.done.borrow_mut();
        done.world = Some(world.clone());
        done.plan.lives.push(Life { number, ..Life::default() });
        drop(done);
        self.operations = disk.operations();
        self.cut_at = u64::MAX;
        self.awaited.clear();
        match self.planned().map(|life| life.end) {
            None => self.cut_after(disk, drawn),
            Some(End::CutAt { turn: None, operation }) => self.cut_after(disk, operation),
            Some(_) => {}
        }
    }

    fn planned(&self) -> Option<&Life> {
        self.plan.as_ref().map(|plan| plan.life(self.life.expect("one goes on")).expect("it is the plan's"))
    }

    fn cut_after(&mut self, disk: &SimDisk, operations: u64) {
        self.cut_at = self.operations.saturating_add(operations);
        disk.crash_at(self.cut_at);
    }

    /// Notes something of the life that goes on.
    fn note(&self, what: impl FnOnce(&mut Life)) {
        what(self.done.borrow_mut().plan.lives.last_mut().expect("a life goes on"));
    }

    /// Whether this trouble of the life comes.
    pub fn has_trouble(&self, number: u32) -> bool {
        let is_it = |trouble: &Trouble| trouble.number == number;
        let has = self.planned().is_none_or(|life| life.troubles.iter().any(is_it));
        if has {
            self.note(|life| life.troubles.push(Trouble { number, strikes: None }));
        }
        has
    }

    /// It has come, and strikes some time: not before the turn that the plan names.
    pub fn await_trouble(&mut self, number: u32, countdown: Countdown) {
        if self.strikes(number).is_some() {
            countdown.set(u64::MAX);
        }
        self.awaited.push((number, countdown));
    }

    /// When a trouble strikes, if the plan says so.
    fn strikes(&self, number: u32) -> Option<(u32, u64)> {
        let trouble = self.planned()?.troubles.iter().find(|trouble| trouble.number == number);
        trouble.and_then(|trouble| trouble.strikes)
    }

    /// Lets the troubles that are awaited strike where the plan says, or else in this turn; notes which wait for it.
    fn count_down(&self, turn: u32) {
        for (number, countdown) in &self.awaited {
            match self.strikes(*number) {
                Some((at, skip)) if at == turn => countdown.set(skip),
                // What it was to hit was left out.
                Some((at, _)) if at < turn => countdown.set(0),
                _ => {}
            }
            if let Some(left) = countdown.left() {
                self.note(|life| {
                    let noted = life.troubles.iter_mut().find(|trouble| trouble.number == *number);
                    noted.expect("it has come").strikes = Some((turn, left));
                });
            }
        }
    }

    /// Begins the next turn of the life. `false`: there is none, and perhaps the power has gone therefore.
    pub fn next_turn(&mut self, disk: &SimDisk) -> bool {
        let least = self.turn.map_or(0, |turn| turn + 1);
        let (next, end) = match self.planned() {
            None => (Some(least), End::Killed),
            Some(life) => {
                let numbers = || life.turns.iter().map(|turn| turn.number);
                (numbers().find(|number| *number >= least), life.end)
            }
        };
        let is_cut = match end {
            End::Killed => false,
            // Its turn is over, or left out.
            End::CutAt { turn: Some(turn), .. } => next.is_none_or(|next| next > turn),
            End::Cut | End::CutAt { turn: None, .. } => next.is_none(),
        };
        self.operations = disk.operations();
        if is_cut {
            self.cut_after(disk, 0);
            self.note(|life| life.end = End::Cut);
            return false;
        }
        let Some(number) = next else { return false };
        self.turn = Some(number);
        self.note(|life| life.turns.push(Turn { number, parts: None }));
        self.count_down(number);
        if let End::CutAt { turn, operation } = end
            && turn == next
        {
            self.cut_after(disk, operation);
        }
        true
    }

    /// Of the parts that the turn has, those that are done.
    pub fn choose(&self, parts: Vec<u32>) -> Vec<u32> {
        let (Some(_), Some(turn)) = (self.life, self.turn) else { return parts };
        let planned = self.planned().and_then(|life| life.turns.iter().find(|of| of.number == turn));
        let wanted = planned.and_then(|turn| turn.parts.as_ref());
        let is_wanted = |part: &u32| wanted.is_none_or(|wanted| wanted.contains(part));
        let mut chosen: Vec<u32> = parts.into_iter().filter(is_wanted).collect();
        chosen.sort_unstable();
        self.note(|life| life.turns.last_mut().expect("it has begun").parts = Some(chosen.clone()));
        chosen
    }

    /// The life is over.
    pub fn end_life(&self, world: &SimWorld, disk: &SimDisk) {
        let mut done = self.done.borrow_mut();
        done.trace = mix(&[done.trace, world.trace()]);
        drop(done);
        if disk.is_down() {
            let at = End::CutAt { turn: self.turn, operation: self.cut_at - self.operations };
            self.note(|life| {
                if life.end == End::Killed {
                    life.end = at;
                }
            });
        }
    }
}
