//! Stores every stream in a table of a PostgreSQL database: rows and the lane's position in one transaction, so that each is there
//! exactly when the other is.
//!
//! An `apply` inserts a row, keyed by its emission; a `retract` deletes it, or marks it (`retract = "mark"`). Repeating either changes
//! nothing. The table is made from the stream's JSON Schema ([`table`]) and grows with it; a column whose type would change is
//! refused. Many rows that the position says are new are copied in; where that fails, for whatever is wrong with one of them,
//! they are inserted. A row that the database refuses is found by trying one at a time, and is the only one refused.
//!
//! The connection is encrypted, and the server's certificate checked, where the URL says `sslmode=require`.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alloy_primitives::hex;
use bytes::Bytes;
use futures::SinkExt;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Statement, Transaction};

use super::newest::{self, Keys, Newest};
use super::options::Options;
use super::table::{self, Fault, Layout, ROW_KEY, Refused, Retract, Rules, Run, Sort, Value, Work, Written, quoted};
use super::{Kind, Open, Shape, Sink, SinkError, Track};
use crate::model::{Delivery, Outcome, OutputName, StreamId, StreamSpec};

pub const KIND: Kind = Kind {
    name: "postgres",
    options: &[
        ("url", "postgres://user@host/database, without a password; or url_env"),
        ("url_env", "environment variable with the URL, where it holds a password"),
        ("password_env", "environment variable with the password alone"),
        ("password_file", "file with the password alone"),
        ("schema", "the schema of the tables, made if it is not there; public"),
        ("table", "name of a stream's table, with {plugin} and {stream}; {plugin}_{stream}"),
        ("retract", "delete or mark the row of a retracted emission, or append a row that says so; delete"),
        ("key", "columns by which a newer row takes the place of an earlier one, as [\"token\", \"owner\"]; none"),
        ("keep_blocks", "with key: blocks for which an earlier row is kept, to come back after a reorg; 10000"),
        ("batch", "most rows in one transaction; 1000"),
        ("timeout_ms", "time for a transaction; 30000"),
        ("ca_file", "PEM file with the certificate authorities to trust, with sslmode=require"),
    ],
    open: |open| Box::pin(async move { Ok(Arc::new(Postgres::open(open)?) as Arc<dyn Sink>) }),
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Rows from which on COPY is worth its own round trip.
const COPY_FROM: usize = 50;
/// Rows that are made before the server gets them.
const COPY_PIECE: usize = 100;
/// What names a session for good: a process's number alone may be another's later.
const SESSION: &str = "pid || ' ' || extract(epoch from backend_start)";

struct Postgres {
    name: OutputName,
    journal: String,
    config: tokio_postgres::Config,
    tls: Option<tokio_postgres_rustls::MakeRustlsConnect>,
    /// Hosts, for messages.
    place: String,
    schema: String,
    rules: Rules,
    batch: usize,
    timeout: Duration,
    tables: std::sync::Mutex<HashMap<StreamId, Arc<Table>>>,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    /// Taken while in use: what is not put back (an error, a caller that gave up) is closed, and the server rolls back.
    connection: Option<Connection>,
    /// The latest session, as the server knows it. Where the wire fell silent, it is there still when the next one begins.
    session: Option<String>,
}

struct Connection {
    client: Client,
    /// What carries it, and ends with it: left alone, it would wait for an answer from a wire that is silent.
    _wire: JoinSet<Result<(), tokio_postgres::Error>>,
    statements: HashMap<String, Statement>,
    /// The position of each track as this connection last saw or wrote it.
    positions: HashMap<Track, Option<i64>>,
}

/// What is known of a stream's table.
struct Table {
    /// Without its schema.
    bare: String,
    layout: Layout,
    copy: String,
    /// False once the server said that it copies nothing into this: a view, row-level security.
    copies: AtomicBool,
    insert: String,
    retract: String,
    /// With a key. Then the two above are the history's.
    newest: Option<Newest>,
}

/// The same, prepared on a connection.
struct Statements {
    /// To copy rows in, where that is to be tried.
    copy: Option<Statement>,
    insert: Statement,
    retract: Statement,
    /// To bring the newest rows up to date: what puts them in, takes them out, and forgets.
    newest: Option<[Statement; 3]>,
}

/// How rows are put in: the first is the fastest, the last finds which row it is that the database does not take.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Copy,
    Insert,
    One,
}

impl By {
    /// What is tried where this fails for a row.
    fn next(self) -> Option<Self> {
        match self {
            By::Copy => Some(By::Insert),
            By::Insert => Some(By::One),
            By::One => None,
        }
    }
}

impl Table {
    /// Whether a run is one for COPY, if the batch may be copied at all.
    fn to_copy(&self, (op, run): &Run) -> bool {
        run.len() >= COPY_FROM && !self.layout.takes_back(*op)
    }

    /// The way to begin with, after the position that is known. What lies before it may be there already: a dead letter that is
    /// tried again, a replay.
    fn first_by(&self, work: &Work<'_>, known: Option<Option<i64>>) -> By {
        let first = work.batch.first().and_then(|delivery| i64::try_from(delivery.offset).ok());
        let copies = known.is_some_and(|known| first > known) && self.copies.load(Ordering::Relaxed);
        if copies && work.runs(usize::MAX).iter().any(|run| self.to_copy(run)) { By::Copy } else { By::Insert }
    }

    /// What a COPY failed with. The rows may take an insert all the same.
    fn not_copied(&self, error: tokio_postgres::Error) -> Fault {
        match error.code().map(SqlState::code) {
            Some(code) if code.starts_with("0A") || code.starts_with("42") => {
                self.copies.store(false, Ordering::Relaxed);
                Fault::Row(text(&error))
            }
            _ => fault(error),
        }
    }
}

impl Postgres {
    fn open(open: Open) -> Result<Self, SinkError> {
        let options = Options::new(open, KIND.options)?;
        let url = options.url("DATABASE_URL")?;
        // The parser's own message may quote the URL, and the password with it.
        let mut config: tokio_postgres::Config = url
            .expose()
            .parse()
            .map_err(|_| options.refused("the URL is not of the form postgres://user:password@host:5432/database"))?;
        if let Some(password) = options.secret("password_env", "password_file")? {
            config.password(password.expose());
        }
        config.application_name("chainweir").connect_timeout(CONNECT_TIMEOUT);
        let tls = match config.get_ssl_mode() {
            SslMode::Disable => None,
            SslMode::Prefer => {
                config.ssl_mode(SslMode::Disable);
                None
            }
            _ => {
                let tls = super::tls(&options, options.file("ca_file")?)?;
                Some(tokio_postgres_rustls::MakeRustlsConnect::new(tls))
            }
        };
        let hosts = config.get_hosts().iter().map(|host| match host {
            tokio_postgres::config::Host::Tcp(host) => host.clone(),
            #[cfg(unix)]
            tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
        });
        let place = format!("PostgreSQL at {}", hosts.collect::<Vec<_>>().join(", "));
        Ok(Self {
            name: options.name().clone(),
            journal: options.journal().to_owned(),
            place,
            schema: options.text("schema")?.unwrap_or_else(|| "public".into()),
            rules: table::options(&options)?,
            batch: options.number("batch", 1_000, 1..=10_000)? as usize,
            timeout: Duration::from_millis(options.number("timeout_ms", 30_000, 1..=3_600_000)?),
            tables: Default::default(),
            slot: Default::default(),
            config,
            tls,
        })
    }

    fn again(&self, why: &str) -> SinkError {
        SinkError::Again { why: format!("{}: {why}", self.place) }
    }

    fn refused(&self, why: &str) -> SinkError {
        SinkError::Refused { why: format!("output.{}: {}: {why}", self.name, self.place) }
    }

    /// For what is done outside of a delivery.
    fn judge(&self, error: &tokio_postgres::Error) -> SinkError {
        match error.code().map(SqlState::code) {
            // Authentication, unknown database, missing rights and other faults of the set-up.
            Some(code) if ["28", "3D", "42", "0L", "0P"].iter().any(|class| code.starts_with(class)) => {
                self.refused(&text(error))
            }
            _ => self.again(&text(error)),
        }
    }

    /// A connection that is alive, taken out of `slot`.
    async fn connected(&self, slot: &mut Slot) -> Result<Connection, SinkError> {
        if let Some(connection) = slot.connection.take().filter(|connection| !connection.client.is_closed()) {
            return Ok(connection);
        }
        // A commit must last before the lane hears of it. A transaction of ours that a broken wire left open would hold the
        // position for as long as the server believes in the connection; it does so for a minute where the machine at its other
        // end is gone.
        let set = format!(
            "SET statement_timeout = {ms}; SET idle_in_transaction_session_timeout = {ms}; SET client_min_messages = warning; \
             SELECT set_config(name, value, false) FROM pg_settings JOIN (VALUES ('tcp_keepalives_idle', '30'), \
             ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '3'), ('tcp_user_timeout', '60000')) AS w(name, value) \
             USING (name); \
             SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
            ms = self.timeout.as_millis()
        );
        let connect = async {
            // Its error is told to whoever uses the client.
            let mut wire = JoinSet::new();
            let client = match &self.tls {
                None => {
                    let (client, connection) = self.config.connect(NoTls).await?;
                    wire.spawn(connection);
                    client
                }
                Some(tls) => {
                    let (client, connection) = self.config.connect(tls.clone()).await?;
                    wire.spawn(connection);
                    client
                }
            };
            client.batch_execute(&set).await?;
            self.take_over(&client, &mut slot.session).await?;
            Ok(Connection { client, _wire: wire, statements: HashMap::new(), positions: HashMap::new() })
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| self.again("no connection in time"))?
            .map_err(|error: tokio_postgres::Error| self.judge(&error))
    }

    /// Ends the session before this one. A server that waits for the rest of a statement, or for more rows to copy, heeds no
    /// timeout of its own, and holds the position meanwhile.
    async fn take_over(&self, client: &Client, session: &mut Option<String>) -> Result<(), tokio_postgres::Error> {
        if let Some(before) = session {
            let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {SESSION} = $1");
            match client.query(&end, &[before]).await {
                Ok(ended) if ended.is_empty() => {}
                Ok(_) => tracing::info!(output = %self.name, "ended a session of ours that PostgreSQL still held open"),
                // Then the server's own timeouts have to do.
                Err(error) if error.as_db_error().is_some() => tracing::warn!(
                    output = %self.name, error = text(&error),
                    "may not end a session of ours that PostgreSQL could still hold open; allow pg_terminate_backend to the user"
                ),
                Err(error) => return Err(error),
            }
        }
        let own = format!("SELECT {SESSION} FROM pg_stat_activity WHERE pid = pg_backend_pid()");
        *session = client.query_opt(&own, &[]).await?.map(|row| row.try_get(0)).transpose()?;
        Ok(())
    }

    fn positions_table(&self) -> String {
        format!("{}.\"chainweir_positions\"", quoted(&self.schema))
    }

    fn make_table(&self, stream: &StreamId, spec: &StreamSpec) -> Result<Table, SinkError> {
        let bare = self.rules.name(stream).map_err(|error| self.refused(&error.to_string()))?;
        let taken = self.tables.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let clashes =
            |(other, table): &(&StreamId, &Arc<Table>)| *other != stream && self.rules.clash(&table.bare, &bare);
        if let Some((other, _)) = taken.iter().find(clashes) {
            return Err(self.refused(&table::shared(stream, other, &self.within(&bare))));
        }
        let layout = self.rules.layout(spec).map_err(|why| self.refused(&why))?;
        let (table, history) = (self.within(&bare), self.within(&newest::history(&bare)));
        let newest = layout.keyed().then(|| Newest::new((&table, &history), &layout, quoted, Keys::Array));
        let name = if newest.is_some() { history } else { table };
        let list = |each: &dyn Fn(usize) -> String| (0..layout.columns.len()).map(each).collect::<Vec<_>>().join(", ");
        let names = list(&|i| quoted(&layout.columns[i].name));
        let copy = format!("COPY {name} ({names}) FROM STDIN");
        let insert = format!(
            "INSERT INTO {name} ({names}) SELECT {} FROM unnest({}) AS u({}) ON CONFLICT ({}) DO NOTHING",
            list(&|i| cast(&format!("u.c{i}"), layout.columns[i].sort)),
            list(&|i| format!("${}::text[]", i + 1)),
            list(&|i| format!("c{i}")),
            quoted(layout.key()),
        );
        let key = quoted(table::KEY);
        let retract = match self.rules.retract {
            // Appended ones never come to it.
            Retract::Delete | Retract::Append => {
                format!("DELETE FROM {name} AS t USING unnest($1::text[], $2::bigint[]) AS u(e, c) WHERE t.{key} = u.e")
            }
            Retract::Mark => {
                let mark = quoted(table::RETRACTED);
                format!(
                    "UPDATE {name} AS t SET {mark} = u.c FROM unnest($1::text[], $2::bigint[]) AS u(e, c) \
                     WHERE t.{key} = u.e AND t.{mark} IS NULL"
                )
            }
        };
        Ok(Table { bare, layout, copy, copies: AtomicBool::new(true), insert, retract, newest })
    }

    /// The name of a table in its schema, quoted.
    fn within(&self, bare: &str) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(bare))
    }

    /// Makes or grows a table, and its history, in one transaction.
    async fn evolve(&self, client: &mut Client, table: &Table) -> Result<(), SinkError> {
        let judge = |error: tokio_postgres::Error| self.judge(&error);
        let transaction = client.transaction().await.map_err(judge)?;
        let there =
            transaction.query("SELECT 1 FROM pg_namespace WHERE nspname = $1", &[&self.schema]).await.map_err(judge)?;
        if there.is_empty() {
            transaction.batch_execute(&format!("CREATE SCHEMA {}", quoted(&self.schema))).await.map_err(judge)?;
        }
        if columns(&transaction, &self.positions_table()).await.map_err(judge)?.is_empty() {
            let make = format!(
                "CREATE TABLE {} (journal text, output text, stream text, chain text, \"offset\" bigint, \
                 PRIMARY KEY (journal, output, stream, chain))",
                self.positions_table()
            );
            transaction.batch_execute(&make).await.map_err(judge)?;
        }
        let mut wanted = table.layout.columns.clone();
        if self.rules.retract == Retract::Mark {
            wanted.push(table::Column { name: table::RETRACTED.into(), sort: Sort::Integer });
        }
        for (bare, key) in newest::tables(&table.bare, &table.layout) {
            let name = self.within(&bare);
            let has = columns(&transaction, &name).await.map_err(judge)?;
            let define = |column: &table::Column| {
                let key = if column.name == key { " PRIMARY KEY" } else { "" };
                format!("{} {}{key}", quoted(&column.name), type_of(column.sort))
            };
            let change = if has.is_empty() {
                let columns = wanted.iter().map(define).collect::<Vec<_>>().join(", ");
                let by = newest::ASKED_BY.map(quoted).join(", ");
                let index = match table.layout.keyed() && key != ROW_KEY {
                    true => format!("; CREATE INDEX ON {name} ({by})"),
                    false => String::new(),
                };
                Some(format!("CREATE TABLE {name} ({columns}){index}"))
            } else {
                let missing = table::missing(&wanted, &has, type_of, &name).map_err(|why| self.refused(&why))?;
                let adds = missing.iter().map(|column| format!("ADD COLUMN {}", define(column))).collect::<Vec<_>>();
                (!adds.is_empty()).then(|| format!("ALTER TABLE {name} {}", adds.join(", ")))
            };
            if let Some(change) = change {
                transaction.batch_execute(&change).await.map_err(judge)?;
                tracing::info!(output = %self.name, table = name, "made or widened the table");
            } else if table.layout.keyed() {
                let select = format!("SELECT {ROW_KEY} FROM {name} LIMIT 1");
                if let Some(row) = transaction.query_opt(&select, &[]).await.map_err(judge)? {
                    let key: String = row.try_get(0).map_err(judge)?;
                    newest::made_otherwise(&table.layout, &key, &name).map_err(|why| self.refused(&why))?;
                }
            }
        }
        transaction.commit().await.map_err(judge)
    }

    /// One transaction: rows and position. The outcomes that are `None` are decided here.
    async fn store(
        &self,
        connection: &mut Connection,
        table: &Table,
        track: &Track,
        work: &mut Work<'_>,
        by: By,
    ) -> Result<(), Fault> {
        let statements = Statements {
            copy: match by {
                By::Copy => Some(prepared(connection, &table.copy).await?),
                By::Insert | By::One => None,
            },
            insert: prepared(connection, &table.insert).await?,
            retract: prepared(connection, &table.retract).await?,
            newest: match &table.newest {
                None => None,
                Some(Newest { upsert, remove, forget }) => Some([
                    prepared(connection, upsert).await?,
                    prepared(connection, remove).await?,
                    prepared(connection, forget).await?,
                ]),
            },
        };
        let key = "journal = $1 AND output = $2 AND stream = $3 AND chain = $4";
        let positions = self.positions_table();
        let lock = format!("SELECT \"offset\" FROM {positions} WHERE {key} FOR UPDATE");
        let lock = prepared(connection, &lock).await?;
        let update = prepared(connection, &format!("UPDATE {positions} SET \"offset\" = $5 WHERE {key}")).await?;
        let known = connection.positions.remove(track);
        let mut transaction = connection.client.transaction().await.map_err(fault)?;
        let now = self.lock_position(&transaction, &lock, track).await?;
        if let Some(known) = known.filter(|known| *known != now) {
            return Err(Fault::Now(format!(
                "the position of {} was moved from {known:?} to {now:?} by somebody else; is a second process delivering?",
                track.stream
            )));
        }
        if by == By::One {
            for (op, run) in work.runs(1) {
                let savepoint = transaction.transaction().await.map_err(fault)?;
                match self.write(&savepoint, &statements, work.batch, table, (op, run.clone())).await {
                    Ok(refused) => {
                        savepoint.commit().await.map_err(fault)?;
                        work.refuse(refused);
                    }
                    Err(Fault::Row(why)) => {
                        savepoint.rollback().await.map_err(fault)?;
                        work.refuse([(run[0], format!("{}: {why}", self.place))]);
                    }
                    Err(other) => return Err(other),
                }
            }
        } else {
            // One after another: a retraction must not go before what it retracts.
            for run in work.runs(usize::MAX) {
                let refused = self.write(&transaction, &statements, work.batch, table, run).await?;
                work.refuse(refused);
            }
        }
        let outcomes = work.settled();
        // A delivery from the dead letters lies before the position and does not move it back.
        let reached = table::reached(work.batch, &outcomes).and_then(|offset| i64::try_from(offset).ok());
        let next = reached.max(now);
        if next != now {
            let [a, b, c, d] = self.key(track);
            transaction.execute(&update, &[&a, &b, &c, &d, &next]).await.map_err(fault)?;
        }
        transaction.commit().await.map_err(fault)?;
        connection.positions.insert(track.clone(), next);
        Ok(())
    }

    /// The position of a track, which nobody else can move until the transaction ends.
    async fn lock_position(
        &self,
        transaction: &Transaction<'_>,
        lock: &Statement,
        track: &Track,
    ) -> Result<Option<i64>, Fault> {
        let [a, b, c, d] = self.key(track);
        if let Some(row) = transaction.query_opt(lock, &[&a, &b, &c, &d]).await.map_err(fault)? {
            return row.try_get(0).map_err(fault);
        }
        let table = self.positions_table();
        let insert = format!("INSERT INTO {table} (journal, output, stream, chain) VALUES ($1, $2, $3, $4)");
        transaction.execute(&insert, &[&a, &b, &c, &d]).await.map_err(fault)?;
        Ok(None)
    }

    /// Writes a run. What has no row is left out, and told.
    async fn write(
        &self,
        transaction: &Transaction<'_>,
        statements: &Statements,
        batch: &[Delivery],
        table: &Table,
        run: Run,
    ) -> Result<Vec<Refused>, Fault> {
        let layout = &table.layout;
        let takes_back = layout.takes_back(run.0);
        let (keys, refused) = match &statements.copy {
            _ if takes_back => take_back(transaction, statements, batch, layout, &run.1).await?,
            Some(copy) if table.to_copy(&run) => {
                copy_in(transaction, copy, batch, layout, &run.1).await.map_err(|error| table.not_copied(error))?
            }
            _ => insert(transaction, &statements.insert, batch, layout, &run.1).await.map_err(fault)?,
        };
        if let Some([upsert, remove, forget]) = &statements.newest {
            let keys: Vec<String> = keys.into_iter().collect();
            transaction.execute(upsert, &[&keys]).await.map_err(fault)?;
            if takes_back {
                transaction.execute(remove, &[&keys]).await.map_err(fault)?;
            } else if let Some(last) = run.1.last() {
                let from = table::kept_from(&batch[*last], self.rules.keep_blocks);
                transaction.execute(forget, &[&keys, &from]).await.map_err(fault)?;
            }
        }
        Ok(refused)
    }

    fn key(&self, track: &Track) -> [String; 4] {
        [self.journal.clone(), track.output.to_string(), track.stream.to_string(), track.chain.to_string()]
    }
}

async fn prepared(connection: &mut Connection, sql: &str) -> Result<Statement, Fault> {
    if let Some(statement) = connection.statements.get(sql) {
        return Ok(statement.clone());
    }
    let statement = connection.client.prepare(sql).await.map_err(fault)?;
    connection.statements.insert(sql.to_owned(), statement.clone());
    Ok(statement)
}

/// Names and types of a table's columns; none where there is no table. `table` is quoted.
async fn columns(transaction: &Transaction<'_>, table: &str) -> Result<Vec<(String, String)>, tokio_postgres::Error> {
    let select = "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute \
                  WHERE attrelid = to_regclass($1::text) AND attnum > 0 AND NOT attisdropped";
    let rows = transaction.query(select, &[&table]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// As `format_type` writes it.
fn type_of(sort: Sort) -> &'static str {
    match sort {
        Sort::Text => "text",
        Sort::Integer => "bigint",
        Sort::Double => "double precision",
        Sort::Boolean => "boolean",
        Sort::Numeric => "numeric(78,0)",
        Sort::Json => "jsonb",
        Sort::Bytes => "bytea",
        Sort::Time => "timestamp with time zone",
    }
}

fn cast(text: &str, sort: Sort) -> String {
    match sort {
        Sort::Text => text.to_owned(),
        Sort::Bytes => format!("decode({text}, 'hex')"),
        _ => format!("{text}::{}", type_of(sort)),
    }
}

/// Deletes or marks the rows of a run. What has none, or never had, has nothing to be taken back.
async fn take_back(
    transaction: &Transaction<'_>,
    statements: &Statements,
    batch: &[Delivery],
    layout: &Layout,
    run: &[usize],
) -> Result<Written, Fault> {
    let emissions: Vec<String> = run.iter().map(|index| batch[*index].emission.id.to_string()).collect();
    let offsets: Vec<Option<i64>> = run.iter().map(|index| i64::try_from(batch[*index].offset).ok()).collect();
    transaction.execute(&statements.retract, &[&emissions, &offsets]).await.map_err(fault)?;
    Ok((table::keys_of(batch, run, layout), vec![]))
}

async fn insert(
    transaction: &Transaction<'_>,
    insert: &Statement,
    batch: &[Delivery],
    layout: &Layout,
    run: &[usize],
) -> Result<Written, tokio_postgres::Error> {
    let (rows, refused) = table::rows(batch, run, layout);
    let keys = table::keys(&rows, layout);
    let mut columns: Vec<Vec<Option<String>>> = layout.columns.iter().map(|_| Vec::with_capacity(rows.len())).collect();
    for row in rows {
        columns.iter_mut().zip(row).for_each(|(column, value)| column.push(as_text(value)));
    }
    let values: Vec<&(dyn ToSql + Sync)> = columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect();
    transaction.execute(insert, &values).await?;
    Ok((keys, refused))
}

/// Copies a run in, piece by piece: the server takes one while the next is made.
async fn copy_in(
    transaction: &Transaction<'_>,
    copy: &Statement,
    batch: &[Delivery],
    layout: &Layout,
    run: &[usize],
) -> Result<Written, tokio_postgres::Error> {
    let (mut keys, mut refused) = (BTreeSet::new(), vec![]);
    let mut into = std::pin::pin!(transaction.copy_in(copy).await?);
    for piece in run.chunks(COPY_PIECE) {
        let (rows, without) = table::rows(batch, piece, layout);
        into.send(copied(&rows)).await?;
        keys.extend(table::keys(&rows, layout));
        refused.extend(without);
    }
    into.finish().await?;
    Ok((keys, refused))
}

/// Rows in COPY's text format, read by the types' own input functions: what the casts of an insert read too.
fn copied(rows: &[Vec<Value>]) -> Bytes {
    let mut text = Vec::with_capacity(rows.len() * 512);
    for row in rows {
        for (index, value) in row.iter().enumerate() {
            if index > 0 {
                text.push(b'\t');
            }
            // Writing to a Vec does not fail.
            let _ = match value {
                Value::Null => text.write_all(b"\\N"),
                Value::Text(value) => {
                    let mut rest = value.as_bytes();
                    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | b'\\')) {
                        text.extend_from_slice(&rest[..at]);
                        text.extend_from_slice(match rest[at] {
                            b'\t' => b"\\t",
                            b'\n' => b"\\n",
                            b'\r' => b"\\r",
                            _ => b"\\\\",
                        });
                        rest = &rest[at + 1..];
                    }
                    text.write_all(rest)
                }
                Value::Integer(number) => write!(text, "{number}"),
                Value::Double(number) => write!(text, "{number}"),
                Value::Boolean(flag) => write!(text, "{flag}"),
                Value::Bytes(bytes) => write!(text, "\\\\x{}", hex::encode(bytes)),
            };
        }
        text.push(b'\n');
    }
    text.into()
}

/// Every value crosses as a text and is cast by the server: one shape of statement for all tables.
fn as_text(value: Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Text(text) => Some(text),
        Value::Integer(number) => Some(number.to_string()),
        Value::Double(number) => Some(number.to_string()),
        Value::Boolean(flag) => Some(flag.to_string()),
        Value::Bytes(bytes) => Some(hex::encode(bytes)),
    }
}

fn fault(error: tokio_postgres::Error) -> Fault {
    match error.code().map(SqlState::code) {
        // Data exceptions, constraints, what is larger than a row or an index can be, and a trigger's RAISE EXCEPTION.
        Some(code) if ["22", "23", "54", "P0001"].iter().any(|class| code.starts_with(class)) => {
            Fault::Row(text(&error))
        }
        _ => Fault::Now(text(&error)),
    }
}

fn text(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => {
            use std::error::Error;
            error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
        }
    }
}

#[async_trait::async_trait]
impl Sink for Postgres {
    fn shape(&self) -> Shape {
        Shape { batch: self.batch, concurrency: 1 }
    }

    async fn prepare(&self, stream: &StreamId, spec: &StreamSpec) -> Result<(), SinkError> {
        let table = self.make_table(stream, spec)?;
        let mut slot = self.slot.lock().await;
        let mut connection = self.connected(&mut slot).await?;
        let evolved = tokio::time::timeout(self.timeout, self.evolve(&mut connection.client, &table)).await;
        evolved.map_err(|_| self.again("no answer in time"))??;
        // The table may have changed under them.
        connection.statements.clear();
        slot.connection = Some(connection);
        let mut tables = self.tables.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        tables.insert(stream.clone(), Arc::new(table));
        Ok(())
    }

    async fn position(&self, track: &Track) -> Result<Option<u64>, SinkError> {
        let mut slot = self.slot.lock().await;
        let mut connection = self.connected(&mut slot).await?;
        let select = format!(
            "SELECT \"offset\" FROM {} WHERE journal = $1 AND output = $2 AND stream = $3 AND chain = $4",
            self.positions_table()
        );
        let [a, b, c, d] = self.key(track);
        let offset: Option<i64> = match connection.client.query_opt(&select, &[&a, &b, &c, &d]).await {
            Ok(row) => row.map(|row| row.try_get(0)).transpose().map_err(|error| self.judge(&error))?.flatten(),
            // Nothing was ever prepared here.
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => None,
            Err(error) => return Err(self.judge(&error)),
        };
        connection.positions.insert(track.clone(), offset);
        slot.connection = Some(connection);
        Ok(offset.and_then(|offset| u64::try_from(offset).ok()))
    }

    async fn deliver(&self, track: &Track, batch: &[Delivery]) -> Vec<Outcome> {
        let table = self.tables.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get(&track.stream).cloned();
        let Some(table) = table else {
            return super::retry_all(batch.len(), &format!("the table of {} is not prepared yet", track.stream));
        };
        let mut work = Work::new(batch);
        let mut slot = self.slot.lock().await;
        let mut connection = match self.connected(&mut slot).await {
            Ok(connection) => connection,
            Err(error) => return super::retry_all(batch.len(), &error.to_string()),
        };
        let store = async {
            let mut by = table.first_by(&work, connection.positions.get(track).copied());
            loop {
                let done = self.store(&mut connection, &table, track, &mut work, by).await;
                match by.next() {
                    Some(next) if matches!(done, Err(Fault::Row(_))) => by = next,
                    _ => return done,
                }
            }
        };
        let why = match tokio::time::timeout(self.timeout, store).await {
            Ok(Ok(())) => {
                slot.connection = Some(connection);
                return work.settled();
            }
            Ok(Err(Fault::Now(why) | Fault::Row(why))) => why,
            Err(_) => format!("no answer within {} ms", self.timeout.as_millis()),
        };
        super::retry_all(batch.len(), &format!("{}: {why}", self.place))
    }
}
