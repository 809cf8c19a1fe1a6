//! Recorded blocks through one plugin, with the whole process in between: its journal is thrown away.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Map, Value};

use super::tail::{self, Tail};
use super::{Trouble, artifact, host};
use crate::config::{ChainConfig, Config, Finality, PluginConfig, Start};
use crate::model::Delivery;

pub struct Offline {
    pub blocks: Vec<PathBuf>,
    pub wasm: PathBuf,
    pub config: Map<String, Value>,
    /// Show how far it is.
    pub progress: bool,
}

/// Hands over everything that is emitted and retracted, in order. Returns when the recording is at its end.
pub async fn play(offline: Offline, mut each: impl FnMut(Delivery) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("chainweir-").tempdir().context("cannot make a temporary folder")?;
    let config = config(&offline, folder.path())?;
    let running = host::start(config).await?;
    let progress = offline.progress.then(|| tokio::spawn(host::show_progress(running.handle.clone())));
    let outcome = follow(&running, &mut each).await;
    if let Some(progress) = progress {
        progress.abort();
    }
    running.drain(host::DRAIN).await?;
    outcome
}

async fn follow(running: &host::Running, each: &mut impl FnMut(Delivery) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let handle = &running.handle;
    let (mut status, mut written) = (handle.status.clone(), handle.journal.tail());
    let mut tail = Tail::new(handle.journal.clone());
    loop {
        // The end is seen before the last read: what was committed before it cannot be missed.
        let played = host::played(&status.borrow_and_update().clone());
        written.borrow_and_update();
        loop {
            let entries = tail.next()?;
            if entries.is_empty() {
                break;
            }
            for (track, entry) in entries {
                each(tail::delivery(&track, entry))?;
            }
        }
        match played {
            Some(Ok(())) => return Ok(()),
            Some(Err(why)) => {
                return Err(Trouble::new(why, "mend the plugin or the recording, and run it again").into());
            }
            None => {}
        }
        tokio::select! {
            changed = status.changed() => changed.context("the process stopped before the recording ended")?,
            changed = written.changed() => changed.context("the journal stopped before the recording ended")?,
        }
    }
}

fn config(offline: &Offline, folder: &Path) -> anyhow::Result<Config> {
    let manifest = artifact::load(&offline.wasm, &offline.config)?.manifest;
    let mut files = vec![];
    for file in &offline.blocks {
        let path = file.canonicalize().with_context(|| {
            Trouble::usage(format!("cannot read {}", file.display()), "'chainweir record' makes a recording")
        })?;
        let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
        files.push(toml::Value::String(text.to_owned()));
    }
    let mut config = Config::empty(folder);
    config.http.listen = None;
    std::fs::create_dir_all(&config.plugins.dir)?;
    std::fs::copy(&offline.wasm, config.plugins.dir.join(format!("{}.wasm", manifest.name)))?;
    let chain = ChainConfig {
        name: "recorded".into(),
        source: "recorded".into(),
        chain_id: None,
        start: Start::Block(0),
        // Nothing is final: how deep the recording's reorgs are is not known before it is read.
        finality: Finality::Depth(u64::from(u32::MAX)),
        table: toml::Table::from_iter([("files".to_owned(), toml::Value::Array(files))]),
    };
    config.chains.insert(chain.name.clone(), chain);
    config.plugin.insert(manifest.name, PluginConfig { config: offline.config.clone(), ..Default::default() });
    Ok(config)
}
