//! Transactions that are in no block yet, beside the flow: source -> match -> plugin -> journal, with no cursor that moves.
//!
//! They are part of no promise. A plugin is shown them between its steps, while it stands at the tip; what it emits leaves
//! marked as pending, what it writes to its state is not kept, and what it cannot process is dropped. One that lags
//! behind is shown the newest ones alone.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::Router;
use super::follow::News;
use crate::index::{Matched, SubscriberId};
use crate::model::Transaction;
use crate::source::Source;
use crate::telemetry;

/// Transactions that are matched together.
const TOGETHER: usize = 256;
/// So many wait for one plugin that has no time for them, however few came at once.
const WAITING: usize = 16 * TOGETHER;

/// What a consumer has to be shown.
#[derive(Default)]
pub struct Told {
    waiting: VecDeque<Arc<Matched>>,
    /// Transactions in them, those of other consumers too: they are held as long.
    held: usize,
}

impl Told {
    fn push(&mut self, matched: Arc<Matched>, subscriber: SubscriberId) {
        self.held += matched.size();
        self.waiting.push_back(matched);
        while self.held > WAITING
            && let Some(oldest) = self.waiting.pop_front()
        {
            self.held -= oldest.size();
            telemetry::pending_dropped(oldest.at.chain).increment(oldest.events(subscriber).count() as u64);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn take(&mut self) -> Vec<Arc<Matched>> {
        self.held = 0;
        self.waiting.drain(..).collect()
    }
}

/// Hands on what a source tells, some at a time, until the router wants no more.
pub async fn listen(chain: String, source: Arc<dyn Source>, news: mpsc::Sender<(String, News)>) {
    let Some(mut told) = source.pending() else {
        tracing::warn!(chain, "plugins ask for pending transactions, of which this source cannot tell");
        return;
    };
    let mut some = Vec::new();
    while told.recv_many(&mut some, TOGETHER).await > 0 {
        if news.send((chain.clone(), News::Pending(std::mem::take(&mut some)))).await.is_err() {
            return;
        }
    }
}

impl Router {
    /// Begins to listen where a plugin asks for it, and ends where none does any more.
    pub(super) fn listen(&mut self) {
        for (name, chain) in &mut self.chains {
            match (chain.plan.index.wanted().pending, &chain.listener, &chain.source) {
                (true, None, Some(source)) => {
                    let listening = listen(name.clone(), source.clone(), self.news_sender.clone());
                    chain.listener = Some(self.followers.spawn(listening));
                }
                (false, Some(listener), _) => {
                    listener.abort();
                    chain.listener = None;
                }
                _ => {}
            }
        }
    }

    pub(super) fn take_pending(&mut self, name: &str, told: &[Transaction]) {
        let Some(chain) = self.chains.get(name) else { return };
        let (Some(id), Some(path)) = (chain.id, &chain.path) else { return };
        // With the sets as the next block will have them.
        let next = path.tip().number + 1;
        let matched = {
            let sets = chain.plan.sets.read();
            Arc::new(chain.plan.index.match_pending(path.tip(), told, sets.at(id, next)))
        };
        for consumer in self.plugins.values_mut().filter_map(|plugin| plugin.consumers.get_mut(name)) {
            if matched.events(consumer.subscriber).next().is_some() {
                consumer.told.push(matched.clone(), consumer.subscriber);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{Address, B256, Bytes, U256};

    use super::*;
    use crate::index::Index;
    use crate::index::watch::Sets;
    use crate::model::{BlockRef, ChainId, EventKind, Subscription};

    const CHAIN: ChainId = ChainId(1);

    fn transaction(number: u8) -> Transaction {
        Transaction {
            index: u32::MAX,
            hash: B256::repeat_byte(number),
            from: Address::ZERO,
            to: None,
            created: None,
            value: U256::from(number),
            input: Bytes::new(),
            nonce: 0,
            kind: 2,
            gas_limit: 21_000,
            gas_used: None,
            gas_price: 1,
            success: None,
        }
    }

    #[test]
    fn as_many_wait_when_they_come_one_by_one_as_when_they_come_together() {
        let subscriptions = [Subscription::all(EventKind::Pending)];
        let mut sets = Sets::default();
        let index = Index::new(CHAIN, [(7, &subscriptions[..])], &mut sets);
        let at = BlockRef { chain: CHAIN, number: 9, hash: B256::ZERO, parent: B256::ZERO, time: 0 };
        let matched = |count: usize| {
            let some: Vec<_> = (0..count).map(|n| transaction(n as u8)).collect();
            Arc::new(index.match_pending(at, &some, sets.at(CHAIN, 10)))
        };
        for together in [1, TOGETHER] {
            let mut told = Told::default();
            let pushed = WAITING / together;
            for n in 0..pushed + 3 {
                told.push(matched(together), 7);
                assert_eq!(told.waiting.len(), pushed.min(n + 1));
            }
            assert_eq!(told.take().len(), pushed);
            assert!(told.is_empty());
            told.push(matched(1), 7);
            assert_eq!(told.take().len(), 1);
        }
    }
}
