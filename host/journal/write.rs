//! Each write as SQL, inside a transaction that the writer holds.

use alloy_primitives::B256;
use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use super::sqlite::{blob, block_ref, moved, now_ms, position_code, to_json};
use super::{
    Committed, ConsumerId, JournalError, LaneWrite, NewEntry, Step, TrackId, VersionWrite, Write, forget, replay,
};
use crate::model::{BlockRef, ChainId, Edit, EventPosition, Member, Op, PluginName, StreamId, StreamSpec};

type Result<T> = std::result::Result<T, JournalError>;

/// Applies one write. `Moved` is found before the first change, so that a refused write leaves nothing in the
/// transaction that it shares; on any other error the caller rolls all of it back, `last_offset` included.
pub fn apply(db: &Connection, last_offset: &mut u64, write: &Write) -> Result<Committed> {
    let mut done = Committed::default();
    match write {
        Write::Consumer { plugin, chain, state_version } => done.id = consumer(db, plugin, *chain, *state_version)?,
        Write::Track { stream, chain, spec } => done.id = track(db, stream, *chain, spec)?,
        Write::Step(s) => step(db, last_offset, s)?,
        Write::Undo { consumer, from, to } => done.retracted = undo(db, last_offset, *consumer, from, to)?,
        Write::Finalized(at) => finalized(db, at)?,
        Write::ForgetFinalized(chain) => {
            db.prepare_cached("DELETE FROM chain WHERE chain = ?1")?.execute([chain.0 as i64])?;
        }
        Write::Lane(writes) => {
            for write in writes {
                lane(db, write)?;
            }
        }
        Write::Replay(order) => done.id = replay::begin(db, order)?,
        Write::ReplayOn => done.id = replay::go_on(db)?,
        Write::Window { now_ms, keep_ms } => done.id = forget::window(db, *last_offset, *now_ms, *keep_ms)?,
        Write::Forget { track, outputs, after } => done.id = forget::forget(db, *track, outputs, *after)?,
        Write::Shrink => done.id = forget::shrink(db)?,
        Write::Version(write) => version(db, write)?,
        Write::Watch { edit, catch_up } => watch(db, edit, catch_up)?,
    }
    done.last_offset = *last_offset;
    Ok(done)
}

fn consumer(db: &Connection, plugin: &PluginName, chain: ChainId, state_version: u32) -> Result<i64> {
    db.prepare_cached(
        "INSERT INTO consumer (plugin, chain, state_version) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
    )?
    .execute(params![plugin.as_str(), chain.0 as i64, state_version])?;
    Ok(db
        .prepare_cached("SELECT id FROM consumer WHERE plugin = ?1 AND chain = ?2")?
        .query_row(params![plugin.as_str(), chain.0 as i64], |r| r.get(0))?)
}

fn track(db: &Connection, stream: &StreamId, chain: ChainId, spec: &StreamSpec) -> Result<i64> {
    let (plugin, name, chain) = (stream.plugin.as_str(), stream.stream.as_str(), chain.0 as i64);
    let schema = spec.schema.as_ref().map(to_json).transpose()?;
    db.prepare_cached(
        "INSERT INTO track (plugin, stream, chain, consumer, description, schema)
         SELECT ?1, ?2, ?3, id, ?4, ?5 FROM consumer WHERE plugin = ?1 AND chain = ?3
         ON CONFLICT DO UPDATE SET description = excluded.description, schema = excluded.schema",
    )?
    .execute(params![plugin, name, chain, spec.description, schema])?;
    db.prepare_cached("SELECT id FROM track WHERE plugin = ?1 AND stream = ?2 AND chain = ?3")?
        .query_row(params![plugin, name, chain], |r| r.get(0))
        .optional()?
        .ok_or_else(|| moved(format!("{plugin} is not a consumer of eip155:{chain}")))
}

struct Place {
    cursor: Option<BlockRef>,
    peak: u64,
    safe: u64,
    finalized: u64,
}

fn place(db: &Connection, id: ConsumerId) -> Result<Place> {
    db.prepare_cached(
        "SELECT chain, number, hash, parent, time, peak_number, safe, finalized FROM consumer WHERE id = ?1",
    )?
    .query_row([id.0], |r| {
        let chain = ChainId(r.get::<_, i64>(0)? as u64);
        let cursor = r.get::<_, Option<i64>>(1)?.map(|_| block_ref(r, chain, 1)).transpose()?;
        Ok(Place { cursor, peak: r.get(5)?, safe: r.get(6)?, finalized: r.get(7)? })
    })
    .optional()?
    .ok_or_else(|| moved(format!("consumer {} is gone", id.0)))
}

fn expect_cursor(found: &Option<BlockRef>, expected: &Option<BlockRef>) -> Result<()> {
    let same = match (found, expected) {
        (None, None) => true,
        (Some(a), Some(b)) => (a.number, a.hash) == (b.number, b.hash),
        _ => false,
    };
    if same {
        return Ok(());
    }
    let show = |at: &Option<BlockRef>| at.map_or("the beginning".to_owned(), |b| b.to_string());
    Err(moved(format!("the cursor is at {}, the step began at {}", show(found), show(expected))))
}

/// A step goes up, except one that only moves marks. SQLite's integers end at 2^63 - 1.
fn expect_forward(s: &Step, empty: bool) -> Result<()> {
    if let Some(from) = &s.from
        && !s.aside
        && (s.cursor.number < from.number || s.cursor.number == from.number && (!empty || s.cursor.hash != from.hash))
    {
        return Err(moved(format!("a step from {from} cannot end at {}", s.cursor)));
    }
    let blocks = s.entries.iter().map(|e| &e.block).chain(s.poison.iter().map(|p| &p.block)).chain([&s.cursor]);
    let largest = blocks.flat_map(|b| [b.number, b.time]).chain([s.safe, s.finalized]).max();
    if largest.is_some_and(|n| n > i64::MAX as u64) {
        return Err(moved(format!("a number in the step to {} is too large to be a height or a time", s.cursor)));
    }
    Ok(())
}

fn step(db: &Connection, last_offset: &mut u64, s: &Step) -> Result<()> {
    let before = place(db, s.consumer)?;
    expect_cursor(&before.cursor, &s.from)?;
    let empty = s.entries.is_empty() && s.state.is_empty();
    expect_forward(s, empty)?;
    let id = s.consumer.0;

    let first_offset = *last_offset + 1;
    insert_entries(db, last_offset, &s.entries)?;
    let keep_step = |insert: &str, entries: usize, peak: u64| {
        let BlockRef { number, hash, parent, time, .. } = &s.cursor;
        db.prepare_cached(&format!("{insert} INTO step VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"))?.execute(params![
            id,
            number,
            blob(hash),
            blob(parent),
            time,
            first_offset,
            entries,
            peak
        ])
    };
    if s.aside {
        let stays = s.from.as_ref().is_some_and(|from| *from == s.cursor);
        if !stays || s.entries.iter().any(|e| e.block.number > s.cursor.number) {
            return Err(moved(format!("a step aside of {} cannot move the cursor or pass it", s.cursor)));
        }
        if s.undo && !s.state.is_empty() {
            // The block may have a step of its own already: what is undone is undone once.
            keep_step("INSERT OR IGNORE", 0, before.peak)?;
            keep_undo(db, s)?;
        }
        if let Some((edit, said)) = s.said {
            db.prepare_cached("UPDATE catch_up SET said = max(said, ?3) WHERE consumer = ?1 AND edit = ?2")?
                .execute(params![id, edit.0, said])?;
        }
    } else if s.undo && !empty {
        keep_step("INSERT", s.entries.len(), s.cursor.number)?;
        keep_undo(db, s)?;
    }
    let mut set = set_state(db)?;
    let mut delete = delete_state(db)?;
    for (key, value) in &s.state {
        match value {
            Some(value) => set.execute(params![id, key, value])?,
            None => delete.execute(params![id, key])?,
        };
    }
    let mut poison = db.prepare_cached(
        "INSERT INTO poison (consumer, number, hash, position, why, at_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for p in &s.poison {
        poison.execute(params![id, p.block.number, blob(&p.block.hash), position_code(p.position), p.why, now_ms()])?;
    }
    let chain = s.cursor.chain.0 as i64;
    let mut ask = db.prepare_cached("INSERT INTO ask (chain, body) VALUES (?1, ?2)")?;
    for body in &s.asks {
        ask.execute(params![chain, body])?;
    }
    if let Some(taken) = s.taken {
        db.prepare_cached("DELETE FROM ask WHERE chain = ?1 AND id <= ?2")?.execute(params![chain, taken])?;
    }

    let finalized = s.finalized.max(before.finalized);
    if finalized > before.finalized {
        for table in ["step", "undo", "orphan"] {
            db.prepare_cached(&format!("DELETE FROM {table} WHERE consumer = ?1 AND number <= ?2"))?
                .execute(params![id, finalized])?;
        }
    }
    db.prepare_cached(
        "UPDATE consumer SET number = ?2, hash = ?3, parent = ?4, time = ?5, peak_number = ?6, safe = ?7,
         finalized = ?8, state_version = ?9 WHERE id = ?1",
    )?
    .execute(params![
        id,
        s.cursor.number,
        blob(&s.cursor.hash),
        blob(&s.cursor.parent),
        s.cursor.time,
        s.cursor.number.max(before.peak),
        s.safe.max(before.safe),
        finalized,
        s.state_version
    ])?;
    Ok(())
}

/// What the step's state replaces, as it was before the block.
fn keep_undo(db: &Connection, s: &Step) -> Result<()> {
    let mut keep = db.prepare_cached(
        "INSERT OR IGNORE INTO undo VALUES (?1, ?2, ?3, (SELECT value FROM state WHERE consumer = ?1 AND key = ?3))",
    )?;
    for (key, _) in &s.state {
        keep.execute(params![s.consumer.0, s.cursor.number, key])?;
    }
    Ok(())
}

/// Addresses, then other words, one behind the other.
fn packed(members: &[Member]) -> (Vec<u8>, Vec<u8>) {
    let (mut addresses, mut words) = (Vec::new(), Vec::new());
    for member in members {
        match member {
            Member::Address(address) => addresses.extend_from_slice(address.as_slice()),
            Member::Word(word) => words.extend_from_slice(word.as_slice()),
        }
    }
    (addresses, words)
}

fn watch(db: &Connection, edit: &Edit, catch_up: &[(ConsumerId, u64, u64)]) -> Result<()> {
    let id = edit.id.0;
    let (add, remove) = (packed(&edit.add), packed(&edit.remove));
    db.prepare_cached("INSERT INTO watch_edit VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(params![
        id,
        edit.set.as_str(),
        now_ms(),
        add.0,
        add.1,
        remove.0,
        remove.1
    ])?;
    let mut begin = db.prepare_cached("INSERT INTO watch_begin VALUES (?1, ?2, ?3)")?;
    for (chain, number) in &edit.begins {
        begin.execute(params![id, chain.0 as i64, number])?;
    }
    let mut back = db.prepare_cached("INSERT INTO catch_up VALUES (?1, ?2, ?3, ?4, ?5, ?4)")?;
    for (consumer, first, last) in catch_up {
        back.execute(params![consumer.0, id, edit.set.as_str(), first, last])?;
    }
    Ok(())
}

fn set_state(db: &Connection) -> Result<CachedStatement<'_>> {
    Ok(db.prepare_cached("INSERT INTO state VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET value = excluded.value")?)
}

fn delete_state(db: &Connection) -> Result<CachedStatement<'_>> {
    Ok(db.prepare_cached("DELETE FROM state WHERE consumer = ?1 AND key = ?2")?)
}

fn insert_entries(db: &Connection, last_offset: &mut u64, entries: &[NewEntry]) -> Result<()> {
    let mut block_row: Option<(B256, i64)> = None;
    let mut insert = db.prepare_cached(
        "INSERT INTO entry (offset, track, op, emission, block, position, ordinal, lane_key, content_type, payload)
         VALUES (?1, ?2, ?10, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    for entry in entries {
        let row = match block_row {
            Some((hash, row)) if hash == entry.block.hash => row,
            _ => {
                let b = &entry.block;
                let row = *last_offset as i64 + 1;
                db.prepare_cached("INSERT INTO block (id, number, hash, parent, time) VALUES (?1, ?2, ?3, ?4, ?5)")?
                    .execute(params![row, b.number, blob(&b.hash), blob(&b.parent), b.time])?;
                block_row = Some((b.hash, row));
                row
            }
        };
        *last_offset += 1;
        insert.execute(params![
            *last_offset,
            entry.track.0,
            &entry.emission.0[..],
            row,
            position_code(entry.position),
            entry.ordinal,
            entry.lane_key,
            entry.content_type.code(),
            entry.payload,
            if matches!(entry.position, EventPosition::Pending(_)) { 2 } else { 0 },
        ])?;
    }
    Ok(())
}

fn undo(db: &Connection, last_offset: &mut u64, id: ConsumerId, from: &BlockRef, to: &BlockRef) -> Result<u64> {
    let before = place(db, id)?;
    expect_cursor(&before.cursor, &Some(*from))?;
    if to.number > from.number {
        return Err(moved(format!("cannot walk back from {from} up to {to}")));
    }
    if to.number < before.finalized {
        return Err(moved(format!("{to} is below the consumer's finalized block {}", before.finalized)));
    }
    let steps: Vec<(u64, Vec<u8>, u64, u64, u64)> = db
        .prepare_cached(
            // At the height of `to` there may be a step on another branch.
            "SELECT number, hash, first_offset, entries, max(peak, ?4) FROM step
             WHERE consumer = ?1 AND (number > ?2 OR (number = ?2 AND hash <> ?3)) ORDER BY number DESC",
        )?
        .query_map(params![id.0, to.number, blob(&to.hash), before.peak], |r| {
            Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut retracted = 0;
    for (number, hash, first, entries, peak) in steps {
        // What a lane may at most have seen of these emissions, whatever it has read by now.
        let confirmations = peak.saturating_sub(number) + 1;
        let safe = number <= before.safe;
        let mut mark =
            db.prepare_cached("UPDATE entry SET retracted_confirmations = ?2, retracted_safe = ?3 WHERE offset = ?1")?;
        let mut retract = db.prepare_cached(
            "INSERT INTO entry (offset, track, op, emission, block, position, ordinal, lane_key, content_type, payload,
               apply, retracted_confirmations, retracted_safe)
             SELECT ?2, track, 1, emission, block, position, ordinal, lane_key, content_type, NULL, offset, ?3, ?4
             FROM entry WHERE offset = ?1",
        )?;
        // Last said, first taken back.
        for offset in (first..first + entries).rev() {
            *last_offset += 1;
            mark.execute(params![offset, confirmations, safe])?;
            retract.execute(params![offset, *last_offset, confirmations, safe])?;
            retracted += 1;
        }
        let old: Vec<(Vec<u8>, Option<Vec<u8>>)> = db
            .prepare_cached("SELECT key, old FROM undo WHERE consumer = ?1 AND number = ?2")?
            .query_map(params![id.0, number], |r| Ok((r.get(0)?, r.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let mut set = set_state(db)?;
        let mut delete = delete_state(db)?;
        for (key, value) in old {
            match value {
                Some(value) => set.execute(params![id.0, key, value])?,
                None => delete.execute(params![id.0, key])?,
            };
        }
        db.prepare_cached("INSERT INTO orphan VALUES (?1, ?2, ?3, 1) ON CONFLICT DO UPDATE SET times = times + 1")?
            .execute(params![id.0, hash, number])?;
        for table in ["step", "undo"] {
            db.prepare_cached(&format!("DELETE FROM {table} WHERE consumer = ?1 AND number = ?2"))?
                .execute(params![id.0, number])?;
        }
    }
    // Blocks that come anew are shown with every edit there was.
    db.prepare_cached("UPDATE catch_up SET last = ?2 WHERE consumer = ?1 AND last > ?2")?
        .execute(params![id.0, to.number])?;
    // What stays remembers how deep it was: a lane may have delivered it then. What comes anew on another
    // branch has not been that deep, and nothing there is safe yet.
    db.prepare_cached("UPDATE step SET peak = max(peak, ?2) WHERE consumer = ?1")?
        .execute(params![id.0, before.peak])?;
    db.prepare_cached(
        "UPDATE consumer SET number = ?2, hash = ?3, parent = ?4, time = ?5, peak_number = ?2, safe = min(safe, ?2)
         WHERE id = ?1",
    )?
    .execute(params![id.0, to.number, blob(&to.hash), blob(&to.parent), to.time])?;
    Ok(retracted)
}

fn finalized(db: &Connection, at: &BlockRef) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO chain VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET number = excluded.number,
         hash = excluded.hash, parent = excluded.parent, time = excluded.time WHERE excluded.number > number",
    )?
    .execute(params![at.chain.0 as i64, at.number, blob(&at.hash), blob(&at.parent), at.time])?;
    Ok(())
}

fn lane(db: &Connection, write: &LaneWrite) -> Result<()> {
    match write {
        LaneWrite::Position { output, track: TrackId(track), position } => {
            db.prepare_cached(
                "INSERT INTO lane VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET position = excluded.position
                 WHERE excluded.position > position",
            )?
            .execute(params![output.as_str(), track, position])?;
        }
        LaneWrite::Park { output, track: TrackId(track), parked: p } => {
            db.prepare_cached("INSERT OR REPLACE INTO parked VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
                .execute(params![output.as_str(), track, p.lane_key, p.next, p.attempts, p.retry_at_ms, p.why])?;
        }
        LaneWrite::Unpark { output, track: TrackId(track), lane_key } => {
            db.prepare_cached("DELETE FROM parked WHERE output = ?1 AND track = ?2 AND lane_key = ?3")?
                .execute(params![output.as_str(), track, lane_key])?;
        }
        LaneWrite::Dead { output, track: TrackId(track), offset, delivery, attempts, why } => {
            db.prepare_cached(
                "INSERT INTO dead (output, track, offset, delivery, attempts, why, at_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (output, offset) DO UPDATE SET attempts = attempts + excluded.attempts, why = excluded.why,
                 at_ms = excluded.at_ms",
            )?
            .execute(params![output.as_str(), track, offset, &delivery.0[..], attempts, why, now_ms()])?;
        }
        LaneWrite::Bury { id, again } => {
            if *again {
                db.prepare_cached("INSERT OR IGNORE INTO redo SELECT output, track, offset FROM dead WHERE id = ?1")?
                    .execute([id])?;
            }
            db.prepare_cached("DELETE FROM dead WHERE id = ?1")?.execute([id])?;
        }
        LaneWrite::Redone { output, track: TrackId(track), offset } => {
            db.prepare_cached("DELETE FROM redo WHERE output = ?1 AND track = ?2 AND offset = ?3")?
                .execute(params![output.as_str(), track, offset])?;
        }
    }
    Ok(())
}

fn version(db: &Connection, write: &VersionWrite) -> Result<()> {
    match write {
        VersionWrite::Running { plugin, digest, version, file } => {
            db.prepare_cached("UPDATE version SET running = 0 WHERE plugin = ?1")?.execute([plugin.as_str()])?;
            db.prepare_cached("INSERT OR REPLACE INTO version VALUES (?1, ?2, ?3, ?4, ?5, 1, NULL)")?
                .execute(params![plugin.as_str(), &digest[..], version, file, now_ms()])?;
        }
        VersionWrite::Banned { plugin, digest, why } => {
            db.prepare_cached("UPDATE version SET banned = ?3, running = 0 WHERE plugin = ?1 AND digest = ?2")?
                .execute(params![plugin.as_str(), &digest[..], why])?;
        }
    }
    Ok(())
}

/// As stored in `entry.op`.
pub fn op_from(code: i64) -> Op {
    match code {
        0 => Op::Apply,
        2 => Op::Pending,
        _ => Op::Retract,
    }
}
