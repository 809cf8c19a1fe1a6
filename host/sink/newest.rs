//! A table that holds the newest row of each key (the option `key`), for every store: exact through every reorg.
//!
//! Beside the table lies `{table}_history`, with a row of each emission that holds, as a table without a key would have it. An
//! `apply` writes there, a `retract` deletes there, and the same transaction then makes the table what its history says of the keys
//! that were touched: of each key the row of the highest block, and of the highest cursor in it. So when the newest emission of a
//! key is orphaned, the one before it is there again; and what arrives late, as a dead letter that is sent again, takes the place of
//! nothing newer.
//!
//! A row goes from the history when another of its key is newer and `keep_blocks` old: a reorg that is less deep finds what
//! it needs.

use super::table::{KEY, Layout, ROW_KEY};

/// How a store is told which keys, and from which block on all is kept.
#[derive(Clone, Copy, Debug)]
pub enum Keys<'a> {
    /// PostgreSQL: `$1`, an array of texts, and `$2`.
    Array,
    /// SQLite: `?1`, one key, and `?2`.
    One,
    /// MySQL: these, as literals.
    Listed(&'a [String], i64),
}

/// What brings the touched keys of a table up to date with its history.
#[derive(Clone, Debug)]
pub struct Newest {
    /// Puts the newest row of each into the table.
    pub upsert: String,
    /// Takes those out of the table of which no row is left. With the keys alone.
    pub remove: String,
    /// Takes what is too old out of the history.
    pub forget: String,
}

impl Newest {
    /// `table` and `history` are quoted. Each key is looked up by itself, by the history's index: a busy one has many rows.
    pub fn new(
        (table, history): (&str, &str),
        layout: &Layout,
        quoted: impl Fn(&str) -> String,
        keys: Keys<'_>,
    ) -> Self {
        let [key, block, cursor] = ASKED_BY.map(&quoted);
        let columns = layout.columns.iter().map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ");
        let newest = |one: &str| {
            format!("SELECT {columns} FROM {history} WHERE {key} = {one} ORDER BY {block} DESC, {cursor} DESC LIMIT 1")
        };
        let before = match keys {
            Keys::Array => "$2".to_owned(),
            Keys::One => "?2".to_owned(),
            Keys::Listed(_, before) => before.to_string(),
        };
        let bound = |one: &str| {
            format!("SELECT {one} AS k, max({block}) AS b FROM {history} WHERE {key} = {one} AND {block} <= {before}")
        };
        // What is asked of each key, asked of all.
        let of_all = |ask: &dyn Fn(&str) -> String| match keys {
            Keys::Array => {
                format!("SELECT n.* FROM unnest($1::text[]) AS u(k) CROSS JOIN LATERAL ({}) AS n", ask("u.k"))
            }
            Keys::One => ask("?1"),
            Keys::Listed(keys, _) => {
                keys.iter().map(|key| format!("({})", ask(key))).collect::<Vec<_>>().join(" UNION ALL ")
            }
        };
        let others = layout.columns.iter().filter(|column| column.name != ROW_KEY).map(|column| quoted(&column.name));
        let (conflict, set): (_, fn(String) -> String) = match keys {
            Keys::Listed(..) => ("ON DUPLICATE KEY UPDATE".to_owned(), |name| format!("{name} = VALUES({name})")),
            _ => (format!("ON CONFLICT ({key}) DO UPDATE SET"), |name| format!("{name} = excluded.{name}")),
        };
        let set = others.map(set).collect::<Vec<_>>().join(", ");
        let (newest, bound) = (of_all(&newest), of_all(&bound));
        let these = match keys {
            Keys::Array => "= ANY($1)".to_owned(),
            Keys::One => "= ?1".to_owned(),
            Keys::Listed(keys, _) => format!("IN ({})", keys.join(", ")),
        };
        Self {
            // Without a condition SQLite would read ON as that of a join.
            upsert: format!(
                "INSERT INTO {table} ({columns}) SELECT * FROM ({newest}) AS n WHERE true {conflict} {set}"
            ),
            remove: format!(
                "DELETE FROM {table} WHERE {key} {these} \
                 AND NOT EXISTS (SELECT 1 FROM {history} AS h WHERE h.{key} = {table}.{key})"
            ),
            forget: match keys {
                Keys::Array => {
                    format!("DELETE FROM {history} AS h USING ({bound}) AS o WHERE h.{key} = o.k AND h.{block} < o.b")
                }
                Keys::One => format!("DELETE FROM {history} WHERE {key} = ?1 AND {block} < (SELECT b FROM ({bound}))"),
                Keys::Listed(..) => {
                    format!("DELETE h FROM {history} AS h JOIN ({bound}) AS o ON o.k = h.{key} AND h.{block} < o.b")
                }
            },
        }
    }
}

/// What a history is asked by, and has an index of.
pub const ASKED_BY: [&str; 3] = [ROW_KEY, "_block", "_cursor"];

/// The name of a table's history.
pub fn history(table: &str) -> String {
    format!("{table}_history")
}

/// The tables of a stream, with the column by which a row is one: one table, or the newest rows and their history.
pub fn tables(name: &str, layout: &Layout) -> Vec<(String, &'static str)> {
    match layout.keyed() {
        false => vec![(name.to_owned(), layout.key())],
        true => vec![(name.to_owned(), ROW_KEY), (history(name), KEY)],
    }
}

/// Why the key of a row that a table has is not of this layout.
pub fn made_otherwise(layout: &Layout, key: &str, table: &str) -> Result<(), String> {
    if layout.made_of(key) {
        return Ok(());
    }
    Err(format!(
        "key has changed: a row of the table {table} is known by {key}; set another table, or rename that one and its history"
    ))
}
