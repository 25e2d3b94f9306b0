//! Against a server that speaks enough RESP2.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::{bench, serve, start};

type Data = Arc<Mutex<HashMap<Vec<u8>, Vec<u8>>>>;

/// What the server does to the reply of its `n`th command, counted over all connections.
#[derive(Clone, Copy, PartialEq)]
enum Mischief {
    None,
    /// The value of the `n`th GET has one bit wrong.
    Damage(u64),
    /// The connection of the `n`th command is closed.
    Close(u64),
    /// Every SET is refused.
    Refuse,
}

fn server(mischief: Mischief) -> (SocketAddr, Data) {
    let data = Data::default();
    let count = Arc::new(AtomicU64::new(0));
    let shared = Arc::clone(&data);
    let address = serve(move || {
        let (data, count) = (Arc::clone(&shared), Arc::clone(&count));
        Box::new(move |input, output| {
            let Some((arguments, taken)) = command(input) else { return Some(0) };
            let number = count.fetch_add(1, Ordering::Relaxed);
            if mischief == Mischief::Close(number) {
                return None;
            }
            let damage = matches!(mischief, Mischief::Damage(n) if number >= n);
            execute(&arguments, &data, damage, mischief == Mischief::Refuse, output);
            Some(taken)
        })
    });
    (address, data)
}

fn command(input: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let mut at = 0;
    let number = |at: &mut usize| -> Option<usize> {
        let end = *at + input.get(*at..)?.windows(2).position(|pair| pair == b"\r\n")?;
        let number = std::str::from_utf8(&input[*at + 1..end]).unwrap().parse().unwrap();
        *at = end + 2;
        Some(number)
    };
    let mut arguments = Vec::new();
    for _ in 0..number(&mut at)? {
        let len = number(&mut at)?;
        arguments.push(input.get(at..at + len + 2)?[..len].to_vec());
        at += len + 2;
    }
    Some((arguments, at))
}

fn execute(arguments: &[Vec<u8>], data: &Data, damage: bool, refuse: bool, output: &mut Vec<u8>) {
    let mut data = data.lock().unwrap();
    let bulk = |value: Option<&Vec<u8>>, output: &mut Vec<u8>| match value {
        None => output.extend_from_slice(b"$-1\r\n"),
        Some(value) => {
            output.extend_from_slice(format!("${}\r\n", value.len()).as_bytes());
            let start = output.len();
            output.extend_from_slice(value);
            output[start] ^= u8::from(damage);
            output.extend_from_slice(b"\r\n");
        }
    };
    match (&arguments[0][..], &arguments[1..]) {
        (b"PING", _) => output.extend_from_slice(b"+PONG\r\n"),
        (b"GET", [key]) => bulk(data.get(key), output),
        (b"SET", _) if refuse => output.extend_from_slice(b"-ERR read only\r\n"),
        (b"SET", [key, value]) => {
            data.insert(key.clone(), value.clone());
            output.extend_from_slice(b"+OK\r\n");
        }
        (b"DEL", [key]) => {
            let removed = u8::from(data.remove(key).is_some());
            output.extend_from_slice(format!(":{removed}\r\n").as_bytes());
        }
        (b"INCRBY", [key, by]) => {
            let value = data.entry(key.clone()).or_insert_with(|| b"0".to_vec());
            let parse = |text: &[u8]| std::str::from_utf8(text).unwrap().parse::<i64>().unwrap();
            let sum = parse(value) + parse(by);
            *value = sum.to_string().into_bytes();
            output.extend_from_slice(format!(":{sum}\r\n").as_bytes());
        }
        (b"MGET", keys) => {
            output.extend_from_slice(format!("*{}\r\n", keys.len()).as_bytes());
            keys.iter().for_each(|key| bulk(data.get(key), output));
        }
        (other, _) => panic!("{}", other.escape_ascii()),
    }
}

#[test]
fn loads_measures_and_verifies_every_operation() {
    let (address, data) = server(Mischief::None);
    let run = bench(
        &format!("redis://{address}"),
        "--preload --verify --keys 500 --clients 7 --threads 2 --pipeline 5 --requests 20000 \
         --mix get=50,set=20,incr=10,mget=20 --mget-keys 3",
    );
    assert_eq!(run.code(), 0, "{}", run.errors());
    let json = run.json();
    assert_eq!(json["total"]["ops"], 20_000);
    assert_eq!(json["load"]["keys"], 500);
    assert_eq!(json["mismatches"]["count"], 0);
    assert_eq!(json["per_op"]["get"]["missing"], 0);
    let mget = &json["per_op"]["mget"];
    assert_eq!(mget["keys"].as_u64().unwrap(), 3 * mget["ops"].as_u64().unwrap());
    let counters: i64 = data
        .lock()
        .unwrap()
        .iter()
        .filter(|(key, _)| key.starts_with(b"key:n"))
        .map(|(_, value)| std::str::from_utf8(value).unwrap().parse::<i64>().unwrap())
        .sum();
    assert_eq!(json["per_op"]["incr"]["ops"], counters);
}

#[test]
fn core_workloads_of_ycsb_run_but_for_scans() {
    let (address, data) = server(Mischief::None);
    let target = format!("redis://{address}");
    for workload in ["a", "b", "c", "d", "f"] {
        data.lock().unwrap().clear();
        let run = bench(
            &target,
            &format!(
                "--workload {workload} --preload --verify --keys 300 --clients 4 --pipeline 4 --requests 4000"
            ),
        );
        assert_eq!(run.code(), 0, "{workload}: {}", run.errors());
        let json = run.json();
        assert_eq!(
            (&json["total"]["ops"], &json["total"]["missing"]),
            (&4_000.into(), &0.into()),
            "{workload}"
        );
        let inserts = json["per_op"]["insert"]["ops"].as_u64().unwrap_or(0);
        assert_eq!(data.lock().unwrap().len() as u64, 300 + inserts, "{workload}");
    }
    let run = bench(&target, "--workload e");
    assert_eq!(run.code(), 1);
    assert!(
        run.errors().contains("--workload e is of scans: Redis' protocol has no scan"),
        "{}",
        run.errors()
    );
}

#[test]
fn large_values_pass_in_many_reads_and_writes() {
    let (address, _) = server(Mischief::None);
    let run = bench(
        &format!("redis://{address}"),
        "--preload --verify --keys 8 --clients 2 --pipeline 4 --value-size 1MiB --requests 100 --mix get,set",
    );
    assert_eq!(run.code(), 0, "{}", run.errors());
    assert_eq!(run.json()["total"]["ops"], 100);
}

#[test]
fn a_damaged_value_is_reported_and_the_exit_code_is_1() {
    let (address, _) = server(Mischief::Damage(700));
    let target = format!("redis://{address}");
    let run = bench(&target, "--preload --verify --keys 500 --clients 2 --requests 1000 --mix get");
    assert_eq!(run.code(), 1);
    assert!(run.json()["mismatches"]["count"].as_u64().unwrap() > 0);
    assert!(run.json()["mismatches"]["samples"][0].as_str().unwrap().contains("never written"));
}

#[test]
fn a_lost_connection_ends_the_run_with_what_was_measured() {
    let (address, _) = server(Mischief::Close(5_000));
    let run = bench(&format!("redis://{address}"), "--clients 4 --threads 2 --duration 60s");
    assert_eq!(run.code(), 1);
    let json = run.json();
    assert!(json["total"]["ops"].as_u64().unwrap() > 4_000);
    assert!(json["warnings"].to_string().contains("closed a connection"), "{}", json["warnings"]);
}

#[test]
fn refusals_are_counted_and_a_run_of_nothing_else_fails() {
    let (address, _) = server(Mischief::Refuse);
    let target = format!("redis://{address}");
    let mixed = bench(&target, "--clients 2 --requests 1000 --mix get,set");
    assert_eq!(mixed.code(), 0);
    let errors = mixed.json()["per_op"]["set"]["errors"].as_u64().unwrap();
    assert!(errors > 400);
    assert_eq!(mixed.json()["refusals"]["samples"][0], "ERR read only");
    assert_eq!(bench(&target, "--clients 2 --requests 1000 --mix set").code(), 1);
    let load = bench(&target, "--preload-only --keys 100");
    assert_eq!(load.code(), 1);
    assert!(load.errors().contains("read only"), "{}", load.errors());
}

#[test]
fn an_open_loop_offers_what_was_asked_and_achieves_it() {
    let (address, _) = server(Mischief::None);
    let run = bench(
        &format!("redis://{address}"),
        "--clients 4 --rate 2000 --requests 1000 --poisson --keys 100 --server-pid 1",
    );
    let json = run.json();
    assert_eq!(json["total"]["ops"], 1_000);
    assert_eq!(json["open_loop"]["rate_asked"], 2_000);
    let achieved = json["open_loop"]["rate_achieved"].as_f64().unwrap();
    assert!((1_500.0..2_600.0).contains(&achieved), "{achieved}");
    assert!(json["total"]["service_us"]["p50"].as_f64() <= json["total"]["response_us"]["p50"].as_f64());
}

#[test]
fn an_open_loop_that_is_behind_ends_at_its_last_request() {
    // All clients are due when the first of them takes the last request.
    let (address, _) = server(Mischief::None);
    let run = bench(&format!("redis://{address}"), "--clients 8 --rate 10000000 --requests 20 --keys 100");
    assert_eq!(run.json()["total"]["ops"], 20);
}

#[test]
fn an_interrupt_ends_the_run_early_with_a_summary() {
    let (address, data) = server(Mischief::None);
    let running = start(&format!("redis://{address}"), "--clients 2 --duration 600s --mix set");
    while data.lock().unwrap().len() < 1000 {
        std::thread::yield_now();
    }
    running.signal("INT");
    let run = running.wait();
    assert_eq!(run.code(), 0, "{}", run.errors());
    let json = run.json();
    assert_eq!(json["interrupted"], true);
    assert!(json["total"]["ops"].as_u64().unwrap() > 0);
    assert!(json["seconds"].as_f64().unwrap() < 60.0);
}

#[test]
fn nobody_listening_is_one_clear_line() {
    let run = bench("redis://127.0.0.1:1", "");
    assert_eq!(run.code(), 1);
    assert!(run.errors().contains("cannot connect to 127.0.0.1:1"), "{}", run.errors());
    assert_eq!(run.errors().lines().count(), 1);
}
