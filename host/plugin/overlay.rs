//! What a step wrote and asked for, over what was committed before it. Reads see the step's own writes; a batch that
//! fails is taken back alone. Knows keys and bytes, nothing of plugins.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::{HOST_KEYS, StateRead};
use crate::track::Wish;

/// Counted for an entry beside its bytes, so that tiny entries are not free.
const ENTRY_BYTES: usize = 32;
/// Counted for a transaction to be watched, beside its label.
const WATCH_BYTES: usize = 256;
/// Entries asked of the journal at a time.
const CHUNK: u32 = 1024;

type Entry = (Vec<u8>, Vec<u8>);
/// `None` deletes.
type Written = Option<Vec<u8>>;

/// Why an access was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Denied {
    /// The journal could not be read.
    Journal(String),
    /// The plugin asked for too much.
    TooMuch(String),
}

pub(super) struct Overlay {
    base: Box<dyn StateRead>,
    written: BTreeMap<Vec<u8>, Written>,
    bytes: usize,
    /// What this batch replaced in `written`: `None` where the key was not there.
    undo: BTreeMap<Vec<u8>, Option<Written>>,
    bytes_before: usize,
    /// Transactions that are to be watched, and how many of them stand.
    watches: Vec<Wish>,
    watches_before: usize,
    max_bytes: usize,
    max_value: usize,
    /// Bytes of one answer to a read.
    max_read: usize,
}

fn size(key: &[u8], value: &Written) -> usize {
    ENTRY_BYTES + key.len() + value.as_ref().map_or(0, Vec::len)
}

impl Overlay {
    pub(super) fn new(base: Box<dyn StateRead>, max_bytes: usize, max_value: usize, max_read: usize) -> Self {
        Self {
            base,
            written: BTreeMap::new(),
            bytes: 0,
            undo: BTreeMap::new(),
            bytes_before: 0,
            watches: Vec::new(),
            watches_before: 0,
            max_bytes,
            max_value,
            max_read,
        }
    }

    /// What was written since the last call of this stays.
    pub(super) fn keep(&mut self) {
        self.undo.clear();
        self.bytes_before = self.bytes;
        self.watches_before = self.watches.len();
    }

    /// What was written since the last `keep` was never written.
    pub(super) fn roll_back(&mut self) {
        for (key, before) in std::mem::take(&mut self.undo) {
            match before {
                Some(value) => self.written.insert(key, value),
                None => self.written.remove(&key),
            };
        }
        self.bytes = self.bytes_before;
        self.watches.truncate(self.watches_before);
    }

    /// Earlier batches of the step used so much of the room that a batch which reaches the ceiling need not be to blame.
    pub(super) fn holds_earlier_batches(&self) -> bool {
        self.bytes_before > self.max_bytes / 2
    }

    pub(super) fn into_written(self) -> (Vec<(Vec<u8>, Option<Vec<u8>>)>, Vec<Wish>) {
        (self.written.into_iter().collect(), self.watches)
    }

    /// Counts as state does.
    pub(super) fn watch(&mut self, wish: Wish) -> Result<(), Denied> {
        let bytes = WATCH_BYTES + wish.label.as_ref().map_or(0, String::len);
        if self.bytes + bytes > self.max_bytes {
            let why = format!("the step wrote and asked for more than state_write_bytes = {}", self.max_bytes);
            return Err(Denied::TooMuch(why));
        }
        self.bytes += bytes;
        self.watches.push(wish);
        Ok(())
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Denied> {
        match self.written.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.base.get(key).map_err(Denied::Journal),
        }
    }

    pub(super) fn get_many(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, Denied> {
        let mut room = self.max_read;
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            let value = self.get(key)?;
            take(&mut room, value.as_ref().map_or(0, Vec::len), self.max_read, "get-many")?;
            values.push(value);
        }
        Ok(values)
    }

    pub(super) fn write(&mut self, key: Vec<u8>, value: Written) -> Result<(), Denied> {
        if let Some(v) = &value
            && v.len() > self.max_value
        {
            let why = format!("a state value of {} bytes is more than state_value_bytes = {}", v.len(), self.max_value);
            return Err(Denied::TooMuch(why));
        }
        // Nobody comes across one by chance; a bare part of it would hide the host's keys in a scan.
        if key.starts_with(&HOST_KEYS[..8]) {
            return Err(Denied::TooMuch("a state key that begins with eight bytes 0xff is the host's".into()));
        }
        let before = self.written.get(&key);
        let bytes = self.bytes - before.map_or(0, |b| size(&key, b)) + size(&key, &value);
        if bytes > self.max_bytes {
            let why = format!("the step wrote more state than state_write_bytes = {}", self.max_bytes);
            return Err(Denied::TooMuch(why));
        }
        self.bytes = bytes;
        if !self.undo.contains_key(&key) {
            self.undo.insert(key.clone(), before.cloned());
        }
        self.written.insert(key, value);
        Ok(())
    }

    /// Entries whose key begins with `prefix`, after the key `after`, in key order, at most `limit`.
    pub(super) fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: u32) -> Result<Vec<Entry>, Denied> {
        let limit = limit as usize;
        let mut room = self.max_read;
        let mut found: Vec<Entry> = Vec::new();
        let mut cursor: Option<Vec<u8>> = after.map(<[u8]>::to_vec);
        while found.len() < limit {
            let wanted = u32::try_from(limit - found.len()).unwrap_or(u32::MAX).min(CHUNK);
            let chunk = self.base.scan(prefix, cursor.as_deref(), wanted).map_err(Denied::Journal)?;
            // The journal has no more; else our own entries count up to the last one that it told of.
            let ended = chunk.len() < wanted as usize;
            let horizon = if ended { None } else { chunk.last().map(|(key, _)| key.clone()) };
            let mut theirs = chunk.into_iter().peekable();
            let mut ours = self.written_after(prefix, cursor.as_deref(), horizon.as_deref()).peekable();
            while found.len() < limit {
                let ours_first = match (ours.peek(), theirs.peek()) {
                    (Some((our, _)), Some((their, _))) => {
                        if *our == their {
                            theirs.next();
                            true
                        } else {
                            *our < their
                        }
                    }
                    (Some(_), None) => true,
                    (None, Some(_)) => false,
                    (None, None) => break,
                };
                let entry = if ours_first {
                    // Deleted by this step: not there.
                    ours.next().and_then(|(key, value)| value.clone().map(|value| (key.clone(), value)))
                } else {
                    theirs.next()
                };
                if let Some((key, value)) = entry {
                    take(&mut room, ENTRY_BYTES + key.len() + value.len(), self.max_read, "scan")?;
                    found.push((key, value));
                }
            }
            match horizon {
                Some(last) => cursor = Some(last),
                None => break,
            }
        }
        Ok(found)
    }

    fn written_after<'a>(
        &'a self,
        prefix: &'a [u8],
        after: Option<&[u8]>,
        up_to: Option<&[u8]>,
    ) -> Box<dyn Iterator<Item = (&'a Vec<u8>, &'a Written)> + 'a> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let to = up_to.map_or(Bound::Unbounded, Bound::Included);
        // `BTreeMap::range` panics where the end lies before the beginning.
        let reversed = match (from, up_to) {
            (Bound::Excluded(f), Some(t)) => t <= f,
            (Bound::Included(f), Some(t)) => t < f,
            _ => false,
        };
        if reversed {
            return Box::new(std::iter::empty());
        }
        Box::new(self.written.range::<[u8], _>((from, to)).take_while(move |(key, _)| key.starts_with(prefix)))
    }
}

fn take(room: &mut usize, bytes: usize, max: usize, what: &str) -> Result<(), Denied> {
    *room = room.checked_sub(bytes).ok_or_else(|| {
        Denied::TooMuch(format!("state.{what} would return more than {max} bytes; ask for less at a time"))
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::testing::MapState;
    use super::*;

    fn overlay(base: BTreeMap<Vec<u8>, Vec<u8>>) -> Overlay {
        Overlay::new(Box::new(MapState(Arc::new(base))), 10_000_000, 1000, 10_000_000)
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        // Few letters and lengths, so that keys meet and prefixes share; 255 is the end of the order.
        prop::collection::vec(prop::sample::select(vec![0u8, 1, 254, 255]), 0..4)
    }

    #[derive(Debug, Clone)]
    enum Act {
        Set(Vec<u8>, Vec<u8>),
        Delete(Vec<u8>),
        Get(Vec<u8>),
        Scan(Vec<u8>, Option<Vec<u8>>, u32),
        Keep,
        RollBack,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (key(), key()).prop_map(|(k, v)| Act::Set(k, v)),
            2 => key().prop_map(Act::Delete),
            2 => key().prop_map(Act::Get),
            4 => (key(), prop::option::of(key()), 0u32..20).prop_map(|(p, a, l)| Act::Scan(p, a, l)),
            1 => Just(Act::Keep),
            1 => Just(Act::RollBack),
        ]
    }

    proptest! {
        #[test]
        fn reads_see_own_writes_over_the_committed_state_as_a_map_does(
            base in prop::collection::btree_map(key(), key(), 0..40),
            acts in prop::collection::vec(act(), 0..60),
        ) {
            let mut overlay = overlay(base.clone());
            let mut model = base.clone();
            let mut kept = base;
            for act in acts {
                match act {
                    Act::Set(k, v) => { overlay.write(k.clone(), Some(v.clone())).unwrap(); model.insert(k, v); }
                    Act::Delete(k) => { overlay.write(k.clone(), None).unwrap(); model.remove(&k); }
                    Act::Get(k) => prop_assert_eq!(overlay.get(&k).unwrap(), model.get(&k).cloned()),
                    Act::Keep => { overlay.keep(); kept = model.clone(); }
                    Act::RollBack => { overlay.roll_back(); model = kept.clone(); }
                    Act::Scan(prefix, after, limit) => {
                        let expected: Vec<Entry> = model.iter()
                            .filter(|(k, _)| k.starts_with(&prefix) && after.as_ref().is_none_or(|a| *k > a))
                            .take(limit as usize).map(|(k, v)| (k.clone(), v.clone())).collect();
                        prop_assert_eq!(overlay.scan(&prefix, after.as_deref(), limit).unwrap(), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn a_scan_goes_on_where_a_chunk_of_the_journal_is_deleted_by_the_step() {
        let base: BTreeMap<Vec<u8>, Vec<u8>> = (0..3000u32).map(|i| (i.to_be_bytes().to_vec(), vec![1])).collect();
        let mut overlay = overlay(base);
        for i in 0..2500u32 {
            overlay.write(i.to_be_bytes().to_vec(), None).unwrap();
        }
        let found = overlay.scan(&[], None, 10).unwrap();
        assert_eq!(
            found.iter().map(|(k, _)| k.clone()).collect::<Vec<_>>(),
            (2500..2510u32).map(|i| i.to_be_bytes().to_vec()).collect::<Vec<_>>()
        );
        assert_eq!(overlay.scan(&[], None, u32::MAX).unwrap().len(), 500);
    }

    #[test]
    fn ceilings_name_themselves_and_a_journal_error_is_not_an_absent_key() {
        struct Broken;
        impl StateRead for Broken {
            fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, String> {
                Err("disk".into())
            }
            fn scan(&self, _: &[u8], _: Option<&[u8]>, _: u32) -> Result<Vec<Entry>, String> {
                Err("disk".into())
            }
        }
        let mut overlay = Overlay::new(Box::new(Broken), 200, 100, 120);
        assert_eq!(overlay.get(b"k"), Err(Denied::Journal("disk".into())));
        assert_eq!(overlay.scan(b"", None, 1), Err(Denied::Journal("disk".into())));
        let why = |r: Result<(), Denied>| match r.unwrap_err() {
            Denied::TooMuch(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(why(overlay.write(b"k".to_vec(), Some(vec![0; 101]))).contains("state_value_bytes = 100"));
        overlay.write(b"k".to_vec(), Some(vec![0; 100])).unwrap();
        // Written again it does not count twice.
        overlay.write(b"k".to_vec(), Some(vec![1; 100])).unwrap();
        assert!(why(overlay.write(b"l".to_vec(), Some(vec![0; 100]))).contains("state_write_bytes = 200"));
        let keys = [b"k".to_vec(), b"k".to_vec()];
        assert!(matches!(overlay.get_many(&keys), Err(Denied::TooMuch(why)) if why.contains("get-many")));
    }
}
