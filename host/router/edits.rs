//! Edits of watch sets: from which block on each holds, who has passed that block already, and in which order all
//! of that becomes visible. `person -> Edit -> memory and journal`.
//!
//! Without a block of its own an edit holds above everything that any consumer may have seen: nothing that is under way
//! is touched by it. One that reaches back waits until no step is under way, and then is noted for each consumer that
//! has passed its block: it is shown later what those blocks hold for the edit alone.

use std::collections::{BTreeMap, VecDeque};

use futures::FutureExt;
use tokio::sync::oneshot;

use super::consumer::FULL_RETRY;
use super::{Input, Router};
use crate::index::watch::Sets;
use crate::journal::{Consumer, ConsumerId, Journal, JournalError, Write};
use crate::model::{ChainId, Edit, EditId, Member, SetName};

/// How a set is to change. Members that are there, or that are not, change nothing.
#[derive(Debug, Clone, Default)]
pub struct Change {
    pub add: Vec<Member>,
    pub remove: Vec<Member>,
    /// What is added holds from this block on, on every chain; without it, from the next block on.
    pub from: Option<u64>,
}

/// What an edit did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edited {
    pub added: u64,
    pub removed: u64,
    /// The first block on which it holds, by chain.
    pub begins: BTreeMap<ChainId, u64>,
}

pub type Reply = oneshot::Sender<Result<Edited, String>>;

/// Edits that wait until no step is under way, and one that is being written down.
#[derive(Default)]
pub struct Edits {
    waiting: VecDeque<(SetName, Change, Reply)>,
    storing: bool,
}

impl Edits {
    /// No step may begin.
    pub fn hold(&self) -> bool {
        self.storing || !self.waiting.is_empty()
    }
}

/// Reads every set back, as its edits come to.
pub fn load(journal: &dyn Journal) -> Result<Sets, JournalError> {
    let mut sets = Sets::default();
    journal.edits(&mut |edit| {
        let set = sets.id(&edit.set);
        sets.edit(edit.id, edit.begins);
        for member in edit.add {
            sets.add(set, member, edit.id);
        }
        for member in edit.remove {
            sets.remove(set, member, edit.id);
        }
    })?;
    Ok(sets)
}

impl Router {
    pub(super) fn edit(&mut self, set: SetName, change: Change, reply: Reply) {
        if change.from.is_some() || self.edits.hold() {
            self.edits.waiting.push_back((set, change, reply));
            return self.edit_if_quiet();
        }
        self.edit_now(set, change, reply);
    }

    /// Edits that reach back are done between all steps.
    pub(super) fn edit_if_quiet(&mut self) {
        while !self.edits.storing && !self.plugins.values().flat_map(|p| p.consumers.values()).any(|c| c.busy) {
            match self.edits.waiting.pop_front() {
                Some((set, change, reply)) => self.edit_now(set, change, reply),
                None => return,
            }
        }
    }

    /// The first block of every chain that nobody has seen.
    fn unseen(&self, consumers: &[Consumer]) -> BTreeMap<ChainId, u64> {
        let mut unseen: BTreeMap<ChainId, u64> = BTreeMap::new();
        let mut seen = |chain: ChainId, number: u64| {
            let first = unseen.entry(chain).or_default();
            *first = (*first).max(number.saturating_add(1));
        };
        for chain in self.chains.values() {
            if let (Some(id), Some(path)) = (chain.id, &chain.path) {
                seen(id, path.tip().number);
            }
        }
        // Also of plugins that are not loaded, and on chains that do not answer.
        for consumer in consumers {
            if let Some(cursor) = consumer.cursor {
                seen(consumer.chain, cursor.number);
            }
        }
        unseen
    }

    fn edit_now(&mut self, name: SetName, change: Change, reply: Reply) {
        let consumers = match self.journal.consumers() {
            Ok(consumers) => consumers,
            // Whoever asked may have gone.
            Err(error) => return drop(reply.send(Err(error.to_string()))),
        };
        let mut begins = self.unseen(&consumers);
        if let Some(from) = change.from {
            begins.values_mut().for_each(|first| *first = from);
        }
        let edit = {
            let mut sets = self.sets.write();
            let (set, id) = (sets.id(&name), EditId(sets.last_edit().0 + 1));
            sets.edit(id, begins.iter().map(|(chain, block)| (*chain, *block)));
            let add = change.add.into_iter().filter(|member| sets.add(set, *member, id)).collect();
            let remove = change.remove.into_iter().filter(|member| sets.remove(set, *member, id)).collect();
            Edit { id, set: name, begins: begins.clone().into_iter().collect(), add, remove }
        };
        let catch_up = change.from.map_or(vec![], |from| self.passed(&edit, from, &consumers));
        let done = Edited { added: edit.add.len() as u64, removed: edit.remove.len() as u64, begins };
        // Handed to the writer before any step that sees it: the journal has them in this order.
        let journal = self.journal.clone();
        let write = Write::Watch { edit, catch_up };
        let mut storing = async move { store(&*journal, write).await }.boxed();
        let settle = move |stored: Result<(), String>| drop(reply.send(stored.map(|()| done)));
        if change.from.is_none() {
            match (&mut storing).now_or_never() {
                Some(stored) => settle(stored),
                None => drop(tokio::spawn(async move { settle(storing.await) })),
            }
            return;
        }
        // Matched blocks are matched anew, and nobody looks for what there is to catch up with before it is there.
        self.replan();
        self.edits.storing = true;
        self.arriving.spawn(async move {
            settle(storing.await);
            Input::Edited
        });
    }

    /// An edit that reaches back is in the journal: whoever is behind finds it there.
    pub(super) fn edited(&mut self) {
        self.edits.storing = false;
        for consumer in self.plugins.values_mut().flat_map(|p| p.consumers.values_mut()) {
            consumer.kit.catch_ups = None;
        }
        self.edit_if_quiet();
    }

    /// Consumers that are beyond the block at which an edit begins, and the blocks that they have passed since. One whose
    /// plugin is not loaded may ask for the set: that shows when it is.
    fn passed(&self, edit: &Edit, from: u64, consumers: &[Consumer]) -> Vec<(ConsumerId, u64, u64)> {
        if edit.add.is_empty() {
            return vec![];
        }
        let asks = |id: ConsumerId| {
            let loaded = self.plugins.values().flat_map(|p| p.consumers.values()).find(|c| c.id == id);
            loaded.is_none_or(|consumer| consumer.sets.contains(&edit.set))
        };
        let passed = consumers.iter().filter_map(|consumer| {
            let cursor = consumer.cursor.filter(|cursor| cursor.number >= from && asks(consumer.id))?;
            Some((consumer.id, from, cursor.number))
        });
        passed.collect()
    }
}

/// A full disk is waited for: what is in memory must not be ahead of the journal for ever.
async fn store(journal: &dyn Journal, write: Write) -> Result<(), String> {
    loop {
        match journal.commit(write.clone()).await {
            Ok(_) => return Ok(()),
            Err(JournalError::Full { why }) => {
                tracing::warn!(why, "an edit of a watch set waits for room on the disk");
                tokio::time::sleep(FULL_RETRY).await;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}
