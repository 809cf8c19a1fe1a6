//! A chain's final blocks in many files, each a run of them. `files -> [archive] -> follower`.
//!
//! A file is read when a block in it is asked for, and the last few stay in memory: how long the archive is does not
//! matter. Its last block is the head, and everything is final. Knows nothing of what stands in a file: a [`Format`] reads
//! one as a [`Volume`].

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy_primitives::B256;

use super::record::{Line, Reader, halt};
use super::wire::{self, Trouble};
use super::{Open, Range, ReadError, Source, Tag};
use crate::model::{Block, BlockRef, ChainId, Wanted};
use crate::proof::Quirks;

/// Files that stay in memory.
const SHELF: usize = 3;
/// Blocks in one answer to `range`.
const BLOCKS_AT_ONCE: u64 = 256;
const IDLE: Duration = Duration::from_millis(200);

/// One file's blocks.
pub(super) trait Volume: Send + Sync {
    /// In order, each the parent of the next.
    fn places(&self) -> &[BlockRef];
    fn block(&self, index: usize, wanted: &Wanted) -> Result<Block, ReadError>;
}

pub(super) trait Format: Send + Sync + 'static {
    /// The first block of each file, in order.
    fn firsts(&self) -> &[u64];
    fn name(&self, volume: usize) -> String;
    fn read(&self, volume: usize) -> Result<Arc<dyn Volume>, ReadError>;
}

pub(super) struct Archive<F> {
    chain: ChainId,
    head: BlockRef,
    told: AtomicBool,
    stacks: Arc<Stacks<F>>,
}

struct Stacks<F> {
    format: F,
    shelf: Mutex<Shelf>,
}

#[derive(Default)]
struct Shelf {
    volumes: VecDeque<(usize, Arc<dyn Volume>)>,
    /// Of every file that was ever read: its first block and its last.
    ends: HashMap<usize, (BlockRef, BlockRef)>,
}

fn broken(why: String) -> ReadError {
    ReadError::Halt { why }
}

impl<F: Format> Archive<F> {
    /// Reads the last file: it has the head.
    pub fn open(format: F, chain: ChainId) -> Result<Self, ReadError> {
        let last = format.firsts().len().checked_sub(1).ok_or_else(|| broken("the archive is empty".into()))?;
        let stacks = Stacks { format, shelf: Mutex::default() };
        let head = *stacks.volume(last)?.places().last().expect("a volume has blocks");
        Ok(Self { chain, head, told: AtomicBool::new(false), stacks: Arc::new(stacks) })
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Stacks<F>) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let stacks = self.stacks.clone();
        tokio::task::spawn_blocking(move || question(&stacks))
            .await
            .map_err(|e| broken(format!("reading the archive: {e}")))?
    }
}

impl<F: Format> Stacks<F> {
    fn shelf(&self) -> std::sync::MutexGuard<'_, Shelf> {
        self.shelf.lock().expect("no panic while held")
    }

    fn volume(&self, index: usize) -> Result<Arc<dyn Volume>, ReadError> {
        if let Some((_, volume)) = self.shelf().volumes.iter().find(|(i, _)| *i == index) {
            return Ok(volume.clone());
        }
        let volume = self.format.read(index)?;
        let (Some(first), Some(last)) = (volume.places().first(), volume.places().last()) else {
            return Err(broken(format!("{} has no blocks", self.format.name(index))));
        };
        let mut shelf = self.shelf();
        // Where both neighbours were seen, and nothing is missing between them, they are parent and child.
        let before = index.checked_sub(1).and_then(|i| shelf.ends.get(&i)).map(|(_, before)| (*before, *first));
        let after = shelf.ends.get(&(index + 1)).map(|(after, _)| (*last, *after));
        for (block, next) in before.into_iter().chain(after) {
            if block.number + 1 == next.number && block.hash != next.parent {
                return Err(broken(format!("{block} is not the parent of the block after it in the archive")));
            }
        }
        shelf.ends.insert(index, (*first, *last));
        shelf.volumes.push_back((index, volume.clone()));
        if shelf.volumes.len() > SHELF {
            shelf.volumes.pop_front();
        }
        Ok(volume)
    }

    /// The file that has a block, and its place there.
    fn find(&self, number: u64) -> Result<(Arc<dyn Volume>, usize), ReadError> {
        let firsts = self.format.firsts();
        let Some(index) = firsts.partition_point(|first| *first <= number).checked_sub(1) else {
            let first = firsts.first().copied().unwrap_or_default();
            return Err(broken(format!("block {number} is asked for, but the archive begins at {first}")));
        };
        let volume = self.volume(index)?;
        let at = usize::try_from(number - volume.places()[0].number).unwrap_or(usize::MAX);
        if at < volume.places().len() {
            return Ok((volume, at));
        }
        match firsts.get(index + 1) {
            Some(next) => Err(broken(format!(
                "block {number} is in no file: {} ends before it, the next begins at {next}",
                self.format.name(index)
            ))),
            None => Err(ReadError::Unknown { what: format!("block {number}") }),
        }
    }
}

#[async_trait::async_trait]
impl<F: Format> Source for Archive<F> {
    fn chain(&self) -> ChainId {
        self.chain
    }

    async fn head(&self) -> Result<BlockRef, ReadError> {
        self.told.store(true, Ordering::Relaxed);
        Ok(self.head)
    }

    async fn tagged(&self, _: Tag) -> Result<Option<BlockRef>, ReadError> {
        Ok(Some(self.head))
    }

    async fn by_hash(&self, hash: B256) -> Result<BlockRef, ReadError> {
        let shelf = self.stacks.shelf();
        let mut places = shelf.volumes.iter().flat_map(|(_, volume)| volume.places());
        places.find(|at| at.hash == hash).copied().ok_or_else(|| ReadError::Unknown { what: format!("block {hash}") })
    }

    async fn by_number(&self, number: u64) -> Result<BlockRef, ReadError> {
        self.ask(move |stacks| stacks.find(number).map(|(volume, at)| volume.places()[at])).await
    }

    async fn block(&self, at: &BlockRef, wanted: &Wanted) -> Result<Block, ReadError> {
        let (at, wanted) = (*at, wanted.clone());
        self.ask(move |stacks| {
            let (volume, index) = stacks.find(at.number)?;
            if volume.places()[index] == at {
                volume.block(index, &wanted)
            } else {
                Err(ReadError::Unknown { what: at.to_string() })
            }
        })
        .await
    }

    async fn range(&self, from: u64, to: u64, wanted: &Wanted) -> Result<Range, ReadError> {
        if from > self.head.number {
            return Err(ReadError::Unknown { what: format!("block {from}: the archive ends at {}", self.head.number) });
        }
        let to = to.min(self.head.number).min(from.saturating_add(BLOCKS_AT_ONCE - 1));
        let wanted = wanted.clone();
        self.ask(move |stacks| {
            let mut blocks = Vec::new();
            let mut last = None;
            for number in from..=to {
                let (volume, at) = stacks.find(number)?;
                let block = volume.block(at, &wanted)?;
                last = Some(block.at());
                if wanted.every_block() || !block.logs.is_empty() {
                    blocks.push(block);
                }
            }
            let to = last.ok_or_else(|| broken(format!("a range from {from} to {to}: this is a bug")))?;
            Ok(Range { blocks, to })
        })
        .await
    }

    async fn changed(&self) {
        tokio::time::sleep(IDLE).await;
    }

    fn first(&self) -> Option<u64> {
        self.stacks.format.firsts().first().copied()
    }

    fn ended(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }
}

/// A directory of recordings.
pub(super) struct Recordings {
    /// By their first block.
    files: Vec<PathBuf>,
    firsts: Vec<u64>,
    chain: ChainId,
    quirks: Quirks,
}

impl Recordings {
    pub fn open(
        folder: &Path,
        open: &Open,
        quirks: impl Fn(ChainId) -> Result<Quirks, ReadError>,
    ) -> Result<Archive<Self>, ReadError> {
        let fail = |e: std::io::Error| broken(format!("[chain.{}]: cannot list {}: {e}", open.name, folder.display()));
        let mut found = Vec::new();
        let mut chain = open.expect;
        for entry in std::fs::read_dir(folder).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if name.starts_with('.') || ![".ndjson", ".ndjson.gz", ".ndjson.zst"].iter().any(|e| name.ends_with(e)) {
                continue;
            }
            let (_, line) = Reader::open(&path)?.next().ok_or_else(|| halt(&path, 1, "there is no block"))??;
            found.push((line.number, path));
            chain.get_or_insert(line.chain());
        }
        let Some(chain) = chain.filter(|_| !found.is_empty()) else {
            return Err(broken(format!("[chain.{}]: no recording in {}", open.name, folder.display())));
        };
        found.sort();
        let quirks = quirks(chain)?;
        let (firsts, files) = found.into_iter().unzip();
        Archive::open(Self { files, firsts, chain, quirks }, chain)
    }
}

impl Format for Recordings {
    fn firsts(&self) -> &[u64] {
        &self.firsts
    }

    fn name(&self, volume: usize) -> String {
        self.files[volume].display().to_string()
    }

    /// The branch that the file ends on; blocks beside it were orphaned.
    fn read(&self, volume: usize) -> Result<Arc<dyn Volume>, ReadError> {
        let path = &self.files[volume];
        let mut lines: HashMap<B256, (BlockRef, usize, Packed)> = HashMap::new();
        let mut last = None;
        for line in Reader::open(path)? {
            let (number, line) = line?;
            if line.chain() != self.chain {
                let why = format!("a block of {}, but {} is expected", line.chain(), self.chain);
                return Err(halt(path, number, why));
            }
            let json = line.block.as_ref().ok_or_else(|| halt(path, number, "it has no `block`"))?;
            let at = wire::place(json.get(), self.chain, &self.quirks, &mut Vec::new());
            let at = at.map_err(|t| halt(path, number, t))?;
            if at.hash != line.hash || at.number != line.number {
                return Err(halt(path, number, "its `number` or `hash` is not that of its `block`"));
            }
            let packed = Packed::of(&line).map_err(|e| halt(path, number, e))?;
            lines.insert(at.hash, (at, number, packed));
            last = Some(at);
        }
        let mut branch: Vec<_> = std::iter::successors(last.and_then(|at| lines.remove(&at.hash)), |(at, ..)| {
            lines.remove(&at.parent).filter(|(below, ..)| below.number + 1 == at.number)
        })
        .collect();
        branch.reverse();
        match branch.first() {
            Some((first, ..)) if first.number == self.firsts[volume] => {}
            Some((first, line, _)) => {
                let why = format!("the blocks before {} are not in the file: there is a gap", first.number);
                return Err(halt(path, *line, why));
            }
            None => return Err(halt(path, 1, "there is no block")),
        }
        let places = branch.iter().map(|(at, ..)| *at).collect();
        let lines = branch.into_iter().map(|(_, line, packed)| (line, packed)).collect();
        Ok(Arc::new(Recording { path: path.clone(), quirks: self.quirks, places, lines }))
    }
}

struct Recording {
    path: PathBuf,
    quirks: Quirks,
    places: Vec<BlockRef>,
    lines: Vec<(usize, Packed)>,
}

impl Volume for Recording {
    fn places(&self) -> &[BlockRef] {
        &self.places
    }

    fn block(&self, index: usize, wanted: &Wanted) -> Result<Block, ReadError> {
        let (line, packed) = &self.lines[index];
        packed.block(&self.path, *line, wanted, &self.quirks)
    }
}

/// A line's JSON, deflated: about a sixth of its text.
pub(super) struct Packed(Vec<u8>);

impl Packed {
    pub fn of(line: &Line) -> std::io::Result<Self> {
        use std::io::Write;
        let mut out = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(&serde_json::to_vec(line)?)?;
        Ok(Self(out.finish()?))
    }

    fn line(&self) -> std::io::Result<Line> {
        use std::io::Read;
        let mut text = Vec::new();
        flate2::read::DeflateDecoder::new(self.0.as_slice()).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Verified, with what is wanted; `path` and `at` say where it stands.
    pub fn block(&self, path: &Path, at: usize, wanted: &Wanted, quirks: &Quirks) -> Result<Block, ReadError> {
        let line = self.line().map_err(|e| halt(path, at, e))?;
        line.to_block(wanted, quirks, &mut Vec::new()).map_err(|t| match t {
            Trouble::Lacks(what) => {
                let number = line.number;
                let why = format!("{what} of block {number} are wanted, but the recording does not hold them: record them with `chainweir record`");
                halt(path, at, why)
            }
            Trouble::False(why) => halt(path, at, why),
        })
    }
}
