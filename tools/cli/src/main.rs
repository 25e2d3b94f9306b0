//! `atlaskv-cli`: one command, or a prompt for many, against a running server.

mod arguments;
mod batch;
mod execute;
mod prompt;
mod text;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use atlaskv::client::{Client, Config, Error};
use clap::Parser;

use arguments::{Arguments, Command};
use execute::{Failure, Output, Session};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse_arguments(&error),
    };
    match run(arguments) {
        Ok(exit) => exit,
        Err(failure) => {
            failure.report();
            failure.exit_code()
        }
    }
}

/// Help and version go to standard output; of everything else the one line that says what is wrong.
fn refuse_arguments(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Nobody is left to be told that standard output is closed.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let failure = Failure::Usage(arguments::one_line(error));
    failure.report();
    failure.exit_code()
}

fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let is_terminal = io::stdout().is_terminal();
    let output = Output {
        is_exact: arguments.raw,
        is_escaped: is_terminal && !arguments.raw,
        with_version: arguments.version_too,
    };
    let command = arguments.command.map(|command| command.read_stdin()).transpose()?;
    let timeout = command.as_ref().map_or(arguments.timeout, |command| command.patience(arguments.timeout));
    let client = connect(&arguments.address, timeout)?;
    let mut session = Session { client, output };
    let Some(command) = command else {
        return prompt::run(&mut session, io::stdin().is_terminal());
    };
    let mut out = io::stdout().lock();
    let result = session.execute(&command, &mut out);
    // What was printed before a failure is printed all the same.
    let flushed = out.flush().map_err(Failure::from);
    result.and(flushed).map(|()| ExitCode::SUCCESS)
}

fn connect(address: &str, timeout_secs: f64) -> Result<Client, Error> {
    let timeout = Duration::from_secs_f64(timeout_secs);
    Client::connect(Config {
        connect_timeout: timeout.min(Duration::from_secs(3)),
        read_timeout: timeout,
        write_timeout: timeout,
        overload_patience: timeout,
        ..Config::new(address)
    })
}
