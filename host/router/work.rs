//! The steps that a consumer takes, each an async job beside the router's loop: read, match, call, commit.
//! A job holds the consumer's worker while it runs and gives it back; what it did is durable when it ends.

use std::sync::Arc;
use std::time::Duration;

use super::ahead::Ahead;
use super::blocks::{Blocks, Plan};
use super::catch_up::{self, CatchUp};
use super::turns::{Class, Turns};
use super::{made, payload};
use crate::chain::Follower;
use crate::config::Start;
use crate::index::children::Children;
use crate::index::{Event, Matched, SubscriberId};
use crate::journal::{self, ConsumerId, Journal, JournalError, NewEntry, PoisonEvent, TrackId, Write};
use crate::model::{
    BlockRef, ChainId, ContentType, EditId, EmissionId, EventPosition, Factory, SetName, StreamId, batch,
};
use crate::plugin::step::Worker;
use crate::plugin::{BlockEvents, HOST_KEYS, StateRead, StepError, StepOutput};
use crate::source::{ReadError, Source};
use crate::telemetry;

/// What a job needs of the world.
#[derive(Clone)]
pub struct Desk {
    pub chain: ChainId,
    pub source: Arc<dyn Source>,
    pub blocks: Arc<Blocks>,
    pub ahead: Arc<Ahead>,
    pub plan: Arc<Plan>,
    pub journal: Arc<dyn Journal>,
    pub consumer: ConsumerId,
    pub subscriber: SubscriberId,
    /// Of its subscriptions on this chain.
    pub factories: Arc<Vec<Factory>>,
    pub sets: Arc<Vec<SetName>>,
    /// It asks for what the node's tracer alone can tell.
    pub traced: bool,
    pub state_version: u32,
    /// In the order of the manifest's streams.
    pub tracks: Arc<Vec<(TrackId, StreamId)>>,
    pub turns: Arc<Turns>,
    /// Its last step faulted.
    pub suspect: bool,
    /// As the path has them.
    pub safe: u64,
    pub finalized: u64,
}

/// What a job did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Where the consumer stands now.
    pub cursor: Option<BlockRef>,
    /// The cursor's block is final: read as such, or confirmed by the provider.
    pub verified: bool,
    pub events: u64,
    pub emissions: u64,
    pub retracted: u64,
    pub calls: u32,
    pub call_time: Duration,
    pub poison: u64,
    /// The consumer begins here, where it has no cursor.
    pub begin: Option<u64>,
    /// Nothing was shown to the plugin, nor tried.
    pub only_prepared: bool,
}

/// Why a job did not do it, named by what to do about it. Nothing was kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    #[error("{why}")]
    Again { why: String, after: Option<Duration> },
    /// The plugin is at fault.
    #[error("{why}")]
    Fault { why: String },
    /// The disk is full.
    #[error("{why}")]
    Full { why: String },
    /// The consumer cannot go on without a person.
    #[error("{why}")]
    Stuck { why: String },
    /// The process cannot go on.
    #[error("{why}")]
    Halt { why: String },
}

impl From<ReadError> for Failed {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Again { after, .. } => Self::Again { why: error.to_string(), after },
            ReadError::Unknown { .. } | ReadError::False { .. } => Self::Again { why: error.to_string(), after: None },
            ReadError::Halt { why } => Self::Stuck { why },
        }
    }
}

impl From<JournalError> for Failed {
    fn from(error: JournalError) -> Self {
        let why = error.to_string();
        match error {
            JournalError::Full { .. } => Self::Full { why },
            JournalError::Moved { .. } => Self::Stuck { why },
            JournalError::Halt { .. } => Self::Halt { why },
        }
    }
}

impl From<StepError> for Failed {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Again { why } => Self::Again { why, after: None },
            StepError::Overrun { why } | StepError::Fault { why, .. } => Self::Fault { why },
        }
    }
}

/// Where a consumer that has no cursor begins. `Latest` is written down at once: a restart must not move it.
pub async fn find_start(desk: &Desk, start: Start, tip: BlockRef) -> Result<Done, Failed> {
    let first = desk.source.first();
    let begin = match (start, first) {
        // A recording has no present to begin at.
        (Start::Latest, Some(first)) => first,
        (Start::Latest, None) => {
            return mark(desk, None, tip).await;
        }
        (Start::Block(number), first) => number.max(first.unwrap_or(0)),
        (Start::Time(time), first) => first_at(desk, time, first.unwrap_or(0), tip).await?,
    };
    Ok(Done { begin: Some(begin), ..Done::default() })
}

/// The first block at or after a time, by bisection. Above the tip where there is none yet.
async fn first_at(desk: &Desk, time: u64, first: u64, tip: BlockRef) -> Result<u64, Failed> {
    let (mut low, mut high) = (first, tip.number + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        if desk.source.by_number(middle).await?.time < time {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// Moves the cursor, or only the marks, with no events.
pub async fn mark(desk: &Desk, from: Option<BlockRef>, cursor: BlockRef) -> Result<Done, Failed> {
    commit(desk, from, cursor, false, StepOutput::default(), vec![], &[]).await?;
    Ok(Done { cursor: Some(cursor), ..Done::default() })
}

/// Moves the cursor over final blocks of which nothing is told.
pub async fn pass(desk: &Desk, from: Option<BlockRef>, to: u64) -> Result<Done, Failed> {
    let done = mark(desk, from, desk.source.by_number(to).await?).await?;
    Ok(Done { verified: true, ..done })
}

/// One block that may be orphaned.
pub async fn live(desk: &Desk, kit: &mut Kit, from: Option<BlockRef>, at: BlockRef) -> Result<Done, Failed> {
    let matched = desk.blocks.matched(&at, &desk.plan, desk.traced).await?;
    step(desk, kit, from, at, true, vec![matched]).await
}

/// Final blocks: one step for many.
pub async fn range(desk: &Desk, kit: &mut Kit, from: Option<BlockRef>, first: u64, last: u64) -> Result<Done, Failed> {
    let (matched, to) = desk.ahead.matched(first, last, &desk.plan, desk.traced).await?;
    step(desk, kit, from, to, false, matched).await
}

/// What a consumer takes with it from step to step.
#[derive(Default)]
pub struct Kit {
    pub worker: Option<Worker>,
    /// What its factories made, as of its cursor. `None`: to be read from the journal.
    pub children: Option<Children>,
    /// What edits of watch sets reach back to and it was not shown yet. `None`: to be read from the journal.
    pub catch_ups: Option<Vec<CatchUp>>,
    /// State that was learned before there was a cursor: for the first step.
    first: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Steps since the last one aside.
    pub steps: u32,
}

impl Kit {
    /// All but the worker is to be read anew.
    pub fn of(worker: Worker) -> Self {
        Self { worker: Some(worker), ..Self::default() }
    }

    pub fn forget(&mut self) {
        (self.children, self.catch_ups) = (None, None);
    }

    pub fn is_ready(&self) -> bool {
        self.children.is_some() && self.catch_ups.is_some()
    }
}

/// Reads what a consumer takes with it, as of its cursor; and what its factories made before it began.
pub async fn prepare(
    desk: &Desk,
    kit: &mut Kit,
    cursor: Option<BlockRef>,
    begin: u64,
    path: &Follower,
) -> Result<Done, Failed> {
    let mut children = made::remember(desk)?;
    let catch_ups = catch_up::left(desk)?;
    let upto = cursor.map_or(begin.checked_sub(1), |at| Some(at.number));
    let read = made::read_back(desk, &mut children, upto, path).await?;
    if !read.is_empty() {
        let state = made::to_write(&children).chain(made::as_read(read)).collect();
        match cursor {
            Some(cursor) => {
                aside(desk, cursor, StepOutput { state, ..StepOutput::default() }, vec![], &[], None).await?
            }
            // Written with the first step.
            None => kit.first = state,
        }
        children.keep();
    }
    (kit.children, kit.catch_ups) = (Some(children), Some(catch_ups));
    Ok(Done { only_prepared: true, ..Done::default() })
}

/// One block's events for one consumer.
struct Mine {
    matched: Arc<Matched>,
    /// The block itself is an event.
    block: bool,
    /// Into the matched events.
    events: Vec<Event>,
}

impl Mine {
    /// Each event by itself.
    fn one_by_one(&self) -> impl Iterator<Item = Mine> {
        let alone = |event| Mine { matched: self.matched.clone(), block: false, events: vec![event] };
        self.events.iter().copied().map(alone)
    }

    fn at(&self) -> BlockRef {
        self.matched.at
    }

    fn events(&self) -> impl Iterator<Item = (EventPosition, &[u8])> {
        self.events.iter().map(|event| self.matched.event(event.number))
    }
}

async fn step(
    desk: &Desk,
    kit: &mut Kit,
    from: Option<BlockRef>,
    cursor: BlockRef,
    undo: bool,
    matched: Vec<Arc<Matched>>,
) -> Result<Done, Failed> {
    let mut children = children_of(kit)?;
    let done = step_with(desk, kit, &mut children, from, cursor, undo, matched).await;
    if done.is_err() {
        // What a failed step learned is learned again.
        children.unlearn();
    }
    kit.children = Some(children);
    done
}

async fn step_with(
    desk: &Desk,
    kit: &mut Kit,
    children: &mut Children,
    from: Option<BlockRef>,
    cursor: BlockRef,
    undo: bool,
    matched: Vec<Arc<Matched>>,
) -> Result<Done, Failed> {
    let mut mine = Vec::new();
    for matched in matched {
        let events = matched.events_of(desk.subscriber, children);
        let block = matched.wants_block(desk.subscriber);
        if block || !events.is_empty() {
            mine.push(Mine { matched, block, events });
        }
    }
    let class = if undo { Class::Live } else { Class::Range };
    let (mut output, entries, mine) = run(desk, kit, mine, class).await?;
    output.state.extend(made::to_write(children));
    if from.is_none() {
        output.state.extend(kit.first.iter().cloned());
    }
    // A live block may be orphaned and overtaken by finality before the consumer's next turn.
    let done = Done { cursor: Some(cursor), verified: !undo, ..done(&output, &mine) };
    commit(desk, from, cursor, undo, output, entries, &mine).await?;
    children.keep();
    kit.first.clear();
    kit.steps += 1;
    Ok(done)
}

/// Events of final blocks below the cursor: of each block, what is in the first match and not in the second.
pub async fn step_aside(
    desk: &Desk,
    kit: &mut Kit,
    cursor: BlockRef,
    matched: Vec<(Arc<Matched>, Matched)>,
    state: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    (todo, after): (CatchUp, u64),
) -> Result<Done, Failed> {
    let subscriber = desk.subscriber;
    // What was made later is known as well by now, and has no events here.
    let mut children = children_of(kit)?;
    let mut mine = Vec::new();
    for (with, without) in matched {
        let before: Vec<EventPosition> =
            without.events_of(subscriber, &mut children).iter().map(|event| without.event(event.number).0).collect();
        let mut events = with.events_of(subscriber, &mut children);
        events.retain(|event| !before.contains(&with.event(event.number).0));
        if !events.is_empty() {
            mine.push(Mine { matched: with, block: false, events });
        }
    }
    children.unlearn();
    kit.children = Some(children);
    let (mut output, mut entries, mine) = run(desk, kit, mine, Class::Range).await?;
    output.state.extend(state);
    entries.retain(|entry| entry.block.number >= todo.said);
    let done = Done { emissions: entries.len() as u64, ..done(&output, &mine) };
    aside(desk, cursor, output, entries, &mine, Some((todo.edit, after))).await?;
    kit.steps = 0;
    Ok(done)
}

/// Transactions that are in no block yet: the cursor stays, and so does the state. What cannot be processed is left out.
pub async fn pending(desk: &Desk, kit: &mut Kit, cursor: BlockRef, told: Vec<Arc<Matched>>) -> Result<Done, Failed> {
    let mut children = children_of(kit)?;
    let of = |matched: Arc<Matched>, children: &mut Children| {
        let events = matched.events_of(desk.subscriber, children);
        Mine { matched, block: false, events }
    };
    let mine: Vec<Mine> = told.into_iter().map(|matched| of(matched, &mut children)).collect();
    kit.children = Some(children);
    let each: Vec<Mine> = mine.iter().flat_map(Mine::one_by_one).collect();
    let mut done = Done { only_prepared: true, ..Done::default() };
    let (mut entries, mut watches) = (Vec::new(), Vec::new());
    let mut show = async |kit: &mut Kit, mine: Vec<Mine>| {
        let (output, said, mine) = run(desk, kit, mine, Class::Live).await?;
        let one = self::done(&output, &mine);
        done.events += one.events;
        done.emissions += one.emissions;
        done.calls += one.calls;
        done.call_time += one.call_time;
        done.poison += one.poison;
        entries.extend(said);
        watches.extend(output.watches);
        Ok::<_, Failed>(())
    };
    if let Err(Failed::Fault { .. } | Failed::Again { .. }) = show(kit, mine).await {
        // Whoever sends one that a plugin cannot bear must not hide the others.
        for mine in each {
            match show(kit, vec![mine]).await {
                Err(Failed::Fault { why } | Failed::Again { why, .. }) => {
                    tracing::debug!(plugin = ?desk.consumer, why, "a pending transaction is left out");
                    telemetry::pending_dropped(desk.chain).increment(1);
                }
                other => other?,
            }
        }
    }
    for entry in &mut entries {
        // The newest block that it has seen: there is none of its own.
        entry.block = cursor;
    }
    if !entries.is_empty() || !watches.is_empty() {
        aside(desk, cursor, StepOutput { watches, ..StepOutput::default() }, entries, &[], None).await?;
    }
    Ok(done)
}

fn children_of(kit: &mut Kit) -> Result<Children, Failed> {
    kit.children.take().ok_or_else(|| Failed::Again { why: "a step began unprepared".into(), after: None })
}

fn done(output: &StepOutput, mine: &[Mine]) -> Done {
    Done {
        events: mine.iter().map(|m| m.events.len() as u64 + u64::from(m.block)).sum(),
        emissions: output.emissions.len() as u64,
        calls: output.calls,
        call_time: output.call_time,
        poison: output.poison.len() as u64,
        ..Done::default()
    }
}

/// Shows events to the plugin, and names what it says.
async fn run(
    desk: &Desk,
    kit: &mut Kit,
    mine: Vec<Mine>,
    class: Class,
) -> Result<(StepOutput, Vec<NewEntry>, Arc<Vec<Mine>>), Failed> {
    let mine = Arc::new(mine);
    if mine.is_empty() {
        return Ok((StepOutput::default(), vec![], mine));
    }
    let mut class = if desk.suspect { Class::Suspect } else { class };
    loop {
        let Some(mut working) = kit.worker.take() else {
            return Err(Failed::Halt { why: "a step began without a worker".into() });
        };
        let (own, shown) = (desk.clone(), mine.clone());
        let work = move || {
            let stepped = call(&own, &mut working, &shown, class);
            // Here, since a flood of them is work as well.
            let named = stepped.map(|output| (name_emissions(&own, &output, &shown), output));
            (working, named)
        };
        let panicked = |e| Failed::Again { why: format!("the worker panicked: {e}"), after: None };
        let (working, stepped) = desk.turns.run(class, work).await.map_err(panicked)?;
        kit.worker = Some(working);
        match stepped {
            Err(StepError::Overrun { .. }) if class != Class::Suspect => class = Class::Suspect,
            other => {
                let (entries, output) = other?;
                return Ok((output, entries?, mine));
            }
        }
    }
}

/// Who may keep others waiting calls once; a suspect is searched for the event to blame.
fn call(desk: &Desk, worker: &mut Worker, mine: &[Mine], class: Class) -> Result<StepOutput, StepError> {
    // A record is shared by all; whether a factory of the plugin made its contract is not.
    let marked: Vec<Vec<Vec<u8>>> = mine
        .iter()
        .map(|m| {
            let made = m.events.iter().filter(|event| event.made);
            made.map(|event| batch::marked_as_made(m.matched.event(event.number).1)).collect()
        })
        .collect();
    let blocks: Vec<BlockEvents<'_>> = mine
        .iter()
        .zip(&marked)
        .map(|(m, marked)| {
            let mut marked = marked.iter();
            let events = m.events.iter().map(|event| {
                let (position, record) = m.matched.event(event.number);
                (position, if event.made { marked.next().map_or(record, Vec::as_slice) } else { record })
            });
            BlockEvents {
                at: m.at(),
                block_record: m.matched.block_record(),
                block_subscribed: m.block,
                events: events.collect(),
            }
        })
        .collect();
    let state = state_of(desk.journal.clone(), desk.consumer);
    tracing::trace!(target: super::CALLS, consumer = ?desk.consumer, "calls");
    match class {
        Class::Suspect => worker.step(desk.chain, &blocks, state),
        Class::Live | Class::Range => worker.quick_step(desk.chain, &blocks, state),
    }
}

async fn commit(
    desk: &Desk,
    from: Option<BlockRef>,
    cursor: BlockRef,
    undo: bool,
    output: StepOutput,
    entries: Vec<NewEntry>,
    mine: &[Mine],
) -> Result<(), Failed> {
    let step = journal::Step { from, undo, ..written(desk, cursor, output, entries, mine) };
    desk.journal.commit(Write::Step(step)).await?;
    Ok(())
}

/// The cursor stays; what is written is undone with its block.
async fn aside(
    desk: &Desk,
    cursor: BlockRef,
    output: StepOutput,
    entries: Vec<NewEntry>,
    mine: &[Mine],
    said: Option<(EditId, u64)>,
) -> Result<(), Failed> {
    let undo = cursor.number > desk.finalized;
    let step =
        journal::Step { from: Some(cursor), undo, aside: true, said, ..written(desk, cursor, output, entries, mine) };
    desk.journal.commit(Write::Step(step)).await?;
    Ok(())
}

fn written(desk: &Desk, cursor: BlockRef, output: StepOutput, entries: Vec<NewEntry>, mine: &[Mine]) -> journal::Step {
    let poison = output.poison.into_iter();
    journal::Step {
        consumer: desk.consumer,
        from: None,
        cursor,
        undo: false,
        aside: false,
        said: None,
        safe: desk.safe,
        finalized: desk.finalized,
        state_version: desk.state_version,
        state: output.state,
        entries,
        poison: poison.map(|p| PoisonEvent { block: mine[p.block].at(), position: p.position, why: p.why }).collect(),
        asks: output.watches.iter().map(|wish| serde_json::to_vec(wish).expect("a wish is JSON")).collect(),
        taken: None,
    }
}

/// Gives emissions their ids, and writes the payloads that plugins left to the host.
fn name_emissions(desk: &Desk, output: &StepOutput, mine: &[Mine]) -> Result<Vec<NewEntry>, Failed> {
    let mut entries = Vec::with_capacity(output.emissions.len());
    let (mut begun, mut incarnation, mut events, mut next) = (usize::MAX, 0, vec![], 0);
    for emission in &output.emissions {
        let block = &mine[emission.block];
        let at = block.at();
        if begun != emission.block {
            incarnation = desk.journal.incarnation(desk.consumer, &at.hash)?;
            (begun, events, next) = (emission.block, block.events().collect(), 0);
        }
        // Most answers speak of events in their order: the one sought is near the last one.
        let is_it = |(position, _): &(EventPosition, &[u8])| *position == emission.position;
        let ahead = events[next..].iter().position(is_it).map(|n| next + n);
        let found = ahead.or_else(|| events[..next].iter().position(is_it));
        next = found.unwrap_or(next);
        let record = found.map_or_else(|| block.matched.block_record(), |n| events[n].1);
        let (track, stream) = &desk.tracks[usize::from(emission.stream)];
        let (content_type, payload) = match &emission.payload {
            Some(payload) => (emission.content_type, payload.clone()),
            None => {
                let json = payload::as_json(emission.position, record);
                (ContentType::Json, json.to_string().into_bytes())
            }
        };
        let lane_key = match &emission.lane_key {
            Some(key) => key.clone(),
            None => payload::lane_key(desk.chain, emission.position, record),
        };
        // In no block, it is known by its own hash: told twice, it is the same emission.
        let (hash, position, incarnation) = match emission.position {
            EventPosition::Pending(_) => (payload::transaction_hash(record), EventPosition::Pending(0), 0),
            position => (at.hash, position, incarnation),
        };
        entries.push(NewEntry {
            track: *track,
            emission: EmissionId::of(desk.chain, &hash, position, stream, emission.ordinal, incarnation),
            block: at,
            position,
            ordinal: emission.ordinal,
            lane_key,
            content_type,
            payload,
        });
    }
    Ok(entries)
}

/// Asks the provider whether the cursor's block, which is below the path, is canonical.
pub async fn verify(desk: &Desk, cursor: BlockRef) -> Result<Done, Failed> {
    if desk.source.by_number(cursor.number).await?.hash == cursor.hash {
        return Ok(Done { cursor: Some(cursor), verified: true, ..Done::default() });
    }
    undo(desk, cursor, None).await
}

/// Walks a consumer back to the newest canonical block below its cursor.
///
/// The provider may still know the orphaned blocks: then that is the common ancestor. Where it does not, it is the
/// newest canonical block in which the consumer did something, or the one up to which it holds nothing to undo:
/// blocks in which it did nothing are read again, which is harmless.
pub async fn undo(desk: &Desk, from: BlockRef, path: Option<&Follower>) -> Result<Done, Failed> {
    let consumers = desk.journal.consumers()?;
    let ours = consumers.iter().find(|c| c.id == desk.consumer).map_or(0, |c| c.marks.finalized);
    let mut to = common_ancestor(desk, from, path, ours).await?;
    if to.is_none() {
        for step in desk.journal.steps(desk.consumer)? {
            if step.number < from.number && canonical(desk, step.number, path).await?.hash == step.hash {
                to = Some(step);
                break;
            }
        }
    }
    let to = match to {
        Some(to) => to,
        None => canonical(desk, ours, path).await?,
    };
    let committed =
        desk.journal.commit(Write::Undo { consumer: desk.consumer, from, to }).await.map_err(|error| match error {
            JournalError::Moved { why } => {
                Failed::Stuck { why: format!("cannot be walked back from {from} to {to}: {why}") }
            }
            other => other.into(),
        })?;
    Ok(Done { cursor: Some(to), retracted: committed.retracted, ..Done::default() })
}

/// By the parents of the orphaned blocks, as far as the provider knows them.
async fn common_ancestor(
    desk: &Desk,
    from: BlockRef,
    path: Option<&Follower>,
    ours: u64,
) -> Result<Option<BlockRef>, Failed> {
    let mut orphan = from;
    while orphan.number > ours {
        let there = canonical(desk, orphan.number - 1, path).await?;
        if there.hash == orphan.parent {
            return Ok(Some(there));
        }
        orphan = match desk.source.by_hash(orphan.parent).await {
            Ok(block) if block.hash == orphan.parent && block.number + 1 == orphan.number => block,
            Ok(_) | Err(ReadError::Unknown { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
    }
    Ok(None)
}

/// The canonical block at a height: the path's, or below it the provider's.
async fn canonical(desk: &Desk, number: u64, path: Option<&Follower>) -> Result<BlockRef, Failed> {
    match path.and_then(|path| path.at(number)) {
        Some(block) => Ok(*block),
        None => Ok(desk.source.by_number(number).await?),
    }
}

fn is_host_key(key: &[u8]) -> bool {
    key.starts_with(HOST_KEYS)
}

struct State {
    journal: Arc<dyn Journal>,
    consumer: ConsumerId,
}

impl StateRead for State {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, String> {
        self.journal.state_get(self.consumer, key).map_err(|e| e.to_string())
    }
    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: u32) -> Result<Vec<(Vec<u8>, Vec<u8>)>, String> {
        let mut found = self.journal.state_scan(self.consumer, prefix, after, limit).map_err(|e| e.to_string())?;
        // What the host keeps beside it stands behind all that a plugin may write.
        found.truncate(found.partition_point(|(key, _)| !is_host_key(key)));
        Ok(found)
    }
}

/// The state that a candidate is tried on: what the running one has, never written back.
pub fn state_of(journal: Arc<dyn Journal>, consumer: ConsumerId) -> Box<dyn StateRead> {
    Box::new(State { journal, consumer })
}
