//! The integration tests, in one binary: a file for each promise.

mod harness;

mod chain_driver;
mod cli;
mod crash;
mod examples;
mod isolation;
mod journal;
mod outages;
mod recorded;
mod reorgs;
mod simulation;
mod sinks;
mod source;
mod verify;
