//! Plugins come, change and go: files that were dropped, the swap between two blocks, rollback.
//!
//! ```text
//! file -> load (beside the loop) -> pending -> swapped in when no step of the old one is under way
//!           \-> refused: the old one goes on, the reason is in status
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::consumer::Consumer;
use super::handle::Answer;
use super::load::{Candidate, Installed, Load, Refusal, read_version};
use super::next::Place;
use super::work::Kit;
use super::{GONE_AFTER, Loaded, Router};
use crate::model::{PluginName, RefusedFile};
use crate::plugin::Digest;
use crate::plugin::reload::Dropped;
use crate::telemetry::{self, ReloadOutcome};

/// Steps with events in which a new version that faults is rolled back by itself.
const PROBATION_STEPS: u32 = 16;

/// Why a version is loaded.
enum Why {
    /// Its file came, or changed.
    Dropped,
    /// It ran before, or a person says that it may: whatever state there is, it takes over.
    Again,
    /// The version that it replaces is bad.
    InsteadOf(Digest, String),
}

pub struct Plugin {
    pub candidate: Candidate,
    /// By the chain's name in the configuration.
    pub consumers: BTreeMap<String, Consumer>,
    /// Takes over as soon as no step is under way.
    pub pending: Option<Box<Installed>>,
    /// Its file is gone: it ends as soon as no step is under way.
    pub leaving: bool,
    /// Steps in which a fault rolls it back.
    pub probation: u32,
}

impl Router {
    pub(super) fn dropped(&mut self, dropped: Dropped) {
        match dropped {
            Dropped::File { path, digest, bytes } => {
                self.gone.remove(&path);
                self.newest.insert(path.clone(), digest);
                tracing::info!(file = %path.display(), %digest, "a plugin file appeared; it is compiled and tried");
                self.load(path, digest, bytes, Why::Dropped, None);
            }
            Dropped::Gone { path } => {
                self.refused_files.remove(&path);
                self.newest.remove(&path);
                self.gone.insert(path, Instant::now());
            }
            Dropped::Unreadable { path, why } => self.refuse_file(path, String::new(), why),
        }
    }

    fn load(
        &mut self,
        file: PathBuf,
        digest: Digest,
        bytes: Arc<[u8]>,
        because: Why,
        answer: Option<oneshot::Sender<Answer>>,
    ) {
        let dropped = matches!(because, Why::Dropped);
        let load = Load {
            engine: self.engine.clone(),
            config: self.config.clone(),
            journal: self.journal.clone(),
            chains: self.ready_chains(),
            sets: self.sets.clone(),
            provides: self.plugin_of(&file),
            file: file.clone(),
            digest,
            bytes,
            upgrade: !dropped,
            instead_of: if let Why::InsteadOf(digest, why) = because { Some((digest, why)) } else { None },
            compilers: self.compilers.clone(),
        };
        self.loading.insert(file.clone());
        self.loads.spawn(async move {
            let result = load.run().await;
            let done = match &result {
                Ok(installed) => {
                    let m = &installed.candidate.manifest;
                    format!("{} runs version {} ({digest})", m.name, m.version)
                }
                Err(_) => String::new(),
            };
            Loaded { file, digest, result, dropped, answer, done }
        });
    }

    pub(super) fn loaded(&mut self, loaded: Loaded) {
        let Loaded { file, digest, result, dropped, answer, done } = loaded;
        self.loading.remove(&file);
        // A newer content of the same file is on its way: this one was overtaken.
        if dropped && self.newest.get(&file) != Some(&digest) {
            return;
        }
        let said = match result {
            // Another version came while the one before was brought back: it is judged by itself.
            Ok(installed) if self.is_late(&installed) => {
                Err(format!("{} was replaced meanwhile; nothing was changed", installed.candidate.manifest.name))
            }
            Ok(installed) => match self.clash(&file, &installed.candidate.manifest.name) {
                Some(why) => {
                    self.refuse_file(file, digest.to_string(), why.clone());
                    Err(why)
                }
                None => {
                    // An older version that runs again does not make the file that is there a good one.
                    if dropped || self.refused_files.get(&file).is_some_and(|r| r.digest == digest.to_string()) {
                        self.refused_files.remove(&file);
                    }
                    self.take(installed);
                    Ok(done)
                }
            },
            Err(Refusal { for_plugin: name, why, banned }) => {
                let called = name.as_ref().map_or_else(|| file.display().to_string(), ToString::to_string);
                telemetry::plugin_reloads(&called, ReloadOutcome::Refused).increment(1);
                self.refuse_file(file.clone(), digest.to_string(), why.clone());
                if let Some(name) = name.filter(|name| banned && !self.plugins.contains_key(name)) {
                    self.load_last_good(&name, file);
                }
                if dropped {
                    // What runs instead was left out of new chains meanwhile.
                    self.place_on_new_chains();
                }
                Err(why)
            }
        };
        if let Some(answer) = answer {
            // Whoever asked may have gone.
            answer.send(said).ok();
        }
    }

    fn plugin_of(&self, file: &std::path::Path) -> Option<PluginName> {
        self.plugins.iter().find(|(_, p)| p.candidate.file == file).map(|(name, _)| name.clone())
    }

    fn is_late(&self, installed: &Installed) -> bool {
        let (Some((bad, _)), Some(plugin)) =
            (&installed.instead_of, self.plugins.get(&installed.candidate.manifest.name))
        else {
            return false;
        };
        plugin.pending.is_some() || plugin.candidate.digest != *bad
    }

    /// Two files cannot provide one plugin.
    fn clash(&self, file: &std::path::Path, name: &PluginName) -> Option<String> {
        let other = &self.plugins.get(name)?.candidate.file;
        (other != file && other.exists())
            .then(|| format!("plugin '{name}' is provided by {} already: remove one of the two", other.display()))
    }

    fn refuse_file(&mut self, file: PathBuf, digest: String, why: String) {
        tracing::warn!(file = %file.display(), why, "this file is not taken; what ran before goes on");
        let refused = RefusedFile { file: file.display().to_string(), digest, why };
        self.refused_files.insert(file, refused);
    }

    /// At start, a file that was rolled back: what ran in its place runs again.
    fn load_last_good(&mut self, name: &PluginName, file: PathBuf) {
        let good = match self.journal.versions(name) {
            Ok(versions) => versions.into_iter().find(|v| v.banned.is_none()),
            Err(error) => return self.fatal = Some(error.to_string()),
        };
        let Some(good) = good else { return };
        let digest = Digest(good.digest);
        match read_version(&self.config.journal.path, &digest) {
            Ok(bytes) => self.load(file, digest, bytes, Why::Again, None),
            Err(why) => tracing::error!(plugin = %name, why, "cannot go back to the last good version"),
        }
    }

    /// Takes over a version that is written down: now, or when the steps of the old one have ended.
    fn take(&mut self, installed: Installed) {
        let name = installed.candidate.manifest.name.clone();
        match self.plugins.get_mut(&name) {
            Some(plugin) => {
                plugin.pending = Some(Box::new(installed));
                plugin.leaving = false;
                self.swap_if_idle(&name);
            }
            None => {
                let plugin = Plugin {
                    candidate: installed.candidate.clone(),
                    consumers: BTreeMap::new(),
                    pending: Some(Box::new(installed)),
                    leaving: false,
                    probation: 0,
                };
                says_running(&plugin.candidate);
                self.plugins.insert(name.clone(), plugin);
                self.swap_if_idle(&name);
            }
        }
    }

    /// The swap itself: between two blocks, and in memory alone.
    pub(super) fn swap_if_idle(&mut self, name: &PluginName) {
        let Some(plugin) = self.plugins.get_mut(name) else { return };
        if plugin.consumers.values().any(|c| c.busy) {
            return;
        }
        if plugin.leaving {
            tracing::info!(plugin = %name, "unloaded: its file is gone; its cursor and state stay in the journal");
            telemetry::plugin_reloads(name.as_str(), ReloadOutcome::Removed).increment(1);
            self.plugins.remove(name);
            return self.replan();
        }
        let Some(installed) = plugin.pending.take() else { return };
        let Installed { candidate, consumers, instead_of } = *installed;
        let changed = plugin.candidate.digest != candidate.digest;
        if changed {
            // What did not work either is nothing to go back to.
            let well = plugin.consumers.values().all(|c| !c.faulted && c.stuck.is_none());
            plugin.probation = if well && instead_of.is_none() { PROBATION_STEPS } else { 0 };
            says_running(&candidate);
        }
        plugin.candidate = candidate;
        if let Some((bad, why)) = instead_of {
            // Where the file is another by now, what is said of that one stands.
            let file = plugin.candidate.file.clone();
            self.refused_files.entry(file).or_insert_with_key(|file| RefusedFile {
                file: file.display().to_string(),
                digest: bad.to_string(),
                why: format!("it was rolled back ({why}): it is not loaded again until it changes"),
            });
        }
        for new in consumers {
            let tracks = Arc::new(new.tracks);
            let here = || plugin.candidate.manifest.subscriptions.iter().filter(|s| s.on(new.row.chain));
            let factories = Arc::new(here().filter_map(|s| s.factory.clone()).collect::<Vec<_>>());
            let sets = Arc::new(here().flat_map(|s| &s.sets).map(|(_, set)| set.clone()).collect::<Vec<_>>());
            match plugin.consumers.get_mut(&new.chain_name) {
                Some(consumer) => {
                    consumer.tracks = tracks;
                    if changed {
                        // Another version may have other factories.
                        consumer.kit = Kit::of(new.worker);
                        (consumer.factories, consumer.sets) = (factories, sets);
                        (consumer.failures, consumer.retry_at, consumer.stuck) = (0, None, None);
                    }
                }
                None => {
                    self.next_subscriber += 1;
                    let place = Place {
                        cursor: new.row.cursor,
                        begin: 0,
                        verified: false,
                        safe: new.row.marks.safe,
                        finalized: new.row.marks.finalized,
                    };
                    let consumer = Consumer {
                        id: new.row.id,
                        subscriber: self.next_subscriber,
                        begun: place.cursor.is_some(),
                        place,
                        tracks,
                        kit: Kit::of(new.worker),
                        told: Default::default(),
                        pace: Default::default(),
                        factories,
                        sets,
                        busy: false,
                        failures: 0,
                        retry_at: None,
                        faulted: false,
                        stuck: None,
                        why: None,
                        events: 0,
                        emissions: 0,
                        faults: 0,
                    };
                    plugin.consumers.insert(new.chain_name, consumer);
                }
            }
        }
        self.replan();
        self.publish_tracks();
        // A chain may have answered while this version was being loaded.
        self.place_on_new_chains();
    }

    /// Plugins that are loaded get their place on chains that have answered since.
    pub(super) fn place_on_new_chains(&mut self) {
        let ready = self.ready_chains();
        let again = self.plugins.values().filter(|plugin| {
            let belongs = |name: &String| {
                plugin.candidate.settings.chains.as_ref().is_none_or(|only| only.contains(name))
                    && !plugin.consumers.contains_key(name)
            };
            let under_way = plugin.pending.is_some() || self.loading.contains(&plugin.candidate.file);
            !under_way && ready.iter().any(|chain| belongs(&chain.name))
        });
        let again: Vec<(PathBuf, Digest)> = again.map(|p| (p.candidate.file.clone(), p.candidate.digest)).collect();
        for (file, digest) in again {
            match read_version(&self.config.journal.path, &digest) {
                Ok(bytes) => self.load(file, digest, bytes, Why::Again, None),
                Err(why) => tracing::error!(file = %file.display(), why, "the plugin is not placed on the new chain"),
            }
        }
    }

    pub(super) fn roll_back(&mut self, name: &PluginName, why: &str, answer: Option<oneshot::Sender<Answer>>) {
        let found = match (self.plugins.get(name), self.journal.versions(name)) {
            (None, _) => Err(self.no_such_plugin(name)),
            (_, Err(error)) => Err(error.to_string()),
            (Some(plugin), Ok(versions)) => versions
                .iter()
                .find(|v| v.digest != plugin.candidate.digest.0 && v.banned.is_none())
                .ok_or_else(|| format!("{name} has no earlier version to go back to"))
                .and_then(|v| Ok((Digest(v.digest), read_version(&self.config.journal.path, &Digest(v.digest))?)))
                .map(|(digest, bytes)| (digest, bytes, plugin.candidate.file.clone(), plugin.candidate.digest)),
        };
        match found {
            Ok((digest, bytes, file, bad)) => {
                tracing::warn!(plugin = %name, from = %bad, to = %digest, why, "rolling back");
                telemetry::plugin_reloads(name.as_str(), ReloadOutcome::RolledBack).increment(1);
                if let Some(plugin) = self.plugins.get_mut(name) {
                    plugin.probation = 0;
                }
                // The file in the folder stays what it is: only a change of it counts.
                self.load(file, digest, bytes, Why::InsteadOf(bad, why.to_owned()), answer);
            }
            Err(error) => match answer {
                // Whoever asked may have gone.
                Some(answer) => drop(answer.send(Err(error))),
                None => tracing::error!(plugin = %name, why = error, "cannot roll back"),
            },
        }
    }

    pub(super) fn upgrade(&mut self, name: &PluginName, answer: oneshot::Sender<Answer>) {
        let file = match self.plugins.get(name) {
            Some(plugin) => plugin.candidate.file.clone(),
            None => self.config.plugins.dir.join(format!("{name}.wasm")),
        };
        match std::fs::read(&file) {
            Ok(bytes) => {
                let digest = Digest::of(&bytes);
                self.load(file, digest, bytes.into(), Why::Again, Some(answer));
            }
            // Whoever asked may have gone.
            Err(error) => drop(answer.send(Err(format!("cannot read {}: {error}", file.display())))),
        }
    }

    /// Files that did not come back: their plugins end.
    pub(super) fn unload_gone(&mut self) {
        let gone: Vec<PathBuf> = self
            .gone
            .iter()
            .filter(|(path, since)| since.elapsed() > GONE_AFTER && !path.exists())
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            self.gone.remove(&path);
            if let Some(name) = self.plugin_of(&path) {
                if let Some(plugin) = self.plugins.get_mut(&name) {
                    plugin.leaving = true;
                }
                self.swap_if_idle(&name);
            }
        }
    }
}

fn says_running(Candidate { manifest, digest, .. }: &Candidate) {
    tracing::info!(plugin = %manifest.name, version = manifest.version, %digest, "running");
    telemetry::plugin_reloads(manifest.name.as_str(), ReloadOutcome::Loaded).increment(1);
}
