//! The pause that a reload makes: the longest gap between two committed steps of a plugin, while new versions of it are
//! dropped, compiled, tried and swapped in, against the longest gap in as long a time without.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::lab::{self, FILTER, Lab, Memory, PATIENCE, drop_plugin, median, transfers, variant};
use super::{Aim, Figure};
use crate::model::Status;
use crate::plugin::Digest;

type Gaps = UnboundedReceiver<Duration>;

async fn longest_until(gaps: &mut Gaps, mut until: impl FnMut() -> bool) -> anyhow::Result<Duration> {
    let mut longest = Duration::ZERO;
    while !until() {
        longest = longest.max(tokio::time::timeout(PATIENCE, gaps.recv()).await?.unwrap_or_default());
    }
    Ok(longest)
}

pub async fn measure(lab: Lab) -> anyhow::Result<Vec<Figure>> {
    let swaps = lab.either(20, 1);
    let dir = lab.dir("reload")?;
    drop_plugin(&dir, "filter.wasm", FILTER)?;
    let chain = Memory::new(vec![lab::block(0, transfers(1, 1))], 32, 32);
    let running = lab::router(lab::config(&dir, "")?, &chain).await?;

    // A block follows as soon as the last one's step is durable.
    let (gaps_tell, mut gaps) = mpsc::unbounded_channel();
    let mut tail = running.handle.journal.tail();
    let (feeding, stop) = (chain.clone(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let feeder = tokio::spawn(async move {
        let mut last: Option<Instant> = None;
        while !stopped.load(Ordering::Relaxed) && tail.changed().await.is_ok() {
            let now = Instant::now();
            // Whoever listens may have what it wants.
            gaps_tell.send(last.map_or(Duration::ZERO, |last| now - last)).ok();
            last = Some(now);
            feeding.push(transfers(1, 1));
        }
    });
    let runs = |status: &Status, digest: &str| status.plugins.iter().any(|plugin| plugin.digest == digest);
    let warm = Instant::now() + lab.either(Duration::from_millis(500), Duration::ZERO);
    longest_until(&mut gaps, || Instant::now() > warm).await?;

    let (mut with, mut without) = (Vec::new(), Vec::new());
    for number in 0..swaps {
        let wasm = variant(FILTER, number);
        let digest = Digest::of(&wasm).to_string();
        let began = Instant::now();
        drop_plugin(&dir, "filter.wasm", &wasm)?;
        let status = running.handle.status.clone();
        with.push(longest_until(&mut gaps, || runs(&status.borrow(), &digest)).await?.as_secs_f64() * 1e3);
        let quiet = Instant::now() + began.elapsed();
        without.push(longest_until(&mut gaps, || Instant::now() > quiet).await?.as_secs_f64() * 1e3);
    }
    stop.store(true, Ordering::Relaxed);
    lab::stop(running).await?;
    feeder.await?;
    let longest = |gaps: &[f64]| gaps.iter().copied().fold(0.0, f64::max);
    let against = "the longest without a reload";
    Ok(vec![
        Figure::new("reload_pause_longest", (longest(&with), "ms"), (longest(&without), against), Aim::None),
        Figure::new("reload_pause_median", (median(with), "ms"), (median(without), against), Aim::None),
    ])
}
