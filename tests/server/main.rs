//! The server binary as its users meet it: started as a process, spoken to over TCP, killed.

mod abuse;
mod batch;
mod budget;
mod checkpoint;
mod commands;
mod durability;
mod expiry;
mod guards;
mod harness;
mod larger;
mod moves;
mod preflight;
mod ranges;
mod raw;
mod scan;
