//! Cores as the nodes of a Redis Cluster: each key is served by one node, and every node says by which.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use atlaskv::slot::Slot;

use crate::harness::{Server, command, connect, disk_dir, refusal, seed};
use crate::redis::Redis;

const SHARDS: usize = 3;

fn server(arguments: &[&str]) -> (Server, tempfile::TempDir) {
    let dir = disk_dir();
    let all = [&["--cores", "3", "--oversubscribe", "--cluster-mode", "emulated"], arguments].concat();
    (Server::start(dir.path(), &all), dir)
}

/// The nodes' addresses as CLUSTER NODES has them, and the slots of each.
fn nodes(server: &Server) -> Vec<(SocketAddr, Vec<(u16, u16)>)> {
    let text = Redis::connect(server.address).ask("CLUSTER NODES");
    let node = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let address = fields.get(1)?.split('@').next()?.parse().ok()?;
        let slots = fields.get(8..)?.iter().map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            (first.parse().expect("a slot"), last.parse().expect("a slot"))
        });
        Some((address, slots.collect()))
    };
    let nodes: Vec<_> = text.lines().filter(|line| line.contains(" connected")).filter_map(node).collect();
    assert_eq!(nodes.len(), SHARDS, "{text}");
    nodes
}

/// The node that has a key.
fn owner(nodes: &[(SocketAddr, Vec<(u16, u16)>)], key: &str) -> usize {
    let slot = Slot::of_key(key.as_bytes()).number();
    let has = |ranges: &[(u16, u16)]| ranges.iter().any(|(first, last)| (*first..=*last).contains(&slot));
    nodes.iter().position(|(_, ranges)| has(ranges)).expect("every slot has an owner")
}

#[test]
fn a_key_is_served_by_its_node_and_the_others_name_it() {
    let (server, _dir) = server(&[]);
    let nodes = nodes(&server);
    let mut clients: Vec<Redis> = nodes.iter().map(|(address, _)| Redis::connect(*address)).collect();
    let mut counts = [0; SHARDS];
    for number in 0..300 {
        let key = format!("key-{number}");
        let slot = Slot::of_key(key.as_bytes()).number();
        let owner = owner(&nodes, &key);
        counts[owner] += 1;
        for (node, client) in clients.iter_mut().enumerate() {
            let expected = match node == owner {
                true => "+OK\r\n".to_owned(),
                false => format!("-MOVED {slot} {}\r\n", nodes[owner].0),
            };
            assert_eq!(client.ask(&format!("SET {key} {number}")), expected, "{key} at {node}");
        }
    }
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    // Each node counts, lists and removes its own keys.
    for (client, count) in clients.iter_mut().zip(counts) {
        assert_eq!(client.ask("DBSIZE"), format!(":{count}\r\n"));
        assert!(client.ask("KEYS *").starts_with(&format!("*{count}\r\n")));
        let page = client.ask("SCAN 0 COUNT 1000");
        assert!(page.starts_with(&format!("*2\r\n$1\r\n0\r\n*{count}\r\n")), "{page}");
        let errors = client.ask("INFO errorstats");
        assert!(errors.contains(&format!("errorstat_MOVED:count={}\r\n", 300 - count)), "{errors}");
        assert!(client.ask("INFO stats").contains("forwarded_requests:0\r\n"));
        assert!(client.ask("INFO cluster").contains("cluster_enabled:1\r\n"));
    }
    let mut common = Redis::connect(server.address);
    assert_eq!(common.ask("DBSIZE"), ":300\r\n");
    assert_eq!(common.ask("MGET key-1 key-2 key-3"), "*3\r\n$1\r\n1\r\n$1\r\n2\r\n$1\r\n3\r\n");
    assert_eq!(clients[1].ask("FLUSHALL"), "+OK\r\n");
    assert_eq!(common.ask("DBSIZE"), format!(":{}\r\n", 300 - counts[1]));
    assert_eq!(clients[1].ask("RANDOMKEY"), "$-1\r\n");
    let (status, log) = server.stop();
    assert!(status.success(), "{log}");
}

/// A client that does what clients of clusters do: goes where it is sent, and remembers.
struct Follower {
    nodes: BTreeMap<SocketAddr, Redis>,
    known: BTreeMap<u16, SocketAddr>,
    any: SocketAddr,
    hops: u32,
}

impl Follower {
    fn ask(&mut self, key: &str, command: &str) -> String {
        let slot = Slot::of_key(key.as_bytes()).number();
        for _ in 0..3 {
            let at = *self.known.get(&slot).unwrap_or(&self.any);
            let reply = self.nodes.entry(at).or_insert_with(|| Redis::connect(at)).ask(command);
            let Some(moved) = reply.strip_prefix("-MOVED ") else { return reply };
            let to = moved.trim_end().split(' ').nth(1).and_then(|to| to.parse().ok());
            self.known.insert(slot, to.expect("an address"));
            self.hops += 1;
        }
        panic!("{key} is sent to and fro")
    }
}

#[test]
fn clients_follow_tablets_that_move_and_count_no_key_twice() {
    let (server, _dir) = server(&[]);
    let server = Arc::new(server);
    let seed = seed("clients_follow_tablets_that_move");
    let any = nodes(&server)[0].0;
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let (stop, done) = (stop.clone(), done.clone());
            thread::spawn(move || {
                let mut client = Follower { nodes: BTreeMap::new(), known: BTreeMap::new(), any, hops: 0 };
                let mut sums = [0u64; 100];
                let mut rng = fastrand::Rng::with_seed(seed ^ writer);
                while !stop.load(Ordering::Relaxed) {
                    let which = rng.usize(..sums.len());
                    let key = format!("writer-{writer}-{which}");
                    sums[which] += 1;
                    let reply = client.ask(&key, &format!("INCR {key}"));
                    assert_eq!(reply, format!(":{}\r\n", sums[which]), "{key}");
                    done.fetch_add(1, Ordering::Relaxed);
                }
                (client, sums)
            })
        })
        .collect();
    let mut admin = connect(&server);
    let mut rng = fastrand::Rng::with_seed(seed);
    for turn in 0..30 {
        let before = done.load(Ordering::Relaxed);
        let (tablet, shard) = (rng.u32(..16), rng.usize(..SHARDS));
        admin.tablets(&format!("move {tablet} {shard}")).expect("it moves");
        // So that each move meets requests on their way.
        while done.load(Ordering::Relaxed) < before + 50 {
            assert!(!writers.iter().any(thread::JoinHandle::is_finished), "a writer failed in turn {turn}");
            thread::yield_now();
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut hops = 0;
    for (writer, thread) in writers.into_iter().enumerate() {
        let (mut client, sums) = thread.join().expect("a writer");
        for (which, sum) in sums.into_iter().enumerate().filter(|(_, sum)| *sum > 0) {
            let key = format!("writer-{writer}-{which}");
            let value = sum.to_string();
            assert_eq!(client.ask(&key, &format!("GET {key}")), format!("${}\r\n{value}\r\n", value.len()));
        }
        hops += client.hops;
    }
    assert!(hops > 0, "some tablet moved away from its clients");
    // All nodes say the same at the end.
    let told = nodes(&server);
    for (address, _) in &told {
        let text = Redis::connect(*address).ask("CLUSTER SLOTS");
        let ranges: usize = told.iter().map(|(_, ranges)| ranges.len()).sum();
        assert!(text.starts_with(&format!("*{ranges}\r\n")), "{text}");
    }
}

#[test]
fn by_setting_a_node_serves_all_keys() {
    let (server, _dir) = server(&["--cluster-misrouted", "served", "--cluster-host", "db.example.org"]);
    let text = Redis::connect(server.address).ask("CLUSTER NODES");
    assert!(text.contains("@0,db.example.org "), "{text}");
    let nodes = nodes(&server);
    let mut client = Redis::connect(nodes[0].0);
    for number in 0..100 {
        assert_eq!(client.ask(&format!("SET key-{number} {number}")), "+OK\r\n");
    }
    assert_eq!(client.ask("MGET key-1 key-2"), "*2\r\n$1\r\n1\r\n$1\r\n2\r\n");
    let slots = client.ask("CLUSTER SLOTS");
    assert!(slots.contains("\r\ndb.example.org\r\n"), "{slots}");
    let own = (0..100).filter(|number| owner(&nodes, &format!("key-{number}")) == 0).count();
    assert_eq!(client.ask("DBSIZE"), format!(":{own}\r\n"));
}

#[test]
fn nodes_have_the_ports_that_were_asked_for_or_say_why_not() {
    let dir = disk_dir();
    // Two that follow each other, free a moment ago.
    let (first, second) = (0..100)
        .find_map(|_| {
            let first = TcpListener::bind("127.0.0.1:0").ok()?;
            let port = first.local_addr().ok()?.port();
            let second = TcpListener::bind(("127.0.0.1", port.checked_add(1)?)).ok()?;
            Some((first, second))
        })
        .expect("two ports are free");
    let port = first.local_addr().expect("it is bound").port();
    drop(first);
    let text = port.to_string();
    let flags = ["--cores", "2", "--oversubscribe", "--cluster-mode", "emulated", "--cluster-port", &text];
    let said = refusal(command(dir.path(), &flags));
    assert!(
        said.contains(&format!("--cluster-port 127.0.0.1:{}: the address is in use", port + 1)),
        "{said}"
    );
    drop(second);
    let server = Server::start(dir.path(), &flags);
    let told = Redis::connect(server.address).ask("CLUSTER NODES");
    assert!(
        told.contains(&format!("127.0.0.1:{port}@0 "))
            && told.contains(&format!("127.0.0.1:{}@0 ", port + 1))
    );
    // The same nodes after a restart.
    let ids = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.contains(" connected"));
        lines.map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
    };
    server.stop();
    let server = Server::start(dir.path(), &flags);
    assert_eq!(ids(&Redis::connect(server.address).ask("CLUSTER NODES")), ids(&told));
    drop(server);
    let said = refusal(command(dir.path(), &["--cluster-port", "7380"]));
    assert!(said.contains("--cluster-port means nothing without --cluster-mode emulated"), "{said}");
    let last = ["--cores", "2", "--oversubscribe", "--cluster-mode", "emulated", "--cluster-port", "65535"];
    let said = refusal(command(dir.path(), &last));
    assert!(said.contains("2 nodes need a port each"), "{said}");
}
