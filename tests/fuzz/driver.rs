//! The loop: takes an input, changes it, decodes it, keeps it if something new came of it.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::corpus::{self, Corpus};
use crate::mutate::{Number, Shape, mutate};

/// What came of an input. Equal signatures are taken for the same way through a decoder.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Whether it was decoded to its end.
    pub is_accepted: bool,
    /// Which error, or which kind of value.
    pub kind: u64,
    /// Where it was refused, or how much was read.
    pub at: usize,
    /// How much came of it.
    pub items: usize,
}

/// Decoders that are tried together, with what makes inputs for them.
pub trait Decoder {
    /// By which it is chosen.
    const NAME: &'static str;
    /// Executions of the run within the suite.
    const EXECUTIONS: u64;
    /// How its inputs may be changed.
    const SHAPE: Shape;

    /// Makes an input by the crate's own encoders. Returns whether it has to be accepted.
    fn generate(&mut self, rng: &mut Rng, out: &mut Vec<u8>) -> bool;

    /// Where the format keeps numbers in this input, as far as that can be made out.
    fn numbers(&self, input: &[u8], out: &mut Vec<Number>);

    /// Makes checksums, and lengths of the whole, fit what stands in the input: so that a change gets past them.
    fn repair(&mut self, input: &mut Vec<u8>, rng: &mut Rng);

    /// Decodes an input. Panics if anything is wrong with how that went.
    fn execute(&mut self, input: &[u8]) -> Outcome;
}

/// The letters of a sentence as a number: two refusals differ by what they say, not by the numbers in it.
pub fn letters(text: &str) -> u64 {
    let letters = text.bytes().take(64).filter(u8::is_ascii_alphabetic);
    letters.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What the environment asks for; `main.rs` has the list.
struct Settings {
    executions: Option<u64>,
    decoder: Option<String>,
    seed: Option<u64>,
    input: Option<String>,
    keep: Option<PathBuf>,
}

impl Settings {
    fn read() -> Settings {
        let read = |name: &str| std::env::var(format!("ATLASKV_FUZZ_{name}")).ok();
        let number = |name: &str| {
            read(name).map(|text| {
                text.parse().unwrap_or_else(|_| panic!("ATLASKV_FUZZ_{name} is a number, not {text}"))
            })
        };
        Settings {
            executions: number("EXECUTIONS"),
            decoder: read("DECODER"),
            seed: number("SEED"),
            input: read("INPUT"),
            keep: read("KEEP").map(PathBuf::from),
        }
    }
}

/// Tries one decoder, as the environment says.
pub fn run<D: Decoder>(decoder: D) {
    let settings = Settings::read();
    if settings.decoder.as_ref().is_some_and(|wanted| wanted != D::NAME) {
        return;
    }
    if let Some(text) = settings.input.as_ref().filter(|_| settings.decoder.is_some()) {
        replay(decoder, text);
        return;
    }
    let executions = settings.executions.unwrap_or(D::EXECUTIONS);
    // The suite does the same every time. Long runs are there to meet what it does not.
    let fresh = if settings.executions.is_some() { Rng::new().u64(..1 << 32) } else { 1 };
    let seed = settings.seed.unwrap_or(fresh);
    println!("{}: {executions} executions, {}", D::NAME, command::<D>(seed, executions));
    let progress = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let (ends, ended) = mpsc::channel::<()>();
        scope.spawn(|| watch::<D>(&progress, ended, seed, executions));
        let mut run = Run::new(decoder, seed, executions);
        run.all(&progress);
        if let Some(path) = settings.keep {
            std::fs::write(&path, run.corpus.shortest(16)).unwrap();
        }
        drop(ends);
    });
}

fn command<D: Decoder>(seed: u64, executions: u64) -> String {
    format!(
        "again: ATLASKV_FUZZ_DECODER={} ATLASKV_FUZZ_SEED={seed} ATLASKV_FUZZ_EXECUTIONS={executions} \
         cargo test --test fuzz -- --nocapture",
        D::NAME
    )
}

/// Says how far it is every few seconds, and ends the process once one execution takes half a minute: that is a loop
/// without end.
fn watch<D: Decoder>(progress: &AtomicU64, ended: Receiver<()>, seed: u64, executions: u64) {
    let start = Instant::now();
    let mut last: VecDeque<u64> = VecDeque::from([u64::MAX; 6]);
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(Duration::from_secs(5)) {
        let now = progress.load(Ordering::Relaxed);
        let rate = now as f64 / start.elapsed().as_secs_f64();
        println!("{}: {now} of {executions} executions, {rate:.0} a second", D::NAME);
        if last.iter().all(|before| *before == now) {
            eprintln!("{}: no end to execution {now}; {}", D::NAME, command::<D>(seed, now + 1));
            std::process::abort();
        }
        last.rotate_left(1);
        last[5] = now;
    }
}

/// Decodes one input, given as a line of a corpus or as a file with such lines.
fn replay<D: Decoder>(mut decoder: D, text: &str) {
    let lines = match text.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).unwrap(),
        None => text.to_owned(),
    };
    for input in corpus::parse(&lines) {
        println!("{}: {} bytes: {:?}", D::NAME, input.len(), decoder.execute(&input));
    }
}

/// Executions from one line of progress to the next; also how often an input is made anew.
const ROUND: u64 = 1 << 14;
/// Inputs that are made at first.
const GENERATED: usize = 48;
/// Bits of signatures that were seen.
const SEEN_BITS: u32 = 20;

struct Run<D: Decoder> {
    decoder: D,
    seed: u64,
    executions: u64,
    corpus: Corpus,
    /// By hashes of signatures.
    seen: Vec<u64>,
    input: Vec<u8>,
    numbers: Vec<Number>,
    mutating: Rng,
    /// A stream of its own, so that another way of mutating leaves what is generated as it was.
    generating: Rng,
    accepted: u64,
}

impl<D: Decoder> Run<D> {
    fn new(decoder: D, seed: u64, executions: u64) -> Run<D> {
        Run {
            decoder,
            seed,
            executions,
            corpus: Corpus::of_files(D::NAME),
            seen: vec![0; 1 << (SEEN_BITS - 6)],
            input: Vec::new(),
            numbers: Vec::new(),
            mutating: Rng::with_seed(seed),
            generating: Rng::with_seed(seed ^ 0x6E6E_0000),
            accepted: 0,
        }
    }

    fn all(&mut self, progress: &AtomicU64) {
        let start = Instant::now();
        for at in 0..self.corpus.files() {
            self.input.clone_from(&self.corpus.file(at).to_vec());
            self.attempt(0);
        }
        (0..GENERATED).for_each(|_| self.generate(0));
        for execution in 1..=self.executions {
            if execution % ROUND == 0 {
                self.generate(execution);
            }
            progress.store(execution, Ordering::Relaxed);
            self.change();
            self.attempt(execution);
        }
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{}: {} executions in {seconds:.1} s, {:.0} a second; {} accepted, {} inputs kept",
            D::NAME,
            self.executions,
            self.executions as f64 / seconds,
            self.accepted,
            self.corpus.found()
        );
    }

    /// A fresh input, which is decoded as it is.
    fn generate(&mut self, execution: u64) {
        self.input.clear();
        let must_be_accepted = self.decoder.generate(&mut self.generating, &mut self.input);
        assert!(self.input.len() <= D::SHAPE.bytes_max, "{} bytes were generated", self.input.len());
        self.corpus.add_generated(&self.input, GENERATED);
        let outcome = self.attempt(execution);
        if must_be_accepted && !outcome.is_accepted {
            self.fail(execution, &format!("refused, though an encoder made it: {outcome:?}"));
        }
    }

    /// Makes the next input out of what is known.
    fn change(&mut self) {
        let rng = &mut self.mutating;
        self.input.clear();
        self.input.extend_from_slice(self.corpus.pick(rng));
        // Most often one change or two, seldom many.
        let changes = 1 + (rng.u32(..) | 1 << 5).trailing_zeros();
        for _ in 0..changes {
            self.numbers.clear();
            if rng.bool() {
                self.decoder.numbers(&self.input, &mut self.numbers);
            }
            let other = self.corpus.pick(rng);
            mutate(&mut self.input, &self.numbers, other, D::SHAPE, rng);
        }
        if rng.bool() {
            self.decoder.repair(&mut self.input, rng);
            self.input.truncate(D::SHAPE.bytes_max);
        }
    }

    fn attempt(&mut self, execution: u64) -> Outcome {
        let decoded = catch_unwind(AssertUnwindSafe(|| self.decoder.execute(&self.input)));
        let outcome = decoded.unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned();
            self.fail(execution, &said)
        });
        self.accepted += u64::from(outcome.is_accepted);
        let signature = outcome.kind.wrapping_mul(0x9E37_79B9_7F4A_7C15)
            ^ u64::from(bucket(outcome.at)).wrapping_mul(0xC2B2_AE3D_27D4_EB4F)
            ^ u64::from(bucket(outcome.items)).wrapping_mul(0x1656_67B1_9E37_79F9)
            ^ u64::from(outcome.is_accepted);
        let hash = signature.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - SEEN_BITS);
        let (word, bit) = ((hash >> 6) as usize, 1 << (hash & 63));
        if self.seen[word] & bit == 0 {
            self.seen[word] |= bit;
            self.corpus.add_found(&self.input);
        }
        outcome
    }

    /// Tells of the input, and how to try it again.
    fn fail(&self, execution: u64, what: &str) -> ! {
        let line = corpus::line(&self.input);
        let mut message = format!(
            "{}: execution {execution} of seed {}: {what}\n{}\n",
            D::NAME,
            self.seed,
            command::<D>(self.seed, execution.max(1))
        );
        let path = std::env::temp_dir().join(format!("atlaskv-fuzz-{}-{}", D::NAME, std::process::id()));
        let given = match std::fs::write(&path, format!("{line}\n")) {
            Ok(()) => format!("@{}", path.display()),
            Err(_) => line.clone(),
        };
        let _ = writeln!(
            message,
            "or only this input: ATLASKV_FUZZ_DECODER={} ATLASKV_FUZZ_INPUT={given} cargo test --test fuzz",
            D::NAME
        );
        let _ = write!(message, "which is {} bytes: {line}", self.input.len());
        panic!("{message}");
    }
}

/// Small numbers nearly as they are, large ones by their size.
fn bucket(number: usize) -> u32 {
    if number < 64 {
        number as u32 / 4
    } else {
        let log = number.ilog2();
        16 + log * 2 + (number >> (log - 1) & 1) as u32
    }
}
