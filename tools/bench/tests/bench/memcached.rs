//! Against the real memcached.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::bench;

/// How long memcached may take to listen.
const START: Duration = Duration::from_secs(20);

struct Memcached {
    process: Child,
    address: SocketAddr,
}

impl Memcached {
    fn start() -> Memcached {
        // The port is free again once the listener is dropped; memcached tells nobody which one it took by itself.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let process = Command::new("memcached")
            .args(["-l", "127.0.0.1", "-p", &address.port().to_string(), "-t", "1", "-u", "nobody"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("memcached is needed: tests/run installs it");
        let server = Memcached { process, address };
        let begin = Instant::now();
        while TcpStream::connect(server.address).is_err() {
            assert!(begin.elapsed() < START, "memcached does not listen on {}", server.address);
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn target(&self) -> String {
        format!("memcached://{}", self.address)
    }
}

impl Drop for Memcached {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn loads_measures_and_verifies_gets_sets_and_deletes() {
    let server = Memcached::start();
    let run = bench(
        &server.target(),
        "--preload --verify --keys 500 --clients 7 --threads 2 --pipeline 5 --requests 20000 \
         --mix get=60,set=30,del=10",
    );
    assert_eq!(run.code(), 0, "{}", run.errors());
    let json = run.json();
    assert_eq!((&json["total"]["ops"], &json["load"]["keys"]), (&20_000.into(), &500.into()));
    assert_eq!((&json["mismatches"]["count"], &json["refusals"]["count"]), (&0.into(), &0.into()));
    let missing = json["per_op"]["get"]["missing"].as_u64().unwrap();
    assert!(0 < missing && missing < json["per_op"]["get"]["ops"].as_u64().unwrap(), "{missing}");
    assert!(json["server"]["name"].as_str().unwrap().starts_with("memcached 1."));
}

#[test]
fn what_it_refuses_is_told_and_what_it_can_not_do_is_not_asked() {
    let server = Memcached::start();
    // Items of more than a megabyte are beyond its default.
    let run = bench(&server.target(), "--preload-only --keys 2 --value-size 2MiB");
    assert_eq!(run.code(), 1);
    assert!(run.errors().contains("too large"), "{}", run.errors());
    let run = bench(&server.target(), "--mix incr");
    assert_eq!(run.code(), 1);
    assert!(run.errors().contains("memcached"), "{}", run.errors());
}
