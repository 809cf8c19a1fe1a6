//! Third stage: finds who subscribed to what in a block. `follower -> index -> plugin`.
//!
//! Pure. Subscriptions are filed under the most telling thing that they ask for, so that an event costs a few
//! look-ups whatever the number of subscribers; what it costs beyond that is one entry per subscriber that really
//! gets it. Matched events are encoded once, for all of them. Nothing here knows what a subscriber is.

use std::ops::Range;

use alloy_primitives::{Address, B256};
use foldhash::{HashMap, HashSet};

use crate::model::{Block, BlockRef, EventKind, EventPosition, Log, Subscription, Transaction, Wanted, batch};

/// A consumer, as whoever builds the index numbers them.
pub type SubscriberId = u32;

/// A subscription in the place where it is filed: what is still to be checked when an event comes by.
#[derive(Debug)]
struct Filed {
    subscriber: SubscriberId,
    /// Into `Index::subscriptions`.
    subscription: u32,
}

/// Log subscriptions that agree in address and topic 0.
#[derive(Debug, Default)]
struct LogBucket {
    /// They ask for nothing else.
    plain: Vec<SubscriberId>,
    /// By the first of topic 1 to 3 that they ask for.
    by_topic: [HashMap<B256, Vec<Filed>>; 3],
}

#[derive(Debug, Default)]
pub struct Index {
    subscriptions: Vec<Subscription>,
    blocks: Vec<SubscriberId>,
    logs_by_address_and_topic: HashMap<(Address, B256), LogBucket>,
    logs_by_address: HashMap<Address, LogBucket>,
    logs_by_topic: HashMap<B256, LogBucket>,
    logs_any: LogBucket,
    transactions_by_sender: HashMap<Address, Vec<Filed>>,
    transactions_by_receiver: HashMap<Address, Vec<Filed>>,
    transactions_any: Vec<Filed>,
    wanted: Wanted,
}

/// A block's matched events, encoded, and who gets which.
#[derive(Debug)]
pub struct Matched {
    pub at: BlockRef,
    records: Vec<u8>,
    block_record: Range<usize>,
    events: Vec<(EventPosition, Range<usize>)>,
    /// By subscriber; the events of each, into `events`, rise. One list, however many subscribers share a block.
    gets: Vec<(SubscriberId, u32)>,
    block_subscribers: Vec<SubscriberId>,
}

impl Index {
    pub fn new<'a>(subscribers: impl IntoIterator<Item = (SubscriberId, &'a [Subscription])>) -> Self {
        let mut index = Self::default();
        for (subscriber, subscriptions) in subscribers {
            for subscription in subscriptions {
                index.file(subscriber, subscription);
            }
        }
        index.wanted = wanted(&index.subscriptions);
        index
    }

    /// What the source must fetch for these subscribers.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    fn file(&mut self, subscriber: SubscriberId, subscription: &Subscription) {
        let s = subscription;
        let number = self.subscriptions.len() as u32;
        let filed = || Filed { subscriber, subscription: number };
        match s.kind {
            EventKind::Block => self.blocks.push(subscriber),
            EventKind::Transaction => match (s.senders.is_empty(), s.receivers.is_empty()) {
                (false, _) => {
                    for sender in &s.senders {
                        self.transactions_by_sender.entry(*sender).or_default().push(filed());
                    }
                }
                (true, false) => {
                    for receiver in &s.receivers {
                        self.transactions_by_receiver.entry(*receiver).or_default().push(filed());
                    }
                }
                (true, true) => self.transactions_any.push(filed()),
            },
            EventKind::Log => {
                let topic0 = &s.topics[0];
                match (s.addresses.is_empty(), topic0.is_empty()) {
                    (true, true) => file_log(&mut self.logs_any, subscriber, number, s),
                    (true, false) => {
                        for topic in topic0 {
                            file_log(self.logs_by_topic.entry(*topic).or_default(), subscriber, number, s);
                        }
                    }
                    (false, true) => {
                        for address in &s.addresses {
                            file_log(self.logs_by_address.entry(*address).or_default(), subscriber, number, s);
                        }
                    }
                    (false, false) => {
                        for address in &s.addresses {
                            for topic in topic0 {
                                let bucket = self.logs_by_address_and_topic.entry((*address, *topic)).or_default();
                                file_log(bucket, subscriber, number, s);
                            }
                        }
                    }
                }
            }
        }
        self.subscriptions.push(subscription.clone());
    }

    /// Matches and encodes a block.
    pub fn match_block(&self, block: &Block) -> Matched {
        let mut matched = Matched {
            at: block.at(),
            records: Vec::new(),
            block_record: 0..0,
            events: Vec::new(),
            gets: Vec::new(),
            block_subscribers: self.blocks.clone(),
        };
        matched.block_subscribers.sort_unstable();
        matched.block_subscribers.dedup();
        batch::encode_block(&block.header, !self.blocks.is_empty(), &mut matched.records);
        matched.block_record = 0..matched.records.len();

        let mut found = Vec::new();
        let mut transactions = block.transactions.iter().peekable();
        for log in &block.logs {
            // Each transaction stands before its logs.
            while let Some(tx) = transactions.next_if(|tx| tx.index <= log.transaction_index) {
                self.match_transaction(tx, &mut found);
                matched.push(EventPosition::Transaction(tx.index), &mut found, |out| {
                    batch::encode_transaction(tx, out);
                });
            }
            self.match_log(log, &mut found);
            matched.push(EventPosition::Log(log.index), &mut found, |out| batch::encode_log(log, out));
        }
        for tx in transactions {
            self.match_transaction(tx, &mut found);
            matched.push(EventPosition::Transaction(tx.index), &mut found, |out| batch::encode_transaction(tx, out));
        }
        // Stable, so that events stay in order.
        matched.gets.sort_by_key(|(subscriber, _)| *subscriber);
        // Two subscriptions of one plugin that both fit bring the event once.
        matched.gets.dedup();
        matched
    }

    fn match_log(&self, log: &Log, found: &mut Vec<SubscriberId>) {
        let topic0 = log.topics.first();
        if let Some(topic0) = topic0 {
            if !self.logs_by_topic.is_empty() {
                self.look_in(self.logs_by_topic.get(topic0), log, found);
            }
            if !self.logs_by_address_and_topic.is_empty() {
                self.look_in(self.logs_by_address_and_topic.get(&(log.address, *topic0)), log, found);
            }
        }
        if !self.logs_by_address.is_empty() {
            self.look_in(self.logs_by_address.get(&log.address), log, found);
        }
        self.look_in(Some(&self.logs_any), log, found);
    }

    fn look_in(&self, bucket: Option<&LogBucket>, log: &Log, found: &mut Vec<SubscriberId>) {
        let Some(bucket) = bucket else { return };
        found.extend_from_slice(&bucket.plain);
        for (topic, filed) in log.topics.iter().skip(1).zip(&bucket.by_topic) {
            if filed.is_empty() {
                continue;
            }
            for f in filed.get(topic).into_iter().flatten() {
                let wanted = &self.subscriptions[f.subscription as usize].topics;
                let fits = wanted.iter().enumerate().all(|(i, allowed)| {
                    allowed.is_empty() || log.topics.get(i).is_some_and(|topic| allowed.contains(topic))
                });
                if fits {
                    found.push(f.subscriber);
                }
            }
        }
    }

    fn match_transaction(&self, tx: &Transaction, found: &mut Vec<SubscriberId>) {
        let by_sender = self.transactions_by_sender.get(&tx.from);
        let by_receiver = tx.to.and_then(|to| self.transactions_by_receiver.get(&to));
        for f in by_sender.into_iter().chain(by_receiver).flatten().chain(&self.transactions_any) {
            let s = &self.subscriptions[f.subscription as usize];
            let receiver_fits = s.receivers.is_empty() || tx.to.is_some_and(|to| s.receivers.contains(&to));
            // A status that is not known fits no filter on status: saying nothing is not saying success.
            if receiver_fits && s.success.is_none_or(|wanted| tx.success == Some(wanted)) {
                found.push(f.subscriber);
            }
        }
    }
}

fn file_log(bucket: &mut LogBucket, subscriber: SubscriberId, subscription: u32, s: &Subscription) {
    match s.topics[1..].iter().position(|t| !t.is_empty()) {
        None => bucket.plain.push(subscriber),
        Some(first) => {
            for topic in &s.topics[1 + first] {
                bucket.by_topic[first].entry(*topic).or_default().push(Filed { subscriber, subscription });
            }
        }
    }
}

fn wanted(subscriptions: &[Subscription]) -> Wanted {
    let of = |kind| subscriptions.iter().filter(move |s| s.kind == kind);
    let union = |of_one: fn(&Subscription) -> &[B256]| -> Vec<B256> {
        if of(EventKind::Log).any(|s| of_one(s).is_empty()) {
            return vec![];
        }
        let all: HashSet<B256> = of(EventKind::Log).flat_map(of_one).copied().collect();
        let mut all: Vec<B256> = all.into_iter().collect();
        all.sort_unstable();
        all
    };
    let addresses: Vec<Address> = if of(EventKind::Log).any(|s| s.addresses.is_empty()) {
        vec![]
    } else {
        let all: HashSet<Address> = of(EventKind::Log).flat_map(|s| &s.addresses).copied().collect();
        let mut all: Vec<Address> = all.into_iter().collect();
        all.sort_unstable();
        all
    };
    let transactions = of(EventKind::Transaction).next().is_some();
    Wanted {
        blocks: of(EventKind::Block).next().is_some(),
        transactions,
        receipts: transactions,
        logs: of(EventKind::Log).next().is_some(),
        addresses,
        topic0: union(|s| &s.topics[0]),
    }
}

impl Matched {
    fn push(&mut self, position: EventPosition, found: &mut Vec<SubscriberId>, encode: impl FnOnce(&mut Vec<u8>)) {
        if found.is_empty() {
            return;
        }
        let number = self.events.len() as u32;
        let start = self.records.len();
        encode(&mut self.records);
        self.events.push((position, start..self.records.len()));
        self.gets.extend(found.drain(..).map(|subscriber| (subscriber, number)));
    }

    /// The block's own record, to stand before its events.
    pub fn block_record(&self) -> &[u8] {
        &self.records[self.block_record.clone()]
    }

    pub fn wants_block(&self, subscriber: SubscriberId) -> bool {
        self.block_subscribers.binary_search(&subscriber).is_ok()
    }

    /// A subscriber's events in chain order: position and encoded record.
    pub fn events(&self, subscriber: SubscriberId) -> impl Iterator<Item = (EventPosition, &[u8])> {
        let from = self.gets.partition_point(|(other, _)| *other < subscriber);
        self.gets[from..].iter().take_while(move |(other, _)| *other == subscriber).map(|(_, number)| {
            let (position, span) = &self.events[*number as usize];
            (*position, &self.records[span.clone()])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ChainId, Header};
    use alloy_primitives::{Bytes, U256};
    use proptest::prelude::*;

    fn address(n: u8) -> Address {
        Address::repeat_byte(n)
    }
    fn word(n: u8) -> B256 {
        B256::repeat_byte(n)
    }

    fn fits_log(s: &Subscription, log: &Log) -> bool {
        s.kind == EventKind::Log
            && (s.addresses.is_empty() || s.addresses.contains(&log.address))
            && s.topics
                .iter()
                .enumerate()
                .all(|(i, t)| t.is_empty() || log.topics.get(i).is_some_and(|topic| t.contains(topic)))
    }

    fn fits_transaction(s: &Subscription, tx: &Transaction) -> bool {
        s.kind == EventKind::Transaction
            && (s.senders.is_empty() || s.senders.contains(&tx.from))
            && (s.receivers.is_empty() || tx.to.is_some_and(|to| s.receivers.contains(&to)))
            && (s.success.is_none() || s.success == tx.success)
    }

    fn subscription() -> impl Strategy<Value = Subscription> {
        let addresses = || proptest::collection::vec((0u8..4).prop_map(address), 0..3);
        let topics = || proptest::collection::vec((0u8..3).prop_map(word), 0..3);
        (
            0usize..3,
            addresses(),
            [topics(), topics(), topics(), topics()],
            addresses(),
            addresses(),
            any::<Option<bool>>(),
        )
            .prop_map(|(kind, addresses, topics, senders, receivers, success)| Subscription {
                kind: [EventKind::Block, EventKind::Transaction, EventKind::Log][kind],
                addresses,
                topics,
                senders,
                receivers,
                success,
            })
    }

    fn block() -> impl Strategy<Value = Block> {
        let log = (0u8..4, proptest::collection::vec((0u8..3).prop_map(word), 0..5), 0u32..6);
        let tx = (0u8..4, any::<Option<bool>>(), 0u8..5);
        (proptest::collection::vec(log, 0..12), proptest::collection::vec(tx, 0..6)).prop_map(|(mut logs, txs)| {
            logs.sort_by_key(|l| l.2);
            let at = BlockRef { chain: ChainId(1), number: 7, hash: word(9), parent: word(8), time: 1 };
            let transactions = txs.into_iter().enumerate().map(|(i, (from, success, to))| Transaction {
                index: i as u32,
                hash: word(i as u8),
                from: address(from),
                to: (to < 4).then(|| address(to)),
                created: None,
                value: U256::from(1),
                input: Bytes::new(),
                nonce: 0,
                kind: 2,
                gas_limit: 0,
                gas_used: None,
                gas_price: 0,
                success,
            });
            let logs = logs.into_iter().enumerate().map(|(i, (from, topics, tx))| Log {
                index: i as u32,
                transaction_index: tx,
                transaction_hash: word(tx as u8),
                address: address(from),
                topics: topics.into_iter().take(4).collect(),
                data: Bytes::new(),
            });
            Block {
                transactions: transactions.collect(),
                logs: logs.collect(),
                header: Header {
                    at,
                    gas_used: 0,
                    gas_limit: 0,
                    base_fee: None,
                    beneficiary: address(0),
                    transaction_count: None,
                },
            }
        })
    }

    proptest! {
        #[test]
        fn matching_equals_a_linear_scan(
            subscribers in proptest::collection::vec(proptest::collection::vec(subscription(), 0..4), 0..12),
            block in block(),
        ) {
            let index = Index::new(subscribers.iter().enumerate().map(|(i, s)| (i as u32, s.as_slice())));
            let matched = index.match_block(&block);
            for (id, subscriptions) in subscribers.iter().enumerate() {
                let mut expected: Vec<((u32, u8, u32), EventPosition)> = Vec::new();
                for tx in &block.transactions {
                    if subscriptions.iter().any(|s| fits_transaction(s, tx)) {
                        expected.push(((tx.index, 0, 0), EventPosition::Transaction(tx.index)));
                    }
                }
                for log in &block.logs {
                    if subscriptions.iter().any(|s| fits_log(s, log)) {
                        expected.push(((log.transaction_index, 1, log.index), EventPosition::Log(log.index)));
                    }
                }
                expected.sort_by_key(|(order, _)| *order);
                let found: Vec<EventPosition> = matched.events(id as u32).map(|(p, _)| p).collect();
                prop_assert_eq!(found, expected.into_iter().map(|(_, p)| p).collect::<Vec<_>>());
                for (position, record) in matched.events(id as u32) {
                    let mut alone = Vec::new();
                    match position {
                        EventPosition::Log(i) => batch::encode_log(&block.logs[i as usize], &mut alone),
                        EventPosition::Transaction(i) => {
                            batch::encode_transaction(&block.transactions[i as usize], &mut alone);
                        }
                        EventPosition::Block => unreachable!("the block's own record is told apart"),
                    }
                    prop_assert_eq!(record, alone);
                }
                prop_assert_eq!(
                    matched.wants_block(id as u32),
                    subscriptions.iter().any(|s| s.kind == EventKind::Block)
                );
            }
        }

        /// Whatever matches is within what the source is asked for.
        #[test]
        fn the_source_is_asked_for_all_that_can_match(
            subscriptions in proptest::collection::vec(subscription(), 1..6),
            block in block(),
        ) {
            let wanted = Index::new([(0, subscriptions.as_slice())]).wanted().clone();
            for log in &block.logs {
                if subscriptions.iter().any(|s| fits_log(s, log)) {
                    prop_assert!(wanted.logs);
                    prop_assert!(wanted.addresses.is_empty() || wanted.addresses.contains(&log.address));
                    prop_assert!(wanted.topic0.is_empty() || log.topics.first().is_some_and(|t| wanted.topic0.contains(t)));
                }
            }
            prop_assert!(wanted.transactions || !subscriptions.iter().any(|s| s.kind == EventKind::Transaction));
        }
    }
}
