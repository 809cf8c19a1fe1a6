//! `chainweir dev`: plugins from source, rebuilt on save, and what they emit on the terminal.
//!
//! Building and running know nothing of each other: a build ends in the plugin folder, and the process reloads
//! what changes there, as it does in production. A build that fails changes nothing.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use notify_debouncer_full::{DebounceEventResult, new_debouncer, notify::RecursiveMode};
use tokio::sync::mpsc;

use super::plugin::build;
use super::tail::Tail;
use super::trouble::Mistakes;
use super::{Exit, Trouble, host, run, trouble};
use crate::config::Config;
use crate::journal::{Entry, TrackInfo};
use crate::model::{ContentType, Op, PluginName, Status};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Holds chainweir.toml and the plugins' sources: itself a crate, or folders with a Cargo.toml each
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Where DIR has no chainweir.toml: a provider's address, ws(s):// or http(s)://
    #[arg(long, value_name = "URL")]
    rpc: Vec<String>,
    /// Keep the journal for the next time, instead of beginning anew
    #[arg(long)]
    keep: bool,
    /// Exit when a recorded chain has ended and everything is delivered
    #[arg(long)]
    until_end: bool,
}

pub async fn run(args: Args) -> anyhow::Result<Exit> {
    let mut signals = host::Signals::listen()?;
    let mut config = config(&args)?;
    // What happens is said in lines of its own here.
    if config.log.level == "info" {
        config.log.level = "warn".into();
    }
    host::log(&config.log)?;
    let sources = sources(&args.dir, &config.plugins.dir)?;
    let settings = Settings { plugins: config.plugins.dir.clone(), config: config.clone() };
    tokio::select! {
        built = async { for source in &sources { settings.build(source).await; } } => built,
        () = signals.next() => return Ok(Exit::Done),
    }
    let watching = watch(&args.dir, &sources)?;
    let (built, mut rebuilt) = mpsc::unbounded_channel();
    let rebuild = tokio::spawn(rebuild(watching, settings, built));
    let mut first = true;
    let outcome = loop {
        match play(&args, config.clone(), &sources, first, &mut signals, &mut rebuilt).await {
            Ok(Some(exit)) => break Ok(exit),
            Ok(None) => say("playing the recording again, with what is new"),
            Err(error) => break Err(error),
        }
        first = false;
    };
    rebuild.abort();
    outcome
}

/// Runs until it is to end, or (`None`) until there is something new to be seen on a recording that has ended.
async fn play(
    args: &Args,
    mut config: Config,
    sources: &[PathBuf],
    first: bool,
    signals: &mut host::Signals,
    rebuilt: &mut mpsc::UnboundedReceiver<()>,
) -> anyhow::Result<Option<Exit>> {
    // Beginning anew shows everything again: what a recorded chain has is seen at every start.
    let folder =
        tempfile::Builder::new().prefix("chainweir-dev-").tempdir().context("cannot make a temporary folder")?;
    if !args.keep {
        config.journal.path = folder.path().join("chainweir.db");
    }
    let mut running = tokio::select! {
        running = host::start(config) => running?,
        () = signals.next() => return Ok(Some(Exit::Done)),
    };
    if first {
        match running.url() {
            Some(url) => say(&format!("running; streams are at {url}/streams")),
            None => say("running; nothing is served ([http] listen = \"off\")"),
        }
        for source in sources {
            say(&format!("edit {} and save: it is rebuilt and reloaded", source.join("src").display()));
        }
    }
    let journal = running.handle.journal.clone();
    let status = running.handle.status.clone();
    // With --keep, what was shown the last time is not shown again.
    let tail = if args.keep { Tail::from_now(journal)? } else { Tail::new(journal) };
    let show = tokio::spawn(show(running.handle.journal.tail(), tail));
    let report = tokio::spawn(report(status.clone(), args.until_end));
    let outcome = if args.until_end {
        until_end(running, signals).await.map(Some)
    } else {
        let again = async {
            while rebuilt.recv().await.is_some() {
                // Into a kept journal a recording is not played twice.
                if !args.keep && matches!(host::played(&status.borrow()), Some(Ok(()))) {
                    return;
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            () = again => running.drain(host::DRAIN).await.map(|()| None),
            outcome = run::until_signal(&mut running, signals) => match outcome {
                Ok(()) => run::drain(running, signals).await.map(Some),
                Err(error) => Err(error),
            },
        }
    };
    report.abort();
    // It ends by itself, with the journal, after what was committed last.
    let _shown = tokio::time::timeout(Duration::from_secs(1), show).await;
    outcome
}

fn config(args: &Args) -> anyhow::Result<Config> {
    let file = args.dir.join("chainweir.toml");
    if file.exists() && args.rpc.is_empty() {
        return Config::load(&file).map_err(|mistakes| Mistakes(mistakes).into());
    }
    if args.rpc.is_empty() {
        let what = format!("{} has no chainweir.toml", args.dir.display());
        return Err(Trouble::usage(what, "name another folder, or a provider with --rpc ws://localhost:8545").into());
    }
    Ok(Config::quick(&args.dir, &args.rpc, "plugins".as_ref()))
}

/// The crates to build: `dir` itself, or the folders in it.
fn sources(dir: &Path, plugins: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if dir.join("Cargo.toml").exists() {
        return Ok(vec![dir.to_owned()]);
    }
    let entries = std::fs::read_dir(dir).with_context(|| {
        Trouble::usage(format!("cannot read {}", dir.display()), "name a folder with a chainweir.toml")
    })?;
    let mut sources: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    sources.retain(|path| path.join("Cargo.toml").exists());
    sources.sort();
    if sources.is_empty() && !plugins.is_dir() {
        let what = format!("{} holds no plugin's source, and {} no plugins", dir.display(), plugins.display());
        return Err(Trouble::usage(what, "'chainweir plugin new NAME' makes one").into());
    }
    Ok(sources)
}

/// A line about what happens, apart from what is emitted.
fn say(text: &str) {
    eprintln!("{} {text}", dim("--"));
}

fn dim(text: &str) -> String {
    if std::io::stderr().is_terminal() { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
}

struct Settings {
    plugins: PathBuf,
    config: Config,
}

impl Settings {
    /// Builds one source, and says how that went. True where there is something new.
    async fn build(&self, source: &Path) -> bool {
        say(&format!("building {}", source.display()));
        // The crate is called as the plugin, as a rule; describing it may need its configuration.
        let name = source.canonicalize().ok().and_then(|path| PluginName::new(path.file_name()?.to_str()?).ok());
        let config = name.and_then(|name| self.config.plugin.get(&name)).map(|plugin| plugin.config.clone());
        match build::build(source, &self.plugins, &config.unwrap_or_default()).await {
            Ok(built) => {
                say(&format!("built {}", built.artifact.in_a_line()));
                true
            }
            Err(error) => {
                trouble::report(&error);
                say("what ran before goes on; mend it and save");
                false
            }
        }
    }
}

struct Watching {
    saved: mpsc::UnboundedReceiver<PathBuf>,
    sources: Vec<PathBuf>,
    /// Dropped with the rest, which ends the watch.
    _watcher: Box<dyn Send>,
}

/// A source that was built a moment ago holds a folder of results: it is not watched.
fn is_source(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    !name.starts_with('.') && !matches!(name, "target" | "plugins" | "node_modules")
}

fn watch(dir: &Path, sources: &[PathBuf]) -> anyhow::Result<Watching> {
    let (send, saved) = mpsc::unbounded_channel();
    let changed = move |result: DebounceEventResult| {
        for event in result.into_iter().flatten().filter(|event| !event.kind.is_access()) {
            for path in event.event.paths {
                // The receiver is gone only when the command ends.
                let _ended = send.send(path);
            }
        }
    };
    // Editors save in several writes: 200 ms of quiet make one of them.
    let mut watcher = new_debouncer(Duration::from_millis(200), None, changed).context("cannot watch the sources")?;
    let mut all = vec![(dir.canonicalize()?, RecursiveMode::NonRecursive)];
    let mut canonical = vec![];
    for source in sources {
        let source = source.canonicalize()?;
        all.push((source.clone(), RecursiveMode::NonRecursive));
        let folders = std::fs::read_dir(&source)?.filter_map(|entry| Some(entry.ok()?.path()));
        all.extend(
            folders.filter(|path| path.is_dir() && is_source(path)).map(|path| (path, RecursiveMode::Recursive)),
        );
        canonical.push(source);
    }
    for (path, mode) in all {
        watcher.watch(&path, mode).with_context(|| format!("cannot watch {}", path.display()))?;
    }
    Ok(Watching { saved, sources: canonical, _watcher: Box::new(watcher) })
}

async fn rebuild(mut watching: Watching, settings: Settings, built: mpsc::UnboundedSender<()>) {
    while let Some(first) = watching.saved.recv().await {
        let mut paths = vec![first];
        while let Ok(more) = watching.saved.try_recv() {
            paths.push(more);
        }
        if paths.iter().any(|path| path.file_name().is_some_and(|name| name == "chainweir.toml")) {
            say("chainweir.toml changed: stop and start again to take it");
        }
        let code = |path: &PathBuf| path.extension().is_some_and(|e| e == "rs" || e == "toml" || e == "wit");
        for source in &watching.sources {
            let inside = |path: &PathBuf| {
                let own = path.strip_prefix(source).ok().and_then(|rest| rest.components().next());
                own.is_some_and(|first| is_source(first.as_os_str().as_ref()))
            };
            let touched = paths.iter().any(|path| code(path) && inside(path) && !path.ends_with("chainweir.toml"));
            if touched && settings.build(source).await {
                // The receiver is gone only when the command ends.
                let _ended = built.send(());
            }
        }
    }
}

/// Everything that is emitted and retracted, one line each.
async fn show(mut written: tokio::sync::watch::Receiver<u64>, mut tail: Tail) {
    let terminal = std::io::stdout().is_terminal();
    loop {
        written.borrow_and_update();
        loop {
            match tail.next() {
                Ok(entries) if entries.is_empty() => break,
                Ok(entries) => {
                    let mut out = std::io::stdout().lock();
                    let lines: String = entries.iter().map(|(track, entry)| line(track, entry, terminal)).collect();
                    // A terminal that went away is no reason to stop.
                    let _shown = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
                }
                Err(error) => return say(&format!("what is emitted cannot be shown: {error}")),
            }
        }
        if written.changed().await.is_err() {
            return;
        }
    }
}

/// Characters of a payload on one line of a terminal.
const SHOWN: usize = 160;

/// Addresses and hashes in short, so that a line has room for what they are about.
fn in_short(payload: &str) -> String {
    let mut short = String::with_capacity(payload.len());
    let mut rest = payload;
    while let Some(at) = rest.find("0x") {
        let digits = rest[at + 2..].bytes().take_while(u8::is_ascii_hexdigit).count();
        let (hex, after) = rest[at..].split_at(2 + digits);
        short.push_str(&rest[..at]);
        match digits {
            40.. => short.extend([&hex[..8], "..", &hex[hex.len() - 4..]]),
            _ => short.push_str(hex),
        }
        rest = after;
    }
    short + rest
}

fn line(track: &TrackInfo, entry: &Entry, terminal: bool) -> String {
    let payload = match entry.content_type {
        ContentType::Json | ContentType::Text => String::from_utf8_lossy(&entry.payload).into_owned(),
        ContentType::Bytes => alloy_primitives::hex::encode_prefixed(&entry.payload),
    };
    let (payload, most) = if terminal { (in_short(&payload), SHOWN) } else { (payload, usize::MAX) };
    // What a plugin emits must not steer the terminal.
    let mut shown: String = payload.chars().take(most).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if payload.chars().nth(most).is_some() {
        shown.push_str("...");
    }
    let (sign, paint) = match entry.op {
        Op::Apply => ("+", "\x1b[32m"),
        Op::Retract => ("-", "\x1b[31m"),
        Op::Pending => ("?", "\x1b[33m"),
    };
    let op = entry.op.as_str();
    let head = if terminal { format!("{paint}{sign} {op:<7}\x1b[0m") } else { format!("{sign} {op:<7}") };
    format!("{head} {} {} {shown}\n", track.stream, entry.block.number)
}

/// What changes in the process that its user cares for: reloads, refusals, faults, the end of a recording.
async fn report(mut status: tokio::sync::watch::Receiver<std::sync::Arc<Status>>, until_end: bool) {
    let mut last = Status::default();
    loop {
        let now = status.borrow_and_update().clone();
        for news in news(&last, &now) {
            say(&news);
        }
        if !until_end && host::played(&last).is_none() && matches!(host::played(&now), Some(Ok(()))) {
            say("the recording has ended; its streams are served until Ctrl-C");
        }
        last = (*now).clone();
        if status.changed().await.is_err() {
            return;
        }
    }
}

fn news(last: &Status, now: &Status) -> Vec<String> {
    let mut news = vec![];
    for plugin in &now.plugins {
        let before = last.plugins.iter().find(|other| other.name == plugin.name);
        match before {
            None => news.push(format!("loaded {} {}", plugin.name, plugin.version)),
            Some(before) if before.digest != plugin.digest => {
                let digest = plugin.digest.get(..12).unwrap_or(&plugin.digest);
                news.push(format!("reloaded {} {} ({digest})", plugin.name, plugin.version));
            }
            Some(_) => {}
        }
        if let Some(refused) = plugin.refused.as_ref().filter(|r| before.and_then(|b| b.refused.as_ref()) != Some(r)) {
            news.push(format!("refused {}: {}; the one before goes on", refused.file, refused.why));
        }
        for on in plugin.chains.iter().filter(|on| on.state == "faulted") {
            let known = before.and_then(|b| b.chains.iter().find(|o| o.chain == on.chain));
            if known.is_none_or(|known| known.state != "faulted") {
                let why = on.why.as_deref().unwrap_or("no reason given");
                news.push(format!("{} on {} stopped at its cursor: {why}", plugin.name, on.chain));
            }
        }
    }
    for file in now.refused_alone().filter(|file| !last.refused_files.contains(file)) {
        news.push(format!("refused {}: {}", file.file, file.why));
    }
    for chain in &now.chains {
        let before = last.chains.iter().find(|other| other.name == chain.name);
        if before.is_none_or(|before| before.state != chain.state) {
            let why = chain.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
            news.push(format!("chain {} is {}{why}", chain.name, chain.state));
        }
        if before.is_some_and(|before| before.reorgs < chain.reorgs) {
            news.push(format!("chain {}: reorg", chain.name));
        }
    }
    news
}

/// Lanes count what is left about once a second: outputs that have not changed for this long have nothing to do.
const SETTLED: Duration = Duration::from_secs(3);

async fn until_end(running: host::Running, signals: &mut host::Signals) -> anyhow::Result<Exit> {
    let status = running.handle.status.clone();
    let end = async {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        let (mut outputs, mut since) = (vec![], Instant::now());
        loop {
            tick.tick().await;
            let now = status.borrow().clone();
            if status.has_changed().is_err() {
                return Err("the process stopped before the recording ended".to_owned());
            }
            match host::played(&now) {
                Some(Ok(())) if now.outputs.is_empty() => return Ok(()),
                Some(Ok(())) => {}
                Some(Err(why)) => return Err(why),
                None => {
                    (outputs, since) = (vec![], Instant::now());
                    continue;
                }
            }
            if outputs != now.outputs || now.outputs.iter().any(|output| output.state == "failing") {
                (outputs, since) = (now.outputs.clone(), Instant::now());
            } else if since.elapsed() > SETTLED {
                // What is left waits for blocks that the recording does not have.
                return Ok(());
            }
        }
    };
    let ended = tokio::select! {
        ended = end => ended,
        () = signals.next() => Ok(()),
    };
    tokio::select! {
        drained = running.drain(host::DRAIN) => drained?,
        () = signals.next() => return Ok(Exit::Interrupted),
    }
    match ended {
        Ok(()) => Ok(Exit::Done),
        Err(why) => Err(Trouble::new(why, "mend the plugin and run it again").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{ConsumerId, TrackId};
    use crate::model::{BlockRef, ChainId, EmissionId, EventPosition, PluginStatus, RefusedFile, StreamSpec};

    #[test]
    fn an_emission_is_one_line_that_cannot_steer_the_terminal() {
        let chain = ChainId(1);
        let block = BlockRef { chain, number: 7, hash: Default::default(), parent: Default::default(), time: 0 };
        let stream: crate::model::StreamId = "p.s".parse().unwrap();
        let spec = StreamSpec { name: stream.stream.clone(), description: String::new(), schema: None };
        let track = TrackInfo { id: TrackId(1), consumer: ConsumerId(1), stream, chain, spec, last_offset: 1 };
        let entry = |op, payload: &str| Entry {
            offset: 1,
            op,
            emission: EmissionId([0; 16]),
            block,
            position: EventPosition::Block,
            ordinal: 0,
            lane_key: String::new(),
            content_type: ContentType::Text,
            payload: payload.into(),
            retracted: None,
        };
        assert_eq!(line(&track, &entry(Op::Apply, "a\n\x1b[2Jb"), false), "+ apply   p.s 7 a  [2Jb\n");
        let long = "x".repeat(500);
        assert_eq!(line(&track, &entry(Op::Retract, &long), false), format!("- retract p.s 7 {long}\n"));
        let cut = line(&track, &entry(Op::Retract, &long), true);
        assert!(cut.ends_with(&format!(" {}...\n", "x".repeat(SHOWN))), "{cut}");
        let of = format!(r#"{{"to":"0x{}","n":"0x12"}}"#, "ab".repeat(20));
        let short = line(&track, &entry(Op::Apply, &of), true);
        assert!(short.ends_with("p.s 7 {\"to\":\"0xababab..abab\",\"n\":\"0x12\"}\n"), "{short}");
        assert!(line(&track, &entry(Op::Retract, "x"), true).starts_with("\x1b[31m- retract\x1b[0m"));
    }

    #[test]
    fn a_reload_and_a_refusal_are_news_once() {
        let plugin = |digest: &str, refused: Option<RefusedFile>| Status {
            plugins: vec![PluginStatus {
                name: "p".into(),
                version: "1".into(),
                digest: digest.into(),
                refused,
                ..Default::default()
            }],
            ..Default::default()
        };
        let refused = RefusedFile { file: "p.wasm".into(), why: "not wasm".into(), ..Default::default() };
        assert_eq!(news(&Status::default(), &plugin("a", None)), ["loaded p 1"]);
        assert_eq!(news(&plugin("a", None), &plugin("b", None)), ["reloaded p 1 (b)"]);
        let with = plugin("a", Some(refused));
        assert_eq!(news(&plugin("a", None), &with), ["refused p.wasm: not wasm; the one before goes on"]);
        assert!(news(&with, &with).is_empty());
    }
}
