//! The task of one output: read, hand over, judge the outcomes, write down what must last.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::schedule::{after_failures, probe_after};
use super::track::{ParkedKey, State, TrackLane, delivery_of};
use super::{Routed, Settings};
use crate::journal::{DeadFilter, Journal, JournalError, LaneWrite, Parked, TrackId, Write};
use crate::lane::due::{Due, due};
use crate::model::{Delivery, Outcome, OutputStatus};
use crate::sink::{Sink, SinkError, Track};

/// Positions are written down this often; until then a crash repeats what was delivered, with the same ids.
const FLUSH_EVERY: Duration = Duration::from_millis(50);
/// Failures in a row, with no success between, after which the destination counts as down.
const DOWN_AFTER: u32 = 4;
/// How often the figures for people are counted.
const COUNT_EVERY: Duration = Duration::from_secs(1);

pub struct Task {
    settings: Settings,
    sink: Arc<dyn Sink>,
    journal: Arc<dyn Journal>,
    routed: watch::Receiver<Arc<Vec<Routed>>>,
    status: Arc<Mutex<OutputStatus>>,
    backlog: Arc<AtomicU64>,

    tracks: BTreeMap<TrackId, TrackLane>,
    calls: JoinSet<Done>,
    flushing: JoinSet<Result<(), (JournalError, Vec<LaneWrite>)>>,
    /// To be written, in this order, in one transaction with the positions.
    pending: Vec<LaneWrite>,
    positions_moved: bool,
    flush_at: Instant,
    count_at: Instant,

    failures_in_a_row: u32,
    /// While the destination is down: when the next probe may go.
    probe_at: Option<Instant>,
    /// Routes, or the dead letters that were put back, are to be read again.
    routes_changed: bool,
    stopping: bool,
}

/// Where a delivery under way came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Window,
    Parked,
    Redo,
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
        backlog: Arc<AtomicU64>,
    ) -> Self {
        Self {
            settings,
            sink,
            journal,
            routed,
            status,
            backlog,
            tracks: BTreeMap::new(),
            calls: JoinSet::new(),
            flushing: JoinSet::new(),
            pending: Vec::new(),
            positions_moved: false,
            flush_at: Instant::now(),
            count_at: Instant::now(),
            failures_in_a_row: 0,
            probe_at: None,
            routes_changed: true,
            stopping: false,
        }
    }

    pub async fn run(mut self, mut resume: mpsc::Receiver<()>, mut stop: watch::Receiver<bool>) {
        let mut tail = self.journal.tail();
        loop {
            if !self.stopping {
                if self.routes_changed && !self.must_wait() {
                    self.routes_changed = !self.take_routes().await;
                }
                self.prepare().await;
                self.fill().await;
                self.hand_over().await;
            }
            self.flush();
            self.count().await;
            if self.stopping && self.calls.is_empty() && self.flushing.is_empty() && !self.dirty() {
                return;
            }
            let wake = self.wake_at();
            tokio::select! {
                Some(done) = self.calls.join_next() => match done {
                    Ok(done) => self.judge(done),
                    Err(error) => {
                        // Its deliveries stay in flight for ever: begin again from the journal.
                        tracing::error!(output = %self.settings.output, %error, "a sink call panicked; the lane begins again from the journal");
                        self.calls.shutdown().await;
                        self.tracks.clear();
                        self.pending.clear();
                        self.routes_changed = true;
                    }
                },
                Some(flushed) = self.flushing.join_next() => self.flushed(flushed),
                changed = tail.changed() => if changed.is_err() { return } else { self.look_again() },
                Ok(()) = self.routed.changed(), if !self.stopping => self.routes_changed = true,
                Some(()) = resume.recv() => self.resume(),
                () = async { drop(stop.wait_for(|s| *s).await) }, if !self.stopping => {
                    self.stopping = true;
                    self.flush_at = Instant::now();
                }
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    fn wake_at(&self) -> Instant {
        let mut wake = self.count_at;
        if self.dirty() {
            wake = wake.min(self.flush_at);
        }
        if let Some(probe) = self.probe_at.filter(|at| *at > Instant::now()) {
            return wake.min(probe).max(Instant::now() + Duration::from_millis(1));
        }
        // With calls under way, the end of one of them is what wakes.
        if self.calls.is_empty() {
            let now = now_ms();
            for key in self.tracks.values().flat_map(|t| t.parked.values()) {
                if let Some(at) = key.at.retry_at_ms {
                    wake = wake.min(Instant::now() + Duration::from_millis(at.saturating_sub(now)));
                }
            }
        }
        wake.max(Instant::now() + Duration::from_millis(1))
    }

    /// New entries or new marks: what was too early may be due.
    fn look_again(&mut self) {
        for track in self.tracks.values_mut() {
            track.more = true;
        }
    }

    fn fail(&mut self, what: &str, why: &dyn std::fmt::Display) {
        tracing::warn!(output = %self.settings.output, %why, "{what}; it is tried again");
        self.failures_in_a_row += 1;
        let gap = probe_after(self.failures_in_a_row, None, rand::random());
        self.probe_at = Some(Instant::now() + gap);
        self.show("failing", Some(format!("{what}: {why}")));
    }

    fn show(&self, state: &str, why: Option<String>) {
        let mut status = self.status.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        status.state = state.into();
        status.why = why;
    }

    /// Whether the destination is down and its next probe is not yet due.
    fn must_wait(&self) -> bool {
        self.probe_at.is_some_and(|at| Instant::now() < at)
    }

    fn track_name(&self, routed: &Routed) -> Track {
        Track { output: self.settings.output.clone(), stream: routed.track.stream.clone(), chain: routed.track.chain }
    }

    /// Takes up new tracks where they were left, changed routes and specs, and dead letters that were put back.
    /// False where it has to be done again.
    async fn take_routes(&mut self) -> bool {
        let routed = self.routed.borrow_and_update().clone();
        for route in routed.iter() {
            if let Err(why) = self.take_route(route).await {
                self.fail("cannot take up a track", &why);
                return false;
            }
        }
        self.tracks.retain(|id, track| routed.iter().any(|r| r.track.id == *id) || !track.busy.is_empty());
        true
    }

    async fn take_route(&mut self, route: &Routed) -> Result<(), String> {
        let id = route.track.id;
        let (journal, output) = (self.journal.clone(), self.settings.output.clone());
        let notes = tokio::task::spawn_blocking(move || {
            Ok::<_, JournalError>((
                journal.position(&output, id)?,
                journal.parked(&output, id)?,
                journal.redo(&output, id)?,
            ))
        });
        let (noted, parked, redo) = notes.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        if let Some(track) = self.tracks.get_mut(&id) {
            track.prepared &= track.routed.track.spec == route.track.spec;
            track.routed = route.clone();
            track.redo = redo.into();
            return Ok(());
        }
        // A destination that keeps its own position is believed before our note of it.
        let kept = self.sink.position(&self.track_name(route)).await.map_err(|e| e.to_string())?;
        let position = kept.or(noted).unwrap_or(0);
        self.tracks.insert(id, TrackLane::new(route.clone(), position, parked, redo));
        Ok(())
    }

    /// Tells the sink of streams before their first delivery.
    async fn prepare(&mut self) {
        if self.must_wait() {
            return;
        }
        let due: Vec<TrackId> = self.tracks.iter().filter(|(_, t)| !t.prepared).map(|(id, _)| *id).collect();
        for id in due {
            let Some(track) = self.tracks.get(&id) else { continue };
            let (stream, spec) = (track.routed.track.stream.clone(), track.routed.track.spec.clone());
            match self.sink.prepare(&stream, &spec).await {
                Ok(()) => {
                    if let Some(track) = self.tracks.get_mut(&id) {
                        track.prepared = true;
                    }
                }
                Err(error @ (SinkError::Again { .. } | SinkError::Refused { .. })) => {
                    self.fail(&format!("the destination is not ready for {stream}"), &error);
                    return;
                }
            }
        }
    }

    async fn fill(&mut self) {
        let output = self.settings.output.clone();
        for (id, track) in &mut self.tracks {
            while track.more && track.room() > 0 {
                let (journal, id, after, room) = (self.journal.clone(), *id, track.read, track.room());
                let read = tokio::task::spawn_blocking(move || journal.entries(id, after, room, None)).await;
                match read {
                    Ok(Ok((marks, entries))) => track.take_in(&output, &marks, entries, room),
                    Ok(Err(error)) => {
                        track.more = false;
                        tracing::error!(%output, %error, "cannot read the journal; it is read again with the next block");
                    }
                    Err(error) => {
                        track.more = false;
                        tracing::error!(%output, %error, "a read of the journal panicked");
                    }
                }
                if track.advance() {
                    self.positions_moved = true;
                }
            }
        }
    }

    /// Hands to the sink what may go now.
    async fn hand_over(&mut self) {
        if self.must_wait() {
            return;
        }
        let shape = self.sink.shape();
        let down = self.failures_in_a_row >= DOWN_AFTER;
        let most = if down { 1 } else { shape.concurrency.max(1) };
        if self.calls.len() >= most {
            return;
        }
        self.redo().await;
        if shape.batch > 1 {
            self.hand_over_batches(shape.batch, most);
        } else {
            self.retry_parked(most).await;
            self.hand_over_singles(most);
        }
    }

    fn hand_over_batches(&mut self, batch: usize, most: usize) {
        let ids: Vec<TrackId> = self.tracks.keys().copied().collect();
        for id in ids {
            if self.calls.len() >= most {
                return;
            }
            let Some(track) = self.tracks.get_mut(&id) else { continue };
            if !track.prepared || !track.busy.is_empty() {
                continue;
            }
            let mut deliveries = Vec::new();
            for slot in track.window.iter_mut().filter(|s| s.state == State::Queued).take(batch) {
                slot.state = State::InFlight;
                deliveries.extend(slot.delivery.clone());
            }
            if !deliveries.is_empty() {
                // One call a track: its order is the batch's order.
                track.busy.insert(String::new());
                self.call(id, From::Window, deliveries);
            }
        }
    }

    fn hand_over_singles(&mut self, most: usize) {
        let ids: Vec<TrackId> = self.tracks.keys().copied().collect();
        for id in ids {
            let Some(track) = self.tracks.get_mut(&id) else { continue };
            if !track.prepared {
                continue;
            }
            let room = most.saturating_sub(self.calls.len());
            let mut go = Vec::new();
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
                self.call(id, From::Window, vec![delivery]);
            }
        }
    }

    /// Parked keys whose time has come: their next delivery, read from the journal.
    async fn retry_parked(&mut self, most: usize) {
        let now = now_ms();
        let due: Vec<(TrackId, String)> = self
            .tracks
            .iter()
            .filter(|(_, t)| t.prepared)
            .flat_map(|(id, t)| {
                t.parked
                    .iter()
                    .filter(|(key, p)| p.at.retry_at_ms.is_some_and(|at| at <= now) && !t.busy.contains(*key))
                    .map(|(key, _)| (*id, key.clone()))
            })
            .take(most.saturating_sub(self.calls.len()))
            .collect();
        for (id, key) in due {
            self.retry_one(id, &key).await;
        }
    }

    async fn retry_one(&mut self, id: TrackId, key: &str) {
        loop {
            let Some(track) = self.tracks.get(&id) else { return };
            let Some(parked) = track.parked.get(key) else { return };
            let (journal, after, read, lane_key) =
                (self.journal.clone(), parked.at.next - 1, track.read, key.to_owned());
            let found = tokio::task::spawn_blocking(move || journal.entries(id, after, 1, Some(&lane_key))).await;
            let (marks, entries) = match found {
                Ok(Ok(found)) => found,
                Ok(Err(error)) => return self.fail("cannot read the journal for a parked lane", &error),
                Err(error) => return self.fail("cannot read the journal for a parked lane", &error),
            };
            let Some(track) = self.tracks.get_mut(&id) else { return };
            let when = track.routed.when;
            let stream = track.routed.track.stream.clone();
            match entries.into_iter().next().filter(|e| e.offset <= read) {
                Some(entry) => {
                    let next = entry.offset + 1;
                    // What the window had passed was due; what is not was cancelled since.
                    if due(&entry, when, &marks) == Due::Now {
                        track.busy.insert(key.to_owned());
                        let delivery = delivery_of(&self.settings.output, &stream, entry);
                        return self.call(id, From::Parked, vec![delivery]);
                    }
                    if let Some(parked) = track.parked.get_mut(key) {
                        parked.at.next = next;
                        parked.moved = true;
                    }
                }
                // Nothing of it is left up to where the window began to take this key again. The window
                // has not moved meanwhile: this task moves it.
                None => {
                    track.parked.remove(key);
                    self.pending.push(LaneWrite::Unpark {
                        output: self.settings.output.clone(),
                        track: id,
                        lane_key: key.to_owned(),
                    });
                    return;
                }
            }
        }
    }

    /// Dead letters that were put back: each alone, beside the lane.
    async fn redo(&mut self) {
        let ids: Vec<TrackId> = self.tracks.iter().filter(|(_, t)| t.prepared).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(offset) = self.tracks.get_mut(&id).and_then(|t| t.redo.pop_front()) else { continue };
            let journal = self.journal.clone();
            let read = tokio::task::spawn_blocking(move || journal.entries(id, offset - 1, 1, None)).await;
            let entry = match read {
                Ok(Ok((_, entries))) => entries.into_iter().next().filter(|e| e.offset == offset),
                Ok(Err(error)) => return self.fail("cannot read a dead letter", &error),
                Err(error) => return self.fail("cannot read a dead letter", &error),
            };
            // What was retracted since is not said any more: its retraction has been, or will be.
            let say = entry.filter(|e| e.retracted.is_none() || e.op == crate::model::Op::Retract);
            match (say, self.tracks.get(&id)) {
                (Some(entry), Some(track)) => {
                    let delivery = delivery_of(&self.settings.output, &track.routed.track.stream.clone(), entry);
                    self.call(id, From::Redo, vec![delivery]);
                }
                _ => self.pending.push(LaneWrite::Redone { output: self.settings.output.clone(), track: id, offset }),
            }
        }
    }

    fn call(&mut self, track: TrackId, from: From, batch: Vec<Delivery>) {
        let Some(lane) = self.tracks.get(&track) else { return };
        let (sink, name) = (self.sink.clone(), self.track_name(&lane.routed));
        self.calls.spawn(async move {
            let mut outcomes = sink.deliver(&name, &batch).await;
            // A sink that says too little has not delivered the rest.
            while outcomes.len() < batch.len() {
                outcomes.push(Outcome::Retry { why: "the sink said nothing of this delivery".into(), after: None });
            }
            Done { track, from, batch, outcomes }
        });
    }

    fn judge(&mut self, done: Done) {
        let single = self.sink.shape().batch <= 1;
        let output = self.settings.output.clone();
        if let Some(track) = self.tracks.get_mut(&done.track) {
            let key = if single { done.batch[0].emission.lane_key.as_str() } else { "" };
            if done.from != From::Redo {
                track.busy.remove(key);
            }
        }
        for (delivery, outcome) in done.batch.into_iter().zip(done.outcomes) {
            let label = match &outcome {
                Outcome::Delivered => "delivered",
                Outcome::Retry { .. } => "retry",
                Outcome::Refused { .. } => "refused",
            };
            metrics::counter!("chainweir_deliveries_total", "output" => output.to_string(), "outcome" => label)
                .increment(1);
            match outcome {
                Outcome::Delivered => {
                    self.succeeded();
                    self.settle(done.track, done.from, &delivery);
                }
                Outcome::Refused { why } => {
                    // It answered: it is not down.
                    self.failures_in_a_row = 0;
                    self.probe_at = None;
                    self.refused(done.track, done.from, &delivery, why);
                }
                Outcome::Retry { why, after } if single => {
                    self.failed(done.track, done.from, &delivery, why, after);
                }
                Outcome::Retry { why, after } => {
                    self.destination_failed(&why, after);
                    self.back_to_queue(done.track, done.from, delivery.offset);
                }
            }
        }
        if let Some(track) = self.tracks.get_mut(&done.track)
            && track.advance()
        {
            self.positions_moved = true;
        }
    }

    fn back_to_queue(&mut self, id: TrackId, from: From, offset: u64) {
        let Some(track) = self.tracks.get_mut(&id) else { return };
        match from {
            From::Redo => track.redo.push_front(offset),
            From::Window | From::Parked => {
                if let Some(slot) = track.slot(offset) {
                    slot.state = State::Queued;
                }
            }
        }
    }

    fn destination_failed(&mut self, why: &str, wish: Option<Duration>) {
        if self.failures_in_a_row == 0 {
            tracing::warn!(output = %self.settings.output, why, "a delivery failed; it is tried again");
        }
        self.failures_in_a_row += 1;
        if self.sink.shape().batch > 1 || self.failures_in_a_row >= DOWN_AFTER {
            let gap = probe_after(self.failures_in_a_row.saturating_sub(DOWN_AFTER), wish, rand::random());
            self.probe_at = Some(Instant::now() + gap);
        }
        self.show("failing", Some(why.to_owned()));
    }

    fn succeeded(&mut self) {
        let was_down = self.failures_in_a_row >= DOWN_AFTER;
        if self.failures_in_a_row > 0 {
            self.failures_in_a_row = 0;
            self.probe_at = None;
            self.show("ok", None);
        }
        if was_down {
            tracing::info!(output = %self.settings.output, "the destination is back");
            // What failed for the destination's sake need not wait for its turn on the schedule.
            self.wake_parked(false);
        }
        let mut status = self.status.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        status.delivered += 1;
        if status.state == "idle" {
            status.state = "ok".into();
        }
    }

    fn wake_parked(&mut self, stopped_too: bool) {
        for key in self.tracks.values_mut().flat_map(|t| t.parked.values_mut()) {
            if key.at.retry_at_ms.is_some() || stopped_too {
                key.at.retry_at_ms = Some(0);
            }
        }
    }

    fn resume(&mut self) {
        self.failures_in_a_row = 0;
        self.probe_at = None;
        self.wake_parked(true);
        // Dead letters may have been put back.
        self.routes_changed = true;
    }

    fn settle(&mut self, id: TrackId, from: From, delivery: &Delivery) {
        let output = self.settings.output.clone();
        let Some(track) = self.tracks.get_mut(&id) else { return };
        match from {
            From::Window => {
                if let Some(slot) = track.slot(delivery.offset) {
                    slot.state = State::Settled;
                    slot.delivery = None;
                }
            }
            From::Parked => {
                if let Some(parked) = track.parked.get_mut(&delivery.emission.lane_key) {
                    parked.at.next = delivery.offset + 1;
                    parked.at.attempts = 0;
                    parked.at.retry_at_ms = Some(0);
                    parked.moved = true;
                }
            }
            From::Redo => {
                self.pending.push(LaneWrite::Redone { output, track: id, offset: delivery.offset });
            }
        }
    }

    fn dead_letter(&mut self, id: TrackId, from: From, delivery: &Delivery, attempts: u32, why: String) {
        tracing::warn!(output = %self.settings.output, delivery = %delivery.id, stream = %delivery.emission.stream, why,
            "a delivery went to the dead letters; see 'chainweir dead list'");
        self.pending.push(LaneWrite::Dead {
            output: self.settings.output.clone(),
            track: id,
            offset: delivery.offset,
            delivery: delivery.id,
            attempts,
            why,
        });
        self.settle(id, from, delivery);
    }

    fn refused(&mut self, id: TrackId, from: From, delivery: &Delivery, why: String) {
        let attempts = self.attempts_so_far(id, from, delivery) + 1;
        if !self.settings.stop_on_refused || from == From::Redo {
            return self.dead_letter(id, from, delivery, attempts, why);
        }
        if self.sink.shape().batch > 1 {
            self.show("stopped", Some(why));
            self.back_to_queue(id, from, delivery.offset);
            // Until a person resumes it: a year is as good as for ever.
            self.probe_at = Some(Instant::now() + Duration::from_secs(365 * 86_400));
        } else {
            self.park(id, delivery, attempts, None, why);
        }
    }

    fn attempts_so_far(&self, id: TrackId, from: From, delivery: &Delivery) -> u32 {
        match from {
            From::Parked => self
                .tracks
                .get(&id)
                .and_then(|t| t.parked.get(&delivery.emission.lane_key))
                .map_or(0, |p| p.at.attempts),
            From::Window | From::Redo => 0,
        }
    }

    fn failed(&mut self, id: TrackId, from: From, delivery: &Delivery, why: String, wish: Option<Duration>) {
        self.destination_failed(&why, wish);
        if from == From::Redo {
            return self.dead_letter(id, from, delivery, 1, why);
        }
        // A destination that is down altogether uses up nobody's attempts.
        let down = self.failures_in_a_row > DOWN_AFTER;
        let attempts = self.attempts_so_far(id, from, delivery) + u32::from(!down);
        if attempts >= self.settings.attempts {
            return self.dead_letter(id, from, delivery, attempts, why);
        }
        let gap = after_failures(attempts, wish, rand::random());
        let retry_at_ms = now_ms() + gap.as_millis() as u64;
        self.park(id, delivery, attempts, Some(retry_at_ms), why);
    }

    fn park(&mut self, id: TrackId, delivery: &Delivery, attempts: u32, retry_at_ms: Option<u64>, why: String) {
        let lane_key = delivery.emission.lane_key.clone();
        let parked = Parked { lane_key: lane_key.clone(), next: delivery.offset, attempts, retry_at_ms, why };
        self.pending.push(LaneWrite::Park { output: self.settings.output.clone(), track: id, parked: parked.clone() });
        if let Some(track) = self.tracks.get_mut(&id) {
            track.leave_to_parked(&lane_key);
            track.parked.insert(lane_key, ParkedKey { at: parked, moved: false });
        }
    }

    fn dirty(&self) -> bool {
        self.positions_moved || !self.pending.is_empty()
    }

    /// Writes down what must last: parked keys and dead letters before the positions that pass them.
    fn flush(&mut self) {
        if !self.dirty() || !self.flushing.is_empty() || Instant::now() < self.flush_at {
            return;
        }
        self.flush_at = Instant::now() + FLUSH_EVERY;
        let mut writes = std::mem::take(&mut self.pending);
        self.positions_moved = false;
        let output = &self.settings.output;
        for (id, track) in &mut self.tracks {
            for key in track.parked.values_mut().filter(|k| k.moved) {
                key.moved = false;
                writes.push(LaneWrite::Park { output: output.clone(), track: *id, parked: key.at.clone() });
            }
            writes.push(LaneWrite::Position { output: output.clone(), track: *id, position: track.position });
        }
        let journal = self.journal.clone();
        self.flushing.spawn(async move {
            journal.commit(Write::Lane(writes.clone())).await.map(drop).map_err(|error| (error, writes))
        });
    }

    fn flushed(&mut self, flushed: Result<Result<(), (JournalError, Vec<LaneWrite>)>, tokio::task::JoinError>) {
        match flushed {
            Ok(Ok(())) => {}
            Ok(Err((error, mut writes))) => {
                // Nothing is lost by waiting: until it is written, a crash only repeats.
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

    async fn count(&mut self) {
        if Instant::now() < self.count_at || self.stopping {
            return;
        }
        self.count_at = Instant::now() + COUNT_EVERY;
        let (journal, output) = (self.journal.clone(), self.settings.output.clone());
        let positions: Vec<(TrackId, u64)> = self.tracks.iter().map(|(id, t)| (*id, t.position)).collect();
        let counted = tokio::task::spawn_blocking(move || {
            let mut backlog = 0;
            for (track, position) in positions {
                backlog += journal.backlog(track, position)?;
            }
            let dead = journal.dead(&DeadFilter { output: Some(output), ..DeadFilter::default() }, 0, 10_000)?;
            Ok::<_, JournalError>((backlog, dead.len() as u64))
        });
        let parked = self.tracks.values().map(|t| t.parked.len() as u64).sum();
        if let Ok(Ok((backlog, dead))) = counted.await {
            self.backlog.store(backlog, Ordering::Relaxed);
            metrics::gauge!("chainweir_lane_backlog", "output" => self.settings.output.to_string()).set(backlog as f64);
            let mut status = self.status.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            status.backlog = backlog;
            status.parked = parked;
            status.dead = dead;
        }
    }
}
