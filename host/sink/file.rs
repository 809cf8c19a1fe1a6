//! Appends every delivery to a file, a line of NDJSON each, exactly once: the file itself is the note of how far it has come.
//!
//! A batch is written and synced before it counts as delivered. At opening, a last line that a crash cut short is removed,
//! and the lines are read for the highest `cursor` of each track. Beside the file lies `FILE.position`, which says from which
//! byte on the lines belong to this journal (another journal's cursors mean nothing here) and which cursors stand before
//! that byte, so that opening a large file does not read all of it. It is written before the lines it speaks of or long
//! after, so nothing depends on the moment of a crash.
//!
//! The file is locked: a second output, or a second process, is refused. It may be renamed away or removed while it is in use
//! (log rotation): the next batch begins a new one, and the positions are kept.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::options::Options;
use super::{Kind, Shape, Sink, SinkError, Track, cloudevent};
use crate::model::{Delivery, Outcome};

pub const KIND: Kind = Kind {
    name: "file",
    options: &[("path", "the file to append to; made if it is not there")],
    open: |open| {
        Box::pin(async move {
            let options = Options::new(open, KIND.options)?;
            options.need("path", "out/events.ndjson")?;
            let path = options.path("path")?.ok_or_else(|| options.refused("path is missing"))?;
            let sink =
                FileSink { state: Arc::new(Mutex::new(State { path, journal: options.journal().into(), file: None })) };
            match blocking(sink.state.clone(), |state| state.opened().map(|_| ())).await {
                // The folder may come later (a mount); a lock or a foreign file will not go away.
                Ok(()) | Err(SinkError::Again { .. }) => Ok(Arc::new(sink) as Arc<dyn Sink>),
                Err(SinkError::Refused { why }) => Err(options.refused(&why)),
            }
        })
    },
};

/// Lines written after which the note is brought up to date: reading as much at opening takes less than a second.
const NOTE_EVERY: u64 = 64 * 1024 * 1024;

/// How long a lock is waited for that another process holds.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// More than this after the last line break was not one of our lines.
const LONGEST_TORN_LINE: usize = 256 * 1024 * 1024;

struct FileSink {
    state: Arc<Mutex<State>>,
}

struct State {
    path: PathBuf,
    journal: String,
    file: Option<Opened>,
}

struct Opened {
    file: File,
    /// Up to here the file holds whole lines that were synced. What lies beyond is a batch that failed.
    good: u64,
    note: Note,
    positions: Positions,
}

/// Highest cursor by `{source} {type}`.
type Positions = HashMap<String, u64>;

/// `FILE.position`
#[derive(Serialize, Deserialize, Default)]
struct Note {
    journal: String,
    /// Lines from this byte on were written for this journal and are not counted in `positions`.
    from: u64,
    positions: Positions,
}

/// What is read of a line.
#[derive(Deserialize)]
struct Line {
    r#type: String,
    source: String,
    cursor: String,
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    state: Arc<Mutex<State>>,
    work: impl FnOnce(&mut State) -> Result<T, SinkError> + Send + 'static,
) -> Result<T, SinkError> {
    tokio::task::spawn_blocking(move || {
        let mut state: MutexGuard<'_, State> = state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        work(&mut state)
    })
    .await
    .unwrap_or_else(|stopped| Err(SinkError::Again { why: format!("writing was stopped: {stopped}") }))
}

#[async_trait::async_trait]
impl Sink for FileSink {
    fn shape(&self) -> Shape {
        Shape { batch: 500, concurrency: 1 }
    }

    async fn position(&self, track: &Track) -> Result<Option<u64>, SinkError> {
        let key = format!("{} {}", track.chain, track.stream);
        blocking(self.state.clone(), move |state| Ok(state.opened()?.positions.get(&key).copied())).await
    }

    async fn deliver(&self, track: &Track, batch: &[Delivery]) -> Vec<Outcome> {
        let count = batch.len();
        let Some(last) = batch.last().map(|delivery| delivery.offset) else { return vec![] };
        let lines = super::lines(batch);
        let key = format!("{} {}", track.chain, track.stream);
        let written = blocking(self.state.clone(), move |state| {
            let path = state.path.clone();
            state.reopen_if_moved()?;
            let opened = state.opened()?;
            opened.append(&path, &lines).map_err(|error| again(&path, "cannot write", &error))?;
            let position = opened.positions.entry(key).or_default();
            *position = last.max(*position);
            Ok(())
        });
        match written.await {
            Ok(()) => vec![Outcome::Delivered; count],
            Err(error) => super::retry_all(count, &error.to_string()),
        }
    }
}

fn again(path: &Path, what: &str, error: &io::Error) -> SinkError {
    SinkError::Again { why: format!("{what} {}: {error}", path.display()) }
}

impl State {
    /// What is written into a file that has lost its name is lost with it.
    fn reopen_if_moved(&mut self) -> Result<(), SinkError> {
        use std::os::unix::fs::MetadataExt;
        let Some(opened) = &self.file else { return Ok(()) };
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let here = opened.file.metadata().map(identity).map_err(|error| again(&self.path, "cannot look at", &error))?;
        match std::fs::metadata(&self.path).map(identity) {
            Ok(there) if there == here => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(again(&self.path, "cannot look at", &error)),
        }
        // Written first: a new file says nothing of what stands in the old one.
        let note = Note { journal: self.journal.clone(), from: 0, positions: opened.positions.clone() };
        write_note(&self.path, &note).map_err(|error| again(&self.path, "cannot write the note beside", &error))?;
        tracing::info!(file = %self.path.display(), "the file was moved or removed; beginning a new one");
        self.file = None;
        Ok(())
    }

    fn opened(&mut self) -> Result<&mut Opened, SinkError> {
        if self.file.is_none() {
            self.file = Some(Opened::new(&self.path, &self.journal)?);
        }
        Ok(self.file.as_mut().expect("it was put there above"))
    }
}

impl Opened {
    fn new(path: &Path, journal: &str) -> Result<Self, SinkError> {
        let new = !path.exists();
        if !new && !path.is_file() {
            let why = format!("{} is not a regular file; to write into a pipe, use type = \"stdout\"", path.display());
            return Err(SinkError::Refused { why });
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| again(path, "cannot open", &error))?;
        // Whoever is just ending, or has a child that was forked and has not begun its own program yet, lets go in a moment.
        let patience = Instant::now() + LOCK_PATIENCE;
        let locked = loop {
            match file.try_lock() {
                Err(TryLockError::WouldBlock) if Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                other => break other,
            }
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let why = format!("{} is in use by another output or process; give each its own file", path.display());
                return Err(SinkError::Refused { why });
            }
            Err(TryLockError::Error(error)) => return Err(again(path, "cannot lock", &error)),
        }
        let read = |error: io::Error| again(path, "cannot read", &error);
        if new {
            sync_folder(path).map_err(read)?;
        }
        let good = cut_torn_line(&mut file, path)?;
        let mut note = match std::fs::read(note_path(path)) {
            Ok(bytes) => serde_json::from_slice::<Note>(&bytes).map_err(|error| SinkError::Refused {
                why: format!("{} is damaged: {error}; remove it to begin anew", note_path(path).display()),
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Note::default(),
            Err(error) => return Err(read(error)),
        };
        if note.journal != journal {
            // All lines so far were another journal's.
            note = Note { journal: journal.to_owned(), from: good, positions: Positions::new() };
            write_note(path, &note).map_err(|error| again(path, "cannot write the note beside", &error))?;
        }
        // Shorter than the note says: somebody emptied it. What was delivered stays delivered.
        let from = if note.from <= good { note.from } else { 0 };
        let mut positions = note.positions.clone();
        scan(&mut file, from..good, &mut positions).map_err(read)?;
        let mut opened = Self { file, good, note, positions };
        opened.bring_note_up_to_date(path).map_err(|error| again(path, "cannot write the note beside", &error))?;
        Ok(opened)
    }

    fn append(&mut self, path: &Path, lines: &[u8]) -> io::Result<()> {
        // What an earlier batch left behind when it failed was never delivered.
        if self.file.metadata()?.len() != self.good {
            self.file.set_len(self.good)?;
        }
        self.file.seek(SeekFrom::Start(self.good))?;
        let written = self.file.write_all(lines).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Done again before the next batch if it fails now.
            let _ = self.file.set_len(self.good);
            return Err(error);
        }
        // Before the lines are counted: the note may lag behind them.
        if let Err(error) = self.bring_note_up_to_date(path) {
            tracing::warn!(file = %path.display(), %error, "the note beside the file is not up to date; the next start reads more of the file");
        }
        self.good += lines.len() as u64;
        Ok(())
    }

    fn bring_note_up_to_date(&mut self, path: &Path) -> io::Result<()> {
        if self.good.saturating_sub(self.note.from) >= NOTE_EVERY || self.note.from > self.good {
            self.note.from = self.good;
            self.note.positions = self.positions.clone();
            write_note(path, &self.note)?;
        }
        Ok(())
    }
}

/// Cuts what stands after the last line break and returns the length that is left.
fn cut_torn_line(file: &mut File, path: &Path) -> Result<u64, SinkError> {
    let read = |error: io::Error| again(path, "cannot read", &error);
    let length = file.metadata().map_err(read)?.len();
    let mut torn: Vec<u8> = vec![];
    let mut start = length;
    let mut chunk = vec![0; 64 * 1024];
    let good = loop {
        let from = start.saturating_sub(chunk.len() as u64);
        let part = &mut chunk[..(start - from) as usize];
        file.seek(SeekFrom::Start(from)).and_then(|_| file.read_exact(part)).map_err(read)?;
        let line_start = part.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        torn.splice(0..0, part[line_start..].iter().copied());
        start = from + line_start as u64;
        if line_start > 0 || from == 0 || torn.len() > LONGEST_TORN_LINE {
            break start;
        }
    };
    if good == length {
        return Ok(length);
    }
    // Only a line of ours may go: the start of an event, or the zeros that some file systems leave after a power cut.
    let begins = cloudevent::BEGINS.as_bytes();
    let shared = torn.len().min(begins.len());
    let ours = torn.len() <= LONGEST_TORN_LINE && torn[..shared] == begins[..shared];
    if !ours && torn.iter().any(|b| *b != 0) {
        let why =
            format!("{} ends in a line that was not written by an output; give it a file of its own", path.display());
        return Err(SinkError::Refused { why });
    }
    file.set_len(good)
        .and_then(|()| file.sync_all())
        .map_err(|error| again(path, "cannot cut the torn line of", &error))?;
    tracing::warn!(file = %path.display(), bytes = length - good, "removed the torn last line; it is written anew");
    Ok(good)
}

fn scan(file: &mut File, part: std::ops::Range<u64>, positions: &mut Positions) -> io::Result<()> {
    file.seek(SeekFrom::Start(part.start))?;
    let mut reader = BufReader::with_capacity(1024 * 1024, file.take(part.end - part.start));
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        // A line that somebody else put there says nothing of our deliveries.
        let Ok(Line { r#type, source, cursor }) = serde_json::from_slice(&line) else { continue };
        let Ok(cursor) = cursor.parse::<u64>() else { continue };
        let position = positions.entry(format!("{source} {type}", r#type = r#type)).or_default();
        *position = cursor.max(*position);
    }
}

fn note_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".position");
    name.into()
}

fn write_note(path: &Path, note: &Note) -> io::Result<()> {
    let target = note_path(path);
    let mut temporary = target.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(note).map_err(io::Error::other)?)?;
    file.sync_all()?;
    std::fs::rename(&temporary, &target)?;
    sync_folder(path)
}

/// A new name lasts once its folder is synced.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::OutputName;

    async fn open(path: &Path, journal: &str) -> Result<Arc<dyn Sink>, SinkError> {
        let mut table = toml::Table::new();
        table.insert("path".into(), path.to_str().unwrap().into());
        let name = OutputName::new("out").unwrap();
        (KIND.open)(super::super::Open { name, table, base: ".".into(), journal: journal.into() }).await
    }

    #[tokio::test]
    async fn a_cut_at_any_byte_loses_and_doubles_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.ndjson");
        let (track, batch) = super::super::samples::batch(1..=3);
        let whole = super::super::lines(&batch);
        let two = super::super::lines(&batch[..2]).len();
        for cut in (0..=whole.len()).step_by(7).chain([two - 1, two, two + 1, two + 25, whole.len() - 1, whole.len()]) {
            std::fs::remove_file(&path).ok();
            std::fs::remove_file(note_path(&path)).ok();
            let sink = open(&path, "j").await.unwrap();
            assert_eq!(sink.deliver(&track, &batch).await, vec![Outcome::Delivered; 3]);
            drop(sink);
            OpenOptions::new().write(true).open(&path).unwrap().set_len(cut as u64).unwrap();
            let sink = open(&path, "j").await.unwrap();
            let done = sink.position(&track).await.unwrap().unwrap_or(0) as usize;
            if done < 3 {
                assert_eq!(sink.deliver(&track, &batch[done..]).await, vec![Outcome::Delivered; 3 - done]);
            }
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn a_file_has_one_writer_and_a_foreign_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.ndjson");
        let first = open(&path, "j").await.unwrap();
        let why = open(&path, "j").await.err().unwrap().to_string();
        assert!(why.contains("output.out") && why.contains("in use by another"), "{why}");
        drop(first);
        std::fs::write(&path, "no line break").unwrap();
        assert!(open(&path, "j").await.err().unwrap().to_string().contains("not written by an output"));
        assert_eq!(std::fs::read(&path).unwrap(), b"no line break");
    }

    #[tokio::test]
    async fn another_journals_lines_are_no_position() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.ndjson");
        let (track, batch) = super::super::samples::batch(1..=3);
        let sink = open(&path, "a").await.unwrap();
        sink.deliver(&track, &batch).await;
        drop(sink);
        let sink = open(&path, "b").await.unwrap();
        assert_eq!(sink.position(&track).await.unwrap(), None);
        sink.deliver(&track, &batch[..1]).await;
        drop(sink);
        assert_eq!(open(&path, "b").await.unwrap().position(&track).await.unwrap(), Some(1));
        let other = Track { chain: crate::model::ChainId(5), ..track };
        assert_eq!(open(&path, "b").await.unwrap().position(&other).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_file_that_is_renamed_away_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("out.ndjson"), folder.path().join("out.ndjson.1"));
        let (track, batch) = super::super::samples::batch(1..=4);
        let sink = open(&path, "j").await.unwrap();
        sink.deliver(&track, &batch[..2]).await;
        std::fs::rename(&path, &old).unwrap();
        assert_eq!(sink.position(&track).await.unwrap(), Some(2));
        assert_eq!(sink.deliver(&track, &batch[2..3]).await, [Outcome::Delivered]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(sink.deliver(&track, &batch[3..]).await, [Outcome::Delivered]);
        assert_eq!(std::fs::read(&old).unwrap(), super::super::lines(&batch[..2]));
        assert_eq!(std::fs::read(&path).unwrap(), super::super::lines(&batch[3..]));
        std::fs::remove_file(&path).unwrap();
        drop(sink);
        assert_eq!(open(&path, "j").await.unwrap().position(&track).await.unwrap(), Some(3), "as the note says");
    }

    #[tokio::test]
    async fn what_a_failed_batch_left_behind_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.ndjson");
        let (track, batch) = super::super::samples::batch(1..=3);
        let sink = open(&path, "j").await.unwrap();
        sink.deliver(&track, &batch[..1]).await;
        let mut disk = OpenOptions::new().append(true).open(&path).unwrap();
        disk.write_all(&super::super::lines(&batch[1..])[..100]).unwrap();
        assert_eq!(sink.deliver(&track, &batch[1..]).await, vec![Outcome::Delivered; 2]);
        assert_eq!(std::fs::read(&path).unwrap(), super::super::lines(&batch));
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn a_device_is_refused() {
        let why = open(Path::new("/dev/full"), "j").await.err().unwrap().to_string();
        assert!(why.contains("not a regular file"), "{why}");
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_yet_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("later/out.ndjson");
        let (track, batch) = super::super::samples::batch(1..=2);
        let sink = open(&path, "j").await.unwrap();
        assert!(matches!(sink.deliver(&track, &batch).await[..], [Outcome::Retry { .. }, Outcome::Retry { .. }]));
        std::fs::create_dir(folder.path().join("later")).unwrap();
        assert_eq!(sink.deliver(&track, &batch).await, vec![Outcome::Delivered; 2]);
    }
}
