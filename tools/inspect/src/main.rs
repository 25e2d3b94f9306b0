//! `atlaskv-inspect`: looks into a data directory without a server, and never writes to it; copies checkpoints
//! into backups, and these into new data directories; salvages what is damaged.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use atlaskv_inspect::{Failure, Outcome, backup, dump, salvage, verify};
use clap::{Parser, Subcommand};

const AFTER_HELP: &str = "\
Exit codes: 0 all is well, 1 there is damage or something is lost, 2 it can't be read or the command is wrong.
A file is read as a whole: there must be memory for the largest one. A salvage needs about as much as the server had.";

/// Looks into an AtlasKV data directory without a server; never writes to it. Makes and restores backups, and salvages what is damaged
#[derive(Parser)]
#[command(name = "atlaskv-inspect", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check every byte that a start or a read would need: manifest, logs, tables
    Verify {
        /// The data directory; no server may be using it
        dir: PathBuf,
    },
    /// Copy a checkpoint into a new directory below TARGET: of its tables, those that no backup there has. Goes on
    /// with one that was cut short, if that is named
    Backup {
        /// A checkpoint that no server uses
        checkpoint: PathBuf,
        /// Where backups are kept; on any file system
        target: PathBuf,
        /// Name of the backup; by default made of the time
        #[arg(long)]
        name: Option<String>,
    },
    /// List the backups below TARGET, the newest first: how old their data is, what they hold, and what the removal
    /// of each alone would free
    Backups {
        /// Where backups are kept
        target: PathBuf,
    },
    /// Remove the oldest backups below TARGET
    Prune {
        /// Where backups are kept
        target: PathBuf,
        /// So many of the newest stay
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        keep: u32,
        /// Of the others only those go that are older, such as 30d or 12h
        #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
        older_than: Option<Duration>,
        /// Backups that were never completed go as well
        #[arg(long)]
        incomplete: bool,
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Check every byte of a backup, then copy it into a new data directory. Goes on with one that was cut short
    Restore {
        /// A backup, or a checkpoint that no server uses
        backup: PathBuf,
        /// A new or empty directory
        target: PathBuf,
    },
    /// Write what is readable of a damaged data directory into a fresh one, and list what is lost
    Salvage {
        /// The damaged data directory; no server may be using it
        dir: PathBuf,
        /// A new or empty directory, with room for all that is in the other
        fresh: PathBuf,
        /// If the manifest can't be read, take all tables and logs for valid: deleted keys may come back
        #[arg(long)]
        without_manifest: bool,
    },
    /// Show the blocks and records of a write-ahead log segment
    Wal {
        /// A file of wal/
        file: PathBuf,
        #[command(flatten)]
        detail: dump::Detail,
    },
    /// Show the blocks and records of a table
    Sst {
        /// A file of sst/
        file: PathBuf,
        #[command(flatten)]
        detail: dump::Detail,
    },
    /// Show the edits of a manifest file, or what CURRENT says
    Manifest {
        /// A file of manifest/, or CURRENT
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if !error.use_stderr() => {
            // Nobody is left to be told that standard output is closed.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(2);
        }
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let outcome = run(arguments.command, &mut out);
    let flushed = out.flush().map_err(Failure::from);
    match outcome.and_then(|is_damaged| flushed.map(|()| is_damaged)) {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::from(1),
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Failure::Output(error)) => refuse(&format!("can't write to standard output: {error}")),
        Err(Failure::Refused(what)) => refuse(&what),
    }
}

fn refuse(what: &str) -> ExitCode {
    // Nobody is left to be told that standard error is closed.
    let _ = writeln!(io::stderr(), "atlaskv-inspect: {what}");
    ExitCode::from(2)
}

fn run(command: Command, out: &mut impl Write) -> Outcome {
    match command {
        Command::Verify { dir } => verify::verify(&dir, out),
        Command::Backup { checkpoint, target, name } => backup::backup(&checkpoint, &target, name, out),
        Command::Backups { target } => backup::list(&target, out),
        Command::Prune { target, keep, older_than, incomplete, dry_run } => {
            let what = backup::Prune { keep: keep as usize, older_than, incomplete, dry_run };
            backup::prune(&target, &what, out)
        }
        Command::Restore { backup, target } => backup::restore(&backup, &target, out),
        Command::Salvage { dir, fresh, without_manifest } => {
            salvage::salvage(&dir, &fresh, without_manifest, out)
        }
        Command::Wal { file, detail } => dump::wal(&file, &read(&file)?, detail, out),
        Command::Sst { file, detail } => dump::sst(&file, &read(&file)?, detail, out),
        Command::Manifest { file } => dump::manifest(&file, &read(&file)?, out),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(file).map_err(|error| Failure::Refused(format!("{}: {error}", file.display())))
}
