//! Which events reach a plugin, and within it a handler. The host matches the same way before anything crosses; what is matched
//! here again keeps two handlers with different filters apart, and stands in for the host in tests.

use std::collections::{BTreeSet, HashSet};

use alloy_primitives::{Address, B256, U256};
use alloy_sol_types::SolEvent;

use crate::batch::{LogView, TransactionView};

/// The kind of event that a subscription asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Blocks.
    Block,
    /// Transactions.
    Transaction,
    /// Logs.
    Log,
}

/// Which events a handler asks for. Every list that is not empty must hold the event's value; an empty list asks for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Kind of event.
    pub kind: EventKind,
    /// Logs: the contract that wrote the log.
    pub addresses: Vec<Address>,
    /// Logs: allowed values of topic 0 to 3.
    pub topics: [Vec<B256>; 4],
    /// Transactions: `from`.
    pub senders: Vec<Address>,
    /// Transactions: `to`.
    pub receivers: Vec<Address>,
    /// Transactions: executed with success, or reverted.
    pub success: Option<bool>,
}

impl Subscription {
    fn all(kind: EventKind) -> Self {
        Self { kind, addresses: vec![], topics: Default::default(), senders: vec![], receivers: vec![], success: None }
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

    /// Does it ask for this log?
    pub fn wants_log(&self, log: &LogView<'_>) -> bool {
        let topic = |(place, allowed): (usize, &Vec<B256>)| {
            allowed.is_empty() || log.topics().get(place).is_some_and(|topic| allowed.contains(topic))
        };
        self.kind == EventKind::Log
            && (self.addresses.is_empty() || self.addresses.contains(&log.address()))
            && self.topics.iter().enumerate().all(topic)
    }

    /// Does it ask for this transaction?
    pub fn wants_transaction(&self, tx: &TransactionView<'_>) -> bool {
        self.kind == EventKind::Transaction
            && (self.senders.is_empty() || self.senders.contains(&tx.from()))
            && (self.receivers.is_empty() || tx.to().is_some_and(|to| self.receivers.contains(&to)))
            && self.success.is_none_or(|success| tx.success() == Some(success))
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
