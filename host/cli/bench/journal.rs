//! Durable emissions a second: the journal, with one consumer and with eight that share commits, against a bare SQLite
//! loop that inserts the same rows into one table.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::params;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::lab::{CHAIN, Lab, block_ref};
use super::{Aim, Figure};
use crate::journal::sqlite::SqliteJournal;
use crate::journal::{ConsumerId, Journal, NewEntry, Step, TrackId, Write};
use crate::model::{BlockRef, ContentType, EmissionId, EventPosition, PluginName, StreamId, StreamSpec};

/// Emissions of a step.
const STEP: u32 = 256;
/// A transfer as JSON.
const PAYLOAD_BYTES: usize = 250;

fn entries(track: TrackId, stream: &StreamId, at: BlockRef) -> Vec<NewEntry> {
    let entry = |n: u32| NewEntry {
        track,
        emission: EmissionId::of(CHAIN, &at.hash, EventPosition::Log(n), stream, 0, 0),
        block: at,
        position: EventPosition::Log(n),
        ordinal: 0,
        lane_key: format!("0x{:040x}", n % 64),
        content_type: ContentType::Json,
        payload: vec![b'x'; PAYLOAD_BYTES],
    };
    (0..STEP).map(entry).collect()
}

fn bare(path: &Path, steps: u64) -> anyhow::Result<Duration> {
    let mut db = rusqlite::Connection::open(path)?;
    db.pragma_update(None, "journal_mode", "wal")?;
    db.pragma_update(None, "synchronous", "full")?;
    db.pragma_update(None, "cache_size", -64 * 1024)?;
    db.execute_batch(
        "CREATE TABLE entry (offset INTEGER PRIMARY KEY, track INTEGER, op INTEGER, emission BLOB, block BLOB,
         position INTEGER, ordinal INTEGER, lane_key TEXT, content_type INTEGER, payload BLOB)",
    )?;
    let stream: StreamId = "p.s".parse()?;
    let mut offset = 0u64;
    let mut spent = Duration::ZERO;
    for number in 1..=steps {
        let entries = entries(TrackId(1), &stream, block_ref(number));
        let began = Instant::now();
        let tx = db.transaction()?;
        {
            let mut insert = tx.prepare_cached("INSERT INTO entry VALUES (?1, ?2, 0, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
            for (position, e) in entries.iter().enumerate() {
                offset += 1;
                insert.execute(params![
                    offset,
                    e.track.0,
                    &e.emission.0[..],
                    e.block.number,
                    position,
                    e.ordinal,
                    e.lane_key,
                    e.content_type.code(),
                    e.payload
                ])?;
            }
        }
        tx.commit()?;
        spent += began.elapsed();
    }
    Ok(spent)
}

async fn ours(path: &Path, consumers: u64, steps: u64) -> anyhow::Result<Duration> {
    let journal = SqliteJournal::open(path)?;
    let mut tasks = JoinSet::new();
    let start = Arc::new(Barrier::new(consumers as usize + 1));
    for n in 0..consumers {
        let plugin = PluginName::new(&format!("p{n}"))?;
        let write = Write::Consumer { plugin: plugin.clone(), chain: CHAIN, state_version: 1 };
        let consumer = ConsumerId(journal.commit(write).await?.id);
        let stream: StreamId = format!("{plugin}.s").parse()?;
        let spec = StreamSpec { name: stream.stream.clone(), description: String::new(), schema: None };
        let write = Write::Track { stream: stream.clone(), chain: CHAIN, spec };
        let track = TrackId(journal.commit(write).await?.id);
        // Made before the clock runs, as the bare loop's are.
        let steps = (1..=steps / consumers).map(|number| Step {
            consumer,
            from: (number > 1).then(|| block_ref(number - 1)),
            cursor: block_ref(number),
            undo: true,
            aside: false,
            said: None,
            safe: number.saturating_sub(32),
            finalized: number.saturating_sub(64),
            state_version: 1,
            state: vec![(b"total".to_vec(), Some(number.to_be_bytes().to_vec()))],
            entries: entries(track, &stream, block_ref(number)),
            poison: vec![],
            asks: vec![],
            taken: None,
        });
        let steps: Vec<Step> = steps.collect();
        let (journal, start) = (journal.clone(), start.clone());
        tasks.spawn(async move {
            start.wait().await;
            for step in steps {
                journal.commit(Write::Step(step)).await?;
            }
            anyhow::Ok(())
        });
    }
    start.wait().await;
    let began = Instant::now();
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let spent = began.elapsed();
    journal.close(Duration::from_secs(10))?;
    Ok(spent)
}

pub async fn measure(lab: Lab) -> anyhow::Result<Vec<Figure>> {
    let steps = lab.either(1_600, 16);
    let per_s = |spent: Duration| (steps * u64::from(STEP)) as f64 / spent.as_secs_f64();
    let mut best = [0f64; 3];
    for round in 0..lab.either(3, 1) {
        let dir = lab.dir(&format!("round-{round}"))?;
        best[0] = best[0].max(per_s(bare(&dir.join("bare.db"), steps)?));
        best[1] = best[1].max(per_s(ours(&dir.join("one.db"), 1, steps).await?));
        best[2] = best[2].max(per_s(ours(&dir.join("eight.db"), 8, steps).await?));
    }
    let bare = (best[0], "a bare SQLite loop");
    let figure = |name: &str, value| Figure::new(name, (value, "emissions/s"), bare, Aim::AtLeast(0.5));
    Ok(vec![figure("journal_1", best[1]), figure("journal_8", best[2])])
}
