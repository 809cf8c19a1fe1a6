//! `chainweir status`: chains, plugins and outputs of the running process.

use std::fmt::Write;

use super::Exit;
use super::client::Where;
use crate::model::Status;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Everything, as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: Where,
}

pub async fn run(args: Args) -> anyhow::Result<Exit> {
    let client = args.at.client()?;
    if args.json {
        let status: serde_json::Value = client.get("/status").await?;
        println!("{status:#}");
    } else {
        let status: Status = client.get("/status").await?;
        print!("{}", text(&status));
    }
    Ok(Exit::Done)
}

/// Rows as columns, each as wide as its widest cell.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn text(status: &Status) -> String {
    let mut out = String::new();
    let mut say = |text: String| writeln!(out, "{text}").expect("writing to a string cannot fail");
    let ready = if status.ready { "ready" } else { "not ready" };
    say(format!("chainweir {}, {ready}", status.version));
    if let Some(why) = &status.journal.paused {
        say(format!("journal {}: paused: {why}", status.journal.path));
    }
    let mut rows = vec![row(&["CHAIN", "ID", "STATE", "HEAD", "FINALIZED", "REORGS", ""])];
    for chain in &status.chains {
        let head = chain.head.as_ref().map_or("-".into(), |b| b.number.to_string());
        let finalized = chain.finalized.as_ref().map_or("-".into(), |b| b.number.to_string());
        let why = chain.why.as_deref().unwrap_or_default();
        rows.push(row(&[&chain.name, &chain.chain, &chain.state, &head, &finalized, &chain.reorgs.to_string(), why]));
    }
    say(format!("\n{}", columns(&rows).trim_end()));
    // One that is well and alone needs no table of its own.
    let worth = |p: &&crate::model::ProviderStatus| p.state != "well" || p.false_answers > 0;
    if status.chains.iter().any(|c| c.providers.len() > 1 || c.providers.iter().any(|p| worth(&p))) {
        let mut rows =
            vec![row(&["PROVIDER", "CHAIN", "STATE", "HEAD", "ANSWERS IN", "REQUESTS", "ERRORS", "FALSE", ""])];
        for (chain, p) in status.chains.iter().flat_map(|c| c.providers.iter().map(move |p| (c, p))) {
            let head = p.head.map_or("-".into(), |head| head.to_string());
            let time = p.latency_ms.map_or("-".into(), |ms| format!("{ms:.0} ms"));
            let [requests, errors, lies] = [p.requests, p.errors, p.false_answers].map(|n| n.to_string());
            let why = p.why.as_deref().unwrap_or_default();
            rows.push(row(&[&p.name, &chain.name, &p.state, &head, &time, &requests, &errors, &lies, why]));
        }
        say(format!("\n{}", columns(&rows).trim_end()));
    }
    say(format!("\n{}", plugins(status).trim_end()));
    for file in status.refused_alone() {
        say(format!("refused file {}: {}", file.file, file.why));
    }
    if !status.outputs.is_empty() {
        let mut rows = vec![row(&["OUTPUT", "TYPE", "STATE", "DELIVERED", "BACKLOG", "PARKED", "DEAD", ""])];
        for o in &status.outputs {
            let numbers = [o.delivered, o.backlog, o.parked, o.dead].map(|n| n.to_string());
            let [delivered, backlog, parked, dead] = &numbers;
            let why = o.why.as_deref().unwrap_or_default();
            rows.push(row(&[&o.name, &o.kind, &o.state, delivered, backlog, parked, dead, why]));
        }
        say(format!("\n{}", columns(&rows).trim_end()));
    }
    out
}

/// One row for each plugin on each chain, and what was refused.
pub fn plugins(status: &Status) -> String {
    if status.plugins.is_empty() {
        return "no plugin is loaded: drop a .wasm into the plugin folder\n".into();
    }
    let mut rows =
        vec![row(&["PLUGIN", "VERSION", "CHAIN", "STATE", "AT", "LAG", "EVENTS", "EMISSIONS", "FAULTS", ""])];
    for plugin in &status.plugins {
        if plugin.chains.is_empty() {
            rows.push(row(&[&plugin.name, &plugin.version, "-", "-"]));
        }
        for on in &plugin.chains {
            let at = on.cursor.as_ref().map_or("-".into(), |b| b.number.to_string());
            let lag = on.lag_blocks.map_or("-".into(), |n| n.to_string());
            let [events, emissions, faults] = [on.events, on.emissions, on.faults].map(|n| n.to_string());
            let progress = on.catching_up.as_ref().map(ToString::to_string);
            let why = on.why.as_deref().or(progress.as_deref()).unwrap_or_default();
            rows.push(row(&[
                &plugin.name,
                &plugin.version,
                &on.chain,
                &on.state,
                &at,
                &lag,
                &events,
                &emissions,
                &faults,
                why,
            ]));
        }
    }
    let mut out = columns(&rows);
    for (plugin, refused) in status.plugins.iter().filter_map(|p| Some((p, p.refused.as_ref()?))) {
        writeln!(out, "{}: a newer file was refused: {}: {}", plugin.name, refused.file, refused.why)
            .expect("writing to a string cannot fail");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BlockStatus, ChainStatus, ConsumerStatus, OutputStatus, PluginStatus, RefusedFile};

    #[test]
    fn what_is_wrong_is_shown_beside_what_it_is_wrong_with() {
        let block = |number| Some(BlockStatus { number, ..Default::default() });
        let status = Status {
            version: "1.2.3".into(),
            ready: true,
            chains: vec![ChainStatus {
                name: "mainnet".into(),
                chain: "eip155:1".into(),
                state: "following".into(),
                head: block(20),
                reorgs: 2,
                ..Default::default()
            }],
            plugins: vec![PluginStatus {
                name: "whale".into(),
                version: "0.1.0".into(),
                chains: vec![ConsumerStatus {
                    chain: "mainnet".into(),
                    state: "faulted".into(),
                    why: Some("unreachable executed".into()),
                    cursor: block(17),
                    lag_blocks: Some(3),
                    ..Default::default()
                }],
                refused: Some(RefusedFile { file: "whale.wasm".into(), why: "not wasm".into(), ..Default::default() }),
                ..Default::default()
            }],
            outputs: vec![OutputStatus {
                name: "orders".into(),
                kind: "webhook".into(),
                state: "ok".into(),
                dead: 1,
                ..Default::default()
            }],
            ..Default::default()
        };
        assert_eq!(
            text(&status),
            "\
chainweir 1.2.3, ready

CHAIN    ID        STATE      HEAD  FINALIZED  REORGS
mainnet  eip155:1  following  20    -          2

PLUGIN  VERSION  CHAIN    STATE    AT  LAG  EVENTS  EMISSIONS  FAULTS
whale   0.1.0    mainnet  faulted  17  3    0       0          0       unreachable executed
whale: a newer file was refused: whale.wasm: not wasm

OUTPUT  TYPE     STATE  DELIVERED  BACKLOG  PARKED  DEAD
orders  webhook  ok     0          0        0       1
"
        );
    }
}
