//! The embedded journal: one SQLite file in WAL mode with `synchronous = FULL`, one writer thread, a few
//! readers.
//!
//! Writes that wait together share one transaction and one fsync (group commit). One that is refused is refused
//! before it changes anything, so that it takes nothing of the others with it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use alloy_primitives::{B256, hex};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, params};
use tokio::sync::{mpsc, oneshot, watch};

use super::readers::Readers;
use super::schema::{APPLICATION_ID, MIGRATIONS};
use super::write::{apply, op_from};
use super::{
    CatchUp, Committed, Consumer, ConsumerId, DeadFilter, DeadLetter, Entry, Journal, JournalError, JournalSize, Marks,
    Parked, Retracted, TrackId, TrackInfo, Version, Write, forget,
};
use crate::model::{
    BlockRef, ChainId, ContentType, DeliveryId, Edit, EditId, EmissionId, EventPosition, Member, OutputName,
    PluginName, StreamId, StreamName, StreamSpec,
};
use crate::telemetry;

type Result<T> = std::result::Result<T, JournalError>;

/// Most writes in one transaction: bounds how long the first one waits for the last one's work.
const GROUP: usize = 256;
/// How long a lock is waited for that another process holds.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// Page cache of the writer, KiB.
const WRITER_CACHE_KIB: i64 = 16 * 1024;
/// `SQLITE_IOERR_SHMSIZE`: no room to grow the index of the write-ahead log.
const SHM_FULL: i32 = 4874;
/// `SQLITE_IOERR_WRITE`: any reason but a full disk: a quota, a limit on the size of files, a disk that fails.
const WRITE_FAILED: i32 = 778;
const DAMAGED: &str = "restore it from a backup, or move it away to begin anew";

impl From<rusqlite::Error> for JournalError {
    fn from(error: rusqlite::Error) -> Self {
        let why = error.to_string();
        match error.sqlite_error() {
            Some(e) if e.code == ErrorCode::DiskFull || e.extended_code == SHM_FULL => Self::Full { why },
            // It may pass by itself, and nothing of the transaction was kept. (After a failed fsync it may have been.)
            Some(e) if e.extended_code == WRITE_FAILED => {
                Self::Full { why: format!("{why}: a quota, a limit on the size of files, or a disk that fails") }
            }
            Some(e) if e.code == ErrorCode::DatabaseCorrupt => Self::Halt { why: format!("{why}: {DAMAGED}") },
            _ => Self::Halt { why },
        }
    }
}

pub(super) fn moved(why: String) -> JournalError {
    JournalError::Moved { why }
}

pub(super) fn now_ms() -> u64 {
    // A clock before 1970 is no reason to stop; the figure is for people.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

pub(super) fn blob(hash: &B256) -> &[u8] {
    hash.as_slice()
}

pub(super) fn to_json(value: &serde_json::Value) -> Result<String> {
    serde_json::to_string(value).map_err(|e| JournalError::Halt { why: format!("a schema cannot be written: {e}") })
}

pub(super) fn position_code(position: EventPosition) -> i64 {
    match position {
        EventPosition::Block => 1 << 32,
        EventPosition::Transaction(i) => 2 << 32 | i64::from(i),
        EventPosition::Log(i) => 3 << 32 | i64::from(i),
        EventPosition::Transfer(i) => 4 << 32 | i64::from(i),
        EventPosition::Pending(i) => 5 << 32 | i64::from(i),
    }
}

fn position_from(code: i64) -> EventPosition {
    match code >> 32 {
        1 => EventPosition::Block,
        2 => EventPosition::Transaction(code as u32),
        4 => EventPosition::Transfer(code as u32),
        5 => EventPosition::Pending(code as u32),
        _ => EventPosition::Log(code as u32),
    }
}

fn hash_at(r: &Row<'_>, at: usize) -> rusqlite::Result<B256> {
    let bytes: [u8; 32] = r.get(at)?;
    Ok(B256::from(bytes))
}

/// Reads number, hash, parent and time from the columns that begin at `at`.
pub(super) fn block_ref(r: &Row<'_>, chain: ChainId, at: usize) -> rusqlite::Result<BlockRef> {
    Ok(BlockRef {
        chain,
        number: r.get(at)?,
        hash: hash_at(r, at + 1)?,
        parent: hash_at(r, at + 2)?,
        time: r.get(at + 3)?,
    })
}

/// Addresses from the column at `at`, other words from the next.
fn members(r: &Row<'_>, at: usize) -> rusqlite::Result<Vec<Member>> {
    let mut members = Vec::new();
    for (at, len) in [(at, 20), (at + 1, 32)] {
        let bytes = r.get_ref(at)?.as_blob()?;
        let all = bytes.chunks(len).map(Member::from_slice).collect::<Option<Vec<_>>>();
        let cut = || "a member of a watch set is cut off".into();
        members.extend(
            all.ok_or_else(|| rusqlite::Error::FromSqlConversionFailure(at, rusqlite::types::Type::Blob, cut()))?,
        );
    }
    Ok(members)
}

/// A name that was checked before it was written.
fn name<T: std::str::FromStr>(r: &Row<'_>, at: usize) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    r.get::<_, String>(at)?
        .parse()
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(at, rusqlite::types::Type::Text, Box::new(e)))
}

struct Job {
    write: Write,
    reply: oneshot::Sender<Result<Committed>>,
}

enum ToWriter {
    Job(Job),
    Close(oneshot::Sender<Result<()>>),
    #[cfg(test)]
    Hook(Box<dyn FnOnce(&Connection) + Send>),
}

type Moves = RwLock<HashMap<ConsumerId, u64>>;

pub struct SqliteJournal {
    id: String,
    to_writer: mpsc::UnboundedSender<ToWriter>,
    readers: Readers,
    tail: watch::Receiver<u64>,
    moves: Arc<Moves>,
    window: Arc<AtomicU64>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for SqliteJournal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteJournal").field("id", &self.id).finish_non_exhaustive()
    }
}

impl SqliteJournal {
    /// Opens or makes the journal at `path`, checks it, and takes its lock for this process.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let lock = take_lock(path)?;
        let (db, id, last_offset) = open_checked(path)?;
        let window = Arc::new(AtomicU64::new(forget::begin(&db)? as u64));
        let (tail_send, tail) = watch::channel(last_offset);
        let (to_writer, jobs) = mpsc::unbounded_channel();
        let moves = Arc::<Moves>::default();
        let (begins, moving) = (window.clone(), moves.clone());
        let writer = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || {
                Writer { db, last_offset, tail: tail_send, moves: moving, window: begins }.run(jobs);
                // Only now: the next owner reads what the last transaction wrote.
                drop(lock);
            })
            .map_err(|e| JournalError::Halt { why: format!("cannot start the writer thread: {e}") })?;
        Ok(Arc::new(Self {
            id,
            to_writer,
            readers: Readers::new(path.to_owned(), |path| connect(path, false)),
            tail,
            moves,
            window,
            writer: Mutex::new(Some(writer)),
        }))
    }

    /// Runs something on the writer's connection, between two transactions.
    #[cfg(test)]
    pub(super) fn on_writer<T: Send + 'static>(&self, f: impl FnOnce(&Connection) -> T + Send + 'static) -> T {
        let (send, receive) = std::sync::mpsc::channel();
        let hook = Box::new(move |db: &Connection| drop(send.send(f(db))));
        assert!(self.to_writer.send(ToWriter::Hook(hook)).is_ok(), "the writer has stopped");
        receive.recv().expect("the writer answers")
    }

    fn read<T>(&self, f: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        Ok(self.readers.read(f)?)
    }
}

fn connect(path: &Path, write: bool) -> rusqlite::Result<Connection> {
    let flags = if write {
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE
    } else {
        OpenFlags::SQLITE_OPEN_READ_ONLY
    } | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(Duration::from_secs(10))?;
    // A plan does not depend on what is bound: otherwise every cached statement is compiled anew whenever another value is.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    db.set_prepared_statement_cache_capacity(64);
    if write {
        // Before the first table: only then can room be given back to the disk in pieces.
        db.pragma_update(None, "auto_vacuum", "incremental")?;
        db.pragma_update(None, "journal_mode", "wal")?;
        db.pragma_update(None, "synchronous", "full")?;
        // A full /tmp is not our business.
        db.pragma_update(None, "temp_store", "memory")?;
        // 64 MiB: a burst's log is cut back instead of staying on the disk.
        db.pragma_update(None, "journal_size_limit", 64 << 20)?;
    }
    Ok(db)
}

fn take_lock(path: &Path) -> Result<File> {
    let lock_path = PathBuf::from(format!("{}.lock", path.display()));
    let fail = |what: &str, e: &dyn std::fmt::Display| JournalError::Halt {
        why: format!("cannot {what} {}: {e}", lock_path.display()),
    };
    if let Some(folder) = lock_path.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| fail("make the folder of", &e))?;
    }
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(|e| fail("open", &e))?;
    // Whoever is just ending, or has a child that was forked and has not begun its own program yet, lets go in a moment.
    let patience = Instant::now() + LOCK_PATIENCE;
    let locked = loop {
        match file.try_lock() {
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => break other,
        }
    };
    if let Err(e) = locked {
        return Err(match e {
            std::fs::TryLockError::Error(e) => fail("lock", &e),
            std::fs::TryLockError::WouldBlock => {
                let mut owner = String::new();
                // The name of the owner is a help, not a need.
                if file.read_to_string(&mut owner).is_err() || owner.is_empty() {
                    owner = "an unknown process".into();
                }
                JournalError::Halt {
                    why: format!(
                        "{} belongs to {owner}: one process owns a journal; stop that one, or give this one a journal \
                         of its own ([journal] path)",
                        path.display()
                    ),
                }
            }
        });
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(|e| fail("write", &e))?;
    write!(file, "process {}", std::process::id()).map_err(|e| fail("write", &e))?;
    Ok(file)
}

/// The writer's connection, the journal's id and its last offset. Whatever is wrong with the file is said with its
/// path and with what to do.
fn open_checked(path: &Path) -> Result<(Connection, String, u64)> {
    let opened = || -> std::result::Result<(Connection, String, u64), OpenError> {
        let mut db = connect(path, true)?;
        db.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
        let fresh: bool = db.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |r| r.get(0))?;
        let application: i64 = db.query_row("PRAGMA application_id", [], |r| r.get(0))?;
        if !fresh && application != APPLICATION_ID {
            return Err(OpenError::Other("it is the database of another application".into()));
        }
        check_after_crash(&db, fresh)?;
        migrate(&mut db)?;
        let id = match db.query_row("SELECT value FROM meta WHERE key = 'id'", [], |r| r.get(0)).optional()? {
            Some(id) => id,
            None => {
                let id = hex::encode(rand::random::<[u8; 16]>());
                db.execute("INSERT INTO meta VALUES ('id', ?1)", [&id])?;
                id
            }
        };
        db.execute("DELETE FROM meta WHERE key = 'closed'", [])?;
        // An offset is not used again, though the last entries have gone.
        let last_offset = "SELECT max((SELECT coalesce(max(offset), 0) FROM entry),
                             (SELECT coalesce(max(forgotten), 0) FROM track), (SELECT coalesce(max(offset), 0) FROM mark))";
        let last_offset = db.query_row(last_offset, [], |r| r.get(0))?;
        Ok((db, id, last_offset))
    };
    opened().map_err(|error| {
        let path = path.display();
        let damaged = |why: &str| format!("{path} is damaged ({why}): {DAMAGED}");
        let halt = |why| JournalError::Halt { why };
        match error {
            OpenError::Damaged(why) => halt(damaged(&why)),
            OpenError::Newer(found) => halt(format!(
                "{path} was written by a newer Chainweir (schema {found}, this one knows {}): run that one, or restore a \
                 backup made before it",
                MIGRATIONS.len()
            )),
            OpenError::Other(why) => halt(format!("{path} is not a journal: {why}; give another [journal] path")),
            OpenError::Sqlite(error) => match error.sqlite_error_code() {
                Some(ErrorCode::NotADatabase) => {
                    halt(format!("{path} is not a journal: {error}; give another [journal] path"))
                }
                Some(ErrorCode::DatabaseCorrupt) => halt(damaged(&error.to_string())),
                Some(ErrorCode::DiskFull) => JournalError::Full { why: format!("{path}: {error}") },
                _ => halt(format!("cannot open {path}: {error}")),
            },
        }
    })
}

/// Why a file cannot be opened as a journal, before its path is named.
enum OpenError {
    Sqlite(rusqlite::Error),
    Damaged(String),
    Newer(usize),
    Other(String),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn migrate(db: &mut Connection) -> std::result::Result<(), OpenError> {
    let found: usize = db.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    if found > MIGRATIONS.len() {
        return Err(OpenError::Newer(found));
    }
    for (done, script) in MIGRATIONS.iter().enumerate().skip(found) {
        let tx = db.transaction()?;
        tx.execute_batch(script)?;
        tx.pragma_update(None, "user_version", done as i64 + 1)?;
        tx.commit()?;
    }
    Ok(())
}

/// A journal that was closed in order is believed; after a crash its structure is checked before it is used.
fn check_after_crash(db: &Connection, fresh: bool) -> std::result::Result<(), OpenError> {
    if fresh {
        return Ok(());
    }
    let clean =
        db.query_row("SELECT value FROM meta WHERE key = 'closed'", [], |r| r.get::<_, String>(0)).optional()?;
    if clean.is_none() {
        let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
        if verdict != "ok" {
            return Err(OpenError::Damaged(verdict));
        }
    }
    Ok(())
}

struct Writer {
    db: Connection,
    last_offset: u64,
    tail: watch::Sender<u64>,
    moves: Arc<Moves>,
    window: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self, mut jobs: mpsc::UnboundedReceiver<ToWriter>) {
        let mut group: Vec<Job> = Vec::with_capacity(GROUP);
        while let Some(first) = jobs.blocking_recv() {
            let mut next = Some(first);
            let mut close = None;
            while let Some(message) = next {
                match message {
                    ToWriter::Job(job) => group.push(job),
                    ToWriter::Close(reply) => {
                        close = Some(reply);
                        break;
                    }
                    #[cfg(test)]
                    ToWriter::Hook(hook) => hook(&self.db),
                }
                next = if group.len() < GROUP { jobs.try_recv().ok() } else { None };
            }
            if !group.is_empty() {
                self.commit(&mut group);
            }
            if let Some(reply) = close {
                let done = self.close();
                // Whoever asked may have stopped waiting.
                drop(reply.send(done));
                return;
            }
        }
    }

    fn commit(&mut self, group: &mut Vec<Job>) {
        let began = Instant::now();
        let before = self.last_offset;
        match self.transaction(group) {
            Ok(results) => {
                let moved = group.iter().filter_map(|job| match &job.write {
                    Write::Step(step) => Some(step.consumer),
                    Write::Undo { consumer, .. } => Some(*consumer),
                    _ => None,
                });
                let mut moved = moved.peekable();
                // A lane's own notes wake nobody.
                if moved.peek().is_some() {
                    let mut moves = self.moves.write().unwrap_or_else(PoisonError::into_inner);
                    moved.for_each(|consumer| *moves.entry(consumer).or_default() += 1);
                    drop(moves);
                    self.tail.send_replace(self.last_offset);
                }
                for (job, result) in group.drain(..).zip(results) {
                    if let (Write::Window { .. }, Ok(done)) = (&job.write, &result) {
                        self.window.store(done.id as u64, Ordering::Release);
                    }
                    // A caller that went away is no reason to undo what is durable.
                    drop(job.reply.send(result));
                }
            }
            Err(error) => {
                self.last_offset = before;
                for job in group.drain(..) {
                    drop(job.reply.send(Err(error.clone())));
                }
            }
        }
        telemetry::journal_commit_seconds().record(began.elapsed());
    }

    fn transaction(&mut self, group: &[Job]) -> Result<Vec<Result<Committed>>> {
        let tx = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let mut results = Vec::with_capacity(group.len());
        for job in group {
            match apply(&tx, &mut self.last_offset, &job.write) {
                // A failing disk takes all of them with it.
                Err(error @ (JournalError::Full { .. } | JournalError::Halt { .. })) => return Err(error),
                result => results.push(result),
            }
        }
        tx.commit()?;
        Ok(results)
    }

    fn close(&mut self) -> Result<()> {
        match self.note_end() {
            // What is committed is safe; the next start only takes longer, for it checks the file.
            Err(JournalError::Full { why }) => tracing::warn!(why, "no room to note the journal's orderly end"),
            other => return other,
        }
        Ok(())
    }

    fn note_end(&mut self) -> Result<()> {
        self.db.execute("INSERT OR REPLACE INTO meta VALUES ('closed', 'yes')", [])?;
        // Somebody who still reads does not hold up the end; the next start copies the rest.
        self.db.busy_timeout(Duration::from_millis(200))?;
        self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }
}

const ENTRY: &str = "SELECT e.offset, e.op, e.emission, b.number, b.hash, b.parent, b.time, e.position, e.ordinal,
  e.lane_key, e.content_type, coalesce(e.payload, a.payload), e.retracted_confirmations, e.retracted_safe
  FROM entry e JOIN block b ON b.id = e.block LEFT JOIN entry a ON a.offset = e.apply
  WHERE e.track = ?1 AND e.offset > ?2";

fn entry(r: &Row<'_>, chain: ChainId) -> rusqlite::Result<Entry> {
    let bad = |at, what: &str| {
        rusqlite::Error::FromSqlConversionFailure(at, rusqlite::types::Type::Integer, what.to_owned().into())
    };
    Ok(Entry {
        offset: r.get(0)?,
        op: op_from(r.get(1)?),
        emission: EmissionId(r.get(2)?),
        block: block_ref(r, chain, 3)?,
        position: position_from(r.get(7)?),
        ordinal: r.get(8)?,
        lane_key: r.get(9)?,
        content_type: ContentType::from_code(r.get(10)?).ok_or_else(|| bad(10, "an unknown content type"))?,
        payload: r.get(11)?,
        retracted: match r.get::<_, Option<u64>>(12)? {
            Some(confirmations) => Some(Retracted { confirmations, safe: r.get(13)? }),
            None => None,
        },
    })
}

#[async_trait::async_trait]
impl Journal for SqliteJournal {
    fn id(&self) -> &str {
        &self.id
    }

    async fn commit(&self, write: Write) -> Result<Committed> {
        let stopped = || JournalError::Halt { why: "its writer has stopped".into() };
        let (reply, receive) = oneshot::channel();
        self.to_writer.send(ToWriter::Job(Job { write, reply })).map_err(|_| stopped())?;
        receive.await.map_err(|_| stopped())?
    }

    fn tail(&self) -> watch::Receiver<u64> {
        self.tail.clone()
    }

    fn moves(&self, consumer: ConsumerId) -> u64 {
        self.moves.read().unwrap_or_else(PoisonError::into_inner).get(&consumer).copied().unwrap_or(0)
    }

    fn finalized(&self, chain: ChainId) -> Result<Option<BlockRef>> {
        self.read(|db| {
            db.prepare_cached("SELECT number, hash, parent, time FROM chain WHERE chain = ?1")?
                .query_row([chain.0 as i64], |r| block_ref(r, chain, 0))
                .optional()
        })
    }

    fn consumers(&self) -> Result<Vec<Consumer>> {
        self.read(|db| {
            db.prepare_cached(
                "SELECT id, plugin, chain, number, hash, parent, time, safe, finalized, state_version FROM consumer",
            )?
            .query_map([], |r| {
                let chain = ChainId(r.get::<_, i64>(2)? as u64);
                let cursor = r.get::<_, Option<i64>>(3)?.map(|_| block_ref(r, chain, 3)).transpose()?;
                Ok(Consumer {
                    id: ConsumerId(r.get(0)?),
                    plugin: name::<PluginName>(r, 1)?,
                    chain,
                    marks: Marks { cursor: cursor.map_or(0, |c| c.number), safe: r.get(7)?, finalized: r.get(8)? },
                    cursor,
                    state_version: r.get(9)?,
                })
            })?
            .collect()
        })
    }

    fn steps(&self, consumer: ConsumerId) -> Result<Vec<BlockRef>> {
        self.read(|db| {
            let chain: i64 = db.query_row("SELECT chain FROM consumer WHERE id = ?1", [consumer.0], |r| r.get(0))?;
            db.prepare_cached("SELECT number, hash, parent, time FROM step WHERE consumer = ?1 ORDER BY number DESC")?
                .query_map([consumer.0], |r| block_ref(r, ChainId(chain as u64), 0))?
                .collect()
        })
    }

    fn incarnation(&self, consumer: ConsumerId, block: &B256) -> Result<u32> {
        self.read(|db| {
            Ok(db
                .prepare_cached("SELECT times FROM orphan WHERE consumer = ?1 AND hash = ?2")?
                .query_row(params![consumer.0, blob(block)], |r| r.get(0))
                .optional()?
                .unwrap_or(0))
        })
    }

    fn state_get(&self, consumer: ConsumerId, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.read(|db| {
            db.prepare_cached("SELECT value FROM state WHERE consumer = ?1 AND key = ?2")?
                .query_row(params![consumer.0, key], |r| r.get(0))
                .optional()
        })
    }

    fn state_scan(
        &self,
        consumer: ConsumerId,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: u32,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        // The first key that does not begin with the prefix; none where the prefix is all 0xff.
        let mut end = prefix.to_vec();
        while end.last() == Some(&0xff) {
            end.pop();
        }
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        // Bounds that the index can use: a page of a scan costs its own rows, wherever it begins.
        let (least, over) = match after {
            Some(after) if after >= prefix => (after, ">"),
            _ => (prefix, ">="),
        };
        let below = if end.is_empty() { "?3 IS NOT NULL" } else { "key < ?3" };
        self.read(|db| {
            db.prepare_cached(&format!(
                "SELECT key, value FROM state WHERE consumer = ?1 AND key {over} ?2 AND {below} ORDER BY key LIMIT ?4"
            ))?
            .query_map(params![consumer.0, least, end, limit], |r| Ok((r.get(0)?, r.get(1)?)))?
            .collect()
        })
    }

    fn tracks(&self) -> Result<Vec<TrackInfo>> {
        self.read(|db| {
            db.prepare_cached(
                "SELECT id, plugin, stream, chain, description, schema,
                 max(forgotten, coalesce((SELECT max(offset) FROM entry WHERE track = track.id), 0)), consumer
                 FROM track ORDER BY id",
            )?
            .query_map([], |r| {
                let stream: StreamName = name(r, 2)?;
                let schema: Option<String> = r.get(5)?;
                let schema = schema.map(|s| serde_json::from_str(&s)).transpose().map_err(|e| {
                    rusqlite::Error::FromSqlConversionFailure(5, rusqlite::types::Type::Text, Box::new(e))
                })?;
                Ok(TrackInfo {
                    id: TrackId(r.get(0)?),
                    consumer: ConsumerId(r.get(7)?),
                    stream: StreamId { plugin: name(r, 1)?, stream: stream.clone() },
                    chain: ChainId(r.get::<_, i64>(3)? as u64),
                    spec: StreamSpec { name: stream, description: r.get(4)?, schema },
                    last_offset: r.get(6)?,
                })
            })?
            .collect()
        })
    }

    fn entries(&self, track: TrackId, after: u64, limit: usize, lane_key: Option<&str>) -> Result<(Marks, Vec<Entry>)> {
        self.read(|db| {
            // One snapshot: what is due is judged by marks of the same moment as the entries.
            let tx = db.unchecked_transaction()?;
            let (chain, marks) = tx
                .prepare_cached(
                    "SELECT c.chain, coalesce(c.number, 0), c.safe, c.finalized FROM track t JOIN consumer c
                     ON c.id = t.consumer WHERE t.id = ?1",
                )?
                .query_row([track.0], |r| {
                    let marks = Marks { cursor: r.get(1)?, safe: r.get(2)?, finalized: r.get(3)? };
                    Ok((ChainId(r.get::<_, i64>(0)? as u64), marks))
                })?;
            let entries = match lane_key {
                None => tx
                    .prepare_cached(&format!("{ENTRY} ORDER BY e.offset LIMIT ?3"))?
                    .query_map(params![track.0, after, limit], |r| entry(r, chain))?
                    .collect::<rusqlite::Result<_>>()?,
                Some(key) => tx
                    .prepare_cached(&format!("{ENTRY} AND e.lane_key = ?4 ORDER BY e.offset LIMIT ?3"))?
                    .query_map(params![track.0, after, limit, key], |r| entry(r, chain))?
                    .collect::<rusqlite::Result<_>>()?,
            };
            tx.commit()?;
            Ok((marks, entries))
        })
    }

    fn position(&self, output: &OutputName, track: TrackId) -> Result<Option<u64>> {
        self.read(|db| {
            db.prepare_cached("SELECT position FROM lane WHERE output = ?1 AND track = ?2")?
                .query_row(params![output.as_str(), track.0], |r| r.get(0))
                .optional()
        })
    }

    fn parked(&self, output: &OutputName, track: TrackId) -> Result<Vec<Parked>> {
        self.read(|db| {
            db.prepare_cached(
                "SELECT lane_key, next, attempts, retry_at_ms, why FROM parked WHERE output = ?1 AND track = ?2",
            )?
            .query_map(params![output.as_str(), track.0], |r| {
                Ok(Parked {
                    lane_key: r.get(0)?,
                    next: r.get(1)?,
                    attempts: r.get(2)?,
                    retry_at_ms: r.get(3)?,
                    why: r.get(4)?,
                })
            })?
            .collect()
        })
    }

    fn redo(&self, output: &OutputName, track: TrackId) -> Result<Vec<u64>> {
        self.read(|db| {
            db.prepare_cached("SELECT offset FROM redo WHERE output = ?1 AND track = ?2 ORDER BY offset")?
                .query_map(params![output.as_str(), track.0], |r| r.get(0))?
                .collect()
        })
    }

    fn dead(&self, filter: &DeadFilter, after: i64, limit: usize) -> Result<Vec<DeadLetter>> {
        let output = filter.output.as_ref().map(|o| o.as_str());
        self.read(|db| {
            db.prepare_cached(
                "SELECT d.id, d.output, t.plugin, t.stream, t.chain, d.offset, e.lane_key, d.delivery, e.op, d.attempts,
                 d.why, d.at_ms FROM dead d JOIN track t ON t.id = d.track JOIN entry e ON e.offset = d.offset
                 WHERE d.id > ?1 AND (?2 IS NULL OR d.id = ?2) AND (?3 IS NULL OR d.output = ?3) ORDER BY d.id LIMIT ?4",
            )?
            .query_map(params![after, filter.id, output, limit], |r| {
                Ok(DeadLetter {
                    id: r.get(0)?,
                    output: name(r, 1)?,
                    stream: StreamId { plugin: name(r, 2)?, stream: name(r, 3)? },
                    chain: ChainId(r.get::<_, i64>(4)? as u64),
                    offset: r.get(5)?,
                    lane_key: r.get(6)?,
                    delivery: DeliveryId(r.get(7)?),
                    op: op_from(r.get(8)?),
                    attempts: r.get(9)?,
                    why: r.get(10)?,
                    at_ms: r.get(11)?,
                })
            })?
            .collect()
        })
    }

    fn dead_count(&self, output: &OutputName) -> Result<u64> {
        self.read(|db| {
            db.prepare_cached("SELECT count(*) FROM dead WHERE output = ?1")?.query_row([output.as_str()], |r| r.get(0))
        })
    }

    fn backlog(&self, track: TrackId, after: u64) -> Result<u64> {
        self.read(|db| {
            db.prepare_cached("SELECT count(*) FROM entry WHERE track = ?1 AND offset > ?2")?
                .query_row(params![track.0, after], |r| r.get(0))
        })
    }

    fn weight(&self, track: TrackId, after: u64) -> Result<u64> {
        let some = |order: &str| {
            format!(
                "SELECT * FROM (SELECT coalesce(length(payload), 0) AS bytes FROM entry WHERE track = ?1 AND offset > ?2
                 ORDER BY offset {order} LIMIT 50)"
            )
        };
        self.read(|db| {
            // A million lengths are not read each second.
            let mean = format!(
                "SELECT CAST(coalesce(avg(bytes), 0) AS INTEGER) FROM ({} UNION ALL {})",
                some(""),
                some("DESC")
            );
            db.prepare_cached(&mean)?.query_row(params![track.0, after], |r| r.get(0))
        })
    }

    fn written_ms(&self, offset: u64) -> Result<Option<u64>> {
        self.read(|db| {
            db.prepare_cached("SELECT at_ms FROM mark WHERE offset >= ?1 ORDER BY offset LIMIT 1")?
                .query_row([offset], |r| r.get(0))
                .optional()
        })
    }

    fn replaying(&self, output: &OutputName) -> Result<u64> {
        self.read(|db| {
            db.prepare_cached(
                "SELECT coalesce(sum((SELECT count(*) FROM entry e WHERE e.track = r.track AND e.offset >= r.next
                 AND e.offset <= r.last)), 0) FROM replay r WHERE r.output = ?1",
            )?
            .query_row([output.as_str()], |r| r.get(0))
        })
    }

    fn window(&self) -> u64 {
        self.window.load(Ordering::Acquire)
    }

    fn forgotten(&self, track: TrackId) -> Result<u64> {
        self.read(|db| {
            db.prepare_cached("SELECT forgotten FROM track WHERE id = ?1")?.query_row([track.0], |r| r.get(0))
        })
    }

    fn edits(&self, each: &mut dyn FnMut(Edit)) -> Result<()> {
        self.read(|db| {
            let mut begins = db.prepare_cached("SELECT chain, number FROM watch_begin WHERE edit = ?1")?;
            let mut edits = db.prepare_cached(
                "SELECT id, watch_set, add_addresses, add_words, remove_addresses, remove_words FROM watch_edit ORDER BY id",
            )?;
            let mut rows = edits.query([])?;
            while let Some(r) = rows.next()? {
                let id: u32 = r.get(0)?;
                let begins = begins.query_map([id], |r| Ok((ChainId(r.get::<_, i64>(0)? as u64), r.get(1)?)))?;
                each(Edit {
                    id: EditId(id),
                    set: name(r, 1)?,
                    begins: begins.collect::<rusqlite::Result<_>>()?,
                    add: members(r, 2)?,
                    remove: members(r, 4)?,
                });
            }
            Ok(())
        })
    }

    fn catch_ups(&self, consumer: ConsumerId) -> Result<Vec<CatchUp>> {
        self.read(|db| {
            db.prepare_cached(
                "SELECT edit, first, last, said, watch_set FROM catch_up WHERE consumer = ?1 ORDER BY edit",
            )?
            .query_map([consumer.0], |r| {
                let (first, last, said) = (r.get(1)?, r.get(2)?, r.get(3)?);
                Ok(CatchUp { edit: EditId(r.get(0)?), set: name(r, 4)?, first, last, said })
            })?
            .collect()
        })
    }

    fn asks(&self, chain: ChainId, limit: usize) -> Result<Vec<(i64, Vec<u8>)>> {
        self.read(|db| {
            db.prepare_cached("SELECT id, body FROM ask WHERE chain = ?1 ORDER BY id LIMIT ?2")?
                .query_map(params![chain.0 as i64, limit], |r| Ok((r.get(0)?, r.get(1)?)))?
                .collect()
        })
    }

    fn versions(&self, plugin: &PluginName) -> Result<Vec<Version>> {
        self.read(|db| {
            db.prepare_cached(
                "SELECT digest, version, file, since_ms, running, banned FROM version WHERE plugin = ?1
                 ORDER BY running DESC, since_ms DESC",
            )?
            .query_map([plugin.as_str()], |r| {
                Ok(Version {
                    plugin: plugin.clone(),
                    digest: r.get(0)?,
                    version: r.get(1)?,
                    file: r.get(2)?,
                    since_ms: r.get(3)?,
                    running: r.get(4)?,
                    banned: r.get(5)?,
                })
            })?
            .collect()
        })
    }

    fn size(&self) -> Result<JournalSize> {
        self.read(|db| {
            let pages: u64 = db.query_row("PRAGMA page_count", [], |r| r.get(0))?;
            let page: u64 = db.query_row("PRAGMA page_size", [], |r| r.get(0))?;
            let entries = db.query_row("SELECT coalesce(max(offset), 0) FROM entry", [], |r| r.get(0))?;
            Ok(JournalSize { bytes: pages * page, entries })
        })
    }

    fn close(&self, within: Duration) -> Result<()> {
        let Some(thread) = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() else {
            return Ok(());
        };
        self.readers.close();
        let (reply, mut receive) = oneshot::channel();
        if self.to_writer.send(ToWriter::Close(reply)).is_err() {
            return Err(JournalError::Halt { why: "its writer has stopped".into() });
        }
        let deadline = Instant::now() + within;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        // The writer lets go of the lock when it ends, not before: what it still writes must not meet a successor's.
        receive
            .try_recv()
            .unwrap_or_else(|_| Err(JournalError::Halt { why: format!("its writer did not end in {within:?}") }))
    }
}
