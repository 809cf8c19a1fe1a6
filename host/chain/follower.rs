//! The canonical path from the finalized block to the tip, and how it changes.
//!
//! ```text
//! finalized <- b1 <- b2 <- b3 = tip
//!                ^-- c2 <- c3 = head offered     Removed(b3), Removed(b2), Added(c2), Added(c3)
//! ```
//!
//! A reorg needs a sibling of our tip's height or above: a node that answers with a lower head is behind, or
//! stands on a branch that has not won, and changes nothing. Finalized never goes back; a branch that leaves the
//! path below it halts the chain instead of guessing.

use std::collections::VecDeque;

use alloy_primitives::B256;

use crate::model::{BlockRef, BlockUpdate};

#[derive(Clone, Debug)]
pub struct Follower {
    /// Front: the finalized block. Back: the tip. Never empty, each the parent of the next.
    path: VecDeque<BlockRef>,
}

/// What became of a head that was offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// The tip already, an ancestor of it, or a lower head of another branch.
    Nothing,
    /// The branch does not reach the path yet: offer it again with this block at its end.
    Need {
        hash: B256,
        number: u64,
    },
    /// Removed, tip first; then added, oldest first.
    Changed(Vec<BlockUpdate>),
    Halt(Halt),
}

/// What a person has to decide.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    #[error("a branch with head {head} leaves the chain below the finalized {finalized}")]
    BelowFinalized { head: BlockRef, finalized: BlockRef },
    #[error("the provider calls {claimed} finalized, but {finalized} was finalized before")]
    OtherFinalized { claimed: BlockRef, finalized: BlockRef },
}

impl Follower {
    /// Begins at a block that is taken for final.
    pub fn new(finalized: BlockRef) -> Self {
        Self { path: VecDeque::from([finalized]) }
    }

    pub fn tip(&self) -> BlockRef {
        self.path[self.path.len() - 1]
    }

    pub fn finalized(&self) -> BlockRef {
        self.path[0]
    }

    /// The canonical block at a height, from the finalized one to the tip.
    pub fn at(&self, number: u64) -> Option<&BlockRef> {
        self.path.get(usize::try_from(number.checked_sub(self.path[0].number)?).ok()?)
    }

    pub fn is_canonical(&self, block: &BlockRef) -> bool {
        self.at(block.number).is_some_and(|ours| ours.hash == block.hash)
    }

    /// Offers a head with those of its ancestors that had to be fetched: head first, each the child of the next.
    pub fn offer(&mut self, branch: &[BlockRef]) -> Offer {
        let (Some(head), Some(oldest)) = (branch.first(), branch.last()) else { return Offer::Nothing };
        debug_assert!(branch.windows(2).all(|w| w[0].parent == w[1].hash && w[0].number == w[1].number + 1));
        let tip = self.tip();
        if head.number < tip.number || head.hash == tip.hash {
            return Offer::Nothing;
        }
        let finalized = self.finalized();
        let Some(ancestor) = oldest.number.checked_sub(1).filter(|n| *n >= finalized.number) else {
            return Offer::Halt(Halt::BelowFinalized { head: *head, finalized });
        };
        if ancestor > tip.number {
            return Offer::Need { hash: oldest.parent, number: ancestor };
        }
        if self.at(ancestor).is_none_or(|ours| ours.hash != oldest.parent) {
            if ancestor == finalized.number {
                return Offer::Halt(Halt::BelowFinalized { head: *head, finalized });
            }
            return Offer::Need { hash: oldest.parent, number: ancestor };
        }
        let mut updates = Vec::new();
        while self.tip().number > ancestor {
            if let Some(removed) = self.path.pop_back() {
                updates.push(BlockUpdate::Removed(removed));
            }
        }
        for block in branch.iter().rev() {
            self.path.push_back(*block);
            updates.push(BlockUpdate::Added(*block));
        }
        Offer::Changed(updates)
    }

    /// Takes a block for final, where it is on the path. One that is not there yet, or stands on another
    /// branch above our finalized block, is left for later: the head will bring it.
    pub fn finalize(&mut self, block: &BlockRef) -> Result<Option<BlockUpdate>, Halt> {
        let finalized = self.finalized();
        if block.number == finalized.number && block.hash != finalized.hash {
            return Err(Halt::OtherFinalized { claimed: *block, finalized });
        }
        if block.number <= finalized.number || !self.is_canonical(block) {
            return Ok(None);
        }
        while self.finalized().number < block.number {
            self.path.pop_front();
        }
        Ok(Some(BlockUpdate::Finalized(self.finalized())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ChainId;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// A block is named by its number, its branch and its parent.
    fn block(number: u64, id: u64, parent: B256) -> BlockRef {
        BlockRef { chain: ChainId(1), number, hash: B256::from(alloy_primitives::U256::from(id)), parent, time: number }
    }

    /// Offers a head as a driver does: fetches what is needed by hash.
    fn drive(follower: &mut Follower, known: &HashMap<B256, BlockRef>, head: BlockRef) -> Offer {
        let mut branch = vec![head];
        loop {
            match follower.offer(&branch) {
                Offer::Need { hash, .. } => branch.push(known[&hash]),
                other => return other,
            }
        }
    }

    #[test]
    fn a_lower_head_is_not_a_reorg() {
        let genesis = block(0, 1, B256::ZERO);
        let a1 = block(1, 2, genesis.hash);
        let a2 = block(2, 3, a1.hash);
        let b1 = block(1, 4, genesis.hash);
        let mut f = Follower::new(genesis);
        assert!(matches!(f.offer(&[a2, a1]), Offer::Changed(_)));
        assert_eq!(f.offer(&[a1]), Offer::Nothing);
        assert_eq!(f.offer(&[b1]), Offer::Nothing);
        assert_eq!(f.tip(), a2);
    }

    #[test]
    fn a_sibling_at_our_height_is_a_reorg_tip_first() {
        let genesis = block(0, 1, B256::ZERO);
        let a1 = block(1, 2, genesis.hash);
        let a2 = block(2, 3, a1.hash);
        let b1 = block(1, 4, genesis.hash);
        let b2 = block(2, 5, b1.hash);
        let mut f = Follower::new(genesis);
        f.offer(&[a2, a1]);
        assert_eq!(f.offer(&[b2]), Offer::Need { hash: b1.hash, number: 1 });
        use BlockUpdate::{Added, Removed};
        assert_eq!(f.offer(&[b2, b1]), Offer::Changed(vec![Removed(a2), Removed(a1), Added(b1), Added(b2)]));
    }

    #[test]
    fn below_finalized_it_halts() {
        let genesis = block(0, 1, B256::ZERO);
        let a1 = block(1, 2, genesis.hash);
        let b1 = block(1, 4, genesis.hash);
        let b2 = block(2, 5, b1.hash);
        let mut f = Follower::new(genesis);
        f.offer(&[a1]);
        assert_eq!(f.finalize(&a1), Ok(Some(BlockUpdate::Finalized(a1))));
        assert_eq!(f.offer(&[b2]), Offer::Halt(Halt::BelowFinalized { head: b2, finalized: a1 }));
        assert_eq!(f.finalize(&b1), Err(Halt::OtherFinalized { claimed: b1, finalized: a1 }));
        // Never back, and not ahead of the path.
        assert_eq!((f.finalize(&genesis), f.finalize(&b2)), (Ok(None), Ok(None)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: std::env::var("CHAINWEIR_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(0).max(2_000), ..ProptestConfig::default() })]

        /// Over random trees, the updates applied to an empty list give exactly the ancestry of the best head
        /// that was offered, and nothing at or below finalized is ever removed.
        #[test]
        fn updates_replay_to_the_canonical_chain(
            // Each block: how far behind the newest its parent stands; then whether it is offered, and finality steps.
            tree in proptest::collection::vec((0usize..8, any::<bool>(), 0u64..12), 1..200)
        ) {
            let genesis = block(100, 1, B256::ZERO);
            let mut known = HashMap::from([(genesis.hash, genesis)]);
            let mut blocks = vec![genesis];
            let mut follower = Follower::new(genesis);
            let mut replay = vec![genesis];
            let mut finalized = genesis;
            for (id, (back, offered, finality)) in tree.into_iter().enumerate() {
                let parent = blocks[blocks.len() - 1 - back.min(blocks.len() - 1)];
                let new = block(parent.number + 1, id as u64 + 2, parent.hash);
                known.insert(new.hash, new);
                blocks.push(new);
                if !offered {
                    continue;
                }
                let tip_before = follower.tip();
                match drive(&mut follower, &known, new) {
                    Offer::Nothing => prop_assert!(new.number < tip_before.number || new.hash == tip_before.hash),
                    Offer::Need { .. } => unreachable!("the driver fetched it"),
                    Offer::Halt(_) => {
                        // Its ancestry really leaves the path below finalized.
                        let mut at = new;
                        while at.number > finalized.number {
                            at = known[&at.parent];
                        }
                        prop_assert_ne!(at.hash, finalized.hash);
                    }
                    Offer::Changed(updates) => {
                        for update in updates {
                            match update {
                                BlockUpdate::Removed(b) => {
                                    prop_assert!(b.number > finalized.number);
                                    prop_assert_eq!(replay.pop(), Some(b));
                                }
                                BlockUpdate::Added(b) => {
                                    prop_assert_eq!(replay.last().map(|l| l.hash), Some(b.parent));
                                    replay.push(b);
                                }
                                BlockUpdate::Finalized(_) => unreachable!("an offer finalizes nothing"),
                            }
                        }
                        prop_assert_eq!(follower.tip(), new);
                    }
                }
                let target = follower.tip().number.saturating_sub(finality);
                if let Some(at) = follower.at(target).copied()
                    && let Some(BlockUpdate::Finalized(f)) = follower.finalize(&at).unwrap()
                {
                    prop_assert!(f.number > finalized.number);
                    finalized = f;
                }
                // The replay is the ancestry of the tip.
                let mut at = follower.tip();
                for ours in replay.iter().rev() {
                    prop_assert_eq!(*ours, at);
                    at = known.get(&at.parent).copied().unwrap_or(at);
                }
            }
        }
    }
}
