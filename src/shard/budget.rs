//! How many bytes of requests, or of large replies, a shard holds, and who may hold more next.
//!
//! A shard has three of these, so that none can take what another needs to end: half of its memory for
//! connections is for requests, a quarter for replies, an eighth for what is gathered. The last eighth bounds what
//! scans of several shards keep between two pages, which is thrown away rather than waited for.
//!
//! - *Requests*: bytes read from connections, until their requests are answered. The shard that read them
//!   counts them, wherever they wait. Each connection holds a [`Share`], of which `free` bytes (the pipeline
//!   that HELLO promises) need nobody's leave; what is beyond is asked for before it is read, for a large
//!   frame all at once. It also counts what a connection of Redis' protocol keeps for EXEC, and the answer to
//!   KEYS until it has left: one larger than a small reply counts as the largest while it is gathered.
//! - *Replies* larger than [`LARGE_REPLY_BYTES`], and blocks being read for them, until they have left. The
//!   shard that makes them counts them. Smaller ones are bounded for each connection.
//! - *Gathers*: large answers that are put together from the parts of several shards, from the question on,
//!   as nobody knows before how large they will be: MGET counts as the largest reply, a page of SCAN as itself
//!   and its parts, and more if a part shows to be larger.
//!
//! Invariants:
//! - What was granted fits the limit, or is a single grant. So a request or reply of any size has its turn,
//!   and together they take the limit or the largest frame, whichever is more; free bytes come on top. What
//!   those who wait keep all the while does not count for that, or they might wait for each other: it is the
//!   beginning of a frame in bytes that were granted for small ones, a few KiB.
//! - Nobody is granted anything while another waits who comes before: who has been granted least, then who came
//!   first.
//!   Requests are answered once there is room for replies and gathers; gathers end once there is room for
//!   replies, since a part may wait behind a GET of the same connection; replies leave once clients read
//!   them, or are disconnected. Nothing waits the other way round, so everyone's turn comes.
//! - What was granted is given back exactly once.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::env::Notify;

/// A reply up to this size needs no leave.
pub const LARGE_REPLY_BYTES: usize = 64 << 10;

/// Bytes that a shard granted, to be given back to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// Of its budget for replies.
    pub replies: usize,
    /// Of its budget for gathers.
    pub gathers: usize,
}

impl Granted {
    /// Whether it is nothing.
    pub fn is_none(self) -> bool {
        self == Granted::default()
    }

    /// Both.
    pub fn and(self, other: Granted) -> Granted {
        Granted { replies: self.replies + other.replies, gathers: self.gathers + other.gathers }
    }

    /// Takes the part out of this that a reply of `bytes` uses.
    pub fn split_off(&mut self, bytes: usize) -> Granted {
        let part = Granted { replies: self.replies.min(bytes), gathers: self.gathers.min(bytes) };
        (self.replies, self.gathers) = (self.replies - part.replies, self.gathers - part.gathers);
        part
    }
}

/// Who waits. Granted, its bytes are counted already.
struct Waiter<K> {
    who: K,
    /// What it was granted already, and will give back without the rest.
    granted: usize,
    /// Of what was granted to it, this much it keeps until it has been granted the rest.
    kept: usize,
    need: usize,
    is_granted: bool,
}

/// See the module. `K` is who asks.
pub struct Budget<K> {
    limit: usize,
    /// Granted, and free bytes.
    used: Cell<usize>,
    granted: Cell<usize>,
    /// Those that came first, first.
    waiters: RefCell<Vec<Waiter<K>>>,
}

impl<K: Clone + PartialEq> Budget<K> {
    /// Of `limit` bytes.
    pub fn new(limit: usize) -> Budget<K> {
        Budget { limit, used: Cell::new(0), granted: Cell::new(0), waiters: RefCell::default() }
    }

    /// Bytes that are held.
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Whether someone waits for others to give back.
    pub fn is_short(&self) -> bool {
        self.waiters.borrow().iter().any(|waiter| !waiter.is_granted)
    }

    /// Asks for `need` bytes for `who`, who holds nothing, or will have given it back without them. Refused,
    /// `who` waits: [`Budget::next`] names it when its bytes are there, and it asks again.
    pub fn take(&self, who: &K, need: usize) -> bool {
        self.take_more(who, 0, 0, need)
    }

    /// The same for one who was granted `granted`, which it will give back, and `kept`, which it keeps while it waits.
    fn take_more(&self, who: &K, granted: usize, kept: usize, need: usize) -> bool {
        let mut waiters = self.waiters.borrow_mut();
        if let Some(place) = waiters.iter().position(|waiter| waiter.who == *who) {
            let waiter = &mut waiters[place];
            if !waiter.is_granted {
                (waiter.granted, waiter.kept, waiter.need) = (granted, kept, need);
                return self.is_next(&waiters, place) && {
                    waiters.remove(place);
                    self.grant(need);
                    true
                };
            }
            let spare = waiter.need;
            waiters.remove(place);
            drop(waiters);
            if need <= spare {
                self.give_back(spare - need);
                return true;
            }
            self.give_back(spare);
            waiters = self.waiters.borrow_mut();
        }
        waiters.push(Waiter { who: who.clone(), granted, kept, need, is_granted: false });
        let place = waiters.len() - 1;
        self.is_next(&waiters, place) && {
            waiters.pop();
            self.grant(need);
            true
        }
    }

    /// Takes `need` bytes if they are there and nobody waits; whoever asks so does not wait.
    pub fn take_now(&self, need: usize) -> bool {
        let is_free = !self.is_short() && self.fits(&self.waiters.borrow(), need);
        if is_free {
            self.grant(need);
        }
        is_free
    }

    /// Whether it is the turn of the waiter at `place`, and its bytes are there.
    fn is_next(&self, waiters: &[Waiter<K>], place: usize) -> bool {
        first(waiters) == Some(place) && self.fits(waiters, waiters[place].need)
    }

    fn fits(&self, waiters: &[Waiter<K>], need: usize) -> bool {
        let is_alone = || {
            let waiting = waiters.iter().filter(|waiter| !waiter.is_granted);
            self.granted.get() <= waiting.map(|waiter| waiter.kept).sum()
        };
        self.used.get() + need <= self.limit || is_alone()
    }

    fn grant(&self, bytes: usize) {
        self.used.set(self.used.get() + bytes);
        self.granted.set(self.granted.get() + bytes);
    }

    /// Someone who waits, whose bytes are there now and counted as its own. To be asked for until it is
    /// `None` after something was given back.
    pub fn next(&self) -> Option<K> {
        let mut waiters = self.waiters.borrow_mut();
        let place = first(&waiters)?;
        if !self.fits(&waiters, waiters[place].need) {
            return None;
        }
        self.grant(waiters[place].need);
        waiters[place].is_granted = true;
        Some(waiters[place].who.clone())
    }

    /// Gives back bytes that were granted.
    pub fn give_back(&self, bytes: usize) {
        assert!(bytes <= self.granted.get(), "no more is given back than was granted");
        self.granted.set(self.granted.get() - bytes);
        self.used.set(self.used.get() - bytes);
    }

    /// `who` waits no more; what it was granted and did not come for is given back.
    pub fn leave(&self, who: &K) {
        let mut waiters = self.waiters.borrow_mut();
        if let Some(place) = waiters.iter().position(|waiter| waiter.who == *who) {
            let waiter = waiters.remove(place);
            drop(waiters);
            if waiter.is_granted {
                self.give_back(waiter.need);
            }
        }
    }

    /// `who` asks for nothing more at present; as [`Budget::leave`] if it was granted something.
    pub fn leave_if_granted(&self, who: &K) {
        let is_granted = self.waiters.borrow().iter().any(|waiter| waiter.who == *who && waiter.is_granted);
        if is_granted {
            self.leave(who);
        }
    }
}

/// The place of the one that comes before all others.
fn first<K>(waiters: &[Waiter<K>]) -> Option<usize> {
    let waiting = waiters.iter().enumerate().filter(|(_, waiter)| !waiter.is_granted);
    waiting.min_by_key(|(place, waiter)| (waiter.granted, *place)).map(|(place, _)| place)
}

/// A connection that waits.
#[derive(Clone)]
pub struct Reader {
    me: Rc<()>,
    wake: Notify,
}

impl PartialEq for Reader {
    fn eq(&self, other: &Reader) -> bool {
        Rc::ptr_eq(&self.me, &other.me)
    }
}

/// What one connection holds of a budget. Dropped, it gives all back.
pub struct Share {
    budget: Rc<Budget<Reader>>,
    me: Reader,
    free: usize,
    held: Cell<usize>,
    /// The part of it that was granted.
    granted: Cell<usize>,
}

impl Share {
    /// For a connection that is told by `wake` when it was granted what it waits for. It may hold `free` bytes
    /// without asking.
    pub fn new(budget: Rc<Budget<Reader>>, wake: Notify, free: usize) -> Share {
        let me = Reader { me: Rc::new(()), wake };
        Share { budget, me, free, held: Cell::new(0), granted: Cell::new(0) }
    }

    /// Bytes that it holds.
    pub fn held(&self) -> usize {
        self.held.get()
    }

    /// Whether it holds more than it was free to.
    pub fn was_granted(&self) -> bool {
        self.granted.get() > 0
    }

    /// Bytes that it may add without asking.
    pub fn free(&self) -> usize {
        self.free.saturating_sub(self.held.get())
    }

    /// It holds so many bytes now, all of which it was free to add or was granted.
    pub fn set(&self, held: usize) {
        self.budget.used.set(self.budget.used.get() + held - self.held.get());
        self.held.set(held);
        let spare = self.granted.get().saturating_sub(held.saturating_sub(self.free));
        if spare > 0 {
            // Counted as used until now, and no longer so above.
            self.granted.set(self.granted.get() - spare);
            self.budget.granted.set(self.budget.granted.get() - spare);
        }
        self.wake_others();
    }

    fn wake_others(&self) {
        while let Some(reader) = self.budget.next() {
            reader.wake.notify();
        }
    }

    /// Asks for `more` bytes; they are held if so. Otherwise it is woken when they are there. `rest` of what it
    /// holds it keeps meanwhile, whatever else it gives back.
    pub fn grow(&self, rest: usize, more: usize) -> bool {
        if more <= self.free() {
            self.withdraw();
            self.set(self.held.get() + more);
            return true;
        }
        let kept = rest.saturating_sub(self.free).min(self.granted.get());
        if !self.budget.take_more(&self.me, self.granted.get() - kept, kept, more) {
            self.wake_others();
            return false;
        }
        self.held.set(self.held.get() + more);
        self.granted.set(self.granted.get() + more);
        // What is free needs not be granted.
        self.set(self.held.get());
        true
    }

    /// It can do with what it is free to add: whoever waits comes before.
    pub fn withdraw(&self) {
        self.budget.leave(&self.me);
        self.wake_others();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.leave(&self.me);
        self.set(0); // and wakes others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: usize = 10;

    fn share(budget: &Rc<Budget<Reader>>) -> Share {
        Share::new(budget.clone(), Notify::new(), FREE)
    }

    #[test]
    fn what_is_free_is_never_refused_and_what_is_not_waits_for_the_limit() {
        let budget = Rc::new(Budget::new(100));
        let (a, b, c) = (share(&budget), share(&budget), share(&budget));
        assert!(a.grow(0, 10) && a.grow(0, 80) && b.grow(0, 10));
        assert_eq!(budget.used(), 100);
        assert!(!b.grow(0, 1) && budget.is_short());
        assert!(c.grow(0, 10), "free");
        assert!(!c.grow(0, 20));
        a.set(80);
        assert_eq!(budget.used(), 100, "less is held than the limit only with what was free");
        a.set(60);
        assert!(b.grow(0, 1) && budget.is_short() && !c.grow(0, 20));
        drop(a);
        assert!(c.grow(0, 20) && !budget.is_short());
        drop((b, c));
        assert_eq!((budget.used(), budget.granted.get()), (0, 0));
    }

    #[test]
    fn the_largest_has_its_turn_alone_and_whoever_was_granted_least_goes_first() {
        let budget = Rc::new(Budget::new(100));
        let all: Vec<Share> = (0..4).map(|_| share(&budget)).collect();
        assert!(all[0].grow(0, 1_000), "alone, it may take more than there is");
        assert!(all[1].grow(0, 8) && all[2].grow(0, 4));
        assert!(!all[1].grow(0, 500) && !all[2].grow(0, 30) && !all[3].grow(0, 30));
        all[0].set(FREE);
        assert!(!all[3].grow(0, 30), "it would overtake");
        assert!(all[1].grow(0, 500), "it came first");
        all[1].set(0);
        assert!(all[3].grow(0, 30) && all[2].grow(0, 30), "they were granted theirs at once");
        assert!(!all[2].grow(0, 60) && !all[3].grow(0, 60));
        all[0].set(0);
        all[2].set(FREE);
        assert!(all[3].grow(0, 60) && !all[2].grow(0, 60), "it had been granted less when it asked");
    }

    /// Each had been granted room for small requests, and the last of those turned out to begin a large one. All
    /// waited for ever, since none was alone.
    #[test]
    fn those_that_keep_a_beginning_do_not_wait_for_each_other() {
        let budget = Rc::new(Budget::new(100));
        let all: Vec<Share> = (0..3).map(|_| share(&budget)).collect();
        all.iter().for_each(|share| assert!(share.grow(0, FREE + 5)));
        all.iter().for_each(|share| share.set(FREE + 2));
        assert!(!all[0].grow(FREE + 2, 500), "others may give theirs back");
        assert!(!all[1].grow(FREE + 2, 500) && !all[2].grow(FREE + 2, 500));
        assert!(all[0].grow(FREE + 2, 500), "none does");
        all[0].set(FREE + 2);
        assert!(!all[1].grow(FREE + 2, 500), "the first may be reading small ones: it does not wait");
        all[0].set(FREE);
        assert!(all[1].grow(FREE + 2, 500));
        all[1].set(0);
        assert!(all[2].grow(FREE + 2, 500));
    }

    #[test]
    fn whoever_does_without_is_passed_over() {
        let budget = Rc::new(Budget::new(100));
        let (a, b, c) = (share(&budget), share(&budget), share(&budget));
        assert!(a.grow(0, 90) && !b.grow(0, 60) && !c.grow(0, 70));
        b.withdraw();
        a.set(0);
        assert!(c.grow(0, 70) && !b.grow(0, 60));
        c.set(0);
        assert_eq!(budget.used(), 60, "granted, and not fetched");
        b.withdraw();
        assert_eq!((budget.used(), budget.granted.get()), (0, 0));
    }

    #[test]
    fn what_is_granted_and_not_fetched_is_given_back() {
        let budget = Budget::new(100);
        assert!(budget.take(&1, 100) && !budget.take(&2, 60) && !budget.take(&3, 50));
        budget.give_back(100);
        assert_eq!((budget.next(), budget.next()), (Some(2), None));
        budget.leave_if_granted(&3);
        assert!(budget.is_short());
        budget.leave_if_granted(&2);
        assert_eq!((budget.next(), budget.used()), (Some(3), 50));
        assert!(budget.take(&3, 20), "it needs less by now");
        assert_eq!(budget.used(), 20);
        assert!(!budget.take(&4, 90));
        budget.leave(&4);
        assert_eq!((budget.next(), budget.used()), (None, 20));
    }

    /// Connections of many kinds come, wait, hold and go: the bound holds and everyone's turn comes.
    #[test]
    fn random_shares_keep_the_bound_and_all_get_what_they_want() {
        const LIMIT: usize = 1_000;
        const LARGEST: usize = 1_600;
        /// What it keeps while it waits, and what it wants.
        type Wanted = Option<(usize, usize)>;
        let seed = std::env::var("ATLASKV_TEST_SEED")
            .map_or_else(|_| fastrand::u64(..1 << 32), |text| text.parse().expect("a number"));
        println!("to repeat: ATLASKV_TEST_SEED={seed} cargo test --lib shard::budget");
        let mut rng = fastrand::Rng::with_seed(seed);
        let budget = Rc::new(Budget::new(LIMIT));
        let mut shares: Vec<(Share, Wanted, u64)> = (0..40).map(|_| (share(&budget), None, 0)).collect();
        let (mut grants, mut longest) = (0u64, 0);
        for round in 0..200_000u64 {
            let at = rng.usize(..shares.len());
            let (share, wanted, since) = &mut shares[at];
            match *wanted {
                Some((kept, more)) => {
                    if share.grow(kept, more) {
                        grants += 1;
                        longest = longest.max(round - *since);
                        *wanted = None;
                    } else if rng.bool() {
                        // What it has in flight is answered all the while.
                        share.set(kept.max(share.held() / 2));
                    }
                }
                // What it holds is answered in part or in whole.
                None if share.held() > 0 && rng.bool() => share.set(rng.usize(..=share.held() / 2)),
                None => {
                    let more = [rng.usize(1..20), rng.usize(1..400), rng.usize(1..LARGEST)][rng.usize(..3)];
                    let kept = rng.usize(..=share.held().min(2 * FREE));
                    (*wanted, *since) = (Some((kept, more)), round);
                }
            }
            if rng.u32(..500) == 0 {
                shares[at] = (super::tests::share(&budget), None, 0);
            }
            let granted: usize = shares.iter().map(|(share, ..)| share.granted.get()).sum();
            let unfetched: usize = {
                let waiters = budget.waiters.borrow();
                waiters.iter().filter(|waiter| waiter.is_granted).map(|waiter| waiter.need).sum()
            };
            assert_eq!(budget.granted.get(), granted + unfetched, "seed {seed}, round {round}");
            let held: usize = shares.iter().map(|(share, ..)| share.held()).sum();
            assert_eq!(budget.used(), held + unfetched, "seed {seed}, round {round}");
            assert!(budget.granted.get() <= LARGEST + LIMIT, "seed {seed}, round {round}");
        }
        assert!(grants > 500, "seed {seed}: {grants} grants");
        assert!(longest < 40_000, "seed {seed}: somebody waited for {longest} rounds");
        shares.clear();
        assert_eq!((budget.used(), budget.granted.get()), (0, 0), "seed {seed}");
    }
}
