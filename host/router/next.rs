//! What a consumer has to do next, from its cursor and the chain's path alone. Pure.

use crate::chain::Follower;
use crate::model::BlockRef;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// At the tip, with nothing to say.
    Wait,
    /// At the tip, but safe or finalized moved: tell the journal, so that what waits for them becomes due.
    Mark,
    /// The cursor is below the path: ask the provider whether its block is canonical still.
    Verify,
    /// Final blocks, many at a time.
    Range { from: u64, to: u64 },
    /// One block that may be orphaned.
    Live(BlockRef),
    /// The cursor's block is not canonical any more.
    Undo,
}

impl Next {
    /// The cursor is in doubt, or known to be orphaned: nothing is written at it before that is settled.
    pub fn looks_back(&self) -> bool {
        matches!(self, Self::Verify | Self::Undo)
    }
}

/// Where a consumer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub cursor: Option<BlockRef>,
    /// The first block, where there is no cursor yet.
    pub begin: u64,
    /// The cursor's block was final when it was read, or the provider confirmed it since the path began.
    pub verified: bool,
    /// Safe and finalized, as the journal has them for this consumer.
    pub safe: u64,
    pub finalized: u64,
}

pub fn next(place: &Place, path: &Follower, safe: u64) -> Next {
    let (finalized, tip) = (path.finalized(), path.tip());
    let Some(cursor) = place.cursor else {
        return match place.begin {
            begin if begin <= finalized.number => Next::Range { from: begin, to: finalized.number },
            begin => path.at(begin).map_or(Next::Wait, |block| Next::Live(*block)),
        };
    };
    if cursor.number < finalized.number {
        if place.verified {
            return Next::Range { from: cursor.number + 1, to: finalized.number };
        }
        return Next::Verify;
    }
    // A provider that is behind us says nothing of our cursor.
    if cursor.number > tip.number {
        return Next::Wait;
    }
    if !path.is_canonical(&cursor) {
        return Next::Undo;
    }
    match path.at(cursor.number + 1) {
        Some(block) => Next::Live(*block),
        None if (place.safe, place.finalized) != (safe, finalized.number) => Next::Mark,
        None => Next::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Offer;
    use crate::model::ChainId;
    use alloy_primitives::B256;

    fn block(number: u64, branch: u8) -> BlockRef {
        let hash = |n: u64, b: u8| B256::from_slice(&[[b; 24].as_slice(), &n.to_be_bytes()].concat());
        BlockRef {
            chain: ChainId(1),
            number,
            hash: hash(number, branch),
            parent: hash(number.wrapping_sub(1), branch),
            time: number,
        }
    }

    #[test]
    fn each_place_has_one_next_step() {
        let mut path = Follower::new(block(10, 1));
        assert!(matches!(path.offer(&[block(13, 1), block(12, 1), block(11, 1)]), Offer::Changed(_)));
        let at = |cursor, begin, verified| Place { cursor, begin, verified, safe: 11, finalized: 10 };
        let next = |place: Place| next(&place, &path, 11);
        assert_eq!(next(at(None, 3, false)), Next::Range { from: 3, to: 10 });
        assert_eq!(next(at(None, 11, false)), Next::Live(block(11, 1)));
        assert_eq!(next(at(None, 20, false)), Next::Wait);
        assert_eq!(next(at(Some(block(5, 1)), 0, false)), Next::Verify);
        assert_eq!(next(at(Some(block(5, 1)), 0, true)), Next::Range { from: 6, to: 10 });
        assert_eq!(next(at(Some(block(10, 1)), 0, false)), Next::Live(block(11, 1)));
        assert_eq!(next(at(Some(block(12, 1)), 0, false)), Next::Live(block(13, 1)));
        assert_eq!(next(at(Some(block(12, 2)), 0, false)), Next::Undo);
        assert_eq!(next(at(Some(block(10, 2)), 0, true)), Next::Undo);
        assert_eq!(next(at(Some(block(13, 1)), 0, false)), Next::Wait);
        assert_eq!(next(Place { safe: 10, ..at(Some(block(13, 1)), 0, false) }), Next::Mark);
        assert_eq!(next(at(Some(block(14, 2)), 0, false)), Next::Wait);
    }
}
