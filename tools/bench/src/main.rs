//! `atlaskv-bench`, the load generator: for AtlasKV, and for servers that speak Redis' protocol or memcached's, so
//! that all are measured by the same means.
//!
//! | module | owns |
//! |---|---|
//! | `args`, `mix`, `ycsb` | the command line |
//! | `zipf`, `keys`, `population`, `value` | which keys, how many, and values that can be verified |
//! | `timetable` | when an open loop sends |
//! | `wire` | protocols: requests to bytes, bytes to replies |
//! | `lane`, `client` | one connection, one logical client; no I/O |
//! | `record` | counts and histograms |
//! | `worker` | a thread: sockets, epoll, clock |
//! | `run`, `report`, `cpu` | a run from connecting to the table and the JSON file |

mod args;
mod client;
mod cpu;
mod keys;
mod lane;
mod mix;
mod population;
mod record;
mod report;
mod run;
mod timetable;
mod value;
mod wire;
mod worker;
mod ycsb;
mod zipf;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use clap::Parser;

use args::{Args, Plan, Protocol};
use report::Report;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match bench(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("atlaskv-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the server was found in order.
fn bench(args: Args) -> Result<bool> {
    let plan = args.plan()?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The first ends the run with a summary, the second at once.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let report = match plan.args.target.protocol {
        Protocol::Redis => run::run::<wire::resp::Resp>(&plan, &stop)?,
        Protocol::Memcached => run::run::<wire::memcached::Memcached>(&plan, &stop)?,
        Protocol::AtlasKv => run::run::<wire::atlas::Atlas>(&plan, &stop)?,
    };
    publish(&plan, &report)?;
    Ok(report.is_good())
}

fn publish(plan: &Plan, report: &Report) -> Result<()> {
    let path = plan.args.json.as_deref();
    if path.is_some_and(|path| path.as_os_str() == "-") {
        println!("{:#}", report.json());
        return Ok(());
    }
    print!("{}", report.table());
    if let Some(path) = path {
        let text = format!("{:#}\n", report.json());
        std::fs::write(path, text)
            .with_context(|| format!("--json {}: cannot be written", path.display()))?;
    }
    Ok(())
}
