//! `chainweir resume`: an output that stopped, or waits between two attempts, tries at once.

use super::Exit;
use super::client::Where;
use crate::model::OutputName;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The output's name in the configuration
    output: OutputName,
    #[command(flatten)]
    at: Where,
}

pub async fn run(args: Args) -> anyhow::Result<Exit> {
    println!("{}", args.at.client()?.post(&format!("/outputs/{}/resume", args.output), None).await?);
    Ok(Exit::Done)
}
