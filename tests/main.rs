//! The integration tests, in one binary: a file for each promise.

mod cli;
mod harness;
mod sinks;
mod source;
mod verify;
