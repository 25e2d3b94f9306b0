//! What holds of every command, whatever its arguments.

use proptest::prelude::*;

use super::{NOW_MS, Redis, words};
use crate::protocol::resp::Proto;
use crate::redis::{Cell, Command, Keyspace, MemoryKeyspace, Meta, evaluate};

/// Stops at the lookup that is one too many.
struct Stopping {
    space: MemoryKeyspace,
    lookups_left: usize,
}

impl Stopping {
    fn look_up(&mut self) -> Result<(), ()> {
        self.lookups_left = self.lookups_left.checked_sub(1).ok_or(())?;
        Ok(())
    }
}

impl Keyspace for Stopping {
    type Stop = ();

    fn now_ms(&self) -> u64 {
        self.space.now_ms()
    }

    fn value_bytes_max(&self) -> usize {
        self.space.value_bytes_max()
    }

    fn get(&mut self, key: &[u8]) -> Result<Option<Cell<'_>>, ()> {
        self.look_up()?;
        Ok(self.space.get(key).unwrap_or_else(|never| match never {}))
    }

    fn peek(&mut self, key: &[u8]) -> Result<Option<Meta>, ()> {
        self.look_up()?;
        Ok(self.space.peek(key).unwrap_or_else(|never| match never {}))
    }

    fn put(&mut self, key: &[u8], value: Vec<u8>, expiry_ms: u64) {
        self.space.put(key, value, expiry_ms);
    }

    fn delete(&mut self, key: &[u8]) {
        self.space.delete(key);
    }
}

const NAMES: &str = "GET SET SETNX SETEX PSETEX GETSET GETDEL GETEX MGET MSET MSETNX APPEND STRLEN GETRANGE \
     SUBSTR SETRANGE INCR DECR INCRBY DECRBY INCRBYFLOAT LCS DEL UNLINK EXISTS TOUCH TYPE RENAME RENAMENX \
     COPY EXPIRE PEXPIRE EXPIREAT PEXPIREAT TTL PTTL EXPIRETIME PEXPIRETIME PERSIST SETBIT GETBIT BITCOUNT \
     BITPOS BITOP BITFIELD BITFIELD_RO OBJECT MEMORY";
const WORDS: &str = "a b c '' 0 1 -1 5 100 -100 9223372036854775807 -9223372036854775808 9223372036854775 1.5 \
     1e30 inf NX XX GT LT EX PX EXAT PXAT KEEPTTL PERSIST GET LEN IDX MINMATCHLEN WITHMATCHLEN REPLACE DB BIT \
     BYTE AND OR XOR NOT SET INCRBY OVERFLOW WRAP SAT FAIL u8 i64 #1 ENCODING REFCOUNT USAGE SAMPLES abcabc";

fn a_command() -> impl Strategy<Value = Vec<&'static [u8]>> {
    let tail = prop::collection::vec(prop::sample::select(words(WORDS)), 0..4);
    // Most commands are of use only with a key first.
    let key = prop::sample::select(words("a b c"));
    (prop::sample::select(words(NAMES)), key.clone(), key, tail, any::<bool>()).prop_map(
        |(name, first, second, tail, has_two)| {
            let keys = if has_two { vec![name, first, second] } else { vec![name, first] };
            keys.into_iter().chain(tail).collect()
        },
    )
}

/// Evaluates with more lookups each time until it is not stopped.
fn evaluate_in_attempts(command: &Command<'_>, space: &MemoryKeyspace) -> (MemoryKeyspace, Vec<u8>) {
    for lookups_left in 0..100 {
        let mut attempt = Stopping { space: space.clone(), lookups_left };
        let mut out = b"before".to_vec();
        if evaluate(command, &mut attempt, Proto::Resp2, &mut out).is_ok() {
            return (attempt.space, out.split_off(b"before".len()));
        }
    }
    panic!("no command looks up that often");
}

proptest! {
    #[test]
    fn a_fault_and_a_read_write_nothing_and_a_stop_leaves_no_trace(
        commands in prop::collection::vec(a_command(), 1..12),
    ) {
        let mut redis = Redis::new();
        for args in commands {
            let Ok(command) = Command::parse(&args) else { continue };
            let (mut space, reply) = evaluate_in_attempts(&command, &redis.space);
            let before = redis.space.writes;
            let at_once = redis.reply_to(&args);
            prop_assert_eq!(&at_once, &reply);
            prop_assert_eq!(redis.space.writes, space.writes);
            let has_written = redis.space.writes != before;
            prop_assert!(!has_written || command.is_write());
            prop_assert!(!has_written || at_once[0] != b'-');
            for key in [&b"a"[..], b"b", b"c"] {
                prop_assert_eq!(redis.space.get(key), space.get(key));
            }
        }
    }

    #[test]
    fn no_bytes_make_a_command_panic(
        name in prop::sample::select(words(NAMES)),
        tail in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 0..6),
    ) {
        let mut redis = Redis { space: MemoryKeyspace::new(NOW_MS), proto: Proto::Resp3 };
        let args: Vec<&[u8]> = [name].into_iter().chain(tail.iter().map(Vec::as_slice)).collect();
        prop_assert!(redis.reply_to(&args).ends_with(b"\r\n"));
    }
}
