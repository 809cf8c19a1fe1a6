//! Sends what was settled once more, by and by: an order names blocks of a track, and becomes offsets to send again as
//! fast as its pace and the output allow. The order is durable, so that a restart goes on with it.

use rusqlite::{Connection, OptionalExtension, params};

use super::sqlite::moved;
use super::{JournalError, Replay};

type Result<T> = std::result::Result<T, JournalError>;

/// Takes the order. Gives the number of entries that it comes to.
pub fn begin(db: &Connection, order: &Replay) -> Result<i64> {
    let Replay { output, track, blocks, pace } = order;
    let last: Option<i64> = db
        .prepare_cached("SELECT position FROM lane WHERE output = ?1 AND track = ?2")?
        .query_row(params![output.as_str(), track.0], |r| r.get(0))
        .optional()?;
    // What it has not settled yet comes by itself.
    let Some(last) = last else { return Ok(0) };
    let (first_block, last_block) = (*blocks.start() as i64, (*blocks.end()).min(i64::MAX as u64) as i64);
    let (count, next): (i64, Option<i64>) = db
        .prepare_cached(
            "SELECT count(*), min(e.offset) FROM entry e JOIN block b ON b.id = e.block
             WHERE e.track = ?1 AND e.offset <= ?2 AND b.number BETWEEN ?3 AND ?4",
        )?
        .query_row(params![track.0, last, first_block, last_block], |r| Ok((r.get(0)?, r.get(1)?)))?;
    let Some(next) = next else { return Ok(0) };
    let already = db
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM replay WHERE output = ?1 AND track = ?2)")?
        .query_row(params![output.as_str(), track.0], |r| r.get::<_, bool>(0))?;
    if already {
        return Err(moved(format!(
            "{output} is being sent an earlier part of this stream again: wait until that has ended"
        )));
    }
    db.prepare_cached(
        "INSERT INTO replay (output, track, next, last, first_block, last_block, pace) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![output.as_str(), track.0, next, last, first_block, last_block, pace])?;
    Ok(count)
}

/// Called once a second: each order gives its lane as much as is missing to its pace. Gives the number of orders that
/// there are still.
pub fn go_on(db: &Connection) -> Result<i64> {
    struct Order {
        id: i64,
        output: String,
        track: i64,
        next: i64,
        last: i64,
        blocks: (i64, i64),
        pace: i64,
    }
    let orders: Vec<Order> = db
        .prepare_cached("SELECT id, output, track, next, last, first_block, last_block, pace FROM replay")?
        .query_map([], |r| {
            let blocks = (r.get(5)?, r.get(6)?);
            let (id, output, track) = (r.get(0)?, r.get(1)?, r.get(2)?);
            Ok(Order { id, output, track, next: r.get(3)?, last: r.get(4)?, blocks, pace: r.get(7)? })
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut left = 0;
    for o in orders {
        let under_way: i64 = db
            .prepare_cached("SELECT count(*) FROM redo WHERE output = ?1 AND track = ?2")?
            .query_row(params![o.output, o.track], |r| r.get(0))?;
        let room = (o.pace - under_way).max(0);
        let offsets: Vec<i64> = db
            .prepare_cached(
                "SELECT e.offset FROM entry e JOIN block b ON b.id = e.block WHERE e.track = ?1 AND e.offset >= ?2
                 AND e.offset <= ?3 AND b.number BETWEEN ?4 AND ?5 ORDER BY e.offset LIMIT ?6",
            )?
            .query_map(params![o.track, o.next, o.last, o.blocks.0, o.blocks.1, room], |r| r.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let mut again = db.prepare_cached("INSERT OR IGNORE INTO redo VALUES (?1, ?2, ?3)")?;
        for offset in &offsets {
            again.execute(params![o.output, o.track, offset])?;
        }
        if (offsets.len() as i64) < room {
            db.prepare_cached("DELETE FROM replay WHERE id = ?1")?.execute([o.id])?;
            continue;
        }
        left += 1;
        if let Some(last) = offsets.last() {
            db.prepare_cached("UPDATE replay SET next = ?2 WHERE id = ?1")?.execute([o.id, last + 1])?;
        }
    }
    Ok(left)
}
