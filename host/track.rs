//! What becomes of transactions that somebody waits for. `blocks, and a node's word -> [track] -> statements`.
//!
//! Pure. Of a transaction, by its hash or by sender and nonce, it says: `unknown`, `pending`, `dropped` (a node's word, and no more),
//! `included`, `replaced` (another one with its nonce was), `confirmed` so often, `finalized`, and `orphaned` when the block was
//! taken away. What is said of blocks follows from proven, canonical blocks alone. Nothing is said twice in a row.
//!
//! ```text
//! new -> unknown -> pending -> included -> confirmed -> finalized
//!           ^  \       |  \       |  ^
//!           |   dropped   replaced   orphaned -> (as before)
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};

use alloy_primitives::{Address, B256};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::model::{BlockRef, ChainId, Transaction};

/// Items of one chain.
pub const MOST: usize = 1_000_000;
/// Counts of confirmations that one item asks for.
const CONFIRMATIONS_MOST: usize = 16;
const LABEL_MOST: usize = 256;
/// What has come to its end is told so long to whoever asks.
const KEPT_SECONDS: u64 = 86_400;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Key {
    Hash(B256),
    Nonce(Address, u64),
}

/// As the lane key, and as its key in the state.
impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hash(hash) => write!(f, "{hash}"),
            Self::Nonce(sender, nonce) => write!(f, "{sender:?}/{nonce}"),
        }
    }
}

impl std::str::FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.split_once('/') {
            Some((sender, nonce)) => {
                sender.parse().ok().zip(nonce.parse().ok()).map(|(sender, nonce)| Self::Nonce(sender, nonce))
            }
            None => text.parse().ok().map(Self::Hash),
        };
        parsed.ok_or_else(|| format!("'{text}' is neither a transaction's hash nor SENDER/NONCE"))
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.to_string()
    }
}

impl TryFrom<String> for Key {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What is to be watched, and when to speak of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    pub key: Key,
    pub confirmations: Vec<u64>,
    pub label: Option<String>,
}

impl Wish {
    /// `Err`: what of it is too much, in a sentence.
    pub fn checked(self) -> Result<Self, String> {
        let Self { key, confirmations, label } = &self;
        if confirmations.len() > CONFIRMATIONS_MOST || confirmations.contains(&0) {
            return Err(format!("{key}: confirmations are at most {CONFIRMATIONS_MOST} numbers, each 1 or more"));
        }
        if label.as_ref().is_some_and(|label| label.len() > LABEL_MOST) {
            return Err(format!("{key}: a label has at most {LABEL_MOST} bytes"));
        }
        Ok(self)
    }
}

/// A block that holds it, or one that took its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub number: u64,
    pub hash: B256,
    pub parent: B256,
    pub time: u64,
    pub index: u32,
    pub success: Option<bool>,
}

impl Place {
    fn of(at: &BlockRef, tx: &Transaction) -> Self {
        let BlockRef { number, hash, parent, time, .. } = *at;
        Self { number, hash, parent, time, index: tx.index, success: tx.success }
    }

    pub fn block(&self, chain: ChainId) -> BlockRef {
        BlockRef { chain, number: self.number, hash: self.hash, parent: self.parent, time: self.time }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "status")]
pub enum Fate {
    /// Nobody was asked yet.
    New,
    Unknown,
    /// A node knew it then, seconds since 1970.
    Pending {
        seen: u64,
    },
    Dropped,
    /// `said`: the most confirmations that were told.
    Included {
        at: Place,
        said: u64,
    },
    Replaced {
        at: Place,
        by: B256,
    },
    Finalized {
        at: Place,
        by: Option<B256>,
        since: u64,
    },
    Orphaned {
        was: Place,
    },
}

impl Fate {
    fn place(&self) -> Option<&Place> {
        match self {
            Self::Included { at, .. } | Self::Replaced { at, .. } => Some(at),
            _ => None,
        }
    }

    /// In no block: the node is asked.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::New | Self::Unknown | Self::Pending { .. } | Self::Dropped | Self::Orphaned { .. })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Its own; of a nonce, that of the transaction that has it.
    pub hash: Option<B256>,
    pub sender: Option<Address>,
    pub nonce: Option<u64>,
    /// Counts to be told at, rising.
    pub confirmations: Vec<u64>,
    pub label: Option<String>,
    #[serde(flatten)]
    pub fate: Fate,
}

/// What is said of one item: its key, the block that it is about, and the payload.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    pub key: Key,
    pub block: Option<Place>,
    pub payload: Value,
}

impl Item {
    pub fn new(key: Key, mut confirmations: Vec<u64>, label: Option<String>) -> Self {
        confirmations.sort_unstable();
        confirmations.dedup();
        let (hash, sender, nonce) = match key {
            Key::Hash(hash) => (Some(hash), None, None),
            Key::Nonce(sender, nonce) => (None, Some(sender), Some(nonce)),
        };
        Self { hash, sender, nonce, confirmations, label, fate: Fate::New }
    }

    /// As it is told; `confirmations` where it is of so many.
    pub fn told(&self, confirmations: Option<u64>) -> Value {
        let (status, place, by) = match &self.fate {
            Fate::New => ("new", None, None),
            Fate::Unknown => ("unknown", None, None),
            Fate::Pending { .. } => ("pending", None, None),
            Fate::Dropped => ("dropped", None, None),
            Fate::Included { at, .. } if confirmations.is_some() => ("confirmed", Some(at), None),
            Fate::Included { at, .. } => ("included", Some(at), None),
            Fate::Replaced { at, by } => ("replaced", Some(at), Some(by)),
            Fate::Finalized { at, by, .. } => ("finalized", Some(at), by.as_ref()),
            Fate::Orphaned { was } => ("orphaned", Some(was), None),
        };
        let mut told = json!({
            "status": status,
            "hash": self.hash,
            "sender": self.sender.map(|sender| format!("{sender:?}")),
            "nonce": self.nonce.map(|nonce| nonce.to_string()),
            // By blocks; the rest is a node's word.
            "proven": place.is_some(),
        });
        if let Some(at) = place {
            told["block"] = json!(at.number);
            told["blockhash"] = json!(at.hash);
            told["transaction_index"] = json!(at.index);
            told["success"] = json!(at.success);
        }
        if let Some(by) = by {
            told["replaced_by"] = json!(by);
        }
        if let Some(count) = confirmations {
            told["confirmations"] = json!(count);
        }
        if let Some(label) = &self.label {
            told["label"] = json!(label);
        }
        told
    }
}

/// What a node says of one that is in no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Unknown,
    /// Who sent it, with which nonce, where it told.
    Pending(Option<(Address, u64)>),
}

/// The items of one chain.
#[derive(Debug, Default)]
pub struct Tracker {
    items: BTreeMap<Key, Item>,
    by_nonce: HashMap<(Address, u64), BTreeSet<Key>>,
    /// In a block that is not final.
    placed: BTreeSet<Key>,
    said: Vec<Statement>,
    /// To be written down: what has changed, or is gone.
    changed: BTreeSet<Key>,
}

impl Tracker {
    pub fn load(items: impl IntoIterator<Item = (Key, Item)>) -> Self {
        let mut tracker = Self::default();
        for (key, item) in items {
            tracker.insert(key, item);
        }
        tracker
    }

    fn insert(&mut self, key: Key, item: Item) {
        if let (Some(sender), Some(nonce)) = (item.sender, item.nonce) {
            self.by_nonce.entry((sender, nonce)).or_default().insert(key);
        }
        if item.fate.place().is_some() {
            self.placed.insert(key);
        }
        self.items.insert(key, item);
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub fn get(&self, key: &Key) -> Option<&Item> {
        self.items.get(key)
    }

    pub fn list(&self, after: Option<Key>) -> impl Iterator<Item = (&Key, &Item)> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.items.range((after.map_or(Unbounded, Excluded), Unbounded))
    }

    /// Blocks have something to say of it.
    pub fn is_waiting(&self) -> bool {
        self.items.values().any(|item| !matches!(item.fate, Fate::Finalized { .. }))
    }

    /// Those of which the node is asked.
    pub fn open(&self) -> impl Iterator<Item = (&Key, &Item)> {
        self.items.iter().filter(|(_, item)| item.fate.is_open())
    }

    /// False where it is watched already; what it asks for is what it asks for now.
    pub fn watch(&mut self, key: Key, confirmations: Vec<u64>, label: Option<String>) -> bool {
        let new = Item::new(key, confirmations, label);
        self.changed.insert(key);
        match self.items.get_mut(&key) {
            Some(item) => {
                (item.confirmations, item.label) = (new.confirmations, new.label);
                false
            }
            None => {
                self.insert(key, new);
                true
            }
        }
    }

    pub fn forget(&mut self, key: &Key) -> bool {
        let Some(item) = self.items.remove(key) else { return false };
        if let (Some(sender), Some(nonce)) = (item.sender, item.nonce)
            && let Some(keys) = self.by_nonce.get_mut(&(sender, nonce))
        {
            keys.remove(key);
            if keys.is_empty() {
                self.by_nonce.remove(&(sender, nonce));
            }
        }
        self.placed.remove(key);
        self.changed.insert(*key);
        true
    }

    /// What came to its end more than a day ago.
    pub fn forget_old(&mut self, now: u64) {
        let old = |item: &Item| matches!(item.fate, Fate::Finalized { since, .. } if since + KEPT_SECONDS < now);
        let keys: Vec<Key> = self.items.iter().filter(|(_, item)| old(item)).map(|(key, _)| *key).collect();
        for key in keys {
            self.forget(&key);
        }
    }

    fn turn(&mut self, key: Key, fate: Fate) {
        let Some(item) = self.items.get_mut(&key) else { return };
        item.fate = fate;
        if item.fate.place().is_some() {
            self.placed.insert(key);
        } else {
            self.placed.remove(&key);
        }
        self.changed.insert(key);
        self.say(key, None);
    }

    fn say(&mut self, key: Key, confirmations: Option<u64>) {
        let Some(item) = self.items.get(&key) else { return };
        let block = match &item.fate {
            Fate::Included { at, .. } | Fate::Replaced { at, .. } | Fate::Finalized { at, .. } => Some(*at),
            Fate::Orphaned { was } => Some(*was),
            _ => None,
        };
        self.said.push(Statement { key, block, payload: item.told(confirmations) });
    }

    /// A node's word on one that is in no block. `dropped_after`: seconds in which it was not seen any more.
    pub fn looked(&mut self, key: Key, look: Look, now: u64, dropped_after: u64) {
        let Some(item) = self.items.get_mut(&key) else { return };
        if let Look::Pending(Some((sender, nonce))) = look
            && item.sender.is_none()
        {
            (item.sender, item.nonce) = (Some(sender), Some(nonce));
            self.by_nonce.entry((sender, nonce)).or_default().insert(key);
            self.changed.insert(key);
        }
        match (&mut item.fate, look) {
            (Fate::Pending { seen }, Look::Pending(_)) => *seen = now,
            (Fate::New | Fate::Unknown | Fate::Dropped | Fate::Orphaned { .. }, Look::Pending(_)) => {
                self.turn(key, Fate::Pending { seen: now });
            }
            (Fate::New, Look::Unknown) => self.turn(key, Fate::Unknown),
            (Fate::Pending { seen }, Look::Unknown) if seen.saturating_add(dropped_after) <= now => {
                self.turn(key, Fate::Dropped);
            }
            // Orphaned and unknown: the node may be about to hear of it again.
            _ => {}
        }
    }

    /// Blocks that were taken away: whatever stood in one of them.
    pub fn orphan(&mut self, is_canonical: impl Fn(&Place) -> bool) {
        let placed: Vec<Key> = self.placed.iter().copied().collect();
        for key in placed {
            let place = self.items.get(&key).and_then(|item| item.fate.place()).copied();
            if let Some(was) = place.filter(|place| !is_canonical(place)) {
                self.turn(key, Fate::Orphaned { was });
                let Some(item) = self.items.get_mut(&key) else { continue };
                if matches!(key, Key::Nonce(..)) {
                    item.hash = None;
                }
            }
        }
    }

    /// A canonical block's transactions, in order. A block may come twice.
    pub fn block(&mut self, at: &BlockRef, transactions: &[Transaction]) {
        for tx in transactions {
            let own = Key::Hash(tx.hash);
            if self.items.contains_key(&own) {
                self.include(own, at, tx);
            }
            let rivals = self.by_nonce.get(&(tx.from, tx.nonce)).into_iter().flatten();
            let rivals: Vec<Key> = rivals.filter(|key| **key != own).copied().collect();
            for key in rivals {
                match key {
                    Key::Nonce(..) => self.include(key, at, tx),
                    Key::Hash(_) => {
                        let place = Place::of(at, tx);
                        let known = self.items.get(&key).is_none_or(|item| match &item.fate {
                            Fate::Replaced { at, .. } => *at == place,
                            Fate::Finalized { .. } => true,
                            _ => false,
                        });
                        if !known {
                            self.turn(key, Fate::Replaced { at: place, by: tx.hash });
                        }
                    }
                }
            }
        }
    }

    fn include(&mut self, key: Key, at: &BlockRef, tx: &Transaction) {
        let place = Place::of(at, tx);
        let Some(item) = self.items.get_mut(&key) else { return };
        if item.sender.is_none() {
            (item.sender, item.nonce) = (Some(tx.from), Some(tx.nonce));
            self.by_nonce.entry((tx.from, tx.nonce)).or_default().insert(key);
        }
        let known = match &item.fate {
            Fate::Included { at, .. } => *at == place,
            Fate::Finalized { .. } => true,
            _ => false,
        };
        if !known {
            item.hash = Some(tx.hash);
            self.turn(key, Fate::Included { at: place, said: 0 });
        }
    }

    /// The chain stands so high, and is final so far: of blocks that were shown.
    pub fn stands(&mut self, tip: u64, finalized: u64, now: u64) {
        let placed: Vec<Key> = self.placed.iter().copied().collect();
        for key in placed {
            let Some(item) = self.items.get_mut(&key) else { continue };
            let mut counts = Vec::new();
            if let Fate::Included { at, said } = &mut item.fate {
                let confirmed = (tip + 1).saturating_sub(at.number);
                counts.extend(item.confirmations.iter().filter(|n| **n > *said && **n <= confirmed));
                *said = counts.last().copied().unwrap_or(*said);
            }
            if !counts.is_empty() {
                self.changed.insert(key);
                counts.into_iter().for_each(|count| self.say(key, Some(count)));
            }
            let fate = self.items.get(&key).map(|item| item.fate.clone());
            match fate {
                Some(Fate::Included { at, .. }) if at.number <= finalized => {
                    self.turn(key, Fate::Finalized { at, by: None, since: now });
                }
                Some(Fate::Replaced { at, by }) if at.number <= finalized => {
                    self.turn(key, Fate::Finalized { at, by: Some(by), since: now });
                }
                _ => {}
            }
        }
    }

    /// What was said, in order, and what has changed, since the last time.
    pub fn take(&mut self) -> (Vec<Statement>, Vec<(Key, Option<Item>)>) {
        let changed = std::mem::take(&mut self.changed).into_iter();
        let changed = changed.map(|key| (key, self.items.get(&key).cloned())).collect();
        (std::mem::take(&mut self.said), changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::U256;
    use proptest::prelude::*;

    const CHAIN: ChainId = ChainId(1);

    fn hash(n: u64) -> B256 {
        B256::from(U256::from(n + 1))
    }

    /// Transaction `n` of four senders and five nonces: two of each place, that replace each other.
    fn tx(n: u64, index: u32) -> Transaction {
        Transaction {
            index,
            hash: hash(n),
            from: Address::with_last_byte((n % 4) as u8),
            to: None,
            created: None,
            value: U256::ZERO,
            input: Default::default(),
            nonce: n / 4 % 5,
            kind: 2,
            gas_limit: 0,
            gas_used: None,
            gas_price: 0,
            success: Some(!n.is_multiple_of(3)),
        }
    }

    fn key(n: u64) -> Key {
        if n < 40 { Key::Hash(hash(n)) } else { Key::Nonce(Address::with_last_byte((n % 4) as u8), n / 4 % 5) }
    }

    #[derive(Clone, Debug)]
    enum Act {
        Watch(u64),
        Forget(u64),
        /// A block with these, where their nonces are not used yet.
        Grow(Vec<u64>),
        Reorg(usize),
        Finalize(u64),
        /// The node knows it, or not.
        Look(u64, bool),
        Restart,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            3 => (0u64..60).prop_map(Act::Watch),
            1 => (0u64..60).prop_map(Act::Forget),
            6 => proptest::collection::vec(0u64..40, 0..5).prop_map(Act::Grow),
            2 => (1usize..6).prop_map(Act::Reorg),
            1 => (0u64..4).prop_map(Act::Finalize),
            4 => (0u64..60, any::<bool>()).prop_map(|(n, known)| Act::Look(n, known)),
            1 => Just(Act::Restart),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_last_is_what_the_chain_has_and_nothing_is_said_twice(acts in proptest::collection::vec(act(), 1..80)) {
            let mut tracker = Tracker::default();
            let mut stored: BTreeMap<Key, Item> = BTreeMap::new();
            let mut chain: Vec<(BlockRef, Vec<Transaction>)> = Vec::new();
            let (mut finalized, mut salt, mut now) = (0usize, 1u64, 1_000u64);
            let mut last: BTreeMap<Key, Value> = BTreeMap::new();
            let mut watched: BTreeMap<Key, usize> = BTreeMap::new();
            for act in acts {
                now += 7;
                match act {
                    Act::Watch(n) => {
                        if tracker.watch(key(n), vec![3, 1], None) {
                            watched.insert(key(n), chain.len());
                        }
                    }
                    Act::Forget(n) => {
                        tracker.forget(&key(n));
                        watched.remove(&key(n));
                        last.remove(&key(n));
                    }
                    Act::Grow(all) => {
                        let mut used: BTreeSet<(Address, u64)> =
                            chain.iter().flat_map(|(_, txs)| txs).map(|tx| (tx.from, tx.nonce)).collect();
                        let mut txs = Vec::new();
                        for n in all {
                            let tx = tx(n, txs.len() as u32);
                            if used.insert((tx.from, tx.nonce)) {
                                txs.push(tx);
                            }
                        }
                        salt += 1;
                        let parent = chain.last().map_or(B256::ZERO, |(at, _)| at.hash);
                        let at = BlockRef { chain: CHAIN, number: chain.len() as u64 + 1, hash: hash(1_000 + salt), parent, time: 0 };
                        tracker.block(&at, &txs);
                        chain.push((at, txs));
                    }
                    Act::Reorg(depth) => {
                        chain.truncate(finalized.max(chain.len().saturating_sub(depth)));
                        tracker.orphan(|place| chain.iter().any(|(at, _)| at.hash == place.hash));
                    }
                    Act::Finalize(depth) => finalized = finalized.max(chain.len().saturating_sub(depth as usize)),
                    Act::Look(n, known) => {
                        let tx = tx(n % 40, 0);
                        let look = if known { Look::Pending(Some((tx.from, tx.nonce))) } else { Look::Unknown };
                        // Of those in a block nobody is asked.
                        if tracker.get(&key(n)).is_some_and(|item| item.fate.is_open()) && matches!(key(n), Key::Hash(_)) {
                            tracker.looked(key(n), look, now, 20);
                        }
                    }
                    Act::Restart => tracker = Tracker::load(stored.clone()),
                }
                // Blocks are shown again, as after a restart that had not written its cursor.
                for (at, txs) in chain.iter().rev().take(2).rev() {
                    tracker.block(at, txs);
                }
                if !chain.is_empty() {
                    tracker.stands(chain.len() as u64, finalized as u64, now);
                }
                let (said, changed) = tracker.take();
                for Statement { key, payload, .. } in said {
                    prop_assert_ne!(last.get(&key), Some(&payload), "{} is said twice", key);
                    let before = last.get(&key).and_then(|told| told["status"].as_str()).unwrap_or("");
                    let status = payload["status"].as_str().unwrap();
                    let follows = match status {
                        "confirmed" => matches!(before, "included" | "confirmed"),
                        "finalized" => matches!(before, "included" | "confirmed" | "replaced"),
                        "orphaned" => matches!(before, "included" | "confirmed" | "replaced"),
                        "dropped" => before == "pending",
                        _ => before != "finalized",
                    };
                    prop_assert!(follows, "{key}: {before} and then {status}");
                    last.insert(key, payload);
                }
                for (key, item) in changed {
                    match item {
                        // As the journal has it.
                        Some(item) => {
                            let text = serde_json::to_vec(&item).unwrap();
                            stored.insert(key, serde_json::from_slice(&text).unwrap());
                        }
                        None => drop(stored.remove(&key)),
                    }
                }
                for (key, since) in &watched {
                    let item = tracker.get(key).expect("it is watched");
                    prop_assert_eq!(stored.get(key).map(|s| &s.hash), Some(&item.hash));
                    // From the blocks that it was shown: those since it was watched.
                    let shown = chain.iter().skip(since.saturating_sub(2)).flat_map(|(at, txs)| txs.iter().map(move |tx| (at, tx)));
                    let it = shown.clone().find(|(_, tx)| match key {
                        Key::Hash(hash) => tx.hash == *hash,
                        Key::Nonce(sender, nonce) => (tx.from, tx.nonce) == (*sender, *nonce),
                    });
                    if let Some((at, tx)) = it.filter(|(at, _)| at.number as usize > *since) {
                        let place = match &item.fate {
                            Fate::Included { at, .. } | Fate::Finalized { at, by: None, .. } => Some(at),
                            _ => None,
                        };
                        prop_assert_eq!(place, Some(&Place::of(at, tx)), "{}", key);
                    }
                    if let Fate::Included { at, .. } | Fate::Replaced { at, .. } = &item.fate {
                        prop_assert!(chain.iter().any(|(block, _)| block.hash == at.hash), "{key} is in no block");
                        prop_assert!(at.number as usize > finalized, "{key} is final, and is not said to be");
                    }
                    if let Fate::Replaced { by, .. } = &item.fate {
                        prop_assert!(matches!(key, Key::Hash(hash) if hash != by));
                    }
                }
            }
        }
    }
}
