//! `chainweir run`: everything, until a signal.

use std::path::{Path, PathBuf};

use super::trouble::Mistakes;
use super::{Exit, Trouble, host};
use crate::config::Config;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The configuration
    #[arg(value_name = "FILE", default_value = "chainweir.toml", conflicts_with_all = ["rpc", "plugins"])]
    file: PathBuf,
    /// Run without a file: a provider's address, ws(s):// or http(s)://; several for failover
    #[arg(long, value_name = "URL")]
    rpc: Vec<String>,
    /// Without a file: the folder that plugins are dropped into
    #[arg(long, value_name = "DIR", default_value = "plugins", requires = "rpc")]
    plugins: PathBuf,
}

/// The configuration that arguments ask for.
pub fn config(file: &Path, rpc: &[String], plugins: &Path) -> anyhow::Result<Config> {
    if !rpc.is_empty() {
        return Ok(Config::quick(Path::new("."), rpc, plugins));
    }
    Config::load(file).map_err(|mistakes| Mistakes(mistakes).into())
}

pub async fn run(args: Args) -> anyhow::Result<Exit> {
    // Before anything is begun: a signal during the start must not kill it half-way.
    let mut signals = host::Signals::listen()?;
    let config = config(&args.file, &args.rpc, &args.plugins)?;
    host::log(&config.log)?;
    let plugins = config.plugins.dir.clone();
    let mut running = tokio::select! {
        running = host::start(config) => running?,
        () = signals.next() => return Ok(Exit::Done),
    };
    let plugins = plugins.display();
    match running.url() {
        Some(url) => tracing::info!(%plugins, "running; streams are at {url}/streams"),
        None => tracing::info!(%plugins, "running; nothing is served ([http] listen = \"off\")"),
    }
    tokio::spawn(host::show_progress(running.handle.clone()));
    until_signal(&mut running, &mut signals).await?;
    drain(running, &mut signals).await
}

/// Runs on until a signal.
pub async fn until_signal(running: &mut host::Running, signals: &mut host::Signals) -> anyhow::Result<()> {
    tokio::select! {
        () = signals.next() => Ok(()),
        why = running.stopped() => {
            Err(Trouble::new(why, "mend the cause and start it again: it goes on where it stopped").into())
        }
    }
}

/// Drains; a second signal ends at once.
pub async fn drain(running: host::Running, signals: &mut host::Signals) -> anyhow::Result<Exit> {
    tracing::info!("draining; a second signal stops at once");
    tokio::select! {
        drained = running.drain(host::DRAIN) => drained?,
        () = signals.next() => return Ok(Exit::Interrupted),
    }
    tracing::info!("stopped; nothing is lost");
    Ok(Exit::Done)
}
