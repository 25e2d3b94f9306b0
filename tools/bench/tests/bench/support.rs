//! Running the binary, and servers that answer each connection from a thread.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use serde_json::Value;

/// What a server makes of the bytes that it has: how many it took, and what it answers; `None` to close
/// the connection. It is called again as long as it takes something.
pub type Answer = dyn Fn(&[u8], &mut Vec<u8>) -> Option<usize> + Send + Sync;

/// Starts a server on a port of its own. Each connection gets its own `Answer` from `session`.
pub fn serve(session: impl Fn() -> Box<Answer> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let session = Arc::new(session);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let session = Arc::clone(&session);
            std::thread::spawn(move || converse(stream.unwrap(), &*session()));
        }
    });
    address
}

fn converse(mut stream: TcpStream, answer: &Answer) {
    stream.set_nodelay(true).unwrap();
    let (mut input, mut output) = (Vec::new(), Vec::new());
    let mut chunk = [0; 64 << 10];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => input.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        }
        let mut at = 0;
        loop {
            match answer(&input[at..], &mut output) {
                None => return,
                Some(0) => break,
                Some(taken) => at += taken,
            }
        }
        input.drain(..at);
        // The client may be gone: that is for it to notice.
        if stream.write_all(&output).is_err() {
            return;
        }
        output.clear();
    }
}

/// Runs `atlaskv-bench --target TARGET --json - ARGUMENTS`.
pub fn bench(target: &str, arguments: &str) -> Run {
    start(target, arguments).wait()
}

/// Starts it.
pub fn start(target: &str, arguments: &str) -> Running {
    let child = Command::new(env!("CARGO_BIN_EXE_atlaskv-bench"))
        .args(["--target", target, "--json", "-"])
        .args(arguments.split_whitespace())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Running { child }
}

/// A run under way.
pub struct Running {
    child: Child,
}

impl Running {
    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    pub fn wait(self) -> Run {
        Run { output: self.child.wait_with_output().unwrap() }
    }
}

/// A run that has ended.
pub struct Run {
    output: Output,
}

impl Run {
    pub fn code(&self) -> i32 {
        self.output.status.code().unwrap()
    }

    pub fn errors(&self) -> String {
        String::from_utf8(self.output.stderr.clone()).unwrap()
    }

    /// The report, which there must be.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", self.errors()))
    }
}
