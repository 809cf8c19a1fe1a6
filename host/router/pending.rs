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
use crate::index::Matched;
use crate::model::Transaction;
use crate::source::Source;
use crate::telemetry;

/// Transactions that are matched together.
const TOGETHER: usize = 256;
/// So many times that, for one plugin that has no time for them.
const WAITING: usize = 16;

/// What a consumer has to be shown.
#[derive(Default)]
pub struct Told(VecDeque<Arc<Matched>>);

impl Told {
    fn push(&mut self, matched: Arc<Matched>) {
        if self.0.len() == WAITING
            && let Some(oldest) = self.0.pop_front()
        {
            telemetry::pending_dropped(oldest.at.chain).increment(1);
        }
        self.0.push_back(matched);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn take(&mut self) -> Vec<Arc<Matched>> {
        self.0.drain(..).collect()
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
                consumer.told.push(matched.clone());
            }
        }
    }
}
