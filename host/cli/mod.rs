//! The command line, on top of everything: one file per command. A command says what it did on stdout, what
//! happens meanwhile on stderr, and ends with one of the codes of [`Exit`].
//!
//! Commands that ask a running process something know its HTTP interface alone; the others build their own parts.

mod accept_reorg;
mod artifact;
mod bench;
mod check;
mod client;
mod dead;
mod dev;
mod host;
mod offline;
mod plugin;
mod record;
mod replay;
mod resume;
mod run;
mod set;
mod status;
mod tail;
mod track;
mod trouble;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use trouble::{Exit, Trouble};

const AFTER: &str = "\
Exit codes:
  0    done
  1    it failed; the message says what to do next
  2    wrong arguments, or mistakes in the configuration
  3    no process listens at the address that was asked
  130  stopped at once by a second signal

Begin with:
  chainweir plugin new my-plugin
  chainweir dev my-plugin --rpc ws://localhost:8545";

#[derive(Parser, Debug)]
#[command(name = "chainweir", version, about, after_help = AFTER, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Follow the chains, run the plugins, deliver what they emit
    Run(run::Args),
    /// Build plugins from source and run them; rebuild and hot-reload on save; show what they emit
    Dev(dev::Args),
    /// Name every mistake in the configuration, with its place; describe the plugins
    Check(check::Args),
    /// Make, build, test and manage plugins
    #[command(subcommand)]
    Plugin(plugin::Command),
    /// Write blocks, receipts and logs of a live chain into a file
    Record(record::Args),
    /// Run a plugin over recorded blocks, offline: emissions as NDJSON on stdout. With --stream: send an output again
    /// what it has had
    Replay(replay::Args),
    /// Watch sets: named lists of addresses or words that plugins subscribe to
    #[command(subcommand)]
    Set(set::Command),
    /// Transactions: said when they are included, confirmed, replaced, dropped or orphaned
    #[command(subcommand)]
    Track(track::Command),
    /// Deliveries that were given up
    #[command(subcommand)]
    Dead(dead::Command),
    /// Chains, plugins and outputs of the running process
    Status(status::Args),
    /// An output that stopped, or waits between two attempts, tries at once
    Resume(resume::Args),
    /// A chain that halted on a reorg of final blocks goes on with the provider's chain as it is
    AcceptReorg(accept_reorg::Args),
    /// Measure this machine, each figure beside what it is compared with
    Bench(bench::Args),
}

/// Parses the arguments, runs the command, says what went wrong.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = runtime().and_then(|runtime| {
        let outcome = runtime.block_on(dispatch(cli.command));
        // What is still blocking (a compilation, a read of a terminal) has nothing to lose.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) => trouble::report(&error).into(),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    // One provider of TLS for all connections. It fails only where one is installed already, which is as good.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

async fn dispatch(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Run(args) => run::run(args).await,
        Command::Dev(args) => dev::run(args).await,
        Command::Check(args) => check::run(args).await,
        Command::Plugin(command) => plugin::run(command).await,
        Command::Record(args) => record::run(args).await,
        Command::Replay(args) => replay::run(args).await,
        Command::Set(command) => set::run(command).await,
        Command::Track(command) => track::run(command).await,
        Command::Dead(command) => dead::run(command).await,
        Command::Status(args) => status::run(args).await,
        Command::Resume(args) => resume::run(args).await,
        Command::AcceptReorg(args) => accept_reorg::run(args).await,
        Command::Bench(args) => bench::run(args).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
