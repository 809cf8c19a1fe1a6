//! The journal's promises, held against a model that keeps everything in memory. Written against the trait;
//! only how a file is opened, damaged or filled is SQLite's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::B256;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::sqlite::SqliteJournal;
use super::*;
use crate::model::StreamName;

const CHAIN: ChainId = ChainId(7);
pub(super) type State = BTreeMap<Vec<u8>, Vec<u8>>;

pub(super) fn block(number: u64, branch: u8) -> BlockRef {
    let hash = |n: u64, b: u8| B256::from_slice(&[[b; 24].as_slice(), &n.to_be_bytes()].concat());
    BlockRef {
        chain: CHAIN,
        number,
        hash: hash(number, branch),
        parent: hash(number.wrapping_sub(1), branch),
        time: number,
    }
}

pub(super) fn seed() -> u64 {
    let seed = std::env::var("CHAINWEIR_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("CHAINWEIR_SEED={seed}");
    seed
}

pub(super) async fn consumer(journal: &dyn Journal, plugin: &str, tracks: usize) -> (ConsumerId, Vec<TrackId>) {
    let plugin = PluginName::new(plugin).unwrap();
    let write = Write::Consumer { plugin: plugin.clone(), chain: CHAIN, state_version: 1 };
    let id = ConsumerId(journal.commit(write).await.unwrap().id);
    let mut ids = vec![];
    for n in 0..tracks {
        let name = StreamName::new(&format!("s{n}")).unwrap();
        let stream = StreamId { plugin: plugin.clone(), stream: name.clone() };
        let spec = StreamSpec { name, description: String::new(), schema: None };
        ids.push(TrackId(journal.commit(Write::Track { stream, chain: CHAIN, spec }).await.unwrap().id));
    }
    (id, ids)
}

fn stream(track: TrackId) -> StreamId {
    format!("p.t{}", track.0).parse().unwrap()
}

/// What the plugin of these tests does in a block: a function of the block and of its state alone.
pub(super) fn process(at: BlockRef, state: &State, tracks: &[TrackId], incarnation: u32) -> Step {
    let byte = |i: usize| at.hash[31 - i].wrapping_mul(31) ^ at.hash[0].wrapping_mul(57).wrapping_add(i as u8 * 13);
    let mut changes: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
    let count = state.get(b"count".as_slice()).map_or(0, |v| v[0]).wrapping_add(1);
    if byte(0) % 4 != 0 {
        changes.insert(b"count".to_vec(), Some(vec![count]));
        changes.insert(vec![byte(1) % 8], (byte(2) % 3 != 0).then(|| at.hash[24..].to_vec()));
    }
    let entry = |ordinal: u32| {
        let track = tracks[(usize::from(byte(3)) + ordinal as usize) % tracks.len()];
        let position = EventPosition::Log(ordinal);
        NewEntry {
            track,
            emission: EmissionId::of(CHAIN, &at.hash, position, &stream(track), ordinal, incarnation),
            block: at,
            position,
            ordinal,
            lane_key: format!("k{}", byte(4) % 3),
            content_type: ContentType::Json,
            payload: format!("{}/{count}", at.hash).into_bytes(),
        }
    };
    let entries = (0..u32::from(byte(5) % 4)).map(entry).collect();
    Step {
        consumer: ConsumerId(0),
        from: None,
        cursor: at,
        undo: true,
        aside: false,
        said: None,
        safe: 0,
        finalized: 0,
        state_version: 1,
        state: changes.into_iter().collect(),
        entries,
        poison: vec![],
        asks: vec![],
        taken: None,
    }
}

#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) track: TrackId,
    pub(super) entry: Entry,
}

#[derive(Clone, Debug)]
pub(super) struct StepModel {
    pub(super) at: BlockRef,
    pub(super) state_before: State,
    pub(super) offsets: Vec<u64>,
    /// Highest cursor while this block was below it.
    pub(super) peak: u64,
}

#[derive(Default)]
pub(super) struct ConsumerModel {
    pub(super) id: i64,
    pub(super) tracks: Vec<TrackId>,
    pub(super) cursor: Option<BlockRef>,
    pub(super) state: State,
    pub(super) steps: Vec<StepModel>,
    pub(super) times: BTreeMap<B256, (u64, u32)>,
    pub(super) safe: u64,
    pub(super) finalized: u64,
    /// Every block that it stands on, oldest first.
    pub(super) path: Vec<BlockRef>,
}

#[derive(Default)]
pub(super) struct Model {
    pub(super) consumers: Vec<ConsumerModel>,
    pub(super) said: BTreeMap<u64, Said>,
    pub(super) last: u64,
}

impl Model {
    pub(super) fn step(&mut self, c: usize, step: &Step) {
        let consumer = &mut self.consumers[c];
        let mut offsets = vec![];
        for e in &step.entries {
            self.last += 1;
            offsets.push(self.last);
            let entry = Entry {
                offset: self.last,
                op: Op::Apply,
                emission: e.emission,
                block: e.block,
                position: e.position,
                ordinal: e.ordinal,
                lane_key: e.lane_key.clone(),
                content_type: e.content_type,
                payload: e.payload.clone(),
                retracted: None,
            };
            self.said.insert(self.last, Said { track: e.track, entry });
        }
        if step.undo && (!step.entries.is_empty() || !step.state.is_empty()) {
            let peak = step.cursor.number;
            consumer.steps.push(StepModel { at: step.cursor, state_before: consumer.state.clone(), offsets, peak });
        }
        for s in &mut consumer.steps {
            s.peak = s.peak.max(step.cursor.number);
        }
        for (key, value) in &step.state {
            match value {
                Some(value) => drop(consumer.state.insert(key.clone(), value.clone())),
                None => drop(consumer.state.remove(key)),
            }
        }
        consumer.safe = consumer.safe.max(step.safe);
        if step.finalized > consumer.finalized {
            consumer.finalized = step.finalized;
            consumer.steps.retain(|s| s.at.number > step.finalized);
            consumer.times.retain(|_, (number, _)| *number > step.finalized);
        }
        if consumer.cursor != Some(step.cursor) {
            consumer.path.push(step.cursor);
        }
        consumer.cursor = Some(step.cursor);
    }

    pub(super) fn undo(&mut self, c: usize, to: BlockRef) {
        let consumer = &mut self.consumers[c];
        while let Some(step) = consumer.steps.pop_if(|s| s.at.number > to.number) {
            let retracted = Some(Retracted {
                confirmations: step.peak - step.at.number + 1,
                safe: step.at.number <= consumer.safe,
            });
            for offset in step.offsets.iter().rev() {
                self.last += 1;
                let said = self.said.get_mut(offset).unwrap();
                said.entry.retracted = retracted;
                let mut back = said.clone();
                back.entry.offset = self.last;
                back.entry.op = Op::Retract;
                self.said.insert(self.last, back);
            }
            consumer.state = step.state_before;
            consumer.times.entry(step.at.hash).or_insert((step.at.number, 0)).1 += 1;
        }
        consumer.path.retain(|b| b.number <= to.number);
        consumer.safe = consumer.safe.min(to.number);
        consumer.cursor = Some(to);
    }

    fn check(&self, journal: &dyn Journal) {
        assert_eq!(*journal.tail().borrow(), self.last);
        let found = journal.consumers().unwrap();
        for c in &self.consumers {
            let id = ConsumerId(c.id);
            let it = found.iter().find(|f| f.id == id).unwrap();
            assert_eq!(it.cursor, c.cursor);
            let cursor = c.cursor.map_or(0, |b| b.number);
            assert_eq!(it.marks, Marks { cursor, safe: c.safe, finalized: c.finalized });
            let state: State = journal.state_scan(id, b"", None, 1000).unwrap().into_iter().collect();
            assert_eq!(state, c.state);
            let steps: Vec<BlockRef> = c.steps.iter().rev().map(|s| s.at).collect();
            assert_eq!(journal.steps(id).unwrap(), steps);
            for branch in 0..3 {
                for number in cursor.saturating_sub(6)..cursor + 6 {
                    let hash = block(number, branch).hash;
                    let times = c.times.get(&hash).map_or(0, |t| t.1);
                    assert_eq!(journal.incarnation(id, &hash).unwrap(), times, "of block {number} on branch {branch}");
                }
            }
            for track in &c.tracks {
                let expected: Vec<&Entry> =
                    self.said.values().filter(|s| s.track == *track).map(|s| &s.entry).collect();
                let (marks, entries) = journal.entries(*track, 0, 100_000, None).unwrap();
                assert_eq!(marks, it.marks);
                assert_eq!(entries.iter().collect::<Vec<_>>(), expected);
                assert!(entries.is_sorted_by(|a, b| a.offset < b.offset));
            }
        }
    }
}

/// What a reader who undoes every retraction has: no emission twice, none taken back that was not there.
fn net(journal: &dyn Journal, tracks: &[TrackId]) -> Vec<(BlockRef, u32, Vec<u8>)> {
    let mut net = vec![];
    for track in tracks {
        let mut held: BTreeMap<[u8; 16], Entry> = BTreeMap::new();
        for e in journal.entries(*track, 0, 100_000, None).unwrap().1 {
            match e.op {
                Op::Apply => assert!(held.insert(e.emission.0, e).is_none(), "applied twice"),
                Op::Pending => unreachable!("nothing here is pending"),
                Op::Retract => assert_eq!(held.remove(&e.emission.0).expect("it was applied").payload, e.payload),
            }
        }
        let mut of_track: Vec<_> = held.into_values().map(|e| (e.block, e.ordinal, e.payload)).collect();
        of_track.sort_by_key(|(b, o, _)| (b.number, *o));
        net.extend(of_track);
    }
    net
}

fn copy_aside(path: &Path, to: &Path) -> PathBuf {
    let target = to.join("journal.db");
    for end in ["", "-wal", "-shm"] {
        let from = PathBuf::from(format!("{}{end}", path.display()));
        if from.exists() {
            std::fs::copy(from, format!("{}{end}", target.display())).unwrap();
        }
    }
    target
}

#[tokio::test]
async fn state_cursor_entries_and_undo_are_the_models_through_reorgs_restarts_and_kills() {
    let mut rng = StdRng::seed_from_u64(seed());
    let mut folders = vec![tempfile::tempdir().unwrap()];
    let mut path = folders[0].path().join("journal.db");
    let mut journal = SqliteJournal::open(&path).unwrap();
    let mut model = Model::default();
    for name in ["a", "b"] {
        let (id, tracks) = consumer(&*journal, name, 2).await;
        model.consumers.push(ConsumerModel { id: id.0, tracks, ..ConsumerModel::default() });
    }
    for round in 0..700 {
        let c = rng.random_range(0..2);
        let it = &model.consumers[c];
        let (id, from) = (ConsumerId(it.id), it.cursor);
        match rng.random_range(0..100) {
            0..60 => {
                let number = from.map_or(10, |f| f.number + if rng.random_bool(0.2) { 2 } else { 1 });
                let at = block(number, rng.random_range(0..3));
                let times = journal.incarnation(id, &at.hash).unwrap();
                let step = process(at, &it.state, &it.tracks, times);
                let finalized = if rng.random_bool(0.1) { number.saturating_sub(6) } else { 0 };
                let safe = if rng.random_bool(0.2) { number.saturating_sub(3) } else { 0 };
                // A step into final blocks keeps no undo, and says that it is final.
                let undo = rng.random_bool(0.95);
                let finalized = if undo { finalized } else { number };
                let step = Step { consumer: id, from, undo, safe, finalized, ..step };
                journal.commit(Write::Step(step.clone())).await.unwrap();
                model.step(c, &step);
            }
            60..80 => {
                let Some(from) = from else { continue };
                let below = it.path.iter().rev().filter(|b| b.number >= it.finalized && b.number <= from.number);
                let Some(to) = below.take(8).nth(rng.random_range(0..8)).copied() else { continue };
                let committed = journal.commit(Write::Undo { consumer: id, from, to }).await.unwrap();
                let before = model.last;
                model.undo(c, to);
                assert_eq!(committed.retracted, model.last - before);
            }
            80..90 => {
                // Refused: from elsewhere, backwards, or upwards. Nothing of it stays.
                let elsewhere = block(from.map_or(5, |f| f.number + 1), 9);
                let step = process(block(elsewhere.number + 1, 0), &it.state, &it.tracks, 0);
                let step = Write::Step(Step { consumer: id, from: Some(elsewhere), ..step });
                let writes = match from {
                    Some(from) => vec![
                        step,
                        Write::Step(Step {
                            consumer: id,
                            from: Some(from),
                            ..process(block(from.number - 1, 1), &it.state, &it.tracks, 0)
                        }),
                        Write::Undo { consumer: id, from, to: block(from.number + 1, 0) },
                        Write::Undo { consumer: id, from: elsewhere, to: from },
                    ],
                    None => vec![step],
                };
                for write in writes {
                    let refused = journal.commit(write).await;
                    assert!(matches!(refused, Err(JournalError::Moved { .. })), "{refused:?}");
                }
            }
            90..94 => {
                journal.close(Duration::from_secs(10)).unwrap();
                drop(journal);
                journal = SqliteJournal::open(&path).unwrap();
            }
            94..97 => {
                let aside = tempfile::tempdir().unwrap();
                path = copy_aside(&path, aside.path());
                folders.push(aside);
                journal = SqliteJournal::open(&path).unwrap();
            }
            _ => {
                // Marks alone.
                let Some(from) = from else { continue };
                let step = process(from, &it.state, &it.tracks, 0);
                let safe = from.number - 2;
                let step = Step { consumer: id, from: Some(from), safe, state: vec![], entries: vec![], ..step };
                journal.commit(Write::Step(step.clone())).await.unwrap();
                model.step(c, &step);
            }
        }
        if round % 5 == 0 {
            model.check(&*journal);
        }
    }
    model.check(&*journal);

    // The same chain without a reorg: the same state and the same net output.
    for c in &model.consumers {
        let folder = tempfile::tempdir().unwrap();
        let plain = SqliteJournal::open(&folder.path().join("journal.db")).unwrap();
        let (mut id, mut tracks) = (ConsumerId(0), vec![]);
        // The same track numbers, which the emissions name.
        for name in ["a", "b"] {
            let made = consumer(&*plain, name, 2).await;
            if made.0.0 == c.id {
                (id, tracks) = made;
            }
        }
        assert_eq!(tracks, c.tracks);
        let (mut state, mut from) = (State::new(), None);
        for at in &c.path {
            let step = Step { consumer: id, from, undo: false, ..process(*at, &state, &tracks, 0) };
            from = Some(*at);
            plain.commit(Write::Step(step)).await.unwrap();
            state = plain.state_scan(id, b"", None, 1000).unwrap().into_iter().collect();
        }
        assert_eq!(state, c.state);
        assert_eq!(net(&*plain, &tracks), net(&*journal, &c.tracks));
    }
}

#[tokio::test]
async fn a_thousand_commits_at_once_are_all_durable_and_a_refused_one_takes_none_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let journal = SqliteJournal::open(&path).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..1000u64 {
        let (id, tracks) = consumer(&*journal, &format!("p{n}"), 1).await;
        let journal = journal.clone();
        tasks.spawn(async move {
            let mut step = process(block(5, 2), &State::new(), &tracks, 0);
            step.entries.truncate(0);
            step.state = vec![(b"k".to_vec(), Some(n.to_be_bytes().to_vec()))];
            let wrong = n % 3 == 0;
            let step = Step { consumer: id, from: wrong.then(|| block(1, 1)), ..step };
            let done = journal.commit(Write::Step(step)).await;
            assert_eq!(matches!(done, Err(JournalError::Moved { .. })), wrong, "{done:?}");
            (id, n, wrong)
        });
    }
    let all = tasks.join_all().await;
    drop(journal);
    // Dropped, not closed: the lock goes when the writer has ended.
    let journal = open_soon(&path).await;
    for (id, n, wrong) in all {
        let expected = (!wrong).then(|| n.to_be_bytes().to_vec());
        assert_eq!(journal.state_get(id, b"k").unwrap(), expected);
    }
}

async fn open_soon(path: &Path) -> Arc<SqliteJournal> {
    for _ in 0..500 {
        match SqliteJournal::open(path) {
            Ok(journal) => return journal,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    SqliteJournal::open(path).unwrap()
}

#[tokio::test]
async fn whoever_stops_waiting_for_a_commit_harms_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let journal = SqliteJournal::open(&folder.path().join("journal.db")).unwrap();
    let (id, tracks) = consumer(&*journal, "a", 1).await;
    let mut from = None;
    for number in 10..60 {
        let step = Step { consumer: id, from, ..process(block(number, 0), &State::new(), &tracks, 0) };
        let commit = journal.commit(Write::Step(step.clone()));
        if number % 2 == 0 {
            // Sent, then dropped before the answer.
            drop(futures::poll!(commit));
        } else {
            drop(commit.await);
        }
        while journal.consumers().unwrap()[0].cursor != Some(step.cursor) {
            tokio::task::yield_now().await;
        }
        from = Some(step.cursor);
    }
}

fn big_step(id: ConsumerId, tracks: &[TrackId], from: Option<BlockRef>, bytes: usize) -> Step {
    let at = block(from.map_or(10, |f| f.number + 1), 0);
    let mut step = Step { consumer: id, from, ..process(at, &State::new(), tracks, 0) };
    step.state.push((b"big".to_vec(), Some(vec![7; bytes])));
    step
}

#[tokio::test]
async fn what_is_pending_stays_when_the_block_that_it_was_told_at_is_undone() {
    let folder = tempfile::tempdir().unwrap();
    let journal = SqliteJournal::open(&folder.path().join("journal.db")).unwrap();
    let (id, tracks) = consumer(&*journal, "a", 1).await;
    let entry = |at: BlockRef, position| NewEntry {
        track: tracks[0],
        emission: EmissionId::of(CHAIN, &at.hash, position, &stream(tracks[0]), 0, 0),
        block: at,
        position,
        ordinal: 0,
        lane_key: String::new(),
        content_type: ContentType::Json,
        payload: b"1".to_vec(),
    };
    let (below, at) = (block(9, 0), block(10, 0));
    let of = |from, cursor: BlockRef, entries| Step {
        consumer: id,
        from,
        state: vec![],
        entries,
        ..process(cursor, &State::new(), &tracks, 0)
    };
    journal.commit(Write::Step(of(None, below, vec![]))).await.unwrap();
    journal.commit(Write::Step(of(Some(below), at, vec![entry(at, EventPosition::Log(0))]))).await.unwrap();
    let told = of(Some(at), at, vec![entry(at, EventPosition::Pending(0))]);
    journal.commit(Write::Step(Step { aside: true, ..told })).await.unwrap();
    let undone = journal.commit(Write::Undo { consumer: id, from: at, to: below }).await.unwrap();
    assert_eq!(undone.retracted, 1);
    let entries = journal.entries(tracks[0], 0, 10, None).unwrap().1;
    let said: Vec<(Op, bool)> = entries.iter().map(|e| (e.op, e.retracted.is_some())).collect();
    assert_eq!(said, [(Op::Apply, true), (Op::Pending, false), (Op::Retract, true)]);
    assert_eq!(entries[1].position, EventPosition::Pending(0));
}

#[tokio::test]
async fn a_full_disk_keeps_nothing_of_the_write_and_works_again_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let journal = SqliteJournal::open(&folder.path().join("journal.db")).unwrap();
    let (id, tracks) = consumer(&*journal, "a", 1).await;
    let pages = |journal: &SqliteJournal, more: i64| {
        journal.on_writer(move |db| {
            let now: i64 = db.query_row("PRAGMA page_count", [], |r| r.get(0)).unwrap();
            let _: i64 = db.query_row(&format!("PRAGMA max_page_count = {}", now + more), [], |r| r.get(0)).unwrap();
        });
    };
    pages(&journal, 4);
    let step = big_step(id, &tracks, None, 1 << 20);
    for _ in 0..3 {
        let full = journal.commit(Write::Step(step.clone())).await;
        assert!(matches!(full, Err(JournalError::Full { .. })), "{full:?}");
        assert_eq!(journal.consumers().unwrap()[0].cursor, None);
        assert_eq!((journal.state_get(id, b"big").unwrap(), *journal.tail().borrow()), (None, 0));
    }
    pages(&journal, 1 << 20);
    journal.commit(Write::Step(step.clone())).await.unwrap();
    assert_eq!(journal.consumers().unwrap()[0].cursor, Some(step.cursor));
    assert_eq!(*journal.tail().borrow(), step.entries.len() as u64);
}

struct Mounted(PathBuf);
impl Drop for Mounted {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[tokio::test]
async fn a_real_small_disk_that_fills_up_stops_the_writer_and_not_the_readers() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let mount = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "none"]).arg(&disk).output();
    if !mount.is_ok_and(|m| m.status.success()) {
        eprintln!("SKIPPED: a file system of its own can only be mounted by root");
        return;
    }
    let _mounted = Mounted(disk.clone());
    let ballast = disk.join("ballast");
    std::fs::write(&ballast, vec![0; 1 << 20]).unwrap();
    let journal = SqliteJournal::open(&disk.join("journal.db")).unwrap();
    let (id, tracks) = consumer(&*journal, "a", 1).await;
    let (mut from, mut full) = (None, false);
    for _ in 0..200 {
        let step = big_step(id, &tracks, from, 100_000);
        match journal.commit(Write::Step(step.clone())).await {
            Ok(_) => from = Some(step.cursor),
            Err(JournalError::Full { .. }) => {
                full = true;
                break;
            }
            Err(other) => panic!("{other}"),
        }
        // A value is replaced: what fills the disk is the log, and the undo.
    }
    assert!(full, "the disk never filled up");
    assert_eq!(journal.consumers().unwrap()[0].cursor, from);
    assert!(journal.state_get(id, b"big").unwrap().is_some());
    std::fs::remove_file(&ballast).unwrap();
    let step = big_step(id, &tracks, from, 100_000);
    journal.commit(Write::Step(step.clone())).await.unwrap();
    assert_eq!(journal.consumers().unwrap()[0].cursor, Some(step.cursor));
}

fn halt(opened: Result<Arc<SqliteJournal>, JournalError>) -> String {
    match opened {
        Err(JournalError::Halt { why }) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn one_process_owns_a_journal_and_the_error_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let first = SqliteJournal::open(&path).unwrap();
    let why = halt(SqliteJournal::open(&path));
    assert!(why.contains(&format!("process {}", std::process::id())) && why.contains("journal.db"), "{why}");
    first.close(Duration::from_secs(10)).unwrap();
    let second = SqliteJournal::open(&path).unwrap();
    assert_eq!(second.id(), first.id());
    assert!(matches!(first.commit(Write::Lane(vec![])).await, Err(JournalError::Halt { .. })));
}

#[tokio::test]
async fn a_damaged_file_is_refused_with_its_path_and_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let journal = SqliteJournal::open(&path).unwrap();
    let (id, tracks) = consumer(&*journal, "a", 2).await;
    let mut from = None;
    for number in 10..400 {
        let step = Step { consumer: id, from, ..process(block(number, 1), &State::new(), &tracks, 0) };
        from = Some(step.cursor);
        journal.commit(Write::Step(step)).await.unwrap();
    }
    // Not closed in order: all in the main file, and no note of a clean end.
    journal.on_writer(|db| db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap());
    let aside = tempfile::tempdir().unwrap();
    let copy = copy_aside(&path, aside.path());
    drop(SqliteJournal::open(&copy).unwrap().close(Duration::from_secs(10)));
    let copy = copy_aside(&path, aside.path());
    let mut bytes = std::fs::read(&copy).unwrap();
    for page in (4096..bytes.len()).step_by(4096).skip(3).step_by(5) {
        bytes[page..page + 700].fill(0x5a);
    }
    std::fs::write(&copy, bytes).unwrap();
    for end in ["-wal", "-shm"] {
        drop(std::fs::remove_file(format!("{}{end}", copy.display())));
    }
    let why = halt(SqliteJournal::open(&copy));
    assert!(why.contains("journal.db") && why.contains("damaged") && why.contains("backup"), "{why}");
}

#[tokio::test]
async fn damage_that_is_found_while_it_runs_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let journal = SqliteJournal::open(&path).unwrap();
    let (id, tracks) = consumer(&*journal, "a", 1).await;
    let step = Step { consumer: id, ..process(block(10, 1), &State::new(), &tracks, 0) };
    journal.commit(Write::Step(step)).await.unwrap();
    let page: u64 = journal.on_writer(|db| {
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        db.query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'state'", [], |r| r.get(0)).unwrap()
    });
    let mut file = std::fs::File::options().write(true).open(&path).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start((page - 1) * 4096)).unwrap();
    std::io::Write::write_all(&mut file, &[0x5a; 4096]).unwrap();
    let found = journal.state_get(id, b"count");
    assert!(matches!(&found, Err(JournalError::Halt { why }) if why.contains("backup")), "{found:?}");
}

#[test]
fn other_files_and_newer_journals_are_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "these are the notes of a person, and no database at all".repeat(50)).unwrap();
    let before = std::fs::read(&text).unwrap();
    let why = halt(SqliteJournal::open(&text));
    assert!(why.contains("notes.txt") && why.contains("not a journal"), "{why}");
    assert_eq!(std::fs::read(&text).unwrap(), before);

    let other = folder.path().join("other.db");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE songs (name TEXT)").unwrap();
    let why = halt(SqliteJournal::open(&other));
    assert!(why.contains("other.db") && why.contains("another application"), "{why}");

    let newer = folder.path().join("newer.db");
    SqliteJournal::open(&newer).unwrap().close(Duration::from_secs(10)).unwrap();
    rusqlite::Connection::open(&newer).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    let why = halt(SqliteJournal::open(&newer));
    assert!(why.contains("newer.db") && why.contains("newer Chainweir (schema 99"), "{why}");
}

#[tokio::test]
async fn a_scan_finds_the_keys_of_its_prefix_and_no_others() {
    let mut rng = StdRng::seed_from_u64(seed());
    let folder = tempfile::tempdir().unwrap();
    let journal = SqliteJournal::open(&folder.path().join("journal.db")).unwrap();
    let (id, _) = consumer(&*journal, "a", 1).await;
    let (other, _) = consumer(&*journal, "b", 1).await;
    let bytes = [0x00, 0x01, 0x7f, 0xfe, 0xff];
    let mut key = |most: usize| -> Vec<u8> {
        (0..rng.random_range(0..=most)).map(|_| bytes[rng.random_range(0..bytes.len())]).collect()
    };
    let state: State = (0..300).map(|n| (key(4), vec![n as u8])).collect();
    for id in [id, other] {
        let mut step = process(block(10, 0), &State::new(), &[TrackId(1)], 0);
        step.entries.clear();
        step.state = state.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect();
        journal.commit(Write::Step(Step { consumer: id, ..step })).await.unwrap();
    }
    let mut prefixes = vec![vec![], vec![0xff], vec![0xff, 0xff], vec![0x01, 0xff], vec![0x00]];
    prefixes.extend((0..50).map(|_| key(3)));
    for prefix in prefixes {
        for after in [None, Some(key(4)), Some(key(4)), Some(prefix.clone())] {
            for limit in [0, 1, 3, 1000] {
                let expected: Vec<_> = state
                    .iter()
                    .filter(|(k, _)| k.starts_with(&prefix) && after.as_ref().is_none_or(|a| *k > a))
                    .take(limit)
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect();
                let found = journal.state_scan(id, &prefix, after.as_deref(), limit as u32).unwrap();
                assert_eq!(found, expected, "prefix {prefix:x?} after {after:x?} limit {limit}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_asked_for_is_there_until_it_is_taken_in_though_its_block_is_orphaned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let journal = SqliteJournal::open(&path).unwrap();
    let plugin: PluginName = "asks".parse().unwrap();
    let mut ids = vec![];
    for chain in [CHAIN, ChainId(CHAIN.0 + 1)] {
        let made = Write::Consumer { plugin: plugin.clone(), chain, state_version: 1 };
        ids.push(ConsumerId(journal.commit(made).await.unwrap().id));
    }
    let of = |consumer, chain, from: Option<BlockRef>, number, asks: &[&str], taken| {
        let cursor = BlockRef { chain, ..block(number, 0) };
        let from = from.map(|from| BlockRef { chain, ..from });
        let asks = asks.iter().map(|ask| ask.as_bytes().to_vec()).collect();
        let step = process(cursor, &State::new(), &[TrackId(1)], 0);
        Write::Step(Step { consumer, from, asks, taken, entries: vec![], ..step })
    };
    let (own, other) = (CHAIN, ChainId(CHAIN.0 + 1));
    journal.commit(of(ids[0], own, None, 1, &["a"], None)).await.unwrap();
    journal.commit(of(ids[1], other, None, 1, &["else"], None)).await.unwrap();
    journal.commit(of(ids[0], own, Some(block(1, 0)), 2, &["b", "c"], None)).await.unwrap();
    journal.commit(Write::Undo { consumer: ids[0], from: block(2, 0), to: block(1, 0) }).await.unwrap();
    journal.close(Duration::from_secs(5)).unwrap();
    drop(journal);
    let journal = SqliteJournal::open(&path).unwrap();
    let bodies = |chain| -> Vec<String> {
        let asks = journal.asks(chain, 10).unwrap();
        asks.into_iter().map(|(_, body)| String::from_utf8(body).unwrap()).collect()
    };
    assert_eq!((bodies(own), bodies(other)), (vec!["a".into(), "b".into(), "c".into()], vec!["else".to_owned()]));
    let second = journal.asks(own, 2).unwrap()[1].0;
    journal.commit(of(ids[0], own, Some(block(1, 0)), 3, &["d"], Some(second))).await.unwrap();
    assert_eq!((bodies(own), bodies(other)), (vec!["c".into(), "d".into()], vec!["else".to_owned()]));
}
