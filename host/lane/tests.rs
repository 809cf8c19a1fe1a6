//! The lane's promises, with a scripted destination over a real journal.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy_primitives::B256;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{Lane, Routed, Settings};
use crate::journal::sqlite::SqliteJournal;
use crate::journal::{ConsumerId, DeadFilter, Journal, LaneWrite, NewEntry, Step, TrackId, Write};
use crate::model::{
    BlockRef, ChainId, ContentType, Delivery, DeliveryId, EmissionId, EventPosition, Op, Outcome, OutputName,
    PluginName, StreamId, StreamSpec, When,
};
use crate::sink::{Shape, Sink, SinkError, Track};

const CHAIN: ChainId = ChainId(7);
/// Far beyond what anything here takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn block(number: u64, branch: u64) -> BlockRef {
    let hash = |n: u64| B256::from_slice(&[branch.to_be_bytes().repeat(3).as_slice(), &n.to_be_bytes()].concat());
    BlockRef { chain: CHAIN, number, hash: hash(number), parent: hash(number - 1), time: number }
}

type Answer = Box<dyn Fn(&Delivery, usize) -> Option<Outcome> + Send + Sync>;

/// Answers by script: `None` hangs until the sink is let go.
struct Fake {
    shape: Shape,
    fill: Option<crate::sink::Fill>,
    /// What each delivery is answered, at its n-th attempt.
    answer: Mutex<Answer>,
    go: Notify,
    position: Option<u64>,
    unready: Mutex<Vec<StreamId>>,
    /// Where it is set, a stream is prepared when it is told.
    held: Option<Notify>,
    /// Every attempt: its time, its batch's first offset, the delivery, and the answer.
    heard: Mutex<Vec<(Instant, Delivery, Option<Outcome>)>>,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

impl Fake {
    fn new(batch: usize, concurrency: usize) -> Self {
        Self {
            shape: Shape { batch, concurrency },
            fill: None,
            answer: Mutex::new(Box::new(|_, _| Some(Outcome::Delivered))),
            go: Notify::new(),
            position: None,
            unready: Mutex::default(),
            held: None,
            heard: Mutex::default(),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
        }
    }
    fn answer(&self, f: impl Fn(&Delivery, usize) -> Option<Outcome> + Send + Sync + 'static) {
        *self.answer.lock().unwrap() = Box::new(f);
    }
    fn heard(&self) -> Vec<(Instant, Delivery, Option<Outcome>)> {
        self.heard.lock().unwrap().clone()
    }
    fn delivered(&self) -> Vec<Delivery> {
        self.heard().into_iter().filter(|h| h.2 == Some(Outcome::Delivered)).map(|h| h.1).collect()
    }
}

fn panics() -> Option<Outcome> {
    Some(Outcome::Refused { why: "panic".into() })
}

fn retry() -> Option<Outcome> {
    Some(Outcome::Retry { why: "503".into(), after: None })
}

#[async_trait::async_trait]
impl Sink for Fake {
    fn shape(&self) -> Shape {
        self.shape
    }
    fn fill(&self) -> Option<crate::sink::Fill> {
        self.fill
    }
    async fn prepare(&self, stream: &StreamId, _spec: &StreamSpec) -> Result<(), SinkError> {
        if let Some(held) = &self.held {
            held.notified().await;
        }
        if self.unready.lock().unwrap().contains(stream) {
            return Err(SinkError::Refused { why: "no such table".into() });
        }
        Ok(())
    }
    async fn position(&self, _track: &Track) -> Result<Option<u64>, SinkError> {
        Ok(self.position)
    }
    async fn deliver(&self, _track: &Track, batch: &[Delivery]) -> Vec<Outcome> {
        let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_under_way.fetch_max(now, Ordering::SeqCst);
        let mut outcomes = vec![];
        for delivery in batch {
            let outcome = {
                let mut heard = self.heard.lock().unwrap();
                let attempt = heard.iter().filter(|h| h.1.id == delivery.id).count() + 1;
                let outcome = self.answer.lock().unwrap()(delivery, attempt);
                heard.push((Instant::now(), delivery.clone(), outcome.clone()));
                outcome
            };
            if outcome == panics() {
                panic!("a bug in a sink");
            }
            match outcome {
                Some(outcome) => outcomes.push(outcome),
                None => {
                    self.go.notified().await;
                    outcomes.push(Outcome::Retry { why: "timed out".into(), after: None });
                }
            }
            if self.shape.batch > 1 && matches!(outcomes.last(), Some(Outcome::Retry { .. })) {
                outcomes.resize(batch.len(), Outcome::Retry { why: "not reached".into(), after: None });
                break;
            }
        }
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        outcomes
    }
}

struct House {
    _folder: tempfile::TempDir,
    journal: Arc<SqliteJournal>,
    consumer: ConsumerId,
    tracks: Vec<TrackId>,
    path: Vec<BlockRef>,
    branch: u64,
    ordinal: u32,
    finalized: u64,
}

impl House {
    async fn new(tracks: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let journal = SqliteJournal::open(&folder.path().join("journal.db")).unwrap();
        let plugin = PluginName::new("p").unwrap();
        let write = Write::Consumer { plugin: plugin.clone(), chain: CHAIN, state_version: 1 };
        let consumer = ConsumerId(journal.commit(write).await.unwrap().id);
        let mut ids = vec![];
        for n in 0..tracks {
            let stream: StreamId = format!("p.s{n}").parse().unwrap();
            let spec = StreamSpec { name: stream.stream.clone(), description: String::new(), schema: None };
            ids.push(TrackId(journal.commit(Write::Track { stream, chain: CHAIN, spec }).await.unwrap().id));
        }
        Self { _folder: folder, journal, consumer, tracks: ids, path: vec![], branch: 0, ordinal: 0, finalized: 0 }
    }

    /// One more block, with an entry for each (track, lane key).
    async fn block(&mut self, entries: &[(usize, &str)]) {
        self.block_with(entries, 0).await;
    }

    async fn block_with(&mut self, entries: &[(usize, &str)], safe: u64) {
        let from = self.path.last().copied();
        let at = block(from.map_or(10, |f| f.number + 1), self.branch);
        let entries = entries.iter().map(|(track, key)| {
            self.ordinal += 1;
            let stream: StreamId = format!("p.s{track}").parse().unwrap();
            NewEntry {
                track: self.tracks[*track],
                emission: EmissionId::of(CHAIN, &at.hash, EventPosition::Block, &stream, self.ordinal, 0),
                block: at,
                position: EventPosition::Block,
                ordinal: self.ordinal,
                lane_key: (*key).to_owned(),
                content_type: ContentType::Json,
                payload: self.ordinal.to_string().into_bytes(),
            }
        });
        let step = Step {
            consumer: self.consumer,
            from,
            cursor: at,
            undo: true,
            aside: false,
            said: None,
            safe,
            finalized: self.finalized.min(at.number),
            state_version: 1,
            state: vec![],
            entries: entries.collect(),
            poison: vec![],
            asks: vec![],
            taken: None,
        };
        self.path.push(at);
        self.journal.commit(Write::Step(step)).await.unwrap();
    }

    /// Orphans the last blocks.
    async fn reorg(&mut self, depth: usize) {
        if depth == 0 || self.path.len() <= depth {
            return;
        }
        let from = *self.path.last().unwrap();
        self.path.truncate(self.path.len() - depth);
        let to = *self.path.last().unwrap();
        self.branch += 1;
        self.journal.commit(Write::Undo { consumer: self.consumer, from, to }).await.unwrap();
    }

    /// As a life before left it: the first entry of each key has failed once, and all is passed.
    async fn left_parked(&self, keys: &[&str], retry_at_ms: Option<u64>) {
        let (_, entries) = self.journal.entries(self.tracks[0], 0, 1_000, None).unwrap();
        let parked = keys.iter().map(|key| {
            let next = entries.iter().find(|entry| entry.lane_key == *key).unwrap().offset;
            let (lane_key, why) = ((*key).to_owned(), "503".into());
            let parked = crate::journal::Parked { lane_key, next, attempts: 1, retry_at_ms, why };
            LaneWrite::Park { output: output(), track: self.tracks[0], parked }
        });
        let position = entries.last().unwrap().offset;
        let all = LaneWrite::Position { output: output(), track: self.tracks[0], position };
        self.journal.commit(Write::Lane(parked.chain([all]).collect())).await.unwrap();
    }

    fn routes(&self, when: When) -> Arc<Vec<Routed>> {
        let routed = self.journal.tracks().unwrap().into_iter().map(|track| Routed { track, when });
        Arc::new(routed.collect())
    }

    fn start(&self, sink: &Arc<Fake>, when: When) -> Lane {
        self.start_with(sink, when, |_| {})
    }

    fn start_with(&self, sink: &Arc<Fake>, when: When, change: impl Fn(&mut Settings)) -> Lane {
        let mut settings = Settings {
            output: output(),
            kind: "fake".into(),
            attempts: 3,
            stop_on_refused: false,
            disable_after: Duration::MAX,
        };
        change(&mut settings);
        let (send, routed) = watch::channel(self.routes(when));
        // Routes that nobody changes.
        std::mem::forget(send);
        Lane::start(settings, sink.clone(), self.journal.clone(), routed)
    }
}

fn in_an_hour() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64 + 3_600_000
}

fn output() -> OutputName {
    OutputName::new("out").unwrap()
}

async fn until(what: &str, f: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !f() {
        assert!(began.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Order within a key, pairing, and the same id for the same thing.
fn check_order(heard: &[(Instant, Delivery, Option<Outcome>)]) {
    let mut last_first: HashMap<(StreamId, String), u64> = HashMap::new();
    let mut seen: BTreeSet<[u8; 16]> = BTreeSet::new();
    let mut ids: BTreeMap<u64, DeliveryId> = BTreeMap::new();
    for (_, d, _) in heard {
        assert_eq!(*ids.entry(d.offset).or_insert(d.id), d.id, "a repeat has the same id");
        if !seen.insert(d.id.0) {
            continue;
        }
        let key = (d.emission.stream.clone(), d.emission.lane_key.clone());
        let before = last_first.insert(key, d.offset).unwrap_or(0);
        assert!(before < d.offset, "{} overtook {before} of key {}", d.offset, d.emission.lane_key);
        let apply = DeliveryId::of(d.emission.id, Some(&output()), Op::Apply);
        assert!(d.op == Op::Apply || seen.contains(&apply.0), "a retraction of what was never attempted");
    }
}

#[tokio::test]
async fn nothing_is_lost_or_overtaken_through_failures_reorgs_and_restarts() {
    let seed: u64 = std::env::var("CHAINWEIR_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("CHAINWEIR_SEED={seed}");
    for round in 0..24 {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_add(round));
        let when = [When::Latest, When::Confirmations(1), When::Confirmations(3), When::Safe][round as usize % 4];
        let (batch, concurrency) = if rng.random_bool(0.3) { (5, 1) } else { (1, [1, 4][rng.random_range(0..2)]) };
        let sink = Arc::new(Fake::new(batch, concurrency));
        let salt: u64 = rng.random();
        sink.answer(move |d, attempt| {
            let roll = (d.offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt.rotate_left(attempt as u32)) >> 60;
            match (roll, attempt) {
                (0..3, ..4) => retry(),
                (3, _) if d.offset % 2 == 0 => Some(Outcome::Refused { why: "400".into() }),
                _ => Some(Outcome::Delivered),
            }
        });
        let mut house = House::new(2).await;
        let mut lane = house.start(&sink, when);
        let keys = ["a", "b", "c"];
        // Offsets of dead letters that a person sent again, or gave up.
        let (mut put_back, mut dropped) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..60 {
            match rng.random_range(0..12) {
                0..7 => {
                    let entries: Vec<(usize, &str)> = (0..rng.random_range(0..4))
                        .map(|_| (rng.random_range(0..2), keys[rng.random_range(0..keys.len())]))
                        .collect();
                    let tip = house.path.last().map_or(10, |b| b.number);
                    house.block_with(&entries, if rng.random_bool(0.3) { tip.saturating_sub(2) } else { 0 }).await;
                }
                7..9 => house.reorg(rng.random_range(1..6)).await,
                9 => {
                    let dead = house.journal.dead(&DeadFilter::default(), 0, 100).unwrap();
                    let Some(letter) = dead.get(rng.random_range(0..dead.len().max(1))) else { continue };
                    let again = rng.random_bool(0.8);
                    if again {
                        put_back.insert(letter.offset)
                    } else {
                        dropped.insert(letter.offset)
                    };
                    house.journal.commit(Write::Lane(vec![LaneWrite::Bury { id: letter.id, again }])).await.unwrap();
                    lane.redo().notify_one();
                }
                10 => {
                    let mut unready = sink.unready.lock().unwrap();
                    if unready.pop().is_none() {
                        unready.push(format!("p.s{}", rng.random_range(0..2)).parse().unwrap());
                    }
                }
                _ if rng.random_bool(0.5) => {
                    lane.stop().await;
                    lane = house.start(&sink, when);
                }
                // As a crash: what is under way is never heard the end of.
                _ => {
                    lane.task.abort();
                    drop((&mut lane.task).await);
                    house.journal.commit(Write::Lane(vec![])).await.unwrap();
                    lane = house.start(&sink, when);
                }
            }
            if rng.random_bool(0.5) {
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..8))).await;
            }
            if rng.random_bool(0.2) {
                lane.resume();
            }
        }
        for _ in 0..4 {
            let tip = house.path.last().map_or(10, |b| b.number);
            house.block_with(&[], tip + 1).await;
        }
        sink.unready.lock().unwrap().clear();
        // All is due now that is not orphaned. What must have been heard is judged by the journal alone.
        let settled = || {
            lane.resume();
            house.tracks.iter().all(|track| {
                let last = house.journal.entries(*track, 0, 100_000, None).unwrap().1.last().map_or(0, |e| e.offset);
                house.journal.position(&output(), *track).unwrap().unwrap_or(0) >= last
                    && house.journal.parked(&output(), *track).unwrap().is_empty()
                    && house.journal.redo(&output(), *track).unwrap().is_empty()
            })
        };
        until("all is settled", settled).await;
        lane.stop().await;
        let heard = sink.heard();
        check_order(&heard);
        let delivered: BTreeSet<u64> = sink.delivered().iter().map(|d| d.offset).collect();
        let dead: BTreeMap<u64, String> = house
            .journal
            .dead(&DeadFilter::default(), 0, 100_000)
            .unwrap()
            .into_iter()
            .map(|d| (d.offset, d.why))
            .collect();
        for track in &house.tracks {
            let (marks, entries) = house.journal.entries(*track, 0, 100_000, None).unwrap();
            for e in entries {
                let settled = delivered.contains(&e.offset)
                    || dropped.contains(&e.offset)
                    || dead.get(&e.offset).is_some_and(|why| !why.is_empty());
                let due = super::due::due(&e, when, &marks);
                // Taken back before it was sent again: it is not said any more.
                let void = put_back.contains(&e.offset) && e.op == Op::Apply && e.retracted.is_some();
                assert!(void || settled == (due == super::due::Due::Now), "round {round} {when:?} {due:?} {e:?}");
                // A retraction follows what was heard, whatever the lane thought due when it spoke.
                if e.op == Op::Apply && heard.iter().any(|h| h.1.offset == e.offset) && e.retracted.is_some() {
                    let back = DeliveryId::of(e.emission, Some(&output()), Op::Retract);
                    assert!(heard.iter().any(|h| h.1.id == back), "round {round}: never taken back: {e:?}");
                    let last = heard.iter().rfind(|h| h.1.emission.id == e.emission).map(|h| h.1.op);
                    assert_eq!(last, Some(Op::Retract), "round {round}: said again after it was taken back: {e:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn what_is_settled_is_in_the_journal_when_it_is_asked_for() {
    let mut house = House::new(1).await;
    let sink = Arc::new(Fake::new(1, 1));
    let lane = house.start(&sink, When::Latest);
    // The first position is written at once; each of the others would have its time.
    for n in 1..=20 {
        house.block(&[(0, "a")]).await;
        until("it is delivered", || lane.status().delivered == n).await;
        assert!(lane.noted().await);
        let last = sink.delivered().last().map(|d| d.offset);
        assert_eq!(house.journal.position(&output(), house.tracks[0]).unwrap(), last);
    }
    // Nothing is new; and nobody is left waiting by a lane that has ended.
    assert!(lane.noted().await);
    let late = lane.noted();
    lane.stop().await;
    assert!(!late.await);
}

#[tokio::test]
async fn what_was_due_once_is_owed_though_the_cursor_was_walked_back() {
    let mut house = House::new(1).await;
    let sink = Arc::new(Fake::new(1, 4));
    sink.answer(|_, attempt| if attempt == 1 { retry() } else { Some(Outcome::Delivered) });
    house.block(&[(0, "a")]).await;
    house.block(&[]).await;
    house.block(&[]).await;
    let lane = house.start(&sink, When::Confirmations(3));
    until("it failed once", || !sink.heard().is_empty()).await;
    // Block 10 stays; on the way it has two confirmations only, and the parked key is tried then.
    house.reorg(1).await;
    lane.resume();
    until("it is delivered", || sink.delivered().len() == 1).await;
    // Orphaned after all: taken back, although it never was deeper than it was then.
    house.block(&[]).await;
    house.reorg(1).await;
    assert_eq!(house.path.len(), 2);
    house.path.insert(0, block(9, 0));
    house.reorg(2).await;
    until("it is taken back", || sink.delivered().last().is_some_and(|d| d.op == Op::Retract)).await;
    lane.stop().await;
}

#[tokio::test]
async fn on_another_branch_confirmations_are_counted_anew() {
    let mut house = House::new(1).await;
    for _ in 0..20 {
        house.block(&[]).await;
    }
    house.reorg(15).await;
    house.block(&[(0, "a")]).await;
    house.reorg(1).await;
    house.block(&[(0, "b")]).await;
    let sink = Arc::new(Fake::new(1, 4));
    let lane = house.start(&sink, When::Confirmations(3));
    house.block(&[]).await;
    house.block(&[]).await;
    until("one is delivered", || !sink.heard().is_empty()).await;
    lane.stop().await;
    let keys: Vec<String> = sink.heard().iter().map(|h| h.1.emission.lane_key.clone()).collect();
    assert_eq!(keys, ["b"], "the orphan was never that deep: nobody hears of it");
}

#[tokio::test]
async fn a_key_that_hangs_or_fails_delays_no_other() {
    let mut house = House::new(1).await;
    let sink = Arc::new(Fake::new(1, 4));
    sink.answer(|d, _| match d.emission.lane_key.as_str() {
        "hangs" => None,
        "fails" => retry(),
        _ => Some(Outcome::Delivered),
    });
    let lane = house.start(&sink, When::Latest);
    let mut worst = Duration::ZERO;
    for n in 0..150 {
        let began = Instant::now();
        house.block(&[(0, "hangs"), (0, "fails"), (0, "good")]).await;
        until("the good one is delivered", || sink.delivered().len() > n).await;
        worst = worst.max(began.elapsed());
    }
    // Half of a call's longest would be a wait; the disk alone may take seconds.
    assert!(worst < Duration::from_secs(10), "{worst:?}");
    sink.go.notify_waiters();
    sink.answer(|_, _| Some(Outcome::Delivered));
    lane.stop().await;
    check_order(&sink.heard());
}

#[tokio::test]
async fn a_stream_that_is_not_ready_holds_up_no_other() {
    for batch in [1, 10] {
        let mut house = House::new(3).await;
        let sink = Arc::new(Fake::new(batch, 1));
        sink.unready.lock().unwrap().push("p.s1".parse().unwrap());
        let lane = house.start(&sink, When::Latest);
        for n in 1..=20 {
            house.block(&[(0, "a"), (1, "a"), (2, "a")]).await;
            until("the others are delivered", || sink.delivered().len() >= 2 * n).await;
        }
        assert!(lane.status().why.unwrap().contains("no such table"));
        sink.unready.lock().unwrap().clear();
        lane.resume();
        until("all are delivered", || sink.delivered().len() == 60).await;
        until("it is well", || lane.status().state == "ok").await;
        lane.stop().await;
    }
}

#[tokio::test]
async fn a_batch_stops_at_the_first_retry_and_the_other_tracks_go_on() {
    let mut house = House::new(2).await;
    let sink = Arc::new(Fake::new(10, 1));
    for _ in 0..50 {
        house.block(&[(0, "a"), (1, "a")]).await;
    }
    sink.answer(|d, _| {
        if d.emission.stream.stream.as_str() == "s0" && d.offset == 5 { retry() } else { Some(Outcome::Delivered) }
    });
    let lane = house.start(&sink, When::Latest);
    until("the other track is delivered", || sink.delivered().len() == 52).await;
    sink.answer(|_, _| Some(Outcome::Delivered));
    until("all are delivered", || sink.delivered().len() == 100).await;
    lane.stop().await;
    check_order(&sink.heard());
}

#[tokio::test]
async fn a_destination_that_is_down_is_probed_one_at_a_time_and_drains_when_it_is_back() {
    let mut house = House::new(1).await;
    let sink = Arc::new(Fake::new(1, 8));
    sink.answer(|_, _| retry());
    let keys: Vec<String> = (0..200).map(|n| format!("k{n}")).collect();
    let entries: Vec<(usize, &str)> = keys.iter().map(|k| (0, k.as_str())).collect();
    house.block(&entries).await;
    let lane = house.start(&sink, When::Latest);
    until("it is found down", || sink.heard().len() >= 10).await;
    sink.most_under_way.store(0, Ordering::SeqCst);
    let before = sink.heard().len();
    until("it is probed", || sink.heard().len() >= before + 2).await;
    assert_eq!(sink.most_under_way.load(Ordering::SeqCst), 1);
    assert!(sink.heard().len() < 20, "{}", sink.heard().len());
    sink.answer(|_, _| Some(Outcome::Delivered));
    until("all are delivered", || sink.delivered().len() == 200).await;
    lane.stop().await;
    assert!(house.journal.dead(&DeadFilter::default(), 0, 10).unwrap().is_empty());
}

#[tokio::test]
async fn what_is_refused_or_exhausted_is_a_dead_letter_and_goes_again_once() {
    let mut house = House::new(1).await;
    let sink = Arc::new(Fake::new(1, 4));
    sink.answer(|d, _| match d.emission.lane_key.as_str() {
        "poison" => Some(Outcome::Refused { why: "410 gone".into() }),
        "panics" => panics(),
        _ => Some(Outcome::Delivered),
    });
    house.block(&[(0, "poison"), (0, "good"), (0, "panics"), (0, "poison")]).await;
    let lane = house.start_with(&sink, When::Latest, |s| s.attempts = 1);
    let dead = || house.journal.dead(&DeadFilter::default(), 0, 10).unwrap();
    until("three are dead", || dead().len() == 3).await;
    assert_eq!(sink.delivered().len(), 1);
    assert_eq!(dead().iter().filter(|d| d.why == "410 gone").count(), 2);
    sink.answer(|_, _| Some(Outcome::Delivered));
    let before = sink.heard().len();
    let again = dead().iter().map(|d| LaneWrite::Bury { id: d.id, again: true }).collect();
    house.journal.commit(Write::Lane(again)).await.unwrap();
    for _ in 0..5 {
        lane.resume();
        tokio::task::yield_now().await;
    }
    until("all went again", || sink.delivered().len() == 4).await;
    until("it is written down", || house.journal.redo(&output(), house.tracks[0]).unwrap().is_empty()).await;
    lane.stop().await;
    assert_eq!(sink.heard().len(), before + 3, "once each");
    assert!(dead().is_empty());
}

#[tokio::test]
async fn the_backlog_is_what_is_due_and_not_delivered_wherever_it_waits() {
    for batch in [1, 10] {
        let mut house = House::new(2).await;
        let sink = Arc::new(Fake::new(batch, 4));
        sink.answer(|_, _| retry());
        sink.unready.lock().unwrap().push("p.s1".parse().unwrap());
        // More than a window holds, and more than is remembered of a parked key.
        house.block(&[(0, "a"); 3_000]).await;
        house.block(&[(1, "a"); 70]).await;
        house.block(&[]).await;
        house.block(&[(0, "a"); 50]).await;
        // The last fifty are not due; beyond a full window nobody has looked.
        let expected = 3_070 + if batch > 1 { 50 } else { 0 };
        let mut lane = house.start_with(&sink, When::Confirmations(3), |s| s.attempts = 1_000);
        until("it is counted", || lane.status().backlog == expected).await;
        assert_eq!(lane.waiting().entries, expected);
        lane.stop().await;
        lane = house.start_with(&sink, When::Confirmations(3), |s| s.attempts = 1_000);
        until("it is counted after a restart", || lane.status().backlog == expected).await;
        sink.unready.lock().unwrap().clear();
        sink.answer(|_, _| Some(Outcome::Delivered));
        until("it is delivered", || {
            lane.resume();
            sink.delivered().len() == 3_070
        })
        .await;
        until("nothing is counted", || lane.status().backlog == 0).await;
        lane.stop().await;
    }
}

#[tokio::test]
async fn what_waits_for_a_person_is_not_woken_by_dead_letters_that_are_sent_again() {
    let mut house = House::new(1).await;
    let sink = Arc::new(Fake::new(1, 1));
    sink.answer(|_, _| Some(Outcome::Refused { why: "401".into() }));
    house.block(&[(0, "dead")]).await;
    let lane = house.start(&sink, When::Latest);
    until("one is dead", || !house.journal.dead(&DeadFilter::default(), 0, 10).unwrap().is_empty()).await;
    lane.stop().await;
    house.block(&[(0, "stopped")]).await;
    let lane = house.start_with(&sink, When::Latest, |s| s.stop_on_refused = true);
    until("one is stopped", || lane.status().state == "stopped").await;
    sink.answer(|_, _| Some(Outcome::Delivered));
    let dead = house.journal.dead(&DeadFilter::default(), 0, 10).unwrap();
    house.journal.commit(Write::Lane(vec![LaneWrite::Bury { id: dead[0].id, again: true }])).await.unwrap();
    lane.redo().notify_one();
    until("the dead one is delivered", || sink.delivered().len() == 1).await;
    until("it is written down", || house.journal.redo(&output(), house.tracks[0]).unwrap().is_empty()).await;
    assert_eq!(house.journal.parked(&output(), house.tracks[0]).unwrap().len(), 1);
    lane.resume();
    until("the other is delivered", || sink.delivered().len() == 2).await;
    lane.stop().await;
}

#[tokio::test]
async fn a_refused_delivery_can_stop_its_lane_until_a_person_resumes_it() {
    for batch in [1, 10] {
        let mut house = House::new(1).await;
        let sink = Arc::new(Fake::new(batch, 1));
        sink.answer(|d, _| {
            if d.offset == 2 { Some(Outcome::Refused { why: "401".into() }) } else { Some(Outcome::Delivered) }
        });
        house.block(&[(0, "a"), (0, "a"), (0, "a")]).await;
        let lane = house.start_with(&sink, When::Latest, |s| s.stop_on_refused = true);
        until("it is stopped", || lane.status().state == "stopped").await;
        sink.answer(|_, _| Some(Outcome::Delivered));
        lane.resume();
        until("all are delivered", || sink.delivered().iter().map(|d| d.offset).collect::<BTreeSet<_>>().len() == 3)
            .await;
        lane.stop().await;
    }
}

#[tokio::test]
async fn the_destinations_own_position_is_believed_and_a_stop_writes_ours() {
    let mut house = House::new(1).await;
    let sink = Arc::new(Fake { position: Some(3), ..Fake::new(10, 1) });
    house.block(&[(0, "a"); 6]).await;
    let lane = house.start(&sink, When::Latest);
    until("the rest is delivered", || sink.delivered().len() == 3).await;
    lane.stop().await;
    assert_eq!(sink.heard()[0].1.offset, 4);
    assert_eq!(house.journal.position(&output(), house.tracks[0]).unwrap(), Some(6));
}

/// Counts how often a lane asks the journal anything: what spins, asks.
#[tokio::test]
async fn a_lane_with_nothing_to_do_sleeps() {
    let mut house = House::new(2).await;
    let sink = Arc::new(Fake::new(1, 4));
    sink.answer(|d, _| if d.emission.lane_key == "bad" { retry() } else { Some(Outcome::Delivered) });
    house.block(&[(0, "good"), (0, "bad")]).await;
    let lane = house.start_with(&sink, When::Latest, |s| s.attempts = 100);
    until("one is parked", || house.journal.parked(&output(), house.tracks[0]).unwrap().len() == 1).await;
    until("it is quiet", || lane.status().backlog == 1).await;
    let turns = super::task::TURNS.with(|t| t.get());
    tokio::time::sleep(Duration::from_millis(2000)).await;
    let turns = super::task::TURNS.with(|t| t.get()) - turns;
    lane.stop().await;
    assert!(turns < 30, "{turns} turns in two seconds");
}

#[tokio::test]
async fn what_other_plugins_write_is_not_read_for() {
    let mut house = House::new(1).await;
    let write = Write::Consumer { plugin: PluginName::new("q").unwrap(), chain: CHAIN, state_version: 1 };
    let mut other = House::new(0).await;
    other.consumer = ConsumerId(house.journal.commit(write).await.unwrap().id);
    other.journal = house.journal.clone();
    let sink = Arc::new(Fake::new(1, 1));
    let lane = house.start(&sink, When::Latest);
    house.block(&[(0, "a")]).await;
    other.block(&[]).await;
    until("it is delivered and noted", || {
        house.journal.position(&output(), house.tracks[0]).unwrap().is_some_and(|position| position > 0)
    })
    .await;
    let reads = super::task::READS.get();
    for _ in 0..200 {
        other.block(&[]).await;
    }
    let read = super::task::READS.get() - reads;
    assert!(read <= 1, "nothing of its own came, and the journal was read {read} times");
    house.block(&[(0, "a")]).await;
    until("its own comes at once all the same", || sink.delivered().len() == 2).await;
    lane.stop().await;
}

#[tokio::test]
async fn a_start_says_so_until_it_is_known_what_waits_and_resume_is_for_that_too() {
    let mut house = House::new(1).await;
    house.block(&[(0, "a"), (0, "b")]).await;
    // Before a restart, one was refused and waits for a person.
    house.left_parked(&["a"], None).await;
    let start = || {
        let mut sink = Fake::new(1, 4);
        sink.held = Some(Notify::new());
        let sink = Arc::new(sink);
        (house.start(&sink, When::Latest), sink)
    };

    let (lane, _) = start();
    assert_eq!(lane.status().state, "starting");
    // Counted before it is opened, and not idle for that.
    until("it is counted", || lane.status().parked == 1).await;
    assert_eq!((lane.status().state.as_str(), lane.status().backlog), ("starting", 1));
    lane.stop().await;

    let (lane, sink) = start();
    sink.held.as_ref().unwrap().notify_one();
    until("it is opened", || lane.status().state == "idle").await;
    assert_eq!((lane.status().parked, sink.heard().len()), (1, 0));
    lane.stop().await;

    let (lane, sink) = start();
    lane.resume();
    sink.held.as_ref().unwrap().notify_one();
    until("what waited is delivered", || sink.delivered().len() == 1).await;
    until("none is parked", || lane.status().parked == 0).await;
    assert_eq!(lane.status().state, "ok");
    lane.stop().await;
}

/// Somebody mends the destination and starts all anew, or it comes back a little later.
#[tokio::test]
async fn a_destination_that_is_back_after_a_restart_does_not_wait_for_the_schedule() {
    let mut house = House::new(1).await;
    house.block(&[(0, "a"), (0, "b"), (0, "c")]).await;
    house.left_parked(&["a", "b", "c"], Some(in_an_hour())).await;
    let sink = Arc::new(Fake::new(1, 4));
    let down = Arc::new(AtomicUsize::new(2));
    let left = down.clone();
    sink.answer(move |_, _| {
        let fails = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if fails { retry() } else { Some(Outcome::Delivered) }
    });
    let lane = house.start(&sink, When::Latest);
    until("all is delivered", || sink.delivered().len() == 3).await;
    let heard: Vec<_> = sink.heard().into_iter().map(|h| h.1.emission.lane_key.clone()).collect();
    assert_eq!((heard.len(), &heard[0], &heard[1]), (5, &heard[2], &heard[2]), "one alone until it is taken");
    until("none is parked", || house.journal.parked(&output(), house.tracks[0]).unwrap().is_empty()).await;
    lane.stop().await;
}

#[tokio::test]
async fn a_key_that_fails_alone_loses_no_attempt_by_restarts() {
    let mut house = House::new(1).await;
    house.block(&[(0, "a")]).await;
    let at = in_an_hour();
    house.left_parked(&["a"], Some(at)).await;
    let sink = Arc::new(Fake::new(1, 4));
    sink.answer(|d, _| if d.emission.lane_key == "a" { retry() } else { Some(Outcome::Delivered) });
    for restart in 1..=5 {
        let before = sink.heard().len();
        let lane = house.start(&sink, When::Latest);
        until("it is tried", || sink.heard().len() > before).await;
        house.block(&[(0, "b")]).await;
        until("the others are not held up", || sink.delivered().len() == restart).await;
        lane.stop().await;
    }
    let parked = house.journal.parked(&output(), house.tracks[0]).unwrap();
    assert_eq!((parked[0].attempts, parked[0].retry_at_ms), (1, Some(at)));
}

#[tokio::test]
async fn ten_thousand_parked_keys_are_retried_without_reading_all_for_each() {
    let mut house = House::new(1).await;
    let keys: Vec<String> = (0..10_000).map(|n| format!("k{n}")).collect();
    for _ in 0..3 {
        let entries: Vec<(usize, &str)> = keys.iter().map(|k| (0, k.as_str())).collect();
        house.block(&entries).await;
    }
    // As if all of them had failed at their first delivery, before a restart.
    let parked = |n: usize| crate::journal::Parked {
        lane_key: keys[n].clone(),
        next: n as u64 + 1,
        attempts: 1,
        retry_at_ms: Some(0),
        why: "503".into(),
    };
    let track = house.tracks[0];
    let mut writes: Vec<_> =
        (0..10_000).map(|n| LaneWrite::Park { output: output(), track, parked: parked(n) }).collect();
    writes.push(LaneWrite::Position { output: output(), track, position: 30_000 });
    house.journal.commit(Write::Lane(writes)).await.unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let (sink, counted) = (Arc::new(Counting { count: count.clone() }), count.clone());
    let (_send, routed) = watch::channel(house.routes(When::Latest));
    let settings = Settings {
        output: output(),
        kind: "fake".into(),
        attempts: 3,
        stop_on_refused: false,
        disable_after: Duration::MAX,
    };
    let began = Instant::now();
    let lane = Lane::start(settings, sink, house.journal.clone(), routed);
    until("all are delivered", || counted.load(Ordering::SeqCst) == 30_000).await;
    eprintln!("30,000 deliveries of 10,000 parked keys in {:?}", began.elapsed());
    until("none is parked", || house.journal.parked(&output(), track).unwrap().is_empty()).await;
    lane.stop().await;
    assert_eq!(count.load(Ordering::SeqCst), 30_000);
}

/// A destination that keeps its own position moves it with the next batch: after a crash nobody would ask for the refused one.
#[tokio::test]
async fn what_a_batch_refused_is_written_down_before_the_next_batch_goes() {
    let mut house = House::new(1).await;
    let sink = Arc::new(Fake::new(5, 1));
    let journal = house.journal.clone();
    sink.answer(move |delivery, _| {
        if delivery.offset > 5 {
            let letters = journal.dead(&DeadFilter::default(), 0, 10).unwrap();
            assert!(letters.iter().any(|letter| letter.offset == 3), "it goes before 3 is a dead letter");
        }
        Some(if delivery.offset == 3 { Outcome::Refused { why: "no".into() } } else { Outcome::Delivered })
    });
    house.block(&[(0, "a"); 20]).await;
    let lane = house.start(&sink, When::Latest);
    until("all to be said", || sink.heard().len() == 20).await;
    lane.stop().await;
    assert_eq!(sink.delivered().len(), 19);
}

#[tokio::test]
async fn a_destination_that_is_down_for_too_long_is_left_alone_until_a_person_says_so() {
    let mut house = House::new(1).await;
    let sink = Arc::new(Fake::new(1, 4));
    sink.answer(|_, _| retry());
    for _ in 0..3 {
        house.block(&[(0, "a"), (0, "b"), (0, "c"), (0, "d"), (0, "e")]).await;
    }
    let lane = house.start_with(&sink, When::Latest, |s| s.disable_after = Duration::from_millis(1_200));
    until("it is disabled", || lane.status().state == "disabled").await;
    let why = lane.status().why.unwrap();
    assert!(why.contains("503") && why.contains("chainweir resume"), "{why}");
    let asked = sink.heard().len();
    // New entries wake the lane, and it stays away.
    for _ in 0..5 {
        house.block(&[(0, "f")]).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(sink.heard().len(), asked);
    sink.answer(|_, _| Some(Outcome::Delivered));
    lane.resume();
    until("all is delivered", || sink.delivered().len() == 20).await;
    assert_eq!(lane.status().state, "ok");
    assert!(house.journal.dead(&DeadFilter::default(), 0, 10).unwrap().is_empty(), "nothing was given up");
    lane.stop().await;
}

#[tokio::test]
async fn a_batch_that_is_not_full_waits_for_its_time_and_a_full_one_does_not() {
    let mut house = House::new(1).await;
    let mut sink = Fake::new(10, 1);
    sink.fill = Some(crate::sink::Fill { bytes: 1_000, patience: Duration::from_millis(300) });
    let sink = Arc::new(sink);
    let lane = house.start(&sink, When::Latest);
    let began = Instant::now();
    house.block(&[(0, "a"); 25]).await;
    until("the full ones to come", || sink.heard().len() == 20).await;
    until("the rest to come", || sink.heard().len() == 25).await;
    let heard = sink.heard();
    // The patience is counted from the moment in which the lane has seen the first of them.
    assert!(heard[24].0 - began >= Duration::from_millis(300), "{:?}", heard[24].0 - began);
    assert!(heard[24].0 - heard[19].0 >= Duration::from_millis(200), "the full ones did not wait");
    // Full by its bytes.
    let offsets: Vec<u64> = heard.iter().map(|h| h.1.offset).collect();
    assert!(offsets.is_sorted());
    lane.stop().await;
}

struct Counting {
    count: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl Sink for Counting {
    fn shape(&self) -> Shape {
        Shape { batch: 1, concurrency: 16 }
    }
    async fn deliver(&self, _track: &Track, batch: &[Delivery]) -> Vec<Outcome> {
        self.count.fetch_add(batch.len(), Ordering::SeqCst);
        vec![Outcome::Delivered; batch.len()]
    }
}

/// What has gone is not passed over in silence: a destination that says that it is older than what the journal keeps gets nothing.
#[tokio::test]
async fn a_destination_older_than_what_the_journal_keeps_is_not_given_a_hole() {
    let mut house = House::new(1).await;
    house.finalized = u64::MAX;
    for _ in 0..4 {
        house.block(&[(0, "a")]).await;
    }
    let track = house.tracks[0];
    house.journal.commit(Write::Window { now_ms: 1, keep_ms: 0 }).await.unwrap();
    house.journal.commit(Write::Window { now_ms: 3, keep_ms: 1 }).await.unwrap();
    let mut after = 0;
    loop {
        let piece = Write::Forget { track, outputs: vec![], after };
        after = house.journal.commit(piece).await.unwrap().id as u64;
        if after == 0 {
            break;
        }
    }
    let gone = house.journal.forgotten(track).unwrap();
    assert!(gone > 1, "{gone}");
    house.block(&[(0, "a")]).await;

    let mut old = Fake::new(1, 1);
    old.position = Some(1);
    let old = Arc::new(old);
    let lane = house.start(&old, When::Latest);
    until("it is told", || lane.status().why.is_some()).await;
    let status = lane.status();
    assert_eq!(status.state, "failing");
    let why = status.why.unwrap();
    assert!(why.contains("has what came up to 1") && why.contains("restore a newer copy"), "{why}");
    lane.stop().await;
    assert!(old.heard().is_empty());

    // One that has all that has gone goes on.
    let mut new = Fake::new(1, 1);
    new.position = Some(gone);
    let new = Arc::new(new);
    let lane = house.start(&new, When::Latest);
    until("the rest is there", || new.delivered().len() == 1).await;
    lane.stop().await;
}
