//! What a plugin remembers: kept by the host per plugin and chain, and rolled back with the chain. `handlers -> state -> host`.
//!
//! Everything that must last from one event to the next lives here: memory of the plugin is lost when its instance is replaced, and is
//! not rolled back when a block is orphaned. Within a call, reads are remembered and writes are collected, so that a hot key costs one
//! host call a batch, and so that what a rejected event wrote can be taken back. Reads see the plugin's own writes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::marker::PhantomData;

use alloy_primitives::{Address, B256, U256};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Error, Result};
use crate::host;
use crate::tracking::Watched;

/// Entries in one answer of the host to a scan.
const PAGE: u32 = 256;

#[derive(Clone)]
struct Entry {
    value: Option<Vec<u8>>,
    dirty: bool,
}

/// What this call knows of the state, over what the host knows.
#[derive(Default)]
struct Cache {
    entries: BTreeMap<Vec<u8>, Entry>,
    /// What the current event replaced, oldest first.
    undo: Vec<(Vec<u8>, Option<Entry>)>,
    /// Transactions to be watched, and how many were before the current event.
    watched: Vec<Watched>,
    watched_before: usize,
}

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::default();
    /// The current event wrote. Most events do not, and must not pay for those that do.
    static WROTE: Cell<bool> = const { Cell::new(false) };
}

impl Cache {
    fn get(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        if let Some(entry) = self.entries.get(key) {
            return entry.value.clone();
        }
        let value = host::state_get(key);
        self.entries.insert(key.to_vec(), Entry { value: value.clone(), dirty: false });
        value
    }

    fn put(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        WROTE.set(true);
        let before = self.entries.insert(key.clone(), Entry { value, dirty: true });
        self.undo.push((key, before));
    }

    fn scan(&mut self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Vec<host::Pair> {
        let mut found: Vec<host::Pair> = Vec::new();
        let mut cursor = after.map(<[u8]>::to_vec);
        // The host's entries, page by page, with what was written in this call laid over each stretch of keys.
        while found.len() < limit {
            let page = host::state_scan(prefix, cursor.as_deref(), PAGE);
            let last = page.len() < PAGE as usize;
            let end = if last { None } else { page.last().map(|(key, _)| key.clone()) };
            let mut stretch: BTreeMap<Vec<u8>, Vec<u8>> = page.into_iter().collect();
            let written = self.entries.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix)).filter(
                |(key, entry)| {
                    entry.dirty
                        && cursor.as_ref().is_none_or(|cursor| *key > cursor)
                        && end.as_ref().is_none_or(|end| *key <= end)
                },
            );
            for (key, entry) in written {
                match &entry.value {
                    Some(value) => stretch.insert(key.clone(), value.clone()),
                    None => stretch.remove(key),
                };
            }
            found.extend(stretch);
            if last {
                break;
            }
            cursor = end;
        }
        found.truncate(limit);
        found
    }
}

/// A call begins: nothing is known. The host's state may have been rolled back since the last one.
pub(crate) fn begin_call() {
    WROTE.set(false);
    CACHE.with_borrow_mut(|cache| {
        cache.entries.clear();
        cache.undo.clear();
        (cache.watched, cache.watched_before) = (vec![], 0);
    });
}

/// An event was processed: what it wrote stands.
#[inline]
pub(crate) fn keep_event() {
    if WROTE.get() {
        WROTE.set(false);
        CACHE.with_borrow_mut(|cache| {
            cache.undo.clear();
            cache.watched_before = cache.watched.len();
        });
    }
}

/// An event was rejected: what it wrote is taken back.
pub(crate) fn undo_event() {
    WROTE.set(false);
    CACHE.with_borrow_mut(|cache| {
        let before = cache.watched_before;
        cache.watched.truncate(before);
        while let Some((key, before)) = cache.undo.pop() {
            match before {
                Some(entry) => cache.entries.insert(key, entry),
                None => cache.entries.remove(&key),
            };
        }
    });
}

/// A call succeeded: what was written goes to the host.
pub(crate) fn finish_call() {
    CACHE.with_borrow_mut(|cache| {
        let mut set = Vec::new();
        for (key, entry) in std::mem::take(&mut cache.entries) {
            match entry {
                Entry { dirty: false, .. } => {}
                Entry { value: Some(value), .. } => set.push((key, value)),
                Entry { value: None, .. } => host::state_delete(&key),
            }
        }
        if !set.is_empty() {
            host::state_set_many(&set);
        }
        cache.undo.clear();
        std::mem::take(&mut cache.watched).iter().for_each(host::watch);
        cache.watched_before = 0;
    });
}

/// The current event asks for it.
pub(crate) fn watch(watched: Watched) {
    WROTE.set(true);
    CACHE.with_borrow_mut(|cache| cache.watched.push(watched));
}

/// The value of a key.
pub fn get(key: &[u8]) -> Option<Vec<u8>> {
    CACHE.with_borrow_mut(|cache| cache.get(key))
}

/// The values of many keys, in their order, with one host call at most.
pub fn get_many(keys: &[Vec<u8>]) -> Vec<Option<Vec<u8>>> {
    CACHE.with_borrow_mut(|cache| {
        let unknown: Vec<Vec<u8>> = keys.iter().filter(|key| !cache.entries.contains_key(*key)).cloned().collect();
        if !unknown.is_empty() {
            let values = host::state_get_many(&unknown);
            for (key, value) in unknown.into_iter().zip(values) {
                cache.entries.insert(key, Entry { value, dirty: false });
            }
        }
        keys.iter().map(|key| cache.get(key)).collect()
    })
}

/// Sets the value of a key.
pub fn set(key: &[u8], value: &[u8]) {
    CACHE.with_borrow_mut(|cache| cache.put(key.to_vec(), Some(value.to_vec())));
}

/// Forgets a key.
pub fn delete(key: &[u8]) {
    CACHE.with_borrow_mut(|cache| cache.put(key.to_vec(), None));
}

/// At most `limit` entries whose key begins with `prefix`, in key order, beginning after the key `after`.
pub fn scan(prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    CACHE.with_borrow_mut(|cache| cache.scan(prefix, after, limit))
}

/// What can be a key of a [`Table`]. Numbers are written big-endian, so that a scan is in number order.
pub trait Key: Sized {
    /// Appends the key's bytes.
    fn write(&self, out: &mut Vec<u8>);
    /// Reads a key back; `None` where the bytes are none.
    fn read(bytes: &[u8]) -> Option<Self>;
}

/// A key whose length is the same for every value, so that another can follow it.
pub trait FixedKey: Key {
    /// Its bytes.
    const LEN: usize;
}

macro_rules! fixed_key {
    ($($ty:ty, $len:literal, $write:expr, $read:expr;)*) => {$(
        impl Key for $ty {
            fn write(&self, out: &mut Vec<u8>) {
                let write: fn(&$ty) -> [u8; $len] = $write;
                out.extend_from_slice(&write(self));
            }
            fn read(bytes: &[u8]) -> Option<Self> {
                let read: fn([u8; $len]) -> $ty = $read;
                bytes.try_into().ok().map(read)
            }
        }
        impl FixedKey for $ty {
            const LEN: usize = $len;
        }
    )*};
}

fixed_key! {
    u32, 4, |n| n.to_be_bytes(), u32::from_be_bytes;
    u64, 8, |n| n.to_be_bytes(), u64::from_be_bytes;
    U256, 32, |n| n.to_be_bytes(), U256::from_be_bytes;
    Address, 20, |a| a.0.0, Address::new;
    B256, 32, |b| b.0, B256::new;
}

impl<A: FixedKey, B: Key> Key for (A, B) {
    fn write(&self, out: &mut Vec<u8>) {
        self.0.write(out);
        self.1.write(out);
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        let (a, b) = bytes.split_at_checked(A::LEN)?;
        Some((A::read(a)?, B::read(b)?))
    }
}

impl<A: FixedKey, B: FixedKey> FixedKey for (A, B) {
    const LEN: usize = A::LEN + B::LEN;
}

impl Key for String {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        String::from_utf8(bytes.to_vec()).ok()
    }
}

/// A named table in the state: typed keys, and values that serde writes as JSON.
///
/// ```
/// # use chainweir_sdk::prelude::*;
/// const TOTALS: Table<Address, U256> = Table::new("totals");
/// # fn f() -> Result {
/// let total = TOTALS.get(&Address::ZERO)?.unwrap_or_default();
/// TOTALS.set(&Address::ZERO, &(total + U256::from(1)))?;
/// # Ok(()) } f().unwrap();
/// ```
#[derive(Debug)]
pub struct Table<K, V> {
    name: &'static str,
    of: PhantomData<fn() -> (K, V)>,
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K, V> Copy for Table<K, V> {}

impl<K: Key, V: Serialize + DeserializeOwned> Table<K, V> {
    /// A table of this name: not empty, without `/`. In a `const`, a wrong name does not compile.
    pub const fn new(name: &'static str) -> Self {
        let bytes = name.as_bytes();
        assert!(!bytes.is_empty(), "a table needs a name");
        let mut i = 0;
        while i < bytes.len() {
            assert!(bytes[i] != b'/', "the name of a table has no '/'");
            i += 1;
        }
        Self { name, of: PhantomData }
    }

    fn prefix(&self) -> Vec<u8> {
        let mut prefix = Vec::with_capacity(self.name.len() + 33);
        prefix.extend_from_slice(self.name.as_bytes());
        prefix.push(b'/');
        prefix
    }

    fn key(&self, key: &K) -> Vec<u8> {
        let mut bytes = self.prefix();
        key.write(&mut bytes);
        bytes
    }

    fn value(&self, bytes: &[u8]) -> Result<V> {
        serde_json::from_slice(bytes).map_err(|e| {
            let name = self.name;
            Error::reject(format!(
                "state table `{name}` holds another type than the plugin reads, raise state_version: {e}"
            ))
        })
    }

    /// The value of a key. Rejects where the state holds a value of another type.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        get(&self.key(key)).map(|bytes| self.value(&bytes)).transpose()
    }

    /// The values of many keys, in their order, with one host call at most.
    pub fn get_many(&self, keys: &[K]) -> Result<Vec<Option<V>>> {
        let keys: Vec<Vec<u8>> = keys.iter().map(|key| self.key(key)).collect();
        get_many(&keys).into_iter().map(|value| value.map(|bytes| self.value(&bytes)).transpose()).collect()
    }

    /// Is there a value?
    pub fn contains(&self, key: &K) -> bool {
        get(&self.key(key)).is_some()
    }

    /// Sets the value of a key.
    pub fn set(&self, key: &K, value: &V) -> Result {
        set(&self.key(key), &serde_json::to_vec(value)?);
        Ok(())
    }

    /// Replaces the value of a key by what `change` makes of it, and returns that.
    pub fn update(&self, key: &K, change: impl FnOnce(Option<V>) -> Result<V>) -> Result<V> {
        let value = change(self.get(key)?)?;
        self.set(key, &value)?;
        Ok(value)
    }

    /// Forgets a key.
    pub fn delete(&self, key: &K) {
        delete(&self.key(key));
    }

    /// At most `limit` entries in key order, beginning after the key `after`.
    pub fn scan(&self, after: Option<&K>, limit: usize) -> Result<Vec<(K, V)>> {
        let prefix = self.prefix();
        let after = after.map(|key| self.key(key));
        let entry = |(key, value): (Vec<u8>, Vec<u8>)| {
            let key = K::read(&key[prefix.len()..])
                .ok_or_else(|| Error::reject(format!("state table `{}` holds another type of key", self.name)))?;
            Ok((key, self.value(&value)?))
        };
        scan(&prefix, after.as_deref(), limit).into_iter().map(entry).collect()
    }
}

/// One named value in the state.
#[derive(Debug)]
pub struct Item<V>(Table<String, V>);

impl<V> Clone for Item<V> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<V> Copy for Item<V> {}

impl<V: Serialize + DeserializeOwned> Item<V> {
    /// An item of this name: as a table's.
    pub const fn new(name: &'static str) -> Self {
        Self(Table::new(name))
    }

    /// The value. Rejects where the state holds a value of another type.
    pub fn get(&self) -> Result<Option<V>> {
        self.0.get(&String::new())
    }

    /// Sets the value.
    pub fn set(&self, value: &V) -> Result {
        self.0.set(&String::new(), value)
    }

    /// Replaces the value by what `change` makes of it, and returns that.
    pub fn update(&self, change: impl FnOnce(Option<V>) -> Result<V>) -> Result<V> {
        self.0.update(&String::new(), change)
    }

    /// Forgets the value.
    pub fn delete(&self) {
        self.0.delete(&String::new());
    }
}
