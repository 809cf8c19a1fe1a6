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
/// A live block's batch finds its room made; a plugin at rest does not hold the megabyte that catching up took.
const KEPT_BATCH_BYTES: usize = 128 << 10;
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

    /// Blocks are given in chain order. Nothing of it is kept on an error. A plugin that loops takes its time: up to
    /// [`MAX_OVERRUNS`] deadlines.
    pub fn step(
        &mut self,
        chain: ChainId,
        blocks: &[BlockEvents<'_>],
        state: Box<dyn StateRead>,
    ) -> Result<StepOutput, StepError> {
        self.run(chain, blocks, state, false)
    }

    /// The same, but it ends with [`StepError::Overrun`] at the first call that takes longer than its deadline.
    pub fn quick_step(
        &mut self,
        chain: ChainId,
        blocks: &[BlockEvents<'_>],
        state: Box<dyn StateRead>,
    ) -> Result<StepOutput, StepError> {
        self.run(chain, blocks, state, true)
    }

    fn run(
        &mut self,
        chain: ChainId,
        blocks: &[BlockEvents<'_>],
        state: Box<dyn StateRead>,
        quick: bool,
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
            quick,
        };
        let done = step.run();
        let Step { mut out, overlay, .. } = step;
        self.batch.trim(KEPT_BATCH_BYTES);
        let recycle = self.setup.limits.recycle_memory_mib as usize * MIB;
        if self.memory_bytes() > recycle {
            self.live = None;
        }
        done?;
        self.narrow = None;
        (out.state, out.watches) = overlay.expect("a step that succeeded holds its state").into_written();
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
    /// The first overrun ends the step.
    quick: bool,
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
        if self.quick
            && let Err(CallError::Overrun(why)) = failed
        {
            return Err(StepError::Overrun { why });
        }
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
            let last = format!("{why}; at {} of {at}", shown(position));
            let why = format!("more than {MAX_POISON} events of one step cannot be processed; the last: {last}");
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
                    let (block, position) = self.names[event as usize];
                    let (position, at) = (shown(position), self.blocks[block].at);
                    let why = one_line(message, 1024);
                    return Err(CallError::Again(format!("the plugin asked to wait at {position} of {at}: {why}")));
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
        EventPosition::Transfer(index) => format!("transfer {index}"),
        EventPosition::Pending(index) => format!("pending transaction {index}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::capabilities::Capability;
    use super::super::testing::{Blocks, CHAIN, MapState, hostile, patient, setup, worker};
    use super::*;

    fn step(worker: &mut Worker, blocks: &Blocks) -> Result<StepOutput, StepError> {
        worker.step(CHAIN, &blocks.events(), Box::new(MapState::default()))
    }

    /// What a step did, without the figures that differ from run to run.
    fn effects(out: StepOutput) -> StepOutput {
        StepOutput { calls: 0, call_time: Duration::ZERO, ..out }
    }

    fn fault(config: &str, limits: Limits, blocks: &Blocks) -> (String, Option<EventPosition>) {
        match step(&mut worker(config, limits, OnPoison::Wait), blocks) {
            Err(StepError::Fault { why, event }) => (why, event.map(|(_, position)| position)),
            other => panic!("{config}: expected a fault, got {other:?}"),
        }
    }

    #[test]
    fn a_filter_passes_what_it_should() {
        let blocks = Blocks::new(&[25, 0, 10], &[]);
        let out = step(&mut worker(r#"{"mode":"filter"}"#, patient(), OnPoison::Wait), &blocks).unwrap();
        let passed: Vec<_> = out.emissions.iter().map(|e| (e.block, e.position, e.payload.clone())).collect();
        let log = EventPosition::Log;
        assert_eq!(passed, [(0, log(0), None), (0, log(10), None), (0, log(20), None), (2, log(30), None)]);
        assert_eq!((out.calls, out.poison.len(), out.state.len()), (1, 0, 0));
    }

    #[test]
    fn nothing_to_say_makes_no_call() {
        let out = step(&mut worker("{}", patient(), OnPoison::Wait), &Blocks::new(&[0, 0], &[])).unwrap();
        assert_eq!(out, StepOutput::default());
    }

    #[test]
    fn a_block_is_an_event_once_and_only_for_who_asked() {
        let limits = Limits { batch_bytes: 1, ..patient() };
        let out =
            step(&mut worker(r#"{"mode":"echo"}"#, limits, OnPoison::Wait), &Blocks::new(&[2, 2], &[false, true]))
                .unwrap();
        let blocks: Vec<_> = out.emissions.iter().filter(|e| e.position == EventPosition::Block).collect();
        assert!(blocks.iter().all(|e| e.block == 1));
        assert_eq!(blocks.len(), 1, "{blocks:?}");
        assert_eq!(out.calls, 5);
    }

    /// Every evil that one event does is found, named, and waited at.
    #[test]
    fn the_event_to_blame_is_found_and_named() {
        let blocks = Blocks::new(&[40, 60], &[]);
        let small = Limits { memory_mib: 8, ..patient() };
        for (evil, word) in [
            ("trap", "unreachable"),
            ("panic", "cannot stand event 71"),
            ("recurse", "hostile::recurse (calling itself, deep)"),
            ("bomb", "more than memory_mib = 8"),
            ("reject", "do not like it"),
            ("reject-batch", "saw 71"),
            ("flood", "more than emissions = 100000"),
            ("garbage", "malformed"),
            ("bad-json", "not JSON"),
            ("bad-event", "names event"),
            ("bad-stream", "names stream 77"),
            ("state-bomb", "more state than state_write_bytes"),
            ("state-value", "state_value_bytes"),
        ] {
            let config = format!(r#"{{"mode":"count","evil":"{evil}","at":[71]}}"#);
            // A flood is to reach its own ceiling before that of memory.
            let limits = if evil == "flood" { patient() } else { small.clone() };
            let (why, event) = fault(&config, limits, &blocks);
            assert_eq!(event, Some(EventPosition::Log(71)), "{evil}: {why}");
            assert!(why.contains(word), "{evil}: {why}");
            assert!(why.contains("block 1001"), "{evil}: {why}");
        }
        let big = Limits { answer_bytes: 4 << 20, ..patient() };
        let (why, event) = fault(r#"{"mode":"count","evil":"huge","at":[71]}"#, big.clone(), &blocks);
        assert!(event == Some(EventPosition::Log(71)) && why.contains("answer_bytes"), "{why}");
        let (why, event) = fault(r#"{"mode":"count","evil":"get-bomb","at":[71]}"#, big, &blocks);
        assert!(event == Some(EventPosition::Log(71)) && why.contains("get-many"), "{why}");
    }

    #[test]
    fn a_message_says_where_it_happened() {
        let (why, _) = fault(r#"{"mode":"x","evil":"recurse","at":[1]}"#, patient(), &Blocks::new(&[3], &[]));
        assert!(why.contains("; in hostile::recurse"), "{why}");
    }

    #[test]
    fn an_endless_loop_is_cut_and_its_event_found_in_bounded_time() {
        let limits = Limits { deadline_ms: 40, ..Limits::default() };
        let mut quick = worker(r#"{"mode":"x","evil":"loop","at":[71]}"#, limits.clone(), OnPoison::Skip);
        let blocks = Blocks::new(&[100], &[]);
        match quick.quick_step(CHAIN, &blocks.events(), Box::new(MapState::default())) {
            Err(StepError::Overrun { why }) => assert!(why.contains("deadline_ms = 40"), "{why}"),
            other => panic!("a quick step looks for nobody: {other:?}"),
        }
        let began = Instant::now();
        let (why, event) = fault(r#"{"mode":"x","evil":"loop","at":[71]}"#, limits.clone(), &blocks);
        assert_eq!(event, Some(EventPosition::Log(71)), "{why}");
        assert!(why.contains("deadline_ms = 40"), "{why}");
        // 13 overruns of 40 ms at the most; the rest is for a busy machine.
        assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
        // Where every event loops, the first is blamed.
        let (_, event) = fault(r#"{"mode":"x","evil":"loop"}"#, limits, &Blocks::new(&[100], &[]));
        assert_eq!(event, Some(EventPosition::Log(0)));
    }

    #[test]
    fn skipped_events_leave_no_trace_but_their_poison() {
        let blocks = Blocks::new(&[30, 30], &[true, false]);
        for evil in ["trap", "reject-batch", "garbage", "reject"] {
            let config = format!(r#"{{"mode":"echo","evil":"{evil}","at":[7,8,41]}}"#);
            let out = step(&mut worker(&config, patient(), OnPoison::Skip), &blocks).unwrap();
            let poison: Vec<_> = out.poison.iter().map(|p| (p.block, p.position)).collect();
            let log = EventPosition::Log;
            assert_eq!(poison, [(0, log(7)), (0, log(8)), (1, log(41))], "{evil}");
            let clean = step(&mut worker(r#"{"mode":"echo"}"#, patient(), OnPoison::Skip), &blocks).unwrap();
            let without: Vec<_> =
                clean.emissions.into_iter().filter(|e| ![log(7), log(8), log(41)].contains(&e.position)).collect();
            assert_eq!(out.emissions, without, "{evil}");
        }
    }

    #[test]
    fn a_plugin_that_asks_to_wait_is_asked_again() {
        for evil in ["retry", "retry-batch"] {
            let config = format!(r#"{{"mode":"count","evil":"{evil}","at":[3]}}"#);
            let mut worker = worker(&config, patient(), OnPoison::Skip);
            for _ in 0..2 {
                let again = step(&mut worker, &Blocks::new(&[10], &[]));
                assert!(matches!(&again, Err(StepError::Again { why }) if why.contains("not yet")), "{again:?}");
            }
        }
    }

    #[test]
    fn a_journal_that_cannot_be_read_is_nobodys_poison() {
        struct Broken;
        impl StateRead for Broken {
            fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, String> {
                Err("disk on fire".into())
            }
            fn scan(&self, _: &[u8], _: Option<&[u8]>, _: u32) -> Result<Vec<(Vec<u8>, Vec<u8>)>, String> {
                Err("disk on fire".into())
            }
        }
        let blocks = Blocks::new(&[4], &[]);
        let mut worker = worker(r#"{"mode":"count"}"#, patient(), OnPoison::Skip);
        let again = worker.step(CHAIN, &blocks.events(), Box::new(Broken));
        assert!(matches!(&again, Err(StepError::Again { why }) if why.contains("disk on fire")), "{again:?}");
        assert!(step(&mut worker, &blocks).is_ok());
    }

    #[test]
    fn a_capability_that_was_not_granted_is_named() {
        let mut setup = setup(r#"{"mode":"count"}"#, patient(), OnPoison::Wait);
        setup.grants.0.remove(&Capability::State);
        let mut worker = Worker::new(hostile(), setup).unwrap();
        match step(&mut worker, &Blocks::new(&[1], &[])) {
            Err(StepError::Fault { why, .. }) => {
                assert!(why.contains("chainweir:plugin/state@0.1.0") && why.contains("granted: config, log"), "{why}")
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn state_is_read_from_before_and_after() {
        let blocks = Blocks::new(&[3], &[]);
        let before = BTreeMap::from([(b"seen".to_vec(), 40u64.to_le_bytes().to_vec())]);
        let mut worker = worker(r#"{"mode":"count"}"#, patient(), OnPoison::Wait);
        let out = worker.step(CHAIN, &blocks.events(), Box::new(MapState(before.into()))).unwrap();
        assert!(out.state.contains(&(b"seen".to_vec(), Some(43u64.to_le_bytes().to_vec()))), "{:?}", out.state);
        assert_eq!(out.emissions[2].payload.as_deref(), Some(br#"{"seen":43,"known":3}"#.as_slice()));
    }

    #[test]
    fn a_leaking_instance_is_replaced_between_steps() {
        let limits = Limits { recycle_memory_mib: 4, memory_mib: 16, ..patient() };
        let mut worker = worker(r#"{"mode":"x","evil":"leak"}"#, limits, OnPoison::Wait);
        for _ in 0..50 {
            step(&mut worker, &Blocks::new(&[2], &[])).unwrap();
            assert!(worker.memory_bytes() <= 4 * MIB);
        }
    }

    #[test]
    fn a_log_flood_is_only_cut() {
        let out = step(
            &mut worker(r#"{"mode":"echo","evil":"log-flood","at":[1]}"#, patient(), OnPoison::Wait),
            &Blocks::new(&[3], &[]),
        );
        assert_eq!(out.unwrap().poison, []);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

        #[test]
        fn the_size_of_batches_changes_nothing(
            logs in prop::collection::vec(0usize..30, 1..5),
            subscribed in prop::collection::vec(any::<bool>(), 5),
            batch_bytes in 1usize..6000,
            mode in prop::sample::select(vec!["echo", "count", "filter"]),
        ) {
            let blocks = Blocks::new(&logs, &subscribed);
            let config = format!(r#"{{"mode":"{mode}"}}"#);
            let whole = step(&mut worker(&config, patient(), OnPoison::Wait), &blocks).unwrap();
            let limits = Limits { batch_bytes, ..patient() };
            let cut = step(&mut worker(&config, limits, OnPoison::Wait), &blocks).unwrap();
            prop_assert_eq!(effects(whole), effects(cut));
        }

        #[test]
        fn halving_equals_going_one_by_one(
            logs in prop::collection::vec(0usize..40, 1..4),
            at in prop::collection::btree_set(0u32..80, 0..6),
            evil in prop::sample::select(vec!["trap", "reject-batch", "garbage", "reject"]),
        ) {
            let blocks = Blocks::new(&logs, &[false, true, false]);
            let at: Vec<String> = at.iter().map(u32::to_string).collect();
            // A rejected event's state stands where the answer says so, in both ways alike.
            let config = format!(r#"{{"mode":"count","evil":"{evil}","at":[{}]}}"#, at.join(","));
            let halved = step(&mut worker(&config, patient(), OnPoison::Skip), &blocks).unwrap();
            let limits = Limits { batch_bytes: 1, ..patient() };
            let singly = step(&mut worker(&config, limits, OnPoison::Skip), &blocks).unwrap();
            let (mut halved, mut singly) = (effects(halved), effects(singly));
            // What an answer was cut at differs with the batch; who is to blame does not.
            for out in [&mut halved, &mut singly] {
                out.poison.iter_mut().for_each(|p| p.why.clear());
            }
            prop_assert_eq!(halved, singly);
        }
    }
}
