//! What a worker counts and times, per kind of operation, second by second.
//!
//! Every operation is recorded once, in the histogram of the current second; at the end of the second
//! that is added to the total and sent off for the progress line. Warm-up seconds are reported but not
//! added.

use hdrhistogram::Histogram;

use crate::mix::OpKind;

pub const SECOND: u64 = 1_000_000_000;

/// Latencies are recorded in nanoseconds between these, to three digits: 147 KiB a histogram.
const LATENCY_MIN: u64 = 1_000;
const LATENCY_MAX: u64 = 60 * SECOND;

pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(LATENCY_MIN, LATENCY_MAX, 3).expect("the bounds and digits are valid")
}

/// Adds, between histograms of equal bounds.
pub fn merge(into: &mut Histogram<u64>, from: &Histogram<u64>) {
    into.add(from).expect("all histograms have the same bounds");
}

/// Counts and times of one kind of operation.
#[derive(Clone)]
pub struct OpRecord {
    /// Replies before the end of the measured window.
    pub ops: u64,
    /// Replies to what was sent in the window that came after its end.
    pub drained: u64,
    /// Refusals among these.
    pub errors: u64,
    /// Keys that were not there.
    pub missing: u64,
    /// Keys asked for; more than `ops` for MGET.
    pub keys: u64,
    /// From the intended send to the reply.
    pub response: Histogram<u64>,
    /// From the real send to the reply; open loop only, they are the same in a closed one.
    pub service: Option<Histogram<u64>>,
}

impl OpRecord {
    fn new(open_loop: bool) -> OpRecord {
        OpRecord {
            ops: 0,
            drained: 0,
            errors: 0,
            missing: 0,
            keys: 0,
            response: histogram(),
            service: open_loop.then(histogram),
        }
    }

    pub fn add(&mut self, other: &OpRecord) {
        self.ops += other.ops;
        self.drained += other.drained;
        self.errors += other.errors;
        self.missing += other.missing;
        self.keys += other.keys;
        merge(&mut self.response, &other.response);
        if let (Some(into), Some(from)) = (&mut self.service, &other.service) {
            merge(into, from);
        }
    }

    fn reset(&mut self) {
        self.ops = 0;
        self.drained = 0;
        self.errors = 0;
        self.missing = 0;
        self.keys = 0;
        self.response.reset();
        if let Some(service) = &mut self.service {
            service.reset();
        }
    }
}

/// What one worker did in one second.
pub struct Second {
    /// Seconds since the start of the measured window; negative while warming up.
    pub number: i64,
    pub ops: u64,
    pub errors: u64,
    pub missing: u64,
    pub response: Histogram<u64>,
}

/// One answered operation.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    pub kind: OpKind,
    pub intended: u64,
    pub sent: u64,
    pub keys: u32,
    pub missing: u32,
    pub refused: bool,
}

/// Samples of what went wrong, for the summary; more than this many are only counted.
const SAMPLES_MAX: usize = 10;

/// Verification failures and their first examples.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub count: u64,
    pub samples: Vec<String>,
}

impl Faults {
    #[cold]
    pub fn note(&mut self, describe: impl FnOnce() -> String) {
        self.count += 1;
        if self.samples.len() < SAMPLES_MAX {
            let text = describe();
            if !self.samples.contains(&text) {
                self.samples.push(text);
            }
        }
    }

    pub fn add(&mut self, other: Faults) {
        self.count += other.count;
        for text in other.samples {
            if self.samples.len() < SAMPLES_MAX && !self.samples.contains(&text) {
                self.samples.push(text);
            }
        }
    }
}

/// The record of one worker over one phase.
pub struct Recorder {
    /// The measured window, in nanoseconds of the run's clock. `until` moves forward when the run is
    /// cut short.
    pub from: u64,
    pub until: u64,
    total: [Option<OpRecord>; OpKind::COUNT],
    current: [Option<OpRecord>; OpKind::COUNT],
    second_end: u64,
    /// Refusals by the server.
    pub refusals: Faults,
    /// Reads whose value was wrong, or gone though nobody deleted it.
    pub mismatches: Faults,
    /// Sends intended in the window.
    pub scheduled: u64,
    /// Of these, how many were sent more than a millisecond late.
    pub late: u64,
    /// When the last reply came.
    pub last_reply: u64,
    /// Requests that were not answered when draining was given up.
    pub unanswered: u64,
}

impl Recorder {
    /// For the kinds that `used` names; `first_second` is when the phase begins, warm-up included.
    pub fn new(
        begin: u64,
        from: u64,
        until: u64,
        open_loop: bool,
        used: impl Fn(OpKind) -> bool,
    ) -> Recorder {
        assert!(begin <= from && from <= until);
        let make = || OpKind::ALL.map(|kind| used(kind).then(|| OpRecord::new(open_loop)));
        // The first boundary that is whole seconds away from `from`.
        let second_end = from - (from - begin) / SECOND * SECOND;
        let second_end = if second_end == begin { begin + SECOND } else { second_end };
        Recorder {
            from,
            until,
            total: make(),
            current: make(),
            second_end,
            refusals: Faults::default(),
            mismatches: Faults::default(),
            scheduled: 0,
            late: 0,
            last_reply: 0,
            unanswered: 0,
        }
    }

    /// When the current second ends and [`Self::end_second`] wants to be called.
    pub fn second_end(&self) -> u64 {
        self.second_end
    }

    /// Records an answer that came at `now`.
    #[inline]
    pub fn answered(&mut self, answer: Answered, now: u64) {
        debug_assert!(answer.intended <= answer.sent && answer.sent <= now);
        self.last_reply = now;
        let Some(record) = &mut self.current[answer.kind as usize] else {
            unreachable!("operations of this kind are not sent in this phase")
        };
        if now < self.until {
            record.ops += 1;
        } else {
            record.drained += 1;
        }
        record.errors += u64::from(answer.refused);
        record.missing += u64::from(answer.missing);
        record.keys += u64::from(answer.keys);
        record.response.saturating_record(now - answer.intended);
        if let Some(service) = &mut record.service {
            service.saturating_record(now - answer.sent);
        }
    }

    /// Records a request that got no answer by `now`: it took at least that long.
    pub fn gave_up(&mut self, kind: OpKind, intended: u64, now: u64) {
        self.unanswered += 1;
        if let Some(record) = &mut self.current[kind as usize] {
            record.response.saturating_record(now.saturating_sub(intended));
        }
    }

    /// Records that a request was sent.
    #[inline]
    pub fn sent(&mut self, intended: u64, sent: u64) {
        if intended >= self.from {
            self.scheduled += 1;
            self.late += u64::from(sent - intended > 1_000_000);
        }
    }

    /// Ends the current second.
    pub fn end_second(&mut self) -> Second {
        let number = (self.second_end as i64 - self.from as i64) / SECOND as i64 - 1;
        let mut second = Second { number, ops: 0, errors: 0, missing: 0, response: histogram() };
        for (current, total) in self.current.iter_mut().zip(&mut self.total) {
            let (Some(current), Some(total)) = (current, total) else { continue };
            second.ops += current.ops + current.drained;
            second.errors += current.errors;
            second.missing += current.missing;
            merge(&mut second.response, &current.response);
            if number >= 0 {
                total.add(current);
            }
            current.reset();
        }
        self.second_end += SECOND;
        second
    }

    /// The totals, with what the unfinished second holds.
    pub fn finish(mut self) -> (Totals, Recorder) {
        self.end_second();
        let ops = std::mem::take(&mut self.total);
        (Totals { ops }, self)
    }
}

/// Totals per kind of operation.
pub struct Totals {
    pub ops: [Option<OpRecord>; OpKind::COUNT],
}

impl Totals {
    pub fn add(&mut self, other: &Totals) {
        for (into, from) in self.ops.iter_mut().zip(&other.ops) {
            match (into, from) {
                (Some(into), Some(from)) => into.add(from),
                (into, Some(from)) => *into = Some(from.clone()),
                (_, None) => {}
            }
        }
    }

    /// All kinds together.
    pub fn sum(&self) -> Option<OpRecord> {
        let mut records = self.ops.iter().flatten();
        let mut sum = records.next()?.clone();
        records.for_each(|record| sum.add(record));
        Some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(intended: u64, sent: u64) -> Answered {
        Answered { kind: OpKind::Get, intended, sent, keys: 1, missing: 0, refused: false }
    }

    #[test]
    fn warm_up_is_reported_but_not_counted() {
        let ms = 1_000_000;
        let mut recorder = Recorder::new(0, 1_500 * ms, 3_500 * ms, false, |kind| kind == OpKind::Get);
        assert_eq!(recorder.second_end(), 500 * ms);
        recorder.answered(answer(0, 0), ms);
        let first = recorder.end_second();
        assert_eq!((first.number, first.ops), (-2, 1));
        recorder.answered(answer(600 * ms, 600 * ms), 601 * ms);
        assert_eq!(recorder.end_second().number, -1);
        assert_eq!(recorder.second_end(), 2_500 * ms);
        recorder.answered(answer(1_600 * ms, 1_600 * ms), 1_700 * ms);
        recorder.answered(answer(3_400 * ms, 3_400 * ms), 3_600 * ms);
        let (totals, _) = recorder.finish();
        let sum = totals.sum().unwrap();
        assert_eq!((sum.ops, sum.drained, sum.response.len()), (1, 1, 2));
    }

    #[test]
    fn without_warm_up_the_first_second_is_number_0() {
        let mut recorder = Recorder::new(5, 5, SECOND * 10, false, |_| true);
        assert_eq!(recorder.second_end(), SECOND + 5);
        assert_eq!(recorder.end_second().number, 0);
    }
}
