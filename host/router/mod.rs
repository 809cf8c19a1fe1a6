//! The spine: one loop over one closed enum of inputs that moves work from stage to stage.
//!
//! ```text
//! follow ──News──┐
//! jobs ──Worked──┤
//! watch ─Dropped─┼─> Router::handle ─> dispatch: each consumer's next step, beside the loop
//! loads ─Loaded──┤                     publish:  tracks to the lanes, the picture to status
//! people ─Asked──┘
//! ```
//!
//! The loop itself never waits for a provider, a plugin or a disk: whatever does is a job that comes back as an
//! input. Each consumer (a plugin on a chain) has one job at a time, and its next begins when the last is
//! durable. Lanes read the journal by themselves and need the router only to learn of new tracks.

mod ahead;
mod blocks;
mod catch_up;
mod consumer;
pub mod edits;
mod follow;
pub mod handle;
mod load;
mod made;
mod next;
mod pace;
mod payload;
mod pending;
mod picture;
mod plugins;
mod replay;
mod retain;
pub mod tracking;
#[cfg(test)]
mod trees;
mod turns;
#[cfg(test)]
mod week;
mod work;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

use self::ahead::Ahead;
use self::blocks::{Blocks, Plan};
use self::follow::{Follow, News};
use self::handle::{Answer, Command, Handle};
use self::load::{Installed, ReadyChain, Refusal};
use self::plugins::Plugin;
use self::tracking::Tracking;
use self::turns::Turns;
use crate::chain::Follower;
use crate::config::{ChainConfig, Config};
use crate::index::watch::SharedSets;
use crate::journal::sqlite::SqliteJournal;
use crate::journal::{DeadFilter, Journal, LaneWrite, Write};
use crate::lane::{Lane, Routed, Settings};
use crate::model::{BlockUpdate, ChainId, OutputName, PluginName, RefusedFile, Status};
use crate::plugin::engine::Engine;
use crate::plugin::reload::{self, Dropped};
use crate::source::{self, ReadError, Source};
use crate::{index::Index, sink, telemetry};

/// The target of an event at the moment at which a plugin is called: for whoever measures.
pub const CALLS: &str = "chainweir::calls";

/// How often waiting work is looked at and the picture is drawn.
const TICK: Duration = Duration::from_millis(100);
/// Gaps between attempts to reach a provider at start.
const CONNECT_RETRY: Duration = Duration::from_secs(1);
/// What a stopping process gives to steps under way; a step is bounded by its plugin's deadline.
const DRAIN_JOBS: Duration = Duration::from_secs(5);
/// An orderly end: some service managers kill after ten seconds.
const DRAIN: Duration = Duration::from_millis(9_500);
/// A file that vanished for less than this was being replaced.
const GONE_AFTER: Duration = Duration::from_millis(1_500);

/// Everything that can happen to the router.
enum Input {
    Connected {
        chain: String,
        source: Arc<dyn Source>,
    },
    Unreachable {
        chain: String,
        why: String,
        halted: bool,
    },
    News(String, News),
    Worked(Box<Worked>),
    Dropped(Dropped),
    Loaded(Box<Loaded>),
    Asked(Command, oneshot::Sender<Answer>),
    /// An edit of a watch set is written down.
    Edited,
    Tick,
}

/// A consumer's job that ended, with what it had borrowed.
struct Worked {
    plugin: PluginName,
    chain: String,
    kit: work::Kit,
    result: Result<work::Done, work::Failed>,
    safe: u64,
    finalized: u64,
}

struct Loaded {
    file: PathBuf,
    digest: crate::plugin::Digest,
    result: Result<Installed, Refusal>,
    /// It came from the folder: a newer content of its file overtakes it.
    dropped: bool,
    answer: Option<oneshot::Sender<Answer>>,
    /// What the answer says when it went well.
    done: String,
}

/// Who may have a next step after an input.
enum Touched {
    Nobody,
    One(PluginName, String),
    Chain(String),
    All,
}

struct Chain {
    config: ChainConfig,
    id: Option<ChainId>,
    source: Option<Arc<dyn Source>>,
    blocks: Option<Arc<Blocks>>,
    ahead: Option<Arc<Ahead>>,
    plan: Arc<Plan>,
    path: Option<Follower>,
    safe: u64,
    state: &'static str,
    why: Option<String>,
    reorgs: u64,
    accept: Arc<Notify>,
    /// To transactions that are in no block yet, while a plugin asks for them.
    listener: Option<AbortHandle>,
    /// Who watches transactions; and whether blocks are fetched for it.
    tracking: Option<tracking::Handle>,
    tracks: bool,
}

impl Chain {
    /// To who watches transactions.
    fn show(&self) {
        if let (Some(tracking), Some(path)) = (&self.tracking, &self.path) {
            let view = tracking::View { path: path.clone(), safe: self.safe, plan: self.plan.clone() };
            tracking.view.send_replace(Some(view));
        }
    }
}

/// A router that runs.
pub struct Running {
    pub handle: Handle,
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), String>>,
}

impl Running {
    /// Stops taking in, lets what is under way end, writes the positions, closes the journal.
    pub async fn stop(self) -> Result<(), String> {
        self.stop.send_replace(true);
        self.task.await.map_err(|e| format!("the router panicked: {e}"))?
    }

    /// Returns when the router ended by itself, which it does only when it cannot go on.
    pub async fn ended(&mut self) -> Result<(), String> {
        (&mut self.task).await.map_err(|e| format!("the router panicked: {e}"))?
    }
}

/// Opens the journal and the sinks, and begins to follow. Providers and destinations need not be there yet.
pub async fn start(config: Config) -> Result<Running, String> {
    start_with(config, BTreeMap::new()).await
}

/// The same, with sources that are open already, by the name of their chain: for whoever brings his own.
pub async fn start_with(config: Config, given: BTreeMap<String, Arc<dyn Source>>) -> Result<Running, String> {
    let config = Arc::new(config);
    let journal = {
        let path = config.journal.path.clone();
        let opened = tokio::task::spawn_blocking(move || SqliteJournal::open(&path)).await;
        opened.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?
    };
    let cache = load::cache_folder(&config.journal.path);
    let engine = Engine::new(Some(cache)).map_err(|e| format!("cannot start the WebAssembly engine: {e}"))?;
    let (commands, asked) = mpsc::channel(64);
    let (picture, status) = watch::channel(Arc::new(Status::default()));
    let (stop, stopped) = watch::channel(false);
    let reading = journal.clone();
    let sets = tokio::task::spawn_blocking(move || edits::load(&*reading)).await;
    let sets = SharedSets::new(sets.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?);
    let handle = Handle { commands, status, sets: sets.clone(), journal: journal.clone() };
    let mut router = Router::new(config, journal, engine, picture);
    router.sets = sets;
    router.given = given;
    router.open_lanes().await?;
    // Whoever asks at once is told what there is, if not yet how it is.
    router.draw();
    let task = tokio::spawn(router.run(asked, stopped));
    Ok(Running { handle, stop, task })
}

struct Router {
    config: Arc<Config>,
    journal: Arc<dyn Journal>,
    engine: Engine,
    given: BTreeMap<String, Arc<dyn Source>>,
    chains: BTreeMap<String, Chain>,
    plugins: BTreeMap<PluginName, Plugin>,
    refused_files: BTreeMap<PathBuf, RefusedFile>,
    /// Files that vanished, and since when.
    gone: HashMap<PathBuf, Instant>,
    /// The newest content of each file: what a load that took longer must not overtake.
    newest: HashMap<PathBuf, crate::plugin::Digest>,
    lanes: BTreeMap<OutputName, (Lane, watch::Sender<Arc<Vec<Routed>>>)>,
    /// Outputs of which it was said that they come near to where their plugins pause.
    near_full: HashSet<OutputName>,
    /// There is something to send again.
    resend: Arc<Notify>,
    turns: Arc<Turns>,
    compilers: Arc<Semaphore>,
    /// Files that are being loaded.
    loading: HashSet<PathBuf>,

    /// What comes back as an input by itself.
    arriving: JoinSet<Input>,
    jobs: JoinSet<Worked>,
    loads: JoinSet<Loaded>,
    news: mpsc::Receiver<(String, News)>,
    news_sender: mpsc::Sender<(String, News)>,
    followers: JoinSet<()>,

    next_subscriber: u32,
    generation: u64,
    /// The watch sets, as matching reads them.
    sets: SharedSets,
    /// While some reach back, no step begins.
    edits: self::edits::Edits,
    /// The disk is full: since when, and why.
    full: Option<(Instant, String)>,
    fatal: Option<String>,
    stopping: bool,
    started_at: u64,
    picture: watch::Sender<Arc<Status>>,
    journal_size: crate::journal::JournalSize,
    sized_at: Instant,
}

impl Router {
    fn new(
        config: Arc<Config>,
        journal: Arc<dyn Journal>,
        engine: Engine,
        picture: watch::Sender<Arc<Status>>,
    ) -> Self {
        // Small: a chain whose blocks are not taken waits, it does not pile up.
        let (news_sender, news) = mpsc::channel(64);
        let chains = config.chains.iter().map(|(name, config)| {
            let chain = Chain {
                config: config.clone(),
                id: None,
                source: None,
                blocks: None,
                ahead: None,
                plan: Arc::default(),
                path: None,
                safe: 0,
                state: "connecting",
                why: None,
                reorgs: 0,
                accept: Arc::default(),
                listener: None,
                tracking: None,
                tracks: false,
            };
            (name.clone(), chain)
        });
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            chains: chains.collect(),
            config,
            journal,
            engine,
            given: BTreeMap::new(),
            plugins: BTreeMap::new(),
            refused_files: BTreeMap::new(),
            gone: HashMap::new(),
            newest: HashMap::new(),
            lanes: BTreeMap::new(),
            near_full: HashSet::new(),
            resend: Arc::default(),
            turns: Arc::new(Turns::new(processors)),
            compilers: Arc::new(Semaphore::new(processors)),
            loading: HashSet::new(),
            arriving: JoinSet::new(),
            jobs: JoinSet::new(),
            loads: JoinSet::new(),
            news,
            news_sender,
            followers: JoinSet::new(),
            next_subscriber: 0,
            generation: 0,
            sets: SharedSets::default(),
            edits: Default::default(),
            full: None,
            fatal: None,
            stopping: false,
            started_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            picture,
            journal_size: Default::default(),
            sized_at: Instant::now(),
        }
    }

    async fn open_lanes(&mut self) -> Result<(), String> {
        for (name, output) in &self.config.outputs {
            let kind = sink::KINDS
                .iter()
                .find(|k| k.name == output.kind)
                .ok_or_else(|| format!("[output.{name}]: there is no kind '{}'", output.kind))?;
            let open = sink::Open {
                name: name.clone(),
                table: output.table.clone(),
                base: self.config.base.clone(),
                journal: self.journal.id().to_owned(),
            };
            let sink = (kind.open)(open).await.map_err(|e| format!("[output.{name}]: {e}"))?;
            let settings = Settings {
                output: name.clone(),
                kind: output.kind.clone(),
                attempts: output.attempts,
                stop_on_refused: output.stop_on_refused,
                disable_after: Duration::from_secs(output.disable_after),
            };
            let (routed, receive) = watch::channel(Arc::default());
            let lane = Lane::start(settings, sink, self.journal.clone(), receive);
            self.lanes.insert(name.clone(), (lane, routed));
        }
        self.publish_tracks();
        Ok(())
    }

    async fn run(
        mut self,
        mut asked: mpsc::Receiver<(Command, oneshot::Sender<Answer>)>,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<(), String> {
        let dir = self.config.plugins.dir.clone();
        self.followers.spawn(retain::run(self.config.clone(), self.journal.clone()));
        let lanes = self.lanes.values().map(|(lane, _)| lane.redo()).collect();
        self.followers.spawn(replay::run(self.journal.clone(), self.resend.clone(), lanes));
        let mut dropped = reload::watch(dir).map_err(|e| format!("cannot watch the plugin folder: {e}"))?;
        for name in self.chains.keys().cloned().collect::<Vec<_>>() {
            self.connect(&name, Duration::ZERO);
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        while self.fatal.is_none() {
            let input = tokio::select! {
                () = async { drop(stopped.wait_for(|s| *s).await) } => break,
                Some(Ok(input)) = self.arriving.join_next() => input,
                Some((chain, news)) = self.news.recv() => Input::News(chain, news),
                Some(worked) = self.jobs.join_next() => match worked {
                    Ok(worked) => Input::Worked(Box::new(worked)),
                    Err(error) => {
                        self.fatal = Some(format!("a job panicked: {error}"));
                        break;
                    }
                },
                Some(Ok(loaded)) = self.loads.join_next() => Input::Loaded(Box::new(loaded)),
                Some(file) = dropped.recv() => Input::Dropped(file),
                Some((command, answer)) = asked.recv() => Input::Asked(command, answer),
                _ = tick.tick() => Input::Tick,
            };
            match self.handle(input) {
                Touched::Nobody => {}
                Touched::One(plugin, chain) => self.dispatch_if_free(&plugin, &chain),
                Touched::Chain(chain) => self.dispatch_where(|on| on == chain),
                Touched::All => self.dispatch_where(|_| true),
            }
        }
        self.drain().await
    }

    fn handle(&mut self, input: Input) -> Touched {
        match input {
            Input::Connected { chain, source } => self.connected(&chain, source),
            Input::Unreachable { chain, why, halted } => self.unreachable(&chain, why, halted),
            Input::News(chain, news) => {
                self.take_news(&chain, news);
                return Touched::Chain(chain);
            }
            Input::Worked(worked) => {
                let touched = Touched::One(worked.plugin.clone(), worked.chain.clone());
                self.worked(*worked);
                return touched;
            }
            Input::Dropped(file) => {
                self.dropped(file);
                return Touched::Nobody;
            }
            Input::Loaded(loaded) => self.loaded(*loaded),
            Input::Asked(command, answer) => self.asked(command, answer),
            Input::Edited => self.edited(),
            Input::Tick => self.tick(),
        }
        Touched::All
    }

    // ---- chains ----------------------------------------------------------------------------------------

    fn connect(&mut self, name: &str, after: Duration) {
        let Some(chain) = self.chains.get(name) else { return };
        let open = source::Open {
            name: name.to_owned(),
            expect: chain.config.chain_id,
            table: chain.config.table.clone(),
            base: self.config.base.clone(),
        };
        let (kind, name) = (chain.config.source.clone(), name.to_owned());
        let given = self.given.get(&name).cloned();
        self.arriving.spawn(async move {
            if let Some(source) = given {
                return Input::Connected { chain: name, source };
            }
            tokio::time::sleep(after).await;
            let Some(kind) = source::KINDS.iter().find(|k| k.name == kind) else {
                let why = format!("[chain.{name}]: there is no source '{kind}'");
                return Input::Unreachable { chain: name, why, halted: true };
            };
            match (kind.open)(open).await {
                Ok(source) => Input::Connected { chain: name, source },
                Err(error) => {
                    let halted = matches!(error, ReadError::Halt { .. });
                    Input::Unreachable { chain: name, why: error.to_string(), halted }
                }
            }
        });
    }

    fn connected(&mut self, name: &str, source: Arc<dyn Source>) {
        let id = source.chain();
        if let Some((other, _)) = self.chains.iter().find(|(n, c)| n.as_str() != name && c.id == Some(id)) {
            let why = format!("its provider is on {id}, which [chain.{other}] follows already");
            return self.unreachable(name, why, true);
        }
        let finalized = match self.journal.finalized(id) {
            Ok(finalized) => finalized,
            Err(error) => return self.fatal = Some(error.to_string()),
        };
        let Some(chain) = self.chains.get_mut(name) else { return };
        tracing::info!(chain = name, id = %id, "connected");
        chain.id = Some(id);
        chain.blocks = Some(Arc::new(Blocks::new(source.clone())));
        chain.ahead = Some(Arc::new(Ahead::new(source.clone())));
        chain.source = Some(source.clone());
        let follow = Follow {
            name: name.to_owned(),
            source,
            finality: chain.config.finality,
            finalized,
            news: self.news_sender.clone(),
            accept: chain.accept.clone(),
        };
        let (asks, asked) = mpsc::channel(64);
        let (view, seen) = watch::channel(None);
        let watched = Arc::<std::sync::atomic::AtomicU64>::default();
        let tracking = Tracking {
            name: name.to_owned(),
            chain: id,
            source: follow.source.clone(),
            blocks: chain.blocks.clone().expect("set above"),
            journal: self.journal.clone(),
            news: self.news_sender.clone(),
            dropped_after: chain.config.dropped_after,
            watched: watched.clone(),
        };
        chain.tracking = Some(tracking::Handle { asks, view, watched });
        self.followers.spawn(tracking.run(asked, seen));
        self.followers.spawn(follow.run());
        // Plugins that were loaded before this chain answered get their place on it now.
        self.place_on_new_chains();
    }

    fn unreachable(&mut self, name: &str, why: String, halted: bool) {
        let Some(chain) = self.chains.get_mut(name) else { return };
        if chain.why.as_ref() != Some(&why) {
            tracing::warn!(chain = name, why, "cannot follow the chain");
        }
        chain.state = if halted { "halted" } else { "unreachable" };
        chain.why = Some(why);
        if !halted {
            self.connect(name, CONNECT_RETRY);
        }
    }

    fn take_news(&mut self, name: &str, news: News) {
        let Some(chain) = self.chains.get_mut(name) else { return };
        match news {
            News::Anchored { path, safe } => {
                tracing::info!(
                    chain = name,
                    head = path.tip().number,
                    finalized = path.finalized().number,
                    "following"
                );
                (chain.state, chain.why) = ("following", None);
                self.finalized(&path);
                self.set_path(name, path, safe);
                for plugin in self.plugins.values_mut() {
                    if let Some(consumer) = plugin.consumers.get_mut(name) {
                        consumer.place.verified = false;
                    }
                }
            }
            News::Changed { path, updates, safe } => {
                let depth = updates.iter().filter(|u| matches!(u, BlockUpdate::Removed(_))).count() as u64;
                if depth > 0 {
                    chain.reorgs += 1;
                    tracing::info!(chain = name, depth, head = path.tip().number, "reorg");
                    telemetry::reorg(path.tip().chain, depth);
                }
                if updates.iter().any(|u| matches!(u, BlockUpdate::Finalized(_))) {
                    self.finalized(&path);
                }
                self.set_path(name, path, safe);
            }
            News::NewTrack => self.publish_tracks(),
            News::Tracking(wanted) => {
                chain.tracks = wanted;
                self.replan();
            }
            News::Pending(told) => self.take_pending(name, &told),
            News::Well => (chain.state, chain.why) = ("following", None),
            News::Trouble { why } => {
                if chain.state != "unreachable" {
                    tracing::warn!(chain = name, why, "the provider does not answer as it should; it is asked again");
                }
                (chain.state, chain.why) = ("unreachable", Some(why));
            }
            News::Halted { why } => {
                tracing::error!(
                    chain = name,
                    why,
                    "halted: to go on with the provider's chain as it is now: chainweir accept-reorg {name}"
                );
                (chain.state, chain.why) = ("halted", Some(why));
            }
            News::Ended => {
                tracing::info!(chain = name, "the recording has ended");
                chain.state = "ended";
            }
        }
    }

    fn set_path(&mut self, name: &str, path: Follower, safe: u64) {
        if let Some(chain) = self.chains.get_mut(name) {
            chain.path = Some(path);
            chain.safe = safe;
            chain.show();
        }
    }

    /// Remembers a chain's finalized block, so that a provider cannot take it back after a restart.
    fn finalized(&mut self, path: &Follower) {
        let (journal, at) = (self.journal.clone(), path.finalized());
        tokio::spawn(async move {
            if let Err(error) = journal.commit(Write::Finalized(at)).await {
                tracing::warn!(%error, "cannot write down the finalized block; the next one is");
            }
        });
    }

    /// A new plan for every chain: the subscriptions changed.
    fn replan(&mut self) {
        self.generation += 1;
        for (name, chain) in &mut self.chains {
            let Some(id) = chain.id else { continue };
            let subscribers = self.plugins.values().filter_map(|p| {
                let consumer = p.consumers.get(name)?;
                Some((consumer.subscriber, p.candidate.manifest.subscriptions.as_slice()))
            });
            let index = Index::new(id, subscribers, &mut self.sets.write());
            let mut wanted = index.wanted().clone();
            wanted.transactions |= chain.tracks;
            wanted.receipts |= chain.tracks;
            chain.plan = Arc::new(Plan { index, wanted, generation: self.generation, sets: self.sets.clone() });
            chain.show();
        }
        self.listen();
    }

    fn ready_chains(&self) -> Vec<ReadyChain> {
        let ready = self.chains.iter().filter_map(|(name, chain)| {
            Some(ReadyChain { name: name.clone(), id: chain.id?, blocks: chain.blocks.clone()? })
        });
        ready.collect()
    }

    // ---- lanes -----------------------------------------------------------------------------------------

    /// Tells each lane which tracks are routed to it.
    fn publish_tracks(&mut self) {
        let tracks = match self.journal.tracks() {
            Ok(tracks) => tracks,
            Err(error) => return self.fatal = Some(error.to_string()),
        };
        for (output, (_, routed)) in &self.lanes {
            let mine = tracks.iter().filter_map(|track| {
                let route =
                    self.config.routes.iter().find(|r| r.to.contains(output) && r.from.matches(&track.stream))?;
                // The last offset changes with every commit and tells a lane nothing.
                let track = crate::journal::TrackInfo { last_offset: 0, ..track.clone() };
                Some(Routed { track, when: route.when })
            });
            let mine: Arc<Vec<Routed>> = Arc::new(mine.collect());
            routed.send_if_modified(|now| {
                let changed = **now != *mine;
                *now = mine;
                changed
            });
        }
    }

    // ---- people ----------------------------------------------------------------------------------------

    fn asked(&mut self, command: Command, answer: oneshot::Sender<Answer>) {
        let said = match command {
            Command::Watch { set, change, reply } => {
                self.edit(set, change, reply);
                Ok(String::new())
            }
            Command::Track { chain, ask } => self.track(&chain, ask),
            Command::Rollback { plugin } => return self.roll_back(&plugin, "a person asked for it", Some(answer)),
            Command::Upgrade { plugin } => return self.upgrade(&plugin, answer),
            Command::Retry { plugin } => match self.plugins.get_mut(&plugin) {
                Some(running) => {
                    for consumer in running.consumers.values_mut() {
                        // The schedule begins anew.
                        (consumer.retry_at, consumer.failures) = (None, 0);
                        consumer.stuck = None;
                    }
                    Ok(format!("{plugin} tries again"))
                }
                None => Err(self.no_such_plugin(&plugin)),
            },
            Command::Dead { ids, again } => {
                let journal = self.journal.clone();
                let lanes: Vec<_> = self.lanes.values().map(|(lane, _)| lane.redo()).collect();
                tokio::spawn(async move {
                    // Whoever asked may have gone.
                    answer.send(bury(&*journal, ids, again).await).ok();
                    lanes.iter().for_each(|lane| lane.notify_one());
                });
                return;
            }
            Command::Resend(resend) => match self.lanes.get(&resend.output) {
                Some((lane, _)) => {
                    let (journal, noted, told) = (self.journal.clone(), lane.noted(), self.resend.clone());
                    tokio::spawn(async move {
                        // Whoever asked may have gone.
                        answer.send(replay::order(&*journal, noted, resend).await).ok();
                        told.notify_one();
                    });
                    return;
                }
                None => Err(self.no_such_output(&resend.output)),
            },
            Command::Resume { output } => match self.lanes.get(&output) {
                Some((lane, _)) => {
                    lane.resume();
                    Ok(format!("{output} tries at once"))
                }
                None => Err(self.no_such_output(&output)),
            },
            Command::AcceptReorg { chain } => match self.chains.get(&chain) {
                Some(halted) if halted.state == "halted" => {
                    let (journal, accept, id) = (self.journal.clone(), halted.accept.clone(), halted.id);
                    tracing::warn!(chain, "a person accepts the provider's chain; what was final stays said");
                    tokio::spawn(async move {
                        let forgotten = match id {
                            Some(id) => journal.commit(Write::ForgetFinalized(id)).await.map(drop),
                            None => Ok(()),
                        };
                        let said = match forgotten {
                            Ok(()) => {
                                accept.notify_one();
                                Ok(format!("{chain} goes on with the provider's chain as it is now"))
                            }
                            Err(error) => Err(error.to_string()),
                        };
                        // Whoever asked may have gone.
                        answer.send(said).ok();
                    });
                    return;
                }
                Some(_) => Err(format!("{chain} is not halted")),
                None => Err(format!("there is no [chain.{chain}] in the configuration")),
            },
        };
        // Whoever asked may have gone.
        answer.send(said).ok();
    }

    /// By the chain's name in the configuration, or its id.
    fn track(&self, chain: &str, ask: tracking::Ask) -> Answer {
        let found =
            self.chains.iter().find(|(name, c)| *name == chain || c.id.is_some_and(|id| id.to_string() == chain));
        let Some((name, found)) = found else {
            let names: Vec<&str> = self.chains.keys().map(String::as_str).collect();
            return Err(format!("there is no chain '{chain}'; there are: {}", names.join(", ")));
        };
        let Some(tracking) = &found.tracking else {
            return Err(format!("no provider of {name} has answered yet: ask again when it follows its chain"));
        };
        let full = |_| format!("{name} has many such requests before this one: send it again");
        tracking.asks.try_send(ask).map(|()| String::new()).map_err(full)
    }

    fn no_such_output(&self, output: &OutputName) -> String {
        let names: Vec<&str> = self.lanes.keys().map(OutputName::as_str).collect();
        format!("there is no output '{output}' in the configuration; there are: {}", names.join(", "))
    }

    fn no_such_plugin(&self, plugin: &PluginName) -> String {
        let names: Vec<&str> = self.plugins.keys().map(PluginName::as_str).collect();
        format!("no plugin '{plugin}' is loaded; loaded are: {}", names.join(", "))
    }

    // ---- the clock -------------------------------------------------------------------------------------

    fn tick(&mut self) {
        self.unload_gone();
        self.forget_full();
        if self.sized_at.elapsed() > Duration::from_secs(2) {
            self.sized_at = Instant::now();
            if let Ok(size) = self.journal.size() {
                self.journal_size = size;
            }
            self.chains.values().filter_map(|c| c.ahead.as_ref()).for_each(|ahead| ahead.rest());
            self.warn_of_backlogs();
        }
        self.draw();
    }

    async fn drain(mut self) -> Result<(), String> {
        let began = Instant::now();
        self.stopping = true;
        self.news.close();
        self.arriving.shutdown().await;
        self.followers.shutdown().await;
        self.loads.shutdown().await;
        let deadline = tokio::time::Instant::now() + DRAIN_JOBS;
        while !self.jobs.is_empty() {
            match tokio::time::timeout_at(deadline, self.jobs.join_next()).await {
                Ok(Some(Ok(worked))) => self.worked(worked),
                Ok(_) => {}
                // Not committed, so not lost: it is done again at the next start.
                Err(_) => break,
            }
        }
        self.jobs.abort_all();
        let lanes = std::mem::take(&mut self.lanes);
        let stopping = lanes.into_values().map(|(lane, _)| lane.stop());
        if tokio::time::timeout(Duration::from_secs(3), futures::future::join_all(stopping)).await.is_err() {
            tracing::warn!("a destination did not answer in time; what it was sent is sent again at the next start");
        }
        let journal = self.journal.clone();
        // A slow disk has what nobody else took.
        let left = DRAIN.saturating_sub(began.elapsed()).max(Duration::from_secs(1));
        let closed = tokio::task::spawn_blocking(move || journal.close(left)).await;
        closed.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        self.fatal.map_or(Ok(()), Err)
    }
}

/// Puts dead letters back into their lanes, or drops them: all that are named, or none.
async fn bury(journal: &dyn Journal, ids: Vec<i64>, again: bool) -> Answer {
    for id in &ids {
        let filter = DeadFilter { id: Some(*id), ..DeadFilter::default() };
        if journal.dead(&filter, 0, 1).map_err(|e| e.to_string())?.is_empty() {
            return Err(format!("there is no dead letter {id}; nothing was done"));
        }
    }
    let count = ids.len();
    let writes = ids.into_iter().map(|id| LaneWrite::Bury { id, again }).collect();
    journal.commit(Write::Lane(writes)).await.map_err(|e| e.to_string())?;
    let letters = if count == 1 { "1 dead letter".to_owned() } else { format!("{count} dead letters") };
    Ok(if again { format!("back in the lanes: {letters}") } else { format!("dropped: {letters}") })
}
