//! Third stage: finds who subscribed to what in a block. `follower -> index -> plugin`.
//!
//! Pure. Subscriptions are filed under the most telling thing that they ask for, so that an event costs a few
//! look-ups whatever the number of subscribers; what it costs beyond that is one entry per subscriber that really
//! gets it. Matched events are encoded once, for all of them. Nothing here knows what a subscriber is.
//!
//! A watch set is looked up by the event's values, once a place, and subscriptions that name it are filed under it. What a
//! factory made is known to its subscriber alone ([`children`]): of such a subscription the index finds candidates.

pub mod children;
pub mod watch;

use std::ops::Range;
use std::sync::Arc;

use alloy_primitives::{Address, B256};
use foldhash::{HashMap, HashSet};

use self::children::{Children, FactoryId};
use self::watch::{SetId, Sets, View};
use crate::model::{
    Block, BlockRef, ChainId, EventAbi, EventKind, EventPosition, Factory, Header, Log, Member, Place, Subscription,
    Transaction, Transfer, Wanted, batch,
};

/// A consumer, as whoever builds the index numbers them.
pub type SubscriberId = u32;

/// A subscription in the place where it is filed: what is still to be checked when an event comes by.
#[derive(Clone, Copy, Debug)]
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
    /// They do.
    others: Vec<Filed>,
    /// By the first of topic 1 to 3 that they ask for.
    by_topic: [HashMap<B256, Vec<Filed>>; 3],
}

/// Subscriptions to what has a sender and a receiver.
#[derive(Debug, Default)]
struct Moves {
    by_sender: HashMap<Address, Vec<Filed>>,
    by_receiver: HashMap<Address, Vec<Filed>>,
    any: Vec<Filed>,
    by_set: HashMap<(Place, SetId), Vec<Filed>>,
}

/// A subscription with its sets' numbers.
#[derive(Debug)]
struct Asked {
    subscription: Subscription,
    sets: Vec<(Place, SetId)>,
    factory: Option<FactoryId>,
}

#[derive(Debug, Default)]
pub struct Index {
    subscriptions: Vec<Asked>,
    blocks: Vec<SubscriberId>,
    logs_by_address_and_topic: HashMap<(Address, B256), LogBucket>,
    logs_by_address: HashMap<Address, LogBucket>,
    logs_by_topic: HashMap<B256, LogBucket>,
    logs_any: LogBucket,
    logs_by_set: HashMap<(Place, SetId), Vec<Filed>>,
    transactions: Moves,
    transfers: Moves,
    creations: Moves,
    pending: Moves,
    /// By the event that names a new contract.
    factories: HashMap<B256, Vec<(SubscriberId, FactoryId, Factory)>>,
    /// Places at which some subscription names a set: what has to be looked up.
    set_places: Vec<Place>,
    /// Lists of events to be decoded, and who has which: logs are decoded once for all that have the same.
    readers: Vec<Vec<Arc<EventAbi>>>,
    reader_of: HashMap<SubscriberId, usize>,
    wanted: Wanted,
}

/// Why an event is shown to a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    /// It names a contract that this factory made. First: a contract may name itself, and is followed from there.
    Makes(FactoryId, Address),
    /// It asked for it.
    Delivered,
    /// It asked for what this factory made: if its contract is one of them.
    IfMadeBy(FactoryId),
}

/// A block's matched events, encoded, and who gets which.
#[derive(Debug)]
pub struct Matched {
    pub at: BlockRef,
    records: Vec<u8>,
    block_record: Range<usize>,
    events: Vec<(EventPosition, Range<usize>)>,
    /// By subscriber; the events of each, into `events`, rise. One list, however many subscribers share a block.
    gets: Vec<(SubscriberId, u32, Role)>,
    block_subscribers: Vec<SubscriberId>,
}

/// An event that a subscriber gets: a number for [`Matched::event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub number: u32,
    /// Its contract was made by a factory of the subscriber.
    pub made: bool,
}

/// What is looked for while one event is matched.
struct Found<'a> {
    view: View<'a>,
    /// The sets that the event's values are in.
    hits: Vec<(Place, SetId)>,
    who: Vec<(SubscriberId, Role)>,
}

impl Index {
    /// For one chain. Subscriptions to other chains alone are left out.
    pub fn new<'a>(
        chain: ChainId,
        subscribers: impl IntoIterator<Item = (SubscriberId, &'a [Subscription])>,
        sets: &mut Sets,
    ) -> Self {
        let mut index = Self::default();
        for (subscriber, subscriptions) in subscribers {
            let mut decode: Vec<Arc<EventAbi>> = Vec::new();
            for subscription in subscriptions.iter().filter(|s| s.on(chain)) {
                index.file(subscriber, subscription, sets);
                decode.extend(subscription.decode.iter().cloned());
            }
            index.decode_for(subscriber, decode);
        }
        index.wanted = wanted(&index.subscriptions);
        index
    }

    /// What the source must fetch for these subscribers.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    fn decode_for(&mut self, subscriber: SubscriberId, events: Vec<Arc<EventAbi>>) {
        if events.is_empty() {
            return;
        }
        let known = self.readers.iter().position(|reader| *reader == events);
        let reader = known.unwrap_or_else(|| {
            self.readers.push(events);
            self.readers.len() - 1
        });
        self.reader_of.insert(subscriber, reader);
    }

    fn file(&mut self, subscriber: SubscriberId, s: &Subscription, sets: &mut Sets) {
        let filed = Filed { subscriber, subscription: self.subscriptions.len() as u32 };
        let asked = Asked {
            subscription: s.clone(),
            sets: s.sets.iter().map(|(place, name)| (*place, sets.id(name))).collect(),
            factory: s.factory.as_ref().map(FactoryId::of),
        };
        for (place, _) in &asked.sets {
            if !self.set_places.contains(place) {
                self.set_places.push(*place);
            }
        }
        match s.kind {
            EventKind::Block => self.blocks.push(subscriber),
            EventKind::Transaction => self.transactions.file(filed, s, &asked.sets),
            EventKind::Transfer => self.transfers.file(filed, s, &asked.sets),
            EventKind::Creation => self.creations.file(filed, s, &asked.sets),
            EventKind::Pending => self.pending.file(filed, s, &asked.sets),
            EventKind::Log => {
                if let (Some(factory), Some(id)) = (&s.factory, asked.factory) {
                    let known = self.factories.entry(factory.event).or_default();
                    if !known.iter().any(|(who, other, _)| (*who, *other) == (subscriber, id)) {
                        known.push((subscriber, id, factory.clone()));
                    }
                }
                self.file_log(filed, s, &asked.sets);
            }
        }
        self.subscriptions.push(asked);
    }

    fn file_log(&mut self, filed: Filed, s: &Subscription, sets: &[(Place, SetId)]) {
        // Under a set, where there is one: few events hit it. Where the place of the set allows values too, under those.
        // Not at the address of a factory's subscription: what the factory made is in no set.
        let set = sets.iter().map(|(place, _)| *place).find(|p| s.factory.is_none() || *p != Place::Address);
        if let Some(place) = set {
            for (_, set) in sets.iter().filter(|(other, _)| *other == place) {
                self.logs_by_set.entry((place, *set)).or_default().push(filed);
            }
            match place {
                Place::Topic(0) => {
                    for topic in &s.topics[0] {
                        self.logs_by_topic.entry(*topic).or_default().others.push(filed);
                    }
                }
                Place::Topic(n) => {
                    for topic in &s.topics[usize::from(n)] {
                        self.logs_any.by_topic[usize::from(n) - 1].entry(*topic).or_default().push(filed);
                    }
                }
                _ => {
                    for address in &s.addresses {
                        self.logs_by_address.entry(*address).or_default().others.push(filed);
                    }
                }
            }
            return;
        }
        let addresses = if s.factory.is_some() { &[] } else { s.addresses.as_slice() };
        let topic0 = &s.topics[0];
        match (addresses.is_empty(), topic0.is_empty()) {
            (true, true) => self.logs_any.file(filed, s),
            (true, false) => {
                for topic in topic0 {
                    self.logs_by_topic.entry(*topic).or_default().file(filed, s);
                }
            }
            (false, true) => {
                for address in addresses {
                    self.logs_by_address.entry(*address).or_default().file(filed, s);
                }
            }
            (false, false) => {
                for address in addresses {
                    for topic in topic0 {
                        self.logs_by_address_and_topic.entry((*address, *topic)).or_default().file(filed, s);
                    }
                }
            }
        }
    }

    /// Matches and encodes a block, with the sets as that block has them.
    pub fn match_block(&self, block: &Block, view: View<'_>) -> Matched {
        let mut matched = Matched::of(&block.header, self.blocks.clone());

        let mut found = Found { view, hits: Vec::new(), who: Vec::new() };
        let mut transactions = block.transactions.iter().peekable();
        let mut transfers = block.transfers.iter().peekable();
        let mut logs = block.logs.iter().peekable();
        // Each transaction stands before its transfers, and these before its logs.
        loop {
            let of = |index: Option<u32>| index.unwrap_or(u32::MAX);
            let (tx, transfer, log) = (
                of(transactions.peek().map(|t| t.index)),
                of(transfers.peek().map(|t| t.transaction_index)),
                of(logs.peek().map(|l| l.transaction_index)),
            );
            if let Some(tx) = transactions.next_if(|_| tx <= transfer.min(log)) {
                self.match_transaction(tx, &mut found);
                matched.push(EventPosition::Transaction(tx.index), &found, 0..found.who.len(), |hits, out| {
                    batch::encode_transaction(tx, hits, out);
                });
            } else if let Some(transfer) = transfers.next_if(|_| transfer <= log) {
                self.match_transfer(transfer, &mut found);
                matched.push(EventPosition::Transfer(transfer.index), &found, 0..found.who.len(), |hits, out| {
                    batch::encode_transfer(transfer, hits, out);
                });
            } else if let Some(log) = logs.next() {
                self.match_log(log, &mut found);
                self.push_log(log, &mut found, &mut matched);
            } else {
                break;
            }
            found.hits.clear();
            found.who.clear();
        }
        matched.sorted()
    }

    /// Matches transactions that are in no block, with the sets as they are; `at` is the newest block, as context.
    pub fn match_pending(&self, at: BlockRef, transactions: &[Transaction], view: View<'_>) -> Matched {
        let mut matched = Matched::of(&Header::of(at), Vec::new());
        let mut found = Found { view, hits: Vec::new(), who: Vec::new() };
        for (i, tx) in (0..).zip(transactions) {
            self.look_up_transaction(tx, &mut found);
            self.match_move(&self.pending, tx.from, tx.to, &mut found, |s| {
                s.min_value.is_none_or(|min| tx.value >= min)
            });
            matched.push(EventPosition::Pending(i), &found, 0..found.who.len(), |hits, out| {
                batch::encode_pending(tx, hits, out);
            });
            found.hits.clear();
            found.who.clear();
        }
        matched.sorted()
    }

    /// As one record, and one more for each list of events that some of its subscribers want decoded.
    fn push_log(&self, log: &Log, found: &mut Found<'_>, matched: &mut Matched) {
        let reader_of = |who: &SubscriberId| self.reader_of.get(who).copied();
        if !self.readers.is_empty() {
            found.who.sort_unstable_by_key(|(who, _)| reader_of(who));
        }
        let (mut from, mut decoded) = (0, Vec::new());
        while let Some((first, _)) = found.who.get(from) {
            let reader = if self.readers.is_empty() { None } else { reader_of(first) };
            let same = |who: &SubscriberId| self.readers.is_empty() || reader_of(who) == reader;
            let to = from + found.who[from..].partition_point(|(who, _)| same(who));
            decoded.clear();
            if let Some(reader) = reader {
                EventAbi::read(&self.readers[reader], log, &mut decoded);
            }
            matched.push(EventPosition::Log(log.index), found, from..to, |hits, out| {
                batch::encode_log(log, &decoded, hits, out);
            });
            from = to;
        }
    }

    fn look_up(&self, value: impl Into<Member>, place: Place, found: &mut Found<'_>) {
        if self.set_places.contains(&place) {
            let hits = &mut found.hits;
            found.view.sets_of(value, |set| hits.push((place, set)));
        }
    }

    fn match_log(&self, log: &Log, found: &mut Found<'_>) {
        if !self.set_places.is_empty() {
            self.look_up(log.address, Place::Address, found);
            for (n, topic) in (0u8..).zip(&log.topics) {
                self.look_up(*topic, Place::Topic(n), found);
            }
            for hit in 0..found.hits.len() {
                for filed in self.logs_by_set.get(&found.hits[hit]).into_iter().flatten() {
                    self.check_log(*filed, log, found);
                }
            }
        }
        let topic0 = log.topics.first();
        if let Some(topic0) = topic0 {
            if !self.logs_by_topic.is_empty() {
                self.look_in(self.logs_by_topic.get(topic0), log, found);
            }
            if !self.logs_by_address_and_topic.is_empty() {
                self.look_in(self.logs_by_address_and_topic.get(&(log.address, *topic0)), log, found);
            }
            if !self.factories.is_empty() {
                for (subscriber, id, factory) in self.factories.get(topic0).into_iter().flatten() {
                    if let Some(child) = children::made(factory, log) {
                        found.who.push((*subscriber, Role::Makes(*id, child)));
                    }
                }
            }
        }
        if !self.logs_by_address.is_empty() {
            self.look_in(self.logs_by_address.get(&log.address), log, found);
        }
        self.look_in(Some(&self.logs_any), log, found);
    }

    fn look_in(&self, bucket: Option<&LogBucket>, log: &Log, found: &mut Found<'_>) {
        let Some(bucket) = bucket else { return };
        found.who.extend(bucket.plain.iter().map(|who| (*who, Role::Delivered)));
        for filed in &bucket.others {
            self.check_log(*filed, log, found);
        }
        for (topic, filed) in log.topics.iter().skip(1).zip(&bucket.by_topic) {
            if filed.is_empty() {
                continue;
            }
            for filed in filed.get(topic).into_iter().flatten() {
                self.check_log(*filed, log, found);
            }
        }
    }

    fn check_log(&self, filed: Filed, log: &Log, found: &mut Found<'_>) {
        let asked = &self.subscriptions[filed.subscription as usize];
        let s = &asked.subscription;
        let topics_fit = (0u8..).zip(&s.topics).all(|(n, values)| {
            let place = Place::Topic(n);
            match log.topics.get(usize::from(n)) {
                Some(topic) => asked.allows(values, topic, place, &found.hits),
                None => values.is_empty() && !s.has_set(place),
            }
        });
        if !topics_fit {
            return;
        }
        let named = asked.allows(&s.addresses, &log.address, Place::Address, &found.hits);
        let role = match asked.factory {
            None if named => Role::Delivered,
            // A factory's subscription with no addresses asks for what was made alone.
            Some(_) if named && (!s.addresses.is_empty() || s.has_set(Place::Address)) => Role::Delivered,
            Some(factory) => Role::IfMadeBy(factory),
            None => return,
        };
        found.who.push((filed.subscriber, role));
    }

    fn look_up_transaction(&self, tx: &Transaction, found: &mut Found<'_>) {
        self.look_up(tx.hash, Place::Hash, found);
        self.look_up(tx.from, Place::Sender, found);
        if let Some(to) = tx.to {
            self.look_up(to, Place::Receiver, found);
        }
    }

    fn match_transaction(&self, tx: &Transaction, found: &mut Found<'_>) {
        self.look_up_transaction(tx, found);
        self.match_move(&self.transactions, tx.from, tx.to, found, |s| {
            // A status that is not known fits no filter on status: saying nothing is not saying success.
            s.success.is_none_or(|wanted| tx.success == Some(wanted)) && s.min_value.is_none_or(|min| tx.value >= min)
        });
    }

    fn match_transfer(&self, transfer: &Transfer, found: &mut Found<'_>) {
        self.look_up(transfer.from, Place::Sender, found);
        self.look_up(transfer.to, Place::Receiver, found);
        let (from, to) = (transfer.from, Some(transfer.to));
        if !transfer.value.is_zero() {
            self.match_move(&self.transfers, from, to, found, |s| s.min_value.is_none_or(|min| transfer.value >= min));
        }
        if transfer.how.creates() {
            self.match_move(&self.creations, from, to, found, |_| true);
        }
    }

    fn match_move(
        &self,
        moves: &Moves,
        from: Address,
        to: Option<Address>,
        found: &mut Found<'_>,
        fits: impl Fn(&Subscription) -> bool,
    ) {
        let by_set = found.hits.iter().filter_map(|hit| moves.by_set.get(hit)).flatten();
        let by_receiver = to.and_then(|to| moves.by_receiver.get(&to));
        let by_value = moves.by_sender.get(&from).into_iter().chain(by_receiver).flatten();
        for filed in by_set.chain(by_value).chain(&moves.any) {
            let asked = &self.subscriptions[filed.subscription as usize];
            let s = &asked.subscription;
            let receiver_fits = match &to {
                Some(to) => asked.allows(&s.receivers, to, Place::Receiver, &found.hits),
                None => s.receivers.is_empty() && !s.has_set(Place::Receiver),
            };
            let hash_fits = asked.allows::<B256>(&[], &B256::ZERO, Place::Hash, &found.hits);
            if receiver_fits && hash_fits && asked.allows(&s.senders, &from, Place::Sender, &found.hits) && fits(s) {
                found.who.push((filed.subscriber, Role::Delivered));
            }
        }
    }
}

impl Asked {
    fn allows<T: PartialEq>(&self, values: &[T], value: &T, place: Place, hits: &[(Place, SetId)]) -> bool {
        let mut any = values.is_empty();
        if values.contains(value) {
            return true;
        }
        for named in self.sets.iter().filter(|(at, _)| *at == place) {
            if hits.contains(named) {
                return true;
            }
            any = false;
        }
        any
    }
}

impl LogBucket {
    fn file(&mut self, filed: Filed, s: &Subscription) {
        match s.topics[1..].iter().position(|t| !t.is_empty()) {
            None if s.factory.is_some() => self.others.push(filed),
            None => self.plain.push(filed.subscriber),
            Some(first) => {
                for topic in &s.topics[1 + first] {
                    self.by_topic[first].entry(*topic).or_default().push(filed);
                }
            }
        }
    }
}

impl Moves {
    fn file(&mut self, filed: Filed, s: &Subscription, sets: &[(Place, SetId)]) {
        let place = sets.first().map(|(place, _)| *place);
        for (at, set) in sets.iter().filter(|(at, _)| Some(*at) == place) {
            self.by_set.entry((*at, *set)).or_default().push(filed);
        }
        let sender = place.is_none_or(|p| p == Place::Sender) && !s.senders.is_empty();
        let receiver = place.is_none_or(|p| p == Place::Receiver) && !sender && !s.receivers.is_empty();
        if sender {
            for sender in &s.senders {
                self.by_sender.entry(*sender).or_default().push(filed);
            }
        } else if receiver {
            for receiver in &s.receivers {
                self.by_receiver.entry(*receiver).or_default().push(filed);
            }
        } else if place.is_none() {
            self.any.push(filed);
        }
    }
}

fn wanted(asked: &[Asked]) -> Wanted {
    let of = |kind| asked.iter().map(|a| &a.subscription).filter(move |s| s.kind == kind);
    // All that is named at a place; nothing where one subscription names nothing there.
    fn union<T: Copy + Ord + std::hash::Hash>(lists: impl Iterator<Item = Option<Vec<T>>>) -> Vec<T> {
        let mut all: HashSet<T> = HashSet::default();
        for list in lists {
            match list {
                Some(list) => all.extend(list),
                None => return vec![],
            }
        }
        let mut all: Vec<T> = all.into_iter().collect();
        all.sort_unstable();
        all
    }
    let named = |values: &[Address], open: bool| (!values.is_empty() && !open).then(|| values.to_vec());
    let addresses = union(of(EventKind::Log).map(|s| {
        // What a factory will make, or a set will hold, is not known beforehand.
        named(&s.addresses, s.factory.is_some() || s.has_set(Place::Address))
    }));
    let topic0 = union(of(EventKind::Log).map(|s| {
        let makes = s.factory.iter().map(|f| f.event);
        (!s.topics[0].is_empty() && !s.has_set(Place::Topic(0)))
            .then(|| s.topics[0].iter().copied().chain(makes).collect())
    }));
    let transfers = asked.iter().any(|a| a.subscription.is_traced());
    let transactions = transfers || of(EventKind::Transaction).next().is_some();
    Wanted {
        blocks: of(EventKind::Block).next().is_some(),
        transactions,
        receipts: transactions,
        transfers,
        pending: of(EventKind::Pending).next().is_some(),
        logs: of(EventKind::Log).next().is_some(),
        addresses,
        topic0,
    }
}

impl Matched {
    /// Of a block of which nothing is matched yet but the block itself.
    fn of(header: &Header, mut block_subscribers: Vec<SubscriberId>) -> Self {
        block_subscribers.sort_unstable();
        block_subscribers.dedup();
        let mut records = Vec::new();
        batch::encode_block(header, !block_subscribers.is_empty(), &mut records);
        let block_record = 0..records.len();
        Self { at: header.at, records, block_record, events: Vec::new(), gets: Vec::new(), block_subscribers }
    }

    fn sorted(mut self) -> Self {
        self.gets.sort_unstable();
        // Two subscriptions of one plugin that both fit bring the event once.
        self.gets.dedup();
        self
    }

    /// One record, for some of those that were found.
    fn push(
        &mut self,
        position: EventPosition,
        found: &Found<'_>,
        whom: Range<usize>,
        encode: impl FnOnce(batch::Hits<'_>, &mut Vec<u8>),
    ) {
        if whom.is_empty() {
            return;
        }
        let number = self.events.len() as u32;
        let start = self.records.len();
        let sets = found.view.sets();
        let hits: Vec<(Place, &str)> =
            found.hits.iter().map(|(place, set)| (*place, sets.name(*set).as_str())).collect();
        encode(&hits, &mut self.records);
        self.events.push((position, start..self.records.len()));
        self.gets.extend(found.who[whom].iter().map(|(subscriber, role)| (*subscriber, number, *role)));
    }

    /// The block's own record, to stand before its events.
    pub fn block_record(&self) -> &[u8] {
        &self.records[self.block_record.clone()]
    }

    /// Events in it, whoever gets them.
    pub fn size(&self) -> usize {
        self.events.len()
    }

    pub fn wants_block(&self, subscriber: SubscriberId) -> bool {
        self.block_subscribers.binary_search(&subscriber).is_ok()
    }

    fn gets(&self, subscriber: SubscriberId) -> &[(SubscriberId, u32, Role)] {
        let from = self.gets.partition_point(|(other, _, _)| *other < subscriber);
        let to = from + self.gets[from..].partition_point(|(other, _, _)| *other == subscriber);
        &self.gets[from..to]
    }

    /// A subscriber's events in chain order. Those of contracts that factories made are told by `children`, which learns
    /// on the way what this block makes.
    pub fn events_of(&self, subscriber: SubscriberId, children: &mut Children) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::new();
        for (_, number, role) in self.gets(subscriber) {
            let (delivered, made) = match role {
                Role::Delivered => (true, false),
                Role::Makes(factory, child) => {
                    children.learn(*factory, *child);
                    (false, false)
                }
                Role::IfMadeBy(factory) => {
                    let record = &self.records[self.events[*number as usize].1.clone()];
                    let made = children.contains(*factory, &batch::log_address(record));
                    (made, made)
                }
            };
            match events.last_mut().filter(|event| event.number == *number) {
                Some(event) => event.made |= made,
                None if delivered => events.push(Event { number: *number, made }),
                None => {}
            }
        }
        events
    }

    /// Position and encoded record.
    pub fn event(&self, number: u32) -> (EventPosition, &[u8]) {
        let (position, span) = &self.events[number as usize];
        (*position, &self.records[span.clone()])
    }

    /// The events that a subscriber asked for by name, in chain order: all of them, where it has no factories.
    pub fn events(&self, subscriber: SubscriberId) -> impl Iterator<Item = (EventPosition, &[u8])> {
        let mut last = None;
        let delivered = self
            .gets(subscriber)
            .iter()
            .filter(move |(_, number, role)| *role == Role::Delivered && last.replace(*number) != Some(*number));
        delivered.map(|(_, number, _)| self.event(*number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Child, EditId, Header, How, SetName};
    use alloy_primitives::{Bytes, U256};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const CHAIN: ChainId = ChainId(1);

    fn address(n: u8) -> Address {
        Address::repeat_byte(n)
    }
    fn word(n: u8) -> B256 {
        B256::repeat_byte(n)
    }

    /// The members of the only set.
    type SetOf = BTreeSet<u8>;

    fn allows<T: PartialEq>(s: &Subscription, place: Place, values: &[T], value: &T, in_set: bool) -> bool {
        (values.is_empty() && !s.has_set(place)) || values.contains(value) || (s.has_set(place) && in_set)
    }

    fn member(set: &SetOf, address: Address) -> bool {
        set.contains(&address[0])
    }

    fn fits_log(s: &Subscription, log: &Log, set: &SetOf, children: &BTreeSet<Address>) -> bool {
        s.kind == EventKind::Log
            && s.on(CHAIN)
            && match s.factory {
                Some(_) if children.contains(&log.address) => true,
                Some(_) if s.addresses.is_empty() && !s.has_set(Place::Address) => false,
                _ => allows(s, Place::Address, &s.addresses, &log.address, member(set, log.address)),
            }
            && s.topics.iter().enumerate().all(|(i, t)| match log.topics.get(i) {
                // The word of zeros is an address.
                Some(topic) if topic.is_zero() => allows(s, Place::Topic(i as u8), t, topic, set.contains(&0)),
                Some(topic) => allows(s, Place::Topic(i as u8), t, topic, set.contains(&(topic[31] | 0x80))),
                None => t.is_empty() && !s.has_set(Place::Topic(i as u8)),
            })
    }

    fn fits_move(s: &Subscription, from: Address, to: Option<Address>, set: &SetOf) -> bool {
        s.on(CHAIN)
            && allows(s, Place::Sender, &s.senders, &from, member(set, from))
            && match to {
                Some(to) => allows(s, Place::Receiver, &s.receivers, &to, member(set, to)),
                None => s.receivers.is_empty() && !s.has_set(Place::Receiver),
            }
    }

    fn fits_transaction(s: &Subscription, tx: &Transaction, set: &SetOf) -> bool {
        s.kind == EventKind::Transaction
            && fits_move(s, tx.from, tx.to, set)
            && (!s.has_set(Place::Hash) || set.contains(&if tx.hash.is_zero() { 0 } else { tx.hash[31] | 0x80 }))
            && (s.success.is_none() || s.success == tx.success)
            && s.min_value.is_none_or(|min| tx.value >= min)
    }

    fn fits_pending(s: &Subscription, tx: &Transaction, set: &SetOf) -> bool {
        s.kind == EventKind::Pending
            && fits_transaction(&Subscription { kind: EventKind::Transaction, success: None, ..s.clone() }, tx, set)
    }

    fn fits_transfer(s: &Subscription, t: &Transfer, set: &SetOf) -> bool {
        let kind = match s.kind {
            EventKind::Transfer => !t.value.is_zero() && s.min_value.is_none_or(|min| t.value >= min),
            EventKind::Creation => t.how.creates(),
            _ => false,
        };
        kind && fits_move(s, t.from, Some(t.to), set)
    }

    const DECODE: [&str; 3] = [
        "event One(uint256 indexed a) anonymous",
        "event Two(address indexed b, address indexed c, bytes32 d) anonymous",
        "event Three(uint8 indexed e) anonymous",
    ];

    fn decoded(event: &&str) -> Arc<EventAbi> {
        Arc::new(EventAbi::parse(event).unwrap())
    }

    fn subscription() -> impl Strategy<Value = Subscription> {
        let addresses = || proptest::collection::vec((0u8..4).prop_map(address), 0..3);
        let topics = || proptest::collection::vec((0u8..3).prop_map(word), 0..3);
        let sets = proptest::collection::vec(0usize..12, 0..3);
        let factory =
            proptest::option::of((proptest::collection::vec((0u8..4).prop_map(address), 0..2), 0u8..3, 0u8..2));
        (
            0usize..6,
            addresses(),
            [topics(), topics(), topics(), topics()],
            addresses(),
            addresses(),
            (any::<Option<bool>>(), proptest::option::of(0u8..3), 0u8..4, 0usize..6),
            sets,
            factory,
        )
            .prop_map(
                |(kind, addresses, topics, senders, receivers, (success, min, chain, decode), sets, factory)| {
                    let kind = [
                        EventKind::Block,
                        EventKind::Transaction,
                        EventKind::Log,
                        EventKind::Transfer,
                        EventKind::Creation,
                        EventKind::Pending,
                    ][kind];
                    let set = SetName::new("s").unwrap();
                    let places: &[Place] = match kind {
                        EventKind::Block => &[],
                        EventKind::Log => {
                            &[Place::Address, Place::Topic(0), Place::Topic(1), Place::Topic(2), Place::Topic(3)]
                        }
                        EventKind::Transaction | EventKind::Pending => &[Place::Sender, Place::Receiver, Place::Hash],
                        EventKind::Transfer | EventKind::Creation => &[Place::Sender, Place::Receiver],
                    };
                    let sets = sets.into_iter().filter_map(|n| Some((*places.get(n)?, set.clone()))).collect();
                    let factory = factory.filter(|_| kind == EventKind::Log).map(|(makers, event, place)| Factory {
                        makers,
                        event: word(event),
                        child: if place == 0 { Child::Topic(1) } else { Child::Word(0) },
                        since: None,
                    });
                    Subscription {
                        chains: if chain == 0 { vec![ChainId(5)] } else { vec![] },
                        addresses,
                        topics,
                        senders,
                        receivers,
                        success,
                        min_value: min.map(U256::from),
                        sets,
                        factory,
                        decode: (kind == EventKind::Log)
                            .then(|| DECODE.get(decode))
                            .flatten()
                            .map(decoded)
                            .into_iter()
                            .collect(),
                        ..Subscription::all(kind)
                    }
                },
            )
    }

    fn block() -> impl Strategy<Value = Block> {
        // What a log says was made is at address 0 to 2 as well.
        let log = (0u8..4, proptest::collection::vec((0u8..3).prop_map(word), 0..5), 0u32..6, 0u8..4);
        let tx = (0u8..4, any::<Option<bool>>(), 0u8..5);
        let transfer = (0u8..4, 0u8..4, 0u8..3, 0usize..6, 0u32..6);
        use proptest::collection::vec as all;
        (all(log, 0..12), all(tx, 0..6), all(transfer, 0..6)).prop_map(|(mut logs, txs, mut transfers)| {
            logs.sort_by_key(|l| l.2);
            transfers.sort_by_key(|t| t.4);
            let at = BlockRef { chain: ChainId(1), number: 7, hash: word(9), parent: word(8), time: 1 };
            let transactions = txs.into_iter().enumerate().map(|(i, (from, success, to))| Transaction {
                index: i as u32,
                hash: word(i as u8),
                from: address(from),
                to: (to < 4).then(|| address(to)),
                created: None,
                value: U256::from(to % 3),
                input: Bytes::new(),
                nonce: 0,
                kind: 2,
                gas_limit: 0,
                gas_used: None,
                gas_price: 0,
                success,
            });
            let hows = [How::Transaction, How::Creation, How::Call, How::Create, How::Create2, How::SelfDestruct];
            let transfers = transfers.into_iter().enumerate().map(|(i, (from, to, value, how, tx))| Transfer {
                index: i as u32,
                transaction_index: tx,
                transaction_hash: word(tx as u8),
                depth: 1,
                how: hows[how],
                from: address(from),
                to: address(to),
                value: U256::from(value),
            });
            let logs = logs.into_iter().enumerate().map(|(i, (from, topics, tx, made))| Log {
                index: i as u32,
                transaction_index: tx,
                transaction_hash: word(tx as u8),
                address: address(from),
                topics: topics.into_iter().take(4).collect(),
                data: if made < 3 { word(made).to_vec().into() } else { Bytes::new() },
            });
            Block {
                transactions: transactions.collect(),
                transfers: transfers.collect(),
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

    /// The set has members in both places: addresses for the places of addresses, words that a topic can be.
    fn sets(members: &SetOf) -> Sets {
        let mut sets = Sets::default();
        let id = sets.id(&SetName::new("s").unwrap());
        for n in members {
            let member: Member = if n & 0x80 == 0 { address(*n).into() } else { word(n & 0x7f).into() };
            sets.add(id, member, EditId(0));
        }
        sets
    }

    fn members() -> impl Strategy<Value = SetOf> {
        proptest::collection::btree_set(prop_oneof![0u8..4, 0x81u8..0x83], 0..4)
    }

    proptest! {
        #[test]
        fn matching_equals_a_linear_scan(
            subscribers in proptest::collection::vec(proptest::collection::vec(subscription(), 0..4), 0..12),
            block in block(),
            members in members(),
        ) {
            let mut sets = sets(&members);
            let index = Index::new(CHAIN, subscribers.iter().enumerate().map(|(i, s)| (i as u32, s.as_slice())), &mut sets);
            let matched = index.match_block(&block, sets.at(CHAIN, 7));
            for (id, subscriptions) in subscribers.iter().enumerate() {
                let mut expected: Vec<((u32, u8, u32), EventPosition)> = Vec::new();
                for tx in &block.transactions {
                    if subscriptions.iter().any(|s| fits_transaction(s, tx, &members)) {
                        expected.push(((tx.index, 0, 0), EventPosition::Transaction(tx.index)));
                    }
                }
                for t in &block.transfers {
                    if subscriptions.iter().any(|s| fits_transfer(s, t, &members)) {
                        expected.push(((t.transaction_index, 1, t.index), EventPosition::Transfer(t.index)));
                    }
                }
                // Each factory's children, as they are made.
                let mut made: Vec<BTreeSet<Address>> = vec![BTreeSet::new(); subscriptions.len()];
                for log in &block.logs {
                    for (s, made) in subscriptions.iter().zip(&mut made) {
                        if let Some(factory) = s.factory.as_ref().filter(|_| s.on(CHAIN))
                            && (factory.makers.is_empty() || factory.makers.contains(&log.address))
                            && log.topics.first() == Some(&factory.event)
                        {
                            let word = match factory.child {
                                Child::Topic(n) => log.topics.get(usize::from(n)).map(|t| t.to_vec()),
                                Child::Word(_) => (log.data.len() >= 32).then(|| log.data.to_vec()),
                            };
                            made.extend(word.map(|w| Address::from_slice(&w[12..])));
                        }
                    }
                    if subscriptions.iter().zip(&made).any(|(s, made)| fits_log(s, log, &members, made)) {
                        expected.push(((log.transaction_index, 2, log.index), EventPosition::Log(log.index)));
                    }
                }
                expected.sort_by_key(|(order, _)| *order);
                let mut children = Children::default();
                let events = matched.events_of(id as u32, &mut children);
                let found: Vec<EventPosition> = events.iter().map(|e| matched.event(e.number).0).collect();
                prop_assert_eq!(found, expected.into_iter().map(|(_, p)| p).collect::<Vec<_>>());
                if subscriptions.iter().all(|s| s.factory.is_none()) {
                    let plain: Vec<_> = matched.events(id as u32).collect();
                    prop_assert_eq!(plain, events.iter().map(|e| matched.event(e.number)).collect::<Vec<_>>());
                }
                for (position, record) in events.into_iter().map(|e| matched.event(e.number)) {
                    let mut alone = Vec::new();
                    let mut told = Vec::new();
                    match position {
                        EventPosition::Log(i) => {
                            let log = &block.logs[i as usize];
                            let asked = subscriptions.iter().filter(|s| s.on(CHAIN)).flat_map(|s| s.decode.clone());
                            let asked: Vec<_> = asked.collect();
                            if !asked.is_empty() {
                                EventAbi::read(&asked, log, &mut told);
                            }
                            batch::encode_log(log, &told, &[], &mut alone);
                            let at = 80 + 32 * log.topics.len() + log.data.len();
                            prop_assert_eq!(&record[at..at + told.len()], told.as_slice());
                            prop_assert_eq!(&record[76..80], (told.len() as u32).to_le_bytes());
                        }
                        EventPosition::Transaction(i) => {
                            batch::encode_transaction(&block.transactions[i as usize], &[], &mut alone);
                        }
                        EventPosition::Transfer(i) => batch::encode_transfer(&block.transfers[i as usize], &[], &mut alone),
                        EventPosition::Block | EventPosition::Pending(_) => unreachable!("no event of a block"),
                    }
                    // Sets that it is in stand behind.
                    let without = usize::from(u16::from_le_bytes([alone[6], alone[7]]));
                    prop_assert_eq!(&record[8..12], &alone[8..12]);
                    prop_assert!(record.len() >= without);
                }
                prop_assert_eq!(
                    matched.wants_block(id as u32),
                    subscriptions.iter().any(|s| s.kind == EventKind::Block && s.on(CHAIN))
                );
            }
        }

        #[test]
        fn matching_what_is_pending_equals_a_linear_scan(
            subscribers in proptest::collection::vec(proptest::collection::vec(subscription(), 0..4), 0..12),
            block in block(),
            members in members(),
        ) {
            let mut sets = sets(&members);
            let index = Index::new(CHAIN, subscribers.iter().enumerate().map(|(i, s)| (i as u32, s.as_slice())), &mut sets);
            let matched = index.match_pending(block.at(), &block.transactions, sets.at(CHAIN, 7));
            for (id, subscriptions) in subscribers.iter().enumerate() {
                let wanted = |tx: &&Transaction| subscriptions.iter().any(|s| fits_pending(s, tx, &members));
                let expected: Vec<_> =
                    block.transactions.iter().filter(wanted).map(|tx| EventPosition::Pending(tx.index)).collect();
                prop_assert_eq!(matched.events(id as u32).map(|(at, _)| at).collect::<Vec<_>>(), expected);
                prop_assert!(!matched.wants_block(id as u32));
            }
        }

        /// Whatever matches is within what the source is asked for.
        #[test]
        fn the_source_is_asked_for_all_that_can_match(
            subscriptions in proptest::collection::vec(subscription(), 1..6),
            block in block(),
            members in members(),
        ) {
            let mut sets = sets(&members);
            let wanted = Index::new(CHAIN, [(0, subscriptions.as_slice())], &mut sets).wanted().clone();
            let asked = |log: &Log| {
                wanted.logs
                    && (wanted.addresses.is_empty() || wanted.addresses.contains(&log.address))
                    && (wanted.topic0.is_empty() || log.topics.first().is_some_and(|t| wanted.topic0.contains(t)))
            };
            let every: BTreeSet<Address> = (0..4).map(address).collect();
            for log in &block.logs {
                if subscriptions.iter().any(|s| fits_log(s, log, &members, &every)) {
                    prop_assert!(asked(log));
                }
                if subscriptions.iter().filter(|s| s.on(CHAIN)).any(|s| s.factory.as_ref().is_some_and(|f| children::made(f, log).is_some())) {
                    prop_assert!(asked(log));
                }
            }
            let on = |kind| subscriptions.iter().any(|s: &Subscription| s.kind == kind && s.on(CHAIN));
            prop_assert!(wanted.transactions || !on(EventKind::Transaction));
            prop_assert!(wanted.transfers || !(on(EventKind::Transfer) || on(EventKind::Creation)));
        }
    }
}
