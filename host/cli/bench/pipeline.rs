//! The belt as it catches up: final blocks, index, plugin, ids and payloads, journal, by the real router. One transfer in
//! a hundred is emitted. Blocks are in memory, decoded: what it costs to unpack, parse and check recorded ones is measured
//! apart.

use std::io::Read;
use std::time::Instant;

use anyhow::ensure;

use super::lab::{self, FILTER, Lab, Memory, PATIENCE, RECORDING, block, drop_plugin, processor_time, transfers};
use super::{Aim, Figure};
use crate::model::Wanted;
use crate::source::{Open, recorded};

/// As a busy mainnet block has them.
const LOGS: u32 = 400;
/// 12,800 events a step.
const BLOCKS_AT_ONCE: u64 = 32;

pub async fn measure(lab: Lab) -> anyhow::Result<Vec<Figure>> {
    let blocks = lab.either(4_096, 64);
    let events = f64::from(LOGS) * blocks as f64;
    let wasm = match &lab.plugin {
        Some(path) => std::fs::read(path)?,
        None => FILTER.to_vec(),
    };
    let (mut on_a_core, mut by_the_clock) = (0f64, 0f64);
    for round in 0..lab.either(3, 1) {
        let chain = Memory::new((0..blocks).map(|n| block(n, transfers(LOGS, 100))).collect(), 0, BLOCKS_AT_ONCE);
        let dir = lab.dir(&format!("pipeline-{round}"))?;
        drop_plugin(&dir, "plugin.wasm", &wasm)?;
        let running = lab::router(lab::config(&dir, "")?, &chain).await?;
        let mut tail = running.handle.journal.tail();
        let done = async {
            loop {
                tail.changed().await?;
                let consumers = running.handle.journal.consumers()?;
                if consumers.iter().any(|c| c.cursor.is_some_and(|at| at.number == chain.tip())) {
                    return anyhow::Ok((Instant::now(), processor_time()));
                }
            }
        };
        let (ended, cpu) = tokio::time::timeout(PATIENCE, done).await??;
        let (began, cpu_then) = chain.asked().ok_or_else(|| anyhow::anyhow!("it ended before it began"))?;
        on_a_core = on_a_core.max(events / (cpu - cpu_then).as_secs_f64().max(0.01));
        by_the_clock = by_the_clock.max(events / (ended - began).as_secs_f64());
        let emitted = *tail.borrow();
        ensure!(lab.plugin.is_some() || emitted == events as u64 / 100, "{emitted} emissions of {events} events");
        lab::stop(running).await?;
    }
    let aim = (1e6, "the aim, a million");
    let (decoded, parsed) = decode(&lab).await?;
    Ok(vec![
        Figure::new("pipeline", (on_a_core, "events/core/s"), aim, Aim::AtLeast(1.0)),
        Figure::new("pipeline_clock", (by_the_clock, "events/s"), aim, Aim::None),
        Figure::new("decode_recorded", (decoded, "MB/s"), (parsed, "serde_json alone"), Aim::None),
    ])
}

/// MB of JSON a second that the recorded source unpacks, parses and proves against headers and signatures, on one core; and
/// that serde_json parses alone.
async fn decode(lab: &Lab) -> anyhow::Result<(f64, f64)> {
    let dir = lab.dir("decode")?;
    std::fs::write(dir.join("chain.ndjson.gz"), RECORDING)?;
    let table = toml::Table::from_iter([("files".to_owned(), "chain.ndjson.gz".into())]);
    let source = (recorded::KIND.open)(Open { name: "bench".into(), expect: None, table, base: dir }).await?;
    // A range speaks of what has been played.
    while !source.ended() {
        source.head().await?;
        source.changed().await;
    }
    let last = source.head().await?.number;
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(RECORDING).read_to_string(&mut text)?;
    let mb_a_second = |began: Instant| text.len() as f64 / 1e6 / began.elapsed().as_secs_f64();
    let (mut ours, mut bare) = (0f64, 0f64);
    for _ in 0..lab.either(5, 1) {
        let (began, mut next) = (Instant::now(), source.first().unwrap_or(0));
        while next <= last {
            next = source.range(next, last, &Wanted::all()).await?.to.number + 1;
        }
        ours = ours.max(mb_a_second(began));
        let began = Instant::now();
        for line in text.lines() {
            std::hint::black_box(serde_json::from_str::<serde_json::Value>(line)?);
        }
        bare = bare.max(mb_a_second(began));
    }
    Ok((ours, bare))
}
