//! The integration tests, in one binary: a file for each promise.

mod harness;

mod archives;
mod chain_driver;
mod chains;
mod cli;
mod crash;
mod crowd;
mod decode;
mod dev;
mod examples;
mod factories;
mod faults;
mod hostile;
mod isolation;
mod journal;
mod outages;
mod pending;
mod progress;
mod providers;
mod recorded;
mod reload;
mod reorgs;
mod retention;
mod rpc_cases;
mod sets;
mod simulation;
mod sinks;
mod source;
mod traces;
mod tracking;
mod verify;
