//! The server binary as its users meet it: started as a process, spoken to over TCP, killed.

mod harness;
mod preflight;
