//! Draws the picture that `status` shows.

use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::next::{Next, next};
use super::{Chain, Router};
use crate::model::{
    BlockRef, BlockStatus, ChainStatus, ConsumerStatus, JournalStatus, PluginStatus, RefusedFile, Status,
};
use crate::router::consumer::Consumer;

fn show(block: &BlockRef) -> BlockStatus {
    BlockStatus { number: block.number, hash: block.hash.to_string(), time: block.time }
}

impl Router {
    pub(super) fn draw(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let chains: Vec<ChainStatus> = self.chains.values().map(|c| self.chain(c)).collect();
        let connected = self.chains.values().all(|c| c.path.is_some() && matches!(c.state, "following" | "ended"));
        let plugins = self.plugins.iter().map(|(name, plugin)| {
            let m = &plugin.candidate.manifest;
            let full = self.full_output(name);
            PluginStatus {
                name: name.to_string(),
                version: m.version.clone(),
                description: m.description.clone(),
                digest: plugin.candidate.digest.to_string(),
                file: plugin.candidate.file.display().to_string(),
                streams: m.streams.iter().map(|s| s.name.to_string()).collect(),
                chains: plugin
                    .consumers
                    .iter()
                    .map(|(chain, consumer)| self.consumer(chain, consumer, full.as_deref(), now))
                    .collect(),
                refused: self.refused_files.get(&plugin.candidate.file).cloned(),
            }
        });
        let refused_files: Vec<RefusedFile> = self.refused_files.values().cloned().collect();
        let status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            started_at: self.started_at,
            ready: connected && self.full.is_none() && self.fatal.is_none(),
            journal: JournalStatus {
                path: self.config.journal.path.display().to_string(),
                bytes: self.journal_size.bytes,
                last_offset: *self.journal.tail().borrow(),
                paused: self.full.as_ref().map(|(_, why)| why.clone()),
            },
            chains,
            plugins: plugins.collect(),
            refused_files,
            outputs: self.lanes.values().map(|(lane, _)| lane.status()).collect(),
        };
        self.picture.send_replace(std::sync::Arc::new(status));
    }

    fn chain(&self, chain: &Chain) -> ChainStatus {
        ChainStatus {
            name: chain.config.name.clone(),
            chain: chain.id.map(|id| id.to_string()).unwrap_or_default(),
            state: chain.state.into(),
            why: chain.why.clone(),
            head: chain.path.as_ref().map(|p| show(&p.tip())),
            safe: chain.path.as_ref().map(|_| chain.safe),
            finalized: chain.path.as_ref().map(|p| show(&p.finalized())),
            reorgs: chain.reorgs,
            watched: chain.tracking.as_ref().map_or(0, |tracking| tracking.watched.load(Ordering::Relaxed)),
            providers: chain.source.as_ref().map(|source| source.providers()).unwrap_or_default(),
        }
    }

    fn consumer(&self, chain_name: &str, consumer: &Consumer, full: Option<&str>, now: u64) -> ConsumerStatus {
        let chain = self.chains.get(chain_name);
        let path = chain.and_then(|c| c.path.as_ref());
        let doing = path.filter(|_| consumer.begun).map(|p| next(&consumer.place, p, chain.map_or(0, |c| c.safe)));
        let (state, why) = match (&consumer.stuck, &self.full) {
            (Some(why), _) => ("faulted", Some(why.clone())),
            _ if consumer.faulted => ("faulted", consumer.why.clone()),
            (_, Some((_, why))) => ("paused", Some(why.clone())),
            _ => match (full, &doing) {
                (Some(why), Some(Next::Live(_) | Next::Range { .. })) => ("paused", Some(why.to_owned())),
                _ if consumer.failures > 0 => ("waiting", consumer.why.clone()),
                (_, None) => ("starting", None),
                (_, Some(Next::Range { .. } | Next::Verify)) => ("catching-up", None),
                _ => ("live", None),
            },
        };
        let tip = path.map(|p| p.tip());
        let lag = tip.and_then(|tip| Some(tip.number.saturating_sub(consumer.place.cursor?.number)));
        ConsumerStatus {
            chain: chain.and_then(|c| c.id).map(|id| id.to_string()).unwrap_or_default(),
            state: state.into(),
            why,
            retry_at: consumer
                .retry_at
                .and_then(|at| at.checked_duration_since(Instant::now()))
                .map(|in_| now + in_.as_secs()),
            cursor: consumer.place.cursor.as_ref().map(show),
            lag_blocks: lag,
            catching_up: match doing {
                Some(Next::Range { to, .. }) => consumer.pace.toward(to, Instant::now()),
                _ => None,
            },
            events: consumer.events,
            emissions: consumer.emissions,
            faults: consumer.faults,
        }
    }
}
