//! `chainweir accept-reorg`: a person's word to a chain that halted on a reorg of final blocks.

use super::Exit;
use super::client::Where;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The chain's name in the configuration
    chain: String,
    #[command(flatten)]
    at: Where,
}

pub async fn run(args: Args) -> anyhow::Result<Exit> {
    println!("{}", args.at.client()?.post(&format!("/chains/{}/accept-reorg", args.chain), None).await?);
    Ok(Exit::Done)
}
