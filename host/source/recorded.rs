//! Recorded blocks, played over time as a live node would have told them. `files -> [recorded] -> follower`.
//!
//! The lines' order is the order of arrival: the head is the last line played, and a line whose parent is not the
//! head is a reorg. Each head stays until the consumer has looked at it, so that no reorg is skipped over.
//! Lines are kept compressed in memory, one by one, about a sixth of their text; parsed when asked for.
//! Knows nothing of finality: it has no tags.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy_primitives::B256;
use tokio::time::Instant;

use super::archive::{Packed, Recordings};
use super::record::{Reader, halt};
use super::wire;
use super::{Kind, Open, Range, ReadError, Source, Tag};
use crate::model::{Block, BlockRef, ChainId, Wanted};
use crate::proof::Quirks;

pub const KIND: Kind = Kind {
    name: "recorded",
    options: &[
        (
            "files",
            "recordings, played one after the other, where a name may hold `*`; or a folder, which is an archive of final blocks",
        ),
        ("pace", "\"as-fast-as-possible\" (default), \"real\" (by block time), or blocks per second"),
        ("quirks", "departures of this chain from Ethereum's rules, by name; known ones are set by chain id"),
    ],
    open: |open| {
        Box::pin(async move {
            let folder = open.table.get("files").and_then(toml::Value::as_str).map(|name| open.base.join(name));
            match folder.filter(|path| path.is_dir()) {
                Some(folder) => archive(folder, open).await,
                None => Ok(Arc::new(Recorded::open(open).await?) as Arc<dyn Source>),
            }
        })
    },
};

async fn archive(folder: PathBuf, open: Open) -> super::Opened {
    if open.table.contains_key("pace") {
        return Err(refuse(&open.name, "an archive has no `pace`: all of it is final"));
    }
    let read = move || Recordings::open(&folder, &open, |chain| quirks_of(&open, chain));
    let opened = tokio::task::spawn_blocking(read).await;
    Ok(Arc::new(opened.map_err(|e| ReadError::Halt { why: format!("reading the archive: {e}") })??))
}

/// Blocks in one answer to `range`.
const BLOCKS_AT_ONCE: u64 = 64;
/// How often a played-out recording wakes its consumer.
const IDLE: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Pace {
    Free,
    Real,
    Every(Duration),
}

struct Entry {
    at: BlockRef,
    file: usize,
    line: usize,
    packed: Packed,
}

#[derive(Default)]
struct Played {
    /// Lines played so far; the last one is the head.
    count: usize,
    /// The consumer has looked at the head.
    seen: bool,
    released: Option<Instant>,
    by_hash: HashMap<B256, usize>,
    /// The ancestry of the head, by height.
    canonical: BTreeMap<u64, usize>,
}

pub struct Recorded {
    shared: Arc<Shared>,
    pace: Pace,
    played: Mutex<Played>,
}

struct Shared {
    files: Vec<PathBuf>,
    entries: Vec<Entry>,
    chain: ChainId,
    quirks: Quirks,
}

pub(super) fn refuse(name: &str, why: impl std::fmt::Display) -> ReadError {
    ReadError::Halt { why: format!("[chain.{name}]: {why}") }
}

impl Recorded {
    pub async fn open(open: Open) -> Result<Self, ReadError> {
        tokio::task::spawn_blocking(move || Self::load(&open))
            .await
            .map_err(|e| ReadError::Halt { why: format!("reading the recordings: {e}") })?
    }

    fn load(open: &Open) -> Result<Self, ReadError> {
        let names: Vec<String> = match open.table.get("files") {
            Some(toml::Value::String(one)) => vec![one.clone()],
            Some(toml::Value::Array(many)) => many
                .iter()
                .map(|v| {
                    v.as_str()
                        .map(String::from)
                        .ok_or_else(|| refuse(&open.name, "`files` holds something that is not a text"))
                })
                .collect::<Result<_, _>>()?,
            _ => return Err(refuse(&open.name, "`files` is missing: give the recordings to play")),
        };
        let pace = match open.table.get("pace") {
            None => Pace::Free,
            Some(toml::Value::String(s)) if s == "as-fast-as-possible" => Pace::Free,
            Some(toml::Value::String(s)) if s == "real" => Pace::Real,
            Some(v) => match v.as_float().or_else(|| v.as_integer().map(|i| i as f64)) {
                Some(n) if n.is_finite() && n > 0.0 && n <= 1e6 => Pace::Every(Duration::from_secs_f64(1.0 / n)),
                _ => {
                    return Err(refuse(
                        &open.name,
                        "`pace` is \"as-fast-as-possible\", \"real\" or a number of blocks per second",
                    ));
                }
            },
        };
        let mut files = Vec::new();
        for name in &names {
            files.extend(expand(&open.base, name).map_err(|e| refuse(&open.name, e))?);
        }
        let mut chain = open.expect;
        let mut entries: Vec<Entry> = Vec::new();
        let mut known: HashMap<B256, u64> = HashMap::new();
        let mut quirks = Quirks::default();
        for (file, path) in files.iter().enumerate() {
            for line in Reader::open(path)? {
                let (number, line) = line?;
                let expected = *chain.get_or_insert(line.chain());
                if entries.is_empty() {
                    quirks = quirks_of(open, expected)?;
                }
                if line.chain() != expected {
                    return Err(halt(path, number, format!("a block of {}, but {expected} is expected", line.chain())));
                }
                let json = line
                    .block
                    .as_ref()
                    .ok_or_else(|| halt(path, number, "it has no `block`: a header is needed to play it"))?;
                let at =
                    wire::place(json.get(), expected, &quirks, &mut Vec::new()).map_err(|t| halt(path, number, t))?;
                if at.hash != line.hash || at.number != line.number {
                    return Err(halt(path, number, "its `number` or `hash` is not that of its `block`"));
                }
                // Siblings of the first block have a parent that nobody recorded.
                let first = entries.first().map_or(at.number, |e| e.at.number);
                if at.number > first && !known.contains_key(&at.parent) {
                    return Err(halt(
                        path,
                        number,
                        format!("the parent of block {} is not in the recording before it: there is a gap", at.number),
                    ));
                }
                if known.get(&at.parent).is_some_and(|below| below + 1 != at.number) {
                    return Err(halt(path, number, format!("block {} is not one above its parent", at.number)));
                }
                known.insert(at.hash, at.number);
                let packed = Packed::of(&line).map_err(|e| halt(path, number, e))?;
                entries.push(Entry { at, file, line: number, packed });
            }
        }
        let Some(chain) = chain.filter(|_| !entries.is_empty()) else {
            return Err(refuse(&open.name, format!("no block in {}", names.join(", "))));
        };
        let shared = Arc::new(Shared { files, entries, chain, quirks });
        let source = Self { shared, pace, played: Mutex::new(Played::default()) };
        source.release();
        Ok(source)
    }

    fn played(&self) -> std::sync::MutexGuard<'_, Played> {
        self.played.lock().expect("no panic while held")
    }

    /// Plays the next line, if there is one.
    fn release(&self) {
        let mut played = self.played();
        let Some(entry) = self.shared.entries.get(played.count) else { return };
        let index = played.count;
        played.count += 1;
        played.seen = false;
        played.released = Some(Instant::now());
        played.by_hash.insert(entry.at.hash, index);
        played.canonical.split_off(&entry.at.number);
        played.canonical.insert(entry.at.number, index);
        let mut at = entry.at;
        // Down to where the old and the new branch meet.
        while let Some(&parent) = played.by_hash.get(&at.parent) {
            if played.canonical.insert(at.number - 1, parent) == Some(parent) {
                break;
            }
            at = self.shared.entries[parent].at;
        }
        // What lies below a first block of another branch is not its ancestry.
        if !played.by_hash.contains_key(&at.parent) {
            played.canonical = played.canonical.split_off(&at.number);
        }
    }

    /// The next line does not stand on the head: a reorg.
    pub fn parts_next(&self) -> bool {
        let next = self.shared.entries.get(self.played().count);
        next.is_some_and(|next| next.at.parent != self.head_entry().at.hash)
    }

    fn head_entry(&self) -> &Entry {
        // `load` refuses an empty recording and plays the first line.
        &self.shared.entries[self.played().count - 1]
    }

    fn find(&self, hash: B256) -> Option<usize> {
        self.played().by_hash.get(&hash).copied()
    }

    fn height(&self, number: u64) -> Result<usize, ReadError> {
        let played = self.played();
        match played.canonical.get(&number) {
            Some(&index) => Ok(index),
            None if played.canonical.first_key_value().is_some_and(|(&first, _)| number < first) => {
                let first = played.canonical.first_key_value().map_or(0, |(&n, _)| n);
                Err(ReadError::Halt {
                    why: format!("block {number} is asked for, but the recording begins at {first}"),
                })
            }
            None => Err(ReadError::Unknown { what: format!("block {number}") }),
        }
    }

    async fn read(&self, indexes: Vec<usize>, wanted: &Wanted) -> Result<Vec<Block>, ReadError> {
        let (shared, wanted) = (self.shared.clone(), wanted.clone());
        tokio::task::spawn_blocking(move || indexes.into_iter().map(|i| shared.block(i, &wanted)).collect())
            .await
            .map_err(|e| ReadError::Halt { why: format!("reading the recordings: {e}") })?
    }
}

impl Shared {
    fn block(&self, index: usize, wanted: &Wanted) -> Result<Block, ReadError> {
        let entry = &self.entries[index];
        entry.packed.block(&self.files[entry.file], entry.line, wanted, &self.quirks)
    }
}

pub(super) fn quirks_of(open: &Open, chain: ChainId) -> Result<Quirks, ReadError> {
    let mut quirks = Quirks::of(chain);
    for name in open.table.get("quirks").and_then(toml::Value::as_array).into_iter().flatten() {
        if !name.as_str().is_some_and(|n| quirks.enable(n)) {
            return Err(refuse(&open.name, format!("there is no quirk {name}; there are: {}", Quirks::names())));
        }
    }
    Ok(quirks)
}

/// A name as it is, or every file that its `*` matches, sorted. Only the last part of a path may hold `*`.
pub(super) fn expand(base: &Path, name: &str) -> Result<Vec<PathBuf>, String> {
    let path = base.join(name);
    let pattern = path.file_name().and_then(|n| n.to_str()).unwrap_or("").to_owned();
    if !pattern.contains('*') {
        return Ok(vec![path]);
    }
    let folder = path.parent().unwrap_or(base);
    let fail = |e: std::io::Error| format!("cannot list {}: {e}", folder.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if entry.file_name().to_str().is_some_and(|n| matches(&pattern, n)) {
            found.push(entry.path());
        }
    }
    found.sort();
    if found.is_empty() { Err(format!("no file matches {}", path.display())) } else { Ok(found) }
}

fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let (Some(first), Some(last)) = (parts.next(), parts.next_back()) else { return pattern == name };
    let Some(mut rest) = name.strip_prefix(first).and_then(|r| r.strip_suffix(last)) else { return false };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

#[async_trait::async_trait]
impl Source for Recorded {
    fn chain(&self) -> ChainId {
        self.shared.chain
    }

    async fn head(&self) -> Result<BlockRef, ReadError> {
        let at = self.head_entry().at;
        self.played().seen = true;
        Ok(at)
    }

    async fn tagged(&self, _: Tag) -> Result<Option<BlockRef>, ReadError> {
        Ok(None)
    }

    async fn by_hash(&self, hash: B256) -> Result<BlockRef, ReadError> {
        let index = self.find(hash).ok_or_else(|| ReadError::Unknown { what: format!("block {hash}") })?;
        Ok(self.shared.entries[index].at)
    }

    async fn by_number(&self, number: u64) -> Result<BlockRef, ReadError> {
        Ok(self.shared.entries[self.height(number)?].at)
    }

    async fn block(&self, at: &BlockRef, wanted: &Wanted) -> Result<Block, ReadError> {
        let index = self.find(at.hash).ok_or_else(|| ReadError::Unknown { what: at.to_string() })?;
        let mut blocks = self.read(vec![index], wanted).await?;
        let block = blocks.remove(0);
        if block.at() == *at { Ok(block) } else { Err(ReadError::Unknown { what: at.to_string() }) }
    }

    async fn range(&self, from: u64, to: u64, wanted: &Wanted) -> Result<Range, ReadError> {
        let head = self.head_entry().at.number;
        if from > head {
            return Err(ReadError::Unknown { what: format!("block {from}: the recording is at {head}") });
        }
        let to = to.min(head).min(from.saturating_add(BLOCKS_AT_ONCE - 1));
        let indexes = (from..=to).map(|n| self.height(n)).collect::<Result<Vec<_>, _>>()?;
        let last =
            *indexes.last().ok_or(ReadError::Halt { why: format!("a range from {from} to {to}: this is a bug") })?;
        let mut blocks = self.read(indexes, wanted).await?;
        blocks.retain(|b| wanted.every_block() || !b.logs.is_empty());
        Ok(Range { blocks, to: self.shared.entries[last].at })
    }

    async fn changed(&self) {
        let (seen, released, count) = {
            let played = self.played();
            (played.seen, played.released, played.count)
        };
        if !seen {
            // The head is news still. Others may run before it is said again.
            return tokio::task::yield_now().await;
        }
        let Some(next) = self.shared.entries.get(count) else { return tokio::time::sleep(IDLE).await };
        let wait = match self.pace {
            Pace::Free => Duration::ZERO,
            Pace::Every(wait) => wait,
            Pace::Real => Duration::from_secs(next.at.time.saturating_sub(self.shared.entries[count - 1].at.time)),
        };
        if let Some(released) = released
            && !wait.is_zero()
        {
            let due = released + wait;
            if due > Instant::now() + IDLE {
                return tokio::time::sleep(IDLE).await;
            }
            tokio::time::sleep_until(due).await;
        } else {
            tokio::task::yield_now().await;
        }
        // Two waiting at once must not play two lines.
        if self.played().count == count {
            self.release();
        }
    }

    fn first(&self) -> Option<u64> {
        self.shared.entries.iter().map(|e| e.at.number).min()
    }

    fn ended(&self) -> bool {
        let played = self.played();
        played.seen && played.count == self.shared.entries.len()
    }
}
