//! Which events reach a plugin, and within it a handler. The host matches the same way before anything crosses; what is matched
//! here again keeps two handlers with different filters apart, and stands in for the host in tests.

use std::collections::{BTreeSet, HashSet};

use alloy_primitives::{Address, B256, U256};
use alloy_sol_types::SolEvent;

use crate::batch::{LogView, TransactionView, TransferView};

/// The kind of event that a subscription asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Blocks.
    Block,
    /// Transactions.
    Transaction,
    /// Logs.
    Log,
    /// Native value that moved: by a transaction, or by a call inside of one.
    Transfer,
    /// Contracts that were created: by a transaction, or inside of one.
    Creation,
    /// A transaction that is in no block yet.
    Pending,
}

/// A place of a subscription that asks for one value of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Logs: the contract that wrote the log.
    Address,
    /// Logs: topic 0 to 3.
    Topic(u8),
    /// Transactions and transfers: `from`. Creations: who created.
    Sender,
    /// Transactions and transfers: `to`. Creations: the new contract.
    Receiver,
    /// Transactions: the hash. Only sets name it.
    Hash,
}

impl Place {
    /// As in the batch layout.
    pub fn code(self) -> u8 {
        match self {
            Self::Address => 0,
            Self::Topic(n) => 1 + n,
            Self::Sender => 5,
            Self::Receiver => 6,
            Self::Hash => 7,
        }
    }
}

/// Contracts that are learned from events: the host follows them from the very log that made them, in the same block too, and forgets
/// them when a reorg takes that log away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Factory {
    /// The contracts whose word counts; empty means any.
    pub makers: Vec<Address>,
    /// Topic 0 of the event that names the new contract.
    pub event: B256,
    /// Where in it the new contract's address stands.
    pub child: Child,
    /// What was made from this block on counts, though the plugin begins later.
    pub since: Option<u64>,
}

/// Where in an event the address of a new contract stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    /// Topic 1 to 3: the first to third indexed argument.
    Topic(u8),
    /// The n-th word of the data, from 0: where all arguments before are of fixed size, the n-th that is not indexed.
    Word(u32),
}

impl Factory {
    /// What these contracts make, as they tell in `E`. An empty list of makers means any contract.
    pub fn new<E: SolEvent>(makers: &(impl Values<Address> + ?Sized), child: Child) -> Self {
        let mut list = Vec::new();
        makers.add_to(&mut list);
        Self { makers: list, event: E::SIGNATURE_HASH, child, since: None }
    }

    /// What was made from this block on counts, though the plugin begins later.
    pub fn since(mut self, block: u64) -> Self {
        self.since = Some(block);
        self
    }
}

/// Which events a handler asks for. Every place that asks for something must be satisfied: by one of its values, by a member of one of
/// its watch sets, or (the address of a log) by a contract that the factory made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Kind of event.
    pub kind: EventKind,
    /// On these chains alone, by EIP-155 id; empty means on all.
    pub chains: Vec<u64>,
    /// Logs: the contract that wrote the log.
    pub addresses: Vec<Address>,
    /// Logs: allowed values of topic 0 to 3.
    pub topics: [Vec<B256>; 4],
    /// Transactions, transfers, creations: `from`.
    pub senders: Vec<Address>,
    /// Transactions, transfers, creations: `to`.
    pub receivers: Vec<Address>,
    /// Transactions: executed with success, or reverted.
    pub success: Option<bool>,
    /// Transactions and transfers: no less than this, in wei.
    pub min_value: Option<U256>,
    /// Watch sets, each at its place, beside the values there.
    pub sets: Vec<(Place, String)>,
    /// Logs: beside the addresses, what this factory made.
    pub factory: Option<Factory>,
    /// Logs: events in human-readable ABI, or as a JSON ABI has them. The host decodes.
    pub decode: Vec<String>,
}

impl Subscription {
    fn all(kind: EventKind) -> Self {
        Self {
            kind,
            chains: vec![],
            addresses: vec![],
            topics: Default::default(),
            senders: vec![],
            receivers: vec![],
            success: None,
            min_value: None,
            sets: vec![],
            factory: None,
            decode: vec![],
        }
    }

    /// Every block.
    pub fn blocks() -> Self {
        Self::all(EventKind::Block)
    }

    /// Every transaction.
    pub fn transactions() -> Self {
        Self::all(EventKind::Transaction)
    }

    /// Every log.
    pub fn logs() -> Self {
        Self::all(EventKind::Log)
    }

    /// Every transaction that the node hears of before it is in a block: a hint, and part of no promise.
    pub fn pending() -> Self {
        Self::all(EventKind::Pending)
    }

    /// All native value that moves, by transactions and by calls inside of them.
    pub fn transfers() -> Self {
        Self::all(EventKind::Transfer)
    }

    /// Every contract that is created.
    pub fn creations() -> Self {
        Self::all(EventKind::Creation)
    }

    /// Every log with the topic 0 of the event `E`.
    pub fn event<E: SolEvent>() -> Self {
        let mut this = Self::logs();
        if !E::ANONYMOUS {
            this.topics[0].push(E::SIGNATURE_HASH);
        }
        this
    }

    /// Only logs that one of these contracts wrote. An empty list changes nothing.
    pub fn addresses(mut self, addresses: &(impl Values<Address> + ?Sized)) -> Self {
        addresses.add_to(&mut self.addresses);
        self
    }

    /// Only logs whose topic `place` (0 to 3; 1 is the event's first indexed argument) is one of these. An empty list changes nothing.
    ///
    /// # Panics
    /// Where `place` is above 3.
    pub fn topic(mut self, place: usize, values: &(impl Values<B256> + ?Sized)) -> Self {
        assert!(place < 4, "a log has topics 0 to 3, there is no topic {place}");
        values.add_to(&mut self.topics[place]);
        self
    }

    /// Only on these chains, by EIP-155 id.
    pub fn chains(mut self, ids: &[u64]) -> Self {
        self.chains.extend_from_slice(ids);
        self
    }

    /// Also, or only, members of a watch set, at a place: sets are edited while the host runs.
    pub fn set(mut self, place: Place, name: &str) -> Self {
        self.sets.push((place, name.to_owned()));
        self
    }

    /// Also, or only, logs of contracts that a factory made.
    pub fn made_by(mut self, factory: Factory) -> Self {
        self.factory = Some(factory);
        self
    }

    /// Only transactions or transfers of at least this much, in wei.
    pub fn min_value(mut self, wei: U256) -> Self {
        self.min_value = Some(wei);
        self
    }

    /// Logs of this event, decoded by the host: in human-readable ABI, `event Transfer(address indexed from, address indexed to, uint256 value)`,
    /// or as a JSON ABI has it. Where the subscription asks for something at topic 0 as well, that is what is asked for.
    /// In Rust, `sol!` and [`LogView::decode`] cost less.
    pub fn decode(mut self, event: &str) -> Self {
        self.decode.push(event.to_owned());
        self
    }

    /// Only transactions that one of these signed. An empty list changes nothing.
    pub fn senders(mut self, senders: &(impl Values<Address> + ?Sized)) -> Self {
        senders.add_to(&mut self.senders);
        self
    }

    /// Only transactions that call one of these. An empty list changes nothing.
    pub fn receivers(mut self, receivers: &(impl Values<Address> + ?Sized)) -> Self {
        receivers.add_to(&mut self.receivers);
        self
    }

    /// Only transactions that succeeded, or only those that were reverted.
    pub fn success(mut self, success: bool) -> Self {
        self.success = Some(success);
        self
    }

    fn on(&self, chain: u64) -> bool {
        self.chains.is_empty() || self.chains.contains(&chain)
    }

    /// `in_set`: what the host said of the event's sets.
    fn allows<T: PartialEq>(
        &self,
        place: Place,
        values: &[T],
        value: Option<&T>,
        in_set: impl Fn(&str) -> bool,
    ) -> bool {
        let mut sets = self.sets.iter().filter(|(at, _)| *at == place).peekable();
        if values.is_empty() && sets.peek().is_none() {
            return true;
        }
        value.is_some_and(|value| values.contains(value)) || sets.any(|(_, name)| in_set(name))
    }

    /// Does it ask for this log?
    pub fn wants_log(&self, log: &LogView<'_>) -> bool {
        let topic = |(n, allowed): (usize, &Vec<B256>)| {
            let place = Place::Topic(n as u8);
            self.allows(place, allowed, log.topics().get(n), |name| log.is_in(place, name))
        };
        let address = || {
            let open = self.addresses.is_empty() && !self.sets.iter().any(|(place, _)| *place == Place::Address);
            let named = self
                .allows(Place::Address, &self.addresses, Some(&log.address()), |name| log.is_in(Place::Address, name));
            if self.factory.is_some() { log.is_made() || (named && !open) } else { named }
        };
        self.kind == EventKind::Log
            && self.on(log.block().chain_id())
            && address()
            && self.topics.iter().enumerate().all(topic)
    }

    /// Does it ask for this transaction?
    pub fn wants_transaction(&self, tx: &TransactionView<'_>) -> bool {
        self.kind == EventKind::Transaction && self.fits(tx)
    }

    /// Does it ask for this transaction while it is pending?
    pub fn wants_pending(&self, tx: &TransactionView<'_>) -> bool {
        self.kind == EventKind::Pending && self.fits(tx)
    }

    fn fits(&self, tx: &TransactionView<'_>) -> bool {
        self.on(tx.block().chain_id())
            && self.allows(Place::Sender, &self.senders, Some(&tx.from()), |name| tx.is_in(Place::Sender, name))
            && self.allows(Place::Receiver, &self.receivers, tx.to().as_ref(), |name| tx.is_in(Place::Receiver, name))
            && self.allows::<B256>(Place::Hash, &[], None, |name| tx.is_in(Place::Hash, name))
            && self.success.is_none_or(|success| tx.success() == Some(success))
            && self.min_value.is_none_or(|min| tx.value() >= min)
    }

    /// Does it ask for this transfer, or creation?
    pub fn wants_transfer(&self, transfer: &TransferView<'_>) -> bool {
        let kind = match self.kind {
            EventKind::Transfer => {
                !transfer.value().is_zero() && self.min_value.is_none_or(|min| transfer.value() >= min)
            }
            EventKind::Creation => transfer.creates(),
            _ => false,
        };
        let is_in = |place| move |name: &str| transfer.is_in(place, name);
        kind && self.on(transfer.block().chain_id())
            && self.allows(Place::Sender, &self.senders, Some(&transfer.from()), is_in(Place::Sender))
            && self.allows(Place::Receiver, &self.receivers, Some(&transfer.to()), is_in(Place::Receiver))
    }
}

/// One or many values for a filter: a value, an `Option`, an array, slice, `Vec` or set of them. In topics an address or a number
/// stands for the 32-byte word that holds it.
pub trait Values<T> {
    /// Appends the values.
    fn add_to(&self, list: &mut Vec<T>);
}

macro_rules! values {
    ($($ty:ty => $into:ty, $convert:expr;)*) => {$(
        impl Values<$into> for $ty {
            fn add_to(&self, list: &mut Vec<$into>) {
                let convert: fn(&$ty) -> $into = $convert;
                list.push(convert(self));
            }
        }
        values!(@many $ty => $into, Option<$ty>, [$ty], Vec<$ty>, HashSet<$ty>, BTreeSet<$ty>);
        impl<const N: usize> Values<$into> for [$ty; N] {
            fn add_to(&self, list: &mut Vec<$into>) {
                self.iter().for_each(|value| value.add_to(list));
            }
        }
    )*};
    (@many $ty:ty => $into:ty, $($many:ty),*) => {$(
        impl Values<$into> for $many {
            fn add_to(&self, list: &mut Vec<$into>) {
                self.iter().for_each(|value| value.add_to(list));
            }
        }
    )*};
}

values! {
    Address => Address, |address| *address;
    B256 => B256, |word| *word;
    Address => B256, |address| address.into_word();
    U256 => B256, |number| B256::from(*number);
}
