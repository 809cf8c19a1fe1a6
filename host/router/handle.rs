//! What the outside may ask of a running process: the commands, each answered once.

use std::ops::RangeInclusive;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::edits::{Change, Edited, Reply};
use super::tracking::Ask;
use crate::index::watch::SharedSets;
use crate::journal::Journal;
use crate::model::{ChainId, OutputName, PluginName, SetName, Status, StreamId};

/// A command's answer: what was done, or why not and what to do next. Both are for a person.
pub type Answer = Result<String, String>;

/// What is to be sent again.
#[derive(Debug)]
pub struct Resend {
    pub stream: StreamId,
    /// All of the stream's by default.
    pub chain: Option<ChainId>,
    pub output: OutputName,
    pub blocks: RangeInclusive<u64>,
    /// Most deliveries a second.
    pub pace: u32,
}

#[derive(Debug)]
pub enum Command {
    /// Back to the version that ran before; the file that is left stays banned until it changes.
    Rollback { plugin: PluginName },
    /// Try a faulted plugin now.
    Retry { plugin: PluginName },
    /// Load the file in the plugin folder although its state version differs.
    Upgrade { plugin: PluginName },
    /// Dead letters back to their lanes, or away.
    Dead { ids: Vec<i64>, again: bool },
    /// Deliveries that were made are made again.
    Resend(Resend),
    /// A stopped or parked output tries at once.
    Resume { output: OutputName },
    /// Changes a watch set. The reply has what was done; the answer is empty.
    Watch { set: SetName, change: Change, reply: Reply },
    /// Of transactions that are watched. The answer is empty; what was asked for is answered by itself.
    Track { chain: String, ask: Ask },
    /// A chain that halted on a reorg below its finalized block accepts the provider's chain as it is now.
    AcceptReorg { chain: String },
}

/// A grip on a running router: cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(crate) commands: mpsc::Sender<(Command, oneshot::Sender<Answer>)>,
    pub status: watch::Receiver<Arc<Status>>,
    pub sets: SharedSets,
    pub journal: Arc<dyn Journal>,
}

impl Handle {
    pub async fn ask(&self, command: Command) -> Answer {
        let stopped = || "the process is stopping; ask again when it runs".to_owned();
        let (answer, receive) = oneshot::channel();
        self.commands.send((command, answer)).await.map_err(|_| stopped())?;
        receive.await.map_err(|_| stopped())?
    }

    /// Of transactions that are watched on a chain, by its name or id.
    pub async fn track<T>(&self, chain: &str, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, String> {
        let (reply, receive) = oneshot::channel();
        self.ask(Command::Track { chain: chain.to_owned(), ask: ask(reply) }).await?;
        receive.await.map_err(|_| "it could not be done now: send it again".to_owned())
    }

    /// Changes a watch set; durable when it returns.
    pub async fn edit(&self, set: SetName, change: Change) -> Result<Edited, String> {
        let (reply, receive) = oneshot::channel();
        self.ask(Command::Watch { set, change, reply }).await?;
        receive.await.map_err(|_| "the process is stopping; ask again when it runs".to_owned())?
    }
}
