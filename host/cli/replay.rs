//! `chainweir replay`: a plugin over recorded blocks, offline; or, of the running process, what an output has had, once more.

use std::io::Write;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::client::Where;
use super::offline::{self, Offline};
use super::{Exit, artifact};
use crate::model::{OutputName, StreamId};
use crate::sink::cloudevent;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Recorded blocks, as 'chainweir record' writes them (.ndjson or .ndjson.gz)
    #[arg(required_unless_present = "stream", value_name = "FILE")]
    blocks: Vec<PathBuf>,
    /// The plugin
    #[arg(long, value_name = "WASM", required_unless_present = "stream")]
    plugin: Option<PathBuf>,
    /// Its configuration
    #[arg(long, value_name = "JSON", value_parser = artifact::parse_config)]
    config: Option<Map<String, Value>>,
    /// Of the running process: the stream, as plugin.stream
    #[arg(long, conflicts_with_all = ["blocks", "plugin", "config"], requires_all = ["from", "to"])]
    stream: Option<StreamId>,
    /// The first block
    #[arg(long, value_name = "BLOCK", requires = "stream")]
    from: Option<u64>,
    /// The last block; the newest that the output has had
    #[arg(long, value_name = "BLOCK", requires = "stream")]
    until: Option<u64>,
    /// The output to send it to
    #[arg(long, value_name = "OUTPUT", requires = "stream")]
    to: Option<OutputName>,
    /// Of this chain alone, as eip155:1
    #[arg(long, requires = "stream")]
    chain: Option<String>,
    /// Most deliveries a second, beside what comes live
    #[arg(long, default_value_t = 100, requires = "stream")]
    pace: u32,
    /// Address of the running process; by default [http].listen of chainweir.toml
    #[arg(long, value_name = "URL", requires = "stream")]
    url: Option<String>,
}

/// CloudEvents on stdout, one a line; reorgs in the recording give retractions.
pub async fn run(args: Args) -> anyhow::Result<Exit> {
    if let (Some(stream), Some(from), Some(to)) = (&args.stream, args.from, &args.to) {
        let order = json!({
            "stream": stream.to_string(), "from": from, "to": args.until, "chain": args.chain, "pace": args.pace
        });
        println!("{}", Where::at(args.url).client()?.post(&format!("/outputs/{to}/replay"), Some(&order)).await?);
        return Ok(Exit::Done);
    }
    let mut out = std::io::BufWriter::new(std::io::stdout());
    let wasm = args.plugin.unwrap_or_default();
    let offline = Offline { blocks: args.blocks, wasm, config: args.config.unwrap_or_default(), progress: true };
    offline::play(offline, |delivery| {
        out.write_all(&cloudevent::encode(&delivery))?;
        Ok(out.write_all(b"\n")?)
    })
    .await?;
    out.flush()?;
    Ok(Exit::Done)
}
