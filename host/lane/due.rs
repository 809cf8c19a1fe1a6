//! Whether a statement in the journal is due on a route. Pure, and a function of durable facts alone: the
//! same entry gets the same answer before and after a crash.
//!
//! An emission that is orphaned before it was due is never heard of; one that may have been due when its
//! block was orphaned is applied and then retracted. Both its entries are judged by the same facts
//! ([`Retracted`](crate::journal::Retracted)), so that no destination sees one without the other.

use crate::journal::{Entry, Marks};
use crate::model::{Op, When};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Now,
    /// Everything behind it on this track waits too: a track is in block order.
    Later,
    /// Cancelled: settled without a delivery.
    Never,
}

pub fn due(entry: &Entry, when: When, marks: &Marks) -> Due {
    if let Some(retracted) = &entry.retracted {
        let was_due = match when {
            When::Latest => true,
            When::Confirmations(n) => retracted.confirmations >= n,
            When::Safe => retracted.safe,
            When::Finalized => false,
        };
        return if was_due { Due::Now } else { Due::Never };
    }
    debug_assert_ne!(entry.op, Op::Retract, "a retraction says how far its emission had come");
    if entry.op == Op::Pending {
        // It has no block that could be confirmed.
        return if when == When::Latest { Due::Now } else { Due::Never };
    }
    let number = entry.block.number;
    let is_due = match when {
        When::Latest => true,
        // The block at the cursor has one confirmation.
        When::Confirmations(n) => marks.cursor >= number && marks.cursor - number + 1 >= n,
        When::Safe => number <= marks.safe,
        When::Finalized => number <= marks.finalized,
    };
    if is_due { Due::Now } else { Due::Later }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Retracted;
    use crate::model::{BlockRef, ChainId, ContentType, EmissionId, EventPosition};
    use alloy_primitives::B256;

    fn entry(number: u64, retracted: Option<Retracted>) -> Entry {
        Entry {
            offset: 1,
            op: Op::Apply,
            emission: EmissionId([0; 16]),
            block: BlockRef { chain: ChainId(1), number, hash: B256::ZERO, parent: B256::ZERO, time: 0 },
            position: EventPosition::Block,
            ordinal: 0,
            lane_key: String::new(),
            content_type: ContentType::Json,
            payload: vec![],
            retracted,
        }
    }

    #[test]
    fn a_block_at_the_cursor_has_one_confirmation() {
        let marks = Marks { cursor: 10, safe: 8, finalized: 5 };
        let at = |number, when| due(&entry(number, None), when, &marks);
        assert_eq!(at(10, When::Latest), Due::Now);
        assert_eq!(at(10, When::Confirmations(1)), Due::Now);
        assert_eq!(at(10, When::Confirmations(2)), Due::Later);
        assert_eq!(at(9, When::Confirmations(2)), Due::Now);
        // The cursor was walked back below the block's height.
        assert_eq!(at(11, When::Confirmations(1)), Due::Later);
        assert_eq!((at(8, When::Safe), at(9, When::Safe)), (Due::Now, Due::Later));
        assert_eq!((at(5, When::Finalized), at(6, When::Finalized)), (Due::Now, Due::Later));
    }

    #[test]
    fn what_is_in_no_block_is_never_confirmed() {
        let marks = Marks { cursor: 100, safe: 100, finalized: 100 };
        let at = |when| due(&Entry { op: Op::Pending, ..entry(10, None) }, when, &marks);
        assert_eq!(at(When::Latest), Due::Now);
        for when in [When::Confirmations(1), When::Safe, When::Finalized] {
            assert_eq!(at(when), Due::Never);
        }
    }

    #[test]
    fn what_was_orphaned_before_it_was_due_is_never_heard_of() {
        let marks = Marks { cursor: 100, safe: 100, finalized: 100 };
        let gone = Some(Retracted { confirmations: 3, safe: false });
        let at = |when| due(&entry(10, gone), when, &marks);
        assert_eq!(at(When::Latest), Due::Now);
        assert_eq!(at(When::Confirmations(3)), Due::Now);
        assert_eq!(at(When::Confirmations(4)), Due::Never);
        assert_eq!(at(When::Safe), Due::Never);
        assert_eq!(at(When::Finalized), Due::Never);
    }
}
