//! Steps a plugin: the events of one or more blocks in, emissions and state changes out, all or nothing. Cuts
//! the events into batches, reads the verdicts, and when a batch breaks the plugin finds the event to blame.
//! Does not know what is canonical, and stores nothing: what it returns is committed, or forgotten, by others.
//!
//! ```text
//!            ok                      ok: keep its effects, go on with what follows
//!   batch ---------> next batch     /
//!     | trap, loop, nonsense, reject
//!     v                            /  one event: poison -> wait (Fault) or skip (Poison), by policy
//!   roll its state back, halve ---
//!                                  \  several: halve again, first half first
//! ```
//!
//! Halves run in order and each on the state that the one before left, so the effects equal those of
//! processing one event after the other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::abi_v1::{CallError, Instance, Maker};
use super::capabilities::{Grants, one_line};
use super::engine::{Compiled, LoadError};
use super::overlay::Overlay;
use super::{BlockEvents, Digest, Limits, OnPoison, Poison, RawEmission, StateRead, StepError, StepOutput};
use crate::model::batch::{BatchBuilder, Verdict, read_verdicts};
use crate::model::{BlockRef, ChainId, ContentType, EventPosition, PluginName};

/// Deadline overruns in one step, beyond which looking for the one event ends: at 500 ms, 6 s of a core. Halving 4,096
/// events costs 12 in the worst case.
const MAX_OVERRUNS: u32 = 12;
/// Skipped events of one step. A plugin that can do nothing at all is stopped, not walked through a chain.
const MAX_POISON: usize = 1024;
const MIB: usize = 1 << 20;
/// In a batch record: kind, then flags, of which bit 0 says that the plugin asked for this event.
const FLAGS_AT: usize = 5;
const SUBSCRIBED: u8 = 1;

/// Everything about one plugin on one chain that does not change from step to step.
#[derive(Clone, Debug)]
pub struct Setup {
    pub plugin: PluginName,
    pub chain: ChainId,
    /// Number of streams in the manifest.
    pub streams: u16,
    pub limits: Limits,
    pub on_poison: OnPoison,
    /// A JSON object; `{}` where nothing is configured.
    pub config: Arc<str>,
    pub grants: Grants,
}

/// One plugin on one chain, with its live instance. Its calls block: give it a blocking thread.
pub struct Worker {
    maker: Maker,
    setup: Setup,
    live: Option<Instance>,
    batch: BatchBuilder,
    scratch: Vec<u8>,
    /// After a search that ran out of time: batches of at most so many events, until a step succeeds.
    narrow: Option<usize>,
}

impl Worker {
    /// Links the plugin to what it is granted. No instance is made before the first step.
    pub fn new(compiled: &Compiled, setup: Setup) -> Result<Self, LoadError> {
        let who = format!("{} on {}", setup.plugin, setup.chain);
        let maker = Maker::new(compiled, who, &setup.limits, setup.config.clone(), &setup.grants)?;
        Ok(Self { maker, setup, live: None, batch: BatchBuilder::default(), scratch: Vec::new(), narrow: None })
    }

    pub fn digest(&self) -> Digest {
        self.maker.digest()
    }

    /// Linear memory of the live instance; 0 where there is none.
    pub fn memory_bytes(&self) -> usize {
        self.live.as_ref().map_or(0, Instance::memory_bytes)
    }

    /// Blocks are given in chain order. Nothing of it is kept on an error.
    pub fn step(
        &mut self,
        chain: ChainId,
        blocks: &[BlockEvents<'_>],
        state: Box<dyn StateRead>,
    ) -> Result<StepOutput, StepError> {
        let items = items(blocks);
        if items.is_empty() {
            return Ok(StepOutput::default());
        }
        let limits = &self.setup.limits;
        let overlay = Overlay::new(state, limits.state_write_bytes, limits.state_value_bytes, limits.answer_bytes);
        let mut step = Step {
            worker: self,
            chain,
            blocks,
            items,
            overlay: Some(overlay),
            names: Vec::new(),
            ordinals: HashMap::default(),
            out: StepOutput::default(),
            overruns: 0,
        };
        let done = step.run();
        let Step { mut out, overlay, .. } = step;
        let recycle = self.setup.limits.recycle_memory_mib as usize * MIB;
        if self.memory_bytes() > recycle {
            self.live = None;
        }
        done?;
        self.narrow = None;
        out.state = overlay.expect("a step that succeeded holds its state").into_written();
        Ok(out)
    }
}

/// An event of the step: the block itself where it was asked for, or one of its transactions or logs.
#[derive(Clone, Copy)]
struct Item<'a> {
    block: usize,
    position: EventPosition,
    /// `None`: the block record.
    record: Option<&'a [u8]>,
}

fn items<'a>(blocks: &[BlockEvents<'a>]) -> Vec<Item<'a>> {
    let mut items = Vec::with_capacity(blocks.iter().map(|b| b.events.len() + 1).sum());
    for (block, events) in blocks.iter().enumerate() {
        if events.block_subscribed {
            items.push(Item { block, position: EventPosition::Block, record: None });
        }
        items.extend(events.events.iter().map(|&(position, record)| Item { block, position, record: Some(record) }));
    }
    items
}

struct Step<'w, 'b> {
    worker: &'w mut Worker,
    chain: ChainId,
    blocks: &'b [BlockEvents<'b>],
    items: Vec<Item<'b>>,
    /// Absent only within a call.
    overlay: Option<Overlay>,
    /// What each record of the batch is, by its index.
    names: Vec<(usize, EventPosition)>,
    ordinals: HashMap<(usize, EventPosition, u16), u32, foldhash::fast::FixedState>,
    out: StepOutput,
    overruns: u32,
}

/// Whether a range of events went through without a fault.
#[derive(Clone, Copy, PartialEq)]
enum Went {
    Clean,
    WithPoison,
}

impl Step<'_, '_> {
    fn run(&mut self) -> Result<(), StepError> {
        let mut from = 0;
        while from < self.items.len() {
            let to = self.fill(from);
            self.cover(from, to, None, true)?;
            from = to;
        }
        Ok(())
    }

    /// Where a batch that begins at `from` ends: as many events as `batch_bytes` holds, at least one.
    fn fill(&self, from: usize) -> usize {
        let max_bytes = self.worker.setup.limits.batch_bytes;
        let max_items = self.worker.narrow.unwrap_or(usize::MAX);
        let (mut bytes, mut block) = (0, None);
        let mut to = from;
        while to < self.items.len() && to - from < max_items {
            let item = &self.items[to];
            if block != Some(item.block) {
                bytes += self.blocks[item.block].block_record.len();
            }
            block = Some(item.block);
            bytes += item.record.map_or(0, <[u8]>::len);
            if bytes > max_bytes && to > from {
                break;
            }
            to += 1;
        }
        to
    }

    /// Processes the events of `from..to`. `known_bad`: they hold an event that breaks the plugin, for this reason.
    fn cover(&mut self, from: usize, to: usize, known_bad: Option<String>, whole: bool) -> Result<Went, StepError> {
        let why = match known_bad {
            Some(why) if to - from > 1 => why,
            _ => match self.attempt(from, to, whole || to - from == 1)? {
                Ok(went) => return Ok(went),
                Err(why) => why,
            },
        };
        if to - from == 1 {
            return self.poison(self.items[from].block, self.items[from].position, why).map(|()| Went::WithPoison);
        }
        let middle = from + (to - from) / 2;
        let first = self.cover(from, middle, None, false)?;
        // The first half is innocent, so the second is not: it is halved without being tried.
        let second = self.cover(middle, to, (first == Went::Clean).then_some(why), false)?;
        Ok(if (first, second) == (Went::Clean, Went::Clean) { Went::Clean } else { Went::WithPoison })
    }

    /// The inner error is one that halving can find the cause of.
    fn attempt(&mut self, from: usize, to: usize, twice: bool) -> Result<Result<Went, String>, StepError> {
        let mut failed = self.call(from, to);
        // A busy machine is not a deterministic error.
        if matches!(failed, Err(CallError::Overrun(_))) && twice && self.overruns < MAX_OVERRUNS {
            self.overruns += 1;
            failed = self.call(from, to);
        }
        let fault = |why: String| StepError::Fault { why, event: None };
        match failed {
            Ok(rejected) => {
                let went = if rejected.is_empty() { Went::Clean } else { Went::WithPoison };
                for Rejected { block, position, why } in rejected {
                    self.poison(block, position, why)?;
                }
                Ok(Ok(went))
            }
            Err(CallError::Again(why)) => Err(StepError::Again { why }),
            Err(CallError::Unblamable(why)) => Err(fault(why)),
            Err(CallError::Rejected(why) | CallError::Broken(why)) => Ok(Err(why)),
            Err(CallError::Overrun(why)) => {
                self.overruns += 1;
                if self.overruns >= MAX_OVERRUNS && to - from > 1 {
                    // The next try of this step begins with batches of this size, and so ends nearer to the event.
                    self.worker.narrow = Some((to - from).div_ceil(2));
                    let (first, last) = (self.items[from], self.items[to - 1]);
                    return Err(fault(format!(
                        "{why}; {} overruns in this step; it is one of {} events from {} of {} to {} of {}",
                        self.overruns,
                        to - from,
                        shown(first.position),
                        self.blocks[first.block].at,
                        shown(last.position),
                        self.blocks[last.block].at
                    )));
                }
                Ok(Err(why))
            }
        }
    }

    /// One event cannot be processed: to be waited at, or to be passed by.
    fn poison(&mut self, block: usize, position: EventPosition, why: String) -> Result<(), StepError> {
        let at: BlockRef = self.blocks[block].at;
        if self.worker.setup.on_poison == OnPoison::Wait {
            let why = format!("{why}; at {} of {at}", shown(position));
            return Err(StepError::Fault { why, event: Some((at, position)) });
        }
        if self.out.poison.len() >= MAX_POISON {
            let why = format!("more than {MAX_POISON} events of one step cannot be processed; the last: {why}");
            return Err(StepError::Fault { why, event: Some((at, position)) });
        }
        self.out.poison.push(Poison { block, position, why });
        Ok(())
    }

    /// One call of `process` for the events of `from..to`. On an error nothing of it is kept.
    fn call(&mut self, from: usize, to: usize) -> Result<Vec<Rejected>, CallError> {
        self.build(from, to);
        let last = self.blocks[self.items[to - 1].block].at;
        let mut live = match self.worker.live.take() {
            Some(live) => live,
            None => self.worker.maker.make().map_err(|e| match e {
                // Before any event was seen none can be to blame.
                CallError::Broken(why) | CallError::Rejected(why) | CallError::Overrun(why) => {
                    CallError::Unblamable(why)
                }
                other => other,
            })?,
        };
        let overlay = self.overlay.take().expect("put back after each call");
        let began = Instant::now();
        let (answer, overlay) = live.process(self.worker.batch.finish(), last.time, last.hash.0, overlay);
        self.out.call_time += began.elapsed();
        self.out.calls += 1;
        self.overlay = Some(overlay);
        let read = match answer {
            Ok(answer) => self.read(&answer),
            Err(why) => Err(why),
        };
        // A trap kills the instance; after an answer that is nonsense there is no trusting its memory either.
        if matches!(read, Ok(_) | Err(CallError::Rejected(_) | CallError::Again(_))) {
            self.worker.live = Some(live);
        }
        let overlay = self.overlay.as_mut().expect("put back above");
        match &read {
            Ok(_) => overlay.keep(),
            Err(_) => overlay.roll_back(),
        }
        read
    }

    fn build(&mut self, from: usize, to: usize) {
        let Worker { batch, scratch, .. } = &mut *self.worker;
        batch.begin(self.chain);
        self.names.clear();
        let mut block = None;
        for item in &self.items[from..to] {
            if block != Some(item.block) {
                block = Some(item.block);
                // The record is shared by all plugins, and introduces each part of a block that is cut: it is an event
                // only for who asked, and only once.
                scratch.clear();
                scratch.extend_from_slice(self.blocks[item.block].block_record);
                if let Some(flags) = scratch.get_mut(FLAGS_AT) {
                    *flags = *flags & !SUBSCRIBED | u8::from(item.record.is_none());
                }
                batch.push(scratch, 1);
                self.names.push((item.block, EventPosition::Block));
            }
            if let Some(record) = item.record {
                batch.push(record, 1);
                self.names.push((item.block, item.position));
            }
        }
    }

    /// Reads an answer to the batch just built. On an error nothing of it was taken.
    fn read(&mut self, answer: &[u8]) -> Result<Vec<Rejected>, CallError> {
        let setup = &self.worker.setup;
        let limits = &setup.limits;
        let broken = |why: String| CallError::Broken(why);
        if answer.len() > limits.answer_bytes {
            return Err(broken(format!(
                "an answer of {} bytes, more than answer_bytes = {}",
                answer.len(),
                limits.answer_bytes
            )));
        }
        let verdicts = read_verdicts(answer, self.names.len() as u32, setup.streams)
            .map_err(|e| broken(format!("its answer is malformed: {e}")))?;
        let mut rejected: Vec<Rejected> = Vec::new();
        let mut count = 0;
        for verdict in &verdicts {
            match *verdict {
                Verdict::Retry { event, message } => {
                    let position = shown(self.names[event as usize].1);
                    return Err(CallError::Again(format!(
                        "the plugin asked to wait at {position}: {}",
                        one_line(message, 1024)
                    )));
                }
                Verdict::Reject { event, message } => {
                    let (block, position) = self.names[event as usize];
                    if !rejected.iter().any(|r| (r.block, r.position) == (block, position)) {
                        let why = format!("the plugin rejected it: {}", one_line(message, 1024));
                        rejected.push(Rejected { block, position, why });
                        if rejected.len() > MAX_POISON {
                            return Err(broken(format!("it rejected more than {MAX_POISON} events at once")));
                        }
                    }
                }
                Verdict::Pass { .. } | Verdict::Emit { .. } => count += 1,
            }
        }
        if count > limits.emissions {
            return Err(broken(format!("{count} emissions for one batch, more than emissions = {}", limits.emissions)));
        }
        if self.out.emissions.len() + count > limits.emissions {
            return Err(CallError::Unblamable(format!(
                "the step has more than emissions = {}; no event alone is to blame: raise the limit, or emit less",
                limits.emissions
            )));
        }
        let first = self.out.emissions.len();
        for verdict in verdicts {
            let (event, stream, content_type, lane_key, payload) = match verdict {
                Verdict::Pass { event, stream } => (event, stream, ContentType::Json, None, None),
                Verdict::Emit { event, stream, content_type, lane_key, payload } => {
                    let lane_key = (!lane_key.is_empty()).then(|| lane_key.to_string());
                    (event, stream, content_type, lane_key, Some(payload.to_vec()))
                }
                Verdict::Retry { .. } | Verdict::Reject { .. } => continue,
            };
            let (block, position) = self.names[event as usize];
            // What it said of an event that it rejected goes with the event.
            if rejected.iter().any(|r| (r.block, r.position) == (block, position)) {
                continue;
            }
            let counter = self.ordinals.entry((block, position, stream)).or_insert(0);
            let ordinal = *counter;
            *counter += 1;
            self.out.emissions.push(RawEmission { block, position, stream, ordinal, lane_key, content_type, payload });
        }
        // Blocks are steps of their own when live: their emissions never mix. Within a block the answer's order holds.
        self.out.emissions[first..].sort_by_key(|e| e.block);
        Ok(rejected)
    }
}

/// An event that the answer itself rejects, while the rest of the answer stands.
struct Rejected {
    block: usize,
    position: EventPosition,
    why: String,
}

fn shown(position: EventPosition) -> String {
    match position {
        EventPosition::Block => "the block itself".into(),
        EventPosition::Transaction(index) => format!("transaction {index}"),
        EventPosition::Log(index) => format!("log {index}"),
    }
}
