//! The integration tests, in one binary: a file for each promise.

mod harness;
mod simulation;
mod sinks;

mod cli;
