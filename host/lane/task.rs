//! The task of one output: read, hand over, judge the outcomes, write down what must last.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::open::{Opened, Opening};
use super::schedule::{after_failures, probe_after};
use super::track::{KNOWN, Room, State, TrackLane, delivery_of};
use super::{Backlog, Routed, Settings};
use crate::journal::{Entry, Journal, JournalError, LaneWrite, Marks, Parked, TrackId, Write};
use crate::lane::due::{Due, due};
use crate::model::{Delivery, Op, Outcome, OutputStatus};
use crate::sink::{Sink, Track};
use crate::telemetry::{self, DeliveryOutcome};

/// Positions are written down this often; until then a crash repeats what was delivered, with the same ids.
const FLUSH_EVERY: Duration = Duration::from_millis(50);
/// Failures in a row, with no success between, after which the destination counts as down.
const DOWN_AFTER: u32 = 4;
/// How often the figures for people are counted, and how soon a journal that failed is asked again.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// A sink has its own deadlines; one that forgot them does not hold a place for ever.
const CALL_LIMIT: Duration = Duration::from_secs(120);

#[cfg(test)]
thread_local! {
    /// Turns of the loop on this thread: shows a lane that spins.
    pub static TURNS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    /// Reads of the journal.
    pub static READS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

pub struct Task {
    pub(super) settings: Settings,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) journal: Arc<dyn Journal>,
    routed: watch::Receiver<Arc<Vec<Routed>>>,
    pub(super) status: Arc<Mutex<OutputStatus>>,
    backlog: watch::Sender<Backlog>,

    pub(super) tracks: BTreeMap<TrackId, TrackLane>,
    /// Tracks that are not ready: to be taken up, or their stream to be prepared again.
    pub(super) opening: BTreeMap<TrackId, Opening>,
    /// One at a time.
    pub(super) opened: JoinSet<Opened>,
    calls: JoinSet<Done>,
    flushing: JoinSet<Result<Vec<LaneWrite>, (JournalError, Vec<LaneWrite>)>>,
    counting: JoinSet<Result<Counted, JournalError>>,
    /// To be written, in this order, in one transaction with the positions.
    pending: Vec<LaneWrite>,
    /// Who waits for what is settled by now to be written.
    noting: Vec<oneshot::Sender<()>>,
    flush_at: Instant,
    pub(super) count_at: Instant,
    /// After a failed read of the journal: when to read again.
    read_at: Option<Instant>,

    /// The track that was served last: the next one has the next turn.
    last: Option<TrackId>,
    /// Calls under way for parked keys, and whether the last free place went to one.
    parked_calls: usize,
    parked_last: bool,
    failures_in_a_row: u32,
    /// Since when it is down; and whether it is left alone until a person resumes it.
    down_since: Option<Instant>,
    disabled: bool,
    /// While the destination is down: probes that failed, and when the next one may go.
    probes: u32,
    probe_at: Option<Instant>,
    /// It has taken something, or refused it, in this life.
    pub(super) answered: bool,
    /// Until it has, it may have been down when something was parked, and be back: when a parked key is tried out of its turn.
    pub(super) trial_at: Option<Instant>,
    routes_changed: bool,
    /// Dead letters may have been put back.
    redo_changed: bool,
    stopping: bool,
}

/// Where a delivery under way came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Window,
    /// Several of the window in one call.
    Batch,
    Parked {
        trial: bool,
    },
    Redo,
}

/// Figures for people.
struct Counted {
    backlog: Backlog,
    parked: u64,
    replaying: u64,
    dead: u64,
}

struct Done {
    track: TrackId,
    from: From,
    batch: Vec<Delivery>,
    outcomes: Vec<Outcome>,
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

impl Task {
    pub fn new(
        settings: Settings,
        sink: Arc<dyn Sink>,
        journal: Arc<dyn Journal>,
        routed: watch::Receiver<Arc<Vec<Routed>>>,
        status: Arc<Mutex<OutputStatus>>,
        backlog: watch::Sender<Backlog>,
    ) -> Self {
        Self {
            settings,
            sink,
            journal,
            routed,
            status,
            backlog,
            tracks: BTreeMap::new(),
            opening: BTreeMap::new(),
            opened: JoinSet::new(),
            calls: JoinSet::new(),
            flushing: JoinSet::new(),
            counting: JoinSet::new(),
            pending: Vec::new(),
            noting: Vec::new(),
            flush_at: Instant::now(),
            count_at: Instant::now(),
            read_at: None,
            last: None,
            parked_calls: 0,
            parked_last: false,
            failures_in_a_row: 0,
            down_since: None,
            disabled: false,
            probes: 0,
            probe_at: None,
            answered: false,
            trial_at: None,
            routes_changed: true,
            redo_changed: false,
            stopping: false,
        }
    }

    pub async fn run(
        mut self,
        mut resume: mpsc::Receiver<()>,
        redo: Arc<Notify>,
        mut note: mpsc::Receiver<oneshot::Sender<()>>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut tail = self.journal.tail();
        loop {
            if !self.stopping {
                if std::mem::take(&mut self.routes_changed) {
                    let routed = self.routed.borrow_and_update().clone();
                    self.take_routes(&routed);
                }
                self.open_next();
                if std::mem::take(&mut self.redo_changed) {
                    self.read_redo().await;
                }
                self.fill().await;
                self.hand_over().await;
                self.count();
            }
            self.flush();
            let dropped = |t: &TrackLane| t.gone && t.busy.is_empty();
            self.tracks.retain(|_, track| !dropped(track));
            if self.stopping && self.calls.is_empty() && self.flushing.is_empty() && !self.dirty() {
                return;
            }
            let wake = self.wake_at();
            #[cfg(test)]
            TURNS.set(TURNS.get() + 1);
            tokio::select! {
                Some(done) = self.calls.join_next() => match done {
                    Ok(done) => self.judge(done),
                    // Panics are caught inside of the call, and nobody cancels one.
                    Err(error) => tracing::error!(output = %self.settings.output, %error, "a call of the sink was lost"),
                },
                Some(flushed) = self.flushing.join_next() => self.flushed(flushed),
                Some(opened) = self.opened.join_next(), if !self.stopping => self.take_opened(opened),
                Some(counted) = self.counting.join_next() => self.counted(counted),
                changed = tail.changed() => if changed.is_err() { return } else { self.look_again() },
                Ok(()) = self.routed.changed(), if !self.stopping => self.routes_changed = true,
                Some(()) = resume.recv() => self.resume(),
                () = redo.notified() => self.redo_changed = true,
                Some(tell) = note.recv() => {
                    self.noting.push(tell);
                    self.flush_at = Instant::now();
                }
                () = async { drop(stop.wait_for(|s| *s).await) }, if !self.stopping => {
                    self.stopping = true;
                    self.opened.abort_all();
                    self.flush_at = Instant::now();
                }
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// When there is something to do that no event announces.
    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let mut wake = now + Duration::from_secs(3600);
        if self.dirty() && self.flushing.is_empty() {
            wake = wake.min(self.flush_at);
        }
        if self.stopping {
            return wake;
        }
        if self.counting.is_empty() {
            wake = wake.min(self.count_at);
        }
        if self.opened.is_empty() {
            wake = self.opening.values().map(|o| o.at).fold(wake, Instant::min);
        }
        let room = self.room();
        if self.tracks.values().any(|t| t.wants(room) > 0) {
            wake = wake.min(self.read_at.unwrap_or(now));
        }
        if self.calls.len() >= self.most() || self.disabled {
            return wake;
        }
        if let Some(at) = self.probe_at.max(self.read_at).filter(|at| *at > now) {
            return wake.min(at);
        }
        let now_ms = now_ms();
        for track in self.tracks.iter().filter(|(id, _)| self.is_ready(**id)).map(|(_, t)| t) {
            if let Some(at) = track.wait_until {
                wake = wake.min(at);
            }
            if let (Some(since), Some(fill)) = (track.filling, self.sink.fill()) {
                wake = wake.min(since + fill.patience);
            }
            // Where the parked keys' share is used up, the end of one of them is what wakes.
            if let Some((at, _)) = track.first_parked().filter(|_| self.parked_calls < self.most_parked()) {
                // Sleep has a resolution of a millisecond: one earlier would only look again.
                let gap = at.saturating_sub(now_ms).max(1);
                wake = wake.min(now + Duration::from_millis(gap));
            }
        }
        match self.trial_at {
            Some(at) if !self.is_down() && self.parked_calls < self.most_parked() => wake.min(at),
            _ => wake,
        }
    }

    /// New entries or new marks: what was too early may be due.
    fn look_again(&mut self) {
        for track in self.tracks.values_mut() {
            let moves = self.journal.moves(track.routed.track.consumer);
            track.more |= std::mem::replace(&mut track.moves, moves) != moves;
        }
    }

    pub(super) fn show(&self, state: &str, why: Option<String>) {
        let mut status = self.status.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        status.state = state.into();
        status.why = why;
    }

    /// Whether the destination is down and its next probe is not yet due.
    fn must_wait(&self) -> bool {
        self.disabled || self.probe_at.is_some_and(|at| Instant::now() < at)
    }

    fn is_down(&self) -> bool {
        self.failures_in_a_row >= DOWN_AFTER
    }

    /// Calls that may be under way at once.
    fn most(&self) -> usize {
        if self.is_down() { 1 } else { self.sink.shape().concurrency.max(1) }
    }

    /// Keys that fail get half of the places at most: they do not crowd out the others.
    fn most_parked(&self) -> usize {
        self.most().div_ceil(2)
    }

    fn is_ready(&self, id: TrackId) -> bool {
        !self.opening.contains_key(&id)
    }

    pub(super) fn track_name(&self, routed: &Routed) -> Track {
        Track { output: self.settings.output.clone(), stream: routed.track.stream.clone(), chain: routed.track.chain }
    }

    /// The ready tracks, the one after the last served first.
    fn in_turn(&self) -> Vec<TrackId> {
        let ready = |id: &TrackId| self.is_ready(*id) && self.tracks.get(id).is_some_and(|t| !t.gone);
        let (before, after): (Vec<_>, Vec<_>) =
            self.tracks.keys().copied().filter(ready).partition(|id| self.last.is_some_and(|last| *id <= last));
        [after, before].concat()
    }

    /// Reads on: one piece of each track that has room.
    async fn fill(&mut self) {
        if self.read_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let room = self.room();
        let wanted: Vec<(TrackId, u64, usize)> =
            self.tracks.iter().map(|(id, t)| (*id, t.read, t.wants(room))).filter(|w| w.2 > 0).collect();
        if wanted.is_empty() {
            return;
        }
        let reads = self.read(move |journal| {
            let read = |(id, after, limit)| Ok((id, limit, journal.entries(id, after, limit, None)?));
            wanted.into_iter().map(read).collect::<Result<Vec<_>, _>>()
        });
        let Some(reads) = reads.await else { return };
        for (id, limit, (marks, entries)) in reads {
            let Some(track) = self.tracks.get_mut(&id) else { continue };
            track.take_in(&self.settings.output, &marks, entries, limit, room);
            track.advance();
        }
    }

    /// Asks the journal, off the runtime. `None` where it failed: it is asked again a little later.
    async fn read<T: Send + 'static>(
        &mut self,
        f: impl FnOnce(&dyn Journal) -> Result<T, JournalError> + Send + 'static,
    ) -> Option<T> {
        #[cfg(test)]
        READS.set(READS.get() + 1);
        let journal = self.journal.clone();
        let why = match tokio::task::spawn_blocking(move || f(&*journal)).await {
            Ok(Ok(read)) => {
                self.read_at = None;
                return Some(read);
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(output = %self.settings.output, why, "cannot read the journal; it is read again in a second");
        self.read_at = Some(Instant::now() + COUNT_EVERY);
        None
    }

    async fn entry_at(&mut self, id: TrackId, offset: u64) -> Option<(Marks, Option<Entry>)> {
        let (marks, entries) = self.read(move |journal| journal.entries(id, offset - 1, 1, None)).await?;
        Some((marks, entries.into_iter().find(|e| e.offset == offset)))
    }

    /// Hands to the sink what may go now.
    async fn hand_over(&mut self) {
        let unread = self.read_at.is_some_and(|at| Instant::now() < at);
        if self.must_wait() || unread || self.calls.len() >= self.most() {
            return;
        }
        self.redo().await;
        self.retry_parked().await;
        match self.sink.shape().batch {
            0 | 1 => self.hand_over_singles(),
            _ => self.hand_over_batches(),
        }
    }

    fn room(&self) -> Room {
        Room { batch: self.sink.shape().batch, bytes: self.sink.fill().map(|fill| fill.bytes) }
    }

    fn hand_over_batches(&mut self) {
        let (room, fill) = (self.room(), self.sink.fill());
        for id in self.in_turn() {
            if self.calls.len() >= self.most() {
                return;
            }
            let Some(track) = self.tracks.get_mut(&id) else { continue };
            if track.stopped
                || track.letters > 0
                || !track.busy.is_empty()
                || track.wait_until.is_some_and(|at| Instant::now() < at)
            {
                continue;
            }
            track.wait_until = None;
            let (count, full) = track.next_batch(room);
            if let Some(fill) = fill.filter(|_| !full && count > 0) {
                let since = *track.filling.get_or_insert_with(Instant::now);
                if Instant::now() < since + fill.patience {
                    continue;
                }
            }
            track.filling = None;
            let mut deliveries = Vec::new();
            for slot in track.window.iter_mut().filter(|s| s.state == State::Queued).take(count) {
                slot.state = State::InFlight;
                deliveries.extend(slot.delivery.clone());
            }
            if !deliveries.is_empty() {
                // One call a track: its order is the batch's order.
                self.last = Some(id);
                self.call(id, From::Batch, String::new(), deliveries);
            }
        }
    }

    fn hand_over_singles(&mut self) {
        for id in self.in_turn() {
            let room = self.most().saturating_sub(self.calls.len());
            if room == 0 {
                return;
            }
            let Some(track) = self.tracks.get_mut(&id) else { continue };
            let mut go: Vec<Delivery> = Vec::new();
            for slot in &mut track.window {
                if go.len() >= room {
                    break;
                }
                let Some(delivery) = slot.delivery.as_ref().filter(|_| slot.state == State::Queued) else { continue };
                let key = &delivery.emission.lane_key;
                if track.busy.contains(key) || track.parked.contains_key(key) {
                    continue;
                }
                track.busy.insert(key.clone());
                slot.state = State::InFlight;
                go.push(delivery.clone());
            }
            for delivery in go {
                self.last = Some(id);
                self.parked_last = false;
                self.call(id, From::Window, delivery.emission.lane_key.clone(), vec![delivery]);
            }
        }
    }

    /// Parked keys whose time has come: their next delivery, read from the journal. A destination that is
    /// down is probed with one of them where nothing else waits, whatever its time.
    async fn retry_parked(&mut self) {
        while self.calls.len() < self.most() && self.parked_calls < self.most_parked() {
            // With one place only, the window and the parked keys take turns.
            let queued = |(id, t): (&TrackId, &TrackLane)| self.is_ready(*id) && t.queued();
            let others = (self.most() == 1 && self.parked_last || self.is_down()) && self.tracks.iter().any(queued);
            if others && self.parked_last {
                return;
            }
            let trial = !self.is_down() && self.trial_at.is_some_and(|at| at <= Instant::now());
            let until = if trial || self.is_down() && !others { u64::MAX } else { now_ms() };
            let first = self.in_turn().into_iter().filter_map(|id| {
                let (at, key) = self.tracks.get(&id)?.first_parked()?;
                Some((at, id, key.to_owned()))
            });
            let Some((at, id, key)) = first.filter(|f| f.0 <= until).min_by_key(|f| f.0) else {
                // Nothing is parked any more, or it is under way.
                self.trial_at = self.trial_at.filter(|_| !trial);
                return;
            };
            if !self.retry_one(id, &key, trial && at > now_ms()).await {
                return;
            }
        }
    }

    /// False where nothing came of it, so that the next turn tries again.
    async fn retry_one(&mut self, id: TrackId, key: &str, trial: bool) -> bool {
        let Some(offset) = self.tracks.get(&id).and_then(|t| t.parked.get(key)).map(|p| p.at.next) else {
            return false;
        };
        let Some((marks, entry)) = self.entry_at(id, offset).await else { return false };
        match entry.filter(|e| e.lane_key == key) {
            Some(entry) => {
                let Some(track) = self.tracks.get_mut(&id) else { return true };
                // What the window had passed was due then, and is owed even where the cursor has been walked
                // back since (`Later`).
                if due(&entry, track.routed.when, &marks) == Due::Never {
                    if !track.next_of_parked(key) {
                        self.unpark(id, key);
                    }
                    return true;
                }
                let delivery = delivery_of(&self.settings.output, &track.routed.track.stream.clone(), entry);
                self.parked_last = true;
                // Until it is judged there is no other.
                self.trial_at = self.trial_at.filter(|_| !trial);
                self.call(id, From::Parked { trial }, key.to_owned(), vec![delivery]);
                true
            }
            // More was left to it than is remembered.
            None => {
                let lane_key = key.to_owned();
                let read = self.read(move |j| j.entries(id, offset - 1, KNOWN, Some(&lane_key))).await;
                let Some((_, entries)) = read else { return false };
                let Some(track) = self.tracks.get_mut(&id) else { return true };
                let all = entries.len() < KNOWN || entries.last().is_some_and(|e| e.offset > track.read);
                let offsets = entries.iter().map(|e| e.offset).filter(|o| *o <= track.read).collect();
                // Nothing of it is left up to where the window takes this key again.
                if !track.refill(key, offsets, all) {
                    self.unpark(id, key);
                }
                true
            }
        }
    }

    fn unpark(&mut self, id: TrackId, key: &str) {
        if let Some(track) = self.tracks.get_mut(&id) {
            track.unpark(key);
        }
        let (output, lane_key) = (self.settings.output.clone(), key.to_owned());
        self.pending.push(LaneWrite::Unpark { output, track: id, lane_key });
    }

    /// Dead letters may have been put back.
    pub(super) fn redo_changed(&mut self) {
        self.redo_changed = true;
    }

    async fn read_redo(&mut self) {
        let (ids, output): (Vec<TrackId>, _) = (self.tracks.keys().copied().collect(), self.settings.output.clone());
        let read = self.read(move |journal| {
            ids.into_iter().map(|id| Ok((id, journal.redo(&output, id)?))).collect::<Result<Vec<_>, _>>()
        });
        let Some(read) = read.await else {
            self.redo_changed = true;
            return;
        };
        for (id, offsets) in read {
            if let Some(track) = self.tracks.get_mut(&id) {
                track.redo = offsets.into_iter().filter(|o| !track.redo_taken.contains(o)).collect();
            }
        }
    }

    /// Dead letters that were put back: each once, ahead of its lane key's next one.
    async fn redo(&mut self) {
        for id in self.in_turn() {
            if self.calls.len() >= self.most() {
                return;
            }
            let Some(offset) = self.tracks.get(&id).and_then(|t| t.redo.front().copied()) else { continue };
            let Some((marks, entry)) = self.entry_at(id, offset).await else { return };
            let Some(track) = self.tracks.get_mut(&id) else { continue };
            let batch = self.sink.shape().batch > 1;
            // Beside a retraction under way it could come after it.
            if entry.as_ref().is_some_and(|e| track.busy.contains(&e.lane_key)) || batch && !track.busy.is_empty() {
                continue;
            }
            track.redo.pop_front();
            track.redo_taken.insert(offset);
            // What was retracted since is not said any more: its retraction has been, or will be; unless it never went out.
            let when = track.routed.when;
            let said = |e: &Entry| {
                if e.op == Op::Retract { due(e, when, &marks) != Due::Never } else { e.retracted.is_none() }
            };
            match entry.filter(said) {
                Some(entry) => {
                    let delivery = delivery_of(&self.settings.output, &track.routed.track.stream.clone(), entry);
                    self.call(id, From::Redo, delivery.emission.lane_key.clone(), vec![delivery]);
                }
                None => {
                    let output = self.settings.output.clone();
                    self.pending.push(LaneWrite::Redone { output, track: id, offset });
                }
            }
        }
    }

    fn call(&mut self, id: TrackId, from: From, busy: String, batch: Vec<Delivery>) {
        let Some(track) = self.tracks.get_mut(&id) else { return };
        track.busy.insert(busy);
        let routed = track.routed.clone();
        let (sink, name) = (self.sink.clone(), self.track_name(&routed));
        self.parked_calls += usize::from(matches!(from, From::Parked { .. }));
        self.calls.spawn(async move {
            let call = AssertUnwindSafe(sink.deliver(&name, &batch)).catch_unwind();
            let (mut outcomes, silent) = match tokio::time::timeout(CALL_LIMIT, call).await {
                Ok(Ok(outcomes)) => (outcomes, "the sink said nothing of this delivery"),
                Ok(Err(_)) => (vec![], "the sink panicked; this is a bug, please report it with the log"),
                Err(_) => (vec![], "the sink did not answer in two minutes"),
            };
            // A sink that says too little has not delivered the rest.
            while outcomes.len() < batch.len() {
                outcomes.push(Outcome::Retry { why: silent.into(), after: None });
            }
            Done { track: id, from, batch, outcomes }
        });
    }

    fn judge(&mut self, done: Done) {
        let (id, from) = (done.track, done.from);
        self.parked_calls -= usize::from(matches!(from, From::Parked { .. }));
        if let Some(track) = self.tracks.get_mut(&id) {
            track.busy.remove(if from == From::Batch { "" } else { done.batch[0].emission.lane_key.as_str() });
        }
        // In a batch nothing passes one that has to wait.
        let mut held = false;
        let mut counts = [(DeliveryOutcome::Delivered, 0), (DeliveryOutcome::Refused, 0), (DeliveryOutcome::Retry, 0)];
        for (delivery, outcome) in done.batch.into_iter().zip(done.outcomes) {
            if held {
                self.back_to_queue(id, delivery.offset);
                continue;
            }
            let [delivered, refused, retry] = &mut counts;
            match outcome {
                Outcome::Delivered => {
                    delivered.1 += 1;
                    self.is_up(id, from);
                    self.delivered();
                    self.settle(id, from, &delivery);
                }
                Outcome::Refused { why } => {
                    refused.1 += 1;
                    // It answered: it is not down.
                    self.is_up(id, from);
                    held = self.refused(id, from, &delivery, why);
                }
                Outcome::Retry { why, after } => {
                    retry.1 += 1;
                    self.destination_failed(&why, after);
                    if from == From::Batch {
                        self.batch_failed(id, delivery.offset, after);
                        held = true;
                    } else {
                        self.failed(id, from, &delivery, why, after);
                    }
                }
            }
        }
        for (outcome, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            telemetry::deliveries(&self.settings.output, outcome).increment(count);
        }
        if let Some(track) = self.tracks.get_mut(&id) {
            track.advance();
        }
    }

    fn back_to_queue(&mut self, id: TrackId, offset: u64) {
        if let Some(slot) = self.tracks.get_mut(&id).and_then(|t| t.slot(offset)) {
            slot.state = State::Queued;
        }
    }

    /// One track of a sink that takes batches waits; the others go on.
    fn batch_failed(&mut self, id: TrackId, offset: u64, wish: Option<Duration>) {
        self.back_to_queue(id, offset);
        if let Some(track) = self.tracks.get_mut(&id) {
            track.failures += 1;
            track.wait_until = Some(Instant::now() + probe_after(track.failures, wish, rand::random()));
        }
    }

    fn destination_failed(&mut self, why: &str, wish: Option<Duration>) {
        if self.failures_in_a_row == 0 {
            tracing::warn!(output = %self.settings.output, why, "a delivery failed; it is tried again");
        }
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        if self.is_down() {
            // What was under way when it went down is no probe.
            let straggler = self.must_wait();
            self.probes = self.probes.saturating_add(u32::from(!straggler));
            let at = Instant::now() + probe_after(self.probes, wish, rand::random());
            self.probe_at = self.probe_at.filter(|_| straggler).max(Some(at));
            let down = self.down_since.get_or_insert_with(Instant::now).elapsed();
            if down >= self.settings.disable_after {
                self.disabled = true;
                let (output, seconds) = (&self.settings.output, down.as_secs());
                let why = format!(
                    "down for {seconds} s: left alone until 'chainweir resume {output}', nothing is lost; {why}"
                );
                tracing::error!(%output, why, "the output is disabled");
                return self.show("disabled", Some(why));
            }
        }
        self.show("failing", Some(why.to_owned()));
    }

    fn is_up(&mut self, id: TrackId, from: From) {
        if let Some(track) = self.tracks.get_mut(&id) {
            track.failures = 0;
        }
        (self.answered, self.trial_at) = (true, None);
        let was_down = self.is_down() || from == From::Parked { trial: true };
        if self.failures_in_a_row == 0 && !was_down {
            return;
        }
        (self.down_since, self.disabled) = (None, false);
        self.failures_in_a_row = 0;
        self.probes = 0;
        self.probe_at = None;
        self.show("ok", None);
        if was_down {
            tracing::info!(output = %self.settings.output, "the destination is back");
            // What failed for the destination's sake need not wait for its turn on the schedule.
            self.tracks.values_mut().for_each(|t| t.wake_parked(false));
        }
    }

    fn delivered(&mut self) {
        let mut status = self.status.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        status.delivered += 1;
        if status.state == "idle" {
            status.state = "ok".into();
        }
    }

    fn resume(&mut self) {
        // What comes of it is shown when it has come.
        self.show(if self.opening.is_empty() { "idle" } else { "starting" }, None);
        (self.down_since, self.disabled) = (None, false);
        self.failures_in_a_row = 0;
        self.probes = 0;
        (self.probe_at, self.trial_at) = (None, None);
        self.tracks.values_mut().for_each(|t| t.wake_parked(true));
        for opening in self.opening.values_mut() {
            (opening.at, opening.resumed) = (Instant::now(), true);
        }
        self.redo_changed = true;
    }

    fn settle(&mut self, id: TrackId, from: From, delivery: &Delivery) {
        let Some(track) = self.tracks.get_mut(&id) else { return };
        let key = &delivery.emission.lane_key;
        match from {
            From::Window | From::Batch => track.settle(delivery.offset),
            From::Parked { .. } => {
                if !track.next_of_parked(key) {
                    self.unpark(id, key);
                }
            }
            From::Redo => {
                let output = self.settings.output.clone();
                self.pending.push(LaneWrite::Redone { output, track: id, offset: delivery.offset });
            }
        }
    }

    fn dead_letter(&mut self, id: TrackId, from: From, delivery: &Delivery, attempts: u32, why: String) {
        tracing::warn!(output = %self.settings.output, delivery = %delivery.id, stream = %delivery.emission.stream, why,
            "a delivery went to the dead letters; see 'chainweir dead list'");
        telemetry::deliveries(&self.settings.output, DeliveryOutcome::Dead).increment(1);
        self.pending.push(LaneWrite::Dead {
            output: self.settings.output.clone(),
            track: id,
            offset: delivery.offset,
            delivery: delivery.id,
            attempts,
            why,
        });
        if let Some(track) = self.tracks.get_mut(&id).filter(|_| from == From::Batch) {
            track.letters += 1;
            self.flush_at = Instant::now();
        }
        self.settle(id, from, delivery);
    }

    /// True where what is behind it in its batch has to wait.
    fn refused(&mut self, id: TrackId, from: From, delivery: &Delivery, why: String) -> bool {
        let attempts = self.attempts_so_far(id, from, delivery) + 1;
        if !self.settings.stop_on_refused || from == From::Redo {
            self.dead_letter(id, from, delivery, attempts, why);
            return false;
        }
        self.show("stopped", Some(why.clone()));
        if from == From::Batch {
            self.back_to_queue(id, delivery.offset);
            if let Some(track) = self.tracks.get_mut(&id) {
                track.stopped = true;
            }
            return true;
        }
        self.park(id, delivery, attempts, None, why);
        false
    }

    fn attempts_so_far(&self, id: TrackId, from: From, delivery: &Delivery) -> u32 {
        let parked = || self.tracks.get(&id)?.parked.get(&delivery.emission.lane_key);
        if matches!(from, From::Parked { .. }) { parked().map_or(0, |p| p.at.attempts) } else { 0 }
    }

    fn failed(&mut self, id: TrackId, from: From, delivery: &Delivery, why: String, wish: Option<Duration>) {
        // A destination that is down altogether uses up nobody's attempts.
        let down = self.failures_in_a_row > DOWN_AFTER;
        if from == From::Redo {
            match self.tracks.get_mut(&id).filter(|_| down) {
                Some(track) => track.redo_later(delivery.offset),
                None => self.dead_letter(id, from, delivery, 1, why),
            }
            return;
        }
        if from == (From::Parked { trial: true }) {
            // It has its turn as before.
            let at = Instant::now() + probe_after(self.failures_in_a_row, wish, rand::random());
            self.trial_at = Some(at).filter(|_| !self.answered);
            return;
        }
        let attempts = self.attempts_so_far(id, from, delivery) + u32::from(!down);
        if attempts >= self.settings.attempts {
            return self.dead_letter(id, from, delivery, attempts, why);
        }
        let gap = after_failures(attempts, wish, delivery.id);
        let retry_at_ms = now_ms() + gap.as_millis() as u64;
        self.park(id, delivery, attempts, Some(retry_at_ms), why);
    }

    fn park(&mut self, id: TrackId, delivery: &Delivery, attempts: u32, retry_at_ms: Option<u64>, why: String) {
        let lane_key = delivery.emission.lane_key.clone();
        let parked = Parked { lane_key, next: delivery.offset, attempts, retry_at_ms, why };
        self.pending.push(LaneWrite::Park { output: self.settings.output.clone(), track: id, parked: parked.clone() });
        if let Some(track) = self.tracks.get_mut(&id) {
            track.park(parked);
        }
    }

    fn dirty(&self) -> bool {
        !self.pending.is_empty() || self.tracks.values().any(|t| t.position > t.noted)
    }

    /// Writes down what must last: parked keys and dead letters with the positions that pass them.
    fn flush(&mut self) {
        if !self.flushing.is_empty() || Instant::now() < self.flush_at {
            return;
        }
        let noting = std::mem::take(&mut self.noting);
        let noted = || noting.into_iter().for_each(|tell| tell.send(()).unwrap_or_default());
        if !self.dirty() {
            return noted();
        }
        self.flush_at = Instant::now() + FLUSH_EVERY;
        let mut writes = std::mem::take(&mut self.pending);
        let output = &self.settings.output;
        for (id, track) in &mut self.tracks {
            for key in track.parked.values_mut().filter(|k| k.moved) {
                key.moved = false;
                writes.push(LaneWrite::Park { output: output.clone(), track: *id, parked: key.at.clone() });
            }
            if track.position > track.noted {
                track.noted = track.position;
                writes.push(LaneWrite::Position { output: output.clone(), track: *id, position: track.position });
            }
        }
        let journal = self.journal.clone();
        self.flushing.spawn(async move {
            match journal.commit(Write::Lane(writes.clone())).await {
                Ok(_) => {
                    noted();
                    Ok(writes)
                }
                // Whoever waits is told by the end of it.
                Err(error) => Err((error, writes)),
            }
        });
    }

    fn flushed(
        &mut self,
        flushed: Result<Result<Vec<LaneWrite>, (JournalError, Vec<LaneWrite>)>, tokio::task::JoinError>,
    ) {
        match flushed {
            Ok(Ok(writes)) => {
                for write in writes {
                    match write {
                        LaneWrite::Redone { track, offset, .. } => {
                            if let Some(track) = self.tracks.get_mut(&track) {
                                track.redo_taken.remove(&offset);
                                // It may have been put back once more.
                                self.redo_changed = true;
                            }
                        }
                        LaneWrite::Dead { track, .. } => {
                            if let Some(track) = self.tracks.get_mut(&track) {
                                track.letters = track.letters.saturating_sub(1);
                            }
                        }
                        _ => {}
                    }
                }
            }
            // Nothing is lost by giving up: what is not written down is only repeated.
            Ok(Err((error, _))) if self.stopping => {
                tracing::warn!(output = %self.settings.output, %error, "cannot write the lane's position; the next start repeats a little");
                self.pending.clear();
                self.tracks.clear();
            }
            Ok(Err((error, mut writes))) => {
                tracing::warn!(output = %self.settings.output, %error, "cannot write the lane's position; it is written again");
                writes.append(&mut self.pending);
                self.pending = writes;
                self.flush_at = Instant::now() + COUNT_EVERY;
            }
            Err(error) => {
                tracing::error!(output = %self.settings.output, %error, "a write of the lane's position panicked")
            }
        }
    }

    fn count(&mut self) {
        if Instant::now() < self.count_at || !self.counting.is_empty() {
            return;
        }
        let (journal, output) = (self.journal.clone(), self.settings.output.clone());
        // What is not due yet waits for the head, not for the destination. Beyond a full window nobody has judged it.
        let routed = || self.tracks.iter().filter(|(_, t)| !t.gone);
        let mut backlog = Backlog::default();
        // What is not in hand weighs what the first and the last of its track do.
        let mut unweighed: Vec<(TrackId, u64, u64)> = vec![];
        for (id, track) in routed() {
            let (in_hand, bytes, others) = track.waiting();
            backlog.entries += in_hand + others;
            backlog.bytes += bytes;
            unweighed.extend(track.oldest().filter(|_| others > 0).map(|oldest| (*id, oldest, others)));
        }
        let mut oldest = routed().filter_map(|(_, t)| t.oldest()).min();
        let unread: Vec<(TrackId, u64)> = routed().filter(|(_, t)| t.more).map(|(id, t)| (*id, t.read)).collect();
        let mut parked = self.tracks.values().map(|t| t.parked.len() as u64).sum();
        let unopened: Vec<TrackId> = self.opening.keys().filter(|id| !self.tracks.contains_key(id)).copied().collect();
        self.counting.spawn_blocking(move || {
            let mut behind = unread;
            for track in unopened {
                behind.push((track, journal.position(&output, track)?.unwrap_or(0)));
                let waits = journal.parked(&output, track)?.len() as u64;
                parked += waits;
                backlog.entries += waits;
            }
            for (track, after) in behind {
                let count = journal.backlog(track, after)?;
                if count > 0 {
                    backlog.entries += count;
                    unweighed.push((track, after + 1, count));
                    oldest = Some(oldest.map_or(after + 1, |oldest: u64| oldest.min(after + 1)));
                }
            }
            for (track, first, count) in unweighed {
                backlog.bytes += count * journal.weight(track, first - 1)?;
            }
            if let Some(oldest) = oldest {
                let since = journal.written_ms(oldest)?;
                backlog.age = since.map_or(Duration::ZERO, |at| Duration::from_millis(now_ms().saturating_sub(at)));
            }
            let replaying = journal.replaying(&output)?;
            Ok(Counted { backlog, parked, replaying, dead: journal.dead_count(&output)? })
        });
    }

    fn counted(&mut self, counted: Result<Result<Counted, JournalError>, tokio::task::JoinError>) {
        self.count_at = Instant::now() + COUNT_EVERY;
        // A count that failed leaves the last figures: whoever delivers says what is wrong with the journal.
        if let Ok(Ok(Counted { backlog, parked, replaying, dead })) = counted {
            self.backlog.send_replace(backlog);
            let mut status = self.status.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            status.backlog = backlog.entries;
            status.backlog_bytes = backlog.bytes;
            status.backlog_age = backlog.age.as_secs();
            status.replaying = replaying;
            status.parked = parked;
            status.dead = dead;
            if status.state == "starting" && self.opening.is_empty() {
                status.state = if status.delivered > 0 { "ok" } else { "idle" }.into();
            }
        }
    }
}
