//! A chain in memory that grows and reorganises by a seed, as a [`Source`]: what the end-to-end simulations
//! follow. It answers as an honest node does, and fails now and then, as an honest node does too.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use chainweir::model::{Block, BlockRef, ChainId, Header, Log, Transaction, Wanted};
use chainweir::source::{Range, ReadError, Source, Tag};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;

pub const CHAIN: ChainId = ChainId(1337);

pub fn transfer_topic() -> B256 {
    keccak256("Transfer(address,address,uint256)")
}

struct Tree {
    chain: ChainId,
    rng: StdRng,
    blocks: HashMap<B256, Block>,
    /// The canonical chain from genesis.
    path: Vec<B256>,
    finalized: usize,
    /// One in so many reads fails; 0 for never.
    fail_one_in: u32,
}

pub struct SimChain {
    tree: Mutex<Tree>,
    changed: Notify,
    depth: u64,
}

impl SimChain {
    /// `depth`: how far behind the tip finalized stands; no reorg is deeper.
    pub fn new(seed: u64, depth: u64) -> Self {
        Self::of(CHAIN, seed, depth)
    }

    /// One chain of several.
    pub fn of(chain: ChainId, seed: u64, depth: u64) -> Self {
        let mut tree = Tree {
            chain,
            rng: StdRng::seed_from_u64(seed),
            blocks: HashMap::new(),
            path: vec![],
            finalized: 0,
            fail_one_in: 0,
        };
        tree.push();
        Self { tree: Mutex::new(tree), changed: Notify::new(), depth }
    }

    pub fn fail_one_in(&self, n: u32) {
        self.tree.lock().unwrap().fail_one_in = n;
    }

    /// Grows by `n` blocks.
    pub fn grow(&self, n: usize) {
        let mut tree = self.tree.lock().unwrap();
        for _ in 0..n {
            tree.push();
        }
        tree.finalize(self.depth);
        self.changed.notify_waiters();
    }

    /// Takes `depth` blocks away and puts `depth + more` others in their place; returns how deep it really went.
    pub fn reorg(&self, depth: usize, more: usize) -> usize {
        let mut tree = self.tree.lock().unwrap();
        let depth = depth.min(tree.path.len() - 1 - tree.finalized);
        let keep = tree.path.len() - depth;
        tree.path.truncate(keep);
        for _ in 0..depth + more {
            tree.push();
        }
        tree.finalize(self.depth);
        self.changed.notify_waiters();
        depth
    }

    /// Breaks the promise of finality: takes `depth` blocks away, final ones too.
    pub fn deep_reorg(&self, depth: usize) {
        let mut tree = self.tree.lock().unwrap();
        let keep = tree.path.len() - depth;
        tree.path.truncate(keep);
        for _ in 0..depth + 1 {
            tree.push();
        }
        self.changed.notify_waiters();
    }

    pub fn tip(&self) -> BlockRef {
        let tree = self.tree.lock().unwrap();
        tree.blocks[tree.path.last().unwrap()].at()
    }

    pub fn finalized(&self) -> u64 {
        self.tree.lock().unwrap().finalized as u64
    }

    /// Every log of the canonical chain, in order, with its block.
    pub fn canonical_logs(&self) -> Vec<(BlockRef, Log)> {
        let tree = self.tree.lock().unwrap();
        tree.path
            .iter()
            .flat_map(|hash| {
                let block = &tree.blocks[hash];
                block.logs.iter().map(|log| (block.at(), log.clone()))
            })
            .collect()
    }
}

impl Tree {
    fn push(&mut self) {
        let number = self.path.len() as u64;
        let parent = self.path.last().copied().unwrap_or_default();
        let hash = keccak256(self.rng.random::<[u8; 32]>());
        let at = BlockRef { chain: self.chain, number, hash, parent, time: 1_700_000_000 + 12 * number };
        let logs: Vec<Log> = (0..self.rng.random_range(0..6u32))
            .map(|index| Log {
                index,
                transaction_index: index,
                transaction_hash: keccak256([hash.as_slice(), &index.to_le_bytes()].concat()),
                address: Address::repeat_byte(self.rng.random_range(1..5)),
                topics: vec![
                    transfer_topic(),
                    Address::repeat_byte(self.rng.random_range(10..14)).into_word(),
                    Address::repeat_byte(self.rng.random_range(10..14)).into_word(),
                ],
                data: Bytes::from(U256::from(self.rng.random::<u32>()).to_be_bytes_vec()),
            })
            .collect();
        let transactions = logs
            .iter()
            .map(|log| Transaction {
                index: log.transaction_index,
                hash: log.transaction_hash,
                from: Address::repeat_byte(10),
                to: Some(log.address),
                created: None,
                value: U256::from(log.index),
                input: Bytes::new(),
                nonce: number,
                kind: 2,
                gas_limit: 21_000,
                gas_used: Some(21_000),
                gas_price: 1,
                success: Some(true),
            })
            .collect();
        let header = Header {
            at,
            gas_used: 0,
            gas_limit: 30_000_000,
            base_fee: Some(1),
            beneficiary: Address::ZERO,
            transaction_count: Some(logs.len() as u32),
        };
        self.blocks.insert(hash, Block { header, transactions, transfers: vec![], logs });
        self.path.push(hash);
    }

    fn finalize(&mut self, depth: u64) {
        self.finalized = self.finalized.max((self.path.len() - 1).saturating_sub(depth as usize));
    }

    fn stumble(&mut self) -> Result<(), ReadError> {
        if self.fail_one_in > 0 && self.rng.random_range(0..self.fail_one_in) == 0 {
            return Err(ReadError::Again { why: "a stumble of the simulation".into(), after: None });
        }
        Ok(())
    }

    fn at(&self, number: u64) -> Result<BlockRef, ReadError> {
        let hash = self.path.get(number as usize);
        let hash = hash.ok_or_else(|| ReadError::Unknown { what: format!("block {number}") })?;
        Ok(self.blocks[hash].at())
    }
}

fn only(block: &Block, wanted: &Wanted) -> Block {
    let mut block = block.clone();
    if !wanted.transactions {
        block.transactions.clear();
    }
    if !wanted.logs {
        block.logs.clear();
    }
    block
}

#[async_trait::async_trait]
impl Source for SimChain {
    fn chain(&self) -> ChainId {
        self.tree.lock().unwrap().chain
    }
    async fn head(&self) -> Result<BlockRef, ReadError> {
        let mut tree = self.tree.lock().unwrap();
        tree.stumble()?;
        tree.at(tree.path.len() as u64 - 1)
    }
    async fn tagged(&self, _: Tag) -> Result<Option<BlockRef>, ReadError> {
        let mut tree = self.tree.lock().unwrap();
        tree.stumble()?;
        tree.at(tree.finalized as u64).map(Some)
    }
    async fn by_hash(&self, hash: B256) -> Result<BlockRef, ReadError> {
        let mut tree = self.tree.lock().unwrap();
        tree.stumble()?;
        tree.blocks.get(&hash).map(Block::at).ok_or_else(|| ReadError::Unknown { what: hash.to_string() })
    }
    async fn by_number(&self, number: u64) -> Result<BlockRef, ReadError> {
        let mut tree = self.tree.lock().unwrap();
        tree.stumble()?;
        tree.at(number)
    }
    async fn block(&self, at: &BlockRef, wanted: &Wanted) -> Result<Block, ReadError> {
        let mut tree = self.tree.lock().unwrap();
        tree.stumble()?;
        // An orphaned block is forgotten by many a node.
        if !tree.path.contains(&at.hash) {
            return Err(ReadError::Unknown { what: at.to_string() });
        }
        Ok(only(&tree.blocks[&at.hash], wanted))
    }
    async fn range(&self, from: u64, to: u64, wanted: &Wanted) -> Result<Range, ReadError> {
        let mut tree = self.tree.lock().unwrap();
        tree.stumble()?;
        // A provider answers with less where it likes.
        let to = to.min(from + tree.rng.random_range(0..50));
        let blocks = (from..=to).map(|n| tree.at(n).map(|at| only(&tree.blocks[&at.hash], wanted)));
        Ok(Range { blocks: blocks.collect::<Result<_, _>>()?, to: tree.at(to)? })
    }
    async fn changed(&self) {
        // A hint may be missed: a source comes back within its polling interval.
        tokio::select! {
            () = self.changed.notified() => {}
            () = tokio::time::sleep(std::time::Duration::from_millis(20)) => {}
        }
    }
}

/// What an ERC-20 transfer in a log looks like to `erc20-transfers`, and the totals that it keeps.
pub fn expected_totals(logs: &[(BlockRef, Log)]) -> BTreeMap<Address, (u64, U256)> {
    let mut totals = BTreeMap::new();
    for (_, log) in logs {
        let total: &mut (u64, U256) = totals.entry(log.address).or_default();
        total.0 += 1;
        total.1 = total.1.wrapping_add(U256::from_be_slice(&log.data));
    }
    totals
}
