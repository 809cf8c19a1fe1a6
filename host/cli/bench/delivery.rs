//! The last mile, on loopback: how long after a block is there its webhook arrives, and how many webhooks arrive in a
//! second. The real router, journal (durable), lanes and signed webhooks; only the chain is in memory and the receiver is
//! in this process, both of which take their share of the processors.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use alloy_primitives::{Address, keccak256};

use super::lab::{self, FILTER, Lab, Memory, Receiver, drop_plugin, percentile, transfer};
use super::{Aim, Figure};

/// The size of what is delivered: a transfer as a CloudEvents event.
const BODY_BYTES: usize = 1_000;

fn hook(dir: &Path, url: &str) -> anyhow::Result<String> {
    std::fs::write(dir.join("secret"), "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")?;
    Ok(format!(
        "[output.hook]\ntype = \"webhook\"\nurl = \"{url}\"\nsecret_file = \"secret\"\nallow_private = true\n\
         [[route]]\nfrom = \"filter.passed\"\nto = [\"hook\"]\n"
    ))
}

async fn post(client: &reqwest::Client, url: &str) -> anyhow::Result<()> {
    client.post(url).body(vec![b'x'; BODY_BYTES]).send().await?.error_for_status()?.bytes().await?;
    Ok(())
}

/// Block received -> webhook received, one block at a time, against the bare POST alone.
pub async fn latency(lab: Lab) -> anyhow::Result<Vec<Figure>> {
    let blocks = lab.either(1_000, 10);
    let dir = lab.dir("latency")?;
    let mut receiver = Receiver::start().await?;
    drop_plugin(&dir, "filter.wasm", FILTER)?;
    let chain = Memory::new(vec![lab::block(0, vec![])], 32, 32);
    let running = lab::router(lab::config(&dir, &hook(&dir, &receiver.url())?)?, &chain).await?;
    // The first ones find everything cold.
    for _ in 0..10 {
        chain.push(lab::transfers(1, 1));
        receiver.next().await?;
    }
    let client = reqwest::Client::builder().no_proxy().build()?;
    let (mut took, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..blocks {
        let there = chain.push(lab::transfers(1, 1));
        took.push((receiver.next().await? - there).as_secs_f64() * 1e3);
        let (began, url) = (Instant::now(), receiver.url());
        let (posted, arrived) = tokio::join!(post(&client, &url), receiver.next());
        posted?;
        bare.push((arrived? - began).as_secs_f64() * 1e3);
    }
    lab::stop(running).await?;
    let figures = [50, 99].map(|percent| {
        let (ours, theirs) = (percentile(&mut took, percent), percentile(&mut bare, percent));
        Figure::new(format!("latency_p{percent}"), (ours, "ms"), (theirs, "the POST alone"), Aim::None)
    });
    Ok(figures.into())
}

/// Webhooks a second, with 16 under way at once, against as many of the same client's POSTs in bare loops.
pub async fn rate(lab: Lab) -> anyhow::Result<Vec<Figure>> {
    let count = lab.either(10_000, 100);
    let (mut ours, mut bare) = (0f64, 0f64);
    for round in 0..lab.either(3, 1) {
        let dir = lab.dir(&format!("rate-{round}"))?;
        let mut receiver = Receiver::start().await?;
        drop_plugin(&dir, "filter.wasm", FILTER)?;
        // A lane key for each token: nothing waits for the one before it.
        let logs = (0..count).map(|n: u32| transfer(n, Address::from_word(keccak256(n.to_be_bytes())), true));
        let chain = Memory::new(vec![lab::block(0, logs.collect())], 0, 32);
        let running = lab::router(lab::config(&dir, &hook(&dir, &receiver.url())?)?, &chain).await?;
        ours = ours.max(arrivals(&mut receiver, count).await?);
        lab::stop(running).await?;

        let client = reqwest::Client::builder().no_proxy().build()?;
        let left = Arc::new(std::sync::atomic::AtomicI64::new(i64::from(count)));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let (client, url, left) = (client.clone(), receiver.url(), left.clone());
            tasks.spawn(async move {
                while left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) > 0 {
                    post(&client, &url).await?;
                }
                anyhow::Ok(())
            });
        }
        bare = bare.max(arrivals(&mut receiver, count).await?);
        while let Some(done) = tasks.join_next().await {
            done??;
        }
    }
    Ok(vec![Figure::new("deliveries", (ours, "webhooks/s"), (bare, "the same client in a bare loop"), Aim::None)])
}

async fn arrivals(receiver: &mut Receiver, count: u32) -> anyhow::Result<f64> {
    let first = receiver.next().await?;
    let mut last = first;
    for _ in 1..count {
        last = receiver.next().await?;
    }
    Ok(f64::from(count - 1) / (last - first).as_secs_f64())
}
