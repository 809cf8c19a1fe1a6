//! What a plugin may ask of its host: its configuration, its state, a line in the log, a transaction to be watched. Everywhere but in wasm, where the
//! host is real, an in-memory host of this thread stands in: plugins are tested as plain Rust.

use std::fmt;

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something is broken.
    Error,
    /// Something is odd.
    Warn,
    /// Worth knowing.
    Info,
    /// For whoever looks for a bug.
    Debug,
}

/// Writes a line to the host's log. Lines beyond the host's limit are counted and dropped there.
pub fn log(level: Level, message: fmt::Arguments<'_>) {
    imp::log(level, &message.to_string());
}

/// Writes an error to the host's log. Takes what `format!` takes.
#[macro_export]
macro_rules! error { ($($arg:tt)+) => { $crate::host::log($crate::host::Level::Error, ::core::format_args!($($arg)+)) }; }
/// Writes a warning to the host's log. Takes what `format!` takes.
#[macro_export]
macro_rules! warn { ($($arg:tt)+) => { $crate::host::log($crate::host::Level::Warn, ::core::format_args!($($arg)+)) }; }
/// Writes a line to the host's log. Takes what `format!` takes.
#[macro_export]
macro_rules! info { ($($arg:tt)+) => { $crate::host::log($crate::host::Level::Info, ::core::format_args!($($arg)+)) }; }
/// Writes a line for debugging to the host's log. Takes what `format!` takes.
#[macro_export]
macro_rules! debug { ($($arg:tt)+) => { $crate::host::log($crate::host::Level::Debug, ::core::format_args!($($arg)+)) }; }

pub(crate) use imp::{config, state_delete, state_get, state_get_many, state_scan, state_set_many, watch};

/// A key and its value.
pub(crate) type Pair = (Vec<u8>, Vec<u8>);

#[cfg(target_arch = "wasm32")]
mod imp {
    use super::{Level, Pair};
    use crate::guest::chainweir::plugin as host;
    use crate::tracking::{Watched, Which};

    pub(super) fn log(level: Level, message: &str) {
        let level = match level {
            Level::Error => host::log::Level::Error,
            Level::Warn => host::log::Level::Warn,
            Level::Info => host::log::Level::Info,
            Level::Debug => host::log::Level::Debug,
        };
        host::log::write(level, message);
    }
    pub(crate) fn config() -> String {
        host::config::get()
    }
    pub(crate) fn state_get(key: &[u8]) -> Option<Vec<u8>> {
        host::state::get(key)
    }
    pub(crate) fn state_get_many(keys: &[Vec<u8>]) -> Vec<Option<Vec<u8>>> {
        host::state::get_many(keys)
    }
    pub(crate) fn state_set_many(entries: &[Pair]) {
        host::state::set_many(entries);
    }
    pub(crate) fn state_delete(key: &[u8]) {
        host::state::delete(key);
    }
    pub(crate) fn state_scan(prefix: &[u8], after: Option<&[u8]>, limit: u32) -> Vec<Pair> {
        host::state::scan(prefix, after, limit)
    }
    pub(crate) fn watch(watched: &Watched) {
        let transaction = match &watched.which {
            Which::Hash(hash) => host::tracking::Transaction::Hash(hash.to_vec()),
            Which::Nonce(sender, nonce) => host::tracking::Transaction::Nonce((sender.to_vec(), *nonce)),
        };
        host::tracking::watch(&transaction, &watched.confirmations, watched.label.as_deref());
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod imp {
    use std::ops::Bound;

    use super::{Level, Pair};
    use crate::testing::memory::with;
    use crate::tracking::Watched;

    pub(super) fn log(level: Level, message: &str) {
        with(|host| host.lines.push((level, message.to_owned())));
    }
    pub(crate) fn config() -> String {
        with(|host| host.config.clone())
    }
    pub(crate) fn state_get(key: &[u8]) -> Option<Vec<u8>> {
        with(|host| host.state.get(key).cloned())
    }
    pub(crate) fn state_get_many(keys: &[Vec<u8>]) -> Vec<Option<Vec<u8>>> {
        with(|host| keys.iter().map(|key| host.state.get(key).cloned()).collect())
    }
    pub(crate) fn state_set_many(entries: &[Pair]) {
        with(|host| host.state.extend(entries.iter().cloned()));
    }
    pub(crate) fn state_delete(key: &[u8]) {
        with(|host| host.state.remove(key));
    }
    pub(crate) fn watch(watched: &Watched) {
        with(|host| host.watched.push(watched.clone()));
    }
    pub(crate) fn state_scan(prefix: &[u8], after: Option<&[u8]>, limit: u32) -> Vec<Pair> {
        with(|host| {
            let from = match after {
                Some(after) if after >= prefix => Bound::Excluded(after),
                _ => Bound::Included(prefix),
            };
            host.state
                .range::<[u8], _>((from, Bound::Unbounded))
                .take_while(|(key, _)| key.starts_with(prefix))
                .take(limit as usize)
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect()
        })
    }
}
