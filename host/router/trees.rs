//! Promise 2, a million times over: whatever trees of blocks chains grow, and however they are offered, the follower's path
//! is the ancestry of the best head, and every consumer's state, walked by [`next`] and its own undo, is that of a replay of
//! this path alone.
//!
//! 20,000 trees by default, a million with `CHAINWEIR_LONG=1`. A tree that fails names its seed; `CHAINWEIR_SEED=n` plays
//! that one alone.

use alloy_primitives::{B256, U256};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::next::{Next, Place, next};
use crate::chain::{Follower, Halt, Offer};
use crate::model::{BlockRef, BlockUpdate, ChainId};

/// No branch begins further below the newest block.
const DEPTH: usize = 64;

/// One chain: every block that was ever made, what follows it, and who consumes it. A block's hash is its place in the list.
struct Chain {
    blocks: Vec<BlockRef>,
    follower: Follower,
    /// The updates, applied to an empty list.
    replay: Vec<BlockRef>,
    consumers: Vec<Consumer>,
}

/// As the journal holds one: a step a block in which something was done, with what undoes it.
pub(super) struct Consumer {
    pub(super) place: Place,
    /// Of which blocks it takes something: one in so many.
    one_in: u64,
    state: u64,
    /// Block, the state before it. Dropped below finalized.
    steps: Vec<(BlockRef, u64)>,
}

fn fold(state: u64, block: &BlockRef) -> u64 {
    (state ^ index(block.hash) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17)
}

pub(super) fn hash(index: usize) -> B256 {
    B256::from(U256::from(index as u64 + 1))
}

pub(super) fn index(hash: B256) -> usize {
    usize::from_be_bytes(hash[24..].try_into().expect("eight bytes")) - 1
}

impl Chain {
    fn new(chain: u64, rng: &mut StdRng) -> Self {
        let number = rng.random_range(0..1_000);
        let genesis = BlockRef { chain: ChainId(chain), number, hash: hash(0), parent: B256::ZERO, time: number };
        let consumers = (0..rng.random_range(1..4)).map(|_| {
            let mut consumer = Consumer::begin_at(number + rng.random_range(0..40), rng.random_range(1..5));
            (consumer.place.safe, consumer.place.finalized) = (number, number);
            consumer
        });
        let consumers = consumers.collect();
        Self { blocks: vec![genesis], follower: Follower::new(genesis), replay: vec![genesis], consumers }
    }

    fn parent(&self, block: &BlockRef) -> Option<BlockRef> {
        (block.parent != B256::ZERO).then(|| self.blocks[index(block.parent)])
    }

    fn grow(&mut self, back: usize) {
        let parent = self.blocks[self.blocks.len() - 1 - back.min(self.blocks.len() - 1)];
        let (number, hash) = (parent.number + 1, hash(self.blocks.len()));
        self.blocks.push(BlockRef { number, hash, parent: parent.hash, time: number, ..parent });
    }

    /// Offers a head as the driver does: fetches by hash what the follower needs.
    fn offer(&mut self, head: BlockRef) {
        let (tip, finalized) = (self.follower.tip(), self.follower.finalized());
        let mut branch = vec![head];
        loop {
            match self.follower.offer(&branch) {
                Offer::Need { hash, .. } => branch.push(self.blocks[index(hash)]),
                Offer::Nothing => return assert!(head.number < tip.number || head.hash == tip.hash),
                Offer::Halt(halt) => {
                    assert!(matches!(halt, Halt::BelowFinalized { .. }));
                    let mut at = head;
                    while at.number > finalized.number {
                        at = self.parent(&at).expect("above finalized");
                    }
                    return assert_ne!(at.hash, finalized.hash, "it halts without cause");
                }
                Offer::Changed(updates) => {
                    for update in updates {
                        match update {
                            BlockUpdate::Removed(block) => {
                                assert!(block.number > finalized.number, "a final block is removed");
                                assert_eq!(self.replay.pop(), Some(block));
                            }
                            BlockUpdate::Added(block) => {
                                assert_eq!(self.replay.last().map(|last| last.hash), Some(block.parent));
                                self.replay.push(block);
                            }
                            BlockUpdate::Finalized(_) => unreachable!("an offer finalizes nothing"),
                        }
                    }
                    return assert_eq!(self.follower.tip(), head);
                }
            }
        }
    }

    fn finalize(&mut self, behind: u64) {
        let before = self.follower.finalized().number;
        let target = self.follower.tip().number.saturating_sub(behind);
        if let Some(block) = self.follower.at(target).copied()
            && let Some(update) = self.follower.finalize(&block).expect("it is on the path")
        {
            assert!(matches!(update, BlockUpdate::Finalized(f) if f.number > before), "finalized goes back");
        }
    }

    /// The process ends and begins: a new path from the finalized block, and cursors that nobody has checked since.
    fn restart(&mut self) {
        let (finalized, tip) = (self.follower.finalized(), self.follower.tip());
        let mut branch: Vec<BlockRef> = self.replay.iter().filter(|b| b.number > finalized.number).copied().collect();
        branch.reverse();
        self.follower = Follower::new(finalized);
        if !branch.is_empty() {
            assert!(matches!(self.follower.offer(&branch), Offer::Changed(_)));
        }
        assert_eq!(self.follower.tip(), tip);
        self.consumers.iter_mut().for_each(|c| c.place.verified = false);
    }

    /// One step of one consumer; false where it has nothing to do.
    fn step(&mut self, which: usize, knows_orphans: bool) -> bool {
        let Self { blocks, follower, replay, consumers } = self;
        let consumer = &mut consumers[which];
        let finalized = follower.finalized().number;
        let first = replay[0].number;
        let canonical = |number: u64| replay[usize::try_from(number - first).expect("few blocks")];
        let next = match next(&consumer.place, follower, finalized) {
            Next::Range { from, to } => Next::Range { from: from.max(first), to },
            next => next,
        };
        consumer.step(&next, finalized, blocks, &canonical, knows_orphans);
        next != Next::Wait
    }

    fn check(&self) {
        let mut at = self.follower.tip();
        for ours in self.replay.iter().rev() {
            assert_eq!(*ours, at);
            at = self.parent(&at).unwrap_or(at);
        }
        self.consumers.iter().for_each(|consumer| consumer.check(&self.replay));
    }
}

impl Consumer {
    /// Takes one block in so many, from a height on.
    pub(super) fn begin_at(begin: u64, one_in: u64) -> Self {
        let place = Place { cursor: None, begin, verified: false, safe: 0, finalized: 0 };
        Self { place, one_in, state: 0, steps: vec![] }
    }

    /// Does what is next; `canonical` is the chain as the provider has it.
    pub(super) fn step(
        &mut self,
        next: &Next,
        finalized: u64,
        blocks: &[BlockRef],
        canonical: &impl Fn(u64) -> BlockRef,
        knows_orphans: bool,
    ) {
        let before = self.place.cursor;
        match *next {
            Next::Wait => return,
            Next::Mark => {}
            Next::Verify => {
                let cursor = before.expect("it is verified");
                self.place.verified = canonical(cursor.number).hash == cursor.hash;
                if !self.place.verified {
                    self.undo(blocks, canonical, knows_orphans);
                }
            }
            Next::Range { from, to } => {
                (from..=to).for_each(|number| self.take(canonical(number), false));
                (self.place.cursor, self.place.verified) = (Some(canonical(to)), true);
            }
            Next::Live(block) => {
                if let Some(cursor) = before {
                    assert_eq!(block.parent, cursor.hash);
                }
                self.take(block, true);
                (self.place.cursor, self.place.verified) = (Some(block), false);
            }
            Next::Undo => self.undo(blocks, canonical, knows_orphans),
        }
        self.stepped(before, finalized);
    }

    /// A step forward tells the journal what is final: undo is kept back to there.
    fn stepped(&mut self, before: Option<BlockRef>, finalized: u64) {
        let now = self.place.cursor.map_or(0, |cursor| cursor.number);
        if before.is_some_and(|before| now < before.number) {
            return;
        }
        (self.place.safe, self.place.finalized) = (finalized, finalized);
        self.steps.retain(|(block, _)| block.number > now.min(finalized));
    }

    /// It holds what a replay of this chain gives.
    pub(super) fn check(&self, canonical: &[BlockRef]) {
        let begun = canonical.iter().filter(|block| block.number >= self.place.begin);
        let expected = begun.filter(|block| self.wants(block)).fold(0, fold);
        assert_eq!(self.state, expected, "{:?}", self.place);
    }

    fn wants(&self, block: &BlockRef) -> bool {
        (index(block.hash) as u64).is_multiple_of(self.one_in)
    }

    /// Of blocks before its beginning, below which a reorg may take it, it hears nothing.
    fn take(&mut self, block: BlockRef, undo: bool) {
        if block.number >= self.place.begin && self.wants(&block) {
            if undo {
                self.steps.push((block, self.state));
            }
            self.state = fold(self.state, &block);
        }
    }

    /// To the common ancestor where the provider knows the orphaned blocks; else to the newest canonical block in which
    /// something was done, or to where there is nothing to undo.
    fn undo(&mut self, blocks: &[BlockRef], canonical: &impl Fn(u64) -> BlockRef, knows_orphans: bool) {
        let cursor = self.place.cursor.expect("who has no cursor has nothing to undo");
        let ours = self.place.finalized;
        let to = if knows_orphans {
            let mut at = cursor;
            while canonical(at.number).hash != at.hash {
                at = blocks[index(at.parent)];
            }
            at
        } else {
            let done = self.steps.iter().rev().map(|(block, _)| *block);
            let mut done = done.filter(|b| b.number < cursor.number && canonical(b.number).hash == b.hash);
            done.next().unwrap_or_else(|| canonical(ours))
        };
        assert!(to.number < cursor.number);
        while self.steps.last().is_some_and(|(block, _)| block.number > to.number) {
            self.state = self.steps.pop().expect("just seen").1;
        }
        (self.place.cursor, self.place.verified) = (Some(to), false);
        self.place.safe = self.place.safe.min(to.number);
    }
}

fn play(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut chains: Vec<Chain> = (0..rng.random_range(1..4)).map(|id| Chain::new(id + 1, &mut rng)).collect();
    // Long branches, short ones, or hardly any.
    let depth = [DEPTH, 8, 2][rng.random_range(0..3)];
    for _ in 0..rng.random_range(10..160) {
        let which = rng.random_range(0..chains.len());
        let chain = &mut chains[which];
        match rng.random_range(0..16) {
            0..8 => {
                let back = if rng.random_ratio(1, 4) { rng.random_range(0..depth) } else { 0 };
                chain.grow(back);
                if rng.random_bool(0.7) {
                    chain.offer(chain.blocks[chain.blocks.len() - 1]);
                }
            }
            // A head that is behind, or of a branch that may win.
            8 => chain.offer(chain.blocks[chain.blocks.len() - 1 - rng.random_range(0..chain.blocks.len().min(DEPTH))]),
            9 => chain.finalize(rng.random_range(0..DEPTH as u64)),
            10 if rng.random_ratio(1, 4) => chain.restart(),
            _ => {
                let (consumer, knows) = (rng.random_range(0..chain.consumers.len()), rng.random());
                for _ in 0..rng.random_range(1..6) {
                    chain.step(consumer, knows);
                }
            }
        }
    }
    for chain in &mut chains {
        let knows = rng.random();
        for consumer in 0..chain.consumers.len() {
            while chain.step(consumer, knows) {}
        }
        chain.check();
    }
}

#[test]
fn every_consumer_ends_as_a_replay_of_the_canonical_chain_over_random_trees() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    if let Some(seed) = variable("CHAINWEIR_SEED") {
        return play(seed);
    }
    let trees: u64 = if variable("CHAINWEIR_LONG").is_some() { 1_000_000 } else { 20_000 };
    let (base, begun) = (rand::random::<u64>(), std::time::Instant::now());
    for seed in (0..trees).map(|n| base.wrapping_add(n)) {
        if let Err(panic) = std::panic::catch_unwind(|| play(seed)) {
            println!("CHAINWEIR_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
    println!("{trees} trees from CHAINWEIR_SEED={base} on in {:.1} s", begun.elapsed().as_secs_f64());
}
