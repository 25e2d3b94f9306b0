//! Random commands: how each is made, and how a well-made one is spoiled.

use crate::differential::arguments::Draw;
use crate::wire::Command;

/// A command in the making.
struct Making<'a> {
    draw: &'a mut Draw,
    words: Vec<Vec<u8>>,
}

/// How often a recipe is taken, against the sum of all; and the recipe.
type Recipe = (u32, for<'a, 'b> fn(&'a mut Making<'b>) -> &'a mut Making<'b>);

/// Of commands for strings and keys.
const RECIPES: &[Recipe] = &[
    (60, |m| m.name("GET").key()),
    (80, set),
    (10, |m| m.name("SETNX").key().value()),
    (8, |m| m.name("SETEX").key().ttl(false).value()),
    (8, |m| m.name("PSETEX").key().ttl(true).value()),
    (12, |m| m.name("GETSET").key().value()),
    (12, |m| m.name("GETDEL").key()),
    (25, getex),
    (14, |m| m.name("MGET").keys(5)),
    (14, |m| m.name("MSET").pairs(4)),
    (12, |m| m.name("MSETNX").pairs(3)),
    (30, |m| m.name("APPEND").key().value()),
    (16, |m| m.name("STRLEN").key()),
    (20, |m| m.name("GETRANGE").key().index().index()),
    (6, |m| m.name("SUBSTR").key().index().index()),
    (22, |m| m.name("SETRANGE").key().offset().value()),
    (20, |m| m.name("INCR").key()),
    (16, |m| m.name("DECR").key()),
    (22, |m| m.name("INCRBY").key().integer()),
    (18, |m| m.name("DECRBY").key().integer()),
    (45, |m| m.name("INCRBYFLOAT").key().float()),
    (18, lcs),
    (20, |m| m.name("DEL").keys(3)),
    (8, |m| m.name("UNLINK").keys(3)),
    (14, |m| m.name("EXISTS").keys(4)),
    (6, |m| m.name("TOUCH").keys(4)),
    (6, |m| m.name("TYPE").key()),
    (16, |m| m.name("RENAME").key().key()),
    (12, |m| m.name("RENAMENX").key().key()),
    (20, copy),
    (6, |m| m.name("KEYS").pattern()),
    (8, scan),
    (4, |m| m.name("RANDOMKEY")),
    (6, |m| m.name("DBSIZE")),
    (1, |m| m.name("FLUSHALL").maybe(3, &["SYNC", "ASYNC", "sync", "NOW"])),
    (1, |m| m.name("FLUSHDB").maybe(3, &["SYNC", "ASYNC", "async"])),
    (16, |m| m.name("EXPIRE").key().ttl(false).flags()),
    (16, |m| m.name("PEXPIRE").key().ttl(true).flags()),
    (16, |m| m.name("EXPIREAT").key().expiry(false).flags()),
    (16, |m| m.name("PEXPIREAT").key().expiry(true).flags()),
    (12, |m| m.name("TTL").key()),
    (12, |m| m.name("PTTL").key()),
    (12, |m| m.name("EXPIRETIME").key()),
    (12, |m| m.name("PEXPIRETIME").key()),
    (16, |m| m.name("PERSIST").key()),
    (24, |m| m.name("SETBIT").key().bit_offset().choice(&["0", "1", "0", "1", "1", "2", "-1", "x", ""])),
    (14, |m| m.name("GETBIT").key().bit_offset()),
    (22, bitcount),
    (22, bitpos),
];

/// Of the rest: the connection, the server, and what there is not.
const OTHERS: &[Recipe] = &[
    (6, |m| m.name("PING")),
    (4, |m| m.name("PING").anything()),
    (6, |m| m.name("ECHO").anything()),
    (6, |m| m.name("SELECT").choice(&["0", "0", "1", "-1", "16", "x", ""])),
    (8, hello),
    (3, |m| m.name("AUTH").choice(&["secret", "default", ""]).maybe(2, &["secret", ""])),
    (3, |m| m.name("RESET")),
    (4, |m| m.name("CLIENT").of("SETNAME").choice(&["me", "", "a b", "a\nb", "~!"])),
    (4, |m| m.name("CLIENT").of("GETNAME")),
    (2, |m| m.name("CLIENT").of("ID")),
    (2, |m| m.name("CLIENT").of("INFO")),
    (2, |m| m.name("CLIENT").of("LIST")),
    (2, |m| m.name("CLIENT").of("NO-EVICT").choice(&["on", "OFF", "x"])),
    (2, |m| m.name("CLIENT").of("UNPAUSE")),
    (2, |m| m.name("CLIENT").of("SETINFO").choice(&["LIB-NAME", "lib-ver"]).choice(&["tests", "1.0"])),
    (2, |m| m.name("CLIENT").anything()),
    (2, |m| m.name("COMMAND").of("COUNT")),
    (2, |m| m.name("COMMAND").of("INFO").choice(&["get", "SET", "nothing"])),
    (2, |m| m.name("COMMAND").of("DOCS").choice(&["get", "SET", "nothing"])),
    (3, getkeys),
    (1, |m| m.name("COMMAND").of("LIST")),
    (2, |m| m.name("COMMAND").anything()),
    (3, |m| m.name("INFO").maybe(2, &["server", "clients", "keyspace", "all", "nothing", "everything"])),
    (3, |m| m.name("CONFIG").of("GET").choice(&["maxmemory", "no-such-name", "save", "databases", "no-s*"])),
    (2, |m| m.name("CONFIG").of("SET").choice(&["no-such-name", "save"]).choice(&["1", ""])),
    (1, |m| m.name("CONFIG").of("RESETSTAT")),
    (2, |m| m.name("CONFIG").anything()),
    (4, |m| m.name("OBJECT").choice(&["ENCODING", "FREQ", "IDLETIME", "REFCOUNT", "encoding"]).key()),
    (2, |m| m.name("OBJECT").choice(&["HELP", "NOTHING"]).maybe(2, &["x"])),
    (3, |m| m.name("MEMORY").of("USAGE").key().maybe(4, &["SAMPLES"])),
    (2, |m| m.name("MEMORY").anything()),
    (2, |m| m.name("SLOWLOG").choice(&["LEN", "RESET", "len", "NOTHING", "HELP"])),
    (2, |m| m.name("LATENCY").choice(&["LATEST", "RESET", "NOTHING", "HELP"])),
    (1, |m| m.name("LATENCY").of("HISTORY").choice(&["command", "nothing"])),
    (1, |m| m.name("TIME")),
    (1, |m| m.name("LASTSAVE")),
    (2, |m| m.name("WAIT").choice(&["0"]).choice(&["0", "10"])),
    (2, |m| m.name("CLUSTER").choice(&["INFO", "NODES", "SLOTS", "MYID", "NOTHING"])),
    (1, |m| m.name("READONLY")),
    (1, |m| m.name("ASKING")),
    (8, |m| m.choice(&["GETT", "", "get\0", "HELLOO", "NOTHING", "SETNXX", "\u{fc}"]).anything().anything()),
    (3, |m| m.choice(&["HSET", "LPUSH", "SADD", "ZADD", "XADD", "PFADD"]).key().anything().anything()),
    (2, |m| m.name("EVAL").choice(&["return 1"]).choice(&["0"])),
    (1, |m| m.name("PUBLISH").choice(&["channel"]).anything()),
];

/// Of transactions. What a connection is in the middle of is in [`super::round`].
const TRANSACTIONS: &[Recipe] = &[
    (10, |m| m.name("MULTI")),
    (8, |m| m.name("EXEC")),
    (4, |m| m.name("DISCARD")),
    (8, |m| m.name("WATCH").keys(3)),
    (3, |m| m.name("UNWATCH")),
];

/// One command; its keys have the tag `pinned` if there is one.
pub fn draw(draw: &mut Draw, pinned: Option<usize>) -> Command {
    let recipes = match draw.rng.u32(..100) {
        0..=8 => OTHERS,
        9..=13 => TRANSACTIONS,
        _ => RECIPES,
    };
    draw.begin(pinned);
    let mut command = make(draw, recipes);
    if draw.one_in(14) {
        spoil(draw, &mut command);
    }
    if draw.one_in(5) {
        other_case(draw, &mut command);
    }
    command
}

/// A command without arguments of a transaction's.
pub fn plain(name: &str) -> Command {
    Command::line(name)
}

fn make(draw: &mut Draw, recipes: &[Recipe]) -> Command {
    let sum: u32 = recipes.iter().map(|(weight, _)| weight).sum();
    let mut left = draw.rng.u32(..sum);
    let recipe = recipes.iter().find(|(weight, _)| {
        let found = left < *weight;
        left = left.saturating_sub(*weight);
        found
    });
    let (_, recipe) = recipe.expect("less than the sum of all weights is drawn");
    let mut making = Making { draw, words: Vec::new() };
    recipe(&mut making);
    Command(making.words)
}

/// Makes one thing about it wrong, or at least unusual.
fn spoil(draw: &mut Draw, command: &mut Command) {
    let words = &mut command.0;
    let at = draw.rng.usize(..words.len());
    match draw.rng.u32(..6) {
        0 if words.len() > 1 => {
            words.pop();
        }
        1 if at > 0 => {
            words.remove(at);
        }
        2 if at > 0 => words[at] = draw.anything(),
        3 if at > 0 => {
            let word = draw.anything();
            words.insert(at, word);
        }
        4 if words.len() > 1 => words.truncate(1),
        _ => {
            let word = draw.anything();
            words.push(word);
        }
    }
}

/// Names and options are understood in any case.
fn other_case(draw: &mut Draw, command: &mut Command) {
    for word in &mut command.0 {
        if word.len() > 1 && word.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b'-') {
            word.iter_mut().filter(|_| draw.rng.bool()).for_each(|byte| byte.make_ascii_lowercase());
        }
    }
}

impl Making<'_> {
    fn name(&mut self, name: &str) -> &mut Self {
        self.of(name)
    }

    fn of(&mut self, word: &str) -> &mut Self {
        self.words.push(word.as_bytes().to_vec());
        self
    }

    fn push(&mut self, draw: impl FnOnce(&mut Draw) -> Vec<u8>) -> &mut Self {
        let word = draw(self.draw);
        self.words.push(word);
        self
    }

    fn key(&mut self) -> &mut Self {
        self.push(Draw::key)
    }

    fn keys(&mut self, most: usize) -> &mut Self {
        for _ in 0..self.draw.rng.usize(1..=most) {
            self.key();
        }
        self
    }

    fn pairs(&mut self, most: usize) -> &mut Self {
        for _ in 0..self.draw.rng.usize(1..=most) {
            self.key().value();
        }
        self
    }

    fn value(&mut self) -> &mut Self {
        self.push(Draw::value)
    }

    fn integer(&mut self) -> &mut Self {
        self.push(Draw::integer)
    }

    fn float(&mut self) -> &mut Self {
        self.push(Draw::float)
    }

    fn index(&mut self) -> &mut Self {
        self.push(Draw::index)
    }

    fn offset(&mut self) -> &mut Self {
        self.push(Draw::offset)
    }

    fn bit_offset(&mut self) -> &mut Self {
        self.push(Draw::bit_offset)
    }

    fn ttl(&mut self, in_millis: bool) -> &mut Self {
        self.push(|draw| draw.time_to_live(in_millis))
    }

    fn expiry(&mut self, in_millis: bool) -> &mut Self {
        self.push(|draw| draw.expiry_time(in_millis))
    }

    fn pattern(&mut self) -> &mut Self {
        self.push(Draw::pattern)
    }

    fn anything(&mut self) -> &mut Self {
        self.push(Draw::anything)
    }

    fn choice(&mut self, all: &[&str]) -> &mut Self {
        self.push(|draw| draw.word(all))
    }

    /// One of some words, once in `count` times.
    fn maybe(&mut self, count: u32, all: &[&str]) -> &mut Self {
        if self.draw.one_in(count) { self.choice(all) } else { self }
    }

    /// Flags of EXPIRE and its like.
    fn flags(&mut self) -> &mut Self {
        const FLAGS: &[&str] = &["NX", "XX", "GT", "LT"];
        self.maybe(2, FLAGS).maybe(6, FLAGS).maybe(30, FLAGS)
    }

    /// EX, PX, EXAT or PXAT with its time.
    fn expiry_option(&mut self) -> &mut Self {
        let lapsed = self.draw.mood.is_lapsed && self.draw.one_in(4);
        match self.draw.rng.u32(..4) {
            0 => self.of("EX").ttl(false),
            1 => self.of("PX").ttl(true),
            2 if lapsed => self.of("EXAT").push(Draw::past_time),
            _ if lapsed => self.of("PXAT").push(Draw::past_time),
            2 => self.of("EXAT").expiry(false),
            _ => self.of("PXAT").expiry(true),
        }
    }
}

fn set<'a, 'b>(m: &'a mut Making<'b>) -> &'a mut Making<'b> {
    m.name("SET").key().value();
    // Each option at its place in one order; another order sometimes.
    let first = m.words.len();
    m.maybe(5, &["NX", "XX"]).maybe(6, &["GET"]);
    match m.draw.rng.u32(..6) {
        0 | 1 => m.expiry_option(),
        2 => m.of("KEEPTTL"),
        _ => m,
    };
    m.maybe(30, &["NX", "XX", "GET", "KEEPTTL", "PERSIST", "EX", "SYNC", "NOSYNC", "IFEQ"]);
    if m.draw.one_in(60) {
        m.expiry_option();
    }
    if m.draw.one_in(12) {
        let (draw, options) = (&mut *m.draw, &mut m.words[first..]);
        draw.rng.shuffle(options);
    }
    m
}

fn getex<'a, 'b>(m: &'a mut Making<'b>) -> &'a mut Making<'b> {
    m.name("GETEX").key();
    match m.draw.rng.u32(..8) {
        0..=4 => m.expiry_option(),
        5 => m.of("PERSIST"),
        _ => m,
    };
    m.maybe(25, &["PERSIST", "KEEPTTL", "EX", "NX"])
}

fn lcs<'a, 'b>(m: &'a mut Making<'b>) -> &'a mut Making<'b> {
    m.name("LCS").key().key().maybe(3, &["LEN"]).maybe(3, &["IDX"]);
    if m.draw.one_in(4) {
        m.of("MINMATCHLEN").integer();
    }
    m.maybe(5, &["WITHMATCHLEN"])
}

fn copy<'a, 'b>(m: &'a mut Making<'b>) -> &'a mut Making<'b> {
    m.name("COPY").key().key().maybe(2, &["REPLACE"]);
    if m.draw.one_in(8) {
        m.of("DB").choice(&["0", "0", "1", "-1", "x"]);
    }
    m
}

fn scan<'a, 'b>(m: &'a mut Making<'b>) -> &'a mut Making<'b> {
    m.name("SCAN").choice(&["0", "0", "0", "0", "0", "0", "x", "-1", "", "18446744073709551616", "0 "]);
    if m.draw.one_in(2) {
        m.of("MATCH").pattern();
    }
    if m.draw.one_in(2) {
        m.of("COUNT").choice(&["1", "2", "3", "10", "1000", "9223372036854775807", "0", "-1", "x", ""]);
    }
    if m.draw.one_in(3) {
        m.of("TYPE").choice(&["string", "STRING", "list", "nothing", ""]);
    }
    m
}

fn bitcount<'a, 'b>(m: &'a mut Making<'b>) -> &'a mut Making<'b> {
    m.name("BITCOUNT").key();
    if m.draw.one_in(3) {
        return m;
    }
    m.index().index().maybe(2, &["BYTE", "BIT", "BIT", "bits"])
}

fn bitpos<'a, 'b>(m: &'a mut Making<'b>) -> &'a mut Making<'b> {
    m.name("BITPOS").key().choice(&["0", "1", "0", "1", "0", "1", "2", "x", "-1"]);
    for _ in 0..m.draw.rng.u32(..3) {
        m.index();
    }
    m.maybe(3, &["BYTE", "BIT", "BIT", "bits"])
}

fn hello<'a, 'b>(m: &'a mut Making<'b>) -> &'a mut Making<'b> {
    m.name("HELLO").choice(&["2", "3", "3", "4", "1", "0", "-1", "x", ""]);
    if m.draw.one_in(4) {
        m.of("AUTH").choice(&["default", "nobody"]).choice(&["secret", ""]);
    }
    if m.draw.one_in(4) {
        m.of("SETNAME").choice(&["me", "a b", ""]);
    }
    m
}

fn getkeys<'a, 'b>(m: &'a mut Making<'b>) -> &'a mut Making<'b> {
    m.name("COMMAND").of("GETKEYS");
    let commands: [&[&str]; 9] = [
        &["GET", "k"],
        &["mset", "a", "1", "b", "2"],
        &["DEL", "a", "b"],
        &["LCS", "a", "b"],
        &["SET", "k", "v", "EX", "5"],
        &["PING"],
        &["GET"],
        &["nothing", "k"],
        &["OBJECT", "ENCODING", "k"],
    ];
    for word in *m.draw.of(&commands) {
        m.of(word);
    }
    m
}
