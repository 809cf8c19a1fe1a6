//! `chainweir plugin`: a plugin's life from its template to its rollback.

pub mod build;
mod inspect;
mod new;
mod test;

use super::Exit;
use super::client::Where;
use super::status;
use crate::model::{PluginName, Status};

#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Make a folder with a plugin that builds and passes its tests
    New(new::Args),
    /// Build a plugin from source and put it into the plugin folder
    Build(build::Args),
    /// Run a built plugin over recorded blocks and compare what it emits with a golden file
    Test(test::Args),
    /// Say what a .wasm is: name, version, streams, subscriptions, what it imports
    Inspect(inspect::Args),
    /// The plugins of the running process
    List {
        #[command(flatten)]
        at: Where,
    },
    /// Back to the version that ran before; the file that is left stays banned until it changes
    Rollback(Named),
    /// Try a faulted plugin now, not at its next turn
    Retry(Named),
    /// Load a file although its state version differs from the one that wrote the state
    Upgrade(Named),
}

#[derive(clap::Args, Debug)]
pub struct Named {
    /// The plugin's name
    name: PluginName,
    #[command(flatten)]
    at: Where,
}

pub async fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::New(args) => new::run(args),
        Command::Build(args) => build::run(args).await,
        Command::Test(args) => test::run(args).await,
        Command::Inspect(args) => inspect::run(args),
        Command::List { at } => {
            let status: Status = at.client()?.get("/status").await?;
            print!("{}", status::plugins(&status));
            for file in status.refused_alone() {
                println!("refused file {}: {}", file.file, file.why);
            }
            Ok(Exit::Done)
        }
        Command::Rollback(named) => ask(named, "rollback").await,
        Command::Retry(named) => ask(named, "retry").await,
        Command::Upgrade(named) => ask(named, "upgrade").await,
    }
}

async fn ask(named: Named, verb: &str) -> anyhow::Result<Exit> {
    println!("{}", named.at.client()?.post(&format!("/plugins/{}/{verb}", named.name), None).await?);
    Ok(Exit::Done)
}
