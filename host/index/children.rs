//! The contracts that factories made, as one subscriber has them at its place in the chain. Pure.
//!
//! Two plugins that begin at different blocks know different children, and each of them walks back alone: so they are
//! the subscriber's own, kept beside its state and undone with it.

use alloy_primitives::{Address, keccak256};
use foldhash::{HashMap, HashSet};

use crate::model::{Child, Factory, Log};

/// A factory by what it says: the same after a restart, and for a plugin's next version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FactoryId(pub [u8; 16]);

impl FactoryId {
    pub fn of(factory: &Factory) -> Self {
        let mut said = Vec::new();
        for maker in &factory.makers {
            said.extend_from_slice(maker.as_slice());
        }
        said.extend_from_slice(factory.event.as_slice());
        match factory.child {
            Child::Topic(n) => said.extend_from_slice(&[0, n]),
            Child::Word(n) => said.extend([[1].as_slice(), &n.to_le_bytes()].concat()),
        }
        let mut id = [0; 16];
        id.copy_from_slice(&keccak256(said)[..16]);
        Self(id)
    }
}

/// The contract that this log says was made, if it is such a log.
pub fn made(factory: &Factory, log: &Log) -> Option<Address> {
    if log.topics.first() != Some(&factory.event)
        || !(factory.makers.is_empty() || factory.makers.contains(&log.address))
    {
        return None;
    }
    let word: &[u8] = match factory.child {
        Child::Topic(n) => log.topics.get(usize::from(n))?.as_slice(),
        Child::Word(n) => log.data.get(n as usize * 32..)?.get(..32)?,
    };
    Some(Address::from_slice(&word[12..]))
}

#[derive(Clone, Debug, Default)]
pub struct Children {
    known: HashMap<FactoryId, HashSet<Address>>,
    /// Learned since the last time that what was learned was kept.
    fresh: Vec<(FactoryId, Address)>,
}

impl Children {
    pub fn contains(&self, factory: FactoryId, address: &Address) -> bool {
        self.known.get(&factory).is_some_and(|all| all.contains(address))
    }

    pub fn learn(&mut self, factory: FactoryId, child: Address) {
        if self.known.entry(factory).or_default().insert(child) {
            self.fresh.push((factory, child));
        }
    }

    /// What was learned and not written down yet.
    pub fn fresh(&self) -> &[(FactoryId, Address)] {
        &self.fresh
    }

    /// What was learned is written down.
    pub fn keep(&mut self) {
        self.fresh.clear();
    }

    /// What was learned and not written down is forgotten.
    pub fn unlearn(&mut self) {
        for (factory, child) in self.fresh.drain(..) {
            if let Some(all) = self.known.get_mut(&factory) {
                all.remove(&child);
            }
        }
    }

    /// Read back: known, and written down already.
    pub fn remember(&mut self, factory: FactoryId, child: Address) {
        self.known.entry(factory).or_default().insert(child);
    }

    pub fn len(&self) -> usize {
        self.known.values().map(HashSet::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
