//! The record format: blocks in files, as a node told them. `node -> [record] -> file -> recorded source`.
//!
//! One JSON object a line, plain, gzip or zstd: `chainId`, `number`, `hash`, `block` (`eth_getBlockBy...`), and where
//! known `receipts` (`eth_getBlockReceipts`) and `logs` (`eth_getLogs` by block hash). An absent key means "not
//! known", never "empty". Lines stand in the order in which the blocks were seen: a line whose parent is not the
//! block of the line before is a reorg. Knows nothing of pace or of canonical chains.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use alloy_primitives::B256;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::rpc::Rpc;
use super::wire::{Parts, Trouble, WireBlock, assemble, parse_logs, parse_receipts};
use super::{ReadError, Source};
use crate::model::{Block, BlockRef, ChainId, Wanted};
use crate::proof::Quirks;

/// One line, its parts unparsed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    pub chain_id: u64,
    pub number: u64,
    pub hash: B256,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipts: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<Box<RawValue>>,
}

impl Line {
    pub fn chain(&self) -> ChainId {
        ChainId(self.chain_id)
    }

    pub fn parts(&self) -> Result<Parts, Trouble> {
        let block = WireBlock::parse(self.block.as_ref().ok_or(Trouble::Lacks("block and header"))?.get())?;
        if block.hash != self.hash || block.header.number != self.number {
            return Err(Trouble::False(format!(
                "the line says block {} ({}), its block is another",
                self.number, self.hash
            )));
        }
        // A null is what a node says when it does not know: not a list.
        let known = |raw: &Option<Box<RawValue>>| raw.as_ref().filter(|r| r.get() != "null").cloned();
        let logs = known(&self.logs).map(|l| parse_logs(l.get())).transpose()?;
        let receipts = known(&self.receipts).map(|r| parse_receipts(r.get())).transpose()?;
        Ok(Parts { block, logs, receipts })
    }

    /// Verified, with what is wanted.
    pub fn to_block(&self, wanted: &Wanted, quirks: &Quirks, doubts: &mut Vec<String>) -> Result<Block, Trouble> {
        assemble(self.chain(), self.parts()?, wanted, quirks, doubts)
    }
}

/// A file's lines, one at a time, with the number of each (from 1).
pub struct Reader {
    path: PathBuf,
    from: BufReader<Box<dyn Read + Send>>,
    line: usize,
    text: String,
}

/// Where in a recording something is wrong; asking again will not help.
pub fn halt(path: &Path, line: usize, what: impl std::fmt::Display) -> ReadError {
    ReadError::Halt { why: format!("{}, line {line}: {what}", path.display()) }
}

impl Reader {
    /// Plain text, gzip or zstd, told by the first bytes.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let fail = |e: io::Error| ReadError::Halt { why: format!("cannot read {}: {e}", path.display()) };
        let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(fail)?);
        let begin = file.fill_buf().map_err(fail)?;
        let from: Box<dyn Read + Send> = if begin.starts_with(&[0x1f, 0x8b]) {
            Box::new(flate2::bufread::MultiGzDecoder::new(file))
        } else if begin.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Box::new(zstd::Decoder::with_buffer(file).map_err(fail)?)
        } else {
            Box::new(file)
        };
        Ok(Self { path: path.into(), from: BufReader::with_capacity(1 << 18, from), line: 0, text: String::new() })
    }
}

impl Iterator for Reader {
    type Item = Result<(usize, Line), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.text.clear();
            self.line += 1;
            match self.from.read_line(&mut self.text) {
                Err(e) => return Some(Err(halt(&self.path, self.line, e))),
                Ok(0) => return None,
                Ok(_) if self.text.trim().is_empty() => {}
                Ok(_) => {
                    let line = serde_json::from_str(&self.text).map_err(|e| {
                        let cut = if self.text.ends_with('\n') { "" } else { " (the file seems to be cut off here)" };
                        halt(&self.path, self.line, format!("not a line of the record format: {e}{cut}"))
                    });
                    return Some(line.map(|l| (self.line, l)));
                }
            }
        }
    }
}

/// Appends lines; gzip where the name ends in `.gz`, zstd where it ends in `.zst`. [`Writer::finish`] makes them last.
pub enum Writer {
    Plain(io::BufWriter<File>),
    Zstd(zstd::Encoder<'static, io::BufWriter<File>>),
    Gzip(flate2::write::GzEncoder<io::BufWriter<File>>),
}

/// Smaller than gzip's best, at several times its speed.
const ZSTD_LEVEL: i32 = 12;

impl Writer {
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = io::BufWriter::new(File::create(path)?);
        Ok(match path.extension().and_then(|e| e.to_str()) {
            Some("gz") => Self::Gzip(flate2::write::GzEncoder::new(file, flate2::Compression::best())),
            Some("zst") => Self::Zstd(zstd::Encoder::new(file, ZSTD_LEVEL)?),
            _ => Self::Plain(file),
        })
    }

    pub fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        match self {
            Self::Plain(w) => w.write_all(&text),
            Self::Gzip(w) => w.write_all(&text),
            Self::Zstd(w) => w.write_all(&text),
        }
    }

    pub fn finish(self) -> io::Result<()> {
        let buffered = match self {
            Self::Plain(w) => w,
            Self::Gzip(w) => w.finish()?,
            Self::Zstd(w) => w.finish()?,
        };
        buffered.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

/// Waits between two tries where the provider does not say how long.
const TRY_AFTER: Duration = Duration::from_millis(300);
/// So often a provider is asked for one thing before recording is given up: some minutes.
const TRIES: u32 = 200;

async fn patiently<T, F: Future<Output = Result<T, ReadError>>>(mut ask: impl FnMut() -> F) -> Result<T, ReadError> {
    let mut tries = 0;
    loop {
        match ask().await {
            Err(ReadError::Again { after, .. }) if tries < TRIES => {
                tries += 1;
                tokio::time::sleep(after.unwrap_or(TRY_AFTER)).await;
            }
            other => return other,
        }
    }
}

fn unwritten(e: io::Error) -> ReadError {
    ReadError::Halt { why: format!("cannot write the recording: {e}") }
}

/// Records the canonical blocks `from..=to`, oldest first; `progress` hears of each. The caller finishes `out`.
pub async fn record(
    source: &Rpc,
    from: u64,
    to: u64,
    out: &mut Writer,
    mut progress: impl FnMut(BlockRef),
) -> Result<(), ReadError> {
    let mut before: Option<BlockRef> = None;
    for number in from..=to {
        let at = patiently(|| source.by_number(number)).await?;
        if before.is_some_and(|b| b.hash != at.parent) {
            let why =
                format!("a reorg at block {number} while it was recorded: record final blocks, or follow the head");
            return Err(ReadError::Halt { why });
        }
        out.write(&patiently(|| source.record(&at)).await?).map_err(unwritten)?;
        progress(at);
        before = Some(at);
    }
    Ok(())
}

/// Records from block `from` on, every block in the order in which it is seen, orphaned ones too, until `stop` ends
/// or the block `to` is the head. A block that is gone before it could be read is left out with its descendants.
pub async fn follow(
    source: &Rpc,
    from: u64,
    to: Option<u64>,
    out: &mut Writer,
    stop: impl Future<Output = ()>,
    mut progress: impl FnMut(BlockRef),
) -> Result<(), ReadError> {
    tokio::pin!(stop);
    let mut seen: HashSet<B256> = HashSet::new();
    loop {
        let head = patiently(|| source.head()).await?;
        match ancestry(source, head, from, &seen).await {
            Ok(path) => {
                for at in path {
                    match patiently(|| source.record(&at)).await {
                        Ok(line) => out.write(&line).map_err(unwritten)?,
                        // Orphaned under our hands: the next head tells of what replaced it.
                        Err(ReadError::Unknown { .. } | ReadError::False { .. }) => break,
                        Err(halt) => return Err(halt),
                    }
                    seen.insert(at.hash);
                    progress(at);
                }
            }
            Err(ReadError::Unknown { .. } | ReadError::False { .. }) => {}
            Err(halt) => return Err(halt),
        }
        if to.is_some_and(|to| head.number >= to && seen.contains(&head.hash)) {
            return Ok(());
        }
        tokio::select! {
            () = &mut stop => return Ok(()),
            () = source.changed() => {}
        }
    }
}

/// What was not seen yet of a head's ancestry down to `from`, oldest first.
async fn ancestry(source: &Rpc, head: BlockRef, from: u64, seen: &HashSet<B256>) -> Result<Vec<BlockRef>, ReadError> {
    let mut path = Vec::new();
    let mut at = head;
    while at.number >= from && !seen.contains(&at.hash) {
        path.push(at);
        if at.number == 0 {
            break;
        }
        at = patiently(|| source.by_hash(at.parent)).await?;
    }
    path.reverse();
    Ok(path)
}
