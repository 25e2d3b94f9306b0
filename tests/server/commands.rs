//! What each operation answers, at its limits and beside them, from one shard and from two.

use std::io::Write;

use atlaskv::base::Lsn;
use atlaskv::client::{Batch, Client, Condition, Config, Error, Options, Outcome};
use atlaskv::error::Code;
use atlaskv::protocol::binary::{KeyList, OpList};
use atlaskv::protocol::{Durability, HelloRequest, Request};
use atlaskv::slot::Slot;

use crate::harness::{Server, connect, disk_dir};
use crate::raw::{Raw, frame, set};

const VALUE_BYTES_MAX: usize = 2 << 20;
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Runs `test` on a server with one shard, and on one with two.
fn on_one_and_two_shards(test: impl Fn(&Server)) {
    for cores in ["1", "2"] {
        println!("--cores {cores}");
        let dir = disk_dir();
        let arguments =
            ["--cores", cores, "--oversubscribe", "--memory", "128MiB", "--max-value-size", "2MiB"];
        let server = Server::start(dir.path(), &arguments);
        assert_eq!(server.shards.to_string(), cores);
        test(&server);
        let (status, log) = server.stop();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
    }
}

/// Raw connections, one on each shard.
fn raw_on_each(server: &Server) -> Vec<Raw> {
    let on = |shard: u16| {
        let mut raw = Raw::connect(server.address);
        assert_eq!(raw.hello(1, Some(shard)).unwrap().shard, Some(shard));
        raw
    };
    (0..server.shards as u16).map(on).collect()
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> Code {
    match result {
        Err(Error::Refused(refusal)) => refusal.code,
        other => panic!("not refused: {other:?}"),
    }
}

fn value(client: &mut Client, key: &[u8]) -> Option<Vec<u8>> {
    client.get(key).unwrap().map(|found| found.value)
}

fn when(condition: Condition) -> Options {
    Options { condition, ..Options::default() }
}

#[test]
fn hello_tells_limits_and_who_owns_what() {
    on_one_and_two_shards(|server| {
        let client = connect(server);
        let hello = client.topology();
        assert_eq!((hello.version, usize::from(hello.shard_count)), (1, server.shards));
        let limits = hello.limits;
        assert_eq!(limits.key_bytes_max, 65_535);
        assert_eq!(limits.value_bytes_max as usize, VALUE_BYTES_MAX);
        assert_eq!(limits.batch_bytes_max as usize, BATCH_BYTES_MAX);
        assert_eq!(limits.items_max, 65_535);
        assert!(limits.frame_bytes_max as usize >= 40 + 65_535 + VALUE_BYTES_MAX);
        assert!(limits.pipeline_bytes_max >= 64 << 10);
        let mut next = 0;
        let mut owners = vec![0; server.shards];
        for range in &hello.ranges {
            assert_eq!(u32::from(range.slots.first()), next, "no slot is left out, none is owned twice");
            next = u32::from(range.slots.last()) + 1;
            owners[usize::from(range.shard)] += u32::from(range.slots.count());
        }
        assert_eq!(next, 16_384);
        assert!(owners.iter().all(|slots| *slots as usize == 16_384 / server.shards), "{owners:?}");
        for (at, raw) in raw_on_each(server).iter_mut().enumerate() {
            let hello = |version_min, version_max, shard| {
                Request::Hello(HelloRequest { version_min, version_max, shard })
            };
            assert_eq!(raw.ask(2, &hello(2, 9, None)).unwrap().refusal(), Some(Code::UnsupportedVersion));
            let none_such = Some(server.shards as u16);
            assert_eq!(raw.ask(3, &hello(1, 1, none_such)).unwrap().refusal(), Some(Code::NoSuchShard));
            assert_eq!(raw.ask(4, &hello(0, 255, None)).unwrap().shard, Some(at as u16));
        }
    });
}

#[test]
fn conditions_decide_and_versions_grow() {
    on_one_and_two_shards(|server| {
        let mut client = connect(server);
        for at in 0..32 {
            let key = format!("condition {at}").into_bytes();
            let failed = |current| Outcome::ConditionFailed { current };
            let mut last = Lsn::ZERO;
            let mut written = |outcome| match outcome {
                Outcome::Written { version } => {
                    assert!(version > last, "{version} is not above {last}");
                    last = version;
                    version
                }
                other => panic!("{other:?}"),
            };
            let mut set = |value: &[u8], condition| client.set_with(&key, value, when(condition)).unwrap();
            assert_eq!(set(b"0", Condition::IfPresent), failed(None));
            assert_eq!(set(b"0", Condition::IfVersion(Lsn(1))), failed(None));
            let first = written(set(b"1", Condition::IfAbsent));
            assert_eq!(set(b"2", Condition::IfAbsent), failed(Some(first)));
            let second = written(set(b"2", Condition::IfPresent));
            assert_eq!(set(b"3", Condition::IfVersion(first)), failed(Some(second)));
            assert_eq!(set(b"3", Condition::IfVersion(Lsn(second.0 + 1))), failed(Some(second)));
            let third = written(set(b"3", Condition::IfVersion(second)));
            assert_eq!(client.get(&key).unwrap().unwrap().version, third);

            let mut delete = |condition| client.delete_with(&key, when(condition)).unwrap();
            assert_eq!(delete(Condition::IfVersion(second)), failed(Some(third)));
            written(delete(Condition::IfVersion(third)));
            assert_eq!(delete(Condition::IfVersion(third)), failed(None));
            assert_eq!(delete(Condition::IfPresent), failed(None));
            assert_eq!(delete(Condition::None), Outcome::Absent);
            assert_eq!(value(&mut client, &key), None);
            // A deleted key is an absent one, and remembers how far its versions were.
            let set = |client: &mut Client, value: &[u8], condition| {
                client.set_with(&key, value, when(condition)).unwrap()
            };
            assert_eq!(set(&mut client, b"4", Condition::IfVersion(third)), failed(None));
            written(set(&mut client, b"4", Condition::IfAbsent));
            written(client.delete_with(&key, when(Condition::IfPresent)).unwrap());
            assert_eq!(value(&mut client, &key), None);
            assert_eq!(
                code(client.delete_with(&key, when(Condition::IfAbsent))),
                Code::InvalidOption,
                "there is nothing to delete"
            );
        }
    });
}

#[test]
fn sums_stay_within_64_bits_and_refusals_change_nothing() {
    on_one_and_two_shards(|server| {
        let mut client = connect(server);
        for at in 0..8 {
            let key = format!("sum {at}").into_bytes();
            let mut incr = |amount| client.incr(&key, amount).map(|counter| counter.value);
            assert_eq!(incr(0).unwrap(), 0, "an absent key counts as 0");
            assert_eq!(incr(i64::MAX).unwrap(), i64::MAX);
            assert_eq!(code(incr(1)), Code::IncrementOverflow);
            assert_eq!(code(incr(i64::MAX)), Code::IncrementOverflow);
            assert_eq!(incr(i64::MIN).unwrap(), -1);
            assert_eq!(incr(i64::MIN + 1).unwrap(), i64::MIN);
            assert_eq!(code(incr(-1)), Code::IncrementOverflow);
            let found = client.get(&key).unwrap().unwrap();
            assert_eq!(found.value, b"-9223372036854775808");
            let counter = client.incr(&key, 1).unwrap();
            assert!(counter.version > found.version);
            assert_eq!(client.get(&key).unwrap().unwrap().version, counter.version);
            for text in ["", " 1", "1 ", "+1", "01", "-0", "1.0", "0x1", "nine", "9223372036854775808", "\0"]
            {
                let version = client.set(&key, text.as_bytes()).unwrap();
                assert_eq!(code(client.incr(&key, 1)), Code::NotAnInteger, "{text:?}");
                let found = client.get(&key).unwrap().unwrap();
                assert_eq!((&found.value[..], found.version), (text.as_bytes(), version), "{text:?}");
            }
            client.set(&key, b"-9223372036854775808").unwrap();
            assert_eq!(client.incr(&key, i64::MAX).unwrap().value, -1);
            client.delete(&key).unwrap();
            assert_eq!(client.incr(&key, -7).unwrap().value, -7, "a deleted key counts as 0");
        }
    });
}

#[test]
fn mget_answers_in_order_whoever_owns_the_keys() {
    on_one_and_two_shards(|server| {
        // One connection for all keys has the server divide and gather; one a shard has the client.
        for is_shard_aware in [false, true] {
            let config = Config { is_shard_aware, ..Config::new(&server.address.to_string()) };
            let mut client = Client::connect(config).unwrap();
            let key = |at: usize| format!("mget {is_shard_aware} {at}").into_bytes();
            let mut expected = Vec::new();
            for at in 0..200 {
                // Some are empty, some were deleted, some never written.
                let value = vec![b'v'; at % 7 * 10];
                let version = (at % 5 > 0).then(|| client.set(&key(at), &value).unwrap());
                let is_there = version.is_some() && (at % 11 > 0 || !client.delete(&key(at)).unwrap());
                expected.push(version.filter(|_| is_there).map(|version| (value, version)));
            }
            // Each twice, not in the order of anything.
            let places: Vec<usize> = (0..400).map(|at| at * 77 % 200).collect();
            let keys: Vec<_> = places.iter().map(|at| key(*at)).collect();
            let found = client.mget(&keys).unwrap();
            for (place, found) in places.iter().zip(found) {
                let found = found.map(|found| (found.value, found.version));
                assert_eq!(found, expected[*place], "key {place}");
            }
            assert_eq!(client.mget::<&[u8]>(&[]).unwrap(), []);
        }
        for raw in &mut raw_on_each(server) {
            let mut keys = KeyList::default();
            (0..65_535u32).for_each(|at| keys.push(&at.to_le_bytes()));
            let answer = raw.ask(5, &Request::Mget { keys: keys.keys() }).unwrap();
            assert_eq!((answer.refusal(), answer.values.len()), (None, 65_535));
            keys.push(b"one more");
            let answer = raw.ask(6, &Request::Mget { keys: keys.keys() }).unwrap();
            assert_eq!((answer.id, answer.refusal()), (6, Some(Code::BatchTooLarge)));
            let answer = raw.ask(7, &Request::Mget { keys: KeyList::default().keys() }).unwrap();
            assert_eq!((answer.id, answer.refusal()), (7, Some(Code::Malformed)));
        }
    });
}

#[test]
fn a_batch_is_applied_whole_and_in_order() {
    on_one_and_two_shards(|server| {
        let mut client = connect(server);
        for tag in 0..32 {
            let key = |name: &str| format!("{name}{{batch {tag}}}").into_bytes();
            client.set(&key("old"), b"old").unwrap();
            let mut batch = Batch::new();
            batch.put(&key("a"), b"first").unwrap().put(&key("b"), b"").unwrap();
            batch.delete(&key("old")).unwrap().delete(&key("never")).unwrap();
            // The last one on a key wins.
            batch.put(&key("a"), b"second").unwrap().put(&key("c"), b"c").unwrap();
            batch.delete(&key("c")).unwrap();
            let Outcome::Written { version: first } = client.batch(&batch).unwrap() else {
                panic!("no condition")
            };
            let a = client.get(&key("a")).unwrap().unwrap();
            assert_eq!((&a.value[..], a.version), (&b"second"[..], Lsn(first.0 + 4)));
            let b = client.get(&key("b")).unwrap().unwrap();
            assert_eq!((&b.value[..], b.version), (&b""[..], Lsn(first.0 + 1)));
            let absent = [key("old"), key("never"), key("c")];
            assert_eq!(client.mget(&absent).unwrap(), [None, None, None]);
        }
    });
}

#[test]
fn a_batch_that_is_refused_changes_nothing() {
    on_one_and_two_shards(|server| {
        let mut client = connect(server);
        for (at, raw) in raw_on_each(server).iter_mut().enumerate() {
            let key = |name: &str| format!("{{refused {at}}}{name}").into_bytes();
            let batch = |list: &OpList| {
                frame(9, &Request::Batch { ops: list.ops(), durability: Durability::Default })
            };
            let mut refused = |bytes: &[u8], why| {
                raw.stream.write_all(bytes).unwrap();
                let answer = raw.answer().unwrap();
                assert_eq!((answer.id, answer.refusal()), (9, Some(why)));
            };
            let mut list = OpList::default();
            refused(&batch(&list), Code::Malformed);
            // The last key is in another slot: one next to it, of another tablet, of the other shard.
            let home = Slot::of_key(&key("")).number();
            for distance in [1, 2_000, 8_192] {
                let is_there =
                    |other: &String| Slot::of_key(other.as_bytes()).number().abs_diff(home) == distance;
                let other = (0..).map(|n| format!("other {n}")).find(is_there).expect("one in 16384 is");
                list.clear();
                list.put(&key("x"), b"1");
                list.delete(&key("y"));
                list.put(other.as_bytes(), b"1");
                refused(&batch(&list), Code::CrossSlot);
                assert_eq!(client.mget(&[key("x"), other.into_bytes()]).unwrap(), [None, None]);
            }
            // Too many, though few in bytes.
            list.clear();
            list.put(b"k", b"1");
            (1..65_536).for_each(|_| list.delete(b"k"));
            assert!(list.bytes() < BATCH_BYTES_MAX);
            refused(&batch(&list), Code::BatchTooLarge);
            assert_eq!(value(&mut client, b"k"), None);
            // The last key's bytes are called a part of its value, so that it is empty.
            list.clear();
            list.put(&key("x"), b"1");
            list.put(&key("y"), b"1");
            let mut bytes = batch(&list);
            let last = bytes.len() - 8 - key("y").len() - 1;
            bytes[last + 2..last + 4].fill(0);
            bytes[last + 4..last + 8].copy_from_slice(&(key("y").len() as u32 + 1).to_le_bytes());
            refused(&bytes, Code::Malformed);
            assert_eq!(value(&mut client, &key("x")), None);
        }
    });
}

#[test]
fn a_batch_may_be_of_exactly_the_largest_size() {
    on_one_and_two_shards(|server| {
        let mut client = connect(server);
        for (at, raw) in raw_on_each(server).iter_mut().enumerate() {
            let small = format!("small{{{at}}}").into_bytes();
            let large = format!("large{{{at}}}").into_bytes();
            let mut ask = |bytes: usize| {
                let mut list = OpList::default();
                list.put(&small, b"small");
                // Each operation has 8 bytes before its key.
                let rest = bytes - list.bytes() - 8 - large.len();
                list.put(&large, &vec![b'x'; rest]);
                assert_eq!(list.bytes(), bytes);
                let request = Request::Batch { ops: list.ops(), durability: Durability::Default };
                (raw.ask(bytes as u64, &request).unwrap().refusal(), rest)
            };
            assert_eq!(ask(BATCH_BYTES_MAX + 1).0, Some(Code::BatchTooLarge));
            assert_eq!(client.mget(&[&small, &large]).unwrap(), [None, None]);
            let (refusal, rest) = ask(BATCH_BYTES_MAX);
            assert_eq!(refusal, None);
            assert_eq!(value(&mut client, &large).map(|value| value.len()), Some(rest));
            assert_eq!(value(&mut client, &small), Some(b"small".to_vec()));
            // And of the largest number of operations.
            let key = [at as u8 + 1];
            let mut list = OpList::default();
            (0..65_534).for_each(|_| list.delete(&key));
            list.put(&key, b"last");
            let request = Request::Batch { ops: list.ops(), durability: Durability::Default };
            let first = raw.ask(1, &request).unwrap().version;
            let found = client.get(&key).unwrap().unwrap();
            assert_eq!((&found.value[..], found.version), (&b"last"[..], Lsn(first.0 + 65_534)));
        }
    });
}

#[test]
fn values_and_keys_may_be_as_long_as_hello_says_and_no_longer() {
    on_one_and_two_shards(|server| {
        let mut client = connect(server);
        for (at, raw) in raw_on_each(server).iter_mut().enumerate() {
            // On each shard, whichever shard the connection is on.
            for number in 0..4 {
                let key = format!("size {at} {number}").into_bytes();
                let largest = vec![b'a' + number; VALUE_BYTES_MAX];
                assert_eq!(raw.set(2, &key, &largest).unwrap().refusal(), None);
                let too_large = vec![b'z'; VALUE_BYTES_MAX + 1];
                assert_eq!(raw.set(3, &key, &too_large).unwrap().refusal(), Some(Code::ValueTooLarge));
                assert!(raw.get(4, &key).unwrap().values == [largest.as_slice()]);
                assert_eq!(code(client.set(&key, &too_large)), Code::ValueTooLarge);
                assert_eq!(value(&mut client, &key).map(|value| value == largest), Some(true));

                let mut key = vec![b'0' + number; 65_535];
                key[0] = at as u8;
                assert_eq!(raw.set(5, &key, b"long").unwrap().refusal(), None);
                assert_eq!(value(&mut client, &key), Some(b"long".to_vec()));
                assert_eq!(client.mget(&[&key]).unwrap()[0].as_ref().unwrap().value, b"long");
                assert!(client.delete(&key).unwrap());
                // The protocol has 16 bits for it, so nobody can ask for more; the client says so.
                key.push(b'k');
                assert_eq!(code(client.set(&key, b"")), Code::InvalidKey);
                assert_eq!(code(client.get(&key)), Code::InvalidKey);
                assert_eq!(code(client.mget(&[&key])), Code::InvalidKey);
                assert_eq!(code(Batch::new().put(&key, b"").map(|_| ())), Code::InvalidKey);
            }
            for request in [Request::Get { key: b"" }, set(b"", b"value")] {
                assert_eq!(raw.ask(6, &request).unwrap().refusal(), Some(Code::InvalidKey));
            }
            let payload = vec![0; VALUE_BYTES_MAX + 1];
            let answer = raw.ask(7, &Request::Ping { payload: &payload }).unwrap();
            assert_eq!(answer.refusal(), Some(Code::ValueTooLarge));
            let answer = raw.ask(8, &Request::Ping { payload: &payload[1..] }).unwrap();
            assert_eq!(answer.refusal(), None);
        }
    });
}

#[test]
fn an_expiry_that_no_flag_announces_is_refused() {
    on_one_and_two_shards(|server| {
        let mut client = connect(server);
        for raw in &mut raw_on_each(server) {
            for number in 0..4 {
                let key = format!("mortal {number}").into_bytes();
                let (durability, condition) = (Durability::Default, Condition::None);
                let requests = [
                    set(&key, b"value"),
                    Request::Delete { key: &key, condition, durability },
                    Request::Incr { key: &key, amount: 1, durability },
                    Request::Get { key: &key },
                ];
                for (id, request) in requests.iter().enumerate() {
                    let mut bytes = frame(id as u64, request);
                    bytes[32..40].copy_from_slice(&(1u64 << (number * 16)).to_le_bytes());
                    raw.stream.write_all(&bytes).unwrap();
                    let answer = raw.answer().unwrap();
                    assert!(answer.id == id as u64 && answer.refusal().is_some(), "{:?}", answer.refusal());
                }
                assert_eq!(value(&mut client, &key), None);
            }
            raw.ping(5).unwrap();
        }
    });
}

#[test]
fn stats_add_up() {
    on_one_and_two_shards(|server| {
        let mut client = connect(server);
        for at in 0..100 {
            let key = format!("stats {at}").into_bytes();
            client.set(&key, b"value").unwrap();
            client.get(&key).unwrap();
            client.get(b"none such").unwrap();
            client.incr(format!("sum {at}").as_bytes(), 1).unwrap();
        }
        let figure = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.map(|value| value.parse::<u64>().unwrap())
        };
        let everything = client.stats("").unwrap();
        let total = client.stats("total").unwrap();
        let shards = client.stats("shards").unwrap();
        for text in [&everything, &total, &shards] {
            assert_eq!(figure(text, "shards"), Some(server.shards as u64), "{text}");
        }
        for (name, count) in
            [("sets", 100), ("gets", 200), ("get_hits", 100), ("incrs", 100), ("wal_ops", 200)]
        {
            assert_eq!(figure(&total, name), Some(count), "{name}");
            assert_eq!(figure(&everything, name), Some(count), "{name}");
            assert_eq!(figure(&shards, name), None, "{name}");
            let of = |shard| figure(&shards, &format!("shard{shard}.{name}")).expect("each shard has it");
            let each: Vec<u64> = (0..server.shards).map(of).collect();
            assert_eq!(each.iter().sum::<u64>(), count, "{name}: {each:?}");
            assert!(each.iter().all(|count| *count > 0), "{name}: {each:?}");
            assert_eq!(figure(&total, &format!("shard0.{name}")), None);
        }
        assert_eq!(code(client.stats("nonsense")), Code::UnknownSection);
    });
}
