//! Many commands: typed at a prompt with history, or read from standard input.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::Command;
use crate::execute::{Failure, Session};

/// Lines longer than this are refused instead of collected: a value with its key fits with room to
/// spare, even escaped.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// Commands until the input ends. Typed by a person, failures are shown and that is all; read from
/// elsewhere, the worst of them is the exit code.
pub fn run(session: &mut Session, is_interactive: bool) -> Result<ExitCode, Failure> {
    if is_interactive { converse(session) } else { follow(session) }
}

/// What to do after a line.
enum Next {
    Go,
    Quit,
}

fn run_line(session: &mut Session, line: &[u8]) -> Result<Next, Failure> {
    if matches!(line.trim_ascii(), b"quit" | b"exit") {
        return Ok(Next::Quit);
    }
    let mut out = io::stdout().lock();
    if let Some(command) = Command::of_line(line)? {
        let result = session.execute(&command, &mut out);
        out.flush()?;
        result?;
    }
    Ok(Next::Go)
}

fn converse(session: &mut Session) -> Result<ExitCode, Failure> {
    let mut editor =
        DefaultEditor::new().map_err(|error| Failure::Usage(format!("cannot use this terminal: {error}")))?;
    let history = history_path();
    if let Some(path) = &history {
        // A first run has none, and a home that cannot be read is no reason not to start.
        let _ = editor.load_history(path);
    }
    let prompt = format!("{}> ", session.client.config().address);
    // With exact output the next prompt would stand behind the value.
    session.output.is_exact = false;
    loop {
        match editor.readline(&prompt) {
            Ok(line) => {
                // Only forgets the line.
                let _ = editor.add_history_entry(&line);
                match run_line(session, line.as_bytes()) {
                    Ok(Next::Go) => {}
                    Ok(Next::Quit) => break,
                    Err(failure @ Failure::Output(_)) => return Err(failure),
                    Err(failure) => failure.report(),
                }
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(Failure::Usage(format!("cannot read the terminal: {error}"))),
        }
    }
    if let Some(path) = &history {
        // A history that cannot be kept costs nothing but itself.
        let _ = editor.save_history(path);
    }
    Ok(ExitCode::SUCCESS)
}

fn follow(session: &mut Session) -> Result<ExitCode, Failure> {
    let mut input = io::stdin().lock();
    let mut line = Vec::new();
    let mut worst: Option<Failure> = None;
    loop {
        line.clear();
        let read = io::Read::take(&mut input, LINE_BYTES_MAX).read_until(b'\n', &mut line);
        let count = read.map_err(|error| Failure::Usage(format!("cannot read standard input: {error}")))?;
        if count == 0 {
            break;
        }
        if count as u64 == LINE_BYTES_MAX {
            return Err(Failure::Usage(format!("a line is longer than {LINE_BYTES_MAX} bytes")));
        }
        match run_line(session, &line) {
            Ok(Next::Go) => {}
            Ok(Next::Quit) => break,
            Err(failure @ Failure::Output(_)) => return Err(failure),
            Err(failure) => {
                failure.report();
                worst = Some(failure.worse(worst));
            }
        }
    }
    Ok(worst.map_or(ExitCode::SUCCESS, |failure| failure.exit_code()))
}

fn history_path() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(PathBuf::from(home).join(".atlaskv_history"))
}
