//! Bare clients of databases, files and objects.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::SinkExt;
use mysql_async::prelude::Queryable;
use object_store::local::LocalFileSystem;
use object_store::{ObjectStoreExt, path::Path as Key};
use rusqlite::types::ToSqlOutput;

use super::harness::postgres::Postgres;
use super::harness::servers::{PASSWORD, Server, USER};
use super::harness::until;
use super::{Bare, Cell, Piece, Place};

const TABLE: &str = "erc20_transfers_transfers";
const KEY: &str = "_emission";

struct PostgresPlace(Postgres);

pub async fn postgres() -> Option<Box<dyn Place>> {
    Some(Box::new(PostgresPlace(Postgres::start().await?)))
}

#[async_trait::async_trait]
impl Place for PostgresPlace {
    fn table(&self) -> String {
        format!("url = '{}'", self.0.url())
    }
    async fn bare(&self) -> Box<dyn Bare> {
        let client = self.0.client().await;
        client
            .batch_execute(&format!("CREATE TABLE IF NOT EXISTS bare (LIKE {TABLE} INCLUDING ALL)"))
            .await
            .expect("a table like the sink's");
        // As the sink has it.
        let copy = client.prepare("COPY bare FROM STDIN").await.expect("a statement");
        Box::new(Rows { client, copy })
    }
    async fn empty(&self) {
        // Before the first run there is nothing to empty.
        let client = self.0.client().await;
        for table in [TABLE, "bare"] {
            client.batch_execute(&format!("TRUNCATE {table}")).await.ok();
        }
    }
}

struct Rows {
    client: tokio_postgres::Client,
    copy: tokio_postgres::Statement,
}

#[async_trait::async_trait]
impl Bare for Rows {
    async fn send(&mut self, batch: &[Piece]) {
        let mut text = String::with_capacity(batch.len() * 512);
        for piece in batch {
            for (index, cell) in piece.row.iter().enumerate() {
                let before = if index > 0 { "\t" } else { "" };
                // A text takes everything; none of these has a character that COPY escapes.
                let _ = match cell {
                    Cell::Null => write!(text, "{before}\\N"),
                    Cell::Text(value) => write!(text, "{before}{value}"),
                    Cell::Integer(number) => write!(text, "{before}{number}"),
                };
            }
            text.push('\n');
        }
        let transaction = self.client.transaction().await.expect("a transaction");
        let mut into = std::pin::pin!(transaction.copy_in(&self.copy).await.expect("the server takes rows"));
        into.send(bytes::Bytes::from(text)).await.expect("the rows are sent");
        into.finish().await.expect("the rows are written");
        transaction.commit().await.expect("it is committed");
    }
}

struct MySql(Server);

pub async fn mysql() -> Option<Box<dyn Place>> {
    let place = MySql(Server::mariadb(&[]).await?);
    // It listens before it takes anybody in.
    until("MariaDB to answer", || async { mysql_async::Conn::from_url(place.url()).await.ok() }).await;
    Some(Box::new(place))
}

impl MySql {
    fn url(&self) -> String {
        format!("mysql://{USER}:{PASSWORD}@127.0.0.1:{}/shop?prefer_socket=false", self.0.port)
    }

    async fn client(&self) -> mysql_async::Conn {
        mysql_async::Conn::from_url(self.url()).await.expect("the server is there")
    }
}

#[async_trait::async_trait]
impl Place for MySql {
    fn table(&self) -> String {
        format!("url = '{}'", self.url())
    }
    async fn bare(&self) -> Box<dyn Bare> {
        let mut client = self.client().await;
        let make = format!("CREATE TABLE IF NOT EXISTS bare LIKE {TABLE}");
        client.query_drop(make).await.expect("a table like the sink's");
        Box::new(Statement(client))
    }
    async fn empty(&self) {
        // Before the first run there is nothing to empty.
        let mut client = self.client().await;
        for table in [TABLE, "bare"] {
            client.query_drop(format!("TRUNCATE {table}")).await.ok();
        }
    }
}

struct Statement(mysql_async::Conn);

#[async_trait::async_trait]
impl Bare for Statement {
    async fn send(&mut self, batch: &[Piece]) {
        let mut statement = String::from("INSERT INTO bare VALUES ");
        for (n, piece) in batch.iter().enumerate() {
            for (at, cell) in piece.row.iter().enumerate() {
                statement += match (n, at) {
                    (0, 0) => "(",
                    (_, 0) => "), (",
                    _ => ", ",
                };
                match cell {
                    Cell::Null => statement += "NULL",
                    // Hexadecimal, names and times: nothing to escape.
                    Cell::Text(text) => write!(statement, "'{text}'").expect("a String takes everything"),
                    Cell::Integer(number) => write!(statement, "{number}").expect("a String takes everything"),
                }
            }
        }
        write!(statement, ") ON DUPLICATE KEY UPDATE {KEY} = {KEY}").expect("a String takes everything");
        let mut transaction = self.0.start_transaction(Default::default()).await.expect("a transaction");
        transaction.query_drop(statement).await.expect("the rows are written");
        transaction.commit().await.expect("it is committed");
    }
}

/// A folder with a new file for each run: the kind's own name of it ends in this.
struct Folder {
    folder: tempfile::TempDir,
    run: AtomicU64,
    ending: &'static str,
}

impl Folder {
    fn new(ending: &'static str) -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder"), run: AtomicU64::new(0), ending }
    }

    fn next(&self, who: &str) -> PathBuf {
        let run = self.run.fetch_add(1, Ordering::Relaxed);
        self.folder.path().join(format!("{who}-{run}.{}", self.ending))
    }

    /// The last of a sink.
    fn last(&self) -> PathBuf {
        let files = (0..self.run.load(Ordering::Relaxed)).rev();
        let mut files = files.map(|run| self.folder.path().join(format!("out-{run}.{}", self.ending)));
        files.find(|file| file.exists()).expect("a sink was there before")
    }

    fn table(&self) -> String {
        format!("path = '{}'", self.next("out").display())
    }
}

struct SqlitePlace(Folder);

pub async fn sqlite() -> Option<Box<dyn Place>> {
    Some(Box::new(SqlitePlace(Folder::new("db"))))
}

#[async_trait::async_trait]
impl Place for SqlitePlace {
    fn table(&self) -> String {
        self.0.table()
    }
    async fn bare(&self) -> Box<dyn Bare> {
        let theirs = rusqlite::Connection::open(self.0.last()).expect("the sink's file");
        let select = "SELECT sql FROM sqlite_master WHERE name = ?1";
        let make: String = theirs.query_row(select, [TABLE], |row| row.get(0)).expect("its table");
        let connection = rusqlite::Connection::open(self.0.next("bare")).expect("a file in the folder");
        connection.pragma_update(None, "journal_mode", "wal").expect("WAL");
        connection.pragma_update(None, "synchronous", "full").expect("synchronous");
        connection.execute_batch(&make.replace(TABLE, "bare")).expect("a table like the sink's");
        Box::new(Inserts(connection))
    }
}

struct Inserts(rusqlite::Connection);

impl rusqlite::ToSql for Cell {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            Self::Null => Ok(rusqlite::types::Null.into()),
            Self::Text(text) => rusqlite::ToSql::to_sql(text),
            Self::Integer(number) => rusqlite::ToSql::to_sql(number),
        }
    }
}

#[async_trait::async_trait]
impl Bare for Inserts {
    async fn send(&mut self, batch: &[Piece]) {
        tokio::task::block_in_place(|| {
            let immediate = rusqlite::TransactionBehavior::Immediate;
            let transaction = self.0.transaction_with_behavior(immediate).expect("a transaction");
            {
                let marks = vec!["?"; batch[0].row.len()].join(", ");
                let insert = format!("INSERT INTO bare VALUES ({marks}) ON CONFLICT ({KEY}) DO NOTHING");
                let mut insert = transaction.prepare_cached(&insert).expect("a statement");
                for piece in batch {
                    insert.execute(rusqlite::params_from_iter(&piece.row)).expect("the row is written");
                }
            }
            transaction.commit().expect("it is committed");
        });
    }
}

struct FilePlace(Folder);

pub async fn file() -> Option<Box<dyn Place>> {
    Some(Box::new(FilePlace(Folder::new("ndjson"))))
}

#[async_trait::async_trait]
impl Place for FilePlace {
    fn table(&self) -> String {
        self.0.table()
    }
    async fn bare(&self) -> Box<dyn Bare> {
        Box::new(Lines(std::fs::File::create(self.0.next("bare")).expect("a file in the folder")))
    }
}

fn lines(batch: &[Piece]) -> Vec<u8> {
    let mut lines = Vec::new();
    for piece in batch {
        lines.extend_from_slice(&piece.body);
        lines.push(b'\n');
    }
    lines
}

struct Lines(std::fs::File);

#[async_trait::async_trait]
impl Bare for Lines {
    async fn send(&mut self, batch: &[Piece]) {
        tokio::task::block_in_place(|| {
            self.0.write_all(&lines(batch)).and_then(|()| self.0.sync_data()).expect("the lines are written");
        });
    }
}

struct Objects(tempfile::TempDir, AtomicU64);

pub async fn objects() -> Option<Box<dyn Place>> {
    Some(Box::new(Objects(tempfile::tempdir().expect("a temporary folder"), AtomicU64::new(0))))
}

#[async_trait::async_trait]
impl Place for Objects {
    fn table(&self) -> String {
        format!("url = 'file://{}/out'", self.0.path().display())
    }
    async fn bare(&self) -> Box<dyn Bare> {
        let folder = self.0.path().join(format!("bare-{}", self.1.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&folder).expect("a folder in the folder");
        let store = LocalFileSystem::new_with_prefix(&folder).expect("a store").with_fsync(true);
        Box::new(Puts(store, 0))
    }
}

struct Puts(LocalFileSystem, u64);

#[async_trait::async_trait]
impl Bare for Puts {
    async fn send(&mut self, batch: &[Piece]) {
        self.1 += 1;
        let key = Key::from(format!("{:020}.ndjson", self.1));
        self.0.put(&key, lines(batch).into()).await.expect("the object is written");
    }
}
