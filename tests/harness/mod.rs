//! What tests start: each on a free port, each stopped when dropped.
#![allow(dead_code)] // Each test uses a part of it.

pub mod anvil;
pub mod fake_node;
pub mod session;
