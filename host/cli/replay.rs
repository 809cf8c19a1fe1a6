//! `chainweir replay`: a plugin over recorded blocks, offline.

use std::io::Write;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::offline::{self, Offline};
use super::{Exit, artifact};
use crate::sink::cloudevent;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Recorded blocks, as 'chainweir record' writes them (.ndjson or .ndjson.gz)
    #[arg(required = true, value_name = "FILE")]
    blocks: Vec<PathBuf>,
    /// The plugin
    #[arg(long, value_name = "WASM")]
    plugin: PathBuf,
    /// Its configuration
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = artifact::parse_config)]
    config: Map<String, Value>,
}

/// CloudEvents on stdout, one a line; reorgs in the recording give retractions.
pub async fn run(args: Args) -> anyhow::Result<Exit> {
    let mut out = std::io::BufWriter::new(std::io::stdout());
    let offline = Offline { blocks: args.blocks, wasm: args.plugin, config: args.config, progress: true };
    offline::play(offline, |delivery| {
        out.write_all(&cloudevent::encode(&delivery))?;
        Ok(out.write_all(b"\n")?)
    })
    .await?;
    out.flush()?;
    Ok(Exit::Done)
}
