//! The host of a test: what `crate::host` talks to where there is no wasm. One per thread, lent out by the tester that is at work.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::host::Level;
use crate::tracking::Watched;

/// What a host keeps for one plugin and chain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    pub config: String,
    pub state: BTreeMap<Vec<u8>, Vec<u8>>,
    pub lines: Vec<(Level, String)>,
    pub watched: Vec<Watched>,
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

pub(crate) fn with<R>(f: impl FnOnce(&mut Memory) -> R) -> R {
    MEMORY.with_borrow_mut(f)
}

/// Runs `f` with `memory` as this thread's host.
pub(crate) fn lend<R>(memory: &mut Memory, f: impl FnOnce() -> R) -> R {
    with(|host| std::mem::swap(host, memory));
    let result = f();
    with(|host| std::mem::swap(host, memory));
    result
}
