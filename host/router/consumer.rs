//! A consumer's turn: which job it gets next, and what its end means.
//!
//! ```text
//! Idle -> job (find start, verify, undo, range, live, mark) -> Idle
//!   job failed: Again -> waits a little    Fault -> waits longer and longer    Stuck -> waits for a person
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::catch_up;
use super::next::{Next, Place, next};
use super::pace::Pace;
use super::pending::Told;
use super::work::{self, Desk, Done, Failed, Kit};
use super::{Router, Worked};
use crate::chain::Follower;
use crate::config::JournalConfig;
use crate::index::SubscriberId;
use crate::journal::{ConsumerId, TrackId};
use crate::lane::Backlog;
use crate::model::{Factory, PluginName, SetName, StreamId};
use crate::telemetry;

/// After a fault: 1 s, then longer, then each minute.
const FAULT_RETRY_S: [u64; 6] = [1, 2, 5, 10, 30, 60];
/// After a read that failed.
const AGAIN_RETRY_MS: [u64; 5] = [50, 200, 1_000, 2_000, 5_000];
/// While the disk is full. It counts as full until something was written.
pub const FULL_RETRY: Duration = Duration::from_secs(2);

pub struct Consumer {
    pub id: ConsumerId,
    pub subscriber: SubscriberId,
    pub place: Place,
    /// Whether `place.begin` is known: it is once there is a cursor.
    pub begun: bool,
    /// In the order of the manifest's streams.
    pub tracks: Arc<Vec<(TrackId, StreamId)>>,
    pub kit: Kit,
    /// Transactions that are in no block yet, to be shown.
    pub told: Told,
    pub factories: Arc<Vec<Factory>>,
    pub sets: Arc<Vec<SetName>>,
    pub pace: Pace,
    pub busy: bool,
    pub failures: u32,
    pub retry_at: Option<Instant>,
    pub faulted: bool,
    pub stuck: Option<String>,
    pub why: Option<String>,
    pub events: u64,
    pub emissions: u64,
    pub faults: u64,
}

/// The share of a limit at which a warning is said.
const NEAR: f64 = 0.8;

/// The limit that an output's backlog is nearest to. Asked for at every step: it becomes words only where it is said.
struct Fullness {
    key: &'static str,
    value: u64,
    most: u64,
}

impl Fullness {
    fn of(limits: &JournalConfig, waiting: &Backlog) -> Self {
        let limit = |key, value, most| Self { key, value, most };
        let bytes = limit("backlog_bytes", waiting.bytes, limits.backlog_bytes);
        let age = limits.backlog_age.map(|most| limit("backlog_age", waiting.age.as_secs(), most));
        let entries = limit("backlog_limit", waiting.entries, limits.backlog_limit);
        [Some(bytes), age]
            .into_iter()
            .flatten()
            .fold(entries, |most, one| if one.share() > most.share() { one } else { most })
    }

    fn share(&self) -> f64 {
        self.value as f64 / self.most as f64
    }
}

impl std::fmt::Display for Fullness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key, value, most } = self;
        match *key {
            "backlog_age" => write!(f, "has had one waiting for {value} s")?,
            "backlog_bytes" => write!(f, "has {value} bytes waiting")?,
            _ => write!(f, "has {value} deliveries waiting")?,
        }
        write!(f, " ([journal] {key} = {most})")
    }
}

impl Router {
    /// Gives the idle consumers of some chains their next job.
    pub(super) fn dispatch_where(&mut self, chain: impl Fn(&str) -> bool) {
        let consumers = self.plugins.iter().flat_map(|(name, plugin)| {
            let on = plugin.consumers.iter().filter(|(on, c)| !c.busy && chain(on));
            on.map(|(on, _)| (name.clone(), on.clone()))
        });
        for (plugin, chain) in consumers.collect::<Vec<_>>() {
            self.dispatch_if_free(&plugin, &chain);
        }
    }

    pub(super) fn dispatch_if_free(&mut self, plugin: &PluginName, chain: &str) {
        // An edit of a watch set that reaches back is done between steps.
        if self.stopping || self.fatal.is_some() || self.edits.hold() {
            return;
        }
        if self.full.as_ref().is_some_and(|(since, _)| since.elapsed() < FULL_RETRY) {
            return;
        }
        if self.plugins.get(plugin).is_some_and(|p| p.pending.is_none() && !p.leaving) {
            self.dispatch(plugin, chain);
        }
    }

    /// Whoever found the disk full is gone, and nobody else has something to write.
    pub(super) fn forget_full(&mut self) {
        let busy = || self.plugins.values().flat_map(|plugin| plugin.consumers.values()).any(|consumer| consumer.busy);
        if self.full.as_ref().is_some_and(|(since, _)| since.elapsed() > 2 * FULL_RETRY) && !busy() {
            self.full = None;
        }
    }

    /// An output that this plugin feeds and that has more waiting than it may.
    pub(super) fn full_output(&self, plugin: &PluginName) -> Option<String> {
        let feeds = |output| self.config.routes.iter().any(|r| r.to.contains(output) && r.from.plugin() == plugin);
        self.lanes.iter().filter(|(output, _)| feeds(output)).find_map(|(output, (lane, _))| {
            let full = Fullness::of(&self.config.journal, &lane.waiting());
            (full.share() >= 1.0).then(|| format!("output '{output}' {full}"))
        })
    }

    /// Says once of each output that it comes near to where its plugins pause.
    pub(super) fn warn_of_backlogs(&mut self) {
        for (output, (lane, _)) in &self.lanes {
            let full = Fullness::of(&self.config.journal, &lane.waiting());
            if full.share() < NEAR {
                self.near_full.remove(output);
            } else if self.near_full.insert(output.clone()) {
                tracing::warn!(%output, "it {full}: at that limit the plugins that feed it pause until it has caught up");
            }
        }
    }

    fn dispatch(&mut self, plugin_name: &PluginName, chain_name: &str) {
        let full_output = self.full_output(plugin_name);
        let Some(chain) = self.chains.get(chain_name) else { return };
        let (Some(path), Some(id), Some(source), Some(blocks), Some(ahead)) =
            (&chain.path, chain.id, &chain.source, &chain.blocks, &chain.ahead)
        else {
            return;
        };
        if chain.state == "halted" {
            return;
        }
        let Some(plugin) = self.plugins.get_mut(plugin_name) else { return };
        let Some(consumer) = plugin.consumers.get_mut(chain_name) else { return };
        if consumer.busy || consumer.stuck.is_some() {
            return;
        }
        let begun = consumer.begun;
        let next = if begun { Some(next(&consumer.place, path, chain.safe)) } else { None };
        // Taking back needs nothing of a plugin that faulted, and whoever heard of an orphaned block waits for it.
        let taking_back = consumer.faulted && next == Some(Next::Undo);
        if consumer.retry_at.is_some_and(|at| Instant::now() < at) && !taking_back {
            return;
        }
        let settled = next.as_ref().is_some_and(|next| !next.looks_back());
        let ready = consumer.kit.is_ready();
        let aside = settled && ready && full_output.is_none() && catches_up(consumer, &next, path);
        let prepare = settled && !ready;
        if matches!(next, Some(Next::Range { .. })) {
            // It is far behind: by then they will be old.
            consumer.told.take();
        }
        let at_tip = matches!(next, Some(Next::Wait | Next::Mark));
        let shows = at_tip && ready && full_output.is_none() && !consumer.faulted && !consumer.told.is_empty();
        let told = if shows { consumer.told.take() } else { vec![] };
        match next {
            Some(Next::Wait) if !aside && !prepare && !shows => return,
            Some(Next::Live(_) | Next::Range { .. }) if full_output.is_some() => {
                if let (Some(why), None) = (&full_output, &consumer.why) {
                    tracing::warn!(plugin = %plugin_name, chain = chain_name, why, "pauses until there is room");
                }
                consumer.why = full_output;
                return;
            }
            _ => {}
        }
        let start = plugin.candidate.settings.start.unwrap_or(chain.config.start);
        let desk = Desk {
            chain: id,
            source: source.clone(),
            blocks: blocks.clone(),
            ahead: ahead.clone(),
            plan: chain.plan.clone(),
            journal: self.journal.clone(),
            consumer: consumer.id,
            subscriber: consumer.subscriber,
            factories: consumer.factories.clone(),
            sets: consumer.sets.clone(),
            traced: plugin.candidate.manifest.subscriptions.iter().any(|s| s.on(id) && s.is_traced()),
            state_version: plugin.candidate.manifest.state_version,
            tracks: consumer.tracks.clone(),
            turns: self.turns.clone(),
            suspect: consumer.faulted,
            safe: chain.safe,
            finalized: path.finalized().number,
        };
        let mut kit = std::mem::take(&mut consumer.kit);
        if kit.worker.is_none() {
            match plugin.candidate.worker(id) {
                Ok(worker) => kit.worker = Some(worker),
                Err(error) => return consumer.stuck = Some(error.to_string()),
            }
        }
        let (cursor, begin, path) = (consumer.place.cursor, consumer.place.begin, path.clone());
        let (safe, finalized) = (desk.safe, desk.finalized);
        let (plugin, chain) = (plugin_name.clone(), chain_name.to_owned());
        match next {
            Some(Next::Range { from, .. }) => consumer.pace.begins(Instant::now(), from),
            Some(Next::Live(_) | Next::Undo) => consumer.pace.ends(),
            _ => {}
        }
        consumer.busy = true;
        consumer.retry_at = None;
        self.jobs.spawn(async move {
            let back = next.as_ref().is_some_and(Next::looks_back);
            let result = match (next, cursor) {
                _ if prepare => work::prepare(&desk, &mut kit, cursor, begin, &path).await,
                (_, Some(cursor)) if shows => work::pending(&desk, &mut kit, cursor, told).await,
                (_, Some(cursor)) if aside => catch_up::step(&desk, &mut kit, cursor).await,
                (None, _) => work::find_start(&desk, start, path.tip()).await,
                // A reorg may go below where it began: of the blocks before, it hears nothing.
                (Some(Next::Range { from, to }), _) if from < begin => {
                    work::pass(&desk, cursor, to.min(begin - 1)).await
                }
                (Some(Next::Live(at)), _) if at.number < begin => work::mark(&desk, cursor, at).await,
                (Some(Next::Range { from, to }), _) => work::range(&desk, &mut kit, cursor, from, to).await,
                (Some(Next::Live(at)), _) => work::live(&desk, &mut kit, cursor, at).await,
                (Some(Next::Verify), Some(cursor)) => work::verify(&desk, cursor).await,
                (Some(Next::Undo), Some(cursor)) => work::undo(&desk, cursor, Some(&path)).await,
                (Some(Next::Mark), Some(cursor)) => work::mark(&desk, Some(cursor), cursor).await,
                (Some(Next::Verify | Next::Undo | Next::Mark | Next::Wait), _) => Ok(Done::default()),
            };
            // A cursor that was confirmed is where it was.
            if back && !matches!(&result, Ok(done) if done.verified) {
                // Walked back, what the blocks above had made is not there any more.
                kit.forget();
            }
            Worked { plugin, chain, kit, result, safe, finalized }
        });
    }

    pub(super) fn worked(&mut self, worked: Worked) {
        let Worked { plugin: name, chain, kit, result, safe, finalized } = worked;
        let chain_id = self.chains.get(&chain).and_then(|c| c.id);
        let Some(plugin) = self.plugins.get_mut(&name) else { return };
        let Some(consumer) = plugin.consumers.get_mut(&chain) else { return };
        consumer.busy = false;
        consumer.kit = kit;
        let mut roll_back = None;
        match result {
            Ok(done) => {
                if let Some(begin) = done.begin {
                    consumer.place.begin = begin;
                    consumer.begun = true;
                }
                if let Some(cursor) = done.cursor {
                    if self.full.take().is_some() {
                        tracing::info!("there is room again: what waited is taken in");
                    }
                    if consumer.place.cursor.is_some_and(|before| cursor.number < before.number) {
                        // Walked back, and the journal's mark with it.
                        consumer.place.safe = consumer.place.safe.min(cursor.number);
                    } else {
                        consumer.place.safe = consumer.place.safe.max(safe);
                        consumer.place.finalized = consumer.place.finalized.max(finalized);
                    }
                    consumer.pace.stands(Instant::now(), cursor.number);
                    consumer.place.cursor = Some(cursor);
                    consumer.place.verified = done.verified;
                    consumer.begun = true;
                }
                if !done.only_prepared {
                    if consumer.faulted {
                        tracing::info!(plugin = %name, chain, "goes on");
                    }
                    (consumer.failures, consumer.faulted, consumer.why) = (0, false, None);
                }
                consumer.events += done.events;
                consumer.emissions += done.emissions;
                if done.events > 0 {
                    plugin.probation = plugin.probation.saturating_sub(1);
                    if let Some(id) = chain_id {
                        telemetry::events(&name, id).increment(done.events);
                    }
                    telemetry::plugin_calls(&name).increment(done.calls.into());
                    telemetry::plugin_call_seconds(&name).record(done.call_time / done.calls.max(1));
                }
                if done.emissions > 0 {
                    telemetry::emissions(&name).increment(done.emissions);
                }
                if done.retracted > 0 {
                    telemetry::retractions(&name).increment(done.retracted);
                }
                if done.poison > 0 {
                    telemetry::plugin_faults(&name).increment(done.poison);
                    tracing::warn!(plugin = %name, chain, events = done.poison, "skipped events that it could not process");
                }
            }
            Err(Failed::Again { why, after }) => {
                let gap = AGAIN_RETRY_MS[(consumer.failures as usize).min(AGAIN_RETRY_MS.len() - 1)];
                if consumer.failures == 2 {
                    tracing::warn!(plugin = %name, chain, why, "waits");
                }
                consumer.failures += 1;
                consumer.retry_at = Some(Instant::now() + Duration::from_millis(gap).max(after.unwrap_or_default()));
                consumer.why = Some(why);
            }
            Err(Failed::Fault { why }) => {
                let gap = FAULT_RETRY_S[(consumer.failures as usize).min(FAULT_RETRY_S.len() - 1)];
                if !consumer.faulted {
                    tracing::error!(plugin = %name, chain, why, "stopped at its cursor; it is tried again, and at once when its file changes");
                }
                consumer.failures += 1;
                consumer.faults += 1;
                consumer.faulted = true;
                consumer.retry_at = Some(Instant::now() + Duration::from_secs(gap));
                telemetry::plugin_faults(&name).increment(1);
                if plugin.probation > 0 {
                    roll_back = Some(format!("it faulted in its first blocks: {why}"));
                }
                consumer.why = Some(why);
            }
            Err(Failed::Full { why }) => {
                if self.full.is_none() {
                    tracing::error!(why, "nothing is taken in until there is room; deliveries go on");
                }
                self.full = Some((Instant::now(), why));
            }
            Err(Failed::Stuck { why }) => {
                tracing::error!(plugin = %name, chain, why, "cannot go on by itself; to try again: chainweir plugin retry {name}");
                consumer.stuck = Some(why);
            }
            Err(Failed::Halt { why }) => self.fatal = Some(why),
        }
        self.swap_if_idle(&name);
        self.edit_if_quiet();
        if let Some(why) = roll_back {
            self.roll_back(&name, &why, None);
        }
    }
}

/// Old blocks are shown while there is nothing else to do, and between many other steps.
fn catches_up(consumer: &Consumer, next: &Option<Next>, path: &Follower) -> bool {
    const STEPS_BETWEEN: u32 = 16;
    let first = consumer.kit.catch_ups.as_ref().and_then(|all| all.first());
    let can = first.is_some_and(|first| first.next <= path.finalized().number);
    can && !consumer.faulted && (matches!(next, Some(Next::Wait | Next::Mark)) || consumer.kit.steps >= STEPS_BETWEEN)
}
