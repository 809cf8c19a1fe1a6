//! Durable emissions a second: the journal against a bare SQLite loop that inserts the same rows in one table, in one
//! run. The aim is above half. `cargo bench --bench journal`.

use std::path::Path;
use std::time::{Duration, Instant};

use alloy_primitives::B256;
use chainweir::journal::sqlite::SqliteJournal;
use chainweir::journal::{ConsumerId, Journal, NewEntry, Step, TrackId, Write};
use chainweir::model::{BlockRef, ChainId, ContentType, EmissionId, EventPosition, PluginName, StreamId, StreamSpec};
use rusqlite::params;

const CHAIN: ChainId = ChainId(1);
const STEP: u32 = 256;
/// An ERC-20 transfer as JSON.
const PAYLOAD_BYTES: usize = 250;

fn block(number: u64) -> BlockRef {
    let hash = |n: u64| B256::left_padding_from(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    BlockRef { chain: CHAIN, number, hash: hash(number), parent: hash(number - 1), time: number }
}

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

fn bare(path: &Path, steps: u64) -> Duration {
    let mut db = rusqlite::Connection::open(path).unwrap();
    db.pragma_update(None, "journal_mode", "wal").unwrap();
    db.pragma_update(None, "synchronous", "full").unwrap();
    db.pragma_update(None, "cache_size", -64 * 1024).unwrap();
    db.execute_batch(
        "CREATE TABLE entry (offset INTEGER PRIMARY KEY, track INTEGER, op INTEGER, emission BLOB, block BLOB,
         position INTEGER, ordinal INTEGER, lane_key TEXT, content_type INTEGER, payload BLOB)",
    )
    .unwrap();
    let stream: StreamId = "p.s".parse().unwrap();
    let mut offset = 0u64;
    let mut spent = Duration::ZERO;
    for number in 1..=steps {
        let entries = entries(TrackId(1), &stream, block(number));
        let began = Instant::now();
        let tx = db.transaction().unwrap();
        {
            let mut insert =
                tx.prepare_cached("INSERT INTO entry VALUES (?1, ?2, 0, ?3, ?4, ?5, ?6, ?7, ?8, ?9)").unwrap();
            for e in &entries {
                offset += 1;
                let position = match e.position {
                    EventPosition::Log(n) => n,
                    _ => 0,
                };
                insert
                    .execute(params![
                        offset,
                        e.track.0,
                        &e.emission.0[..],
                        e.block.number,
                        position,
                        e.ordinal,
                        e.lane_key,
                        e.content_type.code(),
                        e.payload
                    ])
                    .unwrap();
            }
        }
        tx.commit().unwrap();
        spent += began.elapsed();
    }
    spent
}

async fn journal(path: &Path, consumers: usize, steps: u64) -> Duration {
    let journal = SqliteJournal::open(path).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    let start = std::sync::Arc::new(tokio::sync::Barrier::new(consumers + 1));
    for n in 0..consumers {
        let plugin = PluginName::new(&format!("p{n}")).unwrap();
        let write = Write::Consumer { plugin: plugin.clone(), chain: CHAIN, state_version: 1 };
        let consumer = ConsumerId(journal.commit(write).await.unwrap().id);
        let stream: StreamId = format!("{plugin}.s").parse().unwrap();
        let spec = StreamSpec { name: stream.stream.clone(), description: String::new(), schema: None };
        let write = Write::Track { stream: stream.clone(), chain: CHAIN, spec };
        let track = TrackId(journal.commit(write).await.unwrap().id);
        // Made before the clock runs, as the bare loop's are.
        let each = steps / consumers as u64;
        let steps: Vec<Step> = (1..=each)
            .map(|number| Step {
                consumer,
                from: (number > 1).then(|| block(number - 1)),
                cursor: block(number),
                undo: true,
                safe: number.saturating_sub(32),
                finalized: number.saturating_sub(64),
                state_version: 1,
                state: vec![(b"total".to_vec(), Some(number.to_be_bytes().to_vec()))],
                entries: entries(track, &stream, block(number)),
                poison: vec![],
            })
            .collect();
        let (journal, start) = (journal.clone(), start.clone());
        tasks.spawn(async move {
            start.wait().await;
            for step in steps {
                journal.commit(Write::Step(step)).await.unwrap();
            }
        });
    }
    start.wait().await;
    let began = Instant::now();
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let spent = began.elapsed();
    journal.close(Duration::from_secs(10)).unwrap();
    spent
}

fn main() {
    let steps: u64 = if std::env::args().any(|a| a == "--test") { 16 } else { 1600 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let per_s = |spent: Duration| (steps * u64::from(STEP)) as f64 / spent.as_secs_f64();
    // The machine's mood changes: rounds of all of them, and the best of each.
    let mut best = [0f64; 3];
    for round in 0..3 {
        let at = |name: &str| folder.path().join(format!("{name}-{round}.db"));
        best[0] = best[0].max(per_s(bare(&at("bare"), steps)));
        best[1] = best[1].max(per_s(runtime.block_on(journal(&at("one"), 1, steps))));
        best[2] = best[2].max(per_s(runtime.block_on(journal(&at("eight"), 8, steps))));
    }
    println!("durable emissions a second, {STEP} a step, {PAYLOAD_BYTES} bytes each");
    println!("  bare SQLite loop      {:>9.0}", best[0]);
    println!("  journal, 1 consumer   {:>9.0}   {:.2} of bare", best[1], best[1] / best[0]);
    println!("  journal, 8 consumers  {:>9.0}   {:.2} of bare", best[2], best[2] / best[0]);
}
