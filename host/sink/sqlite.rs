//! Stores every stream in a table of a SQLite file of its own: rows and the lane's position in one transaction.
//!
//! The same tables as [`super::postgres`] makes, in SQLite's types: numbers beyond 64 bits are texts of decimal digits, times are
//! RFC 3339, JSON is text. The file is in WAL mode, so that others may read while this process writes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, ErrorCode, OptionalExtension, ToSql, TransactionBehavior, params};

use super::newest::{self, Keys, Newest};
use super::options::Options;
use super::table::{self, Fault, Layout, ROW_KEY, Retract, Rules, Sort, Value, quoted};
use super::{Kind, Open, Shape, Sink, SinkError, Track};
use crate::model::{Delivery, Op, Outcome, OutputName, StreamId, StreamSpec};

pub const KIND: Kind = Kind {
    name: "sqlite",
    options: &[
        ("path", "the database file; made if it is not there. Not the journal's file"),
        ("table", "name of a stream's table, with {plugin} and {stream}; {plugin}_{stream}"),
        ("retract", "delete or mark the row of a retracted emission, or append a row that says so; delete"),
        ("key", "columns by which a newer row takes the place of an earlier one, as [\"token\", \"owner\"]; none"),
        ("keep_blocks", "with key: blocks for which an earlier row is kept, to come back after a reorg; 10000"),
        ("batch", "most rows in one transaction; 500"),
    ],
    open: |open| {
        Box::pin(async move {
            let state = State::open(open)?;
            Ok(Arc::new(Sqlite { batch: state.batch, state: Arc::new(Mutex::new(state)) }) as Arc<dyn Sink>)
        })
    },
};

/// How long another program may hold the file before a batch has to wait for its next turn.
const BUSY: Duration = Duration::from_secs(5);

struct Sqlite {
    batch: usize,
    state: Arc<Mutex<State>>,
}

struct State {
    name: OutputName,
    journal: String,
    path: PathBuf,
    rules: Rules,
    batch: usize,
    connection: Option<Connection>,
    tables: HashMap<StreamId, Table>,
}

#[derive(Clone)]
struct Table {
    name: String,
    layout: Layout,
    insert: String,
    retract: String,
    /// With a key, and how many blocks its history keeps. Then the two above are the history's.
    newest: Option<(Newest, u64)>,
}

const POSITIONS: &str = "CREATE TABLE IF NOT EXISTS chainweir_positions (journal TEXT, output TEXT, stream TEXT, chain TEXT, \
                         \"offset\" BIGINT, PRIMARY KEY (journal, output, stream, chain))";

impl State {
    fn open(open: Open) -> Result<Self, SinkError> {
        let options = Options::new(open, KIND.options)?;
        options.need("path", "out/events.db")?;
        let path = options.path("path")?.ok_or_else(|| options.refused("path is missing"))?;
        Ok(Self {
            name: options.name().clone(),
            journal: options.journal().to_owned(),
            path,
            rules: table::options(&options)?,
            batch: options.number("batch", 500, 1..=10_000)? as usize,
            connection: None,
            tables: HashMap::new(),
        })
    }

    fn judge(&self, error: &rusqlite::Error) -> SinkError {
        let why = format!("output.{}: SQLite file {}: {error}", self.name, self.path.display());
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => SinkError::Refused { why },
            _ => SinkError::Again { why },
        }
    }

    fn refused(&self, why: &str) -> SinkError {
        SinkError::Refused { why: format!("output.{}: SQLite file {}: {why}", self.name, self.path.display()) }
    }

    fn connect(&mut self) -> Result<&mut Connection, SinkError> {
        if self.connection.is_none() {
            let connect = || {
                let connection = Connection::open(&self.path)?;
                connection.busy_timeout(BUSY)?;
                connection.pragma_update(None, "journal_mode", "wal")?;
                connection.pragma_update(None, "synchronous", "full")?;
                connection.execute_batch(POSITIONS)?;
                // A plan does not depend on what is bound: a cached statement is compiled once.
                connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
                connection.set_prepared_statement_cache_capacity(64);
                Ok(connection)
            };
            self.connection = Some(connect().map_err(|error| self.judge(&error))?);
        }
        Ok(self.connection.as_mut().expect("it was put there above"))
    }

    fn prepare(&mut self, stream: &StreamId, spec: &StreamSpec) -> Result<(), SinkError> {
        let bare = self.rules.name(stream).map_err(|error| self.refused(&error.to_string()))?;
        let clashes = |(other, table): &(&StreamId, &Table)| *other != stream && self.rules.clash(&table.name, &bare);
        if let Some((other, _)) = self.tables.iter().find(clashes) {
            return Err(self.refused(&table::shared(stream, other, &quoted(&bare))));
        }
        let layout = self.rules.layout(spec).map_err(|why| self.refused(&why))?;
        let mut wanted = layout.columns.clone();
        if self.rules.retract == Retract::Mark {
            wanted.push(table::Column { name: table::RETRACTED.into(), sort: Sort::Integer });
        }
        let changed = evolve(self.connect()?, &bare, &wanted, &layout);
        changed.map_err(|error| self.judge(&error))?.map_err(|why| self.refused(&why))?;
        let newest = layout.keyed().then(|| {
            let names = (&*quoted(&bare), &*quoted(&newest::history(&bare)));
            (Newest::new(names, &layout, quoted, Keys::One), self.rules.keep_blocks)
        });
        let name = quoted(&if newest.is_some() { newest::history(&bare) } else { bare.clone() });
        let list = |each: &dyn Fn(usize) -> String| (0..layout.columns.len()).map(each).collect::<Vec<_>>().join(", ");
        let key = quoted(layout.key());
        let insert = format!(
            "INSERT INTO {name} ({}) VALUES ({}) ON CONFLICT ({key}) DO NOTHING",
            list(&|i| quoted(&layout.columns[i].name)),
            list(&|i| format!("?{}", i + 1)),
        );
        let retract = match self.rules.retract {
            // Appended ones never come to it.
            Retract::Delete | Retract::Append => format!("DELETE FROM {name} WHERE {key} = ?1 AND ?2 IS NOT NULL"),
            Retract::Mark => {
                let mark = quoted(table::RETRACTED);
                format!("UPDATE {name} SET {mark} = ?2 WHERE {key} = ?1 AND {mark} IS NULL")
            }
        };
        self.tables.insert(stream.clone(), Table { name: bare, layout, insert, retract, newest });
        Ok(())
    }

    fn position(&mut self, track: &Track) -> Result<Option<u64>, SinkError> {
        let key = self.key(track);
        let found = read_position(self.connect()?, &key);
        let found = found.map_err(|error| self.judge(&error))?;
        Ok(found.and_then(|offset| u64::try_from(offset).ok()))
    }

    fn key(&self, track: &Track) -> [String; 4] {
        [self.journal.clone(), track.output.to_string(), track.stream.to_string(), track.chain.to_string()]
    }

    fn deliver(&mut self, track: &Track, batch: &[Delivery]) -> Result<Vec<Outcome>, String> {
        let Some(table) = self.tables.get(&track.stream).cloned() else {
            return Err(format!("the table of {} is not prepared yet", track.stream));
        };
        let key = self.key(track);
        let place = format!("SQLite file {}", self.path.display());
        let connection = self.connect().map_err(|error| error.to_string())?;
        store(connection, &table, &key, batch, &place).map_err(|fault| match fault {
            Fault::Row(why) | Fault::Now(why) => format!("{place}: {why}"),
        })
    }
}

/// Makes or grows a table, in one transaction. The inner error says why the table that is there cannot be used.
fn evolve(
    connection: &mut Connection,
    table: &str,
    wanted: &[table::Column],
    layout: &Layout,
) -> Result<Result<(), String>, rusqlite::Error> {
    // Immediate: what is read is what is changed.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (table, key) in newest::tables(table, layout) {
        let has = transaction
            .prepare("SELECT name, type FROM pragma_table_info(?1)")?
            .query_map([&table], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<Vec<(String, String)>, _>>()?;
        let define = |column: &table::Column| {
            let key = if column.name == key { " PRIMARY KEY" } else { "" };
            format!("{} {}{key}", quoted(&column.name), type_of(column.sort))
        };
        let name = quoted(&table);
        if has.is_empty() {
            let columns = wanted.iter().map(define).collect::<Vec<_>>().join(", ");
            transaction.execute_batch(&format!("CREATE TABLE {name} ({columns})"))?;
            if layout.keyed() && key != ROW_KEY {
                let (index, by) = (quoted(&format!("{table}_newest")), newest::ASKED_BY.map(quoted).join(", "));
                transaction.execute_batch(&format!("CREATE INDEX {index} ON {name} ({by})"))?;
            }
            continue;
        }
        let usable = table::missing(wanted, &has, type_of, &table);
        let usable = usable.map(|missing| missing.into_iter().map(define).collect::<Vec<_>>());
        for column in match usable {
            Ok(missing) => missing,
            Err(why) => return Ok(Err(why)),
        } {
            transaction.execute_batch(&format!("ALTER TABLE {name} ADD COLUMN {column}"))?;
        }
        if layout.keyed() {
            let key = format!("SELECT {ROW_KEY} FROM {name} LIMIT 1");
            let key: Option<String> = transaction.query_row(&key, [], |row| row.get(0)).optional()?;
            if let Some(Err(why)) = key.map(|key| newest::made_otherwise(layout, &key, &table)) {
                return Ok(Err(why));
            }
        }
    }
    transaction.commit()?;
    Ok(Ok(()))
}

fn read_position(connection: &Connection, key: &[String; 4]) -> Result<Option<i64>, rusqlite::Error> {
    connection
        .prepare_cached(
            "SELECT \"offset\" FROM chainweir_positions WHERE journal = ?1 AND output = ?2 AND stream = ?3 AND chain = ?4",
        )?
        .query_row(params![key[0], key[1], key[2], key[3]], |row| row.get(0))
        .optional()
        .map(Option::flatten)
}

/// One transaction: rows and position.
fn store(
    connection: &mut Connection,
    table: &Table,
    key: &[String; 4],
    batch: &[Delivery],
    place: &str,
) -> Result<Vec<Outcome>, Fault> {
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fault)?;
    let mut outcomes = Vec::with_capacity(batch.len());
    for delivery in batch {
        // A statement that fails for its row undoes itself and leaves the transaction as it was; several need a savepoint.
        let written = match &table.newest {
            None => write(&transaction, table, delivery).map(drop),
            Some(newest) => transaction.savepoint().map_err(fault).and_then(|savepoint| {
                if let Some(key) = write(&savepoint, table, delivery)? {
                    bring_up_to_date(&savepoint, newest, &key, delivery)?;
                }
                savepoint.commit().map_err(fault)
            }),
        };
        outcomes.push(match written {
            Ok(()) => Outcome::Delivered,
            Err(Fault::Row(why)) => Outcome::Refused { why: format!("{place}: {why}") },
            Err(other) => return Err(other),
        });
    }
    let reached = table::reached(batch, &outcomes).and_then(|offset| i64::try_from(offset).ok());
    if let Some(reached) = reached {
        // A delivery from the dead letters lies before the position and does not move it back.
        transaction
            .prepare_cached(
                "INSERT INTO chainweir_positions (journal, output, stream, chain, \"offset\") VALUES (?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT DO UPDATE SET \"offset\" = max(coalesce(\"offset\", 0), excluded.\"offset\")",
            )
            .and_then(|mut statement| statement.execute(params![key[0], key[1], key[2], key[3], reached]))
            .map_err(fault)?;
    }
    transaction.commit().map_err(fault)?;
    Ok(outcomes)
}

/// Makes the table what its history says of the key of a delivery that was just written there.
fn bring_up_to_date(
    connection: &Connection,
    (newest, keep_blocks): &(Newest, u64),
    key: &Value,
    delivery: &Delivery,
) -> Result<(), Fault> {
    let run = |sql: &str, with: &[&dyn ToSql]| {
        connection.prepare_cached(sql).and_then(|mut statement| statement.execute(with)).map_err(fault)
    };
    run(&newest.upsert, &[key])?;
    if delivery.op == Op::Retract {
        run(&newest.remove, &[key])?;
    } else {
        run(&newest.forget, &[key, &table::kept_from(delivery, *keep_blocks)])?;
    }
    Ok(())
}

/// The first value of the delivery's row: with a key, that is it. What has no row was never there, and is not taken back.
fn write(transaction: &Connection, table: &Table, delivery: &Delivery) -> Result<Option<Value>, Fault> {
    match delivery.op {
        // A table holds what the chain has.
        Op::Pending => Ok(None),
        _ if delivery.op == Op::Apply || table.layout.appends() => {
            let row = table.layout.row(delivery).map_err(Fault::Row)?;
            let mut statement = transaction.prepare_cached(&table.insert).map_err(fault)?;
            statement.execute(rusqlite::params_from_iter(row.iter())).map_err(fault)?;
            Ok(row.into_iter().next())
        }
        _ => {
            let offset = i64::try_from(delivery.offset).unwrap_or(i64::MAX);
            let mut statement = transaction.prepare_cached(&table.retract).map_err(fault)?;
            statement.execute(params![delivery.emission.id.to_string(), offset]).map_err(fault)?;
            let row = table.newest.is_some().then(|| table.layout.row(delivery).ok()).flatten();
            Ok(row.and_then(|row| row.into_iter().next()))
        }
    }
}

fn fault(error: rusqlite::Error) -> Fault {
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch) => {
            Fault::Row(error.to_string())
        }
        _ => Fault::Now(error.to_string()),
    }
}

/// Chosen so that SQLite's affinity (section 3.1 of its "Datatypes") keeps a text of digits a text.
fn type_of(sort: Sort) -> &'static str {
    match sort {
        Sort::Text => "TEXT",
        Sort::Integer => "BIGINT",
        Sort::Double => "DOUBLE",
        Sort::Boolean => "BOOLEAN",
        Sort::Numeric => "NUMERIC_TEXT",
        Sort::Json => "JSON_TEXT",
        Sort::Bytes => "BLOB",
        Sort::Time => "TIME_TEXT",
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            Self::Null => Ok(ToSqlOutput::from(rusqlite::types::Null)),
            Self::Text(text) => text.to_sql(),
            Self::Integer(number) => number.to_sql(),
            Self::Double(number) => number.to_sql(),
            Self::Boolean(flag) => flag.to_sql(),
            Self::Bytes(bytes) => bytes.to_sql(),
        }
    }
}

impl Sqlite {
    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T, String> {
        let state = self.state.clone();
        tokio::task::spawn_blocking(move || work(&mut state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())))
            .await
            .map_err(|stopped| format!("the write was stopped: {stopped}"))
    }
}

#[async_trait::async_trait]
impl Sink for Sqlite {
    fn shape(&self) -> Shape {
        Shape { batch: self.batch, concurrency: 1 }
    }

    async fn prepare(&self, stream: &StreamId, spec: &StreamSpec) -> Result<(), SinkError> {
        let (stream, spec) = (stream.clone(), spec.clone());
        self.blocking(move |state| state.prepare(&stream, &spec))
            .await
            .unwrap_or_else(|why| Err(SinkError::Again { why }))
    }

    async fn position(&self, track: &Track) -> Result<Option<u64>, SinkError> {
        let track = track.clone();
        self.blocking(move |state| state.position(&track)).await.unwrap_or_else(|why| Err(SinkError::Again { why }))
    }

    async fn deliver(&self, track: &Track, batch: &[Delivery]) -> Vec<Outcome> {
        let (track, owned) = (track.clone(), batch.to_vec());
        let stored = self.blocking(move |state| state.deliver(&track, &owned)).await.and_then(|stored| stored);
        stored.unwrap_or_else(|why| super::retry_all(batch.len(), &why))
    }
}
