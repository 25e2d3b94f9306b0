//! Where those rest who have done a step that took long: one after the other, so that between two such steps others
//! run, and what has come to sockets and disk is seen.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use crate::env::{Env, Notify};

/// The line of one shard. Each in it holds one task, so it is as long as there are connections at most.
#[derive(Default)]
pub struct Line {
    next: Cell<u64>,
    waiting: RefCell<VecDeque<(u64, Notify)>>,
}

/// A place in the line, left when dropped.
struct Place<'l> {
    line: &'l Line,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.line.waiting.borrow_mut();
        let was_first = waiting.front().is_some_and(|(number, _)| *number == self.number);
        waiting.retain(|(number, _)| *number != self.number);
        if was_first && let Some((_, first)) = waiting.front() {
            first.notify();
        }
    }
}

impl Line {
    /// Rests until all who came before have rested and gone on.
    pub async fn rest<E: Env>(&self, env: &E) {
        self.rest_if(|| true, env.rest()).await;
    }

    /// As [`Line::rest`], in this way, but only if that is still needed when its turn comes: those before it may have
    /// rested for all. Whether it was.
    pub async fn rest_if(&self, is_needed: impl Fn() -> bool, rest: impl Future<Output = ()>) -> bool {
        let number = self.next.get();
        self.next.set(number + 1);
        let turn = Notify::new();
        self.waiting.borrow_mut().push_back((number, turn.clone()));
        let place = Place { line: self, number };
        turn.until(|| self.waiting.borrow().front().is_some_and(|(first, _)| *first == number)).await;
        let rests = is_needed();
        if rests {
            rest.await;
        }
        drop(place);
        rests
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::env::Queue;
    use crate::env::sim::SimEnv;

    #[test]
    fn one_goes_on_at_a_time_in_the_order_of_coming_and_who_leaves_is_passed_over() {
        let (world, env) = SimEnv::fresh(3);
        let (line, done) = (Rc::new(Line::default()), Rc::new(RefCell::new(Vec::new())));
        world.run(async {
            for n in 0..5 {
                let mut rest = Box::pin({
                    let (line, env) = (line.clone(), env.clone());
                    async move { line.rest(&env).await }
                });
                // In line before any task runs.
                assert!(futures_lite::future::poll_once(&mut rest).await.is_none(), "nobody goes on at once");
                if n == 2 {
                    continue;
                }
                let (done, env) = (done.clone(), env.clone());
                env.clone().spawn(Queue::Foreground, async move {
                    rest.await;
                    done.borrow_mut().push((n, env.now()));
                });
            }
            while done.borrow().len() < 4 {
                env.sleep(std::time::Duration::from_micros(1)).await;
            }
        });
        let done = done.borrow();
        assert_eq!(done.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [0, 1, 3, 4]);
        assert!(done.windows(2).all(|pair| pair[0].1 < pair[1].1), "one after the other: {done:?}");
        assert!(line.waiting.borrow().is_empty());
        world.kill();
    }

    #[test]
    fn one_rests_for_all_who_need_it_no_more() {
        let (world, env) = SimEnv::fresh(4);
        world.run(async {
            let (line, is_needed, rested) =
                (Rc::new(Line::default()), Rc::new(Cell::new(true)), Rc::new(RefCell::new(Vec::new())));
            for _ in 0..5 {
                let (line, is_needed, rested) = (line.clone(), is_needed.clone(), rested.clone());
                let own = env.clone();
                env.spawn(Queue::Foreground, async move {
                    let has_rested = line.rest_if(|| is_needed.get(), own.rest()).await;
                    // Whoever comes fourth needs it anew.
                    is_needed.set(rested.borrow().len() == 2);
                    rested.borrow_mut().push(has_rested);
                });
            }
            while rested.borrow().len() < 5 {
                env.sleep(std::time::Duration::from_micros(1)).await;
            }
            assert_eq!(*rested.borrow(), [true, false, false, true, false]);
            assert!(line.waiting.borrow().is_empty());
        });
        world.kill();
    }
}
