//! Recorded blocks through one plugin, with the whole process in between: its journal is thrown away.
//!
//! A recording goes over to another branch when the plugin has seen the one before: the same recording always gives
//! the same output, retractions among it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use alloy_primitives::B256;
use anyhow::Context;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::tail::{self, Tail};
use super::{Trouble, artifact, host};
use crate::config::{ChainConfig, Config, Finality, PluginConfig, Start};
use crate::journal::Journal;
use crate::model::{Block, BlockRef, ChainId, Delivery, Wanted};
use crate::source::recorded::Recorded;
use crate::source::{Open, Range, ReadError, Source, Tag};

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
    let open = Open {
        name: CHAIN.into(),
        expect: None,
        table: config.chains.get(CHAIN).map(|chain| chain.table.clone()).unwrap_or_default(),
        base: config.base.clone(),
    };
    let recording = Recorded::open(open)
        .await
        .map_err(|error| Trouble::usage(error.to_string(), "'chainweir record' makes a recording"))?;
    let stepped = Arc::new(Stepped { recording, end: Mutex::default(), told: Semaphore::new(0) });
    let given = BTreeMap::from([(CHAIN.to_owned(), stepped.clone() as Arc<dyn Source>)]);
    let running = host::start_with(config, given).await?;
    let progress = offline.progress.then(|| tokio::spawn(host::show_progress(running.handle.clone())));
    let outcome = follow(&running, &stepped, &mut each).await;
    if let Some(progress) = progress {
        progress.abort();
    }
    running.drain(host::DRAIN).await?;
    outcome
}

const CHAIN: &str = "recorded";

/// A recording that waits at the end of each branch until it is told to go on.
struct Stepped {
    recording: Recorded,
    /// The end of a branch, while it waits there.
    end: Mutex<Option<BlockRef>>,
    told: Semaphore,
}

impl Stepped {
    fn end(&self) -> std::sync::MutexGuard<'_, Option<BlockRef>> {
        self.end.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Goes on where the plugin has seen the branch; or stands above it: one that is lower says nothing to it.
    fn go_on(&self, journal: &dyn Journal) -> anyhow::Result<()> {
        let mut end = self.end();
        let Some(at) = *end else { return Ok(()) };
        let seen = |cursor: BlockRef| cursor.hash == at.hash || cursor.number > at.number;
        if journal.consumers()?.iter().any(|consumer| consumer.cursor.is_some_and(seen)) {
            *end = None;
            self.told.add_permits(1);
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl Source for Stepped {
    fn chain(&self) -> ChainId {
        self.recording.chain()
    }
    async fn head(&self) -> Result<BlockRef, ReadError> {
        self.recording.head().await
    }
    async fn tagged(&self, tag: Tag) -> Result<Option<BlockRef>, ReadError> {
        self.recording.tagged(tag).await
    }
    async fn by_hash(&self, hash: B256) -> Result<BlockRef, ReadError> {
        self.recording.by_hash(hash).await
    }
    async fn by_number(&self, number: u64) -> Result<BlockRef, ReadError> {
        self.recording.by_number(number).await
    }
    async fn block(&self, at: &BlockRef, wanted: &Wanted) -> Result<Block, ReadError> {
        self.recording.block(at, wanted).await
    }
    async fn range(&self, from: u64, to: u64, wanted: &Wanted) -> Result<Range, ReadError> {
        self.recording.range(from, to, wanted).await
    }
    async fn changed(&self) {
        if self.recording.parts_next()
            && let Ok(head) = self.recording.head().await
        {
            *self.end() = Some(head);
            // Nobody closes it.
            if let Ok(told) = self.told.acquire().await {
                told.forget();
            }
        }
        self.recording.changed().await;
    }
    fn first(&self) -> Option<u64> {
        self.recording.first()
    }
    fn ended(&self) -> bool {
        self.recording.ended()
    }
}

async fn follow(
    running: &host::Running,
    stepped: &Stepped,
    each: &mut impl FnMut(Delivery) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
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
            None => stepped.go_on(&*handle.journal)?,
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
        name: CHAIN.into(),
        source: "recorded".into(),
        chain_id: None,
        start: Start::Block(0),
        dropped_after: crate::config::DROPPED_AFTER,
        // Nothing is final: how deep the recording's reorgs are is not known before it is read.
        finality: Finality::Depth(u64::from(u32::MAX)),
        table: toml::Table::from_iter([("files".to_owned(), toml::Value::Array(files))]),
    };
    config.chains.insert(chain.name.clone(), chain);
    config.plugin.insert(manifest.name, PluginConfig { config: offline.config.clone(), ..Default::default() });
    Ok(config)
}
