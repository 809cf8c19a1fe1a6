//! What the SDK promises, one file per promise.

mod authors;
mod hostile;
mod vectors;
mod wasm;
