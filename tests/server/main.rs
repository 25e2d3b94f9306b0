//! The server binary as its users meet it: started as a process, spoken to over TCP, killed.

mod abuse;
mod batch;
mod broken;
mod budget;
mod checkpoint;
mod clients;
mod cluster;
mod commands;
mod copied;
mod crowd;
mod disk;
mod durability;
mod expiry;
mod files;
mod full;
mod guards;
mod harness;
mod larger;
mod moves;
mod pause;
mod preflight;
mod ranges;
mod raw;
mod redis;
mod saves;
mod scan;
