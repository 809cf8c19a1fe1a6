//! Catching up from a node: blocks and logs a second, by the real router and its source over HTTP on loopback, with all
//! proofs on, against a bare client that asks the very same questions side by side, reads the answers and throws them
//! away. The node is in this process and takes its share of the processors, of both alike.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::lab::{self, FILTER, Lab, PATIENCE, drop_plugin};
use super::node::Node;
use super::{Aim, Figure};
use crate::router;

/// Questions under way of the bare client.
const SIDE_BY_SIDE: usize = 128;

/// Blocks of mainnet's kind, and such of which few hold anything.
const SHAPES: [(&str, u64, u32, u64); 2] = [("dense", 1_000, 200, 1), ("sparse", 60_000, 20, 100)];
/// Of a hundred blocks: when so many are done, the window of a new provider has opened, and the time begins.
const OPENING: u64 = 20;

/// Blocks a second.
async fn ours(lab: &Lab, name: &str, address: SocketAddr, tip: u64) -> anyhow::Result<f64> {
    let dir = lab.dir(name)?;
    let config = lab::config_at(&dir, &format!("http://{address}"), "")?;
    let running = router::start(config).await.map_err(anyhow::Error::msg)?;
    let connected = async {
        while !running.handle.status.borrow().chains.iter().all(|c| c.state == "following") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, connected).await?;
    drop_plugin(&dir, "plugin.wasm", FILTER)?;
    let mut began = None;
    let done = async {
        loop {
            let consumers = running.handle.journal.consumers()?;
            let at = consumers.iter().filter_map(|c| c.cursor).map(|at| at.number).max().unwrap_or(0);
            if began.is_none() && at >= tip * OPENING / 100 {
                began = Some((at, Instant::now()));
            }
            if at == tip {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE * 4, done).await??;
    let ended = Instant::now();
    lab::stop(running).await?;
    let (from, began) = began.unwrap_or((0, ended));
    Ok((tip - from) as f64 / (ended - began).as_secs_f64().max(1e-3))
}

async fn bare(address: SocketAddr, questions: Vec<Bytes>) -> anyhow::Result<Duration> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://{address}/");
    let began = Instant::now();
    futures::stream::iter(questions)
        .map(|question| {
            let request = client.post(&url).header("content-type", "application/json").body(question).send();
            async move { Ok::<_, reqwest::Error>(request.await?.bytes().await?.len()) }
        })
        .buffer_unordered(SIDE_BY_SIDE)
        .try_fold(0, |all, one| async move { Ok(all + one) })
        .await?;
    Ok(began.elapsed())
}

pub async fn measure(lab: Lab) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (shape, blocks, logs, every) in SHAPES {
        let blocks = lab.either(blocks, 20);
        for delay in [0u64, 20, 100] {
            let node = Node::new(blocks, logs, every, Duration::from_millis(lab.either(delay, 0)))?;
            let address = node.serve().await?;
            let rate = ours(&lab, &format!("{shape}-{delay}"), address, node.tip()).await?;
            let questions = node.asked();
            let count = questions.len();
            let alone = bare(address, questions).await?;
            let events = (blocks.div_ceil(every) * u64::from(logs)) as f64;
            let name = |what: &str| format!("backfill_{shape}_{delay}ms_{what}");
            let alone = alone.as_secs_f64().max(1e-3);
            let a_block = events / blocks as f64;
            let against = "the same requests, bare";
            let aim = Aim::AtLeast(0.9);
            figures.push(Figure::new(name("blocks"), (rate, "blocks/s"), (blocks as f64 / alone, against), aim));
            figures.push(Figure::new(name("logs"), (rate * a_block, "logs/s"), (events / alone, against), Aim::None));
            figures.push(Figure::new(
                name("requests"),
                (count as f64, "requests"),
                (blocks as f64, "blocks"),
                Aim::None,
            ));
        }
    }
    Ok(figures)
}
