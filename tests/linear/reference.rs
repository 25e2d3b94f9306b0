//! The same promise as in [`crate::chain`], as a machine that a general checker tries all orders with:
//! `todc-utils` has the algorithm of Wing, Gong and Lowe. It is slow, and it shares no idea with ours.
//!
//! The machine's state is what the key may be: there may be several possibilities while lost writes are about.

use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

use crate::history::{Answer, Cond, Op, Request};

/// What the general checker is given.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// An operation with an answer, or a lost set that somebody read, with the version that it had.
    Known(Request, Answer),
    /// A lost write of the epoch.
    Lost(Request, u32),
    /// A server is ready: what was lost before does nothing any more.
    Start,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    epoch: u32,
    /// The newest version of which anything is known.
    version: u64,
    /// Its value; `None` if a condition that failed is all that told of it.
    value: Option<u64>,
    /// Whether that may be what is there.
    may_be_it: bool,
    /// Whether the key may be absent.
    may_be_absent: bool,
    /// Whether a value may be there that nobody read.
    may_be_unseen: bool,
    has_loose_sets: bool,
    has_loose_deletes: bool,
}

struct Register;

impl Specification for Register {
    type State = State;
    type Operation = Step;

    fn init() -> State {
        State {
            epoch: 0,
            version: 0,
            value: None,
            may_be_it: false,
            may_be_absent: true,
            may_be_unseen: false,
            has_loose_sets: false,
            has_loose_deletes: false,
        }
    }

    fn apply(step: &Step, state: &State) -> (bool, State) {
        let mut next = state.clone();
        let is_valid = match *step {
            Step::Known(request, answer) => next.answer(request, answer),
            Step::Lost(request, epoch) => {
                if epoch == next.epoch {
                    next.lose(request);
                }
                true
            }
            Step::Start => {
                next.epoch += 1;
                (next.has_loose_sets, next.has_loose_deletes) = (false, false);
                true
            }
        };
        next.may_be_absent |= next.has_loose_deletes;
        next.may_be_unseen |= next.has_loose_sets;
        if is_valid { (true, next) } else { (false, state.clone()) }
    }
}

impl State {
    fn answer(&mut self, request: Request, answer: Answer) -> bool {
        match (request, answer) {
            (Request::Get, Answer::Found { value, version }) => {
                self.value == Some(value) && self.version == version && self.become_it()
            }
            (Request::Get, Answer::Absent) | (Request::Delete(Cond::None), Answer::Absent) => {
                self.become_absent()
            }
            (Request::Set(value, cond), Answer::Written(version)) => {
                let is_valid = version > self.version && self.may_hold(cond);
                (self.version, self.value) = (version, Some(value));
                self.only(true, false);
                is_valid
            }
            (Request::Delete(cond), Answer::Written(version)) => {
                let is_there = cond != Cond::None || self.may_be_it || self.may_be_unseen;
                let is_valid = version > self.version && is_there && self.may_hold(cond);
                (self.version, self.value) = (version, None);
                self.only(false, true);
                is_valid
            }
            (Request::Set(_, cond) | Request::Delete(cond), Answer::Failed(None)) => {
                matches!(cond, Cond::IfVersion(_)) && self.become_absent()
            }
            (Request::Set(_, cond) | Request::Delete(cond), Answer::Failed(Some(seen))) => {
                if cond == Cond::None || cond == Cond::IfVersion(seen) {
                    return false;
                }
                if seen == self.version {
                    return self.become_it();
                }
                let is_valid = self.may_be_unseen && seen > self.version;
                (self.version, self.value) = (seen, None);
                self.only(true, false);
                is_valid
            }
            _ => false,
        }
    }

    fn lose(&mut self, request: Request) {
        match request {
            Request::Set(..) => self.has_loose_sets = true,
            Request::Delete(Cond::IfVersion(version)) => {
                self.may_be_absent |= self.may_be_it && self.version == version;
            }
            Request::Delete(_) => self.has_loose_deletes = true,
            Request::Get => {}
        }
    }

    fn may_hold(&self, cond: Cond) -> bool {
        match cond {
            Cond::None => true,
            Cond::IfAbsent => self.may_be_absent,
            Cond::IfVersion(version) => self.may_be_it && self.version == version,
        }
    }

    fn become_it(&mut self) -> bool {
        let may_be_it = self.may_be_it;
        self.only(true, false);
        may_be_it
    }

    fn become_absent(&mut self) -> bool {
        let may_be_absent = self.may_be_absent;
        self.only(false, true);
        may_be_absent
    }

    fn only(&mut self, is_it: bool, is_absent: bool) {
        (self.may_be_it, self.may_be_absent, self.may_be_unseen) = (is_it, is_absent, false);
    }
}

/// Time, then what is called before what ends (those of one moment overlap), then who.
type Event<T> = (u64, u8, usize, Action<T>);

/// The history that these events make.
fn history<T>(mut events: Vec<Event<T>>) -> History<T> {
    events.sort_by_key(|(time, kind, who, _)| (*time, *kind, *who));
    History::from_actions(events.into_iter().map(|(_, _, who, action)| (who, action)).collect())
}

/// Whether the history of one key is linearizable, in time that grows with the square of its length at least.
pub fn is_linearizable(ops: &[Op], starts: &[u64]) -> bool {
    let version_of = |wanted: u64| {
        ops.iter().find_map(|op| match op.answer {
            Answer::Found { value, version } if value == wanted => Some(version),
            _ => None,
        })
    };
    let mut events: Vec<Event<Step>> = Vec::new();
    for (at, op) in ops.iter().enumerate() {
        let known = match op.request {
            Request::Set(value, _) if op.is_lost() => version_of(value).map(Answer::Written),
            _ => Some(op.answer).filter(|_| !op.is_lost()),
        };
        // A lost write ends when its epoch has ended, and then it may do nothing: the general checker wants
        // every operation to have its moment.
        let epoch = starts.iter().filter(|start| **start < op.end).count() as u32;
        let step = known.map_or(Step::Lost(op.request, epoch), |answer| Step::Known(op.request, answer));
        events.push((op.call, 0, at, Action::Call(step)));
        events.push((op.end, 3, at, Action::Response(step)));
    }
    for (at, start) in starts.iter().enumerate() {
        events.push((*start, 1, ops.len() + at, Action::Call(Step::Start)));
        events.push((*start, 2, ops.len() + at, Action::Response(Step::Start)));
    }
    events.is_empty() || WGLChecker::<Register>::is_linearizable(history(events))
}

/// A register of values and nothing else.
struct Plain;

impl Specification for Plain {
    type State = u64;
    type Operation = (Request, Answer);

    fn init() -> u64 {
        0
    }

    fn apply((request, answer): &(Request, Answer), state: &u64) -> (bool, u64) {
        match (request, answer) {
            (Request::Set(value, _), _) => (true, *value),
            (_, Answer::Found { value, .. }) => (value == state, *state),
            _ => (false, *state),
        }
    }
}

/// Whether sets that are answered, whatever their conditions and versions, and reads that found something are
/// linearizable.
pub fn is_plain_linearizable(ops: &[Op]) -> bool {
    let mut events: Vec<Event<(Request, Answer)>> = Vec::new();
    for (at, op) in ops.iter().enumerate() {
        events.push((op.call, 0, at, Action::Call((op.request, op.answer))));
        events.push((op.end, 1, at, Action::Response((op.request, op.answer))));
    }
    events.is_empty() || WGLChecker::<Plain>::is_linearizable(history(events))
}
