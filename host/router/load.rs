//! A .wasm on its way to being the running version: compiled, described, checked against what the journal
//! holds, tried on recent blocks with state that is thrown away, written down. One async job beside the
//! router's loop; nothing that runs is touched until it has ended well.

use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::blocks::{Blocks, Plan};
use super::consumer::FULL_RETRY;
use super::work::state_of;
use crate::config::{Config, PluginConfig};
use crate::index::Index;
use crate::index::watch::SharedSets;
use crate::journal::{Consumer, Journal, JournalError, TrackId, VersionWrite, Write};
use crate::model::{ChainId, Manifest, PluginName, StreamId};
use crate::plugin::capabilities::{Capability, Grants};
use crate::plugin::engine::{Compiled, Engine, LoadError};
use crate::plugin::step::{Setup, Worker};
use crate::plugin::{BlockEvents, Digest, StateRead};

/// Blocks that a candidate is tried on, at most.
const TRIAL_BLOCKS: usize = 8;

/// A plugin's code and what it says of itself under its configuration.
#[derive(Clone)]
pub struct Candidate {
    pub file: PathBuf,
    pub digest: Digest,
    pub compiled: Compiled,
    pub manifest: Manifest,
    pub config_json: String,
    pub settings: PluginConfig,
}

impl Candidate {
    /// A worker for one chain. Fails where the plugin imports what it is not granted.
    pub fn worker(&self, chain: ChainId) -> Result<Worker, LoadError> {
        let granted = |all: &Vec<String>| {
            let kept = Capability::ALL.into_iter().filter(|c| all.iter().any(|name| name == c.as_str()));
            Grants(kept.collect())
        };
        let setup = Setup {
            plugin: self.manifest.name.clone(),
            chain,
            // The manifest was checked: a stream's number fits.
            streams: self.manifest.streams.len() as u16,
            limits: self.settings.limits.clone(),
            on_poison: self.settings.on_poison,
            config: self.config_json.as_str().into(),
            grants: self.settings.grants.as_ref().map(granted).unwrap_or_default(),
        };
        Worker::new(&self.compiled, setup)
    }
}

/// Where it will run: everything is in the journal.
pub struct Installed {
    pub candidate: Candidate,
    pub consumers: Vec<InstalledConsumer>,
    /// The version that it replaces because that one is bad, and why.
    pub instead_of: Option<(Digest, String)>,
}

pub struct InstalledConsumer {
    pub chain_name: String,
    pub row: Consumer,
    /// In the order of the manifest's streams.
    pub tracks: Vec<(TrackId, StreamId)>,
    /// Linked already: the swap is an assignment.
    pub worker: Worker,
}

/// A chain that has answered.
#[derive(Clone)]
pub struct ReadyChain {
    pub name: String,
    pub id: ChainId,
    pub blocks: Arc<Blocks>,
}

/// Why a file is not taken; `for_plugin` where that much could be told.
pub struct Refusal {
    pub for_plugin: Option<PluginName>,
    pub why: String,
    /// It was banned: what ran before it may run.
    pub banned: bool,
}

pub struct Load {
    pub engine: Engine,
    pub config: Arc<Config>,
    pub journal: Arc<dyn Journal>,
    pub chains: Vec<ReadyChain>,
    pub sets: SharedSets,
    pub file: PathBuf,
    /// The plugin that this file provides now.
    pub provides: Option<PluginName>,
    pub digest: Digest,
    pub bytes: Arc<[u8]>,
    /// A person said that it may take over the state of another version.
    pub upgrade: bool,
    /// The version that it replaces because that one is bad, and why.
    pub instead_of: Option<(Digest, String)>,
    /// A folder full of plugins is compiled a few at a time.
    pub compilers: Arc<Semaphore>,
}

/// Where versions are kept, so that a rollback does not depend on the plugin folder.
pub fn versions_folder(journal: &Path) -> PathBuf {
    PathBuf::from(format!("{}.d", journal.display())).join("versions")
}

pub fn cache_folder(journal: &Path) -> PathBuf {
    PathBuf::from(format!("{}.d", journal.display())).join("cache")
}

fn version_file(journal: &Path, digest: &Digest) -> PathBuf {
    versions_folder(journal).join(format!("{digest}.wasm"))
}

/// A version that ran before.
pub fn read_version(journal: &Path, digest: &Digest) -> Result<Arc<[u8]>, String> {
    let path = version_file(journal, digest);
    std::fs::read(&path).map(Into::into).map_err(|e| format!("cannot read the kept version {}: {e}", path.display()))
}

fn keep_version(journal: &Path, digest: &Digest, bytes: &[u8]) -> std::io::Result<()> {
    let path = version_file(journal, digest);
    if path.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(versions_folder(journal))?;
    let temporary = path.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&temporary, bytes)?;
    std::fs::File::open(&temporary)?.sync_all()?;
    std::fs::rename(&temporary, &path)
}

impl Load {
    pub async fn run(self) -> Result<Installed, Refusal> {
        let provides = self.provides.clone();
        let refuse = |why: String| Refusal { for_plugin: provides.clone(), why, banned: false };
        let this = Arc::new(self);
        let permit = this.compilers.acquire().await.map_err(|e| refuse(format!("loading ended: {e}")))?;
        let job = this.clone();
        let candidate = tokio::task::spawn_blocking(move || job.describe())
            .await
            .map_err(|e| refuse(format!("loading panicked: {e}")))?
            .map_err(refuse)?;
        drop(permit);
        let name = candidate.manifest.name.clone();
        if let Some(other) = provides.as_ref().filter(|other| **other != name) {
            return Err(refuse(format!(
                "it calls itself '{name}', but this file provides '{other}': give it a file of its own; to replace \
                 '{other}', remove the file first"
            )));
        }
        let refuse = |why: String| Refusal { for_plugin: Some(name.clone()), why, banned: false };

        this.check_versions(&candidate).map_err(|(why, banned)| Refusal { banned, ..refuse(why) })?;
        let job = this.clone();
        let candidate = tokio::task::spawn_blocking(move || job.try_out(&candidate).map(|()| candidate))
            .await
            .map_err(|e| refuse(format!("the trial panicked: {e}")))?
            .map_err(refuse)?;
        while let Err(error) = keep_version(&this.config.journal.path, &candidate.digest, &this.bytes) {
            if !matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
                return Err(refuse(format!("cannot keep the version for a rollback: {error}")));
            }
            this.no_room(error.to_string()).await;
        }
        this.install(candidate).await.map_err(refuse)
    }

    /// Compiles it and asks it what it is. The configuration depends on its name, which it tells: a file is
    /// described under the table of its file's name first, and again if it bears another.
    fn describe(&self) -> Result<Candidate, String> {
        let compiled = self.engine.load(&self.bytes).map_err(|e| e.to_string())?;
        let stem = self.file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        let settings_of = |name: &str| {
            let table = self.config.plugin.iter().find(|(n, _)| n.as_str() == name);
            table.map(|(_, settings)| settings.clone()).unwrap_or_default()
        };
        let describe = |settings: &PluginConfig| {
            let config_json = serde_json::Value::Object(settings.config.clone()).to_string();
            let manifest = compiled.describe(&config_json, &settings.limits).map_err(|e| e.to_string())?;
            Ok::<_, String>((manifest, config_json))
        };
        let mut settings = settings_of(stem);
        let (mut manifest, mut config_json) = describe(&settings)?;
        if manifest.name.as_str() != stem {
            settings = settings_of(manifest.name.as_str());
            (manifest, config_json) = describe(&settings)?;
        }
        Ok(Candidate { file: self.file.clone(), digest: self.digest, compiled, manifest, config_json, settings })
    }

    fn check_versions(&self, candidate: &Candidate) -> Result<(), (String, bool)> {
        let name = &candidate.manifest.name;
        let versions = self.journal.versions(name).map_err(|e| (e.to_string(), false))?;
        let banned = versions.iter().find(|v| v.digest == candidate.digest.0).and_then(|v| v.banned.clone());
        if let (Some(why), None) = (banned, &self.instead_of) {
            return Err((
                format!("this very file was rolled back ({why}): it is not loaded again until it changes"),
                true,
            ));
        }
        let consumers = self.journal.consumers().map_err(|e| (e.to_string(), false))?;
        let (new, allowed) = (candidate.manifest.state_version, candidate.settings.upgrade);
        for old in consumers.iter().filter(|c| c.plugin == *name && c.cursor.is_some()) {
            if old.state_version != new && allowed != Some(new) && !self.upgrade {
                return Err((
                    format!(
                        "it has state version {new}, but the state on {} was written by version {}: if it can read \
                         that, allow it with 'upgrade = {new}' in [plugin.{name}]",
                        old.chain, old.state_version
                    ),
                    false,
                ));
            }
        }
        Ok(())
    }

    /// Runs it over blocks that are in memory, on a copy of the state that is thrown away.
    fn try_out(&self, candidate: &Candidate) -> Result<(), String> {
        let consumers = self.journal.consumers().map_err(|e| e.to_string())?;
        for chain in &self.chains {
            let consumer = consumers.iter().find(|c| c.plugin == candidate.manifest.name && c.chain == chain.id);
            let subscriptions = candidate.manifest.subscriptions.as_slice();
            let index = Index::new(chain.id, [(0, subscriptions)], &mut self.sets.write());
            let wanted = index.wanted().clone();
            let plan = Plan { index, wanted, generation: 0, sets: self.sets.clone() };
            for block in chain.blocks.recent(plan.index.wanted(), TRIAL_BLOCKS) {
                let matched = plan.match_block(&block);
                let events: Vec<_> = matched.events(0).collect();
                let block_subscribed = matched.wants_block(0);
                if events.is_empty() && !block_subscribed {
                    continue;
                }
                let state: Box<dyn StateRead> = match consumer {
                    Some(consumer) => state_of(self.journal.clone(), consumer.id),
                    None => Box::new(NoState),
                };
                let events =
                    BlockEvents { at: matched.at, block_record: matched.block_record(), block_subscribed, events };
                let mut worker = candidate.worker(chain.id).map_err(|e| e.to_string())?;
                worker
                    .step(chain.id, &[events], state)
                    .map_err(|e| format!("its trial on {} failed: {e}", matched.at))?;
            }
        }
        Ok(())
    }

    /// A full disk says nothing against the file: it is taken when there is room.
    async fn no_room(&self, why: String) {
        tracing::warn!(file = %self.file.display(), why, "the plugin waits for room on the disk");
        tokio::time::sleep(FULL_RETRY).await;
    }

    async fn commit(&self, write: Write) -> Result<i64, String> {
        loop {
            match self.journal.commit(write.clone()).await {
                Ok(committed) => return Ok(committed.id),
                Err(JournalError::Full { why }) => self.no_room(why).await,
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    async fn install(&self, candidate: Candidate) -> Result<Installed, String> {
        let name = &candidate.manifest.name;
        let mut consumers = Vec::new();
        for chain in &self.chains {
            if candidate.settings.chains.as_ref().is_some_and(|only| !only.contains(&chain.name)) {
                continue;
            }
            let state_version = candidate.manifest.state_version;
            self.commit(Write::Consumer { plugin: name.clone(), chain: chain.id, state_version }).await?;
            let mut tracks = Vec::new();
            for spec in &candidate.manifest.streams {
                let stream = StreamId { plugin: name.clone(), stream: spec.name.clone() };
                let write = Write::Track { stream: stream.clone(), chain: chain.id, spec: spec.clone() };
                tracks.push((TrackId(self.commit(write).await?), stream));
            }
            let rows = self.journal.consumers().map_err(|e| e.to_string())?;
            let row = rows
                .into_iter()
                .find(|c| c.plugin == *name && c.chain == chain.id)
                .ok_or_else(|| format!("{name} on {} is not in the journal after it was written", chain.id))?;
            let worker = candidate.worker(chain.id).map_err(|e| e.to_string())?;
            consumers.push(InstalledConsumer { chain_name: chain.name.clone(), row, tracks, worker });
        }
        let version = |write| self.commit(Write::Version(write));
        version(VersionWrite::Running {
            plugin: name.clone(),
            digest: candidate.digest.0,
            version: candidate.manifest.version.clone(),
            file: candidate.file.display().to_string(),
        })
        .await?;
        if let Some((digest, why)) = &self.instead_of {
            version(VersionWrite::Banned { plugin: name.clone(), digest: digest.0, why: why.clone() }).await?;
        }
        Ok(Installed { candidate, consumers, instead_of: self.instead_of.clone() })
    }
}

struct NoState;

impl StateRead for NoState {
    fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, String> {
        Ok(None)
    }
    fn scan(&self, _: &[u8], _: Option<&[u8]>, _: u32) -> Result<Vec<(Vec<u8>, Vec<u8>)>, String> {
        Ok(vec![])
    }
}
