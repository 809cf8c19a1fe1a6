//! The integration tests, in one binary: a file for each promise.

mod harness;
mod sinks;

mod cli;
mod source;
mod verify;
