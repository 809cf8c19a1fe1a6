//! What the journal lets go of, and when.
//!
//! An entry goes when it lies before the window that feeds can look back, every output that it is routed to has
//! settled it, and nobody can ask for it any more:
//!
//! - a step that may still be undone takes back its entries: they are not final;
//! - a retraction has its payload in the entry that it takes back: that one goes after it;
//! - a dead letter, a parked lane key and an order to send it again hold their own entries and no others.
//!
//! It goes in pieces, each a transaction of a few milliseconds beside everybody else's.

use rusqlite::{Connection, OptionalExtension, params};

use super::{JournalError, TrackId};
use crate::model::OutputName;

type Result<T> = std::result::Result<T, JournalError>;

/// Entries that one piece looks at.
const PIECE: usize = 2_000;
/// Pages that one piece gives back: 2 MiB.
const PAGES: i64 = 512;
/// Free pages that are kept for what comes next: 16 MiB, or a quarter of the file.
const SPARE_PAGES: i64 = 4_096;

/// Notes when what was last, and where the window begins: at what was last `keep_ms` ago. It never goes back.
pub fn window(db: &Connection, last_offset: u64, now_ms: u64, keep_ms: u64) -> Result<i64> {
    db.prepare_cached(
        "INSERT INTO mark SELECT ?1, ?2 WHERE NOT EXISTS (SELECT 1 FROM mark WHERE offset = ?1) AND ?1 > 0",
    )?
    .execute(params![last_offset, now_ms])?;
    let before = begin(db)?;
    let begin: i64 = db
        .prepare_cached("SELECT coalesce(max(offset), 0) FROM mark WHERE at_ms <= ?1")?
        .query_row([now_ms.saturating_sub(keep_ms)], |r| r.get::<_, i64>(0))?
        .max(before);
    if begin > before {
        db.prepare_cached("UPDATE meta SET value = ?1 WHERE key = 'window'")?.execute([begin.to_string()])?;
        db.prepare_cached("DELETE FROM mark WHERE offset < ?1")?.execute([begin])?;
    }
    db.prepare_cached("DELETE FROM poison WHERE at_ms < ?1")?.execute([now_ms.saturating_sub(keep_ms)])?;
    Ok(begin)
}

/// Where the window begins: entries up to this offset may have gone.
pub fn begin(db: &Connection) -> rusqlite::Result<i64> {
    number(db, "window")
}

fn number(db: &Connection, key: &str) -> rusqlite::Result<i64> {
    db.prepare_cached("SELECT CAST(value AS INTEGER) FROM meta WHERE key = ?1")?.query_row([key], |r| r.get(0))
}

pub fn forget(db: &Connection, track: TrackId, outputs: &[OutputName], after: u64) -> Result<i64> {
    let mut upto = begin(db)?;
    for output in outputs {
        let settled: Option<i64> = db
            .prepare_cached("SELECT position FROM lane WHERE output = ?1 AND track = ?2")?
            .query_row(params![output.as_str(), track.0], |r| r.get(0))
            .optional()?;
        // One without a position has not begun.
        let Some(settled) = settled else { return Ok(0) };
        upto = upto.min(settled);
    }
    let undone: Option<i64> = db
        .prepare_cached(
            "SELECT min(s.first_offset) FROM step s JOIN track t ON t.consumer = s.consumer
             WHERE t.id = ?1 AND s.entries > 0",
        )?
        .query_row([track.0], |r| r.get(0))?;
    upto = upto.min(undone.map_or(i64::MAX, |first| first - 1));
    let looked: Vec<(i64, i64, bool)> = db
        .prepare_cached(
            "SELECT offset, block,
               EXISTS (SELECT 1 FROM entry r WHERE r.apply = e.offset)
               OR EXISTS (SELECT 1 FROM dead d WHERE d.offset = e.offset)
               OR EXISTS (SELECT 1 FROM redo r WHERE r.offset = e.offset)
               OR EXISTS (SELECT 1 FROM parked p WHERE p.track = e.track AND p.lane_key = e.lane_key AND p.next <= e.offset)
               OR EXISTS (SELECT 1 FROM replay r WHERE r.track = e.track AND r.next <= e.offset AND r.last >= e.offset)
             FROM entry e WHERE track = ?1 AND offset > ?2 AND offset <= ?3 ORDER BY offset LIMIT ?4",
        )?
        .query_map(params![track.0, after, upto, PIECE], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut delete = db.prepare_cached("DELETE FROM entry WHERE offset = ?1")?;
    let mut blocks = std::collections::BTreeSet::new();
    for (offset, block, _) in looked.iter().filter(|(_, _, held)| !held) {
        delete.execute([offset])?;
        blocks.insert(*block);
    }
    if let Some((last, ..)) = looked.iter().rfind(|(_, _, held)| !held) {
        db.prepare_cached("UPDATE track SET forgotten = max(forgotten, ?2) WHERE id = ?1")?
            .execute(params![track.0, last])?;
    }
    drop_blocks(db, blocks)?;
    Ok(if looked.len() == PIECE { looked[PIECE - 1].0 } else { 0 })
}

/// Blocks of which no entry is left. The entries of a block stand between its id and the next one's; its retractions
/// may stand elsewhere, and hold theirs there.
fn drop_blocks(db: &Connection, blocks: std::collections::BTreeSet<i64>) -> Result<()> {
    let runs_from = number(db, "runs_from")?;
    let mut drop = db.prepare_cached(
        "DELETE FROM block WHERE id = ?1 AND NOT EXISTS (
           SELECT 1 FROM entry WHERE offset >= ?1 AND block = ?1
           AND offset < coalesce((SELECT min(id) FROM block WHERE id > ?1), 9223372036854775807))",
    )?;
    for block in blocks.into_iter().filter(|block| *block > runs_from) {
        drop.execute([block])?;
    }
    Ok(())
}

pub fn shrink(db: &Connection) -> Result<i64> {
    let pragma = |name: &str| db.query_row(&format!("PRAGMA {name}"), [], |r| r.get::<_, i64>(0));
    let spare = SPARE_PAGES.max(pragma("page_count")? / 4);
    let over = pragma("freelist_count")? - spare;
    // 2 is incremental; a journal from before has none of it, and uses its free pages again.
    if over <= 0 || pragma("auto_vacuum")? != 2 {
        return Ok(0);
    }
    let give = over.min(PAGES);
    let mut vacuum = db.prepare(&format!("PRAGMA incremental_vacuum({give})"))?;
    let mut rows = vacuum.query([])?;
    while rows.next()?.is_some() {}
    Ok(over - give)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;
    use std::time::Duration;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::super::sqlite::SqliteJournal;
    use super::super::tests::{ConsumerModel, Model, block, consumer, process, seed};
    use super::super::*;

    const KEEP_MS: u64 = 1_000;

    /// Who may need an entry, as plainly as it can be said.
    #[derive(Default)]
    struct Needs {
        window: u64,
        /// What was last when.
        marks: Vec<(u64, u64)>,
        positions: BTreeMap<(usize, TrackId), u64>,
        parked: BTreeMap<(usize, TrackId, String), u64>,
        dead: BTreeSet<(usize, u64)>,
        redo: BTreeSet<(usize, TrackId, u64)>,
    }

    impl Needs {
        fn needed(&self, model: &Model, track: TrackId) -> BTreeSet<u64> {
            let steps = model.consumers[0].steps.iter().filter_map(|s| s.offsets.first().copied());
            let position = |output| self.positions.get(&(output, track)).copied().unwrap_or(0);
            let upto =
                self.window.min(position(0)).min(position(1)).min(steps.min().map_or(u64::MAX, |first| first - 1));
            let ours = || model.said.values().filter(|said| said.track == track).map(|said| &said.entry);
            let held = |e: &Entry| {
                e.offset > upto
                    || self.dead.iter().any(|(_, offset)| *offset == e.offset)
                    || self.redo.iter().any(|(_, _, offset)| *offset == e.offset)
                    || self
                        .parked
                        .iter()
                        .any(|((_, t, key), next)| *t == track && *key == e.lane_key && *next <= e.offset)
            };
            let mut needed: BTreeSet<u64> = ours().filter(|e| held(e)).map(|e| e.offset).collect();
            let taken_back: Vec<_> =
                ours().filter(|e| e.op == Op::Retract && needed.contains(&e.offset)).map(|e| e.emission).collect();
            needed.extend(ours().filter(|e| taken_back.contains(&e.emission) && e.op == Op::Apply).map(|e| e.offset));
            needed
        }
    }

    async fn forget_all(journal: &SqliteJournal, tracks: &[TrackId], outputs: &[OutputName]) {
        // Twice: what a retraction needs goes after it.
        for track in [tracks, tracks].concat() {
            let mut after = 0;
            loop {
                let piece = Write::Forget { track, outputs: outputs.to_vec(), after };
                after = journal.commit(piece).await.unwrap().id as u64;
                if after == 0 {
                    break;
                }
            }
        }
    }

    #[tokio::test]
    async fn what_goes_is_what_nobody_needs_through_reorgs_restarts_and_dead_letters() {
        let mut rng = StdRng::seed_from_u64(seed());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let mut journal = SqliteJournal::open(&path).unwrap();
        let (id, tracks) = consumer(&*journal, "a", 2).await;
        let one = ConsumerModel { id: id.0, tracks: tracks.clone(), ..ConsumerModel::default() };
        let mut model = Model { consumers: vec![one], ..Model::default() };
        let outputs = ["one", "two"].map(|name| OutputName::new(name).unwrap());
        let (mut needs, mut now_ms, mut gone) = (Needs::default(), 5_000, 0);
        for _ in 0..1_500 {
            now_ms += rng.random_range(0..20);
            let it = &model.consumers[0];
            let (o, track) = (rng.random_range(0..2), tracks[rng.random_range(0..2)]);
            let output = outputs[o].clone();
            let some = rng.random_range(0..=model.last);
            let lane = match rng.random_range(0..100) {
                0..45 => {
                    let number = it.cursor.map_or(10, |f| f.number + 1);
                    let at = block(number, rng.random_range(0..3));
                    let step = process(at, &it.state, &tracks, journal.incarnation(id, &at.hash).unwrap());
                    let finalized = if rng.random_bool(0.3) { number.saturating_sub(6) } else { 0 };
                    let step = Step { consumer: id, from: it.cursor, finalized, ..step };
                    journal.commit(Write::Step(step.clone())).await.unwrap();
                    model.step(0, &step);
                    continue;
                }
                45..55 => {
                    let Some(from) = it.cursor else { continue };
                    let below = it.path.iter().rev().filter(|b| b.number >= it.finalized && b.number <= from.number);
                    let Some(to) = below.take(5).nth(rng.random_range(0..5)).copied() else { continue };
                    journal.commit(Write::Undo { consumer: id, from, to }).await.unwrap();
                    model.undo(0, to);
                    continue;
                }
                55..70 => {
                    let position = needs.positions.entry((o, track)).or_default();
                    *position = some.max(*position);
                    LaneWrite::Position { output, track, position: *position }
                }
                70..74 => {
                    let Some(said) = model.said.get(&some).filter(|said| said.track == track) else { continue };
                    // What is settled does not fail.
                    if some <= needs.positions.get(&(o, track)).copied().unwrap_or(0) {
                        continue;
                    }
                    let lane_key = said.entry.lane_key.clone();
                    needs.parked.insert((o, track, lane_key.clone()), some);
                    let parked = Parked { lane_key, next: some, attempts: 1, retry_at_ms: None, why: "x".into() };
                    LaneWrite::Park { output, track, parked }
                }
                74..80 => {
                    let Some((at, _)) = needs.parked.pop_first() else { continue };
                    let output = outputs[at.0].clone();
                    LaneWrite::Unpark { output, track: at.1, lane_key: at.2 }
                }
                80..83 => {
                    let kept = journal.entries(track, some.saturating_sub(1), 1, None).unwrap().1.pop();
                    let Some(entry) = kept else { continue };
                    needs.dead.insert((o, entry.offset));
                    let delivery = DeliveryId::of(entry.emission, Some(&output), entry.op);
                    LaneWrite::Dead { output, track, offset: entry.offset, delivery, attempts: 1, why: "x".into() }
                }
                83..87 => {
                    let Some(letter) = journal.dead(&DeadFilter::default(), 0, 1).unwrap().pop() else { continue };
                    let o = outputs.iter().position(|output| *output == letter.output).unwrap();
                    needs.dead.remove(&(o, letter.offset));
                    let again = rng.random_bool(0.5);
                    if again {
                        needs.redo.insert((o, model.said[&letter.offset].track, letter.offset));
                    }
                    LaneWrite::Bury { id: letter.id, again }
                }
                87..90 => {
                    let Some((o, track, offset)) = needs.redo.pop_first() else { continue };
                    LaneWrite::Redone { output: outputs[o].clone(), track, offset }
                }
                90..93 => {
                    journal.close(Duration::from_secs(10)).unwrap();
                    drop(journal);
                    journal = SqliteJournal::open(&path).unwrap();
                    assert_eq!(*journal.tail().borrow(), model.last, "an offset would be used again");
                    assert_eq!(journal.window(), needs.window);
                    continue;
                }
                _ => {
                    let window = Write::Window { now_ms, keep_ms: KEEP_MS };
                    journal.commit(window).await.unwrap();
                    if needs.marks.last().is_none_or(|mark| mark.0 < model.last) && model.last > 0 {
                        needs.marks.push((model.last, now_ms));
                    }
                    let old = needs.marks.iter().filter(|(_, at)| *at + KEEP_MS <= now_ms).map(|mark| mark.0);
                    needs.window = old.max().unwrap_or(0).max(needs.window);
                    assert_eq!(journal.window(), needs.window);
                    forget_all(&journal, &tracks, &outputs).await;
                    for track in &tracks {
                        let kept = journal.entries(*track, 0, 100_000, None).unwrap().1;
                        let offsets: BTreeSet<u64> = kept.iter().map(|e| e.offset).collect();
                        assert_eq!(offsets, needs.needed(&model, *track));
                        assert!(kept.iter().all(|e| model.said[&e.offset].entry == *e), "what is kept is whole");
                        let first = model.said.values().find(|s| s.track == *track).map_or(0, |s| s.entry.offset);
                        gone += u64::from(first > 0 && !offsets.contains(&first));
                    }
                    let orphans =
                        "SELECT count(*) FROM block b WHERE NOT EXISTS (SELECT 1 FROM entry WHERE block = b.id)";
                    assert_eq!(journal.on_writer(|db| db.query_row(orphans, [], |r| r.get::<_, i64>(0))).unwrap(), 0);
                    continue;
                }
            };
            journal.commit(Write::Lane(vec![lane])).await.unwrap();
        }
        assert!(gone > 0, "nothing has gone: the test shows nothing");
    }

    #[tokio::test]
    async fn a_journal_that_forgets_gives_its_room_back() {
        let folder = tempfile::tempdir().unwrap();
        let journal: Arc<SqliteJournal> = SqliteJournal::open(&folder.path().join("journal.db")).unwrap();
        let (id, tracks) = consumer(&*journal, "a", 1).await;
        let mut from = None;
        for number in 1..=40 {
            let at = block(number, 0);
            let mut step = process(at, &BTreeMap::new(), &tracks, 0);
            let position = EventPosition::Block;
            let stream = "a.s0".parse().unwrap();
            let one = |ordinal| NewEntry {
                track: tracks[0],
                emission: EmissionId::of(at.chain, &at.hash, position, &stream, ordinal, 0),
                block: at,
                position,
                ordinal,
                lane_key: String::new(),
                content_type: ContentType::Json,
                payload: vec![7; 20_000],
            };
            step.entries = (0..100).map(one).collect();
            journal.commit(Write::Step(Step { consumer: id, from, undo: false, ..step })).await.unwrap();
            from = Some(at);
        }
        let before = journal.size().unwrap().bytes;
        for now_ms in [5_000, 5_000 + KEEP_MS] {
            journal.commit(Write::Window { now_ms, keep_ms: KEEP_MS }).await.unwrap();
        }
        forget_all(&journal, &tracks, &[]).await;
        while journal.commit(Write::Shrink).await.unwrap().id > 0 {}
        assert!(journal.entries(tracks[0], 0, 10, None).unwrap().1.is_empty());
        let after = journal.size().unwrap().bytes;
        assert!(before > 70 << 20 && after < before / 3, "{before} bytes before, {after} after");
    }
}
