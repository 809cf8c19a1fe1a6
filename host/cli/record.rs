//! `chainweir record`: blocks, receipts and logs of a live chain into a file.

use std::path::PathBuf;

use super::Exit;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The provider's address, ws(s):// or http(s)://
    #[arg(long, value_name = "URL")]
    rpc: String,
    /// First block; the head by default
    #[arg(long, value_name = "BLOCK", required_unless_present = "follow")]
    from: Option<u64>,
    /// Last block
    #[arg(long, value_name = "BLOCK", required_unless_present = "follow", conflicts_with = "follow")]
    to: Option<u64>,
    /// Go on with the head, reorgs included, until a signal
    #[arg(long)]
    follow: bool,
    /// Where to write: .ndjson, or .ndjson.gz to compress
    file: PathBuf,
}

pub async fn run(_args: Args) -> anyhow::Result<Exit> {
    anyhow::bail!("not built yet")
}
