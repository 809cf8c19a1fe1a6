//! The integration tests, in one binary: a file for each promise.

mod harness;

mod chain_driver;
mod cli;
mod dev;
mod examples;
mod hostile;
mod reload;
mod simulation;
mod sinks;
mod source;
mod verify;
