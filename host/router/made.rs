//! What a consumer's factories made, kept beside its state: written with the step that learned it, undone with it.
//!
//! A factory that names a block to begin at is read from there before the consumer's first step, without its children's
//! events: those come with the consumer's own blocks.

use super::ahead;
use super::work::{Desk, Failed};
use crate::chain::Follower;
use crate::index::children::{Children, FactoryId, made};
use crate::model::{Block, Wanted};
use crate::plugin::HOST_KEYS;

const PAGE: u32 = 10_000;
const CHILD: &[u8] = b"made:";
/// Present where the blocks before the consumer's beginning have been read for a factory.
const READ: &[u8] = b"read:";

fn key(what: &[u8], factory: FactoryId) -> Vec<u8> {
    [HOST_KEYS, what, &factory.0].concat()
}

/// As of the cursor.
pub fn remember(desk: &Desk) -> Result<Children, Failed> {
    let mut children = Children::default();
    for factory in desk.factories.iter().map(FactoryId::of) {
        let prefix = key(CHILD, factory);
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = desk.journal.state_scan(desk.consumer, &prefix, after.as_deref(), PAGE)?;
            for (key, _) in &page {
                if let Ok(address) = key[prefix.len()..].try_into() {
                    children.remember(factory, address);
                }
            }
            match page.into_iter().last() {
                Some((last, _)) => after = Some(last),
                None => break,
            }
        }
    }
    Ok(children)
}

/// Reads what factories made before the block after `upto`, where that has not been done: what it learns is fresh.
/// Returns the factories that were read, to be written down with their children.
pub async fn read_back(
    desk: &Desk,
    children: &mut Children,
    upto: Option<u64>,
    path: &Follower,
) -> Result<Vec<FactoryId>, Failed> {
    let mut read = Vec::new();
    for factory in desk.factories.iter() {
        let id = FactoryId::of(factory);
        let (Some(since), Some(upto)) = (factory.since, upto) else { continue };
        if since > upto || desk.journal.state_get(desk.consumer, &key(READ, id))?.is_some() {
            continue;
        }
        // The factory's own events alone.
        let (addresses, topic0) = (factory.makers.clone(), vec![factory.event]);
        let wanted = Wanted { logs: true, addresses, topic0, ..Wanted::default() };
        let mut learn = |block: &Block| {
            block.logs.iter().filter_map(|log| made(factory, log)).for_each(|child| children.learn(id, child));
        };
        let (mut next, last_final) = (since, upto.min(desk.finalized));
        while next <= last_final {
            let range = ahead::range(&*desk.source, next, last_final, &wanted).await?;
            range.blocks.iter().for_each(&mut learn);
            next = range.to.number + 1;
        }
        for number in next..=upto {
            let at = path
                .at(number)
                .ok_or_else(|| Failed::Again { why: format!("block {number} is not on the path now"), after: None })?;
            learn(&desk.source.block(at, &wanted).await?);
        }
        read.push(id);
    }
    Ok(read)
}

/// What was learned since, for the step that learned it.
pub fn to_write(children: &Children) -> impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)> {
    let fresh = children.fresh().iter();
    fresh.map(|(factory, child)| ([key(CHILD, *factory).as_slice(), child.as_slice()].concat(), Some(vec![])))
}

pub fn as_read(factories: Vec<FactoryId>) -> impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)> {
    factories.into_iter().map(|factory| (key(READ, factory), Some(vec![])))
}
