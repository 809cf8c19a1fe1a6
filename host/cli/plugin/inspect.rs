//! `chainweir plugin inspect`: what a .wasm says of itself.

use std::path::PathBuf;

use serde_json::Value;

use crate::cli::Exit;
use crate::cli::artifact;

#[derive(clap::Args, Debug)]
pub struct Args {
    wasm: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// The plugin's configuration, where describing it needs one
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = artifact::parse_config)]
    config: serde_json::Map<String, Value>,
}

pub fn run(args: Args) -> anyhow::Result<Exit> {
    let artifact = artifact::load(&args.wasm, &args.config)?;
    if args.json {
        println!("{:#}", artifact.json());
    } else {
        print!("{}", artifact.text());
    }
    Ok(Exit::Done)
}
