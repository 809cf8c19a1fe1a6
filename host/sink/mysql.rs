//! Stores every stream in a table of a MySQL or MariaDB database: rows and the lane's position in one transaction, so that each is
//! there exactly when the other is.
//!
//! An `apply` inserts a row, keyed by its emission; a `retract` deletes it, or marks it (`retract = "mark"`). Repeating either changes
//! nothing. The table is made from the stream's JSON Schema ([`table`]) and grows with it; a column whose type would change is
//! refused. A row that the database refuses is found by trying one at a time, and is the only one refused.
//!
//! A uint256 is a text of digits here: a DECIMAL ends at 65 digits. JSON is a LONGTEXT, as MariaDB has it: MySQL's own JSON type
//! would round what a double cannot hold. Tables are InnoDB's, in utf8mb4 and compared byte by byte.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, DriverError, Error, IoError, Opts, OptsBuilder, SslOpts, TxOpts, Value as Sql};
use tokio::sync::Mutex;

use super::newest::{self, Keys, Newest};
use super::options::Options;
use super::table::{self, Fault, LONGEST_KEY, Layout, ROW_KEY, Refused, Retract, Rules, Sort, Value, Work, Written};
use super::{Kind, Open, Shape, Sink, SinkError, Track};
use crate::model::{Delivery, Op, Outcome, OutputName, StreamId, StreamSpec};

pub const KIND: Kind = Kind {
    name: "mysql",
    options: &[
        ("url", "mysql://user@host:3306/database, without a password; or url_env"),
        ("url_env", "environment variable with the URL, where it holds a password"),
        ("password_env", "environment variable with the password alone"),
        ("password_file", "file with the password alone"),
        ("tls", "true: refuse a connection without TLS, and check the server's certificate; false"),
        ("ca_file", "PEM file with the certificate authorities to trust, with tls"),
        ("table", "name of a stream's table, with {plugin} and {stream}; {plugin}_{stream}"),
        ("retract", "delete or mark the row of a retracted emission, or append a row that says so; delete"),
        ("key", "columns by which a newer row takes the place of an earlier one, as [\"token\", \"owner\"]; none"),
        ("keep_blocks", "with key: blocks for which an earlier row is kept, to come back after a reorg; 10000"),
        ("batch", "most rows in one transaction; 1000"),
        ("timeout_ms", "time for a transaction; 30000"),
    ],
    open: |open| Box::pin(async move { Ok(Arc::new(MySql::open(open)?) as Arc<dyn Sink>) }),
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From here on a statement takes no more rows: the server has this one while the next is made.
const STATEMENT_BYTES: usize = 1 << 17;
/// The least default of the server's `max_allowed_packet` in use.
const PACKET_BYTES: usize = 16 << 20;
/// Of a table of newest rows, looked up in one statement.
const KEYS_AT_ONCE: usize = 50;
/// What is written means the same on every server: no silent cutting of a value, a backslash escapes, and times are UTC.
const SESSION: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', time_zone = '+00:00', \
                       transaction_isolation = 'REPEATABLE-READ'";
const SESSION_MARIADB: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', time_zone = '+00:00', \
                               tx_isolation = 'REPEATABLE-READ'";
const TABLE_OPTIONS: &str = "ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin";
/// Of a text that is compared with a column.
const COLLATE: &str = " COLLATE utf8mb4_bin";

struct MySql {
    name: OutputName,
    journal: String,
    opts: Opts,
    /// Host and port, for messages.
    place: String,
    rules: Rules,
    batch: usize,
    timeout: Duration,
    tables: std::sync::Mutex<HashMap<StreamId, Arc<Table>>>,
    /// Taken while in use: what is not put back (an error, a caller that gave up) is closed, and the server rolls back.
    connection: Mutex<Option<Connection>>,
}

struct Connection {
    taken: Instant,
    conn: Conn,
    /// Bytes that the server reads as one statement. A longer one would cost the connection.
    longest: usize,
    /// The position of each track as this connection last saw or wrote it.
    positions: HashMap<Track, Option<i64>>,
}

/// What is known of a stream's table.
struct Table {
    bare: String,
    /// Where rows go: into the table, or its history.
    written: String,
    layout: Layout,
    /// Up to VALUES.
    insert: String,
}

impl MySql {
    fn open(open: Open) -> Result<Self, SinkError> {
        let options = Options::new(open, KIND.options)?;
        let url = options.url("DATABASE_URL")?;
        // The parser's own message may quote the URL, and the password with it.
        let opts = Opts::from_url(url.expose())
            .map_err(|_| options.refused("the URL is not of the form mysql://user:password@host:3306/database"))?;
        if opts.db_name().is_none() {
            return Err(options.refused("the URL names no database: mysql://user@host:3306/database"));
        }
        let place = format!("MySQL at {}:{}", opts.ip_or_hostname(), opts.tcp_port());
        let ca_file = options.path("ca_file")?;
        let tls = options.flag("tls", false)?;
        if ca_file.is_some() && !tls {
            return Err(options.refused("ca_file is for tls = true"));
        }
        super::ring();
        let mut builder = OptsBuilder::from_opts(opts).prefer_socket(false).stmt_cache_size(0);
        if tls {
            let roots = ca_file.into_iter().map(|path| path.into()).collect::<Vec<_>>();
            let own = !roots.is_empty();
            builder = builder.ssl_opts(SslOpts::default().with_root_certs(roots).with_disable_built_in_roots(own));
        }
        if let Some(password) = options.secret("password_env", "password_file")? {
            builder = builder.pass(Some(password.expose()));
        }
        Ok(Self {
            name: options.name().clone(),
            journal: options.journal().to_owned(),
            opts: builder.into(),
            place,
            rules: table::options(&options)?,
            batch: options.number("batch", 1_000, 1..=10_000)? as usize,
            timeout: Duration::from_millis(options.number("timeout_ms", 30_000, 1..=3_600_000)?),
            tables: Default::default(),
            connection: Mutex::new(None),
        })
    }

    fn again(&self, why: &str) -> SinkError {
        SinkError::Again { why: format!("{}: {why}", self.place) }
    }

    fn refused(&self, why: &str) -> SinkError {
        SinkError::Refused { why: format!("output.{}: {}: {why}", self.name, self.place) }
    }

    /// For what is done outside of a delivery.
    fn judge(&self, error: &Error) -> SinkError {
        match error {
            // Access denied, unknown database, and what the user may not do.
            Error::Server(server) if server.state == "28000" || server.state.starts_with("42") => {
                self.refused(&server.to_string())
            }
            Error::Driver(error @ DriverError::NoClientSslFlagFromServer) => self.refused(&error.to_string()),
            Error::Io(IoError::Tls(error)) => self.refused(&format!("TLS: {error}")),
            _ => self.again(&error.to_string()),
        }
    }

    /// A connection that is alive, taken out of `slot`.
    async fn connected(&self, slot: &mut Option<Connection>) -> Result<Connection, SinkError> {
        // The server hangs up on one that is idle for twice the timeout, and on one that says half a statement: a transaction of
        // ours that a broken wire left open would hold the position for as long as it believes in the connection.
        if let Some(mut connection) = slot.take().filter(|connection| connection.taken.elapsed() < self.timeout) {
            connection.taken = Instant::now();
            return Ok(connection);
        }
        let connect = async {
            let mut conn = Conn::new(self.opts.clone()).await?;
            // The variable has one name in MySQL 8 and another in MariaDB 10.
            if conn.query_drop(SESSION).await.is_err() {
                conn.query_drop(SESSION_MARIADB).await?;
            }
            let idle = (2 * self.timeout).as_secs().max(2);
            let set =
                format!("SET SESSION wait_timeout = {idle}, net_read_timeout = LEAST(@@net_read_timeout, {idle})");
            conn.query_drop(set).await?;
            let longest = conn.query_first("SELECT @@max_allowed_packet").await?;
            Ok((conn, longest.unwrap_or(PACKET_BYTES)))
        };
        let (conn, longest) = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| self.again("no connection in time"))?
            .map_err(|error: Error| self.judge(&error))?;
        Ok(Connection { taken: Instant::now(), conn, longest, positions: HashMap::new() })
    }

    fn make_table(&self, stream: &StreamId, spec: &StreamSpec) -> Result<Table, SinkError> {
        let bare = self.rules.name(stream).map_err(|error| self.refused(&error.to_string()))?;
        let taken = self.tables.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let clashes =
            |(other, table): &(&StreamId, &Arc<Table>)| *other != stream && self.rules.clash(&table.bare, &bare);
        if let Some((other, _)) = taken.iter().find(clashes) {
            return Err(self.refused(&table::shared(stream, other, &bare)));
        }
        let layout = self.rules.layout(spec).map_err(|why| self.refused(&why))?;
        let columns = layout.columns.iter().map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ");
        let written = if layout.keyed() { newest::history(&bare) } else { bare.clone() };
        let insert = format!("INSERT INTO {} ({columns}) VALUES ", quoted(&written));
        Ok(Table { bare, written, layout, insert })
    }

    /// Makes or grows a table. Every statement commits by itself in MySQL; each may be done again.
    async fn evolve(&self, conn: &mut Conn, table: &Table) -> Result<(), SinkError> {
        let judge = |error: Error| self.judge(&error);
        let positions = format!(
            "CREATE TABLE IF NOT EXISTS chainweir_positions (journal varchar(64) NOT NULL, output varchar(128) NOT NULL, \
             stream varchar(256) NOT NULL, chain varchar(64) NOT NULL, `offset` bigint, \
             PRIMARY KEY (journal, output, stream, chain)) {TABLE_OPTIONS}"
        );
        conn.query_drop(positions).await.map_err(judge)?;
        let mut wanted = table.layout.columns.clone();
        if self.rules.retract == Retract::Mark {
            wanted.push(table::Column { name: table::RETRACTED.into(), sort: Sort::Integer });
        }
        for (bare, key) in newest::tables(&table.bare, &table.layout) {
            let select = "SELECT column_name, data_type FROM information_schema.columns \
                          WHERE table_schema = DATABASE() AND table_name = ?";
            let has: Vec<(String, String)> = conn.exec(select, (&bare,)).await.map_err(judge)?;
            // What is looked up is a varchar, and no text of any length.
            let looked_up = |name: &str| name == key || name == ROW_KEY;
            let define = |column: &table::Column| {
                let kind = match &*column.name {
                    ROW_KEY => format!("varchar({LONGEST_KEY}) NOT NULL"),
                    name if name == key => "varchar(64) NOT NULL".to_owned(),
                    _ => type_of(column.sort).to_owned(),
                };
                format!("{} {kind}{}", quoted(&column.name), if column.name == key { " PRIMARY KEY" } else { "" })
            };
            let name = quoted(&bare);
            let change = if has.is_empty() {
                let columns = wanted.iter().map(define).collect::<Vec<_>>().join(", ");
                let index = match table.layout.keyed() && key != ROW_KEY {
                    true => format!(", KEY newest ({})", newest::ASKED_BY.map(quoted).join(", ")),
                    false => String::new(),
                };
                Some(format!("CREATE TABLE {name} ({columns}{index}) {TABLE_OPTIONS}"))
            } else {
                let has = has.into_iter().map(|(name, kind)| match looked_up(&name) {
                    true => (name, type_of(Sort::Text).to_owned()),
                    false => (name, whole(&kind).to_owned()),
                });
                let missing = table::missing(&wanted, &has.collect::<Vec<_>>(), type_of, &bare)
                    .map_err(|why| self.refused(&why))?;
                let adds = missing.iter().map(|column| format!("ADD COLUMN {}", define(column))).collect::<Vec<_>>();
                (!adds.is_empty()).then(|| format!("ALTER TABLE {name} {}", adds.join(", ")))
            };
            if let Some(change) = change {
                conn.query_drop(change).await.map_err(judge)?;
                tracing::info!(output = %self.name, table = bare, "made or widened the table");
            } else if table.layout.keyed() {
                let select = format!("SELECT {} FROM {name} LIMIT 1", quoted(ROW_KEY));
                if let Some(key) = conn.query_first::<String, _>(select).await.map_err(judge)? {
                    newest::made_otherwise(&table.layout, &key, &bare).map_err(|why| self.refused(&why))?;
                }
            }
        }
        Ok(())
    }

    /// One transaction: rows and position. The outcomes that are `None` are decided here.
    async fn store(
        &self,
        connection: &mut Connection,
        table: &Table,
        track: &Track,
        work: &mut Work<'_>,
        one_by_one: bool,
    ) -> Result<(), Fault> {
        let known = connection.positions.remove(track);
        let mut transaction = connection.conn.start_transaction(TxOpts::default()).await.map_err(fault)?;
        let key = self.key(track);
        let select = "SELECT `offset` FROM chainweir_positions \
                      WHERE journal = ? AND output = ? AND stream = ? AND chain = ? FOR UPDATE";
        let found: Option<Option<i64>> = transaction.exec_first(select, key.clone()).await.map_err(fault)?;
        let now = found.flatten();
        if let Some(known) = known.filter(|known| *known != now) {
            return Err(Fault::Now(format!(
                "the position of {} was moved from {known:?} to {now:?} by somebody else; is a second process delivering?",
                track.stream
            )));
        }
        for (op, run) in work.runs(if one_by_one { 1 } else { usize::MAX }) {
            if !one_by_one {
                let refused = self.write(&mut transaction, connection.longest, table, work.batch, op, &run).await?;
                work.refuse(refused);
                continue;
            }
            transaction.query_drop("SAVEPOINT one").await.map_err(fault)?;
            match self.write(&mut transaction, connection.longest, table, work.batch, op, &run).await {
                Ok(refused) => work.refuse(refused),
                Err(Fault::Row(why)) => {
                    transaction.query_drop("ROLLBACK TO SAVEPOINT one").await.map_err(fault)?;
                    work.refuse([(run[0], format!("{}: {why}", self.place))]);
                }
                Err(other) => return Err(other),
            }
        }
        let outcomes = work.settled();
        // A delivery from the dead letters lies before the position and does not move it back.
        let reached = table::reached(work.batch, &outcomes).and_then(|offset| i64::try_from(offset).ok());
        let next = reached.max(now);
        if next != now || found.is_none() {
            let (journal, output, stream, chain) = key;
            let set = "INSERT INTO chainweir_positions (journal, output, stream, chain, `offset`) VALUES (?, ?, ?, ?, ?) \
                       ON DUPLICATE KEY UPDATE `offset` = VALUES(`offset`)";
            transaction.exec_drop(set, (journal, output, stream, chain, next)).await.map_err(fault)?;
        }
        transaction.commit().await.map_err(fault)?;
        connection.positions.insert(track.clone(), next);
        Ok(())
    }

    /// Writes a run, in statements of a bounded size. What has no row is left out, and told.
    async fn write(
        &self,
        to: &mut impl Queryable,
        longest: usize,
        table: &Table,
        batch: &[Delivery],
        op: Op,
        run: &[usize],
    ) -> Result<Vec<Refused>, Fault> {
        let (name, key) = (quoted(&table.written), quoted(table.layout.key()));
        let takes_back = table.layout.takes_back(op);
        let (keys, refused) = if takes_back {
            for index in run {
                let delivery = &batch[*index];
                let (emission, mark) = (delivery.emission.id, quoted(table::RETRACTED));
                let statement = match self.rules.retract {
                    Retract::Delete | Retract::Append => format!("DELETE FROM {name} WHERE {key} = '{emission}'"),
                    Retract::Mark => format!(
                        "UPDATE {name} SET {mark} = {} WHERE {key} = '{emission}' AND {mark} IS NULL",
                        delivery.offset
                    ),
                };
                to.query_drop(statement).await.map_err(fault)?;
            }
            // What was never there has nothing to be taken back.
            (table::keys_of(batch, run, &table.layout), vec![])
        } else {
            insert(to, longest, table, batch, run).await?
        };
        let keys: Vec<String> = keys.into_iter().collect();
        let kept_from = run.last().map_or(0, |last| table::kept_from(&batch[*last], self.rules.keep_blocks));
        // A part of a union for each: in statements of a bounded size.
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let keys: Vec<String> = keys.iter().map(|key| Sql::from(key.as_str()).as_sql(false) + COLLATE).collect();
            let names = (&*quoted(&table.bare), &*name);
            let newest = Newest::new(names, &table.layout, quoted, Keys::Listed(&keys, kept_from));
            to.query_drop(newest.upsert).await.map_err(fault)?;
            to.query_drop(if takes_back { newest.remove } else { newest.forget }).await.map_err(fault)?;
        }
        Ok(refused)
    }

    fn key(&self, track: &Track) -> (String, String, String, String) {
        (self.journal.clone(), track.output.to_string(), track.stream.to_string(), track.chain.to_string())
    }
}

/// Inserts a run, a statement after the other.
async fn insert(
    to: &mut impl Queryable,
    longest: usize,
    table: &Table,
    batch: &[Delivery],
    run: &[usize],
) -> Result<Written, Fault> {
    let (mut keys, mut refused, mut left) = (BTreeSet::new(), vec![], run.iter());
    let key = quoted(table.layout.key());
    let mut next = || {
        let mut statement = String::new();
        while statement.len() < STATEMENT_BYTES
            && let Some(index) = left.next()
        {
            match table.layout.row(&batch[*index]) {
                Ok(row) => {
                    keys.extend(table::keys(std::slice::from_ref(&row), &table.layout));
                    statement += if statement.is_empty() { &table.insert } else { ", " };
                    add_row(&mut statement, &table.layout, row);
                }
                Err(why) => refused.push((*index, why)),
            }
        }
        statement
    };
    let mut statement = next();
    while !statement.is_empty() {
        statement += &format!(" ON DUPLICATE KEY UPDATE {key} = {key}");
        let (sent, following) = futures::future::join(send(to, longest, statement), async { next() }).await;
        sent?;
        statement = following;
    }
    Ok((keys, refused))
}

/// Adds a row as SQL: `(1, 'two', NULL)`. The session's mode lets a backslash escape, and its character set is utf8mb4, in which no byte of
/// a longer character is a quote or a backslash: the library's escapes hold.
fn add_row(statement: &mut String, layout: &Layout, row: Vec<Value>) {
    let values = row.into_iter().zip(&layout.columns).map(|(value, column)| match value {
        Value::Null => Sql::NULL,
        // RFC 3339 in UTC, without what marks it as such.
        Value::Text(text) if column.sort == Sort::Time => {
            Sql::Bytes(text.trim_end_matches('Z').replace('T', " ").into_bytes())
        }
        Value::Text(text) => Sql::Bytes(text.into_bytes()),
        Value::Integer(number) => Sql::Int(number),
        Value::Double(number) => Sql::Double(number),
        Value::Boolean(flag) => Sql::Int(flag.into()),
        Value::Bytes(bytes) => Sql::Bytes(bytes),
    });
    for (index, value) in values.enumerate() {
        *statement += if index == 0 { "(" } else { ", " };
        *statement += &value.as_sql(false);
    }
    *statement += ")";
}

/// As `information_schema` has it, but for a length ([`whole`]).
fn type_of(sort: Sort) -> &'static str {
    match sort {
        Sort::Text | Sort::Json => "longtext",
        Sort::Integer => "bigint",
        Sort::Double => "double",
        Sort::Boolean => "tinyint(1)",
        Sort::Numeric => "varchar(79)",
        Sort::Bytes => "longblob",
        Sort::Time => "datetime",
    }
}

fn whole(data_type: &str) -> &str {
    match data_type {
        "tinyint" => "tinyint(1)",
        "varchar" => "varchar(79)",
        other => other,
    }
}

async fn send(to: &mut impl Queryable, longest: usize, statement: String) -> Result<(), Fault> {
    /// What goes before a statement in its packet, and what the server keeps of it for itself.
    const AROUND: usize = 64;
    if statement.len() + AROUND > longest {
        let bytes = statement.len();
        return Err(Fault::Row(format!("{bytes} bytes of SQL; the server's max_allowed_packet is {longest}")));
    }
    to.query_drop(statement).await.map_err(fault)
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

fn fault(error: Error) -> Fault {
    let text = error.to_string();
    match &error {
        // Data exceptions, constraints, a trigger's SIGNAL, and those of the kind that only have a number: an incorrect value, a check that
        // fails, a row or a statement that is too large.
        Error::Server(server)
            if ["22", "23", "45"].iter().any(|class| server.state.starts_with(class))
                || [1118, 1153, 1366, 3819, 4025].contains(&server.code) =>
        {
            Fault::Row(text)
        }
        _ => Fault::Now(text),
    }
}

#[async_trait::async_trait]
impl Sink for MySql {
    fn shape(&self) -> Shape {
        Shape { batch: self.batch, concurrency: 1 }
    }

    async fn prepare(&self, stream: &StreamId, spec: &StreamSpec) -> Result<(), SinkError> {
        let table = self.make_table(stream, spec)?;
        let mut slot = self.connection.lock().await;
        let mut connection = self.connected(&mut slot).await?;
        let evolved = tokio::time::timeout(self.timeout, self.evolve(&mut connection.conn, &table)).await;
        evolved.map_err(|_| self.again("no answer in time"))??;
        *slot = Some(connection);
        let mut tables = self.tables.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        tables.insert(stream.clone(), Arc::new(table));
        Ok(())
    }

    async fn position(&self, track: &Track) -> Result<Option<u64>, SinkError> {
        const NO_SUCH_TABLE: u16 = 1146;
        let mut slot = self.connection.lock().await;
        let mut connection = self.connected(&mut slot).await?;
        let select =
            "SELECT `offset` FROM chainweir_positions WHERE journal = ? AND output = ? AND stream = ? AND chain = ?";
        let found: Result<Option<Option<i64>>, Error> = connection.conn.exec_first(select, self.key(track)).await;
        let offset = match found {
            Ok(found) => found.flatten(),
            // Nothing was ever prepared here.
            Err(Error::Server(server)) if server.code == NO_SUCH_TABLE => None,
            Err(error) => return Err(self.judge(&error)),
        };
        *slot = Some(connection);
        Ok(offset.and_then(|offset| u64::try_from(offset).ok()))
    }

    async fn deliver(&self, track: &Track, batch: &[Delivery]) -> Vec<Outcome> {
        let table = self.tables.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get(&track.stream).cloned();
        let Some(table) = table else {
            return super::retry_all(batch.len(), &format!("the table of {} is not prepared yet", track.stream));
        };
        if batch.is_empty() {
            return vec![];
        }
        let mut work = Work::new(batch);
        let mut slot = self.connection.lock().await;
        let mut connection = match self.connected(&mut slot).await {
            Ok(connection) => connection,
            Err(error) => return super::retry_all(batch.len(), &error.to_string()),
        };
        let store = async {
            match self.store(&mut connection, &table, track, &mut work, false).await {
                Err(Fault::Row(_)) => self.store(&mut connection, &table, track, &mut work, true).await,
                other => other,
            }
        };
        let why = match tokio::time::timeout(self.timeout, store).await {
            Ok(Ok(())) => {
                *slot = Some(connection);
                return work.settled();
            }
            Ok(Err(Fault::Now(why) | Fault::Row(why))) => why,
            Err(_) => format!("no answer within {} ms", self.timeout.as_millis()),
        };
        super::retry_all(batch.len(), &format!("{}: {why}", self.place))
    }
}
