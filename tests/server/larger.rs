//! More data than memory: all of it is there, and the process stays as small as it was told to.

use std::fs;

use atlaskv::client::{Client, Pipeline, Response};

use crate::harness::{Server, connect, disk_dir};

const MEMORY: u64 = 48 << 20;
/// What the process may take beyond `--memory`: its code, and what the allocator holds between uses. As
/// README says.
const BEYOND: u64 = 32 << 20;
const KEYS: u64 = 260_000;
const VALUE_BYTES: usize = 1000;
const PIPELINE: usize = 512;

fn key(number: u64) -> [u8; 12] {
    let mut key = *b"key-\0\0\0\0\0\0\0\0";
    key[4..].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
    key
}

/// Differs in every 8 bytes, for each key and version.
fn value(number: u64, version: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(number << 8 | version);
    (0..VALUE_BYTES / 8).flat_map(|_| rng.u64(..).to_le_bytes()).collect()
}

/// Which version a key has in the end; `None`: it was deleted.
fn expected(number: u64) -> Option<u64> {
    match number % 10 {
        3 => None,
        7 => Some(1),
        _ => Some(0),
    }
}

/// Sends a request for each number, in pipelines.
fn run(
    client: &mut Client,
    numbers: impl Iterator<Item = u64>,
    request: impl Fn(&mut Pipeline<'_>, u64),
    visit: impl Fn(u64, Response),
) {
    let numbers: Vec<u64> = numbers.collect();
    for chunk in numbers.chunks(PIPELINE) {
        let mut pipeline = client.pipeline();
        chunk.iter().for_each(|&number| request(&mut pipeline, number));
        for (number, result) in chunk.iter().zip(pipeline.run()) {
            visit(*number, result.unwrap());
        }
    }
}

fn set(client: &mut Client, numbers: impl Iterator<Item = u64>, version: u64) {
    let request = |pipeline: &mut Pipeline<'_>, number| {
        pipeline.set(&key(number), &value(number, version));
    };
    run(client, numbers, request, |_, _| {});
}

fn check(client: &mut Client) {
    let request = |pipeline: &mut Pipeline<'_>, number| {
        pipeline.get(&key(number));
    };
    run(client, 0..KEYS, request, |number, response| {
        let Response::Value(found) = response else { panic!("a GET is answered by a value") };
        let expected = expected(number).map(|version| value(number, version));
        assert!(found.map(|found| found.value) == expected, "key {number}");
    });
}

/// Most that was ever resident, in bytes.
fn resident_peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux says so");
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn five_times_as_much_data_as_memory_is_served_from_that_memory() {
    assert!(KEYS * VALUE_BYTES as u64 > 5 * MEMORY);
    let dir = disk_dir();
    let memory = MEMORY.to_string();
    let arguments = ["--cores", "1", "--memory", &memory, "--max-value-size", "64KiB"];
    let server = Server::start(dir.path(), &arguments);
    let mut client = connect(&server);
    set(&mut client, 0..KEYS, 0);
    set(&mut client, (0..KEYS).filter(|number| number % 10 == 7), 1);
    let delete = |pipeline: &mut Pipeline<'_>, number| {
        pipeline.delete(&key(number));
    };
    run(&mut client, (0..KEYS).filter(|number| number % 10 == 3), delete, |_, _| {});
    check(&mut client);
    let mut peaks = vec![resident_peak(server.pid())];
    drop(client);
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");

    let server = Server::start(dir.path(), &arguments);
    check(&mut connect(&server));
    peaks.push(resident_peak(server.pid()));
    println!("resident at most, before and after a restart: {peaks:?}");
    assert!(peaks.iter().all(|peak| *peak <= MEMORY + BEYOND), "{peaks:?}");
}
