//! The server binary as its users meet it: started as a process, spoken to over TCP, killed.

mod abuse;
mod expiry;
mod guards;
mod harness;
mod preflight;
mod raw;
