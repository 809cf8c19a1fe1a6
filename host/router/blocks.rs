//! The blocks above finalized, fetched once and matched once for all plugins that step over them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use alloy_primitives::B256;

use crate::index::watch::SharedSets;
use crate::index::{Index, Matched};
use crate::model::{Block, BlockRef, Wanted};
use crate::source::{ReadError, Source};

/// Blocks held in memory. A plugin that lags further fetches them again.
const HELD: usize = 64;

/// The subscriptions of a chain at one time. A plugin that is dropped or replaced makes a new one.
#[derive(Debug, Default)]
pub struct Plan {
    pub index: Index,
    /// What of each block is fetched: what the index asks for, and those who watch transactions.
    pub wanted: Wanted,
    /// Tells plans apart.
    pub generation: u64,
    /// Edited while plans are in use: what a block has of them stays the same.
    pub sets: SharedSets,
}

impl Plan {
    pub fn match_block(&self, block: &Block) -> Matched {
        let sets = self.sets.read();
        let at = block.at();
        self.index.match_block(block, sets.at(at.chain, at.number))
    }
}

#[derive(Debug, Default)]
struct Held {
    block: Option<(Arc<Block>, Wanted)>,
    matched: Option<(u64, Arc<Matched>)>,
}

/// By hash, and whether with what the node's tracer tells.
type Slots = HashMap<(B256, bool), Arc<tokio::sync::Mutex<Held>>>;

pub struct Blocks {
    source: Arc<dyn Source>,
    held: Mutex<(Slots, VecDeque<(B256, bool)>)>,
}

impl Blocks {
    pub fn new(source: Arc<dyn Source>) -> Self {
        Self { source, held: Mutex::default() }
    }

    /// A block, matched against the plan. Whoever comes first fetches; the others wait for it. What moved in it is asked for
    /// where it is `traced`: whoever wants nothing of that does not wait for it, and has all else that there is.
    pub async fn matched(&self, at: &BlockRef, plan: &Plan, traced: bool) -> Result<Arc<Matched>, ReadError> {
        let held = self.slot(at, traced);
        let mut held = held.lock().await;
        if let Some((generation, matched)) = &held.matched
            && *generation == plan.generation
        {
            return Ok(matched.clone());
        }
        let wanted = &plan.wanted;
        let block = match &held.block {
            Some((block, fetched)) if fetched.covers(wanted) => block.clone(),
            _ if traced => {
                let mut block = Block::clone(&*self.fetched(at, wanted).await?);
                block.transfers = self.source.transfers(Arc::new(block.clone())).await?;
                Arc::new(block)
            }
            _ => Arc::new(self.source.block(at, wanted).await?),
        };
        held.block = Some((block.clone(), wanted.clone()));
        let matched = Arc::new(plan.match_block(&block));
        held.matched = Some((plan.generation, matched.clone()));
        Ok(matched)
    }

    /// A block with at least this, and all that the plan wants of it: fetched once for both.
    pub async fn whole(&self, at: &BlockRef, wanted: &Wanted, plan: &Plan) -> Result<Arc<Block>, ReadError> {
        let both = if plan.wanted.covers(wanted) { &plan.wanted } else { wanted };
        self.fetched(at, both).await
    }

    /// Without what the tracer tells.
    async fn fetched(&self, at: &BlockRef, wanted: &Wanted) -> Result<Arc<Block>, ReadError> {
        let held = self.slot(at, false);
        let mut held = held.lock().await;
        match &held.block {
            Some((block, fetched)) if fetched.covers(wanted) => Ok(block.clone()),
            _ => {
                let block = Arc::new(self.source.block(at, wanted).await?);
                held.block = Some((block.clone(), wanted.clone()));
                Ok(block)
            }
        }
    }

    fn slot(&self, at: &BlockRef, traced: bool) -> Arc<tokio::sync::Mutex<Held>> {
        let mut held = self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (map, order) = &mut *held;
        let key = (at.hash, traced);
        if let Some(slot) = map.get(&key) {
            return slot.clone();
        }
        let slot = Arc::<tokio::sync::Mutex<Held>>::default();
        map.insert(key, slot.clone());
        order.push_back(key);
        if order.len() > HELD
            && let Some(oldest) = order.pop_front()
        {
            map.remove(&oldest);
        }
        slot
    }

    /// The blocks that are in memory now and hold all of `wanted`, oldest first: what a new plugin is tried on.
    pub fn recent(&self, wanted: &Wanted, most: usize) -> Vec<Arc<Block>> {
        let held = self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (map, order) = &*held;
        let newest_first = order.iter().rev().filter_map(|key| {
            let held = map.get(key)?.try_lock().ok()?;
            let (block, fetched) = held.block.as_ref()?;
            fetched.covers(wanted).then(|| block.clone())
        });
        let mut blocks: Vec<Arc<Block>> = newest_first.take(most).collect();
        blocks.sort_by_key(|b| b.at().number);
        blocks.dedup_by_key(|b| b.at().number);
        blocks
    }
}
