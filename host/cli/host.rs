//! The whole process, started and stopped: what `run`, `dev`, `replay` and `plugin test` have in common.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::Trouble;
use crate::config::{Config, LogConfig};
use crate::model::{CatchingUp, ConsumerStatus, Status};
use crate::router::{self, handle::Handle};
use crate::source::Source;
use crate::{serve, telemetry};

/// SIGTERM must have ended in 10 s; one is kept for what comes after the drain.
pub const DRAIN: Duration = Duration::from_secs(9);

pub struct Running {
    pub handle: Handle,
    router: router::Running,
    http: Option<Http>,
}

struct Http {
    at: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Begins everything that a configuration names. Providers and destinations need not be there yet.
pub async fn start(config: Config) -> anyhow::Result<Running> {
    start_with(config, BTreeMap::new()).await
}

/// The same, with sources that are open already, by the name of their chain.
pub async fn start_with(config: Config, given: BTreeMap<String, Arc<dyn Source>>) -> anyhow::Result<Running> {
    let listen = config.http.listen;
    // First: a port that is taken is found before anything is begun. The recorder stands before what it records.
    let listener = match listen {
        Some(address) => Some(TcpListener::bind(address).await.with_context(|| {
            Trouble::new(
                format!("cannot listen at {address}"),
                "stop what listens there, or give this one an address of its own: [http] listen",
            )
        })?),
        None => None,
    };
    let metrics = listener.as_ref().map(|_| telemetry::metrics());
    let router =
        router::start_with(config, given).await.map_err(|why| anyhow::anyhow!(why)).context("it did not start")?;
    let http = match listener.zip(metrics) {
        Some((listener, metrics)) => {
            let at = listener.local_addr()?;
            let (stop, stopped) = oneshot::channel();
            // A sender that is gone stops it as well.
            let shutdown = async { drop(stopped.await) };
            let task = tokio::spawn(serve::serve(listener, router.handle.clone(), metrics, shutdown));
            Some(Http { at, stop, task })
        }
        None => None,
    };
    Ok(Running { handle: router.handle.clone(), router, http })
}

impl Running {
    /// Where it is served; `None` where nothing is.
    pub fn url(&self) -> Option<String> {
        self.http.as_ref().map(|http| format!("http://{}", http.at))
    }

    /// Returns when it stopped by itself, with the reason. Nothing is left to drain then.
    pub async fn stopped(&mut self) -> String {
        self.router.ended().await.err().unwrap_or_else(|| "it stopped without a reason".into())
    }

    /// Takes nothing more in, lets what is under way finish, and releases the journal.
    pub async fn drain(self, within: Duration) -> anyhow::Result<()> {
        let http = async {
            if let Some(http) = self.http {
                // It is gone only where it ended already.
                let _gone = http.stop.send(());
                if let Err(error) = http.task.await {
                    tracing::warn!(%error, "the http listener ended badly");
                }
            }
        };
        let both = async { tokio::join!(self.router.stop(), http).0 };
        let drained = tokio::time::timeout(within, both).await.with_context(|| {
            let what = format!("it did not drain within {} s; what is committed is safe", within.as_secs());
            Trouble::new(what, "start it again: it goes on where it stopped")
        })?;
        drained.map_err(|why| anyhow::anyhow!(why)).context("it stopped in the middle of something")
    }
}

/// Begins to log as configured.
pub fn log(config: &LogConfig) -> anyhow::Result<()> {
    telemetry::init(config).map_err(|why| Trouble::usage(why, "mend [log] or RUST_LOG").into())
}

/// SIGINT and SIGTERM.
pub struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    pub fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }
    #[cfg(unix)]
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
    #[cfg(not(unix))]
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {})
    }
    #[cfg(not(unix))]
    pub async fn next(&mut self) {
        // Where it cannot be listened to, the system's own way of ending a process is left.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Fewer blocks than these are read before a bar is seen.
const WORTH_A_BAR: u64 = 1_000;

/// Plugins that have long to catch up, with how far they are.
fn catching_up(status: &Status) -> Vec<(String, u64, CatchingUp)> {
    let on = status.plugins.iter().flat_map(|plugin| plugin.chains.iter().map(move |on| (plugin, on)));
    let far = on.filter_map(|(plugin, on)| {
        let progress =
            on.catching_up.clone().filter(|progress| progress.to - progress.from.min(progress.to) > WORTH_A_BAR)?;
        let at = on.cursor.as_ref().map_or(progress.from, |block| block.number);
        Some((format!("{} on {}", plugin.name, on.chain), at, progress))
    });
    far.collect()
}

/// Shows how far plugins that catch up have come: bars on a terminal, a line now and then elsewhere. Ends with
/// the process it watches.
pub async fn show_progress(handle: Handle) {
    /// A line of the plain form; a bar moves ten times as often.
    const LINE_EVERY: Duration = Duration::from_secs(10);
    let terminal = std::io::stderr().is_terminal();
    let mut shown: std::collections::BTreeMap<String, indicatif::ProgressBar> = Default::default();
    let mut tick = tokio::time::interval(if terminal { LINE_EVERY / 50 } else { LINE_EVERY });
    let mut status = handle.status.clone();
    while status.has_changed().is_ok() {
        tick.tick().await;
        let now = catching_up(&status.borrow_and_update().clone());
        for (name, at, progress) in &now {
            if !terminal {
                tracing::info!(at, of = progress.to, "{name} catches up: {progress}");
                continue;
            }
            let bar = shown.entry(name.clone()).or_insert_with(|| {
                let style = indicatif::ProgressStyle::with_template("{prefix}  {wide_bar}  {msg}");
                let bar = indicatif::ProgressBar::new(1).with_style(style.expect("the template is sound"));
                telemetry::bars().add(bar.with_prefix(name.clone()))
            });
            bar.set_length(progress.to.saturating_sub(progress.from));
            bar.set_position(at.saturating_sub(progress.from));
            bar.set_message(format!("block {at} of {}, {progress}", progress.to));
        }
        shown.retain(|name, bar| {
            let stays = now.iter().any(|(other, ..)| other == name);
            if !stays {
                bar.finish_and_clear();
            }
            stays
        });
    }
}

/// Everything that a recording holds has been processed; or why it will not be.
pub fn played(status: &Status) -> Option<Result<(), String>> {
    if let Some(file) = status.refused_files.first() {
        return Some(Err(format!("{}: {}", file.file, file.why)));
    }
    if let Some(chain) = status.chains.iter().find(|chain| chain.state == "halted") {
        return Some(Err(format!(
            "chain {} halted: {}",
            chain.name,
            chain.why.as_deref().unwrap_or("no reason given")
        )));
    }
    for plugin in &status.plugins {
        if let Some(refused) = &plugin.refused {
            return Some(Err(format!("{}: {}", refused.file, refused.why)));
        }
        if let Some(on) = plugin.chains.iter().find(|on| on.state == "faulted") {
            return Some(Err(format!("{} faulted: {}", plugin.name, on.why.as_deref().unwrap_or("no reason given"))));
        }
    }
    let ended = !status.chains.is_empty() && status.chains.iter().all(|chain| chain.state == "ended");
    // By hash: at the head's height a plugin may still stand on the branch that was left.
    let at_head = |on: &ConsumerStatus| {
        let chain = status.chains.iter().find(|chain| chain.chain == on.chain);
        let head = chain.and_then(|chain| chain.head.as_ref());
        head.is_some_and(|head| on.cursor.as_ref().is_some_and(|cursor| cursor.hash == head.hash))
    };
    let mut consumers = status.plugins.iter().flat_map(|plugin| &plugin.chains).peekable();
    let at_end = consumers.peek().is_some() && consumers.all(at_head);
    (ended && at_end).then_some(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BlockStatus, ChainStatus, PluginStatus, RefusedFile};

    #[test]
    fn a_recording_is_played_when_every_plugin_is_at_its_end() {
        let block = |hash: &str| Some(BlockStatus { number: 7, hash: hash.into(), time: 0 });
        let consumer = |state: &str, hash: &str| ConsumerStatus {
            chain: "eip155:1".into(),
            state: state.into(),
            cursor: block(hash),
            ..Default::default()
        };
        let with = |chain: &str, chains: Vec<ConsumerStatus>| Status {
            chains: vec![ChainStatus {
                chain: "eip155:1".into(),
                state: chain.into(),
                head: block("0xa"),
                ..Default::default()
            }],
            plugins: vec![PluginStatus { name: "p".into(), chains, ..Default::default() }],
            ..Default::default()
        };
        assert_eq!(played(&Status::default()), None);
        assert_eq!(played(&with("ended", vec![])), None);
        assert_eq!(played(&with("following", vec![consumer("live", "0xa")])), None);
        assert_eq!(played(&with("ended", vec![consumer("live", "0xb")])), None);
        assert_eq!(played(&with("ended", vec![consumer("live", "0xa"), consumer("live", "0xb")])), None);
        assert_eq!(played(&with("ended", vec![consumer("live", "0xa")])), Some(Ok(())));
        assert!(matches!(played(&with("ended", vec![consumer("faulted", "0xa")])), Some(Err(_))));
        let refused = vec![RefusedFile::default()];
        assert!(matches!(played(&Status { refused_files: refused, ..Default::default() }), Some(Err(_))));
    }
}
