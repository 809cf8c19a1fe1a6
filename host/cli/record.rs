//! `chainweir record`: blocks, receipts and logs of a live chain into a file.
//!
//! The file keeps the order in which a follower met the blocks: after a reorg the new branch follows from the block
//! after the common ancestor on. It gets its name when it is whole.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use super::{Exit, Trouble, host};
use crate::model::BlockRef;
use crate::source::record::Writer;
use crate::source::rpc::Rpc;
use crate::source::{Open, ReadError, Source};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The provider's address, ws(s):// or http(s)://
    #[arg(long, value_name = "URL")]
    rpc: String,
    /// First block; with --follow the head by default
    #[arg(long, value_name = "BLOCK", required_unless_present = "follow")]
    from: Option<u64>,
    /// Last block
    #[arg(long, value_name = "BLOCK", required_unless_present = "follow", conflicts_with = "follow")]
    to: Option<u64>,
    /// Go on with the head, reorgs included, until a signal
    #[arg(long)]
    follow: bool,
    /// Where to write: .ndjson, or .ndjson.gz or .ndjson.zst to compress
    file: PathBuf,
}

pub async fn run(args: Args) -> anyhow::Result<Exit> {
    let mut signals = host::Signals::listen()?;
    if let (Some(from), Some(to)) = (args.from, args.to)
        && from > to
    {
        return Err(Trouble::usage(format!("--from {from} is above --to {to}"), "exchange them").into());
    }
    let Some(name) = args.file.file_name().and_then(|name| name.to_str()) else {
        return Err(Trouble::usage("the file has no name", "name a file such as blocks.ndjson.gz").into());
    };
    let table = toml::Table::from_iter([("rpc".to_owned(), toml::Value::String(args.rpc.clone()))]);
    let open = Open { name: "record".into(), expect: None, table, base: ".".into() };
    let source = patient(|| Rpc::open(open.clone())).await?;
    let last = match args.to {
        Some(to) => to,
        None => patient(|| source.head()).await?.number,
    };
    let first = args.from.unwrap_or(last);

    // Under another name until it is whole; the ending stays, it says how to compress.
    let part = args.file.with_file_name(format!(".part-{name}"));
    let out = Writer::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
    let mut recording =
        Recording { source, out, path: vec![], lines: 0, reorgs: 0, progress: progress(last - first.min(last) + 1) };
    let whole = tokio::select! {
        done = recording.range(first, last) => {
            done?;
            true
        }
        () = signals.next() => false,
    };
    if whole && args.follow {
        tokio::select! {
            never = recording.follow() => never?,
            () = signals.next() => {}
        }
    }
    recording.progress.finish_and_clear();
    let Recording { out, path, lines, reorgs, .. } = recording;
    out.finish().with_context(|| format!("cannot write {}", part.display()))?;
    if !whole {
        let what = format!("stopped before block {last}; what there is, is in {}", part.display());
        return Err(Trouble::new(what, "run it again").into());
    }
    std::fs::rename(&part, &args.file).with_context(|| format!("cannot write {}", args.file.display()))?;
    let tip = path.last().map_or(last, |at| at.number);
    println!("{}: blocks {first} to {tip}, {lines} records, {reorgs} reorgs", args.file.display());
    Ok(Exit::Done)
}

fn progress(blocks: u64) -> indicatif::ProgressBar {
    if !std::io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    let style = indicatif::ProgressStyle::with_template("{wide_bar}  {pos}/{len} blocks, {eta} left");
    indicatif::ProgressBar::new(blocks).with_style(style.expect("the template is sound"))
}

/// Asks again until there is an answer, for a minute at most; what cannot get better is an error at once.
async fn patient<T, F: Future<Output = Result<T, ReadError>>>(ask: impl Fn() -> F) -> anyhow::Result<T> {
    const PATIENCE: Duration = Duration::from_secs(60);
    const PAUSE: Duration = Duration::from_millis(500);
    let since = tokio::time::Instant::now();
    loop {
        let (error, pause) = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(ReadError::Again { why, after }) => (why, after.unwrap_or(PAUSE)),
            Err(ReadError::Halt { why }) => bail!(Trouble::new(why, "name another provider")),
            Err(other) => (other.to_string(), PAUSE),
        };
        if since.elapsed() > PATIENCE {
            bail!(Trouble::new(error, "see that the provider works and has these blocks, then run it again"));
        }
        tokio::time::sleep(pause).await;
    }
}

struct Recording {
    source: Rpc,
    out: Writer,
    /// The branch that the recording stands on.
    path: Vec<BlockRef>,
    lines: u64,
    reorgs: u64,
    progress: indicatif::ProgressBar,
}

impl Recording {
    async fn range(&mut self, first: u64, last: u64) -> anyhow::Result<()> {
        for number in first..=last {
            let at = patient(|| self.source.by_number(number)).await?;
            self.advance(at).await?;
            self.progress.inc(1);
            if number % 1_000 == 0 && self.progress.is_hidden() {
                eprintln!("block {number} of {last}");
            }
        }
        Ok(())
    }

    async fn follow(&mut self) -> anyhow::Result<()> {
        loop {
            let head = patient(|| self.source.head()).await?;
            self.advance(head).await?;
            self.source.changed().await;
        }
    }

    /// Records what leads to this block from the branch that the recording stands on.
    async fn advance(&mut self, at: BlockRef) -> anyhow::Result<()> {
        // Same, or a provider that lags: not a reorg.
        if self.path.iter().rev().any(|known| known.hash == at.hash) {
            return Ok(());
        }
        let mut missing = vec![at];
        let mut oldest = at;
        let kept = loop {
            match self.path.iter().rposition(|known| known.hash == oldest.parent) {
                Some(ancestor) => break ancestor + 1,
                // Below the first record there is nothing to take back.
                None if self.path.first().is_none_or(|first| oldest.number <= first.number) => break 0,
                None => {
                    oldest = patient(|| self.source.by_hash(oldest.parent)).await?;
                    missing.push(oldest);
                }
            }
        };
        self.reorgs += u64::from(kept < self.path.len());
        self.path.truncate(kept);
        for at in missing.into_iter().rev() {
            let line = patient(|| self.source.record(&at)).await?;
            self.out.write(&line).context("cannot write the recording")?;
            self.lines += 1;
            self.path.push(at);
        }
        Ok(())
    }
}
