//! What an edit of a watch set reaches back to: events in blocks that a consumer has passed, shown to it for the edit
//! alone, a range of final blocks at a time, beside its other steps.
//!
//! Such a step leaves the cursor where it is. Its emissions are of final blocks and are never taken back. Its state is
//! that of the cursor's block, undone with it; so is the place up to which it has come, and after a reorg it is shown the
//! same blocks again, but says nothing twice.

use std::sync::Arc;

use super::ahead;
use super::work::{self, Desk, Done, Failed, Kit};
use crate::index::watch::View;
use crate::journal;
use crate::model::{BlockRef, EditId};
use crate::plugin::HOST_KEYS;

/// One edit's blocks, and how far this consumer has come in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatchUp {
    pub edit: EditId,
    pub next: u64,
    pub last: u64,
    pub said: u64,
}

fn key(edit: EditId) -> Vec<u8> {
    [HOST_KEYS, b"caught:", &edit.0.to_be_bytes()].concat()
}

/// What is left to show, as of the cursor.
pub fn left(desk: &Desk) -> Result<Vec<CatchUp>, Failed> {
    let mut left = Vec::new();
    for journal::CatchUp { edit, set, first, last, said } in desk.journal.catch_ups(desk.consumer)? {
        if !desk.sets.contains(&set) {
            continue;
        }
        let next = match desk.journal.state_get(desk.consumer, &key(edit))? {
            Some(bytes) => bytes.try_into().map_or(first, u64::from_be_bytes),
            None => first,
        };
        if next <= last {
            left.push(CatchUp { edit, next, last, said });
        }
    }
    Ok(left)
}

/// The next range of the first that is left.
pub async fn step(desk: &Desk, kit: &mut Kit, cursor: BlockRef) -> Result<Done, Failed> {
    let Some(todo) = kit.catch_ups.as_ref().and_then(|all| all.first()).copied() else { return Ok(Done::default()) };
    let last = todo.last.min(desk.finalized);
    let mut range = ahead::range(&*desk.source, todo.next, last, desk.plan.index.wanted()).await?;
    if desk.traced {
        let moved = ahead::traces(&desk.source, &range.blocks).await?;
        range.blocks.iter_mut().zip(moved).for_each(|(block, moved)| block.transfers = moved);
    }
    let after = range.to.number + 1;
    let (plan, chain) = (desk.plan.clone(), desk.chain);
    let before = EditId(todo.edit.0.saturating_sub(1));
    let matched = tokio::task::spawn_blocking(move || {
        let sets = plan.sets.read();
        let view = |number| -> View<'_> { sets.at(chain, number) };
        let both = range.blocks.iter().map(|block| {
            let view = view(block.at().number);
            let with = plan.index.match_block(block, view.upto(todo.edit));
            (Arc::new(with), plan.index.match_block(block, view.upto(before)))
        });
        both.collect::<Vec<_>>()
    });
    let matched = matched.await.map_err(|e| Failed::Again { why: format!("matching panicked: {e}"), after: None })?;
    let state = vec![(key(todo.edit), Some(after.to_be_bytes().to_vec()))];
    let done = work::step_aside(desk, kit, cursor, matched, state, (todo, after)).await?;
    if let Some(all) = &mut kit.catch_ups {
        match all.first_mut().filter(|first| after <= first.last) {
            Some(first) => (first.next, first.said) = (after, first.said.max(after)),
            None => drop(all.remove(0)),
        }
    }
    Ok(done)
}
