//! Headers that were proven, by hash: what is known is not asked for again. `node -> [headers] -> rpc`.
//!
//! A header that hashes to its name is a fact for ever. Which of them are canonical is not known here.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use alloy_primitives::B256;

use super::wire::WireBlock;

/// Ten epochs of mainnet, half an hour of a chain of two seconds. Some 1 KiB each.
const HELD: usize = 1024;

#[derive(Default)]
pub(super) struct Headers {
    held: Mutex<(HashMap<B256, Arc<WireBlock>>, VecDeque<B256>)>,
}

impl Headers {
    pub fn get(&self, hash: B256) -> Option<Arc<WireBlock>> {
        self.held.lock().expect("no panic while held").0.get(&hash).cloned()
    }

    /// Of a block whose header was proven, without its transactions.
    pub fn keep(&self, block: &WireBlock) {
        let mut held = self.held.lock().expect("no panic while held");
        let (map, order) = &mut *held;
        if map.contains_key(&block.hash) {
            return;
        }
        map.insert(block.hash, Arc::new(block.bare()));
        order.push_back(block.hash);
        if order.len() > HELD
            && let Some(oldest) = order.pop_front()
        {
            map.remove(&oldest);
        }
    }
}
