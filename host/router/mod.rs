//! (in the making)

pub mod handle;
