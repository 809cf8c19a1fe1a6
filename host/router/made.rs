//! What a consumer's factories made, kept beside its state: written with the step that learned it, undone with it.

use super::work::{Desk, Failed};
use crate::index::children::{Children, FactoryId};
use crate::plugin::HOST_KEYS;

const PAGE: u32 = 10_000;
const CHILD: &[u8] = b"made:";

fn prefix(factory: FactoryId) -> Vec<u8> {
    [HOST_KEYS, CHILD, &factory.0].concat()
}

/// As of the cursor.
pub fn remember(desk: &Desk) -> Result<Children, Failed> {
    let mut children = Children::default();
    for factory in desk.factories.iter().map(FactoryId::of) {
        let prefix = prefix(factory);
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

/// What was learned since, for the step that learned it.
pub fn to_write(children: &mut Children) -> impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)> {
    let fresh = children.take_fresh().into_iter();
    fresh.map(|(factory, child)| ([prefix(factory).as_slice(), child.as_slice()].concat(), Some(vec![])))
}
